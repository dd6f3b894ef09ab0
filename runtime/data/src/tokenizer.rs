//! Text to token ids and back: characters, bytes, or the pieces of a Hugging Face tokenizer.
//!
//! A tokenizer is plain data in JSON ([`Tokenizer::to_json`]), kept with prepared data and beside checkpoints, so that
//! a trained model can be given a prompt without the corpus that it learned from.

mod chars;
mod files;
mod older;
mod pieces;
mod sentencepiece;

use crate::problem::{Checked, Problem, TOKENIZER};
use crate::source::SourceFile;
use chars::Chars;
use pieces::Pieces;
use serde_json::{Value, json};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub use files::{Extra, files_at};

/// A tokenizer that is ready for use.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    extra: Arc<Extra>,
}

#[derive(Clone, Debug)]
enum Kind {
    Chars(Box<Chars>),
    Bytes,
    Pieces(Box<Pieces>),
}

impl Tokenizer {
    /// One token per character of the texts, in order of code points.
    pub fn chars(texts: &[&str]) -> Tokenizer {
        Tokenizer::plain(Kind::Chars(Box::new(Chars::of(texts))))
    }

    /// One token per byte.
    pub fn bytes() -> Tokenizer {
        Tokenizer::plain(Kind::Bytes)
    }

    /// Learns byte-level pair encoding from texts, with special tokens of the caller's. The same texts in the same order give the
    /// same tokenizer.
    pub fn learn_bpe(texts: &[&str], vocab: u32, special: &[String]) -> Result<Tokenizer, Problem> {
        Ok(Tokenizer::plain(Kind::Pieces(Box::new(pieces::learn(texts, vocab, special)?))))
    }

    fn plain(kind: Kind) -> Tokenizer {
        Tokenizer { kind, extra: Arc::default() }
    }

    /// Reads a tokenizer from its files: those that [`files_at`] finds.
    pub fn from_files(files: &[SourceFile]) -> Result<Tokenizer, Problem> {
        let (value, extra) = files::read(files)?;
        let at = |problem: Problem| match (&problem.path, files.first()) {
            (None, Some(file)) => problem.at(&file.path),
            _ => problem,
        };
        let mut tokenizer = Tokenizer::from_value(&value).map_err(at)?;
        tokenizer.extra = Arc::new(extra);
        Ok(tokenizer)
    }

    /// Reads what [`Tokenizer::to_json`] wrote, or any `tokenizer.json`.
    pub fn from_json(text: &str) -> Result<Tokenizer, Problem> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            Problem::new(TOKENIZER, format!("the tokenizer is not JSON: {error}")).line(error.line() as u64)
        })?;
        Tokenizer::from_value(&value)
    }

    fn from_value(value: &Value) -> Result<Tokenizer, Problem> {
        let kind = match value.get("type").and_then(Value::as_str) {
            Some("chars") => Kind::Chars(Box::new(Chars::from_json(value)?)),
            Some("bytes") => Kind::Bytes,
            Some("pieces") => {
                let part = |name: &str| value.get(name).cloned().unwrap_or_default();
                let extra: Extra = serde_json::from_value(part("extra"))
                    .map_err(|error| Problem::new(TOKENIZER, format!("its special tokens are broken: {error}")))?;
                let pieces = Pieces::from_json(&part("pieces"))?;
                return Ok(Tokenizer { kind: Kind::Pieces(Box::new(pieces)), extra: Arc::new(extra) });
            }
            Some(other) => return Err(Problem::new(TOKENIZER, format!("there is no tokenizer of type `{other}`"))),
            None => Kind::Pieces(Box::new(Pieces::from_json(value)?)),
        };
        Ok(Tokenizer::plain(kind))
    }

    /// The whole tokenizer as JSON; in the format of `tokenizer.json` where that can say it.
    pub fn to_json(&self) -> String {
        match &self.kind {
            Kind::Chars(chars) => chars.to_json(),
            Kind::Bytes => json!({ "type": "bytes" }).to_string(),
            Kind::Pieces(pieces) if *self.extra == Extra::default() => pieces.json().to_string(),
            Kind::Pieces(pieces) => {
                let extra = serde_json::to_string(&*self.extra).unwrap_or_default();
                format!("{{\"type\":\"pieces\",\"extra\":{extra},\"pieces\":{}}}", pieces.json())
            }
        }
    }

    /// Special tokens and the chat template, as far as its files say.
    pub fn extra(&self) -> &Extra {
        &self.extra
    }

    /// The id of a token that the vocabulary has as a whole.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Pieces(pieces) => pieces.id_of(token),
            Kind::Chars(_) | Kind::Bytes => None,
        }
    }

    /// The ids of a text, each with the bytes of the text that it stands for.
    pub fn encode_places(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>, Problem> {
        match &self.kind {
            Kind::Chars(chars) => {
                let places = text.char_indices().map(|(at, c)| at..at + c.len_utf8());
                Ok(chars.encode(text)?.into_iter().zip(places).collect())
            }
            Kind::Bytes => Ok((0..).zip(text.bytes()).map(|(at, byte)| (u32::from(byte), at..at + 1)).collect()),
            Kind::Pieces(pieces) => pieces.encode_places(text),
        }
    }

    /// How many ids there are: all are below this.
    pub fn vocab_size(&self) -> u32 {
        match &self.kind {
            Kind::Chars(chars) => chars.len(),
            Kind::Bytes => 256,
            Kind::Pieces(pieces) => pieces.vocab_size(),
        }
    }

    /// The ids of a text. Fails where the vocabulary lacks a character.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Problem> {
        match &self.kind {
            Kind::Chars(chars) => chars.encode(text),
            Kind::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Kind::Pieces(pieces) => pieces.encode(text),
        }
    }

    /// The ids of a text with what the tokenizer puts in front of one, such as `<s>`: how texts began that a published model has learned from.
    pub fn encode_begun(&self, text: &str) -> Result<Vec<u32>, Problem> {
        match &self.kind {
            Kind::Chars(_) | Kind::Bytes => self.encode(text),
            Kind::Pieces(pieces) => pieces.encode_begun(text),
        }
    }

    /// Whether each id stands for the same as in another tokenizer.
    pub fn has_ids_of(&self, other: &Tokenizer) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Pieces(own), Kind::Pieces(others)) => own.has_ids_of(others),
            (Kind::Chars(own), Kind::Chars(others)) => own.to_json() == others.to_json(),
            (Kind::Bytes, Kind::Bytes) => true,
            _ => false,
        }
    }

    /// The text of ids. Ids beyond the vocabulary give nothing; bytes that are no text give `�`.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.kind {
            Kind::Chars(chars) => chars.decode(ids),
            Kind::Bytes => {
                let bytes: Vec<u8> = ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Kind::Pieces(pieces) => pieces.decode(ids),
        }
    }

    /// How many bytes of text a token stands for.
    pub(crate) fn bytes_of(&self, id: u32) -> u64 {
        match &self.kind {
            Kind::Bytes => 1,
            Kind::Chars(_) | Kind::Pieces(_) => self.decode(&[id]).len() as u64,
        }
    }

    /// What ends a document, where the vocabulary has such a token.
    pub fn end_of_text(&self) -> Option<u32> {
        match &self.kind {
            Kind::Chars(_) | Kind::Bytes => None,
            Kind::Pieces(pieces) => {
                let own = self.extra.eos.as_deref().and_then(|token| pieces.id_of(token));
                own.or_else(|| pieces.end_of_text())
            }
        }
    }

    /// Turns ids into text while they arrive: the caller pushes an id and prints what comes back.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), start: 0, n_sent: 0 }
    }
}

