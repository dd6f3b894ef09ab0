//! The products of linear layers against what registers could do: `cargo run --release -p mdl-codegen --example products [isa]`.
//!
//! For each size the three products of a layer, `y = x·w`, `dx = dy·wᵀ`, `dw = xᵀ·dy`, results in f32: GFLOP/s of one thread and
//! of all, and the share of the peak of one thread: multiply-adds whose operands never leave registers, measured just before.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::time::Instant;

use mdl_codegen::{Buffers, Isa, Module, Pool, Target};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, Kernel, Operand, Parts, Role, Stmt, Val, ValId, Work,
};
use mdl_graph::DType;

/// m, n, k of the forward product.
const SIZES: [(u64, u64, u64); 5] =
    [(128, 128, 128), (512, 512, 512), (1024, 3072, 768), (1024, 768, 3072), (1024, 50304, 768)];

/// m by k and k by n, with the strides of a along (m, k) and of b along (k, n).
fn product(dtype: DType, (m, n, k): (u64, u64, u64), a: (u64, u64), b: (u64, u64)) -> Kernel {
    let dim = |extent, a: u64, b: u64| vec![ContractDim { extent, a: a as i64, b: b as i64 }];
    let operand = |at| Operand { buf: BufId(at), base: 0 };
    let access = Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]);
    let contract = Contract {
        a: operand(0),
        b: operand(1),
        batch: Vec::new(),
        m: dim(m, a.0, 0),
        n: dim(n, 0, b.1),
        k: dim(k, a.1, b.0),
        parts: Parts::Whole,
        vals: vec![Val::strip(dtype)],
        body: vec![Stmt::Store { buf: BufId(2), access, val: ValId(0) }],
    };
    let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
    let bufs = vec![
        buf("a", dtype, m * k, Role::Read),
        buf("b", dtype, k * n, Role::Read),
        buf("out", DType::F32, m * n, Role::Write),
    ];
    Kernel { name: "product".into(), bufs, work: Work::Contract(contract) }
}

