//! The kernel IR: what fusion and schedule produce, and what every target prints or interprets.
//!
//! A [`Kernel`] is one launch: a list of buffers and one [`Work`]. It is plain data with static sizes, counted in
//! elements; it names no thread, lane or vector. Meaning: `codegen/src/interp.rs`. Invariants: [`Kernel::verify`].
//!
//! Numbers inside a kernel are `f32` (`bf16` and `f16` are converted by loads and stores), `f64`, `i32` (`i8` and `u8`
//! likewise), `i64` or `bool`. Sums accumulate in that type, by a tree that depends on sizes alone.
//! Deliberately absent: loops around launches (`repeat`, `scan`) and buffer addresses, which the plan has.

mod known;
mod plane;
mod print;
mod share;
mod verify;

use mdl_graph::{DType, Scalar};
use serde::{Deserialize, Serialize};

pub use plane::{Keeps, Plane, PlaneIn, PlaneOut, PlaneSide};
pub use verify::KernelError;

/// One launch over the buffers in `bufs`; the caller passes their base addresses in that order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kernel {
    /// For people and symbol names; need not be unique.
    pub name: String,
    pub bufs: Vec<Buf>,
    pub work: Work,
}

/// A buffer that a kernel touches: `len` elements from the base address. Different buffers of one kernel do not overlap,
/// except that the same memory may be a `Read` and a `Write` buffer where [`Kernel::may_overwrite`] says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Buf {
    pub name: String,
    pub dtype: DType,
    pub len: u64,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Read,
    Write,
    /// Read and written: an accumulator, or a state that is updated in place.
    Update,
}

/// Index of a buffer in [`Kernel::bufs`]. Prints `b3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BufId(pub u32);

/// Index of a value in a body's `vals`. Prints `v3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValId(pub u32);

/// A dimension of a body: `Dim(i)` is grid dimension i, outermost first, and `Dim(number of grid dimensions)` the strip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dim(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Work {
    Nest(Nest),
    Contract(Contract),
    Plane(Plane),
    Scatter(Scatter),
    Prefix(Prefix),
    Top(Top),
}

/// Statements run for each point of a grid, on strips along one more dimension.
///
/// Maps, norms, softmax rows, copies, fills, transpositions, gathers, optimizer updates; with [`Stmt::Exit`] also sums
/// over rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Nest {
    /// Extents, outermost first; the points are independent and may run in any order. Empty: one point.
    pub grid: Vec<u64>,
    /// The extent of the strip; 1 when the kernel has none. Best the dimension along which most buffers are contiguous.
    pub strip: u64,
    /// The first `keep` grid dimensions are kept by exits; exits reduce over all the others.
    pub keep: usize,
    /// Into how many parts the reduced grid dimensions are divided: each makes one partial result, and these are combined in
    /// order. 1 when there is no exit. See [`Nest::default_chunks`].
    pub chunks: u64,
    pub vals: Vec<Val>,
    pub body: Vec<Stmt>,
}

/// The type of a value of a body: one number per grid point, or a strip of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Val {
    pub rank: Rank,
    /// One of `f32`, `f64`, `i32`, `i64`, `bool`: see [`Val::dtype_of`].
    pub dtype: DType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rank {
    Row,
    Strip,
}

