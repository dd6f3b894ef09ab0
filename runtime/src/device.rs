//! The CPU as the plan's machine: memory, threads, and executables that run a plan step by step.
//!
//! In: a graph. Out: an [`Executable`], whose inputs are written, which is run, and whose outputs are read. Weights and states
//! live in [`Tensors`], shared by name between the executables of a stage (training, evaluation, decoding).
//! All memory of a step is taken when the executable is made; nothing is allocated in a step.

mod block;
mod executable;
mod peak;
mod tensors;

pub use block::Block;
pub use executable::{BuildError, Element, Executable};
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

/// The plan of a train stage's step: what `mdlc check` reports and what a run executes.
pub fn plan_step(spec: &TrainSpec) -> Result<Plan, StepError> {
    let planning = PlanOptions { orders: orders(spec), ..PlanOptions::default() };
    compile(&spec.step, &options(spec), &planning, spec.memory)
}

/// The processor that stages run on.
pub struct Cpu {
    pub pool: Pool,
    pub isa: Isa,
}

impl Cpu {
    /// `threads` of `None` takes one for each core that this process may use.
    pub fn new(threads: Option<usize>) -> Result<Cpu, RunError> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.unwrap_or_else(available).max(1);
        let pool = Pool::new(threads, false)
            .map_err(|error| RunError::failed(format!("starting {threads} threads"), error.to_string()))?;
        Ok(Cpu { pool, isa: Isa::detect() })
    }

    pub fn threads(&self) -> usize {
        self.pool.n_threads()
    }
}
