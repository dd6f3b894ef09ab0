//! How close two computations of one value must come. The one place that says so, for every test of passes and targets.

use mdl_graph::DType;

/// The largest difference allowed between two values of `dtype`, each a sum of `n_summed` terms of size about 1, relative to
/// the larger of 1 and the value.
///
/// A random walk of roundings grows with the square root of the number of terms; 8 leaves room for the few operations before
/// and after the sum. Integers and booleans must be equal.
pub fn tolerance(dtype: DType, n_summed: u64) -> f64 {
    let unit = match dtype {
        DType::F64 => f64::EPSILON,
        DType::F32 => f64::from(f32::EPSILON),
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        DType::I64 | DType::I32 | DType::I8 | DType::U8 | DType::Bool => return 0.0,
    };
    8.0 * unit * (n_summed.max(1) as f64).sqrt()
}

/// True when `a` and `b` count as the same number: equal, both NaN, or within `tolerance` of the larger.
pub fn is_close(a: f64, b: f64, tolerance: f64) -> bool {
    let near = || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0);
    a == b || (a.is_nan() && b.is_nan()) || (a.is_finite() && b.is_finite() && near())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_and_nan_are_close_to_themselves_only() {
        assert!(is_close(f64::INFINITY, f64::INFINITY, 1e-6));
        assert!(!is_close(f64::INFINITY, 1e300, 1e-6));
        assert!(is_close(f64::NAN, f64::NAN, 1e-6));
        assert!(!is_close(f64::NAN, 0.0, 1e-6));
        assert!(is_close(1000.0, 1000.001, 2e-6));
        assert!(!is_close(1.0, 1.00001, 2e-6));
        assert_eq!(tolerance(DType::I32, 100), 0.0);
    }
}
