//! Loops as one node of the graph: the body is evaluated once, in a graph of its own.
//!
//! `repeat` carries its first argument through stacked copies, `scan` and `fold` carry what their function gives back. A
//! carry may begin smaller than it becomes (a number, fewer axes, an integer): the body is evaluated again with what it
//! gave, until both agree. Hidden axes (`each`, picked copies, `map`) are not loops: the same text, one axis more.

use std::collections::BTreeMap;

use mdl_graph::{Axis, AxisSet, Graph, Loop, Name, NodeId, Op, Role, Type};

use super::Elaborator;
use super::arith::meet;
use super::graphs::{Feed, Level};
use super::scope::plain;
use super::states::Loss;
use super::tree::{Tree, unflatten};
use super::value::{Args, Env, Eval, Given, Stop, StoredId, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::Span;

/// What the body of a loop gives.
pub(super) struct Body {
    pub(super) next: Vec<Tensor>,
    pub(super) stacked: Vec<Tensor>,
    pub(super) until: Option<Tensor>,
    /// Losses of layers that are carried; `run_loop` fills it.
    pub(super) losses: Vec<Loss>,
}

/// The results of a loop, in the outer graph.
pub(super) struct LoopResults {
    pub(super) last: Vec<Tensor>,
    pub(super) stacked: Vec<Tensor>,
}

/// What is undone when a body is evaluated again.
struct Snapshot {
    n_losses: usize,
    n_found: usize,
    next: BTreeMap<StoredId, Tensor>,
    scope_next: Vec<BTreeMap<StoredId, Tensor>>,
    places: std::collections::HashMap<String, u32>,
    n_diagnostics: usize,
}

impl Elaborator<'_> {
    /// A loop along an axis. `body` gets the carries inside and is evaluated until their types stay.
    pub(super) fn run_loop(
        &mut self,
        axis: &Axis,
        reverse: bool,
        start: Vec<Tensor>,
        span: Span,
        start_span: Span,
        mut body: impl FnMut(&mut Self, Vec<Tensor>) -> Eval<Body>,
    ) -> Eval<LoopResults> {
        let n_carries = start.len();
        let mut start = start;
        let mut types: Vec<Type> = start.iter().map(|tensor| self.ty(tensor).clone()).collect();
        for _ in 0..6 {
            let snapshot = self.snapshot();
            self.n_levels += 1;
            let id = self.n_levels;
            self.levels.push(Level::new(id, Some(axis.clone())));
            let at = self.levels.len() - 1;
            let carries: Vec<Tensor> = types
                .iter()
                .enumerate()
                .map(|(k, ty)| Tensor { level: id, node: self.feed_as(at, Feed::Carry(k), ty.clone()), arrow: None })
                .collect();
            let mut carries = carries;
            let sums = carries.split_off(n_carries);
            let result = body(self, carries).and_then(|body| self.carry_losses(body, &snapshot, sums, span));
            let mut body_of = match result {
                Ok(body) => body,
                Err(stop) => {
                    self.levels.pop();
                    self.losses.truncate(snapshot.n_losses);
                    self.found.truncate(snapshot.n_found);
                    return Err(stop);
                }
            };
            if body_of.next.len() > types.len() {
                // Losses of a loop that may end early: the body is evaluated again with their sums as carries.
                for next in &body_of.next[types.len()..] {
                    let ty = self.ty(next).clone();
                    types.push(Type::new(ty.dtype, Default::default()));
                }
                self.levels.pop();
                self.restore(snapshot);
                while start.len() < types.len() {
                    start.push(self.number(0.0, mdl_graph::DType::F32, span)?);
                }
                continue;
            }
            let mut wanted = types.clone();
            for (ty, next) in wanted.iter_mut().zip(&body_of.next) {
                let next = self.ty(next).clone();
                if next.axes.contains(&axis.name) {
                    let message = format!("a value carried along `{}` has that axis itself", plain(&axis.name));
                    self.error(Code::E0218, message, span, "each step would make it larger");
                    self.levels.pop();
                    return Err(Stop);
                }
                match ty.axes.union(&next.axes) {
                    Ok(axes) => *ty = Type::new(meet(ty.dtype, next.dtype), axes),
                    Err(name) => {
                        let (a, b) = (ty.axes.size(&name).unwrap_or(0), next.axes.size(&name).unwrap_or(0));
                        let message =
                            format!("a carried value comes with `{}` = {a} and leaves with {b}", plain(&name));
                        let diagnostic = Diagnostic::error(Code::E0218, message)
                            .label(span, "this loop")
                            .label(start_span, format!("begins with {a}"))
                            .help("a value that goes around a loop keeps its axes");
                        self.push(diagnostic);
                        self.levels.pop();
                        return Err(Stop);
                    }
                }
            }
            if wanted == types {
                let losses = std::mem::take(&mut body_of.losses);
                let mut results = self.close_loop(axis, reverse, start, &types, body_of, span)?;
                for (loss, sum) in losses.into_iter().zip(results.last.split_off(n_carries)) {
                    self.losses.push(Loss { tensor: sum, ..loss });
                }
                return Ok(results);
            }
            types = wanted;
            self.levels.pop();
            self.restore(snapshot);
        }
        Err(self.error(
            Code::E0218,
            "a carried value grows with every step",
            span,
            "its axes or its dtype never settle",
        ))
    }

    /// In a loop that may end early nothing can be stacked, so the losses of layers are summed on the way: each is a carry
    /// more. `sums` are those carries, none when the body is evaluated for the first time.
    fn carry_losses(&mut self, mut body: Body, before: &Snapshot, sums: Vec<Tensor>, span: Span) -> Eval<Body> {
        if body.until.is_none() || self.losses.len() == before.n_losses {
            return Ok(body);
        }
        let losses = self.losses.split_off(before.n_losses);
        if !sums.is_empty() && sums.len() != losses.len() {
            mdl_graph::bug!("a body has {} losses and then {}", sums.len(), losses.len());
        }
        let mut sums = sums.into_iter();
        for loss in &losses {
            body.next.push(match sums.next() {
                Some(sum) => self.emit(Op::Add, &[&sum, &loss.tensor], span)?,
                None => loss.tensor.clone(),
            });
        }
        body.losses = losses;
        Ok(body)
    }

    fn close_loop(
        &mut self,
        axis: &Axis,
        reverse: bool,
        start: Vec<Tensor>,
        types: &[Type],
        body: Body,
        span: Span,
    ) -> Eval<LoopResults> {
        let level = self.level_id();
        let inner_losses: Vec<usize> =
            (0..self.losses.len()).filter(|i| self.losses[*i].tensor.level == level).collect();
        let mut outputs = Vec::new();
        for (next, ty) in body.next.iter().zip(types) {
            let next = self.cast(next, ty.dtype, span)?;
            let next = self.expand(&next, &ty.axes, span)?;
            outputs.push(self.node(&next));
        }
        let n_stacked = body.stacked.len();
        for tensor in &body.stacked {
            outputs.push(self.node(tensor));
        }
        for i in &inner_losses {
            let tensor = self.losses[*i].tensor.clone();
            outputs.push(self.node(&tensor));
        }
        let mut noted = Vec::new();
        for i in 0..self.found.len() {
            let value = self.found[i].value.clone();
            let (tree, tensors) = self.flatten(&value, span)?;
            if tensors.iter().any(|tensor| tensor.level == level) {
                for tensor in &tensors {
                    outputs.push(self.node(tensor));
                }
                noted.push((i, tree, tensors.len()));
            }
        }
        let n_noted: usize = noted.iter().map(|(_, _, n)| n).sum();
        if let Some(until) = &body.until {
            if n_noted > 0 {
                let message = "a layer called in a loop with `until` is watched";
                self.levels.pop();
                return Err(self.error(
                    Code::E0220,
                    message,
                    span,
                    "the loop may end early, so that its positions have no fixed number",
                ));
            }
            outputs.push(self.node(until));
        }
        let Some(Level { mut graph, feeds, .. }) = self.levels.pop() else { return Err(Stop) };
        for (k, node) in outputs.iter().enumerate() {
            graph.output_as(format!("{k}"), Role::Value, *node);
        }
        // Only what the body uses, in the order carries, scanned, free.
        let live = graph.live();
        let inputs: Vec<NodeId> = graph.ids().filter(|id| matches!(graph.op(*id), Op::Input(_))).collect();
        let mut order: Vec<usize> = (0..feeds.len()).filter(|i| matches!(feeds[*i], Feed::Carry(_))).collect();
        let carries = order.len();
        let is_used = |i: &usize| live[inputs[*i].idx()];
        order.extend((0..feeds.len()).filter(|i| matches!(feeds[*i], Feed::Scan(_))).filter(is_used));
        let scans = order.len() - carries;
        order.extend((0..feeds.len()).filter(|i| matches!(feeds[*i], Feed::Free(_))).filter(is_used));
        let mut ordered = Graph::new();
        let mut map: Vec<Option<NodeId>> = vec![None; feeds.len()];
        for i in &order {
            let input = &graph.inputs()[*i];
            map[*i] = Some(ordered.input(input.name.clone(), input.kind, input.ty.clone()));
        }
        // Unused inputs are not asked for: any node may stand for them.
        let some = map.iter().flatten().next().copied().unwrap_or(NodeId(0));
        let given: Vec<NodeId> = map.into_iter().map(|node| node.unwrap_or(some)).collect();
        let results = ordered.inline(&graph, &given);
        for (output, node) in graph.outputs().iter().zip(results) {
            ordered.output_as(output.name.clone(), Role::Value, node);
        }
        let mut args = Vec::new();
        for i in order {
            args.push(match feeds[i] {
                Feed::Carry(k) => {
                    let tensor = self.cast(&start[k], types[k].dtype, span)?;
                    let tensor = self.expand(&tensor, &types[k].axes, span)?;
                    self.node(&tensor)
                }
                Feed::Scan(node) | Feed::Free(node) => node,
            });
        }
        let until = body.until.is_some();
        let inner = Loop { axis: axis.clone(), reverse, carries, scans, until, body: ordered };
        let args: Vec<Tensor> = args.into_iter().map(|node| self.tensor(node)).collect();
        let node = self.emit(Op::Loop(Box::new(inner)), &args.iter().collect::<Vec<_>>(), span)?;
        let mut results = Vec::new();
        for k in 0..carries + n_stacked + inner_losses.len() + n_noted {
            results.push(self.emit(Op::Get(k as u32), &[&node], span)?);
        }
        let mut seen = results.split_off(carries + n_stacked + inner_losses.len()).into_iter();
        for (i, tree, _) in noted {
            self.found[i].value = unflatten(&tree, &mut seen);
        }
        let losses = results.split_off(carries + n_stacked);
        for (i, stacked) in inner_losses.into_iter().zip(losses) {
            self.losses[i].tensor = self.sum_over(&stacked, std::slice::from_ref(&axis.name), span)?;
        }
        let stacked = results.split_off(carries);
        Ok(LoopResults { last: results, stacked })
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            n_losses: self.losses.len(),
            n_found: self.found.len(),
            next: self.next.clone(),
            scope_next: self.scopes.iter().map(|scope| scope.next.clone()).collect(),
            places: self.places.clone(),
            n_diagnostics: self.diagnostics.len(),
        }
    }

    fn restore(&mut self, snapshot: Snapshot) {
        self.losses.truncate(snapshot.n_losses);
        self.found.truncate(snapshot.n_found);
        self.next = snapshot.next;
        for (scope, next) in self.scopes.iter_mut().zip(snapshot.scope_next) {
            scope.next = next;
        }
        self.places = snapshot.places;
        self.diagnostics.truncate(snapshot.n_diagnostics);
        self.loop_states.pop();
    }

    /// A value inside of a loop's body: tensors that have the axis are cut along it, others come whole.
    pub(super) fn cut(&mut self, value: &Value, axis: &Axis) -> Eval<Value> {
        let axis = axis.clone();
        self.each_tensor(value, &mut |elab, tensor| {
            if !elab.axes(tensor).contains(&axis.name) {
                return Ok(tensor.clone());
            }
            let at = elab.levels.len() - 1;
            let outer = elab.node_at(tensor, at - 1);
            let node = elab.feed(at, Feed::Scan(outer));
            Ok(elab.tensor(node))
        })
    }

    /// The position of the innermost loop, `i32[]`.
    pub(super) fn loop_position(&mut self, at: usize, span: Span) -> Eval<Tensor> {
        let Some(axis) = self.levels[at].axis.clone() else { mdl_graph::bug!("no loop is open") };
        let _ = span;
        let outer = self.levels[at - 1].graph.iota(axis);
        let node = self.feed(at, Feed::Scan(outer));
        Ok(Tensor { level: self.levels[at].id, node, arrow: None })
    }

    // ---- scan, fold, map ----

    /// The axis of `scan[t]`, `fold[step: 8]`, `map[row]`.
    pub(super) fn loop_axis(
        &mut self,
        given: Option<&Given>,
        what: &str,
        args: &Args,
        span: Span,
    ) -> Eval<(Axis, Env)> {
        let help = format!("name the axis in brackets: `{what}[t](…)`");
        let Some(given) = given else {
            return Err(self.error_help(
                Code::E0208,
                format!("`{what}` is not given its axis"),
                span,
                "this call",
                help,
            ));
        };
        let resolved = self.resolve_given(given)?;
        let [item] = resolved.items.as_slice() else {
            return Err(self.error_help(Code::E0208, format!("`{what}` takes one axis"), resolved.span, "these", help));
        };
        let [(name, size)] = item.axes.as_slice() else {
            return Err(self.error_help(Code::E0208, format!("`{what}` takes one axis"), item.span, "this", help));
        };
        // A slice keeps the name: the size is that of what is passed.
        let mut found = None;
        for (value, _) in &args.positional {
            self.find_size(value, name, &mut found);
        }
        match found.or(*size) {
            Some(size) => Ok((Axis::new(name.clone(), size), given.env.clone())),
            None => Err(self.unknown_axis(&given.env, name, item.span)),
        }
    }

    fn find_size(&self, value: &Value, name: &Name, found: &mut Option<u64>) {
        match value {
            Value::Tensor(tensor) => *found = found.or(self.axes(tensor).size(name)),
            Value::Tuple(items) | Value::List(items) => items.iter().for_each(|item| self.find_size(item, name, found)),
            Value::Record(fields) => fields.iter().for_each(|(_, field)| self.find_size(field, name, found)),
            _ => {}
        }
    }

    /// `scan` gives every carry along the axis, `fold` the last one.
    pub(super) fn scan_or_fold(&mut self, call: &mut super::builtins::Call<'_>, is_scan: bool) -> Eval<Value> {
        let what = if is_scan { "scan" } else { "fold" };
        let span = call.span;
        let mut args = std::mem::take(&mut call.args);
        let (axis, env) = self.loop_axis(call.given.as_ref(), what, &args, span)?;
        let reverse = match self.take_named(&mut args, "reverse") {
            Some((Value::Bool(value), _)) => value,
            Some((other, place)) => {
                return Err(self.error(
                    Code::E0209,
                    format!("`reverse` is a Bool, not {}", other.kind()),
                    place,
                    "this",
                ));
            }
            None => false,
        };
        let until = self.take_named(&mut args, "until");
        if let (true, Some((_, place))) = (is_scan, &until) {
            let help = "`fold` may end early; it gives the last carry";
            return Err(self.error_help(Code::E0208, "`scan` has no `until`", *place, "every position is kept", help));
        }
        self.no_more_named(&args, what)?;
        let (Some((function, function_span)), true) = (args.positional.pop(), !args.positional.is_empty()) else {
            let help = format!("`{what}[t](start, inputs…) fn(carry, x…) = next`");
            return Err(self.error_help(
                Code::E0208,
                format!("`{what}` takes a start and a function"),
                span,
                "this call",
                help,
            ));
        };
        let (start, start_span) = args.positional.remove(0);
        let (tree, start) = self.flatten(&start, start_span)?;
        for (value, place) in &args.positional {
            if let Value::Tensor(tensor) = value
                && let Some(size) = self.axes(tensor).size(&axis.name)
                && size != axis.size
            {
                let message = format!(
                    "axis `{}` is {} in one input of `{what}` and {size} in another",
                    plain(&axis.name),
                    axis.size
                );
                return Err(self.error(Code::E0204, message, *place, format!("{size} here")));
            }
        }
        let results = self.run_loop(&axis, reverse, start, span, start_span, |elab, carries| {
            let level = elab.level_id();
            env.frame.dead.borrow_mut().push((axis.name.clone(), level));
            let result =
                elab.loop_body(&env, &axis, &tree, carries, &args, (&function, function_span), until.as_ref(), span);
            env.frame.dead.borrow_mut().pop();
            let (next, until) = result?;
            let stacked = if is_scan { next.clone() } else { Vec::new() };
            Ok(Body { next, stacked, until, losses: Vec::new() })
        })?;
        let tensors = if is_scan { results.stacked } else { results.last };
        Ok(unflatten(&tree, &mut tensors.into_iter()))
    }

    #[expect(clippy::too_many_arguments, reason = "one step of a loop needs all that the loop was given")]
    fn loop_body(
        &mut self,
        env: &Env,
        axis: &Axis,
        tree: &Tree,
        carries: Vec<Tensor>,
        args: &Args,
        (function, function_span): (&Value, Span),
        until: Option<&(Value, Span)>,
        span: Span,
    ) -> Eval<(Vec<Tensor>, Option<Tensor>)> {
        let mut inside = vec![(unflatten(tree, &mut carries.into_iter()), span)];
        for (value, place) in &args.positional {
            inside.push((self.cut(value, axis)?, *place));
        }
        let result = self.call_in(env, function, Args::of(inside), function_span)?;
        let (_, next) = self.flatten_like(tree, &result, function_span)?;
        let Some((until, place)) = until else { return Ok((next, None)) };
        let done = self.call_in(env, until, Args::of([(result, span)]), *place)?;
        let operand = self.operand(&done, *place, "`until`")?;
        let done = self.tensor_of(&operand, *place)?;
        if self.dtype(&done) != mdl_graph::DType::Bool {
            return Err(self.error(Code::E0207, "`until` gives a boolean", *place, "this gives numbers"));
        }
        // It holds everywhere when nowhere it does not.
        let not = self.emit(Op::Not, &[&done], span)?;
        let not = self.cast(&not, mdl_graph::DType::I32, span)?;
        let names: Vec<Name> = self.axes(&not).names().cloned().collect();
        let most = if names.is_empty() { not } else { self.emit(Op::MaxOver(names), &[&not], span)? };
        let zero = self.number(0.0, mdl_graph::DType::I32, span)?;
        Ok((next, Some(self.emit(Op::Equal, &[&most, &zero], span)?)))
    }

    /// `map[row](rows) fn(row) = …`
    pub(super) fn map_axis(&mut self, call: &mut super::builtins::Call<'_>) -> Eval<Value> {
        let span = call.span;
        let mut args = std::mem::take(&mut call.args);
        let (axis, env) = self.loop_axis(call.given.as_ref(), "map", &args, span)?;
        self.no_more_named(&args, "map")?;
        let Some((function, function_span)) = args.positional.pop() else {
            return Err(self.error(Code::E0208, "`map` takes inputs and a function", span, "this call"));
        };
        let hidden = self.fresh(axis.name.as_str());
        let args = self.rename_args(&args, &[(axis.name.clone(), hidden.clone())], span)?;
        let own = Axis::new(hidden.clone(), axis.size);
        self.hidden.push(own.clone());
        self.n_mapped += 1;
        let level = u32::MAX;
        env.frame.dead.borrow_mut().push((axis.name.clone(), level));
        let (n_losses, n_found) = (self.losses.len(), self.found.len());
        let result = self.call_in(&env, &function, args, function_span);
        env.frame.dead.borrow_mut().pop();
        self.n_mapped -= 1;
        self.hidden.pop();
        let result = result?;
        self.rename_found(n_found, span, &|_, _| vec![(hidden.clone(), axis.name.clone())])?;
        self.sum_losses(n_losses, std::slice::from_ref(&hidden))?;
        let own = AxisSet::of([own]).unwrap_or_default();
        self.each_tensor(&result, &mut |elab, tensor| {
            let tensor = elab.expand(tensor, &own, span)?;
            elab.rename(&tensor, &[(hidden.clone(), axis.name.clone())], span)
        })
    }
}
