//! The paths that a pattern names: `*` and `?` stand for parts of one name, `**` for any number of folders, `{a, b}` for one of these,
//! `{0..5}` for a number from 0 to 4, and what stands at `{label}` is the label of the file.

use crate::problem::{Checked, NO_FILE, Problem};
use std::fs;
use std::path::{Path, PathBuf};

/// A path, and what of it stands where the pattern has `{label}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) label: Option<String>,
}

/// The paths that a pattern names, in order. A file that is called exactly so needs no pattern.
pub(super) fn expand(pattern: &str, base: &Path) -> Checked<Vec<Found>> {
    let whole = base.join(pattern);
    if !pattern.contains(['*', '?', '{']) || whole.exists() {
        return Ok(vec![Found { path: whole, label: None }]);
    }
    let root = if Path::new(pattern).is_absolute() { PathBuf::from("/") } else { base.to_path_buf() };
    let steps: Vec<&str> = pattern.split('/').filter(|step| !step.is_empty() && *step != ".").collect();
    let steps: Result<Vec<Step>, String> = steps.into_iter().map(Step::parse).collect();
    let steps = steps.map_err(|why| {
        let problem = Problem::new(NO_FILE, format!("the pattern {pattern} cannot be read: {why}"));
        problem.help("`*` is a part of a name, `{a, b}` one of these, `{0..5}` a number, `{label}` the label")
    })?;
    if steps.iter().filter(|step| step.has_label()).count() > 1 {
        let problem = Problem::new(NO_FILE, format!("the pattern {pattern} has two labels"));
        return Err(problem.help("`{label}` stands once; write `*` for what else differs").into());
    }
    let mut found = Vec::new();
    walk(&root, &steps, None, &mut found)?;
    found.sort();
    found.dedup();
    if found.is_empty() {
        let message = format!("no file matches {pattern}");
        return Err(Problem::new(NO_FILE, message).at(&root).help("patterns are relative to the recipe").into());
    }
    Ok(found)
}

/// What stands between two slashes.
enum Step {
    /// A name as it is, or `..`.
    Plain(String),
    /// `**`
    Folders,
    Pattern(Vec<Piece>),
}

enum Piece {
    Char(char),
    /// `?`
    Any,
    /// `*`
    Star,
    /// `{label}`: one character or more, as few as do.
    Label,
    /// `{a, b}`
    Choice(Vec<Vec<char>>),
    /// `{0..5}`: a number, with zeros in front or without.
    Range(u64, u64),
}

