//! The graphs of a training stage: first values, one step, evaluation, and the model alone.
//!
//! A step is composed here of what the recipe gives: objective, gradients, clipping, one optimizer step for each weight,
//! the average. What each of these computes is written in `.mdl`; only the plumbing between them is Rust.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, Op, Phase, Role, Type};

use crate::check::{Args, Stop, StoredId, StoredKind, Tensor, Value};
use crate::diag::{Code, Diagnostic};
use crate::spec::{DataFacts, State, StateKind, Weight};
use crate::syntax::ast::{Expr, Span};

use super::context::{Context, Trained};
use super::optimize::Candidate;
use super::read::Compute;

/// The axis that every field of a batch has.
const BATCH: &str = "batch";

/// Values of a step that no metric may be named after.
const RESERVED: [&str; 3] = ["loss", "lr", "grad_norm"];

pub(crate) struct TrainingGraphs {
    pub(crate) weights: Vec<Weight>,
    pub(crate) states: Vec<State>,
    pub(crate) init: Graph,
    pub(crate) step: Graph,
}

/// What an objective gives.
struct Measured {
    loss: Tensor,
    metrics: Vec<(String, Tensor)>,
}

/// A weight with what the step does to it.
struct Owned {
    id: StoredId,
    optimizer: Rc<crate::check::Optimizer>,
    /// Names of what the optimizer remembers, `m/blocks.attn.q.w`, with all axes.
    states: Vec<(String, Vec<Axis>)>,
}

