//! Loops: what nobody reads is not computed, what does not change is computed once, before; but a mask is made where it is used.
//!
//! A body that holds a `Grad` marker is left as it is: its inputs are what it differentiates by, so two of them may hold the same
//! value and still be different.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Class, DType, Graph, InputKind, Loop, Name, Node, NodeId, Op, Role};

use super::{make, round, spread_to};
use crate::grad::params;

/// What became of a result of a loop.
#[derive(Clone, Copy)]
enum Fate {
    /// Result `k` of the new loop.
    Kept(u32),
    /// An argument of the old loop, by position.
    Arg(usize),
    /// An argument, the same at every position of the axis.
    Same(usize),
    Gone,
}

struct Trimmed {
    inner: Loop,
    /// The arguments of the old loop that the new one takes.
    args: Vec<usize>,
    fates: Vec<Fate>,
}

/// The graph with every loop cut down to the results that are read and to what these need.
pub(super) fn trim(graph: &Graph) -> Cow<'_, Graph> {
    if !graph.nodes().iter().any(|node| matches!(node.op, Op::Loop(_))) {
        return Cow::Borrowed(graph);
    }
    let live = graph.live();
    let mut used: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
    for id in graph.ids().filter(|id| live[id.idx()]) {
        if let (Op::Get(k), [of]) = (graph.op(id), graph.args(id)) {
            used.entry(*of).or_default().push(*k);
        }
    }
    let mut trimmed: BTreeMap<NodeId, Trimmed> = BTreeMap::new();
    for (id, results) in &used {
        if let Op::Loop(inner) = graph.op(*id)
            && !has_grad(&inner.body)
        {
            trimmed.insert(*id, trim_loop(inner, graph.args(*id), results));
        }
    }
    let mut given: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    Cow::Owned(graph.rebuild(|to, id, args| {
        if let Some(trim) = trimmed.get_mut(&id) {
            given.insert(id, args.to_vec());
            let kept: Vec<NodeId> = trim.args.iter().map(|k| args[*k]).collect();
            // Each loop is met once.
            let body = std::mem::take(&mut trim.inner.body);
            let inner = trim.inner.with_body(body);
            return to.add(Op::Loop(Box::new(inner)), &kept);
        }
        let (Op::Get(k), [of]) = (graph.op(id), graph.args(id)) else { return to.copy(graph, id, args) };
        let (Some(trim), Some(given)) = (trimmed.get(of), given.get(of)) else { return to.copy(graph, id, args) };
        match trim.fates[*k as usize] {
            Fate::Kept(k) => to.add(Op::Get(k), args),
            Fate::Arg(place) => given[place],
            Fate::Same(place) => spread_to(to, given[place], graph.ty(id)),
            // Nobody reads it: a live `Get` is never gone.
            Fate::Gone => to.copy(graph, id, args),
        }
    }))
}

fn has_grad(body: &Graph) -> bool {
    body.nodes().iter().any(|node| matches!(node.op, Op::Grad))
}

