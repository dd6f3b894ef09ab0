//! Statements to instructions: registers and constants get slots, opcodes are looked up, everything unknown is refused by name.

mod forms;

use super::parse::{Arg, Class, Entry, Module, Space, Stmt, Var, type_bytes};
use super::{PtxError, refuse};
use crate::sim::launch::{Kernel, Special};
use crate::sim::tables::{Row, Table, table};
use crate::sim::{Flow, Instr, NONE, NOT, Op, atomics, memory, moves};
use std::collections::HashMap;
use std::sync::Arc;

/// Where the variables of a module are: `.global` and `.const` by address.
pub(crate) type Addresses = HashMap<String, u64>;

struct Lower<'a> {
    table: &'static Table,
    entry: &'a Entry,
    globals: &'a Addresses,
    /// Offsets of shared and local variables.
    shared: HashMap<String, u64>,
    local: HashMap<String, u64>,
    const_words: HashMap<u32, u32>,
    const_longs: HashMap<u64, u32>,
    const_preds: HashMap<bool, u32>,
    specials: HashMap<Special, u32>,
    n_pred: u32,
    n_word: u32,
    n_long: u32,
    /// The smallest access of shared and of global memory, in bytes.
    shared_grain: usize,
    global_grain: usize,
}

fn mentions(entry: &Entry, name: &str) -> bool {
    fn inside(arg: &Arg, name: &str) -> bool {
        match arg {
            Arg::Sym(sym, _) => sym == name,
            Arg::Mem(base, _) => inside(base, name),
            Arg::Vec(items) => items.iter().any(|a| inside(a, name)),
            Arg::Pair(a, b) => inside(a, name) || inside(b, name),
            Arg::Reg(..) | Arg::Not(_) | Arg::Int(_) | Arg::F32(_) | Arg::F64(_) | Arg::Sink => false,
        }
    }
    entry.stmts.iter().any(|s| s.args.iter().any(|a| inside(a, name)))
}

/// Lays variables out one after another; dynamic ones begin where the static ones end.
fn lay_out<'a>(vars: impl Iterator<Item = &'a Var>) -> (HashMap<String, u64>, usize) {
    let (mut at, mut places, mut dynamic) = (0usize, HashMap::new(), Vec::new());
    for var in vars {
        match var.bytes {
            Some(bytes) => {
                at = at.next_multiple_of(var.align);
                places.insert(var.name.clone(), at as u64);
                at += bytes;
            }
            None => dynamic.push(var),
        }
    }
    if !dynamic.is_empty() {
        let align = dynamic.iter().map(|v| v.align).max().unwrap_or(16).max(16);
        at = at.next_multiple_of(align);
    }
    for var in dynamic {
        places.insert(var.name.clone(), at as u64);
    }
    (places, at)
}

pub(crate) fn lower(
    module: &Module,
    entry: &Entry,
    globals: &Addresses,
    text: &Arc<Vec<String>>,
    files: &Arc<HashMap<u32, String>>,
) -> Result<Kernel, PtxError> {
    let of = |space: Space| {
        let outer = module.vars.iter().filter(move |v| v.space == space && mentions(entry, &v.name));
        outer.chain(entry.vars.iter().filter(move |v| v.space == space))
    };
    let (shared, static_shared) = lay_out(of(Space::Shared));
    let (local, local_bytes) = lay_out(of(Space::Local));
    let mut lower = Lower {
        table: table(),
        entry,
        globals,
        shared,
        local,
        const_words: HashMap::new(),
        const_longs: HashMap::new(),
        const_preds: HashMap::new(),
        specials: HashMap::new(),
        n_pred: entry.n_pred,
        n_word: entry.n_word + 1,
        n_long: entry.n_long + 1,
        shared_grain: 16,
        global_grain: 16,
    };
    let mut code = Vec::with_capacity(entry.stmts.len() + 1);
    for stmt in &entry.stmts {
        code.push(lower.stmt(stmt)?);
    }
    if let Some(row) = lower.table.get("ret") {
        code.push(blank(&row, entry.stmts.last().map_or(0, |s| s.line), (0, 0)));
    }
    Ok(Kernel {
        name: entry.name.clone(),
        code,
        n_pred: lower.n_pred as usize,
        n_word: lower.n_word as usize,
        n_long: lower.n_long as usize,
        const_preds: sorted(lower.const_preds.iter().map(|(&yes, &slot)| (slot, if yes { !0 } else { 0 }))),
        const_words: sorted(lower.const_words.iter().map(|(&v, &slot)| (slot, v))),
        const_longs: sorted(lower.const_longs.iter().map(|(&v, &slot)| (slot, v))),
        specials: {
            let mut all: Vec<_> = lower.specials.iter().map(|(&which, &slot)| (slot, which)).collect();
            all.sort_unstable_by_key(|&(slot, _)| slot);
            all
        },
        static_shared,
        local_bytes: local_bytes.next_multiple_of(16),
        params: entry.params.clone(),
        shared_shift: lower.shared_grain.ilog2(),
        global_shift: lower.global_grain.ilog2(),
        max_threads: entry.max_threads,
        required: entry.required,
        text: text.clone(),
        files: files.clone(),
    })
}

fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut all: Vec<T> = items.collect();
    all.sort_unstable();
    all
}

fn blank(row: &Row, line: u32, loc: (u32, u32)) -> Instr {
    Instr {
        op: row.op,
        flow: row.flow,
        d: NONE,
        s: [NONE; 4],
        x: row.x,
        offset: 0,
        list: Box::default(),
        guard: NONE,
        not: false,
        target: 0,
        line,
        loc,
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |tail: &str| match tail {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    let (head, tail) = name.split_once('.').unwrap_or((name, ""));
    Some(match head {
        "%tid" => Special::Tid(axis(tail)?),
        "%ntid" => Special::Ntid(axis(tail)?),
        "%ctaid" => Special::Ctaid(axis(tail)?),
        "%nctaid" => Special::Nctaid(axis(tail)?),
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%nwarpid" => Special::Warps,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_gt" => Special::MaskGt,
        "%lanemask_ge" => Special::MaskGe,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" | "%cluster_ctarank" => Special::Zero,
        "%cluster_nctarank" => Special::One,
        "%nsmid" => Special::Multiprocessors,
        _ => return None,
    })
}

fn cut(value: i64) -> u32 {
    value as u32
}

impl Lower<'_> {
    fn const_word(&mut self, value: u32) -> u32 {
        let next = &mut self.n_word;
        *self.const_words.entry(value).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    fn const_long(&mut self, value: u64) -> u32 {
        let next = &mut self.n_long;
        *self.const_longs.entry(value).or_insert_with(|| {
            *next += 1;
            *next - 1
        })
    }

    /// The address of a variable: within its space, or generic.
    fn address(&self, name: &str, generic: bool) -> Option<u64> {
        let window = |base: u64| if generic { base } else { 0 };
        if let Some(&at) = self.shared.get(name) {
            return Some(at + window(memory::SHARED_WINDOW));
        }
        if let Some(&at) = self.local.get(name) {
            return Some(at + window(memory::LOCAL_WINDOW));
        }
        if let Some(param) = self.entry.params.iter().find(|p| p.name == name) {
            return Some(param.offset as u64 + window(memory::PARAM_WINDOW));
        }
        self.globals.get(name).copied()
    }

    fn word(&mut self, arg: &Arg, line: u32) -> Result<u32, PtxError> {
        match arg {
            Arg::Reg(Class::Word, slot) => Ok(*slot),
            Arg::Int(v) => Ok(self.const_word(cut(*v))),
            Arg::F32(bits) => Ok(self.const_word(*bits)),
            Arg::Sym(name, offset) => {
                if let Some(which) = special(name) {
                    let next = &mut self.n_word;
                    return Ok(*self.specials.entry(which).or_insert_with(|| {
                        *next += 1;
                        *next - 1
                    }));
                }
                if name == "WARP_SZ" {
                    return Ok(self.const_word(32));
                }
                match self.address(name, false) {
                    Some(at) => Ok(self.const_word(crate::sim::alu::low(at.wrapping_add_signed(*offset)))),
                    None => refuse(line, format!("`{name}` is not known here")),
                }
            }
            other => refuse(line, format!("expected a register of up to 32 bits, found {}", describe(other))),
        }
    }

    fn long(&mut self, arg: &Arg, line: u32) -> Result<u32, PtxError> {
        match arg {
            Arg::Reg(Class::Long, slot) => Ok(*slot),
            Arg::Int(v) => Ok(self.const_long(v.cast_unsigned())),
            Arg::F64(bits) => Ok(self.const_long(*bits)),
            Arg::Sym(name, offset) => match self.address(name, false) {
                Some(at) => Ok(self.const_long(at.wrapping_add_signed(*offset))),
                None => refuse(line, format!("`{name}` is not known here")),
            },
            other => refuse(line, format!("expected a register of 64 bits, found {}", describe(other))),
        }
    }

    fn pred(&mut self, arg: &Arg, line: u32) -> Result<u32, PtxError> {
        match arg {
            Arg::Reg(Class::Pred, slot) => Ok(*slot),
            Arg::Not(slot) => Ok(*slot | NOT),
            Arg::Int(v) => {
                let next = &mut self.n_pred;
                Ok(*self.const_preds.entry(*v != 0).or_insert_with(|| {
                    *next += 1;
                    *next - 1
                }))
            }
            other => refuse(line, format!("expected a predicate, found {}", describe(other))),
        }
    }

    /// A register that is written; `_` is one that nobody reads.
    fn dest(&self, arg: &Arg, class: Class, line: u32) -> Result<u32, PtxError> {
        match (arg, class) {
            (Arg::Reg(found, slot), _) if *found == class => Ok(*slot),
            (Arg::Sink, Class::Word) => Ok(self.entry.n_word),
            (Arg::Sink, Class::Long) => Ok(self.entry.n_long),
            (Arg::Sink, Class::Pred) => Ok(NONE),
            _ => refuse(line, format!("cannot write {}", describe(arg))),
        }
    }

    fn source(&mut self, letter: u8, arg: &Arg, line: u32) -> Result<u32, PtxError> {
        match letter {
            b'q' => self.long(arg, line),
            b'p' => self.pred(arg, line),
            _ => self.word(arg, line),
        }
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<Instr, PtxError> {
        let mut instr = self.unguarded(stmt)?;
        if let Some((slot, not)) = stmt.guard {
            (instr.guard, instr.not) = (slot, not);
        }
        Ok(instr)
    }

    fn unguarded(&mut self, stmt: &Stmt) -> Result<Instr, PtxError> {
        let Stmt { line, loc, op, args, .. } = stmt;
        let (line, loc) = (*line, *loc);
        let root = op.split('.').next().unwrap_or("");
        if matches!(root, "ld" | "st" | "ldu") {
            return self.access(stmt);
        }
        if root == "mov" && args.iter().any(|a| matches!(a, Arg::Vec(_))) {
            return self.pack(stmt);
        }
        if root == "cvta" {
            return self.cvta(stmt);
        }
        if root == "isspacep" {
            let spaces = ["isspacep.global", "isspacep.shared", "isspacep.local", "isspacep.param"];
            let Some(x) = (0u32..).zip(spaces).find_map(|(k, name)| (name == op).then_some(k)) else {
                return refuse(line, format!("opcode `{op}` is not known to the simulated GPU"));
            };
            let [d, a] = args.as_slice() else { return operands(line, op) };
            let mut i = made(moves::is_space, line, loc);
            (i.d, i.s[0], i.x) = (self.dest(d, Class::Pred, line)?, self.long(a, line)?, x);
            return Ok(i);
        }
        let Some(row) = self.table.get(op) else {
            return refuse(line, format!("opcode `{op}` is not known to the simulated GPU"));
        };
        let mut i = blank(&row, line, loc);
        let shape = row.shape.as_bytes();
        match shape.first() {
            Some(b'S') => self.comparison(&mut i, shape[1], stmt)?,
            Some(b'A') => self.atomic(&mut i, stmt)?,
            Some(b'C') => self.copy(&mut i, stmt)?,
            Some(b'H') => {
                let [d, a, b, c, members] = args.as_slice() else { return operands(line, op) };
                self.dest_and_pred(&mut i, d, line)?;
                i.s = [self.word(a, line)?, self.word(b, line)?, self.word(c, line)?, self.word(members, line)?];
            }
            Some(b'W') => {
                let [members] = args.as_slice() else { return operands(line, op) };
                i.s[3] = self.word(members, line)?;
            }
            Some(b'B') => {
                let (Some(id), count) = (args.first(), args.get(1)) else { return operands(line, op) };
                i.s[0] = self.word(id, line)?;
                if let Some(count) = count {
                    i.s[1] = self.word(count, line)?;
                }
            }
            Some(b'D') => {
                let (d, id, count, p) = match args.as_slice() {
                    [d, id, p] => (d, id, None, p),
                    [d, id, count, p] => (d, id, Some(count), p),
                    _ => return operands(line, op),
                };
                i.d = self.dest(d, if row.x == 1 { Class::Word } else { Class::Pred }, line)?;
                i.s[0] = self.word(id, line)?;
                if let Some(count) = count {
                    i.s[1] = self.word(count, line)?;
                }
                i.s[2] = self.pred(p, line)?;
            }
            Some(b'J') => i.target = stmt.target,
            Some(b'X') => {
                let Some(idx) = args.first() else { return operands(line, op) };
                i.s[0] = self.word(idx, line)?;
                i.list = stmt.targets.clone().into_boxed_slice();
            }
            Some(b'M') => self.product(&mut i, &shape[1..], stmt)?,
            Some(b'L' | b'T') => self.matrix(&mut i, shape[0] == b'L', shape[1], stmt)?,
            _ => self.plain(&mut i, shape, stmt)?,
        }
        Ok(i)
    }

    /// One letter an operand.
    fn plain(&mut self, i: &mut Instr, shape: &[u8], stmt: &Stmt) -> Result<(), PtxError> {
        let line = stmt.line;
        if shape.first() == Some(&b'-') && shape.len() == 1 {
            return Ok(());
        }
        if stmt.args.len() != shape.len() && !shape.starts_with(b"-") {
            return operands(line, &stmt.op);
        }
        let mut n = 0;
        for (k, (&letter, arg)) in shape.iter().zip(&stmt.args).enumerate() {
            match letter {
                b'-' => match arg {
                    Arg::Int(v) => i.offset = *v,
                    _ => return operands(line, &stmt.op),
                },
                b'i' => match arg {
                    Arg::Int(v) => i.offset = *v,
                    _ => return refuse(line, format!("expected a constant, found {}", describe(arg))),
                },
                b'm' => i.s[3] = self.word(arg, line)?,
                b'p' if k == 0 => i.d = self.dest(arg, Class::Pred, line)?,
                b'q' if k == 0 => i.d = self.dest(arg, Class::Long, line)?,
                _ if k == 0 => self.dest_and_pred(i, arg, line)?,
                letter => {
                    i.s[n] = self.source(letter, arg, line)?;
                    n += 1;
                }
            }
        }
        Ok(())
    }

    fn dest_and_pred(&mut self, i: &mut Instr, arg: &Arg, line: u32) -> Result<(), PtxError> {
        if let Arg::Pair(d, p) = arg {
            i.d = self.dest(d, Class::Word, line)?;
            i.list = Box::new([self.dest(p, Class::Pred, line)?]);
        } else {
            i.d = self.dest(arg, Class::Word, line)?;
        }
        Ok(())
    }

    fn comparison(&mut self, i: &mut Instr, letter: u8, stmt: &Stmt) -> Result<(), PtxError> {
        let (line, args) = (stmt.line, &stmt.args);
        let joins = i.x >> 8 & 3 != 0;
        if args.len() != 3 + usize::from(joins) {
            return operands(line, &stmt.op);
        }
        if let Arg::Pair(p, q) = &args[0] {
            i.d = self.dest(p, Class::Pred, line)?;
            i.list = Box::new([self.dest(q, Class::Pred, line)?]);
        } else {
            i.d = self.dest(&args[0], Class::Pred, line)?;
        }
        i.s[0] = self.source(letter, &args[1], line)?;
        i.s[1] = self.source(letter, &args[2], line)?;
        if joins {
            i.s[2] = self.pred(&args[3], line)?;
        }
        Ok(())
    }
}

fn made(op: Op, line: u32, loc: (u32, u32)) -> Instr {
    blank(&Row { op, shape: "", x: 0, flow: Flow::Plain }, line, loc)
}

fn operands<T>(line: u32, op: &str) -> Result<T, PtxError> {
    refuse(line, format!("`{op}` with these operands is not known to the simulated GPU"))
}

fn describe(arg: &Arg) -> String {
    match arg {
        Arg::Reg(Class::Pred, _) => "a predicate".to_owned(),
        Arg::Reg(Class::Word, _) => "a register of up to 32 bits".to_owned(),
        Arg::Reg(Class::Long, _) => "a register of 64 bits".to_owned(),
        Arg::Not(_) => "a negated predicate".to_owned(),
        Arg::Int(v) => format!("the number {v}"),
        Arg::F32(bits) => format!("the number {}", f32::from_bits(*bits)),
        Arg::F64(bits) => format!("the number {}", f64::from_bits(*bits)),
        Arg::Sym(name, _) => format!("`{name}`"),
        Arg::Mem(..) => "an address".to_owned(),
        Arg::Vec(_) => "a vector".to_owned(),
        Arg::Pair(..) => "a pair of registers".to_owned(),
        Arg::Sink => "`_`".to_owned(),
    }
}
