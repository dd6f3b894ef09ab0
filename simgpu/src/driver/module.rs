//! Modules of PTX text, their kernels, and launches.

use super::errors::Code;
use super::graph::{Call, Task};
use super::stream::enqueue;
use super::{Done, Function, Module, current_device, give, param_end, run, say, state};
use crate::ptx::lower::lower;
use crate::ptx::parse::{Space, parse};
use crate::sim::fault::Fault;
use crate::sim::launch::Launch;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

/// The newest PTX that the driver of CUDA 13.0 takes.
const NEWEST: (u32, u32) = (9, 0);

/// The number in `sm_90a`.
fn target_number(target: &str) -> i32 {
    target.trim_start_matches("sm_").trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0)
}

fn load(text: &str) -> Result<u64, (Code, String)> {
    let module = parse(text).map_err(|e| (Code::InvalidPtx, e.to_string()))?;
    if module.version > NEWEST {
        let (a, b) = module.version;
        return Err((
            Code::UnsupportedPtxVersion,
            format!("PTX {a}.{b} is newer than this driver, which takes up to 9.0"),
        ));
    }
    let (major, minor) = state().settings.capability;
    if target_number(&module.target) > 10 * major + minor {
        return Err((Code::NoBinary, format!("PTX for {} on a device of capability {major}.{minor}", module.target)));
    }
    let lines: Arc<Vec<String>> = Arc::new(text.lines().map(str::to_owned).collect());
    let files = Arc::new(module.files.clone());
    let device = current_device().map_err(|code| (code, "no current context".to_owned()))?;
    let mut s = state();
    let mut globals = HashMap::new();
    for var in module.vars.iter().filter(|v| matches!(v.space, Space::Global | Space::Const)) {
        let bytes = var.bytes.unwrap_or(0).max(1);
        let base = s
            .allocate(device, bytes, var.space == Space::Global)
            .map_err(|code| (code, "no memory for a variable".to_owned()))?;
        let place = s.place(base, bytes).map_err(|code| (code, String::new()))?;
        // SAFETY: the allocation has these bytes.
        unsafe {
            std::ptr::write_bytes(place, 0, bytes);
            std::ptr::copy_nonoverlapping(var.init.as_ptr(), place, var.init.len().min(bytes));
        }
        globals.insert(var.name.clone(), (base, bytes as u64));
    }
    let addresses = globals.iter().map(|(name, &(base, _))| (name.clone(), base)).collect();
    let mut kernels = Vec::new();
    for entry in &module.entries {
        let kernel = lower(&module, entry, &addresses, &lines, &files)
            .map_err(|e| (Code::InvalidPtx, format!("kernel {}: {e}: `{}`", entry.name, line_of(&lines, e.line))))?;
        kernels.push(Arc::new(kernel));
    }
    let id = s.id();
    let mut functions = HashMap::new();
    for kernel in kernels {
        let f = s.id();
        functions.insert(kernel.name.clone(), f);
        s.functions.insert(f, Function { kernel, dynamic_limit: 49_152, module: id });
    }
    s.modules.insert(id, Module { functions, globals });
    Ok(id)
}

fn line_of(lines: &[String], line: u32) -> String {
    lines.get((line as usize).saturating_sub(1)).map(|l| l.trim().to_owned()).unwrap_or_default()
}

