//! Layers: building them, their weights and members, and calling their functions.
//!
//! A layer is a closure over its header. Inside, its axes have the header's names; a `Layer` value remembers how the frame
//! that holds it calls them. Weights are in `stored.rs`.

use std::rc::Rc;

use mdl_graph::{Axis, Name};

use super::Elaborator;
use super::axes::Filled;
use super::call::{code_def_label, pattern_name};
use super::cross::Callee;
use super::scope::{plain, untwinned};
use super::value::{
    Args, Copies, Env, Eval, Frame, FunctionKind, Given, HeaderEntry, Layer, LayerCode, LayerData, LayerKind,
    LayerMaker, MakerKind, Stop, StoredId, StoredKind, Value, Vars,
};
use super::watch::Step;
use crate::diag::Code;
use crate::syntax::ast::{self, CopiesKind, Expr, FnDef, MemberKind, Span};

impl Layer {
    /// The name that the frame holding this layer has for a name inside.
    pub(super) fn out_name(&self, local: &Name) -> Name {
        if let Some((_, outer)) = self.outer.iter().find(|(known, _)| known == local) {
            return outer.clone();
        }
        let base = untwinned(local);
        match self.outer.iter().find(|(known, _)| *known == base) {
            Some((_, outer)) => Name::from(format!("{outer}{}", &local.as_str()[base.as_str().len()..])),
            None => local.clone(),
        }
    }

    /// The layer as its own functions see it: by its own names.
    pub(super) fn inside(&self) -> Layer {
        let outer = self.outer.iter().map(|(local, _)| (local.clone(), local.clone())).collect();
        Layer { data: self.data.clone(), outer: Rc::new(outer), gather: None }
    }

    /// The layer under other names: `map` gives the new name of each that its holder had.
    fn renamed(&self, map: impl Fn(&Name) -> Name) -> Layer {
        let outer = self.outer.iter().map(|(local, outer)| (local.clone(), map(outer))).collect();
        Layer { data: self.data.clone(), outer: Rc::new(outer), gather: self.gather.clone() }
    }
}

