//! From a `data` block to data that is ready to train on.
//!
//! Three steps: [`Corpus`] is the files, read and hashed; [`Parsed`] is their examples, cut into parts, with labels
//! numbered; [`Dataset`] has token ids. Each step knows more facts than the one before.

use crate::batch::{Batcher, Order};
use crate::cache;
use crate::facts::{Facts, FileFacts, PartFacts};
use crate::problem::{BAD_LABEL, Checked, EMPTY, MISMATCH, Problem, SPLIT, WINDOW};
use crate::source::{self, Document, Examples, Gathered, SourceFile};
use crate::split;
use crate::tokenizer::{self, Tokenizer};
use mdl_graph::{Axis, DType};
use mdl_lang::spec::{DataFacts, DataSpec, Field, Form, Share, Source, Tokenizer as TokenizerSpec};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// Data that is ready: ids in memory, batches by step.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub facts: Facts,
    pub tokenizer: Option<Tokenizer>,
    pub(crate) form: Form,
    pub(crate) seed: u64,
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
    Pictures { rows: usize, columns: usize, channels: usize, pixels: Vec<u8>, labels: Vec<i32> },
}

/// Rows of ids, one after another.
#[derive(Debug, PartialEq)]
pub(crate) struct TextRows {
    pub(crate) ids: Ids,
    /// Where each row ends in `ids`.
    pub(crate) ends: Vec<u64>,
    /// How many ids of each row are read and not learned.
    pub(crate) prompts: Vec<u32>,
    pub(crate) labels: Option<Vec<i32>>,
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
    }
}

/// The files of a block, read and hashed.
pub(crate) struct Corpus {
    shared: Gathered,
    own: Vec<Option<Gathered>>,
    tokenizer_files: Vec<SourceFile>,
    hash: String,
}

/// Changes when the meaning of prepared data changes, so that old caches are not found.
const FORMAT: &str = "mdl-data 1";

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
        match shared {
            Some(shared) if problems.is_empty() => {
                let hash = hash(spec, &shared, &own, &tokenizer_files);
                Ok(Corpus { shared, own, tokenizer_files, hash })
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
        files.extend(self.tokenizer_files.iter().map(file_facts));
        Parsed::new(spec, parts, files, self.tokenizer_files, self.hash)
    }
}

fn file_facts(file: &SourceFile) -> FileFacts {
    FileFacts { path: file.path.display().to_string(), bytes: file.stored.len() as u64, sha256: file.sha256.clone() }
}

fn tokenizer_files(path: &str, base: &Path) -> Checked<Vec<SourceFile>> {
    let mut files = Vec::new();
    for path in tokenizer::files_at(path, base)? {
        files.append(&mut source::read_files(&path.to_string_lossy(), base)?);
    }
    Ok(files)
}

/// Hashes what the block says, but for where things are written down, and the content of every file.
fn hash(spec: &DataSpec, shared: &Gathered, own: &[Option<Gathered>], tokenizer: &[SourceFile]) -> String {
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
        gathered.files().for_each(|file| add(&file.sha256));
    }
    add("tokenizer");
    tokenizer.iter().for_each(|file| add(&file.sha256));
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

/// Examples in parts, before they are encoded.
pub(crate) struct Parsed {
    parts: Vec<(String, Examples)>,
    labels: Vec<String>,
    files: Vec<FileFacts>,
    tokenizer_files: Vec<SourceFile>,
    notes: Vec<String>,
    hash: String,
}

