//! `mdlc generate DIR --ids in.npz --new N --greedy`: ids after ids, without a text in between.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use mdl_data::Problem;
use mdl_runtime::device::{Cpu, Tensors};
use mdl_runtime::error::RunError;
use mdl_runtime::generate::Generator;
use mdl_runtime::kept::Keep;
use mdl_runtime::npz::{self, Array};
use mdl_runtime::stage::train::{load_origins, orders_of};

use super::writer::choice;
use super::{arrays, ended, failed, given, made, path};
use crate::args::Common;
use crate::load;
use crate::progress::print_line;

/// Writes `sequences`, the prompts with what follows them.
pub(super) fn generate(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let arrays = arrays(matches, "ids")?;
    let prompts = prompts(&path(matches, "ids"), &arrays).map_err(|problem| ended(&problem.into()))?;
    let new: u64 = given(matches, "new");
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) as u64;
    let (loaded, (forward, reads)) = made(load::forward(common, longest + new), common, color)?;
    let write = || -> Result<(), RunError> {
        let cpu = Cpu::new(common.threads)?.on(common.device(&loaded.program))?;
        let orders = orders_of(&reads).collect();
        let keep = Keep { kept: &[], rest: given(matches, "weights") };
        let mut generator = Generator::new(&forward, &orders, keep, 0, &cpu)?;
        let mut tensors = Tensors::new();
        let origins = || reads.iter().map(|read| (&read.input, &read.origin));
        generator
            .load(&mut tensors, &cpu, |tensors| load_origins(&common.base(), &common.out(), origins(), tensors))?;
        let mut sequences = Vec::new();
        for prompt in &prompts {
            let mut ids: Vec<u32> = prompt.clone();
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

/// The rows of `input_ids`, each without what its `attention_mask` leaves out.
fn prompts(file: &Path, arrays: &[Array]) -> Result<Vec<Vec<u32>>, Problem> {
    let wrong = |message: String| Problem::new("E0505", message).at(file);
    let Some(ids) = arrays.iter().find(|array| array.name == "input_ids") else {
        return Err(wrong("there is no array `input_ids`".to_string()));
    };
    let [rows, length] = ids.shape[..] else {
        return Err(wrong(format!("`input_ids` has {} dimensions, and rows of ids have 2", ids.shape.len())));
    };
    let mask = arrays.iter().find(|array| array.name == "attention_mask");
    if mask.is_some_and(|mask| mask.shape != ids.shape) {
        return Err(wrong("`attention_mask` has another shape than `input_ids`".to_string()));
    }
    let mut prompts = Vec::new();
    for row in 0..rows as usize {
        let own = (0..length as usize).map(|at| row * length as usize + at);
        let there = own.filter(|at| mask.is_none_or(|mask| mask.int(*at) != 0));
        let ids: Result<Vec<u32>, _> = there.map(|at| u32::try_from(ids.int(at))).collect();
        prompts.push(ids.map_err(|_| wrong("`input_ids` holds a number below 0".to_string()))?);
    }
    Ok(prompts)
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
