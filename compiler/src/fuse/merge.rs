//! Merging groups: which pairs may be one, and which of them first.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Name, NodeId, Op, Phase};
use rustc_hash::FxHashMap;

use super::{Body, Group, Kind, Names, SMALL, Shape, bytes_moved, makes_rows};
use crate::schedule::layout::Ranks;

/// A kernel with more members or buffers than this gains nothing more: its strips leave the first-level cache.
const MOST_MEMBERS: usize = 96;
const MOST_BUFFERS: usize = 28;

/// A merge that saves less than this part of what the smaller group moves is not worth the longer kernel: two large updates that
/// share a few scalars.
const LEAST_SHARE: u64 = 64;

/// Where a group meets a value: the dimension of each of the value's axes.
pub(crate) type Touch = BTreeMap<NodeId, Names>;

/// Merging goes from what can only be merged in one way to what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Maps that only exits read, with those: nothing else may keep them.
    Feeders,
    /// Everything without exits, so that maps over a contraction come into its epilogue whole.
    Maps,
    All,
}

struct State<'a, 'g> {
    body: &'a Body<'g>,
    ranks: &'a Ranks,
    /// `None` once merged into another.
    groups: Vec<Option<Group>>,
    /// Of each group that is left: what it touches, and the bytes that it moves.
    touches: Vec<Touch>,
    costs: Vec<u64>,
    of: BTreeMap<NodeId, usize>,
    /// Of each value in memory: the nodes that read it.
    readers: BTreeMap<NodeId, Vec<NodeId>>,
    /// The groups that read what each makes; those that were merged away stand for what they were merged into.
    next: Vec<BTreeSet<usize>>,
    into: Vec<usize>,
    /// Maps whose every reader is an exit, or such a map.
    feeders: BTreeSet<NodeId>,
    /// The values that each group makes or reads, in order.
    uses: Vec<Vec<NodeId>>,
    /// The groups that touch a value that this one touches too: those that it may be merged with.
    near: Vec<BTreeSet<usize>>,
    /// What merging two groups gives and saves, as long as neither changes.
    known: FxHashMap<(usize, usize), Option<(u64, Group)>>,
    /// The pairs that are worth it in this round, as long as neither changes, and the groups that changed since they were found.
    found: Vec<Pair>,
    changed: BTreeSet<usize>,
}

/// Two groups that may be one. Pairs come in the order of their fields: what saves most, what is nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    saved: Reverse<u64>,
    distance: u32,
    a: usize,
    b: usize,
}

/// Merges until nothing more is gained; the groups come in an order in which they can run.
pub(super) fn merge(body: &Body<'_>, ranks: &Ranks, groups: Vec<Group>) -> Vec<Group> {
    let mut of = BTreeMap::new();
    let mut readers: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for (at, group) in groups.iter().enumerate() {
        for id in group.members.keys() {
            of.insert(*id, at);
            for read in &body.reads[id.idx()] {
                readers.entry(read.root).or_default().push(*id);
            }
        }
    }
    let mut next: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); groups.len()];
    for (value, all) in &readers {
        let maker = match body.graph.op(*value) {
            Op::Get(_) => body.graph.args(*value)[0],
            _ => *value,
        };
        let Some(from) = of.get(&maker) else { continue };
        next[*from].extend(all.iter().map(|reader| of[reader]).filter(|to| to != from));
    }
    let exits: BTreeSet<NodeId> = groups.iter().flat_map(|group| group.exits.iter().copied()).collect();
    let mut feeders = BTreeSet::new();
    for id in of.keys().rev().filter(|id| body.kind(**id) == Kind::Map && !body.kept.contains(id)) {
        let all = readers.get(id).map_or(&[][..], Vec::as_slice);
        if !all.is_empty() && all.iter().all(|reader| exits.contains(reader) || feeders.contains(reader)) {
            feeders.insert(*id);
        }
    }
    let mut state = State {
        body,
        ranks,
        touches: groups.iter().map(|group| touches(body, group)).collect(),
        costs: Vec::new(),
        into: (0..groups.len()).collect(),
        groups: groups.into_iter().map(Some).collect(),
        of,
        readers,
        next,
        feeders,
        uses: Vec::new(),
        near: Vec::new(),
        known: FxHashMap::default(),
        found: Vec::new(),
        changed: BTreeSet::new(),
    };
    state.uses = state.groups.iter().flatten().map(|group| uses(body, group)).collect();
    state.near = state.neighbours();
    state.costs = state.groups.iter().flatten().map(|group| state.cost(&group.members)).collect();
    for round in [Round::Feeders, Round::Maps, Round::All] {
        state.found.clear();
        state.changed = (0..state.groups.len()).collect();
        // Each pass merges disjoint pairs only, so that the savings it sorted by stay true.
        while state.pass(round) {}
    }
    state.in_order()
}

