//! Data for training: sources are read, split, tokenized, and served as batches.
//!
//! In comes a `DataSpec` (what a recipe's `data` block says) and the folder its paths are relative to; out come
//! [`Facts`] (what a batch holds, known before the run) and a [`Dataset`] whose [`Batcher`]s fill the caller's buffers.
//! A batch is a pure function of (data, seed, step): nothing here remembers what was drawn before, so a resumed run
//! sees the batches that the unbroken one would have seen. A mistake in the data is a [`Problem`], never a panic.
//!
//! [`atomic`] is here, at the bottom of the house, because the prepared cache and the checkpoints both stand on it.

pub mod atomic;
pub mod batch;
mod cache;
pub mod chat;
pub mod dataset;
pub mod facts;
pub mod permutation;
pub mod problem;
pub mod source;
mod split;
#[cfg(test)]
mod testing;
pub mod tokenizer;

pub use batch::{Batcher, FieldSlice, Filled, Order};
pub use chat::{Chat, Template};
pub use dataset::{Dataset, prepare, template_of, template_of_tokenizer};
pub use facts::{Facts, FileFacts, PartFacts, describe};
pub use problem::{Checked, Problem};
pub use tokenizer::Tokenizer;
