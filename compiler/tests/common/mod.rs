//! A small language model as the checker would make it: layers in a loop, attention, dropout, a masked mean, gradients.
#![allow(dead_code, reason = "each test file uses a part of this")]

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Type};

pub(crate) fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

pub(crate) fn name(text: &str) -> Name {
    Name::from(text)
}

pub(crate) fn axis(text: &str, size: u64) -> Axis {
    Axis::new(text, size)
}

pub(crate) struct Model {
    pub(crate) batch: u64,
    pub(crate) t: u64,
    pub(crate) width: u64,
    pub(crate) vocab: u64,
    pub(crate) layers: u64,
    pub(crate) dropout: bool,
}

impl Default for Model {
    fn default() -> Model {
        Model { batch: 4, t: 5, width: 3, vocab: 7, layers: 2, dropout: true }
    }
}

const F: DType = DType::F32;
const I: DType = DType::I32;

/// `x / sqrt(mean(x²) + 1e-5)` over `width`.
fn norm(graph: &mut Graph, x: NodeId, width: u64) -> NodeId {
    let square = graph.add(Op::Mul, &[x, x]);
    let sum = graph.sum(square, [name("width")]);
    let n = graph.constant(width as f64, F);
    let mean = graph.add(Op::Div, &[sum, n]);
    let tiny = graph.constant(1e-5, F);
    let sum = graph.add(Op::Add, &[mean, tiny]);
    let root = graph.add(Op::Sqrt, &[sum]);
    graph.add(Op::Div, &[x, root])
}

/// `softmax` over `over`, as `stdlib` spells it.
fn softmax(graph: &mut Graph, x: NodeId, over: &str) -> NodeId {
    let max = graph.add(Op::MaxOver(vec![name(over)]), &[x]);
    let m = graph.add(Op::Detach, &[max]);
    let (lowest, zero) = (graph.constant(f64::NEG_INFINITY, F), graph.constant(0.0, F));
    let empty = graph.add(Op::Equal, &[m, lowest]);
    let base = graph.add(Op::Select, &[empty, zero, m]);
    let x = graph.add(Op::Sub, &[x, base]);
    let e = graph.add(Op::Exp, &[x]);
    let sum = graph.sum(e, [name(over)]);
    let half = graph.constant(0.5, F);
    let sum = graph.add(Op::Max, &[sum, half]);
    graph.add(Op::Div, &[e, sum])
}

fn dropout(graph: &mut Graph, x: NodeId, seed: NodeId, lane: NodeId, place: u32) -> NodeId {
    let axes: Vec<Axis> = graph.ty(x).axes.iter().cloned().collect();
    let mut counter = graph.constant(0.0, I);
    for axis in axes {
        let size = graph.constant(axis.size as f64, I);
        let position = graph.iota(axis);
        let scaled = graph.add(Op::Mul, &[counter, size]);
        counter = graph.add(Op::Add, &[scaled, position]);
    }
    let draw = graph.add(Op::Uniform { place }, &[seed, seed, lane, counter]);
    let (rate, zero, keep) = (graph.constant(0.25, F), graph.constant(0.0, F), graph.constant(0.75, F));
    let off = graph.add(Op::Less, &[draw, rate]);
    let scaled = graph.add(Op::Div, &[x, keep]);
    graph.add(Op::Select, &[off, zero, scaled])
}

/// One layer: attention of one head, then `tanh(x · up) · down`, each with its residual.
fn block(model: &Model) -> Graph {
    let (w, h) = (("width", model.width), ("hidden", 2 * model.width));
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Param, ty(F, &[("batch", model.batch), ("t", model.t), w]));
    let weight = |graph: &mut Graph, name: &str, axes: &[(&str, u64)]| graph.input(name, InputKind::Param, ty(F, axes));
    let key = ("key", model.width);
    let q = weight(&mut graph, "q", &[w, key]);
    let k = weight(&mut graph, "k", &[w, key]);
    let v = weight(&mut graph, "v", &[w, key]);
    let o = weight(&mut graph, "o", &[w, key]);
    let up = weight(&mut graph, "up", &[w, h]);
    let down = weight(&mut graph, "down", &[w, h]);
    let lane = graph.input("layer", InputKind::Param, ty(I, &[]));
    let seed = graph.input("seed", InputKind::Param, ty(I, &[]));

    let y = norm(&mut graph, x, model.width);
    let over = |graph: &mut Graph, axis: &str, a, b| graph.add(Op::Contract(vec![name(axis)]), &[a, b]);
    let (q, k, v) = (over(&mut graph, "width", y, q), over(&mut graph, "width", y, k), over(&mut graph, "width", y, v));
    let twin = [(name("t"), name("t'"))];
    let (k, v) = (graph.rename(k, twin.clone()), graph.rename(v, twin));
    let score = over(&mut graph, "key", q, k);
    let (here, there) = (graph.iota(axis("t", model.t)), graph.iota(axis("t'", model.t)));
    let later = graph.add(Op::Less, &[here, there]);
    let lowest = graph.constant(f64::NEG_INFINITY, F);
    let scale = graph.constant(1.0 / (model.width as f64).sqrt(), F);
    let score = graph.add(Op::Mul, &[score, scale]);
    let score = graph.add(Op::Select, &[later, lowest, score]);
    let p = softmax(&mut graph, score, "t'");
    let p = if model.dropout { dropout(&mut graph, p, seed, lane, 1) } else { p };
    let read = over(&mut graph, "t'", p, v);
    let read = over(&mut graph, "key", read, o);
    let x = graph.add(Op::Add, &[x, read]);
    let y = norm(&mut graph, x, model.width);
    let y = over(&mut graph, "width", y, up);
    let y = graph.add(Op::Tanh, &[y]);
    let y = over(&mut graph, "hidden", y, down);
    let y = if model.dropout { dropout(&mut graph, y, seed, lane, 2) } else { y };
    let x = graph.add(Op::Add, &[x, y]);
    graph.output_as("x", Role::Value, x);
    graph
}

