//! Optimizers: what they keep for each weight, and one step of theirs.
//!
//! An optimizer is written for one weight of one layer; here it runs for each, the axes of copies hidden. One that is a
//! parameter of another (`averaged(adamw(lr: 1e-3))`) keeps its states under the parameter's name, `inner.m`, and runs where the
//! outer one calls its `step`.

use std::collections::BTreeMap;
use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Phase, Type};

use super::Elaborator;
use super::call::pattern_name;
use super::cross::Callee;
use super::value::{
    Args, Arrow, Env, Eval, Frame, FunctionKind, Optimizer, OptimizerCode, Stop, StoredId, Tensor, Value,
};
use crate::diag::Code;
use crate::spec::StoredDtype;
use crate::syntax::ast::{self, FnDef, MemberKind, Span, TypeKind};

/// Smaller states are kept as floats, as bitsandbytes does: they are few bytes, and biases need their precision.
const LEAST_STORED: u64 = 4096;

/// A state that an optimizer keeps for one weight: the axes of copies first, then as declared.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    pub name: String,
    pub dtype: DType,
    pub axes: Vec<Axis>,
    /// How it is kept; its steps read and write floats.
    pub stored: Option<StoredDtype>,
    pub(super) n_stack: usize,
}

impl OptimizerState {
    pub fn ty(&self) -> Type {
        Type::new(self.dtype, AxisSet::of(self.axes.iter().cloned()).unwrap_or_default())
    }
}

/// A state of an optimizer that runs, for one weight.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    /// As it is for one layer.
    pub(super) ty: Type,
}

/// An optimizer that runs, its states and those of the optimizers that are its parameters.
pub(super) struct Optimizing {
    optimizer: Rc<Optimizer>,
    weight: StoredId,
    /// The graph in which it runs.
    pub(super) level: u32,
    pub(super) slots: Vec<Slot>,
}

