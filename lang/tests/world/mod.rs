//! What several tests of the syntax need.

use mdl_lang::syntax::ast::FileId;
use mdl_lang::syntax::parse;

/// A tree without its spans, to compare two texts that differ in their blanks.
pub(crate) fn bare(text: &str) -> serde_json::Value {
    let (file, diagnostics) = parse(FileId(0), text);
    assert!(diagnostics.is_empty(), "{diagnostics:?}");
    let mut tree = serde_json::to_value(file).unwrap();
    strip_spans(&mut tree);
    tree
}

pub(crate) fn strip_spans(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.retain(|key, _| key != "span" && key != "op_span");
            map.values_mut().for_each(strip_spans);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(strip_spans),
        _ => {}
    }
}
