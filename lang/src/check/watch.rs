//! `watch(model, "blocks.*")(x)`: also what the layers at a path give back, or what a `let` in them holds.
//!
//! A watched value is noted where it is made and taken outward with the result: renamed at each call that ends, stacked by
//! each loop that closes. The pattern speaks of copies by an index, and takes all of them: `blocks.*.attn`.

use std::rc::Rc;

use mdl_graph::Name;

use super::Elaborator;
use super::value::{Args, Env, Eval, Layer, Stop, Tensor, Value};
use crate::diag::Code;
use crate::stage::pattern::{Match, PathStep, Pattern};
use crate::syntax::ast::Span;

/// A step of the path of a layer: a name, and how many copies follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub copies: Option<u64>,
}

/// Old and new names.
pub(super) type Renames = Vec<(Name, Name)>;

/// One `watch` that is running.
pub(super) struct Watch {
    pattern: Pattern,
    /// The steps that lead to the watched model itself.
    base: usize,
}

/// A value that was noted, for the innermost watches first.
#[derive(Clone)]
pub(super) struct Found {
    watch: usize,
    pub(super) path: String,
    pub(super) value: Value,
}

impl Elaborator<'_> {
    pub(super) fn call_watched(
        &mut self,
        env: &Env,
        layer: &Layer,
        pattern: &str,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let parsed = match Pattern::parse(pattern) {
            Ok(parsed) => parsed,
            Err(problem) => {
                return Err(self.error(Code::E0209, problem.to_string(), span, "this pattern"));
            }
        };
        self.watches.push(Watch { pattern: parsed, base: layer.data.steps.len() });
        let watch = self.watches.len() - 1;
        let result = self.call_layer(env, layer, None, args, span);
        self.watches.pop();
        let mut own = Vec::new();
        let mut at = 0;
        while at < self.found.len() {
            if self.found[at].watch == watch { own.push(self.found.remove(at)) } else { at += 1 }
        }
        let result = result?;
        let seen = match own.as_slice() {
            [] => {
                let message = format!("`{pattern}` matches no layer and no `let` of this model");
                let help = "copies have an index: `blocks.*` is what each block gives, `blocks.*.attn` its attention";
                return Err(self.error_help(Code::E0216, message, span, "watched here", help));
            }
            [one] => one.value.clone(),
            several => Value::record(several.iter().map(|found| (found.path.as_str(), found.value.clone()))),
        };
        Ok(Value::tuple(vec![result, seen]))
    }

    /// Notes a value at a path, if somebody watches it: what a layer gives, or with `name` a `let` in it.
    pub(super) fn note(&mut self, layer: &Layer, name: Option<&str>, value: &Value, span: Span) -> Eval<()> {
        if self.watches.is_empty() {
            return Ok(());
        }
        for watch in 0..self.watches.len() {
            let Watch { pattern, base } = &self.watches[watch];
            let Some(steps) = layer.data.steps.get(*base..) else { continue };
            let hits = [false, true].map(|last| {
                let path = spelled(steps, name, last);
                // The pattern also takes what lies under it: only the first on the way counts.
                let hit = |path: &[PathStep]| pattern.matches(path) != Match::No;
                !path.is_empty() && hit(&path) && !hit(&path[..path.len() - 1])
            });
            match hits {
                [false, false] => continue,
                [true, true] => {}
                _ => {
                    let message = "a watched pattern takes some copies and not others";
                    return Err(self.error(Code::E0704, message, span, "all copies, `*`, in this version"));
                }
            }
            let names = steps.iter().map(|step| step.name.as_str()).chain(name);
            let path = names.collect::<Vec<_>>().join(".");
            if let Value::Tensor(_) | Value::Tuple(_) | Value::Record(_) | Value::List(_) = value {
                self.found.push(Found { watch, path, value: value.clone() });
            }
        }
        Ok(())
    }

    /// What was noted since `from` is renamed as the call ends in which it was made.
    pub(super) fn rename_found(
        &mut self,
        from: usize,
        span: Span,
        change: &dyn Fn(&Self, &Tensor) -> Renames,
    ) -> Eval<()> {
        for i in from..self.found.len() {
            let value = self.found[i].value.clone();
            let renamed = self.each_tensor(&value, &mut |elab, tensor| {
                let pairs = change(elab, tensor);
                elab.rename(tensor, &pairs, span)
            })?;
            self.found[i].value = renamed;
        }
        Ok(())
    }
}

/// A path with an index for each step that has copies: the first, or the last of them.
fn spelled(steps: &[Step], name: Option<&str>, last: bool) -> Vec<PathStep> {
    let step = |name: String| PathStep { name, copies: None };
    let mut path = Vec::new();
    for Step { name, copies } in steps {
        path.push(step(name.clone()));
        if let Some(copies) = copies {
            path.push(step(if last { copies.saturating_sub(1).to_string() } else { "0".to_string() }));
        }
    }
    path.extend(name.map(|name| step(name.to_string())));
    path
}

/// `watch(model, "blocks.*")`
pub(super) fn watch(elab: &mut Elaborator<'_>, call: &mut super::builtins::Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [model, pattern] = elab.take_args(call, ["model", "pattern"], 2)?;
    let (Some((model, model_span)), Some((pattern, pattern_span))) = (model, pattern) else { return Err(Stop) };
    let Value::Layer(layer) = model else {
        let message = format!("`watch` takes a model, not {}", model.kind());
        return Err(elab.error(Code::E0209, message, model_span, format!("this is {}", model.kind())));
    };
    let Some(pattern) = pattern.as_str() else {
        let message = format!("`watch` takes a pattern of paths, not {}", pattern.kind());
        return Err(elab.error(Code::E0209, message, pattern_span, "expected a Str such as \"blocks.*\""));
    };
    Ok(Value::function(super::value::FunctionKind::Watch(layer, Rc::from(pattern))))
}
