//! Rows of chats of every layout as batches: what is learned, what is packed, and what is wrong, by row and turn.

use super::*;
use crate::batch::FieldSlice;
use crate::problem::{BAD_CHAT, BAD_ROW, CUT_EMPTY, NO_END, TEMPLATE, TWICE_BEGUN};
use crate::testing::{Scratch, chats, pack, pad, shared, spec};
use mdl_graph::Span;
use mdl_lang::spec::{Long, Template as TemplateSpec, Tokenizer as TokenizerSpec};
use serde_json::json;

const ROWS: &str = r#"[
  {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "and"}, {"role": "assistant", "content": "Yes"}]},
  {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an answer"}]},
  {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "A"}]}
]"#;

fn block(form: Form) -> DataSpec {
    DataSpec {
        tokenizer: Some(TokenizerSpec::Bytes),
        template: Some(TemplateSpec::Chatml),
        form,
        ..spec(chats("rows.json"))
    }
}

/// A batch of everything in order: each field as rows of numbers.
fn batch(dataset: &Dataset, n: usize, size: usize) -> std::collections::BTreeMap<String, Vec<Vec<i32>>> {
    let batcher = dataset.batcher("train", n, Order::InOrder).expect("a batcher");
    let fields = &dataset.facts.data.fields;
    let mut numbers = vec![vec![7; n * size]; fields.len()];
    let mut flags = vec![7; n * size];
    let mut buffers: Vec<FieldSlice<'_>> = Vec::new();
    for (field, numbers) in fields.iter().zip(&mut numbers) {
        buffers.push(if field.name == "mask" { FieldSlice::Skip } else { FieldSlice::I32(numbers) });
    }
    let mask = fields.iter().position(|field| field.name == "mask").expect("a mask");
    buffers[mask] = FieldSlice::Bool(&mut flags);
    let filled = batcher.fill(0, &mut buffers);
    drop(buffers);
    assert_eq!(filled.n_counted, flags.iter().filter(|flag| **flag == 1).count(), "counted as masked");
    numbers[mask] = flags.iter().map(|flag| i32::from(*flag)).collect();
    let rows = |values: Vec<i32>| values.chunks(size).map(<[i32]>::to_vec).collect();
    fields.iter().map(|field| field.name.clone()).zip(numbers.into_iter().map(rows)).collect()
}

/// The text of the next tokens that a row counts.
fn counted(
    fields: &std::collections::BTreeMap<String, Vec<Vec<i32>>>,
    row: usize,
    wanted: impl Fn(i32) -> bool,
) -> String {
    let next = fields["next"][row].iter().zip(&fields["turn"][row]);
    String::from_utf8(next.filter(|(_, turn)| wanted(**turn)).map(|(id, _)| *id as u8).collect()).expect("text")
}

#[test]
fn a_row_each() {
    let scratch = Scratch::new();
    scratch.write("rows.json", ROWS);
    let spec = block(pad(160));
    let dataset = prepare(&spec, &scratch.0, Some(&scratch.0.join("cache"))).expect("prepared");
    let fields = batch(&dataset, 3, 160);
    assert_eq!(counted(&fields, 0, |turn| turn > 0), "Hello<|im_end|>Yes<|im_end|>");
    assert_eq!(counted(&fields, 0, |turn| turn == 1), "Yes<|im_end|>");
    assert_eq!(counted(&fields, 2, |turn| turn > 0), "A<|im_end|>");
    assert!(counted(&fields, 1, |turn| turn >= 0).starts_with("|im_start|>user\nq<|im_end|>\n"), "all but the first");
    for (mask, turn) in fields["mask"].iter().flatten().zip(fields["turn"].iter().flatten()) {
        assert_eq!(*mask == 1, *turn > 0);
    }
    // What the cache holds is the same, and so is what a check says of it.
    let again = prepare(&spec, &scratch.0, Some(&scratch.0.join("cache"))).expect("prepared");
    assert_eq!(batch(&again, 3, 160), fields);
    assert_eq!(crate::describe(&spec, &scratch.0, None).expect("described"), dataset.facts);
}

