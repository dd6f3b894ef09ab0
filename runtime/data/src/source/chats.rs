//! Rows of chats: the layouts of Alpaca, ShareGPT and OpenAI, in JSON (a list) or JSON lines, as [`Chat`]s.

use super::rows::Read;
use super::{Document, SourceFile};
use crate::chat::{Chat, message};
use crate::problem::{BAD_ROW, NO_COLUMN, Problem};
use mdl_lang::spec::{ChatColumns, ChatFormat};
use serde_json::{Map, Value, json};

/// Reads a file of chats. Without a format, the keys of the first row tell it.
pub(super) fn chats(
    file: &SourceFile,
    format: Option<ChatFormat>,
    columns: &ChatColumns,
    out: &mut Read,
) -> Result<(), Problem> {
    let text = file.text()?;
    let is_list = text.trim_start().starts_with('[');
    let rows: Vec<(u64, Value)> = if is_list {
        let broken = |error: serde_json::Error| {
            let message = format!("{} is not a list of rows: {error}", file.path.display());
            Problem::new(BAD_ROW, message).at(&file.path).line(error.line() as u64)
        };
        let rows: Vec<Value> = serde_json::from_str(&text).map_err(broken)?;
        rows.into_iter().map(|row| (0, row)).collect()
    } else {
        let mut rows = Vec::new();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            match serde_json::from_str(text) {
                Ok(row) => rows.push((line, row)),
                Err(error) => {
                    let why = error.to_string();
                    let why = why.split(" at line ").next().unwrap_or_default();
                    out.problems
                        .push(Problem::new(BAD_ROW, format!("the row is not JSON: {why}")).at(&file.path).line(line));
                }
            }
            if out.is_hopeless() {
                return Ok(());
            }
        }
        rows
    };
    let format = match (format, rows.first()) {
        (Some(format), _) => format,
        (None, Some((_, row))) => told_by(row, columns).ok_or_else(|| {
            let keys: Vec<&str> = row.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            Problem::new(NO_COLUMN, format!("the keys of the first row are of no layout that is known: {}", keys.join(", ")))
                .at(&file.path)
                .help("say which it is, `format: alpaca`, `sharegpt` or `messages`, and how its columns are called, such as `messages: \"dialog\"`")
        })?,
        (None, None) => return Ok(()),
    };
    for (n, (line, row)) in (1..).zip(rows) {
        let Value::Object(row) = row else {
            out.problems.push(at(Problem::new(BAD_ROW, format!("row {n} is not an object")), file, line));
            continue;
        };
        let reader = Reader { columns, row: &row };
        let chat = match format {
            ChatFormat::Alpaca => reader.alpaca(),
            ChatFormat::Sharegpt => reader.sharegpt(),
            ChatFormat::Messages => reader.messages(),
        };
        match chat.and_then(|chat| {
            if chat.learned.contains(&true) {
                Ok(chat)
            } else {
                Err((None, "it has no answer of the assistant to learn".to_string()))
            }
        }) {
            Ok(mut chat) => {
                chat.row = n;
                out.documents.push(Document { line, chat: Some(Box::new(chat)), ..Document::default() });
            }
            Err((turn, why)) => {
                let place = turn.map_or(String::new(), |turn: usize| format!(", turn {turn}"));
                out.problems.push(at(Problem::new(BAD_ROW, format!("row {n}{place}: {why}")), file, line));
            }
        }
        if out.is_hopeless() {
            break;
        }
    }
    Ok(())
}

fn at(problem: Problem, file: &SourceFile, line: u64) -> Problem {
    let problem = problem.at(&file.path);
    if line > 0 { problem.line(line) } else { problem }
}

fn told_by(row: &Value, columns: &ChatColumns) -> Option<ChatFormat> {
    let has = |given: &Option<String>, usual: &str| row.get(given.as_deref().unwrap_or(usual)).is_some();
    if has(&columns.messages, "messages") && row.get("conversations").is_none() {
        // Both are lists of turns; how a turn is written tells.
        let first = row.get(columns.messages.as_deref().unwrap_or("messages"))?.get(0)?;
        return Some(if first.get("from").is_some() { ChatFormat::Sharegpt } else { ChatFormat::Messages });
    }
    if has(&columns.messages, "conversations") {
        return Some(ChatFormat::Sharegpt);
    }
    has(&columns.output, "output").then_some(ChatFormat::Alpaca)
}

