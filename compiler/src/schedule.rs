//! From a graph to a plan: fuse and lower each body, put its launches in an order, give every value a place.
//!
//! In: a prepared graph. Out: a [`Plan`]. Bodies of loops are planned like graphs, with their inputs and outputs in places that
//! the loop around them chose: slices of what is scanned and stacked, and one buffer for each carry. All places end as offsets in
//! one arena, by lifetimes over the order of all launches, loops unfolded once.

mod order;
mod place;
mod tasks;

pub(crate) mod body;
pub(crate) mod layout;

use std::collections::BTreeMap;

use mdl_graph::{Axis, DType, Graph, InputKind, Loop, Name, Role};
use rustc_hash::FxHashMap;

use crate::kernel::Kernel;
use crate::lower::Lowered;
use crate::plan::{
    Arg, Base, Category, CompileError, Io, KernelId, Move, Plan, PlanOptions, Port, Slot, SlotId, State, Step,
};
use body::{BodyPlan, Want};
use layout::{Layout, Ranks};

/// A value's place: a buffer, from an offset, moving with the loops around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    pub(crate) buffer: SlotId,
    /// In bytes.
    pub(crate) offset: i64,
    pub(crate) moves: Vec<Move>,
    pub(crate) layout: Layout,
}

impl Home {
    fn arg(&self) -> Arg {
        Arg { slot: self.buffer, offset: self.offset, moves: self.moves.clone() }
    }
}

/// Memory for a value, before it has an offset. Ticks count launches in their order.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    name: String,
    bytes: u64,
    dtype: DType,
    category: Category,
    state: Option<u32>,
    first: usize,
    last: usize,
    /// The loop that makes it slice by slice, and the last that reads it so.
    comes: Option<place::Stairs>,
    goes: Option<place::Stairs>,
}

/// What grows while bodies are planned.
pub(crate) struct Planner<'o> {
    pub(crate) options: &'o PlanOptions,
    pub(crate) ranks: Ranks,
    buffers: Vec<Buffer>,
    kernels: Vec<Kernel>,
    known: FxHashMap<Kernel, KernelId>,
    tick: usize,
    /// How often the steps that are being planned run.
    runs: u64,
    report: crate::plan::Report,
}

impl Planner<'_> {
    fn buffer(&mut self, name: String, dtype: DType, bytes: u64, category: Category) -> SlotId {
        let tick = self.tick;
        self.buffers.push(Buffer {
            name,
            bytes,
            dtype,
            category,
            state: None,
            first: tick,
            last: tick,
            comes: None,
            goes: None,
        });
        SlotId(self.buffers.len() as u32 - 1)
    }

    /// A buffer for a value of this layout.
    fn home(&mut self, name: String, dtype: DType, layout: Layout, category: Category) -> Home {
        let buffer = self.buffer(name, dtype, layout.span() * dtype.size_bytes(), category);
        Home { buffer, offset: 0, moves: Vec::new(), layout }
    }

    fn touch(&mut self, home: &Home) {
        let tick = self.tick;
        let buffer = &mut self.buffers[home.buffer.0 as usize];
        buffer.first = buffer.first.min(tick);
        buffer.last = buffer.last.max(tick);
    }

    /// Says that a loop, whose first tick was `first` and whose last is this one, touches these buffers slice by slice along its axis.
    fn stairs(&mut self, inner: &Loop, first: usize, scanned: &[Home], stacked: &[Home], all: &[Home]) {
        let stairs = place::Stairs { first, last: self.tick, count: inner.axis.size, reverse: inner.reverse };
        if !(2..=place::MOST_SLICES).contains(&stairs.count) {
            return;
        }
        for (home, is_made) in scanned.iter().map(|home| (home, false)).chain(stacked.iter().map(|home| (home, true))) {
            let buffer = &mut self.buffers[home.buffer.0 as usize];
            let slice_bytes = home.layout.stride(&inner.axis.name).unwrap_or(0) * buffer.dtype.size_bytes() as i64;
            let is_slices = home.offset == 0
                && home.moves.is_empty()
                && slice_bytes > 0
                && slice_bytes as u64 * stairs.count == buffer.bytes;
            let is_alone = all.iter().filter(|other| other.buffer == home.buffer).count() == 1;
            let place = if is_made { &mut buffer.comes } else { &mut buffer.goes };
            *place = (is_slices && is_alone).then_some(stairs);
        }
    }

    fn kernel(&mut self, kernel: Kernel) -> KernelId {
        let mut key = kernel.clone();
        key.name.clear();
        let next = KernelId(self.kernels.len() as u32);
        let id = *self.known.entry(key).or_insert(next);
        if id == next {
            self.kernels.push(kernel);
        }
        id
    }

    /// A launch of a lowered kernel over these places, one for each of its buffers.
    fn launch(&mut self, lowered: Lowered, homes: &[Home]) -> Step {
        for home in homes {
            self.touch(home);
        }
        self.tick += 1;
        let cost = crate::cost::kernel(&lowered.kernel);
        self.report.launches += self.runs;
        self.report.flops += cost.flops * self.runs;
        self.report.traffic_bytes += cost.bytes * self.runs;
        let kernel = self.kernel(lowered.kernel);
        Step::Launch { kernel, args: homes.iter().map(Home::arg).collect() }
    }
}

