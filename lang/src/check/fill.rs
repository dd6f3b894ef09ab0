//! What waits for axes, and weights that are applied: initializers filled with the axes of a weight, `w(x)`.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Name};

use super::Elaborator;
use super::axes::Signature;
use super::scope::plain;
use super::value::{Args, Eval, FunctionKind, Stop, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::Span;

impl Elaborator<'_> {
    /// `normal(like: x)`
    pub(super) fn fill_like(&mut self, maker: &Value, like: &Value, like_span: Span, span: Span) -> Eval<Value> {
        match like {
            Value::Tensor(tensor) => {
                let axes: Vec<Name> = self.visible(tensor).into_iter().map(|axis| axis.name).collect();
                let sizes = self.axes(tensor).clone();
                let axes: Vec<Axis> = axes.iter().filter_map(|name| sizes.get(name).cloned()).collect();
                Ok(Value::Tensor(self.fill_maker(maker, &[], &axes, DType::F32, span)?))
            }
            Value::Record(fields) => {
                let mut out = Vec::with_capacity(fields.len());
                for (name, field) in fields.iter() {
                    out.push((name.clone(), self.fill_like(maker, field, like_span, span)?));
                }
                Ok(Value::Record(Rc::new(out)))
            }
            other => {
                let message = format!("`like:` takes a tensor or a record of tensors, not {}", other.kind());
                Err(self.error(Code::E0209, message, like_span, format!("this is {}", other.kind())))
            }
        }
    }

    /// The tensor that an initializer gives for axes: a number, a maker that waits for axes, or a tensor itself.
    pub(super) fn fill_maker(
        &mut self,
        value: &Value,
        from: &[Axis],
        to: &[Axis],
        dtype: DType,
        span: Span,
    ) -> Eval<Tensor> {
        let all: Vec<Axis> = from.iter().chain(to).cloned().collect();
        let Some(set) = AxisSet::of(all.iter().cloned()) else {
            return Err(self.error(Code::E0212, "an axis stands twice", span, "here"));
        };
        let tensor = match value {
            Value::Function(function) => match &function.kind {
                FunctionKind::Waiting { callee, args } => {
                    let mut args = args.clone();
                    args.named.retain(|(name, ..)| &**name != "like");
                    self.call_waiting(callee, args, from, to, &all, span)?
                }
                _ => {
                    let message = "a function of axes is expected: an initializer";
                    let help = "call it, `normal(std: 0.02)`, so that it waits for the axes of the weight";
                    return Err(self.error_help(Code::E0209, message, span, "this is another function", help));
                }
            },
            Value::Stored(_)
            | Value::Tensor(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Bool(_)
            | Value::Quantity { .. } => {
                let operand = self.operand(value, span, "an initial value")?;
                self.tensor_of(&operand, span)?
            }
            Value::Error => return Err(Stop),
            other => {
                let message = format!("an initial value is {}", other.kind());
                let help = "give a number, a tensor or an initializer such as `normal(std: 0.02)`";
                return Err(self.error_help(Code::E0209, message, span, format!("this is {}", other.kind()), help));
            }
        };
        let tensor = self.cast(&tensor, dtype, span)?;
        for axis in self.axes(&tensor).clone().iter() {
            let wanted = set
                .size(&axis.name)
                .or_else(|| self.hidden.iter().find(|hidden| hidden.name == axis.name).map(|hidden| hidden.size));
            match wanted {
                Some(size) if size == axis.size => {}
                Some(size) => {
                    let message =
                        format!("the initial value has `{}` = {}, the weight has {size}", plain(&axis.name), axis.size);
                    return Err(self.error(Code::E0204, message, span, "this value"));
                }
                None => {
                    let message =
                        format!("the initial value has the axis `{}`, which the weight lacks", plain(&axis.name));
                    return Err(self.error(Code::E0206, message, span, "this value"));
                }
            }
        }
        self.expand(&tensor, &set, span)
    }

    fn call_waiting(
        &mut self,
        callee: &Value,
        args: Args,
        from: &[Axis],
        to: &[Axis],
        all: &[Axis],
        span: Span,
    ) -> Eval<Tensor> {
        let Value::Function(function) = callee else { return Err(Stop) };
        let value = match &function.kind {
            FunctionKind::Builtin(builtin) => {
                let Some(fill) = builtin.fill else { mdl_graph::bug!("`{}` does not wait for axes", builtin.name) };
                return fill(self, all, &args, span);
            }
            FunctionKind::Def { code, first } => {
                let (mut header, _) = self.fill_header(code.def.header.as_ref(), None, &code.def.name.text, span)?;
                let sized =
                    |axes: &[Axis]| Some(axes.iter().map(|axis| (axis.name.clone(), Some(axis.size))).collect());
                let n_from = code.def.header.as_ref().and_then(|header| header.from.as_ref()).map(Vec::len);
                match (header.as_mut_slice(), n_from) {
                    ([one], None) if one.is_pack => one.axes = sized(all),
                    ([left, right], Some(1)) if left.is_pack && right.is_pack => {
                        left.axes = sized(from);
                        right.axes = sized(to);
                    }
                    (entries, None) if entries.len() == all.len() && entries.iter().all(|entry| !entry.is_pack) => {
                        for (entry, axis) in entries.iter_mut().zip(all) {
                            entry.axes = sized(std::slice::from_ref(axis));
                        }
                    }
                    _ => {
                        let message = format!("`{}` cannot fill these axes", code.def.name.text);
                        let help = "an initializer has the header `[..over]` or `[..from -> ..to]`";
                        return Err(self.error_help(Code::E0208, message, span, "used as an initializer", help));
                    }
                }
                let first = first.as_deref().map(Vec::as_slice);
                let callee = self.callee_of(code, first, (header, Signature::default()), false);
                self.calls.push(span);
                let value = self.run(callee, args, span);
                self.calls.pop();
                value?
            }
            _ => {
                return Err(self.error(
                    Code::E0209,
                    "this function does not wait for axes",
                    span,
                    "an initializer is expected",
                ));
            }
        };
        let operand = self.operand(&value, span, "an initializer")?;
        self.tensor_of(&operand, span)
    }

    /// `w(x)`: the contraction over the axes that the weight takes.
    pub(super) fn apply_weight(&mut self, weight: &Tensor, args: &Args, span: Span) -> Eval<Value> {
        let Some(arrow) = weight.arrow.clone() else {
            let help =
                "only a weight with an arrow, `[..from -> ..to]`, is applied like a function; else write `dot[…]`";
            return Err(self.error_help(Code::E0217, "a tensor cannot be called", span, "this call", help));
        };
        let ([(value, place)], []) = (args.positional.as_slice(), args.named.as_slice()) else {
            return Err(self.error(Code::E0208, "a weight is applied to one tensor", span, "this call"));
        };
        let operand = self.operand(value, *place, "a weight")?;
        let x = self.tensor_of(&operand, *place)?;
        for (said, own) in &arrow.from {
            let (x_size, w_size) = (self.axes(&x).size(said), self.axes(weight).size(own));
            match (x_size, w_size) {
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => {
                    let message = format!("axis `{}` is {a} in the argument and {b} in the weight", plain(said));
                    return Err(self.error(Code::E0204, message, *place, format!("`{}` is {a} here", plain(said))));
                }
                _ => {
                    let has = self.show_axes(&self.axes(&x).clone());
                    let message = format!("a weight takes the axis `{}`, which its argument lacks", plain(said));
                    return Err(self.error(Code::E0203, message, *place, format!("this has {has}")));
                }
            }
        }
        let x = self.rename(&x, &arrow.from, span)?;
        let mut names: Vec<Name> = arrow.from.iter().map(|(_, own)| own.clone()).collect();
        names.sort();
        Ok(Value::Tensor(self.contract(&x, weight, names, span)?))
    }
}
