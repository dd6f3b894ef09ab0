//! Prefix sums and top-k: sequential along one axis, split over the others.

use std::cmp::Ordering;

use mdl_compiler::kernel::{PairDim, Prefix, Top, Val};
use mdl_graph::{DType, Scalar};

use crate::memory::{self, Buffers};

/// Larger first; NaN counts as the smallest, and -0 equals 0.
pub(crate) fn before(x: Scalar, y: Scalar) -> Ordering {
    match (x, y) {
        (Scalar::Int(x), Scalar::Int(y)) => y.cmp(&x),
        _ => {
            let (x, y) = (x.as_f64(), y.as_f64());
            y.partial_cmp(&x).unwrap_or_else(|| x.is_nan().cmp(&y.is_nan()))
        }
    }
}

/// The start of outer row `row` in both operands.
fn start(outer: &[PairDim], row: u64, x: i64, out: i64) -> (i64, i64) {
    let (mut x, mut out, mut rest) = (x, out, row);
    for dim in outer.iter().rev() {
        let at = (rest % dim.extent) as i64;
        rest /= dim.extent;
        x += dim.x * at;
        out += dim.out * at;
    }
    (x, out)
}

pub(crate) fn rows(outer: &[PairDim]) -> u64 {
    outer.iter().map(|dim| dim.extent).product()
}

/// Prefix sums of the outer rows `lo..hi`.
///
/// # Safety
/// The kernel is verified and `bufs` are its buffers, of these dtypes.
pub(crate) unsafe fn prefix(prefix: &Prefix, dtype: DType, bufs: Buffers<'_>, lo: u64, hi: u64) {
    let (x, out) = (bufs.base(prefix.x.buf.0 as usize), bufs.base(prefix.out.buf.0 as usize));
    let n = prefix.along.extent as i64;
    for row in lo..hi {
        let (from, to) = start(&prefix.outer, row, prefix.x.base, prefix.out.base);
        let mut sum = Scalar::Int(0).cast(Val::dtype_of(dtype));
        for step in 0..n {
            let i = if prefix.reverse { n - 1 - step } else { step };
            // SAFETY: `verify` checked both strided blocks.
            let value = unsafe { memory::read(x, dtype, from + prefix.along.x * i) };
            sum = match (sum, value) {
                (Scalar::Float(sum), _) if dtype == DType::F64 => Scalar::Float(sum + value.as_f64()),
                (Scalar::Float(sum), _) => Scalar::Float(f64::from(sum as f32 + value.as_f64() as f32)),
                (Scalar::Int(sum), Scalar::Int(value)) => Scalar::Int(sum.wrapping_add(value)),
                (Scalar::Bool(sum), _) => Scalar::Bool(sum || value.as_f64() != 0.0),
                (Scalar::Int(_), _) => sum,
            };
            // SAFETY: as above.
            unsafe { memory::write(out, dtype, to + prefix.along.out * i, sum) };
        }
    }
}

/// Positions of the largest, of the outer rows `lo..hi`. Keys are read once and sorted with their positions.
///
/// # Safety
/// As for [`prefix`]; `scratch` holds `scratch_bytes(top)` bytes, aligned to 16.
pub(crate) unsafe fn top(top: &Top, dtype: DType, bufs: Buffers<'_>, lo: u64, hi: u64, scratch: *mut u8) {
    let (x, out) = (bufs.base(top.x.buf.0 as usize), bufs.base(top.out.buf.0 as usize));
    let n = top.along.extent as usize;
    // SAFETY: the caller gives this much scratch, and nobody else uses it now.
    let keys = unsafe { std::slice::from_raw_parts_mut(scratch.cast::<(u64, u32)>(), n) };
    for row in lo..hi {
        let (from, to) = start(&top.outer, row, top.x.base, top.out.base);
        for (i, slot) in keys.iter_mut().enumerate() {
            // SAFETY: `verify` checked the block.
            *slot = (descending(unsafe { memory::read(x, dtype, from + top.along.x * i as i64) }), i as u32);
        }
        let k = top.k as usize;
        // Selecting first makes a small k cheap; pairs are distinct, so an unstable sort gives the stable order.
        if k < n && k > 0 {
            keys.select_nth_unstable(k - 1);
        }
        keys[..k].sort_unstable();
        for (rank, (_, i)) in keys[..k].iter().enumerate() {
            let value = Scalar::Int(i64::from(*i));
            // SAFETY: `verify` checked the block.
            unsafe { memory::write(out, DType::I32, to + top.along.out * rank as i64, value) };
        }
    }
}

pub(crate) fn scratch_bytes(top: &Top) -> u64 {
    top.along.extent * size_of::<(u64, u32)>() as u64
}

/// A key whose ascending order is the descending order of numbers: NaN last, -0 and 0 equal.
fn descending(value: Scalar) -> u64 {
    let bits = match value {
        Scalar::Float(value) if value.is_nan() => return u64::MAX,
        Scalar::Float(value) => {
            let bits = (value + 0.0).to_bits();
            if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
        }
        Scalar::Int(value) => value as u64 ^ 1 << 63,
        Scalar::Bool(value) => u64::from(value),
    };
    !bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_like_numbers() {
        let order = [f64::INFINITY, 1.5, 1e-310, 0.0, -1e-310, -2.0, f64::NEG_INFINITY, f64::NAN];
        let keys: Vec<u64> = order.iter().map(|value| descending(Scalar::Float(*value))).collect();
        assert!(keys.is_sorted_by(|x, y| x < y), "{keys:?}");
        assert_eq!(descending(Scalar::Float(-0.0)), descending(Scalar::Float(0.0)));
        assert!(descending(Scalar::Int(3)) < descending(Scalar::Int(-3)));
        for pair in order.windows(2) {
            assert_eq!(before(Scalar::Float(pair[0]), Scalar::Float(pair[1])), Ordering::Less);
        }
    }
}
