//! Products that are only reduced, in pieces: the logits of a language model are never stored whole.
//!
//! In: a step without markers. Out: the same outputs; but where a product is larger than its budget, and all that is made of it is
//! reduced again, then everything as large as it is computed in a loop over pieces of one of its axes. For the loss of a language
//! model that is one loop over the rows for the logits, the loss and both gradients: forward and backward are one graph by now.
//!
//! Nothing is recognised by name. The region starts from the product and grows by whatever is as large as it, by those who read that, and by
//! what lies between (the statistics of rows). It leaves the loop as sums over the cut axis, which the pieces add up, or row by row, which are
//! stacked. A region that others of its size leave, or that waits for one of its own sums, is left as it is.

use std::collections::BTreeSet;

use mdl_graph::{Axis, Graph, InputKind, Loop, Name, NodeId, Op, Output, Phase, bug};

use super::Options;
use super::accumulate::kinds::{Kind, of_node};
use super::accumulate::piece::Piece;

/// Products below this stay whole. A piece is about this large too, but never smaller than the factor that every piece reads
/// again: then it would be read more often than the product is.
const CHUNK_BYTES: u64 = 32 << 20;

/// At most so many times more pieces than asked for, where the axis divides into no other number.
const FINEST: u64 = 4;

/// The pass: cuts every product that is too large.
pub(super) fn chunk(graph: &Graph, options: &Options) -> Graph {
    cut(graph, options.chunk_bytes.unwrap_or(CHUNK_BYTES))
}

fn cut(graph: &Graph, budget: u64) -> Graph {
    // The model may stand in a loop over pieces of the batch.
    let mut graph = graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Loop(inner) if takes_pieces_of_the_batch(graph, id, inner) => {
            let inner = Loop { body: cut(&inner.body, budget), ..Loop::clone(inner) };
            to.add(Op::Loop(Box::new(inner)), args)
        }
        _ => to.copy(graph, id, args),
    });
    // What is cut is in a loop from then on, and no longer found.
    while let Some(region) = find(&graph, budget) {
        graph = region.in_pieces(&graph);
    }
    graph
}

fn takes_pieces_of_the_batch(graph: &Graph, id: NodeId, inner: &Loop) -> bool {
    graph.args(id).iter().skip(inner.carries).take(inner.scans).any(|arg| match (graph.op(*arg), graph.args(*arg)) {
        (Op::Split { .. }, [of]) => match graph.op(*of) {
            Op::Input(input) => graph.inputs()[input.0 as usize].kind == InputKind::Batch,
            _ => false,
        },
        _ => false,
    })
}

/// A way to cut a product.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    is_coarse: bool,
    pieces: u64,
    /// Axes that many inputs have lie outermost: a piece of them is one run of memory.
    inputs_without: usize,
    axis: Name,
}

fn find(graph: &Graph, budget: u64) -> Option<Region> {
    let live = graph.live();
    let users = users(graph, &live);
    let products = graph.ids().filter(|id| live[id.idx()] && matches!(graph.op(*id), Op::Contract(_)));
    for product in products {
        for way in ways(graph, product, budget) {
            if let Some(region) = Region::around(graph, &users, product, way) {
                return Some(region);
            }
        }
    }
    None
}

/// For each node the nodes that read it and are needed.
fn users(graph: &Graph, live: &[bool]) -> Vec<Vec<NodeId>> {
    let mut users = vec![Vec::new(); graph.nodes().len()];
    for id in graph.ids().filter(|id| live[id.idx()]) {
        for arg in graph.args(id) {
            users[arg.idx()].push(id);
        }
    }
    users
}

/// The axes along which a product may be cut, the best first.
fn ways(graph: &Graph, product: NodeId, budget: u64) -> Vec<Way> {
    let ty = graph.ty(product);
    let mut ways = Vec::new();
    for axis in ty.axes.iter() {
        let again = graph.args(product).iter().filter(|arg| !graph.ty(**arg).axes.contains(&axis.name));
        let again_bytes: u64 = again.map(|arg| graph.ty(*arg).size_bytes()).sum();
        let wanted = ty.size_bytes().div_ceil(budget.max(again_bytes).max(1));
        if wanted < 2 {
            continue;
        }
        // Pieces are equal. Much smaller ones than asked for would be slow, larger ones still spare memory.
        let divides = |pieces: &u64| axis.size.is_multiple_of(*pieces);
        let fine = (wanted..=axis.size.min(FINEST * wanted)).find(divides);
        let Some(pieces) = fine.or_else(|| (2..wanted.min(axis.size + 1)).rev().find(divides)) else { continue };
        let inputs_without = graph.inputs().iter().filter(|input| !input.ty.axes.contains(&axis.name)).count();
        ways.push(Way { is_coarse: pieces < wanted, pieces, inputs_without, axis: axis.name.clone() });
    }
    ways.sort();
    ways
}

