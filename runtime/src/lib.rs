//! Runs checked recipes: stages, training, evaluation, generated text.
//!
//! In: a [`Program`](mdl_lang::spec::Program) of the checker. Out: artifacts in a run's folder, and [`event::Event`]s for whoever
//! watches. Deliberately absent: the language's syntax, arguments, colours, and anything that prints.

pub mod apply;
pub mod checkpoint;
pub mod device;
pub mod error;
pub mod event;
pub mod export;
pub mod generate;
pub mod kept;
pub mod merge;
pub mod metrics;
pub mod npz;
mod positions;
pub mod profile;
pub mod programs;
pub mod refuse;
pub mod run;
pub mod stage;
pub mod tfevents;
pub mod tune;
pub mod verify;
pub mod weights;
