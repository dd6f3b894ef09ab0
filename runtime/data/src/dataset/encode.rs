//! Examples to token ids, a part at a time.

use super::{Content, Ids, TextRows};
use crate::facts::{FileFacts, PartFacts};
use crate::problem::{MISMATCH, Problem};
use crate::source::{Document, Examples};
use crate::tokenizer::Tokenizer;
use mdl_graph::Axis;
use mdl_lang::spec::Form;
use std::path::Path;

/// What stands between documents in a running text when the tokenizer has no token for the end of one.
pub(super) const SEPARATOR: &str = "\n";

pub(super) struct Encoder<'a> {
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) vocab: u64,
    pub(super) labels: &'a [String],
    pub(super) form: &'a Form,
}

/// Says how many rows are longer than their axis.
pub(super) fn note_of_cut(
    name: &str,
    axis: &Axis,
    is_labelled: bool,
    lens: impl Iterator<Item = u64>,
) -> Option<String> {
    // The last token of an unlabelled row is only ever a `next`.
    let room = axis.size + u64::from(!is_labelled);
    let (mut n, mut n_cut) = (0, 0);
    for len in lens {
        n += 1;
        n_cut += u64::from(len > room);
    }
    (n_cut > 0).then(|| format!("{n_cut} of {n} rows of {name} are longer than {} tokens and were cut", axis.size))
}

impl Encoder<'_> {
    pub(super) fn part(
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
                let starts = std::iter::once(&0).chain(&rows.ends);
                let lens = starts.zip(&rows.ends).map(|(start, end)| end - start);
                notes.extend(note_of_cut(name, axis, rows.labels.is_some(), lens));
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
        first.map_or(0, |(id, tokenizer)| tokenizer.bytes_of(id))
    }
}
