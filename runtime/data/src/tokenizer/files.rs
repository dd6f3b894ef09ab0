//! Which files a tokenizer has, and what they say together.
//!
//! In: the files of a folder, or one file by itself. Out: one value in the format of `tokenizer.json`, whatever the files were,
//! and its [`Extra`]: the special tokens and the chat template, from the files that lie beside it.

use super::{older, sentencepiece};
use crate::problem::{NO_FILE, Problem, TOKENIZER};
use crate::source::SourceFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What a tokenizer's files say besides its table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Extra {
    /// The tokens that begin and end a text, as they are written: chat templates name them.
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    /// Ids after which a model stops writing, from `generation_config.json`.
    pub stops: Vec<u32>,
    /// The chat template.
    pub template: Option<String>,
}

/// What a folder's tokenizer is looked for in, the first that is there: its own files, all of which are needed.
const KINDS: [&[&str]; 6] = [
    &["tokenizer.json"],
    &["vocab.json", "merges.txt"],
    &["vocab.txt"],
    &["spiece.model"],
    &["sentencepiece.model"],
    &["tokenizer.model"],
];

/// What may lie beside them.
const BESIDE: [&str; 6] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Tokenizers are read whole; the largest published ones have some 35 MB.
const MOST_BYTES: usize = 256 << 20;

/// The files of a tokenizer by path: a file alone, or of a folder all that are of a tokenizer.
pub fn files_at(path: &str, base: &Path) -> Result<Vec<PathBuf>, Problem> {
    let path = base.join(path);
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let there = |names: &&[&str]| names.iter().all(|name| path.join(name).is_file());
    let Some(names) = KINDS.iter().copied().find(|names| there(names)) else {
        let message = format!("{} holds no tokenizer", path.display());
        return Err(Problem::new(NO_FILE, message).at(&path).help(
            "it needs tokenizer.json; or vocab.json and merges.txt; or vocab.txt; or spiece.model, sentencepiece.model or tokenizer.model",
        ));
    };
    let beside = BESIDE.iter().filter(|name| path.join(name).is_file());
    Ok(names.iter().chain(beside).map(|name| path.join(name)).collect())
}

/// The tokenizer as one value, and what is beside it.
pub(super) fn read(files: &[SourceFile]) -> Result<(Value, Extra), Problem> {
    if let Some(file) = files.iter().find(|file| file.stored.len() > MOST_BYTES) {
        let message = format!(
            "{} has {} MB, and a tokenizer has {} at most",
            file.path.display(),
            file.stored.len() >> 20,
            MOST_BYTES >> 20
        );
        return Err(Problem::new(TOKENIZER, message).at(&file.path));
    }
    let named = |name: &str| files.iter().find(|file| file.path.file_name().is_some_and(|found| found == name));
    let value_of = |name: &str| named(name).map(json_of).transpose();
    let config = value_of("tokenizer_config.json")?.unwrap_or_default();
    let map = value_of("special_tokens_map.json")?.unwrap_or_default();
    let own: Vec<&SourceFile> =
        files.iter().filter(|file| !BESIDE.iter().any(|name| file.path.ends_with(name))).collect();
    let mut value = match own.as_slice() {
        [vocab, merges] => {
            let prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
            older::pair(&vocab.text()?, &merges.text()?, &vocab.path, &merges.path, prefix_space)?
        }
        [file] => one(file, &config)?,
        _ => return Err(Problem::new(TOKENIZER, format!("a tokenizer has one file or two, not {}", own.len()))),
    };
    let mut added = Vec::new();
    if let Some(Value::Object(table)) = config.get("added_tokens_decoder") {
        for (id, token) in table {
            let (Ok(id), Some(content)) = (id.parse::<u64>(), content_of(token)) else {
                let message = format!("`added_tokens_decoder` has an entry `{id}` that is no token");
                return Err(Problem::new(TOKENIZER, message).at(&files[0].path.with_file_name("tokenizer_config.json")));
            };
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            let mut row = older::added_token(json!(id), &content, flag("special"));
            for name in ["single_word", "lstrip", "rstrip", "normalized"] {
                row[name] = json!(flag(name));
            }
            added.push(row);
        }
    }
    if let Some(Value::Object(table)) = value_of("added_tokens.json")? {
        added.extend(table.iter().map(|(content, id)| older::added_token(id.clone(), content, false)));
    }
    add(&mut value, added);
    let special = |name: &str| config.get(name).and_then(content_of).or_else(|| map.get(name).and_then(content_of));
    if config.get("add_bos_token") == Some(&json!(true))
        && let Some(bos) = special("bos_token")
    {
        begin_with(&mut value, &bos);
    }
    let stops = match value_of("generation_config.json")?.as_ref().and_then(|found| found.get("eos_token_id")) {
        Some(Value::Array(ids)) => ids.iter().filter_map(id_of).collect(),
        Some(id) => id_of(id).into_iter().collect(),
        None => Vec::new(),
    };
    let template = match (named("chat_template.jinja"), value_of("chat_template.json")?) {
        (Some(file), _) => Some(file.text()?),
        (None, Some(value)) => template_of(&value),
        (None, None) => template_of(&config),
    };
    let extra = Extra {
        bos: special("bos_token"),
        eos: special("eos_token"),
        pad: special("pad_token"),
        unk: special("unk_token"),
        stops,
        template,
    };
    Ok((value, extra))
}

