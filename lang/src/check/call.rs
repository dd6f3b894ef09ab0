//! Calls: what can be called, and which argument meets which parameter. How axis names cross is in `cross.rs`.

use std::rc::Rc;

use super::Elaborator;
use super::axes::{Filled, Signature};
use super::cross::Callee;
use super::value::{Args, Env, Eval, FnCode, Frame, Function, FunctionKind, Given, Layer, MakerKind, Stop, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{ExprKind, FnDef, Param, Pattern, PatternKind, Span, Type, TypeKind};

/// Calls nest this deep at most: far more than any model, far less than a stack.
const MAX_DEPTH: usize = 96;

impl Elaborator<'_> {
    /// Calls any value that can be called.
    pub fn call(&mut self, callee: &Value, args: Args, span: Span) -> Eval<Value> {
        let env = self.outer_env();
        self.call_in(&env, callee, args, span)
    }

    fn outer_env(&self) -> Env {
        match self.files.first() {
            Some(file) => file.env.clone(),
            None => Env { vars: None, frame: Rc::new(Frame::new(0, String::new(), Rc::default())) },
        }
    }

    pub(super) fn call_in(&mut self, env: &Env, callee: &Value, args: Args, span: Span) -> Eval<Value> {
        if self.calls.len() >= MAX_DEPTH {
            return Err(self.error(
                Code::E0214,
                format!("calls are nested more than {MAX_DEPTH} deep"),
                span,
                "this call",
            ));
        }
        self.calls.push(span);
        let result = self.dispatch(env, callee, args, span);
        self.calls.pop();
        result
    }

    fn dispatch(&mut self, env: &Env, callee: &Value, args: Args, span: Span) -> Eval<Value> {
        if args.has_hole() {
            return self.partial(callee, args, span);
        }
        match callee {
            Value::Error => Err(Stop),
            Value::Function(function) => self.call_function(env, function, args, span),
            Value::Layer(layer) => self.call_layer(env, layer, None, args, span),
            Value::Maker(maker) => self.build(env, maker, args, span),
            Value::Tensor(weight) => self.apply_weight(weight, &args, span),
            Value::Stored(id) => {
                let weight = self.fetch(*id)?;
                self.apply_weight(&weight, &args, span)
            }
            Value::List(items) if items.iter().all(|item| matches!(item, Value::Layer(_))) => {
                let mut args = args;
                for item in items.iter() {
                    let result = self.call_in(env, item, args.clone(), span)?;
                    match args.positional.first_mut() {
                        Some(first) => first.0 = result,
                        None => {
                            return Err(self.error(
                                Code::E0208,
                                "a list of layers takes an argument",
                                span,
                                "called without",
                            ));
                        }
                    }
                }
                match args.positional.first() {
                    Some((value, _)) => Ok(value.clone()),
                    None => Err(Stop),
                }
            }
            Value::Host(name) => {
                let made = super::value::Made { name: name.clone(), args, span };
                Ok(Value::Made(Rc::new(made)))
            }
            other => {
                let message = format!("{} cannot be called", other.kind());
                Err(self.error(Code::E0217, message, span, format!("this is {}", other.kind())))
            }
        }
    }

    fn partial(&mut self, callee: &Value, args: Args, span: Span) -> Eval<Value> {
        Ok(match callee {
            Value::Maker(maker) => {
                let MakerKind::Code(code) = &maker.what else {
                    return Err(self.error(Code::E0217, "arguments were left open already", span, "again here"));
                };
                let what = MakerKind::Partial(code.clone(), args);
                Value::Maker(Rc::new(super::value::LayerMaker { what, given: maker.given.clone() }))
            }
            callee => Value::function(FunctionKind::Partial { callee: Rc::new(callee.clone()), args }),
        })
    }

    fn call_function(&mut self, env: &Env, function: &Rc<Function>, args: Args, span: Span) -> Eval<Value> {
        match &function.kind {
            FunctionKind::Builtin(builtin) => (builtin.run)(
                self,
                &mut super::builtins::Call { env, given: function.given.clone(), args, span, name: builtin.name },
            ),
            FunctionKind::Def { code, first } => {
                let lists = &code.def.params;
                let given = match &function.given {
                    Some(given) => Some(self.resolve_given(given)?),
                    None => None,
                };
                let (header, signature) =
                    self.fill_header(code.def.header.as_ref(), given.as_ref(), &code.def.name.text, span)?;
                let in_first = lists.len() == 2 && first.is_none();
                let params = if in_first { &lists[0] } else { lists.last().map_or(&[] as &[Param], Vec::as_slice) };
                if in_first {
                    let env = self.file_env(code.file);
                    let vars = self.first_list(&env, params, &code.def.name.text, args, span)?;
                    let kind = FunctionKind::Def { code: code.clone(), first: Some(Rc::new(vars)) };
                    return Ok(Value::Function(Rc::new(Function { kind, given: function.given.clone() })));
                }
                if waits(&header, params) {
                    let callee = Rc::new(Value::Function(function.clone()));
                    let waiting = Value::function(FunctionKind::Waiting { callee, args: args.clone() });
                    return match args.named("like").cloned() {
                        Some((_, like, like_span)) => self.fill_like(&waiting, &like, like_span, span),
                        None => Ok(waiting),
                    };
                }
                if self.running.iter().any(|running| Rc::ptr_eq(running, &code.def)) {
                    let message = format!("`{}` calls itself", code.def.name.text);
                    let help = "nothing calls itself: repeat a layer with `repeat[layer]`, or a step with `fold`";
                    return Err(self.error_help(Code::E0214, message, span, "this call leads back to it", help));
                }
                let first = first.as_deref().map(Vec::as_slice);
                let callee = self.callee_of(code, first, (header, signature), env.frame.training);
                self.running.push(code.def.clone());
                let result = self.run(callee, args, span);
                self.running.pop();
                result
            }
            FunctionKind::Method { layer, def, first } => {
                if let ([list, _], None) = (def.params.as_slice(), first) {
                    let label = code_def_label(layer, def);
                    let vars = self.first_list(&layer.data.env, list, &label, args, span)?;
                    let kind =
                        FunctionKind::Method { layer: layer.clone(), def: def.clone(), first: Some(Rc::new(vars)) };
                    return Ok(Value::Function(Rc::new(Function { kind, given: function.given.clone() })));
                }
                self.call_method(env, layer, (def, first.as_deref()), function.given.as_ref(), args, span)
            }
            FunctionKind::LayerCall(layer) => self.call_layer(env, layer, function.given.as_ref(), args, span),
            FunctionKind::Lambda { params, body, env: inner } => {
                let bound = self.bind_lambda(inner, params, args, span)?;
                self.eval(&bound, body)
            }
            FunctionKind::Partial { callee, args: open } => {
                let args = self.fill_holes(open, args, span)?;
                self.call_in(env, callee, args, span)
            }
            FunctionKind::Waiting { .. } => {
                let help = "give its axes in brackets: `normal[batch, t]()`";
                Err(self.error_help(
                    Code::E0217,
                    "an initializer waits for axes, not for arguments",
                    span,
                    "this call",
                    help,
                ))
            }
            FunctionKind::Constant(value) => Ok((**value).clone()),
            FunctionKind::Watch(layer, pattern) => self.call_watched(env, layer, pattern, args, span),
            FunctionKind::Decoder { decoder, keeps } => {
                self.call_decoder(env, decoder, *keeps, function.given.as_ref(), args, span)
            }
            FunctionKind::Optimizer(code) => self.make_optimizer(code, args, span),
            FunctionKind::OptimizerMethod(optimizer, def) => self.call_optimizer(optimizer, def, args, span),
        }
    }

    /// A function of a file, ready to be run; `first` are the values of the first of its two lists.
    pub(super) fn callee_of<'c>(
        &self,
        code: &'c FnCode,
        first: Option<&[(Rc<str>, Value)]>,
        (header, signature): (Vec<Filled>, Signature),
        training: bool,
    ) -> Callee<'c> {
        let env = self.file_env(code.file);
        let env = first.into_iter().flatten().fold(env, |env, (name, value)| env.with(name.clone(), value.clone()));
        Callee {
            label: code.def.name.text.clone(),
            file: code.file,
            mentions: code.mentions.clone(),
            params: code.def.params.last().map_or(&[], Vec::as_slice),
            result: code.def.result.as_ref(),
            body: &code.def.body,
            header,
            signature,
            vars: env.vars,
            layer: None,
            training,
            packs: Default::default(),
        }
    }

    /// `Lora(_, rank: 16)` met by its open arguments.
    pub(super) fn fill_holes(&mut self, open: &Args, args: Args, span: Span) -> Eval<Args> {
        let mut filled = open.clone();
        let mut given = args.positional.into_iter();
        let holes = filled.positional.iter_mut().map(|(value, _)| value);
        let holes = holes.chain(filled.named.iter_mut().map(|(_, value, _)| value)).filter(|value| value.is_hole());
        for hole in holes {
            match given.next() {
                Some((value, _)) => *hole = value,
                None => return Err(self.error(Code::E0208, "an open argument, `_`, is not given", span, "this call")),
            }
        }
        filled.positional.extend(given);
        filled.named.extend(args.named);
        Ok(filled)
    }

    /// The first of two lists: values that the function keeps.
    fn first_list(
        &mut self,
        env: &Env,
        params: &[Param],
        what: &str,
        args: Args,
        span: Span,
    ) -> Eval<Vec<(Rc<str>, Value)>> {
        let matched = self.match_args(params, args, what, span)?;
        let mut env = env.clone();
        let mut vars = Vec::new();
        for (param, given) in params.iter().zip(matched) {
            let (value, place) = self.given_or_default(&env, param, given)?;
            let name = pattern_name(&param.pattern);
            let value = match &param.ty {
                Some(ty) => self.conform(&env, ty, value, place, &format!("`{name}`"))?,
                None => value,
            };
            env = env.with(name.as_str(), value.clone());
            vars.push((Rc::from(name.as_str()), value));
        }
        Ok(vars)
    }

    /// Which argument each parameter gets; every mistake is reported.
    pub(super) fn match_args(
        &mut self,
        params: &[Param],
        args: Args,
        what: &str,
        span: Span,
    ) -> Eval<Vec<Option<(Value, Span)>>> {
        let mut matched: Vec<Option<(Value, Span)>> = vec![None; params.len()];
        let mut bad = false;
        let n_given = args.positional.len();
        for (i, (value, place)) in args.positional.into_iter().enumerate() {
            match matched.get_mut(i) {
                Some(slot) => *slot = Some((value, place)),
                None if i == params.len() => {
                    let message =
                        format!("`{what}` takes {}, and {n_given} are given", count(params.len(), "argument"));
                    self.error(Code::E0208, message, place, "one too many");
                    bad = true;
                }
                None => {}
            }
        }
        for (name, value, place) in args.named {
            let at = params.iter().position(|param| pattern_name(&param.pattern) == *name);
            match at {
                Some(at) if matched[at].is_some() => {
                    self.error(Code::E0208, format!("`{name}` of `{what}` is given twice"), place, "again here");
                    bad = true;
                }
                Some(at) => matched[at] = Some((value, place)),
                None => {
                    let names: Vec<String> = params.iter().map(|param| pattern_name(&param.pattern)).collect();
                    let diagnostic = Diagnostic::error(Code::E0208, format!("`{what}` has no parameter `{name}`"))
                        .label(place, "not known");
                    self.push(match nearest(&name, names.iter().map(String::as_str)) {
                        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                        None if names.is_empty() => diagnostic.help("it takes none"),
                        None => diagnostic.help(format!("it takes {}", names.join(", "))),
                    });
                    bad = true;
                }
            }
        }
        for (param, given) in params.iter().zip(&matched) {
            if let (Some((Value::None, place)), Some(ty)) = (given, &param.ty)
                && !matches!(ty.kind, TypeKind::Optional(_))
                && !matches!(&param.default, Some(default) if default.kind == ExprKind::None)
            {
                let message = format!("`{}` of `{what}` cannot be `none`", pattern_name(&param.pattern));
                let diagnostic =
                    Diagnostic::error(Code::E0209, message).label(*place, "given here").label(ty.span, "declared here");
                self.push(diagnostic.help("a type with `?`, such as `Int?`, may be left out"));
                bad = true;
            }
            if given.is_none() && param.default.is_none() {
                let name = pattern_name(&param.pattern);
                let diagnostic = Diagnostic::error(Code::E0208, format!("`{what}` is not given its `{name}`"))
                    .label(span, "this call")
                    .label(param.span, "declared here");
                self.push(diagnostic);
                bad = true;
            }
        }
        if bad { Err(Stop) } else { Ok(matched) }
    }

    /// What was given for a parameter, or its default, and where that stands.
    pub(super) fn given_or_default(
        &mut self,
        env: &Env,
        param: &Param,
        given: Option<(Value, Span)>,
    ) -> Eval<(Value, Span)> {
        match (given, &param.default) {
            (Some(given), _) => Ok(given),
            (None, Some(default)) => Ok((self.eval(env, default)?, default.span)),
            (None, None) => mdl_graph::bug!("a parameter without a value"),
        }
    }

    fn bind_lambda(&mut self, env: &Env, params: &[Param], args: Args, span: Span) -> Eval<Env> {
        let matched = self.match_args(params, args, "fn", span)?;
        let mut env = env.clone();
        for (param, given) in params.iter().zip(matched) {
            let (value, place) = self.given_or_default(&env, param, given)?;
            let value = match &param.ty {
                Some(ty) => self.conform(&env, ty, value, place, "the argument")?,
                None => value,
            };
            env = self.bind_pattern(&env, &param.pattern, value, place)?;
        }
        Ok(env)
    }

    /// `let (a, (b, _)) = value`
    pub(super) fn bind_pattern(&mut self, env: &Env, pattern: &Pattern, value: Value, span: Span) -> Eval<Env> {
        match &pattern.kind {
            PatternKind::Wildcard => Ok(env.clone()),
            PatternKind::Name(name) => Ok(env.with(name.as_str(), value)),
            PatternKind::Tuple(parts) => {
                let items = match &value {
                    Value::Tuple(items) | Value::List(items) => items.clone(),
                    Value::Error => return Err(Stop),
                    other => {
                        let message = format!("{} parts are taken from {}", parts.len(), other.kind());
                        return Err(self.error(Code::E0209, message, pattern.span, format!("it is {}", other.kind())));
                    }
                };
                if items.len() != parts.len() {
                    let message = format!("{} parts are taken from a tuple of {}", parts.len(), items.len());
                    let diagnostic = Diagnostic::error(Code::E0209, message)
                        .label(pattern.span, format!("{} names", parts.len()))
                        .label(span, format!("{} parts", items.len()));
                    return Err(self.fail(diagnostic));
                }
                let mut env = env.clone();
                for (part, item) in parts.iter().zip(items.iter()) {
                    env = self.bind_pattern(&env, part, item.clone(), span)?;
                }
                Ok(env)
            }
        }
    }
}

