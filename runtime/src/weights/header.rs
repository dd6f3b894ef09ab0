//! The header of a safetensors file, and the index of several. Neither is believed: what they say must fit the file.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use mdl_data::Problem;
use mdl_lang::check::FileTensor;
use mdl_lang::spec::FileType;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::UNREADABLE;

/// The most bytes of a header, as the safetensors library has it.
const MOST_HEADER: u64 = 100_000_000;
/// The most tensors of a file: what is kept of one in memory is more than the least that says it.
const MOST_TENSORS: usize = 500_000;
/// The most dimensions of a tensor.
const MOST_DIMS: usize = 16;

/// A header that fits its file.
#[derive(Debug)]
pub struct Header {
    /// In the order in which they lie in the file.
    pub tensors: Vec<FileTensor>,
    /// Where the first of them begins.
    pub data: u64,
}

/// Reads the header of a file, and compares it with the file.
pub fn read_header(path: &Path) -> Result<Header, Problem> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let wrong = |why: String| Problem::new(UNREADABLE, format!("{name} {why}")).at(path);
    let io = |error: std::io::Error| wrong(format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(io)?;
    let n_file = file.metadata().map_err(io)?.len();
    let mut n_header = [0; 8];
    file.read_exact(&mut n_header).map_err(|_| wrong(format!("has {n_file} bytes: too few for a header")))?;
    let n_header = u64::from_le_bytes(n_header);
    if n_header > MOST_HEADER || n_header > n_file.saturating_sub(8) {
        let most = n_file.saturating_sub(8).min(MOST_HEADER);
        return Err(wrong(format!("says that its header has {n_header} bytes, and at most {most} can be")));
    }
    let data = 8 + n_header;
    // The text of the header is never in memory as a whole.
    let mut reader = serde_json::Deserializer::from_reader(BufReader::new(file.take(n_header)));
    let entries = reader.deserialize_map(Entries).and_then(|entries| reader.end().map(|()| entries));
    let entries = entries.map_err(|error| wrong(format!("has a header that cannot be read: {error}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, info) in entries {
        tensors.push(checked(name, &info, data).map_err(&wrong)?);
    }
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    let mut end = data;
    for tensor in &tensors {
        if tensor.bytes.start != end {
            let how = if tensor.bytes.start < end { "overlaps the one before it" } else { "leaves bytes before it" };
            let (name, at) = (&tensor.name, tensor.bytes.start);
            return Err(wrong(format!("has `{name}` begin at byte {at}, which {how}")));
        }
        end = tensor.bytes.end;
    }
    if end != n_file {
        return Err(wrong(format!(
            "has {n_file} bytes, and its tensors end at byte {end}: it is cut off or not whole"
        )));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(wrong(format!("names `{}` twice", twice.name)));
    }
    Ok(Header { tensors, data })
}

/// One entry, its numbers compared with each other.
fn checked(name: String, info: &Info, data: u64) -> Result<FileTensor, String> {
    let Some(dtype) = FileType::from_name(&info.dtype) else {
        return Err(format!("has `{name}` as {}, which is not known", info.dtype));
    };
    let count = info.shape.0.iter().try_fold(dtype.size_bytes(), |count, size| count.checked_mul(*size));
    let (start, end) = info.data_offsets;
    let is_there = data.checked_add(start).zip(data.checked_add(end));
    match (count, end.checked_sub(start), is_there) {
        (Some(count), Some(length), Some((start, end))) if count == length => {
            Ok(FileTensor { name, file: 0, dtype, shape: info.shape.0.clone(), bytes: start..end })
        }
        (None, ..) => Err(format!("has `{name}` with more elements than can be counted")),
        _ => Err(format!("has `{name}` from {start} to {end}, which are not the bytes of its shape")),
    }
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Shape, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(size) = sizes.next_element()? {
                    if shape.len() == MOST_DIMS {
                        return Err(A::Error::custom(format!("a tensor of more than {MOST_DIMS} dimensions")));
                    }
                    shape.push(size);
                }
                Ok(Shape(shape))
            }
        }
        from.deserialize_seq(Sizes)
    }
}

/// All entries but the metadata, also those that are there twice.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, Info)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() == MOST_TENSORS {
                return Err(A::Error::custom(format!("more than {MOST_TENSORS} tensors")));
            }
            let info = map.next_value().map_err(|error| A::Error::custom(format!("`{name}`: {error}")))?;
            entries.push((name, info));
        }
        Ok(entries)
    }
}

/// The files that an index names, in order; each a plain name of a file beside it.
pub(super) fn read_index(path: &Path) -> Result<Vec<String>, Problem> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Map,
    }
    struct Map(BTreeSet<String>);
    impl<'de> Deserialize<'de> for Map {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Map, D::Error> {
            struct Files;
            impl<'de> Visitor<'de> for Files {
                type Value = Map;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object of file names")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map, A::Error> {
                    let mut files = BTreeSet::new();
                    while let Some((_, file)) = map.next_entry::<IgnoredAny, String>()? {
                        files.insert(file);
                    }
                    Ok(Map(files))
                }
            }
            from.deserialize_map(Files)
        }
    }
    let wrong = |why: String| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Problem::new(UNREADABLE, format!("{name} {why}")).at(path)
    };
    let file = File::open(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let index: Result<Index, serde_json::Error> = de::Deserialize::deserialize(
        &mut serde_json::Deserializer::from_reader(BufReader::new(file.take(MOST_HEADER))),
    );
    let Map(files) = index.map_err(|error| wrong(format!("cannot be read: {error}")))?.weight_map;
    if let Some(outside) = files.iter().find(|file| file.contains(['/', '\\']) || file.starts_with('.')) {
        return Err(wrong(format!("names the file `{outside}`, which does not lie beside it")));
    }
    Ok(files.into_iter().collect())
}
