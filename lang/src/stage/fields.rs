//! The fields of one block, matched with the rows of its schema before any value is looked at.

use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Expr, Span, Stage};

use super::read::{Compute, Reported, chosen, wrong_type};
use super::schema::{FieldRow, KindRow, Need};

/// A block whose fields are known, given once, and complete (or have been reported).
#[derive(Debug)]
pub(crate) struct Fields<'e> {
    given: Vec<(&'static FieldRow, &'e Expr)>,
    rows: &'static [FieldRow],
}

impl<'e> Fields<'e> {
    /// The field with its value, of an `if` the branch that counts.
    pub(crate) fn get(&self, name: &str) -> Option<(&'static FieldRow, &'e Expr)> {
        self.given.iter().find(|(row, _)| row.name == name).copied()
    }

    /// Takes the branches of `if`s, and leaves out what is `none`. False when one was reported.
    pub(crate) fn settle(&mut self, compute: &mut dyn Compute) -> bool {
        let mut fine = true;
        self.given.retain_mut(|(row, expr)| match chosen(compute, expr) {
            Ok(Some(taken)) => {
                *expr = taken;
                true
            }
            Ok(None) if row.need == Need::Required => {
                compute.report(wrong_type(row, expr.span, "`none`"));
                fine = false;
                false
            }
            Ok(None) => false,
            Err(Reported) => {
                fine = false;
                false
            }
        });
        fine
    }

    /// Where it is written.
    pub(crate) fn span(&self, name: &str) -> Option<Span> {
        self.get(name).map(|(_, expr)| expr.span)
    }

    /// The row of a field, given or not.
    pub(crate) fn row(&self, name: &str) -> &'static FieldRow {
        match self.rows.iter().find(|row| row.name == name) {
            Some(row) => row,
            None => mdl_graph::bug!("the schema has no field `{name}`"),
        }
    }
}

/// Matches the fields of a block with the rows of its kind. `span` is where a missing field is reported. The second
/// value is false when something was reported.
pub(crate) fn match_fields<'e>(
    compute: &mut dyn Compute,
    kind: &'static KindRow,
    stage: &'e Stage,
    span: Span,
) -> (Fields<'e>, bool) {
    let mut diagnostics = Vec::new();
    let mut fields = match_names(kind, stage, span, &mut diagnostics);
    let fine = diagnostics.is_empty();
    diagnostics.into_iter().for_each(|diagnostic| compute.report(diagnostic));
    let settled = fields.settle(compute);
    (fields, fine && settled)
}

fn match_names<'e>(
    kind: &'static KindRow,
    stage: &'e Stage,
    span: Span,
    diagnostics: &mut Vec<Diagnostic>,
) -> Fields<'e> {
    let mut fields = Fields { given: Vec::new(), rows: kind.fields };
    let mut meant = Vec::new();
    for field in &stage.fields {
        let name = field.name.text.as_str();
        let Some(row) = kind.fields.iter().find(|row| row.name == name) else {
            meant.extend(nearest(name, offered(kind)));
            diagnostics.push(unknown(kind, name, field.name.span));
            continue;
        };
        if row.need == Need::Later {
            diagnostics.push(
                Diagnostic::error(Code::E0702, format!("the field `{name}` of `{}` is not in this version", kind.name))
                    .label(field.name.span, "not in this version")
                    .help(format!("leave it out; its purpose: {}", lower_first(row.doc))),
            );
            continue;
        }
        fields.given.push((row, &field.value));
    }
    for row in kind.fields.iter().filter(|row| row.need == Need::Required) {
        // One that is misspelled is not missing as well.
        if !meant.contains(&row.name) && !fields.given.iter().any(|(known, _)| known.name == row.name) {
            diagnostics.push(
                Diagnostic::error(Code::E0302, format!("`{}` needs the field `{}`", kind.name, row.name))
                    .label(span, "missing in this block")
                    .help(format!("{}: {} It takes {}", row.name, row.doc, row.takes.expected())),
            );
        }
    }
    fields
}

fn unknown(kind: &'static KindRow, name: &str, span: Span) -> Diagnostic {
    let diagnostic =
        Diagnostic::error(Code::E0301, format!("`{}` has no field `{name}`", kind.name)).label(span, "unknown field");
    match nearest(name, offered(kind)) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic.help(format!("its fields are {}", offered(kind).collect::<Vec<_>>().join(", "))),
    }
}

/// The fields of this version.
fn offered(kind: &'static KindRow) -> impl Iterator<Item = &'static str> {
    kind.fields.iter().filter(|row| row.need != Need::Later).map(|row| row.name)
}

/// A sentence as part of another one.
pub(super) fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_lowercase).collect();
    format!("{first}{}", chars.as_str().trim_end_matches('.'))
}
