//! `mdlc import DIR|config.json`: the recipe of a published model, and what of its configuration means nothing to it.

use std::path::PathBuf;

use clap::ArgMatches;

use super::{fail, report};
use crate::args::Common;
use crate::exit;
use crate::load;
use crate::progress::print_line;

pub(super) fn import(common: &Common, matches: &ArgMatches, color: bool) -> u8 {
    let mut common = common.clone();
    if common.recipe.file_name().is_some_and(|name| name == "config.json") {
        let folder = common.recipe.canonicalize().ok().and_then(|path| path.parent().map(PathBuf::from));
        common.recipe = folder.unwrap_or_default();
    }
    if !common.recipe.join("config.json").is_file() {
        fail(&format!("{} is no folder with a config.json", common.recipe.display()));
        return exit::WRONG;
    }
    let (loaded, unread) = match load::import(&common) {
        Ok(imported) => imported,
        Err(message) => {
            fail(&message);
            return exit::WRONG;
        }
    };
    report(&loaded.diagnostics, &loaded.sources, common.json, color);
    if loaded.has_errors() {
        return exit::WRONG;
    }
    if !unread.is_empty() {
        fail(&format!("these keys of config.json mean nothing to the library: {}", unread.join(", ")));
        return exit::WRONG;
    }
    let name = common.recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let recipe = load::of_folder(&name);
    match matches.get_one::<PathBuf>("to") {
        None => print_line(recipe.trim_end()),
        Some(to) => {
            if let Err(error) = mdl_data::atomic::write(to, recipe.as_bytes()) {
                fail(&format!("writing {} failed: {error}", to.display()));
                return exit::FAILED;
            }
        }
    }
    0
}