impl State<'_, '_> {
    fn is_stored(&self, members: &BTreeMap<NodeId, Names>, id: NodeId) -> bool {
        self.body.kept.contains(&id)
            || self.readers.get(&id).is_some_and(|all| all.iter().any(|reader| !members.contains_key(reader)))
    }

    fn cost(&self, members: &BTreeMap<NodeId, Names>) -> u64 {
        bytes_moved(self.body, members, &|id| self.is_stored(members, id))
    }

    /// Whether two groups may be merged in this round.
    fn is_due(&self, round: Round, a: &Group, b: &Group) -> bool {
        let feeds =
            |group: &Group| group.members.keys().all(|id| self.feeders.contains(id) || group.exits.contains(id));
        match round {
            Round::Feeders => feeds(a) && feeds(b) && !(a.exits.is_empty() && b.exits.is_empty()),
            Round::Maps => a.exits.is_empty() && b.exits.is_empty() && !(feeds(a) || feeds(b)),
            Round::All => true,
        }
    }

    fn neighbours(&self) -> Vec<BTreeSet<usize>> {
        // Lists, which become sets at the end: a scalar that all updates read makes each of them a neighbour of all, again and again.
        let mut near: Vec<Vec<usize>> = vec![Vec::new(); self.groups.len()];
        for (value, readers) in &self.readers {
            let mut around: Vec<usize> = readers.iter().map(|id| self.of[id]).collect();
            around.extend(self.of.get(value));
            around.sort_unstable();
            around.dedup();
            for at in &around {
                near[*at].extend(around.iter().filter(|other| *other != at));
            }
        }
        near.into_iter().map(BTreeSet::from_iter).collect()
    }

    /// Adds the pairs of a group that are worth it in this round.
    fn find(&mut self, round: Round, at: usize) {
        let Some(group) = &self.groups[at] else { return };
        for other in &self.near[at] {
            // Of two that changed, the first finds the pair.
            let Some(with) = self.groups[*other].as_ref().filter(|_| *other > at || !self.changed.contains(other))
            else {
                continue;
            };
            if !self.is_due(round, group, with) {
                continue;
            }
            let (a, b) = (at.min(*other), at.max(*other));
            let (first, second) = if at < *other { (group, with) } else { (with, group) };
            if !self.known.contains_key(&(a, b)) {
                let joined = self.joined(a, b, first, second);
                self.known.insert((a, b), joined);
            }
            let Some(Some((saved, _))) = self.known.get(&(a, b)) else { continue };
            let ends = first.members.keys().next().zip(second.members.keys().next());
            let distance = ends.map_or(0, |(x, y)| x.0.abs_diff(y.0));
            self.found.push(Pair { saved: Reverse(*saved), distance, a, b });
        }
    }

