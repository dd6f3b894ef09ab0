//! f32 and f64: arithmetic with its modifiers, minima, comparisons, and the approximations.
//!
//! What the hardware approximates (`ex2.approx` and its kin) is computed to f32 rounding here, so results differ from a GPU's in
//! the last bits.

use super::alu::{JOINS, rows, setp};
use super::round::{
    FTZ, NAN, RM, ROUND, RP, RZ, SAT, add_directed, flush, fma_directed, input, mul_directed, output,
    quotient_directed, root_directed,
};
use super::tables::both;
use super::{Op, map1, map2, map3, test2};

const ROUNDS: [(&str, u32); 4] = [(".rn", 0), (".rz", RZ), (".rm", RM), (".rp", RP)];
const FTZS: [(&str, u32); 2] = [("", 0), (".ftz", FTZ)];
const SATS: [(&str, u32); 2] = [("", 0), (".sat", SAT)];

#[inline(always)]
fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

#[inline(always)]
fn g(x: u64) -> f64 {
    f64::from_bits(x)
}

/// The bits of a NaN as the hardware makes it.
pub(crate) const QUIET: u32 = 0x7fff_ffff;

/// A number beats a NaN unless `.NaN` is asked for, and -0 is below +0.
#[inline(always)]
pub(crate) fn least(flags: u32, x: u32, y: u32) -> u32 {
    let (x, y) = if flags & FTZ != 0 { (flush(x), flush(y)) } else { (x, y) };
    let (a, b) = (f(x), f(y));
    let plain = if a < b {
        x
    } else if b < a {
        y
    } else {
        x | y
    };
    order(flags, a, b, plain)
}

#[inline(always)]
pub(crate) fn most(flags: u32, x: u32, y: u32) -> u32 {
    let (x, y) = if flags & FTZ != 0 { (flush(x), flush(y)) } else { (x, y) };
    let (a, b) = (f(x), f(y));
    let plain = if a > b {
        x
    } else if b > a {
        y
    } else {
        x & y
    };
    order(flags, a, b, plain)
}

#[inline(always)]
fn order(flags: u32, a: f32, b: f32, plain: u32) -> u32 {
    let a_nan = a.is_nan();
    let b_nan = b.is_nan();
    let one = if a_nan {
        b.to_bits()
    } else if b_nan {
        a.to_bits()
    } else {
        plain
    };
    if (a_nan & b_nan) | (((flags & NAN) != 0) & (a_nan | b_nan)) { QUIET } else { one }
}

fn least64(a: f64, b: f64) -> f64 {
    let first = b.is_nan() || a < b || (a == b && a.is_sign_negative());
    if first && !a.is_nan() { a } else { b }
}

fn most64(a: f64, b: f64) -> f64 {
    let first = b.is_nan() || a > b || (a == b && a.is_sign_positive());
    if first && !a.is_nan() { a } else { b }
}

/// 2^x to f32 rounding or nearly: the fraction by its series in f64, the whole part by the exponent.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let clamped = x.clamp(-155.0, 130.0);
    let whole = (clamped + 12_582_912.0) - 12_582_912.0;
    let t = f64::from(clamped - whole) * std::f64::consts::LN_2;
    // e^t for |t| <= 0.35, by Taylor's series; the last term left out is below 2^-32.
    let p = 1.0 / 40_320.0;
    let p = p * t + 1.0 / 5_040.0;
    let p = p * t + 1.0 / 720.0;
    let p = p * t + 1.0 / 120.0;
    let p = p * t + 1.0 / 24.0;
    let p = p * t + 1.0 / 6.0;
    let p = p * t + 0.5;
    let p = p * t + 1.0;
    let p = p * t + 1.0;
    let scale = f64::from_bits(((whole as i32 + 1023) as u64) << 52);
    let out = (p * scale) as f32;
    if x.is_nan() { x } else { out }
}

/// log2 through f64.
fn log2(x: f32) -> f32 {
    f64::from(x).log2() as f32
}

