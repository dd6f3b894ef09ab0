//! f16 and bf16, alone and in pairs: each operation is done exactly or in a wider type and rounded once.

use super::alu::{JOINS, setp};
use super::float::{least, most};
use super::round::{FTZ, NAN, RELU, RM, ROUND, RP, RZ, SAT, two_sum};
use super::tables::Table;
use super::{Instr, Op, Warp, map1, map2, map3, test2};

/// The value of the low 16 bits as an f16.
#[inline(always)]
pub(crate) fn from_f16(x: u32) -> f32 {
    let (sign, rest) = ((x & 0x8000) << 16, x & 0x7fff);
    // Shifted into place and scaled by 2^112: exact, subnormals too; infinities and NaN get their exponent back.
    let scaled = (f32::from_bits(rest << 13) * f32::from_bits(0x7780_0000)).to_bits();
    f32::from_bits(sign | if rest >= 0x7c00 { rest << 13 | 0x7f80_0000 } else { scaled })
}

#[inline(always)]
pub(crate) fn from_bf16(x: u32) -> f32 {
    f32::from_bits(x << 16)
}

/// To nearest even.
#[inline(always)]
pub(crate) fn bf16_of(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { 0x7fff } else { rounded }
}

#[inline(always)]
pub(crate) fn f16_of(x: f32) -> u32 {
    let bits = x.to_bits();
    let (sign, rest) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // A normal result: the exponent is shifted by 112, the mantissa rounded to nearest even.
    let normal = rest.wrapping_sub(0x3800_0000).wrapping_add(0xfff + (rest >> 13 & 1)) >> 13;
    // A subnormal one: adding 0.5 leaves its bits, rounded, at the end of the mantissa.
    let tiny = (f32::from_bits(rest) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let magnitude = if rest < 0x3880_0000 {
        tiny
    } else if normal > 0x7c00 {
        0x7c00
    } else {
        normal
    };
    let magnitude = if rest >= 0x4780_0000 { 0x7c00 } else { magnitude };
    if rest > 0x7f80_0000 { 0x7fff } else { sign | magnitude }
}

/// A float with the given numbers of bits, rounded from f64 in the direction of the flags. Overflow gives infinity (`exponent` all
/// ones) or, when rounding towards zero, the largest number.
pub(crate) fn small_of(x: f64, exponent_bits: u32, mantissa_bits: u32, flags: u32) -> u32 {
    let sign = u32::from(x.is_sign_negative()) << (exponent_bits + mantissa_bits);
    let top = (1 << exponent_bits) - 1;
    if x.is_nan() {
        return (1 << (exponent_bits + mantissa_bits)) - 1;
    }
    let infinity = top << mantissa_bits;
    if x.is_infinite() {
        return sign | infinity;
    }
    let bias = (1 << (exponent_bits - 1)) - 1;
    let bits = x.abs().to_bits();
    let exponent = (bits >> 52) as i32 - 1023;
    if bits >> 52 == 0 {
        return sign;
    }
    let mantissa = bits & ((1 << 52) - 1) | 1 << 52;
    let min_exponent: i32 = 1 - bias;
    let lost = 52 - mantissa_bits.cast_signed() + (min_exponent - exponent).max(0);
    let (mut kept, rest, half) = if lost >= 63 {
        (0, mantissa, u64::MAX)
    } else {
        (mantissa >> lost, mantissa & ((1 << lost) - 1), 1 << (lost - 1))
    };
    let up = match flags & ROUND {
        RZ => false,
        RM => rest != 0 && x < 0.0,
        RP => rest != 0 && x > 0.0,
        _ => rest > half || (rest == half && kept & 1 != 0),
    };
    kept += u64::from(up);
    let kept = kept as u32;
    // A carry out of the mantissa raises the exponent by itself.
    let magnitude =
        if exponent < min_exponent { kept } else { ((exponent + bias - 1).cast_unsigned() << mantissa_bits) + kept };
    if magnitude >= infinity && exponent_bits != 4 {
        let towards_zero = flags & ROUND == RZ || (flags & ROUND == RM && x > 0.0) || (flags & ROUND == RP && x < 0.0);
        return sign | if towards_zero { infinity - 1 } else { infinity };
    }
    sign | magnitude
}

/// `a · b + c` rounded once: the product is exact in f64, the sum is made odd where it is not, so that the last rounding is right.
fn fused(a: f32, b: f32, c: f32) -> f64 {
    let (high, low) = two_sum(f64::from(a) * f64::from(b), f64::from(c));
    if low == 0.0 || !high.is_finite() || high.to_bits() & 1 != 0 {
        return high;
    }
    if (low > 0.0) == (high > 0.0) { f64::from_bits(high.to_bits() | 1) } else { f64::from_bits(high.to_bits() - 1) }
}

#[inline(always)]
fn finish(flags: u32, x: f32) -> f32 {
    let x = if flags & SAT != 0 { if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 } } else { x };
    if flags & RELU != 0 && x <= 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn flushed16(flags: u32, x: u32) -> u32 {
    if flags & FTZ != 0 && x & 0x7c00 == 0 { x & 0x8000 } else { x & 0xffff }
}

/// Applies a function of halves to both halves of a pair.
#[inline(always)]
fn both_halves(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a >> 16, b >> 16) << 16 | f(a & 0xffff, b & 0xffff) & 0xffff
}

