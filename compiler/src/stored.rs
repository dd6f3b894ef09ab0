//! Weights kept in fewer bits by a program that only reads them, as a decoder does: each token reads every weight once, so a
//! token takes as long as their bytes.
//!
//! In: a graph, and how its weights are to be kept. Out: the graph that reads them so, and the graph that makes them of the weights as
//! they were. Matrices are kept so, vectors stay `f32`. `bf16` rounds; `int8` is `scale · q`, `q` in -127..=127, with a scale for each
//! position of the axes that the matrix' product keeps, as weight-only quantization does by channel (Jacob et al. 2018, arXiv:1712.05877,
//! symmetric). Everything is computed in `f32`; the scale is applied to the product's result.

use std::collections::BTreeMap;

use mdl_graph::{DType, Graph, InputId, InputKind, Loop, Name, NodeId, Op, Output, Role, Type};

/// How the matrices of a model are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    #[default]
    F32,
    BF16,
    Int8,
}

impl Kept {
    pub const ALL: [Kept; 3] = [Kept::F32, Kept::BF16, Kept::Int8];

    pub fn name(self) -> &'static str {
        match self {
            Kept::F32 => "f32",
            Kept::BF16 => "bf16",
            Kept::Int8 => "int8",
        }
    }

    pub fn from_name(name: &str) -> Option<Kept> {
        Kept::ALL.into_iter().find(|kept| kept.name() == name)
    }
}

/// A program whose matrices are kept in fewer bits.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Reads the matrices by new names.
    pub graph: Graph,
    /// Reads the matrices by their old names, and gives each as it is kept, and its scale, as the next values of states. Nothing is
    /// computed where no matrix was found.
    pub convert: Graph,
    /// For each tensor that the graph reads by a new name: the matrix that it is made of.
    pub made_of: BTreeMap<Name, Name>,
}

/// Matrices with fewer numbers than this are left alone: they are no part of a token's time.
const LEAST: u64 = 1024;

/// The largest `q`.
const MOST: f64 = 127.0;

pub fn stored(graph: &Graph, kept: Kept) -> Stored {
    let mut to = Graph::new();
    let mut convert = Graph::new();
    let mut made_of = BTreeMap::new();
    let mut values = Vec::new();
    // Inputs keep their numbers; scales come after them.
    let mut scales: Vec<(usize, Name, Type)> = Vec::new();
    for (at, input) in graph.inputs().iter().enumerate() {
        let matrix = (kept != Kept::F32 && input.kind == InputKind::Weight && input.ty.dtype == DType::F32)
            .then(|| summed(graph, at))
            .flatten()
            .filter(|_| input.ty.count() >= LEAST);
        let Some(summed) = matrix else {
            values.push(Value::Plain(to.input(input.name.clone(), input.kind, input.ty.clone())));
            continue;
        };
        let dtype = if kept == Kept::Int8 { DType::I8 } else { DType::BF16 };
        let name = Name::from(format!("{} as {}", input.name, kept.name()));
        let low = to.input(name.clone(), InputKind::Weight, input.ty.with_dtype(dtype));
        made_of.insert(name.clone(), input.name.clone());
        values.push(Value::Low { low, scale: None });
        let x = convert.input(input.name.clone(), InputKind::Weight, input.ty.clone());
        let result = if kept == Kept::Int8 {
            let (q, scale) = quantized(&mut convert, x, &summed);
            let name = Name::from(format!("{} scale", input.name));
            keep(&mut convert, name.clone(), scale);
            made_of.insert(name.clone(), input.name.clone());
            scales.push((at, name, convert.ty(scale).clone()));
            q
        } else {
            convert.cast(x, dtype)
        };
        keep(&mut convert, name, result);
    }
    for (at, name, ty) in scales {
        let node = to.input(name, InputKind::Weight, ty);
        if let Value::Low { scale, .. } = &mut values[at] {
            *scale = Some(node);
        }
    }
    copy(graph, &mut to, values);
    Stored { graph: to, convert, made_of }
}

/// A result that is written to a state of its own.
fn keep(graph: &mut Graph, name: Name, node: NodeId) {
    let input = InputId(graph.inputs().len() as u32);
    let ty = graph.ty(node).clone();
    graph.input(name.clone(), InputKind::State, ty);
    graph.output_as(name, Role::Next(input), node);
}

