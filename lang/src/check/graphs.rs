//! The graph under construction: a stack of graphs, one for each loop body that is open, and the nodes added to the top.
//!
//! A tensor remembers its level. Using one of an outer level inside of a loop brings it in as a free value of each body
//! on the way, once; bringing it in cut along the loop's axis makes it a scanned value.

use std::collections::HashMap;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, NodeId, Op, Phase, Scalar, Type};

use super::Elaborator;
use super::value::{Eval, Tensor};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::Span;

/// Where an input of a loop's body comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Feed {
    Carry(usize),
    /// A node of the next outer level, cut along the loop's axis.
    Scan(NodeId),
    /// A node of the next outer level, whole.
    Free(NodeId),
}

pub(super) struct Level {
    pub(super) id: u32,
    pub(super) graph: Graph,
    /// In the order of the graph's inputs; empty at the outermost level.
    pub(super) feeds: Vec<Feed>,
    made: HashMap<Feed, NodeId>,
    /// The axis of the loop whose body this is.
    pub(super) axis: Option<Axis>,
}

impl Level {
    pub(super) fn new(id: u32, axis: Option<Axis>) -> Level {
        Level { id, graph: Graph::new(), feeds: Vec::new(), made: HashMap::new(), axis }
    }
}

impl Elaborator<'_> {
    pub(super) fn top(&mut self) -> &mut Level {
        let Some(level) = self.levels.last_mut() else { mdl_graph::bug!("no graph is open") };
        level
    }

    pub(super) fn level_id(&self) -> u32 {
        self.levels.last().map_or(0, |level| level.id)
    }

    /// The node of a tensor in the innermost graph.
    pub(super) fn node(&mut self, tensor: &Tensor) -> NodeId {
        let Some(mut at) = self.levels.iter().position(|level| level.id == tensor.level) else {
            mdl_graph::bug!("a tensor of a graph that is closed: {}", tensor.node)
        };
        let mut node = tensor.node;
        while at + 1 < self.levels.len() {
            node = self.feed(at + 1, Feed::Free(node));
            at += 1;
        }
        node
    }

    /// The input of body `at` that is fed so, made on first use.
    pub(super) fn feed(&mut self, at: usize, feed: Feed) -> NodeId {
        if let Some(node) = self.levels[at].made.get(&feed) {
            return *node;
        }
        let ty = match feed {
            Feed::Carry(_) => mdl_graph::bug!("carries are made when a body opens"),
            Feed::Free(outer) => self.levels[at - 1].graph.ty(outer).clone(),
            Feed::Scan(outer) => {
                let mut ty = self.levels[at - 1].graph.ty(outer).clone();
                if let Some(axis) = &self.levels[at].axis {
                    ty.axes.remove(&axis.name);
                }
                ty
            }
        };
        self.feed_as(at, feed, ty)
    }

    pub(super) fn feed_as(&mut self, at: usize, feed: Feed, ty: Type) -> NodeId {
        let level = &mut self.levels[at];
        let name = match feed {
            Feed::Carry(k) => format!("carry {k}"),
            Feed::Scan(node) => format!("scan {node}"),
            Feed::Free(node) => format!("free {node}"),
        };
        let node = level.graph.input(name, InputKind::Param, ty);
        level.feeds.push(feed);
        level.made.insert(feed, node);
        node
    }

    /// The type of a tensor, whatever level it is of.
    pub(super) fn ty(&self, tensor: &Tensor) -> &Type {
        match self.levels.iter().find(|level| level.id == tensor.level) {
            Some(level) => level.graph.ty(tensor.node),
            None => mdl_graph::bug!("a tensor of a graph that is closed: {}", tensor.node),
        }
    }

    pub(super) fn axes(&self, tensor: &Tensor) -> &AxisSet {
        &self.ty(tensor).axes
    }

    pub(super) fn dtype(&self, tensor: &Tensor) -> DType {
        self.ty(tensor).dtype
    }

    pub(super) fn tensor(&self, node: NodeId) -> Tensor {
        Tensor { level: self.level_id(), node, arrow: None }
    }

    /// Adds `op(args)` to the innermost graph. The checker looks before it comes here, so a refusal is rare and its
    /// message in the words of the primitives; it is still a diagnostic and not a panic.
    pub(super) fn emit(&mut self, op: Op, args: &[&Tensor], span: Span) -> Eval<Tensor> {
        let nodes: Vec<NodeId> = args.iter().map(|arg| self.node(arg)).collect();
        let (phase, scope) = (self.phase, self.scope.clone());
        let graph = &mut self.top().graph;
        graph.set_here(phase, span, Some(scope));
        match graph.try_add(op, &nodes) {
            Ok(node) => Ok(self.tensor(node)),
            Err(error) => Err(self.fail(Diagnostic::error(Code::E0210, error.0).label(span, "this operation"))),
        }
    }

    pub(super) fn constant(&mut self, value: Scalar, dtype: DType, span: Span) -> Eval<Tensor> {
        self.emit(Op::Const(value.cast(dtype), dtype), &[], span)
    }

    pub(super) fn number(&mut self, value: f64, dtype: DType, span: Span) -> Eval<Tensor> {
        self.constant(Scalar::Float(value), dtype, span)
    }

    pub(super) fn cast(&mut self, x: &Tensor, dtype: DType, span: Span) -> Eval<Tensor> {
        if self.dtype(x) == dtype { Ok(x.clone()) } else { self.emit(Op::Cast(dtype), &[x], span) }
    }

    /// `x` with all of `axes`: those that it lacks are added.
    pub(super) fn expand(&mut self, x: &Tensor, axes: &AxisSet, span: Span) -> Eval<Tensor> {
        let more: Vec<Axis> = axes.minus(self.axes(x)).iter().cloned().collect();
        if more.is_empty() { Ok(x.clone()) } else { self.emit(Op::Expand(more), &[x], span) }
    }

    /// Renames axes, all at once; the arrow of an untouched weight is renamed along.
    pub(super) fn rename(&mut self, x: &Tensor, pairs: &[(Name, Name)], span: Span) -> Eval<Tensor> {
        let axes = self.axes(x);
        let mut pairs: Vec<(Name, Name)> =
            pairs.iter().filter(|(old, new)| old != new && axes.contains(old)).cloned().collect();
        if pairs.is_empty() {
            return Ok(x.clone());
        }
        pairs.sort();
        let mut renamed = self.emit(Op::Rename(pairs.clone()), &[x], span)?;
        renamed.arrow = x.arrow.as_ref().map(|arrow| {
            let map = |name: &Name| pairs.iter().find(|(old, _)| old == name).map_or(name, |(_, new)| new).clone();
            Rc::new(super::value::Arrow {
                from: arrow.from.iter().map(|(said, own)| (map(said), map(own))).collect(),
                to: arrow.to.iter().map(map).collect(),
            })
        });
        Ok(renamed)
    }

    /// Drops an axis of size 1.
    pub(super) fn squeeze(&mut self, x: &Tensor, axis: &Name, span: Span) -> Eval<Tensor> {
        self.emit(Op::Split { axis: axis.clone(), into: Vec::new() }, &[x], span)
    }

    /// The sum over those of `names` that `x` has.
    pub(super) fn sum_over(&mut self, x: &Tensor, names: &[Name], span: Span) -> Eval<Tensor> {
        let mut names: Vec<Name> = names.iter().filter(|name| self.axes(x).contains(name)).cloned().collect();
        names.sort();
        names.dedup();
        if names.is_empty() { Ok(x.clone()) } else { self.emit(Op::Sum(names), &[x], span) }
    }

    /// The axes of a tensor that reductions over everything reach: all but hidden ones.
    pub(super) fn visible(&self, tensor: &Tensor) -> Vec<Axis> {
        self.axes(tensor).iter().filter(|axis| !self.is_hidden(&axis.name)).cloned().collect()
    }

    pub(super) fn is_hidden(&self, name: &Name) -> bool {
        self.hidden.iter().any(|axis| axis.name == *name)
    }

    /// A name that no user can write and that is nowhere else.
    pub(super) fn fresh(&mut self, name: &str) -> Name {
        self.n_fresh += 1;
        let base = name.split('~').next().unwrap_or(name);
        Name::from(format!("{base}~{}", self.n_fresh))
    }

    pub(super) fn set_phase_of(&mut self, phase: Phase) -> Phase {
        std::mem::replace(&mut self.phase, phase)
    }

    /// An input of the outermost graph, one per name.
    pub(super) fn outer_input(&mut self, name: &str, kind: InputKind, ty: Type) -> Tensor {
        if let Some(tensor) = self.inputs.get(name) {
            return tensor.clone();
        }
        let level = &mut self.levels[0];
        let tensor = Tensor { level: level.id, node: level.graph.input(name, kind, ty), arrow: None };
        self.inputs.insert(name.to_string(), tensor.clone());
        tensor
    }
}
