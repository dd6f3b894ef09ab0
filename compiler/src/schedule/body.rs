//! The steps of one graph or loop body: fused, lowered, in order, each value with a place.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Axis, Class, DType, Graph, Loop, Name, NodeId, Op, Phase, bug};

use super::layout::Layout;
use super::order;
use super::tasks::{Task, Tasks};
use super::{Home, Planner};
use crate::fuse::{Body, Fusion, Group, Kind, Traffic};
use crate::kernel::{Access, Buf, BufId, Dim, Kernel, Nest, Role, Stmt, Val, ValId, Work};
use crate::lower::{Failure, Lowered, Lowering, Strided, resolve};
use crate::plan::{Category, CompileError, GroupReport, Move, SlotId, Step};

/// Where an output has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Any,
    /// Anywhere, row-major in some order.
    Dense,
    At(Home),
}

pub(crate) struct BodyPlan {
    pub(crate) steps: Vec<Step>,
    /// Where each output is.
    pub(crate) outputs: Vec<Home>,
}

/// A place that a kernel writes a value to.
#[derive(Clone, Debug)]
enum Place {
    Given(Home),
    New(Layout),
}

impl Place {
    fn layout(&self) -> &Layout {
        match self {
            Place::Given(home) => &home.layout,
            Place::New(layout) => layout,
        }
    }
}

/// A body whose every group has a kernel.
struct Ready<'g> {
    body: Body<'g>,
    fusion: Fusion,
    tasks: Tasks,
    places: BTreeMap<NodeId, Vec<Place>>,
    lowered: Vec<Option<Lowered>>,
}

impl Planner<'_> {
    pub(crate) fn body(
        &mut self,
        graph: &Graph,
        inputs: &[Home],
        wants: &[Want],
        depth: u32,
    ) -> Result<BodyPlan, CompileError> {
        let ready = self.ready(graph, inputs, wants)?;
        let left = order::readers(&ready.body, &ready.fusion, &ready.tasks);
        let sequence = order::order(&ready.body, &ready.fusion, &ready.tasks);
        let Ready { body, fusion, places, lowered, .. } = ready;
        let mut emit = Emit {
            planner: self,
            body: &body,
            fusion: &fusion,
            places,
            lowered,
            homes: BTreeMap::new(),
            temps: BTreeMap::new(),
            own: BTreeSet::new(),
            left,
            depth,
            steps: Vec::new(),
        };
        for id in graph.ids() {
            if let Op::Input(input) = graph.op(id) {
                emit.homes.insert(id, vec![inputs[input.0 as usize].clone()]);
            }
        }
        for task in sequence {
            emit.task(task, wants)?;
        }
        let outputs = (0..wants.len()).map(|j| emit.output(j, &wants[j])).collect();
        Ok(BodyPlan { steps: emit.steps, outputs })
    }

    /// Fuses and lowers, again with more values in memory as long as a kernel asks for them.
    fn ready<'g>(&self, graph: &'g Graph, inputs: &[Home], wants: &[Want]) -> Result<Ready<'g>, CompileError> {
        let mut forced: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let body = Body::new(graph, &forced);
            let roots: BTreeSet<NodeId> = graph
                .outputs()
                .iter()
                .map(|output| body.renamed(output.node).0)
                .filter(|id| body.kind(*id) == Kind::Free)
                .collect();
            let operands = body.operands_to_store();
            if !roots.is_empty() || !operands.is_empty() {
                forced.extend(roots);
                forced.extend(operands);
                continue;
            }
            let fusion = Fusion::new(&body, &self.ranks, self.options.fuse);
            let tasks = Tasks::new(&body, &fusion, inputs, wants);
            let places = self.places(&body, &fusion, &tasks, inputs, wants);
            let layouts: BTreeMap<NodeId, Vec<Layout>> = places
                .iter()
                .map(|(id, places)| (*id, places.iter().map(|place| place.layout().clone()).collect()))
                .collect();
            let lowering = Lowering {
                body: &body,
                ranks: &self.ranks,
                fusion: &fusion,
                layouts: &layouts,
                round_every_node: self.options.round_every_node,
                parts: self.options.parts,
            };
            match lower_all(&lowering) {
                Ok(lowered) => return Ok(Ready { body, fusion, tasks, places, lowered }),
                Err(Failure::Store(id)) => {
                    // A node that is in memory already wants what it reads to be there.
                    let is_new = body.kind(id) == Kind::Free || !forced.contains(&id);
                    let args = graph.args(id).iter().copied().filter(|arg| body.kind(*arg) == Kind::Free);
                    let added: Vec<NodeId> = if is_new { vec![id] } else { args.collect() };
                    let before = forced.len();
                    forced.extend(added);
                    if forced.len() == before {
                        let message = format!("`{}` cannot be read in the way that its user asks for", graph.op(id));
                        return Err(CompileError::new(Some(id), message));
                    }
                }
                Err(Failure::Error(error)) => return Err(error),
            }
        }
    }

    /// The places of every value that is in memory.
    fn places(
        &self,
        body: &Body<'_>,
        fusion: &Fusion,
        tasks: &Tasks,
        inputs: &[Home],
        wants: &[Want],
    ) -> BTreeMap<NodeId, Vec<Place>> {
        let mut places: BTreeMap<NodeId, Vec<Place>> = BTreeMap::new();
        for (j, output) in body.graph.outputs().iter().enumerate() {
            if let (Want::At(home), true) = (&wants[j], tasks.direct[j]) {
                let (root, names) = body.renamed(output.node);
                places.entry(root).or_default().push(Place::Given(back(home, &names)));
            }
        }
        let wanted = wanted_orders(body.graph, wants);
        let layout = |id: NodeId| match wanted.get(&id) {
            Some(order) => Layout::dense(order.clone()),
            None => self.ranks.layout(&body.graph.ty(id).axes),
        };
        for id in body.graph.ids() {
            match body.graph.op(id) {
                Op::Input(input) => {
                    places.insert(id, vec![Place::Given(inputs[input.0 as usize].clone())]);
                }
                Op::Get(_) => {
                    places.entry(id).or_insert_with(|| vec![Place::New(layout(id))]);
                }
                Op::Loop(_) => {}
                _ if fusion.stored.contains(&id) => {
                    places.entry(id).or_insert_with(|| vec![Place::New(layout(id))]);
                }
                _ => {}
            }
        }
        places
    }
}

