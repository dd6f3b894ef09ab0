//! Device memory: mappings of their own, far apart, poisoned, and never at an address that was used before, so that a stale pointer
//! is out of bounds. Copies and fills check both ends.

use super::device::current;
use super::errors::Code;
use super::graph::Task;
use super::stream::{enqueue, forbid_in_capture};
use super::{Done, Owned, State, give, run, state};
use crate::sim::launch::{Alloc, Cell};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

/// Fresh memory up to this size is filled with ones, which are NaN; more would cost time that tests do not have.
const POISONED: usize = 256 << 20;

fn map(bytes: usize) -> Option<*mut u8> {
    // SAFETY: a new private mapping, at a place of the system's choosing.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    (at != libc::MAP_FAILED).then_some(at.cast())
}

impl State {
    /// Memory of a device; `writable` is false for constants.
    pub(super) fn allocate(&mut self, device: i32, bytes: usize, writable: bool) -> Result<u64, Code> {
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        let len = bytes as u64;
        let owner = &mut self.devices[usize::try_from(device).map_err(|_| Code::InvalidDevice)?];
        // As the driver does, memory is dealt in pieces of 512 bytes.
        let rounded = len.next_multiple_of(512);
        if owner.used + rounded > owner.limit {
            return Err(Code::OutOfMemory);
        }
        let cells = if self.settings.checks.races { bytes * size_of::<Cell>() } else { 0 };
        let host = map(bytes).ok_or(Code::OutOfMemory)?;
        let cell_ptr = if cells == 0 { std::ptr::null_mut() } else { map(cells).unwrap_or(std::ptr::null_mut()) };
        owner.used += rounded;
        if bytes <= POISONED {
            // SAFETY: the mapping has these bytes.
            unsafe { std::ptr::write_bytes(host, 0xff, bytes) };
        }
        let base = self.next_address;
        self.next_address = (base + len).next_multiple_of(1 << 21) + (1 << 21);
        let alloc = Alloc { base, len, host, cells: cell_ptr.cast(), writable };
        let mut list = self.allocs.as_ref().clone();
        list.push(alloc);
        self.allocs = Arc::new(list);
        self.owned.insert(base, Owned { device, len: rounded, mapped: bytes, cells, host, cell_ptr });
        Ok(base)
    }

    pub(super) fn free(&mut self, base: u64) -> Done {
        if base == 0 {
            return Ok(());
        }
        let owned = self.owned.remove(&base).ok_or(Code::InvalidValue)?;
        let mut list = self.allocs.as_ref().clone();
        list.retain(|a| a.base != base);
        self.allocs = Arc::new(list);
        if let Some(device) = usize::try_from(owned.device).ok().and_then(|d| self.devices.get_mut(d)) {
            device.used -= owned.len;
        }
        // SAFETY: the mappings are this allocation's, and no list names it any more.
        unsafe {
            libc::munmap(owned.host.cast(), owned.mapped);
            if !owned.cell_ptr.is_null() {
                libc::munmap(owned.cell_ptr.cast(), owned.cells);
            }
        }
        Ok(())
    }

    /// Where device bytes are in the host's memory.
    pub(super) fn place(&self, address: u64, bytes: usize) -> Result<*mut u8, Code> {
        let after = self.allocs.partition_point(|a| a.base <= address);
        let found = after.checked_sub(1).and_then(|k| self.allocs.get(k)).filter(|a| {
            let offset = address - a.base;
            offset.checked_add(bytes as u64).is_some_and(|end| end <= a.len)
        });
        match found {
            // SAFETY: the offset is within the allocation.
            Some(a) => Ok(unsafe { a.host.add(usize::try_from(address - a.base).map_err(|_| Code::InvalidValue)?) }),
            None => Err(Code::InvalidValue),
        }
    }
}

/// Copies; device ends are addresses, host ends pointers.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Device(u64),
    Host(usize),
}

pub(super) fn copy(to: End, from: End, bytes: usize) -> Done {
    if bytes == 0 {
        return Ok(());
    }
    let s = state();
    let place = |end: End| match end {
        End::Device(address) => s.place(address, bytes),
        End::Host(0) => Err(Code::InvalidValue),
        End::Host(address) => Ok(std::ptr::with_exposed_provenance_mut(address)),
    };
    let (to, from) = match (place(to), place(from)) {
        (Ok(to), Ok(from)) => (to, from),
        _ => {
            drop(s);
            super::say(&format!("copy of {bytes} bytes from {from:x?} to {to:x?} is out of bounds"));
            return Err(Code::InvalidValue);
        }
    };
    // SAFETY: device ends were checked; the host's is the caller's promise.
    unsafe { std::ptr::copy(from, to, bytes) };
    Ok(())
}

