//! Loops as vector programs: a table of pointers and row values, and one call.

use cranelift_codegen::ir::types::I32;
use cranelift_codegen::ir::{InstBuilder, Value};
use mdl_compiler::kernel::{FoldKind, Index, ScalarOp, Stmt, ValId};
use mdl_graph::{DType, bug};

use super::{Emitter, clif_type, memory};
use crate::nest::{Home, defined, used};
use crate::strip::lane::Lane;
use crate::strip::math;
use crate::wide::{Binary, Builder, Comparison, Form, Id, Join, Op, Unary};

/// How a buffer's numbers lie in memory.
fn form(dtype: DType) -> Form {
    match dtype {
        DType::BF16 => Form::Bf16,
        DType::F16 => Form::F16,
        DType::I8 => Form::I8,
        DType::U8 => Form::U8,
        DType::Bool => Form::Bool,
        DType::F32 | DType::I32 => Form::Word,
        DType::F64 | DType::I64 => bug!("{dtype} in a vector program"),
    }
}

fn join(kind: FoldKind, dtype: DType) -> Join {
    match (kind, dtype.is_float()) {
        (FoldKind::Sum, true) => Join::SumF,
        (FoldKind::Max, true) => Join::MaxF,
        (FoldKind::Sum, false) => Join::SumI,
        (FoldKind::Max, false) => Join::MaxI,
    }
}

/// A program under construction and what its cells hold.
#[derive(Default)]
struct Loop {
    builder: Builder,
    cells: Vec<Value>,
    /// What each value of the body is.
    known: Vec<Option<Id>>,
}

impl Loop {
    fn cell(&mut self, value: Value) -> u32 {
        match self.cells.iter().position(|known| *known == value) {
            Some(at) => at as u32,
            None => {
                self.cells.push(value);
                self.cells.len() as u32 - 1
            }
        }
    }

    fn get(&self, val: ValId) -> Id {
        self.known[val.0 as usize].unwrap_or_else(|| bug!("{val} is not in this loop"))
    }

    fn load(&mut self, address: Value, form: Form) -> Id {
        let pointer = self.cell(address);
        self.builder.push(Op::Load { pointer, form })
    }

    fn store(&mut self, address: Value, form: Form, value: Id) {
        let value = if form == Form::Bf16 { math::round_bf16(self.builder.value(value)).id } else { value };
        let pointer = self.cell(address);
        self.builder.push(Op::Store { pointer, form, value });
    }
}

