//! `mdlc apply RECIPE|DIR --inputs in.npz --outputs out.npz`: a model on arrays.

use std::path::PathBuf;

use clap::ArgMatches;
use mdl_lang::stage::{Array, ArrayKind, Asked};
use mdl_runtime::apply;
use mdl_runtime::device::Cpu;
use mdl_runtime::error::RunError;
use mdl_runtime::npz::{self, Kind};
use serde_json::{Map, Value, json};

use super::{arrays, failed, made, path};
use crate::args::Common;
use crate::load;
use crate::progress::print_line;

pub(super) fn apply(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let arrays = arrays(matches, "inputs")?;
    let adapter = adapter(matches);
    let asked = Asked {
        stage: matches.get_one::<String>("stage").map(String::as_str),
        gradients: matches.get_flag("loss"),
        adapter: adapter.as_deref(),
    };
    let (loaded, applied) = made(load::apply(common, &described(&arrays), asked), common, color)?;
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
    run().map_err(|error| failed(&error, &loaded, common, color))
}

/// The folder of an adapter, wherever the recipe is.
pub(super) fn adapter(matches: &ArgMatches) -> Option<String> {
    let folder = matches.get_one::<PathBuf>("adapter")?;
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
    Some(folder.to_string_lossy().into_owned())
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
