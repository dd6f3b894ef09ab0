//! What lanes of a warp do together: shuffles, votes, reductions, matches. The scheduler has brought them to one instruction.

use super::memory::lanes;
use super::tables::Table;
use super::{Block, Flow, Instr, LANES, NONE, Warp};

const UP: u32 = 0;
const DOWN: u32 = 1;
const BFLY: u32 = 2;
const IDX: u32 = 3;

/// `d[|p], a, b, c, members`: `c` holds the last lane to read and the mask that cuts the warp into segments.
fn shuffle(w: &mut Warp, i: &Instr) {
    let (a, b, c) = (*w.get::<u32>(i.s[0]), *w.get::<u32>(i.s[1]), *w.get::<u32>(i.s[2]));
    let members = *w.get::<u32>(i.s[3]);
    let (mut out, mut in_range) = (a, 0u32);
    for k in lanes(w.mask) {
        let lane = k as u32;
        let segment = c[k] >> 8 & 31;
        let clamp = c[k] & 31;
        let last = lane & segment | clamp & !segment;
        let by = b[k] & 31;
        let (from, good) = match i.x {
            UP => (lane.wrapping_sub(by), lane >= by + last),
            DOWN => (lane + by, lane + by <= last),
            BFLY => (lane ^ by, lane ^ by <= last),
            _ => {
                let from = lane & segment | by & !segment;
                (from, from <= last)
            }
        };
        let from = if good { from } else { lane };
        if w.mask & members[k] & 1 << from == 0 {
            return w.fail(k, format!("shuffle reads lane {from}, which does not take part"));
        }
        out[k] = a[from as usize];
        in_range |= u32::from(good) << k;
    }
    w.put(i.d, &out);
    if let Some(&p) = i.list.first() {
        w.put_pred(p, in_range);
    }
}

fn vote(w: &mut Warp, i: &Instr) {
    let votes = w.pred(i.s[0]) & w.mask;
    let members = *w.get::<u32>(i.s[3]);
    let mut bits = 0;
    let mut ballot = [0; LANES];
    for k in lanes(w.mask) {
        let asked = members[k] & w.mask;
        let yes = votes & asked;
        ballot[k] = yes;
        let holds = match i.x {
            0 => yes == asked,
            1 => yes != 0,
            _ => yes == asked || yes == 0,
        };
        bits |= u32::from(holds) << k;
    }
    if i.x == 3 {
        w.put(i.d, &ballot);
    } else {
        w.put_pred(i.d, bits);
    }
}

fn reduce(w: &mut Warp, i: &Instr) {
    let (a, members) = (*w.get::<u32>(i.s[0]), *w.get::<u32>(i.s[3]));
    let mut out = [0; LANES];
    for k in lanes(w.mask) {
        let all = lanes(members[k] & w.mask).map(|k| a[k]);
        out[k] = match i.x {
            0 => all.fold(0, u32::wrapping_add),
            1 => all.min().unwrap_or(0),
            2 => all.max().unwrap_or(0),
            3 => all.min_by_key(|x| x.cast_signed()).unwrap_or(0),
            4 => all.max_by_key(|x| x.cast_signed()).unwrap_or(0),
            5 => all.fold(!0, |x, y| x & y),
            6 => all.fold(0, |x, y| x | y),
            _ => all.fold(0, |x, y| x ^ y),
        };
    }
    w.put(i.d, &out);
}

fn matches(w: &mut Warp, i: &Instr, equal: impl Fn(&mut Warp, usize, usize) -> bool, all: bool) {
    let members = *w.get::<u32>(i.s[3]);
    let (mut out, mut bits) = ([0; LANES], 0);
    for k in lanes(w.mask) {
        let asked = members[k] & w.mask;
        let mut found = 0;
        for other in lanes(asked) {
            found |= u32::from(equal(w, k, other)) << other;
        }
        if all {
            bits |= u32::from(found == asked) << k;
            out[k] = if found == asked { asked } else { 0 };
        } else {
            out[k] = found;
        }
    }
    w.put(i.d, &out);
    if let Some(&p) = i.list.first() {
        w.put_pred(p, bits);
    }
}

fn elect(w: &mut Warp, i: &Instr) {
    let members = *w.get::<u32>(i.s[3]);
    let (mut out, mut bits) = ([0; LANES], 0);
    for k in lanes(w.mask) {
        out[k] = (members[k] & w.mask).trailing_zeros();
        bits |= u32::from(out[k] as usize == k) << k;
    }
    if i.d != NONE {
        w.put(i.d, &out);
    }
    if let Some(&p) = i.list.first() {
        w.put_pred(p, bits);
    }
}

