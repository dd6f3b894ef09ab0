//! Whether a stage's step means the same in whatever way it is computed (`mdlc verify`): a batch in pieces, forward values computed
//! again instead of kept, one thread or several, documents packed into rows or one a row.
//!
//! In: the step of a stage that leaves each gradient where the weight was, and the first batch of its data. Out: how far the loss and
//! the gradients of each way are from those of the plain one, in `f32`.

use mdl_compiler::budget::{StepError, compile};
use mdl_compiler::pass::Options;
use mdl_compiler::plan::PlanOptions;
use mdl_data::{FieldSlice, Order};
use mdl_graph::{DType, Graph, Name, Op, bug};
use mdl_lang::spec::{Field, TrainSpec};

use crate::apply::write;
use crate::device::{Cpu, Executable, Tensors};
use crate::error::RunError;
use crate::kept::Keep;
use crate::npz::{Array, Kind};
use crate::run::Run;
use crate::stage::train::{initialize, load_reads, orders};

/// How far two ways may be apart, relative: sums of floats in another order.
pub const CLOSE: f64 = 1e-5;
/// A weight's gradients are compared with the largest of them, or with this share of the largest of all where that is more: below, a
/// gradient is what rounding left of zero.
const LEAST: f64 = 1e-2;

/// One way to compute the step.
#[derive(Clone, Debug)]
pub struct Way {
    pub name: String,
    /// Why there is no such way, where there is none.
    pub apart: Result<Apart, String>,
}

/// How far a way is from the plain one.
#[derive(Clone, Debug, PartialEq)]
pub struct Apart {
    pub loss: f64,
    /// The largest of all weights, and whose it is.
    pub gradient: f64,
    pub weight: Name,
}

impl Way {
    /// A way that there is not is not wrong.
    pub fn is_close(&self) -> bool {
        // What is no number is not close.
        self.apart.as_ref().map_or(true, |apart| apart.loss <= CLOSE && apart.gradient <= CLOSE)
    }
}

/// The rows of a batch, row-major: `batch`, then the axes of each field.
pub struct Batch {
    fields: Vec<Field>,
    arrays: Vec<Array>,
}

/// A stage whose plain step was made.
pub struct Verifier<'s> {
    spec: &'s TrainSpec,
    batch: Batch,
    plain: Outcome,
}

/// What a step gives.
struct Outcome {
    pub loss: f64,
    gradients: Vec<(Name, Vec<f32>)>,
}

impl<'s> Verifier<'s> {
    /// Makes the plain step on the first batch of the stage.
    pub fn new(spec: &'s TrainSpec, run: &mut Run<'_>) -> Result<Verifier<'s>, RunError> {
        let batch = Batch::first(spec, run)?;
        let step = Step { spec, batch: &batch, options: Options::default(), cpu: &run.cpu };
        let plain = step.outcome(run)?.map_err(|why| RunError::failed("compiling the step", why))?;
        Ok(Verifier { spec, batch, plain })
    }

    pub fn loss(&self) -> f64 {
        self.plain.loss
    }

    /// The batch in as many pieces as the stage says, and in as few as it can be cut into.
    pub fn in_pieces(&self, run: &Run<'_>) -> Result<Vec<Way>, RunError> {
        let fewest = (2..=self.spec.batch).find(|pieces| self.spec.batch.is_multiple_of(*pieces));
        let Some(fewest) = fewest else {
            let apart = Err("a batch of one row is not cut".to_string());
            return Ok(vec![Way { name: "in pieces".to_string(), apart }]);
        };
        let mut all = vec![fewest, self.spec.micro];
        all.retain(|pieces| *pieces > 1);
        all.dedup();
        let ways = all.into_iter().map(|micro| {
            let options = Options { micro, ..Options::default() };
            self.way(format!("in {micro} pieces"), self.step(options, &run.cpu), run)
        });
        ways.collect()
    }

    /// With everything computed again that can be.
    pub fn recomputing(&self, run: &Run<'_>) -> Result<Way, RunError> {
        let options = Options { saved_bytes: Some(0), ..Options::default() };
        self.way("recomputing".to_string(), self.step(options, &run.cpu), run)
    }

    /// On one thread, if the plain step was on several, or else on two.
    pub fn on_other_threads(&self, run: &Run<'_>) -> Result<Way, RunError> {
        let n = if run.cpu.threads() > 1 { 1 } else { 2 };
        let name = format!("on {n} thread{}", if n > 1 { "s" } else { "" });
        if run.cpu.card.is_some() {
            return Ok(Way { name, apart: Err("the step runs on a card".to_string()) });
        }
        let cpu = Cpu::new(Some(n))?;
        self.way(name, self.step(Options::default(), &cpu), run)
    }

    /// The same documents, one a row; `None` where rows are not packed.
    pub fn unpacked(&self) -> Option<Batch> {
        self.batch.unpacked()
    }

    /// Of documents one a row: `spec` is the stage with as many rows.
    pub fn one_a_row(&self, spec: &TrainSpec, batch: &Batch, run: &Run<'_>) -> Result<Way, RunError> {
        let name = format!("one document a row, {} rows", batch.rows());
        if has_chance(&spec.step) {
            let why = "the step draws chance, such as dropout, and rows in other places draw others";
            return Ok(Way { name, apart: Err(why.to_string()) });
        }
        self.way(name, Step { spec, batch, options: Options::default(), cpu: &run.cpu }, run)
    }

    fn step<'a>(&'a self, options: Options, cpu: &'a Cpu) -> Step<'a> {
        Step { spec: self.spec, batch: &self.batch, options, cpu }
    }

    fn way(&self, name: String, step: Step<'_>, run: &Run<'_>) -> Result<Way, RunError> {
        Ok(Way { name, apart: step.outcome(run)?.map(|outcome| self.plain.apart(&outcome)) })
    }
}

