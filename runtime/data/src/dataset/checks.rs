//! What examples must be before they are encoded: there, of a kind that the block's form takes, with labels that agree.

use crate::problem::{BAD_LABEL, EMPTY, MISMATCH, Problem, SPLIT, WINDOW};
use crate::source::{Document, Examples, Pictures, Sounds};
use mdl_graph::Axis;
use mdl_lang::spec::{DataSpec, Form, Source};

pub(super) fn not_empty(name: &str, examples: &Examples, n_parts: usize) -> Option<Problem> {
    let is_empty = match examples {
        Examples::Text(text) => text.is_empty(),
        Examples::Documents(documents) => documents.is_empty(),
        Examples::Pictures(pictures) => pictures.is_empty(),
        Examples::Sounds(sounds) => sounds.ends.is_empty(),
        Examples::Ids { ids, .. } => ids.is_empty(),
    };
    is_empty.then(|| {
        if n_parts == 1 {
            Problem::new(EMPTY, "the sources hold no text, no row, no picture and no sound")
        } else {
            Problem::new(SPLIT, format!("the part {name} gets nothing"))
                .help("its share is too small for this much data, or its files are empty")
        }
    })
}

/// Whether source, tokenizer and form go together.
pub(super) fn fits(spec: &DataSpec, examples: &Examples) -> Option<Problem> {
    let wrong = |message: &str, help: &str| Some(Problem::new(MISMATCH, message).help(help));
    let has_tokenizer = spec.tokenizer.is_some();
    match (examples, &spec.form) {
        (Examples::Pictures(_), Form::Window { .. } | Form::Pad { .. } | Form::Pack { .. }) => {
            wrong("pictures have no positions to cut or fill", "take `window`, `pad` or `pack` out")
        }
        (Examples::Pictures(_), Form::Rows) if has_tokenizer => {
            wrong("pictures are not tokenized", "take `tokenizer` out")
        }
        (Examples::Pictures(_), Form::Rows) => None,
        (Examples::Sounds(_), Form::Pad { .. }) if !has_tokenizer => None,
        (Examples::Sounds(_), _) => {
            wrong("sounds are cut or filled to an axis", "take `pad = sample`, and no tokenizer")
        }
        (_, Form::Rows) => wrong(
            "a batch of texts needs a length",
            "add `window = t` for pieces of a running text, or `pad = t` for a row per example",
        ),
        (Examples::Ids { .. }, _) if has_tokenizer => {
            wrong("generated tokens are numbers already", "take `tokenizer` out")
        }
        (Examples::Text(_) | Examples::Ids { .. }, Form::Pad { .. } | Form::Pack { .. }) => {
            wrong("a running text has no rows", "take `window = t` in place of `pad` or `pack`")
        }
        (Examples::Ids { .. }, Form::Window { .. }) => None,
        (Examples::Text(_) | Examples::Documents(_), _) if !has_tokenizer => wrong(
            "text needs a tokenizer",
            "add `tokenizer = chars()`, `bytes()`, `bpe(vocab: 8_192)` or `tokenizer(\"…\")`",
        ),
        (Examples::Documents(documents), Form::Window { .. }) if documents.iter().any(|d| d.label.is_some()) => wrong(
            "a window runs across documents, so their labels have no place",
            "take `pad = t`, or leave the label out",
        ),
        (Examples::Documents(documents), Form::Pack { .. }) if documents.iter().any(|d| d.label.is_some()) => {
            wrong("a packed row has many documents and room for one label", "take `pad = t`, or leave the label out")
        }
        (Examples::Documents(documents), Form::Pad { .. })
            if spec.order.as_ref().is_some_and(|order| order.by.has_label())
                && documents.iter().any(|document| document.label.is_none()) =>
        {
            wrong("the order of the rows asks for their `label`, and not all have one", "order them by `length`")
        }
        (Examples::Text(_) | Examples::Documents(_), _) => None,
    }
}

