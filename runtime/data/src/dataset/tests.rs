//! Facts before and after encoding, the cache, and blocks whose fields do not go together.

use super::*;
use crate::batch::FieldSlice;
use crate::facts::{self, describe};
use crate::problem::{BAD_LABEL, EMPTY, MISMATCH, NO_FILE, UNKNOWN_CHAR, WINDOW};
use crate::testing::{
    self, Scratch, addition, csv, files, idx, jsonl, lines, pad, random_tokens, shared, shares, spec, text, window,
};
use mdl_lang::spec::Tokenizer as TokenizerSpec;
use std::fs;
use std::time::Instant;

const PLAY: &str =
    "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n";

fn play(scratch: &Scratch) -> DataSpec {
    scratch.write("play.txt", PLAY.repeat(20));
    let mut spec = spec(text("play.txt"));
    spec.split = shares(&[("train", 0.9), ("val", 0.1)]);
    spec
}

#[test]
fn facts_are_known_before_the_run_and_are_true() {
    let scratch = Scratch::new();
    let spec = play(&scratch);
    let facts = describe(&spec, &scratch.0, None).expect("facts");
    let n = 20 * PLAY.len() as u64;
    assert_eq!(facts.data.vocab, PLAY.chars().collect::<std::collections::BTreeSet<_>>().len() as u64);
    assert_eq!(facts.parts[0].tokens, Some(n * 9 / 10));
    assert_eq!(
        facts.data.rows,
        [("train".to_string(), (n * 9 / 10 - 1).div_ceil(8)), ("val".to_string(), (n / 10 - 1).div_ceil(8))]
    );
    assert_eq!(facts.parts[1].counted_bytes, n / 10 - 1);
    let shown: Vec<String> =
        facts.data.fields.iter().map(|f| format!("{}: {}[{}]", f.name, f.dtype, f.axes[0])).collect();
    assert_eq!(shown, ["ids: i32[t:8]", "next: i32[t:8]", "mask: bool[t:8]"]);
    assert_eq!(prepare(&spec, &scratch.0, None).expect("prepared").facts, facts);
    assert_eq!(Facts::from_json(&facts.to_json()).expect("read back"), facts);
}

#[test]
fn counting_a_text_gives_what_encoding_it_gives() {
    let scratch = Scratch::new();
    scratch.write(
        "play.txt",
        "Łódź → “Zürich”, naïve 𝄞 text; and a stretch of plain ASCII that is longer than a block.\n".repeat(9),
    );
    for tokenizer in [TokenizerSpec::Chars, TokenizerSpec::Bytes] {
        let mut spec = spec(text("play.txt"));
        (spec.tokenizer, spec.split) = (Some(tokenizer), shares(&[("train", 0.61), ("val", 0.39)]));
        let told = describe(&spec, &scratch.0, None).expect("facts");
        assert_eq!(prepare(&spec, &scratch.0, None).expect("prepared").facts, told);
    }
    scratch.write("rows.jsonl", "{\"t\": \"Łódź\", \"l\": \"a\"}\n{\"t\": \"a longer text\", \"l\": \"b\"}\n");
    let mut sums = spec(addition(1));
    sums.form = pad(5);
    for mut spec in [sums, spec(jsonl("rows.jsonl", "t", Some("l"))), spec(jsonl("rows.jsonl", "t", None))] {
        if !matches!(spec.form, Form::Pad { .. }) {
            spec.form = pad(12);
        }
        for tokenizer in [TokenizerSpec::Chars, TokenizerSpec::Bytes] {
            spec.tokenizer = Some(tokenizer);
            let told = describe(&spec, &scratch.0, None).expect("facts");
            assert_eq!(prepare(&spec, &scratch.0, None).expect("prepared").facts, told);
        }
    }
}

#[test]
fn the_hash_follows_what_batches_hold() {
    let scratch = Scratch::new();
    let spec = play(&scratch);
    let hash = |spec: &DataSpec| describe(spec, &scratch.0, None).expect("facts").data.hash;
    let first = hash(&spec);
    scratch.write("other.txt", PLAY.repeat(20));
    assert_eq!(hash(&DataSpec { sources: vec![text("other.txt")], ..spec.clone() }), first, "the same bytes elsewhere");
    assert_ne!(hash(&DataSpec { seed: 2, ..spec.clone() }), first);
    assert_ne!(hash(&DataSpec { form: window(9), ..spec.clone() }), first);
    scratch.write("play.txt", PLAY.repeat(21));
    assert_ne!(hash(&spec), first);
}

