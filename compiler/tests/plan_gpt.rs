//! The plan of a GPT-2 training step: what is fused, and that it computes what the reference says.

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
mod plan_support;
/// What the interpreter takes from the strip routines.
mod strip {
    pub(crate) fn erf_f64(x: f64) -> f64 {
        libm::erf(x)
    }
}

use mdl_compiler::kernel::{Parts, Work};
use mdl_compiler::pass;
use mdl_compiler::plan::{Plan, PlanOptions, Step, plan};
use mdl_compiler::reference::{self, Data, Tensor};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{DType, Graph, Name, Op};
use plan_support::gpt::{CHAR, Gpt, MID, TINY, training_step};
use plan_support::{golden, run};

fn prepared(shape: &Gpt) -> Graph {
    pass::prepare(&training_step(shape), &pass::Options::default()).unwrap()
}

/// Second moments are not negative, and the step counts from 1.
fn inputs(graph: &Graph) -> Vec<Tensor> {
    let mut inputs = random_inputs(graph, 3);
    for (input, value) in graph.inputs().iter().zip(&mut inputs) {
        match (&mut value.data, input.ty.dtype) {
            (Data::Int(data), DType::I32) => data.iter_mut().for_each(|x| *x = x.abs() % 11 + 1),
            (Data::Float(data), _) if input.name.as_str().ends_with("/v") => data.iter_mut().for_each(|x| *x = x.abs()),
            _ => {}
        }
    }
    inputs
}

#[test]
fn a_training_step_computes_what_the_reference_says() {
    let graph = prepared(&TINY);
    let inputs = inputs(&graph);
    let expected = reference::eval(&graph, &inputs).unwrap();
    for fuse in [false, true] {
        let plan = plan(&graph, &PlanOptions { fuse, ..PlanOptions::default() }).unwrap();
        plan.verify().unwrap_or_else(|error| panic!("{error}\n{plan}"));
        let results = run(&plan, &graph, &inputs);
        for ((output, result), expected) in graph.outputs().iter().zip(&results).zip(&expected) {
            for (a, b) in result.to_f64().iter().zip(expected.to_f64()) {
                assert!(is_close(*a, b, 2e-4), "fuse {fuse}: {} is {a}, not {b}", output.name);
            }
        }
    }
}

fn in_pieces(shape: &Gpt, precision: pass::Precision) -> Graph {
    let options = pass::Options { chunk_bytes: Some(64), precision, ..pass::Options::default() };
    pass::prepare(&training_step(shape), &options).unwrap()
}

/// The loops of a graph over pieces of a product, and what the largest value anywhere with this axis holds.
fn pieces_of(graph: &Graph, axis: &Name) -> (Vec<u64>, u64) {
    let (mut loops, mut largest) = (Vec::new(), 0);
    for node in graph.nodes() {
        if node.ty.axes.contains(axis) {
            largest = largest.max(node.ty.count());
        }
        if let Op::Loop(inner) = &node.op {
            if inner.axis.name.as_str() == "chunk" {
                loops.push(inner.axis.size);
            }
            let (more, count) = pieces_of(&inner.body, axis);
            loops.extend(more);
            largest = largest.max(count);
        }
    }
    (loops, largest)
}

/// One loop computes logits, loss and gradients piece by piece; no value holds all logits; the results are those of the whole.
#[test]
fn the_loss_in_pieces_computes_what_the_reference_says() {
    let whole = prepared(&TINY);
    let inputs = inputs(&whole);
    let expected = reference::eval(&whole, &inputs).unwrap();
    let cut = in_pieces(&TINY, pass::Precision::F32);
    let rows = TINY.batch * TINY.t;
    let (loops, largest) = pieces_of(&cut, &Name::from("vocab"));
    assert_eq!(loops, [TINY.batch], "{cut}");
    assert!(largest < rows * TINY.vocab && pieces_of(&whole, &Name::from("vocab")).1 >= rows * TINY.vocab, "{cut}");
    let meant = reference::eval(&cut, &inputs).unwrap();
    let results = run(&planned(&cut), &cut, &inputs);
    for (((output, result), meant), expected) in cut.outputs().iter().zip(&results).zip(&meant).zip(&expected) {
        for ((a, b), c) in result.to_f64().iter().zip(meant.to_f64()).zip(expected.to_f64()) {
            assert!(is_close(b, c, 1e-9), "{} means {b}, not {c}", output.name);
            assert!(is_close(*a, c, 2e-4), "{} is {a}, not {c}", output.name);
        }
    }
    // In low precision the sums over pieces stay in f32.
    let low = in_pieces(&TINY, pass::Precision::BF16);
    let sums = low.nodes().iter().find_map(|node| match &node.op {
        Op::Loop(inner) if inner.axis.name.as_str() == "chunk" => Some(inner),
        _ => None,
    });
    let sums = sums.unwrap_or_else(|| panic!("{low}"));
    assert!(sums.carries > 0);
    for output in &sums.body.outputs()[..sums.carries] {
        assert_eq!(sums.body.ty(output.node).dtype, DType::F32, "{low}");
    }
    planned(&low);
}

