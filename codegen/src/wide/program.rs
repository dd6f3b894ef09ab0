//! Vector programs: straight-line code for 16 positions of a strip, which a loop repeats.
//!
//! A value is a register of 16 numbers of 32 bits: `f32`, integers, or masks that are all ones or zero. Each is defined once
//! and its number is its position in [`Program::ops`]. Pointers and row values come in a table of 8-byte cells.

use std::cell::RefCell;
use std::ops::{Add, BitOr, Div, Mul, Sub};

use crate::strip::lane::{Bits, Lane};

/// A value: the operation that makes it.
pub(crate) type Id = u32;

/// How numbers lie in memory; in registers they have 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Word,
    Bf16,
    F16,
    I8,
    U8,
    Bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binary {
    AddF,
    SubF,
    MulF,
    DivF,
    AddI,
    SubI,
    MulI,
    MaxI,
    And,
    Or,
    Xor,
    /// Each lane of the second where it is larger than the first's or NaN, else of the first.
    MaxF,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unary {
    SqrtF,
    FloorF,
    /// To the nearest number that `f16` has.
    RoundF16,
    /// Signed integers to floats.
    ToFloat,
    /// Truncates; what does not fit becomes the least integer.
    ToInt,
    Left(u8),
    Right(u8),
    RightSigned(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Comparison {
    LessF,
    EqualF,
    /// Either is NaN.
    UnorderedF,
    NotEqualF,
    LessI,
    EqualI,
    NotEqualI,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Join {
    SumF,
    MaxF,
    SumI,
    MaxI,
}

impl Join {
    /// The bits of the neutral element.
    pub(crate) fn neutral(self) -> u32 {
        match self {
            Join::SumF | Join::SumI => 0,
            Join::MaxF => f32::NEG_INFINITY.to_bits(),
            Join::MaxI => i32::MIN as u32,
        }
    }

    pub(crate) fn binary(self) -> Binary {
        match self {
            Join::SumF => Binary::AddF,
            Join::MaxF => Binary::MaxF,
            Join::SumI => Binary::AddI,
            Join::MaxI => Binary::MaxI,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// 16 positions from a pointer in a cell.
    Load {
        pointer: u32,
        form: Form,
    },
    /// A row value in a cell, repeated.
    Row {
        cell: u32,
    },
    Constant(u32),
    /// The positions themselves: 0 at the first of the strip.
    Position,
    Unary(Unary, Id),
    Binary(Binary, Id, Id),
    Compare(Comparison, Id, Id),
    /// By mask.
    Select(Id, Id, Id),
    /// Makes nothing.
    Store {
        pointer: u32,
        form: Form,
        value: Id,
    },
    /// Lane by lane over the whole strip, then lanes by halves; the result is at the first of 64 bytes that a cell points to.
    /// Makes nothing.
    Fold {
        pointer: u32,
        join: Join,
        value: Id,
    },
}

impl Op {
    pub(crate) fn uses(&self) -> impl Iterator<Item = Id> {
        let all: [Option<Id>; 3] = match *self {
            Op::Load { .. } | Op::Row { .. } | Op::Constant(_) | Op::Position => [None; 3],
            Op::Unary(_, x) | Op::Store { value: x, .. } | Op::Fold { value: x, .. } => [Some(x), None, None],
            Op::Binary(_, x, y) | Op::Compare(_, x, y) => [Some(x), Some(y), None],
            Op::Select(mask, x, y) => [Some(mask), Some(x), Some(y)],
        };
        all.into_iter().flatten()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Program {
    pub(crate) ops: Vec<Op>,
}

/// Builds a program; equal operations are made once.
#[derive(Default)]
pub(crate) struct Builder {
    ops: RefCell<Vec<Op>>,
}

impl Builder {
    pub(crate) fn push(&self, op: Op) -> Id {
        let mut ops = self.ops.borrow_mut();
        let effect = matches!(op, Op::Store { .. } | Op::Fold { .. });
        if let Some(known) = ops.iter().position(|known| *known == op && !effect) {
            return known as Id;
        }
        ops.push(op);
        ops.len() as Id - 1
    }

    pub(crate) fn value(&self, id: Id) -> Value<'_> {
        Value { builder: self, id }
    }

    pub(crate) fn finish(self) -> Program {
        Program { ops: self.ops.into_inner() }
    }
}

/// A value under construction.
#[derive(Clone, Copy)]
pub(crate) struct Value<'b> {
    builder: &'b Builder,
    pub(crate) id: Id,
}

impl<'b> Value<'b> {
    fn make(self, op: Op) -> Value<'b> {
        Value { builder: self.builder, id: self.builder.push(op) }
    }

    pub(crate) fn two(self, op: Binary, other: Value<'b>) -> Value<'b> {
        self.make(Op::Binary(op, self.id, other.id))
    }

    pub(crate) fn one(self, op: Unary) -> Value<'b> {
        self.make(Op::Unary(op, self.id))
    }

    pub(crate) fn compare(self, op: Comparison, other: Value<'b>) -> Value<'b> {
        self.make(Op::Compare(op, self.id, other.id))
    }

    /// The same bits in every lane.
    pub(crate) fn every(self, bits: u32) -> Value<'b> {
        self.make(Op::Constant(bits))
    }

    /// By this mask.
    pub(crate) fn choose(self, yes: Value<'b>, no: Value<'b>) -> Value<'b> {
        self.make(Op::Select(self.id, yes.id, no.id))
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident $op:ident),*) => {$(
        impl $trait for Value<'_> {
            type Output = Self;

            fn $method(self, other: Self) -> Self {
                self.two(Binary::$op, other)
            }
        }
    )*};
}

operators!(Add add AddF, Sub sub SubF, Mul mul MulF, Div div DivF, BitOr bitor Or);

impl Lane for Value<'_> {
    type Bits = Self;
    type Mask = Self;

    fn constant(self, value: f32) -> Self {
        self.every(value.to_bits())
    }

    fn bits(self) -> Self {
        self
    }

    fn less(self, other: Self) -> Self {
        self.compare(Comparison::LessF, other)
    }

    fn equal(self, other: Self) -> Self {
        self.compare(Comparison::EqualF, other)
    }

    fn is_nan(self) -> Self {
        self.compare(Comparison::UnorderedF, self)
    }

    fn select(mask: Self, yes: Self, no: Self) -> Self {
        mask.choose(yes, no)
    }
}

impl Bits for Value<'_> {
    type Lane = Self;

    fn constant(self, value: u32) -> Self {
        self.every(value)
    }

    fn add(self, other: Self) -> Self {
        self.two(Binary::AddI, other)
    }

    fn sub(self, other: Self) -> Self {
        self.two(Binary::SubI, other)
    }

    fn and(self, other: Self) -> Self {
        self.two(Binary::And, other)
    }

    fn or(self, other: Self) -> Self {
        self.two(Binary::Or, other)
    }

    fn shift_left(self, places: u8) -> Self {
        self.one(Unary::Left(places))
    }

    fn shift_right(self, places: u8) -> Self {
        self.one(Unary::Right(places))
    }

    fn shift_right_signed(self, places: u8) -> Self {
        self.one(Unary::RightSigned(places))
    }

    fn as_float(self) -> Self {
        self
    }

    fn to_float(self) -> Self {
        self.one(Unary::ToFloat)
    }

    fn select(mask: Self, yes: Self, no: Self) -> Self {
        mask.choose(yes, no)
    }
}
