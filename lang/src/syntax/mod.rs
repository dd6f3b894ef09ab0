//! From source text to syntax tree, and back to well-spaced text.

pub mod ast;
