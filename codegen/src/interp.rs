//! The meaning of the kernel IR: a slow, direct evaluator, the target `reference` of kernels.
//!
//! In: a verified kernel and its buffers. Every operation is done in `f64` and rounded to the value's dtype; sums and
//! products of a contraction are summed in `f64` and rounded once. Compiled kernels are compared with it.

use std::collections::BTreeMap;

use half::{bf16, f16};
use mdl_compiler::kernel::{
    Access, Contract, ContractDim, FoldKind, Keeps, Kernel, Nest, Operand, Plane, PlaneSide, Position, Prefix, Rank,
    ScalarOp, Scatter, ScatterDim, Stmt, Top, Val, Work,
};
use mdl_graph::{DType, Scalar, philox};

use crate::memory::{self, Buffers};
use crate::ordering::before;

/// Runs a whole kernel.
pub fn run(kernel: &Kernel, bufs: Buffers<'_>) {
    let memory = Memory { kernel, bufs };
    match &kernel.work {
        Work::Nest(nest) => memory.nest(nest),
        Work::Contract(contract) => memory.contract(contract),
        Work::Plane(plane) => memory.plane(plane),
        Work::Scatter(scatter) => memory.scatter(scatter),
        Work::Prefix(prefix) => memory.prefix(prefix),
        Work::Top(top) => memory.top(top),
    }
}

struct Memory<'a> {
    kernel: &'a Kernel,
    bufs: Buffers<'a>,
}

/// All points of a grid, the last dimension fastest.
fn points(extents: &[u64]) -> impl Iterator<Item = Vec<u64>> + use<> {
    let extents = extents.to_vec();
    let total: u64 = extents.iter().product();
    (0..total).map(move |flat| {
        let mut rest = flat;
        let mut point: Vec<u64> = extents
            .iter()
            .rev()
            .map(|extent| {
                let at = rest % extent;
                rest /= extent;
                at
            })
            .collect();
        point.reverse();
        point
    })
}

/// The values of a body at one grid point: one number, or one per position of the strip.
type Env = Vec<Vec<Scalar>>;

/// A pending exit: where, and the numbers that arrive there.
struct Leaving {
    buf: usize,
    at: i64,
    kind: FoldKind,
    dtype: DType,
    values: Vec<Scalar>,
}

