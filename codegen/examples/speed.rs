//! Measures contractions and a few nests on this machine: `cargo run --release -p mdl-codegen --example speed`.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::time::Instant;

use mdl_codegen::{Buffers, Isa, Module, Pool, Target};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, FoldKind, Kernel, Nest, Operand, Parts, Role, ScalarOp, Stmt, Val,
    ValId, Work,
};
use mdl_graph::DType;

fn buf(name: &str, len: u64, role: Role) -> Buf {
    Buf { name: name.into(), dtype: DType::F32, len, role }
}

/// `batch` products of m by k and k by n, with the strides of a along (m, k) and of b along (k, n).
fn product(batch: u64, m: u64, n: u64, k: u64, a: (i64, i64), b: (i64, i64)) -> Kernel {
    let dim = |extent, a, b| ContractDim { extent, a, b };
    let operand = |at| Operand { buf: BufId(at), base: 0 };
    let contract = Contract {
        a: operand(0),
        b: operand(1),
        batch: vec![dim(batch, (m * k) as i64, (k * n) as i64)],
        m: vec![dim(m, a.0, 0)],
        n: vec![dim(n, 0, b.1)],
        k: vec![dim(k, a.1, b.0)],
        parts: Parts::Whole,
        vals: vec![Val::strip(DType::F32)],
        body: vec![Stmt::Store {
            buf: BufId(2),
            access: Access::affine(0, &[(Dim(0), (m * n) as i64), (Dim(1), n as i64), (Dim(2), 1)]),
            val: ValId(0),
        }],
    };
    let bufs = vec![
        buf("a", batch * m * k, Role::Read),
        buf("b", batch * k * n, Role::Read),
        buf("out", batch * m * n, Role::Write),
    ];
    Kernel { name: "product".into(), bufs, work: Work::Contract(contract) }
}

/// Seconds of the best of many launches.
fn best(kernel: &Kernel, isa: Isa, threads: usize) -> f64 {
    let module = Module::compile(std::slice::from_ref(kernel), Target::Cpu(isa)).expect("a kernel that compiles");
    let pool = Pool::new(threads, false).expect("threads");
    let workspace = module.workspace(threads);
    let mut memory: Vec<Vec<f32>> = kernel.bufs.iter().map(|buf| vec![0.5; buf.len as usize + 16]).collect();
    let addresses: Vec<*mut u8> = memory.iter_mut().map(|block| block.as_mut_ptr().cast()).collect();
    let started = Instant::now();
    let mut least = f64::MAX;
    let mut runs = 0;
    while started.elapsed().as_secs_f64() < 0.3 || runs < 3 {
        let start = Instant::now();
        // SAFETY: one block of the right length for each buffer.
        unsafe { module.launch(&pool, &workspace, 0, Buffers::new(&addresses)) };
        least = least.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    least
}

fn rows(name: &str, n_rows: u64, n: u64, vals: Vec<Val>, body: Vec<Stmt>, n_bufs: usize) -> Kernel {
    let mut nest = Nest::new(vec![n_rows], n);
    (nest.vals, nest.body) = (vals, body);
    let bufs =
        (0..n_bufs).map(|at| buf("x", n_rows * n, if at + 1 == n_bufs { Role::Write } else { Role::Read })).collect();
    Kernel { name: name.into(), bufs, work: Work::Nest(nest) }
}

fn main() {
    let isa = Isa::detect();
    println!("{isa}; GFLOP/s, one thread and two");
    let linear = [(768, 128, 128), (768, 512, 128), (768, 128, 512), (4096, 384, 1536), (4096, 1536, 384)];
    for (m, n, k) in linear {
        let (mi, ni, ki) = (m as i64, n as i64, k as i64);
        let forms = [
            ("forward   x·w   ", product(1, m, n, k, (ki, 1), (ni, 1))),
            ("forward   x·wᵀ  ", product(1, m, n, k, (ki, 1), (1, ki))),
            ("gradient  xᵀ·dy ", product(1, k, n, m, (1, ki), (ni, 1))),
            ("gradient  dyᵀ·x ", product(1, n, k, m, (1, ni), (ki, 1))),
        ];
        let _ = mi;
        for (name, kernel) in forms {
            let flops = 2.0 * (m * n * k) as f64;
            let speed = |threads| flops / best(&kernel, isa, threads) / 1e9;
            println!("{name} {m}x{n}x{k}: {:6.1} {:6.1}", speed(1), speed(2));
        }
    }
    for (batch, m, n, k) in [(48u64, 64u64, 64u64, 32u64), (48, 64, 32, 64), (96, 256, 256, 64), (96, 256, 64, 256)] {
        for (name, kernel) in [
            ("batched   a·b   ", product(batch, m, n, k, (k as i64, 1), (n as i64, 1))),
            ("batched   a·bᵀ  ", product(batch, m, n, k, (k as i64, 1), (1, k as i64))),
            ("batched   aᵀ·b  ", product(batch, m, n, k, (1, m as i64), (n as i64, 1))),
        ] {
            let flops = 2.0 * (batch * m * n * k) as f64;
            let speed = |threads| flops / best(&kernel, isa, threads) / 1e9;
            println!("{name} {batch} of {m}x{n}x{k}: {:6.1} {:6.1}", speed(1), speed(2));
        }
    }
    let (strip, row) = (Val::strip(DType::F32), Val::row(DType::F32));
    let v = ValId;
    println!("ns per element, one thread and two");
    for (n_rows, n) in [(768u64, 128u64), (3072, 64), (4096, 384), (64, 16384)] {
        let access = Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]);
        let load = |val, at| Stmt::Load { val: v(val), buf: BufId(at), access: access.clone() };
        let map = |val, op, args: &[u32]| Stmt::Map { val: v(val), op, args: args.iter().map(|arg| v(*arg)).collect() };
        let store = |val, at| Stmt::Store { buf: BufId(at), access: access.clone(), val: v(val) };
        let softmax = vec![
            load(0, 0),
            Stmt::Fold { val: v(1), kind: FoldKind::Max, from: v(0) },
            map(2, ScalarOp::Sub, &[0, 1]),
            map(3, ScalarOp::Exp, &[2]),
            Stmt::Fold { val: v(4), kind: FoldKind::Sum, from: v(3) },
            map(5, ScalarOp::Div, &[3, 4]),
            store(5, 1),
        ];
        let add = vec![load(0, 0), load(1, 1), map(2, ScalarOp::Add, &[0, 1]), store(2, 2)];
        let tanh = vec![load(0, 0), map(1, ScalarOp::Tanh, &[0]), store(1, 1)];
        for kernel in [
            rows("softmax", n_rows, n, vec![strip, row, strip, strip, row, strip], softmax, 2),
            rows("add", n_rows, n, vec![strip; 3], add, 3),
            rows("tanh", n_rows, n, vec![strip; 2], tanh, 2),
        ] {
            let each = |threads| best(&kernel, isa, threads) * 1e9 / (n_rows * n) as f64;
            println!("{:8} {n_rows}x{n}: {:.3} {:.3}", kernel.name, each(1), each(2));
        }
    }
}
