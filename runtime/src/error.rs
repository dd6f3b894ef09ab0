//! Why a run ended early.

use std::fmt;
use std::path::PathBuf;

use mdl_data::Problem;

use mdl_lang::diag::Diagnostic;

use crate::device::BuildError;

#[derive(Debug)]
pub enum RunError {
    /// The data is wrong: the user's to mend.
    Data(Vec<Problem>),
    /// The recipe asks for what cannot be: the user's to mend.
    Recipe(Box<Diagnostic>),
    /// A failure while doing something: what, and why, with what to do next.
    Failed { doing: String, why: String },
    /// What was asked for on the command line is not there.
    Usage(String),
    /// The user asked to stop; what was done so far is saved here.
    Interrupted { saved: Option<PathBuf> },
}

impl RunError {
    pub fn failed(doing: impl Into<String>, why: impl Into<String>) -> RunError {
        RunError::Failed { doing: doing.into(), why: why.into() }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Data(problems) => {
                for (i, problem) in problems.iter().enumerate() {
                    write!(f, "{}{problem}", if i == 0 { "" } else { "\n" })?;
                }
                Ok(())
            }
            RunError::Recipe(diagnostic) => write!(f, "[{}] {}", diagnostic.code, diagnostic.message),
            RunError::Usage(message) => f.write_str(message),
            RunError::Failed { doing, why } => write!(f, "{doing} failed: {why}"),
            RunError::Interrupted { saved: Some(path) } => {
                write!(f, "stopped; saved in {}, run again to go on from there", path.display())
            }
            RunError::Interrupted { saved: None } => f.write_str("stopped before anything was made"),
        }
    }
}

impl std::error::Error for RunError {}

impl From<Problem> for RunError {
    fn from(problem: Problem) -> RunError {
        RunError::Data(vec![problem])
    }
}

impl From<Vec<Problem>> for RunError {
    fn from(problems: Vec<Problem>) -> RunError {
        RunError::Data(problems)
    }
}

impl From<BuildError> for RunError {
    fn from(error: BuildError) -> RunError {
        RunError::failed("compiling the program", error.0)
    }
}
