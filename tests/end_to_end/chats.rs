//! Chats, from rows of JSON to a conversation: what is packed teaches the same, and a model says what it was taught.

use super::*;

/// A question of `u` letters and an answer of `a`.
fn row(u: usize, a: usize) -> String {
    let letters = |n: usize, from: u8| (0..n).map(|i| char::from(from + (i * i % 26) as u8)).collect::<String>();
    format!(
        r#"{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "{}"}}]}}"#,
        letters(u, b'a'),
        letters(a, b'A')
    )
}

/// The same chats a row each, and several in a row: every step has the same loss and the same gradient.
#[test]
fn packed_or_not_is_the_same_training() {
    let folder = Folder::new();
    // Of 60 bytes and these: 70, 70 and 61 positions fill a row of 202, and so do 69, 65 and 65.
    let rows: Vec<String> = [(2, 8), (5, 5), (3, 6), (1, 4), (4, 1), (0, 1)].map(|(u, a)| row(u, a)).into();
    folder.write("rows.jsonl", rows.join("\n"));
    let stages = |objective: &str, form: &str, batch: u32| {
        let name = format!("{form}_{}", objective.replace(['(', ')', ':', ' '], ""));
        let recipe = format!(
            r#"
use std.models.Llama
axis t = {}, width = 32, hidden = 64
data chats {{ source = chat("rows.jsonl", format: messages), tokenizer = bytes(), template = chatml(), {form} = t }}
model small = Llama[vocab: chats.vocab, width, hidden](heads: 4, kv_heads: 2, layers: 2)
train tuned {{ model = small, data = chats, objective = {objective}, optimizer = adamw(lr: 1e-2), batch = {batch}, steps = 4 }}
"#,
            if form == "pad" { 72 } else { 202 }
        );
        let path = folder.write(&format!("{name}.mdl"), recipe);
        succeed(&["run", path.to_str().expect("a path of ASCII"), "--threads", "1"]);
        metrics(&folder.path(&format!("runs/{name}/tuned/metrics.jsonl")))
    };
    let mut losses = Vec::new();
    for objective in ["sft()", "sft(mask: everyone)", "next_token"] {
        let (padded, packed) = (stages(objective, "pad", 6), stages(objective, "pack", 2));
        assert_eq!((padded.len(), packed.len()), (4, 4));
        for (one, other) in padded.iter().zip(&packed) {
            for key in ["loss", "grad_norm"] {
                let (a, b) = (one[key].as_f64().expect("a number"), other[key].as_f64().expect("a number"));
                assert!((a - b).abs() <= 1e-5 * a.abs(), "{objective}, {key}: {a} alone, {b} packed");
            }
        }
        losses.push(padded[0]["loss"].as_f64().expect("a number"));
    }
    assert_eq!(losses[0], losses[2], "the mask counts what the assistant says");
    assert_ne!(losses[0], losses[1]);
}

#[test]
fn a_model_says_what_it_was_taught() {
    let folder = Folder::new();
    folder.write(
        "rows.json",
        r#"[{"instruction": "hi", "input": "", "output": "Hello there, you!"}, {"instruction": "bye", "input": "", "output": "See you later."}]"#,
    );
    let recipe = folder.write(
        "talk.mdl",
        r#"
use std.models.Llama
axis t = 64, width = 48, hidden = 96
data chats { source = chat("rows.json"), tokenizer = bpe(vocab: 280), template = chatml(), pack = t }
model small = Llama[vocab: chats.vocab, width, hidden](heads: 4, kv_heads: 2, layers: 2)
train tuned { model = small, data = chats, objective = sft(mask: assistant), optimizer = adamw(lr: 5e-3), batch = 2, steps = 120 }
"#,
    );
    let recipe = recipe.to_str().expect("a path of ASCII");
    succeed(&["run", recipe, "--threads", "2"]);
    let output = talk(&["chat", recipe, "--temperature", "0", "--json"], "hi\n/clear\nbye\n");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(answers.len(), 2, "{out}");
    assert_eq!(answers[0]["answer"], "Hello there, you!");
    assert_eq!(answers[1]["answer"], "See you later.");
    // In the terminal the text alone, cut where the user says.
    let output = talk(&["chat", recipe, "--temperature", "0", "--quiet", "--stop", " there"], "hi\n/quit\nbye\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Hello\n");
}

#[test]
fn chats_that_cannot_be_learned() {
    let folder = Folder::new();
    folder.write("rows.jsonl", row(3, 3));
    folder.write("silent.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    folder.write("endless.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}");
    for (more, code, says) in [
        ("pack = t, template = jinja(\"silent.jinja\")", "E0516", "row 1, turn 2"),
        ("pack = t, template = jinja(\"endless.jinja\")", "E0515", "without end"),
        ("pack = t", "E0514", "template = chatml()"),
        ("window = t, template = chatml()", "E0308", "pack = t"),
        ("pad = t, pack = t, template = chatml()", "E0308", "do not go together"),
    ] {
        let recipe =
            format!("axis t = 64\ndata chats {{ source = chat(\"rows.jsonl\"), tokenizer = bytes(), {more} }}\n");
        let recipe = folder.write("recipe.mdl", recipe);
        let output = run(&["check", recipe.to_str().expect("a path of ASCII")]);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{more}: {err}");
        assert!(err.contains(code) && err.contains(says), "{more}: {err}");
    }
}
