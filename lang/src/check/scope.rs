//! Names in scope: variables, members, items, axes; and pushing diagnostics.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, Name};

use super::Elaborator;
use super::builtins;
use super::load::Global;
use super::value::{Env, Eval, Function, FunctionKind, Layer, LayerMaker, MakerKind, Stop, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Expr, Span};

/// A name as the user knows it: `batch~1` is a batch.
pub(super) fn plain(name: &Name) -> String {
    name.as_str().split('~').next().unwrap_or_default().to_string()
}

/// The axis whose twin this is, `t` for `t'`.
pub(super) fn untwinned(name: &Name) -> Name {
    Name::from(name.as_str().trim_end_matches('\''))
}

impl Elaborator<'_> {
    /// Pushes a diagnostic, unless the very same is there. One inside the library also points at the recipe.
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        let diagnostic = self.told_outside(self.told_of_json(diagnostic));
        let known = |known: &Diagnostic| {
            known.code == diagnostic.code
                && known.message == diagnostic.message
                && known.labels.first() == diagnostic.labels.first()
        };
        if !self.diagnostics.iter().any(known) {
            self.diagnostics.push(diagnostic);
        }
    }

    pub(super) fn fail(&mut self, diagnostic: Diagnostic) -> Stop {
        self.push(diagnostic);
        Stop
    }

    pub(super) fn error(
        &mut self,
        code: Code,
        message: impl Into<String>,
        span: Span,
        label: impl Into<String>,
    ) -> Stop {
        self.fail(Diagnostic::error(code, message).label(span, label))
    }

    pub(super) fn error_help(
        &mut self,
        code: Code,
        message: impl Into<String>,
        span: Span,
        label: impl Into<String>,
        help: impl Into<String>,
    ) -> Stop {
        self.fail(Diagnostic::error(code, message).label(span, label).help(help))
    }

    /// `[batch, t, width: 384]`
    pub(super) fn show_axes(&self, axes: &AxisSet) -> String {
        let shown: Vec<String> = axes
            .iter()
            .filter(|axis| !self.is_hidden(&axis.name))
            .map(|axis| format!("{}: {}", plain(&axis.name), axis.size))
            .collect();
        format!("[{}]", shown.join(", "))
    }

    /// The value of a name. With `callee`, axes are no candidates.
    pub(super) fn lookup(&mut self, env: &Env, name: &str, span: Span, callee: bool) -> Eval<Value> {
        if let Some(value) = env.get(name).cloned() {
            return self.use_variable(env, value, name, span);
        }
        let this = env.frame.this.borrow().clone();
        if let Some(this) = this
            && let Some(value) = self.own_member(&this, name)
        {
            return self.use_variable(env, value, name, span);
        }
        let axis = Name::from(name);
        if !callee && let Some(size) = self.local_axis_size(env, &axis) {
            return Ok(Value::Axis(Axis { name: axis, size }));
        }
        if let Some(found) = self.find_item(env.frame.file, name) {
            return self.item_value(found, span);
        }
        if let Some(builtin) = builtins::find(name) {
            return match builtin.value {
                Some(value) => Ok(Value::Float(value)),
                None => Ok(Value::function(FunctionKind::Builtin(builtin))),
            };
        }
        if !callee && let Some(size) = self.axis_size(env, &axis, span)? {
            return Ok(Value::Axis(Axis { name: axis, size }));
        }
        if let Some(names) = self.files[env.frame.file].names.get(name) {
            return Ok(Value::Names(names.clone()));
        }
        Err(self.unknown_name(env, name, span))
    }

    fn unknown_name(&mut self, env: &Env, name: &str, span: Span) -> Stop {
        if builtins::is_later(name) {
            return self.error(Code::E0704, format!("`{name}` is not in this version"), span, "not understood yet");
        }
        let mut names = env.names();
        if let Some(this) = &*env.frame.this.borrow() {
            names.extend(this.data.members.iter().map(|(name, _)| name.to_string()));
            names.extend(this.data.code.iter().flat_map(|code| &code.methods).map(|def| def.name.text.clone()));
        }
        names.extend(self.item_names(env.frame.file));
        names.extend(env.frame.axes.borrow().keys().map(plain));
        names.extend(builtins::names().map(str::to_string));
        let diagnostic = Diagnostic::error(Code::E0201, format!("there is no `{name}` here")).label(span, "not known");
        self.fail(match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        })
    }

    /// A variable as it is used: a weight gives its tensor; one of outside of a loop must not have the loop's axis.
    fn use_variable(&mut self, env: &Env, value: Value, name: &str, span: Span) -> Eval<Value> {
        match value {
            Value::Error => Err(Stop),
            Value::Stored(id) => Ok(Value::Tensor(self.fetch(id)?)),
            Value::Tensor(tensor) => {
                if !self.levels.iter().any(|level| level.id == tensor.level) {
                    let message = format!("`{name}` is used outside of where it was computed");
                    return Err(self.error(
                        Code::E0213,
                        message,
                        span,
                        "a tensor of a loop or a graph that is finished",
                    ));
                }
                let dead = env.frame.dead.borrow().clone();
                for (axis, level) in dead {
                    if tensor.level < level && self.axes(&tensor).contains(&axis) {
                        let message = format!("`{name}` has the axis `{axis}`, along which this loop runs");
                        let help =
                            format!("pass `{name}` to the loop: its function gets one position of it as a parameter");
                        return Err(self.error_help(Code::E0219, message, span, "used whole inside of the loop", help));
                    }
                }
                Ok(Value::Tensor(tensor))
            }
            value => Ok(value),
        }
    }

    /// A member or a function of the layer whose function is running.
    fn own_member(&mut self, this: &Layer, name: &str) -> Option<Value> {
        if let Some((_, value)) = this.data.members.iter().find(|(known, _)| &**known == name) {
            return Some(value.clone());
        }
        let def = this.data.code.as_ref()?.methods.iter().find(|def| def.name.text == name)?.clone();
        Some(Value::function(FunctionKind::Method { layer: this.clone(), def, first: None }))
    }

    fn item_value(&mut self, (file, name): (usize, String), span: Span) -> Eval<Value> {
        let key = (file, name);
        if let Some(value) = self.rebuilt_item(&key, span)? {
            return Ok(value);
        }
        let (file, name) = key;
        if let Some(value) = self.defined.get(&(file, name.clone())) {
            return if matches!(value, Value::Error) { Err(Stop) } else { Ok(value.clone()) };
        }
        let Some(global) = self.item(file, &name) else { return Err(Stop) };
        match global {
            Global::Fn(code) => Ok(Value::function(FunctionKind::Def { code, first: None })),
            Global::Layer(code) => Ok(Value::Maker(Rc::new(LayerMaker { what: MakerKind::Code(code), given: None }))),
            Global::Optimizer(code) => Ok(Value::function(FunctionKind::Optimizer(code))),
            Global::Broken | Global::Unread(_) => Err(Stop),
            Global::Stage(kind) => Err(self.error(
                Code::E0221,
                format!("the {kind} stage `{name}` has no value here"),
                span,
                "used as a value",
            )),
            Global::Arg(arg) => {
                let given = self.arg_values.get(&(file, name.clone())).cloned();
                let default = given.or_else(|| arg.default.clone().map(Rc::new));
                let Some(expr) = default else {
                    let optional =
                        arg.ty.as_ref().is_some_and(|ty| matches!(ty.kind, crate::syntax::ast::TypeKind::Optional(_)));
                    return if optional { Ok(Value::None) } else { Err(self.missing_arg(&name, span)) };
                };
                let ty = arg.ty.clone();
                self.once((file, name), span, |elab| {
                    let env = elab.file_env(file);
                    let value = elab.eval(&env, &expr)?;
                    if matches!(value, Value::Tensor(_)) {
                        return Err(elab.error(
                            Code::E0213,
                            "an `arg` is known at compile time, not a tensor",
                            expr.span,
                            "a tensor",
                        ));
                    }
                    match &ty {
                        Some(ty) => elab.check_scalar_type(&env, ty, value, expr.span, "the argument"),
                        None => Ok(value),
                    }
                })
            }
            Global::Model(expr) => {
                let root = name.clone();
                self.once((file, name), span, |elab| {
                    let env = elab.file_env(file);
                    elab.build_root(&root, &env, &expr)
                })
            }
        }
    }

    /// The value of an `arg` of the recipe, if there is one of that name.
    pub(super) fn arg_value(&mut self, env: &Env, name: &str) -> Option<Value> {
        let found = self.find_item(env.frame.file, name)?;
        match self.files[found.0].items.get(&found.1) {
            Some((Global::Arg(_), span)) => {
                let span = *span;
                self.item_value(found, span).ok()
            }
            _ => None,
        }
    }

    fn missing_arg(&mut self, name: &str, span: Span) -> Stop {
        let known =
            self.diagnostics.iter().any(|known| known.is_error() && known.message.contains(&format!("`{name}`")));
        if known {
            return Stop;
        }
        let help = format!("give it on the command line: `--{} VALUE`", name.replace('_', "-"));
        self.error_help(Code::E0208, format!("the argument `{name}` has no value"), span, "used here", help)
    }

    /// Evaluates an item once; a circle is an error.
    fn once(&mut self, key: (usize, String), span: Span, make: impl FnOnce(&mut Self) -> Eval<Value>) -> Eval<Value> {
        if self.evaluating.contains(&key) {
            let message = format!("`{}` needs itself", key.1);
            return Err(self.error(Code::E0214, message, span, "this closes the circle"));
        }
        self.evaluating.push(key.clone());
        let value = make(self);
        self.evaluating.pop();
        self.defined.insert(key, value.clone().unwrap_or(Value::Error));
        value
    }

    // ---- axes ----

    /// The size of an axis of this frame, or of the one whose twin it is; not of the file's axes.
    pub(super) fn local_axis_size(&self, env: &Env, name: &Name) -> Option<u64> {
        let axes = env.frame.axes.borrow();
        axes.get(name).or_else(|| axes.get(&untwinned(name))).copied()
    }

    /// The size of an axis in scope.
    pub(crate) fn axis_size(&mut self, env: &Env, name: &Name, span: Span) -> Eval<Option<u64>> {
        if let Some(size) = self.local_axis_size(env, name) {
            return Ok(Some(size));
        }
        let base = untwinned(name);
        let file = env.frame.file;
        let Some(decl) = self.files[file].axes.get(base.as_str()).cloned() else { return Ok(None) };
        let key = (file, format!("axis {base}"));
        let value = match self.defined.get(&key) {
            Some(Value::Error) => return Err(Stop),
            Some(value) => value.clone(),
            None => self.once(key, span, |elab| {
                let env = elab.file_env(file);
                let size = elab.eval_size(&env, &decl.size, &decl.name.text)?;
                Ok(Value::Int(size as i64))
            })?,
        };
        Ok(value.as_int().map(|size| size as u64))
    }

    /// The size of an axis that must be in scope.
    pub(super) fn need_axis(&mut self, env: &Env, name: &Name, span: Span) -> Eval<u64> {
        match self.axis_size(env, name, span)? {
            Some(size) => Ok(size),
            None => Err(self.unknown_axis(env, name, span)),
        }
    }

    pub(super) fn unknown_axis(&mut self, env: &Env, name: &Name, span: Span) -> Stop {
        let mut names: Vec<String> =
            env.frame.axes.borrow().keys().filter(|known| !known.as_str().contains('~')).map(plain).collect();
        names.extend(self.files[env.frame.file].axes.keys().cloned());
        let diagnostic = Diagnostic::error(Code::E0202, format!("no axis `{}` is in scope here", plain(name)))
            .label(span, "not known");
        self.fail(match nearest(name.as_str(), names.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None if names.is_empty() => diagnostic,
            None => diagnostic.help(format!("in scope are {}", names.join(", "))),
        })
    }

    /// A whole number above zero, from an expression: the size of an axis.
    pub(super) fn eval_size(&mut self, env: &Env, expr: &Expr, axis: &str) -> Eval<u64> {
        let value = self.eval(env, expr)?;
        self.size_of(&value, expr.span, axis)
    }

    pub(super) fn size_of(&mut self, value: &Value, span: Span, axis: &str) -> Eval<u64> {
        match (value, value.as_int(), value.as_float()) {
            (Value::Error, ..) => Err(Stop),
            (_, Some(size), _) if size > 0 => Ok(size as u64),
            (_, Some(size), _) => Err(self.error(
                Code::E0211,
                format!("axis `{axis}` would have the size {size}"),
                span,
                "a size is at least 1",
            )),
            (.., Some(size)) => {
                let message = format!("axis `{axis}` would have the size {size}, which is not whole");
                Err(self.error_help(
                    Code::E0211,
                    message,
                    span,
                    "the division leaves a rest",
                    "`div(a, b)` rounds down",
                ))
            }
            _ => {
                let message = format!("the size of axis `{axis}` is {}, not an Int", value.kind());
                Err(self.error(Code::E0209, message, span, "expected a whole number"))
            }
        }
    }
}

pub(super) fn with_given(function: &Rc<Function>, given: super::value::Given) -> Value {
    Value::Function(Rc::new(Function { kind: function.kind.clone(), given: Some(given) }))
}
