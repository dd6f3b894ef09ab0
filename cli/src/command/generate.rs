//! `mdlc generate RECIPE|DIR --prompt TEXT`: text from a trained stage, or from the model of a folder.

use std::io::Write;

use clap::ArgMatches;
use serde_json::json;

use super::writer::{self, Writer};
use super::{ended, fail, given, note};
use crate::args::Common;
use crate::exit;
use crate::progress::print_line;

pub(super) fn generate(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    if matches.contains_id("ids") {
        return super::ids::generate(common, matches, color);
    }
    let (author, draft) = writer::authors(common, matches, color)?;
    let begin = given::<String>(matches, "prompt");
    let prompt = author.begin(&begin).map_err(|error| ended(&error))?;
    if prompt.is_empty() {
        fail("the prompt is empty; the model needs a token to begin with");
        return Err(exit::USAGE);
    }
    let room = prompt.len() as u64 + given::<u64>(matches, "new");
    let mut writer = Writer::new((&author, draft.as_ref()), matches, room, color)?;
    let mut out = std::io::stdout();
    if !common.json {
        let _ = write!(out, "{begin}");
    }
    let ends = author.ends();
    let mut stream = author.tokenizer.stream();
    let (mut written, mut n_tokens) = (String::new(), 0_u64);
    let drafted = writer.write(&prompt, |id| {
        n_tokens += 1;
        let text = stream.push(id);
        if common.json {
            written.push_str(&text);
            return !ends.contains(&id);
        }
        // A reader that has gone away ends the text.
        write!(out, "{text}").and_then(|()| out.flush()).is_ok() && !ends.contains(&id)
    });
    let drafted = drafted.map_err(|error| ended(&error))?;
    if common.json {
        let mut line = json!({ "stage": author.name, "prompt": begin, "text": written, "tokens": n_tokens });
        if draft.is_some() {
            line["proposed"] = json!(drafted.proposed);
            line["accepted"] = json!(drafted.accepted);
        }
        print_line(&line.to_string());
    } else {
        let _ = writeln!(out);
        if let Some(said) = writer::accepted(drafted).filter(|_| !common.quiet) {
            note(&said);
        }
    }
    Ok(())
}