#[test]
fn packed_rows_hold_the_same() {
    let scratch = Scratch::new();
    scratch.write("rows.json", ROWS);
    let alone = prepare(&block(pad(160)), &scratch.0, None).expect("prepared");
    let alone = batch(&alone, 3, 160);
    let spec = block(pack(200));
    let dataset = prepare(&spec, &scratch.0, Some(&scratch.0.join("cache"))).expect("prepared");
    let n = dataset.facts.part("train").and_then(|part| part.rows).expect("rows") as usize;
    assert_eq!((n, dataset.facts.data.rows[0].1), (2, 2));
    let fields = batch(&dataset, n, 200);
    let again = prepare(&spec, &scratch.0, Some(&scratch.0.join("cache"))).expect("prepared");
    assert_eq!(batch(&again, n, 200), fields);
    let mut seen = 0;
    for (row, documents) in fields["document"].iter().enumerate() {
        for document in 0..=*documents.iter().max().expect("one") {
            let places: Vec<usize> = (0..200).filter(|at| documents[*at] == document).collect();
            let at = |name: &str| places.iter().map(|at| fields[name][row][*at]).collect::<Vec<i32>>();
            assert_eq!(at("position"), (0..places.len() as i32).collect::<Vec<_>>());
            let found = (0..3).find(|other| alone["ids"][*other].starts_with(&at("ids"))).expect("a document");
            for name in ["next", "mask", "turn"] {
                assert_eq!(at(name), alone[name][found][..places.len()], "{name}");
            }
            let rest = &alone["turn"][found][places.len()..];
            assert!(rest.iter().all(|turn| *turn == -1), "nothing is left");
            seen += 1;
        }
        let behind: Vec<usize> = (0..200).filter(|at| documents[*at] == -1).collect();
        assert!(behind.iter().all(|at| fields["mask"][row][*at] == 0 && fields["turn"][row][*at] == -1));
    }
    assert_eq!(seen, 3);
}

/// Running documents are packed too, and long ones become several pieces, nothing lost.
#[test]
fn texts_are_packed_in_pieces() {
    let scratch = Scratch::new();
    let text = "0123456789".repeat(5);
    scratch.write("rows.jsonl", format!("{}\n{}\n", json!({ "text": text }), json!({ "text": "abc" })));
    let spec = DataSpec {
        tokenizer: Some(TokenizerSpec::Bytes),
        form: pack(20),
        ..spec(crate::testing::jsonl("rows.jsonl", "text", None))
    };
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    let n = dataset.facts.data.rows[0].1 as usize;
    let batcher = dataset.batcher("train", n, Order::InOrder).expect("a batcher");
    let mut skipped: Vec<FieldSlice<'_>> = dataset.facts.data.fields.iter().map(|_| FieldSlice::Skip).collect();
    // 49 places of the long one, 2 of the short one: each next token once.
    assert_eq!(batcher.fill(0, &mut skipped).n_counted, 51);
    assert_eq!(n, 3);
}

