//! A step compiled within a budget of memory: as little is recomputed as the budget allows.
//!
//! In: the step's graph, what the stage asks, and the most bytes that it may use. Out: the plan, or the least budget that would do.

use std::fmt;

use mdl_graph::{Graph, Span};

use crate::pass::{Options, PassError, prepare};
use crate::plan::{CompileError, Plan, PlanOptions, plan};

/// Attempts between saving all and saving nothing: after ten halvings the budget is met within a thousandth of the range.
const HALVINGS: u32 = 10;

/// Why a step has no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepError {
    Pass(PassError),
    /// The place in the recipe of what cannot be planned, if it has one.
    Plan(CompileError, Option<Span>),
    /// Even with everything recomputed the step needs this much.
    Memory {
        budget_bytes: u64,
        least_bytes: u64,
    },
}

impl StepError {
    /// The expression in the recipe that stands in the way, where there is one.
    pub fn span(&self) -> Option<Span> {
        match self {
            StepError::Pass(error) => Some(error.span),
            StepError::Plan(_, span) => *span,
            StepError::Memory { .. } => None,
        }
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::Pass(error) => write!(f, "{error}"),
            StepError::Plan(error, _) => write!(f, "{error}"),
            StepError::Memory { budget_bytes, least_bytes } => write!(
                f,
                "a step needs {} at least, also with all that can be recomputed, and `memory` allows {}",
                mib(*least_bytes),
                mib(*budget_bytes)
            ),
        }
    }
}

impl std::error::Error for StepError {}

impl From<PassError> for StepError {
    fn from(error: PassError) -> StepError {
        StepError::Pass(error)
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Prepares and plans a step. With `memory`, the plan's peak is at most that many bytes.
pub fn compile(
    step: &Graph,
    options: &Options,
    planning: &PlanOptions,
    memory: Option<u64>,
) -> Result<Plan, StepError> {
    let planning = &PlanOptions { parts: options.precision.parts(), ..planning.clone() };
    let attempt = |saved_bytes: Option<u64>| -> Result<Plan, StepError> {
        let graph = prepare(step, &Options { saved_bytes, ..options.clone() })?;
        plan(&graph, planning).map_err(|error| {
            // Nodes of loop bodies are numbered on their own.
            let node = error.node.and_then(|id| graph.nodes().get(id.idx()));
            let span = node.map(|node| node.span).filter(|span| *span != Span::default());
            StepError::Plan(error, span)
        })
    };
    let whole = attempt(options.saved_bytes)?;
    let Some(budget) = memory.filter(|budget| whole.report.peak_bytes > *budget) else { return Ok(whole) };
    let mut best = attempt(Some(0))?;
    if best.report.peak_bytes > budget {
        return Err(StepError::Memory { budget_bytes: budget, least_bytes: best.report.peak_bytes });
    }
    // What may be saved: never more than the whole step takes.
    let (mut fits, mut too_much) = (0, whole.report.peak_bytes);
    for _ in 0..HALVINGS {
        let middle = fits + (too_much - fits) / 2;
        let tried = attempt(Some(middle))?;
        if tried.report.peak_bytes <= budget {
            (fits, best) = (middle, tried);
        } else {
            too_much = middle;
        }
    }
    Ok(best)
}