#[test]
fn prepared_data_is_read_back_and_checked() {
    let scratch = Scratch::new();
    let cache = scratch.0.join("cache");
    scratch.write(
        "rows.jsonl",
        "{\"t\": \"the cat\", \"l\": \"a\"}\n{\"t\": \"\", \"l\": \"a\"}\n{\"t\": \"a dog\", \"l\": \"b\"}\n",
    );
    let mut rows = spec(jsonl("rows.jsonl", "t", Some("l")));
    (rows.form, rows.tokenizer) = (pad(8), Some(TokenizerSpec::Bpe { vocab: 300 }));
    let mut sums = spec(addition(1));
    sums.form = pad(8);
    let mut tokens = spec(random_tokens(70_000, 100));
    tokens.tokenizer = None;
    for spec in [play(&scratch), rows, sums, tokens] {
        let before = describe(&spec, &scratch.0, Some(&cache)).expect("facts");
        let fresh = prepare(&spec, &scratch.0, Some(&cache)).expect("prepared");
        assert_eq!(before.data.fields, fresh.facts.data.fields);
        let again = prepare(&spec, &scratch.0, Some(&cache)).expect("prepared");
        assert_eq!((&again.facts, &again.parts), (&fresh.facts, &fresh.parts));
        assert_eq!(describe(&spec, &scratch.0, Some(&cache)).expect("facts"), fresh.facts, "complete from the cache");
        let json = |dataset: &Dataset| dataset.tokenizer.as_ref().map(Tokenizer::to_json);
        assert_eq!(json(&again), json(&fresh));
        // Flip a bit of each file in turn: it is seen, and made again.
        let folder = cache.join(&fresh.facts.data.hash[..16]);
        for name in ["ids.bin", "tokenizer.json", "report.json"] {
            let path = folder.join(name);
            let Ok(mut bytes) = fs::read(&path) else { continue };
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&path, &bytes).expect("damaged");
            let seen = cache::load(&cache, &fresh.facts.data.hash, &spec);
            assert!(name == "report.json" || seen.is_err(), "{name}");
            let repaired = prepare(&spec, &scratch.0, Some(&cache)).expect("made again");
            assert_eq!(repaired.parts, fresh.parts, "{name}");
            bytes.truncate(middle);
            fs::write(&path, &bytes).expect("damaged");
            assert_eq!(prepare(&spec, &scratch.0, Some(&cache)).expect("made again").parts, fresh.parts, "{name}");
        }
    }
}

#[test]
fn a_full_disk_is_told() {
    let scratch = Scratch::new();
    scratch.write("not-a-folder", "x");
    let problems = prepare(&play(&scratch), &scratch.0, Some(&scratch.0.join("not-a-folder"))).expect_err("no room");
    assert_eq!(problems[0].code, crate::problem::CACHE);
    assert!(problems[0].message.contains("not-a-folder"), "{}", problems[0]);
}

#[test]
fn labels_are_numbered_in_order() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "10,x\n9,y\n10,z\n2,w\n");
    let mut spec = spec(csv("a.csv", false, ',', "1", Some("0")));
    spec.form = pad(4);
    let facts = describe(&spec, &scratch.0, None).expect("facts");
    assert_eq!((facts.labels, facts.data.classes), (vec!["2".to_string(), "9".into(), "10".into()], 3));
    assert_eq!(facts.data.fields.last().map(|f| (f.name.as_str(), f.axes.len())), Some(("label", 0)));
}

#[test]
fn each_part_from_its_own_files() {
    let scratch = Scratch::new();
    scratch.write("train.txt", "1 good\n0 bad\n").write("dev.txt", "1 Good!\n");
    let mut spec = spec(lines("train.txt"));
    (spec.sources, spec.form) = (Vec::new(), pad(6));
    spec.split = files(&[("train", lines("train.txt")), ("val", lines("dev.txt"))]);
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    assert_eq!(dataset.facts.data.rows, [("train".to_string(), 2), ("val".to_string(), 1)]);
    scratch.write("dev.txt", "2 so so\n");
    let problems = prepare(&spec, &scratch.0, None).expect_err("an unknown label");
    assert!(problems[0].code == BAD_LABEL && problems[0].message.contains("`2` is in val"), "{}", problems[0]);
    scratch.write("dev.txt", "good very\n");
    assert_eq!(prepare(&spec, &scratch.0, None).expect_err("not a number")[0].code, BAD_LABEL);
}