/// `x` as `scale · q`, with one scale for all positions of the axes `over`.
fn quantized(graph: &mut Graph, x: NodeId, over: &[Name]) -> (NodeId, NodeId) {
    let negative = graph.add(Op::Neg, &[x]);
    let size = graph.add(Op::Max, &[x, negative]);
    let largest = graph.add(Op::MaxOver(over.to_vec()), &[size]);
    let most = graph.constant(MOST, DType::F32);
    let scale = graph.add(Op::Div, &[largest, most]);
    // Where all are 0, any scale will do.
    let zero = graph.constant(0.0, DType::F32);
    let one = graph.constant(1.0, DType::F32);
    let is_zero = graph.add(Op::Equal, &[scale, zero]);
    let divisor = graph.add(Op::Select, &[is_zero, one, scale]);
    let half = graph.constant(0.5, DType::F32);
    let scaled = graph.add(Op::Div, &[x, divisor]);
    let above = graph.add(Op::Add, &[scaled, half]);
    let rounded = graph.add(Op::Floor, &[above]);
    (graph.cast(rounded, DType::I8), scale)
}

/// The axes of an input that a product sums over, if one does: the input is a matrix then.
fn summed(graph: &Graph, input: usize) -> Option<Vec<Name>> {
    // The nodes that are the input, and what each of its axes is called there.
    let mut names: BTreeMap<NodeId, Vec<(Name, Name)>> = BTreeMap::new();
    for id in graph.ids() {
        let args = graph.args(id);
        let known = |arg: &NodeId| names.get(arg).cloned();
        match graph.op(id) {
            Op::Input(other) if other.0 as usize == input => {
                names.insert(id, graph.ty(id).axes.names().map(|name| (name.clone(), name.clone())).collect());
            }
            Op::Rename(pairs) => {
                if let Some(mut known) = known(&args[0]) {
                    for (here, _) in &mut known {
                        if let Some((_, new)) = pairs.iter().find(|(old, _)| old == here) {
                            *here = new.clone();
                        }
                    }
                    names.insert(id, known);
                }
            }
            Op::Detach => {
                if let Some(known) = known(&args[0]) {
                    names.insert(id, known);
                }
            }
            Op::Contract(over) => {
                if let Some(known) = args.iter().find_map(known) {
                    let own = known.into_iter().filter(|(here, _)| over.contains(here)).map(|(_, own)| own);
                    return Some(own.collect());
                }
            }
            Op::Loop(inner) => {
                for (at, arg) in args.iter().enumerate().skip(inner.carries) {
                    let Some(known) = known(arg) else { continue };
                    if let Some(found) = summed(&inner.body, at) {
                        let own = |name: &Name| known.iter().find(|(here, _)| here == name).map(|(_, own)| own.clone());
                        return Some(found.iter().filter_map(own).collect());
                    }
                }
            }
            _ => {}
        }
    }
    None
}

/// What stands for a node.
#[derive(Clone, Debug)]
enum Value {
    Plain(NodeId),
    /// `f32(low) · scale`.
    Low {
        low: NodeId,
        scale: Option<NodeId>,
    },
}

/// Copies the nodes and the outputs of a graph, given what its inputs are.
fn copy(from: &Graph, to: &mut Graph, inputs: Vec<Value>) {
    let live = from.live();
    let mut values: Vec<Option<Value>> = vec![None; from.nodes().len()];
    for id in from.ids().filter(|id| live[id.idx()] || matches!(from.op(*id), Op::Input(_))) {
        to.set_here_like(from.node(id));
        let args: Vec<Value> = from.args(id).iter().filter_map(|arg| values[arg.idx()].clone()).collect();
        let value = match (from.op(id), &args[..]) {
            (Op::Input(input), _) => inputs[input.0 as usize].clone(),
            (Op::Detach, [value]) => value.clone(),
            (Op::Rename(pairs), [Value::Low { low, scale }]) => Value::Low {
                low: to.rename(*low, pairs.clone()),
                scale: scale.map(|scale| {
                    let has = |name: &Name| to.ty(scale).axes.contains(name);
                    let pairs: Vec<(Name, Name)> = pairs.iter().filter(|(old, _)| has(old)).cloned().collect();
                    if pairs.is_empty() { scale } else { to.rename(scale, pairs) }
                }),
            },
            (Op::Gather { axis }, [Value::Low { low, scale }, index]) => {
                let index = plain(to, index);
                let pick = |to: &mut Graph, table| to.add(Op::Gather { axis: axis.clone() }, &[table, index]);
                let scale = scale.map(|scale| if to.ty(scale).axes.contains(axis) { pick(to, scale) } else { scale });
                Value::Low { low: pick(to, *low), scale }
            }
            (Op::Contract(over), [a, b]) => Value::Plain(contract(to, over, a, b)),
            (Op::Loop(inner), _) => {
                let (inner, args) = around(to, inner, &args);
                Value::Plain(to.add(Op::Loop(Box::new(inner)), &args))
            }
            _ => {
                let args: Vec<NodeId> = args.iter().map(|arg| plain(to, arg)).collect();
                Value::Plain(to.copy(from, id, &args))
            }
        };
        values[id.idx()] = Some(value);
    }
    let outputs = from.outputs().iter().filter_map(|output| {
        let node = plain(to, values[output.node.idx()].as_ref()?);
        Some(Output { node, ..output.clone() })
    });
    let outputs = outputs.collect();
    to.set_outputs(outputs);
}

