//! Elementary functions without branches: of one `f32`, so that a loop over them becomes vector code on every machine, and of
//! any other [`Lane`].
//!
//! Only additions, multiplications, comparisons and bit operations, each rounded once and never contracted: the same bits
//! on every instruction set. Errors are measured by the tests below over the whole range. The polynomials are least-squares fits at
//! Chebyshev nodes, weighted for relative error of the result; each states the error of the fit.

#![allow(clippy::excessive_precision, clippy::approx_constant, reason = "coefficients of fits, not constants")]

use super::lane::{Bits, Lane};

/// 1.5 · 2²³: adding it rounds a number below 2²² to an integer, which then is in the low bits.
const ROUNDER: f32 = 12_582_912.0;
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has nine bits, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_375;
const LN2_LOW: f32 = -2.121_944_4e-4;

#[inline(always)]
fn horner<L: Lane, const N: usize>(x: L, coefs: [f32; N]) -> L {
    let mut sum = x.constant(coefs[N - 1]);
    let mut at = N - 1;
    while at > 0 {
        at -= 1;
        sum = sum * x + x.constant(coefs[at]);
    }
    sum
}

/// 2^n for -126 <= n <= 127.
#[inline(always)]
fn two_to<B: Bits>(n: B) -> B::Lane {
    n.add(n.constant(127)).shift_left(23).as_float()
}

#[inline(always)]
pub(crate) fn exp<L: Lane>(x: L) -> L {
    // Beyond these ends the result is 0 or infinite whatever x is; computing with 0 instead avoids slow tiny numbers.
    let vanishes = x.less(x.constant(-104.0));
    let overflows = x.constant(89.0).less(x);
    let safe = L::select(vanishes | overflows, x.constant(0.0), x);
    let shifted = safe * x.constant(LOG2_E) + x.constant(ROUNDER);
    let n = shifted.bits().sub(shifted.bits().constant(ROUNDER.to_bits()));
    let whole = shifted - x.constant(ROUNDER);
    let r = safe - whole * x.constant(LN2_HIGH) - whole * x.constant(LN2_LOW);
    // (e^r - 1 - r) / r²; error of the fit 5e-11.
    let tail = horner(r, [0.500_000_009, 0.166_666_668, 4.166_624_7e-2, 8.333_278e-3, 1.394_760_6e-3, 1.991_102_3e-4]);
    let y = (tail * (r * r) + r) + x.constant(1.0);
    // Two steps reach the denormal numbers and infinity.
    let half = n.shift_right_signed(1);
    let y = y * two_to(half) * two_to(n.sub(half));
    let y = L::select(vanishes, x.constant(0.0), y);
    L::select(overflows, x.constant(f32::INFINITY), y)
}

#[inline(always)]
pub(crate) fn log<L: Lane>(x: L) -> L {
    let tiny = x.less(x.constant(f32::MIN_POSITIVE));
    let bits = L::select(tiny, x * x.constant(8_388_608.0), x).bits();
    // The mantissa in [sqrt ½, sqrt 2): 0x3f3504f3 is sqrt ½.
    let root = bits.constant(0x3f35_04f3);
    let offset = bits.sub(root);
    let exponent = offset.shift_right_signed(23).to_float() - L::select(tiny, x.constant(23.0), x.constant(0.0));
    let m = offset.and(bits.constant(0x007f_ffff)).add(root).as_float();
    let f = m - x.constant(1.0);
    // (ln(1 + f) - f + f²/2) / f³; error of the fit 8e-10.
    let tail = horner(
        f,
        [
            0.333_333_1,
            -0.250_000_01,
            0.200_022_46,
            -0.166_685_13,
            0.142_177_63,
            -0.123_964_45,
            0.118_909_89,
            -0.117_266_03,
            6.800_912e-2,
        ],
    );
    let square = f * f;
    let y = tail * f * square + exponent * x.constant(LN2_LOW) - x.constant(0.5) * square;
    let y = (y + f) + exponent * x.constant(LN2_HIGH);
    let y = L::select(x.equal(x.constant(f32::INFINITY)), x, y);
    let y = L::select(x.equal(x.constant(0.0)), x.constant(f32::NEG_INFINITY), y);
    L::select(x.less(x.constant(0.0)) | x.is_nan(), x.constant(f32::NAN), y)
}

