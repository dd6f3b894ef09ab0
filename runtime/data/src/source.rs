//! From files to examples. Each kind of source is one file in this folder.
//!
//! Reading has two steps, so that prepared data can be found by its content without parsing anything: [`gather`] finds
//! and reads the files, [`Gathered::examples`] unpacks and parses them.

mod chats;
mod files;
mod generated;
mod idx;
mod names;
mod pictures;
mod rows;
mod sounds;

use crate::chat::{Chat, Said};
use crate::problem::{Checked, MISMATCH, Problem};
use mdl_graph::Span;
use mdl_lang::spec::Source;
use std::path::Path;

pub use files::SourceFile;
pub(crate) use files::hex;
pub(crate) use files::read as read_files;
pub use pictures::Pictures;
pub use sounds::Sounds;

/// One text, and what is known about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    pub text: String,
    pub label: Option<String>,
    /// How many bytes of `text` are read and not learned.
    pub prompt_bytes: usize,
    /// Of a chat the messages, which `text` spells once a template has seen them, and what of `text` is learned.
    pub chat: Option<Box<Chat>>,
    pub said: Vec<Said>,
    /// Documents of one group stay in one part of a split.
    pub group: Option<u64>,
    /// Index into the source files, and the line there: for messages.
    pub file: usize,
    pub line: u64,
}

/// All that a list of sources holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Examples {
    /// One running text.
    Text(String),
    Documents(Vec<Document>),
    Pictures(Pictures),
    Sounds(Sounds),
    /// Token ids as they are, with the size of their vocabulary.
    Ids {
        ids: Vec<u32>,
        vocab: u32,
    },
}

/// The files of a list of sources, read but not unpacked.
#[derive(Debug)]
pub struct Gathered {
    sources: Vec<(Source, Vec<SourceFile>)>,
}

/// Finds and reads every file that the sources name; reports all that are missing.
pub fn gather(sources: &[Source], base: &Path) -> Checked<Gathered> {
    let (mut gathered, mut problems) = (Vec::new(), Vec::new());
    for source in sources {
        match files_of(source, base) {
            Ok(files) => gathered.push((source.clone(), files)),
            Err(more) => problems.extend(more.into_iter().map(|problem| problem.span(span_of(source)))),
        }
    }
    if problems.is_empty() { Ok(Gathered { sources: gathered }) } else { Err(problems) }
}

fn files_of(source: &Source, base: &Path) -> Checked<Vec<SourceFile>> {
    match source {
        Source::Text { path, .. }
        | Source::Jsonl { path, .. }
        | Source::Csv { path, .. }
        | Source::Lines { path, .. }
        | Source::Chat { path, .. } => files::read(path, base),
        Source::Images { path, .. } | Source::Sounds { path, .. } => files::labelled(path, base),
        Source::Idx { images, labels, .. } => {
            let mut problems = Vec::new();
            let mut all = Vec::new();
            for pattern in [images, labels] {
                match files::read(pattern, base) {
                    Ok(mut found) if found.len() == 1 => all.append(&mut found),
                    Ok(found) => problems.push(
                        Problem::new(MISMATCH, format!("{pattern} names {} files, and one is needed", found.len()))
                            .help("pictures and labels come in one file each"),
                    ),
                    Err(mut more) => problems.append(&mut more),
                }
            }
            if problems.is_empty() { Ok(all) } else { Err(problems) }
        }
        Source::Addition { .. } | Source::RandomTokens { .. } => Ok(Vec::new()),
    }
}

impl Gathered {
    /// The files in order, for reports and for the content hash.
    pub fn files(&self) -> impl Iterator<Item = &SourceFile> {
        self.sources.iter().flat_map(|(_, files)| files)
    }

