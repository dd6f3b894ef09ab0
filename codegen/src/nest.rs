//! A body made ready for emission: simplified dimensions, then an order of strip operations.
//!
//! In: a verified [`Nest`]. [`normal`] merges dimensions that every access crosses evenly, so that strips are long.
//! [`Plan::of`] divides the statements into *phases* (a phase ends where a fold's result is needed) and each phase into
//! [`Item`]s: a loop of inlined operations, or one call on a strip. Values that pass from item to item live in scratch slots.

mod normal;

use std::collections::BTreeSet;

use mdl_compiler::kernel::{Access, Dim, Kernel, Position, Rank, Role, ScalarOp, Stmt, Val, ValId};
use mdl_graph::DType;

use normal::coef;
pub(crate) use normal::{normal, normal_columns, oriented, parts};

/// Elements of a strip that are worked on at once: a strip of `f32` is 4 KiB, so that several fit a level-1 cache.
pub(crate) const TILE: u64 = 1024;

/// Folds of one loop: each keeps a vector register.
const MAX_FOLDS: usize = 8;

pub(crate) fn accesses(stmt: &Stmt) -> Option<&Access> {
    match stmt {
        Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. } => Some(access),
        Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Map { .. } | Stmt::Fold { .. } => None,
    }
}

/// How an access moves along the strip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    /// By this many elements at each step; guards do not depend on the strip.
    Stride(i64),
    /// As `Stride`, with guards `lo <= base + coef · j < hi` on plain indices.
    Window(i64),
    /// Anything else: position by position.
    General,
}

pub(crate) fn along(access: &Access, strip: Dim, vals: &[Val]) -> Along {
    let (mut stride, mut window) = (0, false);
    for term in &access.terms {
        match &term.index {
            Position::Value(val) if vals[val.0 as usize].rank == Rank::Strip => return Along::General,
            Position::Value(_) => {}
            Position::Index(index) if index.depends_on(strip) => {
                if index.div != 1 || index.modulo != 0 {
                    return Along::General;
                }
                stride += term.coef * coef(index, strip);
                window |= term.range.is_some();
            }
            Position::Index(_) => {}
        }
    }
    if window { Along::Window(stride) } else { Along::Stride(stride) }
}

/// One step of a phase on the current tile of the strip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// One loop over the tile for all these statements; several lanes at a time, or one.
    Loop { stmts: Vec<usize>, vector: bool },
    /// A load that is not read where it is needed: into its slot.
    Load(usize),
    /// A call on strips, or a fold.
    Call(usize),
    /// A store that is not a run of plain numbers: from a slot.
    Store(usize),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    /// Row statements, at the beginning.
    pub(crate) rows: Vec<usize>,
    pub(crate) items: Vec<Item>,
}

/// Where a strip value is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In registers only, inside the loop that makes it; or a row value.
    Register,
    /// Read from its buffer wherever it is used: a plain run of numbers.
    Buffer(usize),
    /// In scratch at this offset: a tile, or the whole strip.
    Slot { offset: u64, whole: bool },
    /// The product of a contraction.
    Product,
}

/// The order of operations and the places of values.
pub(crate) struct Plan {
    pub(crate) phases: Vec<Phase>,
    /// Row statements that no dimension moves: once per call.
    pub(crate) fixed: Vec<usize>,
    pub(crate) homes: Vec<Home>,
    /// Temporary places: cells for folds and row calls, then strips for repeated rows.
    pub(crate) cells: u64,
    pub(crate) spare: [u64; 4],
    /// The table of a vector program's cells, then 64 bytes for the result of each of its folds.
    pub(crate) table: u64,
    pub(crate) results: u64,
    pub(crate) scratch_bytes: u64,
}

pub(crate) struct Scope<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) dims: &'a [u64],
    pub(crate) vals: &'a [Val],
    pub(crate) body: &'a [Stmt],
    /// Value 0 is given: the product of a contraction.
    pub(crate) product: bool,
    /// Loops of 32-bit numbers become vector programs: see `wide`.
    pub(crate) wide: bool,
}

