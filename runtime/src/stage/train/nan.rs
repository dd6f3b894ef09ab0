//! A loss or a weight that is no number: which step, and the first operation that made it.
//!
//! The step has already written over the weights, so they are made again: from the last checkpoint, step by step, which gives
//! the same bits. Then the reference interpreter runs the step, node by node.

use std::cmp::Ordering;

use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::reference::{self, Tensor};
use mdl_graph::{DType, InputKind, Name};

use super::{Training, kept_states};
use crate::checkpoint;
use crate::device::Tensor as Kept;
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

/// A weight or a state that must not be saved, and what is wrong with it.
pub(super) struct Spoilt {
    name: Name,
    what: &'static str,
}

/// The first weight that holds a NaN or an infinity, or state that holds a NaN: a state may be infinite, as the least of what was
/// seen is at first.
pub(super) fn spoilt(training: &Training<'_>) -> Option<Spoilt> {
    let weights = training.spec.weights.iter().map(|weight| (weight.path.clone(), true));
    let states = kept_states(training.spec, &training.step).into_iter().map(|state| (state, false));
    weights.chain(states).find_map(|(name, is_weight)| {
        let tensor = training.tensors.get(name.as_str())?;
        let what = match worst(tensor) {
            Ordering::Greater => "NaN",
            Ordering::Equal if is_weight => "infinite",
            _ => return None,
        };
        Some(Spoilt { name, what })
    })
}

/// Why nothing is saved.
pub(super) fn refuse(training: &mut Training<'_>, spoilt: Spoilt, run: &mut Run<'_>) -> RunError {
    let Spoilt { name, what } = spoilt;
    let doing = format!("step {} of `{}`", training.done, training.name);
    let can_look = what == "NaN" && training.step.plan().report.flops <= MOST_FLOPS;
    let place = if can_look { find(training, run) } else { None };
    let place = place.map_or(String::new(), |place| format!("; {place}"));
    let kept = match checkpoint::latest(&training.checkpoints(run)) {
        Ok(Some(found)) => format!("nothing was saved of it, and the checkpoint of step {} is whole", found.step),
        _ => "nothing was saved of it".to_string(),
    };
    let next = "lower the learning rate, clip the gradient, or look at the data of this step";
    RunError::failed(doing, format!("its update made `{name}` {what}{place}; {kept}; {next}"))
}

/// Goes back to the weights before the step that made the first NaN, and says what made it.
fn find(training: &mut Training<'_>, run: &mut Run<'_>) -> Option<String> {
    let at = training.done;
    let mut before = replay(training, run, at)?;
    if before < at {
        // An update made it, and the loss of the next step only met it.
        before = replay(training, run, before)?;
    }
    training.fill(before);
    let place = place(training)?;
    let of = if before < at { format!(" of step {}", before + 1) } else { String::new() };
    Some(format!("the first operation that made one is {place}{of}"))
}

/// Weights and states as they were before step `to`; earlier if a step before it leaves a NaN in them: before that step's end.
fn replay(training: &mut Training<'_>, run: &mut Run<'_>, to: u64) -> Option<u64> {
    let found = checkpoint::latest(&training.checkpoints(run)).ok()?;
    let read = |name: &Name| training.spec.reads.iter().any(|read| read.input == *name);
    for state in training.step.plan().states.iter().filter(|state| !read(&state.name)) {
        if let Some(tensor) = training.tensors.get_mut(state.name.as_str()) {
            tensor.data.bytes_mut().fill(0);
        }
    }
    let from = training.begin(found.as_ref(), run).ok()?;
    for step in from..to {
        training.fill(step);
        training.step.run(&mut training.tensors, &run.cpu).ok()?;
        training.tensors.fetch().ok()?;
        if training.tensors.iter().any(|(_, tensor)| has_nan(tensor)) {
            return Some(step);
        }
    }
    Some(to)
}

fn has_nan(tensor: &Kept) -> bool {
    worst(tensor) == Ordering::Greater
}

/// The element of largest magnitude beside infinity: above it are the NaN. As integers without their signs floats have this order,
/// and finding the largest takes a pass at the speed of memory, a small part of what writing a checkpoint takes.
fn worst(tensor: &Kept) -> Ordering {
    let bytes = tensor.data.bytes();
    match tensor.dtype {
        DType::F64 => {
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word) & (u64::MAX >> 1));
            words.max().unwrap_or(0).cmp(&f64::INFINITY.to_bits())
        }
        DType::F32 => {
            let words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word) & (u32::MAX >> 1));
            words.max().unwrap_or(0).cmp(&f32::INFINITY.to_bits())
        }
        DType::BF16 | DType::F16 => {
            let words = bytes.as_chunks::<2>().0.iter().map(|word| u16::from_le_bytes(*word) & (u16::MAX >> 1));
            words.max().unwrap_or(0).cmp(if tensor.dtype == DType::BF16 { &0x7f80 } else { &0x7c00 })
        }
        _ => Ordering::Less,
    }
}

fn place(training: &mut Training<'_>) -> Option<String> {
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
    let made = reference::first_nan(&graph, &inputs)?;
    let scope = if made.scope.as_str().is_empty() { String::new() } else { format!(" in `{}`", made.scope) };
    let passes: String = made.passes.iter().map(|(axis, at)| format!(" at `{axis}` = {at}")).collect();
    Some(format!("`{}`{scope}{passes}", made.op))
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
