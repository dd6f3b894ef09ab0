//! What a training stage writes down: `metrics.jsonl`, a line per step and per evaluation, and TensorBoard events.
//!
//! A line is written by one call and taken back if that fails half-way, so the file never keeps half a line of ours; what
//! a crash has left of one, [`Log::resume`] cuts off, together with the lines of steps that the run has gone back behind.
//! So the lines of a run that was interrupted are those of one that was not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::RunError;
use crate::event::Step;
use crate::tfevents::EventFile;

const METRICS: &str = "metrics.jsonl";

/// What a stage's evaluations have said so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluations {
    /// The step of the last one; 0 before the first.
    pub last: u64,
    pub best: f64,
    /// How many have come since the best.
    pub since_best: u64,
}

impl Default for Evaluations {
    fn default() -> Evaluations {
        Evaluations { last: 0, best: f64::INFINITY, since_best: 0 }
    }
}

impl Evaluations {
    pub fn add(&mut self, step: u64, loss: f64) {
        self.last = step;
        if loss < self.best {
            (self.best, self.since_best) = (loss, 0);
        } else {
            self.since_best += 1;
        }
    }
}

/// The open files of one stage.
pub struct Log {
    folder: PathBuf,
    file: File,
    /// Bytes of whole lines.
    n_bytes: u64,
    events: EventFile,
}

impl Log {
    /// Opens the files of a stage's folder, which are made where they are not there. Call [`Log::resume`] next.
    pub fn open(folder: &Path) -> Result<Log, RunError> {
        let path = folder.join(METRICS);
        let open = || -> io::Result<(File, u64, EventFile)> {
            fs::create_dir_all(folder)?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let n_bytes = file.metadata()?.len();
            Ok((file, n_bytes, EventFile::create(folder)?))
        };
        let (file, n_bytes, events) = open().map_err(|error| failed(&path, &error))?;
        Ok(Log { folder: folder.to_path_buf(), file, n_bytes, events })
    }

    /// Keeps the lines of the first `step` steps, and tells what their evaluations were.
    pub fn resume(&mut self, step: u64) -> Result<Evaluations, RunError> {
        let path = self.folder.join(METRICS);
        let text = fs::read(&path).map_err(|error| failed(&path, &error))?;
        let (mut seen, mut kept) = (Evaluations::default(), 0);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let Some(row) = whole_line(line).filter(|row| row.get("step").and_then(Value::as_u64) <= Some(step)) else {
                break;
            };
            if let Some(loss) = row.get("eval_loss") {
                // A loss that is no number is written as null, and is no improvement.
                seen.add(row.get("step").and_then(Value::as_u64).unwrap_or(0), loss.as_f64().unwrap_or(f64::NAN));
            }
            kept += line.len();
        }
        self.n_bytes = kept as u64;
        self.file.set_len(self.n_bytes).map_err(|error| failed(&path, &error))?;
        let cut = kept < text.len() || step > 0;
        if cut {
            self.events.forget_after(step).map_err(|error| failed(self.events.path(), &error))?;
        }
        Ok(seen)
    }

    /// Writes down a step.
    pub fn step(&mut self, step: &Step) -> Result<(), RunError> {
        let mut row = Map::new();
        row.insert("step".to_string(), json!(step.step));
        row.insert("loss".to_string(), json!(step.loss));
        // Without a schedule or a gradient there is no number, but the columns are the same in every file.
        row.insert("lr".to_string(), json!(step.lr));
        row.insert("grad_norm".to_string(), json!(step.grad_norm));
        row.insert("tokens".to_string(), json!(step.tokens));
        let step_s = step.took.as_secs_f64();
        row.insert("step_ms".to_string(), json!((step_s * 1e6).round() / 1e3));
        row.insert("peak_bytes".to_string(), json!(step.peak_bytes));
        for (name, value) in &step.metrics {
            row.entry(name.as_str()).or_insert_with(|| json!(value));
        }
        self.line(&row)?;
        let mut values = vec![("train/loss".to_string(), step.loss)];
        values.extend(step.lr.map(|lr| ("train/lr".to_string(), lr)));
        values.extend(step.grad_norm.map(|norm| ("train/grad_norm".to_string(), norm)));
        if step_s > 0.0 {
            values.push(("train/tokens_per_s".to_string(), step.tokens as f64 / step_s));
        }
        values.extend(step.metrics.iter().map(|(name, value)| (format!("train/{name}"), *value)));
        self.event(step.step, &values)
    }

    /// Writes down an evaluation after `step` steps: `eval_loss`, and `eval_…` for what else was measured.
    pub fn evaluation(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), RunError> {
        let mut row = Map::new();
        row.insert("step".to_string(), json!(step));
        row.extend(values.iter().map(|(name, value)| (format!("eval_{name}"), json!(value))));
        self.line(&row)?;
        let values: Vec<(String, f64)> = values.iter().map(|(name, value)| (format!("eval/{name}"), *value)).collect();
        self.event(step, &values)
    }

    /// Makes what was written durable: a checkpoint must not know of steps that the metrics have lost.
    pub fn flush(&mut self) -> Result<(), RunError> {
        self.file.sync_data().map_err(|error| failed(&self.folder.join(METRICS), &error))?;
        self.events.flush().map_err(|error| failed(self.events.path(), &error))
    }

    /// The end of the stage.
    pub fn close(&mut self) -> Result<(), RunError> {
        self.flush()
    }

    fn line(&mut self, row: &Map<String, Value>) -> Result<(), RunError> {
        let mut text = serde_json::to_string(row)
            .unwrap_or_else(|error| mdl_graph::bug!("a line of metrics is plain data: {error}"));
        text.push('\n');
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // The error at hand is the one to tell; half a line that stays is cut off on resuming.
            let _ = self.file.set_len(self.n_bytes);
            return Err(failed(&self.folder.join(METRICS), &error));
        }
        self.n_bytes += text.len() as u64;
        Ok(())
    }

    fn event(&mut self, step: u64, values: &[(String, f64)]) -> Result<(), RunError> {
        self.events.scalars(step, values).map_err(|error| failed(self.events.path(), &error))
    }
}

/// The object of a line that is whole.
fn whole_line(line: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

fn failed(path: &Path, error: &io::Error) -> RunError {
    let why = match error.kind() {
        io::ErrorKind::StorageFull => {
            "the disk is full; make room and run again to go on from the last checkpoint".into()
        }
        _ => error.to_string(),
    };
    RunError::failed(format!("writing {}", path.display()), why)
}

#[cfg(test)]
mod tests;
