//! Vector programs as machine code: AVX-512 loops over strips, which Cranelift, with vectors of 128 bits, cannot write.
//!
//! In: a [`Program`] of a few operations on 16 lanes. Out: the bytes of a function `(cells, n)` that runs it on `n` positions of
//! strips: `cells` is a table of pointers and row values. Cranelift's code drives it, as it does the strip routines. The last
//! positions, less than 16, run under a mask, so that no memory beyond the strip is touched.

mod emit;
mod encode;
mod memory;
mod program;

pub(crate) use emit::compile;
pub(crate) use memory::CodeMemory;
pub(crate) use program::{Binary, Builder, Comparison, Form, Id, Join, Op, Program, Unary, Value};

/// Lanes of a register.
pub(crate) const LANES: u64 = 16;

#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod tests;
