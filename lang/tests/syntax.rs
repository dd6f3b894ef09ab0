//! The parser on every `.mdl` at hand: what must parse, what must not, and what it says then.

use std::path::{Path, PathBuf};

use mdl_lang::diag::{Sources, render};
use mdl_lang::syntax::{format, parse};

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

/// A tree without its spans, to compare two texts that differ in their blanks.
fn bare(text: &str) -> serde_json::Value {
    let (file, diagnostics) = parse(mdl_lang::syntax::ast::FileId(0), text);
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    let mut tree = serde_json::to_value(file).unwrap();
    strip_spans(&mut tree);
    tree
}

fn strip_spans(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|key, _| key != "span" && key != "op_span");
            map.values_mut().for_each(strip_spans);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(strip_spans),
        _ => {}
    }
}

#[test]
fn formatting_keeps_the_tree_and_settles_at_once() {
    for path in recipes() {
        let text = std::fs::read_to_string(&path).unwrap();
        let once = format(&text).unwrap();
        let twice = format(&once).unwrap();
        assert_eq!(once, twice, "{} changes when formatted again", path.display());
        assert!(bare(&text) == bare(&once), "{} means something else when formatted", path.display());
        let n_comments = |text: &str| text.matches("//").count();
        assert_eq!(n_comments(&text), n_comments(&once), "{} lost a comment", path.display());
        if let Some(folder) = std::env::var_os("MDL_FMT_OUT") {
            std::fs::write(Path::new(&folder).join(path.file_name().unwrap()), &once).unwrap();
        }
    }
}
