//! Checkpoints: `step-N/` with the weights, everything else that training goes on from, and a manifest.
//!
//! `model.safetensors` holds the weights by path, as other tools read them; `state.safetensors` what layers, optimizers
//! and averages remember; `manifest.json` the step, the seed, the recipe's hash and the checksum of each file, its own
//! included. A folder appears whole or not at all (see [`mdl_data::atomic`]), and the old ones go last.
//!
//! Nothing is read that does not have its checksum. The newest checkpoint is the one that counts: when it is damaged
//! that is an error which names the file, not a quiet return to an older one.

mod format;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use mdl_data::Problem;
use mdl_data::atomic::{self, Disk, Os};
use mdl_graph::DType;

use crate::error::RunError;
use format::{FileFacts, Manifest, Stored};

pub(crate) use format::write_tensors;

const MODEL: &str = "model.safetensors";
const STATE: &str = "state.safetensors";
const MANIFEST: &str = "manifest.json";

/// A checkpoint that is damaged, or that is not of this model.
const DAMAGED: &str = "E0601";

/// A tensor that is to be saved, in memory as the file will have it: row-major, little-endian.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub bytes: &'a [u8],
}

/// A checkpoint on the disk, its checksums verified. Tensors are read from its files one at a time, straight to where they go.
#[derive(Debug)]
pub struct Checkpoint {
    pub folder: PathBuf,
    /// Steps that were done when it was written.
    pub step: u64,
    pub seed: u64,
    /// The hash of what it was trained by.
    pub recipe: String,
    /// The version of the tool that wrote it.
    pub tool: String,
    tensors: BTreeMap<String, Stored>,
    files: Vec<(PathBuf, File)>,
}

