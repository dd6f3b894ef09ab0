//! Training steps on one batch of arrays, and what the weights are then.
//!
//! In: the stage that the checker made of a model and arrays ([`Tuned`]). Out: the loss before each step, and the trained weights,
//! for whoever exports them.

use mdl_lang::spec::{Origin, TrainSpec};
use mdl_lang::stage::Tuned;

use crate::apply::{check_positions, write};
use crate::device::{Executable, Tensor, Tensors};
use crate::error::RunError;
use crate::npz::Array;
use crate::programs::plan_stage;
use crate::run::Run;
use crate::stage::train::{initialize, load_reads, orders};

/// Makes the steps; `seen` gets each loss, before its step, as soon as it is known.
pub fn tune(tuned: &Tuned, arrays: &[Array], run: &Run<'_>, mut seen: impl FnMut(f64)) -> Result<Tensors, RunError> {
    let spec = &tuned.spec;
    check_positions(&spec.step, arrays)?;
    let programs = plan_stage(spec, run.cpu.machine()).map_err(|error| {
        RunError::Recipe(Box::new(crate::refuse::refused(spec, mdl_graph::Span::default(), &error)))
    })?;
    let mut step = Executable::of_plan(programs.step, &run.cpu)?;
    let mut tensors = Tensors::new();
    tensors.allocate(step.plan());
    load_reads(&run.base, &run.out, &spec.reads, &mut tensors)?;
    initialize(spec, spec.seed, &orders(spec), &mut tensors, run)?;
    for done in 0..spec.steps {
        // A step may have written over its inputs.
        for (name, axes) in &tuned.inputs {
            let Some(array) = arrays.iter().find(|array| array.name == *name) else { continue };
            let Some(port) = step.plan().input(name).cloned() else { continue };
            if let Some(to) = step.input_bytes(name) {
                write(array, axes, &port, to)?;
            }
        }
        step.set_scalar("seed", spec.seed as i32);
        step.set_scalar("step", done as i32);
        step.run(&mut tensors, &run.cpu)?;
        let loss = step.scalar("loss").unwrap_or(f64::NAN);
        seen(loss);
        if loss.is_nan() {
            return Err(RunError::failed(format!("step {}", done + 1), "the loss is not a number"));
        }
    }
    tensors.fetch()?;
    Ok(tensors)
}

/// The weights and states that lie in files, with what they are now.
pub fn in_files<'a>(spec: &'a TrainSpec, tensors: &'a Tensors) -> Vec<(&'a Origin, &'a Tensor)> {
    let weights = spec.weights.iter().map(|weight| (&weight.path, &weight.origin));
    let states = spec.states.iter().map(|state| (&state.name, &state.origin));
    let of = |name: &mdl_graph::Name| tensors.get(name.as_str());
    weights.chain(states).filter_map(|(name, origin)| Some((origin.as_ref()?, of(name)?))).collect()
}
