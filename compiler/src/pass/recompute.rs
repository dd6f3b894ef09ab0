//! Memory for time: what a backward loop computes again instead of reading what the forward loop saved.
//!
//! In: a graph whose forward loops save what `grad/residual.rs` chose. Out: the same, with fewer bytes saved where the budget asks
//! for it. For each forward loop there are a few options: the more kinds of operations may be computed again (sums; then
//! products, those first that cost least for the bytes they give; then everything), the smaller the least set to save, which
//! is a minimum cut each time. Options are taken where a saved byte costs the fewest operations, until the budget holds.
//! If it cannot, the result is the least; whoever knows the whole step's memory says so.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Class, Graph, InputKind, Loop, NodeId, Op, Phase, Role};

use super::{Options, PassError};
use crate::fuse::Body;
use crate::grad::cut::least_saved;
use crate::grad::residual::{is_cheap, known};
use crate::grad::{SAVED, aside, params};
use crate::plane;

/// More thresholds than this would differ by little.
const OPTIONS: usize = 16;

pub(super) fn run(graph: &Graph, options: &Options) -> Result<Graph, PassError> {
    Ok(match options.saved_bytes {
        Some(budget) => recompute(graph, budget),
        None => graph.clone(),
    })
}

/// The graph with at most `budget` bytes saved by forward loops for backward ones, or with the least that is possible.
pub fn recompute(graph: &Graph, budget: u64) -> Graph {
    let pairs = pairs(graph);
    if pairs.is_empty() {
        // Perhaps in the body of a loop over pieces of the batch.
        return graph.rebuild(|to, id, args| match graph.op(id) {
            Op::Loop(inner) => {
                let inner = inner.with_body(recompute(&inner.body, budget));
                to.add(Op::Loop(Box::new(inner)), args)
            }
            _ => to.copy(graph, id, args),
        });
    }
    let menus: Vec<Vec<Choice>> = pairs.iter().map(|pair| menu(graph, pair)).collect();
    let chosen = choose(&menus, budget);
    let mut picked: BTreeMap<NodeId, (&Pair, &Choice)> = BTreeMap::new();
    for ((pair, menu), option) in pairs.iter().zip(&menus).zip(chosen) {
        // The first option is what is there.
        if option > 0 {
            picked.insert(pair.forward, (pair, &menu[option]));
            picked.insert(pair.backward, (pair, &menu[option]));
        }
    }
    rewrite(graph, &picked)
}

/// A forward loop and the backward loop that reads what it saved.
struct Pair {
    forward: NodeId,
    backward: NodeId,
    /// Which argument of the backward loop is which result of the forward one.
    reads: Vec<(usize, usize)>,
}

fn pairs(graph: &Graph) -> Vec<Pair> {
    let live = graph.live();
    let mut pairs: Vec<Pair> = Vec::new();
    for backward in graph.ids().filter(|id| live[id.idx()]) {
        let Op::Loop(inner) = graph.op(backward) else { continue };
        let mut reads: BTreeMap<NodeId, Vec<(usize, usize)>> = BTreeMap::new();
        let args = graph.args(backward);
        for (place, arg) in args.iter().enumerate().skip(inner.carries).take(inner.scans) {
            let (Op::Get(k), [forward]) = (graph.op(*arg), graph.args(*arg)) else { continue };
            let Op::Loop(from) = graph.op(*forward) else { continue };
            let output = &from.body.outputs()[*k as usize];
            if from.axis == inner.axis && output.name.as_str().starts_with(SAVED) {
                reads.entry(*forward).or_default().push((place, *k as usize));
            }
        }
        for (forward, reads) in reads {
            // A loop that several others read keeps what it saves for them.
            let alone = !pairs.iter().any(|pair| pair.forward == forward || pair.backward == backward);
            if alone {
                pairs.push(Pair { forward, backward, reads });
            }
        }
    }
    pairs
}

/// What is saved, for how many bytes over all passes, and what computing the rest again costs.
struct Choice {
    saved: Vec<NodeId>,
    bytes: u64,
    cost: u64,
}

fn body(graph: &Graph, id: NodeId) -> &Loop {
    match graph.op(id) {
        Op::Loop(inner) => inner,
        op => mdl_graph::bug!("{id}: `{}` is no loop", op.name()),
    }
}

