//! Writes the statements of a kernel's body: each value asked for at a point becomes a load, or the operation on its arguments.

use mdl_graph::{DType, Name, NodeId, Op, Scalar, bug};
use rustc_hash::FxHashMap;

use super::coord::{Coord, Part};
use super::{Failure, Lowering, Outcome, Touch};
use crate::fuse::{Group, Kind};
use crate::kernel::{Access, Buf, BufId, Dim, FoldKind, Index, Position, Rank, Role, ScalarOp, Stmt, Term, Val, ValId};
use crate::schedule::layout::Layout;

/// An `Unwindow` of more taps than this is not written out tap by tap.
const MOST_TAPS: u64 = 512;

/// A position outside `lo..hi` does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Guard {
    at: Coord,
    lo: i64,
    hi: i64,
    /// What is read outside; `None` when whoever set the guard replaces the value anyway.
    fill: Option<Scalar>,
    /// The view that set it.
    by: NodeId,
}

/// Where a value is read: a coordinate for each of its axes, by name, and what must hold for it to exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Point {
    pub(super) coords: Vec<(Name, Coord)>,
    pub(super) guards: Vec<Guard>,
}

impl Point {
    fn take(&mut self, name: &Name) -> Coord {
        match self.coords.iter().position(|(axis, _)| axis == name) {
            Some(at) => self.coords.remove(at).1,
            None => bug!("a view asks for axis `{name}`, which is not there"),
        }
    }

    pub(super) fn put(&mut self, name: &Name, coord: Coord) {
        let at = self.coords.partition_point(|(axis, _)| axis < name);
        self.coords.insert(at, (name.clone(), coord));
    }
}

pub(super) struct Writer<'a, 'g> {
    pub(super) low: &'a Lowering<'a, 'g>,
    pub(super) group: &'a Group,
    /// The extents of the kernel's dimensions, the strip last.
    pub(super) extents: Vec<u64>,
    /// What each dimension of the group is in the kernel.
    pub(super) coords: Vec<Coord>,
    pub(super) vals: Vec<Val>,
    pub(super) body: Vec<Stmt>,
    pub(super) bufs: Vec<Buf>,
    pub(super) touches: Vec<Touch>,
    known: FxHashMap<(NodeId, Point), ValId>,
    positions: FxHashMap<Coord, ValId>,
}

impl<'a, 'g> Writer<'a, 'g> {
    pub(super) fn new(low: &'a Lowering<'a, 'g>, group: &'a Group, extents: Vec<u64>, coords: Vec<Coord>) -> Self {
        Writer {
            low,
            group,
            extents,
            coords,
            vals: Vec::new(),
            body: Vec::new(),
            bufs: Vec::new(),
            touches: Vec::new(),
            known: FxHashMap::default(),
            positions: FxHashMap::default(),
        }
    }

    fn strip(&self) -> Dim {
        Dim(self.extents.len() as u32 - 1)
    }

    /// The point of a member's domain, or of some of its axes, at which the kernel stands.
    pub(super) fn natural(&self, id: NodeId, axes: &mdl_graph::AxisSet) -> Point {
        let names = &self.group.members[&id];
        let mut point = Point::default();
        for (name, dim) in names.iter().filter(|(name, _)| axes.contains(name)) {
            point.put(name, self.coords[*dim].clone());
        }
        point
    }

    pub(super) fn define(&mut self, rank: Rank, dtype: DType) -> ValId {
        self.vals.push(Val { rank, dtype: Val::dtype_of(dtype) });
        ValId(self.vals.len() as u32 - 1)
    }

    pub(super) fn val(&self, id: ValId) -> Val {
        self.vals[id.0 as usize]
    }

    /// Says that a node's value at its natural point is there already.
    pub(super) fn preset(&mut self, id: NodeId, val: ValId) {
        let point = self.natural(id, &self.low.body.graph.ty(id).axes.clone());
        self.known.insert((id, point), val);
    }

    pub(super) fn buf(&mut self, node: NodeId, place: usize, is_write: bool) -> Outcome<BufId> {
        let touch = Touch { node, place, is_write };
        if let Some(at) = self.touches.iter().position(|present| *present == touch) {
            return Ok(BufId(at as u32));
        }
        let layout = match self.low.layouts.get(&node).and_then(|places| places.get(place)) {
            Some(layout) => layout,
            None => return Err(Failure::Store(node)),
        };
        let role = if is_write { Role::Write } else { Role::Read };
        // Not the node's name: equal kernels of different places are one.
        let nth = self.touches.iter().filter(|other| other.is_write == is_write).count();
        let name = format!("{}{nth}", if is_write { "y" } else { "x" });
        self.bufs.push(Buf { name, dtype: self.low.dtype(node), len: layout.span(), role });
        self.touches.push(touch);
        Ok(BufId(self.bufs.len() as u32 - 1))
    }

