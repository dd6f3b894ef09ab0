//! `mdlc tune DIR --inputs in.npz --optimizer 'adamw(lr: 1e-3)' --steps N`: training steps on one batch of arrays, and the folder
//! with what the weights are then; with `--adapter DIR` steps of that adapter, and its folder.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::ArgMatches;
use mdl_lang::spec::Program;
use mdl_runtime::device::Cpu;
use mdl_runtime::error::RunError;
use mdl_runtime::event::Event;
use mdl_runtime::export::{export, write_adapters};
use mdl_runtime::run::Run;
use mdl_runtime::tune;
use serde_json::json;

use super::apply::{adapter, described};
use super::{arrays, fail, failed, given, made};
use crate::args::Common;
use crate::exit;
use crate::load;
use crate::progress::print_line;

pub(super) fn tune(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    if !common.recipe.is_dir() {
        fail(&format!("{} is no folder: a recipe is trained by `mdlc run`", common.recipe.display()));
        return Err(exit::USAGE);
    }
    let arrays = arrays(matches, "inputs")?;
    let optimizer: String = given(matches, "optimizer");
    let adapter = adapter(matches);
    let steps = (optimizer.as_str(), given(matches, "steps"));
    let tuned = load::tune(common, &described(&arrays), steps, adapter.as_deref());
    let (loaded, tuned) = made(tuned, common, color)?;
    let steps = || -> Result<(), RunError> {
        let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
        let (program, stop) = (Program::default(), AtomicBool::new(false));
        let mut nobody = |_: Event| {};
        let run = Run::new(&program, common.base(), common.out(), cpu, &stop, &mut nobody);
        let mut losses = Vec::new();
        let tensors = tune::tune(&tuned, &arrays, &run, |loss| losses.push(loss))?;
        match &tuned.adapters {
            Some(adapters) => write_adapters(adapters, &|path| tensors.get(path.as_str()), &to(common))?,
            None => export(&common.recipe, &to(common), &tune::in_files(&tuned.spec, &tensors))?,
        }
        print_line(&json!({ "losses": losses }).to_string());
        Ok(())
    };
    steps().map_err(|error| failed(&error, &loaded, common, color))
}

/// Where the result goes: beside the folder, unless it is said.
fn to(common: &Common) -> PathBuf {
    let name = common.recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    common.out.clone().unwrap_or_else(|| common.recipe.with_file_name(format!("{name}-tuned")))
}
