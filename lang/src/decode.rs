//! The decoder, derived from the forward graph: the same program, a few new positions at a time.
//!
//! In: a graph that computes a value along an axis (`t`) from data that has that axis. Out: a graph over `rows` new positions that
//! start at the scalar `pos`, with caches in and out. What is pointwise along the axis is evaluated at the new positions;
//! what was renamed (`t as t'`) is kept in a cache, as late as possible; a `scan` keeps its carries, a running sum its last value.
//!
//! A reduction over a renamed axis is right only if positions that are still to come cannot change it. That is proven on
//! the original graph (`causal.rs`), or the model is refused with the place that looks ahead.

mod causal;
pub mod once;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mdl_graph::{
    Axis, AxisSet, Class, DType, Graph, InputId, InputKind, Loop, Name, NodeId, Op, Output, Role, ScatterKind,
    ShapeError, Span, Type,
};

/// The name of the input that holds the first new position: `i32[]`, or one for each sequence.
pub const POS: &str = "pos";

/// A derived decoder. Its caches are inputs of kind `State`, all zeros at the start of a sequence, with `Next` outputs.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub graph: Graph,
    /// The names of the inputs that are caches.
    pub caches: Vec<Name>,
    /// False when a cache holds what was reached, as the carry of a `scan`, rather than positions: then the sequence
    /// cannot be taken back.
    pub can_go_back: bool,
}

/// What a decoder reads at once.
#[derive(Clone, Debug)]
pub struct Rows {
    pub count: u64,
    /// The axes along which sequences are at positions of their own.
    pub pos: AxisSet,
    /// Whether rows may be beyond the end of the text, to be read once more. Then only positions may be remembered.
    pub is_padded: bool,
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
    decode_rows(graph, axis, &Rows { count: rows, pos: AxisSet::default(), is_padded: rows > 1 })
}

/// As [`decode`], with all that may be asked for.
pub fn decode_rows(graph: &Graph, axis: &Axis, rows: &Rows) -> Result<Decoder, DecodeError> {
    let mut to = Graph::new();
    let mut inputs = Vec::new();
    for input in graph.inputs() {
        let mut ty = input.ty.clone();
        let data = input.kind == InputKind::Batch && ty.axes.contains(&axis.name);
        if data {
            ty.axes.insert(Axis::new(axis.name.clone(), rows.count));
        }
        let node = to.input(input.name.clone(), input.kind, ty);
        inputs.push(if data { Value::Moving { node, along: axis.name.clone() } } else { Value::Fixed { full: node } });
    }
    let pos = to.input(POS, InputKind::Scalar, Type::new(DType::I32, rows.pos.clone()));
    let mut walk = Walk::new(graph, to, axis.clone(), rows.clone(), pos, BTreeSet::new());
    walk.run(&inputs)?;
    for output in graph.outputs().iter().filter(|output| output.role == Role::Value) {
        let node = walk.at(output.node, &axis.name)?;
        walk.to.output_as(output.name.clone(), Role::Value, node);
    }
    let mut caches = Vec::new();
    for cache in std::mem::take(&mut walk.caches) {
        walk.to.output_as(cache.name.clone(), Role::Next(cache.input), cache.next);
        caches.push(cache.name);
    }
    Ok(Decoder { graph: walk.to, caches, can_go_back: walk.can_go_back })
}

/// What stands for a node of the original graph.
#[derive(Clone, Debug)]
enum Value {
    /// Does not depend on the sequence. `full` is the value as it was, all positions; what is needed at the new positions
    /// is made from its arguments (see [`Walk::at`]).
    Fixed { full: NodeId },
    /// Depends on the sequence: the new positions only along one copy of the axis, all positions so far along any other.
    Moving { node: NodeId, along: Name },
    /// The last carry of a loop over the sequence: it depends on positions that are still to come.
    Ahead,
}

struct Cache {
    name: Name,
    /// The input of the derived graph.
    input: InputId,
    next: NodeId,
}

struct Walk<'a> {
    from: &'a Graph,
    to: Graph,
    axis: Axis,
    rows: Rows,
    pos: NodeId,
    can_go_back: bool,
    values: Vec<Option<Value>>,
    /// The results of loops that depend on the sequence, by the loop's node.
    loops: BTreeMap<NodeId, Vec<Value>>,
    /// The names that the sequence's axis has in places: its own, and what it was renamed to.
    copies: BTreeSet<Name>,
    /// Fixed values at the new positions, and moving ones appended to their caches: made once.
    at_rows: BTreeMap<(NodeId, Name), NodeId>,
    appended: BTreeMap<NodeId, NodeId>,
    caches: Vec<Cache>,
    causal: causal::Causal<'a>,
}

