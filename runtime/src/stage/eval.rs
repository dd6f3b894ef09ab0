//! Eval stages, and the measuring that training does in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use mdl_compiler::plan::Plan;
use mdl_data::{Batcher, Dataset, Order};
use mdl_lang::spec::{EvalSpec, Finish, Metric, StageKind};
use serde_json::{Map, Value, json};

use crate::checkpoint;
use crate::device::{BuildError, Executable, Tensors};
use crate::error::RunError;
use crate::event::Event;
use crate::kept::{Keep, load_kept};
use crate::programs::plan_eval;
use crate::run::{Run, write_file};
use crate::stage::train;

/// A program that measures, and the batches that it measures on.
pub struct Evaluation {
    executable: Executable,
    batcher: Batcher,
    dataset: Arc<Dataset>,
    part: String,
    names: Vec<String>,
}

impl Evaluation {
    pub fn new(
        run: &Run<'_>,
        plan: Plan,
        dataset: Arc<Dataset>,
        part: &str,
        batch: u64,
    ) -> Result<Evaluation, RunError> {
        let executable = Executable::of_plan(plan, &run.cpu)?;
        let mut batcher = dataset.batcher(part, batch as usize, Order::InOrder)?;
        executable.lay_out(&mut batcher, &dataset.facts.data.fields);
        let names = executable.plan().io.outputs.iter().map(|port| port.name.to_string()).collect();
        Ok(Evaluation { executable, batcher, dataset, part: part.to_string(), names })
    }

    /// The mean of each value over all that counts in the part: tokens whose mask is true, or rows.
    pub fn measure(&mut self, run: &Run<'_>, tensors: &mut Tensors) -> Result<Means, RunError> {
        tensors.allocate(self.executable.plan());
        let mut sums = vec![0.0; self.names.len()];
        let mut count = 0;
        for step in 0..self.batcher.n_batches() {
            if run.is_stopped() {
                return Err(RunError::Interrupted { saved: None });
            }
            let filled = self.executable.fill(&self.batcher, &self.dataset.facts.data.fields, step);
            self.executable.set_scalar("seed", 0);
            self.executable.set_scalar("step", step as i32);
            self.executable.run(tensors, &run.cpu)?;
            for (sum, name) in sums.iter_mut().zip(&self.names) {
                *sum += self.executable.scalar(name).unwrap_or(f64::NAN) * filled.n_counted as f64;
            }
            count += filled.n_counted as u64;
        }
        let means = sums.into_iter().map(|sum| sum / count as f64);
        Ok(Means { values: self.names.iter().cloned().zip(means).collect(), count })
    }

    /// What runs, for whoever lends it an arena.
    pub fn executable(&mut self) -> &mut Executable {
        &mut self.executable
    }

    pub fn part(&self) -> &str {
        &self.part
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Means {
    pub values: BTreeMap<String, f64>,
    /// How many tokens, or rows, the means are over.
    pub count: u64,
}

impl Means {
    fn finish(&self, metric: &Metric, counted_bytes: u64) -> f64 {
        let mean = self.values.get(&metric.of).copied().unwrap_or(f64::NAN);
        match metric.finish {
            Finish::Mean => mean,
            Finish::Exp => mean.exp(),
            Finish::BitsPerByte => mean * self.count as f64 / (counted_bytes as f64 * std::f64::consts::LN_2),
        }
    }
}

/// Measures a trained stage and writes `result.json`.
pub fn run(run: &mut Run<'_>, name: &str, spec: &EvalSpec) -> Result<(), RunError> {
    let Some(StageKind::Train(of)) = run.program.stage(&spec.of).map(|stage| &stage.kind) else {
        mdl_graph::bug!("`{}` is no train stage", spec.of);
    };
    let dataset = run.dataset_of(&spec.data)?;
    let (plan, _) = plan_eval(spec, of, run.cpu.machine()).map_err(|error| BuildError(error.to_string()))?;
    let mut evaluation = Evaluation::new(run, plan, Arc::clone(&dataset), &spec.part, spec.batch)?;
    let mut tensors = Tensors::new();
    tensors.allocate(evaluation.executable.plan());
    let found = checkpoint::of_stage(&run.out, &spec.of, checkpoint::latest)?;
    train::load_weights(&found, of, &mut tensors)?;
    train::load_reads(&run.base, &run.out, &of.reads, &mut tensors)?;
    let (_, orders, convert) = Keep::of_stage(&of.kept).apply(&spec.graph, &train::orders(of));
    load_kept((&run.base, &run.out), &of.reads, (&convert, &orders), &mut tensors, &run.cpu)?;
    train::load_reads(&run.base, &run.out, &spec.reads, &mut tensors)?;
    let means = evaluation.measure(run, &mut tensors)?;
    let counted_bytes = dataset.facts.part(&spec.part).map_or(0, |part| part.counted_bytes);
    let values: Vec<(String, f64)> =
        spec.metrics.iter().map(|metric| (metric.name.clone(), means.finish(metric, counted_bytes))).collect();
    let metrics: Map<String, Value> = values.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let result = json!({
        "stage": name, "of": spec.of, "step": found.step, "on": format!("{}.{}", spec.data, spec.part),
        "count": means.count, "metrics": metrics,
    });
    let path = run.folder(name).join("result.json");
    let text = serde_json::to_string_pretty(&result).unwrap_or_default();
    write_file(&path, &text)?;
    let part = format!("{}.{}", spec.data, spec.part);
    run.observer.observe(Event::Evaluated { stage: name.to_string(), step: found.step, part, values });
    Ok(())
}
