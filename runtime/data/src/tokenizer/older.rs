//! The older files of tokenizers as one `tokenizer.json`: `vocab.json` with `merges.txt`, `vocab.txt`, and `.model` files of
//! tiktoken. (Those of SentencePiece are in `sentencepiece.rs`.)
//!
//! In: the text of the files, as strangers wrote them. Out: the value that the `tokenizers` crate reads, or a problem that names
//! the file and the line.

use crate::problem::{Problem, TOKENIZER};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// `vocab.json` and `merges.txt`: the byte-level encoding of GPT-2, which is what that pair is.
/// The pair does not say which tokens are special, so none is read out of a text.
pub(super) fn pair(
    vocab: &str,
    merges: &str,
    vocab_path: &Path,
    merges_path: &Path,
    prefix_space: bool,
) -> Result<Value, Problem> {
    let table: Map<String, Value> = serde_json::from_str(vocab).map_err(|error| {
        let message = format!("{} is not a table of tokens: {error}", vocab_path.display());
        Problem::new(TOKENIZER, message).at(vocab_path).line(error.line() as u64)
    })?;
    let mut pairs = Vec::new();
    for (line, text) in (1..).zip(merges.lines()) {
        if text.is_empty() || (line == 1 && text.starts_with("#version")) {
            continue;
        }
        let Some((left, right)) = text.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            let message = format!("{} has a line that is not two tokens", merges_path.display());
            return Err(Problem::new(TOKENIZER, message).at(merges_path).line(line));
        };
        for token in [left, right, &format!("{left}{right}")] {
            if !table.contains_key(token) {
                let message = format!("{} has no token `{token}`, and the merges need it", vocab_path.display());
                return Err(Problem::new(TOKENIZER, message)
                    .at(merges_path)
                    .line(line)
                    .help("do the files belong together?"));
            }
        }
        pairs.push(json!([left, right]));
    }
    let before =
        json!({ "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": true });
    Ok(whole(json!({ "pre_tokenizer": before, "decoder": byte_level(), "model": bpe(table, pairs, false) })))
}

/// `vocab.txt`: the WordPiece of BERT, a token a line.
///
/// `lowercase` is what a `tokenizer_config.json` says. Without one the table tells: where no token has a capital letter, a text
/// with one would be unknown through and through, so such a table was made of lower-cased text.
pub(super) fn word_piece(text: &str, path: &Path, lowercase: Option<bool>) -> Result<Value, Problem> {
    let mut table = Map::new();
    for (id, line) in text.lines().enumerate() {
        table.insert(line.trim_end_matches('\r').to_string(), json!(id));
    }
    if !table.contains_key("[UNK]") {
        let message = format!("{} has no token `[UNK]`, which stands for what is unknown", path.display());
        return Err(Problem::new(TOKENIZER, message).at(path).help("the format is that of BERT: a token a line"));
    }
    let is_marker = |token: &str| token.starts_with(['[', '<']) && token.ends_with([']', '>']);
    let has_capital = |token: &String| !is_marker(token) && token.bytes().any(|byte| byte.is_ascii_uppercase());
    let lowercase = lowercase.unwrap_or_else(|| !table.keys().any(has_capital));
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let added: Vec<Value> =
        special.iter().filter_map(|name| table.get(*name).map(|id| added_token(id.clone(), name, true))).collect();
    Ok(whole(json!({
        "added_tokens": added,
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": lowercase },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": table }
    })))
}

/// How tiktoken cuts a text for Llama 3 before it merges bytes.
const TIKTOKEN_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The longest token that is read: those of published tables have 128 bytes at most.
const LONGEST_TOKEN: usize = 512;

/// Whether a `.model` file is one of tiktoken: `AA== 0`.
pub(super) fn is_tiktoken(bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\n').next().and_then(|line| str::from_utf8(line).ok());
    first.and_then(|line| line.split_once(' ')).is_some_and(|(token, rank)| {
        decode_base64(token).is_some_and(|token| !token.is_empty()) && rank.trim().parse::<u32>().is_ok()
    })
}

