//! Programs on the card, launches, copies on it, and whole steps captured as graphs.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::{Error, Gpu, Image, failed};

/// Shared memory that every function may have without asking (CUDA Programming Guide, "Shared Memory").
const SHARED_UNASKED: u32 = 48 << 10;

/// A program that the card has loaded.
#[derive(Debug)]
pub struct Program {
    gpu: Arc<Gpu>,
    module: sys::CUmodule,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Program {}
// SAFETY: as above.
unsafe impl Sync for Program {}

/// A function of a [`Program`], which must outlive it.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    function: sys::CUfunction,
    /// Shared memory that its launches ask for.
    shared_bytes: u32,
}

// SAFETY: as for `Program`.
unsafe impl Send for Function {}
// SAFETY: as for `Program`.
unsafe impl Sync for Function {}

impl Function {
    pub fn shared_bytes(self) -> u32 {
        self.shared_bytes
    }
}

/// Launches and copies that were captured, to be run again at the same addresses.
#[derive(Debug)]
pub struct Graph {
    gpu: Arc<Gpu>,
    graph: sys::CUgraph,
    ready: sys::CUgraphExec,
}

// SAFETY: as for `Program`.
unsafe impl Send for Graph {}

impl Program {
    pub fn load(gpu: &Arc<Gpu>, image: &Image) -> Result<Program, Error> {
        gpu.enter()?;
        // SAFETY: an ELF file, or text with a zero at its end, that NVRTC has made.
        let module =
            unsafe { result::module::load_data(image.bytes.as_ptr().cast()) }.map_err(failed("loading a program"))?;
        Ok(Program { gpu: Arc::clone(gpu), module })
    }

    /// A function by its name; its launches have so much shared memory beside what it declares itself.
    pub fn function(&self, name: &str, shared_bytes: u32) -> Result<Function, Error> {
        self.gpu.enter()?;
        let named = CString::new(name).map_err(|_| Error("a name has a zero in it".into()))?;
        // SAFETY: the module is loaded as long as this lives.
        let function = unsafe { result::module::get_function(self.module, named) };
        let function = function.map_err(failed(&format!("finding the function {name}")))?;
        if shared_bytes > SHARED_UNASKED {
            let what = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            unsafe { result::function::set_function_attribute(function, what, shared_bytes as i32) }
                .map_err(failed(&format!("asking for {shared_bytes} bytes of shared memory for {name}")))?;
        }
        Ok(Function { function, shared_bytes })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: loaded by `load`.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

impl Gpu {
    /// Launches a function on a grid of one dimension, after all that was asked for before.
    ///
    /// # Safety
    /// The function takes these addresses, each of memory that is large enough for what it does there; its program is loaded.
    pub unsafe fn launch(&self, function: Function, blocks: u32, threads: u32, args: &[u64]) -> Result<(), Error> {
        self.enter()?;
        // The driver reads the addresses before it returns.
        let mut places = [std::ptr::null_mut::<c_void>(); 256];
        if args.len() > places.len() {
            return Err(Error(format!("a function of {} arguments", args.len())));
        }
        for (place, arg) in places.iter_mut().zip(args) {
            *place = std::ptr::from_ref(arg).cast_mut().cast();
        }
        let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
        // SAFETY: by the caller.
        unsafe {
            result::launch_kernel(
                function.function,
                grid,
                block,
                function.shared_bytes,
                self.stream,
                &mut places[..args.len()],
            )
        }
        .map_err(failed("launching a function"))
    }

    /// How many blocks of so many threads of a function a multiprocessor works on at once.
    pub fn blocks_at_once(&self, function: Function, threads: u32) -> Result<u32, Error> {
        self.enter()?;
        // SAFETY: a function of a loaded program.
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                function.function,
                threads as i32,
                function.shared_bytes as usize,
            )
        };
        Ok(blocks.map_err(failed("asking for an occupancy"))?.max(0) as u32)
    }

    /// Copies from one address of the card to another, after all that was asked for before.
    ///
    /// # Safety
    /// Both are of memory that has so many bytes, and they do not overlap.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: by the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) }
            .map_err(failed("copying on the card"))
    }

    /// Collects what `ask` launches and copies instead of running it.
    pub fn capture(self: &Arc<Gpu>, ask: impl FnOnce() -> Result<(), Error>) -> Result<Graph, Error> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is this card's.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("beginning a graph"))?;
        let asked = ask();
        // SAFETY: the capture was begun above, and must be ended whatever happened in between.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(failed("ending a graph"));
        asked?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was just made.
        match unsafe { result::graph::instantiate(graph, flags) } {
            Ok(ready) => Ok(Graph { gpu: Arc::clone(self), graph, ready }),
            Err(error) => {
                // SAFETY: as above.
                let _ = unsafe { result::graph::destroy(graph) };
                Err(failed("making a graph ready")(error))
            }
        }
    }
}

impl Graph {
    /// Runs it, after all that was asked for before.
    ///
    /// # Safety
    /// All addresses that it was captured with are still of the same memory, and its functions are loaded.
    pub unsafe fn launch(&self) -> Result<(), Error> {
        self.gpu.enter()?;
        // SAFETY: by the caller.
        unsafe { result::graph::launch(self.ready, self.gpu.stream) }.map_err(failed("launching a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: both were made by `capture`.
            unsafe {
                let _ = result::graph::exec_destroy(self.ready);
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