struct Step<'a> {
    spec: &'a TrainSpec,
    batch: &'a Batch,
    options: Options,
    cpu: &'a Cpu,
}

impl Step<'_> {
    /// Makes the step from the stage's first weights; `Err` inside says why it cannot be computed this way.
    fn outcome(&self, run: &Run<'_>) -> Result<Result<Outcome, String>, RunError> {
        let spec = self.spec;
        let whole = orders(spec);
        let (graph, kept, _) = Keep::of_stage(&spec.kept).apply(&spec.step, &whole);
        let planning = PlanOptions { orders: kept, ..PlanOptions::default() };
        let plan = match compile(&graph, &self.options, &planning, None) {
            Ok(plan) => plan,
            Err(StepError::Pass(error)) => return Ok(Err(error.to_string())),
            Err(error) => return Err(RunError::failed("compiling the step", error.to_string())),
        };
        let mut step = Executable::of_plan(plan, self.cpu)?;
        let mut tensors = Tensors::new();
        tensors.allocate(step.plan());
        let seed = run.seed.unwrap_or(spec.seed);
        load_reads(&run.base, &run.out, &spec.reads, &mut tensors)?;
        initialize(spec, seed, &whole, &mut tensors, run)?;
        self.batch.write(&mut step)?;
        step.set_scalar("seed", seed as i32);
        step.set_scalar("step", 0);
        step.run(&mut tensors, self.cpu)?;
        tensors.fetch()?;
        let trained = spec.weights.iter().filter(|weight| !weight.frozen);
        let gradients = trained.filter_map(|weight| {
            let bytes = tensors.get(weight.path.as_str())?.data.bytes();
            let values = bytes.chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            Some((weight.path.clone(), values.collect()))
        });
        Ok(Ok(Outcome { loss: step.scalar("loss").unwrap_or(f64::NAN), gradients: gradients.collect() }))
    }
}

impl Outcome {
    fn apart(&self, other: &Outcome) -> Apart {
        let largest = |values: &[f32]| values.iter().fold(0.0, |most: f64, value| most.max(f64::from(value.abs())));
        let least = self.gradients.iter().fold(0.0, |most: f64, (_, values)| most.max(largest(values))) * LEAST;
        let mut apart = Apart { loss: relative(other.loss - self.loss, self.loss), gradient: 0.0, weight: "".into() };
        for ((name, plain), (_, values)) in self.gradients.iter().zip(&other.gradients) {
            let scale = largest(plain).max(least);
            for (one, two) in plain.iter().zip(values) {
                let gradient = relative(f64::from(one - two), scale);
                // What is no number is further than any.
                if gradient.is_nan() || gradient > apart.gradient {
                    (apart.gradient, apart.weight) = (gradient, name.clone());
                }
            }
        }
        apart
    }
}

fn relative(difference: f64, to: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference.abs() / to.abs() }
}

fn has_chance(graph: &Graph) -> bool {
    let own = |node: &mdl_graph::Node| matches!(node.op, Op::Uniform { .. }) || node.op.body().is_some_and(has_chance);
    graph.nodes().iter().any(own)
}

