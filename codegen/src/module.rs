//! Kernels compiled and ready to launch.
//!
//! In: verified kernels and an instruction set. Out: [`Module::launch`], which runs one kernel on a pool of threads. A kernel
//! is one or two *stages* (the second combines the partial results of exits); a stage is a number of tasks that is fixed by
//! shapes, dealt to threads in equal runs. No task's bits depend on which thread runs it. Nothing is allocated in a launch.

use mdl_compiler::kernel::{
    Access, Buf, BufId, Dim, FoldKind, Kernel, Nest, Operand, Prefix, Rank, Role, ScalarOp, Scatter, Stmt, Top, Val,
    ValId, Work,
};
use mdl_graph::{DType, bug};

use crate::block::Block;
use crate::clif::Drive;
use crate::contract::{Contraction, Epilogue, Finish, Packed};
use crate::deal::Deal;
use crate::isa::Isa;
use crate::jit::{Code, CompileError, Jit};
use crate::memory::Buffers;
use crate::nest::{Plan, Scope, TILE, normal, normal_columns, oriented, parts, strip_bytes};
use crate::plane::{Planes, RowsEntry, Tiled};
use crate::pool::Pool;
use crate::workspace::{Needs, partial_bytes};
use crate::{interp, ordering, scatter};

/// (buffers, first and last grid point, scratch).
type Entry = unsafe extern "C" fn(*const *mut u8, u64, u64, *mut u8);

/// At most so many buffers, with the partial results of exits.
const MAX_BUFFERS: usize = 256;
/// Work, in statements times elements, below which waking other threads costs more than it gains: about 10 µs.
const ALONE: u64 = 1 << 15;

/// What executes a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The interpreter: slow, and the meaning.
    Reference,
    Cpu(Isa),
}

/// Compiled kernels. A kernel is named by its position in the list given to [`Module::compile`].
pub struct Module {
    kernels: Vec<Compiled>,
    scratch_bytes: u64,
    partial_bytes: u64,
    _code: Option<Code>,
}

struct Compiled {
    n_bufs: usize,
    stages: Vec<Stage>,
    /// Where each exit's partial results begin.
    partials: Vec<u64>,
}

struct Stage {
    parts: Vec<(Part, u64)>,
    tasks: u64,
    alone: bool,
}

enum Part {
    Interpret(Box<Kernel>),
    Nest(Entry),
    Contract(Box<Contraction>),
    Plane(Box<Planes>),
    Scatter(Scatter, DType, DType),
    Prefix(Prefix, DType),
    Top(Top, DType),
}

/// Memory that launches need beside the buffers: scratch for each thread, and partial results.
pub struct Workspace {
    base: *mut u8,
    _block: Block,
    partials: usize,
    scratch: usize,
    deal: Deal,
}

// SAFETY: plain memory; a launch gives each thread its own part.
unsafe impl Send for Workspace {}
// SAFETY: as above.
unsafe impl Sync for Workspace {}

impl Module {
    pub fn compile(kernels: &[Kernel], target: Target) -> Result<Module, CompileError> {
        for kernel in kernels {
            kernel.verify().map_err(|what| CompileError(what.to_string()))?;
        }
        match target {
            Target::Reference => Ok(Module::interpreted(kernels)),
            Target::Cpu(isa) => Module::native(kernels, isa),
        }
    }

    fn interpreted(kernels: &[Kernel]) -> Module {
        let one = |kernel: &Kernel| Compiled {
            n_bufs: kernel.bufs.len(),
            stages: vec![Stage { parts: vec![(Part::Interpret(Box::new(kernel.clone())), 1)], tasks: 1, alone: true }],
            partials: Vec::new(),
        };
        Module { kernels: kernels.iter().map(one).collect(), scratch_bytes: 64, partial_bytes: 0, _code: None }
    }