unsafe fn load_image(to: *mut u64, image: *const c_void) -> Done {
    if image.is_null() {
        return Err(Code::InvalidValue);
    }
    // SAFETY: an image has at least four bytes, whether a text or a binary.
    let magic = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    if magic == *b"\x7fELF" || magic == [0x50, 0xed, 0x55, 0xba] {
        say("this device takes PTX, not machine code: give it what NVRTC makes for compute_XX");
        return Err(Code::NoBinary);
    }
    // SAFETY: a text ends with a zero, by the driver's contract.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_string_lossy();
    match load(&text) {
        // SAFETY: the driver's contract.
        Ok(id) => unsafe { give(to, id) },
        Err((code, message)) => {
            say(&message);
            Err(code)
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(to: *mut u64, image: *const c_void) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { load_image(to, image) })
}

/// Options are taken, those of the compiler are without effect; `mdl_simgpu_last_fault` holds the log.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    to: *mut u64,
    image: *const c_void,
    _n: c_uint,
    _options: *mut c_uint,
    _values: *mut *mut c_void,
) -> i32 {
    // SAFETY: the driver's contract.
    run(|| unsafe { load_image(to, image) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoad(to: *mut u64, path: *const c_char) -> i32 {
    run(|| {
        if path.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: a string, by the driver's contract.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
        let mut text = std::fs::read(path).map_err(|_| Code::FileNotFound)?;
        text.extend_from_slice(&[0; 4]);
        // SAFETY: the text ends with zeros.
        unsafe { load_image(to, text.as_ptr().cast()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> i32 {
    run(|| {
        let mut s = state();
        let gone = s.modules.remove(&module).ok_or(Code::InvalidHandle)?;
        s.functions.retain(|_, f| f.module != module);
        let mut bases: Vec<u64> = gone.globals.values().map(|&(base, _)| base).collect();
        bases.sort_unstable();
        for base in bases {
            s.free(base)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(to: *mut u64, module: u64, name: *const c_char) -> i32 {
    run(|| {
        if name.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: a string, by the driver's contract.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let found = {
            let s = state();
            let module = s.modules.get(&module).ok_or(Code::InvalidHandle)?;
            *module.functions.get(name.as_ref()).ok_or(Code::NotFound)?
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetGlobal_v2(to: *mut u64, bytes: *mut usize, module: u64, name: *const c_char) -> i32 {
    run(|| {
        if name.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: a string, by the driver's contract.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let (base, len) = {
            let s = state();
            let module = s.modules.get(&module).ok_or(Code::InvalidHandle)?;
            *module.globals.get(name.as_ref()).ok_or(Code::NotFound)?
        };
        // SAFETY: the driver's contract: either may be null.
        unsafe {
            if !bytes.is_null() {
                give(bytes, usize::try_from(len).unwrap_or(0))?;
            }
            if to.is_null() { Ok(()) } else { give(to, base) }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(to: *mut c_int, attribute: c_uint, f: u64) -> i32 {
    run(|| {
        let value = {
            let s = state();
            let f = s.function(f)?;
            let (major, minor) = s.settings.capability;
            let int = |n: usize| c_int::try_from(n).unwrap_or(c_int::MAX);
            match attribute {
                0 => f.kernel.max_threads.map_or(1024, u32::cast_signed),
                1 => int(f.kernel.static_shared),
                3 => int(f.kernel.local_bytes),
                // Constants, and registers, which only ptxas knows.
                2 | 4 | 7 | 9 => 0,
                5 | 6 => 10 * major + minor,
                8 => int(f.dynamic_limit),
                _ => return Err(Code::InvalidValue),
            }
        };
        // SAFETY: the driver's contract.
        unsafe { give(to, value) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(f: u64, attribute: c_uint, value: c_int) -> i32 {
    run(|| {
        let mut s = state();
        let limit = super::device::shared_limits(s.settings.capability).1;
        let f = s.functions.get_mut(&f).ok_or(Code::InvalidHandle)?;
        match attribute {
            8 => {
                let fixed = c_int::try_from(f.kernel.static_shared).unwrap_or(c_int::MAX);
                if value < 0 || value > limit - fixed {
                    return Err(Code::InvalidValue);
                }
                f.dynamic_limit = usize::try_from(value).unwrap_or(0);
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::InvalidValue),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetCacheConfig(f: u64, _config: c_uint) -> i32 {
    run(|| state().function(f).map(|_| ()))
}

/// Checks a launch as the driver does, and copies the parameters.
unsafe fn call(
    f: u64,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    dynamic: c_uint,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Call, (Code, String)> {
    let s = state();
    let function = s.function(f).map_err(|code| (code, "a launch of what is not a function".to_owned()))?.clone();
    let bad = |what: String| Err((Code::InvalidValue, format!("launch of {}: {what}", function.kernel.name)));
    let threads: u64 = block.iter().map(|&n| u64::from(n)).product();
    if grid.contains(&0) || block.contains(&0) {
        return bad(format!("a grid of {grid:?} blocks of {block:?} threads has no thread"));
    }
    if grid[1] > 65_535 || grid[2] > 65_535 || grid[0] > i32::MAX.cast_unsigned() {
        return bad(format!("a grid of {grid:?} blocks is too large"));
    }
    let most = function.kernel.max_threads.unwrap_or(1024).min(1024);
    if threads > u64::from(most) || block[2] > 64 {
        return bad(format!("{threads} threads a block are more than {most}"));
    }
    if function.kernel.required.is_some_and(|required| required != block) {
        return bad(format!("blocks of {block:?} threads are not what .reqntid says"));
    }
    if u64::from(grid[0]) * u64::from(grid[1]) * u64::from(grid[2]) >= 1 << 27 {
        return bad(format!("a grid of {grid:?} blocks is more than this simulator can count"));
    }
    if dynamic as usize > function.dynamic_limit {
        return bad(format!(
            "{dynamic} bytes of dynamic shared memory are more than {}: set CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
            function.dynamic_limit
        ));
    }
    let one = usize::try_from(super::device::shared_limits(s.settings.capability).1).unwrap_or(0);
    if function.kernel.static_shared + dynamic as usize > one {
        return bad(format!(
            "{} bytes of shared memory are more than a block has",
            function.kernel.static_shared + dynamic as usize
        ));
    }
    let mut bytes = vec![0u8; param_end(&function.kernel.params)];
    if !extra.is_null() {
        return bad("parameters through `extra` are not handled".to_owned());
    }
    if params.is_null() && !function.kernel.params.is_empty() {
        return bad("no parameters".to_owned());
    }
    for (k, param) in function.kernel.params.iter().enumerate() {
        // SAFETY: as many pointers as the kernel has parameters, each to a value of its size, by the driver's contract.
        unsafe {
            let from = *params.add(k);
            if from.is_null() {
                return bad(format!("parameter {k} is null"));
            }
            std::ptr::copy_nonoverlapping(from.cast::<u8>(), bytes.as_mut_ptr().add(param.offset), param.bytes);
        }
    }
    Ok(Call { kernel: function.kernel, grid, block, dynamic: dynamic as usize, params: bytes })
}

/// Runs a kernel to its end.
pub(super) fn launch(call: &Call) -> Done {
    let (allocs, epoch, checks) = {
        let mut s = state();
        s.epoch += 1;
        (s.allocs.clone(), s.epoch & 0xff_ffff, s.settings.checks)
    };
    let n_blocks: u32 = call.grid.iter().product();
    let launch = Launch {
        kernel: &call.kernel,
        grid: call.grid,
        threads: call.block,
        shared_bytes: call.kernel.static_shared + call.dynamic,
        dynamic_bytes: call.dynamic,
        params: &call.params,
        allocs: &allocs,
        epoch,
        checks,
        between_blocks: checks.races && n_blocks > 1,
        fences: Mutex::default(),
        fence_count: AtomicU32::new(0),
    };
    let result = launch.run();
    match result {
        Ok(count) => {
            let mut s = state();
            s.launches += 1;
            s.total.instructions += count.instructions;
            s.total.lane_instructions += count.lane_instructions;
            Ok(())
        }
        Err(fault) => {
            say(&fault.to_string());
            Err(code_of(&fault))
        }
    }
}

fn code_of(fault: &Fault) -> Code {
    if fault.what.starts_with("out-of-bounds") {
        Code::IllegalAddress
    } else if fault.what.starts_with("misaligned") {
        Code::MisalignedAddress
    } else {
        Code::LaunchFailed
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    f: u64,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    dynamic: c_uint,
    stream: u64,
    params: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> i32 {
    run(|| {
        // SAFETY: the driver's contract.
        match unsafe { call(f, [gx, gy, gz], [bx, by, bz], dynamic, params, extra) } {
            Ok(call) => enqueue(stream, Task::Launch(call)),
            Err((code, message)) => {
                say(&message);
                Err(code)
            }
        }
    })
}
