//! Examples to token ids, a part at a time.

use super::{Content, Ids, TextRows};
use crate::chat::Chat;
use crate::facts::{FileFacts, PartFacts};
use crate::problem::{CUT_EMPTY, Checked, EMPTY, MISMATCH, NO_END, Problem, TWICE_BEGUN};
use crate::source::{Document, Examples, Sounds};
use crate::tokenizer::Tokenizer;
use mdl_graph::Axis;
use mdl_lang::spec::Form;
use std::ops::Range;
use std::path::Path;

/// What stands between documents in a running text when the tokenizer has no token for the end of one.
pub(super) const SEPARATOR: &str = "\n";

pub(super) struct Encoder<'a> {
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) vocab: u64,
    pub(super) labels: &'a [String],
    pub(super) form: &'a Form,
    /// Whether a document that is too long for a packed row becomes several; a chat does not.
    pub(super) splits: bool,
    /// Whether a chat that is too long is left out.
    pub(super) drops_long: bool,
}

/// Says how many rows are longer than their axis, counted in `unit`.
pub(super) fn note_of_cut(
    name: &str,
    unit: &str,
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
    (n_cut > 0).then(|| format!("{n_cut} of {n} rows of {name} are longer than {} {unit} and were cut", axis.size))
}

/// Ids, and which of them are learned.
type ChatIds = (Vec<u32>, Vec<Range<u32>>);

/// Rows of a part whose problems are told.
pub(super) const MOST_PROBLEMS: usize = 5;

/// Says which row of which file a problem is about.
pub(super) fn at_row(problem: Problem, document: &Document, files: &[FileFacts]) -> Problem {
    let problem = if document.line > 0 { problem.line(document.line) } else { problem };
    match files.get(document.file) {
        Some(file) => problem.at(Path::new(&file.path)),
        None => problem,
    }
}