#[test]
fn documents_in_a_window_are_kept_apart() {
    let scratch = Scratch::new();
    scratch.write("a.jsonl", "{\"t\": \"ab\"}\n{\"t\": \"ba\"}\n");
    let mut spec = spec(jsonl("a.jsonl", "t", None));
    spec.form = window(2);
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    assert_eq!(dataset.parts[0].content, Content::Stream(Ids::U8(vec![1, 2, 0, 2, 1, 0])));
    spec.tokenizer = Some(TokenizerSpec::Bpe { vocab: 257 });
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    let Content::Stream(Ids::U16(ids)) = &dataset.parts[0].content else { panic!("a stream of small ids") };
    assert_eq!((ids[2], ids[5], ids.len()), (0, 0, 6), "the end of a text between them");
}

#[test]
fn blocks_that_make_no_sense() {
    let scratch = Scratch::new();
    let good = play(&scratch);
    scratch.write("rows.txt", "1 a\n0 b\n");
    let code = |spec: DataSpec| {
        let told = describe(&spec, &scratch.0, None).map(|_| ()).expect_err("refused");
        let run = prepare(&spec, &scratch.0, None).map(|_| ()).expect_err("refused");
        assert_eq!(told, run, "the check says what the run would");
        told[0].code
    };
    assert_eq!(code(DataSpec { form: window(100_000), ..good.clone() }), WINDOW);
    assert_eq!(code(DataSpec { tokenizer: None, ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { form: pad(8), ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { form: Form::Rows, ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { sources: Vec::new(), ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { sources: vec![lines("rows.txt")], ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { sources: vec![random_tokens(5, 100)], ..good.clone() }), MISMATCH);
    assert_eq!(code(DataSpec { split: shares(&[("train", 0.9), ("val", 0.2)]), ..good.clone() }), SPLIT);
    assert_eq!(code(DataSpec { split: shares(&[("train", 0.5), ("val", 0.0001)]), ..good.clone() }), SPLIT);
    assert_eq!(code(DataSpec { split: files(&[("train", text("play.txt"))]), ..good.clone() }), MISMATCH);
    let own = DataSpec { tokenizer: Some(TokenizerSpec::Bpe { vocab: 10 }), ..good.clone() };
    assert_eq!(code(own), crate::problem::TOKENIZER);
    let stratified = DataSpec { split: mdl_lang::spec::Split { stratify: true, ..good.split.clone() }, ..good };
    assert_eq!(code(stratified), MISMATCH);
    scratch.write("blank.jsonl", "{\"t\": \"\"}\n");
    assert_eq!(code(DataSpec { form: pad(8), ..spec(jsonl("blank.jsonl", "t", None)) }), EMPTY);
}

#[test]
fn an_unknown_character_in_a_prompt_is_named() {
    let scratch = Scratch::new();
    let dataset = prepare(&play(&scratch), &scratch.0, None).expect("prepared");
    let problem = dataset.tokenizer.expect("chars").encode("ROMEO§").expect_err("unknown");
    assert!(problem.code == UNKNOWN_CHAR && problem.message.contains('§'), "{problem}");
}

/// A WAV file of 8 bits and 8,000 samples a second.
fn wav(samples: &[u8]) -> Vec<u8> {
    let n = samples.len() as u32;
    let head = [b"RIFF".as_slice(), &(36 + n).to_le_bytes(), b"WAVEfmt ", &16u32.to_le_bytes()].concat();
    let format = [[1, 0, 1, 0], 8_000u32.to_le_bytes(), 8_000u32.to_le_bytes(), [1, 0, 8, 0]].concat();
    [head, format, b"data".to_vec(), n.to_le_bytes().to_vec(), samples.to_vec()].concat()
}

fn of_files(source: fn(String) -> Source, train: &str, test: &str, form: Form) -> DataSpec {
    let split = files(&[("train", source(train.to_string())), ("test", source(test.to_string()))]);
    DataSpec { sources: Vec::new(), tokenizer: None, split, form, ..spec(text("")) }
}

fn sounds(path: String) -> Source {
    Source::Sounds { path, rate: None, span: testing::nowhere() }
}

fn images(path: String) -> Source {
    Source::Images { path, grey: false, span: testing::nowhere() }
}

#[test]
fn sounds_are_cut_or_filled_and_labelled_by_their_paths() {
    let scratch = Scratch::new();
    scratch.write("yes_0.wav", wav(&[128, 192, 64])).write("yes_1.wav", wav(&[128])).write("no_1.wav", wav(&[255; 9]));
    let spec = of_files(sounds, "{label}_1.wav", "{label}_0.wav", pad(4));
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    assert_eq!((dataset.facts.labels.join(" "), dataset.facts.data.classes), ("no yes".to_string(), 2));
    assert_eq!(dataset.facts.data.rows, [("train".to_string(), 2), ("test".to_string(), 1)]);
    assert_eq!(dataset.facts.notes, ["1 of 2 rows of train are longer than 4 samples and were cut"]);
    let shown: Vec<String> = dataset.facts.data.fields.iter().map(|f| format!("{}: {}", f.name, f.dtype)).collect();
    assert_eq!(shown, ["sound: f32", "mask: bool", "label: i32"]);
    let batch = |part: &str, n: usize| {
        let (mut sound, mut mask, mut label) = (vec![9.0; 4 * n], vec![9; 4 * n], vec![9; n]);
        let batcher = dataset.batcher(part, n, Order::InOrder).expect("a batcher");
        let mut buffers = [FieldSlice::F32(&mut sound), FieldSlice::Bool(&mut mask), FieldSlice::I32(&mut label)];
        let filled = batcher.fill(0, &mut buffers);
        assert_eq!((filled.n_rows, filled.n_counted), (n, n));
        (sound, mask, label)
    };
    assert_eq!(batch("test", 1), (vec![0.0, 0.5, -0.5, 0.0], vec![1, 1, 1, 0], vec![1]));
    let (sound, mask, label) = batch("train", 2);
    assert_eq!((mask, label), (vec![1, 1, 1, 1, 1, 0, 0, 0], vec![0, 1]));
    assert_eq!(sound, [[127.0 / 128.0; 4], [0.0; 4]].concat());
    // A label is part of what the data is, though no byte of a file tells it.
    let before = describe(&spec, &scratch.0, None).expect("facts").data.hash;
    fs::rename(scratch.0.join("yes_0.wav"), scratch.0.join("no_0.wav")).expect("renamed");
    assert_ne!(before, describe(&spec, &scratch.0, None).expect("facts").data.hash);
}

#[test]
fn files_of_examples_that_do_not_go_together() {
    let scratch = Scratch::new();
    let picture = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pictures").join(name);
        fs::read(path).expect("a fixture")
    };
    scratch.write("train/cat/a.jpg", picture("colour.jpg")).write("train/dog/b.png", picture("coarse.png"));
    scratch.write("test/cat/c.jpg", picture("grey.jpg")).write("small/cat/d.png", picture("point.png"));
    let describe = |train: &str, test: &str| describe(&of_files(images, train, test, Form::Rows), &scratch.0, None);
    let facts = describe("train/{label}/*", "test/{label}/*").expect("facts");
    let sizes: Vec<u64> = facts.data.fields[0].axes.iter().map(|axis| axis.size).collect();
    assert_eq!((sizes, facts.labels.join(" ")), (vec![19, 26, 3], "cat dog".to_string()));
    let bare = describe("train/*/*", "test/*/*").expect("facts");
    assert_eq!((bare.data.classes, bare.data.fields.len(), bare.parts[0].rows), (0, 1, Some(2)));
    for (train, test, code) in [
        ("train/{label}/*", "test/*/*", BAD_LABEL),
        ("train/{label}/*", "small/{label}/*", MISMATCH),
        ("{train, small}/{label}/*", "test/{label}/*", MISMATCH),
        ("{label}/{label}/*", "test/{label}/*", NO_FILE),
        ("train/{label/*", "test/{label}/*", NO_FILE),
    ] {
        let problems = describe(train, test).expect_err(train);
        assert_eq!(problems[0].code, code, "{train} {test}: {}", problems[0]);
    }
    scratch.write("a.txt", "text");
    let problems = facts::describe(&spec(text("{label}.txt")), &scratch.0, None).expect_err("no labels of texts");
    assert_eq!(problems[0].code, BAD_LABEL);
}

/// The real files, where they lie beside the checkout: their sizes are well known.
#[test]
fn real_files() {
    let Some(plays) = shared("tiny-shakespeare/input.txt") else { return };
    let data = plays.parent().and_then(Path::parent).expect("the folder of the data");
    let mut shakespeare = spec(text("tiny-shakespeare/input.txt"));
    (shakespeare.split, shakespeare.form) = (shares(&[("train", 0.9), ("val", 0.1)]), window(64));
    let start = Instant::now();
    let facts = describe(&shakespeare, data, None).expect("facts");
    // Tens of milliseconds; the bound leaves room for a loaded machine.
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
    assert_eq!((facts.data.vocab, facts.parts[0].tokens, facts.parts[1].tokens), (65, Some(1_003_854), Some(111_540)));
    let sst2 = DataSpec {
        sources: Vec::new(),
        split: files(&[("train", lines("sst2/train.txt")), ("val", lines("sst2/dev.txt"))]),
        form: pad(64),
        ..spec(text(""))
    };
    let facts = describe(&sst2, data, None).expect("facts");
    assert_eq!((facts.data.classes, facts.data.rows), (2, vec![("train".into(), 6920), ("val".into(), 872)]));
    let of_idx = |part: &str| {
        idx(&format!("cifar10-idx/{part}-images-idx3-ubyte.gz"), &format!("cifar10-idx/{part}-labels-idx1-ubyte.gz"))
    };
    let pictures = DataSpec {
        template: None,
        sources: Vec::new(),
        tokenizer: None,
        split: files(&[("train", of_idx("train")), ("val", of_idx("t10k"))]),
        form: Form::Rows,
        order: None,
        seed: 1,
    };
    let facts = describe(&pictures, data, None).expect("facts");
    assert_eq!((facts.data.classes, facts.data.rows), (10, vec![("train".into(), 7000), ("val".into(), 1000)]));
    let digits = of_files(
        sounds,
        "spoken-digits/recordings/{label}_*_{1..10}.wav",
        "spoken-digits/recordings/{label}_*_0.wav",
        pad(8_000),
    );
    let facts = describe(&digits, data, None).expect("facts");
    assert_eq!((facts.data.classes, facts.data.rows), (10, vec![("train".into(), 300), ("test".into(), 60)]));
    let cifar = of_files(images, "cifar10-jpeg/train/{label}/*.jpg", "cifar10-jpeg/test/{label}/*.jpg", Form::Rows);
    let facts = describe(&cifar, data, None).expect("facts");
    assert_eq!((facts.labels[9].as_str(), facts.data.rows[0].1 + facts.data.rows[1].1), ("truck", 1000));
    let news = DataSpec { form: pad(64), ..spec(csv("ag-news/test.csv", false, ',', "2", Some("0"))) };
    let facts = describe(&news, data, None).expect("facts");
    assert_eq!((facts.labels.join(" "), facts.data.rows[0].1), ("1 2 3 4".to_string(), 7600));
    let reviews =
        DataSpec { form: pad(64), ..spec(csv("chnsenticorp/train.tsv.gz", true, '\t', "text_a", Some("label"))) };
    assert_eq!(describe(&reviews, data, None).expect("facts").data.rows[0].1, 9600);
    let web = DataSpec { form: window(64), ..spec(jsonl("c4-demo/c4_demo.jsonl", "text", None)) };
    assert_eq!(describe(&web, data, None).expect("facts").data.classes, 0);
    let loaded = DataSpec {
        tokenizer: Some(TokenizerSpec::File { path: "tokenizers/gpt2".into(), span: testing::nowhere() }),
        ..shakespeare
    };
    assert_eq!(describe(&loaded, data, None).expect("facts").data.vocab, 50257);
}

/// A block with the tokenizer of another one has its ids, whatever its own texts are, and is made anew when the other one's change.
#[test]
fn a_tokenizer_is_lent() {
    let scratch = Scratch::new();
    scratch.write("note.txt", "breaks the sun ".repeat(20));
    let mut lender = play(&scratch);
    for kind in [TokenizerSpec::Chars, TokenizerSpec::Bpe { vocab: 300 }] {
        scratch.write("play.txt", PLAY.repeat(20));
        lender.tokenizer = Some(kind);
        let block = Box::new(lender.clone());
        let borrower = DataSpec { tokenizer: Some(TokenizerSpec::Of { block }), ..spec(text("note.txt")) };
        let json = |spec: &DataSpec| {
            let dataset = prepare(spec, &scratch.0, Some(&scratch.0.join("cache"))).expect("prepared");
            let tokenizer = dataset.tokenizer.expect("a tokenizer").to_json();
            (tokenizer, dataset.facts.data.vocab, dataset.facts.data.hash)
        };
        let (lent, vocab, hash) = json(&borrower);
        let (own, own_vocab, _) = json(&lender);
        assert_eq!((&lent, vocab), (&own, own_vocab));
        assert_eq!(describe(&borrower, &scratch.0, None).expect("described").data.vocab, vocab);
        scratch.write("play.txt", PLAY.replace("soft", "loud!").repeat(20));
        let (after, _, changed) = json(&borrower);
        assert!(hash != changed && after == json(&lender).0 && after != lent);
    }
    // What the other block has never seen has no id.
    lender.tokenizer = Some(TokenizerSpec::Chars);
    scratch.write("note.txt", "naïve ".repeat(20));
    let borrower =
        DataSpec { tokenizer: Some(TokenizerSpec::Of { block: Box::new(lender) }), ..spec(text("note.txt")) };
    assert_eq!(prepare(&borrower, &scratch.0, None).expect_err("ï")[0].code, UNKNOWN_CHAR);
}
