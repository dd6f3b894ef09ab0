//! Reductions, contractions, running sums and order.

use mdl_graph::{Axis, AxisSet, DType, Name, Op, Scalar};

use super::{Call, math};
use crate::check::Elaborator;
use crate::check::arith::{Operand, meet};
use crate::check::value::{Eval, Stop, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{AxisItem, AxisItemKind, Span};

impl Elaborator<'_> {
    /// The sum over these axes of the product, in the dtype where both meet.
    pub(in crate::check) fn contract(&mut self, a: &Tensor, b: &Tensor, names: Vec<Name>, span: Span) -> Eval<Tensor> {
        let dtype = match meet(self.dtype(a), self.dtype(b)) {
            DType::Bool => DType::I32,
            dtype => dtype,
        };
        let (a, b) = (self.cast(a, dtype, span)?, self.cast(b, dtype, span)?);
        let (left, right) = (self.axes(&a).clone(), self.axes(&b).clone());
        if let Err(name) = left.union(&right) {
            let (x, y) = (left.size(&name).unwrap_or(0), right.size(&name).unwrap_or(0));
            let shown = crate::check::scope::plain(&name);
            let message = format!("axis `{shown}` is {x} on the left and {y} on the right");
            let help = "cut or pad one of them, or rename the axis with `as` if it is another one";
            return Err(self.error_help(Code::E0204, message, span, "they meet here", help));
        }
        self.emit(Op::Contract(names), &[&a, &b], span)
    }
}

/// Sums of booleans count.
fn counted(elab: &mut Elaborator<'_>, x: &Tensor, span: Span) -> Eval<Tensor> {
    if elab.dtype(x) == DType::Bool { elab.cast(x, DType::I32, span) } else { Ok(x.clone()) }
}

pub(super) fn sum(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, mask] = elab.take_args(call, ["x", "where"], 1)?;
    if let Some((Value::Record(fields), span)) = &x {
        return sum_record(elab, call, fields.clone(), *span);
    }
    let x = elab.tensor_arg(&x, call)?;
    let x = counted(elab, &x, call.span)?;
    let x = match mask {
        None => x,
        Some(mask) => masked(elab, &x, &mask, call)?.0,
    };
    let names = elab.over(call, &x)?;
    Ok(Value::Tensor(elab.sum_over(&x, &names, call.span)?))
}

/// The sum over everything in a record of tensors: `norm(gradients)`.
fn sum_record(
    elab: &mut Elaborator<'_>,
    call: &mut Call<'_>,
    fields: std::rc::Rc<Vec<(std::rc::Rc<str>, Value)>>,
    span: Span,
) -> Eval<Value> {
    // Whatever axes are named, `norm[..over]` of a record is over all that its members have.
    let mut total = Value::Float(0.0);
    let mut is_first = true;
    for (_, field) in fields.iter() {
        let args = crate::check::value::Args::of([(field.clone(), span)]);
        let mut inner = Call { env: call.env, given: None, args, span: call.span, name: call.name };
        let part = sum(elab, &mut inner)?;
        total = if is_first {
            part
        } else {
            elab.binary(crate::syntax::ast::BinaryOp::Add, (&total, span), (&part, span), call.span)?
        };
        is_first = false;
    }
    Ok(total)
}

/// `x` where the mask holds and 0 elsewhere, along the axes of both; and the mask.
fn masked(
    elab: &mut Elaborator<'_>,
    x: &Tensor,
    (mask, span): &(Value, Span),
    call: &Call<'_>,
) -> Eval<(Tensor, Tensor)> {
    let operand = elab.operand(mask, *span, "`where:`")?;
    let mask = elab.tensor_of(&operand, *span)?;
    if elab.dtype(&mask) != DType::Bool {
        let message = format!("`where:` takes a bool tensor, not {}", elab.dtype(&mask));
        return Err(elab.error(Code::E0207, message, *span, "compare it with something, as in `x > 0`"));
    }
    elab.check_meeting(x, &mask, (call.span, *span), call.span)?;
    let zero = elab.number(0.0, elab.dtype(x), call.span)?;
    let chosen = elab.emit(Op::Select, &[&mask, x, &zero], call.span)?;
    Ok((chosen, mask))
}

