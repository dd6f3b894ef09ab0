//! A launch: blocks one after another, or over several host threads, each block's warps from barrier to barrier.
//!
//! Nothing depends on the order of blocks but atomics on floats; a kernel in which a block waits for another hangs on a simulator as
//! it may on a GPU, and is stopped by the limit on instructions.

use super::fault::Fault;
use super::memory::lanes;
use super::shared::Shared;
use super::warp::Stop;
use super::{Block, Instr, LANES, Warp};
use crate::ptx::parse::Param;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Registers whose value depends on the place of the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    Lane,
    Warp,
    Warps,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicShared,
    TotalShared,
    Zero,
    One,
    Multiprocessors,
}

/// A kernel, ready to run.
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Instr>,
    pub(crate) n_pred: usize,
    pub(crate) n_word: usize,
    pub(crate) n_long: usize,
    pub(crate) const_preds: Vec<(u32, u32)>,
    pub(crate) const_words: Vec<(u32, u32)>,
    pub(crate) const_longs: Vec<(u32, u64)>,
    pub(crate) specials: Vec<(u32, Special)>,
    pub(crate) static_shared: usize,
    pub(crate) local_bytes: usize,
    pub(crate) params: Vec<Param>,
    /// Log2 of the bytes in a granule of the race checks.
    pub(crate) shared_shift: u32,
    pub(crate) global_shift: u32,
    pub(crate) max_threads: Option<u32>,
    pub(crate) required: Option<[u32; 3]>,
    pub(crate) text: Arc<Vec<String>>,
    pub(crate) files: Arc<HashMap<u32, String>>,
}

/// When a granule of global memory was last written and read: epoch of the launch, block, and flags.
#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) wrote: AtomicU64,
    pub(crate) read: AtomicU64,
}

/// A live allocation.
#[derive(Clone, Copy)]
pub(crate) struct Alloc {
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) host: *mut u8,
    /// As many cells as bytes, in memory that is only taken when touched; or null.
    pub(crate) cells: *mut Cell,
    pub(crate) writable: bool,
}

// SAFETY: the memory is the simulated device's, which outlives every launch; kernels that race on it are what is looked for.
unsafe impl Send for Alloc {}
// SAFETY: as above.
unsafe impl Sync for Alloc {}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checks {
    /// Races in shared memory and, between blocks, in global memory.
    pub(crate) races: bool,
    /// Shared memory that is read before it is written.
    pub(crate) uninitialised: bool,
    /// Host threads.
    pub(crate) threads: usize,
    /// Instructions that a warp may execute in one block.
    pub(crate) limit: u64,
}

pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) shared_bytes: usize,
    pub(crate) dynamic_bytes: usize,
    pub(crate) params: &'a [u8],
    pub(crate) allocs: &'a [Alloc],
    pub(crate) epoch: u64,
    pub(crate) checks: Checks,
    pub(crate) between_blocks: bool,
    pub(crate) fences: Mutex<HashMap<u32, Vec<u32>>>,
    pub(crate) fence_count: AtomicU32,
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Count {
    /// Instructions of warps, and of lanes.
    pub(crate) instructions: u64,
    pub(crate) lane_instructions: u64,
}

fn nth(mut idx: u32, dims: [u32; 3]) -> [u32; 3] {
    let x = idx % dims[0];
    idx /= dims[0];
    [x, idx % dims[1], idx / dims[1]]
}

