//! What must hold of a kernel before a target sees it: names defined, ranks and dtypes right, every access inside its buffer.
//!
//! Targets rely on it for memory safety, so nothing here is a debug assertion. Not checked: that different grid points
//! write different positions.

use std::fmt;

use mdl_graph::DType;

use super::{
    Access, BufId, Contract, Dim, FoldKind, Index, Keeps, Kernel, Nest, Operand, Plane, PlaneSide, Position, Rank,
    Role, ScalarOp, Stmt, Val, ValId, Work,
};

/// A broken invariant: which kernel, which statement if one, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    pub kernel: String,
    pub stmt: Option<usize>,
    pub what: String,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stmt {
            Some(stmt) => write!(f, "kernel {}, statement {stmt}: {}", self.kernel, self.what),
            None => write!(f, "kernel {}: {}", self.kernel, self.what),
        }
    }
}

impl std::error::Error for KernelError {}

type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

impl Kernel {
    /// Checks every invariant that targets rely on.
    pub fn verify(&self) -> Result<(), KernelError> {
        let plain = |what| KernelError { kernel: self.name.clone(), stmt: None, what };
        match &self.work {
            Work::Nest(nest) => {
                self.nest(nest).map_err(plain)?;
                let mut dims = nest.grid.clone();
                dims.push(nest.strip);
                self.body(&dims, &nest.vals, &nest.body, nest.keep, 0).map(|_| ())
            }
            Work::Contract(contract) => {
                self.contract(contract).map_err(plain)?;
                let dims = contract.body_dims();
                self.body(&dims, &contract.vals, &contract.body, dims.len(), 1).map(|_| ())
            }
            Work::Plane(plane) => {
                self.plane(plane).map_err(plain)?;
                let dims = plane.body_dims();
                let defined = self.body(&dims, &plane.vals, &plane.body, dims.len(), plane.ins.len())?;
                let is_strip = |val: ValId| {
                    defined.get(val.0 as usize) == Some(&true) && {
                        let ty = plane.vals[val.0 as usize];
                        ty.rank == Rank::Strip && ty.dtype.is_float()
                    }
                };
                match plane.outs.iter().find(|out| !is_strip(out.val)) {
                    Some(out) => Err(plain(format!("{} is summed and no strip of floats", out.val))),
                    None => Ok(()),
                }
            }
            Work::Scatter(scatter) => (|| {
                let integer = matches!(self.buf(scatter.index.buf)?.dtype, DType::I32 | DType::I64);
                ensure!(integer, "the index is not i32 or i64");
                let equal = self.buf(scatter.rows.buf)?.dtype == self.buf(scatter.out.buf)?.dtype;
                ensure!(equal, "rows and out differ in dtype");
                let groups = [&scatter.keep, &scatter.points, &scatter.inner];
                ensure!(scatter.points.iter().all(|dim| dim.out == 0), "a point dimension moves out");
                ensure!(scatter.inner.iter().all(|dim| dim.index == 0), "an inner dimension moves the index");
                let dims = || groups.into_iter().flatten();
                self.span(scatter.rows, Role::Read, dims().map(|dim| (dim.extent, dim.rows)))?;
                self.span(scatter.index, Role::Read, dims().map(|dim| (dim.extent, dim.index)))?;
                let out = || {
                    let dims = scatter.keep.iter().chain(&scatter.inner).map(|dim| (dim.extent, dim.out));
                    dims.chain([(scatter.extent, scatter.stride)])
                };
                if let Some(base) = scatter.base {
                    let equal = self.buf(base.buf)?.dtype == self.buf(scatter.out.buf)?.dtype;
                    ensure!(equal, "base and out differ in dtype");
                    self.span(base, Role::Read, out())?;
                }
                self.span(scatter.out, Role::Write, out())
            })()
            .map_err(plain),
            Work::Prefix(prefix) => (|| {
                let equal = self.buf(prefix.x.buf)?.dtype == self.buf(prefix.out.buf)?.dtype;
                ensure!(equal, "x and out differ in dtype");
                let dims = || prefix.outer.iter().chain([&prefix.along]);
                self.span(prefix.x, Role::Read, dims().map(|dim| (dim.extent, dim.x)))?;
                self.span(prefix.out, Role::Write, dims().map(|dim| (dim.extent, dim.out)))
            })()
            .map_err(plain),
            Work::Top(top) => (|| {
                ensure!(self.buf(top.out.buf)?.dtype == DType::I32, "positions are not i32");
                ensure!(top.k <= top.along.extent, "k is larger than the axis");
                ensure!(top.along.extent <= i32::MAX as u64, "the axis is too long for i32 positions");
                let outer = || top.outer.iter();
                let along = top.along;
                self.span(top.x, Role::Read, outer().map(|d| (d.extent, d.x)).chain([(along.extent, along.x)]))?;
                self.span(top.out, Role::Write, outer().map(|d| (d.extent, d.out)).chain([(top.k, along.out)]))
            })()
            .map_err(plain),
        }
    }

