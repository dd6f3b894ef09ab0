//! What the checker gives: the stages of a recipe as plain data, every number known, every computation a [`Graph`].
//!
//! The runtime executes these and needs nothing else of the language. Deliberately absent: syntax, and anything that
//! depends on the machine.

use std::ops::Range;

use mdl_graph::{Axis, DType, Graph, Name, Span};
use serde::{Deserialize, Serialize};

/// A checked recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// Its `arg`s with their values, for `--help` and for the hash of a run.
    pub args: Vec<Arg>,
    /// In an order in which they can run: a stage comes after those that it needs.
    pub stages: Vec<Stage>,
    /// What they run on, where the command line does not say.
    #[serde(default)]
    pub device: Device,
}

/// What stages run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    #[default]
    Cpu,
    /// An NVIDIA card, or a reason why there is none.
    Cuda,
    /// A card if there is one.
    Auto,
}

impl Device {
    pub const NAMES: [&str; 3] = ["cpu", "cuda", "auto"];

    pub fn of(name: &str) -> Option<Device> {
        match name {
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda),
            "auto" => Some(Device::Auto),
            _ => None,
        }
    }
}

impl Program {
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

/// An argument of the recipe: `arg steps: Int = 5_000`, set by `--steps 100`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arg {
    pub name: String,
    /// Its declared type as written, `Int`, `Float`, `Str`, `Bool`.
    pub ty: String,
    /// Its doc comment.
    pub doc: String,
    /// The default as text; `None` when it must be given.
    pub default: Option<String>,
    /// The value in this run as text.
    pub value: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stage {
    pub name: String,
    pub span: Span,
    /// The names of the stages whose artifacts it reads.
    pub needs: Vec<String>,
    pub kind: StageKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageKind {
    Data(DataSpec),
    Train(Box<TrainSpec>),
    Eval(Box<EvalSpec>),
}

impl StageKind {
    /// The word that opens its block.
    pub fn name(&self) -> &'static str {
        match self {
            StageKind::Data(_) => "data",
            StageKind::Train(_) => "train",
            StageKind::Eval(_) => "eval",
        }
    }
}

// ---- data ----

/// A `data` block. Paths are as written, relative to the recipe's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataSpec {
    pub sources: Vec<Source>,
    pub tokenizer: Option<Tokenizer>,
    /// How chats become text; without it as the tokenizer's files say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    pub split: Split,
    pub form: Form,
    /// Seeds the split and the order of training.
    pub seed: u64,
    /// Which rows training begins with, where that is not left to chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Box<Curriculum>>,
}

/// `order = easy_first(by: length, over: 10_000)`: until that step rows are drawn from a growing share of the easiest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curriculum {
    pub by: Difficulty,
    pub over: u64,
    /// The share that training begins with.
    pub from: f64,
}

/// How hard a row is: an expression of what a row of text has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Difficulty {
    Number(f64),
    /// How many tokens it has.
    Length,
    /// The number of its label.
    Label,
    Abs(Box<Difficulty>),
    Add(Box<Difficulty>, Box<Difficulty>),
    Sub(Box<Difficulty>, Box<Difficulty>),
    Mul(Box<Difficulty>, Box<Difficulty>),
    Div(Box<Difficulty>, Box<Difficulty>),
}

impl Difficulty {
    pub fn of(&self, length: f64, label: f64) -> f64 {
        let value = |part: &Difficulty| part.of(length, label);
        match self {
            Difficulty::Number(number) => *number,
            Difficulty::Length => length,
            Difficulty::Label => label,
            Difficulty::Abs(a) => value(a).abs(),
            Difficulty::Add(a, b) => value(a) + value(b),
            Difficulty::Sub(a, b) => value(a) - value(b),
            Difficulty::Mul(a, b) => value(a) * value(b),
            Difficulty::Div(a, b) => value(a) / value(b),
        }
    }

    /// Whether it asks for labels.
    pub fn has_label(&self) -> bool {
        match self {
            Difficulty::Number(_) | Difficulty::Length => false,
            Difficulty::Label => true,
            Difficulty::Abs(a) => a.has_label(),
            Difficulty::Add(a, b) | Difficulty::Sub(a, b) | Difficulty::Mul(a, b) | Difficulty::Div(a, b) => {
                a.has_label() || b.has_label()
            }
        }
    }
}

