//! x86-64 instructions on 512-bit registers, as bytes: the EVEX encoding (Intel SDM, volume 2, chapter 2.7), as far as vector
//! programs need it.

/// A vector register, 0 to 31.
pub(super) type Zmm = u8;
/// A general register, by its number: 0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi, then r8 to r15.
pub(super) type Gpr = u8;

pub(super) const RCX: Gpr = 1;
pub(super) const RSP: Gpr = 4;
pub(super) const RSI: Gpr = 6;
pub(super) const RDI: Gpr = 7;
pub(super) const R11: Gpr = 11;

/// The last operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    Register(Zmm),
    /// `[base + rcx · scale]`: a run, at the loop's position; the scale is a power of two up to 8.
    Run {
        base: Gpr,
        scale: u8,
    },
    /// `[base + offset]`.
    At {
        base: Gpr,
        offset: i32,
    },
    /// One number of the pool of constants, repeated in all lanes.
    Constant(usize),
    /// A whole register of the pool, from this place.
    Constants(usize),
    /// One number at `[base + offset]`, repeated in all lanes.
    Repeated {
        base: Gpr,
        offset: i32,
    },
}

/// Opcode maps and mandatory prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opcode {
    pub(super) map: u8,
    pub(super) prefix: u8,
    pub(super) byte: u8,
}

const fn opcode(map: u8, prefix: u8, byte: u8) -> Opcode {
    Opcode { map, prefix, byte }
}

/// Mandatory prefixes.
const NONE: u8 = 0;
const P66: u8 = 1;
const PF3: u8 = 2;
/// Opcode maps.
const M0F: u8 = 1;
const M0F38: u8 = 2;
const M0F3A: u8 = 3;

pub(super) const LOAD: Opcode = opcode(M0F, NONE, 0x10);
pub(super) const STORE: Opcode = opcode(M0F, NONE, 0x11);
pub(super) const BROADCAST: Opcode = opcode(M0F38, P66, 0x18);
pub(super) const BROADCAST_GENERAL: Opcode = opcode(M0F38, P66, 0x7c);
pub(super) const ADD_F: Opcode = opcode(M0F, NONE, 0x58);
pub(super) const MUL_F: Opcode = opcode(M0F, NONE, 0x59);
pub(super) const SUB_F: Opcode = opcode(M0F, NONE, 0x5c);
pub(super) const DIV_F: Opcode = opcode(M0F, NONE, 0x5e);
pub(super) const MAX_F: Opcode = opcode(M0F, NONE, 0x5f);
pub(super) const SQRT_F: Opcode = opcode(M0F, NONE, 0x51);
pub(super) const COMPARE_F: Opcode = opcode(M0F, NONE, 0xc2);
pub(super) const COMPARE_I: Opcode = opcode(M0F3A, P66, 0x1f);
pub(super) const MASK_TO_VECTOR: Opcode = opcode(M0F38, PF3, 0x38);
pub(super) const TERNARY_LOGIC: Opcode = opcode(M0F3A, P66, 0x25);
pub(super) const BLEND: Opcode = opcode(M0F38, P66, 0x65);
pub(super) const AND: Opcode = opcode(M0F, P66, 0xdb);
pub(super) const OR: Opcode = opcode(M0F, P66, 0xeb);
pub(super) const XOR: Opcode = opcode(M0F, P66, 0xef);
pub(super) const ADD_I: Opcode = opcode(M0F, P66, 0xfe);
pub(super) const SUB_I: Opcode = opcode(M0F, P66, 0xfa);
pub(super) const MUL_I: Opcode = opcode(M0F38, P66, 0x40);
pub(super) const MAX_I: Opcode = opcode(M0F38, P66, 0x3d);
/// With an immediate; the operation is the `reg` field: 6 left, 2 right, 4 right with the sign.
pub(super) const SHIFT: Opcode = opcode(M0F, P66, 0x72);
pub(super) const FLOAT_OF_INT: Opcode = opcode(M0F, NONE, 0x5b);
pub(super) const INT_OF_FLOAT: Opcode = opcode(M0F, PF3, 0x5b);
pub(super) const ROUND_SCALE: Opcode = opcode(M0F3A, P66, 0x08);
pub(super) const ALIGN: Opcode = opcode(M0F3A, P66, 0x03);
pub(super) const WIDEN_U8: Opcode = opcode(M0F38, P66, 0x31);
pub(super) const WIDEN_I8: Opcode = opcode(M0F38, P66, 0x21);
pub(super) const WIDEN_U16: Opcode = opcode(M0F38, P66, 0x33);
pub(super) const NARROW_TO_8: Opcode = opcode(M0F38, PF3, 0x31);
pub(super) const NARROW_TO_16: Opcode = opcode(M0F38, PF3, 0x33);
pub(super) const HALF_TO_FLOAT: Opcode = opcode(M0F38, P66, 0x13);
pub(super) const FLOAT_TO_HALF: Opcode = opcode(M0F3A, P66, 0x1d);

/// Lanes that are written: all, or those of a mask register; of the others a register keeps what it has, or gets zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lanes {
    pub(super) mask: u8,
    pub(super) zero: bool,
}

pub(super) const ALL: Lanes = Lanes { mask: 0, zero: false };

/// Bytes under construction, and the constants that they read.
#[derive(Default)]
pub(super) struct Assembler {
    pub(super) bytes: Vec<u8>,
    /// Numbers that instructions read, placed after the code.
    pub(super) pool: Vec<u32>,
    positions: Option<usize>,
    /// Places of 32-bit displacements to the pool, and the end of the instruction.
    fixes: Vec<(usize, usize, usize)>,
}

