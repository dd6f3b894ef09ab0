//! Rounding of f32 results other than to nearest, and the flags that say which.

pub(crate) const FTZ: u32 = 1;
pub(crate) const SAT: u32 = 2;
pub(crate) const RELU: u32 = 4;
/// Two bits: to nearest even, to zero, down, up.
pub(crate) const RZ: u32 = 1 << 4;
pub(crate) const RM: u32 = 2 << 4;
pub(crate) const RP: u32 = 3 << 4;
pub(crate) const ROUND: u32 = 3 << 4;
pub(crate) const NAN: u32 = 1 << 6;

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub(crate) fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 { x & 0x8000_0000 } else { x }
}

#[inline(always)]
pub(crate) fn input(flags: u32, x: u32) -> f32 {
    f32::from_bits(if flags & FTZ != 0 { flush(x) } else { x })
}

#[inline(always)]
pub(crate) fn output(flags: u32, x: f32) -> u32 {
    let mut x = x;
    if flags & SAT != 0 {
        // NaN becomes 0.
        x = if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 };
    }
    if flags & FTZ != 0 { flush(x.to_bits()) } else { x.to_bits() }
}

/// The f32 of `high + low`, `low` being what rounding left of `high`, by the direction in `flags`.
pub(crate) fn directed(flags: u32, high: f64, low: f64) -> f32 {
    let near = high as f32;
    if near.is_nan() || flags & ROUND == 0 || high.is_infinite() {
        return near;
    }
    let error = f64::from(near) - high;
    // Sign of (rounded - exact).
    let over = error > low || (near.is_infinite() && near > 0.0);
    let under = error < low || (near.is_infinite() && near < 0.0);
    match flags & ROUND {
        RZ if over && (high > 0.0) => near.next_down(),
        RZ if under && (high < 0.0) => near.next_up(),
        RM if over => near.next_down(),
        RP if under => near.next_up(),
        _ => near,
    }
}

/// `a + b` and what its rounding left, exactly.
pub(crate) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    if !s.is_finite() {
        return (s, 0.0);
    }
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

pub(crate) fn add_directed(flags: u32, a: f32, b: f32) -> f32 {
    if a == 0.0 && b == 0.0 || a == -b {
        // x + -x is +0, but -0 when rounding down.
        return if a == 0.0 && b == 0.0 && a.is_sign_negative() == b.is_sign_negative() {
            a
        } else if flags & ROUND == RM {
            -0.0
        } else {
            0.0
        };
    }
    let (high, low) = two_sum(f64::from(a), f64::from(b));
    directed(flags, high, low)
}

pub(crate) fn mul_directed(flags: u32, a: f32, b: f32) -> f32 {
    directed(flags, f64::from(a) * f64::from(b), 0.0)
}

pub(crate) fn fma_directed(flags: u32, a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    if product == -f64::from(c) && c != 0.0 {
        return if flags & ROUND == RM { -0.0 } else { 0.0 };
    }
    let (high, low) = two_sum(product, f64::from(c));
    if flags & ROUND == 0 {
        return a.mul_add(b, c);
    }
    directed(flags, high, low)
}

/// Of a division or a root whose f64 value is `high` with the sign of its error in `low`.
pub(crate) fn quotient_directed(flags: u32, a: f32, b: f32) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let q = a / b;
    if !q.is_finite() || q == 0.0 {
        return directed(0, q, 0.0);
    }
    let rest = (-q).mul_add(b, a) / b;
    directed(flags, q, rest)
}

pub(crate) fn root_directed(flags: u32, a: f32) -> f32 {
    let a = f64::from(a);
    let r = a.sqrt();
    if !r.is_finite() || r == 0.0 {
        return directed(0, r, 0.0);
    }
    directed(flags, r, (-r).mul_add(r, a) / (2.0 * r))
}
