//! Sums of small products over the passes of a loop, taken out of it.
//!
//! `acc = acc + contract[k](a, b)` in a loop over `t` is one product after it: `a` and `b` are stacked, and the contraction is over
//! `k` and `t`. The gradient of a recurrent weight is such a sum; each pass alone is too small a product to keep a processor
//! busy. Where a pass is large enough (the layers of a shared block) it stays as it is, and nothing is stacked.
//!
//! In and out: any graph; results of loops keep their types. What is stacked is an argument of the loop if it comes from
//! one unchanged, which `simplify` sees.

use std::collections::BTreeMap;

use mdl_graph::{Graph, InputKind, Loop, Name, NodeId, Op, Role};

use crate::grad::params;

/// A product over fewer positions than this leaves a matrix kernel mostly waiting, and is worth stacking its operands for.
const LARGE: u64 = 1024;

/// The graph with all such sums taken out, in bodies too.
pub fn hoist(graph: &Graph) -> Graph {
    let mut results: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Loop(inner) => {
            let inner = inner.with_body(hoist(&inner.body));
            let sums = sums(&inner);
            if sums.is_empty() {
                return to.add(Op::Loop(Box::new(inner)), args);
            }
            let (node, values) = take_out(to, &inner, args, &sums);
            results.insert(id, values);
            node
        }
        Op::Get(k) => match results.get(&graph.args(id)[0]) {
            Some(values) => values[*k as usize],
            None => to.copy(graph, id, args),
        },
        _ => to.copy(graph, id, args),
    })
}

/// A carry that only gains terms.
struct Sum {
    carry: usize,
    terms: Vec<Term>,
}

/// What is added in each pass: a product or a sum of values, then operations that are the same for all passes and linear.
struct Term {
    /// Outermost first.
    around: Vec<NodeId>,
    inner: NodeId,
}

fn sums(inner: &Loop) -> Vec<Sum> {
    let body = &inner.body;
    if inner.until {
        return Vec::new();
    }
    let live = body.live();
    let mut users = vec![0; body.nodes().len()];
    for id in body.ids().filter(|id| live[id.idx()]) {
        body.args(id).iter().for_each(|arg| users[arg.idx()] += 1);
    }
    body.outputs().iter().for_each(|output| users[output.node.idx()] += 1);
    let params = params(body);
    let mut sums: Vec<Sum> = (0..inner.carries)
        .filter_map(|carry| {
            let (param, next) = (params[carry], body.outputs()[carry].node);
            // The carry goes into one addition, and that into the next pass only.
            if users[param.idx()] != 1 || users[next.idx()] != 1 {
                return None;
            }
            let mut terms = Vec::new();
            let found = terms_of(body, next, param, &users, &mut terms);
            found.then_some(Sum { carry, terms })
        })
        .collect();
    // A plain sum is taken out where what it sums is stacked anyhow; a product where a pass of it is small.
    let mut stacked: Vec<NodeId> = Vec::new();
    for sum in &sums {
        for term in sum.terms.iter().filter(|term| is_small_product(inner, term)) {
            stacked.extend(body.args(term.inner));
        }
    }
    let scans = &params[inner.carries..inner.carries + inner.scans];
    sums.retain(|sum| {
        sum.terms.iter().all(|term| {
            let is_there = |arg: &NodeId| stacked.contains(arg) || scans.contains(arg);
            let plain = matches!(body.op(term.inner), Op::Sum(_)) && is_there(&body.args(term.inner)[0]);
            is_small_product(inner, term) || plain && is_apart(inner, term)
        })
    });
    sums
}

/// Takes `acc + x + y …` apart; true if `acc` is one of its terms, and the others are of a form that can be taken out.
fn terms_of(body: &Graph, id: NodeId, acc: NodeId, users: &[usize], terms: &mut Vec<Term>) -> bool {
    if id == acc {
        return true;
    }
    if let (Op::Add, [a, b]) = (body.op(id), body.args(id))
        && users[id.idx()] == 1
    {
        let left = terms_of(body, *a, acc, users, terms);
        let right = terms_of(body, *b, acc, users, terms);
        return left || right;
    }
    let mut around = Vec::new();
    let mut inner = id;
    loop {
        let args = body.args(inner);
        let constant = |arg: &NodeId| matches!(body.op(*arg), Op::Const(..));
        let next = match body.op(inner) {
            Op::Neg | Op::Rename(_) => Some(args[0]),
            Op::Mul if constant(&args[0]) => Some(args[1]),
            Op::Mul if constant(&args[1]) => Some(args[0]),
            _ => None,
        };
        let Some(next) = next else { break };
        around.push(inner);
        inner = next;
    }
    terms.push(Term { around, inner });
    false
}

