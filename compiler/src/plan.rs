//! The plan: plain data that says everything about a step, from which it is executed, printed and cached.
//!
//! In: a prepared [`Graph`] (no `Grad`, no `Detach`). Out: a [`Plan`]; equal input gives equal bytes. All memory is named here:
//! one arena with fixed offsets, and one block for each tensor that outlives a step. [`walk`] runs the steps against
//! any [`Machine`]. Deliberately absent: threads, machine code and addresses, which a target has.

mod print;
mod report;
mod verify;
mod walk;

use std::collections::BTreeMap;
use std::fmt;

use mdl_graph::{Axis, DType, Graph, InputKind, Name, NodeId};
use serde::{Deserialize, Serialize};

use crate::kernel::{Kernel, Parts};

pub use report::{Category, GroupReport, Report};
pub use verify::PlanError;
pub use walk::{Machine, Place, Walker};

/// Everything that one step of a stage does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The size of the arena. It need not be cleared before a step; its base is aligned to [`ALIGN_BYTES`].
    pub arena_bytes: u64,
    /// What outlives a step: weights and states, each a block of its own, so that several plans may share them by name.
    pub states: Vec<State>,
    pub slots: Vec<Slot>,
    /// No two are equal but for their names; most are launched several times in a step.
    pub kernels: Vec<Kernel>,
    pub steps: Vec<Step>,
    pub io: Io,
    pub report: Report,
}

/// Offsets of slots, and the bases of arena and states, are multiples of this: a cache line, and an AVX-512 register.
pub const ALIGN_BYTES: u64 = 64;

/// A weight or a state. Dense, row-major in the order of `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub name: Name,
    pub kind: InputKind,
    pub dtype: DType,
    pub axes: Vec<Axis>,
    pub bytes: u64,
}

/// Memory that holds one value for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub name: String,
    pub base: Base,
    pub offset: u64,
    pub bytes: u64,
    pub dtype: DType,
    pub category: Category,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    Arena,
    /// Index in [`Plan::states`].
    State(u32),
}

/// Index in [`Plan::slots`]. Prints `s3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

/// Index in [`Plan::kernels`]. Prints `k3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KernelId(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// One kernel; `args` are the base addresses of its `bufs`, in order.
    Launch {
        kernel: KernelId,
        args: Vec<Arg>,
    },
    Copy {
        from: Arg,
        to: Arg,
        bytes: u64,
    },
    /// `body` for positions `0..count`, or `count-1..=0` when `reverse`. With `until`, a `bool` read after each pass: true ends the loop.
    Loop {
        count: u64,
        reverse: bool,
        until: Option<Arg>,
        body: Vec<Step>,
    },
}

/// An address: the slot's, plus `offset` bytes, plus for each of `moves` its stride times the position of that loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Arg {
    pub slot: SlotId,
    pub offset: i64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moves: Vec<Move>,
}

/// `depth` 0 is the outermost loop around the step; the stride is in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    pub depth: u32,
    pub stride: i64,
}

/// What comes in before a step and can be read after it, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Batch fields and scalars (in the arena: write them before each step), weights and states (their own blocks).
    pub inputs: Vec<Port>,
    /// The graph's value outputs. Valid after a step until the next one's inputs are written.
    pub outputs: Vec<Port>,
}

/// A tensor at the edge: dense, row-major in the order of `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub name: Name,
    /// `None` for an output.
    pub kind: Option<InputKind>,
    pub dtype: DType,
    pub axes: Vec<Axis>,
    pub slot: SlotId,
}

/// What a caller may choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanOptions {
    /// `false`: every operation is a kernel of its own. Slower, for differential tests.
    pub fuse: bool,
    /// Rounds every value to its storage dtype, also inside kernels, so that fused and unfused runs round alike.
    pub round_every_node: bool,
    /// How products of `f32` may be made; [`crate::budget::compile`] sets it from the precision.
    pub parts: Parts,
    /// The order of axes of these inputs, for plans that share tensors with another: take it from its [`Plan::orders`].
    pub orders: BTreeMap<Name, Vec<Name>>,
}

impl Default for PlanOptions {
    fn default() -> PlanOptions {
        PlanOptions { fuse: true, round_every_node: false, parts: Parts::Whole, orders: BTreeMap::new() }
    }
}

/// Why a graph cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub node: Option<NodeId>,
    pub message: String,
}

impl CompileError {
    pub(crate) fn new(node: Option<NodeId>, message: impl Into<String>) -> CompileError {
        CompileError { node, message: message.into() }
    }
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for CompileError {}

/// Plans a prepared graph: one without `Grad`. The plan verifies.
pub fn plan(graph: &Graph, options: &PlanOptions) -> Result<Plan, CompileError> {
    crate::schedule::schedule(graph, options)
}

impl Plan {
    pub fn slot(&self, id: SlotId) -> &Slot {
        &self.slots[id.0 as usize]
    }

    pub fn kernel(&self, id: KernelId) -> &Kernel {
        &self.kernels[id.0 as usize]
    }

    pub fn input(&self, name: &str) -> Option<&Port> {
        self.io.inputs.iter().find(|port| port.name.as_str() == name)
    }

    pub fn output(&self, name: &str) -> Option<&Port> {
        self.io.outputs.iter().find(|port| port.name.as_str() == name)
    }

    /// The order of axes of every weight and state, for the plans that share them.
    pub fn orders(&self) -> BTreeMap<Name, Vec<Name>> {
        let names = |axes: &[Axis]| axes.iter().map(|axis| axis.name.clone()).collect();
        self.states.iter().map(|state| (state.name.clone(), names(&state.axes))).collect()
    }
}

impl Port {
    pub fn count(&self) -> u64 {
        self.axes.iter().map(|axis| axis.size).product()
    }

    pub fn size_bytes(&self) -> u64 {
        self.count() * self.dtype.size_bytes()
    }
}
