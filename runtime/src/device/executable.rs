//! A graph made ready to run: plan, machine code, arena.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::time::Instant;

use mdl_codegen::{Buffers, Module, Target, Workspace};
use mdl_compiler::budget::compile;
use mdl_compiler::pass::Options;
use mdl_compiler::plan::{Base, KernelId, Machine, Place, Plan, PlanOptions, Port, SlotId, Walker};
use mdl_data::{Batcher, FieldSlice, Filled};
use mdl_graph::{DType, Graph, Name, bug};
use mdl_lang::spec::Field;
use smallvec::SmallVec;

use super::card::OnCard;
use super::{Block, Cpu, Tensors};
use crate::error::RunError;
use crate::profile::{self, Launched};

/// Verifying goes through all launches of a step, 0.7 µs each (on 2 cores of Sapphire Rapids, 2026-11-21): 0.5 ms for 12 layers of a
/// GPT, at most some 5 ms up to this many. A scan over a long sequence has more, and would wait longer than its step takes: tests verify
/// such plans, a run does not.
const MOST_VERIFIED: u64 = 8_192;

/// Why a graph could not be made ready.
#[derive(Debug)]
pub struct BuildError(pub String);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BuildError {}

/// A number type that inputs and outputs may be viewed as.
pub trait Element: Copy {
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}

impl Element for i32 {
    const DTYPE: DType = DType::I32;
}

pub struct Executable {
    plan: Plan,
    walker: Walker,
    /// The plan's arena; of a plan on a card, its inputs and outputs alone.
    arena: Block,
    on: On,
}

/// What runs the steps.
enum On {
    Cpu(Box<Native>),
    Card(Box<OnCard>),
}

struct Native {
    module: Module,
    workspace: Workspace,
    /// Base addresses of `plan.states`, refreshed at each run.
    states: Vec<*mut u8>,
    /// Base addresses of a launch's buffers.
    bufs: Vec<*mut u8>,
}

// SAFETY: the addresses are scratch of `run`, written before they are read.
unsafe impl Send for Executable {}

impl Executable {
    /// Compiles a graph that runs once, before anything else, for the processor: so first values are the same everywhere. `orders` are the axes of weights and states, outermost first.
    pub fn new(graph: &Graph, orders: &BTreeMap<Name, Vec<Name>>, cpu: &Cpu) -> Result<Executable, BuildError> {
        let planning = PlanOptions { orders: orders.clone(), ..PlanOptions::default() };
        let plan =
            compile(graph, &Options::default(), &planning, None).map_err(|error| BuildError(error.to_string()))?;
        Executable::on_processor(plan, cpu)
    }

    /// Compiles a plan for the card, if stages run on one, or else the processor.
    pub fn of_plan(plan: Plan, cpu: &Cpu) -> Result<Executable, BuildError> {
        match &cpu.card {
            None => Executable::on_processor(plan, cpu),
            Some(gpu) => {
                let card = OnCard::new(&plan, gpu)?;
                let arena = Block::zeroed(card.staged_bytes());
                Ok(Executable { walker: Walker::new(&plan), arena, on: On::Card(Box::new(card)), plan })
            }
        }
    }

