//! `mdlc verify`: what must be the same is, and what is not is named.

use super::*;

const DATA: &str = r#"
use std.models.Llama
axis t = 160, width = 32, hidden = 48
data chats { source = chat("rows.jsonl", format: messages), tokenizer = bytes(), template = chatml(), pack = t }
"#;

/// Chats of several lengths, some of which share a row of `t`.
fn rows() -> String {
    let row = |n: usize| {
        let answer = "yes, no, ".repeat(n);
        format!(
            r#"{{"messages": [{{"role": "user", "content": "{n}?"}}, {{"role": "assistant", "content": "{answer}"}}]}}"#
        )
    };
    (1..9).map(|n| row(1 + n * n % 5)).collect::<Vec<_>>().join("\n")
}

/// The ways of the recipe's one stage, and the exit code.
fn ways(model: &str, objective: &str) -> (Vec<serde_json::Value>, Option<i32>) {
    let folder = Folder::new();
    folder.write("rows.jsonl", rows());
    let recipe = folder.write(
        "recipe.mdl",
        format!(
            "{DATA}{model}
train tuned {{ model = small, data = chats, objective = {objective}, optimizer = adamw(lr: 1e-2), batch = 4, micro = 4, steps = 4 }}
"
        ),
    );
    let output = run(&["verify", recipe.to_str().expect("a path of ASCII"), "--threads", "2", "--json"]);
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    let ways = out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{out}{err}")));
    (ways.collect(), output.status.code())
}

const LLAMA: &str = "model small = Llama[vocab: chats.vocab, width, hidden](heads: 4, kv_heads: 2, layers: 2)";

#[test]
fn every_way_is_the_same_training() {
    let (ways, code) = ways(LLAMA, "sft()");
    let names: Vec<&str> = ways.iter().filter_map(|way| way["way"].as_str()).collect();
    assert_eq!(names[..4], ["in 2 pieces", "in 4 pieces", "recomputing", "on 1 thread"]);
    let packed = names[4].strip_prefix("one document a row, ").and_then(|rest| rest.strip_suffix(" rows"));
    assert!(packed.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n > 4), "{names:?}");
    assert!(ways.iter().all(|way| way["close"] == true), "{ways:?}");
    assert_eq!(code, Some(0));
}

/// A model that looks across the borders of documents learns something else from packed rows.
#[test]
fn a_model_that_mixes_documents_is_found() {
    let mixing = "
layer Mixing[vocab, width, hidden]() {
  llama = Llama[vocab, width, hidden](heads: 4, kv_heads: 2, layers: 2)
  fn call(ids: int[.., t], document: int[.., t] = 0, position: int[.., t] = 0) -> [.., t, vocab] = llama(ids)
}
model small = Mixing[vocab: chats.vocab, width, hidden]()";
    let (ways, code) = ways(mixing, "sft()");
    let wrong: Vec<&serde_json::Value> = ways.iter().filter(|way| way["close"] == false).collect();
    assert_eq!(wrong.len(), 1, "{ways:?}");
    assert!(wrong[0]["way"].as_str().is_some_and(|way| way.starts_with("one document a row")));
    assert!(wrong[0]["weight"].as_str().is_some_and(|weight| weight.starts_with("llama.")), "{wrong:?}");
    assert_eq!(code, Some(1));
}

/// What cannot be compared is said, with the reason.
#[test]
fn ways_that_there_are_not_are_left_out() {
    let chance = format!("{LLAMA}\nfn noisy(model, batch) = sft()(model, batch) * (1.0 + uniform[]())");
    let (ways, code) = ways(&chance, "noisy");
    let last = ways.last().expect("ways");
    assert!(last["left_out"].as_str().is_some_and(|why| why.contains("dropout")), "{ways:?}");
    assert_eq!(code, Some(0));
}