impl DataSpec {
    /// Its sources, and those that parts of the split have of their own.
    pub fn all_sources(&self) -> impl Iterator<Item = &Source> {
        let own = self.split.parts.iter().filter_map(|part| match &part.share {
            Share::Sources(sources) => Some(sources),
            Share::Fraction(_) => None,
        });
        self.sources.iter().chain(own.flatten())
    }
}

/// Where rows or text come from. `.gz` and `.zst` files are read as what they hold; `*` in a path matches file names, and `{label}` in
/// that of pictures and sounds is the label of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `text("*.txt")`: whole files, one after another in the order of their paths.
    Text { path: String, span: Span },
    /// `jsonl("rows.jsonl", text: "content", label: "stars")`: an object a line.
    Jsonl { path: String, text: String, label: Option<String>, span: Span },
    /// `csv("rows.csv", text: "content", label: "stars", header: true, delimiter: ",")`. Without a header, columns are named `"0"`, `"1"`, ….
    Csv { path: String, text: String, label: Option<String>, header: bool, delimiter: char, span: Span },
    /// `lines("train.txt")`: `label sentence` on each line, the label an integer.
    Lines { path: String, span: Span },
    /// `chat("rows.json", format: sharegpt)`: conversations, in a list or an object a line.
    Chat { path: String, format: Option<ChatFormat>, columns: ChatColumns, long: Long, span: Span },
    /// `idx(images: "train-images.gz", labels: "train-labels.gz")`: the files of MNIST.
    Idx { images: String, labels: String, span: Span },
    /// `images("train/{label}/*.jpg", grey: false)`: a JPEG or PNG file for each picture.
    Images { path: String, grey: bool, span: Span },
    /// `sounds("{label}_*.wav", rate: 8_000)`: a WAV file for each sound, of so many samples a second.
    Sounds { path: String, rate: Option<u64>, span: Span },
    /// `addition(digits: 2)`: rows `12+34=046`, all pairs; the loss counts the answer only.
    Addition { digits: u32, span: Span },
    /// `random_tokens(vocab: 65, count: 100_000)`: uniform token ids, for benchmarks.
    RandomTokens { vocab: u64, count: u64, span: Span },
}

/// How a row of a chat is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatFormat {
    /// `instruction`, `input`, `output`, and perhaps `system` and `history`.
    Alpaca,
    /// `conversations`: turns with `from` and `value`.
    Sharegpt,
    /// `messages`: turns with `role` and `content`.
    Messages,
}

/// The names of columns that are not called as usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatColumns {
    pub messages: Option<String>,
    pub tools: Option<String>,
    pub system: Option<String>,
    pub instruction: Option<String>,
    pub input: Option<String>,
    pub output: Option<String>,
}

/// What becomes of a chat that is longer than its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Long {
    Cut,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// `chatml()`: `<|im_start|>user`, a line break, the message, `<|im_end|>`.
    Chatml,
    /// `jinja("chat_template.jinja")`
    File { path: String, span: Span },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// `chars()`: the characters of the training part, sorted.
    Chars,
    /// `bytes()`: 256 ids.
    Bytes,
    /// `bpe(vocab: 8_192)`: byte-level BPE, trained on the training part.
    Bpe { vocab: u64 },
    /// `tokenizer("tokenizer.json")`, or a folder with one or with the older files.
    File { path: String, span: Span },
    /// `prose.tokenizer`: what another block, of characters or byte-level BPE, has learned.
    Of { block: Box<DataSpec> },
}

/// `split = (train: 90%, val: 10%)`, fractions in order; or one source for each part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    pub parts: Vec<Part>,
    /// The same share of each label in every part.
    pub stratify: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub share: Share,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    Fraction(f64),
    /// All rows of sources of its own: `val: lines("dev.txt")`.
    Sources(Vec<Source>),
}

/// How text becomes rows of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `window = t`: pieces of one stream of tokens; `ids, next: int[t]`, `mask: bool[t]`.
    Window { axis: Axis },
    /// `pad = t`: a row each, cut or filled to `t`; `ids, next: int[t]`, `mask: bool[t]`, and `label: int[]` where there is one. Of
    /// sounds `sound: [t]` and `mask: bool[t]`.
    Pad { axis: Axis },
    /// `pack = t`: rows of `t` positions with several documents each; besides the fields of `pad` `document, position: int[t]`.
    Pack { axis: Axis },
    /// Rows as they are: images.
    Rows,
}

