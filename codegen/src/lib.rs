//! Kernel IR to machine code, for the CPU.
//!
//! In: [`mdl_compiler::kernel::Kernel`]s. Out: a [`Module`] whose kernels are launched on a [`Pool`]. Nests are compiled by
//! Cranelift and call ahead-of-time strip routines; contractions are a template; the rest are plain routines. The
//! interpreter is the meaning of all of them. Memory is the caller's: this crate only sees base addresses.

mod block;
mod clif;
mod contract;
pub mod cuda;
mod deal;
pub mod interp;
mod isa;
mod jit;
mod memory;
mod module;
mod nest;
mod ordering;
mod plane;
mod pool;
mod scatter;
mod strip;
// Only x86-64 on Linux has a use for it; elsewhere it is compiled and never called.
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code, unused))]
mod wide;
mod workspace;

pub use block::Block;
pub use isa::Isa;
pub use jit::CompileError;
pub use memory::Buffers;
pub use module::{Module, Target, Workspace, clif};
pub use pool::Pool;
pub use workspace::workspace_bytes;
