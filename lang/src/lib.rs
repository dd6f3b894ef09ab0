//! The `.mdl` language: from source text to graphs of primitives.
//!
//! `syntax` reads text and gives a tree, `check` evaluates it to graphs, `stage` knows what blocks mean, `decode` derives decoders
//! from graphs, `diag` is how every mistake of the user is told. Pure: sources arrive as text,
//! and nothing here touches files, devices or the network.

pub mod check;
pub mod decode;
pub mod diag;
pub mod spec;
pub mod stage;
pub mod syntax;

pub use stage::check;
