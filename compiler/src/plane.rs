//! Planes: values with rows and columns that are made by products, worked on, and summed away again. Attention's scores are one.
//!
//! In: a [`Body`]. Out: for each plane that need not be in memory, the nodes that are computed together: products that make it,
//! maps on it, sums and maxima along its rows, what of these goes back into it, and the products that sum it away. It is an
//! analysis of how values enter and leave, not a pattern: masks, biases, softmax, dropout and derivatives are all maps and sums.
//! A plane of which anything leaves otherwise, or whose results come back to it from outside, is left to plain fusion.

mod trace;

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Name, NodeId, Op};

use crate::fuse::{Body, Kind, Names};
use trace::trace;

/// Longer products cost more to make again than the plane costs to store, and wider sums do not stay in registers.
const DEEPEST: u64 = 256;
/// A smaller plane of one batch point stays in the cache from kernel to kernel: storing it costs less than making it again.
const LEAST: u64 = 1 << 14;

/// Nodes that are computed together, over dimensions of a batch, of rows, and one of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plane {
    /// The batch, the rows, the column; then the dimensions that only results have.
    pub(crate) dims: Vec<(Name, u64)>,
    pub(crate) batch: usize,
    pub(crate) rows: usize,
    /// Values over the whole plane; those that are views too.
    pub(crate) whole: BTreeMap<NodeId, Names>,
    /// Sums and maxima along the rows, maps between those and the plane, and masks over some of its dimensions.
    pub(crate) beside: BTreeMap<NodeId, Names>,
    pub(crate) ins: BTreeSet<NodeId>,
    pub(crate) folds: BTreeSet<NodeId>,
    /// The products that sum the plane.
    pub(crate) outs: BTreeMap<NodeId, Names>,
}

impl Plane {
    pub(crate) fn column(&self) -> usize {
        self.batch + self.rows
    }

    /// The nodes that a kernel computes.
    pub(crate) fn members(&self, body: &Body<'_>) -> BTreeMap<NodeId, Names> {
        let all = self.whole.iter().chain(&self.beside).chain(&self.outs);
        all.filter(|(id, _)| body.is_computed(**id)).map(|(id, names)| (*id, names.clone())).collect()
    }

    /// Whether it is better not to store it: short products, and rows that are normalised, or many planes side by side. A layer
    /// with weights has neither.
    fn pays(&self, body: &Body<'_>) -> bool {
        let graph = body.graph;
        let depth = |id: &NodeId| match graph.op(*id) {
            Op::Contract(summed) => {
                let axes = &graph.ty(graph.args(*id)[0]).axes;
                summed.iter().filter_map(|name| axes.size(name)).product::<u64>()
            }
            _ => 1,
        };
        let n = |id: &NodeId| {
            let own = &self.outs[id];
            own.iter().filter(|(_, dim)| *dim > self.column()).map(|(_, dim)| self.dims[*dim].1).product::<u64>()
        };
        let size = self.dims[self.batch..=self.column()].iter().map(|(_, size)| size).product::<u64>();
        size >= LEAST
            && !self.outs.is_empty()
            && (self.batch > 0 || !self.folds.is_empty())
            && self.ins.iter().all(|id| depth(id) <= DEEPEST)
            && self.outs.keys().all(|id| n(id) <= DEEPEST)
    }
}

/// What a trace reads of a body beside the nodes themselves.
pub(crate) struct Uses {
    /// The live nodes that have each as an argument.
    users: Vec<Vec<NodeId>>,
    /// The computed nodes that read each value, through whatever views.
    readers: BTreeMap<NodeId, Vec<NodeId>>,
}

impl Uses {
    fn of(body: &Body<'_>) -> Uses {
        let graph = body.graph;
        let mut users = vec![Vec::new(); graph.nodes().len()];
        let mut readers: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for id in graph.ids().filter(|id| body.kind(*id) != Kind::Dead) {
            for arg in graph.args(id) {
                users[arg.idx()].push(id);
            }
            for read in &body.reads[id.idx()] {
                readers.entry(read.root).or_default().push(id);
            }
        }
        Uses { users, readers }
    }
}

/// The planes of a body that become kernels, none sharing a node with another.
pub(crate) fn find(body: &Body<'_>) -> Vec<Plane> {
    let mut found: Vec<Plane> = Vec::new();
    let mut of: BTreeMap<NodeId, usize> = BTreeMap::new();
    each(body, |plane, uses| {
        let members = plane.members(body);
        let is_new = members.keys().all(|id| !of.contains_key(id) && !body.apart.contains(id));
        let given: Vec<BTreeMap<NodeId, Names>> = found.iter().map(|plane| plane.members(body)).collect();
        if is_new && !comes_back(body, uses, &members, &given, &of) {
            of.extend(members.keys().map(|id| (*id, found.len())));
            found.push(plane);
        }
    });
    found
}

/// Every value that lies in a plane: not to be stored, and made again from what makes the plane.
pub(crate) fn values(body: &Body<'_>) -> BTreeSet<NodeId> {
    let mut all = BTreeSet::new();
    each(body, |plane, _| all.extend(plane.whole.keys().copied()));
    all
}

/// Traces from every product that is in no plane yet.
fn each(body: &Body<'_>, mut take: impl FnMut(Plane, &Uses)) {
    let uses = Uses::of(body);
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    for seed in body.graph.ids().filter(|id| body.kind(*id) == Kind::Contract) {
        if seen.contains(&seed) {
            continue;
        }
        let ways = [false, true].into_iter().filter_map(|swapped| trace(body, &uses, seed, swapped));
        if let Some(plane) = ways.into_iter().find(|plane| plane.pays(body)) {
            seen.extend(&plane.ins);
            take(plane, &uses);
        }
    }
}

/// Whether something that the group makes is worked on outside of it and comes back. Groups that exist already count as one
/// node each.
fn comes_back(
    body: &Body<'_>,
    uses: &Uses,
    members: &BTreeMap<NodeId, Names>,
    given: &[BTreeMap<NodeId, Names>],
    of: &BTreeMap<NodeId, usize>,
) -> bool {
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    let mut stack: Vec<NodeId> = Vec::new();
    let read = |id: NodeId| uses.readers.get(&id).into_iter().flatten().copied();
    stack.extend(members.keys().flat_map(|id| read(*id)).filter(|id| !members.contains_key(id)));
    while let Some(id) = stack.pop() {
        if members.contains_key(&id) {
            return true;
        }
        if !seen.insert(id) {
            continue;
        }
        stack.extend(read(id));
        if let Op::Loop(_) = body.graph.op(id) {
            stack.extend(body.gets(id).flat_map(read));
        }
        if let Some(group) = of.get(&id) {
            stack.extend(given[*group].keys().filter(|id| !seen.contains(id)));
        }
    }
    false
}
