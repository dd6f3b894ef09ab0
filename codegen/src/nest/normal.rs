//! Dimensions made ready: the same kernel with longer strips and better walks, and no change of any bit that counts.

use std::collections::BTreeSet;

use mdl_compiler::kernel::{
    Access, Contract, Dim, FoldKind, Index, Kernel, Nest, Position, Rank, ScalarOp, Stmt, Term, Val, ValId,
};

use super::{Along, TILE, accesses, along, defined, used};

/// The same nest with as few and as long dimensions as the accesses allow.
pub(crate) fn normal(nest: &Nest) -> Nest {
    let mut nest = nest.clone();
    nest.body.iter_mut().for_each(gather_terms);
    if let Some(unrolled) = unroll(&nest) {
        nest = unrolled;
    }
    if nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. })) {
        return nest;
    }
    let ways = turned(&nest).into_iter().chain([nest]).map(merged);
    let best = ways.enumerate().min_by(|(i, x), (j, y)| cost(x).total_cmp(&cost(y)).then(i.cmp(j)));
    best.unwrap_or_else(|| mdl_graph::bug!("a nest without an order")).1
}

/// Merges the strip with the grid as far as that goes.
fn merged(mut nest: Nest) -> Nest {
    while let Some(last) = nest.grid.len().checked_sub(1) {
        let (outer, strip) = (Dim(last as u32), nest.strip_dim());
        let extent = nest.strip as i64;
        if extent == 1 {
            // The strip's only position is 0: the last grid dimension becomes the strip.
            nest.strip = nest.grid.remove(last);
            rewrite(&mut nest.body, &|terms| {
                terms.retain(|(dim, _)| *dim != strip);
            });
        } else if merge(&mut nest.body, outer, strip, extent) {
            nest.strip *= nest.grid.remove(last);
        } else {
            break;
        }
    }
    rank(&mut nest);
    nest
}

/// Nanoseconds for one element, roughly: a row costs some 20, an element of a run 0.1, one out of order 0.7, one whose
/// position is computed alone 3. Only the proportions matter; measured by `examples/profile.rs` on a Sapphire Rapids machine.
fn cost(nest: &Nest) -> f64 {
    let access = |access: &Access| match along(access, nest.strip_dim(), &nest.vals) {
        Along::Stride(0) => 0.02,
        Along::Stride(1) | Along::Window(0 | 1) => 0.1,
        Along::Stride(_) | Along::Window(_) => 0.7,
        Along::General => 3.0,
    };
    let each = nest.body.iter().map(|stmt| match stmt {
        // What is written out of order costs twice: its lines are read, too.
        Stmt::Store { access: to, .. } => 2.0 * access(to),
        _ => accesses(stmt).map_or(0.0, access),
    });
    20.0 / nest.strip.clamp(1, TILE) as f64 + each.sum::<f64>()
}

/// The same nest with each dimension as the strip, and the others from far to near in the result, so that they merge. Only
/// when every store depends on every dimension: else what is repeated would change.
fn turned(nest: &Nest) -> Vec<Nest> {
    let n_dims = nest.grid.len() + 1;
    let mut extents = nest.grid.clone();
    extents.push(nest.strip);
    let stores: Vec<&Access> =
        nest.body.iter().filter(|stmt| matches!(stmt, Stmt::Store { .. })).filter_map(accesses).collect();
    let all =
        (0..n_dims).all(|dim| stores.iter().all(|access| extents[dim] == 1 || access.depends_on(Dim(dim as u32))));
    let Some(strides) = stores.first().and_then(|first| crate::contract::affine_strides(first, n_dims)) else {
        return Vec::new();
    };
    if !all || extents.contains(&0) {
        return Vec::new();
    }
    let way = |strip: usize| {
        let mut order: Vec<usize> = (0..n_dims).collect();
        order.sort_by_key(|dim| (*dim == strip, std::cmp::Reverse(strides[*dim])));
        let mut way = nest.clone();
        rewrite(&mut way.body, &|terms| {
            for (dim, _) in terms.iter_mut() {
                let to = order.iter().position(|from| *from == dim.0 as usize).unwrap_or_default();
                *dim = Dim(to as u32);
            }
        });
        way.strip = extents[strip];
        way.grid = order[..n_dims - 1].iter().map(|dim| extents[*dim]).collect();
        rank(&mut way);
        way
    };
    (0..n_dims).rev().filter(|dim| extents[*dim] > 1).map(way).collect()
}

/// The longest strip that is unrolled, and the most statements that may come of it.
const UNROLLED: u64 = 9;
const UNROLLED_STMTS: u64 = 160;

