//! The small change of CUDA C: lines, types, constants, positions.

use mdl_compiler::kernel::{Access, Index, Position};
use mdl_graph::{DType, Scalar};

/// Lines with their indentation.
#[derive(Default)]
pub(super) struct Text {
    out: String,
    depth: usize,
}

impl Text {
    pub(super) fn line(&mut self, line: impl AsRef<str>) {
        for line in line.as_ref().lines() {
            self.out.extend(std::iter::repeat_n("    ", self.depth));
            self.out.push_str(line);
            self.out.push('\n');
        }
    }

    pub(super) fn blank(&mut self) {
        self.out.push('\n');
    }

    /// A line that ends in a brace, and what follows one step in.
    pub(super) fn open(&mut self, line: impl AsRef<str>) {
        self.line(format!("{} {{", line.as_ref()));
        self.depth += 1;
    }

    pub(super) fn close(&mut self) {
        self.close_with("");
    }

    /// A closing brace and what belongs to it.
    pub(super) fn close_with(&mut self, end: &str) {
        self.depth = self.depth.saturating_sub(1);
        self.line(format!("}}{end}"));
    }

    pub(super) fn finish(self) -> String {
        self.out
    }
}

/// What a value of this dtype is.
pub(super) fn value_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::BF16 | DType::F16 => "float",
        DType::F64 => "double",
        DType::I32 | DType::I8 | DType::U8 => "int",
        DType::I64 => "long long",
        DType::Bool => "bool",
    }
}

/// What an element in memory is.
pub(super) fn buf_type(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        DType::I8 => "signed char",
        DType::U8 => "unsigned char",
        other => value_type(other),
    }
}

/// A place in memory, as a value.
pub(super) fn loaded(dtype: DType, place: &str) -> String {
    match dtype {
        DType::BF16 | DType::F16 => format!("to_float({place})"),
        _ => place.to_string(),
    }
}

/// A value, as memory holds it.
pub(super) fn stored(dtype: DType, value: &str) -> String {
    match dtype {
        DType::BF16 => format!("to_bf16({value})"),
        DType::F16 => format!("to_f16({value})"),
        DType::I8 | DType::U8 => format!("({}){value}", buf_type(dtype)),
        _ => value.to_string(),
    }
}

pub(super) fn constant(dtype: DType, value: Scalar) -> String {
    let float = |value: f64| {
        let text = if dtype == DType::F64 { format!("{value:?}") } else { format!("{:?}f", value as f32) };
        match (value.is_nan(), value.is_infinite()) {
            (true, _) => "NAN".to_string(),
            (_, true) if value < 0.0 => "-INFINITY".to_string(),
            (_, true) => "INFINITY".to_string(),
            _ => text,
        }
    };
    match dtype {
        DType::F32 | DType::F64 | DType::BF16 | DType::F16 => float(value.as_f64()),
        DType::Bool => (value.as_f64() != 0.0).to_string(),
        // As wide as what it meets: functions are chosen by it.
        DType::I64 => match value.cast(dtype) {
            Scalar::Int(i64::MIN) => integer(i64::MIN),
            Scalar::Int(value) => format!("{value}LL"),
            other => format!("{}LL", other.as_f64() as i64),
        },
        DType::I32 | DType::I8 | DType::U8 => match value.cast(dtype) {
            Scalar::Int(value) => integer(value),
            other => integer(other.as_f64() as i64),
        },
    }
}

/// A literal of the type that it needs.
pub(super) fn integer(value: i64) -> String {
    match value {
        i64::MIN => "(-9223372036854775807LL - 1)".into(),
        // The literal of a negation is positive, and this one would be too large.
        -2_147_483_648 => "(-2147483647 - 1)".into(),
        _ if i32::try_from(value).is_ok() => value.to_string(),
        _ => format!("{value}LL"),
    }
}

/// `4 * d0 + d1 - 1`.
pub(super) fn sum(terms: &[(i64, String)], base: i64) -> String {
    let mut text = String::new();
    for (coef, what) in terms.iter().filter(|(coef, _)| *coef != 0) {
        let size = coef.unsigned_abs();
        let sign = match (text.is_empty(), *coef < 0) {
            (true, false) => "",
            (true, true) => "-",
            (false, false) => " + ",
            (false, true) => " - ",
        };
        text.push_str(sign);
        if size != 1 {
            text.push_str(&format!("{} * ", integer(size as i64)));
        }
        text.push_str(what);
    }
    match (text.is_empty(), base) {
        (true, _) => integer(base),
        (false, 0) => text,
        (false, base) if base < 0 => format!("{text} - {}", integer(-base)),
        (false, base) => format!("{text} + {}", integer(base)),
    }
}

