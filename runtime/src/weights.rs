//! Weights from safetensors files: what a folder holds, and the values of what is loaded from it.
//!
//! [`headers`] reads names, shapes and places and no value, for the checker; [`Files`] fills tensors as an
//! [`Origin`] says, in any order of axes, widening what is kept in fewer bits. Nothing is believed that a header says before it was
//! compared with the file, and no value that is not finite becomes a weight. Files are read where they are and not mapped: one that is
//! cut off while it is read is an error and no signal.

mod header;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use mdl_data::Problem;
use mdl_graph::Name;
use mdl_lang::check::FileTensors;
use mdl_lang::spec::{Along, Origin, Piece};

use crate::device::Tensor;
use crate::error::RunError;

pub use header::{Header, read_header};
pub(crate) use values::take;

/// A folder or file of weights that cannot be read.
pub(crate) const UNREADABLE: &str = "E0405";

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// What reading runs code that is in the file.
const PICKLED: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// What the safetensors files of a folder hold. `shown` is what the recipe calls the folder: the files are told under it.
pub fn headers(folder: &Path, shown: &str) -> Result<FileTensors, Problem> {
    let names = weight_files(folder)?;
    let mut all = FileTensors::default();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for name in names {
        let number = all.files.len() as u32;
        let header = read_header(&folder.join(&name))?;
        for mut tensor in header.tensors {
            if let Some(first) = seen.insert(tensor.name.clone(), number) {
                let message = format!("`{}` is in {} and in {name}", tensor.name, all.files[first as usize]);
                return Err(Problem::new(UNREADABLE, message).at(folder));
            }
            tensor.file = number;
            all.tensors.push(tensor);
        }
        all.files.push(name);
    }
    let shown = shown.trim_end_matches('/');
    for name in &mut all.files {
        *name = format!("{shown}/{name}");
    }
    Ok(all)
}

/// The files that the weights of a folder are in: those of its index, the one of the usual name, or all there are.
pub fn weight_files(folder: &Path) -> Result<Vec<String>, Problem> {
    let problem = |message: String| Problem::new(UNREADABLE, message).at(folder);
    let listed = std::fs::read_dir(folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => problem(format!("there is no folder {}", folder.display()))
            .help("a path in a recipe is relative to the recipe"),
        _ => problem(format!("cannot read {}: {error}", folder.display())),
    })?;
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|error| problem(format!("cannot read {}: {error}", folder.display())))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.iter().any(|name| name == INDEX) {
        return header::read_index(&folder.join(INDEX));
    }
    if names.iter().any(|name| name == SINGLE) {
        return Ok(vec![SINGLE.to_string()]);
    }
    let ends = |name: &str, endings: &[&str]| {
        Path::new(name).extension().is_some_and(|own| endings.iter().any(|ending| own == *ending))
    };
    let found: Vec<String> = names.iter().filter(|name| ends(name, &["safetensors"])).cloned().collect();
    if !found.is_empty() {
        return Ok(found);
    }
    match names.iter().find(|name| ends(name, &PICKLED)) {
        Some(pickled) => Err(problem(format!("{} has its weights as {pickled}, which is not read", folder.display()))
            .help(
                "reading such a file runs the code in it; convert it where you trust it: in Python, \
                 `safetensors.torch.save_file(torch.load(\"pytorch_model.bin\"), \"model.safetensors\")`",
            )),
        None => Err(problem(format!("{} has no .safetensors file", folder.display()))),
    }
}

/// What tells whether a file is still the one that it was: its size and when it was last written.
pub fn stamp(path: &Path) -> Option<(u64, i64, i64)> {
    let facts = std::fs::metadata(path).ok()?;
    Some((facts.len(), facts.mtime(), facts.mtime_nsec()))
}

/// Files that are being read.
pub struct Files {
    base: PathBuf,
    open: BTreeMap<Name, File>,
    buffer: Vec<u8>,
}

impl Files {
    /// `base` is the recipe's folder.
    pub fn new(base: &Path) -> Files {
        Files { base: base.to_path_buf(), open: BTreeMap::new(), buffer: Vec::new() }
    }

    /// Writes the values of files into a tensor.
    pub fn fill(&mut self, origin: &Origin, tensor: &mut Tensor) -> Result<(), RunError> {
        let Origin::Files { pieces, same } = origin else { mdl_graph::bug!("a stage's tensor is not in files") };
        for piece in pieces {
            self.read(piece)?;
            values::put(piece, &self.buffer, tensor).map_err(|why| self.wrong(piece, why))?;
        }
        for piece in same {
            self.read(piece)?;
            let same = values::is_same(piece, &self.buffer, tensor).map_err(|why| self.wrong(piece, why))?;
            if !same {
                let first = pieces.first().map_or("", |first| first.tensor.as_str());
                let why = format!("differs from `{first}`, and the model has one weight for both");
                return Err(self.wrong(piece, why));
            }
        }
        Ok(())
    }

    fn wrong(&self, piece: &Piece, why: String) -> RunError {
        let message = format!("`{}` {why}", piece.tensor);
        Problem::new(UNREADABLE, message).at(&self.base.join(piece.file.as_str())).into()
    }

    /// Reads the bytes of a piece's tensor into the buffer.
    fn read(&mut self, piece: &Piece) -> Result<(), RunError> {
        let path = self.base.join(piece.file.as_str());
        let unread = |error: std::io::Error| {
            RunError::from(Problem::new(UNREADABLE, format!("cannot read `{}`: {error}", piece.tensor)).at(&path))
        };
        if !self.open.contains_key(&piece.file) {
            self.open.insert(piece.file.clone(), File::open(&path).map_err(unread)?);
        }
        let file = &self.open[&piece.file];
        self.buffer.resize((piece.bytes.end - piece.bytes.start) as usize, 0);
        file.read_exact_at(&mut self.buffer, piece.bytes.start).map_err(unread)
    }
}

/// The loops that take a piece to its place: how often, how far in the tensor, how far in the file.
pub(crate) fn loops(piece: &Piece, sizes: &[u64]) -> (u64, Vec<(u64, u64, u64)>) {
    let (mut start, mut stride, mut loops) = (0, 1, Vec::new());
    for (along, size) in piece.along.iter().zip(sizes).rev() {
        match along {
            Along::At(at) => start += at * stride,
            Along::Every(_) if *size == 1 => {}
            Along::Every(step) => match loops.last_mut() {
                // Two axes that lie one in the other on both sides are one.
                Some((count, to, from)) if *count * *to == stride && *count * *from == *step => *count *= size,
                _ => loops.push((*size, stride, *step)),
            },
        }
        stride *= size;
    }
    loops.reverse();
    (start, loops)
}

#[cfg(test)]
mod tests;
