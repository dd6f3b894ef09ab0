//! Tokenizers in the format of Hugging Face, read, learned and run by the `tokenizers` crate.

use super::older::decode_base64;
use super::sentencepiece::check_charsmap;
use crate::problem::{Problem, TOKENIZER};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

#[derive(Clone, Debug)]
pub(super) struct Pieces {
    inner: tokenizers::Tokenizer,
    /// The tokenizer as it was read or learned.
    json: String,
    vocab: u32,
    end_of_text: Option<u32>,
    /// A text may be cut between a visible character and a line break, and encoded in parts.
    is_cuttable: bool,
}

const END_OF_TEXT: &str = "<|endoftext|>";

/// Tokens that end a document, in the order in which they are looked for.
const ENDS: [&str; 5] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]"];

/// Long texts are encoded in parts of about this many bytes, side by side; 256 KiB keeps all cores busy from a few MB on.
const PART_BYTES: usize = 1 << 18;

impl Pieces {
    pub(super) fn from_json(value: &Value) -> Result<Pieces, Problem> {
        check(value)?;
        let text = value.to_string();
        let read = || tokenizers::Tokenizer::from_bytes(&text).map_err(|error| error.to_string());
        let mut inner: tokenizers::Tokenizer = caught(read).map_err(|error| {
            Problem::new(TOKENIZER, format!("the tokenizer cannot be read: {error}"))
                .help("the format is that of a Hugging Face tokenizer.json")
        })?;
        // How long a row is, the recipe says.
        inner.with_truncation(None).map_err(|error| Problem::new(TOKENIZER, error.to_string()))?.with_padding(None);
        let vocab = vocab_of(value)?;
        for token in value.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
            let (content, id) = (token.get("content").and_then(Value::as_str), token.get("id").and_then(Value::as_u64));
            let found = content.and_then(|content| inner.token_to_id(content)).map(u64::from);
            if let (Some(content), Some(found), Some(id)) = (content, found, id)
                && found != id
            {
                let message =
                    format!("the added token `{content}` has the id {id}, and its vocabulary gives it {found}");
                return Err(Problem::new(TOKENIZER, message).help("do the files belong together?"));
            }
        }
        let end_of_text = ENDS.iter().find_map(|name| inner.token_to_id(name));
        Ok(Pieces { inner, json: text, vocab, end_of_text, is_cuttable: is_cuttable(value) })
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The ids of a text, each with the bytes of the text that it stands for.
    pub(super) fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, Problem> {
        let encoding = caught(|| self.inner.encode(text, false).map_err(|error| error.to_string())).map_err(failed)?;
        let places = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(places.map(|(id, (start, end))| (*id, *start..*end)).collect())
    }

    pub(super) fn json(&self) -> &str {
        &self.json
    }

    pub(super) fn vocab_size(&self) -> u32 {
        self.vocab
    }

    pub(super) fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, Problem> {
        if !self.is_cuttable || text.len() <= PART_BYTES {
            return self.encode_whole(text);
        }
        let parts = cut(text, PART_BYTES);
        let encode = || self.inner.encode_batch_fast(parts, false).map_err(|error| error.to_string());
        let parts = caught(encode).map_err(failed)?;
        Ok(parts.iter().flat_map(|part| part.get_ids()).copied().collect())
    }

    /// With the special tokens in front that the tokenizer's file says, and none behind.
    pub(super) fn encode_begun(&self, text: &str) -> Result<Vec<u32>, Problem> {
        let own = self.encode_whole(text)?;
        let encode = || self.inner.encode_fast(text, true).map_err(|error| error.to_string());
        let mut ids = caught(encode).map_err(failed)?.get_ids().to_vec();
        let n_before = (0..=ids.len().saturating_sub(own.len())).find(|at| ids[*at..].starts_with(&own));
        ids.truncate(n_before.unwrap_or(0) + own.len());
        Ok(ids)
    }

