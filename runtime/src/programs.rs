//! The programs of a stage, planned before any of them is compiled: what `mdlc check` tells of memory and what a run executes.
//!
//! In: a train stage. Out: the plan of its step, of the evaluation in between and of the decoders that its samples are written
//! with, and the memory that all of them take together. Steps and evaluations take turns in one arena; decoders have their own.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::thread::{Scope, ScopedJoinHandle};

use mdl_compiler::budget::{StepError, compile};
use mdl_compiler::pass::Options;
use mdl_compiler::plan::{Plan, PlanOptions};
use mdl_graph::{Graph, Name};
use mdl_lang::spec::{EvalSpec, TrainSpec};

use crate::device::{Machine, options};
use crate::generate::{DecoderPlans, plan_decoders};
use crate::kept::Keep;
use crate::stage::train::{Orders, orders, orders_of};

/// As the main thread's on Linux.
const STACK_BYTES: usize = 8 << 20;

/// What a train stage runs.
pub struct Programs {
    /// Its report counts what launches need beside the plan's buffers.
    pub step: Plan,
    pub evaluation: Option<Plan>,
    pub decoders: Option<DecoderPlans>,
    pub memory: Memory,
}

/// What a stage takes while it runs, in bytes; the checked recipe, machine code and batches that are made ahead apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub step: u64,
    /// What evaluations take beyond the step.
    pub evaluation: u64,
    /// What the decoders take beyond both: caches, arenas, workspace.
    pub samples: u64,
}

impl Memory {
    pub fn peak_bytes(self) -> u64 {
        self.step + self.evaluation + self.samples
    }
}

/// Plans a train stage. Its budget of memory holds for all programs together.
pub fn plan_stage(spec: &TrainSpec, machine: Machine) -> Result<Programs, StepError> {
    let keep = Keep::of_stage(&spec.kept);
    let (graph, orders, _) = keep.apply(&spec.step, &orders(spec));
    let planning = PlanOptions { orders: orders.clone(), ..PlanOptions::default() };
    let planner = Planner { spec, graph, planning, machine };
    // Neither waits for the other.
    let (whole, others) = std::thread::scope(|scope| {
        let beside = || Others::plan(spec, &orders, machine);
        let has_others = spec.evaluate.is_some() || spec.sample.is_some();
        let thread = has_others.then(|| spawn(scope, beside));
        let whole = planner.step(None, None);
        let others = joined(thread, beside);
        (whole, others)
    });
    let (whole, others) = (whole?, others?);
    let step = planner.within_budget(whole, &others)?;
    let memory = others.memory(&step);
    let Others { evaluation, decoders, .. } = others;
    Ok(Programs { step, evaluation, decoders, memory })
}

/// Plans several train stages at once; the plans are in the order of the stages.
pub fn plan_stages(specs: &[&TrainSpec], machine: Machine) -> Vec<Result<Programs, StepError>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = specs.iter().map(|spec| spawn(scope, move || plan_stage(spec, machine))).collect();
        let planned = specs.iter().zip(threads);
        planned.map(|(spec, thread)| joined(Some(thread), || plan_stage(spec, machine))).collect()
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    run: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, run)
}

/// What a thread has made; what `run` makes where there was no thread to be had.
fn joined<T>(thread: Option<io::Result<ScopedJoinHandle<'_, T>>>, run: impl FnOnce() -> T) -> T {
    match thread {
        Some(Ok(thread)) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Some(Err(_)) | None => run(),
    }
}

/// What an eval stage runs, and the memory that it takes.
pub fn plan_eval(spec: &EvalSpec, of: &TrainSpec, machine: Machine) -> Result<(Plan, u64), StepError> {
    let mut orders = orders(of);
    orders.extend(orders_of(&spec.reads));
    let plan = plan_evaluation(&spec.graph, &orders, Keep::of_stage(&of.kept), of.micro)?;
    let bytes = plan.report.peak_bytes + machine.workspace_bytes(&plan);
    Ok((plan, bytes))
}

