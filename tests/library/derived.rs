//! The derived decoder gives what the forward pass gives, position by position, or refuses.

use mdl_compiler::reference::{Tensor, eval};
use mdl_graph::{Axis, AxisSet, DType, Graph, Input, InputKind, Loop, Name, NodeId, Op, Role, Scalar, Type};
use mdl_lang::decode::{POS, decode};

const T: u64 = 7;

fn axes(list: &[(&str, u64)]) -> AxisSet {
    AxisSet::of(list.iter().map(|(name, size)| Axis::new(*name, *size))).expect("no name twice")
}

fn float(list: &[(&str, u64)]) -> Type {
    Type::new(DType::F32, axes(list))
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|name| Name::from(*name)).collect()
}

fn rename(graph: &mut Graph, x: NodeId, old: &str, new: &str) -> NodeId {
    graph.rename(x, [(Name::from(old), Name::from(new))])
}

/// A small reproducible number for each position of an input.
fn fill(input: &Input, salt: u64) -> Tensor {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let n = input.ty.count();
    match input.ty.dtype {
        DType::I32 => Tensor::int(input.ty.clone(), (0..n).map(|_| ((next() + 0.5) * 5.0) as i64).collect()),
        _ => Tensor::float(input.ty.clone(), (0..n).map(|_| next()).collect()),
    }
}

/// What the mask of a test sees.
#[derive(Clone, Copy, PartialEq)]
enum Mask {
    Causal,
    Window(i64),
    Everything,
    /// One position too many.
    Ahead,
}

/// softmax over `t'`, as the standard library writes it.
fn softmax(graph: &mut Graph, x: NodeId) -> NodeId {
    let most = graph.add(Op::MaxOver(names(&["t'"])), &[x]);
    let low = graph.constant(-1e30, DType::F32);
    let most = graph.add(Op::Max, &[most, low]);
    let x = graph.add(Op::Sub, &[x, most]);
    let e = graph.add(Op::Exp, &[x]);
    let sum = graph.add(Op::Sum(names(&["t'"])), &[e]);
    let tiny = graph.constant(1e-30, DType::F32);
    let sum = graph.add(Op::Max, &[sum, tiny]);
    graph.add(Op::Div, &[e, sum])
}

/// Token and position embeddings, two blocks of attention under `repeat`, a head. The mask is made outside of the loop.
fn attention(mask: Mask) -> Graph {
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, float(&[("batch", 1), ("t", T), ("width", 4)]));
    let weight = float(&[("width", 4), ("key", 3)]);
    let [q, k, v] = ["q", "k", "v"].map(|name| body.input(name, InputKind::Param, weight.clone()));
    let seen = body.input("seen", InputKind::Param, Type::new(DType::Bool, axes(&[("t", T), ("t'", T)])));
    let [q, k, v_of] = [q, k, v].map(|w| body.add(Op::Contract(names(&["width"])), &[x, w]));
    let k = rename(&mut body, k, "t", "t'");
    let v_of = rename(&mut body, v_of, "t", "t'");
    let score = body.add(Op::Contract(names(&["key"])), &[q, k]);
    let hidden = body.constant(f64::NEG_INFINITY, DType::F32);
    let score = body.add(Op::Select, &[seen, score, hidden]);
    let p = softmax(&mut body, score);
    let y = body.add(Op::Contract(names(&["t'"])), &[p, v_of]);
    let y = body.add(Op::Contract(names(&["key"])), &[y, v]);
    let y = body.add(Op::Add, &[x, y]);
    body.output_as("x", Role::Value, y);

    let mut graph = Graph::new();
    let ids = graph.input("ids", InputKind::Batch, Type::new(DType::I32, axes(&[("batch", 1), ("t", T)])));
    let tokens = graph.input("tokens", InputKind::Weight, float(&[("vocab", 5), ("width", 4)]));
    let positions = graph.input("positions", InputKind::Weight, float(&[("context", T), ("width", 4)]));
    let stack = float(&[("layer", 2), ("width", 4), ("key", 3)]);
    let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, InputKind::Weight, stack.clone()));
    let t = graph.iota(Axis::new("t", T));
    let s = graph.iota(Axis::new("t'", T));
    let far = graph.add(Op::Sub, &[t, s]);
    let least = graph.constant(if mask == Mask::Ahead { -2.0 } else { -1.0 }, DType::I32);
    let mut seen = graph.add(Op::Less, &[least, far]);
    if let Mask::Window(size) = mask {
        let size = graph.constant(size as f64, DType::I32);
        let near = graph.add(Op::Less, &[far, size]);
        seen = graph.add(Op::And, &[seen, near]);
    }
    if mask == Mask::Everything {
        seen = graph.add(Op::Equal, &[far, far]);
    }
    let token = graph.add(Op::Gather { axis: Name::from("vocab") }, &[tokens, ids]);
    let place = graph.add(Op::Gather { axis: Name::from("context") }, &[positions, t]);
    let x = graph.add(Op::Add, &[token, place]);
    let inner = Loop { axis: Axis::new("layer", 2), reverse: false, carries: 1, scans: 3, until: false, body };
    let x = graph.loop_over(inner, &[x, q, k, v, seen])[0];
    let logits = graph.add(Op::Contract(names(&["width"])), &[x, tokens]);
    graph.output_as("logits", Role::Value, logits);
    graph
}

