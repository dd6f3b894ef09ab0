//! A batch in pieces means the same as the whole batch, or is refused with the place that mixes examples.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Model, language_model, name};
use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::reference::eval;
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{DType, FileId, Graph, InputKind, Op, Phase, Role, Span};

fn same(graph: &Graph, micro: u64) -> Graph {
    let inputs = random_inputs(graph, 3);
    let whole = prepare(graph, &Options::default()).unwrap();
    let cut = prepare(graph, &Options { micro, ..Options::default() }).unwrap();
    let (wanted, got) = (eval(&whole, &inputs).unwrap(), eval(&cut, &inputs).unwrap());
    for ((a, b), output) in wanted.iter().zip(&got).zip(whole.outputs()) {
        assert_eq!(a.ty, b.ty);
        assert!(a.to_f64().iter().any(|value| *value != 0.0), "{} says nothing", output.name);
        for (a, b) in a.to_f64().into_iter().zip(b.to_f64()) {
            assert!(is_close(a, b, 1e-9), "{}: {a} and {b}\n{cut}", output.name);
        }
    }
    cut
}

fn loops_over(graph: &Graph, axis: &str) -> usize {
    graph.nodes().iter().filter(|node| matches!(&node.op, Op::Loop(inner) if inner.axis.name.as_str() == axis)).count()
}

#[test]
fn a_masked_mean_over_a_model_with_layers_and_dropout_is_exact() {
    for micro in [2, 3, 6] {
        let cut = same(&language_model(&Model { batch: 6, ..Model::default() }), micro);
        assert_eq!(loops_over(&cut, "micro"), 2, "one counts the mask, one does the work\n{cut}");
        let light = cut.nodes().iter().find_map(|node| node.op.body()).unwrap();
        assert!(!light.nodes().iter().any(|node| matches!(node.op, Op::Contract(_) | Op::Loop(_))), "{light}");
    }
}

#[test]
fn one_piece_is_the_whole_batch() {
    let graph = language_model(&Model::default());
    let whole = prepare(&graph, &Options::default()).unwrap();
    assert_eq!(whole, prepare(&graph, &Options { micro: 1, ..Options::default() }).unwrap());
}

fn refusal(build: impl Fn(&mut Graph, mdl_graph::NodeId, mdl_graph::NodeId) -> mdl_graph::NodeId) -> (String, Span) {
    let mut graph = Graph::new();
    let w = graph.input("w", InputKind::Weight, common::ty(DType::F32, &[("width", 3), ("out", 2)]));
    let x = graph.input("x", InputKind::Batch, common::ty(DType::F32, &[("batch", 4), ("width", 3)]));
    let y = graph.add(Op::Contract(vec![name("width")]), &[x, w]);
    graph.set_here(Phase::Forward, Span::new(FileId(0), 7, 9), None);
    let y = build(&mut graph, x, y);
    graph.set_here(Phase::Forward, Span::default(), None);
    let names: Vec<_> = graph.ty(y).axes.names().cloned().collect();
    let square = graph.add(Op::Mul, &[y, y]);
    let loss = graph.sum(square, names);
    let marker = graph.add(Op::Grad, &[loss, w]);
    let dw = graph.add(Op::Get(0), &[marker]);
    graph.output_as("dw", Role::Value, dw);
    let error = prepare(&graph, &Options { micro: 2, ..Options::default() }).unwrap_err();
    (error.message, error.span)
}

#[test]
fn what_mixes_examples_is_refused_with_its_place() {
    let span = Span::new(FileId(0), 7, 9);
    let batch_norm = refusal(|graph, _, y| {
        let sum = graph.sum(y, [name("batch")]);
        graph.add(Op::Sub, &[y, sum])
    });
    assert_eq!(batch_norm.1, span, "{}", batch_norm.0);
    let contrastive = refusal(|graph, _, y| {
        let other = graph.rename(y, [(name("batch"), name("batch'"))]);
        graph.add(Op::Contract(vec![name("out")]), &[y, other])
    });
    assert_eq!(contrastive.1, span, "{}", contrastive.0);
    let largest = refusal(|graph, _, y| graph.add(Op::MaxOver(vec![name("batch")]), &[y]));
    assert_eq!(largest.1, span, "{}", largest.0);
    let running = refusal(|graph, _, y| graph.add(Op::Prefix { axis: name("batch"), reverse: false }, &[y]));
    assert_eq!(running.1, span, "{}", running.0);
}

#[test]
fn pieces_must_be_equal() {
    let graph = language_model(&Model { batch: 6, ..Model::default() });
    let error = prepare(&graph, &Options { micro: 4, ..Options::default() }).unwrap_err();
    assert_eq!(error.message, "a batch of 6 cannot be cut into 4 equal pieces");
}
