//! Loops: the body once for each position of the axis.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, Op, Scalar, Type, infer_results};

use super::tensor::{Data, Tensor, offsets, stride, strides};
use super::{Rounding, run};

/// The results of a loop: its last carries, then what it stacked.
pub(super) fn run_loop(op: &Op, args: &[&Rc<Tensor>], rounding: Rounding) -> Result<Vec<Rc<Tensor>>, String> {
    run_loop_watched(op, args, rounding, &mut |_, _| true)
}

/// The same; before each pass `watch` sees its position and the inputs of the body. When it gives false the loop ends with an error.
pub(super) fn run_loop_watched(
    op: &Op,
    args: &[&Rc<Tensor>],
    rounding: Rounding,
    watch: &mut dyn FnMut(u64, &[Rc<Tensor>]) -> bool,
) -> Result<Vec<Rc<Tensor>>, String> {
    let Op::Loop(inner) = op else { return Err(format!("`{}` is no loop", op.name())) };
    let types: Vec<&Type> = args.iter().map(|arg| &arg.ty).collect();
    let results = infer_results(op, &types).map_err(|error| error.0)?;
    let (carries, rest) = args.split_at(inner.carries);
    let (scans, free) = rest.split_at(inner.scans);
    let mut carried: Vec<Rc<Tensor>> = carries.iter().map(|arg| Rc::clone(arg)).collect();
    let mut stacked: Vec<Tensor> =
        results[inner.carries..].iter().map(|ty| Tensor::filled(ty.clone(), Scalar::Bool(false))).collect();
    for i in 0..inner.axis.size {
        let at = if inner.reverse { inner.axis.size - 1 - i } else { i };
        let mut inputs = carried.clone();
        inputs.extend(scans.iter().map(|arg| Rc::new(position(arg, &inner.axis, at))));
        inputs.extend(free.iter().map(|arg| Rc::clone(arg)));
        if !watch(at, &inputs) {
            return Err(format!("stopped before pass {i}"));
        }
        let mut outputs =
            run(&inner.body, &inputs, rounding).map_err(|error| format!("in pass {i} of the loop, {error}"))?;
        let done = if inner.until { outputs.pop() } else { None };
        for (whole, part) in stacked.iter_mut().zip(outputs.split_off(inner.carries)) {
            place(whole, &part, &inner.axis, at);
        }
        carried = outputs;
        if done.is_some_and(|done| done.data == Data::Bool(vec![true])) {
            break;
        }
    }
    carried.extend(stacked.into_iter().map(Rc::new));
    Ok(carried)
}

fn slots(whole: &AxisSet, part: &AxisSet, axis: &Axis, at: u64) -> Vec<usize> {
    let sizes: Vec<u64> = part.iter().map(|axis| axis.size).collect();
    offsets(&sizes, &strides(part.iter(), whole), stride(whole, &axis.name) * at as i64)
}

/// The part of `whole` at one position along `axis`.
fn position(whole: &Tensor, axis: &Axis, at: u64) -> Tensor {
    let mut ty = whole.ty.clone();
    ty.axes.remove(&axis.name);
    let data = whole.data.pick(&slots(&whole.ty.axes, &ty.axes, axis, at));
    Tensor { ty, data }
}

fn place(whole: &mut Tensor, part: &Tensor, axis: &Axis, at: u64) {
    let slots = slots(&whole.ty.axes, &part.ty.axes, axis, at);
    match (&mut whole.data, &part.data) {
        (Data::Float(whole), Data::Float(part)) => part.iter().zip(slots).for_each(|(x, slot)| whole[slot] = *x),
        (Data::Int(whole), Data::Int(part)) => part.iter().zip(slots).for_each(|(x, slot)| whole[slot] = *x),
        (Data::Bool(whole), Data::Bool(part)) => part.iter().zip(slots).for_each(|(x, slot)| whole[slot] = *x),
        _ => {}
    }
}
