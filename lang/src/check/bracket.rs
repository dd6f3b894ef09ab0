//! Brackets after a value: renames, splits and merges, slices and gathers of tensors, elements of lists, axes of what is called.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Name, Op};

use super::Elaborator;
use super::call::given_of;
use super::scope::plain;
use super::value::{Env, Eval, Function, FunctionKind, GatherCopies, Layer, Stop, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{Axes, AxisItem, AxisItemKind, CopiesKind, Part, Side, Span};

impl Elaborator<'_> {
    pub(super) fn bracket(&mut self, env: &Env, value: Value, axes: &Axes, base_span: Span, span: Span) -> Eval<Value> {
        if let Value::Function(function) = &value
            && let FunctionKind::Builtin(builtin) = &function.kind
            && let Some(read) = builtin.bracket
        {
            return read(self, env, axes, span);
        }
        if let Value::Layer(layer) = &value {
            return self.bracket_layer(env, layer, axes, span);
        }
        if let Value::Function(function) = &value
            && matches!(function.kind, FunctionKind::Builtin(_))
        {
            self.declare_made(env, axes)?;
        }
        if let Some(given) = self.give_axes(env, &value, axes, span)? {
            return Ok(given);
        }
        match &value {
            Value::Error => Err(Stop),
            Value::Tensor(_) | Value::Record(_) | Value::Stored(_) => self.index_value(env, value, axes, span),
            Value::List(items) | Value::Tuple(items) => self.index_list(env, items, axes, span),
            Value::Host(name) => Ok(Value::Host(name.clone())),
            other => {
                let message = format!("{} has neither axes nor elements", other.kind());
                Err(self.error(Code::E0217, message, base_span, format!("this is {}", other.kind())))
            }
        }
    }

    /// `fold[step: 8](x, index[step]) …`: the axis is there for the arguments already.
    fn declare_made(&mut self, env: &Env, axes: &Axes) -> Eval<()> {
        for item in &axes.items {
            if let AxisItemKind::Bind { axis, value } = &item.kind
                && axis.as_name().is_some()
                && !self.names_axis(env, value)
            {
                self.declare_axis(env, &axis.text(), value)?;
            }
        }
        Ok(())
    }

    /// `encoder[t: s]`, `experts[expert = choice]`
    fn bracket_layer(&mut self, env: &Env, layer: &Layer, axes: &Axes, span: Span) -> Eval<Value> {
        if let [AxisItem { kind: AxisItemKind::Index { axis, value }, .. }] = axes.items.as_slice() {
            let copies =
                self.is_copies(CopiesKind::Each, layer).filter(|copies| axis.text() == copies.axis.name.as_str());
            let Some(copies) = copies else {
                let message = "only copies made by `each` are picked by an index";
                return Err(self.error(Code::E0217, message, span, format!("no copies along `{}`", axis.text())));
            };
            let index = self.eval(env, value)?;
            let operand = self.operand(&index, value.span, "an index")?;
            let index = self.tensor_of(&operand, value.span)?;
            if !self.dtype(&index).is_int() {
                return Err(self.error(
                    Code::E0207,
                    "copies are picked by an integer tensor",
                    value.span,
                    "this is none",
                ));
            }
            let gather = Some(Rc::new(GatherCopies { copies, index: Tensor { arrow: None, ..index } }));
            return Ok(Value::Layer(Layer { data: layer.data.clone(), outer: layer.outer.clone(), gather }));
        }
        let Some(def) = super::layer::method_of(layer, "call") else {
            return Err(self.error(Code::E0217, "this layer has no function `call`", span, "axes for a call"));
        };
        let kind = match layer.data.kind {
            super::value::LayerKind::Plain => FunctionKind::Method { layer: layer.clone(), def, first: None },
            // The axes go along to the copies when the layer is called.
            _ => FunctionKind::LayerCall(layer.clone()),
        };
        Ok(Value::Function(Rc::new(Function { kind, given: Some(given_of(axes, env)) })))
    }

    fn index_list(&mut self, env: &Env, items: &Rc<Vec<Value>>, axes: &Axes, span: Span) -> Eval<Value> {
        let [item] = axes.items.as_slice() else {
            return Err(self.error(Code::E0217, "a list has one index", span, "several"));
        };
        let index = match &item.kind {
            AxisItemKind::Value(expr) => self.eval(env, expr)?,
            AxisItemKind::Axis(axis) => match axis.as_name() {
                Some(name) => self.lookup(env, &name.text, name.span, false)?,
                None => return Err(self.error(Code::E0217, "a list is indexed by an Int", item.span, "not an Int")),
            },
            _ => return Err(self.error(Code::E0217, "a list is indexed by an Int", item.span, "not an Int")),
        };
        let len = items.len() as i64;
        if let Value::Range { start, end } = index {
            let at = |bound: i64| (if bound < 0 { bound + len } else { bound }).clamp(0, len);
            let (start, end) = (at(start.unwrap_or(0)), at(end.unwrap_or(len)));
            return Ok(Value::list(items[start as usize..end.max(start) as usize].to_vec()));
        }
        let Some(at) = index.as_int() else {
            let message = format!("a list is indexed by an Int, not {}", index.kind());
            return Err(self.error(Code::E0209, message, item.span, format!("this is {}", index.kind())));
        };
        let place = if at < 0 { at + len } else { at };
        match usize::try_from(place).ok().and_then(|place| items.get(place)) {
            Some(value) => Ok(value.clone()),
            None => Err(self.error(Code::E0215, format!("element {at} of a list of {len}"), item.span, "outside")),
        }
    }

    /// Renames, slices and gathers; of a record, each field that has the axis.
    fn index_value(&mut self, env: &Env, value: Value, axes: &Axes, span: Span) -> Eval<Value> {
        if let Some(from) = &axes.from {
            let place = from.first().map_or(span, |item| item.span);
            return Err(self.error(
                Code::E0217,
                "an arrow has no meaning for a tensor",
                place,
                "in brackets after a tensor",
            ));
        }
        let is_record = matches!(value, Value::Record(_));
        let mut value = value;
        // Plain renames happen at once, so that two axes may change places.
        let mut renames: Vec<(Name, Name, Span)> = Vec::new();
        let mut others = Vec::new();
        for item in &axes.items {
            match &item.kind {
                AxisItemKind::Rename { from, to } if is_plain(from) && is_plain(to) => {
                    let olds = self.resolve_part(env, &from.parts[0])?;
                    let news = self.new_names(env, &to.parts[0])?;
                    if olds.len() != news.len() {
                        return Err(self.error(
                            Code::E0212,
                            "the two sides of `as` differ in number",
                            item.span,
                            "a pack for an axis",
                        ));
                    }
                    renames.extend(olds.into_iter().zip(news).map(|(old, new)| (old, new, item.span)));
                }
                _ => others.push(item),
            }
        }
        if !renames.is_empty() {
            let mut met = false;
            value = self
                .each_tensor(&value, &mut |elab, tensor| elab.rename_as(env, tensor, &renames, is_record, &mut met))?;
            if is_record && !met {
                let (name, _, place) = &renames[0];
                return Err(self.error(
                    Code::E0203,
                    format!("no field has the axis `{}`", plain(name)),
                    *place,
                    "nothing to rename",
                ));
            }
        }
        for item in others {
            let mut met = false;
            let index = match &item.kind {
                AxisItemKind::Index { axis, value } => {
                    let names = self.resolve_open(env, axis)?;
                    Some((names, self.eval_index(env, value)?, value))
                }
                _ => None,
            };
            value = self.each_tensor(&value, &mut |elab, tensor| {
                let touched = match &index {
                    Some((names, index, expr)) => elab.index_axis(tensor, names, index, expr, item.span, is_record)?,
                    None => elab.regroup(env, tensor, item, is_record)?,
                };
                met |= touched.is_some();
                Ok(touched.unwrap_or_else(|| tensor.clone()))
            })?;
            if is_record && !met {
                return Err(self.error(
                    Code::E0203,
                    "no field of the record has this axis",
                    item.span,
                    "nothing to do",
                ));
            }
        }
        Ok(value)
    }

    /// A name on the left of `as` or `=`: anything that the tensor may have. The tensor decides.
    fn resolve_open(&mut self, env: &Env, axis: &crate::syntax::ast::AxisRef) -> Eval<Vec<Name>> {
        match axis.as_name() {
            Some(name) => Ok(vec![Name::from(name.text.as_str())]),
            None => self.resolve(env, axis),
        }
    }

    fn resolve_part(&mut self, env: &Env, part: &Part) -> Eval<Vec<Name>> {
        if let Some(size) = &part.size {
            return Err(self.error(
                Code::E0217,
                "a size stands only on the right of `as`",
                size.span,
                "here it is left",
            ));
        }
        self.resolve_open(env, &part.axis)
    }

    /// Names on the right of `as`: packs of the frame, or a name that is new or known.
    fn new_names(&mut self, env: &Env, part: &Part) -> Eval<Vec<Name>> {
        self.resolve_open(env, &part.axis)
    }

    fn rename_as(
        &mut self,
        env: &Env,
        tensor: &Tensor,
        renames: &[(Name, Name, Span)],
        is_record: bool,
        met: &mut bool,
    ) -> Eval<Tensor> {
        let axes = self.axes(tensor).clone();
        let mut pairs = Vec::new();
        for (old, new, span) in renames {
            let Some(size) = axes.size(old) else {
                if is_record {
                    continue;
                }
                return Err(self.no_axis(env, tensor, old, *span));
            };
            let stays = |name: &Name| axes.contains(name) && !renames.iter().any(|(old, ..)| old == name);
            if stays(new) {
                let message = format!("`{}` has the axis `{}` already", self.show_axes(&axes), plain(new));
                let help = format!("rename it to another name, or to the twin `{}'`", plain(new));
                return Err(self.error_help(Code::E0212, message, *span, "would be there twice", help));
            }
            *met = true;
            env.frame.axes.borrow_mut().insert(new.clone(), size);
            pairs.push((old.clone(), new.clone()));
        }
        self.rename(tensor, &pairs, renames.first().map_or_else(Span::default, |(.., span)| *span))
    }

    pub(super) fn no_axis(&mut self, env: &Env, tensor: &Tensor, name: &Name, span: Span) -> Stop {
        let axes = self.axes(tensor).clone();
        let known = self.local_axis_size(env, name).is_some();
        let message = format!("there is no axis `{}` in {}", plain(name), self.show_axes(&axes));
        let names: Vec<String> = axes.names().map(plain).collect();
        let diagnostic = Diagnostic::error(Code::E0203, message)
            .label(span, if known { "not one of its axes" } else { "not known" });
        self.fail(match crate::diag::nearest(name.as_str(), names.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        })
    }

    /// `width as (head: 6, key)`, `(head, key) as width`, `(..from) as i`
    fn regroup(&mut self, env: &Env, tensor: &Tensor, item: &AxisItem, is_record: bool) -> Eval<Option<Tensor>> {
        let AxisItemKind::Rename { from, to } = &item.kind else {
            let help = "an index names its axis: `x[t = 0]`";
            return Err(self.error_help(
                Code::E0217,
                "expected `axis = index` or `axis as name`",
                item.span,
                "after a tensor",
                help,
            ));
        };
        let mut olds = Vec::new();
        for part in &from.parts {
            olds.extend(self.resolve_part(env, part)?);
        }
        let axes = self.axes(tensor).clone();
        if let Some(missing) = olds.iter().find(|old| !axes.contains(old)) {
            if is_record {
                return Ok(None);
            }
            let missing = missing.clone();
            return Err(self.no_axis(env, tensor, &missing, item.span));
        }
        let total: u64 = olds.iter().filter_map(|old| axes.size(old)).product();
        let parts = self.part_sizes(env, to, &olds, total, item.span).inspect_err(|_| {
            for part in to.parts.iter().filter(|part| !part.axis.is_pack && part.axis.path.len() == 1) {
                env.frame.poison_axis(&Name::from(part.axis.text()));
            }
        })?;
        let kept: Vec<&Name> = axes.names().filter(|name| !olds.contains(name)).collect();
        for part in &parts {
            if kept.contains(&&part.name) {
                let message = format!("{} has the axis `{}` already", self.show_axes(&axes), plain(&part.name));
                return Err(self.error(Code::E0212, message, item.span, "would be there twice"));
            }
        }
        for part in &parts {
            env.frame.set_axis(&part.name, part.size);
        }
        // Through one axis with a name of its own, so that old and new names cannot meet.
        let (one, x) = match olds.as_slice() {
            [one] => (one.clone(), tensor.clone()),
            _ => {
                let one = match parts.as_slice() {
                    [only] => only.name.clone(),
                    _ => self.fresh("whole"),
                };
                let op = Op::Merge { axes: olds.clone(), into: one.clone() };
                (one, self.emit(op, &[tensor], item.span)?)
            }
        };
        let result = match parts.as_slice() {
            [only] => self.rename(&x, &[(one, only.name.clone())], item.span)?,
            _ => self.emit(Op::Split { axis: one, into: parts }, &[&x], item.span)?,
        };
        Ok(Some(Tensor { arrow: None, ..result }))
    }

    /// The axes on the right of `as`: at most one size is left to be worked out.
    fn part_sizes(&mut self, env: &Env, to: &Side, olds: &[Name], total: u64, span: Span) -> Eval<Vec<Axis>> {
        let mut parts: Vec<(Name, Option<u64>)> = Vec::new();
        let mut open = 0;
        for part in &to.parts {
            if part.axis.is_pack || part.axis.path.len() > 1 {
                for name in self.resolve(env, &part.axis)? {
                    let size = self.axis_size(env, &name, part.axis.span)?;
                    parts.push((name, size));
                }
                continue;
            }
            let name = Name::from(part.axis.text());
            let size = match &part.size {
                Some(size) => Some(self.eval_size(env, size, name.as_str())?),
                None => None,
            };
            open += usize::from(size.is_none());
            parts.push((name, size));
        }
        if open > 1 {
            // Sizes that are in scope are known: `[turn as (t, slot)]`. A name given up on the left is not one of them.
            for (name, size) in &mut parts {
                if size.is_none() && !olds.contains(name) {
                    *size = self.axis_size(env, name, span)?;
                }
            }
        }
        let unknown: Vec<&Name> = parts.iter().filter(|(_, size)| size.is_none()).map(|(name, _)| name).collect();
        if unknown.len() > 1 {
            let message = format!("the sizes of `{}` and `{}` are not known", plain(unknown[0]), plain(unknown[1]));
            return Err(self.error_help(
                Code::E0211,
                message,
                span,
                "at most one is left out",
                "give one: `(head: 6, key)`",
            ));
        }
        let known: u64 = parts.iter().filter_map(|(_, size)| *size).product();
        let mut out = Vec::with_capacity(parts.len());
        for (name, size) in &parts {
            let size = match size {
                Some(size) => *size,
                None if known > 0 && total.is_multiple_of(known) => total / known,
                None => {
                    let message = format!("{total} positions do not split into {known} equal parts");
                    let label = format!("`{}` would not be whole", plain(name));
                    return Err(self.error(Code::E0211, message, span, label));
                }
            };
            out.push(Axis::new(name.clone(), size));
        }
        let product: u64 = out.iter().map(|axis| axis.size).product();
        if product != total {
            let shown: Vec<String> = out.iter().map(|axis| format!("{}: {}", plain(&axis.name), axis.size)).collect();
            let message = format!("({}) holds {product} positions, and there are {total}", shown.join(", "));
            return Err(self.error(Code::E0211, message, span, "the sizes do not fit"));
        }
        if AxisSet::of(out.iter().cloned()).is_none_or(|set| set.len() != out.len()) {
            return Err(self.error(Code::E0212, "an axis stands twice on the right of `as`", span, "here"));
        }
        Ok(out)
    }

    // ---- `index` and `size` ----

    /// `index[t]`
    pub(super) fn index_of(&mut self, env: &Env, axes: &Axes, span: Span) -> Eval<Value> {
        let [AxisItem { kind: AxisItemKind::Axis(axis), .. }] = axes.items.as_slice() else {
            return Err(self.error(Code::E0217, "`index` takes one axis", axes.span, "these brackets"));
        };
        let names = self.resolve(env, axis)?;
        let [name] = names.as_slice() else {
            return Err(self.error(Code::E0217, "`index` takes one axis", axis.span, format!("{} axes", names.len())));
        };
        let size = self.need_axis(env, name, axis.span)?;
        Ok(Value::Tensor(self.emit(Op::Iota(Axis::new(name.clone(), size)), &[], span)?))
    }

    /// `size[t]`, `size[..from]` (a product)
    pub(super) fn size_of_axes(&mut self, env: &Env, axes: &Axes, span: Span) -> Eval<Value> {
        let mut product: i64 = 1;
        for item in &axes.items {
            let AxisItemKind::Axis(axis) = &item.kind else {
                return Err(self.error(Code::E0217, "`size` takes axes", item.span, "this is none"));
            };
            if axis.is_rest() {
                product *= env.frame.rest.borrow().iter().map(|axis| axis.size as i64).product::<i64>();
                continue;
            }
            // `size[model.vocab]`: the axis of a layer, whose size the layer knows.
            if axis.path.len() > 1 && !axis.is_pack {
                let mut value = self.lookup(env, &axis.path[0].text, axis.path[0].span, true)?;
                for step in &axis.path[1..] {
                    value = self.member(env, &value, &step.text, step.span)?;
                }
                if let Some(size) = value.as_int() {
                    product *= size;
                    continue;
                }
            }
            for name in self.resolve(env, axis)? {
                product *= self.need_axis(env, &name, axis.span)? as i64;
            }
        }
        let _ = span;
        Ok(Value::Int(product))
    }

    /// An integer tensor of positions in 32 bits, which `put`, `add` and draws count in.
    pub(super) fn need_int(&mut self, value: &Value, span: Span, what: &str) -> Eval<Tensor> {
        let operand = self.operand(value, span, what)?;
        let tensor = self.tensor_of(&operand, span)?;
        if self.dtype(&tensor).is_int() {
            return Ok(tensor);
        }
        let message = format!("{what} is an integer tensor, not {}", self.dtype(&tensor));
        Err(self.error_help(Code::E0207, message, span, "this is none", "`int(x)` rounds toward zero"))
    }

    pub(super) fn i32_number(&mut self, value: i64, span: Span) -> Eval<Tensor> {
        self.number(value as f64, DType::I32, span)
    }
}

/// One axis or one pack, without parentheses and without a size.
fn is_plain(side: &Side) -> bool {
    matches!(side.parts.as_slice(), [part] if part.size.is_none()) && !side.is_group
}