/// One statement. Each value is defined once, before its uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stmt {
    /// A `Row` value must not depend on the strip; a `Strip` value may, or repeats one element.
    Load { val: ValId, buf: BufId, access: Access },
    /// A `Row` constant.
    Const { val: ValId, value: Scalar },
    /// The value of an index expression (an iota), `i32` or `i64`.
    Index { val: ValId, index: Index },
    /// One scalar operation; `Row` arguments are repeated along the strip when the result is a strip.
    Map { val: ValId, op: ScalarOp, args: Vec<ValId> },
    /// A strip to a row value: 0, or the least number, when the strip is empty.
    Fold { val: ValId, kind: FoldKind, from: ValId },
    /// A `Row` value is repeated when the access moves along the strip.
    Store { buf: BufId, access: Access, val: ValId },
    /// The reduction of `val` over all grid dimensions but the first `keep`, written over what is there. The access depends
    /// only on the kept dimensions and, for a strip, the strip.
    Exit { buf: BufId, access: Access, kind: FoldKind, val: ValId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FoldKind {
    Sum,
    /// NaN when any is NaN.
    Max,
}

/// The position `base + Σ term.coef · term.index` in a buffer, in elements. A load for which some term's index is out of
/// its `range` gives `fill` without touching memory; such a store writes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Access {
    pub base: i64,
    pub terms: Vec<Term>,
    pub fill: Scalar,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Term {
    pub index: Position,
    pub coef: i64,
    /// `Some((lo, hi))`: only positions `lo <= index < hi` exist. A term with `coef` 0 is a mere guard.
    pub range: Option<(i64, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Position {
    Index(Index),
    /// An integer value computed before: a gather. Its term needs a `range`. Not in stores and exits.
    Value(ValId),
}

/// `floor((base + Σ coef · dim) / div) mod modulo + plus`; no modulus when `modulo` is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Index {
    pub base: i64,
    pub terms: Vec<(Dim, i64)>,
    pub div: u64,
    pub modulo: u64,
    pub plus: i64,
}

/// An operation on numbers. Arguments have one dtype, the result's, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ScalarOp {
    Exp,
    Log,
    Tanh,
    Erf,
    Sin,
    Cos,
    Sqrt,
    Floor,
    Neg,
    /// To the result's dtype: floats to integers truncate and saturate (NaN is 0), integers wrap, to `bool` is `!= 0`.
    Cast,
    /// An `f32` rounded to what this storage dtype can hold (`bf16`, `f16`), or an `i32` wrapped (`i8`, `u8`).
    Round(DType),
    Add,
    Sub,
    Mul,
    /// Integers round toward minus infinity, and x / 0 is 0.
    Div,
    /// NaN when either is NaN.
    Max,
    /// With the sign of the divisor: `x - floor(x / y) * y`; 0 when an integer y is 0.
    Rem,
    Pow,
    /// To `bool`; false with NaN.
    Less,
    /// To `bool`; false with NaN.
    Equal,
    And,
    Or,
    Not,
    /// (condition `bool`, x, y).
    Select,
    /// (seed, step, lane, counter), all `i32`, to `f32`: see `mdl_graph::philox`.
    Uniform {
        place: u32,
    },
}

/// `out[batch, m, n] = body(Σ_k a[batch, m, k] · b[batch, k, n])`, with each of batch, m, n, k a list of dimensions.
///
/// Operands are `f32`, `bf16`, `f16` or `f64`; the sum is in `f32` (`f64` for `f64`). The body is that of a nest with grid
/// batch, m, and n but its last, and with the last dimension of n as the strip (1 when n is empty); value 0 is the product, a
/// strip that nothing defines. The body may load, map and store, not fold or exit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contract {
    pub a: Operand,
    pub b: Operand,
    pub batch: Vec<ContractDim>,
    /// `b` strides are 0.
    pub m: Vec<ContractDim>,
    /// `a` strides are 0.
    pub n: Vec<ContractDim>,
    pub k: Vec<ContractDim>,
    #[serde(default)]
    pub parts: Parts,
    pub vals: Vec<Val>,
    pub body: Vec<Stmt>,
}

/// How a product of `f32` may be made by a unit that multiplies `bf16` only: a number is cut into parts, and as many products of
/// parts are summed. Elsewhere, and for other dtypes, it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Parts {
    /// Not at all.
    #[default]
    Whole,
    /// Of two parts each: all but the smallest product.
    Three,
    /// Of three parts each.
    Six,
}

/// A buffer from an offset, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Operand {
    pub buf: BufId,
    pub base: i64,
}

/// A dimension of a contraction and its strides in the two operands, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContractDim {
    pub extent: u64,
    pub a: i64,
    pub b: i64,
}

/// `out` starts as `base`, or as zeros; then, for each point of `points` in order, first outermost, the row of `rows` is added or put at
/// `out[keep, index[keep, point], inner]`. An index outside `0..extent` is left out. Duplicates combine in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scatter {
    pub put: bool,
    /// Lies like `out`, and may be the same memory.
    pub base: Option<Operand>,
    pub rows: Operand,
    /// `i32` or `i64`.
    pub index: Operand,
    pub out: Operand,
    /// The size of the scattered axis, and its stride in `out`.
    pub extent: u64,
    pub stride: i64,
    /// Dimensions shared by rows, index and out.
    pub keep: Vec<ScatterDim>,
    /// Dimensions of rows and index that `out` has not: their `out` stride is 0.
    pub points: Vec<ScatterDim>,
    /// Dimensions of rows and out that the index has not: their `index` stride is 0.
    pub inner: Vec<ScatterDim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScatterDim {
    pub extent: u64,
    pub rows: i64,
    pub index: i64,
    pub out: i64,
}

/// `out[outer, i] = Σ_{j <= i} x[outer, j]`, or `j >= i` when `reverse`; equal dtypes (low floats sum in `f32`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prefix {
    pub x: Operand,
    pub out: Operand,
    pub outer: Vec<PairDim>,
    pub along: PairDim,
    pub reverse: bool,
}

