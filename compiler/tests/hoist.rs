//! The gradient of a recurrent weight is one product after the loop.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{axis, name, ty};
use mdl_compiler::grad::differentiate;
use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::reference::eval;
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{DType, Graph, InputKind, Loop, Op, Role};

const F: DType = DType::F32;

/// `h = tanh(x · w + h · u + b)` along `t`, and the gradients of the sum of all `h²`.
fn recurrent(batch: u64) -> Graph {
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, ty(F, &[("batch", batch), ("hidden", 3)]));
    let x = body.input("x", InputKind::Param, ty(F, &[("batch", batch), ("width", 2)]));
    let w = body.input("w", InputKind::Param, ty(F, &[("hidden", 3), ("width", 2)]));
    let u = body.input("u", InputKind::Param, ty(F, &[("hidden", 3), ("hidden'", 3)]));
    let b = body.input("b", InputKind::Param, ty(F, &[("hidden", 3)]));
    let from_x = body.add(Op::Contract(vec![name("width")]), &[x, w]);
    let from_h = body.add(Op::Contract(vec![name("hidden")]), &[h, u]);
    let from_h = body.rename(from_h, [(name("hidden'"), name("hidden"))]);
    let sum = body.add(Op::Add, &[from_x, from_h]);
    let sum = body.add(Op::Add, &[sum, b]);
    let next = body.add(Op::Tanh, &[sum]);
    body.output_as("h", Role::Value, next);
    body.output_as("all h", Role::Value, next);
    let inner = Loop { axis: axis("t", 5), reverse: false, carries: 1, scans: 1, until: false, body };

    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Batch, ty(F, &[("batch", batch), ("t", 5), ("width", 2)]));
    let w = graph.input("w", InputKind::Weight, ty(F, &[("hidden", 3), ("width", 2)]));
    let u = graph.input("u", InputKind::Weight, ty(F, &[("hidden", 3), ("hidden'", 3)]));
    let b = graph.input("b", InputKind::Weight, ty(F, &[("hidden", 3)]));
    let zero = graph.constant(0.0, F);
    let start = graph.add(Op::Expand(vec![axis("batch", batch), axis("hidden", 3)]), &[zero]);
    let all = graph.loop_over(inner, &[start, x, w, u, b])[1];
    let square = graph.add(Op::Mul, &[all, all]);
    let loss = graph.sum(square, ["batch", "hidden", "t"].map(name));
    let marker = graph.add(Op::Grad, &[loss, w, u, b]);
    for (k, get) in graph.gets(marker).into_iter().enumerate() {
        graph.output_as(format!("d {k}"), Role::Value, get);
    }
    graph
}

fn products(graph: &Graph) -> usize {
    graph.nodes().iter().filter(|node| matches!(node.op, Op::Contract(_))).count()
}

#[test]
fn weight_gradients_leave_the_loop() {
    let graph = recurrent(4);
    let prepared = prepare(&graph, &Options::default()).unwrap();
    let inputs = random_inputs(&graph, 1);
    let (wanted, got) = (eval(&differentiate(&graph), &inputs).unwrap(), eval(&prepared, &inputs).unwrap());
    for (a, b) in wanted.iter().zip(&got) {
        for (a, b) in a.to_f64().into_iter().zip(b.to_f64()) {
            assert!(is_close(a, b, 1e-9));
        }
    }
    let backward = prepared.nodes().iter().filter_map(|node| node.op.body()).next_back().unwrap();
    assert_eq!(products(backward), 1, "only the way back to h is left inside\n{prepared}");
    assert_eq!(products(&prepared), 2, "{prepared}");
    let Some(Op::Loop(inner)) = prepared.nodes().iter().map(|node| &node.op).rfind(|op| op.body().is_some()) else {
        panic!("no loop")
    };
    assert_eq!(inner.carries, 1, "no accumulators\n{prepared}");
}

#[test]
fn large_products_stay() {
    let prepared = prepare(&recurrent(2048), &Options::default()).unwrap();
    assert_eq!(products(&prepared), 0, "{prepared}");
}
