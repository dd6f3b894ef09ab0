//! Moments on the card: when it came to a place among what it was asked for.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{result, sys};

use crate::{Error, Gpu, failed};

/// A place between launches, and once the card has come there, a time.
#[derive(Debug)]
pub struct Moment {
    gpu: Arc<Gpu>,
    event: sys::CUevent,
}

impl Gpu {
    /// The end of all that was asked for so far.
    pub fn moment(self: &Arc<Gpu>) -> Result<Moment, Error> {
        self.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("making an event"))?;
        let moment = Moment { gpu: Arc::clone(self), event };
        // SAFETY: both are this card's.
        unsafe { result::event::record(event, self.stream) }.map_err(failed("recording an event"))?;
        Ok(moment)
    }
}

impl Moment {
    /// The card's time between two moments, which it has come to: see [`Gpu::wait`].
    pub fn since(&self, earlier: &Moment) -> Result<Duration, Error> {
        self.gpu.enter()?;
        // SAFETY: both were recorded on the card's one stream.
        let ms = unsafe { result::event::elapsed(earlier.event, self.event) }.map_err(failed("asking for a time"))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: made by `moment`.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}
