//! Derivatives against central differences: every primitive, loops of every kind, and random programs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use mdl_compiler::grad::{SAVED, differentiate};
use mdl_compiler::testing::differences::check_gradient;
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::{Rng, random_inputs};
use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Scalar, ScatterKind, Type};

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

fn name(text: &str) -> Name {
    Name::from(text)
}

fn axis(text: &str, size: u64) -> Axis {
    Axis::new(text, size)
}

/// A program of inputs; all its floats are differentiated. Values are bent, so that cotangents differ from element to element.
fn check(case: &str, inputs: &[Type], build: impl Fn(&mut Graph, &[NodeId]) -> NodeId) -> usize {
    let mut graph = Graph::new();
    let nodes: Vec<NodeId> =
        inputs.iter().enumerate().map(|(k, ty)| graph.input(format!("x{k}"), InputKind::Weight, ty.clone())).collect();
    let y = build(&mut graph, &nodes);
    let y = graph.add(Op::Sin, &[y]);
    let xs: Vec<usize> = (0..inputs.len()).filter(|k| inputs[*k].dtype.is_float()).collect();
    let values = random_inputs(&graph, case.len() as u64);
    match check_gradient(&graph, y, &xs, &values) {
        Ok(compared) => compared,
        Err(message) => panic!("{case}: {message}"),
    }
}

const F: DType = DType::F64;
const I: DType = DType::I32;

#[test]
fn every_map() {
    let a = ty(F, &[("a", 3), ("b", 5)]);
    let b = ty(F, &[("b", 5), ("c", 2)]);
    for op in [Op::Exp, Op::Tanh, Op::Erf, Op::Sin, Op::Cos, Op::Neg, Op::Cast(DType::F32)] {
        let compared = check(op.name(), std::slice::from_ref(&a), |graph, x| {
            let y = graph.add(op.clone(), x);
            graph.cast(y, F)
        });
        assert_eq!(compared, 15, "{}", op.name());
    }
    for op in [Op::Log, Op::Sqrt] {
        check(op.name(), std::slice::from_ref(&a), |graph, x| {
            let e = graph.add(Op::Exp, x);
            graph.add(op.clone(), &[e])
        });
    }
    for op in [Op::Add, Op::Sub, Op::Mul, Op::Max] {
        assert!(check(op.name(), &[a.clone(), b.clone()], |graph, x| graph.add(op.clone(), x)) > 15);
    }
    for op in [Op::Div, Op::Pow, Op::Rem] {
        let compared = check(op.name(), &[a.clone(), b.clone()], |graph, x| {
            let (p, q) = (graph.add(Op::Exp, &[x[0]]), graph.add(Op::Exp, &[x[1]]));
            graph.add(op.clone(), &[p, q])
        });
        assert!(compared > 15, "{}", op.name());
    }
    check("select", &[ty(DType::Bool, &[("a", 3)]), a.clone(), b.clone()], |graph, x| graph.add(Op::Select, x));
    check("add of one thing twice", std::slice::from_ref(&a), |graph, x| graph.add(Op::Mul, &[x[0], x[0]]));
    for size in [0, 1] {
        let small = ty(F, &[("a", size), ("b", 5)]);
        check("mul with sizes 0 and 1", &[small, b.clone()], |graph, x| graph.add(Op::Mul, x));
    }
}

#[test]
fn every_sum() {
    for (a, b, c) in [(3, 5, 2), (1, 1, 1), (0, 3, 2), (7, 0, 1)] {
        let x = ty(F, &[("a", a), ("b", b)]);
        let z = ty(F, &[("b", b), ("c", c)]);
        check("sum", std::slice::from_ref(&x), |graph, x| graph.add(Op::Sum(vec![name("b")]), x));
        check("sum of all", std::slice::from_ref(&x), |graph, x| graph.add(Op::Sum(vec![name("a"), name("b")]), x));
        for reverse in [false, true] {
            check("prefix", std::slice::from_ref(&x), |graph, x| graph.add(Op::Prefix { axis: name("b"), reverse }, x));
        }
        for over in [vec![], vec![name("b")]] {
            check("contract", &[x.clone(), z.clone()], |graph, x| graph.add(Op::Contract(over.clone()), x));
        }
        if b > 0 {
            check("max_over", std::slice::from_ref(&x), |graph, x| graph.add(Op::MaxOver(vec![name("b")]), x));
        }
    }
}

#[test]
fn the_largest_share_the_gradient() {
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Weight, ty(F, &[("a", 4)]));
    let y = graph.add(Op::MaxOver(vec![name("a")]), &[x]);
    let marker = graph.add(Op::Grad, &[y, x]);
    let dx = graph.add(Op::Get(0), &[marker]);
    graph.output_as("dx", Role::Value, dx);
    let values = mdl_compiler::reference::Tensor::float(ty(F, &[("a", 4)]), vec![2.0, 1.0, 2.0, 0.0]);
    let got = mdl_compiler::reference::eval(&differentiate(&graph), &[values]).unwrap();
    assert_eq!(got[0].to_f64(), [0.5, 0.0, 0.5, 0.0]);
}

