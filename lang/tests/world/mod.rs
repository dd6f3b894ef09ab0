//! A world made of a table, for tests of the checker: what data holds follows from what the block says.

use mdl_graph::{Axis, DType};
use mdl_lang::check::{FileTensor, FileTensors, Imported, Problem, World};
use mdl_lang::spec::{DataFacts, DataSpec, Field, FileType, Form, Share, Source, Tokenizer};

/// Every text is 100 000 tokens, every table of rows has 1 000; a few paths are broken.
#[derive(Default)]
pub(crate) struct FakeWorld {
    /// Whatever the data, this is wrong with it.
    pub(crate) broken: Option<&'static str>,
}

/// Paths that are not fine, with the code of what is wrong.
const BROKEN: [(&str, &str, &str); 3] = [
    ("missing.txt", "E0501", "there is no file missing.txt"),
    ("latin1.txt", "E0502", "latin1.txt is not UTF-8 text: byte 17"),
    ("empty.txt", "E0503", "empty.txt is empty"),
];

const TOKENS: u64 = 100_000;
const ROWS: u64 = 1_000;

impl World for FakeWorld {
    fn import(&self, _: &str, path: &str) -> Result<Imported, String> {
        match path {
            "double.mdl" => Ok(Imported { name: path.into(), text: "fn double(x: [..]) -> [..] = 2.0 * x\n".into() }),
            _ => Err(format!("there is no file {path}")),
        }
    }

    /// The folder `tiny` has one matrix.
    fn tensors(&self, _: &str, dir: &str) -> Result<Option<FileTensors>, Problem> {
        if dir != "tiny" {
            let message = format!("there is no folder {dir}");
            return Err(Problem { code: "E0405".to_owned(), message, help: None, span: None });
        }
        let (name, shape) = ("linear.weight".to_owned(), vec![2, 4]);
        let tensor = FileTensor { name, file: 0, dtype: FileType::F32, shape, bytes: 64..96 };
        Ok(Some(FileTensors { files: vec!["tiny/model.safetensors".to_owned()], tensors: vec![tensor] }))
    }

    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        let sources: Vec<&Source> = spec.all_sources().collect();
        let mut problems = Vec::new();
        if let Some(code) = self.broken {
            let (code, message) = (code.to_owned(), "this is wrong with the data".to_owned());
            problems.push(Problem { code, message, help: None, span: None });
        }
        for source in &sources {
            let Source::Text { path, span } = source else { continue };
            for (broken, code, message) in BROKEN {
                if path == broken {
                    let (code, message) = (code.to_owned(), message.to_owned());
                    problems.push(Problem { code, message, help: None, span: Some(*span) });
                }
            }
        }
        if let Form::Window { axis } = &spec.form
            && axis.size >= TOKENS
        {
            let message = format!("the window of {} tokens is longer than the text, which has {TOKENS}", axis.size);
            problems.push(Problem { code: "E0508".to_owned(), message, help: None, span: None });
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let Some(first) = sources.first() else { return Err(Vec::new()) };
        let vocab = match (&spec.tokenizer, first) {
            (Some(Tokenizer::Chars), Source::Addition { .. }) => 12,
            (Some(Tokenizer::Chars), _) => 65,
            (Some(Tokenizer::Bytes), _) => 256,
            (Some(Tokenizer::Bpe { vocab }), _) | (None, Source::RandomTokens { vocab, .. }) => *vocab,
            (Some(Tokenizer::File { .. }), _) => 1_000,
            (Some(Tokenizer::Of { block }), _) => self.data_facts(block)?.vocab,
            (None, _) => 0,
        };
        let has_label = |label: &Option<String>| if label.is_some() { 5 } else { 0 };
        let classes = match first {
            Source::Lines { .. } => 2,
            Source::Jsonl { label, .. } | Source::Csv { label, .. } => has_label(label),
            Source::Idx { .. } | Source::Images { .. } | Source::Sounds { .. } => 10,
            _ => 0,
        };
        let rows = |part: &Share| match (part, &spec.form) {
            (Share::Fraction(share), Form::Window { axis }) => (share * (TOKENS / axis.size) as f64) as u64,
            (Share::Fraction(share), _) => (share * ROWS as f64) as u64,
            (Share::Sources(_), _) => ROWS,
        };
        Ok(DataFacts {
            vocab,
            classes,
            fields: fields(spec, first, classes),
            rows: spec.split.parts.iter().map(|part| (part.name.clone(), rows(&part.share))).collect(),
            hash: "fake".to_owned(),
        })
    }
}

fn fields(spec: &DataSpec, source: &Source, classes: u64) -> Vec<Field> {
    let field = |name: &str, dtype, axes: Vec<Axis>| Field { name: name.to_owned(), dtype, axes };
    match &spec.form {
        Form::Rows if matches!(source, Source::Images { .. }) => vec![
            field("image", DType::F32, vec![Axis::new("row", 32), Axis::new("column", 32), Axis::new("channel", 3)]),
            field("label", DType::I32, Vec::new()),
        ],
        Form::Pad { axis } if matches!(source, Source::Sounds { .. }) => vec![
            field("sound", DType::F32, vec![axis.clone()]),
            field("mask", DType::Bool, vec![axis.clone()]),
            field("label", DType::I32, Vec::new()),
        ],
        Form::Rows => vec![
            field("image", DType::F32, vec![Axis::new("row", 28), Axis::new("column", 28), Axis::new("channel", 1)]),
            field("label", DType::I32, Vec::new()),
        ],
        Form::Window { axis } | Form::Pad { axis } | Form::Pack { axis } => {
            let mut fields = vec![
                field("ids", DType::I32, vec![axis.clone()]),
                field("next", DType::I32, vec![axis.clone()]),
                field("mask", DType::Bool, vec![axis.clone()]),
            ];
            if spec.all_sources().any(|source| matches!(source, Source::Chat { .. })) {
                fields.push(field("turn", DType::I32, vec![axis.clone()]));
            }
            if matches!(spec.form, Form::Pack { .. }) {
                fields.push(field("document", DType::I32, vec![axis.clone()]));
                fields.push(field("position", DType::I32, vec![axis.clone()]));
            }
            if classes > 0 {
                fields.push(field("label", DType::I32, Vec::new()));
            }
            fields
        }
    }
}
