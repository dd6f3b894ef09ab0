//! Addresses, guards, and the loads and stores that are not plain runs.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};
use mdl_compiler::kernel::{Access, Index, Position, Stmt, Term, ValId};
use mdl_graph::{DType, bug};

use super::{Emitter, clif_type, memory};
use crate::nest::{Along, along, strip_bytes};

/// Positions `lo..hi` of a strip of `dtype`, and of a run in a buffer of `stored` in steps of `stride`.
struct Run {
    stored: DType,
    dtype: DType,
    to: Value,
    from: Value,
    stride: i64,
    lo: Value,
    hi: Value,
}

impl Emitter<'_, '_> {
    /// The value of an index with the strip at `j`.
    pub(crate) fn index(&mut self, index: &Index, j: Option<Value>) -> Value {
        let plain = index.div == 1 && index.modulo == 0;
        let mut sum = self.int(index.base + if plain { index.plus } else { 0 });
        let strip = self.scope.strip();
        for (dim, coef) in &index.terms {
            if *coef == 0 {
                continue;
            }
            let at = if *dim == strip {
                j.unwrap_or_else(|| bug!("a row index depends on the strip"))
            } else {
                self.position(*dim)
            };
            let scaled = self.times(at, *coef);
            sum = self.sum(sum, scaled);
        }
        if plain {
            return sum;
        }
        let negative = index.base < 0 || index.terms.iter().any(|(_, coef)| *coef < 0);
        let mut quotient = sum;
        if index.div != 1 {
            quotient = self.divide(sum, index.div, negative).0;
        }
        if index.modulo != 0 {
            quotient = self.divide(quotient, index.modulo, negative).1;
        }
        self.plus(quotient, index.plus)
    }

    /// Quotient toward minus infinity and the rest.
    fn divide(&mut self, x: Value, by: u64, negative: bool) -> (Value, Value) {
        let by = self.int(by as i64);
        if !negative {
            return (self.b.ins().udiv(x, by), self.b.ins().urem(x, by));
        }
        let quotient = self.b.ins().sdiv(x, by);
        let rest = self.b.ins().srem(x, by);
        let zero = self.int(0);
        let below = self.b.ins().icmp(IntCC::SignedLessThan, rest, zero);
        let less = self.plus(quotient, -1);
        let more = self.b.ins().iadd(rest, by);
        (self.b.ins().select(below, less, quotient), self.b.ins().select(below, more, rest))
    }

    /// The value of a term's position with the strip at `j`; a strip value is read from the tile at `local`.
    fn term(&mut self, term: &Term, j: Option<Value>, local: Option<Value>) -> Value {
        match &term.index {
            Position::Index(index) => self.index(index, j),
            Position::Value(val) => {
                let dtype = self.scope.vals[val.0 as usize].dtype;
                let value = match local {
                    Some(local) if self.scope.is_strip(*val) => {
                        let base = self.strip(*val, 3);
                        let offset = self.times(local, strip_bytes(dtype) as i64);
                        let at = self.sum(base, offset);
                        self.b.ins().load(clif_type(dtype), memory(), at, 0)
                    }
                    _ => self.row_value(*val),
                };
                if dtype == DType::I64 { value } else { self.b.ins().sextend(I64, value) }
            }
        }
    }

    fn in_range(&mut self, value: Value, (lo, hi): (i64, i64)) -> Value {
        // lo <= value < hi, as one unsigned comparison.
        let moved = self.plus(value, lo.wrapping_neg());
        let size = self.int(hi.saturating_sub(lo).max(0));
        self.b.ins().icmp(IntCC::UnsignedLessThan, moved, size)
    }

    fn both(&mut self, so_far: Option<Value>, condition: Value) -> Option<Value> {
        Some(match so_far {
            Some(so_far) => self.b.ins().band(so_far, condition),
            None => condition,
        })
    }

    fn on_strip(&self, term: &Term) -> bool {
        match &term.index {
            Position::Index(index) => index.depends_on(self.scope.strip()),
            Position::Value(val) => self.scope.is_strip(*val),
        }
    }

