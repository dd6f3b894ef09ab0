//! Planes: rows that are made of products, worked on and summed away, and that are never in memory whole.
//!
//! Attention is one (scores, softmax, weighted values), and so is its derivative. What no exit can see is left out by whole
//! blocks: [`Plane::seen`] finds, from positions and constants alone, which columns a block of rows needs.

use serde::{Deserialize, Serialize};

use super::known::Known;
use super::{ContractDim, Operand, PairDim, Stmt, Val, ValId};

/// For each point of `batch` and `rows` a strip along the columns: value i of the body is, for i below the number of `ins`, the
/// product of that number; the body makes more of them, and each of `outs` sums one over the columns or over the rows.
///
/// The body is that of a nest with grid `batch` and `rows` and with the columns as strip. It may load, map, fold, and store row
/// values. Products are `f32` (`f64` of `f64`); so are the sums of `outs`, which are rounded when they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Plane {
    pub batch: Vec<u64>,
    pub rows: Vec<u64>,
    pub columns: u64,
    pub ins: Vec<PlaneIn>,
    pub vals: Vec<Val>,
    pub body: Vec<Stmt>,
    pub outs: Vec<PlaneOut>,
}

/// An operand of a product: its strides along each dimension of the batch, and along each of the rows or of the columns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PlaneSide {
    pub operand: Operand,
    pub batch: Vec<i64>,
    pub along: Vec<i64>,
}

/// `Σ_k a[batch, row, k] · b[batch, column, k]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PlaneIn {
    /// Along the rows.
    pub a: PlaneSide,
    /// Along the columns.
    pub b: PlaneSide,
    pub k: Vec<ContractDim>,
}

/// What is left when a plane is summed in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeps {
    Rows,
    Columns,
}

/// `out[batch, row, n] = Σ_column val · with[batch, column, n]`, or rows and columns the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PlaneOut {
    pub val: ValId,
    pub keeps: Keeps,
    /// Along what is summed.
    pub with: PlaneSide,
    /// Along what is kept.
    pub out: PlaneSide,
    /// `x` is the stride in `with`.
    pub n: Vec<PairDim>,
}

impl Plane {
    /// The extents of the body's dimensions: its grid, then its strip.
    pub fn body_dims(&self) -> Vec<u64> {
        self.batch.iter().chain(&self.rows).chain([&self.columns]).copied().collect()
    }

    pub fn n_rows(&self) -> u64 {
        self.rows.iter().product()
    }

    pub fn has_folds(&self) -> bool {
        self.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. }))
    }

    /// For each `height` rows the columns `lo..hi`, in whole blocks of `width`, outside of which nothing can be seen: every value
    /// that is summed is 0 there and every maximum is of `-inf`. At least one block is left.
    pub fn seen(&self, height: u64, width: u64) -> Vec<(u64, u64)> {
        let n_blocks = self.columns.div_ceil(width).max(1);
        let mut known = vec![Known::Any; self.vals.len()];
        let mut all = Vec::new();
        for first in (0..self.n_rows()).step_by(height.max(1) as usize) {
            let mut dims = self.rows_box(first, (first + height).min(self.n_rows()));
            let mut sees = |block: u64| {
                let end = ((block + 1) * width).min(self.columns).max(block * width + 1);
                dims.push(((block * width) as i64, end as i64 - 1));
                let empty = self.is_empty_in(&dims, &mut known);
                dims.pop();
                !empty
            };
            let lo = (0..n_blocks).find(|block| sees(*block)).unwrap_or(0);
            let hi = (lo..n_blocks).rev().find(|block| sees(*block)).unwrap_or(lo);
            all.push((lo * width, ((hi + 1) * width).min(self.columns)));
        }
        all
    }

    /// The least and greatest position along each dimension of the grid, for rows `lo..hi` of any batch.
    fn rows_box(&self, lo: u64, hi: u64) -> Vec<(i64, i64)> {
        let mut dims: Vec<(i64, i64)> = self.batch.iter().map(|extent| (0, *extent as i64 - 1)).collect();
        // From the innermost: as long as first and last differ further out, an inner dimension is crossed whole.
        let (mut first, mut last) = (lo, hi.max(lo + 1) - 1);
        let mut inner = Vec::new();
        for extent in self.rows.iter().rev() {
            let extent = (*extent).max(1);
            let whole = first / extent != last / extent;
            inner.push(if whole { (0, extent as i64 - 1) } else { ((first % extent) as i64, (last % extent) as i64) });
            (first, last) = (first / extent, last / extent);
        }
        dims.extend(inner.into_iter().rev());
        dims
    }

    /// Whether nothing in this box reaches any fold or sum. Numbers from memory are taken for finite.
    fn is_empty_in(&self, dims: &[(i64, i64)], known: &mut [Known]) -> bool {
        for stmt in &self.body {
            match stmt {
                Stmt::Const { val, value } => known[val.0 as usize] = Known::of(*value),
                Stmt::Index { val, index } => known[val.0 as usize] = Known::index(index, dims),
                Stmt::Map { val, op, args } => {
                    let mut of = [Known::Any; 4];
                    for (of, arg) in of.iter_mut().zip(args) {
                        *of = known[arg.0 as usize];
                    }
                    let n = args.len().min(of.len());
                    known[val.0 as usize] = Known::map(*op, self.vals[val.0 as usize].dtype, &of[..n]);
                }
                Stmt::Fold { kind, from, .. } => {
                    if !known[from.0 as usize].is_neutral(*kind) {
                        return false;
                    }
                }
                Stmt::Load { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => {}
            }
        }
        self.outs.iter().all(|out| known[out.val.0 as usize].is_neutral(super::FoldKind::Sum))
    }
}

