//! The contraction template: `out = body(Σ_k a · b)` in blocks that stay in cache, for any strides.
//!
//! In: a verified [`Contract`]. An operand is addressed through tables of offsets for its rows (m or n) and for k, so any
//! list of strided dimensions works; runs of stride 1 take faster ways. Operands are packed into panels that the innermost
//! product of a [`unit::Unit`], vectors or tiles, reads from end to end: two threads of one core, or two users of one
//! machine, share its caches, and a product that needs few of them suffers least.
//!
//! Invariant: an element of the product is a chain of multiply-adds over k in order, in blocks that k alone decides, whatever
//! the tiles: so any split over threads gives the same bits. Different instruction sets round differently (fused or not).

mod amx;
mod blocks;
pub(crate) mod micro;
mod pack;
mod side;
mod store;
mod unit;

use mdl_compiler::kernel::{Contract, ContractDim, Kernel};
use mdl_graph::DType;

use crate::isa::Isa;
use crate::memory::Buffers;
use blocks::Blocks;
use micro::{Panel, Tile};
use side::{Ahead, Side};
pub(crate) use side::{adjacent, offsets};
use store::PlainStore;
pub(crate) use store::affine_strides;
use unit::{Operand, Unit};

/// Packing B pays off when more rows than this use it.
const FEW_ROWS: usize = 64;

/// Compiled body: (buffers, first and last row of batch · m, outer index of n, first and last position of the strip, product
/// at the first, product row length in elements, scratch).
pub(crate) type Epilogue = unsafe extern "C" fn(*const *mut u8, u64, u64, u64, u64, u64, *const u8, u64, *mut u8);

/// Which batch and first column of B a worker's scratch holds, packed whole: the worker says so from one call to the next.
pub(crate) type Packed = Option<(u64, usize)>;

/// Where the finished product goes.
#[derive(Clone, Copy)]
pub(crate) enum Finish {
    /// Straight to a buffer: the plain store that most bodies are.
    Copy,
    Body(Epilogue),
}

/// A contraction ready to run.
pub(crate) struct Contraction {
    a: Side,
    b: Side,
    dtype: DType,
    batch: Vec<ContractDim>,
    n_batch: u64,
    m: usize,
    n: usize,
    k: usize,
    blocks: Blocks,
    /// The extent of the body's strip: the last dimensions of n.
    pub(crate) n_last: usize,
    unit: Unit,
    store: Option<PlainStore>,
    pub(crate) finish: Finish,
    /// Scratch that the body needs, at the end of ours.
    pub(crate) body_scratch: u64,
}

/// Where a group of columns is worked at: the operands of its batch, and the parts of the scratch.
struct Place {
    batch: u64,
    first: usize,
    a: *const u8,
    b: *const u8,
    product: *mut f32,
    packed_b: *mut f32,
    packed_a: *mut f32,
}

impl Contraction {
    pub(crate) fn new(kernel: &Kernel, contract: &Contract, isa: Isa) -> Contraction {
        let side = |dims: &[ContractDim], of: fn(&ContractDim) -> i64| -> Vec<(u64, i64)> {
            dims.iter().map(|dim| (dim.extent, of(dim))).collect()
        };
        let size = |dims: &[ContractDim]| dims.iter().map(|dim| dim.extent as usize).product::<usize>();
        let (m, n, k) = (size(&contract.m), size(&contract.n), size(&contract.k));
        let dtype = kernel.bufs[contract.a.buf.0 as usize].dtype;
        let unit = Unit::of(isa, dtype, contract.parts);
        let blocks = Blocks::of(m, n, k, &unit, dtype);
        let (a_k, b_k) = (side(&contract.k, |dim| dim.a), side(&contract.k, |dim| dim.b));
        Contraction {
            a: Side::new(contract.a, &side(&contract.m, |dim| dim.a), &a_k, blocks.depth),
            b: Side::new(contract.b, &side(&contract.n, |dim| dim.b), &b_k, blocks.depth),
            dtype,
            batch: contract.batch.clone(),
            n_batch: size(&contract.batch) as u64,
            m,
            n,
            k,
            blocks,
            n_last: n.max(1),
            unit,
            store: PlainStore::of(kernel, contract),
            finish: Finish::Copy,
            body_scratch: 0,
        }
    }

