//! What the checker asks of the outside: the text of imported files, and what is in the data.
//!
//! The language itself touches no file. The runtime answers from the disk; tests answer from a table.

use mdl_graph::Span;

use std::ops::Range;

use crate::spec::{DataFacts, DataSpec, FileType};

/// The outside, as the checker sees it.
pub trait World {
    /// The text of a file that `from` imports (or reads with `json`) as `path`, and the name that messages show and that
    /// tells whether two imports are one file. `from` is the name of the importing file in `Sources`. `Err` is what is
    /// wrong, in one line.
    fn import(&self, from: &str, path: &str) -> Result<Imported, String>;

    /// What batches of the data hold. Reads the data as far as that needs, at most once for equal specs.
    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>>;

    /// What the safetensors files of a folder hold, which `from` calls `dir`: names, shapes, places, no values. `None` where
    /// only the recipe is of interest, and not whether its weights are there.
    fn tensors(&self, _from: &str, dir: &str) -> Result<Option<FileTensors>, Problem> {
        let message = format!("there is no folder `{dir}` here");
        Err(Problem { code: "E0405".to_string(), message, help: None, span: None })
    }
}

/// The tensors of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileTensors {
    /// Paths relative to the recipe's folder.
    pub files: Vec<String>,
    pub tensors: Vec<FileTensor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTensor {
    pub name: String,
    /// Its place in `files`.
    pub file: u32,
    pub dtype: FileType,
    pub shape: Vec<u64>,
    /// Where it lies in the file.
    pub bytes: Range<u64>,
}

/// A file that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub name: String,
    pub text: String,
}

/// Something wrong with the data: becomes a diagnostic of the recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `E0501` and following; see `diag/codes.rs`.
    pub code: String,
    /// Lower case, one line, without a full stop.
    pub message: String,
    pub help: Option<String>,
    /// The source that is to blame; `None` blames the whole block.
    pub span: Option<Span>,
}

/// A world without files, for texts that stand alone.
pub struct NoWorld;

impl World for NoWorld {
    fn import(&self, _: &str, path: &str) -> Result<Imported, String> {
        Err(format!("there is no file `{path}` here"))
    }

    fn data_facts(&self, _: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        Ok(DataFacts { vocab: 0, classes: 0, fields: Vec::new(), rows: Vec::new(), hash: String::new() })
    }
}
