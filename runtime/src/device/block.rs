//! A block of zeroed, aligned memory.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use mdl_compiler::plan::ALIGN_BYTES;

/// Bytes whose base is aligned as plans ask for. The pages come zeroed, and are not touched before they are used.
pub struct Block {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a block owns its memory, and gives it out only under the rules of borrowing.
unsafe impl Send for Block {}
// SAFETY: as above; a shared block is only read.
unsafe impl Sync for Block {}

impl Block {
    pub fn zeroed(len: u64) -> Block {
        let len = len as usize;
        let layout = Block::layout(len);
        // SAFETY: the layout's size is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Block { base, len }
    }

    fn layout(len: usize) -> Layout {
        // Whole lines, and at least one: kernels may read a vector past the last element of a row, never past a line.
        let size = len.max(1).next_multiple_of(ALIGN_BYTES as usize);
        match Layout::from_size_align(size, ALIGN_BYTES as usize) {
            Ok(layout) => layout,
            Err(_) => mdl_graph::bug!("a block of {len} bytes"),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn base(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `base` is the start of `len` bytes that this block owns, zeroed at first.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.base.as_ptr(), Block::layout(self.len)) }
    }
}
