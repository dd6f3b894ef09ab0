//! A model on arrays: `mdlc apply`. The arrays are arguments of the model's `forward`, by name, or of `call` where it has none.
//!
//! In: a recipe, and the names, types and shapes of arrays. Out: one graph with what the function returns, and the sums of squares of the
//! loss's gradients if they are asked for. Sizes of the axes that the function's types name come from the arrays.

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, Op, Role, Type};

use crate::check::{Args, Eval, StoredKind, Value, World};
use crate::diag::{Code, Diagnostic, Sources, nearest};
use crate::spec::Read;
use crate::syntax::ast::{self, AxisItemKind, Expr, ExprKind, FileId, FnDef, ItemKind, PatternKind, Span, TypeKind};

use super::context::Context;
use super::direct::built;
use super::read::Compute;
use super::step::BATCH;

/// An input or a result, and the axes of its array in order.
pub type Ordered = (String, Vec<Name>);

/// An array as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    pub name: String,
    pub kind: ArrayKind,
    pub shape: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayKind {
    Bool,
    Int,
    Float,
}

/// What to run, and how its inputs and outputs lie in files.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Values: what the function returns under its names; `grad:PATH`, the sums of squares of a weight's gradient, along its
    /// axes of copies.
    pub graph: Graph,
    pub reads: Vec<Read>,
    /// The arrays that the function takes, each with its axes in the order of the array.
    pub inputs: Vec<Ordered>,
    /// What it returns, each with its axes in the order in which it is written.
    pub outputs: Vec<Ordered>,
    /// With a loss: the weights by the names of their inputs.
    pub gradients: Vec<Name>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The trained stage; the last one without, or where none trains, the last `model`.
    pub stage: Option<&'a str>,
    /// Also the gradients of the result `loss`.
    pub gradients: bool,
    /// The folder of an adapter around the model.
    pub adapter: Option<&'a str>,
}

/// Checks a recipe and builds what applies one of its models to arrays.
pub fn apply(
    sources: &mut Sources,
    main: FileId,
    args: &[(String, String)],
    world: &dyn World,
    arrays: &[Array],
    asked: Asked<'_>,
) -> (Option<Applied>, Vec<Diagnostic>) {
    built(sources, main, args, world, |context, _, file| context.applied(file, arrays, asked))
}

