//! The decoder, derived from the forward graph: the same program, a few new positions at a time.
//!
//! In: a graph that computes a value along an axis (`t`) from data that has that axis. Out: a graph over `rows` new positions that
//! start at the scalar `pos`, with caches in and out. What is pointwise along the axis is evaluated at the new positions;
//! what was renamed (`t as t'`) is kept in a cache, as late as possible; a `scan` keeps its carries, a running sum its last value.
//!
//! A reduction over a renamed axis is right only if positions that are still to come cannot change it. That is proven on
//! the original graph (`causal.rs`), or the model is refused with the place that looks ahead.

mod causal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mdl_graph::{Axis, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, ScatterKind, ShapeError, Span, Type};

/// The name of the scalar input that holds the first new position, `i32[]`.
pub const POS: &str = "pos";

/// A derived decoder. Its caches are inputs of kind `State`, all zeros at the start of a sequence, with `Next` outputs.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub graph: Graph,
    /// The names of the inputs that are caches.
    pub caches: Vec<Name>,
}

/// Why a model has no decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    pub message: String,
    /// The expression that looks ahead.
    pub span: Span,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DecodeError {}

/// The decoder of `graph` along `axis`, reading `rows` new positions a call.
pub fn decode(graph: &Graph, axis: &Axis, rows: u64) -> Result<Decoder, DecodeError> {
    let mut to = Graph::new();
    let mut inputs = Vec::new();
    for input in graph.inputs() {
        let mut ty = input.ty.clone();
        let data = input.kind == InputKind::Batch && ty.axes.contains(&axis.name);
        if data {
            ty.axes.insert(Axis::new(axis.name.clone(), rows));
        }
        let node = to.input(input.name.clone(), input.kind, ty);
        inputs.push(if data { Value::Moving(node) } else { Value::Fixed { full: node } });
    }
    let pos = to.input(POS, InputKind::Scalar, Type::scalar(DType::I32));
    let mut walk = Walk::new(graph, to, axis.clone(), rows, pos);
    walk.run(&inputs)?;
    for output in graph.outputs().iter().filter(|output| output.role == Role::Value) {
        let node = walk.rows_of(output.node)?;
        walk.to.output_as(output.name.clone(), Role::Value, node);
    }
    // The caches of this level are states; `run` made their inputs last.
    let mut caches = Vec::new();
    for cache in std::mem::take(&mut walk.caches) {
        walk.to.output_as(cache.name.clone(), Role::Next(cache.input), cache.next);
        caches.push(cache.name);
    }
    Ok(Decoder { graph: walk.to, caches })
}

/// What stands for a node of the original graph.
#[derive(Clone, Copy, Debug)]
enum Value {
    /// Does not depend on the sequence. `full` is the value as it was, all positions; what is needed at the new positions
    /// is computed from its arguments (see `Walk::rows_of`).
    Fixed { full: NodeId },
    /// Depends on the sequence: the new positions only along `t`, or along its copy when `t` itself is absent. Where both
    /// are there, the copy has all positions.
    Moving(NodeId),
}

struct Cache {
    name: Name,
    /// The input of the derived graph, and its node.
    input: mdl_graph::InputId,
    next: NodeId,
}

struct Walk<'a> {
    from: &'a Graph,
    to: Graph,
    axis: Axis,
    rows: u64,
    pos: NodeId,
    values: Vec<Option<Value>>,
    /// The results of loops that depend on the sequence, by the loop's node.
    loops: BTreeMap<NodeId, Vec<Value>>,
    /// The names under which the sequence's axis appears: `t` and what it was renamed to.
    copies: BTreeSet<Name>,
    /// Nodes at the new positions, made of fixed values, and caches already appended to.
    at_rows: BTreeMap<NodeId, NodeId>,
    appended: BTreeMap<NodeId, NodeId>,
    caches: Vec<Cache>,
    causal: causal::Causal<'a>,
}

