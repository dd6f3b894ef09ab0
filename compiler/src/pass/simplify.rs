//! One spelling for what means the same, and never a costlier one.
//!
//! Every node is made anew from simplified arguments; before it is added, each rule that knows its operation may give another node
//! of the same type instead. Equal nodes become one by hash-consing, dead ones are not copied. Rounds repeat until
//! nothing changes. Floats are not real numbers: a rule may change the sign of a zero or the last bit, but never loses a
//! NaN or an infinity; what would is left out, and its absence is noted where one would look for it.

mod arithmetic;
mod loops;
mod sums;
mod views;

use mdl_graph::{Class, Graph, NodeId, Op, Scalar, Type, bug};

use crate::reference::{Data, Tensor, apply};

/// More rounds than any graph was seen to need; a rule that undoes another would go on for ever.
const ROUNDS: usize = 8;

/// The simplified graph: the same inputs, outputs of the same names and types.
///
/// A graph that differentiates by values in its middle is given back as it is: rules may go around such a value, and the
/// derivative would no longer see it.
pub fn simplify(graph: &Graph) -> Graph {
    if differentiates_inside(graph) {
        return graph.clone();
    }
    let mut simple = round(graph);
    for _ in 1..ROUNDS {
        let next = round(&simple);
        if next == simple {
            break;
        }
        simple = next;
    }
    simple
}

/// True when a `Grad`, here or in a body, is with respect to anything but inputs.
fn differentiates_inside(graph: &Graph) -> bool {
    graph.nodes().iter().any(|node| match &node.op {
        Op::Grad => node.args[1..].iter().any(|x| !matches!(graph.op(*x), Op::Input(_))),
        Op::Loop(inner) => differentiates_inside(&inner.body),
        _ => false,
    })
}

fn round(graph: &Graph) -> Graph {
    let trimmed = loops::trim(graph);
    trimmed.rebuild(|to, id, args| match trimmed.op(id) {
        Op::Loop(inner) => loops::rebuild(to, trimmed.node(id), inner, args),
        op => make(to, op.clone(), args),
    })
}

/// A rule: another node for `op(args)`, of the same type, or `None`.
type Rule = fn(&mut Graph, &Op, &[NodeId]) -> Option<NodeId>;

/// In the order in which they are tried.
const RULES: &[(&str, Rule)] = &[
    ("fold", fold),
    ("spread", views::spread),
    ("arithmetic", arithmetic::arithmetic),
    ("logic", arithmetic::logic),
    ("casts", arithmetic::casts),
    ("views", views::views),
    ("index", views::index),
    ("sums", sums::sums),
    ("contractions", sums::contractions),
];

/// The node `op(args)` in its simplest form.
pub(super) fn make(graph: &mut Graph, op: Op, args: &[NodeId]) -> NodeId {
    for (name, rule) in RULES {
        if let Some(found) = rule(graph, &op, args) {
            let types: Vec<&Type> = args.iter().map(|arg| graph.ty(*arg)).collect();
            if let Ok(ty) = mdl_graph::infer(&op, &types)
                && ty != *graph.ty(found)
            {
                bug!("rule `{name}` gives {} for `{op}`, which is {ty}", graph.ty(found));
            }
            return found;
        }
    }
    graph.add(op, args)
}

/// The number that a node holds everywhere, if it is a constant, spread along axes or not.
pub(crate) fn constant_of(graph: &Graph, id: NodeId) -> Option<Scalar> {
    match graph.op(id) {
        Op::Const(value, _) => Some(*value),
        Op::Expand(_) | Op::Rename(_) => constant_of(graph, graph.args(id)[0]),
        _ => None,
    }
}

/// True for a constant with this value, as a number.
pub(super) fn is_number(graph: &Graph, id: NodeId, value: f64) -> bool {
    constant_of(graph, id).is_some_and(|constant| constant.as_f64() == value)
}

/// `x`, spread over the axes of `ty` that it lacks.
pub(super) fn spread_to(graph: &mut Graph, x: NodeId, ty: &Type) -> NodeId {
    let more: Vec<_> = ty.axes.minus(&graph.ty(x).axes).iter().cloned().collect();
    if more.is_empty() { x } else { make(graph, Op::Expand(more), &[x]) }
}

// op(c₁, c₂, …) → c: maps of constants are computed now, rounded to their dtype.
fn fold(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    if op.class() != Class::Map || args.is_empty() {
        return None;
    }
    let mut values = Vec::with_capacity(args.len());
    for arg in args {
        let Op::Const(value, dtype) = graph.op(*arg) else { return None };
        let mut value = Tensor::filled(Type::scalar(*dtype), *value);
        value.round();
        values.push(value);
    }
    let types: Vec<&Type> = args.iter().map(|arg| graph.ty(*arg)).collect();
    let ty = mdl_graph::infer(op, &types).ok()?;
    let mut result = apply(op, &values.iter().collect::<Vec<_>>(), &ty).ok()?;
    result.round();
    let value = match &result.data {
        Data::Float(data) => Scalar::Float(*data.first()?),
        Data::Int(data) => Scalar::Int(*data.first()?),
        Data::Bool(data) => Scalar::Bool(*data.first()?),
    };
    Some(graph.add(Op::Const(value, ty.dtype), &[]))
}