    fn on_processor(plan: Plan, cpu: &Cpu) -> Result<Executable, BuildError> {
        // Launches write by address: what they rely on is looked at before the first.
        if plan.report.launches <= MOST_VERIFIED
            && let Err(error) = plan.verify()
        {
            bug!("a plan that does not hold: {error}\n{plan}");
        }
        let module =
            Module::compile(&plan.kernels, Target::Cpu(cpu.isa)).map_err(|error| BuildError(error.to_string()))?;
        let most = plan.kernels.iter().map(|kernel| kernel.bufs.len()).max().unwrap_or(0);
        let native = Native {
            states: Vec::with_capacity(plan.states.len()),
            bufs: Vec::with_capacity(most),
            workspace: module.workspace(cpu.threads()),
            module,
        };
        let arena = Block::zeroed(plan.arena_bytes);
        Ok(Executable { walker: Walker::new(&plan), arena, on: On::Cpu(Box::new(native)), plan })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What it takes besides the tensors.
    pub fn own_bytes(&self, cpu: &Cpu) -> u64 {
        match &self.on {
            On::Cpu(native) => self.arena.len() as u64 + native.module.workspace_bytes(cpu.threads()),
            On::Card(card) => card.bytes(),
        }
    }

    /// Shares its arena with another that never runs at the same time, from one [`Executable::lend`] to the next. The arena is as
    /// large as the larger of the two asks.
    pub fn share(&mut self, other: &mut Executable) -> Result<(), RunError> {
        if let (On::Card(card), On::Card(others)) = (&mut self.on, &mut other.on) {
            return card.share(others).map_err(on_card);
        }
        if self.arena.len() < other.arena.len() {
            self.arena = Block::zeroed(other.arena.len() as u64);
        }
        other.arena = Block::zeroed(0);
        Ok(())
    }

    /// Gives the shared arena to the other, or takes it back. What was in it is lost, as between two runs.
    pub fn lend(&mut self, other: &mut Executable) {
        match (&mut self.on, &mut other.on) {
            (On::Card(card), On::Card(others)) => card.lend(others),
            _ => std::mem::swap(&mut self.arena, &mut other.arena),
        }
    }

    /// Runs the plan once. All of its weights and states must be in `tensors`; see [`Tensors::allocate`].
    pub fn run(&mut self, tensors: &mut Tensors, cpu: &Cpu) -> Result<(), RunError> {
        if let On::Card(card) = &mut self.on {
            return card.step(&self.plan, &mut self.walker, &mut self.arena, tensors, None).map_err(on_card);
        }
        self.walk(tensors, cpu, |launches, walker, plan| {
            let Ok(()) = walker.walk(plan, launches);
        });
        Ok(())
    }

    /// The same on the processor; says of each launch when it began and how long it took.
    pub fn run_timed(&mut self, tensors: &mut Tensors, cpu: &Cpu, seen: &mut Vec<Launched>) -> Result<(), RunError> {
        if let On::Card(card) = &mut self.on {
            return card.step(&self.plan, &mut self.walker, &mut self.arena, tensors, Some(seen)).map_err(on_card);
        }
        self.walk(tensors, cpu, |launches, walker, plan| {
            let Ok(()) = walker.walk(plan, &mut Timed { launches, began: Instant::now(), seen });
        });
        Ok(())
    }

    /// What the launches of a kernel take of the card; nothing on the processor.
    pub fn on_card(&self, kernel: usize) -> Result<Vec<profile::OnCard>, RunError> {
        match &self.on {
            On::Cpu(_) => Ok(Vec::new()),
            On::Card(card) => card.uses(kernel).map_err(on_card),
        }
    }

    fn walk(&mut self, tensors: &mut Tensors, cpu: &Cpu, go: impl FnOnce(&mut Launches<'_>, &mut Walker, &Plan)) {
        let On::Cpu(native) = &mut self.on else { bug!("a plan on a card is walked by the processor") };
        native.states.clear();
        for state in &self.plan.states {
            native.states.push(tensors.base(&state.name));
        }
        let mut machine = Launches {
            module: &native.module,
            workspace: &native.workspace,
            cpu,
            arena: arena_base(&mut self.arena, &self.plan),
            states: &native.states,
            bufs: &mut native.bufs,
        };
        go(&mut machine, &mut self.walker, &self.plan);
    }

    /// Where a slot of the arena lies in `arena`.
    fn place(&self, slot: SlotId) -> usize {
        match &self.on {
            On::Cpu(_) => self.plan.slot(slot).offset as usize,
            On::Card(card) => card.staged(slot),
        }
    }

    /// An input that is written before each run: a batch field or a scalar. `None` when the plan has no use for it.
    pub fn input<T: Element>(&mut self, name: &str) -> Option<&mut [T]> {
        let port = self.plan.input(name)?;
        let (offset, count) = self.extent::<T>(port);
        let bytes = &mut self.arena.bytes_mut()[offset..offset + count * size_of::<T>()];
        // SAFETY: slots are aligned to `ALIGN_BYTES`, and any bits are a number.
        let (before, values, after) = unsafe { bytes.align_to_mut::<T>() };
        debug_assert!(before.is_empty() && after.is_empty());
        Some(values)
    }

    /// The bytes of an input, in the order of its port's axes.
    pub fn input_bytes(&mut self, name: &str) -> Option<&mut [u8]> {
        let port = self.plan.input(name)?;
        let slot = self.plan.slot(port.slot);
        if slot.base != Base::Arena {
            return None;
        }
        let (offset, len) = (self.place(port.slot), port.size_bytes() as usize);
        Some(&mut self.arena.bytes_mut()[offset..offset + len])
    }

    /// A value of the last run.
    pub fn output<T: Element>(&self, name: &str) -> Option<&[T]> {
        let port = self.plan.output(name)?;
        let (offset, count) = self.extent::<T>(port);
        let bytes = &self.arena.bytes()[offset..offset + count * size_of::<T>()];
        // SAFETY: slots are aligned to `ALIGN_BYTES`, and any bits are a number.
        let (before, values, after) = unsafe { bytes.align_to::<T>() };
        debug_assert!(before.is_empty() && after.is_empty());
        Some(values)
    }

    /// The bytes of an output, in the order of its port's axes; an output may be a state that nothing changed.
    pub fn output_bytes<'a>(&'a self, name: &str, tensors: &'a Tensors) -> Option<&'a [u8]> {
        let port = self.plan.output(name)?;
        let slot = self.plan.slot(port.slot);
        let (bytes, offset) = match slot.base {
            Base::Arena => (self.arena.bytes(), self.place(port.slot)),
            Base::State(state) => {
                let tensor = tensors.get(self.plan.states[state as usize].name.as_str())?;
                (tensor.data.bytes(), slot.offset as usize)
            }
        };
        bytes.get(offset..)?.get(..port.size_bytes() as usize)
    }

    /// Writes a scalar input, `i32`; a plan that has no use for it is left alone.
    pub fn set_scalar(&mut self, name: &str, value: i32) {
        if let Some([scalar]) = self.input::<i32>(name) {
            *scalar = value;
        }
    }

    /// A value of rank 0 of the last run.
    pub fn scalar(&self, name: &str) -> Option<f64> {
        match self.output::<f32>(name)? {
            [value] => Some(f64::from(*value)),
            _ => None,
        }
    }

    /// Tells a batcher in which order of axes this plan wants each field.
    pub fn lay_out(&self, batcher: &mut Batcher, fields: &[Field]) {
        for (i, field) in fields.iter().enumerate() {
            if let Some(port) = self.plan.input(&field.name) {
                let axes: Vec<&str> = port.axes.iter().map(|axis| axis.name.as_str()).collect();
                if !batcher.set_layout(i, &axes) {
                    bug!("`{}` has other axes in the plan than in the data", field.name);
                }
            }
        }
    }

    /// Writes the batch of a step straight into the inputs.
    pub fn fill(&mut self, batcher: &Batcher, fields: &[Field], step: u64) -> Filled {
        let base = match &self.on {
            On::Cpu(_) => arena_base(&mut self.arena, &self.plan),
            On::Card(_) => self.arena.base(),
        };
        let mut slices: SmallVec<[FieldSlice<'_>; 8]> = SmallVec::new();
        for field in fields {
            let Some(port) = self.plan.input(&field.name) else {
                slices.push(FieldSlice::Skip);
                continue;
            };
            let (slot, count) = (self.plan.slot(port.slot), port.count() as usize);
            if slot.base != Base::Arena || port.dtype != field.dtype {
                bug!("`{}` is {} in the plan and {} in the data", field.name, port.dtype, field.dtype);
            }
            // SAFETY: the slot lies in the arena, aligned to `ALIGN_BYTES`; inputs are live together, so the plan's
            // verifier holds that their slots are apart; the arena is borrowed alone for as long as the slices live.
            slices.push(unsafe {
                let at = base.add(self.place(port.slot));
                match field.dtype {
                    DType::I32 => FieldSlice::I32(std::slice::from_raw_parts_mut(at.cast(), count)),
                    DType::F32 => FieldSlice::F32(std::slice::from_raw_parts_mut(at.cast(), count)),
                    DType::Bool => FieldSlice::Bool(std::slice::from_raw_parts_mut(at, count)),
                    other => bug!("a batch field of {other}"),
                }
            });
        }
        batcher.fill(step, &mut slices)
    }

    fn extent<T: Element>(&self, port: &Port) -> (usize, usize) {
        let slot = self.plan.slot(port.slot);
        if port.dtype != T::DTYPE || slot.base != Base::Arena {
            bug!("`{}` is {} and is asked for as {}", port.name, port.dtype, T::DTYPE);
        }
        (self.place(port.slot), port.count() as usize)
    }
}

/// What a card could not do.
fn on_card(error: mdl_gpu::Error) -> RunError {
    RunError::failed("computing on the card", error.to_string())
}

/// Kernels and batches are written by address, so the arena must be there: it may be lent.
fn arena_base(arena: &mut Block, plan: &Plan) -> *mut u8 {
    if (arena.len() as u64) < plan.arena_bytes {
        bug!("a plan of {} bytes runs in an arena of {}", plan.arena_bytes, arena.len());
    }
    arena.base()
}

/// One run: addresses, and where launches go.
struct Launches<'a> {
    module: &'a Module,
    workspace: &'a Workspace,
    cpu: &'a Cpu,
    arena: *mut u8,
    states: &'a [*mut u8],
    bufs: &'a mut Vec<*mut u8>,
}

impl Launches<'_> {
    fn address(&self, place: Place) -> *mut u8 {
        let base = match place.base {
            Base::Arena => self.arena,
            Base::State(state) => self.states[state as usize],
        };
        // SAFETY: the plan's verifier holds every place inside its block.
        unsafe { base.add(place.offset as usize) }
    }
}

/// A run whose launches are timed.
struct Timed<'a, 'l> {
    launches: &'a mut Launches<'l>,
    began: Instant,
    seen: &'a mut Vec<Launched>,
}

impl Machine for Timed<'_, '_> {
    type Error = Infallible;