fn trim_loop(inner: &Loop, args: &[NodeId], used: &[u32]) -> Trimmed {
    let body = &inner.body;
    let params = params(body);
    let outputs: Vec<NodeId> = body.outputs().iter().map(|output| output.node).collect();
    let (carries, scanned) = (inner.carries, inner.carries + inner.scans);
    let n_results = carries + inner.stacked();

    // A carry that never changes is a free value.
    let constant: Vec<bool> = (0..carries).map(|k| outputs[k] == params[k]).collect();
    let mut wanted: Vec<bool> = (0..outputs.len()).map(|k| k >= n_results || used.contains(&(k as u32))).collect();
    (0..carries).filter(|k| constant[*k]).for_each(|k| wanted[k] = false);
    // Stacked results that are an input, or the same as another result, are not stacked.
    let mut fates: Vec<Fate> = vec![Fate::Gone; n_results];
    for k in carries..n_results {
        let place = params.iter().position(|param| *param == outputs[k]);
        match place {
            Some(place) if (carries..scanned).contains(&place) => fates[k] = Fate::Arg(place),
            Some(place) if place >= scanned || constant.get(place) == Some(&true) => fates[k] = Fate::Same(place),
            _ => continue,
        }
        wanted[k] = false;
    }
    (0..carries).filter(|k| constant[*k]).for_each(|k| fates[k] = Fate::Arg(k));
    let read = loop {
        let roots: Vec<NodeId> = (0..outputs.len()).filter(|k| wanted[*k]).map(|k| outputs[k]).collect();
        let read = reach(body, &roots);
        let mut grew = false;
        for k in 0..carries {
            if read[params[k].idx()] && !wanted[k] && !constant[k] {
                wanted[k] = true;
                grew = true;
            }
        }
        if !grew {
            break read;
        }
    };

    let mut new = Graph::new();
    let mut kept: Vec<usize> = Vec::new();
    let mut map: Vec<Option<NodeId>> = vec![None; body.nodes().len()];
    let take = |places: &mut dyn Iterator<Item = usize>,
                kept: &mut Vec<usize>,
                new: &mut Graph,
                map: &mut Vec<Option<NodeId>>| {
        let first = kept.len();
        for place in places {
            // Two scanned, or two free, arguments that are one value are one.
            let twin = kept[first..].iter().copied().find(|other| args[*other] == args[place]);
            let id = match twin.and_then(|other| map[params[other].idx()]) {
                Some(id) => id,
                None => {
                    let input = &body.inputs()[place];
                    kept.push(place);
                    new.input(input.name.clone(), InputKind::Param, input.ty.clone())
                }
            };
            map[params[place].idx()] = Some(id);
        }
        kept.len() - first
    };
    for place in (0..carries).filter(|k| wanted[*k]) {
        let input = &body.inputs()[place];
        kept.push(place);
        map[params[place].idx()] = Some(new.input(input.name.clone(), InputKind::Param, input.ty.clone()));
    }
    let n_carries = kept.len();
    let is_read = |place: &usize| read[params[*place].idx()];
    let scans = take(&mut (carries..scanned).filter(is_read), &mut kept, &mut new, &mut map);
    let free = (0..carries).filter(|k| constant[*k]).chain(scanned..params.len());
    take(&mut free.filter(is_read), &mut kept, &mut new, &mut map);
    for id in body.ids().filter(|id| read[id.idx()] && map[id.idx()].is_none()).collect::<Vec<_>>() {
        let args: Vec<NodeId> = body.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
        map[id.idx()] = Some(new.copy(body, id, &args));
    }
    let mut n_outputs = 0;
    for (k, output) in body.outputs().iter().enumerate().filter(|(k, _)| wanted[*k]) {
        let Some(node) = map[output.node.idx()] else { continue };
        if k >= carries && k < n_results {
            let twin = new.outputs()[n_carries..].iter().position(|other| other.node == node);
            if let Some(twin) = twin {
                fates[k] = Fate::Kept((n_carries + twin) as u32);
                continue;
            }
        }
        if k < n_results {
            fates[k] = Fate::Kept(n_outputs);
        }
        n_outputs += 1;
        new.output_as(output.name.clone(), Role::Value, node);
    }
    let inner = Loop {
        axis: inner.axis.clone(),
        reverse: inner.reverse,
        carries: n_carries,
        scans,
        until: inner.until,
        body: new,
    };
    Trimmed { inner, args: kept, fates }
}

fn reach(graph: &Graph, roots: &[NodeId]) -> Vec<bool> {
    let mut reached = vec![false; graph.nodes().len()];
    roots.iter().for_each(|root| reached[root.idx()] = true);
    for id in graph.ids().rev() {
        if reached[id.idx()] {
            graph.args(id).iter().for_each(|arg| reached[arg.idx()] = true);
        }
    }
    reached
}

