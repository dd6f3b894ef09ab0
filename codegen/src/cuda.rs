//! Kernel IR to CUDA C: one file for all kernels of a plan, which NVRTC compiles when it runs.
//!
//! In: verified kernels. Out: a [`Program`]: text without includes, and for each kernel its launches in order. A launch's grid and
//! block depend on sizes alone, and so do all trees of sums: the same bits on every card. A kernel's second launch combines
//! what the blocks of its first have left in the workspace. Names are those of the kernel's text (`b0`, `v3`, `d1`), so that
//! `--emit=cuda` reads beside `--emit=kernels`. Deliberately absent: the driver, the compiler, and addresses.

mod body;
mod contract;
mod nest;
mod order;
mod plane;
mod prelude;
mod print;
mod rows;
mod scalar;
mod scatter;
mod tensor;
mod tile;

use mdl_compiler::kernel::{Buf, Kernel, Role, Work};
use mdl_graph::DType;

use crate::jit::CompileError;
use print::{Text, buf_type};

/// The most threads of a block in an elementwise kernel, and of several rows in one block.
const THREADS: u64 = 256;
/// Threads that share the 65,536 registers of a multiprocessor, at the least, where nothing else is said: a thread has 128.
const THREADS_AT_ONCE: u64 = 512;
/// Blocks that keep a large card busy. A constant, so that no sum depends on the card.
const BLOCKS: u64 = 264;

/// The kernels of a plan, as CUDA C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub text: String,
    /// What launches one kernel, in order; nothing where there is nothing to compute.
    pub kernels: Vec<Vec<Launch>>,
    /// Memory that launches of one kernel hand on, beside its buffers. Aligned to 256 bytes.
    pub workspace_bytes: u64,
}

/// One launch: a function of the text, its grid and its block, both of one dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub function: String,
    pub blocks: u64,
    pub threads: u64,
    /// Shared memory of a block that its launch asks for, beside what the function itself declares.
    pub shared_bytes: u64,
    pub args: Vec<Arg>,
}

/// A pointer that a launch is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// The kernel's buffer of that number.
    Buf(usize),
    /// This many bytes into the workspace.
    Workspace(u64),
}

/// CUDA C for kernels; the number of each in `kernels` is in the names of its functions.
pub fn program(kernels: &[Kernel]) -> Result<Program, CompileError> {
    let mut text = Text::default();
    let mut program = Program { text: String::new(), kernels: Vec::new(), workspace_bytes: 0 };
    for (number, kernel) in kernels.iter().enumerate() {
        kernel.verify().map_err(|what| CompileError(what.to_string()))?;
        let mut unit = Unit {
            kernel,
            name: function_name(number, kernel),
            launches: Vec::new(),
            workspace: 0,
            threads_at_once: THREADS_AT_ONCE,
        };
        text.blank();
        match &kernel.work {
            Work::Nest(nest) => nest::print(&mut text, &mut unit, nest)?,
            Work::Contract(contract) => contract::print(&mut text, &mut unit, contract)?,
            Work::Plane(plane) => plane::print(&mut text, &mut unit, plane)?,
            Work::Scatter(scatter) => scatter::print(&mut text, &mut unit, scatter)?,
            Work::Prefix(prefix) => order::prefix(&mut text, &mut unit, prefix),
            Work::Top(top) => order::top(&mut text, &mut unit, top),
        }
        if let Some(launch) = unit.launches.iter().find(|launch| launch.blocks > i32::MAX as u64) {
            return Err(CompileError(format!("kernel {} needs {} blocks", kernel.name, launch.blocks)));
        }
        unit.launches.retain(|launch| launch.blocks > 0);
        program.workspace_bytes = program.workspace_bytes.max(unit.workspace);
        program.kernels.push(unit.launches);
    }
    program.text = prelude::with(&text.finish());
    Ok(program)
}

/// What launches of a plan need beside its buffers.
pub fn workspace_bytes(kernels: &[Kernel]) -> Result<u64, CompileError> {
    Ok(program(kernels)?.workspace_bytes)
}