    pub(super) fn map(&mut self, op: ScalarOp, args: &[ValId], dtype: DType) -> ValId {
        let strip = args.iter().any(|arg| self.val(*arg).rank == Rank::Strip);
        let val = self.define(if strip { Rank::Strip } else { Rank::Row }, dtype);
        self.body.push(Stmt::Map { val, op, args: args.to_vec() });
        val
    }

    pub(super) fn constant(&mut self, value: Scalar, dtype: DType) -> ValId {
        let val = self.define(Rank::Row, dtype);
        let kept = self.val(val).dtype;
        self.body.push(Stmt::Const { val, value: value.cast(kept) });
        match dtype {
            DType::BF16 | DType::F16 => self.map(ScalarOp::Round(dtype), &[val], dtype),
            _ => val,
        }
    }

    /// A row value repeated along the strip.
    pub(super) fn spread(&mut self, val: ValId) -> ValId {
        let ty = self.val(val);
        if ty.rank == Rank::Strip {
            return val;
        }
        let wide = self.define(Rank::Strip, ty.dtype);
        self.body.push(Stmt::Map { val: wide, op: ScalarOp::Cast, args: vec![val] });
        wide
    }

    pub(super) fn fold(&mut self, val: ValId, kind: FoldKind) -> ValId {
        let from = self.spread(val);
        let dtype = self.val(from).dtype;
        let row = self.define(Rank::Row, dtype);
        self.body.push(Stmt::Fold { val: row, kind, from });
        row
    }

    /// The value of a node at a point: known, loaded or computed.
    pub(super) fn pull(&mut self, id: NodeId, point: Point) -> Outcome<ValId> {
        let key = (id, point);
        if let Some(val) = self.known.get(&key) {
            return Ok(*val);
        }
        let point = key.1.clone();
        let kind = self.low.body.kind(id);
        let val = if kind == Kind::Free {
            self.compute(id, point)?
        } else if self.group.members.contains_key(&id) {
            match kind {
                // A map may be computed anywhere, and again.
                Kind::Map => self.compute(id, point)?,
                _ => bug!("{id} is read inside of its kernel at another position"),
            }
        } else {
            self.load(id, &point)?
        };
        self.known.insert(key, val);
        Ok(val)
    }

    /// `x`, an argument of a node read at `point`, at the same positions.
    fn arg(&mut self, x: NodeId, point: &Point) -> Outcome<ValId> {
        let axes = &self.low.body.graph.ty(x).axes;
        let coords = point.coords.iter().filter(|(name, _)| axes.contains(name)).cloned().collect();
        self.pull(x, Point { coords, guards: point.guards.clone() })
    }

