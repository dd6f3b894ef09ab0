//! `mdlc apply RECIPE|DIR --inputs in.npz --outputs out.npz`: a model on arrays.

use std::path::PathBuf;

use clap::ArgMatches;
use mdl_lang::stage::{Array, ArrayKind, Asked};
use mdl_runtime::apply;
use mdl_runtime::device::Cpu;
use mdl_runtime::error::RunError;
use mdl_runtime::npz::{self, Kind};
use serde_json::{Map, Value, json};

use super::{fail, failed, report};
use crate::args::Common;
use crate::exit;
use crate::load;
use crate::progress::print_line;

pub(super) fn apply(common: &Common, matches: &ArgMatches, color: bool) -> u8 {
    let arrays = match npz::read(&path(matches, "inputs")) {
        Ok(arrays) => arrays,
        Err(error) => {
            fail(&error.to_string());
            return exit::WRONG;
        }
    };
    let asked =
        Asked { stage: matches.get_one::<String>("stage").map(String::as_str), gradients: matches.get_flag("loss") };
    let (loaded, applied) = match load::apply(common, &described(&arrays), asked) {
        Ok(loaded) => loaded,
        Err(message) => {
            fail(&message);
            return exit::WRONG;
        }
    };
    report(&loaded.diagnostics, &loaded.sources, common.json, color);
    let Some(applied) = applied else { return exit::WRONG };
    let run = || -> Result<(), RunError> {
        let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
        let outcome = apply::apply(&applied, &arrays, &common.base(), &common.out(), &cpu)?;
        if matches.contains_id("outputs") {
            npz::write(&path(matches, "outputs"), &outcome.results)?;
        }
        if asked.gradients {
            let loss = outcome.results.iter().find(|result| result.name == "loss");
            let norms: Map<String, Value> =
                outcome.gradient_norms.iter().map(|(name, norm)| (name.clone(), json!(norm))).collect();
            let loss = loss.map(|loss| loss.float(0));
            print_line(&json!({ "loss": loss, "grad_norms": norms }).to_string());
        }
        Ok(())
    };
    match run() {
        Ok(()) => 0,
        Err(error) => failed(&error, &loaded, common, color),
    }
}

/// The file that a flag names.
pub(super) fn path(matches: &ArgMatches, name: &str) -> PathBuf {
    matches.get_one::<PathBuf>(name).cloned().unwrap_or_default()
}

/// What the checker is told of arrays.
pub(super) fn described(arrays: &[npz::Array]) -> Vec<Array> {
    let described = arrays.iter().map(|array| Array {
        name: array.name.clone(),
        kind: match array.kind {
            Kind::Bool => ArrayKind::Bool,
            Kind::Int { .. } => ArrayKind::Int,
            Kind::Float { .. } => ArrayKind::Float,
        },
        shape: array.shape.clone(),
    });
    described.collect()
}
