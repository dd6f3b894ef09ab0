//! The text of a kernel, stable for golden tests: one statement per line.

use std::fmt;

use super::{
    Access, BufId, Contract, ContractDim, Dim, FoldKind, Index, Keeps, Kernel, Nest, Operand, PairDim, Parts, Plane,
    PlaneSide, Position, Rank, Role, ScalarOp, ScatterDim, Stmt, Term, Val, ValId, Work,
};

impl fmt::Display for BufId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

impl fmt::Display for ValId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Read => "read",
            Role::Write => "write",
            Role::Update => "update",
        })
    }
}

impl fmt::Display for FoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FoldKind::Sum => "sum",
            FoldKind::Max => "max",
        })
    }
}

impl fmt::Display for Val {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Rank::Row => write!(f, "{}", self.dtype),
            Rank::Strip => write!(f, "{}[]", self.dtype),
        }
    }
}

impl fmt::Display for ScalarOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            ScalarOp::Exp => "exp",
            ScalarOp::Log => "log",
            ScalarOp::Tanh => "tanh",
            ScalarOp::Erf => "erf",
            ScalarOp::Sin => "sin",
            ScalarOp::Cos => "cos",
            ScalarOp::Sqrt => "sqrt",
            ScalarOp::Floor => "floor",
            ScalarOp::Neg => "neg",
            ScalarOp::Cast => "cast",
            ScalarOp::Round(dtype) => return write!(f, "round.{dtype}"),
            ScalarOp::Add => "add",
            ScalarOp::Sub => "sub",
            ScalarOp::Mul => "mul",
            ScalarOp::Div => "div",
            ScalarOp::Max => "max",
            ScalarOp::Rem => "rem",
            ScalarOp::Pow => "pow",
            ScalarOp::Less => "less",
            ScalarOp::Equal => "equal",
            ScalarOp::And => "and",
            ScalarOp::Or => "or",
            ScalarOp::Not => "not",
            ScalarOp::Select => "select",
            ScalarOp::Uniform { place } => return write!(f, "uniform.{place}"),
        };
        f.write_str(name)
    }
}

/// `c · x` in a sum: nothing for 0, the sign in front.
fn product(f: &mut fmt::Formatter<'_>, first: &mut bool, coef: i64, what: &dyn fmt::Display) -> fmt::Result {
    match (*first, coef < 0) {
        (true, true) => f.write_str("-")?,
        (false, true) => f.write_str(" - ")?,
        (false, false) => f.write_str(" + ")?,
        (true, false) => {}
    }
    *first = false;
    match coef.unsigned_abs() {
        1 => write!(f, "{what}"),
        size => write!(f, "{size}·{what}"),
    }
}

fn constant(f: &mut fmt::Formatter<'_>, first: &mut bool, value: i64) -> fmt::Result {
    if value == 0 {
        return Ok(());
    }
    match (*first, value < 0) {
        (true, _) => write!(f, "{value}")?,
        (false, true) => write!(f, " - {}", value.unsigned_abs())?,
        (false, false) => write!(f, " + {value}")?,
    }
    *first = false;
    Ok(())
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.div == 1 && self.modulo == 0;
        let parens = !plain && self.terms.len() + usize::from(self.base != 0) > 1;
        if parens {
            f.write_str("(")?;
        }
        let mut first = true;
        for (dim, coef) in &self.terms {
            product(f, &mut first, *coef, dim)?;
        }
        constant(f, &mut first, if plain { self.base + self.plus } else { self.base })?;
        if first {
            f.write_str("0")?;
        }
        if parens {
            f.write_str(")")?;
        }
        if self.div != 1 {
            write!(f, "/{}", self.div)?;
        }
        if self.modulo != 0 {
            write!(f, "%{}", self.modulo)?;
        }
        if !plain {
            constant(f, &mut false, self.plus)?;
        }
        Ok(())
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let simple = match &self.index {
            Position::Index(index) => {
                index.terms.len() == 1 && index.terms[0].1 == 1 && index.base == 0 && index.plus == 0 && index.div == 1
            }
            Position::Value(_) => true,
        };
        if !simple || self.range.is_some() {
            f.write_str("(")?;
        }
        match &self.index {
            Position::Index(index) => write!(f, "{index}")?,
            Position::Value(val) => write!(f, "{val}")?,
        }
        if let Some((lo, hi)) = self.range {
            write!(f, " in {lo}..{hi}")?;
        }
        if !simple || self.range.is_some() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        let mut first = true;
        constant(f, &mut first, self.base)?;
        for term in &self.terms {
            if term.coef == 0 {
                f.write_str(if first { "0·" } else { " + 0·" })?;
                first = false;
                write!(f, "{term}")?;
            } else {
                product(f, &mut first, term.coef, term)?;
            }
        }
        if first {
            f.write_str("0")?;
        }
        if self.terms.iter().any(|term| term.range.is_some()) && self.fill.as_f64() != 0.0 {
            write!(f, " else {}", self.fill)?;
        }
        f.write_str("]")
    }
}