/// Rows of a few positions, as those of a pooling window, without their strip: each position has statements of its own and
/// folds are chains, so that another dimension can be the strip.
fn unroll(nest: &Nest) -> Option<Nest> {
    let folds = nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. }));
    let n = nest.strip;
    let few = n <= UNROLLED && n * nest.body.len() as u64 <= UNROLLED_STMTS;
    if !folds || !few || n == 0 || nest.has_exits() || nest.grid.iter().product::<u64>() < 16 {
        return None;
    }
    let strip = nest.strip_dim();
    let mut out = Nest::new(nest.grid.clone(), 1);
    // The copies of a value: one for a row value, one for each position of a strip.
    let mut copies: Vec<Vec<ValId>> = vec![Vec::new(); nest.vals.len()];
    let fresh = |out: &mut Nest, val: ValId| {
        out.vals.push(Val::row(nest.vals[val.0 as usize].dtype));
        ValId(out.vals.len() as u32 - 1)
    };
    let pick = |copies: &[Vec<ValId>], val: ValId, j: u64| {
        let all = &copies[val.0 as usize];
        all[if all.len() == 1 { 0 } else { j as usize }]
    };
    let fixed = |index: &Index, j: u64| {
        let mut index = index.clone();
        index.base += coef(&index, strip) * j as i64;
        index.terms.retain(|(dim, _)| *dim != strip);
        index
    };
    let moved = |copies: &[Vec<ValId>], access: &Access, j: u64| {
        let mut access = access.clone();
        for term in &mut access.terms {
            term.index = match &term.index {
                Position::Index(index) => Position::Index(fixed(index, j)),
                Position::Value(val) => Position::Value(pick(copies, *val, j)),
            };
        }
        access
    };
    for stmt in &nest.body {
        if let Stmt::Fold { val, kind, from } = stmt {
            let op = match kind {
                FoldKind::Sum => ScalarOp::Add,
                FoldKind::Max => ScalarOp::Max,
            };
            let mut sum = pick(&copies, *from, 0);
            for j in 1..n {
                let next = fresh(&mut out, *val);
                out.body.push(Stmt::Map { val: next, op, args: vec![sum, pick(&copies, *from, j)] });
                sum = next;
            }
            copies[val.0 as usize] = vec![sum];
            continue;
        }
        let repeated = match stmt {
            Stmt::Store { access, val, .. } => {
                nest.vals[val.0 as usize].rank == Rank::Strip || access.depends_on(strip)
            }
            _ => defined(stmt).is_some_and(|val| nest.vals[val.0 as usize].rank == Rank::Strip),
        };
        for j in 0..if repeated { n } else { 1 } {
            let made = defined(stmt).map(|val| (val, fresh(&mut out, val)));
            let to = made.map_or(ValId(0), |(_, to)| to);
            out.body.push(match stmt {
                Stmt::Load { buf, access, .. } => Stmt::Load { val: to, buf: *buf, access: moved(&copies, access, j) },
                Stmt::Const { value, .. } => Stmt::Const { val: to, value: *value },
                Stmt::Index { index, .. } => Stmt::Index { val: to, index: fixed(index, j) },
                Stmt::Map { op, args, .. } => {
                    let args = args.iter().map(|arg| pick(&copies, *arg, j)).collect();
                    Stmt::Map { val: to, op: *op, args }
                }
                Stmt::Store { buf, access, val } => {
                    Stmt::Store { buf: *buf, access: moved(&copies, access, j), val: pick(&copies, *val, j) }
                }
                Stmt::Fold { .. } | Stmt::Exit { .. } => mdl_graph::bug!("a fold or an exit is unrolled twice"),
            });
            if let Some((val, to)) = made {
                copies[val.0 as usize].push(to);
            }
        }
    }
    out.body.iter_mut().for_each(gather_terms);
    Some(out)
}

