//! Programs to be read: PTX, and the machine code of a card with what each function takes of it. No card is needed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{Arch, Error, Nvrtc, resources};

/// The PTX of a program for cards of this compute capability, 90 for Hopper, and later ones.
pub fn ptx(source: &str, capability: u32) -> Result<String, Error> {
    let image = Nvrtc::open()?.compile(source, Arch::Virtual(capability))?;
    Ok(String::from_utf8_lossy(&image.bytes).trim_end_matches('\0').to_string())
}

/// Its machine code, below a line for each function: registers, stack, shared memory.
pub fn sass(source: &str, capability: u32) -> Result<String, Error> {
    let image = Nvrtc::open()?.compile(source, Arch::Real(capability))?;
    let mut text = String::new();
    for function in resources(&image.bytes).ok_or_else(|| Error("NVRTC gave no ELF file".into()))? {
        text.push_str(&format!(
            "// {}: {} registers, {} bytes of stack, {} of shared memory, {} of code\n",
            function.function, function.registers, function.frame_bytes, function.shared_bytes, function.code_bytes
        ));
    }
    text.push_str(&disassembled(&image.bytes)?);
    Ok(text)
}

/// What `nvdisasm` says of an ELF file.
fn disassembled(bytes: &[u8]) -> Result<String, Error> {
    let tool = nvdisasm().ok_or_else(|| {
        Error(
            "there is no nvdisasm, which prints machine code: it comes with the CUDA toolkit; put it on the PATH"
                .into(),
        )
    })?;
    let path = std::env::temp_dir().join(format!("mdlc-{}.cubin", std::process::id()));
    let failed = |what: &str, error: std::io::Error| Error(format!("{what} failed: {error}"));
    let write = std::fs::File::create(&path).and_then(|mut file| file.write_all(bytes));
    write.map_err(|error| failed(&format!("writing {}", path.display()), error))?;
    let ran = Command::new(&tool).arg("--print-code").arg(&path).stdin(Stdio::null()).output();
    let _ = std::fs::remove_file(&path);
    let ran = ran.map_err(|error| failed(&format!("running {}", tool.display()), error))?;
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(Error(format!("nvdisasm refuses a program: {}", String::from_utf8_lossy(&ran.stderr).trim()))),
    }
}

/// On the PATH, or where toolkits are installed.
fn nvdisasm() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let toolkit = std::env::var_os("CUDA_HOME").map_or_else(|| PathBuf::from("/usr/local/cuda"), PathBuf::from);
    let folders = std::env::split_paths(&paths).chain([toolkit.join("bin")]);
    folders.map(|folder| folder.join("nvdisasm")).find(|path| path.is_file())
}
