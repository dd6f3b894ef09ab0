//! Models as a stage builds them: apart from those of other stages, with all that they are made of.
//!
//! What a `train` block names as its model is built for that block alone, once as it trains and once as it is used
//! afterwards. Models and trained stages that the expression names are built with it, so that their weights train too;
//! from then on their names mean, in this block's objective, what was built here. A trained stage that is named outside of
//! the model stays what it is: frozen, under the names of that stage.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::Elaborator;
use super::adapt::Builder;
use super::load::Global;
use super::value::{Env, Eval, Stop, StoredId, Value};
use crate::diag::Code;
use crate::syntax::ast::{Expr, ExprKind, RecordPart, Span};

type Key = (usize, String);

/// A model that was built for a stage.
#[derive(Clone, Default)]
pub struct Rebuilt {
    root: String,
    /// While the model is being built, what it names is built with it.
    open: bool,
    /// Where the paths of what is handed on begin.
    base: Vec<String>,
    values: HashMap<Key, Value>,
    begun: Vec<Begun>,
}

/// Weights that begin as a stage has left them.
#[derive(Clone)]
struct Begun {
    ids: Range<u32>,
    stage: String,
    /// Where the stage's own paths begin.
    prefix: Vec<String>,
    /// How many models were being built around the stage's: what their adapters brought is not the stage's.
    depth: usize,
}

