//! Calls: how arguments meet parameters, and how axis names cross on the way in and out.
//!
//! Each typed parameter gives a map from the caller's names to the callee's. What the type does not name goes to `..`:
//! it keeps its name unless the callee says that name. Results are renamed back; what was made inside leaves only if the
//! result type names it. A parameter without a type is open: names come in as they are.

use std::collections::BTreeSet;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Name};

use super::Elaborator;
use super::axes::{Filled, Signature};
use super::scope::{plain, untwinned};
use super::value::{Args, Env, Eval, Frame, Function, FunctionKind, Given, Layer, MakerKind, Stop, Tensor, Value, Var};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Expr, FnDef, Param, Pattern, PatternKind, Span, Type, TypeKind};

/// Calls nest this deep at most: far more than any model, far less than a stack.
const MAX_DEPTH: usize = 96;

/// What is called, once its header is filled.
pub(super) struct Callee<'c> {
    pub(super) label: String,
    pub(super) file: usize,
    pub(super) mentions: Rc<BTreeSet<String>>,
    pub(super) params: &'c [Param],
    pub(super) result: Option<&'c Type>,
    pub(super) body: &'c Expr,
    pub(super) header: Vec<Filled>,
    /// `t: s` in brackets: axes of the signature.
    pub(super) signature: Signature,
    pub(super) vars: Option<Rc<Var>>,
    /// The layer whose function it is, as the caller sees it.
    pub(super) layer: Option<Layer>,
    pub(super) training: bool,
    /// Packs whose names inside are those outside.
    pub(super) packs: std::collections::BTreeMap<String, Vec<Name>>,
}

/// The names of one call: inside and outside.
struct Names {
    frame: Rc<Frame>,
    /// Inside, outside, in the order in which they were met.
    pairs: Vec<(Name, Name)>,
    /// Leftovers: outside, inside.
    rest: Vec<(Name, Name)>,
    signature: Signature,
    /// Sizes that arguments gave, and which.
    sizes: Vec<(Name, u64, Span)>,
    /// Header names whose size is fixed (a built layer's).
    strict: bool,
    label: String,
}

impl Names {
    /// The names outside of whatever has one there, for values that leave by another door than the result.
    fn outward(&self, axes: &AxisSet) -> Vec<(Name, Name)> {
        let outer = |local: &Name| match self.rest.iter().find(|(_, known)| known == local) {
            Some((outer, _)) => outer.clone(),
            None => self.outer(local),
        };
        axes.names().map(|local| (local.clone(), outer(local))).collect()
    }

