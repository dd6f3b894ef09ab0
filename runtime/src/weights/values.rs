//! Values between files and tensors: any type of a file to that of a weight, any order of axes to the one in memory.

use half::{bf16, f16};
use mdl_graph::DType;
use mdl_lang::spec::{FileType, Piece};

use super::loops;
use crate::device::Tensor;

/// Tiles of so many elements to a side, so that both orders of axes stay in the first cache.
const TILE: u64 = 32;

/// Copies what a tensor of a file holds of a weight to its place.
pub(super) fn put(piece: &Piece, bytes: &[u8], tensor: &mut Tensor) -> Result<(), String> {
    let sizes: Vec<u64> = tensor.axes.iter().map(|axis| axis.size).collect();
    let to = tensor.data.bytes_mut();
    match tensor.dtype {
        DType::F32 => {
            let bad = floats(piece, bytes, &sizes, |at, value| {
                to[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
                !value.is_finite()
            })?;
            match bad {
                Some(at) => Err(format!("holds a number that is not finite, element {at}")),
                None => Ok(()),
            }
        }
        DType::I32 => ints(piece, bytes, &sizes, |at, value| {
            let fits = i32::try_from(value);
            to[at * 4..][..4].copy_from_slice(&fits.unwrap_or(0).to_le_bytes());
            fits.is_err()
        })
        .and_then(|bad| match bad {
            Some(at) => Err(format!("holds a number beyond 32 bits, element {at}")),
            None => Ok(()),
        }),
        other => Err(format!("is to become {other}, which no file is read as")),
    }
}

/// Writes a weight over what a tensor of a file holds of it; elements that are the same already keep their bytes.
pub(crate) fn take(piece: &Piece, tensor: &Tensor, bytes: &mut [u8]) -> Result<(), String> {
    let sizes: Vec<u64> = tensor.axes.iter().map(|axis| axis.size).collect();
    let own = tensor.data.bytes();
    let mut result = Ok(());
    let is_float = piece.dtype.is_float();
    if !matches!((tensor.dtype, is_float), (DType::F32, true) | (DType::I32, false)) {
        return Err(format!("is {} and becomes {}", piece.dtype.name(), tensor.dtype));
    }
    each(
        piece,
        &sizes,
        |from| from,
        |to, from| {
            let is_same = match is_float {
                true => float_at(piece.dtype, bytes, from) == f32::from_le_bytes(word(own, to)),
                false => int_at(piece.dtype, bytes, from) == i64::from(i32::from_le_bytes(word(own, to))),
            };
            if !is_same {
                result = put_one(piece.dtype, bytes, from, word(own, to), tensor.dtype);
            }
            result.is_err()
        },
    );
    result
}

/// Writes one element in the type of a file, rounded to the nearest.
fn put_one(to: FileType, bytes: &mut [u8], at: usize, value: [u8; 4], dtype: DType) -> Result<(), String> {
    let mut put = |word: &[u8]| bytes[at * word.len()..][..word.len()].copy_from_slice(word);
    if dtype == DType::F32 {
        let value = f32::from_le_bytes(value);
        match to {
            FileType::F32 => put(&value.to_le_bytes()),
            FileType::F64 => put(&f64::from(value).to_le_bytes()),
            FileType::BF16 => put(&bf16::from_f32(value).to_le_bytes()),
            FileType::F16 if f16::from_f32(value).is_infinite() && value.is_finite() => {
                return Err(format!("would hold {value}, which is beyond F16"));
            }
            FileType::F16 => put(&f16::from_f32(value).to_le_bytes()),
            other => return Err(format!("is {}, which trained weights are not written as", other.name())),
        }
    } else {
        let value = i32::from_le_bytes(value);
        match to {
            FileType::I32 => put(&value.to_le_bytes()),
            FileType::I64 => put(&i64::from(value).to_le_bytes()),
            other => return Err(format!("is {}, which trained states are not written as", other.name())),
        }
    }
    Ok(())
}

/// Whether the weight has these values.
pub(super) fn is_same(piece: &Piece, bytes: &[u8], tensor: &Tensor) -> Result<bool, String> {
    let sizes: Vec<u64> = tensor.axes.iter().map(|axis| axis.size).collect();
    let own = tensor.data.bytes();
    let word = |at: usize| [own[at * 4], own[at * 4 + 1], own[at * 4 + 2], own[at * 4 + 3]];
    let differs = match tensor.dtype {
        DType::F32 => floats(piece, bytes, &sizes, |at, value| f32::from_le_bytes(word(at)) != value)?,
        DType::I32 => ints(piece, bytes, &sizes, |at, value| i64::from(i32::from_le_bytes(word(at))) != value)?,
        other => return Err(format!("is {other}, which no file is compared with")),
    };
    Ok(differs.is_none())
}

/// Gives each number to `see` with its place in the weight; ends with the element of the file for which that is true.
fn floats(
    piece: &Piece,
    bytes: &[u8],
    sizes: &[u64],
    see: impl FnMut(usize, f32) -> bool,
) -> Result<Option<u64>, String> {
    if !piece.dtype.is_float() {
        return Err(format!("is {} and no float", piece.dtype.name()));
    }
    Ok(each(piece, sizes, |at| float_at(piece.dtype, bytes, at), see))
}

fn ints(
    piece: &Piece,
    bytes: &[u8],
    sizes: &[u64],
    see: impl FnMut(usize, i64) -> bool,
) -> Result<Option<u64>, String> {
    if piece.dtype.is_float() {
        return Err(format!("is {} and no integer", piece.dtype.name()));
    }
    Ok(each(piece, sizes, |at| int_at(piece.dtype, bytes, at), see))
}

/// An element of a tensor of floats.
fn float_at(dtype: FileType, bytes: &[u8], at: usize) -> f32 {
    match dtype {
        FileType::F32 => f32::from_le_bytes(word(bytes, at)),
        FileType::BF16 => bf16::from_le_bytes(word(bytes, at)).to_f32(),
        FileType::F16 => f16::from_le_bytes(word(bytes, at)).to_f32(),
        FileType::F64 => f64::from_le_bytes(word(bytes, at)) as f32,
        FileType::F8E5M2 => f16::from_bits(u16::from(bytes[at]) << 8).to_f32(),
        FileType::F8E4M3 => from_e4m3(bytes[at]),
        other => mdl_graph::bug!("{} is no float", other.name()),
    }
}

/// An element of a tensor of integers.
fn int_at(dtype: FileType, bytes: &[u8], at: usize) -> i64 {
    match dtype {
        FileType::Bool | FileType::U8 => i64::from(bytes[at]),
        FileType::I8 => i64::from(bytes[at] as i8),
        FileType::I16 => i64::from(i16::from_le_bytes(word(bytes, at))),
        FileType::U16 => i64::from(u16::from_le_bytes(word(bytes, at))),
        FileType::I32 => i64::from(i32::from_le_bytes(word(bytes, at))),
        FileType::U32 => i64::from(u32::from_le_bytes(word(bytes, at))),
        FileType::I64 => i64::from_le_bytes(word(bytes, at)),
        FileType::U64 => i64::try_from(u64::from_le_bytes(word(bytes, at))).unwrap_or(i64::MAX),
        other => mdl_graph::bug!("{} is no integer", other.name()),
    }
}

fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[at * N..][..N]);
    word
}

