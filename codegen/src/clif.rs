//! A planned body as CLIF: loops over a range of the grid, strips in scratch, inlined operations in four lanes.
//!
//! In: a nest (or the body of a contraction) and its [`Plan`]. Out: one function. Every address is `buffer + Σ coef · dim`, which
//! `Kernel::verify` has checked. Operations not worth inlining are calls of [`crate::strip`] routines on whole strips.

mod access;
mod ops;
mod wide;

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F64, I32, I64};
use cranelift_codegen::ir::{Block, FuncRef, InstBuilder, MemFlagsData, SigRef, Type, Value};
use cranelift_frontend::{FunctionBuilder, Variable};
use mdl_compiler::kernel::{Dim, FoldKind, Rank, Stmt, ValId};
use mdl_graph::{DType, bug};

use crate::nest::{Home, Item, Phase, Plan, Scope, TILE, stmts, strip_bytes};
use crate::wide::Program;

/// Looks up an imported routine by name.
pub(crate) trait Imports {
    fn routine(&mut self, builder: &mut FunctionBuilder<'_>, name: &'static str) -> FuncRef;
    /// The address of a vector program's function, and its signature.
    fn wide(&mut self, builder: &mut FunctionBuilder<'_>, program: &Program) -> (usize, SigRef);
}

/// How the function is driven.
pub(crate) enum Drive {
    /// `(bufs, lo, hi, scratch)` over grid points; tiles of a long strip are points too.
    Grid,
    /// The same, over (kept point, chunk); exit number i accumulates in buffer `n_bufs + i`.
    Chunks { keep: usize, chunks: u64 },
    /// `(bufs, lo, hi, first, last, scratch)` over grid points, on the strip's positions `first..last`: see `plane::RowsEntry`.
    Rows,
    /// `(bufs, lo, hi, outer n, first, last, product, product row length, scratch)`: see `contract::Epilogue`.
    Product { n_outer: usize },
}

pub(crate) struct Emitter<'a, 'f> {
    b: FunctionBuilder<'f>,
    scope: &'a Scope<'a>,
    plan: &'a Plan,
    imports: &'a mut dyn Imports,
    bufs: Vec<Value>,
    scratch: Value,
    /// The one constant 0 that is compared with, so that nothing is added for it.
    zero: Value,
    /// The position along each grid dimension.
    at: Vec<Variable>,
    /// Row values.
    rows: Vec<Option<Value>>,
    /// The first position of the tile, and its length.
    tile: (Value, Value),
    /// The length when it is known.
    length: Option<u64>,
    /// The positions of the strip that are worked on, when they are not all.
    bounds: Option<(Value, Value)>,
    /// The product's strip of this row, at the tile's first position.
    product: Option<Value>,
    /// Where each exit accumulates: statement and address.
    exits: Vec<(usize, Value)>,
}

pub(crate) fn clif_type(dtype: DType) -> Type {
    match dtype {
        DType::F64 => F64,
        DType::I64 => I64,
        DType::F32 | DType::BF16 | DType::F16 => F32,
        DType::I32 | DType::I8 | DType::U8 | DType::Bool => I32,
    }
}

/// Memory that may not be aligned to a vector.
pub(crate) fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// Writes the body of the function that `builder` builds.
pub(crate) fn emit<'f>(
    mut builder: FunctionBuilder<'f>,
    scope: &Scope<'_>,
    plan: &Plan,
    drive: &Drive,
    imports: &mut dyn Imports,
) -> Done<'f> {
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let params = builder.block_params(entry).to_vec();
    let scratch = *params.last().unwrap_or_else(|| bug!("a kernel function without parameters"));
    let n_exits = scope.body.iter().filter(|stmt| matches!(stmt, Stmt::Exit { .. })).count();
    let n_bufs = scope.kernel.bufs.len() + if matches!(drive, Drive::Chunks { .. }) { n_exits } else { 0 };
    let bufs = (0..n_bufs).map(|at| builder.ins().load(I64, memory(), params[0], at as i32 * 8)).collect();
    let at = scope.dims[..scope.dims.len() - 1].iter().map(|_| builder.declare_var(I64)).collect();
    let zero = builder.ins().iconst(I64, 0);
    let rows = vec![None; scope.vals.len()];
    let mut emitter = Emitter {
        b: builder,
        scope,
        plan,
        imports,
        bufs,
        scratch,
        zero,
        at,
        rows,
        tile: (zero, zero),
        length: None,
        bounds: None,
        product: None,
        exits: Vec::new(),
    };
    for stmt in &plan.fixed {
        emitter.row(*stmt);
    }
    match drive {
        Drive::Grid => emitter.grid(params[1], params[2]),
        Drive::Chunks { keep, chunks } => emitter.chunks(params[1], params[2], *keep, *chunks),
        Drive::Rows => emitter.some_rows(&params),
        Drive::Product { n_outer } => emitter.products(&params, *n_outer),
    }
    emitter.b.ins().return_(&[]);
    emitter.b.seal_all_blocks();
    Done(emitter.b)
}

