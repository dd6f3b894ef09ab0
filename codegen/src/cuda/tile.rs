//! What templates with tiles share: operands with dimensions, staged in shared memory, and the product of two tiles.
//!
//! A block is 16 by 16 threads. Thread (y, x) has of a tile the rows `y * TM + i` and the columns `x + 16 * j`.

use mdl_compiler::kernel::Kernel;
use mdl_graph::DType;

use super::print::{Text, integer, loaded, sum, unflatten};

/// Along k, in a tile.
pub(super) const DEEP: u64 = 16;
/// Threads along each side of a block.
pub(super) const SIDE: u64 = 16;
pub(super) const THREADS: u64 = SIDE * SIDE;

/// The factors of a product, as they lie in memory.
pub(super) struct Factors {
    pub(super) rows: Walk,
    pub(super) columns: Walk,
    pub(super) deep_a: Walk,
    pub(super) deep_b: Walk,
    pub(super) batch_a: Walk,
    pub(super) batch_b: Walk,
}

impl Factors {
    /// Along what is kept, along what is summed, and along the batch.
    pub(super) fn a(&self) -> (&Walk, &Walk, &Walk) {
        (&self.rows, &self.deep_a, &self.batch_a)
    }

    pub(super) fn b(&self) -> (&Walk, &Walk, &Walk) {
        (&self.columns, &self.deep_b, &self.batch_b)
    }
}

/// Dimensions with their strides, from a flat position.
#[derive(Clone, Debug)]
pub(super) struct Walk(Vec<(u64, i64)>);

impl Walk {
    pub(super) fn new(dims: impl Iterator<Item = (u64, i64)>) -> Walk {
        Walk(dims.collect())
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(extent, _)| extent).product()
    }

    /// What is crossed evenly is one dimension; those of a single position are none.
    fn merged(&self) -> Vec<(u64, i64)> {
        let mut merged: Vec<(u64, i64)> = Vec::new();
        for (extent, stride) in self.0.iter().copied().filter(|(extent, _)| *extent != 1) {
            match merged.last_mut() {
                Some((outer, outer_stride)) if *outer_stride == stride * extent as i64 => {
                    (*outer, *outer_stride) = (*outer * extent, stride);
                }
                _ => merged.push((extent, stride)),
            }
        }
        merged
    }

    /// Whether each `run` positions, from the first on, are neighbours in memory, and begin at a multiple of `run` there.
    pub(super) fn runs_of(&self, run: u64) -> bool {
        let merged = self.merged();
        merged.split_last().is_some_and(|((extent, stride), outer)| {
            *stride == 1
                && extent.is_multiple_of(run)
                && outer.iter().all(|(_, stride)| stride.unsigned_abs().is_multiple_of(run))
        })
    }

    /// Whether each position is a multiple of `by` in memory.
    pub(super) fn jumps_by(&self, by: u64) -> bool {
        self.merged().iter().all(|(_, stride)| stride.unsigned_abs().is_multiple_of(by))
    }

    /// The offset of a flat position: `8192 * (k / 64) + k % 64`.
    pub(super) fn offset(&self, flat: &str) -> Vec<(i64, String)> {
        let merged = self.merged();
        let extents: Vec<u64> = merged.iter().map(|(extent, _)| *extent).collect();
        let simple = flat.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let flat = if simple { flat.to_string() } else { format!("({flat})") };
        let group = |how: String| if how.contains(' ') && how != flat { format!("({how})") } else { how };
        let places = unflatten(&flat, &extents).into_iter().map(group);
        merged.iter().zip(places).map(|((_, stride), how)| (*stride, how)).collect()
    }

    /// Whether neighbours along the last dimension are neighbours in memory.
    pub(super) fn is_run(&self) -> bool {
        self.0.iter().rev().find(|(extent, _)| *extent > 1).is_some_and(|(_, stride)| *stride == 1)
    }
}

/// A part of an operand in shared memory: `name[k][along]`.
pub(super) struct Staged<'a> {
    pub(super) name: &'a str,
    pub(super) buf: usize,
    /// The offset of what is the same for the whole block.
    pub(super) start: &'a str,
    pub(super) along: &'a Walk,
    pub(super) deep: &'a Walk,
    /// Numbers along, in a tile, and where the tile begins.
    pub(super) width: u64,
    pub(super) first: &'a str,
    /// Where the tile begins along k, and where k ends.
    pub(super) first_deep: &'a str,
    pub(super) end_deep: u64,
    /// What the tiles along k together are a multiple of.
    pub(super) step_deep: u64,
}

impl Staged<'_> {
    /// Threads run along that side that is a run in memory.
    pub(super) fn print(&self, text: &mut Text, kernel: &Kernel, zero: &str) {
        let dtype = kernel.bufs[self.buf].dtype;
        let width = self.width;
        text.line("#pragma unroll");
        text.open(format!("for (int s = threadIdx.x; s < {}; s += {THREADS})", width * DEEP));
        if self.deep.is_run() || !self.along.is_run() {
            text.line(format!("const int k = s % {DEEP}, at = s / {DEEP};"));
        } else {
            text.line(format!("const int k = s / {width}, at = s % {width};"));
        }
        let mut terms = vec![(1, self.start.to_string())];
        if self.start == "0" {
            terms.clear();
        }
        terms.extend(self.along.offset(&format!("{} + at", self.first)));
        terms.extend(self.deep.offset(&format!("{} + k", self.first_deep)));
        let place = loaded(dtype, &format!("b{}[{}]", self.buf, sum(&terms, 0)));
        let end = integer(self.along.count() as i64);
        let mut inside = Vec::new();
        if !self.along.count().is_multiple_of(width) {
            inside.push(format!("{} + at < {end}", self.first));
        }
        if !self.end_deep.is_multiple_of(self.step_deep) {
            inside.push(format!("{} + k < {}", self.first_deep, self.end_deep));
        }
        let value = if inside.is_empty() { place } else { format!("{} ? {place} : {zero}", inside.join(" && ")) };
        text.line(format!("{}[k][at] = {value};", self.name));
        text.close();
    }
}

/// `sum[i][j] += Σ_k a[k][…] · b[k][…]` over one tile in shared memory; `a` and `b` name an element for k and i, or k and j.
pub(super) fn multiply(text: &mut Text, ty: &str, (tm, tn): (u64, u64), sum: &str, a: &str, b: &str) {
    text.line("#pragma unroll");
    text.open(format!("for (int k = 0; k < {DEEP}; k++)"));
    text.line(format!("{ty} a[{tm}], b[{tn}];"));
    text.line(format!("for (int i = 0; i < {tm}; i++) a[i] = {a};"));
    text.line(format!("for (int j = 0; j < {tn}; j++) b[j] = {b};"));
    text.line(format!("for (int i = 0; i < {tm}; i++)"));
    text.line(format!("    for (int j = 0; j < {tn}; j++) {sum}[i][j] += a[i] * b[j];"));
    text.close();
}

/// The type that products of this dtype are summed in.
pub(super) fn sum_type(dtype: DType) -> (&'static str, &'static str) {
    if dtype == DType::F64 { ("double", "0.0") } else { ("float", "0.0f") }
}
