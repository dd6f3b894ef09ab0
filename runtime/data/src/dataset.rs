//! From a `data` block to data that is ready to train on.
//!
//! Three steps: [`Corpus`] is the files, read and hashed; [`Parsed`] is their examples, cut into parts, with labels
//! numbered; [`Dataset`] has token ids. Each step knows more facts than the one before.

mod checks;
mod corpus;
mod encode;
pub(crate) mod pack;
mod parsed;
mod spell;

use crate::batch::{Batcher, Order};
use crate::cache;
use crate::facts::Facts;
use crate::problem::{Checked, Problem, SPLIT};
use crate::tokenizer::Tokenizer;
use mdl_lang::spec::{Curriculum, DataSpec, Form, Source};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(crate) use corpus::Corpus;
pub use spell::{template_of, template_of_tokenizer};

/// Data that is ready: ids in memory, batches by step.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub facts: Facts,
    pub tokenizer: Option<Tokenizer>,
    pub(crate) form: Form,
    pub(crate) seed: u64,
    pub(crate) order: Option<Box<Curriculum>>,
    pub(crate) parts: Vec<Arc<Part>>,
}

/// One part of the split.
#[derive(Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) content: Content,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    Stream(Ids),
    Rows(TextRows),
    Packed(TextRows, pack::Bins),
    /// Labels are one for each, or none at all, here and of sounds.
    Pictures {
        rows: usize,
        columns: usize,
        channels: usize,
        pixels: Vec<u8>,
        labels: Vec<i32>,
    },
    /// Samples of one sound after another, and where each ends.
    Sounds {
        samples: Vec<f32>,
        ends: Vec<usize>,
        labels: Vec<i32>,
    },
}

/// Rows of ids, one after another.
#[derive(Debug, PartialEq)]
pub(crate) struct TextRows {
    pub(crate) ids: Ids,
    /// Where each row ends in `ids`.
    pub(crate) ends: Vec<u64>,
    /// What of each row is learned: places of ids in the row, in order, and where those of each row end in `spans`. Of rows with
    /// a label there are none.
    pub(crate) spans: Vec<Range<u32>>,
    pub(crate) span_ends: Vec<u64>,
    pub(crate) labels: Option<Vec<i32>>,
}

/// Whether the rows of a block are chats.
pub(crate) fn is_chat(spec: &DataSpec) -> bool {
    spec.all_sources().any(|source| matches!(source, Source::Chat { .. }))
}

impl TextRows {
    pub(crate) fn new(vocab: u64) -> TextRows {
        let (ends, spans, span_ends) = (Vec::new(), Vec::new(), Vec::new());
        TextRows { ids: Ids::new(vocab), ends, spans, span_ends, labels: None }
    }

    /// The places of a row in `ids`.
    pub(crate) fn row(&self, row: usize) -> Range<usize> {
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start as usize..self.ends[row] as usize
    }

    pub(crate) fn spans_of(&self, row: usize) -> &[Range<u32>] {
        let start = if row == 0 { 0 } else { self.span_ends[row - 1] };
        &self.spans[start as usize..self.span_ends[row] as usize]
    }
}

/// Token ids in the smallest type that holds them.
#[derive(Debug, PartialEq)]
pub(crate) enum Ids {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
}

impl Ids {
    pub(crate) fn new(vocab: u64) -> Ids {
        match vocab {
            0..=0x100 => Ids::U8(Vec::new()),
            0x101..=0x1_0000 => Ids::U16(Vec::new()),
            _ => Ids::U32(Vec::new()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Ids::U8(ids) => ids.len(),
            Ids::U16(ids) => ids.len(),
            Ids::U32(ids) => ids.len(),
        }
    }

    /// Appends ids, which are below the size of the vocabulary.
    fn extend(&mut self, more: &[u32]) {
        match self {
            Ids::U8(ids) => ids.extend(more.iter().map(|&id| id as u8)),
            Ids::U16(ids) => ids.extend(more.iter().map(|&id| id as u16)),
            Ids::U32(ids) => ids.extend_from_slice(more),
        }
    }

    fn first(&self) -> Option<u32> {
        match self {
            Ids::U8(ids) => ids.first().map(|&id| u32::from(id)),
            Ids::U16(ids) => ids.first().map(|&id| u32::from(id)),
            Ids::U32(ids) => ids.first().copied(),
        }
    }
}

/// Reads, cuts and encodes the data of a block. With a `cache` folder, the ids are kept there under the hash of all
/// that they depend on, and read back the next time.
pub fn prepare(spec: &DataSpec, base: &Path, cache: Option<&Path>) -> Checked<Dataset> {
    let corpus = Corpus::gather(spec, base)?;
    let mut damaged = None;
    if let Some(cache) = cache {
        match cache::load(cache, corpus.hash(), spec) {
            Ok(Some(dataset)) => return Ok(dataset),
            Ok(None) => {}
            Err(problem) => damaged = Some(problem.message),
        }
    }
    let mut dataset = corpus.parse(spec)?.encode(spec)?;
    if let Some(why) = damaged {
        dataset.facts.notes.push(format!("the prepared data was made again: {why}"));
    }
    if let Some(cache) = cache {
        cache::store(cache, &dataset)?;
    }
    Ok(dataset)
}

impl Dataset {
    /// Batches of one part.
    pub fn batcher(&self, part: &str, batch: usize, order: Order) -> Result<Batcher, Problem> {
        let found = self.parts.iter().find(|candidate| candidate.name == part);
        let Some(part) = found else {
            let names: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
            let message = format!("the data has no part `{part}`");
            return Err(Problem::new(SPLIT, message).help(format!("its parts are {}", names.join(", "))));
        };
        Batcher::new(Arc::clone(part), &self.form, &self.facts.data.fields, batch, order, self.seed)
            .map(|batcher| batcher.easy_first(self.order.as_deref()))
    }
}

#[cfg(test)]
mod chats;
#[cfg(test)]
mod tests;