#[inline(always)]
fn h_in(flags: u32, x: u32) -> f32 {
    from_f16(flushed16(flags, x))
}

#[inline(always)]
fn h_out(flags: u32, x: f32) -> u32 {
    flushed16(flags, f16_of(finish(flags, x)))
}

#[inline(always)]
fn b_out(flags: u32, x: f32) -> u32 {
    bf16_of(finish(flags, x))
}

fn h_fma(flags: u32, a: u32, b: u32, c: u32) -> u32 {
    let x = small_of(fused(h_in(flags, a), h_in(flags, b), h_in(flags, c)), 5, 10, 0);
    h_out(flags, from_f16(x))
}

fn b_fma(flags: u32, a: u32, b: u32, c: u32) -> u32 {
    let x = small_of(fused(from_bf16(a), from_bf16(b), from_bf16(c)), 8, 7, 0);
    b_out(flags, from_bf16(x))
}

fn h_pick(flags: u32, a: u32, b: u32, pick: impl Fn(u32, u32, u32) -> u32) -> u32 {
    let x = f32::from_bits(pick(flags & NAN, h_in(flags, a).to_bits(), h_in(flags, b).to_bits()));
    if x.is_nan() { 0x7fff } else { f16_of(x) }
}

fn b_pick(flags: u32, a: u32, b: u32, pick: impl Fn(u32, u32, u32) -> u32) -> u32 {
    let x = f32::from_bits(pick(flags & NAN, from_bf16(a).to_bits(), from_bf16(b).to_bits()));
    bf16_of(x)
}

macro_rules! arithmetic {
    ($t:ident, $name:literal, $op:tt) => {
        for round in ["", ".rn"] {
            for (sat, s) in [("", 0), (".sat", SAT)] {
                for (ftz, z) in [("", 0), (".ftz", FTZ)] {
                    let x = s | z;
                    $t.add(format!("{}{round}{ftz}{sat}.f16", $name), "rrr", x, |w, _, i| map2(w, i, |a: u32, b: u32| h_out(i.x, h_in(i.x, a) $op h_in(i.x, b))));
                    $t.add(format!("{}{round}{ftz}{sat}.f16x2", $name), "rrr", x, |w, _, i| map2(w, i, |a: u32, b: u32| {
                        both_halves(a, b, |a, b| h_out(i.x, h_in(i.x, a) $op h_in(i.x, b)))
                    }));
                }
            }
            $t.add(format!("{}{round}.bf16", $name), "rrr", 0, |w, _, i| map2(w, i, |a: u32, b: u32| b_out(0, from_bf16(a) $op from_bf16(b))));
            $t.add(format!("{}{round}.bf16x2", $name), "rrr", 0, |w, _, i| map2(w, i, |a: u32, b: u32| {
                both_halves(a, b, |a, b| b_out(0, from_bf16(a) $op from_bf16(b)))
            }));
        }
    };
}