impl Memory<'_> {
    fn load(&self, buf: usize, at: i64) -> Scalar {
        let dtype = self.kernel.bufs[buf].dtype;
        let inside = at >= 0 && (at as u64) < self.kernel.bufs[buf].len;
        assert!(inside, "position {at} of b{buf} is outside");
        // SAFETY: just checked against the length that the caller vouched for.
        unsafe { memory::read(self.bufs.base(buf), dtype, at) }
    }

    fn store(&self, buf: usize, at: i64, value: Scalar) {
        let dtype = self.kernel.bufs[buf].dtype;
        let inside = at >= 0 && (at as u64) < self.kernel.bufs[buf].len;
        assert!(inside, "position {at} of b{buf} is outside");
        // SAFETY: as in `load`.
        unsafe { memory::write(self.bufs.base(buf), dtype, at, value) }
    }

    fn nest(&self, nest: &Nest) {
        let mut exits: Vec<Leaving> = Vec::new();
        let mut seen: std::collections::HashMap<(usize, i64, usize), usize> = std::collections::HashMap::new();
        // Exits of an empty reduction still write their neutral element.
        for (which, stmt) in nest.body.iter().enumerate() {
            let Stmt::Exit { buf, access, kind, val } = stmt else { continue };
            let ty = nest.vals[val.0 as usize];
            for kept in points(&nest.grid[..nest.keep]) {
                let mut point = kept;
                point.resize(nest.grid.len() + 1, 0);
                for j in 0..if ty.rank == Rank::Strip { nest.strip } else { 1 } {
                    point[nest.grid.len()] = j;
                    let Some(at) = position(access, &point, &[], 0) else { continue };
                    let buf = buf.0 as usize;
                    seen.insert((buf, at, which), exits.len());
                    exits.push(Leaving { buf, at, kind: *kind, dtype: ty.dtype, values: Vec::new() });
                }
            }
        }
        for point in points(&nest.grid) {
            self.body(&point, nest.strip, &nest.vals, &nest.body, Vec::new(), &mut |which, buf, at, value| {
                exits[seen[&(buf, at, which)]].values.push(value);
            });
        }
        for exit in exits {
            self.store(exit.buf, exit.at, fold(exit.kind, exit.dtype, &exit.values));
        }
    }

    fn body(
        &self,
        grid: &[u64],
        strip: u64,
        vals: &[Val],
        body: &[Stmt],
        given: Vec<Vec<Scalar>>,
        exit: &mut dyn FnMut(usize, usize, i64, Scalar),
    ) -> Env {
        let mut env = given;
        env.resize(vals.len(), Vec::new());
        let mut point = grid.to_vec();
        point.push(0);
        let last = grid.len();
        for (which, stmt) in body.iter().enumerate() {
            let positions = |rank: Rank| if rank == Rank::Strip { strip } else { 1 };
            match stmt {
                Stmt::Load { val, buf, access } => {
                    let ty = vals[val.0 as usize];
                    let mut out = Vec::new();
                    for j in 0..positions(ty.rank) {
                        point[last] = j;
                        out.push(match position(access, &point, &env, j as usize) {
                            Some(at) => self.load(buf.0 as usize, at),
                            None => access.fill.cast(ty.dtype),
                        });
                    }
                    env[val.0 as usize] = out;
                }
                Stmt::Const { val, value } => env[val.0 as usize] = vec![round(vals[val.0 as usize].dtype, *value)],
                Stmt::Index { val, index } => {
                    let ty = vals[val.0 as usize];
                    let mut out = Vec::new();
                    for j in 0..positions(ty.rank) {
                        point[last] = j;
                        out.push(round(ty.dtype, Scalar::Int(index.at(&point))));
                    }
                    env[val.0 as usize] = out;
                }
                Stmt::Map { val, op, args } => {
                    let ty = vals[val.0 as usize];
                    let from = args.first().map_or(ty.dtype, |arg| vals[arg.0 as usize].dtype);
                    let out = (0..positions(ty.rank) as usize).map(|j| {
                        let args: Vec<Scalar> =
                            args.iter().map(|arg| pick(&env[arg.0 as usize], vals[arg.0 as usize], j)).collect();
                        map(*op, from, ty.dtype, &args)
                    });
                    env[val.0 as usize] = out.collect();
                }
                Stmt::Fold { val, kind, from } => {
                    env[val.0 as usize] = vec![fold(*kind, vals[val.0 as usize].dtype, &env[from.0 as usize])];
                }
                Stmt::Store { buf, access, val } => {
                    let ty = vals[val.0 as usize];
                    let moves = access.depends_on(mdl_compiler::kernel::Dim(last as u32));
                    for j in 0..if moves || ty.rank == Rank::Strip { strip } else { 1 } {
                        point[last] = j;
                        if let Some(at) = position(access, &point, &env, j as usize) {
                            self.store(buf.0 as usize, at, pick(&env[val.0 as usize], ty, j as usize));
                        }
                    }
                }
                Stmt::Exit { buf, access, val, .. } => {
                    let ty = vals[val.0 as usize];
                    for j in 0..positions(ty.rank) {
                        point[last] = j;
                        if let Some(at) = position(access, &point, &env, j as usize) {
                            exit(which, buf.0 as usize, at, pick(&env[val.0 as usize], ty, j as usize));
                        }
                    }
                }
            }
        }
        env
    }

    fn plane(&self, plane: &Plane) {
        let steps = |strides: &[i64], point: &[u64]| -> i64 {
            strides.iter().zip(point).map(|(stride, at)| stride * *at as i64).sum()
        };
        let start = |side: &PlaneSide, batch: &[u64]| side.operand.base + steps(&side.batch, batch);
        for batch in points(&plane.batch) {
            // The sums of each of `outs`, by where they are stored.
            let mut sums: Vec<BTreeMap<i64, f64>> = vec![BTreeMap::new(); plane.outs.len()];
            for row in points(&plane.rows) {
                let product = |(at, one): (usize, &mdl_compiler::kernel::PlaneIn)| -> Vec<Scalar> {
                    let extents: Vec<u64> = one.k.iter().map(|dim| dim.extent).collect();
                    let a = start(&one.a, &batch) + steps(&one.a.along, &row);
                    let column = |j: u64| {
                        let b = start(&one.b, &batch) + steps(&one.b.along, &[j]);
                        let terms = points(&extents).map(|k| {
                            let at = |of: fn(&ContractDim) -> i64| -> i64 {
                                one.k.iter().zip(&k).map(|(dim, at)| of(dim) * *at as i64).sum()
                            };
                            let x = self.load(one.a.operand.buf.0 as usize, a + at(|dim| dim.a));
                            x.as_f64() * self.load(one.b.operand.buf.0 as usize, b + at(|dim| dim.b)).as_f64()
                        });
                        round(plane.vals[at].dtype, Scalar::Float(terms.fold(0.0, |sum, term| sum + term)))
                    };
                    (0..plane.columns).map(column).collect()
                };
                let given = plane.ins.iter().enumerate().map(product).collect();
                let point: Vec<u64> = batch.iter().chain(&row).copied().collect();
                let env = self.body(&point, plane.columns, &plane.vals, &plane.body, given, &mut |_, _, _, _| {});
                for (out, sums) in plane.outs.iter().zip(&mut sums) {
                    let n_extents: Vec<u64> = out.n.iter().map(|dim| dim.extent).collect();
                    for n in points(&n_extents) {
                        let at = |of: fn(&mdl_compiler::kernel::PairDim) -> i64| -> i64 {
                            out.n.iter().zip(&n).map(|(dim, at)| of(dim) * *at as i64).sum()
                        };
                        let (with, to) = (start(&out.with, &batch) + at(|dim| dim.x), at(|dim| dim.out));
                        for (j, value) in env[out.val.0 as usize].iter().enumerate() {
                            let j = [j as u64];
                            let (summed, kept) = match out.keeps {
                                Keeps::Rows => (&j[..], &row[..]),
                                Keeps::Columns => (&row[..], &j[..]),
                            };
                            let with = with + steps(&out.with.along, summed);
                            let term = value.as_f64() * self.load(out.with.operand.buf.0 as usize, with).as_f64();
                            let place = start(&out.out, &batch) + steps(&out.out.along, kept) + to;
                            *sums.entry(place).or_insert(0.0) += term;
                        }
                    }
                }
            }
            for (out, sums) in plane.outs.iter().zip(sums) {
                let dtype = plane.vals[out.val.0 as usize].dtype;
                for (place, sum) in sums {
                    self.store(out.out.operand.buf.0 as usize, place, round(dtype, Scalar::Float(sum)));
                }
            }
        }
    }

    fn contract(&self, contract: &Contract) {
        let extents = |dims: &[ContractDim]| dims.iter().map(|dim| dim.extent).collect::<Vec<_>>();
        let offset = |dims: &[ContractDim], point: &[u64], side: fn(&ContractDim) -> i64| {
            dims.iter().zip(point).map(|(dim, at)| side(dim) * *at as i64).sum::<i64>()
        };
        let product = contract.vals[0].dtype;
        let (n_last, n_outer) = match contract.n.split_last() {
            Some((last, outer)) => (*last, outer),
            None => (ContractDim { extent: 1, a: 0, b: 0 }, &contract.n[..]),
        };
        let outer: Vec<ContractDim> = contract.batch.iter().chain(&contract.m).chain(n_outer).copied().collect();
        for point in points(&extents(&outer)) {
            let a = contract.a.base + offset(&outer, &point, |dim| dim.a);
            let b = contract.b.base + offset(&outer, &point, |dim| dim.b);
            let strip = (0..n_last.extent).map(|j| {
                let terms = points(&extents(&contract.k)).map(|k| {
                    let a = self.load(contract.a.buf.0 as usize, a + offset(&contract.k, &k, |dim| dim.a));
                    let b = b + n_last.b * j as i64 + offset(&contract.k, &k, |dim| dim.b);
                    a.as_f64() * self.load(contract.b.buf.0 as usize, b).as_f64()
                });
                // From +0, as every accumulator starts.
                round(product, Scalar::Float(terms.fold(0.0, |sum, term| sum + term)))
            });
            let strip: Vec<Scalar> = strip.collect();
            self.body(&point, n_last.extent, &contract.vals, &contract.body, vec![strip], &mut |_, _, _, _| {});
        }
    }

    fn scatter(&self, scatter: &Scatter) {
        let extents = |dims: &[ScatterDim]| dims.iter().map(|dim| dim.extent).collect::<Vec<_>>();
        let offset = |dims: &[ScatterDim], point: &[u64], side: fn(&ScatterDim) -> i64| {
            dims.iter().zip(point).map(|(dim, at)| side(dim) * *at as i64).sum::<i64>()
        };
        let dtype = self.kernel.bufs[scatter.out.buf.0 as usize].dtype;
        for keep in points(&extents(&scatter.keep)) {
            for inner in points(&extents(&scatter.inner)) {
                let base = |operand: Operand, side: fn(&ScatterDim) -> i64| {
                    operand.base + offset(&scatter.keep, &keep, side) + offset(&scatter.inner, &inner, side)
                };
                let mut row: Vec<Vec<Scalar>> = vec![Vec::new(); scatter.extent as usize];
                for point in points(&extents(&scatter.points)) {
                    let at = base(scatter.index, |dim| dim.index) + offset(&scatter.points, &point, |dim| dim.index);
                    let Scalar::Int(at) = self.load(scatter.index.buf.0 as usize, at) else { continue };
                    if !(0..scatter.extent as i64).contains(&at) {
                        continue;
                    }
                    let from = base(scatter.rows, |dim| dim.rows) + offset(&scatter.points, &point, |dim| dim.rows);
                    row[at as usize].push(self.load(scatter.rows.buf.0 as usize, from));
                }
                for (at, values) in row.iter_mut().enumerate() {
                    if let Some(start) = scatter.base {
                        let from = base(start, |dim| dim.out) + scatter.stride * at as i64;
                        values.insert(0, self.load(start.buf.0 as usize, from));
                    }
                    let value = match (scatter.put, values.last()) {
                        (true, Some(last)) => *last,
                        _ if dtype == DType::Bool => Scalar::Bool(values.contains(&Scalar::Bool(true))),
                        _ => fold(FoldKind::Sum, Val::dtype_of(dtype), values),
                    };
                    let out = base(scatter.out, |dim| dim.out) + scatter.stride * at as i64;
                    self.store(scatter.out.buf.0 as usize, out, value);
                }
            }
        }
    }

    fn prefix(&self, prefix: &Prefix) {
        let dtype = Val::dtype_of(self.kernel.bufs[prefix.x.buf.0 as usize].dtype);
        let extents: Vec<u64> = prefix.outer.iter().map(|dim| dim.extent).collect();
        for point in points(&extents) {
            let at = |start: i64, side: fn(&mdl_compiler::kernel::PairDim) -> i64| {
                start + prefix.outer.iter().zip(&point).map(|(dim, at)| side(dim) * *at as i64).sum::<i64>()
            };
            let (x, out) = (at(prefix.x.base, |dim| dim.x), at(prefix.out.base, |dim| dim.out));
            let mut seen = Vec::new();
            for step in 0..prefix.along.extent as i64 {
                let i = if prefix.reverse { prefix.along.extent as i64 - 1 - step } else { step };
                seen.push(self.load(prefix.x.buf.0 as usize, x + prefix.along.x * i));
                self.store(prefix.out.buf.0 as usize, out + prefix.along.out * i, fold(FoldKind::Sum, dtype, &seen));
            }
        }
    }

    fn top(&self, top: &Top) {
        let extents: Vec<u64> = top.outer.iter().map(|dim| dim.extent).collect();
        for point in points(&extents) {
            let at = |start: i64, side: fn(&mdl_compiler::kernel::PairDim) -> i64| {
                start + top.outer.iter().zip(&point).map(|(dim, at)| side(dim) * *at as i64).sum::<i64>()
            };
            let (x, out) = (at(top.x.base, |dim| dim.x), at(top.out.base, |dim| dim.out));
            let mut items: Vec<(Scalar, usize)> = (0..top.along.extent as usize)
                .map(|i| (self.load(top.x.buf.0 as usize, x + top.along.x * i as i64), i))
                .collect();
            items.sort_by(|left, right| before(left.0, right.0).then(left.1.cmp(&right.1)));
            for (rank, (_, i)) in items.iter().take(top.k as usize).enumerate() {
                let to = out + top.along.out * rank as i64;
                self.store(top.out.buf.0 as usize, to, Scalar::Int(*i as i64));
            }
        }
    }
}

