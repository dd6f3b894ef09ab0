//! The plane template: blocks of rows whose products, body and sums stay in cache, and whose unseen columns are left out.
//!
//! In: a verified [`Plane`]. For some rows at a time the products that make the plane are written to tiles, the body runs on these
//! tiles as on any buffers, and the sums read what it left there. What a batch point shares is packed once for all its rows.
//! Where the body folds, a tile holds whole rows, as far as they are seen, and there are fewer of them the longer they are;
//! otherwise columns are worked on in pieces.
//!
//! Invariant: blocks depend on sizes alone, and every sum is a chain over its blocks in order: so any split over threads gives the
//! same bits. A plane that is summed over its rows is one task for each batch point; otherwise each block of rows is one.

mod tiles;

use half::{bf16, f16};
use mdl_compiler::kernel::{Keeps, Kernel, PairDim, Plane, PlaneIn, PlaneOut, PlaneSide};
use mdl_graph::{DType, Scalar};

use crate::contract::micro::{Micro, PANEL_ROWS, Panel, Tile};
use crate::contract::offsets;
use crate::isa::Isa;
use crate::memory::{self, Buffers};

pub(crate) use tiles::Tiled;

/// Rows at once, and the bytes of tiles that stay in a second-level cache beside the packed operands.
const ROWS: usize = 8 * PANEL_ROWS;
const TILE_BYTES: usize = 1 << 20;
/// Columns at once, where rows need not be whole.
const PIECE: usize = 512;
/// A row of a tile is longer by this than its columns: off the powers of two, so that rows do not share their places in the cache.
const OFF: usize = 16;
/// The grain at which unseen columns are left out: a panel of the widest instruction set.
const GRAIN: usize = 32;
/// More blocks than this are not looked at one by one: about 20 ms.
const MOST_BLOCKS: usize = 1 << 19;
/// The longest chain of a sum before what is there is added.
const DEPTH: usize = 256;

/// Compiled body: (buffers and tiles, first and last row of batch · rows, first and last column, scratch).
pub(crate) type RowsEntry = unsafe extern "C" fn(*const *mut u8, u64, u64, u64, u64, *mut u8);

/// A plane ready to run.
pub(crate) struct Planes {
    micro: Micro,
    batch: Vec<u64>,
    n_rows: usize,
    n_columns: usize,
    /// Rows at once: whole groups of `PANEL_ROWS`, of each of which `seen` has the columns that it sees.
    height: usize,
    seen: Vec<Rows>,
    /// Columns at once.
    piece: usize,
    /// The length of a row of a tile.
    pitch: usize,
    n_tiles: usize,
    ins: Vec<In>,
    outs: Vec<Out>,
    n_bufs: usize,
    own_bytes: usize,
    pub(crate) body: Option<RowsEntry>,
    pub(crate) body_scratch: u64,
}

/// An operand: where it begins for each batch point, and its offsets along rows or columns, and along k or n.
struct Side {
    buf: usize,
    dtype: DType,
    base: i64,
    batch: Vec<i64>,
    along: Vec<i64>,
    inner: Vec<i64>,
}

struct In {
    a: Side,
    b: Side,
    /// Rows of `a` are runs of `f32`, and read where they are.
    in_place: bool,
    /// Where in scratch its packed operands are.
    packed_a: usize,
    packed_b: usize,
}

struct Out {
    keeps: Keeps,
    /// The tile that holds what is summed.
    tile: usize,
    with: Side,
    to: Side,
    /// Whole panels.
    width: usize,
    packed: usize,
    sums: usize,
}

impl Side {
    fn new(kernel: &Kernel, side: &PlaneSide, along: &[u64], inner: &[(u64, i64)]) -> Side {
        let along: Vec<(u64, i64)> = along.iter().copied().zip(side.along.iter().copied()).collect();
        let buf = side.operand.buf.0 as usize;
        Side {
            buf,
            dtype: kernel.bufs[buf].dtype,
            base: side.operand.base,
            batch: side.batch.clone(),
            along: offsets(&along),
            inner: offsets(inner),
        }
    }

