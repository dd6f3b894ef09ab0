//! Random nests, compiled and interpreted: every access form, every operation, odd sizes, every dtype.

mod common;

use common::{Noise, compare, fill};
use mdl_compiler::kernel::{
    Access, Buf, BufId, Dim, FoldKind, Index, Kernel, Nest, Position, Rank, Role, ScalarOp, Stmt, Term, Val, ValId,
    Work,
};
use mdl_graph::{DType, Scalar};

struct Maker {
    noise: Noise,
    nest: Nest,
    bufs: Vec<Buf>,
    /// Values that sums and products keep exact.
    exact: Vec<bool>,
}

impl Maker {
    fn extents(&self) -> Vec<u64> {
        let mut dims = self.nest.grid.clone();
        dims.push(self.nest.strip);
        dims
    }

    fn val(&mut self, ty: Val, exact: bool) -> ValId {
        self.nest.vals.push(ty);
        self.exact.push(exact);
        ValId(self.nest.vals.len() as u32 - 1)
    }

    fn buf(&mut self, dtype: DType, len: u64, role: Role) -> BufId {
        self.bufs.push(Buf { name: format!("x{}", self.bufs.len()), dtype, len, role });
        BufId(self.bufs.len() as u32 - 1)
    }

    /// An access that moves along some dimensions, and the length it needs.
    fn access(&mut self, strip: bool, dense: bool) -> (Access, u64) {
        let extents = self.extents();
        let n = extents.len();
        let mut access = Access::affine(0, &[]);
        let mut stride = 1i64;
        for dim in (0..n).rev() {
            if (dim == n - 1 && !strip) || (!dense && dim != n - 1 && self.noise.chance(3)) {
                continue;
            }
            let extent = extents[dim] as i64;
            let d = Dim(dim as u32);
            let way = if dense { 0 } else { self.noise.below(9) };
            let (index, size, range) = match way {
                // Shifted, with a guard: like a pad.
                1 => {
                    let shift = self.noise.below(7) as i64 - 3;
                    let size = (extent - self.noise.below(3) as i64).max(1);
                    (Index::affine(shift, vec![(d, 1)]), size, Some((0, size)))
                }
                // Every second, or backward.
                2 => (Index::affine(0, vec![(d, 2)]), 2 * extent - 1, None),
                3 => (Index::affine(extent - 1, vec![(d, -1)]), extent, None),
                // Backward in steps, with a guard.
                4 => (Index::affine(extent, vec![(d, -3)]), extent, Some((0, extent))),
                // Merged or split axes, with a padded one below.
                5 => (Index { base: -2, terms: vec![(d, 1)], div: 3, modulo: 0, plus: 0 }, extent, Some((0, extent))),
                6 => (Index { base: 0, terms: vec![(d, 1)], div: 2, modulo: 3, plus: 1 }, 4, None),
                _ => (Index::dim(d), extent, None),
            };
            access.terms.push(Term { index: Position::Index(index), coef: stride, range });
            stride *= size.max(1);
        }
        if !dense && self.noise.chance(4) {
            access.fill = Scalar::Int(self.noise.below(5) as i64 - 2);
        }
        // A guard without a place in the buffer.
        if !dense && self.noise.chance(6) && n > 1 {
            let extent = extents[0] as i64;
            access.terms.push(Term { index: Position::Index(Index::dim(Dim(0))), coef: 0, range: Some((1, extent)) });
        }
        (access, stride as u64)
    }

    fn load(&mut self, dtype: DType, strip: bool) -> ValId {
        let (mut access, mut len) = self.access(strip, false);
        let ints: Vec<ValId> = (0..self.nest.vals.len() as u32)
            .map(ValId)
            .filter(|val| {
                let ty = self.nest.vals[val.0 as usize];
                matches!(ty.dtype, DType::I32 | DType::I64) && (strip || ty.rank == Rank::Row)
            })
            .collect();
        if self.noise.chance(4) && !ints.is_empty() {
            let index = self.noise.pick(&ints);
            access.terms.push(Term { index: Position::Value(index), coef: len as i64, range: Some((0, 3)) });
            len *= 3;
        }
        let buf = self.buf(dtype, len, Role::Read);
        let val = self.val(if strip { Val::strip(dtype) } else { Val::row(dtype) }, true);
        self.nest.body.push(Stmt::Load { val, buf, access });
        val
    }

