//! The shared memory of a block: bytes, which of them were written, and who touched each granule last.
//!
//! Two accesses of one granule race when they come from different threads, at least one writes, and neither a barrier of the block
//! nor, within a warp, a `bar.warp.sync` lies between. Moments are numbers: the block's phase and the warp's; phases go on counting
//! from block to block, so that nothing needs clearing. A granule is as small as the kernel's smallest shared access.

use super::LANES;

const EMPTY: u8 = 0;
const WRITTEN: u8 = 1;
/// The destination of a `cp.async` that no wait has completed.
const PENDING: u8 = 2;

/// The thread that accesses and when.
#[derive(Clone, Copy)]
pub(crate) struct Who {
    pub(crate) thread: u32,
    pub(crate) phase: u32,
    pub(crate) warp_phase: u32,
}

#[derive(Clone, Copy, Default)]
struct Granule {
    write_phase: u32,
    write_warp_phase: u32,
    read_phase: u32,
    read_warp_phase: u32,
    writer: u16,
    reader: u16,
    /// Several lanes of the reader's warp read since they were last synchronised; several warps since the block was.
    many_lanes: bool,
    many_warps: bool,
    atomic: bool,
}

pub(crate) struct Shared {
    pub(crate) bytes: Vec<u8>,
    state: Vec<u8>,
    granules: Vec<Granule>,
    shift: u32,
    races: bool,
    uninitialised: bool,
}

fn warp_of(thread: u32) -> u32 {
    thread / 32
}

impl Shared {
    pub(crate) fn new(bytes: usize, shift: u32, races: bool, uninitialised: bool) -> Self {
        let n = bytes.next_multiple_of(16);
        Self {
            bytes: vec![0xff; n],
            state: vec![EMPTY; n],
            granules: if races { vec![Granule::default(); (n >> shift) + 1] } else { Vec::new() },
            shift,
            races,
            uninitialised,
        }
    }

    /// For the next block: poison.
    pub(crate) fn reset(&mut self) {
        self.bytes.fill(0xff);
        self.state.fill(EMPTY);
    }

    #[inline(always)]
    fn range(&self, at: usize, len: usize) -> std::ops::RangeInclusive<usize> {
        at >> self.shift..=(at + len - 1) >> self.shift
    }

    #[inline(always)]
    pub(crate) fn written_before(&self, at: usize, len: usize) -> Result<(), String> {
        let state = &self.state[at..at + len];
        if self.uninitialised && state.iter().fold(0, |all, &s| all | (s ^ WRITTEN)) != 0 {
            return Err(never_written(state, at));
        }
        Ok(())
    }

    /// Before a read of bytes that are within bounds.
    #[inline(always)]
    pub(crate) fn before_read(&mut self, at: usize, len: usize, who: Who) -> Result<(), String> {
        self.written_before(at, len)?;
        if self.races {
            for idx in self.range(at, len) {
                let g = &mut self.granules[idx];
                if g.write_phase == who.phase && u32::from(g.writer) != who.thread {
                    let same_warp = warp_of(g.writer.into()) == warp_of(who.thread);
                    if !same_warp || g.write_warp_phase == who.warp_phase {
                        return Err(race("reads", "wrote", g.writer, who, idx << self.shift, same_warp));
                    }
                }
                note_reader(g, who);
            }
        }
        Ok(())
    }

    /// Before a write; `same` says that the bytes there are those to be written, which threads may write twice.
    #[inline(always)]
    pub(crate) fn before_write(
        &mut self,
        at: usize,
        len: usize,
        who: Who,
        same: bool,
        atomic: bool,
    ) -> Result<(), String> {
        if self.races {
            for idx in self.range(at, len) {
                let g = &mut self.granules[idx];
                if g.write_phase == who.phase && u32::from(g.writer) != who.thread && !same && !(atomic && g.atomic) {
                    let same_warp = warp_of(g.writer.into()) == warp_of(who.thread);
                    if !same_warp || g.write_warp_phase == who.warp_phase {
                        return Err(race("writes", "wrote", g.writer, who, idx << self.shift, same_warp));
                    }
                }
                if g.read_phase == who.phase && !(atomic && g.atomic) {
                    let same_warp = warp_of(g.reader.into()) == warp_of(who.thread);
                    let in_warp =
                        g.read_warp_phase == who.warp_phase && (g.many_lanes || u32::from(g.reader) != who.thread);
                    if g.many_warps || !same_warp || in_warp {
                        return Err(race(
                            "writes",
                            "read",
                            g.reader,
                            who,
                            idx << self.shift,
                            same_warp && !g.many_warps,
                        ));
                    }
                }
                g.write_phase = who.phase;
                g.write_warp_phase = who.warp_phase;
                {
                    g.writer = who.thread as u16;
                }
                g.atomic = atomic;
            }
        }
        self.state[at..at + len].fill(WRITTEN);
        Ok(())
    }

    /// The destination of an asynchronous copy: poisoned, and unreadable until a wait completes it.
    pub(crate) fn poison(&mut self, at: usize, len: usize) {
        self.bytes[at..at + len].fill(0xff);
        self.state[at..at + len].fill(PENDING);
    }
}

#[inline(always)]
fn note_reader(g: &mut Granule, who: Who) {
    if g.read_phase == who.phase {
        let other = u32::from(g.reader) != who.thread;
        if warp_of(g.reader.into()) != warp_of(who.thread) {
            g.many_warps = true;
        } else if g.read_warp_phase == who.warp_phase {
            g.many_lanes |= other;
        } else {
            g.many_lanes = false;
        }
    } else {
        (g.many_lanes, g.many_warps) = (false, false);
        if g.write_phase != who.phase {
            g.atomic = false;
        }
    }
    g.read_phase = who.phase;
    g.read_warp_phase = who.warp_phase;
    g.reader = who.thread as u16;
}

#[cold]
fn never_written(state: &[u8], at: usize) -> String {
    if let Some(k) = state.iter().position(|&s| s == PENDING) {
        format!("shared memory at byte {} read before the cp.async that fills it was waited for", at + k)
    } else {
        let k = state.iter().position(|&s| s == EMPTY).unwrap_or(0);
        format!("uninitialised shared memory read at byte {}", at + k)
    }
}

#[cold]
fn race(verb: &str, did: &str, other: u16, who: Who, at: usize, same_warp: bool) -> String {
    let missing = if same_warp { "__syncwarp" } else { "__syncthreads" };
    format!(
        "race in shared memory: thread {} {verb} byte {at}, which thread {other} {did} with no {missing} between",
        who.thread
    )
}

const _: () = assert!(LANES == 32);