fn line(f: &mut fmt::Formatter<'_>, vals: &[Val], stmt: &Stmt) -> fmt::Result {
    let define = |f: &mut fmt::Formatter<'_>, val: &ValId| match vals.get(val.0 as usize) {
        Some(ty) => write!(f, "    {val}: {ty} = "),
        None => write!(f, "    {val}: ? = "),
    };
    match stmt {
        Stmt::Load { val, buf, access } => {
            define(f, val)?;
            writeln!(f, "load {buf}{access}")
        }
        Stmt::Const { val, value } => {
            define(f, val)?;
            writeln!(f, "{value}")
        }
        Stmt::Index { val, index } => {
            define(f, val)?;
            writeln!(f, "index {index}")
        }
        Stmt::Map { val, op, args } => {
            define(f, val)?;
            write!(f, "{op}")?;
            for arg in args {
                write!(f, " {arg}")?;
            }
            writeln!(f)
        }
        Stmt::Fold { val, kind, from } => {
            define(f, val)?;
            writeln!(f, "fold {kind} {from}")
        }
        Stmt::Store { buf, access, val } => writeln!(f, "    store {buf}{access} = {val}"),
        Stmt::Exit { buf, access, kind, val } => writeln!(f, "    exit {buf}{access} = {kind} {val}"),
    }
}

fn list<T>(f: &mut fmt::Formatter<'_>, items: &[T], each: impl Fn(&T) -> String) -> fmt::Result {
    let texts: Vec<String> = items.iter().map(each).collect();
    write!(f, "({})", texts.join(", "))
}

fn contract_dims(f: &mut fmt::Formatter<'_>, name: &str, dims: &[ContractDim]) -> fmt::Result {
    write!(f, "    {name} ")?;
    list(f, dims, |dim| format!("{} a {} b {}", dim.extent, dim.a, dim.b))?;
    writeln!(f)
}

fn scatter_dims(f: &mut fmt::Formatter<'_>, name: &str, dims: &[ScatterDim]) -> fmt::Result {
    write!(f, "    {name} ")?;
    list(f, dims, |dim| format!("{} rows {} index {} out {}", dim.extent, dim.rows, dim.index, dim.out))?;
    writeln!(f)
}

fn pair_dims(f: &mut fmt::Formatter<'_>, name: &str, dims: &[PairDim]) -> fmt::Result {
    write!(f, "    {name} ")?;
    list(f, dims, |dim| format!("{} x {} out {}", dim.extent, dim.x, dim.out))?;
    writeln!(f)
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            0 => write!(f, "{}", self.buf),
            base => write!(f, "{}[{base}..]", self.buf),
        }
    }
}

impl fmt::Display for Nest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  nest ")?;
        list(f, &self.grid, u64::to_string)?;
        write!(f, " strip {}", self.strip)?;
        if self.has_exits() {
            write!(f, " keep {} chunks {}", self.keep, self.chunks)?;
        }
        writeln!(f)?;
        self.body.iter().try_for_each(|stmt| line(f, &self.vals, stmt))
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = match self.parts {
            Parts::Whole => "",
            Parts::Three => " in 3 products",
            Parts::Six => " in 6 products",
        };
        writeln!(f, "  contract {} · {}{parts}", self.a, self.b)?;
        contract_dims(f, "batch", &self.batch)?;
        contract_dims(f, "m", &self.m)?;
        contract_dims(f, "n", &self.n)?;
        contract_dims(f, "k", &self.k)?;
        if let Some(ty) = self.vals.first() {
            writeln!(f, "    v0: {ty} = product")?;
        }
        self.body.iter().try_for_each(|stmt| line(f, &self.vals, stmt))
    }
}

impl fmt::Display for PlaneSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} batch ", self.operand)?;
        list(f, &self.batch, i64::to_string)?;
        write!(f, " along ")?;
        list(f, &self.along, i64::to_string)
    }
}

