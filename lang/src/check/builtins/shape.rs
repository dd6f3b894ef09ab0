//! Moving data: shifts, joins, windows, putting rows at positions; and the loops, which live in `loops.rs`.

use mdl_graph::{Axis, AxisSet, DType, Name, Op, Scalar, ScatterKind};

use super::Call;
use super::reduce::operand_in;
use crate::check::Elaborator;
use crate::check::arith::{Kind, kind_of, meet};
use crate::check::scope::plain;
use crate::check::value::{Eval, Given, Stop, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{AxisItem, AxisItemKind, Span};

pub(super) fn scan(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.scan_or_fold(call, true)
}

pub(super) fn fold(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.scan_or_fold(call, false)
}

pub(super) fn map(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.map_axis(call)
}

pub(super) fn reverse(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let axis = elab.one_axis(call, &x)?;
    if axis.size < 2 {
        return Ok(Value::Tensor(x));
    }
    Ok(Value::Tensor(elab.slice(&x, &axis.name, axis.size - 1, axis.size, -1, call.span)?))
}

fn pad(
    elab: &mut Elaborator<'_>,
    x: &Tensor,
    axis: &Name,
    (before, after): (u64, u64),
    fill: Scalar,
    span: Span,
) -> Eval<Tensor> {
    if before == 0 && after == 0 {
        return Ok(x.clone());
    }
    let fill = fill.cast(elab.dtype(x));
    elab.emit(Op::Pad { axis: axis.clone(), before, after, fill }, &[x], span)
}

/// A number known at compile time, as what fills a border.
fn fill_of(elab: &mut Elaborator<'_>, arg: Option<(Value, Span)>, what: &str) -> Eval<Scalar> {
    match arg {
        None => Ok(Scalar::Float(0.0)),
        Some((Value::Bool(value), _)) => Ok(Scalar::Bool(value)),
        Some((value, span)) => match (value.as_int(), value.as_float()) {
            (Some(value), _) => Ok(Scalar::Int(value)),
            (_, Some(value)) => Ok(Scalar::Float(value)),
            _ => Err(elab.error(
                Code::E0213,
                format!("`fill` of `{what}` is a number known at compile time"),
                span,
                "this is none",
            )),
        },
    }
}

/// Whether a fill keeps the dtype: `-inf` makes floats of integers.
fn fit_fill(elab: &mut Elaborator<'_>, x: Tensor, fill: Scalar, span: Span) -> Eval<Tensor> {
    let is_float = matches!(fill, Scalar::Float(value) if value != 0.0);
    let is_int = matches!(fill, Scalar::Int(value) if value != 0 && value != 1);
    match kind_of(elab.dtype(&x)) {
        Kind::Int | Kind::Bool if is_float => elab.cast(&x, DType::F32, span),
        Kind::Bool if is_int => elab.cast(&x, DType::I32, span),
        _ => Ok(x),
    }
}

/// `shift[t](x, by: 1, fill: 0)`: y[i] = x[i - by]
pub(super) fn shift(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, by, fill] = elab.take_args(call, ["x", "by", "fill"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let axis = elab.one_axis(call, &x)?;
    let span = call.span;
    let by = match by {
        None => 1,
        Some((value, place)) => match value.as_int() {
            Some(by) => by,
            None => {
                return Err(elab.error(Code::E0209, format!("`by` is an Int, not {}", value.kind()), place, "this"));
            }
        },
    };
    // A fill that is a tensor: shifted, and chosen where nothing came.
    let (fill, tensor_fill) = match fill {
        Some((Value::Tensor(fill), place)) => (Scalar::Float(0.0), Some((fill, place))),
        fill => (fill_of(elab, fill, "shift")?, None),
    };
    let x = fit_fill(elab, x, fill, span)?;
    let n = axis.size.min(by.unsigned_abs());
    let start = if by >= 0 { 0 } else { n };
    let kept = elab.slice(&x, &axis.name, start.min(axis.size.saturating_sub(1)), axis.size - n, 1, span)?;
    let border = if by >= 0 { (n, 0) } else { (0, n) };
    let moved = pad(elab, &kept, &axis.name, border, fill, span)?;
    let Some((fill, place)) = tensor_fill else { return Ok(Value::Tensor(moved)) };
    let place_of = elab.emit(Op::Iota(axis.clone()), &[], span)?;
    let limit = elab.i32_number(if by >= 0 { n as i64 } else { (axis.size - n) as i64 }, span)?;
    let is_new = if by >= 0 {
        elab.emit(Op::Less, &[&place_of, &limit], span)?
    } else {
        let is_old = elab.emit(Op::Less, &[&place_of, &limit], span)?;
        elab.emit(Op::Not, &[&is_old], span)?
    };
    elab.select([(&Value::Tensor(is_new), span), (&Value::Tensor(fill), place), (&Value::Tensor(moved), span)], span)
}

/// Tensors one after another: the sum of them all, each padded to its place.
fn join(elab: &mut Elaborator<'_>, parts: &[Tensor], axis: &Name, span: Span) -> Eval<Tensor> {
    let sizes: Vec<u64> = parts.iter().map(|part| elab.axes(part).size(axis).unwrap_or(1)).collect();
    let total: u64 = sizes.iter().sum();
    let mut before = 0;
    let mut whole: Option<Tensor> = None;
    for (part, size) in parts.iter().zip(&sizes) {
        let placed = pad(elab, part, axis, (before, total - before - size), Scalar::Float(0.0), span)?;
        before += size;
        whole = Some(match whole {
            None => placed,
            Some(whole) if elab.dtype(&whole) == DType::Bool => elab.emit(Op::Or, &[&whole, &placed], span)?,
            Some(whole) => elab.emit(Op::Add, &[&whole, &placed], span)?,
        });
    }
    whole.ok_or(Stop)
}

/// The positional arguments as tensors of one dtype and, but for `axis`, of the same axes.
fn alike(elab: &mut Elaborator<'_>, call: &mut Call<'_>, axis: Option<&Name>) -> Eval<Vec<Tensor>> {
    let args = std::mem::take(&mut call.args);
    elab.no_more_named(&args, call.name)?;
    let mut values = args.positional;
    if let [(Value::List(items) | Value::Tuple(items), span)] = values.as_slice() {
        let span = *span;
        values = items.iter().map(|item| (item.clone(), span)).collect();
    }
    let mut tensors: Vec<Tensor> = Vec::new();
    for value in &values {
        tensors.push(elab.tensor_arg(&Some(value.clone()), call)?);
    }
    let Some(first) = tensors.first() else {
        return Err(elab.error(Code::E0208, format!("`{}` of nothing", call.name), call.span, "give it tensors"));
    };
    let mut dtype = elab.dtype(first);
    let mut axes = AxisSet::new();
    for (tensor, (_, span)) in tensors.iter().zip(&values) {
        dtype = meet(dtype, elab.dtype(tensor));
        let mut own = elab.axes(tensor).clone();
        if let Some(axis) = axis {
            own.remove(axis);
        }
        axes = match axes.union(&own) {
            Ok(axes) => axes,
            Err(name) => {
                let (a, b) = (axes.size(&name).unwrap_or(0), own.size(&name).unwrap_or(0));
                let message =
                    format!("axis `{}` is {a} in one part of `{}` and {b} in another", plain(&name), call.name);
                return Err(elab.error(Code::E0204, message, *span, format!("{b} here")));
            }
        };
    }
    let mut out = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let tensor = elab.cast(&tensor, dtype, call.span)?;
        out.push(elab.expand(&tensor, &axes, call.span)?);
    }
    Ok(out)
}

fn brackets(elab: &mut Elaborator<'_>, call: &Call<'_>) -> Eval<Given> {
    match &call.given {
        Some(given) => Ok(given.clone()),
        None => {
            let doc = super::find(call.name).map_or("", |builtin| builtin.doc);
            Err(elab.error_help(
                Code::E0208,
                format!("`{}` is not given its axis", call.name),
                call.span,
                "this call",
                doc,
            ))
        }
    }
}

/// A name in brackets that a call makes: known to the frame or new.
fn new_name(elab: &mut Elaborator<'_>, given: &Given, what: &str) -> Eval<(Name, Option<u64>, Span)> {
    match given.axes.items.as_slice() {
        [AxisItem { kind: AxisItemKind::Axis(axis), span }] if !axis.is_pack && axis.path.len() == 1 => {
            Ok((Name::from(axis.text()), None, *span))
        }
        [AxisItem { kind: AxisItemKind::Bind { axis, value }, span }] => {
            let size = elab.eval_size(&given.env, value, &axis.text())?;
            Ok((Name::from(axis.text()), Some(size), *span))
        }
        _ => Err(elab.error(Code::E0217, format!("`{what}` takes one axis"), given.axes.span, "these brackets")),
    }
}

pub(super) fn concat(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let given = brackets(elab, call)?;
    let (axis, into) = match given.axes.items.as_slice() {
        [AxisItem { kind: AxisItemKind::Rename { from, to }, span }] => {
            match (from.parts.as_slice(), to.parts.as_slice()) {
                ([old], [new]) => (Name::from(old.axis.text()), Name::from(new.axis.text())),
                _ => return Err(elab.error(Code::E0217, "`concat` takes one axis", *span, "several")),
            }
        }
        _ => {
            let (name, _, _) = new_name(elab, &given, "concat")?;
            (name.clone(), name)
        }
    };
    let parts = alike(elab, call, Some(&axis))?;
    if parts.iter().all(|part| !elab.axes(part).contains(&axis)) && !given.env.frame.axes.borrow().contains_key(&axis) {
        return Err(elab.unknown_axis(&given.env, &axis, given.axes.span));
    }
    // A part without the axis is one position.
    let one = AxisSet::of([Axis::new(axis.clone(), 1)]).unwrap_or_default();
    let mut whole = Vec::with_capacity(parts.len());
    for part in &parts {
        let has = elab.axes(part).contains(&axis);
        whole.push(if has { part.clone() } else { elab.expand(part, &one, call.span)? });
    }
    let joined = join(elab, &whole, &axis, call.span)?;
    let size = elab.axes(&joined).size(&axis).unwrap_or(1);
    if into != axis {
        if elab.axes(&joined).contains(&into) {
            return Err(elab.error(
                Code::E0212,
                format!("a part has the axis `{into}` already"),
                call.span,
                "would be there twice",
            ));
        }
        if let Some(known) = elab.local_axis_size(&given.env, &into)
            && known != size
        {
            let message = format!("`{into}` has {known} positions, and the parts make {size}");
            return Err(elab.error(Code::E0204, message, given.axes.span, format!("{size} here")));
        }
        given.env.frame.set_axis(&into, size);
    }
    Ok(Value::Tensor(elab.rename(&joined, &[(axis, into)], call.span)?))
}

pub(super) fn stack(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let given = brackets(elab, call)?;
    let (axis, size, span) = new_name(elab, &given, "stack")?;
    let parts = alike(elab, call, None)?;
    if let Some(part) = parts.iter().find(|part| elab.axes(part).contains(&axis)) {
        let has = elab.show_axes(&elab.axes(part).clone());
        return Err(elab.error(
            Code::E0212,
            format!("a part of `stack` has the axis `{axis}` already"),
            span,
            format!("it has {has}"),
        ));
    }
    if let Some(size) = size
        && size != parts.len() as u64
    {
        let message = format!("`stack[{axis}: {size}]` of {} parts", parts.len());
        return Err(elab.error(Code::E0204, message, span, "the numbers differ"));
    }
    let one = AxisSet::of([Axis::new(axis.clone(), 1)]).unwrap_or_default();
    let mut whole = Vec::with_capacity(parts.len());
    for part in &parts {
        whole.push(elab.expand(part, &one, call.span)?);
    }
    given.env.frame.set_axis(&axis, parts.len() as u64);
    Ok(Value::Tensor(join(elab, &whole, &axis, call.span)?))
}

pub(super) fn parts(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let axis = elab.one_axis(call, &x)?;
    if axis.size > 4096 {
        let message = format!("`parts` would make {} tensors", axis.size);
        return Err(elab.error_help(
            Code::E0211,
            message,
            call.span,
            "at most 4096",
            "`map` and `scan` run along an axis",
        ));
    }
    let mut out = Vec::new();
    for i in 0..axis.size {
        let cut = elab.slice(&x, &axis.name, i, 1, 1, call.span)?;
        out.push(Value::Tensor(elab.squeeze(&cut, &axis.name, call.span)?));
    }
    Ok(Value::tuple(out))
}

pub(super) fn expand(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x] = elab.take_args(call, ["x"], 1)?;
    let given = brackets(elab, call)?;
    let resolved = elab.resolve_given(&given)?;
    let mut more = AxisSet::new();
    for item in &resolved.items {
        for (name, size) in &item.axes {
            let Some(size) = size else { return Err(elab.unknown_axis(&given.env, name, item.span)) };
            more.insert(Axis::new(name.clone(), *size));
            given.env.frame.axes.borrow_mut().entry(name.clone()).or_insert(*size);
        }
    }
    let Some((value, span)) = x else { return Err(Stop) };
    let whole = call.span;
    let value = match &value {
        Value::Record(_) | Value::Tuple(_) => value,
        _ => Value::Tensor(elab.tensor_arg(&Some((value, span)), call)?),
    };
    elab.each_tensor(&value, &mut |elab, tensor| {
        if let Some(axis) = more.iter().find(|axis| elab.axes(tensor).contains(&axis.name)) {
            let message = format!("what is expanded has the axis `{}` already", axis.name);
            return Err(elab.error(Code::E0212, message, span, "would be there twice"));
        }
        elab.expand(tensor, &more, whole)
    })
}

