//! What a plan costs: bytes by category, the peak and its lower bound, arithmetic and memory traffic.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    Weights,
    Gradients,
    /// What layers and optimizers remember between steps.
    State,
    /// Values of the forward pass that the backward pass reads.
    Activations,
    /// What comes in with each step.
    Batch,
    Workspace,
}

impl Category {
    pub const ALL: [Category; 6] = [
        Category::Weights,
        Category::Gradients,
        Category::State,
        Category::Activations,
        Category::Batch,
        Category::Workspace,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Gradients => "gradients",
            Category::State => "state",
            Category::Activations => "activations",
            Category::Batch => "batch",
            Category::Workspace => "workspace",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Costs of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Bytes at the moment of the peak, in the order of [`Category::ALL`]. Their sum is `peak_bytes`.
    pub bytes: Vec<(Category, u64)>,
    /// Arena and states together; with [`Report::add_workspace`] that, too.
    pub peak_bytes: u64,
    /// No placement of these steps in this order can need less: states, and the most bytes live at once.
    pub bound_bytes: u64,
    /// The elements of all weights.
    pub parameters: u64,
    /// Multiplications and additions count one each.
    pub flops: u64,
    /// Bytes that launches read and write, loops counted as often as they run.
    pub traffic_bytes: u64,
    /// Launches in a step, loops counted as often as they run.
    pub launches: u64,
    pub groups: Vec<GroupReport>,
}

/// One launch of the plan's text, and what fusing saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    pub name: String,
    /// The axes of its iteration space.
    pub domain: String,
    /// The operations in it.
    pub members: usize,
    /// How often it runs in a step.
    pub runs: u64,
    /// Bytes moved if every member were its own kernel, and as it is; for one run.
    pub bytes_before: u64,
    pub bytes_after: u64,
    pub flops: u64,
}

impl Report {
    /// Counts memory that launches need beside the plan's buffers, which depends on the machine.
    pub fn add_workspace(&mut self, more_bytes: u64) {
        for (_, bytes) in self.bytes.iter_mut().filter(|(category, _)| *category == Category::Workspace) {
            *bytes += more_bytes;
        }
        self.peak_bytes += more_bytes;
        self.bound_bytes += more_bytes;
    }

    /// The groups as a table, one line each: how often it runs, its iteration space, what it does, and the bytes that one run
    /// moves, before fusion and after.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for group in &self.groups {
            text.push_str(&format!(
                "{:>3} x {} [{}] of {}, {} -> {} bytes\n",
                group.runs, group.name, group.domain, group.members, group.bytes_before, group.bytes_after
            ));
        }
        text
    }
}
