//! The CPU as the plan's machine: memory, threads, and executables that run a plan step by step.
//!
//! In: a graph. Out: an [`Executable`], whose inputs are written, which is run, and whose outputs are read. Weights and states
//! live in [`Tensors`], shared by name between the executables of a stage (training, evaluation, decoding).
//! All memory of a step is taken when the executable is made; nothing is allocated in a step.

mod executable;
mod peak;
mod tensors;

pub use executable::{BuildError, Element, Executable};
pub use mdl_codegen::Block;
pub use peak::{copy_bytes_per_second, peak_flops};
pub use tensors::{Tensor, Tensors};

use mdl_codegen::{Isa, Pool};
use mdl_compiler::budget::{StepError, compile};
use mdl_compiler::pass::{Options, Precision};
use mdl_compiler::plan::{Plan, PlanOptions};
use mdl_lang::spec::{self, TrainSpec};

use crate::error::RunError;
use crate::stage::train::orders;

/// What the compiler's passes are told for a train stage's step.
pub fn options(spec: &TrainSpec) -> Options {
    let precision = match spec.precision {
        spec::Precision::F32 => Precision::F32,
        spec::Precision::BF16 => Precision::BF16,
        spec::Precision::F16 => Precision::F16,
    };
    Options { precision, micro: spec.micro, ..Options::default() }
}

/// What a plan's memory depends on besides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub isa: Isa,
    pub threads: usize,
}

impl Machine {
    /// This one. `threads` of `None` takes one for each core that this process may use.
    pub fn here(threads: Option<usize>) -> Machine {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        Machine { isa: Isa::detect(), threads: threads.unwrap_or_else(available).max(1) }
    }

    fn workspace_bytes(self, plan: &Plan) -> u64 {
        mdl_codegen::workspace_bytes(&plan.kernels, self.isa, self.threads)
    }
}

/// The plan of a train stage's step: what `mdlc check` reports and what a run executes. Its report counts what launches need on
/// this machine, and so does the stage's budget.
pub fn plan_step(spec: &TrainSpec, machine: Machine) -> Result<Plan, StepError> {
    let planning = PlanOptions { orders: orders(spec), ..PlanOptions::default() };
    let planned = |saved_bytes: Option<u64>, budget: Option<u64>| -> Result<(Plan, u64), StepError> {
        let options = Options { saved_bytes, ..options(spec) };
        let mut plan = compile(&spec.step, &options, &planning, budget)?;
        let beside = machine.workspace_bytes(&plan);
        plan.report.add_workspace(beside);
        Ok((plan, beside))
    };
    let (whole, beside) = planned(None, None)?;
    let Some(budget_bytes) = spec.memory.map(|memory| memory.bytes).filter(|most| whole.report.peak_bytes > *most)
    else {
        return Ok(whole);
    };
    let (least, beside_least) = planned(Some(0), None)?;
    let least_bytes = least.report.peak_bytes;
    if least_bytes > budget_bytes {
        return Err(StepError::Memory { budget_bytes, least_bytes });
    }
    // In between, what launches need is hardly another.
    let most = budget_bytes.saturating_sub(beside.max(beside_least));
    match planned(None, Some(most)) {
        Ok((between, _)) if between.report.peak_bytes <= budget_bytes => Ok(between),
        Ok(_) | Err(StepError::Memory { .. }) => Ok(least),
        Err(error) => Err(error),
    }
}

/// The processor that stages run on.
pub struct Cpu {
    pub pool: Pool,
    pub isa: Isa,
}

impl Cpu {
    /// `threads` of `None` takes one for each core that this process may use.
    pub fn new(threads: Option<usize>) -> Result<Cpu, RunError> {
        let Machine { isa, threads } = Machine::here(threads);
        let pool = Pool::new(threads, false)
            .map_err(|error| RunError::failed(format!("starting {threads} threads"), error.to_string()))?;
        Ok(Cpu { pool, isa })
    }

    pub fn threads(&self) -> usize {
        self.pool.n_threads()
    }

    pub fn machine(&self) -> Machine {
        Machine { isa: self.isa, threads: self.threads() }
    }
}
