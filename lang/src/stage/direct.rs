//! What commands ask of a model without a block in the recipe: steps on one batch of arrays (`mdlc tune`), and the graph that
//! decoders are derived from (`mdlc generate DIR`); and of a stage, its gradients (`mdlc verify`). Everything is made as a `train` block would make it.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Role, Type};

use crate::check::{Args, Builder, Saved, Value, World};
use crate::diag::{Code, Diagnostic, Sources};
use crate::spec::{DataFacts, Field, Kept, Precision, Program, Read, Save, Stage, StageKind, TrainSpec};
use crate::syntax::ast::{self, Arg, ArgKind, Expr, ExprKind, FileId, ItemKind, Span};
use crate::syntax::parse;

use super::apply::{Array, Ordered, dtype_of, results};
use super::context::{Context, Trained};
use super::parts::OBJECTIVE;
use super::read::Compute;
use super::step::BATCH;

/// What loads adapters, in std.adapters.
const SAVED: &str = "peft";

/// What the model itself calls its loss.
const LOSS: &str = "fn(model, batch) = model.forward(..batch).loss";

/// What keeps gradients.
const GRADIENT: &str = "leave_gradient()";

/// Steps on one batch.
pub struct Tuned {
    pub spec: TrainSpec,
    /// The arrays, each with its axes in the order of the array.
    pub inputs: Vec<Ordered>,
    /// What is trained, where that is adapters.
    pub adapters: Option<Saved>,
}

/// Builds the training step of a recipe's model on arrays that are the arguments of its `forward`, or of the adapters in a folder around
/// it. `optimizer` is an expression.
pub fn tune(
    sources: &mut Sources,
    main: FileId,
    world: &dyn World,
    arrays: &[Array],
    (optimizer, steps): (&str, u64),
    adapter: Option<&str>,
) -> (Option<Tuned>, Vec<Diagnostic>) {
    built(sources, main, &[], world, |context, _, file| {
        let asked = context.model_asked(file, None)?;
        context.tuned(asked, arrays, (optimizer, steps), adapter)
    })
}

/// What writes ids after ids.
pub struct Writes {
    /// One row: the value `logits` from `ids`.
    pub graph: Graph,
    pub reads: Vec<Read>,
    /// Of a model that answers what it is given: the arrays of that, each with its axes in the order of the array.
    pub given: Vec<Ordered>,
}

/// The argument of a `forward` that tells an answer from what it is about.
const ANSWER: &str = "decoder_input_ids";

/// Builds the graph of a recipe's model on ids, one row. A model whose `forward` takes `decoder_input_ids` is given the `arrays`, each
/// a row, and writes an answer; any other goes on with what it reads. `most` are the ids that each of the two has to read at most.
pub fn writes(
    sources: &mut Sources,
    main: FileId,
    world: &dyn World,
    arrays: &[Array],
    most: Most,
) -> (Option<Writes>, Vec<Diagnostic>) {
    built(sources, main, &[], world, |context, _, file| {
        let (name, span) = context.model_asked(file, None)?;
        context.writes(name, span, arrays, most)
    })
}

/// How many ids a model reads at most.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub answering: u64,
    pub going_on: u64,
}

/// The keys of a JSON file that building the recipe's models had no use for; nothing where something else is wrong.
pub fn unread(
    sources: &mut Sources,
    main: FileId,
    world: &dyn World,
    json: &str,
) -> (Option<Vec<String>>, Vec<Diagnostic>) {
    built(sources, main, &[], world, |context, _, _| Some(context.elab.unread_keys(json)))
}

/// A train stage whose step leaves each gradient, unclipped, where the weight was. `batch` takes the place of the stage's own, where it
/// is given.
pub fn gradients(
    sources: &mut Sources,
    main: FileId,
    args: &[(String, String)],
    world: &dyn World,
    stage: &str,
    batch: Option<u64>,
) -> (Option<TrainSpec>, Vec<Diagnostic>) {
    built(sources, main, args, world, |context, program, _| {
        let Some(Stage { span, kind: StageKind::Train(spec), .. }) = program.stage(stage) else { return None };
        context.gradients(stage, spec, batch.unwrap_or(spec.batch), *span)
    })
}

