//! Every file in `examples/` runs for a few steps, and is up to date afterwards.

use super::*;

/// Small sizes: what is tested is that every part of the recipe runs.
fn runs(recipe: &str, flags: &[&str], stages: &[&str]) {
    let folder = Folder::new();
    let out = folder.path("out");
    let out = out.to_str().expect("a path of ASCII");
    let mut words = vec!["run", recipe, "--out", out, "--threads", "2"];
    words.extend(flags);
    succeed(&words);
    for stage in stages {
        assert!(folder.path("out").join(stage).join("stage.json").is_file(), "{recipe} has run `{stage}`");
    }
    let lines = metrics(&folder.path("out/base/metrics.jsonl"));
    let steps: Vec<_> = lines.iter().filter(|line| line.get("loss").is_some()).collect();
    assert!(!steps.is_empty());
    for line in &steps {
        for key in ["step", "loss", "lr", "grad_norm", "tokens", "step_ms", "peak_bytes"] {
            assert!(line.get(key).is_some_and(|value| value.is_number()), "{key} in {line}");
        }
    }
    let again = succeed(&words);
    assert!(again.contains("base: nothing has changed"), "{again}");
}

#[test]
fn shakespeare() {
    let flags = ["--steps", "6", "--layers", "2", "--heads", "2", "--width", "32", "--context", "16", "--batch", "4"];
    runs("examples/shakespeare.mdl", &[&flags[..], &["--text", "README.md"]].concat(), &["plays", "base", "quality"]);
}

#[test]
fn addition() {
    runs("examples/addition.mdl", &["--steps", "5", "--width", "32", "--batch", "16"], &["sums", "base", "exam"]);
}

#[test]
fn sentiment() {
    runs("examples/sentiment.mdl", &["--steps", "5"], &["base"]);
}

#[test]
fn digits() {
    runs("examples/digits.mdl", &["--steps", "5"], &["base"]);
}

#[test]
fn bench() {
    let flags = ["--steps", "4", "--layers", "1", "--heads", "2", "--width", "16", "--context", "8", "--batch", "2"];
    runs("examples/bench.mdl", &flags, &["base"]);
}

#[test]
fn every_example_checks_and_is_formatted() {
    for entry in std::fs::read_dir(root().join("examples")).expect("examples/ is there") {
        let path = entry.expect("examples/ can be read").path();
        if path.extension().is_some_and(|extension| extension == "mdl") {
            let path = path.to_str().expect("a path of ASCII");
            let printed = succeed(&["check", path]);
            assert!(printed.contains("peak memory"), "{printed}");
            succeed(&["fmt", "--check", path]);
        }
    }
}

#[test]
fn a_trained_stage_writes_text() {
    let folder = Folder::new();
    let out = folder.path("out");
    let out = out.to_str().expect("a path of ASCII");
    let sizes = ["--out", out, "--text", "README.md", "--steps", "3", "--layers", "1", "--heads", "2", "--width", "16"];
    let sizes = [&sizes[..], &["--context", "16", "--batch", "2"]].concat();
    succeed(&[&["run", "examples/shakespeare.mdl"], &sizes[..]].concat());
    let generate = |seed: &str| {
        let flags = ["--prompt", "mdl", "--new", "40", "--seed", seed];
        succeed(&[&["generate", "examples/shakespeare.mdl"], &sizes[..], &flags[..]].concat())
    };
    let text = generate("1");
    assert!(text.starts_with("mdl"), "{text}");
    assert_eq!(text, generate("1"), "the same seed writes the same text");
    assert_ne!(text, generate("2"), "another seed writes another");
}
