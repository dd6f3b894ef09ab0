//! How fast the simulated GPU is: lane instructions a second of a softmax and a tensor-core product.
//!
//! `cargo run --release -p mdl-simgpu --example simulated_speed`

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::error::Error;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let gpu = mdl_simgpu::open()?;
    let ctx = CudaContext::new(0)?;
    let stream = ctx.default_stream();

    let f = ctx.load_module(Ptx::from_src(include_str!("../tests/kernels/functions.ptx")))?.load_function("softmax")?;
    let (rows, n) = (256u32, 4096i32);
    let x = stream.clone_htod(&vec![0.5f32; rows as usize * 4096])?;
    let mut y = stream.alloc_zeros::<f32>(rows as usize * 4096)?;
    report(&gpu, "softmax 256 x 4096", 0.0, || {
        let mut call = stream.launch_builder(&f);
        call.arg(&x).arg(&mut y).arg(&n);
        let launch = LaunchConfig { grid_dim: (rows, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are the kernel's.
        unsafe { call.launch(launch) }?;
        Ok(())
    })?;

    let f = ctx.load_module(Ptx::from_src(include_str!("../tests/kernels/gemm.ptx")))?.load_function("gemm")?;
    let n = 512i32;
    let a = stream.clone_htod(&vec![0x3f80u16; 512 * 512])?;
    let b = stream.clone_htod(&vec![0x3f80u16; 512 * 512])?;
    let mut c = stream.alloc_zeros::<f32>(512 * 512)?;
    report(&gpu, "product 512 x 512 x 512", 2.0 * 512f64.powi(3), || {
        let mut call = stream.launch_builder(&f);
        call.arg(&a).arg(&b).arg(&mut c).arg(&n).arg(&n).arg(&n);
        let shared = 2 * 2 * (64 * 40 + 32 * 72);
        let launch = LaunchConfig { grid_dim: (8, 8, 1), block_dim: (128, 1, 1), shared_mem_bytes: shared };
        // SAFETY: the arguments are the kernel's.
        unsafe { call.launch(launch) }?;
        Ok(())
    })
}

fn report(
    gpu: &mdl_simgpu::Gpu,
    name: &str,
    flop: f64,
    mut launch: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    launch()?;
    let mut best = f64::INFINITY;
    let mut lanes = 0;
    for _ in 0..3 {
        let (before, from) = (gpu.count().2, Instant::now());
        launch()?;
        best = best.min(from.elapsed().as_secs_f64());
        lanes = gpu.count().2 - before;
    }
    let rate = lanes as f64 / best / 1e6;
    println!("{name}: {:.1} ms, {rate:.0} M lane instructions/s, {:.2} GFLOP/s", best * 1e3, flop / best / 1e9);
    Ok(())
}