/// Only the model's products are made in parts, forward and backward, and only where it is asked for.
#[test]
fn products_in_parts_are_asked_for() {
    let parts = |precision| {
        let options = pass::Options { precision, ..pass::Options::default() };
        let step = training_step(&TINY);
        let plan = mdl_compiler::budget::compile(&step, &options, &PlanOptions::default(), None).unwrap();
        let products = plan.kernels.iter().filter_map(|kernel| match &kernel.work {
            Work::Contract(contract) => Some(contract.parts),
            _ => None,
        });
        products.collect::<Vec<_>>()
    };
    let whole = parts(pass::Precision::F32);
    assert!(whole.iter().all(|parts| *parts == Parts::Whole));
    for (precision, wanted) in [(pass::Precision::BF16x3, Parts::Three), (pass::Precision::BF16x6, Parts::Six)] {
        let cut = parts(precision);
        assert_eq!(cut.len(), whole.len());
        assert!(cut.iter().filter(|parts| **parts == wanted).count() > whole.len() / 2, "{cut:?}");
    }
}

/// A vocabulary of 50,304: its logits are cut without being asked for, those of a small vocabulary are not.
#[test]
fn large_logits_are_never_in_memory_at_once() {
    let shape = Gpt { layers: 2, width: 256, heads: 4, t: 512, batch: 4, vocab: 50_304 };
    let logits = shape.batch * shape.t * shape.vocab * 4;
    let whole_options = pass::Options { chunk_bytes: Some(u64::MAX), ..pass::Options::default() };
    let whole = planned(&pass::prepare(&training_step(&shape), &whole_options).unwrap());
    let cut = planned(&prepared(&shape));
    let largest = |plan: &Plan| plan.slots.iter().map(|slot| slot.bytes).max();
    assert!(largest(&whole) >= Some(logits));
    assert!(largest(&cut) <= Some(logits / 4), "{:?} of {logits}", largest(&cut));
    let (before, after) = (whole.report.peak_bytes, cut.report.peak_bytes);
    assert!(after + logits / 2 <= before, "{before} -> {after} bytes");
    for small in [CHAR, MID] {
        assert!(pieces_of(&prepared(&small), &Name::from("vocab")).0.is_empty());
    }
}

fn planned(graph: &Graph) -> Plan {
    let plan = plan(graph, &PlanOptions::default()).unwrap();
    plan.verify().unwrap_or_else(|error| panic!("{error}\n{plan}"));
    plan
}

fn launches(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Launch { .. })).count()
}

/// What fusion has to reach at the size of a small character model: kernels that a person would write, and no copy.
#[test]
fn a_training_step_is_few_launches_and_little_traffic() {
    let plan = planned(&prepared(&CHAR));
    let table = plan.report.table();
    let layers: Vec<usize> = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Loop { body, .. } => Some(launches(body)),
            Step::Launch { .. } | Step::Copy { .. } => None,
        })
        .collect();
    assert!(matches!(layers[..], [forward, backward] if forward <= 11 && backward <= 28), "{layers:?}\n{table}");
    assert!(plan.report.launches <= 215, "{} launches\n{table}", plan.report.launches);
    assert!(plan.report.traffic_bytes <= 265_000_000, "{} bytes\n{table}", plan.report.traffic_bytes);
    assert!(!plan.steps_text().contains("copy"), "{}", plan.steps_text());
}

/// Attention is one kernel forward and one backward in each layer, and no scores are stored.
#[test]
fn attention_is_two_kernels() {
    let plan = planned(&prepared(&MID));
    golden("gpt_fused.txt", &plan.report.table());
    let planes = plan.report.groups.iter().filter(|group| group.name.starts_with("plane")).count();
    assert_eq!(planes, 2, "{}", plan.report.table());
}

#[test]
fn memory_stays_at_its_bound() {
    for shape in [CHAR, MID] {
        let report = planned(&prepared(&shape)).report;
        // Gradients move in among what was saved whole buffers at a time, so a little room is lost between them.
        let (peak, bound) = (report.peak_bytes, report.bound_bytes);
        assert!(peak as f64 <= 1.08 * bound as f64, "{peak} bytes, and {bound} are live at once");
        assert_eq!(report.bytes.iter().map(|(_, bytes)| bytes).sum::<u64>(), report.peak_bytes);
    }
}

/// Another plan may be told to keep a tensor as this one has it.
#[test]
fn orders_of_axes_can_be_chosen() {
    let graph = prepared(&TINY);
    let mut orders = planned(&graph).orders();
    for order in orders.values_mut() {
        order.reverse();
    }
    let options = PlanOptions { orders: orders.clone(), ..PlanOptions::default() };
    let turned = plan(&graph, &options).unwrap();
    turned.verify().unwrap();
    assert_eq!(turned.orders(), orders);
    let inputs = inputs(&graph);
    let expected = reference::eval(&graph, &inputs).unwrap();
    for (result, expected) in run(&turned, &graph, &inputs).iter().zip(&expected) {
        for (a, b) in result.to_f64().iter().zip(expected.to_f64()) {
            assert!(is_close(*a, b, 2e-4));
        }
    }
    let wrong = PlanOptions { orders: [(Name::from("tokens.w"), vec![Name::from("vocab")])].into(), ..options };
    let error = plan(&graph, &wrong).unwrap_err().to_string();
    assert_eq!(error, "the order asked for `tokens.w` is not one of its axes f32[vocab:11, width:8]");
}
