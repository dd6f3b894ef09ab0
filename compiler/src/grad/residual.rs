//! What a forward loop saves for its backward loop.
//!
//! Never saved: constants, positions and draws, whatever is computed from them alone (masks), the loop's scanned and free
//! arguments, and what is next to free to compute from these or from what is saved anyway: views and elementwise operations.
//! Everything else that the backward body reads is saved, each value once, at its smallest: the source of a view, not the view.

use mdl_graph::{Class, Graph, Loop, NodeId, Op};

use super::loops::params;

/// The values of the joint graph that are to be saved, in the order of their ids. `pulled` are the cotangents it computes.
pub(super) fn choose(joint: &Graph, inner: &Loop, n_params: usize, pulled: &[NodeId]) -> Vec<NodeId> {
    let n = joint.nodes().len();
    let inputs = params(joint);
    let mut tainted = vec![false; n];
    let mut pure = vec![false; n];
    let mut known = vec![false; n];
    for cotangent in &inputs[n_params..] {
        tainted[cotangent.idx()] = true;
    }
    for param in &inputs[inner.carries..n_params] {
        known[param.idx()] = true;
    }
    let mut pool = Pool { joint, known, refused: vec![0; n], round: 0, depth: 0 };
    for id in joint.ids() {
        let args = joint.args(id);
        tainted[id.idx()] |= args.iter().any(|arg| tainted[arg.idx()]);
        let leaf = matches!(joint.op(id), Op::Const(..) | Op::Iota(_));
        let open = !matches!(joint.op(id).class(), Class::Leaf | Class::Control);
        // The draws of `uniform` depend on the seed, which comes from outside and is as good as constant.
        pure[id.idx()] = leaf
            || (open && !args.is_empty() && args.iter().all(|arg| pure[arg.idx()]))
            || matches!(joint.op(id), Op::Uniform { .. })
                && args.iter().all(|arg| pure[arg.idx()] || pool.known[arg.idx()]);
        pool.known[id.idx()] |= pure[id.idx()];
    }

    let mut needed: Vec<bool> = vec![false; n];
    let mut copied: Vec<bool> = vec![false; n];
    pulled.iter().for_each(|ct| copied[ct.idx()] = true);
    for id in joint.ids().rev() {
        if !copied[id.idx()] {
            continue;
        }
        if !tainted[id.idx()] {
            needed[id.idx()] = true;
            continue;
        }
        for arg in joint.args(id) {
            copied[arg.idx()] = true;
        }
    }
    let mut saved = Vec::new();
    for id in joint.ids().filter(|id| needed[id.idx()]) {
        pool.require(id, &mut saved);
    }
    saved.sort();
    saved.dedup();
    saved
}

/// What the backward body can have without saving more.
struct Pool<'a> {
    joint: &'a Graph,
    known: Vec<bool>,
    /// The round in which a value was last found not to be covered: within one, nothing new becomes known.
    refused: Vec<u32>,
    round: u32,
    depth: u32,
}

impl Pool<'_> {
    /// Makes a value available, at the least price.
    fn require(&mut self, id: NodeId, saved: &mut Vec<NodeId>) {
        self.round += 1;
        if self.is_covered(id) {
            return;
        }
        let (size, args) = (self.joint.ty(id).size_bytes(), self.joint.args(id));
        // One source that is not larger stands for what was only viewed or converted.
        let moves =
            matches!(self.joint.op(id).class(), Class::View) && !matches!(self.joint.op(id), Op::Unwindow { .. });
        if (moves || matches!(self.joint.op(id), Op::Cast(_)))
            && let [source] = args
            && self.joint.ty(*source).size_bytes() <= size
        {
            return self.require(*source, saved);
        }
        self.known[id.idx()] = true;
        saved.push(id);
    }

    /// True when a value follows from what is known by views and elementwise operations alone.
    fn is_covered(&mut self, id: NodeId) -> bool {
        // A chain longer than this costs more time than it saves memory.
        const LONGEST: u32 = 24;
        if self.known[id.idx()] {
            return true;
        }
        let op = self.joint.op(id);
        let cheap = matches!(op.class(), Class::Map | Class::View) && !matches!(op, Op::Unwindow { .. })
            || matches!(op, Op::Detach);
        if !cheap || self.depth >= LONGEST || self.refused[id.idx()] == self.round {
            return false;
        }
        self.depth += 1;
        let joint = self.joint;
        let covered = joint.args(id).iter().all(|arg| self.is_covered(*arg));
        self.depth -= 1;
        if covered {
            self.known[id.idx()] = true;
        } else {
            self.refused[id.idx()] = self.round;
        }
        covered
    }
}