    /// The address of the first element for a batch point.
    fn start(&self, bufs: Buffers<'_>, batch: &[u64], mut point: u64) -> *mut u8 {
        let mut at = self.base;
        for (extent, stride) in batch.iter().zip(&self.batch).rev() {
            at += (point % extent) as i64 * stride;
            point /= extent;
        }
        bufs.base(self.buf).wrapping_offset(at as isize * self.dtype.size_bytes() as isize)
    }

    /// Packs some of `rows` by `k`.
    ///
    /// # Safety
    /// See `pack::panels`.
    unsafe fn pack(micro: &Micro, dtype: DType, out: *mut f32, width: usize, from: *const u8, rows: &[i64], k: &[i64]) {
        // SAFETY: the caller's promise.
        unsafe {
            match dtype {
                DType::BF16 => (micro.pack_bf16)(out, width, from.cast(), rows, k),
                DType::F16 => (micro.pack_f16)(out, width, from.cast(), rows, k),
                _ => (micro.pack_f32)(out, width, from.cast(), rows, k),
            }
        }
    }
}

/// Places in scratch, each on a cache line of its own.
#[derive(Default)]
struct Places(usize);

impl Places {
    fn take(&mut self, bytes: usize) -> usize {
        let at = self.0;
        self.0 += bytes.next_multiple_of(64);
        at
    }
}

impl Planes {
    pub(crate) fn new(kernel: &Kernel, plane: &Plane, isa: Isa) -> Planes {
        let micro = Micro::of(isa);
        let tiled = Tiled::of(plane);
        let (n_rows, n_columns) = (plane.n_rows() as usize, plane.columns as usize);
        let columns = |(lo, hi): (u64, u64)| lo as usize..hi as usize;
        // Of very long planes the edges are found less finely, so that finding them takes no time.
        let n_groups = n_rows.div_ceil(PANEL_ROWS);
        let together = if n_groups * n_columns.div_ceil(GRAIN) <= MOST_BLOCKS { 1 } else { ROWS / PANEL_ROWS };
        let seen = plane.seen((together * PANEL_ROWS) as u64, GRAIN as u64).into_iter().map(columns);
        let seen: Vec<Rows> = seen.flat_map(|run| std::iter::repeat_n(run, together)).take(n_groups).collect();
        let (mut height, mut piece) = (ROWS, 0);
        loop {
            let longest = seen.chunks(height / PANEL_ROWS).map(|groups| around(groups).len()).max().unwrap_or(1);
            piece = if plane.has_folds() { longest } else { longest.min(PIECE) }.next_multiple_of(GRAIN).max(piece);
            if height <= PANEL_ROWS || piece * height * tiled.n_tiles * 4 <= TILE_BYTES {
                break;
            }
            (height, piece) = (height / 2, 0);
        }
        let mut planes = Planes {
            batch: plane.batch.clone(),
            n_rows,
            n_columns,
            height,
            seen,
            piece,
            pitch: piece + OFF,
            n_tiles: tiled.n_tiles,
            ins: plane.ins.iter().map(|one| In::new(kernel, plane, one)).collect(),
            outs: plane.outs.iter().map(|one| Out::new(kernel, plane, one, &tiled, micro.panel)).collect(),
            n_bufs: kernel.bufs.len(),
            micro,
            own_bytes: 0,
            body: None,
            body_scratch: 0,
        };
        planes.own_bytes = planes.place();
        planes
    }