/// Saves a checkpoint as `home/step-N`, then removes all but the newest `keep` (the new one always stays).
pub fn save(
    home: &Path,
    step: u64,
    seed: u64,
    recipe: &str,
    weights: &[TensorView<'_>],
    states: &[TensorView<'_>],
    keep: u64,
) -> Result<PathBuf, RunError> {
    let manifest = Manifest::new(step, seed, recipe);
    save_on(&Os, home, manifest, weights, states, keep).map_err(|error| {
        let n_bytes: usize = weights.iter().chain(states).map(|tensor| tensor.bytes.len()).sum();
        let mut why = error.to_string();
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if is_full {
            why = format!("{why}; the checkpoint needs {:.1} MiB", n_bytes as f64 / (1 << 20) as f64);
        }
        let last = newest(home).filter(|(last, _)| *last != step);
        if let Some((last, _)) = &last {
            why = format!("{why}; the checkpoint of step {last} is whole");
        }
        if is_full {
            let from = if last.is_some() { "to go on from there" } else { "to begin again" };
            why = format!("{why}; free some space and run again {from}");
        }
        RunError::failed(format!("saving the checkpoint of step {step}"), why)
    })
}

fn save_on(
    disk: &dyn Disk,
    home: &Path,
    mut manifest: Manifest,
    weights: &[TensorView<'_>],
    states: &[TensorView<'_>],
    keep: u64,
) -> io::Result<PathBuf> {
    let step = manifest.step;
    let folder = home.join(format!("step-{step}"));
    // Only one process trains in a folder, so what lies about is what a crash has left.
    atomic::recover_on(disk, home)?;
    atomic::write_folder_on(disk, &folder, |to| {
        for (name, tensors) in [(MODEL, weights), (STATE, states)] {
            let mut facts = FileFacts::default();
            to.file(name, |to| {
                facts = format::write_tensors(to, tensors)?;
                Ok(())
            })?;
            manifest.files.insert(name.to_string(), facts);
        }
        to.file(MANIFEST, |to| to.write_all(manifest.to_json().as_bytes()))
    })?;
    let mut others: Vec<u64> =
        disk.names(home)?.iter().filter_map(|name| step_of(name)).filter(|other| *other != step).collect();
    // Steps beyond this one are of a run that this one has gone back behind: they go first.
    others.sort_by_key(|&other| (other > step, std::cmp::Reverse(other)));
    for old in others.into_iter().skip(keep.saturating_sub(1) as usize) {
        atomic::remove_folder_on(disk, &home.join(format!("step-{old}")))?;
    }
    Ok(folder)
}

/// The newest checkpoint in `home`, read and verified; `None` when there is none.
pub fn latest(home: &Path) -> Result<Option<Checkpoint>, RunError> {
    newest(home).map(|(_, folder)| load(&folder)).transpose()
}

/// The weights alone of the latest checkpoint: whoever does not go on training neither reads nor verifies the rest.
pub fn latest_weights(home: &Path) -> Result<Option<Checkpoint>, RunError> {
    newest(home).map(|(_, folder)| load_files(&folder, &[MODEL])).transpose()
}

/// The last checkpoint of a stage that must have one, as [`latest`] or [`latest_weights`] reads it. `out` is where stages leave their results.
pub fn of_stage(
    out: &Path,
    stage: &str,
    read: fn(&Path) -> Result<Option<Checkpoint>, RunError>,
) -> Result<Checkpoint, RunError> {
    let home = out.join(stage).join("checkpoints");
    read(&home)?.ok_or_else(|| {
        let why = format!("there is no checkpoint in {}; `mdlc run` trains it", home.display());
        RunError::failed(format!("loading `{stage}`"), why)
    })
}

/// Finds the newest checkpoint without touching anything: another process may be writing one.
fn newest(home: &Path) -> Option<(u64, PathBuf)> {
    let names = Os.names(home).ok()?;
    // A folder that was moved aside counts until its successor is in place.
    let aside =
        |name: &str| name.strip_suffix(".old").filter(|place| !names.iter().any(|n| n == place)).and_then(step_of);
    let steps = names.iter().filter_map(|name| Some((step_of(name).or_else(|| aside(name))?, home.join(name))));
    steps.max_by_key(|(step, _)| *step)
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// Reads one checkpoint. Every file must have the size and the checksum that the manifest says.
pub fn load(folder: &Path) -> Result<Checkpoint, RunError> {
    load_files(folder, &[MODEL, STATE])
}

fn load_files(folder: &Path, names: &[&str]) -> Result<Checkpoint, RunError> {
    read(folder, names).map_err(|problem| {
        let help = format!("remove {} to go on from the checkpoint before it, or to start again", folder.display());
        RunError::from(if problem.help.is_none() { problem.help(help) } else { problem })
    })
}

fn read(folder: &Path, names: &[&str]) -> Result<Checkpoint, Problem> {
    let manifest_path = folder.join(MANIFEST);
    let text = read_file(&manifest_path)?;
    let manifest = Manifest::from_json(&text).map_err(|why| damaged(&manifest_path, &why))?;
    let (mut tensors, mut files) = (BTreeMap::new(), Vec::new());
    for name in names {
        let path = folder.join(name);
        let Some(facts) = manifest.files.get(*name) else {
            return Err(damaged(&manifest_path, &format!("does not name {name}")));
        };
        let unread = |error: io::Error| unreadable(&path, &error);
        let mut file = File::open(&path).map_err(unread)?;
        let n_bytes = file.metadata().map_err(unread)?.len();
        if n_bytes != facts.bytes {
            let why = format!("has {n_bytes} bytes, and {} were written: it is cut off or not its own", facts.bytes);
            return Err(damaged(&path, &why).byte(n_bytes));
        }
        if format::sha256_of(&mut file).map_err(unread)? != facts.sha256 {
            return Err(damaged(&path, "does not have its checksum: some of its bytes have changed"));
        }
        format::read_index(&mut file, n_bytes, files.len(), &mut tensors).map_err(|why| damaged(&path, &why))?;
        files.push((path, file));
    }
    let Manifest { step, seed, recipe, tool, .. } = manifest;
    Ok(Checkpoint { folder: folder.to_path_buf(), step, seed, recipe, tool, tensors, files })
}

fn read_file(path: &Path) -> Result<Vec<u8>, Problem> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::NotFound => damaged(path, "is missing"),
        _ => Problem { code: DAMAGED, ..Problem::reading(path, error) },
    }
}

fn damaged(path: &Path, why: &str) -> Problem {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Problem::new(DAMAGED, format!("the checkpoint is damaged: {name} {why}")).at(path)
}

impl Checkpoint {
    /// The tensors, by name: dtype and shape.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, DType, &[u64])> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored.dtype, stored.shape.as_slice()))
    }

    /// Copies a tensor out. It must be there, with this dtype and shape.
    pub fn read(&self, name: &str, dtype: DType, shape: &[u64], into: &mut [u8]) -> Result<(), RunError> {
        let wrong = |message: String| {
            let help = "the checkpoint is of another model: train again, or use the recipe that it was made with";
            RunError::from(Problem::new(DAMAGED, message).at(&self.folder).help(help))
        };
        let Some(stored) = self.tensors.get(name) else {
            return Err(wrong(format!("the checkpoint has no `{name}`")));
        };
        if stored.dtype != dtype || stored.shape != shape {
            let (was, wanted) = (format::shown(stored.dtype, &stored.shape), format::shown(dtype, shape));
            return Err(wrong(format!("`{name}` is {was} in the checkpoint and {wanted} in the model")));
        }
        let n_bytes = stored.range.end - stored.range.start;
        if n_bytes != into.len() as u64 {
            return Err(wrong(format!("`{name}` has {n_bytes} bytes in the checkpoint and {} in memory", into.len())));
        }
        let (path, file) = &self.files[stored.file];
        let mut file = file;
        let read = file.seek(io::SeekFrom::Start(stored.range.start)).and_then(|_| file.read_exact(into));
        read.map_err(|error| RunError::from(unreadable(path, &error)))
    }
}

#[cfg(test)]
mod tests;
