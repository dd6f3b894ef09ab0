//! NumPy's arrays in files: `.npz`, a zip archive of `.npy`.
//!
//! Read are stored and deflated members of plain little-endian numbers in C order; written are stored ones. What a file says of
//! sizes is compared with what is there before anything is allocated by it. Absent: pickled objects, text, complex numbers.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Crc;
use flate2::read::DeflateDecoder;
use half::f16;
use mdl_data::{Problem, atomic};

use crate::error::RunError;

/// A file of arrays that cannot be read.
const UNREADABLE: &str = "E0507";

/// The element types, as `.npy` writes them after the byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int { bytes: u8, signed: bool },
    Float { bytes: u8 },
}

impl Kind {
    fn parse(descr: &str) -> Option<Kind> {
        let (order, rest) = descr.split_at_checked(1)?;
        let (kind, bytes) = rest.split_at_checked(1)?;
        let bytes: u8 = bytes.parse().ok()?;
        if order == ">" && bytes > 1 || !["<", "|", "=", ">"].contains(&order) {
            return None;
        }
        match (kind, bytes) {
            ("b", 1) => Some(Kind::Bool),
            ("i" | "u", 1 | 2 | 4 | 8) => Some(Kind::Int { bytes, signed: kind == "i" }),
            ("f", 2 | 4 | 8) => Some(Kind::Float { bytes }),
            _ => None,
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Kind::Bool => 1,
            Kind::Int { bytes, .. } | Kind::Float { bytes } => usize::from(bytes),
        }
    }

    fn descr(self) -> String {
        match self {
            Kind::Bool => "|b1".to_string(),
            Kind::Int { bytes: 1, signed } => format!("|{}1", if signed { "i" } else { "u" }),
            Kind::Int { bytes, signed } => format!("<{}{bytes}", if signed { "i" } else { "u" }),
            Kind::Float { bytes } => format!("<f{bytes}"),
        }
    }
}

/// An array, row-major and little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub name: String,
    pub kind: Kind,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Array {
    pub fn f32s(name: &str, shape: Vec<u64>, values: &[f32]) -> Array {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Array { name: name.to_string(), kind: Kind::Float { bytes: 4 }, shape, bytes }
    }

    pub fn i64s(name: &str, shape: Vec<u64>, values: &[i64]) -> Array {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Array { name: name.to_string(), kind: Kind::Int { bytes: 8, signed: true }, shape, bytes }
    }

    /// One of the first axis, as an array that has one.
    pub fn row(&self, row: u64) -> Array {
        let mut shape = self.shape.clone();
        let rows = shape.first().copied().unwrap_or(1).max(1) as usize;
        if let Some(first) = shape.first_mut() {
            *first = 1;
        }
        let size = self.bytes.len() / rows;
        let bytes = self.bytes[size * row as usize..][..size].to_vec();
        Array { name: self.name.clone(), kind: self.kind, shape, bytes }
    }

    pub fn count(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    /// An element of an array of floats or integers as a float.
    pub fn float(&self, at: usize) -> f32 {
        match self.kind {
            Kind::Float { bytes: 2 } => f16::from_le_bytes(self.word(at)).to_f32(),
            Kind::Float { bytes: 4 } => f32::from_le_bytes(self.word(at)),
            Kind::Float { .. } => f64::from_le_bytes(self.word(at)) as f32,
            Kind::Bool | Kind::Int { .. } => self.int(at) as f32,
        }
    }

    /// An element of an array of integers or truth values; of floats, 0 or 1 for whether it is not 0.
    pub fn int(&self, at: usize) -> i64 {
        match self.kind {
            Kind::Bool => i64::from(self.bytes[at] != 0),
            Kind::Int { bytes: 1, signed: true } => i64::from(self.bytes[at] as i8),
            Kind::Int { bytes: 1, signed: false } => i64::from(self.bytes[at]),
            Kind::Int { bytes: 2, signed: true } => i64::from(i16::from_le_bytes(self.word(at))),
            Kind::Int { bytes: 2, signed: false } => i64::from(u16::from_le_bytes(self.word(at))),
            Kind::Int { bytes: 4, signed: true } => i64::from(i32::from_le_bytes(self.word(at))),
            Kind::Int { bytes: 4, signed: false } => i64::from(u32::from_le_bytes(self.word(at))),
            Kind::Int { signed: true, .. } => i64::from_le_bytes(self.word(at)),
            Kind::Int { .. } => i64::try_from(u64::from_le_bytes(self.word(at))).unwrap_or(i64::MAX),
            Kind::Float { .. } => i64::from(self.float(at) != 0.0),
        }
    }

    fn word<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut word = [0; N];
        word.copy_from_slice(&self.bytes[at * N..][..N]);
        word
    }
}

