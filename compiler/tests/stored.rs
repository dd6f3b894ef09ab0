//! Matrices kept in fewer bits: what the program then says, and that its kernels read them as they are kept.

#![allow(clippy::unwrap_used, reason = "what these helpers are given is right, or the test fails")]

use std::collections::BTreeMap;

use mdl_compiler::kernel::Role as Part;
use mdl_compiler::pass;
use mdl_compiler::plan::{PlanOptions, plan};
use mdl_compiler::reference::{Tensor, eval_stored};
use mdl_compiler::stored::blocks::{Blocks, Code};
use mdl_compiler::stored::{Kept, Orders, Stored, stored};
use mdl_compiler::testing::random_inputs;
use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Type};

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

fn renamed(graph: &mut Graph, x: NodeId, from: &str, to: &str) -> NodeId {
    graph.rename(x, [(Name::from(from), Name::from(to))])
}

/// A token's way through a small model: an embedding, two layers with a matrix each, one matrix that all layers share, and the
/// embedding again as the head. Vectors are beside the matrices.
fn token() -> Graph {
    let f = DType::F32;
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, ty(f, &[("one", 1), ("width", 48)]));
    let w = body.input("w", InputKind::Param, ty(f, &[("from", 48), ("to", 48)]));
    let gain = body.input("gain", InputKind::Param, ty(f, &[("width", 48)]));
    let shared = body.input("shared", InputKind::Param, ty(f, &[("from", 48), ("to", 48)]));
    let mut y = body.add(Op::Mul, &[x, gain]);
    for matrix in [w, shared] {
        let from = renamed(&mut body, y, "width", "from");
        let product = body.add(Op::Contract(vec![Name::from("from")]), &[from, matrix]);
        y = renamed(&mut body, product, "to", "width");
    }
    let next = body.add(Op::Add, &[x, y]);
    body.output_as("x", Role::Value, next);

    let mut g = Graph::new();
    let id = g.input("id", InputKind::Batch, ty(DType::I32, &[("one", 1)]));
    let table = g.input("table", InputKind::Weight, ty(f, &[("vocab", 70), ("width", 48)]));
    let w = g.input("w", InputKind::Weight, ty(f, &[("layer", 2), ("from", 48), ("to", 48)]));
    let gain = g.input("gain", InputKind::Weight, ty(f, &[("layer", 2), ("width", 48)]));
    let shared = g.input("shared", InputKind::Weight, ty(f, &[("from", 48), ("to", 48)]));
    let seen = g.input("seen", InputKind::State, ty(f, &[("one", 1), ("width", 48)]));
    let x = g.add(Op::Gather { axis: Name::from("vocab") }, &[table, id]);
    let inner = Loop { axis: Axis::new("layer", 2), reverse: false, carries: 1, scans: 2, until: false, body };
    let x = g.loop_over(inner, &[x, w, gain, shared])[0];
    let logits = g.add(Op::Contract(vec![Name::from("width")]), &[x, table]);
    g.output_as("logits", Role::Value, logits);
    let sum = g.add(Op::Add, &[seen, x]);
    g.output_as("seen", Role::Next(mdl_graph::InputId(5)), sum);
    g
}

/// The inputs of the program that reads matrices as they are kept.
fn converted(stored: &Stored, graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut by_name: BTreeMap<Name, Tensor> =
        graph.inputs().iter().map(|input| input.name.clone()).zip(inputs.iter().cloned()).collect();
    for convert in &stored.convert {
        let given: Vec<Tensor> = convert
            .graph
            .inputs()
            .iter()
            .map(|input| match by_name.get(&input.name) {
                Some(tensor) => tensor.clone(),
                None => Tensor::filled(input.ty.clone(), mdl_graph::Scalar::Int(0).cast(input.ty.dtype)),
            })
            .collect();
        let made = eval_stored(&convert.graph, &given).unwrap();
        for (output, tensor) in convert.graph.outputs().iter().zip(made) {
            by_name.insert(output.name.clone(), tensor);
        }
    }
    stored.graph.inputs().iter().map(|input| by_name[&input.name].clone()).collect()
}

#[test]
fn a_model_says_nearly_the_same() {
    let graph = token();
    let mut inputs = random_inputs(&graph, 5);
    // Random inputs are short numbers, which bf16 can say.
    for (input, tensor) in graph.inputs().iter().zip(&mut inputs).filter(|(input, _)| input.kind == InputKind::Weight) {
        *tensor = Tensor::float(input.ty.clone(), tensor.to_f64().iter().map(|x| x / 3.0).collect());
    }
    let wanted = eval_stored(&graph, &inputs).unwrap();
    // Three products and a sum: each rounds its matrix by half of a 127th, or of a 128th of a number.
    for (kept, bits, limit) in [(Kept::F32, 32, 0.0), (Kept::BF16, 16, 0.01), (Kept::Int8, 8, 0.02)] {
        let stored = stored(&graph, &|_| kept, &Orders::new());
        stored.graph.verify().unwrap();
        stored.convert.iter().for_each(|convert| convert.graph.verify().unwrap());
        let matrices = stored.graph.inputs().iter().filter(|input| input.ty.dtype.size_bytes() * 8 == bits);
        assert!(kept == Kept::F32 || matrices.count() == 3, "{}", stored.graph);
        // All inputs are where they were: outputs name states by their numbers.
        assert_eq!(stored.graph.inputs()[5].name.as_str(), "seen");
        let given = converted(&stored, &graph, &inputs);
        let got = eval_stored(&stored.graph, &given).unwrap();
        for (got, wanted) in got.iter().zip(&wanted) {
            let (got, wanted) = (got.to_f64(), wanted.to_f64());
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut got.iter().zip(&wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied());
            assert!(error <= limit, "{kept:?}: {error}");
            assert!(kept == Kept::F32 || error > 0.0, "{kept:?} rounds nothing");
        }
    }
}

