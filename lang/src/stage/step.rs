//! The graphs of a training stage: first values and one step. Measuring is in `measuring.rs`.
//!
//! A step is composed here of what the recipe gives: objective, gradients, clipping, one optimizer step for each weight,
//! the average. What each of these computes is written in `.mdl`; only the plumbing between them is Rust.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, NodeId, Op, Phase, Role, Scalar, Type};

use crate::check::{Args, Elaborator, Eval, Optimizer, OptimizerState, Stop, Stored, StoredId, StoredKind, Value};
use crate::diag::{Code, Diagnostic};
use crate::spec::{DataFacts, Kept, Origin, Read, State, StateKind, Weight};
use crate::syntax::ast::{self, Expr, ExprKind, Span};

use super::adapt::Frozen;
use super::context::{Context, Trained};
use super::objective::Measured;
use super::optimize::{Candidate, Run};
use super::parts::{Followed, OBJECTIVE, Part};
use super::read::Compute;
use super::schema::MANY;

/// The axis that every field of a batch has.
pub(super) const BATCH: &str = "batch";

/// Values of a step that no metric may be named after: what every line of `metrics.jsonl` says.
const RESERVED: [&str; 7] = ["loss", "lr", "grad_norm", "step", "tokens", "step_ms", "peak_bytes"];

pub(crate) struct TrainingGraphs {
    pub(crate) weights: Vec<Weight>,
    pub(crate) states: Vec<State>,
    /// Of other stages, what the graphs read.
    pub(crate) reads: Vec<Read>,
    pub(crate) frozen: Frozen,
    /// Frozen maps that other stages have trained.
    pub(crate) maps: Vec<Name>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) init: Graph,
    pub(crate) step: Graph,
}

impl TrainingGraphs {
    /// The names of what the stage keeps.
    pub(crate) fn own(&self) -> impl Iterator<Item = &Name> {
        self.weights.iter().map(|weight| &weight.path).chain(self.states.iter().map(|state| &state.name))
    }
}

/// A weight with what the step does to it.
struct Owned {
    id: StoredId,
    shares: Vec<Share>,
}

/// Copies of a weight that one optimizer takes: mostly all of them.
struct Share {
    optimizer: Rc<Optimizer>,
    cut: Option<(Axis, u64, u64)>,
    /// The axes of the copies.
    stack: Vec<Axis>,
    states: Vec<OptimizerState>,
}

