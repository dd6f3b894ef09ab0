//! Reading the value of one field: what the schema says it takes, in a Rust type, or a diagnostic that says what was
//! expected and what came.

use mdl_graph::Axis;

use crate::diag::{Code, Diagnostic, nearest};
use crate::spec::DataSpec;
use crate::syntax::ast::{ArgKind, Expr, ExprKind, Span, Unit};

use super::schema::{FieldRow, FunctionRow, MANY, Need, Takes, one_of};

/// A compile-time value, as far as fields care.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Quantity(f64, Unit),
    Str(String),
    /// A part of a data block: `plays.val`.
    Part {
        data: String,
        part: String,
    },
    /// A stage.
    Stage {
        kind: &'static str,
        name: String,
    },
    /// Anything else, in words: `a list`.
    Other(String),
}

impl Plain {
    /// For errors: `a number of bytes`.
    pub(crate) fn came(&self) -> String {
        match self {
            Plain::None => "`none`".to_owned(),
            Plain::Bool(value) => format!("`{value}`"),
            Plain::Int(value) => format!("the number {value}"),
            Plain::Float(value) => format!("the number {value}"),
            Plain::Quantity(_, Unit::Percent) => "a share in percent".to_owned(),
            Plain::Quantity(_, Unit::Bytes) => "a number of bytes".to_owned(),
            Plain::Quantity(_, Unit::Seconds) => "a time".to_owned(),
            Plain::Quantity(_, Unit::Count(unit)) => format!("a number of {unit}"),
            Plain::Str(text) => format!("the text {text:?}"),
            Plain::Part { data, part } => format!("the part `{data}.{part}`"),
            Plain::Stage { kind, name } => format!("the `{kind}` block `{name}`"),
            Plain::Other(words) => words.clone(),
        }
    }
}

/// What a reader needs of the checker.
pub(crate) trait Compute {
    /// The value of an expression in the scope of the recipe; `None` when that was reported already.
    fn plain(&mut self, expr: &Expr) -> Option<Plain>;
    /// An axis that the recipe declares; `Ok(None)` when it declares none of this name.
    fn axis(&mut self, name: &str) -> Result<Option<Axis>, Reported>;
    /// The names of all declared axes, for help.
    fn axis_names(&mut self) -> Vec<String>;
    /// Whether the recipe has an `arg` of this name.
    fn is_arg(&mut self, name: &str) -> bool;
    /// What a `data` block of the recipe says of its texts; `None` when there is none of this name, or something is wrong with it.
    fn data_block(&mut self, name: &str) -> Option<DataSpec>;
    fn report(&mut self, diagnostic: Diagnostic);
}

/// A count with its unit, as written: `3 epochs`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Count {
    pub(crate) value: u64,
    /// Empty without one.
    pub(crate) unit: String,
}

/// A call of a function of the tables, its arguments matched to their rows.
#[derive(Debug)]
pub(crate) struct Called<'e> {
    pub(crate) row: &'static FunctionRow,
    pub(crate) span: Span,
    args: Vec<(&'static FieldRow, &'e Expr)>,
}

impl<'e> Called<'e> {
    pub(crate) fn get(&self, name: &str) -> Option<(&'static FieldRow, &'e Expr)> {
        self.args.iter().find(|(row, _)| row.name == name).copied()
    }

    pub(crate) fn text(&self, compute: &mut dyn Compute, name: &str) -> Option<String> {
        let (row, expr) = self.get(name)?;
        text(compute, row, expr)
    }

    /// The argument, or its default.
    pub(crate) fn count(&self, compute: &mut dyn Compute, name: &str) -> Option<u64> {
        match self.get(name) {
            Some((row, expr)) => count(compute, row, expr).map(|count| count.value),
            None => Some(default_number(self.arg(name)) as u64),
        }
    }

    /// The argument, or its default.
    pub(crate) fn number(&self, compute: &mut dyn Compute, name: &str) -> Option<f64> {
        match self.get(name) {
            Some((row, expr)) => number(compute, row, expr),
            None => Some(default_number(self.arg(name))),
        }
    }

    fn arg(&self, name: &str) -> &'static FieldRow {
        match self.row.args.iter().find(|row| row.name == name) {
            Some(row) => row,
            None => mdl_graph::bug!("the table of `{}` has no `{name}`", self.row.name),
        }
    }
}

/// The default of a row that takes a number: it stands in the table and nowhere else.
pub(crate) fn default_number(row: &FieldRow) -> f64 {
    let Need::Default(text) = row.need else { mdl_graph::bug!("`{}` has no default", row.name) };
    match text.replace('_', "").parse() {
        Ok(number) => number,
        Err(_) => mdl_graph::bug!("the default of `{}` is no number: {text}", row.name),
    }
}