/// `window[row as (row, i: 3), column as (column, j: 3)](x, stride: 2, pad: 1, fill: -inf)`
pub(super) fn window(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let [x, stride, border, fill] = elab.take_args(call, ["x", "stride", "pad", "fill"], 1)?;
    let x = elab.tensor_arg(&x, call)?;
    let span = call.span;
    let stride = match &stride {
        None => 1,
        Some((value, place)) => match value.as_int() {
            Some(stride) if stride > 0 => stride as u64,
            _ => return Err(elab.error(Code::E0209, "`stride` is an Int of at least 1", *place, value.kind())),
        },
    };
    let border = match &border {
        None => (0, 0),
        Some((Value::Tuple(sides), place)) => {
            match (sides.len(), sides.first().and_then(Value::as_int), sides.last().and_then(Value::as_int)) {
                (2, Some(before @ 0..), Some(after @ 0..)) => (before as u64, after as u64),
                _ => {
                    return Err(elab.error(
                        Code::E0209,
                        "`pad` is an Int or a pair, (before, after)",
                        *place,
                        "this is neither",
                    ));
                }
            }
        }
        Some((value, place)) => match value.as_int() {
            Some(both) if both >= 0 => (both as u64, both as u64),
            _ => {
                return Err(elab.error(
                    Code::E0209,
                    "`pad` is an Int or a pair, (before, after)",
                    *place,
                    value.kind(),
                ));
            }
        },
    };
    let fill = fill_of(elab, fill, "window")?;
    let mut x = fit_fill(elab, x, fill, span)?;
    let given = brackets(elab, call)?;
    let help = "`window[t as (t, tap: 3)](x)`: the axis, where windows begin, and the axis inside of a window";
    for item in &given.axes.items {
        let AxisItemKind::Rename { from, to } = &item.kind else {
            return Err(elab.error_help(Code::E0217, "`window` splits axes", item.span, "this splits none", help));
        };
        let ([old], [out, tap]) = (from.parts.as_slice(), to.parts.as_slice()) else {
            return Err(elab.error_help(
                Code::E0217,
                "`window` makes two axes of one",
                item.span,
                "this does not",
                help,
            ));
        };
        let names: Vec<Name> = [&old.axis, &out.axis, &tap.axis].iter().map(|axis| Name::from(axis.text())).collect();
        let [axis, out, tap_name] = names.as_slice() else { return Err(Stop) };
        if !elab.axes(&x).contains(axis) {
            return Err(elab.no_axis(&given.env, &x, axis, item.span));
        }
        let taps = match &tap.size {
            Some(size) => elab.eval_size(&given.env, size, tap_name.as_str())?,
            None => elab.need_axis(&given.env, tap_name, item.span)?,
        };
        x = pad(elab, &x, axis, border, fill, span)?;
        let size = elab.axes(&x).size(axis).unwrap_or(0);
        if taps > size {
            let message = format!("a window of {taps} does not fit `{}`, which has {size} positions", plain(axis));
            return Err(elab.error_help(
                Code::E0215,
                message,
                item.span,
                "no window fits",
                "pad it, `pad: 1`, or take a smaller one",
            ));
        }
        for name in [out, tap_name] {
            if name != axis && elab.axes(&x).contains(name) {
                return Err(elab.error(
                    Code::E0212,
                    format!("the argument has the axis `{name}` already"),
                    item.span,
                    "would be there twice",
                ));
            }
        }
        let op = Op::Window { axis: axis.clone(), out: out.clone(), tap: Axis::new(tap_name.clone(), taps), stride };
        x = elab.emit(op, &[&x], span)?;
        let count = elab.axes(&x).size(out).unwrap_or(0);
        given.env.frame.set_axis(tap_name, taps);
        if out != axis {
            given.env.frame.set_axis(out, count);
        }
    }
    Ok(Value::Tensor(x))
}

