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

/// An operand as pieces of it come into shared memory.
pub(super) struct Side<'a> {
    buf: usize,
    /// Its first number for a block; where the tile begins along it, and the piece along k.
    start: String,
    first: String,
    first_deep: String,
    along: &'a Walk,
    deep: &'a Walk,
    /// Numbers along it, and along k, in a piece.
    tile: u64,
    step: u64,
    /// Lines run along k.
    is_deep: bool,
    /// 16 bytes at once.
    is_wide: bool,
}

impl<'a> Side<'a> {
    /// The numbers from `operand` on, in steps of `batch`, `along` and `deep`; pieces of `tile` by `step`.
    pub(super) fn new(
        kernel: &Kernel,
        operand: Operand,
        (along, deep, batch): (&'a Walk, &'a Walk, &Walk),
        (tile, step): (u64, u64),
        [start, first, first_deep]: [&str; 3],
    ) -> Side<'a> {
        let buf = operand.buf.0 as usize;
        let aligned = |run: &Walk, other: &Walk| {
            run.runs_of(RUN)
                && other.jumps_by(RUN)
                && batch.jumps_by(RUN)
                && operand.base.unsigned_abs().is_multiple_of(RUN)
                && kernel.bufs[buf].len.is_multiple_of(RUN)
        };
        let (deep_wide, along_wide) = (aligned(deep, along), aligned(along, deep));
        let is_deep = deep_wide || (!along_wide && (deep.is_run() || !along.is_run()));
        let [start, first, first_deep] = [start, first, first_deep].map(str::to_string);
        Side { buf, start, first, first_deep, along, deep, tile, step, is_deep, is_wide: deep_wide || along_wide }
    }

    /// Numbers of a line in shared memory, and lines.
    fn line(&self) -> u64 {
        RUN + if self.is_deep { self.step } else { self.tile }
    }

    /// Numbers along k.
    pub(super) fn depth(&self) -> u64 {
        self.deep.count()
    }

    /// Numbers of a piece in shared memory.
    pub(super) fn piece(&self) -> u64 {
        self.line() * if self.is_deep { self.tile } else { self.step }
    }

    /// Brings a piece to `to`.
    pub(super) fn bring(&self, text: &mut Text, threads: u64, to: &str) {
        let Side { tile, step, first, first_deep, .. } = self;
        let run = if self.is_wide { RUN } else { 1 };
        let per_line = if self.is_deep { *step } else { *tile } / run;
        let times = if run == 1 { "".into() } else { format!(" * {run}") };
        text.line("#pragma unroll");
        text.open(format!("for (int s = threadIdx.x; s < {}; s += {threads})", tile * step / run));
        text.line(match self.is_deep {
            true => format!("const int at = s / {per_line}, k = s % {per_line}{times};"),
            false => format!("const int k = s / {per_line}, at = s % {per_line}{times};"),
        });
        let mut terms = vec![(1, self.start.clone())];
        terms.extend(self.along.offset(&format!("{first} + at")));
        terms.extend(self.deep.offset(&format!("{first_deep} + k")));
        let from = format!("b{}[{}]", self.buf, sum(&terms, 0));
        let mut inside = Vec::new();
        for (walk, size, place) in
            [(self.along, tile, format!("{first} + at")), (self.deep, step, format!("{first_deep} + k"))]
        {
            if !walk.count().is_multiple_of(*size) {
                inside.push(format!("{place} < {}", integer(walk.count() as i64)));
            }
        }
        let inside = if inside.is_empty() { "true".into() } else { inside.join(" && ") };
        let line = self.line();
        let place = if self.is_deep { format!("at * {line} + k") } else { format!("k * {line} + at") };
        text.line(match self.is_wide {
            true => format!("copy_ahead({to} + {place}, &{from}, {inside});"),
            false => format!("{to}[{place}] = {inside} ? {from}.bits : 0;"),
        });
        text.close();
    }

    /// Deals 16 by 16 numbers, from `at` along the left factor and `k`, to a warp: four matrices of 8 by 8, down, then along k.
    pub(super) fn as_left(&self, into: &str, from: &str, at: &str) -> String {
        let line = self.line();
        match self.is_deep {
            true => format!("load_matrices({into}, {from} + ({at} + lane % 16) * {line} + k + lane / 16 * 8);"),
            false => {
                format!(
                    "load_turned({into}, {from} + (k + lane % 8 + lane / 16 * 8) * {line} + {at} + lane / 8 % 2 * 8);"
                )
            }
        }
    }

    /// The same of the right factor: along k, then to the right.
    pub(super) fn as_right(&self, into: &str, from: &str, at: &str) -> String {
        let line = self.line();
        match self.is_deep {
            true => {
                format!(
                    "load_matrices({into}, {from} + ({at} + lane % 8 + lane / 16 * 8) * {line} + k + lane / 8 % 2 * 8);"
                )
            }
            false => format!("load_turned({into}, {from} + (k + lane % 16) * {line} + {at} + lane / 16 * 8);"),
        }
    }
}

