//! What an objective or a metric gives, taken apart: one float to make small, and numbers to report.

use mdl_graph::{DType, NodeId};

use crate::check::{Args, Value};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::Span;

use super::context::Context;
use super::read::Compute;

/// What an objective gives.
pub(super) struct Measured {
    /// `f32[]`
    pub(super) loss: NodeId,
    /// Names and `f32[]`.
    pub(super) metrics: Vec<(String, NodeId)>,
}

impl Context<'_> {
    /// Calls an objective and takes its result apart.
    pub(super) fn measure(&mut self, objective: &Value, model: &Value, batch: &Value, span: Span) -> Option<Measured> {
        if !matches!(objective, Value::Function(_)) {
            let diagnostic = match objective {
                Value::Layer(_) => {
                    Diagnostic::error(Code::E0704, "an objective that is a layer is not in this version")
                        .help("write a function of `(model, batch)`")
                }
                other => Diagnostic::error(
                    Code::E0303,
                    format!("`objective` takes a function of `(model, batch)`, and this is {}", other.kind()),
                )
                .help("such as `next_token`"),
            };
            self.report(diagnostic.label(span, "not a function"));
            return None;
        }
        let args = Args::of([(model.clone(), span), (batch.clone(), span)]);
        let value = self.elab.call(objective, args, span).ok()?;
        let Value::Record(fields) = &value else {
            return Some(Measured { loss: self.loss(&value, span)?, metrics: Vec::new() });
        };
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
        Some(Measured { loss, metrics })
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
