//! Train stages: the loop around the compiled step.
//!
//! A step is a function of (weights, states, batch, seed, step), a batch one of (seed, step): so a run that is interrupted anywhere
//! and goes on from its last checkpoint ends in the same bits as one that was not.

mod nan;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mdl_data::{Batcher, Dataset, Filled, Order};
use mdl_graph::{Graph, InputId, InputKind, Name, Output, Role};
use mdl_lang::spec::{Origin, Read, Sample, TrainSpec};

use crate::checkpoint::{self, Checkpoint, TensorView};
use crate::device::{Executable, Tensor, Tensors};
use crate::error::RunError;
use crate::event::{Event, Step};
use crate::generate::{Choice, Generator};
use crate::kept::{Keep, load_kept};
use crate::metrics::{Evaluations, Log};
use crate::programs::Programs;
use crate::run::Run;
use crate::stage::eval::Evaluation;
use crate::weights::Files;

/// The order of axes of every weight and state, as files have it: copies first, then as declared.
pub type Orders = BTreeMap<Name, Vec<Name>>;

pub fn orders(spec: &TrainSpec) -> Orders {
    let weights = spec.weights.iter().map(|weight| {
        let axes = weight.stacked.iter().chain(&weight.axes).map(|axis| axis.name.clone());
        (weight.path.clone(), axes.collect())
    });
    let states = spec.states.iter().map(|state| {
        let axes = state.axes.iter().map(|axis| axis.name.clone());
        (state.name.clone(), axes.collect())
    });
    let reads = orders_of(&spec.reads);
    weights.chain(states).chain(reads).collect()
}

/// The same of what is read of other stages.
pub fn orders_of(reads: &[Read]) -> impl Iterator<Item = (Name, Vec<Name>)> + '_ {
    reads.iter().map(|read| (read.input.clone(), read.axes.iter().map(|axis| axis.name.clone()).collect()))
}

/// Fills the tensors that are read, as far as they are in memory. `base` is the recipe's folder, `out` where stages keep what they
/// have made.
pub fn load_reads(base: &Path, out: &Path, reads: &[Read], tensors: &mut Tensors) -> Result<(), RunError> {
    load_origins(base, out, reads.iter().map(|read| (&read.input, &read.origin)), tensors)
}

/// Fills tensors from where they come, as far as they are in memory: checkpoints of other stages, files of weights.
pub fn load_origins<'o>(
    base: &Path,
    out: &Path,
    origins: impl Iterator<Item = (&'o Name, &'o Origin)>,
    tensors: &mut Tensors,
) -> Result<(), RunError> {
    let mut opened = Opened::new(base, out);
    for (name, origin) in origins {
        if let Some(to) = tensors.get_mut(name.as_str()) {
            opened.fill(origin, to)?;
        }
    }
    Ok(())
}

/// What tensors come from, checkpoints of other stages and files of weights: each is opened once.
pub(crate) struct Opened<'p> {
    out: &'p Path,
    files: Files,
    stages: BTreeMap<String, Checkpoint>,
}

