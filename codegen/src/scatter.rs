//! Scatter: rows added or put at positions, duplicates in order. Tasks own ranges of the result, so that nothing is raced for.

use mdl_compiler::kernel::{Scatter, ScatterDim, Val};
use mdl_graph::{DType, Scalar};

use crate::memory::{self, Buffers};

/// Into how many ranges the scattered axis is cut for each kept point: every task reads the whole index.
const RANGES: u64 = 8;

fn count(dims: &[ScatterDim]) -> u64 {
    dims.iter().map(|dim| dim.extent).product()
}

pub(crate) fn tasks(scatter: &Scatter) -> u64 {
    count(&scatter.keep) * RANGES.min(scatter.extent)
}

pub(crate) fn work(scatter: &Scatter) -> u64 {
    count(&scatter.keep) * count(&scatter.inner) * (scatter.extent + count(&scatter.points))
}

/// Offsets in rows, index and out of a flat position.
fn offsets(dims: &[ScatterDim], flat: u64) -> (i64, i64, i64) {
    let (mut rows, mut index, mut out, mut rest) = (0, 0, 0, flat);
    for dim in dims.iter().rev() {
        let at = (rest % dim.extent) as i64;
        rest /= dim.extent;
        rows += at * dim.rows;
        index += at * dim.index;
        out += at * dim.out;
    }
    (rows, index, out)
}

/// Runs the tasks `lo..hi`: clears each range, or makes it what the base is, then goes through all points.
///
/// # Safety
/// The kernel is verified, and `bufs` are its buffers, of these dtypes.
pub(crate) unsafe fn run(scatter: &Scatter, dtype: DType, index_dtype: DType, bufs: Buffers<'_>, lo: u64, hi: u64) {
    let ranges = RANGES.min(scatter.extent);
    let (rows, out) = (bufs.base(scatter.rows.buf.0 as usize), bufs.base(scatter.out.buf.0 as usize));
    let index = bufs.base(scatter.index.buf.0 as usize);
    let base = scatter.base.map(|base| (bufs.base(base.buf.0 as usize), base.base - scatter.out.base));
    let is_there = base.is_some_and(|(from, moved)| from == out && moved == 0);
    let (n_points, n_inner) = (count(&scatter.points), count(&scatter.inner));
    let run = &scatter.inner;
    let contiguous = dtype == DType::F32
        && run
            .iter()
            .rev()
            .scan(1i64, |stride, dim| {
                let fits = dim.rows == *stride && dim.out == *stride;
                *stride *= dim.extent as i64;
                Some(fits)
            })
            .all(|fits| fits);
    for task in lo..hi {
        let (keep_rows, keep_index, keep_out) = offsets(&scatter.keep, task / ranges);
        let range = task % ranges;
        let first = (scatter.extent * range / ranges) as i64;
        let last = (scatter.extent * (range + 1) / ranges) as i64;
        let target = |at: i64| scatter.out.base + keep_out + scatter.stride * at;
        // Nothing is to be done where the base is the result's own memory.
        for at in (first..last).filter(|_| !is_there) {
            if let Some((from, moved)) = base {
                for inner in 0..n_inner {
                    let to = target(at) + offsets(&scatter.inner, inner).2;
                    // SAFETY: `verify` checked the whole blocks of base and out.
                    unsafe { memory::write(out, dtype, to, memory::read(from, dtype, to + moved)) };
                }
                continue;
            }
            if contiguous {
                // SAFETY: `verify` checked the whole block of out; a run of zero bits is a run of zeros.
                unsafe { out.cast::<f32>().offset(target(at) as isize).write_bytes(0, n_inner as usize) };
                continue;
            }
            for inner in 0..n_inner {
                let to = target(at) + offsets(&scatter.inner, inner).2;
                // SAFETY: `verify` checked the whole block of out.
                unsafe { memory::write(out, dtype, to, Scalar::Int(0)) };
            }
        }
        for point in 0..n_points {
            // Points of one dimension, and those side by side, need no division.
            let point_index = match &scatter.points[..] {
                [only] => point as i64 * only.index,
                all => offsets(all, point).1,
            };
            // SAFETY: `verify` checked the whole block of the index.
            let at = unsafe { memory::read(index, index_dtype, scatter.index.base + keep_index + point_index) };
            let Scalar::Int(at) = at else { continue };
            if at < first || at >= last {
                continue;
            }
            let point_rows = offsets(&scatter.points, point).0;
            let from = scatter.rows.base + keep_rows + point_rows;
            if contiguous {
                // SAFETY: both runs of `n_inner` numbers were checked by `verify`; rows and out do not overlap.
                unsafe {
                    let to =
                        std::slice::from_raw_parts_mut(out.cast::<f32>().offset(target(at) as isize), n_inner as usize);
                    let from = std::slice::from_raw_parts(rows.cast::<f32>().offset(from as isize), n_inner as usize);
                    if scatter.put {
                        to.copy_from_slice(from);
                    } else {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                    }
                }
                continue;
            }
            for inner in 0..n_inner {
                let (inner_rows, _, inner_out) = offsets(&scatter.inner, inner);
                let to = target(at) + inner_out;
                // SAFETY: as above.
                unsafe {
                    let value = memory::read(rows, dtype, from + inner_rows);
                    let value = if scatter.put { value } else { add(dtype, memory::read(out, dtype, to), value) };
                    memory::write(out, dtype, to, value);
                }
            }
        }
    }
}

fn add(dtype: DType, x: Scalar, y: Scalar) -> Scalar {
    match (x, y) {
        (Scalar::Int(x), Scalar::Int(y)) => Scalar::Int(x.wrapping_add(y)),
        (Scalar::Bool(x), Scalar::Bool(y)) => Scalar::Bool(x || y),
        _ if Val::dtype_of(dtype) == DType::F32 => Scalar::Float(f64::from(x.as_f64() as f32 + y.as_f64() as f32)),
        _ => Scalar::Float(x.as_f64() + y.as_f64()),
    }
}
