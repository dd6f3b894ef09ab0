//! Libraries opened by their path, so that what later asks for them by name finds them.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::Error;

/// Opens a library for good, with its names for all others.
pub(crate) fn open(path: &Path) -> Result<(), Error> {
    let failed = |why: String| Error(format!("{} cannot be opened: {why}", path.display()));
    let name = CString::new(path.to_string_lossy().as_bytes()).map_err(|error| failed(error.to_string()))?;
    // SAFETY: a library's own beginnings run, as with any that is linked. It is never closed.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: `dlerror` gives a string that is valid until the next call.
        let why = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) };
        return Err(failed(why.to_string_lossy().into_owned()));
    }
    Ok(())
}

/// Opens the look-alike driver of the tests: `MDLC_SIMGPU`, or what was built beside this program.
pub(crate) fn open_simulated() -> Result<(), Error> {
    const NAME: &str = "libmdl_simgpu.so";
    let given = std::env::var_os("MDLC_SIMGPU").map(PathBuf::from);
    let here = std::env::current_exe().ok();
    let beside = here
        .iter()
        .flat_map(|exe| exe.ancestors().skip(1).take(3))
        .flat_map(|folder| [folder.join(NAME), folder.join("deps").join(NAME)]);
    let found = given.into_iter().chain(beside).find(|path| path.is_file());
    match found {
        Some(path) => open(&path),
        None => Err(Error(format!("the simulated card is not built: `cargo build -p mdl-simgpu` makes {NAME}"))),
    }
}

/// The user's folder for what can be made again.
pub(crate) fn cache() -> Option<PathBuf> {
    let own = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    own.or(home).map(|cache| cache.join("mdlc"))
}
