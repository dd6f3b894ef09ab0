//! Encoding is undone by decoding, learned tokenizers are the same every time, loaded ones agree with recorded ids.

use super::*;
use crate::problem::{NO_FILE, UNKNOWN_CHAR};
use crate::testing::{Scratch, shared};

const TEXT: &str =
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. Ünïcode → 好 😀\n";

fn there_and_back(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text).expect("encoded");
    assert!(ids.iter().all(|&id| id < tokenizer.vocab_size()));
    assert_eq!(tokenizer.decode(&ids), text);
    let again = Tokenizer::from_json(&tokenizer.to_json()).expect("read back");
    assert_eq!(again.encode(text).expect("encoded"), ids);
    assert_eq!((again.vocab_size(), again.end_of_text()), (tokenizer.vocab_size(), tokenizer.end_of_text()));
    let mut stream = tokenizer.stream();
    let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
    streamed.push_str(&stream.finish());
    assert_eq!(streamed, text, "in a stream");
}

#[test]
fn characters() {
    let tokenizer = Tokenizer::chars(&["hello\n", "好"]);
    assert_eq!(tokenizer.vocab_size(), 6);
    assert_eq!(tokenizer.encode("\nehlo好").expect("encoded"), [0, 1, 2, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&[2, 1, 99]), "he");
    there_and_back(&Tokenizer::chars(&[TEXT]), TEXT);
    for (text, shown, byte) in [("hex", "`x` (U+0078)", 2), ("h\té", "`\\t` (U+0009)", 1), ("é", "`é` (U+00E9)", 0)]
    {
        let problem = tokenizer.encode(text).expect_err("unknown");
        assert_eq!((problem.code, problem.byte), (UNKNOWN_CHAR, Some(byte)));
        assert!(problem.message.contains(shown), "{problem}");
    }
}

#[test]
fn bytes() {
    there_and_back(&Tokenizer::bytes(), TEXT);
    assert_eq!(Tokenizer::bytes().encode("é").expect("encoded"), [0xc3, 0xa9]);
    assert_eq!(Tokenizer::bytes().decode(&[0xc3, 300, 0x41]), "\u{fffd}A");
}

#[test]
fn broken_files() {
    let chars_unsorted = r#"{"type": "chars", "chars": "ba"}"#;
    let broken_model = r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}"#;
    for text in ["", "{", "[]", "{}", r#"{"type": "words"}"#, chars_unsorted, broken_model] {
        assert_eq!(Tokenizer::from_json(text).expect_err(text).code, TOKENIZER, "{text}");
    }
    let scratch = Scratch::new();
    assert_eq!(files_at(".", &scratch.0).expect_err("empty folder").code, NO_FILE);
}

fn corpus() -> String {
    let words = ["the", "king", "of", "France", "speaks", "and", "speaking,", "he", "spoke:", "\n", "Ünder", "好的"];
    let pick = |i: u64| words[(crate::permutation::mix(7, 0, i) % words.len() as u64) as usize];
    (0..120_000).flat_map(|i| [pick(i), if i % 13 == 0 { "\n" } else { " " }]).collect()
}

#[test]
fn learned_pieces_are_the_same_every_time() {
    let corpus = corpus();
    let first = Tokenizer::learn_bpe(&[&corpus], 400, &[]).expect("learned");
    assert_eq!(first.vocab_size(), 400);
    assert_eq!(first.end_of_text(), Some(0));
    for _ in 0..2 {
        assert_eq!(Tokenizer::learn_bpe(&[&corpus], 400, &[]).expect("learned").to_json(), first.to_json());
    }
    there_and_back(&first, TEXT);
    let n = first.encode("the king of France speaks and speaking").expect("encoded").len();
    assert!(n <= 8, "{n} pieces for seven words that were seen often");
    assert!(check_bpe_size(256).is_err() && check_bpe_size(257).is_ok());
}

/// Long texts are encoded in parts; the parts must not show.
#[test]
fn parts_do_not_show() {
    let corpus = corpus();
    assert!(corpus.len() > 2 << 18, "more than two parts");
    let tokenizer = Tokenizer::learn_bpe(&[&corpus], 500, &[]).expect("learned");
    let Kind::Pieces(pieces) = &tokenizer.kind else { panic!("pieces") };
    let whole = pieces.encode_whole(&corpus).expect("encoded");
    assert!(pieces.is_cuttable());
    assert!(tokenizer.encode(&corpus).expect("encoded") == whole, "prose");
    let blank_lines = "a\n\n\n b\n\tc\n  \nd\n".repeat(40_000);
    let whole = pieces.encode_whole(&blank_lines).expect("encoded");
    assert!(tokenizer.encode(&blank_lines).expect("encoded") == whole, "blank lines");
}

