//! The graphs of a training stage: first values, one step, evaluation, and the model alone.
//!
//! A step is composed here of what the recipe gives: objective, gradients, clipping, one optimizer step for each weight,
//! the average. What each of these computes is written in `.mdl`; only the plumbing between them is Rust.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, NodeId, Op, Phase, Role, Type};

use crate::check::{Args, Eval, Optimizer, OptimizerState, Stop, StoredId, StoredKind, Value};
use crate::diag::{Code, Diagnostic};
use crate::spec::{DataFacts, State, StateKind, Weight};
use crate::syntax::ast::{self, Expr, ExprKind, Span};

use super::context::{Context, Trained};
use super::graph_span;
use super::objective::Measured;
use super::optimize::Candidate;
use super::read::Compute;
use super::schema::MANY;

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

/// A weight with what the step does to it.
struct Owned {
    id: StoredId,
    optimizer: Rc<Optimizer>,
    states: Vec<OptimizerState>,
}

/// What a step is made of, besides the objective.
struct Parts<'p> {
    owned: Vec<Owned>,
    layer_states: Vec<StoredId>,
    candidates: Vec<Candidate>,
    average: Option<(Value, Span)>,
    clip: Option<f64>,
    facts: &'p DataFacts,
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
        // A root of its own: no user can write `~`.
        let root = format!("{}~", trained.block);
        self.set_training(Some(&root));
        let env = self.env.clone();
        let model = self.elab.build_root(&root, &env, &trained.builder).ok()?;
        let (weights, layer_states): (Vec<StoredId>, Vec<StoredId>) =
            self.elab.stored_of(&model).into_iter().partition(|id| self.stored(*id).kind == StoredKind::Weight);
        if weights.is_empty() {
            let message = "the model has no weights, so there is nothing to train";
            self.report(Diagnostic::error(Code::E0317, message).label(span, "in this block"));
            return None;
        }
        self.weights_fit(weights.iter().chain(&layer_states), span)?;
        let candidates = self.optimizers(optimizer);
        let owners = candidates.as_ref().and_then(|candidates| self.assign(candidates, &weights));
        let average = match average {
            Some(expr) => Some((self.average(expr)?, expr.span)),
            None => None,
        };
        let objective = self.elab.eval(&env, &trained.objective).ok()?;
        let (candidates, owners) = (candidates?, owners?);
        let mut owned = Vec::new();
        for (id, owner) in weights.into_iter().zip(owners) {
            let optimizer = candidates[owner].optimizer.clone();
            let states = self.elab.optimizer_states(&optimizer, id).ok()?;
            owned.push(Owned { id, optimizer, states });
        }
        let parts = Parts { owned, layer_states, candidates, average, clip, facts };
        let step = self.step_graph(trained, &model, &objective, &parts)?;
        let init = self.init_graph(&parts, span).ok()?;
        Some(TrainingGraphs { weights: self.weights_of(&parts), states: self.states_of(&parts), init, step })
    }

    /// Graphs count the elements of a tensor in `i32`.
    fn weights_fit<'i>(&mut self, ids: impl Iterator<Item = &'i StoredId>, span: Span) -> Option<()> {
        for id in ids {
            let stored = self.stored(*id);
            let axes = stored.stack.iter().chain(&stored.axes);
            let count = axes.fold(1u128, |count, axis| count.saturating_mul(axis.size.into()));
            if count > MANY as u128 {
                let message = format!("the weight `{}` has {count} elements, more than {MANY}", stored.path);
                let place = stored.span;
                self.report(
                    Diagnostic::error(Code::E0317, message)
                        .label(place, "this weight")
                        .label(span, "trained by this block"),
                );
                return None;
            }
        }
        Some(())
    }

    fn average(&mut self, expr: &Expr) -> Option<Value> {
        let env = self.env.clone();
        match self.elab.eval(&env, expr).ok()? {
            value @ Value::Function(_) => Some(value),
            other => {
                let kind = other.kind();
                self.report(
                    Diagnostic::error(
                        Code::E0303,
                        format!("`average` takes a function of `(average, w, n)`, and this is {kind}"),
                    )
                    .label(expr.span, "not a function")
                    .help("such as `ema(0.999)`"),
                );
                None
            }
        }
    }

    fn step_graph(&mut self, trained: &Trained, model: &Value, objective: &Value, parts: &Parts<'_>) -> Option<Graph> {
        let span = trained.objective.span;
        let step = self.begin(span)?;
        let batch = self.batch(parts.facts, trained.batch);
        let Measured { mut loss, metrics: mut values } = self.measure(objective, model, &batch, span)?;
        for (name, term) in self.elab.take_losses().ok()? {
            let term = self.elab.node_of(&term, span).ok()?;
            loss = self.elab.graph().add(Op::Add, &[loss, term]);
            values.push((name, term));
        }
        self.names_are_free(&values, span)?;
        let nexts = self.elab.take_next();
        let ids: Vec<StoredId> = parts.owned.iter().map(|weight| weight.id).collect();
        let total = self.elab.value_of(loss);
        let grads = self.elab.grads(&total, &ids, span).ok()?;
        let grads: Vec<NodeId> = grads.iter().map(|grad| self.elab.node_of(grad, span)).collect::<Eval<_>>().ok()?;

        self.elab.set_phase(Phase::Update);
        let graph = self.elab.graph();
        graph.set_here(Phase::Update, graph_span(span), None);
        let (norm, grads) = clipped(graph, grads, parts.clip);
        let n = count_from_one(graph, step);
        let rates = self.learning_rates(&parts.candidates, n, span)?;

        let graph = self.elab.graph();
        graph.output_as("loss", Role::Value, loss);
        for (name, rate) in rates {
            graph.output_as(name, Role::Value, rate);
        }
        graph.output_as("grad_norm", Role::Value, norm);
        for (name, value) in values {
            graph.output_as(name, Role::Value, value);
        }
        for (weight, grad) in parts.owned.iter().zip(grads) {
            self.update(weight, grad, n, parts.average.as_ref(), span).ok()?;
        }
        for (id, value) in nexts.iter().filter(|(id, _)| parts.layer_states.contains(id)) {
            let path = self.stored(*id).path.clone();
            // A state that is written and never read has no input yet.
            self.elab.stored_value(*id);
            self.elab.output_next(&path, value, span).ok()?;
        }
        let graph = self.elab.finish();
        self.only_own(&graph, parts, span)?;
        Some(graph)
    }

    /// A graph with the two scalars that every graph has; gives `step`.
    fn begin(&mut self, span: Span) -> Option<NodeId> {
        self.elab.begin();
        let ty = Type::scalar(DType::I32);
        self.elab.input("seed", InputKind::Scalar, ty.clone());
        let step = self.elab.input("step", InputKind::Scalar, ty);
        self.elab.node_of(&step, span).ok()
    }

    /// The batch as a record of inputs.
    fn batch(&mut self, facts: &DataFacts, rows: u64) -> Value {
        let mut fields = Vec::new();
        for field in &facts.fields {
            let axes = AxisSet::of(field.axes.iter().cloned().chain([Axis::new(BATCH, rows)])).unwrap_or_default();
            fields.push((
                field.name.clone(),
                self.elab.input(&field.name, InputKind::Batch, Type::new(field.dtype, axes)),
            ));
        }
        Value::record(fields)
    }

    fn names_are_free(&mut self, values: &[(String, NodeId)], span: Span) -> Option<()> {
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

    /// `lr` of the first optimizer, `lr.1` of the second, and so on.
    fn learning_rates(&mut self, candidates: &[Candidate], n: NodeId, span: Span) -> Option<Vec<(String, NodeId)>> {
        let mut rates = Vec::new();
        for (i, candidate) in candidates.iter().enumerate() {
            let Some(rate) = self.param(&candidate.optimizer, "lr", span) else { continue };
            let value = match &rate {
                Value::Function(_) => {
                    let n = self.elab.value_of(n);
                    self.elab.call(&rate, Args::of([(n, span)]), span).ok()?
                }
                _ => rate,
            };
            let name = if i == 0 { "lr".to_owned() } else { format!("lr.{i}") };
            let rate = self.metric(&name, &value, span)?;
            rates.push((name, rate));
        }
        Some(rates)
    }

    /// A parameter of an optimizer, if it has one of the name.
    fn param(&mut self, optimizer: &Rc<Optimizer>, name: &str, span: Span) -> Option<Value> {
        // No user can write `~`, so this hides nothing.
        self.elab.define(self.root, "optimizer~", Value::Optimizer(optimizer.clone()));
        let base = Box::new(Expr { kind: ExprKind::Name("optimizer~".to_owned()), span });
        let name = ast::Name { text: name.to_owned(), span };
        let member = Expr { kind: ExprKind::Member { base, name }, span };
        let env = self.env.clone();
        self.attempt(|elab| elab.eval(&env, &member))
    }

    /// One weight: its optimizer's step, its next states, its average.
    fn update(
        &mut self,
        weight: &Owned,
        grad: NodeId,
        n: NodeId,
        average: Option<&(Value, Span)>,
        span: Span,
    ) -> Result<(), Stop> {
        let path = self.stored(weight.id).path.clone();
        let elab = &mut self.elab;
        let old = elab.stored_value(weight.id);
        let (grad, n) = (elab.value_of(grad), elab.value_of(n));
        let states: Vec<Value> = weight
            .states
            .iter()
            .map(|state| elab.input(&state_name(state, &path), InputKind::State, state.ty()))
            .collect();
        let (new, next) = elab.optimizer_step(&weight.optimizer, weight.id, [&old, &grad, &n], &states, span)?;
        elab.output_next(&path, &new, span)?;
        for (state, next) in weight.states.iter().zip(&next) {
            elab.output_next(&state_name(state, &path), next, span)?;
        }
        if let Some((average, span)) = average {
            let name = average_name(&path);
            let old = elab.input(&name, InputKind::State, elab.stored_type(weight.id));
            let next = elab.average_step(average, weight.id, [&old, &new, &n], *span)?;
            elab.output_next(&name, &next, *span)?;
        }
        Ok(())
    }

    fn init_graph(&mut self, parts: &Parts<'_>, span: Span) -> Result<Graph, Stop> {
        self.begin(span);
        // In order of declaration: a value may be made of an earlier one.
        let mut ids: Vec<StoredId> =
            parts.owned.iter().map(|weight| weight.id).chain(parts.layer_states.clone()).collect();
        ids.sort();
        let mut values = Vec::new();
        for id in ids {
            values.push((id, self.elab.init_stored(id)?));
        }
        for (id, value) in &values {
            let path = self.stored(*id).path.clone();
            self.elab.output(&path, value, span)?;
        }
        for weight in &parts.owned {
            let path = self.stored(weight.id).path.clone();
            let Some((_, value)) = values.iter().find(|(id, _)| *id == weight.id) else { return Err(Stop) };
            let states = self.elab.init_optimizer_states(&weight.optimizer, weight.id, value, span)?;
            for (state, first) in weight.states.iter().zip(&states) {
                self.elab.output(&state_name(state, &path), first, span)?;
            }
            if parts.average.is_some() {
                self.elab.output(&average_name(&path), value, span)?;
            }
        }
        Ok(self.elab.finish())
    }

    fn weights_of(&self, parts: &Parts<'_>) -> Vec<Weight> {
        let weights = parts.owned.iter().map(|weight| {
            let stored = self.stored(weight.id);
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

    fn states_of(&self, parts: &Parts<'_>) -> Vec<State> {
        let all_axes = |id: StoredId| {
            let stored = self.stored(id);
            stored.stack.iter().chain(&stored.axes).cloned().collect::<Vec<Axis>>()
        };
        let mut states = Vec::new();
        for id in &parts.layer_states {
            let name = Name::from(self.stored(*id).path.as_str());
            let dtype = self.elab.stored_type(*id).dtype;
            states.push(State { name, dtype, axes: all_axes(*id), kind: StateKind::Layer });
        }
        for weight in &parts.owned {
            for state in &weight.states {
                let name = Name::from(state_name(state, &self.stored(weight.id).path));
                let (dtype, axes) = (state.dtype, state.axes.clone());
                states.push(State { name, dtype, axes, kind: StateKind::Optimizer });
            }
        }
        for weight in parts.owned.iter().filter(|_| parts.average.is_some()) {
            let name = Name::from(average_name(&self.stored(weight.id).path));
            states.push(State { name, dtype: DType::F32, axes: all_axes(weight.id), kind: StateKind::Average });
        }
        states
    }

    /// Refuses a step that reads weights which it does not train: nothing would fill them.
    fn only_own(&mut self, graph: &Graph, parts: &Parts<'_>, span: Span) -> Option<()> {
        let own: Vec<Name> = self
            .weights_of(parts)
            .into_iter()
            .map(|weight| weight.path)
            .chain(self.states_of(parts).into_iter().map(|state| state.name))
            .collect();
        let kept = |kind: InputKind| matches!(kind, InputKind::Weight | InputKind::State);
        match graph.inputs().iter().find(|input| kept(input.kind) && !own.contains(&input.name)) {
            Some(foreign) => {
                self.foreign_weights(foreign.name.as_str(), span);
                None
            }
            None => Some(()),
        }
    }

    fn foreign_weights(&mut self, name: &str, span: Span) {
        let root = name.split('/').next().unwrap_or(name);
        self.report(
            Diagnostic::error(
                Code::E0704,
                format!("weights of `{root}`, which this block does not train, are not in this version"),
            )
            .label(span, format!("it reads `{name}`"))
            .help("an objective may use the model that it is given"),
        );
    }

    /// The objective and other functions of `(model, batch)` on one batch, not training; and the names of all values.
    pub(crate) fn measuring_graph(
        &mut self,
        trained: &Trained,
        facts: &DataFacts,
        batch: u64,
        more: &[(String, Value, Span)],
    ) -> Option<(Graph, Vec<String>)> {
        let span = trained.objective.span;
        self.set_training(None);
        let (env, model) = (self.env.clone(), trained.model.clone());
        let objective = self.elab.eval(&env, &trained.objective).ok()?;
        self.begin(span)?;
        let batch = self.batch(facts, batch);
        let measured = self.measure(&objective, &model, &batch, span)?;
        let mut values = vec![("loss".to_owned(), measured.loss)];
        values.extend(measured.metrics);
        for (name, function, span) in more {
            if values.iter().any(|(known, _)| known == name) {
                continue;
            }
            let args = Args::of([(model.clone(), *span), (batch.clone(), *span)]);
            let value = self.elab.call(function, args, *span).ok()?;
            values.push((name.clone(), self.metric(name, &value, *span)?));
        }
        for (name, value) in &values {
            self.elab.graph().output_as(name.as_str(), Role::Value, *value);
        }
        let graph = self.elab.finish();
        let graph = self.as_stored(&graph, trained)?;
        Some((graph, values.into_iter().map(|(name, _)| name).collect()))
    }

    /// The model on `ids` alone, one row, not training. `None` for models that are no language models.
    pub(crate) fn forward_graph(&mut self, trained: &Trained, facts: &DataFacts) -> Option<Graph> {
        let ids = facts.fields.iter().find(|field| field.name == "ids")?;
        let [position] = ids.axes.as_slice() else { return None };
        let span = trained.objective.span;
        self.set_training(None);
        let model = trained.model.clone();
        self.begin(span)?;
        let axes = AxisSet::of([position.clone(), Axis::new(BATCH, 1)])?;
        let ids = self.elab.input("ids", InputKind::Batch, Type::new(ids.dtype, axes));
        let logits = self.attempt(|elab| {
            let logits = elab.call(&model, Args::of([(ids, span)]), span)?;
            elab.node_of(&logits, span)
        });
        let ty = logits.map(|logits| self.elab.graph().ty(logits).clone());
        let (Some(logits), true) = (logits, ty.is_some_and(|ty| is_logits(&ty, position, facts.vocab))) else {
            // What was begun is of no use.
            self.elab.begin();
            return None;
        };
        self.elab.graph().output_as("logits", Role::Value, logits);
        let graph = self.elab.finish();
        self.as_stored(&graph, trained)
    }

    /// The same graph reading weights under the names that they are kept by: paths, or those of their averages.
    fn as_stored(&mut self, graph: &Graph, trained: &Trained) -> Option<Graph> {
        let root = format!("{}/", trained.root);
        let mut stored = Graph::new();
        let mut inputs = Vec::new();
        for input in graph.inputs() {
            let name = input.name.as_str();
            inputs.push(match (input.kind, name.strip_prefix(&root)) {
                (InputKind::Weight, Some(path)) if trained.averaged => {
                    stored.input(average_name(path), InputKind::State, input.ty.clone())
                }
                (InputKind::Weight | InputKind::State, Some(path)) => stored.input(path, input.kind, input.ty.clone()),
                (InputKind::Weight | InputKind::State, None) => {
                    self.foreign_weights(name, trained.objective.span);
                    return None;
                }
                (kind, _) => stored.input(name, kind, input.ty.clone()),
            });
        }
        let outputs = stored.inline(graph, &inputs);
        for (output, node) in graph.outputs().iter().zip(outputs) {
            stored.output_as(output.name.clone(), Role::Value, node);
        }
        Some(stored)
    }
}

/// One score for each token at each position.
fn is_logits(ty: &Type, position: &Axis, vocab: u64) -> bool {
    let mut others = ty.axes.iter().filter(|axis| **axis != *position && axis.name.as_str() != BATCH);
    let is_vocab = others.next().is_some_and(|axis| axis.size == vocab);
    ty.dtype.is_float() && ty.axes.contains(&position.name) && is_vocab && others.next().is_none()
}

/// The norm of all gradients together, and the gradients scaled so that it is at most `clip`.
fn clipped(graph: &mut Graph, grads: Vec<NodeId>, clip: Option<f64>) -> (NodeId, Vec<NodeId>) {
    let mut total: Option<NodeId> = None;
    for grad in &grads {
        let square = graph.add(Op::Mul, &[*grad, *grad]);
        let names: Vec<Name> = graph.ty(square).axes.names().cloned().collect();
        let sum = graph.sum(square, names);
        total = Some(match total {
            Some(total) => graph.add(Op::Add, &[total, sum]),
            None => sum,
        });
    }
    let total = total.unwrap_or_else(|| graph.constant(0.0, DType::F32));
    let norm = graph.add(Op::Sqrt, &[total]);
    let Some(clip) = clip else { return (norm, grads) };
    // limit / max(norm + 1e-6, limit) = min(1, limit / (norm + 1e-6)), as everybody clips.
    let limit = graph.constant(clip, DType::F32);
    let tiny = graph.constant(1e-6, DType::F32);
    let length = graph.add(Op::Add, &[norm, tiny]);
    let length = graph.add(Op::Max, &[length, limit]);
    let scale = graph.add(Op::Div, &[limit, length]);
    (norm, grads.into_iter().map(|grad| graph.add(Op::Mul, &[grad, scale])).collect())
}

/// `n`, as optimizers and schedules see it: a float, 1 at the first step.
fn count_from_one(graph: &mut Graph, step: NodeId) -> NodeId {
    let step = graph.cast(step, DType::F32);
    let one = graph.constant(1.0, DType::F32);
    graph.add(Op::Add, &[step, one])
}

fn state_name(state: &OptimizerState, path: &str) -> String {
    format!("{}/{path}", state.name)
}

fn average_name(path: &str) -> String {
    format!("average/{path}")
}