/// `out[outer, j]` = the position of the j-th largest of `x[outer, ..]`, for j below `k`, as `i32`: ties to the lower position,
/// NaN counts as the smallest. `k` is at most the extent of `along`, whose `out` stride is that of j.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Top {
    pub x: Operand,
    pub out: Operand,
    pub outer: Vec<PairDim>,
    pub along: PairDim,
    pub k: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PairDim {
    pub extent: u64,
    pub x: i64,
    pub out: i64,
}

impl Val {
    pub fn row(dtype: DType) -> Val {
        Val { rank: Rank::Row, dtype: Val::dtype_of(dtype) }
    }

    pub fn strip(dtype: DType) -> Val {
        Val { rank: Rank::Strip, dtype: Val::dtype_of(dtype) }
    }

    /// The dtype in which a kernel computes with what is stored as `dtype`.
    pub fn dtype_of(dtype: DType) -> DType {
        match dtype {
            DType::BF16 | DType::F16 | DType::F32 => DType::F32,
            DType::I8 | DType::U8 | DType::I32 => DType::I32,
            DType::F64 | DType::I64 | DType::Bool => dtype,
        }
    }
}

impl Index {
    /// One dimension.
    pub fn dim(dim: Dim) -> Index {
        Index::affine(0, vec![(dim, 1)])
    }

    pub fn affine(base: i64, terms: Vec<(Dim, i64)>) -> Index {
        Index { base, terms, div: 1, modulo: 0, plus: 0 }
    }

    /// Its value at a point: the position along each dimension, grid first, the strip last.
    pub fn at(&self, point: &[u64]) -> i64 {
        let sum: i64 =
            self.base + self.terms.iter().map(|&(dim, coef)| coef * point[dim.0 as usize] as i64).sum::<i64>();
        let quotient = sum.div_euclid(self.div as i64);
        let rest = if self.modulo == 0 { quotient } else { quotient.rem_euclid(self.modulo as i64) };
        rest + self.plus
    }

    pub fn depends_on(&self, dim: Dim) -> bool {
        self.terms.iter().any(|&(term, coef)| term == dim && coef != 0)
    }
}

impl Access {
    /// The plain affine access `base + Σ coef · dim`.
    pub fn affine(base: i64, terms: &[(Dim, i64)]) -> Access {
        let terms = terms
            .iter()
            .filter(|(_, coef)| *coef != 0)
            .map(|&(dim, coef)| Term { index: Position::Index(Index::dim(dim)), coef, range: None })
            .collect();
        Access { base, terms, fill: Scalar::Int(0) }
    }

    /// Element 0, always: a run-time scalar.
    pub fn scalar() -> Access {
        Access::affine(0, &[])
    }

    pub fn depends_on(&self, dim: Dim) -> bool {
        self.terms.iter().any(|term| match &term.index {
            Position::Index(index) => index.depends_on(dim),
            Position::Value(_) => false,
        })
    }
}

impl Nest {
    /// A grid without statements, to be filled.
    pub fn new(grid: Vec<u64>, strip: u64) -> Nest {
        Nest { grid, strip, keep: 0, chunks: 1, vals: Vec::new(), body: Vec::new() }
    }

    /// The dimension of the strip.
    pub fn strip_dim(&self) -> Dim {
        Dim(self.grid.len() as u32)
    }

    pub fn has_exits(&self) -> bool {
        self.body.iter().any(|stmt| matches!(stmt, Stmt::Exit { .. }))
    }

    /// How many chunks suit exits: enough to keep a machine busy, few enough that the partial results stay small. A function
    /// of the sizes alone, so that no bit depends on the machine.
    pub fn default_chunks(&self) -> u64 {
        if !self.has_exits() {
            return 1;
        }
        let kept: u64 = self.grid[..self.keep].iter().product();
        let reduced: u64 = self.grid[self.keep..].iter().product();
        let wanted = 32u64.div_ceil(kept.max(1));
        // At least eight rows, and 16 Ki elements, for each partial result.
        let affordable = (reduced / 8).min(reduced.saturating_mul(self.strip.max(1)) >> 14);
        wanted.min(affordable).max(1)
    }
}

impl Contract {
    /// The extents of the body's dimensions: its grid, then its strip.
    pub fn body_dims(&self) -> Vec<u64> {
        let mut dims: Vec<u64> = [&self.batch, &self.m, &self.n].into_iter().flatten().map(|dim| dim.extent).collect();
        if self.n.is_empty() {
            dims.push(1);
        }
        dims
    }
}
