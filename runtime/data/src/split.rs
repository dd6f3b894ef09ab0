//! Cutting examples into the parts of a split.
//!
//! A running text is cut by position, so that no part holds the neighbourhood of another. Rows are dealt out by a
//! permutation of the seed, all rows of a group to one part, and stay in the order of their files inside it.

use crate::permutation::{Permutation, mix};
use crate::problem::{Checked, MISMATCH, Problem, SPLIT};
use crate::source::{Document, Examples, Pictures, Sounds};
use std::collections::BTreeMap;

/// Keys the split apart from the order of training.
const SPLIT_KEY: u64 = 0x73_706c_6974;

/// Cuts `examples` by fractions; parts come back in the order of `parts`.
pub(crate) fn cut(
    examples: Examples,
    parts: &[(String, f64)],
    stratify: bool,
    seed: u64,
) -> Checked<Vec<(String, Examples)>> {
    let mut total = 0.0;
    let mut ends = Vec::new();
    for (name, fraction) in parts {
        if !(*fraction > 0.0 && *fraction <= 1.0) {
            let message = format!("the part {name} cannot be {}% of the data", fraction * 100.0);
            return Err(Problem::new(SPLIT, message).help("shares lie between 0% and 100%").into());
        }
        total += fraction;
        ends.push(total);
    }
    if total > 1.0 + 1e-9 {
        let message = format!("the parts of the split add up to {:.1}%", total * 100.0);
        return Err(Problem::new(SPLIT, message).help("they add up to at most 100%").into());
    }
    let cut: Vec<Examples> = match examples {
        Examples::Text(text) => {
            no_labels(stratify)?;
            let places = ends_of(&ends, text.chars().count());
            let mut start = 0;
            cut_at(&places, |n| {
                let end = start + bytes_of_chars(&text[start..], n);
                let part = text[start..end].to_string();
                start = end;
                Examples::Text(part)
            })
        }
        Examples::Ids { ids, vocab } => {
            no_labels(stratify)?;
            let mut rest = ids.as_slice();
            cut_at(&ends_of(&ends, ids.len()), |n| {
                let (part, left) = rest.split_at(n);
                rest = left;
                Examples::Ids { ids: part.to_vec(), vocab }
            })
        }
        Examples::Documents(mut documents) => {
            if stratify && documents.iter().any(|document| document.label.is_none()) {
                no_labels(stratify)?;
            }
            let class = |i: usize| if stratify { documents[i].label.as_deref() } else { None };
            let group = |i: usize| documents[i].group;
            let dealt = deal(documents.len(), class, group, &ends, seed);
            dealt.iter().map(|rows| Examples::Documents(pick(&mut documents, rows))).collect()
        }
        Examples::Pictures(pictures) => {
            if pictures.labels.is_empty() {
                no_labels(stratify)?;
            }
            let class = |i: usize| if stratify { pictures.labels.get(i) } else { None };
            let dealt = deal(pictures.len(), class, |_| None, &ends, seed);
            dealt.iter().map(|rows| Examples::Pictures(pick_pictures(&pictures, rows))).collect()
        }
        Examples::Sounds(sounds) => {
            if sounds.labels.is_empty() {
                no_labels(stratify)?;
            }
            let class = |i: usize| if stratify { sounds.labels.get(i) } else { None };
            let dealt = deal(sounds.ends.len(), class, |_| None, &ends, seed);
            dealt.iter().map(|rows| Examples::Sounds(pick_sounds(&sounds, rows))).collect()
        }
    };
    Ok(parts.iter().map(|(name, _)| name.clone()).zip(cut).collect())
}

/// The bytes of the first `n` characters, or of all.
fn bytes_of_chars(text: &str, n: usize) -> usize {
    const BLOCK: usize = 256;
    let is_first = |byte: &u8| (*byte as i8) >= -0x40;
    // Whole blocks are counted at once: each character is where its first byte is.
    let (mut at, mut left) = (0, n);
    for block in text.as_bytes().chunks(BLOCK) {
        let count = block.iter().filter(|byte| is_first(byte)).count();
        if count > left {
            break;
        }
        left -= count;
        at += block.len();
    }
    let mut firsts = text.as_bytes()[at..].iter().enumerate().filter(|(_, byte)| is_first(byte));
    firsts.nth(left).map_or(text.len(), |(more, _)| at + more)
}

