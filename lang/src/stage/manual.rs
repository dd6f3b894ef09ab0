//! The manual of blocks, made of the schema: what `mdlc explain train` prints.

use std::fmt::Write;

use super::schema::{FieldRow, FunctionRow, KindRow, Need, Takes, kind, kinds};

/// The page of a kind of block, in Markdown: every field with what it takes, its default and what it is for.
pub fn manual(name: &str) -> Option<String> {
    kind(name).map(page)
}

/// The pages of all kinds of blocks that this version has.
pub fn manuals() -> String {
    kinds().iter().filter(|row| !row.later).map(page).collect::<Vec<_>>().join("\n")
}

fn page(kind: &'static KindRow) -> String {
    let mut text = format!("# {}\n\n{}\n", kind.name, kind.doc);
    if kind.later {
        text += "\nNot in this version.\n";
        return text;
    }
    for row in kind.fields.iter().filter(|row| row.need != Need::Later) {
        let _ = write!(text, "\n## {}\n\n{}\n\n- takes {}\n- {}\n", row.name, row.doc, row.takes.expected(), need(row));
        if let Takes::Call(rows) | Takes::Calls(rows) = row.takes {
            rows.iter().filter(|row| !row.later).for_each(|row| function(&mut text, row));
        }
    }
    let later: Vec<&str> = kind.fields.iter().filter(|row| row.need == Need::Later).map(|row| row.name).collect();
    if !later.is_empty() {
        let _ = write!(text, "\nNot in this version: {}.\n", later.join(", "));
    }
    text
}

fn function(text: &mut String, row: &FunctionRow) {
    let _ = writeln!(text, "- `{}`: {}", row.call(), row.doc);
    for arg in row.args {
        let _ = writeln!(text, "  - `{}`: {} Takes {}; {}.", arg.name, arg.doc, arg.takes.expected(), need(arg));
    }
}

fn need(row: &FieldRow) -> String {
    match row.need {
        Need::Required => "required".to_owned(),
        Need::Default(text) => format!("default: {text}"),
        Need::Later => "not in this version".to_owned(),
    }
}