/// Comparisons by name; the second half holds for NaN, too.
macro_rules! compare {
    ($t:ident, $read:ty, $ty:literal, $shape:literal, |$flags:ident, $v:ident| $conv:expr, [$(($name:literal, |$x:ident, $y:ident| $cmp:expr)),* $(,)?]) => {
        $({
            let op: Op = |w, _, i| {
                let $flags = i.x;
                let bits = test2(w, i, |a: $read, b: $read| {
                    let $x = { let $v = a; $conv };
                    let $y = { let $v = b; $conv };
                    $cmp
                });
                setp(w, i, bits);
            };
            for (join, x) in JOINS {
                for (ftz, flag) in FTZS {
                    if flag == 0 || $ty == "f32" {
                        $t.add(format!("setp.{}{join}{ftz}.{}", $name, $ty), $shape, x | flag, op);
                    }
                }
            }
        })*
    };
}

macro_rules! comparisons {
    ($t:ident, $read:ty, $ty:literal, $shape:literal, |$flags:ident, $v:ident| $conv:expr) => {
        compare!(
            $t,
            $read,
            $ty,
            $shape,
            |$flags, $v| $conv,
            [
                ("eq", |x, y| x == y),
                ("ne", |x, y| (x < y) | (x > y)),
                ("lt", |x, y| x < y),
                ("le", |x, y| x <= y),
                ("gt", |x, y| x > y),
                ("ge", |x, y| x >= y),
                ("equ", |x, y| !((x < y) | (x > y))),
                ("neu", |x, y| x != y),
                ("ltu", |x, y| !(x >= y)),
                ("leu", |x, y| !(x > y)),
                ("gtu", |x, y| !(x <= y)),
                ("geu", |x, y| !(x < y)),
                ("num", |x, y| !x.is_nan() && !y.is_nan()),
                ("nan", |x, y| x.is_nan() || y.is_nan()),
            ]
        );
    };
}

/// What each class test looks for.
fn class32(name: &str) -> Op {
    match name {
        "finite" => |w, _, i| class(w, i, |x| f(x).is_finite()),
        "infinite" => |w, _, i| class(w, i, |x| f(x).is_infinite()),
        "number" => |w, _, i| class(w, i, |x| !f(x).is_nan()),
        "notanumber" => |w, _, i| class(w, i, |x| f(x).is_nan()),
        "normal" => |w, _, i| class(w, i, |x| f(x).is_normal()),
        _ => |w, _, i| class(w, i, |x| f(x).is_subnormal()),
    }
}

fn class(w: &mut super::Warp, i: &super::Instr, test: impl Fn(u32) -> bool) {
    let a = *w.get::<u32>(i.s[0]);
    let bits = a.iter().enumerate().fold(0, |bits, (k, &x)| bits | u32::from(test(x)) << k);
    w.put_pred(i.d, bits);
}

