//! Diagnostics from inside of the library, told in the names of the recipe.
//!
//! In: a diagnostic whose first label stands in the library. Out: the same, which also points at the call in the recipe; its message
//! says the recipe's names of axes, and the label at the call says which of the library's names they are.

use mdl_graph::Name;

use super::Elaborator;
use super::scope::{plain, untwinned};
use crate::diag::Diagnostic;
use crate::syntax::ast::Span;

/// What the axes inside of a call, or of a layer that is being built, are to who calls or builds.
pub(super) struct Crossing {
    /// How many calls were open when it began.
    depth: usize,
    /// Inside, outside. What is not here was made inside.
    names: Vec<(Name, Name)>,
}

impl Crossing {
    fn outer(&self, local: &Name) -> Option<Name> {
        if let Some((_, outer)) = self.names.iter().find(|(known, _)| known == local) {
            return Some(outer.clone());
        }
        let base = untwinned(local);
        let primes = &local.as_str()[base.as_str().len()..];
        if primes.is_empty() { None } else { Some(Name::from(format!("{}{primes}", self.outer(&base)?))) }
    }
}

impl Elaborator<'_> {
    pub(super) fn enter(&mut self, names: Vec<(Name, Name)>) {
        self.crossings.push(Crossing { depth: self.calls.len(), names });
    }

    fn is_in_library(&self, span: Span) -> bool {
        self.files.iter().any(|file| file.is_library && file.id == span.file)
    }

    /// The diagnostic as the recipe sees it.
    pub(super) fn told_outside(&self, mut diagnostic: Diagnostic) -> Diagnostic {
        if !diagnostic.labels.first().is_some_and(|label| self.is_in_library(label.span)) {
            return diagnostic;
        }
        let Some(at) = self.calls.iter().rposition(|span| !self.is_in_library(*span)) else { return diagnostic };
        let renamed = self.renamed(&diagnostic, at);
        diagnostic.message = said_outside(&diagnostic.message, &renamed);
        let said: Vec<String> = renamed.iter().map(|(inner, outer)| format!("its `{inner}` is `{outer}`")).collect();
        let label = match said.as_slice() {
            [] => "called from here".to_string(),
            _ => format!("called from here: {}", said.join(", ")),
        };
        diagnostic.label(self.calls[at], label)
    }

    /// The axes that the diagnostic speaks of, by message or by place, and that the recipe calls otherwise: inside, outside.
    fn renamed(&self, diagnostic: &Diagnostic, at: usize) -> Vec<(String, String)> {
        let inside: Vec<&Crossing> = self.crossings.iter().filter(|crossing| crossing.depth > at).collect();
        let Some((last, before)) = inside.split_last() else { return Vec::new() };
        let mut said: Vec<&str> = words(&diagnostic.message).collect();
        for label in &diagnostic.labels {
            said.extend(words(&label.message));
            said.extend(words(self.sources.slice(label.span)));
        }
        let mut renamed: Vec<(String, String)> = Vec::new();
        for (inner, outer) in &last.names {
            // A name that is in no crossing was made at that height.
            let outer = before.iter().rev().try_fold(outer.clone(), |name, crossing| crossing.outer(&name));
            let Some(outer) = outer.filter(|outer| !self.is_hidden(outer)) else { continue };
            let (inner, outer) = (plain(inner), plain(&outer));
            let is_new = renamed.iter().all(|(known, _)| *known != inner);
            if inner != outer && is_new && said.iter().any(|word| word.trim_end_matches('\'') == inner) {
                renamed.push((inner, outer));
            }
        }
        renamed
    }
}

/// The words of a text, twins and dotted names whole.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '\'' | '.');
    text.split(move |c| !is_part(c)).map(|word| word.trim_matches('.')).filter(|word| !word.is_empty())
}

/// A message with the names between its backticks changed.
fn said_outside(message: &str, renamed: &[(String, String)]) -> String {
    let said = |part: &str| {
        let base = part.trim_end_matches('\'');
        let outer = renamed.iter().find(|(inner, _)| inner == base).map(|(_, outer)| outer);
        outer.map(|outer| format!("{outer}{}", &part[base.len()..]))
    };
    let parts = message.split('`').enumerate().map(|(i, part)| match (i % 2, said(part)) {
        (1, Some(outer)) => outer,
        _ => part.to_string(),
    });
    parts.collect::<Vec<String>>().join("`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_between_backticks_change() {
        let renamed = [("t".to_string(), "time".to_string())];
        assert_eq!(
            said_outside("only the left has `t`, a t; `t'` and `x[t]`", &renamed),
            "only the left has `time`, a t; `time'` and `x[t]`"
        );
        assert_eq!(
            words("axis `t'` of [t: 4, from.width: 3].").collect::<Vec<_>>(),
            ["axis", "t'", "of", "t", "4", "from.width", "3"]
        );
    }
}
