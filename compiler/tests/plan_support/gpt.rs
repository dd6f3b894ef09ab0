//! A training step of GPT-2 as the checker makes it from `stdlib`: forward, loss, gradients, clipping, AdamW.

use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Loop, Name, NodeId, Op, Phase, Role, Span, Type};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpt {
    pub(crate) layers: u64,
    pub(crate) width: u64,
    pub(crate) heads: u64,
    pub(crate) t: u64,
    pub(crate) batch: u64,
    pub(crate) vocab: u64,
}

pub(crate) const TINY: Gpt = Gpt { layers: 2, width: 8, heads: 2, t: 5, batch: 3, vocab: 11 };
pub(crate) const CHAR: Gpt = Gpt { layers: 4, width: 128, heads: 4, t: 64, batch: 12, vocab: 65 };
pub(crate) const MID: Gpt = Gpt { layers: 6, width: 384, heads: 6, t: 256, batch: 16, vocab: 65 };

const F: DType = DType::F32;

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

fn names(all: &[&str]) -> Vec<Name> {
    all.iter().map(|name| Name::from(*name)).collect()
}

struct B {
    g: Graph,
}

impl B {
    fn c(&mut self, value: f64) -> NodeId {
        self.g.constant(value, F)
    }
    fn op(&mut self, op: Op, args: &[NodeId]) -> NodeId {
        self.g.add(op, args)
    }
    fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Add, &[a, b])
    }
    fn sub(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Sub, &[a, b])
    }
    fn mul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Mul, &[a, b])
    }
    fn div(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Div, &[a, b])
    }
    fn times(&mut self, a: NodeId, by: f64) -> NodeId {
        let by = self.c(by);
        self.mul(a, by)
    }
    fn plus(&mut self, a: NodeId, by: f64) -> NodeId {
        let by = self.c(by);
        self.add(a, by)
    }
    fn dot(&mut self, over: &[&str], a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Contract(names(over)), &[a, b])
    }
    fn rename(&mut self, x: NodeId, old: &str, new: &str) -> NodeId {
        self.g.rename(x, [(Name::from(old), Name::from(new))])
    }
    fn sum(&mut self, over: &[&str], x: NodeId) -> NodeId {
        self.g.sum(x, names(over))
    }

    fn norm(&mut self, x: NodeId, gain: NodeId, bias: NodeId, width: u64) -> NodeId {
        let mean = self.sum(&["width"], x);
        let mean = self.times(mean, 1.0 / width as f64);
        let y = self.sub(x, mean);
        let square = self.mul(y, y);
        let var = self.sum(&["width"], square);
        let var = self.times(var, 1.0 / width as f64);
        let var = self.plus(var, 1e-5);
        let root = self.op(Op::Sqrt, &[var]);
        let one = self.c(1.0);
        let scale = self.div(one, root);
        let y = self.mul(y, scale);
        let y = self.mul(y, gain);
        self.add(y, bias)
    }

    fn finite_max(&mut self, over: &[&str], x: NodeId) -> (NodeId, NodeId) {
        let m = self.op(Op::MaxOver(names(over)), &[x]);
        let m = self.op(Op::Detach, &[m]);
        let low = self.c(f64::NEG_INFINITY);
        let zero = self.c(0.0);
        let empty = self.op(Op::Equal, &[m, low]);
        (m, self.op(Op::Select, &[empty, zero, m]))
    }

    fn softmax(&mut self, over: &str, x: NodeId) -> NodeId {
        let (_, base) = self.finite_max(&[over], x);
        let y = self.sub(x, base);
        let e = self.op(Op::Exp, &[y]);
        let sum = self.sum(&[over], e);
        let half = self.c(0.5);
        let sum = self.op(Op::Max, &[sum, half]);
        self.div(e, sum)
    }

    fn gelu(&mut self, x: NodeId) -> NodeId {
        let cubed = self.times(x, 0.044715);
        let cubed = self.mul(cubed, x);
        let cubed = self.mul(cubed, x);
        let inner = self.add(x, cubed);
        let inner = self.times(inner, 0.797_884_560_802_865_4);
        let tanh = self.op(Op::Tanh, &[inner]);
        let tanh = self.plus(tanh, 1.0);
        let half = self.times(x, 0.5);
        self.mul(half, tanh)
    }
}