impl Context<'_> {
    /// First values and one step. `None` when a mistake was reported.
    pub(crate) fn training_graphs(
        &mut self,
        trained: &Trained,
        facts: &DataFacts,
        optimizer: &Expr,
        average: Option<&Expr>,
        clip: Option<f64>,
        span: Span,
    ) -> Option<TrainingGraphs> {
        let ids = self.elab.stored_of(&trained.model);
        let (weights, layer_states): (Vec<StoredId>, Vec<StoredId>) =
            ids.into_iter().partition(|id| self.elab.stored(*id).kind == StoredKind::Weight);
        if weights.is_empty() {
            self.report(
                Diagnostic::error(Code::E0317, "the model has no weights, so there is nothing to train")
                    .label(span, "in this block"),
            );
            return None;
        }
        let env = self.env.clone();
        let candidates = self.optimizers(optimizer);
        let owners = candidates.as_ref().and_then(|candidates| self.assign(candidates, &weights));
        let average = match average {
            Some(expr) => Some((self.average(expr)?, expr.span)),
            None => None,
        };
        let objective = self.elab.eval(&env, &trained.objective).ok()?;
        let (candidates, owners) = (candidates?, owners?);
        let owned: Vec<Owned> =
            weights.iter().zip(owners).map(|(id, owner)| self.owned(*id, &candidates[owner])).collect();

        self.elab.set_trained(&[trained.root.as_str()], true);
        let step =
            self.step_graph(trained, &objective, facts, &candidates, &owned, &layer_states, average.as_ref(), clip)?;
        let init = self.init_graph(&owned, &layer_states, average.is_some(), span).ok()?;
        let (weights, states) = (self.weights_of(&owned), self.states_of(&owned, &layer_states, average.is_some()));
        Some(TrainingGraphs { weights, states, init, step })
    }

    fn average(&mut self, expr: &Expr) -> Option<Value> {
        let env = self.env.clone();
        match self.elab.eval(&env, expr).ok()? {
            value @ Value::Function(_) => Some(value),
            other => {
                self.report(
                    Diagnostic::error(
                        Code::E0303,
                        format!("`average` takes a function of `(average, w, n)`, and this is {}", other.kind()),
                    )
                    .label(expr.span, "not a function")
                    .help("such as `ema(0.999)`"),
                );
                None
            }
        }
    }

    fn owned(&self, id: StoredId, candidate: &Candidate) -> Owned {
        let path = &self.elab.stored(id).path;
        let states = self.elab.optimizer_states(&candidate.optimizer, id);
        let states = states.into_iter().map(|(name, axes)| (format!("{name}/{path}"), axes)).collect();
        Owned { id, optimizer: candidate.optimizer.clone(), states }
    }

    #[expect(clippy::too_many_arguments, reason = "these are the parts of a step")]
    fn step_graph(
        &mut self,
        trained: &Trained,
        objective: &Value,
        facts: &DataFacts,
        candidates: &[Candidate],
        owned: &[Owned],
        layer_states: &[StoredId],
        average: Option<&(Value, Span)>,
        clip: Option<f64>,
    ) -> Option<Graph> {
        let span = trained.objective.span;
        let step = self.begin();
        let measured = self.measure(trained, objective, facts)?;
        let mut loss = measured.loss;
        let mut values = measured.metrics;
        for (name, term) in self.elab.take_losses() {
            loss = self.elab.emit(Op::Add, &[&loss, &term], span).ok()?;
            values.push((name, term));
        }
        self.names_are_free(&values, span)?;
        let nexts = self.elab.take_next();
        let ids: Vec<StoredId> = owned.iter().map(|weight| weight.id).collect();
        let grads = self.elab.grads(&loss, &ids, span).ok()?;
        self.elab.set_phase_of(Phase::Update);
        let (norm, grads) = self.clipped(grads, clip, span).ok()?;
        let n = self.count_from_one(&step, span).ok()?;
        let rates = self.learning_rates(candidates, &n, span).ok()?;

        self.elab.output("loss", &loss);
        for (name, rate) in rates {
            self.elab.output(&name, &rate);
        }
        self.elab.output("grad_norm", &norm);
        for (name, value) in &values {
            self.elab.output(name, value);
        }
        for (weight, grad) in owned.iter().zip(&grads) {
            self.update(weight, grad, &n, average, span).ok()?;
        }
        for (id, tensor) in nexts.iter().filter(|(id, _)| layer_states.contains(id)) {
            self.elab.output_next(*id, tensor);
        }
        Some(self.elab.finish())
    }

    /// A graph with the two scalars that every graph has; gives `step`.
    fn begin(&mut self) -> Tensor {
        self.elab.begin();
        let ty = Type::scalar(DType::I32);
        self.elab.input("seed", InputKind::Scalar, ty.clone());
        self.elab.input("step", InputKind::Scalar, ty)
    }

    /// The batch as a record of inputs.
    fn batch(&mut self, facts: &DataFacts, rows: u64) -> Value {
        let fields = facts.fields.iter().map(|field| {
            let axes = field.axes.iter().cloned().chain([Axis::new(BATCH, rows)]);
            let ty = Type::new(field.dtype, AxisSet::of(axes).unwrap_or_default());
            (field.name.clone(), ty)
        });
        let fields: Vec<(String, Type)> = fields.collect();
        Value::record(fields.into_iter().map(|(name, ty)| {
            let tensor = self.elab.input(&name, InputKind::Batch, ty);
            (name, Value::Tensor(tensor))
        }))
    }

    /// Calls an objective or a metric, and takes its result apart.
    fn measure(&mut self, trained: &Trained, objective: &Value, facts: &DataFacts) -> Option<Measured> {
        let span = trained.objective.span;
        let batch = self.batch(facts, trained.batch);
        let args = Args::of([(trained.model.clone(), span), (batch, span)]);
        let value = self.elab.call(objective, args, span).ok()?;
        match &value {
            Value::Record(fields) => {
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
            _ => Some(Measured { loss: self.loss(&value, span)?, metrics: Vec::new() }),
        }
    }

    fn loss(&mut self, value: &Value, span: Span) -> Option<Tensor> {
        let problem = match value {
            Value::Error => return None,
            Value::Tensor(tensor) => {
                let ty = self.elab.ty(tensor).clone();
                if ty.axes.is_empty() && ty.dtype.is_float() {
                    return self.elab.cast(tensor, DType::F32, span).ok();
                }
                if ty.dtype.is_float() {
                    let names: Vec<String> = ty.axes.names().map(|name| format!("`{name}`")).collect();
                    let diagnostic =
                        Diagnostic::error(Code::E0314, format!("the loss still has the axes {}", names.join(", ")))
                            .label(span, "a loss is one number")
                            .help("take the mean of it: `mean(…)`");
                    self.report(diagnostic);
                    return None;
                }
                format!("a tensor of {}, which has no gradient", ty.dtype)
            }
            Value::Int(_) | Value::Float(_) => "a constant, which no weight changes".to_owned(),
            Value::Function(_) => {
                self.report(
                    Diagnostic::error(Code::E0314, "the objective gives a function and not a loss")
                        .label(span, "a function of `(model, batch)` is wanted")
                        .help("it has two lists of parameters: call it with the first, as in `classify()`"),
                );
                return None;
            }
            other => other.kind().to_owned(),
        };
        self.report(
            Diagnostic::error(Code::E0314, format!("the objective gives {problem}"))
                .label(span, "a loss is one float, or a record with `loss`"),
        );
        None
    }

    /// A number to report.
    pub(crate) fn metric(&mut self, name: &str, value: &Value, span: Span) -> Option<Tensor> {
        let came = match value {
            Value::Error => return None,
            Value::Tensor(tensor) => {
                let ty = self.elab.ty(tensor).clone();
                if ty.axes.is_empty() {
                    return self.elab.cast(tensor, DType::F32, span).ok();
                }
                let names: Vec<String> = ty.axes.names().map(|name| format!("`{name}`")).collect();
                format!("a tensor with the axes {}", names.join(", "))
            }
            Value::Int(_) | Value::Float(_) | Value::Bool(_) => {
                let number =
                    if let Value::Bool(value) = value { f64::from(u8::from(*value)) } else { value.as_float()? };
                return self.elab.number(number, DType::F32, span).ok();
            }
            other => other.kind().to_owned(),
        };
        self.report(
            Diagnostic::error(Code::E0315, format!("`{name}` is reported as one number, and this is {came}"))
                .label(span, format!("gives `{name}`"))
                .help("take the mean of it: `mean(…)`"),
        );
        None
    }

    fn names_are_free(&mut self, values: &[(String, Tensor)], span: Span) -> Option<()> {
        for (i, (name, _)) in values.iter().enumerate() {
            let twice = values[..i].iter().any(|(other, _)| other == name);
            if twice || RESERVED.contains(&name.as_str()) {
                self.report(
                    Diagnostic::error(Code::E0305, format!("two values of a step are reported as `{name}`"))
                        .label(span, "in this objective or in a layer")
                        .help(format!("give it another name; {} are always there", RESERVED.join(", "))),
                );
                return None;
            }
        }
        Some(())
    }

    /// The norm of all gradients together, and the gradients scaled so that it is at most `clip`.
    fn clipped(&mut self, grads: Vec<Tensor>, clip: Option<f64>, span: Span) -> Result<(Tensor, Vec<Tensor>), Stop> {
        let elab = &mut self.elab;
        let mut total = elab.number(0.0, DType::F32, span)?;
        for grad in &grads {
            let square = elab.emit(Op::Mul, &[grad, grad], span)?;
            let names: Vec<Name> = elab.ty(&square).axes.names().cloned().collect();
            let sum = elab.sum_over(&square, &names, span)?;
            total = elab.emit(Op::Add, &[&total, &sum], span)?;
        }
        let norm = elab.emit(Op::Sqrt, &[&total], span)?;
        let Some(clip) = clip else { return Ok((norm, grads)) };
        // limit / max(norm + 1e-6, limit) = min(1, limit / (norm + 1e-6)), as everybody clips.
        let tiny = elab.number(1e-6, DType::F32, span)?;
        let limit = elab.number(clip, DType::F32, span)?;
        let length = elab.emit(Op::Add, &[&norm, &tiny], span)?;
        let length = elab.emit(Op::Max, &[&length, &limit], span)?;
        let scale = elab.emit(Op::Div, &[&limit, &length], span)?;
        let grads = grads.iter().map(|grad| elab.emit(Op::Mul, &[grad, &scale], span)).collect::<Result<_, Stop>>()?;
        Ok((norm, grads))
    }

    /// `n`, as optimizers and schedules see it: a float, 1 at the first step.
    fn count_from_one(&mut self, step: &Tensor, span: Span) -> Result<Tensor, Stop> {
        let step = self.elab.cast(step, DType::F32, span)?;
        let one = self.elab.number(1.0, DType::F32, span)?;
        self.elab.emit(Op::Add, &[&step, &one], span)
    }

    /// `lr` of the first optimizer, `lr.1` of the second, and so on.
    fn learning_rates(
        &mut self,
        candidates: &[Candidate],
        n: &Tensor,
        span: Span,
    ) -> Result<Vec<(String, Tensor)>, Stop> {
        let mut rates = Vec::new();
        for (i, candidate) in candidates.iter().enumerate() {
            let Some(rate) = self.elab.param_of(&candidate.optimizer, "lr") else { continue };
            let value = match &rate {
                Value::Function(_) => self.elab.call(&rate, Args::of([(Value::Tensor(n.clone()), span)]), span)?,
                _ => rate,
            };
            let name = if i == 0 { "lr".to_owned() } else { format!("lr.{i}") };
            let Some(tensor) = self.metric(&name, &value, span) else { return Err(Stop) };
            rates.push((name, tensor));
        }
        Ok(rates)
    }

    /// One weight: its optimizer's step, its next states, its average.
    fn update(
        &mut self,
        weight: &Owned,
        grad: &Tensor,
        n: &Tensor,
        average: Option<&(Value, Span)>,
        span: Span,
    ) -> Result<(), Stop> {
        let elab = &mut self.elab;
        let old = elab.stored_tensor(weight.id)?;
        let states: Vec<Tensor> =
            weight.states.iter().map(|(name, axes)| elab.input(name, InputKind::State, float(axes))).collect();
        let (new, next) = elab.optimizer_step(&weight.optimizer, weight.id, &old, grad, n, &states, span)?;
        elab.output_next(weight.id, &new);
        for ((name, _), next) in weight.states.iter().zip(&next) {
            elab.output_next_of(name, next);
        }
        if let Some((average, span)) = average {
            let name = average_name(&elab.stored(weight.id).path);
            let old = elab.input(&name, InputKind::State, elab.ty(&new).clone());
            let args = [old, new, n.clone()].map(|tensor| (Value::Tensor(tensor), *span));
            let value = elab.call(average, Args::of(args), *span)?;
            let Value::Tensor(next) = value else {
                let diagnostic =
                    Diagnostic::error(Code::E0303, format!("`average` gives {}, not a tensor", value.kind()))
                        .label(*span, "this function")
                        .help("it takes `(average, w, n)` and gives the next average");
                elab.report(diagnostic);
                return Err(Stop);
            };
            elab.output_next_of(&name, &next);
        }
        Ok(())
    }

    fn init_graph(
        &mut self,
        owned: &[Owned],
        layer_states: &[StoredId],
        averaged: bool,
        span: Span,
    ) -> Result<Graph, Stop> {
        self.begin();
        let elab = &mut self.elab;
        for weight in owned {
            let value = elab.init_stored(weight.id)?;
            let path = elab.stored(weight.id).path.clone();
            elab.output(&path, &value);
            if averaged {
                elab.output(&average_name(&path), &value);
            }
        }
        for id in layer_states {
            let value = elab.init_stored(*id)?;
            let path = elab.stored(*id).path.clone();
            elab.output(&path, &value);
        }
        for weight in owned {
            for (k, (name, _)) in weight.states.iter().enumerate() {
                let value = elab.init_optimizer_state(&weight.optimizer, weight.id, k, span)?;
                elab.output(name, &value);
            }
        }
        Ok(elab.finish())
    }

    fn weights_of(&self, owned: &[Owned]) -> Vec<Weight> {
        let weights = owned.iter().map(|weight| {
            let stored = self.elab.stored(weight.id);
            Weight {
                path: Name::from(stored.path.as_str()),
                stacked: stored.stack.clone(),
                axes: stored.axes.clone(),
                from: stored.from.clone(),
                to: stored.to.clone(),
            }
        });
        weights.collect()
    }

    fn states_of(&self, owned: &[Owned], layer_states: &[StoredId], averaged: bool) -> Vec<State> {
        let all_axes = |id: StoredId| {
            let stored = self.elab.stored(id);
            stored.stack.iter().chain(&stored.axes).cloned().collect::<Vec<Axis>>()
        };
        let mut states = Vec::new();
        for id in layer_states {
            let stored = self.elab.stored(*id);
            let name = Name::from(stored.path.as_str());
            states.push(State { name, dtype: stored.dtype, axes: all_axes(*id), kind: StateKind::Layer });
        }
        for weight in owned {
            for (name, axes) in &weight.states {
                let name = Name::from(name.as_str());
                states.push(State { name, dtype: DType::F32, axes: axes.clone(), kind: StateKind::Optimizer });
            }
        }
        for weight in owned.iter().filter(|_| averaged) {
            let name = Name::from(average_name(&self.elab.stored(weight.id).path));
            states.push(State { name, dtype: DType::F32, axes: all_axes(weight.id), kind: StateKind::Average });
        }
        states
    }

    /// The objective on one batch, not training.
    pub(crate) fn evaluation_graph(&mut self, trained: &Trained, facts: &DataFacts, batch: u64) -> Option<Graph> {
        self.measuring_graph(trained, facts, batch, &[]).map(|(graph, _)| graph)
    }

    /// The objective and other functions of `(model, batch)` on one batch, not training; and the names of all values.
    pub(crate) fn measuring_graph(
        &mut self,
        trained: &Trained,
        facts: &DataFacts,
        batch: u64,
        more: &[(String, Value, Span)],
    ) -> Option<(Graph, Vec<String>)> {
        let trained = Trained { batch, ..trained.clone() };
        let env = self.env.clone();
        let objective = self.elab.eval(&env, &trained.objective).ok()?;
        self.elab.set_trained(&[trained.root.as_str()], false);
        self.begin();
        let measured = self.measure(&trained, &objective, facts)?;
        let mut values = vec![("loss".to_owned(), measured.loss)];
        values.extend(measured.metrics);
        for (name, function, span) in more.iter() {
            if values.iter().any(|(known, _)| known == name) {
                continue;
            }
            let batch = self.batch(facts, batch);
            let args = Args::of([(trained.model.clone(), *span), (batch, *span)]);
            let value = self.elab.call(function, args, *span).ok()?;
            values.push((name.clone(), self.metric(name, &value, *span)?));
        }
        // Layers remember nothing outside of training.
        self.elab.take_losses();
        self.elab.take_next();
        for (name, value) in &values {
            self.elab.output(name, value);
        }
        let graph = self.elab.finish();
        let graph = if trained.averaged { with_averages(&graph) } else { graph };
        Some((graph, values.into_iter().map(|(name, _)| name).collect()))
    }

    /// The model on `ids` alone, one row, not training. `None` for models that are no language models.
    pub(crate) fn forward_graph(&mut self, trained: &Trained, facts: &DataFacts) -> Option<Graph> {
        let ids = facts.fields.iter().find(|field| field.name == "ids")?;
        let [position] = ids.axes.as_slice() else { return None };
        let (dtype, position) = (ids.dtype, position.clone());
        self.elab.set_trained(&[trained.root.as_str()], false);
        let span = trained.objective.span;
        self.begin();
        let axes = AxisSet::of([position.clone(), Axis::new(BATCH, 1)])?;
        let ids = self.elab.input("ids", InputKind::Batch, Type::new(dtype, axes));
        let model = trained.model.clone();
        let logits = self.elab.attempt(|elab| elab.call(&model, Args::of([(Value::Tensor(ids), span)]), span));
        self.elab.take_losses();
        self.elab.take_next();
        let logits = match logits {
            Some(Value::Tensor(logits)) if self.is_logits(&logits, &position, facts.vocab) => Some(logits),
            _ => None,
        };
        if let Some(logits) = &logits {
            self.elab.output("logits", logits);
        }
        let graph = self.elab.finish();
        logits?;
        Some(if trained.averaged { with_averages(&graph) } else { graph })
    }

    /// One score for each token at each position.
    fn is_logits(&self, logits: &Tensor, position: &Axis, vocab: u64) -> bool {
        let ty = self.elab.ty(logits);
        let others: Vec<&Axis> =
            ty.axes.iter().filter(|axis| **axis != *position && axis.name.as_str() != BATCH).collect();
        ty.dtype.is_float()
            && ty.axes.contains(&position.name)
            && matches!(others.as_slice(), [axis] if axis.size == vocab)
    }
}

fn float(axes: &[Axis]) -> Type {
    Type::new(DType::F32, AxisSet::of(axes.iter().cloned()).unwrap_or_default())
}

fn average_name(path: &str) -> String {
    format!("average/{path}")
}

/// The same graph reading averages in the place of weights.
fn with_averages(graph: &Graph) -> Graph {
    let mut averaged = Graph::new();
    let inputs: Vec<_> = graph
        .inputs()
        .iter()
        .map(|input| match input.kind {
            InputKind::Weight => averaged.input(average_name(input.name.as_str()), InputKind::State, input.ty.clone()),
            _ => averaged.input(input.name.clone(), input.kind, input.ty.clone()),
        })
        .collect();
    let outputs = averaged.inline(graph, &inputs);
    for (output, node) in graph.outputs().iter().zip(outputs) {
        averaged.output_as(output.name.clone(), Role::Value, node);
    }
    averaged
}
