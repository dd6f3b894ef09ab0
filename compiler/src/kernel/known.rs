//! What is known of a value everywhere in a box of positions: nothing, or the least and the greatest it can be.

use mdl_graph::{DType, Scalar};

use super::{FoldKind, Index, ScalarOp};

/// `bool` is 0 or 1. Ends may be infinite: `-inf..-inf` is the score of what a mask hides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Known {
    Any,
    Range(f64, f64),
}

use Known::{Any, Range};

const FALSE: Known = Range(0.0, 0.0);
const TRUE: Known = Range(1.0, 1.0);
const EITHER: Known = Range(0.0, 1.0);
const ZERO: Known = FALSE;
const NOTHING: Known = Range(f64::NEG_INFINITY, f64::NEG_INFINITY);
/// Integers up to here do not wrap.
const LARGEST: f64 = 2_147_483_647.0;

impl Known {
    pub(super) fn of(value: Scalar) -> Known {
        let number = value.as_f64();
        if number.is_nan() { Any } else { Range(number, number) }
    }

    /// Over the box of positions `dims`, both ends included.
    pub(super) fn index(index: &Index, dims: &[(i64, i64)]) -> Known {
        let (mut lo, mut hi) = (index.base, index.base);
        for (dim, coef) in &index.terms {
            let (first, last) = dims[dim.0 as usize];
            lo += (coef * first).min(coef * last);
            hi += (coef * first).max(coef * last);
        }
        (lo, hi) = (lo.div_euclid(index.div as i64), hi.div_euclid(index.div as i64));
        let modulo = index.modulo as i64;
        if modulo != 0 {
            let same = lo.div_euclid(modulo) == hi.div_euclid(modulo);
            (lo, hi) = if same { (lo.rem_euclid(modulo), hi.rem_euclid(modulo)) } else { (0, modulo - 1) };
        }
        Range((lo + index.plus) as f64, (hi + index.plus) as f64)
    }

    /// Whether a fold of this adds nothing.
    pub(super) fn is_neutral(self, kind: FoldKind) -> bool {
        self == if kind == FoldKind::Max { NOTHING } else { ZERO }
    }

    fn truth(truth: Option<bool>) -> Known {
        match truth {
            Some(true) => TRUE,
            Some(false) => FALSE,
            None => EITHER,
        }
    }

    /// An operation on values of which this is known. Numbers of which nothing is known are taken for finite.
    pub(super) fn map(op: ScalarOp, dtype: DType, args: &[Known]) -> Known {
        let made = match (op, args) {
            (ScalarOp::Cast, [x]) if dtype == DType::Bool => match *x {
                ZERO => FALSE,
                Range(lo, hi) if lo > 0.0 || hi < 0.0 => TRUE,
                _ => EITHER,
            },
            (ScalarOp::Cast, [Range(lo, hi)]) if dtype.is_float() => Range(*lo, *hi),
            (ScalarOp::Cast, [Range(lo, hi)]) => Range(lo.trunc(), hi.trunc()),
            (ScalarOp::Round(_), [x @ (ZERO | NOTHING)]) => *x,
            (ScalarOp::Exp, [NOTHING]) => ZERO,
            (ScalarOp::Neg, [Range(lo, hi)]) => Range(-hi, -lo),
            (ScalarOp::Add, [NOTHING, Any] | [Any, NOTHING]) | (ScalarOp::Sub, [NOTHING, Any]) => NOTHING,
            (ScalarOp::Add, [Range(a, b), Range(c, d)]) => Range(a + c, b + d),
            (ScalarOp::Sub, [Range(a, b), Range(c, d)]) => Range(a - d, b - c),
            (ScalarOp::Mul, [ZERO, x] | [x, ZERO]) if x.is_finite() => ZERO,
            (ScalarOp::Div, [ZERO, x]) if x.is_finite() => ZERO,
            (ScalarOp::Mul, [Range(a, b), Range(c, d)]) => {
                let ends = [a * c, a * d, b * c, b * d];
                Range(
                    ends.into_iter().fold(f64::INFINITY, f64::min),
                    ends.into_iter().fold(f64::NEG_INFINITY, f64::max),
                )
            }
            (ScalarOp::Max, [Range(a, b), Range(c, d)]) => Range(a.max(*c), b.max(*d)),
            (ScalarOp::Less, [Range(a, b), Range(c, d)]) => Known::truth(if b < c {
                Some(true)
            } else if a >= d {
                Some(false)
            } else {
                None
            }),
            (ScalarOp::Equal, [Range(a, b), Range(c, d)]) => {
                let one = a == b && c == d && a == c;
                Known::truth(if one {
                    Some(true)
                } else if b < c || d < a {
                    Some(false)
                } else {
                    None
                })
            }
            (ScalarOp::Less | ScalarOp::Equal, _) => EITHER,
            (ScalarOp::And, [FALSE, _] | [_, FALSE]) => FALSE,
            (ScalarOp::And, [TRUE, x] | [x, TRUE]) => *x,
            (ScalarOp::Or, [TRUE, _] | [_, TRUE]) => TRUE,
            (ScalarOp::Or, [FALSE, x] | [x, FALSE]) => *x,
            (ScalarOp::Not, [Range(lo, hi)]) => Range(1.0 - hi, 1.0 - lo),
            (ScalarOp::Select, [TRUE, x, _] | [FALSE, _, x]) => *x,
            (ScalarOp::Select, [_, Range(a, b), Range(c, d)]) => Range(a.min(*c), b.max(*d)),
            _ => Any,
        };
        match made {
            Range(lo, hi) if lo.is_nan() || hi.is_nan() => Any,
            Range(lo, hi) if dtype.is_int() && (lo < -LARGEST || hi > LARGEST) => Any,
            known => known,
        }
    }

    fn is_finite(self) -> bool {
        match self {
            Any => true,
            Range(lo, hi) => lo.is_finite() && hi.is_finite(),
        }
    }
}
