//! What a run tells whoever watches it: the command line's progress, or a test.

use std::path::PathBuf;
use std::time::Duration;

/// Something that happened, in order.
#[derive(Clone, Debug)]
pub enum Event {
    /// A stage begins.
    Started {
        stage: String,
        kind: &'static str,
    },
    /// A stage's artifact is there already, made of the same things.
    Unchanged {
        stage: String,
    },
    /// An artifact made of other things was moved aside.
    Replaced {
        stage: String,
        to: PathBuf,
    },
    /// What the data is.
    Data {
        stage: String,
        summary: String,
    },
    /// The step is compiled and its memory taken.
    Compiled {
        stage: String,
        parameters: u64,
        peak_bytes: u64,
        took: Duration,
    },
    /// Training goes on where it was interrupted: `step` steps are done.
    Resumed {
        stage: String,
        step: u64,
    },
    /// A step of training is done.
    Stepped(Step),
    /// A measurement on a part of the data.
    Evaluated {
        stage: String,
        step: u64,
        part: String,
        values: Vec<(String, f64)>,
    },
    /// A checkpoint is on the disk.
    Saved {
        stage: String,
        step: u64,
        path: PathBuf,
    },
    /// A text that the model wrote.
    Sampled {
        stage: String,
        step: u64,
        text: String,
    },
    /// A stage ended before its last step, and why.
    Ended {
        stage: String,
        step: u64,
        why: String,
    },
    Finished {
        stage: String,
        took: Duration,
    },
    Warned(String),
}

/// The numbers of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub stage: String,
    /// Steps done, this one included.
    pub step: u64,
    pub of: u64,
    pub loss: f64,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    /// Tokens, or rows, of this step.
    pub tokens: u64,
    pub took: Duration,
    pub flops: u64,
    pub peak_bytes: u64,
    pub metrics: Vec<(String, f64)>,
}

pub trait Observer {
    fn observe(&mut self, event: Event);
}

impl<F: FnMut(Event)> Observer for F {
    fn observe(&mut self, event: Event) {
        self(event);
    }
}