/// Where a member of an archive lies.
struct Member {
    name: String,
    is_deflated: bool,
    packed: u64,
    size: u64,
    at: u64,
}

/// Reads all arrays of a `.npz`.
pub fn read(path: &Path) -> Result<Vec<Array>, RunError> {
    let shown = path.display();
    let wrong = |why: String| RunError::from(Problem::new(UNREADABLE, format!("{shown} {why}")).at(path));
    let mut file = File::open(path).map_err(|error| RunError::from(Problem::reading(path, &error)))?;
    let members = members(&mut file).map_err(|error| wrong(format!("is not an .npz file: {error}")))?;
    let mut arrays = Vec::new();
    for member in members {
        let name = member.name.strip_suffix(".npy").unwrap_or(&member.name).to_string();
        let array =
            read_member(&mut file, &member, &name).map_err(|why| wrong(format!("has `{name}`, which {why}")))?;
        arrays.push(array);
    }
    Ok(arrays)
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |word| u64::from(u16::from_le_bytes([word[0], word[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

/// The directory at the end of a zip archive (PKWARE's APPNOTE 6.3.10, 4.3.12 and 4.3.16).
fn members(file: &mut File) -> io::Result<Vec<Member>> {
    const END: [u8; 4] = *b"PK\x05\x06";
    let n_file = file.metadata()?.len();
    let n_tail = n_file.min(22 + 0xffff);
    let mut tail = vec![0; n_tail as usize];
    file.seek(SeekFrom::Start(n_file - n_tail))?;
    file.read_exact(&mut tail)?;
    let at = (0..tail.len().saturating_sub(21)).rev().find(|at| tail[*at..].starts_with(&END));
    let Some(end) = at.map(|at| &tail[at..]) else { return Err(bad("it has no zip directory")) };
    let (count, size, start) = (u16_at(end, 10), u32_at(end, 12), u32_at(end, 16));
    if start.checked_add(size).is_none_or(|end| end > n_file) {
        return Err(bad("its directory lies outside of it"));
    }
    let mut directory = vec![0; size as usize];
    file.seek(SeekFrom::Start(start))?;
    file.read_exact(&mut directory)?;
    let (mut members, mut at) = (Vec::new(), 0);
    for _ in 0..count {
        let Some(entry) = directory.get(at..).filter(|entry| entry.starts_with(b"PK\x01\x02") && entry.len() >= 46)
        else {
            return Err(bad("its directory is cut off"));
        };
        let (n_name, n_extra) = (u16_at(entry, 28) as usize, u16_at(entry, 30) as usize);
        let Some(name) = entry.get(46..46 + n_name) else { return Err(bad("its directory is cut off")) };
        let mut sizes = [u32_at(entry, 24), u32_at(entry, 20), u32_at(entry, 42)];
        // Large numbers are in an extra field (4.5.3), in this order, those that do not fit only.
        let mut extra = entry.get(46 + n_name..46 + n_name + n_extra).unwrap_or_default();
        while extra.len() >= 4 {
            let (id, n) = (u16_at(extra, 0), u16_at(extra, 2) as usize);
            if id == 1 {
                let mut at = 4;
                for size in sizes.iter_mut().filter(|size| **size == 0xffff_ffff) {
                    *size = u64_at(extra, at);
                    at += 8;
                }
            }
            extra = extra.get(4 + n..).unwrap_or_default();
        }
        let is_deflated = match u16_at(entry, 10) {
            0 => false,
            8 => true,
            _ => return Err(bad("a member is packed in a way that is not read")),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        members.push(Member { name, is_deflated, size: sizes[0], packed: sizes[1], at: sizes[2] });
        at += 46 + n_name + n_extra + u16_at(entry, 32) as usize;
    }
    Ok(members)
}

fn read_member(file: &mut File, member: &Member, name: &str) -> Result<Array, String> {
    let io = |error: io::Error| format!("cannot be read: {error}");
    let mut head = [0; 30];
    file.seek(SeekFrom::Start(member.at)).and_then(|_| file.read_exact(&mut head)).map_err(io)?;
    if !head.starts_with(b"PK\x03\x04") {
        return Err("is not where the directory says".to_string());
    }
    let skip = u16_at(&head, 26) + u16_at(&head, 28);
    file.seek(SeekFrom::Current(skip as i64)).map_err(io)?;
    let packed = file.take(member.packed);
    if member.is_deflated {
        read_npy(&mut DeflateDecoder::new(packed), member.size, name)
    } else {
        read_npy(&mut { packed }, member.size, name)
    }
}

/// One `.npy` of so many bytes (NumPy's NEP 1).
fn read_npy(from: &mut dyn Read, size: u64, name: &str) -> Result<Array, String> {
    let io = |error: io::Error| format!("cannot be read: {error}");
    let mut start = [0; 10];
    from.read_exact(&mut start).map_err(io)?;
    if !start.starts_with(b"\x93NUMPY") {
        return Err("is no .npy array".to_string());
    }
    let mut n_header = u16_at(&start, 8);
    let mut before = 10;
    if start[6] > 1 {
        let mut more = [0; 2];
        from.read_exact(&mut more).map_err(io)?;
        n_header |= u16_at(&more, 0) << 16;
        before = 12;
    }
    if n_header > 0xffff {
        return Err("has a header of more than 64 KiB".to_string());
    }
    let mut header = vec![0; n_header as usize];
    from.read_exact(&mut header).map_err(io)?;
    let header = String::from_utf8_lossy(&header).into_owned();
    let after = |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start_matches([':', ' ']));
    let descr = after("'descr'").and_then(|rest| rest.strip_prefix('\'')).and_then(|rest| rest.split('\'').next());
    let Some(kind) = descr.and_then(Kind::parse) else {
        return Err(format!(
            "holds elements of the type {}; bool, integers and floats of this machine's byte order are read",
            descr.unwrap_or("of an object")
        ));
    };
    if after("'fortran_order'").is_none_or(|rest| rest.starts_with("True")) {
        return Err("lies column by column; save it with `numpy.ascontiguousarray`".to_string());
    }
    let inside = after("'shape'").and_then(|rest| rest.strip_prefix('(')).and_then(|rest| rest.split(')').next());
    let sizes = inside.unwrap_or("?").split(',').map(str::trim).filter(|size| !size.is_empty());
    let Ok(shape) = sizes.map(str::parse::<u64>).collect::<Result<Vec<u64>, _>>() else {
        return Err("has a shape that cannot be read".to_string());
    };
    let n_bytes = shape.iter().try_fold(kind.bytes() as u64, |count, size| count.checked_mul(*size));
    let n_there = size.checked_sub(before + n_header);
    let Some(n_bytes) = n_bytes.filter(|n| Some(*n) == n_there) else {
        return Err("has another number of bytes than its shape".to_string());
    };
    let mut bytes = Vec::new();
    from.take(n_bytes).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 != n_bytes {
        return Err("is cut off".to_string());
    }
    Ok(Array { name: name.to_string(), kind, shape, bytes })
}

/// Writes a `.npz`, whole or not at all.
pub fn write(path: &Path, arrays: &[Array]) -> Result<(), RunError> {
    let doing = || format!("writing {}", path.display());
    let total: u64 = arrays.iter().map(|array| array.bytes.len() as u64 + 512).sum();
    if total > u64::from(u32::MAX) {
        return Err(RunError::failed(doing(), "more than 4 GiB do not fit an .npz file: apply to a smaller batch"));
    }
    atomic::write_atomic(path, |to| write_to(to, arrays)).map_err(|error| RunError::failed(doing(), error.to_string()))
}

fn write_to(to: &mut dyn Write, arrays: &[Array]) -> io::Result<()> {
    let mut directory = Vec::new();
    let mut at = 0u32;
    for array in arrays {
        let name = format!("{}.npy", array.name);
        let sizes: String = array.shape.iter().map(|size| format!("{size}, ")).collect();
        // One size keeps its comma: it is a tuple of Python's.
        let sizes = if array.shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
        let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({sizes}), }}", array.kind.descr());
        while !(10 + header.len() + 1).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut npy = b"\x93NUMPY\x01\x00".to_vec();
        npy.extend((header.len() as u16).to_le_bytes());
        npy.extend(header.as_bytes());
        let mut crc = Crc::new();
        crc.update(&npy);
        crc.update(&array.bytes);
        let size = (npy.len() + array.bytes.len()) as u32;
        // Version, flags (names are UTF-8), stored, no time: the same arrays give the same bytes. 1980-01-01 is day 33.
        let mut facts = Vec::new();
        facts.extend([20, 0, 0, 8, 0, 0, 0, 0, 33, 0]);
        facts.extend(crc.sum().to_le_bytes());
        facts.extend(size.to_le_bytes());
        facts.extend(size.to_le_bytes());
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend([0, 0]);
        to.write_all(b"PK\x03\x04")?;
        to.write_all(&facts)?;
        to.write_all(name.as_bytes())?;
        to.write_all(&npy)?;
        to.write_all(&array.bytes)?;
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&facts);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
        at += (4 + facts.len() + name.len()) as u32 + size;
    }
    to.write_all(&directory)?;
    let count = (arrays.len() as u16).to_le_bytes();
    to.write_all(b"PK\x05\x06\0\0\0\0")?;
    to.write_all(&count)?;
    to.write_all(&count)?;
    to.write_all(&(directory.len() as u32).to_le_bytes())?;
    to.write_all(&at.to_le_bytes())?;
    to.write_all(&[0, 0])
}

#[cfg(test)]
mod tests {
    use super::{Array, Kind, read, write};

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("mdlc-npz-{}-{name}.npz", std::process::id()))
    }

    #[test]
    fn what_is_written_is_read() {
        let arrays = [
            Array::f32s("logits", vec![2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            Array::i64s("ids", vec![4], &[1, -2, 3, 1 << 40]),
            Array::f32s("loss", vec![], &[0.5]),
            Array { name: "mask".into(), kind: Kind::Bool, shape: vec![2, 0], bytes: vec![] },
        ];
        let path = path("round");
        write(&path, &arrays).unwrap();
        assert_eq!(read(&path).unwrap(), arrays);
        let bytes = std::fs::read(&path).unwrap();
        // Cut anywhere, it is refused and nothing panics.
        for n in 0..bytes.len() {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert!(read(&path).is_err(), "{n} of {} bytes", bytes.len());
        }
        // Any byte changed is read or refused.
        for n in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[n] ^= 0x5a;
            std::fs::write(&path, &changed).unwrap();
            let _ = read(&path);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn elements_of_every_kind() {
        let of = |descr: &str| Kind::parse(descr);
        assert_eq!(of("<i8"), Some(Kind::Int { bytes: 8, signed: true }));
        assert_eq!(of("|b1"), Some(Kind::Bool));
        assert_eq!((of(">f4"), of("<c8"), of("O"), of("")), (None, None, None, None));
        let array = Array { name: String::new(), kind: Kind::Float { bytes: 2 }, shape: vec![1], bytes: vec![0, 0x3c] };
        assert_eq!((array.float(0), array.count()), (1.0, 1));
    }
}
