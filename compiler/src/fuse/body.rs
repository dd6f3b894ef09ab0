//! What each node of one graph (or body of a loop) is to a kernel: computed, read in place as a view, or recomputed by everyone
//! who reads it; and which memory each computation reads, through which names.

use std::collections::BTreeSet;

use mdl_graph::{AxisSet, Class, Graph, Name, NodeId, Op};

/// How a node comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not needed by any output.
    Dead,
    /// In memory before any kernel of this graph: an input, or the result of a loop.
    Given,
    /// Never in memory: views, constants, index arithmetic, draws. Recomputed by each reader.
    Free,
    /// One value for each point of its own axes.
    Map,
    /// A sum or a maximum over some of its argument's axes.
    Reduce,
    /// A contraction that is no matrix product (one side has a single column), or of integers: a sum of products.
    Product,
    /// A contraction by the template.
    Contract,
    /// A kernel, or a loop, that fuses with nothing.
    Alone,
}

/// A value in memory that a node reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) root: NodeId,
    /// `(axis of the root, axis of the reader's domain)` when each point of the reader reads the root at its own position;
    /// `None` when a slice, a window or a gather lies between.
    pub(crate) link: Option<Vec<(Name, Name)>>,
}

pub(crate) struct Body<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) kinds: Vec<Kind>,
    /// Of each node that is computed.
    pub(crate) reads: Vec<Vec<Read>>,
    /// The nodes that outputs name, renames looked through.
    pub(crate) kept: BTreeSet<NodeId>,
    /// Nodes that fuse with nothing.
    pub(crate) apart: BTreeSet<NodeId>,
    /// The number of points of each node's iteration space.
    pub(crate) counts: Vec<u64>,
}

impl<'g> Body<'g> {
    /// `forced` are nodes that must be in memory though they need not be.
    pub(crate) fn new(graph: &'g Graph, forced: &BTreeSet<NodeId>) -> Body<'g> {
        let live = graph.live();
        let mut pure = vec![false; graph.nodes().len()];
        let mut kinds = vec![Kind::Dead; graph.nodes().len()];
        for id in graph.ids().filter(|id| live[id.idx()]) {
            pure[id.idx()] = is_pure(graph, id, &pure);
            kinds[id.idx()] = match kind(graph, id) {
                _ if forced.contains(&id) && !matches!(graph.op(id), Op::Input(_) | Op::Get(_)) => {
                    match kind(graph, id) {
                        Kind::Free => Kind::Map,
                        other => other,
                    }
                }
                Kind::Map if pure[id.idx()] => Kind::Free,
                other => other,
            };
        }
        let mut body = Body {
            graph,
            kinds,
            reads: vec![Vec::new(); graph.nodes().len()],
            kept: BTreeSet::new(),
            apart: forced.clone(),
            counts: Vec::new(),
        };
        body.counts = graph.ids().map(|id| body.domain(id).count()).collect();
        for id in graph.ids() {
            if body.is_computed(id) {
                body.reads[id.idx()] = body.find_reads(id);
            }
        }
        body.kept = graph.outputs().iter().map(|output| body.renamed(output.node).0).collect();
        body
    }

    pub(crate) fn kind(&self, id: NodeId) -> Kind {
        self.kinds[id.idx()]
    }

    /// Whether a kernel or a loop makes it.
    pub(crate) fn is_computed(&self, id: NodeId) -> bool {
        !matches!(self.kind(id), Kind::Dead | Kind::Given | Kind::Free)
    }

    /// The nodes that take the results of a loop.
    pub(crate) fn gets(&self, id: NodeId) -> impl Iterator<Item = NodeId> + use<'_> {
        let is_loop = matches!(self.graph.op(id), Op::Loop(_));
        let after = if is_loop { id.0 + 1 } else { self.kinds.len() as u32 };
        (after..self.kinds.len() as u32)
            .map(NodeId)
            .filter(move |get| matches!(self.graph.op(*get), Op::Get(_)) && self.graph.args(*get)[0] == id)
    }

    /// The axes of a node's iteration space.
    pub(crate) fn domain(&self, id: NodeId) -> AxisSet {
        let node = self.graph.node(id);
        match self.kind(id) {
            Kind::Reduce | Kind::Product => node.args.iter().fold(AxisSet::new(), |all, arg| {
                // Shapes were checked when the node was made.
                all.union(&self.graph.ty(*arg).axes).unwrap_or(all)
            }),
            _ => node.ty.axes.clone(),
        }
    }

    /// Operands that must be plain memory, and are no views of it: of contractions, loops and the like.
    pub(crate) fn operands_to_store(&self) -> BTreeSet<NodeId> {
        let users = self.graph.ids().filter(|id| matches!(self.kind(*id), Kind::Contract | Kind::Alone));
        let args = users.flat_map(|id| self.graph.args(id).iter().copied());
        args.filter(|arg| {
            let mut at = *arg;
            while self.kind(at) == Kind::Free {
                match self.graph.op(at) {
                    Op::Slice { step, len, .. } if *step < 0 && *len > 1 => return true,
                    Op::Rename(_) | Op::Expand(_) | Op::Slice { .. } | Op::Split { .. } | Op::Merge { .. } => {}
                    Op::Window { .. } | Op::Detach => {}
                    _ => return true,
                }
                at = self.graph.args(at)[0];
            }
            false
        })
        .collect()
    }