    /// The operation of a node, its arguments pulled. Reductions are the nest's.
    pub(super) fn compute(&mut self, id: NodeId, mut point: Point) -> Outcome<ValId> {
        let graph = self.low.body.graph;
        let node = graph.node(id);
        let dtype = node.ty.dtype;
        match &node.op {
            Op::Const(value, _) => Ok(self.constant(*value, dtype)),
            Op::Iota(axis) => {
                let coord = point.take(&axis.name);
                self.position(&coord)
            }
            Op::Detach | Op::Sum(_) | Op::MaxOver(_) => self.arg(node.args[0], &point),
            Op::Rename(pairs) => {
                let coords = std::mem::take(&mut point.coords);
                for (name, coord) in coords {
                    let old = pairs.iter().find(|(_, new)| *new == name).map_or(&name, |(old, _)| old);
                    point.put(old, coord);
                }
                self.pull(node.args[0], point)
            }
            Op::Expand(more) => {
                for axis in more {
                    point.take(&axis.name);
                }
                self.pull(node.args[0], point)
            }
            Op::Split { axis, into } => {
                let mut whole = Coord::default();
                for part in into {
                    let at = point.take(&part.name);
                    whole = Coord::default().plus(&whole, part.size.max(1) as i64).plus(&at, 1);
                }
                point.put(axis, whole.rejoined());
                self.pull(node.args[0], point)
            }
            Op::Merge { axes, into } => {
                let mut rest = point.take(into);
                let source = &graph.ty(node.args[0]).axes;
                for (at, name) in axes.iter().enumerate().rev() {
                    let size = source.size(name).unwrap_or(1).max(1);
                    if at == 0 {
                        point.put(name, rest);
                        break;
                    }
                    let part = rest.modulo(size, &self.extents).ok_or(Failure::Store(id))?;
                    rest = rest.floor_div(size, &self.extents).ok_or(Failure::Store(id))?;
                    point.put(name, part);
                }
                self.pull(node.args[0], point)
            }
            Op::Slice { axis, start, step, .. } => {
                let at = point.take(axis);
                point.put(axis, Coord::constant(*start as i64).plus(&at, *step));
                self.pull(node.args[0], point)
            }
            Op::Window { axis, out, tap, stride } => {
                let (o, k) = (point.take(out), point.take(&tap.name));
                point.put(axis, Coord::default().plus(&o, *stride as i64).plus(&k, 1));
                self.pull(node.args[0], point)
            }
            Op::Pad { axis, before, fill, .. } => {
                let at = point.take(axis).shift(-(*before as i64));
                let size = graph.ty(node.args[0]).axes.size(axis).unwrap_or(0) as i64;
                point.put(axis, at.clone());
                self.padded(id, node.args[0], point, Guard { at, lo: 0, hi: size, fill: Some(*fill), by: id })
            }
            Op::Unwindow { axis, out, tap, stride } => self.unwindow(id, point, (&axis.name, out, tap, *stride)),
            Op::Gather { axis } => {
                let (table, index) = (node.args[0], node.args[1]);
                let at = self.arg(index, &point)?;
                let axes = &graph.ty(table).axes;
                let size = axes.size(axis).unwrap_or(0);
                point.coords.retain(|(name, _)| axes.contains(name) && name != axis);
                point.put(axis, Coord::of(Part::Value { val: at, size, gather: id }));
                self.gathered(id, table, axis, point)
            }
            Op::Scatter { axis, .. } => {
                let (rows, index) = (node.args[0], node.args[1]);
                let at = point.take(&axis.name);
                let (row, to) = (self.arg(rows, &point)?, self.arg(index, &point)?);
                let here = self.position(&at)?;
                let index_dtype = self.val(to).dtype;
                let here = self.converted(here, index_dtype);
                let hit = self.map(ScalarOp::Equal, &[here, to], DType::Bool);
                let zero = self.constant(Scalar::Int(0).cast(dtype), dtype);
                Ok(self.map(ScalarOp::Select, &[hit, row, zero], dtype))
            }
            Op::Contract(_) => {
                let (a, b) = (self.arg(node.args[0], &point)?, self.arg(node.args[1], &point)?);
                Ok(self.map(ScalarOp::Mul, &[a, b], dtype))
            }
            Op::Uniform { place } => {
                let mut args = Vec::with_capacity(4);
                for x in &node.args {
                    let val = self.arg(*x, &point)?;
                    args.push(self.converted(val, DType::I32));
                }
                Ok(self.map(ScalarOp::Uniform { place: *place }, &args, dtype))
            }
            Op::Cast(to) => {
                let val = self.arg(node.args[0], &point)?;
                let from = graph.ty(node.args[0]).dtype;
                let val = self.converted(val, Val::dtype_of(*to));
                let narrows = *to != from && Val::dtype_of(*to) != *to;
                Ok(if narrows { self.map(ScalarOp::Round(*to), &[val], dtype) } else { val })
            }
            op => {
                let Some(scalar) = scalar_op(op) else { bug!("`{}` of {id} is no map", op.name()) };
                let mut args = Vec::with_capacity(3);
                for x in &node.args {
                    args.push(self.arg(*x, &point)?);
                }
                let val = self.map(scalar, &args, dtype);
                let rounds = match dtype {
                    DType::I8 | DType::U8 => !matches!(op, Op::Max | Op::Select),
                    DType::BF16 | DType::F16 => {
                        self.low.round_every_node && !matches!(op, Op::Max | Op::Select | Op::Neg)
                    }
                    _ => false,
                };
                Ok(if rounds { self.map(ScalarOp::Round(dtype), &[val], dtype) } else { val })
            }
        }
    }

    fn converted(&mut self, val: ValId, dtype: DType) -> ValId {
        if self.val(val).dtype == dtype { val } else { self.map(ScalarOp::Cast, &[val], dtype) }
    }

