//! NVIDIA's run-time compiler: CUDA C to machine code or PTX, kept on disk under a hash of all that decides the result.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use crate::{Error, library};

/// What to compile for: 80 is Ampere, 90 Hopper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Machine code of these cards.
    Real(u32),
    /// PTX, which later drivers and the simulator take.
    Virtual(u32),
}

/// A compiled program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// An ELF file, or the text of PTX with a zero at its end.
    pub bytes: Vec<u8>,
    /// Whether it was on disk already.
    pub cached: bool,
}

/// The compiler, opened.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    version: (i32, i32),
}

const LIBRARY: &str = "libnvrtc.so.13";
/// Kernels say what they need; names that a pass has no use for are no mistake.
const OPTIONS: [&str; 2] = ["--std=c++17", "--disable-warnings"];

impl Nvrtc {
    /// Finds it in `MDLC_NVRTC`, in `~/.cache/mdlc/nvrtc`, or where the system has it.
    pub fn open() -> Result<Nvrtc, Error> {
        let given = std::env::var_os("MDLC_NVRTC").map(PathBuf::from);
        let cached = library::cache().map(|cache| cache.join("nvrtc"));
        let folders = given.iter().chain(&cached);
        // As the wheels have it, as a toolkit has it, or the folder itself.
        let inside =
            folders.flat_map(|folder| ["nvidia/cu13/lib", "lib", "lib64", ""].map(|inside| folder.join(inside)));
        if let Some(folder) = inside.into_iter().find(|folder| folder.join(LIBRARY).is_file()) {
            // Of the second no path is known to the first.
            if let Some(builtins) = builtins(&folder) {
                library::open(&builtins)?;
            }
            library::open(&folder.join(LIBRARY))?;
        }
        // SAFETY: only looks whether the library can be opened.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error(format!(
                "there is no NVRTC ({LIBRARY}), NVIDIA's compiler: install the CUDA toolkit 13, or unpack the wheel \
                 nvidia-cuda-nvrtc 13.0.88 into ~/.cache/mdlc/nvrtc (or a folder that MDLC_NVRTC names)"
            )));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two places for two numbers.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
            .result()
            .map_err(|error| Error(format!("NVRTC does not tell its version: {error}")))?;
        Ok(Nvrtc { version: (major, minor) })
    }

    /// Compiles a program, or takes what was compiled before.
    pub fn compile(&self, source: &str, arch: Arch) -> Result<Image, Error> {
        let kept = library::cache().map(|cache| cache.join("programs").join(self.key(source, arch)));
        if let Some(bytes) = kept.as_ref().and_then(|path| std::fs::read(path).ok())
            && is_whole(&bytes, arch)
        {
            return Ok(Image { bytes, cached: true });
        }
        let bytes = self.compiled(source, arch)?;
        if let Some(path) = kept {
            // Without it the next run compiles again.
            let _ = keep(&path, &bytes);
        }
        Ok(Image { bytes, cached: false })
    }

    fn key(&self, source: &str, arch: Arch) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {arch:?} {OPTIONS:?}\n", self.version));
        hash.update(source);
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn compiled(&self, source: &str, arch: Arch) -> Result<Vec<u8>, Error> {
        let failed = |what: &str| {
            let what = what.to_string();
            move |error: result::NvrtcError| Error(format!("{what} failed: NVRTC says {error}"))
        };
        let text = CString::new(source).map_err(|_| Error("a program has a zero in its text".into()))?;
        let program = result::create_program(&text, Some(c"mdlc.cu")).map_err(failed("beginning a program"))?;
        let target = match arch {
            Arch::Real(number) => format!("--gpu-architecture=sm_{number}"),
            Arch::Virtual(number) => format!("--gpu-architecture=compute_{number}"),
        };
        let options: Vec<String> = OPTIONS.iter().map(|option| option.to_string()).chain([target]).collect();
        // SAFETY: the program was just made, and is destroyed at the end only.
        let made = unsafe {
            match result::compile_program(program, &options) {
                Ok(()) => image(program, arch).map_err(failed("reading a compiled program")),
                Err(error) => Err(Error(format!("NVRTC refuses a program ({error}):\n{}", log(program)))),
            }
        };
        // SAFETY: as above.
        let _ = unsafe { result::destroy_program(program) };
        made
    }
}

/// # Safety
/// The program was compiled.
unsafe fn image(program: sys::nvrtcProgram, arch: Arch) -> Result<Vec<u8>, result::NvrtcError> {
    // SAFETY: by the caller; buffers have the sizes that are asked for.
    unsafe {
        match arch {
            Arch::Virtual(_) => {
                let text = result::get_ptx(program)?;
                Ok(text.into_iter().map(|byte| byte as u8).collect())
            }
            Arch::Real(_) => {
                let mut size = 0;
                sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
                let mut bytes = vec![0u8; size];
                sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast()).result()?;
                Ok(bytes)
            }
        }
    }
}

/// # Safety
/// The program was made and not destroyed.
unsafe fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: by the caller; a log ends in a zero.
    let text = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = text.into_iter().map(|byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What was written by half is not taken.
fn is_whole(bytes: &[u8], arch: Arch) -> bool {
    match arch {
        Arch::Real(_) => bytes.starts_with(b"\x7fELF"),
        Arch::Virtual(_) => bytes.last() == Some(&0),
    }
}

/// Written whole or not at all.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    let part = path.with_extension(format!("part{}", std::process::id()));
    std::fs::write(&part, bytes)?;
    std::fs::rename(part, path)
}

fn builtins(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so.")
    };
    names.filter(is).min()
}