    /// Multiplications and additions.
    pub(crate) fn flops(&self) -> u64 {
        2 * self.n_batch * (self.m * self.n) as u64 * self.k.max(1) as u64
    }

    /// Whether a compiled body is needed.
    pub(crate) fn needs_body(&self) -> bool {
        self.store.is_none()
    }

    /// Tasks: rows fastest, so that neighbours share the packed B; then groups of columns, then the batch.
    pub(crate) fn tasks(&self) -> u64 {
        if self.m == 0 || self.n == 0 {
            return 0;
        }
        self.n_batch * self.n.div_ceil(self.blocks.group) as u64 * self.m.div_ceil(self.blocks.task) as u64
    }

    /// Bytes of the product of a block, of what is packed of B, and of A.
    fn parts_of_scratch(&self) -> [usize; 3] {
        let Blocks { rows, columns, group, keeps_b, line, whole_line, .. } = self.blocks;
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        let line = if keeps_b { whole_line } else { line };
        [rows * columns * number, line * group * 4, line * rows * 4].map(|bytes| bytes.next_multiple_of(64))
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.parts_of_scratch().iter().sum::<usize>() as u64 + self.body_scratch
    }

    /// Blocks of k: the first and the length of each.
    fn depths(&self) -> impl Iterator<Item = Rows> {
        (0..self.k).step_by(self.blocks.depth).map(|k0| k0..(k0 + self.blocks.depth).min(self.k))
    }

    /// Runs the tasks `lo..hi`.
    ///
    /// # Safety
    /// The kernel is verified, `bufs` are its buffers, `scratch` has `scratch_bytes()` bytes aligned to 64 for us alone, and
    /// nobody runs the same tasks at once; `packed` is true of the scratch, nothing at first.
    pub(crate) unsafe fn run(&self, bufs: Buffers<'_>, lo: u64, hi: u64, scratch: *mut u8, packed: &mut Packed) {
        let Blocks { task: task_rows, rows: row_block, columns: width, group, keeps_b, whole_line, .. } = self.blocks;
        // SAFETY: a contraction is made for the machine's instruction set.
        let _held = unsafe { self.unit.hold() };
        let n_rows = self.m.div_ceil(self.blocks.task) as u64;
        let n_groups = self.n.div_ceil(group) as u64;
        let mut task = lo;
        while task < hi {
            // Neighbouring rows go together, so that B is packed once for them.
            let (outer, row_task) = (task / n_rows, task % n_rows);
            let together = (n_rows - row_task).min(hi - task);
            task += together;
            let (batch, first) = (outer / n_groups, (outer % n_groups) as usize * group);
            let end = ((row_task + together) as usize * task_rows).min(self.m);
            let columns = first..(first + group).min(self.n);
            let at = self.place(bufs, batch, first, scratch);
            if keeps_b && *packed != Some((batch, first)) {
                for block in columns.clone().step_by(width) {
                    for k in self.depths() {
                        let to = at
                            .packed_b
                            .wrapping_add((block - first) * whole_line + self.blocks.line_before(k.start) * width);
                        // SAFETY: whole blocks fit the scratch, and `verify` checked that every (column, k) lies in its buffer.
                        unsafe { self.pack(Operand::B, to, at.b, block..(block + width).min(columns.end), k) };
                    }
                }
                *packed = Some((batch, first));
            }
            for row in (row_task as usize * task_rows..end).step_by(row_block) {
                let rows = row..(row + row_block).min(end);
                if keeps_b {
                    for k in self.depths() {
                        let to = at.packed_a.wrapping_add(self.blocks.line_before(k.start) * row_block);
                        // SAFETY: as for B.
                        unsafe { self.pack(Operand::A, to, at.a, rows.clone(), k) };
                    }
                }
                for block in columns.clone().step_by(width) {
                    let columns = block..(block + width).min(columns.end);
                    let next =
                        if block + width >= first + group { rows.end..(rows.end + row_block).min(end) } else { 0..0 };
                    // SAFETY: the block lies in the product, and the rest is the caller's promise.
                    unsafe {
                        if self.dtype == DType::F64 {
                            self.block_f64(bufs, batch, rows.clone(), columns.clone(), scratch);
                        } else {
                            self.block(bufs, &at, rows.clone(), next, columns.clone());
                        }
                        self.finish_block(bufs, batch, rows.clone(), columns, scratch);
                    }
                }
            }
        }
    }

