//! Tensors kept in fewer bits than they are computed in: the weights of a decoder, which takes as long as their bytes; frozen weights beside
//! trained adapters; what an optimizer remembers.
//!
//! In: a graph, and how each of its weights and states is kept. Out: the graph that reads and writes them so, and the graphs that make the
//! parts of weights of the weights as they were. `bf16` rounds; `int8` is `scale · q`, `q` in -127..=127, with a scale for each
//! position of the axes that the matrix' product keeps, as weight-only quantization does by channel (Jacob et al. 2018, arXiv:1712.05877,
//! symmetric); both are for matrices, and vectors stay `f32`. Blocks have codes of four or eight bits and a scale each (`blocks.rs`).
//! Everything is computed in `f32`; a scale that is the same all along a sum is applied to the product's result.
//!
//! A tensor goes into loops as its parts and becomes numbers where it is used, so that never more than one layer's are there.

pub mod blocks;

use std::collections::BTreeMap;

use mdl_graph::{Axis, DType, Graph, Input, InputId, InputKind, Loop, Name, NodeId, Op, Output, Role, Type};

use blocks::Blocks;

/// How a tensor is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kept {
    #[default]
    F32,
    BF16,
    Int8,
    Blocks(Blocks),
}

impl Kept {
    /// Those of matrices that are only read.
    pub const ALL: [Kept; 3] = [Kept::F32, Kept::BF16, Kept::Int8];

    pub fn name(self) -> &'static str {
        match self {
            Kept::F32 => "f32",
            Kept::BF16 => "bf16",
            Kept::Int8 => "int8",
            Kept::Blocks(blocks) => blocks.name(),
        }
    }

    pub fn from_name(name: &str) -> Option<Kept> {
        Kept::ALL.into_iter().find(|kept| kept.name() == name)
    }
}

/// The order of axes of each weight and state.
pub type Orders = BTreeMap<Name, Vec<Name>>;

/// A program some of whose tensors are kept in fewer bits.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Reads the parts by new names, and writes those of states.
    pub graph: Graph,
    pub convert: Vec<Convert>,
    /// The order of axes of each part.
    pub orders: Orders,
}

/// What makes the parts of one weight.
#[derive(Clone, Debug)]
pub struct Convert {
    pub of: Name,
    /// Reads the weight by its old name, and gives its parts as the next values of states.
    pub graph: Graph,
}

impl Convert {
    /// The names of the parts.
    pub fn parts(&self) -> impl Iterator<Item = &Name> {
        self.graph.outputs().iter().map(|output| &output.name)
    }
}

/// Matrices with fewer numbers than this are left alone: they are no part of a token's time.
const LEAST: u64 = 1024;

/// The largest `q`.
const MOST: f64 = 127.0;

/// How an input is kept, once it is known to be fit for it.
enum Form {
    Plain,
    BF16,
    /// With the axes that its product sums over.
    Int8(Vec<Name>),
    /// With the axes that blocks run across.
    Blocks(Blocks, Vec<Axis>),
}

impl Form {
    fn of(graph: &Graph, at: usize, kept: Kept, orders: &Orders) -> Form {
        let input = &graph.inputs()[at];
        let matrix = || {
            let is_weight = input.kind == InputKind::Weight && input.ty.count() >= LEAST;
            summed(graph, at).filter(|_| is_weight)
        };
        match kept {
            _ if input.ty.dtype != DType::F32 => Form::Plain,
            Kept::F32 => Form::Plain,
            Kept::BF16 => matrix().map_or(Form::Plain, |_| Form::BF16),
            Kept::Int8 => matrix().map_or(Form::Plain, Form::Int8),
            Kept::Blocks(blocks) => {
                let axes = ordered(input, orders);
                blocks.across(&axes).map_or(Form::Plain, |flat| Form::Blocks(blocks, flat))
            }
        }
    }

