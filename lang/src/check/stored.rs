//! Weights and states: entries of one table, with the path of names that leads to them.
//!
//! What a `repeat` or an `each` builds, it builds once, and its weights are stacked along the axis of the copies. A weight that is
//! used is an input of the outermost graph, cut or renamed by each loop and each copy around the place.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, InputKind, Name, Type};

use super::Elaborator;
use super::value::{Arrow, Env, Eval, Stored, StoredId, StoredKind, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{self, TypeKind};

impl Elaborator<'_> {
    /// `weight w: [..from -> ..to] = init if condition`
    pub(super) fn declare_stored(&mut self, env: &Env, kind: StoredKind, decl: &ast::Stored) -> Eval<Option<StoredId>> {
        if let Some(condition) = &decl.condition
            && !self.eval_condition(env, condition)?
        {
            return Ok(None);
        }
        let word = if kind == StoredKind::Weight { "weight" } else { "state" };
        let Some(ty) = &decl.ty else {
            let message = format!("the {word} `{}` has no type", decl.name.text);
            let help = format!("say its axes: `{word} {}: [from -> to] = …`", decl.name.text);
            return Err(self.error_help(Code::E0206, message, decl.name.span, "declared here", help));
        };
        let (dtype, axes) = match &ty.kind {
            TypeKind::Tensor { dtype, axes } => (dtype.clone(), axes.clone()),
            TypeKind::Name(name) if super::types::scalar_dtype(&name.text).is_some() => {
                (Some(ast::Dtype { name: name.clone(), args: Vec::new(), span: name.span }), None)
            }
            _ => {
                let message = format!("the {word} `{}` is a tensor", decl.name.text);
                return Err(self.error(Code::E0209, message, ty.span, "this is no type of a tensor"));
            }
        };
        let dtype = match &dtype {
            None => DType::F32,
            Some(dtype) => match super::types::scalar_dtype(&dtype.name.text) {
                Some(Some(known)) if kind == StoredKind::State || known == DType::F32 => known,
                Some(None) if kind == StoredKind::State => DType::I32,
                Some(_) => {
                    let message = format!("a weight is f32, not {}", dtype.name.text);
                    let help = "weights stay in f32; `precision` says what a stage computes in";
                    return Err(self.error_help(Code::E0207, message, dtype.span, "this dtype", help));
                }
                None => {
                    let message = format!("the stored dtype `{}` is not in this version", dtype.name.text);
                    return Err(self.error(Code::E0704, message, dtype.span, "not understood yet"));
                }
            },
        };
        let (from, to) = match &axes {
            Some(axes) => {
                let from = match &axes.from {
                    Some(items) => Some(self.stored_axes(env, items)?),
                    None => None,
                };
                (from, self.stored_axes(env, &axes.items)?)
            }
            None => (None, Vec::new()),
        };
        let has_arrow = from.is_some();
        // An axis on both sides: the left one is its twin.
        let sides: Vec<(Name, Axis)> = from
            .unwrap_or_default()
            .into_iter()
            .map(|axis| {
                let own =
                    if to.iter().any(|other| other.name == axis.name) { axis.name.twin() } else { axis.name.clone() };
                (axis.name, Axis::new(own, axis.size))
            })
            .collect();
        let arrow = has_arrow.then(|| {
            Rc::new(Arrow {
                from: sides.iter().map(|(said, own)| (said.clone(), own.name.clone())).collect(),
                to: to.iter().map(|axis| axis.name.clone()).collect(),
            })
        });
        let n_from = sides.len();
        let locals: Vec<Axis> = sides.into_iter().map(|(_, own)| own).chain(to).collect();
        if AxisSet::of(locals.iter().cloned()).is_none_or(|set| set.len() != locals.len()) {
            let message = format!("the {word} `{}` has an axis twice", decl.name.text);
            return Err(self.error_help(Code::E0212, message, ty.span, "declared here", "use its twin, `t'`"));
        }
        let stack: Vec<Axis> = self.stack.iter().map(|copies| copies.graph.clone()).collect();
        let mut axes = Vec::with_capacity(locals.len());
        for axis in &locals {
            let is_taken = stack.iter().any(|other| other.name == axis.name);
            let name = if is_taken { self.fresh(axis.name.as_str()) } else { axis.name.clone() };
            axes.push(Axis::new(name, axis.size));
        }
        let names: Vec<Name> = axes.iter().map(|axis| axis.name.clone()).collect();
        let (from, to) =
            if has_arrow { (names[..n_from].to_vec(), names[n_from..].to_vec()) } else { Default::default() };
        let path = self.free_path(&decl.name.text);
        self.stored.push(Stored {
            kind,
            root: self.root.clone(),
            path,
            stack,
            axes,
            from,
            to,
            span: decl.span,
            origin: None,
            called: None,
            local: locals.into_iter().map(|axis| axis.name).collect(),
            arrow,
            copies: self.stack.clone(),
            init: decl.init.clone(),
            env: env.clone(),
            dtype,
        });
        Ok(Some(StoredId(self.stored.len() as u32 - 1)))
    }

    /// The path of a weight here; two layers that share one get numbers.
    fn free_path(&self, name: &str) -> String {
        let base: String = self.path.iter().map(|step| format!("{step}.")).collect::<String>() + name;
        let is_taken = |path: &str| self.stored.iter().any(|known| known.root == self.root && known.path == path);
        if !is_taken(&base) {
            return base;
        }
        let mut n = 2;
        while is_taken(&format!("{base}_{n}")) {
            n += 1;
        }
        format!("{base}_{n}")
    }

    fn stored_axes(&mut self, env: &Env, items: &[ast::AxisItem]) -> Eval<Vec<Axis>> {
        let mut out = Vec::new();
        for item in items {
            match &item.kind {
                ast::AxisItemKind::Axis(axis) if axis.is_rest() => {
                    return Err(self.error(
                        Code::E0206,
                        "a weight has no `..`",
                        item.span,
                        "what it would be is not known here",
                    ));
                }
                ast::AxisItemKind::Axis(axis) => {
                    for name in self.resolve(env, axis)? {
                        let size = self.need_axis(env, &name, item.span)?;
                        out.push(Axis::new(name, size));
                    }
                }
                ast::AxisItemKind::Bind { axis, value } => out.push(self.declare_axis(env, &axis.text(), value)?),
                _ => return Err(self.error(Code::E0217, "a type holds names of axes", item.span, "this is none")),
            }
        }
        Ok(out)
    }

    /// The tensor of a weight or state at this place: its input, cut or renamed by each `repeat` and `each` around.
    pub(super) fn fetch(&mut self, id: StoredId) -> Eval<Tensor> {
        let stored = &self.stored[id.0 as usize];
        let copies = stored.copies.clone();
        let (axes, local, arrow, span) = (stored.axes.clone(), stored.local.clone(), stored.arrow.clone(), stored.span);
        let mut tensor = match (self.overrides.get(&id), self.next.get(&id)) {
            (Some(tensor), _) | (None, Some(tensor)) => tensor.clone(),
            (None, None) => self.stored_input(id),
        };
        for copy in &copies {
            let Some(at) = self.scopes.iter().rposition(|scope| scope.id == copy.id) else { continue };
            tensor = match self.scopes[at].next.get(&id) {
                Some(next) => next.clone(),
                None => self.enter_copies(at, &copy.graph, &tensor, span)?,
            };
        }
        let pairs: Vec<(Name, Name)> = axes.iter().map(|axis| axis.name.clone()).zip(local).collect();
        let mut tensor = self.rename(&tensor, &pairs, span)?;
        tensor.arrow = arrow;
        Ok(tensor)
    }

    /// The input of the outermost graph for a weight or state.
    pub(super) fn stored_input(&mut self, id: StoredId) -> Tensor {
        let name = self.stored_name(id);
        let ty = self.stored_type(id);
        let kind = match self.stored[id.0 as usize].kind {
            StoredKind::Weight => InputKind::Weight,
            StoredKind::State => InputKind::State,
        };
        self.outer_input(&name, kind, ty)
    }

    /// How graphs call a weight or state: its path, after the root's name unless the root trains.
    pub fn stored_name(&self, id: StoredId) -> String {
        let stored = &self.stored[id.0 as usize];
        if stored.root.is_empty() || self.trained.first() == Some(&stored.root) {
            stored.path.clone()
        } else {
            format!("{}:{}", stored.root, stored.path)
        }
    }

    pub fn stored_type(&self, id: StoredId) -> Type {
        let stored = &self.stored[id.0 as usize];
        let axes = AxisSet::of(stored.stack.iter().chain(&stored.axes).cloned());
        Type::new(stored.dtype, axes.unwrap_or_default())
    }

    /// All weights and layer states that were built, in order of declaration.
    pub fn stored(&self) -> impl Iterator<Item = (StoredId, &Stored)> {
        self.stored.iter().enumerate().map(|(i, stored)| (StoredId(i as u32), stored))
    }

    /// The weights and states inside of a value: of a layer, of a list or a record of layers.
    pub fn stored_of(&self, value: &Value) -> Vec<StoredId> {
        let mut ids = Vec::new();
        self.collect_stored(value, &mut ids);
        ids.sort();
        ids.dedup();
        ids
    }

    fn collect_stored(&self, value: &Value, ids: &mut Vec<StoredId>) {
        match value {
            Value::Layer(layer) => {
                ids.extend(layer.data.stored.iter().copied());
                // A layer that was handed to another is used by it, wherever it was built.
                let mut at = layer.data.env.vars.clone();
                while let Some(var) = at {
                    if let Value::Layer(_) | Value::List(_) | Value::Record(_) = var.value {
                        self.collect_stored(&var.value, ids);
                    }
                    at = var.next.clone();
                }
            }
            Value::List(items) | Value::Tuple(items) => items.iter().for_each(|item| self.collect_stored(item, ids)),
            Value::Record(fields) => fields.iter().for_each(|(_, field)| self.collect_stored(field, ids)),
            _ => {}
        }
    }
}