    fn some(&mut self, dtype: DType) -> ValId {
        let fitting: Vec<ValId> = (0..self.nest.vals.len() as u32)
            .map(ValId)
            .filter(|val| self.nest.vals[val.0 as usize].dtype == dtype)
            .collect();
        if fitting.is_empty() || self.noise.chance(4) {
            let from = match dtype {
                DType::F32 => self.noise.pick(&[DType::F32, DType::F32, DType::BF16, DType::F16]),
                DType::I32 => self.noise.pick(&[DType::I32, DType::I8, DType::U8]),
                _ => dtype,
            };
            if self.noise.chance(8) {
                let number = Scalar::Int(self.noise.below(9) as i64 - 4).cast(dtype);
                let val = self.val(Val::row(dtype), true);
                self.nest.body.push(Stmt::Const { val, value: number });
                return val;
            }
            let strip = !self.noise.chance(4);
            return self.load(from, strip);
        }
        self.noise.pick(&fitting)
    }

    fn map(&mut self, op: ScalarOp, args: Vec<ValId>, dtype: DType) {
        let strip = args.iter().any(|arg| self.nest.vals[arg.0 as usize].rank == Rank::Strip);
        let keeps = matches!(op, ScalarOp::Neg | ScalarOp::Max | ScalarOp::Select);
        let exact = keeps && args.iter().all(|arg| self.exact[arg.0 as usize]);
        let ty = if strip { Val::strip(dtype) } else { Val::row(dtype) };
        let val = self.val(ty, exact || !dtype.is_float());
        self.nest.body.push(Stmt::Map { val, op, args });
    }

    fn step(&mut self) {
        let number = self.noise.pick(&[DType::F32, DType::F32, DType::F32, DType::I32, DType::F64, DType::I64]);
        match self.noise.below(14) {
            0..=4 => {
                use ScalarOp::{Add, Div, Max, Mul, Rem, Sub};
                let op = self.noise.pick(&[Add, Sub, Mul, Div, Max, Rem]);
                let args = vec![self.some(number), self.some(number)];
                self.map(op, args, number);
            }
            5 => {
                let float = self.noise.pick(&[DType::F32, DType::F64]);
                let op = self.noise.pick(&[ScalarOp::Sqrt, ScalarOp::Floor, ScalarOp::Neg]);
                let args = vec![self.some(float)];
                self.map(op, args, float);
            }
            6 => {
                let from = self.noise.pick(&[DType::F32, DType::I32, DType::F64, DType::I64, DType::Bool]);
                let args = vec![self.some(from)];
                let to = self.noise.pick(&[DType::F32, DType::I32, DType::F64, DType::I64, DType::Bool]);
                self.map(ScalarOp::Cast, args, to);
            }
            7 => {
                let op = self.noise.pick(&[ScalarOp::Less, ScalarOp::Equal]);
                let args = vec![self.some(number), self.some(number)];
                self.map(op, args, DType::Bool);
            }
            8 => {
                let op = self.noise.pick(&[ScalarOp::And, ScalarOp::Or]);
                let args = vec![self.some(DType::Bool), self.some(DType::Bool)];
                self.map(op, args, DType::Bool);
            }
            9 => {
                let to = self.noise.pick(&[DType::F32, DType::I32, DType::Bool, DType::F64]);
                let args = vec![self.some(DType::Bool), self.some(to), self.some(to)];
                self.map(ScalarOp::Select, args, to);
            }
            10 => {
                let (op, dtype) = self.noise.pick(&[
                    (ScalarOp::Round(DType::BF16), DType::F32),
                    (ScalarOp::Round(DType::F16), DType::F32),
                    (ScalarOp::Round(DType::I8), DType::I32),
                    (ScalarOp::Round(DType::U8), DType::I32),
                ]);
                let args = vec![self.some(dtype)];
                self.map(op, args, dtype);
            }
            11 => {
                let args = (0..4).map(|_| self.some(DType::I32)).collect();
                self.map(ScalarOp::Uniform { place: 3 }, args, DType::F32);
            }
            12 => {
                let strip = self.nest.strip_dim();
                let mut terms = vec![(strip, self.noise.below(5) as i64 - 2)];
                if !self.nest.grid.is_empty() {
                    terms.push((Dim(0), 3));
                }
                let mut index = Index::affine(self.noise.below(9) as i64 - 4, terms);
                if self.noise.chance(2) {
                    (index.div, index.modulo) = (2, 5);
                }
                let dtype = self.noise.pick(&[DType::I32, DType::I64]);
                let val = self.val(Val::strip(dtype), true);
                self.nest.body.push(Stmt::Index { val, index });
            }
            _ => {
                let kind = self.noise.pick(&[FoldKind::Sum, FoldKind::Max]);
                let from = self.some(number);
                let fits = self.exact[from.0 as usize] || kind == FoldKind::Max;
                if fits && self.nest.vals[from.0 as usize].rank == Rank::Strip {
                    let val = self.val(Val::row(number), false);
                    self.nest.body.push(Stmt::Fold { val, kind, from });
                }
            }
        }
    }