/// What is wrong is told by row and turn, before anything runs.
#[test]
fn mistakes_in_rows() {
    let scratch = Scratch::new();
    let user = |text: &str| json!({ "role": "user", "content": text });
    let says = |text: &str| json!({ "role": "assistant", "content": text });
    let long = "x".repeat(200);
    scratch.write("silent.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    scratch.write("strict.jinja", "{{ raise_exception('roles must alternate') }}");
    scratch.write("endless.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    scratch.write("broken.jinja", "{% for m in messages %}\n{{ m.content");
    let jinja = |path: &str| Some(TemplateSpec::File { path: path.to_string(), span: Span::default() });
    for (messages, template, code, message) in [
        (
            json!([user("q"), says("a")]),
            jinja("silent.jinja"),
            NO_END,
            "row 2, turn 2: the end of the answer is never learned",
        ),
        (json!([user("q"), says("a")]), jinja("strict.jinja"), BAD_CHAT, "roles must alternate"),
        (json!([user("q"), says("a")]), jinja("endless.jinja"), BAD_CHAT, "runs on without end"),
        (json!([user("q"), says("a")]), jinja("broken.jinja"), TEMPLATE, "template cannot be used"),
        (json!([user("q"), says("a")]), None, TEMPLATE, "the tokenizer has none"),
        (json!([user(&long), says("a")]), Some(TemplateSpec::Chatml), CUT_EMPTY, "row 2, turn 2: cut at 128 tokens"),
        (json!([user("q")]), Some(TemplateSpec::Chatml), BAD_ROW, "row 2: it has no answer"),
        (json!([{ "role": "judge", "content": "x" }]), Some(TemplateSpec::Chatml), BAD_ROW, "row 2, turn 1: `judge`"),
        (
            json!([user("q"), { "role": "assistant", "content": [{ "type": "image" }] }]),
            Some(TemplateSpec::Chatml),
            BAD_ROW,
            "row 2, turn 2: it has a part of type `image`",
        ),
    ] {
        let rows =
            format!("{}\n{}\n", json!({ "messages": [user("ok"), says("fine")] }), json!({ "messages": messages }));
        scratch.write("rows.json", rows);
        let block = DataSpec { template, ..block(pad(128)) };
        let problems = prepare(&block, &scratch.0, None).expect_err(message);
        let described = crate::describe(&block, &scratch.0, None).expect_err("a check finds it too");
        assert_eq!(described, problems);
        let found = problems.iter().find(|problem| problem.message.contains(message));
        let found = found
            .or(problems.iter().find(|problem| problem.code == code && message.starts_with("row 2, turn 2: the end")));
        assert!(found.is_some_and(|problem| problem.code == code), "{message}: {problems:?}");
    }
}

#[test]
fn long_rows_may_be_left_out() {
    let scratch = Scratch::new();
    let row = |text: &str| json!({ "instruction": "say", "input": "it", "output": text });
    scratch.write("rows.json", json!([row("short"), row(&"long ".repeat(50))]).to_string());
    let mut dropped = block(pad(128));
    if let Some(Source::Chat { long, .. }) = dropped.sources.first_mut() {
        *long = Long::Drop;
    }
    let whole = prepare(&block(pad(128)), &scratch.0, None).expect("prepared");
    let less = prepare(&dropped, &scratch.0, None).expect("prepared");
    assert_eq!((whole.facts.data.rows[0].1, less.facts.data.rows[0].1), (2, 1));
    assert!(less.facts.notes.iter().any(|note| note.contains("left out")), "{:?}", less.facts.notes);
}

#[test]
fn a_text_that_begins_twice() {
    let Some(folder) = shared("tokenizers/bpe-2000") else { return };
    let scratch = Scratch::new();
    scratch.write("tok/tokenizer.json", std::fs::read(folder.join("tokenizer.json")).expect("a file"));
    let config = std::fs::read_to_string(folder.join("tokenizer_config.json")).expect("a file");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("json");
    config["bos_token"] = json!("<|begin_of_text|>");
    config["eos_token"] = json!("<|end_of_text|>");
    config["chat_template"] = json!("{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}");
    scratch.write("tok/tokenizer_config.json", config.to_string());
    let tokenizer = TokenizerSpec::File { path: "tok".to_string(), span: Span::default() };
    let block = DataSpec { tokenizer: Some(tokenizer), template: None, ..block(pad(64)) };
    let rows = |first: &str| json!([{ "conversations": [{ "from": "human", "value": first }, { "from": "gpt", "value": "yes" }] }]);
    scratch.write("rows.json", rows("hi").to_string());
    let dataset = prepare(&block, &scratch.0, None).expect("prepared");
    let fields = batch(&dataset, 1, 64);
    let end = dataset.tokenizer.as_ref().and_then(Tokenizer::end_of_text).expect("an end");
    assert_eq!(fields["next"][0].iter().filter(|id| **id as u32 == end).count(), 2);
    scratch.write("rows.json", rows("<|begin_of_text|>hi").to_string());
    let problems = prepare(&block, &scratch.0, None).expect_err("twice");
    assert_eq!(problems[0].code, TWICE_BEGUN);
    assert!(problems[0].message.starts_with("row 1, turn "), "{problems:?}");
}

/// Every file of chats of the shared data, with a template that knows tools.
#[test]
fn the_files_of_the_shared_data() {
    let Some(folder) = shared("sft") else { return };
    for (name, n) in [
        ("alpaca_en_demo.json", 999),
        ("alpaca_zh_demo.json", 1000),
        ("identity.json", 91),
        ("glaive_toolcall_en_demo.json", 300),
        ("glaive_toolcall_zh_demo.json", 300),
        ("v1_sft_demo.jsonl", 500),
        ("reason_tool_use_demo_50.jsonl", 50),
    ] {
        let source = chats(&folder.join(name).to_string_lossy());
        let block = DataSpec { sources: vec![source], ..block(pack(8192)) };
        let dataset = prepare(&block, Path::new(""), None).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
        let Content::Packed(rows, _) = &dataset.parts[0].content else { panic!("packed") };
        assert_eq!(rows.ends.len(), n, "{name}");
        assert!(rows.span_ends.is_sorted_by(|a, b| a < b), "{name}: each row has an answer");
    }
}