pub(super) fn put(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    scatter(elab, call, ScatterKind::Put)
}

pub(super) fn add(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    scatter(elab, call, ScatterKind::Add)
}

/// `put[t = spot](x, y)`
fn scatter(elab: &mut Elaborator<'_>, call: &mut Call<'_>, kind: ScatterKind) -> Eval<Value> {
    let [x, y] = elab.take_args(call, ["x", "y"], 2)?;
    let given = brackets(elab, call)?;
    let help = format!("`{}[t = spot](x, y)`: the axis, and the positions along it", call.name);
    let [AxisItem { kind: AxisItemKind::Index { axis, value }, span }] = given.axes.items.as_slice() else {
        return Err(elab.error_help(
            Code::E0217,
            format!("`{}` takes one axis and positions", call.name),
            given.axes.span,
            "these brackets",
            help,
        ));
    };
    let x = elab.tensor_arg(&x, call)?;
    let name = Name::from(axis.text());
    let Some(size) = elab.axes(&x).size(&name) else { return Err(elab.no_axis(&given.env, &x, &name, *span)) };
    let index = elab.eval(&given.env, value)?;
    let index = elab.need_int(&index, value.span, "a position")?;
    let Some(y) = y else { return Err(Stop) };
    let dtype = elab.dtype(&x);
    let rows = operand_in(elab, &y, dtype, call.name)?;
    let mut left = elab.axes(&x).clone();
    left.remove(&name);
    // Axes of the index that x has too are matched; the others say where a row goes, and are gone afterwards.
    let keep: Vec<Name> = elab.axes(&index).names().filter(|axis| left.contains(axis)).cloned().collect();
    for other in elab.axes(&rows).clone().iter() {
        let known = left.get(&other.name).or(elab.axes(&index).get(&other.name));
        if known.is_none_or(|known| known.size != other.size) {
            let has = elab.show_axes(&elab.axes(&rows).clone());
            let message =
                format!("what `{}` writes has the axis `{}`, which neither side has so", call.name, plain(&other.name));
            return Err(elab.error(Code::E0203, message, y.1, format!("this has {has}")));
        }
    }
    let span = call.span;
    let target = Axis::new(name, size);
    let op = Op::Scatter { axis: target.clone(), keep: keep.clone(), kind };
    let written = elab.emit(op, &[&rows, &index], span)?;
    if kind == ScatterKind::Add {
        let (x, written) = if dtype == DType::Bool {
            return Err(elab.error(Code::E0207, "`add` of a bool tensor", span, "`put` writes booleans"));
        } else {
            (x, written)
        };
        return Ok(Value::Tensor(elab.emit(Op::Add, &[&x, &written], span)?));
    }
    let one = elab.number(1.0, DType::I32, span)?;
    let hits = elab.emit(Op::Scatter { axis: target, keep, kind: ScatterKind::Put }, &[&one, &index], span)?;
    let is_hit = elab.emit(Op::Equal, &[&hits, &one], span)?;
    Ok(Value::Tensor(elab.emit(Op::Select, &[&is_hit, &written, &x], span)?))
}
