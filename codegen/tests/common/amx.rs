//! The instructions of AMX that products use, carried out one by one where the machine lacks them: for tests, and slow.
//!
//! [`provide`] answers the signal of an illegal instruction: what it names is decoded, done to the tiles of that thread, and
//! skipped, so that the very machine code runs. Meanings are those of Intel's manual, volume 2: palette 1, tiles of 16 rows
//! of 64 bytes, dot products in `f32` rounded to nearest even, subnormal numbers taken and left as zero. Where the processor would
//! raise #UD or #GP, the process ends with a sentence that says why.

use std::cell::UnsafeCell;

pub(crate) const ROWS: usize = 16;
pub(crate) const ROW_BYTES: usize = 64;

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Configure { at: u64 },
    Release,
    Zero { tile: usize },
    Load { tile: usize, at: u64, stride: u64 },
    Store { tile: usize, at: u64, stride: u64 },
    Dot { sum: usize, a: usize, b: usize },
}

/// Decodes one, with the registers that addresses are made of, in the order of their numbers; and its length.
pub(crate) fn decode(code: &[u8], registers: &[u64; 16]) -> Option<(Op, usize)> {
    // VEX of three bytes: R, X, B inverted and the map; W, vvvv inverted, L, the prefix.
    let [0xc4, first, second, opcode, modrm, ..] = *code else { return None };
    let (high_r, high_x, high_b) = (first & 0x80 == 0, first & 0x40 == 0, first & 0x20 == 0);
    let (vvvv, prefix) = (usize::from(!second >> 3 & 15), second & 3);
    if first & 0x1f != 2 || second & 0x84 != 0 || high_r {
        return None;
    }
    let (form, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if form == 3 {
        return match (opcode, prefix) {
            (0x49, 0) if vvvv == 0 && modrm == 0xc0 => Some((Op::Release, 5)),
            (0x49, 3) if vvvv == 0 && rm == 0 => Some((Op::Zero { tile: reg }, 5)),
            (0x5c, 2) if vvvv < 8 && !high_b => Some((Op::Dot { sum: reg, a: rm, b: vvvv }, 5)),
            _ => None,
        };
    }
    if vvvv != 0 {
        return None;
    }
    let mut at = 5;
    let extended = |low: u8, high: bool| usize::from(low & 7) + if high { 8 } else { 0 };
    // The base, what is scaled (of tiles: the bytes from one row to the next), and where a displacement begins.
    let (base, index) = if rm == 4 {
        let sib = *code.get(at)?;
        at += 1;
        if sib & 7 == 5 && form == 0 {
            return None;
        }
        let index = extended(sib >> 3, high_x);
        // Number 4 means none.
        (extended(sib, high_b), Some(if index == 4 { 0 } else { registers[index] << (sib >> 6) }))
    } else if rm == 5 && form == 0 {
        return None;
    } else {
        (extended(modrm, high_b), None)
    };
    let moved = match form {
        0 => 0,
        1 => i64::from(code.get(at).copied()? as i8),
        _ => i64::from(i32::from_le_bytes(code.get(at..at + 4)?.try_into().ok()?)),
    };
    at += [0, 1, 4][usize::from(form)];
    let from = registers[base].wrapping_add_signed(moved);
    let op = match (opcode, prefix, index) {
        (0x49, 0, index) if reg == 0 => Op::Configure { at: from.wrapping_add(index.unwrap_or(0)) },
        (0x4b, 3, Some(stride)) => Op::Load { tile: reg, at: from, stride },
        (0x4b, 2, Some(stride)) => Op::Store { tile: reg, at: from, stride },
        _ => return None,
    };
    Some((op, at))
}

/// The tiles of a thread.
#[derive(Clone)]
pub(crate) struct Tiles {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    data: [[[u8; ROW_BYTES]; ROWS]; 8],
}

const NO_TILES: Tiles = Tiles { configured: false, rows: [0; 8], row_bytes: [0; 8], data: [[[0; ROW_BYTES]; ROWS]; 8] };

impl Tiles {
    pub(crate) const fn new() -> Tiles {
        NO_TILES
    }

    /// # Safety
    /// What the operation reads and writes is memory of ours.
    pub(crate) unsafe fn execute(&mut self, op: Op) -> Result<(), &'static str> {
        match op {
            Op::Configure { at } => {
                // SAFETY: the caller's promise.
                self.configure(unsafe { &*(at as *const [u8; 64]) })
            }
            Op::Release => {
                *self = Tiles::new();
                Ok(())
            }
            Op::Zero { tile } => {
                self.known(tile)?;
                self.data[tile] = [[0; ROW_BYTES]; ROWS];
                Ok(())
            }
            Op::Load { tile, at, stride } => {
                self.known(tile)?;
                self.data[tile] = [[0; ROW_BYTES]; ROWS];
                for (row, to) in self.data[tile][..self.rows[tile]].iter_mut().enumerate() {
                    let from = at.wrapping_add(stride.wrapping_mul(row as u64)) as *const u8;
                    // SAFETY: the caller's promise.
                    unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), self.row_bytes[tile]) };
                }
                Ok(())
            }
            Op::Store { tile, at, stride } => {
                self.known(tile)?;
                for (row, from) in self.data[tile][..self.rows[tile]].iter().enumerate() {
                    let to = at.wrapping_add(stride.wrapping_mul(row as u64)) as *mut u8;
                    // SAFETY: the caller's promise.
                    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, self.row_bytes[tile]) };
                }
                Ok(())
            }
            Op::Dot { sum, a, b } => self.dot(sum, a, b),
        }
    }

    fn configure(&mut self, bytes: &[u8; 64]) -> Result<(), &'static str> {
        *self = Tiles::new();
        match bytes[0] {
            0 => return Ok(()),
            1 => {}
            _ => return Err("#GP: the palette is neither 0 nor 1"),
        }
        if bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]).any(|byte| *byte != 0) {
            return Err("#GP: reserved bytes of the configuration are not 0");
        }
        for tile in 0..8 {
            let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let rows = usize::from(bytes[48 + tile]);
            if row_bytes > ROW_BYTES || rows > ROWS {
                return Err("#GP: a tile of more than 16 rows or 64 bytes");
            }
            if (row_bytes == 0) != (rows == 0) {
                return Err("#GP: a tile with rows of no bytes, or bytes of no row");
            }
            (self.rows[tile], self.row_bytes[tile]) = (rows, row_bytes);
        }
        self.configured = true;
        Ok(())
    }

    fn known(&self, tile: usize) -> Result<(), &'static str> {
        match (self.configured, self.rows[tile]) {
            (false, _) => Err("#UD: this thread's tiles are not configured"),
            (true, 0) => Err("#UD: the configuration has not this tile"),
            _ => Ok(()),
        }
    }

    fn dot(&mut self, sum: usize, a: usize, b: usize) -> Result<(), &'static str> {
        if sum == a || sum == b || a == b {
            return Err("#UD: a tile is two operands of a dot product");
        }
        for tile in [sum, a, b] {
            self.known(tile)?;
            if !self.row_bytes[tile].is_multiple_of(4) {
                return Err("#UD: a row is no whole number of pairs");
            }
        }
        let (width, pairs) = (self.row_bytes[sum] / 4, self.row_bytes[a] / 4);
        if self.rows[sum] != self.rows[a] || self.row_bytes[sum] != self.row_bytes[b] || pairs != self.rows[b] {
            return Err("#UD: the tiles of a dot product do not fit");
        }
        let wide = |tile: &[[u8; ROW_BYTES]; ROWS], row: usize, at: usize| -> f32 {
            f32::from_bits(u32::from(u16::from_le_bytes([tile[row][2 * at], tile[row][2 * at + 1]])) << 16)
        };
        for row in 0..self.rows[sum] {
            // Even and odd numbers are summed apart, and then together.
            let mut sums = [[0f32; 2]; ROW_BYTES / 4];
            for pair in 0..pairs {
                for (column, sum) in sums[..width].iter_mut().enumerate() {
                    for (odd, sum) in sum.iter_mut().enumerate() {
                        let x = flushed(wide(&self.data[a], row, 2 * pair + odd));
                        let y = flushed(wide(&self.data[b], pair, 2 * column + odd));
                        *sum = flushed(x.mul_add(y, *sum));
                    }
                }
            }
            for (column, [even, odd]) in sums[..width].iter().enumerate() {
                let at = &mut self.data[sum][row][4 * column..4 * column + 4];
                let old = flushed(f32::from_le_bytes([at[0], at[1], at[2], at[3]]));
                at.copy_from_slice(&flushed(old + flushed(even + odd)).to_le_bytes());
            }
            self.data[sum][row][4 * width..].fill(0);
        }
        Ok(())
    }
}