#[test]
fn every_view() {
    let x = ty(F, &[("a", 6), ("b", 5)]);
    let views = [
        Op::Rename(vec![(name("a"), name("z"))]),
        Op::Rename(vec![(name("a"), name("b")), (name("b"), name("a"))]),
        Op::Split { axis: name("a"), into: vec![axis("z", 2), axis("a", 3)] },
        Op::Merge { axes: vec![name("b"), name("a")], into: name("a") },
        Op::Slice { axis: name("a"), start: 1, len: 3, step: 1 },
        Op::Slice { axis: name("a"), start: 5, len: 6, step: -1 },
        Op::Slice { axis: name("a"), start: 1, len: 3, step: 2 },
        Op::Slice { axis: name("a"), start: 5, len: 2, step: -3 },
        Op::Slice { axis: name("a"), start: 2, len: 3, step: 0 },
        Op::Slice { axis: name("a"), start: 4, len: 1, step: 7 },
        Op::Slice { axis: name("a"), start: 0, len: 0, step: 1 },
        Op::Pad { axis: name("b"), before: 2, after: 1, fill: Scalar::Float(3.0) },
        Op::Window { axis: name("a"), out: name("a"), tap: axis("k", 3), stride: 2 },
        Op::Window { axis: name("a"), out: name("o"), tap: axis("k", 2), stride: 3 },
        Op::Window { axis: name("a"), out: name("o"), tap: axis("k", 7), stride: 1 },
        Op::Unwindow { axis: axis("i", 13), out: name("a"), tap: name("b"), stride: 1 },
        Op::Unwindow { axis: axis("a", 17), out: name("a"), tap: name("b"), stride: 2 },
        Op::Expand(vec![axis("c", 3), axis("d", 1)]),
        Op::Expand(vec![axis("c", 0)]),
    ];
    for view in views {
        check(&view.to_string(), std::slice::from_ref(&x), |graph, x| graph.add(view.clone(), x));
    }
}

#[test]
fn gather_and_scatter() {
    let table = ty(F, &[("v", 4), ("a", 3)]);
    for index in [ty(I, &[("b", 5)]), ty(I, &[("a", 3), ("b", 2)]), ty(I, &[("v", 2)]), ty(I, &[]), ty(I, &[("b", 0)])]
    {
        check("gather", &[table.clone(), index], |graph, x| graph.add(Op::Gather { axis: name("v") }, x));
    }
    let rows = ty(F, &[("b", 5), ("a", 3)]);
    for kind in [ScatterKind::Add, ScatterKind::Put] {
        for (index, keep) in [
            (ty(I, &[("b", 5)]), vec![]),
            (ty(I, &[("a", 3), ("b", 5)]), vec![name("a")]),
            (ty(I, &[("a", 3), ("b", 5)]), vec![]),
            (ty(I, &[("b", 5), ("c", 2)]), vec![]),
            (ty(I, &[("b", 5), ("c", 2)]), vec![name("b"), name("c")]),
        ] {
            check("scatter", &[rows.clone(), index], |graph, x| {
                graph.add(Op::Scatter { axis: axis("v", 4), keep: keep.clone(), kind }, x)
            });
        }
    }
}

/// `h = tanh(h · u + x)` along `t`.
fn cell(hidden: u64, reverse: bool, t: u64) -> Loop {
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, ty(F, &[("hidden", hidden)]));
    let x = body.input("x", InputKind::Param, ty(F, &[("hidden", hidden)]));
    let u = body.input("u", InputKind::Param, ty(F, &[("hidden", hidden), ("hidden'", hidden)]));
    let product = body.add(Op::Contract(vec![name("hidden")]), &[h, u]);
    let product = body.rename(product, [(name("hidden'"), name("hidden"))]);
    let sum = body.add(Op::Add, &[product, x]);
    let next = body.add(Op::Tanh, &[sum]);
    body.output_as("h", Role::Value, next);
    body.output_as("h along t", Role::Value, next);
    Loop { axis: axis("t", t), reverse, carries: 1, scans: 1, until: false, body }
}

#[test]
fn a_scan_with_a_free_weight() {
    for (t, reverse) in [(4, false), (4, true), (1, false), (0, false)] {
        let inputs =
            [ty(F, &[("hidden", 3)]), ty(F, &[("hidden", 3), ("t", t)]), ty(F, &[("hidden", 3), ("hidden'", 3)])];
        check("the last carry", &inputs, |graph, x| graph.loop_over(cell(3, reverse, t), x)[0]);
        check("what was stacked", &inputs, |graph, x| graph.loop_over(cell(3, reverse, t), x)[1]);
        check("both", &inputs, |graph, x| {
            let results = graph.loop_over(cell(3, reverse, t), x);
            graph.add(Op::Mul, &[results[0], results[1]])
        });
    }
}

