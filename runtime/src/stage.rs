//! What each kind of stage does.

pub mod data;
pub mod eval;
pub mod train;
