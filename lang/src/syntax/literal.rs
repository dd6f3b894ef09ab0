//! Numbers with their units, and strings.

use pest::iterators::Pair;

use super::ast::{ExprKind, Span, Str, Unit};
use super::build::{Build, Parts, Rule};
use crate::diag::{Code, Diagnostic, nearest};

/// What a suffix multiplies by, and what it counts. Below one it is the reciprocal, negative: to divide by 100 is exact
/// where to multiply by 0.01 is not.
const SUFFIXES: &[(&str, f64, Option<Unit>)] = &[
    ("%", -100.0, Some(Unit::Percent)),
    ("k", 1e3, None),
    ("K", 1e3, None),
    ("M", 1e6, None),
    ("G", 1e9, None),
    ("T", 1e12, None),
    ("kB", 1e3, Some(Unit::Bytes)),
    ("KB", 1e3, Some(Unit::Bytes)),
    ("MB", 1e6, Some(Unit::Bytes)),
    ("GB", 1e9, Some(Unit::Bytes)),
    ("TB", 1e12, Some(Unit::Bytes)),
    ("KiB", 1024.0, Some(Unit::Bytes)),
    ("MiB", 1_048_576.0, Some(Unit::Bytes)),
    ("GiB", 1_073_741_824.0, Some(Unit::Bytes)),
    ("TiB", 1_099_511_627_776.0, Some(Unit::Bytes)),
    ("ns", -1e9, Some(Unit::Seconds)),
    ("us", -1e6, Some(Unit::Seconds)),
    ("ms", -1e3, Some(Unit::Seconds)),
    ("s", 1.0, Some(Unit::Seconds)),
    ("min", 60.0, Some(Unit::Seconds)),
    ("h", 3600.0, Some(Unit::Seconds)),
    ("d", 86_400.0, Some(Unit::Seconds)),
];

fn scale(value: f64, factor: f64) -> f64 {
    if factor < 0.0 { value / -factor } else { value * factor }
}

impl Build<'_> {
    pub(super) fn number(&mut self, pair: Pair<'_, Rule>) -> ExprKind {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let number = parts.need(Rule::number);
        let noun = parts.accept(Rule::noun).map(|noun| noun.as_str().to_owned());
        let text = number.as_str();
        let (digits, suffix) = split_suffix(text);
        let digits = digits.replace('_', "");
        let is_int = digits.bytes().all(|byte| byte.is_ascii_digit());
        let (factor, unit) = match SUFFIXES.iter().find(|(known, ..)| *known == suffix) {
            Some((_, factor, unit)) => (*factor, unit.clone()),
            None if suffix.is_empty() => (1.0, None),
            None => {
                self.unknown_unit(suffix, &digits, span);
                return ExprKind::Hole;
            }
        };
        let unit = match (unit, noun) {
            (Some(_), Some(noun)) => {
                self.report(
                    Diagnostic::error(Code::E0108, format!("`{text}` already has a unit and cannot count {noun}"))
                        .label(span, "two units")
                        .help(format!("write one of them, as in `4M {noun}`")),
                );
                return ExprKind::Hole;
            }
            (unit, noun) => unit.or(noun.map(Unit::Count)),
        };
        if is_int && unit.is_none() && suffix.is_empty() {
            return match digits.parse() {
                Ok(value) => ExprKind::Int(value),
                Err(_) => self.too_large(text, span, "the largest whole number is 9_223_372_036_854_775_807"),
            };
        }
        let Some(value) =
            digits.parse::<f64>().ok().map(|value| scale(value, factor)).filter(|value| value.is_finite())
        else {
            return self.too_large(text, span, "the largest number is about 1.8e308; `inf` is infinity");
        };
        match unit {
            Some(unit) => ExprKind::Quantity { value, unit },
            // Whole millions are an `Int`; 2^53 is where a float stops being exact.
            None if !suffix.is_empty() && value.fract() == 0.0 && value < 9_007_199_254_740_992.0 => {
                ExprKind::Int(value as i64)
            }
            None => ExprKind::Float(value),
        }
    }

    fn too_large(&mut self, text: &str, span: Span, help: &str) -> ExprKind {
        let shown: String = text.chars().take(40).collect();
        self.report(
            Diagnostic::error(Code::E0108, format!("the number `{shown}` is too large"))
                .label(span, "cannot be represented")
                .help(help),
        );
        ExprKind::Hole
    }

    fn unknown_unit(&mut self, suffix: &str, digits: &str, span: Span) {
        let shown: String = suffix.chars().take(40).collect();
        let help = match suffix {
            "B" => format!("10⁹ is `{digits}G`; bytes are `KiB`, `MiB`, `GiB`"),
            "b" | "bn" => format!("10⁹ is `{digits}G`"),
            "m" => format!("10⁶ is `{digits}M`, minutes are `{digits}min`, milliseconds `{digits}ms`"),
            _ if suffix.starts_with('_') => "an underscore stands between digits".to_owned(),
            _ => match nearest(suffix, SUFFIXES.iter().map(|(known, ..)| *known)) {
                Some(known) => format!("did you mean `{digits}{known}`?"),
                None => "units are `%`, `k M G T`, `KiB MiB GiB`, `ns us ms s min h d`; a name begins with a letter"
                    .to_owned(),
            },
        };
        self.report(
            Diagnostic::error(Code::E0108, format!("`{shown}` is not a unit")).label(span, "in this number").help(help),
        );
    }

    pub(super) fn string(&mut self, pair: Pair<'_, Rule>) -> Str {
        let span = self.span(&pair);
        let quoted = pair.as_str();
        let mut rest = &quoted[1..quoted.len() - 1];
        let mut text = String::with_capacity(rest.len());
        while let Some(at) = rest.find('\\') {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            match escape(rest) {
                Some((char, length)) => {
                    text.push(char);
                    rest = &rest[length..];
                }
                None => {
                    let start = span.end as usize - 1 - rest.len();
                    let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                    let place = Span::new(self.file, start, start + length);
                    self.report(
                        Diagnostic::error(Code::E0111, format!("`{}` is not an escape", &rest[..length]))
                            .label(place, "in this string")
                            .help("escapes are `\\n \\t \\r \\0 \\\\ \\\"` and `\\u{1f600}`; a backslash itself is `\\\\`"),
                    );
                    rest = &rest[length..];
                }
            }
        }
        text.push_str(rest);
        Str { text, span }
    }
}

/// The character that an escape at the start of `text` stands for, and the length of the escape.
fn escape(text: &str) -> Option<(char, usize)> {
    let char = match text.as_bytes().get(1)? {
        b'n' => '\n',
        b't' => '\t',
        b'r' => '\r',
        b'0' => '\0',
        b'\\' => '\\',
        b'"' => '"',
        b'u' => {
            let digits = text.strip_prefix("\\u{")?;
            let digits = &digits[..digits.find('}')?];
            let char = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?;
            return Some((char, "\\u{}".len() + digits.len()));
        }
        _ => return None,
    };
    Some((char, 2))
}

/// The digits of a number, with fraction and exponent, and what follows them.
fn split_suffix(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'_');
    let mut at = 0;
    while is_digit(at) || bytes.get(at) == Some(&b'.') {
        at += 1;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(at + 1), Some(b'+' | b'-')));
        if bytes.get(at + 1 + sign).is_some_and(u8::is_ascii_digit) {
            at += 1 + sign;
            while is_digit(at) {
                at += 1;
            }
        }
    }
    text.split_at(at)
}
