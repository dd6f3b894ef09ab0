//! The outside of the checker: files that are imported, and what is in the data.

use std::path::{Path, PathBuf};

use mdl_lang::check::{FileTensors, Imported, Problem, World};
use mdl_lang::spec::{DataFacts, DataSpec};

/// Answers from the disk.
pub(crate) struct Disk {
    /// The recipe's folder.
    base: PathBuf,
    /// Where prepared data is kept, if anywhere.
    cache: Option<PathBuf>,
    reads_weights: bool,
}

impl Disk {
    pub(crate) fn new(base: PathBuf, cache: Option<PathBuf>) -> Disk {
        Disk { base, cache, reads_weights: true }
    }

    /// The same where weights are not looked at: for recipes whose weights need not be there.
    pub(crate) fn without_weights(self) -> Disk {
        Disk { reads_weights: false, ..self }
    }
}

impl World for Disk {
    fn import(&self, from: &str, path: &str) -> Result<Imported, String> {
        let folder = Path::new(from).parent().unwrap_or(Path::new(""));
        let path = folder.join(path);
        let text =
            std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        // One file under two spellings is one file.
        let name = path.canonicalize().unwrap_or(path);
        Ok(Imported { name: name.display().to_string(), text })
    }

    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        match mdl_data::describe(spec, &self.base, self.cache.as_deref()) {
            Ok(facts) => Ok(facts.data),
            Err(problems) => Err(problems.into_iter().map(told).collect()),
        }
    }

    fn tensors(&self, from: &str, dir: &str) -> Result<Option<FileTensors>, Problem> {
        if !self.reads_weights {
            return Ok(None);
        }
        let folder = Path::new(from).parent().unwrap_or(Path::new("")).join(dir);
        mdl_runtime::weights::headers(&folder, dir).map(Some).map_err(told)
    }
}

fn told(problem: mdl_data::Problem) -> Problem {
    let mut message = problem.message.clone();
    if let Some(path) = &problem.path {
        let place = match problem.line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        if !message.contains(&place) {
            message = format!("{message} ({place})");
        }
    }
    Problem { code: problem.code.to_string(), message, help: problem.help, span: problem.span }
}
