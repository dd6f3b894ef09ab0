//! A recipe from the disk, checked.

use std::path::Path;

use mdl_lang::check::Saved;
use mdl_lang::diag::{Diagnostic, Sources};
use mdl_lang::spec::{self, Program, TrainSpec};
use mdl_lang::stage::{self, Applied, Array, Asked, Merged, Tuned};
use mdl_lang::syntax::ast::FileId;
use serde_json::Value;

use crate::args::Common;
use crate::world::Disk;

/// A recipe that was read, and what is wrong with it.
pub(crate) struct Loaded {
    pub(crate) sources: Sources,
    pub(crate) main: FileId,
    pub(crate) program: Program,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// The recipe's `arg`s, as far as the file can be read; for `--help`.
pub(crate) fn recipe_args(path: &Path) -> Vec<spec::Arg> {
    let Ok(bytes) = std::fs::read(path) else { return Vec::new() };
    let mut sources = Sources::new();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let main = sources.add(path.display().to_string(), text.clone());
    let (file, _) = mdl_lang::syntax::parse(main, &text);
    mdl_lang::stage::args_of(&file, &sources)
}

/// The first file of a compilation.
const MAIN: FileId = FileId(0);

/// Reads and checks a recipe. `Err` when the file itself cannot be read.
pub(crate) fn check(common: &Common, cache: Option<&Path>) -> Result<Loaded, String> {
    let (mut sources, undecoded) = sources(&common.recipe)?;
    if let Some(diagnostic) = undecoded {
        return Ok(Loaded { sources, main: MAIN, program: Program::default(), diagnostics: vec![diagnostic] });
    }
    let world = Disk::new(common.base(), cache.map(Path::to_path_buf));
    let (program, diagnostics) = mdl_lang::stage::check(&mut sources, MAIN, &common.given, &world);
    Ok(Loaded { sources, main: MAIN, program, diagnostics })
}

/// Reads a recipe, and builds what applies one of its models to arrays.
pub(crate) fn apply(common: &Common, arrays: &[Array], asked: Asked<'_>) -> Result<(Loaded, Option<Applied>), String> {
    direct(common, &disk(common), |sources, world| stage::apply(sources, MAIN, &common.given, world, arrays, asked))
}

/// The adapters of a trained stage as PEFT keeps them; `None` where it has none.
pub(crate) fn saved(common: &Common, stage: Option<&str>) -> Result<(Loaded, Option<Option<Saved>>), String> {
    direct(common, &disk(common), |sources, world| stage::saved(sources, MAIN, &common.given, world, stage))
}

/// Builds what folds adapters: those of a stage, or of a folder.
pub(crate) fn merge(common: &Common, asked: (Option<&str>, Option<&str>)) -> Result<(Loaded, Option<Merged>), String> {
    direct(common, &disk(common), |sources, world| stage::merge(sources, MAIN, (&common.given, world), asked))
}

/// Builds the step that `mdlc tune` makes on arrays.
pub(crate) fn tune(
    common: &Common,
    arrays: &[Array],
    steps: (&str, u64),
    adapter: Option<&str>,
) -> Result<(Loaded, Option<Tuned>), String> {
    direct(common, &disk(common), |sources, world| stage::tune(sources, MAIN, world, arrays, steps, adapter))
}

/// Builds the step of a stage that leaves gradients, on a batch of so many rows.
pub(crate) fn gradients(
    common: &Common,
    stage: &str,
    batch: Option<u64>,
) -> Result<(Loaded, Option<TrainSpec>), String> {
    direct(common, &disk(common), |sources, world| stage::gradients(sources, MAIN, &common.given, world, stage, batch))
}

/// Builds what the decoder of a model is derived from. `arrays` are what a model that answers is given.
pub(crate) fn writes(
    common: &Common,
    arrays: &[Array],
    most: stage::Most,
) -> Result<(Loaded, Option<stage::Writes>), String> {
    direct(common, &disk(common), |sources, world| stage::writes(sources, MAIN, world, arrays, most))
}

/// The recipe of a folder, and the keys of its configuration that mean nothing to it. Weights are not read.
pub(crate) fn import(common: &Common) -> Result<(Loaded, Option<Vec<String>>), String> {
    let name = common.recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let json = format!("{name}/config.json");
    let world = Disk::new(common.base(), None).without_weights();
    direct(common, &world, |sources, world| stage::unread(sources, MAIN, world, &json))
}

/// Everything that there is to read, and what earlier runs kept of it.
fn disk(common: &Common) -> Disk {
    Disk::new(common.base(), Some(common.out().join("cache")))
}

/// Runs what asks the checker for something that is no program.
fn direct<T>(
    common: &Common,
    world: &Disk,
    run: impl FnOnce(&mut Sources, &Disk) -> (Option<T>, Vec<Diagnostic>),
) -> Result<(Loaded, Option<T>), String> {
    let (mut sources, undecoded) = sources(&common.recipe)?;
    let (made, diagnostics) = match undecoded {
        Some(diagnostic) => (None, vec![diagnostic]),
        None => run(&mut sources, world),
    };
    Ok((Loaded { sources, main: MAIN, program: Program::default(), diagnostics }, made))
}

/// The text of a recipe; of a folder with a published model, the recipe that uses it. Also what is wrong with its characters.
fn sources(path: &Path) -> Result<(Sources, Option<Diagnostic>), String> {
    let mut sources = Sources::new();
    if path.is_dir() {
        // Its paths are relative to where it would stand, beside the folder.
        let name = path.file_name().map_or(path.as_os_str(), |name| name).to_string_lossy().into_owned();
        let recipe = path.with_file_name(format!("{name}.mdl"));
        sources.add(recipe.display().to_string(), of_folder(&name));
        return Ok((sources, None));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let name = path.display().to_string();
    match mdl_lang::syntax::decode(MAIN, bytes.clone()) {
        Ok(text) => {
            sources.add(name, text);
            Ok((sources, None))
        }
        Err(diagnostic) => {
            sources.add(name, String::from_utf8_lossy(&bytes).into_owned());
            Ok((sources, Some(diagnostic)))
        }
    }
}

/// The value of a key, if it has one, in a JSON file of a folder. A file that cannot be read, whoever builds the model tells.
pub(crate) fn of_json(folder: &Path, file: &str, key: &str) -> Option<Value> {
    let text = std::fs::read_to_string(folder.join(file)).ok()?;
    serde_json::from_str::<Value>(&text).ok()?.get(key).filter(|value| !value.is_null()).cloned()
}

/// The recipe of a folder with a published model.
pub(crate) fn of_folder(name: &str) -> String {
    format!("use std.models.pretrained\nmodel net = pretrained({name:?})\n")
}
