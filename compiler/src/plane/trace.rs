//! From one product to all that is computed with it: forward along what uses the plane, and back to what else it is made of.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Axis, Class, DType, Name, NodeId, Op};

use super::{Names, Plane, Uses};
use crate::fuse::{Body, Kind};

struct Trace<'a, 'g> {
    body: &'a Body<'g>,
    uses: &'a Uses,
    plane: Plane,
    /// Values of the plane whose users are still to be looked at.
    queue: Vec<NodeId>,
    /// Values without the column that the plane reads, and values of some rows and the column that are no products.
    rows: Vec<(NodeId, Names)>,
    masks: BTreeMap<NodeId, Names>,
}

/// The plane of a product, with the columns from its second argument, or from its first when `swapped`; `None` when some of
/// it is used in a way that a plane's kernel does not know.
pub(super) fn trace(body: &Body<'_>, uses: &Uses, seed: NodeId, swapped: bool) -> Option<Plane> {
    let graph = body.graph;
    let ty = graph.ty(seed);
    let [a, b] = graph.args(seed) else { return None };
    let axes = |id: &NodeId| &graph.ty(*id).axes;
    let primes = |axis: &Axis| axis.name.as_str().len() - axis.name.as_str().trim_end_matches('\'').len();
    let of_a: Vec<&Axis> = ty.axes.iter().filter(|axis| !axes(b).contains(&axis.name)).collect();
    let of_b: Vec<&Axis> = ty.axes.iter().filter(|axis| !axes(a).contains(&axis.name)).collect();
    // The side of the twin is tried first: `t'` is the column of `t`.
    let primed = |side: &[&Axis]| side.iter().map(|axis| primes(axis)).max();
    let second = (primed(&of_b) >= primed(&of_a)) != swapped;
    let (rows, columns) = if second { (of_a, of_b) } else { (of_b, of_a) };
    let [column] = columns[..] else { return None };
    let mut rows = rows;
    // Masks look along the column's twin: it is innermost, so that blocks of rows lie within it.
    let base = |axis: &Axis| axis.name.as_str().trim_end_matches('\'').to_string();
    rows.sort_by_key(|axis| (base(axis) == base(column), axis.size));
    let batch: Vec<&Axis> = ty.axes.iter().filter(|axis| *axis != column && !rows.contains(axis)).collect();
    if rows.is_empty() || ty.count() == 0 || !matches!(ty.dtype, DType::F32 | DType::BF16 | DType::F16) {
        return None;
    }
    let dims = batch.iter().chain(&rows).chain([&column]).map(|axis| (axis.name.clone(), axis.size)).collect();
    let plane = Plane {
        dims,
        batch: batch.len(),
        rows: rows.len(),
        whole: BTreeMap::new(),
        beside: BTreeMap::new(),
        ins: BTreeSet::new(),
        folds: BTreeSet::new(),
        outs: BTreeMap::new(),
    };
    let names: Names = plane.dims.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
    let mut trace = Trace { body, uses, plane, queue: Vec::new(), rows: Vec::new(), masks: BTreeMap::new() };
    trace.product(seed, names)?;
    while let Some(id) = trace.queue.pop() {
        for user in uses.users[id.idx()].clone() {
            trace.follow(id, user)?;
        }
    }
    trace.finish()
}

/// The names of a value before it was renamed.
fn renamed_back(names: &Names, pairs: &[(Name, Name)]) -> Names {
    let old = |name: &Name| pairs.iter().find(|(_, new)| new == name).map_or(name, |(old, _)| old).clone();
    names.iter().map(|(name, dim)| (old(name), *dim)).collect()
}

fn same(a: &Names, b: &Names) -> bool {
    a.len() == b.len() && a.iter().all(|pair| b.contains(pair))
}

impl Trace<'_, '_> {
    fn dim(names: &Names, name: &Name) -> Option<usize> {
        names.iter().find(|(axis, _)| axis == name).map(|(_, dim)| *dim)
    }

    /// The dimensions of those axes that a node has.
    fn of(&self, id: NodeId, names: &Names) -> Names {
        let axes = &self.body.graph.ty(id).axes;
        names.iter().filter(|(name, _)| axes.contains(name)).cloned().collect()
    }

