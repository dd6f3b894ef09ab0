//! PyTorch as the outside witness: the same first weights, batches and hyper-parameters give the same losses and gradient
//! norms over 100 steps. Recorded by `tests/scripts/witness.py`; no Python is needed here.

use std::path::PathBuf;

use mdl_graph::DType;
use mdl_lang::check::{Imported, Problem, World};
use mdl_lang::diag::{Sources, render};
use mdl_lang::spec::{DataFacts, DataSpec, StageKind, TrainSpec};
use mdl_runtime::device::{Cpu, Executable, Tensors};
use mdl_runtime::programs::plan_stage;
use safetensors::SafeTensors;

use super::*;

struct Disk(PathBuf);

impl World for Disk {
    fn import(&self, _: &str, path: &str) -> Result<Imported, String> {
        Err(format!("no file {path} here"))
    }

    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        Ok(mdl_data::describe(spec, &self.0, None).expect("generated data").data)
    }
}

fn train_spec(recipe: &str) -> TrainSpec {
    let mut sources = Sources::new();
    let main = sources.add("witness.mdl", recipe);
    let (program, diagnostics) = mdl_lang::stage::check(&mut sources, main, &[], &Disk(root()));
    assert!(diagnostics.is_empty(), "{}", render(&diagnostics, &sources));
    let found = program.stages.into_iter().find_map(|stage| match stage.kind {
        StageKind::Train(spec) => Some(*spec),
        _ => None,
    });
    found.expect("the recipe trains")
}

fn recipe(model: &str) -> String {
    format!(
        r#"use std.models.Gpt
use std.models.Llama
axis t = 16
data tokens {{ source = random_tokens(vocab: 37, count: 10_000), split = (train: 100%), window = t }}
model witness = {model}
train base {{
  model     = witness
  data      = tokens
  objective = next_token
  optimizer = adamw(lr: cosine(peak: 3e-3, warmup: 10, floor: 3e-4, over: 100), b1: 0.9, b2: 0.95, decay: 0.1)
  batch     = 4
  steps     = 100
  clip      = 1.0
}}
"#
    )
}

fn agrees(name: &str, model: &str) {
    let spec = train_spec(&recipe(model));
    let fixture = root().join("tests/fixtures");
    let bytes = std::fs::read(fixture.join(format!("{name}.safetensors"))).expect("the fixture is there");
    let recorded = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let told: serde_json::Value = serde_json::from_str(&read(&fixture.join(format!("{name}.json")))).expect("JSON");

    let cpu = Cpu::new(Some(2)).expect("threads");
    let programs = plan_stage(&spec, cpu.machine()).expect("the step is planned");
    let mut step = Executable::of_plan(programs.step, &cpu).expect("it compiles");
    let mut tensors = Tensors::new();
    tensors.allocate(step.plan());
    for weight in &spec.weights {
        let from = recorded.tensor(weight.path.as_str()).unwrap_or_else(|_| panic!("no {} is recorded", weight.path));
        let tensor = tensors.get_mut(weight.path.as_str()).expect("the step has every weight");
        let shape: Vec<usize> = tensor.axes.iter().map(|axis| axis.size as usize).collect();
        assert_eq!((from.shape(), tensor.dtype), (&shape[..], DType::F32), "{}", weight.path);
        tensor.data.bytes_mut().copy_from_slice(from.data());
    }
    let known: Vec<&str> = spec.weights.iter().map(|weight| weight.path.as_str()).collect();
    for name in recorded.names().into_iter().filter(|name| !name.starts_with("batch.")) {
        assert!(known.contains(&name), "{name} is recorded and not a weight");
    }
    let batch = |name: &str, step: usize| -> Vec<i32> {
        let all = recorded.tensor(name).expect("batches are recorded");
        let words = all.data().chunks_exact(4).map(|word| i32::from_le_bytes(word.try_into().expect("four bytes")));
        words.skip(step * 64).take(64).collect()
    };
    for at in 0..100 {
        for field in ["ids", "next"] {
            let port = step.plan().input(field).expect("the step reads it");
            assert_eq!(port.axes[0].name.as_str(), "batch", "the recording has batch first");
            step.input::<i32>(field).expect("i32").copy_from_slice(&batch(&format!("batch.{field}"), at));
        }
        if let Some(mask) = step.input_bytes("mask") {
            mask.fill(1);
        }
        step.set_scalar("seed", 0);
        step.set_scalar("step", at as i32);
        step.run(&mut tensors, &cpu).expect("it runs");
        for (ours, theirs) in [("loss", "losses"), ("grad_norm", "grad_norms")] {
            let (got, wanted) = (step.scalar(ours).expect("reported"), told[theirs][at].as_f64().expect("recorded"));
            assert!((got - wanted).abs() <= 1e-4 * wanted.abs(), "{name}, step {at}: {ours} {got}, PyTorch {wanted}");
        }
    }
}

#[test]
fn gpt_trains_as_in_pytorch() {
    agrees("gpt", "Gpt[vocab: tokens.vocab, context: t, width: 24](heads: 3, layers: 2)");
}

#[test]
fn llama_trains_as_in_pytorch() {
    agrees("llama", "Llama[vocab: tokens.vocab, width: 24, hidden: 40](heads: 3, kv_heads: 1, layers: 2)");
}
