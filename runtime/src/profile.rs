//! Where the time of a training step goes: every launch timed, beside what this machine can do at best.
//!
//! In: a recipe's train stage. Out: a [`Profile`]: a row for each kernel and the launches of one step in order, from which
//! the command line draws a table and writes a trace. Steps run on real batches from fresh weights; nothing is saved.

use std::time::{Duration, Instant};

use mdl_compiler::cost::{self, Cost};
use mdl_compiler::stored::Kept;
use mdl_data::Order;
use mdl_lang::decode::POS;
use mdl_lang::spec::TrainSpec;
use serde::Serialize;
use serde_json::{Value, json};

use crate::device::{Executable, Peaks, Tensors};
use crate::error::RunError;
use crate::generate::plan_decoders;
use crate::kept::Keep;
use crate::run::Run;
use crate::stage::train::{initialize, orders};

/// Steps before the first that is measured: pages are taken and caches filled.
const WARM_UP: u64 = 2;

/// One launch: its kernel, when it began after the step's begin, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Launched {
    pub kernel: usize,
    pub began: Duration,
    pub took: Duration,
}

/// What one launch takes of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OnCard {
    pub blocks: u32,
    pub threads: u32,
    /// Of a thread; and its stack, which is what did not fit in registers.
    pub registers: u32,
    pub frame_bytes: u32,
    /// Of a block.
    pub shared_bytes: u64,
    /// Blocks that a multiprocessor works on at once.
    pub blocks_at_once: u32,
}

/// What one kernel does in a step: the medians of its launches.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub kernel: usize,
    pub name: String,
    /// Launches in a step.
    pub launches: u64,
    /// Seconds in a step, all launches together.
    pub seconds: f64,
    /// Operations and bytes of all launches together. Bytes count each buffer once, whatever stays in caches.
    pub flops: u64,
    pub bytes: u64,
    /// Its launches on a card, which may be several.
    pub on_card: Vec<OnCard>,
}

/// What a step did, and what the machine can do.
pub struct Profile {
    /// The kernel that took longest first.
    pub rows: Vec<Row>,
    /// Of the median step: seconds from its first launch to the end of its last.
    pub seconds: f64,
    /// Seconds of preparing the median step's batch, which its launches wait for.
    pub batch_seconds: f64,
    /// Of the median step, in order.
    pub launches: Vec<Launched>,
    pub threads: usize,
    /// The card, if steps ran on one.
    pub card: Option<String>,
    pub peaks: Peaks,
}

impl Row {
    pub fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.seconds.max(1e-9)
    }

    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }
}

impl Profile {
    /// The seconds that this machine needs at least for a row: what its arithmetic or its bytes take at the measured peaks.
    pub fn bound(&self, row: &Row) -> f64 {
        let arithmetic = row.flops as f64 / self.peaks.flops.max(1.0);
        arithmetic.max(row.bytes as f64 / self.peaks.bytes.max(1.0)).min(row.seconds)
    }

    /// The median step as a Chrome trace (Perfetto opens it): one event a launch, times in microseconds.
    pub fn trace(&self) -> Value {
        let name =
            |kernel: usize| self.rows.iter().find(|row| row.kernel == kernel).map_or("", |row| row.name.as_str());
        let events = self.launches.iter().map(|launch| {
            json!({
                "ph": "X", "pid": 1, "tid": 1, "cat": "kernel",
                "name": format!("k{} {}", launch.kernel, name(launch.kernel)),
                "ts": launch.began.as_secs_f64() * 1e6,
                "dur": launch.took.as_secs_f64() * 1e6,
            })
        });
        json!({ "displayTimeUnit": "ms", "traceEvents": events.collect::<Vec<_>>() })
    }
}

/// Trains `steps` steps from fresh weights and times every launch.
pub fn profile(run: &mut Run<'_>, name: &str, spec: &TrainSpec, steps: u64) -> Result<Profile, RunError> {
    let dataset = run.dataset_of(&spec.data)?;
    let Some(stage) = run.program.stage(name) else { mdl_graph::bug!("there is no stage `{name}`") };
    let plan = run.programs(spec, stage)?.step;
    let mut step = Executable::of_plan(plan, &run.cpu)?;
    let fields = &dataset.facts.data.fields;
    let mut batcher = dataset.batcher("train", spec.batch as usize, Order::Shuffled)?;
    step.lay_out(&mut batcher, fields);
    let seed = run.seed.unwrap_or(spec.seed);
    measure(run, name, spec, &mut step, steps, |step, n| {
        step.fill(&batcher, fields, n);
        step.set_scalar("seed", seed as i32);
        step.set_scalar("step", n as i32);
    })
}

