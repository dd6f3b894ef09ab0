//! Views composed, undone or moved outward, and indexing that is a view or a map in disguise.

use mdl_graph::{Axis, AxisSet, Class, Graph, Name, NodeId, Op, Type};

use super::{make, spread_to};

// f(expand(x), y) → f(x, y), and f(expand(x)) → expand(f(x)): maps match axes by name, so nothing is spread before it must.
pub(super) fn spread(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    if op.class() != Class::Map || !args.iter().any(|arg| matches!(graph.op(*arg), Op::Expand(_))) {
        return None;
    }
    let types: Vec<&Type> = args.iter().map(|arg| graph.ty(*arg)).collect();
    let ty = mdl_graph::infer(op, &types).ok()?;
    let bare: Vec<NodeId> =
        args.iter().map(|arg| if let Op::Expand(_) = graph.op(*arg) { graph.args(*arg)[0] } else { *arg }).collect();
    let mapped = make(graph, op.clone(), &bare);
    Some(spread_to(graph, mapped, &ty))
}

pub(super) fn views(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    let ([x], Class::View) = (args, op.class()) else { return None };
    let inner = graph.op(*x).clone();
    let source = graph.args(*x).first().copied();
    let axes = graph.ty(*x).axes.clone();
    match op {
        Op::Rename(pairs) => rename(graph, pairs, *x, &inner, source),
        Op::Expand(more) => {
            // expand[](x) → x
            if more.is_empty() {
                return Some(*x);
            }
            // expand[a](expand[b](x)) → expand[a, b](x), in the order of names
            if let (Op::Expand(before), Some(source)) = (&inner, source) {
                let mut all: Vec<Axis> = before.iter().chain(more).cloned().collect();
                all.sort();
                return Some(make(graph, Op::Expand(all), &[source]));
            }
            let mut sorted = more.clone();
            sorted.sort();
            (sorted != *more).then(|| make(graph, Op::Expand(sorted), args))
        }
        Op::Split { axis, into } => {
            // split[a as (a)](x) → rename
            if let [part] = into.as_slice() {
                return Some(make_rename(graph, *x, vec![(axis.clone(), part.name.clone())]));
            }
            // split[m as (a, b)](merge[(a, b) as m](x)) → x
            if let (Op::Merge { axes: parts, into: merged }, Some(source)) = (&inner, source) {
                let from = graph.ty(source).axes.clone();
                let same = parts.len() == into.len()
                    && parts.iter().zip(into).all(|(part, axis)| from.size(part) == Some(axis.size));
                if merged == axis && same {
                    let pairs = parts.iter().zip(into).map(|(part, axis)| (part.clone(), axis.name.clone())).collect();
                    return Some(make_rename(graph, source, pairs));
                }
            }
            None
        }
        Op::Merge { axes: parts, into } => {
            // merge[(a) as b](x) → rename
            if let [part] = parts.as_slice() {
                return Some(make_rename(graph, *x, vec![(part.clone(), into.clone())]));
            }
            // merge[(a, b) as m](split[m as (a, b)](x)) → x
            if let (Op::Split { axis, into: made }, Some(source)) = (&inner, source)
                && made.len() == parts.len()
                && made.iter().zip(parts).all(|(made, part)| made.name == *part)
            {
                return Some(make_rename(graph, source, vec![(axis.clone(), into.clone())]));
            }
            None
        }
        Op::Slice { axis, start, len, step } => slice(graph, (axis, *start, *len, *step), *x, &axes),
        Op::Pad { axis, before, after, fill } => {
            // pad by nothing → x
            if *before == 0 && *after == 0 {
                return Some(*x);
            }
            // pad(pad(x)) with one number → one pad
            if let (Op::Pad { axis: other, before: b, after: a, fill: f }, Some(source)) = (&inner, source)
                && other == axis
                && f == fill
            {
                let (before, after) = (before + b, after + a);
                return Some(make(graph, Op::Pad { axis: axis.clone(), before, after, fill: *fill }, &[source]));
            }
            None
        }
        _ => None,
    }
}

fn make_rename(graph: &mut Graph, x: NodeId, mut pairs: Vec<(Name, Name)>) -> NodeId {
    pairs.retain(|(old, new)| old != new);
    pairs.sort();
    if pairs.is_empty() { x } else { make(graph, Op::Rename(pairs), &[x]) }
}

