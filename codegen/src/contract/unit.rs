//! What packs and multiplies: vector registers, or AMX tiles.
//!
//! In: an instruction set and the dtype of the operands. Out: the seam of the template: how operands are packed, in panels of
//! [`Unit::rows`] rows of A and [`Unit::columns`] columns of B, and the product of two panels. Packed memory is counted in
//! numbers of four bytes.

use mdl_compiler::kernel::Parts;
use mdl_graph::DType;

use super::amx::{self, Tiles};
use super::micro::{Micro, PANEL_ROWS, Panel, Tile};
use crate::isa::Isa;

/// At most so long is a block of k: a panel of B, 32 KiB, and one of A stay in a 48 KiB level-1 cache.
const K_BLOCK: usize = 256;

pub(super) enum Unit {
    Vectors(Micro),
    Tiles(Tiles),
}

/// Which operand a panel is of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    A,
    B,
}

/// Held while products are made: the state that the unit needs of this thread.
pub(super) struct Held(bool);

impl Unit {
    pub(super) fn of(isa: Isa, dtype: DType, parts: Parts) -> Unit {
        match Tiles::of(isa, dtype, parts) {
            Some(tiles) => Unit::Tiles(tiles),
            None => Unit::Vectors(Micro::of(isa)),
        }
    }

    /// Rows of a panel of A.
    pub(super) fn rows(&self) -> usize {
        match self {
            Unit::Vectors(_) => PANEL_ROWS,
            Unit::Tiles(_) => amx::PANEL,
        }
    }

    /// Columns of a panel of B; half of them can be asked for.
    pub(super) fn columns(&self) -> usize {
        match self {
            Unit::Vectors(micro) => micro.panel,
            Unit::Tiles(_) => amx::PANEL,
        }
    }

    /// The longest block of k.
    pub(super) fn depth(&self) -> usize {
        match self {
            Unit::Vectors(_) => K_BLOCK,
            Unit::Tiles(tiles) => tiles.depth(),
        }
    }

    /// Blocks of k, but the last, are multiples of this.
    pub(super) fn depth_step(&self) -> usize {
        match self {
            Unit::Vectors(_) => 1,
            Unit::Tiles(_) => amx::CHUNK,
        }
    }

    /// What a row or a column takes for a block of k.
    pub(super) fn numbers(&self, depth: usize) -> usize {
        match self {
            Unit::Vectors(_) => depth,
            Unit::Tiles(tiles) => tiles.numbers(depth),
        }
    }

    /// Whether B may be read where it lies, if it lies so.
    pub(super) fn reads_in_place(&self, dtype: DType) -> bool {
        matches!(self, Unit::Vectors(_)) && dtype == DType::F32
    }

    /// Prepares this thread for products, until what is returned is dropped.
    ///
    /// # Safety
    /// The machine has the instruction set, and no other is held by this thread.
    pub(super) unsafe fn hold(&self) -> Held {
        let tiles = matches!(self, Unit::Tiles(_));
        if tiles {
            // SAFETY: the caller's promise.
            unsafe { amx::configure() };
        }
        Held(tiles)
    }

    /// Packs whole panels, the last filled with zeros.
    ///
    /// # Safety
    /// Every `from + rows[i] + k[j]`, elements of `dtype`, may be read; `out` has room for whole panels; the machine has the
    /// instruction set.
    pub(super) unsafe fn pack(
        &self,
        operand: Operand,
        dtype: DType,
        out: *mut f32,
        from: *const u8,
        rows: &[i64],
        k: &[i64],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Unit::Tiles(tiles) => tiles.pack(operand, out, from, rows, k),
                Unit::Vectors(micro) => {
                    let width = if operand == Operand::A { PANEL_ROWS } else { micro.panel };
                    match dtype {
                        DType::BF16 => (micro.pack_bf16)(out, width, from.cast(), rows, k),
                        DType::F16 => (micro.pack_f16)(out, width, from.cast(), rows, k),
                        _ => (micro.pack_f32)(out, width, from.cast(), rows, k),
                    }
                }
            }
        }
    }

    /// `height` rows of a packed panel of A by a panel of B, or its first half.
    ///
    /// # Safety
    /// The panels hold `depth` of k, as `pack` leaves them; the tile has `height` rows of half a panel or a whole one; `hold` is held.
    pub(super) unsafe fn multiply(&self, height: usize, half: bool, depth: usize, a: *const f32, b: Panel, to: Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Unit::Vectors(micro) => {
                    micro.columns(height, half, depth, Panel { from: a, step: PANEL_ROWS }, b, to);
                }
                Unit::Tiles(tiles) => tiles.multiply(height, half, depth, a.cast(), b.from.cast(), to),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.0 {
            // SAFETY: this thread has configured its tiles, so the machine has them.
            unsafe { amx::release() };
        }
    }
}