fn nothing(_: &mut Warp, _: &mut Block<'_>, _: &Instr) {}

mod fill {
    use super::*;
    pub(crate) fn fill(t: &mut Table) {
        // Shapes with upper case letters are laid out by `lower`; the member mask is always `s[3]`.
        for (name, x) in [("up", UP), ("down", DOWN), ("bfly", BFLY), ("idx", IDX)] {
            t.with_flow(format!("shfl.sync.{name}.b32"), "H", x, Flow::Together, |w, _, i| shuffle(w, i));
        }
        for (name, x) in [("all.pred", 0), ("any.pred", 1), ("uni.pred", 2), ("ballot.b32", 3)] {
            t.with_flow(
                format!("vote.sync.{name}"),
                if x == 3 { "rpm" } else { "ppm" },
                x,
                Flow::Together,
                |w, _, i| vote(w, i),
            );
        }
        for (name, x) in [
            ("add.u32", 0),
            ("add.s32", 0),
            ("min.u32", 1),
            ("max.u32", 2),
            ("min.s32", 3),
            ("max.s32", 4),
            ("and.b32", 5),
            ("or.b32", 6),
            ("xor.b32", 7),
        ] {
            t.with_flow(format!("redux.sync.{name}"), "rrm", x, Flow::Together, |w, _, i| reduce(w, i));
        }
        t.with_flow("match.any.sync.b32", "rrm", 0, Flow::Together, |w, _, i| {
            matches(w, i, |w, a, b| w.get::<u32>(i.s[0])[a] == w.get::<u32>(i.s[0])[b], false);
        });
        t.with_flow("match.any.sync.b64", "rqm", 0, Flow::Together, |w, _, i| {
            matches(w, i, |w, a, b| w.get::<u64>(i.s[0])[a] == w.get::<u64>(i.s[0])[b], false);
        });
        t.with_flow("match.all.sync.b32", "rrm", 0, Flow::Together, |w, _, i| {
            matches(w, i, |w, a, b| w.get::<u32>(i.s[0])[a] == w.get::<u32>(i.s[0])[b], true);
        });
        t.with_flow("elect.sync", "rm", 0, Flow::Together, |w, _, i| elect(w, i));
        t.add("activemask.b32", "r", 0, |w, _, i| {
            let out = [w.mask; LANES];
            w.put(i.d, &out);
        });
        t.with_flow("bar.warp.sync", "W", 0, Flow::WarpBarrier, nothing);
        for name in [
            "bar.sync",
            "bar.cta.sync",
            "barrier.sync",
            "barrier.sync.aligned",
            "barrier.cta.sync",
            "barrier.cta.sync.aligned",
        ] {
            t.with_flow(name, "B", 0, Flow::Barrier, nothing);
        }
        for root in [
            "bar.red",
            "barrier.red",
            "barrier.red.aligned",
            "bar.cta.red",
            "barrier.cta.red",
            "barrier.cta.red.aligned",
        ] {
            for (kind, x) in [("popc.u32", 1), ("and.pred", 2), ("or.pred", 3)] {
                t.with_flow(format!("{root}.{kind}"), "D", x, Flow::Barrier, nothing);
            }
        }
        for name in
            ["membar.gl", "membar.sys", "fence.acq_rel.gpu", "fence.acq_rel.sys", "fence.sc.gpu", "fence.sc.sys"]
        {
            t.with_flow(name, "", 0, Flow::Fence, nothing);
        }
        for name in [
            "membar.cta",
            "fence.acq_rel.cta",
            "fence.sc.cta",
            "griddepcontrol.wait",
            "griddepcontrol.launch_dependents",
        ] {
            t.add(name, "", 0, nothing);
        }
        t.add("nanosleep.u32", "-", 0, nothing);
        for name in ["prefetch.global.L1", "prefetch.global.L2", "prefetchu.L1"] {
            t.add(name, "-", 0, nothing);
        }
        t.with_flow("bra", "J", 0, Flow::Bra, nothing);
        t.with_flow("bra.uni", "J", 0, Flow::Bra, nothing);
        t.with_flow("brx.idx", "X", 0, Flow::BraTable, nothing);
        t.with_flow("brx.idx.uni", "X", 0, Flow::BraTable, nothing);
        t.with_flow("ret", "", 0, Flow::Exit, nothing);
        t.with_flow("ret.uni", "", 0, Flow::Exit, nothing);
        t.with_flow("exit", "", 0, Flow::Exit, nothing);
        t.with_flow("trap", "", 0, Flow::Trap, nothing);
    }
}
pub(crate) use fill::fill;
