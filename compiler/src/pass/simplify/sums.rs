//! Sums, maxima and contractions: each over as few elements as will do, and a product of two tensors spelled one way.
//!
//! A product summed where each factor has an axis of its own is a `Contract`, which becomes a matrix product; where one has
//! all axes of the other it is a `Sum` of a `Mul`, which fuses with its neighbours like any reduction.

use mdl_graph::{AxisSet, DType, Graph, Name, NodeId, Op};

use super::{make, spread_to};

fn without(axes: &AxisSet, names: &[Name]) -> AxisSet {
    AxisSet::of(axes.iter().filter(|axis| !names.contains(&axis.name)).cloned()).unwrap_or_default()
}

/// `x` summed over those of `names` that it has, in their order by name.
fn sum_over(graph: &mut Graph, x: NodeId, names: &[Name]) -> NodeId {
    let mut names: Vec<Name> = names.iter().filter(|name| graph.ty(x).axes.contains(name)).cloned().collect();
    names.sort();
    if names.is_empty() { x } else { make(graph, Op::Sum(names), &[x]) }
}

/// True when each of two factors has, outside of `names`, an axis that the other lacks.
fn is_product(graph: &Graph, a: NodeId, b: NodeId, names: &[Name]) -> bool {
    let (a, b) = (without(&graph.ty(a).axes, names), without(&graph.ty(b).axes, names));
    !a.minus(&b).is_empty() && !b.minus(&a).is_empty()
}

pub(super) fn sums(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    let [x] = args else { return None };
    let (Op::Sum(names) | Op::MaxOver(names)) = op else { return None };
    // sum[](x) → x
    if names.is_empty() {
        return Some(*x);
    }
    // sum[b, a](x) → sum[a, b](x)
    if !names.is_sorted() {
        let mut names = names.clone();
        names.sort();
        let op = if let Op::Sum(_) = op { Op::Sum(names) } else { Op::MaxOver(names) };
        return Some(make(graph, op, args));
    }
    let inner = graph.op(*x).clone();
    let inner_args = graph.args(*x).to_vec();
    match (op, &inner) {
        // sum[a](sum[b](x)) → sum[a, b](x), and max likewise
        (Op::Sum(_), Op::Sum(first)) | (Op::MaxOver(_), Op::MaxOver(first)) => {
            let mut all: Vec<Name> = names.iter().chain(first).cloned().collect();
            all.sort();
            let op = if let Op::Sum(_) = op { Op::Sum(all) } else { Op::MaxOver(all) };
            Some(make(graph, op, &inner_args))
        }
        (Op::Sum(_), Op::Expand(more)) => {
            // sum[a](expand[a: n](x)) → x · n
            let gone: Vec<_> = more.iter().filter(|axis| names.contains(&axis.name)).cloned().collect();
            let (kept, dtype) = (without(&graph.ty(*x).axes, names), graph.ty(*x).dtype);
            if gone.is_empty() && inner_args.is_empty() {
                return None;
            }
            let n: u64 = gone.iter().map(|axis| axis.size).product();
            // Of an axis without positions the sum is 0 even where x is NaN, and a large n may not fit a small dtype.
            if n == 0 || (n > 128 && !matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64)) {
                return None;
            }
            let sum = sum_over(graph, inner_args[0], names);
            let factor = graph.constant(n as f64, dtype);
            let scaled = make(graph, Op::Mul, &[sum, factor]);
            let ty = graph.ty(*x).with_dtype(dtype);
            let ty = mdl_graph::Type::new(ty.dtype, kept);
            Some(spread_to(graph, scaled, &ty))
        }
        // max[a](expand[a](x)) → x
        (Op::MaxOver(_), Op::Expand(more)) => {
            if more.iter().any(|axis| axis.size == 0) {
                return None;
            }
            let kept = without(&graph.ty(*x).axes, names);
            let ty = mdl_graph::Type::new(graph.ty(*x).dtype, kept);
            let source = inner_args[0];
            let rest: Vec<Name> = names.iter().filter(|name| graph.ty(source).axes.contains(name)).cloned().collect();
            let max = if rest.is_empty() { source } else { make(graph, Op::MaxOver(rest), &[source]) };
            Some(spread_to(graph, max, &ty))
        }
        (Op::Sum(_), Op::Neg) => {
            // sum(-x) → -sum(x)
            let sum = make(graph, Op::Sum(names.clone()), &inner_args);
            Some(make(graph, Op::Neg, &[sum]))
        }
        (Op::Sum(_), Op::Mul) => {
            let (a, b) = (inner_args[0], inner_args[1]);
            // sum(x · c) → sum(x) · c
            for (x, c) in [(a, b), (b, a)] {
                if let Op::Const(..) = graph.op(c) {
                    let sum = make(graph, Op::Sum(names.clone()), &[x]);
                    return Some(make(graph, Op::Mul, &[sum, c]));
                }
            }
            // sum[k](x · y) → sum[k](x) · y, where y lacks k
            for (x, y) in [(a, b), (b, a)] {
                let apart = names.iter().all(|name| !graph.ty(y).axes.contains(name));
                let (axes, ty) = (graph.ty(x).axes.clone(), graph.ty(y));
                if apart && ty.axes.is_subset(&axes) && graph.ty(x).dtype.is_float() {
                    let sum = make(graph, Op::Sum(names.clone()), &[x]);
                    return Some(make(graph, Op::Mul, &[sum, y]));
                }
            }
            // sum[k](x · (y · z)) → sum[k](x · y) · z, where z lacks k
            for (x, product) in [(a, b), (b, a)] {
                let (Op::Mul, [y, z]) = (graph.op(product), graph.args(product)) else { continue };
                for (y, z) in [(*y, *z), (*z, *y)] {
                    let apart = names.iter().all(|name| !graph.ty(z).axes.contains(name));
                    let (left, right) = (graph.ty(x).axes.clone(), graph.ty(y).axes.clone());
                    if apart && left == right && graph.ty(z).axes.is_subset(&left) && graph.ty(x).dtype.is_float() {
                        let inner = make(graph, Op::Mul, &[x, y]);
                        let sum = make(graph, Op::Sum(names.clone()), &[inner]);
                        return Some(make(graph, Op::Mul, &[sum, z]));
                    }
                }
            }
            // sum[k](a · b) → contract[k](a, b), where both have k and each has an axis of its own
            let shared = names.iter().all(|name| graph.ty(a).axes.contains(name) && graph.ty(b).axes.contains(name));
            (shared && is_product(graph, a, b, names)).then(|| make(graph, Op::Contract(names.clone()), &[a, b]))
        }
        _ => None,
    }
}