fn label(row: &FieldRow) -> String {
    format!("`{}` is {}", row.name, row.takes.expected())
}

/// The error for a value of the wrong kind.
pub(crate) fn wrong_type(row: &FieldRow, span: Span, came: &str) -> Diagnostic {
    Diagnostic::error(Code::E0303, format!("`{}` takes {}, and this is {came}", row.name, row.takes.expected()))
        .label(span, format!("{came} here"))
        .help(row.doc)
}

fn wrong_unit(row: &FieldRow, span: Span, came: &str) -> Diagnostic {
    Diagnostic::error(Code::E0304, format!("`{}` takes {}, and this is {came}", row.name, row.takes.expected()))
        .label(span, format!("{came} here"))
        .help(row.doc)
}

fn out_of_range(row: &FieldRow, span: Span, came: &str) -> Diagnostic {
    Diagnostic::error(Code::E0306, format!("`{}` takes {}, and this is {came}", row.name, row.takes.expected()))
        .label(span, label(row))
        .help(row.doc)
}

/// A whole number with its unit.
pub(crate) fn count(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Count> {
    let Takes::Count { least, most, units } = row.takes else { return None };
    let plain = compute.plain(expr)?;
    let (value, unit) = match &plain {
        Plain::Int(value) => (*value, String::new()),
        // `1e5` is a float that happens to be whole; a number of steps may be written so.
        Plain::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => (*value as i64, String::new()),
        Plain::Quantity(value, Unit::Count(unit)) if units.contains(&unit.as_str()) => {
            if value.fract() != 0.0 || value.abs() >= 9e15 {
                compute.report(out_of_range(row, expr.span, &format!("{value} {unit}")));
                return None;
            }
            (*value as i64, unit.clone())
        }
        Plain::Quantity(..) => {
            compute.report(wrong_unit(row, expr.span, &plain.came()));
            return None;
        }
        other => {
            compute.report(wrong_type(row, expr.span, &other.came()));
            return None;
        }
    };
    match u64::try_from(value) {
        Ok(count) if (least..=most).contains(&value) => Some(Count { value: count, unit }),
        Ok(_) if value > most => {
            compute.report(
                Diagnostic::error(Code::E0306, format!("`{}` is at most {most}, and this is {value}", row.name))
                    .label(expr.span, "too large")
                    .help(row.doc),
            );
            None
        }
        _ => {
            compute.report(out_of_range(row, expr.span, &plain.came()));
            None
        }
    }
}

/// A number; a share such as `10%` is its fraction.
pub(crate) fn number(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<f64> {
    let Takes::Number { zero } = row.takes else { return None };
    let plain = compute.plain(expr)?;
    let value = match &plain {
        Plain::Int(value) => *value as f64,
        Plain::Float(value) | Plain::Quantity(value, Unit::Percent) => *value,
        Plain::Quantity(..) => {
            compute.report(wrong_unit(row, expr.span, &plain.came()));
            return None;
        }
        other => {
            compute.report(wrong_type(row, expr.span, &other.came()));
            return None;
        }
    };
    if value.is_finite() && (value > 0.0 || (zero && value == 0.0)) {
        return Some(value);
    }
    compute.report(out_of_range(row, expr.span, &plain.came()));
    None
}

/// A number of bytes, with a unit: a bare number would leave open which.
pub(crate) fn bytes(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<u64> {
    match compute.plain(expr)? {
        Plain::Quantity(value, Unit::Bytes) if value >= 1.0 => Some(value as u64),
        plain @ (Plain::Int(_) | Plain::Float(_)) => {
            compute.report(wrong_unit(row, expr.span, &format!("{} without a unit", plain.came())));
            None
        }
        plain @ Plain::Quantity(..) => {
            compute.report(wrong_unit(row, expr.span, &plain.came()));
            None
        }
        plain => {
            compute.report(wrong_type(row, expr.span, &plain.came()));
            None
        }
    }
}

pub(crate) fn boolean(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<bool> {
    match compute.plain(expr)? {
        Plain::Bool(value) => Some(value),
        plain => {
            compute.report(wrong_type(row, expr.span, &plain.came()));
            None
        }
    }
}

pub(crate) fn text(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<String> {
    match compute.plain(expr)? {
        Plain::Str(text) => Some(text),
        plain => {
            compute.report(wrong_type(row, expr.span, &plain.came()));
            None
        }
    }
}

/// One of a few words, written bare (`bf16`) or as a text, such as the value of an `arg`.
pub(crate) fn choice(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<&'static str> {
    let Takes::Choice(words) = row.takes else { return None };
    let find = |text: &str| words.iter().find(|word| **word == text).copied();
    let text = match &expr.kind {
        // A bare word: one of these, or the name of an argument that holds one.
        ExprKind::Name(name) if find(name).is_some() || !compute.is_arg(name) => name.clone(),
        _ => match compute.plain(expr)? {
            Plain::Str(text) => text,
            plain => {
                compute.report(wrong_type(row, expr.span, &plain.came()));
                return None;
            }
        },
    };
    let word = find(&text);
    if word.is_none() {
        let diagnostic = out_of_range(row, expr.span, &format!("`{text}`"));
        compute.report(match nearest(&text, words.iter().copied()) {
            Some(word) => diagnostic.help(format!("did you mean `{word}`?")),
            None => diagnostic,
        });
    }
    word
}

/// A declared axis, by its name.
pub(crate) fn axis(compute: &mut dyn Compute, row: &'static FieldRow, expr: &Expr) -> Option<Axis> {
    match &expr.kind {
        ExprKind::Name(name) => {
            if let Some(axis) = compute.axis(name).ok()? {
                if axis.size == 0 || axis.size > MANY as u64 {
                    compute.report(out_of_range(row, expr.span, &format!("`{name}` of size {}", axis.size)));
                    return None;
                }
                return Some(axis);
            }
            let names = compute.axis_names();
            let mut diagnostic = Diagnostic::error(
                Code::E0303,
                format!("`{}` takes an axis, and `{name}` is none that the recipe declares", row.name),
            )
            .label(expr.span, "no axis of this name");
            diagnostic = match nearest(name, names.iter().map(String::as_str)) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => diagnostic.help(format!("declare it with its size: `axis {name} = 256`")),
            };
            compute.report(diagnostic);
            None
        }
        ExprKind::List(_) => {
            let diagnostic = Diagnostic::error(
                Code::E0704,
                format!("buckets, a list of sizes for `{}`, are not in this version", row.name),
            )
            .label(expr.span, "a list here")
            .help("give one axis; rows are cut or filled to its size");
            compute.report(diagnostic);
            None
        }
        _ => {
            let plain = compute.plain(expr)?;
            compute.report(
                wrong_type(row, expr.span, &plain.came())
                    .help("declare an axis, `axis t = 256`, and give its name: batches carry it"),
            );
            None
        }
    }
}

/// "A diagnostic was pushed."
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reported;

/// The branch that an `if` of compile-time values takes; other expressions are themselves. `Ok(None)`: `none`.
pub(crate) fn chosen<'e>(compute: &mut dyn Compute, expr: &'e Expr) -> Result<Option<&'e Expr>, Reported> {
    let inner = match &expr.kind {
        ExprKind::None => return Ok(None),
        ExprKind::Block(block) => Some(block),
        ExprKind::If { branches, otherwise } => {
            let mut taken = None;
            for branch in branches {
                match compute.plain(&branch.condition).ok_or(Reported)? {
                    Plain::Bool(true) => {
                        taken = Some(&branch.body);
                        break;
                    }
                    Plain::Bool(false) => {}
                    plain => {
                        compute.report(
                            Diagnostic::error(
                                Code::E0303,
                                format!("a condition is `true` or `false`, and this is {}", plain.came()),
                            )
                            .label(branch.condition.span, "the condition"),
                        );
                        return Err(Reported);
                    }
                }
            }
            let Some(taken) = taken.or(otherwise.as_ref()) else {
                compute.report(
                    Diagnostic::error(Code::E0303, "this `if` gives nothing when its condition is false")
                        .label(expr.span, "without `else`")
                        .help("add `else { none }`"),
                );
                return Err(Reported);
            };
            Some(taken)
        }
        _ => None,
    };
    match inner {
        // With statements it is for the evaluator.
        Some(block) if block.statements.is_empty() => chosen(compute, &block.value),
        _ => Ok(Some(expr)),
    }
}

/// As `chosen`, where `none` is a mistake.
pub(crate) fn present<'e>(compute: &mut dyn Compute, row: &'static FieldRow, expr: &'e Expr) -> Option<&'e Expr> {
    match chosen(compute, expr) {
        Ok(Some(expr)) => Some(expr),
        Ok(None) => {
            compute.report(wrong_type(row, expr.span, "`none`"));
            None
        }
        Err(Reported) => None,
    }
}

/// Calls of functions of a table: one, or a list of them.
pub(crate) fn calls<'e>(compute: &mut dyn Compute, row: &'static FieldRow, expr: &'e Expr) -> Option<Vec<Called<'e>>> {
    let (Takes::Calls(rows) | Takes::Call(rows)) = row.takes else { return None };
    let expr = present(compute, row, expr)?;
    if let (ExprKind::List(items), Takes::Calls(_)) = (&expr.kind, row.takes) {
        if items.is_empty() {
            compute.report(wrong_type(row, expr.span, "an empty list"));
            return None;
        }
        let called: Vec<_> = items.iter().map(|item| call(compute, row, rows, item)).collect();
        return called.into_iter().collect();
    }
    call(compute, row, rows, expr).map(|called| vec![called])
}

/// A call of one function of a table.
pub(crate) fn call<'e>(
    compute: &mut dyn Compute,
    field: &'static FieldRow,
    rows: &'static [FunctionRow],
    expr: &'e Expr,
) -> Option<Called<'e>> {
    let expr = present(compute, field, expr)?;
    let (name, args) = match &expr.kind {
        ExprKind::Call { callee, args } => match &callee.kind {
            ExprKind::Name(name) => (name, args),
            _ => {
                compute.report(wrong_type(field, expr.span, "a call of something else"));
                return None;
            }
        },
        ExprKind::Name(name) if rows.iter().any(|row| row.name == name) => {
            compute.report(
                Diagnostic::error(Code::E0303, format!("`{}` takes a call, and `{name}` is not called", field.name))
                    .label(expr.span, "no parentheses")
                    .help(format!("write `{name}()`, with its arguments in the parentheses")),
            );
            return None;
        }
        _ => {
            let plain = compute.plain(expr)?;
            compute.report(wrong_type(field, expr.span, &plain.came()));
            return None;
        }
    };
    let Some(row) = rows.iter().find(|row| row.name == name) else {
        let names = rows.iter().filter(|row| !row.later).map(|row| row.name);
        let diagnostic = Diagnostic::error(Code::E0309, format!("`{}` knows no `{name}`", field.name))
            .label(expr.span, format!("`{}` is {}", field.name, field.takes.expected()));
        compute.report(match nearest(name, names.clone()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("there are {}", one_of(names).replace(" or ", " and "))),
        });
        return None;
    };
    if row.later {
        compute.report(
            Diagnostic::error(Code::E0703, format!("`{name}` is not in this version"))
                .label(expr.span, format!("`{}` is {}", field.name, field.takes.expected())),
        );
        return None;
    }
    let mut called = Called { row, span: expr.span, args: Vec::new() };
    let mut fine = true;
    for (i, arg) in args.iter().enumerate() {
        fine &= take(compute, &mut called, i, &arg.kind, arg.span);
    }
    for missing in row.args.iter().filter(|arg| arg.need == Need::Required && called.get(arg.name).is_none()) {
        fine = false;
        compute.report(
            Diagnostic::error(Code::E0310, format!("`{name}` needs `{}`", missing.name))
                .label(expr.span, "missing here")
                .help(format!("{}: {}", missing.name, missing.doc)),
        );
    }
    fine.then_some(called)
}

