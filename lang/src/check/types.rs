//! Declared types against values: a type is checked, never only hoped for.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType};

use super::Elaborator;
use super::arith::{Kind, kind_of};
use super::scope::plain;
use super::value::{Env, Eval, FunctionKind, MakerKind, Stop, Tensor, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Dtype, Span, Type, TypeKind};

const SCALARS: &[&str] = &["Int", "Float", "Bool", "Str", "Path", "Schedule", "Layer"];

/// The dtypes that a type may name; `int` is any integer.
pub(super) fn scalar_dtype(name: &str) -> Option<Option<DType>> {
    match name {
        "int" => Some(None),
        name => DType::from_name(name).filter(|dtype| *dtype != DType::F64).map(Some),
    }
}

impl Elaborator<'_> {
    /// A value under a declared type, in the names of `env`'s frame: numbers spread, integers become floats, and whatever
    /// does not fit is an error.
    pub(super) fn conform(&mut self, env: &Env, ty: &Type, value: Value, span: Span, what: &str) -> Eval<Value> {
        match &ty.kind {
            TypeKind::Tensor { dtype, axes } => {
                let items = axes.as_ref().map_or(&[] as &[_], |axes| axes.items.as_slice());
                self.conform_tensor(env, dtype.as_ref(), items, value, span, what)
            }
            TypeKind::Name(name) if scalar_dtype(&name.text).is_some() => {
                let dtype = Dtype { name: name.clone(), args: Vec::new(), span: name.span };
                self.conform_tensor(env, Some(&dtype), &[], value, span, what)
            }
            TypeKind::Tuple(types) => match &value {
                Value::Tuple(items) if items.len() == types.len() => {
                    let mut out = Vec::with_capacity(items.len());
                    for (item, ty) in items.iter().zip(types) {
                        out.push(self.conform(env, ty, item.clone(), span, what)?);
                    }
                    Ok(Value::tuple(out))
                }
                Value::Error => Err(Stop),
                other => {
                    let message = format!("{what} is a tuple of {}, not {}", types.len(), other.kind());
                    Err(self.error(Code::E0209, message, span, format!("this is {}", other.kind())))
                }
            },
            TypeKind::Record(types) => {
                let mut out = Vec::with_capacity(types.len());
                for (name, ty) in types {
                    let Some(field) = value.field(&name.text).cloned() else {
                        let message = format!("{what} has no field `{}`", name.text);
                        return Err(self.error(Code::E0216, message, span, "its type names one"));
                    };
                    out.push((name.text.as_str(), self.conform(env, ty, field, span, what)?));
                }
                Ok(Value::record(out))
            }
            _ => self.check_scalar_type(env, ty, value, span, what),
        }
    }

    /// Types of compile-time values.
    pub(super) fn check_scalar_type(
        &mut self,
        env: &Env,
        ty: &Type,
        value: Value,
        span: Span,
        what: &str,
    ) -> Eval<Value> {
        let name = match &ty.kind {
            TypeKind::Optional(inner) => {
                return if matches!(value, Value::None) {
                    Ok(value)
                } else {
                    self.conform(env, inner, value, span, what)
                };
            }
            TypeKind::List(inner) => {
                return match &value {
                    Value::List(items) => {
                        let mut out = Vec::with_capacity(items.len());
                        for item in items.iter() {
                            out.push(self.conform(env, inner, item.clone(), span, what)?);
                        }
                        Ok(Value::list(out))
                    }
                    Value::Error => Err(Stop),
                    other => {
                        let message = format!("{what} is a list, not {}", other.kind());
                        Err(self.error(Code::E0209, message, span, format!("this is {}", other.kind())))
                    }
                };
            }
            TypeKind::Name(name) => name,
            _ => return self.conform(env, ty, value, span, what),
        };
        let fits = match (name.text.as_str(), &value) {
            (_, Value::Error) => return Err(Stop),
            ("Int", value) => value.as_int().map(Value::Int),
            ("Float", Value::Tensor(tensor)) if self.visible(tensor).is_empty() => Some(Value::Tensor(tensor.clone())),
            ("Float", value) => value.as_float().map(Value::Float),
            ("Bool", Value::Bool(_)) => Some(value.clone()),
            ("Str" | "Path", Value::Str(_)) => Some(value.clone()),
            ("Schedule", Value::Function(_)) => Some(value.clone()),
            ("Schedule", number) => number
                .as_float()
                .filter(|number| *number >= 0.0)
                .map(|number| Value::function(FunctionKind::Constant(Rc::new(Value::Float(number))))),
            (_, Value::Layer(layer)) => {
                self.check_layer_type(name, layer, span)?;
                Some(value.clone())
            }
            (known, _)
                if !SCALARS.contains(&known)
                    && scalar_dtype(known).is_none()
                    && self.find_layer(env, known).is_none() =>
            {
                let diagnostic =
                    Diagnostic::error(Code::E0201, format!("there is no type `{known}`")).label(name.span, "not known");
                let near = nearest(known, SCALARS.iter().copied());
                return Err(self.fail(match near {
                    Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                    None => diagnostic
                        .help(format!("types are {}, layers, and tensors such as `f32[batch, t]`", SCALARS.join(", "))),
                }));
            }
            _ => None,
        };
        // `capacity: Float = none` says that it may be left out.
        if matches!(value, Value::None) {
            return Ok(value);
        }
        match fits {
            Some(value) => Ok(value),
            None => {
                let shown = show(&value);
                let message = format!("{what} is {}, not {shown}", article(&name.text));
                let diagnostic = Diagnostic::error(Code::E0209, message)
                    .label(span, format!("this is {shown}"))
                    .label(ty.span, "declared here");
                Err(self.fail(match (&value, name.text.as_str()) {
                    (Value::Float(_), "Int") => diagnostic.help("`div(a, b)` rounds down"),
                    (_, "Schedule") => {
                        diagnostic.help("a function of the step, or a number of at least 0 for every step")
                    }
                    (Value::Tensor(_), _) => {
                        diagnostic.help("it is known at compile time; a tensor has a type such as `[..]`")
                    }
                    _ => diagnostic,
                }))
            }
        }
    }

    fn find_layer(&mut self, env: &Env, name: &str) -> Option<()> {
        let (file, item) = self.find_item(env.frame.file, name)?;
        matches!(self.item(file, &item), Some(super::load::Global::Layer(_))).then_some(())
    }

    fn conform_tensor(
        &mut self,
        env: &Env,
        dtype: Option<&Dtype>,
        items: &[crate::syntax::ast::AxisItem],
        value: Value,
        span: Span,
        what: &str,
    ) -> Eval<Value> {
        let (declared, has_rest) = self.declared_axes(env, items)?;
        if matches!(
            value,
            Value::Tuple(_)
                | Value::Record(_)
                | Value::List(_)
                | Value::Function(_)
                | Value::Layer(_)
                | Value::Str(_)
                | Value::None
        ) {
            let message = format!("{what} is a tensor, not {}", value.kind());
            return Err(self.error(Code::E0209, message, span, format!("this is {}", value.kind())));
        }
        let operand = self.operand(&value, span, what)?;
        let is_number = !matches!(operand, super::arith::Operand::Tensor(_));
        let tensor = self.tensor_of(&operand, span)?;
        let tensor = self.check_dtype(&tensor, dtype, span, what, is_number)?;
        let mut wanted = AxisSet::new();
        for (name, size, item_span) in &declared {
            let has = self.axes(&tensor).size(name);
            match (has, size) {
                (Some(has), Some(size)) if has != *size => {
                    let message = format!("axis `{}` of {what} is {has}, and its type says {size}", plain(name));
                    let diagnostic = Diagnostic::error(Code::E0204, message)
                        .label(span, format!("`{}` is {has} here", plain(name)))
                        .label(*item_span, format!("{size} here"));
                    return Err(self.fail(diagnostic));
                }
                (Some(_), _) => {}
                (None, size) if is_number => {
                    let size = match size {
                        Some(size) => Some(*size),
                        None => self.axis_size(env, name, *item_span)?,
                    };
                    if let Some(size) = size {
                        wanted.insert(Axis::new(name.clone(), size));
                    }
                }
                (None, _) => {
                    let axes = self.axes(&tensor).clone();
                    let message = format!("{what} lacks the axis `{}`, which its type names", plain(name));
                    let diagnostic = Diagnostic::error(Code::E0203, message)
                        .label(span, format!("this has {}", self.show_axes(&axes)))
                        .label(*item_span, "declared here");
                    return Err(self.fail(diagnostic));
                }
            }
        }
        if !has_rest {
            let extra =
                self.visible(&tensor).into_iter().find(|axis| !declared.iter().any(|(name, ..)| *name == axis.name));
            if let Some(axis) = extra {
                let shown = plain(&axis.name);
                let message = format!("{what} has the axis `{shown}`, which its type does not name");
                let has = self.show_axes(&self.axes(&tensor).clone());
                let help = format!("name it in the type, or sum it away: `sum[{shown}](…)`");
                return Err(self.error_help(Code::E0206, message, span, format!("this has {has}"), help));
            }
        }
        Ok(Value::Tensor(self.expand(&tensor, &wanted, span)?))
    }

    /// A tensor under the dtype of a type. Without one it is a float; `int` is any integer. Integers become floats.
    pub(super) fn check_dtype(
        &mut self,
        tensor: &Tensor,
        dtype: Option<&Dtype>,
        span: Span,
        what: &str,
        casts: bool,
    ) -> Eval<Tensor> {
        let has = self.dtype(tensor);
        let Some(dtype) = dtype else {
            // A `let` or a result may leave out the dtype of a mask; a parameter is a float.
            return match kind_of(has) {
                Kind::Int => self.cast(tensor, DType::F32, span),
                _ => Ok(tensor.clone()),
            };
        };
        let Some(wanted) = scalar_dtype(&dtype.name.text) else {
            return Err(match dtype.name.text.as_str() {
                "nf4" | "q8" | "q4" | "f8e4m3" | "f8e5m2" => {
                    let message = format!("the stored dtype `{}` is not in this version", dtype.name.text);
                    self.error(Code::E0704, message, dtype.span, "not understood yet")
                }
                name => self.error(Code::E0201, format!("there is no dtype `{name}`"), dtype.span, "not known"),
            });
        };
        let fits = match wanted {
            None => kind_of(has) == Kind::Int,
            Some(wanted) => {
                kind_of(has) == kind_of(wanted) || kind_of(wanted) == Kind::Float && kind_of(has) == Kind::Int
            }
        };
        if fits {
            return match wanted {
                Some(wanted) => self.cast(tensor, wanted, span),
                None => Ok(tensor.clone()),
            };
        }
        // A literal 0 or 1 stands for anything that it can be exactly.
        if casts && wanted.is_some_and(|wanted| kind_of(wanted) == Kind::Float) && kind_of(has) != Kind::Bool {
            return self.cast(tensor, DType::F32, span);
        }
        let message = format!("{what} is declared as {}, and this is {has}", dtype.name.text);
        let help = match kind_of(has) {
            Kind::Float => "`int(x)` rounds toward zero, `x > 0` makes a boolean",
            Kind::Int => "compare it, `x > 0`, for a boolean",
            Kind::Bool => "`int(x)` and `float(x)` make numbers of it",
        };
        let diagnostic = Diagnostic::error(Code::E0207, message)
            .label(span, format!("this is {has}"))
            .label(dtype.span, "declared here")
            .help(help);
        Err(self.fail(diagnostic))
    }
}

pub(super) fn article(name: &str) -> String {
    let first = name.chars().next().unwrap_or('x');
    let article = if "AEIOU".contains(first) { "an" } else { "a" };
    format!("{article} {name}")
}

/// A value as an error shows it: numbers and texts themselves, all else by its kind.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Int(value) => format!("the Int {value}"),
        Value::Float(value) => format!("the Float {value}"),
        Value::Bool(value) => format!("{value}"),
        Value::Str(text) => format!("the Str {text:?}"),
        Value::Maker(maker) => match &maker.what {
            MakerKind::Code(code) | MakerKind::Partial(code, _) => {
                format!("`{}`, a layer that is not built yet", code.ast.name.text)
            }
        },
        other => other.kind().to_string(),
    }
}