fn pick(values: &[Scalar], ty: Val, j: usize) -> Scalar {
    values[if ty.rank == Rank::Strip { j } else { 0 }]
}

/// The position of an access at a point, or nothing when a guard fails.
fn position(access: &Access, point: &[u64], env: &[Vec<Scalar>], j: usize) -> Option<i64> {
    let mut at = access.base;
    for term in &access.terms {
        let index = match &term.index {
            Position::Index(index) => index.at(point),
            Position::Value(val) => {
                let values = &env[val.0 as usize];
                match values[if values.len() == 1 { 0 } else { j }] {
                    Scalar::Int(value) => value,
                    Scalar::Bool(_) | Scalar::Float(_) => return None,
                }
            }
        };
        if let Some((lo, hi)) = term.range
            && !(lo <= index && index < hi)
        {
            return None;
        }
        at += term.coef * index;
    }
    Some(at)
}

/// The value as `dtype` holds it: rounded floats, wrapped integers.
pub(crate) fn round(dtype: DType, value: Scalar) -> Scalar {
    match (dtype, value) {
        (DType::F32, _) => Scalar::Float(f64::from(value.as_f64() as f32)),
        (DType::BF16, _) => Scalar::Float(f64::from(bf16::from_f32(value.as_f64() as f32))),
        (DType::F16, _) => Scalar::Float(f64::from(f16::from_f32(value.as_f64() as f32))),
        (DType::F64, _) => Scalar::Float(value.as_f64()),
        (DType::Bool, _) => Scalar::Bool(value.as_f64() != 0.0),
        (DType::I32, Scalar::Int(value)) => Scalar::Int(i64::from(value as i32)),
        (DType::I8, Scalar::Int(value)) => Scalar::Int(i64::from(value as i8)),
        (DType::U8, Scalar::Int(value)) => Scalar::Int(i64::from(value as u8)),
        (DType::I64, Scalar::Int(value)) => Scalar::Int(value),
        (DType::I32 | DType::I8 | DType::U8, Scalar::Float(value)) => Scalar::Int(i64::from(value as i32)),
        (DType::I64, Scalar::Float(value)) => Scalar::Int(value as i64),
        (DType::I64 | DType::I32 | DType::I8 | DType::U8, Scalar::Bool(value)) => Scalar::Int(i64::from(value)),
    }
}