/// The options of a loop, the one that is there first; each saves less than the one before and costs more.
fn menu(graph: &Graph, pair: &Pair) -> Vec<Choice> {
    let inner = body(graph, pair.forward);
    let forward = &inner.body;
    let wanted: Vec<NodeId> = pair.reads.iter().map(|(_, k)| forward.outputs()[*k].node).collect();
    let given = &params(forward)[inner.carries..];
    let known = known(forward, given);
    let planes = plane::values(&Body::new(forward, &BTreeSet::new()));
    let bytes = |saved: &[NodeId]| -> u64 { saved.iter().map(|id| forward.ty(*id).size_bytes()).sum::<u64>() };
    let mut now = wanted.clone();
    now.sort();
    now.dedup();
    let mut menu = vec![Choice { bytes: bytes(&now) * inner.axis.size, saved: now, cost: 0 }];
    let mut thresholds: Vec<u64> =
        forward.ids().filter(|id| !is_cheap(forward, *id)).map(|id| price(forward, id)).collect();
    thresholds.sort();
    thresholds.dedup();
    let stride = thresholds.len().div_ceil(OPTIONS).max(1);
    let last = thresholds.last().copied();
    for limit in thresholds.into_iter().step_by(stride).chain(last) {
        let free = |id: NodeId| match forward.op(id) {
            Op::Input(_) => false,
            Op::Loop(_) => true,
            _ => is_cheap(forward, id) || price(forward, id) <= limit,
        };
        let saved = least_saved(forward, &wanted, &|id| known[id.idx()], &free, &planes);
        let cost = again(forward, &wanted, &saved, &known).iter().map(|id| work(forward, *id)).sum::<u64>();
        let choice = Choice { bytes: bytes(&saved) * inner.axis.size, saved, cost: cost * inner.axis.size };
        if menu.last().is_some_and(|before| choice.bytes < before.bytes) {
            menu.push(choice);
        }
    }
    menu
}

/// The nodes that are computed again when these are saved.
fn again(graph: &Graph, wanted: &[NodeId], saved: &[NodeId], known: &[bool]) -> Vec<NodeId> {
    let mut needed = vec![false; graph.nodes().len()];
    wanted.iter().for_each(|id| needed[id.idx()] = true);
    for id in graph.ids().rev() {
        needed[id.idx()] &= !saved.contains(&id) && !known[id.idx()];
        if needed[id.idx()] {
            graph.args(id).iter().for_each(|arg| needed[arg.idx()] = true);
        }
    }
    graph.ids().filter(|id| needed[id.idx()]).collect()
}

/// Operations of a node.
fn work(graph: &Graph, id: NodeId) -> u64 {
    let args = graph.args(id).iter().map(|arg| graph.ty(*arg).count()).max().unwrap_or(0);
    match graph.op(id) {
        Op::Contract(names) => {
            let along = |name| graph.args(id).first().and_then(|arg| graph.ty(*arg).axes.size(name)).unwrap_or(1);
            2 * graph.ty(id).count() * names.iter().map(along).product::<u64>()
        }
        Op::Loop(inner) => inner.body.ids().map(|id| work(&inner.body, id)).sum::<u64>() * inner.axis.size,
        _ => graph.ty(id).count().max(args),
    }
}

/// What a byte of a value costs to compute again, where that is not next to nothing.
fn price(graph: &Graph, id: NodeId) -> u64 {
    match graph.op(id).class() {
        Class::Control => match (graph.op(id), graph.args(id)) {
            (Op::Get(_), [of]) => work(graph, *of) / graph.ty(id).size_bytes().max(1) + 1,
            _ => 0,
        },
        Class::Contract => work(graph, id) / graph.ty(id).size_bytes().max(1) + 1,
        // Bound by memory, not by arithmetic.
        _ => 1,
    }
}

/// For each loop an option, so that all together fit the budget if they can.
fn choose(menus: &[Vec<Choice>], budget: u64) -> Vec<usize> {
    let mut chosen = vec![0; menus.len()];
    loop {
        let total: u64 = menus.iter().zip(&chosen).map(|(menu, option)| menu[*option].bytes).sum();
        if total <= budget {
            return chosen;
        }
        // The step that costs least for each byte; of equal ones the first.
        let steps = (0..menus.len()).flat_map(|k| (chosen[k] + 1..menus[k].len()).map(move |option| (k, option)));
        let best = steps.min_by_key(|(k, option)| {
            let (from, to) = (&menus[*k][chosen[*k]], &menus[*k][*option]);
            let (cost, bytes) = (to.cost.saturating_sub(from.cost), from.bytes - to.bytes);
            (u128::from(cost) * 1024) / u128::from(bytes.max(1))
        });
        let Some((k, option)) = best else { return chosen };
        chosen[k] = option;
    }
}

fn rewrite(graph: &Graph, picked: &BTreeMap<NodeId, (&Pair, &Choice)>) -> Graph {
    // Of each forward loop that was made anew: its new node and its arguments.
    let mut made: BTreeMap<NodeId, (NodeId, Vec<NodeId>)> = BTreeMap::new();
    graph.rebuild(|to, id, args| match picked.get(&id) {
        Some((pair, choice)) if pair.forward == id => {
            let node = to.add(Op::Loop(Box::new(saving(body(graph, id), &choice.saved))), args);
            made.insert(id, (node, args.to_vec()));
            node
        }
        Some((pair, choice)) => match made.get(&pair.forward) {
            Some((forward, forward_args)) => backward(to, graph, pair, choice, *forward, forward_args, args),
            None => to.copy(graph, id, args),
        },
        None => to.copy(graph, id, args),
    })
}

