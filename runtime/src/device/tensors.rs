//! What outlives a step: weights and states, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use mdl_compiler::plan::Plan;
use mdl_graph::{Axis, DType, Name};

use mdl_gpu::{Error, Gpu, Memory};

use super::Block;
use crate::error::RunError;

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
    on_card: BTreeMap<Name, Copy>,
}

/// The same tensor in the memory of a card.
struct Copy {
    memory: Memory,
    newer: Newer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newer {
    Neither,
    Here,
    Card,
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

    /// What a card has changed must be brought home first: see [`Tensors::fetch`].
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let name = Name::from(name);
        self.is_home(&name);
        self.by_name.get(&name)
    }

    /// As [`Tensors::get`]. A card takes what is written here before it runs again.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Tensor> {
        let name = Name::from(name);
        self.is_home(&name);
        if let Some(copy) = self.on_card.get_mut(&name) {
            copy.newer = Newer::Here;
        }
        self.by_name.get_mut(&name)
    }

    fn is_home(&self, name: &Name) {
        if self.on_card.get(name).is_some_and(|copy| copy.newer == Newer::Card) {
            mdl_graph::bug!("`{name}` is read here, and a card has changed it");
        }
    }

    /// Makes all of it zero, whatever is there.
    pub fn clear(&mut self, name: &Name) {
        if let Some(copy) = self.on_card.get_mut(name) {
            copy.newer = Newer::Here;
        }
        if let Some(tensor) = self.by_name.get_mut(name) {
            tensor.data.bytes_mut().fill(0);
        }
    }

    /// Brings home all that a card has changed.
    pub fn fetch(&mut self) -> Result<(), RunError> {
        let names: Vec<Name> = self.on_card.keys().cloned().collect();
        let fetched = names.iter().try_for_each(|name| self.fetch_one(name));
        fetched.map_err(|error| RunError::failed("reading the weights of the card", error.to_string()))
    }

    pub(super) fn fetch_one(&mut self, name: &Name) -> Result<(), Error> {
        if let (Some(copy), Some(tensor)) = (self.on_card.get_mut(name), self.by_name.get_mut(name))
            && copy.newer == Newer::Card
        {
            copy.memory.read(0, tensor.data.bytes_mut())?;
            copy.newer = Newer::Neither;
        }
        Ok(())
    }

    /// The address of a tensor on a card, with what is newest in it.
    pub(super) fn on_card(&mut self, name: &Name, gpu: &Arc<Gpu>) -> Result<u64, Error> {
        let Some(tensor) = self.by_name.get_mut(name) else { mdl_graph::bug!("`{name}` is not allocated") };
        if !self.on_card.contains_key(name) {
            let memory = Memory::new(gpu, tensor.data.len() as u64)?;
            self.on_card.insert(name.clone(), Copy { memory, newer: Newer::Here });
        }
        let Some(copy) = self.on_card.get_mut(name) else { mdl_graph::bug!("`{name}` has no copy") };
        if copy.newer == Newer::Here {
            copy.memory.write(0, tensor.data.bytes())?;
            copy.newer = Newer::Neither;
        }
        Ok(copy.memory.address())
    }

    pub(super) fn changed_on_card(&mut self, name: &Name) {
        if let Some(copy) = self.on_card.get_mut(name) {
            copy.newer = Newer::Card;
        }
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &Tensor)> {
        self.by_name.iter()
    }

    pub fn bytes(&self) -> u64 {
        self.by_name.values().map(|tensor| tensor.data.len() as u64).sum()
    }

    pub fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.on_card.remove(&Name::from(name));
        self.by_name.remove(&Name::from(name))
    }

    pub(super) fn base(&mut self, name: &Name) -> *mut u8 {
        self.is_home(name);
        if let Some(copy) = self.on_card.get_mut(name) {
            copy.newer = Newer::Here;
        }
        match self.by_name.get_mut(name) {
            Some(tensor) => tensor.data.base(),
            None => mdl_graph::bug!("`{name}` is not allocated"),
        }
    }
}
