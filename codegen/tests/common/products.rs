//! Contractions for tests.

use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, Kernel, Operand, Parts, Role, ScalarOp, Stmt, Val, ValId, Work,
};
use mdl_graph::DType;

use super::{Noise, layout};

/// A product of random dimensions, layouts, and body: a plain store, or a bias, a ReLU and a result that is updated.
pub(crate) fn random(seed: u32, dtypes: &[DType], sizes: &[u64]) -> (Kernel, Noise) {
    let mut noise = Noise::new(seed);
    let dtype = noise.pick(dtypes);
    let dims = |noise: &mut Noise, most: usize, sizes: &[u64]| -> Vec<u64> {
        (0..noise.below(most + 1)).map(|_| noise.pick(sizes)).collect()
    };
    let batch = dims(&mut noise, 2, &[1, 2, 3]);
    let m = dims(&mut noise, 2, sizes);
    let n = dims(&mut noise, 2, sizes);
    let mut k = dims(&mut noise, 2, sizes);
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
        parts: Parts::Whole,
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

/// A product of m by k and k by n in the layouts of a linear layer: forward, with either order of the weight, and gradients.
pub(crate) fn in_all_layouts((m, n, k): (u64, u64, u64), dtype: DType, out: DType) -> Vec<Kernel> {
    // Strides of a along (m, k); of b along (n, k).
    let layouts = [((k, 1), (1, n)), ((k, 1), (k, 1)), ((1, m), (1, n)), ((1, m), (k, 1))];
    let kernel = |(a, b): ((u64, u64), (u64, u64))| {
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        let access = Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]);
        let contract = Contract {
            a: operand(0),
            b: operand(1),
            batch: vec![],
            m: vec![ContractDim { extent: m, a: a.0 as i64, b: 0 }],
            n: vec![ContractDim { extent: n, a: 0, b: b.0 as i64 }],
            k: vec![ContractDim { extent: k, a: a.1 as i64, b: b.1 as i64 }],
            parts: Parts::Whole,
            vals: vec![Val::strip(dtype)],
            body: vec![Stmt::Store { buf: BufId(2), access, val: ValId(0) }],
        };
        let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
        let bufs = vec![
            buf("a", dtype, m * k, Role::Read),
            buf("b", dtype, n * k, Role::Read),
            buf("out", out, m * n, Role::Write),
        ];
        Kernel { name: "linear".into(), bufs, work: Work::Contract(contract) }
    };
    layouts.into_iter().map(kernel).collect()
}