/// A program that measures, in as many pieces as the step takes a batch in. A metric that mixes examples means the whole
/// batch, so with one the batch is whole.
fn plan_evaluation(graph: &Graph, orders: &Orders, keep: Keep<'_>, micro: u64) -> Result<Plan, StepError> {
    let (graph, orders, _) = keep.apply(graph, orders);
    let graph = &*graph;
    let planning = PlanOptions { orders, ..PlanOptions::default() };
    match compile(graph, &Options { micro, ..Options::default() }, &planning, None) {
        Err(StepError::Pass(_)) if micro > 1 => compile(graph, &Options::default(), &planning, None),
        planned => planned,
    }
}

/// What runs beside the step.
struct Others {
    evaluation: Option<Plan>,
    decoders: Option<DecoderPlans>,
    machine: Machine,
}

impl Others {
    fn plan(spec: &TrainSpec, orders: &Orders, machine: Machine) -> Result<Others, StepError> {
        let evaluation = match &spec.evaluate {
            Some(evaluate) => Some(plan_evaluation(&evaluate.graph, orders, Keep::of_stage(&spec.kept), spec.micro)?),
            None => None,
        };
        let decoders = match (&spec.sample, &spec.forward) {
            (Some(_), Some(forward)) => Some(plan_decoders(forward, orders, Keep::of_stage(&spec.kept), 0)?),
            _ => None,
        };
        Ok(Others { evaluation, decoders, machine })
    }

    fn memory(&self, step: &Plan) -> Memory {
        let mut known: BTreeSet<&Name> = step.states.iter().map(|state| &state.name).collect();
        // Tensors that only this plan has.
        let mut own = |plan| -> u64 {
            let plan: &Plan = plan;
            plan.states.iter().filter(|state| known.insert(&state.name)).map(|state| state.bytes).sum()
        };
        let evaluation = self.evaluation.as_ref().map_or(0, |plan| {
            let arena = plan.arena_bytes.saturating_sub(step.arena_bytes);
            own(plan) + arena + self.machine.workspace_bytes(plan)
        });
        let decoders = self.decoders.iter().flat_map(DecoderPlans::plans);
        let samples = decoders.map(|plan| own(plan) + plan.arena_bytes + self.machine.workspace_bytes(plan)).sum();
        Memory { step: step.report.peak_bytes, evaluation, samples }
    }
}

struct Planner<'a> {
    spec: &'a TrainSpec,
    /// Its step, as its tensors are kept.
    graph: Cow<'a, Graph>,
    planning: PlanOptions,
    machine: Machine,
}

impl Planner<'_> {
    /// The step, with what launches need in its report.
    fn step(&self, saved_bytes: Option<u64>, budget: Option<u64>) -> Result<Plan, StepError> {
        let options = Options { saved_bytes, ..options(self.spec) };
        let mut plan = compile(&self.graph, &options, &self.planning, budget)?;
        let beside = self.machine.workspace_bytes(&plan);
        plan.report.add_workspace(beside);
        Ok(plan)
    }

    /// The step that recomputes as little as the stage's budget allows; `whole` recomputes nothing.
    fn within_budget(&self, whole: Plan, others: &Others) -> Result<Plan, StepError> {
        let peak = |plan: &Plan| others.memory(plan).peak_bytes();
        let budget = self.spec.memory.map(|memory| memory.bytes).filter(|most| peak(&whole) > *most);
        let Some(budget_bytes) = budget else { return Ok(whole) };
        let least = self.step(Some(0), None)?;
        let least_bytes = peak(&least);
        if least_bytes > budget_bytes {
            return Err(StepError::Memory { budget_bytes, least_bytes });
        }
        // What is not the step's own arena and states is in between hardly another.
        let own = |plan: &Plan| plan.arena_bytes + plan.states.iter().map(|state| state.bytes).sum::<u64>();
        let beside = (peak(&whole) - own(&whole)).max(peak(&least) - own(&least));
        match self.step(None, Some(budget_bytes.saturating_sub(beside))) {
            Ok(between) if peak(&between) <= budget_bytes => Ok(between),
            Ok(_) | Err(StepError::Memory { .. }) => Ok(least),
            Err(error) => Err(error),
        }
    }
}