    fn is_column(&self, dim: usize) -> bool {
        dim == self.plane.column()
    }

    fn is_row(&self, dim: usize) -> bool {
        (self.plane.batch..self.plane.column()).contains(&dim)
    }

    fn has(&self, names: &Names, is: impl Fn(&Self, usize) -> bool) -> bool {
        names.iter().any(|(_, dim)| is(self, *dim))
    }

    /// Takes a value over the whole plane.
    fn enter(&mut self, id: NodeId, names: Names) -> Option<()> {
        if let Some(present) = self.plane.whole.get(&id) {
            return same(present, &names).then_some(());
        }
        let fits = names.len() == self.plane.column() + 1 && names.len() == self.body.graph.ty(id).axes.len();
        if !fits || self.body.kept.contains(&id) {
            return None;
        }
        self.plane.whole.insert(id, names);
        self.queue.push(id);
        Some(())
    }

    /// A product of something along the rows and something along the columns.
    fn product(&mut self, id: NodeId, names: Names) -> Option<()> {
        let graph = self.body.graph;
        let sides: Vec<(bool, bool)> = graph
            .args(id)
            .iter()
            .map(|arg| {
                let own = self.of(*arg, &names);
                (self.has(&own, Self::is_row), self.has(&own, Self::is_column))
            })
            .collect();
        let fits = matches!(sides[..], [(true, false), (false, true)] | [(false, true), (true, false)]);
        let dtype = graph.ty(id).dtype;
        if !fits || !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return None;
        }
        self.plane.ins.insert(id);
        self.enter(id, names)
    }

    /// What a user makes of a value of the plane.
    fn follow(&mut self, id: NodeId, user: NodeId) -> Option<()> {
        let graph = self.body.graph;
        let names = self.plane.whole.get(&id)?.clone();
        match (graph.op(user), self.body.kind(user)) {
            (Op::Rename(pairs), Kind::Free) => {
                let new = |name: &Name| pairs.iter().find(|(old, _)| old == name).map_or(name, |(_, new)| new).clone();
                self.enter(user, names.iter().map(|(name, dim)| (new(name), *dim)).collect())
            }
            (Op::Detach, Kind::Free) => self.enter(user, names),
            (op, Kind::Map) if op.class() == Class::Map => {
                self.enter(user, self.of(user, &names))?;
                for arg in graph.args(user).to_vec() {
                    self.look_back(arg, self.of(arg, &names))?;
                }
                Some(())
            }
            (Op::Sum(summed) | Op::MaxOver(summed), Kind::Reduce) => {
                let along: Vec<usize> = summed.iter().filter_map(|name| Self::dim(&names, name)).collect();
                if along != [self.plane.column()] || !graph.ty(user).dtype.is_float() {
                    return None;
                }
                self.plane.folds.insert(user);
                self.plane.beside.insert(user, names);
                Some(())
            }
            // A sum of products along the rows.
            (Op::Contract(summed), Kind::Product) => {
                let along: Vec<usize> = summed.iter().filter_map(|name| Self::dim(&names, name)).collect();
                let others = graph.args(user).iter().flat_map(|arg| graph.ty(*arg).axes.names());
                let is_inside = others.into_iter().all(|name| Self::dim(&names, name).is_some());
                if along != [self.plane.column()] || !is_inside || !graph.ty(user).dtype.is_float() {
                    return None;
                }
                self.plane.folds.insert(user);
                self.plane.beside.insert(user, names.clone());
                for arg in graph.args(user).to_vec() {
                    self.look_back(arg, self.of(arg, &names))?;
                }
                Some(())
            }
            (Op::Contract(summed), Kind::Contract) => self.leave(id, user, summed, &names),
            _ => None,
        }
    }

    /// A product that sums the plane over its columns or over its rows.
    fn leave(&mut self, id: NodeId, user: NodeId, summed: &[Name], names: &Names) -> Option<()> {
        let graph = self.body.graph;
        let [with] = graph.args(user).iter().filter(|arg| **arg != id).collect::<Vec<_>>()[..] else { return None };
        let along: BTreeSet<usize> = summed.iter().filter_map(|name| Self::dim(names, name)).collect();
        let keeps_rows = along == BTreeSet::from([self.plane.column()]);
        if !keeps_rows && !(self.plane.batch..self.plane.column()).eq(along.iter().copied()) {
            return None;
        }
        let shared = self.of(*with, names);
        if self.has(&shared, if keeps_rows { Self::is_row } else { Self::is_column }) {
            return None;
        }
        if self.plane.outs.contains_key(&user) {
            // Both factors are of this plane.
            return None;
        }
        let mut own = self.of(user, names);
        for axis in graph.ty(user).axes.iter() {
            if Self::dim(&own, &axis.name).is_none() {
                own.push((axis.name.clone(), self.plane.dims.len()));
                self.plane.dims.push((axis.name.clone(), axis.size));
            }
        }
        self.plane.outs.insert(user, own);
        Some(())
    }

    /// An argument of a map of the plane: part of it, computed beside it, or read from memory.
    fn look_back(&mut self, id: NodeId, names: Names) -> Option<()> {
        if self.plane.whole.contains_key(&id) {
            return self.enter(id, names);
        }
        let graph = self.body.graph;
        if !self.has(&names, Self::is_column) {
            self.rows.push((id, names));
            return Some(());
        }
        if !self.has(&names, Self::is_row) {
            return Some(());
        }
        let back = |trace: &mut Self, names: &Names| {
            graph.args(id).to_vec().into_iter().try_for_each(|arg| trace.look_back(arg, trace.of(arg, names)))
        };
        match (graph.op(id), self.body.kind(id)) {
            (Op::Rename(pairs), Kind::Free) => {
                let names = renamed_back(&names, pairs);
                back(self, &names)
            }
            (op, Kind::Free) if op.class() == Class::Map || matches!(op, Op::Detach | Op::Expand(_)) => {
                back(self, &names)
            }
            // A product of its own: of this plane if it has the form, else read from memory.
            (Op::Contract(_), Kind::Contract) if names.len() == self.plane.column() + 1 => self.product(id, names),
            (op, Kind::Map) if op.class() == Class::Map => {
                match self.masks.get(&id) {
                    Some(present) => return same(present, &names).then_some(()),
                    None => self.masks.insert(id, names.clone()),
                };
                back(self, &names)
            }
            _ => Some(()),
        }
    }

    /// Whether a value without the column depends on a sum along the rows; then it is computed with the plane.
    fn depends(&mut self, id: NodeId, names: &Names, known: &mut BTreeMap<NodeId, bool>) -> Option<bool> {
        if let Some(known) = known.get(&id) {
            return Some(*known);
        }
        let graph = self.body.graph;
        let op = graph.op(id);
        let depends = if self.plane.folds.contains(&id) {
            same(&self.of(id, &self.plane.beside[&id]), names).then_some(true)?
        } else if matches!(self.body.kind(id), Kind::Free | Kind::Map) {
            let names = if let Op::Rename(pairs) = op { renamed_back(names, pairs) } else { names.clone() };
            let mut any = false;
            for arg in graph.args(id).to_vec() {
                any |= self.depends(arg, &self.of(arg, &names), known)?;
            }
            any
        } else {
            false
        };
        if depends && !self.plane.folds.contains(&id) {
            match op {
                Op::Rename(_) | Op::Detach | Op::Expand(_) => {}
                op if op.class() == Class::Map => {
                    self.plane.beside.insert(id, names.clone());
                }
                _ => return None,
            }
        }
        known.insert(id, depends);
        Some(depends)
    }

    fn finish(mut self) -> Option<Plane> {
        let mut known = BTreeMap::new();
        for (id, names) in std::mem::take(&mut self.rows) {
            self.depends(id, &names, &mut known)?;
        }
        // Masks that only this plane reads are made where it is.
        for (id, names) in std::mem::take(&mut self.masks).into_iter().rev() {
            let plane = &self.plane;
            let mut readers = self.uses.readers.get(&id).into_iter().flatten();
            let alone = readers.all(|id| plane.whole.contains_key(id) || plane.beside.contains_key(id));
            if alone && !self.body.kept.contains(&id) && !self.plane.whole.contains_key(&id) {
                self.plane.beside.insert(id, names);
            }
        }
        Some(self.plane)
    }
}
