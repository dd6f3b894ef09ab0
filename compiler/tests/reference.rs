//! What each primitive means, on cases small enough to work out by hand.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{axis, name, ty};
use mdl_compiler::reference::{Data, Tensor, eval, eval_stored};
use mdl_graph::{DType, Graph, InputKind, Loop, Op, Role, Scalar, ScatterKind, Type, philox};

const F: DType = DType::F32;
const I: DType = DType::I32;

fn floats(axes: &[(&str, u64)], data: &[f64]) -> Tensor {
    Tensor::float(ty(F, axes), data.to_vec())
}

fn ints(axes: &[(&str, u64)], data: &[i64]) -> Tensor {
    Tensor::int(ty(I, axes), data.to_vec())
}

fn run(op: Op, args: &[Tensor]) -> Tensor {
    let mut graph = Graph::new();
    let nodes: Vec<_> = args
        .iter()
        .enumerate()
        .map(|(k, arg)| graph.input(format!("x{k}"), InputKind::Batch, arg.ty.clone()))
        .collect();
    let y = graph.add(op, &nodes);
    graph.output_as("y", Role::Value, y);
    eval(&graph, args).unwrap().remove(0)
}

fn gives(op: Op, args: &[Tensor], wanted: &[f64]) {
    let text = op.to_string();
    let got = run(op, args).to_f64();
    assert_eq!(got.len(), wanted.len(), "{text}");
    for (a, b) in got.iter().zip(wanted) {
        assert!((a - b).abs() < 1e-12 || a == b || (a.is_nan() && b.is_nan()), "{text}: {got:?}, not {wanted:?}");
    }
}

const X: [(&str, u64); 2] = [("a", 2), ("b", 3)];
const SIX: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];

#[test]
fn maps_match_axes_by_name() {
    gives(Op::Add, &[floats(&X, &SIX), floats(&[("a", 2)], &[10.0, 20.0])], &[11.0, 12.0, 13.0, 24.0, 25.0, 26.0]);
    gives(Op::Mul, &[floats(&[("b", 2)], &[1.0, 2.0]), floats(&[("a", 2)], &[10.0, 20.0])], &[10.0, 20.0, 20.0, 40.0]);
    gives(Op::Add, &[floats(&[("a", 0)], &[]), floats(&[("b", 2)], &[1.0, 2.0])], &[]);
}

#[test]
fn corners_of_maps() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let one = |value: f64| floats(&[], &[value]);
    gives(Op::Max, &[one(nan), one(1.0)], &[nan]);
    gives(Op::Less, &[one(nan), one(1.0)], &[0.0]);
    gives(Op::Exp, &[one(-inf)], &[0.0]);
    gives(Op::Rem, &[one(-7.0), one(3.0)], &[2.0]);
    gives(Op::Rem, &[one(7.0), one(-3.0)], &[-2.0]);
    gives(Op::Erf, &[one(0.5)], &[0.520_499_877_813_046_5]);
    let int = |value: i64| ints(&[], &[value]);
    gives(Op::Div, &[int(-7), int(2)], &[-4.0]);
    gives(Op::Div, &[int(7), int(0)], &[0.0]);
    gives(Op::Rem, &[int(-7), int(3)], &[2.0]);
    gives(Op::Add, &[int(i64::from(i32::MAX)), int(1)], &[f64::from(i32::MIN)]);
    gives(Op::Cast(I), &[one(-2.7)], &[-2.0]);
    gives(Op::Cast(DType::U8), &[one(300.0)], &[255.0]);
    gives(Op::Cast(DType::U8), &[int(300)], &[44.0]);
    gives(Op::Cast(DType::Bool), &[one(0.5)], &[1.0]);
    let flag = Tensor::bool(Type::scalar(DType::Bool), vec![true]);
    gives(Op::Select, &[flag, one(1.0), one(nan)], &[1.0]);
}

