//! Adapters as PEFT keeps them, `tests/fixtures/peft/*`: what PEFT computed with each is computed again, trained, merged and written back.

use std::path::{Path, PathBuf};

use mdl_runtime::npz::{self, Array};
use serde_json::Value;

use super::*;

/// How far results may be from those recorded, relative to the largest of them.
const CLOSE: f64 = 1e-4;

const OPTIMIZER: &str = "adamw(lr: 2e-3, b1: 0.9, b2: 0.999, eps: 1e-8, decay: 0.0)";

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn shown(path: &Path) -> String {
    path.to_str().expect("a plain path").to_string()
}

/// The adapters' folders, each with that of its model.
fn adapters() -> Vec<(String, PathBuf, PathBuf)> {
    let mut names: Vec<String> = std::fs::read_dir(fixture("peft"))
        .expect("the fixtures are there")
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| fixture("peft").join(name).is_dir())
        .collect();
    names.sort();
    assert!(names.len() >= 7, "{names:?}");
    let model = |name: &str| fixture("hf").join(name.split('_').next().unwrap_or_default());
    names.iter().map(|name| (name.clone(), fixture("peft").join(name), model(name))).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The largest difference, relative to the largest number that was expected.
fn apart(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-6, |most: f64, value| most.max(value.abs()));
    got.iter().zip(expected).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs() / largest))
}

fn logits(arrays: &[Array]) -> Vec<f64> {
    let array = arrays.iter().find(|array| array.name == "logits").expect("logits");
    (0..array.count()).map(|at| f64::from(array.float(at))).collect()
}

/// The logits of a model, with an adapter or without, on the model's recorded inputs.
fn applied(work: &Folder, model: &Path, adapter: Option<&Path>, inputs: &Path) -> Vec<f64> {
    let to = shown(&work.path("out.npz"));
    let (model, inputs) = (shown(model), shown(&inputs.join("inputs.npz")));
    let mut words = vec!["apply", &model, "--inputs", &inputs, "--outputs", &to];
    let adapter = adapter.map(shown);
    words.extend(adapter.iter().flat_map(|adapter| ["--adapter", adapter.as_str()]));
    succeed(&words);
    logits(&npz::read(Path::new(&to)).expect("results"))
}

#[test]
fn logits_and_fifty_steps_are_those_of_peft() {
    let work = Folder::new();
    for (name, adapter, model) in adapters() {
        let expected = logits(&npz::read(&adapter.join("outputs.npz")).expect("what PEFT computed"));
        let far = apart(&applied(&work, &model, Some(&adapter), &model), &expected);
        assert!(far < CLOSE, "{name}: logits are {far:.1e} apart");
        let to = shown(&work.path(&name));
        let words = ["tune", &shown(&model), "--adapter", &shown(&adapter), "--optimizer", OPTIMIZER, "--steps", "50"];
        let said = succeed(&[&words[..], &["--inputs", &shown(&model.join("inputs.npz")), "--out", &to]].concat());
        let (got, expected) = (json(&said), json(&read(&adapter.join("expect.json"))));
        let (got, expected) = (numbers(&got["losses"]), numbers(&expected["losses"]));
        // Three layers in one tensor have one `a` there and three here, so only the first loss is the same.
        let n = if name.ends_with("together") { 1 } else { 50 };
        let far = apart(&got[..n], &expected[..n]);
        assert!(far < CLOSE, "{name}: losses are {far:.1e} apart");
        assert!(got[49] < got[0] - 0.2, "{name}: {got:?}");
        // What was written is an adapter, which goes on from there.
        let after = applied(&work, &model, Some(Path::new(&to)), &model);
        let before = applied(&work, &model, Some(&adapter), &model);
        assert!(apart(&after, &before) > 1e-2, "{name}");
    }
}

