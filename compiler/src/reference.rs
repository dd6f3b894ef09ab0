//! The meaning of every primitive: a plain interpreter of graphs.
//!
//! In: a graph and a tensor for each input. Out: a tensor for each output, in their order. [`eval`] computes every float in `f64`,
//! whatever its type says; [`eval_stored`] rounds the result of every node to its type, which is what a target that stores each
//! node would give (its sums are exact before that rounding). Sizes 0 and 1 are ordinary.
//! Elementary functions come from `libm`, not from the machine's C library, so that constants folded with this interpreter are
//! the same bits everywhere. Deliberately absent: speed beyond what tests need, and `Grad`, which `differentiate` replaces first.

mod control;
mod maps;
mod moves;
mod nan;
mod sums;
mod tensor;

use std::fmt;
use std::rc::Rc;

use mdl_graph::{Graph, NodeId, Op, Type};

pub use nan::{NanPlace, first_nan};
pub use tensor::{Data, Tensor, offsets, strides};

/// Whether floats are rounded to the types of their nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// All floats are `f64`.
    Exact,
    /// The result of each node is rounded to its dtype.
    Stored,
}

/// Inputs that do not fit the graph, or a node that has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    pub node: Option<NodeId>,
    pub message: String,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for EvalError {}

/// The outputs of `graph`, floats in `f64`.
pub fn eval(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    eval_with(graph, inputs, Rounding::Exact)
}

/// The outputs of `graph`, every node rounded to its dtype.
pub fn eval_stored(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    eval_with(graph, inputs, Rounding::Stored)
}

pub fn eval_with(graph: &Graph, inputs: &[Tensor], rounding: Rounding) -> Result<Vec<Tensor>, EvalError> {
    let fail = |message: String| Err(EvalError { node: None, message });
    if inputs.len() != graph.inputs().len() {
        return fail(format!("{} values for {} inputs", inputs.len(), graph.inputs().len()));
    }
    for (value, input) in inputs.iter().zip(graph.inputs()) {
        if value.ty != input.ty {
            return fail(format!("input `{}` is {}, not {}", input.name, input.ty, value.ty));
        }
        if !value.is_whole() {
            return fail(format!("the data of input `{}` does not fit {}", input.name, value.ty));
        }
    }
    let inputs: Vec<Rc<Tensor>> = inputs.iter().map(|value| Rc::new(value.clone())).collect();
    let results = run(graph, &inputs, rounding)?;
    Ok(results.into_iter().map(Rc::unwrap_or_clone).collect())
}

/// What a node holds while the graph runs: a value, or the results of a loop.
#[derive(Clone)]
enum Held {
    One(Rc<Tensor>),
    Many(Vec<Rc<Tensor>>),
}

fn run(graph: &Graph, inputs: &[Rc<Tensor>], rounding: Rounding) -> Result<Vec<Rc<Tensor>>, EvalError> {
    let live = graph.live();
    let mut users = vec![0u32; graph.nodes().len()];
    for id in graph.ids().filter(|id| live[id.idx()]) {
        for arg in graph.args(id) {
            users[arg.idx()] += 1;
        }
    }
    for output in graph.outputs() {
        users[output.node.idx()] += 1;
    }
    let mut held: Vec<Option<Held>> = vec![None; graph.nodes().len()];
    for id in graph.ids().filter(|id| live[id.idx()]) {
        let value =
            step(graph, id, inputs, &held, rounding).map_err(|message| EvalError { node: Some(id), message })?;
        held[id.idx()] = Some(value);
        for arg in graph.args(id) {
            users[arg.idx()] -= 1;
            if users[arg.idx()] == 0 {
                held[arg.idx()] = None;
            }
        }
    }
    let mut results = Vec::with_capacity(graph.outputs().len());
    for output in graph.outputs() {
        match &held[output.node.idx()] {
            Some(Held::One(value)) => results.push(value.clone()),
            _ => {
                return Err(EvalError {
                    node: Some(output.node),
                    message: format!("output `{}` is no value", output.name),
                });
            }
        }
    }
    Ok(results)
}

/// The value of one node, from those of its arguments.
fn step(
    graph: &Graph,
    id: NodeId,
    inputs: &[Rc<Tensor>],
    held: &[Option<Held>],
    rounding: Rounding,
) -> Result<Held, String> {
    let node = graph.node(id);
    let mut args: Vec<&Rc<Tensor>> = Vec::with_capacity(node.args.len());
    for arg in &node.args {
        match (&held[arg.idx()], &node.op) {
            (Some(Held::One(value)), _) => args.push(value),
            (Some(Held::Many(results)), Op::Get(k)) => {
                let result = results.get(*k as usize).ok_or_else(|| format!("no result {k}"))?;
                return Ok(Held::One(result.clone()));
            }
            _ => return Err(format!("argument {arg} has no value")),
        }
    }
    let mut value = match &node.op {
        Op::Input(input) => {
            let value = inputs.get(input.0 as usize).ok_or("no such input")?;
            if rounding == Rounding::Exact {
                return Ok(Held::One(value.clone()));
            }
            Tensor::clone(value)
        }
        Op::Detach => return Ok(Held::One(args[0].clone())),
        op @ Op::Loop(_) => return control::run_loop(op, &args, rounding).map(Held::Many),
        _ => {
            let args: Vec<&Tensor> = args.into_iter().map(Rc::as_ref).collect();
            apply(&node.op, &args, &node.ty)?
        }
    };
    if rounding == Rounding::Stored {
        value.round();
    }
    Ok(Held::One(Rc::new(value)))
}

/// One primitive that is a function of the values of its arguments, not rounded.
pub(crate) fn apply(op: &Op, args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    match op {
        Op::Const(value, _) => Ok(Tensor::filled(ty.clone(), *value)),
        Op::Iota(_) => Ok(Tensor { ty: ty.clone(), data: Data::Int((0..ty.count() as i64).collect()) }),
        Op::Exp
        | Op::Log
        | Op::Tanh
        | Op::Erf
        | Op::Sin
        | Op::Cos
        | Op::Sqrt
        | Op::Floor
        | Op::Neg
        | Op::Cast(_)
        | Op::Add
        | Op::Sub
        | Op::Mul
        | Op::Div
        | Op::Max
        | Op::Rem
        | Op::Pow
        | Op::Less
        | Op::Equal
        | Op::And
        | Op::Or
        | Op::Not
        | Op::Select
        | Op::Uniform { .. } => maps::map(op, args, ty),
        Op::Sum(names) => sums::sum(args[0], names, ty),
        Op::MaxOver(names) => sums::max_over(args[0], names, ty),
        Op::Prefix { axis, reverse } => sums::prefix(args[0], axis, *reverse, ty),
        Op::Contract(names) => sums::contract(args[0], args[1], names, ty),
        Op::Top { axis, out } => sums::top(args[0], axis, out, ty),
        Op::Rename(_)
        | Op::Split { .. }
        | Op::Merge { .. }
        | Op::Slice { .. }
        | Op::Pad { .. }
        | Op::Window { .. }
        | Op::Unwindow { .. }
        | Op::Expand(_) => moves::view(op, args[0], ty),
        Op::Gather { axis } => moves::gather(args[0], args[1], axis, ty),
        Op::Scatter { axis, keep, kind } => moves::scatter(args[0], args[1], axis, keep, *kind, ty),
        Op::Grad => Err("`grad` has a value only after `differentiate`".into()),
        Op::Input(_) | Op::Loop(_) | Op::Get(_) | Op::Detach => Err(format!("`{}` is no primitive", op.name())),
    }
}
