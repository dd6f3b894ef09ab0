//! What writes text: a trained stage of a recipe, or the model of a folder, with its tokenizer; and a draft beside it.
//!
//! An [`Author`] is what the command line names, read as far as its tokenizer; a [`Writer`] has its weights and programs. A folder's model is
//! built for as many positions as it is asked to see, so the two are apart: how many that is may depend on the prompt.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use mdl_compiler::stored::Kept;
use mdl_data::{Template, Tokenizer};
use mdl_lang::spec::{DataSpec, StageKind, TrainSpec};
use mdl_lang::stage::{Most, Writes};
use mdl_runtime::checkpoint;
use mdl_runtime::device::{Cpu, Device, Tensors};
use mdl_runtime::error::RunError;
use mdl_runtime::generate::{Choice, Draft, Drafted, Generator};
use mdl_runtime::kept::Keep;
use mdl_runtime::stage::train::{self, orders_of};
use serde_json::Value;

use super::{ended, fail, given, last_stage, loaded, made};
use crate::args::Common;
use crate::exit;
use crate::load::{self, Loaded};

/// Whoever is asked to write.
pub(super) struct Author {
    /// What it is called: a stage, or a folder.
    pub(super) name: String,
    pub(super) tokenizer: Tokenizer,
    common: Common,
    source: Source,
}

enum Source {
    Stage { spec: Box<TrainSpec>, data: Box<DataSpec>, device: Device },
    Folder,
}

/// The author of the command line, and the draft that helps it.
pub(super) fn authors(common: &Common, matches: &ArgMatches, color: bool) -> Result<(Author, Option<Author>), u8> {
    let draft = matches.get_one::<String>("draft").map(String::as_str);
    let beside = |path: &str| Common { recipe: PathBuf::from(path), given: Vec::new(), out: None, ..common.clone() };
    let (author, draft) = if common.recipe.is_dir() {
        if matches.contains_id("stage") {
            fail("a folder has no stages");
            return Err(exit::USAGE);
        }
        let draft = draft.map(|path| folder_author(&beside(path)).map_err(|error| ended(&error)));
        (folder_author(common).map_err(|error| ended(&error))?, draft.transpose()?)
    } else {
        if matches.contains_id("room") {
            fail("how much a stage sees, its data says: `--room` is for folders");
            return Err(exit::USAGE);
        }
        let loaded = loaded(common, color)?;
        let of_stage = |name: Option<&str>| stage_author(common, &loaded, name);
        let asked = matches.get_one::<String>("stage").map(String::as_str);
        let author = of_stage(asked).map_err(|error| ended(&error))?;
        let draft = draft.map(|name| match Path::new(name).is_dir() && last_stage(&loaded, Some(name)).is_err() {
            true => folder_author(&beside(name)),
            false => of_stage(Some(name)),
        });
        (author, draft.transpose().map_err(|error| ended(&error))?)
    };
    if let Some(draft) = draft.as_ref().filter(|draft| !draft.tokenizer.has_ids_of(&author.tokenizer)) {
        let (name, other) = (&draft.name, &author.name);
        fail(&format!("`{name}` has another tokenizer than `{other}`, so it cannot propose tokens for it"));
        return Err(exit::USAGE);
    }
    Ok((author, draft))
}

fn stage_author(common: &Common, loaded: &Loaded, name: Option<&str>) -> Result<Author, RunError> {
    let (stage, spec) = last_stage(loaded, name)?;
    let Some(StageKind::Data(data)) = loaded.program.stage(&spec.data).map(|stage| &stage.kind) else {
        mdl_graph::bug!("`{}` is no data stage", spec.data);
    };
    let dataset = mdl_data::prepare(data, &common.base(), Some(&common.out().join("cache")))?;
    let Some(tokenizer) = dataset.tokenizer else {
        return Err(RunError::failed(format!("writing text with `{}`", stage.name), "its data has no tokenizer"));
    };
    let (spec, data) = (Box::new(spec.clone()), Box::new(data.clone()));
    let source = Source::Stage { spec, data, device: common.device(&loaded.program) };
    Ok(Author { name: stage.name.clone(), tokenizer, common: common.clone(), source })
}

