//! What this machine can do: the FLOP/s of one large product, the figure that a run's share of peak is of, and the bytes that
//! it moves each second.

use std::time::{Duration, Instant};

use mdl_codegen::{Buffers, CompileError, Module, Target};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, Kernel, Operand, Parts, Role, Stmt, Val, ValId, Work,
};
use mdl_graph::DType;

use super::{Block, Cpu};

/// The side of the matrices: their product takes a few milliseconds, and each fits the second cache.
const N: u64 = 512;
/// How long is measured.
const TIME: Duration = Duration::from_millis(40);

/// The most `f32` FLOP/s of a few products of two 512 × 512 matrices.
pub fn peak_flops(cpu: &Cpu) -> Result<f64, CompileError> {
    let module = Module::compile(&[product()], Target::Cpu(cpu.isa))?;
    let workspace = module.workspace(cpu.threads());
    let mut blocks: Vec<Block> = (0..3).map(|_| Block::zeroed(N * N * 4)).collect();
    let addresses: Vec<*mut u8> = blocks.iter_mut().map(Block::base).collect();
    let began = Instant::now();
    let mut best = Duration::MAX;
    while began.elapsed() < TIME {
        let start = Instant::now();
        // SAFETY: three blocks of the size that the kernel says, used by nobody else.
        unsafe { module.launch(&cpu.pool, &workspace, 0, Buffers::new(&addresses)) };
        best = best.min(start.elapsed());
    }
    Ok((2 * N * N * N) as f64 / best.as_secs_f64())
}

/// The most bytes read and written in a second by copies of 64 MiB, which fit no cache, on all threads.
pub fn copy_bytes_per_second(cpu: &Cpu) -> f64 {
    const BYTES: usize = 64 << 20;
    let (mut from, mut to) = (Block::zeroed(BYTES as u64), Block::zeroed(BYTES as u64));
    let bases = [from.base() as usize, to.base() as usize];
    let began = Instant::now();
    let mut best = Duration::MAX;
    // The first turns take the pages.
    for turn in 0.. {
        let start = Instant::now();
        cpu.pool.run(&|worker, n_workers| {
            let (lo, hi) = (BYTES * worker / n_workers, BYTES * (worker + 1) / n_workers);
            // SAFETY: each worker copies a part of its own between two blocks of `BYTES` bytes.
            unsafe {
                let [from, to] = bases.map(|base| (base as *mut u8).add(lo));
                std::ptr::copy_nonoverlapping(from.cast_const(), to, hi - lo);
            }
        });
        if turn > 1 {
            best = best.min(start.elapsed());
            if began.elapsed() > 3 * TIME {
                break;
            }
        }
    }
    (2 * BYTES) as f64 / best.as_secs_f64()
}

/// `out[m, n] = Σ_k a[m, k] · b[k, n]`.
fn product() -> Kernel {
    let buf = |name: &str, role| Buf { name: name.into(), dtype: DType::F32, len: N * N, role };
    let dim = |a, b| vec![ContractDim { extent: N, a, b }];
    let n = N as i64;
    Kernel {
        name: "peak".into(),
        bufs: vec![buf("a", Role::Read), buf("b", Role::Read), buf("out", Role::Write)],
        work: Work::Contract(Contract {
            a: Operand { buf: BufId(0), base: 0 },
            b: Operand { buf: BufId(1), base: 0 },
            batch: Vec::new(),
            m: dim(n, 0),
            n: dim(0, 1),
            k: dim(1, n),
            parts: Parts::Whole,
            vals: vec![Val::strip(DType::F32)],
            body: vec![Stmt::Store {
                buf: BufId(2),
                access: Access::affine(0, &[(Dim(0), n), (Dim(1), 1)]),
                val: ValId(0),
            }],
        }),
    }
}
