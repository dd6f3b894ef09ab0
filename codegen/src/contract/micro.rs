//! The innermost product: up to 12 rows of A by one panel of B, in registers, for each instruction set.
//!
//! `to[i][j] (+)= Σ_k a[i][k] · b[k][j]`: accumulators start at zero, one chain of multiply-adds over k for each element,
//! added to what is there when `more`. A panel is two vectors wide; its first half alone can be asked for.

use super::pack::{Stored, panels};
use super::side::prefetch;
use crate::isa::Isa;

/// Rows of A in a panel. With two vectors of B, AVX-512 holds all of them in its registers, AVX2 half.
pub(crate) const PANEL_ROWS: usize = 12;

/// Numbers that lie side by side at each k: the first, and from one k to the next.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    pub(crate) from: *const f32,
    pub(crate) step: usize,
}

/// A tile of the product: its first number, the length of a row, and whether to add to what is there.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) to: *mut f32,
    pub(crate) length: usize,
    pub(crate) more: bool,
}

/// A tile in registers, A's rows side by side, `a[k][row]`: (depth, a, from one k to the next, b, tile).
type Columns = unsafe fn(usize, *const f32, usize, Panel, Tile);
/// The same, A from rows that are contiguous along k.
type Rows = unsafe fn(usize, &[*const f32; PANEL_ROWS], Panel, Tile);
/// Packs panels: (out, width of a panel, from, rows, k). See [`panels`].
pub(crate) type Pack<T> = unsafe fn(*mut f32, usize, *const T, &[i64], &[i64]);

/// The kernels of one instruction set.
pub(crate) struct Micro {
    /// Columns of a panel of B.
    pub(crate) panel: usize,
    /// By height - 1 and by half or whole panel; as many rows as the registers hold, which divide `PANEL_ROWS`.
    columns: &'static [[Columns; 2]],
    rows: &'static [[Rows; 2]],
    pub(crate) pack_f32: Pack<f32>,
    pub(crate) pack_bf16: Pack<half::bf16>,
    pub(crate) pack_f16: Pack<half::f16>,
}

impl Micro {
    pub(crate) fn of(isa: Isa) -> Micro {
        match isa {
            Isa::Baseline => baseline::MICRO,
            Isa::Avx2 => avx2::MICRO,
            Isa::Avx512 | Isa::Amx => avx512::MICRO,
        }
    }

    /// `height` rows of `a[k][row]`, packed or as they lie, by a panel of B or its first half: as many at a time as the registers
    /// hold.
    ///
    /// # Safety
    /// `a` and `b` have `depth` rows, the tile `height` rows of one vector or two; the machine has the instruction set.
    pub(crate) unsafe fn columns(&self, height: usize, half: bool, depth: usize, a: Panel, b: Panel, to: Tile) {
        for row in (0..height).step_by(self.columns.len()) {
            let rows = (height - row).min(self.columns.len());
            // SAFETY: the caller's promise.
            unsafe { self.columns[rows - 1][usize::from(!half)](depth, a.from.add(row), a.step, b, to.below(row)) };
        }
    }

    /// The same for rows that are contiguous along k, each from its head.
    ///
    /// # Safety
    /// As for `columns`.
    pub(crate) unsafe fn rows(&self, half: bool, depth: usize, heads: &[*const f32], b: Panel, to: Tile) {
        for (at, some) in heads.chunks(self.rows.len()).enumerate() {
            let mut heads = [std::ptr::null::<f32>(); PANEL_ROWS];
            heads[..some.len()].copy_from_slice(some);
            let to = to.below(at * self.rows.len());
            // SAFETY: the caller's promise.
            unsafe { self.rows[some.len() - 1][usize::from(!half)](depth, &heads, b, to) };
        }
    }
}

impl Tile {
    fn below(self, row: usize) -> Tile {
        Tile { to: self.to.wrapping_add(row * self.length), ..self }
    }
}

/// A vector of floats. The methods are instructions: they may only run where the instruction set is.
trait Vector: Copy {
    const LANES: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn splat(value: f32) -> Self;
    /// `self + x · y`.
    unsafe fn multiply_add(self, x: Self, y: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
}

/// # Safety
/// `a(k, i)` may be read for i < H and k < depth, `b` has `depth` rows of V vectors, the tile H rows of V vectors.
#[inline(always)]
unsafe fn tile<S: Vector, const H: usize, const V: usize>(
    depth: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: Panel,
    tile: Tile,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); V]; H];
        for i in 0..H {
            for v in 0..V {
                prefetch::<0>(tile.to.wrapping_add(i * tile.length + v * S::LANES).cast());
            }
        }
        for k in 0..depth {
            let mut columns = [S::zero(); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.from.add(k * b.step + v * S::LANES));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let value = S::splat(a(k, i).read());
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = sum.multiply_add(value, columns[v]);
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                let at = tile.to.add(i * tile.length + v * S::LANES);
                let sum = if tile.more { S::load(at).add(*sum) } else { *sum };
                sum.store(at);
            }
        }
    }
}

