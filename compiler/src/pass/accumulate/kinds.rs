//! How the batch is in each value: not at all, as an axis, or as a sum over it; everything else is refused with its place.

use mdl_graph::{Class, Graph, Loop, Name, NodeId, Op, Scalar, ScatterKind};

use super::{PassError, refuse};
use crate::grad::params;
use crate::pass::simplify::constant_of;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pass) enum Kind {
    /// The same whatever piece of the batch is looked at.
    Whole,
    /// Has the axis; each position depends on its own example only. Or a loop around such values.
    Part,
    /// A sum over the examples: that of the whole batch is the sum of those of its pieces.
    Sum,
}

/// The kind of every live node. A sum is whole for those who read it: the graph itself waits for all pieces.
pub(super) fn of_graph(graph: &Graph, batch: &Name) -> Result<Vec<Option<Kind>>, PassError> {
    let start = params(graph)
        .into_iter()
        .map(|param| (param, if graph.ty(param).axes.contains(batch) { Kind::Part } else { Kind::Whole }))
        .collect();
    of_nodes(graph, batch, start, true)
}

fn of_nodes(
    graph: &Graph,
    batch: &Name,
    start: Vec<(NodeId, Kind)>,
    waits: bool,
) -> Result<Vec<Option<Kind>>, PassError> {
    let live = graph.live();
    let mut kinds: Vec<Option<Kind>> = vec![None; graph.nodes().len()];
    let mut results: Vec<(NodeId, Vec<Kind>)> = Vec::new();
    for (param, kind) in start {
        kinds[param.idx()] = Some(kind);
    }
    for id in graph.ids().filter(|id| live[id.idx()]) {
        if kinds[id.idx()].is_some() {
            continue;
        }
        let args: Vec<Kind> = graph
            .args(id)
            .iter()
            .map(|arg| match kinds[arg.idx()] {
                Some(Kind::Sum) if waits => Kind::Whole,
                kind => kind.unwrap_or(Kind::Whole),
            })
            .collect();
        let kind = match graph.op(id) {
            Op::Loop(inner) => {
                let found = of_loop(graph, id, inner, batch, &args)?;
                let touched = args.contains(&Kind::Part) || found.iter().any(|kind| *kind != Kind::Whole);
                results.push((id, found));
                // Loops around sums only are of the kind of their results.
                if touched { Kind::Part } else { Kind::Whole }
            }
            Op::Get(k) => {
                let of = graph.args(id)[0];
                results.iter().find(|(id, _)| *id == of).map_or(Kind::Whole, |(_, kinds)| kinds[*k as usize])
            }
            op => of_node(graph, id, op, batch, &args)?,
        };
        kinds[id.idx()] = Some(kind);
    }
    Ok(kinds)
}

/// The kinds of a loop's results. A carry that starts at zero and gains sums is a sum.
fn of_loop(graph: &Graph, id: NodeId, inner: &Loop, batch: &Name, args: &[Kind]) -> Result<Vec<Kind>, PassError> {
    let body = &inner.body;
    let span = graph.node(id).span;
    let mut kinds: Vec<Kind> = args.to_vec();
    if inner.axis.name == *batch {
        return Err(refuse(
            span,
            format!("a loop over `{batch}` goes from example to example, so `micro` cannot cut it"),
        ));
    }
    loop {
        let start = params(body).into_iter().zip(kinds.iter().copied()).collect();
        let within = of_nodes(body, batch, start, false)?;
        let outputs: Vec<Kind> =
            body.outputs().iter().map(|output| within[output.node.idx()].unwrap_or(Kind::Whole)).collect();
        if inner.until && outputs.last().is_some_and(|kind| *kind != Kind::Whole) {
            return Err(refuse(
                span,
                "how long this loop runs depends on all examples, so `micro` cannot cut it".into(),
            ));
        }
        let mut grew = false;
        for k in 0..inner.carries {
            match (kinds[k], outputs[k]) {
                (before, after) if before == after => {}
                (Kind::Whole, Kind::Sum) if is_zero(graph, graph.args(id)[k]) => {
                    kinds[k] = Kind::Sum;
                    grew = true;
                }
                (Kind::Whole, Kind::Part) => {
                    kinds[k] = Kind::Part;
                    grew = true;
                }
                // Zero is a sum of nothing, and a whole value that ends as it began stays whole.
                (Kind::Sum, Kind::Whole) if is_zero(body, body.outputs()[k].node) => {}
                _ => {
                    let message =
                        format!("this loop adds to a sum over `{batch}` what is no sum, so `micro` would change it");
                    return Err(refuse(span, message));
                }
            }
        }
        if !grew {
            let n = inner.carries + inner.stacked();
            return Ok((0..n).map(|k| if k < inner.carries { kinds[k] } else { outputs[k] }).collect());
        }
    }
}

