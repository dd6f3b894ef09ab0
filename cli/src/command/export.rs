//! `mdlc export RECIPE --to DIR`: the folder that a stage's model was loaded from, with the weights that the stage has trained.

use clap::ArgMatches;
use mdl_runtime::export::export_stage;

use super::{fail, failed, loaded, path, train_stages};
use crate::args::Common;
use crate::exit;

pub(super) fn export(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let loaded = loaded(common, color)?;
    let asked = matches.get_one::<String>("stage").map(String::as_str);
    let Some((stage, _)) =
        train_stages(&loaded).filter(|(stage, _)| asked.is_none_or(|name| name == stage.name)).last()
    else {
        fail("the recipe has no such train stage");
        return Err(exit::USAGE);
    };
    export_stage(&loaded.program, &stage.name, &common.base(), &common.out(), &path(matches, "to"))
        .map_err(|error| failed(&error, &loaded, common, color))
}
