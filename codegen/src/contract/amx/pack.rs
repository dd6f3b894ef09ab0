//! Packing for tiles: `out[panel][chunk of k][product of parts][half of the panel]` is a tile of A, `[row][k]`, or of B,
//! `[pair of k][column][k of the pair]`.
//!
//! A tile is read as 16 rows of 16 pairs, or as 16 pairs of 16 rows, whichever way memory runs, and turned around where the
//! operand wants the other.

use half::bf16;

use super::super::side::adjacent;
use super::super::unit::Operand;
use super::{CHUNK, FINITE, FIRST, N_PARTS, PANEL, SECOND, THIRD, TILE, TILE_NUMBERS};

/// Pairs of numbers: 16 in each of 16 lines.
type Pairs = [[u32; TILE]; TILE];

/// What operands are stored as.
pub(super) trait Source: Copy {
    const ZERO: Self;
    /// The bits of a part.
    fn part<const PART: usize>(self) -> u16;
}

impl Source for bf16 {
    const ZERO: bf16 = bf16::ZERO;

    #[inline(always)]
    fn part<const PART: usize>(self) -> u16 {
        self.to_bits()
    }
}

impl Source for f32 {
    const ZERO: f32 = 0.0;

    #[inline(always)]
    fn part<const PART: usize>(self) -> u16 {
        // Of what is infinite or no number only the first part is left.
        let bits = if PART == FIRST || self.to_bits() & INFINITE != INFINITE { self.to_bits() } else { 0 };
        let mut rest = f32::from_bits(bits);
        if PART == SECOND || PART == THIRD {
            for _ in 0..PART {
                rest -= f32::from_bits(nearest(rest) << 16);
            }
        }
        nearest(rest) as u16
    }
}

const INFINITE: u32 = 0x7f80_0000;

/// The bits of the nearest `bf16`, the even one of two, or of the largest: what is finite stays so. It takes no branch, so that
/// loops over it become vectors.
#[inline(always)]
fn nearest(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet = if bits & !(1 << 31) > INFINITE { 0x40_0000 } else { 0 };
    let kept = if rounded & INFINITE == INFINITE { bits | quiet } else { rounded };
    // A NaN whose last bits are all set rounds into another exponent.
    (if quiet == 0 { kept } else { bits | quiet }) >> 16
}

/// Packs `rows` by `k` elements at `from + row + k`. The second tile of a last panel of at most 16 rows is left as it is: nothing
/// reads it.
///
/// # Safety
/// Every `from + rows[i] + k[j]` may be read; `out` has room for whole panels; the machine has AVX-512.
pub(super) unsafe fn panels<T: Source>(
    operand: Operand,
    parts: &[(usize, usize)],
    out: *mut u32,
    from: *const T,
    rows: &[i64],
    k: &[i64],
) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        wide(operand, parts, out, from, rows, k);
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        plain(operand, parts, out, from, rows, k);
    }
}

/// # Safety
/// As `panels`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn wide<T: Source>(
    operand: Operand,
    parts: &[(usize, usize)],
    out: *mut u32,
    from: *const T,
    rows: &[i64],
    k: &[i64],
) {
    // SAFETY: the caller's promise.
    unsafe { plain(operand, parts, out, from, rows, k) }
}

#[inline(always)]
unsafe fn plain<T: Source>(
    operand: Operand,
    parts: &[(usize, usize)],
    out: *mut u32,
    from: *const T,
    rows: &[i64],
    k: &[i64],
) {
    let wanted = |at: &(usize, usize)| if operand == Operand::A { at.0 } else { at.1 };
    let is_wanted = |part: &usize| parts.iter().any(|at| wanted(at) == *part);
    let k_runs = adjacent(k);
    let mut to = out;
    for panel in rows.chunks(PANEL) {
        let rows_run = adjacent(panel);
        for chunk in k.chunks(CHUNK) {
            for (half, rows) in panel.chunks(TILE).enumerate() {
                for part in (0..N_PARTS).filter(is_wanted) {
                    let runs = (rows_run, k_runs);
                    // SAFETY: the caller's promise.
                    let (pairs, by_row) = unsafe {
                        match part {
                            SECOND => tile::<T, SECOND>(from, rows, chunk, runs),
                            THIRD => tile::<T, THIRD>(from, rows, chunk, runs),
                            FINITE => tile::<T, FINITE>(from, rows, chunk, runs),
                            _ => tile::<T, FIRST>(from, rows, chunk, runs),
                        }
                    };
                    let pairs = if by_row == (operand == Operand::A) { pairs } else { turned(pairs) };
                    for (at, _) in parts.iter().enumerate().filter(|(_, at)| wanted(at) == part) {
                        // SAFETY: the tile's place in the panel.
                        unsafe { to.add((2 * at + half) * TILE_NUMBERS).cast::<Pairs>().write_unaligned(pairs) };
                    }
                }
            }
            to = to.wrapping_add(2 * parts.len() * TILE_NUMBERS);
        }
    }
}

