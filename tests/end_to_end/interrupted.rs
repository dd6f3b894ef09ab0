//! A run that is killed anywhere and goes on ends in the same bits as one that was not; so does one on more threads.

use std::time::Duration;

use super::*;

const SIZES: &[&str] = &[
    "--text",
    "README.md",
    "--steps",
    "60",
    "--layers",
    "2",
    "--heads",
    "2",
    "--width",
    "24",
    "--context",
    "16",
    "--batch",
    "4",
];

fn words<'a>(recipe: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", recipe, "--quiet", "--out", out], SIZES, more].concat()
}

/// A recipe that saves often.
fn recipe(folder: &Folder) -> String {
    let text = read(&root().join("examples/shakespeare.mdl"));
    let text = text.replace("every(500, keep: 2)", "every(7, keep: 2)").replace("every(250", "every(20");
    assert!(text.contains("every(7, keep: 2)"));
    folder.write("often.mdl", text).to_str().expect("a path of ASCII").to_string()
}

fn weights(out: &str) -> Vec<u8> {
    let path = Path::new(out).join("base/checkpoints/step-60/model.safetensors");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn killed_and_resumed_runs_end_in_the_same_bits() {
    let folder = Folder::new();
    let recipe = recipe(&folder);
    let place = |name: &str| folder.path(name).to_str().expect("a path of ASCII").to_string();
    let (whole, threads, killed) = (place("whole"), place("threads"), place("killed"));
    succeed(&words(&recipe, &whole, &["--threads", "1"]));
    succeed(&words(&recipe, &threads, &["--threads", "2"]));
    assert_eq!(weights(&whole), weights(&threads), "one thread and two");

    // The scale of the loss is read and raised beside the weights.
    let (one, two) = (place("one half"), place("two halves"));
    succeed(&words(&recipe, &one, &["--precision", "f16", "--threads", "1"]));
    succeed(&words(&recipe, &two, &["--precision", "f16", "--threads", "2"]));
    assert_eq!(weights(&one), weights(&two), "one thread and two in f16");

    // Killed after a time that walks over the whole run, at twenty places.
    let began = std::time::Instant::now();
    let scratch = place("scratch");
    succeed(&words(&recipe, &scratch, &["--threads", "1"]));
    let whole_run = began.elapsed();
    for kill in 0..20u32 {
        let mut child = mdlc(&words(&recipe, &killed, &["--threads", "1"])).spawn().expect("mdlc starts");
        // A hash of the number, so that the places have no rhythm.
        let share = f64::from(kill.wrapping_mul(2_654_435_761) >> 8) / f64::from(1u32 << 24);
        std::thread::sleep(Duration::from_secs_f64(whole_run.as_secs_f64() * (0.1 + 0.8 * share)));
        child.kill().expect("mdlc can be killed");
        child.wait().expect("mdlc has ended");
    }
    succeed(&words(&recipe, &killed, &["--threads", "2"]));
    assert_eq!(weights(&whole), weights(&killed), "killed twenty times");
    let strip = |path: &str| -> Vec<(u64, String)> {
        let lines = metrics(&Path::new(path).join("base/metrics.jsonl"));
        let steps = lines.iter().filter(|line| line.get("loss").is_some());
        steps.map(|line| (line["step"].as_u64().expect("a step"), line["loss"].to_string())).collect()
    };
    assert_eq!(strip(&whole), strip(&killed), "each step is in the metrics once");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_next_run_goes_on() {
    let folder = Folder::new();
    let recipe = recipe(&folder);
    let out = folder.path("out").to_str().expect("a path of ASCII").to_string();
    let whole = folder.path("whole").to_str().expect("a path of ASCII").to_string();
    succeed(&words(&recipe, &whole, &[]));
    // In f16 the scale of the loss is remembered too.
    let half = ["--precision", "f16"];
    let (halves, half_out) = (folder.path("halves"), folder.path("half"));
    let (halves, half_out) = (halves.to_str().expect("ASCII"), half_out.to_str().expect("ASCII"));
    succeed(&words(&recipe, halves, &half));
    let mut child = mdlc(&words(&recipe, half_out, &half)).spawn().expect("mdlc starts");
    let half_metrics = Path::new(half_out).join("base/metrics.jsonl");
    while !half_metrics.is_file() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(100));
    child.kill().expect("mdlc can be killed");
    child.wait().expect("mdlc has ended");
    succeed(&words(&recipe, half_out, &half));
    assert_eq!(weights(halves), weights(half_out), "f16, killed and resumed");

    let child = mdlc(&words(&recipe, &out, &["--threads", "1"])).spawn().expect("mdlc starts");
    let metrics_file = Path::new(&out).join("base/metrics.jsonl");
    while !metrics_file.is_file() {
        std::thread::sleep(Duration::from_millis(2));
    }
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let status = child.wait_with_output().expect("mdlc has ended").status;
    assert!(status.code().is_some(), "it ends by itself, {status}");
    succeed(&words(&recipe, &out, &[]));
    assert_eq!(weights(&whole), weights(&out));
}
