//! Opcodes one by one, on values worked out from the PTX manual. A row is an instruction, the classes of its operands, and cases of
//! operands and result: lane n of a warp does case n.

use super::{Rig, config};
use cudarc::driver::PushKernelArg;
use std::fmt::Write;

type Case = (&'static [u64], u64);

struct Row {
    op: &'static str,
    /// The result first: `h` 16 bits, `r` 32, `q` 64, `p` a predicate.
    classes: &'static str,
    /// What follows the operands.
    tail: &'static str,
    cases: &'static [Case],
}

const fn row(op: &'static str, classes: &'static str, cases: &'static [Case]) -> Row {
    Row { op, classes, tail: "", cases }
}

const fn f(x: f32) -> u64 {
    x.to_bits() as u64
}

const fn d(x: f64) -> u64 {
    x.to_bits()
}

const NAN: u64 = 0x7fff_ffff;
const M1: u64 = 0xffff_ffff;
/// The smallest and a larger subnormal.
const TINY: u64 = 1;
const SMALL: u64 = 0x0040_0000;

const ROWS: &[Row] = &[
    // Integers.
    row("add.s32", "rrr", &[(&[1, 2], 3), (&[M1, 1], 0), (&[0x7fff_ffff, 1], 0x8000_0000)]),
    row("add.sat.s32", "rrr", &[(&[0x7fff_ffff, 1], 0x7fff_ffff), (&[0x8000_0000, M1], 0x8000_0000)]),
    row("add.s16", "hhh", &[(&[0xffff, 2], 1)]),
    row("add.s64", "qqq", &[(&[u64::MAX, 2], 1)]),
    row("sub.u32", "rrr", &[(&[1, 2], M1)]),
    row("sub.s64", "qqq", &[(&[1, 2], u64::MAX)]),
    row("mul.lo.s32", "rrr", &[(&[M1, 5], 0xffff_fffb), (&[0x1_0001, 0x1_0001], 0x0002_0001)]),
    row("mul.hi.u32", "rrr", &[(&[M1, M1], 0xffff_fffe)]),
    row("mul.hi.s32", "rrr", &[(&[M1, M1], 0), (&[0x8000_0000, 2], M1)]),
    row("mul.wide.u32", "qrr", &[(&[M1, M1], 0xffff_fffe_0000_0001)]),
    row("mul.wide.s32", "qrr", &[(&[M1, 2], 0xffff_ffff_ffff_fffe)]),
    row("mul.wide.s16", "rhh", &[(&[0xffff, 2], 0xffff_fffe)]),
    row("mul.wide.u16", "rhh", &[(&[0xffff, 2], 0x1_fffe)]),
    row("mul.lo.s64", "qqq", &[(&[u64::MAX, 7], 0xffff_ffff_ffff_fff9)]),
    row("mul.hi.u64", "qqq", &[(&[u64::MAX, u64::MAX], u64::MAX - 1)]),
    row("mul.hi.s64", "qqq", &[(&[u64::MAX, u64::MAX], 0)]),
    row("mad.lo.s32", "rrrr", &[(&[3, 4, M1], 11)]),
    row("mad.hi.u32", "rrrr", &[(&[M1, M1, 3], 1)]),
    row("mad.wide.s32", "qrrq", &[(&[M1, 4, 10], 6)]),
    row("div.s32", "rrr", &[(&[0xffff_fff9, 2], 0xffff_fffd), (&[7, 2], 3)]),
    row("rem.s32", "rrr", &[(&[0xffff_fff9, 2], M1), (&[7, 4], 3)]),
    row("div.u64", "qqq", &[(&[u64::MAX, 10], u64::MAX / 10)]),
    row("rem.s64", "qqq", &[(&[u64::MAX - 6, 4], u64::MAX - 2)]),
    row("abs.s32", "rr", &[(&[M1], 1), (&[5], 5)]),
    row("neg.s32", "rr", &[(&[5], 0xffff_fffb)]),
    row("min.s32", "rrr", &[(&[M1, 1], M1)]),
    row("min.u32", "rrr", &[(&[M1, 1], 1)]),
    row("max.s64", "qqq", &[(&[u64::MAX, 1], 1)]),
    row("max.u16", "hhh", &[(&[0xffff, 1], 0xffff)]),
    row("sad.u32", "rrrr", &[(&[3, 10, 100], 107)]),
    row("popc.b32", "rr", &[(&[0xff00_ff01], 17)]),
    row("popc.b64", "rq", &[(&[u64::MAX], 64)]),
    row("clz.b32", "rr", &[(&[1], 31), (&[0], 32)]),
    row("clz.b64", "rq", &[(&[1], 63)]),
    row("brev.b32", "rr", &[(&[1], 0x8000_0000)]),
    row("bfind.u32", "rr", &[(&[0x10], 4), (&[0], M1)]),
    row("bfind.s32", "rr", &[(&[0xffff_fffe], 0), (&[M1], M1)]),
    row("not.b32", "rr", &[(&[0], M1)]),
    row("not.b64", "qq", &[(&[0], u64::MAX)]),
    row("shl.b32", "rrr", &[(&[1, 31], 0x8000_0000), (&[1, 32], 0), (&[3, 100], 0)]),
    row("shr.u32", "rrr", &[(&[0x8000_0000, 31], 1), (&[M1, 32], 0)]),
    row("shr.s32", "rrr", &[(&[0x8000_0000, 31], M1), (&[0x8000_0000, 99], M1), (&[0x4000_0000, 99], 0)]),
    row("shr.s64", "qqr", &[(&[1 << 63, 70], u64::MAX)]),
    row("shl.b64", "qqr", &[(&[1, 40], 1 << 40), (&[1, 64], 0)]),
    row("shf.l.wrap.b32", "rrrr", &[(&[0x8000_0000, 1, 1], 3), (&[5, 9, 32], 9)]),
    row("shf.l.clamp.b32", "rrrr", &[(&[5, 9, 40], 5)]),
    row("shf.r.wrap.b32", "rrrr", &[(&[2, 1, 1], 0x8000_0001)]),
    row("shf.r.clamp.b32", "rrrr", &[(&[5, 9, 40], 9)]),
    row("prmt.b32", "rrrr", &[(&[0x3322_1100, 0x7766_5544, 0x7531], 0x7755_3311), (&[0x80, 0, 0x8880], 0xffff_ff80)]),
    row("bfe.u32", "rrrr", &[(&[0xabcd_1234, 8, 8], 0x12), (&[M1, 4, 0], 0), (&[M1, 30, 8], 3)]),
    row("bfe.s32", "rrrr", &[(&[0x8000, 8, 8], 0xffff_ff80), (&[0x8000_0000, 28, 8], 0xffff_fff8)]),
    row("bfe.u64", "qqrr", &[(&[0xab_0000_0000, 32, 8], 0xab)]),
    row("bfi.b32", "rrrrr", &[(&[0xff, 0, 8, 4], 0xf00), (&[0, M1, 4, 8], 0xffff_f00f)]),
    row("bfi.b64", "qqqrr", &[(&[0xabc, 0, 32, 12], 0xabc_0000_0000)]),
    row("dp4a.s32.s32", "rrrr", &[(&[0xff01_ff01, 0x0202_0202, 10], 10)]),
    row("dp4a.u32.u32", "rrrr", &[(&[0xff01_ff01, 0x0202_0202, 0], 1024)]),
    Row { op: "lop3.b32", classes: "rrrr", tail: ", 0xe8", cases: &[(&[0b1100, 0b1010, 0b1001], 0b1000)] },
    Row {
        op: "lop3.b32",
        classes: "rrrr",
        tail: ", 0x96",
        cases: &[(&[0xff00, 0xf0f0, 0xcccc], 0xff00 ^ 0xf0f0 ^ 0xcccc)],
    },
    // Comparisons.
    row("setp.lt.s32", "prr", &[(&[M1, 1], 1), (&[1, 1], 0)]),
    row("setp.lt.u32", "prr", &[(&[M1, 1], 0), (&[1, 2], 1)]),
    row("setp.hi.u32", "prr", &[(&[M1, 1], 1)]),
    row("setp.ge.s64", "pqq", &[(&[u64::MAX, 0], 0)]),
    row("setp.eq.s16", "phh", &[(&[0xffff, 0xffff], 1)]),
    row("setp.eq.f32", "prr", &[(&[f(0.0), f(-0.0)], 1), (&[NAN, NAN], 0)]),
    row("setp.ne.f32", "prr", &[(&[f(1.0), f(2.0)], 1), (&[NAN, f(1.0)], 0)]),
    row("setp.neu.f32", "prr", &[(&[NAN, f(1.0)], 1), (&[f(1.0), f(1.0)], 0)]),
    row("setp.ltu.f32", "prr", &[(&[NAN, f(1.0)], 1), (&[f(2.0), f(1.0)], 0)]),
    row("setp.geu.f32", "prr", &[(&[f(1.0), NAN], 1), (&[f(0.5), f(1.0)], 0)]),
    row("setp.num.f32", "prr", &[(&[f(1.0), NAN], 0), (&[f(1.0), f(2.0)], 1)]),
    row("setp.nan.f32", "prr", &[(&[f(1.0), NAN], 1)]),
    row("setp.gt.ftz.f32", "prr", &[(&[SMALL, 0], 0)]),
    row("setp.gt.f32", "prr", &[(&[SMALL, 0], 1)]),
    row("setp.lt.f64", "pqq", &[(&[d(-1.0), d(1.0)], 1)]),
    row("testp.subnormal.f32", "pr", &[(&[TINY], 1), (&[f(1.0)], 0)]),
    row("testp.infinite.f32", "pr", &[(&[0x7f80_0000], 1)]),
    // f32.
    row("add.f32", "rrr", &[(&[f(1.5), f(2.0)], f(3.5)), (&[TINY, TINY], 2)]),
    row("add.ftz.f32", "rrr", &[(&[TINY, TINY], 0), (&[f(-1.0), 0x8000_0001], f(-1.0))]),
    row("add.sat.f32", "rrr", &[(&[f(0.75), f(0.5)], f(1.0)), (&[f(-1.0), f(0.5)], 0), (&[NAN, 0], 0)]),
    row("add.rz.f32", "rrr", &[(&[f(1.0), f(1e-10)], f(1.0)), (&[f(1.0), f(-1e-10)], 0x3f7f_ffff)]),
    row("add.rm.f32", "rrr", &[(&[f(1.0), f(-1e-10)], 0x3f7f_ffff), (&[f(1.0), f(-1.0)], 0x8000_0000)]),
    row("add.rp.f32", "rrr", &[(&[f(1.0), f(1e-10)], 0x3f80_0001)]),
    row("sub.f32", "rrr", &[(&[f(1.5), f(2.0)], f(-0.5))]),
    row("mul.f32", "rrr", &[(&[f(1.5), f(-2.0)], f(-3.0))]),
    row("mul.rp.f32", "rrr", &[(&[0x3f80_0001, 0x3f80_0001], 0x3f80_0003)]),
    row("mul.rz.f32", "rrr", &[(&[0x3f80_0001, 0x3f80_0001], 0x3f80_0002)]),
    row("mul.ftz.f32", "rrr", &[(&[SMALL, f(4.0)], 0)]),
    // One rounding only: (1 + 2^-12)^2 - 1 - 2^-11 is 2^-24.
    row("fma.rn.f32", "rrrr", &[(&[0x3f80_0800, 0x3f80_0800, f(-1.000_488_3)], 0x3380_0000)]),
    row(
        "fma.rm.f32",
        "rrrr",
        &[(&[f(1.0), f(1e-10), f(-1.0)], 0xbf80_0000), (&[f(-1.0), f(1e-10), f(1.0)], 0x3f7f_ffff)],
    ),
    row("fma.rz.f32", "rrrr", &[(&[f(1.0), f(-1e-10), f(1.0)], 0x3f7f_ffff)]),
    row("fma.rn.ftz.sat.f32", "rrrr", &[(&[f(2.0), f(2.0), f(0.0)], f(1.0))]),
    row("div.rn.f32", "rrr", &[(&[f(1.0), f(3.0)], f(1.0 / 3.0)), (&[f(1.0), 0], 0x7f80_0000)]),
    row("div.rz.f32", "rrr", &[(&[f(1.0), f(3.0)], 0x3eaa_aaaa)]),
    row("rcp.rn.f32", "rr", &[(&[f(4.0)], f(0.25))]),
    row("sqrt.rn.f32", "rr", &[(&[f(2.0)], 0x3fb5_04f3)]),
    row("sqrt.rp.f32", "rr", &[(&[f(2.0)], 0x3fb5_04f4)]),
    row("rsqrt.approx.f32", "rr", &[(&[f(4.0)], f(0.5))]),
    row(
        "ex2.approx.f32",
        "rr",
        &[(&[f(3.0)], f(8.0)), (&[f(-200.0)], 0), (&[0x7f80_0000], 0x7f80_0000), (&[f(-0.5)], 0x3f35_04f3)],
    ),
    row("ex2.approx.ftz.f32", "rr", &[(&[f(-130.0)], 0)]),
    row("lg2.approx.f32", "rr", &[(&[f(8.0)], f(3.0)), (&[0], 0xff80_0000)]),
    row("sin.approx.f32", "rr", &[(&[0], 0)]),
    row("cos.approx.f32", "rr", &[(&[0], f(1.0))]),
    row("abs.f32", "rr", &[(&[f(-2.0)], f(2.0))]),
    row("neg.ftz.f32", "rr", &[(&[SMALL], 0x8000_0000)]),
    row("min.f32", "rrr", &[(&[NAN, f(1.0)], f(1.0)), (&[f(0.0), f(-0.0)], f(-0.0))]),
    row("max.f32", "rrr", &[(&[f(2.0), NAN], f(2.0)), (&[f(-0.0), f(0.0)], 0), (&[NAN, NAN], NAN)]),
    row("max.NaN.f32", "rrr", &[(&[f(2.0), NAN], NAN)]),
    row("copysign.f32", "rrr", &[(&[f(-1.0), f(3.0)], f(-3.0))]),
    row("tanh.approx.f32", "rr", &[(&[0], 0)]),
    // f64.
    row("add.f64", "qqq", &[(&[d(1.5), d(2.25)], d(3.75))]),
    row("fma.rn.f64", "qqqq", &[(&[d(2.0), d(3.0), d(1.0)], d(7.0))]),
    row("div.rn.f64", "qqq", &[(&[d(1.0), d(3.0)], d(1.0 / 3.0))]),
    row("max.f64", "qqq", &[(&[d(f64::NAN), d(3.0)], d(3.0))]),
    // Conversions.
    row("cvt.s64.s32", "qr", &[(&[M1], u64::MAX)]),
    row("cvt.u64.u32", "qr", &[(&[M1], M1)]),
    row("cvt.u32.u64", "rq", &[(&[0x1_0000_0005], 5)]),
    row("cvt.s32.s16", "rh", &[(&[0xffff], M1)]),
    row("cvt.u32.u16", "rh", &[(&[0xffff], 0xffff)]),
    row("cvt.s32.s8", "rr", &[(&[0x1ff], M1)]),
    row("cvt.u16.u32", "hr", &[(&[0x1_2345], 0x2345)]),
    row("cvt.sat.u8.s32", "rr", &[(&[300], 255), (&[M1], 0)]),
    row("cvt.rn.f32.s32", "rr", &[(&[M1], f(-1.0)), (&[0x0100_0001], f(16_777_216.0))]),
    row("cvt.rp.f32.s32", "rr", &[(&[0x0100_0001], f(16_777_218.0))]),
    row("cvt.rn.f32.u32", "rr", &[(&[M1], f(4_294_967_296.0))]),
    row("cvt.rz.f32.u32", "rr", &[(&[M1], 0x4f7f_ffff)]),
    row("cvt.rn.f64.s64", "qq", &[(&[u64::MAX], d(-1.0))]),
    row("cvt.rzi.s32.f32", "rr", &[(&[f(-1.9)], M1), (&[f(3e9)], 0x7fff_ffff), (&[NAN], 0)]),
    row("cvt.rni.s32.f32", "rr", &[(&[f(2.5)], 2), (&[f(3.5)], 4)]),
    row("cvt.rmi.s32.f32", "rr", &[(&[f(-1.1)], 0xffff_fffe)]),
    row("cvt.rpi.u32.f32", "rr", &[(&[f(1.1)], 2), (&[f(-5.0)], 0)]),
    row("cvt.rzi.s64.f64", "qq", &[(&[d(-2.7)], u64::MAX - 1)]),
    row("cvt.rni.f32.f32", "rr", &[(&[f(0.5)], 0), (&[f(1.5)], f(2.0))]),
    row("cvt.rmi.f32.f32", "rr", &[(&[f(-0.5)], f(-1.0))]),
    row("cvt.sat.f32.f32", "rr", &[(&[f(1.5)], f(1.0)), (&[f(-1.0)], 0)]),
    row("cvt.f64.f32", "qr", &[(&[f(1.5)], d(1.5))]),
    row("cvt.rn.f32.f64", "rq", &[(&[d(0.1)], f(0.1))]),
    row(
        "cvt.rn.f16.f32",
        "hr",
        &[
            (&[f(1.0)], 0x3c00),
            (&[f(65_520.0)], 0x7c00),
            (&[f(65_519.0)], 0x7bff),
            (&[f(5.960_464_5e-8)], 1),
            (&[f(2.980_232_2e-8)], 0),
            (&[NAN], 0x7fff),
            (&[f(-2.0)], 0xc000),
        ],
    ),
    row("cvt.rz.f16.f32", "hr", &[(&[f(65_520.0)], 0x7bff), (&[f(1.000_9)], 0x3c00)]),
    row("cvt.f32.f16", "rh", &[(&[0x3c00], f(1.0)), (&[1], f(5.960_464_5e-8)), (&[0xfc00], 0xff80_0000)]),
    row("cvt.rn.bf16.f32", "hr", &[(&[0x3f80_8000], 0x3f80), (&[0x3f81_8000], 0x3f82), (&[0x3f80_8001], 0x3f81)]),
    row("cvt.rz.bf16.f32", "hr", &[(&[0x3f80_ffff], 0x3f80)]),
    row("cvt.f32.bf16", "rh", &[(&[0x3f80], f(1.0))]),
    row("cvt.rn.bf16x2.f32", "rrr", &[(&[f(1.0), f(2.0)], 0x3f80_4000)]),
    row("cvt.rn.relu.bf16x2.f32", "rrr", &[(&[f(-1.0), f(2.0)], 0x4000)]),
    row("cvt.rn.f16x2.f32", "rrr", &[(&[f(1.0), f(2.0)], 0x3c00_4000)]),
    row("cvt.rna.tf32.f32", "rr", &[(&[0x3f80_1000], 0x3f80_2000), (&[0x3f80_0fff], 0x3f80_0000)]),
    row("cvt.rn.satfinite.e4m3x2.f32", "hrr", &[(&[f(1.0), f(500.0)], 0x387e), (&[f(-0.001_953_125), f(0.0)], 0x8100)]),
    row("cvt.rn.satfinite.e5m2x2.f32", "hrr", &[(&[f(1.0), f(1e6)], 0x3c7b)]),
    row("cvt.rn.f16x2.e4m3x2", "rh", &[(&[0x3840], 0x3c00_4000)]),
    // Halves.
    row("add.f16", "hhh", &[(&[0x3c00, 0x3c00], 0x4000)]),
    row("add.f16x2", "rrr", &[(&[0x3c00_4000, 0x3c00_3c00], 0x4000_4200)]),
    row("mul.bf16x2", "rrr", &[(&[0x3fc0_4000, 0x4000_3f80], 0x4040_4000)]),
    row("fma.rn.bf16x2", "rrrr", &[(&[0x3f80_4000, 0x4000_4000, 0x3f80_3f80], 0x4040_40a0)]),
    row("fma.rn.relu.f16x2", "rrrr", &[(&[0xbc00_3c00, 0x3c00_3c00, 0], 0x0000_3c00)]),
    row("max.f16x2", "rrr", &[(&[0x7fff_3c00, 0x3c00_4000], 0x3c00_4000)]),
    row("min.bf16", "hhh", &[(&[0x3f80, 0xbf80], 0xbf80)]),
    row("setp.lt.f16", "phh", &[(&[0x3c00, 0x4000], 1), (&[0x7fff, 0x4000], 0)]),
    row("setp.geu.bf16", "phh", &[(&[0x7fff, 0x4000], 1), (&[0x3f80, 0x4000], 0)]),
    row("neg.bf16x2", "rr", &[(&[0x3f80_0000], 0xbf80_8000)]),
];

fn reg(class: u8, n: usize) -> String {
    match class {
        b'h' => format!("%h{n}"),
        b'q' => format!("%q{n}"),
        b'p' => format!("%p{n}"),
        _ => format!("%r{n}"),
    }
}

/// A kernel for a row: lane n reads operands at 48 n and writes its result behind them.
fn kernel(text: &mut String, n: usize, row: &Row) {
    let classes = row.classes.as_bytes();
    let _ = write!(
        text,
        ".visible .entry t{n}(.param .u64 x) {{\n.reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<9>; .reg .b64 %q<9>;\n\
         ld.param.u64 %q8, [x]; mov.u32 %r8, %tid.x; mul.wide.u32 %q7, %r8, 48; add.s64 %q8, %q8, %q7;\n"
    );
    for (k, &class) in classes[1..].iter().enumerate() {
        let bits = match class {
            b'h' => 16,
            b'q' => 64,
            _ => 32,
        };
        let _ = writeln!(text, "ld.global.b{bits} {}, [%q8+{}];", reg(class, k), 8 * k);
    }
    let sources: Vec<String> = classes[1..].iter().enumerate().map(|(k, &class)| reg(class, k)).collect();
    let _ = writeln!(text, "{} {}, {}{};", row.op, reg(classes[0], 6), sources.join(", "), row.tail);
    let _ = match classes[0] {
        b'h' => writeln!(text, "st.global.b16 [%q8+40], %h6;"),
        b'q' => writeln!(text, "st.global.b64 [%q8+40], %q6;"),
        b'p' => writeln!(text, "selp.u32 %r6, 1, 0, %p6; st.global.u32 [%q8+40], %r6;"),
        _ => writeln!(text, "st.global.b32 [%q8+40], %r6;"),
    };
    text.push_str("ret;\n}\n");
}

#[test]
fn by_the_manual() {
    let mut text = String::from(".version 8.0\n.target sm_90\n.address_size 64\n");
    for (n, row) in ROWS.iter().enumerate() {
        kernel(&mut text, n, row);
    }
    let rig = Rig::new(&text);
    let mut wrong = String::new();
    for (n, row) in ROWS.iter().enumerate() {
        // All 32 lanes, then only those that have a case: full warps and others take different ways.
        for lanes in [32, row.cases.len()] {
            let mut data = vec![0u64; 6 * 32];
            for lane in 0..lanes {
                let (operands, _) = row.cases[lane % row.cases.len()];
                data[6 * lane..6 * lane + operands.len()].copy_from_slice(operands);
            }
            let mut device = rig.stream.clone_htod(&data).unwrap();
            let f = rig.f(&format!("t{n}"));
            let mut call = rig.stream.launch_builder(&f);
            call.arg(&mut device);
            rig.go(&mut call, config(1, lanes as u32, 0));
            let got = rig.stream.clone_dtoh(&device).unwrap();
            for lane in 0..lanes {
                let (operands, want) = row.cases[lane % row.cases.len()];
                let got = got[6 * lane + 5];
                if got != want {
                    let _ = writeln!(wrong, "{} of {operands:x?}: {got:x}, not {want:x}", row.op);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A kernel of one warp with a body of its own: lane n has `%r0` from the array and leaves `%r1` there.
fn warp(body: &str, input: &[u32; 32]) -> Vec<u32> {
    let text = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry t(.param .u64 x) {{\n\
         .reg .pred %p<8>; .reg .b32 %r<9>; .reg .b64 %q<9>;\n\
         ld.param.u64 %q0, [x]; mov.u32 %r8, %laneid; mad.wide.u32 %q0, %r8, 4, %q0; ld.global.u32 %r0, [%q0];\n\
         {body}\nst.global.u32 [%q0], %r1; ret;\n}}\n"
    );
    let rig = Rig::new(&text);
    let mut device = rig.stream.clone_htod(input).unwrap();
    let f = rig.f("t");
    let mut call = rig.stream.launch_builder(&f);
    call.arg(&mut device);
    rig.go(&mut call, config(1, 32, 0));
    rig.stream.clone_dtoh(&device).unwrap()
}

fn numbers() -> [u32; 32] {
    std::array::from_fn(|k| 100 + k as u32)
}

#[test]
fn shuffles() {
    let x = numbers();
    let lane = |f: fn(usize) -> usize| (0..32).map(|k| x[f(k)]).collect::<Vec<_>>();
    assert_eq!(warp("shfl.sync.bfly.b32 %r1, %r0, 3, 31, -1;", &x), lane(|k| k ^ 3));
    assert_eq!(warp("shfl.sync.down.b32 %r1, %r0, 5, 31, -1;", &x), lane(|k| if k + 5 < 32 { k + 5 } else { k }));
    assert_eq!(
        warp("shfl.sync.up.b32 %r1, %r0, 5, 0, -1;", &x),
        lane(|k| k.saturating_sub(5).max(if k < 5 { k } else { 0 }))
    );
    assert_eq!(warp("shfl.sync.idx.b32 %r1, %r0, 7, 31, -1;", &x), lane(|_| 7));
    // Segments of eight: the mask is 24, the last lane 7.
    assert_eq!(warp("shfl.sync.idx.b32 %r1, %r0, 2, 0x181f, -1;", &x), lane(|k| k / 8 * 8 + 2));
    assert_eq!(warp("shfl.sync.up.b32 %r1, %r0, 1, 0x1800, -1;", &x), lane(|k| if k % 8 == 0 { k } else { k - 1 }));
    let in_range = warp("shfl.sync.down.b32 %r2|%p1, %r0, 5, 31, -1; selp.u32 %r1, 1, 0, %p1;", &x);
    assert_eq!(in_range, (0..32).map(|k| u32::from(k + 5 < 32)).collect::<Vec<_>>());
}

#[test]
fn votes_and_reductions() {
    let x = numbers();
    let odd = "and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1;";
    assert_eq!(warp(&format!("{odd} vote.sync.ballot.b32 %r1, %p1, -1;"), &x), [0xaaaa_aaaa; 32]);
    assert_eq!(warp(&format!("{odd} vote.sync.any.pred %p2, %p1, -1; selp.u32 %r1, 1, 0, %p2;"), &x), [1; 32]);
    assert_eq!(warp(&format!("{odd} vote.sync.all.pred %p2, %p1, -1; selp.u32 %r1, 1, 0, %p2;"), &x), [0; 32]);
    assert_eq!(warp("redux.sync.add.u32 %r1, %r0, -1;", &x), [x.iter().sum::<u32>(); 32]);
    assert_eq!(warp("redux.sync.max.s32 %r1, %r0, -1;", &x), [131; 32]);
    assert_eq!(warp("and.b32 %r0, %r0, 3; match.any.sync.b32 %r1, %r0, -1;", &x)[..2], [0x1111_1111, 0x2222_2222]);
}

#[test]
fn lanes_diverge_and_meet_again() {
    let x = numbers();
    // A loop that lane n goes round n times, then a vote for which all must be back.
    let body = "mov.u32 %r1, 0; mov.u32 %r3, %r8;\nL: setp.eq.u32 %p1, %r3, 0; @%p1 bra M; add.u32 %r1, %r1, 2; sub.u32 %r3, %r3, 1; bra L;\n\
                M: vote.sync.ballot.b32 %r4, 1, -1; popc.b32 %r4, %r4; add.u32 %r1, %r1, %r4;";
    assert_eq!(warp(body, &x), (0..32).map(|k| 2 * k + 32).collect::<Vec<_>>());
    // Half a warp votes among itself.
    let body = "mov.u32 %r1, 7; setp.lt.u32 %p1, %r8, 16; @!%p1 bra M; vote.sync.ballot.b32 %r1, 1, 0xffff;\nM: bar.warp.sync -1;";
    let want: Vec<u32> = (0..32).map(|k| if k < 16 { 0xffff } else { 7 }).collect();
    assert_eq!(warp(body, &x), want);
    // A jump by a table.
    let body = "T: .branchtargets A, B, C; rem.u32 %r2, %r8, 3; brx.idx %r2, T;\nA: mov.u32 %r1, 10; bra D;\nB: mov.u32 %r1, 20; bra D;\n\
                C: mov.u32 %r1, 30;\nD: vote.sync.ballot.b32 %r3, 1, -1; popc.b32 %r3, %r3; add.u32 %r1, %r1, %r3;";
    assert_eq!(warp(body, &x), (0..32).map(|k| 10 * (k % 3 + 1) + 32).collect::<Vec<_>>());
}

#[test]
fn carries() {
    let x = [u32::MAX; 32];
    let body = "add.cc.u32 %r2, %r0, 1; addc.u32 %r1, 5, 0;";
    assert_eq!(warp(body, &x), [6; 32]);
    let body = "mad.lo.cc.u32 %r2, %r0, %r0, %r0; madc.hi.u32 %r1, %r0, %r0, 0;";
    // (2^32 - 1)^2 + (2^32 - 1) = (2^32 - 1) 2^32.
    assert_eq!(warp(body, &x), [u32::MAX; 32]);
    let body = "sub.cc.u32 %r2, 0, 1; subc.u32 %r1, 5, 1;";
    assert_eq!(warp(body, &x), [3; 32]);
}

#[test]
fn packing_and_local_memory() {
    let x = [0x1234_abcd; 32];
    assert_eq!(warp(".reg .b16 a; .reg .b16 b; mov.b32 {a, b}, %r0; mov.b32 %r1, {b, a};", &x), [0xabcd_1234; 32]);
    assert_eq!(warp("mov.b64 %q1, {%r0, 7}; mov.b64 {_, %r1}, %q1;", &x), [7; 32]);
    let body = ".local .align 8 .b8 buf[16]; mov.u64 %q1, buf; cvta.local.u64 %q2, %q1; st.local.u32 [%q1+4], %r8; ld.u32 %r1, [%q2+4];";
    assert_eq!(warp(body, &x), (0..32).collect::<Vec<_>>());
    let body = ".shared .align 4 .b8 buf[128]; mov.u32 %r2, buf; mad.lo.u32 %r2, %r8, 4, %r2; st.shared.u32 [%r2], %r8; bar.warp.sync -1; \
                xor.b32 %r2, %r2, 4; ld.shared.u32 %r1, [%r2];";
    assert_eq!(warp(body, &x), (0..32).map(|k| k ^ 1).collect::<Vec<_>>());
}