impl<'a> Walk<'a> {
    fn new(from: &'a Graph, to: Graph, axis: Axis, rows: u64, pos: NodeId) -> Walk<'a> {
        let mut copies = BTreeSet::from([axis.name.clone()]);
        for id in from.ids() {
            if let Op::Rename(pairs) = from.op(id) {
                let had =
                    |old: &Name| copies.contains(old) && from.ty(from.args(id)[0]).axes.size(old) == Some(axis.size);
                let new: Vec<Name> = pairs.iter().filter(|(old, _)| had(old)).map(|(_, new)| new.clone()).collect();
                copies.extend(new);
            }
        }
        let causal = causal::Causal::new(from, axis.name.clone());
        let values = vec![None; from.nodes().len()];
        let (loops, at_rows, appended) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Walk { from, to, axis, rows, pos, values, loops, copies, at_rows, appended, caches: Vec::new(), causal }
    }

    fn refuse<T>(&self, id: NodeId, message: String) -> Result<T, DecodeError> {
        Err(DecodeError { message, span: self.from.node(id).span })
    }

    fn run(&mut self, inputs: &[Value]) -> Result<(), DecodeError> {
        let live = self.from.live();
        for id in self.from.ids() {
            if !live[id.idx()] {
                continue;
            }
            let value = match self.from.op(id) {
                Op::Input(input) => inputs[input.0 as usize],
                Op::Get(k) if self.loops.contains_key(&self.from.args(id)[0]) => {
                    self.loops[&self.from.args(id)[0]][*k as usize]
                }
                _ if self
                    .from
                    .args(id)
                    .iter()
                    .all(|arg| matches!(self.values[arg.idx()], Some(Value::Fixed { .. }))) =>
                {
                    let args: Vec<NodeId> = self.from.args(id).iter().map(|arg| self.full(*arg)).collect();
                    Value::Fixed { full: self.to.copy(self.from, id, &args) }
                }
                Op::Loop(inner) => {
                    self.derive_loop(id, inner)?;
                    continue;
                }
                _ => Value::Moving(self.derive(id)?),
            };
            self.values[id.idx()] = Some(value);
        }
        Ok(())
    }

    fn full(&self, id: NodeId) -> NodeId {
        match self.values[id.idx()] {
            Some(Value::Fixed { full } | Value::Moving(full)) => full,
            None => mdl_graph::bug!("{id} is used before it is derived"),
        }
    }

    fn is_moving(&self, id: NodeId) -> bool {
        matches!(self.values[id.idx()], Some(Value::Moving(_)))
    }

    /// The copies of the axis in the original type of a node, other than the axis itself.
    fn twins(&self, id: NodeId) -> Vec<Name> {
        let axes = &self.from.ty(id).axes;
        let mine = axes.iter().filter(|axis| axis.name != self.axis.name && axis.size == self.axis.size);
        mine.map(|axis| axis.name.clone()).filter(|name| self.copies.contains(name)).collect()
    }

    /// The new positions, along `name`: `pos + iota`.
    fn positions(&mut self, name: &Name) -> NodeId {
        let iota = self.to.iota(Axis::new(name.clone(), self.rows));
        self.to.add(Op::Add, &[self.pos, iota])
    }

    /// A value at the new positions along `t`: itself when it moves, else made from what it is made of.
    fn rows_of(&mut self, id: NodeId) -> Result<NodeId, DecodeError> {
        let axis = self.axis.name.clone();
        self.at(id, &axis)
    }

    /// A value at the new positions along `name`, one of the copies of the axis.
    fn at(&mut self, id: NodeId, name: &Name) -> Result<NodeId, DecodeError> {
        if self.is_moving(id) || !self.from.ty(id).axes.contains(name) {
            return Ok(self.full(id));
        }
        if *name == self.axis.name
            && let Some(done) = self.at_rows.get(&id)
        {
            return Ok(*done);
        }
        let node = self.from.node(id);
        let pointwise = !mentions(&node.op, name);
        let made = match &node.op {
            Op::Iota(_) => self.positions(name),
            // Recomputing a few rows is cheaper than keeping all of them: masks are made of positions.
            op if op.class() == mdl_graph::Class::Map && pointwise => {
                let args = node.args.iter().map(|arg| self.at(*arg, name)).collect::<Result<Vec<_>, _>>()?;
                self.to.copy(self.from, id, &args)
            }
            _ => {
                let index = self.positions(name);
                let full = self.full(id);
                self.to.add(Op::Gather { axis: name.clone() }, &[full, index])
            }
        };
        if *name == self.axis.name {
            self.at_rows.insert(id, made);
        }
        Ok(made)
    }

    /// All positions so far of a value that has the new ones along `name`: they are appended to a cache.
    fn append(&mut self, id: NodeId, name: &Name) -> NodeId {
        if let Some(done) = self.appended.get(&id) {
            return *done;
        }
        let rows = self.full(id);
        let ty = self.from.ty(id).clone();
        let place = format!("cache/{}{}", self.from.node(id).scope, self.caches.len());
        let cache = self.to.input(place.clone(), InputKind::State, ty.clone());
        let Op::Input(input) = *self.to.op(cache) else { mdl_graph::bug!("an input is no input") };
        let index = self.positions(name);
        let axis = Axis::new(name.clone(), self.axis.size);
        // The index is an axis of its own, so that the row's name is free for the result's.
        let (spot, moved) = (Name::from("spot"), |name: &Name| vec![(name.clone(), Name::from("spot"))]);
        let index = self.to.rename(index, moved(name));
        let rows = self.to.rename(rows, moved(name));
        let scatter = Op::Scatter { axis: axis.clone(), keep: Vec::new(), kind: ScatterKind::Put };
        let put = self.to.add(scatter, &[rows, index]);
        // Which positions are new: those from `pos` to `pos + rows`.
        let all = self.to.iota(axis);
        let past = self.to.add(Op::Less, &[all, self.pos]);
        let count = self.to.constant(self.rows as f64, DType::I32);
        let end = self.to.add(Op::Add, &[self.pos, count]);
        let reached = self.to.add(Op::Less, &[all, end]);
        let present = self.to.add(Op::Not, &[past]);
        let is_new = self.to.add(Op::And, &[present, reached]);
        let next = self.to.add(Op::Select, &[is_new, put, cache]);
        debug_assert!(!self.to.ty(next).axes.contains(&spot));
        self.caches.push(Cache { name: Name::from(place), input, next });
        self.appended.insert(id, next);
        next
    }

    /// An argument in the form that the result wants: with `t` in the result, `t` at the new positions and copies at all;
    /// without it, the copy at the new positions.
    fn argument(&mut self, id: NodeId, has_t: bool, twins: &[Name]) -> Result<NodeId, DecodeError> {
        let axes = self.from.ty(id).axes.clone();
        if has_t {
            if axes.contains(&self.axis.name) {
                return self.rows_of(id);
            }
            let held: Vec<Name> = twins.iter().filter(|name| axes.contains(name)).cloned().collect();
            return match held.as_slice() {
                [name] if self.is_moving(id) => Ok(self.append(id, name)),
                _ => Ok(self.full(id)),
            };
        }
        match twins.iter().find(|name| axes.contains(name)) {
            Some(name) => self.at(id, &name.clone()),
            None => Ok(self.full(id)),
        }
    }

    fn derive(&mut self, id: NodeId) -> Result<NodeId, DecodeError> {
        let node = self.from.node(id);
        let t = self.axis.name.clone();
        let args: Vec<NodeId> = node.args.to_vec();
        let has_t = args.iter().any(|arg| self.from.ty(*arg).axes.contains(&t));
        let mut twins: Vec<Name> = args.iter().flat_map(|arg| self.twins(*arg)).collect();
        twins.sort();
        twins.dedup();
        if twins.len() > 1 {
            return self
                .refuse(id, format!("positions along `{}` and `{}` meet here besides `{t}`", twins[0], twins[1]));
        }
        self.set_here(id);
        match &node.op {
            Op::Rename(pairs) if pairs.iter().any(|(old, _)| *old == t) => {
                let arg = args[0];
                if pairs.iter().any(|(_, new)| *new == t) || !twins.is_empty() {
                    return self.refuse(id, format!("`{t}` is exchanged with another axis here"));
                }
                let x = self.rows_of(arg)?;
                Ok(self.to.add(node.op.clone(), &[x]))
            }
            Op::Prefix { axis, reverse: false } if *axis == t => self.running_sum(id, args[0]),
            op if mentions(op, &t) => {
                self.refuse(id, format!("`{}` over `{t}` needs positions that are still to come", op.name()))
            }
            op => {
                if let Some(twin) = twins.iter().find(|twin| mentions(op, twin)) {
                    let sums = matches!(op, Op::Sum(_) | Op::MaxOver(_) | Op::Contract(_));
                    if !sums || !has_t {
                        return self.refuse(
                            id,
                            format!("`{}` over `{twin}` needs positions that are still to come", op.name()),
                        );
                    }
                    if !self.causal.is_neutral(id, twin) {
                        return self.refuse(
                            id,
                            format!("this sum over `{twin}` sees positions after `{t}`; a mask such as `index[{twin}] <= index[{t}]` hides them"),
                        );
                    }
                }
                let args = args.iter().map(|arg| self.argument(*arg, has_t, &twins)).collect::<Result<Vec<_>, _>>()?;
                let op = self.resized(op, has_t);
                self.to.try_add(op, &args).map_err(|ShapeError(message)| DecodeError { message, span: node.span })
            }
        }
    }

    /// Attributes that hold the axis with its size.
    fn resized(&self, op: &Op, has_t: bool) -> Op {
        match op {
            Op::Expand(axes) => {
                let fit = |axis: &Axis| {
                    let mine = axis.size == self.axis.size && self.copies.contains(&axis.name);
                    let moves = axis.name == self.axis.name || !has_t;
                    if mine && moves { Axis::new(axis.name.clone(), self.rows) } else { axis.clone() }
                };
                Op::Expand(axes.iter().map(fit).collect())
            }
            op => op.clone(),
        }
    }

    fn set_here(&mut self, id: NodeId) {
        let node = self.from.node(id);
        self.to.set_here_like(node);
    }

    /// A running sum keeps what it has reached.
    fn running_sum(&mut self, id: NodeId, arg: NodeId) -> Result<NodeId, DecodeError> {
        let x = self.rows_of(arg)?;
        let op = self.from.op(id).clone();
        let mut ty = self.to.ty(x).clone();
        ty.axes.remove(&self.axis.name);
        let place = Name::from(format!("cache/{}{}", self.from.node(id).scope, self.caches.len()));
        let before = self.to.input(place.clone(), InputKind::State, ty);
        let Op::Input(input) = *self.to.op(before) else { mdl_graph::bug!("an input is no input") };
        let sums = self.to.add(op, &[x]);
        let sums = self.to.add(Op::Add, &[sums, before]);
        let last = self.last_row(sums);
        self.caches.push(Cache { name: place, input, next: last });
        Ok(sums)
    }

    fn last_row(&mut self, x: NodeId) -> NodeId {
        let name = self.axis.name.clone();
        let last = self.to.add(Op::Slice { axis: name.clone(), start: self.rows - 1, len: 1, step: 1 }, &[x]);
        self.to.add(Op::Sum(vec![name]), &[last])
    }

    /// A loop over the sequence keeps its carries; one over another axis has its body derived, its caches stacked.
    fn derive_loop(&mut self, id: NodeId, inner: &Loop) -> Result<(), DecodeError> {
        self.set_here(id);
        let results = if inner.axis.name == self.axis.name {
            self.derive_scan(id, inner)?
        } else {
            self.derive_repeat(id, inner)?
        };
        self.loops.insert(id, results);
        Ok(())
    }

    fn derive_scan(&mut self, id: NodeId, inner: &Loop) -> Result<Vec<Value>, DecodeError> {
        if inner.reverse || inner.until {
            return self.refuse(id, format!("a loop that runs backwards along `{}` looks ahead", self.axis.name));
        }
        if self.rows != 1 {
            // Rows that pad a prompt would go into the carries.
            return self.refuse(id, "a recurrent model is read one position at a time".into());
        }
        let args = self.from.args(id).to_vec();
        let mut made = Vec::new();
        let mut carries = Vec::new();
        for (i, arg) in args.iter().enumerate() {
            if i < inner.carries {
                if self.is_moving(*arg) {
                    return self.refuse(id, "the start of this loop depends on the sequence".into());
                }
                // The first call starts where the model does, later ones where the last one ended.
                let start = self.full(*arg);
                let place = Name::from(format!("cache/{}{}", self.from.node(id).scope, self.caches.len() + i));
                let ty = self.to.ty(start).clone();
                let cache = self.to.input(place.clone(), InputKind::State, ty);
                let Op::Input(input) = *self.to.op(cache) else { mdl_graph::bug!("an input is no input") };
                let zero = self.to.constant(0.0, DType::I32);
                let first = self.to.add(Op::Equal, &[self.pos, zero]);
                made.push(self.to.add(Op::Select, &[first, start, cache]));
                carries.push((place, input));
            } else if i < inner.carries + inner.scans {
                made.push(self.rows_of(*arg)?);
            } else {
                made.push(self.full(*arg));
            }
        }
        let axis = Axis::new(self.axis.name.clone(), self.rows);
        let results = self.to.loop_over(Loop { axis, ..inner.clone() }, &made);
        for (k, (name, input)) in carries.into_iter().enumerate() {
            self.caches.push(Cache { name, input, next: results[k] });
        }
        Ok(results.into_iter().map(Value::Moving).collect())
    }

    fn derive_repeat(&mut self, id: NodeId, inner: &Loop) -> Result<Vec<Value>, DecodeError> {
        if inner.until {
            return self.refuse(id, "a loop that ends early depends on all positions".into());
        }
        let args = self.from.args(id).to_vec();
        // A carry that starts fixed may come out depending on the sequence: then it does so from the start.
        // What is made of positions alone is handed in at the new ones, rather than whole.
        let t = &self.axis.name;
        let mut moving: Vec<bool> =
            args.iter().map(|arg| self.is_moving(*arg) || self.from.ty(*arg).axes.contains(t)).collect();
        loop {
            let derived = self.derive_body(inner, &args, &moving)?;
            let fixed_point = (0..inner.carries).all(|k| moving[k] || !derived.outputs[k].1);
            if fixed_point {
                return self.place_body(inner, &args, &moving, derived);
            }
            for (carry, (_, moves)) in moving.iter_mut().zip(&derived.outputs).take(inner.carries) {
                *carry |= moves;
            }
        }
    }

    fn derive_body(&mut self, inner: &Loop, args: &[NodeId], moving: &[bool]) -> Result<Body, DecodeError> {
        let mut to = Graph::new();
        let mut inputs = Vec::new();
        for (input, moving) in inner.body.inputs().iter().zip(moving) {
            let mut ty = input.ty.clone();
            if *moving {
                ty = self.resized_type(&ty);
            }
            let node = to.input(input.name.clone(), InputKind::Param, ty);
            inputs.push(if *moving { Value::Moving(node) } else { Value::Fixed { full: node } });
        }
        let pos = to.input(POS, InputKind::Param, Type::scalar(DType::I32));
        let mut walk = Walk::new(&inner.body, to, self.axis.clone(), self.rows, pos);
        walk.copies.extend(self.copies.iter().cloned());
        walk.causal = self.causal.of_body(inner, args, walk.copies.iter().cloned());
        walk.run(&inputs)?;
        let mut outputs = Vec::new();
        for (k, output) in inner.body.outputs().iter().enumerate() {
            let is_moving = walk.is_moving(output.node) || (k < inner.carries && moving[k]);
            let node = if is_moving { walk.rows_of(output.node)? } else { walk.full(output.node) };
            outputs.push((node, is_moving));
        }
        Ok(Body { graph: walk.to, outputs, caches: walk.caches })
    }

    /// The type with the axis, or its only copy, at the new positions.
    fn resized_type(&self, ty: &Type) -> Type {
        let mut ty = ty.clone();
        let mine = |axis: &&Axis| axis.size == self.axis.size && self.copies.contains(&axis.name);
        let name = if ty.axes.contains(&self.axis.name) {
            Some(self.axis.name.clone())
        } else {
            ty.axes.iter().find(mine).map(|axis| axis.name.clone())
        };
        if let Some(name) = name {
            ty.axes.insert(Axis::new(name, self.rows));
        }
        ty
    }

    fn place_body(
        &mut self,
        inner: &Loop,
        args: &[NodeId],
        moving: &[bool],
        derived: Body,
    ) -> Result<Vec<Value>, DecodeError> {
        // New order of inputs: carries, scanned, caches (scanned), free, pos.
        let Body { graph, outputs, caches } = derived;
        let split = inner.carries + inner.scans;
        let mut values = Vec::new();
        for (arg, moving) in args.iter().zip(moving) {
            values.push(if *moving && !self.is_moving(*arg) { self.rows_of(*arg)? } else { self.full(*arg) });
        }
        let mut stacked_caches = Vec::new();
        for cache in &caches {
            let mut ty = graph.inputs()[cache.input.0 as usize].ty.clone();
            ty.axes.insert(inner.axis.clone());
            let place = Name::from(format!("{}/{}", cache.name, self.caches.len() + stacked_caches.len()));
            let node = self.to.input(place.clone(), InputKind::State, ty);
            let Op::Input(input) = *self.to.op(node) else { mdl_graph::bug!("an input is no input") };
            stacked_caches.push((place, input, node));
        }
        let is_cache = |k: usize| caches.iter().position(|cache| cache.input.0 as usize == k);
        let mut order: Vec<usize> = (0..split).collect();
        order.extend(caches.iter().map(|cache| cache.input.0 as usize));
        order.extend((split..graph.inputs().len()).filter(|k| is_cache(*k).is_none()));
        let mut body = Graph::new();
        let mut placed = vec![NodeId(0); graph.inputs().len()];
        for k in &order {
            let input = &graph.inputs()[*k];
            placed[*k] = body.input(input.name.clone(), InputKind::Param, input.ty.clone());
        }
        let mut ends = graph.clone();
        let mut listed: Vec<_> = inner.body.outputs().to_vec();
        for (output, (node, _)) in listed.iter_mut().zip(&outputs) {
            output.node = *node;
        }
        listed.extend(caches.iter().map(|cache| mdl_graph::Output {
            name: cache.name.clone(),
            role: Role::Value,
            node: cache.next,
        }));
        ends.set_outputs(listed.clone());
        let made = body.inline(&ends, &placed);
        for (output, node) in listed.iter().zip(made) {
            body.output_as(output.name.clone(), Role::Value, node);
        }
        let mut all: Vec<NodeId> = values[..split].to_vec();
        all.extend(stacked_caches.iter().map(|(_, _, node)| *node));
        all.extend(&values[split..]);
        all.push(self.pos);
        let scans = inner.scans + caches.len();
        let new = Loop { scans, body, ..inner.clone() };
        let mut results = self.to.loop_over(new, &all);
        let nexts = results.split_off(results.len() - caches.len());
        for ((name, input, _), next) in stacked_caches.into_iter().zip(nexts) {
            self.caches.push(Cache { name, input, next });
        }
        let kinds = outputs.iter().map(|(_, moving)| *moving);
        let value = |(node, moving)| if moving { Value::Moving(node) } else { Value::Fixed { full: node } };
        Ok(results.into_iter().zip(kinds).map(value).collect())
    }
}

struct Body {
    graph: Graph,
    /// The nodes of the body's outputs, and whether each depends on the sequence.
    outputs: Vec<(NodeId, bool)>,
    caches: Vec<Cache>,
}

/// Whether an operation does something along the axis, rather than the same at each of its positions.
fn mentions(op: &Op, name: &Name) -> bool {
    match op {
        Op::Sum(names) | Op::MaxOver(names) | Op::Contract(names) => names.contains(name),
        Op::Prefix { axis, .. } | Op::Gather { axis } | Op::Slice { axis, .. } | Op::Pad { axis, .. } => axis == name,
        Op::Split { axis, .. } | Op::Window { axis, .. } | Op::Top { axis, .. } => axis == name,
        Op::Unwindow { out, tap, .. } => out == name || tap == name,
        Op::Merge { axes, .. } => axes.contains(name),
        Op::Rename(pairs) => pairs.iter().any(|(old, new)| old == name || new == name),
        Op::Scatter { axis, keep, .. } => axis.name == *name || !keep.contains(name),
        _ => false,
    }
}
