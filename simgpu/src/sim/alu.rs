//! Integers, bits, selections and comparisons.

use super::tables::both;
use super::{Instr, LANES, NONE, Op, Warp, map1, map2, map3, map4, test2};

/// Several names of one operation.
macro_rules! rows {
    ($t:ident, $shape:literal, [$($name:expr),* $(,)?], $op:expr) => {{
        let op: Op = $op;
        for name in [$($name),*] {
            $t.add(name, $shape, 0, op);
        }
    }};
}
pub(crate) use rows;

#[inline(always)]
fn lo16(x: u32) -> u32 {
    x & 0xffff
}

#[inline(always)]
fn s16(x: u32) -> i32 {
    i32::from(x as u16 as i16)
}

/// Joins the result of a comparison with the third operand and writes one or two predicates; `x` says how.
#[inline(never)]
pub(crate) fn setp(w: &mut Warp, i: &Instr, bits: u32) {
    let (p, q) = match i.x >> 8 & 3 {
        0 => (bits, !bits),
        how => {
            let c = w.pred(i.s[2]);
            match how {
                1 => (bits & c, !bits & c),
                2 => (bits | c, !bits | c),
                _ => (bits ^ c, !bits ^ c),
            }
        }
    };
    w.put_pred(i.d, p);
    if let Some(&second) = i.list.first() {
        w.put_pred(second, q);
    }
}

pub(crate) const JOINS: [(&str, u32); 4] = [("", 0), (".and", 1 << 8), (".or", 2 << 8), (".xor", 3 << 8)];

fn lop3(a: u32, b: u32, c: u32, lut: u32) -> u32 {
    let mut out = 0;
    for k in 0..8 {
        if lut >> k & 1 != 0 {
            out |= (if k & 4 != 0 { a } else { !a })
                & (if k & 2 != 0 { b } else { !b })
                & (if k & 1 != 0 { c } else { !c });
        }
    }
    out
}

fn prmt(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let mut out = [0u8; 4];
    for (k, to) in out.iter_mut().enumerate() {
        let choice = selector >> (4 * k) & 15;
        let byte = bytes[(choice & 7) as usize];
        *to = if choice & 8 == 0 {
            byte
        } else if byte & 0x80 != 0 {
            0xff
        } else {
            0
        };
    }
    u32::from_le_bytes(out)
}

fn bfe64(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let a = if bits == 32 { a & 0xffff_ffff } else { a };
    let end = (pos + len).wrapping_sub(1).min(bits - 1);
    let fill = signed && len != 0 && a >> end & 1 != 0;
    let mut out = 0;
    for k in 0..bits {
        let bit = if k < len && pos + k < bits { a >> (pos + k) & 1 != 0 } else { fill };
        out |= u64::from(bit) << k;
    }
    out
}

fn bfi64(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let mut out = b;
    for k in 0..len {
        if pos + k >= bits {
            break;
        }
        out = out & !(1 << (pos + k)) | (a >> k & 1) << (pos + k);
    }
    out
}

fn dp4a(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |x: u8, signed: bool| if signed { i32::from(x.cast_signed()) } else { i32::from(x) };
    a.to_le_bytes()
        .into_iter()
        .zip(b.to_le_bytes())
        .fold(c, |sum, (x, y)| sum.wrapping_add((byte(x, a_signed) * byte(y, b_signed)).cast_unsigned()))
}

/// The halves of `a` times the two lower, or upper, bytes of `b`.
fn dp2a(a: u32, b: u32, c: u32, high: bool, (a_signed, b_signed): (bool, bool)) -> u32 {
    let half = |x: u32| if a_signed { i32::from((x as u16).cast_signed()) } else { i32::from(x as u16) };
    let byte = |x: u32| if b_signed { i32::from((x as u8).cast_signed()) } else { i32::from(x as u8) };
    let b = if high { b >> 16 } else { b };
    let products = [half(a) * byte(b), half(a >> 16) * byte(b >> 8)];
    products.into_iter().fold(c, |sum, product| sum.wrapping_add(product.cast_unsigned()))
}

