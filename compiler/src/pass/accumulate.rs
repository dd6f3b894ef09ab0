//! Gradient accumulation: the batch in pieces, one after the other, with the meaning of the whole batch.
//!
//! In: a step without markers. Out: the same outputs, but everything that has the axis `batch` is computed in a loop over
//! pieces. That is exact if the batch leaves only through sums: each piece adds its share. A sum that other examples wait
//! for, as the count of a mask by which a mean divides, is made by a loop of its own before; it may do no heavy work, or the model
//! would run twice, so statistics of the batch (batch norm) are refused, and so is whatever mixes examples otherwise.
//!
//! Which loop computes which sum: as late as what waits for it allows, so that sums nobody waits for (the loss that is reported)
//! are in the last loop, with the gradients. Elementwise values that several loops need are computed in each.

pub(super) mod kinds;
pub(super) mod piece;

use mdl_graph::{Axis, Graph, Input, Name, NodeId, Op, Output, Span, bug};

use super::{BATCH, Options, PassError};
use kinds::Kind;
use piece::Piece;

/// The pass: cuts the batch as `options` say.
pub(super) fn accumulate(graph: &Graph, options: &Options) -> Result<Graph, PassError> {
    if options.micro <= 1 {
        return Ok(graph.clone());
    }
    let batch = Name::from(BATCH);
    let size = batch_size(graph, &batch)?;
    if size % options.micro != 0 {
        return Err(refuse(
            Span::default(),
            format!("a batch of {size} cannot be cut into {} equal pieces", options.micro),
        ));
    }
    let kinds = kinds::of_graph(graph, &batch)?;
    let cut = Cut { graph, batch, size, pieces: options.micro, kinds };
    cut.run()
}

fn refuse(span: Span, message: String) -> PassError {
    PassError { pass: "accumulate", span, message }
}

/// The one size of the axis in the whole graph.
fn batch_size(graph: &Graph, batch: &Name) -> Result<u64, PassError> {
    let inputs = graph.inputs().iter().filter_map(|input: &Input| input.ty.axes.size(batch));
    let Some(size) = inputs.max() else {
        return Err(refuse(
            Span::default(),
            format!("nothing that comes in has the axis `{BATCH}`, which `micro` cuts"),
        ));
    };
    for node in graph.nodes() {
        if let Some(other) = node.ty.axes.size(batch)
            && other != size
        {
            let message = format!("`{BATCH}` has size {size} in the data and {other} here, so `micro` cannot cut it");
            return Err(refuse(node.span, message));
        }
    }
    Ok(size)
}

struct Cut<'a> {
    graph: &'a Graph,
    batch: Name,
    size: u64,
    pieces: u64,
    kinds: Vec<Option<Kind>>,
}