    /// The length of a row of a tile, in numbers.
    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// Gives places in scratch, and returns its size.
    fn place(&mut self) -> usize {
        let mut places = Places::default();
        places.take((self.n_bufs + self.n_tiles) * size_of::<*mut u8>());
        places.take(self.n_tiles * self.height * self.pitch * 4);
        let columns = self.n_columns.next_multiple_of(GRAIN);
        for one in &mut self.ins {
            let packed = if one.in_place { 0 } else { self.height * one.a.inner.len() * 4 };
            one.packed_a = places.take(packed);
            one.packed_b = places.take(columns * one.b.inner.len() * 4);
        }
        for one in &mut self.outs {
            let (summed, kept) = match one.keeps {
                Keeps::Rows => (self.n_columns, self.height),
                Keeps::Columns => (self.height, columns),
            };
            one.packed = places.take(summed * one.width * 4);
            one.sums = places.take(kept * one.width * 4);
        }
        places.0
    }

    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.own_bytes as u64 + self.body_scratch
    }

    fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(self.height)
    }

    fn n_batch(&self) -> u64 {
        self.batch.iter().product()
    }

    fn whole_batch(&self) -> bool {
        self.outs.iter().any(|out| out.keeps == Keeps::Columns)
    }

    pub(crate) fn tasks(&self) -> u64 {
        self.n_batch() * if self.whole_batch() { 1 } else { self.n_blocks() as u64 }
    }

    /// Multiplications and additions, unseen ones too.
    pub(crate) fn flops(&self) -> u64 {
        let each = self.ins.iter().map(|one| one.a.inner.len()).sum::<usize>()
            + self.outs.iter().map(|one| one.width).sum::<usize>();
        2 * self.n_batch() * (self.n_rows * self.n_columns * each) as u64
    }

    /// Runs the tasks `lo..hi`.
    ///
    /// # Safety
    /// The kernel is verified, `bufs` are its buffers, `scratch` has `scratch_bytes()` bytes aligned to 64 for us alone, and
    /// nobody runs the same tasks at once.
    pub(crate) unsafe fn run(&self, bufs: Buffers<'_>, lo: u64, hi: u64, scratch: *mut u8) {
        let n_blocks = self.n_blocks() as u64;
        // SAFETY: the caller's promises.
        unsafe {
            if self.whole_batch() {
                for batch in lo..hi {
                    self.pack_columns(bufs, batch, scratch);
                    self.clear_sums(scratch);
                    (0..self.n_blocks()).for_each(|block| self.block(bufs, batch, block, scratch));
                    self.store_columns(bufs, batch, scratch);
                }
                return;
            }
            let mut packed = None;
            for task in lo..hi {
                let batch = task / n_blocks;
                if packed.replace(batch) != Some(batch) {
                    self.pack_columns(bufs, batch, scratch);
                }
                // From both ends in turn: the first rows of causal attention see little, the last much.
                let at = task % n_blocks;
                let block = if at.is_multiple_of(2) { at / 2 } else { n_blocks - 1 - at / 2 };
                self.block(bufs, batch, block as usize, scratch);
            }
        }
    }

    /// Packs what all rows of a batch point are multiplied with.
    unsafe fn pack_columns(&self, bufs: Buffers<'_>, batch: u64, scratch: *mut u8) {
        let panel = self.micro.panel;
        // SAFETY: `verify` checked the operands' positions; places in scratch are as large as what is packed.
        unsafe {
            for one in &self.ins {
                let to = scratch.add(one.packed_b).cast();
                let from = one.b.start(bufs, &self.batch, batch);
                Side::pack(&self.micro, one.b.dtype, to, panel, from, &one.b.along, &one.b.inner);
            }
            for one in self.outs.iter().filter(|one| one.keeps == Keeps::Rows) {
                let to = scratch.add(one.packed).cast();
                let from = one.with.start(bufs, &self.batch, batch);
                Side::pack(&self.micro, one.with.dtype, to, panel, from, &one.with.inner, &one.with.along);
            }
        }
    }

    unsafe fn clear_sums(&self, scratch: *mut u8) {
        let columns = self.n_columns.next_multiple_of(GRAIN);
        for one in self.outs.iter().filter(|one| one.keeps == Keeps::Columns) {
            // SAFETY: the place of the sums.
            unsafe { std::ptr::write_bytes(scratch.add(one.sums), 0, columns * one.width * 4) };
        }
    }

    /// One block of rows.
    unsafe fn block(&self, bufs: Buffers<'_>, batch: u64, block: usize, scratch: *mut u8) {
        let rows = block * self.height..((block + 1) * self.height).min(self.n_rows);
        let groups = &self.seen[rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS)];
        let Rows { start: lo, end: hi } = around(groups);
        // SAFETY: rows and columns are in range, and the caller's promises.
        unsafe {
            for one in self.ins.iter().filter(|one| !one.in_place) {
                let to = scratch.add(one.packed_a).cast();
                let from = one.a.start(bufs, &self.batch, batch);
                let along = &one.a.along[rows.clone()];
                Side::pack(&self.micro, one.a.dtype, to, PANEL_ROWS, from, along, &one.a.inner);
            }
            for one in self.outs.iter().filter(|one| one.keeps == Keeps::Columns) {
                let to = scratch.add(one.packed).cast();
                let from = one.with.start(bufs, &self.batch, batch);
                let along = &one.with.along[rows.clone()];
                Side::pack(&self.micro, one.with.dtype, to, self.micro.panel, from, &one.with.inner, along);
            }
            let mut column = lo;
            while column < hi {
                let columns = column..(column + self.piece).min(hi);
                self.piece(bufs, batch, &rows, groups, &columns, scratch);
                column = columns.end;
            }
            self.store_rows(bufs, batch, &rows, scratch);
        }
    }

    /// Some columns of a block of rows: products, body, sums. Of each group of rows only what it sees.
    unsafe fn piece(
        &self,
        bufs: Buffers<'_>,
        batch: u64,
        rows: &Rows,
        groups: &[Rows],
        columns: &Rows,
        scratch: *mut u8,
    ) {
        let panel = self.micro.panel;
        let table = scratch.cast::<*mut u8>();
        let tiles_at = ((self.n_bufs + self.n_tiles) * size_of::<*mut u8>()).next_multiple_of(64);
        // SAFETY: all in scratch as `place` laid it out, and the caller's promises.
        unsafe {
            let tile = |at: usize| scratch.add(tiles_at).cast::<f32>().add(at * self.height * self.pitch);
            for (at, one) in self.ins.iter().enumerate() {
                let depth = one.a.inner.len();
                let (a, b) = (scratch.add(one.packed_a).cast::<f32>(), scratch.add(one.packed_b).cast::<f32>());
                let first = one.a.start(bufs, &self.batch, batch).cast::<f32>().wrapping_offset(one.first());
                for column in columns.clone().step_by(panel) {
                    let b = Panel { from: b.add(column * depth), step: panel };
                    let half = columns.end - column <= panel / 2;
                    for (group, _) in groups.iter().enumerate().filter(|(_, seen)| seen.contains(&column)) {
                        let row = group * PANEL_ROWS;
                        let height = (rows.len() - row).min(PANEL_ROWS);
                        let to = tile(at).add(row * self.pitch + column - columns.start);
                        let to = Tile { to, length: self.pitch, more: false };
                        if one.in_place {
                            let mut heads = [std::ptr::null::<f32>(); PANEL_ROWS];
                            for (head, along) in heads.iter_mut().zip(&one.a.along[rows.start + row..rows.end]) {
                                *head = first.wrapping_offset(*along as isize);
                            }
                            self.micro.rows(half, depth, &heads[..height], b, to);
                        } else {
                            let a = Panel { from: a.add(row * depth), step: PANEL_ROWS };
                            self.micro.columns(height, half, depth, a, b, to);
                        }
                    }
                }
            }
            for at in 0..self.n_bufs {
                table.add(at).write(bufs.base(at));
            }
            for at in 0..self.n_tiles {
                // The body names an element by its row in the batch point and its column.
                let back = (rows.start * self.pitch + columns.start) as isize;
                table.add(self.n_bufs + at).write(tile(at).wrapping_offset(-back).cast());
            }
            if let Some(body) = self.body {
                let first = batch * self.n_rows as u64;
                let own = scratch.add(self.own_bytes);
                for (group, seen) in groups.iter().enumerate() {
                    let seen = meet(seen, columns);
                    let row = rows.start + group * PANEL_ROWS;
                    let (lo, hi) = (first + row as u64, first + (row + PANEL_ROWS).min(rows.end) as u64);
                    if !seen.is_empty() {
                        body(table.cast_const(), lo, hi, seen.start as u64, seen.end as u64, own);
                    }
                }
            }
            for one in &self.outs {
                let from = tile(one.tile);
                match one.keeps {
                    Keeps::Rows => self.over_columns(one, from, rows.len(), groups, columns, scratch),
                    Keeps::Columns => self.over_rows(one, from, rows.len(), groups, columns, scratch),
                }
            }
        }
    }

    /// `sums[row] (+)= Σ_column tile[row, column] · with[column]`.
    unsafe fn over_columns(
        &self,
        one: &Out,
        from: *const f32,
        n_rows: usize,
        groups: &[Rows],
        columns: &Rows,
        scratch: *mut u8,
    ) {
        let (panel, n) = (self.micro.panel, one.with.inner.len());
        let (sums, packed) = one.places(scratch);
        for start in columns.clone().step_by(DEPTH) {
            let chain = start..(start + DEPTH).min(columns.end);
            for column in (0..n).step_by(panel) {
                let half = n - column <= panel / 2;
                for (group, seen) in groups.iter().enumerate() {
                    let along = meet(seen, &chain);
                    if along.is_empty() {
                        continue;
                    }
                    let row = group * PANEL_ROWS;
                    let height = (n_rows - row).min(PANEL_ROWS);
                    // SAFETY: rows of the tile, a panel of what is packed, and the place of the sums.
                    unsafe {
                        let b = packed.add(column * self.n_columns + along.start * panel);
                        let mut heads = [std::ptr::null::<f32>(); PANEL_ROWS];
                        for (i, head) in heads[..height].iter_mut().enumerate() {
                            *head = from.add((row + i) * self.pitch + along.start - columns.start);
                        }
                        let more = along.start > seen.start;
                        let to = Tile { to: sums.add(row * one.width + column), length: one.width, more };
                        let b = Panel { from: b, step: panel };
                        self.micro.rows(half, along.len(), &heads[..height], b, to);
                    }
                }
            }
        }
    }

    /// `sums[column] += Σ_row tile[row, column] · with[row]`, over the rows from the first to the last that see the column.
    unsafe fn over_rows(
        &self,
        one: &Out,
        from: *mut f32,
        n_rows: usize,
        groups: &[Rows],
        columns: &Rows,
        scratch: *mut u8,
    ) {
        let (panel, n) = (self.micro.panel, one.with.inner.len());
        let (sums, packed) = one.places(scratch);
        // What is not seen was not computed, and counts nothing.
        for (group, seen) in groups.iter().enumerate() {
            let seen = meet(seen, columns);
            for row in group * PANEL_ROWS..((group + 1) * PANEL_ROWS).min(n_rows) {
                // SAFETY: a row of the tile.
                unsafe {
                    let line = from.add(row * self.pitch);
                    std::ptr::write_bytes(line, 0, seen.start - columns.start);
                    std::ptr::write_bytes(line.add(seen.end - columns.start), 0, columns.end - seen.end);
                }
            }
        }
        for column in columns.clone().step_by(GRAIN) {
            let sees = |seen: &Rows| seen.contains(&column);
            let (Some(first), Some(last)) = (groups.iter().position(sees), groups.iter().rposition(sees)) else {
                continue;
            };
            let rows = first * PANEL_ROWS..((last + 1) * PANEL_ROWS).min(n_rows);
            let height = (columns.end - column).min(GRAIN);
            for at in (0..n).step_by(panel) {
                let half = n - at <= panel / 2;
                // SAFETY: columns of the tile, a panel of what is packed, and the place of the sums.
                unsafe {
                    let b = Panel { from: packed.add(at * n_rows + rows.start * panel), step: panel };
                    let to = Tile { to: sums.add(column * one.width + at), length: one.width, more: true };
                    let a = from.add(rows.start * self.pitch + column - columns.start);
                    self.micro.columns(height, half, rows.len(), Panel { from: a, step: self.pitch }, b, to);
                }
            }
        }
    }

    unsafe fn store_rows(&self, bufs: Buffers<'_>, batch: u64, rows: &Rows, scratch: *mut u8) {
        for one in self.outs.iter().filter(|one| one.keeps == Keeps::Rows) {
            // SAFETY: the place of the sums, and the caller's promises.
            unsafe { self.store(one, bufs, batch, rows, scratch.add(one.sums).cast()) };
        }
    }

    unsafe fn store_columns(&self, bufs: Buffers<'_>, batch: u64, scratch: *mut u8) {
        for one in self.outs.iter().filter(|one| one.keeps == Keeps::Columns) {
            // SAFETY: as above.
            unsafe { self.store(one, bufs, batch, &(0..self.n_columns), scratch.add(one.sums).cast()) };
        }
    }

    /// Stores the sums of rows, or columns, `kept`; the first is at `sums`.
    unsafe fn store(&self, one: &Out, bufs: Buffers<'_>, batch: u64, kept: &Rows, sums: *const f32) {
        let to = one.to.start(bufs, &self.batch, batch);
        let dtype = one.to.dtype;
        let plain = dtype == DType::F32 && crate::contract::adjacent(&one.to.inner);
        for (i, along) in one.to.along[kept.clone()].iter().enumerate() {
            // SAFETY: `verify` checked the positions of the result.
            unsafe {
                let from = sums.add(i * one.width);
                if plain {
                    let to = to.cast::<f32>().offset(*along as isize);
                    std::ptr::copy_nonoverlapping(from, to, one.to.inner.len());
                } else {
                    for (j, inner) in one.to.inner.iter().enumerate() {
                        store_float(to, dtype, along + inner, from.add(j).read());
                    }
                }
            }
        }
    }
}

