//! `mdlc run RECIPE`: runs what is not up to date.

use std::sync::atomic::{AtomicBool, Ordering};

use mdl_runtime::device::{Cpu, Peaks};
use mdl_runtime::run::Run;

use super::{fail, failed, loaded, note};
use crate::args::Common;
use crate::exit;
use crate::progress::{Mode, Progress};

/// Set by Ctrl-C, read between steps.
static STOP: AtomicBool = AtomicBool::new(false);

pub(super) fn run(common: &Common, color: bool) -> u8 {
    let loaded = match loaded(common, color) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if loaded.program.stages.is_empty() {
        fail("the recipe has no stage to run: it needs a `data` and a `train` block");
        return exit::WRONG;
    }
    let mode = match (common.json, common.quiet) {
        (true, _) => Mode::Json,
        (_, true) => Mode::Quiet,
        _ => Mode::Person,
    };
    // The first Ctrl-C saves and stops, the second ends at once.
    let handler = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(exit::FAILED));
        }
    });
    if let Err(error) = handler {
        fail(&format!("cannot listen for Ctrl-C: {error}"));
        return exit::FAILED;
    }
    let cpu = match Cpu::new(common.threads).and_then(|cpu| cpu.on(common.device(&loaded.program))) {
        Ok(cpu) => cpu,
        Err(error) => {
            fail(&error.to_string());
            return exit::FAILED;
        }
    };
    if let (Mode::Person, Some(why)) = (mode, &cpu.no_card) {
        note(&format!("this runs on the processor: {why}"));
    }
    // Without a figure the share is left out.
    let peak = if mode == Mode::Person { Peaks::flops(&cpu).unwrap_or(0.0) } else { 0.0 };
    let mut progress = Progress::new(mode, peak);
    let mut run = Run::new(&loaded.program, common.base(), common.out(), cpu, &STOP, &mut progress);
    run.seed = common.seed;
    let ended = run.run();
    match ended {
        Ok(()) => {
            progress.finish(&common.out());
            0
        }
        Err(error) => failed(&error, &loaded, common, color),
    }
}
