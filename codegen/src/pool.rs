//! A fixed pool of threads: the caller and its helpers run one function together, and meet at the end.
//!
//! No queue, no stealing: work is dealt by position, so that every run does the same on the same thread. Helpers spin for a
//! moment after a job, because the next launch usually follows at once, then sleep. A job allocates nothing.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

/// Turns of waiting before a helper sleeps: about 50 µs.
const SPINS: u32 = 20_000;

/// What a job is: called with (worker, number of workers).
type Job = dyn Fn(usize, usize) + Sync;

struct Shared {
    /// Counts jobs; a helper runs the job when it sees a new number.
    epoch: AtomicU64,
    job: UnsafeCell<Option<*const Job>>,
    running: AtomicU32,
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
    failed: AtomicBool,
}

// SAFETY: `job` is written only while no helper runs, before `epoch` is raised with release order, and read only after the new
// epoch was seen with acquire order.
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

    /// Runs `job(worker, n_threads)` on every thread and waits for all. Not to be called from inside a job.
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
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers) {
            if asleep.load(Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0, n_threads)));
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
        while shared.epoch.load(Ordering::SeqCst) == seen {
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
        }
        seen += 1;
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: see `Shared`; the job lives until `running` is zero.
        let ran = catch_unwind(AssertUnwindSafe(|| unsafe {
            if let Some(job) = *shared.job.get() {
                (*job)(helper + 1, n_threads);
            }
        }));
        if ran.is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
        shared.running.fetch_sub(1, Ordering::Release);
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
    fn every_worker_runs_every_job() -> std::io::Result<()> {
        let pool = Pool::new(4, false)?;
        let counts: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        for round in 0..200 {
            pool.run(&|worker, n_workers| {
                assert_eq!(n_workers, 4);
                counts[worker].fetch_add(1, Ordering::Relaxed);
            });
            if round % 50 == 0 {
                // Long enough for helpers to sleep.
                thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 200));
        Ok(())
    }

    #[test]
    #[should_panic(expected = "a kernel thread panicked")]
    fn a_panic_of_a_helper_reaches_the_caller() {
        let Ok(pool) = Pool::new(2, false) else { return };
        pool.run(&|worker, _| assert_eq!(worker, 0, "only the caller is fine"));
    }
}
