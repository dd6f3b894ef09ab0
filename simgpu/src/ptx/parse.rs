//! A module's declarations and each kernel's statements, with registers bound to their scopes.
//!
//! Comes in: PTX text. Goes out: [`Module`]: variables, and kernels as flat lists of [`Stmt`]. Branch targets are statement
//! indices. Device functions are skipped; a call of one is refused when it is lowered. Debug sections are skipped; `.loc` is kept.

use super::lex::{Tok, Token, lex};
use super::{PtxError, refuse};
use std::collections::HashMap;

/// Where a register lives: predicates are one bit a lane, 8 to 32 bits one word, 64 bits two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Pred,
    Word,
    Long,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arg {
    Reg(Class, u32),
    /// `!%p`.
    Not(u32),
    Int(i64),
    F32(u32),
    F64(u64),
    /// A variable, parameter, special register or function by name, with an offset.
    Sym(String, i64),
    /// `[base + offset]`.
    Mem(Box<Arg>, i64),
    Vec(Vec<Arg>),
    /// `a|b` of `setp` and `shfl`.
    Pair(Box<Arg>, Box<Arg>),
    /// `_`.
    Sink,
}

#[derive(Debug, Clone)]
pub(crate) struct Stmt {
    pub(crate) line: u32,
    /// File number and line of the last `.loc`.
    pub(crate) loc: (u32, u32),
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) op: String,
    pub(crate) args: Vec<Arg>,
    /// Statement to go to, of branches.
    pub(crate) target: u32,
    /// Statements to choose from, of `brx.idx`.
    pub(crate) targets: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Const,
    Shared,
    Local,
}

#[derive(Debug, Clone)]
pub(crate) struct Var {
    pub(crate) name: String,
    pub(crate) space: Space,
    pub(crate) align: usize,
    /// None: `[]`, the dynamic shared memory.
    pub(crate) bytes: Option<usize>,
    pub(crate) init: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) param_bytes: usize,
    pub(crate) vars: Vec<Var>,
    pub(crate) n_pred: u32,
    pub(crate) n_word: u32,
    pub(crate) n_long: u32,
    pub(crate) stmts: Vec<Stmt>,
    /// Threads a block may have at most, by `.maxntid` or `.reqntid`.
    pub(crate) max_threads: Option<u32>,
    pub(crate) required: Option<[u32; 3]>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Module {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) vars: Vec<Var>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) files: HashMap<u32, String>,
}

pub(crate) fn type_bytes(name: &str) -> Option<usize> {
    Some(match name {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        _ => return None,
    })
}

struct Parser {
    toks: Vec<Token>,
    at: usize,
    module: Module,
}

/// One `{ }`: its registers and labels.
#[derive(Default)]
struct Scope {
    regs: HashMap<String, (Class, u32)>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
    parent: usize,
}

pub(crate) fn parse(text: &str) -> Result<Module, PtxError> {
    let mut parser = Parser { toks: lex(text)?, at: 0, module: Module::default() };
    while parser.at < parser.toks.len() {
        parser.top()?;
    }
    Ok(parser.module)
}

impl Parser {
    fn line(&self) -> u32 {
        self.toks.get(self.at).or(self.toks.last()).map_or(0, |t| t.line)
    }

    fn peek(&self) -> Option<&Tok> {
        self.toks.get(self.at).map(|t| &t.tok)
    }

    fn is(&self, c: u8) -> bool {
        self.peek() == Some(&Tok::Punct(c))
    }

    fn eat(&mut self, c: u8) -> bool {
        let yes = self.is(c);
        self.at += usize::from(yes);
        yes
    }

    fn expect(&mut self, c: u8) -> Result<(), PtxError> {
        if self.eat(c) {
            Ok(())
        } else {
            refuse(self.line(), format!("expected `{}`, found {:?}", char::from(c), self.peek()))
        }
    }

