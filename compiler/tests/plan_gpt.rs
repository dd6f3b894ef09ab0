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

use mdl_compiler::pass;
use mdl_compiler::plan::{Plan, PlanOptions, Step, plan};
use mdl_compiler::reference::{self, Data, Tensor};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{DType, Graph, Name};
use plan_support::gpt::{CHAR, Gpt, MID, TINY, training_step};
use plan_support::run;

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

#[test]
fn memory_stays_at_its_bound() {
    for shape in [CHAR, MID] {
        let report = planned(&prepared(&shape)).report;
        assert!(report.peak_bytes as f64 <= 1.01 * report.bound_bytes as f64, "{report:?}");
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
