//! `mdlc export RECIPE --to DIR`: the folder that a stage's model was loaded from, with the weights that the stage has trained; of a stage
//! with adapters these alone, as PEFT keeps them.

use clap::ArgMatches;
use mdl_runtime::export::{export_adapters, export_stage};

use super::{ended, failed, last_stage, loaded, made, path};
use crate::args::Common;
use crate::load;

pub(super) fn export(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let loaded = loaded(common, color)?;
    let asked = matches.get_one::<String>("stage").map(String::as_str);
    let (stage, _) = last_stage(&loaded, asked).map_err(|error| ended(&error))?;
    let (_, saved) = made(load::saved(common, Some(&stage.name)), common, color)?;
    let (base, out, to) = (common.base(), common.out(), path(matches, "to"));
    let written = match &saved {
        Some(saved) => export_adapters(&loaded.program, &stage.name, saved, (&base, &out), &to),
        None => export_stage(&loaded.program, &stage.name, &base, &out, &to),
    };
    written.map_err(|error| failed(&error, &loaded, common, color))
}
