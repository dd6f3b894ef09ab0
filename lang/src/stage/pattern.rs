//! Patterns over the paths of weights: `blocks.*.attn.{q, v}`, `blocks.{0..5}.**`.
//!
//! `*` is one step, `**` any number of them, `{a, b}` a choice, `{0..5}` a range of indices without its end. A weight
//! inside copies is one tensor for all of them, so its path is matched with the index left out or with one step for it:
//! both `blocks.attn.q.w` and `blocks.*.attn.q.w` take the weight `attn.q.w` of every block. A pattern also matches what
//! lies under the layer that it names.

use std::fmt;

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Any,
    AnyNumber,
    Choice(Vec<Choice>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Name(String),
    Range(u64, u64),
}

/// Which copies a pattern takes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    No,
    /// Every copy.
    All,
    /// Some copies, not all: the tensor would have to be cut.
    Some,
}

/// A path with the sizes of the copies in it: `blocks` is followed by an index below 6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStep {
    pub name: String,
    /// How many copies the step has; `None` for one that is no copy.
    pub copies: Option<u64>,
}

/// Why a pattern cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError(pub String);

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let mut steps = Vec::new();
        for piece in split_steps(text)? {
            steps.push(match piece {
                "" => return Err(PatternError(format!("`{text}` has an empty step"))),
                "*" => Step::Any,
                "**" => Step::AnyNumber,
                _ => Step::Choice(choices(piece)?),
            });
        }
        Ok(Pattern { steps })
    }

    /// Whether it speaks of certain copies: by a number, or by a range of numbers.
    pub fn has_indices(&self) -> bool {
        let is_index = |choice: &Choice| match choice {
            Choice::Name(name) => name.bytes().all(|byte| byte.is_ascii_digit()),
            Choice::Range(..) => true,
        };
        self.steps.iter().any(|step| matches!(step, Step::Choice(choices) if choices.iter().any(is_index)))
    }

    /// Whether it has a range or a choice of indices: then what it takes is several, even if that is one.
    pub fn has_ranges(&self) -> bool {
        let is_range = |choice: &Choice| matches!(choice, Choice::Range(..));
        self.steps.iter().any(|step| matches!(step, Step::Choice(choices) if choices.iter().any(is_range)))
    }

    /// Matches a weight's path.
    pub fn matches(&self, path: &[PathStep]) -> Match {
        let takes = self.takes(path);
        match takes.iter().filter(|takes| **takes).count() {
            0 => Match::No,
            hits if hits == takes.len() => Match::All,
            _ => Match::Some,
        }
    }

    /// Which copies it takes of a weight, in order of counting, the last step's index fastest; one answer for a weight
    /// without copies.
    pub fn takes(&self, path: &[PathStep]) -> Vec<bool> {
        let names: Vec<&str> = path.iter().map(|step| step.name.as_str()).collect();
        let sizes: Vec<u64> = path.iter().filter_map(|step| step.copies).collect();
        // Without indices: the pattern speaks of all copies at once.
        let is_all = meets(&self.steps, &names);
        if is_all || sizes.is_empty() || !self.has_indices() {
            let count = sizes.iter().product::<u64>() as usize;
            let steps: Vec<&str> =
                path.iter().flat_map(|step| [Some(step.name.as_str()), step.copies.map(|_| "0")]).flatten().collect();
            return vec![is_all || meets(&self.steps, &steps); count];
        }
        let mut index = vec![0; sizes.len()];
        let mut takes = Vec::new();
        loop {
            let mut steps = Vec::new();
            let mut next = index.iter();
            for step in path {
                steps.push(step.name.clone());
                if step.copies.is_some() {
                    steps.extend(next.next().map(u64::to_string));
                }
            }
            let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
            takes.push(meets(&self.steps, &steps));
            if !advance(&mut index, &sizes) {
                return takes;
            }
        }
    }
}

/// The next index in order of counting; false after the last.
fn advance(index: &mut [u64], sizes: &[u64]) -> bool {
    for (i, size) in index.iter_mut().zip(sizes).rev() {
        *i += 1;
        if *i < *size {
            return true;
        }
        *i = 0;
    }
    false
}

