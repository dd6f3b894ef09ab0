//! Times every kernel of a list alone: `cargo run --release -p mdl-codegen --example profile -- kernels.json [threads]`.
//! The file holds a JSON array of kernels.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use mdl_codegen::{Buffers, Isa, Module, Pool, Target};
use mdl_compiler::kernel::Kernel;
use mdl_graph::DType;

/// Seconds: of this thread's own work when it works alone, so that a busy machine disturbs little; else of the clock.
fn now(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call only writes `time`.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Ordinary numbers: small integers, and floats of about one.
fn fill(dtype: DType) -> u64 {
    match dtype {
        DType::F32 => 0x3f80_0000_3f80_0000,
        DType::F64 => 0x3ff0_0000_0000_0000,
        DType::BF16 => 0x3f80_3f80_3f80_3f80,
        DType::F16 => 0x3c00_3c00_3c00_3c00,
        DType::I32 => 0x0000_0001_0000_0001,
        DType::I64 => 1,
        DType::I8 | DType::U8 | DType::Bool => 0x0101_0101_0101_0101,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which file?")?;
    let threads: usize = args.next().map_or(Ok(1), |text| text.parse())?;
    let kernels: Vec<Kernel> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let start = now(1);
    let module = Module::compile(&kernels, Target::Cpu(Isa::detect()))?;
    println!("{} kernels compiled in {:.1} ms", kernels.len(), (now(1) - start) * 1e3);
    let pool = Pool::new(threads, false)?;
    let workspace = module.workspace(threads);
    let mut total = 0.0;
    for (at, kernel) in kernels.iter().enumerate() {
        let bytes = |len: u64, size: u64| (len * size).div_ceil(8) as usize + 8;
        let mut memory: Vec<Vec<u64>> =
            kernel.bufs.iter().map(|buf| vec![fill(buf.dtype); bytes(buf.len, buf.dtype.size_bytes())]).collect();
        #[cfg(target_os = "linux")]
        for (block, buf) in memory.iter_mut().zip(&kernel.bufs) {
            // As the runtime does for its arena. SAFETY: advice about pages inside the block.
            unsafe {
                let from = block.as_mut_ptr() as usize;
                let (lo, hi) = (from.next_multiple_of(4096), (from + block.len() * 8) & !4095);
                if hi > lo {
                    libc::madvise(lo as *mut _, hi - lo, libc::MADV_HUGEPAGE);
                    libc::madvise(lo as *mut _, hi - lo, libc::MADV_DONTNEED);
                }
                block.fill(fill(buf.dtype));
            }
        }
        let addresses: Vec<*mut u8> = memory.iter_mut().map(|block| block.as_mut_ptr().cast()).collect();
        let mut least = f64::MAX;
        for _ in 0..15 {
            let start = now(threads);
            // SAFETY: one block of the right length for each buffer.
            unsafe { module.launch(&pool, &workspace, at, Buffers::new(&addresses)) };
            least = least.min(now(threads) - start);
        }
        total += least;
        let text = kernel.to_string();
        let what = text.lines().find(|line| line.starts_with("  ") && !line.starts_with("  b")).unwrap_or("").trim();
        println!("{:9.1} µs  {at:3} {:40} {what}", least * 1e6, kernel.name);
    }
    println!("{:9.1} µs  in all", total * 1e6);
    Ok(())
}
