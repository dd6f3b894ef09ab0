//! `format`: the same recipe, well spaced.
//!
//! It works on tokens, so comments, numbers and strings stay as they are, and it changes nothing but blanks and line
//! breaks. The user's line breaks stay (at most one empty line in a row); indentation follows the brackets, two blanks a
//! level; a line over 120 columns is broken at its outermost brackets, after `=`, or after an operator. The `=` of a stage
//! stand in one column, and so do comments at the ends of neighbouring lines. Formatting twice is formatting once, since
//! a break that was put in is a break that was found.

use std::ops::Range;

use super::ast::FileId;
use super::layout::closer_of;
use super::lexer::{Token, TokenKind, goes_on, tokens};
use super::parse::parse;
use crate::diag::Diagnostic;

const MAX_WIDTH: usize = 120;
const INDENT: usize = 2;

/// The formatted text, or the syntax errors for which there is none.
pub fn format(source: &str) -> Result<String, Vec<Diagnostic>> {
    let (_, diagnostics) = parse(FileId(0), source);
    if diagnostics.iter().any(Diagnostic::is_error) {
        return Err(diagnostics);
    }
    let mut printer = Printer::new(source);
    printer.normalise();
    Ok(printer.print())
}

/// A token that is printed, and what is known about it.
struct Piece {
    token: Token,
    /// Line breaks before it: 0, 1, or 2 for an empty line.
    breaks: u8,
    /// The opener of the brackets that it stands in; a bracket itself stands outside of its own.
    frame: Option<usize>,
    /// The other bracket of a pair.
    partner: Option<usize>,
    /// The code before it.
    code_before: Option<usize>,
    /// What brackets that open on its line indent from, once the line is printed.
    line_indent: usize,
    /// Blanks before it on top of the usual, which line it up with its neighbours.
    padding: usize,
}

/// A line without the breaks before it.
struct Line {
    breaks: u8,
    text: String,
    /// The comment behind its code.
    comment: Option<String>,
}

struct Printer<'a> {
    source: &'a str,
    pieces: Vec<Piece>,
    /// For each opener, whether it is the `{` of a stage, where a comma ends a field.
    is_stage: Vec<bool>,
}

impl<'a> Printer<'a> {
    fn new(source: &'a str) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut is_stage = Vec::new();
        let mut open: Vec<usize> = Vec::new();
        let (mut breaks, mut opens_stage, mut code_before) = (0u8, false, None);
        for token in tokens(source) {
            if token.kind == TokenKind::Newline {
                breaks = (breaks + 1).min(2);
                continue;
            }
            let idx = pieces.len();
            if open.is_empty() && token.kind == TokenKind::Word && (idx == 0 || breaks > 0) {
                opens_stage =
                    !matches!(token.text(source), "layer" | "fn" | "optimizer" | "axis" | "model" | "arg" | "names");
            }
            let partner = if token.kind == TokenKind::Close { open.pop() } else { None };
            if let Some(opener) = partner {
                pieces[opener].partner = Some(idx);
            }
            let frame = open.last().copied();
            is_stage.push(token.kind == TokenKind::Open && open.is_empty() && token.text(source) == "{" && opens_stage);
            if token.kind == TokenKind::Open {
                open.push(idx);
            }
            pieces.push(Piece { token, breaks, frame, partner, code_before, line_indent: 0, padding: 0 });
            if token.is_code() {
                code_before = Some(idx);
            }
            // Nothing stands behind a comment on its line.
            breaks = 0;
        }
        Self { source, pieces, is_stage }
    }

    /// Settles which line breaks stay, before any is put in.
    fn normalise(&mut self) {
        for idx in 0..self.pieces.len() {
            let text = self.text(idx);
            let follows_comment = idx > 0 && self.pieces[idx - 1].token.is_comment();
            let is_brace_outside = text == "{" && self.pieces[idx].frame.is_none();
            let is_word = self.pieces[idx].token.kind == TokenKind::Word;
            if idx == 0 || (!follows_comment && (is_brace_outside || (is_word && text == "else"))) {
                self.pieces[idx].breaks = 0;
            }
            if self.pieces[idx].token.kind == TokenKind::Open && text == "{" {
                self.open_up(idx);
            }
            // No empty line right inside of brackets.
            let is_first = idx > 0 && self.pieces[idx - 1].token.kind == TokenKind::Open;
            if is_first || self.pieces[idx].token.kind == TokenKind::Close {
                self.pieces[idx].breaks = self.pieces[idx].breaks.min(1);
            }
        }
        for opener in 0..self.pieces.len() {
            self.align_fields(opener);
        }
    }

