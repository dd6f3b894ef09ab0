//! Files by name or pattern, read whole, unpacked on demand.

use super::names::{Found, expand};
use crate::problem::{BAD_FILE, BAD_LABEL, Checked, EMPTY, NO_FILE, NOT_UTF8, Problem};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// One file as it lies on the disk.
#[derive(Debug)]
pub struct SourceFile {
    pub path: PathBuf,
    /// As stored, so possibly compressed.
    pub stored: Vec<u8>,
    pub sha256: String,
    /// What of its path stands where the pattern has `{label}`.
    pub label: Option<String>,
}

/// Reads the files that a path or a pattern names, in order of their names; their labels are elsewhere.
pub(crate) fn read(pattern: &str, base: &Path) -> Checked<Vec<SourceFile>> {
    let files = labelled(pattern, base)?;
    if files.iter().any(|file| file.label.is_some()) {
        let problem = Problem::new(BAD_LABEL, format!("the files of {pattern} are not an example each"));
        return Err(problem.help("`{label}` is for pictures and sounds; write `*`").into());
    }
    Ok(files)
}

/// Reads the files that a path or a pattern names, in order of their names, each with its label.
pub(crate) fn labelled(pattern: &str, base: &Path) -> Checked<Vec<SourceFile>> {
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for Found { path, label } in expand(pattern, base)? {
        if path.is_dir() {
            let problem = Problem::new(NO_FILE, format!("{} is a folder", path.display())).at(&path);
            problems.push(problem.help(format!("name its files with a pattern: {pattern}/*.txt")));
            continue;
        }
        match fs::read(&path) {
            Ok(stored) => {
                let sha256 = hex(&Sha256::digest(&stored));
                files.push(SourceFile { path, stored, sha256, label });
            }
            Err(error) => problems.push(Problem::reading(&path, &error)),
        }
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl SourceFile {
    /// The bytes, unpacked by the ending of the name.
    pub fn bytes(&self) -> Result<Vec<u8>, Problem> {
        let name = self.path.to_string_lossy();
        let mut out = Vec::new();
        let (kind, done) = if name.ends_with(".gz") {
            ("gzip", MultiGzDecoder::new(self.stored.as_slice()).read_to_end(&mut out))
        } else if name.ends_with(".zst") {
            let decoder = zstd::stream::read::Decoder::new(self.stored.as_slice());
            ("zstd", decoder.and_then(|mut decoder| decoder.read_to_end(&mut out)))
        } else {
            return Ok(self.stored.clone());
        };
        match done {
            Ok(_) => Ok(out),
            Err(error) => {
                let message = format!("{} is not a whole {kind} file: {error}", self.path.display());
                Err(Problem::new(BAD_FILE, message).at(&self.path).byte(out.len() as u64).help("copy it again"))
            }
        }
    }

    /// The bytes as text; a mark of byte order at the start is not part of it.
    pub fn text(&self) -> Result<String, Problem> {
        let bytes = self.bytes()?;
        if bytes.is_empty() {
            return Err(Problem::new(EMPTY, format!("{} is empty", self.path.display())).at(&self.path));
        }
        match String::from_utf8(bytes) {
            Ok(mut text) => {
                if text.starts_with('\u{feff}') {
                    text.drain(..'\u{feff}'.len_utf8());
                }
                Ok(text)
            }
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let bytes = error.as_bytes();
                let line = 1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count() as u64;
                let message = format!("{} is not UTF-8: byte 0x{:02x}", self.path.display(), bytes[at]);
                let help = "convert it: iconv -f LATIN1 -t UTF-8 FILE, with the encoding that it has";
                Err(Problem::new(NOT_UTF8, message).at(&self.path).line(line).byte(at as u64).help(help))
            }
        }
    }
}
