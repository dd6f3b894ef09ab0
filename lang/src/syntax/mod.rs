//! From source text to syntax tree, and back to well-spaced text.
//!
//! `lexer` cuts text into tokens; `layout` matches brackets, finds the items and blanks out what the grammar shall not
//! see; `grammar.pest` reads each item; `items`, `build`, `expr` and `literal` make the tree; `errors` says what pest
//! found wrong. `fmt` goes the other way, from tokens to well-spaced text.

pub mod ast;
mod build;
mod errors;
mod expr;
mod fmt;
mod items;
mod layout;
mod lexer;
mod literal;
mod parse;

pub use fmt::format;
pub(crate) use lexer::words;
pub(crate) use parse::Outline;
pub use parse::{decode, parse};
