//! What this machine can do: the FLOP/s of one large product, the figure that a run's share of peak is of, and the bytes that
//! it moves each second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mdl_codegen::{Block, Buffers, Module, Target, cuda};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, Kernel, Operand, Parts, Role, Stmt, Val, ValId, Work,
};
use mdl_gpu::{Error, Gpu, Memory, Program};
use mdl_graph::DType;

use super::Cpu;
use super::executable::BuildError;

/// The best of a few products and of a few copies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peaks {
    /// FLOP/s. On the processor of `f32` matrices of 512 × 512, which stay in cache; on a card of `bf16`, 8,192 × 8,192.
    pub flops: f64,
    /// Bytes read and written each second by a copy that does not fit any cache.
    pub bytes: f64,
}

/// The side of the processor's matrices: their product takes a few milliseconds, and each fits the second cache.
const SIDE: u64 = 512;
/// The side of a card's: their product takes a millisecond or more, and keeps all of it busy.
const SIDE_ON_CARD: u64 = 8192;
/// How long is measured.
const TIME: Duration = Duration::from_millis(40);
/// Bytes that are copied, by the processor and by a card.
const COPIED: u64 = 64 << 20;
const COPIED_ON_CARD: u64 = 1 << 30;
/// What a simulated card has to do: its figures are those of the simulator.
const SIMULATED: (u64, u64) = (128, 1 << 16);

impl Peaks {
    pub fn of(cpu: &Cpu) -> Result<Peaks, BuildError> {
        let bytes = match &cpu.card {
            None => copied(cpu),
            Some(gpu) => copied_on_card(gpu).map_err(|error| BuildError(error.to_string()))?,
        };
        Ok(Peaks { flops: Peaks::flops(cpu)?, bytes })
    }

    /// What is as much as a product can do, alone.
    pub fn flops(cpu: &Cpu) -> Result<f64, BuildError> {
        match &cpu.card {
            None => flops(cpu),
            Some(gpu) => flops_on_card(gpu).map_err(|error| BuildError(error.to_string())),
        }
    }
}

fn flops(cpu: &Cpu) -> Result<f64, BuildError> {
    let kernel = product(DType::F32, SIDE);
    let module = Module::compile(&[kernel], Target::Cpu(cpu.isa)).map_err(|error| BuildError(error.to_string()))?;
    let workspace = module.workspace(cpu.threads());
    let mut blocks: Vec<Block> = (0..3).map(|_| Block::zeroed(SIDE * SIDE * 4)).collect();
    let addresses: Vec<*mut u8> = blocks.iter_mut().map(Block::base).collect();
    let began = Instant::now();
    let mut best = Duration::MAX;
    while began.elapsed() < TIME {
        let start = Instant::now();
        // SAFETY: three blocks of the size that the kernel says, used by nobody else.
        unsafe { module.launch(&cpu.pool, &workspace, 0, Buffers::new(&addresses)) };
        best = best.min(start.elapsed());
    }
    Ok((2 * SIDE * SIDE * SIDE) as f64 / best.as_secs_f64())
}

/// Copies on all threads.
fn copied(cpu: &Cpu) -> f64 {
    let n_bytes = COPIED as usize;
    let (mut from, mut to) = (Block::zeroed(COPIED), Block::zeroed(COPIED));
    let bases = [from.base() as usize, to.base() as usize];
    let began = Instant::now();
    let mut best = Duration::MAX;
    // The first turns take the pages.
    for turn in 0.. {
        let start = Instant::now();
        cpu.pool.run(&|worker, n_workers| {
            let (lo, hi) = (n_bytes * worker / n_workers, n_bytes * (worker + 1) / n_workers);
            // SAFETY: each worker copies a part of its own between two blocks of `COPIED` bytes.
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
    (2 * COPIED) as f64 / best.as_secs_f64()
}

fn flops_on_card(gpu: &Arc<Gpu>) -> Result<f64, Error> {
    let side = if gpu.simulated { SIMULATED.0 } else { SIDE_ON_CARD };
    let printed = cuda::program(&[product(DType::BF16, side)]).map_err(|error| Error(error.to_string()))?;
    let image = gpu.nvrtc().compile(&printed.text, gpu.arch())?;
    let program = Program::load(gpu, &image)?;
    let matrices = (0..3).map(|_| Memory::new(gpu, 2 * side * side)).collect::<Result<Vec<_>, _>>()?;
    let addresses: Vec<u64> = matrices.iter().map(Memory::address).collect();
    let functions = printed.kernels[0].iter().map(|launch| {
        let function = program.function(&launch.function, launch.shared_bytes as u32)?;
        Ok((function, launch.blocks as u32, launch.threads as u32))
    });
    let functions = functions.collect::<Result<Vec<_>, Error>>()?;
    let took = best_of(gpu, || {
        functions.iter().try_for_each(|(function, blocks, threads)| {
            // SAFETY: the three matrices that the kernel takes, of its size.
            unsafe { gpu.launch(*function, *blocks, *threads, &addresses) }
        })
    })?;
    Ok(per_second(2 * side * side * side, took))
}

fn copied_on_card(gpu: &Arc<Gpu>) -> Result<f64, Error> {
    let bytes = if gpu.simulated { SIMULATED.1 } else { COPIED_ON_CARD };
    let (from, to) = (Memory::new(gpu, bytes)?, Memory::new(gpu, bytes)?);
    // SAFETY: two blocks of that size.
    let took = best_of(gpu, || unsafe { gpu.copy(from.address(), to.address(), bytes) })?;
    Ok(per_second(2 * bytes, took))
}

fn per_second(amount: u64, took: Duration) -> f64 {
    amount as f64 / took.as_secs_f64().max(1e-9)
}

/// The shortest of five turns, after one that nobody counts.
fn best_of(gpu: &Arc<Gpu>, mut ask: impl FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
    ask()?;
    let mut moments = vec![gpu.moment()?];
    for _ in 0..5 {
        ask()?;
        moments.push(gpu.moment()?);
    }
    gpu.wait()?;
    let took = moments.windows(2).map(|pair| pair[1].since(&pair[0])).collect::<Result<Vec<_>, _>>()?;
    Ok(took.into_iter().min().unwrap_or_default())
}

/// `out[m, n] = Σ_k a[m, k] · b[k, n]`.
fn product(dtype: DType, side: u64) -> Kernel {
    let buf = |name: &str, role| Buf { name: name.into(), dtype, len: side * side, role };
    let dim = |a, b| vec![ContractDim { extent: side, a, b }];
    let n = side as i64;
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
