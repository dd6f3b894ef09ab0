//! What `transformers` adds to Jinja, or has otherwise: `raise_exception`, `strftime_now`, `tojson` as Python spells it.

use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::tags::BOUNDED;
use super::template::MOST_BYTES;

/// The day that templates take for today, 26 July 2024, which is what those of Llama 3.1 assume where they cannot ask: the rows of
/// a training must not depend on the day on which they are made.
const TODAY: (i64, u32, u32) = (2024, 7, 26);

pub(super) fn add(env: &mut Environment<'static>) {
    env.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
    });
    env.add_function("strftime_now", |format: &str| strftime(format));
    env.add_filter("tojson", tojson);
    env.add_filter(BOUNDED, bounded);
}

/// The value, unless it is too large to be kept.
fn bounded(value: Value) -> Result<Value, Error> {
    let n = value.as_str().map_or_else(|| value.len().unwrap_or(0), str::len);
    if n > MOST_BYTES {
        let message = format!("a value of it grows beyond {} MB", MOST_BYTES >> 20);
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    Ok(value)
}

/// `json.dumps(value, ensure_ascii=False, indent=…, sort_keys=…)`.
fn tojson(value: Serde<serde_json::Value>, indent: Option<usize>, args: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<usize>>("indent")?,
    };
    let sorted = args.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    // Not a matter of the text: we never escape.
    args.get::<Option<bool>>("ensure_ascii")?;
    args.assert_all_used()?;
    let mut out = String::new();
    write(&value, indent, sorted, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn write(value: &serde_json::Value, indent: Option<usize>, sorted: bool, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                write(item, indent, sorted, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            out.push('{');
            let mut fields: Vec<_> = fields.iter().collect();
            if sorted {
                fields.sort_by_key(|(name, _)| *name);
            }
            for (i, (name, item)) in fields.into_iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                out.push_str(&serde_json::Value::from(name.as_str()).to_string());
                out.push_str(": ");
                write(item, indent, sorted, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        plain => out.push_str(&plain.to_string()),
    }
}

/// The parts of a date that templates ask for; the time of day is midnight.
fn strftime(format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (year, month, day) = TODAY;
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            // 26 July 2024 was a Friday.
            Some('A') => out.push_str("Friday"),
            Some('a') => out.push_str("Fri"),
            Some('H' | 'M' | 'S') => out.push_str("00"),
            Some('%') => out.push('%'),
            other => {
                let sign = other.map_or_else(String::new, String::from);
                let message = format!("strftime_now knows no `%{sign}`");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
    }
    Ok(out)
}
