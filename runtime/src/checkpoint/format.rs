//! The files of a checkpoint: safetensors, written as a stream (the crate would build the whole file in memory first)
//! and read a tensor at a time behind the header, and the manifest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use mdl_graph::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
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
    /// Of the file's bytes.
    pub(super) range: Range<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileFacts {
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
pub(crate) fn write_tensors(to: &mut dyn Write, tensors: &[TensorView<'_>]) -> io::Result<FileFacts> {
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

/// The checksum of a whole file, a piece at a time.
pub(super) fn sha256_of(file: &mut File) -> io::Result<String> {
    let mut sha = Sha256::new();
    let mut piece = vec![0; 1 << 18];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(hex(sha.finalize().as_slice())),
            Ok(n) => sha.update(&piece[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Adds what a file of so many bytes holds to an index of tensors. Only its header is read.
pub(super) fn read_index(
    file: &mut File,
    n_bytes: u64,
    number: usize,
    index: &mut BTreeMap<String, Stored>,
) -> Result<(), String> {
    let cannot = |why: String| format!("is not a safetensors file: {why}");
    let mut n_header = [0; 8];
    let mut read = |at: u64, to: &mut [u8]| {
        let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(to));
        read.map_err(|error| cannot(error.to_string()))
    };
    read(0, &mut n_header)?;
    let n_header = u64::from_le_bytes(n_header);
    if n_header > n_bytes.saturating_sub(8) {
        return Err(cannot(format!("its header of {n_header} bytes does not fit")));
    }
    let mut header = vec![0; n_header as usize];
    read(8, &mut header)?;
    // Reading it checks that tensors lie one after another and have the bytes of their shapes.
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| cannot(error.to_string()))?;
    let data = 8 + n_header;
    let mut end = data;
    for (name, info) in header.tensors().into_iter().collect::<BTreeMap<_, _>>() {
        let known = DType::ALL.into_iter().find(|&dtype| to_file(dtype) == info.dtype);
        let Some(dtype) = known else { return Err(format!("holds `{name}` as {}, which is not known", info.dtype)) };
        let shape = info.shape.iter().map(|&size| size as u64).collect();
        let range = data + info.data_offsets.0 as u64..data + info.data_offsets.1 as u64;
        end = end.max(range.end);
        let stored = Stored { file: number, dtype, shape, range };
        if index.insert(name.clone(), stored).is_some() {
            return Err(format!("holds `{name}`, which another file holds too"));
        }
    }
    if end != n_bytes {
        return Err(cannot(format!("its tensors end at byte {end} of {n_bytes}")));
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