impl<'p> Opened<'p> {
    pub(crate) fn new(base: &Path, out: &'p Path) -> Opened<'p> {
        Opened { out, files: Files::new(base), stages: BTreeMap::new() }
    }

    pub(crate) fn fill(&mut self, origin: &Origin, to: &mut Tensor) -> Result<(), RunError> {
        let Origin::Stage { stage, tensor } = origin else { return self.files.fill(origin, to) };
        if !self.stages.contains_key(stage) {
            self.stages.insert(stage.clone(), checkpoint::of_stage(self.out, stage, checkpoint::latest)?);
        }
        read_into(&self.stages[stage], tensor.as_str(), to)
    }
}

/// The weights and states of a stage whose first values no initializer makes.
fn origins(spec: &TrainSpec) -> impl Iterator<Item = (&Name, &Origin)> {
    let weights = spec.weights.iter().map(|weight| (&weight.path, &weight.origin));
    let states = spec.states.iter().map(|state| (&state.name, &state.origin));
    weights.chain(states).filter_map(|(name, origin)| Some((name, origin.as_ref()?)))
}

/// Fills what is in memory of other stages, whole or as parts.
fn load_others(spec: &TrainSpec, orders: &Orders, tensors: &mut Tensors, run: &Run<'_>) -> Result<(), RunError> {
    load_reads(&run.base, &run.out, &spec.reads, tensors)?;
    let (_, orders, convert) = Keep::of_stage(&spec.kept).apply(&spec.step, orders);
    load_kept((&run.base, &run.out), &spec.reads, (&convert, &orders), tensors, &run.cpu)
}

/// Trains, from the last checkpoint if there is one of the same recipe. `began` is when its programs were begun to be planned.
pub fn run(
    run: &mut Run<'_>,
    name: &str,
    spec: &TrainSpec,
    hash: &str,
    (programs, began): (Programs, Instant),
) -> Result<(), RunError> {
    let dataset = run.dataset_of(&spec.data)?;
    let mut training = Training::new(run, name, spec, hash, dataset, (programs, began))?;
    training.start(run)?;
    training.go_on(run)
}

struct Training<'a> {
    name: String,
    spec: &'a TrainSpec,
    hash: &'a str,
    seed: u64,
    dataset: Arc<Dataset>,
    orders: Orders,
    step: Executable,
    tensors: Tensors,
    batcher: Batcher,
    evaluation: Option<Evaluation>,
    generator: Option<(Generator, &'a Sample)>,
    metrics: Vec<String>,
    /// Of all that the stage's memory is planned for: steps, evaluations, samples.
    peak_bytes: u64,
    log: Log,
    /// Steps done.
    done: u64,
    /// The step of the last checkpoint.
    saved: Option<u64>,
    evaluations: Evaluations,
}

impl<'a> Training<'a> {
    fn new(
        run: &mut Run<'_>,
        name: &str,
        spec: &'a TrainSpec,
        hash: &'a str,
        dataset: Arc<Dataset>,
        (programs, began): (Programs, Instant),
    ) -> Result<Training<'a>, RunError> {
        let orders = orders(spec);
        let mut step = Executable::of_plan(programs.step, &run.cpu)?;
        let mut batcher = dataset.batcher("train", spec.batch as usize, Order::Shuffled)?;
        step.lay_out(&mut batcher, &dataset.facts.data.fields);
        let mut evaluation = match (&spec.evaluate, programs.evaluation) {
            (Some(evaluate), Some(plan)) => {
                Some(Evaluation::new(run, plan, Arc::clone(&dataset), &evaluate.part, spec.batch)?)
            }
            _ => None,
        };
        let generator = match (&spec.sample, programs.decoders) {
            (Some(sample), Some(plans)) => Some((Generator::of_plans(plans, &run.cpu)?, sample)),
            _ => None,
        };
        let mut tensors = Tensors::new();
        tensors.allocate(step.plan());
        if let Some(evaluation) = &mut evaluation {
            step.share(evaluation.executable())?;
            tensors.allocate(evaluation.executable().plan());
        }
        if let Some((generator, _)) = &generator {
            generator.allocate(&mut tensors);
        }
        let peak_bytes = programs.memory.peak_bytes();
        let known = ["loss", "lr", "grad_norm"];
        let outputs = step.plan().io.outputs.iter().map(|port| port.name.to_string());
        let metrics = outputs.filter(|output| !known.contains(&output.as_str())).collect();
        run.observer.observe(Event::Compiled {
            stage: name.to_string(),
            parameters: step.plan().report.parameters,
            peak_bytes,
            took: began.elapsed(),
        });
        Ok(Training {
            name: name.to_string(),
            spec,
            hash,
            seed: run.seed.unwrap_or(spec.seed),
            log: Log::open(&run.folder(name))?,
            dataset,
            orders,
            step,
            tensors,
            batcher,
            evaluation,
            generator,
            metrics,
            peak_bytes,
            done: 0,
            saved: None,
            evaluations: Evaluations::default(),
        })
    }

    fn checkpoints(&self, run: &Run<'_>) -> std::path::PathBuf {
        run.folder(&self.name).join("checkpoints")
    }

    /// The weights and states to begin with: of the last checkpoint, or fresh ones; and what other stages give.
    fn start(&mut self, run: &mut Run<'_>) -> Result<(), RunError> {
        let found = checkpoint::latest(&self.checkpoints(run))?;
        self.done = self.begin(found.as_ref(), run)?;
        self.evaluations = self.log.resume(self.done)?;
        if let Some(found) = found.filter(|found| found.recipe == self.hash) {
            self.saved = Some(found.step);
            run.observer.observe(Event::Resumed { stage: self.name.clone(), step: self.done });
        }
        Ok(())
    }

    /// Writes all that outlives a step, as a checkpoint of this recipe has it or, over zeros, afresh. Gives the steps done.
    fn begin(&mut self, found: Option<&Checkpoint>, run: &Run<'_>) -> Result<u64, RunError> {
        let Some(found) = found.filter(|found| found.recipe == self.hash) else {
            initialize(self.spec, self.seed, &self.orders, &mut self.tensors, run)?;
            return Ok(0);
        };
        load_others(self.spec, &self.orders, &mut self.tensors, run)?;
        load_weights(found, self.spec, &mut self.tensors)?;
        for name in kept_states(self.spec, &self.step) {
            if let Some(tensor) = self.tensors.get_mut(name.as_str()) {
                read_into(found, name.as_str(), tensor)?;
            }
        }
        Ok(found.step)
    }

