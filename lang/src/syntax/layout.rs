//! Before the grammar: brackets, items, newlines.
//!
//! pest stops at its first error, so the file is cut into items here, and each is parsed on its own. This pass also
//! settles what a grammar is bad at: which newlines separate (none inside `( )` and `[ ]`, none after an operator), which
//! opener an unclosed bracket belongs to, and how deep things nest, before anything recurses. It gives a text of the same
//! length in which comments and newlines that separate nothing are blanks, so every offset is one of the user's file.

use super::ast::{FileId, Name, Span};
use super::lexer::{Token, TokenKind, goes_on, tokens};
use crate::diag::{Code, Diagnostic};

/// Brackets and lambdas may nest this deep: no hand writes more, and the parser's recursion stays within its stack.
pub(crate) const MAX_NESTING: usize = 256;

/// Words that open an item, and so end a broken one before them.
pub(crate) const ITEM_WORDS: [&str; 9] = ["use", "arg", "axis", "names", "layer", "fn", "optimizer", "model", "let"];

/// Words that open a stage. The checker knows what each may hold; here they only help to find where items begin.
pub(crate) const STAGE_WORDS: [&str; 11] =
    ["data", "model", "train", "eval", "quantize", "prune", "export", "serve", "parallel", "search", "bench"];

/// A file, cut.
pub(crate) struct Layout {
    /// The text for the grammar; as long as the source.
    pub(crate) text: String,
    pub(crate) items: Vec<ItemText>,
    pub(crate) file_docs: String,
    /// Doc comments with the offset of what they document, in order.
    pub(crate) docs: Vec<(usize, String)>,
}

/// Where one item lies.
pub(crate) struct ItemText {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Its first word; empty if it does not begin with one.
    pub(crate) keyword: String,
    /// The word after it.
    pub(crate) name: Option<Name>,
    /// Whether the third piece is such that this may be a stage: `train base {`, `parallel {`, `parallel = `.
    pub(crate) is_stage: bool,
    /// False when a diagnostic has been given already, so that the grammar need not look.
    pub(crate) is_sound: bool,
    /// The deepest nesting of brackets in it.
    pub(crate) nesting: usize,
}

/// An open bracket during the walk.
struct Frame {
    token: Token,
    /// `fn`, `if`, `repeat` since the last separator: each nests the grammar like a bracket.
    chained: usize,
}

/// A block whose `}` is not indented like the line that opened it: probably the `}` of another.
#[derive(Clone, Copy)]
struct Suspect {
    opener: Token,
    closer: Token,
}

struct Walk<'a> {
    file: FileId,
    source: &'a str,
    tokens: Vec<Token>,
    /// For each token the first from it on that is code; their number if there is none.
    next_code: Vec<usize>,
    text: Vec<u8>,
    diagnostics: &'a mut Vec<Diagnostic>,
    /// Some bracket of the file is wrong: then an item word at the start of a line ends what is open.
    is_strict: bool,
    /// The first of the item at hand.
    suspect: Option<Suspect>,
}

pub(crate) fn layout(file: FileId, source: &str, diagnostics: &mut Vec<Diagnostic>) -> Layout {
    let tokens = tokens(source);
    let is_strict = !is_balanced(source, &tokens);
    let (docs, file_docs) = doc_comments(source, &tokens);
    let mut next_code = vec![tokens.len(); tokens.len()];
    let mut next = tokens.len();
    for (idx, token) in tokens.iter().enumerate().rev() {
        if token.is_code() {
            next = idx;
        }
        next_code[idx] = next;
    }
    let text = source.as_bytes().to_vec();
    let mut walk = Walk { file, source, tokens, next_code, text, diagnostics, is_strict, suspect: None };
    let items = walk.items();
    for idx in 0..walk.tokens.len() {
        if walk.tokens[idx].is_comment() {
            walk.blank(idx);
        }
    }
    // Only whole comments and newlines were replaced, by as many blanks.
    let text = String::from_utf8(walk.text).unwrap_or_default();
    Layout { text, items, file_docs, docs }
}

fn is_balanced(source: &str, tokens: &[Token]) -> bool {
    let mut open = Vec::new();
    for token in tokens {
        match token.kind {
            TokenKind::Open => open.push(closer_of(token.text(source))),
            TokenKind::Close if open.pop() != Some(token.text(source)) => return false,
            _ => {}
        }
    }
    open.is_empty()
}

