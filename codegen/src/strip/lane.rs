//! What elementary functions are written over: one `f32`, which rustc vectorises, or a value of a vector program under
//! construction. One definition gives both, so that they agree in every bit.

use std::ops::{Add, BitOr, Div, Mul, Sub};

/// A number. Operations are IEEE's, each rounded once.
pub(crate) trait Lane:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    type Bits: Bits<Lane = Self>;
    type Mask: Copy + BitOr<Output = Self::Mask>;

    /// A constant of the kind of `self`.
    fn constant(self, value: f32) -> Self;
    fn bits(self) -> Self::Bits;
    fn less(self, other: Self) -> Self::Mask;
    fn equal(self, other: Self) -> Self::Mask;
    fn is_nan(self) -> Self::Mask;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;

    #[inline(always)]
    fn abs(self) -> Self {
        let bits = self.bits();
        (bits.and(bits.constant(0x7fff_ffff))).as_float()
    }

    #[inline(always)]
    fn with_sign_of(self, sign: Self) -> Self {
        let (size, sign) = (self.abs().bits(), sign.bits());
        size.or(sign.and(sign.constant(0x8000_0000))).as_float()
    }
}

/// 32 bits of a number, or an integer that wraps.
pub(crate) trait Bits: Copy {
    type Lane: Lane<Bits = Self>;

    fn constant(self, value: u32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn shift_left(self, places: u8) -> Self;
    /// With zeros from the left.
    fn shift_right(self, places: u8) -> Self;
    /// With copies of the sign from the left.
    fn shift_right_signed(self, places: u8) -> Self;
    fn as_float(self) -> Self::Lane;
    /// The signed integer, rounded to a float.
    fn to_float(self) -> Self::Lane;
    fn select(mask: <Self::Lane as Lane>::Mask, yes: Self, no: Self) -> Self;
}

impl Lane for f32 {
    type Bits = u32;
    type Mask = bool;

    #[inline(always)]
    fn constant(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    #[inline(always)]
    fn less(self, other: f32) -> bool {
        self < other
    }

    #[inline(always)]
    fn equal(self, other: f32) -> bool {
        self == other
    }

    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }

    #[inline(always)]
    fn select(mask: bool, yes: f32, no: f32) -> f32 {
        if mask { yes } else { no }
    }
}

impl Bits for u32 {
    type Lane = f32;

    #[inline(always)]
    fn constant(self, value: u32) -> u32 {
        value
    }

    #[inline(always)]
    fn add(self, other: u32) -> u32 {
        self.wrapping_add(other)
    }

    #[inline(always)]
    fn sub(self, other: u32) -> u32 {
        self.wrapping_sub(other)
    }

    #[inline(always)]
    fn and(self, other: u32) -> u32 {
        self & other
    }

    #[inline(always)]
    fn or(self, other: u32) -> u32 {
        self | other
    }

    #[inline(always)]
    fn shift_left(self, places: u8) -> u32 {
        self << places
    }

    #[inline(always)]
    fn shift_right(self, places: u8) -> u32 {
        self >> places
    }

    #[inline(always)]
    fn shift_right_signed(self, places: u8) -> u32 {
        ((self as i32) >> places) as u32
    }

    #[inline(always)]
    fn as_float(self) -> f32 {
        f32::from_bits(self)
    }

    #[inline(always)]
    fn to_float(self) -> f32 {
        self as i32 as f32
    }

    #[inline(always)]
    fn select(mask: bool, yes: u32, no: u32) -> u32 {
        if mask { yes } else { no }
    }
}