pub(super) fn contractions(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    let (Op::Contract(names), [a, b]) = (op, args) else { return None };
    // contract[](a, b) → a · b
    if names.is_empty() {
        return Some(make(graph, Op::Mul, &[*a, *b]));
    }
    if !names.is_sorted() {
        let mut names = names.clone();
        names.sort();
        return Some(make(graph, Op::Contract(names), args));
    }
    for (spread, other) in [(*a, *b), (*b, *a)] {
        if let Op::Expand(more) = graph.op(spread).clone() {
            // contract[k](expand[k](x), y) → x · sum[k](y); what is spread and stays is spread after
            let ty = mdl_graph::infer(op, &[graph.ty(*a), graph.ty(*b)]).ok()?;
            let source = graph.args(spread)[0];
            let gone: Vec<Name> =
                more.iter().filter(|axis| names.contains(&axis.name)).map(|axis| axis.name.clone()).collect();
            let kept: Vec<Name> = names.iter().filter(|name| !gone.contains(name)).cloned().collect();
            let other = sum_over(graph, other, &gone);
            let product = make(graph, Op::Contract(kept), &[source, other]);
            return Some(spread_to(graph, product, &ty));
        }
    }
    for (scaled, other, first) in [(*a, *b, true), (*b, *a, false)] {
        // contract(x · c, y) → contract(x, y) · c, where that is not more work
        if let (Op::Mul, [p, q]) = (graph.op(scaled), graph.args(scaled)) {
            let (p, q) = (*p, *q);
            let ty = mdl_graph::infer(op, &[graph.ty(*a), graph.ty(*b)]).ok()?;
            if ty.count() > graph.ty(scaled).count() {
                continue;
            }
            for (x, c) in [(p, q), (q, p)] {
                if let Op::Const(..) = graph.op(c) {
                    let (left, right) = if first { (x, other) } else { (other, x) };
                    let product = make(graph, op.clone(), &[left, right]);
                    return Some(make(graph, Op::Mul, &[product, c]));
                }
            }
        }
    }
    // contract[k](exp(x) · r, y) → contract[k](exp(x), y) · r, where r lacks k and the result is the smaller: a softmax is divided
    // by its sum after the values are summed. Only after `exp`: elsewhere this would fold norms into weights.
    for (scaled, other) in [(*a, *b), (*b, *a)] {
        let Some(factors) = factors(graph, scaled) else { continue };
        for (e, r) in [factors, (factors.1, factors.0)] {
            let ty = mdl_graph::infer(op, &[graph.ty(*a), graph.ty(*b)]).ok()?;
            let apart = names.iter().all(|name| !graph.ty(r).axes.contains(name));
            let inside = graph.ty(r).axes.is_subset(&graph.ty(e).axes) && graph.ty(r).axes.is_subset(&ty.axes);
            if is_exp(graph, e) && apart && inside && ty.count() < graph.ty(scaled).count() {
                let product = make(graph, Op::Contract(names.clone()), &[e, other]);
                return Some(make(graph, Op::Mul, &[product, r]));
            }
        }
    }
    // contract[k](a, b) → sum[k](a · b), where one has all axes of the other
    if !is_product(graph, *a, *b, names) && is_covered(graph, *a, *b) {
        let product = make(graph, Op::Mul, &[*a, *b]);
        return Some(make(graph, Op::Sum(names.clone()), &[product]));
    }
    None
}

/// True when both have the same axes, so that the product is no larger than its factors. A matrix and a vector stay a contraction.
fn is_covered(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    graph.ty(a).axes == graph.ty(b).axes && matches!(graph.ty(a).dtype, DType::F32 | DType::F64)
}

fn is_exp(graph: &Graph, id: NodeId) -> bool {
    match graph.op(id) {
        Op::Exp => true,
        Op::Rename(_) => is_exp(graph, graph.args(id)[0]),
        _ => false,
    }
}

/// The factors of a product, also of one that is renamed: then each of them is, which costs nothing.
fn factors(graph: &mut Graph, id: NodeId) -> Option<(NodeId, NodeId)> {
    match (graph.op(id).clone(), graph.args(id)) {
        (Op::Mul, [p, q]) => Some((*p, *q)),
        (Op::Rename(pairs), [x]) if *graph.op(*x) == Op::Mul => {
            let (p, q) = (graph.args(*x)[0], graph.args(*x)[1]);
            // Only a product that this may be worth for: views that nobody wants are made for nothing.
            if !is_exp(graph, p) && !is_exp(graph, q) {
                return None;
            }
            let mut renamed = |x: NodeId| {
                let kept: Vec<_> = pairs.iter().filter(|(old, _)| graph.ty(x).axes.contains(old)).cloned().collect();
                if kept.is_empty() { x } else { make(graph, Op::Rename(kept), &[x]) }
            };
            Some((renamed(p), renamed(q)))
        }
        _ => None,
    }
}
