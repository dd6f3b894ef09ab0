//! An `eval` block: which numbers of a trained model on which part of the data.

use mdl_graph::Name;

use crate::check::Value;
use crate::diag::{Code, Diagnostic, nearest};
use crate::spec::{EvalSpec, Finish, Metric};
use crate::syntax::ast::{Expr, ExprKind, Span};

use super::Block;
use super::context::Context;
use super::fields::match_fields;
use super::read::{self, Compute, wrong_type};
use super::schema::FieldRow;
use super::train::needs_of;

/// Metrics that are made of the loss.
const OF_LOSS: [(&str, Finish); 3] =
    [("loss", Finish::Mean), ("perplexity", Finish::Exp), ("bits_per_byte", Finish::BitsPerByte)];

/// What `accuracy` is where neither the objective reports one nor the recipe has a function of that name.
const ACCURACY: &str = "fn(model, batch) = mean(argmax[vocab](model(batch.ids)) == batch.next, where: batch.mask)";

/// A metric as asked for: its name, and the function that gives it if a name in scope is one.
struct Asked {
    name: String,
    function: Option<Value>,
    span: Span,
}

impl Context<'_> {
    /// Reads an `eval` block; `None` when something in it was reported.
    pub(crate) fn eval(&mut self, block: &Block<'_>) -> Option<(Vec<String>, EvalSpec)> {
        let (fields, is_fine) = match_fields(self, block.kind, block.ast, block.span);
        let of = fields.get("of").and_then(|(row, expr)| self.block_named("train", row, expr));
        let on = fields.get("on").and_then(|(row, expr)| self.part(row, expr));
        let batch = fields.get("batch").map(|(row, expr)| read::count(self, row, expr));
        let asked = match fields.get("metrics") {
            Some((row, expr)) => self.asked(row, expr),
            None => Some(vec![Asked { name: "loss".to_owned(), function: None, span: block.span }]),
        };
        let (of, (data, part), asked) = (of?, on?, asked?);
        let batch = match batch {
            Some(count) => Some(count?.value),
            None => None,
        };
        let trained = self.trained.iter().find(|entry| entry.name == of)?.known.clone()?;
        let (spec, facts) = self.facts(&data)?;
        let batch = batch.unwrap_or(trained.batch);
        let functions: Vec<(String, Value, Span)> =
            asked.iter().filter_map(|asked| Some((asked.name.clone(), asked.function.clone()?, asked.span))).collect();
        let (graph, values) = self.measuring_graph(&trained, &facts, batch, &functions)?;
        let objective = trained.objective_expr.span;
        let own: Vec<Name> = graph.inputs().iter().map(|input| input.name.clone()).collect();
        let own: Vec<&Name> = own.iter().filter(|name| !name.as_str().contains(':')).collect();
        let mut reads = Vec::new();
        self.reads_of(&graph, &own, objective, &mut reads)?;
        let mut metrics = Vec::new();
        for Asked { name, span, .. } in &asked {
            let metric = match OF_LOSS.iter().find(|(known, _)| known == name) {
                Some((_, Finish::BitsPerByte)) if spec.tokenizer.is_none() => {
                    self.report(
                        Diagnostic::error(
                            Code::E0315,
                            "`bits_per_byte` counts the bytes of a text, and this data has none",
                        )
                        .label(*span, "no text to count")
                        .help("`loss` and `perplexity` are of any data"),
                    );
                    return None;
                }
                Some((_, finish)) => Metric { name: name.clone(), of: "loss".to_owned(), finish: *finish },
                None if values.contains(name) => Metric { name: name.clone(), of: name.clone(), finish: Finish::Mean },
                None => {
                    self.unknown_metric(name, *span, &values);
                    return None;
                }
            };
            metrics.push(metric);
        }
        let mut needs = vec![of.clone(), data.clone()];
        needs_of(&reads, &mut needs);
        is_fine.then_some((needs, EvalSpec { of, data, part, batch, graph, reads, metrics }))
    }

    /// The names in `metrics = […]`.
    fn asked(&mut self, row: &'static FieldRow, expr: &Expr) -> Option<Vec<Asked>> {
        let ExprKind::List(items) = &expr.kind else {
            let came = match &expr.kind {
                ExprKind::Name(name) => format!("`{name}`"),
                _ => "something else".to_owned(),
            };
            let help =
                if let ExprKind::Name(name) = &expr.kind { format!("write `[{name}]`") } else { row.doc.to_owned() };
            self.report(wrong_type(row, expr.span, &came).help(help));
            return None;
        };
        if items.is_empty() {
            self.report(wrong_type(row, expr.span, "an empty list"));
            return None;
        }
        let mut asked: Vec<Asked> = Vec::new();
        for item in items {
            let ExprKind::Name(name) = &item.kind else {
                self.report(
                    Diagnostic::error(Code::E0315, "a metric is a name, and this is something else")
                        .label(item.span, "without a name")
                        .help("results are kept under names: write a function of `(model, batch)` and give its name"),
                );
                return None;
            };
            if let Some(first) = asked.iter().find(|asked| asked.name == *name) {
                self.report(
                    Diagnostic::error(Code::E0305, format!("the metric `{name}` is given twice"))
                        .label(item.span, "again here")
                        .label(first.span, "first here"),
                );
                return None;
            }
            let is_of_loss = OF_LOSS.iter().any(|(known, _)| known == name);
            let env = self.env.clone();
            let function = if is_of_loss { None } else { self.attempt(|elab| elab.eval(&env, item)) };
            let mut function = function.filter(|value| matches!(value, Value::Function(_)));
            if function.is_none() && name == "accuracy" {
                let text = self.schema_expr(ACCURACY);
                function = self.elab.eval(&env, &text).ok();
            }
            asked.push(Asked { name: name.clone(), function, span: item.span });
        }
        Some(asked)
    }

    fn unknown_metric(&mut self, name: &str, span: Span, values: &[String]) {
        let known: Vec<&str> = OF_LOSS
            .iter()
            .map(|(known, _)| *known)
            .chain(values.iter().map(String::as_str).filter(|name| *name != "loss"))
            .collect();
        let diagnostic = Diagnostic::error(Code::E0315, format!("there is no metric `{name}`"))
            .label(span, "neither reported by the objective nor a function of `(model, batch)`");
        self.report(match nearest(name, known.iter().copied()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("there are {}", known.join(", "))),
        });
    }
}