pub(super) fn mean(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, mask] = elab.take_args(call, ["x", "where"], 1)?;
    if let Some((value @ Value::Record(_), _)) = &x {
        let (given, span, name, env) = (call.given.clone(), call.span, call.name, call.env.clone());
        return elab.each_tensor(value, &mut |elab, tensor| {
            let args = crate::check::value::Args::of([(Value::Tensor(tensor.clone()), span)]);
            match mean(elab, &mut Call { env: &env, given: given.clone(), args, span, name })? {
                Value::Tensor(tensor) => Ok(tensor),
                _ => Err(Stop),
            }
        });
    }
    let x = elab.tensor_arg(&x, call)?;
    let x = if elab.dtype(&x).is_float() { x } else { elab.cast(&x, DType::F32, call.span)? };
    let (span, dtype) = (call.span, elab.dtype(&x));
    let Some(mask) = mask else {
        let names = elab.over(call, &x)?;
        let count: u64 = names.iter().filter_map(|name| elab.axes(&x).size(name)).product();
        let total = elab.sum_over(&x, &names, span)?;
        if names.is_empty() {
            return Ok(Value::Tensor(total));
        }
        let scale = elab.number(1.0 / (count.max(1)) as f64, dtype, span)?;
        return Ok(Value::Tensor(elab.emit(Op::Mul, &[&total, &scale], span)?));
    };
    let (chosen, mask) = masked(elab, &x, &mask, call)?;
    let names = elab.over(call, &chosen)?;
    let total = elab.sum_over(&chosen, &names, span)?;
    let counts = elab.cast(&mask, dtype, span)?;
    let counted = elab.sum_over(&counts, &names, span)?;
    // What the mask lacks counts as often as there are positions.
    let missing: u64 = names
        .iter()
        .filter(|name| !elab.axes(&mask).contains(name))
        .filter_map(|name| elab.axes(&chosen).size(name))
        .product();
    let counted = if missing > 1 {
        let times = elab.number(missing as f64, dtype, span)?;
        elab.emit(Op::Mul, &[&counted, &times], span)?
    } else {
        counted
    };
    let one = elab.number(1.0, dtype, span)?;
    let counted = elab.emit(Op::Max, &[&counted, &one], span)?;
    Ok(Value::Tensor(elab.emit(Op::Div, &[&total, &counted], span)?))
}

pub(super) fn max(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    extreme(elab, call, true)
}

pub(super) fn min(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    extreme(elab, call, false)
}

fn extreme(elab: &mut Elaborator<'_>, call: &mut Call<'_>, is_max: bool) -> Eval<Value> {
    if call.given.is_none() && call.args.positional.len() > 1 {
        elab.no_more_named(&call.args, call.name)?;
        let args = std::mem::take(&mut call.args).positional;
        let mut result = args[0].clone();
        for next in &args[1..] {
            result.0 = math::largest(elab, is_max, (&result.0, result.1), (&next.0, next.1), call.span)?;
        }
        return Ok(result.0);
    }
    let [x, mask] = elab.take_args(call, ["x", "where"], 1)?;
    if let (None, Some((Value::List(items), span))) = (&call.given, &x) {
        let mut items = items.iter();
        let Some(first) = items.next() else {
            return Err(elab.error(Code::E0208, format!("`{}` of an empty list", call.name), *span, "nothing in it"));
        };
        let mut result = first.clone();
        for next in items {
            result = math::largest(elab, is_max, (&result, *span), (next, *span), call.span)?;
        }
        return Ok(result);
    }
    let x = elab.tensor_arg(&x, call)?;
    let mut x = counted(elab, &x, call.span)?;
    if !is_max {
        x = elab.emit(Op::Neg, &[&x], call.span)?;
    }
    if let Some(mask) = mask {
        let (_, mask) = masked(elab, &x, &mask, call)?;
        let dtype = elab.dtype(&x);
        let least = elab.constant(Scalar::lowest(dtype), dtype, call.span)?;
        x = elab.emit(Op::Select, &[&mask, &x, &least], call.span)?;
    }
    let names = elab.over(call, &x)?;
    let most = if names.is_empty() { x } else { elab.emit(Op::MaxOver(names), &[&x], call.span)? };
    Ok(Value::Tensor(if is_max { most } else { elab.emit(Op::Neg, &[&most], call.span)? }))
}

