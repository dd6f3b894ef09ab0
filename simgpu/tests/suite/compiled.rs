//! What the checked-in PTX was compiled from, compiled again: needs NVRTC (`simgpu/tests/nvrtc.sh` fetches it), and says so without.

use super::Rig;
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts, sys};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// NVRTC in the folder of `MDLC_NVRTC`, or where the script leaves it, opened so that `cudarc` finds it; the folder of its headers.
fn nvrtc() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/mdlc/nvrtc"));
    let dir = std::env::var_os("MDLC_NVRTC").map(PathBuf::from).or_else(home)?;
    // The builtins first: version 13.0 does not look for them beside itself.
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
        let path = CString::new(dir.join("lib").join(name).as_os_str().as_bytes()).ok()?;
        // SAFETY: the library's initialisers are NVIDIA's, and ask for nothing.
        if unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) }.is_null() {
            return None;
        }
    }
    // SAFETY: a question only.
    unsafe { sys::is_culib_present() }.then(|| dir.join("include"))
}

/// Without what differs from folder to folder.
fn plain(ptx: &str) -> String {
    ptx.lines()
        .filter(|line| !line.contains(".file"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn checked_in_ptx_is_what_nvrtc_makes() {
    let Some(headers) = nvrtc() else {
        println!("skipped: no NVRTC; simgpu/tests/nvrtc.sh fetches it");
        return;
    };
    let kernels = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    for (source, made, define) in [
        ("functions.cu", "functions.ptx", ""),
        ("reduce.cu", "reduce.ptx", ""),
        ("gemm.cu", "gemm.ptx", ""),
        ("gemm.cu", "gemm_wait.ptx", "-DWAIT=2"),
        ("gemm.cu", "gemm_sync.ptx", "-DSYNC="),
    ] {
        let text = std::fs::read_to_string(kernels.join(source)).unwrap();
        let mut options = vec!["-lineinfo".to_owned()];
        options.extend((!define.is_empty()).then(|| define.to_owned()));
        let options = CompileOptions {
            arch: Some("compute_80"),
            include_paths: vec![headers.to_string_lossy().into_owned()],
            options,
            ..CompileOptions::default()
        };
        let ptx = compile_ptx_with_opts(&text, options).unwrap().to_src();
        // Golden PTX is of 13.0, which is what the script fetches; another NVRTC makes other PTX, which must load all the same.
        let kept = std::fs::read_to_string(kernels.join(made)).unwrap();
        if ptx.contains("release 13.0") {
            assert!(plain(&ptx) == plain(&kept), "{made} is not what {source} makes: compile it again");
        }
        Rig::new(&ptx);
    }
}