/// Where SentencePiece itself, which made the reference, and `transformers` differ: special tokens that stand in a text, and a letter
/// with several accents, of which the `tokenizers` crate replaces none or all.
const BY_SENTENCEPIECE_ALONE: [&str; 2] = ["<|endoftext|> and [MASK] [CLS] </s>", "a\u{300}\u{301}\u{302} stacked"];

#[test]
fn reference_ids() {
    let Some(reference) = shared("tokenizers/reference_ids.jsonl") else { return };
    let lines = fs::read_to_string(reference).expect("reference");
    let names =
        ["gpt2", "bpe-2000", "bpe-2000-special", "bert-base-uncased", "bert-base-cased", "bert-base-chinese", "t5-32k"];
    for name in names {
        let folder = shared(&format!("tokenizers/{name}")).expect("its folder lies beside the reference");
        // The reference was made from the tables alone.
        let is_table = |path: &&std::path::PathBuf| !path.ends_with("tokenizer_config.json");
        let files: Vec<SourceFile> = files_at(&folder.to_string_lossy(), Path::new(""))
            .expect("a tokenizer")
            .iter()
            .filter(is_table)
            .flat_map(|path| crate::source::read_files(&path.to_string_lossy(), Path::new("")).expect("read"))
            .collect();
        let tokenizer = Tokenizer::from_files(&files).expect(name);
        assert_eq!(vocab_of_files(&files).expect("a size"), tokenizer.vocab_size(), "{name}");
        let mut n_checked = 0;
        for line in lines.lines() {
            let value: Value = serde_json::from_str(line).expect("json");
            let text = value["text"].as_str().expect("a text");
            let want: Vec<u32> = serde_json::from_value(value[name].clone()).expect("ids");
            n_checked += 1;
            if name == "t5-32k" && BY_SENTENCEPIECE_ALONE.contains(&text) {
                continue;
            }
            assert_eq!(tokenizer.encode(text).expect("encoded"), want, "{name}: {text:?}");
        }
        assert_eq!(n_checked, 60, "{name}");
    }
}

#[test]
fn merges_that_do_not_belong() {
    let scratch = Scratch::new();
    let file = |name: &str, text: &str| {
        scratch.write(name, text);
        crate::source::read_files(name, &scratch.0).expect("read").remove(0)
    };
    let vocab = r#"{"a": 0, "b": 1, "ab": 2}"#;
    let good = [file("vocab.json", vocab), file("merges.txt", "#version: 0.2\na b\n")];
    let tokenizer = Tokenizer::from_files(&good).expect("a tokenizer");
    assert_eq!(tokenizer.encode("abb").expect("encoded"), [2, 1]);
    for merges in ["a c\n", "a b\nb a\n", "ab\n", "a b c\n"] {
        let problem =
            Tokenizer::from_files(&[file("vocab.json", vocab), file("merges.txt", merges)]).expect_err(merges);
        assert_eq!(problem.code, TOKENIZER, "{merges}");
        assert!(problem.line.is_some(), "{merges}");
    }
}

/// A normalizer or a decoder that writes a book for a letter, by itself or with others, is refused before it sees a text.
#[test]
fn texts_are_not_blown_up() {
    let replace =
        |content: usize| json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(content) });
    let with = |part: &str, value: Value| {
        let mut tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": null,
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1 }, "merges": [], "unk_token": null }
        });
        tokenizer[part] = value;
        Tokenizer::from_json(&tokenizer.to_string())
    };
    assert!(with("normalizer", replace(200)).is_ok());
    let twice = |name: &str| json!({ "type": "Sequence", name: [replace(20), replace(20)] });
    for (part, value) in
        [("normalizer", replace(300)), ("normalizer", twice("normalizers")), ("decoder", twice("decoders"))]
    {
        let problem = with(part, value).expect_err(part);
        assert_eq!(problem.code, TOKENIZER);
        assert!(problem.message.contains("times as long"), "{}", problem.message);
    }
}