    fn outer(&self, local: &Name) -> Name {
        if let Some((_, outer)) = self.pairs.iter().find(|(known, _)| known == local) {
            return outer.clone();
        }
        if let Some((_, outer, _)) = self.signature.iter().find(|(known, ..)| known == local.as_str()) {
            return outer.clone();
        }
        let base = untwinned(local);
        if base != *local {
            let primes = &local.as_str()[base.as_str().len()..];
            return Name::from(format!("{}{primes}", self.outer(&base)));
        }
        local.clone()
    }
}

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
                    let vars = self.first_list(code, params, args, span)?;
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
                let file_env = self.file_env(code.file);
                let vars = first
                    .iter()
                    .flat_map(|vars| vars.iter())
                    .fold(file_env, |env, (name, value)| env.with(name.clone(), value.clone()));
                let callee = Callee {
                    label: code.def.name.text.clone(),
                    file: code.file,
                    mentions: code.mentions.clone(),
                    params,
                    result: code.def.result.as_ref(),
                    body: &code.def.body,
                    header,
                    signature,
                    vars: vars.vars,
                    layer: None,
                    training: env.frame.training,
                    packs: Default::default(),
                };
                self.running.push(code.def.clone());
                let result = self.run(callee, args, span);
                self.running.pop();
                result
            }
            FunctionKind::Method { layer, def } => {
                self.call_method(env, layer, def, function.given.as_ref(), args, span)
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
            FunctionKind::Optimizer(code) => self.make_optimizer(code, args, span),
            FunctionKind::OptimizerMethod(optimizer, def) => self.call_optimizer(optimizer, def, args, span),
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
        code: &Rc<super::value::FnCode>,
        params: &[Param],
        args: Args,
        span: Span,
    ) -> Eval<Vec<(Rc<str>, Value)>> {
        let matched = self.match_args(params, args, &code.def.name.text, span)?;
        let mut env = self.file_env(code.file);
        let mut vars = Vec::new();
        for (param, given) in params.iter().zip(matched) {
            let (value, place) = match given {
                Some((value, place)) => (value, place),
                None => {
                    let Some(default) = &param.default else { mdl_graph::bug!("a parameter without a value") };
                    (self.eval(&env, default)?, default.span)
                }
            };
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

    fn bind_lambda(&mut self, env: &Env, params: &[Param], args: Args, span: Span) -> Eval<Env> {
        let matched = self.match_args(params, args, "fn", span)?;
        let mut env = env.clone();
        for (param, given) in params.iter().zip(matched) {
            let (value, place) = match given {
                Some(given) => given,
                None => {
                    let Some(default) = &param.default else { mdl_graph::bug!("a parameter without a value") };
                    (self.eval(&env, default)?, default.span)
                }
            };
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

    // ---- the call itself ----

    /// Binds the arguments, evaluates the body, and brings the result out.
    pub(super) fn run(&mut self, callee: Callee<'_>, args: Args, span: Span) -> Eval<Value> {
        let mut frame = Frame::new(callee.file, callee.label.clone(), callee.mentions.clone());
        frame.training = callee.training;
        let mut pairs = Vec::new();
        if let Some(layer) = &callee.layer {
            let inner = &layer.data.env.frame;
            frame.axes = inner.axes.clone();
            frame.packs = inner.packs.clone();
            pairs.extend(layer.outer.iter().cloned());
            frame.this.replace(Some(layer.inside()));
        }
        for entry in &callee.header {
            let entry_pairs = entry.pairs();
            if entry.is_pack && entry.axes.is_some() {
                let names = entry_pairs.iter().map(|(local, ..)| local.clone()).collect();
                frame.packs.borrow_mut().insert(entry.text.clone(), names);
            }
            for (local, outer, size) in entry_pairs {
                if let Some(size) = size {
                    frame.set_axis(&local, size);
                }
                pairs.push((local, outer));
            }
        }
        frame.packs.borrow_mut().extend(callee.packs.clone());
        let matched = self.match_args(callee.params, args, &callee.label, span)?;
        let is_open = callee
            .params
            .iter()
            .zip(&matched)
            .any(|(param, given)| param.ty.is_none() && given.as_ref().is_some_and(|(value, _)| has_tensor(value)));
        frame.open.set(is_open);
        let frame = Rc::new(frame);
        let mut names = Names {
            frame: frame.clone(),
            pairs,
            rest: Vec::new(),
            signature: callee.signature.clone(),
            sizes: Vec::new(),
            strict: callee.layer.is_some(),
            label: callee.label.clone(),
        };
        let mut env = Env { vars: callee.vars.clone(), frame: frame.clone() };
        // Tensors first: their sizes are what numbers spread over and what defaults read.
        let mut bound: Vec<Option<Value>> = Vec::with_capacity(matched.len());
        for (param, given) in callee.params.iter().zip(&matched) {
            bound.push(match given {
                Some((value, place)) if !spreads(param, value) => {
                    Some(self.bring_in(&env, &mut names, &callee.header, param, value, *place)?)
                }
                _ => None,
            });
        }
        for entry in &callee.header {
            let names = frame.packs.borrow();
            let is_missing = entry.axes.is_none() && !(entry.is_pack && names.contains_key(&entry.text));
            drop(names);
            if !is_missing {
                continue;
            }
            match &entry.default {
                Some(default) => {
                    self.declare_axis(&env, &entry.text, default)?;
                }
                None => {
                    let message = format!("`{}` is not given its axis `{}`", callee.label, entry.text);
                    let help = format!("give it in brackets: `{}[{}](…)`", callee.label, entry.text);
                    return Err(self.error_help(Code::E0208, message, span, "this call", help));
                }
            }
        }
        for ((param, given), bound) in callee.params.iter().zip(&matched).zip(bound) {
            let value = match (bound, given, &param.default) {
                (Some(value), ..) => value,
                (None, Some((value, place)), _) => self.conform_param(&env, param, value.clone(), *place)?,
                (None, None, Some(default)) => {
                    let value = self.eval(&env, default)?;
                    self.conform_param(&env, param, value, default.span)?
                }
                (None, None, None) => mdl_graph::bug!("a parameter without a value"),
            };
            env = self.bind_pattern(&env, &param.pattern, value, param.span)?;
        }
        let n_found = self.found.len();
        let value = self.eval(&env, callee.body)?;
        if self.found.len() > n_found {
            self.rename_found(n_found, span, &|elab, tensor| names.outward(elab.axes(tensor)))?;
        }
        self.bring_out(&env, &names, callee.result, value, callee.body.span)
    }

    fn conform_param(&mut self, env: &Env, param: &Param, value: Value, span: Span) -> Eval<Value> {
        match &param.ty {
            Some(ty) => self.conform(env, ty, value, span, &format!("`{}`", pattern_name(&param.pattern))),
            None => Ok(value),
        }
    }

    /// An argument in the callee's names.
    fn bring_in(
        &mut self,
        env: &Env,
        names: &mut Names,
        header: &[Filled],
        param: &Param,
        value: &Value,
        span: Span,
    ) -> Eval<Value> {
        let what = pattern_name(&param.pattern);
        let Some(ty) = &param.ty else {
            self.let_in(names, value);
            return Ok(value.clone());
        };
        match (&ty.kind, value) {
            (TypeKind::Tensor { dtype, axes }, Value::Tensor(_) | Value::Stored(_)) => {
                let tensor = match value {
                    Value::Stored(id) => self.fetch(*id)?,
                    Value::Tensor(tensor) => tensor.clone(),
                    _ => return Err(Stop),
                };
                let tensor = self.check_dtype(&tensor, dtype.as_ref(), span, &format!("`{what}`"), true)?;
                let items = axes.as_ref().map_or(&[] as &[_], |axes| axes.items.as_slice());
                // A header pack that nobody filled takes all axes of the argument whose type names it.
                for item in items {
                    if let crate::syntax::ast::AxisItemKind::Axis(axis) = &item.kind
                        && axis.is_pack
                        && let [name] = axis.path.as_slice()
                        && header.iter().any(|entry| entry.is_pack && entry.axes.is_none() && entry.text == name.text)
                        && !names.frame.packs.borrow().contains_key(&name.text)
                    {
                        let all: Vec<(Name, Name)> = self
                            .visible(&tensor)
                            .into_iter()
                            .map(|axis| (Name::from(format!("{}.{}", name.text, plain(&axis.name))), axis.name))
                            .collect();
                        let locals = all.iter().map(|(local, _)| local.clone()).collect();
                        names.frame.packs.borrow_mut().insert(name.text.clone(), locals);
                        names.pairs.extend(all);
                    }
                }
                self.bring_tensor_in(env, names, items, &tensor, span, &what)
            }
            // A record of tensors, such as gradients: each of them by itself, all axes in reach.
            (TypeKind::Tensor { .. }, Value::Record(fields))
                if fields.iter().all(|(_, field)| matches!(field, Value::Tensor(_))) =>
            {
                for entry in header.iter().filter(|entry| entry.is_pack && entry.axes.is_none()) {
                    names.frame.packs.borrow_mut().entry(entry.text.clone()).or_default();
                }
                Ok(value.clone())
            }
            (TypeKind::Name(name), Value::Layer(layer)) if name.text != "Layer" || !what.is_empty() => {
                self.check_layer_type(name, layer, span)?;
                Ok(value.clone())
            }
            (TypeKind::Name(name), Value::Tensor(tensor)) if super::types::scalar_dtype(&name.text).is_some() => {
                let tensor = self.bring_tensor_in(env, names, &[], tensor, span, &what)?;
                self.conform(env, ty, tensor, span, &format!("`{what}`"))
            }
            _ => self.conform(env, ty, value.clone(), span, &format!("`{what}`")),
        }
    }

    /// What an open parameter lets in: the sizes of its axes become known.
    fn let_in(&mut self, names: &mut Names, value: &Value) {
        match value {
            Value::Tensor(tensor) => {
                for axis in self.visible(tensor) {
                    if self.local_axis_size_of(&names.frame, &axis.name).is_none() {
                        names.frame.set_axis(&axis.name, axis.size);
                    }
                }
            }
            Value::Record(fields) => fields.iter().for_each(|(_, value)| self.let_in(names, value)),
            Value::List(items) | Value::Tuple(items) => items.iter().for_each(|value| self.let_in(names, value)),
            _ => {}
        }
    }

    fn local_axis_size_of(&self, frame: &Frame, name: &Name) -> Option<u64> {
        frame.axes.borrow().get(name).copied()
    }

    fn bring_tensor_in(
        &mut self,
        env: &Env,
        names: &mut Names,
        items: &[crate::syntax::ast::AxisItem],
        tensor: &Tensor,
        span: Span,
        what: &str,
    ) -> Eval<Value> {
        // Sizes in a type may use the names that the very argument brings: read names first.
        let (declared, has_rest) = self.declared_names(env, items)?;
        let axes = self.axes(tensor).clone();
        let mut renames: Vec<(Name, Name)> = Vec::new();
        for (local, item_span) in &declared {
            let outer = names.outer(local);
            let Some(size) = axes.size(&outer) else {
                let message = format!("`{what}` of `{}` lacks the axis `{}`", names.label, plain(&outer));
                let said = if *local == outer { String::new() } else { format!(", which is `{}` there", plain(local)) };
                let diagnostic = Diagnostic::error(Code::E0203, message)
                    .label(span, format!("this has {}{said}", self.show_axes(&axes)))
                    .label(*item_span, "declared here");
                return Err(self.fail(self.with_likely_rename(diagnostic, &axes, &outer)));
            };
            if renames.iter().any(|(known, _)| *known == outer) {
                let message = format!("`{}` stands for two axes of `{what}` of `{}`", plain(&outer), names.label);
                let help = "rename one on the way in, `x[t as t']`".to_string();
                return Err(self.error_help(Code::E0212, message, span, "one axis for two", help));
            }
            self.meet_size(names, local, size, span)?;
            if !names.pairs.iter().any(|(known, _)| known == local) {
                names.pairs.push((local.clone(), outer.clone()));
            }
            renames.push((outer, local.clone()));
        }
        for axis in axes.iter() {
            if renames.iter().any(|(outer, _)| *outer == axis.name) || self.is_hidden(&axis.name) {
                continue;
            }
            if !has_rest {
                let shown = plain(&axis.name);
                let message = format!("`{what}` of `{}` has no room for the axis `{shown}`", names.label);
                let has = self.show_axes(&axes);
                let help = format!("take it up in the type, or sum it away before: `sum[{shown}](…)`");
                return Err(self.error_help(Code::E0206, message, span, format!("this has {has}"), help));
            }
            let local = self.rest_name(names, &axis.name, axis.size);
            renames.push((axis.name.clone(), local));
        }
        Ok(Value::Tensor(self.rename(tensor, &renames, span)?))
    }

    fn with_likely_rename(&self, diagnostic: Diagnostic, axes: &AxisSet, wanted: &Name) -> Diagnostic {
        let shown: Vec<String> =
            axes.iter().filter(|axis| !self.is_hidden(&axis.name)).map(|axis| plain(&axis.name)).collect();
        match nearest(wanted.as_str(), shown.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`? Rename it: `[{near} as {}]`", plain(wanted))),
            None => diagnostic,
        }
    }

    /// The name inside of an axis that comes through `..`.
    fn rest_name(&mut self, names: &mut Names, outer: &Name, size: u64) -> Name {
        if let Some((_, local)) = names.rest.iter().find(|(known, _)| known == outer) {
            return local.clone();
        }
        let said = plain(outer);
        let first = said.split('.').next().unwrap_or(&said);
        let mentions = &names.frame.mentions;
        let is_said = mentions.contains(&said) || mentions.contains(first);
        let local = if is_said && !names.frame.open.get() && !outer.as_str().contains('~') {
            self.fresh(&said)
        } else {
            outer.clone()
        };
        names.rest.push((outer.clone(), local.clone()));
        names.frame.rest.borrow_mut().push(Axis::new(local.clone(), size));
        local
    }

    /// The size of a name inside, which all arguments must agree on.
    fn meet_size(&mut self, names: &mut Names, local: &Name, size: u64, span: Span) -> Eval<()> {
        if let Some((_, known, first)) = names.sizes.iter().find(|(known, ..)| known == local)
            && *known != size
        {
            let shown = plain(&names.outer(local));
            let diagnostic = Diagnostic::error(
                Code::E0204,
                format!("axis `{shown}` is {known} in one argument and {size} in another"),
            )
            .label(span, format!("`{shown}` is {size} here"))
            .label(*first, format!("`{shown}` is {known} here"))
            .help("cut or pad one of them, or rename it with `as` if it is another axis");
            return Err(self.fail(diagnostic));
        }
        let declared = names.frame.axes.borrow().get(local).copied();
        if let (true, Some(declared)) = (names.strict, declared)
            && declared != size
            && !names.sizes.iter().any(|(known, ..)| known == local)
        {
            let shown = plain(&names.outer(local));
            let message = format!("axis `{shown}` is {size} here and {declared} in `{}`", names.label);
            let help = "build the layer with the axis that the argument has".to_string();
            return Err(self.error_help(Code::E0204, message, span, format!("`{shown}` is {size}"), help));
        }
        names.sizes.push((local.clone(), size, span));
        names.frame.set_axis(local, size);
        Ok(())
    }

    /// A result in the caller's names.
    fn bring_out(&mut self, env: &Env, names: &Names, ty: Option<&Type>, value: Value, span: Span) -> Eval<Value> {
        let value = match ty {
            Some(ty) => self.conform(env, ty, value, span, &format!("the result of `{}`", names.label))?,
            None => value,
        };
        self.rename_out(env, names, ty, &value, span)
    }

    fn rename_out(&mut self, env: &Env, names: &Names, ty: Option<&Type>, value: &Value, span: Span) -> Eval<Value> {
        Ok(match value {
            Value::Tensor(tensor) => Value::Tensor(self.tensor_out(env, names, ty, tensor, span)?),
            Value::Stored(id) => {
                let tensor = self.fetch(*id)?;
                Value::Tensor(self.tensor_out(env, names, ty, &tensor, span)?)
            }
            Value::Tuple(items) | Value::List(items) => {
                let types = match ty.map(|ty| &ty.kind) {
                    Some(TypeKind::Tuple(types)) => types.iter().map(Some).collect(),
                    _ => vec![None; items.len()],
                };
                let mut out = Vec::with_capacity(items.len());
                for (item, ty) in items.iter().zip(types) {
                    out.push(self.rename_out(env, names, ty, item, span)?);
                }
                if matches!(value, Value::Tuple(_)) { Value::tuple(out) } else { Value::list(out) }
            }
            Value::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    let ty = match ty.map(|ty| &ty.kind) {
                        Some(TypeKind::Record(types)) => {
                            types.iter().find(|(known, _)| known.text == **name).map(|(_, ty)| ty)
                        }
                        _ => None,
                    };
                    out.push((name.clone(), self.rename_out(env, names, ty, field, span)?));
                }
                Value::Record(Rc::new(out))
            }
            other => other.clone(),
        })
    }

    fn tensor_out(&mut self, env: &Env, names: &Names, ty: Option<&Type>, tensor: &Tensor, span: Span) -> Eval<Tensor> {
        let items = match ty.map(|ty| &ty.kind) {
            Some(TypeKind::Tensor { axes: Some(axes), .. }) => Some(axes.items.as_slice()),
            _ => None,
        };
        let said: Vec<Name> = match items {
            Some(items) => self.declared_names(env, items)?.0.into_iter().map(|(name, _)| name).collect(),
            None => Vec::new(),
        };
        let mut renames: Vec<(Name, Name)> = Vec::new();
        for axis in self.axes(tensor).clone().iter() {
            let local = &axis.name;
            let rest = names.rest.iter().find(|(_, known)| known == local).map(|(outer, _)| outer.clone());
            let outer = match rest {
                _ if self.is_hidden(local) => local.clone(),
                Some(outer) => outer,
                None => names.outer(local),
            };
            // Made inside: known neither from outside nor to the result type. Open functions give back what they like.
            let is_known = names.pairs.iter().any(|(known, _)| known == local)
                || names.rest.iter().any(|(_, known)| known == local)
                || self.is_hidden(local)
                || said.contains(local);
            if !is_known && items.is_some() {
                let shown = plain(local);
                let message =
                    format!("the result of `{}` has the axis `{shown}`, which its type does not name", names.label);
                let help = format!("name it in the result type, or sum it away: `sum[{shown}](…)`");
                return Err(self.error_help(Code::E0206, message, span, "made inside", help));
            }
            if let Some((first, _)) = renames.iter().find(|(_, known)| *known == outer) {
                let message = format!("the result of `{}` would have the axis `{}` twice", names.label, plain(&outer));
                let label = format!("`{}` and `{}` are the same axis of the caller", plain(first), plain(local));
                return Err(self.error_help(
                    Code::E0212,
                    message,
                    span,
                    label,
                    "give one of them a twin, `t'`, at the call",
                ));
            }
            renames.push((local.clone(), outer));
        }
        self.rename(tensor, &renames, span)
    }

    /// The names in a type, without evaluating sizes.
    pub(super) fn declared_names(
        &mut self,
        env: &Env,
        items: &[crate::syntax::ast::AxisItem],
    ) -> Eval<(Vec<(Name, Span)>, bool)> {
        use crate::syntax::ast::AxisItemKind;
        let mut out = Vec::new();
        let mut has_rest = false;
        for item in items {
            match &item.kind {
                AxisItemKind::Axis(axis) if axis.is_rest() => has_rest = true,
                AxisItemKind::Axis(axis) if axis.is_pack || axis.path.len() > 1 => {
                    out.extend(self.resolve(env, axis)?.into_iter().map(|name| (name, item.span)));
                }
                AxisItemKind::Axis(axis) | AxisItemKind::Bind { axis, .. } => {
                    let name = axis.text();
                    if env.frame.packs.borrow().contains_key(&name) {
                        let help = format!("write `..{name}`");
                        let message = format!("`{name}` is a pack of axes");
                        return Err(self.error_help(Code::E0202, message, item.span, "not one axis", help));
                    }
                    out.push((Name::from(name), item.span));
                }
                _ => return Err(self.error(Code::E0217, "a type holds names of axes", item.span, "this is none")),
            }
        }
        Ok((out, has_rest))
    }

    // ---- makers and weights ----

    /// `normal(like: x)`
    pub(super) fn fill_like(&mut self, maker: &Value, like: &Value, like_span: Span, span: Span) -> Eval<Value> {
        match like {
            Value::Tensor(tensor) => {
                let axes: Vec<Name> = self.visible(tensor).into_iter().map(|axis| axis.name).collect();
                let sizes = self.axes(tensor).clone();
                let axes: Vec<Axis> = axes.iter().filter_map(|name| sizes.get(name).cloned()).collect();
                Ok(Value::Tensor(self.fill_maker(maker, &[], &axes, DType::F32, span)?))
            }
            Value::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    out.push((name.clone(), self.fill_like(maker, field, like_span, span)?));
                }
                Ok(Value::Record(Rc::new(out)))
            }
            other => {
                let message = format!("`like:` takes a tensor or a record of tensors, not {}", other.kind());
                Err(self.error(Code::E0209, message, like_span, format!("this is {}", other.kind())))
            }
        }
    }

    /// The tensor that an initializer gives for axes: a number, a maker that waits for axes, or a tensor itself.
    pub(super) fn fill_maker(
        &mut self,
        value: &Value,
        from: &[Axis],
        to: &[Axis],
        dtype: DType,
        span: Span,
    ) -> Eval<Tensor> {
        let all: Vec<Axis> = from.iter().chain(to).cloned().collect();
        let Some(set) = AxisSet::of(all.iter().cloned()) else {
            return Err(self.error(Code::E0212, "an axis stands twice", span, "here"));
        };
        let tensor = match value {
            Value::Function(function) => match &function.kind {
                FunctionKind::Waiting { callee, args } => {
                    let mut args = args.clone();
                    args.named.retain(|(name, ..)| &**name != "like");
                    self.call_waiting(callee, args, from, to, &all, span)?
                }
                _ => {
                    let message = "a function of axes is expected: an initializer";
                    let help = "call it, `normal(std: 0.02)`, so that it waits for the axes of the weight";
                    return Err(self.error_help(Code::E0209, message, span, "this is another function", help));
                }
            },
            Value::Stored(_)
            | Value::Tensor(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Quantity { .. } => {
                let operand = self.operand(value, span, "an initial value")?;
                self.tensor_of(&operand, span)?
            }
            Value::Error => return Err(Stop),
            other => {
                let message = format!("an initial value is {}", other.kind());
                let help = "give a number, a tensor or an initializer such as `normal(std: 0.02)`";
                return Err(self.error_help(Code::E0209, message, span, format!("this is {}", other.kind()), help));
            }
        };
        let tensor = self.cast(&tensor, dtype, span)?;
        for axis in self.axes(&tensor).clone().iter() {
            let wanted = set
                .size(&axis.name)
                .or_else(|| self.hidden.iter().find(|hidden| hidden.name == axis.name).map(|hidden| hidden.size));
            match wanted {
                Some(size) if size == axis.size => {}
                Some(size) => {
                    let message =
                        format!("the initial value has `{}` = {}, the weight has {size}", plain(&axis.name), axis.size);
                    return Err(self.error(Code::E0204, message, span, "this value"));
                }
                None => {
                    let message =
                        format!("the initial value has the axis `{}`, which the weight lacks", plain(&axis.name));
                    return Err(self.error(Code::E0206, message, span, "this value"));
                }
            }
        }
        self.expand(&tensor, &set, span)
    }

    fn call_waiting(
        &mut self,
        callee: &Value,
        args: Args,
        from: &[Axis],
        to: &[Axis],
        all: &[Axis],
        span: Span,
    ) -> Eval<Tensor> {
        let Value::Function(function) = callee else { return Err(Stop) };
        let value = match &function.kind {
            FunctionKind::Builtin(builtin) => {
                let Some(fill) = builtin.fill else { mdl_graph::bug!("`{}` does not wait for axes", builtin.name) };
                return fill(self, all, &args, span);
            }
            FunctionKind::Def { code, first } => {
                let (mut header, _) = self.fill_header(code.def.header.as_ref(), None, &code.def.name.text, span)?;
                let sized =
                    |axes: &[Axis]| Some(axes.iter().map(|axis| (axis.name.clone(), Some(axis.size))).collect());
                let n_from = code.def.header.as_ref().and_then(|header| header.from.as_ref()).map(Vec::len);
                match (header.as_mut_slice(), n_from) {
                    ([one], None) if one.is_pack => one.axes = sized(all),
                    ([left, right], Some(1)) if left.is_pack && right.is_pack => {
                        left.axes = sized(from);
                        right.axes = sized(to);
                    }
                    (entries, None) if entries.len() == all.len() && entries.iter().all(|entry| !entry.is_pack) => {
                        for (entry, axis) in entries.iter_mut().zip(all) {
                            entry.axes = sized(std::slice::from_ref(axis));
                        }
                    }
                    _ => {
                        let message = format!("`{}` cannot fill these axes", code.def.name.text);
                        let help = "an initializer has the header `[..over]` or `[..from -> ..to]`";
                        return Err(self.error_help(Code::E0208, message, span, "used as an initializer", help));
                    }
                }
                let file_env = self.file_env(code.file);
                let vars = first
                    .iter()
                    .flat_map(|vars| vars.iter())
                    .fold(file_env, |env, (name, value)| env.with(name.clone(), value.clone()));
                let callee = Callee {
                    label: code.def.name.text.clone(),
                    file: code.file,
                    mentions: code.mentions.clone(),
                    params: code.def.params.last().map_or(&[], Vec::as_slice),
                    result: code.def.result.as_ref(),
                    body: &code.def.body,
                    header,
                    signature: Vec::new(),
                    vars: vars.vars,
                    layer: None,
                    training: false,
                    packs: Default::default(),
                };
                self.calls.push(span);
                let value = self.run(callee, args, span);
                self.calls.pop();
                value?
            }
            _ => {
                return Err(self.error(
                    Code::E0209,
                    "this function does not wait for axes",
                    span,
                    "an initializer is expected",
                ));
            }
        };
        let operand = self.operand(&value, span, "an initializer")?;
        self.tensor_of(&operand, span)
    }

    /// `w(x)`: the contraction over the axes that the weight takes.
    fn apply_weight(&mut self, weight: &Tensor, args: &Args, span: Span) -> Eval<Value> {
        let Some(arrow) = weight.arrow.clone() else {
            let help =
                "only a weight with an arrow, `[..from -> ..to]`, is applied like a function; else write `dot[…]`";
            return Err(self.error_help(Code::E0217, "a tensor cannot be called", span, "this call", help));
        };
        let ([(value, place)], []) = (args.positional.as_slice(), args.named.as_slice()) else {
            return Err(self.error(Code::E0208, "a weight is applied to one tensor", span, "this call"));
        };
        let operand = self.operand(value, *place, "a weight")?;
        let x = self.tensor_of(&operand, *place)?;
        for (said, own) in &arrow.from {
            let (x_size, w_size) = (self.axes(&x).size(said), self.axes(weight).size(own));
            match (x_size, w_size) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    let message = format!("axis `{}` is {a} in the argument and {b} in the weight", plain(said));
                    return Err(self.error(Code::E0204, message, *place, format!("`{}` is {a} here", plain(said))));
                }
                _ => {
                    let has = self.show_axes(&self.axes(&x).clone());
                    let message = format!("a weight takes the axis `{}`, which its argument lacks", plain(said));
                    return Err(self.error(Code::E0203, message, *place, format!("this has {has}")));
                }
            }
        }
        let x = self.rename(&x, &arrow.from, span)?;
        let mut names: Vec<Name> = arrow.from.iter().map(|(_, own)| own.clone()).collect();
        names.sort();
        Ok(Value::Tensor(self.contract(&x, weight, names, span)?))
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

/// True for a number that a tensor type spreads over its axes: it waits until the sizes are known.
fn spreads(param: &Param, value: &Value) -> bool {
    let is_number = matches!(value, Value::Bool(_)) || value.as_float().is_some();
    let is_tensor = matches!(&param.ty, Some(Type { kind: TypeKind::Tensor { .. }, .. }));
    is_number && is_tensor
}

fn has_tensor(value: &Value) -> bool {
    match value {
        Value::Tensor(_) => true,
        Value::Record(fields) => fields.iter().any(|(_, value)| has_tensor(value)),
        Value::List(items) | Value::Tuple(items) => items.iter().any(has_tensor),
        _ => false,
    }
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
