//! The lines of an interrupted run are those of an unbroken one.

use super::*;
use std::time::Duration;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("mdl-metrics-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Scratch(path)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.0.join(METRICS)).expect("metrics")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn step(step: u64) -> Step {
    Step {
        stage: "base".to_string(),
        step,
        of: 10,
        loss: 1.0 / step as f64,
        lr: Some(0.001),
        grad_norm: None,
        tokens: 768,
        took: Duration::from_micros(12_345),
        flops: 0,
        peak_bytes: 4096,
        metrics: vec![("balance".to_string(), 0.5)],
    }
}

/// Steps `from..=to`, with an evaluation after each second one, whose losses go down until step 4.
fn train(log: &mut Log, from: u64, to: u64) {
    for n in from..=to {
        log.step(&step(n)).expect("written");
        if n % 2 == 0 {
            let loss = if n <= 4 { 3.0 - n as f64 / 10.0 } else { 5.0 };
            log.evaluation(n, &[("loss".to_string(), loss), ("accuracy".to_string(), 0.5)]).expect("written");
        }
    }
}

#[test]
fn lines_have_the_columns_that_scripts_read() {
    let scratch = Scratch::new("lines");
    let mut log = Log::open(&scratch.0).expect("opened");
    assert_eq!(log.resume(0).expect("nothing to resume"), Evaluations::default());
    train(&mut log, 1, 2);
    log.step(&Step { loss: f64::NAN, metrics: Vec::new(), ..step(3) }).expect("written");
    log.close().expect("closed");
    let want = "\
{\"step\":1,\"loss\":1.0,\"lr\":0.001,\"grad_norm\":null,\"tokens\":768,\"step_ms\":12.345,\"peak_bytes\":4096,\"balance\":0.5}
{\"step\":2,\"loss\":0.5,\"lr\":0.001,\"grad_norm\":null,\"tokens\":768,\"step_ms\":12.345,\"peak_bytes\":4096,\"balance\":0.5}
{\"step\":2,\"eval_loss\":2.8,\"eval_accuracy\":0.5}
{\"step\":3,\"loss\":null,\"lr\":0.001,\"grad_norm\":null,\"tokens\":768,\"step_ms\":12.345,\"peak_bytes\":4096}
";
    assert_eq!(scratch.text(), want);
}

#[test]
fn resuming_gives_the_lines_of_an_unbroken_run() {
    let unbroken = Scratch::new("unbroken");
    train(&mut Log::open(&unbroken.0).expect("opened"), 1, 10);
    let whole = unbroken.text();
    for (at, best, since) in
        [(0, f64::INFINITY, 0), (1, f64::INFINITY, 0), (2, 2.8, 0), (4, 2.6, 0), (5, 2.6, 0), (9, 2.6, 2)]
    {
        // Half a line, a line without its end, a line of another program.
        for tail in ["", "{\"step\":99,\"lo", "{\"step\":99,\"loss\":1.0}", "?\n"] {
            let scratch = Scratch::new(&format!("resumed-{at}-{}", tail.len()));
            train(&mut Log::open(&scratch.0).expect("opened"), 1, 9);
            let path = scratch.0.join(METRICS);
            fs::write(&path, scratch.text() + tail).expect("a broken tail");
            let mut log = Log::open(&scratch.0).expect("opened");
            let seen = log.resume(at).expect("resumed");
            assert_eq!((seen.best, seen.since_best), (best, since), "at {at}, {tail:?}");
            train(&mut log, at + 1, 10);
            assert_eq!(scratch.text(), whole, "at {at}, {tail:?}");
        }
    }
}

#[test]
fn what_cannot_be_written_is_told() {
    let scratch = Scratch::new("blocked");
    fs::write(&scratch.0, "a file where the folder should be").expect("written");
    let Err(error) = Log::open(&scratch.0) else { panic!("no folder, no log") };
    assert!(error.to_string().contains(METRICS), "{error}");
    let _ = fs::remove_file(&scratch.0);
}
