//! The CUDA driver's functions, over the simulator: devices, memory, modules, streams, events and graphs.
//!
//! Everything runs at once, in the order of the calls, on the calling thread, so an error of a kernel is the result of its launch. It
//! does not stick to the context, unlike a real one: tests of several mistakes share a process. What is not here is missing from the
//! library, and `cudarc` says so by name.

mod device;
mod errors;
mod graph;
mod memory;
mod module;
mod stream;

use crate::ptx::parse::Param;
use crate::sim::launch::{Alloc, Checks, Count, Kernel};
use errors::Code;
use graph::{Exec, Graph};
use std::collections::HashMap;
use std::ffi::{CString, c_char};
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Of the device that is simulated.
pub(crate) const MULTIPROCESSORS: i32 = 132;

type Done = Result<(), Code>;

/// Settings, from the environment when the library is first used.
struct Settings {
    devices: i32,
    memory: u64,
    capability: (i32, i32),
    checks: Checks,
    quiet: bool,
}

fn from_env<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(otherwise)
}

impl Settings {
    fn read() -> Self {
        let capability = std::env::var("MDLC_SIMGPU_CC").ok();
        let capability = capability.as_deref().and_then(|v| {
            let (major, minor) = v.split_once('.')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        Self {
            devices: from_env("MDLC_SIMGPU_DEVICES", 1),
            memory: from_env("MDLC_SIMGPU_MEMORY", 16 << 30),
            capability: capability.unwrap_or((9, 0)),
            checks: Checks {
                races: from_env("MDLC_SIMGPU_RACES", 1) != 0,
                uninitialised: from_env("MDLC_SIMGPU_UNINIT", 1) != 0,
                threads: from_env("MDLC_SIMGPU_THREADS", 1),
                limit: from_env("MDLC_SIMGPU_LIMIT", 2_000_000_000),
            },
            quiet: from_env("MDLC_SIMGPU_QUIET", 0) != 0,
        }
    }
}

struct Device {
    limit: u64,
    used: u64,
}

/// A live allocation and whose it is.
struct Owned {
    device: i32,
    len: u64,
    mapped: usize,
    /// Of the cells behind it.
    cells: usize,
    host: *mut u8,
    cell_ptr: *mut u8,
}

// SAFETY: the pointers are of mappings that only the state's lock hands out and takes back.
unsafe impl Send for Owned {}

#[derive(Clone)]
struct Function {
    kernel: Arc<Kernel>,
    dynamic_limit: usize,
    module: u64,
}

struct Module {
    functions: HashMap<String, u64>,
    /// Variables: address and size.
    globals: HashMap<String, (u64, u64)>,
}

#[derive(Default)]
struct Stream {
    /// The capture that it takes part in, and whether it began it.
    capture: Option<u64>,
    origin: bool,
}

#[derive(Default)]
struct Event {
    at: Option<Instant>,
    capture: Option<u64>,
}

struct State {
    settings: Settings,
    devices: Vec<Device>,
    /// Sorted by address; a launch takes a copy of the list.
    allocs: Arc<Vec<Alloc>>,
    owned: HashMap<u64, Owned>,
    next_address: u64,
    next_id: u64,
    epoch: u64,
    streams: HashMap<u64, Stream>,
    events: HashMap<u64, Event>,
    modules: HashMap<u64, Module>,
    functions: HashMap<u64, Function>,
    graphs: HashMap<u64, Graph>,
    captures: HashMap<u64, Graph>,
    execs: HashMap<u64, Exec>,
    total: Count,
    launches: u64,
}

impl State {
    fn id(&mut self) -> u64 {
        // Handles look like pointers: multiples of 16, not null.
        self.next_id += 16;
        self.next_id
    }

    fn function(&self, f: u64) -> Result<&Function, Code> {
        self.functions.get(&f).ok_or(Code::InvalidHandle)
    }
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
    let settings = Settings::read();
    let devices = (0..settings.devices).map(|_| Device { limit: settings.memory, used: 0 }).collect();
    Mutex::new(State {
        settings,
        devices,
        allocs: Arc::default(),
        owned: HashMap::new(),
        next_address: crate::sim::memory::GLOBAL_BASE,
        next_id: 0x1000,
        epoch: 0,
        streams: HashMap::new(),
        events: HashMap::new(),
        modules: HashMap::new(),
        functions: HashMap::new(),
        graphs: HashMap::new(),
        captures: HashMap::new(),
        execs: HashMap::new(),
        total: Count::default(),
        launches: 0,
    })
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// The device whose context is current, and what went wrong last.
    static CURRENT: std::cell::Cell<Option<i32>> = const { std::cell::Cell::new(None) };
    static LAST: std::cell::RefCell<CString> = std::cell::RefCell::default();
}

/// Keeps a message for `mdl_simgpu_last_fault` and shows it.
fn say(message: &str) {
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = text);
    if !state().settings.quiet {
        // Standard error may be closed: then nobody wants to know.
        let _ = writeln!(std::io::stderr(), "simulated GPU: {message}");
    }
}

/// Runs a driver function; a panic is this library's mistake and must not cross into the caller.
fn run(body: impl FnOnce() -> Done) -> i32 {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code as i32,
        Err(_) => Code::Unknown as i32,
    }
}

/// Writes a result through a pointer of the caller's.
///
/// # Safety
/// `to` is null or valid for a write.
unsafe fn give<T>(to: *mut T, value: T) -> Done {
    if to.is_null() {
        return Err(Code::InvalidValue);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

fn current_device() -> Result<i32, Code> {
    device::current()
}

/// The size of parameters, for copying them at a launch.
fn param_end(params: &[Param]) -> usize {
    params.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0)
}

/// What went wrong last on this thread: empty if nothing did. The text is valid until the next mistake.
#[unsafe(no_mangle)]
extern "C" fn mdl_simgpu_last_fault() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn mdl_simgpu_clear_fault() {
    LAST.with(|last| *last.borrow_mut() = CString::default());
}

/// Gives a device this much memory, as if it were another card.
#[unsafe(no_mangle)]
extern "C" fn mdl_simgpu_set_memory(device: i32, bytes: u64) -> i32 {
    run(|| {
        let mut s = state();
        let device = usize::try_from(device).ok().and_then(|d| s.devices.get_mut(d)).ok_or(Code::InvalidDevice)?;
        device.limit = bytes;
        Ok(())
    })
}

/// From now on a warp that executes more instructions than this in a block is taken to hang.
#[unsafe(no_mangle)]
extern "C" fn mdl_simgpu_set_limit(instructions: u64) -> i32 {
    run(|| {
        state().settings.checks.limit = instructions;
        Ok(())
    })
}

/// Launches, instructions of warps and of lanes since the library was opened.
///
/// # Safety
/// The pointers are valid for writes.
#[unsafe(no_mangle)]
unsafe extern "C" fn mdl_simgpu_count(launches: *mut u64, instructions: *mut u64, lanes: *mut u64) -> i32 {
    run(|| {
        let s = state();
        // SAFETY: the caller's promise.
        unsafe {
            give(launches, s.launches)?;
            give(instructions, s.total.instructions)?;
            give(lanes, s.total.lane_instructions)
        }
    })
}