    fn launch(&mut self, kernel: KernelId, args: &[Place]) -> Result<(), Infallible> {
        let began = self.began.elapsed();
        self.launches.launch(kernel, args)?;
        self.seen.push(Launched { kernel: kernel.0 as usize, began, took: self.began.elapsed() - began });
        Ok(())
    }

    fn copy(&mut self, from: Place, to: Place, bytes: u64) -> Result<(), Infallible> {
        self.launches.copy(from, to, bytes)
    }

    fn flag(&mut self, at: Place) -> Result<bool, Infallible> {
        self.launches.flag(at)
    }
}

impl Machine for Launches<'_> {
    type Error = Infallible;

    fn launch(&mut self, kernel: KernelId, args: &[Place]) -> Result<(), Infallible> {
        self.bufs.clear();
        for place in args {
            let address = self.address(*place);
            self.bufs.push(address);
        }
        // SAFETY: the plan's verifier holds that the buffers are live, large enough, and apart where they must be.
        unsafe {
            let bufs = Buffers::new(self.bufs);
            self.module.launch(&self.cpu.pool, self.workspace, kernel.0 as usize, bufs);
        }
        Ok(())
    }

    fn copy(&mut self, from: Place, to: Place, bytes: u64) -> Result<(), Infallible> {
        // SAFETY: both places have `bytes` bytes, by the plan's verifier; they may overlap.
        unsafe { std::ptr::copy(self.address(from), self.address(to), bytes as usize) };
        Ok(())
    }

    fn flag(&mut self, at: Place) -> Result<bool, Infallible> {
        // SAFETY: a `bool` of the arena or of a state, written by a launch that has returned.
        Ok(unsafe { *self.address(at) } != 0)
    }
}