/// What a step is made of, besides the objective.
struct Parts<'p> {
    owned: Vec<Owned>,
    /// Weights that stay as they are, and that no other stage keeps.
    fixed: Vec<StoredId>,
    layer_states: Vec<StoredId>,
    candidates: Vec<Candidate>,
    average: Option<(Value, Span)>,
    clip: Option<f64>,
    facts: &'p DataFacts,
    /// The fields of a record of models.
    fields: Vec<Part>,
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
        let graphs = self.graphs_of(trained, facts, optimizer, average, clip, span);
        self.elab.set_rebuilt(None);
        graphs
    }

    fn graphs_of(
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
        let model = self.elab.rebuild(&root, &env, &trained.builder).ok()?;
        let objective = self.elab.beside(OBJECTIVE, &env, &trained.objective_expr).ok()?;
        let mut all = self.elab.stored_of(&model);
        // An objective may be a layer: what it built trains along.
        all.extend(self.elab.stored_of(&objective).into_iter().filter(|id| self.stored(*id).root == root));
        all.sort();
        all.dedup();
        let (weights, layer_states): (Vec<StoredId>, Vec<StoredId>) =
            all.into_iter().partition(|id| self.stored(*id).kind == StoredKind::Weight);
        if weights.is_empty() {
            let message = "the model has no weights, so there is nothing to train";
            self.report(Diagnostic::error(Code::E0317, message).label(span, "in this block"));
            return None;
        }
        self.weights_fit(weights.iter().chain(&layer_states), span)?;
        let of_model = self.elab.stored_of(&model);
        let still = self.frozen(trained, &weights, |id| of_model.contains(&id), span)?;
        let weights: Vec<StoredId> = weights.into_iter().filter(|id| !still.contains(id)).collect();
        let origins: Vec<Option<Origin>> = still.iter().map(|id| self.origin(*id)).collect();
        let fixed = still.iter().zip(&origins).filter(|(_, origin)| origin.is_none()).map(|(id, _)| *id).collect();
        let fields = self.parts(&model);
        let owners = self.owners(optimizer, &weights, &fields);
        let average = match average {
            Some(expr) => Some((self.average(expr)?, expr.span)),
            None => None,
        };
        let (candidates, owners) = owners?;
        let mut owned = Vec::new();
        for (id, runs) in weights.into_iter().zip(owners) {
            let mut shares = Vec::new();
            for Run { optimizer, cut } in runs {
                let optimizer = candidates[optimizer].optimizer.clone();
                let mut stack = self.stored(id).stack.clone();
                if let Some((axis, start, end)) = &cut {
                    stack.iter_mut().filter(|own| *own == axis).for_each(|own| own.size = end - start);
                }
                let states = self.elab.optimizer_states(&optimizer, id, &stack).ok()?;
                shares.push(Share { optimizer, cut, stack, states });
            }
            owned.push(Owned { id, shares });
        }
        let parts = Parts { owned, fixed, layer_states, candidates, average, clip, facts, fields };
        let step = self.step_graph(trained, &model, &objective, &parts)?;
        let init = self.init_graph(&parts, span).ok()?;
        let (weights, states) = (self.weights_of(&parts), self.states_of(&parts));
        let (mut reads, mut frozen, mut maps) = (Vec::new(), Frozen::new(), Vec::new());
        for (id, origin) in still.into_iter().zip(origins) {
            let stored = self.stored(id);
            if let Some(origin) = &origin {
                reads.push(read_as(&stored.path, origin.clone(), stored));
                if stored.is_map() {
                    maps.push(Name::from(stored.path.as_str()));
                }
            }
            frozen.insert(stored.path.clone(), origin);
        }
        let kept = self.kept_states(&parts);
        let graphs = TrainingGraphs { weights, states, reads: Vec::new(), frozen, maps, kept, init, step };
        let own: Vec<&Name> = graphs.own().collect();
        for graph in [&graphs.init, &graphs.step] {
            self.reads_of(graph, &own, trained.objective_expr.span, &mut reads)?;
        }
        Some(TrainingGraphs { reads, ..graphs })
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
        let span = trained.objective_expr.span;
        let step = self.begin(span)?;
        let batch = self.batch(parts.facts, trained.batch);
        let mut measured = self.measure(objective, model, &batch, span)?;
        let ids: Vec<StoredId> = parts.owned.iter().map(|weight| weight.id).collect();
        let followed = self.losses(&mut measured, &ids, &parts.fields, span)?;
        let Measured { loss, metrics: values, .. } = measured;
        self.names_are_free(&values, span)?;
        let nexts = self.elab.take_next();
        let mut gradients = Vec::new();
        for Followed { loss, weights } in &followed {
            let total = self.elab.value_of(*loss);
            let ids: Vec<StoredId> = weights.iter().map(|place| ids[*place]).collect();
            let grads = self.elab.grads(&total, &ids, span).ok()?;
            let grads = grads.iter().map(|grad| self.elab.node_of(grad, span)).collect::<Eval<Vec<NodeId>>>().ok()?;
            gradients.push(grads);
        }

        self.elab.set_phase(Phase::Update);
        let graph = self.elab.graph();
        graph.set_here(Phase::Update, span, None);
        let (norm, gradients) = clipped(graph, gradients, parts.clip);
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
        let mut grads: Vec<(usize, NodeId)> = Vec::new();
        for (part, own) in followed.iter().zip(gradients) {
            grads.extend(part.weights.iter().copied().zip(own));
        }
        grads.sort();
        for (weight, (_, grad)) in parts.owned.iter().zip(grads) {
            self.update(weight, grad, n, parts.average.as_ref(), span).ok()?;
        }
        for (id, value) in nexts.iter().filter(|(id, _)| parts.layer_states.contains(id)) {
            let path = self.stored(*id).path.clone();
            // A state that is written and never read has no input yet.
            self.elab.stored_value(*id);
            self.elab.output_next(&path, value, span).ok()?;
        }
        Some(self.elab.finish())
    }

    /// A graph with the two scalars that every graph has; gives `step`.
    pub(super) fn begin(&mut self, span: Span) -> Option<NodeId> {
        self.elab.begin();
        let ty = Type::scalar(DType::I32);
        self.elab.input("seed", InputKind::Scalar, ty.clone());
        let step = self.elab.input("step", InputKind::Scalar, ty);
        self.elab.node_of(&step, span).ok()
    }

    /// The batch as a record of inputs.
    pub(super) fn batch(&mut self, facts: &DataFacts, rows: u64) -> Value {
        let mut fields = Vec::new();
        for field in &facts.fields {
            let axes = AxisSet::of(field.axes.iter().cloned().chain([Axis::new(BATCH, rows)])).unwrap_or_default();
            let bound = match field.name.as_str() {
                "ids" | "next" => facts.vocab,
                "label" => facts.classes,
                _ => 0,
            };
            if bound > 0 {
                self.elab.set_bound(&field.name, bound);
            }
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
                    self.elab.call(&rate, Args::of([(n, span)]), candidate.optimizer.made).ok()?
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
        let member = Expr { kind: ExprKind::Member { base, name: name.clone() }, span };
        let env = self.env.clone();
        if let Some(value) = self.attempt(|elab| elab.eval(&env, &member)) {
            return Some(value);
        }
        // `averaged(adamw(lr: 1e-3))`: that of the optimizer inside.
        Elaborator::inner_optimizers(optimizer).iter().find_map(|(_, inner)| self.param(inner, &name.text, span))
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
        let n = elab.value_of(n);
        let mut new: Option<NodeId> = None;
        for share in &weight.shares {
            let (w, g) = (elab.node_of(&old, span)?, grad);
            let (w, g) = (share.cut_out(elab.graph(), w), share.cut_out(elab.graph(), g));
            let (w, g) = (elab.value_of(w), elab.value_of(g));
            let states: Vec<Value> = share
                .states
                .iter()
                .map(|state| elab.input(&state_name(state, &path, share), InputKind::State, state.ty()))
                .collect();
            let step = elab.optimizer_step(&share.optimizer, weight.id, &share.stack, [&w, &g, &n], &states, span);
            let (own, next) = step?;
            for (state, next) in share.states.iter().zip(&next) {
                elab.output_next(&state_name(state, &path, share), next, span)?;
            }
            let own = elab.node_of(&own, span)?;
            let own = share.put_back(elab.graph(), own);
            new = Some(match new {
                Some(new) => elab.graph().add(Op::Add, &[new, own]),
                None => own,
            });
        }
        let Some(new) = new else { return Err(Stop) };
        let new = elab.value_of(new);
        elab.output_next(&path, &new, span)?;
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
        let mut ids: Vec<StoredId> = parts
            .owned
            .iter()
            .map(|weight| weight.id)
            .chain(parts.fixed.clone())
            .chain(parts.layer_states.clone())
            .collect();
        ids.sort();
        let mut values = Vec::new();
        for id in ids {
            let first = match self.origin(id) {
                Some(_) => self.elab.stored_value(id),
                None => self.elab.init_stored(id)?,
            };
            values.push((id, first));
        }
        for (id, value) in &values {
            if self.origin(*id).is_some() {
                continue;
            }
            let path = self.stored(*id).path.clone();
            self.elab.output(&path, value, span)?;
        }
        for weight in &parts.owned {
            let path = self.stored(weight.id).path.clone();
            let Some((_, value)) = values.iter().find(|(id, _)| *id == weight.id) else { return Err(Stop) };
            let value = self.elab.node_of(value, span)?;
            for share in &weight.shares {
                let own = share.cut_out(self.elab.graph(), value);
                let own = self.elab.value_of(own);
                let states = self.elab.init_optimizer_states(&share.optimizer, weight.id, &share.stack, &own, span)?;
                for (state, first) in share.states.iter().zip(&states) {
                    self.elab.output(&state_name(state, &path, share), first, span)?;
                }
            }
            let value = &self.elab.value_of(value);
            if parts.average.is_some() {
                self.elab.output(&average_name(&path), value, span)?;
            }
        }
        Ok(self.elab.finish())
    }

    fn weights_of(&self, parts: &Parts<'_>) -> Vec<Weight> {
        let mut ids: Vec<StoredId> = parts.owned.iter().map(|weight| weight.id).chain(parts.fixed.clone()).collect();
        ids.sort();
        let weights = ids.into_iter().map(|id| {
            let stored = self.stored(id);
            Weight {
                frozen: parts.fixed.contains(&id),
                path: Name::from(stored.path.as_str()),
                stacked: stored.stack.clone(),
                axes: stored.axes.clone(),
                from: stored.from.clone(),
                to: stored.to.clone(),
                origin: self.origin(id),
            }
        });
        weights.collect()
    }

    /// The states that optimizers keep in fewer bits.
    fn kept_states(&self, parts: &Parts<'_>) -> Vec<Kept> {
        let mut kept = Vec::new();
        for weight in &parts.owned {
            let path = &self.stored(weight.id).path;
            for share in &weight.shares {
                for state in &share.states {
                    let input = Name::from(state_name(state, path, share));
                    kept.extend(state.stored.map(|dtype| Kept { input, dtype }));
                }
            }
        }
        kept
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
            states.push(State { name, dtype, axes: all_axes(*id), kind: StateKind::Layer, origin: self.origin(*id) });
        }
        for weight in &parts.owned {
            for share in &weight.shares {
                for state in &share.states {
                    let name = Name::from(state_name(state, &self.stored(weight.id).path, share));
                    let (dtype, axes) = (state.dtype, state.axes.clone());
                    states.push(State { name, dtype, axes, kind: StateKind::Optimizer, origin: None });
                }
            }
        }
        for weight in parts.owned.iter().filter(|_| parts.average.is_some()) {
            let name = Name::from(average_name(&self.stored(weight.id).path));
            states.push(State {
                name,
                dtype: DType::F32,
                axes: all_axes(weight.id),
                kind: StateKind::Average,
                origin: None,
            });
        }
        states
    }
}

