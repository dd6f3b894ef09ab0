//! PTX text to kernels that run: `lex` cuts words, `parse` reads declarations and statements with their scopes, `lower` turns a
//! statement into an [`Instr`](crate::sim::Instr) or refuses it by name and line.

pub(crate) mod lex;
pub(crate) mod lower;
pub(crate) mod parse;

use std::fmt;

/// Why a module was not taken: a line of the PTX text and a sentence.
#[derive(Debug, Clone)]
pub(crate) struct PtxError {
    pub(crate) line: u32,
    pub(crate) message: String,
}

impl fmt::Display for PtxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for PtxError {}

pub(crate) fn refuse<T>(line: u32, message: impl Into<String>) -> Result<T, PtxError> {
    Err(PtxError { line, message: message.into() })
}
