//! `cvt`: between integers, between integers and floats, between floats.

use super::half::{bf16_of, f16_of, from_bf16, from_f16, small_of};
use super::round::{FTZ, RELU, RM, ROUND, RP, RZ, SAT, directed, flush, input, output, two_sum};
use super::tables::{Table, both};
use super::{Op, map1, map2};

/// `cvt` between integers: sign extension or a cut, by Rust's `as`.
macro_rules! integers {
    ($t:ident, $(($from:literal, $a:ty, $fty:ty)),*; $targets:tt) => { $( integers!(@ $t, $from, $a, $fty, $targets); )* };
    (@ $t:ident, $from:literal, $a:ty, $fty:ty, [$(($to:literal, $d:ty, $tty:ty)),*]) => {
        $(
            $t.add(concat!("cvt.", $to, ".", $from), shape(size_of::<$d>(), size_of::<$a>()), 0, |w, _, i| {
                // A signed result narrower than its register fills it with its sign.
                map1(w, i, |a: $a| { let x = a as $fty as $tty; if size_of::<$tty>() == 2 { x as u16 as $d } else if size_of::<$tty>() == 1 { x as i32 as $d } else { x as $d } })
            });
            $t.add(concat!("cvt.sat.", $to, ".", $from), shape(size_of::<$d>(), size_of::<$a>()), 0, |w, _, i| {
                map1(w, i, |a: $a| { let x = (a as $fty as i128).clamp(<$tty>::MIN as i128, <$tty>::MAX as i128) as $tty; if size_of::<$tty>() == 2 { x as u16 as $d } else { x as $d } })
            });
        )*
    };
}

fn shape(d: usize, a: usize) -> &'static str {
    match (d, a) {
        (8, 8) => "qq",
        (8, _) => "qr",
        (_, 8) => "rq",
        _ => "rr",
    }
}

/// To a whole number by the direction: nearest even, to zero, down, up.
#[inline(always)]
fn whole(flags: u32, x: f64) -> f64 {
    match flags & ROUND {
        RZ => x.trunc(),
        RM => x.floor(),
        RP => x.ceil(),
        _ => x.round_ties_even(),
    }
}

#[inline(always)]
fn whole32(flags: u32, x: f32) -> f32 {
    match flags & ROUND {
        RZ => x.trunc(),
        RM => x.floor(),
        RP => x.ceil(),
        _ => x.round_ties_even(),
    }
}

const WHOLES: [(&str, u32); 4] = [(".rni", 0), (".rzi", RZ), (".rmi", RM), (".rpi", RP)];
const ROUNDS: [(&str, u32); 4] = [(".rn", 0), (".rz", RZ), (".rm", RM), (".rp", RP)];
const FTZS: [(&str, u32); 2] = [("", 0), (".ftz", FTZ)];
const SATS: [(&str, u32); 2] = [("", 0), (".sat", SAT)];

/// An integer of up to 64 bits as f32 in the direction: split so that both parts are exact in f64.
fn f32_of_int(flags: u32, x: i128) -> f32 {
    let low = x & 0xffff_ffff;
    let (high, rest) = two_sum((x - low) as f64, low as f64);
    if flags & ROUND == 0 {
        return x as f32;
    }
    directed(flags, high, rest)
}

macro_rules! floats_of {
    ($t:ident, $(($from:literal, $a:ty, $fty:ty)),*) => { $(
        for (round, r) in ROUNDS {
            for (sat, s) in SATS {
                $t.add(format!("cvt{round}{sat}.f32.{}", $from), shape(4, size_of::<$a>()), r | s, |w, _, i| {
                    map1(w, i, |a: $a| if i.x == 0 { (a as $fty as f32).to_bits() } else { output(i.x, f32_of_int(i.x, a as $fty as i128)) })
                });
            }
        }
        $t.add(concat!("cvt.rn.f64.", $from), shape(8, size_of::<$a>()), 0, |w, _, i| map1(w, i, |a: $a| (a as $fty as f64).to_bits()));
        $t.add(concat!("cvt.rn.f16.", $from), shape(2, size_of::<$a>()), 0, |w, _, i| map1(w, i, |a: $a| small_of(a as $fty as f64, 5, 10, 0)));
        $t.add(concat!("cvt.rn.bf16.", $from), shape(2, size_of::<$a>()), 0, |w, _, i| map1(w, i, |a: $a| small_of(a as $fty as f64, 8, 7, 0)));
    )* };
}