/// A finished body: finalized by the caller, who knows the target.
pub(crate) struct Done<'f>(pub(crate) FunctionBuilder<'f>);

impl Emitter<'_, '_> {
    pub(crate) fn int(&mut self, value: i64) -> Value {
        if value == 0 { self.zero } else { self.b.ins().iconst(I64, value) }
    }

    pub(crate) fn sum(&mut self, x: Value, y: Value) -> Value {
        match (x == self.zero, y == self.zero) {
            (true, _) => y,
            (_, true) => x,
            (false, false) => self.b.ins().iadd(x, y),
        }
    }

    pub(crate) fn plus(&mut self, x: Value, offset: i64) -> Value {
        let offset = self.int(offset);
        self.sum(x, offset)
    }

    pub(crate) fn times(&mut self, x: Value, factor: i64) -> Value {
        if factor == 1 || x == self.zero {
            return x;
        }
        if factor == 0 {
            return self.zero;
        }
        let factor = self.int(factor);
        self.b.ins().imul(x, factor)
    }

    /// `for i in (lo..hi).step_by(step)`, for a range of whole steps; the body gets i.
    pub(crate) fn repeat(&mut self, lo: Value, hi: Value, step: i64, body: impl FnOnce(&mut Self, Value)) {
        let (head, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        let i = self.b.append_block_param(head, I64);
        self.b.ins().jump(head, &[lo.into()]);
        self.b.switch_to_block(head);
        let more = self.b.ins().icmp(IntCC::UnsignedLessThan, i, hi);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        body(self, i);
        let next = self.plus(i, step);
        self.b.ins().jump(head, &[next.into()]);
        self.b.switch_to_block(after);
    }

    /// Runs one of two bodies.
    pub(crate) fn either(&mut self, condition: Value, yes: impl FnOnce(&mut Self), no: impl FnOnce(&mut Self)) {
        let (then, otherwise, after): (Block, Block, Block) =
            (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, then, &[], otherwise, &[]);
        self.b.switch_to_block(then);
        yes(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(otherwise);
        no(self);
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    pub(crate) fn call(&mut self, name: &'static str, args: &[Value]) {
        let routine = self.imports.routine(&mut self.b, name);
        self.b.ins().call(routine, args);
    }

    pub(crate) fn position(&mut self, dim: Dim) -> Value {
        self.b.use_var(self.at[dim.0 as usize])
    }

    /// Sets grid dimensions `dims` from a flat index.
    fn unflatten(&mut self, flat: Value, dims: std::ops::Range<usize>) {
        let mut rest = flat;
        for dim in dims.clone().rev() {
            let extent = self.scope.dims[dim].max(1) as i64;
            let at = if dim == dims.start {
                rest
            } else {
                let extent = self.int(extent);
                let at = self.b.ins().urem(rest, extent);
                rest = self.b.ins().udiv(rest, extent);
                at
            };
            self.b.def_var(self.at[dim], at);
        }
    }

    /// Moves grid dimensions `dims` to the next point.
    fn advance(&mut self, dims: std::ops::Range<usize>) {
        let after = self.b.create_block();
        for dim in dims.rev() {
            let at = self.b.use_var(self.at[dim]);
            let next = self.plus(at, 1);
            let end = self.int(self.scope.dims[dim] as i64);
            let carry = self.b.ins().icmp(IntCC::Equal, next, end);
            let zero = self.int(0);
            let wrapped = self.b.ins().select(carry, zero, next);
            self.b.def_var(self.at[dim], wrapped);
            let more = self.b.create_block();
            self.b.ins().brif(carry, more, &[], after, &[]);
            self.b.switch_to_block(more);
        }
        self.b.ins().jump(after, &[]);
        self.b.switch_to_block(after);
    }

    fn grid(&mut self, lo: Value, hi: Value) {
        let n_dims = self.scope.dims.len() - 1;
        let extent = self.scope.extent();
        if self.scope.tiled() {
            let tiles = extent.div_ceil(TILE) as i64;
            self.repeat(lo, hi, 1, |e, flat| {
                let tiles = e.int(tiles);
                let tile = e.b.ins().urem(flat, tiles);
                let row = e.b.ins().udiv(flat, tiles);
                e.unflatten(row, 0..n_dims);
                let first = e.times(tile, TILE as i64);
                e.set_tile(first);
                e.phases(false);
            });
        } else {
            self.unflatten(lo, 0..n_dims);
            self.repeat(lo, hi, 1, |e, _| {
                e.one_tile();
                e.phases(true);
                e.advance(0..n_dims);
            });
        }
    }

    fn chunks(&mut self, lo: Value, hi: Value, keep: usize, chunks: u64) {
        let n_dims = self.scope.dims.len() - 1;
        let reduced: u64 = self.scope.dims[keep..n_dims].iter().product();
        self.repeat(lo, hi, 1, |e, flat| {
            let n_chunks = e.int(chunks as i64);
            let kept = e.b.ins().udiv(flat, n_chunks);
            let chunk = e.b.ins().urem(flat, n_chunks);
            e.unflatten(kept, 0..keep);
            // The accumulators of this chunk, at their neutral element.
            e.exits.clear();
            let n_bufs = e.scope.kernel.bufs.len();
            for (at, stmt) in e.scope.body.iter().enumerate() {
                let Stmt::Exit { kind, val, .. } = stmt else { continue };
                let ty = e.scope.vals[val.0 as usize];
                let width = if ty.rank == Rank::Strip { e.scope.extent() } else { 1 };
                let bytes = strip_bytes(ty.dtype) as i64;
                let offset = e.times(flat, width as i64 * bytes);
                let buf = e.bufs[n_bufs + e.exits.len()];
                let base = e.sum(buf, offset);
                let neutral = e.neutral(*kind, ty.dtype);
                let (zero, width) = (e.int(0), e.int(width as i64));
                e.repeat(zero, width, 1, |e, j| {
                    let offset = e.times(j, bytes);
                    let to = e.sum(base, offset);
                    e.b.ins().store(memory(), neutral, to, 0);
                });
                e.exits.push((at, base));
            }
            // Chunk c of C has the rows c·R/C up to (c + 1)·R/C.
            let scaled = e.times(chunk, reduced as i64);
            let first = e.b.ins().udiv(scaled, n_chunks);
            let scaled = e.plus(scaled, reduced as i64);
            let last = e.b.ins().udiv(scaled, n_chunks);
            e.unflatten(first, keep..n_dims);
            e.repeat(first, last, 1, |e, _| {
                e.one_tile();
                e.phases(true);
                e.advance(keep..n_dims);
            });
        });
    }

    fn products(&mut self, params: &[Value], n_outer: usize) {
        let &[_, lo, hi, outer, first, last, product, length, _] = params else {
            bug!("a product body has {} parameters", params.len())
        };
        let n_dims = self.scope.dims.len() - 1;
        let n_rows = n_dims - n_outer;
        self.unflatten(outer, n_rows..n_dims);
        self.unflatten(lo, 0..n_rows);
        let count = self.b.ins().isub(last, first);
        let number = strip_bytes(self.scope.vals[0].dtype) as i64;
        let pitch = self.times(length, number);
        self.repeat(lo, hi, 1, |e, row| {
            e.tile = (first, count);
            e.length = None;
            let below = e.b.ins().isub(row, lo);
            let offset = e.b.ins().imul(below, pitch);
            e.product = Some(e.sum(product, offset));
            e.phases(false);
            e.advance(0..n_rows);
        });
    }

    /// Rows of which only some positions are worked on.
    fn some_rows(&mut self, params: &[Value]) {
        let &[_, lo, hi, first, last, _] = params else { bug!("a body on rows has {} parameters", params.len()) };
        let n_dims = self.scope.dims.len() - 1;
        self.bounds = Some((first, last));
        let count = self.b.ins().isub(last, first);
        self.unflatten(lo, 0..n_dims);
        self.repeat(lo, hi, 1, |e, _| {
            e.tile = (first, count);
            e.length = None;
            e.phases(true);
            e.advance(0..n_dims);
        });
    }

    fn one_tile(&mut self) {
        let extent = self.scope.extent();
        self.tile = (self.int(0), self.int(extent as i64));
        self.length = Some(extent);
    }

    /// The tile from `first`, as long as the strip goes on.
    fn set_tile(&mut self, first: Value) {
        let extent = self.scope.extent();
        if extent.is_multiple_of(TILE) && self.bounds.is_none() {
            self.tile = (first, self.int(TILE as i64));
            self.length = Some(TILE);
            return;
        }
        let end = match self.bounds {
            Some((_, last)) => last,
            None => self.int(extent as i64),
        };
        let rest = self.b.ins().isub(end, first);
        let most = self.int(TILE as i64);
        let short = self.b.ins().icmp(IntCC::UnsignedLessThan, rest, most);
        self.tile = (first, self.b.ins().select(short, rest, most));
        self.length = None;
    }

    /// One row: all phases, each over all tiles when `all` and there are several.
    fn phases(&mut self, all: bool) {
        let plan = self.plan;
        let several = all && self.scope.extent() > TILE;
        for phase in &plan.phases {
            for stmt in &phase.rows {
                self.row(*stmt);
            }
            if !several {
                self.items(phase, false);
                self.folds(phase);
                continue;
            }
            for (stmt, kind, dtype) in self.folded(phase) {
                let neutral = self.neutral(kind, dtype);
                let cell = self.cell(stmt);
                self.b.ins().store(memory(), neutral, cell, 0);
            }
            if !phase.items.is_empty() {
                let (from, end) = match self.bounds {
                    Some(bounds) => bounds,
                    None => (self.int(0), self.int(self.scope.extent().next_multiple_of(TILE) as i64)),
                };
                self.repeat(from, end, TILE as i64, |e, first| {
                    e.set_tile(first);
                    e.items(phase, true);
                });
            }
            self.folds(phase);
        }
    }

    fn folded(&self, phase: &Phase) -> Vec<(ValId, FoldKind, DType)> {
        let fold = |stmt: usize| match &self.scope.body[stmt] {
            Stmt::Fold { val, kind, .. } => Some((*val, *kind, self.scope.vals[val.0 as usize].dtype)),
            _ => None,
        };
        phase.items.iter().flat_map(stmts).filter_map(fold).collect()
    }

    /// Reads the results of a phase's folds.
    fn folds(&mut self, phase: &Phase) {
        for (val, _, dtype) in self.folded(phase) {
            let cell = self.cell(val);
            self.rows[val.0 as usize] = Some(self.b.ins().load(clif_type(dtype), memory(), cell, 0));
        }
    }

    /// The memory cell of a row value.
    pub(crate) fn cell(&mut self, val: ValId) -> Value {
        self.plus(self.scratch, (self.plan.cells + u64::from(val.0) * 16) as i64)
    }

    /// Memory cell `number` for arguments of calls on single numbers.
    pub(crate) fn argument_cell(&mut self, number: u64) -> Value {
        let at = self.plan.cells + (self.scope.vals.len() as u64 + number) * 16;
        self.plus(self.scratch, at as i64)
    }

    fn items(&mut self, phase: &Phase, several: bool) {
        for item in &phase.items {
            match item {
                Item::Loop { stmts, vector: true } if self.scope.wide => self.wide_loop(stmts, several),
                Item::Loop { stmts, vector } => self.inlined(stmts, *vector),
                Item::Load(stmt) => self.load(*stmt),
                Item::Call(stmt) => self.call_item(*stmt, several),
                Item::Store(stmt) => self.store(*stmt),
            }
        }
    }

    /// The address of a strip in scratch, at the tile's first position.
    pub(crate) fn slot(&mut self, val: ValId) -> Value {
        match self.plan.homes[val.0 as usize] {
            Home::Slot { offset, whole } => {
                let base = self.plus(self.scratch, offset as i64);
                if !whole {
                    return base;
                }
                let bytes = strip_bytes(self.scope.vals[val.0 as usize].dtype) as i64;
                let along = self.times(self.tile.0, bytes);
                self.sum(base, along)
            }
            Home::Product => self.product.unwrap_or_else(|| bug!("there is no product")),
            Home::Register | Home::Buffer(_) => bug!("{val} has no slot"),
        }
    }

    /// The address of the tile of a strip, wherever it is; a row value is repeated in spare strip `number`.
    pub(crate) fn strip(&mut self, val: ValId, number: usize) -> Value {
        if self.scope.is_strip(val) {
            return match self.plan.homes[val.0 as usize] {
                Home::Buffer(stmt) => self.run_address(stmt),
                Home::Slot { .. } | Home::Product | Home::Register => self.slot(val),
            };
        }
        let value = self.row_value(val);
        let bytes = strip_bytes(self.scope.vals[val.0 as usize].dtype) as i64;
        let base = self.plus(self.scratch, self.plan.spare[number] as i64);
        let zero = self.int(0);
        self.repeat(zero, self.tile.1, 1, |e, j| {
            let offset = e.times(j, bytes);
            let to = e.sum(base, offset);
            e.b.ins().store(memory(), value, to, 0);
        });
        base
    }

    pub(crate) fn row_value(&mut self, val: ValId) -> Value {
        self.rows[val.0 as usize].unwrap_or_else(|| bug!("{val} is not known yet in {}", self.scope.kernel.name))
    }

    pub(crate) fn neutral(&mut self, kind: FoldKind, dtype: DType) -> Value {
        match (kind, dtype) {
            (FoldKind::Sum, DType::F32) => self.b.ins().f32const(0.0),
            (FoldKind::Sum, DType::F64) => self.b.ins().f64const(0.0),
            (FoldKind::Sum, _) => self.b.ins().iconst(clif_type(dtype), 0),
            (FoldKind::Max, DType::F32) => self.b.ins().f32const(f32::NEG_INFINITY),
            (FoldKind::Max, DType::F64) => self.b.ins().f64const(f64::NEG_INFINITY),
            (FoldKind::Max, DType::I64) => self.b.ins().iconst(I64, i64::MIN),
            (FoldKind::Max, _) => self.b.ins().iconst(I32, i64::from(i32::MIN as u32)),
        }
    }
}
