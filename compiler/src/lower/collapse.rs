//! Dimensions that always move together become one: strips get long, grids short, products large.
//!
//! Two dimensions are one when every access moves by the outer as by the inner times its extent, every index expression too, and
//! they play the same part: both of the grid (both kept by exits, or both summed), or the inner the strip, if no row is folded.

use crate::kernel::{Access, Contract, ContractDim, Dim, Index, Nest, Position, Stmt, Term};

/// The access and index expressions of a body as functions of its dimensions.
struct Moves<'a> {
    body: &'a mut Vec<Stmt>,
}

fn access_of(stmt: &mut Stmt) -> Option<&mut Access> {
    match stmt {
        Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. } => Some(access),
        _ => None,
    }
}

fn is_plain(term: &Term) -> bool {
    match &term.index {
        Position::Index(index) => term.range.is_none() && index.div == 1 && index.modulo == 0,
        Position::Value(_) => false,
    }
}

fn coef(index: &Index, dim: Dim) -> i64 {
    index.terms.iter().filter(|(term, _)| *term == dim).map(|(_, coef)| *coef).sum()
}

impl Moves<'_> {
    /// Whether `outer`, and `inner` of this extent, are one dimension to every statement.
    fn agree(&mut self, outer: Dim, inner: Dim, extent: u64) -> bool {
        let fits = |x: i64, y: i64| x == y.saturating_mul(extent as i64);
        let same = |index: &Index| fits(coef(index, outer), coef(index, inner));
        self.body.iter_mut().all(|stmt| {
            if let Stmt::Index { index, .. } = stmt {
                return same(index);
            }
            let Some(access) = access_of(stmt) else { return true };
            let (mut x, mut y) = (0, 0);
            for term in &access.terms {
                match &term.index {
                    Position::Index(index) if is_plain(term) => {
                        x += term.coef * coef(index, outer);
                        y += term.coef * coef(index, inner);
                    }
                    Position::Index(index) if !same(index) => return false,
                    _ => {}
                }
            }
            fits(x, y)
        })
    }

    /// Forgets `outer`: `inner` is both from now on.
    fn forget(&mut self, outer: Dim) {
        for stmt in self.body.iter_mut() {
            if let Stmt::Index { index, .. } = stmt {
                index.terms.retain(|(dim, _)| *dim != outer);
                continue;
            }
            let Some(access) = access_of(stmt) else { continue };
            for term in &mut access.terms {
                if let Position::Index(index) = &mut term.index {
                    index.terms.retain(|(dim, _)| *dim != outer);
                }
            }
        }
        self.tidy();
    }

    fn rename(&mut self, to: &[Dim]) {
        let rename = |index: &mut Index| {
            for (dim, _) in &mut index.terms {
                *dim = to[dim.0 as usize];
            }
            index.terms.sort();
        };
        for stmt in self.body.iter_mut() {
            if let Stmt::Index { index, .. } = stmt {
                rename(index);
                continue;
            }
            let Some(access) = access_of(stmt) else { continue };
            for term in &mut access.terms {
                if let Position::Index(index) = &mut term.index {
                    rename(index);
                }
            }
        }
    }

    /// Plain terms without a dimension are a part of the base.
    fn tidy(&mut self) {
        for stmt in self.body.iter_mut() {
            let Some(access) = access_of(stmt) else { continue };
            let mut base = access.base;
            access.terms.retain(|term| match &term.index {
                Position::Index(index) if is_plain(term) && index.terms.is_empty() => {
                    base += term.coef * (index.base + index.plus);
                    false
                }
                _ => true,
            });
            access.base = base;
        }
    }
}

/// The numbers of the dimensions that stay, for those in `alive`.
fn renumbered(alive: &[bool]) -> Vec<Dim> {
    let mut next = 0;
    alive
        .iter()
        .map(|stays| {
            let dim = Dim(next);
            next += u32::from(*stays);
            dim
        })
        .collect()
}

pub(super) fn nest(nest: &mut Nest) {
    let strip = nest.grid.len();
    let mut extents = nest.grid.clone();
    extents.push(nest.strip);
    if extents.contains(&0) {
        return;
    }
    let folds = nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. }));
    let has_exits = nest.has_exits();
    let mut alive = vec![true; extents.len()];
    let mut moves = Moves { body: &mut nest.body };
    loop {
        let mut merged = false;
        for inner in (0..=strip).rev().filter(|dim| alive[*dim]).collect::<Vec<_>>() {
            if inner == strip && folds {
                continue;
            }
            let outer = (0..strip).rev().filter(|outer| *outer != inner && alive[*outer]).find(|outer| {
                let kept = |dim: usize| !has_exits || dim < nest.keep;
                let alike = if inner == strip { kept(*outer) } else { kept(*outer) == kept(inner) && *outer < inner };
                alike && moves.agree(Dim(*outer as u32), Dim(inner as u32), extents[inner])
            });
            if let (Some(outer), true) = (outer, alive[inner]) {
                moves.forget(Dim(outer as u32));
                extents[inner] *= extents[outer];
                alive[outer] = false;
                merged = true;
            }
        }
        if !merged {
            break;
        }
    }
    moves.rename(&renumbered(&alive));
    nest.keep = alive[..nest.keep].iter().filter(|stays| **stays).count();
    nest.strip = extents[strip];
    nest.grid = (0..strip).filter(|dim| alive[*dim]).map(|dim| extents[dim]).collect();
}

pub(super) fn contract(contract: &mut Contract) {
    // Sums: neighbours that lie together in both operands.
    let mut k: Vec<ContractDim> = Vec::with_capacity(contract.k.len());
    for dim in std::mem::take(&mut contract.k) {
        match k.last_mut() {
            Some(last) if joins(last, &dim) => {
                *last = ContractDim { extent: last.extent * dim.extent, ..dim };
            }
            _ => k.push(dim),
        }
    }
    contract.k = k;

    let classes = [contract.batch.len(), contract.m.len(), contract.n.len()];
    let mut dims: Vec<ContractDim> =
        [&contract.batch, &contract.m, &contract.n].into_iter().flatten().copied().collect();
    let class = |dim: usize| usize::from(dim >= classes[0]) + usize::from(dim >= classes[0] + classes[1]);
    let mut alive = vec![true; dims.len()];
    let mut moves = Moves { body: &mut contract.body };
    for inner in (0..dims.len()).rev() {
        while alive[inner] {
            let outer = (0..inner).rev().filter(|outer| alive[*outer] && class(*outer) == class(inner)).find(|outer| {
                joins(&dims[*outer], &dims[inner])
                    && moves.agree(Dim(*outer as u32), Dim(inner as u32), dims[inner].extent)
            });
            let Some(outer) = outer else { break };
            moves.forget(Dim(outer as u32));
            dims[inner].extent *= dims[outer].extent;
            alive[outer] = false;
        }
    }
    moves.rename(&renumbered(&alive));
    let side =
        |which: usize| (0..dims.len()).filter(|dim| alive[*dim] && class(*dim) == which).map(|dim| dims[dim]).collect();
    (contract.batch, contract.m, contract.n) = (side(0), side(1), side(2));
}

fn joins(outer: &ContractDim, inner: &ContractDim) -> bool {
    let extent = inner.extent as i64;
    outer.a == inner.a.saturating_mul(extent) && outer.b == inner.b.saturating_mul(extent)
}