/// The weights of a block, by name and axes without `layer`.
fn block_weights(s: &Gpt) -> Vec<(&'static str, Vec<(&'static str, u64)>)> {
    let (w, g, k, h) = (("width", s.width), ("group", s.heads), ("key", s.width / s.heads), ("hidden", 4 * s.width));
    let one = ("head", 1);
    vec![
        ("norm1.gain", vec![w]),
        ("norm1.bias", vec![w]),
        ("attn.q.w", vec![w, g, one, k]),
        ("attn.q.b", vec![g, one, k]),
        ("attn.k.w", vec![w, g, k]),
        ("attn.k.b", vec![g, k]),
        ("attn.v.w", vec![w, g, k]),
        ("attn.v.b", vec![g, k]),
        ("attn.o.w", vec![g, one, k, w]),
        ("attn.o.b", vec![w]),
        ("norm2.gain", vec![w]),
        ("norm2.bias", vec![w]),
        ("mlp.up.w", vec![w, h]),
        ("mlp.up.b", vec![h]),
        ("mlp.down.w", vec![h, w]),
        ("mlp.down.b", vec![w]),
    ]
}

fn block(s: &Gpt) -> Graph {
    let mut b = B { g: Graph::new() };
    let x = b.g.input("x", InputKind::Param, ty(F, &[("batch", s.batch), ("t", s.t), ("width", s.width)]));
    let w: Vec<NodeId> =
        block_weights(s).iter().map(|(name, axes)| b.g.input(*name, InputKind::Param, ty(F, axes))).collect();
    let seen = b.g.input("seen", InputKind::Param, ty(DType::Bool, &[("t", s.t), ("t'", s.t)]));
    let y = b.norm(x, w[0], w[1], s.width);
    let linear = |b: &mut B, over: &[&str], x: NodeId, at: usize| {
        let y = b.dot(over, x, w[at]);
        b.add(y, w[at + 1])
    };
    let q = linear(&mut b, &["width"], y, 2);
    let k = linear(&mut b, &["width"], y, 4);
    let v = linear(&mut b, &["width"], y, 6);
    let (k, v) = (b.rename(k, "t", "t'"), b.rename(v, "t", "t'"));
    let score = b.dot(&["key"], q, k);
    let root = b.c(((s.width / s.heads) as f64).sqrt());
    let score = b.div(score, root);
    let low = b.c(f64::NEG_INFINITY);
    let score = b.op(Op::Select, &[seen, score, low]);
    let p = b.softmax("t'", score);
    let mixed = b.dot(&["t'"], p, v);
    let out = linear(&mut b, &["group", "head", "key"], mixed, 8);
    let x = b.add(x, out);
    let y = b.norm(x, w[10], w[11], s.width);
    let h = linear(&mut b, &["width"], y, 12);
    let h = b.gelu(h);
    let out = linear(&mut b, &["hidden"], h, 14);
    let x = b.add(x, out);
    b.g.output_as("x", Role::Value, x);
    b.g
}