/// Why a row cannot be read, and in which turn.
type Read1<T> = Result<T, (Option<usize>, String)>;

struct Reader<'a> {
    columns: &'a ChatColumns,
    row: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn get(&self, given: &Option<String>, usual: &str) -> Option<&Value> {
        self.row.get(given.as_deref().unwrap_or(usual)).filter(|value| !value.is_null())
    }

    /// A column of text; a missing one is empty unless the recipe names it.
    fn text(&self, given: &Option<String>, usual: &str) -> Read1<&str> {
        match (self.get(given, usual), given) {
            (Some(Value::String(text)), _) => Ok(text),
            (Some(_), _) => Err((None, format!("`{}` is no text", given.as_deref().unwrap_or(usual)))),
            (None, Some(name)) => Err((None, format!("it has no key `{name}`"))),
            (None, None) => Ok(""),
        }
    }

    fn alpaca(&self) -> Read1<Chat> {
        let mut chat = self.begun()?;
        if let Some(history) = self.row.get("history").and_then(Value::as_array) {
            for pair in history {
                let (Some(question), Some(answer)) =
                    (pair.get(0).and_then(Value::as_str), pair.get(1).and_then(Value::as_str))
                else {
                    return Err((None, "`history` is a list of pairs, question and answer".to_string()));
                };
                chat.push("user", question);
                chat.push("assistant", answer);
            }
        }
        let (instruction, input) =
            (self.text(&self.columns.instruction, "instruction")?, self.text(&self.columns.input, "input")?);
        let blank = if instruction.is_empty() || input.is_empty() { "" } else { "\n" };
        chat.push("user", &format!("{instruction}{blank}{input}"));
        let output = self.text(&self.columns.output, "output")?;
        if output.is_empty() {
            return Err((None, "its `output` is empty or missing".to_string()));
        }
        chat.push("assistant", output);
        Ok(chat)
    }

    fn sharegpt(&self) -> Read1<Chat> {
        let mut chat = self.begun()?;
        for (turn, entry) in (1..).zip(self.turns("conversations")?) {
            let wrong = |why: String| (Some(turn), why);
            let field = |names: [&str; 2]| names.iter().find_map(|name| entry.get(*name)).and_then(Value::as_str);
            let (Some(from), Some(value)) = (field(["from", "role"]), field(["value", "content"])) else {
                return Err(wrong("a turn has `from` and `value`, both texts".to_string()));
            };
            match from {
                "system" => chat.push("system", value),
                "human" | "user" => chat.push("user", value),
                "gpt" | "assistant" | "model" | "chatgpt" | "bing" => chat.push("assistant", value),
                "observation" | "tool" | "function_response" => chat.push("tool", value),
                "function_call" | "tool_call" => {
                    let calls = calls(value).map_err(wrong)?;
                    let mut message = message("assistant", Value::from(""));
                    message.insert("tool_calls".to_string(), calls);
                    chat.add(Value::Object(message));
                }
                other => return Err(wrong(format!("`{other}` is nobody who speaks in such rows"))),
            }
        }
        Ok(chat)
    }

    fn messages(&self) -> Read1<Chat> {
        let mut chat = self.begun()?;
        for (turn, entry) in (1..).zip(self.turns("messages")?) {
            let wrong = |why: &str| (Some(turn), why.to_string());
            let role = entry.get("role").and_then(Value::as_str).ok_or_else(|| wrong("a message has a `role`"))?;
            let role = match role {
                "user" | "human" => "user",
                "assistant" | "gpt" | "model" => "assistant",
                "system" | "developer" => "system",
                "tool" | "function" | "observation" => "tool",
                other => return Err((Some(turn), format!("`{other}` is nobody who speaks in such rows"))),
            };
            let mut found = message(role, Value::from(""));
            match entry.get("content") {
                Some(Value::String(text)) => found["content"] = json!(text),
                Some(Value::Array(parts)) => self.parts(parts, &mut found).map_err(|why| (Some(turn), why))?,
                Some(Value::Null) | None => {}
                Some(_) => return Err(wrong("`content` is a text or a list of parts")),
            }
            for key in ["reasoning_content", "tool_call_id", "name", "tool_calls"] {
                if let Some(value) = entry.get(key).filter(|value| !value.is_null()) {
                    found.insert(key.to_string(), value.clone());
                }
            }
            if let Some(given) = found.get_mut("tool_calls") {
                *given = normal_calls(given.take()).map_err(|why| (Some(turn), why))?;
            }
            chat.add(Value::Object(found));
            // Weights between the two would weigh a loss, which counts.
            let weight = entry.get("loss_weight").or_else(|| entry.get("weight")).and_then(Value::as_f64);
            match weight {
                None | Some(1.0) => {}
                Some(0.0) => *chat.learned.last_mut().unwrap_or(&mut false) = false,
                Some(weight) => {
                    return Err((Some(turn), format!("its weight is {weight}, and this version has 0 and 1")));
                }
            }
        }
        Ok(chat)
    }

    /// Parts of a message: texts, reasoning and calls; anything else is for models that see or hear.
    fn parts(&self, parts: &[Value], out: &mut Map<String, Value>) -> Result<(), String> {
        let (mut text, mut reasoning, mut called) = (String::new(), String::new(), Vec::new());
        for part in parts {
            let value = ["text", "value", "content"].iter().find_map(|name| part.get(*name)).and_then(Value::as_str);
            match (part.get("type").and_then(Value::as_str), value) {
                (Some("text"), Some(value)) => text.push_str(value),
                (Some("reasoning" | "thinking"), Some(value)) => reasoning.push_str(value),
                (Some("tool_call"), Some(value)) => {
                    called.extend(calls(value)?.as_array().cloned().unwrap_or_default())
                }
                (Some("tool_result"), Some(value)) => text.push_str(value),
                (Some(other), _) => {
                    return Err(format!("it has a part of type `{other}`, and this version reads text"));
                }
                (None, _) => return Err("a part of a message has a `type`".to_string()),
            }
        }
        out["content"] = json!(text);
        if !reasoning.is_empty() {
            out.insert("reasoning_content".to_string(), json!(reasoning));
        }
        if !called.is_empty() {
            out.insert("tool_calls".to_string(), Value::Array(called));
        }
        Ok(())
    }

    /// A chat with its tools and what the system says.
    fn begun(&self) -> Read1<Chat> {
        let tools: Option<Value> = match self.get(&self.columns.tools, "tools") {
            // Often JSON in a text.
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => {
                let wrong = |error| (None, format!("its tools are no JSON: {error}"));
                Some(serde_json::from_str(text).map_err(wrong)?)
            }
            Some(value) => Some(value.clone()),
            None => None,
        };
        let is_some = |tools: &Value| tools.as_array().is_some_and(|tools| !tools.is_empty());
        let mut chat = Chat { tools: tools.filter(is_some), ..Chat::default() };
        let system = self.text(&self.columns.system, "system")?;
        if !system.is_empty() {
            chat.push("system", system);
        }
        Ok(chat)
    }

    fn turns(&self, usual: &str) -> Read1<&Vec<Value>> {
        let name = self.columns.messages.as_deref().unwrap_or(usual);
        match self.row.get(name) {
            Some(Value::Array(turns)) if !turns.is_empty() => Ok(turns),
            Some(_) => Err((None, format!("`{name}` is not a list of turns"))),
            None => Err((None, format!("it has no key `{name}`"))),
        }
    }
}