    /// A position as an `i32`.
    pub(super) fn position(&mut self, coord: &Coord) -> Outcome<ValId> {
        if let Some(val) = self.positions.get(coord) {
            return Ok(*val);
        }
        let val = match coord.index() {
            Some(index) if index.terms.is_empty() && index.div == 1 && index.modulo == 0 => {
                self.constant(Scalar::Int(index.base + index.plus), DType::I32)
            }
            Some(index) => self.index(index),
            None => {
                let mut sum = self.constant(Scalar::Int(coord.base), DType::I32);
                for (part, coef) in &coord.parts {
                    let one = match (part, part.index()) {
                        (Part::Value { val, .. }, _) => self.converted(*val, DType::I32),
                        (_, Some(index)) => self.index(index),
                        (_, None) => bug!("a part of a position is no index"),
                    };
                    let by = self.constant(Scalar::Int(*coef), DType::I32);
                    let product = self.map(ScalarOp::Mul, &[one, by], DType::I32);
                    sum = self.map(ScalarOp::Add, &[sum, product], DType::I32);
                }
                sum
            }
        };
        self.positions.insert(coord.clone(), val);
        Ok(val)
    }

    fn index(&mut self, index: Index) -> ValId {
        let rank = if index.depends_on(self.strip()) { Rank::Strip } else { Rank::Row };
        let val = self.define(rank, DType::I32);
        self.body.push(Stmt::Index { val, index });
        val
    }

    /// Whether a node is a chain of views on memory whose only fills are this one.
    fn is_plain(&self, mut id: NodeId, fill: Scalar) -> bool {
        loop {
            if self.low.body.kind(id) != Kind::Free {
                return !self.group.members.contains_key(&id);
            }
            match self.low.body.graph.op(id) {
                Op::Pad { fill: other, .. } if *other != fill => return false,
                Op::Pad { .. }
                | Op::Rename(_)
                | Op::Expand(_)
                | Op::Split { .. }
                | Op::Merge { .. }
                | Op::Slice { .. }
                | Op::Window { .. }
                | Op::Detach => id = self.low.body.graph.args(id)[0],
                _ => return false,
            }
        }
    }

    /// `x` at a point where it may not exist: the guard's fill then.
    fn padded(&mut self, id: NodeId, x: NodeId, mut point: Point, guard: Guard) -> Outcome<ValId> {
        let (lo, hi) = guard.at.range(&self.extents);
        if lo >= guard.lo && hi < guard.hi {
            return self.pull(x, point);
        }
        let fill = guard.fill.unwrap_or(Scalar::Int(0));
        let agrees = point.guards.iter().all(|other| other.fill.is_none_or(|other| other == fill));
        let is_gathered = point
            .coords
            .iter()
            .any(|(_, coord)| coord.parts.iter().any(|(part, _)| matches!(part, Part::Value { .. })));
        if is_gathered {
            return Err(Failure::Store(id));
        }
        if agrees && self.is_plain(x, fill) {
            point.guards.push(guard);
            return self.pull(x, point);
        }
        if guard.at.index().is_none() {
            return Err(Failure::Store(id));
        }
        // What is under the guard is replaced outside, whatever it reads there.
        let at = self.position(&guard.at)?;
        let (lo, hi) =
            (self.constant(Scalar::Int(guard.lo), DType::I32), self.constant(Scalar::Int(guard.hi), DType::I32));
        let below = self.map(ScalarOp::Less, &[at, lo], DType::Bool);
        let inside = self.map(ScalarOp::Less, &[at, hi], DType::Bool);
        let not_below = self.map(ScalarOp::Not, &[below], DType::Bool);
        let inside = self.map(ScalarOp::And, &[not_below, inside], DType::Bool);
        point.guards.push(Guard { fill: None, ..guard });
        let dtype = self.low.dtype(id);
        let val = self.pull(x, point)?;
        let fill = self.constant(fill, dtype);
        Ok(self.map(ScalarOp::Select, &[inside, val, fill], dtype))
    }

