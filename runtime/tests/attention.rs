//! Attention as one kernel forward and one backward, whatever says which positions see which: machine code on one thread and two,
//! against the reference interpreter, at sizes around those of a tile; smaller planes are in `codegen/tests/planes.rs`.

mod common;

use common::compare;
use mdl_compiler::kernel::Work;
use mdl_compiler::pass::{Options, Precision, prepare};
use mdl_compiler::plan::{PlanOptions, plan};
use mdl_compiler::reference::Data;
use mdl_compiler::testing::random_inputs;
use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Type};
use mdl_runtime::device::Cpu;

/// What is said over `t`, `t'`, `group` and batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    None,
    Causal,
    /// The first row sees nothing.
    StrictlyBefore,
    Window(u64),
    /// What comes before may be seen, and the first positions by all.
    Prefix(u64),
    Documents,
    Slopes,
    SoftCap,
    Dropout,
    /// Not a softmax: nothing is divided.
    Sigmoid,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    batch: u64,
    group: u64,
    head: u64,
    t: u64,
    key: u64,
    layers: u64,
    mask: Mask,
}

fn ty(axes: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).expect("axes"))
}

/// Nodes by short names.
struct Build(Graph);

impl Build {
    fn op(&mut self, op: Op, args: &[NodeId]) -> NodeId {
        self.0.add(op, args)
    }
    fn number(&mut self, value: f64) -> NodeId {
        self.0.constant(value, DType::F32)
    }
    fn whole(&mut self, value: i64) -> NodeId {
        self.0.add(Op::Const(mdl_graph::Scalar::Int(value), DType::I32), &[])
    }
    fn rename(&mut self, x: NodeId, old: &str, new: &str) -> NodeId {
        self.0.rename(x, [(Name::from(old), Name::from(new))])
    }
    fn dot(&mut self, over: &[&str], a: NodeId, b: NodeId) -> NodeId {
        self.op(Op::Contract(over.iter().map(|name| Name::from(*name)).collect()), &[a, b])
    }
    fn scaled(&mut self, x: NodeId, by: f64) -> NodeId {
        let by = self.number(by);
        self.op(Op::Mul, &[x, by])
    }
    fn not_less(&mut self, x: NodeId, y: NodeId) -> NodeId {
        let less = self.op(Op::Less, &[x, y]);
        self.op(Op::Not, &[less])
    }

    /// Which positions see which; `None`: all.
    fn seen(&mut self, shape: &Shape, document: NodeId) -> Option<NodeId> {
        let (row, column) = (self.0.iota(Axis::new("t", shape.t)), self.0.iota(Axis::new("t'", shape.t)));
        let zero = self.whole(0);
        let far = self.op(Op::Sub, &[row, column]);
        let causal = self.not_less(far, zero);
        Some(match shape.mask {
            Mask::None | Mask::Sigmoid => return None,
            Mask::Causal | Mask::Slopes | Mask::SoftCap | Mask::Dropout => causal,
            Mask::StrictlyBefore => self.op(Op::Less, &[zero, far]),
            Mask::Window(window) => {
                let window = self.whole(window as i64);
                let near = self.op(Op::Less, &[far, window]);
                self.op(Op::And, &[causal, near])
            }
            Mask::Prefix(prefix) => {
                let prefix = self.whole(prefix as i64);
                let early = self.op(Op::Less, &[column, prefix]);
                self.op(Op::Or, &[causal, early])
            }
            Mask::Documents => {
                let other = self.rename(document, "t", "t'");
                let same = self.op(Op::Equal, &[document, other]);
                self.op(Op::And, &[causal, same])
            }
        })
    }

    fn dropped(&mut self, p: NodeId, shape: &Shape) -> NodeId {
        let (row, column) = (self.0.iota(Axis::new("t", shape.t)), self.0.iota(Axis::new("t'", shape.t)));
        let size = self.whole(shape.t as i64);
        let start = self.op(Op::Mul, &[row, size]);
        let place = self.op(Op::Add, &[start, column]);
        let zero = self.whole(0);
        let draw = self.op(Op::Uniform { place: 7 }, &[zero, zero, zero, place]);
        let (limit, nothing) = (self.number(0.25), self.number(0.0));
        let lost = self.op(Op::Less, &[draw, limit]);
        let kept = self.scaled(p, 1.0 / 0.75);
        self.op(Op::Select, &[lost, nothing, kept])
    }

