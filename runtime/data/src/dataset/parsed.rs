//! Examples in parts, with labels numbered: what is known of data before it is encoded, and the tokenizer that encodes it.

use super::checks::{alike, fits, not_empty, number_labels, window_fits};
use super::encode::{Encoder, SEPARATOR, note_of_cut};
use super::{Content, Dataset, Part, is_chat};
use crate::batch::n_cut;
use crate::chat::Template;
use crate::facts::{Facts, FileFacts, PartFacts};
use crate::problem::Checked;
use crate::source::{Document, Examples, SourceFile};
use crate::tokenizer::{self, Tokenizer};
use mdl_graph::{Axis, DType};
use mdl_lang::spec::{
    DataFacts, DataSpec, Field, Form, Long, Source, Template as TemplateSpec, Tokenizer as TokenizerSpec,
};
use std::sync::Arc;

/// Examples in parts, before they are encoded.
pub(crate) struct Parsed {
    parts: Vec<(String, Examples)>,
    labels: Vec<String>,
    files: Vec<FileFacts>,
    tokenizer_files: Vec<SourceFile>,
    /// The block whose tokenizer this one has.
    lender: Option<Box<Parsed>>,
    notes: Vec<String>,
    hash: String,
}

impl Parsed {
    pub(super) fn new(
        spec: &DataSpec,
        mut parts: Vec<(String, Examples)>,
        files: Vec<FileFacts>,
        (tokenizer_files, lender): (Vec<SourceFile>, Option<Box<Parsed>>),
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
        problems.extend(alike(&parts));
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
        Ok(Parsed { parts, labels, files, tokenizer_files, lender, notes, hash })
    }

    /// What is known without encoding. Characters and bytes can be counted; pieces cannot.
    pub(crate) fn facts(self, spec: &DataSpec) -> Checked<Facts> {
        match &spec.tokenizer {
            Some(kind @ (TokenizerSpec::Chars | TokenizerSpec::Bytes)) if self.is_countable(&spec.form) => {
                self.count(spec, matches!(kind, TokenizerSpec::Chars))
            }
            // These are as quick to encode as to count.
            None | Some(TokenizerSpec::Chars | TokenizerSpec::Bytes) => Ok(self.encode(spec)?.facts),
            // Mistakes in chats show when they are encoded, and how many rows documents fill.
            Some(_) if is_chat(spec) || matches!(spec.form, Form::Pack { .. }) => Ok(self.encode(spec)?.facts),
            Some(TokenizerSpec::Bpe { vocab }) => {
                tokenizer::check_bpe_size(*vocab)?;
                Ok(self.facts_with(spec, *vocab))
            }
            Some(TokenizerSpec::Of { block }) => match block.tokenizer {
                Some(TokenizerSpec::Bpe { vocab }) => Ok(self.facts_with(spec, vocab)),
                _ => Ok(self.encode(spec)?.facts),
            },
            Some(TokenizerSpec::File { span, .. }) => {
                let vocab = tokenizer::vocab_of_files(&self.tokenizer_files).map_err(|p| p.span(*span))?;
                Ok(self.facts_with(spec, u64::from(vocab)))
            }
        }
    }

    /// Whether all is one text in windows, or texts that fill a row each.
    fn is_countable(&self, form: &Form) -> bool {
        self.parts.iter().all(|(_, examples)| {
            matches!(
                (examples, form),
                (Examples::Text(_), Form::Window { .. }) | (Examples::Documents(_), Form::Pad { .. })
            ) && !matches!(examples, Examples::Documents(documents) if documents.iter().any(|row| row.chat.is_some()))
        })
    }