    /// Unpacks and parses. Sources of one block must be of one kind; a text beside rows is one document.
    pub fn examples(&self) -> Checked<Examples> {
        let mut problems = Vec::new();
        let mut parsed = Vec::new();
        let mut n_files = 0;
        for (source, files) in &self.sources {
            match parse(source, files, n_files) {
                Ok(examples) => parsed.push(examples),
                Err(more) => problems.extend(more.into_iter().map(|problem| problem.span(span_of(source)))),
            }
            n_files += files.len();
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        join(parsed)
    }
}

fn parse(source: &Source, files: &[SourceFile], first_file: usize) -> Checked<Examples> {
    match source {
        Source::Text { .. } => text(files),
        Source::Jsonl { text, label, .. } => {
            let columns = rows::Columns { text, label: label.as_deref() };
            rows::all(files, first_file, |file, out| rows::jsonl(file, &columns, out))
        }
        Source::Csv { header, delimiter, text, label, .. } => {
            let columns = rows::Columns { text, label: label.as_deref() };
            rows::all(files, first_file, |file, out| rows::csv(file, *header, *delimiter, &columns, out))
        }
        Source::Lines { .. } => rows::all(files, first_file, rows::labelled_lines),
        Source::Chat { format, columns, .. } => {
            rows::all(files, first_file, |file, out| chats::chats(file, *format, columns, out))
        }
        Source::Idx { .. } => Ok(Examples::Pictures(idx::pictures(files)?)),
        Source::Images { grey, .. } => Ok(Examples::Pictures(pictures::pictures(files, *grey)?)),
        Source::Sounds { rate, .. } => Ok(Examples::Sounds(sounds::sounds(files, *rate)?)),
        Source::Addition { digits, .. } => Ok(Examples::Documents(generated::addition(*digits)?)),
        Source::RandomTokens { vocab, count, .. } => {
            let (ids, vocab) = generated::random_tokens(*vocab, *count)?;
            Ok(Examples::Ids { ids, vocab })
        }
    }
}

/// Where the recipe writes a source.
pub fn span_of(source: &Source) -> Span {
    match source {
        Source::Text { span, .. }
        | Source::Jsonl { span, .. }
        | Source::Csv { span, .. }
        | Source::Lines { span, .. }
        | Source::Chat { span, .. }
        | Source::Idx { span, .. }
        | Source::Images { span, .. }
        | Source::Sounds { span, .. }
        | Source::Addition { span, .. }
        | Source::RandomTokens { span, .. } => *span,
    }
}

fn text(files: &[SourceFile]) -> Checked<Examples> {
    let mut joined = String::new();
    let mut problems = Vec::new();
    for file in files {
        match file.text() {
            Ok(text) if joined.is_empty() => joined = text,
            Ok(text) => joined.push_str(&text),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(Examples::Text(joined)) } else { Err(problems) }
}

fn join(parsed: Vec<Examples>) -> Checked<Examples> {
    let only_text = parsed.iter().all(|examples| matches!(examples, Examples::Text(_)));
    let mut parts = parsed.into_iter();
    let Some(mut joined) = parts.next() else {
        return Err(Problem::new(MISMATCH, "the block has no source").into());
    };
    for next in parts {
        joined = match (joined, next) {
            (Examples::Text(mut a), Examples::Text(b)) if only_text => {
                a.push_str(&b);
                Examples::Text(a)
            }
            (Examples::Pictures(a), Examples::Pictures(b)) => Examples::Pictures(a.join(b)?),
            (Examples::Sounds(a), Examples::Sounds(b)) => Examples::Sounds(a.join(b)?),
            (a @ (Examples::Text(_) | Examples::Documents(_)), b @ (Examples::Text(_) | Examples::Documents(_))) => {
                let mut documents = documents(a);
                documents.append(&mut self::documents(b));
                Examples::Documents(documents)
            }
            _ => {
                return Err(Problem::new(MISMATCH, "the sources of the block do not go together")
                    .help(
                        "texts go with texts, pictures with pictures, sounds with sounds; generated tokens stand alone",
                    )
                    .into());
            }
        };
    }
    Ok(joined)
}

fn documents(examples: Examples) -> Vec<Document> {
    match examples {
        Examples::Text(text) => vec![Document { text, ..Document::default() }],
        Examples::Documents(documents) => documents,
        Examples::Pictures(_) | Examples::Sounds(_) | Examples::Ids { .. } => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
