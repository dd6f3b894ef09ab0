//! How the tasks of a stage are dealt to workers: a run for each, and what a slow one leaves to the quick.
//!
//! A worker takes half of what is left of its own run, from the front, so that neighbours stay together; when nothing is left it
//! takes half of another's, from the back. Which worker runs a task changes no bit of its result, only the time: processors
//! are shared with others and differ in speed from one moment to the next.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is left of a worker's run, the first task in the upper half: alone in its line of cache.
#[repr(align(128))]
struct Run(AtomicU64);

pub(crate) struct Deal {
    runs: Box<[Run]>,
    tasks: AtomicU64,
}

/// A stage with more tasks is dealt in groups of them.
const MAX_UNITS: u64 = 1 << 20;

impl Deal {
    pub(crate) fn new(n_workers: usize) -> Deal {
        let runs = (0..n_workers).map(|_| Run(AtomicU64::new(0))).collect();
        Deal { runs, tasks: AtomicU64::new(0) }
    }

    /// Deals tasks in equal runs. Nobody may be taking any.
    pub(crate) fn start(&self, tasks: u64) {
        self.tasks.store(tasks, Ordering::Relaxed);
        let (units, n) = (tasks.min(MAX_UNITS), self.runs.len() as u64);
        for (worker, run) in self.runs.iter().enumerate() {
            let worker = worker as u64;
            run.0.store(pack(units * worker / n, units * (worker + 1) / n), Ordering::Relaxed);
        }
    }

    /// The next tasks for a worker, first and last.
    pub(crate) fn take(&self, worker: usize) -> Option<(u64, u64)> {
        let n = self.runs.len();
        (0..n).find_map(|other| self.half_of((worker + other) % n, other == 0))
    }

    fn half_of(&self, owner: usize, front: bool) -> Option<(u64, u64)> {
        let run = &self.runs[owner].0;
        let mut taken = (0, 0);
        let take = |left: u64| {
            let (lo, hi) = unpack(left);
            let half = (hi - lo).div_ceil(2);
            let (keep, mine) =
                if front { ((lo + half, hi), (lo, lo + half)) } else { ((lo, hi - half), (hi - half, hi)) };
            taken = mine;
            (half > 0).then(|| pack(keep.0, keep.1))
        };
        // The tasks' data were written before the job began, and are read after it ends: this number orders nothing else.
        run.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let tasks = self.tasks.load(Ordering::Relaxed);
        let first = |unit: u64| (u128::from(tasks) * u128::from(unit) / u128::from(tasks.min(MAX_UNITS))) as u64;
        Some((first(taken.0), first(taken.1)))
    }
}

fn pack(lo: u64, hi: u64) -> u64 {
    lo << 32 | hi
}

fn unpack(run: u64) -> (u64, u64) {
    (run >> 32, run & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_dealt_once() {
        for (n_workers, tasks) in [(1, 7), (2, 0), (2, 1), (3, 100), (4, (1 << 20) + 12_345)] {
            let deal = Deal::new(n_workers);
            deal.start(tasks);
            let mut taken = Vec::new();
            // The last worker is quick, the others take one turn each.
            for worker in 0..n_workers {
                taken.extend(deal.take(worker));
            }
            while let Some(run) = deal.take(n_workers - 1) {
                taken.push(run);
            }
            taken.sort();
            assert_eq!(taken.iter().map(|(lo, hi)| hi - lo).sum::<u64>(), tasks);
            assert!(taken.windows(2).all(|pair| pair[0].1 == pair[1].0), "{taken:?}");
        }
    }
}
