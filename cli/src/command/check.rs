//! `mdlc check RECIPE`: what is wrong, and what each stage costs.

use indicatif::HumanBytes;
use mdl_compiler::plan::Plan;
use mdl_lang::spec::{StageKind, TrainSpec};
use mdl_runtime::device::Machine;
use mdl_runtime::programs::{Programs, plan_stages};
use mdl_runtime::refuse;
use serde_json::{Value, json};

use super::{loaded, refused, train_stages};
use crate::args::Common;
use crate::progress::print_line;

pub(super) fn check(common: &Common, color: bool) -> u8 {
    let loaded = match loaded(common, color) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mut code = 0;
    let specs: Vec<&TrainSpec> = train_stages(&loaded).map(|(_, spec)| spec).collect();
    let mut planned = plan_stages(&specs, Machine::here(common.threads).on(common.device(&loaded.program))).into_iter();
    for stage in &loaded.program.stages {
        let StageKind::Train(spec) = &stage.kind else {
            if !common.json && !common.quiet {
                print_line(&format!("{} {}: ok", stage.kind.name(), stage.name));
            }
            continue;
        };
        let Some(programs) = planned.next() else { break };
        match programs {
            Ok(programs) if common.json => print_line(&as_json(&stage.name, spec, &programs).to_string()),
            Ok(programs) if !common.quiet => print_line(&as_text(&stage.name, spec, &programs)),
            Ok(_) => {}
            // The others are checked all the same.
            Err(error) => code = refused(&refuse::refused(spec, stage.span, &error), &loaded, common, color),
        }
    }
    code
}

/// Tokens of a batch; rows where there are no tokens.
fn tokens(spec: &TrainSpec, plan: &Plan) -> u64 {
    plan.input("ids").map_or(spec.batch, |port| port.count())
}

/// The bytes at the peak by what they are for. Evaluations and samples are beside the step: what they take more than it.
fn parts(programs: &Programs) -> impl Iterator<Item = (&'static str, u64)> {
    let step = programs.step.report.bytes.iter().map(|(category, bytes)| (category.name(), *bytes));
    step.chain([("evaluation", programs.memory.evaluation), ("samples", programs.memory.samples)])
}

fn as_text(name: &str, spec: &TrainSpec, programs: &Programs) -> String {
    let report = &programs.step.report;
    let per_token = report.flops as f64 / tokens(spec, &programs.step).max(1) as f64;
    let mut text = format!("train {name}: ok\n");
    text.push_str(&format!("  parameters   {}\n", report.parameters));
    text.push_str(&format!(
        "  work         {:.3} MFLOP per token, {:.3} GFLOP per step\n",
        per_token / 1e6,
        report.flops as f64 / 1e9
    ));
    text.push_str(&format!("  peak memory  {}\n", HumanBytes(programs.memory.peak_bytes())));
    for (part, bytes) in parts(programs).filter(|(_, bytes)| *bytes > 0) {
        text.push_str(&format!("    {part:<12} {}\n", HumanBytes(bytes)));
    }
    text.trim_end().to_string()
}

fn as_json(name: &str, spec: &TrainSpec, programs: &Programs) -> Value {
    let report = &programs.step.report;
    let bytes: serde_json::Map<String, Value> =
        parts(programs).map(|(part, bytes)| (part.to_string(), json!(bytes))).collect();
    json!({
        "stage": name, "parameters": report.parameters, "flops": report.flops,
        "flops_per_token": report.flops as f64 / tokens(spec, &programs.step).max(1) as f64,
        "peak_bytes": programs.memory.peak_bytes(), "bytes": bytes,
    })
}
