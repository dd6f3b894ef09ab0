//! The contraction template: `out = body(Σ_k a · b)` in blocks that stay in cache, for any strides.
//!
//! In: a verified [`Contract`]. An operand is addressed through tables of offsets for its rows (m or n) and for k, so any
//! list of strided dimensions works; runs of stride 1 take faster ways. Operands are packed into panels that the innermost
//! product, a [`Micro`], the seam where other units come in, reads from end to end: two threads of one core, or two users of one
//! machine, share its caches, and a product that needs few of them suffers least.
//!
//! Invariant: an element of the product is a chain of multiply-adds over k in order, in blocks that k alone decides, whatever
//! the tiles: so any split over threads gives the same bits. Different instruction sets round differently (fused or not).

pub(crate) mod micro;
mod pack;

use mdl_compiler::kernel::{Access, Contract, ContractDim, Dim, Kernel, Operand, Stmt};
use mdl_graph::DType;

use crate::isa::Isa;
use crate::memory::Buffers;
use micro::{Micro, PANEL_ROWS, Panel, Tile};

/// Rows of one task: the grain at which rows are dealt to threads.
const TASK_ROWS: usize = 4 * PANEL_ROWS;
/// At most so long is a block of k: a panel of B, 32 KiB, and one of A stay in a 48 KiB level-1 cache.
const K_BLOCK: usize = 256;
/// Where columns of B stay packed for all rows, in at most so many bytes for each thread, few rows are taken at once, whose A, for
/// all of k, is packed once for all those columns.
const KEPT_BYTES: usize = 8 << 20;
const KEPT_ROWS: usize = 3 * TASK_ROWS;
const KEPT_COLUMNS: usize = 384;
const KEPT_A_BYTES: usize = 768 << 10;
/// Elsewhere, in long or small products, so many rows and columns at once: their product, 360 KiB, a block of A and of B, 672 KiB,
/// and what is fetched of the next, stay in a 2 MiB level-2 cache.
const ROW_BLOCK: usize = 10 * TASK_ROWS;
const COLUMN_BLOCK: usize = 192;
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
    micro: Micro,
    store: Option<PlainStore>,
    pub(crate) finish: Finish,
    /// Scratch that the body needs, at the end of ours.
    pub(crate) body_scratch: u64,
}

/// How a product is cut: a function of shapes alone.
struct Blocks {
    /// Rows at once, whole panels.
    rows: usize,
    /// Columns at once, whole panels: blocks are as equal as panels allow, so that threads get equal shares.
    columns: usize,
    /// Columns whose B stays packed for all rows, in whole blocks; where it does not, one block.
    group: usize,
    keeps_b: bool,
    /// The longest block of k; blocks are as equal as can be.
    depth: usize,
}

impl Blocks {
    fn of(m: usize, n: usize, k: usize, panel: usize, dtype: DType) -> Blocks {
        let equal = |length: usize, most: usize| length.div_ceil(length.div_ceil(most).max(1)).max(1);
        let kept = equal(n, KEPT_COLUMNS).next_multiple_of(panel);
        let block_of_b = 4 * k.max(1) * kept;
        // f64 is for tests, and is not packed.
        let keeps_b = dtype != DType::F64 && m > ROW_BLOCK && block_of_b <= KEPT_BYTES;
        let columns = if keeps_b { kept } else { equal(n, COLUMN_BLOCK).next_multiple_of(panel) };
        let group =
            if keeps_b { (KEPT_BYTES / block_of_b * columns).min(n.next_multiple_of(columns)) } else { columns };
        let rows = if keeps_b { KEPT_ROWS.min(KEPT_A_BYTES / (4 * k.max(1))) } else { ROW_BLOCK };
        let rows = (rows / PANEL_ROWS).max(1) * PANEL_ROWS;
        Blocks { rows: rows.min(m.next_multiple_of(PANEL_ROWS)), columns, group, keeps_b, depth: equal(k, K_BLOCK) }
    }
}