pub(crate) fn closer_of(opener: &str) -> &'static str {
    match opener {
        "(" => ")",
        "[" => "]",
        _ => "}",
    }
}

fn doc_comments(source: &str, tokens: &[Token]) -> (Vec<(usize, String)>, String) {
    let mut docs = Vec::new();
    let mut lines: Vec<&str> = Vec::new();
    let mut file_lines: Vec<&str> = Vec::new();
    let line_of = |token: &Token| {
        let line = &token.text(source)[3..];
        line.strip_prefix(' ').unwrap_or(line)
    };
    for token in tokens {
        match token.kind {
            TokenKind::Doc => lines.push(line_of(token)),
            TokenKind::FileDoc => file_lines.push(line_of(token)),
            _ if token.is_code() && !lines.is_empty() => {
                docs.push((token.start, lines.join("\n")));
                lines.clear();
            }
            _ => {}
        }
    }
    (docs, file_lines.join("\n"))
}

impl Walk<'_> {
    fn items(&mut self) -> Vec<ItemText> {
        let mut items = Vec::new();
        let mut at = 0;
        while let Some(first) = self.next_code(at) {
            let (item, end) = self.item(first);
            items.push(item);
            at = end;
        }
        items
    }

    /// The item that begins at token `first`, and the token after it.
    fn item(&mut self, first: usize) -> (ItemText, usize) {
        let n_before = self.diagnostics.len();
        let mut open: Vec<Frame> = Vec::new();
        let (mut chained, mut nesting, mut is_too_deep) = (0, 0, false);
        self.suspect = None;
        let mut last = first;
        let mut idx = first;
        while idx < self.tokens.len() {
            let token = self.tokens[idx];
            if idx > first && token.is_code() && self.begins_item(idx, last, open.len()) {
                break;
            }
            match token.kind {
                TokenKind::Open => {
                    open.push(Frame { token, chained: 0 });
                }
                TokenKind::Close => self.close(token, &mut open, &mut chained, is_too_deep),
                TokenKind::Newline => {
                    let is_blank = self.is_blank_newline(idx, last, open.last());
                    if is_blank {
                        self.blank(idx);
                    } else {
                        separate(&mut open, &mut chained);
                    }
                }
                TokenKind::Mark if token.text(self.source) == "," => separate(&mut open, &mut chained),
                TokenKind::Word if self.chains(idx, last) => {
                    chained += 1;
                    if let Some(frame) = open.last_mut() {
                        frame.chained += 1;
                    }
                }
                TokenKind::Unknown => self.unknown(idx),
                TokenKind::Str { closed: false } => self.unclosed_string(token),
                _ => {}
            }
            nesting = nesting.max(open.len() + chained);
            if nesting > MAX_NESTING && !is_too_deep {
                is_too_deep = true;
                self.too_deep(token);
            }
            if token.is_code() {
                last = idx;
            }
            idx += 1;
        }
        if !is_too_deep {
            // The innermost three; whoever left more open has lost count anyway.
            for frame in open.iter().rev().take(3) {
                self.unclosed(frame.token, idx);
            }
        }
        let start = self.tokens[first].start;
        let second = self.next_code(first + 1).filter(|&second| second < idx);
        let name = second
            .filter(|&second| self.tokens[second].kind == TokenKind::Word)
            .map(|second| Name { text: self.text_of(second).to_owned(), span: self.span(self.tokens[second]) });
        let third = second.and_then(|second| self.next_code(second + 1)).filter(|&third| third < idx);
        let marks_stage = |at: Option<usize>| at.is_some_and(|at| matches!(self.text_of(at), "{" | "="));
        let item = ItemText {
            start,
            end: self.tokens[last].end,
            keyword: match self.tokens[first].kind {
                TokenKind::Word => self.text_of(first).to_owned(),
                _ => String::new(),
            },
            is_stage: if name.is_some() { marks_stage(third) } else { marks_stage(second) },
            name,
            is_sound: self.diagnostics.len() == n_before,
            nesting,
        };
        (item, idx)
    }

    /// Whether the item so far, up to token `last`, ends before token `idx`.
    fn begins_item(&self, idx: usize, last: usize, depth: usize) -> bool {
        let token = self.tokens[idx];
        let Some(column) = self.column_on_line(idx) else { return false };
        if depth > 0 {
            return self.is_strict && column == 0 && self.opens_item(idx);
        }
        if self.opens_item(idx) {
            return true;
        }
        let begins =
            matches!(token.kind, TokenKind::Word | TokenKind::Number | TokenKind::Str { .. } | TokenKind::Unknown)
                || (token.kind == TokenKind::Open && self.text_of(idx) != "{");
        column == 0 && begins && !goes_on(self.tokens[last], self.source) && self.text_of(idx) != "else"
    }

    /// An item word with what follows one on its line.
    fn opens_item(&self, idx: usize) -> bool {
        let Some(next) = self.tokens.get(idx + 1) else { return false };
        let word = self.text_of(idx);
        let is_item = ITEM_WORDS.contains(&word) && matches!(next.kind, TokenKind::Word | TokenKind::Str { .. });
        let is_stage = STAGE_WORDS.contains(&word) && (next.kind == TokenKind::Word || next.text(self.source) == "{");
        // `model` opens an item and is a common parameter, but never one that a word follows.
        is_item || is_stage
    }

    fn close(&mut self, token: Token, open: &mut Vec<Frame>, chained: &mut usize, is_quiet: bool) {
        let closer = token.text(self.source);
        let matches = |frame: &Frame| closer_of(frame.token.text(self.source)) == closer;
        let Some(at) = open.iter().rposition(matches) else {
            if !is_quiet {
                let diagnostic = Diagnostic::error(Code::E0103, format!("`{closer}` closes nothing"))
                    .label(self.span(token), "no bracket is open here that it could close")
                    .help("remove it, or open the bracket that it should close");
                self.diagnostics.push(diagnostic);
            }
            return;
        };
        if at + 1 < open.len() && !is_quiet {
            let inner = open[open.len() - 1].token;
            let text = inner.text(self.source);
            let diagnostic = Diagnostic::error(Code::E0102, format!("`{text}` is not closed"))
                .label(self.span(inner), "opened here")
                .label(self.span(token), format!("`{closer}` comes before its `{}`", closer_of(text)))
                .help(format!("close it with `{}`", closer_of(text)));
            self.diagnostics.push(diagnostic);
        }
        let opener = open[at].token;
        if self.suspect.is_none() && !is_quiet && closer == "}" {
            self.suspect = self
                .indent_before(token)
                .filter(|indent| *indent != self.line_indent(opener))
                .map(|_| Suspect { opener, closer: token });
        }
        for frame in open.drain(at..) {
            *chained -= frame.chained;
        }
    }

    fn unclosed(&mut self, opener: Token, end: usize) {
        if let Some(Suspect { opener, closer }) = self.suspect.take() {
            let diagnostic = Diagnostic::error(Code::E0102, "`{` is not closed")
                .label(self.span(opener), "opened here")
                .label(self.span(closer), "this `}` closes it, but is not indented like it")
                .help("close it with `}` before this one");
            self.diagnostics.push(diagnostic);
            return;
        }
        let text = opener.text(self.source);
        let closer = closer_of(text);
        let mut diagnostic = Diagnostic::error(Code::E0102, format!("`{text}` is not closed"))
            .label(self.span(opener), "opened here")
            .help(format!("close it with `{closer}`"));
        if let Some(&next) = self.tokens.get(end) {
            diagnostic = diagnostic.label(self.span(next), "still open where the next item begins");
        }
        self.diagnostics.push(diagnostic);
    }

    fn too_deep(&mut self, token: Token) {
        let message = format!("nested more than {MAX_NESTING} deep");
        let diagnostic = Diagnostic::error(Code::E0105, message)
            .label(self.span(token), "this is one too many")
            .help("name the inner parts with `let`");
        self.diagnostics.push(diagnostic);
    }

    fn unclosed_string(&mut self, token: Token) {
        let diagnostic = Diagnostic::error(Code::E0104, "a string is not closed on its line")
            .label(self.span(token), "it begins here")
            .help("close it with `\"`; a line break inside a string is written `\\n`");
        self.diagnostics.push(diagnostic);
    }

    /// One report for neighbouring characters.
    fn unknown(&mut self, idx: usize) {
        let token = self.tokens[idx];
        let is_neighbour = |at: usize| self.tokens.get(at).is_some_and(|other| other.kind == TokenKind::Unknown);
        if idx > 0 && is_neighbour(idx - 1) && self.tokens[idx - 1].end == token.start {
            return;
        }
        let mut end = idx;
        while is_neighbour(end + 1) && self.tokens[end + 1].start == self.tokens[end].end {
            end += 1;
        }
        let text: String = self.source[token.start..self.tokens[end].end].chars().take(20).collect();
        let span = Span::new(self.file, token.start, self.tokens[end].end);
        let shown: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let mut diagnostic = Diagnostic::error(Code::E0107, format!("`{shown}` means nothing here"))
            .label(span, "not used by the language");
        if let Some(help) = help_for_unknown(&text) {
            diagnostic = diagnostic.help(help);
        }
        self.diagnostics.push(diagnostic);
    }

    /// Whether the newline at `idx`, after the code token `last`, separates nothing.
    fn is_blank_newline(&self, idx: usize, last: usize, frame: Option<&Frame>) -> bool {
        match frame {
            Some(frame) if frame.token.text(self.source) != "{" => return true,
            _ => {}
        }
        if goes_on(self.tokens[last], self.source) {
            return true;
        }
        let next = self.next_code(idx).map_or("", |next| self.text_of(next));
        matches!(next, "->" | "=" | "else") || (next == "{" && frame.is_none())
    }

    /// Whether the word at `idx` makes the grammar nest without a bracket.
    fn chains(&self, idx: usize, last: usize) -> bool {
        match self.text_of(idx) {
            "fn" | "repeat" | "each" => true,
            // `else if` is a list of branches.
            "if" => idx == last || self.text_of(last) != "else",
            _ => false,
        }
    }

    /// The first token from `from` on that is code.
    fn next_code(&self, from: usize) -> Option<usize> {
        self.next_code.get(from).copied().filter(|&idx| idx < self.tokens.len())
    }

    /// The column of a token that is the first on its line.
    fn column_on_line(&self, idx: usize) -> Option<usize> {
        let is_first = idx == 0 || self.tokens[idx - 1].kind == TokenKind::Newline;
        let line_start = if idx == 0 { 0 } else { self.tokens[idx - 1].end };
        is_first.then(|| self.tokens[idx].start - line_start)
    }

    /// How many blanks stand before a token that is the first on its line.
    fn indent_before(&self, token: Token) -> Option<usize> {
        let before = &self.source[..token.start];
        let line = before.trim_end_matches([' ', '\t']);
        (line.is_empty() || line.ends_with('\n')).then_some(before.len() - line.len())
    }

    /// How many blanks the line of a token begins with.
    fn line_indent(&self, token: Token) -> usize {
        let start = self.source[..token.start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = &self.source[start..];
        line.len() - line.trim_start_matches([' ', '\t']).len()
    }

    fn blank(&mut self, idx: usize) {
        let token = self.tokens[idx];
        self.text[token.start..token.end].fill(b' ');
    }

    fn text_of(&self, idx: usize) -> &str {
        self.tokens[idx].text(self.source)
    }

    fn span(&self, token: Token) -> Span {
        Span::new(self.file, token.start, token.end)
    }
}

fn separate(open: &mut [Frame], chained: &mut usize) {
    match open.last_mut() {
        Some(frame) => {
            *chained -= frame.chained;
            frame.chained = 0;
        }
        None => *chained = 0,
    }
}

fn help_for_unknown(text: &str) -> Option<&'static str> {
    match text {
        "&&" | "&" => Some("write `and`"),
        "||" => Some("write `or`"),
        "!" => Some("write `not`; `!=` compares"),
        ";" => Some("a line ends a statement; nothing else is needed"),
        "#" => Some("a comment begins with `//`"),
        "'" | "`" | "‘" | "’" | "“" | "”" => {
            Some("a string stands between `\"`; `'` only follows the name of an axis")
        }
        "@" => Some("a product of matrices is a contraction: `dot[axis](a, b)`"),
        "×" | "·" => Some("write `*`"),
        "−" | "–" => Some("write `-`"),
        "≤" => Some("write `<=`"),
        "≥" => Some("write `>=`"),
        "≠" => Some("write `!=`"),
        _ => None,
    }
}
