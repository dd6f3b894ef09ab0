//! Folders of published models, `tests/fixtures/hf/*`: what `transformers` computed for each is computed again, trained, continued
//! and written back. A family is a folder; one that the library does not know yet is refused as such, and nothing else.

use std::path::{Path, PathBuf};

use mdl_runtime::npz::{self, Array};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{Folder, root, run};

/// How far results may be from those recorded, relative to the largest of them.
const CLOSE: f64 = 1e-4;

/// The folders, and what is said when one is of no known family.
fn folders() -> Vec<PathBuf> {
    let home = root().join("tests/fixtures/hf");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&home)
        .expect("the fixtures are there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("config.json").is_file())
        .collect();
    folders.sort();
    folders.retain(|folder| {
        let output = run(&["import", shown(folder)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || said.contains("E0404"), "{}: {said}", folder.display());
        output.status.success()
    });
    let known = |name: &str| folders.iter().any(|folder| folder.ends_with(name));
    assert!(known("gpt2") && known("llama") && known("mistral"), "{folders:?}");
    folders
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn expected(folder: &Path) -> Value {
    let text = std::fs::read_to_string(folder.join("expect.json")).expect("what transformers computed");
    serde_json::from_str(&text).expect("expect.json is JSON")
}

fn inputs(folder: &Path) -> String {
    shown(&folder.join("inputs.npz")).to_string()
}

/// The standard output of a command that must succeed.
fn said(words: &[&str]) -> String {
    let output = run(words);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn floats(array: &Array) -> Vec<f64> {
    (0..array.count()).map(|at| f64::from(array.float(at))).collect()
}

fn floats_of(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The largest difference, relative to the largest number that was expected.
fn apart(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-6, |most: f64, value| most.max(value.abs()));
    got.iter().zip(expected).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs() / largest))
}

/// Runs a check on every folder and reports all that fail it.
fn for_each(check: impl Fn(&Path) -> Result<(), String>) {
    let failed: Vec<String> = folders()
        .iter()
        .filter_map(|folder| check(folder).err().map(|why| format!("{}: {why}", name(folder))))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn results_losses_and_gradients_are_those_of_transformers() {
    let work = Folder::new();
    for_each(|folder| {
        let to = work.path(&format!("{}.npz", name(folder)));
        let text = said(&["apply", shown(folder), "--inputs", &inputs(folder), "--outputs", shown(&to), "--loss"]);
        let results = npz::read(&to).map_err(|error| error.to_string())?;
        for expected in npz::read(&folder.join("outputs.npz")).map_err(|error| error.to_string())? {
            let Some(result) = results.iter().find(|result| result.name == expected.name) else {
                return Err(format!("no result `{}`", expected.name));
            };
            if result.shape != expected.shape {
                return Err(format!("`{}` is {:?}, not {:?}", result.name, result.shape, expected.shape));
            }
            let apart = apart(&floats(result), &floats(&expected));
            if apart > CLOSE {
                return Err(format!("`{}` is {apart:.1e} apart", result.name));
            }
        }
        let (got, expected) = (serde_json::from_str::<Value>(&text).expect("JSON"), expected(folder));
        let loss = [&got, &expected].map(|value| value["loss"].as_f64().unwrap_or(f64::NAN));
        if (loss[0] - loss[1]).abs() > CLOSE * loss[1].abs() {
            return Err(format!("the loss is {}, not {}", loss[0], loss[1]));
        }
        let norms = expected["grad_norms"].as_object().expect("norms");
        // What no loss depends on, the bias of keys before a softmax, has a gradient of rounding errors alone.
        let least = norms.values().filter_map(Value::as_f64).fold(1.0, f64::max) * 1e-3;
        for (tensor, norm) in norms {
            let norm = norm.as_f64().unwrap_or(f64::NAN);
            match got["grad_norms"][tensor].as_f64() {
                Some(own) if (own - norm).abs() <= CLOSE * norm.max(least) => {}
                own => return Err(format!("the gradient of `{tensor}` has the norm {own:?}, not {norm}")),
            }
        }
        let extra = got["grad_norms"].as_object().into_iter().flatten().find(|(name, _)| !norms.contains_key(*name));
        extra.map_or(Ok(()), |(name, _)| Err(format!("`{name}` has a gradient, and none was recorded")))
    });
}

#[test]
fn twenty_steps_of_adamw_are_those_of_pytorch() {
    let work = Folder::new();
    for_each(|folder| {
        let to = work.path(&name(folder));
        let optimizer = "adamw(lr: 1e-3, b1: 0.9, b2: 0.999, eps: 1e-8, decay: 0.0)";
        let words = ["tune", shown(folder), "--inputs", &inputs(folder), "--optimizer", optimizer, "--steps", "20"];
        let text = said(&[&words[..], &["--out", shown(&to)]].concat());
        let got: Value = serde_json::from_str(&text).expect("JSON");
        let losses = floats_of(&expected(folder)["losses"]);
        let apart = apart(&floats_of(&got["losses"]), &losses);
        if apart > CLOSE {
            return Err(format!("losses are {apart:.1e} apart"));
        }
        // What was exported goes on from there.
        let text = said(&["apply", shown(&to), "--inputs", &inputs(folder), "--loss"]);
        let after = serde_json::from_str::<Value>(&text).expect("JSON")["loss"].as_f64().unwrap_or(f64::NAN);
        let wanted = expected(folder)["after"].as_f64().unwrap_or(f64::NAN);
        let is_near = (after - wanted).abs() <= 10.0 * CLOSE * wanted.abs();
        if is_near { Ok(()) } else { Err(format!("exported, its loss is {after}, not {wanted}")) }
    });
}

#[test]
fn what_was_not_touched_is_exported_byte_by_byte() {
    let work = Folder::new();
    for_each(|folder| {
        let to = work.path(&name(folder));
        let words = ["tune", shown(folder), "--inputs", &inputs(folder), "--optimizer", "sgd(lr: 0.0)", "--steps", "1"];
        said(&[&words[..], &["--out", shown(&to)]].concat());
        let bytes = |folder: &Path, file: &str| std::fs::read(folder.join(file)).unwrap_or_default();
        for file in ["config.json", "expect.json"] {
            if bytes(folder, file) != bytes(&to, file) {
                return Err(format!("{file} differs"));
            }
        }
        // A step moves running statistics whatever the rate: of a model that has them, all else is the same.
        let (old, new) = (bytes(folder, "model.safetensors"), bytes(&to, "model.safetensors"));
        let [before, after] = [&old, &new].map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
        let is_running = |name: &str| name.ends_with("running_mean") || name.ends_with("running_var");
        if old != new && !before.names().into_iter().any(is_running) {
            return Err("model.safetensors differs".to_string());
        }
        for (name, tensor) in before.tensors().into_iter().filter(|(name, _)| !is_running(name)) {
            if after.tensor(&name).ok().map(|after| after.data().to_vec()) != Some(tensor.data().to_vec()) {
                return Err(format!("`{name}` differs"));
            }
        }
        Ok(())
    });
}

#[test]
fn greedy_ids_are_those_of_transformers() {
    for_each(|folder| {
        let prompt = folder.join("prompt.npz");
        if !prompt.is_file() {
            return Ok(());
        }
        let text = said(&["generate", shown(folder), "--ids", shown(&prompt), "--new", "64", "--greedy"]);
        let got: Value = serde_json::from_str(&text).expect("JSON");
        let rows = expected(folder)["greedy"].as_array().cloned().unwrap_or_default();
        for (own, row) in got["sequences"].as_array().into_iter().flatten().zip(&rows) {
            let (own, row) = (floats_of(own), floats_of(row));
            if own[own.len().saturating_sub(64)..] != row {
                return Err(format!("{own:?} does not end in {row:?}"));
            }
        }
        if got["sequences"].as_array().map(Vec::len) == Some(rows.len()) { Ok(()) } else { Err("other rows".into()) }
    });
}

#[test]
fn what_does_not_fit_is_told_at_once() {
    let work = Folder::new();
    let gpt2 = root().join("tests/fixtures/hf/gpt2");
    for file in ["config.json", "model.safetensors"] {
        work.write(&format!("m/{file}"), std::fs::read(gpt2.join(file)).expect("the fixture"));
    }
    let folder = work.path("m");
    let config = std::fs::read_to_string(folder.join("config.json")).expect("the configuration");
    let fails = |config: &str, expected: &[&str]| {
        std::fs::write(folder.join("config.json"), config).expect("the folder can be written");
        let output = run(&["apply", shown(&folder), "--inputs", &inputs(&gpt2), "--loss", "--color", "never"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in expected {
            assert!(said.contains(part), "`{part}` is not in\n{said}");
        }
    };
    fails(&config.replace("\"n_layer\": 2", "\"n_layer\": 3"), &["E0406", "missing", "transformer.h.2."]);
    fails(&config.replace("\"n_layer\": 2", "\"n_layer\": 1"), &["E0406", "superfluous", "transformer.h.1."]);
    fails(
        &config.replace("\"n_inner\": 40", "\"n_inner\": 41"),
        &["E0406", "of another shape", "[16, 41] in the model"],
    );
    fails(&config.replace("n_embd", "n_embed"), &["E0216", "config.json` has no key `n_embd`"]);
    fails(&config.replace("\"n_embd\": 16", "\"n_embd\": -16"), &["E0211", "-16", "config.json"]);
    fails(&config.replace("\"gpt2\"", "\"gpt7\""), &["E0404", "gpt7"]);
}

/// A table gives zeros where it has no row; a model that is asked for one is asked by mistake.
#[test]
fn numbers_that_a_model_has_no_row_for_are_refused() {
    let work = Folder::new();
    let gpt2 = root().join("tests/fixtures/hf/gpt2");
    let config = std::fs::read_to_string(gpt2.join("config.json")).expect("the configuration");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let vocab = config["vocab_size"].as_i64().expect("a number");
    let (arrays, out) = (work.path("in.npz"), shown(&work.path("out")).to_string());
    for (ids, labels) in [([1, vocab, 2], [1, 2, 3]), ([1, -1, 2], [1, 2, 3]), ([1, 2, 3], [-100, vocab, 1])] {
        let row = |name, values: &[i64]| Array::i64s(name, vec![1, 3], values);
        npz::write(&arrays, &[row("input_ids", &ids), row("labels", &labels)]).expect("the folder can be written");
        for words in [
            vec!["apply", "--loss"],
            vec!["tune", "--steps", "2", "--optimizer", "sgd(lr: 0.1)", "--out", out.as_str()],
        ] {
            let output = run(&[&words[..], &[shown(&gpt2), "--inputs", shown(&arrays)]].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("E0505") && said.contains("has a row for 0 to"), "{said}");
        }
    }
}
