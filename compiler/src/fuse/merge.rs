//! Merging groups: which pairs may be one, and which of them first.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{NodeId, Op};
use rustc_hash::FxHashSet;

use super::join::{Touch, join, touches};
use super::{Body, Group, Kind, Traffic};
use crate::schedule::layout::Ranks;

/// A merge that saves less than this part of what the smaller group moves is not worth the longer kernel: two large updates that
/// share a few scalars.
const LEAST_SHARE: u64 = 64;

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
    /// Of each group that is left: what it touches, and what it moves.
    touches: Vec<Touch>,
    traffic: Vec<Traffic>,
    /// The group of each node that has one.
    of: Vec<Option<usize>>,
    /// Of each value in memory: the nodes that read it.
    readers: BTreeMap<NodeId, Vec<NodeId>>,
    /// The groups that read what each makes; those that were merged away stand for what they were merged into.
    next: Vec<BTreeSet<usize>>,
    into: Vec<usize>,
    /// Maps whose every reader is an exit, or such a map.
    feeders: BTreeSet<NodeId>,
    /// The groups that touch a value that this one touches too: those that it may be merged with.
    near: Vec<BTreeSet<usize>>,
    /// Pairs that cannot be one, as long as neither changes.
    refused: FxHashSet<(usize, usize)>,
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
    let mut of = vec![None; body.graph.nodes().len()];
    let mut readers: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for (at, group) in groups.iter().enumerate() {
        for id in group.members.keys() {
            of[id.idx()] = Some(at);
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
        let Some(from) = of[maker.idx()] else { continue };
        next[from].extend(all.iter().filter_map(|reader| of[reader.idx()]).filter(|to| *to != from));
    }
    let exits: BTreeSet<NodeId> = groups.iter().flat_map(|group| group.exits.iter().copied()).collect();
    let mut feeders = BTreeSet::new();
    // Backwards: a reader comes after what it reads.
    for (id, all) in readers.iter().rev() {
        let is_map = of[id.idx()].is_some() && body.kind(*id) == Kind::Map && !body.kept.contains(id);
        if is_map && all.iter().all(|reader| exits.contains(reader) || feeders.contains(reader)) {
            feeders.insert(*id);
        }
    }
    let mut state = State {
        body,
        ranks,
        touches: groups.iter().map(|group| touches(body, group)).collect(),
        traffic: Vec::new(),
        into: (0..groups.len()).collect(),
        groups: groups.into_iter().map(Some).collect(),
        of,
        readers,
        next,
        feeders,
        near: Vec::new(),
        refused: FxHashSet::default(),
        found: Vec::new(),
        changed: BTreeSet::new(),
    };
    state.near = state.neighbours();
    state.traffic = state.groups.iter().flatten().map(|group| state.moved(group)).collect();
    for round in [Round::Feeders, Round::Maps, Round::All] {
        state.found.clear();
        state.changed = (0..state.groups.len()).collect();
        // Each pass merges disjoint pairs only, so that the savings it sorted by stay true.
        while state.pass(round) {}
    }
    state.in_order()
}

impl State<'_, '_> {
    /// Whether a value is in memory though those in `is_member` read it where they make it.
    fn is_stored(&self, id: NodeId, is_member: impl Fn(&NodeId) -> bool) -> bool {
        self.body.kept.contains(&id) || self.readers.get(&id).is_some_and(|all| !all.iter().all(is_member))
    }

    fn moved(&self, group: &Group) -> Traffic {
        let is_member = |id: &NodeId| group.members.contains_key(id);
        Traffic::new(self.body, &group.members, |id| self.is_stored(id, is_member))
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
            let mut around: Vec<usize> = readers.iter().chain([value]).filter_map(|id| self.of[id.idx()]).collect();
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
            let saved = self.saved(a, b);
            let least = self.traffic[a].bytes.min(self.traffic[b].bytes);
            if saved == 0 || saved.saturating_mul(LEAST_SHARE) < least || self.refused.contains(&(a, b)) {
                continue;
            }
            let ends = group.members.keys().next().zip(with.members.keys().next());
            let distance = ends.map_or(0, |(x, y)| x.0.abs_diff(y.0));
            self.found.push(Pair { saved: Reverse(saved), distance, a, b });
        }
    }

    /// The bytes that two groups need not move as one: what both read is read once, what one makes for the other is not read, and is
    /// not stored either when nobody else needs it.
    fn saved(&self, a: usize, b: usize) -> u64 {
        let (mut one, mut other) = (self.traffic[a].reads.as_slice(), self.traffic[b].reads.as_slice());
        let mut saved = 0;
        while let (Some((x, of_x)), Some((y, of_y))) = (one.first(), other.first()) {
            let order = x.cmp(y);
            if order == Ordering::Equal {
                saved += of_x.min(of_y);
            }
            one = &one[usize::from(order.is_le())..];
            other = &other[usize::from(order.is_ge())..];
        }
        let is_member = |id: &NodeId| self.of[id.idx()].is_some_and(|at| at == a || at == b);
        for (maker, reader) in [(a, b), (b, a)] {
            for (value, bytes) in &self.traffic[reader].reads {
                if self.of[value.idx()] != Some(maker) {
                    continue;
                }
                saved += bytes;
                if !self.is_stored(*value, is_member) {
                    saved += self.traffic[maker].stored(*value);
                }
            }
        }
        saved
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
            let (Some(first), Some(second)) = (&self.groups[a], &self.groups[b]) else { continue };
            match join(self.body, self.ranks, first, second, &self.touches[a], &self.touches[b]) {
                Some(joined) => {
                    touched.extend([a, b]);
                    self.replace(a, b, joined);
                }
                None => drop(self.refused.insert((a, b))),
            }
        }
        self.refused.retain(|(a, b)| !touched.contains(a) && !touched.contains(b));
        found.retain(|pair| !touched.contains(&pair.a) && !touched.contains(&pair.b));
        found.retain(|pair| !self.refused.contains(&(pair.a, pair.b)));
        self.found = found;
        self.changed = touched;
        !self.changed.is_empty()
    }

    /// Makes `joined` of the groups `a` and `b`, in the place of `a`.
    fn replace(&mut self, a: usize, b: usize, joined: Group) {
        for id in joined.members.keys() {
            self.of[id.idx()] = Some(a);
        }
        self.traffic[a] = self.moved(&joined);
        self.touches[a] = touches(self.body, &joined);
        self.groups[a] = Some(joined);
        self.groups[b] = None;
        self.touches[b].clear();
        self.traffic[b] = Traffic::default();
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