impl Launch<'_> {
    pub(crate) fn place(&self, block: u32) -> [u32; 3] {
        nth(block, self.grid)
    }

    pub(crate) fn thread(&self, thread: u32) -> [u32; 3] {
        nth(thread, self.threads)
    }

    /// A fence of a block: what it wrote before may be read by a block that fences later.
    pub(crate) fn fence(&self, b: &mut Block<'_>) {
        let number = self.fence_count.fetch_add(1, Ordering::SeqCst) + 1;
        self.fences.lock().unwrap_or_else(PoisonError::into_inner).entry(b.idx).or_default().push(number);
        b.n_fences += 1;
        b.last_fence = number;
    }

    /// Whether a write, as noted in a cell, happened before what `b` does now.
    pub(crate) fn ordered(&self, b: &Block<'_>, wrote: u64) -> bool {
        let (block, fences) = ((wrote >> 13 & 0x7ff_ffff) as u32, (wrote & 0xfff) as usize);
        if b.n_fences == 0 {
            return false;
        }
        let all = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        fences == 0xfff || all.get(&block).and_then(|list| list.get(fences)).is_some_and(|&at| at < b.last_fence)
    }

    pub(crate) fn run(&self) -> Result<Count, Box<Fault>> {
        let n_blocks = self.grid.iter().product::<u32>();
        let next = AtomicU32::new(0);
        let stop = AtomicBool::new(false);
        let result: Mutex<(Count, Option<Box<Fault>>)> = Mutex::default();
        let worker = || {
            let mut warps = self.warps();
            let mut block = self.block();
            loop {
                let idx = next.fetch_add(1, Ordering::Relaxed);
                if idx >= n_blocks || stop.load(Ordering::Relaxed) {
                    break;
                }
                if let Err(fault) = self.run_block(&mut block, &mut warps, idx) {
                    stop.store(true, Ordering::Relaxed);
                    let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
                    result.1.get_or_insert(fault);
                }
            }
            let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
            for w in &warps {
                result.0.instructions += w.n_instr;
                result.0.lane_instructions += w.n_lanes;
            }
        };
        let threads = self.checks.threads.min(n_blocks as usize).max(1);
        if threads == 1 {
            worker();
        } else {
            std::thread::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(worker);
                }
                worker();
            });
        }
        let (count, fault) = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        fault.map_or(Ok(count), Err)
    }

    fn block(&self) -> Block<'_> {
        Block {
            launch: self,
            idx: 0,
            shared: Shared::new(
                self.shared_bytes,
                self.kernel.shared_shift,
                self.checks.races,
                self.checks.uninitialised,
            ),
            phase: 0,
            recent: 0,
            n_fences: 0,
            last_fence: 0,
        }
    }

    /// The warps of a block, with what does not change from block to block.
    fn warps(&self) -> Vec<Warp> {
        let kernel = self.kernel;
        let n_threads = self.threads.iter().product::<u32>();
        (0..n_threads.div_ceil(32))
            .map(|n| {
                let first = 32 * n;
                let exist = if n_threads - first >= 32 { !0 } else { (1 << (n_threads - first)) - 1 };
                let mut words = vec![[0; LANES]; kernel.n_word].into_boxed_slice();
                let mut longs = vec![[0; LANES]; kernel.n_long].into_boxed_slice();
                let mut preds = vec![0; kernel.n_pred].into_boxed_slice();
                for &(slot, value) in &kernel.const_words {
                    words[slot as usize] = [value; LANES];
                }
                for &(slot, value) in &kernel.const_longs {
                    longs[slot as usize] = [value; LANES];
                }
                for &(slot, value) in &kernel.const_preds {
                    preds[slot as usize] = value;
                }
                Warp {
                    words,
                    longs,
                    preds,
                    carry: 0,
                    mask: 0,
                    exist,
                    live: 0,
                    fragments: Vec::new(),
                    at_barrier: None,
                    first,
                    pc: 0,
                    phase: 0,
                    local: vec![0xff; kernel.local_bytes * LANES],
                    local_bytes: kernel.local_bytes,
                    copies: super::copies::Copies::default(),
                    fault: None,
                    n_instr: 0,
                    n_lanes: 0,
                    stop_at: 0,
                }
            })
            .collect()
    }

    fn special(&self, which: Special, block: [u32; 3], warp: u32, lane: u32) -> u32 {
        let n_threads = self.threads.iter().product::<u32>();
        match which {
            Special::Tid(axis) => self.thread((32 * warp + lane).min(n_threads - 1))[axis],
            Special::Ntid(axis) => self.threads[axis],
            Special::Ctaid(axis) => block[axis],
            Special::Nctaid(axis) => self.grid[axis],
            Special::Lane => lane,
            Special::Warp => warp,
            Special::Warps => n_threads.div_ceil(32),
            Special::MaskEq => 1 << lane,
            Special::MaskLt => (1 << lane) - 1,
            Special::MaskLe => ((1 << lane) - 1) | (1 << lane),
            Special::MaskGe => !((1 << lane) - 1),
            Special::MaskGt => !(((1 << lane) - 1) | (1 << lane)),
            Special::DynamicShared => self.dynamic_bytes as u32,
            Special::TotalShared => self.shared_bytes as u32,
            Special::Zero => 0,
            Special::One => 1,
            Special::Multiprocessors => crate::driver::MULTIPROCESSORS.cast_unsigned(),
        }
    }

    fn run_block(&self, b: &mut Block<'_>, warps: &mut [Warp], idx: u32) -> Result<(), Box<Fault>> {
        let place = self.place(idx);
        b.idx = idx;
        b.shared.reset();
        b.phase += 1;
        (b.n_fences, b.last_fence) = (0, 0);
        for (n, w) in (0u32..).zip(warps.iter_mut()) {
            w.start(self.checks.limit);
            for &(slot, which) in &self.kernel.specials {
                let to = &mut w.words[slot as usize];
                for (lane, to) in (0u32..).zip(to.iter_mut()) {
                    *to = self.special(which, place, n, lane);
                }
            }
        }
        loop {
            for w in warps.iter_mut() {
                if w.live != 0 && w.at_barrier.is_none() {
                    let stop = w.run(b);
                    if let Stop::Fault = stop {
                        return Err(self.report(b, w));
                    }
                }
            }
            if warps.iter().all(|w| w.live == 0) {
                return Ok(());
            }
            self.pass_barriers(b, warps)?;
        }
    }

    /// Lets go the warps of barriers that are complete; it is a fault if there is none.
    fn pass_barriers(&self, b: &mut Block<'_>, warps: &mut [Warp]) -> Result<(), Box<Fault>> {
        let mut passed = false;
        let n_threads = self.threads.iter().product::<u32>();
        let mut ids: Vec<u32> = warps.iter().filter_map(|w| w.at_barrier.map(|pc| self.barrier_of(w, pc).0)).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let waiting: Vec<usize> = (0..warps.len())
                .filter(|&n| warps[n].at_barrier.is_some_and(|pc| self.barrier_of(&warps[n], pc).0 == id))
                .collect();
            let Some((first, pc)) = waiting.first().and_then(|&n| Some((n, warps[n].at_barrier?))) else { continue };
            let count = self.barrier_of(&warps[first], pc).1;
            let arrived: u32 =
                waiting.iter().map(|&n| if count.is_some() { 32 } else { warps[n].live.count_ones() }).sum();
            if arrived != count.unwrap_or(n_threads) {
                continue;
            }
            if count.is_none()
                && let Some(&other) = waiting.iter().find(|&&n| warps[n].at_barrier != Some(pc))
            {
                let line = |pc: u32| self.kernel.code[pc as usize].line;
                let there = warps[other].at_barrier.unwrap_or(pc);
                let what = format!(
                    "threads of a block wait at different barriers: thread {} at PTX line {}, thread {} at line {}",
                    warps[first].first,
                    line(pc),
                    warps[other].first,
                    line(there)
                );
                warps[other].pc = there;
                warps[other].fail(0, what);
                return Err(self.report(b, &mut warps[other]));
            }
            passed = true;
            b.phase += 1;
            self.release(warps, &waiting);
        }
        if passed {
            return Ok(());
        }
        let stuck = warps.iter().position(|w| w.at_barrier.is_some()).unwrap_or(0);
        let missing: Vec<String> = warps
            .iter()
            .filter(|w| w.at_barrier.is_none() || w.live != w.exist)
            .flat_map(|w| {
                lanes(w.exist & if w.at_barrier.is_some() { !w.live } else { !0 }).map(|k| w.first + k as u32)
            })
            .take(4)
            .map(|t| t.to_string())
            .collect();
        let elsewhere = if missing.is_empty() {
            "other threads wait at other barriers".to_owned()
        } else {
            format!("threads that exited never reach it: {}, …", missing.join(", "))
        };
        let w = &mut warps[stuck];
        w.pc = w.at_barrier.unwrap_or(0);
        w.fail(w.live.trailing_zeros() as usize & 31, format!("barrier that cannot complete: {elsewhere}"));
        Err(self.report(b, &mut warps[stuck]))
    }

    /// Number and count of the barrier that a warp stands at.
    fn barrier_of(&self, w: &Warp, pc: u32) -> (u32, Option<u32>) {
        let i = &self.kernel.code[pc as usize];
        let lane = w.live.trailing_zeros() as usize & 31;
        let value = |slot: u32| w.words[slot as usize][lane];
        (value(i.s[0]), (i.s[1] != super::NONE).then(|| value(i.s[1])))
    }

    fn release(&self, warps: &mut [Warp], waiting: &[usize]) {
        let reduced = |warps: &[Warp], kind: u32, pc: u32| {
            let p = self.kernel.code[pc as usize].s[2];
            let mut all = waiting.iter().map(|&n| &warps[n]);
            match kind {
                1 => all.map(|w| (w.pred(p) & w.live).count_ones()).sum(),
                2 => u32::from(all.all(|w| w.pred(p) & w.live == w.live)),
                _ => u32::from(all.any(|w| w.pred(p) & w.live != 0)),
            }
        };
        let Some(pc) = waiting.first().and_then(|&n| warps[n].at_barrier) else { return };
        let i = &self.kernel.code[pc as usize];
        let value = if i.x == 0 { 0 } else { reduced(warps, i.x, pc) };
        for &n in waiting {
            let w = &mut warps[n];
            w.mask = w.live;
            match i.x {
                0 => {}
                1 => w.put(i.d, &[value; LANES]),
                _ => w.put_pred(i.d, if value != 0 { !0 } else { 0 }),
            }
            w.pass_barrier();
        }
    }

    /// Fills in where the warp stands.
    fn report(&self, b: &Block<'_>, w: &mut Warp) -> Box<Fault> {
        let mut fault = w.fault.take().unwrap_or_else(|| Box::new(Fault::new(0, "fault".to_owned())));
        let thread = w.first + fault.lane as u32;
        fault.kernel.clone_from(&self.kernel.name);
        fault.block = self.place(b.idx);
        fault.thread = self.thread(thread);
        if let Some(i) = self.kernel.code.get(w.pc as usize) {
            fault.ptx_line = i.line;
            fault.ptx_text = self
                .kernel
                .text
                .get((i.line as usize).saturating_sub(1))
                .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
                .unwrap_or_default();
            if let Some(file) = self.kernel.files.get(&i.loc.0) {
                fault.source = Some((file.clone(), i.loc.1));
            }
        }
        fault
    }
}
