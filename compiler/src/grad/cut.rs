//! The cheapest set of values from which others can be computed, as a minimum cut.
//!
//! Each value is a pipe as wide as its bytes; values that may not be computed again are fed by the source, those that are wanted
//! drain into the sink, and computing one value from others joins their pipes with ones of no limit. What a cut severs is what
//! has to be saved. Of equal cuts the one nearest to the sink is taken, which computes the least again.

use std::collections::BTreeSet;

use mdl_graph::{Class, Graph, NodeId, Op};
use petgraph::Direction;
use petgraph::algo::dinics;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

const ENDLESS: u64 = u64::MAX >> 8;

/// The values to save, in order, so that `wanted` follow from them and from what is `known`, computing only what is `free`. Values
/// of a plane are never saved, and as good as free: the kernel that needs them makes them.
pub(crate) fn least_saved(
    graph: &Graph,
    wanted: &[NodeId],
    known: &dyn Fn(NodeId) -> bool,
    free: &dyn Fn(NodeId) -> bool,
    planes: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    let free = |id: NodeId| free(id) || planes.contains(&id);
    let mut network: DiGraph<(), u64> = DiGraph::new();
    let (source, sink) = (network.add_node(()), network.add_node(()));
    let mut pipes: Vec<Option<(NodeIndex, NodeIndex)>> = vec![None; graph.nodes().len()];
    let mut needed = vec![false; graph.nodes().len()];
    wanted.iter().for_each(|id| needed[id.idx()] = true);
    for id in graph.ids().rev() {
        if !needed[id.idx()] || known(id) {
            continue;
        }
        let (entry, exit) = (network.add_node(()), network.add_node(()));
        // A little more than the bytes: of equally large sets, the one of fewer values, and no view of what could be saved itself.
        let view = u64::from(graph.op(id).class() == Class::View);
        // The node of a loop is no value: its results are.
        let is_value = !matches!(graph.op(id), Op::Loop(_) | Op::Grad) && !planes.contains(&id);
        network.add_edge(entry, exit, if is_value { graph.ty(id).size_bytes() + 1 + view } else { ENDLESS });
        pipes[id.idx()] = Some((entry, exit));
        if free(id) {
            graph.args(id).iter().for_each(|arg| needed[arg.idx()] = true);
        } else {
            network.add_edge(source, entry, ENDLESS);
        }
    }
    for id in graph.ids() {
        let Some((entry, _)) = pipes[id.idx()].filter(|_| free(id)) else { continue };
        for arg in graph.args(id) {
            if let Some((_, exit)) = pipes[arg.idx()] {
                network.update_edge(exit, entry, ENDLESS);
            }
        }
    }
    for id in wanted {
        if let Some((_, exit)) = pipes[id.idx()] {
            network.update_edge(exit, sink, ENDLESS);
        }
    }
    let (_, flows) = dinics(&network, source, sink);

    // What still reaches the sink when all that can flow flows is on its side of the cut.
    let mut below = vec![false; network.node_count()];
    below[sink.index()] = true;
    let mut queue = vec![sink];
    while let Some(node) = queue.pop() {
        let into = network.edges_directed(node, Direction::Incoming);
        let open = into.filter(|edge| flows[edge.id().index()] < *edge.weight()).map(|edge| edge.source());
        let back = network.edges_directed(node, Direction::Outgoing);
        let back = back.filter(|edge| flows[edge.id().index()] > 0).map(|edge| edge.target());
        for next in open.chain(back).collect::<Vec<_>>() {
            if !below[next.index()] {
                below[next.index()] = true;
                queue.push(next);
            }
        }
    }
    let severed = |(entry, exit): (NodeIndex, NodeIndex)| !below[entry.index()] && below[exit.index()];
    graph.ids().filter(|id| pipes[id.idx()].is_some_and(severed)).collect()
}
