//! Whether a kernel may write a result over one of its operands.
//!
//! Points of a grid run in any order and on several threads, and a strip that nothing folds runs in pieces that are as independent
//! as points. So a result may only have the place of an operand when no element of it is touched at two points: else one point
//! reads what another has written already, now and then, and a run is no longer its own witness.

use super::{Access, BufId, Dim, Kernel, Position, Stmt, Work};

impl Kernel {
    /// Whether `to` may be the very memory of `from`, when everything is read before it is written: both are only touched by
    /// one access, which differs from point to point.
    pub fn may_overwrite(&self, from: BufId, to: BufId) -> bool {
        let (body, dims, whole_strip) = match &self.work {
            Work::Nest(nest) => {
                let mut dims = nest.grid.clone();
                dims.push(nest.strip);
                let folds = nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. }));
                (&nest.body, dims, folds)
            }
            Work::Contract(contract) => {
                // All of an operand is read for each block of the result.
                if [contract.a.buf, contract.b.buf].contains(&from) {
                    return false;
                }
                (&contract.body, contract.body_dims(), false)
            }
            // Blocks of a plane read what other blocks read.
            Work::Plane(_) | Work::Scatter(_) | Work::Prefix(_) | Work::Top(_) => return false,
        };
        let mut place: Option<&Access> = None;
        let mut is_one = |access| same(place.get_or_insert(access), access);
        let all = body.iter().all(|stmt| match stmt {
            Stmt::Load { buf, access, .. } => *buf != from || is_one(access),
            Stmt::Store { buf, access, .. } => *buf != to || is_one(access),
            Stmt::Exit { buf, .. } => *buf != to,
            _ => true,
        });
        let n_apart = if whole_strip { dims.len() - 1 } else { dims.len() };
        let differs = |access: &Access| (0..n_apart).all(|at| dims[at] <= 1 || access.depends_on(Dim(at as u32)));
        all && place.is_none_or(differs)
    }

    /// Whether no load of `from` comes after a store of `to`.
    pub fn reads_first(&self, from: BufId, to: BufId) -> bool {
        let body = match &self.work {
            Work::Nest(nest) => &nest.body,
            Work::Contract(contract) => &contract.body,
            Work::Plane(_) | Work::Scatter(_) | Work::Prefix(_) | Work::Top(_) => return false,
        };
        let mut after = body.iter().skip_while(|stmt| !matches!(stmt, Stmt::Store { buf, .. } if *buf == to));
        !after.any(|stmt| matches!(stmt, Stmt::Load { buf, .. } if *buf == from))
    }
}

/// The same positions; gathered ones are not known to be.
fn same(one: &Access, other: &Access) -> bool {
    let known = |access: &Access| access.terms.iter().all(|term| matches!(term.index, Position::Index(_)));
    (one.base, &one.terms) == (other.base, &other.terms) && known(one)
}

#[cfg(test)]
mod tests {
    use mdl_graph::DType;

    use super::super::{Access, Buf, BufId, Dim, FoldKind, Kernel, Nest, Role, Stmt, Val, ValId, Work};

    /// y0 = x0 along a grid and a strip, and y1 = x1 in each row.
    fn kernel(grid: u64, strip: u64, folds: bool) -> Kernel {
        let mut nest = Nest::new(vec![grid], strip);
        let along = Access::affine(0, &[(Dim(0), strip as i64), (Dim(1), 1)]);
        let row = Access::affine(0, &[(Dim(0), 1)]);
        nest.vals = vec![Val::strip(DType::F32), Val::row(DType::F32), Val::row(DType::F32)];
        nest.body = vec![
            Stmt::Load { val: ValId(0), buf: BufId(0), access: along.clone() },
            Stmt::Load { val: ValId(1), buf: BufId(2), access: row.clone() },
            Stmt::Store { buf: BufId(1), access: along, val: ValId(0) },
            Stmt::Store { buf: BufId(3), access: row, val: ValId(1) },
        ];
        if folds {
            nest.body.push(Stmt::Fold { val: ValId(2), kind: FoldKind::Sum, from: ValId(0) });
        }
        let buf = |name: &str, len, role| Buf { name: name.into(), dtype: DType::F32, len, role };
        let bufs = vec![
            buf("x0", grid * strip, Role::Read),
            buf("y0", grid * strip, Role::Write),
            buf("x1", grid, Role::Read),
            buf("y1", grid, Role::Write),
        ];
        let kernel = Kernel { name: "rows".into(), bufs, work: Work::Nest(nest) };
        kernel.verify().unwrap();
        kernel
    }

    #[test]
    fn what_is_touched_at_one_point_alone_may_be_overwritten() {
        for (folds, strip) in [(false, 1), (false, 4000), (true, 4000)] {
            let kernel = kernel(3, strip, folds);
            assert!(kernel.may_overwrite(BufId(0), BufId(1)));
            assert!(kernel.reads_first(BufId(0), BufId(1)));
            // The pieces of a strip would each read a row's value, and each write it.
            assert_eq!(kernel.may_overwrite(BufId(2), BufId(3)), folds || strip == 1, "folds {folds}, strip {strip}");
            assert!(!kernel.may_overwrite(BufId(0), BufId(3)) || strip == 1);
        }
    }

    #[test]
    fn an_operand_that_is_read_last_is_not_read_first() {
        let mut kernel = kernel(3, 8, false);
        if let Work::Nest(nest) = &mut kernel.work {
            nest.body.swap(1, 3);
            nest.body.swap(0, 2);
        }
        assert!(!kernel.reads_first(BufId(0), BufId(1)));
    }
}
