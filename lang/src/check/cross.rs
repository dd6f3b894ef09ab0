//! How axis names cross a call: in with the arguments, out with the result.
//!
//! Each typed parameter gives a map from the caller's names to the callee's. What the type does not name goes to `..`:
//! it keeps its name unless the callee says that name. Results are renamed back; what was made inside leaves only if the
//! result type names it. A parameter without a type is open: names come in as they are.

use std::collections::BTreeSet;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, Name};

use super::Elaborator;
use super::axes::{Filled, Signature};
use super::call::pattern_name;
use super::scope::{plain, untwinned};
use super::value::{Args, Env, Eval, Frame, Layer, Stop, Tensor, Value, Var};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{AxisItem, AxisItemKind, Expr, Param, Span, Type, TypeKind};

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

    /// All names inside and what they are outside, for diagnostics.
    fn crossing(&self) -> Vec<(Name, Name)> {
        let signature = self.signature.iter().map(|(local, outer, _)| (Name::from(local.as_str()), outer.clone()));
        let rest = self.rest.iter().map(|(outer, local)| (local.clone(), outer.clone()));
        self.pairs.iter().cloned().chain(signature).chain(rest).collect()
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
        let is_open =
            callee.params.iter().zip(&matched).any(|(param, given)| {
                param.ty.is_none() && given.as_ref().is_some_and(|(value, _)| brings_names(value))
            });
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
        self.enter(names.crossing());
        let result = self.run_body(&env, &names, &callee, span);
        self.crossings.pop();
        result
    }

    fn run_body(&mut self, env: &Env, names: &Names, callee: &Callee<'_>, span: Span) -> Eval<Value> {
        let n_found = self.found.len();
        let value = self.eval(env, callee.body)?;
        if self.found.len() > n_found {
            self.rename_found(n_found, span, &|elab, tensor| names.outward(elab.axes(tensor)))?;
        }
        self.bring_out(env, names, callee.result, value, callee.body.span)
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
        // What may be left out and is not names axes as any other.
        let ty = match &ty.kind {
            TypeKind::Optional(inner) if !matches!(value, Value::None) => inner.as_ref(),
            _ => ty,
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
                    if let AxisItemKind::Axis(axis) = &item.kind
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
        items: &[AxisItem],
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
    pub(super) fn declared_names(&mut self, env: &Env, items: &[AxisItem]) -> Eval<(Vec<(Name, Span)>, bool)> {
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
}

/// True for a number that a tensor type spreads over its axes: it waits until the sizes are known.
fn spreads(param: &Param, value: &Value) -> bool {
    let is_number = matches!(value, Value::Bool(_)) || value.as_float().is_some();
    let is_tensor = matches!(&param.ty, Some(Type { kind: TypeKind::Tensor { .. }, .. }));
    is_number && is_tensor
}

/// Whether a value without a type lets names in: a tensor has axes, and what a layer gives has.
fn brings_names(value: &Value) -> bool {
    match value {
        Value::Tensor(_) | Value::Layer(_) => true,
        Value::Record(fields) => fields.iter().any(|(_, value)| brings_names(value)),
        Value::List(items) | Value::Tuple(items) => items.iter().any(brings_names),
        _ => false,
    }
}