#[test]
fn an_adapter_that_learns_nothing_is_written_as_it_was_read() {
    let work = Folder::new();
    for (name, adapter, model) in adapters() {
        let to = work.path(&name);
        let words = ["tune", &shown(&model), "--adapter", &shown(&adapter), "--optimizer", "sgd(lr: 0.0)"];
        let inputs = shown(&model.join("inputs.npz"));
        succeed(&[&words[..], &["--steps", "1", "--inputs", &inputs, "--out", &shown(&to)]].concat());
        let [was, is] = [&adapter, &to].map(|folder| json(&read(&folder.join("adapter_config.json"))));
        if name.ends_with("together") {
            // Each of the three has its own ranks, and those of the others where it is not: the same function.
            let far =
                apart(&applied(&work, &model, Some(&to), &model), &applied(&work, &model, Some(&adapter), &model));
            assert!(far < 1e-6 && is["r"] == 9, "{name}: {far:.1e}, {is}");
            continue;
        }
        for key in ["peft_type", "r", "use_rslora", "use_dora", "target_modules", "fan_in_fan_out", "bias"] {
            let is_default = was.get(key).is_none() || was[key] == false;
            assert!(
                was[key] == is[key] || is_default && is[key] != true,
                "{name}: `{key}` was {} and is {}",
                was[key],
                is[key]
            );
        }
        let [was, is] = [&adapter, &to].map(|folder| {
            let bytes = std::fs::read(folder.join("adapter_model.safetensors")).expect("a file of weights");
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let all =
                tensors.iter().map(|(name, view)| (name.to_string(), view.shape().to_vec(), view.data().to_vec()));
            let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = all.collect();
            all.sort();
            all
        });
        assert!(was == is, "{name}: other tensors");
    }
}

#[test]
fn merged_and_unmerged_logits_agree() {
    let work = Folder::new();
    for (name, adapter, model) in adapters() {
        let to = work.path(&name);
        let words = ["merge", &shown(&model), "--adapter", &shown(&adapter), "--to", &shown(&to)];
        let said = json(&succeed(&[&words[..], &["--json"]].concat()));
        let (change, most) = (said["largest_change"].as_f64().unwrap(), said["largest_logit"].as_f64().unwrap());
        assert!(change < CLOSE * most && most > 1.0, "{name}: {said}");
        let unmerged = applied(&work, &model, Some(&adapter), &model);
        let far = apart(&applied(&work, &to, None, &model), &unmerged);
        assert!(far < CLOSE, "{name}: merged logits are {far:.1e} apart");
        assert!(apart(&applied(&work, &model, None, &model), &unmerged) > 1e-2, "{name}: the adapter changes nothing");
        // What PEFT itself makes of folding.
        let loss = succeed(&["apply", &shown(&to), "--inputs", &shown(&model.join("inputs.npz")), "--loss"]);
        let merged = json(&read(&adapter.join("expect.json")))["merged"].as_f64().unwrap();
        assert!((json(&loss)["loss"].as_f64().unwrap() / merged - 1.0).abs() < CLOSE, "{name}");
    }
}

/// Begun with the same vectors as PEFT's.
const WAVES: &str = r#"
use std.models.pretrained
axis t = 11
data row { source = text("row.txt"), tokenizer = chars(), window = t, split = (train: 100%) }
fn waves[..from -> ..to]() -> [..from, ..to] = {
  axis i = size[..from], j = size[..to]
  let place = 7 * index[i] + index[j]
  (0.3 * sin(float(place)))[i as (..from)][j as (..to)]
}
model gpt2 = pretrained("gpt2")
model llama = pretrained("llama")
train prompt { model = gpt2, adapt = [Prompt(_, tokens: 3, init: waves()) at "tokens", Prompted(_, tokens: 3)], data = row, objective = next_token, optimizer = adamw(lr: 1e-2, b2: 0.999, decay: 0.0), steps = 20, batch = 1 }
train prefix { model = llama, adapt = Prefix(_, tokens: 3, init: waves()) at "blocks.*.attn", data = row, objective = next_token, optimizer = adamw(lr: 1e-2, b2: 0.999, decay: 0.0), steps = 20, batch = 1 }
"#;

#[test]
fn prompts_and_prefixes_learn_as_those_of_peft() {
    let work = Folder::new();
    let expected = json(&read(&fixture("peft/prompts.json")));
    for model in ["gpt2", "llama"] {
        for file in ["config.json", "model.safetensors"] {
            let bytes = std::fs::read(fixture("hf").join(model).join(file)).expect("the fixture");
            work.write(&format!("{model}/{file}"), bytes);
        }
    }
    work.write("row.txt", expected["text"].as_str().expect("a text"));
    succeed(&["run", &shown(&work.write("recipe.mdl", WAVES))]);
    for stage in ["prompt", "prefix"] {
        let lines = metrics(&work.path(&format!("runs/recipe/{stage}/metrics.jsonl")));
        let got: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
        let far = apart(&got, &numbers(&expected[stage]));
        assert!(far < CLOSE && got.len() == 20, "{stage}: losses are {far:.1e} apart");
    }
}