#[expect(
    clippy::neg_cmp_op_on_partial_ord,
    reason = "a comparison that holds for NaN is the negation of one that does not"
)]
mod fill {
    use super::*;
    both!(fast, base, |t| {
        for (round, r) in [("", 0), ROUNDS[0], ROUNDS[1], ROUNDS[2], ROUNDS[3]] {
            for (ftz, z) in FTZS {
                for (sat, s) in SATS {
                    let x = r | z | s;
                    let op: [Op; 3] = if x == 0 {
                        [
                            |w, _, i| map2(w, i, |a: u32, b: u32| (f(a) + f(b)).to_bits()),
                            |w, _, i| map2(w, i, |a: u32, b: u32| (f(a) - f(b)).to_bits()),
                            |w, _, i| map2(w, i, |a: u32, b: u32| (f(a) * f(b)).to_bits()),
                        ]
                    } else if r == 0 {
                        [
                            |w, _, i| map2(w, i, |a: u32, b: u32| output(i.x, input(i.x, a) + input(i.x, b))),
                            |w, _, i| map2(w, i, |a: u32, b: u32| output(i.x, input(i.x, a) - input(i.x, b))),
                            |w, _, i| map2(w, i, |a: u32, b: u32| output(i.x, input(i.x, a) * input(i.x, b))),
                        ]
                    } else {
                        [
                            |w, _, i| {
                                map2(w, i, |a: u32, b: u32| {
                                    output(i.x, add_directed(i.x, input(i.x, a), input(i.x, b)))
                                })
                            },
                            |w, _, i| {
                                map2(w, i, |a: u32, b: u32| {
                                    output(i.x, add_directed(i.x, input(i.x, a), -input(i.x, b)))
                                })
                            },
                            |w, _, i| {
                                map2(w, i, |a: u32, b: u32| {
                                    output(i.x, mul_directed(i.x, input(i.x, a), input(i.x, b)))
                                })
                            },
                        ]
                    };
                    t.add(format!("add{round}{ftz}{sat}.f32"), "rrr", x, op[0]);
                    t.add(format!("sub{round}{ftz}{sat}.f32"), "rrr", x, op[1]);
                    t.add(format!("mul{round}{ftz}{sat}.f32"), "rrr", x, op[2]);
                    if round.is_empty() {
                        continue;
                    }
                    let op: Op = if x == 0 {
                        |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| f(a).mul_add(f(b), f(c)).to_bits())
                    } else if r == 0 {
                        |w, _, i| {
                            map3(w, i, |a: u32, b: u32, c: u32| {
                                output(i.x, input(i.x, a).mul_add(input(i.x, b), input(i.x, c)))
                            })
                        }
                    } else {
                        |w, _, i| {
                            map3(w, i, |a: u32, b: u32, c: u32| {
                                output(i.x, fma_directed(i.x, input(i.x, a), input(i.x, b), input(i.x, c)))
                            })
                        }
                    };
                    t.add(format!("fma{round}{ftz}{sat}.f32"), "rrrr", x, op);
                    t.add(format!("mad{round}{ftz}{sat}.f32"), "rrrr", x, op);
                }
            }
        }
        for (round, r) in ROUNDS {
            for (ftz, z) in FTZS {
                let x = r | z;
                t.add(format!("div{round}{ftz}.f32"), "rrr", x, |w, _, i| {
                    map2(w, i, |a: u32, b: u32| {
                        let (a, b) = (input(i.x, a), input(i.x, b));
                        output(i.x, if i.x & ROUND == 0 { a / b } else { quotient_directed(i.x, a, b) })
                    })
                });
                t.add(format!("rcp{round}{ftz}.f32"), "rr", x, |w, _, i| {
                    map1(w, i, |a: u32| {
                        let a = input(i.x, a);
                        output(i.x, if i.x & ROUND == 0 { 1.0 / a } else { quotient_directed(i.x, 1.0, a) })
                    })
                });
                t.add(format!("sqrt{round}{ftz}.f32"), "rr", x, |w, _, i| {
                    map1(w, i, |a: u32| {
                        let a = input(i.x, a);
                        output(i.x, if i.x & ROUND == 0 { a.sqrt() } else { root_directed(i.x, a) })
                    })
                });
            }
        }
        for (ftz, z) in FTZS {
            for kind in ["div.approx", "div.full"] {
                t.add(format!("{kind}{ftz}.f32"), "rrr", z, |w, _, i| {
                    map2(w, i, |a: u32, b: u32| output(i.x, input(i.x, a) / input(i.x, b)))
                });
            }
            t.add(format!("rcp.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, 1.0 / input(i.x, a)))
            });
            t.add(format!("sqrt.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, input(i.x, a).sqrt()))
            });
            t.add(format!("rsqrt.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, (1.0 / f64::from(input(i.x, a)).sqrt()) as f32))
            });
            t.add(format!("sin.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, input(i.x, a).sin()))
            });
            t.add(format!("cos.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, input(i.x, a).cos()))
            });
            t.add(format!("lg2.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, log2(input(i.x, a))))
            });
            t.add(format!("ex2.approx{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| output(i.x, exp2(input(i.x, a))))
            });
            for (nan, n) in [("", 0), (".NaN", NAN)] {
                t.add(format!("min{ftz}{nan}.f32"), "rrr", z | n, |w, _, i| {
                    map2(w, i, |a: u32, b: u32| least(i.x, a, b))
                });
                t.add(format!("max{ftz}{nan}.f32"), "rrr", z | n, |w, _, i| {
                    map2(w, i, |a: u32, b: u32| most(i.x, a, b))
                });
            }
            t.add(format!("abs{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| (if i.x & FTZ != 0 { flush(a) } else { a }) & 0x7fff_ffff)
            });
            t.add(format!("neg{ftz}.f32"), "rr", z, |w, _, i| {
                map1(w, i, |a: u32| (if i.x & FTZ != 0 { flush(a) } else { a }) ^ 0x8000_0000)
            });
        }
        t.add("tanh.approx.f32", "rr", 0, |w, _, i| map1(w, i, |a: u32| f(a).tanh().to_bits()));
        t.add("copysign.f32", "rrr", 0, |w, _, i| map2(w, i, |a: u32, b: u32| a & 0x8000_0000 | b & 0x7fff_ffff));
        t.add("copysign.f64", "qqq", 0, |w, _, i| map2(w, i, |a: u64, b: u64| a & 1 << 63 | b & !(1 << 63)));

        rows!(t, "qqq", ["add.f64", "add.rn.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| (g(a) + g(b)).to_bits()));
        rows!(t, "qqq", ["sub.f64", "sub.rn.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| (g(a) - g(b)).to_bits()));
        rows!(t, "qqq", ["mul.f64", "mul.rn.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| (g(a) * g(b)).to_bits()));
        rows!(t, "qqq", ["div.rn.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| (g(a) / g(b)).to_bits()));
        rows!(t, "qqqq", ["fma.rn.f64", "mad.rn.f64"], |w, _, i| map3(w, i, |a: u64, b: u64, c: u64| {
            g(a).mul_add(g(b), g(c)).to_bits()
        }));
        rows!(t, "qq", ["sqrt.rn.f64"], |w, _, i| map1(w, i, |a: u64| g(a).sqrt().to_bits()));
        rows!(t, "qq", ["rcp.rn.f64"], |w, _, i| map1(w, i, |a: u64| (1.0 / g(a)).to_bits()));
        // The low word of these approximations is zero.
        rows!(t, "qq", ["rcp.approx.ftz.f64"], |w, _, i| map1(w, i, |a: u64| (1.0 / g(a)).to_bits() & !0xffff_ffff));
        rows!(t, "qq", ["rsqrt.approx.f64", "rsqrt.approx.ftz.f64"], |w, _, i| map1(w, i, |a: u64| {
            (1.0 / g(a).sqrt()).to_bits() & !0xffff_ffff
        }));
        rows!(t, "qq", ["abs.f64"], |w, _, i| map1(w, i, |a: u64| a & !(1 << 63)));
        rows!(t, "qq", ["neg.f64"], |w, _, i| map1(w, i, |a: u64| a ^ 1 << 63));
        rows!(t, "qqq", ["min.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| least64(g(a), g(b)).to_bits()));
        rows!(t, "qqq", ["max.f64"], |w, _, i| map2(w, i, |a: u64, b: u64| most64(g(a), g(b)).to_bits()));

        comparisons!(t, u32, "f32", "Sr", |flags, v| input(flags, v));
        comparisons!(t, u64, "f64", "Sq", |_flags, v| g(v));
        for name in ["finite", "infinite", "number", "notanumber", "normal", "subnormal"] {
            t.add(format!("testp.{name}.f32"), "pr", 0, class32(name));
        }
    });
}
pub(crate) use fill::base;
#[cfg(target_arch = "x86_64")]
pub(crate) use fill::fast;
