//! `mdlc chat RECIPE|DIR`: a conversation with a trained stage or the model of a folder, in the terminal.
//!
//! A line is a message; the answer is printed as it is written. What the model is given is what it was trained on: the same template spells
//! both. An answer ends with the tokens or the text that end one there, or with `--stop`. `/clear` begins anew, `/system TEXT` says who
//! answers, `/quit` or the end of the input ends it. What was said before stays in the decoder's caches and is not read again.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Instant;

use clap::ArgMatches;
use mdl_data::{Chat, Template, Tokenizer};
use mdl_runtime::error::RunError;
use serde_json::json;

use super::ended;
use super::writer::{self, Author, Writer};
use crate::args::Common;
use crate::progress::print_line;

/// How many tokens of a conversation the model of a folder sees, unless it is made for fewer: caches are as large as this.
const ROOM: u64 = 4_096;

pub(super) fn chat(common: &Common, matches: &ArgMatches, color: bool) -> Result<(), u8> {
    let (author, draft) = writer::authors(common, matches, color)?;
    let template = author.template().map_err(|error| ended(&error))?;
    let writer = Writer::new((&author, draft.as_ref()), matches, ROOM, color)?;
    let stops = matches.get_many::<String>("stop").into_iter().flatten().cloned();
    let ends = Ends::new(&author, &template, stops);
    let mut talk = Talk { writer, tokenizer: &author.tokenizer, template, ends, common };
    talk.converse(matches.get_one::<String>("system").cloned()).map_err(|error| ended(&error))
}

struct Talk<'a> {
    writer: Writer,
    tokenizer: &'a Tokenizer,
    template: Template,
    ends: Ends,
    common: &'a Common,
}

impl Talk<'_> {
    fn converse(&mut self, mut system: Option<String>) -> Result<(), RunError> {
        let mut chat = begun(system.as_deref());
        let is_terminal = std::io::stdin().is_terminal();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if is_terminal && !self.common.quiet {
                let _ = write!(std::io::stderr(), "> ");
            }
            let line = match lines.next() {
                Some(Ok(line)) => line,
                Some(Err(error)) => return Err(RunError::failed("reading what you say", error.to_string())),
                None => return Ok(()),
            };
            match line.trim() {
                "" => continue,
                "/quit" => return Ok(()),
                "/clear" => chat = begun(system.as_deref()),
                command if command.split_whitespace().next() == Some("/system") => {
                    system = Some(command["/system".len()..].trim().to_string()).filter(|text| !text.is_empty());
                    chat = begun(system.as_deref());
                }
                _ => {
                    chat.push("user", &line);
                    let answer = self.answer(&mut chat)?;
                    chat.push("assistant", &answer);
                    self.writer.draw_anew();
                }
            }
        }
    }

    /// Writes one answer.
    fn answer(&mut self, chat: &mut Chat) -> Result<String, RunError> {
        let prompt = self.prompt(chat)?;
        let (ends, common) = (&self.ends, self.common);
        let mut stream = self.tokenizer.stream();
        let mut said = Said { text: String::new(), n_shown: 0 };
        let mut out = std::io::stdout();
        let (began, mut n_tokens) = (Instant::now(), 0_u64);
        let drafted = self.writer.write(&prompt, |id| {
            n_tokens += 1;
            if ends.ids.contains(&id) {
                return false;
            }
            said.text.push_str(&stream.push(id));
            let goes_on = !said.is_ended(&ends.texts);
            let shown = said.take(if goes_on { &ends.texts } else { &[] });
            // A reader that has gone away ends the text.
            goes_on & (common.json || write!(out, "{shown}").and_then(|()| out.flush()).is_ok())
        })?;
        said.text.push_str(&stream.finish());
        said.is_ended(&ends.texts);
        let seconds = began.elapsed().as_secs_f64();
        if common.json {
            let mut line =
                json!({ "answer": said.text, "tokens": n_tokens, "prompt_tokens": prompt.len(), "seconds": seconds });
            if drafted.proposed > 0 {
                line["proposed"] = json!(drafted.proposed);
                line["accepted"] = json!(drafted.accepted);
            }
            print_line(&line.to_string());
        } else {
            let _ = writeln!(out, "{}", said.take(&[]));
            if !common.quiet {
                let speed = n_tokens as f64 / seconds.max(1e-9);
                let accepted = writer::accepted(drafted).map_or(String::new(), |accepted| format!(", {accepted}"));
                let _ = writeln!(std::io::stderr(), "[{n_tokens} tokens, {speed:.1} tokens/s{accepted}]");
            }
        }
        Ok(said.text)
    }

    /// The ids of a conversation. Its oldest questions and answers are forgotten where the model has no room for them and an answer of
    /// some length.
    fn prompt(&self, chat: &mut Chat) -> Result<Vec<u32>, RunError> {
        let context = self.writer.context();
        let answer = self.writer.new_tokens().min(context / 4);
        loop {
            let text =
                self.template.prompt(chat).map_err(|error| RunError::failed("spelling the chat", error.message))?;
            let ids = self.tokenizer.encode(&text)?;
            let first = usize::from(chat.messages.first().is_some_and(|message| message["role"] == "system"));
            if ids.is_empty() {
                return Err(RunError::failed("answering", "the template makes no text of the question"));
            }
            if ids.len() as u64 + answer <= context {
                return Ok(ids);
            }
            if chat.messages.len() < first + 3 {
                if (ids.len() as u64) < context {
                    return Ok(ids);
                }
                let why = format!("it has {} tokens, and the model sees {context}", ids.len());
                return Err(RunError::failed("answering so long a question", why));
            }
            chat.messages.drain(first..first + 2);
            chat.learned.drain(first..first + 2);
        }
    }
}

