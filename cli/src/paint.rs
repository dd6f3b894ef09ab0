//! Diagnostics for people (ariadne) and for programs (JSON).

use ariadne::{Cache, Color, Config, IndexType, Label, Report, ReportKind, Source};
use mdl_lang::diag::{Diagnostic, Severity, Sources};
use serde_json::{Value, json};

/// The text of all diagnostics, with the lines that they point at.
pub(crate) fn paint(diagnostics: &[Diagnostic], sources: &Sources, color: bool) -> String {
    let shown: Vec<Shown> = sources
        .iter()
        .map(|(file, source)| {
            let labels = diagnostics.iter().flat_map(|diagnostic| &diagnostic.labels);
            let places = labels.filter(|label| label.span.file == file).map(|label| label.span.start as usize);
            Shown::new(&source.name, &source.text, &places.collect::<Vec<_>>())
        })
        .collect();
    let mut cache = Files(shown.iter().map(|shown| (shown.name.clone(), Source::from(shown.text.clone()))).collect());
    let mut text = Vec::new();
    for diagnostic in diagnostics {
        // Writing to memory cannot fail.
        let _ = report(diagnostic, &shown, color).write(&mut cache, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

type Place = (String, std::ops::Range<usize>);

/// Lines longer than this are shown up to a little behind what is said of them.
const LONGEST_LINE: usize = 400;
const BEHIND: usize = 100;

/// A file as it is shown: the ends of very long lines are cut off.
struct Shown {
    name: String,
    text: String,
    /// What is gone of the file, each for a `…`.
    cuts: Vec<std::ops::Range<usize>>,
}

impl Shown {
    /// `places` are where labels begin.
    fn new(name: &str, whole: &str, places: &[usize]) -> Shown {
        let (mut text, mut cuts, mut start) = (String::with_capacity(whole.len()), Vec::new(), 0);
        for line in whole.split_inclusive('\n') {
            let end = start + line.trim_end_matches(['\n', '\r']).len();
            let last = places.iter().filter(|place| (start..=end).contains(*place)).max().unwrap_or(&start);
            let keep = whole.ceil_char_boundary((last + BEHIND).max(start + LONGEST_LINE).min(end));
            text.push_str(&whole[start..keep]);
            if keep < end {
                text.push('…');
                cuts.push(keep..end);
            }
            text.push_str(&whole[end..start + line.len()]);
            start += line.len();
        }
        Shown { name: name.to_owned(), text, cuts }
    }

    /// Where a place of the file is in what is shown.
    fn place(&self, at: usize) -> usize {
        let gone = self.cuts.iter().take_while(|cut| cut.start < at).map(|cut| cut.end.min(at) - cut.start);
        let (n, bytes) = gone.fold((0, 0), |(n, bytes), more| (n + 1, bytes + more));
        at - bytes + n * '…'.len_utf8()
    }
}

fn report<'a>(diagnostic: &'a Diagnostic, shown: &[Shown], color: bool) -> Report<'a, Place> {
    let (kind, tint) = match diagnostic.severity {
        Severity::Error => (ReportKind::Error, Color::Red),
        Severity::Warning => (ReportKind::Warning, Color::Yellow),
    };
    let place = |span: mdl_lang::syntax::ast::Span| -> Place {
        let Some(file) = shown.get(span.file.0 as usize) else { return (String::new(), 0..0) };
        // The place of a byte that is no UTF-8 may lie inside of the character that stands for it.
        let start = file.text.floor_char_boundary(file.place(span.start as usize));
        let end = file.text.ceil_char_boundary(file.place(span.end as usize).min(file.text.len()));
        (file.name.clone(), start..end.max(start))
    };
    let first = diagnostic.labels.first().map_or((String::new(), 0..0), |label| place(label.span));
    let config = Config::default().with_color(color).with_index_type(IndexType::Byte);
    let mut report =
        Report::build(kind, first).with_config(config).with_code(diagnostic.code).with_message(&diagnostic.message);
    for (i, label) in diagnostic.labels.iter().enumerate() {
        let tint = if i == 0 { tint } else { Color::Cyan };
        report = report.with_label(
            Label::new(place(label.span)).with_message(&label.message).with_color(tint).with_order(i as i32),
        );
    }
    if let Some(help) = &diagnostic.help {
        report = report.with_help(help);
    }
    report.finish()
}

/// The texts of a compilation, by name.
struct Files(Vec<(String, Source<String>)>);

impl Cache<String> for &mut Files {
    type Storage = String;

    fn fetch(&mut self, name: &String) -> Result<&Source<String>, impl std::fmt::Debug> {
        self.0.iter().find(|(file, _)| file == name).map(|(_, source)| source).ok_or_else(|| format!("no file {name}"))
    }

    fn display<'b>(&self, name: &'b String) -> Option<impl std::fmt::Display + 'b> {
        Some(name)
    }
}

/// A diagnostic with its places as lines and columns, both from 1.
pub(crate) fn json(diagnostic: &Diagnostic, sources: &Sources) -> Value {
    let labels: Vec<Value> = diagnostic
        .labels
        .iter()
        .map(|label| {
            let (line, column) = sources.position(label.span);
            let file = sources.get(label.span.file).map_or("", |file| file.name.as_str());
            json!({
                "file": file, "line": line, "column": column,
                "start": label.span.start, "end": label.span.end, "message": label.message,
            })
        })
        .collect();
    json!({
        "severity": diagnostic.severity, "code": diagnostic.code, "message": diagnostic.message, "labels": labels,
        "help": diagnostic.help,
    })
}
