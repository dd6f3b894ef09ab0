//! The one representation between the checker and the kernels: a graph of few primitives over named axes.
//!
//! In: calls of [`Graph::add`], each checked by the primitive's shape rule. Out: an arena in topological order
//! (arguments are always earlier nodes), hash-consed, that prints, serializes and verifies itself.
//! Deliberately absent: layouts, devices, and the order of axes; a type is a dtype and a *set* of named axes.

mod axis;
mod dtype;
mod graph;
mod op;
pub mod philox;
mod print;
mod shape;
mod span;

pub use axis::{Axis, AxisSet, Name};
pub use dtype::{DType, Scalar};
pub use graph::{Graph, Input, InputId, InputKind, Node, NodeId, Output, Phase, Role, VerifyError};
pub use op::{Class, Loop, Op, ScatterKind};
pub use shape::{ShapeError, Type, infer, infer_results};
pub use span::{FileId, Span};

/// Reports a broken invariant of the compiler itself and stops: never reachable from a mistake in a user's file.
#[macro_export]
macro_rules! bug {
    ($($arg:tt)*) => { panic!("internal error in mdlc, please report it: {}", format_args!($($arg)*)) };
}
