//! Which optimizer takes which weight.
//!
//! The first of the list whose pattern matches a weight, and whose `for […]` accepts it, takes it. A pattern that
//! matches nothing, an optimizer that nothing is left for and a weight that nobody takes are mistakes.

use std::rc::Rc;

use crate::check::{Optimizer, StoredId, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Expr, ExprKind, Span};

use super::context::Context;
use super::pattern::{Match, PathStep, Pattern};
use super::read::Compute;

/// An optimizer of the list.
pub(crate) struct Candidate {
    pub(crate) optimizer: Rc<Optimizer>,
    pattern: Option<(Pattern, String)>,
    span: Span,
}

impl Context<'_> {
    /// The optimizers of a field, in order.
    pub(crate) fn optimizers(&mut self, expr: &Expr) -> Option<Vec<Candidate>> {
        let env = self.env.clone();
        let value = self.elab.eval(&env, expr).ok()?;
        let Value::List(items) = &value else { return self.candidate(&value, expr.span).map(|one| vec![one]) };
        if items.is_empty() {
            self.report(
                Diagnostic::error(Code::E0303, "`optimizer` takes at least one optimizer, and this list is empty")
                    .label(expr.span, "an empty list"),
            );
            return None;
        }
        // Items of a written list have places of their own, those of a comprehension share one.
        let spans: Vec<Span> = match &expr.kind {
            ExprKind::List(written) if written.len() == items.len() => written.iter().map(|item| item.span).collect(),
            _ => vec![expr.span; items.len()],
        };
        let candidates: Vec<_> = items.iter().zip(spans).map(|(item, span)| self.candidate(item, span)).collect();
        candidates.into_iter().collect()
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
                match Pattern::parse(pattern) {
                    Ok(parsed) => Some(Candidate { pattern: Some((parsed, pattern.to_string())), ..candidate }),
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
            Value::Record(_) => {
                self.report(
                    Diagnostic::error(Code::E0704, "an optimizer for each part of a model is not in this version")
                        .label(span, "a record here")
                        .help("give a list with `at`: `[muon(lr: 0.02) at \"blocks.**\", adamw(lr: 3e-4)]`"),
                );
                None
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

    /// For each weight the place of its optimizer in the list.
    pub(crate) fn assign(&mut self, candidates: &[Candidate], weights: &[StoredId]) -> Option<Vec<usize>> {
        let paths: Vec<Vec<Vec<PathStep>>> = weights.iter().map(|id| self.path_steps(*id)).collect();
        let mut owners: Vec<Option<usize>> = vec![None; weights.len()];
        let mut fine = true;
        for (at, candidate) in candidates.iter().enumerate() {
            let (mut matched, mut accepted, mut taken) = (0, 0, 0);
            for (i, id) in weights.iter().enumerate() {
                match candidate.pattern.as_ref().map_or(Match::All, |(pattern, _)| best_match(pattern, &paths[i])) {
                    Match::No => continue,
                    Match::All => {}
                    Match::Some => {
                        self.report(cut_stack(candidate, &self.stored(*id).path));
                        return None;
                    }
                }
                matched += 1;
                if !self.elab.optimizer_takes(&candidate.optimizer, *id) {
                    continue;
                }
                accepted += 1;
                if owners[i].is_none() {
                    owners[i] = Some(at);
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
            .filter(|(_, owner)| owner.is_none())
            .map(|(id, _)| format!("`{}`", self.stored(*id).path))
            .collect();
        if fine && !left.is_empty() {
            fine = false;
            let shown = left.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            let more = if left.len() > 3 { format!(" and {} more", left.len() - 3) } else { String::new() };
            let span = candidates.iter().map(|candidate| candidate.span).reduce(Span::to).unwrap_or_default();
            self.report(
                Diagnostic::error(Code::E0313, format!("no optimizer takes {shown}{more}"))
                    .label(span, "these optimizers")
                    .help("end the list with one that takes the rest, such as `adamw(lr: 3e-4)` without `at`"),
            );
        }
        fine.then(|| owners.into_iter().flatten().collect())
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
        let diagnostic = Diagnostic::error(Code::E0312, format!("the pattern `{text}` matches no weight"))
            .label(candidate.span, "without effect");
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
    fn path_steps(&self, id: StoredId) -> Vec<Vec<PathStep>> {
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

/// How a pattern meets a weight: in whichever place of the indices takes the most.
fn best_match(pattern: &Pattern, places: &[Vec<PathStep>]) -> Match {
    let all: Vec<Match> = places.iter().map(|path| pattern.matches(path)).collect();
    if all.contains(&Match::All) {
        Match::All
    } else if all.contains(&Match::Some) {
        Match::Some
    } else {
        Match::No
    }
}

fn cut_stack(candidate: &Candidate, path: &str) -> Diagnostic {
    let text = candidate.pattern.as_ref().map_or("", |(_, text)| text);
    Diagnostic::error(
        Code::E0704,
        format!("`{text}` takes some copies of `{path}` and not others, which is not in this version"),
    )
    .label(candidate.span, "some of the copies")
    .help("copies made by `repeat` are one tensor; take them all, as in `blocks.*`")
}
