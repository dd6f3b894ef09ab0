//! Whatever the text, the parser gives an answer, soon, and on any stack.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use mdl_lang::syntax::ast::FileId;
use mdl_lang::syntax::{decode, format, parse};
use proptest::prelude::*;

/// Pieces of recipes; soup made of them reaches far deeper than random bytes.
const PIECES: &[&str] = &[
    "fn f(x) = ",
    "layer A[a]() {",
    "}",
    "{",
    "(",
    ")",
    "[",
    "]",
    ",",
    "let x = ",
    "next m = ",
    "\n",
    "\n",
    " ",
    "a",
    "t'",
    "..",
    "..from",
    "->",
    "as",
    "at",
    "if a {",
    "} else {",
    "for i in",
    "+",
    "-",
    "*",
    "^",
    "==",
    "=",
    ":",
    "1",
    "0.5",
    "90%",
    "4M tokens",
    "\"s\"",
    "\"",
    "// c\n",
    "/// d\n",
    "fn(x) = ",
    "repeat[layer] ",
    "each[",
    "not ",
    "and ",
    "weight w: [a] = ",
    "axis t = 3\n",
    "train base {",
    "use ",
    "f(",
    "x[t = ",
    "_",
    ".",
    "?",
    "none",
    "\\",
    "é",
    "\t",
    "\r\n",
    "optimizer o() {",
    "%",
    "|",
];

/// Parses, and formats what has no error: twice is once.
fn survive(text: &str) {
    let (_, diagnostics) = parse(FileId(0), text);
    for diagnostic in &diagnostics {
        assert!(!diagnostic.labels.is_empty(), "no place: {diagnostic:?}");
        for label in &diagnostic.labels {
            assert!(label.span.start <= label.span.end && label.span.end as usize <= text.len(), "{diagnostic:?}");
        }
    }
    if let Ok(once) = format(text) {
        assert_eq!(format(&once).as_deref(), Ok(once.as_str()), "{text:?}");
        assert!(common::bare(text) == common::bare(&once), "{text:?} becomes {once:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        match decode(FileId(0), bytes) {
            Ok(text) => survive(&text),
            Err(diagnostic) => prop_assert_eq!(diagnostic.code.text(), "E0106"),
        }
    }

    #[test]
    fn characters(text in "[ -~\n]{0,200}") {
        survive(&text);
    }

    #[test]
    fn soup(picks in proptest::collection::vec(0..PIECES.len(), 0..120)) {
        survive(&picks.into_iter().map(|pick| PIECES[pick]).collect::<String>());
    }

    /// A sound recipe with a hole in it.
    #[test]
    fn torn(start in 0usize..4000, length in 0usize..60) {
        let text = include_str!("golden/parse/expressions.mdl");
        let start = text.floor_char_boundary(start.min(text.len()));
        let end = text.ceil_char_boundary((start + length).min(text.len()));
        survive(&format!("{}{}", &text[..start], &text[end..]));
    }
}

/// Expressions that parse, with odd spacing between their tokens.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("a"),
        Just("t'"),
        Just("0.5"),
        Just("90%"),
        Just("4M tokens"),
        Just("\"s // x\""),
        Just("none"),
        Just("_"),
        Just("at"),
        Just("x[t = -1]"),
        Just("x[(a, b) as c]"),
        Just("Linear[width -> ]()"),
        Just("[]"),
        Just("()"),
        Just("r.next"),
        Just("-a"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 40, 4, |inner| {
        let op = prop_oneof![
            Just(" + "),
            Just("-"),
            Just(" *\n"),
            Just("/"),
            Just("^"),
            Just(" and "),
            Just(" or\n"),
            Just(" % "),
            Just(" at "),
        ];
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, op, b)| format!("{a}{op}{b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("f({a},\n{b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("(k: {a}, // why\n..r, l : {b} )")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a} , ({b}), 0..3]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("g[t:s]({a}) fn(x,y)={b}")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("(if {a} {{ {b} }} else\n {{\n\n\n// c\n{c} }})")),
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| format!("({{ let (x,_):[..,t]={a}\n loss l={b}\n\n  x }})")),
            inner.clone().prop_map(|a| format!("[{a} for i in 0..4]")),
            inner.prop_map(|a| format!("(not {a} == b)")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// What parses, the formatter leaves what it is.
    #[test]
    fn sound_expressions(list in proptest::collection::vec(expression(), 1..4)) {
        let mut text = String::new();
        for (idx, expression) in list.iter().enumerate() {
            text += &format!("fn f{idx}(x:[..,t],n:Int=3)->[..]={expression}  // end\n");
            text += &format!("train s{idx} {{ a={expression}, long = {expression}\n b = 1 }}\n");
        }
        let (_, diagnostics) = parse(FileId(0), &text);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostic.code.text() == "E0114"), "{text}: {diagnostics:?}");
        survive(&text);
    }
}

