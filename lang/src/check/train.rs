//! What the composition of a training step asks of the evaluator: graphs, gradients, optimizers, first values.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Name, NodeId, Op, Phase, Role, Type};

use super::Elaborator;
use super::call::pattern_name;
use super::cross::Callee;
use super::graphs::Level;
use super::value::{
    Args, Arrow, Env, Eval, Frame, FunctionKind, Optimizer, OptimizerCode, Stop, StoredId, StoredKind, Tensor, Value,
};
use crate::diag::Code;
use crate::syntax::ast::{self, ArgKind, FnDef, MemberKind, Span, TypeKind};

/// A state that an optimizer keeps for one weight: the axes of copies first, then as declared.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    pub name: String,
    pub dtype: DType,
    pub axes: Vec<Axis>,
    pub(super) n_stack: usize,
}

impl OptimizerState {
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, AxisSet::of(self.axes.iter().cloned()).unwrap_or_default())
    }
}

impl Elaborator<'_> {
    // ---- graphs ----

    /// Starts a graph; tensors of earlier ones must not be used any more.
    pub fn begin(&mut self) {
        self.n_levels += 1;
        self.levels = vec![Level::new(self.n_levels, None)];
        self.inputs.clear();
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
        let mut out: Vec<(String, Tensor)> = Vec::new();
        for loss in std::mem::take(&mut self.losses) {
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
        let place = format!("init {}/{}", stored.root, stored.path);
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

    // ---- optimizers ----

    /// `adamw(lr: 1e-3)`
    pub(super) fn make_optimizer(&mut self, code: &Rc<OptimizerCode>, args: Args, span: Span) -> Eval<Value> {
        let name = &code.ast.name.text;
        let matched = self.match_args(&code.ast.params, args, name, span)?;
        let mut env = self.file_env(code.file);
        for (param, given) in code.ast.params.iter().zip(matched) {
            let (value, place) = match given {
                Some(given) => given,
                None => {
                    let Some(default) = &param.default else { mdl_graph::bug!("a parameter without a value") };
                    (self.eval(&env, default)?, default.span)
                }
            };
            let value = match &param.ty {
                Some(ty) => self.conform(&env, ty, value, place, &format!("`{}`", pattern_name(&param.pattern)))?,
                None => value,
            };
            env = self.bind_pattern(&env, &param.pattern, value, param.span)?;
        }
        Ok(Value::Optimizer(Rc::new(Optimizer { code: code.clone(), env })))
    }

    pub(super) fn optimizer_member(&self, optimizer: &Rc<Optimizer>, name: &str) -> Option<Value> {
        if let Some(def) = optimizer.code.methods.iter().find(|def| def.name.text == name) {
            return Some(Value::function(FunctionKind::OptimizerMethod(optimizer.clone(), def.clone())));
        }
        optimizer.env.get(name).cloned()
    }

    /// `inner.step(w, g, n)` inside of another optimizer: its states are not kept apart yet.
    pub(super) fn call_optimizer(
        &mut self,
        optimizer: &Rc<Optimizer>,
        def: &Rc<FnDef>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let has_state = optimizer.code.ast.members.iter().any(|member| matches!(member.kind, MemberKind::State(_)));
        if has_state {
            let message =
                format!("`{}` has states, and is used inside of another optimizer", optimizer.code.ast.name.text);
            return Err(self.error(Code::E0704, message, span, "not in this version"));
        }
        let callee = self.optimizer_callee(optimizer, def, optimizer.env.clone());
        self.run(callee, args, span)
    }

    fn optimizer_callee<'c>(&self, optimizer: &Rc<Optimizer>, def: &'c FnDef, env: Env) -> Callee<'c> {
        let code = &optimizer.code;
        Callee {
            label: format!("{}.{}", code.ast.name.text, def.name.text),
            file: code.file,
            mentions: code.mentions.clone(),
            params: def.params.last().map_or(&[], Vec::as_slice),
            result: def.result.as_ref(),
            body: &def.body,
            header: Vec::new(),
            signature: Vec::new(),
            vars: env.vars,
            layer: None,
            training: true,
            packs: Default::default(),
        }
    }

    /// Whether an optimizer takes a weight: `for [..from -> ..to]` takes those with an arrow.
    pub fn optimizer_takes(&self, optimizer: &Optimizer, weight: StoredId) -> bool {
        match &optimizer.code.ast.target {
            None => true,
            Some(target) => target.from.is_none() || self.stored[weight.0 as usize].arrow.is_some(),
        }
    }

    /// What an optimizer keeps for a weight. `state m = zeros()` is like the weight, `state r: [..from] = …` as it says.
    pub fn optimizer_states(&mut self, optimizer: &Optimizer, weight: StoredId) -> Eval<Vec<OptimizerState>> {
        let env = self.weight_env(optimizer, weight);
        let mut out = Vec::new();
        for decl in state_decls(&optimizer.code.ast) {
            if let Some(condition) = &decl.condition
                && !self.eval_condition(&env, condition)?
            {
                continue;
            }
            let stored = &self.stored[weight.0 as usize];
            let (mut axes, own) = (stored.stack.clone(), stored.axes.clone());
            let n_stack = axes.len();
            let dtype = match &decl.ty {
                None => {
                    axes.extend(own);
                    DType::F32
                }
                Some(ty) => self.state_axes(&env, ty, &mut axes)?,
            };
            out.push(OptimizerState { name: decl.name.text.clone(), dtype, axes, n_stack });
        }
        Ok(out)
    }

    fn state_axes(&mut self, env: &Env, ty: &ast::Type, axes: &mut Vec<Axis>) -> Eval<DType> {
        let TypeKind::Tensor { dtype, axes: declared } = &ty.kind else {
            return Err(self.error(Code::E0209, "a state is a tensor", ty.span, "this is no type of a tensor"));
        };
        let dtype = match dtype {
            None => DType::F32,
            Some(dtype) => match super::types::scalar_dtype(&dtype.name.text) {
                Some(Some(known)) => known,
                Some(None) => DType::I32,
                None => {
                    let message = format!("the stored dtype `{}` is not in this version", dtype.name.text);
                    return Err(self.error(Code::E0704, message, dtype.span, "not understood yet"));
                }
            },
        };
        let items = declared.as_ref().map_or(&[] as &[_], |axes| axes.items.as_slice());
        for (name, size, span) in self.declared_axes(env, items)?.0 {
            let size = match size {
                Some(size) => size,
                None => self.need_axis(env, &name, span)?,
            };
            axes.push(Axis::new(name, size));
        }
        Ok(dtype)
    }

    /// The scope of an optimizer for one weight: its sides as packs, its axes by name.
    fn weight_env(&mut self, optimizer: &Optimizer, weight: StoredId) -> Env {
        let stored = &self.stored[weight.0 as usize];
        let frame =
            Frame::new(optimizer.code.file, optimizer.code.ast.name.text.clone(), optimizer.code.mentions.clone());
        for axis in &stored.axes {
            frame.set_axis(&axis.name, axis.size);
        }
        frame.open.set(true);
        let sides = match &optimizer.code.ast.target {
            Some(target) => [(target.from.as_deref(), &stored.from), (Some(target.items.as_slice()), &stored.to)],
            None => [(None, &stored.from), (None, &stored.to)],
        };
        for (items, names) in sides {
            if let Some([ast::AxisItem { kind: ast::AxisItemKind::Axis(axis), .. }]) = items {
                let text = axis.text().trim_start_matches("..").to_string();
                frame.packs.borrow_mut().insert(text, names.clone());
            }
        }
        Env { vars: optimizer.env.vars.clone(), frame: Rc::new(frame) }
    }

    /// The tensor of a weight as its optimizer sees it: with its arrow, in graph names.
    fn as_weight(&self, weight: StoredId, tensor: &Tensor) -> Tensor {
        let stored = &self.stored[weight.0 as usize];
        let arrow = stored.arrow.as_ref().map(|_| {
            Rc::new(Arrow {
                from: stored.from.iter().map(|name| (name.clone(), name.clone())).collect(),
                to: stored.to.clone(),
            })
        });
        Tensor { arrow, ..tensor.clone() }
    }

    /// The first values of what an optimizer keeps for a weight, given the weight's first value.
    pub fn init_optimizer_states(
        &mut self,
        optimizer: &Optimizer,
        weight: StoredId,
        w: &Value,
        span: Span,
    ) -> Eval<Vec<Value>> {
        let states = self.optimizer_states(optimizer, weight)?;
        let env = self.weight_env(optimizer, weight).with("w", w.clone());
        let stack = self.stored[weight.0 as usize].stack.clone();
        let n_from = self.stored[weight.0 as usize].from.len();
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack);
        let mut out = Vec::new();
        let mut failed = false;
        for state in &states {
            let Some(decl) = state_decls(&optimizer.code.ast).into_iter().find(|decl| decl.name.text == state.name)
            else {
                continue;
            };
            let own = &state.axes[state.n_stack..];
            let n_from = if decl.ty.is_none() { n_from } else { 0 };
            let value = self.eval(&env, &decl.init).and_then(|value| {
                let (from, to) = own.split_at(n_from);
                let tensor = self.fill_maker(&value, from, to, state.dtype, decl.init.span)?;
                self.expand(&tensor, &state.ty().axes, span)
            });
            match value {
                Ok(tensor) => out.push(Value::Tensor(tensor)),
                Err(Stop) => failed = true,
            }
        }
        self.hidden.truncate(n_hidden);
        if failed { Err(Stop) } else { Ok(out) }
    }

    /// One step of an optimizer for one weight: the new weight and the new states. The axes of copies are hidden, so that
    /// what the optimizer says of a weight it says of each layer's.
    pub fn optimizer_step(
        &mut self,
        optimizer: &Rc<Optimizer>,
        weight: StoredId,
        [w, g, n]: [&Value; 3],
        states: &[Value],
        span: Span,
    ) -> Eval<(Value, Vec<Value>)> {
        let Some(def) = optimizer.code.methods.iter().find(|def| def.name.text == "step").cloned() else {
            let message = format!("the optimizer `{}` has no function `step`", optimizer.code.ast.name.text);
            let help = "`fn step(w, g, n) = …` gives the new weight";
            return Err(self.error_help(Code::E0216, message, optimizer.code.ast.name.span, "declared here", help));
        };
        let known = self.optimizer_states(optimizer, weight)?;
        let stack = self.stored[weight.0 as usize].stack.clone();
        let (Value::Tensor(w), Value::Tensor(_)) = (w, g) else { return Err(Stop) };
        let weight_type = self.stored_type(weight);
        let w = Value::Tensor(self.as_weight(weight, w));
        let mut env = self.weight_env(optimizer, weight);
        let packs = env.frame.packs.borrow().clone();
        let mut slots = Vec::new();
        for (state, value) in known.iter().zip(states) {
            let Value::Tensor(tensor) = value else { return Err(Stop) };
            env = env.with(state.name.as_str(), value.clone());
            let own = AxisSet::of(state.axes[state.n_stack..].iter().cloned()).unwrap_or_default();
            slots.push((state.name.clone(), tensor.clone(), Type::new(state.dtype, own)));
        }
        for decl in state_decls(&optimizer.code.ast) {
            if !known.iter().any(|state| state.name == decl.name.text) {
                env = env.with(decl.name.text.as_str(), Value::None);
            }
        }
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack.clone());
        self.optimizer_next.push(slots);
        let phase = self.set_phase_of(Phase::Update);
        let callee = self.optimizer_callee(optimizer, &def, env);
        let args = Args::of([(w, span), (g.clone(), span), (n.clone(), span)]);
        self.calls.push(span);
        let result = self.run_with_packs(callee, packs, args, span).and_then(|value| {
            let operand = self.operand(&value, def.body.span, "the new weight")?;
            let tensor = self.as_tensor(&operand, weight_type.dtype, def.body.span)?;
            for axis in self.visible(&tensor) {
                if weight_type.axes.size(&axis.name) != Some(axis.size) {
                    let message = format!(
                        "the new weight has the axis `{}`, which the weight lacks",
                        super::scope::plain(&axis.name)
                    );
                    let label = format!("`{}` gives this", optimizer.code.ast.name.text);
                    return Err(self.error(Code::E0206, message, def.body.span, label));
                }
            }
            self.expand(&tensor, &weight_type.axes, span)
        });
        self.calls.pop();
        let slots = self.optimizer_next.pop().unwrap_or_default();
        let mut next = Vec::with_capacity(slots.len());
        for ((_, tensor, _), state) in slots.into_iter().zip(&known) {
            next.push(self.expand(&tensor, &state.ty().axes, span));
        }
        self.hidden.truncate(n_hidden);
        self.phase = phase;
        let new = result?;
        let next = next.into_iter().map(|tensor| tensor.map(Value::Tensor)).collect::<Eval<Vec<Value>>>()?;
        Ok((Value::Tensor(Tensor { arrow: None, ..new }), next))
    }

    /// `average = ema(0.999)`: `fn(average, w, n)` for one weight, the axes of copies hidden.
    pub fn average_step(
        &mut self,
        function: &Value,
        weight: StoredId,
        [mean, w, n]: [&Value; 3],
        span: Span,
    ) -> Eval<Value> {
        let stack = self.stored[weight.0 as usize].stack.clone();
        let ty = self.stored_type(weight);
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack);
        let phase = self.set_phase_of(Phase::Update);
        let args = Args::of([(mean.clone(), span), (w.clone(), span), (n.clone(), span)]);
        let result = self.call(function, args, span).and_then(|value| {
            let operand = self.operand(&value, span, "an average")?;
            let tensor = self.as_tensor(&operand, ty.dtype, span)?;
            self.expand(&tensor, &ty.axes, span)
        });
        self.hidden.truncate(n_hidden);
        self.phase = phase;
        let tensor = result?;
        if *self.ty(&tensor) != ty {
            return Err(self.error(Code::E0206, "an average has other axes than its weight", span, "made here"));
        }
        Ok(Value::Tensor(tensor))
    }

    fn run_with_packs(
        &mut self,
        mut callee: Callee<'_>,
        packs: std::collections::BTreeMap<String, Vec<Name>>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        // The sides of the weight enter as packs whose names inside are those outside.
        callee.packs = packs;
        self.run(callee, args, span)
    }
}

fn state_decls(optimizer: &ast::Optimizer) -> Vec<&ast::Stored> {
    optimizer
        .members
        .iter()
        .filter_map(|member| match &member.kind {
            MemberKind::State(decls) => Some(decls.iter()),
            _ => None,
        })
        .flatten()
        .collect()
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
