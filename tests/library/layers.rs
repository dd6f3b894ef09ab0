//! Each layer and function of `stdlib/nn`, `core` and `losses` that PyTorch has too: values and all derivatives.

use mdl_graph::{InputKind, NodeId, Op, Role};
use mdl_lang::check::StoredKind;
use serde_json::Value as Json;

use super::*;

#[test]
fn layers_are_those_of_pytorch() {
    let bytes = read("layers.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let cases = json("layers.json");
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    for (name, case) in &cases {
        agrees(name, case, &file);
    }
}

/// The axes of a recorded tensor: names from the case, sizes from the tensor.
fn axes(names: &Json, shape: &[u64]) -> Vec<Axis> {
    let names = names.as_array().expect("a list of axes");
    assert_eq!(names.len(), shape.len(), "{names:?} and {shape:?}");
    names.iter().zip(shape).map(|(name, size)| Axis::new(name.as_str().expect("a name"), *size)).collect()
}

fn recipe(case: &Json) -> String {
    let mut text = case["use"].as_str().map_or_else(String::new, |name| format!("use {name}\n"));
    for (axis, size) in case["axes"].as_object().expect("axes") {
        text += &format!("axis {axis} = {size}\n");
    }
    if let Some(layer) = case["layer"].as_str() {
        text += &format!("model it = {layer}\n");
    }
    text + &format!("model result = {}\n", case["call"].as_str().expect("a call"))
}

fn agrees(name: &str, case: &Json, file: &SafeTensors<'_>) {
    let trained = (case["training"].as_bool() == Some(true)).then_some("it");
    let mut recipe = Recipe::new(&recipe(case), trained);
    let mut inputs = Vec::new();
    // What is differentiated by: the name of the record, the node, the axes as stored.
    let mut by: Vec<(String, NodeId, Vec<Axis>)> = Vec::new();
    for (input, names) in case["inputs"].as_object().expect("inputs") {
        let (shape, data, is_whole) = recorded(file, &format!("{name}/in.{input}"));
        let axes = axes(names, &shape);
        let ty = type_of(if is_whole { DType::I32 } else { DType::F32 }, &axes);
        let value = recipe.elab.input(input, InputKind::Batch, ty.clone());
        let node = recipe.elab.node_of(&value, HERE).expect("an input is a tensor");
        recipe.elab.define(recipe.file, input, value);
        let data = sorted(&axes, &data);
        if is_whole {
            inputs.push((input.clone(), Tensor::int(ty, data.iter().map(|x| *x as i64).collect())));
        } else {
            inputs.push((input.clone(), Tensor::float(ty, data)));
            by.push((format!("d.in.{input}"), node, axes));
        }
    }
    let result = recipe.value("result");
    let out = recipe.elab.node_of(&result, HERE).unwrap_or_else(|_| panic!("{name}: {}", recipe.said()));
    let (shape, ..) = recorded(file, &format!("{name}/out"));
    let out_axes = axes(&case["out"], &shape);
    let ty = type_of(DType::F32, &out_axes);
    assert_eq!(*recipe.elab.graph().ty(out), ty, "{name}");

    let seed = recipe.elab.input("cotangent", InputKind::Batch, ty.clone());
    let seed = recipe.elab.node_of(&seed, HERE).expect("an input is a tensor");
    inputs.push((
        "cotangent".to_owned(),
        Tensor::float(ty, sorted(&out_axes, &recorded(file, &format!("{name}/seed")).1)),
    ));
    let stored: Vec<_> =
        recipe.elab.stored().map(|(id, stored)| (id, stored.path.clone(), stored.axes.clone(), stored.kind)).collect();
    for (id, path, axes, kind) in stored {
        let (input, ty) = (recipe.elab.stored_name(id), recipe.elab.stored_type(id));
        let value = recipe.elab.stored_value(id);
        let node = recipe.elab.node_of(&value, HERE).expect("a weight is a tensor");
        match kind {
            StoredKind::Weight => {
                let (shape, data, _) = recorded(file, &format!("{name}/w.{path}"));
                assert_eq!(axes.iter().map(|axis| axis.size).collect::<Vec<_>>(), shape, "{name}: {path}");
                inputs.push((input, Tensor::float(ty, sorted(&axes, &data))));
                by.push((format!("d.w.{path}"), node, axes));
            }
            // What BatchNorm begins with: center 0, spread 1.
            StoredKind::State => {
                let first = if path == "spread" { Scalar::Float(1.0) } else { Scalar::Float(0.0) };
                inputs.push((input, Tensor::filled(ty, first)));
            }
        }
    }

    let graph = recipe.elab.graph();
    let product = graph.add(Op::Mul, &[out, seed]);
    let total = graph.sum(product, out_axes.iter().map(|axis| axis.name.clone()));
    let args: Vec<NodeId> = std::iter::once(total).chain(by.iter().map(|(_, node, _)| *node)).collect();
    let grads = graph.add(Op::Grad, &args);
    graph.output_as("out", Role::Value, out);
    for (k, (key, ..)) in by.iter().enumerate() {
        let grad = graph.add(Op::Get(k as u32), &[grads]);
        graph.output_as(key.as_str(), Role::Value, grad);
    }
    let graph = mdl_compiler::grad::differentiate(&recipe.elab.finish());
    let results = run(&graph, &inputs);
    assert_eq!(results.len(), 1 + by.len(), "{name}: the result and its derivatives");
    for (key, tensor) in results {
        let axes = by.iter().find(|(known, ..)| *known == key).map_or(&out_axes, |(_, _, axes)| axes);
        let (_, expected, _) = recorded(file, &format!("{name}/{key}"));
        assert_near(&format!("{name}/{key}"), &tensor.to_f64(), &sorted(axes, &expected));
    }
}
