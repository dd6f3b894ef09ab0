//! Fusion: which nodes of a graph become one kernel.
//!
//! In: a [`Body`]. Out: groups in an order of dependence; a node is in memory only if somebody outside its group needs it.
//! Every node begins as a group of its own; then the two groups that save the most memory traffic by being one are merged, as
//! long as that is legal. Legal is: one iteration space `full`, or `full` without one set of axes `inner` along which rows
//! are reduced; sums over other axes leave the group (exits); at most one contraction, and then maps over its result only;
//! and no path through a third group. Planes (`plane.rs`) are groups from the start, to which nothing is added.

mod body;
mod join;
mod merge;
mod traffic;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Name, NodeId, Op, ScatterKind};
use smallvec::SmallVec;

use crate::plane;
use crate::schedule::layout::{Layout, Ranks};

pub(crate) use body::{Body, Kind};
pub(crate) use join::touches;
pub(crate) use traffic::Traffic;

/// The dimension that each axis of a value is.
pub(crate) type Names = SmallVec<[(Name, usize); 4]>;

/// What makes a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Maps, rows and exits.
    Nest,
    /// A contraction and maps over its result.
    Contract(NodeId),
    /// A plane: its first dimensions are so many of the batch, so many of rows, and the column.
    Plane { batch: usize, rows: usize },
    /// One node with a kernel of its own kind, or a loop. With a scatter that adds, there may be the sum of it and a base.
    Alone(NodeId),
}

/// Nodes that become one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) shape: Shape,
    /// The sizes of the iteration space, in no order that matters, and a name for each.
    pub(crate) dims: Vec<(Name, u64)>,
    /// Each node with the dimension that each axis of its domain is.
    pub(crate) members: BTreeMap<NodeId, Names>,
    /// The dimensions along which rows are reduced.
    pub(crate) inner: Option<BTreeSet<usize>>,
    /// Reductions over other dimensions, which nobody in the group reads.
    pub(crate) exits: BTreeSet<NodeId>,
}

/// Rows shorter than this in number are not made one kernel with what they are long in: nothing would be left to run side by side.
const LEAST_ROWS: u64 = 16;
/// Unless the whole is this small, in elements.
const SMALL: u64 = 8192;
/// A row this long no longer stays in the cache between its passes, in elements: half of a 1 MiB second-level cache.
const LONGEST_ROW: u64 = 1 << 17;

/// Whether this many rows of this length may be one kernel that goes over each row more than once.
fn makes_rows(rows: u64, len: u64) -> bool {
    (rows >= LEAST_ROWS && len <= LONGEST_ROW) || rows.saturating_mul(len) <= SMALL
}

impl Group {
    fn single(body: &Body<'_>, ranks: &Ranks, id: NodeId) -> Group {
        let domain = body.domain(id);
        let order = ranks.order(&domain);
        let dims: Vec<(Name, u64)> = order.iter().map(|axis| (axis.name.clone(), axis.size)).collect();
        let names: Names = dims.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let shape = match body.kind(id) {
            Kind::Contract => Shape::Contract(id),
            Kind::Alone => Shape::Alone(id),
            _ => Shape::Nest,
        };
        let mut group =
            Group { shape, dims, members: BTreeMap::from([(id, names)]), inner: None, exits: BTreeSet::new() };
        if matches!(body.kind(id), Kind::Reduce | Kind::Product) {
            let reduced = group.reduced(body, id);
            let innermost = group.innermost(body, ranks);
            let is_row = innermost.is_none_or(|dim| reduced.contains(&dim)) && group.takes_rows(&reduced);
            if is_row {
                group.inner = Some(reduced);
            } else {
                group.exits.insert(id);
            }
        }
        group
    }

    fn plane(body: &Body<'_>, plane: &plane::Plane) -> Group {
        Group {
            shape: Shape::Plane { batch: plane.batch, rows: plane.rows },
            dims: plane.dims.clone(),
            members: plane.members(body),
            inner: None,
            exits: BTreeSet::new(),
        }
    }

    /// Scatters that add to nothing and are then added, by the only one who reads them, to a value that nobody else reads: such as the
    /// gradient of an embedding that is the model's head too. They add to that value at once, in its place.
    fn scatters(body: &Body<'_>, ranks: &Ranks) -> BTreeMap<NodeId, Group> {
        let mut readers: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        for id in body.graph.ids() {
            for read in &body.reads[id.idx()] {
                readers.entry(read.root).or_default().push(id);
            }
        }
        let is_own = |value: NodeId, sum: NodeId| {
            readers.get(&value).is_some_and(|all| *all == [sum]) && !body.kept.contains(&value)
        };
        let takes = |sum: NodeId, scatter: NodeId, base: NodeId| {
            let adds = matches!(body.graph.op(scatter), Op::Scatter { kind: ScatterKind::Add, .. });
            let like = body.graph.ty(scatter) == body.graph.ty(base) && body.graph.ty(base) == body.graph.ty(sum);
            let is_free = |id: NodeId| !body.apart.contains(&id);
            adds && like
                && scatter != base
                && (body.is_computed(base) || matches!(body.graph.op(base), Op::Get(_)))
                && is_own(scatter, sum)
                && is_own(base, sum)
                && is_free(scatter)
                && is_free(sum)
        };
        let sums = body.graph.ids().filter(|id| body.kind(*id) == Kind::Map && *body.graph.op(*id) == Op::Add);
        let mut groups = BTreeMap::new();
        for sum in sums {
            let [x, y] = *body.graph.args(sum) else { continue };
            let Some((scatter, _)) = [(x, y), (y, x)].into_iter().find(|(x, y)| takes(sum, *x, *y)) else { continue };
            let mut group = Group::single(body, ranks, scatter);
            let dim = |name: &Name| group.dims.iter().position(|(other, _)| other == name);
            let names = body.graph.ty(sum).axes.names().filter_map(|name| Some((name.clone(), dim(name)?))).collect();
            group.members.insert(sum, names);
            groups.insert(scatter, group);
        }
        groups
    }

