//! The simulated GPU from outside: through unmodified `cudarc`, with PTX written by hand and PTX that NVRTC made.

mod compiled;
mod driver;
mod kernels;
mod mistakes;
mod opcodes;
mod products;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, LaunchArgs, LaunchConfig};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

/// A module on the simulated device.
struct Rig {
    gpu: mdl_simgpu::Gpu,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

impl Rig {
    fn new(ptx: &str) -> Self {
        let gpu = mdl_simgpu::open().unwrap();
        gpu.clear_fault();
        let ctx = CudaContext::new(0).unwrap();
        let module = ctx.load_module(Ptx::from_src(ptx)).unwrap_or_else(|e| panic!("{e}: {}", gpu.last_fault()));
        Self { gpu, stream: ctx.default_stream(), module }
    }

    /// What the driver says of PTX that it does not take.
    fn refusal(ptx: &str) -> String {
        let gpu = mdl_simgpu::open().unwrap();
        gpu.clear_fault();
        let ctx = CudaContext::new(0).unwrap();
        assert!(ctx.load_module(Ptx::from_src(ptx)).is_err());
        gpu.last_fault()
    }

    fn f(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    /// Launches and shows what the simulator has to say if it fails.
    fn go(&self, call: &mut LaunchArgs<'_>, config: LaunchConfig) {
        // SAFETY: the arguments are the kernel's; mistakes are what the simulator catches.
        let done = unsafe { call.launch(config) };
        done.unwrap_or_else(|e| panic!("{e}: {}", self.gpu.last_fault()));
    }

    /// Launches what must fail and gives what is said of it.
    fn fault(&self, call: &mut LaunchArgs<'_>, config: LaunchConfig) -> String {
        self.gpu.clear_fault();
        // SAFETY: the arguments are the kernel's; mistakes are what the simulator catches.
        let done = unsafe { call.launch(config) };
        assert!(done.is_err(), "the mistake went unseen");
        self.gpu.last_fault()
    }
}

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

fn noise(n: usize) -> Vec<f32> {
    let mut x = 0x1234_5678u32;
    (0..n)
        .map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
