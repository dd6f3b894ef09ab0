//! Atomic operations on global and shared memory, with the old value (`atom`) or without (`red`).
//!
//! Blocks may run on several host threads, so global ones are loops of compare and exchange on host atomics.

use super::half::{bf16_of, f16_of, from_bf16, from_f16};
use super::memory::{Kind, Where, addresses, generic, in_shared, lanes, locate, misaligned, touch};
use super::tables::Table;
use super::{Block, Flow, Instr, LANES, NONE, Warp};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// `x`: what to do in the low byte, the type above.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Do {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

const OPS: [(&str, Do); 10] = [
    ("add", Do::Add),
    ("min", Do::Min),
    ("max", Do::Max),
    ("and", Do::And),
    ("or", Do::Or),
    ("xor", Do::Xor),
    ("exch", Do::Exch),
    ("cas", Do::Cas),
    ("inc", Do::Inc),
    ("dec", Do::Dec),
];

/// Types an operation exists for.
fn types(op: Do) -> &'static [&'static str] {
    match op {
        Do::Add => &["u32", "s32", "u64", "f32", "f64", "noftz.f16x2", "noftz.bf16x2"],
        Do::Min | Do::Max => &["u32", "s32", "u64", "s64"],
        Do::And | Do::Or | Do::Xor | Do::Exch | Do::Cas => &["b32", "b64"],
        Do::Inc | Do::Dec => &["u32"],
    }
}

const TYPES: [&str; 10] = ["u32", "s32", "u64", "s64", "f32", "f64", "noftz.f16x2", "noftz.bf16x2", "b32", "b64"];

fn is_long(ty: &str) -> bool {
    ty.ends_with("64")
}

fn pairs(a: u32, b: u32, read: impl Fn(u32) -> f32, write: impl Fn(f32) -> u32) -> u32 {
    let half = |a: u32, b: u32| write(read(a & 0xffff) + read(b & 0xffff)) & 0xffff;
    half(a >> 16, b >> 16) << 16 | half(a, b)
}

