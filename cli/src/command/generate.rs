//! `mdlc generate RECIPE --prompt TEXT`: text from a trained stage.

use std::io::Write;

use clap::ArgMatches;
use mdl_lang::spec::{StageKind, TrainSpec};
use mdl_runtime::checkpoint;
use mdl_runtime::device::{Cpu, Tensors};
use mdl_runtime::error::RunError;
use mdl_runtime::generate::{Choice, Generator};
use mdl_runtime::kept::Keep;
use mdl_runtime::stage::train;
use serde_json::json;

use super::{failed, given, loaded};
use crate::args::Common;
use crate::load::Loaded;
use crate::progress::print_line;

pub(super) fn generate(common: &Common, matches: &ArgMatches, color: bool) -> u8 {
    if matches.contains_id("ids") {
        return super::code(super::ids::generate(common, matches, color));
    }
    if common.recipe.is_dir() {
        let why =
            "a folder's model goes on with ids, `--ids FILE`; with text it does in a recipe that names its tokenizer";
        super::fail(why);
        return crate::exit::USAGE;
    }
    let loaded = match loaded(common, color) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    match write(common, matches, &loaded) {
        Ok(()) => 0,
        Err(error) => failed(&error, &loaded, common, color),
    }
}

fn write(common: &Common, matches: &ArgMatches, loaded: &Loaded) -> Result<(), RunError> {
    let name = matches.get_one::<String>("stage").map(String::as_str);
    let (stage, spec) = trained(loaded, name)?;
    let Some(forward) = &spec.forward else {
        return Err(RunError::failed(format!("writing text with `{stage}`"), "its model gives no logits for `ids`"));
    };
    let Some(StageKind::Data(data)) = loaded.program.stage(&spec.data).map(|stage| &stage.kind) else {
        mdl_graph::bug!("`{}` is no data stage", spec.data);
    };
    let dataset = mdl_data::prepare(data, &common.base(), Some(&common.out().join("cache")))?;
    let Some(tokenizer) = &dataset.tokenizer else {
        return Err(RunError::failed(format!("writing text with `{stage}`"), "its data has no tokenizer"));
    };
    let prompt = tokenizer.encode(&given::<String>(matches, "prompt"))?;
    if prompt.is_empty() {
        return Err(RunError::Usage("the prompt is empty; the model needs a token to begin with".to_string()));
    }
    let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
    let keep = Keep { kept: &spec.kept, rest: given(matches, "weights") };
    let mut generator = Generator::new(forward, &train::orders(spec), keep, &cpu)?;
    let mut tensors = Tensors::new();
    generator.allocate(&mut tensors);
    let folder = common.out().join(stage).join("checkpoints");
    // What the optimizer remembers is most of a checkpoint, and of no use here; a layer's states are.
    let has_states = spec.states.iter().any(|state| tensors.get(state.name.as_str()).is_some());
    let latest = if has_states { checkpoint::latest } else { checkpoint::latest_weights };
    let Some(found) = latest(&folder)? else {
        let why = format!(
            "there is no checkpoint in {}; train it first: `mdlc run {}`",
            folder.display(),
            common.recipe.display()
        );
        return Err(RunError::failed(format!("writing text with `{stage}`"), why));
    };
    generator.load(&mut tensors, &cpu, |tensors| {
        train::load_weights(&found, spec, tensors)?;
        train::load_reads(&common.base(), &common.out(), &spec.reads, tensors)
    })?;
    let choice = choice(common, matches);
    let mut out = std::io::stdout();
    let begin = given::<String>(matches, "prompt");
    if !common.json {
        let _ = write!(out, "{begin}");
    }
    let mut stream = tokenizer.stream();
    let (mut written, mut n_tokens) = (String::new(), 0_u64);
    generator.generate(&mut tensors, &cpu, &prompt, given(matches, "new"), choice, |id| {
        let text = stream.push(id);
        n_tokens += 1;
        if common.json {
            written.push_str(&text);
            return Some(id) != tokenizer.end_of_text();
        }
        // A reader that has gone away ends the text.
        write!(out, "{text}").and_then(|()| out.flush()).is_ok() && Some(id) != tokenizer.end_of_text()
    })?;
    if common.json {
        print_line(&json!({ "stage": stage, "prompt": begin, "text": written, "tokens": n_tokens }).to_string());
    } else {
        let _ = writeln!(out);
    }
    Ok(())
}

/// How tokens are chosen.
pub(super) fn choice(common: &Common, matches: &ArgMatches) -> Choice {
    Choice {
        temperature: if matches.get_flag("greedy") { 0.0 } else { given(matches, "temperature") },
        top_k: given::<u64>(matches, "top-k") as usize,
        top_p: given(matches, "top-p"),
        seed: common.seed.unwrap_or(0),
    }
}

fn trained<'a>(loaded: &'a Loaded, name: Option<&str>) -> Result<(&'a str, &'a TrainSpec), RunError> {
    let mut stages = loaded.program.stages.iter().rev().filter_map(|stage| match &stage.kind {
        StageKind::Train(spec) => Some((stage.name.as_str(), spec.as_ref())),
        _ => None,
    });
    let found = stages.find(|(stage, _)| name.is_none_or(|name| name == *stage));
    found.ok_or_else(|| {
        let why = match name {
            Some(name) => format!("the recipe has no train stage `{name}`"),
            None => "the recipe has no train stage".to_string(),
        };
        RunError::Usage(why)
    })
}