    /// Lines up the `=` of a stage's fields, one to a line.
    fn align_fields(&mut self, opener: usize) {
        let (true, Some(closer)) = (self.is_stage[opener], self.pieces[opener].partner) else { return };
        let fields: Vec<usize> = (opener + 1..closer)
            .filter(|&idx| {
                self.pieces[idx].frame == Some(opener) && self.pieces[idx].breaks > 0 && self.text(idx + 1) == "="
            })
            .collect();
        let widest = fields.iter().map(|&idx| self.text(idx).len()).max().unwrap_or(0);
        for idx in fields {
            self.pieces[idx + 1].padding = widest - self.text(idx).len();
        }
    }

    /// A block that has a line break somewhere has one after `{` and before `}`, a stage also after each field.
    fn open_up(&mut self, opener: usize) {
        let Some(closer) = self.pieces[opener].partner else { return };
        let inside = opener + 1..closer;
        let has_break = self.pieces[closer].breaks > 0
            || inside.clone().any(|idx| self.pieces[idx].frame == Some(opener) && self.pieces[idx].breaks > 0);
        if !has_break {
            return;
        }
        let first = &mut self.pieces[opener + 1];
        if opener + 1 < closer && !first.token.is_comment() {
            first.breaks = first.breaks.max(1);
        }
        self.pieces[closer].breaks = u8::from(opener + 1 < closer);
        if self.is_stage[opener] {
            self.break_at_commas(opener, closer);
        }
    }

    fn print(&mut self) -> String {
        let mut lines = Vec::new();
        let mut start = 0;
        while start < self.pieces.len() {
            let indent = self.indent_of(start);
            let mut line = self.line_from(start);
            while self.width(line.clone(), indent) > MAX_WIDTH && self.wrap(line.clone(), indent) {
                line = self.line_from(start);
            }
            let nested_indent = self.nested_indent(line.clone(), indent);
            let (mut text, mut comment) = (" ".repeat(indent), None);
            for idx in line.clone() {
                self.pieces[idx].line_indent = nested_indent;
                if idx > start && self.pieces[idx].token.is_comment() {
                    comment = Some(self.text(idx).to_owned());
                    continue;
                }
                if idx > start {
                    text.extend(std::iter::repeat_n(' ', self.pieces[idx].padding));
                    text.push_str(self.gap(idx));
                }
                text.push_str(self.text(idx));
            }
            lines.push(Line { breaks: self.pieces[start].breaks, text, comment });
            start = line.end;
        }
        join(&lines, self.source.len())
    }

    /// What a block that opens on a line indents from: `-> type = {` belongs to the line that it continues.
    fn nested_indent(&self, line: Range<usize>, indent: usize) -> usize {
        let last = line.clone().rev().find(|&idx| self.pieces[idx].token.is_code());
        let opens_block = last.is_some_and(|last| self.text(last) == "{");
        let is_tail = matches!(self.text(line.start), "->" | "=") && self.goes_on_at(line.start);
        if is_tail && opens_block { indent - INDENT } else { indent }
    }

    fn line_from(&self, start: usize) -> Range<usize> {
        let end = (start + 1..self.pieces.len()).find(|&idx| self.pieces[idx].breaks > 0).unwrap_or(self.pieces.len());
        start..end
    }

    /// The columns of a line without the comment at its end, which nothing can break.
    fn width(&self, line: Range<usize>, indent: usize) -> usize {
        let mut width = indent;
        for idx in line.clone() {
            if self.pieces[idx].token.is_comment() && idx > line.start {
                break;
            }
            let gap = if idx > line.start { self.gap(idx).len() + self.pieces[idx].padding } else { 0 };
            width += gap + self.text(idx).chars().count();
        }
        width
    }

    /// How many pieces of a line end within the width.
    fn n_fit(&self, line: Range<usize>, indent: usize) -> usize {
        let mut column = indent;
        line.clone()
            .take_while(|&idx| {
                let gap = if idx > line.start { self.gap(idx).len() + self.pieces[idx].padding } else { 0 };
                column += gap + self.text(idx).chars().count();
                column <= MAX_WIDTH
            })
            .count()
    }

    /// What the line that begins with piece `idx` is indented by.
    fn indent_of(&self, idx: usize) -> usize {
        let piece = &self.pieces[idx];
        if let (TokenKind::Close, Some(opener)) = (piece.token.kind, piece.partner) {
            return self.pieces[opener].line_indent;
        }
        let base = piece.frame.map_or(0, |opener| self.pieces[opener].line_indent + INDENT);
        if self.goes_on_at(idx) { base + INDENT } else { base }
    }

