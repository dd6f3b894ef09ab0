//! The parser on every `.mdl` at hand: what must parse, what must not, and what it says then.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

mod common;

use common::{bare, strip_spans};
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

/// A tree as compact text: `Variant(inner)`, fields that are empty left out, broken where a line would be too long.
fn show(value: &serde_json::Value, indent: usize, out: &mut String) {
    use serde_json::Value;
    let flat = show_flat(value);
    if indent + flat.len() <= 110 {
        out.push_str(&flat);
        return;
    }
    let pad = " ".repeat(indent + 2);
    match value {
        Value::Array(list) => {
            out.push('[');
            for item in list {
                *out += &format!("\n{pad}");
                show(item, indent + 2, out);
            }
            out.push(']');
        }
        Value::Object(map) if map.len() == 1 => {
            let (key, inner) = map.iter().next().unwrap();
            if key != "kind" {
                *out += &format!("{key} ");
            }
            show(inner, indent, out);
        }
        Value::Object(map) => {
            out.push('{');
            for (key, inner) in map.iter().filter(|(_, inner)| !is_empty(inner)) {
                *out += &format!("\n{pad}{key}: ");
                show(inner, indent + 2, out);
            }
            out.push('}');
        }
        _ => out.push_str(&flat),
    }
}

fn show_flat(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::String(text) if text.chars().all(|c| c.is_alphanumeric() || "_.'".contains(c)) && !text.is_empty() => {
            text.clone()
        }
        Value::Array(list) => format!("[{}]", list.iter().map(show_flat).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.len() == 1 => match map.iter().next().unwrap() {
            (key, inner) if key == "kind" || key == "text" => show_flat(inner),
            (key, inner @ Value::Object(_)) => format!("{key} {}", show_flat(inner)),
            (key, inner) => format!("{key}({})", show_flat(inner)),
        },
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, inner)| !is_empty(inner));
            let fields: Vec<String> = fields.map(|(key, inner)| format!("{key}: {}", show_flat(inner))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

fn is_empty(value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[test]
fn golden() {
    insta::glob!("golden/parse/*.mdl", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut sources = Sources::new();
        let id = sources.add(path.file_name().unwrap().to_string_lossy(), &text);
        let (file, diagnostics) = parse(id, &text);
        let mut out = render(&diagnostics, &sources);
        let mut tree = serde_json::to_value(&file).unwrap();
        strip_spans(&mut tree);
        for item in tree["items"].as_array().unwrap() {
            out.push('\n');
            show(item, 0, &mut out);
        }
        insta::with_settings!({ snapshot_path => "golden/parse", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(out);
        });
        if diagnostics.is_empty() {
            let once = format(&text).unwrap();
            assert_eq!(once, format(&once).unwrap());
            assert!(bare(&text) == bare(&once), "formatting changes {}", path.display());
        }
    });
}
