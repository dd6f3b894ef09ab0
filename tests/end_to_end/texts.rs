//! Text in, text out: the model of a folder with its own tokenizer and template, and drafts that propose.
//!
//! The folders are those of `tests/fixtures/hf`, copied, with a tokenizer of letters beside them: id 1 begins a text, 2 ends it.

use mdl_runtime::npz::{self, Array};
use serde_json::{Value, json};

use super::*;

/// From id 3 on.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,?!\n";

fn ids_of(text: &str) -> Vec<i64> {
    text.chars().map(|c| LETTERS.chars().position(|letter| letter == c).expect("a letter") as i64 + 3).collect()
}

fn text_of(ids: &[i64]) -> String {
    ids.iter().filter(|id| **id >= 3).map(|id| char::from(LETTERS.as_bytes()[*id as usize - 3])).collect()
}

/// A published folder with a tokenizer; as that of Llama it puts a token in front of a text, and one behind for training.
fn model(folder: &Folder, name: &str, fixture: &str) -> String {
    let from = root().join("tests/fixtures/hf").join(fixture);
    for file in ["config.json", "model.safetensors"] {
        folder.write(&format!("{name}/{file}"), std::fs::read(from.join(file)).expect("the fixture"));
    }
    let special = ["<unk>", "<s>", "</s>"].map(str::to_string);
    let tokens: Vec<String> = special.iter().cloned().chain(LETTERS.chars().map(String::from)).collect();
    assert_eq!(tokens.len(), 61, "the fixtures' vocabulary");
    let vocab: serde_json::Map<String, Value> = tokens.iter().cloned().zip((0..).map(|id: u32| json!(id))).collect();
    let added = special.iter().zip(0..).map(|(content, id)| {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false })
    });
    let around = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let whole = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let named = |token: &str, id: u32| json!({ "id": token, "ids": [id], "tokens": [token] });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": null, "decoder": { "type": "Fuse" },
        "post_processor": {
            "type": "TemplateProcessing", "single": [around("<s>"), whole, around("</s>")], "pair": [whole],
            "special_tokens": { "<s>": named("<s>", 1), "</s>": named("</s>", 2) }
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "fuse_unk": false,
            "end_of_word_suffix": null, "byte_fallback": false, "vocab": vocab, "merges": []
        }
    });
    folder.write(&format!("{name}/tokenizer.json"), tokenizer.to_string());
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}. {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant. {% endif %}";
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
    folder.write(&format!("{name}/tokenizer_config.json"), config.to_string());
    folder.path(name).to_str().expect("a plain path").to_string()
}

/// The likeliest ids after these, by the command that knows no text.
fn likeliest(dir: &str, folder: &Folder, ids: &[i64], new: usize) -> Vec<i64> {
    let path = folder.path("ids.npz");
    let rows = Array::i64s("input_ids", vec![1, ids.len() as u64], ids);
    npz::write(&path, &[rows]).expect("the folder can be written");
    let path = path.to_str().expect("a plain path");
    let said: Value =
        serde_json::from_str(&succeed(&["generate", dir, "--ids", path, "--new", &new.to_string(), "--greedy"]))
            .expect("JSON");
    let all = said["sequences"][0].as_array().expect("a row").iter().filter_map(Value::as_i64);
    all.skip(ids.len()).collect()
}

/// What a command prints with `--json`, read back.
fn told(words: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[words, &["--json", "--greedy"]].concat())).expect("one line of JSON")
}

#[test]
fn a_folder_goes_on_with_a_text() {
    let folder = Folder::new();
    let dir = model(&folder, "m", "mixtral");
    let prompt = "Hello, who are you?";
    let own = likeliest(&dir, &folder, &[&[1], &ids_of(prompt)[..]].concat(), 40);
    let end = own.iter().position(|id| *id == 2).map_or(own.len(), |at| at + 1);
    let said = told(&["generate", &dir, "--prompt", prompt, "--new", "40"]);
    assert_eq!(said["text"], text_of(&own[..end]));
    assert_eq!(said["tokens"], end);
    // It ends where the folder says.
    let at = (1..end).find(|at| !own[..*at].contains(&own[*at])).expect("another token");
    folder.write("m/generation_config.json", json!({ "eos_token_id": [own[at], 2] }).to_string());
    let said = told(&["generate", &dir, "--prompt", prompt, "--new", "40"]);
    assert_eq!(said["tokens"], at + 1);
    // Without a tokenizer there is nothing to read the text with.
    std::fs::remove_file(folder.path("m/tokenizer.json")).expect("the folder can be written");
    let output = run(&["generate", &dir, "--prompt", prompt]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("holds no tokenizer"), "{said}");
}