fn is_small_product(inner: &Loop, term: &Term) -> bool {
    let body = &inner.body;
    let (Op::Contract(names), [a, _]) = (body.op(term.inner), body.args(term.inner)) else { return false };
    let size: u64 = names.iter().map(|name| body.ty(*a).axes.size(name).unwrap_or(1)).product();
    size < LARGE && is_apart(inner, term)
}

/// True when no value of the term has an axis of the loop's name, so that it can be stacked.
fn is_apart(inner: &Loop, term: &Term) -> bool {
    let has = |id: &NodeId| inner.body.ty(*id).axes.contains(&inner.axis.name);
    !has(&term.inner) && !inner.body.args(term.inner).iter().any(has) && !term.around.iter().any(has)
}

/// The loop without these carries; gives its node, and what stands for each result of the old one.
fn take_out(to: &mut Graph, inner: &Loop, args: &[NodeId], sums: &[Sum]) -> (NodeId, Vec<NodeId>) {
    let old = &inner.body;
    let gone = |carry: usize| sums.iter().any(|sum| sum.carry == carry);
    let mut body = Graph::new();
    let mut map: Vec<Option<NodeId>> = vec![None; old.nodes().len()];
    let mut new_args = Vec::new();
    for (place, (param, input)) in params(old).into_iter().zip(old.inputs()).enumerate() {
        if place >= inner.carries || !gone(place) {
            map[param.idx()] = Some(body.input(input.name.clone(), InputKind::Param, input.ty.clone()));
            new_args.push(args[place]);
        }
    }
    let mut operands: Vec<NodeId> =
        sums.iter().flat_map(|sum| &sum.terms).flat_map(|term| old.args(term.inner).to_vec()).collect();
    operands.sort();
    operands.dedup();
    let kept: Vec<usize> = (0..old.outputs().len()).filter(|k| *k >= inner.carries || !gone(*k)).collect();
    let roots: Vec<NodeId> = kept.iter().map(|k| old.outputs()[*k].node).chain(operands.iter().copied()).collect();
    let mut needed = vec![false; old.nodes().len()];
    roots.iter().for_each(|root| needed[root.idx()] = true);
    for id in old.ids().rev().filter(|id| map[id.idx()].is_none()).collect::<Vec<_>>() {
        if needed[id.idx()] {
            old.args(id).iter().for_each(|arg| needed[arg.idx()] = true);
        }
    }
    for id in old.ids().filter(|id| needed[id.idx()]) {
        if map[id.idx()].is_none() {
            let args: Vec<NodeId> = old.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
            map[id.idx()] = Some(body.copy(old, id, &args));
        }
    }
    let names = kept.iter().map(|k| old.outputs()[*k].name.clone());
    let names: Vec<Name> = names.chain(operands.iter().map(|id| Name::from(format!("term {}", id.0)))).collect();
    for (root, name) in roots.iter().zip(names) {
        if let Some(node) = map[root.idx()] {
            body.output_as(name, Role::Value, node);
        }
    }
    let carries = inner.carries - sums.len();
    let node = to.add(Op::Loop(Box::new(Loop { carries, ..inner.with_body(body) })), &new_args);
    let got = to.gets(node);

    let mut values: Vec<Option<NodeId>> = vec![None; inner.carries + inner.stacked()];
    for (k, value) in kept.iter().zip(&got) {
        values[*k] = Some(*value);
    }
    let stack = |id: &NodeId| operands.iter().position(|other| other == id).map(|at| got[kept.len() + at]);
    for sum in sums {
        let mut total = args[sum.carry];
        for term in &sum.terms {
            to.set_here_like(old.node(term.inner));
            let stacked: Vec<NodeId> = old.args(term.inner).iter().filter_map(stack).collect();
            let along = |names: &[Name]| {
                let mut names = names.to_vec();
                names.push(inner.axis.name.clone());
                names.sort();
                names
            };
            let op = match old.op(term.inner) {
                Op::Contract(names) => Op::Contract(along(names)),
                Op::Sum(names) => Op::Sum(along(names)),
                op => mdl_graph::bug!("`{}` was taken out of a loop", op.name()),
            };
            let mut value = to.add(op, &stacked);
            for id in term.around.iter().rev() {
                let args: Vec<NodeId> = old
                    .args(*id)
                    .iter()
                    .map(|arg| if let Op::Const(..) = old.op(*arg) { to.copy(old, *arg, &[]) } else { value })
                    .collect();
                value = to.add(old.op(*id).clone(), &args);
            }
            total = to.add(Op::Add, &[total, value]);
        }
        values[sum.carry] = Some(total);
    }
    (node, values.into_iter().flatten().collect())
}