#[test]
fn loops_in_loops() {
    // Layers, each a scan along t with weights of its own.
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, ty(F, &[("hidden", 2), ("t", 3)]));
    let u = body.input("u", InputKind::Param, ty(F, &[("hidden", 2), ("hidden'", 2)]));
    let start = body.input("start", InputKind::Param, ty(F, &[("hidden", 2)]));
    let results = body.loop_over(cell(2, false, 3), &[start, h, u]);
    let sum = body.add(Op::Add, &[results[1], h]);
    body.output_as("h", Role::Value, sum);
    let layers = Loop { axis: axis("layer", 3), reverse: false, carries: 1, scans: 1, until: false, body };
    let inputs = [
        ty(F, &[("hidden", 2), ("t", 3)]),
        ty(F, &[("hidden", 2), ("hidden'", 2), ("layer", 3)]),
        ty(F, &[("hidden", 2)]),
    ];
    check("repeat of scan", &inputs, |graph, x| graph.loop_over(layers.clone(), x)[0]);
}

#[test]
fn a_loop_over_an_axis_that_its_values_also_have() {
    // h = tanh(h + Σ_t k · h) where k, which is free, has the axis t of the loop.
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, ty(F, &[("hidden", 2)]));
    let k = body.input("k", InputKind::Param, ty(F, &[("hidden", 2), ("t", 3)]));
    let score = body.add(Op::Contract(vec![name("hidden")]), &[h, k]);
    let weight = body.add(Op::Exp, &[score]);
    let read = body.add(Op::Contract(vec![name("t")]), &[weight, k]);
    let next = body.add(Op::Tanh, &[read]);
    body.output_as("h", Role::Value, next);
    let inner = Loop { axis: axis("t", 3), reverse: false, carries: 1, scans: 0, until: false, body };
    check("reads all of t", &[ty(F, &[("hidden", 2)]), ty(F, &[("hidden", 2), ("t", 3)])], |graph, x| {
        graph.loop_over(inner.clone(), x)[0]
    });
}

/// `x = x · w` until the pass number exceeds two.
fn early() -> Loop {
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, ty(F, &[("a", 2)]));
    let i = body.input("i", InputKind::Param, ty(I, &[]));
    let w = body.input("w", InputKind::Param, ty(F, &[("a", 2)]));
    let product = body.add(Op::Mul, &[x, w]);
    let one = body.constant(1.0, I);
    let two = body.constant(2.0, I);
    let next = body.add(Op::Add, &[i, one]);
    let stop = body.add(Op::Less, &[two, next]);
    body.output_as("x", Role::Value, product);
    body.output_as("i", Role::Value, next);
    body.output_as("stop", Role::Value, stop);
    Loop { axis: axis("step", 6), reverse: false, carries: 2, scans: 0, until: true, body }
}

#[test]
fn a_loop_that_ends_early() {
    let inputs = [ty(F, &[("a", 2)]), ty(F, &[("a", 2)])];
    check("until", &inputs, |graph, x| {
        let zero = graph.constant(0.0, I);
        graph.loop_over(early(), &[x[0], zero, x[1]])[0]
    });
}

#[test]
fn a_gradient_in_a_body_and_a_gradient_of_a_gradient() {
    // One position of a map: the gradient of sin(Σ x · w) with respect to w.
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, ty(F, &[("a", 3)]));
    let w = body.input("w", InputKind::Param, ty(F, &[("a", 3)]));
    let dot = body.add(Op::Contract(vec![name("a")]), &[x, w]);
    let loss = body.add(Op::Exp, &[dot]);
    let marker = body.add(Op::Grad, &[loss, w]);
    let dw = body.add(Op::Get(0), &[marker]);
    body.output_as("dw", Role::Value, dw);
    let each = Loop { axis: axis("row", 4), reverse: false, carries: 0, scans: 1, until: false, body };
    let inputs = [ty(F, &[("a", 3), ("row", 4)]), ty(F, &[("a", 3)])];
    check("per example", &inputs, |graph, x| graph.loop_over(each.clone(), x)[0]);

    let inputs = [ty(F, &[("hidden", 2)]), ty(F, &[("hidden", 2), ("t", 3)]), ty(F, &[("hidden", 2), ("hidden'", 2)])];
    check("second order through a scan", &inputs, |graph, x| {
        let results = graph.loop_over(cell(2, false, 3), x);
        let loss = graph.add(Op::Sin, &[results[0]]);
        let marker = graph.add(Op::Grad, &[loss, x[0], x[2]]);
        let gets = graph.gets(marker);
        let (a, b) = (graph.add(Op::Mul, &[gets[0], gets[0]]), graph.add(Op::Mul, &[gets[1], gets[1]]));
        let b = graph.sum(b, [name("hidden'")]);
        graph.add(Op::Add, &[a, b])
    });
}

