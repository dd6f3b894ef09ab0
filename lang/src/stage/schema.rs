//! What may stand in a stage: one table for each kind of block, one row for each field, and the same for the functions
//! that only mean something inside a field (`text(…)`, `every(…)`).
//!
//! The rows are the single source of four things: what the checker accepts, what its errors say, the defaults, and the
//! manual (`mdlc` prints these tables). A field that the language has and this version lacks is a row too (`Need::Later`),
//! so that using it is a clear error.

use crate::spec;

use super::tables::{EVERY_EVALUATE, EVERY_SAMPLE, EVERY_SAVE, ORDERS, SOURCES, STOPS, STORED, TEMPLATES, TOKENIZERS};

/// A field of a block, or an argument of a function inside a field.
#[derive(Debug)]
pub struct FieldRow {
    pub name: &'static str,
    pub takes: Takes,
    pub need: Need,
    /// One sentence: what it is for.
    pub doc: &'static str,
}

/// Whether a field must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Required,
    /// Without it: the default as a recipe would write it, or in words.
    Default(&'static str),
    /// Of the language, but not of this version.
    Later,
}

/// What a field takes.
#[derive(Clone, Copy, Debug)]
pub enum Takes {
    /// A whole number from `least` to `most`; a unit may follow it: `10 steps`.
    Count {
        least: i64,
        most: i64,
        units: &'static [&'static str],
    },
    /// A number above zero (or from zero on).
    Number {
        zero: bool,
    },
    /// A number of bytes, `8GiB`.
    Bytes,
    Bool,
    Text,
    /// An expression of `length` and `label`.
    Difficulty,
    /// The name of a column or key, a `Str`.
    Column,
    /// A path of a file, a `Str`.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A declared axis.
    Axis,
    /// A call of one of these functions.
    Call(&'static [FunctionRow]),
    /// One such call, or a list of them.
    Calls(&'static [FunctionRow]),
    /// `(train: 90%, val: 10%)`.
    Split,
    /// The name of a `data` block.
    Data,
    /// A part of a `data` block, `plays.val`.
    Part,
    /// The name of a `train` block.
    Trained,
    Model,
    Objective,
    Optimizer,
    Average,
    Metrics,
    Adapters,
    /// A pattern of paths, or a list of them.
    Patterns,
    /// Of a field that this version lacks: never read.
    Anything,
}

/// A function that exists inside a field: it describes, and computes nothing.
#[derive(Debug)]
pub struct FunctionRow {
    pub name: &'static str,
    /// In the order in which they are taken without names.
    pub args: &'static [FieldRow],
    /// Of the language, but not of this version.
    pub later: bool,
    pub doc: &'static str,
}

/// A kind of block.
#[derive(Debug)]
pub struct KindRow {
    pub name: &'static str,
    pub fields: &'static [FieldRow],
    pub later: bool,
    pub doc: &'static str,
}

/// Every kind of block, those included that this version lacks.
pub fn kinds() -> &'static [KindRow] {
    KINDS
}

/// The fields of a kind of block; empty for a kind that is not known or not of this version.
pub fn fields(kind: &str) -> &'static [FieldRow] {
    self::kind(kind).map_or(&[], |row| row.fields)
}

/// The row of a kind.
pub fn kind(name: &str) -> Option<&'static KindRow> {
    KINDS.iter().find(|row| row.name == name)
}

impl Takes {
    /// In words, for errors and for the manual: `a whole number from 1 on`.
    pub fn expected(&self) -> String {
        match self {
            Takes::Count { least, most, units } => {
                let range = match *most {
                    MANY => format!("from {least} on"),
                    most => format!("from {least} to {most}"),
                };
                let of = if units.is_empty() { String::new() } else { format!(" (of {})", units.join(", ")) };
                format!("a whole number {range}{of}")
            }
            Takes::Number { zero: true } => "a number from 0 on".to_owned(),
            Takes::Number { zero: false } => "a number above 0".to_owned(),
            Takes::Bytes => "a number of bytes, such as `8GiB`".to_owned(),
            Takes::Bool => "`true` or `false`".to_owned(),
            Takes::Text => "a text, such as `\"ROMEO:\"`".to_owned(),
            Takes::Difficulty => "an expression of `length` and `label`, such as `length`".to_owned(),
            Takes::Column => "the name of a column, such as `\"content\"`".to_owned(),
            Takes::Path => "a path, such as `\"corpus.txt\"`".to_owned(),
            Takes::Choice(words) => one_of(words.iter().copied()),
            Takes::Axis => "an axis that the recipe declares, such as `t`".to_owned(),
            Takes::Call(rows) => one_of(offered(rows)),
            Takes::Calls(rows) => format!("{}, or a list of them", one_of(offered(rows))),
            Takes::Split => "the shares of the parts, such as `(train: 90%, val: 10%)`".to_owned(),
            Takes::Data => "the name of a `data` block".to_owned(),
            Takes::Part => "a part of a `data` block, such as `plays.val`".to_owned(),
            Takes::Trained => "the name of a `train` block".to_owned(),
            Takes::Model => "a model: a layer that is built, such as `Gpt[…](…)`".to_owned(),
            Takes::Objective => "a function of `(model, batch)` that gives a loss, such as `next_token`".to_owned(),
            Takes::Optimizer => "an optimizer, such as `adamw(lr: 1e-3)`, or a list of them with `at`".to_owned(),
            Takes::Average => "a function of `(average, w, n)`, such as `ema(0.999)`".to_owned(),
            Takes::Metrics => "a list of metrics, such as `[loss, perplexity]`".to_owned(),
            Takes::Adapters => {
                "a layer that takes a layer, such as `Lora(_, rank: 16) at \"blocks.*.attn.{q, v}\"`, or a list of them"
                    .to_owned()
            }
            Takes::Patterns => "a pattern of paths, such as `\"blocks.*.attn\"`, or a list of them".to_owned(),
            Takes::Anything => "something that this version does not have".to_owned(),
        }
    }
}

