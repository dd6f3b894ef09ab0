//! Products on AMX: 32 rows by 32 columns of sums in four tile registers, operands as bf16.
//!
//! In: operands in `bf16`, or in `f32` to be multiplied in parts. A panel is 32 rows of A or 32 columns of B as pairs of tiles, one pair for each 32 of k: a
//! tile of A holds 16 rows of 32 numbers, a tile of B 16 pairs of k, each with the pair of each of 16 columns side by side, as the unit
//! wants them. What is missing at the end of k is zero in both; rows that are missing are computed and left out.
//!
//! The unit sums even and odd k of a tile apart, takes and leaves subnormal numbers as zero, and rounds to the nearest; the sums are
//! `f32` and stay in tiles for a block of k. Tile registers are state of a thread: [`configure`] before products, [`release`] after.
//! The blocks of k, and so the bits, depend on k alone.
//!
//! A number in `f32` is a sum of two or three in `bf16`, each the rest of those before it, and a product is the sum of those of their
//! products that matter, the smallest first. To the tiles they are more of k: each chunk is packed as often as there are products.

mod pack;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;

use half::bf16;
use mdl_compiler::kernel::Parts;
use mdl_graph::DType;

use super::micro::Tile;
use super::unit::Operand;
use crate::isa::Isa;

/// Rows or columns of a panel: two tiles.
pub(super) const PANEL: usize = 2 * TILE;
/// Rows of a tile.
const TILE: usize = 16;
/// Numbers of k in a row of a tile.
pub(super) const CHUNK: usize = 32;
/// Four bytes that each of two tiles of a panel holds.
const TILE_NUMBERS: usize = TILE * CHUNK / 2;
/// The longest block of k, so that a panel of B, 32 KiB, stays in a first-level cache while panels of A pass by; sums are
/// stored and loaded once a block.
const DEPTH: usize = 512;

/// How AMX makes the products of a dtype.
pub(super) struct Tiles {
    dtype: DType,
    /// Which part of A and which of B each packed chunk of k holds.
    parts: &'static [(usize, usize)],
}

/// The parts of a number, the largest first; and the largest once more, or zero where it is not finite: times a part that is
/// zero it would be no number.
const FIRST: usize = 0;
const SECOND: usize = 1;
const THIRD: usize = 2;
const FINITE: usize = 3;
const N_PARTS: usize = 4;

const WHOLE: &[(usize, usize)] = &[(FIRST, FIRST)];
const THREE: &[(usize, usize)] = &[(SECOND, FINITE), (FINITE, SECOND), (FIRST, FIRST)];
const SIX: &[(usize, usize)] =
    &[(THIRD, FINITE), (SECOND, SECOND), (FINITE, THIRD), (SECOND, FINITE), (FINITE, SECOND), (FIRST, FIRST)];

impl Tiles {
    /// `None` where vectors make them.
    pub(super) fn of(isa: Isa, dtype: DType, parts: Parts) -> Option<Tiles> {
        let parts = match (dtype, parts) {
            (DType::BF16, _) => WHOLE,
            (DType::F32, Parts::Three) => THREE,
            (DType::F32, Parts::Six) => SIX,
            _ => return None,
        };
        (isa == Isa::Amx).then_some(Tiles { dtype, parts })
    }

    pub(super) fn depth(&self) -> usize {
        DEPTH / self.parts.len() / CHUNK * CHUNK
    }

    fn chunks(&self, depth: usize) -> usize {
        depth.div_ceil(CHUNK) * self.parts.len()
    }

    /// What a row or a column takes for a block of k.
    pub(super) fn numbers(&self, depth: usize) -> usize {
        self.chunks(depth) * CHUNK / 2
    }

    /// # Safety
    /// See `Unit::pack`.
    pub(super) unsafe fn pack(&self, operand: Operand, out: *mut f32, from: *const u8, rows: &[i64], k: &[i64]) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                DType::F32 => pack::panels::<f32>(operand, self.parts, out.cast(), from.cast(), rows, k),
                _ => pack::panels::<bf16>(operand, self.parts, out.cast(), from.cast(), rows, k),
            }
        }
    }

    /// # Safety
    /// See `Unit::multiply`.
    pub(super) unsafe fn multiply(
        &self,
        height: usize,
        half: bool,
        depth: usize,
        a: *const u8,
        b: *const u8,
        to: Tile,
    ) {
        let chunks = self.chunks(depth);
        // SAFETY: the caller's promise; tiles are stored whole only where all their rows are the product's.
        unsafe {
            if height.is_multiple_of(TILE) {
                return product(height > TILE, !half, chunks, a, b, to);
            }
            let mut whole = Whole([0.0; PANEL * PANEL]);
            let (own, width) = (whole.0.as_mut_ptr(), if half { TILE } else { PANEL });
            let line = |row: usize| (to.to.add(row * to.length), own.add(row * PANEL));
            if to.more {
                (0..height).map(line).for_each(|(to, own)| std::ptr::copy_nonoverlapping(to, own, width));
            }
            product(height > TILE, !half, chunks, a, b, Tile { to: own, length: PANEL, more: to.more });
            (0..height).map(line).for_each(|(to, own)| std::ptr::copy_nonoverlapping(own, to, width));
        }
    }
}

/// Four tiles of sums, of which the product has not all rows.
#[repr(align(64))]
struct Whole([f32; PANEL * PANEL]);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use tiles::product;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use tiles::{configure, release};

/// Elsewhere there is no `Isa::Amx`, so nothing asks for tiles.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod absent {
    use super::Tile;

    pub(in crate::contract) unsafe fn configure() {
        mdl_graph::bug!("tiles on a machine without them")
    }

    pub(in crate::contract) unsafe fn release() {}

    pub(super) unsafe fn product(_: bool, _: bool, _: usize, _: *const u8, _: *const u8, _: Tile) {
        mdl_graph::bug!("tiles on a machine without them")
    }
}
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
use absent::product;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) use absent::{configure, release};