/// A nest as several that share nothing but constants and run-time scalars, each with the strip only if it needs it. So a
/// small result that was put beside a large one does not decide how the large one is walked through.
pub(crate) fn parts(kernel: &Kernel, nest: &Nest) -> Vec<Nest> {
    let whole = |stmt: &Stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. });
    if nest.body.iter().any(whole) || nest.grid.contains(&0) || nest.strip == 0 {
        return vec![nest.clone()];
    }
    // Which stores a value leads to; those of one non-trivial value belong together.
    let trivial = |stmt: &Stmt| match stmt {
        Stmt::Const { .. } => true,
        Stmt::Load { access, .. } => access.terms.is_empty(),
        _ => false,
    };
    let mut group: Vec<usize> = (0..nest.body.len()).collect();
    let mut join = |one: usize, other: usize| {
        let (old, new) = (group[one].max(group[other]), group[one].min(group[other]));
        group.iter_mut().filter(|group| **group == old).for_each(|group| *group = new);
    };
    let shape = |buf: mdl_compiler::kernel::BufId| (kernel.bufs[buf.0 as usize].dtype, kernel.bufs[buf.0 as usize].len);
    let mut source = vec![usize::MAX; nest.vals.len()];
    for (at, stmt) in nest.body.iter().enumerate() {
        if let Some(val) = defined(stmt) {
            source[val.0 as usize] = at;
        }
        for val in used(stmt) {
            let from = source[val.0 as usize];
            if from != usize::MAX && !trivial(&nest.body[from]) {
                join(at, from);
            }
        }
        // A result may have the place of an operand of its size, which must be read before: they stay together.
        if let Stmt::Store { buf, .. } = stmt {
            for (load, other) in nest.body.iter().enumerate() {
                if matches!(other, Stmt::Load { buf: from, .. } if !trivial(other) && shape(*from) == shape(*buf)) {
                    join(at, load);
                }
            }
        }
    }
    let stored: BTreeSet<usize> =
        (0..nest.body.len()).filter(|at| matches!(nest.body[*at], Stmt::Store { .. })).map(|at| group[at]).collect();
    if stored.len() <= 1 {
        return vec![nest.clone()];
    }
    // A scalar that one part reads must not be the memory that another writes.
    let written: Vec<_> = nest
        .body
        .iter()
        .filter_map(|stmt| if let Stmt::Store { buf, .. } = stmt { Some(shape(*buf)) } else { None })
        .collect();
    let clash = nest.body.iter().any(|stmt| match stmt {
        Stmt::Load { buf, .. } => trivial(stmt) && written.contains(&shape(*buf)),
        _ => false,
    });
    if clash {
        return vec![nest.clone()];
    }
    let strip = nest.strip_dim();
    let part = |wanted: usize| {
        let mut part = Nest::new(nest.grid.clone(), nest.strip);
        part.vals = nest.vals.clone();
        part.body = nest
            .body
            .iter()
            .enumerate()
            .filter(|(at, stmt)| group[*at] == wanted || trivial(stmt))
            .map(|(_, stmt)| stmt.clone())
            .collect();
        let needs = part.body.iter().any(|stmt| match stmt {
            Stmt::Index { index, .. } => index.depends_on(strip),
            _ => accesses(stmt).is_some_and(|access| access.depends_on(strip)),
        });
        if !needs {
            part.strip = 1;
        }
        part
    };
    stored.into_iter().map(part).collect()
}

/// The same contraction with a and b exchanged, if its stores then run along the strip and now do not: a store of a transposed
/// result goes from columns of the block to its rows.
pub(crate) fn oriented(contract: &Contract) -> Contract {
    let n_batch = contract.batch.len();
    let (n_m, n_n) = (contract.m.len(), contract.n.len());
    let (Some(last_m), Some(last_n)) = (contract.m.last(), contract.n.last()) else { return contract.clone() };
    if last_m.extent <= 1 || last_n.extent <= 1 {
        return contract.clone();
    }
    let (strip_m, strip_n) = (Dim((n_batch + n_m) as u32 - 1), Dim((n_batch + n_m + n_n) as u32 - 1));
    let runs = |dim: Dim| {
        let stores = contract.body.iter().filter(|stmt| matches!(stmt, Stmt::Store { .. })).filter_map(accesses);
        stores.filter(|access| along(access, dim, &contract.vals) == Along::Stride(1)).count()
    };
    if runs(strip_n) >= runs(strip_m) {
        return contract.clone();
    }
    let mut turned = contract.clone();
    std::mem::swap(&mut turned.a, &mut turned.b);
    std::mem::swap(&mut turned.m, &mut turned.n);
    for dim in turned.batch.iter_mut().chain(&mut turned.m).chain(&mut turned.n).chain(&mut turned.k) {
        std::mem::swap(&mut dim.a, &mut dim.b);
    }
    rewrite(&mut turned.body, &|terms| {
        for (dim, _) in terms.iter_mut() {
            let at = dim.0 as usize;
            if at >= n_batch + n_m {
                *dim = Dim((at - n_m) as u32);
            } else if at >= n_batch {
                *dim = Dim((at + n_n) as u32);
            }
        }
    });
    // Which values are strips changes with the strip.
    let mut body = Nest::new(turned.body_dims()[..n_batch + n_m + n_n - 1].to_vec(), last_m.extent);
    (body.vals, body.body) = (turned.vals, turned.body);
    rank(&mut body);
    (turned.vals, turned.body) = (body.vals, body.body);
    turned
}