fn folder_author(common: &Common) -> Result<Author, RunError> {
    let tokenizer = mdl_data::tokenizer::of_folder(&common.recipe)?;
    let name = common.recipe.display().to_string();
    Ok(Author { name, tokenizer, common: common.clone(), source: Source::Folder })
}

impl Author {
    /// How it spells chats.
    pub(super) fn template(&self) -> Result<Template, RunError> {
        Ok(match &self.source {
            Source::Stage { data, .. } => mdl_data::template_of(data, self.tokenizer.extra(), &self.common.base())?,
            Source::Folder => mdl_data::template_of_tokenizer(self.tokenizer.extra())?,
        })
    }

    /// The ids of a text to go on from: in front of it what the tokenizer of a published model begins a text with. How a stage's texts
    /// began, its data says.
    pub(super) fn begin(&self, text: &str) -> Result<Vec<u32>, RunError> {
        Ok(match self.source {
            Source::Stage { .. } => self.tokenizer.encode(text)?,
            Source::Folder => self.tokenizer.encode_begun(text)?,
        })
    }

    /// The ids after which it has no more to say.
    pub(super) fn ends(&self) -> Vec<u32> {
        let mut ids = self.tokenizer.extra().stops.clone();
        ids.extend(self.tokenizer.end_of_text());
        if let Source::Folder = self.source {
            match self.config("eos_token_id") {
                Some(Value::Array(all)) => ids.extend(all.iter().filter_map(id_of)),
                Some(id) => ids.extend(id_of(&id)),
                None => {}
            }
        }
        ids
    }

    /// How many positions a folder's model is said to see at most.
    fn most_room(&self) -> Option<u64> {
        let keys = ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"];
        keys.iter().find_map(|key| self.config(key)?.as_u64()).filter(|most| *most > 0)
    }

    fn config(&self, key: &str) -> Option<Value> {
        load::of_json(&self.common.recipe, "config.json", key)
    }

    /// Its programs and weights. A folder's model is built for `room` positions; `ahead` is how many proposals it checks at once.
    fn generator(
        &self,
        matches: &ArgMatches,
        room: u64,
        ahead: u64,
        cpu: &Cpu,
        color: bool,
    ) -> Result<(Generator, Tensors), u8> {
        let rest = given(matches, "weights");
        let mut tensors = Tensors::new();
        let generator = match &self.source {
            Source::Stage { spec, .. } => {
                self.of_stage(spec, Keep { kept: &spec.kept, rest }, ahead, &mut tensors, cpu)
            }
            Source::Folder => {
                let most = Most { answering: room, going_on: room };
                let writes = load::writes(&self.common, &[], most);
                let (_, writes) = made(writes, &self.common, color)?;
                of_writes(&writes, &self.common, rest, ahead, &mut tensors, cpu)
            }
        };
        let generator = generator.map_err(|error| ended(&error))?;
        Ok((generator.remembering(), tensors))
    }

    fn of_stage(
        &self,
        spec: &TrainSpec,
        keep: Keep<'_>,
        ahead: u64,
        tensors: &mut Tensors,
        cpu: &Cpu,
    ) -> Result<Generator, RunError> {
        let Some(forward) = &spec.forward else {
            let doing = format!("writing text with `{}`", self.name);
            return Err(RunError::failed(doing, "its model gives no logits for `ids`"));
        };
        let (base, out) = (self.common.base(), self.common.out());
        let generator = Generator::new(forward, &train::orders(spec), keep, ahead, cpu)?;
        generator.allocate(tensors);
        // What the optimizer remembers is most of a checkpoint, and of no use here; a layer's states are.
        let has_states = spec.states.iter().any(|state| tensors.get(state.name.as_str()).is_some());
        let latest = if has_states { checkpoint::latest } else { checkpoint::latest_weights };
        let found = checkpoint::of_stage(&out, &self.name, latest)?;
        generator.load(tensors, cpu, |tensors| {
            train::load_weights(&found, spec, tensors)?;
            train::load_reads(&base, &out, &spec.reads, tensors)
        })?;
        Ok(generator)
    }
}

