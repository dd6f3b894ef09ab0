//! Memory of the card, and copies to and from it.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::{Error, Gpu, failed};

/// A block of the card's memory, given back when it is dropped.
#[derive(Debug)]
pub struct Memory {
    gpu: Arc<Gpu>,
    address: sys::CUdeviceptr,
    bytes: u64,
}

impl Memory {
    /// Nothing is written there; an empty block has no address.
    pub fn new(gpu: &Arc<Gpu>, bytes: u64) -> Result<Memory, Error> {
        gpu.enter()?;
        let address = if bytes == 0 {
            0
        } else {
            // SAFETY: the memory is only used through this, and freed once.
            unsafe { result::malloc_sync(bytes as usize) }
                .map_err(|error| Error(format!("the card has no {bytes} bytes left: the driver says {:?}", error.0)))?
        };
        Ok(Memory { gpu: Arc::clone(gpu), address, bytes })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn len(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes there; when this returns, `from` may change.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<(), Error> {
        self.check(offset, from.len())?;
        if from.is_empty() {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: inside, as just checked; the stream is this card's, and is waited for.
        unsafe { result::memcpy_htod_async(self.address + offset, from, self.gpu.stream) }
            .map_err(failed("copying to the card"))?;
        self.gpu.wait()
    }

    /// Reads what all launches so far have left there.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), Error> {
        self.check(offset, to.len())?;
        if to.is_empty() {
            return Ok(());
        }
        self.gpu.enter()?;
        // SAFETY: inside, as just checked; the stream is this card's, and is waited for.
        unsafe { result::memcpy_dtoh_async(to, self.address + offset, self.gpu.stream) }
            .map_err(failed("copying from the card"))?;
        self.gpu.wait()
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), Error> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error(format!("{len} bytes at {offset} leave a block of {}", self.bytes))),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 && self.gpu.enter().is_ok() {
            // SAFETY: allocated by `new`. What still runs there ends first: freeing waits.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
