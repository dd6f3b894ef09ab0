//! Planes: tiles of 64 by 64 of the products, the body on each element in registers, and sums with other operands.
//!
//! What is left along the rows is one launch: a block has 64 rows and goes over the columns that they see, once for each fold
//! and once more for the sums. What is left along the columns is another, in which a block has 64 columns and goes over the rows;
//! folds come from the first through the workspace. Products are made again in each pass: the plane is never in memory. Planes of
//! 16-bit floats are worked on by tensor cores ([`deal`]).

mod deal;
mod factors;

use mdl_compiler::kernel::{FoldKind, Keeps, Kernel, Plane, PlaneOut, PlaneSide, ScalarOp, Stmt, ValId};
use mdl_graph::DType;

use super::body::{Body, joined};
use super::print::{Text, integer, stored, sum, value_type};
use super::scalar::{fold_name, neutral};
use super::tensor::{Side, multiplier};
use super::tile::{DEEP, SIDE, Staged, Walk, sum_type};
use super::{Spare, Unit};
use crate::jit::CompileError;
use crate::nest::{defined, used};
use deal::{Deal, product_in_floats, product_on_cores, sum_in_floats, sum_on_cores, width};
use factors::step;

/// Rows and columns of a tile.
const TILE: u64 = 64;
/// Columns of a result that a block sums at most: more are dealt to other blocks, which make the plane again.
const MOST_SUMMED: u64 = 128;

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, plane: &Plane) -> Result<(), CompileError> {
    let dims = plane.body_dims();
    let batch: u64 = plane.batch.iter().product();
    let rows = plane.n_rows();
    let is_f64 = plane.ins.iter().any(|one| unit.kernel.bufs[one.a.operand.buf.0 as usize].dtype == DType::F64);
    let mut level = vec![0; plane.vals.len()];
    for stmt in &plane.body {
        let ready = used(stmt).iter().map(|val| level[val.0 as usize]).max().unwrap_or(0);
        if let Some(val) = defined(stmt) {
            level[val.0 as usize] = ready + usize::from(matches!(stmt, Stmt::Fold { .. }));
        }
    }
    let by = |keeps: Keeps| plane.outs.iter().filter(|out| out.keeps == keeps).collect::<Vec<_>>();
    let (of_rows, of_columns) = (by(Keeps::Rows), by(Keeps::Columns));
    let folds: Vec<(ValId, FoldKind)> = plane
        .body
        .iter()
        .filter_map(|stmt| match stmt {
            Stmt::Fold { val, kind, .. } => Some((*val, *kind)),
            _ => None,
        })
        .collect();
    let mut spares = Vec::new();
    if !of_columns.is_empty() {
        for (val, _) in &folds {
            let dtype = plane.vals[val.0 as usize].dtype;
            spares.push(unit.spare(format!("fold{}", val.0), dtype, batch * rows));
        }
    }
    let seen = plane.seen(TILE, TILE);
    let whole = seen.iter().all(|range| *range == (0, plane.columns));
    let ty = sum_type(if is_f64 { DType::F64 } else { DType::F32 });
    let seen = (!whole).then_some(seen);
    let cores = on_tensor_cores(unit.kernel, plane);
    let how = if cores.is_some() { " on tensor cores" } else { "" };
    unit.describe(text, &format!("{batch} planes of {rows} x {}, in tiles of {TILE} x {TILE}{how}.", plane.columns));
    let launch = |keeps: Keeps| {
        let deal = match cores {
            Some((multiply, pack)) => Deal::on_tensor_cores(keeps, multiply, pack),
            None => Deal::in_floats(),
        };
        let body = named(unit.kernel, plane, &dims, &deal);
        let (level, folds, spares, seen) = (level.clone(), folds.clone(), spares.clone(), seen.clone());
        Planes { plane, body, deal, batch, rows, level, folds, spares, seen, ty }
    };
    let (rows, columns) = (launch(Keeps::Rows), launch(Keeps::Columns));
    rows.table(text, &unit.name);
    let stores = plane.body.iter().any(|stmt| matches!(stmt, Stmt::Store { .. }));
    if stores || !of_rows.is_empty() || !spares.is_empty() {
        rows.rows(text, unit, &of_rows);
    }
    if !of_columns.is_empty() {
        text.blank();
        columns.columns(text, unit, &of_columns);
    }
    Ok(())
}