#[cfg(test)]
mod tests {
    use mdl_graph::{DType, Scalar};

    use super::super::{Dim, FoldKind, Index, ScalarOp};
    use super::*;

    /// A maximum over the columns that a row sees: those not after it and, with a window, not too far back.
    fn causal(window: Option<i64>, heads: u64, n: u64) -> Plane {
        let mut vals = vec![Val::strip(DType::F32)];
        let mut body = Vec::new();
        let mut push = |val: Val, stmt: &dyn Fn(ValId) -> Stmt| {
            let id = ValId(vals.len() as u32);
            vals.push(val);
            body.push(stmt(id));
            id
        };
        let (int, bool) = (DType::I32, DType::Bool);
        let index = |dim: u32| move |val| Stmt::Index { val, index: Index::dim(Dim(dim)) };
        let constant = |value| move |val| Stmt::Const { val, value };
        let row = push(Val::row(int), &index(1));
        let column = push(Val::strip(int), &index(2));
        let far = push(Val::strip(int), &|val| Stmt::Map { val, op: ScalarOp::Sub, args: vec![row, column] });
        let zero = push(Val::row(int), &constant(Scalar::Int(0)));
        let later = push(Val::strip(bool), &|val| Stmt::Map { val, op: ScalarOp::Less, args: vec![far, zero] });
        let mut sees = push(Val::strip(bool), &|val| Stmt::Map { val, op: ScalarOp::Not, args: vec![later] });
        if let Some(window) = window {
            let limit = push(Val::row(int), &constant(Scalar::Int(window)));
            let near = push(Val::strip(bool), &|val| Stmt::Map { val, op: ScalarOp::Less, args: vec![far, limit] });
            sees = push(Val::strip(bool), &|val| Stmt::Map { val, op: ScalarOp::And, args: vec![sees, near] });
        }
        let least = push(Val::row(DType::F32), &constant(Scalar::Float(f64::NEG_INFINITY)));
        let args = vec![sees, ValId(0), least];
        let score = push(Val::strip(DType::F32), &|val| Stmt::Map { val, op: ScalarOp::Select, args: args.clone() });
        push(Val::row(DType::F32), &|val| Stmt::Fold { val, kind: FoldKind::Max, from: score });
        Plane { batch: Vec::new(), rows: vec![heads, n], columns: n, ins: Vec::new(), vals, body, outs: Vec::new() }
    }

    #[test]
    fn causal_rows_see_what_is_before_them() {
        assert_eq!(causal(None, 1, 10).seen(4, 2), [(0, 4), (0, 8), (0, 10)]);
        // A block that crosses from one head to the next sees all; one within a head does not.
        assert_eq!(causal(None, 2, 4).seen(2, 1), [(0, 2), (0, 4), (0, 2), (0, 4)]);
        assert_eq!(causal(None, 2, 3).seen(2, 1), [(0, 2), (0, 3), (0, 3)]);
    }

    #[test]
    fn a_window_leaves_what_is_too_far_back() {
        assert_eq!(causal(Some(3), 1, 12).seen(4, 2), [(0, 4), (2, 8), (6, 12)]);
        // Where nothing is seen at all, a block is left.
        assert_eq!(causal(Some(-20), 1, 4).seen(2, 1), [(0, 1), (0, 1)]);
    }
}