    /// The names and types of the parts.
    fn parts(&self, input: &Input) -> Vec<(Name, Type)> {
        let named = |what: &str| Name::from(format!("{} {what}", input.name));
        match self {
            Form::Plain => vec![(input.name.clone(), input.ty.clone())],
            Form::BF16 => vec![(named("as bf16"), input.ty.with_dtype(DType::BF16))],
            Form::Int8(over) => {
                let mut scale = input.ty.clone();
                for name in over {
                    scale.axes.remove(name);
                }
                vec![(named("as int8"), input.ty.with_dtype(DType::I8)), (named("scale"), scale)]
            }
            Form::Blocks(blocks, flat) => {
                let names = [named(&format!("as {}", blocks.name())), named("scale"), named("scale of scales")];
                names.into_iter().zip(blocks.parts(&input.ty, flat)).collect()
            }
        }
    }

    fn encode(&self, to: &mut Graph, x: NodeId) -> Vec<NodeId> {
        match self {
            Form::Plain => vec![x],
            Form::BF16 => vec![to.cast(x, DType::BF16)],
            Form::Int8(over) => {
                let (q, scale) = quantized(to, x, over);
                vec![q, scale]
            }
            Form::Blocks(blocks, flat) => blocks.encode(to, x, flat),
        }
    }

    /// What stands for an input that is kept as these parts.
    fn value(&self, parts: Vec<NodeId>) -> Value {
        match self {
            Form::Plain => Value::Plain(parts[0]),
            Form::BF16 | Form::Int8(_) => Value::Low(Low { parts, blocks: None }),
            Form::Blocks(blocks, flat) => Value::Low(Low { parts, blocks: Some((*blocks, flat.clone())) }),
        }
    }
}

/// The axes of an input in the order of its file.
fn ordered(input: &Input, orders: &Orders) -> Vec<Axis> {
    let axes = &input.ty.axes;
    match orders.get(&input.name) {
        Some(order) => order.iter().filter_map(|name| axes.get(name).cloned()).collect(),
        None => axes.iter().cloned().collect(),
    }
}

/// The graph whose weights and states are kept as `keep` says of each.
pub fn stored(graph: &Graph, keep: &dyn Fn(&Input) -> Kept, orders: &Orders) -> Stored {
    let mut to = Graph::new();
    let (mut convert, mut new_orders) = (Vec::new(), Orders::new());
    let forms: Vec<Form> =
        graph.inputs().iter().enumerate().map(|(at, input)| Form::of(graph, at, keep(input), orders)).collect();
    // Inputs keep their numbers; further parts come after them.
    let mut parts: Vec<Vec<NodeId>> = Vec::new();
    let all: Vec<Vec<(Name, Type)>> = forms.iter().zip(graph.inputs()).map(|(form, input)| form.parts(input)).collect();
    for (input, own) in graph.inputs().iter().zip(&all) {
        parts.push(vec![to.input(own[0].0.clone(), input.kind, own[0].1.clone())]);
    }
    let mut numbers: Vec<Vec<InputId>> = (0..parts.len()).map(|at| vec![InputId(at as u32)]).collect();
    for (at, input) in graph.inputs().iter().enumerate() {
        for (name, ty) in &all[at][1..] {
            numbers[at].push(InputId(to.inputs().len() as u32));
            parts[at].push(to.input(name.clone(), input.kind, ty.clone()));
        }
        if matches!(forms[at], Form::Plain) {
            continue;
        }
        let order = ordered(input, orders);
        for (name, ty) in &all[at] {
            // An axis of the part alone comes last: that of codes, or of blocks.
            let own = order.iter().map(|axis| &axis.name).filter(|name| ty.axes.contains(name));
            let more = ty.axes.names().filter(|name| !order.iter().any(|axis| axis.name == **name));
            new_orders.insert(name.clone(), own.chain(more).cloned().collect());
        }
        if input.kind == InputKind::Weight {
            convert.push(conversion(input, &forms[at], &all[at]));
        }
    }
    let values = forms.iter().zip(parts).map(|(form, parts)| form.value(parts)).collect();
    let outputs = copy(graph, &mut to, values);
    let mut kept: Vec<Output> = Vec::new();
    for (output, value) in graph.outputs().iter().zip(outputs) {
        let node = plain(&mut to, &value);
        match output.role {
            Role::Next(InputId(at)) if !matches!(forms[at as usize], Form::Plain) => {
                let at = at as usize;
                let made = forms[at].encode(&mut to, node);
                for ((node, number), (name, _)) in made.into_iter().zip(&numbers[at]).zip(&all[at]) {
                    kept.push(Output { name: name.clone(), role: Role::Next(*number), node });
                }
            }
            _ => kept.push(Output { node, ..output.clone() }),
        }
    }
    to.set_outputs(kept);
    Stored { graph: to, convert, orders: new_orders }
}

