//! Shared by the differential tests: aligned memory, running a kernel everywhere, comparing.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod amx;
pub(crate) mod products;

mod card;

use half::{bf16, f16};
use mdl_codegen::{Buffers, Isa, Module, Pool, Target, interp};
use mdl_compiler::kernel::{Buf, Kernel, Role};
use mdl_graph::{DType, philox};

/// A small generator for tests: the n-th draw of a seed.
pub(crate) struct Noise {
    seed: u32,
    at: u32,
}

impl Noise {
    pub(crate) fn new(seed: u32) -> Noise {
        Noise { seed, at: 0 }
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.at += 1;
        philox::philox4x32([self.seed, 77], [self.at, 0, 0, 0])[0]
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.word() as usize % n.max(1)
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One in `n` times.
    pub(crate) fn chance(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Strides that lay some dimensions, in a random order, side by side; and the length.
pub(crate) fn layout(noise: &mut Noise, extents: &[u64]) -> (Vec<i64>, u64) {
    let mut order: Vec<usize> = (0..extents.len()).collect();
    if noise.chance(2) {
        for at in (1..order.len()).rev() {
            order.swap(at, noise.below(at + 1));
        }
    }
    let mut strides = vec![0; extents.len()];
    let mut stride = 1;
    for dim in order.into_iter().rev() {
        strides[dim] = stride;
        stride *= extents[dim].max(1) as i64;
    }
    (strides, stride as u64)
}

/// Memory of one buffer, aligned to 64 bytes, with a border that nobody may touch.
pub(crate) struct Block {
    bytes: Vec<u64>,
    start: usize,
    len: usize,
}

const BORDER: u8 = 0xa5;

impl Block {
    pub(crate) fn new(bytes: usize) -> Block {
        let words = vec![u64::from_ne_bytes([BORDER; 8]); bytes.div_ceil(8) + 32];
        let start = (words.as_ptr() as usize).next_multiple_of(64) - words.as_ptr() as usize + 64;
        Block { bytes: words, start, len: bytes }
    }

    pub(crate) fn address(&mut self) -> *mut u8 {
        // SAFETY: the start is inside.
        unsafe { self.bytes.as_mut_ptr().cast::<u8>().add(self.start) }
    }

    fn all(&self) -> &[u8] {
        // SAFETY: words as bytes.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.bytes.len() * 8) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.all()[self.start..self.start + self.len]
    }

    fn border_is_whole(&self) -> bool {
        let all = self.all();
        all[..self.start].iter().chain(&all[self.start + self.len..]).all(|byte| *byte == BORDER)
    }
}

/// Numbers that add and multiply exactly: quarters from -4 to 4, small integers.
pub(crate) fn fill(buf: &Buf, noise: &mut Noise) -> Block {
    let mut block = Block::new((buf.len * buf.dtype.size_bytes()) as usize);
    let base = block.address();
    for i in 0..buf.len as usize {
        let number = noise.below(33) as f64 / 4.0 - 4.0;
        write(base, buf.dtype, i, number);
    }
    block
}

pub(crate) fn memory(kernel: &Kernel, noise: &mut Noise) -> Vec<Block> {
    kernel.bufs.iter().map(|buf| fill(buf, noise)).collect()
}

pub(crate) fn write(base: *mut u8, dtype: DType, i: usize, number: f64) {
    // SAFETY: callers stay inside the block.
    unsafe {
        match dtype {
            DType::F64 => base.cast::<f64>().add(i).write(number),
            DType::F32 => base.cast::<f32>().add(i).write(number as f32),
            DType::BF16 => base.cast::<bf16>().add(i).write(bf16::from_f32(number as f32)),
            DType::F16 => base.cast::<f16>().add(i).write(f16::from_f32(number as f32)),
            DType::I64 => base.cast::<i64>().add(i).write(number as i64),
            DType::I32 => base.cast::<i32>().add(i).write(number as i32),
            DType::I8 => base.cast::<i8>().add(i).write(number as i8),
            DType::U8 => base.add(i).write(number as i64 as u8),
            DType::Bool => base.add(i).write(u8::from(number > 0.0)),
        }
    }
}

pub(crate) fn numbers(block: &Block, dtype: DType) -> Vec<f64> {
    let bytes = block.bytes();
    let size = dtype.size_bytes() as usize;
    bytes
        .chunks_exact(size)
        .map(|chunk| match dtype {
            DType::F64 => f64::from_ne_bytes(chunk.try_into().expect("eight bytes")),
            DType::F32 => f64::from(f32::from_ne_bytes(chunk.try_into().expect("four bytes"))),
            DType::BF16 => f64::from(bf16::from_ne_bytes(chunk.try_into().expect("two bytes"))),
            DType::F16 => f64::from(f16::from_ne_bytes(chunk.try_into().expect("two bytes"))),
            DType::I64 => i64::from_ne_bytes(chunk.try_into().expect("eight bytes")) as f64,
            DType::I32 => f64::from(i32::from_ne_bytes(chunk.try_into().expect("four bytes"))),
            DType::I8 => f64::from(chunk[0] as i8),
            DType::U8 | DType::Bool => f64::from(chunk[0]),
        })
        .collect()
}

/// Runs a kernel on copies of `memory`; the buffers afterwards.
pub(crate) fn run(kernel: &Kernel, memory: &[Block], how: Option<(Isa, &Pool)>) -> Vec<Block> {
    let mut copies: Vec<Block> = memory
        .iter()
        .map(|block| {
            let mut copy = Block::new(block.len);
            let to = copy.address();
            // SAFETY: equal lengths.
            unsafe { std::ptr::copy_nonoverlapping(block.bytes().as_ptr(), to, block.len) };
            copy
        })
        .collect();
    let addresses: Vec<*mut u8> = copies.iter_mut().map(Block::address).collect();
    // SAFETY: one block for each buffer, of its length, used by nobody else.
    let buffers = unsafe { Buffers::new(&addresses) };
    match how {
        None => interp::run(kernel, buffers),
        Some((isa, pool)) => {
            let module = match Module::compile(std::slice::from_ref(kernel), Target::Cpu(isa)) {
                Ok(module) => module,
                Err(error) => panic!("{error}\n{kernel}"),
            };
            let workspace = module.workspace(pool.n_threads());
            // SAFETY: as above; the workspace is fresh.
            unsafe { module.launch(pool, &workspace, 0, buffers) };
        }
    }
    for (block, buf) in copies.iter().zip(&kernel.bufs) {
        assert!(block.border_is_whole(), "something was written outside {}\n{kernel}", buf.name);
    }
    copies
}

fn agree(who: &str, kernel: &Kernel, got: &[Block], want: &[Block], close: &dyn Fn(f64, f64) -> bool) {
    for (at, buf) in kernel.bufs.iter().enumerate() {
        if buf.role == Role::Read {
            continue;
        }
        let (got, want) = (numbers(&got[at], buf.dtype), numbers(&want[at], buf.dtype));
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let same = got == want || (got.is_nan() && want.is_nan());
            assert!(same || close(*got, *want), "{who}: b{at}[{i}] is {got}, not {want}\n{kernel}");
        }
    }
}

/// Compares compiled code, on every instruction set and with 1 and 3 threads, and on a card, with the interpreter. `close(got, want)`
/// says what is equal enough; different numbers of threads must give the same bits.
pub(crate) fn compare(kernel: &Kernel, memory: &[Block], close: &dyn Fn(f64, f64) -> bool) {
    compare_on(&Isa::available(), kernel, memory, close);
}

/// Compares a card alone with the interpreter.
pub(crate) fn compare_on_card(kernel: &Kernel, memory: &[Block], close: &dyn Fn(f64, f64) -> bool) {
    if let Some(got) = card::run(kernel, memory) {
        agree("the card", kernel, &got, &run(kernel, memory, None), close);
    }
}

pub(crate) fn compare_on(isas: &[Isa], kernel: &Kernel, memory: &[Block], close: &dyn Fn(f64, f64) -> bool) {
    if let Err(error) = kernel.verify() {
        panic!("{error}\n{kernel}");
    }
    let want = run(kernel, memory, None);
    if card::is_drawn(kernel)
        && let Some(got) = card::run(kernel, memory)
    {
        agree("the card", kernel, &got, &want, close);
    }
    for isa in isas.iter().copied() {
        let mut first: Option<Vec<Vec<u8>>> = None;
        for n_threads in [1, 3] {
            let pool = Pool::new(n_threads, false).expect("threads");
            let got = run(kernel, memory, Some((isa, &pool)));
            agree(&format!("{isa}, {n_threads} threads"), kernel, &got, &want, close);
            let bits: Vec<Vec<u8>> = got.iter().map(|block| block.bytes().to_vec()).collect();
            match &first {
                None => first = Some(bits),
                Some(first) => assert!(*first == bits, "{isa}: {n_threads} threads give other bits\n{kernel}"),
            }
        }
    }
}
