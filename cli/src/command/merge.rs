//! `mdlc merge RECIPE|DIR [--adapter DIR] --to DIR`: adapters folded into the folder of the model that they are of, and the largest change
//! that this makes to a logit.

use clap::ArgMatches;
use mdl_lang::stage::{Array, ArrayKind, Asked};
use mdl_runtime::device::Cpu;
use mdl_runtime::error::RunError;
use mdl_runtime::{apply, merge, npz};
use serde_json::json;

use super::apply::adapter;
use super::{failed, made, note, path};
use crate::args::Common;
use crate::load;
use crate::progress::print_line;

/// What logits are compared on: so many rows of so many ids, under the name that `transformers` has for them.
const IDS: (u64, u64) = (4, 16);
const NAME: &str = "input_ids";

pub(super) fn merge(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let (stage, adapter, to) = (matches.get_one::<String>("stage"), adapter(matches), path(matches, "to"));
    let asked = (stage.map(String::as_str), adapter.as_deref());
    let (loaded, merged) = made(load::merge(common, asked), common, color)?;
    let run = || -> Result<(), RunError> {
        let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
        let before = logits(common, asked, None, &cpu)?;
        merge::merge(&merged, (&common.base(), &common.out()), &to, &cpu)?;
        let folder = Common { recipe: to.clone(), out: Some(common.out()), given: Vec::new(), ..*common };
        let after = match &before {
            Some((ids, _)) => logits(&folder, (None, None), Some(ids), &cpu)?,
            None => None,
        };
        let n = merged.folds.len();
        let compared = before.zip(after).map(|((_, before), (_, after))| merge::apart(&before, &after));
        if compared.is_none() {
            note("logits are not compared: the model gives none for a row of `input_ids`");
        }
        let Some((change, most)) = compared.filter(|_| !common.json) else {
            let (change, most) = compared.unzip();
            print_line(&json!({ "folded": n, "largest_change": change, "largest_logit": most }).to_string());
            return Ok(());
        };
        print_line(&format!(
            "folded adapters into {n} weights of {}: no logit changes by more than {change:.1e}, and the largest is {most:.3} ({} ids, drawn by seed 0)",
            to.display(),
            IDS.0 * IDS.1
        ));
        Ok(())
    };
    run().map_err(|error| failed(&error, &loaded, common, color))
}

/// The ids, those given or drawn, and the model's logits of them; `None` of a model that has none.
fn logits(
    common: &Common,
    (stage, adapter): (Option<&str>, Option<&str>),
    ids: Option<&npz::Array>,
    cpu: &Cpu,
) -> Result<Option<(npz::Array, npz::Array)>, RunError> {
    let array = Array { name: NAME.to_string(), kind: ArrayKind::Int, shape: vec![IDS.0, IDS.1] };
    let asked = Asked { stage, gradients: false, adapter };
    let Ok((_, Some(applied))) = load::apply(common, &[array], asked) else { return Ok(None) };
    let Some(ids) = ids.cloned().or_else(|| merge::ids(&applied.graph, NAME, IDS)) else { return Ok(None) };
    let results = apply::apply(&applied, std::slice::from_ref(&ids), &common.base(), &common.out(), cpu)?.results;
    Ok(results.into_iter().find(|result| result.name == "logits").map(|logits| (ids, logits)))
}