impl Parsed {
    fn new(
        spec: &DataSpec,
        mut parts: Vec<(String, Examples)>,
        files: Vec<FileFacts>,
        tokenizer_files: Vec<SourceFile>,
        hash: String,
    ) -> Checked<Parsed> {
        let mut notes = Vec::new();
        for (name, examples) in &mut parts {
            if let Examples::Documents(documents) = examples {
                let n = documents.len();
                documents.retain(|document| !document.text.is_empty());
                if documents.len() < n {
                    notes.push(format!("{} rows of {name} without a text were left out", n - documents.len()));
                }
            }
        }
        let mut problems = Vec::new();
        for (name, examples) in &parts {
            problems.extend(not_empty(name, examples, parts.len()));
            problems.extend(fits(spec, examples));
        }
        problems.dedup();
        let labels = match number_labels(spec, &parts) {
            Ok(labels) => labels,
            Err(problem) => {
                problems.push(problem);
                Vec::new()
            }
        };
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Parsed { parts, labels, files, tokenizer_files, notes, hash })
    }

    /// What is known without encoding. Characters and bytes can be counted; pieces cannot.
    pub(crate) fn facts(self, spec: &DataSpec) -> Checked<Facts> {
        match &spec.tokenizer {
            // These are as quick to encode as to count.
            None | Some(TokenizerSpec::Chars | TokenizerSpec::Bytes) => Ok(self.encode(spec)?.facts),
            Some(TokenizerSpec::Bpe { vocab }) => {
                tokenizer::check_bpe_size(*vocab)?;
                Ok(self.facts_with(spec, *vocab))
            }
            Some(TokenizerSpec::File { span, .. }) => {
                let vocab = tokenizer::vocab_of_files(&self.tokenizer_files).map_err(|p| p.span(*span))?;
                Ok(self.facts_with(spec, u64::from(vocab)))
            }
        }
    }

    fn facts_with(&self, spec: &DataSpec, vocab: u64) -> Facts {
        let parts: Vec<PartFacts> = self
            .parts
            .iter()
            .map(|(name, examples)| PartFacts {
                name: name.clone(),
                rows: rows_before_encoding(examples, &spec.form),
                tokens: None,
                counted_bytes: 0,
            })
            .collect();
        let data = DataFacts {
            vocab,
            classes: self.labels.len() as u64,
            fields: fields(&spec.form, &self.parts, !self.labels.is_empty()),
            rows: parts.iter().map(|part| (part.name.clone(), part.rows.unwrap_or(0))).collect(),
            hash: self.hash.clone(),
        };
        let (labels, files, notes) = (self.labels.clone(), self.files.clone(), self.notes.clone());
        Facts { data, labels, parts, files, notes }
    }

    /// Numbers the tokens.
    pub(crate) fn encode(self, spec: &DataSpec) -> Checked<Dataset> {
        let tokenizer = self.tokenizer(spec)?;
        let vocab = match (&tokenizer, self.parts.first()) {
            (Some(tokenizer), _) => u64::from(tokenizer.vocab_size()),
            (None, Some((_, Examples::Ids { vocab, .. }))) => u64::from(*vocab),
            (None, _) => 0,
        };
        let mut facts = self.facts_with(spec, vocab);
        let mut problems = Vec::new();
        let mut parts = Vec::new();
        for (idx, (name, examples)) in self.parts.into_iter().enumerate() {
            let encoder = Encoder { tokenizer: tokenizer.as_ref(), vocab, labels: &self.labels, form: &spec.form };
            match encoder.part(&name, examples, &self.files, &mut facts.parts[idx], &mut facts.notes) {
                Ok(content) => {
                    // The first part is what is trained on; the others may be shorter than a window.
                    problems.extend(window_fits(&name, &content, &spec.form, idx == 0));
                    parts.push(Arc::new(Part { name, content }));
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        facts.data.rows = facts.parts.iter().map(|part| (part.name.clone(), part.rows.unwrap_or(0))).collect();
        Ok(Dataset { facts, tokenizer, form: spec.form.clone(), seed: spec.seed, parts })
    }

    fn tokenizer(&self, spec: &DataSpec) -> Checked<Option<Tokenizer>> {
        Ok(match &spec.tokenizer {
            None => None,
            Some(TokenizerSpec::Bytes) => Some(Tokenizer::bytes()),
            // Every part, not the training part alone: a character that only the validation text has would else be an
            // error that says nothing about the model. Its row of the embedding is simply not trained.
            Some(TokenizerSpec::Chars) => {
                let mut texts = self.parts.iter().flat_map(|(_, examples)| texts(examples)).collect::<Vec<_>>();
                if matches!(spec.form, Form::Window { .. })
                    && self.parts.iter().any(|(_, examples)| matches!(examples, Examples::Documents(_)))
                {
                    texts.push(SEPARATOR);
                }
                Some(Tokenizer::chars(&texts))
            }
            Some(TokenizerSpec::Bpe { vocab }) => {
                let size = tokenizer::check_bpe_size(*vocab)?;
                let train = self.parts.first().map(|(_, examples)| texts(examples)).unwrap_or_default();
                Some(Tokenizer::learn_bpe(&train, size)?)
            }
            Some(TokenizerSpec::File { span, .. }) => {
                Some(Tokenizer::from_files(&self.tokenizer_files).map_err(|problem| problem.span(*span))?)
            }
        })
    }
}

/// What stands between documents in a running text when the tokenizer has no token for the end of one.
const SEPARATOR: &str = "\n";

fn texts(examples: &Examples) -> Vec<&str> {
    match examples {
        Examples::Text(text) => vec![text],
        Examples::Documents(documents) => documents.iter().map(|document| document.text.as_str()).collect(),
        Examples::Pictures(_) | Examples::Ids { .. } => Vec::new(),
    }
}

fn not_empty(name: &str, examples: &Examples, n_parts: usize) -> Option<Problem> {
    let is_empty = match examples {
        Examples::Text(text) => text.is_empty(),
        Examples::Documents(documents) => documents.is_empty(),
        Examples::Pictures(pictures) => pictures.is_empty(),
        Examples::Ids { ids, .. } => ids.is_empty(),
    };
    is_empty.then(|| {
        if n_parts == 1 {
            Problem::new(EMPTY, "the sources hold no text, no row and no picture")
        } else {
            Problem::new(SPLIT, format!("the part {name} gets nothing"))
                .help("its share is too small for this much data, or its files are empty")
        }
    })
}

/// Whether source, tokenizer and form go together.
fn fits(spec: &DataSpec, examples: &Examples) -> Option<Problem> {
    let wrong = |message: &str, help: &str| Some(Problem::new(MISMATCH, message).help(help));
    let has_tokenizer = spec.tokenizer.is_some();
    match (examples, &spec.form) {
        (Examples::Pictures(_), Form::Window { .. } | Form::Pad { .. }) => {
            wrong("pictures have no positions to cut or fill", "take `window` or `pad` out")
        }
        (Examples::Pictures(_), Form::Rows) if has_tokenizer => {
            wrong("pictures are not tokenized", "take `tokenizer` out")
        }
        (Examples::Pictures(_), Form::Rows) => None,
        (_, Form::Rows) => wrong(
            "a batch of texts needs a length",
            "add `window = t` for pieces of a running text, or `pad = t` for a row per example",
        ),
        (Examples::Ids { .. }, _) if has_tokenizer => {
            wrong("generated tokens are numbers already", "take `tokenizer` out")
        }
        (Examples::Text(_) | Examples::Ids { .. }, Form::Pad { .. }) => {
            wrong("a running text has no rows", "take `window = t` in place of `pad`")
        }
        (Examples::Ids { .. }, Form::Window { .. }) => None,
        (Examples::Text(_) | Examples::Documents(_), _) if !has_tokenizer => wrong(
            "text needs a tokenizer",
            "add `tokenizer = chars()`, `bytes()`, `bpe(vocab: 8_192)` or `tokenizer(\"…\")`",
        ),
        (Examples::Documents(documents), Form::Window { .. }) if documents.iter().any(|d| d.label.is_some()) => wrong(
            "a window runs across documents, so their labels have no place",
            "take `pad = t`, or leave the label out",
        ),
        (Examples::Text(_) | Examples::Documents(_), Form::Window { .. } | Form::Pad { .. }) => None,
    }
}

/// The distinct labels in order: as numbers where all are numbers, else as text.
fn number_labels(spec: &DataSpec, parts: &[(String, Examples)]) -> Result<Vec<String>, Problem> {
    let mut per_part: Vec<Vec<String>> = Vec::new();
    let (mut n_with, mut without): (usize, Option<&Document>) = (0, None);
    for (_, examples) in parts {
        let mut found: Vec<String> = match examples {
            Examples::Documents(documents) => {
                n_with += documents.iter().filter(|document| document.label.is_some()).count();
                without = without.or(documents.iter().find(|document| document.label.is_none()));
                documents.iter().filter_map(|document| document.label.clone()).collect()
            }
            Examples::Pictures(pictures) => pictures.labels.iter().map(u8::to_string).collect(),
            Examples::Text(_) | Examples::Ids { .. } => Vec::new(),
        };
        found.sort_unstable();
        found.dedup();
        per_part.push(found);
    }
    if let (true, Some(document)) = (n_with > 0, without) {
        return Err(Problem::new(BAD_LABEL, "some rows have a label and others have none").line(document.line));
    }
    let mut labels: Vec<String> = per_part.concat();
    labels.sort_unstable();
    labels.dedup();
    if let Some(empty) = labels.iter().find(|label| label.is_empty()) {
        return Err(Problem::new(BAD_LABEL, format!("a label is empty: `{empty}`")));
    }
    if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        labels.sort_by_key(|label| label.parse::<i64>().unwrap_or(0));
    } else if spec.sources.iter().any(|source| matches!(source, Source::Lines { .. })) {
        let wrong = labels.iter().find(|label| label.parse::<i64>().is_err()).cloned().unwrap_or_default();
        let message = format!("`{wrong}` is not the number of a label");
        return Err(Problem::new(BAD_LABEL, message).help("each line is `label sentence`, the label an integer"));
    }
    if let Some(trained) = per_part.first() {
        for ((name, _), found) in parts.iter().zip(&per_part).skip(1) {
            if let Some(label) = found.iter().find(|label| !trained.contains(label)) {
                let (first, message) = (&parts[0].0, format!("the label `{label}` is in {name}"));
                return Err(Problem::new(
                    BAD_LABEL,
                    format!("{message} and not in {first}, where it would be learned"),
                )
                .help("`stratify: label` in the split gives each part its share of every label"));
            }
        }
    }
    Ok(labels)
}

fn fields(form: &Form, parts: &[(String, Examples)], has_labels: bool) -> Vec<Field> {
    let field = |name: &str, dtype: DType, axes: Vec<Axis>| Field { name: name.to_string(), dtype, axes };
    let mut fields = Vec::new();
    match (form, parts.first()) {
        (Form::Window { axis } | Form::Pad { axis }, _) => {
            for name in ["ids", "next"] {
                fields.push(field(name, DType::I32, vec![axis.clone()]));
            }
            fields.push(field("mask", DType::Bool, vec![axis.clone()]));
        }
        (Form::Rows, Some((_, Examples::Pictures(pictures)))) => {
            let axes = [("row", pictures.rows), ("column", pictures.columns), ("channel", pictures.channels)];
            fields.push(field("image", DType::F32, axes.map(|(name, size)| Axis::new(name, size as u64)).into()));
        }
        (Form::Rows, _) => {}
    }
    if has_labels {
        fields.push(field("label", DType::I32, Vec::new()));
    }
    fields
}

fn rows_before_encoding(examples: &Examples, form: &Form) -> Option<u64> {
    match (examples, form) {
        (Examples::Pictures(pictures), _) => Some(pictures.len() as u64),
        (Examples::Documents(documents), Form::Pad { .. }) => Some(documents.len() as u64),
        _ => None,
    }
}

fn window_fits(name: &str, content: &Content, form: &Form, is_first: bool) -> Option<Problem> {
    let (Form::Window { axis }, Content::Stream(ids)) = (form, content) else { return None };
    // Each token of a window has a next one; an evaluation gets by with a part of a window.
    let needed = if is_first { axis.size + 1 } else { 2 };
    let n = ids.len() as u64;
    (n < needed).then(|| {
        let message = format!("a window of {} needs {needed} tokens, and {name} has {n}", axis.size);
        Problem::new(WINDOW, message).help("take a shorter window, more text, or a larger share for this part")
    })
}

struct Encoder<'a> {
    tokenizer: Option<&'a Tokenizer>,
    vocab: u64,
    labels: &'a [String],
    form: &'a Form,
}

