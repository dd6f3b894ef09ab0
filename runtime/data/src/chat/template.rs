//! A chat template: Jinja in the dialect of `transformers`, rendered within limits.
//!
//! In: the template's text, the special tokens that it may name. Out: the text of a chat. A template is a program of
//! strangers: it runs on fuel, and neither its result nor a value that it keeps may grow without end.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value;

use super::{Chat, filters, tags};
use crate::tokenizer::Extra;

/// Instructions that one rendering may take. The longest published templates take some thousand for a message.
const FUEL: u64 = 4_000_000;

/// The largest result, and the largest value that a template may keep: a million tokens. While a value grows, there are several of
/// them: with 4 MiB a hostile template takes some 22 MiB.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// The longest template that is read.
const LONGEST: usize = 1 << 20;

/// Calls of macros in macros.
const DEPTH: usize = 100;

/// Around what the assistant says: the two are no characters, so no text has them.
pub(super) const BEGIN: char = '\u{fdd0}';
pub(super) const END: char = '\u{fdd1}';

/// The template that is taken where a recipe says `chatml()`.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% generation %}\
{{ message['content'] if message['content'] is string else '' }}\
{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}{{ '\\n<tool_call>\\n' + (call['function'] | tojson) + '\\n</tool_call>' }}{% endfor %}{% endif %}\
{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Why a template does not work, or does not work for a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateError {
    /// Lower case, one line.
    pub message: String,
    /// The line of the template.
    pub line: Option<u32>,
    /// The message of the chat, from 1, where it is about one.
    pub turn: Option<usize>,
}

impl TemplateError {
    pub(super) fn new(message: impl Into<String>) -> TemplateError {
        TemplateError { message: message.into(), line: None, turn: None }
    }

    pub(super) fn turn(mut self, idx: usize) -> TemplateError {
        self.turn = Some(idx + 1);
        self
    }
}

/// A template that is ready to render. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Template {
    env: Arc<Environment<'static>>,
    special: Arc<Extra>,
    /// Whether it marks what the assistant says itself, with `{% generation %}`.
    pub(super) marks: bool,
    /// What stands behind the last answer of a chat: what a model must learn to say, and after which it stops.
    end: String,
}

impl Template {
    /// Compiles a template and finds out how its answers end. `special` are the tokens that it may name.
    pub fn new(source: &str, special: &Extra) -> Result<Template, TemplateError> {
        if source.len() > LONGEST {
            return Err(TemplateError::new(format!("it has {} bytes, and {LONGEST} are read at most", source.len())));
        }
        let (source, marks) = tags::rewrite(source)?;
        let mut env = Environment::new();
        // As `transformers` does.
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        env.set_syntax(syntax.build().map_err(|error| told(&error))?);
        env.set_unknown_method_callback(unknown_method_callback);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(DEPTH);
        filters::add(&mut env);
        for (name, text) in [(tags::BEGIN_TEMPLATE, BEGIN), (tags::END_TEMPLATE, END)] {
            env.add_template_owned(name, text.to_string()).map_err(|error| told(&error))?;
        }
        env.add_template_owned(NAME, source).map_err(|error| told(&error))?;
        let mut template =
            Template { env: Arc::new(env), special: Arc::new(special.clone()), marks, end: String::new() };
        template.end = template.probe();
        Ok(template)
    }

    /// The template `chatml()`, in which tools are called as JSON.
    pub fn chatml(special: &Extra) -> Result<Template, TemplateError> {
        // What is marked are all messages: the rows say which of them the assistant's are.
        let by_role = CHATML
            .replace("{% generation %}", "{% if message['role'] == 'assistant' %}{% generation %}{% endif %}")
            .replace("{% endgeneration %}", "{% if message['role'] == 'assistant' %}{% endgeneration %}{% endif %}");
        Template::new(&by_role, special)
    }

    /// The tokens that `chatml()` needs, for a tokenizer that is learned.
    pub fn chatml_tokens() -> Vec<String> {
        ["<|im_start|>", "<|im_end|>"].map(str::to_string).into()
    }

    /// What stands behind the last answer of a chat; empty where nothing does.
    pub fn end(&self) -> &str {
        &self.end
    }

    /// What a model is given to answer to.
    pub fn prompt(&self, chat: &Chat) -> Result<String, TemplateError> {
        self.render(&chat.messages, chat.tools.as_ref(), true).map(|text| unmarked(&text))
    }

    /// The text of messages, with the marks that the template makes.
    pub(super) fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        prompt: bool,
    ) -> Result<String, TemplateError> {
        let template = self.env.get_template(NAME).map_err(|error| told(&error))?;
        let none = || minijinja::Value::from(());
        let mut values = vec![
            ("messages", minijinja::Value::from(Serde(messages))),
            ("tools", tools.map_or_else(none, |tools| minijinja::Value::from(Serde(tools)))),
            ("documents", none()),
            ("add_generation_prompt", minijinja::Value::from(prompt)),
        ];
        for (name, token) in [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("pad_token", &self.special.pad),
            ("unk_token", &self.special.unk),
        ] {
            // One that the tokenizer lacks is undefined.
            values.extend(token.as_ref().map(|token| (name, minijinja::Value::from(token.as_str()))));
        }
        let mut out = Limited(Vec::new());
        let done = template
            .render_captured_to(minijinja::Value::from(values.into_iter().collect::<BTreeMap<_, _>>()), &mut out)
            .map(|_| ());
        let full = out.0.len() >= MOST_BYTES;
        match done {
            _ if full => Err(TemplateError::new(format!("its text grows beyond {} MB", MOST_BYTES >> 20))),
            Ok(()) => String::from_utf8(out.0).map_err(|_| TemplateError::new("its text is not UTF-8")),
            Err(error) => Err(told(&error)),
        }
    }

    /// What follows an answer, seen in a chat whose answer is known.
    fn probe(&self) -> String {
        const ANSWER: &str = "PROBE OF AN ANSWER";
        let mut chat = Chat::default();
        chat.push("user", "question");
        chat.push("assistant", ANSWER);
        let text = self.render(&chat.messages, None, false).map(|text| unmarked(&text));
        match text.as_deref().map(|text| text.rsplit_once(ANSWER)) {
            Ok(Some((_, end))) => end.trim().to_string(),
            // It asks for more than a question and an answer: then the token that ends a text is what ends an answer.
            Ok(None) | Err(_) => self.special.eos.clone().unwrap_or_default(),
        }
    }
}

const NAME: &str = "chat template";

pub(super) fn unmarked(text: &str) -> String {
    text.replace([BEGIN, END], "")
}

/// What went wrong, in our words; of errors inside of errors the innermost says it.
fn told(error: &minijinja::Error) -> TemplateError {
    let message = match error.kind() {
        ErrorKind::OutOfFuel => format!("it runs on without end: {FUEL} instructions were not enough"),
        kind => {
            let mut innermost: &dyn std::error::Error = error;
            while let Some(source) = innermost.source() {
                innermost = source;
            }
            let detail = innermost.downcast_ref::<minijinja::Error>().and_then(|error| error.detail());
            detail.or(error.detail()).map_or_else(|| kind.to_string(), str::to_string)
        }
    };
    let message = message.lines().next().unwrap_or_default().trim_end_matches('.').to_string();
    TemplateError { message, line: error.line().and_then(|line| u32::try_from(line).ok()), turn: None }
}

/// Bytes up to [`MOST_BYTES`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() >= MOST_BYTES {
            self.0.resize(MOST_BYTES, b' ');
            return Err(io::Error::other("too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
