//! What of a model is the same for every token of a text: all that it makes of data without the axis of the text, such as the encoder
//! of a translator.
//!
//! In: the forward graph. Out: the graph that is computed once a text and leaves its results in states, and the one that reads them,
//! from which the decoder is derived.

use std::collections::BTreeMap;

use mdl_graph::{Axis, Graph, InputId, InputKind, Name, NodeId, Op, Output, Role};

/// A forward graph in two.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Run before the first token: each output is the next value of a state.
    pub once: Graph,
    /// The rest, which reads those states.
    pub each: Graph,
}

/// `None` for a model that reads nothing but what has `axis`.
pub fn parts(forward: &Graph, axis: &Axis) -> Option<Parts> {
    let still = still(forward, axis);
    let is_needed = forward.live();
    // What moves reads these.
    let mut kept: BTreeMap<NodeId, Name> = BTreeMap::new();
    for id in forward.ids().filter(|id| is_needed[id.idx()] && !still[id.idx()]) {
        for arg in forward.args(id).iter().filter(|arg| still[arg.idx()]) {
            let name = Name::from(format!("once/{}", kept.len()));
            kept.entry(*arg).or_insert(name);
        }
    }
    if kept.is_empty() {
        return None;
    }
    let mut once = forward.clone();
    let mut outputs = Vec::new();
    for (node, name) in &kept {
        let role = Role::Next(InputId(once.inputs().len() as u32));
        once.input(name.clone(), InputKind::State, forward.ty(*node).clone());
        outputs.push(Output { name: name.clone(), role, node: *node });
    }
    once.set_outputs(outputs);
    let mut states: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    let each = forward.rebuild(|graph, id, args| {
        let mut own = args.to_vec();
        for (to, arg) in own.iter_mut().zip(forward.args(id)) {
            let Some(name) = kept.get(arg).filter(|_| !still[id.idx()]) else { continue };
            let state = states
                .entry(*arg)
                .or_insert_with(|| graph.input(name.clone(), InputKind::State, forward.ty(*arg).clone()));
            *to = *state;
        }
        graph.copy(forward, id, &own)
    });
    Some(Parts { once, each })
}

/// For each node whether it is made of data, and of nothing that has the axis.
fn still(forward: &Graph, axis: &Axis) -> Vec<bool> {
    let (mut still, mut moves) = (Vec::new(), Vec::<bool>::new());
    for id in forward.ids() {
        let has_axis = forward.ty(id).axes.contains(&axis.name) || forward.args(id).iter().any(|arg| moves[arg.idx()]);
        let is_data = match forward.op(id) {
            Op::Input(input) => forward.inputs()[input.0 as usize].kind == InputKind::Batch,
            _ => forward.args(id).iter().any(|arg| still[arg.idx()]),
        };
        still.push(is_data && !has_axis);
        moves.push(has_axis);
    }
    still
}
