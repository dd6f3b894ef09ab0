//! Memory for code: writable while functions are added, then executable and no longer writable.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use mapped::CodeMemory;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use nowhere::CodeMemory;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod mapped {
    use std::collections::HashMap;
    use std::ptr::NonNull;

    use crate::wide::{Program, compile};

    /// The least bytes of a mapping, in whole pages.
    const BLOCK: usize = 1 << 20;

    /// The functions of one module. An address that was given is good as long as this lives, and may be called after `seal`.
    #[derive(Default)]
    pub(crate) struct CodeMemory {
        /// Mappings and their lengths; the last one is being filled, up to `used`.
        blocks: Vec<(NonNull<u8>, usize)>,
        used: usize,
        known: HashMap<Program, usize>,
        /// There was no memory for some function.
        lacking: bool,
    }

    impl CodeMemory {
        /// The address of the program's function, which may be called when `seal` says so.
        pub(crate) fn function(&mut self, program: &Program) -> usize {
            if let Some(known) = self.known.get(program) {
                return *known;
            }
            let address = self.place(&compile(program));
            self.lacking |= address.is_none();
            self.known.insert(program.clone(), address.unwrap_or(0));
            address.unwrap_or(0)
        }

        fn place(&mut self, code: &[u8]) -> Option<usize> {
            if self.blocks.last().is_none_or(|(_, len)| self.used + code.len() > *len) {
                let len = code.len().next_multiple_of(BLOCK);
                // SAFETY: a new private mapping.
                let block = unsafe {
                    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                    libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0)
                };
                let block = if block == libc::MAP_FAILED { None } else { NonNull::new(block.cast::<u8>()) };
                self.blocks.push((block?, len));
                self.used = 0;
            }
            let (block, _) = self.blocks.last()?;
            // SAFETY: `used` and the code's length stay inside the block, which is still writable.
            let at = unsafe { block.add(self.used) };
            // SAFETY: as above; the code is not in the block yet.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at.as_ptr(), code.len()) };
            self.used = (self.used + code.len()).next_multiple_of(64);
            Some(at.as_ptr() as usize)
        }

        /// Makes the code executable. False when the system refuses, or had no memory for some of it.
        pub(crate) fn seal(&self) -> bool {
            let seal = |(block, len): &(NonNull<u8>, usize)| {
                // SAFETY: our own mapping, which nobody writes any more.
                unsafe { libc::mprotect(block.as_ptr().cast(), *len, libc::PROT_READ | libc::PROT_EXEC) == 0 }
            };
            !self.lacking && self.blocks.iter().all(seal)
        }
    }

    impl Drop for CodeMemory {
        fn drop(&mut self) {
            for (block, len) in &self.blocks {
                // SAFETY: the addresses go with the module that owns this.
                unsafe { libc::munmap(block.as_ptr().cast(), *len) };
            }
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod nowhere {
    use crate::wide::Program;

    /// Other machines have no such registers.
    #[derive(Default)]
    pub(crate) struct CodeMemory;

    impl CodeMemory {
        pub(crate) fn function(&mut self, _: &Program) -> usize {
            mdl_graph::bug!("this machine has no vector programs")
        }

        pub(crate) fn seal(&self) -> bool {
            true
        }
    }
}