impl Cut<'_> {
    fn kind(&self, id: NodeId) -> Kind {
        // Dead nodes have no kind, and nobody asks.
        self.kinds[id.idx()].unwrap_or(Kind::Whole)
    }

    /// True for what a loop over pieces computes: values with the axis, and loops around such values.
    fn is_inside(&self, id: NodeId) -> bool {
        matches!(self.kind(id), Kind::Part)
    }

    /// True for a value without the axis that is made of values with it.
    fn is_exit(&self, id: NodeId) -> bool {
        !self.is_inside(id) && self.graph.args(id).iter().any(|arg| self.is_inside(*arg))
    }

    fn run(&self) -> Result<Graph, PassError> {
        let live = self.graph.live();
        let exits: Vec<NodeId> = self.graph.ids().filter(|id| live[id.idx()] && self.is_exit(*id)).collect();
        let mut stacked: Vec<NodeId> =
            self.graph.outputs().iter().map(|output| output.node).filter(|id| self.is_inside(*id)).collect();
        stacked.sort();
        stacked.dedup();
        if exits.is_empty() && stacked.is_empty() {
            return Ok(self.graph.clone());
        }
        let (count, when) = self.order(&exits, &stacked);

        let mut to = Graph::new();
        let mut map: Vec<Option<NodeId>> = vec![None; self.graph.nodes().len()];
        for (node, input) in crate::grad::params(self.graph).into_iter().zip(self.graph.inputs()) {
            map[node.idx()] = Some(to.input(input.name.clone(), input.kind, input.ty.clone()));
        }
        for k in 0..count {
            self.emit_whole(&mut to, &mut map, &live);
            let sums: Vec<NodeId> =
                exits.iter().zip(&when).filter(|(_, loop_idx)| **loop_idx == k).map(|(exit, _)| *exit).collect();
            let last = k + 1 == count;
            if !last {
                self.check_light(&sums)?;
            }
            self.emit_loop(&mut to, &mut map, &sums, if last { &stacked } else { &[] });
        }
        self.emit_whole(&mut to, &mut map, &live);
        for Output { name, role, node } in self.graph.outputs() {
            match map[node.idx()] {
                Some(node) => to.output_as(name.clone(), *role, node),
                None => bug!("{node}: output `{name}` was lost with the batch in pieces"),
            }
        }
        Ok(to)
    }

    /// How many loops there are, and which one makes each exit.
    fn order(&self, exits: &[NodeId], stacked: &[NodeId]) -> (usize, Vec<usize>) {
        // As early as possible: the number of loops that a value waits for.
        let mut early = vec![0usize; self.graph.nodes().len()];
        for id in self.graph.ids() {
            let args = self.graph.args(id).iter().map(|arg| early[arg.idx()]).max().unwrap_or(0);
            early[id.idx()] = args + usize::from(self.is_exit(id));
        }
        let exits_end = exits.iter().map(|exit| early[exit.idx()]).max().unwrap_or(1);
        let stacked_end = stacked.iter().map(|id| early[id.idx()] + 1).max().unwrap_or(1);
        let count = exits_end.max(stacked_end);
        // As late as possible: before the first loop that reads it.
        // Of an exit, the loop that must not start without it; of a value inside, the first loop that computes it.
        let mut limit = vec![count; self.graph.nodes().len()];
        for id in stacked {
            limit[id.idx()] = count - 1;
        }
        for id in self.graph.ids().rev() {
            let reads = if self.is_exit(id) { limit[id.idx()] - 1 } else { limit[id.idx()] };
            for arg in self.graph.args(id) {
                limit[arg.idx()] = limit[arg.idx()].min(reads);
            }
        }
        (count, exits.iter().map(|exit| limit[exit.idx()].max(early[exit.idx()]) - 1).collect())
    }

    /// A loop before the last may hold elementwise work and sums only.
    fn check_light(&self, sums: &[NodeId]) -> Result<(), PassError> {
        for id in self.cone(sums) {
            if matches!(self.graph.op(id), Op::Contract(_) | Op::Loop(_)) {
                let span = sums.first().map_or(self.graph.node(id).span, |sum| self.graph.node(*sum).span);
                let message = format!(
                    "a sum over `{BATCH}` is read again by each example, so `micro` would change what this means; \
                     without `micro` the batch is whole"
                );
                return Err(refuse(span, message));
            }
        }
        Ok(())
    }

    /// The values inside that these are made of, themselves included.
    fn cone(&self, roots: &[NodeId]) -> Vec<NodeId> {
        let mut needed = vec![false; self.graph.nodes().len()];
        roots.iter().for_each(|root| needed[root.idx()] = true);
        for id in self.graph.ids().rev().filter(|id| roots.contains(id) || self.is_inside(*id)) {
            if needed[id.idx()] {
                for arg in self.graph.args(id).iter().filter(|arg| self.is_inside(**arg)) {
                    needed[arg.idx()] = true;
                }
            }
        }
        self.graph.ids().filter(|id| needed[id.idx()]).collect()
    }

    /// Copies the nodes outside of the loops whose arguments are there.
    fn emit_whole(&self, to: &mut Graph, map: &mut [Option<NodeId>], live: &[bool]) {
        for id in self.graph.ids().filter(|id| live[id.idx()]) {
            if map[id.idx()].is_some() || self.is_inside(id) || self.is_exit(id) {
                continue;
            }
            let args: Vec<NodeId> = self.graph.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
            if args.len() == self.graph.args(id).len() {
                map[id.idx()] = Some(to.copy(self.graph, id, &args));
            }
        }
    }

    /// One loop over the pieces: adds up `sums`, and gives `stacked` for the whole batch.
    fn emit_loop(&self, to: &mut Graph, map: &mut [Option<NodeId>], sums: &[NodeId], stacked: &[NodeId]) {
        let mut piece = Piece::new(self.graph, &self.batch, self.size / self.pieces);
        let axis = Axis::new(piece.free_name("micro"), self.pieces);
        let mut args = Vec::new();
        let mut before = Vec::new();
        for sum in sums {
            let ty = self.graph.ty(*sum).clone();
            to.set_here_like(self.graph.node(*sum));
            before.push(piece.param(format!("sum {}", sum.0), ty.clone()));
            let zero = to.constant(0.0, ty.dtype);
            args.push(to.expand(zero, &ty.axes));
        }
        let roots: Vec<NodeId> = sums.iter().chain(stacked).copied().collect();
        let cone = self.cone(&roots);
        let is_input = |id: &NodeId| matches!(self.graph.op(*id), Op::Input(_));
        let mut scans = 0;
        for id in cone.iter().filter(|id| is_input(id)) {
            let Some(whole) = map[id.idx()] else { continue };
            let part = Axis::new(self.batch.clone(), self.size / self.pieces);
            args.push(to.add(Op::Split { axis: self.batch.clone(), into: vec![axis.clone(), part] }, &[whole]));
            piece.scan(*id);
            scans += 1;
        }
        args.push(to.iota(axis.clone()));
        piece.number();
        scans += 1;
        for id in cone.iter().filter(|id| !is_input(id)) {
            for arg in self.graph.args(*id).iter().filter(|arg| !self.is_inside(**arg)) {
                if let Some(value) = map[arg.idx()]
                    && piece.free(*arg)
                {
                    args.push(value);
                }
            }
        }
        for id in cone.iter().filter(|id| !is_input(id)) {
            piece.copy(*id);
        }
        for (sum, before) in sums.iter().zip(before) {
            piece.sum(*sum, before, self.kind(*sum) == Kind::Sum);
        }
        for id in stacked {
            piece.stack(*id);
        }
        let inner = piece.finish(axis.clone(), sums.len(), scans);
        let results = to.loop_over(inner, &args);
        for (root, result) in roots.iter().zip(results) {
            let is_stacked = self.is_inside(*root);
            let whole = Op::Merge { axes: vec![axis.name.clone(), self.batch.clone()], into: self.batch.clone() };
            map[root.idx()] = Some(if is_stacked { to.add(whole, &[result]) } else { result });
        }
    }
}