/// One tile, zero where nothing is read, and whether it is `[row][pair]`: `runs` says whether rows, and k, lie side by side.
#[inline(always)]
unsafe fn tile<T: Source, const PART: usize>(
    from: *const T,
    rows: &[i64],
    k: &[i64],
    (rows_run, k_runs): (bool, bool),
) -> (Pairs, bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if rows_run && (!k_runs || rows.len() == TILE) {
            (by_pair::<T, PART>(from.offset(rows[0] as isize), rows.len(), k), false)
        } else if k_runs {
            (by_row::<T, PART>(from.offset(k[0] as isize), rows, k.len()), true)
        } else {
            (one_by_one::<T, PART>(from, rows, k), true)
        }
    }
}

#[inline(always)]
fn pair<T: Source, const PART: usize>(even: T, odd: T) -> u32 {
    u32::from(even.part::<PART>()) | u32::from(odd.part::<PART>()) << 16
}

/// Rows that are runs along k: `[row][pair]`.
#[inline(always)]
unsafe fn by_row<T: Source, const PART: usize>(from: *const T, rows: &[i64], depth: usize) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    for (to, row) in pairs.iter_mut().zip(rows) {
        let mut line = [T::ZERO; CHUNK];
        // SAFETY: the caller's promise.
        unsafe {
            let at = from.offset(*row as isize);
            if depth == CHUNK {
                line = at.cast::<[T; CHUNK]>().read_unaligned();
            } else {
                std::ptr::copy_nonoverlapping(at, line.as_mut_ptr(), depth);
            }
        }
        for (j, to) in to.iter_mut().enumerate() {
            *to = pair::<T, PART>(line[2 * j], line[2 * j + 1]);
        }
    }
    pairs
}

/// Rows that lie side by side: `[pair][row]`.
#[inline(always)]
unsafe fn by_pair<T: Source, const PART: usize>(from: *const T, height: usize, k: &[i64]) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    let line = |at: &i64| -> [T; TILE] {
        // SAFETY: the caller's promise.
        unsafe {
            let at = from.offset(*at as isize);
            if height == TILE {
                return at.cast::<[T; TILE]>().read_unaligned();
            }
            let mut line = [T::ZERO; TILE];
            std::ptr::copy_nonoverlapping(at, line.as_mut_ptr(), height);
            line
        }
    };
    for (to, both) in pairs.iter_mut().zip(k.chunks(2)) {
        let even = line(&both[0]);
        let odd = both.get(1).map_or([T::ZERO; TILE], line);
        for (i, to) in to.iter_mut().enumerate() {
            *to = pair::<T, PART>(even[i], odd[i]);
        }
    }
    pairs
}

/// `[row][pair]`, for any order.
unsafe fn one_by_one<T: Source, const PART: usize>(from: *const T, rows: &[i64], k: &[i64]) -> Pairs {
    let mut pairs = [[0; TILE]; TILE];
    for (line, row) in pairs.iter_mut().zip(rows) {
        // SAFETY: the caller's promise.
        let read = |at: &i64| unsafe { from.offset((row + at) as isize).read() };
        for (to, both) in line.iter_mut().zip(k.chunks(2)) {
            *to = pair::<T, PART>(read(&both[0]), both.get(1).map_or(T::ZERO, read));
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
