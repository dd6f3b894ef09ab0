//! A `data` block as a [`DataSpec`], and what it is in expressions: its vocabulary, its classes, its parts.

use crate::diag::{Code, Diagnostic};
use crate::spec::{
    ChatColumns, ChatFormat, Curriculum, DataSpec, Difficulty, Form, Long, Part, Share, Source, Split, Template,
    Tokenizer,
};
use crate::syntax::ast::{Arg, ArgKind, BinaryOp, Expr, ExprKind, Name, RecordPart, Span, UnaryOp, Unit};

use super::fields::Fields;
use super::read::{self, Called, Compute, Plain, wrong_type};
use super::schema::{FieldRow, Takes};

/// Reads the fields of a block; `None` when something in it was reported. `span` is that of the block's name. When the
/// names of fields were wrong already, what is missing beside them is not reported again.
pub(crate) fn read(compute: &mut dyn Compute, fields: &Fields<'_>, span: Span, are_named: bool) -> Option<DataSpec> {
    // Each field is read even when another one is wrong, so that one run reports them all.
    let sources = fields.get("source").map(|(row, expr)| read_sources(compute, row, expr));
    let tokenizer = fields.get("tokenizer").map(|(row, expr)| read_tokenizer(compute, row, expr));
    let split = fields.get("split").map(|(row, expr)| read_split(compute, row, expr));
    let window = fields.get("window").map(|(row, expr)| read::axis(compute, row, expr));
    let pad = fields.get("pad").map(|(row, expr)| read::axis(compute, row, expr));
    let pack = fields.get("pack").map(|(row, expr)| read::axis(compute, row, expr));
    let template = fields.get("template").map(|(row, expr)| read_template(compute, row, expr));
    let seed = fields.get("seed").map(|(row, expr)| read::count(compute, row, expr));
    let order = fields.get("order").map(|(row, expr)| read_order(compute, row, expr));

    let sources = whole(sources)?;
    let tokenizer = whole(tokenizer)?;
    let split = whole(split)?.unwrap_or_default();
    let (window, pad, pack) = (whole(window)?, whole(pad)?, whole(pack)?);
    let template = whole(template)?;
    let seed = whole(seed)?.map(|count| count.value);
    let order = whole(order)?.map(Box::new);
    if let (Some(given), Some(of_split)) = (fields.span("seed"), split.seed) {
        compute.report(
            Diagnostic::error(Code::E0305, "the seed of the data is given twice")
                .label(given, "here")
                .label(of_split.1, "and in `split`"),
        );
        return None;
    }
    let given: Vec<(&str, &str)> = [
        ("window", "pieces of a running text"),
        ("pad", "a row for each example"),
        ("pack", "several examples in a row"),
    ]
    .into_iter()
    .filter(|(name, _)| fields.span(name).is_some())
    .collect();
    if let [(first, is_first), (second, is_second), ..] = given.as_slice() {
        compute.report(
            Diagnostic::error(Code::E0308, format!("`{first}` and `{second}` do not go together"))
                .label(fields.span(first).unwrap_or(span), *is_first)
                .label(fields.span(second).unwrap_or(span), *is_second)
                .help("keep `window` for running text, `pad` for rows of their own, `pack` for rows that share"),
        );
        return None;
    }
    let form = match (window, pad, pack) {
        (Some(axis), ..) => Form::Window { axis },
        (_, Some(axis), _) => Form::Pad { axis },
        (_, _, Some(axis)) => Form::Pack { axis },
        (None, None, None) => Form::Rows,
    };
    let parts = if split.parts.is_empty() {
        vec![Part { name: "train".to_owned(), share: Share::Fraction(1.0) }]
    } else {
        split.parts
    };
    let spec = DataSpec {
        sources: sources.unwrap_or_default(),
        tokenizer,
        template,
        split: Split { parts, stratify: split.stratify.is_some() },
        form,
        seed: seed.or(split.seed.map(|(seed, _)| seed)).unwrap_or(0),
        order,
    };
    (are_named && go_together(compute, fields, &spec, span)).then_some(spec)
}

