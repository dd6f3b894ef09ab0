//! `.model` files of SentencePiece as one `tokenizer.json`: unigram (T5, ALBERT) and BPE (Llama 2).
//!
//! The file is a protocol buffer; the few fields that matter are read by hand, with every length checked. The field numbers
//! are those of `sentencepiece_model.proto`.

use super::older::{added_token, encode_base64, whole};
use crate::problem::{Problem, TOKENIZER};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// What a piece is: `SentencePiece.Type`.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// Stands for a space.
const BLANK: &str = "▁";

struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// What of a model file matters.
struct Model {
    pieces: Vec<Piece>,
    is_bpe: bool,
    charsmap: Vec<u8>,
    adds_prefix: bool,
    trims: bool,
}

/// The value of a `tokenizer.json` that encodes as the model does.
pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Value, Problem> {
    let wrong = |why: &str| {
        Problem::new(TOKENIZER, format!("{} {why}", path.display()))
            .at(path)
            .help("a `.model` file is one of SentencePiece (unigram or BPE) or of tiktoken")
    };
    let model = parse(bytes).ok_or_else(|| wrong("is no model of SentencePiece, or is cut off"))?;
    let Some(unknown) = model.pieces.iter().position(|piece| piece.kind == UNKNOWN) else {
        return Err(wrong("has no piece for what is unknown"));
    };
    let special = |piece: &Piece| matches!(piece.kind, CONTROL | UNKNOWN | USER_DEFINED);
    let added: Vec<Value> = (0..)
        .zip(&model.pieces)
        .filter(|(_, piece)| special(piece))
        .map(|(id, piece): (u64, _)| added_token(json!(id), &piece.text, piece.kind != USER_DEFINED))
        .collect();
    let bytes_back = model.pieces.iter().any(|piece| piece.kind == BYTE);
    let mut normalizers = Vec::new();
    if !model.charsmap.is_empty() {
        check_charsmap(&model.charsmap).map_err(|why| wrong(&why))?;
        normalizers.push(json!({ "type": "Precompiled", "precompiled_charsmap": encode_base64(&model.charsmap) }));
    }
    if model.trims {
        normalizers.push(json!({ "type": "Strip", "strip_left": true, "strip_right": true }));
        normalizers.push(json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }));
    }
    let blank_to_space = json!({ "type": "Replace", "pattern": { "String": BLANK }, "content": " " });
    let decoder = json!({ "type": "Sequence", "decoders": [
        blank_to_space, { "type": "ByteFallback" }, { "type": "Fuse" },
        { "type": "Strip", "content": " ", "start": u64::from(model.adds_prefix), "stop": 0 },
    ] });
    let parts = if model.is_bpe {
        if model.adds_prefix {
            normalizers.push(json!({ "type": "Prepend", "prepend": BLANK }));
        }
        normalizers.push(json!({ "type": "Replace", "pattern": { "String": " " }, "content": BLANK }));
        let table: Map<String, Value> =
            model.pieces.iter().enumerate().map(|(id, piece)| (piece.text.clone(), json!(id))).collect();
        json!({ "added_tokens": added, "normalizer": { "type": "Sequence", "normalizers": normalizers },
                "decoder": decoder,
                "model": { "type": "BPE", "dropout": null, "unk_token": model.pieces[unknown].text, "fuse_unk": true,
                           "continuing_subword_prefix": null, "end_of_word_suffix": null,
                           "byte_fallback": bytes_back, "ignore_merges": false,
                           "vocab": table, "merges": merges(&model.pieces) } })
    } else {
        let scheme = if model.adds_prefix { "always" } else { "never" };
        let blanks = json!({ "type": "Metaspace", "replacement": BLANK, "prepend_scheme": scheme, "split": true });
        let table: Vec<Value> = model.pieces.iter().map(|piece| json!([piece.text, f64::from(piece.score)])).collect();
        json!({ "added_tokens": added, "normalizer": { "type": "Sequence", "normalizers": normalizers },
                "pre_tokenizer": blanks, "decoder": decoder,
                "model": { "type": "Unigram", "unk_id": unknown, "vocab": table, "byte_fallback": bytes_back } })
    };
    Ok(whole(parts))
}

/// Every way to put a piece together from two others; the pieces of the best scores come first.
fn merges(pieces: &[Piece]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let mut found: Vec<(f32, usize, usize)> = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.kind == NORMAL) {
        let start = found.len();
        for (at, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(left), Some(right)) = (ids.get(left), ids.get(right)) {
                found.push((piece.score, *left, *right));
            }
        }
        found[start..].sort_by_key(|(_, left, right)| (*left, *right));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found.iter().map(|(_, left, right)| json!([pieces[*left].text, pieces[*right].text])).collect()
}