/// Comparisons by name; the second half holds for NaN, too.
macro_rules! compare {
    ($t:ident, $ty:literal, $read:ident) => {
        let tests: [(&str, Op); 14] = [
            ("eq", |w, _, i| tested(w, i, $read, |x, y| x == y)),
            ("ne", |w, _, i| tested(w, i, $read, |x, y| (x < y) | (x > y))),
            ("lt", |w, _, i| tested(w, i, $read, |x, y| x < y)),
            ("le", |w, _, i| tested(w, i, $read, |x, y| x <= y)),
            ("gt", |w, _, i| tested(w, i, $read, |x, y| x > y)),
            ("ge", |w, _, i| tested(w, i, $read, |x, y| x >= y)),
            ("equ", |w, _, i| tested(w, i, $read, |x, y| !((x < y) | (x > y)))),
            ("neu", |w, _, i| tested(w, i, $read, |x, y| x != y)),
            ("ltu", |w, _, i| tested(w, i, $read, |x, y| !(x >= y))),
            ("leu", |w, _, i| tested(w, i, $read, |x, y| !(x > y))),
            ("gtu", |w, _, i| tested(w, i, $read, |x, y| !(x <= y))),
            ("geu", |w, _, i| tested(w, i, $read, |x, y| !(x < y))),
            ("num", |w, _, i| tested(w, i, $read, |x, y| !x.is_nan() && !y.is_nan())),
            ("nan", |w, _, i| tested(w, i, $read, |x, y| x.is_nan() || y.is_nan())),
        ];
        for (name, op) in tests {
            for (join, x) in JOINS {
                $t.add(format!("setp.{name}{join}.{}", $ty), "Sr", x, op);
            }
        }
    };
}

fn tested(w: &mut Warp, i: &Instr, read: fn(u32) -> f32, test: fn(f32, f32) -> bool) {
    let bits = test2(w, i, |a: u32, b: u32| test(read(a & 0xffff), read(b & 0xffff)));
    setp(w, i, bits);
}

