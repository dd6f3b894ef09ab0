//! Whether a kernel may write a result over one of its operands.
//!
//! Points of a grid run in any order and on several threads, and a strip that nothing folds runs in pieces that are as independent
//! as points. So a result may only have the place of an operand when no element of it is touched at two points: else one point
//! reads what another has written already, now and then, and a run is no longer its own witness.

use super::{Access, BufId, Dim, Kernel, Position, Stmt, Term, Work};

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
            Work::Scatter(scatter) => {
                let is_base = scatter.base.is_some_and(|base| base.buf == from && base.base == scatter.out.base);
                return is_base && scatter.out.buf == to;
            }
            // Blocks of a plane read what other blocks read.
            Work::Plane(_) | Work::Prefix(_) | Work::Top(_) => return false,
        };
        let mut place: Option<&Access> = None;
        let mut rows: Vec<&Access> = Vec::new();
        let mut is_one = |access| same(place.get_or_insert(access), access);
        let all = body.iter().all(|stmt| match stmt {
            Stmt::Load { buf, access, .. } if *buf == from && whole_strip && gathers_in_row(access, &dims) => {
                rows.push(access);
                true
            }
            Stmt::Load { buf, access, .. } => *buf != from || is_one(access),
            Stmt::Store { buf, access, .. } => *buf != to || is_one(access),
            Stmt::Exit { buf, .. } => *buf != to,
            _ => true,
        });
        let n_apart = if whole_strip { dims.len() - 1 } else { dims.len() };
        let differs = |access: &Access| (0..n_apart).all(|at| dims[at] <= 1 || access.depends_on(Dim(at as u32)));
        let same_row = |place: &Access| rows.iter().all(|row| row_of(row, &dims) == row_of(place, &dims));
        all && place.is_none_or(|place| differs(place) && same_row(place))
    }

    /// Whether no load of `from` comes after a store of `to`.
    pub fn reads_first(&self, from: BufId, to: BufId) -> bool {
        let body = match &self.work {
            Work::Nest(nest) => &nest.body,
            Work::Contract(contract) => &contract.body,
            // Nothing is added before the base is there.
            Work::Scatter(_) => return self.may_overwrite(from, to),
            Work::Plane(_) | Work::Prefix(_) | Work::Top(_) => return false,
        };
        let mut after = body.iter().skip_while(|stmt| !matches!(stmt, Stmt::Store { buf, .. } if *buf == to));
        !after.any(|stmt| matches!(stmt, Stmt::Load { buf, .. } if *buf == from))
    }
}

/// Whether a load takes one number of its row, at a place that is a value: rows are dense, and no place lies outside.
fn gathers_in_row(access: &Access, dims: &[u64]) -> bool {
    let Some(strip) = dims.last() else { return false };
    let mut gathered = access.terms.iter().filter(|term| matches!(term.index, Position::Value(_)));
    let is_inside = |term: &Term| term.coef == 1 && term.range == Some((0, *strip as i64));
    gathered.next().is_some_and(is_inside) && gathered.next().is_none()
}

/// Where the row of an access begins: its terms without those that move along a dense row.
fn row_of<'a>(access: &'a Access, dims: &[u64]) -> (i64, Vec<&'a Term>) {
    let strip = Dim(dims.len() as u32 - 1);
    let moves = |term: &&Term| match &term.index {
        Position::Index(index) => !index.depends_on(strip) || index.terms.len() > 1 || term.coef != 1,
        Position::Value(_) => false,
    };
    (access.base, access.terms.iter().filter(moves).collect())
}

/// The same positions; gathered ones are not known to be.
fn same(one: &Access, other: &Access) -> bool {
    let known = |access: &Access| access.terms.iter().all(|term| matches!(term.index, Position::Index(_)));
    (one.base, &one.terms) == (other.base, &other.terms) && known(one)
}

#[cfg(test)]
mod tests {
    use mdl_graph::DType;

    use super::super::{Access, Buf, BufId, Dim, FoldKind, Kernel, Nest, Position, Role, Stmt, Term, Val, ValId, Work};

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

    /// A cross-entropy picks the label's logit out of a row that it overwrites with its gradient.
    #[test]
    fn a_number_picked_out_of_the_same_row_may_be_overwritten() {
        let picked = |row: i64, range: i64, folds: bool| {
            let mut kernel = kernel(3, 40, folds);
            let Work::Nest(nest) = &mut kernel.work else { panic!("a nest") };
            let place = Term { index: Position::Value(ValId(3)), coef: 1, range: Some((0, range)) };
            let mut access = Access::affine(0, &[(Dim(0), row)]);
            access.terms.push(place);
            nest.vals.extend([Val::row(DType::I32), Val::row(DType::F32)]);
            let index = Stmt::Const { val: ValId(3), value: mdl_graph::Scalar::Int(7) };
            nest.body.splice(0..0, [index, Stmt::Load { val: ValId(4), buf: BufId(0), access }]);
            kernel.verify().unwrap();
            kernel.may_overwrite(BufId(0), BufId(1))
        };
        assert!(picked(40, 40, true));
        // Another row's, another place's, or a row in pieces.
        assert!(!picked(20, 40, true) && !picked(40, 20, true) && !picked(40, 40, false));
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