/// The longest text for a character, with the byte that ends it. NFKC has one of 33 bytes.
const MOST_REPLACED: usize = 128;

/// The table of characters is a trie in an array; a reader follows offsets in it blindly, so each is looked at first.
///
/// Layout: the size of the array in bytes, the array of `u32`, the replacement texts.
pub(super) fn check_charsmap(bytes: &[u8]) -> Result<(), String> {
    let broken = || "has a broken table of characters (`precompiled_charsmap`)".to_string();
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let (array, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(broken)?;
    let texts = str::from_utf8(texts).map_err(|_| broken())?;
    if array.len() % 4 != 0 || array.is_empty() {
        return Err(broken());
    }
    let units: Vec<u32> = array.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    // As `spm_precompiled` steps: from a unit at `at` with sign `c` to `at ^ offset ^ c`, for all of the 256 signs.
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    // Nodes are shared, so one is met again from elsewhere; on the way to itself it is met in a circle only.
    const OPEN: u8 = 1;
    const DONE: u8 = 2;
    let mut states = vec![0; units.len()];
    let mut path = vec![(0, offset(units[0]), 1)];
    while let Some((node, base, sign)) = path.pop() {
        if sign == 256 {
            states[node] = DONE;
            continue;
        }
        path.push((node, base, sign + 1));
        let at = base ^ sign;
        // Beyond the array: a lookup of that sign would leave it.
        let Some(&unit) = units.get(at) else { return Err(broken()) };
        if unit & (1 << 31 | 0xff) != sign as u32 || states[at] == DONE {
            continue;
        }
        if states[at] == OPEN {
            return Err("has a table of characters (`precompiled_charsmap`) that leads in a circle".to_string());
        }
        states[at] = OPEN;
        let next = at ^ offset(unit);
        if unit >> 8 & 1 == 1 {
            let text = units.get(next).map(|value| (value & 0x7fff_ffff) as usize);
            let Some(text) = text.filter(|at| *at < texts.len() && texts.is_char_boundary(*at)) else {
                return Err(broken());
            };
            if texts.as_bytes()[text..].iter().take(MOST_REPLACED).all(|byte| *byte != 0) {
                return Err(
                    "has a table of characters (`precompiled_charsmap`) that makes long texts of them".to_string()
                );
            }
        }
        path.push((at, next, 1));
    }
    Ok(())
}

/// `None` where the bytes are no model.
fn parse(bytes: &[u8]) -> Option<Model> {
    let mut model = Model { pieces: Vec::new(), is_bpe: false, charsmap: Vec::new(), adds_prefix: true, trims: true };
    let mut model_type = 1;
    each_field(bytes, |field, value| {
        match (field, value) {
            (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
            (2, Field::Bytes(bytes)) => each_field(bytes, |field, value| {
                if let (3, Field::Number(number)) = (field, value) {
                    model_type = number;
                }
                Some(())
            })?,
            (3, Field::Bytes(bytes)) => each_field(bytes, |field, value| {
                match (field, value) {
                    (2, Field::Bytes(bytes)) => model.charsmap = bytes.to_vec(),
                    (3, Field::Number(number)) => model.adds_prefix = number != 0,
                    (4, Field::Number(number)) => model.trims = number != 0,
                    _ => {}
                }
                Some(())
            })?,
            _ => {}
        }
        Some(())
    })?;
    // Word and character models are no longer published.
    model.is_bpe = match model_type {
        1 => false,
        2 => true,
        _ => return None,
    };
    (!model.pieces.is_empty()).then_some(model)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    each_field(bytes, |field, value| {
        match (field, value) {
            (1, Field::Bytes(bytes)) => piece.text = String::from_utf8(bytes.to_vec()).ok()?,
            (2, Field::Bits(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Number(number)) => piece.kind = number,
            _ => {}
        }
        Some(())
    })?;
    piece.score.is_finite().then_some(piece)
}

enum Field<'a> {
    Number(u64),
    Bits(u32),
    Bytes(&'a [u8]),
}

/// Calls `take` with the number and the value of every field of a message; `None` where the bytes are no message.
fn each_field<'a>(mut rest: &'a [u8], mut take: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut rest)?),
            1 => {
                rest = rest.get(8..)?;
                continue;
            }
            2 => {
                let n = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, left) = rest.split_at_checked(n)?;
                rest = left;
                Field::Bytes(bytes)
            }
            5 => {
                let (bits, left) = rest.split_first_chunk::<4>()?;
                rest = left;
                Field::Bits(u32::from_le_bytes(*bits))
            }
            _ => return None,
        };
        take(key >> 3, value)?;
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