#[inline(always)]
pub(crate) fn tanh<L: Lane>(x: L) -> L {
    let z = x * x;
    // tanh x / x as a ratio of polynomials in x², all of whose terms are positive; error of the fit 2e-8 for |x| <= 9, beyond
    // which tanh rounds to 1.
    let above = horner(z, [1.0, 0.133_809_76, 3.495_528e-3, 2.060_806_9e-5, 1.335_324e-8]);
    let below = horner(z, [1.0, 0.467_142_92, 2.587_675_6e-2, 3.285_535_3e-4, 7.775_979e-7]);
    let inside = x * above / below;
    L::select(x.constant(9.0).less(x.abs()), x.constant(1.0).with_sign_of(x), inside)
}

#[inline(always)]
pub(crate) fn erf<L: Lane>(x: L) -> L {
    let size = x.abs();
    let z = x * x;
    // erf x / x in x²; error of the fit 1e-9 for |x| <= 1.
    let ratio =
        horner(z, [1.128_379_2, -0.376_126_27, 0.112_835_97, -2.685_433e-2, 5.189_312e-3, -8.018_855e-4, 7.882_497e-5]);
    let small = x * ratio;
    let four = x.constant(4.0);
    let clamped = L::select(four.less(size), four, size);
    // ln(1 - erf x); error of the fit 3e-11 of the result for 1 <= x <= 4, beyond which erf rounds to 1.
    let log_rest = horner(
        clamped,
        [
            1.914_785e-4,
            -1.129_593_9,
            -0.633_190_56,
            -0.108_448_85,
            2.522_662_8e-2,
            -4.211_114_3e-3,
            4.426_076_8e-4,
            -2.179_032_1e-5,
        ],
    );
    let large = (x.constant(1.0) - exp(log_rest)).with_sign_of(x);
    let y = L::select(size.less(x.constant(1.0)), small, large);
    L::select(x.is_nan(), x, y)
}

/// To `bf16`, to nearest even, as the upper half of the result; NaN stays NaN.
#[inline(always)]
pub(crate) fn round_bf16<L: Lane>(x: L) -> L::Bits {
    let bits = x.bits();
    let odd = bits.shift_right(16).and(bits.constant(1));
    let rounded = bits.add(odd.add(bits.constant(0x7fff)));
    let kept = L::Bits::select(x.is_nan(), bits.or(bits.constant(0x40_0000)), rounded);
    kept.and(bits.constant(0xffff_0000))
}

/// Above this size `sin` and `cos` are left to the standard library: the reduction below loses its precision.
pub(crate) const TURNS_LIMIT: f32 = 1e6;

/// sin(x + quarter · π/2) for |x| up to [`TURNS_LIMIT`]: the reduction to a quarter turn is in `f64`.
#[inline(always)]
pub(crate) fn sin_quarter(x: f32, quarter: i32) -> f32 {
    const ROUNDER_64: f64 = 6_755_399_441_055_744.0;
    /// π/2 in two parts; the first has 33 bits, so that its product with a number of turns is exact.
    const HALF_PI_HIGH: f64 = 1.570_796_326_734_125_6;
    const HALF_PI_LOW: f64 = 6.077_100_506_506_192e-11;
    let wide = f64::from(x);
    let shifted = wide * std::f64::consts::FRAC_2_PI + ROUNDER_64;
    let turns = (shifted.to_bits() as i32).wrapping_add(quarter);
    let whole = shifted - ROUNDER_64;
    let r = ((wide - whole * HALF_PI_HIGH) - whole * HALF_PI_LOW) as f32;
    let z = r * r;
    // (sin r - r) / r³ and (cos r - 1 + r²/2) / r⁴ in r²; errors of the fits 5e-12 and 1e-13.
    let sine = r + r * z * horner(z, [-0.166_666_67, 8.333_329e-3, -1.983_928e-4, 2.717_825_8e-6]);
    let cosine = 1.0 - 0.5 * z + z * z * horner(z, [4.166_666_7e-2, -1.388_888_3e-3, 2.479_945e-5, -2.720_473_6e-7]);
    let y = if turns & 1 == 1 { cosine } else { sine };
    let y = if turns & 2 == 2 { -y } else { y };
    if x.is_finite() { y } else { f32::NAN }
}