/// `alpha / sqrt(length · width)` is the most that is added, a third of its square the mean square (Jain et al., 2023, section 2).
#[test]
fn noise_on_embeddings_is_as_large_as_published() {
    let work = Folder::new();
    work.write("plays.txt", "to be or not to be, that is the question\n".repeat(60));
    let recipe = r#"
axis t = 32, width = 48, vocab = 40
data plays { source = text("plays.txt"), tokenizer = chars(), window = t, split = (train: 90%, val: 10%) }
model table = Embedding[vocab -> width](init: zeros())
fn noise(model, batch) = {
  let y = model(batch.ids)
  (loss: mean(y * y), largest: max(abs(y)))
}
train base { model = table, adapt = Neftune(_, alpha: 5.0), data = plays, objective = noise, optimizer = sgd(lr: 0.0), steps = 4, batch = 8, evaluate = every(4, on: plays.val) }
"#;
    succeed(&["run", &shown(&work.write("recipe.mdl", recipe))]);
    let lines = metrics(&work.path("runs/recipe/base/metrics.jsonl"));
    let bound = 5.0 / (32.0_f64 * 48.0).sqrt();
    let steps: Vec<&Value> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 4);
    for step in &steps {
        let (square, largest) = (step["loss"].as_f64().unwrap(), step["largest"].as_f64().unwrap());
        assert!((square / (bound * bound / 3.0) - 1.0).abs() < 0.05, "{step}");
        assert!(largest <= bound && largest > 0.99 * bound, "{step}");
    }
    assert_ne!(steps[0]["loss"], steps[1]["loss"]);
    // Where nothing is learned there is none.
    let measured = lines.iter().find_map(|line| line["eval_loss"].as_f64());
    assert_eq!(measured, Some(0.0));
}

const RECIPE: &str = r#"
use std.models.pretrained
axis t = 8
data plays { source = text("plays.txt"), tokenizer = chars(), window = t, split = (train: 90%, val: 10%) }
model net = pretrained("model")
"#;

/// A recipe beside a copy of a model and some text.
fn recipe(work: &Folder, model: &str, train: &str) -> String {
    for file in ["config.json", "model.safetensors"] {
        work.write(&format!("model/{file}"), std::fs::read(fixture("hf").join(model).join(file)).expect("the fixture"));
    }
    work.write("plays.txt", "to be or not to be, that is the question\n".repeat(30));
    shown(&work.write("recipe.mdl", format!("{RECIPE}{train}")))
}

#[test]
fn a_stage_is_exported_and_merged() {
    let work = Folder::new();
    let train = r#"
train tuned { model = net, adapt = [Lora(_, rank: 4) at "blocks.*.attn.{q, v}", Lora(_, rank: 2, alpha: 3.0) at "blocks.*.mlp"], data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 10, batch = 4 }
train again { model = net, adapt = peft("saved"), data = plays, objective = next_token, optimizer = sgd(lr: 0.0), steps = 1, batch = 4, frozen = nf4(block: 16) }
"#;
    let (first, second) = train.trim().split_once('\n').expect("two stages");
    let path = recipe(&work, "gpt2", first);
    succeed(&["run", &path]);
    let saved = shown(&work.path("saved"));
    succeed(&["export", &path, "--to", &saved]);
    let config = json(&read(&work.path("saved/adapter_config.json")));
    // Queries and values lie in one tensor, so their ranks lie one after another.
    assert_eq!((&config["r"], &config["lora_alpha"]), (&serde_json::json!(8), &serde_json::json!(64.0)), "{config}");
    assert_eq!(config["rank_pattern"]["transformer.h.1.mlp.c_fc"], 2, "{config}");
    assert_eq!(config["fan_in_fan_out"], true);
    let inputs = fixture("hf/gpt2");
    let model = work.path("model");
    let to = shown(&work.path("out.npz"));
    succeed(&["apply", &path, "--inputs", &shown(&inputs.join("inputs.npz")), "--outputs", &to]);
    let tuned = logits(&npz::read(Path::new(&to)).expect("results"));
    assert!(apart(&applied(&work, &model, Some(Path::new(&saved)), &inputs), &tuned) < 1e-5);
    let said = json(&succeed(&["merge", &path, "--to", &shown(&work.path("merged")), "--json"]));
    assert!(said["largest_change"].as_f64().unwrap() < 1e-4, "{said}");
    assert!(apart(&applied(&work, &work.path("merged"), None, &inputs), &tuned) < CLOSE);
    // The adapter goes into a recipe, around a model in four bits.
    work.write("recipe.mdl", format!("{RECIPE}{second}"));
    succeed(&["run", &path]);
}