#[test]
fn inner_nodes_and_two_gradients_of_one_loop() {
    let inputs = [ty(F, &[("hidden", 2)]), ty(F, &[("hidden", 2), ("t", 3)]), ty(F, &[("hidden", 2), ("hidden'", 2)])];
    check("two objectives", &inputs, |graph, x| {
        let results = graph.loop_over(cell(2, false, 3), x);
        let first = graph.add(Op::Grad, &[results[0], x[2]]);
        let dw = graph.add(Op::Get(0), &[first]);
        let inner = graph.add(Op::Sin, &[results[1]]);
        let second = graph.add(Op::Grad, &[inner, results[1], x[0]]);
        let gets = graph.gets(second);
        let (a, b) = (graph.add(Op::Mul, &[gets[0], gets[1]]), graph.sum(dw, [name("hidden'")]));
        graph.add(Op::Mul, &[a, b])
    });
}

#[test]
fn masks_and_draws_are_not_saved() {
    // x = where(draw < 0.5 and position < 2, 0, x · w), the draw made of a free seed and the scanned number of the layer.
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, ty(DType::F32, &[("a", 4)]));
    let w = body.input("w", InputKind::Param, ty(DType::F32, &[("a", 4)]));
    let layer = body.input("layer", InputKind::Param, ty(I, &[]));
    let seed = body.input("seed", InputKind::Param, ty(I, &[]));
    let position = body.iota(axis("a", 4));
    let draw = body.add(Op::Uniform { place: 1 }, &[seed, seed, layer, position]);
    let half = body.constant(0.5, DType::F32);
    let two = body.constant(2.0, I);
    let (low, early) = (body.add(Op::Less, &[draw, half]), body.add(Op::Less, &[position, two]));
    let off = body.add(Op::And, &[low, early]);
    let zero = body.constant(0.0, DType::F32);
    let product = body.add(Op::Mul, &[x, w]);
    let next = body.add(Op::Select, &[off, zero, product]);
    body.output_as("x", Role::Value, next);
    let inner = Loop { axis: axis("layer", 3), reverse: false, carries: 1, scans: 2, until: false, body };
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Weight, ty(DType::F32, &[("a", 4)]));
    let w = graph.input("w", InputKind::Weight, ty(DType::F32, &[("a", 4), ("layer", 3)]));
    let seed = graph.input("seed", InputKind::Scalar, ty(I, &[]));
    let layer = graph.iota(axis("layer", 3));
    let y = graph.loop_over(inner, &[x, w, layer, seed])[0];
    let marker = graph.add(Op::Grad, &[y, w]);
    let dw = graph.add(Op::Get(0), &[marker]);
    graph.output_as("dw", Role::Value, dw);
    let graph = differentiate(&graph);
    graph.verify().unwrap();
    let saved: Vec<_> = graph
        .nodes()
        .iter()
        .filter_map(|node| node.op.body())
        .flat_map(|body| body.outputs())
        .filter(|output| output.name.as_str().starts_with(SAVED))
        .collect();
    assert_eq!(saved.len(), 1, "only the carry x is saved\n{graph}");
}

#[test]
fn random_programs() {
    let (mut compared, mut programs, mut loops) = (0, 0, 0);
    for seed in 0..500 {
        let options =
            RandomOptions { dtype: F, detach: false, n_ops: 4 + seed as usize % 14, ..RandomOptions::default() };
        let graph = random_graph(seed, options);
        let inputs = random_inputs(&graph, seed);
        let Some(loss) = graph.output("loss").map(|output| output.node) else { panic!("{seed}: no loss") };
        let floats: Vec<usize> =
            (0..inputs.len()).filter(|k| inputs[*k].ty.dtype.is_float() && inputs[*k].ty.count() <= 60).collect();
        // One input, and a few of its elements would do; all of one keeps the time short.
        let Some(x) = Rng::new(seed).pick(&floats).copied() else { continue };
        match check_gradient(&graph, loss, &[x], &inputs) {
            Ok(n) => compared += n,
            Err(message) => panic!("seed {seed}: {message}"),
        }
        programs += 1;
        loops +=
            graph.live().iter().zip(graph.nodes()).filter(|(live, node)| **live && node.op.body().is_some()).count();
    }
    assert!(
        programs > 450 && compared > 2_000 && loops > 100,
        "{programs} programs, {compared} elements, {loops} loops"
    );
}