/// Matches one argument with its row.
fn take<'e>(compute: &mut dyn Compute, called: &mut Called<'e>, i: usize, arg: &'e ArgKind, span: Span) -> bool {
    let name = called.row.name;
    let (row, value) = match arg {
        ArgKind::Positional(value) => (called.row.args.get(i), value),
        ArgKind::Named { name, value } => (called.row.args.iter().find(|row| row.name == name.text), value),
        ArgKind::Spread(_) | ArgKind::Trailing(_) => {
            compute.report(
                Diagnostic::error(Code::E0310, format!("`{name}` takes plain arguments")).label(span, "not this"),
            );
            return false;
        }
    };
    let Some(row) = row else {
        let names = || called.row.args.iter().map(|row| row.name);
        let diagnostic = match arg {
            ArgKind::Named { name: given, .. } => {
                let diagnostic = Diagnostic::error(Code::E0310, format!("`{name}` takes no `{}`", given.text))
                    .label(given.span, "unknown argument");
                match nearest(&given.text, names()) {
                    Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                    None if called.row.args.is_empty() => diagnostic.help(format!("`{name}` takes no arguments")),
                    None => diagnostic.help(format!("it takes {}", one_of(names()).replace(" or ", " and "))),
                }
            }
            _ => Diagnostic::error(Code::E0310, format!("`{name}` takes {} arguments at most", called.row.args.len()))
                .label(span, "one too many"),
        };
        compute.report(diagnostic);
        return false;
    };
    if let Some((_, first)) = called.get(row.name) {
        compute.report(
            Diagnostic::error(Code::E0310, format!("`{}` of `{name}` is given twice", row.name))
                .label(span, "again here")
                .label(first.span, "first here"),
        );
        return false;
    }
    called.args.push((row, value));
    true
}