/// What is computed piece by piece.
struct Region {
    axis: Axis,
    pieces: u64,
    /// All of these have the axis.
    inside: BTreeSet<NodeId>,
    /// Sums over the axis of what is inside.
    sums: BTreeSet<NodeId>,
    /// What is inside and read, row by row, by others.
    stacked: BTreeSet<NodeId>,
}

impl Region {
    fn around(graph: &Graph, users: &[Vec<NodeId>], product: NodeId, way: Way) -> Option<Region> {
        let axis = graph.ty(product).axes.get(&way.axis)?.clone();
        let has = |id: NodeId| graph.ty(id).axes.get(&axis.name) == Some(&axis);
        let is_large = |id: NodeId| has(id) && graph.ty(id).count() >= graph.ty(product).count();
        let mut inside = BTreeSet::from([product]);
        loop {
            let before = inside.len();
            for id in inside.clone() {
                if is_large(id) {
                    inside.extend(users[id.idx()].iter().filter(|user| has(**user)));
                }
                let args = graph.args(id).iter().copied();
                inside.extend(args.filter(|arg| {
                    let is_made = !matches!(graph.op(*arg), Op::Input(_) | Op::Get(_));
                    // Positions, and what is spread along the axis, are made where they are read.
                    let is_spread = !graph.args(*arg).iter().any(|of| has(*of));
                    is_made && (is_large(*arg) || has(*arg) && is_spread)
                }));
            }
            let (before_them, after_them) = (reach_up(graph, &inside), reach_down(graph, users, &inside));
            inside.extend(graph.ids().filter(|id| before_them[id.idx()] && after_them[id.idx()]));
            if inside.len() == before {
                break;
            }
        }
        // Products of other things than these would be read for every piece anew.
        let is_of_them = |id: NodeId| is_large(id) || graph.args(id).iter().any(|arg| is_large(*arg));
        let is_foreign = |id: NodeId| matches!(graph.op(id), Op::Contract(_)) && !is_of_them(id);
        let kind = |id: NodeId| {
            let kinds: Vec<Kind> =
                graph.args(id).iter().map(|arg| if has(*arg) { Kind::Part } else { Kind::Whole }).collect();
            of_node(graph, id, graph.op(id), &axis.name, &kinds).ok()
        };
        let mut region =
            Region { axis: axis.clone(), pieces: way.pieces, inside, sums: BTreeSet::new(), stacked: BTreeSet::new() };
        for id in &region.inside {
            let is_plain = !matches!(graph.op(*id), Op::Input(_) | Op::Get(_) | Op::Loop(_) | Op::Grad);
            if !is_plain || !has(*id) || is_foreign(*id) || kind(*id) != Some(Kind::Part) {
                return None;
            }
            for user in users[id.idx()].iter().filter(|user| !region.inside.contains(user)) {
                if has(*user) || matches!(graph.op(*user), Op::Loop(_)) {
                    region.stacked.insert(*id);
                } else if kind(*user) == Some(Kind::Sum) && !is_foreign(*user) {
                    region.sums.insert(*user);
                } else {
                    return None;
                }
            }
        }
        let is_inside = |output: &Output| region.inside.contains(&output.node);
        region.stacked.extend(graph.outputs().iter().filter(|output| is_inside(output)).map(|output| output.node));
        (!region.stacked.iter().any(|id| is_large(*id))).then_some(region)
    }

    /// The graph with the region in a loop.
    fn in_pieces(&self, graph: &Graph) -> Graph {
        let live = graph.live();
        let users = users(graph, &live);
        let after = reach_down(graph, &users, &self.inside);
        let mut to = Graph::new();
        let mut map: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
        for (node, input) in crate::grad::params(graph).into_iter().zip(graph.inputs()) {
            to.set_here_like(graph.node(node));
            map[node.idx()] = Some(to.input(input.name.clone(), input.kind, input.ty.clone()));
        }
        let copy = |to: &mut Graph, map: &mut [Option<NodeId>], ids: &mut dyn Iterator<Item = NodeId>| {
            for id in ids.filter(|id| live[id.idx()]) {
                if map[id.idx()].is_none() {
                    let args: Vec<NodeId> = graph.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
                    map[id.idx()] = Some(to.copy(graph, id, &args));
                }
            }
        };
        copy(&mut to, &mut map, &mut graph.ids().filter(|id| !after[id.idx()] && !self.inside.contains(id)));
        self.emit(graph, &mut to, &mut map);
        copy(&mut to, &mut map, &mut graph.ids().filter(|id| after[id.idx()] && !self.inside.contains(id)));
        for Output { name, role, node } in graph.outputs() {
            match map[node.idx()] {
                Some(node) => to.output_as(name.clone(), *role, node),
                None => bug!("{node}: output `{name}` was lost with its product in pieces"),
            }
        }
        to
    }

