//! The graphs that change nothing: an objective and metrics on a batch, the model alone; and what they read of other
//! stages.

use mdl_graph::{Axis, AxisSet, Graph, InputKind, Name, NodeId, Role, Type};

use crate::check::{Args, Stored, StoredId, StoredKind, Value};
use crate::decode::decode;
use crate::diag::{Code, Diagnostic};
use crate::spec::{DataFacts, Read};
use crate::syntax::ast::Span;

use super::context::{Context, Trained};
use super::read::Compute;
use super::step::{BATCH, average_name, read_as};

impl Context<'_> {
    /// The objective and other functions of `(model, batch)` on one batch, not training; and the names of all values.
    pub(crate) fn measuring_graph(
        &mut self,
        trained: &Trained,
        facts: &DataFacts,
        batch: u64,
        more: &[(String, Value, Span)],
    ) -> Option<(Graph, Vec<String>)> {
        let span = trained.objective_expr.span;
        self.set_training(None);
        let before = self.elab.set_rebuilt(Some(trained.rebuilt.clone()));
        let measured = self.measured_values(trained, facts, batch, more, span);
        self.elab.set_rebuilt(before);
        let values = measured?;
        for (name, value) in &values {
            self.elab.graph().output_as(name.as_str(), Role::Value, *value);
        }
        let graph = self.elab.finish();
        let graph = as_kept(&graph, trained);
        Some((graph, values.into_iter().map(|(name, _)| name).collect()))
    }

    fn measured_values(
        &mut self,
        trained: &Trained,
        facts: &DataFacts,
        batch: u64,
        more: &[(String, Value, Span)],
        span: Span,
    ) -> Option<Vec<(String, NodeId)>> {
        let model = trained.model.clone();
        self.begin(span)?;
        let batch = self.batch(facts, batch);
        let measured = self.measure(&trained.objective, &model, &batch, span)?;
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
        Some(values)
    }

    /// The model on `ids` alone, one row, not training. `None` for models that are no language models.
    pub(crate) fn forward_graph(&mut self, trained: &Trained, facts: &DataFacts) -> Option<Graph> {
        let ids = facts.fields.iter().find(|field| field.name == "ids")?;
        let [position] = ids.axes.as_slice() else { return None };
        let span = trained.objective_expr.span;
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
        if let Some(own) = ty.as_ref().and_then(|ty| ty.axes.iter().find(|axis| axis.name.as_str() == "vocab"))
            && own.size < facts.vocab
        {
            let message = format!("the tokenizer has {} ids, and the model knows {}", facts.vocab, own.size);
            self.report(
                Diagnostic::error(Code::E0512, message)
                    .label(span, "some ids have no row in the model's tables")
                    .help("take the tokenizer of the model, or build the model for the data: `vocab: plays.vocab`"),
            );
        }
        let (Some(logits), true) = (logits, ty.is_some_and(|ty| is_logits(&ty, position, facts.vocab))) else {
            // What was begun is of no use.
            self.elab.begin();
            return None;
        };
        self.elab.graph().output_as("logits", Role::Value, logits);
        let graph = self.elab.finish();
        Some(as_kept(&graph, trained))
    }

    /// Whether samples can be written with a model, a position after the other.
    pub(crate) fn is_decoded(&mut self, forward: &Graph, span: Span) -> Option<()> {
        let ids = forward.inputs().iter().find(|input| input.name.as_str() == "ids")?;
        let axis = ids.ty.axes.iter().find(|axis| axis.name.as_str() != BATCH)?.clone();
        let error = decode(forward, &axis, 1).err();
        let Some(error) = error else { return Some(()) };
        let message = format!("the model has no decoder along `{}`: {}", axis.name, error.message);
        self.report(Diagnostic::error(Code::E0223, message).label(error.span, "here").label(span, "sampled here"));
        None
    }

    /// What a graph reads of other stages, each tensor once. Weights of a model that no stage trains are a mistake: nothing
    /// would fill them.
    pub(super) fn reads_of(&mut self, graph: &Graph, own: &[&Name], span: Span, reads: &mut Vec<Read>) -> Option<()> {
        for input in graph.inputs() {
            let is_kept = matches!(input.kind, InputKind::Weight | InputKind::State);
            if !is_kept || own.contains(&&input.name) || reads.iter().any(|read| read.input == input.name) {
                continue;
            }
            let name = input.name.as_str();
            let (root, path) = name.split_once(':').unwrap_or(("", name));
            let is_known = self.known(root).is_some();
            // Without a root, what belongs to this stage and is not trained.
            let is_it = |id: StoredId, stored: &Stored| match root {
                "" => stored.path == path && self.elab.stored_name(id) == path,
                root => stored.root == root && stored.path == path,
            };
            let stored = self.elab.stored().find(|(id, stored)| is_it(*id, stored)).map(|(_, stored)| stored);
            let origin = match stored {
                Some(stored) if is_known => Some(self.kept_at(root, path, stored.kind == StoredKind::Weight)),
                Some(stored) => stored.origin.as_deref().cloned(),
                None => None,
            };
            let (Some(origin), Some(stored)) = (origin, stored) else {
                self.foreign_weights(root, path, span);
                return None;
            };
            reads.push(read_as(name, origin, stored));
        }
        Some(())
    }

    fn foreign_weights(&mut self, root: &str, path: &str, span: Span) {
        self.report(
            Diagnostic::error(Code::E0317, format!("the weights of `{root}` are used here, and no stage trains them"))
                .label(span, format!("it reads `{path}` of `{root}`"))
                .help(
                    "use the model that the objective is given, or name the `train` block that trained the other one",
                ),
        );
    }
}

/// The same graph reading weights under the names that they are kept by: paths, or those of their averages.
fn as_kept(graph: &Graph, trained: &Trained) -> Graph {
    let root = format!("{}:", trained.block);
    let mut kept = Graph::new();
    let mut inputs = Vec::new();
    for input in graph.inputs() {
        let name = input.name.as_str();
        inputs.push(match (input.kind, name.strip_prefix(&root)) {
            (InputKind::Weight, Some(path)) if trained.averaged && !trained.frozen.contains_key(path) => {
                kept.input(average_name(path), InputKind::State, input.ty.clone())
            }
            (InputKind::Weight | InputKind::State, Some(path)) => kept.input(path, input.kind, input.ty.clone()),
            (kind, _) => kept.input(name, kind, input.ty.clone()),
        });
    }
    let outputs = kept.inline(graph, &inputs);
    for (output, node) in graph.outputs().iter().zip(outputs) {
        kept.output_as(output.name.clone(), Role::Value, node);
    }
    kept
}

/// One score for each token at each position.
fn is_logits(ty: &Type, position: &Axis, vocab: u64) -> bool {
    let mut others = ty.axes.iter().filter(|axis| **axis != *position && axis.name.as_str() != BATCH);
    // Published tables are filled up to a round size.
    let is_vocab = others.next().is_some_and(|axis| axis.size >= vocab);
    ty.dtype.is_float() && ty.axes.contains(&position.name) && is_vocab && others.next().is_none()
}
