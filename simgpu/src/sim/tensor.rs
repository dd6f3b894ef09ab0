//! `mma.sync`, `ldmatrix`, `stmatrix` and `movmatrix`: a warp's fragments are gathered into matrices, worked on, and dealt out again.
//!
//! Products are summed in f32 (or s32) in the order of k; the hardware's order and rounding are its own.

use super::convert::from_f8;
use super::half::{f16_of, from_bf16, from_f16};
use super::memory::{in_shared, lanes, of};
use super::tables::both;
use super::{Block, Flow, Instr, LANES, Warp};

/// Element types of the factors, in `x`.
const F16: u32 = 0;
const BF16: u32 = 1;
const TF32: u32 = 2;
const E4M3: u32 = 3;
const E5M2: u32 = 4;

#[inline(always)]
fn element(kind: u32, word: u32, k: usize) -> f32 {
    match kind {
        F16 => from_f16(word >> (16 * k) & 0xffff),
        BF16 => from_bf16(word >> (16 * k) & 0xffff),
        TF32 => f32::from_bits(word & !0x1fff),
        E4M3 => from_f8(false, word >> (8 * k) & 0xff),
        _ => from_f8(true, word >> (8 * k) & 0xff),
    }
}

fn whole_warp(w: &mut Warp) -> bool {
    if w.mask != !0 {
        let lane = w.mask.trailing_zeros() as usize;
        w.fail(lane, format!("a warp-wide matrix instruction with lanes missing (active lanes {:08x})", w.mask));
    }
    w.mask == !0
}

/// `list` holds the registers d, a, b, c; K is the depth, PER the elements in a word.
#[inline(always)]
fn mma<const K: usize, const PER: usize, const KIND: u32, const HALVES: bool>(w: &mut Warp, i: &Instr) {
    if !whole_warp(w) {
        return;
    }
    let n_a = 2 * K / (4 * PER);
    let n_b = K / (4 * PER);
    let n_c = if HALVES { 2 } else { 4 };
    let (d, rest) = i.list.split_at(n_c);
    let (a, rest) = rest.split_at(n_a);
    let (b, c) = rest.split_at(n_b);
    let mut left = [[0f32; 32]; 16];
    let mut right = [[0f32; 8]; 32];
    for (r, &slot) in a.iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            for k in 0..PER {
                left[lane / 4 + 8 * (r & 1)][lane % 4 * PER + (r >> 1) * 4 * PER + k] = element(KIND, words[lane], k);
            }
        }
    }
    for (r, &slot) in b.iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            for k in 0..PER {
                right[lane % 4 * PER + r * 4 * PER + k][lane / 4] = element(KIND, words[lane], k);
            }
        }
    }
    let mut sums = [[0f32; 8]; 16];
    for (r, &slot) in c.iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            if HALVES {
                for k in 0..2 {
                    sums[lane / 4 + 8 * r][lane % 4 * 2 + k] = from_f16(words[lane] >> (16 * k) & 0xffff);
                }
            } else {
                sums[lane / 4 + 8 * (r >> 1)][lane % 4 * 2 + (r & 1)] = f32::from_bits(words[lane]);
            }
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for k in 0..K {
            for n in 0..8 {
                // The product is exact: one rounding, and no fused instruction is needed.
                sums[n] += left[k] * right[k][n];
            }
        }
    }
    for (r, &slot) in d.iter().enumerate() {
        let mut out = [0u32; LANES];
        for lane in 0..LANES {
            out[lane] = if HALVES {
                let row = &sums[lane / 4 + 8 * r];
                f16_of(row[lane % 4 * 2 + 1]) << 16 | f16_of(row[lane % 4 * 2]) & 0xffff
            } else {
                sums[lane / 4 + 8 * (r >> 1)][lane % 4 * 2 + (r & 1)].to_bits()
            };
        }
        w.put(slot, &out);
    }
}