    /// Whether the line that begins with piece `idx` continues the statement before it.
    fn goes_on_at(&self, idx: usize) -> bool {
        let frame = self.pieces[idx].frame;
        if frame.is_some_and(|opener| self.text(opener) != "{") {
            return false;
        }
        if matches!(self.text(idx), "->" | "=") {
            return true;
        }
        let Some(before) = self.pieces[idx].code_before else { return false };
        if self.pieces[before].token.kind == TokenKind::Open {
            return false;
        }
        let ends_field = self.text(before) == "," && frame.is_some_and(|opener| self.is_stage[opener]);
        !ends_field && goes_on(self.pieces[before].token, self.source)
    }

    /// Puts line breaks into a line that is too long; false if there is no good place.
    fn wrap(&mut self, line: Range<usize>, indent: usize) -> bool {
        let outer = self.outer_pieces(line.clone());
        let groups: Vec<usize> = outer.iter().copied().filter(|&idx| self.closes_within(idx, &line)).collect();
        let braces: Vec<usize> = groups.iter().copied().filter(|&idx| self.text(idx) == "{").collect();
        if !braces.is_empty() {
            for opener in braces {
                self.break_group(opener, true);
            }
            return true;
        }
        // `name = value`, when the value then has a line for itself.
        let equals = outer.iter().copied().find(|&idx| self.text(idx) == "=" && idx > line.start);
        let is_statement = self.pieces[line.start].frame.is_none_or(|opener| self.text(opener) == "{");
        if let Some(equals) = equals
            && is_statement
            && equals + 1 < line.end
            && self.width(equals + 1..line.end, indent + INDENT) <= MAX_WIDTH
            && self.width(line.start..equals + 1, indent) <= MAX_WIDTH
        {
            self.pieces[equals + 1].breaks = 1;
            return true;
        }
        let widest = groups
            .into_iter()
            .max_by_key(|&opener| self.pieces[opener].partner.map_or(0, |closer| self.width(opener..closer, 0)));
        if let Some(opener) = widest
            && let Some(closer) = self.pieces[opener].partner
            && self.width(opener..closer, 0) > MAX_WIDTH / 4
        {
            let fits = self.width(opener + 1..closer, indent + INDENT) <= MAX_WIDTH;
            self.break_group(opener, !fits);
            return true;
        }
        // After the last comma or operator that still has room.
        let breakable = |idx: usize| match self.text(idx) {
            "," | "and" | "or" | "+" | "*" | "/" => true,
            "-" => !self.is_unary(idx),
            _ => false,
        };
        let ends_line = |idx: usize| idx + 1 >= line.end || self.pieces[idx + 1].token.is_comment();
        let n_fit = self.n_fit(line.clone(), indent);
        let place = outer.iter().copied().rfind(|&idx| idx < line.start + n_fit && breakable(idx) && !ends_line(idx));
        if let Some(place) = place {
            self.pieces[place + 1].breaks = 1;
            return true;
        }
        false
    }

    /// The pieces of a line that stand in none of its own brackets.
    fn outer_pieces(&self, line: Range<usize>) -> Vec<usize> {
        let mut outer = Vec::new();
        let mut idx = line.start;
        while idx < line.end {
            outer.push(idx);
            match self.pieces[idx].partner {
                Some(closer) if closer > idx && closer < line.end => idx = closer,
                _ => {}
            }
            idx += 1;
        }
        outer
    }

    fn closes_within(&self, idx: usize, line: &Range<usize>) -> bool {
        self.pieces[idx].partner.is_some_and(|closer| closer > idx + 1 && closer < line.end)
    }

    /// Breaks after an opener, before its closer, and, if so wished, after its commas.
    fn break_group(&mut self, opener: usize, at_commas: bool) {
        let Some(closer) = self.pieces[opener].partner else { return };
        let is_block = self.text(opener) == "{" && !self.is_stage[opener];
        self.pieces[opener + 1].breaks = self.pieces[opener + 1].breaks.max(1);
        self.pieces[closer].breaks = self.pieces[closer].breaks.max(1);
        if !at_commas || is_block {
            return;
        }
        self.break_at_commas(opener, closer);
        self.align_fields(opener);
    }

    fn break_at_commas(&mut self, opener: usize, closer: usize) {
        for idx in opener + 1..closer - 1 {
            let is_comma = self.text(idx) == "," && self.pieces[idx].frame == Some(opener);
            if is_comma && !self.pieces[idx + 1].token.is_comment() {
                self.pieces[idx + 1].breaks = self.pieces[idx + 1].breaks.max(1);
            }
        }
    }