    /// Adds the loop, and says where its results are.
    fn emit(&self, graph: &Graph, to: &mut Graph, map: &mut [Option<NodeId>]) {
        let size = self.axis.size / self.pieces;
        let name = &self.axis.name;
        let mut piece = Piece::new(graph, name, size);
        let over = Axis::new(piece.free_name("chunk"), self.pieces);
        let mut args = Vec::new();
        let mut before = Vec::new();
        for sum in &self.sums {
            let ty = graph.ty(*sum).clone();
            to.set_here_like(graph.node(*sum));
            before.push(piece.param(format!("sum {}", sum.0), ty.clone()));
            let zero = to.constant(0.0, ty.dtype);
            args.push(to.expand(zero, &ty.axes));
        }
        let members: BTreeSet<NodeId> = self.inside.union(&self.sums).copied().collect();
        let outside: BTreeSet<NodeId> = members
            .iter()
            .flat_map(|id| graph.args(*id).iter().copied())
            .filter(|arg| !self.inside.contains(arg))
            .collect();
        let is_cut = |id: &NodeId| graph.ty(*id).axes.contains(name);
        let whole = |map: &[Option<NodeId>], id: NodeId| match map[id.idx()] {
            Some(value) => value,
            None => bug!("{id} is read by pieces before it is made"),
        };
        let mut scans = 1;
        for id in outside.iter().filter(|id| is_cut(id)) {
            to.set_here_like(graph.node(*id));
            let into = vec![over.clone(), Axis::new(name.clone(), size)];
            args.push(to.add(Op::Split { axis: name.clone(), into }, &[whole(map, *id)]));
            piece.scan(*id);
            scans += 1;
        }
        args.push(to.iota(over.clone()));
        piece.number();
        for id in outside.iter().filter(|id| !is_cut(id)) {
            if piece.free(*id) {
                args.push(whole(map, *id));
            }
        }
        for id in &members {
            piece.copy(*id);
        }
        for (sum, before) in self.sums.iter().zip(before) {
            piece.sum(*sum, before, true);
        }
        for id in &self.stacked {
            piece.stack(*id);
        }
        // The loop belongs to the last phase of what is in it.
        if let Some(last) = members.iter().max_by_key(|id| (graph.node(**id).phase == Phase::Backward, **id)) {
            to.set_here_like(graph.node(*last));
        }
        let results = to.loop_over(piece.finish(over.clone(), self.sums.len(), scans), &args);
        for (sum, result) in self.sums.iter().zip(&results) {
            map[sum.idx()] = Some(*result);
        }
        for (id, result) in self.stacked.iter().zip(&results[self.sums.len()..]) {
            let merge = Op::Merge { axes: vec![over.name.clone(), name.clone()], into: name.clone() };
            map[id.idx()] = Some(to.add(merge, &[*result]));
        }
    }
}

/// True for what these are made of, themselves included.
fn reach_up(graph: &Graph, from: &BTreeSet<NodeId>) -> Vec<bool> {
    let mut reached = vec![false; graph.nodes().len()];
    from.iter().for_each(|id| reached[id.idx()] = true);
    for id in graph.ids().rev() {
        if reached[id.idx()] {
            graph.args(id).iter().for_each(|arg| reached[arg.idx()] = true);
        }
    }
    reached
}

/// True for what is made of these, themselves included.
fn reach_down(graph: &Graph, users: &[Vec<NodeId>], from: &BTreeSet<NodeId>) -> Vec<bool> {
    let mut reached = vec![false; graph.nodes().len()];
    from.iter().for_each(|id| reached[id.idx()] = true);
    for id in graph.ids() {
        if reached[id.idx()] {
            users[id.idx()].iter().for_each(|user| reached[user.idx()] = true);
        }
    }
    reached
}