/// The programs and weights of what the checker made of a folder's model.
pub(super) fn of_writes(
    writes: &Writes,
    common: &Common,
    rest: Kept,
    ahead: u64,
    tensors: &mut Tensors,
    cpu: &Cpu,
) -> Result<Generator, RunError> {
    let Writes { graph, reads, .. } = writes;
    let generator = Generator::new(graph, &orders_of(reads).collect(), Keep { kept: &[], rest }, ahead, cpu)?;
    generator.load(tensors, cpu, |tensors| train::load_reads(&common.base(), &common.out(), reads, tensors))?;
    Ok(generator)
}

pub(super) fn id_of(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// A model that is ready to write.
pub(super) struct Writer {
    generator: Generator,
    tensors: Tensors,
    draft: Option<(Generator, Tensors)>,
    ahead: u64,
    cpu: Cpu,
    choice: Choice,
    new: u64,
}

impl Writer {
    /// Makes an author ready, with the choices of the command line. A folder's model sees `room` positions, unless its configuration has
    /// fewer or the command line says.
    pub(super) fn new(
        (author, draft): (&Author, Option<&Author>),
        matches: &ArgMatches,
        room: u64,
        color: bool,
    ) -> Result<Writer, u8> {
        let common = &author.common;
        let device = match &author.source {
            Source::Stage { device, .. } => *device,
            Source::Folder => common.device.unwrap_or(Device::Cpu),
        };
        let cpu = Cpu::new(common.threads).and_then(|cpu| cpu.on(device)).map_err(|error| ended(&error))?;
        let ahead = if draft.is_some() { given(matches, "ahead") } else { 0 };
        let room = |author: &Author| {
            let said = matches.get_one::<u64>("room").copied();
            said.unwrap_or_else(|| author.most_room().map_or(room, |most| most.min(room)))
        };
        let (generator, tensors) = author.generator(matches, room(author), ahead, &cpu, color)?;
        let draft = draft.map(|draft| draft.generator(matches, room(draft), 0, &cpu, color)).transpose()?;
        let choice = choice(common, matches);
        let mut writer = Writer { generator, tensors, draft, ahead, cpu, choice, new: given(matches, "new") };
        // A draft that cannot propose is refused before anything is written.
        proposer(&mut writer.draft, ahead).map_err(|error| ended(&error))?;
        Ok(writer)
    }

    /// Writes on after a prompt, as far as `emit` wants.
    pub(super) fn write(&mut self, prompt: &[u32], emit: impl FnMut(u32) -> bool) -> Result<Drafted, RunError> {
        let draft = proposer(&mut self.draft, self.ahead)?;
        self.generator.generate_with(draft, &mut self.tensors, &self.cpu, prompt, self.new, self.choice, emit)
    }

    /// How many tokens the model sees.
    pub(super) fn context(&self) -> u64 {
        self.generator.context()
    }

    /// How many it writes at most.
    pub(super) fn new_tokens(&self) -> u64 {
        self.new
    }

    /// Another draw for the next text.
    pub(super) fn draw_anew(&mut self) {
        self.choice.seed = self.choice.seed.wrapping_add(1);
    }
}

fn proposer(draft: &mut Option<(Generator, Tensors)>, ahead: u64) -> Result<Option<Draft<'_>>, RunError> {
    draft.as_mut().map(|(generator, tensors)| Draft::new(generator, tensors, ahead)).transpose()
}

/// How tokens are chosen.
pub(super) fn choice(common: &Common, matches: &ArgMatches) -> Choice {
    Choice {
        temperature: if matches.get_flag("greedy") { 0.0 } else { given(matches, "temperature") },
        top_k: given::<u64>(matches, "top-k") as usize,
        top_p: given(matches, "top-p"),
        seed: common.seed.unwrap_or(0),
    }
}

/// What is said of a draft's proposals; nothing where there were none.
pub(super) fn accepted(drafted: Drafted) -> Option<String> {
    let Drafted { proposed, accepted } = drafted;
    (proposed > 0).then(|| {
        format!("{accepted} of {proposed} proposed tokens accepted ({:.0}%)", 100.0 * accepted as f64 / proposed as f64)
    })
}
