//! `mdlc generate DIR --ids in.npz --new N --greedy`: ids after ids, without a text in between.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use mdl_data::Problem;
use mdl_lang::stage::Most;
use mdl_runtime::apply::check_positions;
use mdl_runtime::device::{Cpu, Tensors};
use mdl_runtime::error::RunError;
use mdl_runtime::npz::{self, Array};

use super::apply::described;
use super::writer::{choice, id_of, of_writes};
use super::{arrays, ended, failed, given, made, path};
use crate::args::Common;
use crate::load;
use crate::progress::print_line;

/// The argument in which an answer begins.
const ANSWER: &str = "decoder_input_ids";

/// Writes `sequences`: the prompts with what follows them, or of a model that answers what it is given, the answers.
pub(super) fn generate(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let file = path(matches, "ids");
    let arrays = arrays(matches, "ids")?;
    let rows_of = |name: &str| prompts(&file, &arrays, name).map_err(|problem| ended(&problem.into()));
    let new: u64 = given(matches, "new");
    let longest = |rows: &[Vec<u32>]| rows.iter().map(Vec::len).max().unwrap_or(0) as u64;
    let begun = rows_of(ANSWER)?;
    let texts = rows_of("input_ids")?;
    let most = Most {
        answering: begun.as_deref().map_or(1, longest) + new,
        going_on: texts.as_deref().map_or(1, longest) + new,
    };
    let about: Vec<Array> = arrays.into_iter().filter(|array| array.name != ANSWER).collect();
    let one: Vec<Array> = about.iter().map(|array| array.row(0)).collect();
    let (loaded, writes) = made(load::writes(common, &described(&one), most), common, color)?;
    let answers = !writes.given.is_empty();
    let rows = about.first().and_then(|array| array.shape.first()).copied().unwrap_or(0);
    let prompts = match (answers, begun, texts) {
        (true, Some(begun), _) => begun,
        (true, None, _) => {
            let start = first_id(common).map_err(|problem| ended(&problem.into()))?;
            vec![vec![start]; rows as usize]
        }
        (false, _, Some(texts)) => texts,
        (false, ..) => {
            let problem = Problem::new("E0505", "there is no array `input_ids`").at(&file);
            return Err(ended(&problem.into()));
        }
    };
    if prompts.len() as u64 != rows {
        let message = format!("`{ANSWER}` has {} rows, and the other arrays {rows}", prompts.len());
        return Err(ended(&Problem::new("E0505", message).at(&file).into()));
    }
    let write = || -> Result<(), RunError> {
        let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
        check_positions(&writes.graph, &about)?;
        let mut tensors = Tensors::new();
        let mut generator = of_writes(&writes, common, given(matches, "weights"), 0, &mut tensors, &cpu)?;
        let mut sequences = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            let mut ids: Vec<u32> = prompt.clone();
            generator.give(&mut tensors, &cpu, &writes.given, &about, row as u64)?;
            generator.generate(&mut tensors, &cpu, prompt, new, choice(common, matches), |id| {
                ids.push(id);
                true
            })?;
            sequences.push(ids);
        }
        write_ids(matches, &sequences)
    };
    write().map_err(|error| failed(&error, &loaded, common, color))
}

/// The id that answers of a folder's model begin with.
fn first_id(common: &Common) -> Result<u32, Problem> {
    const KEY: &str = "decoder_start_token_id";
    let in_file = |file: &str| load::of_json(&common.recipe, file, KEY).as_ref().and_then(id_of);
    in_file("generation_config.json").or_else(|| in_file("config.json")).ok_or_else(|| {
        Problem::new("E0505", format!("the model answers what it is given, and no `{KEY}` says how answers begin"))
            .at(&common.recipe)
            .help(format!("give `{ANSWER}`, rows of ids, beside the other arrays"))
    })
}

/// The rows of an array of ids, those of `input_ids` each without what `attention_mask` leaves out; `None` where there is no such array.
fn prompts(file: &Path, arrays: &[Array], name: &str) -> Result<Option<Vec<Vec<u32>>>, Problem> {
    let wrong = |message: String| Problem::new("E0505", message).at(file);
    let Some(ids) = arrays.iter().find(|array| array.name == name) else { return Ok(None) };
    let [rows, length] = ids.shape[..] else {
        return Err(wrong(format!("`{name}` has {} dimensions, and rows of ids have 2", ids.shape.len())));
    };
    let mask = arrays.iter().find(|array| name != ANSWER && array.name == "attention_mask");
    if mask.is_some_and(|mask| mask.shape != ids.shape) {
        return Err(wrong(format!("`attention_mask` has another shape than `{name}`")));
    }
    let mut prompts = Vec::new();
    for row in 0..rows as usize {
        let own = (0..length as usize).map(|at| row * length as usize + at);
        let there = own.filter(|at| mask.is_none_or(|mask| mask.int(*at) != 0));
        let ids: Result<Vec<u32>, _> = there.map(|at| u32::try_from(ids.int(at))).collect();
        prompts.push(ids.map_err(|_| wrong(format!("`{name}` holds a number below 0")))?);
    }
    Ok(Some(prompts))
}

/// As an array where all rows are of one length, in the file that `--outputs` names or as JSON.
fn write_ids(matches: &ArgMatches, sequences: &[Vec<u32>]) -> Result<(), RunError> {
    let Some(to) = matches.get_one::<PathBuf>("outputs") else {
        print_line(&serde_json::json!({ "sequences": sequences }).to_string());
        return Ok(());
    };
    let length = sequences.first().map_or(0, Vec::len);
    if sequences.iter().any(|ids| ids.len() != length) {
        let why = "prompts of several lengths make no array; without `--outputs` they are printed";
        return Err(RunError::Usage(why.to_string()));
    }
    let flat: Vec<i64> = sequences.iter().flatten().map(|id| i64::from(*id)).collect();
    npz::write(to, &[Array::i64s("sequences", vec![sequences.len() as u64, length as u64], &flat)])
}