fn bfind(a: u64, bits: u32, signed: bool) -> u32 {
    let a = if bits == 32 {
        let word = a & 0xffff_ffff;
        if signed && word >> 31 != 0 { !word & 0xffff_ffff } else { word }
    } else if signed && a >> 63 != 0 {
        !a
    } else {
        a
    };
    if a == 0 { u32::MAX } else { 63 - a.leading_zeros() }
}

/// Sum with carry in and out, for lanes of the mask only.
fn carried(w: &mut Warp, i: &Instr, f: impl Fn(u64, u64, u64, bool) -> (u64, bool)) {
    let (wide, takes, gives) = (i.x & 1 != 0, i.x & 2 != 0, i.x & 4 != 0);
    let mask = w.mask;
    let operand = |w: &mut Warp, s: u32, k: usize| -> u64 {
        if s == NONE {
            0
        } else if wide {
            w.get::<u64>(s)[k]
        } else {
            u64::from(w.get::<u32>(s)[k])
        }
    };
    let (mut long, mut word) = ([0u64; LANES], [0u32; LANES]);
    let mut carry = w.carry;
    for k in (0..LANES).filter(|k| mask >> k & 1 != 0) {
        let (a, b, c) = (operand(w, i.s[0], k), operand(w, i.s[1], k), operand(w, i.s[2], k));
        let (value, out) = f(a, b, c, takes && carry >> k & 1 != 0);
        (long[k], word[k]) = (value, low(value));
        if gives {
            carry = carry & !(1 << k) | u32::from(out) << k;
        }
    }
    w.carry = carry;
    if wide {
        w.put(i.d, &long);
    } else {
        w.put(i.d, &word);
    }
}

pub(crate) fn low(x: u64) -> u32 {
    x as u32
}

fn add_carry(wide: bool, a: u64, b: u64, carry: bool) -> (u64, bool) {
    if wide {
        let (x, o) = a.overflowing_add(b);
        let (y, p) = x.overflowing_add(u64::from(carry));
        (y, o || p)
    } else {
        let x = a + b + u64::from(carry);
        (x & 0xffff_ffff, x >> 32 != 0)
    }
}

/// The borrow is kept as the complement of a carry would be: set where the difference was negative.
fn sub_borrow(wide: bool, a: u64, b: u64, borrow: bool) -> (u64, bool) {
    if wide {
        let (x, o) = a.overflowing_sub(b);
        let (y, p) = x.overflowing_sub(u64::from(borrow));
        (y, o || p)
    } else {
        let x = a.wrapping_sub(b).wrapping_sub(u64::from(borrow));
        (x & 0xffff_ffff, x >> 32 != 0)
    }
}

fn product(wide: bool, high: bool, a: u64, b: u64) -> u64 {
    let full = u128::from(a) * u128::from(b);
    match (wide, high) {
        (true, true) => (full >> 64) as u64,
        (true, false) => full as u64,
        (false, true) => (full as u64) >> 32,
        (false, false) => full as u64 & 0xffff_ffff,
    }
}

#[rustfmt::skip]
macro_rules! compare {
    ($t:ident, $shape:literal, $ty:literal, $read:ty, |$a:ident| $conv:expr) => {{
        compare!(@ $t, $ty, $read, |$a| $conv, ["eq"], ==);
        compare!(@ $t, $ty, $read, |$a| $conv, ["ne"], !=);
        // The second are the unsigned names.
        compare!(@ $t, $ty, $read, |$a| $conv, ["lt", "lo"], <);
        compare!(@ $t, $ty, $read, |$a| $conv, ["le", "ls"], <=);
        compare!(@ $t, $ty, $read, |$a| $conv, ["gt", "hi"], >);
        compare!(@ $t, $ty, $read, |$a| $conv, ["ge", "hs"], >=);
    }};
    (@ $t:ident, $ty:literal, $read:ty, |$a:ident| $conv:expr, [$($name:literal),*], $cmp:tt) => {{
        let op: Op = |w, _, i| {
            let bits = test2(w, i, |x: $read, y: $read| { let x = { let $a = x; $conv }; let y = { let $a = y; $conv }; x $cmp y });
            setp(w, i, bits);
        };
        for (join, x) in JOINS {
            $( $t.add(format!("setp.{}{join}.{}", $name, $ty), if std::mem::size_of::<$read>() == 8 { "Sq" } else { "Sr" }, x, op); )*
        }
    }};
}