fn no_labels(stratify: bool) -> Result<(), Problem> {
    if stratify {
        return Err(Problem::new(
            MISMATCH,
            "the split is to keep the shares of the labels, and the data has no labels",
        )
        .help("leave `stratify` out, or name the label of the source"));
    }
    Ok(())
}

/// Where each part ends among `n` items. The slack takes up the rounding of `70% + 20% + 10%`.
fn ends_of(fractions: &[f64], n: usize) -> Vec<usize> {
    fractions.iter().map(|end| ((end * n as f64 + 1e-6).floor() as usize).min(n)).collect()
}

/// Calls `take` with the length of each part, in order.
fn cut_at(ends: &[usize], mut take: impl FnMut(usize) -> Examples) -> Vec<Examples> {
    let mut start = 0;
    let part = |&end: &usize| {
        let n = end - start;
        start = end;
        take(n)
    };
    ends.iter().map(part).collect()
}

/// The rows of each part, ascending. Within a class the groups are shuffled and cut; a group goes where its first row
/// goes.
fn deal<C: Ord>(
    n: usize,
    class: impl Fn(usize) -> C,
    group: impl Fn(usize) -> Option<u64>,
    ends: &[f64],
    seed: u64,
) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: BTreeMap<u64, usize> = BTreeMap::new();
    for row in 0..n {
        match group(row) {
            Some(key) => {
                let at = *known.entry(key).or_insert(groups.len());
                if at == groups.len() {
                    groups.push(Vec::new());
                }
                groups[at].push(row);
            }
            None => groups.push(vec![row]),
        }
    }
    let mut classes: BTreeMap<C, Vec<usize>> = BTreeMap::new();
    for (idx, rows) in groups.iter().enumerate() {
        classes.entry(class(rows[0])).or_default().push(idx);
    }
    let mut parts = vec![Vec::new(); ends.len()];
    for (class_idx, members) in classes.values().enumerate() {
        let order = Permutation::new(members.len() as u64, mix(seed, SPLIT_KEY, class_idx as u64));
        let mut start = 0;
        for (part, &end) in parts.iter_mut().zip(&ends_of(ends, members.len())) {
            for place in start..end {
                part.extend(&groups[members[order.at(place as u64) as usize]]);
            }
            start = end;
        }
    }
    for part in &mut parts {
        part.sort_unstable();
    }
    parts
}

/// Takes out the rows of a part; a row is in one part only.
fn pick(documents: &mut [Document], rows: &[usize]) -> Vec<Document> {
    rows.iter().map(|&row| std::mem::take(&mut documents[row])).collect()
}

fn pick_sounds(sounds: &Sounds, rows: &[usize]) -> Sounds {
    let mut picked = Sounds { rate: sounds.rate, samples: Vec::new(), ends: Vec::new(), labels: Vec::new() };
    for &row in rows {
        picked.samples.extend_from_slice(&sounds.samples[Sounds::place(&sounds.ends, row)]);
        picked.ends.push(picked.samples.len());
        picked.labels.extend(sounds.labels.get(row).cloned());
    }
    picked
}

