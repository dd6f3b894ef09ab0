//! The innermost product: up to 8 rows of A by one panel of B, in registers, for each instruction set.
//!
//! `to[i][j] (+)= Σ_k a[i][k] · b[k][j]`: accumulators start at zero, one chain of multiply-adds over k for each element,
//! added to what is there when `more`. A panel is two vectors wide; its first half alone can be asked for.

use crate::isa::Isa;

/// Rows of A at once: with two vectors of B, 16 accumulators, enough to hide the latency of a multiply-add.
pub(super) const PANEL_ROWS: usize = 8;

/// A from an interleaved panel, `a[k][8]`: (depth, a, b, to, row length of `to`, add).
pub(super) type Packed = unsafe fn(usize, *const f32, *const f32, *mut f32, usize, bool);
/// A from rows that are contiguous along k.
pub(super) type InPlace = unsafe fn(usize, &[*const f32; PANEL_ROWS], *const f32, *mut f32, usize, bool);

/// The kernels of one instruction set, by height - 1 and by half or whole panel.
pub(super) struct Micro {
    /// Columns of a panel of B.
    pub(super) panel: usize,
    packed: [[Packed; 2]; PANEL_ROWS],
    in_place: [[InPlace; 2]; PANEL_ROWS],
}

impl Micro {
    pub(super) fn of(isa: Isa) -> Micro {
        match isa {
            Isa::Baseline => baseline::MICRO,
            Isa::Avx2 => avx2::MICRO,
            Isa::Avx512 => avx512::MICRO,
        }
    }

    pub(super) fn packed(&self, height: usize, half: bool) -> Packed {
        self.packed[height - 1][usize::from(!half)]
    }

    pub(super) fn in_place(&self, height: usize, half: bool) -> InPlace {
        self.in_place[height - 1][usize::from(!half)]
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
/// `a(k, i)` may be read for i < H and k < depth, `b` has `depth` panels rows of two vectors, `to` has H rows of V vectors.
#[inline(always)]
unsafe fn tile<S: Vector, const H: usize, const V: usize>(
    depth: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: *const f32,
    to: *mut f32,
    length: usize,
    more: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[S::zero(); V]; H];
        for k in 0..depth {
            let mut columns = [S::zero(); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = S::load(b.add(k * 2 * S::LANES + v * S::LANES));
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
                let at = to.add(i * length + v * S::LANES);
                let sum = if more { S::load(at).add(*sum) } else { *sum };
                sum.store(at);
            }
        }
    }
}

macro_rules! kernels {
    ($vector:ty $(, $feature:literal)?) => {
        /// # Safety
        /// See `tile`; the machine has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn packed<const H: usize, const V: usize>(depth: usize, a: *const f32, b: *const f32, to: *mut f32, length: usize, more: bool) {
            // SAFETY: the caller's promise.
            unsafe { tile::<$vector, H, V>(depth, #[inline(always)] |k, i| a.add(k * PANEL_ROWS + i), b, to, length, more) }
        }

        /// # Safety
        /// See `tile`; the machine has the features.
        $(#[target_feature(enable = $feature)])?
        unsafe fn in_place<const H: usize, const V: usize>(depth: usize, a: &[*const f32; PANEL_ROWS], b: *const f32, to: *mut f32, length: usize, more: bool) {
            let a = *a;
            // SAFETY: the caller's promise.
            unsafe { tile::<$vector, H, V>(depth, #[inline(always)] |k, i| a[i].add(k), b, to, length, more) }
        }

        pub(super) const MICRO: Micro = Micro {
            panel: 2 * <$vector>::LANES,
            packed: [
                [packed::<1, 1>, packed::<1, 2>], [packed::<2, 1>, packed::<2, 2>],
                [packed::<3, 1>, packed::<3, 2>], [packed::<4, 1>, packed::<4, 2>],
                [packed::<5, 1>, packed::<5, 2>], [packed::<6, 1>, packed::<6, 2>],
                [packed::<7, 1>, packed::<7, 2>], [packed::<8, 1>, packed::<8, 2>],
            ],
            in_place: [
                [in_place::<1, 1>, in_place::<1, 2>], [in_place::<2, 1>, in_place::<2, 2>],
                [in_place::<3, 1>, in_place::<3, 2>], [in_place::<4, 1>, in_place::<4, 2>],
                [in_place::<5, 1>, in_place::<5, 2>], [in_place::<6, 1>, in_place::<6, 2>],
                [in_place::<7, 1>, in_place::<7, 2>], [in_place::<8, 1>, in_place::<8, 2>],
            ],
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

    kernels!(Four);
}

macro_rules! x86_vector {
    ($module:ident, $name:ident, $inner:ident, $lanes:literal, $feature:literal,
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

            kernels!($name, $feature);
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
    "avx512f",
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);
