//! How a product is cut into blocks that stay in cache.

use mdl_graph::DType;

use super::unit::Unit;

/// Panels of A in one task: the grain at which rows are dealt to threads.
const TASK_PANELS: usize = 4;
/// The same where a panel is a pair of tiles.
const TASK_TILES: usize = 2;
/// Where columns of B stay packed for all rows, in at most so many bytes for each thread, few rows are taken at once, whose A, for
/// all of k, is packed once for all those columns.
const KEPT_BYTES: usize = 8 << 20;
const KEPT_TASKS: usize = 3;
const KEPT_COLUMNS: usize = 384;
const KEPT_A_BYTES: usize = 768 << 10;
/// Elsewhere, in long or small products, so many rows and columns at once: their product, 360 KiB, a block of A and of B, 672 KiB,
/// and what is fetched of the next, stay in a 2 MiB level-2 cache.
const BLOCK_TASKS: usize = 10;
const COLUMN_BLOCK: usize = 192;

/// A function of shapes and of the unit alone.
pub(super) struct Blocks {
    /// Rows of one task.
    pub(super) task: usize,
    /// Rows at once, whole panels.
    pub(super) rows: usize,
    /// Columns at once, whole panels: blocks are as equal as panels allow, so that threads get equal shares.
    pub(super) columns: usize,
    /// Columns whose B stays packed for all rows, in whole blocks; where it does not, one block.
    pub(super) group: usize,
    pub(super) keeps_b: bool,
    /// The longest block of k; blocks are as equal as can be.
    pub(super) depth: usize,
    /// What a row or a column takes when it is packed, in numbers of four bytes: a block of k, and all of them.
    pub(super) line: usize,
    pub(super) whole_line: usize,
}

impl Blocks {
    pub(super) fn of(m: usize, n: usize, k: usize, unit: &Unit, dtype: DType) -> Blocks {
        let equal = |length: usize, most: usize| length.div_ceil(length.div_ceil(most).max(1)).max(1);
        let depth = equal(k, unit.depth()).next_multiple_of(unit.depth_step());
        let line = unit.numbers(depth);
        let whole_line = (k / depth * line + unit.numbers(k % depth)).max(1);
        let task = unit.rows() * if unit.rows() < 16 { TASK_PANELS } else { TASK_TILES };
        let kept = equal(n, KEPT_COLUMNS).next_multiple_of(unit.columns());
        let block_of_b = 4 * whole_line * kept;
        // f64 is for tests, and is not packed.
        let keeps_b = dtype != DType::F64 && m > BLOCK_TASKS * task && block_of_b <= KEPT_BYTES;
        let columns = if keeps_b { kept } else { equal(n, COLUMN_BLOCK).next_multiple_of(unit.columns()) };
        let group =
            if keeps_b { (KEPT_BYTES / block_of_b * columns).min(n.next_multiple_of(columns)) } else { columns };
        let rows = if keeps_b { (KEPT_TASKS * task).min(KEPT_A_BYTES / (4 * whole_line)) } else { BLOCK_TASKS * task };
        let rows = (rows / unit.rows()).max(1) * unit.rows();
        let rows = rows.min(m.next_multiple_of(unit.rows()));
        Blocks { task, rows, columns, group, keeps_b, depth, line, whole_line }
    }

    /// Where a block of k begins in a packed row or column.
    pub(super) fn line_before(&self, k: usize) -> usize {
        k / self.depth * self.line
    }
}