    /// Writes what comes in with a step, after `done` of them.
    fn fill(&mut self, done: u64) -> Filled {
        let filled = self.step.fill(&self.batcher, &self.dataset.facts.data.fields, done);
        self.step.set_scalar("seed", self.seed as i32);
        self.step.set_scalar("step", done as i32);
        filled
    }

    fn go_on(&mut self, run: &mut Run<'_>) -> Result<(), RunError> {
        // An evaluation that was interrupted is made up for.
        let mut is_over = self.done > 0 && self.evaluate(run)?;
        while !is_over && self.done < self.spec.steps {
            if run.is_stopped() {
                let saved = self.save(run)?;
                return Err(RunError::Interrupted { saved: Some(saved) });
            }
            self.one_step(run)?;
            is_over = self.evaluate(run)?;
            self.sample(run)?;
            if self.spec.save.every.is_some_and(|every| self.done.is_multiple_of(every)) {
                self.save(run)?;
            }
        }
        self.save(run)?;
        self.log.close()
    }

    fn one_step(&mut self, run: &mut Run<'_>) -> Result<(), RunError> {
        let began = Instant::now();
        let filled = self.fill(self.done);
        self.step.run(&mut self.tensors, &run.cpu)?;
        let loss = self.step.scalar("loss").unwrap_or(f64::NAN);
        if loss.is_nan() {
            self.tensors.fetch()?;
            return Err(nan::explain(self, run));
        }
        self.done += 1;
        let report = &self.step.plan().report;
        let metrics = self.metrics.iter().map(|name| (name.clone(), self.step.scalar(name).unwrap_or(f64::NAN)));
        let step = Step {
            stage: self.name.clone(),
            step: self.done,
            of: self.spec.steps,
            loss,
            lr: self.step.scalar("lr"),
            grad_norm: self.step.scalar("grad_norm"),
            tokens: filled.n_counted as u64,
            took: began.elapsed(),
            flops: report.flops,
            peak_bytes: self.peak_bytes,
            metrics: metrics.collect(),
        };
        self.log.step(&step)?;
        run.observer.observe(Event::Stepped(step));
        Ok(())
    }