/// Seconds of the best of many launches.
fn best(kernel: &Kernel, isa: Isa, threads: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let module = Module::compile(std::slice::from_ref(kernel), Target::Cpu(isa))?;
    let pool = Pool::new(threads, false)?;
    let workspace = module.workspace(threads);
    // Halves of 1.0 and less, in any dtype: bf16 reads them as numbers of that size too.
    let block = |buf: &Buf| vec![0x3f00_3f00u32; (buf.len * buf.dtype.size_bytes()) as usize / 4 + 16];
    let mut memory: Vec<Vec<u32>> = kernel.bufs.iter().map(block).collect();
    let addresses: Vec<*mut u8> = memory.iter_mut().map(|block| block.as_mut_ptr().cast()).collect();
    let began = Instant::now();
    let (mut least, mut runs) = (f64::MAX, 0);
    while began.elapsed().as_secs_f64() < 0.3 || runs < 3 {
        let start = Instant::now();
        // SAFETY: one block of the right length for each buffer.
        unsafe { module.launch(&pool, &workspace, 0, Buffers::new(&addresses)) };
        least = least.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    Ok(least)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let named = std::env::args().nth(1);
    let known = Isa::available();
    let isa = match &named {
        None => Isa::detect(),
        Some(name) => {
            let found = known.iter().find(|isa| isa.to_string() == *name);
            *found.ok_or_else(|| format!("this machine has no {name}: give one of {known:?} in lower case"))?
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{isa}; GFLOP/s of 1 and of {threads} threads, and the share of the peak of one");
    for dtype in [DType::F32, DType::BF16] {
        let peak = peak::gflops(isa, dtype);
        println!("{dtype}: peak of one thread {peak:.0}");
        for (m, n, k) in SIZES {
            let forms = [
                ("x·w  ", product(dtype, (m, n, k), (k, 1), (n, 1))),
                ("dy·wᵀ", product(dtype, (m, k, n), (n, 1), (1, n))),
                ("xᵀ·dy", product(dtype, (k, n, m), (1, k), (n, 1))),
            ];
            print!("  {:<16}", format!("{m}x{n}x{k}"));
            for (name, kernel) in forms {
                let speed = |seconds: f64| 2.0 * (m * n * k) as f64 / seconds / 1e9;
                let (one, all) = (speed(best(&kernel, isa, 1)?), speed(best(&kernel, isa, threads)?));
                print!("   {name} {one:6.0} {all:6.0} {:3.0}%", 100.0 * one / peak);
            }
            println!();
        }
    }
    Ok(())
}

/// Multiply-adds that touch no memory.
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::asm;
    use std::time::Instant;

    use mdl_codegen::Isa;
    use mdl_graph::DType;

    const TURNS: usize = 20_000;

    macro_rules! sums {
        ($turns:ident, $flops:literal, $($line:literal)*) => {{
            asm!("2:", $($line,)* "dec {turns}", "jnz 2b", turns = inout(reg) $turns => _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, options(nostack));
            $flops
        }};
    }

    /// Ten chains hide the latency of either unit. Returns the operations of a turn.
    ///
    /// # Safety
    /// The machine has the instruction set.
    unsafe fn turns(isa: Isa, tiles: bool, n: usize) -> usize {
        // SAFETY: the caller's promise; registers that are changed are declared, tiles are released.
        unsafe {
            match isa {
                Isa::Amx if tiles => {
                    let mut config = [0u8; 64];
                    config[0] = 1;
                    for tile in 0..8 {
                        (config[16 + 2 * tile], config[48 + tile]) = (64, 16);
                    }
                    asm!("ldtilecfg [{config}]", "2:",
                        "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                        "dec {turns}", "jnz 2b", "tilerelease", config = in(reg) config.as_ptr(), turns = inout(reg) n => _,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
                        out("tmm6") _, out("tmm7") _, options(nostack));
                    4 * 2 * 16 * 16 * 32
                }
                Isa::Amx | Isa::Avx512 => sums!(n, 320, "vfmadd231ps zmm0, zmm10, zmm11"
                    "vfmadd231ps zmm1, zmm10, zmm11" "vfmadd231ps zmm2, zmm10, zmm11" "vfmadd231ps zmm3, zmm10, zmm11"
                    "vfmadd231ps zmm4, zmm10, zmm11" "vfmadd231ps zmm5, zmm10, zmm11" "vfmadd231ps zmm6, zmm10, zmm11"
                    "vfmadd231ps zmm7, zmm10, zmm11" "vfmadd231ps zmm8, zmm10, zmm11" "vfmadd231ps zmm9, zmm10, zmm11"),
                Isa::Avx2 => sums!(n, 160, "vfmadd231ps ymm0, ymm10, ymm11"
                    "vfmadd231ps ymm1, ymm10, ymm11" "vfmadd231ps ymm2, ymm10, ymm11" "vfmadd231ps ymm3, ymm10, ymm11"
                    "vfmadd231ps ymm4, ymm10, ymm11" "vfmadd231ps ymm5, ymm10, ymm11" "vfmadd231ps ymm6, ymm10, ymm11"
                    "vfmadd231ps ymm7, ymm10, ymm11" "vfmadd231ps ymm8, ymm10, ymm11" "vfmadd231ps ymm9, ymm10, ymm11"),
                Isa::Baseline => sums!(n, 40, "mulps xmm0, xmm10" "addps xmm1, xmm10" "mulps xmm2, xmm10"
                    "addps xmm3, xmm10" "mulps xmm4, xmm10" "addps xmm5, xmm10" "mulps xmm6, xmm10" "addps xmm7, xmm10"
                    "mulps xmm8, xmm10" "addps xmm9, xmm10"),
            }
        }
    }

    pub(crate) fn gflops(isa: Isa, dtype: DType) -> f64 {
        let tiles = dtype == DType::BF16;
        let rate = |_| {
            let start = Instant::now();
            // SAFETY: `isa` is one that this machine has.
            let flops = unsafe { turns(isa, tiles, TURNS) };
            (flops * TURNS) as f64 / start.elapsed().as_secs_f64() / 1e9
        };
        (0..2000).map(rate).fold(0.0, f64::max)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    use mdl_codegen::Isa;
    use mdl_graph::DType;

    /// Not known here: shares are of nothing.
    pub(crate) fn gflops(_: Isa, _: DType) -> f64 {
        f64::NAN
    }
}
