//! What is known of data before a run: what a batch holds, how much there is, and a hash of all that decides it.

use crate::problem::{BAD_FILE, Checked, Problem};
use mdl_lang::spec::DataFacts;
use serde::{Deserialize, Serialize};
use std::path::Path;

use crate::cache;
use crate::dataset::Corpus;
use mdl_lang::spec::DataSpec;

/// The facts of one `data` block, as `mdlc check` prints them and as the prepared data reports them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// What the checker needs.
    #[serde(flatten)]
    pub data: DataFacts,
    /// The labels in the order of their numbers; empty without labels.
    pub labels: Vec<String>,
    pub parts: Vec<PartFacts>,
    pub files: Vec<FileFacts>,
    /// What was left out or cut, and why.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartFacts {
    pub name: String,
    /// Windows, rows or pictures that one evaluation goes over. `None` until the text has been encoded.
    pub rows: Option<u64>,
    /// `None` until the text has been encoded, and for pictures.
    pub tokens: Option<u64>,
    /// Bytes of the text whose tokens an evaluation counts: what bits per byte divides by.
    pub counted_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileFacts {
    pub path: String,
    /// As stored, so possibly compressed.
    pub bytes: u64,
    pub sha256: String,
}

impl Facts {
    pub fn part(&self, name: &str) -> Option<&PartFacts> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The facts as a small report.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| panic!("facts are plain data: {error}"))
    }

    pub fn from_json(text: &str) -> Result<Facts, Problem> {
        serde_json::from_str(text).map_err(|error| Problem::new(BAD_FILE, format!("the report is broken: {error}")))
    }
}

/// Reads the sources and says what a batch will hold, without encoding anything that takes long.
///
/// Where `cache` has the prepared data, its facts are complete; else the counts of tokens that a learned or loaded
/// tokenizer would give are not known yet.
pub fn describe(spec: &DataSpec, base: &Path, cache: Option<&Path>) -> Checked<Facts> {
    let corpus = Corpus::gather(spec, base)?;
    if let Some(facts) = cache.and_then(|cache| cache::facts(cache, corpus.hash())) {
        return Ok(facts);
    }
    corpus.parse(spec)?.facts(spec)
}
