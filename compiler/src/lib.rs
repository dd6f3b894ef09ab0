//! From a graph of primitives to what is run: derivatives, passes, kernels.
//!
//! In: the graph of a step, made by the checker. Out: the same meaning, differentiated and simplified, then fused into kernels
//! and planned. [`reference`] is the meaning that every pass and every target is compared with.
//! Invariants: each pass gives a graph that verifies, with the inputs of the one it took. Deliberately absent: machine code,
//! files, threads, and the language: this crate knows graphs only.

pub mod budget;
pub mod cost;
mod fuse;
pub mod grad;
pub mod kernel;
mod lower;
pub mod pass;
pub mod plan;
mod plane;
pub mod reference;
mod schedule;
pub mod stored;
pub mod testing;
pub mod tolerance;

pub use pass::{Options, PassError, Precision, dump_after, prepare};
