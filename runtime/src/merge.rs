//! Adapters folded into the folder of the model that they are of, and how far that moves the model's logits.
//!
//! In: what the checker made of it ([`Merged`]). Out: a folder as [`export`] writes it, without adapters. Logits are compared as they are
//! computed by the model with its adapters, and by the new folder.

use std::path::{Path, PathBuf};

use mdl_graph::philox::philox4x32;
use mdl_graph::{DType, Graph, Name};
use mdl_lang::spec::{Origin, Read};
use mdl_lang::stage::{Applied, Merged};

use crate::apply::apply;
use crate::device::{Block, Cpu, Tensor};
use crate::error::RunError;
use crate::export::export;
use crate::npz::Array;
use crate::positions::positions;
use crate::stage::train::Opened;

/// How far what a layer adds without a bias may be from zero: it is what rounding leaves.
const NOTHING: f32 = 1e-6;

/// Writes the folder that a model was loaded from with its adapters folded into it. `base` is the recipe's folder, `out` where stages keep
/// what they have made.
pub fn merge(merged: &Merged, (base, out): (&Path, &Path), to: &Path, cpu: &Cpu) -> Result<(), RunError> {
    let mut outputs = Vec::new();
    for fold in &merged.folds {
        let axes: Vec<Name> = fold.axes.iter().map(|axis| axis.name.clone()).collect();
        if let Some(added) = &fold.added {
            let ty = merged.graph.output(added.as_str()).map(|output| merged.graph.ty(output.node));
            outputs.push((added.to_string(), ty.into_iter().flat_map(|ty| ty.axes.names().cloned()).collect()));
        }
        outputs.push((fold.output.to_string(), axes));
    }
    let applied = Applied {
        graph: merged.graph.clone(),
        reads: merged.reads.clone(),
        inputs: Vec::new(),
        outputs,
        gradients: Vec::new(),
    };
    let results = apply(&applied, &[], base, out, cpu)?.results;
    let found = |name: &Name| results.iter().find(|result| result.name == name.as_str());
    let mut values: Vec<(&Origin, Tensor)> = Vec::new();
    for fold in &merged.folds {
        let added = fold.added.as_ref().and_then(found);
        if let Some(array) = added
            && let Some(at) = (0..array.count()).find(|at| array.float(*at).abs() > NOTHING)
        {
            let why =
                format!("the adapter of `{}` adds {}, and the layer has no bias for that", fold.path, array.float(at));
            return Err(RunError::failed("folding the adapters", why));
        }
        let Some(array) = found(&fold.output) else { mdl_graph::bug!("`{}` is no output", fold.output) };
        if let Some(at) = (0..array.count()).find(|at| !array.float(*at).is_finite()) {
            let why = format!("`{}` would hold {}", fold.path, array.float(at));
            return Err(RunError::failed("folding the adapters", why));
        }
        let mut data = Block::zeroed(array.bytes.len() as u64);
        data.bytes_mut().copy_from_slice(&array.bytes);
        values.push((&fold.origin, Tensor { dtype: DType::F32, axes: fold.axes.clone(), data }));
    }
    let mut opened = Opened::new(base, out);
    for (Read { axes, dtype, origin, .. }, place) in &merged.trained {
        let bytes = axes.iter().map(|axis| axis.size).product::<u64>() * dtype.size_bytes();
        let mut tensor = Tensor { dtype: *dtype, axes: axes.clone(), data: Block::zeroed(bytes) };
        opened.fill(origin, &mut tensor)?;
        values.push((place, tensor));
    }
    let Some(folder) = merged.folds.iter().find_map(|fold| folder_of(&fold.origin, base)) else {
        return Err(RunError::failed("folding the adapters", "its weights come from no folder"));
    };
    export(&folder, to, &values.iter().map(|(origin, tensor)| (*origin, tensor)).collect())
}

fn folder_of(origin: &Origin, base: &Path) -> Option<PathBuf> {
    let Origin::Files { pieces, .. } = origin else { return None };
    base.join(pieces.first()?.file.as_str()).parent().map(PathBuf::from)
}

/// Rows of ids that a graph has a row for, drawn by a seed: what logits are compared on.
pub fn ids(graph: &Graph, name: &str, (rows, length): (u64, u64)) -> Option<Array> {
    let end = positions(graph).get(&Name::from(name))?.end();
    let draw =
        |at: u64| i64::from(philox4x32([0, 0], [at as u32, 0, 0, 0])[0] % end.clamp(1, u64::from(u32::MAX)) as u32);
    let values: Vec<i64> = (0..rows * length).map(draw).collect();
    Some(Array::i64s(name, vec![rows, length], &values))
}

/// The largest difference between two results, and the largest of the first.
pub fn apart(before: &Array, after: &Array) -> (f32, f32) {
    let pairs = (0..before.count()).map(|at| (before.float(at), after.float(at)));
    pairs.fold((0.0, 0.0), |(apart, most): (f32, f32), (a, b)| (apart.max((a - b).abs()), most.max(a.abs())))
}
