//! Statements of a body, one element at a time, under the names that a template has given to values.

use mdl_compiler::kernel::{Access, BufId, Dim, FoldKind, Kernel, Rank, ScalarOp, Stmt, Val, ValId};
use mdl_graph::DType;

use super::print::{Text, constant, index, integer, loaded, place, stored, unflatten, value_type};
use super::scalar::expression;
use crate::nest::{defined, used};

/// The statements of a nest, of a contraction's epilogue or of a plane, and how its values are called.
pub(super) struct Body<'a> {
    pub(super) kernel: &'a Kernel,
    /// The extents of the grid, then of the strip.
    pub(super) dims: &'a [u64],
    pub(super) vals: &'a [Val],
    pub(super) stmts: &'a [Stmt],
    /// What each value is called where it is used: `v3`, `v3[e]`, or a constant itself.
    pub(super) names: Vec<String>,
}

impl<'a> Body<'a> {
    pub(super) fn new(kernel: &'a Kernel, dims: &'a [u64], vals: &'a [Val], stmts: &'a [Stmt]) -> Body<'a> {
        let mut names: Vec<String> = (0..vals.len()).map(|at| format!("v{at}")).collect();
        for stmt in stmts {
            if let Stmt::Const { val, value } = stmt {
                let text = constant(vals[val.0 as usize].dtype, *value);
                names[val.0 as usize] = if text.starts_with('-') { format!("({text})") } else { text };
            }
        }
        Body { kernel, dims, vals, stmts, names }
    }

    pub(super) fn name(&self, val: ValId) -> &str {
        &self.names[val.0 as usize]
    }

    pub(super) fn val(&self, val: ValId) -> Val {
        self.vals[val.0 as usize]
    }

    pub(super) fn is_strip(&self, val: ValId) -> bool {
        self.val(val).rank == Rank::Strip
    }

    pub(super) fn strip_dim(&self) -> Dim {
        Dim(self.dims.len() as u32 - 1)
    }

    /// Whether a store runs along the strip, be its value one of a row or not.
    pub(super) fn moves(&self, access: &Access) -> bool {
        access.depends_on(self.strip_dim())
    }

    /// Positions take more than 31 bits.
    pub(super) fn position_type(&self) -> &'static str {
        let points = self.dims.iter().fold(1u64, |all, extent| all.saturating_mul((*extent).max(1)));
        let longest = self.kernel.bufs.iter().map(|buf| buf.len).max().unwrap_or(0).max(points);
        // Some room, for positions that a guard leaves out.
        if longest < 1 << 30 { "int" } else { "long long" }
    }

    /// The dimensions among `which` that some statement reads, from their flat position.
    pub(super) fn unflatten(&self, text: &mut Text, flat: &str, which: std::ops::Range<usize>) {
        let how = unflatten(flat, &self.dims[which.clone()]);
        let ty = self.position_type();
        for (at, how) in which.zip(how) {
            if self.dims[at] > 1 && self.reads_dim(Dim(at as u32)) && how != format!("d{at}") {
                text.line(format!("const {ty} d{at} = {how};"));
            }
        }
    }

    fn reads_dim(&self, dim: Dim) -> bool {
        self.stmts.iter().any(|stmt| match stmt {
            // What a row has in common is stored where the strip begins.
            Stmt::Store { access, .. } => access.depends_on(dim) || (dim == self.strip_dim() && !self.moves(access)),
            Stmt::Load { access, .. } | Stmt::Exit { access, .. } => access.depends_on(dim),
            Stmt::Index { index, .. } => index.depends_on(dim),
            Stmt::Const { .. } | Stmt::Map { .. } | Stmt::Fold { .. } => false,
        })
    }

    fn place(&self, access: &Access) -> (String, Vec<String>) {
        place(access, self.dims, &|val| self.names[val as usize].clone())
    }

    /// How a load, an index or an operation is computed.
    pub(super) fn expression(&self, stmt: &Stmt) -> Option<String> {
        match stmt {
            Stmt::Load { val, buf, access } => {
                let dtype = self.kernel.bufs[buf.0 as usize].dtype;
                let (at, guards) = self.place(access);
                let value = loaded(dtype, &format!("{buf}[{at}]"));
                let fill = constant(self.val(*val).dtype, access.fill.cast(self.val(*val).dtype));
                Some(if guards.is_empty() { value } else { format!("{} ? {value} : {fill}", guards.join(" && ")) })
            }
            Stmt::Index { val, index: one } => {
                let text = index(one, self.dims);
                Some(if self.val(*val).dtype == DType::I32 { text } else { format!("(long long)({text})") })
            }
            Stmt::Map { val, op, args } => {
                let names: Vec<String> = args.iter().map(|arg| self.name(*arg).to_string()).collect();
                let from = args.first().map_or(self.val(*val).dtype, |arg| self.val(*arg).dtype);
                Some(expression(*op, from, self.val(*val).dtype, &names))
            }
            Stmt::Const { .. } | Stmt::Fold { .. } | Stmt::Store { .. } | Stmt::Exit { .. } => None,
        }
    }

    /// `const float v3 = v1 + v2;`, or an assignment where the value has a place already.
    pub(super) fn define(&self, text: &mut Text, stmt: &Stmt) {
        let (Some(val), Some(how)) = (defined(stmt), self.expression(stmt)) else { return };
        let name = self.name(val);
        if name.contains('[') {
            text.line(format!("{name} = {how};"));
        } else {
            text.line(format!("const {} {name} = {how};", value_type(self.val(val).dtype)));
        }
    }

    /// A store; `only` is what must hold besides.
    pub(super) fn store(&self, text: &mut Text, buf: BufId, access: &Access, val: ValId, only: Option<&str>) {
        let dtype = self.kernel.bufs[buf.0 as usize].dtype;
        let (at, mut guards) = self.place(access);
        guards.extend(only.map(str::to_string));
        let line = format!("{buf}[{at}] = {};", stored(dtype, self.name(val)));
        text.line(if guards.is_empty() { line } else { format!("if ({}) {line}", guards.join(" && ")) });
    }

    /// The same in a template that has a thread for each element: what a row has in common is stored by the first of its strip.
    pub(super) fn store_once(&self, text: &mut Text, buf: BufId, access: &Access, val: ValId) {
        let strip = self.strip_dim();
        let first = format!("d{} == 0", strip.0);
        let alone = self.dims[strip.0 as usize] > 1 && !self.moves(access);
        self.store(text, buf, access, val, alone.then_some(&first[..]));
    }

    /// The place of an exit's result.
    pub(super) fn exit(&self, text: &mut Text, buf: BufId, access: &Access, value: &str) {
        let dtype = self.kernel.bufs[buf.0 as usize].dtype;
        text.line(format!("{buf}[{}] = {};", self.place(access).0, stored(dtype, value)));
    }

    /// The statements that something stored, summed or `wanted` needs, in order.
    pub(super) fn needed(&self, wanted: &[ValId]) -> Vec<bool> {
        let mut values = vec![false; self.vals.len()];
        wanted.iter().for_each(|val| values[val.0 as usize] = true);
        let mut needed = vec![false; self.stmts.len()];
        for (at, stmt) in self.stmts.iter().enumerate().rev() {
            needed[at] = defined(stmt).is_none_or(|val| values[val.0 as usize]);
            if needed[at] {
                used(stmt).into_iter().for_each(|val| values[val.0 as usize] = true);
            }
        }
        needed
    }
}

/// `x = Sum::join(x, y)`, as short as it can be said.
pub(super) fn joined(kind: FoldKind, dtype: DType, x: &str, y: &str) -> String {
    match kind {
        FoldKind::Sum if dtype.is_float() => format!("{x} += {y};"),
        FoldKind::Sum => format!("{x} = {};", expression(ScalarOp::Add, dtype, dtype, &[x.into(), y.into()])),
        FoldKind::Max => format!("{x} = max_nan({x}, {y});"),
    }
}

/// `const int i = blockIdx.x * 256 + threadIdx.x;`
pub(super) fn flat_thread(text: &mut Text, ty: &str, threads: u64, total: u64) {
    let block = if ty == "int" { "blockIdx.x".to_string() } else { format!("({ty})blockIdx.x") };
    text.line(format!("const {ty} i = {block} * {threads} + threadIdx.x;"));
    if !total.is_multiple_of(threads) {
        text.line(format!("if (i >= {}) return;", integer(total as i64)));
    }
}
