//! `parse`: one file, every item, every error in one run.

use std::num::NonZeroUsize;
use std::sync::Once;

use pest::Parser;

use super::ast::{File, FileId, Item, ItemKind, Name, Span};
use super::build::{Build, Grammar, Rule};
use super::errors;
use super::layout::{ITEM_WORDS, ItemText, Layout, STAGE_WORDS, layout};
use crate::diag::{Code, Diagnostic, nearest};

/// Beyond this a file is no recipe but a mistake (a data set, a binary).
const MAX_SIZE_BYTES: usize = 16 << 20;

/// Calls of pest's combinators for one item: linear in its text, some hundred per byte at worst, so this is only reached
/// by an item of a megabyte.
const MAX_CALLS: usize = 300_000_000;

/// Nesting up to here is parsed on the caller's stack: far less than the 2 MiB of a test's or pool's thread.
const SHALLOW: usize = 24;

/// Stack for the rest: 256 levels need about 10 MiB in a build without optimisation. Only what is used is paid for.
const DEEP_STACK_BYTES: usize = 64 << 20;

/// The syntax tree of `source`, and everything that is wrong with its form.
///
/// An item with an error is `ItemKind::Broken`; its neighbours are whole. Works on any thread, whatever its stack.
pub fn parse(file: FileId, source: &str) -> (File, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    if source.len() > MAX_SIZE_BYTES {
        diagnostics.push(
            Diagnostic::error(Code::E0117, format!("the file has {} bytes, more than {MAX_SIZE_BYTES}", source.len()))
                .label(Span::new(file, 0, 0), "not read")
                .help("a recipe is text by hand; data belongs into files that a `data` stage names"),
        );
        return (File { id: file, ..File::default() }, diagnostics);
    }
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| pest::set_call_limit(NonZeroUsize::new(MAX_CALLS)));
    let layout = layout(file, source, &mut diagnostics);
    let nesting = layout.items.iter().filter(|item| item.is_sound).map(|item| item.nesting).max().unwrap_or(0);
    let items = if nesting > SHALLOW {
        on_deep_stack(|| items(file, &layout, &mut diagnostics))
    } else {
        items(file, &layout, &mut diagnostics)
    };
    diagnostics.sort_by_key(|diagnostic| diagnostic.labels.first().map(|label| label.span));
    (File { id: file, docs: layout.file_docs, items }, diagnostics)
}

/// A file cut into items, each of which is parsed when somebody asks for it. For the library, of which a recipe needs a part.
pub(crate) struct Outline {
    file: FileId,
    layout: Layout,
}

impl Outline {
    /// What is wrong with brackets is reported here, what is wrong within an item by [`Outline::parse`].
    pub(crate) fn new(file: FileId, source: &str, diagnostics: &mut Vec<Diagnostic>) -> Outline {
        Outline { file, layout: layout(file, source, diagnostics) }
    }

    /// The first word of each item, and its name.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&str, Option<&Name>)> {
        self.layout.items.iter().map(|text| (text.keyword.as_str(), text.name.as_ref()))
    }

    /// The item at a position of [`Outline::items`].
    pub(crate) fn parse(&self, at: usize, diagnostics: &mut Vec<Diagnostic>) -> Item {
        read(self.file, &self.layout, &self.layout.items[at], diagnostics)
    }
}

/// The text of a file as read from disk; what is not UTF-8 is a diagnostic that says where.
pub fn decode(file: FileId, bytes: Vec<u8>) -> Result<String, Diagnostic> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let help = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "this looks like UTF-16; save it as UTF-8",
            _ => "save the file as UTF-8",
        };
        Diagnostic::error(Code::E0106, format!("byte {at}, on line {line}, is not UTF-8 text"))
            .label(Span::new(file, at, at + 1), format!("0x{:02x} here", bytes[at]))
            .help(help)
    })
}

/// Runs `work` on a thread whose stack holds the deepest nesting that is let through.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(DEEP_STACK_BYTES).spawn_scoped(scope, work);
        match thread.map(|thread| thread.join()) {
            Ok(Ok(made)) => made,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => panic!("no thread for the parser: {error}"),
        }
    })
}

