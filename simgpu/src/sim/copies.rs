//! `cp.async`: the destination is poisoned when the copy is issued and filled when it is waited for, so that a wrong wait shows.
//!
//! The source is read when the copy is issued. Groups are counted lane by lane.

use super::memory::{Kind, addresses, in_shared, lanes, locate, misaligned, touch};
use super::tables::Table;
use super::{Block, Flow, Instr, LANES, NONE, Warp};

struct Copy {
    lane: u8,
    bytes: u8,
    at: u32,
    group: u32,
    data: [u8; 16],
}

/// The copies of a warp that are under way, and the number of the group each lane is filling.
#[derive(Default)]
pub(crate) struct Copies {
    pending: Vec<Copy>,
    group: [u32; LANES],
}

impl Copies {
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.group = [0; LANES];
    }
}

/// Address of the destination in `s[0]`, of the source in `s[1]` with `list[0..2]` as its offset, how many bytes of the source to
/// read in `s[2]`; `x` holds the size and above it whether the destination's address has 32 bits.
const SHORT: u32 = 1 << 8;

fn issue(w: &mut Warp, b: &mut Block<'_>, i: &Instr) {
    let size = (i.x & 0xff) as usize;
    let to = addresses(w, i.s[0], i.offset, i.x & SHORT != 0);
    let from_offset = u64::from(i.list[0]) | u64::from(i.list[1]) << 32;
    let from = *w.get::<u64>(i.s[1]);
    for k in lanes(w.mask) {
        let take = if i.s[2] == NONE { size } else { w.get::<u32>(i.s[2])[k] as usize };
        let ignore = i.s[3] != NONE && w.pred(i.s[3]) >> k & 1 != 0;
        let take = if ignore { 0 } else { take };
        if take > size {
            return w.fail(k, format!("cp.async of {size} bytes reads {take}"));
        }
        let source = from[k].wrapping_add(from_offset);
        let at = match in_shared(b, to[k], size) {
            Ok(at) => at,
            Err(what) => return w.fail(k, what),
        };
        if source & (size as u64 - 1) != 0 {
            return w.fail(k, misaligned(source, size));
        }
        let mut data = [0; 16];
        if take != 0 {
            let found = locate(b, source, take as u64).and_then(|(place, idx)| {
                let a = &b.launch.allocs[idx];
                touch(b, a, source - a.base, take as u64, Kind::Read).map(|()| place)
            });
            match found {
                // SAFETY: `take` bytes at `place` are within an allocation, and at most 16.
                Ok(place) => unsafe { std::ptr::copy_nonoverlapping(place, data.as_mut_ptr(), take) },
                Err(what) => return w.fail(k, what),
            }
        }
        let who = w.who(b, k);
        if let Err(what) = b.shared.before_write(at, size, who, false, false) {
            return w.fail(k, what);
        }
        b.shared.poison(at, size);
        let group = w.copies.group[k];
        w.copies.pending.push(Copy { lane: k as u8, bytes: size as u8, at: at as u32, group, data });
    }
}

fn commit(w: &mut Warp) {
    for k in lanes(w.mask) {
        w.copies.group[k] += 1;
    }
}

/// Completes all but the newest `keep` groups of each lane; all copies when `keep` is none.
fn wait(w: &mut Warp, b: &mut Block<'_>, keep: Option<u32>) {
    let mut pending = std::mem::take(&mut w.copies.pending);
    let mask = w.mask;
    let mut problem = None;
    pending.retain(|copy| {
        let lane = copy.lane as usize;
        let done = mask >> lane & 1 != 0 && keep.is_none_or(|keep| copy.group + keep < w.copies.group[lane]);
        if done {
            let (at, bytes) = (copy.at as usize, copy.bytes as usize);
            let who = w.who(b, lane);
            if let Err(what) = b.shared.before_write(at, bytes, who, false, false) {
                problem.get_or_insert((lane, what));
            }
            b.shared.bytes[at..at + bytes].copy_from_slice(&copy.data[..bytes]);
        }
        !done
    });
    w.copies.pending = pending;
    if let Some((lane, what)) = problem {
        w.fail(lane, what);
    }
}

mod fill {
    use super::*;
    pub(crate) fn fill(t: &mut Table) {
        for cache in ["ca", "cg"] {
            for shared in ["shared", "shared::cta"] {
                for hint in ["", ".L2::64B", ".L2::128B", ".L2::256B"] {
                    t.with_flow(format!("cp.async.{cache}.{shared}.global{hint}"), "C", 0, Flow::Mem, issue);
                }
            }
        }
        t.add("cp.async.commit_group", "", 0, |w, _, _| commit(w));
        t.with_flow("cp.async.wait_all", "", 0, Flow::Mem, |w, b, _| wait(w, b, None));
        t.with_flow("cp.async.wait_group", "-i", 0, Flow::Mem, |w, b, i| {
            wait(w, b, Some(u32::try_from(i.offset).unwrap_or(0)))
        });
    }
}
pub(crate) use fill::fill;
