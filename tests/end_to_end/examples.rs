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
fn chinese() {
    let flags = [
        "--reading",
        "3",
        "--steps",
        "4",
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--length",
        "24",
        "--batch",
        "8",
    ];
    runs("examples/chinese.mdl", &flags, &["pretrained", "base", "bag", "score", "baseline"]);
}

#[test]
fn chat() {
    let flags =
        ["--pretrain", "4", "--steps", "4", "--layers", "1", "--width", "32", "--context", "64", "--batch", "4"];
    runs("examples/chat.mdl", &[&flags[..], &["--text", "README.md"]].concat(), &["prose", "base", "chats", "tuned"]);
}

#[test]
fn cifar() {
    runs("examples/cifar.mdl", &["--steps", "3", "--width", "4", "--batch", "8"], &["base", "score"]);
}

#[test]
fn spoken() {
    runs("examples/spoken.mdl", &["--steps", "3", "--batch", "8"], &["base", "score"]);
}

#[test]
fn bench() {
    runs("examples/bench.mdl", &[&["--steps", "4"][..], &SMALL].concat(), &["base"]);
}

/// Flags that make `bench.mdl` small.
const SMALL: [&str; 10] = ["--layers", "1", "--heads", "2", "--width", "16", "--context", "8", "--batch", "2"];

#[test]
fn a_step_is_profiled() {
    let folder = Folder::new();
    let (out, trace) = (folder.path("out"), folder.path("trace.json"));
    let (out, trace) = (out.to_str().expect("ASCII"), trace.to_str().expect("ASCII"));
    let words = ["profile", "examples/bench.mdl", "--measure", "3", "--json", "--out", out, "--trace", trace];
    let said = succeed(&[&words[..], &SMALL].concat());
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (step, kernels) = lines.split_first().expect("a line for the step");
    let launches: u64 = kernels.iter().filter_map(|line| line["launches"].as_u64()).sum();
    let plan =
        succeed(&[&["build", "examples/bench.mdl", "--emit", "plan", "--json", "--out", out][..], &SMALL].concat());
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    assert_eq!(Some(launches), plan["report"]["launches"].as_u64());
    assert!(kernels.iter().all(|line| line["ms"].as_f64().is_some_and(|ms| ms > 0.0)), "{said}");
    assert!(step["step_ms"].as_f64().is_some_and(|ms| ms > 0.0) && step["peak_flops"].is_number(), "{step}");
    let trace: serde_json::Value = serde_json::from_str(&read(Path::new(trace))).expect("JSON");
    assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(launches as usize));
    assert!(!Path::new(out).join("base").exists(), "a profile leaves no results");
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
    let write = |flags: &[&str]| {
        let prompt = ["--prompt", "mdl", "--new", "40"];
        succeed(&[&["generate", "examples/shakespeare.mdl"], &sizes[..], &prompt, flags].concat())
    };
    let generate = |seed: &str| write(&["--seed", seed]);
    let text = generate("1");
    assert!(text.starts_with("mdl"), "{text}");
    // Rounding a matrix changes what an untrained model says here and there, but not that it speaks.
    for kept in ["bf16", "int8"] {
        let text = write(&["--weights", kept]);
        assert!(text.starts_with("mdl") && text.chars().count() > 40, "{kept}: {text}");
        assert_eq!(text, write(&["--weights", kept]), "{kept}");
    }
    assert_eq!(text, generate("1"), "the same seed writes the same text");
    let told: serde_json::Value = serde_json::from_str(&write(&["--seed", "1", "--json"])).expect("one line of JSON");
    assert_eq!(format!("mdl{}\n", told["text"].as_str().expect("a text")), text);
    assert_eq!((told["stage"].as_str(), told["tokens"].as_u64()), (Some("base"), Some(40)));
    assert_ne!(text, generate("2"), "another seed writes another");
}