fn conversion(input: &Input, form: &Form, parts: &[(Name, Type)]) -> Convert {
    let mut graph = Graph::new();
    let x = graph.input(input.name.clone(), InputKind::Weight, input.ty.clone());
    let made = form.encode(&mut graph, x);
    for (node, (name, ty)) in made.into_iter().zip(parts) {
        let number = InputId(graph.inputs().len() as u32);
        graph.input(name.clone(), InputKind::State, ty.clone());
        graph.output_as(name.clone(), Role::Next(number), node);
    }
    Convert { of: input.name.clone(), graph }
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
    Low(Low),
}

/// A tensor as its parts.
#[derive(Clone, Debug)]
struct Low {
    /// `f32(low)`, or `f32(low) · scale`, or what blocks are.
    parts: Vec<NodeId>,
    /// With the axes that they run across, as they are called here.
    blocks: Option<(Blocks, Vec<Axis>)>,
}

impl Low {
    /// Whether an axis is one that no part has.
    fn is_coded(&self, name: &Name) -> bool {
        self.blocks.as_ref().is_some_and(|(_, flat)| flat.iter().any(|axis| axis.name == *name))
    }

    fn renamed(&self, to: &mut Graph, pairs: &[(Name, Name)]) -> Low {
        let parts = self.parts.iter().map(|part| {
            let has = |name: &Name| to.ty(*part).axes.contains(name);
            let pairs: Vec<(Name, Name)> = pairs.iter().filter(|(old, _)| has(old)).cloned().collect();
            if pairs.is_empty() { *part } else { to.rename(*part, pairs) }
        });
        let parts = parts.collect();
        let renamed = |axis: &Axis| match pairs.iter().find(|(old, _)| *old == axis.name) {
            Some((_, new)) => Axis::new(new.clone(), axis.size),
            None => axis.clone(),
        };
        let blocks = self.blocks.as_ref().map(|(blocks, flat)| (*blocks, flat.iter().map(renamed).collect()));
        Low { parts, blocks }
    }

    fn picked(&self, to: &mut Graph, axis: &Name, index: NodeId) -> Low {
        let parts = self.parts.iter().map(|part| match to.ty(*part).axes.contains(axis) {
            true => to.add(Op::Gather { axis: axis.clone() }, &[*part, index]),
            false => *part,
        });
        Low { parts: parts.collect(), blocks: self.blocks.clone() }
    }
}

