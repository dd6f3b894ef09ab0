//! What is wrong with a user's data: a code, one line that stands alone, the remedy, and the place in the file.
//!
//! The caller turns a `Problem` into a diagnostic of the recipe: the span says where that names the file.

use mdl_graph::Span;
use std::fmt;
use std::io;
use std::path::Path;

/// A result that carries every problem found, not just the first one.
pub type Checked<T> = Result<T, Vec<Problem>>;

/// One mistake in the data, as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// One of the `E05..` codes below: `mdlc explain` has a page for each.
    pub code: &'static str,
    /// Lower case, one line, without a full stop: `reviews.csv has no column content`.
    pub message: String,
    /// What to do about it, where that is known.
    pub help: Option<String>,
    pub path: Option<Box<Path>>,
    /// Counts from 1, as editors do.
    pub line: Option<u32>,
    /// Offset in the file as it is after decompression.
    pub byte: Option<u64>,
    /// The source or tokenizer in the recipe that it is about, where it is about one.
    pub span: Option<Span>,
}

/// A file that is not there, cannot be read, or a pattern that matches nothing.
pub const NO_FILE: &str = "E0501";
/// A text that is not UTF-8.
pub const NOT_UTF8: &str = "E0502";
/// A corpus without a single token, row or picture.
pub const EMPTY: &str = "E0503";
/// A column or key that the file does not have.
pub const NO_COLUMN: &str = "E0504";
/// A row that cannot be read: broken JSON, broken quoting, a value of the wrong kind.
pub const BAD_ROW: &str = "E0505";
/// A label that is missing, or a class that a part of the split lacks.
pub const BAD_LABEL: &str = "E0506";
/// A compressed or binary file that is cut off or is not what its name says.
pub const BAD_FILE: &str = "E0507";
/// A window that is longer than the text.
pub const WINDOW: &str = "E0508";
/// A split that gives nothing to one of its parts, or more than there is.
pub const SPLIT: &str = "E0509";
/// A tokenizer that cannot be loaded or trained.
pub const TOKENIZER: &str = "E0510";
/// A character that the vocabulary does not have.
pub const UNKNOWN_CHAR: &str = "E0511";
/// Fields of the block that do not go together.
pub const MISMATCH: &str = "E0512";
/// The prepared data cannot be written.
pub const CACHE: &str = "E0513";
/// A chat template that is missing, cannot be read, or runs without end.
pub const TEMPLATE: &str = "E0514";
/// A chat that its template cannot spell.
pub const BAD_CHAT: &str = "E0515";
/// Answers whose end is never learned.
pub const NO_END: &str = "E0516";
/// Two tokens that begin a text, one after the other.
pub const TWICE_BEGUN: &str = "E0517";
/// A row that is cut before anything of it is learned.
pub const CUT_EMPTY: &str = "E0518";

impl Problem {
    pub fn new(code: &'static str, message: impl Into<String>) -> Problem {
        Problem { code, message: message.into(), help: None, path: None, line: None, byte: None, span: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    pub fn at(mut self, path: &Path) -> Problem {
        self.path = Some(path.into());
        self
    }

    pub fn line(mut self, line: u64) -> Problem {
        self.line = u32::try_from(line).ok();
        self
    }

    pub fn byte(mut self, byte: u64) -> Problem {
        self.byte = Some(byte);
        self
    }

    /// Where the recipe names what is wrong; an earlier answer stays.
    pub fn span(mut self, span: Span) -> Problem {
        self.span = self.span.or(Some(span));
        self
    }

    /// A failure of the file system while reading: says what was being done, to which file.
    pub fn reading(path: &Path, error: &io::Error) -> Problem {
        let what = match error.kind() {
            io::ErrorKind::NotFound => format!("there is no file {}", path.display()),
            io::ErrorKind::PermissionDenied => format!("{} may not be read", path.display()),
            _ => format!("{} cannot be read: {error}", path.display()),
        };
        let problem = Problem::new(NO_FILE, what).at(path);
        if error.kind() == io::ErrorKind::NotFound {
            return problem.help("paths are relative to the recipe");
        }
        problem
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(path) = &self.path {
            write!(f, "\n  at {}", path.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            if let Some(byte) = self.byte {
                write!(f, " (byte {byte})")?;
            }
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl From<Problem> for Vec<Problem> {
    fn from(problem: Problem) -> Vec<Problem> {
        vec![problem]
    }
}
