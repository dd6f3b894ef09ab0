//! `mdlc build RECIPE --emit=…`: what each step of the compiler makes of a recipe.

use clap::ArgMatches;
use mdl_compiler::budget::StepError;
use mdl_compiler::pass::{PASSES, Pass, prepare_watched};
use mdl_compiler::plan::{GroupReport, Report};
use mdl_graph::Graph;
use mdl_lang::diag::Diagnostic;
use mdl_runtime::device::{Machine, options};
use mdl_runtime::programs::plan_stage;
use mdl_runtime::refuse::refused;

use super::{fail, given, loaded, train_stage};
use crate::args::Common;
use crate::exit;
use crate::load::Loaded;
use crate::progress::print_line;

/// What `--emit` takes, in the order of the compiler's road.
pub(crate) const EMITS: [&str; 10] =
    ["ast", "program", "graph", "fused", "kernels", "clif", "cuda", "ptx", "sass", "plan"];

pub(super) fn build(common: &Common, matches: &ArgMatches, color: bool) -> u8 {
    let loaded = match loaded(common, color) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let emit: String = given(matches, "emit");
    let stage = matches.get_one::<String>("stage").map(String::as_str);
    let pass = matches.get_one::<String>("dump-after").map(String::as_str);
    let machine = Machine::here(common.threads).on(common.device(&loaded.program));
    match text(&loaded, &emit, stage, pass, machine, given(matches, "arch"), common.json) {
        Ok(text) => {
            print_line(text.trim_end());
            0
        }
        Err(Wrong::Plain(message)) => {
            fail(&message);
            exit::USAGE
        }
        Err(Wrong::Refused(diagnostic)) => super::refused(&diagnostic, &loaded, common, color),
    }
}

/// Why there is nothing to print.
enum Wrong {
    /// What the flags ask for is not there.
    Plain(String),
    Refused(Box<Diagnostic>),
}

impl From<String> for Wrong {
    fn from(message: String) -> Wrong {
        Wrong::Plain(message)
    }
}

fn text(
    loaded: &Loaded,
    emit: &str,
    stage: Option<&str>,
    pass: Option<&str>,
    machine: Machine,
    arch: u32,
    as_json: bool,
) -> Result<String, Wrong> {
    let step = |error: StepError| match train_stage(loaded, stage) {
        Ok((stage, spec)) => Wrong::Refused(Box::new(refused(spec, stage.span, &error))),
        Err(message) => Wrong::Plain(message),
    };
    if let Some(pass) = pass {
        let (_, spec) = train_stage(loaded, stage)?;
        if !PASSES.iter().any(|known| known.name == pass) {
            let names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
            return Err(format!("there is no pass `{pass}`; there are {}", names.join(", ")).into());
        }
        let mut dump = String::new();
        let mut watch = |done: &Pass, graph: &Graph| {
            if done.name == pass {
                dump = graph.to_string();
            }
        };
        prepare_watched(&spec.step, &options(spec), &mut watch).map_err(|error| step(error.into()))?;
        return Ok(dump);
    }
    let json = |error: serde_json::Error| Wrong::Plain(error.to_string());
    match emit {
        "ast" => {
            let source = loaded.sources.get(loaded.main).map_or("", |source| source.text.as_str());
            let (file, _) = mdl_lang::syntax::parse(loaded.main, source);
            serde_json::to_string_pretty(&file).map_err(json)
        }
        "program" => serde_json::to_string_pretty(&loaded.program).map_err(json),
        "graph" if as_json => serde_json::to_string(&train_stage(loaded, stage)?.1.step).map_err(json),
        "graph" => Ok(train_stage(loaded, stage)?.1.step.to_string()),
        _ => {
            let plan = plan_stage(train_stage(loaded, stage)?.1, machine).map_err(step)?.step;
            match emit {
                "fused" if as_json => serde_json::to_string(&plan.report.groups).map_err(json),
                "kernels" if as_json => serde_json::to_string(&plan.kernels).map_err(json),
                "plan" if as_json => serde_json::to_string(&plan).map_err(json),
                "fused" => Ok(groups(&plan.report)),
                "kernels" => Ok(plan.kernels.iter().map(|kernel| format!("{kernel}\n")).collect()),
                "clif" => {
                    let clif = plan.kernels.iter().map(mdl_codegen::clif).collect::<Result<Vec<_>, _>>();
                    Ok(clif.map_err(|error| error.to_string())?.concat())
                }
                "cuda" | "ptx" | "sass" => {
                    let program = mdl_codegen::cuda::program(&plan.kernels).map_err(|error| error.to_string())?.text;
                    match emit {
                        "ptx" => Ok(mdl_gpu::ptx(&program, arch).map_err(|error| error.to_string())?),
                        "sass" => Ok(mdl_gpu::sass(&program, arch).map_err(|error| error.to_string())?),
                        _ => Ok(program),
                    }
                }
                _ => Ok(plan.to_string()),
            }
        }
    }
}

/// One line for each launch of the plan's text.
fn groups(report: &Report) -> String {
    let mut text =
        format!("{:>6} {:>5} {:>12} {:>12} {:>12}  kernel over its domain\n", "runs", "ops", "unfused B", "B", "FLOP");
    for group in &report.groups {
        let GroupReport { name, domain, members, runs, bytes_before, bytes_after, flops } = group;
        text.push_str(&format!(
            "{runs:>6} {members:>5} {bytes_before:>12} {bytes_after:>12} {flops:>12}  {name} [{domain}]\n"
        ));
    }
    text
}
