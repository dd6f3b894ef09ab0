//! Every kind of source, plain and packed, and every way in which one can be wrong.

use super::*;
use crate::problem::{BAD_FILE, BAD_LABEL, BAD_ROW, EMPTY, NO_COLUMN, NO_FILE, NOT_UTF8};
use crate::testing::{self, Scratch, addition, csv, idx, jsonl, lines};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;

fn read(scratch: &Scratch, source: Source) -> Checked<Examples> {
    gather(&[source], &scratch.0)?.examples()
}

fn rows(scratch: &Scratch, source: Source) -> Vec<(String, Option<String>)> {
    let Examples::Documents(rows) = read(scratch, source).expect("rows") else { panic!("not rows") };
    rows.into_iter().map(|row| (row.text, row.label)).collect()
}

fn row(text: &str, label: &str) -> (String, Option<String>) {
    (text.to_string(), Some(label.to_string()))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn first_problem(scratch: &Scratch, source: Source) -> Problem {
    read(scratch, source).expect_err("a problem").remove(0)
}

#[test]
fn texts_by_name_pattern_and_packing() {
    let scratch = Scratch::new();
    scratch.write("b.txt", "two\n").write("a.txt", "\u{feff}one\n").write("c.md", "no\n").write("sub/d.txt", "four\n");
    scratch.write("x/p.txt.gz", gzip("five ä\n".as_bytes()));
    scratch.write("x/q.txt.zst", zstd::encode_all("six\n".as_bytes(), 3).expect("in memory"));
    scratch.write(".hidden.txt", "no\n");
    for (pattern, want) in [
        ("a.txt", "one\n"),
        ("*.txt", "one\ntwo\n"),
        ("**/*.txt", "one\ntwo\nfour\n"),
        ("s*/?.txt", "four\n"),
        ("x/*", "five ä\nsix\n"),
    ] {
        assert_eq!(
            read(&scratch, testing::text(pattern)).expect("text"),
            Examples::Text(want.to_string()),
            "{pattern}"
        );
    }
}

#[test]
fn texts_that_are_wrong() {
    let scratch = Scratch::new();
    scratch.write("latin.txt", b"one\ntwo caf\xe9\n").write("empty.txt", "");
    let mut cut = gzip(&[b'x'; 10_000]);
    cut.truncate(cut.len() - 12);
    scratch.write("cut.txt.gz", cut).write("not.txt.gz", "plain").write("folder/a.txt", "a");
    let problem = first_problem(&scratch, testing::text("latin.txt"));
    assert_eq!((problem.code, problem.line, problem.byte), (NOT_UTF8, Some(2), Some(11)));
    assert!(problem.message.ends_with("latin.txt is not UTF-8: byte 0xe9"), "{problem}");
    for (name, code) in [
        ("empty.txt", EMPTY),
        ("cut.txt.gz", BAD_FILE),
        ("not.txt.gz", BAD_FILE),
        ("none.txt", NO_FILE),
        ("*.none", NO_FILE),
        ("folder", NO_FILE),
    ] {
        let problem = first_problem(&scratch, testing::text(name));
        assert_eq!(problem.code, code, "{name}: {problem}");
        assert!(problem.path.is_some() && problem.help.is_some() || code == EMPTY, "{name}: {problem}");
        assert!(problem.span.is_some(), "{name} has a place in the recipe");
    }
    let all = gather(&[testing::text("none.txt"), testing::text("nor.txt")], &scratch.0).expect_err("both are missing");
    assert_eq!(all.len(), 2, "all that is missing is told at once");
}

#[test]
fn json_lines() {
    let scratch = Scratch::new();
    let good = "{\"text\": \"one\\ntwo\", \"stars\": 5}\n\n{\"stars\": \"bad\", \"text\": \"\u{2028}x\"}\r\n";
    scratch.write("a.jsonl", good);
    let want = [row("one\ntwo", "5"), row("\u{2028}x", "bad")];
    assert_eq!(rows(&scratch, jsonl("a.jsonl", "text", Some("stars"))), want);
    scratch.write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": \n[1]\n{\"body\": 1, \"more\": 2}\n{\"text\": [1]}\n");
    let problems = read(&scratch, jsonl("bad.jsonl", "text", None)).expect_err("problems");
    let found: Vec<_> = problems.iter().map(|p| (p.code, p.line)).collect();
    assert_eq!(found, [(BAD_ROW, Some(2)), (BAD_ROW, Some(3)), (NO_COLUMN, Some(4)), (BAD_ROW, Some(5))]);
    assert_eq!(problems[2].help.as_deref(), Some("its keys are body, more"));
    let problem = first_problem(&scratch, jsonl("a.jsonl", "text", Some("label")));
    assert_eq!(problem.code, NO_COLUMN);
}

#[test]
fn csv_with_and_without_header() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "stars,\"content\"\n1,\"one, \"\"two\"\"\nthree\"\n 2 ,four\n");
    let want = [row("one, \"two\"\nthree", "1"), row("four", "2")];
    assert_eq!(rows(&scratch, csv("a.csv", true, ',', "content", Some("stars"))), want);
    scratch.write("b.csv", "3,Wall St.,Bears\n4,x,y\n");
    assert_eq!(rows(&scratch, csv("b.csv", false, ',', "2", Some("0"))), [row("Bears", "3"), row("y", "4")]);
    scratch.write("c.tsv", "label\ttext_a\n0\tsay \"hi\n1\t好\n");
    assert_eq!(
        rows(&scratch, csv("c.tsv", true, '\t', "text_a", Some("label"))),
        [row("say \"hi", "0"), row("好", "1")]
    );
}

