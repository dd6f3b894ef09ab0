//! The commands, one function each. Each gives the process's exit code.

mod apply;
pub(crate) mod build;
mod chat;
mod check;
mod explain;
mod export;
mod fmt;
mod generate;
mod ids;
mod import;
mod merge;
mod profile;
mod run;
mod tune;
mod verify;
mod writer;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::ArgMatches;
use mdl_lang::diag::{Diagnostic, Sources};
use mdl_lang::spec::{Stage, StageKind, TrainSpec};
use mdl_runtime::error::RunError;
use mdl_runtime::npz::{self, Array};

use crate::args::{self, Common};
use crate::load::{self, Loaded};
use crate::{exit, paint};

pub(crate) fn main(words: Vec<OsString>) -> u8 {
    let command = args::command(&[]);
    let recipe_args = args::find_recipe(&command, &words).map(|path| load::recipe_args(&path)).unwrap_or_default();
    // Flags that every command has cannot be those of a recipe.
    let taken = |name: &str| {
        let subcommands = command.get_subcommands().filter(|command| args::ON_RECIPES.contains(&command.get_name()));
        subcommands.flat_map(|command| command.get_arguments()).any(|arg| arg.get_long() == Some(name))
            || name == "help"
    };
    if let Some(arg) = recipe_args.iter().find(|arg| taken(&arg.name.replace('_', "-"))) {
        fail(&format!("the recipe's `arg {}` has the name of a flag of mdlc: give it another name", arg.name));
        return exit::WRONG;
    }
    let matches = match args::command(&recipe_args).try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) => {
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return code;
        }
    };
    let color = match matches.get_one::<String>("color").map(String::as_str) {
        Some("always") => true,
        Some("never") => false,
        _ => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    match matches.subcommand() {
        Some(("run", matches)) => run::run(&Common::of(matches, &recipe_args), color),
        Some(("check", matches)) => check::check(&Common::of(matches, &recipe_args), color),
        Some(("build", matches)) => build::build(&Common::of(matches, &recipe_args), matches, color),
        Some(("profile", matches)) => profile::run(&Common::of(matches, &recipe_args), matches, color),
        Some(("generate", matches)) => code(generate::generate(&Common::of(matches, &recipe_args), matches, color)),
        Some(("chat", matches)) => code(chat::chat(&Common::of(matches, &recipe_args), matches, color)),
        Some(("apply", matches)) => code(apply::apply(&Common::of(matches, &recipe_args), matches, color)),
        Some(("tune", matches)) => code(tune::tune(&Common::of(matches, &recipe_args), matches, color)),
        Some(("import", matches)) => code(import::import(&Common::of(matches, &recipe_args), matches, color)),
        Some(("export", matches)) => code(export::export(&Common::of(matches, &recipe_args), matches, color)),
        Some(("merge", matches)) => code(merge::merge(&Common::of(matches, &recipe_args), matches, color)),
        Some(("verify", matches)) => code(verify::verify(&Common::of(matches, &recipe_args), matches, color)),
        Some(("fmt", matches)) => fmt::fmt(matches, color),
        Some(("explain", matches)) => explain::explain(matches),
        _ => exit::USAGE,
    }
}

/// The exit code of a command that gives it early where something is wrong.
fn code(done: Result<(), u8>) -> u8 {
    done.err().unwrap_or(0)
}

/// One line on standard error.
pub(crate) fn fail(message: &str) {
    let _ = writeln!(std::io::stderr(), "error: {message}");
}

/// What is good to know, and no mistake.
pub(crate) fn note(message: &str) {
    let _ = writeln!(std::io::stderr(), "note: {message}");
}

/// Says why a run ended early, and gives the exit code.
pub(crate) fn failed(error: &RunError, loaded: &Loaded, common: &Common, color: bool) -> u8 {
    match error {
        RunError::Recipe(diagnostic) => refused(diagnostic, loaded, common, color),
        error => ended(error),
    }
}

