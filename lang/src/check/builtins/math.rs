//! Elementwise functions, on numbers and tensors alike.

use mdl_graph::{DType, Op};

use super::Call;
use crate::check::Elaborator;
use crate::check::arith::{Kind, Operand, kind_of};
use crate::check::value::{Eval, Stop, Tensor, Value};
use crate::diag::Code;

/// Functions of one float.
pub(super) fn unary(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x] = elab.take_args(call, ["x"], 1)?;
    let Some((value, span)) = x else { return Err(Stop) };
    if let Value::Record(_) = value {
        let (name, whole, env) = (call.name, call.span, call.env.clone());
        return elab.each_tensor(&value, &mut |elab, tensor| {
            let args = crate::check::value::Args::of([(Value::Tensor(tensor.clone()), span)]);
            let mut call = Call { env: &env, given: None, args, span: whole, name };
            match unary(elab, &mut call)? {
                Value::Tensor(tensor) => Ok(tensor),
                _ => Err(Stop),
            }
        });
    }
    let operand = elab.operand(&value, span, &format!("`{}`", call.name))?;
    let x = match operand {
        Operand::Tensor(tensor) => tensor,
        number => {
            let x = match number {
                Operand::Int(x) => x as f64,
                Operand::Float(x) => x,
                Operand::Bool(x) => f64::from(u8::from(x)),
                Operand::Tensor(_) => return Err(Stop),
            };
            return Ok(Value::Float(match call.name {
                "exp" => x.exp(),
                "log" => x.ln(),
                "tanh" => x.tanh(),
                "sin" => x.sin(),
                "cos" => x.cos(),
                "sqrt" => x.sqrt(),
                "rsqrt" => 1.0 / x.sqrt(),
                "floor" => x.floor(),
                "ceil" => x.ceil(),
                // The error function has no closed form here: left to the graph.
                _ => {
                    let x = elab.number(x, DType::F32, span)?;
                    return Ok(Value::Tensor(elab.emit(Op::Erf, &[&x], call.span)?));
                }
            }));
        }
    };
    let x = if elab.dtype(&x).is_float() { x } else { elab.cast(&x, DType::F32, call.span)? };
    let dtype = elab.dtype(&x);
    let op = match call.name {
        "exp" => Op::Exp,
        "log" => Op::Log,
        "tanh" => Op::Tanh,
        "erf" => Op::Erf,
        "sin" => Op::Sin,
        "cos" => Op::Cos,
        "floor" => Op::Floor,
        "ceil" => {
            let minus = elab.emit(Op::Neg, &[&x], call.span)?;
            let floor = elab.emit(Op::Floor, &[&minus], call.span)?;
            return Ok(Value::Tensor(elab.emit(Op::Neg, &[&floor], call.span)?));
        }
        "rsqrt" => {
            let root = elab.emit(Op::Sqrt, &[&x], call.span)?;
            let one = elab.number(1.0, dtype, call.span)?;
            return Ok(Value::Tensor(elab.emit(Op::Div, &[&one, &root], call.span)?));
        }
        _ => Op::Sqrt,
    };
    Ok(Value::Tensor(elab.emit(op, &[&x], call.span)?))
}

pub(super) fn abs(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x] = elab.take_args(call, ["x"], 1)?;
    let Some((value, span)) = x else { return Err(Stop) };
    Ok(match elab.operand(&value, span, "`abs`")? {
        Operand::Int(x) => Value::Int(x.wrapping_abs()),
        Operand::Float(x) => Value::Float(x.abs()),
        Operand::Bool(x) => Value::Int(i64::from(x)),
        Operand::Tensor(x) => {
            let x = if elab.dtype(&x) == DType::Bool { elab.cast(&x, DType::I32, span)? } else { x };
            let minus = elab.emit(Op::Neg, &[&x], call.span)?;
            Value::Tensor(elab.emit(Op::Max, &[&x, &minus], call.span)?)
        }
    })
}

pub(super) fn to_int(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x] = elab.take_args(call, ["x"], 1)?;
    let Some((value, span)) = x else { return Err(Stop) };
    Ok(match elab.operand(&value, span, "`int`")? {
        Operand::Int(x) => Value::Int(x),
        Operand::Float(x) => Value::Int(x as i64),
        Operand::Bool(x) => Value::Int(i64::from(x)),
        Operand::Tensor(x) if elab.dtype(&x).is_int() => Value::Tensor(Tensor { arrow: None, ..x }),
        Operand::Tensor(x) => Value::Tensor(elab.cast(&x, DType::I32, call.span)?),
    })
}

pub(super) fn to_float(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x] = elab.take_args(call, ["x"], 1)?;
    let Some((value, span)) = x else { return Err(Stop) };
    Ok(match elab.operand(&value, span, "`float`")? {
        Operand::Int(x) => Value::Float(x as f64),
        Operand::Float(x) => Value::Float(x),
        Operand::Bool(x) => Value::Float(f64::from(u8::from(x))),
        Operand::Tensor(x) if elab.dtype(&x).is_float() => Value::Tensor(Tensor { arrow: None, ..x }),
        Operand::Tensor(x) => Value::Tensor(elab.cast(&x, DType::F32, call.span)?),
    })
}

