//! Random contractions, scatters, prefix sums and top-k, compiled and interpreted.

mod common;

use common::{Noise, compare, fill, layout};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, Kernel, Operand, PairDim, Prefix, Role, ScalarOp, Scatter,
    ScatterDim, Stmt, Top, Val, ValId, Work,
};
use mdl_graph::DType;

const SIZES: [u64; 9] = [0, 1, 2, 3, 5, 8, 9, 17, 40];

fn memory(kernel: &Kernel, noise: &mut Noise) -> Vec<common::Block> {
    kernel.bufs.iter().map(|buf| fill(buf, noise)).collect()
}

fn contraction(seed: u32) -> (Kernel, Noise) {
    let mut noise = Noise::new(seed);
    let dtype = noise.pick(&[DType::F32, DType::F32, DType::BF16, DType::F16, DType::F64]);
    let dims = |noise: &mut Noise, most: usize, sizes: &[u64]| -> Vec<u64> {
        (0..noise.below(most + 1)).map(|_| noise.pick(sizes)).collect()
    };
    let batch = dims(&mut noise, 2, &[1, 2, 3]);
    let m = dims(&mut noise, 2, &SIZES);
    let n = dims(&mut noise, 2, &SIZES);
    let mut k = dims(&mut noise, 2, &SIZES);
    if noise.chance(6) {
        k = vec![600];
    }
    let (nb, nm, nn) = (batch.len(), m.len(), n.len());
    let a_extents: Vec<u64> = [&batch[..], &m, &k].concat();
    let b_extents: Vec<u64> = [&batch[..], &n, &k].concat();
    let out_extents: Vec<u64> = [&batch[..], &m, &n].concat();
    let (a, a_len) = layout(&mut noise, &a_extents);
    let (b, b_len) = layout(&mut noise, &b_extents);
    let (out, out_len) = layout(&mut noise, &out_extents);
    let dim = |extent: u64, a: i64, b: i64| ContractDim { extent, a, b };
    let product = Val::strip(dtype);
    let mut contract = Contract {
        a: Operand { buf: BufId(0), base: 3 },
        b: Operand { buf: BufId(1), base: 0 },
        batch: (0..nb).map(|i| dim(batch[i], a[i], b[i])).collect(),
        m: (0..nm).map(|i| dim(m[i], a[nb + i], 0)).collect(),
        n: (0..nn).map(|i| dim(n[i], 0, b[nb + i])).collect(),
        k: (0..k.len()).map(|i| dim(k[i], a[nb + nm + i], b[nb + nn + i])).collect(),
        vals: vec![product],
        body: Vec::new(),
    };
    let terms: Vec<(Dim, i64)> = out.iter().enumerate().map(|(at, stride)| (Dim(at as u32), *stride)).collect();
    let access = Access::affine(0, &terms);
    let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
    let mut bufs = vec![buf("a", dtype, a_len + 3, Role::Read), buf("b", dtype, b_len, Role::Read)];
    if noise.chance(2) {
        // A bias along the last dimension, a ReLU, and a residual that is updated.
        let last = Dim(contract.body_dims().len() as u32 - 1);
        let (bias, sum, zero, top, old, new) = (ValId(1), ValId(2), ValId(3), ValId(4), ValId(5), ValId(6));
        contract.vals.extend([product, product, Val::row(dtype), product, product, product]);
        bufs.push(buf("bias", dtype, n.last().copied().unwrap_or(1), Role::Read));
        bufs.push(buf("out", dtype, out_len, Role::Update));
        contract.body = vec![
            Stmt::Load { val: bias, buf: BufId(2), access: Access::affine(0, &[(last, 1)]) },
            Stmt::Map { val: sum, op: ScalarOp::Add, args: vec![ValId(0), bias] },
            Stmt::Const { val: zero, value: mdl_graph::Scalar::Float(0.0) },
            Stmt::Map { val: top, op: ScalarOp::Max, args: vec![sum, zero] },
            Stmt::Load { val: old, buf: BufId(3), access: access.clone() },
            Stmt::Map { val: new, op: ScalarOp::Sub, args: vec![old, top] },
            Stmt::Store { buf: BufId(3), access, val: new },
        ];
    } else {
        bufs.push(buf("out", dtype, out_len, Role::Write));
        contract.body = vec![Stmt::Store { buf: BufId(2), access, val: ValId(0) }];
    }
    (Kernel { name: "product".into(), bufs, work: Work::Contract(contract) }, noise)
}

/// Products of quarters are exact sums of sixteenths, whatever the order: so the results are equal.
#[test]
fn random_contractions_agree_exactly() {
    for seed in 0..100 {
        let (kernel, mut noise) = contraction(seed);
        let memory = memory(&kernel, &mut noise);
        let shown = std::panic::catch_unwind(|| compare(&kernel, &memory, &|_, _| false));
        assert!(shown.is_ok(), "seed {seed}");
    }
}

