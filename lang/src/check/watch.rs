//! `watch(model, "blocks.*")(x)`: also what the layers at a path give back, or what a `let` in them holds.
//!
//! A watched value is noted where it is made and taken outward with the result: renamed at each call that ends, stacked by
//! each loop that closes. The pattern speaks of copies by an index, `blocks.*.attn`; some of them are picked when they are stacked.

use std::rc::Rc;

use mdl_graph::{Axis, Name, Op};

use super::Elaborator;
use super::value::{Args, Env, Eval, Layer, Stop, Tensor, Value};
use crate::diag::Code;
use crate::stage::pattern::{Match, PathStep, Pattern};
use crate::syntax::ast::Span;

/// A step of the path of a layer: a name, and the copies that follow it, which and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub copies: Vec<(u32, u64)>,
}

/// Which copies a pattern takes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pick {
    /// The `repeat` or `each`.
    copies: u32,
    at: Vec<u64>,
    /// `blocks.3` is one layer, `blocks.{3..4}` a stack of one.
    is_one: bool,
}

/// So many copies are told apart at most when a pattern says indices.
pub(super) const MANY: u64 = 100_000;

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
    /// What is still to be picked, once the copies have been stacked.
    picks: Vec<Pick>,
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
            let picks = match picked(pattern, steps, name) {
                Ok(Some(picks)) => picks,
                Ok(None) => continue,
                Err(message) => return Err(self.error(Code::E0216, message, span, "watched here")),
            };
            let names = steps.iter().map(|step| step.name.as_str()).chain(name);
            let path = names.collect::<Vec<_>>().join(".");
            if let Value::Tensor(_) | Value::Tuple(_) | Value::Record(_) | Value::List(_) = value {
                self.found.push(Found { watch, path, value: value.clone(), picks });
            }
        }
        Ok(())
    }

    /// Copies have been stacked along `axis`: what was noted since `from` keeps those that its watch asks for.
    pub(super) fn pick_found(&mut self, from: usize, copies: u32, axis: &Name, span: Span) -> Eval<()> {
        for i in from..self.found.len() {
            let Some(at) = self.found[i].picks.iter().position(|pick| pick.copies == copies) else { continue };
            let pick = self.found[i].picks.remove(at);
            let value = self.found[i].value.clone();
            self.found[i].value = self.each_tensor(&value, &mut |elab, tensor| elab.pick(tensor, axis, &pick, span))?;
        }
        Ok(())
    }

    /// Whether something noted since `from` asks for some of these copies.
    pub(super) fn is_picked(&self, from: usize, copies: u32) -> bool {
        self.found[from..].iter().any(|found| found.picks.iter().any(|pick| pick.copies == copies))
    }

    fn pick(&mut self, tensor: &Tensor, axis: &Name, pick: &Pick, span: Span) -> Eval<Tensor> {
        if !self.axes(tensor).contains(axis) {
            return Ok(tensor.clone());
        }
        let (first, n) = (pick.at[0], pick.at.len() as u64);
        if pick.is_one {
            let index = self.i32_number(first as i64, span)?;
            return self.gather(tensor, axis, &index, span);
        }
        if pick.at.iter().copied().eq(first..first + n) {
            return self.slice(tensor, axis, first, n, 1, span);
        }
        let place = self.fresh(axis.as_str());
        let places = self.emit(Op::Iota(Axis::new(place.clone(), n)), &[], span)?;
        let mut index = self.i32_number(first as i64, span)?;
        for (k, at) in pick.at.iter().enumerate().skip(1) {
            let (k, at) = (self.i32_number(k as i64, span)?, self.i32_number(*at as i64, span)?);
            let is_here = self.emit(Op::Equal, &[&places, &k], span)?;
            index = self.emit(Op::Select, &[&is_here, &at, &index], span)?;
        }
        let rows = self.gather(tensor, axis, &index, span)?;
        self.rename(&rows, &[(place, axis.clone())], span)
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

/// Which copies of a value at a path a pattern takes; `None` if it does not take the value.
fn picked(pattern: &Pattern, steps: &[Step], name: Option<&str>) -> Result<Option<Vec<Pick>>, String> {
    // The pattern also takes what lies under it: only the first on the way counts.
    let hit = |index: &[u64]| {
        let path = spelled(steps, name, index);
        let takes = |path: &[PathStep]| pattern.matches(path) != Match::No;
        !path.is_empty() && takes(&path) && !takes(&path[..path.len() - 1])
    };
    let copies: Vec<(u32, u64)> = steps.iter().flat_map(|step| step.copies.iter().copied()).collect();
    let first = vec![0; copies.len()];
    if !pattern.has_indices() {
        return Ok(hit(&first).then(Vec::new));
    }
    let all: u64 = copies.iter().map(|(_, n)| *n).product();
    if all > MANY {
        return Err(format!(
            "a pattern with indices is looked for among {all} copies; at most {MANY} can be told apart"
        ));
    }
    let mut hits: Vec<Vec<u64>> = Vec::new();
    let sizes: Vec<u64> = copies.iter().map(|(_, n)| *n).collect();
    each_index(&sizes, |index| {
        if hit(index) {
            hits.push(index.to_vec());
        }
    });
    let Some(one) = hits.first() else { return Ok(None) };
    let (mut picks, mut product) = (Vec::new(), 1);
    for (k, (copies, n)) in copies.iter().enumerate() {
        let mut at: Vec<u64> = hits.iter().map(|hit| hit[k]).collect();
        at.sort_unstable();
        at.dedup();
        product *= at.len();
        // An index that no copy has: only `*` takes that as well.
        let beyond: Vec<u64> = one.iter().enumerate().map(|(i, at)| if i == k { u64::MAX } else { *at }).collect();
        let is_one = at.len() == 1 && !pattern.has_ranges() && !hit(&beyond);
        if is_one || (at.len() as u64) < *n {
            picks.push(Pick { copies: *copies, at, is_one });
        }
    }
    if product != hits.len() {
        return Err("the pattern takes different copies in different copies, which do not make a tensor".to_string());
    }
    Ok(Some(picks))
}

/// All indices below these sizes, in order of counting.
pub(super) fn each_index(sizes: &[u64], mut see: impl FnMut(&[u64])) {
    let mut index = vec![0; sizes.len()];
    for _ in 0..sizes.iter().product() {
        see(&index);
        for (at, n) in index.iter_mut().zip(sizes).rev() {
            *at = (*at + 1) % n;
            if *at != 0 {
                break;
            }
        }
    }
}

/// A path with an index for each step that has copies.
pub(super) fn spelled(steps: &[Step], name: Option<&str>, index: &[u64]) -> Vec<PathStep> {
    let step = |name: String| PathStep { name, copies: None };
    let mut index = index.iter();
    let mut path = Vec::new();
    for Step { name, copies } in steps {
        path.push(step(name.clone()));
        path.extend(index.by_ref().take(copies.len()).map(|at| step(at.to_string())));
    }
    path.extend(name.map(|name| step(name.to_string())));
    path
}

/// `watch(model, "blocks.*")`
pub(super) fn watch(elab: &mut Elaborator<'_>, call: &mut super::builtins::Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [model, pattern] = elab.take_args(call, ["model", "pattern"], 2)?;
    let (Some((model, model_span)), Some((pattern, pattern_span))) = (model, pattern) else { return Err(Stop) };
    let env = call.env;
    let Value::Layer(layer) = model else {
        let message = format!("`watch` takes a model, not {}", model.kind());
        return Err(elab.error(Code::E0209, message, model_span, format!("this is {}", model.kind())));
    };
    let Some(pattern) = pattern.as_str() else {
        let message = format!("`watch` takes a pattern of paths, not {}", pattern.kind());
        return Err(elab.error(Code::E0209, message, pattern_span, "expected a Str such as \"blocks.*\""));
    };
    let pattern = elab.spelled_out(env, pattern);
    Ok(Value::function(super::value::FunctionKind::Watch(layer, Rc::from(pattern))))
}