/// Writes `tokens` tokens in the middle of a text with fresh weights, its matrices kept in such numbers, and times every launch.
pub fn profile_decoder(
    run: &mut Run<'_>,
    name: &str,
    spec: &TrainSpec,
    tokens: u64,
    kept: Kept,
) -> Result<Profile, RunError> {
    let Some(forward) = &spec.forward else {
        return Err(RunError::Usage(format!("the model of `{name}` gives no logits for `ids`: it writes no text")));
    };
    let plans = plan_decoders(forward, &orders(spec), Keep { kept: &spec.kept, rest: kept }, 0)
        .map_err(|error| RunError::failed(format!("deriving the decoder of `{name}`"), error.to_string()))?;
    let middle = plans.context() / 2;
    let mut token = Executable::of_plan(plans.one, &run.cpu)?;
    measure(run, name, spec, &mut token, tokens, |token, n| {
        if let Some(pos) = token.input::<i32>(POS) {
            pos[0] = (middle + n % middle.max(1)) as i32;
        }
    })
}

/// Runs a program some times, `before` each of which its inputs are written.
fn measure(
    run: &Run<'_>,
    name: &str,
    spec: &TrainSpec,
    program: &mut Executable,
    times: u64,
    mut before: impl FnMut(&mut Executable, u64),
) -> Result<Profile, RunError> {
    let mut tensors = Tensors::new();
    tensors.allocate(program.plan());
    initialize(spec, run.seed.unwrap_or(spec.seed), &orders(spec), &mut tensors, run)?;
    let mut seen: Vec<(Duration, Duration, Vec<Launched>)> = Vec::new();
    for n in 0..WARM_UP + times.max(1) {
        if run.is_stopped() {
            return Err(RunError::Interrupted { saved: None });
        }
        let began = Instant::now();
        before(program, n);
        let inputs = began.elapsed();
        let mut launches = Vec::with_capacity(program.plan().report.launches as usize);
        let began = Instant::now();
        program.run_timed(&mut tensors, &run.cpu, &mut launches)?;
        // A card has a clock of its own.
        let took = match (&run.cpu.card, launches.last()) {
            (Some(_), Some(last)) => last.began + last.took,
            _ => began.elapsed(),
        };
        if n >= WARM_UP {
            seen.push((took, inputs, launches));
        }
    }
    seen.sort_by_key(|(took, ..)| *took);
    let (took, batch, mut launches) = seen[seen.len() / 2].clone();
    // A launch that was disturbed in this step was not in others: each is told by its own median.
    for (at, launch) in launches.iter_mut().enumerate() {
        let same = seen.iter().filter_map(|(_, _, other)| other.get(at)).filter(|other| other.kernel == launch.kernel);
        let mut times: Vec<Duration> = same.map(|other| other.took).collect();
        times.sort();
        launch.took = times[times.len() / 2];
    }
    let costs: Vec<Cost> = program.plan().kernels.iter().map(cost::kernel).collect();
    let mut rows: Vec<Row> = Vec::new();
    for launch in &launches {
        let at = rows.iter().position(|row| row.kernel == launch.kernel).unwrap_or_else(|| {
            let name = program.plan().kernels[launch.kernel].name.clone();
            let (kernel, on_card) = (launch.kernel, Vec::new());
            rows.push(Row { kernel, name, launches: 0, seconds: 0.0, flops: 0, bytes: 0, on_card });
            rows.len() - 1
        });
        let (row, cost) = (&mut rows[at], costs[launch.kernel]);
        row.launches += 1;
        row.seconds += launch.took.as_secs_f64();
        row.flops += cost.flops;
        row.bytes += cost.bytes;
    }
    for row in &mut rows {
        row.on_card = program.on_card(row.kernel)?;
    }
    rows.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    Ok(Profile {
        rows,
        seconds: took.as_secs_f64(),
        batch_seconds: batch.as_secs_f64(),
        launches,
        threads: run.cpu.threads(),
        card: run.cpu.card.as_ref().map(|card| card.name.clone()),
        peaks: Peaks::of(&run.cpu)
            .map_err(|error| RunError::failed(format!("measuring the peak for `{name}`"), error.to_string()))?,
    })
}
