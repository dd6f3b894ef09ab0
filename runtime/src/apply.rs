//! A model run once on arrays, or its loss and the norms of the loss's gradients.
//!
//! In: what the checker made of it ([`Applied`]) and the arrays. Out: what the model returns, as arrays; and the norm of each weight's
//! gradient under the name of the weight in its file, or its path if it came from no file.

use std::collections::BTreeMap;
use std::path::Path;

use mdl_compiler::budget::compile;
use mdl_compiler::pass::Options;
use mdl_compiler::plan::{PlanOptions, Port};
use mdl_data::Problem;
use mdl_graph::{DType, Graph, Name};
use mdl_lang::spec::{Along, Origin, Read};
use mdl_lang::stage::Applied;

use crate::device::{Cpu, Executable, Tensors};
use crate::error::RunError;
use crate::npz::{Array, Kind};
use crate::positions::positions;
use crate::stage::train::{load_origins, orders_of};

/// What came out.
pub struct Outcome {
    pub results: Vec<Array>,
    /// By name, in order of the names.
    pub gradient_norms: BTreeMap<String, f64>,
}

/// Runs it. `base` is the recipe's folder, `out` where stages keep what they have made.
pub fn apply(applied: &Applied, arrays: &[Array], base: &Path, out: &Path, cpu: &Cpu) -> Result<Outcome, RunError> {
    check_positions(&applied.graph, arrays)?;
    let orders: BTreeMap<Name, Vec<Name>> = orders_of(&applied.reads).collect();
    let planning = PlanOptions { orders, ..PlanOptions::default() };
    let plan = compile(&applied.graph, &Options::default(), &planning, None)
        .map_err(|error| RunError::failed("compiling the program", error.to_string()))?;
    let mut executable = Executable::of_plan(plan, cpu)?;
    let mut tensors = Tensors::new();
    tensors.allocate(executable.plan());
    let origins = applied.reads.iter().map(|read| (&read.input, &read.origin));
    load_origins(base, out, origins, &mut tensors)?;
    for (name, axes) in &applied.inputs {
        let Some(array) = arrays.iter().find(|array| array.name == *name) else { continue };
        // What the result does not depend on is no input of the plan.
        let Some(port) = executable.plan().input(name).cloned() else { continue };
        if let Some(to) = executable.input_bytes(name) {
            write(array, axes, &port, to)?;
        }
    }
    executable.set_scalar("seed", 0);
    executable.set_scalar("step", 0);
    executable.run(&mut tensors, cpu)?;
    let mut results = Vec::new();
    for (name, axes) in &applied.outputs {
        let Some(port) = executable.plan().output(name) else { mdl_graph::bug!("`{name}` is no output") };
        let Some(bytes) = executable.output_bytes(name, &tensors) else { mdl_graph::bug!("`{name}` has no bytes") };
        results.push(result(name, axes, port, bytes));
    }
    let mut squares: BTreeMap<String, f64> = BTreeMap::new();
    for name in &applied.gradients {
        let output = format!("grad:{name}");
        let Some(port) = executable.plan().output(&output) else { continue };
        let Some(values) = executable.output::<f32>(&output) else { continue };
        let Some(read) = applied.reads.iter().find(|read| read.input == *name) else { continue };
        add_squares(read, port, values, &mut squares);
    }
    let gradient_norms = squares.into_iter().map(|(name, square)| (name, square.sqrt())).collect();
    Ok(Outcome { results, gradient_norms })
}

/// Refuses arrays that hold numbers for which a table has no row.
pub fn check_positions(graph: &Graph, arrays: &[Array]) -> Result<(), RunError> {
    for (name, allowed) in positions(graph) {
        let Some(array) = arrays.iter().find(|array| array.name == name.as_str()) else { continue };
        (0..array.shape.iter().product::<u64>() as usize)
            .try_for_each(|at| allowed.check(&array.name, array.int(at)))?;
    }
    Ok(())
}

