//! Contractions: tiles of the result, one for each block, and the body on each element while it is in a register.
//!
//! What makes a tile is either arithmetic in `float` ([`super::tile`]) or tensor cores ([`super::tensor`]).

use mdl_compiler::kernel::{Contract, ContractDim, Stmt};

use super::Unit;
use super::body::Body;
use super::print::{Text, integer, sum};
use super::tensor;
use super::tile::{DEEP, Factors, SIDE, Staged, THREADS, Walk, multiply, sum_type};
use crate::jit::CompileError;

/// A product of matrices whose rows, columns and sums are walked in flat positions.
pub(super) struct Product<'a> {
    pub(super) contract: &'a Contract,
    pub(super) factors: Factors,
}

/// What a block has of the result, and what a thread has of that.
pub(super) struct Tile {
    pub(super) high: u64,
    pub(super) wide: u64,
    pub(super) threads: u64,
    /// Rows and columns of a thread.
    pub(super) each: (u64, u64),
    /// Where row `i` and column `j` of a thread are in the tile, and the sum there.
    pub(super) row: String,
    pub(super) column: String,
    pub(super) sum: String,
    /// Neighbouring blocks go down so many tiles before they go right: what they read of both sides stays in the second cache.
    pub(super) down: u64,
}

impl<'a> Product<'a> {
    fn new(contract: &'a Contract) -> Product<'a> {
        let side =
            |dims: &[ContractDim], of: fn(&ContractDim) -> i64| Walk::new(dims.iter().map(|dim| (dim.extent, of(dim))));
        let factors = Factors {
            rows: side(&contract.m, |dim| dim.a),
            columns: side(&contract.n, |dim| dim.b),
            deep_a: side(&contract.k, |dim| dim.a),
            deep_b: side(&contract.k, |dim| dim.b),
            batch_a: side(&contract.batch, |dim| dim.a),
            batch_b: side(&contract.batch, |dim| dim.b),
        };
        Product { contract, factors }
    }

    pub(super) fn m(&self) -> u64 {
        self.factors.rows.count()
    }

    pub(super) fn n(&self) -> u64 {
        self.factors.columns.count()
    }

    pub(super) fn k(&self) -> u64 {
        self.factors.deep_a.count()
    }

    pub(super) fn batch(&self) -> u64 {
        self.factors.batch_a.count()
    }
}

/// Rows, or columns, of the result that a thread has: few where there are few, many where blocks are enough all the same.
fn each(extent: u64, other: u64) -> u64 {
    match extent {
        ..=16 => 1,
        512.. if other >= 512 => 8,
        _ => 4,
    }
}

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, contract: &Contract) -> Result<(), CompileError> {
    let product = Product::new(contract);
    let dims = contract.body_dims();
    let kernel = unit.kernel;
    let body = Body::new(kernel, &dims, &contract.vals, &contract.body);
    let position = body.position_type();
    let (ty, zero) = sum_type(contract.vals[0].dtype);
    let on_tensor_cores = tensor::Unit::of(kernel, &product);
    let tile = match &on_tensor_cores {
        Some(cores) => cores.tile(),
        None => {
            let (tm, tn) = (each(product.m(), product.n()), each(product.n(), product.m()));
            Tile {
                high: tm * SIDE,
                wide: tn * SIDE,
                threads: THREADS,
                each: (tm, tn),
                row: "y + i".into(),
                column: format!("x + {SIDE} * j"),
                sum: "sum[i][j]".into(),
                down: 1,
            }
        }
    };
    let (high, wide) = (tile.high, tile.wide);
    let (m, n, k, batch) = (product.m(), product.n(), product.k(), product.batch());
    let blocks = batch * m.div_ceil(high) * n.div_ceil(wide);
    let how = if on_tensor_cores.is_some() { " on tensor cores" } else { "" };
    unit.describe(text, &format!("{m} x {n} x {k}, {batch} times, in tiles of {high} x {wide}{how}."));
    let bufs = unit.all_bufs();
    unit.open(text, "", (blocks, tile.threads), &bufs, &[]);
    match &on_tensor_cores {
        Some(cores) => {
            unit.shared(cores.shared_bytes());
            text.line("extern __shared__ __align__(128) unsigned short tiles[];");
        }
        None => {
            text.line(format!("__shared__ {ty} tile_a[{DEEP}][{}], tile_b[{DEEP}][{}];", high + 1, wide + 1));
            text.line(format!("const int y = threadIdx.x / {SIDE} * {}, x = threadIdx.x % {SIDE};", tile.each.0));
        }
    }
    place_of_block(text, &product, &tile, position);
    match &on_tensor_cores {
        Some(cores) => cores.print(text, position),
        None => in_floats(text, unit, &product, &tile, (ty, zero, position)),
    }
    finish(text, &body, &product, &tile, ty);
    Ok(())
}

