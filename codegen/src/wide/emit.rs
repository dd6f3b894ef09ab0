//! A vector program to bytes: registers in one pass over straight-line code, twice, for whole registers and for the rest.
//!
//! Constants and row values stay in memory and are repeated by the instructions that read them. When registers run out, the
//! value that is needed last goes to the stack. Comparisons that only select live in mask registers.

use super::encode::{self as x86, ALL, Assembler, Gpr, Lanes, Operand, Zmm};
use super::program::{Binary, Comparison, Form, Id, Join, Op, Program, Unary};

/// General registers for pointers: first those that a function may change, then those that it must give back.
const POINTERS: [Gpr; 11] = [0, 2, 8, 9, 10, 3, 5, 12, 13, 14, 15];
const CHANGEABLE: usize = 5;
/// Mask registers for comparisons; 6 is for short uses, 7 for the lanes of the rest.
const MASKS: [u8; 5] = [1, 2, 3, 4, 5];
const TEMPORARY_MASK: u8 = 6;
const REST: Lanes = Lanes { mask: 7, zero: false };
const N_REGISTERS: u8 = 32;

/// Conditions of `jcc`.
const EQUAL: u8 = 4;
const GREATER: u8 = 0xf;

/// The function's code. At most eight folds: each keeps a register.
pub(crate) fn compile(program: &Program) -> Vec<u8> {
    let live = live(program);
    let mut pointers: Vec<u32> = Vec::new();
    let mut folds: Vec<(u32, Join, Zmm)> = Vec::new();
    for (op, _) in program.ops.iter().zip(&live).filter(|(_, live)| **live) {
        match *op {
            Op::Load { pointer, .. } | Op::Store { pointer, .. } if !pointers.contains(&pointer) => {
                pointers.push(pointer)
            }
            Op::Fold { pointer, join, .. } => folds.push((pointer, join, N_REGISTERS - 1 - folds.len() as u8)),
            _ => {}
        }
    }
    let mut code = Assembler::default();
    let kept: Vec<Gpr> = POINTERS.iter().take(pointers.len()).skip(CHANGEABLE).copied().collect();
    kept.iter().for_each(|register| code.push(*register));
    code.add_immediate(x86::RSP, 0);
    let frame = code.bytes.len() - 4;
    for (pointer, register) in pointers.iter().zip(POINTERS) {
        code.load_pointer(register, *pointer as i32 * 8);
    }
    for (_, join, register) in &folds {
        let neutral = code.constant(join.neutral());
        code.op(x86::BROADCAST, *register, 0, Operand::Constant(neutral), None, ALL);
    }
    // xor ecx, ecx; rsi counts to the last position at which a whole register begins.
    code.bytes.extend([0x31, 0xc9]);
    code.add_immediate(x86::RSI, -16);
    let top = code.bytes.len();
    // cmp rcx, rsi
    code.bytes.extend([0x48, 0x39, 0xf1]);
    let to_rest = code.jump_if(GREATER);
    let mut slots = 0;
    let mut body = |code: &mut Assembler, lanes| {
        let mut body = Body::new(program, &live, &pointers, &folds, code, lanes);
        body.run();
        slots = slots.max(body.n_slots);
    };
    body(&mut code, ALL);
    code.add_immediate(x86::RCX, 16);
    code.jump_back(top);
    let rest = code.bytes.len();
    code.patch(to_rest, rest);
    // lea r11, [rsi + 16]; sub r11, rcx: how many positions are left.
    code.bytes.extend([0x4c, 0x8d, 0x5e, 0x10, 0x49, 0x29, 0xcb]);
    let to_end = code.jump_if(EQUAL);
    // k7 = (1 << r11) - 1, with rcx kept.
    code.push(x86::RCX);
    code.bytes.extend([0x44, 0x89, 0xd9]);
    code.bytes.extend([0x41, 0xbb, 1, 0, 0, 0]);
    code.bytes.extend([0x41, 0xd3, 0xe3]);
    code.bytes.extend([0x41, 0xff, 0xcb]);
    code.pop(x86::RCX);
    code.bytes.extend([0xc4, 0xc1, 0x78, 0x92, 0xfb]);
    body(&mut code, REST);
    let end = code.bytes.len();
    code.patch(to_end, end);
    for (pointer, join, register) in &folds {
        fold_lanes(&mut code, *join, *register);
        code.load_pointer(x86::R11, *pointer as i32 * 8);
        code.op(x86::STORE, *register, 0, Operand::At { base: x86::R11, offset: 0 }, None, ALL);
    }
    let bytes = slots as i32 * 64;
    code.bytes[frame..frame + 4].copy_from_slice(&(-bytes).to_le_bytes());
    code.add_immediate(x86::RSP, bytes);
    kept.iter().rev().for_each(|register| code.pop(*register));
    // vzeroupper; ret
    code.bytes.extend([0xc5, 0xf8, 0x77, 0xc3]);
    code.finish()
}