/// `order = easy_first(by: length, over: 10_000)`
fn read_order(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Curriculum> {
    let called = read::calls(compute, row, expr)?.pop()?;
    let by = match called.get("by") {
        Some((row, expr)) => difficulty(compute, row, expr),
        None => Some(Difficulty::Length),
    };
    let over = called.count(compute, "over");
    let from = called.number(compute, "from");
    let (by, over, from) = (by?, over?, from?);
    if from > 1.0 {
        let message = format!("training cannot begin with {from} of the rows");
        let place = called.get("from").map_or(called.span, |(_, expr)| expr.span);
        compute
            .report(Diagnostic::error(Code::E0306, message).label(place, "more than all of them").help("such as `1%`"));
        return None;
    }
    Some(Curriculum { by, over, from })
}

fn difficulty(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Difficulty> {
    Some(match &expr.kind {
        ExprKind::Name(name) if name == "length" => Difficulty::Length,
        ExprKind::Name(name) if name == "label" => Difficulty::Label,
        ExprKind::Binary { op, left, right, .. } => {
            let make = match op {
                BinaryOp::Add => Difficulty::Add,
                BinaryOp::Sub => Difficulty::Sub,
                BinaryOp::Mul => Difficulty::Mul,
                BinaryOp::Div => Difficulty::Div,
                other => {
                    compute.report(wrong_type(row, expr.span, &format!("`{}`", other.text())));
                    return None;
                }
            };
            let (left, right) = (difficulty(compute, row, left), difficulty(compute, row, right));
            make(Box::new(left?), Box::new(right?))
        }
        ExprKind::Unary { op: UnaryOp::Neg, value } => {
            let value = difficulty(compute, row, value)?;
            Difficulty::Sub(Box::new(Difficulty::Number(0.0)), Box::new(value))
        }
        ExprKind::Call { callee, args } => match (&callee.kind, args.as_slice()) {
            (ExprKind::Name(name), [Arg { kind: ArgKind::Positional(value), .. }]) if name == "abs" => {
                Difficulty::Abs(Box::new(difficulty(compute, row, value)?))
            }
            _ => {
                compute.report(wrong_type(row, expr.span, "another call"));
                return None;
            }
        },
        _ => match compute.plain(expr)? {
            Plain::Int(value) => Difficulty::Number(value as f64),
            Plain::Float(value) => Difficulty::Number(value),
            other => {
                compute.report(wrong_type(row, expr.span, &other.came()));
                return None;
            }
        },
    })
}

/// `Some(None)` is a field that was given and is wrong.
fn whole<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        None => Some(None),
        Some(None) => None,
        Some(value) => Some(value),
    }
}

