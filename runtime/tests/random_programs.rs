//! Five hundred random programs, forward and backward: machine code, unfused and fused, on one thread and two, against the
//! reference interpreter.

mod common;

use common::compare;
use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::{random_inputs, scalars_beside};
use mdl_graph::DType;
use mdl_runtime::device::Cpu;

fn check(seed: u64, dtype: DType, one: &Cpu, two: &Cpu) -> Result<(), String> {
    let options = RandomOptions { dtype, gradient: seed.is_multiple_of(2), ..RandomOptions::default() };
    let graph = prepare(&random_graph(seed, options), &Options::default()).map_err(|error| error.to_string())?;
    compare(&graph, &random_inputs(&graph, seed), dtype, one, two)
}

fn all(seeds: std::ops::Range<u64>, dtype: DType) {
    let one = Cpu::new(Some(1)).expect("a thread");
    let two = Cpu::new(Some(2)).expect("two threads");
    let failed: Vec<String> = seeds
        .filter_map(|seed| check(seed, dtype, &one, &two).err().map(|why| format!("seed {seed}: {why}")))
        .collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn four_hundred_in_f32() {
    all(0..400, DType::F32);
}

#[test]
fn fifty_in_bf16() {
    all(400..450, DType::BF16);
}

#[test]
fn fifty_in_f16() {
    all(450..500, DType::F16);
}

/// A tile of a vector that reads a scalar after another has written it: now and then, so often enough to be seen.
#[test]
fn scalars_beside_a_long_vector() {
    let (one, two) = (Cpu::new(Some(1)).expect("a thread"), Cpu::new(Some(2)).expect("two threads"));
    for n in [3, 1024, 1025, 8000] {
        let graph = scalars_beside(n);
        for round in 0..10 {
            let inputs = random_inputs(&graph, round);
            compare(&graph, &inputs, DType::F32, &one, &two).unwrap_or_else(|why| panic!("{n} elements: {why}"));
        }
    }
}
