//! What layers remember and what they add to the loss: `next m = …`, `loss balance = …`.

use mdl_graph::{Axis, AxisSet, Name, Type};

use super::Elaborator;
use super::copies::ScopeKind;
use super::scope::plain;
use super::value::{Env, Eval, Stop, StoredId, StoredKind, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{self, Span};

/// A `loss` of a layer.
#[derive(Clone)]
pub(super) struct Loss {
    pub(super) name: String,
    /// Of the layer that declares it.
    pub(super) path: Name,
    pub(super) tensor: Tensor,
    pub(super) span: Span,
}

impl Elaborator<'_> {
    /// `next m = value`
    pub(super) fn set_next(&mut self, env: &Env, name: &ast::Name, value: Value, span: Span) -> Eval<Value> {
        if let Some(running) = self.optimizing.last()
            && let Some(at) = running.slots.iter().position(|slot| slot.name == name.text)
        {
            let (ty, level) = (running.slots[at].ty.clone(), running.level);
            if level != self.level_id() || self.n_mapped > 0 {
                return Err(self.in_a_loop(name));
            }
            let tensor = self.as_stored(&value, &ty, span, &name.text)?;
            if let Some(running) = self.optimizing.last_mut() {
                running.slots[at].tensor = tensor.clone();
            }
            return Ok(Value::Tensor(tensor));
        }
        let this = env.frame.this.borrow().clone();
        let member = this
            .as_ref()
            .and_then(|this| this.data.members.iter().find(|(known, _)| **known == *name.text))
            .map(|(_, value)| value.clone());
        let id = match member {
            Some(Value::Stored(id)) if self.stored[id.0 as usize].kind == StoredKind::State => id,
            Some(Value::None) => return Ok(value),
            _ => {
                let message = format!("there is no state `{}` here", name.text);
                let help = "`next` gives a `state` of this layer or optimizer its new value";
                return Err(self.error_help(Code::E0220, message, name.span, "not a state", help));
            }
        };
        if self.n_mapped > 0 {
            return Err(self.error(
                Code::E0220,
                "a state cannot change inside of `map`",
                name.span,
                "each position would have its own",
            ));
        }
        let stored = &self.stored[id.0 as usize];
        let ty = Type::new(
            stored.dtype,
            AxisSet::of(stored.axes.iter().zip(&stored.local).map(|(axis, local)| Axis::new(local.clone(), axis.size)))
                .unwrap_or_default(),
        );
        let back: Vec<(Name, Name)> =
            stored.local.iter().cloned().zip(stored.axes.iter().map(|axis| axis.name.clone())).collect();
        let scope =
            stored.copies.iter().rev().find_map(|copy| self.scopes.iter().rposition(|scope| scope.id == copy.id));
        let inside = match scope.map(|at| &self.scopes[at].kind) {
            Some(ScopeKind::Loop { level, .. }) => *level,
            // Through `each`, the loop outside of it counts.
            Some(_) => self.level_id(),
            None => self.levels.first().map_or(0, |level| level.id),
        };
        if inside != self.level_id() {
            return Err(self.in_a_loop(name));
        }
        let tensor = self.as_stored(&value, &ty, span, &name.text)?;
        let stored_form = self.rename(&tensor, &back, span)?;
        match scope {
            Some(at) => self.scopes[at].next.insert(id, stored_form),
            None => self.next.insert(id, stored_form),
        };
        Ok(Value::Tensor(tensor))
    }

    fn in_a_loop(&mut self, name: &ast::Name) -> Stop {
        let message = format!("the state `{}` would change inside of a loop", name.text);
        let help = "carry it through the loop, and give `next` its last value";
        self.error_help(Code::E0220, message, name.span, "in a loop", help)
    }

    /// The next value of a state in its own type.
    fn as_stored(&mut self, value: &Value, ty: &Type, span: Span, name: &str) -> Eval<Tensor> {
        let operand = self.operand(value, span, "`next`")?;
        let tensor = self.as_tensor(&operand, ty.dtype, span)?;
        for axis in self.visible(&tensor) {
            match ty.axes.size(&axis.name) {
                Some(size) if size == axis.size => {}
                Some(size) => {
                    let message = format!(
                        "the state `{name}` has `{}` = {size}, its next value {}",
                        plain(&axis.name),
                        axis.size
                    );
                    return Err(self.error(Code::E0204, message, span, "this value"));
                }
                None => {
                    let has = self.show_axes(&self.axes(&tensor).clone());
                    let message = format!(
                        "the next value of `{name}` has the axis `{}`, which the state lacks",
                        plain(&axis.name)
                    );
                    return Err(self.error(Code::E0206, message, span, format!("this has {has}")));
                }
            }
        }
        self.expand(&tensor, &ty.axes, span)
    }

    /// A state that changed inside of copies, after them.
    pub(super) fn leave_next(&mut self, id: StoredId, tensor: Tensor) {
        let copies = self.stored[id.0 as usize].copies.clone();
        let scope = copies.iter().rev().find_map(|copy| self.scopes.iter().rposition(|scope| scope.id == copy.id));
        match scope {
            Some(at) => self.scopes[at].next.insert(id, tensor),
            None => self.next.insert(id, tensor),
        };
    }

    /// `loss balance = value`
    pub(super) fn add_loss(&mut self, env: &Env, name: &ast::Name, value: &Value, span: Span) -> Eval<Value> {
        let operand = self.operand(value, span, "`loss`")?;
        let tensor = self.as_tensor(&operand, mdl_graph::DType::F32, span)?;
        if let Some(axis) = self.visible(&tensor).first() {
            let shown = plain(&axis.name);
            let message = format!("the loss `{}` has the axis `{shown}`", name.text);
            return Err(self.error_help(
                Code::E0206,
                message,
                span,
                "a loss is one number",
                "take its mean: `mean(…)`",
            ));
        }
        if env.frame.training {
            let path = self.scope.clone();
            self.losses.push(Loss { name: name.text.clone(), path, tensor: tensor.clone(), span });
        }
        Ok(Value::Tensor(tensor))
    }

    /// Losses since `from` lose axes that are hidden only here.
    pub(super) fn sum_losses(&mut self, from: usize, names: &[Name]) -> Eval<()> {
        for i in from..self.losses.len() {
            let Loss { tensor, span, .. } = self.losses[i].clone();
            self.losses[i].tensor = self.sum_over(&tensor, names, span)?;
        }
        Ok(())
    }
}
