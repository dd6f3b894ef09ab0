//! Reverse-mode differentiation: every `Grad` marker becomes nodes that compute the derivatives.
//!
//! In: a graph with `Grad` markers, in loop bodies too, and gradients of gradients. Out: the same outputs without `Grad` and
//! `Detach`; what was added has [`Phase::Backward`](mdl_graph::Phase). Invariants: a cotangent has exactly its value's type;
//! values that are no floats, and what stands behind `Detach`, carry none. One sweep per marker over ids in decreasing order.
//!
//! A loop on the way becomes two (`loops.rs`): the forward one also stacks what the backward one reads, as outputs named
//! `saved …`; the backward one runs the other way round. Deliberately absent: the choice of what to recompute under a memory
//! budget, which is `pass/recompute.rs`; here only what is next to free is recomputed.

pub(crate) mod cut;
mod loops;
pub(crate) mod residual;
mod rules;
mod sweep;

use std::collections::BTreeMap;

pub(crate) use loops::{aside, params};
use mdl_graph::{DType, Graph, Loop, NodeId, Op, Scalar, bug};

/// What the names of the outputs begin with that a forward loop stacks only for its backward loop.
pub const SAVED: &str = "saved ";

/// The graph with every `Grad` replaced by what it stands for, and no `Detach`.
pub fn differentiate(graph: &Graph) -> Graph {
    without_detach(&expand_all(graph))
}

/// Replaces the markers of all bodies, then those of the graph itself, each after the markers that it depends on.
fn expand_all(graph: &Graph) -> Graph {
    let mut graph = graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Loop(inner) => {
            let inner = inner.with_body(expand_all(&inner.body));
            to.add(Op::Loop(Box::new(inner)), args)
        }
        _ => to.copy(graph, id, args),
    });
    while let Some(marker) = graph.ids().find(|id| matches!(graph.op(*id), Op::Grad)) {
        graph = expand(&graph, marker);
    }
    graph
}

/// Replaces one marker, the first of the graph.
fn expand(graph: &Graph, marker: NodeId) -> Graph {
    let mut gradients: Vec<NodeId> = Vec::new();
    let mut extended = Extended::default();
    let next = graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Grad if id == marker => {
            let Some((y, xs)) = args.split_first() else { bug!("{id}: grad of nothing") };
            gradients = sweep::gradients(to, *y, xs, &mut extended);
            // The marker itself has no value; its users are `Get`s, which are replaced below.
            *y
        }
        Op::Get(k) if graph.args(id) == [marker] => gradients[*k as usize],
        _ => to.copy(graph, id, args),
    });
    extended.apply(&next)
}

/// Loops that were asked for more results: the old node, and the loop that takes its place. Results only ever grow, so every
/// `Get` of the old node is right for the new one.
#[derive(Default)]
struct Extended(BTreeMap<NodeId, Loop>);

impl Extended {
    /// The graph with each extended loop where the old one stood.
    fn apply(&self, graph: &Graph) -> Graph {
        if self.0.is_empty() {
            return graph.rebuild(|to, id, args| to.copy(graph, id, args));
        }
        graph.rebuild(|to, id, args| match self.0.get(&id) {
            Some(inner) => {
                let args = with_done(to, inner, args);
                to.add(Op::Loop(Box::new(inner.clone())), &args)
            }
            None => to.copy(graph, id, args),
        })
    }
}

/// The arguments of an `until` loop that became a plain one: after its carries, the flag that says it has ended.
fn with_done(graph: &mut Graph, inner: &Loop, args: &[NodeId]) -> Vec<NodeId> {
    let mut args = args.to_vec();
    if inner.body.inputs().len() > args.len() {
        args.insert(inner.carries - 1, graph.add(Op::Const(Scalar::Bool(false), DType::Bool), &[]));
    }
    args
}

/// The graph without its `Detach` markers, in bodies too: nothing reads them after differentiation.
fn without_detach(graph: &Graph) -> Graph {
    graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Detach => args[0],
        Op::Loop(inner) => {
            let inner = inner.with_body(without_detach(&inner.body));
            to.add(Op::Loop(Box::new(inner)), args)
        }
        _ => to.copy(graph, id, args),
    })
}
