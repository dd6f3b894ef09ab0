//! `mma.sync` of every type on random matrices, the fragments laid out by hand as the PTX manual draws them.

use super::{Rig, config};
use cudarc::driver::PushKernelArg;

/// How a type of factor is written.
struct Kind {
    op: &'static str,
    depth: usize,
    /// Registers of a, b and of c, d.
    registers: (usize, usize, usize),
    /// Bits of an element of the factors.
    bits: usize,
    /// The bits of a small whole number.
    write: fn(i32) -> u32,
    /// Sums: f32, pairs of f16, or s32.
    sums: Sums,
}

#[derive(PartialEq)]
enum Sums {
    F32,
    F16,
    S32,
}

fn f32_bits(x: i32) -> u32 {
    (x as f32).to_bits()
}

fn bf16_bits(x: i32) -> u32 {
    f32_bits(x) >> 16
}

fn f16_bits(x: i32) -> u32 {
    let bits = f32_bits(x);
    if x == 0 { 0 } else { bits >> 16 & 0x8000 | ((bits >> 13 & 0x3_ffff) - (112 << 10)) }
}

/// e4m3: the exponent has bias 7 and three bits follow it.
fn e4m3_bits(x: i32) -> u32 {
    let bits = f32_bits(x);
    if x == 0 { 0 } else { bits >> 24 & 0x80 | ((bits >> 20 & 0x7ff) - (120 << 3)) }
}

fn e5m2_bits(x: i32) -> u32 {
    f16_bits(x) >> 8
}

fn s8_bits(x: i32) -> u32 {
    x as u32 & 0xff
}

const KINDS: &[Kind] = &[
    Kind {
        op: "m16n8k16.row.col.f32.bf16.bf16.f32",
        depth: 16,
        registers: (4, 2, 4),
        bits: 16,
        write: bf16_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k16.row.col.f32.f16.f16.f32",
        depth: 16,
        registers: (4, 2, 4),
        bits: 16,
        write: f16_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k16.row.col.f16.f16.f16.f16",
        depth: 16,
        registers: (4, 2, 2),
        bits: 16,
        write: f16_bits,
        sums: Sums::F16,
    },
    Kind {
        op: "m16n8k8.row.col.f32.bf16.bf16.f32",
        depth: 8,
        registers: (2, 1, 4),
        bits: 16,
        write: bf16_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k8.row.col.f32.tf32.tf32.f32",
        depth: 8,
        registers: (4, 2, 4),
        bits: 32,
        write: f32_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k4.row.col.f32.tf32.tf32.f32",
        depth: 4,
        registers: (2, 1, 4),
        bits: 32,
        write: f32_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k32.row.col.f32.e4m3.e4m3.f32",
        depth: 32,
        registers: (4, 2, 4),
        bits: 8,
        write: e4m3_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k32.row.col.f32.e5m2.e5m2.f32",
        depth: 32,
        registers: (4, 2, 4),
        bits: 8,
        write: e5m2_bits,
        sums: Sums::F32,
    },
    Kind {
        op: "m16n8k32.row.col.s32.s8.s8.s32",
        depth: 32,
        registers: (4, 2, 4),
        bits: 8,
        write: s8_bits,
        sums: Sums::S32,
    },
];

/// Row and column of element `e` of a lane's fragment of a, as the manual's tables say for 32, 16 and 8 bits.
fn place_a(bits: usize, lane: usize, e: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match bits {
        // a0 and a2: row groupID; a1 and a3: groupID + 8; the last two are four columns on.
        32 => (if e & 1 == 0 { group } else { group + 8 }, if e < 2 { thread } else { thread + 4 }),
        // a0, a1, a4, a5: row groupID; a4 and up are eight columns on.
        16 => (
            if matches!(e, 0 | 1 | 4 | 5) { group } else { group + 8 },
            thread * 2 + (e & 1) + if e >= 4 { 8 } else { 0 },
        ),
        // a0 to a3 and a8 to a11: row groupID; a8 and up are sixteen columns on.
        _ => (
            if e < 4 || (8..12).contains(&e) { group } else { group + 8 },
            thread * 4 + (e & 3) + if e >= 8 { 16 } else { 0 },
        ),
    }
}