impl Encoder<'_> {
    pub(super) fn part(
        &self,
        name: &str,
        examples: Examples,
        files: &[FileFacts],
        facts: &mut PartFacts,
        notes: &mut Vec<String>,
    ) -> Checked<Content> {
        let content = match (examples, self.form) {
            (Examples::Pictures(pictures), _) => {
                let labels = pictures.labels.iter().map(|label| self.number(label)).collect();
                let (rows, columns, channels) = (pictures.rows, pictures.columns, pictures.channels);
                Content::Pictures { rows, columns, channels, pixels: pictures.pixels, labels }
            }
            (Examples::Sounds(sounds), form) => {
                if let Form::Pad { axis } = form {
                    let lens = (0..sounds.ends.len()).map(|i| Sounds::place(&sounds.ends, i).len() as u64);
                    notes.extend(note_of_cut(name, "samples", axis, true, lens));
                }
                let labels = sounds.labels.iter().map(|label| self.number(label)).collect();
                Content::Sounds { samples: sounds.samples, ends: sounds.ends, labels }
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
                let (rows, n_bytes) = self.rows(name, documents, axis, files, notes)?;
                facts.counted_bytes = n_bytes;
                let lens = (0..rows.ends.len()).map(|row| rows.row(row).len() as u64);
                notes.extend(note_of_cut(name, "tokens", axis, rows.labels.is_some(), lens));
                Content::Rows(rows)
            }
            (Examples::Documents(documents), Form::Pack { axis }) => {
                let (rows, n_bytes) = self.rows(name, documents, axis, files, notes)?;
                facts.counted_bytes = n_bytes;
                let is_chat = !self.splits;
                if is_chat {
                    let lens = (0..rows.ends.len()).map(|row| rows.row(row).len() as u64);
                    notes.extend(note_of_cut(name, "tokens", axis, false, lens));
                }
                let n_documents = rows.ends.len();
                let content = Content::packed(rows, axis, self.splits);
                if let Content::Packed(_, bins) = &content {
                    let share = 100.0 * bins.n_filled() as f64 / (bins.len() as f64 * axis.size as f64);
                    notes.push(format!(
                        "{n_documents} documents of {name} fill {share:.1}% of {} packed rows",
                        bins.len()
                    ));
                }
                content
            }
            (Examples::Documents(_), Form::Rows) => {
                return Err(Problem::new(MISMATCH, "a batch of texts needs a length").into());
            }
        };
        facts.tokens = match &content {
            Content::Stream(ids) => Some(ids.len() as u64),
            Content::Rows(rows) | Content::Packed(rows, _) => Some(rows.ids.len() as u64),
            Content::Pictures { .. } | Content::Sounds { .. } => None,
        };
        facts.rows = Some(content.n_in_order(self.form));
        Ok(content)
    }

    /// Documents as rows of ids, and the bytes of them that are learned.
    fn rows(
        &self,
        name: &str,
        documents: Vec<Document>,
        axis: &Axis,
        files: &[FileFacts],
        notes: &mut Vec<String>,
    ) -> Checked<(TextRows, u64)> {
        let mut rows = TextRows::new(self.vocab);
        let mut labels = Vec::new();
        let (mut n_bytes, mut n_dropped) = (0, 0);
        let mut problems = Vec::new();
        for document in &documents {
            if let Some(chat) = &document.chat {
                let at = |problem: Problem| at_row(problem, document, files);
                match self.chat(document, chat, axis) {
                    Ok(Some((ids, spans))) => {
                        n_bytes += document.said.iter().map(|said| said.bytes.len() as u64).sum::<u64>();
                        rows.ids.extend(&ids);
                        rows.spans.extend(spans);
                    }
                    Ok(None) => {
                        n_dropped += 1;
                        continue;
                    }
                    Err(problem) => problems.push(at(problem)),
                }
                if problems.len() >= MOST_PROBLEMS {
                    break;
                }
            } else {
                let (prompt, rest) = document.text.split_at(document.prompt_bytes);
                let prompt = self.encode(prompt, Some(document), files)?;
                let rest = self.encode(rest, Some(document), files)?;
                rows.ids.extend(&prompt);
                rows.ids.extend(&rest);
                n_bytes += (document.text.len() - document.prompt_bytes) as u64;
                match &document.label {
                    Some(label) => labels.push(self.number(label)),
                    None => {
                        // A model that writes rows must learn where they end.
                        let end = self.tokenizer.and_then(Tokenizer::end_of_text);
                        rows.ids.extend(end.as_slice());
                        let n = prompt.len() + rest.len() + end.as_slice().len();
                        rows.spans.push(prompt.len() as u32..n as u32);
                    }
                }
            }
            rows.ends.push(rows.ids.len() as u64);
            rows.span_ends.push(rows.spans.len() as u64);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if n_dropped > 0 {
            notes.push(format!("{n_dropped} rows of {name} are longer than {} tokens and were left out", axis.size));
        }
        if rows.ends.is_empty() {
            let message = format!("no row of {name} has {} tokens or fewer", axis.size + 1);
            return Err(Problem::new(EMPTY, message).help("take a longer axis, or leave `long: drop` out").into());
        }
        rows.labels = (!labels.is_empty()).then_some(labels);
        Ok((rows, n_bytes))
    }

    /// The ids of a chat, and which of them are learned. `None` for one that is too long and to be left out.
    fn chat(&self, document: &Document, chat: &Chat, axis: &Axis) -> Result<Option<ChatIds>, Problem> {
        let Some(tokenizer) = self.tokenizer else { return Err(Problem::new(MISMATCH, "text needs a tokenizer")) };
        let row = chat.row;
        let places = tokenizer.encode_places(&document.text)?;
        let begin = tokenizer.extra().bos.as_deref().and_then(|token| tokenizer.id_of(token));
        if let Some(at) = places.windows(2).position(|pair| Some(pair[0].0) == begin && pair[0].0 == pair[1].0) {
            let token = tokenizer.extra().bos.as_deref().unwrap_or_default();
            let turn =
                document.said.iter().find(|said| said.bytes.end > places[at].1.start).map_or(1, |said| said.turn);
            let message = format!("row {row}, turn {turn}: `{token}`, which begins a text, stands there twice");
            return Err(Problem::new(TWICE_BEGUN, message)
                .help("the template writes it once: take it out of the row, or out of the template"));
        }
        if let (Some(last), false) = (document.said.last(), document.said.iter().any(|said| said.ends)) {
            let message = format!("row {row}, turn {}: the end of the answer is never learned", last.turn);
            let help = "the template must say where an answer of the assistant ends, as with `<|im_end|>`, and mark it where it marks answers";
            return Err(Problem::new(NO_END, message).help(help));
        }
        // The last token is only ever a next one.
        let room = axis.size as usize + 1;
        if places.len() > room && self.drops_long {
            return Ok(None);
        }
        let mut spans = Vec::new();
        for said in &document.said {
            let first = places.iter().position(|(_, bytes)| bytes.end > said.bytes.start);
            let Some(first) = first else { continue };
            let n = places[first..].iter().take_while(|(_, bytes)| bytes.start < said.bytes.end).count();
            spans.push(first as u32..(first + n) as u32);
        }
        if let (Some(first), Some(said)) = (spans.first(), document.said.first())
            && first.start as usize >= room
        {
            let message = format!(
                "row {row}, turn {}: cut at {} tokens, the row has nothing to learn: its first answer begins at {}",
                said.turn,
                room - 1,
                first.start
            );
            let help = "take a longer axis, or `chat(…, long: drop)`, which leaves such rows out";
            return Err(Problem::new(CUT_EMPTY, message).help(help));
        }
        Ok(Some((places.into_iter().map(|(id, _)| id).collect(), spans)))
    }

    fn encode(&self, text: &str, document: Option<&Document>, files: &[FileFacts]) -> Result<Vec<u32>, Problem> {
        let Some(tokenizer) = self.tokenizer else { return Err(Problem::new(MISMATCH, "text needs a tokenizer")) };
        tokenizer.encode(text).map_err(|problem| match document {
            Some(document) => at_row(problem, document, files),
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
