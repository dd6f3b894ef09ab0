//! Where a computation first makes a NaN: node by node, and within loops pass by pass.

use std::rc::Rc;

use mdl_graph::{Graph, Name, NodeId, Op, Span};

use super::control::run_loop_watched;
use super::{Held, Rounding, Tensor, step};

/// An operation that made a NaN of numbers that are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NanPlace {
    pub op: &'static str,
    /// The layer that it is in; empty outside of any.
    pub scope: Name,
    pub span: Span,
    /// The loops around it, outermost first: axis and position.
    pub passes: Vec<(Name, u64)>,
}

/// The first place that makes a NaN. Infinities are ordinary here.
pub fn first_nan(graph: &Graph, inputs: &[Tensor]) -> Option<NanPlace> {
    let inputs: Vec<Rc<Tensor>> = inputs.iter().cloned().map(Rc::new).collect();
    let mut passes = Vec::new();
    search(graph, &inputs, &mut passes)
}

fn search(graph: &Graph, inputs: &[Rc<Tensor>], passes: &mut Vec<(Name, u64)>) -> Option<NanPlace> {
    let live = graph.live();
    let mut held: Vec<Option<Held>> = vec![None; graph.nodes().len()];
    for id in graph.ids().filter(|id| live[id.idx()]) {
        let value = step(graph, id, inputs, &held, Rounding::Stored).ok()?;
        let parts: &[Rc<Tensor>] = match &value {
            Held::One(value) => std::slice::from_ref(value),
            Held::Many(results) => results,
        };
        if parts.iter().any(|part| part.has_nan()) {
            let node = graph.node(id);
            let own =
                NanPlace { op: node.op.name(), scope: node.scope.clone(), span: node.span, passes: passes.clone() };
            return Some(within(graph, id, &held, passes).unwrap_or(own));
        }
        held[id.idx()] = Some(value);
    }
    None
}

/// The place in the body of a loop: its passes run once more, each searched before it runs.
fn within(graph: &Graph, id: NodeId, held: &[Option<Held>], passes: &mut Vec<(Name, u64)>) -> Option<NanPlace> {
    let op @ Op::Loop(inner) = graph.op(id) else { return None };
    let args: Option<Vec<&Rc<Tensor>>> = graph
        .args(id)
        .iter()
        .map(|arg| match &held[arg.idx()] {
            Some(Held::One(value)) => Some(value),
            _ => None,
        })
        .collect();
    let mut found = None;
    // It ends with an error as soon as there is something to tell.
    let _ = run_loop_watched(op, &args?, Rounding::Stored, &mut |at, inputs| {
        passes.push((inner.axis.name.clone(), at));
        found = search(&inner.body, inputs, passes);
        passes.pop();
        found.is_none()
    });
    found
}

#[cfg(test)]
mod tests {
    use mdl_graph::{Axis, AxisSet, DType, InputKind, Loop, Role, Type};

    use super::super::Data;
    use super::*;

    #[test]
    fn a_nan_within_a_loop_is_placed_in_its_pass() {
        // log(x) of what shrinks by one in each pass: 2, 1, 0, and the logarithm of -1 in pass 3.
        let mut body = Graph::new();
        let x = body.input("x", InputKind::Param, Type::scalar(DType::F32));
        let one = body.constant(1.0, DType::F32);
        let next = body.add(Op::Sub, &[x, one]);
        let log = body.add(Op::Log, &[x]);
        body.output_as("x", Role::Value, next);
        body.output_as("log", Role::Value, log);
        let mut graph = Graph::new();
        let start = graph.input("start", InputKind::Batch, Type::scalar(DType::F32));
        let axis = Axis::new("layer", 5);
        let inner = Loop { axis, reverse: false, carries: 1, scans: 0, until: false, body };
        let results = graph.loop_over(inner, &[start]);
        graph.output_as("logs", Role::Value, results[1]);
        let start = |value: f64| Tensor { ty: Type::new(DType::F32, AxisSet::new()), data: Data::Float(vec![value]) };
        let found = first_nan(&graph, &[start(2.0)]).unwrap();
        assert_eq!((found.op, found.passes), ("log", vec![(Name::from("layer"), 3)]));
        assert_eq!(first_nan(&graph, &[start(9.0)]), None);
    }
}