/// Copies the nodes of a graph, given what its inputs are; gives what its outputs are.
fn copy(from: &Graph, to: &mut Graph, inputs: Vec<Value>) -> Vec<Value> {
    let live = from.live();
    let mut values: Vec<Option<Value>> = vec![None; from.nodes().len()];
    for id in from.ids().filter(|id| live[id.idx()] || matches!(from.op(*id), Op::Input(_))) {
        to.set_here_like(from.node(id));
        let args: Vec<Value> = from.args(id).iter().filter_map(|arg| values[arg.idx()].clone()).collect();
        let value = match (from.op(id), &args[..]) {
            (Op::Input(input), _) => inputs[input.0 as usize].clone(),
            // What is only read has no derivative to stop.
            (Op::Detach, [Value::Low(low)]) => Value::Low(low.clone()),
            (Op::Rename(pairs), [Value::Low(low)]) => Value::Low(low.renamed(to, pairs)),
            (Op::Gather { axis }, [Value::Low(low), index]) if !low.is_coded(axis) => {
                let index = plain(to, index);
                Value::Low(low.picked(to, axis, index))
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
    from.outputs().iter().filter_map(|output| values[output.node.idx()].clone()).collect()
}

/// A value as `f32`.
fn plain(to: &mut Graph, value: &Value) -> NodeId {
    match value {
        Value::Plain(node) => *node,
        Value::Low(Low { parts, blocks: Some((blocks, flat)) }) => blocks.decode(to, parts, flat),
        Value::Low(Low { parts, blocks: None }) => {
            let wide = to.cast(parts[0], DType::F32);
            parts.get(1).map_or(wide, |scale| to.add(Op::Mul, &[wide, *scale]))
        }
    }
}

/// A product of what is kept: a scale that is the same all along a sum is applied to the result.
fn contract(to: &mut Graph, over: &[Name], a: &Value, b: &Value) -> NodeId {
    let mut after = Vec::new();
    let mut operand = |to: &mut Graph, value: &Value| match value {
        Value::Low(Low { parts, blocks: None }) => match parts.as_slice() {
            [low, scale] if !over.iter().any(|name| to.ty(*scale).axes.contains(name)) => {
                after.push(*scale);
                to.cast(*low, DType::F32)
            }
            _ => plain(to, value),
        },
        _ => plain(to, value),
    };
    let (a, b) = (operand(to, a), operand(to, b));
    let product = to.add(Op::Contract(over.to_vec()), &[a, b]);
    after.into_iter().fold(product, |product, scale| to.add(Op::Mul, &[product, scale]))
}

/// A loop with what it is given kept in fewer bits: each further part is one more argument, scanned if it has the loop's axis.
fn around(to: &mut Graph, inner: &Loop, args: &[Value]) -> (Loop, Vec<NodeId>) {
    let scans_end = inner.carries + inner.scans;
    let mut given: Vec<NodeId> = Vec::new();
    let mut forms: Vec<Option<&Low>> = Vec::new();
    // Each further part with the argument that it is of.
    let (mut scanned, mut free) = (Vec::new(), Vec::new());
    for (at, value) in args.iter().enumerate() {
        match value {
            Value::Low(low) if at >= inner.carries && !low.is_coded(&inner.axis.name) => {
                for part in &low.parts[1..] {
                    // Only what the whole argument does, its parts do; a part may lack the axis.
                    let is_scanned = at < scans_end && to.ty(*part).axes.contains(&inner.axis.name);
                    if is_scanned { &mut scanned } else { &mut free }.push((at, *part));
                }
                given.push(low.parts[0]);
                forms.push(Some(low));
            }
            _ => {
                given.push(plain(to, value));
                forms.push(None);
            }
        }
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
    let first_parts: Vec<NodeId> = scanned.iter().map(|(_, part)| param(None, *part, true)).collect();
    let rest: Vec<NodeId> = (scans_end..args.len()).map(|at| param(Some(at), given[at], false)).collect();
    let rest_parts: Vec<NodeId> = free.iter().map(|(_, part)| param(None, *part, false)).collect();
    let own = first.into_iter().chain(rest).zip(forms);
    let mut values: Vec<Value> = own
        .map(|(node, form)| match form {
            Some(low) => Value::Low(Low { parts: vec![node], blocks: low.blocks.clone() }),
            None => Value::Plain(node),
        })
        .collect();
    // An argument's parts are all in one of the lists, or its last lack the axis and are in the other.
    for ((at, _), own) in scanned.iter().zip(first_parts).chain(free.iter().zip(rest_parts)) {
        if let Value::Low(low) = &mut values[*at] {
            low.parts.push(own);
        }
    }
    let outputs = copy(&inner.body, &mut body, values);
    let outputs: Vec<Output> = inner
        .body
        .outputs()
        .iter()
        .zip(&outputs)
        .map(|(output, value)| Output { node: plain(&mut body, value), ..output.clone() })
        .collect();
    body.set_outputs(outputs);
    let tail = given.split_off(scans_end);
    given.extend(scanned.iter().map(|(_, part)| *part));
    given.extend(tail);
    given.extend(free.iter().map(|(_, part)| *part));
    (Loop { scans: inner.scans + scanned.len(), ..inner.with_body(body) }, given)
}
