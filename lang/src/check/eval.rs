//! Expressions and blocks.

use std::rc::Rc;

use mdl_graph::Name;

use super::Elaborator;
use super::call::{given_of, pattern_name};
use super::scope::with_given;
use super::value::{Args, Env, Eval, FunctionKind, LayerMaker, MakerKind, Stop, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{
    ArgKind, BinaryOp, Block, Expr, ExprKind, Pattern, PatternKind, RecordPart, Require, Span, StatementKind, Type,
    TypeKind, Unit,
};

/// Evaluation uses this much of the stack at most: half of the smallest stack that a thread of Rust's has by default.
const MAX_STACK: usize = 1024 * 1024;

/// Compile-time lists are unrolled, so they are bounded.
const MAX_LIST: i64 = 100_000;

impl Elaborator<'_> {
    /// The value of an expression. `Err(Stop)`: a diagnostic was pushed.
    pub fn eval(&mut self, env: &Env, expr: &Expr) -> Eval<Value> {
        let span = expr.span;
        let here = std::ptr::from_ref(&span).addr();
        if self.calls.is_empty() && self.evaluating.is_empty() && self.building.is_empty() {
            self.stack_base = self.stack_base.max(here);
        }
        if self.stack_base.saturating_sub(here) > MAX_STACK {
            return Err(self.error(Code::E0214, "the recipe is nested too deeply to be evaluated", span, "this deep"));
        }
        match &expr.kind {
            ExprKind::Int(value) => Ok(Value::Int(*value)),
            ExprKind::Float(value) => Ok(Value::Float(*value)),
            ExprKind::Quantity { value, unit: Unit::Count(unit) } if unit.is_empty() => Ok(Value::Float(*value)),
            ExprKind::Quantity { value, unit } => Ok(Value::Quantity { value: *value, unit: unit.clone() }),
            ExprKind::Str(text) => Ok(Value::str(text)),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::None => Ok(Value::None),
            ExprKind::Training => Ok(Value::Bool(env.frame.training)),
            ExprKind::Hole => Ok(Value::Host(Rc::from("_"))),
            ExprKind::Name(name) => self.lookup(env, name, span, false),
            ExprKind::Tuple(items) => {
                let mut out = Vec::with_capacity(items.len());
                for item in items {
                    out.push(self.eval(env, item)?);
                }
                Ok(Value::tuple(out))
            }
            ExprKind::Record(parts) => self.eval_record(env, parts),
            ExprKind::List(items) => {
                let mut out = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    out.push(self.part(&i.to_string(), |elab| elab.eval(env, item))?);
                }
                Ok(Value::list(out))
            }
            ExprKind::Comprehension { element, pattern, source, condition } => {
                let mut out = Vec::new();
                for item in self.items_of(env, source)? {
                    let env = self.bind_pattern(env, pattern, item, source.span)?;
                    if let Some(condition) = condition
                        && !self.eval_condition(&env, condition)?
                    {
                        continue;
                    }
                    out.push(self.part(&out.len().to_string(), |elab| elab.eval(&env, element))?);
                }
                Ok(Value::list(out))
            }
            ExprKind::Range { start, end } => {
                let mut bound = |side: &Option<Box<Expr>>| match side {
                    Some(expr) => self.eval_int(env, expr, "a bound of a range").map(Some),
                    None => Ok(None),
                };
                let (start, end) = (bound(start)?, bound(end)?);
                Ok(Value::Range { start, end })
            }
            ExprKind::Lambda { params, body } => Ok(Value::function(FunctionKind::Lambda {
                params: Rc::new(params.clone()),
                body: Rc::new((**body).clone()),
                env: env.clone(),
            })),
            ExprKind::Block(block) => self.eval_block(env, block),
            ExprKind::If { branches, otherwise } => {
                for branch in branches {
                    if self.eval_condition(env, &branch.condition)? {
                        return self.eval_block(env, &branch.body);
                    }
                }
                match otherwise {
                    Some(block) => self.eval_block(env, block),
                    None => Ok(Value::None),
                }
            }
            ExprKind::Unary { op, value } => {
                let operand = self.eval(env, value)?;
                self.unary(*op, &operand, value.span, span)
            }
            ExprKind::Binary { op, op_span: _, left, right } => {
                let a = self.eval(env, left);
                // `window == none or far < window`: the right side may have no meaning where the left one decides.
                match (op, &a) {
                    (BinaryOp::And, Ok(Value::Bool(false))) => return Ok(Value::Bool(false)),
                    (BinaryOp::Or, Ok(Value::Bool(true))) => return Ok(Value::Bool(true)),
                    _ => {}
                }
                let b = self.eval(env, right);
                let (a, b) = (a?, b?);
                match (op, &a, &b) {
                    (BinaryOp::And | BinaryOp::Or, Value::Bool(_), Value::Bool(_) | Value::Tensor(_)) => return Ok(b),
                    (BinaryOp::And, Value::Tensor(_), Value::Bool(true)) => return Ok(a),
                    (BinaryOp::Or, Value::Tensor(_), Value::Bool(false)) => return Ok(a),
                    (BinaryOp::And, Value::Tensor(_), Value::Bool(false)) => return Ok(b),
                    (BinaryOp::Or, Value::Tensor(_), Value::Bool(true)) => return Ok(b),
                    _ => {}
                }
                self.binary(*op, (&a, left.span), (&b, right.span), span)
            }
            ExprKind::Bracket { base, axes } => {
                let value = match &base.kind {
                    ExprKind::Name(name) => self.lookup(env, name, base.span, true)?,
                    _ => self.eval(env, base)?,
                };
                self.bracket(env, value, axes, base.span, span)
            }
            ExprKind::Call { callee, args } => {
                let value = match &callee.kind {
                    ExprKind::Name(name) => self.lookup(env, name, callee.span, true)?,
                    ExprKind::Bracket { .. } => self.eval(env, callee)?,
                    _ => self.eval(env, callee)?,
                };
                if let Value::Function(function) = &value
                    && let FunctionKind::Builtin(builtin) = &function.kind
                    && builtin.name == "grad"
                {
                    return self.eval_grad(env, args, span);
                }
                let args = self.eval_args(env, &value, args)?;
                self.call_in(env, &value, args, span)
            }
            ExprKind::Member { base, name } => {
                let value = match &base.kind {
                    ExprKind::Name(base_name) => self.lookup(env, base_name, base.span, true)?,
                    _ => self.eval(env, base)?,
                };
                self.member(env, &value, &name.text, name.span)
            }
            ExprKind::Copies { kind, axes, body } => self.eval_copies(env, *kind, axes, body),
            ExprKind::At { value, pattern } => {
                let selected = self.eval(env, value)?;
                let text = self.eval(env, pattern)?;
                let Some(text) = text.as_str() else {
                    let message = format!("`at` takes a pattern of paths, not {}", text.kind());
                    return Err(self.error(Code::E0209, message, pattern.span, "expected a Str such as \"blocks.**\""));
                };
                let text = self.spelled_out(env, text);
                Ok(Value::At { value: Rc::new(selected), pattern: Rc::from(text) })
            }
        }
    }

    /// A pattern with the numbers that it names in braces: `"blocks.{i}.**"` for each `i` of a list, `"blocks.{0..n}"`.
    pub fn spelled_out(&mut self, env: &Env, pattern: &str) -> String {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('{') {
            let Some((inside, after)) = after.split_once('}') else { break };
            let choices = inside.split(',').map(|choice| {
                let bounds = choice.split("..").map(|word| match self.whole_number(env, word.trim()) {
                    Some(number) => number.to_string(),
                    None => word.trim().to_string(),
                });
                bounds.collect::<Vec<_>>().join("..")
            });
            let choices = choices.collect::<Vec<_>>().join(", ");
            out += &format!("{before}{{{choices}}}");
            rest = after;
        }
        out + rest
    }

    /// The value of a variable or an argument of the recipe that is a whole number; axes are no candidates.
    fn whole_number(&mut self, env: &Env, name: &str) -> Option<i64> {
        let value = match env.get(name) {
            Some(value) => value.clone(),
            None => self.arg_value(env, name)?,
        };
        if let Value::Int(number) = value { Some(number) } else { None }
    }

    fn eval_record(&mut self, env: &Env, parts: &[RecordPart]) -> Eval<Value> {
        let mut fields: Vec<(Rc<str>, Value)> = Vec::new();
        for part in parts {
            match part {
                RecordPart::Field { name, value } => {
                    let value = self.part(&name.text, |elab| elab.eval(env, value))?;
                    match fields.iter_mut().find(|(known, _)| **known == *name.text) {
                        Some(known) => known.1 = value,
                        None => fields.push((Rc::from(name.text.as_str()), value)),
                    }
                }
                RecordPart::Spread(expr) => match self.eval(env, expr)? {
                    Value::Record(more) => {
                        for (name, value) in more.iter() {
                            match fields.iter_mut().find(|(known, _)| known == name) {
                                Some(known) => known.1 = value.clone(),
                                None => fields.push((name.clone(), value.clone())),
                            }
                        }
                    }
                    other => {
                        let message = format!("`..` in a record takes a record, not {}", other.kind());
                        return Err(self.error(Code::E0209, message, expr.span, format!("this is {}", other.kind())));
                    }
                },
            }
        }
        Ok(Value::Record(Rc::new(fields)))
    }

    /// What a `for` runs over.
    fn items_of(&mut self, env: &Env, source: &Expr) -> Eval<Vec<Value>> {
        match self.eval(env, source)? {
            Value::List(items) | Value::Tuple(items) => Ok(items.to_vec()),
            Value::Range { start, end: Some(end) } => {
                let start = start.unwrap_or(0);
                if end - start > MAX_LIST {
                    let message = format!("a list of {} elements", end - start);
                    return Err(self.error(Code::E0211, message, source.span, format!("at most {MAX_LIST}")));
                }
                Ok((start..end).map(Value::Int).collect())
            }
            Value::Error => Err(Stop),
            other => {
                let message = format!("`for` runs over a list or a range with an end, not {}", other.kind());
                Err(self.error(Code::E0209, message, source.span, format!("this is {}", other.kind())))
            }
        }
    }

    pub(super) fn eval_int(&mut self, env: &Env, expr: &Expr, what: &str) -> Eval<i64> {
        let value = self.eval(env, expr)?;
        match value.as_int() {
            Some(value) => Ok(value),
            None if matches!(value, Value::Error) => Err(Stop),
            None => {
                let shown = super::types::show(&value);
                Err(self.error(
                    Code::E0209,
                    format!("{what} is an Int, not {shown}"),
                    expr.span,
                    format!("this is {shown}"),
                ))
            }
        }
    }

    pub(super) fn eval_condition(&mut self, env: &Env, expr: &Expr) -> Eval<bool> {
        match self.eval(env, expr)? {
            Value::Bool(value) => Ok(value),
            Value::Error => Err(Stop),
            Value::Tensor(_) => {
                let help = "`where(condition, a, b)` chooses by a tensor, element by element";
                let message = "a condition is known at compile time, not a tensor";
                Err(self.error_help(Code::E0213, message, expr.span, "known only when the model runs", help))
            }
            other => {
                let message = format!("a condition is a Bool, not {}", other.kind());
                Err(self.error(Code::E0209, message, expr.span, format!("this is {}", other.kind())))
            }
        }
    }

    pub(super) fn eval_args(&mut self, env: &Env, callee: &Value, args: &[crate::syntax::ast::Arg]) -> Eval<Args> {
        let mut out = Args::default();
        let mut bad = false;
        // A layer built as an argument of another lives under the parameter's name.
        let params = match callee {
            Value::Maker(maker) => match &maker.what {
                MakerKind::Code(code) | MakerKind::Partial(code, _) => {
                    code.ast.params.iter().map(|param| pattern_name(&param.pattern)).collect()
                }
            },
            _ => Vec::new(),
        };
        for arg in args {
            let step = match &arg.kind {
                ArgKind::Positional(_) | ArgKind::Trailing(_) => params.get(out.positional.len()).cloned(),
                ArgKind::Named { name, .. } => params.contains(&name.text).then(|| name.text.clone()),
                ArgKind::Spread(_) => None,
            };
            let (ArgKind::Positional(expr)
            | ArgKind::Trailing(expr)
            | ArgKind::Spread(expr)
            | ArgKind::Named { value: expr, .. }) = &arg.kind;
            let value = match step {
                Some(step) => self.part(&step, |elab| elab.eval(env, expr)),
                None => self.eval(env, expr),
            };
            let Ok(value) = value else {
                bad = true;
                continue;
            };
            match &arg.kind {
                ArgKind::Positional(_) | ArgKind::Trailing(_) => out.positional.push((value, expr.span)),
                ArgKind::Named { name, .. } => out.named.push((Rc::from(name.text.as_str()), value, expr.span)),
                ArgKind::Spread(_) => match &value {
                    Value::Record(fields) => {
                        out.named.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone(), expr.span)));
                    }
                    other => {
                        let message = format!("`..` among arguments takes a record, not {}", other.kind());
                        self.error(Code::E0209, message, expr.span, format!("this is {}", other.kind()));
                        bad = true;
                    }
                },
            }
        }
        if bad { Err(Stop) } else { Ok(out) }
    }

    // ---- blocks ----

    pub(super) fn eval_block(&mut self, env: &Env, block: &Block) -> Eval<Value> {
        let mut env = env.clone();
        let n_before = self.diagnostics.len();
        for statement in &block.statements {
            env = self.statement(&env, &statement.kind)?;
        }
        let value = self.eval(&env, &block.value);
        // A mistake in a statement whose name the value does not use is still a mistake.
        let failed = self.diagnostics[n_before.min(self.diagnostics.len())..].iter().any(Diagnostic::is_error);
        if failed { Err(Stop) } else { value }
    }

    /// What is in scope after a statement; a mistake in one that makes names leaves names that keep quiet.
    fn statement(&mut self, env: &Env, kind: &StatementKind) -> Eval<Env> {
        let after = match kind {
            StatementKind::Let { pattern, ty, value } => {
                let result = self.eval_let(env, ty.as_ref(), value);
                let result = result.and_then(|result| self.note_let(env, pattern, result, value.span));
                let bound = result.and_then(|result| self.bind_pattern(env, pattern, result, value.span));
                bound.unwrap_or_else(|_| poison(env, pattern))
            }
            StatementKind::Axis(decls) => {
                for decl in decls {
                    if self.declare_axis(env, &decl.name.text, &decl.size).is_err() {
                        env.frame.poison_axis(&Name::from(decl.name.text.as_str()));
                    }
                }
                env.clone()
            }
            StatementKind::Next { name, value } => {
                let next = self.eval(env, value).and_then(|next| self.set_next(env, name, next, value.span));
                env.with(name.text.as_str(), next.unwrap_or(Value::Error))
            }
            StatementKind::Loss { name, value } => {
                let loss = self.eval(env, value).and_then(|loss| self.add_loss(env, name, &loss, value.span));
                env.with(name.text.as_str(), loss.unwrap_or(Value::Error))
            }
            // What follows counts on it.
            StatementKind::Require(require) => return self.require(env, require).map(|()| env.clone()),
        };
        Ok(after)
    }

    /// `require rate < 1, "some must be left"`: of what is known at compile time.
    pub(super) fn require(&mut self, env: &Env, require: &Require) -> Eval<()> {
        if self.eval_condition(env, &require.condition)? {
            return Ok(());
        }
        let mut names = Vec::new();
        names_in(&require.condition, &mut names);
        let known = names.iter().filter_map(|name| match env.get(name)? {
            Value::Int(value) => Some(format!("`{name}` is {value}")),
            Value::Float(value) => Some(format!("`{name}` is {value}")),
            Value::Bool(value) => Some(format!("`{name}` is {value}")),
            Value::Str(value) => Some(format!("`{name}` is {value:?}")),
            _ => None,
        });
        let known = known.collect::<Vec<_>>().join(", ");
        let label = if known.is_empty() { "this does not hold".to_string() } else { known };
        Err(self.error(Code::E0224, require.reason.as_str(), require.condition.span, label))
    }

    /// A `let` in a function of a layer may be watched.
    fn note_let(&mut self, env: &Env, pattern: &Pattern, value: Value, span: Span) -> Eval<Value> {
        if !self.watches.is_empty()
            && let PatternKind::Name(name) = &pattern.kind
        {
            let this = env.frame.this.borrow().clone();
            if let Some(this) = this {
                self.note(&this, Some(name), &value, span)?;
            }
        }
        Ok(value)
    }

    fn eval_let(&mut self, env: &Env, ty: Option<&Type>, value: &Expr) -> Eval<Value> {
        let Some(ty) = ty else { return self.eval(env, value) };
        let declared = match &ty.kind {
            TypeKind::Tensor { axes: Some(axes), .. } => {
                self.declared_names(env, &axes.items)?.0.into_iter().map(|(name, _)| name).collect()
            }
            _ => Vec::new(),
        };
        let before = std::mem::replace(&mut self.declared, declared);
        let result = self.eval(env, value);
        self.declared = before;
        self.conform(env, ty, result?, value.span, "the value")
    }

    // ---- members ----

    /// `base.name`
    pub(super) fn member(&mut self, env: &Env, value: &Value, name: &str, span: Span) -> Eval<Value> {
        let names: Vec<String> = match value {
            Value::Error => return Err(Stop),
            Value::Record(fields) => match self.json_field(fields, name, span)? {
                Some(Value::Error) => return Err(Stop),
                Some(value) => return Ok(value),
                None => fields.iter().map(|(name, _)| name.to_string()).collect(),
            },
            Value::Layer(layer) => match self.layer_member(env, layer, name, span)? {
                Some(value) => return Ok(value),
                None => layer.data.members.iter().map(|(name, _)| name.to_string()).collect(),
            },
            Value::Decoder(decoder) => match self.decoder_member(decoder, name) {
                Some(value) => return Ok(value),
                None => ["empty", "read", "keep"].map(str::to_string).to_vec(),
            },
            Value::Optimizer(optimizer) => match self.optimizer_member(optimizer, name) {
                Some(value) => return Ok(value),
                None => Vec::new(),
            },
            other => {
                let message = format!("{} has no members", other.kind());
                return Err(self.error(Code::E0216, message, span, format!("this is {}", other.kind())));
            }
        };
        let diagnostic =
            Diagnostic::error(Code::E0216, format!("{} has no `{name}`", value.kind())).label(span, "not known");
        Err(self.fail(match crate::diag::nearest(name, names.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None if names.is_empty() => diagnostic,
            None => diagnostic.help(format!("it has {}", names.join(", "))),
        }))
    }

    /// Axes in brackets after a value that is called or built: kept until then.
    pub(super) fn give_axes(
        &mut self,
        env: &Env,
        value: &Value,
        axes: &crate::syntax::ast::Axes,
        span: Span,
    ) -> Eval<Option<Value>> {
        Ok(Some(match value {
            Value::Function(function) if function.given.is_none() => with_given(function, given_of(axes, env)),
            Value::Maker(maker) if maker.given.is_none() => {
                let what = match &maker.what {
                    MakerKind::Code(code) => MakerKind::Code(code.clone()),
                    MakerKind::Partial(code, args) => MakerKind::Partial(code.clone(), args.clone()),
                };
                Value::Maker(Rc::new(LayerMaker { what, given: Some(given_of(axes, env)) }))
            }
            Value::Function(_) | Value::Maker(_) => {
                return Err(self.error(
                    Code::E0217,
                    "its axes are given already",
                    span,
                    "brackets for the second time",
                ));
            }
            _ => return Ok(None),
        }))
    }
}

/// The names of a pattern, all unknown because of a mistake.
fn poison(env: &Env, pattern: &Pattern) -> Env {
    match &pattern.kind {
        PatternKind::Wildcard => env.clone(),
        PatternKind::Name(name) => env.with(name.as_str(), Value::Error),
        PatternKind::Tuple(parts) => parts.iter().fold(env.clone(), |env, part| poison(&env, part)),
    }
}

/// The names that a condition speaks of, each once.
fn names_in<'a>(condition: &'a Expr, names: &mut Vec<&'a str>) {
    match &condition.kind {
        ExprKind::Name(name) if !names.contains(&name.as_str()) => names.push(name),
        ExprKind::Unary { value, .. } => names_in(value, names),
        ExprKind::Binary { left, right, .. } => [left, right].into_iter().for_each(|side| names_in(side, names)),
        _ => {}
    }
}
