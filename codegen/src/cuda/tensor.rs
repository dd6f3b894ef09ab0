//! Products of 16-bit floats on tensor cores, summed in `float`.
//!
//! Operands come into shared memory ahead of time, [`STAGES`] pieces of [`DEEP`] along k, 16 bytes a copy (`cp.async`) where 8
//! neighbours along k, or along the side, are neighbours in memory and aligned; else number by number. From there `ldmatrix` deals
//! them to a warp's lanes, and `mma.sync.m16n8k16` multiplies (PTX ISA, "Warp-level matrix instructions"). A piece keeps the order
//! that memory has, `[side][k]` or `[k][side]`; `ldmatrix` turns what lies the other way. Its lines are 16 bytes longer than their
//! numbers, so that the eight that `ldmatrix` reads at once are in different banks.

use mdl_compiler::kernel::{Kernel, Operand};
use mdl_graph::DType;

use super::contract::{Product, Tile};
use super::print::{Text, integer, sum};
use super::tile::Walk;

/// Along k, in a piece.
const DEEP: u64 = 32;
/// Pieces in shared memory: one is multiplied while the others come.
const STAGES: u64 = 3;
/// Numbers in 16 bytes, and what a line is longer than its numbers.
const RUN: u64 = 8;
/// Multiprocessors of a large card. A constant, so that no sum depends on the card.
const MANY: u64 = 128;

/// One operand of a product.
struct Side<'a> {
    operand: Operand,
    /// `a` or `b`; the place of a block and of a warp along it, `m0` and `y`.
    name: char,
    first: &'static str,
    along: &'a Walk,
    deep: &'a Walk,
    /// Numbers along it in a tile of a block, and of a warp.
    tile: u64,
    warp: u64,
    /// Lines run along k.
    is_deep: bool,
    /// 16 bytes at once.
    is_wide: bool,
}

/// A product on tensor cores.
pub(super) struct Unit<'a> {
    a: Side<'a>,
    b: Side<'a>,
    warps: u64,
    k: u64,
    dtype: DType,
}

impl<'a> Side<'a> {
    fn new(
        kernel: &Kernel,
        (operand, name, first): (Operand, char, &'static str),
        (along, deep, batch): (&'a Walk, &'a Walk, &Walk),
        (tile, warp): (u64, u64),
    ) -> Side<'a> {
        let aligned = |run: &Walk, other: &Walk| {
            let len = kernel.bufs[operand.buf.0 as usize].len;
            run.runs_of(RUN)
                && other.jumps_by(RUN)
                && batch.jumps_by(RUN)
                && (operand.base as u64).is_multiple_of(RUN)
                && len.is_multiple_of(RUN)
        };
        let (deep_wide, along_wide) = (aligned(deep, along), aligned(along, deep));
        let is_deep = deep_wide || (!along_wide && (deep.is_run() || !along.is_run()));
        Side { operand, name, first, along, deep, tile, warp, is_deep, is_wide: deep_wide || along_wide }
    }

    /// Numbers of a line in shared memory, and lines.
    fn line(&self) -> u64 {
        RUN + if self.is_deep { DEEP } else { self.tile }
    }

    /// Numbers of a piece in shared memory.
    fn piece(&self) -> u64 {
        self.line() * if self.is_deep { self.tile } else { DEEP }
    }

    /// Brings piece number `piece`, which begins at `k0`.
    fn bring(&self, text: &mut Text, threads: u64, k: u64) {
        let Side { name, first, tile, .. } = *self;
        let run = if self.is_wide { RUN } else { 1 };
        let per_line = if self.is_deep { DEEP } else { tile } / run;
        let times = if run == 1 { "".into() } else { format!(" * {run}") };
        text.line("#pragma unroll");
        text.open(format!("for (int s = threadIdx.x; s < {}; s += {threads})", tile * DEEP / run));
        text.line(match self.is_deep {
            true => format!("const int at = s / {per_line}, k = s % {per_line}{times};"),
            false => format!("const int k = s / {per_line}, at = s % {per_line}{times};"),
        });
        let mut terms = vec![(1, format!("start_{name}"))];
        terms.extend(self.along.offset(&format!("{first} + at")));
        terms.extend(self.deep.offset("k0 + k"));
        let from = format!("b{}[{}]", self.operand.buf.0, sum(&terms, 0));
        let mut inside = Vec::new();
        if !self.along.count().is_multiple_of(tile) {
            inside.push(format!("{first} + at < {}", integer(self.along.count() as i64)));
        }
        if !k.is_multiple_of(DEEP) {
            inside.push(format!("k0 + k < {}", integer(k as i64)));
        }
        let inside = if inside.is_empty() { "true".into() } else { inside.join(" && ") };
        let line = self.line();
        let place = if self.is_deep { format!("at * {line} + k") } else { format!("k * {line} + at") };
        text.line(match self.is_wide {
            true => format!("copy_ahead(to_{name} + {place}, &{from}, {inside});"),
            false => format!("to_{name}[{place}] = {inside} ? {from}.bits : 0;"),
        });
        text.close();
    }
}

