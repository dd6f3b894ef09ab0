//! Two groups as one: whether that is legal, and what it is.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Name, NodeId, Phase};

use super::{Body, Group, Kind, Names, SMALL, Shape, makes_rows};
use crate::schedule::layout::Ranks;

/// A kernel with more members or buffers than this gains nothing more: its strips leave the first-level cache.
const MOST_MEMBERS: usize = 96;
const MOST_BUFFERS: usize = 28;

/// Where a group meets a value: the dimension of each of the value's axes.
pub(crate) type Touch = BTreeMap<NodeId, Names>;

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

/// The two groups as one, if that is legal but for paths through a third.
pub(super) fn join(
    body: &Body<'_>,
    ranks: &Ranks,
    a: &Group,
    b: &Group,
    touch_a: &Touch,
    touch_b: &Touch,
) -> Option<Group> {
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