/// Out of range gives the nearest bound and NaN gives 0, which is what Rust's `as` does; NaN to 64 bits gives the top bit.
macro_rules! ints_of {
    ($t:ident, $(($to:literal, $d:ty, $tty:ty)),*) => { $(
        for (round, r) in WHOLES {
            for (sat, s) in SATS {
                for (ftz, z) in FTZS {
                    $t.add(format!("cvt{round}{ftz}{sat}.{}.f32", $to), shape(size_of::<$d>(), 4), r | z | s, |w, _, i| map1(w, i, |a: u32| {
                        let x = input(i.x, a);
                        if size_of::<$d>() == 8 && x.is_nan() { return (1u64 << 63) as $d; }
                        whole(i.x, x.into()) as $tty as $d
                    }));
                }
                $t.add(format!("cvt{round}{sat}.{}.f64", $to), shape(size_of::<$d>(), 8), r | s, |w, _, i| map1(w, i, |a: u64| {
                    let x = f64::from_bits(a);
                    if x.is_nan() { return if size_of::<$d>() == 8 { (1u64 << 63) as $d } else { (1u64 << 31) as $d }; }
                    whole(i.x, x) as $tty as $d
                }));
            }
            $t.add(format!("cvt{round}.{}.f16", $to), shape(size_of::<$d>(), 2), r, |w, _, i| map1(w, i, |a: u32| {
                whole(i.x, from_f16(a).into()) as $tty as $d
            }));
            $t.add(format!("cvt{round}.{}.bf16", $to), shape(size_of::<$d>(), 2), r, |w, _, i| map1(w, i, |a: u32| {
                whole(i.x, from_bf16(a).into()) as $tty as $d
            }));
        }
    )* };
}

fn pair(hi: u32, lo: u32) -> u32 {
    hi << 16 | lo & 0xffff
}

fn relu(flags: u32, x: f32) -> f32 {
    // NaN stays NaN under .relu.
    if flags & RELU != 0 && !x.is_nan() && x <= 0.0 { 0.0 } else { x }
}

/// To f16 or bf16 in the direction of the flags.
#[inline(always)]
fn f16_by(flags: u32, x: f32) -> u32 {
    let x = relu(flags, x);
    if flags & (ROUND | SAT) == 0 { f16_of(x) } else { small_of(saturated(flags, x).into(), 5, 10, flags) }
}

#[inline(always)]
fn bf16_by(flags: u32, x: f32) -> u32 {
    let x = relu(flags, x);
    if flags & (ROUND | SAT) == 0 { bf16_of(x) } else { small_of(saturated(flags, x).into(), 8, 7, flags) }
}

fn saturated(flags: u32, x: f32) -> f32 {
    f32::from_bits(output(flags & SAT, x))
}

/// e4m3 (`ieee` false: no infinity, largest 448) or e5m2 (largest finite 57344), always saturating, NaN all ones below the sign.
pub(crate) fn f8_of(e5m2: bool, flags: u32, x: f32) -> u32 {
    let x = relu(flags, x);
    let sign = (x.to_bits() >> 31) << 7;
    if x.is_nan() {
        return 0x7f;
    }
    let largest = if e5m2 { 57_344.0 } else { 448.0 };
    if x.abs() >= largest {
        return sign | if e5m2 { 0x7b } else { 0x7e };
    }
    let bits = if e5m2 { small_of(x.abs().into(), 5, 2, 0) } else { small_of(x.abs().into(), 4, 3, 0) };
    sign | bits
}

/// The value of an eight-bit float.
pub(crate) fn from_f8(e5m2: bool, x: u32) -> f32 {
    let (exponent_bits, mantissa_bits, bias) = if e5m2 { (5, 2, 15) } else { (4, 3, 7) };
    let sign = if x & 0x80 != 0 { -1.0 } else { 1.0 };
    let mantissa = x & ((1 << mantissa_bits) - 1);
    let exponent = x >> mantissa_bits & ((1 << exponent_bits) - 1);
    if e5m2 && exponent == 31 {
        return if mantissa == 0 { sign * f32::INFINITY } else { f32::NAN };
    }
    if !e5m2 && x & 0x7f == 0x7f {
        return f32::NAN;
    }
    let magnitude = if exponent == 0 {
        mantissa as f32 * f32::exp2((1 - bias - mantissa_bits) as f32)
    } else {
        (mantissa | 1 << mantissa_bits) as f32 * f32::exp2((exponent as i32 - bias - mantissa_bits) as f32)
    };
    sign * magnitude
}

