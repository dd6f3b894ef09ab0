//! The derivative of a loop: the forward loop with more results, and a backward loop that reads them.
//!
//! First the derivative of the body is appended to the body: one *joint* graph with the body's inputs, then cotangents of its
//! outputs; its outputs are the body's, then cotangents of its inputs. The joint graph is split by what `residual.rs` chooses to
//! save: the forward body is what the old outputs and the saved values need, the backward body the rest, which reads saved
//! values as scanned inputs. A loop inside the body has become two by then, and what it saved is a value like any other.

use mdl_graph::{DType, Graph, InputKind, Loop, Name, NodeId, Op, Output, Role, Type};

use super::sweep::{backward_of, pull_back, zeros_like};
use super::{Extended, SAVED, residual, with_done};

/// The cotangents of a loop's arguments, from those of its results. `active` says which arguments may have one.
pub(super) fn pull(
    graph: &mut Graph,
    id: NodeId,
    active: &[bool],
    results: &[Option<NodeId>],
    extended: &mut Extended,
) -> Vec<Option<NodeId>> {
    let node = graph.node(id).clone();
    let Op::Loop(inner) = &node.op else { return Vec::new() };
    if results.iter().all(Option::is_none) {
        return vec![None; active.len()];
    }
    let (mut inner, mut active, mut results) = (Loop::clone(inner), active.to_vec(), results.to_vec());
    let stopped_early = inner.until;
    if stopped_early {
        inner = run_to_the_end(&inner);
        active.insert(inner.carries - 1, false);
        results.insert(inner.carries - 1, None);
    }
    graph.set_here_like(&node);
    let args = with_done(graph, &inner, &node.args);
    let joint = Joint::of(&inner, &active, &results);
    let saved = residual::choose(&joint.graph, &inner, joint.n_params, &joint.pulled());

    // The forward loop takes the place of the old one when the sweep is over; until then both stand here.
    let (forward, places) = joint.forward(&inner, &saved);
    let forward_node = graph.add(Op::Loop(Box::new(forward.clone())), &args);
    extended.0.insert(id, forward);
    let saved_values: Vec<NodeId> = places.iter().map(|k| graph.add(Op::Get(*k as u32), &[forward_node])).collect();

    backward_of(graph, &node);
    let mut found = joint.backward(graph, &inner, &args, &results, &saved, &saved_values);
    if stopped_early {
        found.remove(inner.carries - 1);
    }
    found
}

/// The nodes that stand for a body's inputs, in their order.
pub(crate) fn params(body: &Graph) -> Vec<NodeId> {
    let mut params = vec![NodeId(0); body.inputs().len()];
    for id in body.ids() {
        if let Op::Input(input) = body.op(id) {
            params[input.0 as usize] = id;
        }
    }
    params
}

/// A loop that ends early, as one that goes on and changes nothing: one more carry, last, says that it has ended.
fn run_to_the_end(inner: &Loop) -> Loop {
    let old = &inner.body;
    let mut body = Graph::new();
    let mut inputs: Vec<NodeId> = Vec::new();
    let mut done = NodeId(0);
    for (i, input) in old.inputs().iter().enumerate() {
        if i == inner.carries {
            done = body.input("done", InputKind::Param, Type::scalar(DType::Bool));
        }
        inputs.push(body.input(input.name.clone(), InputKind::Param, input.ty.clone()));
    }
    if old.inputs().len() == inner.carries {
        done = body.input("done", InputKind::Param, Type::scalar(DType::Bool));
    }
    let mut outputs = body.inline(old, &inputs);
    let ends = outputs.pop().unwrap_or(done);
    for k in 0..inner.carries {
        let next = body.add(Op::Select, &[done, inputs[k], outputs[k]]);
        body.output_as(old.outputs()[k].name.clone(), Role::Value, next);
    }
    let ends = body.add(Op::Or, &[done, ends]);
    body.output_as("done", Role::Value, ends);
    Loop {
        axis: inner.axis.clone(),
        reverse: inner.reverse,
        carries: inner.carries + 1,
        scans: inner.scans,
        until: false,
        body,
    }
}