impl Step {
    fn parse(text: &str) -> Result<Step, String> {
        if text == "**" {
            return Ok(Step::Folders);
        }
        if text == ".." || !text.contains(['*', '?', '{']) {
            return Ok(Step::Plain(text.to_string()));
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(char) = rest.chars().next() {
            rest = &rest[char.len_utf8()..];
            pieces.push(match char {
                '*' => Piece::Star,
                '?' => Piece::Any,
                '{' => {
                    let (inside, behind) = rest.split_once('}').ok_or("a brace is not closed")?;
                    rest = behind;
                    braces(inside)?
                }
                char => Piece::Char(char),
            });
        }
        Ok(Step::Pattern(pieces))
    }

    fn has_label(&self) -> bool {
        matches!(self, Step::Pattern(pieces) if pieces.iter().any(|piece| matches!(piece, Piece::Label)))
    }
}

fn braces(inside: &str) -> Result<Piece, String> {
    if inside == "label" {
        return Ok(Piece::Label);
    }
    if let Some((from, to)) = inside.split_once("..") {
        return match (from.trim().parse(), to.trim().parse()) {
            (Ok(from), Ok(to)) if from < to => Ok(Piece::Range(from, to)),
            _ => Err(format!("`{{{inside}}}` is no range, such as `{{0..5}}`")),
        };
    }
    let names: Vec<Vec<char>> = inside.split(',').map(|name| name.trim().chars().collect()).collect();
    match names.iter().any(Vec::is_empty) {
        true => Err(format!("`{{{inside}}}` has an empty choice")),
        false => Ok(Piece::Choice(names)),
    }
}

fn walk(folder: &Path, steps: &[Step], label: Option<&str>, found: &mut Vec<Found>) -> Result<(), Problem> {
    let Some((step, rest)) = steps.split_first() else { return Ok(()) };
    let take = |path: PathBuf, label: Option<&str>, found: &mut Vec<Found>| match rest.is_empty() {
        true => {
            found.extend(path.is_file().then(|| Found { path, label: label.map(str::to_string) }));
            Ok(())
        }
        false if path.is_dir() => walk(&path, rest, label, found),
        false => Ok(()),
    };
    if let Step::Plain(name) = step {
        return take(folder.join(name), label, found);
    }
    if matches!(step, Step::Folders) {
        walk(folder, rest, label, found)?;
    }
    let entries = fs::read_dir(folder).map_err(|error| Problem::reading(folder, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| Problem::reading(folder, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        // Links to folders are not followed where a pattern leads: they may lead in a circle.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match step {
            // As in a shell, a pattern does not reach what is hidden.
            Step::Folders if is_folder && !name.starts_with('.') => walk(&path, steps, label, found)?,
            Step::Pattern(pieces) if is_folder || rest.is_empty() => {
                let shows = !name.starts_with('.') || matches!(pieces.first(), Some(Piece::Char('.')));
                if let (true, Some(own)) = (shows, fits(pieces, &name)) {
                    take(path, own.as_deref().or(label), found)?;
                }
            }
            Step::Plain(_) | Step::Folders | Step::Pattern(_) => {}
        }
    }
    Ok(())
}

/// Whether a name fits, and what stands at its `{label}`.
fn fits(pieces: &[Piece], name: &str) -> Option<Option<String>> {
    let name: Vec<char> = name.chars().collect();
    let mut tried = vec![false; (pieces.len() + 1) * (name.len() + 1)];
    let mut label = None;
    fits_from(pieces, &name, 0, 0, &mut tried, &mut label).then_some(label)
}

/// `tried` marks what has failed, so that no pattern takes longer than its length times that of the name, squared at most.
fn fits_from(
    pieces: &[Piece],
    name: &[char],
    p: usize,
    n: usize,
    tried: &mut [bool],
    label: &mut Option<String>,
) -> bool {
    let Some(piece) = pieces.get(p) else { return n == name.len() };
    if std::mem::replace(&mut tried[p * (name.len() + 1) + n], true) {
        return false;
    }
    let rest = &name[n..];
    let mut goes_on = |taken: usize, label: &mut Option<String>| {
        let fits = fits_from(pieces, name, p + 1, n + taken, tried, label);
        if fits && matches!(piece, Piece::Label) {
            *label = Some(rest[..taken].iter().collect());
        }
        fits
    };
    match piece {
        Piece::Char(char) => rest.first() == Some(char) && goes_on(1, label),
        Piece::Any => !rest.is_empty() && goes_on(1, label),
        Piece::Star => (0..=rest.len()).any(|taken| goes_on(taken, label)),
        Piece::Label => (1..=rest.len()).any(|taken| goes_on(taken, label)),
        Piece::Choice(names) => names.iter().any(|one| rest.starts_with(one) && goes_on(one.len(), label)),
        Piece::Range(from, to) => {
            let n_digits = rest.iter().take_while(|char| char.is_ascii_digit()).count();
            let number: String = rest[..n_digits].iter().collect();
            let is_whole = n == 0 || !name[n - 1].is_ascii_digit();
            is_whole && number.parse().is_ok_and(|number| (*from..*to).contains(&number)) && goes_on(n_digits, label)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Step, fits};

    fn label_of(pattern: &str, name: &str) -> Option<Option<String>> {
        match Step::parse(pattern).expect("a pattern") {
            Step::Plain(plain) => (plain == name).then_some(None),
            Step::Folders => None,
            Step::Pattern(pieces) => fits(&pieces, name),
        }
    }

    #[test]
    fn patterns() {
        for (pattern, name, is_fit) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("part-??.csv", "part-07.csv", true),
            ("part-??.csv", "part-7.csv", false),
            ("?", "好", true),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "aab", true),
            ("", "", true),
            ("*", "", true),
            ("a", "", false),
            ("{jpg, png}", "png", true),
            ("*.{jpg,jpeg}", "a.jpeg", true),
            ("*.{jpg,jpeg}", "a.png", false),
            ("*_{5..10}.wav", "0_theo_9.wav", true),
            ("*_{5..10}.wav", "0_theo_09.wav", true),
            ("*_{5..10}.wav", "0_theo_10.wav", false),
            ("*{5..10}.wav", "0_theo_15.wav", false),
            ("{0..9}", "99999999999999999999999", false),
        ] {
            assert_eq!(label_of(pattern, name).is_some(), is_fit, "{pattern} {name}");
        }
    }

    #[test]
    fn labels() {
        for (pattern, name, label) in [
            ("{label}", "cat", Some("cat")),
            ("{label}_*_0.wav", "7_theo_0.wav", Some("7")),
            ("*-{label}.png", "a-b-c.png", Some("b-c")),
            ("{label}.png", ".png", None),
        ] {
            assert_eq!(label_of(pattern, name).flatten().as_deref(), label, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_that_are_wrong() {
        for pattern in ["{", "a{b", "{}", "{a,}", "{5..5}", "{a..b}"] {
            assert!(Step::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_of_stars_ends_soon() {
        assert_eq!(label_of(&format!("{}b", "*a".repeat(100)), &"a".repeat(250)), None);
    }
}