    /// The dimensions that a reduction of the group sums over.
    pub(crate) fn reduced(&self, body: &Body<'_>, id: NodeId) -> BTreeSet<usize> {
        let axes = &body.graph.ty(id).axes;
        self.members[&id].iter().filter(|(name, _)| !axes.contains(name)).map(|(_, dim)| *dim).collect()
    }

    pub(crate) fn count(&self, dims: impl IntoIterator<Item = usize>) -> u64 {
        dims.into_iter().map(|dim| self.dims[dim].1).product()
    }

    /// Whether the group may be rows along `inner`.
    fn takes_rows(&self, inner: &BTreeSet<usize>) -> bool {
        let rows = self.count((0..self.dims.len()).filter(|dim| !inner.contains(dim)));
        let len = self.count(inner.iter().copied());
        makes_rows(rows, len)
    }

    /// The dimensions as most of the memory that the group touches has them, outermost first, those of size 1 last.
    pub(crate) fn order(
        &self,
        body: &Body<'_>,
        ranks: &Ranks,
        layout: &dyn Fn(NodeId) -> Option<Layout>,
    ) -> Vec<usize> {
        let is_long = |dim: &usize| self.dims[*dim].1 != 1;
        let n_long = (0..self.dims.len()).filter(is_long).count();
        let mut votes: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
        for (id, dims) in touches(body, self) {
            let long: Vec<&(Name, usize)> = dims.iter().filter(|(_, dim)| is_long(dim)).collect();
            let Some(layout) = (long.len() == n_long).then(|| layout(id)).flatten() else { continue };
            let mut strided: Vec<(i64, usize)> =
                long.iter().map(|(name, dim)| (layout.stride(name).unwrap_or(0), *dim)).collect();
            strided.sort_by_key(|(stride, dim)| (Reverse(*stride), *dim));
            let order = strided.into_iter().map(|(_, dim)| dim).collect();
            *votes.entry(order).or_default() += body.graph.ty(id).size_bytes();
        }
        let (mut order, ones): (Vec<usize>, Vec<usize>) = ranks.sort(&self.dims).into_iter().partition(is_long);
        let most = votes.values().copied().max();
        if let Some((voted, _)) = votes.into_iter().find(|(_, bytes)| Some(*bytes) == most) {
            order = voted;
        }
        order.extend(ones);
        order
    }

    /// The dimension along which the memory that the group touches is likely to lie.
    fn innermost(&self, body: &Body<'_>, ranks: &Ranks) -> Option<usize> {
        let order = self.order(body, ranks, &|id| Some(ranks.layout(&body.graph.ty(id).axes)));
        order.into_iter().rfind(|dim| self.dims[*dim].1 != 1)
    }

    /// The dimension of an axis of a member.
    pub(crate) fn dim(&self, id: NodeId, name: &Name) -> Option<usize> {
        self.members.get(&id)?.iter().find(|(axis, _)| axis == name).map(|(_, dim)| *dim)
    }
}

/// A partition of the computed nodes of a body, in an order in which they can run.
pub(crate) struct Fusion {
    pub(crate) groups: Vec<Group>,
    /// The group of each computed node.
    pub(crate) of: BTreeMap<NodeId, usize>,
    /// For each node, whether some group but its own reads it, or an output names it.
    pub(crate) stored: BTreeSet<NodeId>,
}

impl Fusion {
    pub(crate) fn new(body: &Body<'_>, ranks: &Ranks, fuse: bool) -> Fusion {
        let mut groups: Vec<Group> = Vec::new();
        if fuse {
            groups.extend(plane::find(body).iter().map(|plane| Group::plane(body, plane)));
        }
        let mut taken: BTreeSet<NodeId> = groups.iter().flat_map(|group| group.members.keys().copied()).collect();
        let mut scatters = if fuse { Group::scatters(body, ranks) } else { BTreeMap::new() };
        taken.extend(scatters.values().flat_map(|group| group.members.keys().copied()));
        for id in body.graph.ids() {
            match scatters.remove(&id) {
                Some(group) => groups.push(group),
                None if body.is_computed(id) && !taken.contains(&id) => groups.push(Group::single(body, ranks, id)),
                None => {}
            }
        }
        if fuse {
            groups = merge::merge(body, ranks, groups);
        }
        let mut of = BTreeMap::new();
        for (at, group) in groups.iter().enumerate() {
            of.extend(group.members.keys().map(|id| (*id, at)));
        }
        let mut stored: BTreeSet<NodeId> = body.kept.iter().copied().filter(|id| body.is_computed(*id)).collect();
        for (id, at) in &of {
            for read in &body.reads[id.idx()] {
                if of.get(&read.root).is_some_and(|from| from != at) {
                    stored.insert(read.root);
                }
            }
        }
        Fusion { groups, of, stored }
    }

    /// The members of a group that must be in memory.
    pub(crate) fn stores(&self, group: &Group) -> Vec<NodeId> {
        group.members.keys().copied().filter(|id| self.stored.contains(id)).collect()
    }
}
