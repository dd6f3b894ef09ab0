//! What has to run for one body, and what before what.
//!
//! A task is a group of the fusion, or a copy that brings an output to its place. An output whose place is that of an input (a
//! carry, a state) is written there directly when everybody else has read the input by then; otherwise it is made elsewhere and
//! copied last.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Name, NodeId, Op};

use super::Home;
use super::body::Want;
use crate::fuse::{Body, Fusion, Group, Kind, Shape};
use crate::plan::SlotId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Index in the fusion.
    Group(usize),
    /// Copies what an output names to a buffer of its own, before it is overwritten.
    Temp(usize),
    /// Copies an output to its place.
    Out(usize),
}

pub(super) struct Tasks {
    pub(super) list: Vec<Task>,
    /// The tasks that wait for each.
    pub(super) next: Vec<BTreeSet<usize>>,
    /// Whether the kernel of its node writes an output to its place.
    pub(super) direct: Vec<bool>,
}

impl Tasks {
    pub(super) fn new(body: &Body<'_>, fusion: &Fusion, inputs: &[Home], wants: &[Want]) -> Tasks {
        let outputs = body.graph.outputs();
        let mut tasks = Tasks {
            list: (0..fusion.groups.len()).map(Task::Group).collect(),
            next: vec![BTreeSet::new(); fusion.groups.len()],
            direct: vec![false; outputs.len()],
        };
        let mut readers: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
        for (at, group) in fusion.groups.iter().enumerate() {
            for id in group.members.keys() {
                for read in &body.reads[id.idx()] {
                    readers.entry(read.root).or_default().insert(at);
                    if let Some(from) = maker(body, fusion, read.root).filter(|from| *from != at) {
                        tasks.next[from].insert(at);
                    }
                }
            }
        }

        let mut given: BTreeMap<SlotId, NodeId> = BTreeMap::new();
        for id in body.graph.ids() {
            if let Op::Input(input) = body.graph.op(id) {
                given.entry(inputs[input.0 as usize].buffer).or_insert(id);
            }
        }
        // For each output, the input whose place it takes.
        let taken: Vec<Option<NodeId>> = wants
            .iter()
            .map(|want| match want {
                Want::At(home) => given.get(&home.buffer).copied().filter(|id| is_place_of(body, *id, inputs, home)),
                Want::Any | Want::Dense => None,
            })
            .collect();
        let roots: Vec<NodeId> = outputs.iter().map(|output| body.renamed(output.node).0).collect();

        // What an output takes from an input that another output overwrites is saved first.
        let mut saved = vec![None; outputs.len()];
        for (j, root) in roots.iter().enumerate() {
            let is_lost = taken.iter().enumerate().any(|(other, input)| *input == Some(*root) && roots[other] != *root);
            if taken[j] != Some(*root) && is_lost {
                let at = tasks.push(Task::Temp(j));
                readers.entry(*root).or_default().insert(at);
                saved[j] = Some(at);
            }
        }
        for (j, want) in wants.iter().enumerate() {
            if !matches!(want, Want::At(_)) || taken[j] == Some(roots[j]) {
                continue;
            }
            let Some(writer) = maker(body, fusion, roots[j]) else { continue };
            let is_result = matches!(body.graph.op(roots[j]), Op::Get(_));
            if matches!(body.graph.op(roots[j]), Op::Loop(_)) {
                continue;
            }
            let Some(input) = taken[j] else {
                tasks.direct[j] = !is_result;
                continue;
            };
            let others: Vec<usize> =
                readers.get(&input).into_iter().flatten().copied().filter(|reader| *reader != writer).collect();
            let is_in_place = match is_result {
                true => {
                    stacks_in_place(body, input, roots[j])
                        && roots.iter().filter(|root| **root == roots[j]).count() == 1
                }
                false => reads_in_place(body, &fusion.groups[writer], input, roots[j], outputs[j].node),
            };
            let is_safe = is_in_place && others.iter().all(|reader| !tasks.has_path(writer, *reader));
            if is_safe {
                tasks.direct[j] = true;
                for reader in others {
                    tasks.next[reader].insert(writer);
                }
            }
        }
        for (j, want) in wants.iter().enumerate() {
            if !matches!(want, Want::At(_)) || taken[j] == Some(roots[j]) || tasks.direct[j] {
                continue;
            }
            let out = tasks.push(Task::Out(j));
            match saved[j] {
                Some(temp) => {
                    tasks.next[temp].insert(out);
                }
                None => {
                    if let Some(from) = maker(body, fusion, roots[j]) {
                        tasks.next[from].insert(out);
                    }
                }
            }
            if let Some(input) = taken[j] {
                for reader in readers.get(&input).cloned().unwrap_or_default() {
                    tasks.next[reader].insert(out);
                }
            }
        }
        tasks
    }

