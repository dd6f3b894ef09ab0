//! Dynamic loss scaling, for gradients in `f16`.
//!
//! Small gradients vanish in `f16`, whose least normal number is 6e-5. So the loss is multiplied by a scale before it is
//! differentiated, and the gradients are divided by it. A gradient that overflows says that the scale was too large: that step
//! changes nothing, and the scale is halved; after 2,000 good steps in a row it is doubled (Micikevicius et al., 2018, arXiv:1710.03740).
//!
//! In: a step with its `Grad` marker. Out: the same with two more states, both 0 at first: `loss scale.steps` counts good steps,
//! and the scale is two to the power of 16 plus `loss scale.power`. Without `f16`, or without a marker, nothing changes.

use mdl_graph::{DType, Graph, InputKind, NodeId, Op, Output, Phase, Role, Span, Type};

use super::{Options, PassError, Precision};

/// The first scale, as a power of two.
const FIRST: f64 = 16.0;
/// Good steps in a row after which the scale is doubled.
const PATIENCE: f64 = 2000.0;
/// The least and the largest power: a scale of 1 and of 2²⁴.
const POWERS: (f64, f64) = (0.0, 24.0);

pub(super) fn scale(graph: &Graph, options: &Options) -> Result<Graph, PassError> {
    match outer_markers(graph) {
        markers if options.precision == Precision::F16 && !markers.is_empty() => Ok(scaled(graph, &markers)),
        _ => Ok(graph.clone()),
    }
}

/// The markers of the step itself, one for each loss that weights follow; not those that a loss is made of.
fn outer_markers(graph: &Graph) -> Vec<NodeId> {
    let live = graph.live();
    let mut is_inside = vec![false; graph.nodes().len()];
    let mut markers = Vec::new();
    for id in graph.ids().rev().filter(|id| live[id.idx()]) {
        let is_marker = matches!(graph.op(id), Op::Grad);
        if is_marker && !is_inside[id.idx()] {
            markers.push(id);
        }
        if is_marker || is_inside[id.idx()] {
            graph.args(id).iter().for_each(|arg| is_inside[arg.idx()] = true);
        }
    }
    markers
}

fn scaled(graph: &Graph, markers: &[NodeId]) -> Graph {
    let mut next = Graph::new();
    let mut map: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
    for (node, input) in crate::grad::params(graph).into_iter().zip(graph.inputs()) {
        map[node.idx()] = Some(next.input(input.name.clone(), input.kind, input.ty.clone()));
    }
    let power = next.input("loss scale.power", InputKind::State, Type::scalar(DType::F32));
    let steps = next.input("loss scale.steps", InputKind::State, Type::scalar(DType::F32));
    let (two, first) = (next.constant(2.0, DType::F32), next.constant(FIRST, DType::F32));
    let exponent = next.add(Op::Add, &[power, first]);
    let factor = next.add(Op::Pow, &[two, exponent]);
    let mut gradients: Vec<NodeId> = Vec::new();
    let live = graph.live();
    for id in graph.ids().filter(|id| live[id.idx()]) {
        if map[id.idx()].is_some() {
            continue;
        }
        let mut args: Vec<NodeId> = graph.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
        next.set_here_like(graph.node(id));
        if markers.contains(&id) {
            let cast = next.cast(factor, next.ty(args[0]).dtype);
            args[0] = next.add(Op::Mul, &[args[0], cast]);
        }
        let mut copied = next.copy(graph, id, &args);
        if matches!(graph.args(id), [marker] if markers.contains(marker)) {
            let cast = next.cast(factor, next.ty(copied).dtype);
            copied = next.add(Op::Div, &[copied, cast]);
            gradients.push(copied);
        }
        map[id.idx()] = Some(copied);
    }
    for Output { name, role, node } in graph.outputs() {
        if let Some(node) = map[node.idx()] {
            next.output_as(name.clone(), *role, node);
        }
    }
    next.set_here(Phase::Update, Span::default(), None);

    // g · 0 is 0 for every number, and NaN for what is none.
    let mut lost = next.constant(0.0, DType::F32);
    let zero = lost;
    for gradient in gradients {
        let nothing = next.constant(0.0, next.ty(gradient).dtype);
        let vanished = next.add(Op::Mul, &[gradient, nothing]);
        let names: Vec<_> = next.ty(vanished).axes.names().cloned().collect();
        let sum = next.sum(vanished, names);
        let sum = next.cast(sum, DType::F32);
        lost = next.add(Op::Add, &[lost, sum]);
    }
    let finite = next.add(Op::Equal, &[lost, zero]);
    let nodes = crate::grad::params(&next);
    let mut outputs: Vec<Output> = next.outputs().to_vec();
    for output in &mut outputs {
        if let Role::Next(input) = output.role {
            output.node = next.add(Op::Select, &[finite, output.node, nodes[input.0 as usize]]);
        }
    }
    next.set_outputs(outputs);

    let one = next.constant(1.0, DType::F32);
    let patience = next.constant(PATIENCE, DType::F32);
    let counted = next.add(Op::Add, &[steps, one]);
    let long = next.add(Op::Less, &[counted, patience]);
    let kept = next.add(Op::Select, &[long, counted, zero]);
    let new_steps = next.add(Op::Select, &[finite, kept, zero]);
    let largest = next.constant(POWERS.1 - FIRST, DType::F32);
    let least = next.constant(POWERS.0 - FIRST, DType::F32);
    let (raised, lowered) = (next.add(Op::Add, &[power, one]), next.add(Op::Sub, &[power, one]));
    let below = next.add(Op::Less, &[power, largest]);
    let raised = next.add(Op::Select, &[below, raised, power]);
    let lowered = next.add(Op::Max, &[lowered, least]);
    let grown = next.add(Op::Select, &[long, power, raised]);
    let new_power = next.add(Op::Select, &[finite, grown, lowered]);
    for (name, state, value) in [("loss scale.power", power, new_power), ("loss scale.steps", steps, new_steps)] {
        if let Op::Input(input) = *next.op(state) {
            next.output_as(name, Role::Next(input), value);
        }
    }
    next
}
