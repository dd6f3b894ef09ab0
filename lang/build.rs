//! Lists the files of `stdlib/` for the compiler: a file that is added there is part of the library, and nothing else changes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // Where this is run for: a checkout that was moved has what was built for it elsewhere.
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../stdlib");
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    files.sort();
    let mut out = String::from("&[\n");
    for (name, path) in files {
        let _ = writeln!(out, "    ({name:?}, include_str!({path:?})),");
    }
    out.push_str("]\n");
    let to = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("library.rs");
    fs::write(to, out)?;
    println!("cargo::rerun-if-changed={}", root.display());
    Ok(())
}

/// Every `.mdl` below a folder: its path under `root` without the ending, and where it lies.
fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "mdl") {
            let name = path.strip_prefix(root).unwrap_or(&path).with_extension("");
            files.push((name.to_string_lossy().replace('\\', "/"), path.canonicalize()?));
        }
    }
    Ok(())
}
