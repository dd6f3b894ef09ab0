//! The factors of a plane's products and sums as they lie in memory, and as tensor cores take them.

use mdl_compiler::kernel::{Keeps, Kernel, PlaneIn, PlaneOut, PlaneSide};

use super::super::tensor::Side;
use super::super::tile::{Factors, Walk};
use super::{Planes, TILE, summed};

/// Numbers along k that tensor cores are brought at once.
pub(super) fn step(one: &PlaneIn) -> u64 {
    let k: u64 = one.k.iter().map(|dim| dim.extent).product();
    k.next_multiple_of(16).clamp(16, 64)
}

impl Planes<'_> {
    pub(super) fn side_batch(&self, side: &PlaneSide) -> Walk {
        Walk::new(self.plane.batch.iter().copied().zip(side.batch.iter().copied()))
    }

    pub(super) fn side_along(&self, side: &PlaneSide, keeps: Keeps) -> Walk {
        let extents = match keeps {
            Keeps::Rows => self.plane.rows.clone(),
            Keeps::Columns => vec![self.plane.columns],
        };
        Walk::new(extents.into_iter().zip(side.along.iter().copied()))
    }

    pub(super) fn factors(&self, one: &PlaneIn) -> Factors {
        Factors {
            rows: self.side_along(&one.a, Keeps::Rows),
            columns: self.side_along(&one.b, Keeps::Columns),
            deep_a: Walk::new(one.k.iter().map(|dim| (dim.extent, dim.a))),
            deep_b: Walk::new(one.k.iter().map(|dim| (dim.extent, dim.b))),
            batch_a: self.side_batch(&one.a),
            batch_b: self.side_batch(&one.b),
        }
    }

    /// The factors of a product on tensor cores: what the launch keeps is on the left.
    pub(super) fn sides<'w>(&self, kernel: &Kernel, at: usize, walks: &'w Factors, keeps: Keeps) -> [Side<'w>; 2] {
        let one = &self.plane.ins[at];
        let shape = (TILE, step(one));
        let names = [format!("start_a{at}"), format!("start_b{at}")];
        let (a, b) = (walks.a(), walks.b());
        let rows = Side::new(kernel, one.a.operand, a, shape, [&names[0], "r0", "k0"]);
        let columns = Side::new(kernel, one.b.operand, b, shape, [&names[1], "c0", "k0"]);
        if keeps == Keeps::Rows { [rows, columns] } else { [columns, rows] }
    }

    /// What a sum is with: along its columns, and along what is summed.
    pub(super) fn with(&self, out: &PlaneOut) -> (Walk, Walk, Walk) {
        let summed_along = if out.keeps == Keeps::Rows { Keeps::Columns } else { Keeps::Rows };
        let n = Walk::new(out.n.iter().map(|dim| (dim.extent, dim.x)));
        (n, self.side_along(&out.with, summed_along), self.side_batch(&out.with))
    }

    /// Shared memory for the left and for the right factors, in numbers.
    pub(super) fn pieces(&self, kernel: &Kernel, outs: &[&PlaneOut], keeps: Keeps) -> (u64, u64) {
        let (mut left, mut right) = (0, 0);
        for (at, one) in self.plane.ins.iter().enumerate() {
            let walks = self.factors(one);
            let [a, b] = self.sides(kernel, at, &walks, keeps);
            (left, right) = (left.max(a.piece()), right.max(b.piece()));
        }
        for out in outs {
            let (n, along, batch) = self.with(out);
            let side = Side::new(kernel, out.with.operand, (&n, &along, &batch), (summed(outs).0, TILE), [""; 3]);
            right = right.max(side.piece());
        }
        (left, right)
    }
}