/// Whether tensor cores multiply numbers of this dtype, and by which function.
pub(super) fn multiplier(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::BF16 => Some("multiply_bf16"),
        DType::F16 => Some("multiply_f16"),
        _ => None,
    }
}

/// A contraction on tensor cores.
pub(super) struct Unit<'a> {
    a: Side<'a>,
    b: Side<'a>,
    /// Rows and columns of a warp.
    warp: (u64, u64),
    multiply: &'static str,
}

impl<'a> Unit<'a> {
    /// `None` where operands are no 16-bit floats, or too small to fill a tile.
    pub(super) fn of(kernel: &Kernel, product: &'a Product<'_>) -> Option<Unit<'a>> {
        let contract = product.contract;
        let dtype = |operand: Operand| kernel.bufs[operand.buf.0 as usize].dtype;
        let multiply = multiplier(dtype(contract.a)).filter(|_| dtype(contract.a) == dtype(contract.b))?;
        let (m, n, k) = (product.m(), product.n(), product.k());
        if m < 16 || n < 16 || k < 16 || product.batch() == 0 {
            return None;
        }
        // Large tiles read less, small ones keep more of the card busy.
        let large = product.batch() * m.div_ceil(128) * n.div_ceil(128) >= MANY;
        let (tile, warp) = if large { (128, (64, 32)) } else { (64, (32, 32)) };
        let side = |operand, walks, names| Side::new(kernel, operand, walks, (tile, DEEP), names);
        Some(Unit {
            a: side(contract.a, product.factors.a(), ["start_a", "m0", "k0"]),
            b: side(contract.b, product.factors.b(), ["start_b", "n0", "k0"]),
            warp,
            multiply,
        })
    }

    fn threads(&self) -> u64 {
        self.a.tile / self.warp.0 * (self.b.tile / self.warp.1) * 32
    }

    pub(super) fn tile(&self) -> Tile {
        Tile {
            high: self.a.tile,
            wide: self.b.tile,
            threads: self.threads(),
            each: (self.warp.0 / 8, self.warp.1 / 4),
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
        let Unit { a, b, warp, multiply } = self;
        let (tm, tn) = (warp.0 / 16, warp.1 / 8);
        let across = b.tile / warp.1;
        let pieces = a.depth().div_ceil(DEEP);
        let (size_a, size_b) = (a.piece(), b.piece());
        text.line("const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;");
        text.line(format!("const int y = warp / {across} * {}, x = warp % {across} * {};", warp.0, warp.1));
        text.line(format!("unsigned short *const tiles_a = tiles, *const tiles_b = tiles + {};", STAGES * size_a));
        text.open("const auto bring = [&](int piece)");
        text.line(format!("const {position} k0 = piece * {DEEP};"));
        for (side, name, size) in [(a, "a", size_a), (b, "b", size_b)] {
            text.line(format!("unsigned short *const to_{name} = tiles_{name} + piece % {STAGES} * {size};"));
            side.bring(text, self.threads(), &format!("to_{name}"));
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
        for (name, size) in [("a", size_a), ("b", size_b)] {
            text.line(format!("const unsigned short *const from_{name} = tiles_{name} + piece % {STAGES} * {size};"));
        }
        text.line("#pragma unroll");
        text.open(format!("for (int k = 0; k < {DEEP}; k += 16)"));
        text.line(format!("unsigned a[{tm}][4], b[{}][4];", tn / 2));
        text.line(format!("for (int i = 0; i < {tm}; i++) {}", a.as_left("a[i]", "from_a", "y + i * 16")));
        text.line(format!("for (int j = 0; j < {}; j++) {}", tn / 2, b.as_right("b[j]", "from_b", "x + j * 16")));
        text.line(format!("for (int i = 0; i < {tm}; i++)"));
        text.line(format!(
            "    for (int j = 0; j < {tn}; j++) {multiply}(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);"
        ));
        text.close();
        text.close();
    }
}
