//! Row statements, inlined loops, calls on strips, and the spelling of each scalar operation.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I16, I32, I32X4, I64};
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value};
use mdl_compiler::kernel::{FoldKind, Rank, ScalarOp, Stmt, ValId};
use mdl_graph::{DType, Scalar, bug};

use super::{Emitter, clif_type, memory};
use crate::nest::{Home, Spelling, strip_bytes};

/// Bit casts between vectors need a byte order; lanes are little-endian on both architectures.
fn lanes() -> MemFlagsData {
    MemFlagsData::new().with_endianness(Endianness::Little)
}

/// The type of one number, or of four.
fn wide(dtype: DType, vector: bool) -> Type {
    match (clif_type(dtype), vector) {
        (F32, true) => F32X4,
        (I32, true) => I32X4,
        (one, _) => one,
    }
}

/// Values of the current pass of an inlined loop.
struct Pass {
    vector: bool,
    known: Vec<Option<Value>>,
}

impl Emitter<'_, '_> {
    /// A statement on row values.
    pub(crate) fn row(&mut self, stmt: usize) {
        let scope = self.scope;
        match &scope.body[stmt] {
            Stmt::Load { val, buf, access } => {
                self.rows[val.0 as usize] = Some(self.load_row(*val, buf.0 as usize, access))
            }
            Stmt::Const { val, value } => {
                let dtype = scope.vals[val.0 as usize].dtype;
                self.rows[val.0 as usize] = Some(self.constant(dtype, *value));
            }
            Stmt::Index { val, index } => {
                let value = self.index(index, None);
                let narrow = scope.vals[val.0 as usize].dtype == DType::I32;
                self.rows[val.0 as usize] = Some(if narrow { self.b.ins().ireduce(I32, value) } else { value });
            }
            Stmt::Map { val, op, args } => {
                let value = match scope.spelling(*op, args, *val) {
                    Spelling::Inline { .. } => {
                        let values: Vec<Value> = args.iter().map(|arg| self.row_value(*arg)).collect();
                        self.operation(*op, args, *val, &values, false)
                    }
                    Spelling::Call => {
                        let to = self.cell(*val);
                        let mut cells = Vec::new();
                        for (number, arg) in args.iter().enumerate() {
                            let value = self.row_value(*arg);
                            if matches!(op, ScalarOp::Uniform { .. }) && number < 3 {
                                cells.push(value);
                                continue;
                            }
                            let cell = self.argument_cell((number % 3) as u64);
                            self.b.ins().store(memory(), value, cell, 0);
                            cells.push(cell);
                        }
                        let one = self.int(1);
                        self.strip_call(*op, *val, to, &cells, one);
                        self.b.ins().load(clif_type(scope.vals[val.0 as usize].dtype), memory(), to, 0)
                    }
                };
                self.rows[val.0 as usize] = Some(value);
            }
            Stmt::Store { buf, access, val } => self.store_row(*val, buf.0 as usize, access),
            Stmt::Exit { kind, val, .. } => {
                let dtype = scope.vals[val.0 as usize].dtype;
                let (kind, val) = (*kind, *val);
                let to = self.exit_address(stmt);
                let old = self.b.ins().load(clif_type(dtype), memory(), to, 0);
                let value = self.row_value(val);
                let joined = self.join(kind, dtype, old, value, false);
                self.b.ins().store(memory(), joined, to, 0);
            }
            Stmt::Fold { .. } => bug!("a fold is not a row statement"),
        }
    }

    pub(super) fn exit_address(&self, stmt: usize) -> Value {
        let found = self.exits.iter().find(|(exit, _)| *exit == stmt);
        found.unwrap_or_else(|| bug!("an exit outside a nest")).1
    }

