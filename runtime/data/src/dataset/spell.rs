//! Chats as texts, by the template of their block.

use super::encode::{MOST_PROBLEMS, at_row};
use crate::chat::{Template, TemplateError};
use crate::facts::FileFacts;
use crate::problem::{BAD_CHAT, Checked, Problem, TEMPLATE};
use crate::source::{self, Document, Examples, SourceFile};
use crate::tokenizer::{self, Extra};
use mdl_lang::spec::{DataSpec, Template as TemplateSpec, Tokenizer as TokenizerSpec};
use std::path::Path;

/// The template of a block: the one that it names, or that of its tokenizer.
pub(super) fn template(
    spec: &DataSpec,
    tokenizer_files: &[SourceFile],
    file: Option<&SourceFile>,
) -> Result<Template, Problem> {
    let extra = match &spec.tokenizer {
        Some(TokenizerSpec::File { span, .. }) => {
            tokenizer::extra_of_files(tokenizer_files).map_err(|problem| problem.span(*span))?
        }
        _ => Extra::default(),
    };
    of_extra(spec, &extra, file)
}

/// The template of a block for whoever talks with a model, `extra` being that of its tokenizer.
pub fn template_of(spec: &DataSpec, extra: &Extra, base: &Path) -> Checked<Template> {
    Ok(of_extra(spec, extra, file_of(spec, base)?.as_ref())?)
}

/// The template of a tokenizer's files, for whoever talks with a published model.
pub fn template_of_tokenizer(extra: &Extra) -> Result<Template, Problem> {
    let Some(text) = &extra.template else {
        return Err(Problem::new(TEMPLATE, "the folder has no chat template: its model was not taught to chat")
            .help("a template is in tokenizer_config.json, or in chat_template.jinja beside it"));
    };
    made(Template::new(text, extra))
}

fn made(template: Result<Template, TemplateError>) -> Result<Template, Problem> {
    template.map_err(|error| Problem::new(TEMPLATE, format!("the chat template cannot be used: {}", said(&error))))
}

/// The file of a template, where the block names one.
pub(super) fn file_of(spec: &DataSpec, base: &Path) -> Checked<Option<SourceFile>> {
    match &spec.template {
        Some(TemplateSpec::File { path, span }) => {
            let files = source::read_files(path, base);
            let files =
                files.map_err(|more| more.into_iter().map(|problem| problem.span(*span)).collect::<Vec<_>>())?;
            Ok(files.into_iter().next())
        }
        Some(TemplateSpec::Chatml) | None => Ok(None),
    }
}

fn of_extra(spec: &DataSpec, extra: &Extra, file: Option<&SourceFile>) -> Result<Template, Problem> {
    let (made, place) = match (&spec.template, file) {
        (Some(TemplateSpec::Chatml), _) => (Template::chatml(extra), None),
        (Some(TemplateSpec::File { span, .. }), Some(file)) => {
            let text = file.text().map_err(|problem| problem.span(*span))?;
            (Template::new(&text, extra), Some((file, *span)))
        }
        _ => match &extra.template {
            Some(text) => (Template::new(text, extra), None),
            None => {
                let message = "chats need a template, and the tokenizer has none";
                return Err(Problem::new(TEMPLATE, message)
                    .help("add `template = chatml()`, or `template = jinja(\"chat_template.jinja\")`"));
            }
        },
    };
    made.map_err(|error| {
        let problem = Problem::new(TEMPLATE, format!("the chat template cannot be used: {}", said(&error)));
        match place {
            Some((file, span)) => {
                let problem = problem.at(&file.path).span(span);
                error.line.map_or(problem.clone(), |line| problem.line(u64::from(line)))
            }
            None => problem,
        }
    })
}

fn said(error: &TemplateError) -> String {
    match error.line {
        Some(line) => format!("{} (line {line} of the template)", error.message),
        None => error.message.clone(),
    }
}

/// Spells every chat of every part.
pub(super) fn all(template: &Template, parts: &mut [(String, Examples)], files: &[FileFacts]) -> Checked<()> {
    let mut problems = Vec::new();
    for (_, examples) in parts {
        let Examples::Documents(documents) = examples else { continue };
        for document in documents {
            if let Err(problem) = one(template, document) {
                problems.push(at_row(problem, document, files));
            }
            if problems.len() >= MOST_PROBLEMS {
                return Err(problems);
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn one(template: &Template, document: &mut Document) -> Result<(), Problem> {
    let Some(chat) = &document.chat else { return Ok(()) };
    let spelled = template.spell(chat).map_err(|error| {
        let turn = error.turn.map_or(String::new(), |turn| format!(", turn {turn}"));
        Problem::new(BAD_CHAT, format!("row {}{turn}: the template refuses it: {}", chat.row, said(&error)))
    })?;
    (document.text, document.said) = (spelled.text, spelled.said);
    Ok(())
}