    /// Where a group of columns is worked at.
    fn place(&self, bufs: Buffers<'_>, batch: u64, first: usize, scratch: *mut u8) -> Place {
        let (a_batch, b_batch) = self.batch_offsets(batch);
        let element = self.dtype.size_bytes() as isize;
        let start = |side: &Side, offset: i64| {
            let base = bufs.base(side.operand.buf.0 as usize).cast_const();
            base.wrapping_offset((side.operand.base + offset) as isize * element)
        };
        let [product, b, _] = self.parts_of_scratch();
        Place {
            batch,
            first,
            a: start(&self.a, a_batch),
            b: start(&self.b, b_batch),
            product: scratch.cast(),
            packed_b: scratch.wrapping_add(product).cast(),
            packed_a: scratch.wrapping_add(product + b).cast(),
        }
    }

    /// The offsets of a batch in a and b.
    fn batch_offsets(&self, batch: u64) -> (i64, i64) {
        let (mut a, mut b, mut rest) = (0, 0, batch);
        for dim in self.batch.iter().rev() {
            let at = (rest % dim.extent) as i64;
            rest /= dim.extent;
            a += at * dim.a;
            b += at * dim.b;
        }
        (a, b)
    }

    /// One block of the product, into scratch or straight to where it is stored: `next` are the rows that follow when these
    /// columns are the last of their group.
    unsafe fn block(&self, bufs: Buffers<'_>, at: &Place, rows: Rows, next: Rows, columns: Rows) {
        let Blocks { rows: row_block, columns: width, keeps_b, depth: most, whole_line, .. } = self.blocks;
        let element = self.dtype.size_bytes() as usize;
        let panel = self.unit.columns();
        let (n_rows, n_columns) = (rows.len(), columns.len());
        let (product, length) = match self.straight(&columns) {
            Some((store, step)) => (self.stored_at(store, bufs, at.batch, &rows, &columns).cast::<f32>(), step),
            None => (at.product, width),
        };
        if self.k == 0 {
            for row in 0..n_rows {
                // SAFETY: the product block is ours.
                unsafe { std::ptr::write_bytes(product.add(row * length), 0, n_columns) };
            }
            return;
        }
        // Of B, whole panels can be read in place; the last one may end within a vector, and is packed.
        let in_place_b = match self.b.columns {
            Some(step) if self.unit.reads_in_place(self.dtype) && self.m <= FEW_ROWS => {
                Some((step, n_columns / panel * panel))
            }
            _ => None,
        };
        let packed_from = in_place_b.map_or(0, |(_, whole)| whole);
        for k in self.depths() {
            let (depth, line) = (k.len(), self.unit.numbers(k.len()));
            let (mut packed_a, mut packed_b) = (at.packed_a, at.packed_b);
            // While this block is multiplied, the lines of the next come nearer, a few with each tile.
            let (ahead_a, ahead_b);
            if keeps_b {
                let before = self.blocks.line_before(k.start);
                packed_a = packed_a.wrapping_add(before * row_block);
                packed_b = packed_b.wrapping_add((columns.start - at.first) * whole_line + before * width);
                (ahead_a, ahead_b) = (Ahead { rows: next.clone(), k: k.clone() }, Ahead { rows: 0..0, k: 0..0 });
            } else {
                // SAFETY: `verify` checked that every (row, k) lies in its buffer; packed blocks fit their scratch.
                unsafe {
                    let from = columns.start + packed_from..columns.end;
                    self.pack(Operand::B, packed_b, at.b, from, k.clone());
                    self.pack(Operand::A, packed_a, at.a, rows.clone(), k.clone());
                }
                let next = k.end..(k.end + most).min(self.k);
                ahead_a = Ahead { rows: rows.clone(), k: next.clone() };
                ahead_b = Ahead { rows: columns.clone(), k: next };
            }
            let n_tiles = n_columns.div_ceil(panel) * n_rows.div_ceil(self.unit.rows());
            let mut tile = 0;
            for column in (0..n_columns).step_by(panel) {
                let b_panel = match in_place_b {
                    Some((step, whole)) if column < whole => {
                        let offset = self.b.rows[columns.start + column] + self.b.k[k.start];
                        Panel { from: at.b.cast::<f32>().wrapping_offset(offset as isize), step }
                    }
                    // Panel `(column - packed_from) / panel` of the packed B.
                    _ => Panel { from: packed_b.wrapping_add((column - packed_from) * line), step: panel },
                };
                let half = n_columns - column <= panel / 2;
                for row in (0..n_rows).step_by(self.unit.rows()) {
                    let height = (n_rows - row).min(self.unit.rows());
                    self.a.fetch(at.a, element, &ahead_a, tile, n_tiles);
                    self.b.fetch(at.b, element, &ahead_b, tile, n_tiles);
                    tile += 1;
                    // SAFETY: the tile lies in the product block, whose rows have whole panels.
                    unsafe {
                        let to = Tile { to: product.add(row * length + column), length, more: k.start > 0 };
                        self.unit.multiply(height, half, depth, packed_a.add(row * line), b_panel, to);
                    }
                }
            }
        }
    }

