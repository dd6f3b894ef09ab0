//! Packing: a strided block as panels, `out[panel][k][row in panel]`, the last panel filled with zeros.

use super::adjacent;

/// Packs `rows` by `k` elements at `from + row + k`, `width` rows to a panel.
///
/// # Safety
/// Every `from + rows[i] + k[j]` may be read; `out` has room for whole panels.
pub(super) unsafe fn panels<T: Copy>(
    out: *mut f32,
    width: usize,
    from: *const T,
    rows: &[i64],
    k: &[i64],
    widen: impl Fn(T) -> f32 + Copy,
) {
    let k_runs = adjacent(k);
    // Panels that are narrower than a line of cache are packed side by side where a run of rows allows, so that every line is
    // fetched once.
    let side_by_side = if width == 8 && !k_runs {
        rows.chunks(4 * width).take_while(|run| run.len() == 4 * width && adjacent(run)).count()
    } else {
        0
    };
    for (at, run) in rows.chunks(4 * width).take(side_by_side).enumerate() {
        // SAFETY: as below, for four panels.
        unsafe { four_adjacent::<T, 8>(out.add(at * 4 * width * k.len()), from.offset(run[0] as isize), k, widen) };
    }
    for (at, panel) in rows.chunks(width).enumerate().skip(4 * side_by_side) {
        let order = (adjacent(panel), k_runs);
        // SAFETY: panel `at` starts here; its `width · k` elements are ours.
        let to = unsafe { out.add(at * width * k.len()) };
        let whole = panel.len() == width;
        // SAFETY: the caller's promise about reads; writes stay in the panel.
        unsafe {
            match (order, width) {
                ((true, _), 32) if whole => rows_adjacent::<T, 32>(to, from.offset(panel[0] as isize), k, widen),
                ((true, _), 16) if whole => rows_adjacent::<T, 16>(to, from.offset(panel[0] as isize), k, widen),
                ((true, _), 8) if whole => rows_adjacent::<T, 8>(to, from.offset(panel[0] as isize), k, widen),
                ((false, true), 32) if whole => {
                    k_adjacent::<T, 32>(to, from.offset(k[0] as isize), panel, k.len(), widen)
                }
                ((false, true), 16) if whole => {
                    k_adjacent::<T, 16>(to, from.offset(k[0] as isize), panel, k.len(), widen)
                }
                ((false, true), 8) if whole => {
                    k_adjacent::<T, 8>(to, from.offset(k[0] as isize), panel, k.len(), widen)
                }
                _ => any(to, width, from, panel, k, widen),
            }
        }
    }
}

/// Whole rows of a panel are runs in memory: they are copied.
#[inline(always)]
unsafe fn rows_adjacent<T: Copy, const W: usize>(to: *mut f32, from: *const T, k: &[i64], widen: impl Fn(T) -> f32) {
    for (j, offset) in k.iter().enumerate() {
        for i in 0..W {
            // SAFETY: see `panels`.
            unsafe { to.add(j * W + i).write(widen(from.offset(*offset as isize).add(i).read())) };
        }
    }
}

/// Four panels whose rows are one run in memory.
#[inline(always)]
unsafe fn four_adjacent<T: Copy, const W: usize>(to: *mut f32, from: *const T, k: &[i64], widen: impl Fn(T) -> f32) {
    for (j, offset) in k.iter().enumerate() {
        for panel in 0..4 {
            for i in 0..W {
                // SAFETY: see `panels`.
                unsafe {
                    let value = from.offset(*offset as isize).add(panel * W + i).read();
                    to.add((panel * k.len() + j) * W + i).write(widen(value));
                }
            }
        }
    }
}

/// Runs along k: transposed in blocks of 8 by 8, which stay in registers and whose lines stay in cache.
#[inline(always)]
unsafe fn k_adjacent<T: Copy, const W: usize>(
    to: *mut f32,
    from: *const T,
    rows: &[i64],
    depth: usize,
    widen: impl Fn(T) -> f32,
) {
    const B: usize = 8;
    let whole = depth - depth % B;
    for i0 in (0..W).step_by(B) {
        for j0 in (0..whole).step_by(B) {
            let mut block = [[0f32; B]; B];
            for (i, line) in block.iter_mut().enumerate() {
                // SAFETY: see `panels`.
                let line_from = unsafe { from.offset(rows[i0 + i] as isize).add(j0) };
                for (j, slot) in line.iter_mut().enumerate() {
                    // SAFETY: see `panels`.
                    *slot = widen(unsafe { line_from.add(j).read() });
                }
            }
            for j in 0..B {
                for (i, line) in block.iter().enumerate() {
                    // SAFETY: see `panels`.
                    unsafe { to.add((j0 + j) * W + i0 + i).write(line[j]) };
                }
            }
        }
        for j in whole..depth {
            for (i, row) in rows[i0..i0 + B].iter().enumerate() {
                // SAFETY: see `panels`.
                unsafe { to.add(j * W + i0 + i).write(widen(from.offset(*row as isize).add(j).read())) };
            }
        }
    }
}

unsafe fn any<T: Copy>(to: *mut f32, width: usize, from: *const T, rows: &[i64], k: &[i64], widen: impl Fn(T) -> f32) {
    for (j, offset) in k.iter().enumerate() {
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: see `panels`.
            unsafe { to.add(j * width + i).write(widen(from.offset((row + offset) as isize).read())) };
        }
        for i in rows.len()..width {
            // SAFETY: see `panels`.
            unsafe { to.add(j * width + i).write(0.0) };
        }
    }
}
