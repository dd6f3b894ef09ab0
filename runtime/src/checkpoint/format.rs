//! The files of a checkpoint: safetensors, written as a stream (the crate would build the whole file in memory first)
//! and read through the `safetensors` crate, and the manifest.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use mdl_graph::DType;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::TensorView;

/// Where a tensor lies.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) file: usize,
    pub(super) dtype: DType,
    pub(super) shape: Vec<u64>,
    pub(super) range: Range<usize>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileFacts {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The layout of the folder; 1.
    format: u32,
    pub(super) tool: String,
    pub(super) step: u64,
    pub(super) seed: u64,
    pub(super) recipe: String,
    pub(super) files: BTreeMap<String, FileFacts>,
}

const FORMAT: u32 = 1;

impl Manifest {
    pub(super) fn new(step: u64, seed: u64, recipe: &str) -> Manifest {
        let tool = format!("mdlc {}", env!("CARGO_PKG_VERSION"));
        Manifest { format: FORMAT, tool, step, seed, recipe: recipe.to_string(), files: BTreeMap::new() }
    }

    fn value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_else(|error| mdl_graph::bug!("a manifest is plain data: {error}"))
    }

    /// The manifest with a checksum of its own as the last field.
    pub(super) fn to_json(&self) -> String {
        let mut value = self.value();
        value["sha256"] = json!(sha256(value.to_string().as_bytes()));
        format!("{value:#}\n")
    }

    pub(super) fn from_json(text: &[u8]) -> Result<Manifest, String> {
        let mut value: Value = serde_json::from_slice(text).map_err(|error| format!("is not JSON: {error}"))?;
        let found = value.as_object_mut().and_then(|fields| fields.remove("sha256"));
        let manifest: Manifest = serde_json::from_value(value).map_err(|error| format!("cannot be read: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("has format {}, and this version of mdlc reads {FORMAT}", manifest.format));
        }
        if found != Some(json!(sha256(manifest.value().to_string().as_bytes()))) {
            return Err("does not have its checksum: some of its bytes have changed".to_string());
        }
        Ok(manifest)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::digest(bytes).as_slice())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn shown(dtype: DType, shape: &[u64]) -> String {
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("{dtype}[{}]", sizes.join(", "))
}

fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

/// Writes a safetensors file; gives its size and checksum.
///
/// Wide elements come first, so that every tensor is aligned; then the order given. `format: pt` is what
/// `transformers` asks of a file that it loads.
pub(super) fn write_tensors(to: &mut dyn Write, tensors: &[TensorView<'_>]) -> io::Result<FileFacts> {
    let mut order: Vec<&TensorView<'_>> = tensors.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size_bytes()));
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in &order {
        let n_bytes = tensor.shape.iter().product::<u64>() * tensor.dtype.size_bytes();
        if n_bytes != tensor.bytes.len() as u64 {
            let (name, shown) = (&tensor.name, shown(tensor.dtype, &tensor.shape));
            mdl_graph::bug!("`{name}` is {shown} and has {} bytes", tensor.bytes.len());
        }
        let start = end;
        end += n_bytes;
        let entry = json!({ "dtype": to_file(tensor.dtype), "shape": tensor.shape, "data_offsets": [start, end] });
        if header.insert(tensor.name.clone(), entry).is_some() {
            mdl_graph::bug!("two tensors are called `{}`", tensor.name);
        }
    }
    let mut header = Value::Object(header).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut to = Hashing { to, sha: Sha256::new(), n_bytes: 0 };
    to.write_all(&(header.len() as u64).to_le_bytes())?;
    to.write_all(header.as_bytes())?;
    for tensor in order {
        to.write_all(tensor.bytes)?;
    }
    Ok(FileFacts { bytes: to.n_bytes, sha256: hex(to.sha.finalize().as_slice()) })
}

/// Adds what a file holds to an index of tensors.
pub(super) fn read_index(bytes: &[u8], file: usize, index: &mut BTreeMap<String, Stored>) -> Result<(), String> {
    let cannot = |error: safetensors::SafeTensorError| format!("is not a safetensors file: {error}");
    let (n_header, _) = SafeTensors::read_metadata(bytes).map_err(cannot)?;
    let tensors = SafeTensors::deserialize(bytes).map_err(cannot)?;
    let data = &bytes[8 + n_header..];
    for (name, view) in tensors.iter() {
        let known = DType::ALL.into_iter().find(|&dtype| to_file(dtype) == view.dtype());
        let Some(dtype) = known else { return Err(format!("holds `{name}` as {}, which is not known", view.dtype())) };
        // Both slices are of `bytes`, so their distance is the place of the tensor.
        let start = 8 + n_header + (view.data().as_ptr().addr() - data.as_ptr().addr());
        let shape = view.shape().iter().map(|&size| size as u64).collect();
        let stored = Stored { file, dtype, shape, range: start..start + view.data().len() };
        if index.insert(name.to_string(), stored).is_some() {
            return Err(format!("holds `{name}`, which another file holds too"));
        }
    }
    Ok(())
}

/// Hashes on the way.
struct Hashing<'a> {
    to: &'a mut dyn Write,
    sha: Sha256,
    n_bytes: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.sha.update(&bytes[..n]);
        self.n_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