impl<'a> Walk<'a> {
    fn new(from: &'a Graph, to: Graph, axis: Axis, rows: Rows, pos: NodeId, mut copies: BTreeSet<Name>) -> Walk<'a> {
        copies.insert(axis.name.clone());
        for id in from.ids() {
            if let Op::Rename(pairs) = from.op(id) {
                let axes = &from.ty(from.args(id)[0]).axes;
                let had = |old: &Name| copies.contains(old) && axes.size(old) == Some(axis.size);
                let new: Vec<Name> = pairs.iter().filter(|(old, _)| had(old)).map(|(_, new)| new.clone()).collect();
                copies.extend(new);
            }
        }
        let values = vec![None; from.nodes().len()];
        let (loops, at_rows, appended) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let causal = causal::Causal::new(from);
        let (caches, can_go_back) = (Vec::new(), true);
        Walk { from, to, axis, rows, pos, can_go_back, values, loops, copies, at_rows, appended, caches, causal }
    }

    fn refuse<T>(&self, id: NodeId, message: impl Into<String>) -> Result<T, DecodeError> {
        Err(DecodeError { message: message.into(), span: self.from.node(id).span })
    }

    fn run(&mut self, inputs: &[Value]) -> Result<(), DecodeError> {
        let live = self.from.live();
        for id in self.from.ids().filter(|id| live[id.idx()]) {
            let args = self.from.args(id);
            let value = match self.from.op(id) {
                Op::Input(input) => inputs[input.0 as usize].clone(),
                Op::Get(k) if self.loops.contains_key(&args[0]) => self.loops[&args[0]][*k as usize].clone(),
                _ if args.iter().all(|arg| matches!(self.values[arg.idx()], Some(Value::Fixed { .. }))) => {
                    let args: Vec<NodeId> = args.iter().map(|arg| self.node(*arg)).collect();
                    Value::Fixed { full: self.to.copy(self.from, id, &args) }
                }
                _ if args.iter().any(|arg| matches!(self.values[arg.idx()], Some(Value::Ahead))) => {
                    return self.refuse(
                        id,
                        "the last value of a loop over the text depends on positions that are still to come",
                    );
                }
                Op::Loop(inner) => {
                    self.to.set_here_like(self.from.node(id));
                    let results = self.derive_loop(id, inner)?;
                    self.loops.insert(id, results);
                    continue;
                }
                _ => self.derive(id)?,
            };
            self.values[id.idx()] = Some(value);
        }
        Ok(())
    }

    fn node(&self, id: NodeId) -> NodeId {
        match self.values[id.idx()] {
            Some(Value::Fixed { full: node } | Value::Moving { node, .. }) => node,
            _ => mdl_graph::bug!("{id} is used before it is derived"),
        }
    }

    /// The axis along which a value holds the new positions only.
    fn along(&self, id: NodeId) -> Option<Name> {
        match &self.values[id.idx()] {
            Some(Value::Moving { along, .. }) => Some(along.clone()),
            _ => None,
        }
    }

    fn is_copy(&self, axis: &Axis) -> bool {
        axis.size == self.axis.size && self.copies.contains(&axis.name)
    }

    /// The new positions, along `name`: `pos + iota`.
    fn positions(&mut self, name: &Name) -> NodeId {
        let iota = self.to.iota(Axis::new(name.clone(), self.rows.count));
        self.to.add(Op::Add, &[self.pos, iota])
    }

    /// A value at the new positions along `name`: itself when it moves along it, else made of what it is made of.
    fn at(&mut self, id: NodeId, name: &Name) -> Result<NodeId, DecodeError> {
        match &self.values[id.idx()] {
            Some(Value::Moving { along, node }) if along == name => return Ok(*node),
            Some(Value::Fixed { full }) if !self.from.ty(id).axes.contains(name) => return Ok(*full),
            Some(Value::Fixed { .. }) => {}
            _ => return self.refuse(id, format!("this has positions that are still to come along `{name}`")),
        }
        if let Some(done) = self.at_rows.get(&(id, name.clone())) {
            return Ok(*done);
        }
        let node = self.from.node(id);
        let made = match &node.op {
            Op::Iota(_) => self.positions(name),
            // Computing a few rows again is cheaper than keeping all of them: masks are made of positions.
            op if op.class() == Class::Map => {
                let args = node.args.iter().map(|arg| self.at(*arg, name)).collect::<Result<Vec<_>, _>>()?;
                self.to.copy(self.from, id, &args)
            }
            _ => {
                let (index, full) = (self.positions(name), self.node(id));
                self.to.add(Op::Gather { axis: name.clone() }, &[full, index])
            }
        };
        self.at_rows.insert((id, name.clone()), made);
        Ok(made)
    }

    /// A cache that starts as zeros.
    fn cache(&mut self, id: NodeId, ty: Type) -> Result<(Name, InputId, NodeId), DecodeError> {
        if let Some(axis) = self.rows.pos.iter().find(|axis| !ty.axes.contains(&axis.name)) {
            let message = format!(
                "this is kept for all sequences of `{}` at once, and they are at positions of their own",
                axis.name
            );
            return self.refuse(id, message);
        }
        // Inputs are told apart by their names, and the number of inputs tells the names apart.
        let name = Name::from(format!("cache/{}/{}", self.from.node(id).scope, self.to.inputs().len()));
        let node = self.to.input(name.clone(), InputKind::State, ty);
        match *self.to.op(node) {
            Op::Input(input) => Ok((name, input, node)),
            _ => mdl_graph::bug!("an input is no input"),
        }
    }

    /// All positions so far of a value that holds the new ones: they are put into a cache.
    fn append(&mut self, id: NodeId) -> Result<NodeId, DecodeError> {
        if let Some(done) = self.appended.get(&id) {
            return Ok(*done);
        }
        let Some(Value::Moving { node: rows, along }) = self.values[id.idx()].clone() else { return Ok(self.node(id)) };
        let ty = self.from.ty(id).clone();
        if ty.axes.iter().any(|axis| self.is_copy(axis) && axis.name != along) {
            return self.refuse(id, "this pairs positions with positions, and is used as one of the two");
        }
        let (name, input, before) = self.cache(id, ty)?;
        let axis = Axis::new(along.clone(), self.axis.size);
        // The row's axis gets a name of its own, so that the result's is free.
        let spot = [(along.clone(), Name::from("spot~"))];
        let index = self.positions(&along);
        let index = self.to.rename(index, spot.clone());
        let rows = self.to.rename(rows, spot);
        // One row is the same wherever it is put, and only one place takes it: a map over the cache.
        let put = if self.rows.count == 1 {
            self.to.sum(rows, [Name::from("spot~")])
        } else {
            let keep = self.rows.pos.names().cloned().collect();
            let scatter = Op::Scatter { axis: axis.clone(), keep, kind: ScatterKind::Put };
            self.to.add(scatter, &[rows, index])
        };
        // New are the positions from `pos` to `pos + rows`.
        let all = self.to.iota(axis);
        let count = self.to.constant(self.rows.count as f64, DType::I32);
        let end = self.to.add(Op::Add, &[self.pos, count]);
        let is_past = self.to.add(Op::Less, &[all, self.pos]);
        let is_present = self.to.add(Op::Not, &[is_past]);
        let is_reached = self.to.add(Op::Less, &[all, end]);
        let is_new = self.to.add(Op::And, &[is_present, is_reached]);
        let next = self.to.add(Op::Select, &[is_new, put, before]);
        self.caches.push(Cache { name, input, next });
        self.appended.insert(id, next);
        Ok(next)
    }

    /// The axis along which a node's result holds the new positions: where two copies meet, that of the one who asks, `t` before
    /// `t'`.
    fn result_along(&self, id: NodeId) -> Name {
        let node = self.from.node(id);
        let mut found: BTreeSet<Name> = node.args.iter().filter_map(|arg| self.along(*arg)).collect();
        let types = node.args.iter().map(|arg| self.from.ty(*arg)).chain([&node.ty]);
        for axis in types.flat_map(|ty| ty.axes.iter()) {
            let asks = axis.name == self.axis.name || found.contains(&axis.name.twin());
            if asks && self.is_copy(axis) {
                found.insert(axis.name.clone());
            }
        }
        let is_base = |name: &Name| found.contains(&name.twin());
        let rank = |name: &Name| (*name != self.axis.name, !is_base(name));
        match found.iter().min_by_key(|name| rank(name)) {
            Some(name) => name.clone(),
            None => mdl_graph::bug!("{id} moves along no axis"),
        }
    }

    fn derive(&mut self, id: NodeId) -> Result<Value, DecodeError> {
        let node = self.from.node(id);
        let mut along = self.result_along(id);
        if let Op::Rename(_) = node.op
            && let Some(own) = self.along(node.args[0])
        {
            along = own;
        }
        self.to.set_here_like(node);
        let copies: BTreeSet<Name> = node
            .args
            .iter()
            .flat_map(|arg| self.from.ty(*arg).axes.iter())
            .filter(|axis| self.is_copy(axis) && axis.name != along)
            .map(|axis| axis.name.clone())
            .collect();
        if !matches!(node.op, Op::Rename(_)) {
            if let Op::Prefix { axis, reverse: false } = &node.op
                && *axis == along
            {
                return self.running_sum(id, node.args[0], along);
            }
            if mentions(&node.op, &along) {
                return self
                    .refuse(id, format!("`{}` over `{along}` needs positions that are still to come", node.op.name()));
            }
            for copy in copies.iter().filter(|copy| mentions(&node.op, copy)) {
                if !matches!(node.op, Op::Sum(_) | Op::MaxOver(_) | Op::Contract(_)) {
                    let message = format!("`{}` over `{copy}` needs positions that are still to come", node.op.name());
                    return self.refuse(id, message);
                }
                if !self.causal.is_neutral(id, &along, copy) {
                    let message = format!(
                        "this sum over `{copy}` sees positions after `{along}`; a mask such as `index[{copy}] <= index[{along}]` hides them"
                    );
                    return self.refuse(id, message);
                }
            }
        }
        let mut args = Vec::new();
        for arg in &node.args {
            args.push(match self.along(*arg) {
                Some(other) if other != along => self.append(*arg)?,
                _ => self.at(*arg, &along)?,
            });
        }
        let op = match &node.op {
            Op::Expand(axes) => {
                // Where sequences are at positions of their own, a value may have their axes before it is expanded.
                let has = |axis: &&Axis| !self.to.ty(args[0]).axes.contains(&axis.name);
                let fit = |axis: &Axis| {
                    if axis.name == along { Axis::new(along.clone(), self.rows.count) } else { axis.clone() }
                };
                Op::Expand(axes.iter().filter(has).map(fit).collect())
            }
            op => op.clone(),
        };
        if let Op::Rename(pairs) = &op
            && let Some((_, new)) = pairs.iter().find(|(old, _)| *old == along)
        {
            along = new.clone();
        }
        let made = self.to.try_add(op, &args);
        let node = made.map_err(|ShapeError(message)| DecodeError { message, span: node.span })?;
        Ok(Value::Moving { node, along })
    }

    /// A running sum keeps what it has reached.
    fn running_sum(&mut self, id: NodeId, arg: NodeId, along: Name) -> Result<Value, DecodeError> {
        if self.rows.is_padded {
            // Rows that pad a prompt would be summed too.
            return self.refuse(id, "a running sum is read one position at a time");
        }
        self.can_go_back = false;
        let x = self.at(arg, &along)?;
        let mut ty = self.to.ty(x).clone();
        ty.axes.remove(&along);
        let (name, input, before) = self.cache(id, ty)?;
        let sums = match self.rows.count {
            1 => x,
            _ => self.to.copy(self.from, id, &[x]),
        };
        let node = self.to.add(Op::Add, &[sums, before]);
        let sum = self.to.sum(x, [along.clone()]);
        let next = self.to.add(Op::Add, &[before, sum]);
        self.caches.push(Cache { name, input, next });
        Ok(Value::Moving { node, along })
    }

    /// A loop over the sequence keeps its carries; one over another axis has its body derived, its caches stacked.
    fn derive_loop(&mut self, id: NodeId, inner: &Loop) -> Result<Vec<Value>, DecodeError> {
        if self.is_copy(&inner.axis) { self.derive_scan(id, inner) } else { self.derive_repeat(id, inner) }
    }

    fn derive_scan(&mut self, id: NodeId, inner: &Loop) -> Result<Vec<Value>, DecodeError> {
        if inner.reverse || inner.until {
            return self.refuse(id, format!("a loop that runs backwards along `{}` looks ahead", inner.axis.name));
        }
        if self.rows.is_padded {
            // Rows that pad a prompt would go into the carries.
            return self.refuse(id, "a recurrent model is read one position at a time");
        }
        self.can_go_back = false;
        let args = self.from.args(id).to_vec();
        let (mut made, mut carries) = (Vec::new(), Vec::new());
        for (i, arg) in args.iter().enumerate() {
            if i < inner.carries {
                if self.along(*arg).is_some() {
                    return self.refuse(id, "the start of this loop depends on the sequence");
                }
                // The first call starts where the model does, later ones where the last one ended.
                let start = self.node(*arg);
                let (name, input, before) = self.cache(id, self.to.ty(start).clone())?;
                let zero = self.to.constant(0.0, DType::I32);
                let is_first = self.to.add(Op::Equal, &[self.pos, zero]);
                made.push(self.to.add(Op::Select, &[is_first, start, before]));
                carries.push((name, input));
            } else if i < inner.carries + inner.scans {
                made.push(self.at(*arg, &inner.axis.name)?);
            } else {
                made.push(self.node(*arg));
            }
        }
        let axis = Axis::new(inner.axis.name.clone(), self.rows.count);
        let results = self.to.loop_over(Loop { axis, ..inner.clone() }, &made);
        for ((name, input), next) in carries.into_iter().zip(&results) {
            self.caches.push(Cache { name, input, next: *next });
        }
        let value = |(k, node)| match k < inner.carries {
            true => Value::Ahead,
            false => Value::Moving { node, along: inner.axis.name.clone() },
        };
        Ok(results.into_iter().enumerate().map(value).collect())
    }

    fn derive_repeat(&mut self, id: NodeId, inner: &Loop) -> Result<Vec<Value>, DecodeError> {
        if inner.until {
            return self.refuse(id, "a loop that ends early depends on all positions");
        }
        let args = self.from.args(id).to_vec();
        // What is made of positions alone is handed in at the new ones, rather than whole.
        let name = &self.axis.name;
        let own = |arg: &NodeId| self.from.ty(*arg).axes.contains(name).then(|| name.clone());
        let mut moving: Vec<Option<Name>> = args.iter().map(|arg| self.along(*arg).or_else(|| own(arg))).collect();
        // A carry that starts fixed may come out depending on the sequence: then it does so from the start. And where sequences
        // are at positions of their own, a carry may get their axes.
        let mut more = vec![AxisSet::default(); inner.carries];
        loop {
            let mut values = Vec::new();
            for (i, (arg, along)) in args.iter().zip(&moving).enumerate() {
                let value = match along {
                    Some(along) => self.at(*arg, along)?,
                    None => self.node(*arg),
                };
                let missing = more.get(i).map(|more| more.minus(&self.to.ty(value).axes)).unwrap_or_default();
                values.push(match missing.is_empty() {
                    true => value,
                    false => self.to.add(Op::Expand(missing.iter().cloned().collect()), &[value]),
                });
            }
            let types: Vec<Type> = values
                .iter()
                .enumerate()
                .map(|(i, value)| {
                    let mut ty = self.to.ty(*value).clone();
                    if i >= inner.carries && i < inner.carries + inner.scans {
                        ty.axes.remove(&inner.axis.name);
                    }
                    ty
                })
                .collect();
            let body = self.derive_body(id, inner, &args, &moving, &types)?;
            let mut stable = true;
            for (carry, (_, out)) in moving.iter_mut().zip(&body.outputs).take(inner.carries) {
                if carry != out && carry.is_some() {
                    return self.refuse(id, "a carry of this loop changes its axis");
                }
                stable &= carry == out;
                carry.clone_from(out);
            }
            for ((more, ty), (out, _)) in more.iter_mut().zip(&types).zip(&body.outputs) {
                let missing = body.graph.ty(*out).axes.minus(&ty.axes);
                let grown = more.union(&missing).ok().filter(|_| stable);
                stable &= missing.is_empty();
                *more = grown.unwrap_or_default();
            }
            if stable {
                return self.place_body(inner, &values, body);
            }
        }
    }

    fn derive_body(
        &mut self,
        id: NodeId,
        inner: &Loop,
        args: &[NodeId],
        moving: &[Option<Name>],
        types: &[Type],
    ) -> Result<Body, DecodeError> {
        let mut to = Graph::new();
        let mut inputs = Vec::new();
        for ((input, along), ty) in inner.body.inputs().iter().zip(moving).zip(types) {
            let node = to.input(input.name.clone(), InputKind::Param, ty.clone());
            inputs.push(match along {
                Some(along) => Value::Moving { node, along: along.clone() },
                None => Value::Fixed { full: node },
            });
        }
        let pos = to.input(POS, InputKind::Param, Type::new(DType::I32, self.rows.pos.clone()));
        let mut walk = Walk::new(&inner.body, to, self.axis.clone(), self.rows.clone(), pos, self.copies.clone());
        walk.causal = self.causal.of_body(inner, args, &walk.copies);
        walk.run(&inputs)?;
        let mut outputs = Vec::new();
        for (k, output) in inner.body.outputs().iter().enumerate() {
            let along =
                walk.along(output.node).or_else(|| moving.get(k).cloned().flatten().filter(|_| k < inner.carries));
            let node = match &along {
                Some(along) => walk.at(output.node, along)?,
                None if matches!(walk.values[output.node.idx()], Some(Value::Ahead)) => {
                    return self.refuse(
                        id,
                        "the last value of a loop over the text depends on positions that are still to come",
                    );
                }
                None => walk.node(output.node),
            };
            // A carry that has grown stays so.
            let missing = types.get(k).filter(|_| k < inner.carries).map(|ty| ty.axes.minus(&walk.to.ty(node).axes));
            let node = match missing.filter(|missing| !missing.is_empty()) {
                Some(missing) => walk.to.add(Op::Expand(missing.iter().cloned().collect()), &[node]),
                None => node,
            };
            outputs.push((node, along));
        }
        self.can_go_back &= walk.can_go_back;
        Ok(Body { graph: walk.to, outputs, caches: walk.caches })
    }

    /// Puts a derived body into a loop: its inputs in the order carries, scanned values, caches, free values, `pos`.
    fn place_body(&mut self, inner: &Loop, values: &[NodeId], derived: Body) -> Result<Vec<Value>, DecodeError> {
        let Body { graph, outputs, caches } = derived;
        let split = inner.carries + inner.scans;
        let mut stacked = Vec::new();
        for cache in &caches {
            let mut ty = graph.inputs()[cache.input.0 as usize].ty.clone();
            ty.axes.insert(inner.axis.clone());
            let name = Name::from(format!("{}/{}", cache.name, self.to.inputs().len()));
            let node = self.to.input(name.clone(), InputKind::State, ty);
            let Op::Input(input) = *self.to.op(node) else { mdl_graph::bug!("an input is no input") };
            stacked.push((name, input, node));
        }
        let is_cache = |k: &usize| caches.iter().any(|cache| cache.input.0 as usize == *k);
        let mut order: Vec<usize> = (0..split).collect();
        order.extend(caches.iter().map(|cache| cache.input.0 as usize));
        order.extend((split..graph.inputs().len()).filter(|k| !is_cache(k)));
        let mut body = Graph::new();
        let mut placed = vec![NodeId(0); graph.inputs().len()];
        for k in &order {
            let input = &graph.inputs()[*k];
            placed[*k] = body.input(input.name.clone(), InputKind::Param, input.ty.clone());
        }
        let mut ends: Vec<Output> = inner.body.outputs().to_vec();
        for (output, (node, _)) in ends.iter_mut().zip(&outputs) {
            output.node = *node;
        }
        let kept = |cache: &Cache| Output { name: cache.name.clone(), role: Role::Value, node: cache.next };
        ends.extend(caches.iter().map(kept));
        let mut whole = graph.clone();
        whole.set_outputs(ends.clone());
        for (output, node) in ends.iter().zip(body.inline(&whole, &placed)) {
            body.output_as(output.name.clone(), Role::Value, node);
        }
        let mut all: Vec<NodeId> = values[..split].to_vec();
        all.extend(stacked.iter().map(|(_, _, node)| *node));
        all.extend(&values[split..]);
        all.push(self.pos);
        let mut results = self.to.loop_over(Loop { scans: inner.scans + caches.len(), ..inner.with_body(body) }, &all);
        let nexts = results.split_off(results.len() - caches.len());
        for ((name, input, _), next) in stacked.into_iter().zip(nexts) {
            self.caches.push(Cache { name, input, next });
        }
        let value = |(node, (_, along))| match along {
            Some(along) => Value::Moving { node, along },
            None => Value::Fixed { full: node },
        };
        Ok(results.into_iter().zip(outputs).map(value).collect())
    }
}

struct Body {
    graph: Graph,
    /// The nodes of the body's outputs, and the axis along which each moves.
    outputs: Vec<(NodeId, Option<Name>)>,
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
        Op::Scatter { axis, keep, .. } => axis.name == *name || !keep.contains(name),
        _ => false,
    }
}
