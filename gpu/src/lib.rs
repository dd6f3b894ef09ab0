//! NVIDIA's driver and its run-time compiler, found when they are asked for: nothing is needed to build, and a library that is
//! missing is an [`Error`] that says what to install.
//!
//! In: CUDA C, and what to launch. Out: a [`Program`] on a [`Gpu`], memory, copies, launches. `MDLC_GPU` chooses: `real` and
//! `auto` take the card, `sim` the simulated one of the tests, `off` none. Compiled programs are kept on disk.
//! Deliberately absent: plans, training, and where anything lies in memory.

mod cubin;
mod disassemble;
mod library;
mod memory;
mod moment;
mod nvrtc;
mod program;

use std::fmt;
use std::sync::Arc;

use cudarc::driver::{result, sys};

pub use cubin::{Resources, resources};
pub use disassemble::{ptx, sass};
pub use memory::Memory;
pub use moment::Moment;
pub use nvrtc::{Arch, Image, Nvrtc};
pub use program::{Function, Graph, Program};

/// Why there is no card, or why it would not do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

fn failed(doing: &str) -> impl Fn(result::DriverError) -> Error {
    move |error| Error(format!("{doing} failed: the driver says {:?}", error.0))
}

/// Which card `MDLC_GPU` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Real,
    Simulated,
    Off,
}

impl Choice {
    /// As the environment says; a card if it says nothing.
    pub fn of_environment() -> Result<Choice, Error> {
        match std::env::var("MDLC_GPU").as_deref() {
            Err(_) | Ok("" | "auto" | "real") => Ok(Choice::Real),
            Ok("sim") => Ok(Choice::Simulated),
            Ok("off") => Ok(Choice::Off),
            Ok(other) => Err(Error(format!("MDLC_GPU is `{other}`; it takes auto, real, sim or off"))),
        }
    }
}

/// A card with its context, and one stream on which everything runs in order.
#[derive(Debug)]
pub struct Gpu {
    context: sys::CUcontext,
    stream: sys::CUstream,
    device: sys::CUdevice,
    nvrtc: Nvrtc,
    pub name: String,
    /// Compute capability: (9, 0) is Hopper.
    pub capability: (u32, u32),
    pub simulated: bool,
}

// SAFETY: the driver's handles may be used from any thread; each use makes the context current first.
unsafe impl Send for Gpu {}
// SAFETY: as above; calls of the driver are synchronised by the driver.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The first card, with the compiler for it.
    pub fn open(choice: Choice) -> Result<Arc<Gpu>, Error> {
        let simulated = match choice {
            Choice::Off => return Err(Error("MDLC_GPU=off leaves the card alone".into())),
            Choice::Simulated => {
                library::open_simulated()?;
                true
            }
            Choice::Real => false,
        };
        // SAFETY: only looks whether the library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error(
                "there is no NVIDIA driver (libcuda.so): install the driver of your card, or take `--device cpu`"
                    .into(),
            ));
        }
        let nvrtc = Nvrtc::open()?;
        result::init().map_err(failed("starting the driver"))?;
        if result::device::get_count().map_err(failed("counting cards"))? < 1 {
            return Err(Error("the driver finds no card: take `--device cpu`".into()));
        }
        let device = result::device::get(0).map_err(failed("opening the card"))?;
        let name = result::device::get_name(device).map_err(failed("asking the card's name"))?;
        // SAFETY: the device is the driver's own.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        let asking = failed("asking the card's capability");
        let capability = (major.map_err(&asking)? as u32, minor.map_err(&asking)? as u32);
        if capability < (8, 0) {
            let (major, minor) = capability;
            return Err(Error(format!(
                "{name} has compute capability {major}.{minor}; programs need 8.0 (Ampere) or later: take `--device cpu`"
            )));
        }
        // SAFETY: the device is the driver's own; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(failed("taking the card's context"))?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.map_err(failed("entering the card's context"))?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("making a stream"))?;
        Ok(Arc::new(Gpu { context, stream, device, nvrtc, name, capability, simulated }))
    }

    /// What programs for this card are compiled to: machine code for a card, PTX where it is interpreted.
    pub fn arch(&self) -> Arch {
        let (major, minor) = self.capability;
        let number = major * 10 + minor;
        if self.simulated { Arch::Virtual(number) } else { Arch::Real(number) }
    }

    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// Bytes of the card's memory that nobody uses.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        self.enter()?;
        Ok(result::mem_get_info().map_err(failed("asking for free memory"))?.0 as u64)
    }

    /// Waits until all that was asked for is done; what failed meanwhile is told here.
    pub fn wait(&self) -> Result<(), Error> {
        self.enter()?;
        // SAFETY: the stream is this card's.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("computing on the card"))
    }

    /// Makes the context that of this thread.
    fn enter(&self) -> Result<(), Error> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("entering the card's context"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: both are this card's own, and nothing that holds this outlives it. At the end there is nobody to tell of a failure.
        unsafe {
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