impl Batch {
    /// The first batch that the stage trains on.
    fn first(spec: &TrainSpec, run: &mut Run<'_>) -> Result<Batch, RunError> {
        let dataset = run.dataset_of(&spec.data)?;
        let fields = dataset.facts.data.fields.clone();
        let batcher = dataset.batcher("train", spec.batch as usize, Order::Shuffled)?;
        let mut values: Vec<Values> = fields.iter().map(|field| Values::blank(field, spec.batch)).collect();
        batcher.fill(0, &mut values.iter_mut().map(Values::slice).collect::<Vec<_>>());
        let arrays = fields.iter().zip(values).map(|(field, values)| {
            let shape = std::iter::once(spec.batch).chain(field.axes.iter().map(|axis| axis.size)).collect();
            let (kind, bytes) = values.into_bytes();
            Array { name: field.name.clone(), kind, shape, bytes }
        });
        Ok(Batch { arrays: arrays.collect(), fields })
    }

    pub fn rows(&self) -> u64 {
        self.arrays.first().and_then(|array| array.shape.first()).copied().unwrap_or(0)
    }

    fn write(&self, step: &mut Executable) -> Result<(), RunError> {
        for (field, array) in self.fields.iter().zip(&self.arrays) {
            let Some(port) = step.plan().input(&field.name).cloned() else { continue };
            let axes: Vec<Name> =
                std::iter::once("batch".into()).chain(field.axes.iter().map(|axis| axis.name.clone())).collect();
            if let Some(to) = step.input_bytes(&field.name) {
                write(array, &axes, &port, to)?;
            }
        }
        Ok(())
    }

    /// Each document in a row of its own, from the first position on; the rest of the row is as behind the last of a packed one.
    fn unpacked(&self) -> Option<Batch> {
        let at = self.fields.iter().position(|field| field.name == "document")?;
        let (documents, length) = (&self.arrays[at], self.fields[at].axes.first()?.size as usize);
        if self.fields.iter().any(|field| field.axes != self.fields[at].axes) {
            return None;
        }
        // Positions of the batch that make a row.
        let mut rows: Vec<Vec<usize>> = Vec::new();
        for row in 0..documents.count() / length {
            let places = row * length..(row + 1) * length;
            let mut last = -1;
            for place in places.filter(|place| documents.int(*place) >= 0) {
                let document = documents.int(place);
                if document != last {
                    rows.push(Vec::new());
                    last = document;
                }
                rows.last_mut()?.push(place);
            }
        }
        let arrays = self.fields.iter().zip(&self.arrays).map(|(field, from)| {
            let size = from.kind.bytes();
            let behind = if matches!(field.name.as_str(), "document" | "turn") { 0xff } else { 0 };
            let mut bytes = vec![behind; rows.len() * length * size];
            for (row, places) in rows.iter().enumerate() {
                for (position, place) in places.iter().enumerate() {
                    let to = &mut bytes[(row * length + position) * size..][..size];
                    match field.name.as_str() {
                        "document" => to.fill(0),
                        _ => to.copy_from_slice(&from.bytes[place * size..][..size]),
                    }
                }
            }
            let shape = vec![rows.len() as u64, length as u64];
            Array { name: from.name.clone(), kind: from.kind, shape, bytes }
        });
        Some(Batch { fields: self.fields.clone(), arrays: arrays.collect() })
    }
}

/// The values of a field while a batch is filled.
enum Values {
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<u8>),
}

impl Values {
    fn blank(field: &Field, rows: u64) -> Values {
        let count = field.axes.iter().fold(rows, |count, axis| count * axis.size) as usize;
        match field.dtype {
            DType::I32 => Values::I32(vec![0; count]),
            DType::F32 => Values::F32(vec![0.0; count]),
            DType::Bool => Values::Bool(vec![0; count]),
            other => bug!("a batch field of {other}"),
        }
    }

    fn slice(&mut self) -> FieldSlice<'_> {
        match self {
            Values::I32(values) => FieldSlice::I32(values),
            Values::F32(values) => FieldSlice::F32(values),
            Values::Bool(values) => FieldSlice::Bool(values),
        }
    }

    fn into_bytes(self) -> (Kind, Vec<u8>) {
        match self {
            Values::I32(values) => {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (Kind::Int { bytes: 4, signed: true }, bytes)
            }
            Values::F32(values) => {
                (Kind::Float { bytes: 4 }, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
            Values::Bool(values) => (Kind::Bool, values),
        }
    }
}