#[test]
fn a_folder_chats_by_its_template() {
    let folder = Folder::new();
    let dir = model(&folder, "m", "llama");
    let spelled = |text: &str| [&[1], &ids_of(text)[..]].concat();
    let first = likeliest(&dir, &folder, &spelled("user. Who?\nassistant. "), 8);
    assert!(!first.contains(&2), "the fixture's model does not end so soon: {first:?}");
    let answer = text_of(&first);
    let whole = format!("user. Who?\nassistant. {answer}\nuser. And why?\nassistant. ");
    let second = likeliest(&dir, &folder, &spelled(&whole), 8);
    let words = ["chat", &dir, "--new", "8", "--greedy", "--json"];
    let output = talk(&words, "Who?\nAnd why?\n/clear\nWho?\n/quit\nWho?\n");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let texts: Vec<&str> = answers.iter().filter_map(|line| line["answer"].as_str()).collect();
    let end = second.iter().position(|id| *id == 2).unwrap_or(second.len());
    assert_eq!(texts, [answer.as_str(), &text_of(&second[..end]), answer.as_str()]);
    // With little room the oldest is forgotten, and what does not fit at all is refused.
    let narrow = [&words[..], &["--room", "40"]].concat();
    let output = talk(&narrow, "Who?\nAnd why?\n");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let last: Value = serde_json::from_str(lines.lines().last().expect("two answers")).expect("JSON");
    assert_eq!(last["prompt_tokens"], spelled("user. And why?\nassistant. ").len());
    let output = talk(&narrow, &format!("{}\n", "Who? ".repeat(20)));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the model sees 40"));
    assert_eq!(output.status.code(), Some(3));
    folder.write("m/tokenizer_config.json", json!({ "bos_token": "<s>", "eos_token": "</s>" }).to_string());
    let output = talk(&words, "Who?\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("no chat template"), "{said}");
}

/// The blocks that the README shows, on a folder that is here.
#[test]
fn a_folder_is_tuned_on_chats_and_talked_with() {
    let folder = Folder::new();
    model(&folder, "m", "llama");
    let rows = [("Who are you?", "I am a llama."), ("And you?", "Me too.")]
        .map(|(question, answer)| json!({ "instruction": question, "input": "", "output": answer }).to_string());
    folder.write("rows.jsonl", rows.join("\n"));
    // A template that says where an answer ends.
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}. {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant. {% endif %}";
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
    folder.write("m/tokenizer_config.json", config.to_string());
    let readme = read(&root().join("README.md"));
    let (_, shown) = readme.split_once("```\ndata chats").expect("the blocks of a fine-tuning");
    let (shown, _) = shown.split_once("```").expect("their end");
    let blocks = shown.replace("Qwen3-0.6B", "m").replace("steps     = 500", "steps = 150, batch = 2");
    let talked = |name: &str, blocks: &str| {
        let recipe = format!("use std.models.pretrained\naxis t = 64\ndata chats{blocks}");
        let recipe = folder.write(name, recipe);
        let recipe = recipe.to_str().expect("a plain path");
        succeed(&["run", recipe, "--threads", "2"]);
        let output = talk(&["chat", recipe, "--greedy", "--quiet"], "Who are you?\n/clear\nAnd you?\n");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(blocks.contains("batch") && blocks.contains("adapt"), "{blocks}");
    talked("adapted.mdl", &blocks.replace("150", "3"));
    // So small a model learns with all of its weights.
    let whole: Vec<&str> = blocks.lines().filter(|line| !line.contains("adapt")).collect();
    let whole = whole.join("\n").replace("lr: 2e-4", "lr: 1e-2");
    assert_eq!(talked("whole.mdl", &whole), "I am a llama.\nMe too.\n");
}

/// Whoever proposes, and however much: what is written is what the model writes alone.
#[test]
fn a_draft_changes_no_word() {
    let folder = Folder::new();
    let (large, small) = (model(&folder, "large", "llama"), model(&folder, "small", "mistral"));
    let words = ["generate", large.as_str(), "--prompt", "Once upon a time", "--new", "70"];
    let alone = told(&words);
    let mut shares = Vec::new();
    for (draft, ahead) in [(&small, "1"), (&small, "4"), (&large, "3"), (&large, "7")] {
        let with = told(&[&words[..], &["--draft", draft, "--ahead", ahead]].concat());
        assert_eq!(with["text"], alone["text"], "{draft}, {ahead}");
        let [proposed, accepted] = ["proposed", "accepted"].map(|key| with[key].as_u64().expect("a number"));
        assert!(proposed > 0 && accepted <= proposed, "{with}");
        shares.push((proposed, accepted));
    }
    assert_eq!(shares[2].0, shares[2].1, "a model agrees with itself");
    assert_eq!(shares[3].0, shares[3].1);
    assert!(shares[1].1 < shares[1].0, "two models do not");
    // Also where the text is longer than what is seen.
    let narrow = [&words[..], &["--room", "33"]].concat();
    let with = told(&[&narrow[..], &["--draft", &small, "--ahead", "5"]].concat());
    assert_eq!(with["text"], told(&narrow)["text"]);
    // In the terminal the share is told beside the text.
    let output = run(&[&words[..], &["--draft", &small, "--greedy"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("proposed tokens accepted ("), "{said}");
}

#[test]
fn a_draft_that_cannot_help_is_refused() {
    let folder = Folder::new();
    let large = model(&folder, "large", "llama");
    let (recurrent, other) = (model(&folder, "recurrent", "mamba"), model(&folder, "other", "mistral"));
    let text = std::fs::read_to_string(folder.path("other/tokenizer.json")).expect("a tokenizer");
    folder.write("other/tokenizer.json", text.replace("\"a\":3", "\"a\":4").replace("\"b\":4", "\"b\":3"));
    for (author, draft, code, why) in [
        (&large, &other, 2, "has another tokenizer"),
        (&large, &recurrent, 2, "cannot take back"),
        (&recurrent, &large, 3, "read one position at a time"),
        (&large, &folder.path("none").display().to_string(), 1, "there is no file"),
    ] {
        let output = run(&["generate", author, "--prompt", "Once", "--draft", draft]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{draft}: {said}");
        assert!(said.contains(why), "{draft}: {said}");
    }
}

/// A stage of the recipe is a draft for another one.
#[test]
fn a_stage_proposes_for_another() {
    let folder = Folder::new();
    let recipe = folder.write(
        "two.mdl",
        r#"
use std.models.Gpt
axis t = 24
data plays { source = text("plays.txt"), tokenizer = chars(), window = t }
model wide = Gpt[vocab: plays.vocab, context: t, width: 32](heads: 2, layers: 2)
model thin = Gpt[vocab: plays.vocab, context: t, width: 16](heads: 2, layers: 1)
train large { model = wide, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 60, batch = 8 }
train small { model = thin, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 60, batch = 8 }
"#,
    );
    folder.write("plays.txt", "to be, or not to be, that is the question: ".repeat(30));
    let recipe = recipe.to_str().expect("a plain path");
    succeed(&["run", recipe, "--threads", "2"]);
    let words = ["generate", recipe, "--stage", "large", "--prompt", "to be", "--new", "60"];
    let alone = told(&words);
    let with = told(&[&words[..], &["--draft", "small"]].concat());
    assert_eq!(with["text"], alone["text"]);
    let [proposed, accepted] = ["proposed", "accepted"].map(|key| with[key].as_u64().expect("a number"));
    assert!(accepted * 5 > proposed && proposed > 0, "both have learned the line: {with}");
    let output = run(&[&words[..], &["--draft", "tiny"]].concat());
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}