/// Bytes of one number in a strip: a `bool` is a mask of 32 bits.
pub(crate) fn strip_bytes(dtype: DType) -> u64 {
    match dtype {
        DType::F64 | DType::I64 => 8,
        _ => 4,
    }
}

/// What computes a map on strips.
pub(crate) enum Spelling {
    /// Inlined, in several lanes where all its numbers have 32 bits, or one by one.
    Inline {
        vector: bool,
    },
    Call,
}

impl Scope<'_> {
    pub(crate) fn strip(&self) -> Dim {
        Dim(self.dims.len() as u32 - 1)
    }

    pub(crate) fn extent(&self) -> u64 {
        self.dims.last().copied().unwrap_or(1)
    }

    pub(crate) fn is_strip(&self, val: ValId) -> bool {
        self.vals[val.0 as usize].rank == Rank::Strip
    }

    /// Tiles of a long strip are independent: nothing is folded or leaves.
    pub(crate) fn tiled(&self) -> bool {
        let whole = |stmt: &Stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. });
        self.extent() > TILE && !self.product && !self.body.iter().any(whole)
    }

    /// The dtype in the buffer is that of the strip, and the buffer moves with it.
    fn plain(&self, buf: usize, access: &Access) -> bool {
        let number = matches!(self.kernel.bufs[buf].dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64);
        number && self.is_run(access)
    }

    /// The buffer moves with the strip, element by element.
    fn is_run(&self, access: &Access) -> bool {
        let guarded = access.terms.iter().any(|term| term.range.is_some());
        !guarded && along(access, self.strip(), self.vals) == Along::Stride(1)
    }

    /// A load that is read where it is used: of plain numbers, or of others if only vector programs, which convert, use it.
    fn is_read_in_place(&self, stmt: &Stmt) -> bool {
        let Stmt::Load { val, buf, access } = stmt else { return false };
        let converted = || {
            let users = || self.body.iter().enumerate().filter(|(_, user)| used(user).contains(val));
            let in_access = |user: &Stmt| {
                accesses(user).is_some_and(|access| {
                    access.terms.iter().any(|term| matches!(&term.index, Position::Value(index) if index == val))
                })
            };
            self.wide
                && self.is_run(access)
                && users().all(|(at, user)| inline(self, at) == Some(true) && !in_access(user))
        };
        self.is_strip(*val) && (self.plain(buf.0 as usize, access) || converted())
    }

    pub(crate) fn spelling(&self, op: ScalarOp, args: &[ValId], val: ValId) -> Spelling {
        let dtype = |val: ValId| self.vals[val.0 as usize].dtype;
        let narrow = |val: ValId| strip_bytes(dtype(val)) == 4;
        let vector = narrow(val) && args.iter().all(|arg| narrow(*arg));
        let float = args.first().is_none_or(|arg| dtype(*arg).is_float());
        match op {
            ScalarOp::Exp | ScalarOp::Log | ScalarOp::Tanh | ScalarOp::Erf
                if self.wide && vector && self.is_strip(val) =>
            {
                Spelling::Inline { vector: true }
            }
            ScalarOp::Round(DType::BF16 | DType::F16) if self.wide && self.is_strip(val) => {
                Spelling::Inline { vector: true }
            }
            ScalarOp::Exp | ScalarOp::Log | ScalarOp::Tanh | ScalarOp::Erf | ScalarOp::Sin | ScalarOp::Cos => {
                Spelling::Call
            }
            ScalarOp::Pow | ScalarOp::Uniform { .. } => Spelling::Call,
            ScalarOp::Round(DType::BF16 | DType::F16) => Spelling::Call,
            ScalarOp::Div | ScalarOp::Rem if !float => Spelling::Inline { vector: false },
            _ => Spelling::Inline { vector },
        }
    }

    /// The statement runs once per row, not per position of the strip.
    pub(crate) fn is_row(&self, stmt: &Stmt) -> bool {
        match stmt {
            Stmt::Load { val, .. } | Stmt::Const { val, .. } | Stmt::Index { val, .. } | Stmt::Map { val, .. } => {
                !self.is_strip(*val)
            }
            Stmt::Fold { .. } => false,
            Stmt::Store { val, access, .. } => !self.is_strip(*val) && !access.depends_on(self.strip()),
            Stmt::Exit { val, .. } => !self.is_strip(*val),
        }
    }
}