/// Larger than a block in every direction, in the layouts of a linear layer: where B stays packed, where k is too long for
/// that, and where rows are too few.
#[test]
fn blocks_and_panels_meet() {
    for sizes in [(531, 397, 40), (531, 33, 260), (531, 9, 2900), (70, 397, 260)] {
        in_all_layouts(sizes);
    }
}

fn in_all_layouts((m, n, k): (u64, u64, u64)) {
    for (a, b) in [((k, 1), (1, n)), ((k, 1), (k, 1)), ((1, m), (1, n)), ((1, m), (k, 1))] {
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        // Strides of a along (m, k); of b along (n, k).
        let b = if b.0 == 1 { (1, n) } else { (k, 1) };
        let contract = Contract {
            a: operand(0),
            b: operand(1),
            batch: vec![],
            m: vec![ContractDim { extent: m, a: a.0 as i64, b: 0 }],
            n: vec![ContractDim { extent: n, a: 0, b: b.0 as i64 }],
            k: vec![ContractDim { extent: k, a: a.1 as i64, b: b.1 as i64 }],
            vals: vec![Val::strip(DType::F32)],
            body: vec![Stmt::Store {
                buf: BufId(2),
                access: Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]),
                val: ValId(0),
            }],
        };
        let buf = |name: &str, len, role| Buf { name: name.into(), dtype: DType::F32, len, role };
        let bufs = vec![buf("a", m * k, Role::Read), buf("b", n * k, Role::Read), buf("out", m * n, Role::Write)];
        let kernel = Kernel { name: "linear".into(), bufs, work: Work::Contract(contract) };
        let memory = memory(&kernel, &mut Noise::new(5));
        compare(&kernel, &memory, &|_, _| false);
    }
}

#[test]
fn random_scatters_agree_exactly() {
    for seed in 0..200 {
        let mut noise = Noise::new(seed);
        let dtype = noise.pick(&[DType::F32, DType::F32, DType::BF16, DType::I32, DType::F64, DType::Bool, DType::I8]);
        let put = noise.chance(3);
        // Few and small numbers, so that sums are exact in every dtype.
        let extents: Vec<u64> = (0..3).map(|_| noise.pick(&[0, 1, 2, 3, 5])).collect();
        let extent = noise.pick(&[0, 1, 2, 4, 11]);
        let (rows, rows_len) = layout(&mut noise, &extents);
        let (index, index_len) = layout(&mut noise, &extents[..2]);
        let (out, out_len) = layout(&mut noise, &[extents[0], extents[2], extent]);
        let dim = |extent, rows, index, out| ScatterDim { extent, rows, index, out };
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        let scatter = Scatter {
            put,
            rows: operand(0),
            index: operand(1),
            out: operand(2),
            extent,
            stride: out[2],
            keep: vec![dim(extents[0], rows[0], index[0], out[0])],
            points: vec![dim(extents[1], rows[1], index[1], 0)],
            inner: vec![dim(extents[2], rows[2], 0, out[1])],
        };
        let index_dtype = noise.pick(&[DType::I32, DType::I64]);
        let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
        let bufs = vec![
            buf("rows", dtype, rows_len, Role::Read),
            buf("index", index_dtype, index_len, Role::Read),
            buf("out", dtype, out_len, Role::Write),
        ];
        let kernel = Kernel { name: format!("scatter {seed}"), bufs, work: Work::Scatter(scatter) };
        let memory = memory(&kernel, &mut noise);
        compare(&kernel, &memory, &|_, _| false);
    }
}

#[test]
fn random_prefixes_and_tops_agree_exactly() {
    for seed in 0..200 {
        let mut noise = Noise::new(seed);
        let dtype = noise.pick(&[DType::F32, DType::BF16, DType::I32, DType::F64, DType::I64, DType::I8]);
        let extents: Vec<u64> = (0..3).map(|_| noise.pick(&[0, 1, 2, 3, 7, 20])).collect();
        let k = if noise.chance(2) { extents[2] } else { noise.below(extents[2] as usize + 1) as u64 };
        let top = noise.chance(2);
        let (x, x_len) = layout(&mut noise, &extents);
        let (out, out_len) = layout(&mut noise, &[extents[0], extents[1], if top { k } else { extents[2] }]);
        let dim = |at: usize| PairDim { extent: extents[at], x: x[at], out: out[at] };
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        let (outer, along) = (vec![dim(0), dim(1)], dim(2));
        let work = if top {
            Work::Top(Top { x: operand(0), out: operand(1), outer, along, k })
        } else {
            Work::Prefix(Prefix { x: operand(0), out: operand(1), outer, along, reverse: noise.chance(2) })
        };
        let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
        let to = if top { DType::I32 } else { dtype };
        let bufs = vec![buf("x", dtype, x_len, Role::Read), buf("out", to, out_len, Role::Write)];
        let kernel = Kernel { name: format!("ordering {seed}"), bufs, work };
        let memory = memory(&kernel, &mut noise);
        compare(&kernel, &memory, &|_, _| false);
    }
}