/// A tensor of another stage, as graphs call it.
pub(super) fn read_as(input: &str, origin: Origin, stored: &Stored) -> Read {
    Read {
        input: Name::from(input),
        dtype: stored.dtype(),
        axes: stored.stack.iter().chain(&stored.axes).cloned().collect(),
        origin,
    }
}

/// The norm of all gradients together, and those of each loss scaled so that their norm is at most `clip`.
fn clipped(graph: &mut Graph, gradients: Vec<Vec<NodeId>>, clip: Option<f64>) -> (NodeId, Vec<Vec<NodeId>>) {
    let squares: Vec<NodeId> = gradients.iter().map(|grads| sum_of_squares(graph, grads)).collect();
    let total = squares.iter().copied().reduce(|a, b| graph.add(Op::Add, &[a, b]));
    let total = total.unwrap_or_else(|| graph.constant(0.0, DType::F32));
    let norm = graph.add(Op::Sqrt, &[total]);
    let Some(clip) = clip else { return (norm, gradients) };
    let mut out = Vec::new();
    for (grads, square) in gradients.into_iter().zip(&squares) {
        let own = if squares.len() == 1 { norm } else { graph.add(Op::Sqrt, &[*square]) };
        // limit / max(norm + 1e-6, limit) = min(1, limit / (norm + 1e-6)), as everybody clips.
        let limit = graph.constant(clip, DType::F32);
        let tiny = graph.constant(1e-6, DType::F32);
        let length = graph.add(Op::Add, &[own, tiny]);
        let length = graph.add(Op::Max, &[length, limit]);
        let scale = graph.add(Op::Div, &[limit, length]);
        out.push(grads.into_iter().map(|grad| graph.add(Op::Mul, &[grad, scale])).collect());
    }
    (norm, out)
}

