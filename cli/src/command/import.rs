//! `mdlc import DIR|config.json`: the recipe of a published model, and what of its configuration means nothing to it.

use std::path::PathBuf;

use clap::ArgMatches;

use super::{fail, made};
use crate::args::Common;
use crate::exit;
use crate::load;
use crate::progress::print_line;

pub(super) fn import(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let mut common = common.clone();
    if common.recipe.file_name().is_some_and(|name| name == "config.json") {
        let folder = common.recipe.canonicalize().ok().and_then(|path| path.parent().map(PathBuf::from));
        common.recipe = folder.unwrap_or_default();
    }
    if !common.recipe.join("config.json").is_file() {
        fail(&format!("{} is no folder with a config.json", common.recipe.display()));
        return Err(exit::WRONG);
    }
    let (_, unread) = made(load::import(&common), &common, color)?;
    if !unread.is_empty() {
        fail(&format!("these keys of config.json mean nothing to the library: {}", unread.join(", ")));
        return Err(exit::WRONG);
    }
    let name = common.recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let recipe = load::of_folder(&name);
    let Some(to) = matches.get_one::<PathBuf>("to") else {
        print_line(recipe.trim_end());
        return Ok(());
    };
    mdl_data::atomic::write(to, recipe.as_bytes()).map_err(|error| {
        fail(&format!("writing {} failed: {error}", to.display()));
        exit::FAILED
    })
}