pub(crate) fn training_step(s: &Gpt) -> Graph {
    let mut b = B { g: Graph::new() };
    let tokens_axes = [("batch", s.batch), ("t", s.t)];
    let width = ("width", s.width);
    let mut weights: Vec<(String, NodeId, bool)> = Vec::new();
    for (name, axes) in [
        ("tokens.w", vec![("vocab", s.vocab), width]),
        ("positions.w", vec![("context", s.t), width]),
        ("norm.gain", vec![width]),
        ("norm.bias", vec![width]),
    ] {
        let node = b.g.input(name, InputKind::Weight, ty(F, &axes));
        weights.push((name.to_string(), node, axes.len() > 1));
    }
    for (name, axes) in block_weights(s) {
        let mut all = axes.clone();
        all.push(("layer", s.layers));
        let name = format!("blocks.{name}");
        let node = b.g.input(name.as_str(), InputKind::Weight, ty(F, &all));
        let is_map = name.ends_with(".w");
        weights.push((name, node, is_map));
    }
    let ids = b.g.input("ids", InputKind::Batch, ty(DType::I32, &tokens_axes));
    let next = b.g.input("next", InputKind::Batch, ty(DType::I32, &tokens_axes));
    let mask = b.g.input("mask", InputKind::Batch, ty(DType::Bool, &tokens_axes));
    let n = b.g.input("n", InputKind::Scalar, Type::scalar(DType::I32));

    let place = b.g.iota(Axis::new("t", s.t));
    let other = b.rename(place, "t", "t'");
    let far = b.sub(place, other);
    let zero = b.g.constant(0.0, DType::I32);
    let later = b.op(Op::Less, &[far, zero]);
    let seen = b.op(Op::Not, &[later]);
    let token = b.op(Op::Gather { axis: Name::from("vocab") }, &[weights[0].1, ids]);
    let position = b.op(Op::Gather { axis: Name::from("context") }, &[weights[1].1, place]);
    let x = b.add(token, position);
    let mut args = vec![x];
    args.extend(weights[4..].iter().map(|(_, node, _)| *node));
    args.push(seen);
    let inner = Loop {
        axis: Axis::new("layer", s.layers),
        reverse: false,
        carries: 1,
        scans: weights.len() - 4,
        until: false,
        body: block(s),
    };
    let x = b.g.loop_over(inner, &args)[0];
    let x = b.norm(x, weights[2].1, weights[3].1, s.width);
    let logits = b.dot(&["width"], x, weights[0].1);
    let (m, base) = b.finite_max(&["vocab"], logits);
    let y = b.sub(logits, base);
    let e = b.op(Op::Exp, &[y]);
    let sum = b.sum(&["vocab"], e);
    let half = b.c(0.5);
    let sum = b.op(Op::Max, &[sum, half]);
    let log = b.op(Op::Log, &[sum]);
    let lse = b.add(m, log);
    let picked = b.op(Op::Gather { axis: Name::from("vocab") }, &[logits, next]);
    let each = b.sub(lse, picked);
    let zero = b.c(0.0);
    let each = b.op(Op::Select, &[mask, each, zero]);
    let total = b.sum(&["batch", "t"], each);
    let counted = b.g.cast(mask, F);
    let count = b.sum(&["batch", "t"], counted);
    let one = b.c(1.0);
    let count = b.op(Op::Max, &[count, one]);
    let loss = b.div(total, count);
    b.g.output_as("loss", Role::Value, loss);

    b.g.set_here(Phase::Backward, Span::default(), None);
    let mut args = vec![loss];
    args.extend(weights.iter().map(|(_, node, _)| *node));
    let grad = b.op(Op::Grad, &args);
    let grads = b.g.gets(grad);

    b.g.set_here(Phase::Update, Span::default(), None);
    let mut norm: Option<NodeId> = None;
    for g in &grads {
        let square = b.mul(*g, *g);
        let axes: Vec<Name> = b.g.ty(*g).axes.names().cloned().collect();
        let sum = b.g.sum(square, axes);
        norm = Some(norm.map_or(sum, |so_far| b.add(so_far, sum)));
    }
    let norm = norm.unwrap();
    let norm = b.op(Op::Sqrt, &[norm]);
    b.g.output_as("grad_norm", Role::Value, norm);
    let least = b.plus(norm, 1e-6);
    let one = b.c(1.0);
    let clip = b.div(one, least);
    let least = b.op(Op::Neg, &[clip]);
    let minus = b.c(-1.0);
    let clip = b.op(Op::Max, &[least, minus]);
    let clip = b.op(Op::Neg, &[clip]);
    let n = b.g.cast(n, F);
    let lr = b.times(n, 1e-5);
    for ((name, w, is_map), g) in weights.iter().zip(&grads) {
        let g = b.mul(*g, clip);
        let ty = b.g.ty(*w).clone();
        let m = b.g.input(format!("{name}/m"), InputKind::State, ty.clone());
        let v = b.g.input(format!("{name}/v"), InputKind::State, ty);
        let input_of = |b: &B, node: NodeId| match b.g.op(node) {
            Op::Input(input) => *input,
            _ => InputId(0),
        };
        let (m1, g1) = (b.times(m, 0.9), b.times(g, 0.1));
        let next_m = b.add(m1, g1);
        let gg = b.mul(g, g);
        let (v1, g2) = (b.times(v, 0.95), b.times(gg, 0.05));
        let next_v = b.add(v1, g2);
        let (b1, b2) = (b.c(0.9), b.c(0.95));
        let (p1, p2) = (b.op(Op::Pow, &[b1, n]), b.op(Op::Pow, &[b2, n]));
        let one = b.c(1.0);
        let (c1, c2) = (b.sub(one, p1), b.sub(one, p2));
        let up = b.div(next_m, c1);
        let down = b.div(next_v, c2);
        let down = b.op(Op::Sqrt, &[down]);
        let down = b.plus(down, 1e-8);
        let mut update = b.div(up, down);
        if *is_map {
            let fade = b.times(*w, 0.1);
            update = b.add(update, fade);
        }
        let step = b.mul(lr, update);
        let next_w = b.sub(*w, step);
        let (iw, im, iv) = (input_of(&b, *w), input_of(&b, m), input_of(&b, v));
        b.g.output_as(name.as_str(), Role::Next(iw), next_w);
        b.g.output_as(format!("{name}/m"), Role::Next(im), next_m);
        b.g.output_as(format!("{name}/v"), Role::Next(iv), next_v);
    }
    b.g
}