    /// What two groups save as one, and that one, if it is worth it.
    fn joined(&self, a: usize, b: usize, first: &Group, second: &Group) -> Option<(u64, Group)> {
        let (cost_a, cost_b) = (self.costs[a], self.costs[b]);
        let is_worth = |saved: u64| saved > 0 && saved.saturating_mul(LEAST_SHARE) >= cost_a.min(cost_b);
        // Most pairs are updates of two weights that share a few scalars: not worth a closer look.
        if !is_worth(self.most_saved(a, b)) {
            return None;
        }
        let joined = join(self.body, self.ranks, first, second, &self.touches[a], &self.touches[b])?;
        let saved = (cost_a + cost_b).checked_sub(self.cost(&joined.members))?;
        is_worth(saved).then_some((saved, joined))
    }

    /// What two groups could save at the very most: a write and a read of each value that both use.
    fn most_saved(&self, a: usize, b: usize) -> u64 {
        let (mut one, mut other) = (self.uses[a].iter().peekable(), self.uses[b].iter().peekable());
        let mut bytes = 0;
        while let (Some(x), Some(y)) = (one.peek(), other.peek()) {
            match x.cmp(y) {
                Ordering::Less => drop(one.next()),
                Ordering::Greater => drop(other.next()),
                Ordering::Equal => {
                    bytes += 2 * self.body.graph.ty(**x).size_bytes();
                    one.next();
                    other.next();
                }
            }
        }
        bytes
    }

    fn pass(&mut self, round: Round) -> bool {
        let changed = self.changed.clone();
        for at in changed {
            self.find(round, at);
        }
        let mut found = std::mem::take(&mut self.found);
        found.sort();
        let mut touched: BTreeSet<usize> = BTreeSet::new();
        for Pair { a, b, .. } in &found {
            let (a, b) = (*a, *b);
            if touched.contains(&a) || touched.contains(&b) || self.has_detour(a, b) || self.has_detour(b, a) {
                continue;
            }
            let Some(Some((_, joined))) = self.known.remove(&(a, b)) else { continue };
            touched.extend([a, b]);
            self.replace(a, b, joined);
        }
        self.known.retain(|(a, b), _| !touched.contains(a) && !touched.contains(b));
        found.retain(|pair| !touched.contains(&pair.a) && !touched.contains(&pair.b));
        self.found = found;
        self.changed = touched;
        !self.changed.is_empty()
    }

    /// Makes `joined` of the groups `a` and `b`, in the place of `a`.
    fn replace(&mut self, a: usize, b: usize, joined: Group) {
        for id in joined.members.keys() {
            self.of.insert(*id, a);
        }
        self.costs[a] = self.cost(&joined.members);
        self.touches[a] = touches(self.body, &joined);
        self.uses[a] = uses(self.body, &joined);
        self.groups[a] = Some(joined);
        self.groups[b] = None;
        self.touches[b].clear();
        let after = std::mem::take(&mut self.next[b]);
        self.next[a].extend(after);
        self.into[b] = a;
        for other in std::mem::take(&mut self.near[b]) {
            self.near[other].remove(&b);
            if other != a {
                self.near[other].insert(a);
                self.near[a].insert(other);
            }
        }
    }

    fn standing(&self, mut at: usize) -> usize {
        while self.into[at] != at {
            at = self.into[at];
        }
        at
    }

    /// The groups that read what a group makes.
    fn after(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        self.next[at].iter().map(|to| self.standing(*to)).filter(move |to| *to != at)
    }

    /// A path from one group to another through a third.
    fn has_detour(&self, from: usize, to: usize) -> bool {
        let mut seen = vec![false; self.groups.len()];
        let mut stack: Vec<usize> = Vec::new();
        for at in self.after(from).filter(|at| *at != to) {
            if !std::mem::replace(&mut seen[at], true) {
                stack.push(at);
            }
        }
        while let Some(at) = stack.pop() {
            for next in self.after(at) {
                if next == to {
                    return true;
                }
                if !std::mem::replace(&mut seen[next], true) {
                    stack.push(next);
                }
            }
        }
        false
    }