#[expect(
    clippy::neg_cmp_op_on_partial_ord,
    reason = "a comparison that holds for NaN is the negation of one that does not"
)]
mod fill {
    use super::*;
    pub(crate) fn fill(t: &mut Table) {
        arithmetic!(t, "add", +);
        arithmetic!(t, "sub", -);
        arithmetic!(t, "mul", *);
        for (ftz, z) in [("", 0), (".ftz", FTZ)] {
            for (keep, s) in [("", 0), (".sat", SAT), (".relu", RELU)] {
                let x = z | s;
                t.add(format!("fma.rn{ftz}{keep}.f16"), "rrrr", x, |w, _, i| {
                    map3(w, i, |a: u32, b: u32, c: u32| h_fma(i.x, a, b, c))
                });
                t.add(format!("fma.rn{ftz}{keep}.f16x2"), "rrrr", x, |w, _, i| {
                    map3(w, i, |a: u32, b: u32, c: u32| {
                        h_fma(i.x, a >> 16, b >> 16, c >> 16) << 16 | h_fma(i.x, a & 0xffff, b & 0xffff, c & 0xffff)
                    })
                });
                if z == 0 && s != SAT {
                    t.add(format!("fma.rn{keep}.bf16"), "rrrr", x, |w, _, i| {
                        map3(w, i, |a: u32, b: u32, c: u32| b_fma(i.x, a & 0xffff, b & 0xffff, c & 0xffff));
                    });
                    t.add(format!("fma.rn{keep}.bf16x2"), "rrrr", x, |w, _, i| {
                        map3(w, i, |a: u32, b: u32, c: u32| {
                            b_fma(i.x, a >> 16, b >> 16, c >> 16) << 16 | b_fma(i.x, a & 0xffff, b & 0xffff, c & 0xffff)
                        })
                    });
                }
            }
            for (nan, n) in [("", 0), (".NaN", NAN)] {
                let x = z | n;
                let ops: [(&str, Op, Op); 2] = [
                    (
                        "min",
                        |w, _, i| map2(w, i, |a: u32, b: u32| h_pick(i.x, a & 0xffff, b & 0xffff, least)),
                        |w, _, i| map2(w, i, |a: u32, b: u32| both_halves(a, b, |a, b| h_pick(i.x, a, b, least))),
                    ),
                    (
                        "max",
                        |w, _, i| map2(w, i, |a: u32, b: u32| h_pick(i.x, a & 0xffff, b & 0xffff, most)),
                        |w, _, i| map2(w, i, |a: u32, b: u32| both_halves(a, b, |a, b| h_pick(i.x, a, b, most))),
                    ),
                ];
                for (name, one, two) in ops {
                    t.add(format!("{name}{ftz}{nan}.f16"), "rrr", x, one);
                    t.add(format!("{name}{ftz}{nan}.f16x2"), "rrr", x, two);
                }
                if z == 0 {
                    let ops: [(&str, Op, Op); 2] = [
                        (
                            "min",
                            |w, _, i| map2(w, i, |a: u32, b: u32| b_pick(i.x, a & 0xffff, b & 0xffff, least)),
                            |w, _, i| map2(w, i, |a: u32, b: u32| both_halves(a, b, |a, b| b_pick(i.x, a, b, least))),
                        ),
                        (
                            "max",
                            |w, _, i| map2(w, i, |a: u32, b: u32| b_pick(i.x, a & 0xffff, b & 0xffff, most)),
                            |w, _, i| map2(w, i, |a: u32, b: u32| both_halves(a, b, |a, b| b_pick(i.x, a, b, most))),
                        ),
                    ];
                    for (name, one, two) in ops {
                        t.add(format!("{name}{nan}.bf16"), "rrr", n, one);
                        t.add(format!("{name}{nan}.bf16x2"), "rrr", n, two);
                    }
                }
            }
            t.add(format!("abs{ftz}.f16"), "rr", z, |w, _, i| map1(w, i, |a: u32| flushed16(i.x, a) & 0x7fff));
            t.add(format!("neg{ftz}.f16"), "rr", z, |w, _, i| map1(w, i, |a: u32| flushed16(i.x, a) ^ 0x8000));
            t.add(format!("abs{ftz}.f16x2"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| both_halves(a, a, |a, _| flushed16(i.x, a) & 0x7fff))
            });
            t.add(format!("neg{ftz}.f16x2"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| both_halves(a, a, |a, _| flushed16(i.x, a) ^ 0x8000))
            });
        }
        t.add("abs.bf16", "rr", 0, |w, _, i| map1(w, i, |a: u32| a & 0x7fff));
        t.add("neg.bf16", "rr", 0, |w, _, i| map1(w, i, |a: u32| a & 0xffff ^ 0x8000));
        t.add("abs.bf16x2", "rr", 0, |w, _, i| map1(w, i, |a: u32| a & 0x7fff_7fff));
        t.add("neg.bf16x2", "rr", 0, |w, _, i| map1(w, i, |a: u32| a ^ 0x8000_8000));
        compare!(t, "f16", from_f16);
        compare!(t, "bf16", from_bf16);
        t.add("ex2.approx.f16", "rr", 0, |w, _, i| map1(w, i, |a: u32| f16_of(from_f16(a).exp2())));
        t.add("tanh.approx.f16", "rr", 0, |w, _, i| map1(w, i, |a: u32| f16_of(from_f16(a).tanh())));
        t.add("tanh.approx.bf16", "rr", 0, |w, _, i| map1(w, i, |a: u32| bf16_of(from_bf16(a).tanh())));
        t.add("ex2.approx.ftz.bf16", "rr", 0, |w, _, i| map1(w, i, |a: u32| bf16_of(from_bf16(a).exp2())));
    }
}
pub(crate) use fill::fill;