    /// As `stdlib/core.mdl` has it.
    fn softmax(&mut self, x: NodeId) -> NodeId {
        let x = self.rename(x, "t'", "over");
        let m = self.op(Op::MaxOver(vec![Name::from("over")]), &[x]);
        let m = self.op(Op::Detach, &[m]);
        let (least, zero, half) = (self.number(f64::NEG_INFINITY), self.number(0.0), self.number(0.5));
        let empty = self.op(Op::Equal, &[m, least]);
        let base = self.op(Op::Select, &[empty, zero, m]);
        let shifted = self.op(Op::Sub, &[x, base]);
        let e = self.op(Op::Exp, &[shifted]);
        let sum = self.op(Op::Sum(vec![Name::from("over")]), &[e]);
        let sum = self.op(Op::Max, &[sum, half]);
        let p = self.op(Op::Div, &[e, sum]);
        self.rename(p, "over", "t'")
    }
}

/// The body of the loop over layers: `x + attention(x)`.
fn layer(shape: &Shape) -> Graph {
    let Shape { batch, group, head, t, key, .. } = *shape;
    let mut b = Build(Graph::new());
    let x = b.0.input("x", InputKind::Param, ty(&[("batch", batch), ("t", t), ("group", group), ("key", key)]));
    let wq = ty(&[("group", group), ("head", head), ("key", key), ("out", key)]);
    let wq = b.0.input("wq", InputKind::Param, wq);
    let mut side = |name: &str| b.0.input(name, InputKind::Param, ty(&[("group", group), ("key", key), ("out", key)]));
    let (wk, wv) = (side("wk"), side("wv"));
    let document = Type::new(DType::I32, ty(&[("batch", batch), ("t", t)]).axes);
    let document = b.0.input("document", InputKind::Param, document);
    let mut project = |w: NodeId| {
        let y = b.dot(&["key"], x, w);
        b.rename(y, "out", "key")
    };
    let (q, k, v) = (project(wq), project(wk), project(wv));
    let (k, v) = (b.rename(k, "t", "t'"), b.rename(v, "t", "t'"));
    let score = b.dot(&["key"], q, k);
    let mut score = b.scaled(score, 1.0 / (key as f64).sqrt());
    if shape.mask == Mask::Slopes {
        let (row, column) = (b.0.iota(Axis::new("t", t)), b.0.iota(Axis::new("t'", t)));
        let far = b.op(Op::Sub, &[column, row]);
        let far = b.0.cast(far, DType::F32);
        let slope = b.0.iota(Axis::new("group", group));
        let slope = b.0.cast(slope, DType::F32);
        let slope = b.scaled(slope, 0.1);
        let slope = b.op(Op::Mul, &[slope, far]);
        score = b.op(Op::Add, &[score, slope]);
    }
    if shape.mask == Mask::SoftCap {
        let small = b.scaled(score, 0.5);
        let capped = b.op(Op::Tanh, &[small]);
        score = b.scaled(capped, 2.0);
    }
    if let Some(seen) = b.seen(shape, document) {
        let least = b.number(f64::NEG_INFINITY);
        score = b.op(Op::Select, &[seen, score, least]);
    }
    let p = if shape.mask == Mask::Sigmoid {
        let half = b.scaled(score, 0.5);
        let curve = b.op(Op::Tanh, &[half]);
        let one = b.number(1.0);
        let curve = b.op(Op::Add, &[curve, one]);
        b.scaled(curve, 0.5 / t as f64)
    } else {
        b.softmax(score)
    };
    let p = if shape.mask == Mask::Dropout { b.dropped(p, shape) } else { p };
    let o = b.dot(&["t'"], p, v);
    let o = b.op(Op::Sum(vec![Name::from("head")]), &[o]);
    let next = b.op(Op::Add, &[x, o]);
    b.0.output_as("x", Role::Value, next);
    b.0
}

/// The loss after all layers and its gradients.
fn step(shape: &Shape) -> Graph {
    let Shape { batch, group, head, t, key, layers, .. } = *shape;
    let mut b = Build(Graph::new());
    let x = b.0.input("x", InputKind::Batch, ty(&[("batch", batch), ("t", t), ("group", group), ("key", key)]));
    let wq = ty(&[("layer", layers), ("group", group), ("head", head), ("key", key), ("out", key)]);
    let wq = b.0.input("wq", InputKind::Weight, wq);
    let side = ty(&[("layer", layers), ("group", group), ("key", key), ("out", key)]);
    let (wk, wv) = (b.0.input("wk", InputKind::Weight, side.clone()), b.0.input("wv", InputKind::Weight, side));
    let document = Type::new(DType::I32, ty(&[("batch", batch), ("t", t)]).axes);
    let document = b.0.input("document", InputKind::Batch, document);
    let axis = Axis::new("layer", layers);
    let inner = Loop { axis, reverse: false, carries: 1, scans: 3, until: false, body: layer(shape) };
    let y = b.0.loop_over(inner, &[x, wq, wk, wv, document])[0];
    let square = b.op(Op::Mul, &[y, y]);
    let all = ["batch", "t", "group", "key"].map(Name::from).to_vec();
    let loss = b.op(Op::Sum(all), &[square]);
    let loss = b.scaled(loss, 1.0 / (batch * t * group * key) as f64);
    let marker = b.op(Op::Grad, &[loss, x, wq, wk, wv]);
    b.0.output_as("loss", Role::Value, loss);
    for (name, got) in ["d x", "d wq", "d wk", "d wv"].into_iter().zip(b.0.gets(marker)) {
        b.0.output_as(name, Role::Value, got);
    }
    b.0
}

