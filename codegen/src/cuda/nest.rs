//! Elementwise nests: a thread for each element. Nests with folds or exits are rows.

use mdl_compiler::kernel::{Access, Index, Nest, Position, Rank, Role, Stmt, ValId};

use super::body::{Body, flat_thread};
use super::print::Text;
use super::{THREADS, Unit, rows};
use crate::jit::CompileError;
use crate::nest::normal;

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, nest: &Nest) -> Result<(), CompileError> {
    for (at, buf) in unit.kernel.bufs.iter().enumerate() {
        let of = |stmt: &Stmt| match stmt {
            Stmt::Load { buf, .. } => (buf.0 as usize == at, false),
            Stmt::Store { buf, .. } | Stmt::Exit { buf, .. } => (false, buf.0 as usize == at),
            _ => (false, false),
        };
        let mut after = nest.body.iter().skip_while(|stmt| !of(stmt).1);
        if buf.role == Role::Update && after.any(|stmt| of(stmt).0) {
            let what = format!("kernel {} reads of `{}` what it has stored there", unit.kernel.name, buf.name);
            return Err(CompileError(what));
        }
    }
    let nest = without_strip(without_positions(normal(nest)));
    if nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. })) {
        rows::print(text, unit, &nest);
    } else {
        elementwise(text, unit, &nest);
    }
    Ok(())
}

/// Of a strip without positions nothing is stored but what a row has in common.
fn without_positions(mut nest: Nest) -> Nest {
    let whole = |stmt: &Stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. });
    if nest.strip != 0 || nest.body.iter().any(whole) {
        return nest;
    }
    let (strip, vals) = (nest.strip_dim(), &nest.vals);
    nest.body.retain(|stmt| match stmt {
        Stmt::Store { access, val, .. } => vals[val.0 as usize].rank == Rank::Row && !access.depends_on(strip),
        _ => true,
    });
    nest.strip = 1;
    nest
}

/// A strip of one position is none: its values are a row's, and a fold of it is what it folds.
fn without_strip(mut nest: Nest) -> Nest {
    if nest.strip != 1 {
        return nest;
    }
    nest.vals.iter_mut().for_each(|val| val.rank = Rank::Row);
    let strip = nest.strip_dim();
    let still = |index: &mut Index| index.terms.retain(|(dim, _)| *dim != strip);
    for stmt in &mut nest.body {
        match stmt {
            Stmt::Index { index, .. } => still(index),
            Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. } => {
                for term in &mut access.terms {
                    if let Position::Index(index) = &mut term.index {
                        still(index);
                    }
                }
            }
            Stmt::Const { .. } | Stmt::Map { .. } | Stmt::Fold { .. } => {}
        }
    }
    let mut same: Vec<ValId> = (0..nest.vals.len() as u32).map(ValId).collect();
    for stmt in &mut nest.body {
        match stmt {
            Stmt::Fold { val, from, .. } => same[val.0 as usize] = same[from.0 as usize],
            Stmt::Map { args, .. } => args.iter_mut().for_each(|arg| *arg = same[arg.0 as usize]),
            Stmt::Load { access, .. } => rename(access, &same),
            Stmt::Store { val, access, .. } | Stmt::Exit { val, access, .. } => {
                *val = same[val.0 as usize];
                rename(access, &same);
            }
            Stmt::Const { .. } | Stmt::Index { .. } => {}
        }
    }
    nest.body.retain(|stmt| !matches!(stmt, Stmt::Fold { .. }));
    nest
}

fn rename(access: &mut Access, same: &[ValId]) {
    for term in &mut access.terms {
        if let Position::Value(val) = &mut term.index {
            *val = same[val.0 as usize];
        }
    }
}

fn elementwise(text: &mut Text, unit: &mut Unit<'_>, nest: &Nest) {
    let mut dims = nest.grid.clone();
    dims.push(nest.strip);
    let total: u64 = dims.iter().product();
    unit.describe(text, &format!("a thread for each of {total} elements."));
    let kernel = unit.kernel;
    let body = Body::new(kernel, &dims, &nest.vals, &nest.body);
    let bufs = unit.all_bufs();
    unit.open(text, "", (total.div_ceil(THREADS), THREADS), &bufs, &[]);
    flat_thread(text, body.position_type(), THREADS, total);
    body.unflatten(text, "i", 0..dims.len());
    let needed = body.needed(&[]);
    for (stmt, _) in nest.body.iter().zip(needed).filter(|(_, needed)| *needed) {
        match stmt {
            Stmt::Store { buf, access, val } => body.store_once(text, *buf, access, *val),
            _ => body.define(text, stmt),
        }
    }
    text.close();
}
