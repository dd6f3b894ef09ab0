//! A recipe, stage by stage: what is there already is kept, what changed is made again.
//!
//! In: a checked [`Program`]. Out: files under the run's folder, `OUT/<stage>/…`. Each finished stage leaves `stage.json`
//! with the hash of all that it was made of: its own text (places in the file apart), its data, the stages it needs, and this
//! program's version. A stage whose hash is unchanged does not run; one that was interrupted goes on; an artifact made of other
//! things is moved to `OUT/replaced/`, never deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mdl_data::{Dataset, atomic};
use mdl_graph::Name;
use mdl_lang::spec::{DataSpec, Origin, Program, Stage, StageKind, TrainSpec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::device::Cpu;
use crate::error::RunError;
use crate::event::{Event, Observer};
use crate::programs::{Programs, plan_stage};
use crate::stage;
use crate::weights;

/// Everything that stages share.
pub struct Run<'a> {
    pub program: &'a Program,
    /// The recipe's folder, to which paths in it are relative.
    pub base: PathBuf,
    /// Where artifacts go.
    pub out: PathBuf,
    pub cpu: Cpu,
    /// Replaces the seed of every training stage.
    pub seed: Option<u64>,
    /// Set by Ctrl-C: save and end.
    pub stop: &'a AtomicBool,
    pub observer: &'a mut dyn Observer,
    datasets: BTreeMap<String, Arc<Dataset>>,
}

/// What a stage was made of, and whether it is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub hash: String,
    pub done: bool,
    pub version: String,
}

const RECORD: &str = "stage.json";

impl<'a> Run<'a> {
    pub fn new(
        program: &'a Program,
        base: PathBuf,
        out: PathBuf,
        cpu: Cpu,
        stop: &'a AtomicBool,
        observer: &'a mut dyn Observer,
    ) -> Run<'a> {
        Run { program, base, out, cpu, seed: None, stop, observer, datasets: BTreeMap::new() }
    }

    /// Runs all stages, in order.
    pub fn run(&mut self) -> Result<(), RunError> {
        let mut hashes: BTreeMap<String, String> = BTreeMap::new();
        let program = self.program;
        for stage in &program.stages {
            if self.is_stopped() {
                return Err(RunError::Interrupted { saved: None });
            }
            let hash = self.hash(stage, &hashes)?;
            self.run_stage(stage, &hash)?;
            hashes.insert(stage.name.clone(), hash);
        }
        Ok(())
    }

    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub fn folder(&self, stage: &str) -> PathBuf {
        self.out.join(stage)
    }

    fn run_stage(&mut self, stage: &Stage, hash: &str) -> Result<(), RunError> {
        let folder = self.folder(&stage.name);
        let found = read_record(&folder);
        if found.as_ref().is_some_and(|record| record.done && record.hash == hash) {
            self.observer.observe(Event::Unchanged { stage: stage.name.clone() });
            return Ok(());
        }
        let began = Instant::now();
        // What the compiler refuses is told before anything is moved or written.
        let programs = match &stage.kind {
            StageKind::Train(spec) => Some(self.programs(spec, stage)?),
            StageKind::Data(_) | StageKind::Eval(_) => None,
        };
        if let Some(record) = found.filter(|record| record.hash != hash) {
            let to = self.set_aside(&stage.name, &folder, &record)?;
            self.observer.observe(Event::Replaced { stage: stage.name.clone(), to });
        }
        self.observer.observe(Event::Started { stage: stage.name.clone(), kind: stage.kind.name() });
        make_folder(&folder)?;
        write_record(&folder, hash, false)?;
        match &stage.kind {
            StageKind::Data(spec) => {
                let dataset = self.dataset(&stage.name, spec)?;
                let summary = stage::data::summary(&dataset.facts);
                write_file(&folder.join("report.json"), &dataset.facts.to_json())?;
                self.observer.observe(Event::Data { stage: stage.name.clone(), summary });
            }
            StageKind::Train(spec) => {
                if let Some(programs) = programs {
                    stage::train::run(self, &stage.name, spec, hash, (programs, began))?;
                }
            }
            StageKind::Eval(spec) => stage::eval::run(self, &stage.name, spec)?,
        }
        write_record(&folder, hash, true)?;
        self.observer.observe(Event::Finished { stage: stage.name.clone(), took: began.elapsed() });
        Ok(())
    }

    /// The plans of a train stage.
    pub fn programs(&self, spec: &TrainSpec, stage: &Stage) -> Result<Programs, RunError> {
        let programs = plan_stage(spec, self.cpu.machine())
            .map_err(|error| RunError::Recipe(Box::new(crate::refuse::refused(spec, stage.span, &error))))?;
        // Nothing is allocated that would not fit with the rest.
        if let Some(gpu) = &self.cpu.card {
            let doing = || format!("beginning `{}`", stage.name);
            let free = gpu.free_bytes().map_err(|error| RunError::failed(doing(), error.to_string()))?;
            let needed = programs.memory.peak_bytes();
            if needed > free {
                return Err(RunError::failed(doing(), crate::device::too_large(needed, free, gpu)));
            }
        }
        Ok(programs)
    }

    /// The prepared data of a data stage; read once in a run.
    pub fn dataset(&mut self, name: &str, spec: &DataSpec) -> Result<Arc<Dataset>, RunError> {
        if let Some(dataset) = self.datasets.get(name) {
            return Ok(Arc::clone(dataset));
        }
        let dataset = Arc::new(mdl_data::prepare(spec, &self.base, Some(&self.out.join("cache")))?);
        self.datasets.insert(name.to_string(), Arc::clone(&dataset));
        Ok(dataset)
    }

    pub fn dataset_of(&mut self, stage: &str) -> Result<Arc<Dataset>, RunError> {
        match self.program.stage(stage).map(|stage| &stage.kind) {
            Some(StageKind::Data(spec)) => self.dataset(stage, spec),
            _ => mdl_graph::bug!("`{stage}` is no data stage"),
        }
    }

    /// The hash of all that decides what a stage makes.
    fn hash(&mut self, stage: &Stage, before: &BTreeMap<String, String>) -> Result<String, RunError> {
        let mut sha = Sha256::new();
        sha.update(env!("CARGO_PKG_VERSION"));
        let mut text = serde_json::to_value(&stage.kind)
            .map_err(|error| RunError::failed("hashing a stage", error.to_string()))?;
        forget_places(&mut text);
        sha.update(text.to_string());
        if let StageKind::Data(spec) = &stage.kind {
            let dataset = self.dataset(&stage.name, spec)?;
            sha.update(&dataset.facts.data.hash);
        }
        if let (StageKind::Train(_), Some(seed)) = (&stage.kind, self.seed) {
            sha.update(seed.to_le_bytes());
        }
        // Of files of weights, which may be large, only whether they are the same files.
        for file in files_of(&stage.kind) {
            let stamp = weights::stamp(&self.base.join(file.as_str()));
            sha.update(format!("{file} {stamp:?}"));
        }
        for need in &stage.needs {
            sha.update(before.get(need).map_or("", String::as_str));
        }
        Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn set_aside(&self, name: &str, folder: &Path, record: &Record) -> Result<PathBuf, RunError> {
        let aside = self.out.join("replaced");
        make_folder(&aside)?;
        let short: String = record.hash.chars().take(8).collect();
        let mut to = aside.join(format!("{name}-{short}"));
        let mut n = 1;
        while to.exists() {
            n += 1;
            to = aside.join(format!("{name}-{short}-{n}"));
        }
        let doing = || format!("moving the old {} to {}", folder.display(), to.display());
        fs::rename(folder, &to).map_err(|error| RunError::failed(doing(), error.to_string()))?;
        Ok(to)
    }
}

