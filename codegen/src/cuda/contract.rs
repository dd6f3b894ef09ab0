//! Contractions: tiles of the result, operands staged in shared memory, the body on each element while it is in a register.

use mdl_compiler::kernel::{Contract, ContractDim, Stmt};

use super::Unit;
use super::body::Body;
use super::print::{Text, integer, sum};
use super::tile::{DEEP, SIDE, Staged, THREADS, Walk, multiply, sum_type};
use crate::jit::CompileError;

/// Rows, or columns, of the result that a thread has: few where there are few, many where blocks are enough all the same.
fn each(extent: u64, other: u64) -> u64 {
    match extent {
        ..=16 => 1,
        512.. if other >= 512 => 8,
        _ => 4,
    }
}

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, contract: &Contract) -> Result<(), CompileError> {
    let side =
        |dims: &[ContractDim], of: fn(&ContractDim) -> i64| Walk::new(dims.iter().map(|dim| (dim.extent, of(dim))));
    let (batch_a, batch_b) = (side(&contract.batch, |dim| dim.a), side(&contract.batch, |dim| dim.b));
    let (rows, columns) = (side(&contract.m, |dim| dim.a), side(&contract.n, |dim| dim.b));
    let (deep_a, deep_b) = (side(&contract.k, |dim| dim.a), side(&contract.k, |dim| dim.b));
    let (batch, m, n, k) = (batch_a.count(), rows.count(), columns.count(), deep_a.count());
    let (tm, tn) = (each(m, n), each(n, m));
    let (high, wide) = (tm * SIDE, tn * SIDE);
    let (tiles_m, tiles_n) = (m.div_ceil(high), n.div_ceil(wide));

    let dims = contract.body_dims();
    let kernel = unit.kernel;
    let body = Body::new(kernel, &dims, &contract.vals, &contract.body);
    let (ty, zero) = sum_type(contract.vals[0].dtype);
    unit.describe(text, &format!("{m} x {n} x {k}, {batch} times, in tiles of {high} x {wide}."));
    let bufs = unit.all_bufs();
    unit.open(text, "", (batch * tiles_m * tiles_n, THREADS), &bufs, &[]);
    text.line(format!("__shared__ {ty} tile_a[{DEEP}][{}], tile_b[{DEEP}][{}];", high + 1, wide + 1));
    text.line(format!("const int y = threadIdx.x / {SIDE} * {tm}, x = threadIdx.x % {SIDE};"));
    let position = body.position_type();
    let mut rest = "blockIdx.x".to_string();
    for (name, tiles, size) in [("n0", tiles_n, wide), ("m0", tiles_m, high)] {
        text.line(match tiles {
            ..=1 => format!("const {position} {name} = 0;"),
            _ => format!("const {position} {name} = {rest} % {tiles} * {size};"),
        });
        if tiles > 1 {
            rest = format!("{rest} / {tiles}");
        }
    }
    if batch > 1 {
        text.line(format!("const {position} batch = {rest};"));
    }
    for (name, operand, walk) in [("start_a", contract.a, &batch_a), ("start_b", contract.b, &batch_b)] {
        text.line(format!("const {position} {name} = {};", sum(&walk.offset("batch"), operand.base)));
    }
    text.line(format!("{ty} sum[{tm}][{tn}] = {{}};"));
    text.open(format!("for ({position} k0 = 0; k0 < {}; k0 += {DEEP})", integer(k as i64)));
    let staged = |name, buf, start, along, deep, width, first| Staged {
        name,
        buf,
        start,
        along,
        deep,
        width,
        first,
        first_deep: "k0",
        end_deep: k,
        step_deep: DEEP,
    };
    staged("tile_a", contract.a.buf.0 as usize, "start_a", &rows, &deep_a, high, "m0").print(text, kernel, zero);
    staged("tile_b", contract.b.buf.0 as usize, "start_b", &columns, &deep_b, wide, "n0").print(text, kernel, zero);
    text.line("__syncthreads();");
    multiply(text, ty, (tm, tn), "sum", "tile_a[k][y + i]", &format!("tile_b[k][x + {SIDE} * j]"));
    text.line("__syncthreads();");
    text.close();

    // The body, on each element.
    let (n_batch, n_m) = (contract.batch.len(), contract.m.len());
    body.unflatten(text, "batch", 0..n_batch);
    for (index, extent, line) in
        [("i", tm, "m = m0 + y + i".to_string()), ("j", tn, format!("n = n0 + x + {SIDE} * j"))]
    {
        text.line("#pragma unroll");
        text.open(format!("for (int {index} = 0; {index} < {extent}; {index}++)"));
        text.line(format!("const {position} {line};"));
        let (name, end, tile) = if index == "i" { ("m", m, high) } else { ("n", n, wide) };
        if !end.is_multiple_of(tile) {
            text.line(format!("if ({name} >= {}) continue;", integer(end as i64)));
        }
        let which = if index == "i" { n_batch..n_batch + n_m } else { n_batch + n_m..dims.len() };
        body.unflatten(text, name, which);
    }
    text.line(format!("const {ty} v0 = sum[i][j];"));
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
    Ok(())
}