/// Eight-bit integers, summed in s32; `x` bit 0: a is signed, bit 1: b is.
fn mma_integers(w: &mut Warp, i: &Instr) {
    if !whole_warp(w) {
        return;
    }
    let byte = |word: u32, k: usize, signed: bool| {
        let byte = word.to_le_bytes()[k];
        if signed { i32::from(byte.cast_signed()) } else { i32::from(byte) }
    };
    let (mut left, mut right, mut sums) = ([[0i32; 32]; 16], [[0i32; 8]; 32], [[0i32; 8]; 16]);
    for (r, &slot) in i.list[4..8].iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            for k in 0..4 {
                left[lane / 4 + 8 * (r & 1)][lane % 4 * 4 + (r >> 1) * 16 + k] = byte(words[lane], k, i.x & 1 != 0);
            }
        }
    }
    for (r, &slot) in i.list[8..10].iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            for k in 0..4 {
                right[lane % 4 * 4 + r * 16 + k][lane / 4] = byte(words[lane], k, i.x & 2 != 0);
            }
        }
    }
    for (r, &slot) in i.list[10..14].iter().enumerate() {
        let words = w.get::<u32>(slot);
        for lane in 0..LANES {
            sums[lane / 4 + 8 * (r >> 1)][lane % 4 * 2 + (r & 1)] = words[lane].cast_signed();
        }
    }
    for (sums, left) in sums.iter_mut().zip(&left) {
        for k in 0..32 {
            for n in 0..8 {
                sums[n] = sums[n].wrapping_add(left[k] * right[k][n]);
            }
        }
    }
    for (r, &slot) in i.list[..4].iter().enumerate() {
        let mut out = [0u32; LANES];
        for lane in 0..LANES {
            out[lane] = sums[lane / 4 + 8 * (r >> 1)][lane % 4 * 2 + (r & 1)].cast_unsigned();
        }
        w.put(slot, &out);
    }
}

/// An 8 by 8 matrix of 16-bit elements, from the rows that eight lanes point to.
type Matrix = [[u16; 8]; 8];

fn transposed(m: &Matrix) -> Matrix {
    let mut out = [[0; 8]; 8];
    for (r, row) in m.iter().enumerate() {
        for (c, &x) in row.iter().enumerate() {
            out[c][r] = x;
        }
    }
    out
}

fn deal(m: &Matrix) -> [u32; LANES] {
    std::array::from_fn(|lane| u32::from(m[lane / 4][lane % 4 * 2 + 1]) << 16 | u32::from(m[lane / 4][lane % 4 * 2]))
}

fn gather(words: &[u32; LANES]) -> Matrix {
    let mut m = [[0; 8]; 8];
    for (lane, &word) in words.iter().enumerate() {
        m[lane / 4][lane % 4 * 2] = word as u16;
        m[lane / 4][lane % 4 * 2 + 1] = (word >> 16) as u16;
    }
    m
}

/// `offset` bytes past `s[0]`; `x` as for loads, with bit 8: transposed, bit 9: the address is generic.
const TRANSPOSED: u32 = 1 << 8;

fn ldmatrix(w: &mut Warp, b: &mut Block<'_>, i: &Instr) {
    if !whole_warp(w) {
        return;
    }
    let at = of(w, i);
    for (n, &slot) in i.list.iter().enumerate() {
        let mut m = [[0; 8]; 8];
        for (r, row) in m.iter_mut().enumerate() {
            let lane = 8 * n + r;
            let who = w.who(b, lane);
            match in_shared(b, at[lane], 16).and_then(|at| b.shared.before_read(at, 16, who).map(|()| at)) {
                Ok(at) => {
                    for (c, x) in row.iter_mut().enumerate() {
                        *x = u16::from_le_bytes([b.shared.bytes[at + 2 * c], b.shared.bytes[at + 2 * c + 1]]);
                    }
                }
                Err(what) => return w.fail(lane, what),
            }
        }
        let m = if i.x & TRANSPOSED != 0 { transposed(&m) } else { m };
        w.put(slot, &deal(&m));
    }
}

