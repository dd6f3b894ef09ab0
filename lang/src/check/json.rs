//! Values from JSON files, `json("config.json")`: plain values of compile time that know which of their keys were asked for.
//!
//! A key that is not there is told with its file; and whoever makes a recipe of a configuration learns which of its keys
//! meant nothing ([`Elaborator::unread_keys`]).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::Elaborator;
use super::builtins::Call;
use super::value::{Eval, Stop, Value, Vars};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::Span;

/// The files that were read.
#[derive(Default)]
pub(super) struct Jsons {
    files: HashMap<String, Value>,
    /// The objects in them, by the address of their fields, which this keeps where they are.
    objects: HashMap<*const Vars, Object>,
}

struct Object {
    fields: Rc<Vars>,
    file: String,
    /// The keys that lead to it, each with a dot.
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

/// `json("config.json")`
pub(super) fn json(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [path] = elab.take_args(call, ["path"], 1)?;
    let Some((path, span)) = path else { return Err(Stop) };
    let Some(path) = path.as_str() else {
        let message = format!("`json` takes a Str, not {}", path.kind());
        return Err(elab.error(Code::E0209, message, span, "expected a path"));
    };
    if let Some(known) = elab.jsons.files.get(path) {
        return Ok(known.clone());
    }
    let text = match elab.world.import(&elab.recipe_path(), path) {
        Ok(imported) => imported.text,
        Err(problem) => {
            return Err(elab.error(Code::E0403, format!("cannot read `{path}`: {problem}"), span, "read here"));
        }
    };
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(value) => {
            let value = elab.jsons.note(&value, path, "");
            elab.jsons.files.insert(path.to_string(), value.clone());
            Ok(value)
        }
        Err(problem) => Err(elab.error(Code::E0403, format!("`{path}` is not JSON: {problem}"), span, "read here")),
    }
}

