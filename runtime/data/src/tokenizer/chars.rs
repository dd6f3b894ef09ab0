//! One token per character. Ids follow the code points, so they depend on the set of characters alone.

use crate::problem::{Problem, TOKENIZER, UNKNOWN_CHAR};
use serde_json::{Value, json};

#[derive(Clone, Debug)]
pub(super) struct Chars {
    /// Sorted; the id of a character is its position.
    chars: Vec<char>,
    /// Ids of the characters below 128, `NONE` where there is none: most texts need nothing else.
    ascii: [u32; 128],
}

const NONE: u32 = u32::MAX;

/// The bytes before the first that is not ASCII.
fn ascii_prefix(bytes: &[u8]) -> &[u8] {
    const BLOCK: usize = 64;
    let blocks = bytes.chunks(BLOCK).take_while(|block| block.is_ascii()).count();
    let start = (blocks * BLOCK).min(bytes.len());
    let more = bytes[start..].iter().take_while(|byte| byte.is_ascii()).count();
    &bytes[..start + more]
}

impl Chars {
    pub(super) fn of(texts: &[&str]) -> Chars {
        // A bit per code point: one pass, no hashing.
        let mut seen = vec![0u64; (char::MAX as usize >> 6) + 1];
        for text in texts {
            // Most blocks of most texts are ASCII, where bytes are characters.
            let mut ascii = [false; 128];
            let mut rest = *text;
            while !rest.is_empty() {
                let plain = ascii_prefix(rest.as_bytes());
                plain.iter().for_each(|byte| ascii[usize::from(byte & 127)] = true);
                rest = &rest[plain.len()..];
                for c in rest.chars().take_while(|c| !c.is_ascii()) {
                    seen[c as usize >> 6] |= 1 << (c as usize & 63);
                    rest = &rest[c.len_utf8()..];
                }
            }
            for code in (0..128).filter(|code| ascii[*code]) {
                seen[code >> 6] |= 1 << (code & 63);
            }
        }
        let mut chars = Vec::new();
        for (word_idx, &word) in seen.iter().enumerate() {
            let mut bits = word;
            while bits != 0 {
                let code = (word_idx << 6) as u32 + bits.trailing_zeros();
                chars.extend(char::from_u32(code));
                bits &= bits - 1;
            }
        }
        Chars::new(chars)
    }

    fn new(chars: Vec<char>) -> Chars {
        let mut ascii = [NONE; 128];
        for (id, &c) in chars.iter().enumerate() {
            if c.is_ascii() {
                ascii[c as usize] = id as u32;
            }
        }
        Chars { chars, ascii }
    }

    pub(super) fn len(&self) -> u32 {
        self.chars.len() as u32
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, Problem> {
        let mut ids = Vec::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let id = if c.is_ascii() {
                self.ascii[c as usize]
            } else {
                self.chars.binary_search(&c).map_or(NONE, |id| id as u32)
            };
            if id == NONE {
                return Err(self.unknown(c, at));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    fn unknown(&self, c: char, at: usize) -> Problem {
        let shown: String = self.chars.iter().filter(|c| !c.is_control()).take(40).collect();
        let more = if self.chars.len() > 40 { " …" } else { "" };
        let message = format!("the vocabulary has no `{}` (U+{:04X})", c.escape_debug(), c as u32);
        Problem::new(UNKNOWN_CHAR, message)
            .byte(at as u64)
            .help(format!("it has the {} characters of the corpus: {shown}{more}", self.chars.len()))
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        ids.iter().filter_map(|&id| self.chars.get(id as usize)).collect()
    }

    pub(super) fn to_json(&self) -> String {
        json!({ "type": "chars", "chars": self.chars.iter().collect::<String>() }).to_string()
    }

    pub(super) fn from_json(value: &Value) -> Result<Chars, Problem> {
        let chars: Option<Vec<char>> = value.get("chars").and_then(Value::as_str).map(|text| text.chars().collect());
        match chars {
            Some(chars) if chars.is_sorted_by(|a, b| a < b) => Ok(Chars::new(chars)),
            _ => Err(Problem::new(TOKENIZER, "the list of characters is broken")),
        }
    }
}
