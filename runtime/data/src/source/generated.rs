//! Corpora that need no file: sums to learn, and tokens to measure with.

use super::Document;
use crate::permutation::mix;
use crate::problem::{MISMATCH, Problem};

/// Every sum of two numbers below `10^digits`, `12+34=046`, in order of the numbers.
///
/// Numbers have a fixed width, so that every sum has its signs at the same positions. `a+b` and `b+a` form one group:
/// a part of a split that has neither has truly not seen the sum.
pub(super) fn addition(digits: u32) -> Result<Vec<Document>, Problem> {
    if !(1..=3).contains(&digits) {
        let message = format!("addition of {digits} digits cannot be listed");
        return Err(Problem::new(MISMATCH, message).help("digits is 1, 2 or 3: the list has 100^digits lines"));
    }
    let n = 10u64.pow(digits);
    let (width, answer_width) = (digits as usize, digits as usize + 1);
    let mut documents = Vec::with_capacity((n * n) as usize);
    for a in 0..n {
        for b in 0..n {
            let question = format!("{a:0width$}+{b:0width$}=");
            documents.push(Document {
                prompt_bytes: question.len(),
                text: format!("{question}{:0answer_width$}\n", a + b),
                group: Some(a.min(b) * n + a.max(b)),
                line: documents.len() as u64 + 1,
                ..Document::default()
            });
        }
    }
    Ok(documents)
}

/// The largest corpus that is made up: 4 GiB of ids.
const MAX_TOKENS: u64 = 1 << 30;

/// Ids that look random and are the same everywhere, and how many there may be.
pub(super) fn random_tokens(vocab: u64, count: u64) -> Result<(Vec<u32>, u32), Problem> {
    let size = u32::try_from(vocab).unwrap_or(0);
    if size == 0 || count == 0 || count > MAX_TOKENS {
        let message = format!("{count} tokens of a vocabulary of {vocab} cannot be made");
        return Err(Problem::new(MISMATCH, message).help("both are at least 1; there are at most 2^30 tokens"));
    }
    // The high half of 64 mixed bits times the size: the bias is below vocab / 2^32.
    let ids = (0..count).map(|i| (((mix(0, 0x746f_6b65, i) >> 32) * vocab) >> 32) as u32).collect();
    Ok((ids, size))
}