/// A body with its own derivative appended.
struct Joint {
    graph: Graph,
    /// The inputs of the body; those after them are cotangents.
    n_params: usize,
    /// The outputs of the body; those after them are cotangents, of the inputs in `of_params`.
    n_outputs: usize,
    /// The carries whose cotangent is carried backward.
    flows: Vec<bool>,
    of_params: Vec<usize>,
}

impl Joint {
    /// Starts from the carries whose last value has a cotangent, and adds those that turn out to be needed on the way.
    fn of(inner: &Loop, active: &[bool], results: &[Option<NodeId>]) -> Joint {
        let mut flows: Vec<bool> = results[..inner.carries].iter().map(Option::is_some).collect();
        loop {
            let joint = Joint::with(inner, active, results, flows.clone());
            let missing: Vec<usize> =
                joint.of_params.iter().copied().filter(|k| *k < inner.carries && !flows[*k]).collect();
            if missing.is_empty() {
                return joint;
            }
            missing.into_iter().for_each(|k| flows[k] = true);
        }
    }

    fn with(inner: &Loop, active: &[bool], results: &[Option<NodeId>], flows: Vec<bool>) -> Joint {
        let mut graph = inner.body.clone();
        let outputs: Vec<Output> = graph.outputs().to_vec();
        let mut seeds = Vec::new();
        for (k, output) in outputs.iter().enumerate() {
            if if k < inner.carries { flows[k] } else { results[k].is_some() } {
                let ty = graph.ty(output.node).clone();
                seeds.push((output.node, graph.input(format!("d {}", output.name), InputKind::Param, ty)));
            }
        }
        let all: Vec<NodeId> = params(&inner.body);
        let wanted: Vec<usize> = (0..all.len()).filter(|k| active[*k]).collect();
        let xs: Vec<NodeId> = wanted.iter().map(|k| all[*k]).collect();
        let mut extended = Extended::default();
        let found = pull_back(&mut graph, &seeds, &xs, &mut extended);
        let mut of_params = Vec::new();
        for (k, ct) in wanted.into_iter().zip(found) {
            if let Some(ct) = ct {
                let name = format!("d {}", graph.inputs()[k].name);
                graph.output_as(name, Role::Value, ct);
                of_params.push(k);
            }
        }
        let (n_params, n_outputs) = (all.len(), outputs.len());
        Joint { graph: extended.apply(&graph), n_params, n_outputs, flows, of_params }
    }

    /// The cotangents of the body's inputs.
    fn pulled(&self) -> Vec<NodeId> {
        self.graph.outputs()[self.n_outputs..].iter().map(|output| output.node).collect()
    }

    /// The loop with the saved values stacked too, and which of its results each of them is.
    fn forward(&self, inner: &Loop, saved: &[NodeId]) -> (Loop, Vec<usize>) {
        let mut roots: Vec<NodeId> = self.graph.outputs()[..self.n_outputs].iter().map(|output| output.node).collect();
        let mut places = Vec::new();
        for value in saved {
            let known = (inner.carries..roots.len()).find(|k| roots[*k] == *value);
            places.push(known.unwrap_or(roots.len()));
            if known.is_none() {
                roots.push(*value);
            }
        }
        let mut body = Graph::new();
        let params = params(&self.graph);
        let mut leaves: Vec<(NodeId, NodeId)> = Vec::new();
        for (k, input) in self.graph.inputs()[..self.n_params].iter().enumerate() {
            leaves.push((params[k], body.input(input.name.clone(), input.kind, input.ty.clone())));
        }
        let nodes = transplant(&self.graph, &mut body, &leaves, &roots, false);
        for (k, (node, root)) in nodes.into_iter().zip(&roots).enumerate() {
            if k < self.n_outputs {
                body.output_as(self.graph.outputs()[k].name.clone(), Role::Value, node);
            } else {
                let renamed = body.rename(node, aside(self.graph.ty(*root), &inner.axis.name));
                body.output_as(format!("{SAVED}{}", k - self.n_outputs), Role::Value, renamed);
            }
        }
        (inner.with_body(body), places)
    }

