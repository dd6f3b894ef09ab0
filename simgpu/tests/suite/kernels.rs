//! Kernels that NVRTC compiled, through unmodified `cudarc`, on the simulated GPU. The PTX is kept beside its source, so that no
//! compiler is needed.

use super::{Rig, config, noise};
use cudarc::driver::{LaunchConfig, PushKernelArg};

const FUNCTIONS: &str = include_str!("../kernels/functions.ptx");

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
        rig.go(&mut call, config(rows as u32, 128, 0));
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
        rig.go(&mut call, config(4, 128, 0));
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
    rig.go(&mut call, config(4, 32, 0));
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

const GEMM: &str = include_str!("../kernels/gemm.ptx");

fn bf16(x: f32) -> u16 {
    ((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) >> 16) as u16
}

fn value(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[test]
fn product_on_tensor_cores() {
    let rig = Rig::new(GEMM);
    let gemm = rig.f("gemm");
    // Rows are copied 16 bytes at a time: k and n are multiples of 8.
    for (m, n, k) in [(64, 64, 32), (1, 8, 8), (65, 72, 40), (100, 200, 136), (128, 128, 128)] {
        let a: Vec<u16> = noise(m * k).into_iter().map(bf16).collect();
        let b: Vec<u16> = noise(k * n).into_iter().map(bf16).collect();
        let (da, db) = (rig.stream.clone_htod(&a).unwrap(), rig.stream.clone_htod(&b).unwrap());
        let mut dc = rig.stream.alloc_zeros::<f32>(m * n).unwrap();
        let (im, inn, ik) = (m as i32, n as i32, k as i32);
        let mut call = rig.stream.launch_builder(&gemm);
        call.arg(&da).arg(&db).arg(&mut dc).arg(&im).arg(&inn).arg(&ik);
        let grid = (n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1);
        let shared = 2 * 2 * (64 * 40 + 32 * 72);
        rig.go(&mut call, LaunchConfig { grid_dim: grid, block_dim: (128, 1, 1), shared_mem_bytes: shared });
        let c = rig.stream.clone_dtoh(&dc).unwrap();
        for r in 0..m {
            for x in 0..n {
                let want: f64 = (0..k).map(|q| f64::from(value(a[r * k + q])) * f64::from(value(b[q * n + x]))).sum();
                assert!(
                    (f64::from(c[r * n + x]) - want).abs() < 1e-4,
                    "{m}x{n}x{k} at {r},{x}: {} not {want}",
                    c[r * n + x]
                );
            }
        }
    }
}

const REDUCE: &str = include_str!("../kernels/reduce.ptx");

#[test]
fn sums_by_atomics_and_by_the_last_block() {
    let rig = Rig::new(REDUCE);
    let n = 10_007usize;
    let x: Vec<f32> = (0..n).map(|k| (k % 13) as f32).collect();
    let want: f32 = x.iter().sum();
    let dx = rig.stream.clone_htod(&x).unwrap();
    let len = n as i32;
    let mut out = rig.stream.alloc_zeros::<f32>(1).unwrap();
    let f = rig.f("sum_atomic");
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&dx).arg(&mut out).arg(&len);
    rig.go(&mut call, config(7, 256, 0));
    assert_eq!(rig.stream.clone_dtoh(&out).unwrap(), [want]);

    let f = rig.f("sum_last");
    let mut parts = rig.stream.alloc_zeros::<f32>(7).unwrap();
    let mut count = rig.stream.alloc_zeros::<u32>(1).unwrap();
    let mut out = rig.stream.alloc_zeros::<f32>(1).unwrap();
    let fence = 1i32;
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&dx).arg(&mut out).arg(&mut parts).arg(&mut count).arg(&len).arg(&fence);
    rig.go(&mut call, config(7, 256, 0));
    assert_eq!(rig.stream.clone_dtoh(&out).unwrap(), [want]);
}

/// What NVRTC makes of halves: conversions, packed arithmetic, minima.
#[test]
fn halves() {
    let rig = Rig::new(FUNCTIONS);
    let f = rig.f("halves");
    let n = 32usize;
    // 1.5 and 2 as f16 and bf16, all sums and products exact.
    let a: Vec<u16> = (0..2 * n).map(|k| if k % 2 == 0 { 0x3e00 } else { 0x4000 }).collect();
    let b: Vec<u16> = (0..2 * n).map(|k| bf16(if k % 2 == 0 { 1.5 } else { 2.0 })).collect();
    let (da, db) = (rig.stream.clone_htod(&a).unwrap(), rig.stream.clone_htod(&b).unwrap());
    let mut dc = rig.stream.alloc_zeros::<u16>(2 * n).unwrap();
    let mut dd = rig.stream.alloc_zeros::<u16>(2 * n).unwrap();
    let len = 1i32;
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&da).arg(&db).arg(&mut dc).arg(&mut dd).arg(&len);
    rig.go(&mut call, config(1, 32, 0));
    let (c, d) = (rig.stream.clone_dtoh(&dc).unwrap(), rig.stream.clone_dtoh(&dd).unwrap());
    // 1.5 · 1.5 + 1.5 · 1.5 = 4.5, of which the maximum with 1.5 is kept; 2 · 2 + 2 · 2 = 8.
    assert_eq!(c[..2], [0x4480, 0x4800]);
    // (2.25 + 3) · 1.5 = 7.875; 4 + 4 = 8.
    assert_eq!(d[..2], [bf16(7.875), bf16(8.0)]);
}
