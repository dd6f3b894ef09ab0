//! A `train` block: its fields as numbers and expressions, and the rules between them.

use std::collections::BTreeMap;
use std::rc::Rc;

use mdl_graph::Name;

use crate::check::{Builder, Value};
use crate::diag::{Code, Diagnostic};
use crate::spec::{self, Budget, DataFacts, Evaluate, Form, Origin, Precision, Read, Sample, Save, TrainSpec};
use crate::syntax::ast::{Expr, Span};

use super::Block;
use super::context::{Context, TrainEntry, Trained};
use super::fields::{Fields, match_fields};
use super::parts::OBJECTIVE;
use super::read::{self, Compute, Count};
use super::schema::{FieldRow, MANY, Need, Takes};

/// The part of the data that training learns from.
const PART: &str = "train";

/// Checkpoints that are kept without `save`: the last, and the one before it while that is being written.
const KEEP: u64 = 2;

/// The fields of a block that are numbers and words.
struct Numbers {
    batch: u64,
    micro: u64,
    steps: u64,
    seed: u64,
    precision: Precision,
    clip: Option<f64>,
    memory: Option<Budget>,
    evaluate: Option<(u64, String)>,
    save: Save,
    sample: Option<Sample>,
    patience: Option<u64>,
}

impl Context<'_> {
    /// Reads a `train` block; `None` when something in it was reported.
    pub(crate) fn train(&mut self, block: &Block<'_>) -> Option<(Vec<String>, TrainSpec)> {
        // The model as it is outside of training is built first; evaluation uses it.
        self.set_training(None);
        let (fields, is_fine) = match_fields(self, block.kind, block.ast, block.span);
        let result = self.train_fields(block, &fields).filter(|_| is_fine);
        self.elab.set_rebuilt(None);
        let known = result.as_ref().map(|(trained, _)| trained.clone());
        // From here on its name is the model that it has trained.
        match &known {
            Some(known) => {
                self.elab.define_trained(self.root, block.name, known.model.clone(), known.builder.clone());
            }
            None => self.elab.define(self.root, block.name, Value::Error),
        }
        self.trained.push(TrainEntry { name: block.name.to_owned(), known });
        result.map(|(_, spec)| {
            let mut needs = vec![spec.data.clone()];
            needs_of(&spec.reads, &mut needs);
            let own =
                spec.weights.iter().map(|weight| &weight.origin).chain(spec.states.iter().map(|state| &state.origin));
            own.flatten().for_each(|origin| need(origin, &mut needs));
            (needs, spec)
        })
    }

    /// The blocks in an order in which each comes after those that it names. A circle is reported.
    pub(crate) fn in_order<'b, 'e>(&mut self, blocks: Vec<&'b Block<'e>>) -> Vec<&'b Block<'e>> {
        let mut left: Vec<(&Block<'_>, Vec<String>)> = Vec::new();
        for block in &blocks {
            let words = self.elab.words(block.ast.fields.iter().map(|field| field.value.span));
            left.push((block, self.trained_names(words)));
        }
        let mut order: Vec<&Block<'_>> = Vec::new();
        while !left.is_empty() {
            let is_ready =
                |needed: &[String]| !left.iter().any(|(other, _)| needed.iter().any(|name| name == other.name));
            let Some(at) = left.iter().position(|(_, needed)| is_ready(needed)) else {
                let names: Vec<String> = left.iter().map(|(block, _)| format!("`{}`", block.name)).collect();
                let message = match names.as_slice() {
                    [one] => format!("{one} needs itself"),
                    several => format!("{} need each other", several.join(", ")),
                };
                let mut diagnostic = Diagnostic::error(Code::E0214, message);
                for (block, _) in &left {
                    diagnostic = diagnostic.label(block.span, "part of the circle");
                    self.elab.define(self.root, block.name, Value::Error);
                    self.trained.push(TrainEntry { name: block.name.to_owned(), known: None });
                }
                self.report(diagnostic.help("a stage comes after those that it names"));
                break;
            };
            order.push(left.remove(at).0);
        }
        order
    }

    fn train_fields(&mut self, block: &Block<'_>, fields: &Fields<'_>) -> Option<(Trained, TrainSpec)> {
        // Everything that can be read is read before giving up.
        let data = fields.get("data").and_then(|(row, expr)| self.block_named("data", row, expr));
        let adapters = match fields.get("model") {
            Some((_, model)) => optional(fields, "adapt", |_, expr| self.adapters(expr, model, block.name)),
            None => None,
        };
        let stored = optional(fields, "frozen", |row, expr| self.stored_dtype(row, expr));
        let freeze = optional(fields, "freeze", |_, expr| self.freezes(expr));
        let builder = |(_, expr): (_, &Expr)| {
            let adapters = Rc::new(adapters?.unwrap_or_default());
            Some(Rc::new(Builder { model: expr.clone(), adapters }))
        };
        let builder = fields.get("model").and_then(builder);
        let model = match (fields.get("model"), &builder) {
            (Some((row, _)), Some(builder)) => self.model(block.name, row, builder),
            _ => None,
        };
        let optimizer = self.given_or_default(fields, "optimizer");
        let average = fields.get("average").map(|(_, expr)| expr);
        let numbers = self.numbers(fields, data.as_deref());
        let (builder, model) = (builder?, model?);
        let (_, objective_expr) = fields.get("objective")?;
        let data = data?;
        let (spec, facts) = self.facts(&data)?;
        if !spec.split.parts.iter().any(|part| part.name == PART) {
            let parts: Vec<String> = spec.split.parts.iter().map(|part| format!("`{}`", part.name)).collect();
            self.report(
                Diagnostic::error(Code::E0311, format!("`{data}` has no part `{PART}` to learn from"))
                    .label(fields.span("data").unwrap_or(block.span), "used here")
                    .help(format!("it has {}; name one of them `{PART}`", parts.join(", "))),
            );
            return None;
        }
        let numbers = numbers?;
        self.batch_fits(&facts, numbers.batch, fields.span("batch").unwrap_or(block.span))?;
        let env = self.env.clone();
        let objective = self.elab.beside(OBJECTIVE, &env, objective_expr).ok()?;
        let mut trained = Trained {
            block: block.name.to_owned(),
            model,
            objective,
            rebuilt: self.elab.set_rebuilt(None)?,
            builder,
            freeze: freeze?,
            frozen: BTreeMap::new(),
            objective_expr: Rc::new(objective_expr.clone()),
            batch: numbers.batch,
            averaged: average.is_some(),
        };
        let stored = stored?;
        let mut graphs = self.training_graphs(&trained, &facts, &optimizer, average, numbers.clip, block.span)?;
        trained.frozen = std::mem::take(&mut graphs.frozen);
        if let Some(dtype) = stored {
            self.keep_frozen(dtype, &mut graphs, fields.span("frozen").unwrap_or(block.span))?;
        }
        let evaluate = match numbers.evaluate {
            Some((every, part)) => {
                let (graph, _) = self.measuring_graph(&trained, &facts, numbers.batch, &[])?;
                let own: Vec<&Name> = graphs.own().collect();
                let mut reads = graphs.reads.clone();
                self.reads_of(&graph, &own, objective_expr.span, &mut reads)?;
                graphs.reads = reads;
                Some(Evaluate { every, part, graph })
            }
            None => None,
        };
        let forward = self.forward_graph(&trained, &facts);
        if numbers.sample.is_some() && (forward.is_none() || spec.tokenizer.is_none()) {
            let why = if spec.tokenizer.is_none() {
                "its data has no tokenizer"
            } else {
                "it gives no logits for `ids` alone"
            };
            self.report(
                Diagnostic::error(Code::E0308, format!("`sample` needs a model that continues a text, and {why}"))
                    .label(fields.span("sample").unwrap_or(block.span), "nothing to sample from")
                    .help("a model that can be sampled takes `ids: int[.., t]` and gives logits `[.., t, vocab]`"),
            );
            return None;
        }
        if let (Some(_), Some(forward)) = (&numbers.sample, &forward) {
            self.is_decoded(forward, fields.span("sample").unwrap_or(block.span))?;
        }
        let spec = TrainSpec {
            data,
            weights: graphs.weights,
            states: graphs.states,
            reads: graphs.reads,
            kept: graphs.kept,
            init: graphs.init,
            step: graphs.step,
            forward,
            batch: numbers.batch,
            micro: numbers.micro,
            steps: numbers.steps,
            precision: numbers.precision,
            memory: numbers.memory,
            seed: numbers.seed,
            evaluate,
            save: numbers.save,
            sample: numbers.sample,
            patience: numbers.patience,
        };
        Some((trained, spec))
    }

    /// The model of a block, not training.
    fn model(&mut self, block: &str, row: &'static FieldRow, builder: &Builder) -> Option<Value> {
        let env = self.env.clone();
        let expr = &builder.model;
        let value = self.elab.rebuild(block, &env, builder).ok()?;
        self.elab.idle_adapters(&builder.adapters, &value).ok()?;
        let Value::Record(fields) = &value else {
            return self.is_model(row, &value, expr.span, "this").then_some(value);
        };
        if fields.is_empty() {
            self.report(read::wrong_type(row, expr.span, "an empty record"));
            return None;
        }
        for (name, field) in fields.iter() {
            if !self.is_model(row, field, expr.span, &format!("its part `{name}`")) {
                return None;
            }
        }
        Some(value)
    }

    fn is_model(&mut self, row: &'static FieldRow, value: &Value, span: Span, which: &str) -> bool {
        match value {
            Value::Layer(_) => return true,
            Value::List(items) if !items.is_empty() && items.iter().all(|item| matches!(item, Value::Layer(_))) => {
                return true;
            }
            Value::Maker(_) => self.report(
                Diagnostic::error(
                    Code::E0303,
                    format!("`{}` takes a model, and {which} is a layer that is not built yet", row.name),
                )
                .label(span, "not built")
                .help("add its arguments: `Gpt[…](…)`"),
            ),
            other => self.report(read::wrong_type(row, span, other.kind())),
        }
        false
    }

    /// The expression of a field, or that of its default in the schema.
    fn given_or_default(&mut self, fields: &Fields<'_>, name: &str) -> Expr {
        if let Some((_, expr)) = fields.get(name) {
            return expr.clone();
        }
        match fields.row(name).need {
            Need::Default(text) => self.schema_expr(text),
            _ => mdl_graph::bug!("the schema has no default for `{name}`"),
        }
    }

    /// All stages of a recipe run on one device.
    fn runs_on(&mut self, device: spec::Device, span: Span) -> Option<()> {
        match *self.device.get_or_insert((device, span)) {
            (first, _) if first == device => Some(()),
            (_, first) => {
                self.report(
                    Diagnostic::error(Code::E0308, "two stages ask for two devices")
                        .label(span, "this one")
                        .label(first, "and this one")
                        .help("all stages run on one: say it once"),
                );
                None
            }
        }
    }

    fn numbers(&mut self, fields: &Fields<'_>, data: Option<&str>) -> Option<Numbers> {
        let batch = self.count_or(fields, "batch");
        let micro = self.count_or(fields, "micro");
        let seed = self.count_or(fields, "seed");
        let steps = match fields.get("steps") {
            Some((row, expr)) => read::count(self, row, expr).map(|count| (count, expr.span)),
            None => {
                let value = read::default_number(fields.row("steps")) as u64;
                Some((Count { value, unit: String::new() }, Span::default()))
            }
        };
        let precision = match fields.get("precision") {
            Some((row, expr)) => read::choice(self, row, expr).map(|word| match word {
                "bf16" => Precision::BF16,
                "f16" => Precision::F16,
                "bf16x3" => Precision::BF16x3,
                "bf16x6" => Precision::BF16x6,
                _ => Precision::F32,
            }),
            None => Some(Precision::F32),
        };
        let device = optional(fields, "device", |row, expr| {
            let device = spec::Device::of(read::choice(self, row, expr)?)?;
            self.runs_on(device, expr.span)
        });
        let clip = optional(fields, "clip", |row, expr| read::number(self, row, expr));
        let memory = optional(fields, "memory", |row, expr| {
            Some(Budget { bytes: read::bytes(self, row, expr)?, span: expr.span })
        });
        let evaluate = optional(fields, "evaluate", |row, expr| self.every_evaluate(row, expr, data));
        let save = optional(fields, "save", |row, expr| self.every_save(row, expr));
        let sample = optional(fields, "sample", |row, expr| self.every_sample(row, expr));
        let patience = optional(fields, "stop", |row, expr| self.one_call(row, expr)?.count(self, "evaluations"));
        let (batch, micro) = (batch?, micro?);
        if batch % micro != 0 {
            self.report(
                Diagnostic::error(
                    Code::E0308,
                    format!("a batch of {batch} rows cannot be cut into {micro} equal pieces"),
                )
                .label(fields.span("micro").unwrap_or_default(), "pieces")
                .help("`batch` is the whole batch; `micro` must divide it"),
            );
            return None;
        }
        device?;
        let (evaluate, patience) = (evaluate?, patience?);
        if patience.is_some() && evaluate.is_none() {
            self.report(
                Diagnostic::error(Code::E0308, "`stop` waits for evaluations, and there are none")
                    .label(fields.span("stop").unwrap_or_default(), "never ends anything")
                    .help("add `evaluate = every(250, on: plays.val)`"),
            );
            return None;
        }
        let (steps, steps_span) = steps?;
        let steps = self.steps(&steps, steps_span, batch, data)?;
        Some(Numbers {
            batch,
            micro,
            steps,
            seed: seed?,
            precision: precision?,
            clip: clip?,
            memory: memory?,
            evaluate,
            save: save?.unwrap_or(Save { every: None, keep: KEEP }),
            sample: sample?,
            patience,
        })
    }

    /// The field, or its default.
    fn count_or(&mut self, fields: &Fields<'_>, name: &str) -> Option<u64> {
        match fields.get(name) {
            Some((row, expr)) => read::count(self, row, expr).map(|count| count.value),
            None => Some(read::default_number(fields.row(name)) as u64),
        }
    }

    /// `3 epochs` and `4M tokens` as steps, rounded up.
    fn steps(&mut self, steps: &Count, span: Span, batch: u64, data: Option<&str>) -> Option<u64> {
        if steps.unit.is_empty() || steps.unit == "steps" {
            return self.few_steps(steps.value, span);
        }
        let (spec, facts) = self.facts(data?)?;
        let per_step = match (steps.unit.as_str(), &spec.form) {
            ("epochs", _) => {
                let rows = facts.rows.iter().find(|(name, _)| name == PART).map_or(0, |(_, rows)| *rows);
                return self.few_steps(steps.value.saturating_mul(rows).div_ceil(batch).max(1), span);
            }
            (_, Form::Window { axis } | Form::Pad { axis } | Form::Pack { axis }) => batch.saturating_mul(axis.size),
            (_, Form::Rows) => {
                self.report(
                    Diagnostic::error(Code::E0304, "`steps` counts tokens, and the data has none")
                        .label(span, "a number of tokens here")
                        .help("count steps, or `3 epochs`"),
                );
                return None;
            }
        };
        self.few_steps(steps.value.div_ceil(per_step).max(1), span)
    }

    fn few_steps(&mut self, steps: u64, span: Span) -> Option<u64> {
        if steps <= MANY as u64 {
            return Some(steps);
        }
        self.report(
            Diagnostic::error(Code::E0306, format!("a stage has at most {MANY} steps, and this is {steps}"))
                .label(span, "too many"),
        );
        None
    }

    /// Graphs count the elements of a field of a batch in `i32`.
    fn batch_fits(&mut self, facts: &DataFacts, batch: u64, span: Span) -> Option<()> {
        for field in &facts.fields {
            let count = field.axes.iter().fold(u128::from(batch), |count, axis| count.saturating_mul(axis.size.into()));
            if count > MANY as u128 {
                self.report(
                    Diagnostic::error(
                        Code::E0306,
                        format!("a batch of {batch} rows has {count} elements of `{}`, more than {MANY}", field.name),
                    )
                    .label(span, "too many for one step")
                    .help("make the batch or the window smaller"),
                );
                return None;
            }
        }
        Some(())
    }

    fn one_call<'e>(&mut self, row: &'static FieldRow, expr: &'e Expr) -> Option<read::Called<'e>> {
        let Takes::Call(rows) = row.takes else { return None };
        read::call(self, row, rows, expr)
    }

    fn every_evaluate(&mut self, row: &'static FieldRow, expr: &Expr, data: Option<&str>) -> Option<(u64, String)> {
        let called = self.one_call(row, expr)?;
        let every = called.count(self, "steps");
        let (on_row, on) = called.get("on")?;
        let (block, part) = self.part(on_row, on)?;
        if data.is_some_and(|data| data != block) {
            self.report(
                Diagnostic::error(
                    Code::E0308,
                    format!("`evaluate` measures on a part of the block that it trains on, and `{block}` is another"),
                )
                .label(on.span, "a part of another block")
                .help("measure on other data with an `eval` block"),
            );
            return None;
        }
        Some((every?, part))
    }

    fn every_save(&mut self, row: &'static FieldRow, expr: &Expr) -> Option<Save> {
        let called = self.one_call(row, expr)?;
        let every = called.count(self, "steps");
        let keep = called.count(self, "keep");
        Some(Save { every: Some(every?), keep: keep? })
    }

    fn every_sample(&mut self, row: &'static FieldRow, expr: &Expr) -> Option<Sample> {
        let called = self.one_call(row, expr)?;
        let every = called.count(self, "steps");
        let prompt = called.text(self, "prompt");
        let new = called.count(self, "new");
        let temperature = called.number(self, "temperature");
        Some(Sample { every: every?, prompt: prompt?, new: new?, temperature: temperature? })
    }
}

/// `Some(None)` when the field is left out, `None` when it is wrong.
fn optional<T>(
    fields: &Fields<'_>,
    name: &str,
    read: impl FnOnce(&'static FieldRow, &Expr) -> Option<T>,
) -> Option<Option<T>> {
    match fields.get(name) {
        Some((row, expr)) => read(row, expr).map(Some),
        None => Some(None),
    }
}

/// The stages that are read become needed.
pub(super) fn needs_of(reads: &[Read], needs: &mut Vec<String>) {
    for read in reads {
        need(&read.origin, needs);
    }
}

pub(super) fn need(origin: &Origin, needs: &mut Vec<String>) {
    if let Origin::Stage { stage, .. } = origin
        && !needs.contains(stage)
    {
        needs.push(stage.clone());
    }
}