impl Elaborator<'_> {
    /// Evaluates an expression that builds a model: its weights belong to `root`, their paths begin there.
    pub fn build_root(&mut self, root: &str, env: &Env, expr: &Expr) -> Eval<Value> {
        self.under_root(root, Vec::new(), |elab| elab.eval(env, expr))
    }

    pub(super) fn at_path<T>(&mut self, step: &str, run: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(step.to_string());
        let result = run(self);
        self.path.pop();
        result
    }

    /// What is built a step further on, with the adapters that take it.
    pub(super) fn part(&mut self, step: &str, build: impl FnOnce(&mut Self) -> Eval<Value>) -> Eval<Value> {
        self.at_path(step, |elab| build(elab).and_then(|value| elab.adapted(value)))
    }

    /// `Linear[a -> b](bias: false)`
    pub(super) fn build(&mut self, _env: &Env, maker: &Rc<LayerMaker>, args: Args, span: Span) -> Eval<Value> {
        let (code, args) = match &maker.what {
            MakerKind::Code(code) => (code.clone(), args),
            MakerKind::Partial(code, open) => (code.clone(), self.fill_holes(open, args, span)?),
        };
        let name = code.ast.name.text.clone();
        if self.building.iter().any(|building| Rc::ptr_eq(building, &code)) {
            let message = format!("the layer `{name}` is built of itself");
            let help = "nothing is made of itself; copies of a layer are `repeat[layer] …`";
            return Err(self.error_help(Code::E0214, message, span, "this would never end", help));
        }
        self.building.push(code.clone());
        let n_crossings = self.crossings.len();
        let layer = self.build_now(&code, maker.given.as_ref(), args, span);
        self.crossings.truncate(n_crossings);
        self.building.pop();
        layer.map(Value::Layer)
    }

    fn build_now(&mut self, code: &Rc<LayerCode>, given: Option<&Given>, args: Args, span: Span) -> Eval<Layer> {
        let name = &code.ast.name.text;
        let n_before = self.n_errors();
        let resolved = match given {
            Some(given) => Some(self.resolve_given(given)?),
            None => None,
        };
        let (mut header, extra) = self.fill_header(code.ast.header.as_ref(), resolved.as_ref(), name, span)?;
        if let Some((axis, _, place)) = extra.first() {
            let message = format!("`{name}` has no axis `{axis}` in its header");
            return Err(self.error(Code::E0202, message, *place, "not known"));
        }
        let frame = Frame::new(code.file, name.clone(), code.mentions.clone());
        let frame = Rc::new(Frame { training: self.trained.contains(&self.root), ..frame });
        let mut env = Env { vars: None, frame: frame.clone() };
        let mut outer: Vec<(Name, Name)> = Vec::new();
        let mut entries = Vec::new();
        for entry in &mut header {
            let locals = self.header_axes(&env, entry, given.is_some(), name, span, &mut outer)?;
            entries.push(HeaderEntry { text: entry.text.clone(), is_pack: entry.is_pack, locals });
        }
        let matched = self.match_args(&code.ast.params, args, name, span)?;
        for (param, given) in code.ast.params.iter().zip(matched) {
            let (value, place) = self.given_or_default(&env, param, given)?;
            let text = pattern_name(&param.pattern);
            let value = match &param.ty {
                Some(ty) => self.conform(&env, ty, value, place, &format!("`{text}`"))?,
                None => value,
            };
            // A layer under a type shows its axes as `base.width`; without one, as the caller calls them.
            let value = match (value, &param.ty) {
                (Value::Layer(layer), Some(_)) => Value::Layer(self.layer_param(&env, &text, &layer, &mut outer)),
                (value, _) => value,
            };
            env = self.bind_pattern(&env, &param.pattern, value, param.span)?;
        }
        self.enter(outer.clone());
        let first_stored = self.stored.len();
        let mut members: Vec<(Rc<str>, Value)> = Vec::new();
        for member in &code.ast.members {
            env = self.build_member(&env, member, &mut members);
        }
        if self.n_errors() > n_before {
            return Err(Stop);
        }
        let stored = (first_stored..self.stored.len()).map(|id| StoredId(id as u32)).collect();
        self.n_layers += 1;
        let data = LayerData {
            id: self.n_layers,
            kind: LayerKind::Plain,
            code: Some(code.clone()),
            root: self.root.clone(),
            path: self.path.join("."),
            steps: self.path_steps(),
            header: entries,
            env,
            members,
            stored,
            adapts: None,
        };
        Ok(Layer { data: Rc::new(data), outer: Rc::new(outer), gather: None })
    }

    fn header_axes(
        &mut self,
        env: &Env,
        entry: &mut Filled,
        has_brackets: bool,
        what: &str,
        span: Span,
        outer: &mut Vec<(Name, Name)>,
    ) -> Eval<Vec<Name>> {
        if entry.axes.is_none() && entry.is_pack && has_brackets {
            entry.axes = Some(Vec::new());
        }
        let mut locals = Vec::new();
        if entry.axes.is_some() {
            for (local, name, size) in entry.pairs() {
                let Some(size) = size else {
                    let message = format!("the size of axis `{}` is not known where `{what}` is built", plain(&name));
                    return Err(self.error(Code::E0202, message, span, "built here"));
                };
                env.frame.set_axis(&local, size);
                outer.push((local.clone(), name));
                locals.push(local);
            }
        } else if let Some(default) = &entry.default {
            let axis = self.declare_axis(env, &entry.text, default)?;
            outer.push((axis.name.clone(), axis.name.clone()));
            locals.push(axis.name);
        } else {
            let message = format!("`{what}` is not given its axis `{}`", entry.text);
            let help = format!("give it in brackets: `{what}[{}]()`", entry.text);
            return Err(self.error_help(Code::E0208, message, span, "built here", help));
        }
        if entry.is_pack {
            env.frame.packs.borrow_mut().insert(entry.text.clone(), locals.clone());
        }
        Ok(locals)
    }

    /// A layer given as `base`: its axes appear as `base.width`, apart from everybody else's.
    fn layer_param(&mut self, env: &Env, text: &str, layer: &Layer, outer: &mut Vec<(Name, Name)>) -> Layer {
        let mut names = Vec::new();
        for (local, seen) in layer.outer.iter() {
            let inside = Name::from(format!("{text}.{local}"));
            if let Some(size) = layer.data.env.frame.axes.borrow().get(local) {
                env.frame.set_axis(&inside, *size);
            }
            outer.push((inside.clone(), seen.clone()));
            names.push((local.clone(), inside));
        }
        Layer { data: layer.data.clone(), outer: Rc::new(names), gather: layer.gather.clone() }
    }

    fn build_member(&mut self, env: &Env, member: &ast::Member, members: &mut Vec<(Rc<str>, Value)>) -> Env {
        let mut env = env.clone();
        match &member.kind {
            MemberKind::Axis(decls) => {
                for decl in decls {
                    if self.declare_axis(&env, &decl.name.text, &decl.size).is_err() {
                        env.frame.poison_axis(&Name::from(decl.name.text.as_str()));
                    }
                }
            }
            MemberKind::Weight(decls) | MemberKind::State(decls) => {
                let kind =
                    if matches!(member.kind, MemberKind::Weight(_)) { StoredKind::Weight } else { StoredKind::State };
                for decl in decls {
                    let value = match self.declare_stored(&env, kind, decl) {
                        Ok(Some(id)) => Value::Stored(id),
                        Ok(None) => Value::None,
                        Err(Stop) => Value::Error,
                    };
                    members.push((Rc::from(decl.name.text.as_str()), value.clone()));
                    env = env.with(decl.name.text.as_str(), value);
                }
            }
            MemberKind::Let { name, value, condition } => {
                let wanted = match condition {
                    Some(condition) => self.eval_condition(&env, condition),
                    None => Ok(true),
                };
                let value = match wanted {
                    Ok(true) => self.part(&name.text, |elab| elab.eval(&env, value)).unwrap_or(Value::Error),
                    Ok(false) => Value::None,
                    Err(Stop) => Value::Error,
                };
                let value = match value {
                    Value::Tensor(_) => {
                        let help = "give it a name in the function that uses it, with `let`, or make it a `state`";
                        self.error_help(
                            Code::E0209,
                            "a member of a layer is a tensor",
                            name.span,
                            "computed here",
                            help,
                        );
                        Value::Error
                    }
                    value => value,
                };
                members.push((Rc::from(name.text.as_str()), value.clone()));
                env = env.with(name.text.as_str(), value);
            }
            MemberKind::Require(require) => drop(self.require(&env, require)),
            MemberKind::Fn(_) => {}
        }
        env
    }

    /// The path here, with the copies on the way.
    pub(super) fn path_steps(&self) -> Vec<Step> {
        let copies = |i: usize| {
            let here = self.copied.iter().filter(|(len, _)| *len == i + 1);
            here.map(|(_, copies)| (copies.id, copies.axis.size)).collect()
        };
        self.path.iter().enumerate().map(|(i, name)| Step { name: name.clone(), copies: copies(i) }).collect()
    }

    /// `repeat[layer] Block[…](…)`, `each[expert] Mlp[…]()`
    pub(super) fn eval_copies(&mut self, env: &Env, kind: CopiesKind, axes: &ast::Axes, body: &Expr) -> Eval<Value> {
        let word = if kind == CopiesKind::Repeat { "repeat" } else { "each" };
        let axis = match (axes.from.as_ref(), axes.items.as_slice()) {
            (None, [item]) => match &item.kind {
                ast::AxisItemKind::Axis(axis) if !axis.is_pack => {
                    let names = self.resolve(env, axis)?;
                    let Some(name) = names.into_iter().next() else { return Err(Stop) };
                    let size = self.need_axis(env, &name, item.span)?;
                    Some(Axis::new(name, size))
                }
                ast::AxisItemKind::Bind { axis, value } => Some(self.declare_axis(env, &axis.text(), value)?),
                _ => None,
            },
            _ => None,
        };
        let Some(axis) = axis else {
            let help = format!("name the axis of the copies: `{word}[layer] …`");
            return Err(self.error_help(
                Code::E0217,
                format!("`{word}` takes one axis"),
                axes.span,
                "these brackets",
                help,
            ));
        };
        let is_taken = self.stack.iter().any(|outer| outer.graph.name == axis.name);
        let graph = if is_taken { Axis::new(self.fresh(axis.name.as_str()), axis.size) } else { axis.clone() };
        self.n_copies += 1;
        let copies = Rc::new(Copies { id: self.n_copies, kind, axis, graph });
        self.stack.push(copies.clone());
        self.copied.push((self.path.len(), copies.clone()));
        let built = self.eval(env, body).and_then(|built| self.adapted(built));
        self.copied.pop();
        self.stack.pop();
        let inner = match built? {
            Value::Layer(layer) => layer,
            other => {
                let message = format!("`{word}` makes copies of a layer, not of {}", other.kind());
                let help = match other {
                    Value::Maker(_) => "build it: add the parentheses with its arguments",
                    _ => "write `repeat[layer] Block[width](…)`",
                };
                return Err(self.error_help(
                    Code::E0209,
                    message,
                    body.span,
                    format!("this is {}", other.kind()),
                    help,
                ));
            }
        };
        self.n_layers += 1;
        let data = LayerData {
            id: self.n_layers,
            kind: LayerKind::Copies(copies, inner.clone()),
            code: inner.data.code.clone(),
            root: inner.data.root.clone(),
            path: inner.data.path.clone(),
            steps: inner.data.steps.clone(),
            header: inner.data.header.clone(),
            env: inner.data.env.clone(),
            members: Vec::new(),
            stored: inner.data.stored.clone(),
            adapts: None,
        };
        Ok(Value::Layer(Layer { data: Rc::new(data), outer: inner.outer.clone(), gather: None }))
    }

    // ---- use ----

    /// `layer(args)`
    pub(super) fn call_layer(
        &mut self,
        env: &Env,
        layer: &Layer,
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        match &layer.data.kind {
            LayerKind::Plain => {
                let Some(def) = method_of(layer, "call") else {
                    let name = code_name(layer);
                    let names: Vec<String> = layer
                        .data
                        .code
                        .iter()
                        .flat_map(|code| &code.methods)
                        .map(|def| def.name.text.clone())
                        .collect();
                    let message = format!("the layer `{name}` has no function `call`");
                    let help = format!("it has {}", names.join(", "));
                    return Err(self.error_help(Code::E0217, message, span, "called like a function", help));
                };
                if def.params.len() == 2 {
                    let help = "give the first list by name, `model.call(…)`, and call what it gives";
                    let message = format!("`call` of `{}` has two lists of parameters", code_name(layer));
                    return Err(self.error_help(Code::E0217, message, span, "called like a function of one", help));
                }
                self.call_method(env, layer, (&def, None), given, args, span)
            }
            LayerKind::Copies(copies, inner) => {
                let inner = Layer { data: inner.data.clone(), outer: layer.outer.clone(), gather: None };
                match (copies.kind, &layer.gather) {
                    (_, Some(gather)) => self.call_gathered(env, gather, &inner, given, args, span),
                    (CopiesKind::Repeat, None) => self.call_repeat(env, copies, &inner, given, args, span),
                    (CopiesKind::Each, None) => self.call_each(env, copies, &inner, given, args, span),
                }
            }
        }
    }

    pub(super) fn call_method(
        &mut self,
        env: &Env,
        layer: &Layer,
        (def, first): (&Rc<FnDef>, Option<&Vars>),
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let Some(code) = layer.data.code.clone() else { return Err(Stop) };
        if let LayerKind::Copies(copies, _) = &layer.data.kind {
            let message = format!("`{}` of copies along `{}` cannot be called", def.name.text, copies.axis.name);
            return Err(self.error(Code::E0217, message, span, "only `call` runs through copies"));
        }
        let key = (layer.data.id, def.name.text.clone());
        if self.in_methods.contains(&key) {
            let message = format!("`{}` calls itself", code_def_label(layer, def));
            let help = "nothing calls itself: repeat a layer with `repeat[layer]`, or a step with `fold`";
            return Err(self.error_help(Code::E0214, message, span, "this call leads back to it", help));
        }
        let resolved = match given {
            Some(given) => Some(self.resolve_given(given)?),
            None => None,
        };
        let label = code_def_label(layer, def);
        let (header, signature) = self.fill_header(def.header.as_ref(), resolved.as_ref(), &label, span)?;
        let params = def.params.last().map_or(&[] as &[_], Vec::as_slice);
        let env_inside = first
            .into_iter()
            .flatten()
            .fold(layer.data.env.clone(), |env, (name, value)| env.with(name.clone(), value.clone()));
        // What is built inside of a layer trains as it does; what is only a helper follows who calls it.
        let training =
            if layer.data.root.is_empty() { env.frame.training } else { self.trained.contains(&layer.data.root) };
        let callee = Callee {
            label,
            file: code.file,
            mentions: code.mentions.clone(),
            params,
            result: def.result.as_ref(),
            body: &def.body,
            header,
            signature,
            vars: env_inside.vars,
            layer: Some(layer.clone()),
            training,
            packs: Default::default(),
        };
        let scope = std::mem::replace(&mut self.scope, Name::from(layer.data.path.as_str()));
        self.in_methods.push(key);
        let result = self.run(callee, args, span);
        self.in_methods.pop();
        self.scope = scope;
        let result = result?;
        if def.name.text == "call" {
            self.note(layer, None, &result, span)?;
        }
        Ok(result)
    }

    /// `layer.name`: an axis, a member or a function, in the names of who looks.
    pub(super) fn layer_member(&mut self, _env: &Env, layer: &Layer, name: &str, span: Span) -> Eval<Option<Value>> {
        if let LayerKind::Copies(_, inner) = &layer.data.kind {
            let inner = Layer { data: inner.data.clone(), outer: layer.outer.clone(), gather: None };
            return self.layer_member(_env, &inner, name, span);
        }
        if let Some((_, value)) = layer.data.members.iter().find(|(known, _)| &**known == name).cloned() {
            return Ok(Some(match value {
                Value::Error => return Err(Stop),
                Value::Stored(id) => {
                    let tensor = self.fetch(id)?;
                    let pairs: Vec<(Name, Name)> =
                        self.axes(&tensor).names().map(|local| (local.clone(), layer.out_name(local))).collect();
                    Value::Tensor(self.rename(&tensor, &pairs, span)?)
                }
                value => self.seen_from_outside(layer, value),
            }));
        }
        if let Some(def) = method_of(layer, name) {
            return Ok(Some(Value::function(FunctionKind::Method { layer: layer.clone(), def, first: None })));
        }
        if let Some(value) = layer.data.env.get(name).cloned() {
            return Ok(Some(self.seen_from_outside(layer, value)));
        }
        let entry = layer.data.header.iter().find(|entry| entry.text == name && !entry.is_pack);
        let local = entry.and_then(|entry| entry.locals.first().cloned()).unwrap_or_else(|| Name::from(name));
        let size = layer.data.env.frame.axes.borrow().get(&local).copied();
        Ok(size.map(|size| Value::Axis(Axis { name: layer.out_name(&local), size })))
    }

    fn seen_from_outside(&self, layer: &Layer, value: Value) -> Value {
        match value {
            Value::Layer(member) => Value::Layer(member.renamed(|name| layer.out_name(name))),
            Value::List(items) => {
                Value::list(items.iter().map(|item| self.seen_from_outside(layer, item.clone())).collect())
            }
            value => value,
        }
    }

    pub(super) fn n_errors(&self) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count()
    }
}

fn code_name(layer: &Layer) -> String {
    layer.data.code.as_ref().map_or_else(String::new, |code| code.ast.name.text.clone())
}

pub(super) fn method_of(layer: &Layer, name: &str) -> Option<Rc<FnDef>> {
    layer.data.code.as_ref()?.methods.iter().find(|def| def.name.text == name).cloned()
}