    fn native(kernels: &[Kernel], isa: Isa) -> Result<Module, CompileError> {
        let mut jit = Jit::new(isa)?;
        let mut ids = Vec::new();
        let mut module = Module { kernels: Vec::new(), scratch_bytes: 64, partial_bytes: 0, _code: None };
        // Functions have no address yet: their number, from 1, stands for it until all are defined.
        let placeholder = |number: usize| number as *const u8;
        for kernel in kernels {
            let mut compiled = Compiled { n_bufs: kernel.bufs.len(), stages: Vec::new(), partials: Vec::new() };
            let dtype = |operand: Operand| kernel.bufs[operand.buf.0 as usize].dtype;
            match &kernel.work {
                Work::Nest(nest) if nest.has_exits() => {
                    let mut end = 0;
                    for buf in partial_buffers(kernel, nest) {
                        compiled.partials.push(end);
                        end += partial_bytes(buf.len * buf.dtype.size_bytes());
                    }
                    if kernel.bufs.len() + compiled.partials.len() > MAX_BUFFERS {
                        return Err(CompileError(format!("kernel {} has too many buffers", kernel.name)));
                    }
                    module.partial_bytes = module.partial_bytes.max(end);
                    let tasks = nest.grid[..nest.keep].iter().product::<u64>() * nest.chunks;
                    let drive = Drive::Chunks { keep: nest.keep, chunks: nest.chunks };
                    let work = work(nest);
                    let (id, scratch) = define(&mut jit, kernel, nest, &drive)?;
                    module.scratch_bytes = module.scratch_bytes.max(scratch);
                    ids.push(id);
                    let part = Part::Nest(as_entry(placeholder(ids.len())));
                    compiled.stages.push(Stage { parts: vec![(part, tasks)], tasks, alone: work < ALONE });
                    let mut last = Stage { parts: Vec::new(), tasks: 0, alone: true };
                    let mut combined = 0;
                    for combine in combiners(kernel, nest) {
                        let Work::Nest(inner) = &combine.work else { bug!("a combiner is not a nest") };
                        let inner = normal(inner);
                        combined += self::work(&inner);
                        let (id, scratch) = define(&mut jit, &combine, &inner, &Drive::Grid)?;
                        module.scratch_bytes = module.scratch_bytes.max(scratch);
                        ids.push(id);
                        let tasks = points(&combine, &inner);
                        last.parts.push((Part::Nest(as_entry(placeholder(ids.len()))), tasks));
                        last.tasks += tasks;
                    }
                    last.alone = combined < ALONE;
                    compiled.stages.push(last);
                }
                Work::Nest(nest) => {
                    let mut stage = Stage { parts: Vec::new(), tasks: 0, alone: true };
                    let mut all = 0;
                    for nest in parts(kernel, nest) {
                        let nest = normal(&nest);
                        all += work(&nest);
                        let (id, scratch) = define(&mut jit, kernel, &nest, &Drive::Grid)?;
                        module.scratch_bytes = module.scratch_bytes.max(scratch);
                        ids.push(id);
                        let tasks = points(kernel, &nest);
                        stage.parts.push((Part::Nest(as_entry(placeholder(ids.len()))), tasks));
                        stage.tasks += tasks;
                    }
                    stage.alone = all < ALONE;
                    compiled.stages.push(stage);
                }
                Work::Contract(contract) => {
                    let contract = &oriented(contract);
                    let mut contraction = Contraction::new(kernel, contract, isa);
                    if contraction.needs_body() {
                        let (dims, body, n_columns) = normal_columns(contract);
                        contraction.n_last = dims.last().map_or(1, |extent| *extent as usize);
                        let wide = jit.is_wide(contraction.n_last as u64);
                        let scope =
                            Scope { kernel, dims: &dims, vals: &contract.vals, body: &body, product: true, wide };
                        let plan = Plan::of(&scope);
                        ids.push(jit.define(&scope, &plan, &Drive::Product { n_outer: n_columns - 1 })?);
                        contraction.finish = Finish::Body(as_epilogue(placeholder(ids.len())));
                        contraction.body_scratch = plan.scratch_bytes;
                    }
                    module.scratch_bytes = module.scratch_bytes.max(contraction.scratch_bytes());
                    let (tasks, alone) = (contraction.tasks(), contraction.flops() < 16 * ALONE);
                    let part = Part::Contract(Box::new(contraction));
                    compiled.stages.push(Stage { parts: vec![(part, tasks)], tasks, alone });
                }
                Work::Plane(plane) => {
                    let mut planes = Planes::new(kernel, plane, isa);
                    let (inner, body) = Tiled::of(plane).body(kernel, plane, planes.pitch());
                    let dims = plane.body_dims();
                    let wide = jit.is_wide(plane.columns);
                    let scope =
                        Scope { kernel: &inner, dims: &dims, vals: &plane.vals, body: &body, product: false, wide };
                    let plan = Plan::of(&scope);
                    ids.push(jit.define(&scope, &plan, &Drive::Rows)?);
                    planes.body = Some(as_rows(placeholder(ids.len())));
                    planes.body_scratch = plan.scratch_bytes;
                    module.scratch_bytes = module.scratch_bytes.max(planes.scratch_bytes());
                    let (tasks, alone) = (planes.tasks(), planes.flops() < 16 * ALONE);
                    compiled.stages.push(Stage { parts: vec![(Part::Plane(Box::new(planes)), tasks)], tasks, alone });
                }
                Work::Scatter(scatter) => {
                    let tasks = scatter::tasks(scatter);
                    let alone = scatter::work(scatter) < ALONE;
                    let part = Part::Scatter(scatter.clone(), dtype(scatter.rows), dtype(scatter.index));
                    compiled.stages.push(Stage { parts: vec![(part, tasks)], tasks, alone });
                }
                Work::Prefix(prefix) => {
                    let tasks = ordering::rows(&prefix.outer);
                    let alone = tasks * prefix.along.extent < ALONE;
                    let part = Part::Prefix(prefix.clone(), dtype(prefix.x));
                    compiled.stages.push(Stage { parts: vec![(part, tasks)], tasks, alone });
                }
                Work::Top(top) => {
                    module.scratch_bytes = module.scratch_bytes.max(ordering::scratch_bytes(top));
                    let tasks = ordering::rows(&top.outer);
                    let alone = tasks * top.along.extent < ALONE / 8;
                    let part = Part::Top(top.clone(), dtype(top.x));
                    compiled.stages.push(Stage { parts: vec![(part, tasks)], tasks, alone });
                }
            }
            module.kernels.push(compiled);
        }
        let (code, addresses) = jit.finish(&ids)?;
        for stage in module.kernels.iter_mut().flat_map(|kernel| &mut kernel.stages) {
            for (part, _) in &mut stage.parts {
                match part {
                    Part::Nest(entry) => *entry = as_entry(addresses[*entry as usize - 1]),
                    Part::Contract(contraction) => {
                        if let Finish::Body(body) = contraction.finish {
                            contraction.finish = Finish::Body(as_epilogue(addresses[body as usize - 1]));
                        }
                    }
                    Part::Plane(planes) => {
                        planes.body = planes.body.map(|body| as_rows(addresses[body as usize - 1]));
                    }
                    Part::Interpret(_) | Part::Scatter(..) | Part::Prefix(..) | Part::Top(..) => {}
                }
            }
        }
        module._code = Some(code);
        Ok(module)
    }