fn sum_of_squares(graph: &mut Graph, grads: &[NodeId]) -> NodeId {
    let mut total: Option<NodeId> = None;
    for grad in grads {
        let square = graph.add(Op::Mul, &[*grad, *grad]);
        let names: Vec<Name> = graph.ty(square).axes.names().cloned().collect();
        let sum = graph.sum(square, names);
        total = Some(match total {
            Some(total) => graph.add(Op::Add, &[total, sum]),
            None => sum,
        });
    }
    total.unwrap_or_else(|| graph.constant(0.0, DType::F32))
}

/// `n`, as optimizers and schedules see it: a float, 1 at the first step.
fn count_from_one(graph: &mut Graph, step: NodeId) -> NodeId {
    let step = graph.cast(step, DType::F32);
    let one = graph.constant(1.0, DType::F32);
    graph.add(Op::Add, &[step, one])
}

/// `m/blocks.attn.q.w`, and `m/blocks.attn.q.w[0..4]` where other optimizers take the other copies.
fn state_name(state: &OptimizerState, path: &str, share: &Share) -> String {
    match &share.cut {
        Some((_, start, end)) => format!("{}/{path}[{start}..{end}]", state.name),
        None => format!("{}/{path}", state.name),
    }
}

impl Share {
    /// The copies that this optimizer takes.
    fn cut_out(&self, graph: &mut Graph, whole: NodeId) -> NodeId {
        match &self.cut {
            Some((axis, start, end)) => {
                let (start, len) = (*start, end - start);
                graph.add(Op::Slice { axis: axis.name.clone(), start, len, step: 1 }, &[whole])
            }
            None => whole,
        }
    }

    /// Those copies at their place, zeros around them.
    fn put_back(&self, graph: &mut Graph, own: NodeId) -> NodeId {
        match &self.cut {
            Some((axis, start, end)) => {
                let (before, after, fill) = (*start, axis.size - end, Scalar::Float(0.0));
                graph.add(Op::Pad { axis: axis.name.clone(), before, after, fill }, &[own])
            }
            None => own,
        }
    }
}

pub(super) fn average_name(path: &str) -> String {
    format!("average/{path}")
}
