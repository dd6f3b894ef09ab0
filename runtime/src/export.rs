//! A Hugging Face folder written back: the same files, names, types, shards and index, with the weights that a stage has trained.
//!
//! Every file of weights is copied tensor by tensor, and only the elements that a weight has another value for are written anew: so what
//! was not touched is the same bytes, whatever type the file keeps it in. All other files (tokenizer, configuration, model card) are
//! copied as they are. The folder appears whole or not at all.
//!
//! Adapters are written as PEFT keeps them, a folder of their own beside the model's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mdl_data::atomic;
use mdl_graph::{Axis, DType, Name};
use mdl_lang::check::Saved;
use mdl_lang::spec::{Origin, Piece, Program, StageKind, StateKind, TrainSpec};

use crate::checkpoint::{self, Checkpoint, TensorView};
use crate::device::{Block, Tensor};
use crate::error::RunError;
use crate::stage::train::Opened;
use crate::weights::{self, read_header};

/// Weights in the formats of other tools, which would be those from before.
const OTHER_WEIGHTS: [&str; 9] = ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "safetensors"];

/// What is written in the place of what a folder holds: where it lies there, and what it is now.
pub type Changed<'a> = Vec<(&'a Origin, &'a Tensor)>;

/// Writes the folder `from` with changed weights as `to`, which must not be there yet.
pub fn export(from: &Path, to: &Path, changed: &Changed<'_>) -> Result<(), RunError> {
    let doing = || format!("exporting to {}", to.display());
    if to.exists() {
        return Err(RunError::failed(doing(), "there is something of that name already: name another folder"));
    }
    let names = weights::weight_files(from)?;
    let mut pieces: BTreeMap<Name, Vec<(&Piece, &Tensor)>> = BTreeMap::new();
    for (origin, tensor) in changed {
        let Origin::Files { pieces: own, same } = origin else { continue };
        for piece in own.iter().chain(same) {
            pieces.entry(piece.tensor.clone()).or_default().push((piece, tensor));
        }
    }
    let mut headers = Vec::new();
    for name in &names {
        headers.push(read_header(&from.join(name))?);
    }
    let failed = |error: io::Error| RunError::failed(doing(), error.to_string());
    let others = other_files(from, &names).map_err(failed)?;
    let mut wrong: Option<String> = None;
    atomic::write_folder(to, |folder| {
        for name in &others {
            let mut file = File::open(from.join(name))?;
            folder.file(name, |to| io::copy(&mut file, to).map(drop))?;
        }
        for (name, header) in names.iter().zip(&headers) {
            let mut file = File::open(from.join(name))?;
            folder.file(name, |to| {
                let mut head = (&mut file).take(header.data);
                io::copy(&mut head, to)?;
                let mut bytes = Vec::new();
                for tensor in &header.tensors {
                    bytes.resize((tensor.bytes.end - tensor.bytes.start) as usize, 0);
                    file.read_exact_at(&mut bytes, tensor.bytes.start)?;
                    for (piece, value) in pieces.get(&Name::from(tensor.name.as_str())).into_iter().flatten() {
                        if let Err(why) = weights::take(piece, value, &mut bytes) {
                            wrong = Some(format!("`{}` {why}", tensor.name));
                            return Err(io::Error::other("a value that does not fit its file"));
                        }
                    }
                    to.write_all(&bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
    .map_err(|error| match &wrong {
        Some(why) => RunError::failed(doing(), why.clone()),
        None => failed(error),
    })
}

/// Writes the folder that a trained stage began with, with the weights of its last checkpoint; averages where it has them.
pub fn export_stage(program: &Program, stage: &str, base: &Path, out: &Path, to: &Path) -> Result<(), RunError> {
    let doing = || format!("exporting `{stage}`");
    let (spec, found) = trained(program, stage, out)?;
    let kept = |name: &Name| kept_as(spec, name);
    let weights = spec.weights.iter().map(|weight| {
        let axes: Vec<Axis> = weight.stacked.iter().chain(&weight.axes).cloned().collect();
        (&weight.path, weight.origin.as_ref(), DType::F32, axes, kept(&weight.path))
    });
    let states = spec
        .states
        .iter()
        .filter(|state| state.kind == StateKind::Layer)
        .map(|state| (&state.name, state.origin.as_ref(), state.dtype, state.axes.clone(), state.name.to_string()));
    let mut all = Vec::new();
    let mut folder: Option<PathBuf> = None;
    for (name, origin, dtype, axes, kept) in weights.chain(states) {
        let Some(origin @ Origin::Files { pieces, .. }) = origin.and_then(|origin| in_files(program, origin)) else {
            let why = format!("`{name}` was in no file that it was loaded from, so there is no place to write it to");
            return Err(RunError::failed(doing(), why));
        };
        let own = pieces.first().and_then(|piece| base.join(piece.file.as_str()).parent().map(PathBuf::from));
        if folder.is_some() && own != folder {
            return Err(RunError::failed(doing(), "its weights come from several folders".to_string()));
        }
        folder = own;
        let shape: Vec<u64> = axes.iter().map(|axis| axis.size).collect();
        let bytes = shape.iter().product::<u64>() * dtype.size_bytes();
        let mut tensor = Tensor { dtype, axes, data: Block::zeroed(bytes) };
        found.read(&kept, dtype, &shape, tensor.data.bytes_mut())?;
        all.push((origin, tensor));
    }
    let Some(folder) = folder else { return Err(RunError::failed(doing(), "it has no weights")) };
    export(&folder, to, &all.iter().map(|(origin, tensor)| (*origin, tensor)).collect())
}

/// A train stage and its last checkpoint.
fn trained<'p>(program: &'p Program, stage: &str, out: &Path) -> Result<(&'p TrainSpec, Checkpoint), RunError> {
    let Some(StageKind::Train(spec)) = program.stage(stage).map(|stage| &stage.kind) else {
        return Err(RunError::Usage(format!("the recipe has no train stage `{stage}`")));
    };
    Ok((spec, checkpoint::of_stage(out, stage, checkpoint::latest)?))
}

/// What a checkpoint has of a weight: its average, where there is one.
fn kept_as(spec: &TrainSpec, name: &Name) -> String {
    let average = format!("average/{name}");
    if spec.states.iter().any(|state| state.name.as_str() == average) { average } else { name.to_string() }
}

/// Writes the adapters of a trained stage as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`.
pub fn export_adapters(
    program: &Program,
    stage: &str,
    saved: &Saved,
    (base, out): (&Path, &Path),
    to: &Path,
) -> Result<(), RunError> {
    let doing = || format!("exporting `{stage}`");
    let (spec, found) = trained(program, stage, out)?;
    let paths: BTreeSet<&Name> = saved.tensors.iter().flat_map(|tensor| &tensor.pieces).map(|(path, _)| path).collect();
    let other = spec.weights.iter().find(|weight| !weight.frozen && !paths.contains(&weight.path));
    if let Some(other) = other {
        let why = format!("it has also trained `{}`, which is no adapter's and would be lost", other.path);
        return Err(RunError::failed(doing(), why));
    }
    let mut values: BTreeMap<&Name, Tensor> = BTreeMap::new();
    let mut opened = Opened::new(base, out);
    for path in paths {
        let own = spec.weights.iter().find(|weight| weight.path == *path);
        // What it has left as it was lies where it comes from.
        let read = || spec.reads.iter().find(|read| read.input.as_str().rsplit(':').next() == Some(path.as_str()));
        let (axes, origin) = match (own, read()) {
            (Some(weight), _) => (weight.stacked.iter().chain(&weight.axes).cloned().collect::<Vec<_>>(), None),
            (None, Some(read)) => (read.axes.clone(), Some(&read.origin)),
            (None, None) => return Err(RunError::failed(doing(), format!("`{path}` is not kept by it"))),
        };
        let shape: Vec<u64> = axes.iter().map(|axis| axis.size).collect();
        let data = Block::zeroed(shape.iter().product::<u64>() * DType::F32.size_bytes());
        let mut tensor = Tensor { dtype: DType::F32, axes, data };
        match origin {
            None => found.read(&kept_as(spec, path), DType::F32, &shape, tensor.data.bytes_mut())?,
            Some(origin) => opened.fill(origin, &mut tensor)?,
        }
        values.insert(path, tensor);
    }
    write_adapters(saved, &|path| values.get(path), to)
}

/// Writes adapters as PEFT keeps them, with the values of their weights by path.
pub fn write_adapters<'t>(
    saved: &Saved,
    values: &dyn Fn(&Name) -> Option<&'t Tensor>,
    to: &Path,
) -> Result<(), RunError> {
    let doing = || format!("exporting to {}", to.display());
    if to.exists() {
        return Err(RunError::failed(doing(), "there is something of that name already: name another folder"));
    }
    let mut all: Vec<Vec<u8>> = Vec::new();
    for tensor in &saved.tensors {
        let mut bytes = vec![0; (tensor.shape.iter().product::<u64>() * DType::F32.size_bytes()) as usize];
        for (path, piece) in &tensor.pieces {
            let Some(value) = values(path) else { mdl_graph::bug!("`{path}` was not read") };
            weights::take(piece, value, &mut bytes)
                .map_err(|why| RunError::failed(doing(), format!("`{}` {why}", tensor.name)))?;
        }
        all.push(bytes);
    }
    let views: Vec<TensorView<'_>> = saved
        .tensors
        .iter()
        .zip(&all)
        .map(|(tensor, bytes)| TensorView {
            name: tensor.name.clone(),
            dtype: DType::F32,
            shape: tensor.shape.clone(),
            bytes,
        })
        .collect();
    let config = serde_json::to_string_pretty(&saved.config).unwrap_or_default();
    atomic::write_folder(to, |folder| {
        folder.file("adapter_config.json", |to| to.write_all(config.as_bytes()))?;
        folder.file("adapter_model.safetensors", |to| checkpoint::write_tensors(to, &views).map(drop))
    })
    .map_err(|error: io::Error| RunError::failed(doing(), error.to_string()))
}

/// Where a weight lay in files before the first stage that trained it.
fn in_files<'p>(program: &'p Program, origin: &'p Origin) -> Option<&'p Origin> {
    let Origin::Stage { stage, tensor } = origin else { return Some(origin) };
    let StageKind::Train(spec) = &program.stage(stage)?.kind else { return None };
    let path = tensor.as_str().strip_prefix("average/").unwrap_or(tensor.as_str());
    let weight = spec.weights.iter().find(|weight| weight.path.as_str() == path).map(|weight| &weight.origin);
    let state = || spec.states.iter().find(|state| state.name.as_str() == path).map(|state| &state.origin);
    in_files(program, weight.or_else(state)?.as_ref()?)
}

/// The files of a folder that are no weights.
fn other_files(folder: &Path, weights: &[String]) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_weights =
            Path::new(&name).extension().is_some_and(|ending| OTHER_WEIGHTS.iter().any(|other| ending == *other));
        // A link of a cache of downloads is the file that it leads to.
        if std::fs::metadata(entry.path())?.is_file() && !is_weights && !weights.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