    pub fn len(&self) -> usize {
        self.kernels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.kernels.is_empty()
    }

    /// Bytes of a workspace for so many threads: part of the memory that a run needs.
    pub fn workspace_bytes(&self, n_threads: usize) -> u64 {
        Needs { scratch: self.scratch_bytes, partials: self.partial_bytes }.bytes(n_threads)
    }

    /// Memory for launches on a pool of so many threads; allocated once.
    pub fn workspace(&self, n_threads: usize) -> Workspace {
        let mut block = Block::zeroed(self.workspace_bytes(n_threads));
        let partials = self.partial_bytes.next_multiple_of(64) as usize;
        let scratch = self.scratch_bytes.next_multiple_of(4096) as usize;
        Workspace { base: block.base(), _block: block, partials, scratch, deal: Deal::new(n_threads) }
    }

    /// Runs kernel number `kernel` to its end on all threads of the pool.
    ///
    /// # Safety
    /// `bufs` are the kernel's buffers, as [`Buffers::new`] demands; `workspace` was made by this module for at least as
    /// many threads, and no other launch uses it now.
    pub unsafe fn launch(&self, pool: &Pool, workspace: &Workspace, kernel: usize, bufs: Buffers<'_>) {
        let compiled = &self.kernels[kernel];
        let mut addresses = [std::ptr::null_mut::<u8>(); MAX_BUFFERS];
        let bufs = if compiled.partials.is_empty() {
            bufs
        } else {
            for (at, address) in addresses[..compiled.n_bufs].iter_mut().enumerate() {
                *address = bufs.base(at);
            }
            for (address, offset) in addresses[compiled.n_bufs..].iter_mut().zip(&compiled.partials) {
                // SAFETY: the workspace has `partial_bytes` of them.
                *address = unsafe { workspace.base.add(*offset as usize) };
            }
            // SAFETY: the caller's buffers, and ours.
            unsafe { Buffers::new(&addresses) }
        };
        for stage in &compiled.stages {
            // SAFETY: the workspace has scratch for each worker.
            let scratch =
                |worker: usize| unsafe { workspace.base.add(workspace.partials + worker * workspace.scratch) };
            if stage.alone || stage.tasks <= 1 || pool.n_threads() == 1 {
                // SAFETY: nobody else runs.
                unsafe { stage.run(bufs, 0, stage.tasks, scratch(0), &mut None) };
                continue;
            }
            workspace.deal.start(stage.tasks);
            pool.run(&|worker, _| {
                let mut packed = None;
                while let Some((lo, hi)) = workspace.deal.take(worker) {
                    // SAFETY: tasks of one stage touch different memory, and each is dealt once.
                    unsafe { stage.run(bufs, lo, hi, scratch(worker), &mut packed) };
                }
            });
        }
    }
}