    pub(super) fn has_ids_of(&self, other: &Pieces) -> bool {
        self.json == other.json || self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<u32>, Problem> {
        let encode = || self.inner.encode_fast(text, false).map_err(|error| error.to_string());
        Ok(caught(encode).map_err(failed)?.get_ids().to_vec())
    }

    #[cfg(test)]
    pub(super) fn is_cuttable(&self) -> bool {
        self.is_cuttable
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        // The crate fails for nothing but a broken decoder, which has nothing to say.
        caught(|| self.inner.decode(ids, true).map_err(|error| error.to_string())).unwrap_or_default()
    }
}

fn failed(error: String) -> Problem {
    Problem::new(TOKENIZER, format!("the text cannot be encoded: {error}"))
}

/// The `tokenizers` crate trusts its files: what it panics at is a mistake in one, and not the end of the program.
fn caught<T>(what: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|_| Err("its file contradicts itself".to_string()))
}

/// The largest id that a vocabulary may have: tables are made of that size.
const MOST_IDS: u64 = 1 << 24;

/// Looks for what the crate would follow blindly, before it does.
fn check(value: &Value) -> Result<(), Problem> {
    let wrong = |message: String| Problem::new(TOKENIZER, message);
    let prefix = value.pointer("/model/continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let pairs = value.pointer("/model/merges").and_then(Value::as_array);
    for (nth, pair) in (1..).zip(pairs.into_iter().flatten()) {
        let parts = match pair {
            Value::String(text) => text.split_once(' '),
            pair => pair.get(0).and_then(Value::as_str).zip(pair.get(1).and_then(Value::as_str)),
        };
        let Some((left, right)) = parts else {
            return Err(wrong(format!("merge {nth} (`model.merges`) is not two tokens")));
        };
        // An empty half would give the token that it is made of, again and again.
        if left.is_empty() || !right.starts_with(prefix) || right.len() == prefix.len() {
            return Err(wrong(format!("merge {nth} (`model.merges`), `{left}` and `{right}`, makes nothing new")));
        }
    }
    for part in ["normalizer", "decoder"] {
        let value = value.get(part).unwrap_or(&Value::Null);
        check_normalizer(value)?;
        let growth = growth(value);
        if growth > MOST_GROWTH {
            return Err(wrong(format!("the {part} of the tokenizer makes a text {growth} times as long")));
        }
    }
    Ok(())
}

/// How many times as long a text may become before it is cut into tokens. Published tokenizers write three bytes for a space.
const MOST_GROWTH: u64 = 256;

/// How many times as long the replacements of a normalizer or decoder make a text at most, one after another.
fn growth(value: &Value) -> u64 {
    let parts = ["normalizers", "decoders"].iter().filter_map(|name| value.get(name)?.as_array()).flatten();
    let all = parts.map(growth).fold(1, u64::saturating_mul);
    if value.get("type").and_then(Value::as_str) != Some("Replace") {
        return all;
    }
    let len = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0, |text| text.len() as u64);
    // An expression may match a character, or nothing between two.
    let taken = len(value.pointer("/pattern/String")).max(1);
    all.saturating_mul(len(value.get("content")).div_ceil(taken).max(1))
}

fn check_normalizer(value: &Value) -> Result<(), Problem> {
    if let Some(map) = value.get("precompiled_charsmap").and_then(Value::as_str) {
        let bytes = decode_base64(map).ok_or_else(|| {
            Problem::new(TOKENIZER, "the table of characters (`normalizer.precompiled_charsmap`) is not base64")
        })?;
        check_charsmap(&bytes).map_err(|why| Problem::new(TOKENIZER, format!("the tokenizer {why}")))?;
    }
    let parts = value.get("normalizers").and_then(Value::as_array);
    parts.into_iter().flatten().try_for_each(check_normalizer)
}

