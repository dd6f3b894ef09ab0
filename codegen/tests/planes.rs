//! Planes, compiled and interpreted: a softmax that sums along rows, and its derivative, which is summed along both.

mod common;

use common::{Noise, compare, compare_on_card, fill, layout};
use mdl_compiler::kernel::{
    Access, Buf, BufId, ContractDim, Dim, FoldKind, Index, Keeps, Kernel, Operand, PairDim, Plane, PlaneIn, PlaneOut,
    PlaneSide, Role, ScalarOp, Stmt, Val, ValId, Work,
};
use mdl_graph::{DType, Scalar};

const SIZES: [u64; 12] = [1, 2, 3, 7, 8, 9, 31, 33, 40, 64, 65, 100];

/// A kernel under construction, over batch, heads, rows and columns.
struct Build {
    noise: Noise,
    dims: [u64; 4],
    bufs: Vec<Buf>,
    vals: Vec<Val>,
    body: Vec<Stmt>,
}

/// A buffer over the batch, its own dimensions, and one more.
struct Tensor {
    buf: BufId,
    strides: Vec<i64>,
}

impl Build {
    fn new(seed: u32) -> Build {
        let mut noise = Noise::new(seed);
        let dims = [1 + noise.below(3) as u64, noise.pick(&[1, 1, 2]), noise.pick(&SIZES), noise.pick(&SIZES)];
        Build { noise, dims, bufs: Vec::new(), vals: Vec::new(), body: Vec::new() }
    }

    /// Along the rows, or else the columns.
    fn tensor(&mut self, rows: bool, inner: u64, dtype: DType, role: Role) -> Tensor {
        let [batch, heads, rows_, columns] = self.dims;
        let extents = if rows { vec![batch, heads, rows_, inner] } else { vec![batch, columns, inner] };
        let (strides, len) = layout(&mut self.noise, &extents);
        self.bufs.push(Buf { name: format!("b{}", self.bufs.len()), dtype, len, role });
        Tensor { buf: BufId(self.bufs.len() as u32 - 1), strides }
    }

    fn push(&mut self, val: Val, stmt: impl FnOnce(ValId) -> Stmt) -> ValId {
        let id = ValId(self.vals.len() as u32);
        self.vals.push(val);
        self.body.push(stmt(id));
        id
    }

    fn strip(&mut self, op: ScalarOp, args: &[ValId], dtype: DType) -> ValId {
        self.push(Val::strip(dtype), |val| Stmt::Map { val, op, args: args.to_vec() })
    }

    fn number(&mut self, value: f64) -> ValId {
        self.push(Val::row(DType::F32), |val| Stmt::Const { val, value: Scalar::Float(f64::from(value as f32)) })
    }

    /// What a row sees: those not after it, or those near it, or all.
    fn masked(&mut self, x: ValId, hidden: f64) -> ValId {
        let (int, bool) = (DType::I32, DType::Bool);
        let hidden = self.number(hidden);
        let row = self.push(Val::row(int), |val| Stmt::Index { val, index: Index::dim(Dim(2)) });
        let column = self.push(Val::strip(int), |val| Stmt::Index { val, index: Index::dim(Dim(3)) });
        let far = self.strip(ScalarOp::Sub, &[row, column], int);
        let limit = self.push(Val::row(int), |val| Stmt::Const { val, value: Scalar::Int(-1) });
        let near = self.push(Val::row(int), |val| Stmt::Const { val, value: Scalar::Int(10) });
        let seen = match self.dims[2] % 3 {
            0 => return x,
            1 => self.strip(ScalarOp::Less, &[limit, far], bool),
            _ => {
                let (after, before) =
                    (self.strip(ScalarOp::Less, &[limit, far], bool), self.strip(ScalarOp::Less, &[far, near], bool));
                self.strip(ScalarOp::And, &[after, before], bool)
            }
        };
        self.strip(ScalarOp::Select, &[seen, x, hidden], DType::F32)
    }