impl Stage {
    /// # Safety
    /// As [`Module::launch`], for tasks that nobody else runs.
    unsafe fn run(&self, bufs: Buffers<'_>, lo: u64, hi: u64, scratch: *mut u8, packed: &mut Packed) {
        let mut start = 0;
        for (part, tasks) in &self.parts {
            let (from, to) = (lo.max(start) - start, hi.min(start + tasks).saturating_sub(start));
            start += tasks;
            if from >= to {
                continue;
            }
            // SAFETY: the kernel was verified and the caller vouches for the buffers.
            unsafe {
                match part {
                    Part::Interpret(kernel) => interp::run(kernel, bufs),
                    Part::Nest(entry) => entry(bufs.as_ptr(), from, to, scratch),
                    Part::Contract(contraction) => contraction.run(bufs, from, to, scratch, packed),
                    Part::Plane(planes) => planes.run(bufs, from, to, scratch),
                    Part::Scatter(scatter, rows, index) => scatter::run(scatter, *rows, *index, bufs, from, to),
                    Part::Prefix(prefix, dtype) => ordering::prefix(prefix, *dtype, bufs, from, to),
                    Part::Top(top, dtype) => ordering::top(top, *dtype, bufs, from, to, scratch),
                }
            }
        }
    }
}

fn as_entry(address: *const u8) -> Entry {
    assert!(!address.is_null(), "a function without an address");
    // SAFETY: a pointer's size; called only after it was replaced by the address of a compiled function of this type.
    unsafe { std::mem::transmute::<*const u8, Entry>(address) }
}

