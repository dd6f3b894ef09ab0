//! Adapters on trained stages, and tensors in blocks.

use super::*;

const DATA: &str = r#"
use std.models.Gpt
axis t = 8, width = 64
data plays { source = text("plays.txt"), tokenizer = chars(), window = t, split = (train: 90%, val: 10%) }
model gpt = Gpt[vocab: plays.vocab, context: t, width](heads: 2, layers: 2)
train base { model = gpt, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 20, batch = 4, evaluate = every(20, on: plays.val) }
"#;

/// Runs these blocks after those of `DATA`.
fn results(folder: &Folder, blocks: &str) -> PathBuf {
    results_on_plays(folder, &format!("{DATA}{blocks}"))
}

fn of_stage(out: &Path, stage: &str, key: &str) -> Vec<f64> {
    numbers(&metrics(&out.join(stage).join("metrics.jsonl")), key)
}

fn names(out: &Path, stage: &str, step: u64, file: &str) -> Vec<String> {
    let bytes =
        std::fs::read(out.join(stage).join(format!("checkpoints/step-{step}/{file}.safetensors"))).expect("a file");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut names: Vec<String> = tensors.names().into_iter().map(str::to_string).collect();
    names.sort();
    names
}

#[test]
fn adapters_train_and_the_rest_stays() {
    let folder = Folder::new();
    let out = results(
        &folder,
        r#"
train tuned { model = base, adapt = Lora(_, rank: 4) at "blocks.*.attn.{q, v}", data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 40, batch = 4, evaluate = every(20, on: plays.val) }
train still { model = tuned, data = plays, objective = next_token, optimizer = sgd(lr: 0.0), steps = 1, batch = 4, evaluate = every(1, on: plays.val) }
train begun { model = base, adapt = [Dora(_, rank: 2) at "blocks.*.mlp.up", Ia3(_) at "blocks.*.attn.k", Bottleneck(_, rank: 4) at "blocks.**"], data = plays, objective = next_token, optimizer = sgd(lr: 0.0), steps = 1, batch = 4, evaluate = every(1, on: plays.val) }
eval quality { of = tuned, on = plays.val }
"#,
    );
    let wanted = ["blocks.attn.q.lora.a", "blocks.attn.q.lora.b", "blocks.attn.v.lora.a", "blocks.attn.v.lora.b"];
    assert_eq!(names(&out, "tuned", 40, "model"), wanted);
    assert_eq!(names(&out, "tuned", 40, "state").len(), 2 * wanted.len());
    let base = of_stage(&out, "base", "eval_loss");
    let tuned = of_stage(&out, "tuned", "eval_loss");
    assert!(tuned[1] < base[0] - 0.01, "{base:?}, then {tuned:?}");
    // A stage that goes on from it, and an evaluation of it, find the same model.
    assert_eq!(of_stage(&out, "still", "eval_loss"), tuned[1..]);
    let quality: serde_json::Value = serde_json::from_str(&read(&out.join("quality/result.json"))).expect("JSON");
    assert!((quality["metrics"]["loss"].as_f64().expect("a loss") - tuned[1]).abs() < 1e-6, "{quality}");
    // Every adapter begins as what it adapts.
    let begun = of_stage(&out, "begun", "eval_loss");
    assert!((begun[0] - base[0]).abs() < 1e-5, "{begun:?}, and {base:?}");
}

#[test]
fn frozen_weights_and_states_are_kept_in_blocks() {
    let folder = Folder::new();
    let out = results(
        &folder,
        r#"
train whole { model = base, adapt = Lora(_, rank: 4) at "blocks.**", data = plays, objective = next_token, optimizer = adamw(lr: 5e-3), steps = 20, batch = 4, evaluate = every(20, on: plays.val) }
train four { model = base, adapt = Lora(_, rank: 4) at "blocks.**", frozen = nf4(block: 64), data = plays, objective = next_token, optimizer = adamw(lr: 5e-3), steps = 20, batch = 4, evaluate = every(20, on: plays.val), sample = every(10, prompt: "to", new: 4) }
train eight { model = base, adapt = Lora(_, rank: 4) at "blocks.**", frozen = q8(block: 64), data = plays, objective = next_token, optimizer = adamw(lr: 5e-3), steps = 20, batch = 4, evaluate = every(20, on: plays.val) }
train small { model = gpt, data = plays, objective = next_token, optimizer = adamw8(lr: 1e-2), steps = 20, batch = 4, evaluate = every(20, on: plays.val) }
eval quality { of = four, on = plays.val }
"#,
    );
    let of = |stage: &str| of_stage(&out, stage, "eval_loss")[0];
    let first = |stage: &str| of_stage(&out, stage, "loss")[0];
    let (whole, four, eight) = (of("whole"), of("four"), of("eight"));
    // Four bits change the model a little, eight bits less.
    assert!(first("four") != first("whole") && (four - whole).abs() < 0.2, "{four}, and {whole} whole");
    assert!(first("eight") != first("whole") && (eight - whole).abs() < 0.02, "{eight}, and {whole} whole");
    let quality: serde_json::Value = serde_json::from_str(&read(&out.join("quality/result.json"))).expect("JSON");
    assert!((quality["metrics"]["loss"].as_f64().expect("a loss") - four).abs() < 1e-6, "{quality}");
    // Adam in eight bits goes where Adam goes.
    assert!((of("small") - of("base")).abs() < 0.1, "{}, and {}", of("small"), of("base"));
    let states = names(&out, "small", 20, "state");
    assert!(states.iter().any(|name| name == "m/tokens.w as q8" || name == "m/blocks.attn.q.w as q8"), "{states:?}");
}
