//! One operand: where its elements are, and the lines that are wanted next.

use mdl_compiler::kernel::Operand;

use super::Rows;

/// One operand: its buffer and its offsets along its rows and along k.
pub(super) struct Side {
    pub(super) operand: Operand,
    pub(super) rows: Vec<i64>,
    pub(super) k: Vec<i64>,
    /// Every block of k is a run of stride 1.
    k_adjacent: bool,
    /// Rows are a run of stride 1, and so far apart in memory are one k and the next.
    pub(super) columns: Option<usize>,
}

/// What comes next: rows and k of an operand.
#[derive(Clone)]
pub(super) struct Ahead {
    pub(super) rows: Rows,
    pub(super) k: Rows,
}

impl Side {
    pub(super) fn new(operand: Operand, rows: &[(u64, i64)], k: &[(u64, i64)], depth: usize) -> Side {
        let (rows, k) = (offsets(rows), offsets(k));
        let step = k.get(1).map_or(0, |second| second - k[0]);
        let is_even = step >= 0 && k.windows(2).all(|pair| pair[1] - pair[0] == step);
        let columns = (is_even && adjacent(&rows)).then_some(step as usize);
        Side { operand, k_adjacent: k.chunks(depth).all(adjacent), columns, rows, k }
    }

    /// Asks for the lines of one part out of `parts` of a block, as runs in memory: no processor guesses by itself where the
    /// next run begins.
    pub(super) fn fetch(&self, base: *const u8, element: usize, ahead: &Ahead, part: usize, parts: usize) {
        if ahead.rows.is_empty() || ahead.k.is_empty() {
            return;
        }
        let share =
            |range: &Rows| range.start + range.len() * part / parts..range.start + range.len() * (part + 1) / parts;
        let run = |first: i64, length: usize| {
            let first = base.wrapping_offset(first as isize * element as isize);
            for offset in (0..length * element).step_by(64) {
                prefetch::<1>(first.wrapping_add(offset));
            }
        };
        if self.k_adjacent {
            for row in share(&ahead.rows) {
                run(self.rows[row] + self.k[ahead.k.start], ahead.k.len());
            }
        } else if self.columns.is_some_and(|step| step >= ahead.rows.len()) {
            for k in share(&ahead.k) {
                run(self.rows[ahead.rows.start] + self.k[k], ahead.rows.len());
            }
        }
    }
}

/// The offset of every point of some dimensions, the last fastest.
pub(crate) fn offsets(dims: &[(u64, i64)]) -> Vec<i64> {
    let mut all = vec![0i64];
    for (extent, stride) in dims {
        all = all.iter().flat_map(|base| (0..*extent as i64).map(move |at| base + at * stride)).collect();
    }
    all
}

pub(crate) fn adjacent(offsets: &[i64]) -> bool {
    offsets.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

/// Brings a line of cache to the first level or the second (`LEVEL` 0 or 1); a hint that never faults.
#[inline(always)]
pub(super) fn prefetch<const LEVEL: u8>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is in every x86-64, and touches no memory that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if LEVEL == 0 { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