#[test]
fn what_int8_can_say_is_said_exactly() {
    let graph = token();
    let mut inputs = random_inputs(&graph, 6);
    // Whole numbers, the largest of which is 127 everywhere along a sum.
    for (input, tensor) in graph.inputs().iter().zip(&mut inputs).filter(|(input, _)| input.ty.axes.len() > 1) {
        if input.kind == InputKind::Weight && input.name.as_str() != "gain" {
            let mixed = (0..input.ty.count()).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
            let data = mixed.map(|i| if i % 3 == 0 { 127.0 } else { (i % 250) as f64 - 125.0 });
            *tensor = Tensor::float(input.ty.clone(), data.collect());
        }
    }
    let stored = stored(&graph, &|_| Kept::Int8, &Orders::new());
    let got = eval_stored(&stored.graph, &converted(&stored, &graph, &inputs)).unwrap();
    for (got, wanted) in got.iter().zip(eval_stored(&graph, &inputs).unwrap()) {
        for (got, wanted) in got.to_f64().iter().zip(wanted.to_f64()) {
            assert!((got - wanted).abs() <= 1e-5 * wanted.abs().max(1.0), "{got}, not {wanted}");
        }
    }
}

/// Widening is part of the products: no matrix is ever written as `f32`.
#[test]
fn kernels_read_matrices_as_they_are_kept() {
    for kept in [Kept::BF16, Kept::Int8] {
        let graph =
            pass::prepare(&stored(&token(), &|_| kept, &Orders::new()).graph, &pass::Options::default()).unwrap();
        let plan = plan(&graph, &PlanOptions::default()).unwrap();
        plan.verify().unwrap();
        for buf in plan.kernels.iter().flat_map(|kernel| &kernel.bufs) {
            assert!(buf.role == Part::Read || buf.len < 48 * 48, "{kept:?}\n{plan}");
        }
    }
}

/// A step that remembers: what it reads and writes in eight bits is near what it would be in floats, and its kernels take it so.
#[test]
fn a_state_in_blocks_is_read_and_written() {
    let f = DType::F32;
    let mut graph = Graph::new();
    let g = graph.input("g", InputKind::Batch, ty(f, &[("row", 4), ("column", 64)]));
    let m = graph.input("m", InputKind::State, ty(f, &[("row", 4), ("column", 64)]));
    let keep = graph.constant(0.75, f);
    let kept = graph.add(Op::Mul, &[m, keep]);
    let next = graph.add(Op::Add, &[kept, g]);
    graph.output_as("m", Role::Next(mdl_graph::InputId(1)), next);
    let blocks = Kept::Blocks(Blocks { code: Code::Q8, block: 32, double: false });
    let orders = Orders::from([(Name::from("m"), vec![Name::from("row"), Name::from("column")])]);
    let made = stored(&graph, &|input| if input.name.as_str() == "m" { blocks } else { Kept::F32 }, &orders);
    made.graph.verify().unwrap();
    assert!(made.convert.is_empty());
    let names: Vec<&str> = made.graph.inputs().iter().map(|input| input.name.as_str()).collect();
    assert_eq!(names, ["g", "m as q8", "m scale"]);
    plan(&pass::prepare(&made.graph, &pass::Options::default()).unwrap(), &PlanOptions::default())
        .unwrap()
        .verify()
        .unwrap();

    let zeros = |ty: &Type| Tensor::filled(ty.clone(), mdl_graph::Scalar::Int(0).cast(ty.dtype));
    let mut exact = zeros(&graph.inputs()[1].ty);
    let mut parts: Vec<Tensor> = made.graph.inputs()[1..].iter().map(|input| zeros(&input.ty)).collect();
    for seed in 0..6 {
        let g = random_inputs(&graph, seed).remove(0);
        exact = eval_stored(&graph, &[g.clone(), exact]).unwrap().remove(0);
        parts = eval_stored(&made.graph, &[vec![g], parts].concat()).unwrap();
    }
    // What the parts say is what one more step would add nothing to.
    let nothing = zeros(&graph.inputs()[0].ty);
    let wanted: Vec<f64> = exact.to_f64();
    let codes = parts[0].to_f64();
    assert!(codes.iter().any(|code| *code > 127.0) && codes.iter().any(|code| *code < 127.0), "{codes:?}");
    // Scales are the largest of 32 numbers along `column`.
    let again = eval_stored(&made.graph, &[vec![nothing], parts].concat()).unwrap();
    let largest = |of: &[f64]| of.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    let scales = again[1].to_f64();
    assert!((largest(&scales) - 0.75 * largest(&wanted)).abs() <= 0.02 * largest(&wanted), "{scales:?}");
}
