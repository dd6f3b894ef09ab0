//! A body made ready for emission: simplified dimensions, then an order of strip operations.
//!
//! In: a verified [`Nest`]. [`normal`] merges dimensions that every access crosses evenly, so that strips are long.
//! [`Plan::of`] divides the statements into *phases* (a phase ends where a fold's result is needed) and each phase into
//! [`Item`]s: a loop of inlined operations, or one call on a strip. Values that pass from item to item live in scratch slots.

use std::collections::BTreeSet;

use mdl_compiler::kernel::{
    Access, Contract, Dim, Index, Kernel, Nest, Position, Rank, Role, ScalarOp, Stmt, Term, Val, ValId,
};
use mdl_graph::DType;

/// Elements of a strip that are worked on at once: a strip of `f32` is 4 KiB, so that several fit a level-1 cache.
pub(crate) const TILE: u64 = 1024;

/// The same nest with as few and as long dimensions as the accesses allow.
pub(crate) fn normal(nest: &Nest) -> Nest {
    let mut nest = nest.clone();
    nest.body.iter_mut().for_each(gather_terms);
    let whole = nest.body.iter().any(|stmt| matches!(stmt, Stmt::Fold { .. } | Stmt::Exit { .. }));
    if whole {
        return nest;
    }
    turn(&mut nest);
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

/// Reorders the dimensions: the strip is the one along which most accesses are runs, the others go from far to near in the
/// result, so that they merge. Only when every store depends on every dimension: else what is repeated would change.
fn turn(nest: &mut Nest) {
    let n_dims = nest.grid.len() + 1;
    let mut extents = nest.grid.clone();
    extents.push(nest.strip);
    let stores: Vec<&Access> =
        nest.body.iter().filter(|stmt| matches!(stmt, Stmt::Store { .. })).filter_map(accesses).collect();
    let Some(first) = stores.first() else { return };
    let all =
        (0..n_dims).all(|dim| stores.iter().all(|access| extents[dim] == 1 || access.depends_on(Dim(dim as u32))));
    let Some(strides) = crate::contract::affine_strides(first, n_dims) else { return };
    if !all {
        return;
    }
    let votes = |dim: usize| -> usize {
        let run = |access: &Access| along(access, Dim(dim as u32), &nest.vals) == Along::Stride(1);
        let vote = |stmt: &Stmt| match stmt {
            // What is written out of order costs twice: its lines are read, too.
            Stmt::Store { access, .. } => 2 * usize::from(run(access)),
            _ => accesses(stmt).map_or(0, |access| usize::from(run(access))),
        };
        if extents[dim] == 1 { 0 } else { nest.body.iter().map(vote).sum() }
    };
    let mut strip = n_dims - 1;
    for dim in (0..n_dims).rev() {
        if votes(dim) > votes(strip) {
            strip = dim;
        }
    }
    let mut order: Vec<usize> = (0..n_dims).collect();
    order.sort_by_key(|dim| (*dim == strip, std::cmp::Reverse(strides[*dim])));
    rewrite(&mut nest.body, &|terms| {
        for (dim, _) in terms.iter_mut() {
            let to = order.iter().position(|from| *from == dim.0 as usize).unwrap_or_default();
            *dim = Dim(to as u32);
        }
    });
    nest.strip = extents[strip];
    nest.grid = order[..n_dims - 1].iter().map(|dim| extents[*dim]).collect();
    rank(nest);
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

fn coef(index: &Index, dim: Dim) -> i64 {
    index.terms.iter().filter(|(term, _)| *term == dim).map(|(_, coef)| coef).sum()
}

pub(crate) fn accesses(stmt: &Stmt) -> Option<&Access> {
    match stmt {
        Stmt::Load { access, .. } | Stmt::Store { access, .. } | Stmt::Exit { access, .. } => Some(access),
        Stmt::Const { .. } | Stmt::Index { .. } | Stmt::Map { .. } | Stmt::Fold { .. } => None,
    }
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
    /// One loop over the tile for all these statements; four lanes at a time, or one.
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
    pub(crate) scratch_bytes: u64,
}

pub(crate) struct Scope<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) dims: &'a [u64],
    pub(crate) vals: &'a [Val],
    pub(crate) body: &'a [Stmt],
    /// Value 0 is given: the product of a contraction.
    pub(crate) product: bool,
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
    /// Inlined, in four lanes where all its numbers have 32 bits, or one by one.
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
        let dtype = self.kernel.bufs[buf].dtype;
        let guarded = access.terms.iter().any(|term| term.range.is_some());
        let number = matches!(dtype, DType::F32 | DType::F64 | DType::I32 | DType::I64);
        number && !guarded && along(access, self.strip(), self.vals) == Along::Stride(1)
    }

    pub(crate) fn spelling(&self, op: ScalarOp, args: &[ValId], val: ValId) -> Spelling {
        let dtype = |val: ValId| self.vals[val.0 as usize].dtype;
        let narrow = |val: ValId| strip_bytes(dtype(val)) == 4;
        let vector = narrow(val) && args.iter().all(|arg| narrow(*arg));
        let float = args.first().is_none_or(|arg| dtype(*arg).is_float());
        match op {
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
            if let Stmt::Load { val, buf, access } = stmt
                && scope.is_strip(*val)
                && scope.plain(buf.0 as usize, access)
            {
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
        let mut plan = Plan { phases, fixed, homes, cells: 0, spare: [0; 4], scratch_bytes: 0 };
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
            let mut stmts = Vec::new();
            take(&mut waiting, |at| {
                let fits = inline(scope, at) == Some(wanted) && is_ready(at, &done);
                if fits {
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
        Stmt::Load { .. } | Stmt::Fold { .. } | Stmt::Const { .. } => None,
        Stmt::Index { val, index } => Some(narrow(*val) && index.div == 1 && index.modulo == 0),
        Stmt::Map { val, op, args } => match scope.spelling(*op, args, *val) {
            Spelling::Inline { vector } => Some(vector),
            Spelling::Call => None,
        },
        Stmt::Store { buf, access, val } => scope.plain(buf.0 as usize, access).then(|| narrow(*val)),
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