/// A loop with a simplified body; what in it depends on free values alone, and is not next to free, is computed before it.
pub(super) fn rebuild(to: &mut Graph, node: &Node, inner: &Loop, args: &[NodeId]) -> NodeId {
    let sunk = sink(to, inner, args);
    let (inner, args) = match &sunk {
        Some((inner, args)) => (inner, &args[..]),
        None => (inner, args),
    };
    let body = round(&inner.body);
    let plain = inner.with_body(body);
    let hoisted = if has_grad(&plain.body) { Vec::new() } else { invariants(&plain) };
    if hoisted.is_empty() {
        return to.add(Op::Loop(Box::new(plain)), args);
    }
    let old = &plain.body;
    let params = params(old);
    // Outside: copies of what is hoisted, and of all that it needs.
    let needed = reach(old, &hoisted);
    let mut outside: Vec<Option<NodeId>> = vec![None; old.nodes().len()];
    for (param, arg) in params.iter().zip(args) {
        outside[param.idx()] = Some(*arg);
    }
    for id in old.ids().filter(|id| needed[id.idx()]) {
        if outside[id.idx()].is_none() {
            let args: Vec<NodeId> = old.args(id).iter().filter_map(|arg| outside[arg.idx()]).collect();
            to.set_here_like(old.node(id));
            outside[id.idx()] = Some(match old.op(id) {
                Op::Loop(_) => to.add(old.op(id).clone(), &args),
                op => make(to, op.clone(), &args),
            });
        }
    }
    // Inside: one more free input for each.
    let mut body = Graph::new();
    let mut inputs: Vec<NodeId> = Vec::new();
    for input in old.inputs() {
        inputs.push(body.input(input.name.clone(), input.kind, input.ty.clone()));
    }
    let mut args = args.to_vec();
    let mut inside: Vec<Option<NodeId>> = vec![None; old.nodes().len()];
    for id in &hoisted {
        if let Some(value) = outside[id.idx()] {
            let name = format!("before {}", args.len());
            inside[id.idx()] = Some(body.input(name, InputKind::Param, old.ty(*id).clone()));
            args.push(value);
        }
    }
    for (param, input) in params.iter().zip(&inputs) {
        inside[param.idx()] = Some(*input);
    }
    let live = old.live();
    for id in old.ids().filter(|id| live[id.idx()]) {
        if inside[id.idx()].is_none() {
            let args: Vec<NodeId> = old.args(id).iter().filter_map(|arg| inside[arg.idx()]).collect();
            if args.len() == old.args(id).len() {
                inside[id.idx()] = Some(body.copy(old, id, &args));
            }
        }
    }
    for output in old.outputs() {
        if let Some(node) = inside[output.node.idx()] {
            body.output_as(output.name.clone(), output.role, node);
        }
    }
    to.set_here_like(node);
    to.add(Op::Loop(Box::new(plain.with_body(body))), &args)
}

/// The loop with its masks inside: free values that are spread over more axes than what they are made of, by whole numbers and
/// comparisons alone. Nobody has to store them then, and what they hide can be seen where it matters.
fn sink(graph: &Graph, inner: &Loop, args: &[NodeId]) -> Option<(Loop, Vec<NodeId>)> {
    let first_free = inner.carries + inner.scans;
    if has_grad(&inner.body) || inner.until {
        return None;
    }
    let masks: BTreeMap<usize, Vec<NodeId>> =
        (first_free..args.len()).filter_map(|k| Some((k, made_lightly(graph, args[k], &inner.axis.name)?))).collect();
    if masks.is_empty() {
        return None;
    }
    let mut body = Graph::new();
    let mut new_args: Vec<NodeId> = Vec::new();
    let mut inputs: Vec<Option<NodeId>> = Vec::new();
    for (k, input) in inner.body.inputs().iter().enumerate() {
        inputs.push((!masks.contains_key(&k)).then(|| {
            new_args.push(args[k]);
            body.input(input.name.clone(), input.kind, input.ty.clone())
        }));
    }
    let mut inside: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for (k, made) in &masks {
        for id in made {
            for arg in graph.args(*id) {
                if !made.contains(arg) && !inside.contains_key(arg) {
                    let name = format!("before {}", new_args.len());
                    inside.insert(*arg, body.input(name, InputKind::Param, graph.ty(*arg).clone()));
                    new_args.push(*arg);
                }
            }
        }
        for id in made {
            if !inside.contains_key(id) {
                let own: Vec<NodeId> = graph.args(*id).iter().filter_map(|arg| inside.get(arg).copied()).collect();
                inside.insert(*id, body.copy(graph, *id, &own));
            }
        }
        inputs[*k] = inside.get(&args[*k]).copied();
    }
    let inputs: Vec<NodeId> = inputs.into_iter().flatten().collect();
    let outputs = body.inline(&inner.body, &inputs);
    for (output, node) in inner.body.outputs().iter().zip(outputs) {
        body.output_as(output.name.clone(), output.role, node);
    }
    Some((Loop { body, ..inner.clone() }, new_args))
}

