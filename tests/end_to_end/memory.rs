//! What a run takes is what its plan says: within 5%, and a constant for the program itself, its machine code and the compiler.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use super::*;

/// The program, its libraries, the checked recipe, machine code, and what compiling it leaves in the allocator.
const CONSTANT: u64 = 40 << 20;

/// Runs, and gives the plan's bytes and the most that was resident.
fn plan_and_peak(words: &[&str]) -> (u64, u64) {
    let mut child = mdlc(words).stdout(Stdio::piped()).spawn().expect("mdlc starts");
    let out = child.stdout.take().expect("a pipe");
    let lines = std::thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).collect::<Vec<_>>());
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // The mark only rises, so that its last reading is that of the run but for its last milliseconds.
    while child.try_wait().expect("mdlc can be waited for").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = mark.and_then(|mark| mark.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().expect("mdlc has ended").success(), "{words:?}");
    let lines = lines.join().expect("the lines are read");
    let events = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let compiled = events.into_iter().find(|event| event["event"] == "compiled").expect("the step is compiled");
    (compiled["peak_bytes"].as_u64().expect("a number"), peak)
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_takes_what_its_plan_says() {
    let folder = Folder::new();
    let out = folder.path("out");
    let out = out.to_str().expect("a path of ASCII");
    let bench = ["run", "examples/bench.mdl", "--layers", "3", "--heads", "4", "--width", "256", "--context", "256"];
    let bench = [&bench[..], &["--batch", "16", "--steps", "2"]].concat();
    // Evaluations and samples have programs of their own, which take turns in the arena of the step.
    let plays = ["run", "examples/shakespeare.mdl", "--text", "README.md", "--width", "128", "--context", "128"];
    let plays = [&plays[..], &["--batch", "64", "--steps", "2"]].concat();
    for words in [bench, plays] {
        for round in ["whole", "resumed"] {
            if round == "resumed" {
                // The stage goes on from its checkpoint, which is read a tensor at a time.
                std::fs::remove_file(Path::new(out).join("base/stage.json")).expect("the stage has run");
            }
            let (plan, peak) = plan_and_peak(&[&words[..], &["--json", "--threads", "2", "--out", out]].concat());
            assert!(plan > 160 << 20, "{words:?} is too small to tell: {plan}");
            let limit = plan + plan / 20 + CONSTANT;
            let mib = |bytes: u64| bytes >> 20;
            assert!(
                peak <= limit,
                "{words:?}, {round}: {} MiB resident, the plan says {} and allows {}",
                mib(peak),
                mib(plan),
                mib(limit)
            );
            if round == "whole" {
                // A plan that counts what is never touched would not be one.
                assert!(peak >= plan - plan / 10, "{words:?}: {} MiB resident of a plan of {}", mib(peak), mib(plan));
            }
        }
        std::fs::remove_dir_all(out).expect("the run's folder is there");
    }
}

/// What `check` tells is what a run plans, evaluations and samples included; and evaluations, too, take a batch in pieces.
#[test]
fn check_tells_of_every_program() {
    let folder = Folder::new();
    let text = "to be or not to be, that is the question; whether it is nobler in the mind to suffer\n";
    folder.write("plays.txt", text.repeat(200));
    let figures = |micro: u64| {
        let recipe = format!(
            r#"
use std.models.Gpt
axis t = 64, width = 32
data plays {{ source = text("plays.txt"), tokenizer = chars(), window = t, split = (train: 50%, val: 50%) }}
model gpt = Gpt[vocab: plays.vocab, context: t, width](heads: 2, layers: 2)
train base {{
  model = gpt, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 2, batch = 64, micro = {micro}
  evaluate = every(2, on: plays.val), sample = every(2, prompt: "to ", new: 4)
}}
eval quality {{ of = base, on = plays.val }}
"#
        );
        let path = folder.write(&format!("pieces{micro}.mdl"), recipe);
        let path = path.to_str().expect("a path of ASCII");
        let lines = |command: &str| -> Vec<serde_json::Value> {
            let printed = succeed(&[command, path, "--json", "--threads", "2"]);
            printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
        };
        let told = lines("check").into_iter().find(|line| line["stage"] == "base").expect("the stage is told of");
        let ran = lines("run");
        let compiled = ran.iter().find(|event| event["event"] == "compiled").expect("the step is compiled");
        assert_eq!(told["peak_bytes"], compiled["peak_bytes"]);
        let parts = told["bytes"].as_object().expect("parts").values();
        assert_eq!(told["peak_bytes"].as_u64(), parts.map(serde_json::Value::as_u64).sum());
        assert!(told["bytes"]["samples"].as_u64().is_some_and(|bytes| bytes > 0), "{told}");
        let losses = ran.iter().filter(|event| event["event"] == "evaluated");
        let losses: Vec<f64> = losses.filter_map(|event| event["values"]["loss"].as_f64()).collect();
        (told, losses)
    };
    let ((whole, losses), (pieces, same)) = (figures(1), figures(16));
    // With the whole batch, evaluations would take several times what a step in pieces does.
    let part = |figures: &serde_json::Value, of: u64| figures["peak_bytes"].as_u64().map(|bytes| bytes / of);
    assert!(pieces["bytes"]["evaluation"].as_u64() < part(&pieces, 4), "{pieces}");
    assert!(pieces["peak_bytes"].as_u64() < part(&whole, 4), "{whole} {pieces}");
    assert!(losses.len() == 2 && same.len() == 2, "{losses:?} {same:?}");
    for (a, b) in losses.iter().zip(&same) {
        assert!((a - b).abs() < 1e-4 * a.abs(), "{losses:?} {same:?}");
    }
}
