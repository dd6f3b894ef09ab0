//! The machine: registers of a warp, one decoded instruction, and the helpers that apply a function to all 32 lanes.
//!
//! A register is 32 lanes side by side, so that an instruction is one loop which the compiler turns into vector code; which lanes
//! keep the result is a mask. Tables of operations are built twice, for AVX-512 and for any machine (`tables`).

pub(crate) mod alu;
pub(crate) mod atomics;
pub(crate) mod convert;
pub(crate) mod copies;
pub(crate) mod fault;
pub(crate) mod float;
pub(crate) mod half;
pub(crate) mod launch;
pub(crate) mod memory;
pub(crate) mod moves;
pub(crate) mod round;
pub(crate) mod shared;
pub(crate) mod tables;
pub(crate) mod tensor;
pub(crate) mod warp;
pub(crate) mod warpops;

use fault::Fault;
use launch::Launch;

/// Lanes of a warp.
pub(crate) const LANES: usize = 32;

/// What an instruction does to the lanes of `warp.mask`.
pub(crate) type Op = for<'a> fn(&mut Warp, &mut Block<'a>, &Instr);

/// How an instruction moves the program counter, and what its lanes wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Goes on, cannot fail.
    Plain,
    /// Goes on unless it faults.
    Mem,
    Bra,
    BraTable,
    Exit,
    /// Needs every lane of the member mask in `s[3]` at this instruction.
    Together,
    /// `bar.warp.sync`: needs every lane of the mask in `s[3]` at some such instruction.
    WarpBarrier,
    /// Needs every thread of the block.
    Barrier,
    /// Orders memory between blocks.
    Fence,
    Trap,
}

/// No guard, or no second destination.
pub(crate) const NONE: u32 = u32::MAX;
/// A predicate read negated.
pub(crate) const NOT: u32 = 1 << 31;

#[derive(Clone)]
pub(crate) struct Instr {
    pub(crate) op: Op,
    pub(crate) flow: Flow,
    pub(crate) d: u32,
    pub(crate) s: [u32; 4],
    /// Modifiers, by family.
    pub(crate) x: u32,
    /// Address offset, or a second immediate.
    pub(crate) offset: i64,
    /// Further registers, of vectors and fragments.
    pub(crate) list: Box<[u32]>,
    pub(crate) guard: u32,
    pub(crate) not: bool,
    pub(crate) target: u32,
    pub(crate) line: u32,
    pub(crate) loc: (u32, u32),
}

/// A run of lanes at one program counter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) waits: bool,
}

pub(crate) struct Warp {
    pub(crate) words: Box<[[u32; LANES]]>,
    pub(crate) longs: Box<[[u64; LANES]]>,
    pub(crate) preds: Box<[u32]>,
    pub(crate) carry: u32,
    /// Lanes that the running instruction is for.
    pub(crate) mask: u32,
    /// Lanes that exist, and those that have not exited.
    pub(crate) exist: u32,
    pub(crate) live: u32,
    pub(crate) fragments: Vec<Fragment>,
    /// Stopped at a barrier of the block, at this instruction.
    pub(crate) at_barrier: Option<u32>,
    /// Number of the first thread.
    pub(crate) first: u32,
    pub(crate) pc: u32,
    /// How often lanes of this warp were synchronised with each other.
    pub(crate) phase: u32,
    /// `local` bytes of each lane, one lane after another.
    pub(crate) local: Vec<u8>,
    pub(crate) local_bytes: usize,
    pub(crate) copies: copies::Copies,
    pub(crate) fault: Option<Box<Fault>>,
    /// Instructions so far, and lanes that took part.
    pub(crate) n_instr: u64,
    pub(crate) n_lanes: u64,
    /// The count of instructions at which the block is taken not to end.
    pub(crate) stop_at: u64,
}

/// What the warps of a block share.
pub(crate) struct Block<'a> {
    pub(crate) launch: &'a Launch<'a>,
    pub(crate) idx: u32,
    pub(crate) shared: shared::Shared,
    /// How many barriers of the whole block were passed.
    pub(crate) phase: u32,
    /// The allocation that was found last.
    pub(crate) recent: usize,
    /// Fences executed by this block, and the number of the last among all of the launch.
    pub(crate) n_fences: u32,
    pub(crate) last_fence: u32,
}

/// A register file that holds this type.
pub(crate) trait Lane: Copy + Default {
    /// The place of a register. `slot` is within the file: every [`Instr`] is made by `lower`, which counts the registers.
    fn file(warp: &mut Warp, slot: u32) -> *mut [Self; LANES];
}