#[test]
fn what_cannot_be_saved_or_folded_is_refused() {
    let refused = |train: &str, words: &[&str], expected: &[&str]| {
        let work = Folder::new();
        let text = format!(
            "train tuned {{ model = net, {train}, data = plays, objective = next_token, optimizer = sgd(lr: 0.1), steps = 1, batch = 4 }}"
        );
        let path = recipe(&work, "gpt2", &text);
        succeed(&["run", &path]);
        let to = shown(&work.path("to"));
        let output = crate::run(&[words, &[&path, "--to", &to, "--color", "never"]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_ne!(output.status.code(), Some(0), "{said}");
        for part in expected {
            assert!(said.contains(part), "`{part}` is not in\n{said}");
        }
        assert!(!Path::new(&to).exists());
    };
    let bottleneck = r#"adapt = Bottleneck(_, rank: 4) at "blocks.*.mlp.up""#;
    refused(bottleneck, &["export"], &["E0408", "Bottleneck"]);
    refused(bottleneck, &["merge"], &["E0409", "is not linear"]);
    refused(r#"adapt = Dora(_, rank: 4) at "blocks.*.attn.q""#, &["export"], &["E0408", "c_attn", "a part of it"]);
    refused(r#"adapt = Lora(_) at "blocks.**", freeze = "blocks""#, &["export"], &["also trained `", "no adapter's"]);
    refused(r#"freeze = "tokens""#, &["merge"], &["E0409", "has no adapters"]);
}

#[test]
fn wrong_adapters_are_told() {
    let lora = fixture("peft/llama_lora");
    let read = |file: &str| std::fs::read(lora.join(file)).expect("the fixture");
    let (config, weights) =
        (String::from_utf8(read("adapter_config.json")).expect("text"), read("adapter_model.safetensors"));
    let model = fixture("hf/llama");
    let fails = |config: &str, weights: &[u8], more: Option<(&str, &str)>, model: &Path, expected: &[&str]| {
        let work = Folder::new();
        work.write("adapter/adapter_config.json", config);
        work.write("adapter/adapter_model.safetensors", weights);
        if let Some((name, text)) = more {
            work.write(&format!("adapter/{name}"), text);
        }
        let words = ["apply", &shown(model), "--adapter", &shown(&work.path("adapter")), "--loss", "--color", "never"];
        let output = crate::run(&[&words[..], &["--inputs", &shown(&model.join("inputs.npz"))]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in expected {
            assert!(said.contains(part), "`{part}` is not in\n{said}");
        }
    };
    let renamed = |from: &str, to: &str| {
        let at = weights.windows(from.len()).position(|window| window == from.as_bytes()).expect("the name");
        let mut changed = weights.clone();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        changed
    };
    let file = "0.self_attn.q_proj.lora_A.weight";
    fails(
        &config.replace("\"r\": 4", "\"r\": 5"),
        &weights,
        None,
        &model,
        &["E0406", "of another shape", "lora_A.weight", "[5, 16]"],
    );
    let other = renamed(file, "0.self_attn.q_proj.lora_X.weight");
    fails(&config, &other, None, &model, &["E0406", "missing", file, "superfluous", "lora_X"]);
    let other = renamed(file, "0.self_attn.z_proj.lora_A.weight");
    fails(&config, &other, None, &model, &["E0406", "superfluous", "z_proj"]);
    fails(&config, &weights, None, &fixture("hf/gpt2"), &["E0406", "superfluous", "self_attn.q_proj"]);
    fails(&config, &weights[..weights.len() - 4], None, &model, &["E0405", "adapter_model.safetensors"]);
    let index = r#"{"weight_map": {"a": "../../secret.safetensors"}}"#;
    let index = Some(("model.safetensors.index.json", index));
    fails(&config, &weights, index, &model, &["E0405", "../../secret.safetensors", "does not lie beside it"]);
    fails("{", &weights, None, &model, &["E0403", "adapter_config.json"]);
    fails(&config.replace("\"LORA\"", "\"OFT\""), &weights, None, &model, &["E0404", "OFT"]);
    fails(&config.replace("\"lora_alpha\"", "\"alpha\""), &weights, None, &model, &["E0216", "lora_alpha"]);
    fails(&config.replace("\"r\": 4", "\"r\": -4"), &weights, None, &model, &["E0211"]);
    let saved = config.replace("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]");
    fails(&saved, &weights, None, &model, &["E0224", "modules_to_save"]);
    let pattern = config.replace("\"rank_pattern\": {}", "\"rank_pattern\": {\".*q_proj\": 4}");
    fails(&pattern, &weights, None, &model, &["E0404", ".*q_proj"]);
    let layer = config.replace("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"layers.0.self_attn.q_proj\": 4}");
    fails(&layer, &weights, None, &model, &["E0408", "two kinds of adapters"]);
}
