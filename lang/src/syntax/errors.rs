//! What pest says about its first error, in words that a user understands.

use pest::error::{Error, ErrorVariant, InputLocation};

use super::ast::{FileId, Span};
use super::build::Rule;
use super::lexer::{Token, TokenKind, tokens};
use crate::diag::{Code, Diagnostic};

/// `text` is what the grammar read, an item that begins at byte `base` of the file.
pub(super) fn explain(file: FileId, base: usize, text: &str, error: &Error<Rule>) -> Diagnostic {
    let at = match error.location {
        InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
    };
    let (ErrorVariant::ParsingError { positives, .. }, true) = (&error.variant, at <= text.len()) else {
        return Diagnostic::error(Code::E0105, "this item takes too long to read")
            .label(Span::new(file, base, base + text.len()), "in here")
            .help("split it into smaller parts");
    };
    let pieces = tokens(text);
    // pest may stop inside of a token, as after the `2` of `2x`; the user thinks of the whole.
    let found = pieces.iter().position(|token| token.end > at);
    let found_token = found.map(|idx| pieces[idx]);
    let before = pieces[..found.unwrap_or(pieces.len())].iter().rev().find(|token| token.is_code()).copied();
    let span_of = |token: Token| Span::new(file, base + token.start, base + token.end);
    let place = match (found_token, before) {
        (Some(token), _) if token.is_code() => span_of(token),
        // A newline or the end: point behind what stands before it.
        (_, Some(before)) => Span::new(file, base + before.end - 1, base + before.end),
        _ => Span::new(file, base, base + text.len()),
    };
    let context = Context {
        found: found_token.filter(|token| token.is_code()).map_or("", |token| token.text(text)),
        found_kind: found_token.map(|token| token.kind),
        before: before.map_or("", |token| token.text(text)),
        next: found
            .and_then(|idx| pieces[idx + 1..].iter().find(|token| token.is_code()))
            .map_or("", |token| token.text(text)),
        positives,
    };
    context.diagnostic(place)
}

/// What stands around the error.
struct Context<'a> {
    /// The token that does not fit; empty at the end of a line or of the item.
    found: &'a str,
    found_kind: Option<TokenKind>,
    before: &'a str,
    next: &'a str,
    positives: &'a [Rule],
}

impl Context<'_> {
    fn diagnostic(&self, place: Span) -> Diagnostic {
        let wants = |rules: &[Rule]| rules.iter().any(|rule| self.positives.contains(rule));
        let wants_name = wants(&[Rule::ident, Rule::name, Rule::pattern, Rule::param, Rule::field_name]);
        if is_reserved(self.found) && wants_name {
            return Diagnostic::error(Code::E0113, format!("`{}` is a reserved word and cannot be a name", self.found))
                .label(place, "expected a name")
                .help(format!("take another name, such as `{}_`", self.found));
        }
        let found = match self.found_kind {
            Some(TokenKind::Newline) => "the end of the line".to_owned(),
            None => "the end of the item".to_owned(),
            Some(_) => {
                let shown: String = self.found.chars().take(40).collect();
                format!("`{shown}`")
            }
        };
        let expected = expected(self.positives);
        let mut diagnostic = Diagnostic::error(Code::E0101, format!("expected {expected}, found {found}"))
            .label(place, if self.found.is_empty() { "the line ends here" } else { "not expected here" });
        if let Some(help) = self.help() {
            diagnostic = diagnostic.help(help);
        }
        diagnostic
    }

    /// The usual slips, recognised by the tokens around them.
    fn help(&self) -> Option<String> {
        let wants = |rule: Rule| self.positives.contains(&rule);
        let is_value = self.positives.iter().any(|rule| is_value(*rule));
        Some(match self.found {
            "=" if self.before == "=" || self.before == "!" => "`==` compares, `=` gives a value".to_owned(),
            "=" if wants(Rule::close_paren) => "a named argument is written `name: value`".to_owned(),
            "=" if wants(Rule::binop) => "`==` compares; `=` stands after the name in `let name = …`".to_owned(),
            ":" if wants(Rule::equals) => "a field or a member is written `name = value`".to_owned(),
            "+" | "*" | "/" | "^" | "==" | "<" | ">" | "<=" | ">=" | "and" | "or" | "at"
                if (is_value || wants(Rule::statement)) && wants(Rule::nl) =>
            {
                "an operator does not begin a line: end the line before with it, or put the whole in parentheses"
                    .to_owned()
            }
            "*" if self.before == "*" => "a power is written `x ^ 2`".to_owned(),
            "->" if wants(Rule::close_bracket) => {
                "a bracket holds one arrow: what is taken, `->`, what is given".to_owned()
            }
            "->" if wants(Rule::equals) => "a function takes one result type, before `=`".to_owned(),
            "{" if wants(Rule::equals) => "the body of a function follows `=`: `fn f(x) = { … }`".to_owned(),
            "(" | "[" if wants(Rule::ident) => "a name comes first".to_owned(),
            "for" if wants(Rule::comma) || wants(Rule::statement) || is_value => {
                "`for` stands inside a list, after its element: `[f(i) for i in 0..4]`".to_owned()
            }
            "return" | "var" | "const" | "def" | "import" => {
                "a block is `{ let name = value … result }`: its last line is what it gives".to_owned()
            }
            "" if is_value && is_operator(self.before) => format!("`{}` lacks its right side", self.before),
            _ if matches!(self.before, "return" | "def" | "var" | "const" | "mut") => {
                format!("`{}` is not a word of the language; a block is `{{ let name = value … result }}`", self.before)
            }
            _ if wants(Rule::comma) && self.next != "=" && self.found_kind == Some(TokenKind::Word) => {
                "is a comma missing?".to_owned()
            }
            _ => return None,
        })
    }
}