impl Emitter<'_, '_> {
    /// One loop over the tile for several statements. `several`: folds go on over the tiles of a row.
    pub(super) fn wide_loop(&mut self, stmts: &[usize], several: bool) {
        let scope = self.scope;
        let mut program = Loop { known: vec![None; scope.vals.len()], ..Loop::default() };
        self.read_all(stmts, &mut program);
        let mut folds = Vec::new();
        for stmt in stmts {
            match &scope.body[*stmt] {
                Stmt::Map { val, op, args } => {
                    let made = self.wide_map(&program, *op, args, *val);
                    program.known[val.0 as usize] = Some(made);
                }
                Stmt::Index { val, index } => {
                    let made = self.wide_index(&mut program, index);
                    program.known[val.0 as usize] = Some(made);
                }
                Stmt::Store { val, buf, .. } => {
                    let address = self.run_address(*stmt);
                    let value = program.get(*val);
                    program.store(address, form(scope.kernel.bufs[buf.0 as usize].dtype), value);
                }
                Stmt::Exit { val, kind, .. } => {
                    let base = self.exit_address(*stmt);
                    let along = self.times(self.tile.0, 4);
                    let address = self.sum(base, along);
                    let old = program.load(address, Form::Word);
                    let how = join(*kind, scope.vals[val.0 as usize].dtype).binary();
                    let joined = program.builder.push(Op::Binary(how, old, program.get(*val)));
                    program.store(address, Form::Word, joined);
                }
                Stmt::Fold { val, kind, from } => {
                    let at = self.plan.results + folds.len() as u64 * 64;
                    let result = self.plus(self.scratch, at as i64);
                    let pointer = program.cell(result);
                    let value = program.get(*from);
                    let join = join(*kind, scope.vals[from.0 as usize].dtype);
                    program.builder.push(Op::Fold { pointer, join, value });
                    folds.push((*val, *kind, result));
                }
                Stmt::Load { .. } | Stmt::Const { .. } => bug!("statement {stmt} in a loop"),
            }
            if let Some(val) = defined(&scope.body[*stmt])
                && matches!(self.plan.homes[val.0 as usize], Home::Slot { .. })
            {
                let (address, value) = (self.slot(val), program.get(val));
                program.store(address, Form::Word, value);
            }
        }
        let Loop { builder, cells, .. } = program;
        let table = self.plus(self.scratch, self.plan.table as i64);
        for (at, cell) in cells.iter().enumerate() {
            self.b.ins().store(memory(), *cell, table, at as i32 * 8);
        }
        let (address, signature) = self.imports.wide(&mut self.b, &builder.finish());
        let function = self.b.ins().iconst(cranelift_codegen::ir::types::I64, address as i64);
        self.b.ins().call_indirect(signature, function, &[table, self.tile.1]);
        for (val, kind, result) in folds {
            let dtype = scope.vals[val.0 as usize].dtype;
            let mut value = self.b.ins().load(clif_type(dtype), memory(), result, 0);
            let cell = self.cell(val);
            if several {
                let old = self.b.ins().load(clif_type(dtype), memory(), cell, 0);
                value = self.join(kind, dtype, old, value, false);
            }
            self.b.ins().store(memory(), value, cell, 0);
        }
    }

    /// Strips that come from elsewhere, and row values. Strips are read in the order of their values, before anything is written.
    fn read_all(&mut self, stmts: &[usize], program: &mut Loop) {
        let scope = self.scope;
        let made: Vec<ValId> = stmts.iter().filter_map(|stmt| defined(&scope.body[*stmt])).collect();
        let mut reads: Vec<ValId> = stmts.iter().flat_map(|stmt| used(&scope.body[*stmt])).collect();
        reads.retain(|val| !made.contains(val));
        reads.sort_by_key(|val| val.0);
        reads.dedup();
        for val in reads {
            let dtype = scope.vals[val.0 as usize].dtype;
            let id = if scope.is_strip(val) {
                let form = match self.plan.homes[val.0 as usize] {
                    Home::Buffer(stmt) => match &scope.body[stmt] {
                        Stmt::Load { buf, .. } => form(scope.kernel.bufs[buf.0 as usize].dtype),
                        _ => bug!("{val} is no load"),
                    },
                    Home::Slot { .. } | Home::Product | Home::Register => Form::Word,
                };
                let address = self.strip(val, 0);
                program.load(address, form)
            } else {
                let constant = scope.body.iter().find_map(|stmt| match stmt {
                    Stmt::Const { val: known, value } if *known == val => Some(*value),
                    _ => None,
                });
                match (constant, dtype) {
                    (Some(value), DType::F32) => program.builder.push(Op::Constant((value.as_f64() as f32).to_bits())),
                    _ => {
                        let cell = program.cell(self.row_value(val));
                        program.builder.push(Op::Row { cell })
                    }
                }
            };
            program.known[val.0 as usize] = Some(id);
        }
    }

    /// `coef · position + what it is at the tile's first position`.
    fn wide_index(&mut self, program: &mut Loop, index: &Index) -> Id {
        let strip = self.scope.strip();
        let coef: i64 = index.terms.iter().filter(|(dim, _)| *dim == strip).map(|(_, coef)| coef).sum();
        let first = self.index(index, Some(self.tile.0));
        let first = self.b.ins().ireduce(I32, first);
        let cell = program.cell(first);
        let builder = &program.builder;
        let position = builder.value(builder.push(Op::Position));
        let scaled = position.two(Binary::MulI, position.every(coef as u32));
        scaled.two(Binary::AddI, builder.value(builder.push(Op::Row { cell }))).id
    }