/// The same of what has no place in a recipe.
fn ended(error: &RunError) -> u8 {
    match error {
        // Problems of the data say themselves what they are.
        RunError::Data(problems) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            // Where there is no room, nothing is wrong with the data.
            if problems.iter().all(|problem| problem.code == mdl_data::problem::CACHE) {
                exit::FAILED
            } else {
                exit::WRONG
            }
        }
        RunError::Recipe(_) => {
            fail(&error.to_string());
            exit::WRONG
        }
        RunError::Usage(message) => {
            fail(message);
            exit::USAGE
        }
        RunError::Failed { .. } => {
            fail(&error.to_string());
            exit::FAILED
        }
        // Asked for, and still not done.
        RunError::Interrupted { .. } => {
            let _ = writeln!(std::io::stderr(), "{error}");
            exit::FAILED
        }
    }
}

/// What is wrong with a recipe that only the compiler sees.
pub(crate) fn refused(diagnostic: &Diagnostic, loaded: &Loaded, common: &Common, color: bool) -> u8 {
    report(std::slice::from_ref(diagnostic), &loaded.sources, common.json, color);
    exit::WRONG
}

/// Reads and checks a recipe and says what is wrong with it. `Err` is the exit code.
pub(crate) fn loaded(common: &Common, color: bool) -> Result<Loaded, u8> {
    let cache = common.out().join("cache");
    let loaded = load::check(common, Some(&cache)).map(|loaded| (loaded, Some(())));
    made(loaded, common, color).map(|(loaded, ())| loaded)
}

/// Says what is wrong with a recipe, and gives what was made of it. `Err` is the exit code.
fn made<T>(result: Result<(Loaded, Option<T>), String>, common: &Common, color: bool) -> Result<(Loaded, T), u8> {
    let (loaded, made) = result.map_err(|message| {
        fail(&message);
        exit::WRONG
    })?;
    report(&loaded.diagnostics, &loaded.sources, common.json, color);
    match made {
        Some(made) if !loaded.has_errors() => Ok((loaded, made)),
        _ => Err(exit::WRONG),
    }
}

/// The arrays of the file that a flag names. `Err` is the exit code.
fn arrays(matches: &ArgMatches, flag: &str) -> Result<Vec<Array>, u8> {
    npz::read(&path(matches, flag)).map_err(|error| ended(&error))
}

/// The file that a flag names.
fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

fn report(diagnostics: &[Diagnostic], sources: &Sources, json: bool, color: bool) {
    if json {
        for diagnostic in diagnostics {
            crate::progress::print_line(&paint::json(diagnostic, sources).to_string());
        }
    } else if !diagnostics.is_empty() {
        let _ = write!(std::io::stderr(), "{}", paint::paint(diagnostics, sources, color));
    }
}

/// All train stages, in an order in which they run.
pub(crate) fn train_stages(loaded: &Loaded) -> impl Iterator<Item = (&Stage, &TrainSpec)> {
    loaded.program.stages.iter().filter_map(|stage| match &stage.kind {
        StageKind::Train(spec) => Some((stage, spec.as_ref())),
        _ => None,
    })
}

/// The train stage of that name, or all of them: one at least.
pub(crate) fn asked_stages<'a>(
    loaded: &'a Loaded,
    name: Option<&str>,
) -> Result<Vec<(&'a Stage, &'a TrainSpec)>, String> {
    let found: Vec<_> = train_stages(loaded).filter(|(stage, _)| name.is_none_or(|name| name == stage.name)).collect();
    match (found.is_empty(), name) {
        (false, _) => Ok(found),
        (true, Some(name)) => Err(format!("the recipe has no train stage `{name}`")),
        (true, None) => Err("the recipe has no train stage".to_string()),
    }
}

/// The train stage of that name, or the first.
pub(crate) fn train_stage<'a>(loaded: &'a Loaded, name: Option<&str>) -> Result<(&'a Stage, &'a TrainSpec), String> {
    asked_stages(loaded, name).map(|found| found[0])
}

/// The train stage of that name, or the last.
fn last_stage<'a>(loaded: &'a Loaded, name: Option<&str>) -> Result<(&'a Stage, &'a TrainSpec), RunError> {
    asked_stages(loaded, name).map(|found| found[found.len() - 1]).map_err(RunError::Usage)
}

/// A number given by a flag that has a default.
pub(crate) fn given<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> T {
    match matches.get_one::<T>(name) {
        Some(value) => value.clone(),
        None => mdl_graph::bug!("`--{name}` has no default"),
    }
}
