//! A plan on a card: its program, its arena there, and its steps as launches.
//!
//! In: a verified plan, and what [`mdl_codegen::cuda`] prints for its kernels. A run writes the inputs, walks the steps, and reads the
//! outputs; weights and states stay on the card. A plan without early ends is captured once as a graph and launched whole.
//! All memory is taken when the plan is made ready.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use mdl_codegen::cuda;
use mdl_compiler::plan::{ALIGN_BYTES, Base, KernelId, Machine, Place, Plan, Port, SlotId, Step, Walker};
use mdl_gpu::{Error, Function, Gpu, Graph, Memory, Moment, Program, Resources};
use mdl_graph::bug;

use super::executable::BuildError;
use super::{Block, Tensors};
use crate::profile::{Launched, OnCard as CardUse};

/// One launch, its function found.
struct Launch {
    name: String,
    function: Function,
    blocks: u32,
    threads: u32,
    args: Vec<cuda::Arg>,
}

/// A plan's program on a card.
pub(super) struct OnCard {
    // Dropped before what it was captured with.
    graph: Option<(Graph, Vec<u64>)>,
    /// Of each kernel, in order.
    launches: Vec<Vec<Launch>>,
    /// What the compiled program says of its functions.
    resources: Vec<Resources>,
    _program: Option<Program>,
    arena: Memory,
    workspace: Memory,
    /// Addresses of the plan's states, refreshed at each run.
    states: Vec<u64>,
    gpu: Arc<Gpu>,
    has_flags: bool,
    /// Where inputs and outputs lie in the memory that they are copied from and to, by slot.
    staged: BTreeMap<SlotId, usize>,
    staged_bytes: u64,
}

fn arena_ports<'a>(plan: &'a Plan, ports: &'a [Port]) -> impl Iterator<Item = &'a Port> {
    ports.iter().filter(|port| plan.slot(port.slot).base == Base::Arena)
}

fn refused(error: Error) -> BuildError {
    BuildError(error.0)
}

