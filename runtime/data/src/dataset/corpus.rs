//! The files of a `data` block: found, read, hashed, and cut into parts.

use super::parsed::Parsed;
use super::{is_chat, spell};
use crate::facts::FileFacts;
use crate::problem::{Checked, MISMATCH, Problem};
use crate::source::{self, Gathered, SourceFile};
use crate::{split, tokenizer};
use mdl_lang::spec::{DataSpec, Share, Tokenizer as TokenizerSpec};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The files of a block, read and hashed.
pub(crate) struct Corpus {
    shared: Gathered,
    own: Vec<Option<Gathered>>,
    tokenizer_files: Vec<SourceFile>,
    template_file: Option<SourceFile>,
    /// Those of the block whose tokenizer this one has.
    lender: Option<Box<Corpus>>,
    hash: String,
}

/// Changes when the meaning of prepared data changes, so that old caches are not found.
const FORMAT: &str = "mdl-data 2";

impl Corpus {
    /// Finds and reads every file that the block names.
    pub(crate) fn gather(spec: &DataSpec, base: &Path) -> Checked<Corpus> {
        let mut problems = Vec::new();
        let mut keep = |result: Checked<Gathered>| match result {
            Ok(gathered) => Some(gathered),
            Err(more) => {
                problems.extend(more);
                None
            }
        };
        let shared = keep(source::gather(&spec.sources, base));
        let own: Vec<Option<Gathered>> = spec
            .split
            .parts
            .iter()
            .map(|part| match &part.share {
                Share::Sources(sources) => keep(source::gather(sources, base)),
                Share::Fraction(_) => None,
            })
            .collect();
        let tokenizer_files = match &spec.tokenizer {
            Some(TokenizerSpec::File { path, span }) => match tokenizer_files(path, base) {
                Ok(files) => files,
                Err(more) => {
                    problems.extend(more.into_iter().map(|problem| problem.span(*span)));
                    Vec::new()
                }
            },
            _ => Vec::new(),
        };
        let template_file = spell::file_of(spec, base).unwrap_or_else(|more| {
            problems.extend(more);
            None
        });
        let lender = match &spec.tokenizer {
            // What is wrong with it, its own block says.
            Some(TokenizerSpec::Of { block }) => Some(Box::new(Corpus::gather(block, base)?)),
            _ => None,
        };
        match shared {
            Some(shared) if problems.is_empty() => {
                let beside = tokenizer_files.iter().chain(&template_file).map(|file| file.sha256.as_str());
                let beside = beside.chain(lender.iter().map(|lender| lender.hash()));
                let hash = hash(spec, &shared, &own, beside);
                Ok(Corpus { shared, own, tokenizer_files, template_file, lender, hash })
            }
            _ => Err(problems),
        }
    }

    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }

    /// Unpacks, parses and cuts.
    pub(crate) fn parse(self, spec: &DataSpec) -> Checked<Parsed> {
        let mut problems = Vec::new();
        let fractions: Vec<(String, f64)> = spec
            .split
            .parts
            .iter()
            .filter_map(|part| match part.share {
                Share::Fraction(fraction) => Some((part.name.clone(), fraction)),
                Share::Sources(_) => None,
            })
            .collect();
        let mut cut = Vec::new();
        if spec.sources.is_empty() != fractions.is_empty() && !spec.split.parts.is_empty() {
            let (message, help) = if spec.sources.is_empty() {
                ("the split gives shares of a source, and the block has none", "add `source = …`")
            } else {
                ("every part of the split has files of its own, so `source` is not used", "take `source` out")
            };
            problems.push(Problem::new(MISMATCH, message).help(help));
        } else if !spec.sources.is_empty() {
            // Without a split all is for training.
            let whole = vec![("train".to_string(), 1.0)];
            let shares = if fractions.is_empty() { &whole } else { &fractions };
            let examples = self.shared.examples();
            match examples.and_then(|all| split::cut(all, shares, spec.split.stratify, spec.seed)) {
                Ok(parts) => cut = parts,
                Err(more) => problems.extend(more),
            }
        }
        let mut own = Vec::new();
        for (part, gathered) in spec.split.parts.iter().zip(&self.own) {
            match gathered.as_ref().map(Gathered::examples) {
                Some(Ok(examples)) => own.push((part.name.clone(), examples)),
                Some(Err(more)) => problems.extend(more),
                None => {}
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        // In the order of the recipe.
        let mut parts = cut;
        parts.append(&mut own);
        let place = |name: &str| spec.split.parts.iter().position(|part| part.name == name);
        parts.sort_by_key(|(name, _)| place(name));
        let gathered = std::iter::once(&self.shared).chain(self.own.iter().flatten());
        let mut files: Vec<FileFacts> = gathered.flat_map(Gathered::files).map(file_facts).collect();
        files.extend(self.tokenizer_files.iter().chain(&self.template_file).map(file_facts));
        if is_chat(spec) {
            let template = spell::template(spec, &self.tokenizer_files, self.template_file.as_ref())?;
            spell::all(&template, &mut parts, &files)?;
        }
        let lender = match (self.lender, &spec.tokenizer) {
            (Some(lender), Some(TokenizerSpec::Of { block })) => Some(Box::new(lender.parse(block)?)),
            _ => None,
        };
        Parsed::new(spec, parts, files, (self.tokenizer_files, lender), self.hash)
    }
}

fn file_facts(file: &SourceFile) -> FileFacts {
    FileFacts { path: file.path.display().to_string(), bytes: file.stored.len() as u64, sha256: file.sha256.clone() }
}

pub(super) fn tokenizer_files(path: &str, base: &Path) -> Checked<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in tokenizer::files_at(path, base)? {
        files.append(&mut source::read_files(&path.to_string_lossy(), base)?);
    }
    Ok(files)
}

/// Hashes what the block says, but for where things are written down, and the content of every file.
fn hash<'a>(
    spec: &DataSpec,
    shared: &Gathered,
    own: &[Option<Gathered>],
    beside: impl Iterator<Item = &'a str>,
) -> String {
    let mut value = serde_json::to_value(spec).unwrap_or_else(|error| panic!("a data block is plain data: {error}"));
    forget_places(&mut value);
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(FORMAT);
    add(&value.to_string());
    for gathered in std::iter::once(shared).chain(own.iter().flatten()) {
        add("files");
        for file in gathered.files() {
            add(&file.sha256);
            file.label.iter().for_each(|label| add(label));
        }
    }
    add("tokenizer");
    beside.for_each(add);
    source::hex(&hasher.finalize())
}

/// Spans and paths do not change what batches hold; the bytes of the files do.
fn forget_places(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for key in ["span", "path", "images", "labels"] {
                fields.shift_remove(key);
            }
            // The endings say how the bytes are read, but a wrong reading fails: they need no place in the hash.
            fields.values_mut().for_each(forget_places);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_places),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
