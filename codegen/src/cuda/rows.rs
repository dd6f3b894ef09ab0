//! Nests whose strips are folded, or that leave sums over rows: a team of threads for each row.
//!
//! The statements are divided into *passes* over the strip: a fold ends one. Values that a later pass needs stay in registers
//! where they fit, else they are made again. All stores along the strip are in the last pass, so that a result may have the place
//! of an operand. With exits, a team goes through many rows and keeps sums, which a second launch adds up in order.

use mdl_compiler::kernel::{Access, BufId, FoldKind, Nest, Stmt, ValId};

use super::body::{Body, flat_thread, joined};
use super::print::{Text, integer, unflatten, value_type};
use super::scalar::{fold_name, neutral};
use super::{BLOCKS, Spare, THREADS, Unit};
use crate::nest::{defined, used};

/// The fewest rows that are worth a partial result.
const ROWS_EACH: u64 = 8;

/// Who works on what.
#[derive(Clone, Copy)]
struct Shape {
    /// Threads on a row, and rows in a block at once.
    team: u64,
    teams: u64,
    /// Numbers of the strip that a thread has; in registers if `kept`.
    each: u64,
    kept: bool,
    /// Pieces of the strip, each with blocks of its own: only where nothing is folded.
    tiles: u64,
    /// Rows: those that exits keep apart, those that they add up, and the blocks that share these.
    keep: u64,
    reduced: u64,
    chunks: u64,
}

impl Shape {
    fn threads(&self) -> u64 {
        self.team * self.teams
    }
}

/// When each statement runs.
struct Passes {
    /// The pass of a strip's statement, or the passes after which a row's statement can be.
    at: Vec<Option<usize>>,
    /// The last pass over the strip.
    last: usize,
    /// Of each value, the passes that must have ended.
    level: Vec<usize>,
}

struct Exit<'a> {
    buf: BufId,
    access: &'a Access,
    kind: FoldKind,
    val: ValId,
    strip: bool,
    spare: Spare,
    /// The place of one partial result.
    width: u64,
}

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, nest: &Nest) {
    let mut dims = nest.grid.clone();
    dims.push(nest.strip);
    let mut body = Body::new(unit.kernel, &dims, &nest.vals, &nest.body);
    let passes = Passes::of(&body);
    let shape = shape(nest, &body, &passes);
    if shape.kept {
        for (at, name) in body.names.iter_mut().enumerate() {
            if crosses(nest, &passes, ValId(at as u32)) {
                name.push_str("[e]");
            }
        }
    }
    let n_partial = |strip: bool| if strip { shape.chunks * shape.teams } else { shape.chunks };
    let mut exits = Vec::new();
    for stmt in &nest.body {
        let Stmt::Exit { buf, access, kind, val } = stmt else { continue };
        let strip = body.is_strip(*val);
        let (width, dtype) = (if strip { nest.strip } else { 1 }, body.val(*val).dtype);
        let spare = unit.spare(format!("part{}", exits.len()), dtype, shape.keep * n_partial(strip) * width);
        exits.push(Exit { buf: *buf, access, kind: *kind, val: *val, strip, spare, width });
    }
    // Sums of long folded strips do not fit registers: they grow where they are handed on.
    let grown = exits.iter().any(|exit| exit.strip) && !shape.kept;
    Rows { body, passes, shape, exits, nest, grown }.print(text, unit);
}

/// A value of the strip that a later pass than its own reads.
fn crosses(nest: &Nest, passes: &Passes, val: ValId) -> bool {
    let made = nest.body.iter().position(|stmt| defined(stmt) == Some(val)).and_then(|at| passes.at[at]);
    let Some(made) = made else { return false };
    if nest.vals[val.0 as usize].rank != mdl_compiler::kernel::Rank::Strip {
        return false;
    }
    let mut readers = nest.body.iter().zip(&passes.at).filter(|(stmt, _)| used(stmt).contains(&val));
    readers.any(|(_, at)| at.is_some_and(|at| at > made))
}