/// A subnormal number is zero, of its sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

thread_local! {
    /// No destructor and no first use: the handler of a signal may touch it.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(NO_TILES) };
    static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How many instructions this thread has had carried out for it.
pub(crate) fn carried_out() -> u64 {
    DONE.get()
}

/// Whether this thread has tiles.
pub(crate) fn is_configured() -> bool {
    // SAFETY: nobody changes them meanwhile: only this thread does.
    TILES.with(|tiles| unsafe { (*tiles.get()).configured })
}

/// From now on this process can execute them; where the machine can anyway, nothing changes.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn provide() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: a zeroed action is one without flags and an empty mask; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(
                libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()),
                0,
                "no handler could be installed"
            );
        }
    });
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe extern "C" fn illegal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // By their numbers in instructions.
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: the system gives the context of the instruction, whose bytes can be read; nothing longer is at the end of a page, since
    // code goes on after it. The tiles are this thread's, and the handler does not interrupt itself.
    let outcome = unsafe {
        let general = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let registers = ORDER.map(|register| general[register as usize] as u64);
        let code = std::slice::from_raw_parts(general[libc::REG_RIP as usize] as *const u8, 10);
        match decode(code, &registers) {
            None => Err("an illegal instruction that is none of AMX"),
            Some((op, length)) => {
                general[libc::REG_RIP as usize] += length as i64;
                DONE.set(DONE.get() + 1);
                TILES.with(|tiles| (*tiles.get()).execute(op))
            }
        }
    };
    if let Err(what) = outcome {
        // SAFETY: writing and ending are allowed in a handler, and nothing else is done.
        unsafe {
            for text in ["\nAMX: ", what, "\n"] {
                libc::write(2, text.as_ptr().cast(), text.len());
            }
            libc::abort();
        }
    }
}
