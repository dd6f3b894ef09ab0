//! The order of tasks: among those that can run, the one that leaves the fewest bytes alive. Then whatever is made of nothing but inputs is
//! put off until somebody needs it.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{NodeId, Op};

use super::tasks::{Task, Tasks, maker};
use crate::fuse::{Body, Fusion};

/// The values that a task reads.
pub(super) fn reads(body: &Body<'_>, fusion: &Fusion, task: Task) -> BTreeSet<NodeId> {
    match task {
        Task::Group(group) => {
            let members = &fusion.groups[group].members;
            let all = members.keys().flat_map(|id| body.reads[id.idx()].iter().map(|read| read.root));
            all.filter(|root| !members.contains_key(root)).collect()
        }
        Task::Temp(j) | Task::Out(j) => BTreeSet::from([body.renamed(body.graph.outputs()[j].node).0]),
    }
}

/// How many tasks read each value.
pub(super) fn readers(body: &Body<'_>, fusion: &Fusion, tasks: &Tasks) -> BTreeMap<NodeId, usize> {
    let mut left = BTreeMap::new();
    for task in &tasks.list {
        for root in reads(body, fusion, *task) {
            *left.entry(root).or_default() += 1;
        }
    }
    left
}

pub(super) fn order(body: &Body<'_>, fusion: &Fusion, tasks: &Tasks) -> Vec<Task> {
    let mut waits = vec![0usize; tasks.list.len()];
    for to in tasks.next.iter().flatten() {
        waits[*to] += 1;
    }
    let reads: Vec<BTreeSet<NodeId>> = tasks.list.iter().map(|task| reads(body, fusion, *task)).collect();
    let mut left = readers(body, fusion, tasks);
    let made: Vec<u64> = tasks.list.iter().map(|task| made(body, fusion, *task)).collect();
    let mut ready: BTreeSet<usize> = (0..tasks.list.len()).filter(|at| waits[*at] == 0).collect();
    let mut order: Vec<usize> = Vec::with_capacity(tasks.list.len());
    while !ready.is_empty() {
        let score = |at: usize| -> i64 {
            let freed: u64 = reads[at]
                .iter()
                .filter(|root| {
                    left.get(root) == Some(&1) && !body.kept.contains(root) && maker(body, fusion, **root).is_some()
                })
                .map(|root| body.graph.ty(*root).size_bytes())
                .sum();
            made[at] as i64 - freed as i64
        };
        let Some(best) = ready.iter().copied().min_by_key(|at| (score(*at), *at)) else { break };
        ready.remove(&best);
        for root in &reads[best] {
            if let Some(count) = left.get_mut(root) {
                *count -= 1;
            }
        }
        order.push(best);
        for to in &tasks.next[best] {
            waits[*to] -= 1;
            if waits[*to] == 0 {
                ready.insert(*to);
            }
        }
    }
    put_off(body, fusion, tasks, &reads, order)
}

/// A task that reads nothing that was made here, such as zeros to add to or a weight that is rounded, keeps nothing alive by waiting: it
/// comes right before the first task that waits for it.
fn put_off(
    body: &Body<'_>,
    fusion: &Fusion,
    tasks: &Tasks,
    reads: &[BTreeSet<NodeId>],
    order: Vec<usize>,
) -> Vec<Task> {
    let mut place = vec![0usize; tasks.list.len()];
    for (at, task) in order.iter().enumerate() {
        place[*task] = at;
    }
    let mut keyed: Vec<(usize, bool, usize, usize)> = Vec::with_capacity(order.len());
    for (at, task) in order.iter().enumerate() {
        let waits = reads[*task].iter().all(|root| maker(body, fusion, *root).is_none());
        let first = tasks.next[*task].iter().map(|next| place[*next]).min();
        keyed.push(match first {
            Some(first) if waits => (first, false, at, *task),
            _ => (at, true, at, *task),
        });
    }
    keyed.sort_unstable();
    keyed.into_iter().map(|(.., task)| tasks.list[task]).collect()
}

/// The bytes that a task brings to life.
fn made(body: &Body<'_>, fusion: &Fusion, task: Task) -> u64 {
    let bytes = |id: NodeId| body.graph.ty(id).size_bytes();
    match task {
        Task::Group(group) => {
            let group = &fusion.groups[group];
            let is_loop = |id: &NodeId| matches!(body.graph.op(*id), Op::Loop(_));
            let own: u64 = fusion.stores(group).into_iter().filter(|id| !is_loop(id)).map(bytes).sum();
            let results: u64 = group.members.keys().flat_map(|id| body.gets(*id)).map(bytes).sum();
            own + results
        }
        Task::Temp(j) => bytes(body.graph.outputs()[j].node),
        Task::Out(_) => 0,
    }
}
