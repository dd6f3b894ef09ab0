//! A loss that is no number: which step, and the first operation that made it.
//!
//! The step has already written over the weights, so they are made again: from the last checkpoint, step by step, which gives
//! the same bits. Then the reference interpreter runs the step, node by node.

use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::reference::{self, Tensor};
use mdl_graph::{DType, InputKind};

use super::{Training, initialize, load_weights};
use crate::checkpoint;
use crate::error::RunError;
use crate::run::Run;

/// Above this, running a step in the interpreter would take longer than anybody waits.
const MOST_FLOPS: u64 = 20_000_000_000;

pub(super) fn explain(training: &mut Training<'_>, run: &mut Run<'_>) -> RunError {
    let doing = format!("step {} of `{}`", training.done + 1, training.name);
    let next = "lower the learning rate, clip the gradient, or look at the data of this step";
    let found = if training.step.plan().report.flops <= MOST_FLOPS { find(training, run) } else { None };
    match found {
        Some(place) => RunError::failed(doing, format!("the loss is NaN; {place}; {next}")),
        None => RunError::failed(doing, format!("the loss is NaN; {next}")),
    }
}

/// Goes back to the weights before this step, and says what first made a NaN.
fn find(training: &mut Training<'_>, run: &mut Run<'_>) -> Option<String> {
    let found = checkpoint::latest(&training.checkpoints(run)).ok()?;
    let from = match found.filter(|found| found.recipe == training.hash) {
        Some(found) => {
            load_weights(&found, training.spec, &mut training.tensors).ok()?;
            found.step
        }
        None => {
            initialize(training.spec, training.seed, &training.orders, &mut training.tensors, run).ok()?;
            0
        }
    };
    let at = training.done;
    for step in from..=at {
        training.step.fill(&training.batcher, &training.dataset.facts.data.fields, step);
        training.step.set_scalar("seed", training.seed as i32);
        training.step.set_scalar("step", step as i32);
        if step < at {
            training.step.run(&mut training.tensors, &run.cpu);
        }
    }
    let graph = prepare(&training.spec.step, &Options::default()).ok()?;
    let mut inputs = Vec::new();
    for input in graph.inputs() {
        let (axes, bytes) = match input.kind {
            InputKind::Weight | InputKind::State => {
                let tensor = training.tensors.get(input.name.as_str())?;
                (tensor.axes.clone(), tensor.data.bytes().to_vec())
            }
            _ => match training.step.plan().input(input.name.as_str()) {
                Some(port) => {
                    let axes = port.axes.clone();
                    (axes, training.step.input_bytes(input.name.as_str())?.to_vec())
                }
                // Nothing reads it.
                None => (input.ty.axes.iter().cloned().collect(), vec![0; input.ty.size_bytes() as usize]),
            },
        };
        inputs.push(tensor_of(&input.ty, &axes, &bytes)?);
    }
    let node = reference::first_nan(&graph, &inputs)?;
    let made = graph.node(node);
    let scope = if made.scope.as_str().is_empty() { String::new() } else { format!(" in `{}`", made.scope) };
    Some(format!("the first operation that made one is `{}`{scope}", made.op.name()))
}

/// A tensor in the order of its axes' names from bytes in another order.
fn tensor_of(ty: &mdl_graph::Type, axes: &[mdl_graph::Axis], bytes: &[u8]) -> Option<Tensor> {
    let sizes: Vec<u64> = ty.axes.iter().map(|axis| axis.size).collect();
    let strides: Vec<i64> = ty
        .axes
        .iter()
        .map(|axis| {
            let at = axes.iter().position(|other| other.name == axis.name)?;
            Some(axes[at + 1..].iter().map(|inner| inner.size as i64).product())
        })
        .collect::<Option<_>>()?;
    let places = reference::offsets(&sizes, &strides, 0);
    let word = |place: usize| bytes[place * 4..place * 4 + 4].try_into().unwrap_or_default();
    Some(match ty.dtype {
        DType::F32 => {
            Tensor::float(ty.clone(), places.iter().map(|&at| f64::from(f32::from_le_bytes(word(at)))).collect())
        }
        DType::I32 => {
            Tensor::int(ty.clone(), places.iter().map(|&at| i64::from(i32::from_le_bytes(word(at)))).collect())
        }
        DType::Bool => Tensor::bool(ty.clone(), places.iter().map(|&at| bytes[at] != 0).collect()),
        _ => return None,
    })
}
