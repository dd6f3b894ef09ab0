//! How the elements of a tile of a plane are dealt to the threads of a block, and how products of tiles are made and summed.
//!
//! In floats, a thread has 4 by 4 elements and what it needs of others' goes through shared memory. On tensor cores a warp has 16
//! of what a launch keeps (rows, or columns) by the 64 of what it sums, dealt to lanes as `mma.sync` deals a sum; which is how it
//! takes a left factor too, so that a tile of the plane goes into the next product from the registers that it was made in.

use mdl_compiler::kernel::{Keeps, Kernel, PlaneOut};

use super::super::print::Text;
use super::super::tensor::Side;
use super::super::tile::{DEEP, SIDE, Staged, multiply};
use super::TILE;

/// Rows and columns of a tile that a thread has, in floats.
const EACH: u64 = TILE / SIDE;

/// Elements of a tile: where those of a thread are, and what they are called.
#[derive(Clone, Debug)]
pub(super) struct Deal {
    pub(super) threads: u64,
    /// Threads that share the registers of a multiprocessor, at the least.
    pub(super) at_once: u64,
    /// Rows and columns of a thread; their places in the tile.
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) row: &'static str,
    pub(super) column: String,
    /// Neighbouring lanes that have the same rows, and what is so for the first of them.
    pub(super) lanes: u64,
    pub(super) is_first: &'static str,
    /// Of an array of elements: its dimensions, and the element of row i and column j.
    pub(super) array: String,
    pub(super) element: &'static str,
    /// Tensor cores: what multiplies, and what packs two numbers.
    pub(super) cores: Option<(&'static str, &'static str)>,
}

impl Deal {
    pub(super) fn in_floats() -> Deal {
        Deal::of_floats(TILE)
    }

    /// The same of `wide` columns.
    fn of_floats(wide: u64) -> Deal {
        Deal {
            threads: SIDE * SIDE,
            at_once: 2 * SIDE * SIDE,
            rows: EACH,
            columns: wide / SIDE,
            row: "y + i",
            column: format!("x + {SIDE} * j"),
            lanes: SIDE,
            is_first: "x == 0",
            array: format!("[{EACH}][{}]", wide / SIDE),
            element: "[i][j]",
            cores: None,
        }
    }

    /// For a launch that keeps rows, or columns.
    pub(super) fn on_tensor_cores(keeps: Keeps, multiply: &'static str, pack: &'static str) -> Deal {
        let by_rows = Deal::of_cores(TILE, (multiply, pack));
        match keeps {
            Keeps::Rows => by_rows,
            Keeps::Columns => Deal {
                rows: by_rows.columns,
                columns: by_rows.rows,
                row: "lane % 4 * 2 + i / 2 * 8 + i % 2",
                column: "y + lane / 4 + 8 * j".into(),
                element: "[i / 2][j * 2 + i % 2]",
                ..by_rows
            },
        }
    }

    /// A warp has 16 rows of `wide` columns.
    fn of_cores(wide: u64, cores: (&'static str, &'static str)) -> Deal {
        Deal {
            threads: TILE / 16 * 32,
            at_once: 256,
            rows: 2,
            columns: wide / 4,
            row: "y + lane / 4 + 8 * i",
            column: "lane % 4 * 2 + j / 2 * 8 + j % 2".into(),
            lanes: 4,
            is_first: "lane % 4 == 0",
            array: format!("[{}][4]", wide / 8),
            element: "[j / 2][i * 2 + j % 2]",
            cores: Some(cores),
        }
    }

    /// Declares where a thread is.
    pub(super) fn place(&self, text: &mut Text) {
        text.line(match self.cores {
            Some(_) => "const int lane = threadIdx.x % 32, y = threadIdx.x / 32 * 16;".to_string(),
            None => format!("const int y = threadIdx.x / {SIDE} * {EACH}, x = threadIdx.x % {SIDE};"),
        });
    }

    /// Of a sum that is kept by `wide` more: what the launch keeps are its rows.
    pub(super) fn sums(&self, wide: u64) -> Deal {
        match self.cores {
            Some(cores) => Deal::of_cores(wide, cores),
            None => Deal::of_floats(wide),
        }
    }
}