fn fold(kind: FoldKind, dtype: DType, values: &[Scalar]) -> Scalar {
    let int = |value: &Scalar| match value {
        Scalar::Int(value) => *value,
        Scalar::Bool(value) => i64::from(*value),
        Scalar::Float(value) => *value as i64,
    };
    match (kind, dtype.is_float()) {
        (FoldKind::Sum, true) => {
            round(dtype, Scalar::Float(values.iter().fold(0.0, |sum, value| sum + value.as_f64())))
        }
        (FoldKind::Sum, false) => {
            round(dtype, Scalar::Int(values.iter().fold(0i64, |sum, value| sum.wrapping_add(int(value)))))
        }
        (FoldKind::Max, true) => {
            Scalar::Float(values.iter().fold(f64::NEG_INFINITY, |max, value| max_nan(max, value.as_f64())))
        }
        (FoldKind::Max, false) => {
            let least = if dtype == DType::I64 { i64::MIN } else { i64::from(i32::MIN) };
            Scalar::Int(values.iter().fold(least, |max, value| max.max(int(value))))
        }
    }
}

fn max_nan(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) }
}

/// One scalar operation from arguments of dtype `from` (the first's) to `dtype`.
pub fn map(op: ScalarOp, from: DType, dtype: DType, args: &[Scalar]) -> Scalar {
    let float = |at: usize| args[at].as_f64();
    let int = |at: usize| match args[at] {
        Scalar::Int(value) => value,
        Scalar::Bool(value) => i64::from(value),
        Scalar::Float(value) => value as i64,
    };
    let truth = |at: usize| args[at].as_f64() != 0.0;
    let is_float = from.is_float();
    let result = match op {
        ScalarOp::Exp => Scalar::Float(float(0).exp()),
        ScalarOp::Log => Scalar::Float(float(0).ln()),
        ScalarOp::Tanh => Scalar::Float(float(0).tanh()),
        ScalarOp::Erf => Scalar::Float(crate::strip::erf_f64(float(0))),
        ScalarOp::Sin => Scalar::Float(float(0).sin()),
        ScalarOp::Cos => Scalar::Float(float(0).cos()),
        ScalarOp::Sqrt => Scalar::Float(float(0).sqrt()),
        ScalarOp::Floor => Scalar::Float(float(0).floor()),
        ScalarOp::Neg if is_float => Scalar::Float(-float(0)),
        ScalarOp::Neg => Scalar::Int(int(0).wrapping_neg()),
        ScalarOp::Cast => args[0],
        ScalarOp::Round(to) => round(to, args[0]),
        ScalarOp::Add if is_float => Scalar::Float(float(0) + float(1)),
        ScalarOp::Add => Scalar::Int(int(0).wrapping_add(int(1))),
        ScalarOp::Sub if is_float => Scalar::Float(float(0) - float(1)),
        ScalarOp::Sub => Scalar::Int(int(0).wrapping_sub(int(1))),
        ScalarOp::Mul if is_float => Scalar::Float(float(0) * float(1)),
        ScalarOp::Mul => Scalar::Int(int(0).wrapping_mul(int(1))),
        ScalarOp::Div if is_float => Scalar::Float(float(0) / float(1)),
        ScalarOp::Div => Scalar::Int(floor_div(int(0), int(1))),
        ScalarOp::Max if is_float => Scalar::Float(max_nan(float(0), float(1))),
        ScalarOp::Max => Scalar::Int(int(0).max(int(1))),
        ScalarOp::Rem if from == DType::F32 => {
            // As it is written, with the rounding of every step.
            let (x, y) = (float(0) as f32, float(1) as f32);
            Scalar::Float(f64::from(x - (x / y).floor() * y))
        }
        ScalarOp::Rem if is_float => Scalar::Float(float(0) - (float(0) / float(1)).floor() * float(1)),
        ScalarOp::Rem => match int(1) {
            0 => Scalar::Int(0),
            y => Scalar::Int(int(0).wrapping_sub(floor_div(int(0), y).wrapping_mul(y))),
        },
        ScalarOp::Pow => Scalar::Float(float(0).powf(float(1))),
        ScalarOp::Less if is_float => Scalar::Bool(float(0) < float(1)),
        ScalarOp::Less => Scalar::Bool(int(0) < int(1)),
        ScalarOp::Equal if is_float => Scalar::Bool(float(0) == float(1)),
        ScalarOp::Equal => Scalar::Bool(int(0) == int(1)),
        ScalarOp::And => Scalar::Bool(truth(0) && truth(1)),
        ScalarOp::Or => Scalar::Bool(truth(0) || truth(1)),
        ScalarOp::Not => Scalar::Bool(!truth(0)),
        ScalarOp::Select => args[if truth(0) { 1 } else { 2 }],
        ScalarOp::Uniform { place } => {
            let word = |at: usize| int(at) as u32;
            Scalar::Float(f64::from(philox::uniform(word(0), word(1), word(2), place, word(3))))
        }
    };
    round(dtype, result)
}

fn floor_div(x: i64, y: i64) -> i64 {
    if y == 0 {
        return 0;
    }
    let quotient = x.wrapping_div(y);
    if x.wrapping_rem(y) != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }
}