    fn buf(&self, id: BufId) -> Result<&super::Buf, String> {
        self.bufs.get(id.0 as usize).ok_or_else(|| format!("there is no buffer {id}"))
    }

    fn used(&self, id: BufId, role: Role) -> Result<&super::Buf, String> {
        let buf = self.buf(id)?;
        ensure!(buf.role == role || buf.role == Role::Update, "buffer {id} is not for {role}");
        Ok(buf)
    }

    /// A strided block lies inside its buffer.
    fn span(&self, operand: Operand, role: Role, dims: impl Iterator<Item = (u64, i64)>) -> Check {
        let buf = self.used(operand.buf, role)?;
        let (mut lo, mut hi) = (i128::from(operand.base), i128::from(operand.base));
        for (extent, stride) in dims {
            if extent == 0 {
                return Ok(());
            }
            let reach = i128::from(stride) * i128::from(extent - 1);
            if reach < 0 { lo += reach } else { hi += reach }
        }
        ensure!(lo >= 0 && hi < i128::from(buf.len), "positions {lo}..={hi} of {} leave its {}", operand.buf, buf.len);
        Ok(())
    }

    fn nest(&self, nest: &Nest) -> Check {
        ensure!(nest.keep <= nest.grid.len(), "keep is {} of {} grid dimensions", nest.keep, nest.grid.len());
        ensure!(nest.chunks >= 1, "there are no chunks");
        ensure!(nest.chunks == 1 || nest.has_exits(), "chunks without an exit");
        size(nest.grid.iter().chain([&nest.strip]).copied())
    }

