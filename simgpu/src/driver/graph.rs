//! What streams do, as data: done at once, or recorded in a graph and done whenever it is launched.

use super::errors::Code;
use super::memory::{End, copy, fill};
use super::module::launch;
use super::stream::enqueue;
use super::{Done, give, run, state};
use crate::sim::launch::Kernel;
use std::ffi::{c_uint, c_ulonglong, c_void};
use std::sync::Arc;

/// A launch with its parameters.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) kernel: Arc<Kernel>,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    pub(super) dynamic: usize,
    pub(super) params: Vec<u8>,
}

pub(super) type HostFn = unsafe extern "C" fn(*mut c_void);

#[derive(Clone)]
pub(super) enum Task {
    Launch(Call),
    Copy(End, End, usize),
    Fill(u64, Vec<u8>, usize),
    Host(HostFn, usize),
    Graph(Arc<Vec<Task>>),
}

#[derive(Default)]
pub(super) struct Graph {
    pub(super) tasks: Vec<Task>,
    /// The capture saw a call that cannot be captured.
    pub(super) broken: bool,
    /// Calls that would wait are refused while it lasts, unless its mode is relaxed.
    pub(super) strict: bool,
    pub(super) streams: Vec<u64>,
}

pub(super) struct Exec {
    pub(super) tasks: Arc<Vec<Task>>,
}

pub(super) fn perform(task: &Task) -> Done {
    match task {
        Task::Launch(call) => launch(call),
        Task::Copy(to, from, bytes) => copy(*to, *from, *bytes),
        Task::Fill(to, value, count) => fill(*to, value, *count),
        Task::Host(f, data) => {
            // SAFETY: the function and its argument are the caller's, who keeps them.
            unsafe { f(std::ptr::with_exposed_provenance_mut(*data)) };
            Ok(())
        }
        Task::Graph(tasks) => tasks.iter().try_for_each(perform),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(to: *mut u64, graph: u64, _flags: c_ulonglong) -> i32 {
    run(|| {
        let id = {
            let mut s = state();
            let tasks = Arc::new(s.graphs.get(&graph).ok_or(Code::InvalidHandle)?.tasks.clone());
            let id = s.id();
            s.execs.insert(id, Exec { tasks });
            id
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, id) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(exec: u64, _stream: u64) -> i32 {
    run(|| state().execs.get(&exec).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: u64, stream: u64) -> i32 {
    run(|| {
        let tasks = state().execs.get(&exec).ok_or(Code::InvalidHandle)?.tasks.clone();
        enqueue(stream, Task::Graph(tasks))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: u64) -> i32 {
    run(|| state().execs.remove(&exec).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: u64) -> i32 {
    run(|| state().graphs.remove(&graph).map(|_| ()).ok_or(Code::InvalidHandle))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphGetNodes(graph: u64, nodes: *mut u64, n: *mut usize) -> i32 {
    run(|| {
        let count = state().graphs.get(&graph).ok_or(Code::InvalidHandle)?.tasks.len();
        if !nodes.is_null() {
            return Err(Code::NotSupported);
        }
        // SAFETY: the driver's contract.
        unsafe { give(n, count) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(stream: u64, f: Option<HostFn>, data: *mut c_void) -> i32 {
    run(|| enqueue(stream, Task::Host(f.ok_or(Code::InvalidValue)?, data.expose_provenance())))
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchCooperativeKernel(_f: u64, _gx: c_uint, _gy: c_uint) -> i32 {
    // Blocks run one after another: they cannot wait for each other.
    Code::NotSupported as i32
}