    /// Adds the backward loop and gives the cotangents of the loop's arguments. Its carries are the cotangents of the carries,
    /// then a sum for each free argument; it scans what the loop scanned, the cotangents of what it stacked, and what it saved.
    fn backward(
        &self,
        graph: &mut Graph,
        inner: &Loop,
        args: &[NodeId],
        results: &[Option<NodeId>],
        saved: &[NodeId],
        saved_values: &[NodeId],
    ) -> Vec<Option<NodeId>> {
        let joint = &self.graph;
        let all = params(joint);
        let (carried, scanned) = (inner.carries, inner.carries + inner.scans);
        let mut parts = Parts { body: Graph::new(), args: Vec::new(), leaves: Vec::new() };
        let mut cotangents = all[self.n_params..].iter();
        let flowing: Vec<usize> = (0..carried).filter(|k| self.flows[*k]).collect();
        for k in &flowing {
            let start = match results[*k] {
                Some(ct) => ct,
                None => zeros_like(graph, args[*k]),
            };
            if let Some(leaf) = cotangents.next() {
                parts.take(joint, *leaf, start);
            }
        }
        let free: Vec<usize> = self.of_params.iter().copied().filter(|k| *k >= scanned).collect();
        let mut sums = Vec::new();
        for k in &free {
            let ty = graph.ty(args[*k]).clone();
            let name: Name = format!("sum of d {}", joint.inputs()[*k].name).into();
            sums.push(parts.body.input(name, InputKind::Param, ty));
            let start = zeros_like(graph, args[*k]);
            parts.args.push(start);
        }
        let carries = parts.args.len();

        let used = self.read_backward(saved);
        for k in carried..scanned {
            if used[all[k].idx()] {
                parts.take(joint, all[k], args[k]);
            }
        }
        for (leaf, ct) in cotangents.zip(results[carried..].iter().flatten()) {
            parts.take(joint, *leaf, *ct);
        }
        for (leaf, value) in saved.iter().zip(saved_values) {
            parts.take_saved(joint, *leaf, *value, &inner.axis.name);
        }
        let scans = parts.args.len() - carries;
        for k in scanned..self.n_params {
            if used[all[k].idx()] {
                parts.take(joint, all[k], args[k]);
            }
        }

        let Parts { mut body, args: loop_args, leaves } = parts;
        let stacked: Vec<usize> = self.of_params.iter().copied().filter(|k| (carried..scanned).contains(k)).collect();
        let cts = transplant(joint, &mut body, &leaves, &self.pulled(), true);
        let ct = |k: usize| self.of_params.iter().position(|param| *param == k).map(|at| cts[at]);
        let name = |k: usize| format!("d {}", joint.inputs()[k].name);
        for k in &flowing {
            let next = match ct(*k) {
                Some(ct) => ct,
                None => {
                    let ty = &joint.inputs()[*k].ty;
                    let zero = body.constant(0.0, ty.dtype);
                    body.expand(zero, &ty.axes)
                }
            };
            body.output_as(name(*k), Role::Value, next);
        }
        for (k, sum) in free.iter().zip(sums) {
            if let Some(ct) = ct(*k) {
                let next = body.add(Op::Add, &[sum, ct]);
                body.output_as(name(*k), Role::Value, next);
            }
        }
        for k in &stacked {
            if let Some(ct) = ct(*k) {
                body.output_as(name(*k), Role::Value, ct);
            }
        }
        let backward = Loop { axis: inner.axis.clone(), reverse: !inner.reverse, carries, scans, until: false, body };
        let got = graph.loop_over(backward, &loop_args);
        let mut found = vec![None; self.n_params];
        for (k, value) in flowing.into_iter().chain(free).chain(stacked).zip(got) {
            found[k] = Some(value);
        }
        found
    }

