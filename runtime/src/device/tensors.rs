//! What outlives a step: weights and states, by name.

use std::collections::BTreeMap;

use mdl_compiler::plan::Plan;
use mdl_graph::{Axis, DType, Name};

use super::Block;

/// A tensor that is kept: dense, row-major in the order of `axes`.
pub struct Tensor {
    pub dtype: DType,
    pub axes: Vec<Axis>,
    pub data: Block,
}

/// Weights and states by name. A tensor that no plan has asked for yet is not there.
#[derive(Default)]
pub struct Tensors {
    by_name: BTreeMap<Name, Tensor>,
}

impl Tensors {
    pub fn new() -> Tensors {
        Tensors::default()
    }

    /// Makes, as zeros, the tensors of a plan that are not there yet.
    pub fn allocate(&mut self, plan: &Plan) {
        for state in &plan.states {
            if let Some(tensor) = self.by_name.get(&state.name) {
                if tensor.axes != state.axes || tensor.dtype != state.dtype {
                    mdl_graph::bug!("two plans lay out `{}` in different ways", state.name);
                }
                continue;
            }
            let data = Block::zeroed(state.bytes);
            let tensor = Tensor { dtype: state.dtype, axes: state.axes.clone(), data };
            self.by_name.insert(state.name.clone(), tensor);
        }
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(&Name::from(name))
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        self.by_name.get_mut(&Name::from(name))
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Tensor)> {
        self.by_name.iter()
    }

    pub fn bytes(&self) -> u64 {
        self.by_name.values().map(|tensor| tensor.data.len() as u64).sum()
    }

    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.by_name.remove(&Name::from(name))
    }

    pub(super) fn base(&mut self, name: &Name) -> *mut u8 {
        match self.by_name.get_mut(name) {
            Some(tensor) => tensor.data.base(),
            None => mdl_graph::bug!("`{name}` is not allocated"),
        }
    }
}