fn items(file: FileId, layout: &Layout, diagnostics: &mut Vec<Diagnostic>) -> Vec<Item> {
    layout.items.iter().map(|text| read(file, layout, text, diagnostics)).collect()
}

fn read(file: FileId, layout: &Layout, text: &ItemText, diagnostics: &mut Vec<Diagnostic>) -> Item {
    let span = Span::new(file, text.start, text.end);
    let docs = layout.docs.binary_search_by_key(&text.start, |(offset, _)| *offset);
    let docs = docs.map_or_else(|_| String::new(), |at| layout.docs[at].1.clone());
    let kind = item(file, layout, text, diagnostics);
    Item { docs, kind: kind.unwrap_or_else(|| ItemKind::Broken { name: text.name.clone() }), span }
}

/// `None` when something was reported, here or by the layout.
fn item(file: FileId, layout: &Layout, text: &ItemText, diagnostics: &mut Vec<Diagnostic>) -> Option<ItemKind> {
    if !text.is_sound {
        return None;
    }
    let Some(rule) = rule_of(text) else {
        diagnostics.push(opens_nothing(file, layout, text));
        return None;
    };
    let source = &layout.text[text.start..text.end];
    match Grammar::parse(rule, source) {
        Ok(mut pairs) => {
            let n_before = diagnostics.len();
            let mut build =
                Build { file, base: text.start, docs: &layout.docs, diagnostics, depth: 0, is_too_deep: false };
            let kind = pairs.next().map(|pair| build.item(pair));
            kind.filter(|_| diagnostics.len() == n_before)
        }
        Err(error) => {
            diagnostics.push(errors::explain(file, text.start, source, &error));
            None
        }
    }
}

fn rule_of(text: &ItemText) -> Option<Rule> {
    Some(match text.keyword.as_str() {
        "use" => Rule::use_item,
        "arg" => Rule::arg_item,
        "axis" => Rule::axis_item_decl,
        "names" => Rule::names_item,
        "layer" => Rule::layer_item,
        "fn" => Rule::fn_item,
        "optimizer" => Rule::optimizer_item,
        "model" => Rule::model_item,
        word if STAGE_WORDS.contains(&word) => Rule::stage_item,
        // Of whatever kind: the checker knows the stages and finds the nearest.
        word if text.is_stage && !word.is_empty() && !errors::is_reserved(word) => Rule::stage_item,
        _ => return None,
    })
}

fn opens_nothing(file: FileId, layout: &Layout, text: &ItemText) -> Diagnostic {
    let line_end = layout.text[text.start..text.end].find([' ', '\n', '(', '[', '{']).unwrap_or(text.end - text.start);
    let end = text.start + line_end.max(1);
    let word = &layout.text[text.start..layout.text.ceil_char_boundary(end)];
    let shown: String = word.chars().take(40).collect();
    let help = match text.keyword.as_str() {
        "let" => "outside of a block, `model name = …` names a model, `fn` a function, `axis` an axis".to_owned(),
        "import" | "from" | "include" => "another file is imported by `use std.models.Gpt` or `use \"file.mdl\" (Name)`".to_owned(),
        "def" | "function" | "func" => "a function is `fn name(x) = …`".to_owned(),
        "class" | "struct" => "a layer is `layer Name[axes](parameters) { … }`".to_owned(),
        "weight" | "state" | "loss" | "next" => format!("`{shown}` stands inside of a layer"),
        keyword => match nearest(keyword, ITEM_WORDS.iter().chain(&STAGE_WORDS).copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None => "an item begins with `use`, `arg`, `axis`, `layer`, `fn`, `optimizer`, `model` or a stage such as `train`"
                .to_owned(),
        },
    };
    Diagnostic::error(Code::E0112, format!("`{shown}` does not open an item"))
        .label(Span::new(file, text.start, end), "expected an item here")
        .help(help)
}