/// `into[i][j] = Σ_k left · right` for a tile, in floats.
pub(super) fn product_in_floats(
    text: &mut Text,
    kernel: &Kernel,
    (ty, zero): (&str, &str),
    [left, right]: [&Staged<'_>; 2],
    into: &str,
) {
    let k = left.end_deep;
    text.open(format!("for (int k0 = 0; k0 < {k}; k0 += {DEEP})"));
    left.print(text, kernel, zero);
    right.print(text, kernel, zero);
    text.line("__syncthreads();");
    multiply(text, ty, (EACH, EACH), into, "tile_a[k][y + i]", &format!("tile_b[k][x + {SIDE} * j]"));
    text.line("__syncthreads();");
    text.close();
}

/// The same on tensor cores: `left` along what the launch keeps, in pieces of `step` along k.
pub(super) fn product_on_cores(text: &mut Text, deal: &Deal, [left, right]: [&Side<'_>; 2], step: u64, into: &str) {
    let Some((multiply, _)) = deal.cores else { return };
    text.open(format!("for (int k0 = 0; k0 < {}; k0 += {step})", left.depth()));
    left.bring(text, deal.threads, "tile_a");
    right.bring(text, deal.threads, "tile_b");
    arrive(text);
    text.line("#pragma unroll");
    text.open(format!("for (int k = 0; k < {step}; k += 16)"));
    text.line("unsigned a[4];");
    text.line(left.as_left("a", "tile_a", "y"));
    times(text, right, TILE, multiply, into);
    text.close();
    text.line("__syncthreads();");
    text.close();
}

/// Adds the product of a tile of the plane, in registers, with `right`, which has `wide` columns.
pub(super) fn sum_on_cores(text: &mut Text, deal: &Deal, plane: &str, right: &Side<'_>, wide: u64, into: &str) {
    let Some((multiply, pack)) = deal.cores else { return };
    right.bring(text, deal.threads, "tile_b");
    arrive(text);
    text.line("#pragma unroll");
    text.open(format!("for (int k = 0; k < {TILE}; k += 16)"));
    let pair = |tile: &str, at: u64| format!("{pack}({plane}[{tile}][{at}], {plane}[{tile}][{}])", at + 1);
    let (near, far) = ("k / 8", "k / 8 + 1");
    let pairs = [pair(near, 0), pair(near, 2), pair(far, 0), pair(far, 2)];
    text.line(format!("const unsigned a[4] = {{{}}};", pairs.join(", ")));
    times(text, right, wide, multiply, into);
    text.close();
    text.line("__syncthreads();");
}

/// Waits for what was brought.
fn arrive(text: &mut Text) {
    text.line("end_of_copies();");
    text.line("wait_for_copies<0>();");
    text.line("__syncthreads();");
}

/// The left factor of a warp, `a`, times all of the right one.
fn times(text: &mut Text, right: &Side<'_>, wide: u64, multiply: &str, into: &str) {
    text.line("#pragma unroll");
    text.open(format!("for (int j = 0; j < {}; j++)", wide / 16));
    text.line("unsigned b[4];");
    text.line(right.as_right("b", "tile_b", "j * 16"));
    text.line(format!("{multiply}({into}[2 * j], a, b[0], b[1]);"));
    text.line(format!("{multiply}({into}[2 * j + 1], a, b[2], b[3]);"));
    text.close();
}

/// In floats a tile of the plane goes through shared memory, since a sum needs what other threads have.
pub(super) fn sum_in_floats(
    text: &mut Text,
    kernel: &Kernel,
    (ty, zero): (&str, &str),
    keeps: Keeps,
    plane: &str,
    right: &Staged<'_>,
    into: &str,
) {
    text.line(format!("for (int i = 0; i < {EACH}; i++)"));
    text.line(format!("    for (int j = 0; j < {EACH}; j++) plane[y + i][x + {SIDE} * j] = {plane}[i][j];"));
    text.open(format!("for (int s0 = 0; s0 < {TILE}; s0 += {DEEP})"));
    right.print(text, kernel, zero);
    text.line("__syncthreads();");
    let left = match keeps {
        Keeps::Rows => "plane[y + i][s0 + k]",
        Keeps::Columns => "plane[s0 + k][y + i]",
    };
    multiply(text, ty, (EACH, right.width / SIDE), into, left, &format!("tile_b[k][x + {SIDE} * j]"));
    text.line("__syncthreads();");
    text.close();
}

/// Columns of a result.
pub(super) fn width(out: &PlaneOut) -> u64 {
    out.n.iter().map(|dim| dim.extent).product()
}