    /// One scalar operation in every lane: the same meaning as `operation`.
    fn wide_map(&self, program: &Loop, op: ScalarOp, args: &[ValId], val: ValId) -> Id {
        let to = self.scope.vals[val.0 as usize].dtype;
        let from = args.first().map_or(to, |arg| self.scope.vals[arg.0 as usize].dtype);
        let float = from.is_float();
        let value = |at: usize| program.builder.value(program.get(args[at]));
        let x = value(0);
        let y = || value(1);
        let pick = |of_floats, of_ints| if float { of_floats } else { of_ints };
        let made = match op {
            ScalarOp::Exp => math::exp(x),
            ScalarOp::Log => math::log(x),
            ScalarOp::Tanh => math::tanh(x),
            ScalarOp::Erf => math::erf(x),
            ScalarOp::Sqrt => x.one(Unary::SqrtF),
            ScalarOp::Floor => x.one(Unary::FloorF),
            ScalarOp::Neg if float => x.two(Binary::Xor, x.every(0x8000_0000)),
            ScalarOp::Neg => x.every(0).two(Binary::SubI, x),
            ScalarOp::Cast => cast(from, to, x),
            ScalarOp::Round(DType::BF16) => math::round_bf16(x),
            ScalarOp::Round(DType::F16) => x.one(Unary::RoundF16),
            ScalarOp::Round(DType::U8) => x.two(Binary::And, x.every(0xff)),
            ScalarOp::Round(_) => x.one(Unary::Left(24)).one(Unary::RightSigned(24)),
            ScalarOp::Add => x.two(pick(Binary::AddF, Binary::AddI), y()),
            ScalarOp::Sub => x.two(pick(Binary::SubF, Binary::SubI), y()),
            ScalarOp::Mul => x.two(pick(Binary::MulF, Binary::MulI), y()),
            ScalarOp::Div => x / y(),
            ScalarOp::Rem => x - (x / y()).one(Unary::FloorF) * y(),
            ScalarOp::Max => x.two(pick(Binary::MaxF, Binary::MaxI), y()),
            ScalarOp::Less => {
                let how = if float { Comparison::LessF } else { Comparison::LessI };
                x.compare(how, y())
            }
            ScalarOp::Equal => {
                let how = if float { Comparison::EqualF } else { Comparison::EqualI };
                x.compare(how, y())
            }
            ScalarOp::And => x.two(Binary::And, y()),
            ScalarOp::Or => x.two(Binary::Or, y()),
            ScalarOp::Not => x.two(Binary::Xor, x.every(!0)),
            ScalarOp::Select => x.choose(value(1), value(2)),
            ScalarOp::Sin | ScalarOp::Cos | ScalarOp::Pow | ScalarOp::Uniform { .. } => bug!("{op} is a call"),
        };
        made.id
    }
}

fn cast<'b>(from: DType, to: DType, x: crate::wide::Value<'b>) -> crate::wide::Value<'b> {
    match (from, to) {
        _ if from == to => x,
        (DType::Bool, DType::F32) => x.two(Binary::And, x.every(1f32.to_bits())),
        (DType::Bool, _) => x.two(Binary::And, x.every(1)),
        (DType::F32, DType::Bool) => x.compare(Comparison::NotEqualF, x.every(0)),
        (_, DType::Bool) => x.compare(Comparison::NotEqualI, x.every(0)),
        (DType::F32, _) => {
            // Too large gives the least integer, and so does NaN: both are put right.
            let largest_that_fits = x.every(2_147_483_520f32.to_bits());
            let too_large = largest_that_fits.compare(Comparison::LessF, x);
            let whole = too_large.choose(x.every(i32::MAX as u32), x.one(Unary::ToInt));
            x.is_nan().choose(x.every(0), whole)
        }
        _ => x.one(Unary::ToFloat),
    }
}
