//! Batches depend on the step alone, an epoch covers everything once, an evaluation too.

use super::*;
use crate::dataset::{Dataset, prepare};
use crate::testing::{Scratch, addition, idx, lines, pad, random_tokens, shares, spec, window};
use mdl_graph::Axis;
use mdl_lang::spec::{Curriculum, DataSpec, Difficulty, Form, Tokenizer};
use proptest::prelude::*;

/// A stream of the tokens 0, 1, 2, …, so that a token tells its place.
fn counting(n: usize, size: u64, seed: u64) -> Dataset {
    let mut spec = spec(random_tokens(100_000, n as u64));
    (spec.tokenizer, spec.form, spec.seed) = (None, window(size), seed);
    let mut dataset = prepare(&spec, std::path::Path::new("."), None).expect("prepared");
    let ids = Ids::U32((0..n as u32).collect());
    dataset.parts = vec![Arc::new(Part { name: "train".to_string(), content: Content::Stream(ids) })];
    dataset
}

#[derive(Clone, Debug, Default, PartialEq)]
struct TextBatch {
    ids: Vec<i32>,
    next: Vec<i32>,
    mask: Vec<u8>,
    label: Vec<i32>,
    filled: Filled,
}

fn text_batch(batcher: &Batcher, step: u64) -> TextBatch {
    let (b, t) = (batcher.batch(), batcher.n_positions);
    // What was there before must not show.
    let mut got =
        TextBatch { ids: vec![-1; b * t], next: vec![-1; b * t], mask: vec![9; b * t], ..TextBatch::default() };
    got.label = vec![-1; if batcher.fields.len() > 3 { b } else { 0 }];
    let mut buffers =
        vec![FieldSlice::I32(&mut got.ids), FieldSlice::I32(&mut got.next), FieldSlice::Bool(&mut got.mask)];
    if batcher.fields.len() > 3 {
        buffers.push(FieldSlice::I32(&mut got.label));
    }
    got.filled = batcher.fill(step, &mut buffers);
    got
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_epoch_is_every_window_once(n in 10usize..600, size in 1u64..9, batch in 1usize..6, seed: u64) {
        let batcher = counting(n, size, seed).batcher("train", batch, Order::Shuffled).expect("a batcher");
        let n_windows = batcher.n_items();
        prop_assert!(n_windows * size <= n as u64 && (n_windows + 2) * size >= n as u64, "{n_windows} windows");
        // Two epochs, item by item.
        let starts: Vec<i32> = (0..(2 * n_windows).div_ceil(batch as u64))
            .flat_map(|step| {
                let got = text_batch(&batcher, step);
                got.ids.chunks(size as usize).map(|row| row[0]).collect::<Vec<_>>()
            })
            .collect();
        for epoch in starts.chunks_exact(n_windows as usize).take(2) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            prop_assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] == size as i32), "side by side: {sorted:?}");
            prop_assert!((sorted[0] as u64) < size, "the first begins within one window");
        }
    }

    #[test]
    fn rows_hold_what_the_text_holds(n in 12usize..300, size in 1u64..11, step in 0u64..10_000, seed: u64) {
        let batcher = counting(n, size, seed).batcher("train", 3, Order::Shuffled).expect("a batcher");
        let got = text_batch(&batcher, step);
        prop_assert_eq!(got.filled, Filled { n_rows: 3, n_counted: 3 * size as usize });
        for row in got.ids.chunks(size as usize) {
            prop_assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1));
        }
        prop_assert!(got.ids.iter().zip(&got.next).all(|(id, next)| id + 1 == *next));
        prop_assert!(got.mask.iter().all(|&mask| mask == 1));
    }

    /// What a resumed run sees is what the unbroken one saw: the batch of a step does not depend on the steps before.
    #[test]
    fn resuming_sees_the_same_batches(seed: u64, resume in 0u64..40) {
        let unbroken = counting(500, 8, seed).batcher("train", 4, Order::Shuffled).expect("a batcher");
        let all: Vec<TextBatch> = (0..50).map(|step| text_batch(&unbroken, step)).collect();
        let resumed = counting(500, 8, seed).batcher("train", 4, Order::Shuffled).expect("a batcher");
        for step in (resume..50).rev() {
            prop_assert_eq!(&text_batch(&resumed, step), &all[step as usize]);
        }
    }

    #[test]
    fn an_evaluation_counts_every_token_once(n in 2usize..400, size in 1u64..20, batch in 1usize..7) {
        let mut dataset = counting(20.max(n), size.min(10), 1);
        let ids = Ids::U16((0..n as u16).collect());
        dataset.parts = vec![Arc::new(Part { name: "val".to_string(), content: Content::Stream(ids) })];
        let batcher = dataset.batcher("val", batch, Order::InOrder).expect("a batcher");
        let mut counted = Vec::new();
        for step in 0..batcher.n_batches() {
            let got = text_batch(&batcher, step);
            let before = counted.len();
            let columns = got.ids.iter().zip(&got.next).zip(&got.mask);
            counted.extend(columns.filter(|(_, mask)| **mask == 1).map(|((_, next), _)| *next));
            prop_assert_eq!(counted.len() - before, got.filled.n_counted);
            prop_assert!(got.filled.n_rows > 0, "no batch is empty");
        }
        prop_assert_eq!(counted, (1..n as i32).collect::<Vec<_>>());
        prop_assert_eq!(text_batch(&batcher, batcher.n_batches()).filled, Filled::default());
    }
}

