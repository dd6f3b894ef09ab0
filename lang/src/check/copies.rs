//! Copies of a layer: `repeat` runs them one after another in a loop, `each` side by side along a hidden axis, and
//! `experts[expert = choice]` lets every position meet its own.

use std::collections::BTreeMap;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, Name, NodeId, Op};

use super::Elaborator;
use super::graphs::Feed;
use super::loops::Body;
use super::tree::unflatten;
use super::value::{Args, Copies, Env, Eval, GatherCopies, Given, Layer, StoredId, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{CopiesKind, Span};

/// Copies that calls are inside of.
pub(super) struct CopiesScope {
    pub(super) id: u32,
    pub(super) kind: ScopeKind,
    /// New values of states, cut as the scope cuts, in graph names.
    pub(super) next: BTreeMap<StoredId, Tensor>,
}

pub(super) enum ScopeKind {
    /// The body of a loop.
    Loop { level: u32, axis: Axis },
    /// The copies' axis goes along under a hidden name.
    Each { hidden: Name },
    /// Copies picked by an index whose axes are hidden.
    Picked { index: Tensor },
}

impl Elaborator<'_> {
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
    pub(super) fn node_at(&mut self, tensor: &Tensor, position: usize) -> NodeId {
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
        let n_found = self.found.len();
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
            Ok(Body { next, stacked, until: None, losses: Vec::new() })
        })?;
        self.pick_found(n_found, copies.id, &axis.name, span)?;
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
        self.pick_found(n_found, copies.id, &axis.name, span)?;
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
        if self.is_picked(n_found, gather.copies.id) {
            let message = "copies that an index picks cannot be watched one by one";
            return Err(self.error_help(Code::E0216, message, span, "picked here", "watch all of them: `experts.*`"));
        }
        let names: Vec<Name> = inward.iter().map(|(_, hidden)| hidden.clone()).collect();
        self.sum_losses(n_losses, &names)?;
        if scope.is_some_and(|scope| !scope.next.is_empty()) {
            let message = "a state of picked copies would change";
            return Err(self.error(Code::E0220, message, span, "several positions may pick the same copy"));
        }
        let outward: Vec<(Name, Name)> = inward.into_iter().map(|(name, hidden)| (hidden, name)).collect();
        self.each_tensor(&result, &mut |elab, tensor| elab.rename(tensor, &outward, span))
    }

    pub(super) fn is_copies(&self, kind: CopiesKind, layer: &Layer) -> Option<Rc<Copies>> {
        match &layer.data.kind {
            super::value::LayerKind::Copies(copies, _) if copies.kind == kind => Some(copies.clone()),
            _ => None,
        }
    }
}