impl Elaborator<'_> {
    /// Builds a model under a root of its own. What it names belongs to it until [`Self::set_rebuilt`].
    pub fn rebuild(&mut self, root: &str, env: &Env, builder: &Builder) -> Eval<Value> {
        self.rebuilt = Some(Rebuilt { root: root.to_string(), open: true, ..Rebuilt::default() });
        let value = self.under_root(root, Vec::new(), |elab| elab.build_adapted(env, builder));
        if let Some(rebuilt) = &mut self.rebuilt {
            rebuilt.open = false;
            // In the objective, a stage's name is its result.
            let builders = &self.builders;
            rebuilt.values.retain(|key, _| !builders.contains_key(key));
        }
        value
    }

    /// Evaluates what belongs to the model of [`Self::rebuild`], such as an objective: weights that it builds have
    /// paths under `step`.
    pub fn beside(&mut self, step: &str, env: &Env, expr: &Expr) -> Eval<Value> {
        let root = self.rebuilt.as_ref().map(|rebuilt| rebuilt.root.clone()).unwrap_or_default();
        self.under_root(&root, vec![step.to_string()], |elab| elab.eval(env, expr))
    }

    /// What names mean besides what they are: the model of a stage, to go on with later.
    pub fn set_rebuilt(&mut self, rebuilt: Option<Rebuilt>) -> Option<Rebuilt> {
        std::mem::replace(&mut self.rebuilt, rebuilt)
    }

    /// Gives the name of a trained stage its value, and what builds it again.
    pub fn define_trained(&mut self, file: usize, name: &str, value: Value, builder: Rc<Builder>) {
        self.builders.insert((file, name.to_string()), builder);
        self.define(file, name, value);
    }

    /// The stage as whose result a weight or state of the model begins, and its path there.
    pub fn begins_as(&self, id: StoredId) -> Option<(String, String)> {
        // A stage that went on from another one was noted after it.
        let is_of = |begun: &&Begun| begun.ids.contains(&id.0) && self.is_built_within(id, begun.depth);
        let begun = self.rebuilt.as_ref()?.begun.iter().rev().find(is_of)?;
        let path = &self.stored[id.0 as usize].path;
        let steps = path.split('.').skip(begun.prefix.len()).collect::<Vec<_>>().join(".");
        Some((begun.stage.clone(), steps))
    }

    /// Runs with an empty path, outside of all copies.
    pub(super) fn under_root<T>(&mut self, root: &str, path: Vec<String>, run: impl FnOnce(&mut Self) -> T) -> T {
        let root = std::mem::replace(&mut self.root, root.to_string());
        let path = std::mem::replace(&mut self.path, path);
        let copied = std::mem::take(&mut self.copied);
        let stack = std::mem::take(&mut self.stack);
        let result = run(self);
        (self.root, self.path, self.copied, self.stack) = (root, path, copied, stack);
        result
    }

    fn build_adapted(&mut self, env: &Env, builder: &Builder) -> Eval<Value> {
        let n_before = self.brought.len();
        let value = self.with_adapters(&builder.adapters, |elab| elab.build_part(env, &builder.model))?;
        // What files call the layers is known once the model was loaded.
        self.load_adapters(n_before)?;
        Ok(value)
    }

    /// A model, or a field of a record of models: a name that stands alone is built right here.
    fn build_part(&mut self, env: &Env, expr: &Expr) -> Eval<Value> {
        match &expr.kind {
            ExprKind::Name(name) => match self.find_item(env.frame.file, name) {
                Some(key) if env.get(name).is_none() && self.is_buildable(&key) => self.build_item(key, expr.span),
                _ => self.eval(env, expr),
            },
            ExprKind::Record(parts) if parts.iter().all(|part| matches!(part, RecordPart::Field { .. })) => {
                let mut fields: Vec<(Rc<str>, Value)> = Vec::new();
                for part in parts {
                    let RecordPart::Field { name, value } = part else { continue };
                    let value = self.part(&name.text, |elab| elab.build_part(env, value))?;
                    fields.push((Rc::from(name.text.as_str()), value));
                }
                Ok(Value::record(fields))
            }
            _ => self.eval(env, expr),
        }
    }

    fn is_buildable(&self, key: &Key) -> bool {
        self.builders.contains_key(key)
            || matches!(self.files[key.0].items.get(&key.1), Some((Global::Model(_), _)) if !self.is_broken(key))
    }

    /// A mistake in it was reported when it was built the first time.
    fn is_broken(&self, key: &Key) -> bool {
        matches!(self.defined.get(key), Some(Value::Error))
    }

    /// The meaning of a name while a stage's model is built, or once it is. `None`: what it always means.
    pub(super) fn rebuilt_item(&mut self, key: &Key, span: Span) -> Eval<Option<Value>> {
        let Some(rebuilt) = &self.rebuilt else { return Ok(None) };
        if let Some(value) = rebuilt.values.get(key) {
            return if matches!(value, Value::Error) { Err(Stop) } else { Ok(Some(value.clone())) };
        }
        if !rebuilt.open || !self.is_buildable(key) {
            return Ok(None);
        }
        let (root, mut path) = (rebuilt.root.clone(), rebuilt.base.clone());
        path.push(key.1.clone());
        let key = key.clone();
        let build = |elab: &mut Self| elab.build_item(key, span).and_then(|value| elab.adapted(value));
        self.under_root(&root, path, build).map(Some)
    }

    /// Builds a `model` item, or the model of a trained stage, at the current path.
    fn build_item(&mut self, key: Key, span: Span) -> Eval<Value> {
        if let Some(Rebuilt { values, .. }) = &self.rebuilt
            && let Some(value) = values.get(&key)
        {
            return if matches!(value, Value::Error) { Err(Stop) } else { Ok(value.clone()) };
        }
        if self.evaluating.contains(&key) {
            let message = format!("`{}` needs itself", key.1);
            return Err(self.error(Code::E0214, message, span, "this closes the circle"));
        }
        let env = self.file_env(key.0);
        self.evaluating.push(key.clone());
        let value = match self.builders.get(&key).cloned() {
            Some(builder) => self.build_stage(&key.1, &env, &builder),
            None => match self.files[key.0].items.get(&key.1).cloned() {
                Some((Global::Model(expr), _)) => self.build_part(&env, &expr),
                _ => Err(Stop),
            },
        };
        self.evaluating.pop();
        if let Some(rebuilt) = &mut self.rebuilt {
            rebuilt.values.insert(key, value.clone().unwrap_or(Value::Error));
        }
        value
    }

    /// The model of a trained stage once more: what it is made of is its own.
    fn build_stage(&mut self, stage: &str, env: &Env, builder: &Builder) -> Eval<Value> {
        let Some(rebuilt) = &mut self.rebuilt else { return Err(Stop) };
        let values = std::mem::take(&mut rebuilt.values);
        let base = std::mem::replace(&mut rebuilt.base, self.path.clone());
        let first = self.stored.len() as u32;
        let value = self.build_adapted(env, builder);
        let ids = first..self.stored.len() as u32;
        if let Some(rebuilt) = &mut self.rebuilt {
            let depth = self.adapting.len();
            rebuilt.begun.push(Begun { ids, stage: stage.to_string(), prefix: self.path.clone(), depth });
            rebuilt.values = values;
            rebuilt.base = base;
        }
        value
    }
}
