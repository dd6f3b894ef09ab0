//! Loops as one node of the graph: the body is evaluated once, in a graph of its own.
//!
//! `repeat` carries its first argument through stacked copies, `scan` and `fold` carry what their function gives back. A
//! carry may begin smaller than it becomes (a number, fewer axes, an integer): the body is evaluated again with what it
//! gave, until both agree. Hidden axes (`each`, picked copies, `map`) are not loops: the same text, one axis more.

use std::collections::BTreeMap;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, Graph, Loop, Name, NodeId, Op, Role, Type};

use super::Elaborator;
use super::arith::meet;
use super::graphs::{Feed, Level};
use super::scope::plain;
use super::value::{Args, Copies, Env, Eval, GatherCopies, Given, Layer, Stop, StoredId, StoredKind, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{self, CopiesKind, Span};

/// Copies that calls are inside of.
pub(super) struct CopiesScope {
    pub(super) id: u32,
    kind: ScopeKind,
    /// New values of states, cut as the scope cuts, in graph names.
    pub(super) next: BTreeMap<StoredId, Tensor>,
}

enum ScopeKind {
    /// The body of a loop.
    Loop { level: u32, axis: Axis },
    /// The copies' axis goes along under a hidden name.
    Each { hidden: Name },
    /// Copies picked by an index whose axes are hidden.
    Picked { index: Tensor },
}

/// A `loss` of a layer.
#[derive(Clone)]
pub(super) struct Loss {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    pub(super) span: Span,
}

/// What the body of a loop gives.
pub(super) struct Body {
    pub(super) next: Vec<Tensor>,
    pub(super) stacked: Vec<Tensor>,
    pub(super) until: Option<Tensor>,
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

/// The tensors of a value, and how to put it together again.
pub(super) enum Tree {
    Leaf,
    Whole(Value),
    Tuple(Vec<Tree>),
    List(Vec<Tree>),
    Record(Vec<(Rc<str>, Tree)>),
}

impl Elaborator<'_> {
    // ---- copies ----

    /// A stored tensor, in graph names, one copy of it: what the scope at `at` makes of it.
    pub(super) fn enter_copies(&mut self, at: usize, graph: &Axis, tensor: &Tensor, span: Span) -> Eval<Tensor> {
        match &self.scopes[at].kind {
            ScopeKind::Loop { level, axis } => {
                let (level, axis) = (*level, axis.clone());
                let Some(position) = self.levels.iter().position(|known| known.id == level) else {
                    mdl_graph::bug!("a scope of a loop that is closed")
                };
                let outer = self.node_at(tensor, position - 1);
                let outer = self.levels[position - 1].graph.rename(outer, [(graph.name.clone(), axis.name)]);
                let node = self.feed(position, Feed::Scan(outer));
                Ok(Tensor { level, node, arrow: None })
            }
            ScopeKind::Each { hidden } => {
                let pairs = [(graph.name.clone(), hidden.clone())];
                self.rename(tensor, &pairs, span)
            }
            ScopeKind::Picked { index } => {
                let index = index.clone();
                self.emit(Op::Gather { axis: graph.name.clone() }, &[tensor, &index], span)
            }
        }
    }

    /// The node of a tensor in the graph at a position of the stack.
    fn node_at(&mut self, tensor: &Tensor, position: usize) -> NodeId {
        let Some(mut at) = self.levels.iter().position(|level| level.id == tensor.level) else {
            mdl_graph::bug!("a tensor of a graph that is closed: {}", tensor.node)
        };
        let mut node = tensor.node;
        while at < position {
            node = self.feed(at + 1, Feed::Free(node));
            at += 1;
        }
        node
    }

    pub(super) fn call_repeat(
        &mut self,
        env: &Env,
        copies: &Rc<Copies>,
        inner: &Layer,
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let Some((carry, carry_span)) = args.positional.first().cloned() else {
            return Err(self.error(Code::E0208, "a repeated layer takes what goes through it", span, "called without"));
        };
        let axis = copies.axis.clone();
        let (tree, start) = self.flatten(&carry, carry_span)?;
        if let Some(bad) = start.iter().find(|tensor| self.axes(tensor).contains(&axis.name)) {
            let has = self.show_axes(&self.axes(bad).clone());
            let message = format!("what goes through `repeat[{}]` has that axis itself", axis.name);
            let help = format!("rename it: `[{} as other]`", axis.name);
            return Err(self.error_help(Code::E0218, message, carry_span, format!("this has {has}"), help));
        }
        let results = self.run_loop(&axis, false, start, span, carry_span, |elab, carries| {
            let level = elab.level_id();
            elab.scopes.push(CopiesScope {
                id: copies.id,
                kind: ScopeKind::Loop { level, axis: axis.clone() },
                next: BTreeMap::new(),
            });
            let mut inside = args.clone();
            inside.positional[0].0 = unflatten(&tree, &mut carries.into_iter());
            for (value, _) in inside.positional[1..].iter_mut() {
                *value = elab.cut(value, &axis)?;
            }
            for (_, value, _) in &mut inside.named {
                *value = elab.cut(value, &axis)?;
            }
            let result = elab.call_layer(env, inner, given, inside, span);
            let scope = elab.scopes.pop();
            let (_, next) = elab.flatten_like(&tree, &result?, span)?;
            let mut stacked = Vec::new();
            let mut ids = Vec::new();
            if let Some(scope) = scope {
                for (id, tensor) in scope.next {
                    ids.push(id);
                    stacked.push(tensor);
                }
            }
            elab.loop_states.push(ids);
            Ok(Body { next, stacked, until: None })
        })?;
        let ids = self.loop_states.pop().unwrap_or_default();
        for (id, tensor) in ids.into_iter().zip(results.stacked) {
            let tensor = self.rename(&tensor, &[(axis.name.clone(), copies.graph.name.clone())], span)?;
            self.leave_next(id, tensor);
        }
        Ok(unflatten(&tree, &mut results.last.into_iter()))
    }

    pub(super) fn call_each(
        &mut self,
        env: &Env,
        copies: &Rc<Copies>,
        inner: &Layer,
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let axis = &copies.axis;
        let hidden = self.fresh(axis.name.as_str());
        let inward = [(axis.name.clone(), hidden.clone())];
        let args = self.rename_args(&args, &inward, span)?;
        let kind = ScopeKind::Each { hidden: hidden.clone() };
        self.hidden.push(Axis::new(hidden.clone(), axis.size));
        self.scopes.push(CopiesScope { id: copies.id, kind, next: BTreeMap::new() });
        let (n_losses, n_found) = (self.losses.len(), self.found.len());
        let result = self.call_layer(env, inner, given, args, span);
        let scope = self.scopes.pop();
        self.hidden.pop();
        let result = result?;
        self.rename_found(n_found, span, &|_, _| vec![(hidden.clone(), axis.name.clone())])?;
        self.sum_losses(n_losses, std::slice::from_ref(&hidden))?;
        let own = AxisSet::of([Axis::new(hidden.clone(), axis.size)]).unwrap_or_default();
        for (id, tensor) in scope.map(|scope| scope.next).unwrap_or_default() {
            let tensor = self.expand(&tensor, &own, span)?;
            let tensor = self.rename(&tensor, &[(hidden.clone(), copies.graph.name.clone())], span)?;
            self.leave_next(id, tensor);
        }
        self.each_tensor(&result, &mut |elab, tensor| {
            let tensor = elab.expand(tensor, &own, span)?;
            elab.rename(&tensor, &[(hidden.clone(), axis.name.clone())], span)
        })
    }

    /// `experts[expert = choice](x)`: every position of the index meets its own copy.
    pub(super) fn call_gathered(
        &mut self,
        env: &Env,
        gather: &GatherCopies,
        inner: &Layer,
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let axes: Vec<Axis> = self.visible(&gather.index);
        let mut inward = Vec::new();
        for axis in &axes {
            let hidden = self.fresh(axis.name.as_str());
            inward.push((axis.name.clone(), hidden));
        }
        let index = self.rename(&gather.index, &inward, span)?;
        let args = self.rename_args(&args, &inward, span)?;
        let n_hidden = self.hidden.len();
        self.hidden.extend(axes.iter().zip(&inward).map(|(axis, (_, hidden))| Axis::new(hidden.clone(), axis.size)));
        self.scopes.push(CopiesScope {
            id: gather.copies.id,
            kind: ScopeKind::Picked { index },
            next: BTreeMap::new(),
        });
        let (n_losses, n_found) = (self.losses.len(), self.found.len());
        let result = self.call_layer(env, inner, given, args, span);
        let scope = self.scopes.pop();
        self.hidden.truncate(n_hidden);
        let result = result?;
        self.rename_found(n_found, span, &|_, _| {
            inward.iter().map(|(name, hidden)| (hidden.clone(), name.clone())).collect()
        })?;
        let names: Vec<Name> = inward.iter().map(|(_, hidden)| hidden.clone()).collect();
        self.sum_losses(n_losses, &names)?;
        if scope.is_some_and(|scope| !scope.next.is_empty()) {
            let message = "a state of picked copies would change";
            return Err(self.error(Code::E0220, message, span, "several positions may pick the same copy"));
        }
        let outward: Vec<(Name, Name)> = inward.into_iter().map(|(name, hidden)| (hidden, name)).collect();
        self.each_tensor(&result, &mut |elab, tensor| elab.rename(tensor, &outward, span))
    }

    // ---- states and losses ----

    /// `next m = value`
    pub(super) fn set_next(&mut self, env: &Env, name: &ast::Name, value: Value, span: Span) -> Eval<Value> {
        if let Some(states) = self.optimizer_next.last_mut()
            && let Some(slot) = states.iter_mut().find(|slot| slot.0 == name.text)
        {
            let (ty, old) = (slot.2.clone(), slot.1.clone());
            let tensor = self.as_stored(&value, &ty, span, &name.text)?;
            let _ = old;
            if let Some(slot) =
                self.optimizer_next.last_mut().and_then(|states| states.iter_mut().find(|slot| slot.0 == name.text))
            {
                slot.1 = tensor.clone();
            }
            return Ok(Value::Tensor(tensor));
        }
        let this = env.frame.this.borrow().clone();
        let member = this
            .as_ref()
            .and_then(|this| this.data.members.iter().find(|(known, _)| **known == *name.text))
            .map(|(_, value)| value.clone());
        let id = match member {
            Some(Value::Stored(id)) if self.stored[id.0 as usize].kind == StoredKind::State => id,
            Some(Value::None) => return Ok(value),
            _ => {
                let message = format!("there is no state `{}` here", name.text);
                let help = "`next` gives a `state` of this layer or optimizer its new value";
                return Err(self.error_help(Code::E0220, message, name.span, "not a state", help));
            }
        };
        if self.n_mapped > 0 {
            return Err(self.error(
                Code::E0220,
                "a state cannot change inside of `map`",
                name.span,
                "each position would have its own",
            ));
        }
        let stored = &self.stored[id.0 as usize];
        let ty = Type::new(
            stored.dtype,
            AxisSet::of(stored.axes.iter().zip(&stored.local).map(|(axis, local)| Axis::new(local.clone(), axis.size)))
                .unwrap_or_default(),
        );
        let back: Vec<(Name, Name)> =
            stored.local.iter().cloned().zip(stored.axes.iter().map(|axis| axis.name.clone())).collect();
        let scope =
            stored.copies.iter().rev().find_map(|copy| self.scopes.iter().rposition(|scope| scope.id == copy.id));
        let inside = match scope.map(|at| &self.scopes[at].kind) {
            Some(ScopeKind::Loop { level, .. }) => *level,
            // Through `each`, the loop outside of it counts.
            Some(_) => self.level_id(),
            None => self.levels.first().map_or(0, |level| level.id),
        };
        if inside != self.level_id() {
            let message = format!("the state `{}` would change inside of a loop", name.text);
            let help = "carry it through the loop, and give `next` its last value";
            return Err(self.error_help(Code::E0220, message, name.span, "in a loop", help));
        }
        let tensor = self.as_stored(&value, &ty, span, &name.text)?;
        let stored_form = self.rename(&tensor, &back, span)?;
        match scope {
            Some(at) => self.scopes[at].next.insert(id, stored_form),
            None => self.next.insert(id, stored_form),
        };
        Ok(Value::Tensor(tensor))
    }

    /// The next value of a state in its own type.
    fn as_stored(&mut self, value: &Value, ty: &Type, span: Span, name: &str) -> Eval<Tensor> {
        let operand = self.operand(value, span, "`next`")?;
        let tensor = self.as_tensor(&operand, ty.dtype, span)?;
        for axis in self.visible(&tensor) {
            match ty.axes.size(&axis.name) {
                Some(size) if size == axis.size => {}
                Some(size) => {
                    let message = format!(
                        "the state `{name}` has `{}` = {size}, its next value {}",
                        plain(&axis.name),
                        axis.size
                    );
                    return Err(self.error(Code::E0204, message, span, "this value"));
                }
                None => {
                    let has = self.show_axes(&self.axes(&tensor).clone());
                    let message = format!(
                        "the next value of `{name}` has the axis `{}`, which the state lacks",
                        plain(&axis.name)
                    );
                    return Err(self.error(Code::E0206, message, span, format!("this has {has}")));
                }
            }
        }
        self.expand(&tensor, &ty.axes, span)
    }

    /// A state that changed inside of copies, after them.
    fn leave_next(&mut self, id: StoredId, tensor: Tensor) {
        let copies = self.stored[id.0 as usize].copies.clone();
        let scope = copies.iter().rev().find_map(|copy| self.scopes.iter().rposition(|scope| scope.id == copy.id));
        match scope {
            Some(at) => self.scopes[at].next.insert(id, tensor),
            None => self.next.insert(id, tensor),
        };
    }

    /// `loss balance = value`
    pub(super) fn add_loss(&mut self, env: &Env, name: &ast::Name, value: &Value, span: Span) -> Eval<Value> {
        let operand = self.operand(value, span, "`loss`")?;
        let tensor = self.as_tensor(&operand, mdl_graph::DType::F32, span)?;
        if let Some(axis) = self.visible(&tensor).first() {
            let shown = plain(&axis.name);
            let message = format!("the loss `{}` has the axis `{shown}`", name.text);
            return Err(self.error_help(
                Code::E0206,
                message,
                span,
                "a loss is one number",
                "take its mean: `mean(…)`",
            ));
        }
        if env.frame.training {
            self.losses.push(Loss { name: name.text.clone(), tensor: tensor.clone(), span });
        }
        Ok(Value::Tensor(tensor))
    }

    /// Losses since `from` lose axes that are hidden only here.
    fn sum_losses(&mut self, from: usize, names: &[Name]) -> Eval<()> {
        for i in from..self.losses.len() {
            let Loss { tensor, span, .. } = self.losses[i].clone();
            self.losses[i].tensor = self.sum_over(&tensor, names, span)?;
        }
        Ok(())
    }

    // ---- the loop itself ----

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
            let result = body(self, carries);
            let body_of = match result {
                Ok(body) => body,
                Err(stop) => {
                    self.levels.pop();
                    self.losses.truncate(snapshot.n_losses);
                    self.found.truncate(snapshot.n_found);
                    return Err(stop);
                }
            };
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
                return self.close_loop(axis, reverse, start, &types, body_of, span);
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
            if !inner_losses.is_empty() || n_noted > 0 {
                let message = "a layer called in a loop with `until` declares a loss, or is watched";
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

    // ---- values with tensors inside ----

    /// A value with each tensor in it changed.
    pub(super) fn each_tensor(
        &mut self,
        value: &Value,
        change: &mut dyn FnMut(&mut Self, &Tensor) -> Eval<Tensor>,
    ) -> Eval<Value> {
        Ok(match value {
            Value::Tensor(tensor) => Value::Tensor(change(self, tensor)?),
            Value::Stored(id) => {
                let tensor = self.fetch(*id)?;
                Value::Tensor(change(self, &tensor)?)
            }
            Value::Tuple(items) | Value::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items.iter() {
                    out.push(self.each_tensor(item, change)?);
                }
                if matches!(value, Value::Tuple(_)) { Value::tuple(out) } else { Value::list(out) }
            }
            Value::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    out.push((name.clone(), self.each_tensor(field, change)?));
                }
                Value::Record(Rc::new(out))
            }
            other => other.clone(),
        })
    }

    pub(super) fn rename_args(&mut self, args: &Args, pairs: &[(Name, Name)], span: Span) -> Eval<Args> {
        let mut out = args.clone();
        for (value, _) in &mut out.positional {
            *value = self.each_tensor(value, &mut |elab, tensor| elab.rename(tensor, pairs, span))?;
        }
        for (_, value, _) in &mut out.named {
            *value = self.each_tensor(value, &mut |elab, tensor| elab.rename(tensor, pairs, span))?;
        }
        Ok(out)
    }

    /// The tensors of a value; numbers become tensors.
    pub(super) fn flatten(&mut self, value: &Value, span: Span) -> Eval<(Tree, Vec<Tensor>)> {
        let mut tensors = Vec::new();
        let tree = self.flatten_into(value, span, &mut tensors)?;
        Ok((tree, tensors))
    }

    fn flatten_into(&mut self, value: &Value, span: Span, out: &mut Vec<Tensor>) -> Eval<Tree> {
        Ok(match value {
            Value::Error => return Err(Stop),
            Value::Tuple(items) | Value::List(items) => {
                let mut trees = Vec::with_capacity(items.len());
                for item in items.iter() {
                    trees.push(self.flatten_into(item, span, out)?);
                }
                if matches!(value, Value::Tuple(_)) { Tree::Tuple(trees) } else { Tree::List(trees) }
            }
            Value::Record(fields) => {
                let mut trees = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    trees.push((name.clone(), self.flatten_into(field, span, out)?));
                }
                Tree::Record(trees)
            }
            Value::Bool(_) | Value::Tensor(_) | Value::Stored(_) => {
                let operand = self.operand(value, span, "a loop")?;
                out.push(self.tensor_of(&operand, span)?);
                Tree::Leaf
            }
            other if other.as_float().is_some() => {
                let operand = self.operand(value, span, "a loop")?;
                out.push(self.tensor_of(&operand, span)?);
                Tree::Leaf
            }
            other => Tree::Whole(other.clone()),
        })
    }

    /// The tensors of a value that must be built as another one was.
    pub(super) fn flatten_like(&mut self, tree: &Tree, value: &Value, span: Span) -> Eval<(Tree, Vec<Tensor>)> {
        let (own, tensors) = self.flatten(value, span)?;
        if !same_tree(tree, &own) {
            let message = format!("a loop begins with {} and goes on with {}", tree_words(tree), tree_words(&own));
            return Err(self.error(Code::E0218, message, span, "what goes around must come back in the same form"));
        }
        Ok((own, tensors))
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
            Ok(Body { next, stacked, until })
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

    pub(super) fn take_named(&mut self, args: &mut Args, name: &str) -> Option<(Value, Span)> {
        let at = args.named.iter().position(|(known, ..)| &**known == name)?;
        let (_, value, span) = args.named.remove(at);
        Some((value, span))
    }

    pub(super) fn no_more_named(&mut self, args: &Args, what: &str) -> Eval<()> {
        match args.named.first() {
            None => Ok(()),
            Some((name, _, span)) => {
                Err(self.error(Code::E0208, format!("`{what}` has no parameter `{name}`"), *span, "not known"))
            }
        }
    }

    pub(super) fn is_copies(&self, kind: CopiesKind, layer: &Layer) -> Option<Rc<Copies>> {
        match &layer.data.kind {
            super::value::LayerKind::Copies(copies, _) if copies.kind == kind => Some(copies.clone()),
            _ => None,
        }
    }
}