/// Pieces between dots that are not inside braces.
fn split_steps(text: &str) -> Result<Vec<&str>, PatternError> {
    let (mut pieces, mut start, mut depth) = (Vec::new(), 0, 0u32);
    for (at, char) in text.char_indices() {
        match char {
            '{' if depth == 0 => depth = 1,
            '{' => return Err(PatternError(format!("`{text}` has braces inside braces"))),
            '}' if depth == 1 => depth = 0,
            '}' => return Err(PatternError(format!("`{text}` closes a brace that is not open"))),
            '.' if depth == 0 => {
                pieces.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(PatternError(format!("`{text}` does not close a brace")));
    }
    pieces.push(text[start..].trim());
    Ok(pieces)
}

fn choices(piece: &str) -> Result<Vec<Choice>, PatternError> {
    let Some(inner) = piece.strip_prefix('{') else { return Ok(vec![name(piece)?]) };
    let Some(inner) = inner.strip_suffix('}') else {
        return Err(PatternError(format!("`{piece}`: a choice in braces is a whole step")));
    };
    inner
        .split(',')
        .map(|part| {
            let part = part.trim();
            match part.split_once("..") {
                Some((start, end)) => match (start.trim().parse(), end.trim().parse()) {
                    (Ok(start), Ok(end)) if start < end => Ok(Choice::Range(start, end)),
                    _ => Err(PatternError(format!("`{part}` is no range, such as `0..5`"))),
                },
                None => name(part),
            }
        })
        .collect()
}

fn name(text: &str) -> Result<Choice, PatternError> {
    let is_name = !text.is_empty() && text.chars().all(|char| char.is_alphanumeric() || char == '_');
    if is_name {
        Ok(Choice::Name(text.to_owned()))
    } else {
        Err(PatternError(format!("`{text}` is no step of a path")))
    }
}

/// Whether the steps lead to the path, or to a layer above it.
fn meets(steps: &[Step], path: &[&str]) -> bool {
    match (steps.split_first(), path.split_first()) {
        (None, _) => true,
        (Some((Step::AnyNumber, rest)), _) => (0..=path.len()).any(|skip| meets(rest, &path[skip..])),
        (Some(_), None) => false,
        (Some((step, rest)), Some((first, tail))) => step.takes(first) && meets(rest, tail),
    }
}

impl Step {
    fn takes(&self, name: &str) -> bool {
        match self {
            Step::Any | Step::AnyNumber => true,
            Step::Choice(choices) => choices.iter().any(|choice| match choice {
                Choice::Name(known) => known == name,
                Choice::Range(start, end) => name.parse::<u64>().is_ok_and(|index| (*start..*end).contains(&index)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<PathStep> {
        text.split('.')
            .map(|step| match step.split_once('*') {
                Some((name, copies)) => PathStep { name: name.to_owned(), copies: copies.parse().ok() },
                None => PathStep { name: step.to_owned(), copies: None },
            })
            .collect()
    }

    #[track_caller]
    fn check(pattern: &str, weight: &str, expected: Match) {
        let pattern = Pattern::parse(pattern).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(pattern.matches(&path(weight)), expected);
    }

    #[test]
    fn steps() {
        check("tokens", "tokens.w", Match::All);
        check("tokens.w", "tokens.w", Match::All);
        check("token", "tokens.w", Match::No);
        check("tokens.w.x", "tokens.w", Match::No);
        check("*.w", "tokens.w", Match::All);
        check("**", "tokens.w", Match::All);
        check("**.w", "blocks*6.attn.q.w", Match::All);
        check("**.{q, v}", "blocks*6.attn.q.w", Match::All);
        check("**.{q, v}", "blocks*6.attn.k.w", Match::No);
    }

    #[test]
    fn copies() {
        check("blocks.*.attn", "blocks*6.attn.q.w", Match::All);
        check("blocks.attn", "blocks*6.attn.q.w", Match::All);
        check("blocks.**", "blocks*6.attn.q.w", Match::All);
        check("blocks.3.**", "blocks*6.attn.q.w", Match::Some);
        check("blocks.3.**", "blocks*1.attn.q.w", Match::No);
        check("blocks.0.**", "blocks*1.attn.q.w", Match::All);
        check("blocks.{0..5}.attn", "blocks*6.attn.q.w", Match::Some);
        check("blocks.{0..6}.attn", "blocks*6.attn.q.w", Match::All);
        check("blocks.*.experts.1", "blocks*2.experts*3.up.w", Match::Some);
        check("blocks.1.experts.{0..3}", "blocks*2.experts*3.up.w", Match::Some);
    }

    #[test]
    fn errors() {
        for text in ["", "a..b", "a.{b", "a.b}", "{a{b}}", "{5..2}", "a b", "x{a}"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