fn is_zero(graph: &Graph, id: NodeId) -> bool {
    constant_of(graph, id).is_some_and(|value: Scalar| value.as_f64() == 0.0)
}

pub(in crate::pass) fn of_node(
    graph: &Graph,
    id: NodeId,
    op: &Op,
    batch: &Name,
    args: &[Kind],
) -> Result<Kind, PassError> {
    let node = graph.node(id);
    let mixed = |how: &str| {
        let message = format!("`{}` {how} the examples of a batch, so `micro` would change what it means", op.name());
        Err(refuse(node.span, message))
    };
    let has = node.ty.axes.contains(batch);
    if args.contains(&Kind::Sum) {
        return if args.contains(&Kind::Part) { mixed("needs a sum over all") } else { of_sum(graph, id, op, args) };
    }
    if !args.contains(&Kind::Part) {
        return match op {
            Op::Iota(_) | Op::Expand(_) if has => Ok(Kind::Part),
            _ if has => mixed("makes"),
            _ => Ok(Kind::Whole),
        };
    }
    let names_it = |name: &Name| name == batch;
    match op {
        Op::Sum(names) | Op::Contract(names) if names.contains(batch) => Ok(Kind::Sum),
        Op::Scatter { axis, keep, kind } => {
            let summed = graph.ty(node.args[1]).axes.contains(batch) && !keep.contains(batch);
            match kind {
                _ if names_it(&axis.name) => mixed("moves"),
                ScatterKind::Put if summed => mixed("lets the last win among"),
                _ => Ok(if summed { Kind::Sum } else { Kind::Part }),
            }
        }
        Op::MaxOver(names) if names.contains(batch) => mixed("compares"),
        Op::Prefix { axis, .. } | Op::Gather { axis } | Op::Slice { axis, .. } | Op::Pad { axis, .. }
            if names_it(axis) =>
        {
            mixed("moves")
        }
        Op::Top { axis, .. } if names_it(axis) => mixed("sorts"),
        Op::Rename(pairs) if pairs.iter().any(|(old, new)| names_it(old) || names_it(new)) => mixed("renames"),
        Op::Split { axis, into } if names_it(axis) || into.iter().any(|part| names_it(&part.name)) => mixed("splits"),
        Op::Merge { axes, into } if axes.iter().any(names_it) || names_it(into) => mixed("merges"),
        Op::Window { axis, .. } if names_it(axis) => mixed("moves"),
        Op::Unwindow { out, tap, .. } if names_it(out) || names_it(tap) => mixed("moves"),
        _ if has => Ok(Kind::Part),
        _ => mixed("mixes"),
    }
}

/// What is linear in a sum over the examples is one too.
fn of_sum(graph: &Graph, id: NodeId, op: &Op, args: &[Kind]) -> Result<Kind, PassError> {
    let node = graph.node(id);
    let zero = |k: usize| args[k] == Kind::Sum || is_zero(graph, node.args[k]);
    let linear = match op {
        Op::Add | Op::Sub => zero(0) && zero(1),
        Op::Neg | Op::Sum(_) | Op::Prefix { .. } | Op::Detach => true,
        Op::Cast(dtype) => dtype.is_float() && graph.ty(node.args[0]).dtype.is_float(),
        Op::Mul | Op::Contract(_) => args.iter().filter(|kind| **kind == Kind::Sum).count() == 1,
        Op::Div => args[1] != Kind::Sum,
        Op::Select => args[0] != Kind::Sum && zero(1) && zero(2),
        Op::Pad { fill, .. } => fill.as_f64() == 0.0,
        Op::Gather { .. } => args[1] != Kind::Sum,
        Op::Scatter { kind, .. } => args[1] != Kind::Sum && *kind == ScatterKind::Add,
        op => op.class() == Class::View,
    };
    if linear {
        return Ok(Kind::Sum);
    }
    let message = format!("`{}` of a sum over the batch, in a loop, is no sum, so `micro` would change it", op.name());
    Err(refuse(node.span, message))
}