    fn finish(mut self) -> (Kernel, Noise) {
        let n_vals = self.nest.vals.len() as u32;
        for _ in 0..3 {
            let val = ValId(self.noise.below(n_vals as usize) as u32);
            let ty = self.nest.vals[val.0 as usize];
            let dtype = match ty.dtype {
                DType::F32 => self.noise.pick(&[DType::F32, DType::F32, DType::BF16, DType::F16]),
                DType::I32 => self.noise.pick(&[DType::I32, DType::I8, DType::U8]),
                other => other,
            };
            let strip = ty.rank == Rank::Strip || self.noise.chance(2);
            let (access, len) = self.access(strip, true);
            let buf = self.buf(dtype, len, Role::Write);
            self.nest.body.push(Stmt::Store { buf, access, val });
        }
        self.nest.keep = self.noise.below(self.nest.grid.len() + 1);
        for val in 0..n_vals {
            let ty = self.nest.vals[val as usize];
            if !self.exact[val as usize] || ty.dtype == DType::Bool || !self.noise.chance(6) {
                continue;
            }
            let mut terms = Vec::new();
            let mut stride = 1;
            if ty.rank == Rank::Strip {
                terms.push((self.nest.strip_dim(), 1));
                stride = self.nest.strip as i64;
            }
            for dim in 0..self.nest.keep {
                terms.push((Dim(dim as u32), stride));
                stride *= self.nest.grid[dim] as i64;
            }
            let buf = self.buf(ty.dtype, stride as u64, Role::Write);
            let kind = self.noise.pick(&[FoldKind::Sum, FoldKind::Max]);
            self.nest.body.push(Stmt::Exit { buf, access: Access::affine(0, &terms), kind, val: ValId(val) });
        }
        if self.nest.has_exits() {
            self.nest.chunks = 1 + self.noise.below(4) as u64;
        }
        (Kernel { name: "random".into(), bufs: self.bufs, work: Work::Nest(self.nest) }, self.noise)
    }
}

fn random(seed: u32) -> (Kernel, Noise) {
    let mut noise = Noise::new(seed);
    let grid = (0..noise.below(4)).map(|_| noise.pick(&[0, 1, 2, 3, 3, 4, 5, 7])).collect();
    let strip = noise.pick(&[0, 1, 1, 2, 3, 4, 5, 8, 13, 16, 17, 33, 64, 100, 1024, 1025, 2500]);
    let mut maker = Maker { noise, nest: Nest::new(grid, strip), bufs: Vec::new(), exact: Vec::new() };
    maker.load(DType::F32, true);
    for _ in 0..3 + maker.noise.below(12) {
        maker.step();
    }
    maker.finish()
}

