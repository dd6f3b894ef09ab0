//! The CLIF and the CUDA C of a few tiny kernels, to be read in review: what is inlined, what is called, how loops are driven, and
//! which thread does what.

use mdl_compiler::kernel::{
    Access, Buf, BufId, Contract, ContractDim, Dim, FoldKind, Index, Kernel, Nest, Operand, Parts, Position, Role,
    ScalarOp, Stmt, Term, Val, ValId, Work,
};
use mdl_graph::DType;

fn buf(name: &str, dtype: DType, len: u64, role: Role) -> Buf {
    Buf { name: name.into(), dtype, len, role }
}

/// The kernel's text above its CLIF.
fn golden(name: &str, kernel: &Kernel) {
    let clif = mdl_codegen::clif(kernel).unwrap_or_else(|error| panic!("{error}"));
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, format!("{kernel}\n{clif}"));
        let cuda = mdl_codegen::cuda::program(std::slice::from_ref(kernel)).unwrap_or_else(|error| panic!("{error}"));
        insta::assert_snapshot!(format!("{name}_cuda"), cuda.text);
    });
}

/// `y = x · w + x`: two dimensions become one strip; only its end is worked on one by one.
#[test]
fn elementwise() {
    let mut nest = Nest::new(vec![3], 6);
    let access = Access::affine(0, &[(Dim(0), 6), (Dim(1), 1)]);
    let (x, w, product, sum) = (ValId(0), ValId(1), ValId(2), ValId(3));
    nest.vals = vec![Val::strip(DType::F32), Val::row(DType::F32), Val::strip(DType::F32), Val::strip(DType::F32)];
    nest.body = vec![
        Stmt::Load { val: x, buf: BufId(0), access: access.clone() },
        Stmt::Load { val: w, buf: BufId(1), access: Access::scalar() },
        Stmt::Map { val: product, op: ScalarOp::Mul, args: vec![x, w] },
        Stmt::Map { val: sum, op: ScalarOp::Add, args: vec![product, x] },
        Stmt::Store { buf: BufId(2), access, val: sum },
    ];
    let bufs = vec![
        buf("x", DType::F32, 18, Role::Read),
        buf("w", DType::F32, 1, Role::Read),
        buf("y", DType::F32, 18, Role::Write),
    ];
    golden("elementwise", &Kernel { name: "elementwise".into(), bufs, work: Work::Nest(nest) });
}

/// `y = exp(x)` of a shifted `bf16` row, and the sum of all of it: a window, a call, a fold, an exit and its combiner.
#[test]
fn row_with_exit() {
    let mut nest = Nest::new(vec![4], 8);
    let (x, y, sum) = (ValId(0), ValId(1), ValId(2));
    nest.vals = vec![Val::strip(DType::F32), Val::strip(DType::F32), Val::row(DType::F32)];
    let shifted = Access {
        base: 0,
        terms: vec![
            Term { index: Position::Index(Index::dim(Dim(0))), coef: 8, range: None },
            Term { index: Position::Index(Index::affine(-1, vec![(Dim(1), 1)])), coef: 1, range: Some((0, 8)) },
        ],
        fill: mdl_graph::Scalar::Int(0),
    };
    nest.body = vec![
        Stmt::Load { val: x, buf: BufId(0), access: shifted },
        Stmt::Map { val: y, op: ScalarOp::Exp, args: vec![x] },
        Stmt::Store { buf: BufId(1), access: Access::affine(0, &[(Dim(0), 8), (Dim(1), 1)]), val: y },
        Stmt::Fold { val: sum, kind: FoldKind::Sum, from: y },
        Stmt::Exit { buf: BufId(2), access: Access::scalar(), kind: FoldKind::Sum, val: sum },
    ];
    nest.chunks = 2;
    let bufs = vec![
        buf("x", DType::BF16, 32, Role::Read),
        buf("y", DType::F32, 32, Role::Write),
        buf("total", DType::F32, 1, Role::Write),
    ];
    golden("row_with_exit", &Kernel { name: "row_with_exit".into(), bufs, work: Work::Nest(nest) });
}

/// `y = x · w + bias`, where x is m by k and w is k by n.
fn linear(name: &str, dtype: DType, (m, n, k): (u64, u64, u64)) -> Kernel {
    let dim = |extent, a: u64, b: u64| ContractDim { extent, a: a as i64, b: b as i64 };
    let (bias, sum) = (ValId(1), ValId(2));
    let contract = Contract {
        a: Operand { buf: BufId(0), base: 0 },
        b: Operand { buf: BufId(1), base: 0 },
        batch: vec![],
        m: vec![dim(m, k, 0)],
        n: vec![dim(n, 0, 1)],
        k: vec![dim(k, 1, n)],
        parts: Parts::Whole,
        vals: vec![Val::strip(DType::F32); 3],
        body: vec![
            Stmt::Load { val: bias, buf: BufId(2), access: Access::affine(0, &[(Dim(1), 1)]) },
            Stmt::Map { val: sum, op: ScalarOp::Add, args: vec![ValId(0), bias] },
            Stmt::Store { buf: BufId(3), access: Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]), val: sum },
        ],
    };
    let bufs = vec![
        buf("x", dtype, m * k, Role::Read),
        buf("w", dtype, k * n, Role::Read),
        buf("bias", DType::F32, n, Role::Read),
        buf("y", dtype, m * n, Role::Write),
    ];
    Kernel { name: name.into(), bufs, work: Work::Contract(contract) }
}

/// A linear layer with a bias: the body that runs on each block of the product.
#[test]
fn linear_with_bias() {
    golden("linear_with_bias", &linear("linear_with_bias", DType::F32, (5, 8, 4)));
}

/// The same of 16-bit numbers: tensor cores.
#[test]
fn linear_on_tensor_cores() {
    golden("linear_on_tensor_cores", &linear("linear_on_tensor_cores", DType::BF16, (100, 64, 80)));
}