/// A step: loss and new weights by plain gradient descent. Also the logits, which have the batch.
pub(crate) fn language_model(model: &Model) -> Graph {
    let (w, h, layer) = (("width", model.width), ("hidden", 2 * model.width), ("layer", model.layers));
    let rows = [("batch", model.batch), ("t", model.t)];
    let mut graph = Graph::new();
    let table = graph.input("tokens.w", InputKind::Weight, ty(F, &[("vocab", model.vocab), w]));
    let places = graph.input("positions.w", InputKind::Weight, ty(F, &[("context", model.t + 2), w]));
    let key = ("key", model.width);
    let shapes = [("q", key), ("k", key), ("v", key), ("o", key), ("up", h), ("down", h)];
    let layers: Vec<NodeId> = shapes
        .iter()
        .map(|(name, other)| graph.input(format!("blocks.{name}.w"), InputKind::Weight, ty(F, &[layer, w, *other])))
        .collect();
    let ids = graph.input("ids", InputKind::Batch, ty(I, &rows));
    let next = graph.input("next", InputKind::Batch, ty(I, &rows));
    let mask = graph.input("mask", InputKind::Batch, ty(DType::Bool, &rows));
    let seed = graph.input("seed", InputKind::Scalar, ty(I, &[]));

    let x = graph.add(Op::Gather { axis: name("vocab") }, &[table, ids]);
    let positions = graph.iota(axis("t", model.t));
    let place = graph.add(Op::Gather { axis: name("context") }, &[places, positions]);
    let x = graph.add(Op::Add, &[x, place]);
    let zero = graph.constant(0.0, I);
    let x = if model.dropout { dropout(&mut graph, x, seed, zero, 0) } else { x };
    let mut args = vec![x];
    args.extend(&layers);
    args.push(graph.iota(axis("layer", model.layers)));
    args.push(seed);
    let inner = Loop {
        axis: axis("layer", model.layers),
        reverse: false,
        carries: 1,
        scans: layers.len() + 1,
        until: false,
        body: block(model),
    };
    let x = graph.loop_over(inner, &args)[0];
    let x = norm(&mut graph, x, model.width);
    let logits = graph.add(Op::Contract(vec![name("width")]), &[x, table]);
    let p = softmax(&mut graph, logits, "vocab");
    let logp = graph.add(Op::Log, &[p]);
    let picked = graph.add(Op::Gather { axis: name("vocab") }, &[logp, next]);
    let zero = graph.constant(0.0, F);
    let counted = graph.add(Op::Select, &[mask, picked, zero]);
    let sum = graph.sum(counted, rows.map(|(axis, _)| name(axis)));
    let ones = graph.cast(mask, F);
    let n = graph.sum(ones, rows.map(|(axis, _)| name(axis)));
    let loss = graph.add(Op::Div, &[sum, n]);
    let loss = graph.add(Op::Neg, &[loss]);
    graph.output_as("loss", Role::Value, loss);
    graph.output_as("logits", Role::Value, logits);
    let mut args = vec![loss, table, places];
    args.extend(&layers);
    let marker = graph.add(Op::Grad, &args);
    let rate = graph.constant(0.1, F);
    for (k, weight) in args[1..].iter().enumerate() {
        let gradient = graph.add(Op::Get(k as u32), &[marker]);
        let step = graph.add(Op::Mul, &[gradient, rate]);
        let new = graph.add(Op::Sub, &[*weight, step]);
        if let Op::Input(input) = *graph.op(*weight) {
            let name = graph.inputs()[input.0 as usize].name.clone();
            graph.output_as(name, Role::Next(input), new);
        }
    }
    graph
}