    /// # Safety
    /// See [`Unit::pack`]; the elements at `from` are of our dtype.
    unsafe fn pack(&self, operand: Operand, out: *mut f32, from: *const u8, rows: Rows, k: Rows) {
        let side = if operand == Operand::A { &self.a } else { &self.b };
        // SAFETY: the caller's promise.
        unsafe { self.unit.pack(operand, self.dtype, out, from, &side.rows[rows], &side.k[k]) }
    }

    /// The same in `f64`, plainly: for tests.
    unsafe fn block_f64(&self, bufs: Buffers<'_>, batch: u64, rows: Rows, columns: Rows, scratch: *mut u8) {
        let (a_batch, b_batch) = self.batch_offsets(batch);
        let a = bufs.base(self.a.operand.buf.0 as usize).cast::<f64>();
        let b = bufs.base(self.b.operand.buf.0 as usize).cast::<f64>();
        for (i, row) in self.a.rows[rows].iter().enumerate() {
            for (j, column) in self.b.rows[columns.clone()].iter().enumerate() {
                let (a0, b0) = (self.a.operand.base + a_batch + row, self.b.operand.base + b_batch + column);
                let mut sum = 0.0;
                for (a_k, b_k) in self.a.k.iter().zip(&self.b.k) {
                    // SAFETY: `verify` checked these positions.
                    sum += unsafe { a.offset((a0 + a_k) as isize).read() * b.offset((b0 + b_k) as isize).read() };
                }
                // SAFETY: inside the product block.
                unsafe { scratch.cast::<f64>().add(i * self.blocks.columns + j).write(sum) };
            }
        }
    }
}

type Rows = std::ops::Range<usize>;