fn stmatrix(w: &mut Warp, b: &mut Block<'_>, i: &Instr) {
    if !whole_warp(w) {
        return;
    }
    let at = of(w, i);
    for (n, &slot) in i.list.iter().enumerate() {
        let m = gather(w.get::<u32>(slot));
        let m = if i.x & TRANSPOSED != 0 { transposed(&m) } else { m };
        for (r, row) in m.iter().enumerate() {
            let lane = 8 * n + r;
            let who = w.who(b, lane);
            match in_shared(b, at[lane], 16)
                .and_then(|at| b.shared.before_write(at, 16, who, false, false).map(|()| at))
            {
                Ok(at) => {
                    for (c, x) in row.iter().enumerate() {
                        b.shared.bytes[at + 2 * c..at + 2 * c + 2].copy_from_slice(&x.to_le_bytes());
                    }
                }
                Err(what) => return w.fail(lane, what),
            }
        }
    }
}

fn movmatrix(w: &mut Warp, i: &Instr) {
    if whole_warp(w) {
        let m = transposed(&gather(w.get::<u32>(i.s[0])));
        w.put(i.d, &deal(&m));
        debug_assert!(lanes(w.mask).count() == LANES);
    }
}

mod fill {
    use super::*;
    both!(fast, base, |t| {
        // The shape says how many registers d, a, b and c have.
        macro_rules! products {
            ($(($name:literal, $shape:literal, $k:literal, $per:literal, $kind:expr, $halves:literal)),* $(,)?) => { $(
                t.with_flow(concat!("mma.sync.aligned.", $name), $shape, 0, Flow::Together, |w, _, i| mma::<$k, $per, { $kind }, $halves>(w, i));
            )* };
        }
        products!(
            ("m16n8k16.row.col.f32.bf16.bf16.f32", "M4424", 16, 2, BF16, false),
            ("m16n8k16.row.col.f32.f16.f16.f32", "M4424", 16, 2, F16, false),
            ("m16n8k16.row.col.f16.f16.f16.f16", "M2422", 16, 2, F16, true),
            ("m16n8k8.row.col.f32.bf16.bf16.f32", "M4214", 8, 2, BF16, false),
            ("m16n8k8.row.col.f32.f16.f16.f32", "M4214", 8, 2, F16, false),
            ("m16n8k8.row.col.f16.f16.f16.f16", "M2212", 8, 2, F16, true),
            ("m16n8k8.row.col.f32.tf32.tf32.f32", "M4424", 8, 1, TF32, false),
            ("m16n8k4.row.col.f32.tf32.tf32.f32", "M4214", 4, 1, TF32, false),
            ("m16n8k32.row.col.f32.e4m3.e4m3.f32", "M4424", 32, 4, E4M3, false),
            ("m16n8k32.row.col.f32.e5m2.e5m2.f32", "M4424", 32, 4, E5M2, false),
        );
        for (a, sa) in [("s8", 1), ("u8", 0)] {
            for (b, sb) in [("s8", 2), ("u8", 0)] {
                t.with_flow(
                    format!("mma.sync.aligned.m16n8k32.row.col.s32.{a}.{b}.s32"),
                    "M4424",
                    sa | sb,
                    Flow::Together,
                    |w, _, i| mma_integers(w, i),
                );
            }
        }
        for (count, shape) in [("x1", "L1"), ("x2", "L2"), ("x4", "L4")] {
            for (trans, x) in [("", 0), (".trans", TRANSPOSED)] {
                for shared in ["shared", "shared::cta"] {
                    t.with_flow(
                        format!("ldmatrix.sync.aligned.m8n8.{count}{trans}.{shared}.b16"),
                        shape,
                        x,
                        Flow::Together,
                        ldmatrix,
                    );
                    let shape = match shape {
                        "L1" => "T1",
                        "L2" => "T2",
                        _ => "T4",
                    };
                    t.with_flow(
                        format!("stmatrix.sync.aligned.m8n8.{count}{trans}.{shared}.b16"),
                        shape,
                        x,
                        Flow::Together,
                        stmatrix,
                    );
                }
            }
        }
        t.with_flow("movmatrix.sync.aligned.m8n8.trans.b16", "rr", 0, Flow::Together, |w, _, i| movmatrix(w, i));
    });
}
pub(crate) use fill::base;
#[cfg(target_arch = "x86_64")]
pub(crate) use fill::fast;
