//! Words of PTX: a dotted opcode, a register or a label is one word, so that the parser sees statements as short lists.

use super::{PtxError, refuse};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tok {
    Word(String),
    Int(u64),
    /// The bits of `0fXXXXXXXX`.
    F32(u32),
    /// The bits of `0dXXXXXXXXXXXXXXXX`.
    F64(u64),
    Str(String),
    Punct(u8),
}

#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) tok: Tok,
    pub(crate) line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'$' | b'%')
}

pub(crate) fn lex(text: &str) -> Result<Vec<Token>, PtxError> {
    let s = text.as_bytes();
    let mut out = Vec::with_capacity(s.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    while at < s.len() {
        let c = s[at];
        match c {
            b'\n' => (line, at) = (line + 1, at + 1),
            b' ' | b'\t' | b'\r' | 0 => at += 1,
            b'/' if s.get(at + 1) == Some(&b'/') => {
                while at < s.len() && s[at] != b'\n' {
                    at += 1;
                }
            }
            b'/' if s.get(at + 1) == Some(&b'*') => {
                at += 2;
                while at < s.len() && !(s[at] == b'*' && s.get(at + 1) == Some(&b'/')) {
                    line += u32::from(s[at] == b'\n');
                    at += 1;
                }
                at += 2;
            }
            b'"' => {
                let from = at + 1;
                at = from;
                while at < s.len() && s[at] != b'"' {
                    at += 1;
                }
                out.push(Token {
                    tok: Tok::Str(String::from_utf8_lossy(&s[from..at.min(s.len())]).into_owned()),
                    line,
                });
                at += 1;
            }
            b'0'..=b'9' => {
                let from = at;
                while at < s.len() && is_word(s[at]) {
                    at += 1;
                }
                out.push(Token { tok: number(&text[from..at], line)?, line });
            }
            c if is_word(c) => {
                let from = at;
                while at < s.len() && (is_word(s[at]) || (s[at] == b':' && s.get(at + 1) == Some(&b':'))) {
                    at += if s[at] == b':' { 2 } else { 1 };
                }
                out.push(Token { tok: Tok::Word(text[from..at].to_owned()), line });
            }
            b',' | b';' | b':' | b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'+' | b'-' | b'@' | b'!' | b'=' | b'<'
            | b'>' | b'|' | b'*' => {
                out.push(Token { tok: Tok::Punct(c), line });
                at += 1;
            }
            other => return refuse(line, format!("unexpected character {:?}", char::from(other))),
        }
    }
    Ok(out)
}

fn number(word: &str, line: u32) -> Result<Tok, PtxError> {
    let bad = || PtxError { line, message: format!("`{word}` is not a number") };
    let lower = word.to_ascii_lowercase();
    if lower.len() == 10
        && let Some(hex) = lower.strip_prefix("0f")
    {
        return u32::from_str_radix(hex, 16).map(Tok::F32).map_err(|_| bad());
    }
    if lower.len() == 18
        && let Some(hex) = lower.strip_prefix("0d")
    {
        return u64::from_str_radix(hex, 16).map(Tok::F64).map_err(|_| bad());
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(bits) = digits.strip_prefix("0b") {
        u64::from_str_radix(bits, 2)
    } else if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|c| c.is_ascii_digit()) {
        u64::from_str_radix(digits, 8)
    } else if let Ok(v) = digits.parse::<u64>() {
        Ok(v)
    } else {
        return digits.parse::<f64>().map(|v| Tok::F64(v.to_bits())).map_err(|_| bad());
    };
    value.map(Tok::Int).map_err(|_| bad())
}
