//! Shared by the differential tests: a graph planned, compiled and run, against the reference interpreter.

#![allow(dead_code, reason = "each test file uses its part")]

use mdl_compiler::plan::{Base, Plan, PlanOptions, plan};
use mdl_compiler::reference::{Data, Tensor, eval_stored};
use mdl_compiler::tolerance::{is_close, tolerance};
use mdl_graph::{Axis, DType, Graph, Role, Scalar, Type};
use mdl_runtime::device::{Cpu, Executable, Tensors};

/// For each position of `to`, in its order, the position in a tensor with the axes `from`, in theirs.
fn order(to: &[Axis], from: &[Axis]) -> Vec<usize> {
    let strides: Vec<i64> = to
        .iter()
        .map(|axis| {
            let place = from.iter().position(|own| own == axis).expect("the same axes");
            from[place + 1..].iter().map(|inner| inner.size as i64).product()
        })
        .collect();
    let sizes: Vec<u64> = to.iter().map(|axis| axis.size).collect();
    mdl_compiler::reference::offsets(&sizes, &strides, 0)
}

fn number(data: &Data, at: usize) -> Scalar {
    match data {
        Data::Float(all) => Scalar::Float(all[at]),
        Data::Int(all) => Scalar::Int(all[at]),
        Data::Bool(all) => Scalar::Bool(all[at]),
    }
}

fn encode(tensor: &Tensor, axes: &[Axis]) -> Vec<u8> {
    let sorted: Vec<Axis> = tensor.ty.axes.iter().cloned().collect();
    let mut bytes = Vec::new();
    for at in order(axes, &sorted) {
        let value = number(&tensor.data, at);
        let float = value.as_f64();
        match tensor.ty.dtype {
            DType::F64 => bytes.extend(float.to_le_bytes()),
            DType::F32 => bytes.extend((float as f32).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f64(float).to_le_bytes()),
            DType::F16 => bytes.extend(half::f16::from_f64(float).to_le_bytes()),
            DType::I64 => bytes.extend((float as i64).to_le_bytes()),
            DType::I32 => bytes.extend((float as i32).to_le_bytes()),
            DType::I8 => bytes.extend((float as i8).to_le_bytes()),
            DType::U8 | DType::Bool => bytes.push(float as u8),
        }
    }
    bytes
}

fn decode(bytes: &[u8], ty: &Type, axes: &[Axis]) -> Vec<f64> {
    let size = ty.dtype.size_bytes() as usize;
    let sorted: Vec<Axis> = ty.axes.iter().cloned().collect();
    let value = |at: usize| -> f64 {
        let word = &bytes[at * size..][..size];
        match ty.dtype {
            DType::F64 => f64::from_le_bytes(word.try_into().expect("8 bytes")),
            DType::F32 => f64::from(f32::from_le_bytes(word.try_into().expect("4 bytes"))),
            DType::BF16 => half::bf16::from_le_bytes(word.try_into().expect("2 bytes")).to_f64(),
            DType::F16 => half::f16::from_le_bytes(word.try_into().expect("2 bytes")).to_f64(),
            DType::I64 => i64::from_le_bytes(word.try_into().expect("8 bytes")) as f64,
            DType::I32 => f64::from(i32::from_le_bytes(word.try_into().expect("4 bytes"))),
            DType::I8 => f64::from(word[0] as i8),
            DType::U8 | DType::Bool => f64::from(word[0]),
        }
    };
    order(&sorted, axes).into_iter().map(value).collect()
}

/// Every output of a plan, run natively.
fn run(graph: &Graph, inputs: &[Tensor], plan: Plan, cpu: &Cpu) -> Vec<Vec<f64>> {
    let own_bytes = plan.arena_bytes + cpu.machine().workspace_bytes(&plan);
    let mut executable = Executable::of_plan(plan, cpu).expect("the kernels compile");
    assert_eq!(executable.own_bytes(cpu), own_bytes, "what is told before compiling is what compiling takes");
    let mut tensors = Tensors::new();
    tensors.allocate(executable.plan());
    for (input, tensor) in graph.inputs().iter().zip(inputs) {
        let Some(port) = executable.plan().input(input.name.as_str()).cloned() else { continue };
        let bytes = encode(tensor, &port.axes);
        match executable.plan().slot(port.slot).base {
            Base::Arena => executable.input_bytes(input.name.as_str()).expect("in the arena").copy_from_slice(&bytes),
            Base::State(_) => {
                let kept = tensors.get_mut(input.name.as_str()).expect("allocated");
                kept.data.bytes_mut().copy_from_slice(&bytes);
            }
        }
    }
    executable.run(&mut tensors, cpu).expect("it runs");
    tensors.fetch().expect("it is read");
    let outputs = graph.outputs().iter().map(|output| {
        let ty = graph.ty(output.node);
        match output.role {
            Role::Value => {
                let port = executable.plan().output(output.name.as_str()).expect("planned");
                let bytes = executable.output_bytes(output.name.as_str(), &tensors).expect("planned");
                decode(bytes, ty, &port.axes)
            }
            Role::Next(input) => {
                let kept = tensors.get(graph.inputs()[input.0 as usize].name.as_str()).expect("allocated");
                decode(kept.data.bytes(), ty, &kept.axes)
            }
        }
    });
    outputs.collect()
}

/// On one thread and on two, as the reference says.
pub(crate) fn compare(graph: &Graph, inputs: &[Tensor], dtype: DType, one: &Cpu, two: &Cpu) -> Result<(), String> {
    let expected = eval_stored(graph, inputs).map_err(|error| error.to_string())?;
    for fuse in [false, true] {
        let planning = PlanOptions { fuse, round_every_node: dtype != DType::F32, ..PlanOptions::default() };
        let plan = plan(graph, &planning).map_err(|error| error.to_string())?;
        let got = run(graph, inputs, plan.clone(), one);
        let bits = |all: &[Vec<f64>]| -> Vec<u64> { all.iter().flatten().map(|x| x.to_bits()).collect() };
        if bits(&got) != bits(&run(graph, inputs, plan, two)) {
            return Err(format!("fuse {fuse}: one thread and two give different bits"));
        }
        for ((output, wanted), got) in graph.outputs().iter().zip(&expected).zip(&got) {
            let wanted_values = wanted.to_f64();
            // Sums lose what their largest term loses.
            let scale = wanted_values.iter().filter(|x| x.is_finite()).fold(1.0f64, |most, x| most.max(x.abs()));
            let limit = tolerance(dtype, 4096).max(tolerance(wanted.ty.dtype, 4096)) * scale;
            for (a, b) in wanted_values.iter().zip(got) {
                if !is_close(*a, *b, limit) {
                    return Err(format!("fuse {fuse}: `{}` is {b}, the reference gives {a}", output.name));
                }
            }
        }
    }
    Ok(())
}