    fn in_order(self) -> Vec<Group> {
        let mut waits: BTreeMap<usize, usize> = BTreeMap::new();
        let alive: Vec<usize> = (0..self.groups.len()).filter(|at| self.groups[*at].is_some()).collect();
        let next: BTreeMap<usize, BTreeSet<usize>> = alive.iter().map(|at| (*at, self.after(*at).collect())).collect();
        for to in next.values().flatten() {
            *waits.entry(*to).or_default() += 1;
        }
        let mut ready: BTreeSet<usize> = alive.iter().copied().filter(|at| !waits.contains_key(at)).collect();
        let mut order = Vec::with_capacity(alive.len());
        while let Some(at) = ready.pop_first() {
            order.push(at);
            for to in &next[&at] {
                if let Some(left) = waits.get_mut(to) {
                    *left -= 1;
                    if *left == 0 {
                        ready.insert(*to);
                    }
                }
            }
        }
        let mut groups = self.groups;
        order.into_iter().filter_map(|at| groups[at].take()).collect()
    }
}

/// Every value that a group makes, or reads at its own positions.
pub(crate) fn touches(body: &Body<'_>, group: &Group) -> Touch {
    let mut touch = Touch::new();
    for (id, names) in &group.members {
        for read in &body.reads[id.idx()] {
            let Some(link) = &read.link else { continue };
            let place = |name: &Name| names.iter().find(|(axis, _)| axis == name).map(|(_, dim)| *dim);
            let dims: Option<Names> = link.iter().map(|(there, here)| Some((there.clone(), place(here)?))).collect();
            if let Some(dims) = dims {
                touch.entry(read.root).or_insert(dims);
            }
        }
    }
    for (id, names) in &group.members {
        let axes = &body.graph.ty(*id).axes;
        touch.insert(*id, names.iter().filter(|(name, _)| axes.contains(name)).cloned().collect());
    }
    touch
}

