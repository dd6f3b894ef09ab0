//! Sources with one example per row: JSON lines, CSV, and lines of `label sentence`.
//!
//! At most a handful of broken rows is reported per file: the first ones show what is wrong.

use super::{Document, Examples, SourceFile};
use crate::problem::{BAD_LABEL, BAD_ROW, Checked, NO_COLUMN, Problem};
use serde_json::Value;

/// Which columns or keys are read.
pub(super) struct Columns<'a> {
    pub(super) text: &'a str,
    pub(super) label: Option<&'a str>,
}

const MAX_PROBLEMS_PER_FILE: usize = 5;

/// What a reader gives back: rows, and what was wrong with others.
#[derive(Default)]
pub(super) struct Read {
    pub(super) documents: Vec<Document>,
    pub(super) problems: Vec<Problem>,
}

impl Read {
    pub(super) fn is_hopeless(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS_PER_FILE
    }
}

/// Reads every file with one reader and says which file a row came from.
pub(super) fn all(
    files: &[SourceFile],
    first_file: usize,
    read: impl Fn(&SourceFile, &mut Read) -> Result<(), Problem>,
) -> Checked<Examples> {
    let (mut documents, mut problems) = (Vec::new(), Vec::new());
    for (idx, file) in files.iter().enumerate() {
        let mut found = Read::default();
        if let Err(problem) = read(file, &mut found) {
            found.problems.push(problem);
        }
        problems.append(&mut found.problems);
        documents.extend(found.documents.into_iter().map(|row| Document { file: first_file + idx, ..row }));
    }
    if problems.is_empty() { Ok(Examples::Documents(documents)) } else { Err(problems) }
}

pub(super) fn jsonl(file: &SourceFile, columns: &Columns<'_>, out: &mut Read) -> Result<(), Problem> {
    let text = file.text()?;
    for (line, row) in numbered_lines(&text) {
        if row.trim().is_empty() {
            continue;
        }
        match json_row(row, columns) {
            Ok(document) => out.documents.push(Document { line, ..document }),
            Err(problem) => out.problems.push(problem.at(&file.path).line(line)),
        }
        if out.is_hopeless() {
            break;
        }
    }
    Ok(())
}

fn json_row(row: &str, columns: &Columns<'_>) -> Result<Document, Problem> {
    let value: Value = serde_json::from_str(row).map_err(|error| {
        let message = format!("the line is not JSON: {}", without_position(&error.to_string()));
        Problem::new(BAD_ROW, message).byte(error.column() as u64)
    })?;
    let Value::Object(object) = value else {
        return Err(Problem::new(BAD_ROW, "the line is not a JSON object").help("each line is { \"key\": value, … }"));
    };
    let get = |key: &str, code: &'static str| -> Result<String, Problem> {
        match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(Value::Bool(value)) => Ok(i32::from(*value).to_string()),
            Some(Value::Null) => Err(Problem::new(code, format!("`{key}` is null"))),
            Some(_) => Err(Problem::new(code, format!("`{key}` is a list or an object, and a text is needed"))),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                Err(Problem::new(NO_COLUMN, format!("the line has no key `{key}`"))
                    .help(format!("its keys are {}", keys.join(", "))))
            }
        }
    };
    let label = columns.label.map(|key| get(key, BAD_LABEL)).transpose()?;
    Ok(Document { text: get(columns.text, BAD_ROW)?, label, ..Document::default() })
}

pub(super) fn csv(
    file: &SourceFile,
    header: bool,
    delimiter: char,
    columns: &Columns<'_>,
    out: &mut Read,
) -> Result<(), Problem> {
    let Ok(delimiter) = u8::try_from(delimiter) else {
        return Err(Problem::new(BAD_ROW, format!("`{delimiter}` cannot separate columns")).help("take an ASCII sign"));
    };
    let text = file.text()?;
    // In tab-separated files a quotation mark is a sign like any other.
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(header)
        .delimiter(delimiter)
        .quoting(delimiter != b'\t')
        .from_reader(text.as_bytes());
    let names: Option<Vec<String>> = if header {
        let headers = reader.headers().map_err(|error| csv_problem(file, &error))?;
        Some(headers.iter().map(|name| name.trim().to_string()).collect())
    } else {
        None
    };
    let place = |column: &str| column_of(column, names.as_deref()).map_err(|p| p.at(&file.path).line(1));
    let text_at = place(columns.text)?;
    let label_at = columns.label.map(place).transpose()?;
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                out.problems.push(csv_problem(file, &error));
                if out.is_hopeless() {
                    break;
                }
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        let get = |at: usize| {
            record.get(at).ok_or_else(|| {
                let message = format!("the row has {} columns, and column {at} (from 0) is needed", record.len());
                Problem::new(NO_COLUMN, message).at(&file.path).line(line)
            })
        };
        let row = || -> Result<Document, Problem> {
            let label = label_at.map(get).transpose()?.map(|label| label.trim().to_string());
            Ok(Document { text: get(text_at)?.to_string(), label, line, ..Document::default() })
        };
        match row() {
            Ok(document) => out.documents.push(document),
            Err(problem) => out.problems.push(problem),
        }
        if out.is_hopeless() {
            break;
        }
    }
    Ok(())
}

/// A column by name, or by number where there is no header.
fn column_of(column: &str, names: Option<&[String]>) -> Result<usize, Problem> {
    if let Some(names) = names {
        return names.iter().position(|name| name == column).ok_or_else(|| {
            Problem::new(NO_COLUMN, format!("there is no column `{column}`"))
                .help(format!("the header has {}", names.join(", ")))
        });
    }
    column.parse().map_err(|_| {
        Problem::new(NO_COLUMN, format!("there is no header that could name the column `{column}`"))
            .help("without a header, columns are numbers that count from 0")
    })
}

fn csv_problem(file: &SourceFile, error: &csv::Error) -> Problem {
    let (position, message) = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            (pos.clone(), format!("the row has {len} columns, and the first one has {expected_len}"))
        }
        csv::ErrorKind::Utf8 { pos, .. } => (pos.clone(), "the row is not UTF-8".to_string()),
        _ => (error.position().cloned(), format!("the row cannot be read: {error}")),
    };
    let problem = Problem::new(BAD_ROW, message).at(&file.path);
    match position {
        Some(position) => problem.line(position.line()).byte(position.byte()),
        None => problem,
    }
}

/// `1 a stirring , funny film`: the label, white space, the sentence.
pub(super) fn labelled_lines(file: &SourceFile, out: &mut Read) -> Result<(), Problem> {
    let text = file.text()?;
    for (line, row) in numbered_lines(&text) {
        if row.trim().is_empty() {
            continue;
        }
        match row.split_once([' ', '\t']) {
            Some((label, sentence)) if !label.is_empty() => {
                let (text, label) = (sentence.trim().to_string(), Some(label.to_string()));
                out.documents.push(Document { text, label, line, ..Document::default() });
            }
            _ => out.problems.push(
                Problem::new(BAD_LABEL, "the line has no label in front of its sentence")
                    .help("each line is `label sentence`, such as `1 a stirring , funny film`")
                    .at(&file.path)
                    .line(line),
            ),
        }
        if out.is_hopeless() {
            break;
        }
    }
    Ok(())
}

/// Lines are separated by `\n` or `\r\n` alone: other signs that break lines may stand inside a JSON text.
fn numbered_lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    (1..).zip(text.lines())
}

/// serde_json counts lines from the row's start, which would mislead: the true line is in the problem.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}
