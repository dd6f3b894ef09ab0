//! Precision.

use mdl_graph::Graph;

use super::{Options, PassError};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    BF16,
    F16,
}

pub(super) fn precision(graph: &Graph, _options: &Options) -> Result<Graph, PassError> {
    Ok(graph.clone())
}
