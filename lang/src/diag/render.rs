//! Diagnostics as compact plain text, the same on every machine: what golden tests compare.

use std::fmt::Write;

use super::{Diagnostic, Severity, Sources};

/// One paragraph per diagnostic:
///
/// ```text
/// error[E0102]: `(` is not closed
///   recipe.mdl:3:12: this `(`
///   recipe.mdl:9:1: the next item begins here
///   help: close it with `)`
/// ```
pub fn render(diagnostics: &[Diagnostic], sources: &Sources) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        let severity = match diagnostic.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        // Writing into a `String` cannot fail.
        let _ = writeln!(text, "{severity}[{}]: {}", diagnostic.code, diagnostic.message);
        for label in &diagnostic.labels {
            let name = sources.get(label.span.file).map_or("?", |source| source.name.as_str());
            let (line, column) = sources.position(label.span);
            let colon = if label.message.is_empty() { "" } else { ": " };
            let _ = writeln!(text, "  {name}:{line}:{column}{colon}{}", label.message);
        }
        if let Some(help) = &diagnostic.help {
            let _ = writeln!(text, "  help: {help}");
        }
    }
    text
}
