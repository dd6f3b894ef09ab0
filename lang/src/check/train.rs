//! What the composition of a training step asks of the evaluator: graphs, gradients, first values. Optimizers are in
//! `optimizers.rs`.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Name, NodeId, Op, Phase, Role, Type};

use super::Elaborator;
use super::graphs::Level;
use super::value::{Env, Eval, Frame, Stop, StoredId, StoredKind, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{self, ArgKind, Span};

impl Elaborator<'_> {
    // ---- graphs ----

    /// Starts a graph; tensors of earlier ones must not be used any more.
    pub fn begin(&mut self) {
        self.n_levels += 1;
        self.levels = vec![Level::new(self.n_levels, None)];
        self.inputs.clear();
        self.bounds.clear();
        self.next.clear();
        self.losses.clear();
        self.watches.clear();
        self.found.clear();
        self.places.clear();
        self.overrides.clear();
        self.scopes.clear();
        self.hidden.clear();
        self.phase = Phase::Forward;
    }

    /// The roots that train: `training` is true inside of them, and weights of the first are named without it.
    pub fn set_trained<'n>(&mut self, roots: impl IntoIterator<Item = &'n str>) {
        self.trained = roots.into_iter().map(str::to_string).collect();
    }

    /// What `training` means outside of models: in objectives and helpers.
    pub fn set_training(&mut self, training: bool) {
        for file in &mut self.files {
            let frame = Frame::clone_of(&file.env.frame, training);
            file.env = Env { vars: None, frame: Rc::new(frame) };
        }
    }

    /// The values of a field of the batch are below this number.
    pub fn set_bound(&mut self, field: &str, bound: u64) {
        self.bounds.insert(field.to_string(), bound);
    }

    pub fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// An input of the graph, one for each name.
    pub fn input(&mut self, name: &str, kind: InputKind, ty: Type) -> Value {
        Value::Tensor(self.outer_input(name, kind, ty))
    }

    /// The node of a tensor or a number in the graph, for whoever goes on with it.
    pub fn node_of(&mut self, value: &Value, span: Span) -> Eval<NodeId> {
        let operand = self.operand(value, span, "a result")?;
        let tensor = self.tensor_of(&operand, span)?;
        Ok(self.node(&tensor))
    }

    /// A node of the graph under construction as a value.
    pub fn value_of(&self, node: NodeId) -> Value {
        Value::Tensor(self.tensor(node))
    }

    /// The graph under construction, for what is simpler to add by hand.
    pub fn graph(&mut self) -> &mut Graph {
        &mut self.top().graph
    }

    pub fn type_of(&self, value: &Value) -> Option<Type> {
        match value {
            Value::Tensor(tensor) => Some(self.ty(tensor).clone()),
            _ => None,
        }
    }

    pub fn output(&mut self, name: &str, value: &Value, span: Span) -> Eval<()> {
        let node = self.node_of(value, span)?;
        self.levels[0].graph.output_as(name, Role::Value, node);
        Ok(())
    }

    /// The next value of an input of this name.
    pub fn output_next(&mut self, name: &str, value: &Value, span: Span) -> Eval<()> {
        let node = self.node_of(value, span)?;
        let graph = &mut self.levels[0].graph;
        let Some(at) = graph.inputs().iter().position(|input| input.name.as_str() == name) else {
            mdl_graph::bug!("the graph has no input `{name}` that could have a next value")
        };
        graph.output_as(name, Role::Next(InputId(at as u32)), node);
        Ok(())
    }

    /// The graph that was built: what no output needs is dropped, every rule checked.
    pub fn finish(&mut self) -> Graph {
        let graph = std::mem::take(&mut self.levels[0].graph);
        let graph = graph.rebuild(|to, id, args| to.copy(&graph, id, args));
        if let Err(error) = graph.verify() {
            mdl_graph::bug!("the checker made a graph that breaks its rules: {error}\n{graph}");
        }
        self.begin();
        graph
    }

    /// The losses that layers declared since `begin`; those of one name are added up.
    pub fn take_losses(&mut self) -> Eval<Vec<(String, Value)>> {
        self.take_losses_of(None)
    }

    /// As `take_losses`, of the layers under a step of the model only.
    pub fn take_losses_of(&mut self, part: Option<&str>) -> Eval<Vec<(String, Value)>> {
        let is_of =
            |loss: &super::states::Loss| part.is_none_or(|part| loss.path.as_str().split('.').next() == Some(part));
        let (taken, left) = std::mem::take(&mut self.losses).into_iter().partition(is_of);
        self.losses = left;
        let taken: Vec<super::states::Loss> = taken;
        let mut out: Vec<(String, Tensor)> = Vec::new();
        for loss in taken {
            match out.iter().position(|(name, _)| *name == loss.name) {
                Some(at) => out[at].1 = self.emit(Op::Add, &[&out[at].1.clone(), &loss.tensor], loss.span)?,
                None => out.push((loss.name, loss.tensor)),
            }
        }
        Ok(out.into_iter().map(|(name, tensor)| (name, Value::Tensor(tensor))).collect())
    }

    /// The new values of layer states since `begin`, under the names of their inputs' axes.
    pub fn take_next(&mut self) -> Vec<(StoredId, Value)> {
        std::mem::take(&mut self.next).into_iter().map(|(id, tensor)| (id, Value::Tensor(tensor))).collect()
    }

    /// The input of a weight or state, in graph names.
    pub fn stored_value(&mut self, id: StoredId) -> Value {
        Value::Tensor(self.stored_input(id))
    }

    /// A function of a model by its name.
    pub fn function_of(&self, model: &Value, name: &str) -> Option<Rc<ast::FnDef>> {
        match model {
            Value::Layer(layer) => super::layer::method_of(layer, name),
            _ => None,
        }
    }

    /// The gradients of a number with respect to stored weights.
    pub fn grads(&mut self, loss: &Value, ids: &[StoredId], span: Span) -> Eval<Vec<Value>> {
        let operand = self.operand(loss, span, "a loss")?;
        let loss = self.as_tensor(&operand, DType::F32, span)?;
        let weights: Vec<Tensor> = ids.iter().map(|id| self.stored_input(*id)).collect();
        let grads = self.gradient(&loss, &weights, span)?;
        Ok(grads.into_iter().map(Value::Tensor).collect())
    }

    fn gradient(&mut self, y: &Tensor, xs: &[Tensor], span: Span) -> Eval<Vec<Tensor>> {
        let mut args = vec![y];
        args.extend(xs);
        let marker = self.emit(Op::Grad, &args, span)?;
        let mut out = Vec::with_capacity(xs.len());
        for k in 0..xs.len() {
            out.push(self.emit(Op::Get(k as u32), &[&marker], span)?);
        }
        Ok(out)
    }

    /// `grad(y, of: x)`: `of` first, so that inside of `map` each position gets weights, and gradients, of its own.
    pub(super) fn eval_grad(&mut self, env: &Env, args: &[ast::Arg], span: Span) -> Eval<Value> {
        let (mut y, mut of) = (None, None);
        for arg in args {
            match &arg.kind {
                ArgKind::Positional(expr) if y.is_none() => y = Some(expr),
                ArgKind::Named { name, value } if name.text == "of" => of = Some(value),
                _ => {
                    let help = "`grad(y, of: x)`: of one number, with respect to a tensor or a model";
                    return Err(self.error_help(
                        Code::E0208,
                        "`grad` takes `y` and `of:`",
                        arg.span,
                        "not one of them",
                        help,
                    ));
                }
            }
        }
        let (Some(y), Some(of)) = (y, of) else {
            let help = "`grad(y, of: x)`: of one number, with respect to a tensor or a model";
            return Err(self.error_help(Code::E0208, "`grad` takes `y` and `of:`", span, "one is missing", help));
        };
        let target = self.eval(env, of)?;
        let hidden = AxisSet::of(self.hidden.iter().cloned()).unwrap_or_default();
        match &target {
            Value::Layer(_) | Value::List(_) => {
                let ids: Vec<StoredId> = self
                    .stored_of(&target)
                    .into_iter()
                    .filter(|id| self.stored[id.0 as usize].kind == StoredKind::Weight)
                    .collect();
                let before = self.overrides.clone();
                let mut weights = Vec::with_capacity(ids.len());
                for id in &ids {
                    let input = self.stored_input(*id);
                    let weight = self.expand(&input, &hidden, span)?;
                    self.overrides.insert(*id, weight.clone());
                    weights.push(weight);
                }
                let value = self.eval(env, y);
                self.overrides = before;
                let y = self.loss_of(&value?, y.span)?;
                let grads = self.gradient(&y, &weights, span)?;
                Ok(Value::record(
                    ids.iter()
                        .zip(grads)
                        .map(|(id, grad)| (self.stored[id.0 as usize].path.clone(), Value::Tensor(grad)))
                        .collect::<Vec<_>>(),
                ))
            }
            Value::Tensor(x) => {
                let value = self.eval(env, y)?;
                let y = self.loss_of(&value, y.span)?;
                if !self.dtype(x).is_float() {
                    let message = format!("the gradient of {} is zero everywhere", self.dtype(x));
                    return Err(self.error(Code::E0207, message, of.span, "only floats have gradients"));
                }
                let grads = self.gradient(&y, std::slice::from_ref(x), span)?;
                grads.into_iter().next().map(Value::Tensor).ok_or(Stop)
            }
            other => {
                let message = format!("`grad` is of a tensor or a model, not of {}", other.kind());
                Err(self.error(Code::E0209, message, of.span, format!("this is {}", other.kind())))
            }
        }
    }

    /// What is differentiated: one float for each hidden position. Of a record, its `loss`.
    fn loss_of(&mut self, value: &Value, span: Span) -> Eval<Tensor> {
        let value = value.field("loss").unwrap_or(value).clone();
        let operand = self.operand(&value, span, "`grad`")?;
        let y = self.tensor_of(&operand, span)?;
        if !self.dtype(&y).is_float() {
            return Err(self.error(
                Code::E0207,
                format!("`grad` of {}", self.dtype(&y)),
                span,
                "only floats have gradients",
            ));
        }
        if let Some(axis) = self.visible(&y).first() {
            let message =
                format!("`grad` is of one number, and this has the axis `{}`", super::scope::plain(&axis.name));
            return Err(self.error_help(Code::E0206, message, span, "not a number", "take its sum or mean first"));
        }
        Ok(y)
    }

    // ---- first values ----

    /// The first value of a weight or state, in graph names. Ids in order of declaration: one may use an earlier one's.
    pub fn init_stored(&mut self, id: StoredId) -> Eval<Value> {
        let stored = &self.stored[id.0 as usize];
        let (stack, axes, local) = (stored.stack.clone(), stored.axes.clone(), stored.local.clone());
        let (n_from, env, init, dtype) = (stored.from.len(), stored.env.clone(), stored.init.clone(), stored.dtype);
        // Of the path alone: what else there is, and what the stage is called, changes nothing.
        let place = format!("init {}", stored.path);
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack);
        let place_before = std::mem::replace(&mut self.place_of, place);
        let result = self.first_value(&env, &init, &axes, &local, n_from, dtype);
        self.place_of = place_before;
        let hidden = AxisSet::of(self.hidden.split_off(n_hidden)).unwrap_or_default();
        let tensor = self.expand(&result?, &hidden, init.span)?;
        self.overrides.insert(id, tensor.clone());
        Ok(Value::Tensor(tensor))
    }

    /// As `init_stored`, of a weight or state that begins as another stage has left it: an input of that name.
    pub fn begin_stored(&mut self, id: StoredId, input: &str) -> Value {
        let kind = match self.stored[id.0 as usize].kind {
            StoredKind::Weight => InputKind::Weight,
            StoredKind::State => InputKind::State,
        };
        let tensor = self.outer_input(input, kind, self.stored_type(id));
        self.overrides.insert(id, tensor.clone());
        Value::Tensor(tensor)
    }

    fn first_value(
        &mut self,
        env: &Env,
        init: &ast::Expr,
        axes: &[Axis],
        local: &[Name],
        n_from: usize,
        dtype: DType,
    ) -> Eval<Tensor> {
        let value = self.eval(env, init)?;
        let own: Vec<Axis> = axes.iter().zip(local).map(|(axis, name)| Axis::new(name.clone(), axis.size)).collect();
        let (from, to) = own.split_at(n_from);
        let tensor = self.fill_maker(&value, from, to, dtype, init.span)?;
        let pairs: Vec<(Name, Name)> = local.iter().cloned().zip(axes.iter().map(|axis| axis.name.clone())).collect();
        self.rename(&tensor, &pairs, init.span)
    }
}

impl Frame {
    fn clone_of(frame: &Frame, training: bool) -> Frame {
        Frame {
            file: frame.file,
            label: frame.label.clone(),
            axes: frame.axes.clone(),
            packs: frame.packs.clone(),
            rest: frame.rest.clone(),
            open: frame.open.clone(),
            mentions: frame.mentions.clone(),
            this: frame.this.clone(),
            dead: frame.dead.clone(),
            training,
            is_file: frame.is_file,
        }
    }
}
