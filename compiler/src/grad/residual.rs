//! What a forward loop saves for its backward loop.
//!
//! Never saved: constants, positions and draws, whatever is computed from them alone (masks), and the loop's scanned and free
//! arguments. Of the rest the fewest bytes are saved from which the backward body can have all that it reads by views and
//! elementwise operations, which are next to free beside reading what they are computed from; planes (`plane.rs`) are made again
//! with their products. Recomputing more, products and sums too, is the choice of `pass/recompute.rs`.

use std::collections::BTreeSet;

use mdl_graph::{Class, Graph, Loop, NodeId, Op};

use super::cut::least_saved;
use super::loops::params;
use crate::fuse::Body;
use crate::plane;

/// The values of the joint graph that are to be saved, in the order of their ids. `pulled` are the cotangents it computes.
pub(super) fn choose(joint: &Graph, inner: &Loop, n_params: usize, pulled: &[NodeId]) -> Vec<NodeId> {
    let inputs = params(joint);
    let known = known(joint, &inputs[inner.carries..n_params]);
    let mut tainted = vec![false; joint.nodes().len()];
    for cotangent in &inputs[n_params..] {
        tainted[cotangent.idx()] = true;
    }
    for id in joint.ids() {
        tainted[id.idx()] |= joint.args(id).iter().any(|arg| tainted[arg.idx()]);
    }
    let wanted = read_by(joint, pulled, &tainted);
    let planes = plane::values(&Body::new(joint, &BTreeSet::new()));
    least_saved(joint, &wanted, &|id| known[id.idx()], &|id| is_cheap(joint, id), &planes)
}

/// The untainted nodes that the tainted ones behind `roots` read.
pub(crate) fn read_by(graph: &Graph, roots: &[NodeId], tainted: &[bool]) -> Vec<NodeId> {
    let mut reached: Vec<bool> = vec![false; graph.nodes().len()];
    roots.iter().for_each(|root| reached[root.idx()] = true);
    for id in graph.ids().rev() {
        if reached[id.idx()] && tainted[id.idx()] {
            graph.args(id).iter().for_each(|arg| reached[arg.idx()] = true);
        }
    }
    graph.ids().filter(|id| reached[id.idx()] && !tainted[id.idx()]).collect()
}

/// What need not be saved: `given`, and what follows from constants, positions, and draws of given seeds, by whatever operations.
pub(crate) fn known(graph: &Graph, given: &[NodeId]) -> Vec<bool> {
    let n = graph.nodes().len();
    let (mut known, mut pure) = (vec![false; n], vec![false; n]);
    given.iter().for_each(|id| known[id.idx()] = true);
    for id in graph.ids() {
        let (op, args) = (graph.op(id), graph.args(id));
        pure[id.idx()] = match op {
            Op::Const(..) | Op::Iota(_) => true,
            // A draw depends on the seed, which is an integer from outside and as good as constant.
            Op::Uniform { .. } => args.iter().all(|arg| known[arg.idx()]),
            _ if args.is_empty() || matches!(op.class(), Class::Leaf | Class::Control) => false,
            _ => args.iter().all(|arg| pure[arg.idx()]),
        };
        known[id.idx()] |= pure[id.idx()];
        // What integers are computed from given ones by maps costs nothing: counters, positions, masks of documents.
        let light = matches!(op.class(), Class::Map | Class::View) && !graph.ty(id).dtype.is_float();
        known[id.idx()] |= light && !args.is_empty() && args.iter().all(|arg| known[arg.idx()]);
    }
    known
}

/// True for what costs less to compute again than to store.
pub(crate) fn is_cheap(graph: &Graph, id: NodeId) -> bool {
    let op = graph.op(id);
    matches!(op.class(), Class::Map | Class::View) && !matches!(op, Op::Unwindow { .. }) || matches!(op, Op::Detach)
}