/// `h = tanh(x + u h)` along `t`, after a running sum of the embeddings.
fn recurrent() -> Graph {
    let mut body = Graph::new();
    let h = body.input("h", InputKind::Param, float(&[("batch", 1), ("width", 3)]));
    let x = body.input("x", InputKind::Param, float(&[("batch", 1), ("width", 3)]));
    let u = body.input("u", InputKind::Param, float(&[("width", 3), ("width'", 3)]));
    let turned = rename(&mut body, h, "width", "width'");
    let turned = body.add(Op::Contract(names(&["width'"])), &[turned, u]);
    let sum = body.add(Op::Add, &[x, turned]);
    let next = body.add(Op::Tanh, &[sum]);
    body.output_as("h", Role::Value, next);
    body.output_as("h along t", Role::Value, next);

    let mut graph = Graph::new();
    let ids = graph.input("ids", InputKind::Batch, Type::new(DType::I32, axes(&[("batch", 1), ("t", T)])));
    let tokens = graph.input("tokens", InputKind::Weight, float(&[("vocab", 5), ("width", 3)]));
    let u = graph.input("u", InputKind::Weight, float(&[("width", 3), ("width'", 3)]));
    let x = graph.add(Op::Gather { axis: Name::from("vocab") }, &[tokens, ids]);
    let x = graph.add(Op::Prefix { axis: Name::from("t"), reverse: false }, &[x]);
    let start = graph.constant(0.25, DType::F32);
    let start = graph.expand(start, &axes(&[("batch", 1), ("width", 3)]));
    let inner = Loop { axis: Axis::new("t", T), reverse: false, carries: 1, scans: 1, until: false, body };
    let h = graph.loop_over(inner, &[start, x, u])[1];
    let logits = graph.add(Op::Contract(names(&["width"])), &[h, tokens]);
    graph.output_as("logits", Role::Value, logits);
    graph
}

/// The rows of `t` from `from`, `len` of them.
fn rows(x: &Tensor, from: u64, len: u64) -> Tensor {
    let mut graph = Graph::new();
    let node = graph.input("x", InputKind::Param, x.ty.clone());
    let sliced = graph.add(Op::Slice { axis: Name::from("t"), start: from, len, step: 1 }, &[node]);
    graph.output_as("x", Role::Value, sliced);
    eval(&graph, std::slice::from_ref(x)).unwrap().remove(0)
}

/// Decodes as many positions as `step` divides, `step` at a time, and compares each with the forward pass.
fn check(graph: &Graph, step: u64) {
    graph.verify().unwrap();
    let inputs: Vec<Tensor> = graph.inputs().iter().enumerate().map(|(i, input)| fill(input, i as u64)).collect();
    let whole = eval(graph, &inputs).unwrap().remove(0);
    let decoder = decode(graph, &Axis::new("t", T), step).unwrap();
    decoder.graph.verify().unwrap();
    let input_of = |name: &Name| decoder.graph.inputs().iter().find(|input| input.name == *name).unwrap();
    let zeros = |name: &Name| Tensor::filled(input_of(name).ty.clone(), Scalar::Float(0.0));
    let mut caches: Vec<Tensor> = decoder.caches.iter().map(zeros).collect();
    for pos in (0..=T - step).step_by(step as usize) {
        let given = |input: &Input| -> Tensor {
            if input.name.as_str() == POS {
                return Tensor::int(input.ty.clone(), vec![pos as i64]);
            }
            if let Some(cache) = decoder.caches.iter().position(|name| *name == input.name) {
                return caches[cache].clone();
            }
            let original = graph.inputs().iter().position(|other| other.name == input.name).unwrap();
            match input.kind {
                InputKind::Batch => rows(&inputs[original], pos, step),
                _ => inputs[original].clone(),
            }
        };
        let given: Vec<Tensor> = decoder.graph.inputs().iter().map(given).collect();
        let mut results = eval(&decoder.graph, &given).unwrap();
        let (wanted, got) = (rows(&whole, pos, step).to_f64(), results.remove(0).to_f64());
        for (a, b) in wanted.iter().zip(&got) {
            assert!((a - b).abs() < 1e-12, "at {pos}: {wanted:?} {got:?}");
        }
        caches = results;
    }
}

#[test]
fn attention_is_decoded_one_and_several_rows_at_a_time() {
    for mask in [Mask::Causal, Mask::Window(3)] {
        check(&attention(mask), 1);
        check(&attention(mask), 3);
    }
}

#[test]
fn a_recurrence_and_a_running_sum_keep_their_last_value() {
    check(&recurrent(), 1);
}

#[test]
fn a_model_that_looks_ahead_has_no_decoder() {
    for mask in [Mask::Everything, Mask::Ahead] {
        let error = decode(&attention(mask), &Axis::new("t", T), 1).unwrap_err();
        assert!(error.message.contains("sees positions after `t`"), "{error}");
    }
}

#[test]
fn a_mean_over_all_positions_has_no_decoder() {
    let mut graph = attention(Mask::Causal);
    let logits = graph.outputs()[0].node;
    let sum = graph.add(Op::Sum(names(&["t"])), &[logits]);
    graph.output_as("sum", Role::Value, sum);
    let error = decode(&graph, &Axis::new("t", T), 1).unwrap_err();
    assert_eq!(error.message, "`sum` over `t` needs positions that are still to come");
}