    /// The node that `id` is but another name for, and the names that `id` gives to its axes: `(there, here)`.
    pub(crate) fn renamed(&self, id: NodeId) -> (NodeId, Vec<(Name, Name)>) {
        let mut names: Vec<(Name, Name)> =
            self.graph.ty(id).axes.names().map(|name| (name.clone(), name.clone())).collect();
        let mut at = id;
        while self.kind(at) == Kind::Free {
            match self.graph.op(at) {
                Op::Rename(pairs) => rename_back(&mut names, pairs),
                Op::Detach => {}
                _ => break,
            }
            at = self.graph.args(at)[0];
        }
        (at, names)
    }

    fn find_reads(&self, id: NodeId) -> Vec<Read> {
        let mut reads = Vec::new();
        let node = self.graph.node(id);
        for (k, arg) in node.args.iter().enumerate() {
            let names: Vec<(Name, Name)> =
                self.graph.ty(*arg).axes.names().map(|name| (name.clone(), name.clone())).collect();
            // A table is read at positions that are values; the template reads its operands as it likes.
            let linked = match &node.op {
                Op::Gather { .. } => k == 1,
                Op::Contract(_) => self.kind(id) == Kind::Product,
                Op::Rename(_) | Op::Expand(_) | Op::Detach => false,
                op => op.class() != Class::View && self.kind(id) != Kind::Alone,
            };
            self.walk(*arg, linked.then_some(names), &mut reads);
        }
        reads.dedup();
        reads
    }

    /// The values in memory that a node is made of, or is.
    pub(crate) fn roots(&self, id: NodeId) -> Vec<NodeId> {
        let mut reads = Vec::new();
        self.walk(id, None, &mut reads);
        reads.into_iter().map(|read| read.root).collect()
    }

    fn walk(&self, at: NodeId, link: Option<Vec<(Name, Name)>>, reads: &mut Vec<Read>) {
        if self.kind(at) != Kind::Free {
            let read = Read { root: at, link };
            if !reads.contains(&read) {
                reads.push(read);
            }
            return;
        }
        for arg in self.graph.args(at) {
            let axes = &self.graph.ty(*arg).axes;
            let link = link.clone().and_then(|mut link| match self.graph.op(at) {
                Op::Rename(pairs) => {
                    rename_back(&mut link, pairs);
                    Some(link)
                }
                op if op.class() == Class::View && !matches!(op, Op::Expand(_)) => None,
                _ => {
                    link.retain(|(name, _)| axes.contains(name));
                    Some(link)
                }
            });
            self.walk(*arg, link, reads);
        }
    }
}

/// Names `(axis here, _)` of a renamed value become those of the value before.
fn rename_back(names: &mut [(Name, Name)], pairs: &[(Name, Name)]) {
    for (here, _) in names {
        if let Some((old, _)) = pairs.iter().find(|(_, new)| new == here) {
            *here = old.clone();
        }
    }
}

/// The number of positions of each side of a contraction: those that only the first, or only the second argument has.
pub(crate) fn sides(graph: &Graph, id: NodeId) -> (u64, u64) {
    let [a, b] = graph.args(id) else { return (1, 1) };
    let (a, b) = (&graph.ty(*a).axes, &graph.ty(*b).axes);
    (a.minus(b).count(), b.minus(a).count())
}

fn kind(graph: &Graph, id: NodeId) -> Kind {
    let node = graph.node(id);
    match &node.op {
        Op::Input(_) | Op::Get(_) => Kind::Given,
        Op::Const(..) | Op::Iota(_) | Op::Detach => Kind::Free,
        Op::Unwindow { .. } | Op::Gather { .. } => Kind::Map,
        // Rows put at positions of their own: every element is a row or zero.
        Op::Scatter { keep, .. } if graph.ty(node.args[1]).axes.names().all(|name| keep.contains(name)) => Kind::Map,
        Op::Sum(names) | Op::MaxOver(names) if names.is_empty() => Kind::Map,
        Op::Sum(_) | Op::MaxOver(_) => Kind::Reduce,
        Op::Contract(names) => {
            let (m, n) = sides(graph, id);
            let is_empty = node.args.iter().any(|arg| graph.ty(*arg).count() == 0);
            let is_product = names.is_empty() || !node.ty.dtype.is_float() || m == 1 || n == 1 || is_empty;
            if is_product && names.is_empty() {
                Kind::Map
            } else if is_product {
                Kind::Product
            } else {
                Kind::Contract
            }
        }
        Op::Scatter { .. } | Op::Prefix { .. } | Op::Top { .. } | Op::Loop(_) | Op::Grad => Kind::Alone,
        op if op.class() == Class::View => Kind::Free,
        _ => Kind::Map,
    }
}

/// Whether a value is a cheap function of positions, constants and integer scalars: then it is recomputed where it is read.
fn is_pure(graph: &Graph, id: NodeId, pure: &[bool]) -> bool {
    let node = graph.node(id);
    let args = || node.args.iter().all(|arg| pure[arg.idx()]);
    match &node.op {
        Op::Const(..) | Op::Iota(_) => true,
        Op::Input(_) => node.ty.dtype.is_int() && node.ty.axes.is_empty(),
        Op::Exp | Op::Log | Op::Tanh | Op::Erf | Op::Sin | Op::Cos | Op::Sqrt | Op::Pow => false,
        Op::Unwindow { .. } => false,
        op => matches!(op.class(), Class::Map | Class::View) && args(),
    }
}