    /// The address with the strip at `j` (its position in the tile is `local`), and the condition under which it exists.
    fn full_address(
        &mut self,
        buf: usize,
        access: &Access,
        j: Option<Value>,
        local: Option<Value>,
    ) -> (Value, Option<Value>) {
        let bytes = self.scope.kernel.bufs[buf].dtype.size_bytes() as i64;
        let mut offset = self.int(access.base * bytes);
        let mut exists: Option<Value> = None;
        for term in &access.terms {
            let value = self.term(term, j, local);
            if let Some(range) = term.range {
                let inside = self.in_range(value, range);
                exists = self.both(exists, inside);
            }
            if term.coef != 0 {
                let scaled = self.times(value, term.coef * bytes);
                offset = self.sum(offset, scaled);
            }
        }
        (self.sum(self.bufs[buf], offset), exists)
    }

    /// The address of a plain run at the tile's first position.
    pub(crate) fn run_address(&mut self, stmt: usize) -> Value {
        let (Stmt::Load { buf, access, .. } | Stmt::Store { buf, access, .. }) = &self.scope.body[stmt] else {
            bug!("statement {stmt} is not an access")
        };
        let first = self.tile.0;
        self.full_address(buf.0 as usize, access, Some(first), None).0
    }

    /// The conditions of guards that do not depend on the strip.
    fn row_guard(&mut self, access: &Access) -> Option<Value> {
        let mut exists: Option<Value> = None;
        for term in &access.terms {
            if let (Some(range), false) = (term.range, self.on_strip(term)) {
                let value = self.term(term, None, None);
                let inside = self.in_range(value, range);
                exists = self.both(exists, inside);
            }
        }
        exists
    }

    /// The positions of the tile, `lo..hi`, for which plain guards along the strip hold.
    fn window(&mut self, access: &Access) -> (Value, Value) {
        let (first, count) = self.tile;
        let zero = self.int(0);
        let (mut lo, mut hi) = (zero, count);
        let strip = self.scope.strip();
        for term in &access.terms {
            let (Some((from, to)), Position::Index(index)) = (term.range, &term.index) else { continue };
            let coef: i64 = index.terms.iter().filter(|(dim, _)| *dim == strip).map(|(_, coef)| coef).sum();
            if coef == 0 {
                continue;
            }
            // from <= start + coef · j < to; for a falling index, start - to < size · j <= start - from.
            let start = self.index(index, Some(first));
            let size = coef.unsigned_abs();
            let (least, end) = if coef > 0 {
                (self.steps(start, from, size, false), self.steps(start, to, size, false))
            } else {
                (
                    self.steps(start, to.saturating_sub(1), size, true),
                    self.steps(start, from.saturating_sub(1), size, true),
                )
            };
            let above = self.b.ins().icmp(IntCC::SignedGreaterThan, least, lo);
            lo = self.b.ins().select(above, least, lo);
            let below = self.b.ins().icmp(IntCC::SignedLessThan, end, hi);
            hi = self.b.ins().select(below, end, hi);
        }
        // 0 <= lo <= hi <= count, whatever the guards are: `steps` is never negative.
        let crossed = self.b.ins().icmp(IntCC::SignedGreaterThan, lo, hi);
        lo = self.b.ins().select(crossed, hi, lo);
        (lo, hi)
    }

    /// The first j for which an index from `start` in steps of `size` reaches `bound`, upward or downward.
    fn steps(&mut self, start: Value, bound: i64, size: u64, falling: bool) -> Value {
        let bound = self.int(bound);
        let distance = if falling { self.b.ins().isub(start, bound) } else { self.b.ins().isub(bound, start) };
        let zero = self.int(0);
        let negative = self.b.ins().icmp(IntCC::SignedLessThan, distance, zero);
        let distance = self.b.ins().select(negative, zero, distance);
        if size == 1 {
            return distance;
        }
        let raised = self.plus(distance, size as i64 - 1);
        let size = self.int(size as i64);
        self.b.ins().udiv(raised, size)
    }