pub(crate) fn defined(stmt: &Stmt) -> Option<ValId> {
    match stmt {
        Stmt::Load { val, .. }
        | Stmt::Const { val, .. }
        | Stmt::Index { val, .. }
        | Stmt::Map { val, .. }
        | Stmt::Fold { val, .. } => Some(*val),
        Stmt::Store { .. } | Stmt::Exit { .. } => None,
    }
}

pub(crate) fn used(stmt: &Stmt) -> Vec<ValId> {
    let mut all: Vec<ValId> = match stmt {
        Stmt::Map { args, .. } => args.clone(),
        Stmt::Fold { from, .. } => vec![*from],
        Stmt::Store { val, .. } | Stmt::Exit { val, .. } => vec![*val],
        Stmt::Load { .. } | Stmt::Const { .. } | Stmt::Index { .. } => Vec::new(),
    };
    if let Some(access) = accesses(stmt) {
        all.extend(access.terms.iter().filter_map(|term| match &term.index {
            Position::Value(val) => Some(*val),
            Position::Index(_) => None,
        }));
    }
    all
}

impl Plan {
    pub(crate) fn of(scope: &Scope<'_>) -> Plan {
        let n_vals = scope.vals.len();
        let mut source = vec![usize::MAX; n_vals];
        // The phase in which a value is ready, and in which a statement runs.
        let mut ready = vec![0usize; n_vals];
        let mut phase_of = vec![0usize; scope.body.len()];
        let mut fixed_val = vec![false; n_vals];
        let mut fixed = Vec::new();
        for (at, stmt) in scope.body.iter().enumerate() {
            let inputs = used(stmt);
            let phase = inputs.iter().map(|val| ready[val.0 as usize]).max().unwrap_or(0);
            phase_of[at] = phase;
            if let Some(val) = defined(stmt) {
                source[val.0 as usize] = at;
                ready[val.0 as usize] = phase + usize::from(matches!(stmt, Stmt::Fold { .. }));
                let still = match stmt {
                    Stmt::Load { buf, access, .. } => {
                        scope.kernel.bufs[buf.0 as usize].role == Role::Read
                            && access.terms.iter().all(|term| match &term.index {
                                Position::Index(index) => index.terms.iter().all(|(_, coef)| *coef == 0),
                                Position::Value(_) => true,
                            })
                    }
                    Stmt::Index { index, .. } => index.terms.iter().all(|(_, coef)| *coef == 0),
                    Stmt::Const { .. } | Stmt::Map { .. } => true,
                    Stmt::Fold { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => false,
                };
                if still && scope.is_row(stmt) && inputs.iter().all(|val| fixed_val[val.0 as usize]) {
                    fixed_val[val.0 as usize] = true;
                    fixed.push(at);
                }
            }
        }
        let n_phases =
            phase_of.iter().max().map_or(1, |most| most + 1).max(ready.iter().max().map_or(1, |most| most + 1));
        let mut phases = vec![Phase::default(); n_phases];
        let mut homes = vec![Home::Register; n_vals];
        if scope.product {
            homes[0] = Home::Product;
        }
        // Loads of plain runs are read where they are used.
        for stmt in scope.body {
            if let (Some(val), true) = (defined(stmt), scope.is_read_in_place(stmt)) {
                homes[val.0 as usize] = Home::Buffer(source[val.0 as usize]);
            }
        }
        loop {
            for (number, phase) in phases.iter_mut().enumerate() {
                *phase = order(scope, number, &phase_of, &fixed_val, &source, &homes);
            }
            // A buffer that is written before the last use of a value read from it would be read too late: the two may be the same
            // memory. Such a value is copied to scratch first.
            let late = read_too_late(scope, &phases, &homes);
            if late.is_empty() {
                break;
            }
            late.iter().for_each(|val| homes[val.0 as usize] = Home::Register);
        }
        let mut plan = Plan { phases, fixed, homes, cells: 0, spare: [0; 4], table: 0, results: 0, scratch_bytes: 0 };
        plan.place(scope);
        plan
    }

    /// Gives a slot to each strip value that leaves the item which makes it; slots are reused after the last use.
    fn place(&mut self, scope: &Scope<'_>) {
        let extent = scope.extent();
        let tile = extent.min(TILE).next_multiple_of(16).max(16);
        let whole = extent.next_multiple_of(16).max(16);
        // One cell per value for folds and row calls, 16 bytes each, then strips for repeated rows.
        self.cells = 0;
        let mut end = (scope.vals.len() as u64 + 4) * 16;
        end = end.next_multiple_of(64);
        for slot in &mut self.spare {
            *slot = end;
            end += tile * 8;
        }
        if scope.wide {
            // A cell for each row value and read, and two for what a statement may write.
            self.table = end;
            end += ((scope.vals.len() + 2 * scope.body.len()) as u64 * 8).next_multiple_of(64);
            self.results = end;
            end += MAX_FOLDS as u64 * 64;
        }
        let items: Vec<(usize, &Item)> = self
            .phases
            .iter()
            .enumerate()
            .flat_map(|(at, phase)| phase.items.iter().map(move |item| (at, item)))
            .collect();
        let n_vals = scope.vals.len();
        let mut made = vec![None; n_vals];
        let mut last = vec![0usize; n_vals];
        for (at, (_, item)) in items.iter().enumerate() {
            for stmt in stmts(item) {
                if let Some(val) = defined(&scope.body[stmt])
                    && scope.is_strip(val)
                {
                    made[val.0 as usize] = Some(at);
                }
                for val in used(&scope.body[stmt]) {
                    last[val.0 as usize] = at;
                }
            }
        }
        let mut free: Vec<(u64, u64)> = Vec::new();
        let mut held: Vec<(usize, u64, u64)> = Vec::new();
        let several = extent > TILE;
        let mut homes = self.homes.clone();
        for (at, (phase, item)) in items.iter().enumerate() {
            // With several tiles a phase starts again from its first item: nothing of it may be reused by a later one.
            held.retain(|(until, offset, bytes)| {
                let over = if several { items[*until].0 < *phase } else { *until < at };
                if over {
                    free.push((*offset, *bytes));
                }
                !over
            });
            for stmt in stmts(item) {
                let Some(val) = defined(&scope.body[stmt]) else { continue };
                let id = val.0 as usize;
                if !scope.is_strip(val) || homes[id] != Home::Register {
                    continue;
                }
                let stays = matches!(item, Item::Loop { .. }) && last[id] <= at;
                if stays {
                    continue;
                }
                let until = last[id].max(at);
                let crosses = several && items[until].0 != *phase;
                let bytes = if crosses { whole } else { tile } * strip_bytes(scope.vals[id].dtype);
                let offset = match free.iter().position(|(_, size)| *size == bytes) {
                    Some(found) => free.swap_remove(found).0,
                    None => {
                        end += bytes;
                        end - bytes
                    }
                };
                held.push((until, offset, bytes));
                homes[id] = Home::Slot { offset, whole: crosses };
            }
        }
        self.homes = homes;
        self.scratch_bytes = end.next_multiple_of(64);
    }
}

pub(crate) fn stmts(item: &Item) -> Vec<usize> {
    match item {
        Item::Loop { stmts, .. } => stmts.clone(),
        Item::Load(stmt) | Item::Call(stmt) | Item::Store(stmt) => vec![*stmt],
    }
}

/// Lists a phase: loads first, then by turns as long a loop as possible and the calls that it made possible.
fn order(
    scope: &Scope<'_>,
    phase: usize,
    phase_of: &[usize],
    fixed: &[bool],
    source: &[usize],
    homes: &[Home],
) -> Phase {
    let mut result = Phase::default();
    let mut waiting: Vec<usize> = Vec::new();
    for (at, stmt) in scope.body.iter().enumerate() {
        if phase_of[at] != phase {
            continue;
        }
        let is_buffer = defined(stmt).is_some_and(|val| matches!(homes[val.0 as usize], Home::Buffer(_)));
        if scope.is_row(stmt) {
            if !defined(stmt).is_some_and(|val| fixed[val.0 as usize]) {
                result.rows.push(at);
            }
        } else if !is_buffer {
            waiting.push(at);
        }
    }
    let mut done: BTreeSet<usize> = BTreeSet::new();
    // Ready: every strip argument is from an earlier phase, is read from its buffer, or is made.
    let is_ready = |at: usize, done: &BTreeSet<usize>| {
        used(&scope.body[at]).iter().all(|val| {
            let from = source[val.0 as usize];
            from == usize::MAX
                || phase_of[from] < phase
                || scope.is_row(&scope.body[from])
                || matches!(homes[val.0 as usize], Home::Buffer(_))
                || done.contains(&from)
        })
    };
    while !waiting.is_empty() {
        let before = waiting.len();
        take(&mut waiting, |at| {
            let load = matches!(scope.body[at], Stmt::Load { .. }) && is_ready(at, &done);
            if load {
                result.items.push(Item::Load(at));
                done.insert(at);
            }
            load
        });
        for wanted in [true, false] {
            let mut stmts: Vec<usize> = Vec::new();
            let mut folds = 0;
            take(&mut waiting, |at| {
                let is_fold = matches!(scope.body[at], Stmt::Fold { .. });
                let fits = inline(scope, at) == Some(wanted) && is_ready(at, &done) && (!is_fold || folds < MAX_FOLDS);
                if fits {
                    folds += usize::from(is_fold);
                    stmts.push(at);
                    done.insert(at);
                }
                fits
            });
            if !stmts.is_empty() {
                result.items.push(Item::Loop { stmts, vector: wanted });
            }
        }
        take(&mut waiting, |at| {
            let ready =
                inline(scope, at).is_none() && !matches!(scope.body[at], Stmt::Load { .. }) && is_ready(at, &done);
            if ready {
                let store = matches!(scope.body[at], Stmt::Store { .. });
                result.items.push(if store { Item::Store(at) } else { Item::Call(at) });
                done.insert(at);
            }
            ready
        });
        if waiting.len() == before {
            mdl_graph::bug!("statements {waiting:?} of {} wait for each other", scope.kernel.name);
        }
    }
    result
}

/// Removes, in order, what `wanted` takes.
fn take(waiting: &mut Vec<usize>, mut wanted: impl FnMut(usize) -> bool) {
    waiting.retain(|at| !wanted(*at));
}

/// Whether a strip statement is inlined in a loop: in four lanes, or one by one.
fn inline(scope: &Scope<'_>, at: usize) -> Option<bool> {
    let narrow = |val: ValId| strip_bytes(scope.vals[val.0 as usize].dtype) == 4;
    match &scope.body[at] {
        Stmt::Fold { from, .. } => (scope.wide && narrow(*from)).then_some(true),
        Stmt::Load { .. } | Stmt::Const { .. } => None,
        Stmt::Index { val, index } => Some(narrow(*val) && index.div == 1 && index.modulo == 0),
        Stmt::Map { val, op, args } => match scope.spelling(*op, args, *val) {
            Spelling::Inline { vector } => Some(vector),
            Spelling::Call => None,
        },
        Stmt::Store { buf, access, val } => {
            let in_loop = scope.plain(buf.0 as usize, access) || (scope.wide && narrow(*val) && scope.is_run(access));
            in_loop.then(|| narrow(*val))
        }
        Stmt::Exit { val, .. } => Some(narrow(*val)),
    }
}

/// Values read from buffers in an item after one that stores.
fn read_too_late(scope: &Scope<'_>, phases: &[Phase], homes: &[Home]) -> Vec<ValId> {
    let mut stored = false;
    let mut late = BTreeSet::new();
    for phase in phases {
        for item in &phase.items {
            if stored {
                let uses = stmts(item).into_iter().flat_map(|stmt| used(&scope.body[stmt]));
                late.extend(uses.filter(|val| matches!(homes[val.0 as usize], Home::Buffer(_))));
            }
            stored |= stmts(item).iter().any(|stmt| matches!(scope.body[*stmt], Stmt::Store { .. }));
        }
    }
    late.into_iter().collect()
}
