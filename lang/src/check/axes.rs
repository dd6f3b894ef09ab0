//! Axes in brackets: what `t`, `t'`, `..from`, `..`, `base.width` and `name: size` mean in a frame, and how the axes that a
//! caller gives fill a header.

use mdl_graph::{Axis, Name};

use super::Elaborator;
use super::scope::plain;
use super::value::{Env, Eval, Given, Layer, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{Axes, AxisItem, AxisItemKind, AxisRef, Expr, ExprKind, Span};

/// One entry of brackets at a call or at the building of a layer.
#[derive(Clone)]
pub(super) struct GivenItem {
    /// `t: s` gives `t`.
    pub(super) name: Option<String>,
    /// Names in the frame that wrote them; a size when one is known.
    pub(super) axes: Vec<(Name, Option<u64>)>,
    pub(super) span: Span,
}

#[derive(Clone, Default)]
pub(super) struct GivenAxes {
    pub(super) from: Option<Vec<GivenItem>>,
    pub(super) items: Vec<GivenItem>,
    pub(super) span: Span,
}

/// Axes of a signature that a call binds, `t: s`: the name inside, the caller's, and where.
pub(super) type Signature = Vec<(String, Name, Span)>;

/// An axis of a declared type, with its size where the type says one.
type Declared = (Name, Option<u64>, Span);

/// An entry of a header with what fills it.
#[derive(Clone)]
pub(super) struct Filled {
    pub(super) text: String,
    pub(super) is_pack: bool,
    /// `None` when the caller gave nothing for it.
    pub(super) axes: Option<Vec<(Name, Option<u64>)>>,
    pub(super) default: Option<Expr>,
}

impl Filled {
    /// The names inside, each with the caller's name and size.
    pub(super) fn pairs(&self) -> Vec<(Name, Name, Option<u64>)> {
        let Some(axes) = &self.axes else { return Vec::new() };
        let local = |outer: &Name| match self.is_pack {
            true => Name::from(format!("{}.{}", self.text, plain(outer))),
            false => Name::from(self.text.as_str()),
        };
        axes.iter().map(|(outer, size)| (local(outer), outer.clone(), *size)).collect()
    }
}

impl Elaborator<'_> {
    /// The names of an axis or a pack in this frame; `..` gives what came in through `..`.
    pub(super) fn resolve(&mut self, env: &Env, axis: &AxisRef) -> Eval<Vec<Name>> {
        if axis.is_rest() {
            return Ok(env.frame.rest.borrow().iter().map(|axis| axis.name.clone()).collect());
        }
        let Some(last) = axis.path.last() else { return Ok(Vec::new()) };
        let base = last.text.trim_end_matches('\'');
        let primes = &last.text[base.len()..];
        let primed = |name: &Name| Name::from(format!("{name}{primes}"));
        if axis.path.len() > 1 {
            let mut value = self.lookup(env, &axis.path[0].text, axis.path[0].span, true)?;
            for step in &axis.path[1..axis.path.len() - 1] {
                value = self.member(env, &value, &step.text, step.span)?;
            }
            let Value::Layer(layer) = &value else {
                let message = format!("`{}` is {}, and only layers have axes", axis.path[0].text, value.kind());
                return Err(self.error(Code::E0209, message, axis.span, "an axis of a layer"));
            };
            return match self.layer_axes(layer, base) {
                Some(names) => Ok(names.iter().map(primed).collect()),
                None => {
                    let shown: Vec<String> = layer.data.header.iter().map(|entry| entry.text.clone()).collect();
                    let message = format!("`{}` has no axis `{base}`", axis.path[0].text);
                    let help = format!("its header has {}", shown.join(", "));
                    Err(self.error_help(Code::E0202, message, axis.span, "not known", help))
                }
            };
        }
        if axis.is_pack {
            if let Some(names) = env.frame.packs.borrow().get(base) {
                return Ok(names.iter().map(primed).collect());
            }
            // A header's single axis may be said as a pack: what takes any number takes one.
            let single = Name::from(base);
            if self.local_axis_size(env, &single).is_some() {
                return Ok(vec![primed(&single)]);
            }
            let known: Vec<String> = env.frame.packs.borrow().keys().cloned().collect();
            let help = if known.is_empty() {
                "a pack is declared in the header: `fn f[..over](…)`".to_string()
            } else {
                format!("the packs here are ..{}", known.join(", .."))
            };
            return Err(self.error_help(
                Code::E0202,
                format!("no pack `..{base}` is in scope"),
                axis.span,
                "not known",
                help,
            ));
        }
        let name = Name::from(last.text.as_str());
        if env.frame.open.get() || self.axis_size(env, &name, axis.span)?.is_some() {
            return Ok(vec![name]);
        }
        // A pack said without its dots, `mean[over]`: refused with the right spelling.
        if env.frame.packs.borrow().contains_key(base) {
            let help = format!("write `..{base}`");
            return Err(self.error_help(
                Code::E0202,
                format!("`{base}` is a pack of axes"),
                axis.span,
                "not one axis",
                help,
            ));
        }
        Err(self.unknown_axis(env, &name, axis.span))
    }

    /// The axes of a header entry of a layer, as seen from the frame that holds it.
    pub(super) fn layer_axes(&self, layer: &Layer, text: &str) -> Option<Vec<Name>> {
        let entry = layer.data.header.iter().find(|entry| entry.text == text)?;
        Some(entry.locals.iter().map(|local| layer.out_name(local)).collect())
    }

    /// The axes that a reduction names, of those that `tensor` has. `..` is all of what came in through `..`.
    pub(super) fn reduced(&mut self, env: &Env, axes: &Axes, tensor: &Tensor, what: &str) -> Eval<Vec<Name>> {
        let mut names = Vec::new();
        for item in &axes.items {
            let AxisItemKind::Axis(axis) = &item.kind else {
                return Err(self.error(
                    Code::E0217,
                    format!("`{what}` takes names of axes"),
                    item.span,
                    "expected an axis",
                ));
            };
            if axis.is_rest() {
                let here = self.visible(tensor);
                let rest = env.frame.rest.borrow().clone();
                let is_open = env.frame.open.get() || env.frame.is_file;
                names.extend(
                    here.into_iter()
                        .map(|axis| axis.name)
                        .filter(|name| is_open || rest.iter().any(|axis| axis.name == *name)),
                );
                continue;
            }
            for name in self.resolve(env, axis)? {
                if !self.axes(tensor).contains(&name) {
                    return Err(self.lacks(tensor, &name, item.span, what));
                }
                names.push(name);
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    pub(super) fn lacks(&mut self, tensor: &Tensor, name: &Name, span: Span, what: &str) -> super::value::Stop {
        let has = self.show_axes(&self.axes(tensor).clone());
        let message = format!("`{what}` over `{}`, which its argument lacks", plain(name));
        self.error(Code::E0203, message, span, format!("the argument has {has}"))
    }

    /// Reads the axes given at a call, in the frame that wrote them.
    pub(super) fn resolve_given(&mut self, given: &Given) -> Eval<GivenAxes> {
        let env = &given.env;
        let from = match &given.axes.from {
            Some(items) => Some(self.resolve_items(env, items)?),
            None => None,
        };
        Ok(GivenAxes { from, items: self.resolve_items(env, &given.axes.items)?, span: given.axes.span })
    }

    fn resolve_items(&mut self, env: &Env, items: &[AxisItem]) -> Eval<Vec<GivenItem>> {
        let mut out = Vec::with_capacity(items.len());
        for item in items {
            let (name, axes) = match &item.kind {
                AxisItemKind::Axis(axis) => (None, self.sized(env, axis)?),
                AxisItemKind::Bind { axis, value } => {
                    let name = axis.text().trim_start_matches("..").to_string();
                    let axes = match self.as_axis_ref(env, value) {
                        Some(said) => self.sized(env, &said)?,
                        None => vec![self.made_axis(env, &name, value)?],
                    };
                    (Some(name), axes)
                }
                AxisItemKind::Value(_) | AxisItemKind::Rename { .. } | AxisItemKind::Index { .. } => {
                    let help = "give an axis by its place, `f[t]`, or by name, `f[t: s]`";
                    return Err(self.error_help(Code::E0217, "expected axes", item.span, "this is none", help));
                }
            };
            out.push(GivenItem { name, axes, span: item.span });
        }
        Ok(out)
    }

    fn sized(&mut self, env: &Env, axis: &AxisRef) -> Eval<Vec<(Name, Option<u64>)>> {
        if axis.is_rest() {
            return Ok(env.frame.rest.borrow().iter().map(|axis| (axis.name.clone(), Some(axis.size))).collect());
        }
        let names = self.resolve(env, axis)?;
        let mut out = Vec::with_capacity(names.len());
        for name in names {
            let size = self.axis_size(env, &name, axis.span)?;
            out.push((name, size));
        }
        Ok(out)
    }

    /// The axis that an expression names, if it names one: `t`, `t'`, `student.width`.
    fn as_axis_ref(&mut self, env: &Env, value: &Expr) -> Option<AxisRef> {
        let name = |text: &str, span| crate::syntax::ast::Name { text: text.to_string(), span };
        match &value.kind {
            ExprKind::Name(text) => {
                let axis = Name::from(text.as_str());
                let is_axis = self.local_axis_size(env, &axis).is_some()
                    || self.files[env.frame.file].axes.contains_key(text.trim_end_matches('\''))
                        && env.get(text).is_none()
                    || env.frame.open.get() && env.get(text).is_none();
                is_axis.then(|| AxisRef { is_pack: false, path: vec![name(text, value.span)], span: value.span })
            }
            ExprKind::Member { base, name: member } => {
                let ExprKind::Name(text) = &base.kind else { return None };
                let Some(Value::Layer(layer)) = env.get(text).cloned() else { return None };
                self.layer_axes(&layer, &member.text)?;
                Some(AxisRef { is_pack: false, path: vec![name(text, base.span), member.clone()], span: value.span })
            }
            _ => None,
        }
    }

    pub(super) fn names_axis(&mut self, env: &Env, value: &Expr) -> bool {
        self.as_axis_ref(env, value).is_some()
    }

    /// `head: 6` makes an axis of that name and size, known to the frame from here on.
    fn made_axis(&mut self, env: &Env, name: &str, value: &Expr) -> Eval<(Name, Option<u64>)> {
        let evaluated = self.eval(env, value)?;
        if let Value::Axis(axis) = &evaluated
            && value.kind != ExprKind::Name(axis.name.to_string())
        {
            // `width: model.width`: the axis of a layer.
            return Ok((axis.name.clone(), Some(axis.size)));
        }
        let size = self.size_of(&evaluated, value.span, name)?;
        let axis = Name::from(name);
        env.frame.axes.borrow_mut().entry(axis.clone()).or_insert(size);
        Ok((axis, Some(size)))
    }

    /// Matches what a caller gives with a header. What is left over must be named, and is given back: axes of the signature.
    pub(super) fn fill_header(
        &mut self,
        header: Option<&Axes>,
        given: Option<&GivenAxes>,
        what: &str,
        span: Span,
    ) -> Eval<(Vec<Filled>, Signature)> {
        let mut filled = Vec::new();
        let mut n_from = 0;
        if let Some(header) = header {
            for (side, items) in [(0, header.from.as_deref()), (1, Some(header.items.as_slice()))] {
                for item in items.unwrap_or_default() {
                    filled.push(self.header_entry(item)?);
                }
                if side == 0 {
                    n_from = filled.len();
                }
            }
        }
        let Some(given) = given else { return Ok((filled, Vec::new())) };
        let mut signature = Vec::new();
        let mut positional = (Vec::new(), Vec::new());
        for (side, items) in [(0, given.from.as_deref()), (1, Some(given.items.as_slice()))] {
            for item in items.unwrap_or_default() {
                let in_pack = side_has_pack(&filled, n_from, side, given.from.is_some());
                let entry = item.name.as_ref().and_then(|name| filled.iter_mut().find(|entry| entry.text == *name));
                match (&item.name, entry) {
                    (Some(_), Some(entry)) if entry.axes.is_some() => {
                        let message = format!("`{}` of `{what}` is given twice", entry.text);
                        return Err(self.error(Code::E0208, message, item.span, "again here"));
                    }
                    (Some(_), Some(entry)) => {
                        if !entry.is_pack && item.axes.len() != 1 {
                            let message = format!("`{}` of `{what}` is one axis", entry.text);
                            return Err(self.error(
                                Code::E0208,
                                message,
                                item.span,
                                format!("{} axes", item.axes.len()),
                            ));
                        }
                        entry.axes = Some(item.axes.clone());
                    }
                    // `gate: 4` where no header entry is called so makes an axis by its place in a pack; a signature's
                    // axis otherwise.
                    (Some(_), None) if in_pack && is_made(item) => {
                        if side == 0 {
                            positional.0.push(item.clone())
                        } else {
                            positional.1.push(item.clone())
                        }
                    }
                    (Some(name), None) => match item.axes.as_slice() {
                        [(axis, _)] => signature.push((name.clone(), axis.clone(), item.span)),
                        _ => {
                            return Err(self.error(Code::E0208, "expected one axis", item.span, "several"));
                        }
                    },
                    (None, _) => {
                        if side == 0 {
                            positional.0.push(item.clone())
                        } else {
                            positional.1.push(item.clone())
                        }
                    }
                }
            }
        }
        let has_arrow = header.is_some_and(|header| header.from.is_some());
        if given.from.is_some() != has_arrow && !(positional.0.is_empty() && positional.1.is_empty()) {
            let (message, help) = if has_arrow {
                (format!("the header of `{what}` has an arrow"), format!("write `{what}[from -> to]`"))
            } else {
                (format!("the header of `{what}` has no arrow"), "give its axes after commas".to_string())
            };
            return Err(self.error_help(Code::E0208, message, given.span, "these axes", help));
        }
        let (from, to) = filled.split_at_mut(n_from);
        let sides = [(from, positional.0), (to, positional.1)];
        for (entries, items) in sides {
            self.fill_side(entries, items, what, span)?;
        }
        Ok((filled, signature))
    }

    fn header_entry(&mut self, item: &AxisItem) -> Eval<Filled> {
        let (axis, default) = match &item.kind {
            AxisItemKind::Axis(axis) => (axis, None),
            AxisItemKind::Bind { axis, value } => (axis, Some(value.clone())),
            _ => return Err(self.error(Code::E0217, "a header holds names of axes", item.span, "this is none")),
        };
        let text = axis.text().trim_start_matches("..").to_string();
        Ok(Filled { text, is_pack: axis.is_pack, axes: None, default })
    }

    fn fill_side(&mut self, entries: &mut [Filled], items: Vec<GivenItem>, what: &str, span: Span) -> Eval<()> {
        let mut open: Vec<&mut Filled> = entries.iter_mut().filter(|entry| entry.axes.is_none()).collect();
        if items.is_empty() {
            // `[width -> ]`: nothing is an answer for a pack beside other axes.
            return Ok(());
        }
        let pack = open.iter().position(|entry| entry.is_pack);
        let flat: Vec<(Name, Option<u64>)> = items.iter().flat_map(|item| item.axes.clone()).collect();
        let after = pack.map_or(0, |pack| open.len() - pack - 1);
        let before = pack.unwrap_or(open.len());
        if flat.len() > open.len() && pack.is_none() || flat.len() < after {
            let item = items.get(open.len()).or(items.last());
            let message = format!("`{what}` takes {} axes here, and {} are given", open.len(), flat.len());
            let place = item.map_or(span, |item| item.span);
            return Err(self.error(Code::E0208, message, place, "one too many"));
        }
        let mut taken = flat.into_iter();
        let mut left = taken.len();
        for (i, entry) in open.iter_mut().enumerate() {
            if entry.is_pack {
                let n = left.saturating_sub(after);
                entry.axes = Some(taken.by_ref().take(n).collect());
                left -= n;
            } else if (i < before || pack.is_some()) && left > 0 {
                entry.axes = taken.next().map(|axis| vec![axis]);
                left -= 1;
            }
        }
        for entry in open {
            let twice = entry.axes.as_ref().is_some_and(|axes| {
                axes.iter().enumerate().any(|(i, (name, _))| axes[..i].iter().any(|(other, _)| other == name))
            });
            if twice {
                let message = format!("`..{}` of `{what}` is given one axis twice", entry.text);
                return Err(self.error_help(Code::E0212, message, span, "twice", "use its twin, `t'`"));
            }
        }
        Ok(())
    }

    /// The declared axes of a tensor type in a frame: names, packs spread, with sizes where `name: size` says one.
    pub(super) fn declared_axes(&mut self, env: &Env, items: &[AxisItem]) -> Eval<(Vec<Declared>, bool)> {
        let mut out = Vec::new();
        let mut has_rest = false;
        for item in items {
            match &item.kind {
                AxisItemKind::Axis(axis) if axis.is_rest() => has_rest = true,
                AxisItemKind::Axis(axis) => {
                    let names = if axis.is_pack || axis.path.len() > 1 {
                        self.resolve(env, axis)?
                    } else {
                        vec![Name::from(axis.text())]
                    };
                    out.extend(names.into_iter().map(|name| (name, None, item.span)));
                }
                AxisItemKind::Bind { axis, value } => {
                    let size = self.eval_size(env, value, &axis.text())?;
                    out.push((Name::from(axis.text()), Some(size), item.span));
                }
                _ => {
                    return Err(self.error(Code::E0217, "a type holds names of axes", item.span, "this is none"));
                }
            }
        }
        for (i, (name, _, span)) in out.iter().enumerate() {
            if let Some((_, _, first)) = out[..i].iter().find(|(other, ..)| other == name) {
                let diagnostic =
                    Diagnostic::error(Code::E0212, format!("axis `{}` stands twice in a type", plain(name)))
                        .label(*span, "again here")
                        .label(*first, "first here")
                        .help(format!("use its twin, `{}'`", plain(name)));
                return Err(self.fail(diagnostic));
            }
        }
        Ok((out, has_rest))
    }

    /// An axis of an `axis` line, or of a bracket that makes one.
    pub(super) fn declare_axis(&mut self, env: &Env, name: &str, size: &Expr) -> Eval<Axis> {
        let size = self.eval_size(env, size, name)?;
        env.frame.set_axis(&Name::from(name), size);
        Ok(Axis::new(name, size))
    }
}

fn side_has_pack(filled: &[Filled], n_from: usize, side: usize, has_from: bool) -> bool {
    let entries = match (side, has_from) {
        (0, true) => &filled[..n_from],
        _ => &filled[n_from..],
    };
    entries.iter().any(|entry| entry.is_pack)
}

/// True for `gate: 4`, whose axis is called as it says; not for `t: s`.
fn is_made(item: &GivenItem) -> bool {
    matches!((item.axes.as_slice(), &item.name), ([(axis, _)], Some(name)) if axis.as_str() == name)
}