/// The nodes that make a mask, in order, up to what it is made of; `None` when it is none.
fn made_lightly(graph: &Graph, mask: NodeId, axis: &Name) -> Option<Vec<NodeId>> {
    let is_light = |id: NodeId| {
        let ty = graph.ty(id);
        let plain = match graph.op(id) {
            Op::Const(..) | Op::Iota(_) => true,
            op => matches!(op.class(), Class::Map | Class::View) && !is_costly(graph, id),
        };
        plain && !ty.dtype.is_float() && !ty.axes.contains(axis)
    };
    if !is_light(mask) || graph.args(mask).is_empty() {
        return None;
    }
    let mut made: BTreeSet<NodeId> = BTreeSet::new();
    let mut sources = 1;
    let mut stack = vec![mask];
    while let Some(id) = stack.pop() {
        if made.insert(id) {
            for arg in graph.args(id) {
                if is_light(*arg) {
                    stack.push(*arg);
                } else {
                    sources = sources.max(graph.ty(*arg).count());
                }
            }
        }
    }
    (graph.ty(mask).count() > sources).then(|| made.into_iter().collect())
}

/// An index-pure value larger than this is cheaper made again in each pass than read from memory.
const LARGE: u64 = 1 << 16;

/// The nodes of the body that are worth computing before the loop.
fn invariants(inner: &Loop) -> Vec<NodeId> {
    let body = &inner.body;
    let params = params(body);
    let free = &params[inner.carries + inner.scans..];
    let mut fixed = vec![false; body.nodes().len()];
    let mut pure = vec![false; body.nodes().len()];
    for id in body.ids() {
        let args = body.args(id);
        let leaf = matches!(body.op(id), Op::Const(..) | Op::Iota(_));
        let some = !args.is_empty();
        pure[id.idx()] = leaf || (some && args.iter().all(|arg| pure[arg.idx()]));
        fixed[id.idx()] = leaf || free.contains(&id) || (some && args.iter().all(|arg| fixed[arg.idx()]));
    }
    let live = body.live();
    let mut wanted = vec![false; body.nodes().len()];
    for id in body.ids().filter(|id| live[id.idx()] && !fixed[id.idx()]) {
        body.args(id).iter().for_each(|arg| wanted[arg.idx()] = true);
    }
    let mut found: Vec<NodeId> = Vec::new();
    // A stacked result that is the same in every pass is spread after the loop.
    for output in &body.outputs()[inner.carries..inner.carries + inner.stacked()] {
        if fixed[output.node.idx()] && !free.contains(&output.node) {
            found.push(output.node);
        }
    }
    for output in &body.outputs()[..inner.carries] {
        wanted[output.node.idx()] = true;
    }
    for id in body.ids().rev().filter(|id| fixed[id.idx()]) {
        if !wanted[id.idx()] || !live[id.idx()] {
            continue;
        }
        let large = pure[id.idx()] && body.ty(id).count() > LARGE;
        if is_costly(body, id) && !large {
            found.push(id);
        } else {
            body.args(id).iter().for_each(|arg| wanted[arg.idx()] = true);
        }
    }
    found.sort();
    found.dedup();
    found
}

/// True for what takes longer to compute than to read.
fn is_costly(body: &Graph, id: NodeId) -> bool {
    let op = body.op(id);
    match op.class() {
        Class::Leaf | Class::View => matches!(op, Op::Unwindow { .. }),
        Class::Map => match op {
            Op::Exp | Op::Log | Op::Tanh | Op::Erf | Op::Sin | Op::Cos | Op::Sqrt | Op::Pow | Op::Div => true,
            // Weights rounded for every pass anew.
            Op::Cast(to) => matches!(to, DType::BF16 | DType::F16) && body.ty(body.args(id)[0]).dtype.is_float(),
            _ => false,
        },
        Class::Reduce | Class::Prefix | Class::Contract | Class::Index | Class::Order => true,
        Class::Control => matches!(op, Op::Get(_)),
    }
}