    /// A row load: one number, or the fill.
    pub(crate) fn load_row(&mut self, val: ValId, buf: usize, access: &Access) -> Value {
        let dtype = self.scope.vals[val.0 as usize].dtype;
        let stored = self.scope.kernel.bufs[buf].dtype;
        let zero = self.int(0);
        let (at, exists) = self.full_address(buf, access, Some(zero), None);
        let Some(exists) = exists else { return self.load_one(stored, at) };
        let result = self.b.declare_var(clif_type(dtype));
        self.either(
            exists,
            |e| {
                let value = e.load_one(stored, at);
                e.b.def_var(result, value);
            },
            |e| {
                let value = e.constant(dtype, access.fill);
                e.b.def_var(result, value);
            },
        );
        self.b.use_var(result)
    }

    pub(crate) fn store_row(&mut self, val: ValId, buf: usize, access: &Access) {
        let value = self.row_value(val);
        let stored = self.scope.kernel.bufs[buf].dtype;
        let zero = self.int(0);
        let (at, exists) = self.full_address(buf, access, Some(zero), None);
        match exists {
            None => self.store_one(stored, value, at),
            Some(exists) => self.either(exists, |e| e.store_one(stored, value, at), |_| {}),
        }
    }

    /// Fills `lo..hi` of a strip.
    fn fill(&mut self, base: Value, dtype: DType, value: Value, lo: Value, hi: Value) {
        let bytes = strip_bytes(dtype) as i64;
        self.repeat(lo, hi, 1, |e, j| {
            let offset = e.times(j, bytes);
            let to = e.sum(base, offset);
            e.b.ins().store(memory(), value, to, 0);
        });
    }

    /// A load into its slot.
    pub(crate) fn load(&mut self, stmt: usize) {
        let Stmt::Load { val, buf, access } = &self.scope.body[stmt] else { bug!("statement {stmt} is not a load") };
        let (val, buf) = (*val, buf.0 as usize);
        let dtype = self.scope.vals[val.0 as usize].dtype;
        let stored = self.scope.kernel.bufs[buf].dtype;
        let to = self.slot(val);
        let (first, count) = self.tile;
        let zero = self.int(0);
        let number = strip_bytes(dtype) as i64;
        match along(access, self.scope.strip(), self.scope.vals) {
            Along::General => self.repeat(zero, count, 1, |e, j| {
                let position = e.sum(first, j);
                let (at, exists) = e.full_address(buf, access, Some(position), Some(j));
                let offset = e.times(j, number);
                let to = e.sum(to, offset);
                let read = |e: &mut Self| {
                    let value = e.load_one(stored, at);
                    e.b.ins().store(memory(), value, to, 0);
                };
                match exists {
                    None => read(e),
                    Some(exists) => e.either(exists, read, |e| {
                        let value = e.constant(dtype, access.fill);
                        e.b.ins().store(memory(), value, to, 0);
                    }),
                }
            }),
            way @ (Along::Stride(stride) | Along::Window(stride)) => {
                let guard = self.row_guard(access);
                let read = |e: &mut Self| {
                    let (lo, hi) = if way == Along::Stride(stride) { (zero, count) } else { e.window(access) };
                    if way != Along::Stride(stride) {
                        let fill = e.constant(dtype, access.fill);
                        e.fill(to, dtype, fill, zero, lo);
                        e.fill(to, dtype, fill, hi, count);
                    }
                    let (from, _) = e.full_address(buf, access, Some(first), None);
                    e.read_run(&Run { stored, dtype, to, from, stride, lo, hi });
                };
                match guard {
                    None => read(self),
                    Some(guard) => self.either(guard, read, |e| {
                        let fill = e.constant(dtype, access.fill);
                        e.fill(to, dtype, fill, zero, count);
                    }),
                }
            }
        }
    }

