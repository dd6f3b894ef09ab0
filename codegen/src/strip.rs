//! Strip routines: what compiled kernels call on whole strips, compiled ahead of time for each instruction set.
//!
//! In: pointers to strips in scratch or in buffers, and a length. Each routine is one generic body, monomorphised under
//! `target_feature`, so that rustc vectorises it for AVX-512, AVX2 and the baseline of the architecture. All variants give
//! the same bits: maps never contract a product with a sum, and folds have 16 lanes and one tree whatever the machine.

mod fold;
pub(crate) mod lane;
pub(crate) mod math;

use half::{bf16, f16};
use mdl_graph::philox;

use crate::isa::Isa;

pub(crate) use math::erf_f64;

/// `out[i] = f(x[i])`.
pub(crate) type Unary = unsafe extern "C" fn(out: *mut u8, x: *const u8, n: u64);
/// `out[i] = f(x[i], y[i])`.
pub(crate) type Binary = unsafe extern "C" fn(out: *mut u8, x: *const u8, y: *const u8, n: u64);
/// `out[i] = x[step · i]`.
pub(crate) type Strided = unsafe extern "C" fn(out: *mut u8, x: *const u8, step: i64, n: u64);
/// One number, written to `out`.
pub(crate) type Fold = unsafe extern "C" fn(out: *mut u8, x: *const u8, n: u64);
/// Draws at counters: (out, seed, step, lane, place, counters, n).
pub(crate) type Draws = unsafe extern "C" fn(*mut f32, u32, u32, u32, u32, *const u32, u64);

/// A routine's name, as an import of compiled code, and its variants: baseline, AVX2, AVX-512, which is for AMX too.
pub(crate) struct Routine {
    pub(crate) name: &'static str,
    addresses: [usize; 3],
}

impl Routine {
    pub(crate) fn address(&self, isa: Isa) -> *const u8 {
        self.addresses[isa.min(Isa::Avx512) as usize] as *const u8
    }
}

macro_rules! routines {
    ($($name:ident: $kind:ident($($arg:ident: $ty:ty),*) = $body:expr;)*) => {
        $(#[allow(unused_unsafe, reason = "some bodies are safe functions that trust their pointers")]
        mod $name {
            use super::*;
            /// # Safety
            /// The pointers hold `n` elements each and `out` overlaps nothing, unless it equals an input.
            pub(super) unsafe extern "C" fn baseline($($arg: $ty),*) {
                // SAFETY: the same contract.
                unsafe { $body($($arg),*) }
            }
            /// # Safety
            /// As `baseline`, on a machine that has these features.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt")]
            pub(super) unsafe extern "C" fn avx2($($arg: $ty),*) {
                // SAFETY: the same contract.
                unsafe { $body($($arg),*) }
            }
            /// # Safety
            /// As `baseline`, on a machine that has these features.
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi1,bmi2,lzcnt")]
            pub(super) unsafe extern "C" fn avx512($($arg: $ty),*) {
                // SAFETY: the same contract.
                unsafe { $body($($arg),*) }
            }
            #[cfg(not(target_arch = "x86_64"))]
            pub(super) use baseline as avx2;
            #[cfg(not(target_arch = "x86_64"))]
            pub(super) use baseline as avx512;
            const _: [$kind; 3] = [baseline, avx2, avx512];
        })*

        /// Every routine, to be made known to the linker of compiled code.
        pub(crate) fn all() -> Vec<Routine> {
            vec![$(Routine {
                name: stringify!($name),
                addresses: [$name::baseline as *const () as usize, $name::avx2 as *const () as usize, $name::avx512 as *const () as usize],
            }),*]
        }
    };
}

