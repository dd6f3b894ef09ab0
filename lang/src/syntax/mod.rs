//! From source text to syntax tree.
//!
//! `lexer` cuts text into tokens; `layout` matches brackets, finds the items and blanks out what the grammar shall not
//! see; `grammar.pest` reads each item; `items`, `build`, `expr` and `literal` make the tree; `errors` says what pest
//! found wrong.

pub mod ast;
mod build;
mod errors;
mod expr;
mod items;
mod layout;
mod lexer;
mod literal;
mod parse;

pub use parse::{decode, parse};