impl Context<'_> {
    fn applied(&mut self, file: &ast::File, arrays: &[Array], asked: Asked<'_>) -> Option<Applied> {
        let (name, span) = self.model_asked(file, asked.stage)?;
        self.set_training(None);
        let env = self.env.clone();
        if asked.adapter.is_some() {
            // From here on its name is the model with the adapters.
            let builder = self.with_saved(&name, span, asked.adapter)?;
            let model = self.elab.rebuild("adapted", &env, &builder).ok()?;
            self.elab.idle_adapters(&builder.adapters, &model).ok()?;
        }
        let model = self.elab.eval(&env, &Expr { kind: ExprKind::Name(name.clone()), span }).ok()?;
        let Some(def) = ["forward", "call"].iter().find_map(|name| self.elab.function_of(&model, name)) else {
            let message = format!("`{name}` is no model that can be applied");
            self.report(Diagnostic::error(Code::E0209, message).label(span, format!("this is {}", model.kind())));
            return None;
        };
        self.begin(span)?;
        let (args, inputs) = self.arguments(&def, arrays, span)?;
        let result = self.call_member(name, &def.name.text, args, span)?;
        let mut outputs = Vec::new();
        let mut loss = None;
        for (name, value) in results(&result) {
            let value = match &value {
                // A number of compile time is one of the result, too.
                Value::Tensor(_) | Value::Int(_) | Value::Float(_) => value,
                _ => continue,
            };
            let node = self.elab.node_of(&value, span).ok()?;
            let order = self.order_of(&def, &name, node, span)?;
            self.elab.graph().output_as(name.as_str(), Role::Value, node);
            if name == "loss" {
                loss = Some(value);
            }
            outputs.push((name, order));
        }
        let gradients = if asked.gradients { self.squares(&model, loss, &def, span)? } else { Vec::new() };
        let graph = self.elab.finish();
        let mut reads = Vec::new();
        self.reads_of(&graph, &[], span, &mut reads)?;
        Some(Applied { graph, reads, inputs, outputs, gradients })
    }

    /// What a function of the item of that name gives.
    pub(super) fn call_member(&mut self, item: String, function: &str, args: Args, span: Span) -> Option<Value> {
        let base = Box::new(Expr { kind: ExprKind::Name(item), span });
        let name = ast::Name { text: function.to_owned(), span };
        let env = self.env.clone();
        let callee = self.elab.eval(&env, &Expr { kind: ExprKind::Member { base, name }, span }).ok()?;
        self.elab.call(&callee, args, span).ok()
    }

    /// The stage or model that is meant, and where it stands.
    pub(super) fn model_asked(&mut self, file: &ast::File, stage: Option<&str>) -> Option<(String, Span)> {
        let place = |name: &str| {
            let item = file.items.iter().find(|item| item.name().is_some_and(|known| known.text == name));
            item.and_then(|item| item.name()).map_or(Span::default(), |name| name.span)
        };
        if let Some(entry) = self.trained.iter().rev().find(|entry| stage.is_none_or(|name| name == entry.name)) {
            let name = entry.name.clone();
            let span = place(&name);
            return Some((name, span));
        }
        let mut models = file.items.iter().rev().filter_map(|item| match &item.kind {
            ItemKind::Model { name, .. } => Some((name.text.clone(), name.span)),
            _ => None,
        });
        let found = models.find(|(name, _)| stage.is_none_or(|asked| asked == name));
        if found.is_none() {
            let message = match stage {
                Some(name) => format!("the recipe has no train stage or model `{name}`"),
                None => "the recipe has neither a train stage nor a model".to_owned(),
            };
            let here = Span { file: file.id, ..Span::default() };
            self.report(Diagnostic::error(Code::E0311, message).label(here, "in this recipe"));
        }
        found
    }

    /// The arrays as arguments: inputs of the graph.
    pub(super) fn arguments(&mut self, def: &FnDef, arrays: &[Array], span: Span) -> Option<(Args, Vec<Ordered>)> {
        let mut args = Args::default();
        let mut inputs = Vec::new();
        let mut sizes: Vec<(Name, u64, String)> = Vec::new();
        let params: Vec<&ast::Param> = def.params.iter().flatten().collect();
        let named = |param: &ast::Param| match &param.pattern.kind {
            PatternKind::Name(name) => Some(name.clone()),
            PatternKind::Wildcard | PatternKind::Tuple(_) => None,
        };
        let known: Vec<String> = params.iter().filter_map(|param| named(param)).collect();
        for array in arrays {
            let param = params.iter().find(|param| named(param).as_ref() == Some(&array.name));
            let refused = |message: String, help: String| {
                Diagnostic::error(Code::E0208, message).label(span, "applied here").help(help)
            };
            let Some(param) = param else {
                let message = format!("the model takes no array `{}`", array.name);
                let help = match nearest(&array.name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it takes {}", known.join(", ")),
                };
                self.report(refused(message, help));
                return None;
            };
            let Some((dtype, axes)) = tensor_type(param.ty.as_ref()) else {
                let message = format!("`{}` of the model is no array with named axes", array.name);
                self.report(refused(message, "its parameter has a type such as `int[.., t]`".to_owned()));
                return None;
            };
            let is_float = dtype.is_float();
            if is_float != (array.kind == ArrayKind::Float) && !(is_float && array.kind == ArrayKind::Int) {
                let message = format!("`{}` holds {} and the model takes {dtype}", array.name, array.kind.shown());
                self.report(refused(message, "save the array in another type".to_owned()));
                return None;
            }
            if axes.len() != array.shape.len() {
                let shown: Vec<String> = axes.iter().map(Name::to_string).collect();
                let message = format!(
                    "`{}` has {} dimensions, and the model takes [{}]",
                    array.name,
                    array.shape.len(),
                    shown.join(", ")
                );
                self.report(refused(message, "the first dimension is the batch, also of one example".to_owned()));
                return None;
            }
            for (axis, size) in axes.iter().zip(&array.shape) {
                match sizes.iter().find(|(name, ..)| name == axis) {
                    Some((_, known, first)) if known != size => {
                        let message =
                            format!("the axis `{axis}` is {known} in `{first}` and {size} in `{}`", array.name);
                        self.report(refused(message, "the arrays of one batch go together".to_owned()));
                        return None;
                    }
                    Some(_) => {}
                    None => sizes.push((axis.clone(), *size, array.name.clone())),
                }
            }
            if let Some(axis) = axes.iter().zip(&array.shape).find(|(_, size)| **size == 0) {
                let message = format!("the axis `{}` of `{}` is empty", axis.0, array.name);
                self.report(refused(message, "there must be at least one".to_owned()));
                return None;
            }
            let own = axes.iter().zip(&array.shape).map(|(axis, size)| Axis::new(axis.clone(), *size));
            let Some(set) = AxisSet::of(own) else {
                let message = format!("the parameter `{}` of the model has an axis twice", array.name);
                self.report(refused(message, "the second one is a twin: `t'`".to_owned()));
                return None;
            };
            let value = self.elab.input(&array.name, InputKind::Batch, Type::new(dtype, set));
            args.named.push((array.name.as_str().into(), value, span));
            inputs.push((array.name.clone(), axes));
        }
        Some((args, inputs))
    }

    /// The order in which the axes of a result are written: `batch`, then as the function's type has them.
    fn order_of(&mut self, def: &FnDef, name: &str, node: mdl_graph::NodeId, span: Span) -> Option<Vec<Name>> {
        let ty = self.elab.graph().ty(node).clone();
        let declared = match def.result.as_ref().map(|ty| &ty.kind) {
            Some(TypeKind::Record(fields)) => fields.iter().find(|(known, _)| known.text == name).map(|(_, ty)| ty),
            Some(_) => def.result.as_ref(),
            None => None,
        };
        let mut order: Vec<Name> = match tensor_type(declared) {
            Some((_, axes)) => axes.into_iter().filter(|axis| ty.axes.contains(axis)).collect(),
            None => Vec::new(),
        };
        let left: Vec<Name> = ty.axes.names().filter(|axis| !order.contains(axis)).cloned().collect();
        if left.len() > 1 || (left.len() == 1 && !order.is_empty()) {
            let names: Vec<String> = left.iter().map(Name::to_string).collect();
            let message =
                format!("in which order the axes of the result `{name}` are written is not said: {}", names.join(", "));
            let help = "give the function a result type, such as `-> (logits: [.., t, vocab])`";
            let place = def.result.as_ref().map_or(def.name.span, |ty| ty.span);
            let diagnostic = Diagnostic::error(Code::E0206, message).label(place, "this function");
            self.report(diagnostic.label(span, "applied here").help(help));
            return None;
        }
        order.extend(left);
        Some(order)
    }

    /// The sums of squares of the gradients of `loss`, as values of the graph; gives the names of the weights' inputs.
    fn squares(&mut self, model: &Value, loss: Option<Value>, def: &FnDef, span: Span) -> Option<Vec<Name>> {
        let Some(loss) = loss else {
            let message = format!("`{}` of the model gives no `loss` of these arrays", def.name.text);
            let help = "a loss is of `labels`, or whatever the model calls what it should have said";
            self.report(Diagnostic::error(Code::E0314, message).label(span, "applied here").help(help));
            return None;
        };
        let mut ids = self.elab.stored_of(model);
        ids.retain(|id| self.stored(*id).kind == StoredKind::Weight);
        let grads = self.elab.grads(&loss, &ids, span).ok()?;
        let mut names = Vec::new();
        for (id, grad) in ids.iter().zip(&grads) {
            let name = Name::from(self.elab.stored_name(*id));
            let own: Vec<Name> = self.stored(*id).axes.iter().map(|axis| axis.name.clone()).collect();
            let squares = |context: &mut Context<'_>| -> Eval<()> {
                let grad = context.elab.node_of(grad, span)?;
                let graph = context.elab.graph();
                let square = graph.add(Op::Mul, &[grad, grad]);
                let sum = graph.sum(square, own);
                graph.output_as(format!("grad:{name}"), Role::Value, sum);
                Ok(())
            };
            squares(self).ok()?;
            names.push(name);
        }
        Some(names)
    }
}