#[test]
fn reductions() {
    gives(Op::Sum(vec![name("a")]), &[floats(&X, &SIX)], &[5.0, 7.0, 9.0]);
    gives(Op::Sum(vec![name("a"), name("b")]), &[floats(&X, &SIX)], &[21.0]);
    gives(Op::Sum(vec![name("a")]), &[floats(&[("a", 0), ("b", 2)], &[])], &[0.0, 0.0]);
    gives(Op::MaxOver(vec![name("b")]), &[floats(&X, &SIX)], &[3.0, 6.0]);
    gives(Op::MaxOver(vec![name("a")]), &[floats(&[("a", 0)], &[])], &[f64::NEG_INFINITY]);
    gives(Op::MaxOver(vec![name("a")]), &[ints(&[("a", 0)], &[])], &[f64::from(i32::MIN)]);
    gives(Op::Prefix { axis: name("b"), reverse: false }, &[floats(&X, &SIX)], &[1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
    gives(Op::Prefix { axis: name("b"), reverse: true }, &[floats(&X, &SIX)], &[6.0, 5.0, 3.0, 15.0, 11.0, 6.0]);
    let y = floats(&[("b", 3), ("c", 2)], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    gives(Op::Contract(vec![name("b")]), &[floats(&X, &SIX), y], &[4.0, 5.0, 10.0, 11.0]);
    let top = Op::Top { axis: name("a"), out: axis("k", 3) };
    gives(top, &[floats(&[("a", 5)], &[1.0, f64::NAN, 3.0, 1.0, 3.0])], &[2.0, 4.0, 0.0]);
}

#[test]
fn views() {
    let x = floats(&X, &SIX);
    // Sorted by name: the data of a view that renames a to z is transposed.
    gives(Op::Rename(vec![(name("a"), name("z"))]), std::slice::from_ref(&x), &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    let row = floats(&[("a", 6)], &SIX);
    let split = Op::Split { axis: name("a"), into: vec![axis("n", 2), axis("m", 3)] };
    gives(split, std::slice::from_ref(&row), &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    gives(
        Op::Merge { axes: vec![name("b"), name("a")], into: name("m") },
        std::slice::from_ref(&x),
        &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0],
    );
    let slice = |start, len, step| Op::Slice { axis: name("a"), start, len, step };
    gives(slice(1, 2, 3), std::slice::from_ref(&row), &[2.0, 5.0]);
    gives(slice(4, 3, -2), std::slice::from_ref(&row), &[5.0, 3.0, 1.0]);
    let pad = Op::Pad { axis: name("a"), before: 1, after: 2, fill: Scalar::Float(9.0) };
    gives(pad, &[floats(&[("a", 2)], &[1.0, 2.0])], &[9.0, 1.0, 2.0, 9.0, 9.0]);
    let window = Op::Window { axis: name("a"), out: name("o"), tap: axis("k", 3), stride: 2 };
    // [k, o]
    gives(window, std::slice::from_ref(&row), &[1.0, 3.0, 2.0, 4.0, 3.0, 5.0]);
    let unwindow = Op::Unwindow { axis: axis("i", 4), out: name("a"), tap: name("b"), stride: 1 };
    gives(unwindow, std::slice::from_ref(&x), &[1.0, 6.0, 8.0, 6.0]);
    gives(Op::Expand(vec![axis("z", 2)]), &[floats(&[("a", 2)], &[1.0, 2.0])], &[1.0, 1.0, 2.0, 2.0]);
}

#[test]
fn gather_and_scatter() {
    let table = floats(&[("v", 3)], &[10.0, 20.0, 30.0]);
    gives(Op::Gather { axis: name("v") }, &[table, ints(&[("t", 4)], &[2, 0, -1, 3])], &[30.0, 10.0, 0.0, 0.0]);
    // An axis of both is matched.
    let table = floats(&[("t", 2), ("v", 2)], &[1.0, 2.0, 3.0, 4.0]);
    gives(Op::Gather { axis: name("v") }, &[table, ints(&[("t", 2)], &[1, 0])], &[2.0, 3.0]);
    let rows = floats(&[("t", 4)], &[1.0, 2.0, 4.0, 8.0]);
    let index = ints(&[("t", 4)], &[1, 0, 1, 5]);
    let scatter = |kind| Op::Scatter { axis: axis("v", 3), keep: vec![], kind };
    gives(scatter(ScatterKind::Add), &[rows.clone(), index.clone()], &[2.0, 5.0, 0.0]);
    gives(scatter(ScatterKind::Put), &[rows.clone(), index.clone()], &[2.0, 4.0, 0.0]);
    let kept = Op::Scatter { axis: axis("v", 2), keep: vec![name("t")], kind: ScatterKind::Add };
    gives(kept, &[rows, index], &[0.0, 1.0, 2.0, 0.0, 0.0, 4.0, 0.0, 0.0]);
}

#[test]
fn draws_are_those_of_philox() {
    let one = |value: i64| ints(&[], &[value]);
    let got = run(Op::Uniform { place: 9 }, &[one(7), one(3), one(1), ints(&[("a", 2)], &[0, 5])]);
    let wanted = [0, 5].map(|counter| f64::from(philox::uniform(7, 3, 1, 9, counter)));
    assert_eq!(got.to_f64(), wanted);
}

/// `x = 2 x`, stacked too, until it is more than 9.
#[test]
fn loops() {
    for (until, reverse) in [(false, false), (false, true), (true, false)] {
        let mut body = Graph::new();
        let x = body.input("x", InputKind::Param, ty(F, &[]));
        let s = body.input("s", InputKind::Param, ty(F, &[]));
        let sum = body.add(Op::Add, &[x, x]);
        let next = body.add(Op::Add, &[sum, s]);
        body.output_as("x", Role::Value, next);
        if until {
            let nine = body.constant(9.0, F);
            let stop = body.add(Op::Less, &[nine, next]);
            body.output_as("stop", Role::Value, stop);
        } else {
            body.output_as("all", Role::Value, next);
        }
        let inner = Loop { axis: axis("t", 4), reverse, carries: 1, scans: 1, until, body };
        let mut graph = Graph::new();
        let start = graph.input("start", InputKind::Batch, ty(F, &[]));
        let scanned = graph.input("s", InputKind::Batch, ty(F, &[("t", 4)]));
        for (k, result) in graph.loop_over(inner, &[start, scanned]).into_iter().enumerate() {
            graph.output_as(format!("{k}"), Role::Value, result);
        }
        let inputs = [floats(&[], &[1.0]), floats(&[("t", 4)], &[0.0, 1.0, 2.0, 3.0])];
        let got = eval(&graph, &inputs).unwrap();
        match (until, reverse) {
            (true, _) => assert_eq!(got[0].to_f64(), [12.0]),
            (_, false) => assert_eq!((got[0].to_f64(), got[1].to_f64()), (vec![27.0], vec![2.0, 5.0, 12.0, 27.0])),
            (_, true) => assert_eq!((got[0].to_f64(), got[1].to_f64()), (vec![50.0], vec![50.0, 25.0, 12.0, 5.0])),
        }
    }
}

#[test]
fn stored_values_are_rounded_at_every_node() {
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Batch, ty(DType::BF16, &[]));
    let third = graph.constant(1.0 / 3.0, DType::BF16);
    let y = graph.add(Op::Mul, &[x, third]);
    graph.output_as("y", Role::Value, y);
    let input = Tensor { ty: ty(DType::BF16, &[]), data: Data::Float(vec![3.0]) };
    assert_eq!(eval(&graph, std::slice::from_ref(&input)).unwrap()[0].to_f64(), [1.0]);
    // 1/3 is 0.333984375 in bf16, three times that 1.001953125, and the nearest bf16 is 1.
    assert_eq!(eval_stored(&graph, std::slice::from_ref(&input)).unwrap()[0].to_f64(), [1.0]);
    let tenth = Tensor { ty: ty(DType::BF16, &[]), data: Data::Float(vec![0.1]) };
    assert_eq!(eval_stored(&graph, &[tenth]).unwrap()[0].to_f64(), [0.033_447_265_625]);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Batch, ty(F, &[("a", 2)]));
    graph.output_as("x", Role::Value, x);
    let message = |inputs: &[Tensor]| eval(&graph, inputs).unwrap_err().to_string();
    assert_eq!(message(&[]), "0 values for 1 inputs");
    assert_eq!(message(&[floats(&[("a", 3)], &[0.0; 3])]), "input `x` is f32[a:2], not f32[a:3]");
    assert_eq!(message(&[floats(&[("a", 2)], &[0.0; 3])]), "the data of input `x` does not fit f32[a:2]");
}
