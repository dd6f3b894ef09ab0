//! The plan's machine, the processor or a card: memory, threads, and executables that run a plan step by step.
//!
//! In: a graph. Out: an [`Executable`], whose inputs are written, which is run, and whose outputs are read. Weights and states
//! live in [`Tensors`], shared by name between the executables of a stage (training, evaluation, decoding).
//! All memory of a step is taken when the executable is made; nothing is allocated in a step.

mod card;
mod executable;
mod peak;
mod tensors;

pub(crate) use card::too_large;
pub use executable::{BuildError, Element, Executable};
pub use mdl_codegen::Block;
pub use peak::Peaks;
pub use tensors::{Tensor, Tensors};

use std::sync::Arc;

use mdl_codegen::{Isa, Pool};
use mdl_compiler::pass::{Options, Precision};
use mdl_compiler::plan::Plan;
use mdl_gpu::{Choice, Gpu};
pub use mdl_lang::spec::Device;
use mdl_lang::spec::{self, TrainSpec};

use crate::error::RunError;

/// What the compiler's passes are told for a train stage's step.
pub fn options(spec: &TrainSpec) -> Options {
    let precision = match spec.precision {
        spec::Precision::F32 => Precision::F32,
        spec::Precision::BF16 => Precision::BF16,
        spec::Precision::F16 => Precision::F16,
        spec::Precision::BF16x3 => Precision::BF16x3,
        spec::Precision::BF16x6 => Precision::BF16x6,
    };
    Options { precision, micro: spec.micro, ..Options::default() }
}

/// What a plan's memory depends on besides the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    pub isa: Isa,
    pub threads: usize,
    /// On a card: neither counts then.
    pub card: bool,
}

impl Machine {
    /// This one. `threads` of `None` takes one for each core that this process may use.
    pub fn here(threads: Option<usize>) -> Machine {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        Machine { isa: Isa::detect(), threads: threads.unwrap_or_else(available).max(1), card: false }
    }

    /// The same on a card, if that is asked for.
    pub fn on(self, device: Device) -> Machine {
        Machine { card: device == Device::Cuda, ..self }
    }

    /// What launches of a plan need beside its buffers.
    pub fn workspace_bytes(self, plan: &Plan) -> u64 {
        if self.card {
            // What cannot be printed is refused when it is made ready.
            return mdl_codegen::cuda::workspace_bytes(&plan.kernels).unwrap_or(0);
        }
        mdl_codegen::workspace_bytes(&plan.kernels, self.isa, self.threads)
    }
}

/// The processor that stages run on, and the card, if they run on one.
pub struct Cpu {
    pub pool: Pool,
    pub isa: Isa,
    pub card: Option<Arc<Gpu>>,
    /// Why there is no card where one was welcome.
    pub no_card: Option<String>,
}

impl Cpu {
    /// `threads` of `None` takes one for each core that this process may use.
    pub fn new(threads: Option<usize>) -> Result<Cpu, RunError> {
        let Machine { isa, threads, .. } = Machine::here(threads);
        let pool = Pool::new(threads, false)
            .map_err(|error| RunError::failed(format!("starting {threads} threads"), error.to_string()))?;
        Ok(Cpu { pool, isa, card: None, no_card: None })
    }

    /// The same with the card that is asked for.
    pub fn on(mut self, device: Device) -> Result<Cpu, RunError> {
        let open = || Gpu::open(Choice::of_environment()?);
        match (device, if device == Device::Cpu { None } else { Some(open()) }) {
            (_, Some(Ok(card))) => self.card = Some(card),
            (Device::Cuda, Some(Err(error))) => return Err(RunError::failed("opening the card", error.to_string())),
            (_, error) => self.no_card = error.and_then(Result::err).map(|error| error.to_string()),
        }
        Ok(self)
    }

    pub fn threads(&self) -> usize {
        self.pool.n_threads()
    }

    pub fn machine(&self) -> Machine {
        Machine { isa: self.isa, threads: self.threads(), card: self.card.is_some() }
    }
}
