//! See README.md.

pub mod kernel;
