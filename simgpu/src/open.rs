//! Finding and opening the shared object, from tests of any crate.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const FILE: &str = "libmdl_simgpu.so";

/// Why the simulated GPU could not be opened.
#[derive(Debug, Clone)]
pub struct OpenError(String);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the simulated GPU cannot be opened: {}", self.0)
    }
}

impl std::error::Error for OpenError {}

/// The opened library. It stays open until the process ends.
#[derive(Debug, Clone)]
pub struct Gpu {
    path: PathBuf,
    handle: usize,
}

/// Opens `libmdl_simgpu.so` so that `cudarc` takes it for the driver; must be called before `cudarc` is first asked for anything.
/// Later calls give what the first gave.
///
/// The file is looked for where `MDLC_SIMGPU` says, then beside the running program and in the folders above it, where cargo puts it
/// for every crate that has `mdl-simgpu` among its (dev-)dependencies.
///
/// # Errors
/// When there is no such file or the loader refuses it.
pub fn open() -> Result<Gpu, OpenError> {
    static OPENED: OnceLock<Result<Gpu, OpenError>> = OnceLock::new();
    OPENED.get_or_init(open_once).clone()
}

fn find() -> Result<PathBuf, OpenError> {
    if let Some(path) = std::env::var_os("MDLC_SIMGPU") {
        return Ok(PathBuf::from(path));
    }
    let exe = std::env::current_exe().map_err(|e| OpenError(e.to_string()))?;
    // Newest wins: cargo leaves one in `deps` and, for the crate itself, one beside it.
    let found = exe.ancestors().skip(1).take(3).flat_map(|dir| [dir.join(FILE), dir.join("deps").join(FILE)]);
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
    found
        .filter(|path| path.is_file())
        .max_by_key(|path| age(path))
        .ok_or_else(|| OpenError(format!("{FILE} is not beside {}", exe.display())))
}

fn open_once() -> Result<Gpu, OpenError> {
    let path = find()?;
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| OpenError(e.to_string()))?;
    // SAFETY: the library has no initialisers of its own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: after a failure this is a string.
        let why = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
        return Err(OpenError(why));
    }
    Ok(Gpu { path, handle: handle.expose_provenance() })
}

impl Gpu {
    /// The file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is that of an open library.
        let at = unsafe { libc::dlsym(std::ptr::with_exposed_provenance_mut(self.handle), name.as_ptr()) };
        (!at.is_null()).then_some(at)
    }

    /// What went wrong last on this thread: kernel, block, thread, line; empty if nothing did since [`Gpu::clear_fault`].
    pub fn last_fault(&self) -> String {
        let Some(at) = self.symbol(c"mdl_simgpu_last_fault") else { return String::new() };
        // SAFETY: the library's function of this type; the text lives until the next mistake of this thread.
        unsafe {
            let f = std::mem::transmute::<*mut c_void, extern "C" fn() -> *const c_char>(at);
            CStr::from_ptr(f()).to_string_lossy().into_owned()
        }
    }

    /// Forgets what went wrong.
    pub fn clear_fault(&self) {
        if let Some(at) = self.symbol(c"mdl_simgpu_clear_fault") {
            // SAFETY: the library's function of this type.
            unsafe { std::mem::transmute::<*mut c_void, extern "C" fn()>(at)() }
        }
    }

    /// Gives a device another amount of memory from now on.
    pub fn set_memory(&self, device: i32, bytes: u64) {
        if let Some(at) = self.symbol(c"mdl_simgpu_set_memory") {
            // SAFETY: the library's function of this type.
            unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(i32, u64) -> i32>(at)(device, bytes) };
        }
    }

    /// From now on a warp that executes more instructions than this in a block is taken to hang.
    pub fn set_limit(&self, instructions: u64) {
        if let Some(at) = self.symbol(c"mdl_simgpu_set_limit") {
            // SAFETY: the library's function of this type.
            unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> i32>(at)(instructions) };
        }
    }

    /// Launches, instructions of warps, and instructions of lanes so far.
    pub fn count(&self) -> (u64, u64, u64) {
        let (mut launches, mut instructions, mut lanes) = (0, 0, 0);
        if let Some(at) = self.symbol(c"mdl_simgpu_count") {
            // SAFETY: the library's function of this type, which writes three numbers.
            unsafe {
                let f = std::mem::transmute::<*mut c_void, extern "C" fn(*mut u64, *mut u64, *mut u64) -> i32>(at);
                f(&raw mut launches, &raw mut instructions, &raw mut lanes);
            }
        }
        (launches, instructions, lanes)
    }
}