impl OnCard {
    pub(super) fn new(plan: &Plan, gpu: &Arc<Gpu>) -> Result<OnCard, BuildError> {
        let printed = cuda::program(&plan.kernels).map_err(|error| BuildError(error.to_string()))?;
        let needed = plan.arena_bytes + printed.workspace_bytes;
        let free = gpu.free_bytes().map_err(refused)?;
        if needed > free {
            return Err(BuildError(too_large(needed, free, gpu)));
        }
        let mut program = None;
        let (mut launches, mut resources) = (Vec::new(), Vec::new());
        if printed.kernels.iter().any(|kernel| !kernel.is_empty()) {
            let image = gpu.nvrtc().compile(&printed.text, gpu.arch()).map_err(refused)?;
            let loaded = Program::load(gpu, &image).map_err(refused)?;
            resources = mdl_gpu::resources(&image.bytes).unwrap_or_default();
            for kernel in &printed.kernels {
                let ready = |launch: &cuda::Launch| -> Result<Launch, Error> {
                    let function = loaded.function(&launch.function, launch.shared_bytes as u32)?;
                    let (blocks, threads) = (launch.blocks as u32, launch.threads as u32);
                    let name = launch.function.clone();
                    Ok(Launch { name, function, blocks, threads, args: launch.args.clone() })
                };
                launches.push(kernel.iter().map(ready).collect::<Result<Vec<_>, _>>().map_err(refused)?);
            }
            program = Some(loaded);
        } else {
            launches.extend(printed.kernels.iter().map(|_| Vec::new()));
        }
        let (mut staged, mut staged_bytes) = (BTreeMap::new(), 0);
        for port in arena_ports(plan, &plan.io.inputs).chain(arena_ports(plan, &plan.io.outputs)) {
            if let Entry::Vacant(place) = staged.entry(port.slot) {
                place.insert(staged_bytes as usize);
                staged_bytes += port.size_bytes().next_multiple_of(ALIGN_BYTES);
            }
        }
        Ok(OnCard {
            staged,
            staged_bytes,
            graph: None,
            launches,
            resources,
            _program: program,
            arena: Memory::new(gpu, plan.arena_bytes).map_err(refused)?,
            workspace: Memory::new(gpu, printed.workspace_bytes).map_err(refused)?,
            states: Vec::with_capacity(plan.states.len()),
            gpu: Arc::clone(gpu),
            has_flags: has_flags(&plan.steps),
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.arena.len() + self.workspace.len()
    }

    /// As [`super::Executable::share`].
    pub(super) fn share(&mut self, other: &mut OnCard) -> Result<(), Error> {
        let bytes = self.arena.len().max(other.arena.len());
        other.arena = Memory::new(&self.gpu, 0)?;
        if self.arena.len() < bytes {
            self.arena = Memory::new(&self.gpu, 0)?;
            self.arena = Memory::new(&self.gpu, bytes)?;
        }
        Ok(())
    }

    pub(super) fn lend(&mut self, other: &mut OnCard) {
        std::mem::swap(&mut self.arena, &mut other.arena);
    }

    /// The size of the memory that inputs and outputs are copied from and to, and where a slot lies in it.
    pub(super) fn staged_bytes(&self) -> u64 {
        self.staged_bytes
    }

    pub(super) fn staged(&self, slot: SlotId) -> usize {
        match self.staged.get(&slot) {
            Some(at) => *at,
            None => bug!("a slot of a card is neither an input nor an output"),
        }
    }

    /// What each launch of a kernel takes of the card; nothing where programs are interpreted.
    pub(super) fn uses(&self, kernel: usize) -> Result<Vec<CardUse>, Error> {
        let uses = self.launches[kernel].iter().filter_map(|launch| {
            let own = self.resources.iter().find(|own| own.function == launch.name)?;
            let blocks_at_once = match self.gpu.blocks_at_once(launch.function, launch.threads) {
                Ok(blocks) => blocks,
                Err(error) => return Some(Err(error)),
            };
            let Resources { registers, frame_bytes, shared_bytes, .. } = *own;
            let shared_bytes = shared_bytes + u64::from(launch.function.shared_bytes());
            let (blocks, threads) = (launch.blocks, launch.threads);
            Some(Ok(CardUse { blocks, threads, registers, frame_bytes, shared_bytes, blocks_at_once }))
        });
        uses.collect()
    }

    /// Writes the inputs, runs the plan once, reads the outputs; every launch timed, if that is asked for.
    pub(super) fn step(
        &mut self,
        plan: &Plan,
        walker: &mut Walker,
        ports: &mut Block,
        tensors: &mut Tensors,
        seen: Option<&mut Vec<Launched>>,
    ) -> Result<(), Error> {
        self.states.clear();
        for state in &plan.states {
            self.states.push(tensors.on_card(&state.name, &self.gpu)?);
        }
        for port in arena_ports(plan, &plan.io.inputs) {
            let bytes = &ports.bytes()[self.staged(port.slot)..][..port.size_bytes() as usize];
            self.arena.write(plan.slot(port.slot).offset, bytes)?;
        }
        match seen {
            None => self.run(plan, walker)?,
            Some(seen) => self.run_timed(plan, walker, seen)?,
        }
        for state in &plan.states {
            tensors.changed_on_card(&state.name);
        }
        for port in &plan.io.outputs {
            match plan.slot(port.slot).base {
                Base::Arena => {
                    let at = self.staged(port.slot);
                    let bytes = &mut ports.bytes_mut()[at..][..port.size_bytes() as usize];
                    self.arena.read(plan.slot(port.slot).offset, bytes)?;
                }
                Base::State(state) => tensors.fetch_one(&plan.states[state as usize].name)?,
            }
        }
        self.gpu.wait()
    }

    /// Launch by launch, with a moment before and after each.
    fn run_timed(&mut self, plan: &Plan, walker: &mut Walker, seen: &mut Vec<Launched>) -> Result<(), Error> {
        let gpu = Arc::clone(&self.gpu);
        let mut walk = Walk { card: self, moments: Some(Vec::with_capacity(plan.report.launches as usize)) };
        walker.walk(plan, &mut walk)?;
        let moments = walk.moments.unwrap_or_default();
        gpu.wait()?;
        let Some((_, first, _)) = moments.first() else { return Ok(()) };
        for (kernel, before, after) in &moments {
            seen.push(Launched { kernel: *kernel, began: before.since(first)?, took: after.since(before)? });
        }
        Ok(())
    }

    fn run(&mut self, plan: &Plan, walker: &mut Walker) -> Result<(), Error> {
        if self.arena.len() < plan.arena_bytes {
            bug!("a plan of {} bytes runs in an arena of {}", plan.arena_bytes, self.arena.len());
        }
        // What a flag decides cannot be captured, and the simulator has nothing to gain.
        if self.has_flags || self.gpu.simulated {
            return walker.walk(plan, &mut Walk { card: self, moments: None });
        }
        let mut bases = self.states.clone();
        bases.push(self.arena.address());
        let known = self.graph.take().filter(|(_, known)| *known == bases);
        let (graph, bases) = match known {
            Some(known) => known,
            None => {
                let gpu = Arc::clone(&self.gpu);
                (gpu.capture(|| walker.walk(plan, &mut Walk { card: self, moments: None }))?, bases)
            }
        };
        // SAFETY: captured with these very addresses; the program is loaded as long as this lives.
        let ran = unsafe { graph.launch() };
        self.graph = Some((graph, bases));
        ran
    }

    fn address(&self, place: Place) -> u64 {
        let base = match place.base {
            Base::Arena => self.arena.address(),
            Base::State(state) => self.states[state as usize],
        };
        base + place.offset
    }
}

/// A plan's memory against the card's.
pub(crate) fn too_large(needed: u64, free: u64, gpu: &Gpu) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!(
        "{} MiB are needed, and {} has {} MiB free: take a smaller `batch`, or `micro`, or `memory`",
        mib(needed),
        gpu.name,
        free >> 20
    )
}

fn has_flags(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Loop { until, body, .. } => until.is_some() || has_flags(body),
        _ => false,
    })
}

