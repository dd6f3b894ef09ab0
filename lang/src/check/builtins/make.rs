//! What is made from nothing: constants, draws, gradients.

use std::rc::Rc;

use mdl_graph::{Axis, DType, Op};

use super::Call;
use super::reduce::{operand_in, with_axes};
use crate::check::Elaborator;
use crate::check::value::{Args, Eval, Function, FunctionKind, Stop, StoredKind, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::Span;

/// For names that are complete with their brackets.
pub(super) fn only_bracket(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let doc = super::find(call.name).map_or("", |builtin| builtin.doc);
    Err(elab.error_help(Code::E0217, format!("`{}` is not called so", call.name), call.span, "this call", doc))
}

/// The axes in brackets with their sizes; `None` without brackets: it waits for them.
fn made_axes(elab: &mut Elaborator<'_>, call: &Call<'_>) -> Eval<Option<Vec<Axis>>> {
    let Some(given) = call.given.clone() else { return Ok(None) };
    let resolved = elab.resolve_given(&given)?;
    let mut axes = Vec::new();
    for item in &resolved.items {
        for (name, size) in &item.axes {
            let Some(size) = size else { return Err(elab.unknown_axis(&given.env, name, item.span)) };
            axes.push(Axis::new(name.clone(), *size));
        }
    }
    Ok(Some(axes))
}

fn make(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let Some(builtin) = super::find(call.name) else { return Err(Stop) };
    let Some(fill) = builtin.fill else { return Err(Stop) };
    match made_axes(elab, call)? {
        Some(axes) => {
            if let Some((_, _, span)) = call.args.named("like") {
                let message = format!("`{}` has axes in brackets and `like:`", call.name);
                return Err(elab.error(Code::E0208, message, *span, "give one of them"));
            }
            let args = std::mem::take(&mut call.args);
            Ok(Value::Tensor(fill(elab, &axes, &args, call.span)?))
        }
        None => {
            let callee = Value::Function(Rc::new(Function { kind: FunctionKind::Builtin(builtin), given: None }));
            let mut args = std::mem::take(&mut call.args);
            let like = elab.take_named(&mut args, "like");
            let waiting = Value::function(FunctionKind::Waiting { callee: Rc::new(callee), args });
            match like {
                Some((like, span)) => elab.fill_like(&waiting, &like, span, call.span),
                None => Ok(waiting),
            }
        }
    }
}

pub(super) fn zeros(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    make(elab, call)
}

pub(super) fn ones(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    make(elab, call)
}

pub(super) fn uniform(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    make(elab, call)
}

fn fill_number(
    elab: &mut Elaborator<'_>,
    number: f64,
    axes: &[Axis],
    args: &Args,
    span: Span,
    what: &str,
) -> Eval<Tensor> {
    if let Some((_, place)) = args.positional.first() {
        let help = format!("its axes stand in brackets: `{what}[batch, t]()`");
        return Err(elab.error_help(Code::E0208, format!("`{what}` takes no arguments"), *place, "one too many", help));
    }
    elab.no_more_named(args, what)?;
    let number = elab.number(number, DType::F32, span)?;
    with_axes(elab, &number, axes, span)
}

pub(super) fn fill_zeros(elab: &mut Elaborator<'_>, axes: &[Axis], args: &Args, span: Span) -> Eval<Tensor> {
    fill_number(elab, 0.0, axes, args, span, "zeros")
}

pub(super) fn fill_ones(elab: &mut Elaborator<'_>, axes: &[Axis], args: &Args, span: Span) -> Eval<Tensor> {
    fill_number(elab, 1.0, axes, args, span, "ones")
}

/// `low + (high - low) · u`, `u` in [0, 1)
pub(super) fn fill_uniform(elab: &mut Elaborator<'_>, axes: &[Axis], args: &Args, span: Span) -> Eval<Tensor> {
    let env = elab.file_env(0);
    let mut call = Call { env: &env, given: None, args: args.clone(), span, name: "uniform" };
    let [low, high] = elab.take_args(&mut call, ["low", "high"], 0)?;
    let u = elab.draw(axes, span)?;
    let number = |arg: &Option<(Value, Span)>, default: f64| match arg {
        None => Some(default),
        Some((value, _)) => value.as_float(),
    };
    if let (Some(low), Some(high)) = (number(&low, 0.0), number(&high, 1.0)) {
        if (low, high) == (0.0, 1.0) {
            return Ok(u);
        }
        let scale = elab.number(high - low, DType::F32, span)?;
        let scaled = elab.emit(Op::Mul, &[&u, &scale], span)?;
        let low = elab.number(low, DType::F32, span)?;
        return elab.emit(Op::Add, &[&scaled, &low], span);
    }
    let low = match &low {
        Some(low) => operand_in(elab, low, DType::F32, "uniform")?,
        None => elab.number(0.0, DType::F32, span)?,
    };
    let high = match &high {
        Some(high) => operand_in(elab, high, DType::F32, "uniform")?,
        None => elab.number(1.0, DType::F32, span)?,
    };
    let range = elab.emit(Op::Sub, &[&high, &low], span)?;
    let scaled = elab.emit(Op::Mul, &[&u, &range], span)?;
    elab.emit(Op::Add, &[&scaled, &low], span)
}

/// `sample[over](logits)`: argmax(logits + Gumbel noise).
pub(super) fn sample(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["logits"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let x = elab.cast(&x, DType::F32, call.span)?;
    let axis = elab.one_axis(call, &x)?;
    let span = call.span;
    let axes: Vec<Axis> = elab.visible(&x);
    let u = elab.draw(&axes, span)?;
    // -log(-log(1 - u)): 1 - u lies in (0, 1]; its logarithm is kept away from 0.
    let one = elab.number(1.0, DType::F32, span)?;
    let v = elab.emit(Op::Sub, &[&one, &u], span)?;
    let log = elab.emit(Op::Log, &[&v], span)?;
    let minus = elab.emit(Op::Neg, &[&log], span)?;
    let least = elab.number(1e-20, DType::F32, span)?;
    let minus = elab.emit(Op::Max, &[&minus, &least], span)?;
    let log = elab.emit(Op::Log, &[&minus], span)?;
    let noisy = elab.emit(Op::Sub, &[&x, &log], span)?;
    let out = elab.fresh("best");
    let best = elab.emit(Op::Top { axis: axis.name, out: Axis::new(out.clone(), 1) }, &[&noisy], span)?;
    Ok(Value::Tensor(elab.squeeze(&best, &out, span)?))
}

/// `weights(model)`
pub(super) fn weights(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [model] = elab.take_args(call, ["model"], 1)?;
    let Some((model, span)) = model else { return Err(Stop) };
    if !matches!(model, Value::Layer(_) | Value::Record(_) | Value::List(_)) {
        let message = format!("`weights` takes a model, not {}", model.kind());
        return Err(elab.error(Code::E0209, message, span, format!("this is {}", model.kind())));
    }
    let ids = elab.stored_of(&model);
    let mut fields: Vec<(Rc<str>, Value)> = Vec::new();
    for id in ids {
        if elab.stored[id.0 as usize].kind == StoredKind::Weight {
            let tensor = elab.stored_input(id);
            let path = elab.stored[id.0 as usize].path.clone();
            fields.push((Rc::from(path), Value::Tensor(tensor)));
        }
    }
    Ok(Value::Record(Rc::new(fields)))
}