/// The orders of axes that outputs have to have, for what they are computed from element by element: a gradient lies as its
/// weight does.
fn wanted_orders(graph: &Graph, wants: &[Want]) -> BTreeMap<NodeId, Vec<Axis>> {
    let mut orders: BTreeMap<NodeId, Vec<Axis>> = BTreeMap::new();
    for (output, want) in graph.outputs().iter().zip(wants) {
        let Want::At(home) = want else { continue };
        let axes = &graph.ty(output.node).axes;
        let mut stack = vec![output.node];
        while let Some(id) = stack.pop() {
            if graph.ty(id).axes != *axes || orders.contains_key(&id) {
                continue;
            }
            orders.insert(id, home.layout.axes.iter().map(|(axis, _)| axis.clone()).collect());
            if graph.op(id).class() == Class::Map {
                stack.extend(graph.args(id));
            }
        }
    }
    orders
}

/// The same place with the names that the root gives to its axes.
fn back(home: &Home, names: &[(Name, Name)]) -> Home {
    let mut home = home.clone();
    for (axis, _) in &mut home.layout.axes {
        if let Some((there, _)) = names.iter().find(|(_, here)| *here == axis.name) {
            axis.name = there.clone();
        }
    }
    home
}

/// The same place with the names that a renaming gives to the root's axes.
fn forth(home: &Home, names: &[(Name, Name)]) -> Home {
    let swapped: Vec<(Name, Name)> = names.iter().map(|(there, here)| (here.clone(), there.clone())).collect();
    back(home, &swapped)
}

fn lower_all(lowering: &Lowering<'_, '_>) -> Result<Vec<Option<Lowered>>, Failure> {
    let mut lowered = Vec::with_capacity(lowering.fusion.groups.len());
    let layout = |id: NodeId| lowering.layouts.get(&id).and_then(|places| places.first());
    for group in &lowering.fusion.groups {
        for id in group.members.keys() {
            if let Op::Loop(_) = lowering.body.graph.op(*id) {
                for arg in lowering.body.graph.args(*id) {
                    resolve(lowering.body, *arg, &layout).ok_or(Failure::Store(*arg))?;
                }
            }
        }
        let made = lowering.group(group)?;
        if cfg!(debug_assertions)
            && let Some(made) = &made
            && let Err(error) = made.kernel.verify()
        {
            bug!("{error}\n{}", made.kernel);
        }
        lowered.push(made);
    }
    Ok(lowered)
}

