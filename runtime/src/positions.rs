//! Which numbers an input may hold because a table is read there: outside of the table is no entry, and a graph reads zeros.

use std::collections::BTreeMap;

use mdl_data::Problem;
use mdl_graph::{Class, Graph, Name, NodeId, Op};

/// What an input of whole numbers may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Below this.
    end: u64,
    /// Whether numbers below 0 are read at 0 or not at all, as labels are that do not count.
    below: bool,
}

/// Of each input by whose numbers, unchanged or bounded from below, a table is read: what all of its tables have.
pub(crate) fn positions(graph: &Graph) -> BTreeMap<Name, Positions> {
    let mut all: BTreeMap<Name, Positions> = BTreeMap::new();
    for id in graph.ids() {
        let Op::Gather { axis } = graph.op(id) else { continue };
        let [table, index] = *graph.args(id) else { continue };
        let Some(end) = graph.ty(table).axes.size(axis) else { continue };
        let Some((name, below)) = source(graph, index) else { continue };
        let known = all.entry(name).or_insert(Positions { end, below });
        *known = Positions { end: known.end.min(end), below: known.below && below };
    }
    all
}

/// The input whose numbers these are, and whether those below 0 were made 0.
fn source(graph: &Graph, id: NodeId) -> Option<(Name, bool)> {
    let args = graph.args(id);
    match graph.op(id) {
        Op::Input(input) => Some((graph.inputs()[input.0 as usize].name.clone(), false)),
        Op::Max => args.iter().find_map(|arg| source(graph, *arg)).map(|(name, _)| (name, true)),
        Op::Cast(_) => source(graph, args[0]),
        op if op.class() == Class::View && args.len() == 1 => source(graph, args[0]),
        _ => None,
    }
}

impl Positions {
    pub(crate) fn end(self) -> u64 {
        self.end
    }

    /// Whether a number of this input is one; if not, why not.
    pub(crate) fn check(self, name: &str, value: i64) -> Result<(), Problem> {
        let is_below = value < 0 && self.below;
        if is_below || u64::try_from(value).is_ok_and(|value| value < self.end) {
            return Ok(());
        }
        let message =
            format!("`{name}` holds {value}, and the model has a row for 0 to {}", self.end.saturating_sub(1));
        Err(Problem::new("E0505", message))
    }
}
