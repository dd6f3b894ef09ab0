//! Templates say what `transformers` says, what is learned is what the assistant says, and no template runs on or grows without end.

use super::*;
use crate::testing::shared;
use crate::tokenizer::Extra;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const LLAMA: &str = "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}";

fn special() -> Extra {
    Extra { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Extra::default() }
}

fn chat(turns: &[(&str, &str)]) -> Chat {
    let mut chat = Chat { row: 1, ..Chat::default() };
    turns.iter().for_each(|(role, content)| chat.push(role, content));
    chat
}

fn said(template: &Template, chat: &Chat) -> Vec<(usize, String, bool)> {
    let spelled = template.spell(chat).expect("spelled");
    spelled.said.iter().map(|said| (said.turn, spelled.text[said.bytes.clone()].to_string(), said.ends)).collect()
}

fn owned(rows: &[(usize, &str, bool)]) -> Vec<(usize, String, bool)> {
    rows.iter().map(|(turn, text, ends)| (*turn, text.to_string(), *ends)).collect()
}

/// The 36 templates of the shared data, against recorded texts of `transformers`.
#[test]
fn templates_as_transformers_renders_them() {
    let Some(folder) = shared("chat-templates") else { return };
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat_templates.json");
    let fixture: Value = serde_json::from_str(&fs::read_to_string(fixture).expect("fixture")).expect("json");
    let token = |name: &str| fixture["special"][name].as_str().map(str::to_string);
    let special = Extra {
        bos: token("bos_token"),
        eos: token("eos_token"),
        pad: token("pad_token"),
        unk: token("unk_token"),
        ..Extra::default()
    };
    let mut templates = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut n = 0;
    for row in fixture["rows"].as_array().expect("rows") {
        let name = row["template"].as_str().expect("a name");
        let template = templates.entry(name).or_insert_with(|| {
            let source = fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("a template");
            Template::new(&source, &special)
        });
        let Ok(template) = template else {
            wrong.push(format!("{name}: {template:?}"));
            continue;
        };
        let given = &fixture["chats"][row["chat"].as_str().expect("a chat")];
        let tools = Some(&given["tools"]).filter(|tools| !tools.is_null());
        let messages = given["messages"].as_array().expect("messages");
        let prompt = row["prompt"].as_bool().expect("a flag");
        let text = template.render(messages, tools, prompt).map(|text| template::unmarked(&text));
        n += 1;
        match (row["text"].as_str(), text) {
            (Some(want), Ok(text)) if text == want => {}
            (None, Err(_)) => {}
            (want, text) => wrong.push(format!("{name}, {}, {prompt}:\n  {want:?}\n  {text:?}", row["chat"])),
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{} of {n}:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!((templates.len(), n), (36, 504));
}

/// What every one of them teaches: each answer, and its end.
#[test]
fn answers_are_found_in_every_template() {
    let Some(folder) = shared("chat-templates") else { return };
    let turns = [("user", "One?"), ("assistant", "An answer."), ("user", "Two?"), ("assistant", "Another one.")];
    let mut without_end = Vec::new();
    let mut n = 0;
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let Ok(source) = fs::read_to_string(&path) else { continue };
        if path.extension().is_none_or(|end| end != "jinja") {
            continue;
        }
        let template = Template::new(&source, &special()).expect(&name);
        let found = said(&template, &chat(&turns));
        assert_eq!(found.iter().map(|said| said.0).collect::<Vec<_>>(), [2, 4], "{name}");
        for ((_, text, _), content) in found.iter().zip(["An answer.", "Another one."]) {
            assert!(text.contains(content) && !text.contains('?'), "{name}: {text:?}");
        }
        if !found.last().expect("an answer").2 {
            without_end.push(name);
        }
        n += 1;
    }
    without_end.sort();
    assert_eq!(n, 36);
    assert!(without_end.len() <= 6, "{without_end:?}");
}

#[test]
fn what_is_learned_by_beginnings() {
    let template = Template::new(LLAMA, &special()).expect("a template");
    assert_eq!(template.end(), "<|eot|>");
    let turns =
        [("system", "S"), ("user", "hi"), ("assistant", " Hello! "), ("user", "bye"), ("assistant", "Good bye")];
    let chat = chat(&turns);
    assert_eq!(said(&template, &chat), owned(&[(3, "Hello!<|eot|>", true), (5, "Good bye<|eot|>", true)]));
    // What is given before an answer is how the text goes on to it.
    let before = Chat { messages: chat.messages[..4].to_vec(), ..chat.clone() };
    let prompt = template.prompt(&before).expect("a prompt");
    let spelled = template.spell(&chat).expect("spelled");
    assert_eq!(prompt, spelled.text[..spelled.said[1].bytes.start]);
    let mut part = chat.clone();
    part.learned[2] = false;
    assert_eq!(said(&template, &part), owned(&[(5, "Good bye<|eot|>", true)]));
}

#[test]
fn what_is_learned_by_the_marks_of_a_template() {
    let source = "{% for m in messages %}\n{{ m.role }}:\n{%- if m.role == 'assistant' %}\n{% generation %} {{ m.content }};{% endgeneration %}\n{% else %}\n{{ m.content }}\n{% endif %}{% endfor %}";
    let template = Template::new(source, &special()).expect("a template");
    let found = said(&template, &chat(&[("user", "hi"), ("assistant", "Hello")]));
    assert_eq!(found, owned(&[(2, " Hello;", true)]));
    let chatml = Template::chatml(&Extra::default()).expect("chatml");
    let found = said(&chatml, &chat(&[("user", "hi"), ("assistant", "Hello"), ("user", "x"), ("assistant", "y")]));
    assert_eq!(found, owned(&[(2, "Hello<|im_end|>", true), (4, "y<|im_end|>", true)]));
}

/// A template that changes earlier answers when others follow, as those that leave out old reasoning do.
#[test]
fn what_is_learned_by_marks_around_contents() {
    let source = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' and loop.last %}<think></think> {% endif %}{{ m.content | trim }}<end>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    let template = Template::new(source, &special()).expect("a template");
    let found = said(&template, &chat(&[("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]));
    assert_eq!(found, owned(&[(2, "b<end>", true), (4, "<think></think> d<end>", true)]));
    let upper = "{% for m in messages %}{{ (m.content | upper) ~ loop.length }}{% endfor %}";
    let template = Template::new(upper, &special()).expect("a template");
    let error = template.spell(&chat(&[("user", "a"), ("assistant", "x\u{df}")])).err();
    assert!(error.is_none_or(|error| error.turn == Some(2)), "told with its turn");
}

#[test]
fn answers_without_an_end() {
    let template = Template::new("{% for m in messages %}{{ m.content }}{% endfor %}", &special()).expect("a template");
    assert_eq!(template.end(), "");
    assert_eq!(said(&template, &chat(&[("user", "a"), ("assistant", "b")])), owned(&[(2, "b", false)]));
}

#[test]
fn templates_that_run_or_grow_without_end() {
    let question = chat(&[("user", "hi")]);
    for (source, why) in [
        ("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}", "runs on without end"),
        (
            "{% set x = 'ab' %}{% set n = namespace(x=x) %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "grows beyond",
        ),
        ("{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('abcd') }}", ""),
        ("{% for a in range(10000) %}{{ 'a' * 10000 }}{% endfor %}", "grows beyond"),
        ("{{ raise_exception('turns must take turns') }}", "turns must take turns"),
        ("{{ messages[0].content.nothing() }}", ""),
        ("{% for a in messages %}", ""),
        ("{{ strftime_now('%Q') }}", "knows no `%Q`"),
    ] {
        let error = match Template::new(source, &special()) {
            Ok(template) => template.prompt(&question).expect_err(source),
            Err(error) => error,
        };
        assert!(error.message.contains(why), "{source}: {error:?}");
    }
    let marked = chat(&[("user", "\u{fdd0}"), ("assistant", "x")]);
    assert_eq!(Template::new(LLAMA, &special()).expect("a template").spell(&marked).expect_err("marks").turn, Some(1));
}