fn rename(graph: &mut Graph, pairs: &[(Name, Name)], x: NodeId, inner: &Op, source: Option<NodeId>) -> Option<NodeId> {
    // rename[](x) → x
    if pairs.iter().all(|(old, new)| old == new) {
        return Some(x);
    }
    let now = |name: &Name| pairs.iter().find(|(old, _)| old == name).map_or(name, |(_, new)| new).clone();
    match (inner, source) {
        // rename[b as c](rename[a as b](x)) → rename[a as c](x)
        (Op::Rename(first), Some(source)) => {
            let before = |name: &Name| first.iter().find(|(old, _)| old == name).map_or(name, |(_, new)| new).clone();
            let all: Vec<(Name, Name)> =
                graph.ty(source).axes.names().map(|name| (name.clone(), now(&before(name)))).collect();
            Some(make_rename(graph, source, all))
        }
        // rename(expand(x)) → expand(rename(x))
        (Op::Expand(more), Some(source)) => {
            let spread: Vec<Axis> = more.iter().map(|axis| Axis::new(now(&axis.name), axis.size)).collect();
            let kept: Vec<(Name, Name)> =
                pairs.iter().filter(|(old, _)| graph.ty(source).axes.contains(old)).cloned().collect();
            let renamed = make_rename(graph, source, kept);
            Some(make(graph, Op::Expand(spread), &[renamed]))
        }
        // rename[a as b](index[a]) → index[b]
        (Op::Iota(axis), _) => Some(graph.iota(Axis::new(now(&axis.name), axis.size))),
        _ => None,
    }
}

fn slice(
    graph: &mut Graph,
    (axis, start, len, step): (&Name, u64, u64, i64),
    x: NodeId,
    axes: &AxisSet,
) -> Option<NodeId> {
    let size = axes.size(axis)?;
    // x[a = 0..size] → x
    if start == 0 && len == size && (step == 1 || len <= 1) {
        return Some(x);
    }
    let inner = graph.op(x).clone();
    let source = *graph.args(x).first()?;
    match inner {
        // a slice of a slice → one slice
        Op::Slice { axis: other, start: first, step: stride, .. } if other == *axis && len > 0 => {
            let start = first as i64 + start as i64 * stride;
            let op = Op::Slice { axis: axis.clone(), start: start as u64, len, step: step * stride };
            Some(make(graph, op, &[source]))
        }
        // a slice of what was padded, that sees nothing of the padding → a slice of x
        Op::Pad { axis: other, before, .. } if other == *axis && len > 0 => {
            let inside = graph.ty(source).axes.size(axis)? as i64;
            let (first, last) = (start as i64 - before as i64, start as i64 - before as i64 + step * (len as i64 - 1));
            let range = 0..inside;
            if range.contains(&first) && range.contains(&last) {
                let op = Op::Slice { axis: axis.clone(), start: first as u64, len, step };
                return Some(make(graph, op, &[source]));
            }
            None
        }
        // a slice of what was spread along the axis → spread less
        Op::Expand(more) => {
            let spread: Vec<Axis> = more
                .iter()
                .map(|other| if other.name == *axis { Axis::new(axis.clone(), len) } else { other.clone() })
                .collect();
            if more.iter().any(|other| other.name == *axis) {
                return Some(make(graph, Op::Expand(spread), &[source]));
            }
            let sliced = make(graph, Op::Slice { axis: axis.clone(), start, len, step }, &[source]);
            Some(make(graph, Op::Expand(spread), &[sliced]))
        }
        _ => None,
    }
}

pub(super) fn index(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    match (op, args) {
        // index[a: 1] → expand[a](0)
        (Op::Iota(axis), []) if axis.size == 1 => {
            let zero = graph.constant(0.0, mdl_graph::DType::I32);
            Some(graph.add(Op::Expand(vec![axis.clone()]), &[zero]))
        }
        // table[a = index[b]] → table[a = 0..b], renamed, when a is long enough and b is no other axis of the table
        (Op::Gather { axis }, [table, positions]) => {
            let Op::Iota(along) = graph.op(*positions).clone() else { return None };
            let axes = graph.ty(*table).axes.clone();
            let fits = axes.size(axis)? >= along.size && (along.name == *axis || !axes.contains(&along.name));
            if !fits {
                return None;
            }
            let head = make(graph, Op::Slice { axis: axis.clone(), start: 0, len: along.size, step: 1 }, &[*table]);
            Some(make_rename(graph, head, vec![(axis.clone(), along.name)]))
        }
        // scatter that keeps all axes of its index → where(index[a] == i, rows, 0): each position has one writer
        (Op::Scatter { axis, keep, .. }, [rows, positions]) => {
            let index_ty = graph.ty(*positions).clone();
            let rows_ty = graph.ty(*rows).clone();
            if !index_ty.axes.names().all(|name| keep.contains(name)) || rows_ty.axes.contains(&axis.name) {
                return None;
            }
            let all = make(graph, Op::Iota(axis.clone()), &[]);
            let all = make(graph, Op::Cast(index_ty.dtype), &[all]);
            let here = make(graph, Op::Equal, &[all, *positions]);
            let zero = graph.constant(0.0, rows_ty.dtype);
            Some(make(graph, Op::Select, &[here, *rows, zero]))
        }
        _ => None,
    }
}