mod fill {
    use super::*;
    pub(crate) fn rare(t: &mut Table) {
        macro_rules! of_all {
            ($fill:ident) => {
                $fill!(
                    t,
                    ("s8", u32, i8),
                    ("u8", u32, u8),
                    ("s16", u32, i16),
                    ("u16", u32, u16),
                    ("s32", u32, i32),
                    ("u32", u32, u32),
                    ("s64", u64, i64),
                    ("u64", u64, u64)
                )
            };
        }
        integers!(t, ("s8", u32, i8), ("u8", u32, u8), ("s16", u32, i16), ("u16", u32, u16), ("s32", u32, i32), ("u32", u32, u32), ("s64", u64, i64), ("u64", u64, u64);
            [("s8", u32, i8), ("u8", u32, u8), ("s16", u32, i16), ("u16", u32, u16), ("s32", u32, i32), ("u32", u32, u32), ("s64", u64, i64), ("u64", u64, u64)]);
        of_all!(floats_of);
        of_all!(ints_of);

        for (ftz, z) in FTZS {
            for (sat, s) in SATS {
                for (round, r) in WHOLES {
                    let op: Op = |w, _, i| map1(w, i, |a: u32| output(i.x, whole32(i.x, input(i.x, a))));
                    t.add(format!("cvt{round}{ftz}{sat}.f32.f32"), "rr", r | z | s, op);
                    if z == 0 && s == 0 {
                        t.add(format!("cvt{round}.f64.f64"), "qq", r, |w, _, i| {
                            map1(w, i, |a: u64| whole(i.x, f64::from_bits(a)).to_bits());
                        });
                        t.add(format!("cvt{round}.f16.f16"), "rr", r, |w, _, i| {
                            map1(w, i, |a: u32| f16_of(whole32(i.x, from_f16(a))))
                        });
                        t.add(format!("cvt{round}.bf16.bf16"), "rr", r, |w, _, i| {
                            map1(w, i, |a: u32| bf16_of(whole32(i.x, from_bf16(a))));
                        });
                    }
                }
                t.add(format!("cvt{ftz}{sat}.f32.f32"), "rr", z | s, |w, _, i| {
                    map1(w, i, |a: u32| output(i.x, input(i.x, a)))
                });
                for (round, r) in ROUNDS {
                    t.add(format!("cvt{round}{ftz}{sat}.f32.f64"), "rq", r | z | s, |w, _, i| {
                        map1(w, i, |a: u64| {
                            let x = f64::from_bits(a);
                            output(i.x, if i.x & ROUND == 0 { x as f32 } else { directed(i.x, x, 0.0) })
                        })
                    });
                }
                t.add(format!("cvt{ftz}{sat}.f32.f16"), "rr", z | s, |w, _, i| {
                    map1(w, i, |a: u32| output(i.x, from_f16(a)))
                });
                t.add(format!("cvt{ftz}{sat}.f32.bf16"), "rr", z | s, |w, _, i| {
                    map1(w, i, |a: u32| output(i.x, from_bf16(a)))
                });
                for (round, r) in ROUNDS {
                    for (keep, relu) in [("", 0), (".relu", RELU)] {
                        if s != 0 && relu != 0 {
                            continue;
                        }
                        let x = r | z | s | relu;
                        t.add(format!("cvt{round}{keep}{ftz}{sat}.f16.f32"), "rr", x, |w, _, i| {
                            map1(w, i, |a: u32| f16_by(i.x, input(i.x, a)));
                        });
                        if z != 0 || s != 0 {
                            continue;
                        }
                        t.add(format!("cvt{round}{keep}.bf16.f32"), "rr", x, |w, _, i| {
                            map1(w, i, |a: u32| bf16_by(i.x, f32::from_bits(a)))
                        });
                        t.add(format!("cvt{round}{keep}.f16x2.f32"), "rrr", x, |w, _, i| {
                            map2(w, i, |a: u32, b: u32| {
                                pair(f16_by(i.x, f32::from_bits(a)), f16_by(i.x, f32::from_bits(b)))
                            })
                        });
                        t.add(format!("cvt{round}{keep}.bf16x2.f32"), "rrr", x, |w, _, i| {
                            map2(w, i, |a: u32, b: u32| {
                                pair(bf16_by(i.x, f32::from_bits(a)), bf16_by(i.x, f32::from_bits(b)))
                            })
                        });
                    }
                }
            }
            t.add(format!("cvt{ftz}.f64.f32"), "qr", z, |w, _, i| {
                map1(w, i, |a: u32| f64::from(f32::from_bits(if i.x & FTZ != 0 { flush(a) } else { a })).to_bits())
            });
        }
        t.add("cvt.f64.f16", "qr", 0, |w, _, i| map1(w, i, |a: u32| f64::from(from_f16(a)).to_bits()));
        t.add("cvt.f64.bf16", "qr", 0, |w, _, i| map1(w, i, |a: u32| f64::from(from_bf16(a)).to_bits()));
        t.add("cvt.rn.f16.f64", "rq", 0, |w, _, i| map1(w, i, |a: u64| small_of(f64::from_bits(a), 5, 10, 0)));
        t.add("cvt.rn.bf16.f64", "rq", 0, |w, _, i| map1(w, i, |a: u64| small_of(f64::from_bits(a), 8, 7, 0)));
        t.add("cvt.rn.bf16.f16", "rr", 0, |w, _, i| map1(w, i, |a: u32| bf16_of(from_f16(a))));
        t.add("cvt.rn.f16.bf16", "rr", 0, |w, _, i| map1(w, i, |a: u32| f16_of(from_bf16(a))));
        // To nearest, ties away: half a unit is added to the magnitude.
        t.add("cvt.rna.tf32.f32", "rr", 0, |w, _, i| {
            map1(w, i, |a: u32| if f32::from_bits(a).is_finite() { a.wrapping_add(0x1000) & !0x1fff } else { a })
        });
        t.add("cvt.rn.tf32.f32", "rr", 0, |w, _, i| {
            map1(
                w,
                i,
                |a: u32| {
                    if f32::from_bits(a).is_finite() { a.wrapping_add(0xfff + (a >> 13 & 1)) & !0x1fff } else { a }
                },
            )
        });
        for (name, x) in [("e4m3x2", 0u32), ("e5m2x2", 1 << 8)] {
            for (keep, relu) in [("", 0), (".relu", RELU)] {
                t.add(format!("cvt.rn.satfinite{keep}.{name}.f32"), "rrr", x | relu, |w, _, i| {
                    map2(w, i, |a: u32, b: u32| {
                        let wide = i.x >> 8 != 0;
                        f8_of(wide, i.x, f32::from_bits(a)) << 8 | f8_of(wide, i.x, f32::from_bits(b))
                    })
                });
                t.add(format!("cvt.rn.satfinite{keep}.{name}.f16x2"), "rr", x | relu, |w, _, i| {
                    map1(w, i, |a: u32| {
                        let wide = i.x >> 8 != 0;
                        f8_of(wide, i.x, from_f16(a >> 16)) << 8 | f8_of(wide, i.x, from_f16(a))
                    })
                });
                t.add(format!("cvt.rn{keep}.f16x2.{name}"), "rr", x | relu, |w, _, i| {
                    map1(w, i, |a: u32| {
                        let wide = i.x >> 8 != 0;
                        pair(
                            f16_by(i.x & RELU, from_f8(wide, a >> 8 & 0xff)),
                            f16_by(i.x & RELU, from_f8(wide, a & 0xff)),
                        )
                    })
                });
            }
        }
    }

    // Those of elementary functions and of indices, again, for wide vectors.
    both!(fast, base, |t| {
        for (round, r) in WHOLES {
            for (ftz, z) in FTZS {
                t.add(format!("cvt{round}{ftz}.f32.f32"), "rr", r | z, |w, _, i| {
                    map1(w, i, |a: u32| output(i.x, whole32(i.x, input(i.x, a))));
                });
                t.add(format!("cvt{round}{ftz}.s32.f32"), "rr", r | z, |w, _, i| {
                    map1(w, i, |a: u32| whole32(i.x, input(i.x, a)) as i32 as u32);
                });
            }
        }
        t.add("cvt.rn.f32.s32", "rr", 0, |w, _, i| map1(w, i, |a: u32| (a as i32 as f32).to_bits()));
        t.add("cvt.rn.f32.u32", "rr", 0, |w, _, i| map1(w, i, |a: u32| (a as f32).to_bits()));
    });
}
#[cfg(target_arch = "x86_64")]
pub(crate) use fill::fast;
pub(crate) use fill::{base, rare};
