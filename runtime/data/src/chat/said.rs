//! Which bytes of a chat's text the assistant says.
//!
//! Three ways, the first that applies: the template marks them itself; what a model is given before an answer, and the text with
//! the answer, are both beginnings of the whole text; or the answer's content is marked before it is rendered, and the marks are
//! found again. The first two hold tool calls and reasoning as well, the last only what stands in `content`.

use std::ops::Range;

use super::template::{BEGIN, END, Template, TemplateError, unmarked};
use super::{ASSISTANT, Chat, role};
use serde_json::{Value, json};

/// A chat as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spelled {
    pub text: String,
    /// In order; answers that may not be learned are left out.
    pub said: Vec<Said>,
}

/// What is learned of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Bytes of the text, the end of the turn among them where it has one.
    pub bytes: Range<usize>,
    /// The number of its message, from 1.
    pub turn: usize,
    /// Whether the bytes end with what ends an answer.
    pub ends: bool,
}

impl Template {
    /// The text of a whole chat, and what of it is learned.
    pub fn spell(&self, chat: &Chat) -> Result<Spelled, TemplateError> {
        let has_marks = |value: &Value| contains(value, BEGIN) || contains(value, END);
        if let Some(idx) = chat.messages.iter().position(has_marks) {
            return Err(TemplateError::new("it has U+FDD0 or U+FDD1, which are no characters").turn(idx));
        }
        let marked = self.render(&chat.messages, chat.tools.as_ref(), false)?;
        let text = unmarked(&marked);
        let answers: Vec<usize> =
            (0..chat.messages.len()).filter(|idx| role(&chat.messages[*idx]) == ASSISTANT).collect();
        let found = match self.marks {
            true => self.by_own_marks(&marked, &text, &answers)?,
            false => self.by_beginnings(chat, &text, &answers)?,
        };
        let learned = |said: &Said| chat.learned.get(said.turn - 1).copied().unwrap_or(false) && !said.bytes.is_empty();
        Ok(Spelled { said: found.into_iter().filter(learned).collect(), text })
    }

    fn by_own_marks(&self, marked: &str, text: &str, answers: &[usize]) -> Result<Vec<Said>, TemplateError> {
        let ranges =
            marks_in(marked).ok_or_else(|| TemplateError::new("its `{% generation %}` blocks do not pair up"))?;
        if ranges.len() != answers.len() {
            let message = format!(
                "it marks {} answers with `{{% generation %}}`, and the assistant has {} turns",
                ranges.len(),
                answers.len()
            );
            return Err(TemplateError::new(message));
        }
        let ends = |bytes: &Range<usize>| self.has_end(&text[bytes.clone()]).is_some();
        Ok(ranges
            .into_iter()
            .zip(answers)
            .map(|(bytes, idx)| Said { ends: ends(&bytes), bytes, turn: idx + 1 })
            .collect())
    }

    fn by_beginnings(&self, chat: &Chat, text: &str, answers: &[usize]) -> Result<Vec<Said>, TemplateError> {
        let mut found = Vec::new();
        let mut marks: Option<Vec<Option<Range<usize>>>> = None;
        for (nth, &idx) in answers.iter().enumerate() {
            let before = self.render(&chat.messages[..idx], chat.tools.as_ref(), true).ok();
            let before = before.filter(|before| text.starts_with(before.as_str()));
            let whole = match idx + 1 == chat.messages.len() {
                true => Some(text.to_string()),
                false => self.render(&chat.messages[..=idx], chat.tools.as_ref(), false).ok(),
            };
            let whole = whole.filter(|whole| text.starts_with(whole.as_str()));
            if let (Some(before), Some(whole)) = (&before, &whole)
                && before.len() <= whole.len()
            {
                let bytes = before.len()..whole.len();
                found.push(match self.has_end(&text[bytes.clone()]) {
                    Some(n) => Said { bytes: bytes.start..bytes.start + n, turn: idx + 1, ends: true },
                    None => Said { bytes, turn: idx + 1, ends: false },
                });
                continue;
            }
            let marks = marks.get_or_insert_with(|| self.contents(chat, text, answers));
            let Some(content) = marks.get(nth).cloned().flatten() else {
                let message = "what the assistant says cannot be told from the rest of its text";
                return Err(TemplateError::new(message).turn(idx));
            };
            let start = before.map_or(content.start, |before| before.len());
            let rest = &text[content.end..];
            let blank = rest.len() - rest.trim_start().len();
            let ends = !self.end().is_empty() && rest[blank..].starts_with(self.end());
            let end = if ends { content.end + blank + self.end().len() } else { content.end };
            found.push(Said { bytes: start.min(content.start)..end, turn: idx + 1, ends });
        }
        Ok(found)
    }

    /// Where the contents of the answers stand in the text, by marks around them. Templates that trim a content would show that
    /// by other text, so it is trimmed for them then.
    fn contents(&self, chat: &Chat, text: &str, answers: &[usize]) -> Vec<Option<Range<usize>>> {
        for trims in [false, true] {
            let mut messages = chat.messages.clone();
            for &idx in answers {
                if let Some(content) = messages[idx].get("content").and_then(Value::as_str) {
                    let content = if trims { content.trim() } else { content };
                    messages[idx]["content"] = json!(format!("{BEGIN}{content}{END}"));
                }
            }
            let Ok(marked) = self.render(&messages, chat.tools.as_ref(), false) else { continue };
            let Some(ranges) = marks_in(&marked).filter(|_| unmarked(&marked) == text) else { continue };
            let mut ranges = ranges.into_iter();
            let has_content = |idx: &usize| chat.messages[*idx].get("content").is_some_and(Value::is_string);
            return answers.iter().map(|idx| if has_content(idx) { ranges.next() } else { None }).collect();
        }
        Vec::new()
    }

    /// How many bytes of an answer there are up to its end, where it has one.
    fn has_end(&self, said: &str) -> Option<usize> {
        let end = self.end();
        if end.is_empty() { None } else { said.rfind(end).map(|at| at + end.len()) }
    }
}

/// The ranges between marks, as bytes of the text without them; `None` where they do not pair up.
fn marks_in(marked: &str) -> Option<Vec<Range<usize>>> {
    let (mut ranges, mut open, mut at) = (Vec::new(), None, 0);
    for c in marked.chars() {
        match c {
            BEGIN if open.is_none() => open = Some(at),
            END => ranges.push(open.take()?..at),
            BEGIN => return None,
            c => at += c.len_utf8(),
        }
    }
    open.is_none().then_some(ranges)
}

fn contains(value: &Value, sign: char) -> bool {
    match value {
        Value::String(text) => text.contains(sign),
        Value::Array(items) => items.iter().any(|item| contains(item, sign)),
        Value::Object(fields) => fields.values().any(|field| contains(field, sign)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