/// A flat position as the position along the dimensions `first..`: `(name, how)` of each that is longer than 1.
pub(super) fn unflatten(flat: &str, extents: &[u64]) -> Vec<String> {
    let mut inner: u64 = 1;
    let mut all: Vec<String> = Vec::new();
    for (at, extent) in extents.iter().enumerate().rev() {
        let outermost = extents[..at].iter().all(|extent| *extent <= 1);
        all.push(match (*extent, inner, outermost) {
            (0 | 1, ..) => "0".to_string(),
            (_, 1, true) => flat.to_string(),
            (_, 1, false) => format!("{flat} % {}", integer(*extent as i64)),
            (_, inner, true) => format!("{flat} / {}", integer(inner as i64)),
            (_, inner, false) => format!("{flat} / {} % {}", integer(inner as i64), integer(*extent as i64)),
        });
        inner *= extent.max(&1);
    }
    all.reverse();
    all
}

/// The least and greatest value of an index.
pub(super) fn range(index: &Index, dims: &[u64]) -> (i64, i64) {
    let (mut lo, mut hi) = sum_range(index, dims);
    (lo, hi) = (lo.div_euclid(index.div as i64), hi.div_euclid(index.div as i64));
    let modulo = index.modulo as i64;
    if modulo != 0 {
        let same = lo.div_euclid(modulo) == hi.div_euclid(modulo);
        (lo, hi) = if same { (lo.rem_euclid(modulo), hi.rem_euclid(modulo)) } else { (0, modulo - 1) };
    }
    (lo + index.plus, hi + index.plus)
}

/// The same before it is divided.
fn sum_range(index: &Index, dims: &[u64]) -> (i64, i64) {
    let (mut lo, mut hi) = (index.base, index.base);
    for (dim, coef) in &index.terms {
        let reach = coef * (dims[dim.0 as usize].max(1) as i64 - 1);
        if reach < 0 { lo += reach } else { hi += reach }
    }
    (lo, hi)
}

/// The terms of an index that its dimensions move, as `d0`, `d1`.
fn moving(index: &Index, dims: &[u64]) -> Vec<(i64, String)> {
    let longer = index.terms.iter().filter(|(dim, _)| dims[dim.0 as usize] > 1);
    longer.map(|(dim, coef)| (*coef, format!("d{}", dim.0))).collect()
}

/// An index as text that may stand in a product.
fn factor(text: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '[' || c == ']';
    if text.chars().all(plain) { text } else { format!("({text})") }
}

/// The value of an index.
pub(super) fn index(index: &Index, dims: &[u64]) -> String {
    let terms = moving(index, dims);
    if index.div == 1 && index.modulo == 0 {
        return sum(&terms, index.base + index.plus);
    }
    sum(&[(1, quotient(index, dims))], index.plus)
}

/// What is left of an index that is divided, before `plus`.
fn quotient(index: &Index, dims: &[u64]) -> String {
    let mut text = factor(sum(&moving(index, dims), index.base));
    let (mut lo, mut hi) = sum_range(index, dims);
    if index.div != 1 {
        let div = integer(index.div as i64);
        text = if lo < 0 { format!("floor_div({text}, {div})") } else { format!("{text} / {div}") };
        (lo, hi) = (lo.div_euclid(index.div as i64), hi.div_euclid(index.div as i64));
    }
    if index.modulo != 0 {
        let modulo = integer(index.modulo as i64);
        let inside = lo >= 0 && hi < index.modulo as i64;
        text = match (inside, lo < 0) {
            (true, _) => text,
            (_, true) => format!("floor_rem({text}, {modulo})"),
            (_, false) => format!("{text} % {modulo}"),
        };
    }
    text
}

/// Where an access is, and what must hold for it to be there at all. `value` names the value of a gathered position.
pub(super) fn place(access: &Access, dims: &[u64], value: &dyn Fn(u32) -> String) -> (String, Vec<String>) {
    let mut terms: Vec<(i64, String)> = Vec::new();
    let mut base = access.base;
    let mut guards = Vec::new();
    let mut add = |coef: i64, what: String| match terms.iter_mut().find(|(_, known)| *known == what) {
        Some((sum, _)) => *sum += coef,
        None => terms.push((coef, what)),
    };
    for term in &access.terms {
        let (text, (lo, hi)) = match &term.index {
            Position::Index(one) => {
                if one.div == 1 && one.modulo == 0 {
                    base += term.coef * (one.base + one.plus);
                    moving(one, dims).into_iter().for_each(|(coef, what)| add(term.coef * coef, what));
                } else {
                    base += term.coef * one.plus;
                    add(term.coef, factor(quotient(one, dims)));
                }
                (index(one, dims), range(one, dims))
            }
            Position::Value(val) => {
                let name = value(val.0);
                add(term.coef, name.clone());
                (name, (i64::MIN, i64::MAX))
            }
        };
        if let Some((least, end)) = term.range {
            if lo < least {
                guards.push(format!("{text} >= {}", integer(least)));
            }
            if hi >= end {
                guards.push(format!("{text} < {}", integer(end)));
            }
        }
    }
    (sum(&terms, base), guards)
}