    /// As a factor of a product of such numbers.
    fn rounded(&mut self, x: ValId, dtype: DType) -> ValId {
        if dtype == DType::F32 { x } else { self.strip(ScalarOp::Round(dtype), &[x], DType::F32) }
    }

    fn row_access(&self, tensor: &Tensor) -> Access {
        let terms: Vec<(Dim, i64)> = (0..3).map(|at| (Dim(at), tensor.strides[at as usize])).collect();
        Access::affine(0, &terms)
    }

    fn finish(self, ins: Vec<PlaneIn>, outs: Vec<PlaneOut>) -> (Kernel, Noise) {
        let [batch, heads, rows, columns] = self.dims;
        let plane =
            Plane { batch: vec![batch], rows: vec![heads, rows], columns, ins, vals: self.vals, body: self.body, outs };
        (Kernel { name: "plane".into(), bufs: self.bufs, work: Work::Plane(plane) }, self.noise)
    }
}

impl Tensor {
    fn side(&self) -> PlaneSide {
        let (last, along) = (self.strides.len() - 1, self.strides[1..self.strides.len() - 1].to_vec());
        debug_assert!(last >= 2);
        PlaneSide { operand: Operand { buf: self.buf, base: 0 }, batch: vec![self.strides[0]], along }
    }

    fn inner(&self) -> i64 {
        self.strides[self.strides.len() - 1]
    }
}

fn product(a: &Tensor, b: &Tensor, extent: u64) -> PlaneIn {
    PlaneIn { a: a.side(), b: b.side(), k: vec![ContractDim { extent, a: a.inner(), b: b.inner() }] }
}

fn sum(val: ValId, keeps: Keeps, with: &Tensor, out: &Tensor, extent: u64) -> PlaneOut {
    let n = vec![PairDim { extent, x: with.inner(), out: out.inner() }];
    PlaneOut { val, keeps, with: with.side(), out: out.side(), n }
}

/// `Σ exp(x - max x) · v`, the maxima and the sums.
fn forward(seed: u32, dtypes: &[DType]) -> (Kernel, Noise) {
    let mut b = Build::new(seed);
    let dtype = b.noise.pick(dtypes);
    let (k, n) = (b.noise.pick(&SIZES), b.noise.pick(&SIZES));
    let q = b.tensor(true, k, dtype, Role::Read);
    let keys = b.tensor(false, k, dtype, Role::Read);
    let values = b.tensor(false, n, dtype, Role::Read);
    let out = b.tensor(true, n, DType::F32, Role::Write);
    let (most, total) = (b.tensor(true, 1, DType::F32, Role::Write), b.tensor(true, 1, DType::F32, Role::Write));
    let (float, row) = (DType::F32, Val::row(DType::F32));
    b.vals.push(Val::strip(float));
    let scale = b.number(1.0 / 512.0);
    let x = b.strip(ScalarOp::Mul, &[ValId(0), scale], float);
    let x = b.masked(x, f64::NEG_INFINITY);
    let m = b.push(row, |val| Stmt::Fold { val, kind: FoldKind::Max, from: x });
    let (least, zero) = (b.number(f64::NEG_INFINITY), b.number(0.0));
    let none = b.push(Val::row(DType::Bool), |val| Stmt::Map { val, op: ScalarOp::Equal, args: vec![m, least] });
    let base = b.push(row, |val| Stmt::Map { val, op: ScalarOp::Select, args: vec![none, zero, m] });
    let x = b.strip(ScalarOp::Sub, &[x, base], float);
    let e = b.strip(ScalarOp::Exp, &[x], float);
    let l = b.push(row, |val| Stmt::Fold { val, kind: FoldKind::Sum, from: e });
    for (to, val) in [(&most, base), (&total, l)] {
        let access = b.row_access(to);
        b.body.push(Stmt::Store { buf: to.buf, access, val });
    }
    let e = b.rounded(e, dtype);
    let (ins, outs) = (vec![product(&q, &keys, k)], vec![sum(e, Keeps::Rows, &values, &out, n)]);
    b.finish(ins, outs)
}