    fn contract(&self, contract: &Contract) -> Check {
        let (a, b) = (self.buf(contract.a.buf)?, self.buf(contract.b.buf)?);
        ensure!(a.dtype == b.dtype, "operands are {} and {}", a.dtype, b.dtype);
        ensure!(a.dtype.is_float(), "operands are {}", a.dtype);
        ensure!(contract.m.iter().all(|dim| dim.b == 0), "an m dimension moves b");
        ensure!(contract.n.iter().all(|dim| dim.a == 0), "an n dimension moves a");
        let dims = || [&contract.batch, &contract.m, &contract.n, &contract.k].into_iter().flatten();
        size(dims().map(|dim| dim.extent))?;
        self.span(contract.a, Role::Read, dims().map(|dim| (dim.extent, dim.a)))?;
        self.span(contract.b, Role::Read, dims().map(|dim| (dim.extent, dim.b)))?;
        let product = contract.vals.first().ok_or("there is no value for the product")?;
        ensure!(*product == Val::strip(a.dtype), "the product is {product}");
        let whole = |stmt: &Stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. });
        ensure!(!contract.body.iter().any(whole), "the body of a contraction folds or exits");
        Ok(())
    }

    fn plane(&self, plane: &Plane) -> Check {
        size(plane.body_dims().into_iter())?;
        ensure!(!plane.body_dims().contains(&0), "a plane without positions");
        let side = |side: &PlaneSide, along: &[u64], more: &[(u64, i64)], role: Role| -> Check {
            ensure!(side.batch.len() == plane.batch.len(), "{side} has not the dimensions of the batch");
            ensure!(side.along.len() == along.len(), "{side} runs along {} dimensions", along.len());
            let dims = plane.batch.iter().zip(&side.batch).chain(along.iter().zip(&side.along));
            let dims = dims.map(|(extent, stride)| (*extent, *stride)).chain(more.iter().copied());
            ensure!(self.buf(side.operand.buf)?.dtype.is_float(), "{side} is not of floats");
            self.span(side.operand, role, dims)
        };
        ensure!(!plane.ins.is_empty(), "a plane without a product");
        for (at, one) in plane.ins.iter().enumerate() {
            let (a, b) = (self.buf(one.a.operand.buf)?.dtype, self.buf(one.b.operand.buf)?.dtype);
            ensure!(a == b, "operands are {a} and {b}");
            size(plane.body_dims().into_iter().chain(one.k.iter().map(|dim| dim.extent)))?;
            let k = |of: fn(&super::ContractDim) -> i64| -> Vec<(u64, i64)> {
                one.k.iter().map(|dim| (dim.extent, of(dim))).collect()
            };
            side(&one.a, &plane.rows, &k(|dim| dim.a), Role::Read)?;
            side(&one.b, &[plane.columns], &k(|dim| dim.b), Role::Read)?;
            ensure!(plane.vals.get(at) == Some(&Val::strip(a)), "product {at} is no strip of its dtype");
        }
        for one in &plane.outs {
            let (summed, kept) = match one.keeps {
                Keeps::Rows => (&[plane.columns][..], &plane.rows[..]),
                Keeps::Columns => (&plane.rows[..], &[plane.columns][..]),
            };
            let n = |of: fn(&super::PairDim) -> i64| -> Vec<(u64, i64)> {
                one.n.iter().map(|dim| (dim.extent, of(dim))).collect()
            };
            side(&one.with, summed, &n(|dim| dim.x), Role::Read)?;
            side(&one.out, kept, &n(|dim| dim.out), Role::Write)?;
        }
        let strip = Dim(plane.body_dims().len() as u32 - 1);
        for stmt in &plane.body {
            match stmt {
                Stmt::Exit { .. } => return Err("the body of a plane has an exit".into()),
                Stmt::Store { access, val, .. } => {
                    let is_row = plane.vals.get(val.0 as usize).is_some_and(|val| val.rank == Rank::Row);
                    ensure!(is_row && !access.depends_on(strip), "the body of a plane stores a strip");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Which values are defined.
    fn body(
        &self,
        dims: &[u64],
        vals: &[Val],
        body: &[Stmt],
        keep: usize,
        known: usize,
    ) -> Result<Vec<bool>, KernelError> {
        let mut defined = vec![false; vals.len()];
        defined.iter_mut().take(known).for_each(|slot| *slot = true);
        let mut scope = Body { kernel: self, dims, vals, keep, defined };
        for (at, stmt) in body.iter().enumerate() {
            scope.stmt(stmt).map_err(|what| KernelError { kernel: self.name.clone(), stmt: Some(at), what })?;
        }
        Ok(scope.defined)
    }
}

/// The number of points fits what offsets can say.
fn size(extents: impl Iterator<Item = u64>) -> Check {
    let mut total = 1u64;
    for extent in extents {
        total = total.checked_mul(extent.max(1)).filter(|total| *total < 1 << 62).ok_or("the grid is too large")?;
    }
    Ok(())
}

struct Body<'a> {
    kernel: &'a Kernel,
    dims: &'a [u64],
    vals: &'a [Val],
    keep: usize,
    defined: Vec<bool>,
}

impl Body<'_> {
    fn strip(&self) -> Dim {
        Dim(self.dims.len() as u32 - 1)
    }

    fn get(&self, id: ValId) -> Result<Val, String> {
        ensure!(self.defined.get(id.0 as usize) == Some(&true), "{id} is used before it is defined");
        Ok(self.vals[id.0 as usize])
    }

    fn define(&mut self, id: ValId) -> Result<Val, String> {
        let slot = self.defined.get_mut(id.0 as usize).ok_or_else(|| format!("there is no value {id}"))?;
        ensure!(!*slot, "{id} is defined twice");
        *slot = true;
        let val = self.vals[id.0 as usize];
        ensure!(Val::dtype_of(val.dtype) == val.dtype, "{id} is {}, which only buffers are", val.dtype);
        Ok(val)
    }

    fn stmt(&mut self, stmt: &Stmt) -> Check {
        match stmt {
            Stmt::Load { val, buf, access } => {
                let from = self.kernel.used(*buf, Role::Read)?;
                let moves = self.access(*buf, access, true)?;
                let val = self.define(*val)?;
                ensure!(val.dtype == Val::dtype_of(from.dtype), "a {} is loaded as {}", from.dtype, val.dtype);
                ensure!(!moves || val.rank == Rank::Strip, "a row value depends on the strip");
            }
            Stmt::Const { val, value } => {
                let val = self.define(*val)?;
                ensure!(val.rank == Rank::Row, "a constant is a strip");
                let fits = *value == value.cast(val.dtype);
                ensure!(fits, "the constant {value} is not a {}", val.dtype);
            }
            Stmt::Index { val, index } => {
                let moves = self.index(index)?.1;
                let val = self.define(*val)?;
                ensure!(matches!(val.dtype, DType::I32 | DType::I64), "an index is {}", val.dtype);
                ensure!(!moves || val.rank == Rank::Strip, "a row value depends on the strip");
            }
            Stmt::Map { val, op, args } => {
                let args = args.iter().map(|arg| self.get(*arg)).collect::<Result<Vec<_>, _>>()?;
                let strip = args.iter().any(|arg| arg.rank == Rank::Strip);
                let val = self.define(*val)?;
                ensure!(!strip || val.rank == Rank::Strip, "a row value depends on a strip");
                let dtypes: Vec<DType> = args.iter().map(|arg| arg.dtype).collect();
                ensure!(op.accepts(&dtypes, val.dtype), "{op} of {dtypes:?} is not {}", val.dtype);
            }
            Stmt::Fold { val, kind, from } => {
                let from = self.get(*from)?;
                let val = self.define(*val)?;
                ensure!(from.rank == Rank::Strip && val.rank == Rank::Row, "a fold is from a strip to a row");
                reduces(*kind, from.dtype)?;
                ensure!(from.dtype == val.dtype, "a fold of {} is {}", from.dtype, val.dtype);
            }
            Stmt::Store { buf, access, val } => {
                let into = self.kernel.used(*buf, Role::Write)?;
                let moves = self.access(*buf, access, false)?;
                let val = self.get(*val)?;
                ensure!(val.dtype == Val::dtype_of(into.dtype), "a {} is stored as {}", val.dtype, into.dtype);
                let one = self.dims[self.strip().0 as usize] <= 1;
                ensure!(moves || one || val.rank == Rank::Row, "a strip is stored at one position");
            }
            Stmt::Exit { buf, access, kind, val } => {
                let into = self.kernel.used(*buf, Role::Write)?;
                let moves = self.access(*buf, access, false)?;
                let val = self.get(*val)?;
                reduces(*kind, val.dtype)?;
                ensure!(val.dtype == Val::dtype_of(into.dtype), "a {} leaves as {}", val.dtype, into.dtype);
                let one = self.dims[self.strip().0 as usize] <= 1;
                ensure!(one || moves == (val.rank == Rank::Strip), "an exit and its value differ in rank");
                let grid = self.dims.len() - 1;
                let reduced = (self.keep..grid).any(|dim| access.depends_on(Dim(dim as u32)));
                ensure!(!reduced, "an exit depends on a reduced dimension");
                let guarded = access.terms.iter().any(|term| term.range.is_some());
                ensure!(!guarded, "an exit has a guard");
            }
        }
        Ok(())
    }

    /// The access stays in its buffer; whether it depends on the strip.
    fn access(&self, buf: BufId, access: &Access, load: bool) -> Result<bool, String> {
        let (mut lo, mut hi) = (i128::from(access.base), i128::from(access.base));
        let (mut moves, mut touches) = (false, !self.dims[..self.dims.len() - 1].contains(&0));
        for term in &access.terms {
            let (mut from, mut to) = match &term.index {
                Position::Index(index) => {
                    let (range, on_strip) = self.index(index)?;
                    moves |= on_strip;
                    range
                }
                Position::Value(val) => {
                    ensure!(load, "a position that is a value outside a load");
                    let ty = self.get(*val)?;
                    ensure!(matches!(ty.dtype, DType::I32 | DType::I64), "the position {val} is {}", ty.dtype);
                    ensure!(term.range.is_some(), "the position {val} has no range");
                    moves |= ty.rank == Rank::Strip;
                    (i128::from(i64::MIN), i128::from(i64::MAX))
                }
            };
            if let Some((lo, hi)) = term.range {
                from = from.max(i128::from(lo));
                to = to.min(i128::from(hi) - 1);
            }
            // A guard that never holds: nothing is ever touched.
            touches &= from <= to;
            let ends = [from * i128::from(term.coef), to * i128::from(term.coef)];
            lo += ends[0].min(ends[1]);
            hi += ends[0].max(ends[1]);
        }
        let len = self.kernel.buf(buf)?.len;
        touches &= !(moves && self.dims.last() == Some(&0));
        ensure!(!touches || (lo >= 0 && hi < i128::from(len)), "positions {lo}..={hi} of {buf} leave its {len}");
        Ok(moves)
    }

    /// The least and greatest value of an index, and whether it depends on the strip.
    fn index(&self, index: &Index) -> Result<((i128, i128), bool), String> {
        ensure!(
            index.div >= 1 && index.div < 1 << 62 && index.modulo < 1 << 62,
            "the index {index} divides by {}",
            index.div
        );
        let (mut lo, mut hi) = (i128::from(index.base), i128::from(index.base));
        for (dim, coef) in &index.terms {
            let extent = *self.dims.get(dim.0 as usize).ok_or_else(|| format!("there is no dimension {dim}"))?;
            let reach = i128::from(*coef) * i128::from(extent.max(1) - 1);
            if reach < 0 { lo += reach } else { hi += reach }
        }
        (lo, hi) = (lo.div_euclid(i128::from(index.div)), hi.div_euclid(i128::from(index.div)));
        if index.modulo != 0 {
            let modulo = i128::from(index.modulo);
            if lo.div_euclid(modulo) == hi.div_euclid(modulo) {
                (lo, hi) = (lo.rem_euclid(modulo), hi.rem_euclid(modulo));
            } else {
                (lo, hi) = (0, modulo - 1);
            }
        }
        let plus = i128::from(index.plus);
        Ok(((lo + plus, hi + plus), index.depends_on(self.strip())))
    }
}

fn reduces(kind: FoldKind, dtype: DType) -> Check {
    ensure!(dtype != DType::Bool, "{kind} of bool");
    Ok(())
}

impl ScalarOp {
    /// Whether the operation takes these dtypes to that one.
    pub fn accepts(self, args: &[DType], to: DType) -> bool {
        let float = |dtype: DType| matches!(dtype, DType::F32 | DType::F64);
        let number = |dtype: DType| dtype != DType::Bool;
        let all =
            |n: usize, kind: &dyn Fn(DType) -> bool| args.len() == n && kind(to) && args.iter().all(|arg| *arg == to);
        match self {
            ScalarOp::Exp | ScalarOp::Log | ScalarOp::Tanh | ScalarOp::Erf | ScalarOp::Sin | ScalarOp::Cos => {
                all(1, &float)
            }
            ScalarOp::Sqrt | ScalarOp::Floor => all(1, &float),
            ScalarOp::Neg => all(1, &number),
            ScalarOp::Cast => args.len() == 1,
            ScalarOp::Round(DType::BF16 | DType::F16) => args == [DType::F32] && to == DType::F32,
            ScalarOp::Round(DType::I8 | DType::U8) => args == [DType::I32] && to == DType::I32,
            ScalarOp::Round(_) => false,
            ScalarOp::Add | ScalarOp::Sub | ScalarOp::Mul | ScalarOp::Div | ScalarOp::Max | ScalarOp::Rem => {
                all(2, &number)
            }
            ScalarOp::Pow => all(2, &float),
            ScalarOp::Less => args.len() == 2 && args[0] == args[1] && number(args[0]) && to == DType::Bool,
            ScalarOp::Equal => args.len() == 2 && args[0] == args[1] && to == DType::Bool,
            ScalarOp::And | ScalarOp::Or => all(2, &|dtype| dtype == DType::Bool),
            ScalarOp::Not => all(1, &|dtype| dtype == DType::Bool),
            ScalarOp::Select => args.len() == 3 && args[0] == DType::Bool && args[1..] == [to, to],
            ScalarOp::Uniform { .. } => args == [DType::I32; 4] && to == DType::F32,
        }
    }
}