    fn word(&mut self) -> Result<String, PtxError> {
        match self.peek() {
            Some(Tok::Word(w)) => {
                let w = w.clone();
                self.at += 1;
                Ok(w)
            }
            other => refuse(self.line(), format!("expected a word, found {other:?}")),
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Tok::Word(w)) if w == word)
    }

    fn int(&mut self) -> Result<i64, PtxError> {
        let minus = self.eat(b'-');
        match self.peek() {
            Some(&Tok::Int(v)) => {
                self.at += 1;
                let v = v as i64;
                Ok(if minus { v.wrapping_neg() } else { v })
            }
            other => refuse(self.line(), format!("expected a number, found {other:?}")),
        }
    }

    fn size(&mut self) -> Result<usize, PtxError> {
        let line = self.line();
        let v = self.int()?;
        usize::try_from(v).or_else(|_| refuse(line, "expected a size"))
    }

    fn skip_line(&mut self, line: u32) {
        while self.at < self.toks.len() && self.toks[self.at].line == line {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) {
        let mut depth = 0;
        while self.at < self.toks.len() {
            if self.is(b'{') {
                depth += 1;
            }
            if self.is(b'}') {
                depth -= 1;
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    fn top(&mut self) -> Result<(), PtxError> {
        let line = self.line();
        let word = self.word()?;
        match word.as_str() {
            ".version" => {
                // `9.0` was read as a float.
                if let Some(&Tok::F64(bits)) = self.peek() {
                    let v = f64::from_bits(bits);
                    let tenths = (v * 10.0).round() as u32;
                    self.module.version = (tenths / 10, tenths % 10);
                }
                self.skip_line(line);
            }
            ".target" => {
                self.module.target = self.word()?;
                self.skip_line(line);
            }
            ".address_size" => {
                if self.int()? != 64 {
                    return refuse(line, "addresses of 64 bits only");
                }
            }
            ".file" => {
                let number = self.int()?;
                if let Some(Tok::Str(name)) = self.peek() {
                    let name = name.clone();
                    self.module.files.insert(u32::try_from(number).unwrap_or(0), name);
                }
                self.skip_line(line);
            }
            ".section" => {
                while self.at < self.toks.len() && !self.is(b'{') {
                    self.at += 1;
                }
                self.skip_braces();
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => self.entry()?,
            ".func" => self.skip_function(),
            ".global" | ".const" | ".shared" => {
                let var = self.variable(&word)?;
                self.module.vars.push(var);
            }
            ".pragma" => {
                while self.at < self.toks.len() && !self.eat(b';') {
                    self.at += 1;
                }
            }
            other => return refuse(line, format!("unknown directive `{other}`")),
        }
        Ok(())
    }

    fn skip_function(&mut self) {
        while self.at < self.toks.len() {
            if self.eat(b';') {
                return;
            }
            if self.is(b'{') {
                return self.skip_braces();
            }
            self.at += 1;
        }
    }

    /// After `.global`, `.const`, `.shared` or `.local`, up to and with `;`.
    fn variable(&mut self, space: &str) -> Result<Var, PtxError> {
        let line = self.line();
        let space = match space {
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".shared" => Space::Shared,
            _ => Space::Local,
        };
        let (mut align, mut element) = (0, 0);
        while let Some(Tok::Word(w)) = self.peek() {
            if !w.starts_with('.') {
                break;
            }
            let w = self.word()?;
            match w.as_str() {
                ".align" => align = self.size()?,
                _ => match type_bytes(&w) {
                    Some(bytes) => element = bytes,
                    None => return refuse(line, format!("`{w}` in a declaration is not handled")),
                },
            }
        }
        let name = self.word()?;
        let mut count = Some(1usize);
        while self.eat(b'[') {
            if self.eat(b']') {
                count = None;
            } else {
                let n = self.size()?;
                count = count.map(|c| c * n);
                self.expect(b']')?;
            }
        }
        let mut init = Vec::new();
        if self.eat(b'=') {
            let braced = self.eat(b'{');
            loop {
                let minus = self.eat(b'-');
                let value = match self.peek() {
                    Some(&Tok::Int(v)) if minus => v.wrapping_neg(),
                    Some(&Tok::Int(v) | &Tok::F64(v)) => v,
                    Some(&Tok::F32(v)) => u64::from(v),
                    other => return refuse(self.line(), format!("an initial value of {other:?} is not handled")),
                };
                self.at += 1;
                init.extend_from_slice(&value.to_le_bytes()[..element.min(8)]);
                if !braced || !self.eat(b',') {
                    break;
                }
            }
            if braced {
                self.expect(b'}')?;
            }
        }
        self.expect(b';')?;
        let bytes = count.map(|c| c * element);
        Ok(Var { name, space, align: align.max(element).max(1), bytes, init })
    }

    fn entry(&mut self) -> Result<(), PtxError> {
        let mut entry = Entry { name: self.word()?, ..Entry::default() };
        if self.eat(b'(') {
            while !self.eat(b')') {
                let line = self.line();
                let (mut align, mut element) = (0, 0);
                let mut name = String::new();
                while !self.is(b',') && !self.is(b')') && !self.is(b'[') {
                    let w = self.word()?;
                    match w.as_str() {
                        ".param" => {}
                        ".align" => align = self.size()?,
                        // `.ptr .global .align 16` says what the pointer points to.
                        ".ptr" => {
                            while let Some(Tok::Word(w)) = self.peek() {
                                if !matches!(w.as_str(), ".global" | ".const" | ".shared" | ".local" | ".align") {
                                    break;
                                }
                                if self.word()? == ".align" {
                                    self.size()?;
                                }
                            }
                        }
                        w if w.starts_with('.') => match type_bytes(w) {
                            Some(bytes) => element = bytes,
                            None => return refuse(line, format!("a parameter of `{w}` is not handled")),
                        },
                        _ => name = w,
                    }
                }
                let mut bytes = element;
                if self.eat(b'[') {
                    bytes = element * self.size()?;
                    self.expect(b']')?;
                }
                let offset = entry.param_bytes.next_multiple_of(align.max(element).max(1));
                entry.param_bytes = offset + bytes;
                entry.params.push(Param { name, offset, bytes });
                self.eat(b',');
            }
        }
        while !self.is(b'{') {
            if self.eat(b';') {
                return Ok(());
            }
            let line = self.line();
            let w = self.word()?;
            match w.as_str() {
                ".maxntid" | ".reqntid" => {
                    let mut dims = [1u32; 3];
                    for dim in &mut dims {
                        *dim = u32::try_from(self.size()?).unwrap_or(u32::MAX);
                        if !self.eat(b',') {
                            break;
                        }
                    }
                    entry.max_threads = Some(dims.iter().product());
                    if w == ".reqntid" {
                        entry.required = Some(dims);
                    }
                }
                ".minnctapersm" | ".maxnreg" | ".maxnctapersm" => {
                    self.int()?;
                }
                other => return refuse(line, format!("`{other}` of a kernel is not handled")),
            }
        }
        self.body(&mut entry)?;
        self.module.entries.push(entry);
        Ok(())
    }

    fn body(&mut self, entry: &mut Entry) -> Result<(), PtxError> {
        self.expect(b'{')?;
        let mut scopes = vec![Scope::default()];
        let mut scope = 0;
        let mut loc = (0, 0);
        // (statement, label, scope) to be bound once all labels are known.
        let mut jumps: Vec<(usize, String, usize)> = Vec::new();
        loop {
            let line = self.line();
            if self.eat(b'}') {
                if scope == 0 {
                    break;
                }
                scope = scopes[scope].parent;
                continue;
            }
            if self.eat(b'{') {
                scopes.push(Scope { parent: scope, ..Scope::default() });
                scope = scopes.len() - 1;
                continue;
            }
            if self.eat(b';') {
                continue;
            }
            let mut guard = None;
            if self.eat(b'@') {
                let not = self.eat(b'!');
                let name = self.word()?;
                match find(&scopes, scope, &name) {
                    Some((Class::Pred, slot)) => guard = Some((slot, not)),
                    _ => return refuse(line, format!("`{name}` is not a predicate")),
                }
            }
            let word = match self.peek() {
                Some(Tok::Word(_)) => self.word()?,
                Some(other) => return refuse(line, format!("expected an instruction, found {other:?}")),
                None => return refuse(line, "the kernel does not end"),
            };
            if self.eat(b':') {
                if self.is_word(".branchtargets") {
                    self.word()?;
                    let mut names = vec![self.word()?];
                    while self.eat(b',') {
                        names.push(self.word()?);
                    }
                    self.expect(b';')?;
                    scopes[scope].tables.insert(word, names);
                } else {
                    let here = u32::try_from(entry.stmts.len()).unwrap_or(u32::MAX);
                    scopes[scope].labels.insert(word, here);
                }
                continue;
            }
            match word.as_str() {
                ".loc" => {
                    let file = u32::try_from(self.int()?).unwrap_or(0);
                    loc = (file, u32::try_from(self.int()?).unwrap_or(0));
                    self.skip_line(line);
                    continue;
                }
                ".reg" => {
                    self.registers(&mut scopes[scope], entry)?;
                    continue;
                }
                ".local" | ".shared" | ".const" | ".global" => {
                    let var = self.variable(&word)?;
                    entry.vars.push(var);
                    continue;
                }
                ".pragma" => {
                    while self.at < self.toks.len() && !self.eat(b';') {
                        self.at += 1;
                    }
                    continue;
                }
                ".param" => return refuse(line, "device calls are not handled: inline every function"),
                _ => {}
            }
            let mut args = Vec::new();
            while !self.eat(b';') {
                if self.peek().is_none() {
                    return refuse(line, "the statement does not end");
                }
                args.push(self.arg(&scopes, scope)?);
                if !self.eat(b',') && !self.is(b';') {
                    // The predicate of `shfl` and `setp`, `a|b`, is read by `arg`; anything else is foreign.
                    return refuse(self.line(), format!("unexpected {:?} after an operand of `{word}`", self.peek()));
                }
            }
            if (word == "bra" || word == "bra.uni")
                && let Some(Arg::Sym(label, 0)) = args.first()
            {
                jumps.push((entry.stmts.len(), label.clone(), scope));
            }
            if word.starts_with("brx.idx")
                && let Some(Arg::Sym(table, 0)) = args.get(1)
            {
                jumps.push((entry.stmts.len(), table.clone(), scope));
            }
            entry.stmts.push(Stmt { line, loc, guard, op: word, args, target: 0, targets: Vec::new() });
        }
        for (stmt, label, scope) in jumps {
            let line = entry.stmts[stmt].line;
            if entry.stmts[stmt].op.starts_with("brx") {
                let mut at = scope;
                let names = loop {
                    match scopes[at].tables.get(&label) {
                        Some(names) => break names.clone(),
                        None if at == 0 => return refuse(line, format!("no list of targets `{label}`")),
                        None => at = scopes[at].parent,
                    }
                };
                for name in names {
                    let target = label_of(&scopes, scope, &name, line)?;
                    entry.stmts[stmt].targets.push(target);
                }
            } else {
                entry.stmts[stmt].target = label_of(&scopes, scope, &label, line)?;
            }
        }
        Ok(())
    }

    fn registers(&mut self, scope: &mut Scope, entry: &mut Entry) -> Result<(), PtxError> {
        let line = self.line();
        let ty = self.word()?;
        let (class, count) = match (ty.as_str(), type_bytes(&ty)) {
            (".pred", _) => (Class::Pred, &mut entry.n_pred),
            (_, Some(1 | 2 | 4)) => (Class::Word, &mut entry.n_word),
            (_, Some(8)) => (Class::Long, &mut entry.n_long),
            _ => return refuse(line, format!("registers of `{ty}` are not handled")),
        };
        loop {
            let name = match self.peek() {
                Some(Tok::Word(w)) => w.clone(),
                other => return refuse(line, format!("expected a register, found {other:?}")),
            };
            self.at += 1;
            if self.eat(b'<') {
                let n = self.size()?;
                self.expect(b'>')?;
                for idx in 0..n {
                    scope.regs.insert(format!("{name}{idx}"), (class, *count));
                    *count += 1;
                }
            } else {
                scope.regs.insert(name, (class, *count));
                *count += 1;
            }
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn arg(&mut self, scopes: &[Scope], scope: usize) -> Result<Arg, PtxError> {
        let line = self.line();
        let first = self.simple(scopes, scope)?;
        if self.eat(b'|') {
            let second = self.simple(scopes, scope)?;
            return Ok(Arg::Pair(Box::new(first), Box::new(second)));
        }
        if let Arg::Sym(name, 0) = &first
            && self.eat(b'+')
        {
            return Ok(Arg::Sym(name.clone(), self.int()?));
        }
        if self.is(b'+') {
            return refuse(line, "an offset outside brackets");
        }
        Ok(first)
    }

    fn simple(&mut self, scopes: &[Scope], scope: usize) -> Result<Arg, PtxError> {
        let line = self.line();
        if self.eat(b'[') {
            let base = self.simple(scopes, scope)?;
            let mut offset = 0;
            if self.eat(b'+') || self.is(b'-') {
                offset = self.int()?;
            }
            if self.is(b',') {
                return refuse(line, "an operand with several coordinates (texture or tensor map) is not handled");
            }
            self.expect(b']')?;
            return Ok(match base {
                Arg::Int(v) => Arg::Mem(Box::new(Arg::Int(v)), offset),
                base => Arg::Mem(Box::new(base), offset),
            });
        }
        if self.eat(b'{') {
            let mut items = Vec::new();
            while !self.eat(b'}') {
                items.push(self.simple(scopes, scope)?);
                self.eat(b',');
                if self.peek().is_none() {
                    return refuse(line, "`{` does not end");
                }
            }
            return Ok(Arg::Vec(items));
        }
        if self.eat(b'!') {
            let name = self.word()?;
            return match find(scopes, scope, &name) {
                Some((Class::Pred, slot)) => Ok(Arg::Not(slot)),
                _ => refuse(line, format!("`{name}` is not a predicate")),
            };
        }
        if self.is(b'-') {
            if let Some(Token { tok: Tok::F32(bits), .. }) = self.toks.get(self.at + 1) {
                let bits = *bits ^ 0x8000_0000;
                self.at += 2;
                return Ok(Arg::F32(bits));
            }
            return Ok(Arg::Int(self.int()?));
        }
        match self.peek().cloned() {
            Some(Tok::Int(_)) => Ok(Arg::Int(self.int()?)),
            Some(Tok::F32(bits)) => {
                self.at += 1;
                Ok(Arg::F32(bits))
            }
            Some(Tok::F64(bits)) => {
                self.at += 1;
                Ok(Arg::F64(bits))
            }
            Some(Tok::Word(name)) => {
                self.at += 1;
                if name == "_" {
                    return Ok(Arg::Sink);
                }
                Ok(match find(scopes, scope, &name) {
                    Some((class, slot)) => Arg::Reg(class, slot),
                    None => Arg::Sym(name, 0),
                })
            }
            other => refuse(line, format!("expected an operand, found {other:?}")),
        }
    }
}

fn find(scopes: &[Scope], mut scope: usize, name: &str) -> Option<(Class, u32)> {
    loop {
        if let Some(&found) = scopes[scope].regs.get(name) {
            return Some(found);
        }
        if scope == 0 {
            return None;
        }
        scope = scopes[scope].parent;
    }
}

fn label_of(scopes: &[Scope], mut scope: usize, name: &str, line: u32) -> Result<u32, PtxError> {
    loop {
        if let Some(&found) = scopes[scope].labels.get(name) {
            return Ok(found);
        }
        if scope == 0 {
            return refuse(line, format!("no label `{name}`"));
        }
        scope = scopes[scope].parent;
    }
}