impl Encoder<'_> {
    fn part(
        &self,
        name: &str,
        examples: Examples,
        files: &[FileFacts],
        facts: &mut PartFacts,
        notes: &mut Vec<String>,
    ) -> Result<Content, Problem> {
        let content = match (examples, self.form) {
            (Examples::Pictures(pictures), _) => {
                let number = |label: &u8| self.number(&label.to_string());
                let labels = pictures.labels.iter().map(number).collect();
                let (rows, columns, channels) = (pictures.rows, pictures.columns, pictures.channels);
                Content::Pictures { rows, columns, channels, pixels: pictures.pixels, labels }
            }
            (Examples::Ids { ids: all, .. }, _) => {
                let mut ids = Ids::new(self.vocab);
                ids.extend(&all);
                Content::Stream(ids)
            }
            (Examples::Text(text), _) => {
                let mut ids = Ids::new(self.vocab);
                ids.extend(&self.encode(&text, None, files)?);
                facts.counted_bytes = (text.len() as u64).saturating_sub(self.first_bytes(&ids));
                Content::Stream(ids)
            }
            (Examples::Documents(documents), Form::Window { .. }) => {
                let mut ids = Ids::new(self.vocab);
                let mut n_bytes = 0;
                for document in &documents {
                    ids.extend(&self.encode(&document.text, Some(document), files)?);
                    n_bytes += document.text.len() as u64;
                    if let Some(end) = self.tokenizer.and_then(Tokenizer::end_of_text) {
                        ids.extend(&[end]);
                    } else if !document.text.ends_with(SEPARATOR) {
                        ids.extend(&self.encode(SEPARATOR, None, files)?);
                        n_bytes += 1;
                    }
                }
                facts.counted_bytes = n_bytes.saturating_sub(self.first_bytes(&ids));
                Content::Stream(ids)
            }
            (Examples::Documents(documents), Form::Pad { axis }) => {
                let (rows, n_bytes) = self.rows(&documents, files)?;
                facts.counted_bytes = n_bytes;
                // The last token of an unlabelled row is only ever a `next`.
                let room = axis.size + u64::from(rows.labels.is_none());
                let starts = std::iter::once(&0).chain(&rows.ends);
                let n_cut = starts.zip(&rows.ends).filter(|(start, end)| *end - *start > room).count();
                if n_cut > 0 {
                    let n = rows.ends.len();
                    notes.push(format!(
                        "{n_cut} of {n} rows of {name} are longer than {} tokens and were cut",
                        axis.size
                    ));
                }
                Content::Rows(rows)
            }
            (Examples::Documents(_), Form::Rows) => {
                return Err(Problem::new(MISMATCH, "a batch of texts needs a length"));
            }
        };
        facts.tokens = match &content {
            Content::Stream(ids) => Some(ids.len() as u64),
            Content::Rows(rows) => Some(rows.ids.len() as u64),
            Content::Pictures { .. } => None,
        };
        facts.rows = Some(content.n_in_order(self.form));
        Ok(content)
    }

    fn rows(&self, documents: &[Document], files: &[FileFacts]) -> Result<(TextRows, u64), Problem> {
        let mut rows = TextRows { ids: Ids::new(self.vocab), ends: Vec::new(), prompts: Vec::new(), labels: None };
        let mut labels = Vec::new();
        let mut n_bytes = 0;
        for document in documents {
            let (prompt, rest) = document.text.split_at(document.prompt_bytes);
            let prompt = self.encode(prompt, Some(document), files)?;
            let rest = self.encode(rest, Some(document), files)?;
            rows.prompts.push(prompt.len() as u32);
            rows.ids.extend(&prompt);
            rows.ids.extend(&rest);
            n_bytes += (document.text.len() - document.prompt_bytes) as u64;
            match &document.label {
                Some(label) => labels.push(self.number(label)),
                // A model that writes rows must learn where they end.
                None => rows.ids.extend(self.tokenizer.and_then(Tokenizer::end_of_text).as_slice()),
            }
            rows.ends.push(rows.ids.len() as u64);
        }
        rows.labels = (!labels.is_empty()).then_some(labels);
        Ok((rows, n_bytes))
    }

    fn encode(&self, text: &str, document: Option<&Document>, files: &[FileFacts]) -> Result<Vec<u32>, Problem> {
        let Some(tokenizer) = self.tokenizer else { return Err(Problem::new(MISMATCH, "text needs a tokenizer")) };
        tokenizer.encode(text).map_err(|problem| match document {
            Some(document) => match files.get(document.file) {
                Some(file) => problem.at(Path::new(&file.path)).line(document.line),
                None => problem.line(document.line),
            },
            None => problem,
        })
    }

    fn number(&self, label: &str) -> i32 {
        self.labels.iter().position(|known| known == label).unwrap_or(0) as i32
    }

    fn first_bytes(&self, ids: &Ids) -> u64 {
        let first = ids.first().zip(self.tokenizer);
        first.map_or(0, |(id, tokenizer)| tokenizer.decode(&[id]).len() as u64)
    }
}

#[cfg(test)]
mod tests;