impl Passes {
    fn of(body: &Body<'_>) -> Passes {
        let mut level = vec![0usize; body.vals.len()];
        let mut last = 0;
        for stmt in body.stmts {
            let ready = used(stmt).iter().map(|val| level[val.0 as usize]).max().unwrap_or(0);
            match stmt {
                Stmt::Fold { val, .. } => {
                    level[val.0 as usize] = ready + 1;
                    last = last.max(ready);
                }
                Stmt::Store { access, val, .. } => {
                    if body.is_strip(*val) || body.moves(access) {
                        last = last.max(ready);
                    }
                }
                Stmt::Exit { val, .. } => {
                    if body.is_strip(*val) {
                        last = last.max(ready);
                    }
                }
                _ => {
                    if let Some(val) = defined(stmt) {
                        level[val.0 as usize] = ready;
                    }
                }
            }
        }
        // From the last: a value of the strip is made when it is first needed.
        let mut needed: Vec<Option<usize>> = vec![None; body.vals.len()];
        let mut at = vec![None; body.stmts.len()];
        for (number, stmt) in body.stmts.iter().enumerate().rev() {
            let ready = used(stmt).iter().map(|val| level[val.0 as usize]).max().unwrap_or(0);
            let when = match stmt {
                Stmt::Store { access, val, .. } if body.is_strip(*val) || body.moves(access) => Some(last),
                Stmt::Store { .. } | Stmt::Exit { .. } => Some(ready),
                Stmt::Fold { val, .. } => needed[val.0 as usize].map(|_| ready),
                _ => defined(stmt).and_then(|val| {
                    let strip = body.is_strip(val);
                    needed[val.0 as usize].map(|needed| if strip { needed.max(ready) } else { ready })
                }),
            };
            at[number] = when;
            if let Some(when) = when {
                for val in used(stmt) {
                    let slot = &mut needed[val.0 as usize];
                    *slot = Some(slot.map_or(when, |known| known.min(when)));
                }
            }
        }
        Passes { at, last, level }
    }
}

fn shape(nest: &Nest, body: &Body<'_>, passes: &Passes) -> Shape {
    let folds = nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. }));
    let exits = nest.has_exits();
    let n = nest.strip.max(1);
    let team = match (folds, n) {
        (false, 1) if nest.strip == 1 => 1,
        (true, ..=256) => 32,
        (true, ..=1024) => 128,
        (true, ..=2048) => 256,
        (true, ..=4096) => 512,
        (true, _) => 1024,
        (false, _) => n.next_power_of_two().clamp(32, THREADS),
    };
    // A fold of more than a warp joins a whole block.
    let teams = if folds && team > 32 { 1 } else { (THREADS / team).max(1) };
    let tiles = if folds { 1 } else { n.div_ceil(team) };
    let each = n.div_ceil(team * tiles);
    // Registers that values across passes and sums take, in words.
    let words = |val: ValId| if body.val(val).dtype.size_bytes() == 8 { 2 } else { 1 };
    let crossing = (0..nest.vals.len() as u32).map(ValId).filter(|val| crosses(nest, passes, *val)).map(words);
    let leaving = nest.body.iter().filter_map(|stmt| match stmt {
        Stmt::Exit { val, .. } if body.is_strip(*val) => Some(words(*val)),
        _ => None,
    });
    let words: u64 = crossing.chain(leaving).sum();
    let registers = (65_536 / (team * teams).max(THREADS)).min(255) - 40;
    let kept = each <= 16 && words * each <= registers;
    let keep: u64 = nest.grid[..nest.keep].iter().product();
    let reduced: u64 = nest.grid[nest.keep..].iter().product();
    let (keep, reduced, chunks) = if exits {
        let wanted = BLOCKS / (keep * tiles).clamp(1, BLOCKS);
        (keep, reduced, wanted.min(reduced / (teams * ROWS_EACH)).max(1))
    } else {
        (keep * reduced, 1, 1)
    };
    Shape { team, teams, each, kept, tiles, keep, reduced, chunks }
}

struct Rows<'a> {
    body: Body<'a>,
    passes: Passes,
    shape: Shape,
    exits: Vec<Exit<'a>>,
    nest: &'a Nest,
    /// Exits of the strip are kept in the workspace.
    grown: bool,
}