/// The forward loop with these values stacked too, after its other results.
fn saving(inner: &Loop, saved: &[NodeId]) -> Loop {
    let mut body = inner.body.clone();
    for id in saved {
        let node = inner.body.node(*id);
        body.set_here_like(node);
        let value = body.rename(*id, aside(&node.ty, &inner.axis.name));
        let name = format!("{SAVED}{}", body.outputs().len() - inner.carries);
        body.output_as(name, Role::Value, value);
    }
    inner.with_body(body)
}

/// The backward loop, which reads what is saved now and computes the rest again, with the forward loop's own inputs.
fn backward(
    to: &mut Graph,
    graph: &Graph,
    pair: &Pair,
    choice: &Choice,
    forward_node: NodeId,
    forward_args: &[NodeId],
    args: &[NodeId],
) -> NodeId {
    let (forward, old) = (body(graph, pair.forward), body(graph, pair.backward));
    let inner = &forward.body;
    let first = inner.outputs().len();
    let mut new = Graph::new();
    let mut new_args = Vec::new();
    let mut map: Vec<Option<NodeId>> = vec![None; inner.nodes().len()];
    let mut inputs: Vec<Option<NodeId>> = vec![None; old.body.inputs().len()];
    let replaced = |place: usize| pair.reads.iter().find(|(arg, _)| *arg == place).map(|(_, k)| *k);
    let mut take = |new: &mut Graph, range: std::ops::Range<usize>, new_args: &mut Vec<NodeId>| {
        for place in range.filter(|place| replaced(*place).is_none()) {
            let input = &old.body.inputs()[place];
            inputs[place] = Some(new.input(input.name.clone(), InputKind::Param, input.ty.clone()));
            new_args.push(args[place]);
        }
    };
    let (carried, scanned) = (old.carries, old.carries + old.scans);
    take(&mut new, 0..scanned, &mut new_args);
    for (k, id) in choice.saved.iter().enumerate() {
        let value = to.add(Op::Get((first + k) as u32), &[forward_node]);
        let mut ty = to.ty(value).clone();
        ty.axes.remove(&forward.axis.name);
        let input = new.input(format!("{SAVED}{k}"), InputKind::Param, ty);
        let back = aside(inner.ty(*id), &forward.axis.name).into_iter().map(|(old, new)| (new, old));
        map[id.idx()] = Some(new.rename(input, back));
        new_args.push(value);
    }
    let forward_params = params(inner);
    let mut forward_inputs = |new: &mut Graph, range: std::ops::Range<usize>, new_args: &mut Vec<NodeId>| {
        for place in range {
            let input = &inner.inputs()[place];
            map[forward_params[place].idx()] = Some(new.input(input.name.clone(), InputKind::Param, input.ty.clone()));
            new_args.push(forward_args[place]);
        }
    };
    let (forward_carried, forward_scanned) = (forward.carries, forward.carries + forward.scans);
    forward_inputs(&mut new, forward_carried..forward_scanned, &mut new_args);
    let scans = new_args.len() - carried;
    forward_inputs(&mut new, forward_scanned..inner.inputs().len(), &mut new_args);
    take(&mut new, scanned..old.body.inputs().len(), &mut new_args);

    let wanted: Vec<NodeId> = pair.reads.iter().map(|(_, k)| inner.outputs()[*k].node).collect();
    let mut needed = vec![false; inner.nodes().len()];
    wanted.iter().for_each(|id| needed[id.idx()] = true);
    for id in inner.ids().rev() {
        if needed[id.idx()] && map[id.idx()].is_none() {
            inner.args(id).iter().for_each(|arg| needed[arg.idx()] = true);
        }
    }
    for id in inner.ids().filter(|id| needed[id.idx()]) {
        if map[id.idx()].is_none() {
            let args: Vec<NodeId> = inner.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
            // The phase keeps these copies apart from what they copy.
            new.set_here_like(inner.node(id));
            new.set_phase(Phase::Backward);
            map[id.idx()] = Some(new.add(inner.op(id).clone(), &args));
        }
    }
    for (place, k) in &pair.reads {
        inputs[*place] = map[inner.outputs()[*k].node.idx()];
    }
    let inputs: Vec<NodeId> = inputs.into_iter().flatten().collect();
    let outputs = new.inline(&old.body, &inputs);
    for (output, node) in old.body.outputs().iter().zip(outputs) {
        new.output_as(output.name.clone(), output.role, node);
    }
    to.set_here_like(graph.node(pair.backward));
    let carries = old.carries;
    to.add(Op::Loop(Box::new(Loop { carries, scans, ..old.with_body(new) })), &new_args)
}
