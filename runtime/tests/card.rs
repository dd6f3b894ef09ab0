//! Random programs, forward and backward, on a card against the reference interpreter: simulated, unless `MDLC_GPU=real`.
//!
//! Left out, and said so, where NVRTC or the card cannot be had.

mod common;

use common::compare;
use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::random_inputs;
use mdl_graph::DType;
use mdl_runtime::device::{Cpu, Device};

/// What stages run on with a card, and the same again: two runs must give the same bits.
fn cards() -> Option<[Cpu; 2]> {
    if std::env::var_os("MDLC_GPU").is_none() {
        // SAFETY: set once, before any other thread of this test reads the environment.
        unsafe { std::env::set_var("MDLC_GPU", "sim") };
    }
    let one = || Cpu::new(Some(1)).and_then(|cpu| cpu.on(Device::Cuda));
    match (one(), one()) {
        (Ok(one), Ok(two)) => Some([one, two]),
        (Err(why), _) | (_, Err(why)) => {
            println!("no programs are run on a card: {why}");
            None
        }
    }
}

#[test]
fn random_programs_agree_on_a_card() {
    let Some([one, two]) = cards() else { return };
    let kinds = [(0..24, DType::F32), (400..404, DType::BF16), (450..454, DType::F16)];
    let mut failed = Vec::new();
    for (seed, dtype) in kinds.into_iter().flat_map(|(seeds, dtype)| seeds.map(move |seed| (seed, dtype))) {
        let options = RandomOptions { dtype, gradient: seed % 2 == 0, ..RandomOptions::default() };
        let graph = prepare(&random_graph(seed, options), &Options::default()).expect("a graph that is right");
        if let Err(why) = compare(&graph, &random_inputs(&graph, seed), dtype, &one, &two) {
            failed.push(format!("seed {seed}: {why}"));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