/// One operand: its buffer and its offsets along its rows and along k.
struct Side {
    operand: Operand,
    rows: Vec<i64>,
    k: Vec<i64>,
    /// Every block of k is a run of stride 1.
    k_adjacent: bool,
    /// Rows are a run of stride 1, and so far apart in memory are one k and the next.
    columns: Option<usize>,
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

/// A body that only stores the product, as it is: offsets of the batch, of rows and of columns.
struct PlainStore {
    buf: usize,
    base: i64,
    batch: Vec<i64>,
    rows: Vec<i64>,
    columns: Vec<i64>,
    columns_adjacent: bool,
    /// From one row to the next, when that is always the same.
    row_step: Option<i64>,
}

/// The offset of every point of some dimensions, the last fastest.
pub(crate) fn offsets(dims: &[(u64, i64)]) -> Vec<i64> {
    let mut all = vec![0i64];
    for (extent, stride) in dims {
        all = all.iter().flat_map(|base| (0..*extent as i64).map(move |at| base + at * stride)).collect();
    }
    all
}

pub(crate) fn adjacent(offsets: &[i64]) -> bool {
    offsets.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

impl Side {
    fn new(operand: Operand, rows: &[(u64, i64)], k: &[(u64, i64)], depth: usize) -> Side {
        let (rows, k) = (offsets(rows), offsets(k));
        let step = k.get(1).map_or(0, |second| second - k[0]);
        let is_even = step >= 0 && k.windows(2).all(|pair| pair[1] - pair[0] == step);
        let columns = (is_even && adjacent(&rows)).then_some(step as usize);
        Side { operand, k_adjacent: k.chunks(depth).all(adjacent), columns, rows, k }
    }
}

/// What comes next: rows and k of an operand.
#[derive(Clone)]
struct Ahead {
    rows: Rows,
    k: Rows,
}

impl Side {
    /// Asks for the lines of one part out of `parts` of a block, as runs in memory: no processor guesses by itself where the
    /// next run begins.
    fn fetch(&self, base: *const u8, element: usize, ahead: &Ahead, part: usize, parts: usize) {
        if ahead.rows.is_empty() || ahead.k.is_empty() {
            return;
        }
        let share =
            |range: &Rows| range.start + range.len() * part / parts..range.start + range.len() * (part + 1) / parts;
        let run = |first: i64, length: usize| {
            let first = base.wrapping_offset(first as isize * element as isize);
            for offset in (0..length * element).step_by(64) {
                prefetch::<1>(first.wrapping_add(offset));
            }
        };
        if self.k_adjacent {
            for row in share(&ahead.rows) {
                run(self.rows[row] + self.k[ahead.k.start], ahead.k.len());
            }
        } else if self.columns.is_some_and(|step| step >= ahead.rows.len()) {
            for k in share(&ahead.k) {
                run(self.rows[ahead.rows.start] + self.k[k], ahead.rows.len());
            }
        }
    }
}

/// Brings a line of cache to the first level or the second (`LEVEL` 0 or 1); a hint that never faults.
#[inline(always)]
fn prefetch<const LEVEL: u8>(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is in every x86-64, and touches no memory that the program can see.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if LEVEL == 0 { _mm_prefetch::<_MM_HINT_T0>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

impl PlainStore {
    fn of(kernel: &Kernel, contract: &Contract) -> Option<PlainStore> {
        let [Stmt::Store { buf, access, val }] = &contract.body[..] else { return None };
        let same = kernel.bufs[buf.0 as usize].dtype == contract.vals[0].dtype;
        if !same || val.0 != 0 {
            return None;
        }
        let strides = affine_strides(access, contract.body_dims().len())?;
        let with = |dims: &[ContractDim], strides: &[i64]| -> Vec<(u64, i64)> {
            dims.iter().zip(strides).map(|(dim, stride)| (dim.extent, *stride)).collect()
        };
        let (batch, rest) = strides.split_at(contract.batch.len());
        let (m, n) = rest.split_at(contract.m.len());
        let columns = offsets(&with(&contract.n, n));
        let rows = offsets(&with(&contract.m, m));
        let step = rows.get(1).map_or(0, |second| second - rows[0]);
        Some(PlainStore {
            buf: buf.0 as usize,
            base: access.base,
            batch: batch.to_vec(),
            row_step: (step >= 0 && rows.windows(2).all(|pair| pair[1] - pair[0] == step)).then_some(step),
            rows,
            columns_adjacent: adjacent(&columns),
            columns,
        })
    }
}

/// The stride of each dimension in a plain access: no guard, no division, no indirection. `base` is the access's own.
pub(crate) fn affine_strides(access: &Access, n_dims: usize) -> Option<Vec<i64>> {
    let mut strides = vec![0i64; n_dims];
    for term in &access.terms {
        let mdl_compiler::kernel::Position::Index(index) = &term.index else { return None };
        if term.range.is_some() || index.div != 1 || index.modulo != 0 || index.base != 0 || index.plus != 0 {
            return None;
        }
        for (Dim(dim), coef) in &index.terms {
            strides[*dim as usize] += coef * term.coef;
        }
    }
    Some(strides)
}

impl Contraction {
    pub(crate) fn new(kernel: &Kernel, contract: &Contract, isa: Isa) -> Contraction {
        let side = |dims: &[ContractDim], of: fn(&ContractDim) -> i64| -> Vec<(u64, i64)> {
            dims.iter().map(|dim| (dim.extent, of(dim))).collect()
        };
        let size = |dims: &[ContractDim]| dims.iter().map(|dim| dim.extent as usize).product::<usize>();
        let (m, n, k) = (size(&contract.m), size(&contract.n), size(&contract.k));
        let micro = Micro::of(isa);
        let dtype = kernel.bufs[contract.a.buf.0 as usize].dtype;
        let blocks = Blocks::of(m, n, k, micro.panel, dtype);
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
            micro,
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
        self.n_batch * self.n.div_ceil(self.blocks.group) as u64 * self.m.div_ceil(TASK_ROWS) as u64
    }

    /// Bytes of the product of a block, of what is packed of B, and of A.
    fn parts_of_scratch(&self) -> [usize; 3] {
        let Blocks { rows, columns, group, keeps_b, depth } = self.blocks;
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        let k = if keeps_b { self.k } else { depth };
        [rows * columns * number, k * group * 4, k * rows * 4].map(|bytes| bytes.next_multiple_of(64))
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
        let Blocks { rows: row_block, columns: width, group, keeps_b, .. } = self.blocks;
        let n_rows = self.m.div_ceil(TASK_ROWS) as u64;
        let n_groups = self.n.div_ceil(group) as u64;
        let mut task = lo;
        while task < hi {
            // Neighbouring rows go together, so that B is packed once for them.
            let (outer, row_task) = (task / n_rows, task % n_rows);
            let together = (n_rows - row_task).min(hi - task);
            task += together;
            let (batch, first) = (outer / n_groups, (outer % n_groups) as usize * group);
            let end = ((row_task + together) as usize * TASK_ROWS).min(self.m);
            let columns = first..(first + group).min(self.n);
            let at = self.place(bufs, batch, first, scratch);
            if keeps_b && *packed != Some((batch, first)) {
                for block in columns.clone().step_by(width) {
                    for k in self.depths() {
                        let to = at.packed_b.wrapping_add((block - first) * self.k + k.start * width);
                        // SAFETY: whole blocks fit the scratch, and `verify` checked that every (column, k) lies in its buffer.
                        unsafe {
                            self.pack(&self.b, to, self.micro.panel, at.b, block..(block + width).min(columns.end), k)
                        };
                    }
                }
                *packed = Some((batch, first));
            }
            for row in (row_task as usize * TASK_ROWS..end).step_by(row_block) {
                let rows = row..(row + row_block).min(end);
                if keeps_b {
                    for k in self.depths() {
                        let to = at.packed_a.wrapping_add(k.start * row_block);
                        // SAFETY: as for B.
                        unsafe { self.pack(&self.a, to, PANEL_ROWS, at.a, rows.clone(), k) };
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
        let Blocks { rows: row_block, columns: width, keeps_b, depth: most, .. } = self.blocks;
        let element = self.dtype.size_bytes() as usize;
        let panel = self.micro.panel;
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
            Some(step) if self.dtype == DType::F32 && self.m <= FEW_ROWS => Some((step, n_columns / panel * panel)),
            _ => None,
        };
        let packed_from = in_place_b.map_or(0, |(_, whole)| whole);
        for k in self.depths() {
            let depth = k.len();
            let (mut packed_a, mut packed_b) = (at.packed_a, at.packed_b);
            // While this block is multiplied, the lines of the next come nearer, a few with each tile.
            let (ahead_a, ahead_b);
            if keeps_b {
                packed_a = packed_a.wrapping_add(k.start * row_block);
                packed_b = packed_b.wrapping_add((columns.start - at.first) * self.k + k.start * width);
                (ahead_a, ahead_b) = (Ahead { rows: next.clone(), k: k.clone() }, Ahead { rows: 0..0, k: 0..0 });
            } else {
                // SAFETY: `verify` checked that every (row, k) lies in its buffer; packed blocks fit their scratch.
                unsafe {
                    let from = columns.start + packed_from..columns.end;
                    self.pack(&self.b, packed_b, panel, at.b, from, k.clone());
                    self.pack(&self.a, packed_a, PANEL_ROWS, at.a, rows.clone(), k.clone());
                }
                let next = k.end..(k.end + most).min(self.k);
                ahead_a = Ahead { rows: rows.clone(), k: next.clone() };
                ahead_b = Ahead { rows: columns.clone(), k: next };
            }
            let n_tiles = n_columns.div_ceil(panel) * n_rows.div_ceil(PANEL_ROWS);
            let mut tile = 0;
            for column in (0..n_columns).step_by(panel) {
                let b_panel = match in_place_b {
                    Some((step, whole)) if column < whole => {
                        let offset = self.b.rows[columns.start + column] + self.b.k[k.start];
                        Panel { from: at.b.cast::<f32>().wrapping_offset(offset as isize), step }
                    }
                    // Panel `(column - packed_from) / panel` of the packed B.
                    _ => Panel { from: packed_b.wrapping_add((column - packed_from) * depth), step: panel },
                };
                let half = n_columns - column <= panel / 2;
                for row in (0..n_rows).step_by(PANEL_ROWS) {
                    let height = (n_rows - row).min(PANEL_ROWS);
                    self.a.fetch(at.a, element, &ahead_a, tile, n_tiles);
                    self.b.fetch(at.b, element, &ahead_b, tile, n_tiles);
                    tile += 1;
                    // SAFETY: the tile lies in the product block, whose rows have whole panels.
                    unsafe {
                        let to = Tile { to: product.add(row * length + column), length, more: k.start > 0 };
                        let a = Panel { from: packed_a.add(row * depth), step: PANEL_ROWS };
                        self.micro.columns(height, half, depth, a, b_panel, to);
                    }
                }
            }
        }
    }

    /// # Safety
    /// See [`pack::panels`]; the elements at `from` are of our dtype.
    unsafe fn pack(&self, side: &Side, out: *mut f32, width: usize, from: *const u8, rows: Rows, k: Rows) {
        let (rows, k) = (&side.rows[rows], &side.k[k]);
        // SAFETY: the caller's promise.
        unsafe {
            match self.dtype {
                DType::BF16 => (self.micro.pack_bf16)(out, width, from.cast(), rows, k),
                DType::F16 => (self.micro.pack_f16)(out, width, from.cast(), rows, k),
                _ => (self.micro.pack_f32)(out, width, from.cast(), rows, k),
            }
        }
    }

    /// The store that takes the product as it is made, and the length of its rows: of whole vectors, side by side.
    fn straight(&self, columns: &Rows) -> Option<(&PlainStore, usize)> {
        let store = self.store.as_ref().filter(|_| matches!(self.finish, Finish::Copy) && self.dtype != DType::F64)?;
        let step = store.row_step.filter(|_| store.columns_adjacent)?;
        columns.len().is_multiple_of(self.micro.panel / 2).then_some((store, step as usize))
    }

    /// Where the first element of a block is stored.
    fn stored_at(&self, store: &PlainStore, bufs: Buffers<'_>, batch: u64, rows: &Rows, columns: &Rows) -> *mut u8 {
        let mut rest = batch;
        let mut at = store.base + store.rows[rows.start] + store.columns[columns.start];
        for (dim, stride) in self.batch.iter().zip(&store.batch).rev() {
            at += (rest % dim.extent) as i64 * stride;
            rest /= dim.extent;
        }
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        bufs.base(store.buf).wrapping_offset(at as isize * number)
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

    unsafe fn finish_block(&self, bufs: Buffers<'_>, batch: u64, rows: Rows, columns: Rows, scratch: *mut u8) {
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        match (self.finish, &self.store) {
            (Finish::Body(body), _) => {
                // SAFETY: the body's scratch is the last part of ours.
                let own = unsafe { scratch.add((self.scratch_bytes() - self.body_scratch) as usize) };
                let row0 = batch * self.m as u64;
                let mut column = columns.start;
                while column < columns.end {
                    let (outer, from) = (column / self.n_last, column % self.n_last);
                    let to = self.n_last.min(from + columns.end - column);
                    // SAFETY: rows and columns of this block, which lies in scratch; the body was compiled from this kernel.
                    unsafe {
                        let product = scratch.add((column - columns.start) * number);
                        let (lo, hi) = (row0 + rows.start as u64, row0 + rows.end as u64);
                        body(
                            bufs.as_ptr(),
                            lo,
                            hi,
                            outer as u64,
                            from as u64,
                            to as u64,
                            product,
                            self.blocks.columns as u64,
                            own,
                        );
                    }
                    column += to - from;
                }
            }
            (Finish::Copy, Some(_)) if self.straight(&columns).is_some() => {}
            (Finish::Copy, Some(store)) => {
                let (first_row, first_column) = (store.rows[rows.start], store.columns[columns.start]);
                let out = self.stored_at(store, bufs, batch, &rows, &columns);
                for (i, row) in store.rows[rows].iter().enumerate() {
                    // SAFETY: `verify` checked the store's access for every point.
                    unsafe {
                        let from = scratch.add(i * self.blocks.columns * number);
                        let to_row = out.offset((row - first_row) as isize * number as isize);
                        if store.columns_adjacent {
                            std::ptr::copy_nonoverlapping(from, to_row, columns.len() * number);
                        } else {
                            for (j, column) in store.columns[columns.clone()].iter().enumerate() {
                                let to = to_row.offset((column - first_column) as isize * number as isize);
                                std::ptr::copy_nonoverlapping(from.add(j * number), to, number);
                            }
                        }
                    }
                }
            }
            (Finish::Copy, None) => mdl_graph::bug!("a contraction without its body"),
        }
    }
}

type Rows = std::ops::Range<usize>;
