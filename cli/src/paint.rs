//! Diagnostics for people (ariadne) and for programs (JSON).

use ariadne::{Cache, Color, Config, IndexType, Label, Report, ReportKind, Source};
use mdl_lang::diag::{Diagnostic, Severity, Sources};
use serde_json::{Value, json};

/// The text of all diagnostics, with the lines that they point at.
pub(crate) fn paint(diagnostics: &[Diagnostic], sources: &Sources, color: bool) -> String {
    let mut cache =
        Files(sources.iter().map(|(_, source)| (source.name.clone(), Source::from(source.text.clone()))).collect());
    let mut text = Vec::new();
    for diagnostic in diagnostics {
        // Writing to memory cannot fail.
        let _ = report(diagnostic, sources, color).write(&mut cache, &mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

type Place = (String, std::ops::Range<usize>);

fn report<'a>(diagnostic: &'a Diagnostic, sources: &'a Sources, color: bool) -> Report<'a, Place> {
    let (kind, tint) = match diagnostic.severity {
        Severity::Error => (ReportKind::Error, Color::Red),
        Severity::Warning => (ReportKind::Warning, Color::Yellow),
    };
    let place = |span: mdl_lang::syntax::ast::Span| -> Place {
        let (name, text) = sources.get(span.file).map_or(("", ""), |file| (&file.name, &file.text));
        // The place of a byte that is no UTF-8 may lie inside of the character that stands for it.
        let start = text.floor_char_boundary(span.start as usize);
        let end = text.ceil_char_boundary((span.end as usize).min(text.len()));
        (name.to_owned(), start..end.max(start))
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
