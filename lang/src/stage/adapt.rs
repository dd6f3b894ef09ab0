//! Which weights of a model a stage trains: the fields `adapt` and `freeze`.
//!
//! With adapters, those train and all else is frozen; with `freeze`, what its patterns take is frozen and adapters train all the
//! same. Without both, what a stage has frozen whose model this stage goes on with stays so. A frozen weight is read from where
//! it came from, as long as there is such a place, and is no part of the stage's checkpoints then.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::check::{Adapter, Builder, LOAD, Places, StoredId, StoredKind, Value};
use crate::diag::{Code, Diagnostic};
use crate::spec::{Kept, Origin, Read, StoredDtype};
use crate::syntax::ast::{Expr, ExprKind, Span};

use super::context::{Context, Trained};
use super::optimize::best_match;
use super::pattern::Pattern;
use super::read::{self, Compute};
use super::schema::{FieldRow, Takes};
use super::step::TrainingGraphs;

/// The frozen weights of a stage by path. One without an origin is kept by the stage.
pub(crate) type Frozen = BTreeMap<String, Option<Origin>>;

/// A pattern of `freeze`.
#[derive(Clone)]
pub(crate) struct Freeze {
    pattern: Pattern,
    text: String,
    span: Span,
}

impl Context<'_> {
    /// `adapt = Lora(_, rank: 16) at "blocks.*.attn.{q, v}"`, or a list of such; `adapt = peft("dir")`. `model` builds what is adapted.
    pub(super) fn adapters(&mut self, expr: &Expr, model: &Expr, block: &str) -> Option<Vec<Adapter>> {
        let env = self.env.clone();
        let value = self.elab.eval(&env, expr).ok()?;
        let mut all = Vec::new();
        let mut plain: Option<Value> = None;
        for (value, span) in items(&value, expr) {
            let (value, places) = match &value {
                Value::At { value, pattern } => {
                    let (pattern, text) = self.pattern(pattern, span)?;
                    ((**value).clone(), Places::At(pattern, text))
                }
                _ => (value, Places::Whole),
            };
            let (of, dir) = match &value {
                Value::Made(made) if &*made.name == LOAD => match made.args.positional.as_slice() {
                    [(of, _), (Value::Str(dir), _)] => (of.clone(), Some(dir.clone())),
                    _ => return None,
                },
                _ => (value.clone(), None),
            };
            let Some(dir) = dir.clone().filter(|_| matches!(places, Places::Whole)) else {
                all.push(self.elab.adapter(&of, places, dir, span).ok()?);
                continue;
            };
            // Files say which layers they are of, and the model without adapters what files call those.
            if plain.is_none() {
                let builder = Builder { model: model.clone(), adapters: Rc::default() };
                let built = self.elab.rebuild(&format!("{block}~plain"), &env, &builder);
                self.elab.set_rebuilt(None);
                plain = Some(built.ok()?);
            }
            if let Some(plain) = &plain {
                all.extend(self.elab.adapters_in(plain, &of, &dir, span).ok()?);
            }
        }
        Some(all)
    }

    /// `freeze = "tokens"`, or a list of patterns; an empty one freezes nothing.
    pub(super) fn freezes(&mut self, expr: &Expr) -> Option<Vec<Freeze>> {
        let env = self.env.clone();
        let value = self.elab.eval(&env, expr).ok()?;
        let mut all = Vec::new();
        for (value, span) in items(&value, expr) {
            let Value::Str(text) = &value else {
                let message = format!("`freeze` takes patterns of paths, and this is {}", value.kind());
                let diagnostic = Diagnostic::error(Code::E0303, message).label(span, "not a pattern");
                self.report(diagnostic.help("such as `\"blocks.*.attn\"`, or a list of such"));
                return None;
            };
            let text = self.elab.spelled_out(&env, text);
            let (pattern, text) = self.pattern(&text, span)?;
            all.push(Freeze { pattern, text, span });
        }
        Some(all)
    }

    /// `frozen = nf4(block: 64)`
    pub(super) fn stored_dtype(&mut self, row: &'static FieldRow, expr: &Expr) -> Option<StoredDtype> {
        let Takes::Call(rows) = row.takes else { return None };
        let called = read::call(self, row, rows, expr)?;
        let block = called.count(self, "block")?;
        if block % 2 == 1 {
            let message = format!("a block of {block} numbers: two share a byte, so their number is even");
            self.report(Diagnostic::error(Code::E0306, message).label(expr.span, "an odd number"));
            return None;
        }
        let double = match called.get("double") {
            Some((row, expr)) => read::boolean(self, row, expr)?,
            None => false,
        };
        Some(match called.row.name {
            "nf4" => StoredDtype::Nf4 { block, double },
            _ => StoredDtype::Q8 { block },
        })
    }

    /// Frozen maps of other stages, as far as blocks divide them, are kept so.
    pub(super) fn keep_frozen(&mut self, dtype: StoredDtype, graphs: &mut TrainingGraphs, span: Span) -> Option<()> {
        let is_fit = |read: &&Read| graphs.maps.contains(&read.input) && dtype.fits(&read.axes);
        let kept: Vec<Kept> =
            graphs.reads.iter().filter(is_fit).map(|read| Kept { input: read.input.clone(), dtype }).collect();
        if kept.is_empty() {
            let message = "no frozen weight is kept so: it is about maps that another stage has trained";
            let help = "name a trained stage as the model, and freeze it: `adapt = Lora(_) at \"blocks.**\"`";
            self.report(Diagnostic::error(Code::E0308, message).label(span, "without effect").help(help));
            return None;
        }
        graphs.kept.extend(kept);
        Some(())
    }

    /// Of the weights of a model those that the stage leaves as they are; `own` says which are of the model and not of an objective
    /// beside it.
    pub(super) fn frozen(
        &mut self,
        trained: &Trained,
        weights: &[StoredId],
        own: impl Fn(StoredId) -> bool,
        span: Span,
    ) -> Option<Vec<StoredId>> {
        let frozen = match &trained.freeze {
            Some(patterns) => self.matched(patterns, weights)?,
            // Adapters without weights, such as noise, leave the model to learn.
            None if weights.iter().any(|id| self.elab.is_of_adapter(*id)) => weights.to_vec(),
            None => weights.iter().copied().filter(|id| self.was_frozen(*id)).collect(),
        };
        let left = frozen.into_iter().filter(|id| own(*id) && !self.elab.is_of_adapter(*id));
        let left: Vec<StoredId> = left.collect();
        if left.len() == weights.len() {
            let message = "every weight of the model is frozen, so there is nothing to train";
            let help = "freeze less, or train adapters: `adapt = Lora(_) at \"blocks.**\"`";
            self.report(Diagnostic::error(Code::E0317, message).label(span, "in this block").help(help));
            return None;
        }
        Some(left)
    }

    fn matched(&mut self, patterns: &[Freeze], weights: &[StoredId]) -> Option<Vec<StoredId>> {
        let mut frozen = Vec::new();
        for Freeze { pattern, text, span } in patterns {
            let n_before = frozen.len();
            for id in weights {
                let takes = best_match(pattern, &self.path_steps(*id));
                if takes.contains(&true) && takes.contains(&false) {
                    let path = self.stored(*id).path.clone();
                    let message = format!("`{text}` takes some copies of `{path}` and not the others");
                    let help = "copies are one program, compiled once: freeze all of them, `blocks.*`";
                    let diagnostic = Diagnostic::error(Code::E0312, message).label(*span, "freezes some copies");
                    self.report(diagnostic.help(help));
                    return None;
                }
                if takes.contains(&true) {
                    frozen.push(*id);
                }
            }
            if frozen.len() == n_before {
                let diagnostic = self.matches_nothing(text, *span, weights);
                self.report(diagnostic);
                return None;
            }
        }
        frozen.sort();
        frozen.dedup();
        Some(frozen)
    }

    /// Whether the stage whose model this is has frozen it.
    fn was_frozen(&self, id: StoredId) -> bool {
        let Some((stage, path)) = self.elab.begins_as(id) else { return false };
        self.known(&stage).is_some_and(|known| known.frozen.contains_key(&path))
    }

    /// Where the first value of a weight or layer state comes from, if its initializer does not make it.
    pub(super) fn origin(&self, id: StoredId) -> Option<Origin> {
        match self.elab.begins_as(id) {
            Some((stage, path)) => Some(self.kept_at(&stage, &path, self.stored(id).kind == StoredKind::Weight)),
            None => self.stored(id).origin.as_deref().cloned(),
        }
    }

    /// Where what a stage gives under a path is kept: by itself, or further back where it was frozen.
    pub(super) fn kept_at(&self, stage: &str, path: &str, is_weight: bool) -> Origin {
        let known = self.known(stage);
        if let Some(Some(origin)) = known.and_then(|known| known.frozen.get(path)) {
            return origin.clone();
        }
        let is_average = known.is_some_and(|known| known.averaged && is_weight && !known.frozen.contains_key(path));
        let tensor = if is_average { super::step::average_name(path) } else { path.to_owned() };
        Origin::Stage { stage: stage.to_owned(), tensor: tensor.as_str().into() }
    }

    pub(super) fn known(&self, stage: &str) -> Option<&Trained> {
        self.trained.iter().find(|entry| entry.name == stage)?.known.as_ref()
    }
}

/// The items of a list, or the one value, with their places as far as they are written.
fn items(value: &Value, written: &Expr) -> Vec<(Value, Span)> {
    let Value::List(items) = value else { return vec![(value.clone(), written.span)] };
    let place = |i: usize| match &written.kind {
        ExprKind::List(written) if written.len() == items.len() => written[i].span,
        _ => written.span,
    };
    items.iter().enumerate().map(|(i, item)| (item.clone(), place(i))).collect()
}