impl<'a> Unit<'a> {
    /// `None` where operands are no 16-bit floats, or too small to fill a tile.
    pub(super) fn of(kernel: &Kernel, product: &'a Product<'_>) -> Option<Unit<'a>> {
        let contract = product.contract;
        let dtype = |operand: Operand| kernel.bufs[operand.buf.0 as usize].dtype;
        let (a, b) = (dtype(contract.a), dtype(contract.b));
        let (m, n, k) = (product.m(), product.n(), product.k());
        if a != b || !matches!(a, DType::BF16 | DType::F16) || m < 16 || n < 16 || k < 16 || product.batch() == 0 {
            return None;
        }
        // Large tiles read less, small ones keep more of the card busy.
        let large = product.batch() * m.div_ceil(128) * n.div_ceil(128) >= MANY;
        let (tile, (warp_m, warp_n)) = if large { (128, (64, 32)) } else { (64, (32, 32)) };
        Some(Unit {
            a: Side::new(
                kernel,
                (contract.a, 'a', "m0"),
                (&product.rows, &product.deep_a, &product.batch_a),
                (tile, warp_m),
            ),
            b: Side::new(
                kernel,
                (contract.b, 'b', "n0"),
                (&product.columns, &product.deep_b, &product.batch_b),
                (tile, warp_n),
            ),
            warps: tile / warp_m * (tile / warp_n),
            k,
            dtype: a,
        })
    }

    pub(super) fn tile(&self) -> Tile {
        Tile {
            high: self.a.tile,
            wide: self.b.tile,
            threads: self.warps * 32,
            each: (self.a.warp / 8, self.b.warp / 4),
            row: "y + lane / 4 + 8 * i".into(),
            column: "x + lane % 4 * 2 + j / 2 * 8 + j % 2".into(),
            sum: "sum[i / 2][j / 2][i % 2 * 2 + j % 2]".into(),
            down: 8,
        }
    }

    pub(super) fn shared_bytes(&self) -> u64 {
        STAGES * (self.a.piece() + self.b.piece()) * 2
    }

    pub(super) fn print(&self, text: &mut Text, position: &str) {
        let Unit { a, b, .. } = self;
        let (tm, tn) = (a.warp / 16, b.warp / 8);
        let across = b.tile / b.warp;
        let pieces = self.k.div_ceil(DEEP);
        text.line("const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;");
        text.line(format!("const int y = warp / {across} * {}, x = warp % {across} * {};", a.warp, b.warp));
        text.line(format!("unsigned short *const tiles_a = tiles, *const tiles_b = tiles + {};", STAGES * a.piece()));
        text.open("const auto bring = [&](int piece)");
        text.line(format!("const {position} k0 = piece * {DEEP};"));
        for side in [a, b] {
            let (name, size) = (side.name, side.piece());
            text.line(format!("unsigned short *const to_{name} = tiles_{name} + piece % {STAGES} * {size};"));
            side.bring(text, self.warps * 32, self.k);
        }
        text.close_with(";");
        text.open(format!("for (int piece = 0; piece < {}; piece++)", STAGES - 1));
        text.line(match pieces < STAGES - 1 {
            true => format!("if (piece < {pieces}) bring(piece);"),
            false => "bring(piece);".into(),
        });
        text.line("end_of_copies();");
        text.close();
        text.line(format!("float sum[{tm}][{tn}][4] = {{}};"));
        text.open(format!("for (int piece = 0; piece < {pieces}; piece++)"));
        text.line(format!("wait_for_copies<{}>();", STAGES - 2));
        text.line("__syncthreads();");
        text.line(format!("if (piece + {} < {pieces}) bring(piece + {});", STAGES - 1, STAGES - 1));
        text.line("end_of_copies();");
        for side in [a, b] {
            let (name, size) = (side.name, side.piece());
            text.line(format!("const unsigned short *const from_{name} = tiles_{name} + piece % {STAGES} * {size};"));
        }
        text.line("#pragma unroll");
        text.open(format!("for (int k = 0; k < {DEEP}; k += 16)"));
        text.line(format!("unsigned a[{tm}][4], b[{}][4];", tn / 2));
        // The four matrices of 8 by 8: of `a`, down, then along k; of `b`, along k, then to the right.
        let (line_a, line_b) = (a.line(), b.line());
        let from_a = match a.is_deep {
            true => format!("from_a + (y + i * 16 + lane % 16) * {line_a} + k + lane / 16 * 8"),
            false => format!("from_a + (k + lane % 8 + lane / 16 * 8) * {line_a} + y + i * 16 + lane / 8 % 2 * 8"),
        };
        let from_b = match b.is_deep {
            true => format!("from_b + (x + j * 16 + lane % 8 + lane / 16 * 8) * {line_b} + k + lane / 8 % 2 * 8"),
            false => format!("from_b + (k + lane % 16) * {line_b} + x + j * 16 + lane / 16 * 8"),
        };
        let load = |side: &Side<'_>| if side.is_deep { "load_matrices" } else { "load_turned" };
        text.line(format!("for (int i = 0; i < {tm}; i++) {}(a[i], {from_a});", load(a)));
        text.line(format!("for (int j = 0; j < {}; j++) {}(b[j], {from_b});", tn / 2, load(b)));
        text.line(format!("for (int i = 0; i < {tm}; i++)"));
        let multiply = if self.dtype == DType::BF16 { "multiply_bf16" } else { "multiply_f16" };
        text.line(format!(
            "    for (int j = 0; j < {tn}; j++) {multiply}(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);"
        ));
        text.close();
        text.close();
    }
}
