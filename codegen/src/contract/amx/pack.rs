//! Packing for tiles: `out[panel][chunk of k][half of the panel]` is a tile of A, `[row][k]`, or of B, `[pair of k][column][k of the pair]`.
//!
//! A tile is read as 16 rows of 16 pairs, or as 16 pairs of 16 rows, whichever way memory runs, and turned around where the
//! operand wants the other.

use half::bf16;

use super::super::side::adjacent;
use super::super::unit::Operand;
use super::{CHUNK, PANEL, TILE, TILE_NUMBERS};

/// Pairs of numbers: 16 in each of 16 lines.
type Pairs = [[u32; TILE]; TILE];

/// Packs `rows` by `k` elements at `from + row + k`. The second tile of a last panel of at most 16 rows is left as it is: nothing
/// reads it.
///
/// # Safety
/// Every `from + rows[i] + k[j]` may be read; `out` has room for whole panels; the machine has AVX-512.
pub(super) unsafe fn panels(operand: Operand, out: *mut u32, from: *const bf16, rows: &[i64], k: &[i64]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        wide(operand, out, from, rows, k);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        plain(operand, out, from, rows, k);
    }
}

/// # Safety
/// As `panels`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn wide(operand: Operand, out: *mut u32, from: *const bf16, rows: &[i64], k: &[i64]) {
    // SAFETY: the caller's promise.
    unsafe { plain(operand, out, from, rows, k) }
}

#[inline(always)]
unsafe fn plain(operand: Operand, out: *mut u32, from: *const bf16, rows: &[i64], k: &[i64]) {
    let k_runs = adjacent(k);
    let mut to = out;
    for panel in rows.chunks(PANEL) {
        let rows_run = adjacent(panel);
        for chunk in k.chunks(CHUNK) {
            for (half, rows) in panel.chunks(TILE).enumerate() {
                // SAFETY: the caller's promise; a tile of zeros is made whole whatever is read.
                let (pairs, by_row) = unsafe {
                    if rows_run && (!k_runs || rows.len() == TILE) {
                        (by_pair(from.offset(rows[0] as isize), rows.len(), chunk), false)
                    } else if k_runs {
                        (by_row(from.offset(chunk[0] as isize), rows, chunk.len()), true)
                    } else {
                        (one_by_one(from, rows, chunk), true)
                    }
                };
                let pairs = if by_row == (operand == Operand::A) { pairs } else { turned(pairs) };
                // SAFETY: the tile's place in the panel.
                unsafe { to.add(half * TILE_NUMBERS).cast::<Pairs>().write_unaligned(pairs) };
            }
            to = to.wrapping_add(2 * TILE_NUMBERS);
        }
    }
}

/// Rows that are runs along k: `[row][pair]`.
#[inline(always)]
unsafe fn by_row(from: *const bf16, rows: &[i64], depth: usize) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    for (line, row) in pairs.iter_mut().zip(rows) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = from.offset(*row as isize);
            if depth == CHUNK {
                *line = at.cast::<[u32; TILE]>().read_unaligned();
            } else {
                std::ptr::copy_nonoverlapping(at, line.as_mut_ptr().cast::<bf16>(), depth);
            }
        }
    }
    pairs
}

/// Rows that lie side by side: `[pair][row]`.
#[inline(always)]
unsafe fn by_pair(from: *const bf16, height: usize, k: &[i64]) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    let line = |at: &i64| -> [u16; TILE] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = from.offset(*at as isize).cast::<u16>();
            if height == TILE {
                return at.cast::<[u16; TILE]>().read_unaligned();
            }
            let mut line = [0; TILE];
            std::ptr::copy_nonoverlapping(at, line.as_mut_ptr(), height);
            line
        }
    };
    for (to, pair) in pairs.iter_mut().zip(k.chunks(2)) {
        let even = line(&pair[0]);
        let odd = pair.get(1).map_or([0; TILE], line);
        for (to, (even, odd)) in to.iter_mut().zip(even.into_iter().zip(odd)) {
            *to = u32::from(even) | u32::from(odd) << 16;
        }
    }
    pairs
}

/// `[row][pair]`, for any order.
unsafe fn one_by_one(from: *const bf16, rows: &[i64], k: &[i64]) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    for (line, row) in pairs.iter_mut().zip(rows) {
        for (j, at) in k.iter().enumerate() {
            // SAFETY: the caller's promise.
            let bits = unsafe { from.offset((row + at) as isize).read() }.to_bits();
            line[j / 2] |= u32::from(bits) << (16 * (j % 2));
        }
    }
    pairs
}

/// Rows become columns: neighbours are exchanged at distances of 1, 2, 4 and 8.
#[inline(always)]
fn turned(pairs: Pairs) -> Pairs {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `panels` is only called where AVX-512 is.
    unsafe {
        use std::arch::x86_64::*;
        let mut lines: [__m512i; TILE] = std::mem::transmute(pairs);
        let before = lines;
        for four in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| before[4 * four + i]);
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            lines[4 * four] = _mm512_unpacklo_epi64(ab, cd);
            lines[4 * four + 1] = _mm512_unpackhi_epi64(ab, cd);
            lines[4 * four + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            lines[4 * four + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        // Line `4 · four + i` holds, in each quarter q, column `4 q + i` of rows `4 · four` to `4 · four + 3`.
        let before = lines;
        for i in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|four| before[four + i]);
            let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
            let (ab_high, cd_high) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
            lines[i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
            lines[4 + i] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
            lines[8 + i] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
            lines[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
        }
        std::mem::transmute(lines)
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|j| std::array::from_fn(|i| pairs[i][j]))
}