routines! {
    exp_f32: Unary(out: *mut u8, x: *const u8, n: u64) = map(math::exp::<f32>);
    log_f32: Unary(out: *mut u8, x: *const u8, n: u64) = map(math::log::<f32>);
    tanh_f32: Unary(out: *mut u8, x: *const u8, n: u64) = map(math::tanh::<f32>);
    erf_f32: Unary(out: *mut u8, x: *const u8, n: u64) = map(math::erf::<f32>);
    sin_f32: Unary(out: *mut u8, x: *const u8, n: u64) = turns(0, f64::sin);
    cos_f32: Unary(out: *mut u8, x: *const u8, n: u64) = turns(1, f64::cos);
    pow_f32: Binary(out: *mut u8, x: *const u8, y: *const u8, n: u64) = pow_f32_body;
    exp_f64: Unary(out: *mut u8, x: *const u8, n: u64) = map(f64::exp);
    log_f64: Unary(out: *mut u8, x: *const u8, n: u64) = map(f64::ln);
    tanh_f64: Unary(out: *mut u8, x: *const u8, n: u64) = map(f64::tanh);
    erf_f64_strip: Unary(out: *mut u8, x: *const u8, n: u64) = map(erf_f64);
    sin_f64: Unary(out: *mut u8, x: *const u8, n: u64) = map(f64::sin);
    cos_f64: Unary(out: *mut u8, x: *const u8, n: u64) = map(f64::cos);
    pow_f64: Binary(out: *mut u8, x: *const u8, y: *const u8, n: u64) = pow_f64_body;
    round_bf16: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: f32| widen(narrow(x)));
    round_f16: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: f32| f16::from_f32(x).to_f32());
    load_bf16: Unary(out: *mut u8, x: *const u8, n: u64) = map(widen);
    load_f16: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: f16| x.to_f32());
    load_i8: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: i8| i32::from(x));
    load_u8: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: u8| i32::from(x));
    load_bool: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: u8| -i32::from(x != 0));
    store_bf16: Unary(out: *mut u8, x: *const u8, n: u64) = map(narrow);
    store_f16: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: f32| f16::from_f32(x));
    store_i8: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: i32| x as i8);
    store_u8: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: i32| x as u8);
    store_bool: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: i32| u8::from(x != 0));
    copy_32: Unary(out: *mut u8, x: *const u8, n: u64) = map(|x: u32| x);
    gather_32: Strided(out: *mut u8, x: *const u8, step: i64, n: u64) = gather_body;
    sum_f32: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(0f32, |x, y| x + y);
    max_f32: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(f32::NEG_INFINITY, fold::max_nan_f32);
    sum_f64: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(0f64, |x, y| x + y);
    max_f64: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(f64::NEG_INFINITY, fold::max_nan_f64);
    sum_i32: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(0i32, i32::wrapping_add);
    max_i32: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(i32::MIN, |x: i32, y: i32| x.max(y));
    sum_i64: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(0i64, i64::wrapping_add);
    max_i64: Fold(out: *mut u8, x: *const u8, n: u64) = fold::strip(i64::MIN, |x: i64, y: i64| x.max(y));
    uniform_f32: Draws(out: *mut f32, seed: u32, step: u32, lane: u32, place: u32, counters: *const u32, n: u64) = draws;
}

/// A loop over `n` elements.
#[inline(always)]
fn map<X: Copy, Y>(f: impl Fn(X) -> Y) -> impl Fn(*mut u8, *const u8, u64) {
    #[inline(always)]
    move |out, x, n| {
        let (out, x) = (out.cast::<Y>(), x.cast::<X>());
        for i in 0..n as usize {
            // SAFETY: the routine's contract: n elements on both sides.
            unsafe { out.add(i).write(f(x.add(i).read())) }
        }
    }
}

#[inline(always)]
fn turns(quarter: i32, exact: fn(f64) -> f64) -> impl Fn(*mut u8, *const u8, u64) {
    #[inline(always)]
    move |out, x, n| {
        let (out, x) = (out.cast::<f32>(), x.cast::<f32>());
        let mut far = false;
        for i in 0..n as usize {
            // SAFETY: the routine's contract.
            far |= unsafe { x.add(i).read() }.abs() > math::TURNS_LIMIT;
        }
        for i in 0..n as usize {
            // SAFETY: the routine's contract.
            unsafe {
                let x = x.add(i).read();
                out.add(i).write(if far { exact(f64::from(x)) as f32 } else { math::sin_quarter(x, quarter) });
            }
        }
    }
}

/// Powers go through `f64`, so that the result is right to the last bit but one even for large exponents.
///
/// # Safety
/// `n` elements at each pointer.
#[inline(always)]
unsafe fn pow_f32_body(out: *mut u8, x: *const u8, y: *const u8, n: u64) {
    let (out, x, y) = (out.cast::<f32>(), x.cast::<f32>(), y.cast::<f32>());
    for i in 0..n as usize {
        // SAFETY: the routine's contract.
        unsafe { out.add(i).write(f64::from(x.add(i).read()).powf(f64::from(y.add(i).read())) as f32) }
    }
}

/// # Safety
/// `n` elements at each pointer.
#[inline(always)]
unsafe fn pow_f64_body(out: *mut u8, x: *const u8, y: *const u8, n: u64) {
    let (out, x, y) = (out.cast::<f64>(), x.cast::<f64>(), y.cast::<f64>());
    for i in 0..n as usize {
        // SAFETY: the routine's contract.
        unsafe { out.add(i).write(x.add(i).read().powf(y.add(i).read())) }
    }
}

/// # Safety
/// `n` elements at `out`, and `n` in steps of `step` elements at `x`.
#[inline(always)]
unsafe fn gather_body(out: *mut u8, x: *const u8, step: i64, n: u64) {
    let (out, x) = (out.cast::<u32>(), x.cast::<u32>());
    for i in 0..n as usize {
        // SAFETY: the routine's contract.
        unsafe { out.add(i).write(x.offset(step as isize * i as isize).read()) }
    }
}