impl Lane for u32 {
    #[inline(always)]
    fn file(warp: &mut Warp, slot: u32) -> *mut [Self; LANES] {
        debug_assert!((slot as usize) < warp.words.len());
        // SAFETY: the slot is within the file.
        unsafe { warp.words.as_mut_ptr().add(slot as usize) }
    }
}

impl Lane for u64 {
    #[inline(always)]
    fn file(warp: &mut Warp, slot: u32) -> *mut [Self; LANES] {
        debug_assert!((slot as usize) < warp.longs.len());
        // SAFETY: the slot is within the file.
        unsafe { warp.longs.as_mut_ptr().add(slot as usize) }
    }
}

impl Warp {
    /// The lanes of a register; a reference lasts until the next write.
    #[inline(always)]
    pub(crate) fn get<'b, T: Lane>(&mut self, slot: u32) -> &'b [T; LANES] {
        // SAFETY: the slot is within the file; callers are done with the reference before they write.
        unsafe { &*T::file(self, slot) }
    }

    /// Writes the lanes of `self.mask`.
    #[inline(always)]
    pub(crate) fn put<T: Lane>(&mut self, slot: u32, value: &[T; LANES]) {
        let mask = self.mask;
        // SAFETY: the slot is within the file, and nothing else borrows it during the write.
        let to = unsafe { &mut *T::file(self, slot) };
        if mask == !0 {
            *to = *value;
        } else {
            for k in 0..LANES {
                to[k] = if mask >> k & 1 != 0 { value[k] } else { to[k] };
            }
        }
    }

    #[inline(always)]
    pub(crate) fn pred(&self, slot: u32) -> u32 {
        let bits = self.preds[(slot & !NOT) as usize];
        if slot & NOT != 0 { !bits } else { bits }
    }

    #[inline(always)]
    pub(crate) fn put_pred(&mut self, slot: u32, bits: u32) {
        if slot != NONE {
            let mask = self.mask;
            let to = &mut self.preds[slot as usize];
            *to = (*to & !mask) | (bits & mask);
        }
    }

    /// Reports for the lane; the first report of a warp counts.
    #[cold]
    pub(crate) fn fail(&mut self, lane: usize, what: impl Into<String>) {
        if self.fault.is_none() {
            self.fault = Some(Box::new(Fault::new(lane, what.into())));
        }
    }
}

/// `d = f(a)` for each lane.
#[inline(always)]
pub(crate) fn map1<A: Lane, D: Lane>(w: &mut Warp, i: &Instr, f: impl Fn(A) -> D) {
    let mut out = [D::default(); LANES];
    let a = w.get::<A>(i.s[0]);
    for k in 0..LANES {
        out[k] = f(a[k]);
    }
    w.put(i.d, &out);
}

#[inline(always)]
pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(w: &mut Warp, i: &Instr, f: impl Fn(A, B) -> D) {
    let mut out = [D::default(); LANES];
    let (a, b) = (w.get::<A>(i.s[0]), w.get::<B>(i.s[1]));
    for k in 0..LANES {
        out[k] = f(a[k], b[k]);
    }
    w.put(i.d, &out);
}

#[inline(always)]
pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(w: &mut Warp, i: &Instr, f: impl Fn(A, B, C) -> D) {
    let mut out = [D::default(); LANES];
    let (a, b, c) = (w.get::<A>(i.s[0]), w.get::<B>(i.s[1]), w.get::<C>(i.s[2]));
    for k in 0..LANES {
        out[k] = f(a[k], b[k], c[k]);
    }
    w.put(i.d, &out);
}

#[inline(always)]
pub(crate) fn map4<A: Lane, B: Lane, C: Lane, E: Lane, D: Lane>(w: &mut Warp, i: &Instr, f: impl Fn(A, B, C, E) -> D) {
    let mut out = [D::default(); LANES];
    let (a, b, c, e) = (w.get::<A>(i.s[0]), w.get::<B>(i.s[1]), w.get::<C>(i.s[2]), w.get::<E>(i.s[3]));
    for k in 0..LANES {
        out[k] = f(a[k], b[k], c[k], e[k]);
    }
    w.put(i.d, &out);
}

/// Lanes for which `f(a, b)` holds, as bits.
#[inline(always)]
pub(crate) fn test2<A: Lane>(w: &mut Warp, i: &Instr, f: impl Fn(A, A) -> bool) -> u32 {
    let mut out = [0u32; LANES];
    let (a, b) = (w.get::<A>(i.s[0]), w.get::<A>(i.s[1]));
    for k in 0..LANES {
        out[k] = u32::from(f(a[k], b[k])) << k;
    }
    out.iter().fold(0, |x, y| x | y)
}