fn read_sources(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Vec<Source>> {
    let called = read::calls(compute, row, expr)?;
    let sources: Vec<_> = called.iter().map(|called| source(compute, called)).collect();
    sources.into_iter().collect()
}

fn source(compute: &mut dyn Compute, called: &Called<'_>) -> Option<Source> {
    let span = called.span;
    Some(match called.row.name {
        "text" => Source::Text { path: called.text(compute, "path")?, span },
        "jsonl" => {
            let (path, text, label) = rows(compute, called)?;
            Source::Jsonl { path, text, label, span }
        }
        "csv" => {
            let (path, text, label) = rows(compute, called)?;
            let header = match called.get("header") {
                Some((row, expr)) => read::boolean(compute, row, expr)?,
                None => true,
            };
            let delimiter = delimiter(compute, called)?;
            Source::Csv { path, text, label, header, delimiter, span }
        }
        "lines" => Source::Lines { path: called.text(compute, "path")?, span },
        "chat" => chat(compute, called)?,
        "idx" => {
            let images = called.text(compute, "images");
            let labels = called.text(compute, "labels");
            Source::Idx { images: images?, labels: labels?, span }
        }
        "images" => {
            let path = called.text(compute, "path");
            let grey = whole(called.get("grey").map(|(row, expr)| read::boolean(compute, row, expr)));
            Source::Images { path: path?, grey: grey?.unwrap_or(false), span }
        }
        "sounds" => {
            let path = called.text(compute, "path");
            let rate = whole(called.get("rate").map(|(row, expr)| read::count(compute, row, expr)));
            Source::Sounds { path: path?, rate: rate?.map(|count| count.value), span }
        }
        "addition" => {
            let digits = called.count(compute, "digits")?;
            Source::Addition { digits: u32::try_from(digits).ok()?, span }
        }
        "random_tokens" => {
            let vocab = called.count(compute, "vocab");
            let count = called.count(compute, "count");
            Source::RandomTokens { vocab: vocab?, count: count?, span }
        }
        name => mdl_graph::bug!("the table of sources has `{name}`, and nothing reads it"),
    })
}

fn chat(compute: &mut dyn Compute, called: &Called<'_>) -> Option<Source> {
    let mut word = |name: &str| called.get(name).map(|(row, expr)| read::choice(compute, row, expr));
    let (format, long) = (whole(word("format"))?, whole(word("long"))?);
    let mut column = |name: &str| whole(called.get(name).map(|(row, expr)| read::text(compute, row, expr)));
    let columns = ChatColumns {
        messages: column("messages")?,
        tools: column("tools")?,
        system: column("system")?,
        instruction: column("instruction")?,
        input: column("input")?,
        output: column("output")?,
    };
    let format = format.map(|word| match word {
        "alpaca" => ChatFormat::Alpaca,
        "sharegpt" => ChatFormat::Sharegpt,
        _ => ChatFormat::Messages,
    });
    let long = if long == Some("drop") { Long::Drop } else { Long::Cut };
    Some(Source::Chat { path: called.text(compute, "path")?, format, columns, long, span: called.span })
}

/// Path, text column and label column.
fn rows(compute: &mut dyn Compute, called: &Called<'_>) -> Option<(String, String, Option<String>)> {
    let path = called.text(compute, "path");
    let text = match called.get("text") {
        Some((row, expr)) => read::text(compute, row, expr),
        None => Some("text".to_owned()),
    };
    let label = match called.get("label") {
        Some((_, expr)) if expr.kind == ExprKind::None => Some(None),
        Some((row, expr)) => read::text(compute, row, expr).map(Some),
        None => Some(None),
    };
    Some((path?, text?, label?))
}

fn delimiter(compute: &mut dyn Compute, called: &Called<'_>) -> Option<char> {
    let Some((row, expr)) = called.get("delimiter") else { return Some(',') };
    let text = read::text(compute, row, expr)?;
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(char), None) if char.is_ascii() => Some(char),
        _ => {
            compute.report(
                Diagnostic::error(Code::E0306, format!("`delimiter` is one ASCII character, and this is {text:?}"))
                    .label(expr.span, "not one character")
                    .help("`\"\\t\"` is a tab"),
            );
            None
        }
    }
}

