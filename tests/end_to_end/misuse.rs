//! Bad input: a coded error with its place, exit code 1, in time, and nothing half-written.

use std::time::{Duration, Instant};

use super::*;

/// A whole recipe, to be spoilt.
const RECIPE: &str = r#"use std.models.Gpt
axis t = 8
data text {
  source    = text("corpus.txt")
  tokenizer = chars()
  split     = (train: 90%, val: 10%)
  window    = t
}
model gpt = Gpt[vocab: text.vocab, context: t, width: 8](heads: 2, layers: 1)
train base {
  model     = gpt
  data      = text
  objective = next_token
  optimizer = adamw(lr: 1e-3)
  batch     = 2
  steps     = 4
  save      = every(2, keep: 2)
}
"#;

fn corpus() -> String {
    "to be, or not to be: that is the question.\n".repeat(20)
}

/// Runs a recipe over a corpus, and demands an error of the recipe or its data: the code, with a place.
fn refused(recipe: impl AsRef<[u8]>, corpus: impl AsRef<[u8]>, code: &str) -> String {
    let folder = Folder::new();
    folder.write("corpus.txt", corpus);
    let path = folder.write("recipe.mdl", recipe);
    let out = folder.path("out");
    let began = Instant::now();
    let output = run(&["run", path.to_str().expect("ASCII"), "--out", out.to_str().expect("ASCII")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert!(said.contains(&format!("[{code}]")), "wanted {code}:\n{said}");
    assert!(said.contains("recipe.mdl:"), "names file and place:\n{said}");
    assert!(!out.join("base").exists(), "nothing is written");
    said
}

fn spoilt(from: &str, to: &str) -> String {
    assert!(RECIPE.contains(from), "{from}");
    RECIPE.replace(from, to)
}

#[test]
fn the_recipe_itself_is_right() {
    let folder = Folder::new();
    folder.write("corpus.txt", corpus());
    let path = folder.write("recipe.mdl", RECIPE);
    succeed(&["run", path.to_str().expect("ASCII"), "--quiet"]);
    assert!(folder.path("runs/recipe/base/checkpoints/step-4/model.safetensors").is_file());
}

#[test]
fn a_misspelt_field_names_the_nearest() {
    let said = refused(spoilt("steps     = 4", "stpes     = 4"), corpus(), "E0301");
    assert!(said.contains("`steps`"), "{said}");
}

#[test]
fn all_mistakes_are_reported_in_one_run() {
    let recipe = spoilt("steps     = 4", "stpes     = 4").replace("batch     = 2", "batch     = 2GiB");
    let said = refused(recipe, corpus(), "E0301");
    assert!(said.contains("[E0304]"), "{said}");
}

#[test]
fn a_text_that_is_missing_empty_or_not_utf8() {
    refused(spoilt("corpus.txt", "absent.txt"), corpus(), "E0501");
    refused(RECIPE, [b'a', b'b', 0xff, 0xfe, b'c'], "E0502");
    refused(RECIPE, "", "E0503");
    refused(RECIPE, "abc", "E0508");
}

#[test]
fn a_recipe_that_is_not_utf8() {
    let mut bytes = RECIPE.as_bytes().to_vec();
    bytes[40] = 0xff;
    refused(bytes, corpus(), "E0106");
}

#[test]
fn nested_parentheses_without_end() {
    let deep = format!("arg depth: Int = {}1{}\n", "(".repeat(100_000), ")".repeat(100_000));
    let said = refused(deep + RECIPE, corpus(), "E0105");
    assert!(said.len() < 5_000, "the line is shown as far as it matters, not whole: {} bytes", said.len());
    assert!(said.contains("recipe.mdl:1:274") && said.contains('…'), "{said}");
}

#[test]
fn a_recipe_that_imports_itself() {
    let said = refused(format!("use \"recipe.mdl\" (gpt)\n{RECIPE}"), corpus(), "E0402");
    assert!(said.contains("itself") || said.contains("cycle"), "{said}");
}

#[test]
fn an_axis_of_size_zero() {
    refused(spoilt("axis t = 8", "axis t = 0"), corpus(), "E0211");
}

#[test]
fn widths_that_do_not_divide() {
    refused(spoilt("heads: 2", "heads: 3"), corpus(), "E0211");
    // Inside of the library the axis has another name.
    let said = refused(spoilt("width: 8](heads: 2", "width: t](heads: 3"), corpus(), "E0211");
    assert!(said.contains("std/nn/attention.mdl:") && said.contains("its `width` is `t`"), "{said}");
}

/// What only the compiler sees is told like the rest, by `check` and by `run`, and before the stage writes anything.
#[test]
fn a_step_that_the_compiler_refuses() {
    let tight = spoilt("steps     = 4", "steps     = 4\n  memory    = 10KiB");
    let said = refused(&tight, corpus(), "E0602");
    let words: Vec<&str> = said.split_whitespace().collect();
    let least = words.iter().position(|word| *word == "needs").map(|at| words[at + 1]).expect("says how much it takes");
    let folder = Folder::new();
    folder.write("corpus.txt", corpus());
    let path = folder.write("recipe.mdl", &tight);
    let path = path.to_str().expect("ASCII");
    let output = run(&["check", path, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: serde_json::Value = serde_json::from_str(lines.trim()).expect("one line of JSON");
    assert_eq!((told["code"].as_str(), told["labels"][0]["line"].as_u64()), (Some("E0602"), Some(17)), "{told}");
    folder.write("recipe.mdl", tight.replace("10KiB", least));
    succeed(&["run", path, "--quiet"]);

    let worst = spoilt("next_token", "worst").replace("steps     = 4", "steps     = 4\n  micro     = 2");
    let worst = worst + "fn worst(model, batch) -> f32 = max(cross_entropy[vocab](model(batch.ids), batch.next))\n";
    refused(worst, corpus(), "E0318");
}

#[test]
fn blocks_and_codes_are_explained() {
    assert!(succeed(&["explain", "e0204"]).starts_with("# E0204"));
    let train = succeed(&["explain", "train"]);
    for part in ["# train", "## objective", "- required", "- default: adamw(lr: 3e-4)", "`every(steps)`", "`keep`"] {
        assert!(train.contains(part), "{part} in {train}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for words in
        [&["run"][..], &["fly", "x.mdl"], &["run", "examples/bench.mdl", "--no-such-flag"], &["explain", "E9999"]]
    {
        assert_eq!(run(words).status.code(), Some(2), "{words:?}");
    }
    for more in [["--stage", "none"], ["--dump-after", "none"], ["--emit", "none"]] {
        assert_eq!(run(&[&["build", "examples/bench.mdl"][..], &more].concat()).status.code(), Some(2), "{more:?}");
    }
    let write = ["generate", "examples/shakespeare.mdl", "--prompt", "a"];
    for more in [["--top-p", "7"], ["--top-p", "0"], ["--temperature", "-1"], ["--stage", "none"], ["--threads", "0"]] {
        assert_eq!(run(&[&write[..], &more].concat()).status.code(), Some(2), "{more:?}");
    }
}

/// A run whose last checkpoint was damaged.
fn damaged(damage: impl Fn(&mut Vec<u8>)) -> (Folder, Output) {
    let folder = Folder::new();
    folder.write("corpus.txt", corpus());
    let path = folder.write("recipe.mdl", RECIPE);
    let recipe = path.to_str().expect("ASCII").to_string();
    succeed(&["run", &recipe, "--quiet"]);
    for step in ["step-2", "step-4"] {
        let file = folder.path(&format!("runs/recipe/base/checkpoints/{step}/model.safetensors"));
        let mut bytes = std::fs::read(&file).expect("the checkpoint is there");
        damage(&mut bytes);
        std::fs::write(&file, bytes).expect("the checkpoint can be written");
    }
    let output = run(&["generate", &recipe, "--prompt", "to be"]);
    (folder, output)
}

#[test]
fn a_truncated_or_bit_flipped_checkpoint_is_refused() {
    let last = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - 5;
        bytes[at] ^= 1;
    };
    for damage in [&(|bytes: &mut Vec<u8>| bytes.truncate(100)) as &dyn Fn(&mut Vec<u8>), &last] {
        let (_folder, output) = damaged(damage);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{said}");
        assert!(said.contains("model.safetensors"), "names the file: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_loss_that_is_no_number_names_step_and_operation() {
    let folder = Folder::new();
    folder.write("corpus.txt", corpus());
    let path = folder.write("recipe.mdl", spoilt("lr: 1e-3", "lr: 1e30"));
    let output = run(&["run", path.to_str().expect("ASCII"), "--quiet"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("NaN") && said.contains("first operation") && said.contains("step "), "{said}");
    // Within the copies of a block: the operation, its layer, and which copy.
    assert!(said.contains("in `blocks.attn` at `layer` = 0"), "{said}");
}

/// The loss of a step is that of the weights before it: what its own update spoils is seen when it would be saved.
#[test]
fn weights_that_are_no_numbers_are_not_saved() {
    for (broken, what) in [("0.0", "NaN; the first operation that made one is `div`"), ("1.0", "infinite;")] {
        let folder = Folder::new();
        folder.write("corpus.txt", corpus());
        let breaks =
            format!("optimizer breaks(at: Int) {{\n  fn step(w, g, n) = w - 0.01 * g + {broken} / (n - at)\n}}\n");
        let path = folder.write("recipe.mdl", breaks + &spoilt("adamw(lr: 1e-3)", "breaks(4)"));
        let path = path.to_str().expect("ASCII");
        for _ in 0..2 {
            let output = run(&["run", path, "--quiet"]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(said.contains("step 4 of `base`") && said.contains(&format!("`tokens.w` {what}")), "{said}");
            assert!(said.contains("checkpoint of step 2 is whole"), "{said}");
            let saved = |step: u64| folder.path(&format!("runs/recipe/base/checkpoints/step-{step}")).exists();
            assert!(saved(2) && !saved(4));
        }
    }
}

#[test]
fn samples_of_a_model_that_looks_ahead_are_refused() {
    let recipe = "layer Both[vocab, context, width](heads: Int, layers: Int) {
  tokens = Embedding[vocab -> width]()
  fn call(ids: int[.., t]) -> [.., t, vocab] = {
    let x = tokens(ids)
    tokens.attend(x + mean[t](x))
  }
}
"
    .to_owned()
        + &spoilt("Gpt[", "Both[").replace("steps     = 4", "steps     = 4\n  sample    = every(2, prompt: \"to\")");
    let said = refused(recipe, corpus(), "E0223");
    assert!(said.contains("sampled here"), "{said}");
}
