//! The dtype of every value.
//!
//! In: a graph in `f32`. With `bf16` or `f16`: the operands of matrix products are rounded to it, which are then summed in `f32` and
//! stored rounded; what a forward loop saves for its backward loop is stored rounded too, where it is large. All else stays
//! `f32`: weights, the optimizer, elementwise chains, reductions, the statistics of rows, softmax and losses.
//! Casts belong to the phase of what they round, so that forward and backward share them.

use std::collections::BTreeSet;

use mdl_graph::{DType, Graph, Loop, NodeId, Op, Phase, Role, Type};

use super::{Options, PassError};
use crate::grad::SAVED;
use crate::kernel::Parts;

/// What a stage computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    #[default]
    F32,
    BF16,
    F16,
    /// `f32`, whose matrix products may be made of three products of `bf16`, or of six.
    BF16x3,
    BF16x6,
}

impl Precision {
    /// `None` for `f32`, where nothing is rounded.
    pub fn dtype(self) -> Option<DType> {
        match self {
            Precision::F32 | Precision::BF16x3 | Precision::BF16x6 => None,
            Precision::BF16 => Some(DType::BF16),
            Precision::F16 => Some(DType::F16),
        }
    }

    /// How products of `f32` may be made.
    pub fn parts(self) -> Parts {
        match self {
            Precision::BF16x3 => Parts::Three,
            Precision::BF16x6 => Parts::Six,
            Precision::F32 | Precision::BF16 | Precision::F16 => Parts::Whole,
        }
    }
}

pub(super) fn precision(graph: &Graph, options: &Options) -> Result<Graph, PassError> {
    Ok(match options.precision.dtype() {
        Some(dtype) => round_products(graph, dtype),
        None => graph.clone(),
    })
}

fn round_products(graph: &Graph, dtype: DType) -> Graph {
    // Results of loops that are now stored rounded: (loop, result).
    let mut rounded: BTreeSet<(NodeId, u32)> = BTreeSet::new();
    graph.rebuild(|to, id, args| {
        let node = graph.node(id);
        match &node.op {
            Op::Contract(_) if is_matrix_product(graph, id) && node.phase != Phase::Update => {
                let low: Vec<NodeId> = args.iter().map(|arg| cast_beside(to, *arg, dtype)).collect();
                to.set_here_like(node);
                let product = to.add(node.op.clone(), &low);
                to.cast(product, DType::F32)
            }
            Op::Loop(inner) => {
                let body = round_products(&inner.body, dtype);
                let (inner, args) = scans_rounded(to, &inner.with_body(body), args, dtype);
                let (inner, saved) = saves_rounded(inner, dtype);
                rounded.extend(saved.into_iter().map(|k| (id, k)));
                to.set_here_like(node);
                to.add(Op::Loop(Box::new(inner)), &args)
            }
            Op::Get(k) if rounded.contains(&(graph.args(id)[0], *k)) => {
                let low = to.copy(graph, id, args);
                to.cast(low, DType::F32)
            }
            _ => to.copy(graph, id, args),
        }
    })
}

/// `x` rounded, as a node of the phase of `x`.
fn cast_beside(to: &mut Graph, x: NodeId, dtype: DType) -> NodeId {
    let node = to.node(x).clone();
    to.set_here_like(&node);
    to.cast(x, dtype)
}

/// True when each factor has an axis of its own: sums of other products are statistics, which stay exact.
fn is_matrix_product(graph: &Graph, id: NodeId) -> bool {
    let [a, b] = graph.args(id) else { return false };
    let (a, b) = (graph.ty(*a), graph.ty(*b));
    a.dtype == DType::F32 && !a.axes.minus(&b.axes).is_empty() && !b.axes.minus(&a.axes).is_empty()
}

/// Saved values this much smaller than the largest are statistics of rows: rounding them would save nothing.
const SMALL: u64 = 8;

/// Sums and maxima along rows, made finite perhaps: what is subtracted before `exp` must be what was subtracted the first time.
fn is_statistic(body: &Graph, id: NodeId) -> bool {
    match body.op(id) {
        Op::Sum(_) | Op::MaxOver(_) => true,
        Op::Select | Op::Max | Op::Rename(_) => body.args(id).iter().any(|arg| is_statistic(body, *arg)),
        _ => false,
    }
}

/// The large saved values of a forward loop as `dtype`, and which results they are.
fn saves_rounded(inner: Loop, dtype: DType) -> (Loop, Vec<u32>) {
    let mut body = inner.body.clone();
    let mut outputs = body.outputs().to_vec();
    let is_saved = |name: &str, ty: &Type| name.starts_with(SAVED) && ty.dtype == DType::F32;
    let sizes = outputs.iter().map(|output| (output, body.ty(output.node)));
    let largest = sizes.filter(|(output, ty)| is_saved(output.name.as_str(), ty)).map(|(_, ty)| ty.count()).max();
    let mut rounded = Vec::new();
    for (k, output) in outputs.iter_mut().enumerate() {
        let ty = body.ty(output.node).clone();
        if is_saved(output.name.as_str(), &ty)
            && output.role == Role::Value
            && ty.count() * SMALL > largest.unwrap_or(0)
            && !is_statistic(&body, output.node)
        {
            output.node = cast_beside(&mut body, output.node, dtype);
            rounded.push(k as u32);
        }
    }
    body.set_outputs(outputs);
    (Loop { body, ..inner }, rounded)
}

/// Scanned arguments that are `f32` only by a cast are scanned as they are stored, and cast inside.
fn scans_rounded(to: &Graph, inner: &Loop, args: &[NodeId], dtype: DType) -> (Loop, Vec<NodeId>) {
    let scans = inner.carries..inner.carries + inner.scans;
    let low = |k: usize| {
        let source = match to.op(args[k]) {
            Op::Cast(DType::F32) => to.args(args[k])[0],
            _ => return None,
        };
        (scans.contains(&k) && to.ty(source).dtype == dtype).then_some(source)
    };
    let mut body = Graph::new();
    let mut inputs = Vec::new();
    let mut new_args = Vec::new();
    for (k, input) in inner.body.inputs().iter().enumerate() {
        let source = low(k);
        let ty = if source.is_some() { input.ty.with_dtype(dtype) } else { input.ty.clone() };
        inputs.push(body.input(input.name.clone(), input.kind, ty));
        new_args.push(source.unwrap_or(args[k]));
    }
    for (input, old) in inputs.iter_mut().zip(inner.body.inputs()) {
        *input = body.cast(*input, old.ty.dtype);
    }
    let nodes = body.inline(&inner.body, &inputs);
    for (output, node) in inner.body.outputs().iter().zip(nodes) {
        body.output_as(output.name.clone(), output.role, node);
    }
    (inner.with_body(body), new_args)
}
