//! Views, gather and scatter: elements that change their places.

use mdl_graph::{Axis, AxisSet, Name, Op, Scalar, ScatterKind, Type};

use super::tensor::{Data, Tensor, offsets, places, stride, wrap_int};

/// Where in `y` each element of `x` goes, or where in `x` each element of `y` comes from.
pub(super) fn view(op: &Op, x: &Tensor, ty: &Type) -> Result<Tensor, String> {
    let (from, to) = (&x.ty.axes, &ty.axes);
    // The stride in `x` for each axis of `y`, by a rule for the axes that the view makes; others keep theirs.
    let read = |rule: &dyn Fn(&Axis) -> Option<i64>, start: i64| {
        let sizes: Vec<u64> = to.iter().map(|axis| axis.size).collect();
        let strides: Vec<i64> = to.iter().map(|axis| rule(axis).unwrap_or_else(|| stride(from, &axis.name))).collect();
        offsets(&sizes, &strides, start)
    };
    // The other way round: the stride in `y` for each axis of `x`.
    let write = |rule: &dyn Fn(&Axis) -> Option<i64>, start: i64| {
        let sizes: Vec<u64> = from.iter().map(|axis| axis.size).collect();
        let strides: Vec<i64> = from.iter().map(|axis| rule(axis).unwrap_or_else(|| stride(to, &axis.name))).collect();
        offsets(&sizes, &strides, start)
    };
    let data = match op {
        Op::Rename(pairs) => {
            let old = |axis: &Axis| pairs.iter().find(|(_, new)| *new == axis.name).map(|(old, _)| stride(from, old));
            x.data.pick(&read(&old, 0))
        }
        Op::Split { axis, into } => {
            x.data.pick(&read(&|part| part_stride(into, &part.name).map(|stride_| stride_ * stride(from, axis)), 0))
        }
        Op::Merge { axes, into } => {
            let parts: Vec<Axis> = axes.iter().filter_map(|name| from.get(name)).cloned().collect();
            let places = write(&|part| part_stride(&parts, &part.name).map(|stride_| stride_ * stride(to, into)), 0);
            put(&x.data, &places, Tensor::filled(ty.clone(), Scalar::Bool(false)).data)
        }
        Op::Slice { axis, start, step, .. } => {
            let along = stride(from, axis);
            x.data.pick(&read(&|other| (other.name == *axis).then_some(along * step), along * *start as i64))
        }
        Op::Pad { axis, before, fill, .. } => {
            let places = write(&|_| None, stride(to, axis) * *before as i64);
            put(&x.data, &places, Tensor::filled(ty.clone(), *fill).data)
        }
        Op::Window { axis, out, tap, stride: step } => {
            let along = stride(from, axis);
            let rule = |other: &Axis| {
                if other.name == *out { Some(along * *step as i64) } else { (other.name == tap.name).then_some(along) }
            };
            x.data.pick(&read(&rule, 0))
        }
        Op::Unwindow { axis, out, tap, stride: step } => {
            let along = stride(to, &axis.name);
            let rule = |other: &Axis| {
                if other.name == *out { Some(along * *step as i64) } else { (other.name == *tap).then_some(along) }
            };
            let places: Vec<Option<usize>> = write(&rule, 0).into_iter().map(Some).collect();
            let every: Vec<usize> = (0..x.data.len()).collect();
            add(&x.data, &every, &places, ty)?
        }
        Op::Expand(_) => x.data.pick(&read(&|_| None, 0)),
        _ => return Err(format!("`{}` is no view", op.name())),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

/// How many positions of the whole lie between neighbours of one part, the first part outermost.
fn part_stride(parts: &[Axis], name: &Name) -> Option<i64> {
    let at = parts.iter().position(|part| part.name == *name)?;
    Some(parts[at + 1..].iter().map(|part| part.size as i64).product())
}

fn put(x: &Data, places: &[usize], mut into: Data) -> Data {
    match (x, &mut into) {
        (Data::Float(x), Data::Float(y)) => x.iter().zip(places).for_each(|(x, place)| y[*place] = *x),
        (Data::Int(x), Data::Int(y)) => x.iter().zip(places).for_each(|(x, place)| y[*place] = *x),
        (Data::Bool(x), Data::Bool(y)) => x.iter().zip(places).for_each(|(x, place)| y[*place] = *x),
        _ => {}
    }
    into
}

/// Adds element `from[i]` of `x` at `places[i]`, in order, to zeros.
fn add(x: &Data, from: &[usize], places: &[Option<usize>], ty: &Type) -> Result<Data, String> {
    let pairs = from.iter().zip(places).filter_map(|(from, place)| place.map(|place| (*from, place)));
    let n = ty.count() as usize;
    match x {
        Data::Float(x) => {
            let mut y = vec![0.0; n];
            pairs.for_each(|(from, place)| y[place] += x[from]);
            Ok(Data::Float(y))
        }
        Data::Int(x) => {
            let mut y = vec![0i64; n];
            pairs.for_each(|(from, place)| y[place] = wrap_int(y[place].wrapping_add(x[from]), ty.dtype));
            Ok(Data::Int(y))
        }
        Data::Bool(_) => Err("a sum of bool".into()),
    }
}

pub(super) fn gather(table: &Tensor, index: &Tensor, axis: &Name, ty: &Type) -> Result<Tensor, String> {
    let size = table.ty.axes.size(axis).ok_or("no such axis")? as i64;
    let along = stride(&table.ty.axes, axis);
    let mut others = table.ty.axes.clone();
    others.remove(axis);
    // An axis of the index may have the name of the one that is replaced: only the others are matched by name.
    let sizes: Vec<u64> = ty.axes.iter().map(|axis| axis.size).collect();
    let steps: Vec<i64> = ty
        .axes
        .iter()
        .map(|axis| if others.contains(&axis.name) { stride(&table.ty.axes, &axis.name) } else { 0 })
        .collect();
    let rows = offsets(&sizes, &steps, 0);
    let index_places = places(&ty.axes, &index.ty.axes);
    let index = index.ints()?;
    let at: Vec<Option<usize>> = rows
        .into_iter()
        .zip(index_places)
        .map(|(row, place)| {
            let position = index[place];
            (0..size).contains(&position).then(|| row + (position * along) as usize)
        })
        .collect();
    let data = match &table.data {
        Data::Float(x) => Data::Float(at.iter().map(|at| at.map_or(0.0, |at| x[at])).collect()),
        Data::Int(x) => Data::Int(at.iter().map(|at| at.map_or(0, |at| x[at])).collect()),
        Data::Bool(x) => Data::Bool(at.iter().map(|at| at.is_some_and(|at| x[at])).collect()),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

pub(super) fn scatter(
    rows: &Tensor,
    index: &Tensor,
    axis: &Axis,
    keep: &[Name],
    kind: ScatterKind,
    ty: &Type,
) -> Result<Tensor, String> {
    // All pairs of a row and an index, in the order of their axes' names: the order in which the last one wins.
    let space: AxisSet = rows.ty.axes.union(&index.ty.axes).map_err(|name| format!("axis `{name}` has two sizes"))?;
    let gone = |name: &Name| index.ty.axes.contains(name) && !keep.contains(name);
    let sizes: Vec<u64> = space.iter().map(|axis| axis.size).collect();
    let steps: Vec<i64> =
        space.iter().map(|axis| if gone(&axis.name) { 0 } else { stride(&ty.axes, &axis.name) }).collect();
    let along = stride(&ty.axes, &axis.name);
    let index_places = places(&space, &index.ty.axes);
    let positions = index.ints()?;
    let into: Vec<Option<usize>> = offsets(&sizes, &steps, 0)
        .into_iter()
        .zip(index_places)
        .map(|(start, place)| {
            let position = positions[place];
            (0..axis.size as i64).contains(&position).then(|| start + (position * along) as usize)
        })
        .collect();
    let from = places(&space, &rows.ty.axes);
    let data = match kind {
        ScatterKind::Add => add(&rows.data, &from, &into, ty)?,
        ScatterKind::Put => {
            let (from, into): (Vec<usize>, Vec<usize>) =
                from.into_iter().zip(into).filter_map(|(from, into)| into.map(|into| (from, into))).unzip();
            put(&rows.data.pick(&from), &into, Tensor::filled(ty.clone(), Scalar::Bool(false)).data)
        }
    };
    Ok(Tensor { ty: ty.clone(), data })
}
