//! Kernels that NVRTC compiled, through unmodified `cudarc`, on the simulated GPU. The PTX is kept beside its source, so that no
//! compiler is needed.

use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, LaunchArgs, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::sync::Arc;

fn config(grid: u32, block: u32, shared: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: shared }
}

struct Rig {
    gpu: mdl_simgpu::Gpu,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

impl Rig {
    fn new(ptx: &str) -> Self {
        let gpu = mdl_simgpu::open().unwrap();
        let ctx = CudaContext::new(0).unwrap();
        let module = ctx.load_module(Ptx::from_src(ptx)).unwrap_or_else(|e| panic!("{e}: {}", gpu.last_fault()));
        Self { gpu, stream: ctx.default_stream(), module }
    }

    fn f(&self, name: &str) -> CudaFunction {
        self.module.load_function(name).unwrap()
    }

    /// Launches and shows what the simulator has to say if it fails.
    fn go(&self, call: &mut LaunchArgs<'_>, grid: u32, block: u32, shared: u32) {
        // SAFETY: the arguments are the kernel's; mistakes are what the simulator catches.
        let done = unsafe { call.launch(config(grid, block, shared)) };
        done.unwrap_or_else(|e| panic!("{e}: {}", self.gpu.last_fault()));
    }
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

const FUNCTIONS: &str = include_str!("kernels/functions.ptx");

#[test]
fn softmax_of_rows() {
    let rig = Rig::new(FUNCTIONS);
    let softmax = rig.f("softmax");
    for (rows, n) in [(1, 1), (3, 31), (5, 33), (16, 1000)] {
        let x = noise(rows * n);
        let dx = rig.stream.clone_htod(&x).unwrap();
        let mut dy = rig.stream.alloc_zeros::<f32>(rows * n).unwrap();
        let mut call = rig.stream.launch_builder(&softmax);
        let len = n as i32;
        call.arg(&dx).arg(&mut dy).arg(&len);
        rig.go(&mut call, rows as u32, 128, 0);
        let y = rig.stream.clone_dtoh(&dy).unwrap();
        for r in 0..rows {
            let row = &x[r * n..(r + 1) * n];
            let sum: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            for (k, &v) in row.iter().enumerate() {
                let want = f64::from(v).exp() / sum;
                assert!((f64::from(y[r * n + k]) - want).abs() < 1e-6 * want.max(1e-3), "row {r} of {n}, {k}");
            }
        }
    }
}

#[test]
fn elementary_functions() {
    let rig = Rig::new(FUNCTIONS);
    let f = rig.f("sines");
    type Reference = fn(f64) -> f64;
    let table: [(i32, Reference, f64); 19] = [
        (0, f64::sin, 3e-7),
        (1, f64::cos, 3e-7),
        (2, |x| x.powf(f64::from(1.7f32)), 1e-6),
        (3, f64::ln, 1e-6),
        (5, f64::tanh, 1e-6),
        (6, f64::exp2, 1e-6),
        (7, f64::ln_1p, 1e-6),
        (8, f64::sqrt, 1e-7),
        (9, |x| 1.0 / x.sqrt(), 3e-7),
        (10, |x| 1.0 / x, 1e-7),
        (11, f64::atan, 3e-7),
        (12, f64::exp, 1e-5),
        (13, f64::ln, 1e-5),
        (14, f64::floor, 0.0),
        (15, f64::round_ties_even, 0.0),
        (16, |x| x % f64::from(0.7f32), 1e-7),
        (17, f64::exp, 1e-7),
        (18, f64::exp_m1, 1e-6),
        (19, f64::round, 0.0),
    ];
    let n = 501;
    for (op, reference, tolerance) in table {
        // Sines take the long way of reducing large arguments, too.
        let scale = if op < 2 { 300_000.0 } else { 7.0 };
        let x: Vec<f32> = noise(n).iter().map(|v| (v * scale).abs() + 0.01).collect();
        let dx = rig.stream.clone_htod(&x).unwrap();
        let mut dy = rig.stream.alloc_zeros::<f32>(n).unwrap();
        let len = n as i32;
        let mut call = rig.stream.launch_builder(&f);
        call.arg(&dx).arg(&mut dy).arg(&len).arg(&op);
        rig.go(&mut call, 4, 128, 0);
        let y = rig.stream.clone_dtoh(&dy).unwrap();
        for (&x, &y) in x.iter().zip(&y) {
            let want = reference(f64::from(x));
            assert!(
                (f64::from(y) - want).abs() <= tolerance * want.abs().max(1.0),
                "function {op} of {x}: {y}, not {want}"
            );
        }
    }
}

#[test]
fn integers_and_votes() {
    let rig = Rig::new(FUNCTIONS);
    let f = rig.f("philox");
    let n = 100usize;
    let seed = 0x1234_5678_9abc_def0u64;
    let mut out = rig.stream.alloc_zeros::<u32>(n + 2).unwrap();
    let len = n as i32;
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&mut out).arg(&seed).arg(&len);
    rig.go(&mut call, 4, 32, 0);
    let got = rig.stream.clone_dtoh(&out).unwrap();
    for (i, &got) in got[..n].iter().enumerate() {
        let (mut c, mut k) = ([i as u32, seed as u32, (seed >> 32) as u32, 7u32], [1u32, 2u32]);
        for _ in 0..10 {
            let p0 = u64::from(c[0]) * 0xD251_1F53;
            let p1 = u64::from(c[2]) * 0xCD9E_8D57;
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let want = c[0] ^ (seed / (i as u64 + 3)) as u32 ^ (seed % (i as u64 + 5)) as u32;
        assert_eq!(got, want, "{i}");
    }
    assert_eq!(got[n], 100);
}