fn pick_pictures(pictures: &Pictures, rows: &[usize]) -> Pictures {
    let size = pictures.rows * pictures.columns * pictures.channels;
    let mut pixels = Vec::with_capacity(rows.len() * size);
    for &row in rows {
        pixels.extend_from_slice(&pictures.pixels[row * size..(row + 1) * size]);
    }
    let labels = rows.iter().filter_map(|&row| pictures.labels.get(row).cloned()).collect();
    Pictures { pixels, labels, ..*pictures }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(parts: &[(&str, f64)]) -> Vec<(String, f64)> {
        parts.iter().map(|(name, share)| (name.to_string(), *share)).collect()
    }

    fn rows(examples: &Examples) -> &[Document] {
        let Examples::Documents(rows) = examples else { panic!("rows stay rows") };
        rows
    }

    fn labelled(n: usize, label: impl Fn(usize) -> String) -> Examples {
        let row = |i: usize| Document { text: format!("row {i}"), label: Some(label(i)), ..Document::default() };
        Examples::Documents((0..n).map(row).collect())
    }

    #[test]
    fn a_text_is_cut_by_characters_in_order() {
        let text = Examples::Text("äbcdefghij".to_string());
        let parts = cut(text, &shares(&[("train", 0.7), ("val", 0.2), ("test", 0.1)]), false, 1).expect("cut");
        let texts: Vec<_> = parts.iter().map(|(name, part)| (name.as_str(), part.clone())).collect();
        let text = |t: &str| Examples::Text(t.to_string());
        assert_eq!(texts, [("train", text("äbcdefg")), ("val", text("hi")), ("test", text("j"))]);
    }

    #[test]
    fn characters_are_counted_across_blocks() {
        let text: String = (0..1000).map(|i| ['a', 'é', '→', '𝄞'][i * i % 7 % 4]).collect();
        for n in (0..1000).step_by(7).chain([999, 1000, 1001]) {
            let slow = text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
            assert_eq!(bytes_of_chars(&text, n), slow, "{n}");
        }
        assert_eq!(bytes_of_chars("", 3), 0);
    }

    #[test]
    fn rows_are_dealt_once_and_the_same_way() {
        let make = || labelled(1000, |i| (i % 2).to_string());
        let split = shares(&[("train", 0.7), ("val", 0.2), ("test", 0.1)]);
        let parts = cut(make(), &split, false, 1).expect("cut");
        assert_eq!(parts.iter().map(|(_, p)| rows(p).len()).collect::<Vec<_>>(), [700, 200, 100]);
        let mut all: Vec<String> = parts.iter().flat_map(|(_, p)| rows(p)).map(|row| row.text.clone()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 1000);
        assert_eq!(parts, cut(make(), &split, false, 1).expect("cut"));
        assert_ne!(parts, cut(make(), &split, false, 2).expect("cut"));
    }

    #[test]
    fn stratified_parts_have_the_same_shares() {
        let examples = labelled(1000, |i| if i < 100 { "rare" } else { "common" }.to_string());
        let parts = cut(examples, &shares(&[("train", 0.8), ("val", 0.2)]), true, 3).expect("cut");
        let rare = |part: &Examples| rows(part).iter().filter(|row| row.label.as_deref() == Some("rare")).count();
        assert_eq!(parts.iter().map(|(_, part)| rare(part)).collect::<Vec<_>>(), [80, 20]);
    }

    #[test]
    fn a_group_stays_together() {
        let row = |i: u64| Document { text: i.to_string(), group: Some(i / 3), ..Document::default() };
        let examples = Examples::Documents((0..300).map(row).collect());
        let parts = cut(examples, &shares(&[("train", 0.5), ("val", 0.5)]), false, 9).expect("cut");
        let groups = |part: &Examples| rows(part).iter().filter_map(|row| row.group).collect::<Vec<_>>();
        let (train, val) = (groups(&parts[0].1), groups(&parts[1].1));
        assert_eq!((train.len(), val.len()), (150, 150));
        assert!(train.iter().all(|group| !val.contains(group)));
    }

    #[test]
    fn wrong_shares_are_refused() {
        let text = || Examples::Text("abc".to_string());
        for parts in [shares(&[("train", 0.9), ("val", 0.2)]), shares(&[("train", 1.0), ("val", 0.0)])] {
            let problems = cut(text(), &parts, false, 1).expect_err("refused");
            assert_eq!(problems[0].code, SPLIT);
        }
        assert_eq!(cut(text(), &shares(&[("train", 1.0)]), true, 1).expect_err("refused")[0].code, MISMATCH);
    }
}