fn as_epilogue(address: *const u8) -> Epilogue {
    assert!(!address.is_null(), "a function without an address");
    // SAFETY: as in `as_entry`.
    unsafe { std::mem::transmute::<*const u8, Epilogue>(address) }
}

fn as_rows(address: *const u8) -> RowsEntry {
    assert!(!address.is_null(), "a function without an address");
    // SAFETY: as in `as_entry`.
    unsafe { std::mem::transmute::<*const u8, RowsEntry>(address) }
}

fn define(
    jit: &mut Jit,
    kernel: &Kernel,
    nest: &Nest,
    drive: &Drive,
) -> Result<(cranelift_module::FuncId, u64), CompileError> {
    let mut dims = nest.grid.clone();
    dims.push(nest.strip);
    let scope = Scope {
        kernel,
        dims: &dims,
        vals: &nest.vals,
        body: &nest.body,
        product: false,
        wide: jit.is_wide(nest.strip),
    };
    let plan = Plan::of(&scope);
    Ok((jit.define(&scope, &plan, drive)?, plan.scratch_bytes))
}

/// The CLIF of every function of a kernel, for dumps and golden tests; empty for kernels that are not compiled.
pub fn clif(kernel: &Kernel) -> Result<String, CompileError> {
    kernel.verify().map_err(|what| CompileError(what.to_string()))?;
    let mut jit = Jit::new(Isa::Baseline)?;
    let mut nest_text = |kernel: &Kernel, nest: &Nest, drive: &Drive| {
        let mut dims = nest.grid.clone();
        dims.push(nest.strip);
        let scope = Scope { kernel, dims: &dims, vals: &nest.vals, body: &nest.body, product: false, wide: false };
        jit.text(&scope, &Plan::of(&scope), drive)
    };
    Ok(match &kernel.work {
        Work::Nest(nest) if nest.has_exits() => {
            let drive = Drive::Chunks { keep: nest.keep, chunks: nest.chunks };
            let mut text = nest_text(kernel, nest, &drive);
            for combine in combiners(kernel, nest) {
                let Work::Nest(inner) = &combine.work else { bug!("a combiner is not a nest") };
                text.push_str(&nest_text(&combine, &normal(inner), &Drive::Grid));
            }
            text
        }
        Work::Nest(nest) => {
            parts(kernel, nest).iter().map(|nest| nest_text(kernel, &normal(nest), &Drive::Grid)).collect()
        }
        Work::Contract(contract) if Contraction::new(kernel, &oriented(contract), Isa::Baseline).needs_body() => {
            let contract = &oriented(contract);
            let (dims, body, n_columns) = normal_columns(contract);
            let scope = Scope { kernel, dims: &dims, vals: &contract.vals, body: &body, product: true, wide: false };
            jit.text(&scope, &Plan::of(&scope), &Drive::Product { n_outer: n_columns - 1 })
        }
        Work::Plane(plane) => {
            let tiled = Tiled::of(plane);
            let pitch = Planes::new(kernel, plane, Isa::Baseline).pitch();
            let (inner, body) = tiled.body(kernel, plane, pitch);
            let dims = plane.body_dims();
            let scope =
                Scope { kernel: &inner, dims: &dims, vals: &plane.vals, body: &body, product: false, wide: false };
            jit.text(&scope, &Plan::of(&scope), &Drive::Rows)
        }
        Work::Contract(_) | Work::Scatter(_) | Work::Prefix(_) | Work::Top(_) => String::new(),
    })
}

/// Statements times elements, roughly what a nest costs.
fn work(nest: &Nest) -> u64 {
    let points: u64 = nest.grid.iter().product();
    points.saturating_mul(nest.strip.max(8)).saturating_mul(nest.body.len() as u64)
}

