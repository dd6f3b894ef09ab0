//! What went wrong, where: kernel, block, thread, line of PTX and of the source.

use std::fmt;

/// A kernel's mistake. Everything but `what` and `lane` is filled in where the warp stops.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) kernel: String,
    pub(crate) block: [u32; 3],
    pub(crate) thread: [u32; 3],
    pub(crate) lane: usize,
    pub(crate) ptx_line: u32,
    pub(crate) ptx_text: String,
    /// File and line, where the PTX has `.loc`.
    pub(crate) source: Option<(String, u32)>,
}

impl Fault {
    pub(crate) fn new(lane: usize, what: String) -> Self {
        Self {
            what,
            kernel: String::new(),
            block: [0; 3],
            thread: [0; 3],
            lane,
            ptx_line: 0,
            ptx_text: String::new(),
            source: None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([bx, by, bz], [tx, ty, tz]) = (self.block, self.thread);
        write!(f, "{} in kernel {}, block ({bx},{by},{bz}), thread ({tx},{ty},{tz})", self.what, self.kernel)?;
        if self.ptx_line != 0 {
            write!(f, ", PTX line {}: `{}`", self.ptx_line, self.ptx_text)?;
        }
        if let Some((file, line)) = &self.source {
            write!(f, ", source {file}:{line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}