fn uses(body: &Body<'_>, group: &Group) -> Vec<NodeId> {
    let read = group.members.keys().flat_map(|id| body.reads[id.idx()].iter().map(|read| read.root));
    let mut all: Vec<NodeId> = group.members.keys().copied().chain(read).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The two groups as one, if that is legal but for paths through a third.
fn join(body: &Body<'_>, ranks: &Ranks, a: &Group, b: &Group, touch_a: &Touch, touch_b: &Touch) -> Option<Group> {
    let alone = |group: &Group| matches!(group.shape, Shape::Alone(_) | Shape::Plane { .. });
    let contract = |group: &Group| matches!(group.shape, Shape::Contract(_));
    if alone(a) || alone(b) || (contract(a) && contract(b)) || a.members.len() + b.members.len() > MOST_MEMBERS {
        return None;
    }
    if !body.apart.is_empty() && a.members.keys().chain(b.members.keys()).any(|id| body.apart.contains(id)) {
        return None;
    }
    // What the end of a step would compute beside its beginning stays in memory all the time between.
    let is_update = |group: &Group| group.members.keys().any(|id| body.graph.node(*id).phase == Phase::Update);
    let feeds = |from: &Group, to: &Group| {
        let mut reads = to.members.keys().flat_map(|id| &body.reads[id.idx()]);
        reads.any(|read| from.members.contains_key(&read.root))
    };
    if is_update(a) != is_update(b) && !feeds(a, b) && !feeds(b, a) {
        return None;
    }
    // Reductions of nothing have a kernel of their own kind.
    if a.dims.iter().chain(&b.dims).any(|(_, size)| *size == 0) {
        return None;
    }
    // Two sizes of iteration space: one must be the rows of the other.
    let (count_a, count_b) = (a.count(0..a.dims.len()), b.count(0..b.dims.len()));
    let (rows, whole) = (count_a.min(count_b), count_a.max(count_b));
    if rows != whole && (whole % rows != 0 || !makes_rows(rows, whole / rows)) {
        return None;
    }
    let map = match_dims(a, b, touch_a, touch_b)?;
    let mut joined = a.clone();
    let mut to: Vec<usize> = Vec::with_capacity(b.dims.len());
    for (dim, at) in map.iter().enumerate() {
        to.push(match at {
            Some(at) => *at,
            None => {
                joined.dims.push(b.dims[dim].clone());
                joined.dims.len() - 1
            }
        });
    }
    for (id, names) in &b.members {
        joined.members.insert(*id, names.iter().map(|(name, dim)| (name.clone(), to[*dim])).collect());
    }
    joined.exits.extend(&b.exits);
    if contract(b) {
        joined.shape = b.shape;
    }
    // Dimensions of size 1 are nowhere.
    let long = |dims: &mut dyn Iterator<Item = usize>| -> BTreeSet<usize> {
        dims.filter(|dim| joined.dims[*dim].1 != 1).collect()
    };
    let full_a = long(&mut (0..a.dims.len()));
    let full_b = long(&mut to.iter().copied());
    let full = long(&mut (0..joined.dims.len()));
    let inner_b: Option<BTreeSet<usize>> = b.inner.as_ref().map(|inner| inner.iter().map(|dim| to[*dim]).collect());
    let inner = if full_a == full_b {
        match (&a.inner, inner_b) {
            (Some(x), Some(y)) if *x != y => return None,
            (Some(x), _) => Some(x.clone()),
            (None, y) => y,
        }
    } else {
        let (wide, wide_inner, narrow, narrow_dims) = if full_a == full {
            (a, a.inner.clone(), b, &full_b)
        } else if full_b == full {
            (b, inner_b, a, &full_a)
        } else {
            return None;
        };
        let rest: BTreeSet<usize> = full.difference(narrow_dims).copied().collect();
        let fits = wide.shape == Shape::Nest
            && narrow.shape == Shape::Nest
            && narrow.inner.is_none()
            && narrow.exits.is_empty();
        match wide_inner {
            _ if !fits => return None,
            Some(inner) if long(&mut inner.iter().copied()) != rest => return None,
            Some(inner) => Some(inner),
            None => Some(rest),
        }
    };
    joined.inner = inner;
    if let Some(inner) = joined.inner.clone() {
        if !joined.takes_rows(&inner) || goes_across(body, ranks, &joined, &inner) {
            return None;
        }
        // A sum over just the row is no exit any more.
        let rows: Vec<NodeId> = joined.exits.iter().copied().filter(|id| joined.reduced(body, *id) == inner).collect();
        for id in rows {
            joined.exits.remove(&id);
        }
    }
    (is_whole(body, &joined) && buffers(body, &joined) <= MOST_BUFFERS).then_some(joined)
}

/// Whether rows along `inner` cross a large matrix that is multiplied by a vector: it is read from memory once, as it lies, or each of its numbers
/// costs a cache line.
fn goes_across(body: &Body<'_>, ranks: &Ranks, group: &Group, inner: &BTreeSet<usize>) -> bool {
    group.members.keys().any(|id| body.kind(*id) == Kind::Product)
        && group.count(0..group.dims.len()) > SMALL
        && group.innermost(body, ranks).is_some_and(|dim| !inner.contains(&dim))
}

/// For each dimension of `b` the dimension of `a` that it is, by the values that both touch, then by name.
fn match_dims(a: &Group, b: &Group, touch_a: &Touch, touch_b: &Touch) -> Option<Vec<Option<usize>>> {
    let mut map: Vec<Option<usize>> = vec![None; b.dims.len()];
    // What one makes and the other reads decides; values that both read only suggest.
    let made = |id: &NodeId| a.members.contains_key(id) || b.members.contains_key(id);
    for strict in [true, false] {
        for (id, dims_b) in touch_b.iter().filter(|(id, _)| made(id) == strict) {
            let Some(dims_a) = touch_a.get(id) else { continue };
            for (name, dim_b) in dims_b {
                let Some((_, dim_a)) = dims_a.iter().find(|(axis, _)| axis == name) else { continue };
                match map[*dim_b] {
                    Some(present) if present == *dim_a => {}
                    Some(_) if strict => return None,
                    Some(_) => {}
                    None if map.contains(&Some(*dim_a)) => {
                        if strict {
                            return None;
                        }
                    }
                    None => map[*dim_b] = Some(*dim_a),
                }
            }
        }
    }
    for dim in 0..b.dims.len() {
        if map[dim].is_none() {
            let same = (0..a.dims.len()).find(|at| a.dims[*at] == b.dims[dim] && !map.contains(&Some(*at)));
            map[dim] = same;
        }
    }
    Some(map)
}

/// The rules that hold inside of a group.
fn is_whole(body: &Body<'_>, group: &Group) -> bool {
    let is_long = |dim: &usize| group.dims[*dim].1 != 1;
    let full = (0..group.dims.len()).filter(is_long).count();
    let inner: Option<BTreeSet<usize>> =
        group.inner.as_ref().map(|inner| inner.iter().copied().filter(is_long).collect());
    for (id, names) in &group.members {
        let reduces = !group.exits.contains(id) && names.len() > body.graph.ty(*id).axes.len();
        let own: Vec<usize> = names.iter().map(|(_, dim)| *dim).filter(is_long).collect();
        let is_full = own.len() == full;
        let is_row = inner
            .as_ref()
            .is_some_and(|inner| own.len() == full - inner.len() && own.iter().all(|dim| !inner.contains(dim)));
        if !is_full && (!is_row || group.exits.contains(id)) {
            return false;
        }
        // A reduction that stays runs along the rows.
        if reduces && group.inner.as_ref() != Some(&group.reduced(body, *id)) {
            return false;
        }
        for read in &body.reads[id.idx()] {
            let Some(made) = group.members.get(&read.root) else { continue };
            let Some(link) = &read.link else { return false };
            if group.exits.contains(&read.root) {
                return false;
            }
            let same = link.iter().all(|(there, here)| {
                let there = made.iter().find(|(axis, _)| axis == there).map(|(_, dim)| *dim);
                let here = names.iter().find(|(axis, _)| axis == here).map(|(_, dim)| *dim);
                there.is_some() && there == here
            });
            if !same {
                return false;
            }
        }
    }
    if let Shape::Contract(_) = group.shape {
        return group.inner.is_none() && group.exits.is_empty();
    }
    exits_agree(body, group)
}

/// All exits keep the same rows; along the strip each keeps all or sums all.
fn exits_agree(body: &Body<'_>, group: &Group) -> bool {
    let mut kept: Option<BTreeSet<usize>> = None;
    for id in &group.exits {
        let reduced = group.reduced(body, *id);
        let mut keep: BTreeSet<usize> = (0..group.dims.len()).filter(|dim| !reduced.contains(dim)).collect();
        if let Some(inner) = &group.inner {
            let among = inner.iter().filter(|dim| reduced.contains(dim)).count();
            if among != 0 && among != inner.len() {
                return false;
            }
            // Something must be left to sum beside the row.
            if among == reduced.len() {
                return false;
            }
            keep.retain(|dim| !inner.contains(dim));
        }
        if kept.get_or_insert_with(|| keep.clone()) != &keep {
            return false;
        }
    }
    true
}

fn buffers(body: &Body<'_>, group: &Group) -> usize {
    let mut read: BTreeSet<NodeId> = BTreeSet::new();
    for id in group.members.keys() {
        read.extend(body.reads[id.idx()].iter().map(|read| read.root).filter(|root| !group.members.contains_key(root)));
    }
    read.len() + group.members.keys().filter(|id| body.kept.contains(id)).count()
}
