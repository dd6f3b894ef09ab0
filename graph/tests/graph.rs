//! Shape rules, hash-consing, printing and serialization of graphs.

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, Op, Role, Scalar, ShapeError, Type};

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).expect("no name twice"))
}

/// `h = tanh(h + x)` along `t`, and the sum of all `h`.
fn recurrent() -> Graph {
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, ty(&[("hidden", 3)]));
    let x = body.input("x", InputKind::Param, ty(&[("hidden", 3)]));
    let sum = body.add(Op::Add, &[h, x]);
    let next = body.add(Op::Tanh, &[sum]);
    body.output_as("h", Role::Value, next);
    body.output_as("h along t", Role::Value, next);

    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Batch, ty(&[("t", 5), ("hidden", 3)]));
    let zero = graph.constant(0.0, DType::F32);
    let start = graph.expand(zero, &AxisSet::of([Axis::new("hidden", 3)]).expect("no name twice"));
    let inner = Loop { axis: Axis::new("t", 5), reverse: false, carries: 1, scans: 1, until: false, body };
    let results = graph.loop_over(inner, &[start, x]);
    let loss = graph.add(Op::Sum(vec![Name::from("hidden"), Name::from("t")]), &[results[1]]);
    graph.output_as("loss", Role::Value, loss);
    graph
}

#[test]
fn equal_nodes_are_one_and_commutative_arguments_are_sorted() {
    let mut graph = Graph::new();
    let a = graph.input("a", InputKind::Batch, ty(&[("t", 2)]));
    let b = graph.input("b", InputKind::Batch, ty(&[("key", 3)]));
    assert_eq!(graph.add(Op::Add, &[a, b]), graph.add(Op::Add, &[b, a]));
    assert_ne!(graph.add(Op::Sub, &[a, b]), graph.add(Op::Sub, &[b, a]));
}

#[test]
fn a_loop_prints_verifies_and_survives_serialization() {
    let graph = recurrent();
    graph.verify().unwrap();
    let text = graph.to_string();
    assert!(text.contains("loop[t:5](carry %2; scan %0; free ) {"), "{text}");
    assert!(text.contains(": f32[hidden:3, t:5]"), "{text}");
    let json = serde_json::to_string(&graph).unwrap();
    let back: Graph = serde_json::from_str(&json).unwrap();
    assert_eq!(graph, back);
    assert_eq!(json, serde_json::to_string(&back).unwrap());
}

#[test]
fn rebuilding_drops_what_no_output_needs_and_keeps_the_inputs() {
    let mut graph = recurrent();
    let x = graph.ids().next().unwrap();
    graph.add(Op::Exp, &[x]);
    let copy = graph.rebuild(|to, id, args| to.copy(&graph, id, args));
    assert_eq!(copy.nodes().len(), graph.nodes().len() - 2, "the exp, and the last carry that nobody reads");
    assert_eq!(copy.inputs(), graph.inputs());
    copy.verify().unwrap();
}

#[test]
fn constants_that_json_cannot_say_survive() {
    let mut graph = Graph::new();
    let lowest = graph.constant(f64::NEG_INFINITY, DType::F32);
    graph.output_as("x", Role::Value, lowest);
    let back: Graph = serde_json::from_str(&serde_json::to_string(&graph).unwrap()).unwrap();
    assert_eq!(back.op(lowest), &Op::Const(Scalar::Float(f64::NEG_INFINITY), DType::F32));
}

#[test]
fn shape_rules_refuse_what_has_no_meaning() {
    let mut graph = Graph::new();
    let a = graph.input("a", InputKind::Batch, ty(&[("t", 2)]));
    let b = graph.input("b", InputKind::Batch, ty(&[("t", 3)]));
    let flag = graph.constant(1.0, DType::Bool);
    let mut message = |op: Op, args: &[_]| graph.try_add(op, args).map_err(|ShapeError(text)| text).unwrap_err();
    assert_eq!(message(Op::Add, &[a, b]), "axis `t` has two sizes");
    assert_eq!(message(Op::Add, &[a, flag]), "`add` does not take (f32[t:2], bool[])");
    assert_eq!(message(Op::Sum(vec![Name::from("key")]), &[a]), "no axis `key` in f32[t:2], or named twice");
    assert_eq!(message(Op::Rename(vec![(Name::from("s"), Name::from("t"))]), &[a]), "no axis `s` in f32[t:2]");
    let into = vec![Axis::new("i", 2), Axis::new("j", 2)];
    assert_eq!(message(Op::Split { axis: Name::from("t"), into }, &[b]), "`t` has size 3, its parts make 4");
}

#[test]
fn windows_that_do_not_fit_are_none() {
    let mut graph = Graph::new();
    let a = graph.input("a", InputKind::Batch, ty(&[("t", 2)]));
    let window = Op::Window { axis: Name::from("t"), out: Name::from("t"), tap: Axis::new("k", 3), stride: 1 };
    let windows = graph.add(window, &[a]);
    assert_eq!(graph.ty(windows), &ty(&[("t", 0), ("k", 3)]));
}