pub(super) fn fill(to: u64, value: &[u8], count: usize) -> Done {
    if count == 0 {
        return Ok(());
    }
    let bytes = count * value.len();
    if !to.is_multiple_of(value.len() as u64) {
        return Err(Code::InvalidValue);
    }
    let at = state().place(to, bytes);
    let Ok(at) = at else {
        super::say(&format!("fill of {bytes} bytes at 0x{to:x} is out of bounds"));
        return Err(Code::InvalidValue);
    };
    for k in 0..count {
        // SAFETY: the range was checked.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), at.add(k * value.len()), value.len()) };
    }
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32 {
    run(|| {
        let device = usize::try_from(current()?).map_err(|_| Code::InvalidContext)?;
        let (limit, used) = {
            let s = state();
            (s.devices[device].limit, s.devices[device].used)
        };
        // SAFETY: the driver's contract.
        unsafe {
            give(free, usize::try_from(limit.saturating_sub(used)).unwrap_or(usize::MAX))?;
            give(total, usize::try_from(limit).unwrap_or(usize::MAX))
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        let device = current()?;
        let base = state().allocate(device, bytes, true)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, base) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(base: u64) -> i32 {
    run(|| {
        forbid_in_capture()?;
        state().free(base)
    })
}

/// Memory of a graph's own is not simulated.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(to: *mut u64, bytes: usize, stream: u64) -> i32 {
    run(|| {
        if super::stream::is_capturing(stream) {
            return Err(Code::CaptureUnsupported);
        }
        let device = current()?;
        let base = state().allocate(device, bytes, true)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, base) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(base: u64, stream: u64) -> i32 {
    run(|| {
        if super::stream::is_capturing(stream) {
            return Err(Code::CaptureUnsupported);
        }
        state().free(base)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocManaged(_to: *mut u64, _bytes: usize, _flags: c_uint) -> i32 {
    Code::NotSupported as i32
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(to: *mut *mut c_void, bytes: usize, _flags: c_uint) -> i32 {
    run(|| {
        let mut at = std::ptr::null_mut();
        // SAFETY: pages of the process's own.
        if bytes == 0 || unsafe { libc::posix_memalign(&raw mut at, 4096, bytes) } != 0 {
            return Err(Code::OutOfMemory);
        }
        // SAFETY: the driver's contract.
        unsafe { give(to, at) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(to: *mut *mut c_void, bytes: usize) -> i32 {
    // SAFETY: the driver's contract.
    unsafe { cuMemHostAlloc(to, bytes, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(at: *mut c_void) -> i32 {
    // SAFETY: what `cuMemHostAlloc` gave.
    unsafe { libc::free(at) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(at: *mut c_void, bytes: usize, _flags: c_uint) -> i32 {
    run(|| if at.is_null() || bytes == 0 { Err(Code::InvalidValue) } else { Ok(()) })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(_at: *mut c_void) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        copy(End::Device(to), End::Host(from.expose_provenance()), bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        copy(End::Host(to.expose_provenance()), End::Device(from), bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        copy(End::Device(to), End::Device(from), bytes)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Copy(End::Device(to), End::Host(from.expose_provenance()), bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Copy(End::Host(to.expose_provenance()), End::Device(from), bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Copy(End::Device(to), End::Device(from), bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_ctx: *mut c_void,
    from: u64,
    _from_ctx: *mut c_void,
    bytes: usize,
    stream: u64,
) -> i32 {
    run(|| enqueue(stream, Task::Copy(End::Device(to), End::Device(from), bytes)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        fill(to, &[value], count)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> i32 {
    run(|| {
        forbid_in_capture()?;
        fill(to, &value.to_le_bytes(), count)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Fill(to, vec![value], count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Fill(to, value.to_le_bytes().to_vec(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: u64) -> i32 {
    run(|| enqueue(stream, Task::Fill(to, value.to_le_bytes().to_vec(), count)))
}

/// There is one pool a device, known by 1 + its number.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetDefaultMemPool(to: *mut usize, ordinal: c_int) -> i32 {
    run(|| {
        let n = super::device::device(ordinal)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, n + 1) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetMemPool(to: *mut usize, ordinal: c_int) -> i32 {
    // SAFETY: the driver's contract.
    unsafe { cuDeviceGetDefaultMemPool(to, ordinal) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(_pool: usize, _attribute: c_uint, _value: *mut c_void) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(_pool: usize, _keep: usize) -> i32 {
    0
}