/// One more than the largest id.
pub(super) fn vocab_of(value: &Value) -> Result<u32, Problem> {
    let model = value.get("model");
    // A lone vocab.json is the table itself; a Unigram model has a list.
    let table = model.and_then(|model| model.get("vocab")).unwrap_or(value);
    let largest = match table {
        Value::Object(table) => table.values().filter_map(Value::as_u64).max(),
        Value::Array(list) => (list.len() as u64).checked_sub(1),
        _ => None,
    };
    let added = value.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let added = added.filter_map(|token| token.get("id")).filter_map(Value::as_u64).max();
    match largest.max(added) {
        Some(id) if id < MOST_IDS => Ok(id as u32 + 1),
        Some(id) => {
            Err(Problem::new(TOKENIZER, format!("the tokenizer has a token of the id {id}, more than {MOST_IDS}")))
        }
        None => Err(Problem::new(TOKENIZER, "the tokenizer has no vocabulary")
            .help("the format is that of a Hugging Face tokenizer.json")),
    }
}

/// The pattern of GPT-2 ends a piece before a line break that follows a visible character, and looks no further back.
/// (Behind a line break it would not do: white space is cut by what follows it.)
fn is_cuttable(value: &Value) -> bool {
    let before = value.get("pre_tokenizer");
    let has = |key: &str, want: &Value| before.and_then(|p| p.get(key)) == Some(want);
    let no_normalizer = value.get("normalizer").is_none_or(Value::is_null);
    let is_bpe = value.pointer("/model/type").and_then(Value::as_str) == Some("BPE");
    no_normalizer
        && is_bpe
        && has("type", &json!("ByteLevel"))
        && has("use_regex", &json!(true))
        && has("add_prefix_space", &json!(false))
}

/// Parts of at least `size` bytes, cut between a visible character and a line break.
fn cut(text: &str, size: usize) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let bytes = text.as_bytes();
    let mut at = size;
    while at < bytes.len() {
        if bytes[at - 1].is_ascii_graphic() && bytes[at] == b'\n' {
            parts.push(&text[start..at]);
            start = at;
            at += size;
        } else {
            at += 1;
        }
    }
    parts.push(&text[start..]);
    parts
}

type ByteLevelBpe = TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

pub(super) fn learn(texts: &[&str], vocab: u32, special: &[String]) -> Result<Pieces, Problem> {
    let failed = |error: tokenizers::Error| Problem::new(TOKENIZER, format!("no tokenizer can be learned: {error}"));
    let mut tokenizer = ByteLevelBpe::new(BPE::default());
    let byte_level = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab as usize)
        // A pair that is seen once teaches nothing.
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            std::iter::once(END_OF_TEXT)
                .chain(special.iter().map(String::as_str).filter(|token| *token != END_OF_TEXT))
                .map(|token| AddedToken::from(token, true))
                .collect(),
        )
        .build();
    let parts: Vec<&str> = texts.iter().flat_map(|text| cut(text, PART_BYTES)).collect();
    tokenizer.train(&mut trainer, parts.into_iter()).map_err(failed)?;
    let text = tokenizer.to_string(false).map_err(failed)?;
    let mut value: Value = serde_json::from_str(&text)
        .map_err(|error| Problem::new(TOKENIZER, format!("the learned tokenizer is broken: {error}")))?;
    complete_vocab(&mut value, vocab);
    Pieces::from_json(&value)
}

/// Puts the table in order of its ids, and fills it up to the size that was asked for: a small corpus may not have
/// enough pairs to merge, and the size of a model must not depend on that.
fn complete_vocab(value: &mut Value, vocab: u32) {
    if let Some(Value::Object(table)) = value.pointer_mut("/model/vocab") {
        let mut entries: Vec<(String, Value)> = std::mem::take(table).into_iter().collect();
        entries.sort_by_key(|(_, id)| id.as_u64());
        entries.extend((entries.len() as u32..vocab).map(|id| (format!("<|unused-{id}|>"), json!(id))));
        *table = Map::from_iter(entries);
    }
}
