//! Statements whose operands follow a grammar of their own: accesses to memory, atomics, copies, matrices, packed registers, addresses.

use super::*;

impl Lower<'_> {
    /// Base and offset of `[…]` within a space; whether the base is a register of 32 bits.
    fn base(&mut self, arg: &Arg, generic: bool, line: u32) -> Result<(u32, i64, bool), PtxError> {
        let Arg::Mem(base, offset) = arg else {
            return refuse(line, format!("expected an address in brackets, found {}", describe(arg)));
        };
        match &**base {
            Arg::Reg(Class::Long, slot) => Ok((*slot, *offset, false)),
            Arg::Reg(Class::Word, slot) => Ok((*slot, *offset, true)),
            Arg::Int(v) => Ok((NONE, v.wrapping_add(*offset), false)),
            Arg::Sym(name, more) => match self.address(name, generic) {
                Some(at) => Ok((NONE, at.cast_signed().wrapping_add(*offset).wrapping_add(*more), false)),
                None => refuse(line, format!("`{name}` is not known here")),
            },
            other => refuse(line, format!("{} is not an address", describe(other))),
        }
    }

    pub(super) fn access(&mut self, stmt: &Stmt) -> Result<Instr, PtxError> {
        let (line, op) = (stmt.line, stmt.op.as_str());
        let unknown = || refuse(line, format!("opcode `{op}` is not known to the simulated GPU"));
        let mut parts = op.split('.');
        let is_load = parts.next() != Some("st");
        let (mut space, mut strong, mut count, mut ty) = ("generic", false, 1usize, None);
        for part in parts {
            if ty.is_some() {
                return unknown();
            }
            match part {
                "weak" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "nc" | "cta" | "gpu" | "sys" => {}
                "L1::evict_normal"
                | "L1::evict_unchanged"
                | "L1::evict_first"
                | "L1::evict_last"
                | "L1::no_allocate"
                | "L2::64B"
                | "L2::128B"
                | "L2::256B" => {}
                "volatile" | "relaxed" | "acquire" | "release" => strong = true,
                "global" | "shared" | "local" | "param" => space = part,
                "shared::cta" => space = "shared",
                "const" => space = "global",
                "v2" => count = 2,
                "v4" => count = 4,
                other => match type_bytes(&format!(".{other}")) {
                    Some(bytes) => ty = Some((other, bytes)),
                    None => return unknown(),
                },
            }
        }
        let Some((name, bytes)) = ty else { return unknown() };
        let kind = if is_load { "ld" } else { "st" };
        let Some(row) = self.table.get(&format!("#{kind}.{space}.{bytes}x{count}")) else { return unknown() };
        let [first, second] = stmt.args.as_slice() else { return operands(line, op) };
        let (data, place) = if is_load { (first, second) } else { (second, first) };
        let mut i = blank(&row, line, stmt.loc);
        let (base, offset, short) = self.base(place, space == "generic", line)?;
        if short && space != "shared" && space != "local" {
            return refuse(line, "an address of 32 bits outside shared memory");
        }
        (i.s[0], i.offset) = (base, offset);
        i.x = if short { memory::SHORT_ADDRESS } else { 0 };
        if strong {
            i.x |= memory::STRONG;
        }
        if name.starts_with('s') {
            i.x |= memory::SIGNED;
        }
        let items = match data {
            Arg::Vec(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        if items.len() != count {
            return operands(line, op);
        }
        let wide = bytes == 8 || items.iter().any(|a| matches!(a, Arg::Reg(Class::Long, _)));
        if wide {
            i.x |= memory::LONG;
        }
        let mut list = Vec::with_capacity(count);
        for item in items {
            list.push(match (is_load, item) {
                (true, Arg::Sink) => NONE,
                (true, item) => self.dest(item, if wide { Class::Long } else { Class::Word }, line)?,
                (false, item) if wide => self.long(item, line)?,
                (false, item) => self.word(item, line)?,
            });
        }
        i.list = list.into_boxed_slice();
        if space == "shared" || space == "generic" {
            self.shared_grain = self.shared_grain.min(bytes * count);
        }
        if space == "global" || space == "generic" {
            self.global_grain = self.global_grain.min(bytes * count);
        }
        Ok(i)
    }

    pub(super) fn atomic(&mut self, i: &mut Instr, stmt: &Stmt) -> Result<(), PtxError> {
        let (line, mut args) = (stmt.line, stmt.args.as_slice());
        if stmt.op.starts_with("atom") {
            let [d, rest @ ..] = args else { return operands(line, &stmt.op) };
            let class = if stmt.op.ends_with("64") { Class::Long } else { Class::Word };
            i.d = if *d == Arg::Sink { NONE } else { self.dest(d, class, line)? };
            args = rest;
        }
        let long = stmt.op.ends_with("64");
        let [place, values @ ..] = args else { return operands(line, &stmt.op) };
        if values.len() != 1 + usize::from(stmt.op.contains(".cas.")) {
            return operands(line, &stmt.op);
        }
        let is_generic = !stmt.op.contains(".global") && !stmt.op.contains(".shared");
        let (base, offset, short) = self.base(place, is_generic, line)?;
        (i.s[0], i.offset) = (base, offset);
        if short {
            i.x |= atomics::SHORT_ADDRESS;
        }
        for (k, value) in values.iter().enumerate() {
            i.s[1 + k] = if long { self.long(value, line)? } else { self.word(value, line)? };
        }
        let bytes = if long { 8 } else { 4 };
        if !stmt.op.contains(".global") {
            self.shared_grain = self.shared_grain.min(bytes);
        }
        if !stmt.op.contains(".shared") {
            self.global_grain = self.global_grain.min(bytes);
        }
        Ok(())
    }

    pub(super) fn copy(&mut self, i: &mut Instr, stmt: &Stmt) -> Result<(), PtxError> {
        let line = stmt.line;
        let [to, from, Arg::Int(size), more @ ..] = stmt.args.as_slice() else { return operands(line, &stmt.op) };
        let allowed: &[i64] = if stmt.op.contains(".cg.") { &[16] } else { &[4, 8, 16] };
        if !allowed.contains(size) || more.len() > 1 {
            return refuse(line, format!("`{}` of {size} bytes does not exist", stmt.op));
        }
        let (base, offset, short) = self.base(to, false, line)?;
        (i.s[0], i.offset) = (base, offset);
        i.x = cut(*size) | if short { 1 << 8 } else { 0 };
        let (from, offset, short) = self.base(from, false, line)?;
        if short {
            return refuse(line, "a source address of 32 bits");
        }
        (i.s[1], i.list) = if from == NONE {
            (self.const_long(offset.cast_unsigned()), Box::new([0, 0]))
        } else {
            let bits = offset.cast_unsigned();
            (from, Box::new([crate::sim::alu::low(bits), crate::sim::alu::low(bits >> 32)]))
        };
        match more.first() {
            Some(p @ (Arg::Reg(Class::Pred, _) | Arg::Not(_))) => i.s[3] = self.pred(p, line)?,
            Some(bytes) => i.s[2] = self.word(bytes, line)?,
            None => {}
        }
        let bytes = usize::try_from(*size).unwrap_or(16);
        self.shared_grain = self.shared_grain.min(bytes);
        self.global_grain = self.global_grain.min(if more.is_empty() { bytes } else { 4 });
        Ok(())
    }

    pub(super) fn product(&mut self, i: &mut Instr, counts: &[u8], stmt: &Stmt) -> Result<(), PtxError> {
        let line = stmt.line;
        if stmt.args.len() != counts.len() {
            return operands(line, &stmt.op);
        }
        let mut list = Vec::new();
        for (k, (arg, &count)) in stmt.args.iter().zip(counts).enumerate() {
            let items = match arg {
                Arg::Vec(items) => items.as_slice(),
                one => std::slice::from_ref(one),
            };
            if items.len() != usize::from(count - b'0') {
                return operands(line, &stmt.op);
            }
            for item in items {
                list.push(if k == 0 { self.dest(item, Class::Word, line)? } else { self.word(item, line)? });
            }
        }
        i.list = list.into_boxed_slice();
        Ok(())
    }

    pub(super) fn matrix(&mut self, i: &mut Instr, is_load: bool, count: u8, stmt: &Stmt) -> Result<(), PtxError> {
        let line = stmt.line;
        let [first, second] = stmt.args.as_slice() else { return operands(line, &stmt.op) };
        let (data, place) = if is_load { (first, second) } else { (second, first) };
        let items = match data {
            Arg::Vec(items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        if items.len() != usize::from(count - b'0') {
            return operands(line, &stmt.op);
        }
        let mut list = Vec::new();
        for item in items {
            list.push(if is_load { self.dest(item, Class::Word, line)? } else { self.word(item, line)? });
        }
        i.list = list.into_boxed_slice();
        let (base, offset, short) = self.base(place, false, line)?;
        (i.s[0], i.offset) = (base, offset);
        if short {
            i.x |= memory::SHORT_ADDRESS;
        }
        Ok(())
    }

    pub(super) fn pack(&mut self, stmt: &Stmt) -> Result<Instr, PtxError> {
        let line = stmt.line;
        let (piece, whole) = match (stmt.op.as_str(), stmt.args.as_slice()) {
            ("mov.b32", [Arg::Vec(v), _] | [_, Arg::Vec(v)]) if v.len() == 2 => (16, Class::Word),
            ("mov.b64", [Arg::Vec(v), _] | [_, Arg::Vec(v)]) if v.len() == 2 => (32, Class::Long),
            ("mov.b64", [Arg::Vec(v), _] | [_, Arg::Vec(v)]) if v.len() == 4 => (16, Class::Long),
            _ => return refuse(line, format!("`{}` with these vectors is not known to the simulated GPU", stmt.op)),
        };
        match stmt.args.as_slice() {
            [d, Arg::Vec(items)] => {
                let op: Op = if whole == Class::Word { moves::pack_word } else { moves::pack_long };
                let mut i = made(op, line, stmt.loc);
                i.d = self.dest(d, whole, line)?;
                i.list = items.iter().map(|a| self.word(a, line)).collect::<Result<_, _>>()?;
                i.x = piece;
                Ok(i)
            }
            [Arg::Vec(items), a] => {
                let op: Op = if whole == Class::Word { moves::unpack_word } else { moves::unpack_long };
                let mut i = made(op, line, stmt.loc);
                i.s[0] = if whole == Class::Word { self.word(a, line)? } else { self.long(a, line)? };
                let dest = |a: &Arg| if *a == Arg::Sink { Ok(NONE) } else { self.dest(a, Class::Word, line) };
                i.list = items.iter().map(dest).collect::<Result<_, _>>()?;
                i.x = piece;
                Ok(i)
            }
            _ => operands(line, &stmt.op),
        }
    }

    pub(super) fn cvta(&mut self, stmt: &Stmt) -> Result<Instr, PtxError> {
        let line = stmt.line;
        let parts: Vec<&str> = stmt.op.split('.').collect();
        let (to, space) = match parts.as_slice() {
            ["cvta", "to", space, "u64"] => (true, *space),
            ["cvta", space, "u64"] => (false, *space),
            _ => return refuse(line, format!("opcode `{}` is not known to the simulated GPU", stmt.op)),
        };
        let Some(base) = moves::window(space) else {
            return refuse(line, format!("opcode `{}` is not known to the simulated GPU", stmt.op));
        };
        let [d, a] = stmt.args.as_slice() else { return operands(line, &stmt.op) };
        let mut i = made(moves::rebase, line, stmt.loc);
        (i.d, i.s[0]) = (self.dest(d, Class::Long, line)?, self.long(a, line)?);
        i.offset = if to { base.cast_signed().wrapping_neg() } else { base.cast_signed() };
        Ok(i)
    }
}