    pub(super) fn join(&mut self, kind: FoldKind, dtype: DType, x: Value, y: Value, vector: bool) -> Value {
        match (kind, dtype.is_float()) {
            (FoldKind::Sum, true) => self.b.ins().fadd(x, y),
            (FoldKind::Sum, false) => self.b.ins().iadd(x, y),
            (FoldKind::Max, true) => self.max_float(x, y, dtype, vector),
            (FoldKind::Max, false) => self.b.ins().smax(x, y),
        }
    }

    /// The larger, NaN when either is: y when it is larger or NaN, else x (which stays when it is NaN).
    fn max_float(&mut self, x: Value, y: Value, dtype: DType, vector: bool) -> Value {
        let larger = self.b.ins().fcmp(FloatCC::GreaterThan, y, x);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, y, y);
        let second = self.b.ins().bor(larger, nan);
        if !vector {
            return self.b.ins().select(second, y, x);
        }
        let mask = self.b.ins().bitcast(wide(dtype, true), lanes(), second);
        self.b.ins().bitselect(mask, y, x)
    }

    /// A fold or a routine on strips.
    pub(crate) fn call_item(&mut self, stmt: usize, several: bool) {
        let scope = self.scope;
        let count = self.tile.1;
        match &scope.body[stmt] {
            Stmt::Fold { val, kind, from } => {
                let dtype = scope.vals[val.0 as usize].dtype;
                let x = self.strip(*from, 0);
                let cell = self.cell(*val);
                let routine = match (kind, dtype) {
                    (FoldKind::Sum, DType::F64) => "sum_f64",
                    (FoldKind::Sum, DType::I64) => "sum_i64",
                    (FoldKind::Sum, DType::I32) => "sum_i32",
                    (FoldKind::Sum, _) => "sum_f32",
                    (FoldKind::Max, DType::F64) => "max_f64",
                    (FoldKind::Max, DType::I64) => "max_i64",
                    (FoldKind::Max, DType::I32) => "max_i32",
                    (FoldKind::Max, _) => "max_f32",
                };
                if !several {
                    self.call(routine, &[cell, x, count]);
                    return;
                }
                let part = self.argument_cell(0);
                self.call(routine, &[part, x, count]);
                let part = self.b.ins().load(clif_type(dtype), memory(), part, 0);
                let old = self.b.ins().load(clif_type(dtype), memory(), cell, 0);
                let joined = self.join(*kind, dtype, old, part, false);
                self.b.ins().store(memory(), joined, cell, 0);
            }
            Stmt::Map { val, op, args } => {
                let to = self.slot(*val);
                if let ScalarOp::Uniform { .. } = op
                    && args[..3].iter().any(|arg| scope.is_strip(*arg))
                {
                    self.draw_one_by_one(*op, *val, args, to);
                    return;
                }
                let mut operands = Vec::new();
                for (number, arg) in args.iter().enumerate() {
                    let whole = !matches!(op, ScalarOp::Uniform { .. }) || number == 3;
                    operands.push(if whole { self.strip(*arg, number) } else { self.row_value(*arg) });
                }
                self.strip_call(*op, *val, to, &operands, count);
            }
            Stmt::Load { .. } | Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => {
                bug!("statement {stmt} is not a call")
            }
        }
    }

    /// Draws whose key or lane changes along the strip.
    fn draw_one_by_one(&mut self, op: ScalarOp, val: ValId, args: &[ValId], to: Value) {
        let strips: Vec<Value> = args.iter().enumerate().map(|(number, arg)| self.strip(*arg, number)).collect();
        let (zero, count) = (self.int(0), self.tile.1);
        self.repeat(zero, count, 1, |e, j| {
            let offset = e.times(j, 4);
            let mut operands = Vec::new();
            for (number, strip) in strips.iter().enumerate() {
                let at = e.b.ins().iadd(*strip, offset);
                operands.push(if number < 3 { e.b.ins().load(I32, memory(), at, 0) } else { at });
            }
            let (to, one) = (e.sum(to, offset), e.int(1));
            e.strip_call(op, val, to, &operands, one);
        });
    }

    /// Calls the routine of an operation.
    fn strip_call(&mut self, op: ScalarOp, val: ValId, to: Value, operands: &[Value], count: Value) {
        let double = self.scope.vals[val.0 as usize].dtype == DType::F64;
        let pick = |single, twice| if double { twice } else { single };
        let name = match op {
            ScalarOp::Exp => pick("exp_f32", "exp_f64"),
            ScalarOp::Log => pick("log_f32", "log_f64"),
            ScalarOp::Tanh => pick("tanh_f32", "tanh_f64"),
            ScalarOp::Erf => pick("erf_f32", "erf_f64_strip"),
            ScalarOp::Sin => pick("sin_f32", "sin_f64"),
            ScalarOp::Cos => pick("cos_f32", "cos_f64"),
            ScalarOp::Pow => pick("pow_f32", "pow_f64"),
            ScalarOp::Round(DType::BF16) => "round_bf16",
            ScalarOp::Round(DType::F16) => "round_f16",
            ScalarOp::Uniform { place } => {
                let place = self.b.ins().iconst(I32, i64::from(place));
                let [seed, step, lane, counters] = operands[..] else {
                    bug!("a draw has {} arguments", operands.len())
                };
                self.call("uniform_f32", &[to, seed, step, lane, place, counters, count]);
                return;
            }
            _ => bug!("{op} is not a call"),
        };
        let mut args = vec![to];
        args.extend_from_slice(operands);
        args.push(count);
        self.call(name, &args);
    }

    /// One loop over the tile for several statements: four positions at a time, then the rest one by one.
    pub(crate) fn inlined(&mut self, stmts: &[usize], vector: bool) {
        let scope = self.scope;
        // Addresses and repeated row values do not change along the strip.
        let mut bases: Vec<Option<Value>> = vec![None; scope.vals.len()];
        let mut targets: Vec<Option<Value>> = vec![None; scope.body.len()];
        let mut reads: Vec<ValId> = Vec::new();
        let mut rows: Vec<ValId> = Vec::new();
        for stmt in stmts {
            for val in crate::nest::used(&scope.body[*stmt]) {
                if scope.vals[val.0 as usize].rank == Rank::Row {
                    rows.push(val);
                    continue;
                }
                let made_here = stmts.iter().any(|other| crate::nest::defined(&scope.body[*other]) == Some(val));
                if !made_here && bases[val.0 as usize].is_none() {
                    bases[val.0 as usize] = Some(self.strip(val, 0));
                    reads.push(val);
                }
            }
            match &scope.body[*stmt] {
                Stmt::Store { .. } => targets[*stmt] = Some(self.run_address(*stmt)),
                Stmt::Exit { .. } => {
                    let Stmt::Exit { val, .. } = &scope.body[*stmt] else { continue };
                    let bytes = strip_bytes(scope.vals[val.0 as usize].dtype) as i64;
                    let base = self.exit_address(*stmt);
                    let along = self.times(self.tile.0, bytes);
                    targets[*stmt] = Some(self.sum(base, along));
                }
                other => {
                    if let Some(val) = crate::nest::defined(other)
                        && let Home::Slot { .. } = self.plan.homes[val.0 as usize]
                    {
                        targets[*stmt] = Some(self.slot(val));
                    }
                }
            }
        }
        // Buffers are read in the order of their loads, before anything is written.
        reads.sort_by_key(|val| val.0);
        let count = self.tile.1;
        let zero = self.int(0);
        let whole = match (vector, self.length) {
            (false, _) => zero,
            (true, Some(length)) => self.int((length & !3) as i64),
            (true, None) => {
                let mask = self.int(!3);
                self.b.ins().band(count, mask)
            }
        };
        let some_whole = vector && self.length.is_none_or(|length| length >= 4);
        let some_rest = !vector || self.length.is_none_or(|length| length % 4 != 0);
        for four in [true, false] {
            if !(if four { some_whole } else { some_rest }) {
                continue;
            }
            let mut known = vec![None; scope.vals.len()];
            for val in &rows {
                let value = self.row_value(*val);
                let ty = wide(scope.vals[val.0 as usize].dtype, four);
                known[val.0 as usize] = Some(if four { self.b.ins().splat(ty, value) } else { value });
            }
            let (lo, hi, step) = if four { (zero, whole, 4) } else { (whole, count, 1) };
            self.repeat(lo, hi, step, |e, j| {
                let mut pass = Pass { vector: four, known };
                for val in &reads {
                    let dtype = scope.vals[val.0 as usize].dtype;
                    let at = e.moved(bases[val.0 as usize], j, dtype);
                    pass.known[val.0 as usize] = Some(e.b.ins().load(wide(dtype, four), memory(), at, 0));
                }
                for stmt in stmts {
                    e.inlined_stmt(*stmt, &mut pass, j, targets[*stmt]);
                }
            });
        }
    }

    fn moved(&mut self, base: Option<Value>, j: Value, dtype: DType) -> Value {
        let base = base.unwrap_or_else(|| bug!("a strip without an address"));
        let offset = self.times(j, strip_bytes(dtype) as i64);
        self.sum(base, offset)
    }

    fn inlined_stmt(&mut self, stmt: usize, pass: &mut Pass, j: Value, target: Option<Value>) {
        let scope = self.scope;
        let get =
            |pass: &Pass, val: ValId| pass.known[val.0 as usize].unwrap_or_else(|| bug!("{val} is not in this loop"));
        let (made, dtype) = match &scope.body[stmt] {
            Stmt::Map { val, op, args } => {
                let values: Vec<Value> = args.iter().map(|arg| get(pass, *arg)).collect();
                let value = self.operation(*op, args, *val, &values, pass.vector);
                pass.known[val.0 as usize] = Some(value);
                (value, scope.vals[val.0 as usize].dtype)
            }
            Stmt::Index { val, index } => {
                let dtype = scope.vals[val.0 as usize].dtype;
                let position = self.sum(self.tile.0, j);
                let mut value = self.index(index, Some(position));
                if dtype == DType::I32 {
                    value = self.b.ins().ireduce(I32, value);
                }
                if pass.vector {
                    let strip = scope.strip();
                    let coef: i64 = index.terms.iter().filter(|(dim, _)| *dim == strip).map(|(_, coef)| coef).sum();
                    value = self.b.ins().splat(I32X4, value);
                    for lane in 1..4u8 {
                        let step = self.b.ins().iconst(I32, i64::from((coef * i64::from(lane)) as u32));
                        let zero = self.b.ins().iconst(I32, 0);
                        let zeros = self.b.ins().splat(I32X4, zero);
                        let steps = self.b.ins().insertlane(zeros, step, lane);
                        value = self.b.ins().iadd(value, steps);
                    }
                }
                pass.known[val.0 as usize] = Some(value);
                (value, dtype)
            }
            Stmt::Store { val, .. } => (get(pass, *val), scope.vals[val.0 as usize].dtype),
            Stmt::Exit { val, kind, .. } => {
                let dtype = scope.vals[val.0 as usize].dtype;
                let at = self.moved(target, j, dtype);
                let old = self.b.ins().load(wide(dtype, pass.vector), memory(), at, 0);
                let value = get(pass, *val);
                (self.join(*kind, dtype, old, value, pass.vector), dtype)
            }
            Stmt::Load { .. } | Stmt::Const { .. } | Stmt::Fold { .. } => bug!("statement {stmt} in a loop"),
        };
        if target.is_some() {
            let at = self.moved(target, j, dtype);
            self.b.ins().store(memory(), made, at, 0);
        }
    }

    /// The mask of a comparison: all ones or zero, of 32 bits.
    fn mask(&mut self, comparison: Value, vector: bool) -> Value {
        if vector { comparison } else { self.b.ins().bmask(I32, comparison) }
    }

    /// A constant in every lane.
    fn every(&mut self, dtype: DType, value: Scalar, vector: bool) -> Value {
        let one = self.constant(dtype, value);
        if vector { self.b.ins().splat(wide(dtype, true), one) } else { one }
    }

    /// `condition ? x : y` for a 32-bit mask.
    fn choose(&mut self, mask: Value, x: Value, y: Value, dtype: DType, vector: bool) -> Value {
        if vector {
            let mask = if dtype == DType::F32 { self.b.ins().bitcast(F32X4, lanes(), mask) } else { mask };
            return self.b.ins().bitselect(mask, x, y);
        }
        self.b.ins().select(mask, x, y)
    }

    /// One scalar operation, in one or four lanes.
    fn operation(&mut self, op: ScalarOp, args: &[ValId], val: ValId, values: &[Value], vector: bool) -> Value {
        let to = self.scope.vals[val.0 as usize].dtype;
        let from = args.first().map_or(to, |arg| self.scope.vals[arg.0 as usize].dtype);
        let float = from.is_float();
        let x = values[0];
        let y = || values[1];
        match op {
            ScalarOp::Sqrt => self.b.ins().sqrt(x),
            ScalarOp::Floor => self.b.ins().floor(x),
            ScalarOp::Neg if float => self.b.ins().fneg(x),
            ScalarOp::Neg => self.b.ins().ineg(x),
            ScalarOp::Cast => self.cast(from, to, x, vector),
            ScalarOp::Round(DType::U8) => {
                let low = self.every(DType::I32, Scalar::Int(0xff), vector);
                self.b.ins().band(x, low)
            }
            ScalarOp::Round(_) => {
                let places = self.b.ins().iconst(I32, 24);
                let high = self.b.ins().ishl(x, places);
                self.b.ins().sshr(high, places)
            }
            ScalarOp::Add if float => self.b.ins().fadd(x, y()),
            ScalarOp::Add => self.b.ins().iadd(x, y()),
            ScalarOp::Sub if float => self.b.ins().fsub(x, y()),
            ScalarOp::Sub => self.b.ins().isub(x, y()),
            ScalarOp::Mul if float => self.b.ins().fmul(x, y()),
            ScalarOp::Mul => self.b.ins().imul(x, y()),
            ScalarOp::Div if float => self.b.ins().fdiv(x, y()),
            ScalarOp::Div => self.divide_int(x, y(), to).0,
            ScalarOp::Rem if float => {
                let quotient = self.b.ins().fdiv(x, y());
                let whole = self.b.ins().floor(quotient);
                let product = self.b.ins().fmul(whole, y());
                self.b.ins().fsub(x, product)
            }
            ScalarOp::Rem => self.divide_int(x, y(), to).1,
            ScalarOp::Max if float => self.max_float(x, y(), to, vector),
            ScalarOp::Max => self.b.ins().smax(x, y()),
            ScalarOp::Less => {
                let less = if float {
                    self.b.ins().fcmp(FloatCC::LessThan, x, y())
                } else {
                    self.b.ins().icmp(IntCC::SignedLessThan, x, y())
                };
                self.mask(less, vector)
            }
            ScalarOp::Equal => {
                let equal = if float {
                    self.b.ins().fcmp(FloatCC::Equal, x, y())
                } else {
                    self.b.ins().icmp(IntCC::Equal, x, y())
                };
                self.mask(equal, vector)
            }
            ScalarOp::And => self.b.ins().band(x, y()),
            ScalarOp::Or => self.b.ins().bor(x, y()),
            ScalarOp::Not => self.b.ins().bnot(x),
            ScalarOp::Select => self.choose(x, values[1], values[2], to, vector),
            ScalarOp::Exp
            | ScalarOp::Log
            | ScalarOp::Tanh
            | ScalarOp::Erf
            | ScalarOp::Sin
            | ScalarOp::Cos
            | ScalarOp::Pow
            | ScalarOp::Uniform { .. } => bug!("{op} is a call"),
        }
    }

    /// Integer quotient toward minus infinity and the rest with the divisor's sign; 0 and 0 for a divisor of 0.
    fn divide_int(&mut self, x: Value, y: Value, dtype: DType) -> (Value, Value) {
        let ty = clif_type(dtype);
        let (zero, one) = (self.b.ins().iconst(ty, 0), self.b.ins().iconst(ty, 1));
        let no_divisor = self.b.ins().icmp(IntCC::Equal, y, zero);
        // Division by 0 traps, and so does the least number by -1, which is a negation.
        let minus = self.b.ins().iconst(ty, if ty == I64 { -1 } else { 0xffff_ffff });
        let negates = self.b.ins().icmp(IntCC::Equal, y, minus);
        let special = self.b.ins().bor(no_divisor, negates);
        let safe = self.b.ins().select(special, one, y);
        let quotient = self.b.ins().sdiv(x, safe);
        let rest = self.b.ins().srem(x, safe);
        let inexact = self.b.ins().icmp(IntCC::NotEqual, rest, zero);
        let signs = self.b.ins().bxor(rest, safe);
        let opposite = self.b.ins().icmp(IntCC::SignedLessThan, signs, zero);
        let adjust = self.b.ins().band(inexact, opposite);
        let less = self.b.ins().isub(quotient, one);
        let quotient = self.b.ins().select(adjust, less, quotient);
        let more = self.b.ins().iadd(rest, safe);
        let rest = self.b.ins().select(adjust, more, rest);
        let negated = self.b.ins().ineg(x);
        let quotient = self.b.ins().select(negates, negated, quotient);
        let quotient = self.b.ins().select(no_divisor, zero, quotient);
        let rest = self.b.ins().select(special, zero, rest);
        (quotient, rest)
    }

    fn cast(&mut self, from: DType, to: DType, x: Value, vector: bool) -> Value {
        let (ty, is_float) = (wide(to, vector), to.is_float());
        match (from, to) {
            _ if from == to => x,
            (DType::Bool, _) if is_float => {
                let one = self.every(to, Scalar::Float(1.0), vector);
                let zero = self.every(to, Scalar::Float(0.0), vector);
                self.choose(x, one, zero, to, vector)
            }
            (DType::Bool, _) => {
                let one = self.every(DType::I32, Scalar::Int(1), vector);
                let bit = self.b.ins().band(x, one);
                if to == DType::I64 { self.b.ins().uextend(I64, bit) } else { bit }
            }
            (_, DType::Bool) if from.is_float() => {
                let zero = self.every(from, Scalar::Float(0.0), vector);
                let set = self.b.ins().fcmp(FloatCC::NotEqual, x, zero);
                self.mask(set, vector)
            }
            (_, DType::Bool) => {
                let zero = self.every(from, Scalar::Int(0), vector);
                let set = self.b.ins().icmp(IntCC::NotEqual, x, zero);
                self.mask(set, vector)
            }
            (DType::F32, DType::F64) => self.b.ins().fpromote(F64, x),
            (DType::F64, DType::F32) => self.b.ins().fdemote(F32, x),
            (DType::I32, DType::I64) => self.b.ins().sextend(I64, x),
            (DType::I64, DType::I32) => self.b.ins().ireduce(I32, x),
            _ if is_float => self.b.ins().fcvt_from_sint(ty, x),
            _ => self.b.ins().fcvt_to_sint_sat(ty, x),
        }
    }

    /// A constant in the dtype of strips.
    pub(crate) fn constant(&mut self, dtype: DType, value: Scalar) -> Value {
        match (dtype, value) {
            (DType::F32, _) => self.b.ins().f32const(value.as_f64() as f32),
            (DType::F64, _) => self.b.ins().f64const(value.as_f64()),
            (DType::Bool, _) => self.b.ins().iconst(I32, if value.as_f64() != 0.0 { 0xffff_ffff } else { 0 }),
            (DType::I64, Scalar::Int(value)) => self.b.ins().iconst(I64, value),
            (DType::I64, _) => self.b.ins().iconst(I64, value.as_f64() as i64),
            (_, Scalar::Int(value)) => self.b.ins().iconst(I32, i64::from(value as u32)),
            (_, _) => self.b.ins().iconst(I32, i64::from(value.as_f64() as i32 as u32)),
        }
    }

    /// One number from memory, in the dtype of strips.
    pub(crate) fn load_one(&mut self, dtype: DType, at: Value) -> Value {
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => self.b.ins().load(clif_type(dtype), memory(), at, 0),
            DType::BF16 => {
                let bits = self.b.ins().uload16(I32, memory(), at, 0);
                let sixteen = self.b.ins().iconst(I32, 16);
                let bits = self.b.ins().ishl(bits, sixteen);
                self.b.ins().bitcast(F32, MemFlagsData::new(), bits)
            }
            DType::I8 => self.b.ins().sload8(I32, memory(), at, 0),
            DType::U8 => self.b.ins().uload8(I32, memory(), at, 0),
            DType::Bool => {
                let byte = self.b.ins().uload8(I32, memory(), at, 0);
                let zero = self.b.ins().iconst(I32, 0);
                let set = self.b.ins().icmp(IntCC::NotEqual, byte, zero);
                self.b.ins().bmask(I32, set)
            }
            DType::F16 => {
                let (cell, one) = (self.argument_cell(3), self.int(1));
                self.call("load_f16", &[cell, at, one]);
                self.b.ins().load(F32, memory(), cell, 0)
            }
        }
    }

    /// One number to memory, from the dtype of strips.
    pub(crate) fn store_one(&mut self, dtype: DType, value: Value, at: Value) {
        match dtype {
            DType::F32 | DType::F64 | DType::I32 | DType::I64 => {
                self.b.ins().store(memory(), value, at, 0);
            }
            DType::I8 | DType::U8 => {
                self.b.ins().istore8(memory(), value, at, 0);
            }
            DType::Bool => {
                let one = self.b.ins().iconst(I32, 1);
                let bit = self.b.ins().band(value, one);
                self.b.ins().istore8(memory(), bit, at, 0);
            }
            DType::BF16 => {
                // To nearest even: half of the last kept place, less one bit unless that place is odd; NaN keeps its upper bits.
                let bits = self.b.ins().bitcast(I32, MemFlagsData::new(), value);
                let sixteen = self.b.ins().iconst(I32, 16);
                let upper = self.b.ins().ushr(bits, sixteen);
                let one = self.b.ins().iconst(I32, 1);
                let odd = self.b.ins().band(upper, one);
                let half = self.b.ins().iconst(I32, 0x7fff);
                let raised = self.b.ins().iadd(bits, half);
                let raised = self.b.ins().iadd(raised, odd);
                let rounded = self.b.ins().ushr(raised, sixteen);
                let quiet = self.b.ins().iconst(I32, 0x40);
                let nan = self.b.ins().bor(upper, quiet);
                let is_nan = self.b.ins().fcmp(FloatCC::Unordered, value, value);
                let result = self.b.ins().select(is_nan, nan, rounded);
                let result = self.b.ins().ireduce(I16, result);
                self.b.ins().store(memory(), result, at, 0);
            }
            DType::F16 => {
                let (cell, one) = (self.argument_cell(3), self.int(1));
                self.b.ins().store(memory(), value, cell, 0);
                self.call("store_f16", &[at, cell, one]);
            }
        }
    }
}