/// The functions of this version, as they are called.
fn offered(rows: &'static [FunctionRow]) -> impl Iterator<Item = String> {
    rows.iter().filter(|row| !row.later).map(FunctionRow::call)
}

impl FunctionRow {
    /// An example of the call: `every(steps, on: …)` with its required arguments.
    pub fn call(&self) -> String {
        let args: Vec<&str> = self.args.iter().filter(|arg| arg.need == Need::Required).map(|arg| arg.name).collect();
        format!("{}({})", self.name, args.join(", "))
    }
}

/// `` `a`, `b` or `c` ``
pub(crate) fn one_of<T: AsRef<str>>(words: impl Iterator<Item = T>) -> String {
    let words: Vec<String> = words.map(|word| format!("`{}`", word.as_ref())).collect();
    match words.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

const fn row(name: &'static str, takes: Takes, need: Need, doc: &'static str) -> FieldRow {
    FieldRow { name, takes, need, doc }
}

const fn later(name: &'static str, doc: &'static str) -> FieldRow {
    FieldRow { name, takes: Takes::Anything, need: Need::Later, doc }
}

/// Graphs count steps, positions and seeds in `i32`.
pub(super) const MANY: i64 = i32::MAX as i64;

const COUNT: Takes = Takes::Count { least: 1, most: MANY, units: &[] };
const SEED: Takes = Takes::Count { least: 0, most: MANY, units: &[] };
/// Tokens are counted as a whole run reads them, so they may be more than a graph can count.
const STEPS: Takes = Takes::Count { least: 1, most: 1_000_000_000_000_000, units: &["steps", "epochs", "tokens"] };

const KINDS: &[KindRow] = &[
    KindRow {
        name: "data",
        fields: DATA,
        later: false,
        doc: "Reads files, splits and tokenizes them, and gives batches.",
    },
    KindRow { name: "train", fields: TRAIN, later: false, doc: "Trains a model on data and saves it." },
    KindRow { name: "eval", fields: EVAL, later: false, doc: "Measures a trained model on data." },
    KindRow { name: "quantize", fields: &[], later: true, doc: "Stores the weights of a model in fewer bits." },
    KindRow { name: "prune", fields: &[], later: true, doc: "Removes weights from a model." },
    KindRow { name: "export", fields: &[], later: true, doc: "Writes a model in the formats of other programs." },
    KindRow { name: "serve", fields: &[], later: true, doc: "Answers requests with a model." },
    KindRow { name: "parallel", fields: &[], later: true, doc: "Spreads axes over devices." },
];

const DATA: &[FieldRow] = &[
    row(
        "source",
        Takes::Calls(SOURCES),
        Need::Default("none: each part of `split` names its own"),
        "Where the text or the rows come from: a source, or a list of them, one after another.",
    ),
    row(
        "tokenizer",
        Takes::Call(TOKENIZERS),
        Need::Default("none"),
        "How text becomes token ids; whatever reads text needs one. `prose.tokenizer` is that of the block `prose` above, for who reads what another learns from.",
    ),
    row(
        "split",
        Takes::Split,
        Need::Default("(train: 100%)"),
        "The parts and their shares, or a source for each part; `stratify: label` keeps the share of each label, `seed: 1` draws other rows.",
    ),
    row(
        "window",
        Takes::Axis,
        Need::Default("none"),
        "The axis of the pieces that a running text is cut into: batches hold `ids` and `next`, `int[batch, t]`, and `mask`.",
    ),
    row(
        "pad",
        Takes::Axis,
        Need::Default("none"),
        "The axis that each row is cut or filled to: batches hold `ids`, `next`, `mask` and, where rows have one, `label`.",
    ),
    row(
        "pack",
        Takes::Axis,
        Need::Default("none"),
        "The axis of rows that several examples share, each with positions of its own: batches also hold `document` and `position`.",
    ),
    row("template", Takes::Call(TEMPLATES), Need::Default("that of the tokenizer's folder"), "How chats become text."),
    row(
        "order",
        Takes::Call(ORDERS),
        Need::Default("every row once an epoch, by chance"),
        "What training begins with: a curriculum.",
    ),
    row("seed", SEED, Need::Default("0"), "Draws another order of the rows."),
    later("clean", "Steps that repair text before it is used."),
    later("keep", "Conditions that rows must meet."),
    later("dedup", "Removes what is there twice."),
    later("augment", "Makes variants of rows."),
    later("balance", "Changes how often each group is drawn."),
];

const TRAIN: &[FieldRow] = &[
    row("model", Takes::Model, Need::Required, "What is trained."),
    row(
        "adapt",
        Takes::Adapters,
        Need::Default("none"),
        "Layers around layers of the model, of a list the first that matches; they are trained in the place of the rest, which is frozen.",
    ),
    row(
        "freeze",
        Takes::Patterns,
        Need::Default("all but the adapters, where there are any; else what the stage has frozen that the model is of"),
        "The weights that stay as they are; adapters are trained whatever it says. An empty list freezes nothing.",
    ),
    row(
        "frozen",
        Takes::Call(STORED),
        Need::Default("f32"),
        "How frozen maps that other stages have trained are kept in memory. One whose last axes blocks do not divide stays in f32.",
    ),
    row("data", Takes::Data, Need::Required, "The `data` block whose part `train` it learns from."),
    row(
        "objective",
        Takes::Objective,
        Need::Required,
        "The loss of a batch, which training makes small; or a record with `loss` and whatever else to report.",
    ),
    row(
        "optimizer",
        Takes::Optimizer,
        Need::Default("adamw(lr: 3e-4)"),
        "How gradients change weights: one optimizer, or a list with `at`, of which the first that matches a weight takes it.",
    ),
    row(
        "average",
        Takes::Average,
        Need::Default("none"),
        "A second set of weights that follows the first; evaluation and samples use it.",
    ),
    row("batch", COUNT, Need::Default("32"), "Rows in a batch."),
    row(
        "micro",
        COUNT,
        Need::Default("1"),
        "Equal pieces that a batch is computed in, to save memory; the result is that of the whole.",
    ),
    row("steps", STEPS, Need::Default("1_000"), "How long to train: steps, `3 epochs` or `4M tokens`."),
    row(
        "precision",
        Takes::Choice(&["f32", "bf16", "f16", "bf16x3", "bf16x6"]),
        Need::Default("f32"),
        "What the model computes in; weights and sums stay in f32. `bf16x3` and `bf16x6` are f32 whose products are made of three \
         or six in bf16 where the processor has AMX.",
    ),
    row(
        "device",
        Takes::Choice(&spec::Device::NAMES),
        Need::Default("cpu"),
        "What all stages run on: the processor, an NVIDIA card, or a card if there is one. `--device` says otherwise.",
    ),
    row(
        "clip",
        Takes::Number { zero: false },
        Need::Default("none"),
        "The largest norm of all gradients together; longer ones are scaled down to it.",
    ),
    row(
        "evaluate",
        Takes::Call(EVERY_EVALUATE),
        Need::Default("none"),
        "Measures the objective on a part of the data every so many steps.",
    ),
    row(
        "save",
        Takes::Call(EVERY_SAVE),
        Need::Default("only the last step"),
        "Saves a checkpoint every so many steps, and the last one.",
    ),
    row(
        "sample",
        Takes::Call(EVERY_SAMPLE),
        Need::Default("none"),
        "Writes a text every so many steps, to see what the model has learned.",
    ),
    row("stop", Takes::Call(STOPS), Need::Default("none"), "Ends early when evaluation no longer improves."),
    row(
        "memory",
        Takes::Bytes,
        Need::Default("none"),
        "The most bytes that a step may use; the compiler recomputes values to stay inside.",
    ),
    row("seed", SEED, Need::Default("0"), "Draws other initial weights, batches and dropout."),
    later("collect", "Makes the batch to learn from with the model itself."),
    later("gradient", "Computes the gradient in another way."),
];

const EVAL: &[FieldRow] = &[
    row("of", Takes::Trained, Need::Required, "The `train` block whose result is measured."),
    row("on", Takes::Part, Need::Required, "The part of the data to measure on."),
    row(
        "metrics",
        Takes::Metrics,
        Need::Default("[loss]"),
        "What to measure: `loss`, `perplexity`, `bits_per_byte`, `accuracy`, or functions of `(model, batch)`.",
    ),
    row("batch", COUNT, Need::Default("that of the `train` block"), "Rows in a batch."),
];