/// The body of a contraction with the dimensions of n merged as far as its accesses allow: the dimensions, the statements,
/// and how many dimensions of n are left.
pub(crate) fn normal_columns(contract: &Contract) -> (Vec<u64>, Vec<Stmt>, usize) {
    let mut dims = contract.body_dims();
    let mut body = contract.body.clone();
    body.iter_mut().for_each(gather_terms);
    let mut n_columns = contract.n.len().max(1);
    while n_columns > 1 {
        let last = dims.len() - 1;
        let extent = dims[last];
        if !merge(&mut body, Dim(last as u32 - 1), Dim(last as u32), extent as i64) {
            break;
        }
        dims.pop();
        dims[last - 1] *= extent;
        n_columns -= 1;
    }
    (dims, body, n_columns)
}

/// Makes one dimension of the last two, numbered `outer`, if every index crosses from one to the other evenly.
fn merge(body: &mut [Stmt], outer: Dim, strip: Dim, extent: i64) -> bool {
    let even = indices(body).all(|index| coef(index, outer) == coef(index, strip) * extent);
    if even {
        rewrite(body, &|terms| {
            terms.retain(|(dim, _)| *dim != outer);
            for (dim, _) in terms.iter_mut() {
                if *dim == strip {
                    *dim = outer;
                }
            }
        });
    }
    even
}

/// Makes one term of all plain ones, so that whether dimensions merge is seen at a glance.
fn gather_terms(stmt: &mut Stmt) {
    let (Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. }) = stmt else { return };
    let mut plain = Index::affine(0, Vec::new());
    access.terms.retain(|term| {
        let Position::Index(index) = &term.index else { return true };
        if term.range.is_some() || index.div != 1 || index.modulo != 0 {
            return true;
        }
        access.base += term.coef * (index.base + index.plus);
        for (dim, coef) in &index.terms {
            match plain.terms.iter_mut().find(|(known, _)| known == dim) {
                Some((_, sum)) => *sum += coef * term.coef,
                None => plain.terms.push((*dim, coef * term.coef)),
            }
        }
        false
    });
    plain.terms.retain(|(_, coef)| *coef != 0);
    if !plain.terms.is_empty() {
        access.terms.insert(0, Term { index: Position::Index(plain), coef: 1, range: None });
    }
}

/// The terms of an index.
type Terms = Vec<(Dim, i64)>;

/// How fast an index moves along a dimension.
pub(super) fn coef(index: &Index, dim: Dim) -> i64 {
    index.terms.iter().filter(|(term, _)| *term == dim).map(|(_, coef)| coef).sum()
}

fn indices(body: &[Stmt]) -> impl Iterator<Item = &Index> {
    body.iter().flat_map(|stmt| {
        let own = if let Stmt::Index { index, .. } = stmt { Some(index) } else { None };
        let terms = accesses(stmt).map_or(&[][..], |access| &access.terms[..]);
        own.into_iter().chain(terms.iter().filter_map(|term| match &term.index {
            Position::Index(index) => Some(index),
            Position::Value(_) => None,
        }))
    })
}

fn rewrite(body: &mut [Stmt], change: &dyn Fn(&mut Terms)) {
    for stmt in body {
        match stmt {
            Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. } => {
                for term in &mut access.terms {
                    if let Position::Index(index) = &mut term.index {
                        change(&mut index.terms);
                    }
                }
            }
            Stmt::Index { index, .. } => change(&mut index.terms),
            Stmt::Const { .. } | Stmt::Map { .. } | Stmt::Fold { .. } => {}
        }
    }
}

/// Makes strips of the values that now depend on the strip, and rows of those that do not.
fn rank(nest: &mut Nest) {
    let strip = nest.strip_dim();
    for stmt in &nest.body {
        let (val, on_strip) = match stmt {
            Stmt::Load { val, access, .. } => {
                let picked = access.terms.iter().any(|term| match &term.index {
                    Position::Value(value) => nest.vals[value.0 as usize].rank == Rank::Strip,
                    Position::Index(_) => false,
                });
                (val, picked || access.depends_on(strip))
            }
            Stmt::Index { val, index } => (val, index.depends_on(strip)),
            Stmt::Map { val, args, .. } => (val, args.iter().any(|arg| nest.vals[arg.0 as usize].rank == Rank::Strip)),
            Stmt::Const { val, .. } => (val, false),
            Stmt::Fold { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => continue,
        };
        nest.vals[val.0 as usize].rank = if on_strip { Rank::Strip } else { Rank::Row };
    }
}