fn apply(x: u32, old: u64, b: u64, c: u64) -> u64 {
    let (op, ty) = (OPS[(x & 0xff) as usize].1, TYPES[(x >> 8 & 0xff) as usize]);
    let word = |v: u32| u64::from(v);
    match (op, ty) {
        (Do::Add, "f32") => word((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits()),
        (Do::Add, "f64") => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        (Do::Add, "noftz.f16x2") => word(pairs(old as u32, b as u32, from_f16, f16_of)),
        (Do::Add, "noftz.bf16x2") => word(pairs(old as u32, b as u32, from_bf16, bf16_of)),
        (Do::Add, _) => old.wrapping_add(b),
        (Do::Min, "s32") => word((old as u32).cast_signed().min((b as u32).cast_signed()).cast_unsigned()),
        (Do::Max, "s32") => word((old as u32).cast_signed().max((b as u32).cast_signed()).cast_unsigned()),
        (Do::Min, "s64") => old.cast_signed().min(b.cast_signed()).cast_unsigned(),
        (Do::Max, "s64") => old.cast_signed().max(b.cast_signed()).cast_unsigned(),
        (Do::Min, _) => old.min(b),
        (Do::Max, _) => old.max(b),
        (Do::And, _) => old & b,
        (Do::Or, _) => old | b,
        (Do::Xor, _) => old ^ b,
        (Do::Exch, _) => b,
        (Do::Cas, _) => {
            if old == b {
                c
            } else {
                old
            }
        }
        (Do::Inc, _) => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        (Do::Dec, _) => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

fn operand(w: &mut Warp, slot: u32, lane: usize, long: bool) -> u64 {
    if slot == NONE {
        0
    } else if long {
        w.get::<u64>(slot)[lane]
    } else {
        u64::from(w.get::<u32>(slot)[lane])
    }
}

/// What one lane asks for.
struct Ask {
    x: u32,
    address: u64,
    long: bool,
    b: u64,
    c: u64,
}

impl Ask {
    fn bytes(&self) -> usize {
        if self.long { 8 } else { 4 }
    }

    fn apply(&self, old: u64) -> u64 {
        apply(self.x, old, self.b, self.c)
    }
}

fn global_lane(b: &mut Block<'_>, ask: &Ask) -> Result<u64, String> {
    let bytes = ask.bytes() as u64;
    if ask.address & (bytes - 1) != 0 {
        return Err(misaligned(ask.address, ask.bytes()));
    }
    let (at, idx) = locate(b, ask.address, bytes)?;
    let a = &b.launch.allocs[idx];
    if !a.writable {
        return Err("write to constant memory".to_owned());
    }
    touch(b, a, ask.address - a.base, bytes, Kind::Atomic)?;
    // SAFETY: the place is within a live allocation and aligned.
    Ok(unsafe {
        if ask.long {
            let cell = AtomicU64::from_ptr(at.cast());
            cell.fetch_update(SeqCst, SeqCst, |old| Some(ask.apply(old))).unwrap_or_default()
        } else {
            let cell = AtomicU32::from_ptr(at.cast());
            let old = cell.fetch_update(SeqCst, SeqCst, |old| Some(ask.apply(old.into()) as u32));
            u64::from(old.unwrap_or_default())
        }
    })
}

fn shared_lane(w: &Warp, b: &mut Block<'_>, lane: usize, ask: &Ask) -> Result<u64, String> {
    let bytes = ask.bytes();
    let at = in_shared(b, ask.address, bytes)?;
    let who = w.who(b, lane);
    b.shared.written_before(at, bytes)?;
    b.shared.before_write(at, bytes, who, false, true)?;
    let mut old = [0; 8];
    old[..bytes].copy_from_slice(&b.shared.bytes[at..at + bytes]);
    let old = u64::from_le_bytes(old);
    b.shared.bytes[at..at + bytes].copy_from_slice(&ask.apply(old).to_le_bytes()[..bytes]);
    Ok(old)
}

fn run(w: &mut Warp, b: &mut Block<'_>, i: &Instr, space: Where, at: &[u64; LANES]) {
    let long = is_long(TYPES[(i.x >> 8 & 0xff) as usize]);
    let (mut words, mut longs) = ([0u32; LANES], [0u64; LANES]);
    for k in lanes(w.mask) {
        let (v, c) = (operand(w, i.s[1], k, long), operand(w, i.s[2], k, long));
        let ask = Ask { x: i.x, address: at[k], long, b: v, c };
        let old = match space {
            Where::Global => global_lane(b, &ask),
            Where::Shared => shared_lane(w, b, k, &ask),
            Where::Local | Where::Param => Err("an atomic operation on this memory space".to_owned()),
        };
        match old {
            Ok(old) => (words[k], longs[k]) = (old as u32, old),
            Err(what) => return w.fail(k, what),
        }
    }
    if i.d != NONE {
        if long {
            w.put(i.d, &longs);
        } else {
            w.put(i.d, &words);
        }
    }
}

/// `atom{.sem}{.scope}{.space}.op.type`; the same with `red`. Flags of the address are bits 16 and up of `x`, since the low ones
/// say the operation.
pub(crate) const SHORT_ADDRESS: u32 = 1 << 16;

fn with_space(w: &mut Warp, b: &mut Block<'_>, i: &Instr, space: Option<Where>) {
    let mut at = addresses(w, i.s[0], i.offset, i.x & SHORT_ADDRESS != 0);
    if let Some(space) = space.or_else(|| generic(w, &mut at)) {
        run(w, b, i, space, &at);
    }
}

pub(crate) fn fill(t: &mut Table) {
    let spaces: [(&str, super::Op); 3] = [
        ("", |w, b, i| with_space(w, b, i, None)),
        (".global", |w, b, i| with_space(w, b, i, Some(Where::Global))),
        (".shared", |w, b, i| with_space(w, b, i, Some(Where::Shared))),
    ];
    for (n, (name, what)) in (0u32..).zip(OPS) {
        for ty in types(what) {
            let Some(code) = (0u32..).zip(TYPES).find_map(|(k, known)| (known == *ty).then_some(k)) else { continue };
            for (space, op) in spaces {
                for sem in ["", ".relaxed", ".acquire", ".release", ".acq_rel"] {
                    for scope in ["", ".cta", ".gpu", ".sys"] {
                        for root in ["atom", "red"] {
                            let spaced = if space == ".shared" { vec![".shared", ".shared::cta"] } else { vec![space] };
                            for space in spaced {
                                t.with_flow(
                                    format!("{root}{sem}{scope}{space}.{name}.{ty}"),
                                    "A",
                                    n | code << 8,
                                    Flow::Mem,
                                    op,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
