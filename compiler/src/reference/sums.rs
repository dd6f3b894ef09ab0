//! Reductions, running sums, contractions, and the order along an axis.

use mdl_graph::{Axis, AxisSet, Name, Scalar, Type};

use super::maps::larger;
use super::tensor::{Data, Tensor, offsets, places, stride, strides, wrap_int};

/// The named axes of `x` as a space of their own.
fn over(x: &AxisSet, names: &[Name]) -> AxisSet {
    AxisSet::of(x.iter().filter(|axis| names.contains(&axis.name)).cloned()).unwrap_or_default()
}

/// Where the elements that one result sums lie, relative to where they start.
fn inner(x: &AxisSet, space: &AxisSet) -> Vec<usize> {
    let sizes: Vec<u64> = space.iter().map(|axis| axis.size).collect();
    offsets(&sizes, &strides(space.iter(), x), 0)
}

pub(super) fn sum(x: &Tensor, names: &[Name], ty: &Type) -> Result<Tensor, String> {
    let starts = places(&ty.axes, &x.ty.axes);
    let steps = inner(&x.ty.axes, &over(&x.ty.axes, names));
    let data = match &x.data {
        Data::Float(x) => Data::Float(starts.iter().map(|at| steps.iter().map(|step| x[at + step]).sum()).collect()),
        Data::Int(x) => {
            let add = |at: &usize| steps.iter().fold(0i64, |sum, step| sum.wrapping_add(x[at + step]));
            Data::Int(starts.iter().map(|at| wrap_int(add(at), ty.dtype)).collect())
        }
        Data::Bool(_) => return Err("`sum` of bool".into()),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

pub(super) fn max_over(x: &Tensor, names: &[Name], ty: &Type) -> Result<Tensor, String> {
    let starts = places(&ty.axes, &x.ty.axes);
    let steps = inner(&x.ty.axes, &over(&x.ty.axes, names));
    let data = match (&x.data, Scalar::lowest(ty.dtype)) {
        (Data::Float(x), _) => {
            let max = |at: &usize| steps.iter().fold(f64::NEG_INFINITY, |max, step| larger(max, x[at + step]));
            Data::Float(starts.iter().map(max).collect())
        }
        (Data::Int(x), Scalar::Int(lowest)) => {
            let max = |at: &usize| steps.iter().fold(lowest, |max, step| max.max(x[at + step]));
            Data::Int(starts.iter().map(max).collect())
        }
        _ => return Err("`max_over` of bool".into()),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

/// Calls `line` for each line along `axis`: the place of its first element and the distance between neighbours.
fn lines(x: &AxisSet, axis: &Name) -> (Vec<usize>, usize, usize) {
    let rest = x.minus(&over(x, std::slice::from_ref(axis)));
    (places(&rest, x), stride(x, axis) as usize, x.size(axis).unwrap_or(0) as usize)
}

pub(super) fn prefix(x: &Tensor, axis: &Name, reverse: bool, ty: &Type) -> Result<Tensor, String> {
    let (starts, step, size) = lines(&x.ty.axes, axis);
    let mut data = x.data.clone();
    for start in starts {
        let place = |i: usize| start + step * if reverse { size - 1 - i } else { i };
        for i in 1..size {
            match &mut data {
                Data::Float(data) => data[place(i)] += data[place(i - 1)],
                Data::Int(data) => data[place(i)] = wrap_int(data[place(i)].wrapping_add(data[place(i - 1)]), ty.dtype),
                Data::Bool(_) => return Err("`prefix` of bool".into()),
            }
        }
    }
    Ok(Tensor { ty: ty.clone(), data })
}

pub(super) fn contract(a: &Tensor, b: &Tensor, names: &[Name], ty: &Type) -> Result<Tensor, String> {
    let space = over(&a.ty.axes, names);
    let (starts_a, starts_b) = (places(&ty.axes, &a.ty.axes), places(&ty.axes, &b.ty.axes));
    let (steps_a, steps_b) = (inner(&a.ty.axes, &space), inner(&b.ty.axes, &space));
    let starts = starts_a.iter().zip(&starts_b);
    let data = match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => {
            let dot = |i: usize, j: usize| steps_a.iter().zip(&steps_b).map(|(k, l)| a[i + k] * b[j + l]).sum();
            Data::Float(starts.map(|(i, j)| dot(*i, *j)).collect())
        }
        (Data::Int(a), Data::Int(b)) => {
            let dot = |i: usize, j: usize| {
                let terms = steps_a.iter().zip(&steps_b).map(|(k, l)| a[i + k].wrapping_mul(b[j + l]));
                wrap_int(terms.fold(0, i64::wrapping_add), ty.dtype)
            };
            Data::Int(starts.map(|(i, j)| dot(*i, *j)).collect())
        }
        _ => return Err("`contract` of bool".into()),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

pub(super) fn top(x: &Tensor, axis: &Name, out: &Axis, ty: &Type) -> Result<Tensor, String> {
    let (starts, step, size) = lines(&x.ty.axes, axis);
    let rest = x.ty.axes.minus(&over(&x.ty.axes, std::slice::from_ref(axis)));
    let into = places(&rest, &ty.axes);
    let out_step = stride(&ty.axes, &out.name) as usize;
    let mut data = vec![0i64; ty.count() as usize];
    for (start, into) in starts.into_iter().zip(into) {
        let mut order: Vec<usize> = (0..size).collect();
        // NaN is below everything; sort_by is stable, so that ties go to the lower position.
        match &x.data {
            Data::Float(x) => order.sort_by(|i, j| {
                let (a, b) = (x[start + i * step], x[start + j * step]);
                b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }),
            Data::Int(x) => order.sort_by(|i, j| x[start + j * step].cmp(&x[start + i * step])),
            Data::Bool(_) => return Err("`top` of bool".into()),
        }
        for (rank, position) in order.into_iter().take(out.size as usize).enumerate() {
            data[into + rank * out_step] = position as i64;
        }
    }
    Ok(Tensor { ty: ty.clone(), data: Data::Int(data) })
}
