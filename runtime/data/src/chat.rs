//! Chats: messages, the template that spells them as one text, and which bytes of that text the assistant says.
//!
//! One [`Template`] answers every question about a chat's text: how a row of training reads, what of it is learned, where an answer
//! ends, and what a model is given before it answers. So training and writing cannot disagree.

mod filters;
mod said;
mod tags;
mod template;

use serde_json::{Map, Value, json};

pub use said::{Said, Spelled};
pub use template::{Template, TemplateError};

/// A conversation, as templates see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Objects with `role` and `content`, in the manner of OpenAI.
    pub messages: Vec<Value>,
    /// The functions that may be called, a list of JSON schemas.
    pub tools: Option<Value>,
    /// For each message whether it may be learned; only those of the assistant are.
    pub learned: Vec<bool>,
    /// Its number in its file, from 1: for messages.
    pub row: u64,
}

impl Chat {
    /// Adds a message; those of the assistant are learned.
    pub fn push(&mut self, role: &str, content: &str) {
        self.add(json!({ "role": role, "content": content }));
    }

    pub(crate) fn add(&mut self, message: Value) {
        self.learned.push(role(&message) == ASSISTANT);
        self.messages.push(message);
    }
}

pub(crate) const ASSISTANT: &str = "assistant";

pub(crate) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn message(role: &str, content: impl Into<Value>) -> Map<String, Value> {
    let mut message = Map::new();
    message.insert("role".to_string(), json!(role));
    message.insert("content".to_string(), content.into());
    message
}

#[cfg(test)]
mod tests;