impl Rows<'_> {
    fn print(&self, text: &mut Text, unit: &mut Unit<'_>) {
        let Shape { team, teams, tiles, keep, chunks, .. } = self.shape;
        let rows: u64 = self.nest.grid.iter().product();
        let who = match team {
            1 => "a thread".to_string(),
            32 => "a warp".to_string(),
            _ => format!("{team} threads"),
        };
        let sums = if self.exits.is_empty() { "" } else { ", sums over rows in parts" };
        unit.describe(text, &format!("{who} for each of {rows} rows of {}{sums}.", self.nest.strip));
        let bufs = self.bufs_of_first();
        let exits: Vec<(&Spare, bool)> = self.exits.iter().map(|exit| (&exit.spare, true)).collect();
        let blocks = if self.exits.is_empty() { keep.div_ceil(teams) } else { keep * chunks * tiles };
        unit.open(text, "", (blocks, self.shape.threads()), &bufs, &exits);
        text.line(match (team, teams) {
            (1, _) => "const int team = threadIdx.x;".to_string(),
            (_, 1) => "const int lane = threadIdx.x;".to_string(),
            _ => format!("const int lane = threadIdx.x % {team}, team = threadIdx.x / {team};"),
        });
        if self.exits.is_empty() {
            self.each_row(text);
        } else {
            self.many_rows(text);
        }
        text.close();
        for exit in &self.exits {
            self.combine(text, unit, exit);
        }
    }

    /// The buffers that the first launch touches: exits are stored by the second.
    fn bufs_of_first(&self) -> Vec<usize> {
        let touched = |at: usize| {
            self.nest.body.iter().any(|stmt| match stmt {
                Stmt::Load { buf, .. } | Stmt::Store { buf, .. } => buf.0 as usize == at,
                _ => false,
            })
        };
        (0..self.body.kernel.bufs.len()).filter(|at| touched(*at)).collect()
    }

    fn each_row(&self, text: &mut Text) {
        let (ty, Shape { teams, keep, .. }) = (self.body.position_type(), self.shape);
        match (teams, keep) {
            (1, 1) => {}
            (1, _) => text.line(format!("const {ty} row = blockIdx.x;")),
            _ => text.line(format!("const {ty} row = ({ty})blockIdx.x * {teams} + team;")),
        }
        if !keep.is_multiple_of(teams) {
            text.line(format!("if (row >= {}) return;", integer(keep as i64)));
        }
        self.body.unflatten(text, "row", 0..self.nest.grid.len());
        self.row(text);
    }

    fn many_rows(&self, text: &mut Text) {
        let (ty, Shape { team, teams, each, tiles, reduced, chunks, .. }) = (self.body.position_type(), self.shape);
        let mut rest = "blockIdx.x".to_string();
        for (name, extent) in [("tile", tiles), ("chunk", chunks)] {
            if extent > 1 {
                text.line(format!("const int {name} = {rest} % {extent};"));
                rest = format!("{rest} / {extent}");
            }
        }
        text.line(format!("const int kept = {rest};"));
        self.body.unflatten(text, "kept", 0..self.nest.keep);
        let (first, step) = match (teams, chunks) {
            (1, 1) => ("0".to_string(), 1),
            (1, _) => ("chunk".to_string(), chunks),
            (_, 1) => ("team".to_string(), teams),
            _ => (format!("chunk * {teams} + team"), chunks * teams),
        };
        for (at, exit) in self.exits.iter().enumerate() {
            let (dtype, none) = (self.body.val(exit.val).dtype, neutral(exit.kind, self.body.val(exit.val).dtype));
            let ty = value_type(dtype);
            if !exit.strip {
                text.line(format!("{ty} sum{at} = {none};"));
            } else if self.grown {
                self.along(text, |text| text.line(format!("{} = {none};", self.part(at, exit))));
            } else if exit.kind == FoldKind::Sum {
                text.line(format!("{ty} sum{at}[{each}] = {{}};"));
            } else {
                text.line(format!("{ty} sum{at}[{each}];"));
                text.line("#pragma unroll");
                text.line(format!("for (int e = 0; e < {each}; e++) sum{at}[e] = {none};"));
            }
        }
        text.open(format!("for ({ty} row = {first}; row < {}; row += {step})", integer(reduced as i64)));
        self.body.unflatten(text, "row", self.nest.keep..self.nest.grid.len());
        self.row(text);
        text.close();
        for (at, exit) in self.exits.iter().enumerate() {
            if exit.strip && !self.grown {
                self.along(text, |text| text.line(format!("{} = sum{at}[e];", self.part(at, exit))));
            } else if !exit.strip {
                // One of each team has its sum.
                let none = neutral(exit.kind, self.body.val(exit.val).dtype);
                let own = if team == 1 { format!("sum{at}") } else { format!("lane == 0 ? sum{at} : {none}") };
                let warps = self.shape.threads() / 32;
                text.line(format!("sum{at} = over_block<{}, {warps}>({own});", fold_name(exit.kind)));
                let place = if chunks > 1 { format!("kept * {chunks} + chunk") } else { "kept".into() };
                let first = if tiles > 1 { "threadIdx.x == 0 && tile == 0" } else { "threadIdx.x == 0" };
                text.line(format!("if ({first}) {}[{place}] = sum{at};", exit.spare.name));
            }
        }
    }

    /// The place of an exit's partial result at this position of the strip.
    fn part(&self, at: usize, exit: &Exit<'_>) -> String {
        let Shape { teams, chunks, .. } = self.shape;
        let strip = self.body.strip_dim().0;
        let team = match (teams, chunks) {
            (1, 1) => "kept".to_string(),
            (1, _) => format!("(kept * {chunks} + chunk)"),
            (_, 1) => format!("(kept * {teams} + team)"),
            _ => format!("((kept * {chunks} + chunk) * {teams} + team)"),
        };
        let wide = if self.body.position_type() == "int" { "" } else { "(long long)" };
        format!("part{at}[{wide}{team} * {} + d{strip}]", exit.width)
    }

    /// A loop of a thread over its numbers of the strip.
    fn along(&self, text: &mut Text, inside: impl FnOnce(&mut Text)) {
        let Shape { team, each, kept, tiles, .. } = self.shape;
        let (strip, n) = (self.body.strip_dim().0, self.nest.strip);
        let ty = self.body.position_type();
        if !kept {
            text.open(format!("for ({ty} d{strip} = lane; d{strip} < {n}; d{strip} += {team})"));
            inside(text);
            text.close();
            return;
        }
        let mut place = match (tiles, team * each) {
            (1, _) => "lane".to_string(),
            (_, width) => format!("tile * {width} + lane"),
        };
        let is_one = each == 1;
        if is_one {
            text.open("".to_string() + "for (int e = 0; e < 1; e++)");
        } else {
            text.line("#pragma unroll");
            text.open(format!("for (int e = 0; e < {each}; e++)"));
            place.push_str(&format!(" + {team} * e"));
        }
        text.line(format!("const {ty} d{strip} = {place};"));
        if n != team * each * tiles {
            text.line(format!("if (d{strip} >= {n}) continue;"));
        }
        inside(text);
        text.close();
    }

    /// All passes over one row.
    fn row(&self, text: &mut Text) {
        let body = &self.body;
        for (at, stmt) in body.stmts.iter().enumerate() {
            if let (Some(val), Some(_)) = (defined(stmt), self.passes.at[at])
                && body.name(val).contains('[')
            {
                let ty = value_type(body.val(val).dtype);
                text.line(format!("{ty} v{}[{}];", val.0, self.shape.each));
            }
        }
        for pass in 0..=self.passes.last {
            self.row_values(text, |level| level == pass);
            self.pass(text, pass);
        }
        self.row_values(text, |level| level > self.passes.last);
        let mut waits = self.overwrites();
        for stmt in body.stmts {
            match stmt {
                Stmt::Store { buf, access, val } if !body.is_strip(*val) && !body.moves(access) => {
                    if std::mem::take(&mut waits) {
                        text.line(if self.shape.team > 32 { "__syncthreads();" } else { "__syncwarp();" });
                    }
                    let only = if self.shape.tiles > 1 { "lane == 0 && tile == 0" } else { "lane == 0" };
                    body.store(text, *buf, access, *val, (self.shape.team > 1).then_some(only));
                }
                _ => {}
            }
        }
        for (at, exit) in self.exits.iter().enumerate().filter(|(_, exit)| !exit.strip) {
            text.line(joined(exit.kind, body.val(exit.val).dtype, &format!("sum{at}"), body.name(exit.val)));
        }
    }

    /// Whether what a row has in common may be stored over what other threads of its team have still to read.
    fn overwrites(&self) -> bool {
        let kernel = self.body.kernel;
        let loads = self.body.stmts.iter().filter_map(|stmt| match stmt {
            Stmt::Load { buf, .. } => Some(*buf),
            _ => None,
        });
        let stores = || {
            self.body.stmts.iter().filter_map(|stmt| match stmt {
                Stmt::Store { buf, val, .. } if !self.body.is_strip(*val) => Some(*buf),
                _ => None,
            })
        };
        self.shape.team > 1 && loads.into_iter().any(|from| stores().any(|to| kernel.may_overwrite(from, to)))
    }

    fn row_values(&self, text: &mut Text, when: impl Fn(usize) -> bool) {
        for (stmt, at) in self.body.stmts.iter().zip(&self.passes.at) {
            let Some(val) = defined(stmt).filter(|val| !self.is_along(*val)) else { continue };
            if at.is_some() && !matches!(stmt, Stmt::Fold { .. }) && when(self.passes.level[val.0 as usize]) {
                self.body.define(text, stmt);
            }
        }
    }

    fn is_along(&self, val: ValId) -> bool {
        self.body.is_strip(val)
    }

    fn pass(&self, text: &mut Text, pass: usize) {
        let body = &self.body;
        let stmts: Vec<usize> = if self.shape.kept { self.planned(pass) } else { self.again(pass) };
        let folds: Vec<(ValId, FoldKind, ValId)> = body
            .stmts
            .iter()
            .zip(&self.passes.at)
            .filter_map(|(stmt, at)| match stmt {
                Stmt::Fold { val, kind, from } if *at == Some(pass) => Some((*val, *kind, *from)),
                _ => None,
            })
            .collect();
        if stmts.is_empty() && folds.is_empty() {
            return;
        }
        for (val, kind, _) in &folds {
            let dtype = body.val(*val).dtype;
            text.line(format!("{} v{} = {};", value_type(dtype), val.0, neutral(*kind, dtype)));
        }
        self.along(text, |text| {
            for stmt in stmts.iter().map(|at| &body.stmts[*at]) {
                match stmt {
                    Stmt::Fold { val, kind, from } => {
                        text.line(joined(*kind, body.val(*val).dtype, &format!("v{}", val.0), body.name(*from)));
                    }
                    Stmt::Store { buf, access, val } => body.store(text, *buf, access, *val, None),
                    Stmt::Exit { val, .. } => {
                        let found = self.exits.iter().enumerate().find(|(_, exit)| exit.val == *val && is(exit, stmt));
                        if let Some((at, exit)) = found {
                            let sum = if self.grown { self.part(at, exit) } else { format!("sum{at}[e]") };
                            text.line(joined(exit.kind, body.val(*val).dtype, &sum, body.name(*val)));
                        }
                    }
                    _ => body.define(text, stmt),
                }
            }
        });
        for (val, kind, _) in &folds {
            let fold = fold_name(*kind);
            text.line(match self.shape.team {
                1 => continue,
                32 => format!("v{0} = over_lanes<{fold}, 32>(v{0});", val.0),
                team => format!("v{0} = over_block<{fold}, {1}>(v{0});", val.0, team / 32),
            });
        }
    }

    /// The statements of a pass, each of which runs once.
    fn planned(&self, pass: usize) -> Vec<usize> {
        (0..self.body.stmts.len()).filter(|at| self.runs(*at) && self.passes.at[*at] == Some(pass)).collect()
    }

    /// The ends of a pass and all that they need, whether another pass has made it or not.
    fn again(&self, pass: usize) -> Vec<usize> {
        let mut wanted = vec![false; self.body.vals.len()];
        let mut stmts = Vec::new();
        for (at, stmt) in self.body.stmts.iter().enumerate().rev() {
            let takes = match stmt {
                Stmt::Fold { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => self.passes.at[at] == Some(pass),
                _ => defined(stmt).is_some_and(|val| wanted[val.0 as usize]),
            };
            if takes && self.runs(at) {
                used(stmt).iter().for_each(|val| wanted[val.0 as usize] = true);
                stmts.push(at);
            }
        }
        stmts.reverse();
        stmts
    }

    /// Whether a statement is of the strip's loops.
    fn runs(&self, at: usize) -> bool {
        match &self.body.stmts[at] {
            Stmt::Fold { .. } => true,
            Stmt::Store { access, val, .. } => self.body.is_strip(*val) || self.body.moves(access),
            Stmt::Exit { val, .. } => self.body.is_strip(*val),
            stmt => defined(stmt).is_some_and(|val| self.is_along(val)),
        }
    }

    /// The second launch: adds the parts of an exit in order.
    fn combine(&self, text: &mut Text, unit: &mut Unit<'_>, exit: &Exit<'_>) {
        let Shape { teams, keep, chunks, .. } = self.shape;
        let (dtype, width) = (exit.spare.dtype, exit.width);
        let parts = if exit.strip { chunks * teams } else { chunks };
        let at = exit.buf.0 as usize;
        let number = &exit.spare.name;
        let mut dims: Vec<u64> = self.nest.grid.iter().map(|_| 1).collect();
        dims[..self.nest.keep].copy_from_slice(&self.nest.grid[..self.nest.keep]);
        dims.push(width);
        let body = Body::new(unit.kernel, &dims, self.body.vals, self.body.stmts);
        let (name, ty) = (&exit.spare.name, value_type(dtype));
        text.blank();
        let suffix = format!("_{number}");
        let start = format!("{ty} sum = {};", neutral(exit.kind, dtype));
        let spares = [(&exit.spare, false)];
        let positions = body.position_type();
        if exit.strip {
            unit.open(text, &suffix, ((keep * width).div_ceil(THREADS), THREADS), &[at], &spares);
            flat_thread(text, positions, THREADS, keep * width);
            let how = unflatten("i", &[keep, width]);
            text.line(format!("const {positions} kept = {}, d{} = {};", how[0], self.nest.grid.len(), how[1]));
            text.line(start);
            text.line("#pragma unroll 4");
            text.open(format!("for (int part = 0; part < {parts}; part++)"));
            let place = format!("{name}[(kept * {parts} + part) * {width} + d{}]", self.nest.grid.len());
            text.line(joined(exit.kind, dtype, "sum", &place));
            text.close();
        } else {
            unit.open(text, &suffix, (keep, 32), &[at], &spares);
            text.line("const int kept = blockIdx.x;");
            text.line(start);
            text.open(format!("for (int part = threadIdx.x; part < {parts}; part += 32)"));
            text.line(joined(exit.kind, dtype, "sum", &format!("{name}[kept * {parts} + part]")));
            text.close();
            text.line(format!("sum = over_lanes<{}, 32>(sum);", fold_name(exit.kind)));
            text.line("if (threadIdx.x != 0) return;");
        }
        for (dim, how) in unflatten("kept", &self.nest.grid[..self.nest.keep]).into_iter().enumerate() {
            if self.nest.grid[dim] > 1 && exit.access.depends_on(mdl_compiler::kernel::Dim(dim as u32)) {
                text.line(format!("const {positions} d{dim} = {how};"));
            }
        }
        body.exit(text, exit.buf, exit.access, "sum");
        text.close();
    }
}

/// Whether this exit is that statement.
fn is(exit: &Exit<'_>, stmt: &Stmt) -> bool {
    match stmt {
        Stmt::Exit { buf, access, kind, .. } => exit.buf == *buf && exit.access == access && exit.kind == *kind,
        _ => false,
    }
}