impl Jsons {
    fn note(&mut self, value: &serde_json::Value, file: &str, prefix: &str) -> Value {
        match value {
            serde_json::Value::Null => Value::None,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(number) => match number.as_i64() {
                Some(value) => Value::Int(value),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Value::str(text),
            serde_json::Value::Array(items) => {
                let items = items.iter().enumerate();
                Value::list(items.map(|(i, item)| self.note(item, file, &format!("{prefix}{i}."))).collect())
            }
            serde_json::Value::Object(fields) => {
                let mut own: Vars = Vec::with_capacity(fields.len());
                for (name, value) in fields {
                    own.push((Rc::from(name.as_str()), self.note(value, file, &format!("{prefix}{name}."))));
                }
                let fields = Rc::new(own);
                let (file, prefix) = (file.to_string(), prefix.to_string());
                let object = Object { fields: fields.clone(), file, prefix, read: RefCell::default() };
                self.objects.insert(Rc::as_ptr(&fields), object);
                Value::Record(fields)
            }
        }
    }

    fn object(&self, fields: &Rc<Vars>) -> Option<&Object> {
        self.objects.get(&Rc::as_ptr(fields))
    }
}

/// `get(record, "rope_scaling.factor", 1.0)`
pub(super) fn get(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [record, key, default] = elab.take_args(call, ["record", "key", "default"], 3)?;
    let (Some((record, span)), Some((key, key_span)), Some((default, _))) = (record, key, default) else {
        return Err(Stop);
    };
    let Some(key) = key.as_str() else {
        let message = format!("`get` takes a key as a Str, not {}", key.kind());
        return Err(elab.error(Code::E0209, message, key_span, "expected a key"));
    };
    let mut value = record;
    for step in key.split('.') {
        value = match &value {
            Value::Record(fields) => {
                if let Some(object) = elab.jsons.object(fields) {
                    object.read.borrow_mut().insert(step.to_string());
                }
                value.field(step).cloned().unwrap_or(Value::None)
            }
            Value::None => Value::None,
            Value::Error => return Err(Stop),
            other => {
                let message = format!("`get` looks for `{step}` in a record, not in {}", other.kind());
                return Err(elab.error(Code::E0209, message, span, format!("this is {}", other.kind())));
            }
        };
    }
    Ok(if matches!(value, Value::None) { default } else { value })
}

/// `ending(record, "layers.0.q_proj", default)`: the value of the key that the name is, or that it ends in after a dot.
pub(super) fn ending(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [record, name, default] = elab.take_args(call, ["record", "name", "default"], 3)?;
    let (Some((record, span)), Some((name, name_span)), Some((default, _))) = (record, name, default) else {
        return Err(Stop);
    };
    let (Value::Record(fields), Some(name)) = (&record, name.as_str()) else {
        let message = format!("`ending` takes a record and a Str, not {} and {}", record.kind(), name.kind());
        return Err(elab.error(Code::E0209, message, span, "expected a record"));
    };
    if let Some(object) = elab.jsons.object(fields) {
        object.read.borrow_mut().extend(fields.iter().map(|(key, _)| key.to_string()));
    }
    let plain = |key: &str| key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
    if let Some((key, _)) = fields.iter().find(|(key, _)| !plain(key)) {
        let message = format!("the pattern `{key}` is no name, and other patterns are not read");
        return Err(elab.error(Code::E0404, message, span, "looked for in this"));
    }
    let ends = |key: &str| name.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    let found: Vec<&(Rc<str>, Value)> = fields.iter().filter(|(key, _)| ends(key)).collect();
    match found.as_slice() {
        [] => Ok(default),
        [(_, value)] => Ok(value.clone()),
        [(first, _), (second, _), ..] => {
            let message = format!("`{name}` ends in `{first}` and in `{second}`");
            Err(elab.error(Code::E0404, message, name_span, "looked for by this name"))
        }
    }
}

/// `refuse("why")`
pub(super) fn refuse(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let [why] = elab.take_args(call, ["why"], 1)?;
    let Some((why, span)) = why else { return Err(Stop) };
    match why.as_str() {
        Some(why) => Err(elab.error(Code::E0404, why, call.span, "refused here")),
        None => {
            let message = format!("`refuse` takes a Str, not {}", why.kind());
            Err(elab.error(Code::E0209, message, span, "expected a sentence"))
        }
    }
}

impl Elaborator<'_> {
    /// A field of a record. One of a JSON file counts as read, or is told with its file when it is not there.
    pub(super) fn json_field(&mut self, fields: &Rc<Vars>, name: &str, span: Span) -> Eval<Option<Value>> {
        let value = fields.iter().find(|(known, _)| &**known == name).map(|(_, value)| value.clone());
        let Some(object) = self.jsons.object(fields) else { return Ok(value) };
        object.read.borrow_mut().insert(name.to_string());
        if value.is_some() {
            return Ok(value);
        }
        let message = format!("`{}` has no key `{}{name}`", object.file, object.prefix);
        let near = nearest(name, fields.iter().map(|(name, _)| &**name));
        let help = match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("where it may be missing, `get(…, \"{name}\", default)` has a default"),
        };
        Err(self.fail(Diagnostic::error(Code::E0216, message).label(span, "asked for here").help(help)))
    }

    /// A mistake at a place that speaks of a key of a file also says what the file has there: `n_embd` may be -16.
    pub(super) fn told_of_json(&self, diagnostic: Diagnostic) -> Diagnostic {
        let Some(label) = diagnostic.labels.first().filter(|_| diagnostic.help.is_none()) else { return diagnostic };
        let text = self.sources.slice(label.span);
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        for word in text.split(|c| !is_part(c)).filter(|word| !word.is_empty()) {
            for object in self.jsons.objects.values().filter(|object| object.read.borrow().contains(word)) {
                let value = object.fields.iter().find(|(name, _)| &**name == word).map(|(_, value)| value);
                let said = match value {
                    Some(value @ (Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Str(_))) => {
                        super::types::show(value)
                    }
                    _ => continue,
                };
                let help = format!("`{}` has `{}{word}`: {said}", object.file, object.prefix);
                return diagnostic.help(help);
            }
        }
        diagnostic
    }

    /// The keys of a JSON file that were read by nobody, in order.
    pub fn unread_keys(&self, path: &str) -> Vec<String> {
        let mut keys = Vec::new();
        for object in self.jsons.objects.values().filter(|object| object.file == path) {
            let read = object.read.borrow();
            // Of an object that nobody looked into, the key that leads to it says it all.
            if object.prefix.is_empty() || !read.is_empty() {
                let left = object.fields.iter().filter(|(name, _)| !read.contains(&**name));
                keys.extend(left.map(|(name, _)| format!("{}{name}", object.prefix)));
            }
        }
        keys.sort();
        keys
    }
}
