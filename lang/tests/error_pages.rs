//! Each code has a page; its wrong example gives exactly that code, its right one nothing.

use mdl_lang::diag::{Code, Sources, explain, render};
use mdl_lang::syntax::parse;

/// Mistakes that no short text can show; `syntax_soup.rs` makes them.
const NOT_IN_TEXT: [Code; 7] =
    [Code::E0105, Code::E0106, Code::E0117, Code::E0318, Code::E0601, Code::E0602, Code::E0705];

/// The fenced blocks of a page that are marked so.
fn examples<'a>(page: &'a str, mark: &str) -> Vec<&'a str> {
    let fence = format!("```mdl {mark}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

fn diagnose(text: &str) -> (Vec<Code>, String) {
    let mut sources = Sources::new();
    let id = sources.add("example.mdl", text);
    let (_, diagnostics) = parse(id, text);
    (diagnostics.iter().map(|diagnostic| diagnostic.code).collect(), render(&diagnostics, &sources))
}

#[test]
fn pages_open_with_the_title_of_their_code() {
    for code in Code::ALL {
        let page = explain(code.text()).unwrap();
        let heading = format!("# {code}: {}", code.title());
        assert_eq!(page.lines().next(), Some(heading.as_str()));
    }
    assert!(explain("e0102").is_some() && explain("E9999").is_none());
}

#[test]
fn syntax_examples_do_what_they_say() {
    for &code in Code::ALL.iter().filter(|code| code.text().starts_with("E01")) {
        let page = code.page();
        let (wrong, right) = (examples(page, "wrong"), examples(page, "right"));
        if NOT_IN_TEXT.contains(&code) {
            continue;
        }
        assert!(!wrong.is_empty() && !right.is_empty(), "{code} lacks examples");
        for text in wrong {
            let (codes, report) = diagnose(text);
            assert_eq!(codes, [code], "{text}\n{report}");
        }
        for text in right {
            let (codes, report) = diagnose(text);
            assert!(codes.is_empty(), "{text}\n{report}");
        }
    }
}

/// Right examples of all pages, and what the documents show, at least parse.
#[test]
fn examples_in_documents_parse() {
    for code in Code::ALL {
        for text in examples(code.page(), "right") {
            let (codes, report) = diagnose(text);
            assert!(codes.is_empty(), "{code}: {text}\n{report}");
        }
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for name in ["README.md", "docs/tutorial.md", "docs/language.md", "docs/syntax.md"] {
        let page = std::fs::read_to_string(root.join(name)).unwrap();
        let blocks = page.split("```mdl\n").skip(1).filter_map(|rest| rest.split("\n```").next());
        // What is abbreviated is a sketch.
        for text in blocks.filter(|text| !text.contains('…')) {
            let (codes, report) = diagnose(text);
            assert!(codes.is_empty(), "{name}: {text}\n{report}");
        }
    }
}
