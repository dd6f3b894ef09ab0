//! Derivatives by central differences, the independent witness of `differentiate`.

use mdl_graph::{Graph, NodeId, Op, Role};

use crate::grad::differentiate;
use crate::reference::{Data, EvalError, Tensor, eval};

/// Compares the gradient of the sum of `y` with central differences, in `f64`. `xs` are inputs of the graph, by position.
///
/// Elements where the function has a corner nearby (two steps of different size disagree) are passed over. `Err` says where
/// the two differ; `Ok` is the number of elements that were compared.
pub fn check_gradient(graph: &Graph, y: NodeId, xs: &[usize], inputs: &[Tensor]) -> Result<usize, String> {
    let mut with_grad = graph.clone();
    let nodes: Vec<NodeId> = input_nodes(graph);
    let mut args = vec![y];
    args.extend(xs.iter().map(|x| nodes[*x]));
    let marker = with_grad.add(Op::Grad, &args);
    let gets = with_grad.gets(marker);
    with_grad.set_outputs(Vec::new());
    for (k, get) in gets.into_iter().enumerate() {
        with_grad.output_as(format!("d {k}"), Role::Value, get);
    }
    let backward = differentiate(&with_grad);
    backward.verify().map_err(|error| format!("{error}\n{backward}"))?;
    let gradients = eval(&backward, inputs).map_err(|error| format!("{error}\n{backward}"))?;

    let mut forward = graph.clone();
    forward.set_outputs(Vec::new());
    forward.output_as("y", Role::Value, y);
    let forward = differentiate(&forward);
    let value = |inputs: &[Tensor]| -> Result<f64, EvalError> {
        Ok(eval(&forward, inputs)?.iter().flat_map(Tensor::to_f64).sum())
    };
    let mut moved = inputs.to_vec();
    let mut compared = 0;
    for (x, gradient) in xs.iter().zip(&gradients) {
        for (i, found) in gradient.to_f64().into_iter().enumerate() {
            let mut slope = |step: f64| -> Result<f64, String> {
                let mut at = |delta: f64| {
                    if let (Data::Float(moved), Data::Float(start)) = (&mut moved[*x].data, &inputs[*x].data) {
                        moved[i] = start[i] + delta;
                    }
                    value(&moved).map_err(|error| error.to_string())
                };
                let slope = (at(step)? - at(-step)?) / (2.0 * step);
                at(0.0)?;
                Ok(slope)
            };
            let (wide, narrow) = (slope(2e-5)?, slope(1e-5)?);
            let size = 1.0 + wide.abs().max(narrow.abs());
            if (wide - narrow).abs() > 1e-5 * size {
                continue;
            }
            compared += 1;
            // A NaN is close to nothing.
            let is_close = (found - narrow).abs() <= 1e-5 * size;
            if !is_close {
                let name = &graph.inputs()[*x].name;
                return Err(format!("d y / d {name}[{i}] is {found}, differences give {narrow}\n{backward}"));
            }
        }
    }
    Ok(compared)
}

/// The nodes of the inputs, in their order.
pub fn input_nodes(graph: &Graph) -> Vec<NodeId> {
    let mut nodes = vec![NodeId(0); graph.inputs().len()];
    for id in graph.ids() {
        if let Op::Input(input) = graph.op(id) {
            nodes[input.0 as usize] = id;
        }
    }
    nodes
}
