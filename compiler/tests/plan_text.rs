//! The text of a whole plan: a classifier of one layer that learns by gradient descent, as a person can read it.

#![allow(clippy::unwrap_used, reason = "what these helpers are given is right, or the test fails")]

#[path = "../../codegen/src/interp.rs"]
#[allow(dead_code, unreachable_pub, clippy::pedantic)]
mod interp;
#[path = "../../codegen/src/memory.rs"]
#[allow(dead_code, unreachable_pub)]
mod memory;
#[path = "../../codegen/src/ordering.rs"]
#[allow(dead_code, unreachable_pub)]
mod ordering;
#[allow(dead_code, reason = "shared with the other tests of plans")]
mod plan_support;
/// What the interpreter takes from the strip routines.
mod strip {
    pub(crate) fn erf_f64(x: f64) -> f64 {
        libm::erf(x)
    }
}

use mdl_compiler::pass;
use mdl_compiler::plan::{PlanOptions, plan};
use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Name, NodeId, Op, Phase, Role, Span, Type};
use plan_support::golden;

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

fn over(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| Name::from(*name)).collect()
}

/// `mean(cross_entropy(w(x) + b, y))`, and one step of plain gradient descent.
fn classifier() -> Graph {
    let f = DType::F32;
    let mut g = Graph::new();
    let w = g.input("w", InputKind::Weight, ty(f, &[("pixel", 6), ("label", 4)]));
    let b = g.input("b", InputKind::Weight, ty(f, &[("label", 4)]));
    let x = g.input("x", InputKind::Batch, ty(f, &[("batch", 32), ("pixel", 6)]));
    let y = g.input("y", InputKind::Batch, ty(DType::I32, &[("batch", 32)]));
    let product = g.add(Op::Contract(over(&["pixel"])), &[x, w]);
    let logits = g.add(Op::Add, &[product, b]);
    let most = g.add(Op::MaxOver(over(&["label"])), &[logits]);
    let most = g.add(Op::Detach, &[most]);
    let low = g.add(Op::Sub, &[logits, most]);
    let e = g.add(Op::Exp, &[low]);
    let sum = g.add(Op::Sum(over(&["label"])), &[e]);
    let log = g.add(Op::Log, &[sum]);
    let lse = g.add(Op::Add, &[most, log]);
    let picked = g.add(Op::Gather { axis: Name::from("label") }, &[logits, y]);
    let each = g.add(Op::Sub, &[lse, picked]);
    let total = g.add(Op::Sum(over(&["batch"])), &[each]);
    let share = g.constant(1.0 / 32.0, f);
    let loss = g.add(Op::Mul, &[total, share]);
    g.output_as("loss", Role::Value, loss);
    g.set_here(Phase::Backward, Span::default(), None);
    let grad = g.add(Op::Grad, &[loss, w, b]);
    let grads = g.gets(grad);
    g.set_here(Phase::Update, Span::default(), None);
    let rate = g.constant(0.5, f);
    for (k, (weight, grad)) in [w, b].into_iter().zip(grads).collect::<Vec<(NodeId, NodeId)>>().into_iter().enumerate()
    {
        let step = g.add(Op::Mul, &[grad, rate]);
        let next = g.add(Op::Sub, &[weight, step]);
        let name = g.inputs()[k].name.clone();
        g.output_as(name, Role::Next(InputId(k as u32)), next);
    }
    g
}

#[test]
fn the_plan_of_a_classifier() {
    let graph = pass::prepare(&classifier(), &pass::Options::default()).unwrap();
    let plan = plan(&graph, &PlanOptions::default()).unwrap();
    plan.verify().unwrap();
    golden("classifier.txt", &format!("{}{plan}", plan.report.table()));
}