/// A kernel while its functions are printed.
struct Unit<'a> {
    kernel: &'a Kernel,
    name: String,
    launches: Vec<Launch>,
    workspace: u64,
    /// Threads of the functions that share the registers of a multiprocessor.
    threads_at_once: u64,
}

/// Memory of the workspace, as a parameter of functions.
#[derive(Clone, Debug)]
struct Spare {
    name: String,
    dtype: DType,
    offset: u64,
}

impl Unit<'_> {
    /// Room for `len` numbers that launches of this kernel hand on.
    fn spare(&mut self, name: impl Into<String>, dtype: DType, len: u64) -> Spare {
        let offset = self.workspace;
        self.workspace += (len * dtype.size_bytes()).next_multiple_of(256);
        Spare { name: name.into(), dtype, offset }
    }

    /// Opens a function over the buffers and spares that it names, and notes its launch. The caller closes it.
    fn open(&mut self, text: &mut Text, suffix: &str, grid: (u64, u64), bufs: &[usize], spares: &[(&Spare, bool)]) {
        let (blocks, threads) = grid;
        let function = format!("{}{suffix}", self.name);
        let mut params: Vec<(String, String)> = Vec::new();
        let mut args = Vec::new();
        for at in bufs {
            let Buf { name, dtype, len, role } = &self.kernel.bufs[*at];
            let is_alone = self.is_alone(*at);
            let constant = if *role == Role::Read { "const " } else { "" };
            let restrict = if is_alone { "__restrict__ " } else { "" };
            params.push((format!("{constant}{}* {restrict}b{at}", buf_type(*dtype)), format!("{name}[{len}]")));
            args.push(Arg::Buf(*at));
        }
        for (spare, written) in spares {
            let constant = if *written { "" } else { "const " };
            let param = format!("{constant}{}* __restrict__ {}", buf_type(spare.dtype), spare.name);
            params.push((param, "workspace".into()));
            args.push(Arg::Workspace(spare.offset));
        }
        let blocks_at_once = (self.threads_at_once / threads).max(1);
        text.line(format!("extern \"C\" __global__ void __launch_bounds__({threads}, {blocks_at_once})"));
        text.line(format!("{function}("));
        let width = params.iter().map(|(param, _)| param.chars().count()).max().unwrap_or(0) + 1;
        for (at, (param, what)) in params.iter().enumerate() {
            let comma = if at + 1 < params.len() { "," } else { "" };
            text.line(format!("    {:<width$} // {what}", format!("{param}{comma}")));
        }
        text.open(")");
        self.launches.push(Launch { function, blocks, threads, shared_bytes: 0, args });
    }

    /// The function that was opened last needs this much shared memory.
    fn shared(&mut self, bytes: u64) {
        if let Some(launch) = self.launches.last_mut() {
            launch.shared_bytes = bytes;
        }
    }

    /// Whether no other buffer of this kernel can be the same memory.
    fn is_alone(&self, at: usize) -> bool {
        let id = |at: usize| mdl_compiler::kernel::BufId(at as u32);
        let bufs = &self.kernel.bufs;
        (0..bufs.len()).filter(|other| *other != at).all(|other| match (bufs[at].role, bufs[other].role) {
            (Role::Read, Role::Read) => true,
            (Role::Read, _) => !self.kernel.may_overwrite(id(at), id(other)),
            (_, Role::Read) => !self.kernel.may_overwrite(id(other), id(at)),
            _ => true,
        })
    }

    /// Every buffer, in order.
    fn all_bufs(&self) -> Vec<usize> {
        (0..self.kernel.bufs.len()).collect()
    }

    /// What the following functions compute, as a comment.
    fn describe(&self, text: &mut Text, how: &str) {
        text.line(format!("// {}: {how}", self.kernel.name));
    }
}

/// A name that C takes, and that a profiler's reader understands.
fn function_name(number: usize, kernel: &Kernel) -> String {
    let plain: String = kernel.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(60).collect();
    format!("k{number}_{plain}")
}
