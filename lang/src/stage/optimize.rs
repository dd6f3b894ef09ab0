//! Which optimizer takes which weight.
//!
//! The first of the list whose pattern matches a weight, and whose `for […]` accepts it, takes it. A pattern that
//! matches nothing, an optimizer that nothing is left for and a weight that nobody takes are mistakes. Copies of a layer
//! are one tensor; where patterns give them to different optimizers, each takes its run of them. A pattern is of whole paths, as
//! checkpoints and messages have them, also where a record of optimizers says the part.

use std::rc::Rc;

use mdl_graph::Axis;

use crate::check::{Optimizer, StoredId, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Expr, ExprKind, Span};

use super::context::Context;
use super::pattern::{PathStep, Pattern};
use super::read::Compute;

/// An optimizer of the list.
pub(crate) struct Candidate {
    pub(crate) optimizer: Rc<Optimizer>,
    pattern: Option<(Pattern, String)>,
    span: Span,
}

impl Context<'_> {
    /// The optimizers of a field, in order, each with its place.
    pub(crate) fn optimizers(&mut self, value: &Value, written: &Expr) -> Option<Vec<Candidate>> {
        let Value::List(items) = value else { return self.candidate(value, written.span).map(|one| vec![one]) };
        if items.is_empty() {
            self.report(
                Diagnostic::error(Code::E0303, "`optimizer` takes at least one optimizer, and this list is empty")
                    .label(written.span, "an empty list"),
            );
            return None;
        }
        // Items of a written list have places of their own, those of a comprehension share one.
        let places: Vec<&Expr> = match &written.kind {
            ExprKind::List(written) if written.len() == items.len() => written.iter().collect(),
            _ => vec![written; items.len()],
        };
        // A list in the list is one of them after another: `[[… for i in 0..12], adamw(lr: 3e-4)]`.
        let candidates: Vec<_> = items.iter().zip(places).map(|(item, place)| self.optimizers(item, place)).collect();
        candidates.into_iter().collect::<Option<Vec<_>>>().map(|lists| lists.into_iter().flatten().collect())
    }

    /// A pattern with its text.
    pub(super) fn pattern(&mut self, text: &str, span: Span) -> Option<(Pattern, String)> {
        match Pattern::parse(text) {
            Ok(parsed) => Some((parsed, text.to_owned())),
            Err(error) => {
                self.report(
                    Diagnostic::error(Code::E0312, error.to_string())
                        .label(span, "in this pattern")
                        .help("`*` is one step, `**` any number, `{q, v}` a choice, `{0..5}` a range"),
                );
                None
            }
        }
    }

    fn candidate(&mut self, value: &Value, span: Span) -> Option<Candidate> {
        match value {
            Value::Optimizer(optimizer) => Some(Candidate { optimizer: optimizer.clone(), pattern: None, span }),
            Value::At { value, pattern } => {
                let candidate = self.candidate(value, span)?;
                if candidate.pattern.is_some() {
                    self.report(
                        Diagnostic::error(Code::E0312, "an optimizer takes one pattern, and this has two")
                            .label(span, "`at` twice")
                            .help("write a choice in one pattern: `\"blocks.{attn, mlp}.**\"`"),
                    );
                    return None;
                }
                Some(Candidate { pattern: Some(self.pattern(pattern, span)?), ..candidate })
            }
            Value::Error => None,
            Value::Function(_) => {
                self.report(
                    Diagnostic::error(Code::E0303, "`optimizer` takes an optimizer, and this is a function")
                        .label(span, "a function here")
                        .help("call it with its settings: `adamw(lr: 1e-3)`"),
                );
                None
            }
            other => {
                self.report(
                    Diagnostic::error(
                        Code::E0303,
                        format!("`optimizer` takes an optimizer, and this is {}", other.kind()),
                    )
                    .label(span, "not an optimizer")
                    .help("such as `adamw(lr: 1e-3)`"),
                );
                None
            }
        }
    }

    /// For each weight its optimizers by their places in the list: one, or one for each run of copies.
    pub(crate) fn assign(&mut self, candidates: &[Candidate], weights: &[StoredId]) -> Option<Vec<Vec<Run>>> {
        let paths: Vec<Vec<Vec<PathStep>>> = weights.iter().map(|id| self.path_steps(*id)).collect();
        let copies = |id: &StoredId| self.stored(*id).stack.iter().map(|axis| axis.size as usize).product::<usize>();
        let mut owners: Vec<Vec<Option<usize>>> = weights.iter().map(|id| vec![None; copies(id)]).collect();
        let mut fine = true;
        for (at, candidate) in candidates.iter().enumerate() {
            let (mut matched, mut accepted, mut taken) = (0, 0, 0);
            for (i, id) in weights.iter().enumerate() {
                let takes = match &candidate.pattern {
                    Some((pattern, _)) => best_match(pattern, &paths[i]),
                    None => vec![true; owners[i].len()],
                };
                if !takes.contains(&true) {
                    continue;
                }
                matched += 1;
                if !self.elab.optimizer_takes(&candidate.optimizer, *id) {
                    continue;
                }
                accepted += 1;
                for (owner, _) in owners[i].iter_mut().zip(takes).filter(|(owner, takes)| *takes && owner.is_none()) {
                    *owner = Some(at);
                    taken += 1;
                }
            }
            if taken == 0 {
                fine = false;
                let diagnostic = self.takes_nothing(candidate, matched, accepted, weights);
                self.report(diagnostic);
            }
        }
        let left: Vec<String> = weights
            .iter()
            .zip(&owners)
            .filter(|(_, owners)| owners.contains(&None))
            .map(|(id, _)| format!("`{}`", self.stored(*id).path))
            .collect();
        let span = candidates.iter().map(|candidate| candidate.span).reduce(Span::to).unwrap_or_default();
        if fine && !left.is_empty() {
            fine = false;
            let shown = left.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 3 { format!(" and {} more", left.len() - 3) } else { String::new() };
            self.report(
                Diagnostic::error(Code::E0313, format!("no optimizer takes {shown}{more}"))
                    .label(span, "these optimizers")
                    .help("end the list with one that takes the rest, such as `adamw(lr: 3e-4)` without `at`"),
            );
        }
        if !fine {
            return None;
        }
        let mut all = Vec::new();
        for (id, owners) in weights.iter().zip(owners) {
            let owners: Vec<usize> = owners.into_iter().flatten().collect();
            let Some(runs) = runs(&owners, &self.stored(*id).stack) else {
                let message = format!(
                    "the copies of `{}` are given to optimizers in a way that no axis follows",
                    self.stored(*id).path
                );
                self.report(
                    Diagnostic::error(Code::E0312, message)
                        .label(span, "these patterns")
                        .help("in copies of copies, let patterns differ in one index only"),
                );
                return None;
            };
            all.push(runs);
        }
        Some(all)
    }

    fn takes_nothing(
        &self,
        candidate: &Candidate,
        matched: usize,
        accepted: usize,
        weights: &[StoredId],
    ) -> Diagnostic {
        let Some((_, text)) = candidate.pattern.as_ref().filter(|_| matched == 0) else {
            let message = if accepted == 0 {
                "this optimizer takes none of the weights: its `for […]` accepts none of them"
            } else {
                "nothing is left for this optimizer: those before it take every weight that it could"
            };
            return Diagnostic::error(Code::E0312, message)
                .label(candidate.span, "without effect")
                .help("leave it out, or put it earlier");
        };
        self.matches_nothing(text, candidate.span, weights)
    }

    /// The mistake of a pattern that matches none of these weights.
    pub(super) fn matches_nothing(&self, text: &str, span: Span, weights: &[StoredId]) -> Diagnostic {
        let diagnostic = Diagnostic::error(Code::E0312, format!("the pattern `{text}` matches no weight"))
            .label(span, "without effect");
        let paths: Vec<&str> = weights.iter().map(|id| self.stored(*id).path.as_str()).collect();
        let layers: Vec<&str> =
            paths.iter().flat_map(|path| path.match_indices('.').map(|(at, _)| &path[..at])).collect();
        match nearest(text, paths.iter().chain(&layers).copied()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => {
                let shown: Vec<&str> = paths.iter().take(4).copied().collect();
                diagnostic.help(format!("paths are {}{}", shown.join(", "), if paths.len() > 4 { ", …" } else { "" }))
            }
        }
    }

    /// The path of a weight in steps, with its copies in every place where their indices may stand.
    pub(super) fn path_steps(&self, id: StoredId) -> Vec<Vec<PathStep>> {
        let stored = self.stored(id);
        let plain: Vec<PathStep> =
            stored.path.split('.').map(|name| PathStep { name: name.to_owned(), copies: None }).collect();
        let mut all = vec![(plain, 0)];
        for axis in &stored.stack {
            let mut longer = Vec::new();
            for (steps, start) in all {
                // The last step is the weight itself, of which there are no copies.
                for at in start..steps.len().saturating_sub(1) {
                    let mut steps: Vec<PathStep> = steps.clone();
                    steps[at].copies = Some(axis.size);
                    longer.push((steps, at + 1));
                }
            }
            all = longer;
        }
        all.into_iter().map(|(steps, _)| steps).collect()
    }
}

