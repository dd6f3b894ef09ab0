//! Text to token ids and back: characters, bytes, or the pieces of a Hugging Face tokenizer.
//!
//! A tokenizer is plain data in JSON ([`Tokenizer::to_json`]), kept with prepared data and beside checkpoints, so that
//! a trained model can be given a prompt without the corpus that it learned from.

mod chars;
mod pieces;

use crate::problem::{NO_FILE, Problem, TOKENIZER};
use crate::source::SourceFile;
use chars::Chars;
use pieces::Pieces;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A tokenizer that is ready for use.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
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
        Tokenizer { kind: Kind::Chars(Box::new(Chars::of(texts))) }
    }

    /// One token per byte.
    pub fn bytes() -> Tokenizer {
        Tokenizer { kind: Kind::Bytes }
    }

    /// Learns byte-level pair encoding from texts. The same texts in the same order give the same tokenizer.
    pub fn learn_bpe(texts: &[&str], vocab: u32) -> Result<Tokenizer, Problem> {
        Ok(Tokenizer { kind: Kind::Pieces(Box::new(pieces::learn(texts, vocab)?)) })
    }

    /// Reads a tokenizer from its files: a `tokenizer.json`, or `vocab.json` and `merges.txt`.
    pub fn from_files(files: &[SourceFile]) -> Result<Tokenizer, Problem> {
        match files {
            [file] => Tokenizer::from_json(&file.text()?).map_err(|problem| problem.at(&file.path)),
            [vocab, merges] => {
                let json = pieces::join(&vocab.text()?, &merges.text()?, &vocab.path, &merges.path)?;
                Tokenizer::from_json(&json).map_err(|problem| problem.at(&vocab.path))
            }
            _ => Err(Problem::new(TOKENIZER, format!("a tokenizer has one file or two, not {}", files.len()))),
        }
    }

    /// Reads what [`Tokenizer::to_json`] wrote, or any `tokenizer.json`.
    pub fn from_json(text: &str) -> Result<Tokenizer, Problem> {
        let value: Value = serde_json::from_str(text).map_err(|error| {
            Problem::new(TOKENIZER, format!("the tokenizer is not JSON: {error}")).line(error.line() as u64)
        })?;
        let kind = match value.get("type").and_then(Value::as_str) {
            Some("chars") => Kind::Chars(Box::new(Chars::from_json(&value)?)),
            Some("bytes") => Kind::Bytes,
            Some(other) => return Err(Problem::new(TOKENIZER, format!("there is no tokenizer of type `{other}`"))),
            None => Kind::Pieces(Box::new(Pieces::from_json(text, &value)?)),
        };
        Ok(Tokenizer { kind })
    }

    /// The whole tokenizer as JSON; in the format of `tokenizer.json` where that can say it.
    pub fn to_json(&self) -> String {
        match &self.kind {
            Kind::Chars(chars) => chars.to_json(),
            Kind::Bytes => json!({ "type": "bytes" }).to_string(),
            Kind::Pieces(pieces) => pieces.json().to_string(),
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
            Kind::Pieces(pieces) => pieces.end_of_text(),
        }
    }

    /// Turns ids into text while they arrive: the caller pushes an id and prints what comes back.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), start: 0, n_sent: 0 }
    }
}

/// The files of a tokenizer by path: a file, or a folder with `tokenizer.json`, or with `vocab.json` and `merges.txt`.
pub fn files_at(path: &str, base: &Path) -> Result<Vec<PathBuf>, Problem> {
    let path = base.join(path);
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let whole = path.join("tokenizer.json");
    if whole.is_file() {
        return Ok(vec![whole]);
    }
    let pair = [path.join("vocab.json"), path.join("merges.txt")];
    if pair.iter().all(|file| file.is_file()) {
        return Ok(pair.into());
    }
    let message = format!("{} holds no tokenizer", path.display());
    Err(Problem::new(NO_FILE, message).at(&path).help("it needs tokenizer.json, or vocab.json and merges.txt"))
}

/// How many ids a tokenizer has, from its files alone and without building it: for `mdlc check`.
pub fn vocab_of_files(files: &[SourceFile]) -> Result<u32, Problem> {
    let Some(file) = files.first() else { return Err(Problem::new(TOKENIZER, "the tokenizer has no file")) };
    let value: Value = serde_json::from_str(&file.text()?).map_err(|error| {
        let message = format!("{} is not JSON: {error}", file.path.display());
        Problem::new(TOKENIZER, message).at(&file.path).line(error.line() as u64)
    })?;
    match value.get("type").and_then(Value::as_str) {
        Some(_) => Ok(Tokenizer::from_json(&file.text()?)?.vocab_size()),
        None => pieces::vocab_of(&value).map_err(|problem| problem.at(&file.path)),
    }
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
