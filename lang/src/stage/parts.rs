//! The parts of a model: one, or the fields of a record of models, each of which may have an objective and an optimizer of
//! its own.

use mdl_graph::{NodeId, Op};

use crate::check::{StoredId, StoredKind, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::{Expr, ExprKind, RecordPart, Span};

use super::context::Context;
use super::objective::Measured;
use super::optimize::{Candidate, Run};
use super::read::Compute;

/// Where the weights of an objective that is a layer lie, and what a record of optimizers calls them.
pub(super) const OBJECTIVE: &str = "objective";

/// A field of a record of models.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) weights: Vec<StoredId>,
}

/// What the gradient of a loss changes.
pub(super) struct Followed {
    pub(super) loss: NodeId,
    /// Places in the list of weights.
    pub(super) weights: Vec<usize>,
}

/// The fields of a record of models; none for a model that is one.
pub(super) fn names_of(model: &Value) -> Vec<&str> {
    match model {
        Value::Record(fields) => fields.iter().map(|(name, _)| &**name).collect(),
        _ => Vec::new(),
    }
}

impl Context<'_> {
    /// The parts of a model with their weights; a weight that two parts share is the first one's.
    pub(super) fn parts(&self, model: &Value) -> Vec<Part> {
        let Value::Record(fields) = model else { return Vec::new() };
        let mut parts: Vec<Part> = Vec::new();
        for (name, value) in fields.iter() {
            let mut weights = self.elab.stored_of(value);
            weights.retain(|id| self.stored(*id).kind == StoredKind::Weight);
            weights.retain(|id| !parts.iter().any(|part| part.weights.contains(id)));
            parts.push(Part { name: name.to_string(), weights });
        }
        parts
    }

    /// The optimizers in order, and for each weight its own.
    pub(super) fn owners(
        &mut self,
        written: &Expr,
        weights: &[StoredId],
        parts: &[Part],
    ) -> Option<(Vec<Candidate>, Vec<Vec<Run>>)> {
        let env = self.env.clone();
        let value = self.elab.eval(&env, written).ok()?;
        let Value::Record(fields) = &value else {
            let candidates = self.optimizers(&value, written)?;
            let owners = self.assign(&candidates, weights)?;
            return Some((candidates, owners));
        };
        let span = written.span;
        let own: Vec<StoredId> =
            weights.iter().filter(|id| !parts.iter().any(|part| part.weights.contains(id))).copied().collect();
        let mut wanted: Vec<(&str, &[StoredId])> =
            parts.iter().map(|part| (part.name.as_str(), part.weights.as_slice())).collect();
        if !own.is_empty() && !parts.is_empty() {
            wanted.push((OBJECTIVE, &own));
        }
        let given: Vec<&str> = fields.iter().map(|(name, _)| &**name).collect();
        self.same_parts("optimizer", &given, &wanted.iter().map(|(name, _)| *name).collect::<Vec<_>>(), span)?;
        let (mut candidates, mut owners) = (Vec::new(), vec![Vec::new(); weights.len()]);
        for (name, ids) in wanted {
            let own = match &written.kind {
                ExprKind::Record(fields) => fields.iter().find_map(|field| match field {
                    RecordPart::Field { name: known, value } if known.text == name => Some(value),
                    _ => None,
                }),
                _ => None,
            };
            let several = self.optimizers(value.field(name)?, own.unwrap_or(written))?;
            let places = self.assign(&several, ids)?;
            for (id, mut runs) in ids.iter().zip(places) {
                runs.iter_mut().for_each(|run| run.optimizer += candidates.len());
                if let Some(at) = weights.iter().position(|known| known == id) {
                    owners[at] = runs;
                }
            }
            candidates.extend(several);
        }
        Some((candidates, owners))
    }

    /// A record in a field has a field for each part of the model and no other.
    pub(super) fn same_parts(&mut self, field: &str, given: &[&str], parts: &[&str], span: Span) -> Option<()> {
        let list = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let (message, help) = if parts.is_empty() {
            (
                format!("`{field}` is a record, and the model has no parts"),
                "a record of models, `(maker: g, judge: d)`, has parts".to_owned(),
            )
        } else if let Some(missing) = parts.iter().find(|name| !given.contains(name)) {
            (
                format!("`{field}` has nothing for the part `{missing}` of the model"),
                format!("its fields are {}", list(parts)),
            )
        } else if let Some(extra) = given.iter().find(|name| !parts.contains(name)) {
            (format!("the model has no part `{extra}`"), format!("its parts are {}", list(parts)))
        } else {
            return Some(());
        };
        self.report(Diagnostic::error(Code::E0308, message).label(span, format!("for {}", list(given))).help(help));
        None
    }

    /// The losses of the parts with what layers add to them, and all of it together; what layers add is reported, too.
    pub(super) fn losses(
        &mut self,
        measured: &mut Measured,
        weights: &[StoredId],
        parts: &[Part],
        span: Span,
    ) -> Option<Vec<Followed>> {
        let mut followed = Vec::new();
        let own = std::mem::take(&mut measured.parts);
        for (name, mut loss) in own {
            for (term_name, term) in self.elab.take_losses_of(Some(&name)).ok()? {
                let term = self.elab.node_of(&term, span).ok()?;
                loss = self.elab.graph().add(Op::Add, &[loss, term]);
                measured.loss = self.elab.graph().add(Op::Add, &[measured.loss, term]);
                measured.metrics.push((format!("{name}.{term_name}"), term));
            }
            let ids = parts.iter().find(|part| part.name == name).map_or(&[] as &[StoredId], |part| &part.weights);
            let places = weights.iter().enumerate().filter(|(_, id)| ids.contains(id)).map(|(place, _)| place);
            followed.push(Followed { loss, weights: places.collect() });
        }
        for (name, term) in self.elab.take_losses().ok()? {
            let term = self.elab.node_of(&term, span).ok()?;
            measured.loss = self.elab.graph().add(Op::Add, &[measured.loss, term]);
            for part in &mut followed {
                part.loss = self.elab.graph().add(Op::Add, &[part.loss, term]);
            }
            measured.metrics.push((name, term));
        }
        // What belongs to no part, such as weights of the objective, follows everything.
        let taken = |place: &usize| followed.iter().any(|part| part.weights.contains(place));
        let rest: Vec<usize> = (0..weights.len()).filter(|place| !taken(place)).collect();
        if !rest.is_empty() {
            followed.push(Followed { loss: measured.loss, weights: rest });
        }
        Some(followed)
    }
}