#[test]
fn csv_that_is_wrong() {
    let scratch = Scratch::new();
    scratch.write("a.csv", "text,label\none,1\ntwo\nthree,3,3\n");
    let problems = read(&scratch, csv("a.csv", true, ',', "text", Some("label"))).expect_err("problems");
    assert_eq!(problems.iter().map(|p| (p.code, p.line)).collect::<Vec<_>>(), [(BAD_ROW, Some(3)), (BAD_ROW, Some(4))]);
    let problem = first_problem(&scratch, csv("a.csv", true, ',', "content", None));
    assert_eq!((problem.code, problem.help.as_deref()), (NO_COLUMN, Some("the header has text, label")));
    assert_eq!(first_problem(&scratch, csv("a.csv", false, ',', "text", None)).code, NO_COLUMN);
    assert_eq!(first_problem(&scratch, csv("a.csv", true, '，', "text", None)).code, BAD_ROW);
    scratch.write("b.csv", "a,b\nc,d\n");
    assert_eq!(first_problem(&scratch, csv("b.csv", false, ',', "7", None)).code, NO_COLUMN);
}

#[test]
fn label_and_sentence() {
    let scratch = Scratch::new();
    scratch.write("a.txt", "1 a stirring , funny film\n0\tdull\n\n");
    assert_eq!(rows(&scratch, lines("a.txt")), [row("a stirring , funny film", "1"), row("dull", "0")]);
    scratch.write("b.txt", "1 fine\nword\n sentence\n");
    let problems = read(&scratch, lines("b.txt")).expect_err("problems");
    assert_eq!(
        problems.iter().map(|p| (p.code, p.line)).collect::<Vec<_>>(),
        [(BAD_LABEL, Some(2)), (BAD_LABEL, Some(3))]
    );
}

fn idx_bytes(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    sizes.iter().for_each(|size| file.extend_from_slice(&size.to_be_bytes()));
    file.extend_from_slice(bytes);
    file
}

#[test]
fn pictures_in_idx_files() {
    let scratch = Scratch::new();
    let pixels: Vec<u8> = (0..12).collect();
    scratch.write("images", idx_bytes(&[2, 2, 3], &pixels)).write("labels.gz", gzip(&idx_bytes(&[2], &[7, 3])));
    scratch.write("colour", idx_bytes(&[2, 1, 2, 3], &pixels));
    let read_idx = |images: &str, labels: &str| read(&scratch, idx(images, labels));
    let Examples::Pictures(grey) = read_idx("images", "labels.gz").expect("pictures") else { panic!("not pictures") };
    assert_eq!((grey.len(), grey.rows, grey.columns, grey.channels), (2, 2, 3, 1));
    assert_eq!((grey.pixels, grey.labels), (pixels, vec!["7".to_string(), "3".to_string()]));
    let Examples::Pictures(colour) = read_idx("colour", "labels.gz").expect("pictures") else { panic!("not pictures") };
    assert_eq!((colour.len(), colour.rows, colour.columns, colour.channels), (2, 1, 2, 3));
    scratch.write("short", idx_bytes(&[2, 2, 3], &[0; 11])).write("text", "hello").write("tiny", [0, 0, 8]);
    scratch.write("huge", idx_bytes(&[u32::MAX, u32::MAX, u32::MAX], &[])).write("floats", [0, 0, 13, 1, 0, 0, 0, 0]);
    scratch.write("head", [0, 0, 8, 3, 0, 0]).write("flat", idx_bytes(&[2, 0, 3], &[]));
    for name in ["short", "text", "tiny", "huge", "floats", "head", "flat", "labels.gz"] {
        let problem = read_idx(name, "labels.gz").expect_err(name).remove(0);
        assert_eq!(problem.code, BAD_FILE, "{name}: {problem}");
    }
    scratch.write("one-label", idx_bytes(&[1], &[7]));
    assert_eq!(read_idx("images", "one-label").expect_err("too few labels")[0].code, BAD_LABEL);
    assert_eq!(read_idx("images", "images").expect_err("not labels")[0].code, BAD_FILE);
}

#[test]
fn sums() {
    let scratch = Scratch::new();
    let Examples::Documents(sums) = read(&scratch, addition(2)).expect("sums") else { panic!("not rows") };
    assert_eq!(sums.len(), 10_000);
    assert_eq!(sums[1234].text, "12+34=046\n");
    assert_eq!(&sums[9999].text[sums[9999].prompt_bytes..], "198\n");
    assert_eq!(sums[1234].group, sums[3412].group);
    assert!(read(&scratch, addition(4)).is_err());
}

#[test]
fn made_up_tokens() {
    let (ids, vocab) = generated::random_tokens(65, 10_000).expect("tokens");
    assert_eq!((ids.len(), vocab), (10_000, 65));
    let mut seen = [0; 65];
    ids.iter().for_each(|&id| seen[id as usize] += 1);
    assert!(seen.iter().all(|n| (90..230).contains(n)), "{seen:?}");
    assert!(generated::random_tokens(0, 1).is_err() && generated::random_tokens(1, u64::MAX).is_err());
}

#[test]
fn sources_that_do_not_go_together() {
    let scratch = Scratch::new();
    scratch.write("a.txt", "1 one\n");
    let mixed = gather(&[lines("a.txt"), testing::random_tokens(5, 5)], &scratch.0).expect("gathered").examples();
    assert_eq!(mixed.expect_err("mixed")[0].code, MISMATCH);
    let Examples::Documents(both) =
        gather(&[lines("a.txt"), lines("a.txt")], &scratch.0).expect("gathered").examples().expect("joined")
    else {
        panic!("not rows")
    };
    assert_eq!(both.iter().map(|row| row.file).collect::<Vec<_>>(), [0, 1]);
}