impl Elaborator<'_> {
    /// `adamw(lr: 1e-3)`
    pub(super) fn make_optimizer(&mut self, code: &Rc<OptimizerCode>, args: Args, span: Span) -> Eval<Value> {
        let name = &code.ast.name.text;
        let matched = self.match_args(&code.ast.params, args, name, span)?;
        let mut env = self.file_env(code.file);
        for (param, given) in code.ast.params.iter().zip(matched) {
            let (value, place) = self.given_or_default(&env, param, given)?;
            let value = match &param.ty {
                Some(ty) => self.conform(&env, ty, value, place, &format!("`{}`", pattern_name(&param.pattern)))?,
                None => value,
            };
            env = self.bind_pattern(&env, &param.pattern, value, param.span)?;
        }
        self.calls.push(span);
        let env = code.ast.members.iter().try_fold(env, |env, member| self.optimizer_part(env, member));
        self.calls.pop();
        Ok(Value::Optimizer(Rc::new(Optimizer { code: code.clone(), env: env?, made: span })))
    }

    /// What an optimizer has besides its states and functions.
    fn optimizer_part(&mut self, env: Env, member: &ast::Member) -> Eval<Env> {
        match &member.kind {
            MemberKind::State(_) | MemberKind::Fn(_) => Ok(env),
            MemberKind::Require(require) => self.require(&env, require).map(|()| env),
            MemberKind::Let { name, value, condition } => {
                let wanted = condition.as_ref().map_or(Ok(true), |condition| self.eval_condition(&env, condition))?;
                let value = if wanted { self.eval(&env, value)? } else { Value::None };
                Ok(env.with(name.text.as_str(), value))
            }
            MemberKind::Weight(_) | MemberKind::Axis(_) => {
                let message = "an optimizer has no weights and no axes of its own";
                let help = "what it remembers of each weight is a `state`, with the axes of the weight";
                Err(self.error_help(Code::E0220, message, member.span, "declared here", help))
            }
        }
    }

    pub(super) fn optimizer_member(&self, optimizer: &Rc<Optimizer>, name: &str) -> Option<Value> {
        if let Some(def) = optimizer.code.methods.iter().find(|def| def.name.text == name) {
            return Some(Value::function(FunctionKind::OptimizerMethod(optimizer.clone(), def.clone())));
        }
        optimizer.env.get(name).cloned()
    }

    /// The parameters of an optimizer that are optimizers themselves.
    pub fn inner_optimizers(optimizer: &Optimizer) -> Vec<(String, Rc<Optimizer>)> {
        let names = optimizer.code.ast.params.iter().map(|param| pattern_name(&param.pattern));
        names
            .filter_map(|name| match optimizer.env.get(&name) {
                Some(Value::Optimizer(inner)) => Some((name, inner.clone())),
                _ => None,
            })
            .collect()
    }

    /// `inner.step(w, g, n)` inside of the optimizer whose parameter `inner` is: with the states that it keeps there.
    pub(super) fn call_optimizer(
        &mut self,
        optimizer: &Rc<Optimizer>,
        def: &Rc<FnDef>,
        mut args: Args,
        span: Span,
    ) -> Eval<Value> {
        let name = &optimizer.code.ast.name.text;
        let outer = self.optimizing.last().and_then(|outer| {
            let inner = Self::inner_optimizers(&outer.optimizer);
            let (param, _) = inner.into_iter().find(|(_, inner)| Rc::ptr_eq(inner, optimizer))?;
            Some((outer.weight, format!("{param}."), outer.slots.clone()))
        });
        let Some((weight, prefix, slots)) = outer else {
            let message = format!("`{name}.{}` is called outside of a training step", def.name.text);
            let help = "an optimizer calls the `step` of one that is its parameter: `inner.step(w, g, n)`";
            return Err(self.error_help(Code::E0217, message, span, "no weight to change here", help));
        };
        let own = slots.into_iter().filter_map(|slot| {
            let name = slot.name.strip_prefix(&prefix)?.to_string();
            Some(Slot { name, ..slot })
        });
        if let Some((Value::Tensor(w), _)) = args.positional.first_mut()
            && self.is_like(w, weight)
        {
            *w = self.as_weight(weight, w);
        }
        let (result, slots) = self.run_optimizer(optimizer, def, weight, own.collect(), args, span);
        if let Some(outer) = self.optimizing.last_mut() {
            for slot in slots {
                let name = format!("{prefix}{}", slot.name);
                if let Some(kept) = outer.slots.iter_mut().find(|kept| kept.name == name) {
                    kept.tensor = slot.tensor;
                }
            }
        }
        result
    }

    /// Whether a tensor has the axes of a weight, however many copies there are of it.
    fn is_like(&self, tensor: &Tensor, weight: StoredId) -> bool {
        let own = &self.stored[weight.0 as usize].axes;
        self.visible(tensor).len() == own.len()
            && own.iter().all(|axis| self.axes(tensor).size(&axis.name) == Some(axis.size))
    }

    /// Runs a function of an optimizer on its states; gives them back as they are then.
    fn run_optimizer(
        &mut self,
        optimizer: &Rc<Optimizer>,
        def: &FnDef,
        weight: StoredId,
        slots: Vec<Slot>,
        args: Args,
        span: Span,
    ) -> (Eval<Value>, Vec<Slot>) {
        let mut env = self.weight_env(optimizer, weight);
        // The sides of the weight enter as packs whose names inside are those outside.
        let packs = env.frame.packs.borrow().clone();
        for decl in state_decls(&optimizer.code.ast) {
            let slot = slots.iter().find(|slot| slot.name == decl.name.text);
            let value = slot.map_or(Value::None, |slot| Value::Tensor(slot.tensor.clone()));
            env = env.with(decl.name.text.as_str(), value);
        }
        let level = self.level_id();
        self.optimizing.push(Optimizing { optimizer: optimizer.clone(), weight, level, slots });
        let mut callee = self.optimizer_callee(optimizer, def, env);
        callee.packs = packs;
        let result = self.run(callee, args, span);
        let slots = self.optimizing.pop().map(|done| done.slots).unwrap_or_default();
        (result, slots)
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
        let own = match &optimizer.code.ast.target {
            None => true,
            Some(target) => target.from.is_none() || self.stored[weight.0 as usize].arrow.is_some(),
        };
        own && Self::inner_optimizers(optimizer).iter().all(|(_, inner)| self.optimizer_takes(inner, weight))
    }

    /// What an optimizer keeps for a weight. `state m = zeros()` is like the weight, `state r: [..from] = …` as it says.
    /// `stack` are the axes of the copies that it takes.
    pub fn optimizer_states(
        &mut self,
        optimizer: &Optimizer,
        weight: StoredId,
        stack: &[Axis],
    ) -> Eval<Vec<OptimizerState>> {
        let env = self.weight_env(optimizer, weight).with("w", Value::Stored(weight));
        let mut out = Vec::new();
        for decl in state_decls(&optimizer.code.ast) {
            if let Some(condition) = &decl.condition
                && !self.eval_condition(&env, condition)?
            {
                continue;
            }
            let stored = &self.stored[weight.0 as usize];
            let (mut axes, own) = (stack.to_vec(), stored.axes.clone());
            let n_stack = axes.len();
            let (dtype, stored) = match &decl.ty {
                None => {
                    axes.extend(own);
                    (DType::F32, None)
                }
                Some(ty) => match self.stored_state(&env, ty)? {
                    Some(stored) => {
                        match &ty.kind {
                            TypeKind::Tensor { axes: Some(_), .. } => drop(self.state_axes(&env, ty, &mut axes)?),
                            _ => axes.extend(own),
                        }
                        let own = &axes[n_stack..];
                        let is_large = own.iter().map(|axis| axis.size).product::<u64>() >= LEAST_STORED;
                        (DType::F32, Some(stored).filter(|stored| is_large && stored.fits(own)))
                    }
                    None => (self.state_axes(&env, ty, &mut axes)?, None),
                },
            };
            out.push(OptimizerState { name: decl.name.text.clone(), dtype, axes, stored, n_stack });
        }
        for (param, inner) in Self::inner_optimizers(optimizer) {
            let states = self.optimizer_states(&inner, weight, stack)?;
            out.extend(
                states.into_iter().map(|state| OptimizerState { name: format!("{param}.{}", state.name), ..state }),
            );
        }
        Ok(out)
    }

    /// `q8(block: 256)` as the dtype of a state.
    fn stored_state(&mut self, env: &Env, ty: &ast::Type) -> Eval<Option<StoredDtype>> {
        let dtype = match &ty.kind {
            TypeKind::Tensor { dtype: Some(dtype), .. } if dtype.name.text == "q8" => dtype,
            _ => return Ok(None),
        };
        let mut block = 256;
        for arg in &dtype.args {
            let value = match &arg.kind {
                ast::ArgKind::Named { name, value } if name.text == "block" => value,
                _ => {
                    let help = "`q8(block: 256)`";
                    return Err(self.error_help(Code::E0208, "`q8` takes `block:`", arg.span, "not known", help));
                }
            };
            block = match self.eval(env, value)?.as_int() {
                Some(block) if (2..=65_536).contains(&block) && block % 2 == 0 => block as u64,
                _ => {
                    let message = "a block is an even number from 2 to 65536";
                    return Err(self.error(Code::E0306, message, value.span, "not this"));
                }
            };
        }
        Ok(Some(StoredDtype::Q8 { block }))
    }

    fn state_axes(&mut self, env: &Env, ty: &ast::Type, axes: &mut Vec<Axis>) -> Eval<DType> {
        let TypeKind::Tensor { dtype, axes: declared } = &ty.kind else {
            return Err(self.error(Code::E0209, "a state is a tensor", ty.span, "this is no type of a tensor"));
        };
        let dtype = match dtype {
            None => DType::F32,
            Some(dtype) if dtype.name.text == "q8" => DType::F32,
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
        // Without `for`, the sides have their usual names; of a weight without an arrow there is nothing in them.
        let mut packs =
            BTreeMap::from([("from".to_string(), stored.from.clone()), ("to".to_string(), stored.to.clone())]);
        let sides = match &optimizer.code.ast.target {
            Some(target) => {
                packs.clear();
                [(target.from.as_deref(), &stored.from), (Some(target.items.as_slice()), &stored.to)]
            }
            None => [(None, &stored.from), (None, &stored.to)],
        };
        for (items, names) in sides {
            if let Some([ast::AxisItem { kind: ast::AxisItemKind::Axis(axis), .. }]) = items {
                let text = axis.text().trim_start_matches("..").to_string();
                packs.insert(text, names.clone());
            }
        }
        *frame.packs.borrow_mut() = packs;
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
        stack: &[Axis],
        w: &Value,
        span: Span,
    ) -> Eval<Vec<Value>> {
        let states = self.optimizer_states(optimizer, weight, stack)?;
        let env = self.weight_env(optimizer, weight).with("w", w.clone());
        let n_from = self.stored[weight.0 as usize].from.len();
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack.iter().cloned());
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
        if failed {
            return Err(Stop);
        }
        for (_, inner) in Self::inner_optimizers(optimizer) {
            out.extend(self.init_optimizer_states(&inner, weight, stack, w, span)?);
        }
        Ok(out)
    }

    /// One step of an optimizer for one weight: the new weight and the new states. The axes of copies are hidden, so that
    /// what the optimizer says of a weight it says of each layer's.
    pub fn optimizer_step(
        &mut self,
        optimizer: &Rc<Optimizer>,
        weight: StoredId,
        stack: &[Axis],
        [w, g, n]: [&Value; 3],
        states: &[Value],
        span: Span,
    ) -> Eval<(Value, Vec<Value>)> {
        let Some(def) = optimizer.code.methods.iter().find(|def| def.name.text == "step").cloned() else {
            let message = format!("the optimizer `{}` has no function `step`", optimizer.code.ast.name.text);
            let help = "`fn step(w, g, n) = …` gives the new weight";
            return Err(self.error_help(Code::E0216, message, optimizer.code.ast.name.span, "declared here", help));
        };
        let known = self.optimizer_states(optimizer, weight, stack)?;
        let (Value::Tensor(w), Value::Tensor(_)) = (w, g) else { return Err(Stop) };
        let weight_type = self.ty(w).clone();
        let w = Value::Tensor(self.as_weight(weight, w));
        let mut slots = Vec::new();
        for (state, value) in known.iter().zip(states) {
            let Value::Tensor(tensor) = value else { return Err(Stop) };
            let own = AxisSet::of(state.axes[state.n_stack..].iter().cloned()).unwrap_or_default();
            slots.push(Slot { name: state.name.clone(), tensor: tensor.clone(), ty: Type::new(state.dtype, own) });
        }
        let n_hidden = self.hidden.len();
        self.hidden.extend(stack.iter().cloned());
        let phase = self.set_phase_of(Phase::Update);
        let args = Args::of([(w, span), (g.clone(), span), (n.clone(), span)]);
        self.calls.push(optimizer.made);
        let (result, slots) = self.run_optimizer(optimizer, &def, weight, slots, args, span);
        let result = result.and_then(|value| {
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
        let mut next = Vec::with_capacity(slots.len());
        for (slot, state) in slots.into_iter().zip(&known) {
            next.push(self.expand(&slot.tensor, &state.ty().axes, span));
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