/// A `.model` of tiktoken: `base64 rank` a line, the rank being the id. What merges into a token follows from the ranks below it.
pub(super) fn tiktoken(text: &str, path: &Path) -> Result<Value, Problem> {
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    let mut tokens: Vec<(Vec<u8>, u32)> = Vec::new();
    for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let wrong = |why: String| {
            Problem::new(TOKENIZER, format!("{} has {why}", path.display()))
                .at(path)
                .line(line)
                .help("a line is a token in base64 and its rank, such as `IGE= 257`")
        };
        let parsed = text.split_once(' ').and_then(|(token, rank)| {
            Some((decode_base64(token)?, rank.trim().parse::<u32>().ok().filter(|rank| *rank < 1 << 24)?))
        });
        let Some((token, rank)) = parsed else { return Err(wrong("a line that is no token and rank".to_string())) };
        if token.is_empty() || token.len() > LONGEST_TOKEN {
            let message = format!("a token of {} bytes, where 1 to {LONGEST_TOKEN} are usual", token.len());
            return Err(wrong(message));
        }
        if ranks.insert(token.clone(), rank).is_some() {
            return Err(wrong("the same token twice".to_string()));
        }
        tokens.push((token, rank));
    }
    tokens.sort_by_key(|(_, rank)| *rank);
    if let Some(window) = tokens.windows(2).find(|window| window[0].1 == window[1].1) {
        let message = format!("{} gives the rank {} to two tokens", path.display(), window[0].1);
        return Err(Problem::new(TOKENIZER, message).at(path));
    }
    let signs = signs_of_bytes();
    let spelled = |bytes: &[u8]| bytes.iter().map(|byte| signs[usize::from(*byte)]).collect::<String>();
    let mut table = Map::new();
    let mut pairs = Vec::new();
    for (token, rank) in &tokens {
        table.insert(spelled(token), json!(rank));
        if let Some(at) = halves(token, *rank, &ranks) {
            pairs.push(json!([spelled(&token[..at]), spelled(&token[at..])]));
        }
    }
    let split =
        json!({ "type": "Split", "pattern": { "Regex": TIKTOKEN_PATTERN }, "behavior": "Isolated", "invert": false });
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    Ok(whole(json!({
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, bytes] },
        "decoder": byte_level(),
        "model": bpe(table, pairs, true)
    })))
}

/// Where the last merge of a token is: merging the pair of the lowest rank again and again, with ranks below its own, leaves two
/// parts. `None` for a byte, and for a token that no merge reaches (it is still found whole).
fn halves(token: &[u8], rank: u32, ranks: &HashMap<Vec<u8>, u32>) -> Option<usize> {
    let mut ends: Vec<usize> = (0..=token.len()).collect();
    while ends.len() > 3 {
        let best = (0..ends.len() - 2)
            .filter_map(|i| ranks.get(&token[ends[i]..ends[i + 2]]).map(|found| (*found, i)))
            .filter(|(found, _)| *found < rank)
            .min()?;
        ends.remove(best.1 + 1);
    }
    (ends.len() == 3).then(|| ends[1])
}

/// The visible sign for each byte, as byte-level tables spell it: printable ones as they are, the others from U+0100 on.
fn signs_of_bytes() -> [char; 256] {
    let is_plain = |byte: usize| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let code = if is_plain(byte) {
            byte as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

fn byte_level() -> Value {
    serde_json::to_value(ByteLevel::new(false, true, true)).unwrap_or_default()
}

fn bpe(table: Map<String, Value>, pairs: Vec<Value>, ignore_merges: bool) -> Value {
    json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": table, "merges": pairs })
}

/// The parts that are given, and what a `tokenizer.json` has besides.
pub(super) fn whole(parts: Value) -> Value {
    let mut whole = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null });
    if let (Value::Object(whole), Value::Object(parts)) = (&mut whole, parts) {
        whole.extend(parts);
    }
    whole
}

/// A row of `added_tokens`.
pub(super) fn added_token(id: Value, content: &str, special: bool) -> Value {
    json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special })
}

/// Standard base64 with padding.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    let (mut bytes, mut bits, mut n_bits) = (Vec::with_capacity(body.len() * 3 / 4), 0u32, 0);
    for sign in body.bytes() {
        let value = match sign {
            b'A'..=b'Z' => sign - b'A',
            b'a'..=b'z' => sign - b'a' + 26,
            b'0'..=b'9' => sign - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    Some(bytes)
}

/// Standard base64 with padding.
pub(super) fn encode_base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let sign = SIGNS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(sign) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_there_and_back() {
        for bytes in [&b""[..], b"a", b"ab", b"abc", &[0, 255, 128, 7]] {
            assert_eq!(decode_base64(&encode_base64(bytes)).unwrap(), bytes);
        }
        assert_eq!(encode_base64(b"Man"), "TWFu");
        assert_eq!(encode_base64(b"Ma"), "TWE=");
        assert_eq!(decode_base64("a"), None);
        assert_eq!(decode_base64("ab*="), None);
    }

    #[test]
    fn bytes_are_spelled_as_gpt_2_does() {
        let signs = signs_of_bytes();
        assert_eq!((signs[b' ' as usize], signs[b'\n' as usize], signs[b'a' as usize]), ('Ġ', 'Ċ', 'a'));
    }
}