/// What multiplies and what packs two numbers, if all factors are 16-bit floats of one dtype; a tile of the plane is one where it was
/// rounded to it.
fn on_tensor_cores(kernel: &Kernel, plane: &Plane) -> Option<(&'static str, &'static str)> {
    let of = |side: &PlaneSide| kernel.bufs[side.operand.buf.0 as usize].dtype;
    let dtype = of(&plane.ins.first()?.a);
    let is_rounded = |out: &PlaneOut| {
        let rounds = |stmt: &Stmt| matches!(stmt, Stmt::Map { val, op: ScalarOp::Round(to), .. } if *val == out.val && *to == dtype);
        of(&out.with) == dtype && plane.body.iter().any(rounds)
    };
    let is_all =
        plane.ins.iter().all(|one| of(&one.a) == dtype && of(&one.b) == dtype) && plane.outs.iter().all(is_rounded);
    let pack = if dtype == DType::BF16 { "pack_bf16" } else { "pack_f16" };
    multiplier(dtype).filter(|_| is_all).map(|multiply| (multiply, pack))
}

/// The body under the names of a launch: rows have arrays, and products are elements of arrays.
fn named<'a>(kernel: &'a Kernel, plane: &'a Plane, dims: &'a [u64], deal: &Deal) -> Body<'a> {
    let mut body = Body::new(kernel, dims, &plane.vals, &plane.body);
    let is_constant =
        |val: ValId| plane.body.iter().any(|stmt| matches!(stmt, Stmt::Const { val: own, .. } if *own == val));
    for (at, name) in body.names.iter_mut().enumerate() {
        let val = ValId(at as u32);
        if plane.vals[at].rank == mdl_compiler::kernel::Rank::Row && !is_constant(val) {
            name.push_str("[i]");
        }
    }
    for at in 0..plane.ins.len() {
        body.names[at] = format!("v{at}{}", deal.element);
    }
    body
}

/// What one launch computes.
struct Planes<'a> {
    plane: &'a Plane,
    body: Body<'a>,
    deal: Deal,
    batch: u64,
    rows: u64,
    /// Of each value, how many folds it waits for one after another.
    level: Vec<usize>,
    folds: Vec<(ValId, FoldKind)>,
    spares: Vec<Spare>,
    /// The columns that each tile of rows sees, where that is not all.
    seen: Option<Vec<(u64, u64)>>,
    ty: (&'static str, &'static str),
}

/// Columns of a result: what the blocks of one chunk sum, and how many chunks there are.
fn summed(outs: &[&PlaneOut]) -> (u64, u64) {
    let widest = outs.iter().map(|out| width(out)).max().unwrap_or(1);
    (widest.min(MOST_SUMMED).next_multiple_of(SIDE), widest.div_ceil(MOST_SUMMED).max(1))
}

