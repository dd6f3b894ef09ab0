//! Executes a plan with the interpreter of kernels.

#[allow(dead_code, reason = "not every test has a language model")]
pub(crate) mod gpt;

use std::convert::Infallible;

use mdl_compiler::plan::{Base, KernelId, Machine, Place, Plan, Port, Walker};
use mdl_compiler::reference::{Data, Tensor, offsets, strides};
use mdl_graph::{DType, Graph, Role, Scalar};

use crate::interp;
use crate::memory::{self, Buffers};

/// Compares with `tests/golden/plan/<file>`; with `UPDATE_GOLDEN` set the file is written, and its diff read by a person.
#[allow(dead_code, reason = "not every test has a golden file")]
pub(crate) fn golden(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    if let Some((at, (new, old))) = text.lines().zip(expected.lines()).enumerate().find(|(_, (new, old))| new != old) {
        panic!("{file}:{}: is\n{new}\nwas\n{old}", at + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{file} has another number of lines");
}

struct Memory<'p> {
    plan: &'p Plan,
    arena: Vec<u64>,
    states: Vec<Vec<u64>>,
}

impl Memory<'_> {
    fn address(&mut self, place: Place) -> *mut u8 {
        let block = match place.base {
            Base::Arena => &mut self.arena,
            Base::State(state) => &mut self.states[state as usize],
        };
        block.as_mut_ptr().cast::<u8>().wrapping_add(place.offset as usize)
    }
}

impl Machine for Memory<'_> {
    type Error = Infallible;

    fn launch(&mut self, kernel: KernelId, args: &[Place]) -> Result<(), Infallible> {
        let addresses: Vec<*mut u8> = args.iter().map(|place| self.address(*place)).collect();
        // SAFETY: the plan verifies, so every buffer lies inside of its block.
        interp::run(self.plan.kernel(kernel), unsafe { Buffers::new(&addresses) });
        Ok(())
    }

    fn copy(&mut self, from: Place, to: Place, bytes: u64) -> Result<(), Infallible> {
        let (from, to) = (self.address(from), self.address(to));
        // SAFETY: as above.
        unsafe { std::ptr::copy(from, to, bytes as usize) };
        Ok(())
    }

    fn flag(&mut self, at: Place) -> Result<bool, Infallible> {
        // SAFETY: as above.
        Ok(unsafe { *self.address(at) } != 0)
    }
}

/// The places in a port's buffer of a tensor's elements, in their order.
fn places(port: &Port, tensor: &Tensor) -> Vec<usize> {
    // A tensor's elements are in the order of sorted names; the port has an order of its own.
    let mut dense = 1i64;
    let mut by_name = std::collections::BTreeMap::new();
    for axis in port.axes.iter().rev() {
        by_name.insert(axis.name.clone(), dense);
        dense *= axis.size as i64;
    }
    let sizes: Vec<u64> = tensor.ty.axes.iter().map(|axis| axis.size).collect();
    let steps: Vec<i64> = tensor.ty.axes.iter().map(|axis| by_name[&axis.name]).collect();
    assert_eq!(strides(tensor.ty.axes.iter(), &tensor.ty.axes).len(), steps.len());
    offsets(&sizes, &steps, 0)
}

/// Runs the plan once; what the graph's outputs are afterwards, in their order.
pub(crate) fn run(plan: &Plan, graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    // What nobody wrote is NaN, or a large number.
    let words = |bytes: u64| vec![u64::MAX; bytes.div_ceil(8) as usize];
    let states = plan.states.iter().map(|state| words(state.bytes)).collect();
    let mut memory = Memory { plan, arena: words(plan.arena_bytes), states };
    let place = |port: &Port| {
        let slot = plan.slot(port.slot);
        Place { base: slot.base, offset: slot.offset }
    };
    for (port, tensor) in plan.io.inputs.iter().zip(inputs) {
        let base = memory.address(place(port));
        for (i, at) in places(port, tensor).into_iter().enumerate() {
            let value = match &tensor.data {
                Data::Float(data) => Scalar::Float(data[i]),
                Data::Int(data) => Scalar::Int(data[i]),
                Data::Bool(data) => Scalar::Bool(data[i]),
            };
            // SAFETY: the port's slot has room for its elements.
            unsafe { memory::write(base, port.dtype, at as i64, value) };
        }
    }
    let Ok(()) = Walker::new(plan).walk(plan, &mut memory);
    let mut values = plan.io.outputs.iter();
    graph
        .outputs()
        .iter()
        .map(|output| {
            let port = match output.role {
                Role::Value => values.next().unwrap(),
                Role::Next(input) => &plan.io.inputs[input.0 as usize],
            };
            let ty = graph.ty(output.node).clone();
            let mut tensor = Tensor::filled(ty.clone(), Scalar::Int(0));
            let base = memory.address(place(port));
            for (i, at) in places(port, &tensor.clone()).into_iter().enumerate() {
                // SAFETY: as above.
                let value = unsafe { memory::read(base, port.dtype, at as i64) };
                match (&mut tensor.data, value) {
                    (Data::Float(data), value) => data[i] = value.as_f64(),
                    (Data::Int(data), Scalar::Int(value)) => data[i] = value,
                    (Data::Bool(data), Scalar::Bool(value)) => data[i] = value,
                    (Data::Int(_) | Data::Bool(_), _) => panic!("{} is no {}", port.name, DType::Bool),
                }
            }
            tensor
        })
        .collect()
}