/// Grid points of the compiled function: tiles of a long strip are points.
fn points(kernel: &Kernel, nest: &Nest) -> u64 {
    let mut dims = nest.grid.clone();
    dims.push(nest.strip);
    let scope = Scope { kernel, dims: &dims, vals: &nest.vals, body: &nest.body, product: false, wide: false };
    let tiles = if scope.tiled() { nest.strip.div_ceil(TILE) } else { 1 };
    nest.grid.iter().product::<u64>() * tiles
}

/// A buffer for each exit: `[kept, chunk, strip or one]`.
pub(crate) fn partial_buffers(kernel: &Kernel, nest: &Nest) -> Vec<Buf> {
    let kept: u64 = nest.grid[..nest.keep].iter().product();
    let exits = nest.body.iter().filter_map(|stmt| match stmt {
        Stmt::Exit { buf, val, .. } => Some((*buf, nest.vals[val.0 as usize])),
        _ => None,
    });
    exits
        .map(|(buf, ty)| {
            let width = if ty.rank == Rank::Strip { nest.strip } else { 1 };
            debug_assert_eq!(ty.dtype.size_bytes(), strip_bytes(ty.dtype), "no exits of bool");
            let name = format!("partial {}", kernel.bufs[buf.0 as usize].name);
            Buf { name, dtype: ty.dtype, len: kept * nest.chunks * width, role: Role::Read }
        })
        .collect()
}

/// For each exit a kernel that adds its partial results in order and stores the sum.
pub(crate) fn combiners(kernel: &Kernel, nest: &Nest) -> Vec<Kernel> {
    let partials = partial_buffers(kernel, nest);
    let mut all = Vec::new();
    for stmt in &nest.body {
        let Stmt::Exit { buf, access, kind, val } = stmt else { continue };
        let ty = nest.vals[val.0 as usize];
        let partial = BufId((kernel.bufs.len() + all.len()) as u32);
        let width = if ty.rank == Rank::Strip { nest.strip } else { 1 };
        let mut combine = Nest::new(nest.grid[..nest.keep].to_vec(), width);
        let strip = combine.strip_dim();
        // The strides of a partial result.
        let mut terms = vec![(strip, 1)];
        let mut stride = (width * nest.chunks) as i64;
        for dim in (0..nest.keep).rev() {
            terms.push((Dim(dim as u32), stride));
            stride *= nest.grid[dim] as i64;
        }
        if width == 1 {
            terms.remove(0);
        }
        let mut sum = None;
        for chunk in 0..nest.chunks {
            let loaded = ValId(combine.vals.len() as u32);
            combine.vals.push(ty);
            let access = Access::affine((chunk * width) as i64, &terms);
            combine.body.push(Stmt::Load { val: loaded, buf: partial, access });
            sum = Some(match sum {
                None => loaded,
                Some(so_far) => {
                    let joined = ValId(combine.vals.len() as u32);
                    combine.vals.push(ty);
                    let op = match kind {
                        FoldKind::Sum => ScalarOp::Add,
                        FoldKind::Max => ScalarOp::Max,
                    };
                    combine.body.push(Stmt::Map { val: joined, op, args: vec![so_far, loaded] });
                    joined
                }
            });
        }
        // The same access, with the strip's new number.
        let mut access = access.clone();
        for term in &mut access.terms {
            if let mdl_compiler::kernel::Position::Index(index) = &mut term.index {
                for (dim, _) in &mut index.terms {
                    if *dim == nest.strip_dim() {
                        *dim = strip;
                    }
                }
            }
        }
        if let Some(val) = sum {
            combine.body.push(Stmt::Store { buf: *buf, access, val });
        }
        if width == 1 {
            combine.vals.iter_mut().for_each(|val| *val = Val::row(val.dtype));
        }
        let bufs = kernel.bufs.iter().cloned().chain(partials.iter().cloned()).collect();
        all.push(Kernel { name: format!("{} combine", kernel.name), bufs, work: Work::Nest(combine) });
    }
    all
}
