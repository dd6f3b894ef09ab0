//! Data stages: the summary that a run prints. Reading and preparing is `mdl-data`'s.

use mdl_data::Facts;

/// `1.1M characters … vocabulary 65; train 1003854 tokens, val 111540`.
pub fn summary(facts: &Facts) -> String {
    let mut said = Vec::new();
    if facts.data.vocab > 0 {
        said.push(format!("vocabulary {}", facts.data.vocab));
    }
    if facts.data.classes > 0 {
        said.push(format!("{} classes", facts.data.classes));
    }
    for part in &facts.parts {
        let amount = match (part.tokens, part.rows) {
            (Some(tokens), _) => format!("{tokens} tokens"),
            (None, Some(rows)) => format!("{rows} rows"),
            (None, None) => "not counted yet".to_string(),
        };
        said.push(format!("{} {amount}", part.name));
    }
    said.join(", ")
}
