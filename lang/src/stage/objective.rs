//! What an objective or a metric gives, taken apart: one float to make small, and numbers to report.

use mdl_graph::{DType, NodeId, Op};

use crate::check::{Args, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::Span;

use super::context::Context;
use super::parts::names_of;
use super::read::Compute;

/// What an objective gives.
pub(super) struct Measured {
    /// `f32[]`; of parts with losses of their own, their sum.
    pub(super) loss: NodeId,
    /// The loss of each part, where a record of models follows more than one.
    pub(super) parts: Vec<(String, NodeId)>,
    /// Names and `f32[]`.
    pub(super) metrics: Vec<(String, NodeId)>,
}

impl Context<'_> {
    /// Calls an objective, or that of each part, and takes the result apart.
    pub(super) fn measure(&mut self, objective: &Value, model: &Value, batch: &Value, span: Span) -> Option<Measured> {
        let names = names_of(model);
        if let Value::Record(fields) = objective {
            let given: Vec<&str> = fields.iter().map(|(name, _)| &**name).collect();
            self.same_parts("objective", &given, &names, span)?;
            let (mut parts, mut metrics) = (Vec::new(), Vec::new());
            for name in names {
                let value = self.judge(objective.field(name)?, model, batch, span)?;
                let (loss, more) = self.loss_and_metrics(&value, span)?;
                parts.push((name.to_owned(), loss));
                metrics.extend(more.into_iter().map(|(metric, node)| (format!("{name}.{metric}"), node)));
            }
            return Some(self.together(parts, metrics));
        }
        let value = self.judge(objective, model, batch, span)?;
        if let Value::Record(fields) = &value
            && !names.is_empty()
            && value.field("loss").is_none()
            && names.iter().any(|name| value.field(name).is_some())
        {
            let mut parts = Vec::new();
            for name in &names {
                let Some(loss) = value.field(name) else {
                    self.report(
                        Diagnostic::error(Code::E0314, format!("the objective gives no loss for the part `{name}`"))
                            .label(span, "losses of other parts only")
                            .help("give a loss for each part of the model, or one `loss` for all of it"),
                    );
                    return None;
                };
                parts.push(((*name).to_owned(), self.loss(loss, span)?));
            }
            let mut metrics = Vec::new();
            for (name, value) in fields.iter().filter(|(name, _)| !names.contains(&&**name)) {
                metrics.push((name.to_string(), self.metric(name, value, span)?));
            }
            return Some(self.together(parts, metrics));
        }
        let (loss, metrics) = self.loss_and_metrics(&value, span)?;
        Some(Measured { loss, parts: Vec::new(), metrics })
    }

    /// The sum of the losses of parts, which are reported under the parts' names.
    fn together(&mut self, parts: Vec<(String, NodeId)>, metrics: Vec<(String, NodeId)>) -> Measured {
        let total = parts.iter().map(|(_, loss)| *loss).reduce(|a, b| self.elab.graph().add(Op::Add, &[a, b]));
        let loss = total.unwrap_or_else(|| self.elab.graph().constant(0.0, DType::F32));
        let metrics = parts.iter().cloned().chain(metrics).collect();
        Measured { loss, parts, metrics }
    }

    /// What an objective gives for a batch.
    fn judge(&mut self, objective: &Value, model: &Value, batch: &Value, span: Span) -> Option<Value> {
        let help = match objective {
            Value::Function(_) | Value::Layer(_) => {
                let args = Args::of([(model.clone(), span), (batch.clone(), span)]);
                return self.elab.call(objective, args, span).ok();
            }
            Value::Error => return None,
            Value::Maker(_) => "build it: add the parentheses with its arguments",
            _ => "such as `next_token`",
        };
        let message = format!("`objective` takes a function of `(model, batch)`, and this is {}", objective.kind());
        self.report(Diagnostic::error(Code::E0303, message).label(span, "not a function").help(help));
        None
    }

    /// One loss, and what else is reported.
    fn loss_and_metrics(&mut self, value: &Value, span: Span) -> Option<(NodeId, Vec<(String, NodeId)>)> {
        let Value::Record(fields) = value else { return Some((self.loss(value, span)?, Vec::new())) };
        let Some(loss) = value.field("loss") else {
            let names: Vec<String> = fields.iter().map(|(name, _)| format!("`{name}`")).collect();
            self.report(
                Diagnostic::error(Code::E0314, "the objective gives a record without `loss`")
                    .label(span, format!("it gives {}", names.join(", ")))
                    .help("name what training shall make small `loss`: `(loss: …, accuracy: …)`"),
            );
            return None;
        };
        let loss = self.loss(loss, span)?;
        let mut metrics = Vec::new();
        for (name, value) in fields.iter().filter(|(name, _)| &**name != "loss") {
            metrics.push((name.to_string(), self.metric(name, value, span)?));
        }
        Some((loss, metrics))
    }

    fn loss(&mut self, value: &Value, span: Span) -> Option<NodeId> {
        let (problem, help) = match value {
            Value::Error => return None,
            Value::Tensor(_) => {
                let ty = self.elab.type_of(value)?;
                if ty.axes.is_empty() && ty.dtype.is_float() {
                    let node = self.elab.node_of(value, span).ok()?;
                    return Some(self.elab.graph().cast(node, DType::F32));
                }
                if ty.dtype.is_float() {
                    let names = axis_list(ty.axes.names());
                    (format!("a tensor with the axes {names}"), "take the mean of it: `mean(…)`")
                } else {
                    (format!("a tensor of {}, which has no gradient", ty.dtype), "a loss is a float")
                }
            }
            Value::Int(_) | Value::Float(_) => {
                ("a constant, which no weight changes".to_owned(), "make it of `model(…)`")
            }
            Value::Function(_) => (
                "a function and not a loss".to_owned(),
                "it has two lists of parameters: call it with the first, as in `classify()`",
            ),
            other => (other.kind().to_owned(), "a loss is one float, or a record with `loss`"),
        };
        self.report(
            Diagnostic::error(Code::E0314, format!("the objective gives {problem}"))
                .label(span, "a loss is one number")
                .help(help),
        );
        None
    }

    /// A number to report.
    pub(super) fn metric(&mut self, name: &str, value: &Value, span: Span) -> Option<NodeId> {
        let came = match value {
            Value::Error => return None,
            Value::Tensor(_) => {
                let ty = self.elab.type_of(value)?;
                if ty.axes.is_empty() {
                    let node = self.elab.node_of(value, span).ok()?;
                    return Some(self.elab.graph().cast(node, DType::F32));
                }
                format!("a tensor with the axes {}", axis_list(ty.axes.names()))
            }
            Value::Bool(value) => {
                return Some(self.elab.graph().constant(f64::from(u8::from(*value)), DType::F32));
            }
            other => match other.as_float() {
                Some(number) => return Some(self.elab.graph().constant(number, DType::F32)),
                None => other.kind().to_owned(),
            },
        };
        self.report(
            Diagnostic::error(Code::E0315, format!("`{name}` is reported as one number, and this is {came}"))
                .label(span, format!("gives `{name}`"))
                .help("take the mean of it: `mean(…)`"),
        );
        None
    }
}

fn axis_list<'n>(names: impl Iterator<Item = &'n mdl_graph::Name>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