/// The files of weights that a stage reads.
fn files_of(stage: &StageKind) -> BTreeSet<&Name> {
    let origins: Vec<&Origin> = match stage {
        StageKind::Data(_) => Vec::new(),
        StageKind::Train(spec) => {
            let own = spec.weights.iter().map(|weight| &weight.origin);
            let own = own.chain(spec.states.iter().map(|state| &state.origin)).flatten();
            own.chain(spec.reads.iter().map(|read| &read.origin)).collect()
        }
        StageKind::Eval(spec) => spec.reads.iter().map(|read| &read.origin).collect(),
    };
    let pieces = origins.into_iter().flat_map(|origin| match origin {
        Origin::Files { pieces, same } => pieces.iter().chain(same).collect(),
        Origin::Stage { .. } => Vec::new(),
    });
    pieces.map(|piece| &piece.file).collect()
}

/// Where something stands in a file does not change what it does.
fn forget_places(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| name != "span");
            fields.values_mut().for_each(forget_places);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_places),
        _ => {}
    }
}

pub fn make_folder(path: &Path) -> Result<(), RunError> {
    fs::create_dir_all(path)
        .map_err(|error| RunError::failed(format!("making the folder {}", path.display()), error.to_string()))
}

/// What a stage's folder says of itself. A broken record counts as none: the stage runs again.
pub fn read_record(folder: &Path) -> Option<Record> {
    serde_json::from_str(&fs::read_to_string(folder.join(RECORD)).ok()?).ok()
}

fn write_record(folder: &Path, hash: &str, done: bool) -> Result<(), RunError> {
    let record = Record { hash: hash.to_string(), done, version: env!("CARGO_PKG_VERSION").to_string() };
    let text = serde_json::to_string_pretty(&record).unwrap_or_default();
    write_file(&folder.join(RECORD), &text)
}

/// Writes a file whole or not at all.
pub fn write_file(path: &Path, text: &str) -> Result<(), RunError> {
    atomic::write_atomic(path, |to| to.write_all(text.as_bytes()))
        .map_err(|error| RunError::failed(format!("writing {}", path.display()), error.to_string()))
}
