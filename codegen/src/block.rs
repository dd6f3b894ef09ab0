//! A block of zeroed, aligned memory.

use std::ptr::NonNull;

use mdl_compiler::plan::ALIGN_BYTES;

/// Bytes whose base is aligned as plans ask for. The pages come zeroed, and take no memory before they are used.
pub struct Block {
    base: NonNull<u8>,
    len: usize,
    pages: Pages,
}

// SAFETY: a block owns its memory, and gives it out only under the rules of borrowing.
unsafe impl Send for Block {}
// SAFETY: as above; a shared block is only read.
unsafe impl Sync for Block {}

impl Block {
    pub fn zeroed(len: u64) -> Block {
        let len = len as usize;
        // Whole lines, and at least one: kernels may read a vector past the last element of a row, never past a line.
        let size = len.max(1).next_multiple_of(ALIGN_BYTES as usize);
        let pages = Pages::zeroed(size);
        Block { base: pages.base(), len, pages }
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
        // SAFETY: the block's own pages, which nothing borrows any more.
        unsafe { self.pages.free() }
    }
}

#[cfg(not(target_os = "linux"))]
use allocated::Pages;
#[cfg(target_os = "linux")]
use mapped::Pages;

/// Pages of the system's own: an allocator would clear, and so touch, memory of such an alignment.
#[cfg(target_os = "linux")]
mod mapped {
    use std::ptr::NonNull;

    /// Blocks of this size ask for pages of 2 MiB: kernels walk them with large strides, and every small page is looked up.
    const LARGE: usize = 4 << 20;
    const HUGE_PAGE: usize = 2 << 20;

    pub(super) struct Pages {
        mapping: NonNull<u8>,
        mapped: usize,
        skip: usize,
    }

    impl Pages {
        pub(super) fn zeroed(size: usize) -> Pages {
            let slack = if size >= LARGE { HUGE_PAGE } else { 0 };
            let mapped = size + slack;
            // SAFETY: a new private mapping, which touches nothing that is there.
            let mapping = unsafe {
                let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), mapped, access, kind, -1, 0)
            };
            let found = if mapping == libc::MAP_FAILED { None } else { NonNull::new(mapping.cast::<u8>()) };
            let Some(mapping) = found else {
                std::alloc::handle_alloc_error(std::alloc::Layout::new::<u8>());
            };
            let skip = if slack == 0 { 0 } else { mapping.as_ptr().align_offset(HUGE_PAGE) };
            let pages = Pages { mapping, mapped, skip };
            if slack > 0 {
                // SAFETY: whole pages inside the mapping. It is advice: a system without such pages goes on with small ones.
                unsafe {
                    libc::madvise(pages.base().as_ptr().cast(), size / HUGE_PAGE * HUGE_PAGE, libc::MADV_HUGEPAGE);
                }
            }
            pages
        }

        pub(super) fn base(&self) -> NonNull<u8> {
            // SAFETY: `skip` is at most the slack.
            unsafe { self.mapping.add(self.skip) }
        }

        /// # Safety
        /// Called once; nobody uses the pages any more.
        pub(super) unsafe fn free(&self) {
            // SAFETY: the mapping made in `zeroed`.
            unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod allocated {
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    use mdl_compiler::plan::ALIGN_BYTES;

    pub(super) struct Pages {
        base: NonNull<u8>,
        layout: Layout,
    }

    impl Pages {
        pub(super) fn zeroed(size: usize) -> Pages {
            let Ok(layout) = Layout::from_size_align(size, ALIGN_BYTES as usize) else {
                mdl_graph::bug!("a block of {size} bytes")
            };
            // SAFETY: the size is not 0.
            let base = unsafe { alloc_zeroed(layout) };
            let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
            Pages { base, layout }
        }

        pub(super) fn base(&self) -> NonNull<u8> {
            self.base
        }

        /// # Safety
        /// Called once; nobody uses the pages any more.
        pub(super) unsafe fn free(&self) {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.base.as_ptr(), self.layout) };
        }
    }
}