/// erf in `f64`, for the reference and for `f64` kernels: the Maclaurin series near 0, the continued fraction of erfc beyond.
pub(crate) fn erf_f64(x: f64) -> f64 {
    let size = x.abs();
    if x.is_nan() {
        return x;
    }
    let value = if size < 3.0 {
        // 2/sqrt π · e^(-x²) · Σ 2^n x^(2n+1) / (2n+1)!!, all terms positive.
        let (mut term, mut sum, mut n) = (size, size, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * size * size / (2.0 * n + 1.0);
            sum += term;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-size * size).exp() * sum
    } else if size < 6.5 {
        // erfc x = e^(-x²)/sqrt π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …)))).
        let tail = (1..=80).rev().fold(size, |tail, n| size + f64::from(n) * 0.5 / tail);
        1.0 - (-size * size).exp() * 0.5 * std::f64::consts::FRAC_2_SQRT_PI / tail
    } else {
        1.0
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The distance in units in the last place of the true value.
    fn ulps(got: f32, want: f64) -> f64 {
        let rounded = want as f32;
        if rounded == got || (got.is_nan() && want.is_nan()) {
            return 0.0;
        }
        if !rounded.is_finite() || !got.is_finite() {
            // At the edge of overflow the neighbour is one unit away.
            return if rounded.is_infinite() && f64::from(got) == f64::from(f32::MAX).copysign(want) {
                1.0
            } else {
                f64::MAX
            };
        }
        let exponent = (rounded.abs().to_bits() >> 23).max(1) as i32 - 127 - 23;
        (f64::from(got) - want).abs() / 2f64.powi(exponent)
    }

    /// Every 509th float, all exponents, both signs, infinities, NaN, zeros.
    fn everywhere() -> impl Iterator<Item = f32> {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, f32::MIN_POSITIVE, 1e-45];
        (0..=u32::MAX).step_by(509).map(f32::from_bits).chain(special)
    }

    fn worst(name: &str, limit: f64, got: fn(f32) -> f32, want: fn(f64) -> f64, domain: fn(f32) -> bool) {
        let mut most = (0.0, 0.0);
        for x in everywhere().filter(|x| domain(*x)) {
            let error = ulps(got(x), want(f64::from(x)));
            if error > most.0 {
                most = (error, x);
            }
        }
        assert!(most.0 <= limit, "{name} is {} units off at {:e}", most.0, most.1);
    }

    #[test]
    fn exp_is_within_two_units() {
        worst("exp", 2.0, exp, f64::exp, |_| true);
    }

    #[test]
    fn log_is_within_two_units() {
        worst("log", 2.0, log, f64::ln, |_| true);
    }

    #[test]
    fn tanh_is_within_five_units() {
        worst("tanh", 5.0, tanh, f64::tanh, |_| true);
    }

    #[test]
    fn erf_is_within_three_units() {
        worst("erf", 3.0, erf, erf_f64, |_| true);
    }

    #[test]
    fn sine_and_cosine_are_within_two_units() {
        let near = |x: f32| x.is_nan() || x.abs() <= TURNS_LIMIT;
        worst("sin", 2.0, |x| sin_quarter(x, 0), f64::sin, near);
        worst("cos", 2.0, |x| sin_quarter(x, 1), f64::cos, near);
    }

    #[test]
    fn erf_f64_has_known_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, want) in [
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (4.0, 0.999_999_984_582_742_1),
        ] {
            assert!((erf_f64(x) - want).abs() < 1e-15, "{x}");
            assert_eq!(erf_f64(-x), -erf_f64(x));
        }
    }
}
