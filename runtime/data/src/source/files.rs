//! Files by name or pattern, read whole, unpacked on demand.

use crate::problem::{BAD_FILE, Checked, EMPTY, NO_FILE, NOT_UTF8, Problem};
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
}

/// Reads the files that a path or a pattern names, in order of their names.
pub(crate) fn read(pattern: &str, base: &Path) -> Checked<Vec<SourceFile>> {
    let (mut files, mut problems) = (Vec::new(), Vec::new());
    for path in expand(pattern, base)? {
        if path.is_dir() {
            let problem = Problem::new(NO_FILE, format!("{} is a folder", path.display())).at(&path);
            problems.push(problem.help(format!("name its files with a pattern: {pattern}/*.txt")));
            continue;
        }
        match fs::read(&path) {
            Ok(stored) => {
                let sha256 = hex(&Sha256::digest(&stored));
                files.push(SourceFile { path, stored, sha256 });
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

/// The paths that a pattern names. `*` and `?` stand for parts of one name, `**` for any number of folders.
fn expand(pattern: &str, base: &Path) -> Checked<Vec<PathBuf>> {
    if !pattern.contains(['*', '?']) {
        return Ok(vec![base.join(pattern)]);
    }
    let root = if Path::new(pattern).is_absolute() { PathBuf::from("/") } else { base.to_path_buf() };
    let steps: Vec<&str> = pattern.split('/').filter(|step| !step.is_empty() && *step != ".").collect();
    let mut found = Vec::new();
    walk(&root, &steps, &mut found)?;
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = format!("no file matches {pattern}");
        return Err(Problem::new(NO_FILE, message).at(&root).help("patterns are relative to the recipe").into());
    }
    Ok(found)
}

fn walk(folder: &Path, steps: &[&str], found: &mut Vec<PathBuf>) -> Result<(), Problem> {
    let Some((&step, rest)) = steps.split_first() else { return Ok(()) };
    if step == ".." || !step.contains(['*', '?']) {
        let next = folder.join(step);
        if rest.is_empty() {
            found.extend(next.is_file().then_some(next));
            return Ok(());
        }
        return if next.is_dir() { walk(&next, rest, found) } else { Ok(()) };
    }
    if step == "**" {
        walk(folder, rest, found)?;
    }
    let entries = fs::read_dir(folder).map_err(|error| Problem::reading(folder, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Problem::reading(folder, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // As in a shell, a pattern does not reach what is hidden.
        if name.starts_with('.') && !step.starts_with('.') {
            continue;
        }
        let path = entry.path();
        // Links to folders are not followed: they may lead in a circle.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if step == "**" {
            if is_folder {
                walk(&path, steps, found)?;
            }
        } else if matches(step.as_bytes(), name.as_bytes()) {
            if rest.is_empty() {
                found.extend(path.is_file().then_some(path));
            } else if is_folder {
                walk(&path, rest, found)?;
            }
        }
    }
    Ok(())
}

/// Whether a name fits a pattern of `*` and `?`, in time linear in the product of the lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                // Let the last star take one more byte.
                let Some((star_p, star_n)) = star else { return false };
                star = Some((star_p, star_n + 1));
                p = star_p + 1;
                n = star_n + 1;
            }
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("part-??.csv", "part-07.csv", true),
            ("part-??.csv", "part-7.csv", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "aab", true),
            ("", "", true),
            ("*", "", true),
            ("a", "", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
