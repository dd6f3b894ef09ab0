//! Which values the derivative flows through, and the sweep that carries it from the end to the beginning.

use std::collections::BTreeMap;

use mdl_graph::{AxisSet, Graph, Loop, Node, NodeId, Op, Phase, bug};

use super::{Extended, loops, rules};

/// The derivatives of the sum of `y` with respect to each of `xs`, added to the graph.
pub(super) fn gradients(graph: &mut Graph, y: NodeId, xs: &[NodeId], extended: &mut Extended) -> Vec<NodeId> {
    let place = graph.node(y).clone();
    backward_of(graph, &place);
    let one = graph.constant(1.0, graph.ty(y).dtype);
    let axes = graph.ty(y).axes.clone();
    let seed = graph.expand(one, &axes);
    let found = pull_back(graph, &[(y, seed)], xs, extended);
    xs.iter()
        .zip(found)
        .map(|(x, ct)| match ct {
            Some(ct) => ct,
            None => {
                let place = graph.node(*x).clone();
                backward_of(graph, &place);
                zeros_like(graph, *x)
            }
        })
        .collect()
}

/// From cotangents of some nodes to those of `xs`; `None` for one that nothing flows to.
pub(super) fn pull_back(
    graph: &mut Graph,
    seeds: &[(NodeId, NodeId)],
    xs: &[NodeId],
    extended: &mut Extended,
) -> Vec<Option<NodeId>> {
    let Some(last) = seeds.iter().map(|(node, _)| *node).max() else { return vec![None; xs.len()] };
    let activity = Activity::of(graph, xs);
    let mut cts = Cotangents(vec![None; graph.nodes().len()]);
    for (node, ct) in seeds {
        cts.add(graph, *node, *ct);
    }
    let gets = gets_of_loops(graph, last);
    for id in (0..=last.0).rev().map(NodeId) {
        if !activity.is_active(id) {
            continue;
        }
        let args = graph.node(id).args.clone();
        let pulled = if let Some(loop_activity) = activity.loops.get(&id) {
            let n_results = loop_activity.results.len();
            let mut results: Vec<Option<NodeId>> = vec![None; n_results];
            for (k, get) in gets.get(&id).into_iter().flatten() {
                results[*k as usize] = cts.0[get.idx()];
            }
            loops::pull(graph, id, &loop_activity.args, &results, extended)
        } else if let Some(dy) = cts.0[id.idx()] {
            let place = graph.node(id).clone();
            backward_of(graph, &place);
            rules::pull(graph, id, dy, &|arg| activity.is_active(arg))
        } else {
            continue;
        };
        for (arg, ct) in args.iter().zip(pulled) {
            if let Some(ct) = ct
                && activity.is_active(*arg)
            {
                cts.add(graph, *arg, ct);
            }
        }
    }
    xs.iter().map(|x| cts.0[x.idx()]).collect()
}

struct Cotangents(Vec<Option<NodeId>>);

impl Cotangents {
    fn add(&mut self, graph: &mut Graph, node: NodeId, ct: NodeId) {
        if graph.ty(node) != graph.ty(ct) {
            bug!("the cotangent of {node}: {} is {}", graph.ty(node), graph.ty(ct));
        }
        let sum = match self.0[node.idx()] {
            Some(before) => graph.add(Op::Add, &[before, ct]),
            None => ct,
        };
        self.0[node.idx()] = Some(sum);
    }
}

/// What is made from here on is backward, and belongs to the place of `node`.
pub(super) fn backward_of(graph: &mut Graph, node: &Node) {
    graph.set_here_like(node);
    graph.set_phase(Phase::Backward);
}

pub(super) fn zeros_like(graph: &mut Graph, x: NodeId) -> NodeId {
    let ty = graph.ty(x).clone();
    let zero = graph.constant(0.0, ty.dtype);
    graph.expand(zero, &ty.axes)
}

/// `x` summed over the axes that it has too many, and spread over those that it lacks.
pub(super) fn fit(graph: &mut Graph, x: NodeId, axes: &AxisSet) -> NodeId {
    let more: Vec<_> = graph.ty(x).axes.minus(axes).names().cloned().collect();
    let x = graph.sum(x, more);
    graph.expand(x, axes)
}

/// The results of each loop that somebody takes, with their numbers.
fn gets_of_loops(graph: &Graph, last: NodeId) -> BTreeMap<NodeId, Vec<(u32, NodeId)>> {
    let mut gets: BTreeMap<NodeId, Vec<(u32, NodeId)>> = BTreeMap::new();
    for id in graph.ids().take_while(|id| *id <= last) {
        if let (Op::Get(k), [of]) = (graph.op(id), graph.args(id)) {
            gets.entry(*of).or_default().push((*k, id));
        }
    }
    gets
}

/// The nodes between `xs` and the rest of the graph through which a derivative can flow.
pub(super) struct Activity {
    active: Vec<bool>,
    loops: BTreeMap<NodeId, LoopActivity>,
}

/// Which arguments and results of a loop a derivative flows through, carries counted by what any pass makes of them.
struct LoopActivity {
    args: Vec<bool>,
    results: Vec<bool>,
}

impl Activity {
    fn of(graph: &Graph, xs: &[NodeId]) -> Activity {
        let mut active = vec![false; graph.nodes().len()];
        let mut loops = BTreeMap::new();
        for x in xs {
            active[x.idx()] = graph.ty(*x).dtype.is_float();
        }
        for id in graph.ids() {
            let args = graph.args(id);
            if active[id.idx()] && !matches!(graph.op(id), Op::Get(_)) {
                continue;
            }
            active[id.idx()] |= match graph.op(id) {
                Op::Detach | Op::Floor => false,
                Op::Loop(inner) => {
                    let flags: Vec<bool> = args.iter().map(|arg| active[arg.idx()]).collect();
                    let inner = LoopActivity::of(inner, flags);
                    let any = inner.results.contains(&true);
                    loops.insert(id, inner);
                    any
                }
                Op::Get(k) => match loops.get(&args[0]) {
                    Some(inner) => inner.results[*k as usize],
                    None => false,
                },
                _ => graph.ty(id).dtype.is_float() && args.iter().any(|arg| active[arg.idx()]),
            };
        }
        loops.retain(|id, _| active[id.idx()]);
        Activity { active, loops }
    }

    /// Nodes made after the activity was found are part of no path.
    fn is_active(&self, id: NodeId) -> bool {
        self.active.get(id.idx()).copied().unwrap_or(false)
    }
}

impl LoopActivity {
    fn of(inner: &Loop, mut args: Vec<bool>) -> LoopActivity {
        let body = &inner.body;
        loop {
            let params = loops::params(body);
            let xs: Vec<NodeId> = params.iter().zip(&args).filter(|(_, active)| **active).map(|(id, _)| *id).collect();
            let within = Activity::of(body, &xs);
            let mut results: Vec<bool> = body.outputs().iter().map(|output| within.is_active(output.node)).collect();
            let mut grew = false;
            for k in 0..inner.carries {
                grew |= results[k] && !args[k];
                args[k] |= results[k];
                results[k] |= args[k];
            }
            if !grew {
                results.truncate(inner.carries + inner.stacked());
                return LoopActivity { args, results };
            }
        }
    }
}