/// What a function takes as a parameter.
pub(super) fn dtype_of(def: &FnDef, name: &str) -> Option<DType> {
    let is_it = |param: &&ast::Param| matches!(&param.pattern.kind, PatternKind::Name(known) if known == name);
    let param = def.params.iter().flatten().find(is_it)?;
    tensor_type(param.ty.as_ref()).map(|(dtype, _)| dtype)
}

/// What a function returned, by name.
pub(super) fn results(value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Record(fields) => fields.iter().map(|(name, value)| (name.to_string(), value.clone())).collect(),
        Value::Tuple(items) | Value::List(items) => {
            items.iter().enumerate().map(|(i, value)| (format!("result.{i}"), value.clone())).collect()
        }
        value => vec![("result".to_owned(), value.clone())],
    }
}

/// The dtype and axes of `int[.., t]`, or of that with `?`; `..` is the batch.
fn tensor_type(ty: Option<&ast::Type>) -> Option<(DType, Vec<Name>)> {
    match &ty?.kind {
        TypeKind::Optional(inner) => tensor_type(Some(inner)),
        TypeKind::Tensor { dtype, axes } => {
            let dtype = match dtype.as_ref().map(|dtype| dtype.name.text.as_str()) {
                None => DType::F32,
                Some("int") => DType::I32,
                Some(name) => DType::from_name(name)?,
            };
            let items = axes.as_ref().map_or(&[] as &[_], |axes| axes.items.as_slice());
            let mut names = Vec::new();
            for item in items {
                match &item.kind {
                    AxisItemKind::Axis(axis) if axis.is_rest() => names.push(Name::from(BATCH)),
                    AxisItemKind::Axis(axis) => names.push(Name::from(axis.text())),
                    AxisItemKind::Bind { axis, .. } => names.push(Name::from(axis.text())),
                    _ => return None,
                }
            }
            Some((dtype, names))
        }
        _ => None,
    }
}

impl ArrayKind {
    fn shown(self) -> &'static str {
        match self {
            ArrayKind::Bool => "truth values",
            ArrayKind::Int => "integers",
            ArrayKind::Float => "floats",
        }
    }
}