    /// `Σ_k x[out = (i - k) / stride, tap = k]` over the taps for which that is a whole position.
    fn unwindow(&mut self, id: NodeId, point: Point, view: (&Name, &Name, &Name, u64)) -> Outcome<ValId> {
        let (axis, out, tap, stride) = view;
        let graph = self.low.body.graph;
        let (x, dtype) = (graph.args(id)[0], self.low.dtype(id));
        let axes = &graph.ty(x).axes;
        let (n_out, n_taps) = (axes.size(out).unwrap_or(0), axes.size(tap).unwrap_or(0));
        if n_taps > MOST_TAPS {
            let message = format!("the adjoint of a window of {n_taps} positions; at most {MOST_TAPS} are possible");
            return Err(Failure::Error(crate::plan::CompileError::new(Some(id), message)));
        }
        if self.low.body.kind(x) == Kind::Free && !self.is_plain(x, Scalar::Int(0).cast(dtype)) {
            return Err(Failure::Store(x));
        }
        let fill = Some(Scalar::Int(0).cast(dtype));
        let mut sum: Option<ValId> = None;
        for k in 0..n_taps {
            let mut at = point.clone();
            let offset = at.take(axis).shift(-(k as i64));
            let row = offset.floor_div(stride, &self.extents).ok_or(Failure::Store(id))?;
            let rest = offset.modulo(stride, &self.extents).ok_or(Failure::Store(id))?;
            at.put(out, row.clone());
            at.put(tap, Coord::constant(k as i64));
            let guards = [(row, n_out as i64), (rest, 1)];
            for (coord, hi) in guards {
                let (least, most) = coord.range(&self.extents);
                if least < 0 || most >= hi {
                    at.guards.push(Guard { at: coord, lo: 0, hi, fill, by: id });
                }
            }
            let val = self.pull(x, at)?;
            sum = Some(match sum {
                None => val,
                Some(sum) => self.map(ScalarOp::Add, &[sum, val], dtype),
            });
        }
        match sum {
            Some(sum) => Ok(sum),
            None => Ok(self.constant(Scalar::Int(0).cast(dtype), dtype)),
        }
    }

    /// A table read at a value along `axis`: it must be memory, seen through views without fills.
    fn gathered(&mut self, id: NodeId, table: NodeId, axis: &Name, point: Point) -> Outcome<ValId> {
        let mut root = table;
        let mut axis = axis;
        while self.low.body.kind(root) == Kind::Free {
            match self.low.body.graph.op(root) {
                // Along an axis that the data does not have, nothing would say which positions exist.
                Op::Expand(more) if more.iter().any(|new| new.name == *axis) => return Err(Failure::Store(table)),
                Op::Rename(pairs) => {
                    axis = pairs.iter().find(|(_, new)| new == axis).map_or(axis, |(old, _)| old);
                }
                Op::Split { axis: whole, into } if into.iter().any(|part| part.name == *axis) => axis = whole,
                Op::Expand(_) | Op::Slice { .. } | Op::Split { .. } | Op::Detach => {}
                _ => return Err(Failure::Store(table)),
            }
            root = self.low.body.graph.args(root)[0];
        }
        let zero = Scalar::Int(0).cast(self.low.dtype(id));
        if point.guards.iter().any(|guard| guard.fill.is_some_and(|fill| fill != zero)) {
            return Err(Failure::Store(id));
        }
        self.pull(table, point)
    }

    fn load(&mut self, id: NodeId, point: &Point) -> Outcome<ValId> {
        let layout = self.low.layout(id)?.clone();
        let dtype = self.low.dtype(id);
        let access = self.access(&layout, point, dtype)?;
        let strip = self.strip();
        let moves = access.terms.iter().any(|term| match &term.index {
            Position::Index(index) => index.depends_on(strip),
            Position::Value(val) => self.val(*val).rank == Rank::Strip,
        });
        let buf = self.buf(id, 0, false)?;
        let val = self.define(if moves { Rank::Strip } else { Rank::Row }, dtype);
        self.body.push(Stmt::Load { val, buf, access });
        Ok(val)
    }