/// The emission of one body's steps.
struct Emit<'e, 'g, 'o> {
    planner: &'e mut Planner<'o>,
    body: &'e Body<'g>,
    fusion: &'e Fusion,
    places: BTreeMap<NodeId, Vec<Place>>,
    lowered: Vec<Option<Lowered>>,
    homes: BTreeMap<NodeId, Vec<Home>>,
    /// Outputs that were saved before they could be overwritten.
    temps: BTreeMap<usize, Home>,
    /// Buffers that live within this body.
    own: BTreeSet<SlotId>,
    /// How many tasks still read each value.
    left: BTreeMap<NodeId, usize>,
    depth: u32,
    steps: Vec<Step>,
}

impl Emit<'_, '_, '_> {
    fn task(&mut self, task: Task, wants: &[Want]) -> Result<(), CompileError> {
        for root in order::reads(self.body, self.fusion, task) {
            if let Some(count) = self.left.get_mut(&root) {
                *count -= 1;
            }
        }
        let graph = self.body.graph;
        match task {
            Task::Group(at) => {
                let group = &self.fusion.groups[at];
                match self.lowered[at].take() {
                    Some(lowered) => self.launch(group, lowered),
                    None => {
                        for id in group.members.keys() {
                            match graph.op(*id) {
                                Op::Loop(inner) => self.run_loop(*id, inner)?,
                                _ => self.nothing(*id),
                            }
                        }
                    }
                }
            }
            Task::Temp(j) => {
                let id = graph.outputs()[j].node;
                let ty = graph.ty(id);
                let from = self.named(id);
                let layout = self.planner.ranks.layout(&ty.axes);
                let category = self.category(id);
                let to = self.planner.home(format!("{id} saved"), ty.dtype, layout, category);
                self.own.insert(to.buffer);
                self.copy(&from, &to, ty.dtype);
                self.temps.insert(j, to);
            }
            Task::Out(j) => {
                let id = graph.outputs()[j].node;
                let from = self.temps.get(&j).cloned().unwrap_or_else(|| self.named(id));
                if let Want::At(to) = &wants[j] {
                    self.copy(&from, to, graph.ty(id).dtype);
                }
            }
        }
        Ok(())
    }

    /// Where a node is that is a value in memory or another name for one.
    fn named(&self, id: NodeId) -> Home {
        let (root, names) = self.body.renamed(id);
        match self.homes.get(&root).and_then(|homes| homes.first()) {
            Some(home) => forth(home, &names),
            None => bug!("{root} is read before it is made"),
        }
    }

    fn output(&self, j: usize, want: &Want) -> Home {
        match (want, self.temps.get(&j)) {
            (Want::At(home), _) => home.clone(),
            (_, Some(temp)) => temp.clone(),
            _ => self.named(self.body.graph.outputs()[j].node),
        }
    }

    fn category(&self, id: NodeId) -> Category {
        let graph = self.body.graph;
        let phase = graph.node(id).phase;
        let read_in = |wanted: Phase| graph.nodes().iter().any(|node| node.phase == wanted && node.args.contains(&id));
        match phase {
            Phase::Forward if read_in(Phase::Backward) => Category::Activations,
            Phase::Backward if read_in(Phase::Update) => Category::Gradients,
            _ => Category::Workspace,
        }
    }

    fn launch(&mut self, group: &Group, mut lowered: Lowered) {
        self.note(group, &lowered);
        let mut homes: Vec<Option<Home>> = vec![None; lowered.touches.len()];
        for (at, touch) in lowered.touches.iter().enumerate().filter(|(_, touch)| !touch.is_write) {
            homes[at] = self.homes.get(&touch.node).and_then(|homes| homes.first()).cloned();
        }
        let mut reused: BTreeSet<usize> = BTreeSet::new();
        for at in 0..lowered.touches.len() {
            let touch = lowered.touches[at];
            if !touch.is_write {
                continue;
            }
            let place = self.places[&touch.node][touch.place].clone();
            let home = match place {
                Place::Given(home) => home,
                Place::New(layout) => match self.dying(&lowered, at, &layout, &homes, &reused) {
                    Some(from) => {
                        reused.insert(from);
                        let Some(home) = homes[from].clone() else { bug!("a dead operand without a place") };
                        Home { layout, ..home }
                    }
                    None => {
                        let dtype = self.body.graph.ty(touch.node).dtype;
                        let category = self.category(touch.node);
                        let home = self.planner.home(format!("{}", touch.node), dtype, layout, category);
                        self.own.insert(home.buffer);
                        home
                    }
                },
            };
            self.homes.entry(touch.node).or_default().push(home.clone());
            homes[at] = Some(home);
        }
        let homes: Vec<Home> = homes
            .into_iter()
            .map(|home| match home {
                Some(home) => home,
                None => bug!("a kernel reads what is not made"),
            })
            .collect();
        for (at, touch) in lowered.touches.clone().iter().enumerate().filter(|(_, touch)| touch.is_write) {
            let place = |home: &Home| (home.buffer, home.offset, home.moves.clone());
            let is_read = lowered.touches.iter().enumerate().any(|(other, read)| {
                !read.is_write && read.node != touch.node && place(&homes[other]) == place(&homes[at])
            });
            if is_read {
                store_last(&mut lowered.kernel, BufId(at as u32));
            }
        }
        let step = self.planner.launch(lowered, &homes);
        self.steps.push(step);
    }

    /// A value without elements has a place like any other.
    fn nothing(&mut self, id: NodeId) {
        for place in self.places.get(&id).cloned().unwrap_or_default() {
            let home = match place {
                Place::Given(home) => home,
                Place::New(layout) => {
                    self.planner.home(format!("{id}"), self.body.graph.ty(id).dtype, layout, Category::Workspace)
                }
            };
            self.homes.entry(id).or_default().push(home);
        }
    }

    /// A buffer of the kernel that nobody reads after it, and whose place the result `at` may take.
    fn dying(
        &self,
        lowered: &Lowered,
        at: usize,
        layout: &Layout,
        homes: &[Option<Home>],
        reused: &BTreeSet<usize>,
    ) -> Option<usize> {
        let to = BufId(at as u32);
        (0..lowered.touches.len()).find(|from| {
            let touch = lowered.touches[*from];
            let Some(home) = &homes[*from] else { return false };
            let (old, new) = (&lowered.kernel.bufs[*from], &lowered.kernel.bufs[at]);
            !touch.is_write
                && !reused.contains(from)
                && self.left.get(&touch.node) == Some(&0)
                && !self.body.kept.contains(&touch.node)
                && self.own.contains(&home.buffer)
                && self.homes.get(&touch.node).is_some_and(|all| all.len() == 1)
                && (old.dtype, old.len) == (new.dtype, new.len)
                && old.len == layout.count()
                && lowered.kernel.may_overwrite(BufId(*from as u32), to)
        })
    }

    fn note(&mut self, group: &Group, lowered: &Lowered) {
        let body = self.body;
        let stored = &self.fusion.stored;
        let before = group
            .members
            .iter()
            .map(|(id, names)| Traffic::new(body, &BTreeMap::from([(*id, names.clone())]), |_| true).bytes)
            .sum();
        let after = Traffic::new(body, &group.members, |id| stored.contains(&id)).bytes;
        let domain = self.planner.ranks.sort(&group.dims).into_iter().map(|dim| {
            let (name, size) = &group.dims[dim];
            format!("{name}:{size}")
        });
        let report = GroupReport {
            name: lowered.kernel.name.clone(),
            domain: domain.collect::<Vec<_>>().join(", "),
            members: group.members.len(),
            runs: self.planner.runs,
            bytes_before: before,
            bytes_after: after,
            flops: crate::cost::kernel(&lowered.kernel).flops,
        };
        self.planner.report.groups.push(report);
    }

    fn copy(&mut self, from: &Home, to: &Home, dtype: DType) {
        let strip = |home: &Home| {
            home.layout.dense_order().map(|order| order.into_iter().filter(|axis| axis.size != 1).collect::<Vec<_>>())
        };
        let bytes = to.layout.count() * dtype.size_bytes();
        if bytes == 0 {
            return;
        }
        if strip(from).is_some_and(|order| Some(order) == strip(to)) {
            self.planner.touch(from);
            self.planner.touch(to);
            self.planner.tick += 1;
            self.planner.report.traffic_bytes += 2 * bytes * self.planner.runs;
            self.steps.push(Step::Copy { from: from.arg(), to: to.arg(), bytes });
            return;
        }
        let (grid, last): (Vec<_>, Vec<_>) = {
            let mut axes = to.layout.axes.clone();
            let last = axes.pop();
            (axes, last.into_iter().collect())
        };
        let strides: Vec<(Dim, &Name)> =
            grid.iter().chain(&last).enumerate().map(|(at, (axis, _))| (Dim(at as u32), &axis.name)).collect();
        let access = |layout: &Layout| {
            let terms: Vec<(Dim, i64)> =
                strides.iter().map(|(dim, name)| (*dim, layout.stride(name).unwrap_or(0))).collect();
            let mut access = Access::affine(0, &terms);
            access.fill = access.fill.cast(Val::dtype_of(dtype));
            access
        };
        let extents = grid.iter().map(|(axis, _)| axis.size).collect();
        let mut nest = Nest::new(extents, last.first().map_or(1, |(axis, _)| axis.size));
        let strip_dim = nest.strip_dim();
        let (load, store) = (access(&from.layout), access(&to.layout));
        nest.vals = vec![if load.depends_on(strip_dim) { Val::strip(dtype) } else { Val::row(dtype) }];
        nest.body = vec![
            Stmt::Load { val: ValId(0), buf: BufId(0), access: load },
            Stmt::Store { buf: BufId(1), access: store, val: ValId(0) },
        ];
        let buf = |name: &str, layout: &Layout, role| Buf { name: name.into(), dtype, len: layout.span(), role };
        let bufs = vec![buf("x0", &from.layout, Role::Read), buf("y0", &to.layout, Role::Write)];
        let kernel = Kernel { name: "copy".into(), bufs, work: Work::Nest(nest) };
        let step = self.planner.launch(Lowered { kernel, touches: Vec::new() }, &[from.clone(), to.clone()]);
        self.steps.push(step);
    }

    /// A loop's argument as a place, its views made strides.
    fn view(&self, id: NodeId) -> Home {
        let layout = |root: NodeId| self.homes.get(&root).and_then(|homes| homes.first()).map(|home| &home.layout);
        let Some(Strided { root, base, strides }) = resolve(self.body, id, &layout) else {
            bug!("{id} is an argument of a loop and not in memory")
        };
        let Some(home) = self.homes.get(&root).and_then(|homes| homes.first()) else { bug!("{root} is not made") };
        let ty = self.body.graph.ty(id);
        let mut axes: Vec<(Axis, i64)> = Vec::with_capacity(strides.len());
        for (name, stride) in strides {
            if let Some(axis) = ty.axes.get(&name) {
                axes.push((axis.clone(), stride));
            }
        }
        let offset = home.offset + base * ty.dtype.size_bytes() as i64;
        Home { buffer: home.buffer, offset, moves: home.moves.clone(), layout: Layout { axes } }
    }

    fn run_loop(&mut self, id: NodeId, inner: &Loop) -> Result<(), CompileError> {
        let graph = self.body.graph;
        let args = graph.args(id);
        let (axis, count) = (&inner.axis.name, inner.axis.size);
        let first = self.planner.tick;
        let at = |home: &Home, dtype: DType| -> Option<Home> {
            let (layout, stride) = home.layout.without(axis)?;
            let mut moves = home.moves.clone();
            moves.push(Move { depth: self.depth, stride: stride * dtype.size_bytes() as i64 });
            Some(Home { buffer: home.buffer, offset: home.offset, moves, layout })
        };
        let mut around: Vec<Home> = Vec::new();
        let mut inputs: Vec<Home> = Vec::with_capacity(args.len());
        for (k, arg) in args.iter().enumerate().skip(inner.carries) {
            let home = self.view(*arg);
            around.push(home.clone());
            let is_scanned = k < inner.carries + inner.scans;
            match if is_scanned { at(&home, graph.ty(*arg).dtype) } else { Some(home) } {
                Some(home) => inputs.push(home),
                None => bug!("a scanned argument of {id} has no axis {axis}"),
            }
        }
        let scanned = around[..inner.scans].to_vec();
        let results = graph.results(id).map_err(|error| CompileError::new(Some(id), error.0))?;
        let mut stacks: Vec<Home> = Vec::new();
        let mut own: Vec<SlotId> = Vec::new();
        for (k, ty) in results.iter().enumerate().skip(inner.carries) {
            let get = self.body.gets(id).find(|get| *graph.op(*get) == Op::Get(k as u32));
            let place = get.and_then(|get| self.places.get(&get)).and_then(|places| places.first());
            stacks.push(match place {
                Some(Place::Given(home)) => home.clone(),
                _ => {
                    let layout = self.result_layout(get, ty);
                    let category = get.map_or(Category::Workspace, |get| self.category(get));
                    let home = self.planner.home(format!("{id}.{k}"), ty.dtype, layout, category);
                    own.push(home.buffer);
                    home
                }
            });
        }
        let slices: Vec<Home> =
            stacks.iter().zip(&results[inner.carries..]).filter_map(|(home, ty)| at(home, ty.dtype)).collect();
        let carries: Vec<Home> = (0..inner.carries).map(|k| self.carry(id, k, args, &results[k])).collect();
        self.own.extend(carries.iter().map(|home| home.buffer).chain(own));
        let mut homes = carries.clone();
        homes.append(&mut inputs);
        around.extend(carries.iter().chain(&stacks).cloned());
        for home in &around {
            self.planner.touch(home);
        }

        let wants: Vec<Want> = carries
            .iter()
            .chain(&slices)
            .map(|home| Want::At(home.clone()))
            .chain(inner.until.then_some(Want::Any))
            .collect();
        let runs = self.planner.runs;
        self.planner.runs *= count;
        let planned = self.planner.body(&inner.body, &homes, &wants, self.depth + 1)?;
        self.planner.runs = runs;
        // The flag is read when everything else of a pass is done.
        around.extend(planned.outputs.last().filter(|_| inner.until).cloned());
        for home in &around {
            self.planner.touch(home);
        }
        self.planner.stairs(inner, first, &scanned, &stacks, &around);
        self.planner.tick += 1;
        let until = if inner.until { planned.outputs.last().map(Home::arg) } else { None };
        self.steps.push(Step::Loop { count, reverse: inner.reverse, until, body: planned.steps });
        for get in self.body.gets(id).collect::<Vec<_>>() {
            if let Op::Get(k) = graph.op(get) {
                let all: Vec<&Home> = carries.iter().chain(&stacks).collect();
                self.homes.insert(get, vec![all[*k as usize].clone()]);
            }
        }
        Ok(())
    }

    fn result_layout(&self, get: Option<NodeId>, ty: &mdl_graph::Type) -> Layout {
        match get.and_then(|get| self.places.get(&get)).and_then(|places| places.first()) {
            Some(place) => place.layout().clone(),
            None => self.planner.ranks.layout(&ty.axes),
        }
    }

    /// The buffer of a carry, with what it starts from in it: the very buffer of the argument if nobody else needs that.
    fn carry(&mut self, id: NodeId, k: usize, args: &[NodeId], ty: &mdl_graph::Type) -> Home {
        let arg = args[k];
        let get = self.body.gets(id).find(|get| *self.body.graph.op(*get) == Op::Get(k as u32));
        let layout = self.result_layout(get, ty);
        let is_sole = args.iter().filter(|other| self.body.renamed(**other).0 == arg || **other == arg).count() == 1
            && self.left.get(&arg) == Some(&0)
            && !self.body.kept.contains(&arg);
        if let (true, Some([home])) = (is_sole, self.homes.get(&arg).map(Vec::as_slice))
            && self.own.contains(&home.buffer)
            && home.layout == layout
        {
            return home.clone();
        }
        let from = self.view(arg);
        let category = self.category(arg);
        let to = self.planner.home(format!("{id} carry {k}"), ty.dtype, layout, category);
        self.copy(&from, &to, ty.dtype);
        to
    }
}

/// Memory that is read and written by one kernel is written when everything has been read.
fn store_last(kernel: &mut Kernel, to: BufId) {
    let body = match &mut kernel.work {
        Work::Nest(nest) => &mut nest.body,
        Work::Contract(contract) => &mut contract.body,
        Work::Plane(_) | Work::Scatter(_) | Work::Prefix(_) | Work::Top(_) => return,
    };
    let (mut last, rest): (Vec<Stmt>, Vec<Stmt>) =
        std::mem::take(body).into_iter().partition(|stmt| matches!(stmt, Stmt::Store { buf, .. } if *buf == to));
    *body = rest;
    body.append(&mut last);
}