/// The adapters of a trained stage, the last one if none is named, as files of PEFT have them. `None` of a stage without adapters.
pub fn saved(
    sources: &mut Sources,
    main: FileId,
    args: &[(String, String)],
    world: &dyn World,
    stage: Option<&str>,
) -> (Option<Option<Saved>>, Vec<Diagnostic>) {
    built(sources, main, args, world, |context, _, file| {
        let (name, span) = context.model_asked(file, stage)?;
        match context.known(&name).map(|known| known.model.clone()) {
            Some(model) if context.elab.has_adapters(&model) => context.elab.saved(&model, span).ok().map(Some),
            _ => Some(None),
        }
    })
}

/// What `make` makes of a recipe whose stages were checked; nothing where there is a mistake.
pub(super) fn built<T>(
    sources: &mut Sources,
    main: FileId,
    args: &[(String, String)],
    world: &dyn World,
    make: impl FnOnce(&mut Context<'_>, Program, &ast::File) -> Option<T>,
) -> (Option<T>, Vec<Diagnostic>) {
    let mut context = Context::new(std::mem::take(sources), main, args, world);
    let (program, file) = context.stages();
    let made = make(&mut context, program, &file);
    let (all, diagnostics) = context.finish();
    *sources = all;
    let is_fine = !diagnostics.iter().any(Diagnostic::is_error);
    (made.filter(|_| is_fine), diagnostics)
}

impl Context<'_> {
    /// A model with the adapters that PEFT has saved in a folder.
    pub(super) fn with_saved(&mut self, name: &str, span: Span, adapter: Option<&str>) -> Option<Builder> {
        let expr = |kind| Expr { kind, span };
        let model = expr(ExprKind::Name(name.to_owned()));
        let Some(dir) = adapter else { return Some(Builder { model, adapters: Rc::default() }) };
        let args = vec![Arg { kind: ArgKind::Positional(expr(ExprKind::Str(dir.to_owned()))), span }];
        let callee = Box::new(expr(ExprKind::Name(SAVED.to_owned())));
        let adapters = self.adapters(&expr(ExprKind::Call { callee, args }), &model, name)?;
        Some(Builder { model, adapters: Rc::new(adapters) })
    }

    fn tuned(
        &mut self,
        (name, span): (String, Span),
        arrays: &[Array],
        (optimizer, steps): (&str, u64),
        adapter: Option<&str>,
    ) -> Option<Tuned> {
        self.set_training(None);
        let builder = self.with_saved(&name, span, adapter)?;
        let optimizer = self.given_expr("--optimizer", optimizer)?;
        let env = self.env.clone();
        let model = self.elab.rebuild("tuned", &env, &builder).ok()?;
        self.elab.idle_adapters(&builder.adapters, &model).ok()?;
        let adapters = match adapter {
            Some(_) => Some(self.elab.saved(&model, span).ok()?),
            None => None,
        };
        let Some(def) = self.elab.function_of(&model, "forward") else {
            let message = format!("`{name}` has no function `forward` that takes arrays by name");
            self.report(Diagnostic::error(Code::E0209, message).label(span, "tuned here"));
            return None;
        };
        let objective_expr = self.schema_expr(LOSS);
        let objective = self.elab.beside(OBJECTIVE, &env, &objective_expr).ok()?;
        // The arguments as a call has them say which axes there are.
        self.begin(span)?;
        let (_, inputs) = self.arguments(&def, arrays, span)?;
        let fields = inputs.iter().zip(arrays).map(|((name, axes), array)| Field {
            name: name.clone(),
            dtype: dtype_of(&def, name).unwrap_or(DType::F32),
            axes: axes.iter().zip(&array.shape).skip(1).map(|(axis, size)| Axis::new(axis.clone(), *size)).collect(),
        });
        let fields: Vec<Field> = fields.collect();
        let batch = arrays.first().and_then(|array| array.shape.first()).copied().unwrap_or(0);
        let rows = vec![("train".to_owned(), batch)];
        let facts = DataFacts { vocab: 0, classes: 0, fields, rows, hash: String::new() };
        let trained = Trained {
            block: "tuned".to_owned(),
            model,
            objective,
            rebuilt: self.elab.set_rebuilt(None)?,
            builder: Rc::new(builder),
            objective_expr: Rc::new(objective_expr),
            batch,
            averaged: false,
            freeze: None,
            frozen: Default::default(),
        };
        let graphs = self.training_graphs(&trained, &facts, &optimizer, None, None, span)?;
        let spec = TrainSpec {
            data: String::new(),
            weights: graphs.weights,
            states: graphs.states,
            reads: graphs.reads,
            kept: graphs.kept,
            init: graphs.init,
            step: graphs.step,
            forward: None,
            batch,
            micro: 1,
            steps,
            precision: Precision::F32,
            memory: None,
            seed: 0,
            evaluate: None,
            save: Save { every: None, keep: 1 },
            sample: None,
            patience: None,
        };
        Some(Tuned { spec, inputs, adapters })
    }

    fn gradients(&mut self, stage: &str, spec: &TrainSpec, batch: u64, span: Span) -> Option<TrainSpec> {
        let known = self.known(stage)?.clone();
        let (_, facts) = self.facts(&spec.data)?;
        // No user can write `~`: what is built again has a root of its own.
        let trained = Trained { block: format!("{stage}~gradients"), batch, ..known };
        let optimizer = self.schema_expr(GRADIENT);
        let graphs = self.training_graphs(&trained, &facts, &optimizer, None, None, span)?;
        let is_read = |kept: &&Kept| graphs.reads.iter().any(|read| read.input == kept.input);
        Some(TrainSpec {
            kept: spec.kept.iter().filter(is_read).cloned().collect(),
            weights: graphs.weights,
            states: graphs.states,
            reads: graphs.reads,
            init: graphs.init,
            step: graphs.step,
            forward: None,
            evaluate: None,
            sample: None,
            batch,
            ..spec.clone()
        })
    }

    fn writes(&mut self, name: String, span: Span, arrays: &[Array], most: Most) -> Option<Writes> {
        self.set_training(None);
        let env = self.env.clone();
        let model = self.elab.eval(&env, &Expr { kind: ExprKind::Name(name.clone()), span }).ok()?;
        self.begin(span)?;
        let answers = self.elab.function_of(&model, "forward").filter(|def| dtype_of(def, ANSWER).is_some());
        let length = if answers.is_some() { most.answering } else { most.going_on };
        let position = Axis::new("t", length);
        let axes = AxisSet::of([position.clone(), Axis::new(BATCH, 1)])?;
        let ids = self.elab.input("ids", InputKind::Batch, Type::new(DType::I32, axes));
        let (logits, given) = match answers {
            None => (self.elab.call(&model, Args::of([(ids, span)]), span).ok()?, Vec::new()),
            Some(def) => {
                let (mut args, given) = self.arguments(&def, arrays, span)?;
                args.named.push((ANSWER.into(), ids, span));
                let result = self.call_member(name, "forward", args, span)?;
                let logits = results(&result).into_iter().find(|(name, _)| name == "logits");
                (logits.map_or(Value::None, |(_, logits)| logits), given)
            }
        };
        let logits = self.elab.node_of(&logits, span).ok()?;
        let ty = self.elab.graph().ty(logits).clone();
        if !ty.axes.contains(&position.name) || ty.axes.len() != 3 {
            let message = "the model gives no logits for each position of a text, so it cannot go on with one";
            self.report(Diagnostic::error(Code::E0223, message).label(span, format!("it gives {ty}")));
            return None;
        }
        self.elab.graph().output_as("logits", Role::Value, logits);
        let graph = self.elab.finish();
        let mut reads = Vec::new();
        self.reads_of(&graph, &[], span, &mut reads)?;
        self.is_decoded(&graph, span)?;
        Some(Writes { graph, reads, given })
    }

    /// An expression of the command line; `None` when it cannot be read, which is told.
    fn given_expr(&mut self, flag: &str, text: &str) -> Option<Expr> {
        let line = format!("model given = {text}");
        let id = self.elab.sources.add(flag, line.as_str());
        let (file, diagnostics) = parse(id, &line);
        let n_problems = diagnostics.len();
        diagnostics.into_iter().for_each(|diagnostic| self.report(diagnostic));
        match file.items.into_iter().next().map(|item| item.kind) {
            Some(ItemKind::Model { value, .. }) if n_problems == 0 => Some(value),
            _ => None,
        }
    }
}