fn check(shape: &Shape, precision: Precision) {
    let graph = prepare(&step(shape), &Options { precision, ..Options::default() }).expect("prepared");
    let mut inputs = random_inputs(&graph, 11 + shape.t);
    for (input, value) in graph.inputs().iter().zip(&mut inputs) {
        match &mut value.data {
            Data::Int(data) => data.iter_mut().for_each(|x| *x = x.rem_euclid(3)),
            // The scale of the loss in f16: what does not overflow.
            Data::Float(data) if input.kind == InputKind::State => data.fill(1.0),
            // Weights as they begin: sums of some of them are of order one.
            Data::Float(data) if input.name.as_str().starts_with('w') => {
                data.iter_mut().for_each(|x| *x /= (shape.key as f64).sqrt());
            }
            _ => {}
        }
    }
    let planned = plan(&graph, &PlanOptions::default()).expect("planned");
    let planes = planned.kernels.iter().filter(|kernel| matches!(kernel.work, Work::Plane(_))).count();
    // These two leave one direction to plain kernels.
    let least = if matches!(shape.mask, Mask::Dropout | Mask::Sigmoid) { 1 } else { 2 };
    assert!((least..=2).contains(&planes), "{shape:?}: {planes} planes, one forward, one backward");
    let stored = planned.slots.iter().map(|slot| slot.bytes).max().unwrap_or(0);
    let plane = shape.batch * shape.group * shape.head * shape.t * shape.t * 2;
    let linear = shape.layers * shape.batch * shape.group * shape.head * shape.t * shape.key * 4;
    assert!(
        stored < plane || stored <= linear || planes < 2,
        "{shape:?}: {stored} bytes in one place, the scores have {plane}"
    );
    let dtype = precision.dtype().unwrap_or(DType::F32);
    let (one, two) = (Cpu::new(Some(1)).expect("a thread"), Cpu::new(Some(2)).expect("two threads"));
    compare(&graph, &inputs, dtype, &one, &two).unwrap_or_else(|why| panic!("{shape:?}: {why}"));
}

const MASKS: [Mask; 10] = [
    Mask::None,
    Mask::Causal,
    Mask::StrictlyBefore,
    Mask::Window(5),
    Mask::Prefix(9),
    Mask::Documents,
    Mask::Slopes,
    Mask::SoftCap,
    Mask::Dropout,
    Mask::Sigmoid,
];

#[test]
fn every_mask_at_odd_sizes() {
    for (at, mask) in MASKS.into_iter().enumerate() {
        for (t, key) in [(129, 3), (136, 8)] {
            let shape = Shape { batch: 2, group: 1 + at as u64 % 3, head: 1 + t % 2, t, key, layers: 2, mask };
            check(&shape, Precision::F32);
        }
    }
}

#[test]
fn sizes_around_a_tile() {
    for t in [127, 128, 129, 161] {
        let shape = Shape { batch: 1, group: 2, head: 2, t, key: 17, layers: 1, mask: Mask::Causal };
        check(&shape, Precision::F32);
        check(&Shape { mask: Mask::Window(20), ..shape }, Precision::F32);
    }
}

/// More columns than a piece, and a row block that was made lower.
#[test]
fn long_rows() {
    let shape = Shape { batch: 1, group: 1, head: 1, t: 1100, key: 4, layers: 1, mask: Mask::Causal };
    check(&shape, Precision::F32);
    check(&Shape { mask: Mask::None, ..shape }, Precision::F32);
}

#[test]
fn in_low_precision() {
    let shape = Shape { batch: 2, group: 2, head: 2, t: 131, key: 16, layers: 2, mask: Mask::Causal };
    check(&shape, Precision::BF16);
    check(&Shape { head: 1, mask: Mask::Documents, ..shape }, Precision::BF16);
}
