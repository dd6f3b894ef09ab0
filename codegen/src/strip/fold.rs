//! A strip to one number, by a tree that depends on the length alone: 16 lanes, element i in lane i mod 16, then halves.

const LANES: usize = 16;

/// A fold of `n` elements from its neutral element, written to `out`.
#[inline(always)]
pub(super) fn strip<T: Copy>(neutral: T, join: impl Fn(T, T) -> T) -> impl Fn(*mut u8, *const u8, u64) {
    #[inline(always)]
    move |out, x, n| {
        let (out, x, n) = (out.cast::<T>(), x.cast::<T>(), n as usize);
        let mut lanes = [neutral; LANES];
        let whole = n - n % LANES;
        for block in (0..whole).step_by(LANES) {
            for (lane, slot) in lanes.iter_mut().enumerate() {
                // SAFETY: block + lane < n, and the caller gives n elements.
                *slot = join(*slot, unsafe { x.add(block + lane).read() });
            }
        }
        for i in whole..n {
            // SAFETY: i < n.
            lanes[i - whole] = join(lanes[i - whole], unsafe { x.add(i).read() });
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = join(lanes[lane], lanes[lane + width]);
            }
            width /= 2;
        }
        // SAFETY: the caller gives room for one element.
        unsafe { out.write(lanes[0]) }
    }
}

/// The larger; NaN when either is.
#[inline(always)]
pub(super) fn max_nan_f32(x: f32, y: f32) -> f32 {
    if (y > x) | y.is_nan() { y } else { x }
}

#[inline(always)]
pub(super) fn max_nan_f64(x: f64, y: f64) -> f64 {
    if (y > x) | y.is_nan() { y } else { x }
}
