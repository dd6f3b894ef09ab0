//! Lowering: one group of a fusion as one kernel.
//!
//! In: a [`Group`], and where every value in memory lies. Out: a [`Kernel`], and which value each of its buffers is. Views never
//! run: a reader asks for the value at the positions that the view maps its own to ([`coord`]). When those positions have no
//! form in the kernel IR, lowering fails with the node to store instead, and the caller fuses again.

mod collapse;
mod contract;
mod coord;
mod index;
mod nest;
mod plane;
mod strided;
mod writer;

use std::collections::BTreeMap;

use mdl_graph::{DType, Name, NodeId, Op};

use crate::fuse::{Body, Fusion, Group, Shape};
use crate::kernel::{Kernel, Parts, Val};
use crate::plan::CompileError;
use crate::schedule::layout::{Layout, Ranks};

pub(crate) use strided::{Strided, resolve};

/// A kernel, and for each of its buffers the value and which of its places in memory.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    pub(crate) kernel: Kernel,
    pub(crate) touches: Vec<Touch>,
}

/// A buffer of a kernel is a value; `place` counts the places that the value is written to, readers read place 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) node: NodeId,
    pub(crate) place: usize,
    pub(crate) is_write: bool,
}

/// Why a group has no kernel.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// This node must be in memory, then it has.
    Store(NodeId),
    Error(CompileError),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// What every group of a body is lowered with.
pub(crate) struct Lowering<'a, 'g> {
    pub(crate) body: &'a Body<'g>,
    pub(crate) ranks: &'a Ranks,
    pub(crate) fusion: &'a Fusion,
    /// Where values in memory lie: of each the places that it is written to.
    pub(crate) layouts: &'a BTreeMap<NodeId, Vec<Layout>>,
    pub(crate) round_every_node: bool,
    pub(crate) parts: Parts,
}

impl Lowering<'_, '_> {
    /// The kernel of a group; `None` for a loop, which is none, and where nothing is to be made.
    pub(crate) fn group(&self, group: &Group) -> Outcome<Option<Lowered>> {
        if self.fusion.stores(group).iter().all(|id| self.body.graph.ty(*id).count() == 0) {
            return Ok(None);
        }
        let lowered = match group.shape {
            Shape::Nest => nest::lower(self, group)?,
            Shape::Contract(root) => contract::lower(self, group, root)?,
            Shape::Plane { batch, rows } => plane::lower(self, group, batch, rows)?,
            Shape::Alone(root) => match self.body.graph.op(root) {
                Op::Loop(_) => return Ok(None),
                Op::Grad => {
                    let message = "`grad` is left in the graph: differentiate it first";
                    return Err(Failure::Error(CompileError::new(Some(root), message)));
                }
                _ => index::lower(self, root, group.members.keys().copied().find(|id| *id != root))?,
            },
        };
        Ok(Some(lowered))
    }

    fn layout(&self, id: NodeId) -> Outcome<&Layout> {
        // Whoever asks for a value that is not in memory wants it to be.
        self.layouts.get(&id).and_then(|places| places.first()).ok_or(Failure::Store(id))
    }

    fn dtype(&self, id: NodeId) -> DType {
        self.body.graph.ty(id).dtype
    }

    fn val_dtype(&self, id: NodeId) -> DType {
        Val::dtype_of(self.dtype(id))
    }

    /// The dimensions of a group as most of the memory that it touches has them, outermost first.
    fn order(&self, group: &Group) -> Vec<usize> {
        group.order(self.body, self.ranks, &|id| self.layouts.get(&id)?.first().cloned())
    }

    /// A short name: the operations that give the kernel its character, in order.
    fn name(&self, group: &Group) -> String {
        let mut words: Vec<&str> = Vec::new();
        for id in group.members.keys() {
            let word = self.body.graph.op(*id).name();
            if !words.contains(&word) {
                words.push(word);
            }
        }
        let more = words.len().saturating_sub(6);
        words.truncate(6);
        let mut name = words.join("_");
        if more > 0 {
            name.push_str(&format!("_and_{more}"));
        }
        name
    }
}

/// The axes of a layout as `(name, stride)`.
fn strides(layout: &Layout) -> Vec<(Name, i64)> {
    layout.axes.iter().map(|(axis, stride)| (axis.name.clone(), *stride)).collect()
}