/// What only reading the data tells; asked for through [`World`](crate::check::World).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// The number of token ids; 0 without a tokenizer.
    pub vocab: u64,
    /// The number of labels; 0 without.
    pub classes: u64,
    /// What a batch holds, without the axis `batch`.
    pub fields: Vec<Field>,
    /// Rows in each part.
    pub rows: Vec<(String, u64)>,
    /// Hash of everything that decides what batches hold.
    pub hash: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    pub dtype: DType,
    pub axes: Vec<Axis>,
}

// ---- train ----

/// A `train` block.
///
/// Inputs of its graphs: weights by path (kind `Weight`), what layers and optimizers remember (kind `State`), batch
/// fields by name with the axis `batch` first (kind `Batch`), and the scalars `seed: i32[]` and `step: i32[]`, the
/// number of the step from 0 (kind `Scalar`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainSpec {
    /// The name of its data stage.
    pub data: String,
    pub weights: Vec<Weight>,
    /// Layer states, optimizer states (`m/blocks.attn.q.w`), averages (`average/…`): all that is saved besides the weights.
    pub states: Vec<State>,
    /// What its graphs read of other stages. All of it stays as it is.
    pub reads: Vec<Read>,
    /// What of [`TrainSpec::reads`] and [`TrainSpec::states`] is kept in memory in fewer bits. Graphs read and write it as `f32`.
    pub kept: Vec<Kept>,
    /// The first values: an output for each weight and each state, under its name; inputs `seed` and `step`.
    pub init: Graph,
    /// One step on one whole batch. Outputs: values `loss`, `lr`, `grad_norm` and reported metrics; the next weights and states.
    pub step: Graph,
    /// The model alone, not training, `batch` = 1: the value `logits` from the batch field `ids`. `None` for models without one.
    pub forward: Option<Graph>,
    pub batch: u64,
    /// Pieces that a batch is cut into.
    pub micro: u64,
    pub steps: u64,
    pub precision: Precision,
    /// The most bytes that a step may use.
    pub memory: Option<Budget>,
    pub seed: u64,
    pub evaluate: Option<Evaluate>,
    pub save: Save,
    pub sample: Option<Sample>,
    /// Ends the stage when the evaluated loss has not improved for this many evaluations.
    pub patience: Option<u64>,
}

/// `memory = 8GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    pub bytes: u64,
    pub span: Span,
}

/// A tensor that is kept in fewer bits than graphs compute in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub input: Name,
    pub dtype: StoredDtype,
}

/// A stored dtype: numbers in blocks, which are read as floats and round on writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredDtype {
    /// `nf4(block: 64, double: true)`: the four bits of QLoRA; with `double`, scales are kept in eight.
    Nf4 { block: u64, double: bool },
    /// `q8(block: 256)`: the dynamic eight bits of 8-bit optimizers.
    Q8 { block: u64 },
}

impl StoredDtype {
    pub fn block(self) -> u64 {
        match self {
            StoredDtype::Nf4 { block, .. } | StoredDtype::Q8 { block } => block,
        }
    }

    /// Whether blocks come out even across some of the last of these axes.
    pub fn fits(self, axes: &[Axis]) -> bool {
        let across = |n: usize| axes[axes.len() - n..].iter().map(|axis| axis.size).product::<u64>();
        (1..=axes.len()).any(|n| across(n).is_multiple_of(self.block()))
    }
}

/// A trained tensor. Its input in graphs is named `path`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// `blocks.attn.q.w`, without the indices of copies.
    pub path: Name,
    /// Axes of copies (`repeat`, `each`), outermost first.
    pub stacked: Vec<Axis>,
    /// The declared axes in order: what files and reports show after the stacked ones.
    pub axes: Vec<Axis>,
    /// The two sides of its arrow; both empty without one.
    pub from: Vec<Name>,
    pub to: Vec<Name>,
    /// Where its first value comes from; `init` has it as an input under its path then, and not as an output.
    pub origin: Option<Origin>,
    /// Whether steps leave it as it is. Frozen weights that another stage keeps are in [`TrainSpec::reads`] instead.
    pub frozen: bool,
}

/// A weight or state that a stage reads and leaves as it is: an input of kind `Weight` or `State`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Read {
    /// How graphs call it: `tuned:blocks.attn.q.w`.
    pub input: Name,
    pub dtype: DType,
    /// In the order of a checkpoint: copies first, then as declared.
    pub axes: Vec<Axis>,
    pub origin: Origin,
}