/// Copies of a weight that one optimizer takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The place of the optimizer in the list.
    pub(crate) optimizer: usize,
    /// The axis of copies that is cut, and from where to where; `None` for all copies.
    pub(crate) cut: Option<(Axis, u64, u64)>,
}

/// The owners of copies as runs along one axis of theirs; `None` if they follow no axis.
fn runs(owners: &[usize], stack: &[Axis]) -> Option<Vec<Run>> {
    let first = *owners.first()?;
    if owners.iter().all(|owner| *owner == first) {
        return Some(vec![Run { optimizer: first, cut: None }]);
    }
    for (k, axis) in stack.iter().enumerate() {
        let inner: usize = stack[k + 1..].iter().map(|axis| axis.size as usize).product();
        let size = axis.size as usize;
        let of = |at: usize| owners[at * inner];
        if !owners.iter().enumerate().all(|(i, owner)| *owner == of(i / inner % size)) {
            continue;
        }
        let mut runs: Vec<Run> = Vec::new();
        for at in 0..size {
            match runs.last_mut() {
                Some(Run { optimizer, cut: Some((_, _, end)) }) if *optimizer == of(at) => *end += 1,
                _ => runs.push(Run { optimizer: of(at), cut: Some((axis.clone(), at as u64, at as u64 + 1)) }),
            }
        }
        return Some(runs);
    }
    None
}

/// Which copies of a weight a pattern takes: in whichever place of the indices takes the most.
pub(super) fn best_match(pattern: &Pattern, places: &[Vec<PathStep>]) -> Vec<bool> {
    let count = |takes: &Vec<bool>| takes.iter().filter(|takes| **takes).count();
    let all = places.iter().map(|path| pattern.takes(path));
    all.max_by_key(count).unwrap_or_default()
}
