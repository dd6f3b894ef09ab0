//! What a kernel costs, from its sizes alone.

use crate::kernel::{Kernel, Nest, Rank, Stmt, Val, ValId, Work};

/// Of one launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Additions, multiplications and other operations on numbers, one each.
    pub flops: u64,
    /// Bytes of its buffers: each is read or written once.
    pub bytes: u64,
}

/// The cost of a launch of a kernel.
pub fn kernel(kernel: &Kernel) -> Cost {
    let bytes = kernel.bufs.iter().map(|buf| buf.len * buf.dtype.size_bytes()).sum();
    let product = |extents: &mut dyn Iterator<Item = u64>| extents.fold(1u64, u64::saturating_mul);
    let flops = match &kernel.work {
        Work::Nest(Nest { grid, strip, vals, body, .. }) => {
            let rows = product(&mut grid.iter().copied());
            statements(vals, body, rows, *strip)
        }
        Work::Contract(contract) => {
            let dims = [&contract.batch, &contract.m, &contract.n];
            let points = product(&mut dims.into_iter().flatten().map(|dim| dim.extent));
            let depth = product(&mut contract.k.iter().map(|dim| dim.extent));
            let strip = contract.n.last().map_or(1, |dim| dim.extent).max(1);
            let body = statements(&contract.vals, &contract.body, points / strip, strip);
            points.saturating_mul(depth).saturating_mul(2).saturating_add(body)
        }
        Work::Plane(plane) => {
            let rows = product(&mut plane.batch.iter().chain(&plane.rows).copied());
            let depth = |extents: &mut dyn Iterator<Item = u64>| product(extents);
            let ins = plane.ins.iter().map(|one| depth(&mut one.k.iter().map(|dim| dim.extent)));
            let outs = plane.outs.iter().map(|one| depth(&mut one.n.iter().map(|dim| dim.extent)));
            let each = ins.chain(outs).fold(0u64, u64::saturating_add).saturating_mul(2);
            let body = statements(&plane.vals, &plane.body, rows, plane.columns);
            rows.saturating_mul(plane.columns).saturating_mul(each).saturating_add(body)
        }
        Work::Scatter(scatter) => {
            let dims = [&scatter.keep, &scatter.points, &scatter.inner];
            product(&mut dims.into_iter().flatten().map(|dim| dim.extent))
        }
        Work::Prefix(prefix) => product(&mut prefix.outer.iter().chain([&prefix.along]).map(|dim| dim.extent)),
        Work::Top(top) => product(&mut top.outer.iter().chain([&top.along]).map(|dim| dim.extent)),
    };
    Cost { flops, bytes }
}

fn statements(vals: &[Val], body: &[Stmt], rows: u64, strip: u64) -> u64 {
    let points = rows.saturating_mul(strip);
    let rank = |val: &ValId| vals.get(val.0 as usize).map_or(Rank::Row, |val| val.rank);
    body.iter()
        .map(|stmt| match stmt {
            Stmt::Map { val, .. } => {
                if rank(val) == Rank::Strip {
                    points
                } else {
                    rows
                }
            }
            Stmt::Fold { .. } => points,
            Stmt::Exit { val, .. } => {
                if rank(val) == Rank::Strip {
                    points
                } else {
                    rows
                }
            }
            Stmt::Load { .. } | Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Store { .. } => 0,
        })
        .fold(0u64, u64::saturating_add)
}
