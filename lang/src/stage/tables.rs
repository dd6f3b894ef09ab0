//! The functions that only mean something inside a field: sources, tokenizers, `every`, `patience`.

use super::schema::{FieldRow, FunctionRow, MANY, Need, Takes};

const fn arg(name: &'static str, takes: Takes, need: Need, doc: &'static str) -> FieldRow {
    FieldRow { name, takes, need, doc }
}

const fn function(name: &'static str, args: &'static [FieldRow], doc: &'static str) -> FunctionRow {
    FunctionRow { name, args, later: false, doc }
}

const fn later(name: &'static str, doc: &'static str) -> FunctionRow {
    FunctionRow { name, args: &[], later: true, doc }
}

const PATH: FieldRow = arg(
    "path",
    Takes::Path,
    Need::Required,
    "Relative to the recipe; `*` matches file names; `.gz` and `.zst` are unpacked.",
);
const NAMED: FieldRow = arg(
    "path",
    Takes::Path,
    Need::Required,
    "Relative to the recipe; `*` matches file names, `{a, b}` one of these, `{0..5}` a number from 0 to 4; what stands at `{label}` is the label.",
);
const TEXT: FieldRow = arg("text", Takes::Column, Need::Default("\"text\""), "The column of the text.");
const LABEL: FieldRow = arg("label", Takes::Column, Need::Default("none"), "The column of the label.");
const STEPS: FieldRow =
    arg("steps", Takes::Count { least: 1, most: MANY, units: &["steps"] }, Need::Required, "Every so many steps.");

/// `source = …`
pub(super) const SOURCES: &[FunctionRow] = &[
    function("text", &[PATH], "Whole files, one after another in the order of their paths."),
    function("jsonl", &[PATH, TEXT, LABEL], "An object on each line."),
    function(
        "csv",
        &[
            PATH,
            TEXT,
            LABEL,
            arg(
                "header",
                Takes::Bool,
                Need::Default("true"),
                "Whether the first line names the columns; otherwise they are `\"0\"`, `\"1\"`, …",
            ),
            arg("delimiter", Takes::Text, Need::Default("\",\""), "The character between columns."),
        ],
        "Rows of columns.",
    ),
    function("lines", &[PATH], "`label sentence` on each line, the label a whole number."),
    function(
        "chat",
        &[
            PATH,
            arg(
                "format",
                Takes::Choice(&["alpaca", "sharegpt", "messages"]),
                Need::Default("told by the keys of the first row"),
                "How a row is laid out: `instruction`, `input`, `output`; turns with `from` and `value`; or with `role` and `content`.",
            ),
            arg("messages", Takes::Column, Need::Default("`messages` or `conversations`"), "The column of the turns."),
            arg("tools", Takes::Column, Need::Default("`tools`"), "The column of the functions that may be called."),
            arg("system", Takes::Column, Need::Default("`system`"), "The column of what the system says first."),
            arg("instruction", Takes::Column, Need::Default("`instruction`"), "The column of what is asked."),
            arg("input", Takes::Column, Need::Default("`input`"), "The column of what it is asked about."),
            arg("output", Takes::Column, Need::Default("`output`"), "The column of the answer."),
            arg(
                "long",
                Takes::Choice(&["cut", "drop"]),
                Need::Default("cut"),
                "What becomes of a chat that is longer than its row.",
            ),
        ],
        "Conversations, as a JSON list or an object on each line; the loss counts what the assistant says.",
    ),
    function(
        "idx",
        &[
            arg("images", Takes::Path, Need::Required, "The file of the images."),
            arg("labels", Takes::Path, Need::Required, "The file of the labels."),
        ],
        "Images and labels in the files of MNIST.",
    ),
    function(
        "addition",
        &[arg(
            "digits",
            Takes::Count { least: 1, most: 3, units: &[] },
            Need::Default("2"),
            "Digits of each number; all pairs of such numbers are made.",
        )],
        "Rows `12+34=046`, all pairs of numbers; the loss counts the answer only.",
    ),
    function(
        "random_tokens",
        &[
            arg(
                "vocab",
                Takes::Count { least: 1, most: 16_777_216, units: &[] },
                Need::Required,
                "The number of token ids.",
            ),
            arg(
                "count",
                Takes::Count { least: 1, most: 1_000_000_000, units: &["tokens"] },
                Need::Default("1_000_000"),
                "How many tokens.",
            ),
        ],
        "Token ids drawn at random, for benchmarks.",
    ),
    function(
        "images",
        &[NAMED, arg("grey", Takes::Bool, Need::Default("false"), "One channel in place of red, green and blue.")],
        "Pictures of one size, a JPEG or PNG file each: batches hold `image`, from 0 to 1; transparency is left out.",
    ),
    function(
        "sounds",
        &[
            NAMED,
            arg(
                "rate",
                Takes::Count { least: 1, most: 768_000, units: &[] },
                Need::Default("that of the files, which is one"),
                "Samples a second; a file with another number is refused.",
            ),
        ],
        "Sounds, a WAV file each: batches hold `sound`, from -1 to 1, and `mask`; several channels become their mean.",
    ),
    later("parquet", "Rows of Parquet files."),
];