/// `e · (dy · v + r)`, summed with the keys and with the queries, and `e` with dy.
fn backward(seed: u32, dtypes: &[DType]) -> (Kernel, Noise) {
    let mut b = Build::new(seed);
    let dtype = b.noise.pick(dtypes);
    let (k, n) = (b.noise.pick(&SIZES), b.noise.pick(&SIZES));
    let (q, dy) = (b.tensor(true, k, dtype, Role::Read), b.tensor(true, n, dtype, Role::Read));
    let (keys, values) = (b.tensor(false, k, dtype, Role::Read), b.tensor(false, n, dtype, Role::Read));
    let (most, rest) = (b.tensor(true, 1, DType::F32, Role::Read), b.tensor(true, 1, DType::F32, Role::Read));
    let dq = b.tensor(true, k, DType::F32, Role::Write);
    let (dk, dv) = (b.tensor(false, k, DType::F32, Role::Write), b.tensor(false, n, DType::F32, Role::Write));
    let (float, row) = (DType::F32, Val::row(DType::F32));
    b.vals.extend([Val::strip(float), Val::strip(float)]);
    let (scale, small) = (b.number(1.0 / 512.0), b.number(1.0 / 64.0));
    let x = b.strip(ScalarOp::Mul, &[ValId(0), scale], float);
    let x = b.masked(x, f64::NEG_INFINITY);
    let access = b.row_access(&most);
    let m = b.push(row, |val| Stmt::Load { val, buf: most.buf, access });
    let x = b.strip(ScalarOp::Sub, &[x, m], float);
    let e = b.strip(ScalarOp::Exp, &[x], float);
    let access = b.row_access(&rest);
    let r = b.push(row, |val| Stmt::Load { val, buf: rest.buf, access });
    let d = b.strip(ScalarOp::Mul, &[ValId(1), small], float);
    let d = b.strip(ScalarOp::Add, &[d, r], float);
    let d = b.strip(ScalarOp::Mul, &[e, d], float);
    let d = b.masked(d, 0.0);
    let (e, d) = (b.rounded(e, dtype), b.rounded(d, dtype));
    let ins = vec![product(&q, &keys, k), product(&dy, &values, n)];
    let outs = vec![
        sum(e, Keeps::Columns, &dy, &dv, n),
        sum(d, Keeps::Rows, &keys, &dq, k),
        sum(d, Keeps::Columns, &q, &dk, k),
    ];
    b.finish(ins, outs)
}

/// Terms are of order a hundred, and there are hundreds of them.
fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 2e-5 * (want.abs() + 2e3)
}

fn memory(kernel: &Kernel, noise: &mut Noise) -> Vec<common::Block> {
    kernel.bufs.iter().map(|buf| fill(buf, noise)).collect()
}

fn all(make: fn(u32, &[DType]) -> (Kernel, Noise)) {
    for seed in 0..60 {
        let (kernel, mut noise) = make(seed, &[DType::F32, DType::F32, DType::BF16, DType::F16]);
        let memory = memory(&kernel, &mut noise);
        let shown = std::panic::catch_unwind(|| compare(&kernel, &memory, &close));
        assert!(shown.is_ok(), "seed {seed}");
    }
}

#[test]
fn softmax_planes_agree() {
    all(forward);
}

#[test]
fn derivatives_of_planes_agree() {
    all(backward);
}

/// A factor that was rounded the other way, because its exponential differs in the last bit, is 1/256 of itself off.
#[test]
fn planes_agree_on_tensor_cores() {
    let close = |got: f64, want: f64| (got - want).abs() <= 4e-3 * want.abs() + 0.5;
    for make in [forward, backward] {
        for seed in 0..16 {
            let (kernel, mut noise) = make(seed, &[DType::BF16, DType::F16]);
            let memory = memory(&kernel, &mut noise);
            let shown = std::panic::catch_unwind(|| compare_on_card(&kernel, &memory, &close));
            assert!(shown.is_ok(), "seed {seed}");
        }
    }
}