/// Whether the pictures of all parts have one size, and the sounds one rate.
pub(super) fn alike(parts: &[(String, Examples)]) -> Option<Problem> {
    let (first, of_first) = parts.first()?;
    parts.iter().skip(1).find_map(|(name, examples)| {
        let message = match (of_first, examples) {
            (Examples::Pictures(a), Examples::Pictures(b)) => {
                let [a, b] = [a, b].map(|p| (p.rows, p.columns, p.channels));
                (a != b).then(|| format!("the pictures of {first} are {a:?}, and those of {name} {b:?}"))
            }
            (Examples::Sounds(a), Examples::Sounds(b)) => (a.rate != b.rate).then(|| {
                format!("the sounds of {first} have {} samples a second, and those of {name} {}", a.rate, b.rate)
            }),
            _ => None,
        };
        Some(Problem::new(MISMATCH, message?).help("what a model sees has one size: bring the files to it first"))
    })
}

/// The distinct labels in order: as numbers where all are numbers, else as text.
pub(super) fn number_labels(spec: &DataSpec, parts: &[(String, Examples)]) -> Result<Vec<String>, Problem> {
    let mut per_part: Vec<Vec<String>> = Vec::new();
    let (mut n_with, mut without, mut is_bare): (usize, Option<&Document>, bool) = (0, None, false);
    for (_, examples) in parts {
        let mut found: Vec<String> = match examples {
            Examples::Documents(documents) => {
                n_with += documents.iter().filter(|document| document.label.is_some()).count();
                without = without.or(documents.iter().find(|document| document.label.is_none()));
                documents.iter().filter_map(|document| document.label.clone()).collect()
            }
            Examples::Pictures(Pictures { labels, .. }) | Examples::Sounds(Sounds { labels, .. }) => {
                // One for each, or none.
                n_with += labels.len();
                is_bare |= labels.is_empty();
                labels.clone()
            }
            Examples::Text(_) | Examples::Ids { .. } => Vec::new(),
        };
        found.sort_unstable();
        found.dedup();
        per_part.push(found);
    }
    if let (true, Some(document)) = (n_with > 0, without) {
        return Err(Problem::new(BAD_LABEL, "some rows have a label and others have none").line(document.line));
    }
    if n_with > 0 && is_bare {
        let problem = Problem::new(BAD_LABEL, "some parts have labels and others have none");
        return Err(problem.help("write `{label}` into the path of each part, or of none"));
    }
    let mut labels: Vec<String> = per_part.concat();
    labels.sort_unstable();
    labels.dedup();
    if let Some(empty) = labels.iter().find(|label| label.is_empty()) {
        return Err(Problem::new(BAD_LABEL, format!("a label is empty: `{empty}`")));
    }
    if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
        labels.sort_by_key(|label| label.parse::<i64>().unwrap_or(0));
    } else if spec.sources.iter().any(|source| matches!(source, Source::Lines { .. })) {
        let wrong = labels.iter().find(|label| label.parse::<i64>().is_err()).cloned().unwrap_or_default();
        let message = format!("`{wrong}` is not the number of a label");
        return Err(Problem::new(BAD_LABEL, message).help("each line is `label sentence`, the label an integer"));
    }
    if let Some(trained) = per_part.first() {
        for ((name, _), found) in parts.iter().zip(&per_part).skip(1) {
            if let Some(label) = found.iter().find(|label| !trained.contains(label)) {
                let (first, message) = (&parts[0].0, format!("the label `{label}` is in {name}"));
                return Err(Problem::new(
                    BAD_LABEL,
                    format!("{message} and not in {first}, where it would be learned"),
                )
                .help("`stratify: label` in the split gives each part its share of every label"));
            }
        }
    }
    Ok(labels)
}

/// Whether a running text of `n` tokens has room for a window.
pub(super) fn window_fits(name: &str, n: u64, axis: &Axis, is_first: bool) -> Option<Problem> {
    // Each token of a window has a next one; an evaluation gets by with a part of a window.
    let needed = if is_first { axis.size + 1 } else { 2 };
    (n < needed).then(|| {
        let message = format!("a window of {} needs {needed} tokens, and {name} has {n}", axis.size);
        Problem::new(WINDOW, message).help("take a shorter window, more text, or a larger share for this part")
    })
}