/// A tokenizer that is one file.
fn one(file: &SourceFile, config: &Value) -> Result<Value, Problem> {
    let name = file.path.to_string_lossy();
    if name.ends_with(".txt") {
        let lowercase = config.get("do_lower_case").and_then(Value::as_bool);
        return older::word_piece(&file.text()?, &file.path, lowercase);
    }
    if name.ends_with(".model") || name.ends_with(".tiktoken") {
        let bytes = file.bytes()?;
        return match older::is_tiktoken(&bytes) {
            true => older::tiktoken(&file.text()?, &file.path),
            false => sentencepiece::read(&bytes, &file.path),
        };
    }
    let value = json_of(file)?;
    if value.get("model").is_none() && value.get("type").is_none() && name.ends_with("vocab.json") {
        let message = format!("{} is half a tokenizer: its merges are in a file of their own", file.path.display());
        return Err(Problem::new(TOKENIZER, message)
            .at(&file.path)
            .help("put merges.txt beside it and name the folder"));
    }
    Ok(value)
}

fn json_of(file: &SourceFile) -> Result<Value, Problem> {
    serde_json::from_str(&file.text()?).map_err(|error| {
        let message = format!("{} is not JSON: {error}", file.path.display());
        Problem::new(TOKENIZER, message).at(&file.path).line(error.line() as u64)
    })
}

/// Adds the tokens that the value lacks, in the order of their ids.
fn add(value: &mut Value, mut more: Vec<Value>) {
    let id = |token: &Value| token.get("id").and_then(Value::as_u64);
    more.sort_by_key(id);
    more.dedup_by_key(|token| id(token));
    if more.is_empty() {
        return;
    }
    let Some(object) = value.as_object_mut() else { return };
    let Some(known) = object.entry("added_tokens").or_insert_with(|| json!([])).as_array_mut() else { return };
    more.retain(|token| !known.iter().any(|known| id(known) == id(token)));
    known.append(&mut more);
    known.sort_by_key(id);
}

/// Has texts begin with a token, where the tokenizer does not say itself how they begin: one of the older files.
fn begin_with(value: &mut Value, bos: &str) {
    let tokens = value.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let mut ids = tokens.filter(|token| content_of(token).as_deref() == Some(bos)).filter_map(|token| token.get("id"));
    if let (Some(id), None | Some(Value::Null)) = (ids.next().cloned(), value.get("post_processor")) {
        let (begin, text) = (
            json!({ "SpecialToken": { "id": bos, "type_id": 0 } }),
            |id, of| json!({ "Sequence": { "id": id, "type_id": of } }),
        );
        value["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [begin, text("A", 0)], "pair": [begin, text("A", 0), text("B", 1)],
            "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } }
        });
    }
}

/// `"<s>"`, or `{"content": "<s>", …}`.
fn content_of(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_string)
}

fn id_of(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A template, or of a list of named ones the one called `default`.
fn template_of(value: &Value) -> Option<String> {
    let found = value.get("chat_template")?;
    let of = |entry: &Map<String, Value>| entry.get("template")?.as_str().map(str::to_string);
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let named = list.iter().filter_map(Value::as_object);
            named.filter(|entry| entry.get("name").and_then(Value::as_str) == Some("default")).find_map(of)
        }
        _ => None,
    }
}