impl Read {
    /// The stage that has made it, if one has.
    pub fn stage(&self) -> Option<&str> {
        match &self.origin {
            Origin::Stage { stage, .. } => Some(stage),
            Origin::Files { .. } => None,
        }
    }
}

/// Where the value of a weight or state comes from that no initializer makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The last checkpoint of another train stage, which has it under this name.
    Stage { stage: String, tensor: Name },
    /// Files of weights, `load(…)`: the pieces together fill it. `same` are further tensors that must hold the same, such as a
    /// tied head that a file has twice.
    Files { pieces: Vec<Piece>, same: Vec<Piece> },
}

/// What a tensor in a safetensors file holds of a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// The file, relative to the recipe's folder.
    pub file: Name,
    /// The tensor's name there.
    pub tensor: Name,
    pub dtype: FileType,
    /// Where the whole tensor lies in the file.
    pub bytes: Range<u64>,
    /// The element of the tensor at which the piece begins.
    pub first: u64,
    /// For each axis of the weight, copies first.
    pub along: Vec<Along>,
}

/// How a piece goes along an axis of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Along {
    /// It holds this position alone.
    At(u64),
    /// It holds all positions, so many elements of the tensor apart.
    Every(u64),
}

macro_rules! file_types {
    ($($name:ident $text:literal $bytes:literal;)*) => {
        /// What a safetensors file may hold.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum FileType { $(#[serde(rename = $text)] $name,)* }

        impl FileType {
            pub const ALL: &[FileType] = &[$(FileType::$name,)*];

            /// As files write it.
            pub fn name(self) -> &'static str {
                match self { $(FileType::$name => $text,)* }
            }

            pub fn size_bytes(self) -> u64 {
                match self { $(FileType::$name => $bytes,)* }
            }
        }
    };
}

file_types! {
    Bool "BOOL" 1;
    U8 "U8" 1;
    I8 "I8" 1;
    F8E4M3 "F8_E4M3" 1;
    F8E5M2 "F8_E5M2" 1;
    I16 "I16" 2;
    U16 "U16" 2;
    F16 "F16" 2;
    BF16 "BF16" 2;
    I32 "I32" 4;
    U32 "U32" 4;
    F32 "F32" 4;
    F64 "F64" 8;
    I64 "I64" 8;
    U64 "U64" 8;
}

impl FileType {
    pub fn from_name(name: &str) -> Option<FileType> {
        FileType::ALL.iter().copied().find(|known| known.name() == name)
    }

    pub fn is_float(self) -> bool {
        matches!(
            self,
            FileType::F8E4M3 | FileType::F8E5M2 | FileType::F16 | FileType::BF16 | FileType::F32 | FileType::F64
        )
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub name: Name,
    pub dtype: DType,
    /// In declared order, stacked ones first.
    pub axes: Vec<Axis>,
    pub kind: StateKind,
    /// As of a weight.
    pub origin: Option<Origin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateKind {
    Layer,
    Optimizer,
    Average,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    BF16,
    F16,
    BF16x3,
    BF16x6,
}

/// `evaluate = every(250, on: plays.val)`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluate {
    pub every: u64,
    /// The part of the data.
    pub part: String,
    /// The objective, not training, on one batch; values `loss` and metrics.
    pub graph: Graph,
}

/// `save = every(1_000, keep: 2)`. The last step is always saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Save {
    pub every: Option<u64>,
    pub keep: u64,
}

/// `sample = every(500, prompt: "ROMEO:", new: 200)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub every: u64,
    pub prompt: String,
    pub new: u64,
    pub temperature: f64,
}

// ---- eval ----

/// An `eval` block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalSpec {
    /// The train stage whose result is measured.
    pub of: String,
    /// The data stage, and the part of it.
    pub data: String,
    pub part: String,
    pub batch: u64,
    /// Not training, on one batch: one value for each metric's `of`.
    pub graph: Graph,
    /// What it reads of stages other than `of`.
    pub reads: Vec<Read>,
    pub metrics: Vec<Metric>,
}

/// A number of the result: the mean of the value `of` over all that counts, then `finish`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub name: String,
    pub of: String,
    pub finish: Finish,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    Mean,
    /// `exp(mean)`: perplexity.
    Exp,
    /// The mean times counted tokens, divided by the bytes of their text and ln 2.
    BitsPerByte,
}