pub(super) fn any(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    of_mask(elab, call, true)
}

pub(super) fn all(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    of_mask(elab, call, false)
}

fn of_mask(elab: &mut Elaborator<'_>, call: &mut Call<'_>, is_any: bool) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let tensor = elab.tensor_arg(&x, call)?;
    if elab.dtype(&tensor) != DType::Bool {
        let span = x.map_or(call.span, |(_, span)| span);
        let message = format!("`{}` takes a bool tensor, not {}", call.name, elab.dtype(&tensor));
        return Err(elab.error(Code::E0207, message, span, "compare it with something, as in `x > 0`"));
    }
    let span = call.span;
    let names = elab.over(call, &tensor)?;
    let tensor = if is_any { tensor } else { elab.emit(Op::Not, &[&tensor], span)? };
    let counted = elab.cast(&tensor, DType::I32, span)?;
    let most = if names.is_empty() { counted } else { elab.emit(Op::MaxOver(names), &[&counted], span)? };
    let limit = elab.i32_number(i64::from(is_any), span)?;
    Ok(Value::Tensor(elab.emit(Op::Equal, &[&most, &limit], span)?))
}

pub(super) fn argmax(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let x = counted(elab, &x, call.span)?;
    let axis = elab.one_axis(call, &x)?;
    let x = if call.name == "argmin" { elab.emit(Op::Neg, &[&x], call.span)? } else { x };
    let out = elab.fresh("best");
    let best = elab.emit(Op::Top { axis: axis.name, out: Axis::new(out.clone(), 1) }, &[&x], call.span)?;
    Ok(Value::Tensor(elab.squeeze(&best, &out, call.span)?))
}

pub(super) fn dot(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [a, b] = elab.take_args(call, ["a", "b"], 2)?;
    let (left, right) = (elab.tensor_arg(&a, call)?, elab.tensor_arg(&b, call)?);
    let Some(given) = call.given.clone() else {
        let help = "`dot[key](a, b)` sums over `key`; `dot[](a, b)` is the outer product";
        return Err(elab.error_help(Code::E0208, "`dot` is not given its axes", call.span, "this call", help));
    };
    let names = elab.reduced(&given.env, &given.axes, &left, "dot")?;
    if let Some(name) = names.iter().find(|name| !elab.axes(&right).contains(name)) {
        let (x, y) = (elab.axes(&left).clone(), elab.axes(&right).clone());
        let shown = crate::check::scope::plain(name);
        let spans = (a.map_or(call.span, |(_, span)| span), b.map_or(call.span, |(_, span)| span));
        let diagnostic =
            crate::diag::Diagnostic::error(Code::E0203, format!("`dot` over `{shown}`, which the right side lacks"))
                .label(spans.1, format!("has {}", elab.show_axes(&y)))
                .label(spans.0, format!("has {}", elab.show_axes(&x)));
        let size = x.size(name);
        let same: Vec<&Axis> = y.iter().filter(|axis| Some(axis.size) == size && !x.contains(&axis.name)).collect();
        return Err(elab.fail(match same.as_slice() {
            [one] => diagnostic
                .help(format!("rename it if it is the same: `[{} as {shown}]`", crate::check::scope::plain(&one.name))),
            _ => diagnostic,
        }));
    }
    Ok(Value::Tensor(elab.contract(&left, &right, names, call.span)?))
}