/// `{"name": …, "arguments": …}`, or a list of them, in a text.
fn calls(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("its call is no JSON: {error}"))?;
    normal_calls(if value.is_array() { value } else { Value::Array(vec![value]) })
}

/// Calls as templates expect them: `{"type": "function", "function": {"name": …, "arguments": {…}}}`, arguments as an object.
fn normal_calls(value: Value) -> Result<Value, String> {
    let Value::Array(list) = value else { return Err("`tool_calls` is a list".to_string()) };
    let mut normal = Vec::new();
    for mut call in list {
        let function = if call.get("function").is_some() { call["function"].take() } else { call.clone() };
        let Value::Object(mut function) = function else { return Err("a call is an object".to_string()) };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err("a call has a `name`".to_string());
        }
        if let Some(Value::String(text)) = function.get("arguments") {
            let wrong = |error| format!("the arguments of its call are no JSON: {error}");
            let arguments: Value = serde_json::from_str(text).map_err(wrong)?;
            function.insert("arguments".to_string(), arguments);
        }
        let mut whole = Map::new();
        if let Some(id) = call.get("id") {
            whole.insert("id".to_string(), id.clone());
            function.shift_remove("id");
        }
        whole.insert("type".to_string(), json!("function"));
        whole.insert("function".to_string(), Value::Object(function));
        normal.push(Value::Object(whole));
    }
    Ok(Value::Array(normal))
}
