//! The parser on every `.mdl` at hand: what must parse, what must not, and what it says then.

use std::path::{Path, PathBuf};

use mdl_lang::diag::{Sources, render};
use mdl_lang::syntax::parse;

/// The texts that the repository holds, and those of the design when they lie beside it.
fn recipes() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for folder in ["stdlib", "examples", "tests", "../shared/design/programs"] {
        collect(&root.join(folder), &mut found);
    }
    // Goldens hold mistakes on purpose.
    found.retain(|path| !path.components().any(|part| part.as_os_str() == "golden"));
    found.sort();
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "mdl") {
            found.push(path);
        }
    }
}

fn errors_of(name: &str, text: &str) -> String {
    let mut sources = Sources::new();
    let id = sources.add(name, text);
    let (_, diagnostics) = parse(id, text);
    render(&diagnostics, &sources)
}

#[test]
fn all_recipes_parse() {
    let recipes = recipes();
    assert!(!recipes.is_empty(), "no recipe found");
    let mut report = String::new();
    for path in recipes {
        let text = std::fs::read_to_string(&path).unwrap();
        report += &errors_of(&path.display().to_string(), &text);
    }
    assert!(report.is_empty(), "{report}");
}