/// The plan of a graph without `Grad`.
pub(crate) fn schedule(graph: &Graph, options: &PlanOptions) -> Result<Plan, CompileError> {
    if let Err(error) = graph.verify() {
        return Err(CompileError::new(Some(error.node), error.message));
    }
    let mut planner = Planner {
        options,
        ranks: Ranks::of(graph, &options.orders),
        buffers: Vec::new(),
        kernels: Vec::new(),
        known: FxHashMap::default(),
        tick: 0,
        runs: 1,
        report: crate::plan::Report::default(),
    };
    let (inputs, states, mut io) = planner.inputs(graph)?;
    // Tick 0 is when the inputs are written.
    planner.tick = 1;
    let wants: Vec<Want> = graph
        .outputs()
        .iter()
        .map(|output| match output.role {
            Role::Next(input) => Want::At(inputs[input.0 as usize].clone()),
            Role::Value => Want::Dense,
        })
        .collect();
    let BodyPlan { steps, outputs } = planner.body(graph, &inputs, &wants, 0)?;
    let end = planner.tick;
    for (output, home) in graph.outputs().iter().zip(&outputs) {
        if output.role != Role::Value {
            continue;
        }
        planner.buffers[home.buffer.0 as usize].last = end;
        let axes = home.layout.dense_order().unwrap_or_default();
        let dtype = graph.ty(output.node).dtype;
        io.outputs.push(Port { name: output.name.clone(), kind: None, dtype, axes, slot: home.buffer });
    }
    Ok(planner.finish(states, steps, io))
}

impl Planner<'_> {
    fn inputs(&mut self, graph: &Graph) -> Result<(Vec<Home>, Vec<State>, Io), CompileError> {
        let (mut homes, mut states, mut io) = (Vec::new(), Vec::new(), Io::default());
        for input in graph.inputs() {
            let axes = match self.options.orders.get(&input.name) {
                Some(order) if !matches!(input.kind, InputKind::Batch | InputKind::Scalar) => chosen(order, input)?,
                _ => self.ranks.order(&input.ty.axes),
            };
            let category = match input.kind {
                InputKind::Weight => Category::Weights,
                InputKind::State => Category::State,
                InputKind::Batch | InputKind::Scalar | InputKind::Param => Category::Batch,
            };
            let dtype = input.ty.dtype;
            let home = self.home(input.name.to_string(), dtype, Layout::dense(axes.clone()), category);
            if matches!(input.kind, InputKind::Weight | InputKind::State) {
                self.buffers[home.buffer.0 as usize].state = Some(states.len() as u32);
                let bytes = input.ty.size_bytes();
                let (name, kind, axes) = (input.name.clone(), input.kind, axes.clone());
                states.push(State { name, kind, dtype, axes, bytes });
            }
            if input.kind == InputKind::Weight {
                self.report.parameters += input.ty.count();
            }
            io.inputs.push(Port { name: input.name.clone(), kind: Some(input.kind), dtype, axes, slot: home.buffer });
            homes.push(home);
        }
        Ok((homes, states, io))
    }

    fn finish(mut self, states: Vec<State>, steps: Vec<Step>, io: Io) -> Plan {
        let arena: Vec<usize> = (0..self.buffers.len()).filter(|at| self.buffers[*at].state.is_none()).collect();
        let spans: Vec<place::Span> = arena
            .iter()
            .map(|at| {
                let buffer = &self.buffers[*at];
                // Only if nobody touches it before or after, nor within the loop in another way.
                let comes = buffer.comes.filter(|stairs| stairs.first == buffer.first);
                let goes = buffer.goes.filter(|stairs| stairs.last == buffer.last);
                place::Span { bytes: buffer.bytes, first: buffer.first, last: buffer.last, comes, goes }
            })
            .collect();
        let placed = place::place(&spans);
        let mut offsets = BTreeMap::new();
        for (at, offset) in arena.iter().zip(&placed.offsets) {
            offsets.insert(*at, *offset);
        }
        let slots: Vec<Slot> = self
            .buffers
            .iter()
            .enumerate()
            .map(|(at, buffer)| Slot {
                name: buffer.name.clone(),
                base: buffer.state.map_or(Base::Arena, Base::State),
                offset: offsets.get(&at).copied().unwrap_or(0),
                bytes: buffer.bytes,
                dtype: buffer.dtype,
                category: buffer.category,
            })
            .collect();

        let mut bytes: BTreeMap<Category, u64> = Category::ALL.into_iter().map(|category| (category, 0)).collect();
        let mut add = |category: Category, more: u64| *bytes.entry(category).or_default() += more;
        let mut kept = 0;
        for state in &states {
            let category = if state.kind == InputKind::Weight { Category::Weights } else { Category::State };
            add(category, state.bytes);
            kept += state.bytes;
        }
        for (at, live_bytes) in arena.iter().zip(&placed.live) {
            add(self.buffers[*at].category, *live_bytes);
        }
        // Gaps between buffers, and what rounding to whole cache lines costs.
        add(Category::Workspace, placed.bytes - placed.bound);
        self.report.bytes = bytes.into_iter().collect();
        self.report.bytes.sort_by_key(|(category, _)| Category::ALL.iter().position(|other| other == category));
        self.report.peak_bytes = kept + placed.bytes;
        self.report.bound_bytes = kept + placed.bound;
        Plan { arena_bytes: placed.bytes, states, slots, kernels: self.kernels, steps, io, report: self.report }
    }
}

/// The axes of an input in the order that the caller asks for.
fn chosen(order: &[Name], input: &mdl_graph::Input) -> Result<Vec<Axis>, CompileError> {
    let axes: Option<Vec<Axis>> = order.iter().map(|name| input.ty.axes.get(name).cloned()).collect();
    match axes {
        Some(axes) if axes.len() == input.ty.axes.len() => Ok(axes),
        _ => Err(CompileError::new(
            None,
            format!("the order asked for `{}` is not one of its axes {}", input.name, input.ty),
        )),
    }
}