/// `f32` to `bf16`, to nearest even, without a branch; NaN stays NaN.
#[inline(always)]
pub(crate) fn narrow(x: f32) -> bf16 {
    bf16::from_bits((math::round_bf16(x) >> 16) as u16)
}

#[inline(always)]
pub(crate) fn widen(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Draws at each counter. Neighbouring counters share a Philox block: aligned runs of four are drawn at once.
///
/// # Safety
/// `n` elements at each pointer.
#[inline(always)]
unsafe fn draws(out: *mut f32, seed: u32, step: u32, lane: u32, place: u32, counters: *const u32, n: u64) {
    const WIDTH: usize = 16;
    let n = n as usize;
    // SAFETY: the routine's contract.
    let counter = |i: usize| unsafe { counters.add(i).read() };
    let draw = |i: usize| philox::uniform(seed, step, lane, place, counter(i));
    let mut i = 0;
    while i < n && !counter(i).is_multiple_of(4) {
        // SAFETY: the routine's contract.
        unsafe { out.add(i).write(draw(i)) };
        i += 1;
    }
    while i + 4 * WIDTH <= n {
        let first = counter(i);
        let mut in_order = true;
        for k in 0..4 * WIDTH {
            in_order &= counter(i + k) == first.wrapping_add(k as u32);
        }
        if in_order {
            let mut words = [[0f32; 4]; WIDTH];
            for (k, block) in words.iter_mut().enumerate() {
                let counter = [(first >> 2).wrapping_add(k as u32), lane, place, 0];
                *block = philox::philox4x32([seed, step], counter).map(philox::unit);
            }
            // A wrapped counter would wrap its block too: the top of the range is drawn one by one.
            if first.checked_add(4 * WIDTH as u32 - 1).is_some() {
                // SAFETY: the routine's contract; 4 · WIDTH elements remain.
                unsafe { out.add(i).cast::<[[f32; 4]; WIDTH]>().write_unaligned(words) };
                i += 4 * WIDTH;
                continue;
            }
        }
        for k in 0..4 * WIDTH {
            // SAFETY: as above.
            unsafe { out.add(i + k).write(draw(i + k)) };
        }
        i += 4 * WIDTH;
    }
    while i < n {
        // SAFETY: the routine's contract.
        unsafe { out.add(i).write(draw(i)) };
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs each variant that this machine has.
    fn variants(name: &str) -> Vec<usize> {
        let routine = all().into_iter().find(|routine| routine.name == name).expect("a routine of this name");
        Isa::available().into_iter().map(|isa| routine.address(isa) as usize).collect()
    }

    fn noise(n: usize) -> Vec<f32> {
        (0..n).map(|i| philox::uniform(1, 2, 3, 4, i as u32) * 40.0 - 20.0).collect()
    }

    #[test]
    fn every_variant_gives_the_same_bits() {
        let two_sided = [
            "exp_f32",
            "log_f32",
            "tanh_f32",
            "erf_f32",
            "sin_f32",
            "cos_f32",
            "round_bf16",
            "round_f16",
            "sum_f32",
            "max_f32",
        ];
        for n in [0, 1, 2, 3, 15, 16, 17, 31, 64, 1000, 1023] {
            let x = noise(n);
            for name in two_sided {
                let results: Vec<Vec<u32>> = variants(name)
                    .into_iter()
                    .map(|address| {
                        let mut out = vec![0f32; n.max(1)];
                        // SAFETY: the address is of a routine of this type; the strips hold n elements, or the result.
                        unsafe {
                            let f: Unary = std::mem::transmute(address);
                            f(out.as_mut_ptr().cast(), x.as_ptr().cast(), n as u64);
                        }
                        out.into_iter().map(f32::to_bits).collect()
                    })
                    .collect();
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{name} of {n}");
            }
        }
    }

    #[test]
    fn draws_agree_with_their_definition() {
        for start in [0, 1, 2, 3, 1000, u32::MAX - 70] {
            let counters: Vec<u32> = (0..300u32).map(|i| if i == 200 { 7 } else { start.wrapping_add(i) }).collect();
            for address in variants("uniform_f32") {
                let mut out = vec![0f32; counters.len()];
                // SAFETY: the address is of this type, and the strips are long enough.
                unsafe {
                    let f: Draws = std::mem::transmute(address);
                    f(out.as_mut_ptr(), 5, 6, 7, 8, counters.as_ptr(), counters.len() as u64);
                }
                for (counter, draw) in counters.iter().zip(&out) {
                    assert_eq!(*draw, philox::uniform(5, 6, 7, 8, *counter), "{counter}");
                }
            }
        }
    }

    #[test]
    fn narrow_agrees_with_half() {
        for bits in (0..=u32::MAX).step_by(4099) {
            let x = f32::from_bits(bits);
            let (got, want) = (narrow(x), bf16::from_f32(x));
            assert!(got == want || (got.is_nan() && want.is_nan()), "{x:e}");
        }
    }
}
