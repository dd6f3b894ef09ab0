//! `mdlc verify RECIPE`: whether the loss and the gradients of every train stage are the same in whatever way its step is computed.

use std::sync::atomic::AtomicBool;

use clap::ArgMatches;
use mdl_lang::spec::TrainSpec;
use mdl_runtime::device::Cpu;
use mdl_runtime::error::RunError;
use mdl_runtime::run::Run;
use mdl_runtime::verify::{CLOSE, Verifier, Way};
use serde_json::json;

use super::{asked_stages, fail, failed, loaded, made};
use crate::args::Common;
use crate::exit;
use crate::load::{self, Loaded};
use crate::progress::print_line;

pub(super) fn verify(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let loaded = loaded(common, color)?;
    let asked = matches.get_one::<String>("stage").map(String::as_str);
    let stages = asked_stages(&loaded, asked).map_err(|message| {
        fail(&message);
        exit::USAGE
    })?;
    let wrong = |error: RunError| failed(&error, &loaded, common, color);
    let cpu = Cpu::new(common.threads).and_then(|cpu| cpu.on(common.device(&loaded.program))).map_err(wrong)?;
    let (stop, mut nobody) = (AtomicBool::new(false), |_| {});
    let mut run = Run::new(&loaded.program, common.base(), common.out(), cpu, &stop, &mut nobody);
    run.seed = common.seed;
    let mut is_close = true;
    for (stage, _) in stages {
        let ways = of_stage(common, &loaded, &stage.name, &mut run, color)?;
        is_close &= ways.iter().all(Way::is_close);
    }
    if is_close { Ok(()) } else { Err(exit::WRONG) }
}

/// Makes the steps of one stage, and tells of each.
fn of_stage(common: &Common, loaded: &Loaded, name: &str, run: &mut Run<'_>, color: bool) -> Result<Vec<Way>, u8> {
    let wrong = |error: RunError| failed(&error, loaded, common, color);
    let spec = |batch| made(load::gradients(common, name, batch), common, color).map(|(_, spec): (_, TrainSpec)| spec);
    let plain = spec(None)?;
    let verifier = Verifier::new(&plain, run).map_err(wrong)?;
    if !common.json && !common.quiet {
        print_line(&format!("{name}: a batch of {}, loss {:.6}", plain.batch, verifier.loss()));
    }
    let mut ways = Vec::new();
    let mut tell = |way: Way| {
        print_way(common, name, &way);
        ways.push(way);
    };
    verifier.in_pieces(run).map_err(wrong)?.into_iter().for_each(&mut tell);
    tell(verifier.recomputing(run).map_err(wrong)?);
    tell(verifier.on_other_threads(run).map_err(wrong)?);
    if let Some(batch) = verifier.unpacked() {
        tell(verifier.one_a_row(&spec(Some(batch.rows()))?, &batch, run).map_err(wrong)?);
    }
    Ok(ways)
}

fn print_way(common: &Common, stage: &str, way: &Way) {
    if common.json {
        let line = match &way.apart {
            Ok(apart) => json!({
                "stage": stage, "way": way.name, "close": way.is_close(),
                "loss": apart.loss, "gradient": apart.gradient, "weight": apart.weight.as_str(),
            }),
            Err(why) => json!({ "stage": stage, "way": way.name, "left_out": why }),
        };
        return print_line(&line.to_string());
    }
    let said = match &way.apart {
        Ok(apart) if way.is_close() => {
            format!("the same: loss {:.1e}, gradients {:.1e} (at most {CLOSE:.0e})", apart.loss, apart.gradient)
        }
        Ok(apart) => {
            format!(
                "ANOTHER: loss {:.1e}, gradient of `{}` {:.1e} (at most {CLOSE:.0e})",
                apart.loss, apart.weight, apart.gradient
            )
        }
        Err(why) => format!("left out: {why}"),
    };
    if !common.quiet || !way.is_close() {
        print_line(&format!("  {:<28}  {said}", way.name));
    }
}
