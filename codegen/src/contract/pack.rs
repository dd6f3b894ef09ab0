//! Packing: a strided block as panels, `out[panel][k][row in panel]`, the last panel filled with zeros.

use half::{bf16, f16};

use super::micro::PANEL_ROWS;
use super::side::adjacent;

/// What operands are stored as.
pub(super) trait Stored: Copy {
    fn widen(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        crate::strip::widen(self)
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Packs `rows` by `k` elements at `from + row + k`, `width` rows to a panel. Compiled for each instruction set.
///
/// # Safety
/// Every `from + rows[i] + k[j]` may be read; `out` has room for whole panels.
#[inline(always)]
pub(super) unsafe fn panels<T: Stored>(out: *mut f32, width: usize, from: *const T, rows: &[i64], k: &[i64]) {
    let k_runs = adjacent(k);
    for (at, panel) in rows.chunks(width).enumerate() {
        let order = (adjacent(panel), k_runs);
        // SAFETY: panel `at` starts here; its `width · k` elements are ours.
        let to = unsafe { out.add(at * width * k.len()) };
        let whole = panel.len() == width;
        // SAFETY: the caller's promise about reads; writes stay in the panel.
        unsafe {
            match (order, width) {
                ((true, _), 32) if whole => rows_adjacent::<T, 32>(to, from.offset(panel[0] as isize), k),
                ((true, _), PANEL_ROWS) if whole => {
                    rows_adjacent::<T, PANEL_ROWS>(to, from.offset(panel[0] as isize), k);
                }
                ((true, _), 16) if whole => rows_adjacent::<T, 16>(to, from.offset(panel[0] as isize), k),
                ((true, _), 8) if whole => rows_adjacent::<T, 8>(to, from.offset(panel[0] as isize), k),
                ((false, true), _) if whole && width.is_multiple_of(4) => {
                    k_adjacent(to, width, from.offset(k[0] as isize), panel, k.len())
                }
                _ => any(to, width, from, panel, k),
            }
        }
    }
}

/// Whole rows of a panel are runs in memory: they are copied, each read before it is written, so that both are vectors.
#[inline(always)]
unsafe fn rows_adjacent<T: Stored, const W: usize>(to: *mut f32, from: *const T, k: &[i64]) {
    for (j, offset) in k.iter().enumerate() {
        // SAFETY: see `panels`.
        unsafe {
            let line = widened(from.offset(*offset as isize).cast::<[T; W]>().read_unaligned());
            to.add(j * W).cast::<[f32; W]>().write_unaligned(line);
        }
    }
}

/// A loop, which becomes vectors: `map` of an array is a call.
#[inline(always)]
fn widened<T: Stored, const W: usize>(line: [T; W]) -> [f32; W] {
    let mut wide = [0.0; W];
    for (to, from) in wide.iter_mut().zip(line) {
        *to = from.widen();
    }
    wide
}

/// Runs along k: transposed in blocks of 4 by 4, which stay in registers.
#[inline(always)]
unsafe fn k_adjacent<T: Stored>(to: *mut f32, width: usize, from: *const T, rows: &[i64], depth: usize) {
    const B: usize = 4;
    let whole = depth - depth % B;
    for (i, four) in rows.chunks_exact(B).enumerate() {
        for j0 in (0..whole).step_by(B) {
            // SAFETY: see `panels`.
            unsafe {
                let line = |row: i64| widened(from.offset(row as isize).add(j0).cast::<[T; B]>().read_unaligned());
                let block = transposed([line(four[0]), line(four[1]), line(four[2]), line(four[3])]);
                for (j, line) in block.into_iter().enumerate() {
                    to.add((j0 + j) * width + i * B).cast::<[f32; B]>().write_unaligned(line);
                }
            }
        }
        for j in whole..depth {
            for (n, row) in four.iter().enumerate() {
                // SAFETY: see `panels`.
                unsafe { to.add(j * width + i * B + n).write(from.offset(*row as isize).add(j).read().widen()) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    use std::arch::x86_64::*;
    // SAFETY: SSE is in every x86-64; the arrays are four registers of four floats.
    unsafe {
        let [a, b, c, d] = std::mem::transmute::<[[f32; 4]; 4], [__m128; 4]>(rows);
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        std::mem::transmute::<[__m128; 4], [[f32; 4]; 4]>([
            _mm_movelh_ps(ab, cd),
            _mm_movehl_ps(cd, ab),
            _mm_movelh_ps(ab_high, cd_high),
            _mm_movehl_ps(cd_high, ab_high),
        ])
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    std::array::from_fn(|j| std::array::from_fn(|i| rows[i][j]))
}

unsafe fn any<T: Stored>(to: *mut f32, width: usize, from: *const T, rows: &[i64], k: &[i64]) {
    for (j, offset) in k.iter().enumerate() {
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: see `panels`.
            unsafe { to.add(j * width + i).write(from.offset((row + offset) as isize).read().widen()) };
        }
        for i in rows.len()..width {
            // SAFETY: see `panels`.
            unsafe { to.add(j * width + i).write(0.0) };
        }
    }
}