    fn push(&mut self, task: Task) -> usize {
        self.list.push(task);
        self.next.push(BTreeSet::new());
        self.list.len() - 1
    }

    fn has_path(&self, from: usize, to: usize) -> bool {
        let mut stack = vec![from];
        let mut seen = BTreeSet::new();
        while let Some(at) = stack.pop() {
            if at == to {
                return true;
            }
            stack.extend(self.next[at].iter().copied().filter(|next| seen.insert(*next)));
        }
        false
    }
}

/// The group that makes a value: its own, or that of the loop whose result it is.
pub(super) fn maker(body: &Body<'_>, fusion: &Fusion, id: NodeId) -> Option<usize> {
    match body.graph.op(id) {
        Op::Get(_) => fusion.of.get(&body.graph.args(id)[0]).copied(),
        _ => fusion.of.get(&id).copied(),
    }
}

fn is_place_of(body: &Body<'_>, id: NodeId, inputs: &[Home], home: &Home) -> bool {
    matches!(body.graph.op(id), Op::Input(input) if inputs[input.0 as usize] == *home)
}

/// Whether a loop stacks this result slice by slice where it scans `input`, which it reads in no other way: a pass is done with its
/// slice of the one when it has made that of the other. The body decides whether it writes there at once or copies.
fn stacks_in_place(body: &Body<'_>, input: NodeId, result: NodeId) -> bool {
    let Op::Get(k) = body.graph.op(result) else { return false };
    let id = body.graph.args(result)[0];
    let Op::Loop(inner) = body.graph.op(id) else { return false };
    let args = body.graph.args(id);
    let mut reading = (0..args.len()).filter(|at| body.roots(args[*at]).contains(&input));
    let (first, more) = (reading.next(), reading.next());
    let is_scanned = |at: usize| (inner.carries..inner.carries + inner.scans).contains(&at) && args[at] == input;
    *k as usize >= inner.carries && first.is_some_and(is_scanned) && more.is_none()
}

/// Whether the group reads `input` only where it writes `root`, which the output calls `named`, and at no other point: a scalar
/// beside a vector is read again for each piece of the vector.
fn reads_in_place(body: &Body<'_>, group: &Group, input: NodeId, root: NodeId, named: NodeId) -> bool {
    let (_, names) = body.renamed(named);
    let is_read = group.members.keys().any(|id| body.reads[id.idx()].iter().any(|read| read.root == input));
    let is_plane = matches!(group.shape, Shape::Plane { .. });
    if is_read && (is_plane || !differs_everywhere(body, group, root)) {
        return false;
    }
    let written =
        |axis: &Name| names.iter().find(|(_, here)| here == axis).and_then(|(there, _)| group.dim(root, there));
    group.members.keys().all(|id| {
        body.reads[id.idx()].iter().filter(|read| read.root == input).all(|read| {
            let Some(link) = &read.link else { return false };
            !group.exits.contains(&root)
                && body.kind(*id) != Kind::Contract
                && link.iter().all(|(there, here)| {
                    let read = group.dim(*id, here);
                    read.is_some() && read == written(there)
                })
        })
    })
}

/// Whether a value of the group has one element for each point that a kernel may run by itself.
fn differs_everywhere(body: &Body<'_>, group: &Group, root: NodeId) -> bool {
    let product = match group.shape {
        Shape::Contract(id) => group.reduced(body, id),
        Shape::Nest | Shape::Plane { .. } | Shape::Alone(_) => BTreeSet::new(),
    };
    let axes = &body.graph.ty(root).axes;
    let own: BTreeSet<usize> = axes.names().filter_map(|axis| group.dim(root, axis)).collect();
    // A row that is folded is one point, however long.
    let folds = |id: NodeId| matches!(body.kind(id), Kind::Reduce | Kind::Product) && !group.exits.contains(&id);
    let folded: BTreeSet<usize> =
        group.members.keys().filter(|id| folds(**id)).flat_map(|id| group.reduced(body, *id)).collect();
    (0..group.dims.len())
        .all(|dim| group.dims[dim].1 <= 1 || own.contains(&dim) || folded.contains(&dim) || product.contains(&dim))
}
