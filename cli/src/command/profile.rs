//! `mdlc profile RECIPE`: where the time of a training step, or of writing a token, goes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use clap::ArgMatches;
use mdl_runtime::device::Cpu;
use mdl_runtime::profile::{Profile, Row, profile, profile_decoder};
use mdl_runtime::run::{Run, write_file};
use serde_json::json;

use super::{fail, failed, given, loaded, train_stage};
use crate::args::Common;
use crate::exit;
use crate::progress::print_line;

/// Rows that take less of the step than this are told together.
const LEAST_SHARE: f64 = 0.005;

pub(super) fn run(common: &Common, matches: &ArgMatches, color: bool) -> u8 {
    let loaded = match loaded(common, color) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let (stage, spec) = match train_stage(&loaded, matches.get_one::<String>("stage").map(String::as_str)) {
        Ok(stage) => stage,
        Err(message) => {
            fail(&message);
            return exit::USAGE;
        }
    };
    let cpu = match Cpu::new(common.threads).and_then(|cpu| cpu.on(common.device(&loaded.program))) {
        Ok(cpu) => cpu,
        Err(error) => return failed(&error, &loaded, common, color),
    };
    let stop = AtomicBool::new(false);
    let mut ignore = |_| {};
    let mut run = Run::new(&loaded.program, common.base(), common.out(), cpu, &stop, &mut ignore);
    run.seed = common.seed;
    let decode = matches.get_flag("decode");
    let times = given(matches, "measure");
    let profile = match decode {
        true => profile_decoder(&mut run, &stage.name, spec, times, given(matches, "weights")),
        false => profile(&mut run, &stage.name, spec, times),
    };
    let profile = match profile {
        Ok(profile) => profile,
        Err(error) => return failed(&error, &loaded, common, color),
    };
    if common.json {
        print_json(&profile);
    } else {
        print_table(&profile, if decode { "token takes" } else { "step takes" });
    }
    match matches.get_one::<String>("trace").map(Path::new) {
        None => 0,
        Some(path) => match write_file(path, &profile.trace().to_string()) {
            Ok(()) => 0,
            Err(error) => failed(&error, &loaded, common, color),
        },
    }
}

fn print_json(profile: &Profile) {
    let step = json!({
        "step_ms": profile.seconds * 1e3, "batch_ms": profile.batch_seconds * 1e3, "threads": profile.threads, "card": profile.card,
        "peak_flops": profile.peaks.flops, "peak_bytes_per_s": profile.peaks.bytes,
    });
    print_line(&step.to_string());
    for row in &profile.rows {
        let line = json!({
            "kernel": row.kernel, "name": row.name, "launches": row.launches, "ms": row.seconds * 1e3,
            "flops_per_s": row.flops_per_second(), "bytes_per_s": row.bytes_per_second(),
            "lost_ms": (row.seconds - profile.bound(row)) * 1e3, "on_card": row.on_card,
        });
        print_line(&line.to_string());
    }
}

fn print_table(profile: &Profile, takes: &str) {
    let on = match &profile.card {
        Some(card) => card.clone(),
        None => format!("{} thread{}", profile.threads, if profile.threads == 1 { "" } else { "s" }),
    };
    let in_kernels: f64 = profile.rows.iter().map(|row| row.seconds).sum();
    print_line(&format!(
        "a {takes} {:.2} ms on {on}, and its inputs {:.2} ms; this machine: {:.0} GFLOP/s, {:.1} GB/s",
        profile.seconds * 1e3,
        profile.batch_seconds * 1e3,
        profile.peaks.flops / 1e9,
        profile.peaks.bytes / 1e9,
    ));
    print_line("");
    print_line("      ms   share  launches   GFLOP/s  of peak    GB/s  of peak  lost ms  kernel");
    let line = |row: &Row, label: &str| {
        let (flops, bytes) = (row.flops_per_second(), row.bytes_per_second());
        print_line(&format!(
            "{:8.3}  {:5.1}%  {:8}  {:8.1}   {:5.1}%  {:6.1}   {:5.1}% {:8.3}  {label}",
            row.seconds * 1e3,
            row.seconds / profile.seconds * 100.0,
            row.launches,
            flops / 1e9,
            flops / profile.peaks.flops * 100.0,
            bytes / 1e9,
            bytes / profile.peaks.bytes * 100.0,
            (row.seconds - profile.bound(row)) * 1e3,
        ));
    };
    let is_small = |row: &&Row| row.seconds < LEAST_SHARE * profile.seconds;
    for row in profile.rows.iter().filter(|row| !is_small(row)) {
        line(row, &format!("k{} {}", row.kernel, row.name));
    }
    let small: Vec<&Row> = profile.rows.iter().filter(is_small).collect();
    if !small.is_empty() {
        let sum = |of: fn(&Row) -> u64| small.iter().map(|row| of(row)).sum();
        let rest = Row {
            kernel: 0,
            name: String::new(),
            launches: sum(|row| row.launches),
            seconds: small.iter().map(|row| row.seconds).sum(),
            flops: sum(|row| row.flops),
            bytes: sum(|row| row.bytes),
            on_card: Vec::new(),
        };
        line(&rest, &format!("{} kernels of less than {}% each", small.len(), LEAST_SHARE * 100.0));
    }
    print_line(&format!(
        "{:8.3}  {:5.1}%  between launches",
        (profile.seconds - in_kernels) * 1e3,
        (1.0 - in_kernels / profile.seconds) * 100.0
    ));
    print_uses(profile);
}

/// What each kernel's launches take of a card.
fn print_uses(profile: &Profile) {
    if profile.rows.iter().all(|row| row.on_card.is_empty()) {
        return;
    }
    print_line("");
    print_line("  blocks  threads  registers  stack B  shared KiB  blocks at once  kernel");
    for row in &profile.rows {
        for launch in &row.on_card {
            print_line(&format!(
                "{:8}  {:7}  {:9}  {:7}  {:10.1}  {:14}  k{} {}",
                launch.blocks,
                launch.threads,
                launch.registers,
                launch.frame_bytes,
                launch.shared_bytes as f64 / 1024.0,
                launch.blocks_at_once,
                row.kernel,
                row.name
            ));
        }
    }
}