/// Runs on a stack of 256 KiB: less than any thread has that parses in earnest.
fn on_small_stack(text: String) -> (Vec<&'static str>, Duration) {
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
        let start = Instant::now();
        let (_, diagnostics) = parse(FileId(0), &text);
        (diagnostics.iter().map(|diagnostic| diagnostic.code.text()).collect(), start.elapsed())
    });
    thread.unwrap().join().unwrap()
}

#[test]
fn depth_is_capped_at_once() {
    let deep = 100_000;
    let texts = [
        format!("fn f() = {}{}", "(".repeat(deep), ")".repeat(deep)),
        format!("fn f() = {}", "(".repeat(deep)),
        format!("fn f() = {}", "[".repeat(deep)),
        format!("fn f() = {}", "f(a: ".repeat(deep)),
        format!("fn f() = {}", "x[t = ".repeat(deep)),
        format!("fn f() = {}", "{ ".repeat(deep)),
        format!("fn f() = {}1", "fn(x) = ".repeat(deep)),
        format!("fn f() = {}1", "fn(x) =\n".repeat(deep)),
        format!("fn f() = {}B()", "repeat[a] ".repeat(deep)),
        format!("fn f() = {}1", "if a { b } else if c { d } else { if ".repeat(deep)),
        format!("fn f() = {}a", "- ".repeat(deep)),
        format!("fn f() = a{}", " + a".repeat(deep)),
        format!("fn f() = a{}", " ^ a".repeat(deep)),
        format!("fn f() = a{}", ".a".repeat(deep)),
        format!("fn f() = a{}", "()".repeat(deep)),
        format!("fn f(x: {}", "[".repeat(deep)),
    ];
    for text in texts {
        let head: String = text.chars().take(30).collect();
        let (codes, elapsed) = on_small_stack(text);
        assert_eq!(codes, ["E0105"], "{head}");
        assert!(elapsed < Duration::from_secs(2), "{head}: {elapsed:?}");
    }
}

/// The deepest that is allowed, right and wrong in the middle: linear, since no two alternatives share a long prefix.
#[test]
fn allowed_depth_is_fast() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("f(a: ", ")"),
        ("x[t = ", "]"),
        ("x[(a, b) as c: ", "]"),
        ("g(", ")"),
        ("{ ", " }"),
        ("each[a: ", "]"),
        ("(a: ", ")"),
        ("fn(x = ", ") = 1"),
        ("if a { ", " } else { 1 }"),
    ] {
        for middle in ["1", "", "1 1", "a as", "= ="] {
            // A lambda in brackets counts twice.
            let n =
                if open.starts_with("fn") || open.starts_with("if") || open.starts_with("each") { 120 } else { 250 };
            let text = format!("fn f() = {}{middle}{}", open.repeat(n), close.repeat(n));
            let (codes, elapsed) = on_small_stack(text);
            assert!(codes.len() <= 1 && !codes.contains(&"E0105"), "{open}{middle}: {codes:?}");
            assert!(elapsed < Duration::from_secs(2), "{open}{middle}: {elapsed:?}");
        }
    }
}

#[test]
fn size_is_no_matter() {
    let line = "fn f(x: [.., t], y: Int = 3) -> [.., t] = { let z = softmax[t](x * y + 1)\n  z[t as s] }\n";
    let (codes, elapsed) = on_small_stack(line.repeat(5_000));
    assert!(codes.is_empty());
    assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    for line in ["\n", "// comment\n", "/// doc\n", "x\n", "{}", "a = 1,\n", "0, "] {
        let (_, elapsed) = on_small_stack(format!("fn f() = 1\n{}", line.repeat(200_000)));
        assert!(elapsed < Duration::from_secs(5), "{line:?}: {elapsed:?}");
    }
    let start = Instant::now();
    let lists = format!("// c\n{}fn f() = [{}]\n", "// d\n".repeat(50_000), "12_345, ".repeat(20_000));
    let once = format(&lists).unwrap();
    assert!(once.lines().all(|line| line.len() <= 120));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let (codes, _) = on_small_stack("x".repeat(17 << 20));
    assert_eq!(codes, ["E0117"]);
}

#[test]
fn text_that_is_not_utf8_is_told_where() {
    let diagnostic = decode(FileId(0), b"axis t = 3\n// \xff\n".to_vec()).unwrap_err();
    assert_eq!(diagnostic.code.text(), "E0106");
    assert_eq!(diagnostic.message, "byte 14, on line 2, is not UTF-8 text");
}