/// Where a block's tile begins, and where its matrices do.
fn place_of_block(text: &mut Text, product: &Product<'_>, tile: &Tile, position: &str) {
    let (tiles_m, tiles_n) = (product.m().div_ceil(tile.high), product.n().div_ceil(tile.wide));
    let tiles = tiles_m * tiles_n;
    let down = tile.down.min(tiles_m);
    text.line(format!(
        "const int tile = blockIdx.x{};",
        if product.batch() > 1 { format!(" % {tiles}") } else { "".into() }
    ));
    if down > 1 && tiles_n > 1 {
        let strip = down * tiles_n;
        text.line(format!("const int top = tile / {strip} * {down};"));
        match tiles_m.is_multiple_of(down) {
            true => text.line(format!("const int down = {down};")),
            false => text.line(format!("const int down = {tiles_m} - top < {down} ? {tiles_m} - top : {down};")),
        }
        text.line(format!("const {position} m0 = (top + tile % {strip} % down) * {};", tile.high));
        text.line(format!("const {position} n0 = tile % {strip} / down * {};", tile.wide));
    } else {
        text.line(format!("const {position} m0 = tile / {tiles_n} * {};", tile.high));
        text.line(format!("const {position} n0 = tile % {tiles_n} * {};", tile.wide));
    }
    if product.batch() > 1 {
        text.line(format!("const {position} batch = blockIdx.x / {tiles};"));
    }
    let contract = product.contract;
    for (name, operand, walk) in
        [("start_a", contract.a, &product.factors.batch_a), ("start_b", contract.b, &product.factors.batch_b)]
    {
        text.line(format!("const {position} {name} = {};", sum(&walk.offset("batch"), operand.base)));
    }
}

/// `sum[i][j]` by multiplying and adding numbers.
fn in_floats(
    text: &mut Text,
    unit: &Unit<'_>,
    product: &Product<'_>,
    tile: &Tile,
    (ty, zero, position): (&str, &str, &str),
) {
    let (tm, tn) = tile.each;
    let k = product.k();
    text.line(format!("{ty} sum[{tm}][{tn}] = {{}};"));
    text.open(format!("for ({position} k0 = 0; k0 < {}; k0 += {DEEP})", integer(k as i64)));
    let contract = product.contract;
    let sides = [
        ("tile_a", contract.a, "start_a", &product.factors.rows, &product.factors.deep_a, tile.high, "m0"),
        ("tile_b", contract.b, "start_b", &product.factors.columns, &product.factors.deep_b, tile.wide, "n0"),
    ];
    for (name, operand, start, along, deep, width, first) in sides {
        let buf = operand.buf.0 as usize;
        let staged =
            Staged { name, buf, start, along, deep, width, first, first_deep: "k0", end_deep: k, step_deep: DEEP };
        staged.print(text, unit.kernel, zero);
    }
    text.line("__syncthreads();");
    multiply(text, ty, tile.each, "sum", "tile_a[k][y + i]", &format!("tile_b[k][x + {SIDE} * j]"));
    text.line("__syncthreads();");
    text.close();
}

/// The body, on each element of the tile.
fn finish(text: &mut Text, body: &Body<'_>, product: &Product<'_>, tile: &Tile, ty: &str) {
    let contract = product.contract;
    let (n_batch, n_m) = (contract.batch.len(), contract.m.len());
    body.unflatten(text, "batch", 0..n_batch);
    let rows = ("i", tile.each.0, "m", &tile.row, product.m(), tile.high, n_batch..n_batch + n_m);
    let columns = ("j", tile.each.1, "n", &tile.column, product.n(), tile.wide, n_batch + n_m..body.dims.len());
    for (index, count, name, place, end, size, dims) in [rows, columns] {
        text.line("#pragma unroll");
        text.open(format!("for (int {index} = 0; {index} < {count}; {index}++)"));
        text.line(format!("const {} {name} = {name}0 + {place};", body.position_type()));
        if !end.is_multiple_of(size) {
            text.line(format!("if ({name} >= {}) continue;", integer(end as i64)));
        }
        body.unflatten(text, name, dims);
    }
    text.line(format!("const {ty} v0 = {};", tile.sum));
    let needed = body.needed(&[]);
    for (stmt, _) in contract.body.iter().zip(needed).filter(|(_, needed)| *needed) {
        match stmt {
            Stmt::Store { buf, access, val } => body.store_once(text, *buf, access, *val),
            _ => body.define(text, stmt),
        }
    }
    for _ in 0..3 {
        text.close();
    }
}
