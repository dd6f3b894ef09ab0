//! Operators and elementwise functions, on numbers at compile time and on tensors in the graph.
//!
//! A number that meets a tensor takes its dtype, an integer that meets a float becomes one. `/` is division of real
//! numbers: of two whole numbers it stays whole when it is exact. Two float tensors each of which has an axis that the
//! other lacks are refused, unless the type of the `let` declares those axes.

use mdl_graph::{DType, Op, Scalar};

use super::Elaborator;
use super::value::{Eval, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{BinaryOp, Span, UnaryOp};

/// A number or a tensor: what elementwise operations take.
#[derive(Clone)]
pub(super) enum Operand {
    Bool(bool),
    Int(i64),
    Float(f64),
    Tensor(Tensor),
}

impl Operand {
    fn as_f64(&self) -> Option<f64> {
        match self {
            Operand::Bool(value) => Some(f64::from(u8::from(*value))),
            Operand::Int(value) => Some(*value as f64),
            Operand::Float(value) => Some(*value),
            Operand::Tensor(_) => None,
        }
    }

    fn scalar(&self) -> Option<Scalar> {
        match self {
            Operand::Bool(value) => Some(Scalar::Bool(*value)),
            Operand::Int(value) => Some(Scalar::Int(*value)),
            Operand::Float(value) => Some(Scalar::Float(*value)),
            Operand::Tensor(_) => None,
        }
    }

    fn rank_of_dtype(&self, elab: &Elaborator<'_>) -> Kind {
        match self {
            Operand::Bool(_) => Kind::Bool,
            Operand::Int(_) => Kind::Int,
            Operand::Float(_) => Kind::Float,
            Operand::Tensor(tensor) => kind_of(elab.dtype(tensor)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Bool,
    Int,
    Float,
}

pub(super) fn kind_of(dtype: DType) -> Kind {
    if dtype.is_float() {
        Kind::Float
    } else if dtype == DType::Bool {
        Kind::Bool
    } else {
        Kind::Int
    }
}

/// The dtype in which values of these dtypes meet.
pub(super) fn meet(a: DType, b: DType) -> DType {
    let wide = |dtype: DType| (kind_of(dtype), dtype.size_bytes());
    match (kind_of(a), kind_of(b)) {
        // Floats of two small formats meet in f32: neither holds the other.
        (Kind::Float, Kind::Float) if a != b && a.size_bytes() == b.size_bytes() => DType::F32,
        (Kind::Int, Kind::Int) if a != b && a.size_bytes() == b.size_bytes() => DType::I32,
        // i64 positions meeting f32 stay f32: what a user expects of `index[t] * scale`.
        _ if wide(a) >= wide(b) => a,
        _ => b,
    }
}

impl Elaborator<'_> {
    pub(super) fn operand(&mut self, value: &Value, span: Span, what: &str) -> Eval<Operand> {
        Ok(match value {
            Value::Bool(value) => Operand::Bool(*value),
            Value::Tensor(tensor) if !self.levels.iter().any(|level| level.id == tensor.level) => {
                return Err(self.error(
                    Code::E0213,
                    "a tensor is used outside of where it was computed",
                    span,
                    "this tensor",
                ));
            }
            Value::Tensor(tensor) => Operand::Tensor(tensor.clone()),
            Value::Stored(id) => Operand::Tensor(self.fetch(*id)?),
            Value::Error => return Err(super::value::Stop),
            other => match (other.as_int(), other.as_float()) {
                (Some(value), _) => Operand::Int(value),
                (_, Some(value)) => Operand::Float(value),
                _ => {
                    let message = format!("{what} takes numbers and tensors, not {}", other.kind());
                    return Err(self.error(Code::E0209, message, span, format!("this is {}", other.kind())));
                }
            },
        })
    }

    /// An operand as a tensor of `dtype`.
    pub(super) fn as_tensor(&mut self, operand: &Operand, dtype: DType, span: Span) -> Eval<Tensor> {
        match operand {
            Operand::Tensor(tensor) => self.cast(tensor, dtype, span),
            other => match other.scalar() {
                Some(scalar) => self.constant(scalar, dtype, span),
                None => mdl_graph::bug!("an operand that is neither number nor tensor"),
            },
        }
    }

    /// An operand as a tensor of the dtype that it has by itself: `i32`, `f32` or `bool` for numbers.
    pub(super) fn tensor_of(&mut self, operand: &Operand, span: Span) -> Eval<Tensor> {
        let dtype = match operand {
            Operand::Tensor(tensor) => return Ok(tensor.clone()),
            Operand::Bool(_) => DType::Bool,
            Operand::Int(value) if i32::try_from(*value).is_err() => DType::I64,
            Operand::Int(_) => DType::I32,
            Operand::Float(_) => DType::F32,
        };
        self.as_tensor(operand, dtype, span)
    }

    /// The dtype in which two operands meet: numbers give way to tensors.
    pub(super) fn meeting(&self, a: &Operand, b: &Operand) -> DType {
        let kind = a.rank_of_dtype(self).max(b.rank_of_dtype(self));
        let tensor = |operand: &Operand| match operand {
            Operand::Tensor(tensor) => Some(self.dtype(tensor)),
            _ => None,
        };
        let met = match (tensor(a), tensor(b)) {
            (Some(a), Some(b)) => Some(meet(a, b)),
            (a, b) => a.or(b),
        };
        match met {
            Some(dtype) if kind_of(dtype) == kind => dtype,
            _ => match kind {
                Kind::Bool => DType::Bool,
                Kind::Int => DType::I32,
                Kind::Float => DType::F32,
            },
        }
    }

    /// Refuses two sizes of one name, and the outer product of floats that nobody declared.
    pub(super) fn check_meeting(&mut self, a: &Tensor, b: &Tensor, spans: (Span, Span), at: Span) -> Eval<()> {
        let (left, right) = (self.ty(a).clone(), self.ty(b).clone());
        if let Err(name) = left.axes.union(&right.axes) {
            let (x, y) = (left.axes.size(&name).unwrap_or(0), right.axes.size(&name).unwrap_or(0));
            let shown = super::scope::plain(&name);
            let diagnostic =
                Diagnostic::error(Code::E0204, format!("axis `{shown}` is {x} on the left and {y} on the right"))
                    .label(at, "they meet here")
                    .label(spans.0, format!("`{shown}` is {x} here"))
                    .label(spans.1, format!("`{shown}` is {y} here"))
                    .help("cut or pad one of them, or rename the axis with `as` if it is another one");
            return Err(self.fail(diagnostic));
        }
        if !(left.dtype.is_float() && right.dtype.is_float()) {
            return Ok(());
        }
        let declared = self.declared.clone();
        let undeclared = |axis: &&mdl_graph::Axis| !self.is_hidden(&axis.name) && !declared.contains(&axis.name);
        let only_left: Vec<String> = left
            .axes
            .minus(&right.axes)
            .iter()
            .filter(undeclared)
            .map(|axis| super::scope::plain(&axis.name))
            .collect();
        let only_right: Vec<String> = right
            .axes
            .minus(&left.axes)
            .iter()
            .filter(undeclared)
            .map(|axis| super::scope::plain(&axis.name))
            .collect();
        let (Some(x), Some(y)) = (only_left.first(), only_right.first()) else { return Ok(()) };
        if let Some(both) = only_left.iter().find(|name| only_right.contains(name)) {
            let message = format!("`{both}` came by its name on one side and through `..` on the other");
            let diagnostic = Diagnostic::error(Code::E0205, message)
                .label(at, "they are two axes here")
                .label(spans.0, format!("has {}", self.show_axes(&left.axes)))
                .label(spans.1, format!("has {}", self.show_axes(&right.axes)))
                .help(format!("name `{both}` in the types of both parameters"));
            return Err(self.fail(diagnostic));
        }
        let message = format!("elementwise on two float tensors: only the left has `{x}`, only the right has `{y}`");
        let diagnostic = Diagnostic::error(Code::E0205, message)
            .label(at, "this would make every pair of positions")
            .label(spans.0, format!("has {}", self.show_axes(&left.axes)))
            .label(spans.1, format!("has {}", self.show_axes(&right.axes)))
            .help("write `dot[](a, b)` for the outer product, or give the axes in the type of a `let`");
        Err(self.fail(diagnostic))
    }

    /// A binary primitive on two operands that meet.
    pub(super) fn meet_op(&mut self, op: Op, a: &Operand, b: &Operand, spans: (Span, Span), at: Span) -> Eval<Tensor> {
        let dtype = self.meeting(a, b);
        self.meet_op_in(op, a, b, dtype, spans, at)
    }

    pub(super) fn meet_op_in(
        &mut self,
        op: Op,
        a: &Operand,
        b: &Operand,
        dtype: DType,
        spans: (Span, Span),
        at: Span,
    ) -> Eval<Tensor> {
        if let (Operand::Tensor(x), Operand::Tensor(y)) = (a, b) {
            self.check_meeting(x, y, spans, at)?;
        }
        let (a, b) = (self.as_tensor(a, dtype, at)?, self.as_tensor(b, dtype, at)?);
        self.emit(op, &[&a, &b], at)
    }

    /// Both tensors (numbers become tensors) and whether both were whole numbers or booleans.
    pub(super) fn binary(
        &mut self,
        op: BinaryOp,
        left: (&Value, Span),
        right: (&Value, Span),
        at: Span,
    ) -> Eval<Value> {
        if let Some(value) = self.binary_of_records(op, left, right, at) {
            return value;
        }
        if matches!(op, BinaryOp::Eq | BinaryOp::Ne)
            && let Some(equal) = same_values(left.0, right.0)
        {
            return Ok(Value::Bool(equal == (op == BinaryOp::Eq)));
        }
        if op == BinaryOp::Add {
            match (left.0, right.0) {
                (Value::Str(a), Value::Str(b)) => return Ok(Value::str(&format!("{a}{b}"))),
                (Value::List(a), Value::List(b)) => {
                    return Ok(Value::list(a.iter().chain(b.iter()).cloned().collect()));
                }
                (Value::Str(a), b) if b.as_int().is_some() => {
                    return Ok(Value::str(&format!("{a}{}", b.as_int().unwrap_or(0))));
                }
                _ => {}
            }
        }
        if op == BinaryOp::In {
            return match right.0 {
                Value::List(items) => Ok(Value::Bool(items.iter().any(|item| same_values(left.0, item) == Some(true)))),
                Value::Range { start, end } => match left.0.as_int() {
                    Some(value) => Ok(Value::Bool(value >= start.unwrap_or(0) && end.is_none_or(|end| value < end))),
                    None => {
                        Err(self.error(Code::E0209, "`in` a range takes an Int on its left", left.1, left.0.kind()))
                    }
                },
                other => Err(self.error(
                    Code::E0209,
                    format!("`in` takes a list or a range on its right, not {}", other.kind()),
                    right.1,
                    format!("this is {}", other.kind()),
                )),
            };
        }
        let what = format!("`{}`", op.text());
        let (a, b) = (self.operand(left.0, left.1, &what)?, self.operand(right.0, right.1, &what)?);
        self.binary_operands(op, &a, &b, (left.1, right.1), at)
    }

    fn binary_operands(
        &mut self,
        op: BinaryOp,
        a: &Operand,
        b: &Operand,
        spans: (Span, Span),
        at: Span,
    ) -> Eval<Value> {
        if !matches!((a, b), (Operand::Tensor(_), _) | (_, Operand::Tensor(_))) {
            return self.binary_numbers(op, a, b, spans, at);
        }
        let kinds = (a.rank_of_dtype(self), b.rank_of_dtype(self));
        // Booleans count as 0 and 1 in arithmetic: `share + (x > 0)`.
        let arithmetic = |elab: &Self| match elab.meeting(a, b) {
            DType::Bool => DType::I32,
            dtype => dtype,
        };
        let tensor = match op {
            BinaryOp::And | BinaryOp::Or => {
                if kinds != (Kind::Bool, Kind::Bool) {
                    let (side, span) = if kinds.0 == Kind::Bool { ("right", spans.1) } else { ("left", spans.0) };
                    let message = format!("`{}` takes booleans, the {side} side is none", op.text());
                    return Err(self.error(Code::E0207, message, span, "compare it with something, as in `x > 0`"));
                }
                let op = if op == BinaryOp::And { Op::And } else { Op::Or };
                self.meet_op(op, a, b, spans, at)?
            }
            BinaryOp::Eq => self.meet_op(Op::Equal, a, b, spans, at)?,
            BinaryOp::Ne => {
                let equal = self.meet_op(Op::Equal, a, b, spans, at)?;
                self.emit(Op::Not, &[&equal], at)?
            }
            BinaryOp::Lt | BinaryOp::Gt => {
                let dtype = arithmetic(self);
                let (a, b, spans) = if op == BinaryOp::Lt { (a, b, spans) } else { (b, a, (spans.1, spans.0)) };
                self.meet_op_in(Op::Less, a, b, dtype, spans, at)?
            }
            BinaryOp::Le | BinaryOp::Ge => {
                let dtype = arithmetic(self);
                let (a, b, spans) = if op == BinaryOp::Le { (a, b, spans) } else { (b, a, (spans.1, spans.0)) };
                if dtype.is_float() {
                    // Not `not (b < a)`: a NaN is neither.
                    let less = self.meet_op_in(Op::Less, a, b, dtype, spans, at)?;
                    let equal = self.meet_op_in(Op::Equal, a, b, dtype, spans, at)?;
                    self.emit(Op::Or, &[&less, &equal], at)?
                } else {
                    let more = self.meet_op_in(Op::Less, b, a, dtype, (spans.1, spans.0), at)?;
                    self.emit(Op::Not, &[&more], at)?
                }
            }
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Rem => {
                let primitive = match op {
                    BinaryOp::Add => Op::Add,
                    BinaryOp::Sub => Op::Sub,
                    BinaryOp::Mul => Op::Mul,
                    _ => Op::Rem,
                };
                let dtype = arithmetic(self);
                self.meet_op_in(primitive, a, b, dtype, spans, at)?
            }
            BinaryOp::Div => {
                let dtype = self.meeting(a, b);
                let dtype = if dtype.is_float() { dtype } else { DType::F32 };
                self.meet_op_in(Op::Div, a, b, dtype, spans, at)?
            }
            BinaryOp::Pow => return self.power(a, b, spans, at),
            BinaryOp::In => {
                return Err(self.error(Code::E0213, "`in` takes values known at compile time", at, "not tensors"));
            }
        };
        Ok(Value::Tensor(tensor))
    }

    /// Small whole powers are products: exact, and with a derivative at 0.
    fn power(&mut self, a: &Operand, b: &Operand, spans: (Span, Span), at: Span) -> Eval<Value> {
        let whole = match b {
            Operand::Int(n) => Some(*n),
            Operand::Float(x) if x.fract() == 0.0 && x.abs() <= 4.0 => Some(*x as i64),
            _ => None,
        };
        if let (Operand::Tensor(x), Some(n @ 1..=4)) = (a, whole) {
            let x = if self.dtype(x) == DType::Bool { self.cast(x, DType::I32, at)? } else { x.clone() };
            let mut y = Tensor { arrow: None, ..x.clone() };
            for _ in 1..n {
                y = self.emit(Op::Mul, &[&y, &x], at)?;
            }
            return Ok(Value::Tensor(y));
        }
        let dtype = self.meeting(a, b);
        let dtype = if dtype.is_float() { dtype } else { DType::F32 };
        Ok(Value::Tensor(self.meet_op_in(Op::Pow, a, b, dtype, spans, at)?))
    }

    fn binary_numbers(&mut self, op: BinaryOp, a: &Operand, b: &Operand, spans: (Span, Span), at: Span) -> Eval<Value> {
        use BinaryOp::{Add, And, Div, Eq, Ge, Gt, In, Le, Lt, Mul, Ne, Or, Pow, Rem, Sub};
        if let (Operand::Bool(x), Operand::Bool(y)) = (a, b) {
            match op {
                And => return Ok(Value::Bool(*x && *y)),
                Or => return Ok(Value::Bool(*x || *y)),
                Eq => return Ok(Value::Bool(x == y)),
                Ne => return Ok(Value::Bool(x != y)),
                _ => {}
            }
        }
        if matches!(op, And | Or) {
            let span = if matches!(a, Operand::Bool(_)) { spans.1 } else { spans.0 };
            return Err(self.error(Code::E0209, format!("`{}` takes booleans", op.text()), span, "this is a number"));
        }
        if let (Operand::Int(x), Operand::Int(y)) = (a, b) {
            let (x, y) = (*x, *y);
            let whole = match op {
                Add => x.checked_add(y),
                Sub => x.checked_sub(y),
                Mul => x.checked_mul(y),
                Div if y != 0 && x % y == 0 => Some(x / y),
                Rem if y != 0 => Some(x.rem_euclid(y) + if y < 0 && x.rem_euclid(y) != 0 { y } else { 0 }),
                Pow if y >= 0 => u32::try_from(y).ok().and_then(|y| x.checked_pow(y)),
                Div | Rem if y == 0 => {
                    return Err(self.error(Code::E0211, "division by zero", at, format!("{x} divided by 0")));
                }
                Lt => return Ok(Value::Bool(x < y)),
                Le => return Ok(Value::Bool(x <= y)),
                Gt => return Ok(Value::Bool(x > y)),
                Ge => return Ok(Value::Bool(x >= y)),
                Eq => return Ok(Value::Bool(x == y)),
                Ne => return Ok(Value::Bool(x != y)),
                _ => None,
            };
            match (whole, op) {
                (Some(value), _) => return Ok(Value::Int(value)),
                (None, Add | Sub | Mul | Rem) => {
                    let message = format!("`{x} {} {y}` does not fit 64 bits", op.text());
                    return Err(self.error(Code::E0211, message, at, "too large a number"));
                }
                _ => {}
            }
        }
        let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { mdl_graph::bug!("numbers that are tensors") };
        Ok(match op {
            Add => Value::Float(x + y),
            Sub => Value::Float(x - y),
            Mul => Value::Float(x * y),
            Div => Value::Float(x / y),
            Rem => Value::Float(x - (x / y).floor() * y),
            Pow => Value::Float(x.powf(y)),
            Lt => Value::Bool(x < y),
            Le => Value::Bool(x <= y),
            Gt => Value::Bool(x > y),
            Ge => Value::Bool(x >= y),
            Eq => Value::Bool(x == y),
            Ne => Value::Bool(x != y),
            And | Or | In => mdl_graph::bug!("`{}` of numbers", op.text()),
        })
    }

    pub(super) fn unary(&mut self, op: UnaryOp, value: &Value, span: Span, at: Span) -> Eval<Value> {
        if let Value::Record(fields) = value {
            let mut out = Vec::with_capacity(fields.len());
            for (name, field) in fields.iter() {
                out.push((name.clone(), self.unary(op, field, span, at)?));
            }
            return Ok(Value::Record(std::rc::Rc::new(out)));
        }
        if op == UnaryOp::Not && !matches!(value, Value::Bool(_) | Value::Tensor(_) | Value::Error) {
            let message = format!("`not` takes a boolean, not {}", value.kind());
            return Err(self.error(Code::E0209, message, span, format!("this is {}", value.kind())));
        }
        let what = if op == UnaryOp::Neg { "`-`" } else { "`not`" };
        Ok(match (op, self.operand(value, span, what)?) {
            (UnaryOp::Neg, Operand::Int(x)) => Value::Int(x.wrapping_neg()),
            (UnaryOp::Neg, Operand::Float(x)) => Value::Float(-x),
            (UnaryOp::Neg, Operand::Bool(x)) => Value::Int(-i64::from(x)),
            (UnaryOp::Not, Operand::Bool(x)) => Value::Bool(!x),
            (UnaryOp::Neg, Operand::Tensor(x)) => {
                let x = if self.dtype(&x) == DType::Bool { self.cast(&x, DType::I32, at)? } else { x };
                Value::Tensor(self.emit(Op::Neg, &[&x], at)?)
            }
            (UnaryOp::Not, Operand::Tensor(x)) if self.dtype(&x) == DType::Bool => {
                Value::Tensor(self.emit(Op::Not, &[&x], at)?)
            }
            (UnaryOp::Not, _) => {
                return Err(self.error(Code::E0207, "`not` takes a bool tensor", span, "compare it with something"));
            }
        })
    }

    /// Arithmetic on records of tensors is that of their fields: gradients, weights.
    fn binary_of_records(
        &mut self,
        op: BinaryOp,
        left: (&Value, Span),
        right: (&Value, Span),
        at: Span,
    ) -> Option<Eval<Value>> {
        let arithmetic = matches!(op, BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Pow);
        let fields = match (left.0, right.0) {
            (Value::Record(fields), _) | (_, Value::Record(fields)) if arithmetic => fields.clone(),
            _ => return None,
        };
        let mut out = Vec::with_capacity(fields.len());
        for (name, _) in fields.iter() {
            let side = |side: &Value| match side {
                Value::Record(_) => side.field(name).cloned(),
                other => Some(other.clone()),
            };
            let (Some(a), Some(b)) = (side(left.0), side(right.0)) else {
                let message = format!("one of the two records has no field `{name}`");
                return Some(Err(self.error(Code::E0216, message, at, "both sides need the same fields")));
            };
            match self.binary(op, (&a, left.1), (&b, right.1), at) {
                Ok(value) => out.push((name.clone(), value)),
                Err(stop) => return Some(Err(stop)),
            }
        }
        Some(Ok(Value::Record(std::rc::Rc::new(out))))
    }

    /// `where(condition, a, b)`
    pub(super) fn select(&mut self, args: [(&Value, Span); 3], at: Span) -> Eval<Value> {
        let [(condition, condition_span), (a, a_span), (b, b_span)] = args;
        let condition = match self.operand(condition, condition_span, "`where`")? {
            Operand::Bool(choice) => return Ok(if choice { a.clone() } else { b.clone() }),
            Operand::Tensor(tensor) if self.dtype(&tensor) == DType::Bool => tensor,
            _ => {
                let message = "the condition of `where` is not boolean";
                return Err(self.error(
                    Code::E0207,
                    message,
                    condition_span,
                    "compare it with something, as in `x > 0`",
                ));
            }
        };
        let (a, b) = (self.operand(a, a_span, "`where`")?, self.operand(b, b_span, "`where`")?);
        let dtype = self.meeting(&a, &b);
        if let (Operand::Tensor(x), Operand::Tensor(y)) = (&a, &b) {
            self.check_meeting(x, y, (a_span, b_span), at)?;
        }
        let (a, b) = (self.as_tensor(&a, dtype, at)?, self.as_tensor(&b, dtype, at)?);
        for (side, span) in [(&a, a_span), (&b, b_span)] {
            let (left, right) = (self.ty(&condition).with_dtype(DType::Bool), self.ty(side).with_dtype(DType::Bool));
            if left.axes.union(&right.axes).is_err() {
                self.check_meeting(&condition, side, (condition_span, span), at)?;
            }
        }
        Ok(Value::Tensor(self.emit(Op::Select, &[&condition, &a, &b], at)?))
    }
}

/// Equality of values known at compile time; `None` if either is a tensor, so that only the graph can tell.
pub(super) fn same_values(a: &Value, b: &Value) -> Option<bool> {
    match (a, b) {
        (Value::Tensor(_) | Value::Stored(_), Value::None) | (Value::None, Value::Tensor(_) | Value::Stored(_)) => {
            Some(false)
        }
        (Value::Tensor(_) | Value::Stored(_) | Value::Error, _)
        | (_, Value::Tensor(_) | Value::Stored(_) | Value::Error) => None,
        (Value::None, Value::None) => Some(true),
        (Value::None, _) | (_, Value::None) => Some(false),
        (Value::Str(a), Value::Str(b)) => Some(a == b),
        (Value::Bool(a), Value::Bool(b)) => Some(a == b),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.len() != b.len() {
                return Some(false);
            }
            a.iter().zip(b.iter()).try_fold(true, |same, (a, b)| Some(same && same_values(a, b)?))
        }
        _ => match (a.as_int(), b.as_int(), a.as_float(), b.as_float()) {
            (Some(a), Some(b), ..) => Some(a == b),
            (.., Some(a), Some(b)) => Some(a == b),
            _ => Some(false),
        },
    }
}