    /// What encoding would give, by characters or by bytes: counted in the text itself, which is many times as fast.
    fn count(&self, spec: &DataSpec, by_chars: bool) -> Checked<Facts> {
        let len = |text: &str| if by_chars { text.chars().count() } else { text.len() };
        let tokenizer = self.tokenizer(spec)?;
        let vocab = tokenizer.as_ref().map_or(0, |tokenizer| u64::from(tokenizer.vocab_size()));
        let mut facts = self.facts_with(spec, vocab);
        let mut problems = Vec::new();
        for (idx, (name, examples)) in self.parts.iter().enumerate() {
            let part = &mut facts.parts[idx];
            match (examples, &spec.form) {
                (Examples::Text(text), Form::Window { axis }) => {
                    let n = len(text);
                    let first = if by_chars { text.chars().next().map_or(0, char::len_utf8) } else { 1 };
                    problems.extend(window_fits(name, n as u64, axis, idx == 0));
                    part.tokens = Some(n as u64);
                    part.rows = Some(n_cut(n, axis.size as usize));
                    // The first token is nobody's next.
                    part.counted_bytes = (text.len() as u64).saturating_sub(first as u64);
                }
                (Examples::Documents(documents), Form::Pad { axis }) => {
                    let lens = documents.iter().map(|document| len(&document.text) as u64);
                    let is_labelled = documents.iter().any(|document| document.label.is_some());
                    facts.notes.extend(note_of_cut(name, "tokens", axis, is_labelled, lens.clone()));
                    part.tokens = Some(lens.sum());
                    let rest = |document: &Document| (document.text.len() - document.prompt_bytes) as u64;
                    part.counted_bytes = documents.iter().map(rest).sum();
                }
                _ => {}
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        facts.data.rows = facts.parts.iter().map(|part| (part.name.clone(), part.rows.unwrap_or(0))).collect();
        Ok(facts)
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
            fields: fields(spec, &self.parts, !self.labels.is_empty()),
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
            let encoder = Encoder {
                tokenizer: tokenizer.as_ref(),
                vocab,
                labels: &self.labels,
                form: &spec.form,
                splits: !is_chat(spec),
                drops_long: spec.all_sources().any(|source| matches!(source, Source::Chat { long: Long::Drop, .. })),
            };
            match encoder.part(&name, examples, &self.files, &mut facts.parts[idx], &mut facts.notes) {
                Ok(content) => {
                    // The first part is what is trained on; the others may be shorter than a window.
                    if let (Form::Window { axis }, Content::Stream(ids)) = (&spec.form, &content) {
                        problems.extend(window_fits(&name, ids.len() as u64, axis, idx == 0));
                    }
                    parts.push(Arc::new(Part { name, content }));
                }
                Err(more) => problems.extend(more),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        facts.data.rows = facts.parts.iter().map(|part| (part.name.clone(), part.rows.unwrap_or(0))).collect();
        Ok(Dataset { facts, tokenizer, form: spec.form.clone(), seed: spec.seed, order: spec.order.clone(), parts })
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
                let special = match spec.template {
                    Some(TemplateSpec::Chatml) => Template::chatml_tokens(),
                    _ => Vec::new(),
                };
                Some(Tokenizer::learn_bpe(&train, size, &special)?)
            }
            Some(TokenizerSpec::Of { block }) => match &self.lender {
                Some(lender) => lender.tokenizer(block)?,
                None => None,
            },
            Some(TokenizerSpec::File { span, .. }) => {
                Some(Tokenizer::from_files(&self.tokenizer_files).map_err(|problem| problem.span(*span))?)
            }
        })
    }
}

fn texts(examples: &Examples) -> Vec<&str> {
    match examples {
        Examples::Text(text) => vec![text],
        Examples::Documents(documents) => documents.iter().map(|document| document.text.as_str()).collect(),
        Examples::Pictures(_) | Examples::Sounds(_) | Examples::Ids { .. } => Vec::new(),
    }
}

fn fields(spec: &DataSpec, parts: &[(String, Examples)], has_labels: bool) -> Vec<Field> {
    let field = |name: &str, dtype: DType, axes: Vec<Axis>| Field { name: name.to_string(), dtype, axes };
    let mut fields = Vec::new();
    match (&spec.form, parts.first()) {
        (Form::Pad { axis }, Some((_, Examples::Sounds(_)))) => {
            fields.push(field("sound", DType::F32, vec![axis.clone()]));
            fields.push(field("mask", DType::Bool, vec![axis.clone()]));
        }
        (Form::Window { axis } | Form::Pad { axis } | Form::Pack { axis }, _) => {
            for name in ["ids", "next"] {
                fields.push(field(name, DType::I32, vec![axis.clone()]));
            }
            fields.push(field("mask", DType::Bool, vec![axis.clone()]));
            if matches!(spec.form, Form::Pack { .. }) {
                fields.push(field("document", DType::I32, vec![axis.clone()]));
                fields.push(field("position", DType::I32, vec![axis.clone()]));
            }
            if is_chat(spec) {
                fields.push(field("turn", DType::I32, vec![axis.clone()]));
            }
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
        (Examples::Sounds(sounds), _) => Some(sounds.ends.len() as u64),
        (Examples::Documents(documents), Form::Pad { .. }) => Some(documents.len() as u64),
        _ => None,
    }
}
