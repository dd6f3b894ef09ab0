//! Broken recipes by the hundred: whatever is wrong, the answer is a diagnostic, never a panic, and never silence about
//! a block that was left out.

mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use mdl_lang::diag::Sources;
use mdl_lang::stage::check;
use world::FakeWorld;

/// A linear congruential generator (Knuth, MMIX): the same mutations on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
}

/// Words, numbers, marks and blanks; joined they are the text.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '\'';
    let chars: Vec<(usize, char)> = text.char_indices().collect();
    for (i, (at, c)) in chars.iter().enumerate() {
        let joins = i > 0 && is_word(*c) && is_word(chars[i - 1].1);
        if !joins && *at > start {
            pieces.push(&text[start..*at]);
            start = *at;
        }
    }
    pieces.push(&text[start..]);
    pieces
}

const ODD: [&str; 22] = [
    "0",
    "-1",
    "1.5",
    "1e300",
    "9_000_000_000_000_000_000",
    "none",
    "true",
    "\"text\"",
    "90%",
    "3GiB",
    "[]",
    "()",
    "(a: 1)",
    "t'",
    "..",
    "batch",
    "fn(x) = x",
    "zeros()",
    "inf",
    "{ 1 }",
    "[1, 2]",
    "training",
];

fn mutate(text: &str, random: &mut Random) -> String {
    let mut pieces: Vec<String> = pieces(text).into_iter().map(str::to_owned).collect();
    for _ in 0..=random.below(3) {
        let solid: Vec<usize> = (0..pieces.len()).filter(|i| !pieces[*i].trim().is_empty()).collect();
        let at = solid[random.below(solid.len())];
        let other = solid[random.below(solid.len())];
        match random.below(6) {
            0 => pieces[at].clear(),
            1 => pieces[at] = format!("{} {}", pieces[at], pieces[at]),
            2 => pieces.swap(at, other),
            3 => pieces[at] = pieces[other].clone(),
            4 => pieces[at] = ODD[random.below(ODD.len())].to_owned(),
            _ => {
                let numbers: Vec<usize> = solid.iter().copied().filter(|i| pieces[*i].parse::<f64>().is_ok()).collect();
                if let Some(at) = numbers.get(random.below(numbers.len())) {
                    pieces[*at] = ODD[random.below(8)].to_owned();
                }
            }
        }
    }
    pieces.concat()
}

#[test]
fn broken_recipes_are_answered() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = [here.join("../examples"), here.join("tests/golden/step")];
    let mut recipes: Vec<String> = Vec::new();
    for folder in folders {
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let is_recipe = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "mdl");
        recipes.extend(paths.iter().filter(|path| is_recipe(path)).map(|path| std::fs::read_to_string(path).unwrap()));
    }
    // More by hand: `MDL_MUTATIONS=10000 MDL_SEED=1 cargo test -p mdl-lang --test mutations`.
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("MDL_MUTATIONS").unwrap_or(100) as usize;
    let mut random = Random(number("MDL_SEED").unwrap_or(7));
    let mut panics: BTreeMap<String, String> = BTreeMap::new();
    for i in 0..count {
        let text = mutate(&recipes[i % recipes.len()], &mut random);
        let start = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut sources = Sources::new();
            let main = sources.add("recipe.mdl", text.as_str());
            check(&mut sources, main, &[], &FakeWorld::default());
        }));
        // Five seconds are what a mistake may take; an unoptimized build on a busy machine gets some more.
        if start.elapsed().as_secs() > 20 {
            panics.entry("too slow".to_owned()).or_insert_with(|| text.clone());
        }
        if let Err(panic) = result {
            let message =
                panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panics.entry(message.unwrap_or_default()).or_insert(text);
        }
    }
    let report: Vec<String> = panics.iter().map(|(message, text)| format!("{message}\n---\n{text}\n")).collect();
    assert!(panics.is_empty(), "{} kinds of panics\n{}", panics.len(), report.join("\n"));
}