macro_rules! kernels {
    ($vector:ty, [$($height:literal)*] $(, $feature:literal)?) => {
        /// # Safety
        /// See `tile`; the machine has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn columns<const H: usize, const V: usize>(depth: usize, a: *const f32, step: usize, b: Panel, to: Tile) {
            // SAFETY: the caller's promise.
            unsafe { tile::<$vector, H, V>(depth, #[inline(always)] |k, i| a.add(k * step + i), b, to) }
        }

        /// # Safety
        /// See `tile`; the machine has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn rows<const H: usize, const V: usize>(depth: usize, a: &[*const f32; PANEL_ROWS], b: Panel, to: Tile) {
            let a = *a;
            // SAFETY: the caller's promise.
            unsafe { tile::<$vector, H, V>(depth, #[inline(always)] |k, i| a[i].add(k), b, to) }
        }

        /// # Safety
        /// See `panels`; the machine has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn pack<T: Stored>(out: *mut f32, width: usize, from: *const T, rows: &[i64], k: &[i64]) {
            // SAFETY: the caller's promise.
            unsafe { panels(out, width, from, rows, k) }
        }

        pub(crate) const MICRO: Micro = Micro {
            panel: 2 * <$vector>::LANES,
            pack_f32: pack::<f32>,
            pack_bf16: pack::<half::bf16>,
            pack_f16: pack::<half::f16>,
            columns: &[$([columns::<$height, 1>, columns::<$height, 2>]),*],
            rows: &[$([rows::<$height, 1>, rows::<$height, 2>]),*],
        };
    };
}

mod baseline {
    use super::*;

    /// Four lanes, which every architecture has; a product and a sum, each rounded.
    #[derive(Clone, Copy)]
    struct Four([f32; 4]);

    impl Vector for Four {
        const LANES: usize = 4;

        #[inline(always)]
        unsafe fn zero() -> Four {
            Four([0.0; 4])
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Four {
            // SAFETY: the caller's promise.
            Four(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Four {
            Four([value; 4])
        }

        #[inline(always)]
        unsafe fn multiply_add(self, x: Four, y: Four) -> Four {
            Four(std::array::from_fn(|i| self.0[i] + x.0[i] * y.0[i]))
        }

        #[inline(always)]
        unsafe fn add(self, other: Four) -> Four {
            Four(std::array::from_fn(|i| self.0[i] + other.0[i]))
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller's promise.
            unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
        }
    }

    kernels!(Four, [1 2 3 4]);
}

macro_rules! x86_vector {
    ($module:ident, $name:ident, $inner:ident, $lanes:literal, [$($height:literal)*], $feature:literal,
     $zero:ident, $load:ident, $splat:ident, $fma:ident, $add:ident, $store:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $module {
            use std::arch::x86_64::*;

            use super::*;

            #[derive(Clone, Copy)]
            struct $name($inner);

            // SAFETY (all methods): the caller is compiled for, and runs on, a machine with the feature.
            #[allow(clippy::undocumented_unsafe_blocks, reason = "stated once above")]
            impl Vector for $name {
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn zero() -> $name {
                    $name(unsafe { $zero() })
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> $name {
                    $name(unsafe { $load(from) })
                }

                #[inline(always)]
                unsafe fn splat(value: f32) -> $name {
                    $name(unsafe { $splat(value) })
                }

                #[inline(always)]
                unsafe fn multiply_add(self, x: $name, y: $name) -> $name {
                    $name(unsafe { $fma(x.0, y.0, self.0) })
                }

                #[inline(always)]
                unsafe fn add(self, other: $name) -> $name {
                    $name(unsafe { $add(self.0, other.0) })
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    unsafe { $store(to, self.0) }
                }
            }

            kernels!($name, [$($height)*], $feature);
        }
        #[cfg(not(target_arch = "x86_64"))]
        use baseline as $module;
    };
}

x86_vector!(
    avx2,
    Eight,
    __m256,
    8,
    [1 2 3 4 5 6],
    "avx2,fma",
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);
x86_vector!(
    avx512,
    Sixteen,
    __m512,
    16,
    [1 2 3 4 5 6 7 8 9 10 11 12],
    "avx512f",
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);
