//! Tokenizers in the format of Hugging Face, read, learned and run by the `tokenizers` crate.

use crate::problem::{Problem, TOKENIZER};
use serde_json::{Map, Value, json};
use std::path::Path;
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
    pub(super) fn from_json(text: &str, value: &Value) -> Result<Pieces, Problem> {
        let mut inner: tokenizers::Tokenizer = tokenizers::Tokenizer::from_bytes(text).map_err(|error| {
            Problem::new(TOKENIZER, format!("the tokenizer cannot be read: {error}"))
                .help("the format is that of a Hugging Face tokenizer.json")
        })?;
        // How long a row is, the recipe says.
        inner.with_truncation(None).map_err(|error| Problem::new(TOKENIZER, error.to_string()))?.with_padding(None);
        let vocab = vocab_of(value)?;
        let end_of_text = ENDS.iter().find_map(|name| inner.token_to_id(name));
        Ok(Pieces { inner, json: text.to_string(), vocab, end_of_text, is_cuttable: is_cuttable(value) })
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
        let parts = self.inner.encode_batch_fast(cut(text, PART_BYTES), false).map_err(failed)?;
        Ok(parts.iter().flat_map(|part| part.get_ids()).copied().collect())
    }

    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<u32>, Problem> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    #[cfg(test)]
    pub(super) fn is_cuttable(&self) -> bool {
        self.is_cuttable
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        // The crate fails for nothing but a broken decoder, which loading has ruled out.
        self.inner.decode(ids, true).unwrap_or_default()
    }
}

fn failed(error: tokenizers::Error) -> Problem {
    Problem::new(TOKENIZER, format!("the text cannot be encoded: {error}"))
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
        Some(id) if id < u64::from(u32::MAX) => Ok(id as u32 + 1),
        _ => Err(Problem::new(TOKENIZER, "the tokenizer has no vocabulary")
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

pub(super) fn learn(texts: &[&str], vocab: u32) -> Result<Pieces, Problem> {
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
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let parts: Vec<&str> = texts.iter().flat_map(|text| cut(text, PART_BYTES)).collect();
    tokenizer.train(&mut trainer, parts.into_iter()).map_err(failed)?;
    let text = tokenizer.to_string(false).map_err(failed)?;
    let mut value: Value = serde_json::from_str(&text)
        .map_err(|error| Problem::new(TOKENIZER, format!("the learned tokenizer is broken: {error}")))?;
    complete_vocab(&mut value, vocab);
    Pieces::from_json(&value.to_string(), &value)
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

/// `vocab.json` and `merges.txt` as one `tokenizer.json`: the byte-level encoding of GPT-2, which is what that pair is.
/// The pair does not say which tokens are special, so none is read out of a text.
pub(super) fn join(vocab: &str, merges: &str, vocab_path: &Path, merges_path: &Path) -> Result<String, Problem> {
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
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                   "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                   "vocab": table, "merges": pairs }
    });
    Ok(whole.to_string())
}