impl fmt::Display for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  plane batch ")?;
        list(f, &self.batch, u64::to_string)?;
        write!(f, " rows ")?;
        list(f, &self.rows, u64::to_string)?;
        writeln!(f, " columns {}", self.columns)?;
        for (at, (one, ty)) in self.ins.iter().zip(&self.vals).enumerate() {
            writeln!(f, "    v{at}: {ty} = {} · {}", one.a, one.b)?;
            contract_dims(f, "  k", &one.k)?;
        }
        self.body.iter().try_for_each(|stmt| line(f, &self.vals, stmt))?;
        for one in &self.outs {
            let summed = if one.keeps == Keeps::Rows { "columns" } else { "rows" };
            writeln!(f, "    {} = sum over {summed} {} · {}", one.out, one.val, one.with)?;
            pair_dims(f, "  n", &one.n)?;
        }
        Ok(())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.name)?;
        for (at, buf) in self.bufs.iter().enumerate() {
            writeln!(f, "  b{at} {}: {}[{}] {}", buf.name, buf.dtype, buf.len, buf.role)?;
        }
        match &self.work {
            Work::Nest(nest) => write!(f, "{nest}"),
            Work::Contract(contract) => write!(f, "{contract}"),
            Work::Plane(plane) => write!(f, "{plane}"),
            Work::Scatter(scatter) => {
                let verb = if scatter.put { "put" } else { "add" };
                let (rows, index, out) = (scatter.rows, scatter.index, scatter.out);
                write!(f, "  scatter {verb} {rows} at {index} ")?;
                if let Some(base) = scatter.base {
                    write!(f, "onto {base} ")?;
                }
                writeln!(f, "into {out}: {} stride {}", scatter.extent, scatter.stride)?;
                scatter_dims(f, "keep", &scatter.keep)?;
                scatter_dims(f, "points", &scatter.points)?;
                scatter_dims(f, "inner", &scatter.inner)
            }
            Work::Prefix(prefix) => {
                let end = if prefix.reverse { " reverse" } else { "" };
                writeln!(f, "  prefix {} into {}{end}", prefix.x, prefix.out)?;
                pair_dims(f, "outer", &prefix.outer)?;
                pair_dims(f, "along", &[prefix.along])
            }
            Work::Top(top) => {
                writeln!(f, "  top {} of {} into {}", top.k, top.x, top.out)?;
                pair_dims(f, "outer", &top.outer)?;
                pair_dims(f, "along", &[top.along])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mdl_graph::DType;

    use crate::kernel::*;

    /// Softmax rows with a causal guard, and the sum of all results as an exit.
    fn softmax() -> Kernel {
        let (d0, d1) = (Dim(0), Dim(1));
        let buf = |name: &str, len, role| Buf { name: name.into(), dtype: DType::F32, len, role };
        let mut nest = Nest::new(vec![6], 5);
        let v = ValId;
        let strip = Val::strip(DType::F32);
        let row = Val::row(DType::F32);
        nest.vals = vec![strip, row, strip, strip, row, strip, row];
        let shifted = Access {
            base: 0,
            terms: vec![
                Term { index: Position::Index(Index::dim(d0)), coef: 5, range: None },
                Term { index: Position::Index(Index::affine(-1, vec![(d1, 1)])), coef: 1, range: Some((0, 5)) },
            ],
            fill: mdl_graph::Scalar::Float(f64::NEG_INFINITY),
        };
        nest.body = vec![
            Stmt::Load { val: v(0), buf: BufId(0), access: shifted },
            Stmt::Fold { val: v(1), kind: FoldKind::Max, from: v(0) },
            Stmt::Map { val: v(2), op: ScalarOp::Sub, args: vec![v(0), v(1)] },
            Stmt::Map { val: v(3), op: ScalarOp::Exp, args: vec![v(2)] },
            Stmt::Fold { val: v(4), kind: FoldKind::Sum, from: v(3) },
            Stmt::Map { val: v(5), op: ScalarOp::Div, args: vec![v(3), v(4)] },
            Stmt::Store { buf: BufId(1), access: Access::affine(0, &[(d0, 5), (d1, 1)]), val: v(5) },
            Stmt::Fold { val: v(6), kind: FoldKind::Sum, from: v(5) },
            Stmt::Exit { buf: BufId(2), access: Access::scalar(), kind: FoldKind::Sum, val: v(6) },
        ];
        nest.chunks = nest.default_chunks();
        let bufs = vec![buf("x", 30, Role::Read), buf("y", 30, Role::Write), buf("total", 1, Role::Write)];
        Kernel { name: "softmax".into(), bufs, work: Work::Nest(nest) }
    }

    #[test]
    fn a_kernel_prints_one_statement_per_line() {
        let expected = "\
kernel softmax
  b0 x: f32[30] read
  b1 y: f32[30] write
  b2 total: f32[1] write
  nest (6) strip 5 keep 0 chunks 1
    v0: f32[] = load b0[5·d0 + (d1 - 1 in 0..5) else -inf]
    v1: f32 = fold max v0
    v2: f32[] = sub v0 v1
    v3: f32[] = exp v2
    v4: f32 = fold sum v3
    v5: f32[] = div v3 v4
    store b1[5·d0 + d1] = v5
    v6: f32 = fold sum v5
    exit b2[0] = sum v6
";
        let kernel = softmax();
        assert_eq!(kernel.verify(), Ok(()));
        assert_eq!(kernel.to_string(), expected);
    }

    #[test]
    fn a_kernel_survives_json() -> Result<(), serde_json::Error> {
        let kernel = softmax();
        let text = serde_json::to_string(&kernel)?;
        assert_eq!(serde_json::from_str::<Kernel>(&text)?, kernel);
        Ok(())
    }

    #[test]
    fn verify_names_the_statement() {
        let mut kernel = softmax();
        kernel.bufs[1].len = 29;
        let error = kernel.verify().map_err(|error| error.to_string());
        assert_eq!(error, Err("kernel softmax, statement 6: positions 0..=29 of b1 leave its 29".to_string()));
    }
}