    /// The nodes that the backward body copies or reads, saved ones included but not what is behind them.
    fn read_backward(&self, saved: &[NodeId]) -> Vec<bool> {
        let mut read = vec![false; self.graph.nodes().len()];
        for ct in self.pulled() {
            read[ct.idx()] = true;
        }
        for id in self.graph.ids().rev() {
            if read[id.idx()] && !saved.contains(&id) {
                for arg in self.graph.args(id) {
                    read[arg.idx()] = true;
                }
            }
        }
        read
    }
}

/// A backward loop in the making: its body's inputs, its arguments, and which nodes of the joint graph the inputs stand for.
struct Parts {
    body: Graph,
    args: Vec<NodeId>,
    leaves: Vec<(NodeId, NodeId)>,
}

impl Parts {
    /// An input of the joint graph as an input of the backward body.
    fn take(&mut self, joint: &Graph, leaf: NodeId, arg: NodeId) {
        let name = match joint.op(leaf) {
            Op::Input(input) => joint.inputs()[input.0 as usize].name.clone(),
            _ => Name::from("value"),
        };
        let input = self.body.input(name, InputKind::Param, joint.ty(leaf).clone());
        self.leaves.push((leaf, input));
        self.args.push(arg);
    }

    /// A saved value; one that has an axis of the loop's name travelled under another name.
    fn take_saved(&mut self, joint: &Graph, leaf: NodeId, arg: NodeId, axis: &Name) {
        let ty = joint.ty(leaf);
        let pairs = aside(ty, axis);
        let mut axes = ty.axes.clone();
        for (old, new) in &pairs {
            if let Some(mut moved) = axes.remove(old) {
                moved.name = new.clone();
                axes.insert(moved);
            }
        }
        let name = format!("{SAVED}{}", self.leaves.len());
        let input = self.body.input(name, InputKind::Param, Type::new(ty.dtype, axes));
        let value = self.body.rename(input, pairs.into_iter().map(|(old, new)| (new, old)));
        self.leaves.push((leaf, value));
        self.args.push(arg);
    }
}

/// A value that is stacked along `axis` may have an axis of that name itself: it is renamed to a twin that is free.
pub(crate) fn aside(ty: &Type, axis: &Name) -> Vec<(Name, Name)> {
    if !ty.axes.contains(axis) {
        return Vec::new();
    }
    let mut twin = axis.twin();
    while ty.axes.contains(&twin) {
        twin = twin.twin();
    }
    vec![(axis.clone(), twin)]
}

/// Copies what `roots` need into another graph, up to `leaves`, which are there already. `recomputed` marks the copies as
/// backward, so that they are not confused with what they copy.
fn transplant(
    from: &Graph,
    to: &mut Graph,
    leaves: &[(NodeId, NodeId)],
    roots: &[NodeId],
    recomputed: bool,
) -> Vec<NodeId> {
    let mut map: Vec<Option<NodeId>> = vec![None; from.nodes().len()];
    for (leaf, node) in leaves {
        map[leaf.idx()] = Some(*node);
    }
    let mut needed = vec![false; from.nodes().len()];
    roots.iter().for_each(|root| needed[root.idx()] = true);
    for id in from.ids().rev().filter(|id| map[id.idx()].is_none()) {
        if needed[id.idx()] {
            from.args(id).iter().for_each(|arg| needed[arg.idx()] = true);
        }
    }
    for id in from.ids().filter(|id| needed[id.idx()]) {
        if map[id.idx()].is_some() {
            continue;
        }
        let args: Vec<NodeId> = from.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
        if recomputed {
            backward_of(to, from.node(id));
        } else {
            to.set_here_like(from.node(id));
        }
        map[id.idx()] = Some(to.add(from.op(id).clone(), &args));
    }
    roots.iter().filter_map(|root| map[root.idx()]).collect()
}