fn read_tokenizer(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Tokenizer> {
    if let ExprKind::Member { base, name } = &expr.kind
        && let ExprKind::Name(block) = &base.kind
        && name.text == "tokenizer"
    {
        return tokenizer_of(compute, block, base.span);
    }
    let Takes::Call(rows) = row.takes else { return None };
    let called = read::call(compute, row, rows, expr)?;
    Some(match called.row.name {
        "chars" => Tokenizer::Chars,
        "bytes" => Tokenizer::Bytes,
        "bpe" => Tokenizer::Bpe { vocab: called.count(compute, "vocab")? },
        "tokenizer" => Tokenizer::File { path: called.text(compute, "path")?, span: called.span },
        name => mdl_graph::bug!("the table of tokenizers has `{name}`, and nothing reads it"),
    })
}

/// `prose.tokenizer`
fn tokenizer_of(compute: &mut dyn Compute, block: &str, span: Span) -> Option<Tokenizer> {
    let Some(spec) = compute.data_block(block) else {
        let message = format!("there is no `data` block `{block}` before this one");
        let help = "its tokenizer is that of a block above: put the block that learns it first";
        compute.report(Diagnostic::error(Code::E0311, message).label(span, "whose tokenizer?").help(help));
        return None;
    };
    match &spec.tokenizer {
        None => {
            let message = format!("`{block}` has no tokenizer");
            compute.report(Diagnostic::error(Code::E0311, message).label(span, "its source gives no text"));
            None
        }
        // What is learned is so from the other block's texts; all else is the same anywhere.
        Some(Tokenizer::Chars | Tokenizer::Bpe { .. }) => Some(Tokenizer::Of { block: Box::new(spec) }),
        other => other.clone(),
    }
}

fn read_template(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Template> {
    let Takes::Call(rows) = row.takes else { return None };
    let called = read::call(compute, row, rows, expr)?;
    Some(match called.row.name {
        "chatml" => Template::Chatml,
        "jinja" => Template::File { path: called.text(compute, "path")?, span: called.span },
        name => mdl_graph::bug!("the table of templates has `{name}`, and nothing reads it"),
    })
}

#[derive(Default)]
struct SplitFields {
    parts: Vec<Part>,
    stratify: Option<Span>,
    seed: Option<(u64, Span)>,
}

fn read_split(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<SplitFields> {
    let ExprKind::Record(parts) = &expr.kind else {
        let came = match &expr.kind {
            ExprKind::Tuple(_) => "a tuple without names".to_owned(),
            _ => compute.plain(expr)?.came(),
        };
        compute.report(wrong_type(row, expr.span, &came));
        return None;
    };
    let mut split = SplitFields::default();
    let (mut fine, mut total) = (true, 0.0);
    for part in parts {
        let RecordPart::Field { name, value } = part else {
            compute.report(wrong_type(row, expr.span, "a record with `..`"));
            return None;
        };
        let Some(taken) = split_field(compute, row, name, value, &mut split) else {
            fine = false;
            continue;
        };
        total += taken;
    }
    if fine && split.parts.is_empty() {
        compute.report(wrong_type(row, expr.span, "a record without parts"));
        return None;
    }
    if total > 1.0 + 1e-9 {
        compute.report(
            Diagnostic::error(
                Code::E0306,
                format!("the parts of `split` are {}% together", (total * 1000.0).round() / 10.0),
            )
            .label(expr.span, "more than there is")
            .help("shares sum to 100% at most"),
        );
        return None;
    }
    fine.then_some(split)
}

/// One field of `split`; gives the share that it takes.
fn split_field(
    compute: &mut dyn Compute,
    row: &'static FieldRow,
    name: &Name,
    value: &Expr,
    split: &mut SplitFields,
) -> Option<f64> {
    match name.text.as_str() {
        "stratify" => {
            let is_label = match &value.kind {
                ExprKind::Name(field) => field == "label",
                ExprKind::Str(field) => field == "label",
                _ => false,
            };
            if !is_label {
                compute.report(
                    Diagnostic::error(Code::E0303, "`stratify` takes `label`, and this is something else")
                        .label(value.span, "not `label`")
                        .help("write `stratify: label`: every part gets the same share of each label"),
                );
                return None;
            }
            split.stratify = Some(value.span);
            return Some(0.0);
        }
        "seed" => {
            let seed = match compute.plain(value)? {
                Plain::Int(seed) => u64::try_from(seed).ok(),
                _ => None,
            };
            let Some(seed) = seed else {
                compute.report(
                    Diagnostic::error(Code::E0303, "`seed` takes a whole number from 0 on, and this is something else")
                        .label(value.span, "not a whole number from 0 on"),
                );
                return None;
            };
            split.seed = Some((seed, value.span));
            return Some(0.0);
        }
        _ => {}
    }
    if split.parts.iter().any(|part| part.name == name.text) {
        compute.report(
            Diagnostic::error(Code::E0305, format!("the part `{}` is given twice", name.text))
                .label(name.span, "again here"),
        );
        return None;
    }
    let is_source = matches!(&value.kind, ExprKind::Call { .. } | ExprKind::List(_) | ExprKind::If { .. });
    let share = if is_source {
        Share::Sources(read_sources(compute, source_row(), value)?)
    } else {
        Share::Fraction(fraction(compute, row, name, value)?)
    };
    let taken = if let Share::Fraction(fraction) = &share { *fraction } else { 0.0 };
    split.parts.push(Part { name: name.text.clone(), share });
    Some(taken)
}

fn source_row() -> &'static FieldRow {
    let Some(row) = super::schema::fields("data").iter().find(|row| row.name == "source") else {
        mdl_graph::bug!("the schema of `data` has no `source`")
    };
    row
}

fn fraction(compute: &mut dyn Compute, row: &'static FieldRow, name: &Name, value: &Expr) -> Option<f64> {
    let part = &name.text;
    let plain = compute.plain(value)?;
    let fraction = match &plain {
        Plain::Quantity(fraction, Unit::Percent) => *fraction,
        Plain::Float(fraction) => *fraction,
        Plain::Int(_) | Plain::Quantity(..) => {
            compute.report(
                Diagnostic::error(
                    Code::E0304,
                    format!("the part `{part}` takes a share, and this is {}", plain.came()),
                )
                .label(value.span, "no share")
                .help(format!("write `{part}: 90%`")),
            );
            return None;
        }
        _ => {
            compute
                .report(wrong_type(row, value.span, &plain.came()).help(format!("such as `{part}: 10%`, or a source")));
            return None;
        }
    };
    if fraction > 0.0 && fraction <= 1.0 {
        return Some(fraction);
    }
    compute.report(
        Diagnostic::error(
            Code::E0306,
            format!("the share of `{part}` is above 0% and at most 100%, and this is {}%", fraction * 100.0),
        )
        .label(value.span, "out of range"),
    );
    None
}

/// What a source gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    Text,
    Tokens,
    Images,
    Sounds,
}

fn gives(source: &Source) -> Gives {
    match source {
        Source::Text { .. }
        | Source::Jsonl { .. }
        | Source::Csv { .. }
        | Source::Lines { .. }
        | Source::Chat { .. }
        | Source::Addition { .. } => Gives::Text,
        Source::RandomTokens { .. } => Gives::Tokens,
        Source::Idx { .. } | Source::Images { .. } => Gives::Images,
        Source::Sounds { .. } => Gives::Sounds,
    }
}

/// The rules between fields.
fn go_together(compute: &mut dyn Compute, fields: &Fields<'_>, spec: &DataSpec, span: Span) -> bool {
    let cuts = spec.split.parts.iter().any(|part| matches!(part.share, Share::Fraction(_)));
    let before = |field: &str| fields.span(field).unwrap_or(span);
    let problem = if cuts && spec.sources.is_empty() {
        Some(
            Diagnostic::error(Code::E0302, "`data` needs the field `source`")
                .label(span, "missing in this block")
                .help("source: where the text or the rows come from, such as `text(\"corpus.txt\")`; or give each part of `split` its own"),
        )
    } else if !cuts && !spec.sources.is_empty() {
        Some(
            Diagnostic::error(Code::E0308, "no part takes anything from `source`")
                .label(before("source"), "not used")
                .label(before("split"), "each part has sources of its own")
                .help("leave `source` out, or give a part a share: `train: 90%`"),
        )
    } else {
        None
    };
    if let Some(problem) = problem {
        compute.report(problem);
        return false;
    }
    let all: Vec<Gives> = spec.all_sources().map(gives).collect();
    let n_chats = spec.all_sources().filter(|source| matches!(source, Source::Chat { .. })).count();
    let Some(first) = all.first().copied() else { return true };
    let mut problems = Vec::new();
    if n_chats == 0 && spec.template.is_some() {
        problems.push(
            Diagnostic::error(Code::E0308, "a template spells chats, and the block has none")
                .label(before("template"), "not used")
                .help("leave it out, or read chats: `source = chat(\"rows.json\")`"),
        );
    }
    if n_chats > 0 && (n_chats < all.len() || matches!(spec.form, Form::Window { .. })) {
        let (place, help) = match n_chats < all.len() {
            true => ("source", "chats go with chats: make a block for each kind"),
            false => ("window", "take `pack = t`, or `pad = t` for a row each"),
        };
        problems.push(
            Diagnostic::error(Code::E0308, "a chat is a row of its own, and is not mixed with running text")
                .label(before(place), "this does not go with chats")
                .help(help),
        );
    }
    if spec.order.is_some() && !matches!(spec.form, Form::Pad { .. }) {
        problems.push(
            Diagnostic::error(Code::E0308, "an order of difficulty is one of rows of text, and the block has none")
                .label(before("order"), "nothing to order")
                .help("take `pad = t`, a row for each text"),
        );
    }
    if all.iter().any(|other| *other != first) {
        problems.push(
            Diagnostic::error(Code::E0308, "the sources give different things")
                .label(
                    before(if spec.sources.is_empty() { "split" } else { "source" }),
                    "text, tokens, images or sounds",
                )
                .help("one block gives one kind of batch; make a block for each"),
        );
    } else {
        match (first, &spec.tokenizer) {
            (Gives::Text, None) => problems.push(
                Diagnostic::error(Code::E0302, "`data` needs the field `tokenizer`")
                    .label(span, "missing in this block")
                    .help("tokenizer: how text becomes token ids, such as `chars()` or `bpe(vocab: 8_192)`"),
            ),
            (Gives::Tokens | Gives::Images | Gives::Sounds, Some(_)) => problems.push(
                Diagnostic::error(Code::E0308, "the source gives no text, so there is nothing for a tokenizer")
                    .label(before("tokenizer"), "not used"),
            ),
            _ => {}
        }
        match (first, &spec.form) {
            (Gives::Text | Gives::Tokens, Form::Rows) => problems.push(
                Diagnostic::error(Code::E0302, "`data` needs the field `window`, `pad` or `pack`")
                    .label(span, "missing in this block")
                    .help("window: the axis of pieces of a running text; pad: the axis of rows of their own; pack: of rows that several share; `axis t = 256`, `window = t`"),
            ),
            (Gives::Sounds, Form::Rows) => problems.push(
                Diagnostic::error(Code::E0302, "`data` needs the field `pad`")
                    .label(span, "missing in this block")
                    .help("pad: the axis that each sound is cut or filled to; `axis sample = 8_000`, `pad = sample`"),
            ),
            (Gives::Images, Form::Window { .. } | Form::Pad { .. } | Form::Pack { .. })
            | (Gives::Sounds, Form::Window { .. } | Form::Pack { .. }) => {
                let field = match spec.form {
                    Form::Window { .. } => "window",
                    Form::Pad { .. } => "pad",
                    Form::Pack { .. } | Form::Rows => "pack",
                };
                let message = match first {
                    Gives::Sounds => format!("sounds are rows of their own: they have `pad`, and no `{field}`"),
                    _ => format!("images are rows as they are, and have no `{field}`"),
                };
                problems.push(Diagnostic::error(Code::E0308, message).label(before(field), "not used"));
            }
            _ => {}
        }
    }
    let fine = problems.is_empty();
    problems.into_iter().for_each(|problem| compute.report(problem));
    fine
}