/// Operations with an effect, and what they need.
fn live(program: &Program) -> Vec<bool> {
    let mut live = vec![false; program.ops.len()];
    for (at, op) in program.ops.iter().enumerate().rev() {
        live[at] |= matches!(op, Op::Store { .. } | Op::Fold { .. });
        if live[at] {
            op.uses().for_each(|id| live[id as usize] = true);
        }
    }
    live
}

/// The tree of a fold: lane i with lane i + 8, then + 4, + 2, + 1. Registers 0 and 1 are free by now.
fn fold_lanes(code: &mut Assembler, join: Join, register: Zmm) {
    for width in [8u8, 4, 2, 1] {
        code.op(x86::ALIGN, 0, register, Operand::Register(register), Some(width), ALL);
        join_into(code, join, register, 0, 1, ALL);
    }
}

/// `to = join(to, value)` in these lanes, through a free register.
fn join_into(code: &mut Assembler, join: Join, to: Zmm, value: Zmm, free: Zmm, lanes: Lanes) {
    let op = match join {
        Join::SumF => x86::ADD_F,
        Join::SumI => x86::ADD_I,
        Join::MaxI => x86::MAX_I,
        Join::MaxF => {
            larger(code, free, Operand::Register(to), value);
            return code.op(x86::LOAD, to, 0, Operand::Register(free), None, lanes);
        }
    };
    code.op(op, to, to, Operand::Register(value), None, lanes);
}

/// `to = y > x or y is NaN ? y : x`. The instruction gives x when either is NaN.
fn larger(code: &mut Assembler, to: Zmm, x: Operand, y: Zmm) {
    code.op(x86::MAX_F, to, y, x, None, ALL);
    code.op(x86::COMPARE_F, TEMPORARY_MASK, y, Operand::Register(y), Some(predicate(Comparison::UnorderedF)), ALL);
    let nan = Lanes { mask: TEMPORARY_MASK, zero: false };
    code.op(x86::LOAD, to, 0, Operand::Register(y), None, nan);
}

fn predicate(comparison: Comparison) -> u8 {
    match comparison {
        Comparison::EqualF | Comparison::EqualI => 0,
        Comparison::LessF => 0x11,
        Comparison::UnorderedF => 3,
        Comparison::NotEqualF | Comparison::NotEqualI => 4,
        Comparison::LessI => 1,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Nowhere,
    Register(Zmm),
    Stack(u32),
    Mask(u8),
}

struct Body<'a> {
    program: &'a Program,
    live: &'a [bool],
    pointers: &'a [u32],
    folds: &'a [(u32, Join, Zmm)],
    code: &'a mut Assembler,
    /// Lanes that memory is touched in.
    lanes: Lanes,
    homes: Vec<Home>,
    /// What a register holds.
    held: [Option<Id>; N_REGISTERS as usize],
    /// Registers of the operation that is being written.
    pinned: Vec<Zmm>,
    masks: Vec<u8>,
    /// The uses of each value, last first.
    uses: Vec<Vec<u32>>,
    at: u32,
    n_slots: u32,
}