    /// Positions `lo..hi` of a strided run at `from` into a strip at `to`.
    fn read_run(&mut self, run: &Run) {
        let Run { stored, dtype, to, from, stride, lo, hi } = *run;
        let bytes = stored.size_bytes() as i64;
        let number = strip_bytes(dtype) as i64;
        let convert = match stored {
            DType::BF16 => Some("load_bf16"),
            DType::F16 => Some("load_f16"),
            DType::I8 => Some("load_i8"),
            DType::U8 => Some("load_u8"),
            DType::Bool => Some("load_bool"),
            DType::F32 | DType::I32 => Some("copy_32"),
            DType::F64 | DType::I64 => None,
        };
        let offset = self.times(lo, number);
        let to_lo = self.sum(to, offset);
        let offset = self.times(lo, bytes * stride);
        let from_lo = self.sum(from, offset);
        let count = self.b.ins().isub(hi, lo);
        match convert {
            Some(routine) if stride == 1 => self.call(routine, &[to_lo, from_lo, count]),
            _ if stride == 0 => {
                // One number, repeated; nothing is read when the run is empty.
                let zero = self.int(0);
                let some = self.b.ins().icmp(IntCC::SignedGreaterThan, count, zero);
                self.either(
                    some,
                    |e| {
                        let value = e.load_one(stored, from);
                        e.fill(to, dtype, value, lo, hi);
                    },
                    |_| {},
                );
            }
            _ if stored.size_bytes() == 4 => {
                let step = self.int(stride);
                self.call("gather_32", &[to_lo, from_lo, step, count]);
            }
            _ => self.repeat(lo, hi, 1, |e, j| {
                let offset = e.times(j, bytes * stride);
                let at = e.sum(from, offset);
                let value = e.load_one(stored, at);
                let offset = e.times(j, number);
                let to = e.sum(to, offset);
                e.b.ins().store(memory(), value, to, 0);
            }),
        }
    }

    /// A store from wherever the strip is.
    pub(crate) fn store(&mut self, stmt: usize) {
        let Stmt::Store { val, buf, access } = &self.scope.body[stmt] else { bug!("statement {stmt} is not a store") };
        let (val, buf) = (*val, buf.0 as usize);
        let dtype = self.scope.vals[val.0 as usize].dtype;
        let stored = self.scope.kernel.bufs[buf].dtype;
        let from = self.strip(val, 0);
        let (first, count) = self.tile;
        let zero = self.int(0);
        let number = strip_bytes(dtype) as i64;
        match along(access, self.scope.strip(), self.scope.vals) {
            Along::General => self.repeat(zero, count, 1, |e, j| {
                let position = e.sum(first, j);
                let (at, exists) = e.full_address(buf, access, Some(position), Some(j));
                let write = |e: &mut Self| {
                    let offset = e.times(j, number);
                    let from = e.sum(from, offset);
                    let value = e.b.ins().load(clif_type(dtype), memory(), from, 0);
                    e.store_one(stored, value, at);
                };
                match exists {
                    None => write(e),
                    Some(exists) => e.either(exists, write, |_| {}),
                }
            }),
            way @ (Along::Stride(stride) | Along::Window(stride)) => {
                let guard = self.row_guard(access);
                let write = |e: &mut Self| {
                    let (lo, hi) = if way == Along::Stride(stride) { (zero, count) } else { e.window(access) };
                    let (to, _) = e.full_address(buf, access, Some(first), None);
                    e.write_run(&Run { stored, dtype, to, from, stride, lo, hi });
                };
                match guard {
                    None => write(self),
                    Some(guard) => self.either(guard, write, |_| {}),
                }
            }
        }
    }

    /// Positions `lo..hi` of a strip at `from` to a strided run at `to`.
    fn write_run(&mut self, run: &Run) {
        let Run { stored, dtype, to, from, stride, lo, hi } = *run;
        let bytes = stored.size_bytes() as i64;
        let number = strip_bytes(dtype) as i64;
        let convert = match stored {
            DType::BF16 => Some("store_bf16"),
            DType::F16 => Some("store_f16"),
            DType::I8 => Some("store_i8"),
            DType::U8 => Some("store_u8"),
            DType::Bool => Some("store_bool"),
            DType::F32 | DType::I32 => Some("copy_32"),
            DType::F64 | DType::I64 => None,
        };
        if let (Some(routine), 1) = (convert, stride) {
            let offset = self.times(lo, bytes);
            let to = self.sum(to, offset);
            let offset = self.times(lo, number);
            let from = self.sum(from, offset);
            let count = self.b.ins().isub(hi, lo);
            self.call(routine, &[to, from, count]);
            return;
        }
        self.repeat(lo, hi, 1, |e, j| {
            let offset = e.times(j, number);
            let from = e.sum(from, offset);
            let value = e.b.ins().load(clif_type(dtype), memory(), from, 0);
            let offset = e.times(j, bytes * stride);
            let to = e.sum(to, offset);
            e.store_one(stored, value, to);
        });
    }
}