/// Eight bits, four of them the exponent, without infinities (Micikevicius et al., 2022, arXiv:2209.05433, table 1).
fn from_e4m3(bits: u8) -> f32 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * fraction * (-9f32).exp2(),
        _ => sign * (8.0 + fraction) * ((exponent - 10) as f32).exp2(),
    }
}

/// Goes through a piece, `see` each element with its place in the weight. Of two axes that lie across each other, a tile at a time.
fn each<T>(
    piece: &Piece,
    sizes: &[u64],
    get: impl Fn(usize) -> T,
    mut see: impl FnMut(usize, T) -> bool,
) -> Option<u64> {
    let (start, mut loops) = loops(piece, sizes);
    let inner = loops.pop().unwrap_or((1, 0, 0));
    // The axis along which the file lies, if it is another one.
    let across = loops.iter().position(|(.., from)| *from == 1).filter(|_| inner.2 != 1);
    let outer = across.map_or((1, 0, 0), |at| loops.remove(at));
    let n_outer: u64 = loops.iter().map(|(count, ..)| *count).product();
    for mut place in 0..n_outer {
        let (mut to, mut from) = (start, piece.first);
        for (count, to_step, from_step) in loops.iter().rev() {
            let at = place % count;
            place /= count;
            to += at * to_step;
            from += at * from_step;
        }
        let (rows, columns) = if across.is_some() { (TILE, TILE) } else { (1, inner.0.max(1)) };
        for row in (0..outer.0).step_by(rows as usize) {
            for column in (0..inner.0).step_by(columns as usize) {
                for i in row..(row + rows).min(outer.0) {
                    for j in column..(column + columns).min(inner.0) {
                        let from = from + i * outer.2 + j * inner.2;
                        let to = to + i * outer.1 + j * inner.1;
                        if see(to as usize, get(from as usize)) {
                            return Some(from);
                        }
                    }
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::from_e4m3;

    #[test]
    fn eight_bits_are_what_the_paper_says() {
        assert_eq!(from_e4m3(0x7e), 448.0);
        assert_eq!(from_e4m3(0x08), (-6f32).exp2());
        assert_eq!(from_e4m3(0x01), (-9f32).exp2());
        assert_eq!(from_e4m3(0xb8), -1.0);
        assert!(from_e4m3(0x7f).is_nan() && from_e4m3(0) == 0.0);
    }
}