impl<'a> Body<'a> {
    fn new(
        program: &'a Program,
        live: &'a [bool],
        pointers: &'a [u32],
        folds: &'a [(u32, Join, Zmm)],
        code: &'a mut Assembler,
        lanes: Lanes,
    ) -> Body<'a> {
        let mut uses = vec![Vec::new(); program.ops.len()];
        for (at, op) in program.ops.iter().enumerate().rev().filter(|(at, _)| live[*at]) {
            op.uses().for_each(|id| uses[id as usize].push(at as u32));
        }
        Body {
            homes: vec![Home::Nowhere; program.ops.len()],
            program,
            live,
            pointers,
            folds,
            code,
            lanes,
            held: [None; N_REGISTERS as usize],
            pinned: Vec::new(),
            masks: MASKS.to_vec(),
            uses,
            at: 0,
            n_slots: 0,
        }
    }

    fn run(&mut self) {
        let program = self.program;
        let mut folded = 0;
        for (at, op) in program.ops.iter().enumerate() {
            if !self.live[at] {
                continue;
            }
            self.at = at as u32;
            self.pinned.clear();
            match *op {
                Op::Fold { join, value, .. } => {
                    let (_, _, sum) = self.folds[folded];
                    folded += 1;
                    let value = self.register(value);
                    let free = if join == Join::MaxF { self.free() } else { 0 };
                    join_into(self.code, join, sum, value, free, self.lanes);
                }
                _ => self.op(at as Id, *op),
            }
            self.release(op);
        }
    }

    /// Gives back the places of values that are used no more.
    fn release(&mut self, op: &Op) {
        for id in op.uses() {
            let uses = &mut self.uses[id as usize];
            while uses.last().is_some_and(|next| *next <= self.at) {
                uses.pop();
            }
            if uses.is_empty() {
                match std::mem::replace(&mut self.homes[id as usize], Home::Nowhere) {
                    Home::Register(register) => self.held[register as usize] = None,
                    Home::Mask(mask) => self.masks.push(mask),
                    Home::Stack(_) | Home::Nowhere => {}
                }
            }
        }
    }

    /// A register that holds nothing; a value may move to the stack for it.
    fn free(&mut self) -> Zmm {
        let usable = N_REGISTERS - self.folds.len() as u8;
        let empty = (0..usable).find(|register| self.held[*register as usize].is_none() && !self.is_pinned(*register));
        let register = empty.unwrap_or_else(|| {
            // Among what this operation does not need, the value whose next use is furthest.
            let candidates = (0..usable).filter(|register| !self.is_pinned(*register));
            let next = |register: &Zmm| {
                let id = self.held[*register as usize].unwrap_or(0);
                self.uses[id as usize].last().copied().unwrap_or(u32::MAX)
            };
            let register =
                candidates.max_by_key(next).unwrap_or_else(|| mdl_graph::bug!("an operation needs 24 registers"));
            self.evict(register);
            register
        });
        self.pinned.push(register);
        register
    }

    fn is_pinned(&self, register: Zmm) -> bool {
        self.pinned.contains(&register)
    }

    fn evict(&mut self, register: Zmm) {
        let Some(id) = self.held[register as usize].take() else { return };
        let again = matches!(self.program.ops[id as usize], Op::Constant(_) | Op::Row { .. });
        self.homes[id as usize] = if again {
            Home::Nowhere
        } else {
            let slot = self.n_slots;
            self.n_slots += 1;
            let to = Operand::At { base: x86::RSP, offset: slot as i32 * 64 };
            self.code.op(x86::STORE, register, 0, to, None, ALL);
            Home::Stack(slot)
        };
    }

    /// The value in a register.
    fn register(&mut self, id: Id) -> Zmm {
        match self.homes[id as usize] {
            Home::Register(register) => {
                self.pinned.push(register);
                register
            }
            Home::Stack(slot) => {
                let register = self.result(id);
                let from = Operand::At { base: x86::RSP, offset: slot as i32 * 64 };
                self.code.op(x86::LOAD, register, 0, from, None, ALL);
                register
            }
            Home::Nowhere => {
                let from = self.repeated(id).unwrap_or_else(|| mdl_graph::bug!("value {id} is nowhere"));
                let register = self.result(id);
                let from = match from {
                    // A broadcast reads one number itself.
                    Operand::Repeated { base, offset } => Operand::At { base, offset },
                    other => other,
                };
                self.code.op(x86::BROADCAST, register, 0, from, None, ALL);
                register
            }
            Home::Mask(_) => mdl_graph::bug!("value {id} is a mask"),
        }
    }

    /// Constants and row values, where they are.
    fn repeated(&mut self, id: Id) -> Option<Operand> {
        match self.program.ops[id as usize] {
            Op::Constant(bits) => Some(Operand::Constant(self.code.constant(bits))),
            Op::Row { cell } => Some(Operand::Repeated { base: x86::RDI, offset: cell as i32 * 8 }),
            _ => None,
        }
    }

    /// The value as the last operand of an instruction.
    fn operand(&mut self, id: Id) -> Operand {
        match self.homes[id as usize] {
            Home::Nowhere => self.repeated(id).unwrap_or_else(|| mdl_graph::bug!("value {id} is nowhere")),
            Home::Stack(slot) => Operand::At { base: x86::RSP, offset: slot as i32 * 64 },
            Home::Register(_) | Home::Mask(_) => Operand::Register(self.register(id)),
        }
    }

    /// A register for a value that is about to be made.
    fn result(&mut self, id: Id) -> Zmm {
        let register = self.free();
        self.held[register as usize] = Some(id);
        self.homes[id as usize] = Home::Register(register);
        register
    }

    /// Where a run lies. Pointers beyond those that have a register are fetched when they are used.
    fn run_of(&mut self, pointer: u32, form: Form) -> Operand {
        let at = self.pointers.iter().position(|known| *known == pointer);
        let base = at.and_then(|at| POINTERS.get(at).copied()).unwrap_or(x86::R11);
        if base == x86::R11 {
            self.code.load_pointer(base, pointer as i32 * 8);
        }
        let scale = match form {
            Form::Word => 4,
            Form::Bf16 | Form::F16 => 2,
            Form::I8 | Form::U8 | Form::Bool => 1,
        };
        Operand::Run { base, scale }
    }

    fn op(&mut self, id: Id, op: Op) {
        match op {
            Op::Constant(_) | Op::Row { .. } => {}
            Op::Load { pointer, form } => self.load(id, pointer, form),
            Op::Position => {
                let to = self.result(id);
                let first = self.code.positions();
                self.code.op(x86::BROADCAST_GENERAL, to, 0, Operand::Register(x86::RCX), None, ALL);
                self.code.op(x86::ADD_I, to, to, first, None, ALL);
            }
            Op::Unary(unary, x) => self.unary(id, unary, x),
            Op::Binary(binary, x, y) => self.binary(id, binary, x, y),
            Op::Compare(comparison, x, y) => self.compare(id, comparison, x, y),
            Op::Select(mask, yes, no) => self.select(id, mask, yes, no),
            Op::Store { pointer, form, value } => self.store(pointer, form, value),
            Op::Fold { .. } => mdl_graph::bug!("a fold is written in `run`"),
        }
    }

    fn load(&mut self, id: Id, pointer: u32, form: Form) {
        let (from, to) = (self.run_of(pointer, form), self.result(id));
        let lanes = Lanes { zero: self.lanes.mask != 0, ..self.lanes };
        let op = match form {
            Form::Word => x86::LOAD,
            Form::Bf16 => x86::WIDEN_U16,
            Form::F16 => x86::HALF_TO_FLOAT,
            Form::I8 => x86::WIDEN_I8,
            Form::U8 | Form::Bool => x86::WIDEN_U8,
        };
        self.code.op(op, to, 0, from, None, lanes);
        match form {
            Form::Bf16 => self.code.op(x86::SHIFT, 6, to, Operand::Register(to), Some(16), ALL),
            Form::Bool => {
                let zero = Operand::Constant(self.code.constant(0));
                let not_equal = Some(predicate(Comparison::NotEqualI));
                self.code.op(x86::COMPARE_I, TEMPORARY_MASK, to, zero, not_equal, ALL);
                self.code.op(x86::MASK_TO_VECTOR, to, 0, Operand::Register(TEMPORARY_MASK), None, ALL);
            }
            Form::Word | Form::F16 | Form::I8 | Form::U8 => {}
        }
    }

    fn store(&mut self, pointer: u32, form: Form, value: Id) {
        let (to, value) = (self.run_of(pointer, form), self.register(value));
        let (op, immediate) = match form {
            Form::Word => (x86::STORE, None),
            Form::Bf16 => (x86::NARROW_TO_16, None),
            Form::F16 => (x86::FLOAT_TO_HALF, Some(0)),
            Form::I8 | Form::U8 | Form::Bool => (x86::NARROW_TO_8, None),
        };
        let from = match form {
            Form::Bf16 => {
                let upper = self.free();
                self.code.op(x86::SHIFT, 2, upper, Operand::Register(value), Some(16), ALL);
                upper
            }
            Form::Bool => {
                let bit = self.free();
                let one = Operand::Constant(self.code.constant(1));
                self.code.op(x86::AND, bit, value, one, None, ALL);
                bit
            }
            Form::Word | Form::F16 | Form::I8 | Form::U8 => value,
        };
        self.code.op(op, from, 0, to, immediate, self.lanes);
    }

    fn unary(&mut self, id: Id, unary: Unary, x: Id) {
        let (op, field, immediate) = match unary {
            Unary::RoundF16 => {
                let (x, to) = (self.register(x), self.result(id));
                self.code.op(x86::FLOAT_TO_HALF, x, 0, Operand::Register(to), Some(0), ALL);
                return self.code.op(x86::HALF_TO_FLOAT, to, 0, Operand::Register(to), None, ALL);
            }
            Unary::SqrtF => (x86::SQRT_F, None, None),
            Unary::FloorF => (x86::ROUND_SCALE, None, Some(0x09)),
            Unary::ToFloat => (x86::FLOAT_OF_INT, None, None),
            Unary::ToInt => (x86::INT_OF_FLOAT, None, None),
            Unary::Left(places) => (x86::SHIFT, Some(6), Some(places)),
            Unary::Right(places) => (x86::SHIFT, Some(2), Some(places)),
            Unary::RightSigned(places) => (x86::SHIFT, Some(4), Some(places)),
        };
        let x = self.operand(x);
        let to = self.result(id);
        match field {
            Some(field) => self.code.op(op, field, to, x, immediate, ALL),
            None => self.code.op(op, to, 0, x, immediate, ALL),
        }
    }

    fn binary(&mut self, id: Id, binary: Binary, x: Id, y: Id) {
        let op = match binary {
            Binary::AddF => x86::ADD_F,
            Binary::SubF => x86::SUB_F,
            Binary::MulF => x86::MUL_F,
            Binary::DivF => x86::DIV_F,
            Binary::AddI => x86::ADD_I,
            Binary::SubI => x86::SUB_I,
            Binary::MulI => x86::MUL_I,
            Binary::MaxI => x86::MAX_I,
            Binary::And => x86::AND,
            Binary::Or => x86::OR,
            Binary::Xor => x86::XOR,
            Binary::MaxF => {
                let y = self.register(y);
                let x = self.operand(x);
                let to = self.result(id);
                return larger(self.code, to, x, y);
            }
        };
        // The last operand may be in memory, so of two that commute it is the one that is.
        let commutes = !matches!(binary, Binary::SubF | Binary::DivF | Binary::SubI);
        let in_register = |home: Home| matches!(home, Home::Register(_));
        let turn = commutes && !in_register(self.homes[x as usize]) && in_register(self.homes[y as usize]);
        let (x, y) = if turn { (y, x) } else { (x, y) };
        let x = self.register(x);
        let y = self.operand(y);
        let to = self.result(id);
        self.code.op(op, to, x, y, None, ALL);
    }

    fn compare(&mut self, id: Id, comparison: Comparison, x: Id, y: Id) {
        let op = match comparison {
            Comparison::LessF | Comparison::EqualF | Comparison::UnorderedF | Comparison::NotEqualF => x86::COMPARE_F,
            Comparison::LessI | Comparison::EqualI | Comparison::NotEqualI => x86::COMPARE_I,
        };
        let x = self.register(x);
        let y = self.operand(y);
        let selects = self.uses[id as usize].iter().all(|user| match self.program.ops[*user as usize] {
            Op::Select(mask, yes, no) => mask == id && yes != id && no != id,
            _ => false,
        });
        let own = if selects { self.masks.pop() } else { None };
        let mask = own.unwrap_or(TEMPORARY_MASK);
        self.code.op(op, mask, x, y, Some(predicate(comparison)), ALL);
        match own {
            Some(mask) => self.homes[id as usize] = Home::Mask(mask),
            None => {
                let to = self.result(id);
                self.code.op(x86::MASK_TO_VECTOR, to, 0, Operand::Register(mask), None, ALL);
            }
        }
    }

    fn select(&mut self, id: Id, mask: Id, yes: Id, no: Id) {
        if let Home::Mask(mask) = self.homes[mask as usize] {
            let lanes = Lanes { mask, zero: false };
            if self.program.ops[no as usize] == Op::Constant(0) {
                let yes = Operand::Register(self.register(yes));
                let to = self.result(id);
                return self.code.op(x86::LOAD, to, 0, yes, None, Lanes { zero: true, ..lanes });
            }
            let no = self.register(no);
            let yes = self.operand(yes);
            let to = self.result(id);
            return self.code.op(x86::BLEND, to, no, yes, None, lanes);
        }
        let mask = self.register(mask);
        let yes = self.register(yes);
        let no = self.operand(no);
        let to = self.result(id);
        self.code.op(x86::LOAD, to, 0, Operand::Register(mask), None, ALL);
        // By the bits of the first: the second's where set, else the third's.
        self.code.op(x86::TERNARY_LOGIC, to, yes, no, Some(0xca), ALL);
    }
}