/// One walk over the steps.
struct Walk<'a> {
    card: &'a mut OnCard,
    /// Of each launch of the plan so far: its kernel, before and after.
    moments: Option<Vec<(usize, Moment, Moment)>>,
}

impl Machine for Walk<'_> {
    type Error = Error;

    fn launch(&mut self, kernel: KernelId, args: &[Place]) -> Result<(), Error> {
        let card = &*self.card;
        let before = self.moments.is_some().then(|| card.gpu.moment()).transpose()?;
        for launch in &card.launches[kernel.0 as usize] {
            let mut addresses = [0u64; 256];
            if launch.args.len() > addresses.len() {
                return Err(Error(format!("a launch of {} arguments", launch.args.len())));
            }
            for (address, arg) in addresses.iter_mut().zip(&launch.args) {
                *address = match arg {
                    cuda::Arg::Buf(at) => card.address(args[*at]),
                    cuda::Arg::Workspace(offset) => card.workspace.address() + offset,
                };
            }
            // SAFETY: the function was printed for these buffers; the plan's verifier holds that they are live and large enough.
            unsafe {
                card.gpu.launch(launch.function, launch.blocks, launch.threads, &addresses[..launch.args.len()])?;
            }
        }
        if let (Some(moments), Some(before)) = (&mut self.moments, before) {
            moments.push((kernel.0 as usize, before, card.gpu.moment()?));
        }
        Ok(())
    }

    fn copy(&mut self, from: Place, to: Place, bytes: u64) -> Result<(), Error> {
        let (from, to) = (self.card.address(from), self.card.address(to));
        if from == to {
            return Ok(());
        }
        // SAFETY: both places have `bytes` bytes, by the plan's verifier.
        unsafe { self.card.gpu.copy(from, to, bytes) }
    }

    fn flag(&mut self, at: Place) -> Result<bool, Error> {
        let mut byte = [0u8];
        let card = &self.card;
        match at.base {
            Base::Arena => card.arena.read(at.offset, &mut byte)?,
            Base::State(_) => bug!("a flag outside the arena"),
        }
        Ok(byte[0] != 0)
    }
}