pub(super) fn div(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [a, b] = elab.take_args(call, ["a", "b"], 2)?;
    let (Some((a, a_span)), Some((b, b_span))) = (a, b) else { return Err(Stop) };
    let (x, y) = (elab.operand(&a, a_span, "`div`")?, elab.operand(&b, b_span, "`div`")?);
    match (&x, &y) {
        (Operand::Int(_), Operand::Int(0)) => Err(elab.error(Code::E0211, "division by zero", b_span, "this is 0")),
        (Operand::Int(x), Operand::Int(y)) => {
            let floor = x.wrapping_div(*y) - i64::from(x % y != 0 && (x % y < 0) != (*y < 0));
            Ok(Value::Int(floor))
        }
        _ => {
            let dtype = elab.meeting(&x, &y);
            let dtype = if dtype == DType::Bool { DType::I32 } else { dtype };
            if !matches!((&x, &y), (Operand::Tensor(_), _) | (_, Operand::Tensor(_))) {
                let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else { return Err(Stop) };
                return Ok(Value::Float((x / y).floor()));
            }
            let quotient = elab.meet_op_in(Op::Div, &x, &y, dtype, (a_span, b_span), call.span)?;
            if dtype.is_float() {
                Ok(Value::Tensor(elab.emit(Op::Floor, &[&quotient], call.span)?))
            } else {
                Ok(Value::Tensor(quotient))
            }
        }
    }
}

/// `max` or `min` of two operands.
pub(super) fn largest(
    elab: &mut Elaborator<'_>,
    is_max: bool,
    (a, a_span): (&Value, crate::syntax::ast::Span),
    (b, b_span): (&Value, crate::syntax::ast::Span),
    span: crate::syntax::ast::Span,
) -> Eval<Value> {
    let what = if is_max { "`max`" } else { "`min`" };
    let (x, y) = (elab.operand(a, a_span, what)?, elab.operand(b, b_span, what)?);
    if !matches!((&x, &y), (Operand::Tensor(_), _) | (_, Operand::Tensor(_))) {
        return match (&x, &y) {
            (Operand::Int(x), Operand::Int(y)) => Ok(Value::Int(if is_max { *x.max(y) } else { *x.min(y) })),
            _ => {
                let (Some(x), Some(y)) = (a.as_float(), b.as_float()) else {
                    return Err(elab.error(Code::E0209, format!("{what} takes numbers"), a_span, "not a number"));
                };
                Ok(Value::Float(if is_max { x.max(y) } else { x.min(y) }))
            }
        };
    }
    let dtype = elab.meeting(&x, &y);
    let dtype = if dtype == DType::Bool { DType::I32 } else { dtype };
    if is_max {
        return Ok(Value::Tensor(elab.meet_op_in(Op::Max, &x, &y, dtype, (a_span, b_span), span)?));
    }
    // min(a, b) = -max(-a, -b)
    let (x, y) = (elab.as_tensor(&x, dtype, span)?, elab.as_tensor(&y, dtype, span)?);
    elab.check_meeting(&x, &y, (a_span, b_span), span)?;
    let (x, y) = (elab.emit(Op::Neg, &[&x], span)?, elab.emit(Op::Neg, &[&y], span)?);
    let most = elab.emit(Op::Max, &[&x, &y], span)?;
    Ok(Value::Tensor(elab.emit(Op::Neg, &[&most], span)?))
}

pub(super) fn clamp(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x, low, high] = elab.take_args(call, ["x", "low", "high"], 3)?;
    let (Some(x), Some(low), Some(high)) = (x, low, high) else { return Err(Stop) };
    let floor = largest(elab, true, (&x.0, x.1), (&low.0, low.1), call.span)?;
    largest(elab, false, (&floor, x.1), (&high.0, high.1), call.span)
}

pub(super) fn choose(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [condition, a, b] = elab.take_args(call, ["condition", "a", "b"], 3)?;
    let (Some(condition), Some(a), Some(b)) = (condition, a, b) else { return Err(Stop) };
    elab.select([(&condition.0, condition.1), (&a.0, a.1), (&b.0, b.1)], call.span)
}

pub(super) fn detach(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [x] = elab.take_args(call, ["x"], 1)?;
    let Some((value, _)) = x else { return Err(Stop) };
    let span = call.span;
    elab.each_tensor(&value, &mut |elab, tensor| {
        // Only floats have gradients to stop.
        if kind_of(elab.dtype(tensor)) == Kind::Float {
            elab.emit(Op::Detach, &[tensor], span)
        } else {
            Ok(tensor.clone())
        }
    })
}

pub(super) fn is_map(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [w] = elab.take_args(call, ["w"], 1)?;
    match w {
        Some((Value::Tensor(tensor), _)) => Ok(Value::Bool(tensor.arrow.is_some())),
        Some((_, span)) => Err(elab.error(Code::E0209, "`is_map` takes a weight", span, "this is none")),
        None => Err(Stop),
    }
}

pub(super) fn has(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [record, name] = elab.take_args(call, ["record", "name"], 2)?;
    match (record, name) {
        (Some((Value::Record(fields), _)), Some((Value::Str(name), _))) => {
            Ok(Value::Bool(fields.iter().any(|(field, _)| **field == *name)))
        }
        (Some((Value::Record(_), _)), Some((other, span))) | (Some((other, span)), _) => {
            let message = format!("`has` takes a record and a name, not {}", other.kind());
            Err(elab.error(Code::E0209, message, span, format!("this is {}", other.kind())))
        }
        (None, _) => Err(Stop),
    }
}

pub(super) fn len(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [list] = elab.take_args(call, ["list"], 1)?;
    match list {
        Some((Value::List(items) | Value::Tuple(items), _)) => Ok(Value::Int(items.len() as i64)),
        Some((Value::Record(fields), _)) => Ok(Value::Int(fields.len() as i64)),
        Some((other, span)) => {
            let message = format!("`len` takes a list or a record, not {}", other.kind());
            Err(elab.error_help(
                Code::E0209,
                message,
                span,
                format!("this is {}", other.kind()),
                "the size of an axis is `size[t]`",
            ))
        }
        None => Err(Stop),
    }
}