    /// Measures when it is time to. True when the loss has not improved for as long as the recipe's patience.
    fn evaluate(&mut self, run: &mut Run<'_>) -> Result<bool, RunError> {
        let (Some(evaluation), Some(spec)) = (&mut self.evaluation, &self.spec.evaluate) else { return Ok(false) };
        let is_due = self.done.is_multiple_of(spec.every) || self.done == self.spec.steps;
        if !is_due || self.evaluations.last == self.done {
            return Ok(false);
        }
        // What the step has in its arena was read.
        self.step.lend(evaluation.executable());
        let means = evaluation.measure(run, &mut self.tensors);
        self.step.lend(evaluation.executable());
        let means = match means {
            Err(RunError::Interrupted { .. }) => return Ok(false),
            means => means?,
        };
        let values: Vec<(String, f64)> = means.values.into_iter().collect();
        let loss = values.iter().find(|(name, _)| name == "loss").map_or(f64::NAN, |(_, loss)| *loss);
        self.log.evaluation(self.done, &values)?;
        let part = format!("{}.{}", self.spec.data, evaluation.part());
        let (stage, step) = (self.name.clone(), self.done);
        run.observer.observe(Event::Evaluated { stage: stage.clone(), step, part, values });
        self.evaluations.add(self.done, loss);
        match self.spec.patience {
            Some(patience) if self.evaluations.since_best >= patience => {
                let why = format!("the loss has not improved for {patience} evaluations");
                run.observer.observe(Event::Ended { stage, step, why });
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn sample(&mut self, run: &mut Run<'_>) -> Result<(), RunError> {
        let (Some((generator, sample)), Some(tokenizer)) = (&mut self.generator, &self.dataset.tokenizer) else {
            return Ok(());
        };
        if !self.done.is_multiple_of(sample.every) {
            return Ok(());
        }
        let prompt = tokenizer.encode(&sample.prompt)?;
        let choice = Choice { temperature: sample.temperature, seed: self.seed, ..Choice::default() };
        let mut ids = prompt.clone();
        generator.generate(&mut self.tensors, &run.cpu, &prompt, sample.new, choice, |id| {
            ids.push(id);
            !run.stop.load(std::sync::atomic::Ordering::Relaxed)
        })?;
        let text = tokenizer.decode(&ids);
        run.observer.observe(Event::Sampled { stage: self.name.clone(), step: self.done, text });
        Ok(())
    }

    /// Writes a checkpoint, unless the last update left in the weights what no step could go on from: then the one before stays.
    fn save(&mut self, run: &mut Run<'_>) -> Result<std::path::PathBuf, RunError> {
        let home = self.checkpoints(run);
        let path = home.join(format!("step-{}", self.done));
        if self.saved == Some(self.done) {
            return Ok(path);
        }
        self.tensors.fetch()?;
        if let Some(spoilt) = nan::spoilt(self) {
            return Err(nan::refuse(self, spoilt, run));
        }
        let view = |name: &Name| match self.tensors.get(name.as_str()) {
            Some(tensor) => TensorView {
                name: name.to_string(),
                dtype: tensor.dtype,
                shape: tensor.axes.iter().map(|axis| axis.size).collect(),
                bytes: tensor.data.bytes(),
            },
            None => mdl_graph::bug!("`{name}` is not in memory"),
        };
        let weights: Vec<_> = self.spec.weights.iter().map(|weight| view(&weight.path)).collect();
        let states: Vec<_> = kept_states(self.spec, &self.step).iter().map(view).collect();
        self.log.flush()?;
        let path = checkpoint::save(&home, self.done, self.seed, self.hash, &weights, &states, self.spec.save.keep)?;
        self.saved = Some(self.done);
        run.observer.observe(Event::Saved { stage: self.name.clone(), step: self.done, path: path.clone() });
        Ok(path)
    }
}

/// The states that training goes on from: the recipe's, and those that the compiler added, such as the scale of the loss in `f16`.
fn kept_states(spec: &TrainSpec, step: &Executable) -> Vec<Name> {
    // Of a state that is kept in fewer bits there are only the parts, which the compiler added.
    let whole = spec.states.iter().filter(|state| !spec.kept.iter().any(|kept| kept.input == state.name));
    let mut names: Vec<Name> = whole.map(|state| state.name.clone()).collect();
    let added = step.plan().states.iter().filter(|state| state.kind == InputKind::State).map(|state| &state.name);
    let is_known = |name: &Name| {
        spec.states.iter().any(|state| state.name == *name) || spec.reads.iter().any(|read| read.input == *name)
    };
    names.extend(added.filter(|name| !is_known(name)).cloned());
    names
}

/// Writes the first weights and states, as the recipe's initializers say.
pub fn initialize(
    spec: &TrainSpec,
    seed: u64,
    orders: &Orders,
    tensors: &mut Tensors,
    run: &Run<'_>,
) -> Result<(), RunError> {
    load_origins(&run.base, &run.out, origins(spec), tensors)?;
    let graph = in_place(spec);
    if graph.outputs().is_empty() {
        return load_others(spec, orders, tensors, run);
    }
    let (graph, orders, _) = Keep::of_stage(&spec.kept).apply(&graph, orders);
    let mut init = Executable::new(&graph, &orders, &run.cpu)?;
    init.set_scalar("seed", seed as i32);
    init.set_scalar("step", 0);
    tensors.allocate(init.plan());
    load_others(spec, &orders, tensors, run)?;
    init.run(tensors, &run.cpu)
}

/// The graph of the first values, each of which is written straight to where it is kept: together they take as much as a stage keeps.
fn in_place(spec: &TrainSpec) -> Graph {
    let mut graph = spec.init.clone();
    let mut outputs = graph.outputs().to_vec();
    for Output { name, role, node } in &mut outputs {
        let is_weight = spec.weights.iter().any(|weight| weight.path == *name);
        let kind = if is_weight { InputKind::Weight } else { InputKind::State };
        *role = Role::Next(InputId(graph.inputs().len() as u32));
        graph.input(name.clone(), kind, graph.ty(*node).clone());
    }
    graph.set_outputs(outputs);
    graph
}

/// Reads the weights and states that are in memory, caches of decoders and the like apart.
pub fn load_weights(found: &Checkpoint, spec: &TrainSpec, tensors: &mut Tensors) -> Result<(), RunError> {
    let names = spec.weights.iter().map(|weight| &weight.path).chain(spec.states.iter().map(|state| &state.name));
    for name in names {
        if let Some(tensor) = tensors.get_mut(name.as_str()) {
            read_into(found, name.as_str(), tensor)?;
        }
    }
    Ok(())
}

fn read_into(found: &Checkpoint, name: &str, tensor: &mut Tensor) -> Result<(), RunError> {
    let shape: Vec<u64> = tensor.axes.iter().map(|axis| axis.size).collect();
    found.read(name, tensor.dtype, &shape, tensor.data.bytes_mut())
}