pub(super) fn cumsum(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, reverse] = elab.take_args(call, ["x", "reverse"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let x = counted(elab, &x, call.span)?;
    let axis = elab.one_axis(call, &x)?;
    let reverse = flag(elab, reverse, "reverse")?;
    Ok(Value::Tensor(elab.emit(Op::Prefix { axis: axis.name, reverse }, &[&x], call.span)?))
}

pub(super) fn flag(elab: &mut Elaborator<'_>, arg: Option<(Value, Span)>, name: &str) -> Eval<bool> {
    match arg {
        None => Ok(false),
        Some((Value::Bool(value), _)) => Ok(value),
        Some((other, span)) => {
            Err(elab.error(Code::E0209, format!("`{name}` is a Bool, not {}", other.kind()), span, "this"))
        }
    }
}

/// `top[expert as slot: 2](p)`
pub(super) fn top(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let x = counted(elab, &x, call.span)?;
    let help = "`top[expert as slot: 2](p)`: along which axis, and the axis of the best";
    let Some(given) = call.given.clone() else {
        return Err(elab.error_help(Code::E0208, "`top` is not given its axes", call.span, "this call", help));
    };
    let [AxisItem { kind: AxisItemKind::Rename { from, to }, span }] = given.axes.items.as_slice() else {
        return Err(elab.error_help(
            Code::E0217,
            "`top` takes one axis and its new name",
            given.axes.span,
            "these brackets",
            help,
        ));
    };
    let ([old], [new]) = (from.parts.as_slice(), to.parts.as_slice()) else {
        return Err(elab.error_help(Code::E0217, "`top` takes one axis and its new name", *span, "here", help));
    };
    let (axis, out) = (Name::from(old.axis.text()), Name::from(new.axis.text()));
    let Some(size) = elab.axes(&x).size(&axis) else { return Err(elab.no_axis(&given.env, &x, &axis, *span)) };
    let count = match &new.size {
        Some(count) => elab.eval_size(&given.env, count, out.as_str())?,
        None => elab.need_axis(&given.env, &out, *span)?,
    };
    if count > size {
        let message = format!("the {count} best of {size} positions along `{}`", crate::check::scope::plain(&axis));
        return Err(elab.error(Code::E0215, message, *span, "more than there are"));
    }
    if out != axis && elab.axes(&x).contains(&out) {
        let message = format!("the argument of `top` has the axis `{out}` already");
        return Err(elab.error(Code::E0212, message, *span, "would be there twice"));
    }
    given.env.frame.set_axis(&out, count);
    let positions = elab.emit(Op::Top { axis: axis.clone(), out: Axis::new(out, count) }, &[&x], call.span)?;
    let values = elab.gather(&x, &axis, &positions, call.span)?;
    Ok(Value::tuple(vec![Value::Tensor(values), Value::Tensor(positions)]))
}

pub(super) fn sort(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, descending] = elab.take_args(call, ["x", "descending"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let x = counted(elab, &x, call.span)?;
    let axis = elab.one_axis(call, &x)?;
    let descending = flag(elab, descending, "descending")?;
    let order = elab.emit(Op::Top { axis: axis.name.clone(), out: axis.clone() }, &[&x], call.span)?;
    let sorted = elab.gather(&x, &axis.name, &order, call.span)?;
    if descending || axis.size == 0 {
        return Ok(Value::Tensor(sorted));
    }
    Ok(Value::Tensor(elab.slice(&sorted, &axis.name, axis.size - 1, axis.size, -1, call.span)?))
}

/// A tensor with at least the hidden axes and these.
pub(super) fn with_axes(elab: &mut Elaborator<'_>, x: &Tensor, axes: &[Axis], span: Span) -> Eval<Tensor> {
    match AxisSet::of(axes.iter().cloned()) {
        Some(set) => elab.expand(x, &set, span),
        None => Err(elab.error(Code::E0212, "an axis stands twice", span, "in these brackets")),
    }
}

/// A number or tensor argument in a dtype.
pub(super) fn operand_in(elab: &mut Elaborator<'_>, arg: &(Value, Span), dtype: DType, what: &str) -> Eval<Tensor> {
    let operand: Operand = elab.operand(&arg.0, arg.1, what)?;
    elab.as_tensor(&operand, dtype, arg.1)
}