/// A value as `f32`.
fn plain(to: &mut Graph, value: &Value) -> NodeId {
    match *value {
        Value::Plain(node) => node,
        Value::Low { low, scale } => {
            let wide = to.cast(low, DType::F32);
            scale.map_or(wide, |scale| to.add(Op::Mul, &[wide, scale]))
        }
    }
}

/// A product of what is kept: a scale that is the same all along a sum is applied to the result.
fn contract(to: &mut Graph, over: &[Name], a: &Value, b: &Value) -> NodeId {
    let mut after = Vec::new();
    let mut operand = |to: &mut Graph, value: &Value| match *value {
        Value::Low { low, scale: Some(scale) } if !over.iter().any(|name| to.ty(scale).axes.contains(name)) => {
            after.push(scale);
            to.cast(low, DType::F32)
        }
        _ => plain(to, value),
    };
    let (a, b) = (operand(to, a), operand(to, b));
    let product = to.add(Op::Contract(over.to_vec()), &[a, b]);
    after.into_iter().fold(product, |product, scale| to.add(Op::Mul, &[product, scale]))
}

/// A loop with what it is given kept in fewer bits: a scale is one more argument, scanned if it has the loop's axis.
fn around(to: &mut Graph, inner: &Loop, args: &[Value]) -> (Loop, Vec<NodeId>) {
    let scans_end = inner.carries + inner.scans;
    let mut given: Vec<NodeId> = Vec::new();
    // Each scale with the argument that it is of.
    let (mut scanned, mut free) = (Vec::new(), Vec::new());
    for (at, value) in args.iter().enumerate() {
        given.push(match *value {
            Value::Low { low, scale } if at >= inner.carries => {
                if let Some(scale) = scale {
                    let is_scanned = to.ty(scale).axes.contains(&inner.axis.name);
                    if is_scanned { &mut scanned } else { &mut free }.push((at, scale));
                }
                low
            }
            _ => plain(to, value),
        });
    }
    // The body's inputs come in the order of the loop's arguments: what is scanned, then what is free.
    let mut body = Graph::new();
    let mut param = |at: Option<usize>, node: NodeId, is_scanned: bool| {
        let old = at.map(|at| &inner.body.inputs()[at]);
        let name = old.map_or(Name::from("scale"), |input| input.name.clone());
        let mut ty = to.ty(node).clone();
        if is_scanned {
            ty.axes.remove(&inner.axis.name);
        }
        body.input(name, old.map_or(InputKind::Param, |input| input.kind), ty)
    };
    let first: Vec<NodeId> = (0..scans_end).map(|at| param(Some(at), given[at], at >= inner.carries)).collect();
    let first_scales: Vec<NodeId> = scanned.iter().map(|(_, scale)| param(None, *scale, true)).collect();
    let rest: Vec<NodeId> = (scans_end..args.len()).map(|at| param(Some(at), given[at], false)).collect();
    let rest_scales: Vec<NodeId> = free.iter().map(|(_, scale)| param(None, *scale, false)).collect();
    let mut values: Vec<Value> = first.into_iter().chain(rest).map(Value::Plain).collect();
    for (at, value) in values.iter_mut().enumerate().skip(inner.carries) {
        if let (Value::Low { .. }, Value::Plain(low)) = (&args[at], &*value) {
            *value = Value::Low { low: *low, scale: None };
        }
    }
    for ((at, _), own) in scanned.iter().zip(first_scales).chain(free.iter().zip(rest_scales)) {
        if let Value::Low { scale, .. } = &mut values[*at] {
            *scale = Some(own);
        }
    }
    copy(&inner.body, &mut body, values);
    let tail = given.split_off(scans_end);
    given.extend(scanned.iter().map(|(_, scale)| *scale));
    given.extend(tail);
    given.extend(free.iter().map(|(_, scale)| *scale));
    (Loop { scans: inner.scans + scanned.len(), ..inner.with_body(body) }, given)
}