    fn text(&self, idx: usize) -> &'a str {
        self.pieces[idx].token.text(self.source)
    }

    /// The blanks between a piece and the one before it on its line.
    fn gap(&self, idx: usize) -> &'static str {
        let (before, after) = (self.text(idx - 1), self.text(idx));
        let (left, right) = (self.pieces[idx - 1].token.kind, self.pieces[idx].token.kind);
        if self.pieces[idx].token.is_comment() {
            return "  ";
        }
        if left == TokenKind::Open && right == TokenKind::Close && closer_of(before) == after {
            return "";
        }
        // An index in a path of `names`: `blocks.{i}`.
        let is_index = |open: usize| self.text(open) == "{" && open > 0 && self.text(open - 1) == ".";
        if is_index(idx - 1) || (after == "}" && idx > 1 && is_index(idx - 2)) {
            return "";
        }
        if before == "{" || after == "}" {
            return " ";
        }
        let tight_after = matches!(before, "(" | "[" | ".") || (before == ":" && self.is_digest(idx));
        // `[width -> ]`: nothing on the right, and seen to be so.
        let tight_before = matches!(after, ")" | "]" | "," | ":" | "." | "?") && before != "->";
        if tight_after || tight_before || self.is_unary(idx - 1) {
            return "";
        }
        if before == ".." && (right == TokenKind::Number || after == "(" || self.is_plain_word(idx) || after == "-") {
            return "";
        }
        if after == ".." && self.ends_value(idx - 1) {
            return "";
        }
        if matches!(after, "(" | "[") && !matches!(left, TokenKind::Str { .. }) && self.is_postfix(idx) {
            return "";
        }
        " "
    }

    /// Whether an opener takes up what stands before it: a call or a bracket, not a group of its own.
    fn is_postfix(&self, idx: usize) -> bool {
        if self.text(idx - 1) == "fn" {
            return true;
        }
        self.ends_value(idx - 1) && !(self.pieces[idx].frame.is_none() && self.is_in_use(idx))
    }

    /// Whether the piece stands in `use … (names)`.
    fn is_in_use(&self, idx: usize) -> bool {
        let start = (0..=idx).rev().find(|&at| at == 0 || self.pieces[at].breaks > 0).unwrap_or(0);
        self.text(start) == "use"
    }

    /// Whether a value ends here, so that what follows is its operator, bracket or call.
    fn ends_value(&self, idx: usize) -> bool {
        match self.pieces[idx].token.kind {
            TokenKind::Number | TokenKind::Str { .. } | TokenKind::Close => true,
            TokenKind::Word => self.is_plain_word(idx),
            _ => self.text(idx) == "..",
        }
    }

    /// A word that is a name or a value, not one that joins others.
    fn is_plain_word(&self, idx: usize) -> bool {
        if self.pieces[idx].token.kind != TokenKind::Word {
            return false;
        }
        let is_member = idx > 0 && self.text(idx - 1) == ".";
        match self.text(idx) {
            "and" | "or" | "not" | "in" | "as" | "if" | "else" | "for" | "let" | "fn" => is_member,
            // A word of its own only behind a value: an axis may be called `at`.
            "at" => is_member || idx == 0 || !self.ends_value(idx - 1),
            _ => true,
        }
    }

    /// A minus with nothing on its left.
    fn is_unary(&self, idx: usize) -> bool {
        self.text(idx) == "-"
            && (idx == 0 || self.pieces[idx].breaks > 0 && !self.goes_on_inside(idx) || !self.ends_value(idx - 1))
    }

    /// Inside of `( )` and `[ ]` a line may begin with an operator.
    fn goes_on_inside(&self, idx: usize) -> bool {
        self.pieces[idx].frame.is_some_and(|opener| self.text(opener) != "{") && idx > 0 && self.ends_value(idx - 1)
    }

    /// The digest of `sha256:…`.
    fn is_digest(&self, idx: usize) -> bool {
        idx > 1 && self.text(idx - 2) == "sha256"
    }
}

/// The lines as text, with the comments of neighbouring lines in one column.
fn join(lines: &[Line], size_hint: usize) -> String {
    let mut out = String::with_capacity(size_hint);
    let mut at = 0;
    while at < lines.len() {
        let n_more = lines[at + 1..].iter().take_while(|line| line.comment.is_some() && line.breaks == 1).count();
        let n = if lines[at].comment.is_some() { 1 + n_more } else { 1 };
        let run = &lines[at..at + n];
        let widest = run.iter().map(|line| line.text.chars().count()).max().unwrap_or(0);
        for line in run {
            out.extend(std::iter::repeat_n('\n', line.breaks.into()));
            out.push_str(&line.text);
            if let Some(comment) = &line.comment {
                let padding = widest - line.text.chars().count();
                out.extend(std::iter::repeat_n(' ', padding + INDENT));
                out.push_str(comment);
            }
        }
        at += n;
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}