/// Reads the tokenizer of a folder with a published model.
pub fn of_folder(folder: &Path) -> Checked<Tokenizer> {
    let mut files = Vec::new();
    for path in files_at("", folder)? {
        let stored = fs::read(&path).map_err(|error| Problem::reading(&path, &error))?;
        files.push(SourceFile { path, stored, sha256: String::new(), label: None });
    }
    Ok(Tokenizer::from_files(&files)?)
}

/// How many ids a tokenizer has, from its files alone and without building it: for `mdlc check`.
pub fn vocab_of_files(files: &[SourceFile]) -> Result<u32, Problem> {
    let (value, _) = files::read(files)?;
    match value.get("type").and_then(Value::as_str) {
        Some(_) => Ok(Tokenizer::from_value(&value)?.vocab_size()),
        None => pieces::vocab_of(&value).map_err(|problem| match files.first() {
            Some(file) => problem.at(&file.path),
            None => problem,
        }),
    }
}

/// The special tokens and the chat template of a tokenizer, from its files alone.
pub(crate) fn extra_of_files(files: &[SourceFile]) -> Result<Extra, Problem> {
    files::read(files).map(|(_, extra)| extra)
}

/// A size that byte-level pair encoding can have.
pub fn check_bpe_size(vocab: u64) -> Result<u32, Problem> {
    match u32::try_from(vocab) {
        // The bytes, and the token that ends a document, come first.
        Ok(size @ 257..=0x10_0000) => Ok(size),
        _ => Err(Problem::new(TOKENIZER, format!("a byte-level vocabulary cannot have {vocab} tokens"))
            .help("at least 257, the bytes and the end of a text, and at most 1_048_576")),
    }
}

/// Reads a file that holds one tokenizer.
pub fn read(path: &Path) -> Result<Tokenizer, Problem> {
    let text = fs::read_to_string(path).map_err(|error| Problem::reading(path, &error))?;
    Tokenizer::from_json(&text).map_err(|problem| problem.at(path))
}

/// Text out of a stream of ids. A character whose bytes are spread over several tokens is held back until it is whole.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// The ids before this are done with; a few are kept, since a piece may depend on its left neighbour.
    start: usize,
    /// How many bytes of the text from `start` on have been given out.
    n_sent: usize,
}

/// After this many ids the text so far is settled up to the last character.
const SETTLE_AFTER: usize = 32;

impl TextStream<'_> {
    /// Takes one id and gives the text that is certain now, often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.start..]);
        if text.ends_with('\u{fffd}') || text.len() <= self.n_sent || !text.is_char_boundary(self.n_sent) {
            return String::new();
        }
        let new = text[self.n_sent..].to_string();
        self.n_sent = text.len();
        if self.ids.len() - self.start > SETTLE_AFTER {
            self.start = self.ids.len() - 1;
            self.n_sent = self.tokenizer.decode(&self.ids[self.start..]).len();
        }
        new
    }

    /// What was held back, when no more ids come.
    pub fn finish(self) -> String {
        let text = self.tokenizer.decode(&self.ids[self.start..]);
        text.get(self.n_sent..).unwrap_or_default().to_string()
    }
}

#[cfg(test)]
mod tests;