pub(super) fn is_reserved(word: &str) -> bool {
    matches!(
        word,
        "let"
            | "if"
            | "else"
            | "fn"
            | "for"
            | "in"
            | "and"
            | "or"
            | "not"
            | "as"
            | "true"
            | "false"
            | "none"
            | "training"
    )
}

fn is_operator(text: &str) -> bool {
    matches!(
        text,
        "+" | "-"
            | "*"
            | "/"
            | "%"
            | "^"
            | "="
            | "=="
            | "!="
            | "<"
            | "<="
            | ">"
            | ">="
            | ","
            | ":"
            | "and"
            | "or"
            | "not"
            | "in"
    )
}

fn is_value(rule: Rule) -> bool {
    word_for(rule) == Some("an expression")
}

/// The list after "expected", most telling first.
fn expected(positives: &[Rule]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for &rule in positives {
        if let Some(word) = word_for(rule)
            && !words.contains(&word)
        {
            words.push(word);
        }
    }
    // An expression may always go on with these; they are worth a word only when nothing else is.
    if positives.contains(&Rule::binop) {
        let goes_on = ["an operator", "`[`", "`(`", "`.`", "a unit"];
        words.retain(|word| !goes_on.contains(word));
        if words.is_empty() {
            return "an operator or the end of the line".to_owned();
        }
    }
    // A separator explains more than everything that may follow it.
    if words.contains(&"a name") && words.contains(&"an expression") {
        words.retain(|word| *word != "a name");
    }
    words.sort_by_key(|word| (!word.starts_with('a'), *word));
    match words.as_slice() {
        [] => "something else".to_owned(),
        [only] => (*only).to_owned(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

/// How a rule is called in a message; `None` for what says nothing.
#[expect(clippy::wildcard_enum_match_arm, reason = "rules without a word of their own are left out of messages")]
fn word_for(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::comma => "`,`",
        Rule::colon => "`:`",
        Rule::equals | Rule::index => "`=`",
        Rule::arrow => "`->`",
        Rule::open_paren | Rule::call => "`(`",
        Rule::close_paren => "`)`",
        Rule::open_bracket => "`[`",
        Rule::close_bracket => "`]`",
        Rule::open_brace | Rule::stage_body | Rule::members => "`{`",
        Rule::close_brace => "`}`",
        Rule::kw_as => "`as`",
        Rule::kw_in => "`in`",
        Rule::kw_for => "`for`",
        Rule::kw_if => "`if`",
        Rule::kw_else => "`else`",
        Rule::binop | Rule::range_end => "an operator",
        Rule::axes => "`[`",
        Rule::member => "`.`",
        Rule::noun => "a unit",
        Rule::expr | Rule::term | Rule::chain | Rule::prefix | Rule::quantity | Rule::number | Rule::bool => {
            "an expression"
        }
        Rule::none | Rule::training | Rule::hole | Rule::paren | Rule::list | Rule::block | Rule::lambda => {
            "an expression"
        }
        Rule::if_expr | Rule::copies | Rule::copies_word | Rule::branch | Rule::range_start => "an expression",
        Rule::arg | Rule::spread | Rule::named => "an argument",
        Rule::statement | Rule::let_stmt | Rule::next_stmt | Rule::loss_stmt | Rule::axis_stmt => "a statement",
        Rule::string => "a string",
        Rule::use_path => "a path such as `std.models.Gpt`",
        Rule::ident | Rule::name | Rule::field_name => "a name",
        Rule::pattern => "a name",
        Rule::axis | Rule::axis_item | Rule::axis_list | Rule::axis_item_named | Rule::part | Rule::axis_group => {
            "an axis"
        }
        Rule::axis_decl => "a name",
        Rule::ty | Rule::tensor | Rule::type_list | Rule::type_tuple | Rule::type_name | Rule::type_part => "a type",
        Rule::param => "a parameter",
        Rule::params => "`(`",
        Rule::layer_member | Rule::weight_member | Rule::state_member | Rule::let_member | Rule::fn_def => "a member",
        Rule::stored => "a name",
        Rule::field => "a field",
        Rule::names_row | Rule::path => "a path",
        Rule::digest => "a digest in hexadecimal",
        Rule::dimension => "an axis",
        Rule::nl => "a new line",
        Rule::EOI => "the end of the item",
        _ => return None,
    })
}
