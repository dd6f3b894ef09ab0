//! Source text as tokens: what the layout pass and the formatter walk.
//!
//! Nothing is lost: the tokens, the blanks between them and the newlines are the whole text. A token that makes no sense
//! is a token all the same (`Unknown`, an unclosed string), so this never fails; `layout` reports. The grammar does not
//! see these tokens, but reads the same text again, with comments and meaningless newlines blanked out.

use std::collections::BTreeSet;

/// A piece of text, `text[start..end]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// A word, with the primes of a twin.
    Word,
    /// A number with its unit: `1e-3`, `16GiB`, `90%`.
    Number,
    Str {
        closed: bool,
    },
    /// `// …`
    Comment,
    /// `/// …`
    Doc,
    /// `//! …`
    FileDoc,
    Newline,
    Open,
    Close,
    /// `+`, `->`, `..`, `,` …
    Mark,
    /// A character that the language does not use.
    Unknown,
}

impl Token {
    pub(crate) fn text(self, source: &str) -> &str {
        &source[self.start..self.end]
    }

    pub(crate) fn is_comment(self) -> bool {
        matches!(self.kind, TokenKind::Comment | TokenKind::Doc | TokenKind::FileDoc)
    }

    /// Neither a comment nor a newline.
    pub(crate) fn is_code(self) -> bool {
        !self.is_comment() && self.kind != TokenKind::Newline
    }
}

/// Every word of the code in a text; of strings those with `{…}`, in which names are put in.
pub(crate) fn words(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for token in tokens(source) {
        let text = token.text(source);
        match token.kind {
            TokenKind::Word => {
                found.insert(text.to_string());
            }
            TokenKind::Str { .. } if text.contains('{') => {
                let inside = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '\''));
                found.extend(inside.filter(|word| !word.is_empty()).map(str::to_string));
            }
            _ => {}
        }
    }
    found
}

/// Whether a line that ends with this token goes on: an operator, a comma, a word that wants more.
pub(crate) fn goes_on(token: Token, source: &str) -> bool {
    let text = token.text(source);
    match token.kind {
        // `Int?` and the open range `2..` are complete.
        TokenKind::Mark => !matches!(text, "?" | ".."),
        TokenKind::Word => matches!(text, "and" | "or" | "not" | "in" | "as" | "let" | "if" | "else"),
        _ => false,
    }
}

/// Marks of two characters, tried before those of one.
const LONG_MARKS: [&str; 6] = ["->", "==", "!=", "<=", ">=", ".."];

pub(crate) fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    // A byte order mark is a blank.
    let mut at = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    while at < bytes.len() {
        let start = at;
        let kind = match bytes[at] {
            b' ' | b'\t' | b'\r' => {
                at += 1;
                continue;
            }
            b'\n' => {
                at += 1;
                TokenKind::Newline
            }
            b'/' if source[at..].starts_with("//") => {
                let line = &source[at..];
                let line = &line[..line.find('\n').unwrap_or(line.len())];
                at += line.trim_end().len();
                comment_kind(line)
            }
            b'"' => {
                let (end, closed) = string_end(bytes, at);
                at = end;
                TokenKind::Str { closed }
            }
            b'0'..=b'9' => {
                at = number_end(bytes, at);
                TokenKind::Number
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                at = word_end(bytes, at);
                while bytes.get(at) == Some(&b'\'') {
                    at += 1;
                }
                TokenKind::Word
            }
            b'(' | b'[' | b'{' => {
                at += 1;
                TokenKind::Open
            }
            b')' | b']' | b'}' => {
                at += 1;
                TokenKind::Close
            }
            _ if LONG_MARKS.iter().any(|mark| source[at..].starts_with(mark)) => {
                at += 2;
                TokenKind::Mark
            }
            b'+' | b'-' | b'*' | b'/' | b'%' | b'^' | b'=' | b'<' | b'>' | b',' | b':' | b'.' | b'?' | b'|' => {
                at += 1;
                TokenKind::Mark
            }
            _ => {
                at += source[at..].chars().next().map_or(1, char::len_utf8);
                TokenKind::Unknown
            }
        };
        tokens.push(Token { kind, start, end: at });
    }
    tokens
}

/// `///` documents what follows and `//!` the file; `////` is a ruler.
fn comment_kind(line: &str) -> TokenKind {
    if line.starts_with("//!") {
        TokenKind::FileDoc
    } else if line.starts_with("///") && !line.starts_with("////") {
        TokenKind::Doc
    } else {
        TokenKind::Comment
    }
}

fn word_end(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
        at += 1;
    }
    at
}

/// Strings end on their line.
fn string_end(bytes: &[u8], start: usize) -> (usize, bool) {
    let mut at = start + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return (at + 1, true),
            b'\n' => return (at, false),
            b'\\' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => at += 2,
            _ => at += 1,
        }
    }
    (bytes.len(), false)
}

fn number_end(bytes: &[u8], mut at: usize) -> usize {
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'_') {
            at += 1;
        }
        at
    };
    at = digits(at);
    if bytes.get(at) == Some(&b'.') && is_digit(at + 1) {
        at = digits(at + 1);
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        if is_digit(at + 1 + sign) {
            at = digits(at + 1 + sign);
        }
    }
    if bytes.get(at) == Some(&b'%') && !bytes.get(at + 1).is_some_and(|next| percent_goes_on(*next)) {
        return at + 1;
    }
    word_end(bytes, at)
}

/// `7%2` and `7%(n)` are remainders; `7%` before anything else is a share.
fn percent_goes_on(next: u8) -> bool {
    next.is_ascii_alphanumeric() || next == b'_' || next == b'('
}