    /// The position of a point in memory of this layout.
    pub(super) fn access(&self, layout: &Layout, point: &Point, dtype: DType) -> Outcome<Access> {
        let mut total = Coord::default();
        let mut values: Vec<(ValId, u64, i64)> = Vec::new();
        let mut terms: Vec<Term> = Vec::new();
        let mut guarded: Vec<(&Coord, i64)> = Vec::new();
        for (name, coord) in &point.coords {
            let Some((axis, stride)) = layout.axes.iter().find(|(axis, _)| axis.name == *name) else { continue };
            let (size, stride) = (axis.size as i64, *stride);
            let (lo, hi) = coord.range(&self.extents);
            if let (Some(guard), true) = (point.guards.first(), lo < 0 || hi >= size) {
                // Where a guard holds the position exists; that it does is said of each axis.
                let index = coord.index().ok_or(Failure::Store(guard.by))?;
                terms.push(Term { index: Position::Index(index), coef: stride, range: Some((0, size)) });
                guarded.push((coord, size));
                continue;
            }
            total = total.plus(coord, stride);
            for (part, coef) in &coord.parts {
                let Part::Value { val, size, .. } = part else { continue };
                match values.iter_mut().find(|(present, ..)| present == val) {
                    Some((_, _, sum)) => *sum += coef * stride,
                    None => values.push((*val, *size, coef * stride)),
                }
            }
        }
        total.parts.retain(|(part, _)| !matches!(part, Part::Value { .. }));
        let total = total.rejoined();
        for (part, coef) in &total.parts {
            let Some(index) = part.index() else { bug!("a part of a position is no index") };
            terms.push(Term { index: Position::Index(index), coef: *coef, range: None });
        }
        let mut fill: Option<Scalar> = None;
        for (val, size, coef) in values {
            terms.push(Term { index: Position::Value(val), coef, range: Some((0, size as i64)) });
            fill = Some(Scalar::Int(0).cast(dtype));
        }
        for guard in &point.guards {
            let (lo, hi) = guard.at.range(&self.extents);
            if let Some(wanted) = guard.fill {
                fill = Some(wanted);
            }
            if (lo >= guard.lo && hi < guard.hi) || guarded.contains(&(&guard.at, guard.hi)) && guard.lo == 0 {
                continue;
            }
            let index = guard.at.index().ok_or(Failure::Store(guard.by))?;
            let term = Term { index: Position::Index(index), coef: 0, range: Some((guard.lo, guard.hi)) };
            if !terms.contains(&term) {
                terms.push(term);
            }
        }
        let fill = fill.unwrap_or(Scalar::Int(0)).cast(Val::dtype_of(dtype));
        Ok(Access { base: total.base, terms, fill })
    }

    /// Stores a member that others need, to each of its places.
    pub(super) fn store(&mut self, id: NodeId, val: ValId) -> Outcome<()> {
        let Some(places) = self.low.layouts.get(&id) else { return Err(Failure::Store(id)) };
        let axes = self.low.body.graph.ty(id).axes.clone();
        let point = self.natural(id, &axes);
        for (place, layout) in places.iter().enumerate() {
            let access = self.access(layout, &point, self.low.dtype(id))?;
            let buf = self.buf(id, place, true)?;
            self.body.push(Stmt::Store { buf, access, val });
        }
        Ok(())
    }

    /// Evaluates a member that is a map, at its natural point.
    pub(super) fn member(&mut self, id: NodeId) -> Outcome<ValId> {
        let axes = self.low.body.graph.ty(id).axes.clone();
        let point = self.natural(id, &axes);
        if let Some(val) = self.known.get(&(id, point.clone())) {
            return Ok(*val);
        }
        let val = self.compute(id, point.clone())?;
        self.known.insert((id, point), val);
        Ok(val)
    }

    /// The value that a reduction sums, at the point of its domain where the kernel stands.
    pub(super) fn summand(&mut self, id: NodeId) -> Outcome<ValId> {
        let node = self.low.body.graph.node(id);
        let domain = self.low.body.domain(id);
        let point = self.natural(id, &domain);
        match &node.op {
            Op::Contract(_) => self.compute(id, point),
            _ => self.arg(node.args[0], &point),
        }
    }
}

/// The operation on numbers of a map whose arguments are all read at its own point.
fn scalar_op(op: &Op) -> Option<ScalarOp> {
    Some(match op {
        Op::Exp => ScalarOp::Exp,
        Op::Log => ScalarOp::Log,
        Op::Tanh => ScalarOp::Tanh,
        Op::Erf => ScalarOp::Erf,
        Op::Sin => ScalarOp::Sin,
        Op::Cos => ScalarOp::Cos,
        Op::Sqrt => ScalarOp::Sqrt,
        Op::Floor => ScalarOp::Floor,
        Op::Neg => ScalarOp::Neg,
        Op::Add => ScalarOp::Add,
        Op::Sub => ScalarOp::Sub,
        Op::Mul => ScalarOp::Mul,
        Op::Div => ScalarOp::Div,
        Op::Max => ScalarOp::Max,
        Op::Rem => ScalarOp::Rem,
        Op::Pow => ScalarOp::Pow,
        Op::Less => ScalarOp::Less,
        Op::Equal => ScalarOp::Equal,
        Op::And => ScalarOp::And,
        Op::Or => ScalarOp::Or,
        Op::Not => ScalarOp::Not,
        Op::Select => ScalarOp::Select,
        _ => return None,
    })
}
