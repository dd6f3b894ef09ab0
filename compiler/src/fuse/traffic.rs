//! What a kernel moves to and from memory, which is what merging saves.

use std::collections::BTreeMap;

use mdl_graph::{NodeId, Op};

use super::{Body, Kind, Names};

/// Values with their bytes, in order, that one kernel for some nodes reads from outside and stores for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(super) reads: Vec<(NodeId, u64)>,
    stores: Vec<(NodeId, u64)>,
    /// Of all of them.
    pub(crate) bytes: u64,
}

impl Traffic {
    pub(crate) fn new(
        body: &Body<'_>,
        members: &BTreeMap<NodeId, Names>,
        is_stored: impl Fn(NodeId) -> bool,
    ) -> Traffic {
        let mut reads: Vec<(NodeId, u64)> = Vec::new();
        for id in members.keys() {
            let own = body.counts[id.idx()].max(1);
            for from in body.reads[id.idx()].iter().filter(|from| !members.contains_key(&from.root)) {
                let ty = body.graph.ty(from.root);
                // A gather or a slice touches no more than it gives; a contraction reads all.
                let touched = if body.kind(*id) == Kind::Contract { ty.count() } else { ty.count().min(own) };
                reads.push((from.root, touched * ty.dtype.size_bytes()));
            }
        }
        // Of several readings of a value the largest counts.
        reads.sort_unstable_by(|x, y| (x.0, y.1).cmp(&(y.0, x.1)));
        reads.dedup_by_key(|(root, _)| *root);
        let stored = members.keys().copied().filter(|id| is_stored(*id));
        let stores = stored.map(|id| match body.graph.op(id) {
            // Its results are counted where they are read.
            Op::Loop(_) => (id, 0),
            _ => (id, body.graph.ty(id).size_bytes()),
        });
        let stores: Vec<(NodeId, u64)> = stores.collect();
        let bytes = reads.iter().chain(&stores).map(|(_, bytes)| bytes).sum();
        Traffic { reads, stores, bytes }
    }

    /// The bytes of a value that these nodes store.
    pub(super) fn stored(&self, value: NodeId) -> u64 {
        self.stores.binary_search_by_key(&value, |(id, _)| *id).map_or(0, |at| self.stores[at].1)
    }
}