mod fill {
    use super::*;
    both!(fast, base, |t| {
        rows!(t, "rrr", ["add.s32", "add.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.wrapping_add(b)));
        rows!(t, "rrr", ["add.s16", "add.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a.wrapping_add(b))));
        rows!(t, "qqq", ["add.s64", "add.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.wrapping_add(b)));
        rows!(t, "rrr", ["add.sat.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| (a as i32).saturating_add(b as i32)
            as u32));
        rows!(t, "rrr", ["sub.s32", "sub.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.wrapping_sub(b)));
        rows!(t, "rrr", ["sub.s16", "sub.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a.wrapping_sub(b))));
        rows!(t, "qqq", ["sub.s64", "sub.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.wrapping_sub(b)));
        rows!(t, "rrr", ["sub.sat.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| (a as i32).saturating_sub(b as i32)
            as u32));

        rows!(t, "rrr", ["mul.lo.s32", "mul.lo.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.wrapping_mul(b)));
        rows!(t, "rrr", ["mul.lo.s16", "mul.lo.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a.wrapping_mul(b))));
        rows!(t, "qqq", ["mul.lo.s64", "mul.lo.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.wrapping_mul(b)));
        rows!(t, "rrr", ["mul.hi.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| ((u64::from(a) * u64::from(b)) >> 32)
            as u32));
        rows!(t, "rrr", ["mul.hi.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
        }));
        rows!(t, "rrr", ["mul.hi.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| (lo16(a) * lo16(b)) >> 16));
        rows!(t, "rrr", ["mul.hi.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(((s16(a) * s16(b)) >> 16) as u32)));
        rows!(t, "qqq", ["mul.hi.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| ((u128::from(a) * u128::from(b)) >> 64)
            as u64));
        rows!(t, "qqq", ["mul.hi.s64"], |w, _, i| map2(w, i, |a: u64, b: u64| {
            ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
        }));
        rows!(t, "qrr", ["mul.wide.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| u64::from(a) * u64::from(b)));
        rows!(t, "qrr", ["mul.wide.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            (i64::from(a as i32) * i64::from(b as i32)) as u64
        }));
        rows!(t, "rrr", ["mul.wide.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a) * lo16(b)));
        rows!(t, "rrr", ["mul.wide.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| (s16(a) * s16(b)) as u32));
        rows!(t, "rrr", ["mul24.lo.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| (a & 0xff_ffff)
            .wrapping_mul(b & 0xff_ffff)));
        rows!(t, "rrrr", ["mad.lo.s32", "mad.lo.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            a.wrapping_mul(b).wrapping_add(c)
        }));
        rows!(t, "rrrr", ["mad.lo.s16", "mad.lo.u16"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            lo16(a.wrapping_mul(b).wrapping_add(c))
        }));
        rows!(t, "qqqq", ["mad.lo.s64", "mad.lo.u64"], |w, _, i| map3(w, i, |a: u64, b: u64, c: u64| {
            a.wrapping_mul(b).wrapping_add(c)
        }));
        rows!(t, "rrrr", ["mad.hi.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
        }));
        rows!(t, "rrrr", ["mad.hi.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            (((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32).wrapping_add(c)
        }));
        rows!(t, "qqqq", ["mad.hi.u64"], |w, _, i| map3(w, i, |a: u64, b: u64, c: u64| {
            (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)
        }));
        rows!(t, "qrrq", ["mad.wide.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u64| {
            (u64::from(a) * u64::from(b)).wrapping_add(c)
        }));
        rows!(t, "qrrq", ["mad.wide.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u64| {
            ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)
        }));
        rows!(t, "rrrr", ["mad.wide.u16"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            (lo16(a) * lo16(b)).wrapping_add(c)
        }));
        rows!(t, "rrrr", ["mad.wide.s16"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            ((s16(a) * s16(b)) as u32).wrapping_add(c)
        }));

        // A division by zero gives all ones, as the hardware's routine does; the manual leaves it open.
        rows!(t, "rrr", ["div.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.checked_div(b).unwrap_or(!0)));
        rows!(t, "rrr", ["div.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            if b == 0 { !0 } else { (a as i32).wrapping_div(b as i32) as u32 }
        }));
        rows!(t, "rrr", ["rem.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.checked_rem(b).unwrap_or(a)));
        rows!(t, "rrr", ["rem.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
        }));
        rows!(t, "qqq", ["div.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.checked_div(b).unwrap_or(!0)));
        rows!(t, "qqq", ["div.s64"], |w, _, i| map2(w, i, |a: u64, b: u64| {
            if b == 0 { !0 } else { (a as i64).wrapping_div(b as i64) as u64 }
        }));
        rows!(t, "qqq", ["rem.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.checked_rem(b).unwrap_or(a)));
        rows!(t, "qqq", ["rem.s64"], |w, _, i| map2(w, i, |a: u64, b: u64| {
            if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
        }));
        rows!(t, "rrr", ["div.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a)
            .checked_div(lo16(b))
            .unwrap_or(0xffff)));
        rows!(t, "rrr", ["rem.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a)
            .checked_rem(lo16(b))
            .unwrap_or(lo16(a))));
        rows!(t, "rrr", ["div.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            if lo16(b) == 0 { 0xffff } else { lo16((s16(a) / s16(b)) as u32) }
        }));
        rows!(t, "rrr", ["rem.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| {
            if lo16(b) == 0 { lo16(a) } else { lo16((s16(a) % s16(b)) as u32) }
        }));

        rows!(t, "rr", ["abs.s32"], |w, _, i| map1(w, i, |a: u32| (a as i32).wrapping_abs() as u32));
        rows!(t, "qq", ["abs.s64"], |w, _, i| map1(w, i, |a: u64| (a as i64).wrapping_abs() as u64));
        rows!(t, "rr", ["abs.s16"], |w, _, i| map1(w, i, |a: u32| lo16(s16(a).wrapping_abs() as u32)));
        rows!(t, "rr", ["neg.s32"], |w, _, i| map1(w, i, |a: u32| a.wrapping_neg()));
        rows!(t, "qq", ["neg.s64"], |w, _, i| map1(w, i, |a: u64| a.wrapping_neg()));
        rows!(t, "rr", ["neg.s16"], |w, _, i| map1(w, i, |a: u32| lo16(a.wrapping_neg())));
        rows!(t, "rrr", ["min.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| (a as i32).min(b as i32) as u32));
        rows!(t, "rrr", ["min.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.min(b)));
        rows!(t, "rrr", ["min.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(s16(a).min(s16(b)) as u32)));
        rows!(t, "rrr", ["min.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a).min(lo16(b))));
        rows!(t, "qqq", ["min.s64"], |w, _, i| map2(w, i, |a: u64, b: u64| (a as i64).min(b as i64) as u64));
        rows!(t, "qqq", ["min.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.min(b)));
        rows!(t, "rrr", ["max.s32"], |w, _, i| map2(w, i, |a: u32, b: u32| (a as i32).max(b as i32) as u32));
        rows!(t, "rrr", ["max.u32"], |w, _, i| map2(w, i, |a: u32, b: u32| a.max(b)));
        rows!(t, "rrr", ["max.s16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(s16(a).max(s16(b)) as u32)));
        rows!(t, "rrr", ["max.u16"], |w, _, i| map2(w, i, |a: u32, b: u32| lo16(a).max(lo16(b))));
        rows!(t, "qqq", ["max.s64"], |w, _, i| map2(w, i, |a: u64, b: u64| (a as i64).max(b as i64) as u64));
        rows!(t, "qqq", ["max.u64"], |w, _, i| map2(w, i, |a: u64, b: u64| a.max(b)));
        rows!(t, "rrrr", ["sad.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| a.abs_diff(b).wrapping_add(c)));
        rows!(t, "rrrr", ["sad.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            (a as i32).abs_diff(b as i32).wrapping_add(c)
        }));

        rows!(t, "rrr", ["and.b32", "and.b16"], |w, _, i| map2(w, i, |a: u32, b: u32| a & b));
        rows!(t, "rrr", ["or.b32", "or.b16"], |w, _, i| map2(w, i, |a: u32, b: u32| a | b));
        rows!(t, "rrr", ["xor.b32", "xor.b16"], |w, _, i| map2(w, i, |a: u32, b: u32| a ^ b));
        rows!(t, "rr", ["not.b32"], |w, _, i| map1(w, i, |a: u32| !a));
        rows!(t, "rr", ["not.b16"], |w, _, i| map1(w, i, |a: u32| lo16(!a)));
        rows!(t, "rr", ["cnot.b32"], |w, _, i| map1(w, i, |a: u32| u32::from(a == 0)));
        rows!(t, "qqq", ["and.b64"], |w, _, i| map2(w, i, |a: u64, b: u64| a & b));
        rows!(t, "qqq", ["or.b64"], |w, _, i| map2(w, i, |a: u64, b: u64| a | b));
        rows!(t, "qqq", ["xor.b64"], |w, _, i| map2(w, i, |a: u64, b: u64| a ^ b));
        rows!(t, "qq", ["not.b64"], |w, _, i| map1(w, i, |a: u64| !a));
        rows!(t, "ppp", ["and.pred"], |w, _, i| w.put_pred(i.d, w.pred(i.s[0]) & w.pred(i.s[1])));
        rows!(t, "ppp", ["or.pred"], |w, _, i| w.put_pred(i.d, w.pred(i.s[0]) | w.pred(i.s[1])));
        rows!(t, "ppp", ["xor.pred"], |w, _, i| w.put_pred(i.d, w.pred(i.s[0]) ^ w.pred(i.s[1])));
        rows!(t, "pp", ["not.pred"], |w, _, i| w.put_pred(i.d, !w.pred(i.s[0])));
        rows!(t, "pp", ["mov.pred"], |w, _, i| w.put_pred(i.d, w.pred(i.s[0])));

        // Amounts beyond the width shift everything out.
        rows!(t, "rrr", ["shl.b32"], |w, _, i| map2(w, i, |a: u32, n: u32| if n > 31 { 0 } else { a << n }));
        rows!(t, "rrr", ["shl.b16"], |w, _, i| map2(w, i, |a: u32, n: u32| if n > 15 { 0 } else { lo16(a << n) }));
        rows!(t, "qqr", ["shl.b64"], |w, _, i| map2(w, i, |a: u64, n: u32| if n > 63 { 0 } else { a << n }));
        rows!(t, "rrr", ["shr.u32", "shr.b32"], |w, _, i| map2(w, i, |a: u32, n: u32| if n > 31 { 0 } else { a >> n }));
        rows!(t, "rrr", ["shr.s32"], |w, _, i| map2(w, i, |a: u32, n: u32| ((a as i32) >> n.min(31)) as u32));
        rows!(t, "rrr", ["shr.u16", "shr.b16"], |w, _, i| map2(w, i, |a: u32, n: u32| if n > 15 {
            0
        } else {
            lo16(a) >> n
        }));
        rows!(t, "rrr", ["shr.s16"], |w, _, i| map2(w, i, |a: u32, n: u32| lo16((s16(a) >> n.min(15)) as u32)));
        rows!(t, "qqr", ["shr.u64", "shr.b64"], |w, _, i| map2(w, i, |a: u64, n: u32| if n > 63 { 0 } else { a >> n }));
        rows!(t, "qqr", ["shr.s64"], |w, _, i| map2(w, i, |a: u64, n: u32| ((a as i64) >> n.min(63)) as u64));
        rows!(t, "rrrr", ["shf.l.wrap.b32"], |w, _, i| map3(w, i, |a: u32, b: u32, n: u32| {
            ((u64::from(b) << 32 | u64::from(a)) << (n & 31) >> 32) as u32
        }));
        rows!(t, "rrrr", ["shf.l.clamp.b32"], |w, _, i| map3(w, i, |a: u32, b: u32, n: u32| {
            ((u64::from(b) << 32 | u64::from(a)) << n.min(32) >> 32) as u32
        }));
        rows!(t, "rrrr", ["shf.r.wrap.b32"], |w, _, i| map3(w, i, |a: u32, b: u32, n: u32| {
            ((u64::from(b) << 32 | u64::from(a)) >> (n & 31)) as u32
        }));
        rows!(t, "rrrr", ["shf.r.clamp.b32"], |w, _, i| map3(w, i, |a: u32, b: u32, n: u32| {
            ((u64::from(b) << 32 | u64::from(a)) >> n.min(32)) as u32
        }));
        rows!(t, "rrrri", ["lop3.b32"], |w, _, i| {
            let lut = i.offset as u32;
            map3(w, i, |a: u32, b: u32, c: u32| lop3(a, b, c, lut));
        });
        rows!(t, "rrrr", ["prmt.b32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| prmt(a, b, c)));
        rows!(t, "rrrr", ["bfe.u32"], |w, _, i| map3(w, i, |a: u32, p: u32, n: u32| bfe64(a.into(), p, n, 32, false)
            as u32));
        rows!(t, "rrrr", ["bfe.s32"], |w, _, i| map3(w, i, |a: u32, p: u32, n: u32| bfe64(a.into(), p, n, 32, true)
            as u32));
        rows!(t, "qqrr", ["bfe.u64"], |w, _, i| map3(w, i, |a: u64, p: u32, n: u32| bfe64(a, p, n, 64, false)));
        rows!(t, "qqrr", ["bfe.s64"], |w, _, i| map3(w, i, |a: u64, p: u32, n: u32| bfe64(a, p, n, 64, true)));
        rows!(t, "rrrrr", ["bfi.b32"], |w, _, i| map4(w, i, |a: u32, b: u32, p: u32, n: u32| {
            bfi64(a.into(), b.into(), p, n, 32) as u32
        }));
        rows!(t, "qqqrr", ["bfi.b64"], |w, _, i| map4(w, i, |a: u64, b: u64, p: u32, n: u32| bfi64(a, b, p, n, 64)));
        rows!(t, "rr", ["popc.b32"], |w, _, i| map1(w, i, |a: u32| a.count_ones()));
        rows!(t, "rq", ["popc.b64"], |w, _, i| map1(w, i, |a: u64| a.count_ones()));
        rows!(t, "rr", ["clz.b32"], |w, _, i| map1(w, i, |a: u32| a.leading_zeros()));
        rows!(t, "rq", ["clz.b64"], |w, _, i| map1(w, i, |a: u64| a.leading_zeros()));
        rows!(t, "rr", ["brev.b32"], |w, _, i| map1(w, i, |a: u32| a.reverse_bits()));
        rows!(t, "qq", ["brev.b64"], |w, _, i| map1(w, i, |a: u64| a.reverse_bits()));
        rows!(t, "rr", ["bfind.u32"], |w, _, i| map1(w, i, |a: u32| bfind(a.into(), 32, false)));
        rows!(t, "rr", ["bfind.s32"], |w, _, i| map1(w, i, |a: u32| bfind(a.into(), 32, true)));
        rows!(t, "rq", ["bfind.u64"], |w, _, i| map1(w, i, |a: u64| bfind(a, 64, false)));
        rows!(t, "rq", ["bfind.s64"], |w, _, i| map1(w, i, |a: u64| bfind(a, 64, true)));
        rows!(t, "rr", ["bfind.shiftamt.u32"], |w, _, i| map1(w, i, |a: u32| {
            let k = bfind(a.into(), 32, false);
            if k == u32::MAX { k } else { 31 - k }
        }));
        rows!(t, "rrrr", ["dp2a.lo.u32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, false, (false, false))
        }));
        rows!(t, "rrrr", ["dp2a.lo.u32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, false, (false, true))
        }));
        rows!(t, "rrrr", ["dp2a.lo.s32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, false, (true, false))
        }));
        rows!(t, "rrrr", ["dp2a.lo.s32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, false, (true, true))
        }));
        rows!(t, "rrrr", ["dp2a.hi.u32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, true, (false, false))
        }));
        rows!(t, "rrrr", ["dp2a.hi.u32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, true, (false, true))
        }));
        rows!(t, "rrrr", ["dp2a.hi.s32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, true, (true, false))
        }));
        rows!(t, "rrrr", ["dp2a.hi.s32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| {
            dp2a(a, b, c, true, (true, true))
        }));
        rows!(t, "rrrr", ["dp4a.u32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| dp4a(a, b, c, false, false)));
        rows!(t, "rrrr", ["dp4a.s32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| dp4a(a, b, c, true, true)));
        rows!(t, "rrrr", ["dp4a.s32.u32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| dp4a(a, b, c, true, false)));
        rows!(t, "rrrr", ["dp4a.u32.s32"], |w, _, i| map3(w, i, |a: u32, b: u32, c: u32| dp4a(a, b, c, false, true)));

        for ty in ["b16", "u16", "s16", "b32", "u32", "s32", "f32", "f16", "bf16"] {
            t.add(format!("selp.{ty}"), "rrrp", 0, |w, _, i| {
                let p = w.pred(i.s[2]);
                let (a, b) = (*w.get::<u32>(i.s[0]), *w.get::<u32>(i.s[1]));
                let mut out = [0u32; LANES];
                for k in 0..LANES {
                    out[k] = if p >> k & 1 != 0 { a[k] } else { b[k] };
                }
                w.put(i.d, &out);
            });
        }
        for ty in ["b64", "u64", "s64", "f64"] {
            t.add(format!("selp.{ty}"), "qqqp", 0, |w, _, i| {
                let p = w.pred(i.s[2]);
                let (a, b) = (*w.get::<u64>(i.s[0]), *w.get::<u64>(i.s[1]));
                let mut out = [0u64; LANES];
                for k in 0..LANES {
                    out[k] = if p >> k & 1 != 0 { a[k] } else { b[k] };
                }
                w.put(i.d, &out);
            });
        }
        for ty in ["b16", "u16", "s16", "b32", "u32", "s32", "f32", "f16", "bf16"] {
            t.add(format!("mov.{ty}"), "rr", 0, |w, _, i| map1(w, i, |a: u32| a));
        }
        for ty in ["b64", "u64", "s64", "f64"] {
            t.add(format!("mov.{ty}"), "qq", 0, |w, _, i| map1(w, i, |a: u64| a));
        }

        compare!(t, "S", "s32", u32, |a| a as i32);
        compare!(t, "S", "u32", u32, |a| a);
        compare!(t, "S", "b32", u32, |a| a);
        compare!(t, "S", "s16", u32, |a| s16(a));
        compare!(t, "S", "u16", u32, |a| lo16(a));
        compare!(t, "S", "b16", u32, |a| lo16(a));
        compare!(t, "S", "s64", u64, |a| a as i64);
        compare!(t, "S", "u64", u64, |a| a);
        compare!(t, "S", "b64", u64, |a| a);

        for (ty, shape3, shape4, wide) in
            [("u32", "rrr", "rrrr", 0), ("s32", "rrr", "rrrr", 0), ("u64", "qqq", "qqqq", 1), ("s64", "qqq", "qqqq", 1)]
        {
            for (name, flags) in [("add.cc", 4), ("addc", 2), ("addc.cc", 6)] {
                t.add(format!("{name}.{ty}"), shape3, flags | wide, |w, _, i| {
                    carried(w, i, |a, b, _, carry| add_carry(i.x & 1 != 0, a, b, carry));
                });
            }
            for (name, flags) in [("sub.cc", 4), ("subc", 2), ("subc.cc", 6)] {
                t.add(format!("{name}.{ty}"), shape3, flags | wide, |w, _, i| {
                    carried(w, i, |a, b, _, carry| sub_borrow(i.x & 1 != 0, a, b, carry));
                });
            }
            if ty.starts_with('u') {
                for (half, high) in [("lo", 0), ("hi", 8)] {
                    for (name, tail, flags) in [("mad", ".cc", 4), ("madc", "", 2), ("madc", ".cc", 6)] {
                        t.add(format!("{name}.{half}{tail}.{ty}"), shape4, flags | wide | high, |w, _, i| {
                            carried(w, i, |a, b, c, carry| {
                                let wide = i.x & 1 != 0;
                                add_carry(wide, product(wide, i.x & 8 != 0, a, b), c, carry)
                            });
                        });
                    }
                }
            }
        }
    });
}
pub(crate) use fill::base;
#[cfg(target_arch = "x86_64")]
pub(crate) use fill::fast;