impl Planes<'_> {
    fn table(&self, text: &mut Text, name: &str) {
        let Some(seen) = &self.seen else { return };
        text.line("// The columns that each tile of rows sees.");
        text.line(format!("__device__ const int {name}_seen[{}][2] = {{", seen.len()));
        for some in seen.chunks(8) {
            let some: Vec<String> = some.iter().map(|(lo, hi)| format!("{{{lo}, {hi}}}")).collect();
            text.line(format!("    {},", some.join(", ")));
        }
        text.line("};");
    }

    /// Declares what both launches have: tiles in shared memory, the thread's place, where operands begin.
    fn begin(&self, text: &mut Text, unit: &Unit<'_>, outs: &[&PlaneOut], grid: (&str, u64, u64), keeps: Keeps) {
        let (ty, _) = self.ty;
        let (along, tiles, chunks) = grid;
        let wide = summed(outs).0;
        let widest = TILE.max(wide);
        if self.deal.cores.is_some() {
            let (a, b) = self.pieces(unit.kernel, outs, keeps);
            text.line(format!("__shared__ __align__(16) unsigned short tile_a[{a}], tile_b[{b}];"));
        } else {
            text.line(format!("__shared__ {ty} tile_a[{DEEP}][{}], tile_b[{DEEP}][{}];", TILE + 1, widest + 1));
            if !outs.is_empty() {
                text.line(format!("__shared__ {ty} plane[{TILE}][{}];", TILE + 1));
            }
        }
        self.deal.place(text);
        let position = self.body.position_type();
        text.line(format!("const {position} {along} = blockIdx.x % {tiles} * {TILE};"));
        if chunks > 1 {
            text.line(format!("const {position} chunk = blockIdx.x / {tiles} % {chunks} * {MOST_SUMMED};"));
        }
        text.line(format!("const {position} batch = blockIdx.x / {};", tiles * chunks));
        for (at, one) in self.plane.ins.iter().enumerate() {
            for (side, of) in [("a", &one.a), ("b", &one.b)] {
                let start = sum(&self.side_batch(of).offset("batch"), of.operand.base);
                text.line(format!("const {position} start_{side}{at} = {start};"));
            }
        }
        for (at, out) in outs.iter().enumerate() {
            let start = sum(&self.side_batch(&out.with).offset("batch"), out.with.operand.base);
            text.line(format!("const {position} start_with{at} = {start};"));
            text.line(format!("{ty} sum{at}{} = {{}};", self.deal.sums(wide).array));
        }
        self.body.unflatten(text, "batch", 0..self.plane.batch.len());
    }

    /// The products of a tile, `v0[i][j]`.
    fn products(&self, text: &mut Text, unit: &Unit<'_>, needed: &[bool], keeps: Keeps) {
        for (at, one) in self.plane.ins.iter().enumerate().filter(|(at, _)| needed[*at]) {
            let walks = self.factors(one);
            text.line(format!("{} v{at}{} = {{}};", self.ty.0, self.deal.array));
            if self.deal.cores.is_some() {
                let sides = self.sides(unit.kernel, at, &walks, keeps);
                product_on_cores(text, &self.deal, [&sides[0], &sides[1]], step(one), &format!("v{at}"));
                continue;
            }
            let (start_a, start_b) = (format!("start_a{at}"), format!("start_b{at}"));
            let staged = |name, side: &PlaneSide, start, along, deep, first| Staged {
                name,
                buf: side.operand.buf.0 as usize,
                start,
                along,
                deep,
                width: TILE,
                first,
                first_deep: "k0",
                end_deep: walks.deep_a.count(),
                step_deep: DEEP,
            };
            let a = staged("tile_a", &one.a, &start_a, &walks.rows, &walks.deep_a, "r0");
            let b = staged("tile_b", &one.b, &start_b, &walks.columns, &walks.deep_b, "c0");
            product_in_floats(text, unit.kernel, self.ty, [&a, &b], &format!("v{at}"));
        }
    }

    /// A loop over a thread's rows, with the dimensions of each.
    fn each_row(&self, text: &mut Text, inside: impl FnOnce(&mut Text)) {
        let n_batch = self.plane.batch.len();
        text.line("#pragma unroll");
        text.open(format!("for (int i = 0; i < {}; i++)", self.deal.rows));
        text.line(format!("const {} row = r0 + {};", self.body.position_type(), self.deal.row));
        if !self.rows.is_multiple_of(TILE) {
            text.line(format!("if (row >= {}) continue;", self.rows));
        }
        self.body.unflatten(text, "row", n_batch..n_batch + self.plane.rows.len());
        inside(text);
        text.close();
    }

    fn declare_rows(&self, text: &mut Text) {
        for stmt in &self.plane.body {
            if let Some(val) = defined(stmt)
                && self.body.name(val).ends_with("[i]")
            {
                text.line(format!("{} v{}[{}];", value_type(self.body.val(val).dtype), val.0, self.deal.rows));
            }
        }
    }

    /// The values that a row has in common and that wait for these folds.
    fn row_values(&self, text: &mut Text, when: impl Fn(usize) -> bool) {
        let stmts: Vec<&Stmt> = self.plane.body.iter().filter(|stmt| self.is_row(stmt, &when)).collect();
        if stmts.is_empty() {
            return;
        }
        self.each_row(text, |text| stmts.iter().for_each(|stmt| self.body.define(text, stmt)));
    }

    fn is_row(&self, stmt: &Stmt, when: impl Fn(usize) -> bool) -> bool {
        let plain = !matches!(stmt, Stmt::Fold { .. } | Stmt::Const { .. });
        plain && defined(stmt).is_some_and(|val| !self.body.is_strip(val) && when(self.level[val.0 as usize]))
    }

    /// What these values of the strip need, values along the strip alone; and which products.
    fn along(&self, wanted: &[ValId]) -> (Vec<&Stmt>, Vec<bool>) {
        let mut values = vec![false; self.plane.vals.len()];
        wanted.iter().for_each(|val| values[val.0 as usize] = true);
        let mut stmts = Vec::new();
        for stmt in self.plane.body.iter().rev() {
            if let Some(val) = defined(stmt)
                && values[val.0 as usize]
                && self.body.is_strip(val)
            {
                used(stmt).iter().for_each(|val| values[val.0 as usize] = true);
                stmts.push(stmt);
            }
        }
        stmts.reverse();
        (stmts, values[..self.plane.ins.len()].to_vec())
    }

    /// A loop over the elements of a tile that a thread has.
    fn each_element(&self, text: &mut Text, stmts: &[&Stmt], inside: impl FnOnce(&mut Text)) {
        let strip = self.body.strip_dim().0;
        self.each_row(text, |text| {
            text.line("#pragma unroll");
            text.open(format!("for (int j = 0; j < {}; j++)", self.deal.columns));
            text.line(format!("const {} d{strip} = c0 + {};", self.body.position_type(), self.deal.column));
            if !self.plane.columns.is_multiple_of(TILE) {
                text.line(format!("if (d{strip} >= {}) continue;", self.plane.columns));
            }
            stmts.iter().for_each(|stmt| self.body.define(text, stmt));
            inside(text);
            text.close();
        });
    }

    fn over_columns(&self, text: &mut Text, name: &str) {
        let position = self.body.position_type();
        match &self.seen {
            Some(_) => text.open(format!(
                "for ({position} c0 = {name}_seen[r0 / {TILE}][0]; c0 < {name}_seen[r0 / {TILE}][1]; c0 += {TILE})"
            )),
            None => text.open(format!("for ({position} c0 = 0; c0 < {}; c0 += {TILE})", self.plane.columns)),
        }
    }

    fn rows(&self, text: &mut Text, unit: &mut Unit<'_>, outs: &[&PlaneOut]) {
        let (tiles, (wide, chunks)) = (self.rows.div_ceil(TILE), summed(outs));
        let spares: Vec<(&Spare, bool)> = self.spares.iter().map(|spare| (spare, true)).collect();
        let bufs: Vec<usize> = (0..unit.kernel.bufs.len()).filter(|at| self.touches(*at, outs)).collect();
        unit.threads_at_once = self.deal.at_once;
        unit.open(text, "_rows", (self.batch * tiles * chunks, self.deal.threads), &bufs, &spares);
        self.begin(text, unit, outs, ("r0", tiles, chunks), Keeps::Rows);
        self.declare_rows(text);
        let last = self.folds.iter().map(|(val, _)| self.level[val.0 as usize]).max().unwrap_or(0);
        for pass in 0..last {
            self.row_values(text, |level| level == pass);
            let folds: Vec<(ValId, FoldKind, ValId)> = self
                .plane
                .body
                .iter()
                .filter_map(|stmt| match stmt {
                    Stmt::Fold { val, kind, from } if self.level[val.0 as usize] == pass + 1 => {
                        Some((*val, *kind, *from))
                    }
                    _ => None,
                })
                .collect();
            let wanted: Vec<ValId> = folds.iter().map(|(.., from)| *from).collect();
            let (stmts, needed) = self.along(&wanted);
            for (val, kind, _) in &folds {
                let none = neutral(*kind, self.body.val(*val).dtype);
                text.line(format!("for (int i = 0; i < {}; i++) v{}[i] = {none};", self.deal.rows, val.0));
            }
            self.over_columns(text, &unit.name);
            self.products(text, unit, &needed, Keeps::Rows);
            self.each_element(text, &stmts, |text| {
                for (val, kind, from) in &folds {
                    text.line(joined(
                        *kind,
                        self.body.val(*val).dtype,
                        &format!("v{}[i]", val.0),
                        self.body.name(*from),
                    ));
                }
            });
            text.close();
            for (val, kind, _) in &folds {
                let fold = fold_name(*kind);
                text.line(format!(
                    "for (int i = 0; i < {1}; i++) v{0}[i] = over_lanes<{fold}, {2}>(v{0}[i]);",
                    val.0, self.deal.rows, self.deal.lanes
                ));
            }
        }
        self.row_values(text, |level| level >= last);
        if !outs.is_empty() {
            self.over_columns(text, &unit.name);
            self.tile_of_sums(text, unit, outs, Keeps::Rows, (wide, chunks));
            text.close();
            self.store_sums(text, unit, outs, Keeps::Rows, (wide, chunks));
        }
        // One thread of each row stores what the row has in common.
        let is_first = self.deal.is_first;
        text.line(if chunks > 1 {
            format!("if (!({is_first} && chunk == 0)) return;")
        } else {
            format!("if (!({is_first})) return;")
        });
        self.each_row(text, |text| {
            for stmt in &self.plane.body {
                if let Stmt::Store { buf, access, val } = stmt {
                    self.body.store(text, *buf, access, *val, None);
                }
            }
            for (spare, (val, _)) in self.spares.iter().zip(&self.folds) {
                text.line(format!("{}[batch * {} + row] = v{}[i];", spare.name, self.rows, val.0));
            }
        });
        text.close();
    }

    fn columns(&self, text: &mut Text, unit: &mut Unit<'_>, outs: &[&PlaneOut]) {
        let (tiles, (wide, chunks)) = (self.plane.columns.div_ceil(TILE), summed(outs));
        let spares: Vec<(&Spare, bool)> = self.spares.iter().map(|spare| (spare, false)).collect();
        let bufs: Vec<usize> = (0..unit.kernel.bufs.len()).filter(|at| self.touches(*at, outs)).collect();
        unit.threads_at_once = self.deal.at_once;
        unit.open(text, "_columns", (self.batch * tiles * chunks, self.deal.threads), &bufs, &spares);
        self.begin(text, unit, outs, ("c0", tiles, chunks), Keeps::Columns);
        text.open(format!("for ({} r0 = 0; r0 < {}; r0 += {TILE})", self.body.position_type(), self.rows));
        if self.seen.is_some() {
            let range = format!("{}_seen[r0 / {TILE}]", unit.name);
            text.line(format!("if (c0 + {TILE} <= {range}[0] || c0 >= {range}[1]) continue;"));
        }
        self.declare_rows(text);
        if !self.folds.is_empty() {
            self.each_row(text, |text| {
                for (spare, (val, _)) in self.spares.iter().zip(&self.folds) {
                    text.line(format!("v{}[i] = {}[batch * {} + row];", val.0, spare.name, self.rows));
                }
            });
        }
        self.row_values(text, |_| true);
        self.tile_of_sums(text, unit, outs, Keeps::Columns, (wide, chunks));
        text.close();
        self.store_sums(text, unit, outs, Keeps::Columns, (wide, chunks));
        text.close();
    }

    /// Whether a launch that sums these touches a buffer.
    fn touches(&self, at: usize, outs: &[&PlaneOut]) -> bool {
        let keeps_rows = outs.iter().all(|out| out.keeps == Keeps::Rows);
        let is = |side: &PlaneSide| side.operand.buf.0 as usize == at;
        self.plane.ins.iter().any(|one| is(&one.a) || is(&one.b))
            || outs.iter().any(|out| is(&out.with) || is(&out.out))
            || self.plane.body.iter().any(|stmt| match stmt {
                Stmt::Load { buf, .. } => buf.0 as usize == at,
                Stmt::Store { buf, .. } => keeps_rows && buf.0 as usize == at,
                _ => false,
            })
    }

    /// Adds a tile of the plane to the sums.
    fn tile_of_sums(
        &self,
        text: &mut Text,
        unit: &Unit<'_>,
        outs: &[&PlaneOut],
        keeps: Keeps,
        (wide, chunks): (u64, u64),
    ) {
        let wanted: Vec<ValId> = outs.iter().map(|out| out.val).collect();
        let (stmts, needed) = self.along(&wanted);
        self.products(text, unit, &needed, keeps);
        for at in 0..outs.len() {
            text.line(format!("{} p{at}{} = {{}};", self.ty.0, self.deal.array));
        }
        self.each_element(text, &stmts, |text| {
            for (at, out) in outs.iter().enumerate() {
                text.line(format!("p{at}{} = {};", self.deal.element, self.body.name(out.val)));
            }
        });
        let first = if chunks > 1 { "chunk" } else { "0" };
        for (at, out) in outs.iter().enumerate() {
            let (n, along, batch) = self.with(out);
            let (start, plane, into) = (format!("start_with{at}"), format!("p{at}"), format!("sum{at}"));
            let tile = if keeps == Keeps::Rows { "c0" } else { "r0" };
            if self.deal.cores.is_some() {
                let names = [&start[..], first, tile];
                let side = Side::new(unit.kernel, out.with.operand, (&n, &along, &batch), (wide, TILE), names);
                sum_on_cores(text, &self.deal, &plane, &side, wide, &into);
                continue;
            }
            let right = Staged {
                name: "tile_b",
                buf: out.with.operand.buf.0 as usize,
                start: &start,
                along: &n,
                deep: &along,
                width: wide,
                first,
                first_deep: &format!("{tile} + s0"),
                end_deep: along.count(),
                step_deep: TILE,
            };
            sum_in_floats(text, unit.kernel, self.ty, keeps, &plane, &right, &into);
        }
    }

    fn store_sums(
        &self,
        text: &mut Text,
        unit: &Unit<'_>,
        outs: &[&PlaneOut],
        keeps: Keeps,
        (wide, chunks): (u64, u64),
    ) {
        let position = self.body.position_type();
        let (first, end) = match keeps {
            Keeps::Rows => ("r0", self.rows),
            Keeps::Columns => ("c0", self.plane.columns),
        };
        let Deal { rows, row, columns, column, element, .. } = self.deal.sums(wide);
        text.line("#pragma unroll");
        text.open(format!("for (int i = 0; i < {rows}; i++)"));
        text.line(format!("const {position} at = {first} + {row};"));
        if !end.is_multiple_of(TILE) {
            text.line(format!("if (at >= {end}) break;"));
        }
        for (number, out) in outs.iter().enumerate() {
            let n = width(out);
            let mut terms = self.side_batch(&out.out).offset("batch");
            terms.extend(self.side_along(&out.out, keeps).offset("at"));
            terms.extend(Walk::new(out.n.iter().map(|dim| (dim.extent, dim.out))).offset("n"));
            let buf = out.out.operand.buf.0 as usize;
            let value = stored(unit.kernel.bufs[buf].dtype, &format!("sum{number}{element}"));
            text.line("#pragma unroll");
            text.open(format!("for (int j = 0; j < {columns}; j++)"));
            let start = if chunks > 1 { "chunk + " } else { "" };
            text.line(format!("const {position} n = {start}{column};"));
            let line = format!("b{buf}[{}] = {value};", sum(&terms, out.out.operand.base));
            let bounded = n != wide * chunks || chunks > 1;
            text.line(if bounded { format!("if (n < {}) {line}", integer(n as i64)) } else { line });
            text.close();
        }
        text.close();
    }
}
