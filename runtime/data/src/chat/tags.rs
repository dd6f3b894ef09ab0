//! A template's tags, looked at before it is compiled.
//!
//! `{% generation %}` is a tag that `transformers` adds to Jinja: here it becomes the inclusion of a mark, which keeps the rules
//! for white space around tags. And every value that a template keeps goes through a filter that refuses to let it grow without end:
//! doubling a text forty times takes little fuel.

use super::template::{BEGIN, END, TemplateError};

pub(super) const BEGIN_TEMPLATE: &str = "begin of an answer";
pub(super) const END_TEMPLATE: &str = "end of an answer";

/// The name of the filter that refuses what is too large.
pub(super) const BOUNDED: &str = "mdl_bounded";

/// The template for the engine, and whether it marks answers.
pub(super) fn rewrite(source: &str) -> Result<(String, bool), TemplateError> {
    if source.contains([BEGIN, END]) {
        return Err(TemplateError::new("it has U+FDD0 or U+FDD1, which are no characters"));
    }
    let mut out = String::with_capacity(source.len() + 64);
    let mut marks = false;
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let close = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            Some(b'{') => close_of(tag, "}}"),
            Some(b'%') => close_of(tag, "%}"),
            _ => Some(1),
        };
        // What is not closed the engine reports.
        let (tag, left) = tag.split_at(close.unwrap_or(tag.len()));
        match tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")) {
            Some(inner) => out.push_str(&tag_of(inner, &mut marks)),
            None => out.push_str(tag),
        }
        // In a raw block nothing is a tag.
        rest = left;
        if tag.starts_with("{%") && words(tag).eq(["raw"]) {
            let end = left.find("endraw").unwrap_or(left.len());
            out.push_str(&left[..end]);
            // `endraw` itself stands in a tag that is cut in two: the rest of it is no tag.
            let close = left[end..].find("%}").map_or(left.len(), |more| end + more + 2);
            out.push_str(&left[end..close]);
            rest = &left[close..];
        }
    }
    out.push_str(rest);
    Ok((out, marks))
}

fn words(tag: &str) -> impl Iterator<Item = &str> {
    tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).split_whitespace()
}

/// Where a tag ends: behind `close`, outside of texts.
fn close_of(tag: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let bytes = tag.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return Some(at + close.len()),
            _ => {}
        }
        at += 1;
    }
    None
}

/// A `{% … %}` as the engine shall have it.
fn tag_of(inner: &str, marks: &mut bool) -> String {
    let (open, body) = split_sign(inner);
    let shut = if body.ends_with(['-', '+']) { &body[body.len() - 1..] } else { "" };
    let body = &body[..body.len() - shut.len()];
    let mark = match body.trim() {
        "generation" => Some(BEGIN_TEMPLATE),
        "endgeneration" => Some(END_TEMPLATE),
        _ => None,
    };
    if let Some(mark) = mark {
        *marks = true;
        return format!("{{%{open} include \"{mark}\" {shut}%}}");
    }
    let trimmed = body.trim();
    let set = trimmed.strip_prefix("set").filter(|rest| rest.starts_with(char::is_whitespace));
    if let Some((target, value)) = set.and_then(assignment) {
        return format!("{{%{open} set {target} = ({value}) | {BOUNDED} {shut}%}}");
    }
    let definition = trimmed.strip_prefix("macro").filter(|rest| rest.starts_with(char::is_whitespace));
    if let Some([others @ .., last]) = definition.and_then(parameters).as_deref() {
        // What a macro is given is looked at inside: it may call itself with more each time.
        let mut text = format!("{{%{open}{body}%}}");
        for name in others {
            text.push_str(&format!("{{% set {name} = {name} | {BOUNDED} %}}"));
        }
        text.push_str(&format!("{{% set {last} = {last} | {BOUNDED} {shut}%}}"));
        return text;
    }
    format!("{{%{inner}%}}")
}

fn split_sign(inner: &str) -> (&str, &str) {
    if inner.starts_with(['-', '+']) { inner.split_at(1) } else { ("", inner) }
}

/// The two sides of `name = value`; of several names at once none is a text by itself.
fn assignment(text: &str) -> Option<(&str, &str)> {
    let (target, value) = text.split_once('=')?;
    let is_name = target.trim().chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.');
    (is_name && !value.starts_with('=')).then(|| (target.trim(), value.trim()))
}

/// The names of a macro's parameters.
fn parameters(text: &str) -> Option<Vec<&str>> {
    let (_, list) = text.split_once('(')?;
    let list = list.strip_suffix(')').or_else(|| list.trim_end().strip_suffix(')'))?;
    Some(list.split(',').filter_map(|part| part.split('=').next()).map(str::trim).filter(|n| !n.is_empty()).collect())
}