/// For each element in the order of `axes`, where it lies in the order of a port.
fn places(axes: &[Name], port: &Port) -> Vec<usize> {
    let mut strides = vec![0; axes.len()];
    let mut stride = 1;
    for axis in port.axes.iter().rev() {
        if let Some(at) = axes.iter().position(|name| *name == axis.name) {
            strides[at] = stride;
        }
        stride *= axis.size as usize;
    }
    let size = |name: &Name| port.axes.iter().find(|axis| axis.name == *name).map_or(1, |axis| axis.size as usize);
    axes.iter().zip(strides).fold(vec![0], |places, (name, stride)| {
        places.iter().flat_map(|place| (0..size(name)).map(move |at| place + at * stride)).collect()
    })
}

/// Writes an array, whose axes are these, in the order of a port.
pub(crate) fn write(array: &Array, axes: &[Name], port: &Port, to: &mut [u8]) -> Result<(), RunError> {
    for (at, place) in places(axes, port).into_iter().enumerate() {
        match port.dtype {
            DType::Bool => to[place] = u8::from(array.int(at) != 0),
            DType::I32 => {
                let value = i32::try_from(array.int(at)).map_err(|_| {
                    let message = format!("`{}` holds {}, which is beyond 32 bits", array.name, array.int(at));
                    RunError::from(Problem::new("E0505", message))
                })?;
                to[place * 4..][..4].copy_from_slice(&value.to_le_bytes());
            }
            DType::F32 => to[place * 4..][..4].copy_from_slice(&array.float(at).to_le_bytes()),
            other => return Err(RunError::failed("reading the arrays", format!("`{}` is {other}", array.name))),
        }
    }
    Ok(())
}

fn result(name: &str, axes: &[Name], port: &Port, bytes: &[u8]) -> Array {
    let places = places(axes, port);
    let size = port.dtype.size_bytes() as usize;
    let own = places.iter().flat_map(|place| &bytes[place * size..][..size]).copied().collect();
    let shape = axes.iter().map(|name| port.axes.iter().find(|axis| axis.name == *name).map_or(1, |axis| axis.size));
    let array = |kind| Array { name: name.to_string(), kind, shape: shape.clone().collect(), bytes: own };
    match port.dtype {
        DType::F32 => array(Kind::Float { bytes: 4 }),
        DType::F64 => array(Kind::Float { bytes: 8 }),
        DType::F16 => array(Kind::Float { bytes: 2 }),
        DType::Bool => array(Kind::Bool),
        DType::I64 => array(Kind::Int { bytes: 8, signed: true }),
        DType::I32 => array(Kind::Int { bytes: 4, signed: true }),
        DType::I8 => array(Kind::Int { bytes: 1, signed: true }),
        DType::U8 => array(Kind::Int { bytes: 1, signed: false }),
        DType::BF16 => {
            let word = |place: &usize| half::bf16::from_le_bytes([bytes[place * 2], bytes[place * 2 + 1]]).to_f32();
            Array::f32s(name, shape.clone().collect(), &places.iter().map(word).collect::<Vec<_>>())
        }
    }
}

/// Adds the squares of a weight's gradient, along its copies, to those of the tensors that hold it.
fn add_squares(read: &Read, port: &Port, values: &[f32], squares: &mut BTreeMap<String, f64>) {
    // The axes of copies come first.
    let copies = &read.axes[..port.axes.len().min(read.axes.len())];
    let names: Vec<Name> = copies.iter().map(|axis| axis.name.clone()).collect();
    let places = places(&names, port);
    let index_of = |mut at: usize| {
        let mut index = vec![0; copies.len()];
        for (to, axis) in index.iter_mut().zip(copies).rev() {
            *to = at as u64 % axis.size;
            at /= axis.size as usize;
        }
        index
    };
    for (at, place) in places.into_iter().enumerate() {
        let (square, index) = (f64::from(values[place]), index_of(at));
        match &read.origin {
            Origin::Files { pieces, .. } => {
                let holds = |along: &Along, at: u64| matches!(along, Along::Every(_)) || *along == Along::At(at);
                let piece =
                    pieces.iter().find(|piece| piece.along.iter().zip(&index).all(|(along, at)| holds(along, *at)));
                if let Some(piece) = piece {
                    *squares.entry(piece.tensor.to_string()).or_default() += square;
                }
            }
            Origin::Stage { tensor, .. } => *squares.entry(tensor.to_string()).or_default() += square,
        }
    }
}
