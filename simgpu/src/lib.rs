//! A GPU without a GPU, for tests: the CUDA driver's functions over an interpreter of PTX.
//!
//! [`open`] loads this crate's own shared object, whose SONAME is that of the driver; `cudarc`, asked afterwards, uses it, unchanged.
//! What runs is the PTX that NVRTC makes for a real GPU. Mistakes that a GPU passes over are found and named with kernel, block,
//! thread and line: accesses out of bounds or misaligned, races within a block and between blocks, shared memory read before it is
//! written or before its `cp.async` was waited for, barriers and warp-wide instructions in divergent code.
//!
//! | environment | what |
//! |---|---|
//! | `MDLC_SIMGPU_DEVICES` | number of devices, 1 |
//! | `MDLC_SIMGPU_MEMORY` | bytes of memory of each, 16 GiB |
//! | `MDLC_SIMGPU_CC` | compute capability, 9.0 |
//! | `MDLC_SIMGPU_RACES` | 0: no check for races |
//! | `MDLC_SIMGPU_UNINIT` | 0: shared memory may be read before it is written |
//! | `MDLC_SIMGPU_THREADS` | host threads a launch runs its blocks on, 1 |
//! | `MDLC_SIMGPU_LIMIT` | instructions a warp may execute in a block, 2,000,000,000 |
//! | `MDLC_SIMGPU_PLAIN` | 1: no wide vectors, as on other processors |
//! | `MDLC_SIMGPU_QUIET` | 1: mistakes are not shown on standard error |
//!
//! What it does not say: anything about time, registers, or what `ptxas` makes of the PTX. Memory is sequentially consistent. The
//! approximate functions are exact to rounding, and sums of matrix products are rounded in another order than a GPU's.

mod driver;
mod ptx;
mod sim;

mod open;

pub use open::{Gpu, OpenError, open};
