//! Planted mistakes: each must be caught and called by its name.

use super::{Rig, config, noise};
use cudarc::driver::{LaunchConfig, PushKernelArg};

const REDUCE: &str = include_str!("../kernels/reduce.ptx");

fn expect(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "`{said}` does not say `{part}`");
    }
}

/// Launches a kernel of one array and, if given, one number.
fn one_array(kernel: &str, len: usize, number: Option<i32>, launch: LaunchConfig) -> Result<Vec<f32>, String> {
    let rig = Rig::new(REDUCE);
    let f = rig.f(kernel);
    let x: Vec<f32> = (0..len).map(|k| k as f32).collect();
    let mut dx = rig.stream.clone_htod(&x).unwrap();
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&mut dx);
    if let Some(number) = &number {
        call.arg(number);
    }
    // SAFETY: the arguments are the kernel's.
    match unsafe { call.launch(launch) } {
        Ok(_) => Ok(rig.stream.clone_dtoh(&dx).unwrap()),
        Err(_) => Err(rig.gpu.last_fault()),
    }
}

#[test]
fn out_of_bounds() {
    let said = one_array("beyond", 64, Some(1), config(2, 32, 0)).unwrap_err();
    expect(
        &said,
        &["out-of-bounds access of 4 bytes", "kernel beyond, block (1,0,0), thread (31,0,0)", "PTX line", "reduce.cu:"],
    );
    assert!(one_array("beyond", 64, Some(0), config(2, 32, 0)).is_ok());
}

#[test]
fn misaligned() {
    let said = one_array("crooked", 64, None, config(1, 1, 0)).unwrap_err();
    expect(&said, &["misaligned access", "is not a multiple of 16", "kernel crooked"]);
}

#[test]
fn a_missing_barrier() {
    let good = one_array("reverse", 128, Some(1), config(1, 128, 512)).unwrap();
    assert_eq!(good[0], 127.0);
    let said = one_array("reverse", 128, Some(0), config(1, 128, 512)).unwrap_err();
    expect(&said, &["shared memory", "kernel reverse"]);
}

#[test]
fn a_missing_syncwarp() {
    let good = one_array("neighbours", 32, Some(1), config(1, 32, 0)).unwrap();
    assert_eq!(good[..2], [1.0, 0.0]);
    let said = one_array("neighbours", 32, Some(0), config(1, 32, 0)).unwrap_err();
    expect(&said, &["race in shared memory", "no __syncwarp between", "kernel neighbours"]);
}

#[test]
fn dynamic_shared_memory_out_of_bounds() {
    let said = one_array("reverse", 128, Some(1), config(1, 128, 256)).unwrap_err();
    expect(&said, &["out-of-bounds access of 4 bytes at byte 256 of 256 bytes of shared memory"]);
}

#[test]
fn shared_memory_never_written() {
    let said = one_array("holes", 64, None, config(1, 32, 0)).unwrap_err();
    expect(&said, &["uninitialised shared memory read at byte 128", "thread (16,0,0)"]);
}

#[test]
fn a_shuffle_in_divergent_code() {
    let said = one_array("split", 32, None, config(1, 32, 0)).unwrap_err();
    expect(&said, &["a warp-wide instruction in divergent code", "has exited", "shfl.sync"]);
}

#[test]
fn a_barrier_in_divergent_code() {
    let said = one_array("half_barrier", 32, None, config(1, 32, 0)).unwrap_err();
    expect(&said, &["barrier", "bar.sync"]);
}

#[test]
fn a_barrier_that_some_threads_never_reach() {
    let said = one_array("early_exit", 64, None, config(1, 64, 0)).unwrap_err();
    expect(&said, &["barrier that cannot complete", "32, 33"]);
}

#[test]
fn a_race_between_blocks() {
    let said = one_array("clash", 8, None, config(2, 32, 0)).unwrap_err();
    expect(&said, &["race between blocks", "which block (0,0,0) wrote", "block (1,0,0)"]);
    assert!(one_array("clash", 8, None, config(1, 32, 0)).is_ok());
}

#[test]
fn a_missing_fence_between_blocks() {
    let rig = Rig::new(REDUCE);
    let f = rig.f("sum_last");
    let dx = rig.stream.clone_htod(&noise(1000)).unwrap();
    let mut out = rig.stream.alloc_zeros::<f32>(1).unwrap();
    let mut parts = rig.stream.alloc_zeros::<f32>(4).unwrap();
    let mut count = rig.stream.alloc_zeros::<u32>(1).unwrap();
    let (len, fence) = (1000i32, 0i32);
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&dx).arg(&mut out).arg(&mut parts).arg(&mut count).arg(&len).arg(&fence);
    expect(&rig.fault(&mut call, config(4, 256, 0)), &["race between blocks", "kernel sum_last"]);
}

fn product(ptx: &str) -> String {
    let rig = Rig::new(ptx);
    let f = rig.f("gemm");
    let size = 128usize;
    let a = rig.stream.clone_htod(&vec![0x3f80u16; size * size]).unwrap();
    let b = rig.stream.clone_htod(&vec![0x3f80u16; size * size]).unwrap();
    let mut c = rig.stream.alloc_zeros::<f32>(size * size).unwrap();
    let n = size as i32;
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&a).arg(&b).arg(&mut c).arg(&n).arg(&n).arg(&n);
    let shared = 2 * 2 * (64 * 40 + 32 * 72);
    rig.fault(&mut call, LaunchConfig { grid_dim: (2, 2, 1), block_dim: (128, 1, 1), shared_mem_bytes: shared })
}

#[test]
fn a_wrong_wait_for_copies() {
    let said = product(include_str!("../kernels/gemm_wait.ptx"));
    expect(&said, &["read before the cp.async that fills it was waited for", "ldmatrix"]);
}

#[test]
fn a_product_without_barriers() {
    let said = product(include_str!("../kernels/gemm_sync.ptx"));
    expect(&said, &["shared memory", "kernel gemm"]);
}

#[test]
fn stale_memory() {
    let rig = Rig::new(REDUCE);
    let f = rig.f("crooked");
    let x = rig.stream.clone_htod(&[0f32; 64]).unwrap();
    let address = {
        use cudarc::driver::DevicePtr;
        let (address, _sync) = x.device_ptr(&rig.stream);
        address
    };
    drop(x);
    let aligned = address - 4;
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&aligned);
    expect(&rig.fault(&mut call, config(1, 1, 0)), &["not in any live allocation"]);
}

#[test]
fn launches_that_the_driver_refuses() {
    let rig = Rig::new(REDUCE);
    let f = rig.f("reverse");
    let mut x = rig.stream.alloc_zeros::<f32>(64).unwrap();
    let sync = 1i32;
    for (launch, why) in [
        (config(0, 32, 0), "has no thread"),
        (config(1, 2048, 0), "threads a block are more than"),
        (config(1, 64, 60_000), "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"),
    ] {
        let mut call = rig.stream.launch_builder(&f);
        call.arg(&mut x).arg(&sync);
        expect(&rig.fault(&mut call, launch), &[why]);
    }
}

#[test]
fn a_kernel_that_never_ends() {
    let rig = Rig::new(REDUCE);
    // Far more than any other kernel of these tests takes.
    rig.gpu.set_limit(2_000_000);
    let f = rig.f("forever");
    let mut x = rig.stream.alloc_zeros::<i32>(1).unwrap();
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&mut x);
    expect(&rig.fault(&mut call, config(1, 32, 0)), &["no end after 2000000 instructions of a warp", "kernel forever"]);
}