#[test]
fn seeds_and_epochs_have_orders_of_their_own() {
    let starts = |seed: u64, from: u64| -> Vec<i32> {
        let batcher = counting(4001, 10, seed).batcher("train", 1, Order::Shuffled).expect("a batcher");
        (from..from + 100).map(|step| text_batch(&batcher, step).ids[0]).collect()
    };
    assert_eq!(starts(1, 0), starts(1, 0));
    assert_ne!(starts(1, 0), starts(2, 0));
    assert_ne!(starts(1, 0), starts(1, 399));
}

#[test]
fn sums_count_their_answers_only() {
    let mut spec = spec(addition(2));
    (spec.form, spec.split) = (pad(10), shares(&[("train", 0.9), ("val", 0.1)]));
    let dataset = prepare(&spec, std::path::Path::new("."), None).expect("prepared");
    let tokenizer = dataset.tokenizer.as_ref().expect("a tokenizer");
    assert_eq!(dataset.facts.data.vocab, 13, "digits, +, =, and the end of a line");
    let batcher = dataset.batcher("val", 16, Order::InOrder).expect("a batcher");
    let got = text_batch(&batcher, 0);
    for (row, (ids, next)) in got.ids.chunks(10).zip(got.next.chunks(10)).enumerate() {
        let text = tokenizer.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>());
        let (sum, answer) = text.split_once('=').expect("an equation");
        let (a, b) = sum.split_once('+').expect("a sum");
        let value = |n: &str| n.trim().parse::<u32>().expect("a number");
        assert_eq!(value(a) + value(b), value(answer));
        let mask = &got.mask[row * 10..][..10];
        let learned: Vec<u32> = next.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect();
        assert_eq!(tokenizer.decode(&learned), answer);
    }
    assert_eq!(got.filled, Filled { n_rows: 16, n_counted: 16 * 4 });
}