/// A function whose header nobody filled, and none of whose tensors could: an initializer.
fn waits(header: &[Filled], params: &[Param]) -> bool {
    !header.is_empty()
        && header.iter().all(|entry| entry.axes.is_none() && entry.is_pack)
        && !params
            .iter()
            .any(|param| matches!(&param.ty, Some(Type { kind: TypeKind::Tensor { axes: Some(_), .. }, .. })))
}

pub(super) fn pattern_name(pattern: &Pattern) -> String {
    match &pattern.kind {
        PatternKind::Name(name) => name.clone(),
        PatternKind::Wildcard => "_".to_string(),
        PatternKind::Tuple(parts) => format!("({})", parts.iter().map(pattern_name).collect::<Vec<_>>().join(", ")),
    }
}

pub(super) fn count(n: usize, noun: &str) -> String {
    match n {
        0 => format!("no {noun}s"),
        1 => format!("one {noun}"),
        n => format!("{n} {noun}s"),
    }
}

pub(super) fn given_of(axes: &crate::syntax::ast::Axes, env: &Env) -> Given {
    Given { axes: Rc::new(axes.clone()), env: env.clone() }
}

pub(super) fn code_def_label(layer: &Layer, def: &FnDef) -> String {
    let layer = layer.data.code.as_ref().map_or("", |code| &code.ast.name.text);
    if def.name.text == "call" { layer.to_string() } else { format!("{layer}.{}", def.name.text) }
}