impl Assembler {
    /// The number's place in the pool.
    pub(super) fn constant(&mut self, bits: u32) -> usize {
        match self.pool.iter().position(|known| *known == bits) {
            Some(at) => at,
            None => {
                self.pool.push(bits);
                self.pool.len() - 1
            }
        }
    }

    /// The numbers 0 to 15.
    pub(super) fn positions(&mut self) -> Operand {
        let at = match self.positions {
            Some(at) => at,
            None => {
                self.pool.extend(0..16);
                self.pool.len() - 16
            }
        };
        self.positions = Some(at);
        Operand::Constants(at)
    }

    /// One instruction: `reg` is the first register of the encoding, `second` the one in the prefix (0 when there is none).
    pub(super) fn op(&mut self, op: Opcode, reg: u8, second: u8, rm: Operand, immediate: Option<u8>, lanes: Lanes) {
        let repeated = matches!(rm, Operand::Constant(_) | Operand::Repeated { .. }) && op != BROADCAST;
        // Bits of the registers above the third, each inverted in the prefix.
        let (x, b) = match rm {
            Operand::Register(rm) => (rm >> 4 & 1, rm >> 3 & 1),
            Operand::Run { base, .. } | Operand::At { base, .. } | Operand::Repeated { base, .. } => (0, base >> 3 & 1),
            Operand::Constant(_) | Operand::Constants(_) => (0, 0),
        };
        let not = |bit: u8| (bit & 1) ^ 1;
        self.bytes.push(0x62);
        self.bytes.push(not(reg >> 3) << 7 | not(x) << 6 | not(b) << 5 | not(reg >> 4) << 4 | op.map);
        self.bytes.push((!second & 0xf) << 3 | 1 << 2 | op.prefix);
        let zero = u8::from(lanes.zero) << 7;
        self.bytes.push(zero | 0b10 << 5 | u8::from(repeated) << 4 | not(second >> 4) << 3 | lanes.mask);
        self.bytes.push(op.byte);
        let field = (reg & 7) << 3;
        let mut fix = None;
        match rm {
            Operand::Register(rm) => self.bytes.push(0b11 << 6 | field | rm & 7),
            Operand::Run { base, scale } => {
                // Without a displacement, base 5 means something else: it gets one of 0.
                let displaced = base & 7 == 5;
                self.bytes.push(u8::from(displaced) << 7 | field | 0b100);
                self.bytes.push((scale.trailing_zeros() as u8) << 6 | RCX << 3 | base & 7);
                if displaced {
                    self.bytes.extend(0i32.to_le_bytes());
                }
            }
            Operand::At { base, offset } | Operand::Repeated { base, offset } => {
                self.bytes.push(0b10 << 6 | field | base & 7);
                if base & 7 == RSP {
                    self.bytes.push(0b00_100_100);
                }
                self.bytes.extend(offset.to_le_bytes());
            }
            Operand::Constant(at) | Operand::Constants(at) => {
                self.bytes.push(field | 0b101);
                fix = Some((self.bytes.len(), at));
                self.bytes.extend(0i32.to_le_bytes());
            }
        }
        self.bytes.extend(immediate);
        if let Some((place, at)) = fix {
            self.fixes.push((place, self.bytes.len(), at));
        }
    }

    /// `mov to, [rdi + offset]`, 64 bits.
    pub(super) fn load_pointer(&mut self, to: Gpr, offset: i32) {
        self.bytes.extend([0x48 | (to >> 3) << 2, 0x8b, 0b10 << 6 | (to & 7) << 3 | RDI]);
        self.bytes.extend(offset.to_le_bytes());
    }

    pub(super) fn push(&mut self, register: Gpr) {
        if register >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x50 | register & 7);
    }

    pub(super) fn pop(&mut self, register: Gpr) {
        if register >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x58 | register & 7);
    }

    /// `add register, value`, 64 bits.
    pub(super) fn add_immediate(&mut self, register: Gpr, value: i32) {
        self.bytes.extend([0x48 | register >> 3, 0x81, 0b11 << 6 | register & 7]);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A jump of which the target is not known yet: the place of its displacement. `condition` is that of `jcc`.
    pub(super) fn jump_if(&mut self, condition: u8) -> usize {
        self.bytes.extend([0x0f, 0x80 | condition, 0, 0, 0, 0]);
        self.bytes.len() - 4
    }

    pub(super) fn jump_back(&mut self, target: usize) {
        self.bytes.extend([0xe9, 0, 0, 0, 0]);
        let end = self.bytes.len();
        self.patch(end - 4, target);
    }

    /// Lets the jump at `place` go to `target`.
    pub(super) fn patch(&mut self, place: usize, target: usize) {
        let distance = (target as i64 - (place as i64 + 4)) as i32;
        self.bytes[place..place + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// The code, then its constants.
    pub(super) fn finish(mut self) -> Vec<u8> {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0xcc);
        }
        let pool = self.bytes.len();
        for (place, end, at) in &self.fixes {
            let distance = ((pool + at * 4) as i64 - *end as i64) as i32;
            self.bytes[*place..*place + 4].copy_from_slice(&distance.to_le_bytes());
        }
        for number in &self.pool {
            self.bytes.extend(number.to_le_bytes());
        }
        self.bytes
    }
}
