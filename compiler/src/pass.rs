//! The passes: from the graph that the checker made to the one that is fused and planned.
//!
//! In: a graph with markers. Out: a graph with the same inputs and outputs that computes the same, within roundings. Each pass is
//! a row of [`PASSES`]; after each that changes it the graph verifies, or the pass is named as the culprit.
//! Deliberately absent: fusion, memory and kernels, which start from what [`prepare`] gives.

pub mod accumulate;
mod chunk;
pub mod hoist;
pub mod precision;
pub mod recompute;
pub mod scale;
pub mod simplify;

use std::borrow::Cow;
use std::fmt;

use mdl_graph::{Graph, Span, bug};

pub use precision::Precision;

/// What a stage asks of its step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The dtype of what is computed between the weights, which stay `f32`.
    pub precision: Precision,
    /// The batch is cut into this many pieces, one after the other; 0 and 1 leave it whole.
    pub micro: u64,
    /// What the backward loops may keep of the forward ones, in bytes over all loops; `None` keeps whatever they read.
    pub saved_bytes: Option<u64>,
    /// Products larger than this that are only reduced, such as logits, are computed in pieces; `None` leaves it to the compiler.
    pub chunk_bytes: Option<u64>,
}

/// The axis that [`Options::micro`] cuts.
pub const BATCH: &str = "batch";

/// Why a graph cannot be prepared as asked; `span` is the expression that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassError {
    pub pass: &'static str,
    pub span: Span,
    pub message: String,
}

impl fmt::Display for PassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for PassError {}

/// One pass: its name for `--dump-after`, one line about it, and what it does.
#[derive(Clone, Copy)]
pub struct Pass {
    pub name: &'static str,
    pub doc: &'static str,
    pub run: fn(&Graph, &Options) -> Result<Graph, PassError>,
}

/// What the names of passes begin with that change nothing that such a pass has made.
const SIMPLIFY: &str = "simplify";

/// All passes, in the order in which [`prepare`] runs them.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "scale",
        doc: "for f16: scales the loss up and the gradients down, and skips steps that overflow",
        run: scale::scale,
    },
    Pass {
        name: "simplify-forward",
        doc: "one spelling for what means the same, before derivatives are taken of it",
        run: |graph, _| Ok(simplify::simplify(graph)),
    },
    Pass {
        name: "differentiate",
        doc: "replaces every `grad` by nodes that compute it",
        run: |graph, _| Ok(crate::grad::differentiate(graph)),
    },
    Pass {
        name: "simplify",
        doc: "constants folded, dead code gone, views composed, algebra, what no loop changes taken out of loops",
        run: |graph, _| Ok(simplify::simplify(graph)),
    },
    Pass {
        name: "hoist",
        doc: "products summed over the passes of a loop become one product after it",
        run: |graph, _| Ok(hoist::hoist(graph)),
    },
    Pass {
        name: "accumulate",
        doc: "cuts the batch into pieces and adds up what they give",
        run: accumulate::accumulate,
    },
    Pass {
        name: "chunk",
        doc: "computes large products that are only reduced, such as logits, in pieces",
        run: |graph, options| Ok(chunk::chunk(graph, options)),
    },
    Pass { name: "precision", doc: "gives every value the dtype it is stored in", run: precision::precision },
    Pass { name: "recompute", doc: "saves less for the backward loops, within the budget", run: recompute::run },
    Pass {
        name: "simplify-late",
        doc: "cleans up after the passes before it",
        run: |graph, _| Ok(simplify::simplify(graph)),
    },
];

/// The graph after all passes.
pub fn prepare(step: &Graph, options: &Options) -> Result<Graph, PassError> {
    prepare_watched(step, options, &mut |_, _| {})
}

/// As [`prepare`]; `watch` sees the graph after each pass, for `--dump-after` and for timing.
pub fn prepare_watched(
    step: &Graph,
    options: &Options,
    watch: &mut dyn FnMut(&Pass, &Graph),
) -> Result<Graph, PassError> {
    let mut graph = Cow::Borrowed(step);
    // Most passes leave most graphs as they are: then there is nothing to verify, and what is simple stays simple.
    let mut is_simple = false;
    for pass in PASSES {
        let simplifies = pass.name.starts_with(SIMPLIFY);
        if simplifies && is_simple {
            watch(pass, &graph);
            continue;
        }
        let next = (pass.run)(&graph, options)?;
        if next != *graph {
            if let Err(error) = next.verify() {
                bug!("after pass `{}`: {error}\n{next}", pass.name);
            }
            graph = Cow::Owned(next);
            is_simple = false;
        }
        is_simple |= simplifies;
        watch(pass, &graph);
    }
    Ok(graph.into_owned())
}

/// The text of the graph as it is after the named pass.
pub fn dump_after(step: &Graph, options: &Options, pass: &str) -> Result<String, PassError> {
    let mut text = None;
    prepare_watched(step, options, &mut |done, graph| {
        if done.name == pass {
            text = Some(graph.to_string());
        }
    })?;
    text.ok_or_else(|| {
        let names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
        let message = format!("there is no pass `{pass}`; there are {}", names.join(", "));
        PassError { pass: "dump-after", span: Span::default(), message }
    })
}