impl In {
    /// Where k begins in a row.
    fn first(&self) -> isize {
        self.a.inner.first().map_or(0, |first| *first as isize)
    }

    fn new(kernel: &Kernel, plane: &Plane, one: &PlaneIn) -> In {
        let k = |of: fn(&mdl_compiler::kernel::ContractDim) -> i64| -> Vec<(u64, i64)> {
            one.k.iter().map(|dim| (dim.extent, of(dim))).collect()
        };
        let a = Side::new(kernel, &one.a, &plane.rows, &k(|dim| dim.a));
        In {
            in_place: a.dtype == DType::F32 && crate::contract::adjacent(&a.inner),
            a,
            b: Side::new(kernel, &one.b, &[plane.columns], &k(|dim| dim.b)),
            packed_a: 0,
            packed_b: 0,
        }
    }
}

impl Out {
    /// Where its sums are, and what is packed for them.
    fn places(&self, scratch: *mut u8) -> (*mut f32, *const f32) {
        (scratch.wrapping_add(self.sums).cast(), scratch.wrapping_add(self.packed).cast::<f32>().cast_const())
    }

    fn new(kernel: &Kernel, plane: &Plane, one: &PlaneOut, tiled: &Tiled, panel: usize) -> Out {
        let n =
            |of: fn(&PairDim) -> i64| -> Vec<(u64, i64)> { one.n.iter().map(|dim| (dim.extent, of(dim))).collect() };
        let (summed, kept) = match one.keeps {
            Keeps::Rows => (&[plane.columns][..], &plane.rows[..]),
            Keeps::Columns => (&plane.rows[..], &[plane.columns][..]),
        };
        let with = Side::new(kernel, &one.with, summed, &n(|dim| dim.x));
        Out {
            keeps: one.keeps,
            tile: tiled.tile_of(one.val),
            width: with.inner.len().next_multiple_of(panel),
            with,
            to: Side::new(kernel, &one.out, kept, &n(|dim| dim.out)),
            packed: 0,
            sums: 0,
        }
    }
}

type Rows = std::ops::Range<usize>;

/// Writes element `at` of an array of floats.
///
/// # Safety
/// As [`memory::write`].
#[inline]
unsafe fn store_float(base: *mut u8, dtype: DType, at: i64, value: f32) {
    let at = at as isize;
    // SAFETY: the caller says that the element is inside.
    unsafe {
        match dtype {
            DType::F32 => base.cast::<f32>().offset(at).write(value),
            DType::BF16 => base.cast::<bf16>().offset(at).write(crate::strip::narrow(value)),
            DType::F16 => base.cast::<f16>().offset(at).write(f16::from_f32(value)),
            _ => memory::write(base, dtype, at as i64, Scalar::Float(f64::from(value))),
        }
    }
}

/// What two runs share; where they share nothing, an empty run inside the second.
fn meet(a: &Rows, b: &Rows) -> Rows {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}

/// From the first to the last of several runs.
fn around(runs: &[Rows]) -> Rows {
    let start = runs.iter().map(|run| run.start).min().unwrap_or(0);
    start..runs.iter().map(|run| run.end).max().unwrap_or(0)
}