fn check(seeds: std::ops::Range<u32>) {
    for seed in seeds {
        let (kernel, mut noise) = random(seed);
        let memory: Vec<_> = kernel.bufs.iter().map(|buf| fill(buf, &mut noise)).collect();
        let shown = std::panic::catch_unwind(|| compare(&kernel, &memory, &|_, _| false));
        assert!(shown.is_ok(), "seed {seed}");
    }
}

#[test]
fn random_nests_agree_exactly() {
    check(0..150);
}

/// One call per transcendental operation, on a long strip and on rows.
#[test]
fn functions_agree_within_a_few_units() {
    use ScalarOp::{Cos, Erf, Exp, Log, Pow, Sin, Tanh};
    for dtype in [DType::F32, DType::F64] {
        for op in [Exp, Log, Tanh, Erf, Sin, Cos, Pow] {
            for (grid, strip) in [(vec![3], 1030), (vec![5], 7), (vec![6, 2], 1)] {
                let mut nest = Nest::new(grid.clone(), strip);
                let mut terms = vec![(nest.strip_dim(), 1)];
                let mut stride = strip as i64;
                for dim in (0..grid.len()).rev() {
                    terms.push((Dim(dim as u32), stride));
                    stride *= grid[dim] as i64;
                }
                let access = Access::affine(0, &terms);
                let (x, y) = (ValId(0), ValId(1));
                nest.vals = vec![Val::strip(dtype); 2];
                nest.body.push(Stmt::Load { val: x, buf: BufId(0), access: access.clone() });
                let args = if op == Pow { vec![x, x] } else { vec![x] };
                nest.body.push(Stmt::Map { val: y, op, args });
                nest.body.push(Stmt::Store { buf: BufId(1), access, val: y });
                let buf = |name: &str, role| Buf { name: name.into(), dtype, len: stride as u64, role };
                let bufs = vec![buf("x", Role::Read), buf("y", Role::Write)];
                let kernel = Kernel { name: format!("{op}"), bufs, work: Work::Nest(nest) };
                let mut noise = Noise::new(9);
                let memory: Vec<_> = kernel.bufs.iter().map(|buf| fill(buf, &mut noise)).collect();
                let within = if dtype == DType::F32 { 4e-7 } else { 1e-14 };
                compare(&kernel, &memory, &|got, want| (got - want).abs() <= within * want.abs());
            }
        }
    }
}

/// Softmax rows, longer than a tile, in place: the whole strip passes from phase to phase.
#[test]
fn softmax_in_place() {
    for n in [0u64, 1, 5, 1024, 3000] {
        let mut nest = Nest::new(vec![4], n);
        let access = Access::affine(0, &[(Dim(0), n as i64), (Dim(1), 1)]);
        let v = ValId;
        let (strip, row) = (Val::strip(DType::F32), Val::row(DType::F32));
        nest.vals = vec![strip, row, strip, strip, row, strip];
        nest.body = vec![
            Stmt::Load { val: v(0), buf: BufId(0), access: access.clone() },
            Stmt::Fold { val: v(1), kind: FoldKind::Max, from: v(0) },
            Stmt::Map { val: v(2), op: ScalarOp::Sub, args: vec![v(0), v(1)] },
            Stmt::Map { val: v(3), op: ScalarOp::Exp, args: vec![v(2)] },
            Stmt::Fold { val: v(4), kind: FoldKind::Sum, from: v(3) },
            Stmt::Map { val: v(5), op: ScalarOp::Div, args: vec![v(3), v(4)] },
            Stmt::Store { buf: BufId(0), access, val: v(5) },
        ];
        let bufs = vec![Buf { name: "x".into(), dtype: DType::F32, len: 4 * n, role: Role::Update }];
        let kernel = Kernel { name: "softmax".into(), bufs, work: Work::Nest(nest) };
        let mut noise = Noise::new(n as u32);
        let memory: Vec<_> = kernel.bufs.iter().map(|buf| fill(buf, &mut noise)).collect();
        compare(&kernel, &memory, &|got, want| (got - want).abs() <= 1e-6 * want.abs());
    }
}
