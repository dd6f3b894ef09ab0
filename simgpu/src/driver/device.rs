//! Devices, contexts and occupancy.

use super::errors::Code;
use super::{CURRENT, Done, MULTIPROCESSORS, give, run, state};
use std::ffi::{c_char, c_int, c_uint, c_void};

/// What a device of each generation holds of shared memory: for all blocks of a multiprocessor, and for one block that asks.
pub(super) fn shared_limits(capability: (i32, i32)) -> (i32, i32) {
    match capability {
        (8, 0 | 7) => (167_936, 166_912),
        (8, _) => (102_400, 101_376),
        (7, _) => (65_536, 65_536),
        _ => (233_472, 232_448),
    }
}

pub(super) fn device(ordinal: c_int) -> Result<usize, Code> {
    let s = state();
    usize::try_from(ordinal).ok().filter(|&d| d < s.devices.len()).ok_or(Code::InvalidDevice)
}

/// The device of the current context.
pub(super) fn current() -> Result<i32, Code> {
    CURRENT.get().ok_or(Code::InvalidContext)
}

/// A context is known by its device: handles are 16, 32, …
fn context(device: i32) -> *mut c_void {
    std::ptr::without_provenance_mut(16 * (device.unsigned_abs() as usize + 1))
}

fn device_of(context: *mut c_void) -> Result<i32, Code> {
    let n = context.addr() / 16;
    if !context.addr().is_multiple_of(16) || n == 0 {
        return Err(Code::InvalidContext);
    }
    let ordinal = i32::try_from(n - 1).map_err(|_| Code::InvalidContext)?;
    device(ordinal).map_err(|_| Code::InvalidContext)?;
    Ok(ordinal)
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> i32 {
    run(|| if flags == 0 { Ok(()) } else { Err(Code::InvalidValue) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(version, 13_000) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(count, state().settings.devices) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> i32 {
    run(|| {
        device(ordinal)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, ordinal: c_int) -> i32 {
    run(|| {
        device(ordinal)?;
        let text = b"MDL simulated GPU\0";
        let len = usize::try_from(len).map_err(|_| Code::InvalidValue)?;
        if name.is_null() || len < text.len() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: the caller gives `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
        Ok(())
    })
}

unsafe fn uuid(to: *mut [u8; 16], ordinal: c_int) -> i32 {
    run(|| {
        let n = device(ordinal)?;
        let mut id = *b"mdl simulated\0\0\0";
        id[15] = n.to_le_bytes()[0];
        // SAFETY: the driver's contract.
        unsafe { give(to, id) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(to: *mut [u8; 16], ordinal: c_int) -> i32 {
    // SAFETY: the driver's contract.
    unsafe { uuid(to, ordinal) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(to: *mut [u8; 16], ordinal: c_int) -> i32 {
    // SAFETY: the driver's contract.
    unsafe { uuid(to, ordinal) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) -> i32 {
    run(|| {
        let n = device(ordinal)?;
        let limit = state().devices[n].limit;
        // SAFETY: the driver's contract.
        unsafe { give(bytes, usize::try_from(limit).unwrap_or(usize::MAX)) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(to: *mut c_int, attribute: c_uint, ordinal: c_int) -> i32 {
    run(|| {
        device(ordinal)?;
        let capability = state().settings.capability;
        let (shared, one_block) = shared_limits(capability);
        let value = match attribute {
            1..=3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65_535,
            8 => 49_152,
            9 | 12 | 82 => 65_536,
            10 => 32,
            11 => i32::MAX,
            13 => 1_980_000,
            14 => 512,
            16 => MULTIPROCESSORS,
            36 => 2_619_000,
            37 => 5_120,
            38 => 50 << 20,
            39 => 2048,
            40 => 3,
            // Concurrent kernels, unified addresses, priorities of streams, pools.
            15 | 31 | 41 | 78 | 79 | 80 | 115 => 1,
            75 => capability.0,
            76 => capability.1,
            81 => shared,
            97 => one_block,
            106 => 32,
            111 => 1024,
            // What else there is, it does not have.
            17..=149 => 0,
            _ => return Err(Code::InvalidValue),
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, value) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceCanAccessPeer(to: *mut c_int, a: c_int, b: c_int) -> i32 {
    run(|| {
        let yes = device(a)? != device(b)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, c_int::from(yes)) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxEnablePeerAccess(peer: *mut c_void, _flags: c_uint) -> i32 {
    run(|| device_of(peer).map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut *mut c_void, ordinal: c_int) -> i32 {
    run(|| {
        device(ordinal)?;
        // SAFETY: the driver's contract.
        unsafe { give(to, context(ordinal)) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) -> i32 {
    run(|| device(ordinal).map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(ctx: *mut c_void) -> i32 {
    run(|| {
        CURRENT.set(if ctx.is_null() { None } else { Some(device_of(ctx)?) });
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(to: *mut *mut c_void) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, CURRENT.get().map_or(std::ptr::null_mut(), context)) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(to: *mut c_int) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, current()?) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> i32 {
    run(super::stream::forbid_in_capture)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: c_uint) -> i32 {
    run(|| current().map(|_| ()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: c_uint, _value: usize) -> i32 {
    run(|| current().map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetLimit(to: *mut usize, _limit: c_uint) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, 0) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(_config: c_uint) -> i32 {
    run(|| current().map(|_| ()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCacheConfig(to: *mut c_uint) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, 0) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe {
        give(least, 0)?;
        give(greatest, -5)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> i32 {
    0
}

/// Blocks of a kernel that fit on a multiprocessor, by threads and shared memory; registers are not known before `ptxas` ran.
fn active_blocks(function: u64, threads: c_int, dynamic: usize) -> Result<c_int, Code> {
    let s = state();
    let f = s.function(function)?;
    let threads = usize::try_from(threads).ok().filter(|&t| t > 0 && t <= 1024).ok_or(Code::InvalidValue)?;
    let all = usize::try_from(shared_limits(s.settings.capability).0).unwrap_or(0);
    let by_threads = 2048 / threads.next_multiple_of(32);
    let by_shared = all / (f.kernel.static_shared + dynamic + 1024);
    Ok(c_int::try_from(by_threads.min(by_shared).min(32)).unwrap_or(0))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    to: *mut c_int,
    f: u64,
    threads: c_int,
    dynamic: usize,
) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, active_blocks(f, threads, dynamic)?) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    to: *mut c_int,
    f: u64,
    threads: c_int,
    dynamic: usize,
    _flags: c_uint,
) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { give(to, active_blocks(f, threads, dynamic)?) })
}

/// How much dynamic shared memory a block of the kernel asks for.
type SharedOf = Option<unsafe extern "C" fn(c_int) -> usize>;

unsafe fn potential(grid: *mut c_int, block: *mut c_int, f: u64, of: SharedOf, dynamic: usize, limit: c_int) -> Done {
    let most = state().function(f)?.kernel.max_threads.map_or(1024, u32::cast_signed);
    let most = if limit > 0 { most.min(limit) } else { most };
    let mut best = (0, 0, 0);
    for threads in (32..=most).step_by(32) {
        // SAFETY: the caller's function, with a size of a block as it expects.
        let bytes = of.map_or(dynamic, |of| unsafe { of(threads) });
        let blocks = active_blocks(f, threads, bytes)?;
        if blocks * threads >= best.0 {
            best = (blocks * threads, threads, blocks);
        }
    }
    // SAFETY: the driver's contract.
    unsafe {
        give(grid, best.2 * MULTIPROCESSORS)?;
        give(block, best.1)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut c_int,
    block: *mut c_int,
    f: u64,
    of: SharedOf,
    dynamic: usize,
    limit: c_int,
) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { potential(grid, block, f, of, dynamic, limit) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut c_int,
    block: *mut c_int,
    f: u64,
    of: SharedOf,
    dynamic: usize,
    limit: c_int,
    _flags: c_uint,
) -> i32 {
    // SAFETY: the driver's contract.
    unsafe { cuOccupancyMaxPotentialBlockSize(grid, block, f, of, dynamic, limit) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    to: *mut usize,
    f: u64,
    blocks: c_int,
    _threads: c_int,
) -> i32 {
    run(|| {
        let s = state();
        let (all, one) = shared_limits(s.settings.capability);
        let fixed = s.function(f)?.kernel.static_shared;
        let each = usize::try_from(all / blocks.max(1) - 1024).unwrap_or(0).min(usize::try_from(one).unwrap_or(0));
        // SAFETY: the driver's contract.
        unsafe { give(to, each.saturating_sub(fixed)) }
    })
}
