//! A fixed pool of threads: the caller and its helpers run one function together, and meet at the end.
//!
//! No queue: work is dealt in shares by position, one for each thread. A share that its thread has not begun when the caller is done with
//! its own is taken by the caller, so that a helper which sleeps, or which the machine runs something else for, holds nobody up.
//! Helpers spin for a moment after a job, because the next launch usually follows at once, then sleep. A job allocates nothing.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// Turns of waiting before a helper sleeps: about 50 µs.
const SPINS: u32 = 20_000;

/// What a job is: called with (share, number of shares).
type Job = dyn Fn(usize, usize) + Sync;

struct Shared {
    /// Counts jobs; a helper runs its share of the job when it sees a new number.
    epoch: AtomicU64,
    job: UnsafeCell<Option<*const Job>>,
    /// Of each helper the last job whose share somebody has begun, the helper or the caller.
    begun: Vec<AtomicU64>,
    /// Shares that are not done.
    running: AtomicU32,
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    failed: AtomicBool,
}

// SAFETY: `job` is written only while no share is open, before `epoch` is raised with release order, and read only by who has seen the
// new epoch with acquire order and begun a share of it, which keeps the job alive.
unsafe impl Sync for Shared {}
// SAFETY: the pointer inside is only used as above.
unsafe impl Send for Shared {}

pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

impl Pool {
    /// The calling thread and `n_threads - 1` helpers. With `pin`, helper i stays on processor i (the caller is left alone).
    pub fn new(n_threads: usize, pin: bool) -> std::io::Result<Pool> {
        let n_helpers = n_threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            begun: (0..n_helpers).map(|_| AtomicU64::new(0)).collect(),
            running: AtomicU32::new(0),
            asleep: (0..n_helpers).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        });
        let mut pool = Pool { shared: shared.clone(), helpers: Vec::new(), busy: AtomicBool::new(false) };
        for helper in 0..n_helpers {
            let shared = shared.clone();
            let spawned = thread::Builder::new().name(format!("kernel {}", helper + 1)).spawn(move || {
                if pin {
                    pin_to(helper + 1);
                }
                help(&shared, helper, n_helpers + 1);
            })?;
            pool.helpers.push(spawned);
        }
        Ok(pool)
    }

    pub fn n_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `job(share, n_threads)` for every share and waits for all. Not to be called from inside a job.
    pub fn run(&self, job: &(dyn Fn(usize, usize) + Sync)) {
        let n_threads = self.n_threads();
        if n_threads == 1 {
            return job(0, 1);
        }
        assert!(!self.busy.swap(true, Ordering::Acquire), "a pool runs one job at a time");
        let shared = &*self.shared;
        shared.running.store(self.helpers.len() as u32, Ordering::Relaxed);
        // SAFETY: no helper runs, so nobody reads the job; the lifetime is forgotten, but this function waits for every helper.
        unsafe {
            let forever = std::mem::transmute::<*const (dyn Fn(usize, usize) + Sync + '_), *const Job>(job);
            *shared.job.get() = Some(forever);
        }
        let epoch = shared.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0, n_threads)));
        for helper in 0..self.helpers.len() {
            shared.share(helper, epoch, n_threads);
        }
        let mut spins = 0u32;
        while shared.running.load(Ordering::Acquire) > 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.busy.store(false, Ordering::Release);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!shared.failed.load(Ordering::Relaxed), "a kernel thread panicked");
    }
}

impl Shared {
    /// Runs the share of a helper in this job, unless somebody has begun it.
    fn share(&self, helper: usize, epoch: u64, n_threads: usize) {
        // Every share of the job before was begun, so one that nobody has begun holds exactly that number.
        if self.begun[helper].compare_exchange(epoch - 1, epoch, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        // SAFETY: see `Sync` above; the job lives until `running` is zero.
        let ran = catch_unwind(AssertUnwindSafe(|| unsafe {
            if let Some(job) = *self.job.get() {
                (*job)(helper + 1, n_threads);
            }
        }));
        if ran.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.running.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper that panicked has been reported by `run`.
            let _ = helper.join();
        }
    }
}

fn help(shared: &Shared, helper: usize, n_threads: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0u32;
        let epoch = loop {
            let epoch = shared.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                break epoch;
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.asleep[helper].store(true, Ordering::SeqCst);
            // Either the new epoch is seen here, or the caller sees that we sleep: both are sequentially consistent.
            if shared.epoch.load(Ordering::SeqCst) == seen {
                thread::park();
            }
            shared.asleep[helper].store(false, Ordering::SeqCst);
        };
        seen = epoch;
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        shared.share(helper, epoch, n_threads);
    }
}

#[cfg(target_os = "linux")]
fn pin_to(processor: usize) {
    // SAFETY: a zeroed set is a valid empty one; the calls only read and write it. A refusal leaves the thread unpinned.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if processor < libc::CPU_SETSIZE as usize {
            libc::CPU_SET(processor, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn pin_to(_processor: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_of_every_job_is_run_once() -> std::io::Result<()> {
        let pool = Pool::new(4, false)?;
        let counts: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        for round in 0..200 {
            pool.run(&|share, n_shares| {
                assert_eq!(n_shares, 4);
                counts[share].fetch_add(1, Ordering::Relaxed);
            });
            if round % 50 == 0 {
                // Long enough for helpers to sleep.
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 200));
        Ok(())
    }

    /// More threads than this machine has processors, all in a hurry: helpers come late, and find their share done.
    #[test]
    fn shares_of_late_helpers_are_run_once_too() -> std::io::Result<()> {
        let n_threads = 4 * thread::available_parallelism()?.get();
        let pool = Pool::new(n_threads, false)?;
        let counts: Vec<AtomicU32> = (0..n_threads).map(|_| AtomicU32::new(0)).collect();
        for round in 1..=20_000 {
            pool.run(&|share, _| {
                counts[share].fetch_add(1, Ordering::Relaxed);
            });
            // Nobody runs a job after `run` has come back.
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round), "round {round}");
        }
        Ok(())
    }

    #[test]
    #[should_panic(expected = "a kernel thread panicked")]
    fn a_panic_of_a_helper_reaches_the_caller() {
        let Ok(pool) = Pool::new(2, false) else { return };
        pool.run(&|share, _| assert_eq!(share, 0, "only the first is fine"));
    }
}