/// `tokenizer = …`
pub(super) const TOKENIZERS: &[FunctionRow] = &[
    function("chars", &[], "The characters of the training part, sorted."),
    function("bytes", &[], "The 256 bytes."),
    function(
        "bpe",
        &[arg(
            "vocab",
            Takes::Count { least: 257, most: 16_777_216, units: &["tokens"] },
            Need::Required,
            "The number of tokens: the 256 bytes and what is merged from them.",
        )],
        "Byte-level BPE, trained on the training part.",
    ),
    function(
        "tokenizer",
        &[arg(
            "path",
            Takes::Path,
            Need::Required,
            "A file, or a folder with `tokenizer.json`, `vocab.json` and `merges.txt`, `vocab.txt`, `spiece.model`, `sentencepiece.model` or `tokenizer.model`.",
        )],
        "One that was trained before.",
    ),
    later("words", "The words of the training part."),
];

/// `template = …`
pub(super) const TEMPLATES: &[FunctionRow] = &[
    function("chatml", &[], "`<|im_start|>user`, a line break, the message, `<|im_end|>`, and a line break."),
    function(
        "jinja",
        &[arg("path", Takes::Path, Need::Required, "The file, as `transformers` reads them.")],
        "A template in a file of its own.",
    ),
];

/// `order = easy_first(by: length, over: 10_000)`
pub(super) const ORDERS: &[FunctionRow] = &[function(
    "easy_first",
    &[
        arg(
            "by",
            Takes::Difficulty,
            Need::Default("length"),
            "How hard a row is: `length`, its tokens, `label`, its number, and what `+`, `-`, `*`, `/` and `abs` make of them.",
        ),
        arg(
            "over",
            Takes::Count { least: 1, most: MANY, units: &["steps"] },
            Need::Required,
            "From this step on every row comes once an epoch.",
        ),
        arg(
            "from",
            Takes::Number { zero: false },
            Need::Default("0.01"),
            "The share of the rows that training begins with.",
        ),
    ],
    "Draws from the easiest rows, of more and more of them.",
)];

/// `evaluate = every(250, on: plays.val)`
pub(super) const EVERY_EVALUATE: &[FunctionRow] = &[function(
    "every",
    &[STEPS, arg("on", Takes::Part, Need::Required, "The part of the data to measure on.")],
    "Every so many steps.",
)];

/// `save = every(1_000, keep: 2)`
pub(super) const EVERY_SAVE: &[FunctionRow] = &[function(
    "every",
    &[
        STEPS,
        arg(
            "keep",
            Takes::Count { least: 1, most: MANY, units: &[] },
            Need::Default("2"),
            "How many checkpoints to keep.",
        ),
    ],
    "Every so many steps.",
)];

/// `sample = every(500, prompt: "ROMEO:", new: 200)`
pub(super) const EVERY_SAMPLE: &[FunctionRow] = &[function(
    "every",
    &[
        STEPS,
        arg("prompt", Takes::Text, Need::Required, "What the text begins with."),
        arg(
            "new",
            Takes::Count { least: 1, most: MANY, units: &["tokens"] },
            Need::Default("200"),
            "How many tokens to add.",
        ),
        arg(
            "temperature",
            Takes::Number { zero: true },
            Need::Default("0.8"),
            "How freely tokens are drawn; 0 takes the likeliest.",
        ),
    ],
    "Every so many steps.",
)];

const DOUBLE: FieldRow =
    arg("double", Takes::Bool, Need::Default("false"), "Whether the scales of blocks are kept in eight bits too.");

const fn block(default: &'static str) -> FieldRow {
    let takes = Takes::Count { least: 2, most: 65_536, units: &[] };
    arg("block", takes, Need::Default(default), "How many numbers share a scale; an even number.")
}

/// `frozen = nf4(block: 64)`
pub(super) const STORED: &[FunctionRow] = &[
    function("nf4", &[block("64"), DOUBLE], "Four bits a number, the quantiles of a normal distribution (QLoRA)."),
    function("q8", &[block("256")], "Eight bits a number, finer near zero."),
];

/// `stop = patience(5)`
pub(super) const STOPS: &[FunctionRow] = &[function(
    "patience",
    &[arg(
        "evaluations",
        Takes::Count { least: 1, most: MANY, units: &[] },
        Need::Required,
        "How many evaluations may pass without a better loss.",
    )],
    "Ends when this many evaluations in a row have not improved the loss.",
)];
