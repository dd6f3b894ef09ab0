//! Buffers as raw memory: one element read or written at a time, by dtype. For what runs once, or slowly and surely.

use half::{bf16, f16};
use mdl_graph::{DType, Scalar};

/// The base addresses of a kernel's buffers, in the order of `Kernel::bufs`.
#[derive(Clone, Copy)]
pub struct Buffers<'a>(&'a [*mut u8]);

// SAFETY: addresses; whoever dereferences them answers for disjoint use, see `Buffers::new`.
unsafe impl Send for Buffers<'_> {}
// SAFETY: as above.
unsafe impl Sync for Buffers<'_> {}

impl<'a> Buffers<'a> {
    /// # Safety
    /// Each address is aligned for its buffer's dtype and has room for its length; while these are in use nobody else
    /// writes the buffers, nor reads those that the kernel writes.
    pub unsafe fn new(addresses: &'a [*mut u8]) -> Buffers<'a> {
        Buffers(addresses)
    }

    pub(crate) fn base(self, at: usize) -> *mut u8 {
        self.0[at]
    }

    pub(crate) fn as_ptr(self) -> *const *mut u8 {
        self.0.as_ptr()
    }
}

/// Element `at` of an array of `dtype`, as the constant it is.
///
/// # Safety
/// The element is inside the array at `base`.
pub(crate) unsafe fn read(base: *const u8, dtype: DType, at: i64) -> Scalar {
    let at = at as isize;
    // SAFETY: the caller says that the element is inside.
    unsafe {
        match dtype {
            DType::F64 => Scalar::Float(base.cast::<f64>().offset(at).read()),
            DType::F32 => Scalar::Float(f64::from(base.cast::<f32>().offset(at).read())),
            DType::BF16 => Scalar::Float(f64::from(base.cast::<bf16>().offset(at).read())),
            DType::F16 => Scalar::Float(f64::from(base.cast::<f16>().offset(at).read())),
            DType::I64 => Scalar::Int(base.cast::<i64>().offset(at).read()),
            DType::I32 => Scalar::Int(i64::from(base.cast::<i32>().offset(at).read())),
            DType::I8 => Scalar::Int(i64::from(base.cast::<i8>().offset(at).read())),
            DType::U8 => Scalar::Int(i64::from(base.offset(at).read())),
            DType::Bool => Scalar::Bool(base.offset(at).read() != 0),
        }
    }
}

/// Writes element `at`; a wider value is rounded or wrapped to `dtype`.
///
/// # Safety
/// The element is inside the array at `base`, and nobody reads it now.
pub(crate) unsafe fn write(base: *mut u8, dtype: DType, at: i64, value: Scalar) {
    let at = at as isize;
    let float = value.as_f64();
    let int = match value {
        Scalar::Bool(value) => i64::from(value),
        Scalar::Int(value) => value,
        Scalar::Float(value) => value as i64,
    };
    // SAFETY: the caller says that the element is inside.
    unsafe {
        match dtype {
            DType::F64 => base.cast::<f64>().offset(at).write(float),
            DType::F32 => base.cast::<f32>().offset(at).write(float as f32),
            DType::BF16 => base.cast::<bf16>().offset(at).write(bf16::from_f32(float as f32)),
            DType::F16 => base.cast::<f16>().offset(at).write(f16::from_f32(float as f32)),
            DType::I64 => base.cast::<i64>().offset(at).write(int),
            DType::I32 => base.cast::<i32>().offset(at).write(int as i32),
            DType::I8 => base.cast::<i8>().offset(at).write(int as i8),
            DType::U8 => base.offset(at).write(int as u8),
            DType::Bool => base.offset(at).write(u8::from(float != 0.0)),
        }
    }
}