#[test]
fn labelled_rows_are_cut_filled_and_counted() {
    let scratch = Scratch::new();
    scratch.write("a.txt", "1 abcdefgh\n0 ab\n1 b\n");
    let mut spec = spec(lines("a.txt"));
    spec.form = Form::Pad { axis: Axis::new("s", 4) };
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    assert_eq!(dataset.facts.notes, ["1 of 3 rows of train are longer than 4 tokens and were cut"]);
    let batcher = dataset.batcher("train", 4, Order::InOrder).expect("a batcher");
    // Three rows in batches of four: two of them twice, then one four times.
    assert_eq!(batcher.n_batches(), 2);
    let got = text_batch(&batcher, 0);
    assert_eq!(got.ids, [0, 1, 2, 3, 0, 1, 0, 0, 0, 1, 2, 3, 0, 1, 0, 0]);
    assert_eq!(got.mask, [1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(got.label, [1, 0, 1, 0]);
    assert_eq!(got.filled, Filled { n_rows: 2, n_counted: 2 });
    let got = text_batch(&batcher, 1);
    assert_eq!((got.ids, got.label), ([1, 0, 0, 0].repeat(4), vec![1; 4]));
    assert_eq!(got.filled, Filled { n_rows: 1, n_counted: 1 });
    let got = text_batch(&batcher, 2);
    assert_eq!((got.ids, got.mask, got.filled), (vec![0; 16], vec![0; 16], Filled::default()));
}

#[test]
fn pictures_in_any_layout() {
    let scratch = Scratch::new();
    let file = |sizes: &[u32], bytes: &[u8]| {
        let mut file = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|size| file.extend_from_slice(&size.to_be_bytes()));
        file.extend_from_slice(bytes);
        file
    };
    let pixels: Vec<u8> = (0..2 * 2 * 3 * 2).map(|i| i * 10).collect();
    scratch.write("images", file(&[2, 2, 3, 2], &pixels)).write("labels", file(&[2], &[4, 2]));
    let mut spec = spec(idx("images", "labels"));
    (spec.tokenizer, spec.form) = (None, Form::Rows);
    let dataset = prepare(&spec, &scratch.0, None).expect("prepared");
    let mut batcher = dataset.batcher("train", 4, Order::InOrder).expect("a batcher");
    let fill = |batcher: &Batcher| {
        let (mut image, mut label) = (vec![-1.0; 48], vec![-1; 4]);
        let filled = batcher.fill(0, &mut [FieldSlice::F32(&mut image), FieldSlice::I32(&mut label)]);
        assert_eq!(filled, Filled { n_rows: 2, n_counted: 2 });
        (image, label)
    };
    let (plain, label) = fill(&batcher);
    assert_eq!(label, [1, 0, 1, 0], "4 and 2 in order are 1 and 0");
    let want: Vec<f32> = pixels.repeat(2).iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
    assert_eq!(plain, want);
    assert!(!batcher.set_layout(0, &["batch", "row"]) && !batcher.set_layout(0, &["batch", "row", "row", "channel"]));
    assert!(batcher.set_layout(0, &["channel", "column", "batch", "row"]));
    let (turned, _) = fill(&batcher);
    for b in 0..4 {
        for r in 0..2 {
            for c in 0..3 {
                for ch in 0..2 {
                    assert_eq!(turned[((ch * 3 + c) * 4 + b) * 2 + r], plain[((b * 2 + r) * 3 + c) * 2 + ch]);
                }
            }
        }
    }
    let mut label = vec![0; 4];
    batcher.fill(0, &mut [FieldSlice::Skip, FieldSlice::I32(&mut label)]);
    assert_eq!(label, [1, 0, 1, 0]);
}

/// Means of batches, weighted by what they count, are the mean of all rows, whatever the size of a batch.
#[test]
fn an_evaluation_of_rows_is_exact() {
    for n in [1usize, 2, 5, 12, 97] {
        for batch in [1, 2, 3, 7, 12, 16, 64] {
            let labels: Vec<i32> = (0..n as i32).map(|i| i * i % 31).collect();
            let (pixels, rows, columns, channels) = (vec![0; n], 1, 1, 1);
            let content = Content::Pictures { rows, columns, channels, pixels, labels: labels.clone() };
            let part = Arc::new(Part { name: "val".to_string(), content });
            let field = Field { name: "label".to_string(), dtype: mdl_graph::DType::I32, axes: Vec::new() };
            let batcher = Batcher::new(part, &Form::Rows, &[field], batch, Order::InOrder, 1).expect("a batcher");
            let (mut sum, mut count) = (0.0, 0);
            for step in 0..batcher.n_batches() {
                let mut label = vec![-1; batch];
                let filled = batcher.fill(step, &mut [FieldSlice::I32(&mut label)]);
                let mean = label.iter().map(|&label| f64::from(label)).sum::<f64>() / batch as f64;
                assert!(filled.n_counted > 0, "{n} in batches of {batch}");
                sum += mean * filled.n_counted as f64;
                count += filled.n_counted;
            }
            assert_eq!(count, n, "{n} in batches of {batch}");
            let want = labels.iter().map(|&label| f64::from(label)).sum::<f64>();
            assert!((sum - want).abs() < 1e-9, "{n} in batches of {batch}: {sum} and {want}");
        }
    }
}

#[test]
fn what_cannot_be_served() {
    let dataset = counting(20, 8, 1);
    assert!(dataset.batcher("val", 1, Order::InOrder).is_err());
    assert!(dataset.batcher("train", 0, Order::InOrder).is_err());
    let mut spec = spec(addition(1));
    (spec.tokenizer, spec.form) = (Some(Tokenizer::Bytes), pad(10));
    assert!(prepare(&spec, std::path::Path::new("."), None).is_ok());
}

/// Row `i` has `i + 1` tokens: the longest that a step draws grows, and once all may come each does once an epoch.
#[test]
fn easy_rows_come_first() {
    let scratch = Scratch::new();
    let rows: String = (0..100).map(|i| format!("{} {}\n", i % 2, "a".repeat(i + 1))).collect();
    scratch.write("rows.txt", rows);
    let mut spec = spec(lines("rows.txt"));
    (spec.tokenizer, spec.form) = (Some(Tokenizer::Bytes), pad(128));
    let lengths = |spec: &DataSpec, steps: std::ops::Range<u64>| -> Vec<usize> {
        let dataset = prepare(spec, &scratch.0, None).expect("prepared");
        let batcher = dataset.batcher("train", 10, Order::Shuffled).expect("a batcher");
        let of = |step| {
            text_batch(&batcher, step)
                .mask
                .chunks(128)
                .map(|row| row.iter().map(|&m| usize::from(m)).sum())
                .collect::<Vec<usize>>()
        };
        steps.flat_map(of).collect()
    };
    let most = |lengths: Vec<usize>| lengths.into_iter().max().unwrap_or_default();
    let by = |by| Some(Box::new(Curriculum { by, over: 400, from: 0.1 }));
    spec.order = by(Difficulty::Length);
    // A tenth of the rows at first, at the fifth step sqrt(0.01 + 0.99 / 100) of them, after a quarter of the steps sqrt(0.01 + 0.99 / 4).
    let first = most(lengths(&spec, 0..1));
    let fifth = most(lengths(&spec, 0..5));
    let quarter = most(lengths(&spec, 90..100));
    assert!(first <= 10 && (11..=15).contains(&fifth), "{first}, then {fifth}");
    assert!((45..=51).contains(&quarter), "{quarter}");
    let mut epoch = lengths(&spec, 400..410);
    epoch.sort_unstable();
    assert_eq!(epoch, (1..=100).collect::<Vec<usize>>());
    // The same step gives the same rows, and other measures other rows.
    assert_eq!(lengths(&spec, 3..4), lengths(&spec, 3..4));
    spec.order = by(Difficulty::Sub(Box::new(Difficulty::Number(0.0)), Box::new(Difficulty::Length)));
    assert!(lengths(&spec, 0..5).into_iter().min() >= Some(86));
    let odd = Difficulty::Mul(Box::new(Difficulty::Label), Box::new(Difficulty::Number(1000.0)));
    spec.order = by(Difficulty::Add(Box::new(Difficulty::Length), Box::new(odd)));
    assert!(lengths(&spec, 0..5).into_iter().all(|length| length % 2 == 1 && length <= 29));
}