pub(super) fn unflatten(tree: &Tree, tensors: &mut dyn Iterator<Item = Tensor>) -> Value {
    match tree {
        Tree::Leaf => tensors.next().map_or(Value::Error, Value::Tensor),
        Tree::Whole(value) => value.clone(),
        Tree::Tuple(parts) => Value::tuple(parts.iter().map(|part| unflatten(part, tensors)).collect()),
        Tree::List(parts) => Value::list(parts.iter().map(|part| unflatten(part, tensors)).collect()),
        Tree::Record(fields) => {
            Value::Record(Rc::new(fields.iter().map(|(name, part)| (name.clone(), unflatten(part, tensors))).collect()))
        }
    }
}

fn same_tree(a: &Tree, b: &Tree) -> bool {
    match (a, b) {
        (Tree::Leaf, Tree::Leaf) | (Tree::Whole(_), Tree::Whole(_)) => true,
        (Tree::Tuple(a), Tree::Tuple(b)) | (Tree::List(a), Tree::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_tree(a, b))
        }
        (Tree::Record(a), Tree::Record(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((x, a), (y, b))| x == y && same_tree(a, b))
        }
        _ => false,
    }
}

fn tree_words(tree: &Tree) -> String {
    match tree {
        Tree::Leaf => "one value".to_string(),
        Tree::Whole(_) => "a value that is no tensor".to_string(),
        Tree::Tuple(parts) => format!("a tuple of {}", parts.len()),
        Tree::List(parts) => format!("a list of {}", parts.len()),
        Tree::Record(fields) => {
            format!("a record of {}", fields.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", "))
        }
    }
}