fn begun(system: Option<&str>) -> Chat {
    let mut chat = Chat::default();
    if let Some(system) = system {
        chat.push("system", system);
    }
    chat
}

/// What ends an answer.
struct Ends {
    ids: Vec<u32>,
    texts: Vec<String>,
}

impl Ends {
    fn new(author: &Author, template: &Template, given: impl Iterator<Item = String>) -> Ends {
        let mut ids = author.ends();
        let mut texts: Vec<String> = given.filter(|text| !text.is_empty()).collect();
        // Where the template's end is one token, no text is made of it; where it is several, the text tells.
        match author.tokenizer.id_of(template.end()) {
            Some(id) => ids.push(id),
            None if template.end().is_empty() => {}
            None => texts.push(template.end().to_string()),
        }
        Ends { ids, texts }
    }
}

/// An answer, and how much of it has been shown.
struct Said {
    text: String,
    n_shown: usize,
}

impl Said {
    /// Cuts the text before the first end that it holds, and says whether there was one.
    fn is_ended(&mut self, ends: &[String]) -> bool {
        let found = ends.iter().filter_map(|end| self.text.find(end.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(at);
        }
        found.is_some()
    }

    /// What may be shown now: all but what could become one of the ends.
    fn take(&mut self, ends: &[String]) -> String {
        let held = |end: &String| {
            (1..=end.len()).rev().find(|n| end.is_char_boundary(*n) && self.text.ends_with(&end[..*n])).unwrap_or(0)
        };
        let until = self.text.len() - ends.iter().map(held).max().unwrap_or(0);
        let shown = self.text.get(self.n_shown..until).unwrap_or_default().to_string();
        self.n_shown = self.n_shown.max(until);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_never_shown() {
        let ends = ["<end>".to_string(), "\nUser".to_string()];
        for (text, want) in
            [("Hello <e<end> more", "Hello <e"), ("one\ntwo\nUser: x", "one\ntwo"), ("a <end", "a <end")]
        {
            let mut said = Said { text: String::new(), n_shown: 0 };
            let mut shown = String::new();
            for c in text.chars() {
                said.text.push(c);
                let ended = said.is_ended(&ends);
                shown.push_str(&said.take(if ended { &[] } else { &ends }));
                assert!(!ends.iter().any(|end| shown.contains(end.as_str())));
                if ended {
                    break;
                }
            }
            shown.push_str(&said.take(&[]));
            assert_eq!((shown.as_str(), said.text.as_str()), (want, want));
        }
    }
}