fn place_b(bits: usize, lane: usize, e: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = match bits {
        32 => thread + 4 * e,
        16 => thread * 2 + (e & 1) + if e >= 2 { 8 } else { 0 },
        _ => thread * 4 + (e & 3) + if e >= 4 { 16 } else { 0 },
    };
    (row, group)
}

#[test]
fn every_type_of_factor() {
    for kind in KINDS {
        let (na, nb, nc) = kind.registers;
        let names = |letter: &str, n: usize| (0..n).map(|k| format!("%{letter}{k}")).collect::<Vec<_>>().join(", ");
        let mut body = String::new();
        let mut at = 0;
        for (letter, n) in [("a", na), ("b", nb), ("c", nc)] {
            for k in 0..n {
                body += &format!("ld.global.b32 %{letter}{k}, [%q0+{}];\n", 4 * at);
                at += 1;
            }
        }
        body += &format!(
            "mma.sync.aligned.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};\n",
            kind.op,
            names("d", nc),
            names("a", na),
            names("b", nb),
            names("c", nc)
        );
        for k in 0..nc {
            body += &format!("st.global.b32 [%q0+{}], %d{k};\n", 4 * (at + k));
        }
        let stride = at + nc;
        let text = format!(
            ".version 8.4\n.target sm_89\n.address_size 64\n.visible .entry t(.param .u64 x) {{\n.reg .b32 %a<4>; .reg .b32 %b<2>;\n\
             .reg .b32 %c<4>; .reg .b32 %d<4>; .reg .b32 %r<2>; .reg .b64 %q<2>;\nld.param.u64 %q0, [x]; mov.u32 %r0, %tid.x;\n\
             mad.wide.u32 %q0, %r0, {}, %q0;\n{body}ret;\n}}\n",
            4 * stride
        );
        // Small whole numbers: every sum is exact.
        let number = |k: usize| (k * 7 + k / 5) as i32 % 5 - 2;
        let a = |r: usize, c: usize| number(r * 37 + c * 11);
        let b = |r: usize, c: usize| number(r * 13 + c * 29 + 3);
        let per = 32 / kind.bits;
        let mut data = vec![0u32; 32 * stride];
        for lane in 0..32 {
            let words = &mut data[lane * stride..(lane + 1) * stride];
            for e in 0..na * per {
                let (r, c) = place_a(kind.bits, lane, e);
                words[e / per] |= (kind.write)(a(r, c)) << (kind.bits * (e % per));
            }
            for e in 0..nb * per {
                let (r, c) = place_b(kind.bits, lane, e);
                words[na + e / per] |= (kind.write)(b(r, c)) << (kind.bits * (e % per));
            }
            for e in 0..4 {
                let c0 = lane as i32 % 3 + e as i32;
                match kind.sums {
                    Sums::F32 => words[na + nb + e] = f32_bits(c0),
                    Sums::S32 => words[na + nb + e] = c0 as u32,
                    Sums::F16 => words[na + nb + e / 2] |= f16_bits(c0) << (16 * (e % 2)),
                }
            }
        }
        let rig = Rig::new(&text);
        let mut device = rig.stream.clone_htod(&data).unwrap();
        let f = rig.f("t");
        let mut call = rig.stream.launch_builder(&f);
        call.arg(&mut device);
        rig.go(&mut call, config(1, 32, 0));
        let got = rig.stream.clone_dtoh(&device).unwrap();
        for lane in 0..32 {
            for e in 0..4 {
                let (row, column) = (lane / 4 + if e >= 2 { 8 } else { 0 }, lane % 4 * 2 + (e & 1));
                let sum: i32 = (0..kind.depth).map(|k| a(row, k) * b(k, column)).sum();
                let want = sum + lane as i32 % 3 + e as i32;
                let word = |k: usize| got[lane * stride + na + nb + nc + k];
                let (found, wanted) = match kind.sums {
                    Sums::F32 => (word(e), f32_bits(want)),
                    Sums::S32 => (word(e), want as u32),
                    Sums::F16 => (word(e / 2) >> (16 * (e % 2)) & 0xffff, f16_bits(want)),
                };
                assert_eq!(found, wanted, "{}: row {row}, column {column}", kind.op);
            }
        }
    }
}
