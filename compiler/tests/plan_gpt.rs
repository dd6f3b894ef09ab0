//! The plan of a GPT-2 training step: what is fused, and that it computes what the reference says.

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
use mdl_compiler::plan::{PlanOptions, plan};
use mdl_compiler::reference::{self, Data};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{DType, Graph};
use plan_support::gpt::{CHAR, Gpt, MID, TINY, training_step};
use plan_support::run;

fn prepared(shape: &Gpt) -> Graph {
    pass::prepare(&training_step(shape), &pass::Options::default()).unwrap()
}

#[test]
fn a_training_step_computes_what_the_reference_says() {
    let graph = prepared(&TINY);
    let mut inputs = random_inputs(&graph, 3);
    for (input, value) in graph.inputs().iter().zip(&mut inputs) {
        match (&mut value.data, input.ty.dtype) {
            (Data::Int(data), DType::I32) => data.iter_mut().for_each(|x| *x = x.abs() % 11 + 1),
            (Data::Float(data), _) if input.name.as_str().ends_with("/v") => data.iter_mut().for_each(|x| *x = x.abs()),
            _ => {}
        }
    }
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

fn table(shape: &Gpt) -> String {
    let graph = prepared(shape);
    let start = std::time::Instant::now();
    let plan = plan(&graph, &PlanOptions::default()).unwrap();
    let took = start.elapsed();
    let mut text = format!("{shape:?} planned in {took:?}\n{graph}\n");
    for group in &plan.report.groups {
        text.push_str(&format!(
            "{:50} [{}] members {} x{} {} -> {} flops {}\n",
            group.name, group.domain, group.members, group.runs, group.bytes_before, group.bytes_after, group.flops
        ));
    }
    let report = &plan.report;
    text.push_str(&format!(
        "launches {} flops {} traffic {} peak {} bound {} parameters {} kernels {}\n{:?}\n{plan}",
        report.launches,
        report.flops,
        report.traffic_bytes,
        report.peak_bytes,
        report.bound_bytes,
        report.parameters,
        plan.kernels.len(),
        report.bytes
    ));
    text
}

#[test]
fn show() {
    for (name, shape) in [("tiny", TINY), ("char", CHAR), ("mid", MID)] {
        std::fs::write(format!("/tmp/plan_{name}.txt"), table(&shape)).unwrap();
    }
}
