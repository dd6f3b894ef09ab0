//! Prepared data on the disk: a folder per content hash with the ids, the tokenizer and a report.
//!
//! `CACHE/<hash>/report.json` holds the facts and the checksums of its neighbours; `ids.bin` the arrays of every part,
//! little-endian, behind a JSON header that says where each lies. What is damaged is not used: it is made again.
//! Pictures and sounds are not kept: their files are as quick to read.

use crate::atomic::{recover, write_folder};
use crate::dataset::{Content, Dataset, Ids, Part, TextRows, is_chat};
use crate::facts::Facts;
use crate::problem::{BAD_FILE, CACHE, Problem};
use crate::source::hex;
use crate::tokenizer::Tokenizer;
use mdl_lang::spec::{DataSpec, Form};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REPORT: &str = "report.json";
const IDS: &str = "ids.bin";
const TOKENIZER: &str = "tokenizer.json";
const MAGIC: &[u8; 8] = b"mdlids02";

/// The facts, and what the files beside them must hash to.
#[derive(Serialize, Deserialize)]
struct Report {
    facts: Facts,
    ids_sha256: String,
    tokenizer_sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    parts: Vec<PartHeader>,
}

/// The arrays of a part, in this order: ids, and for rows also ends, the starts and ends of spans, where those of each row end, and labels.
#[derive(Serialize, Deserialize)]
struct PartHeader {
    name: String,
    n_ids: usize,
    id_bytes: usize,
    rows: Option<RowsHeader>,
}

#[derive(Serialize, Deserialize)]
struct RowsHeader {
    n_rows: usize,
    n_spans: usize,
    has_labels: bool,
}

fn folder(cache: &Path, hash: &str) -> PathBuf {
    cache.join(&hash[..hash.len().min(16)])
}

/// The facts of prepared data, where there are some and they are readable.
pub(crate) fn facts(cache: &Path, hash: &str) -> Option<Facts> {
    let text = fs::read_to_string(folder(cache, hash).join(REPORT)).ok()?;
    let report: Report = serde_json::from_str(&text).ok()?;
    (report.facts.data.hash == hash).then_some(report.facts)
}

/// Reads prepared data. `None` where there is none, an error where it is damaged.
pub(crate) fn load(cache: &Path, hash: &str, spec: &DataSpec) -> Result<Option<Dataset>, Problem> {
    let folder = folder(cache, hash);
    if !folder.exists() {
        return Ok(None);
    }
    let damaged = |name: &str, why: &str| Problem::new(BAD_FILE, format!("{name} {why}")).at(&folder.join(name));
    let read = |name: &str| fs::read(folder.join(name)).map_err(|error| Problem::reading(&folder.join(name), &error));
    let report: Report =
        serde_json::from_slice(&read(REPORT)?).map_err(|error| damaged(REPORT, &format!("is broken: {error}")))?;
    if report.facts.data.hash != hash {
        return Ok(None);
    }
    let bytes = read(IDS)?;
    if hex(&Sha256::digest(&bytes)) != report.ids_sha256 {
        return Err(damaged(IDS, "does not have its checksum"));
    }
    let tokenizer = match &report.tokenizer_sha256 {
        None => None,
        Some(sha256) => {
            let bytes = read(TOKENIZER)?;
            if hex(&Sha256::digest(&bytes)) != *sha256 {
                return Err(damaged(TOKENIZER, "does not have its checksum"));
            }
            let text = String::from_utf8(bytes).map_err(|_| damaged(TOKENIZER, "is not UTF-8"))?;
            Some(Tokenizer::from_json(&text)?)
        }
    };
    let parts = parse(&bytes, spec).ok_or_else(|| damaged(IDS, "is cut off"))?;
    Ok(Some(Dataset {
        facts: report.facts,
        tokenizer,
        form: spec.form.clone(),
        seed: spec.seed,
        order: spec.order.clone(),
        parts,
    }))
}

/// Writes prepared data, whole or not at all.
pub(crate) fn store(cache: &Path, dataset: &Dataset) -> Result<(), Problem> {
    let Some(ids) = serialize(dataset) else { return Ok(()) };
    let tokenizer = dataset.tokenizer.as_ref().map(Tokenizer::to_json);
    let report = Report {
        facts: dataset.facts.clone(),
        ids_sha256: hex(&Sha256::digest(&ids)),
        tokenizer_sha256: tokenizer.as_ref().map(|json| hex(&Sha256::digest(json.as_bytes()))),
    };
    let report =
        serde_json::to_string_pretty(&report).unwrap_or_else(|error| panic!("a report is plain data: {error}"));
    // Tidying is for those who write: a reader must not take away what another is writing.
    recover(cache).map_err(|error| Problem::new(CACHE, error.to_string()))?;
    write_folder(&folder(cache, &dataset.facts.data.hash), |w| {
        w.file(IDS, |w| w.write_all(&ids))?;
        if let Some(json) = &tokenizer {
            w.file(TOKENIZER, |w| w.write_all(json.as_bytes()))?;
        }
        w.file(REPORT, |w| w.write_all(report.as_bytes()))
    })
    .map_err(|error| Problem::new(CACHE, error.to_string()).help("make room, or choose another folder with --out"))
}

fn serialize(dataset: &Dataset) -> Option<Vec<u8>> {
    let mut headers = Vec::new();
    let mut body = Vec::new();
    for part in &dataset.parts {
        let (ids, rows) = match &part.content {
            Content::Stream(ids) => (ids, None),
            Content::Rows(rows) | Content::Packed(rows, _) => (&rows.ids, Some(rows)),
            Content::Pictures { .. } | Content::Sounds { .. } => return None,
        };
        let id_bytes = match ids {
            Ids::U8(_) => 1,
            Ids::U16(_) => 2,
            Ids::U32(_) => 4,
        };
        match ids {
            Ids::U8(ids) => body.extend_from_slice(ids),
            Ids::U16(ids) => ids.iter().for_each(|id| body.extend_from_slice(&id.to_le_bytes())),
            Ids::U32(ids) => ids.iter().for_each(|id| body.extend_from_slice(&id.to_le_bytes())),
        }
        if let Some(rows) = rows {
            rows.ends.iter().for_each(|end| body.extend_from_slice(&end.to_le_bytes()));
            rows.spans.iter().for_each(|span| body.extend_from_slice(&span.start.to_le_bytes()));
            rows.spans.iter().for_each(|span| body.extend_from_slice(&span.end.to_le_bytes()));
            rows.span_ends.iter().for_each(|end| body.extend_from_slice(&end.to_le_bytes()));
            rows.labels.iter().flatten().for_each(|label| body.extend_from_slice(&label.to_le_bytes()));
        }
        let rows = rows.map(|rows| RowsHeader {
            n_rows: rows.ends.len(),
            n_spans: rows.spans.len(),
            has_labels: rows.labels.is_some(),
        });
        headers.push(PartHeader { name: part.name.clone(), n_ids: ids.len(), id_bytes, rows });
    }
    let header = serde_json::to_vec(&Header { parts: headers }).ok()?;
    let mut bytes = Vec::with_capacity(16 + header.len() + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(header.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&header);
    bytes.append(&mut body);
    Some(bytes)
}

/// `None` where the bytes are not what [`serialize`] writes.
fn parse(bytes: &[u8], spec: &DataSpec) -> Option<Vec<Arc<Part>>> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let n_header = u64::from_le_bytes(*take(&mut rest, 8)?.as_array()?);
    let header: Header = serde_json::from_slice(take(&mut rest, usize::try_from(n_header).ok()?)?).ok()?;
    let mut parts = Vec::new();
    for part in header.parts {
        let raw = take(&mut rest, part.n_ids.checked_mul(part.id_bytes)?)?;
        let ids = match part.id_bytes {
            1 => Ids::U8(raw.to_vec()),
            2 => Ids::U16(numbers(raw, u16::from_le_bytes)),
            4 => Ids::U32(numbers(raw, u32::from_le_bytes)),
            _ => return None,
        };
        let content = match part.rows {
            None => Content::Stream(ids),
            Some(RowsHeader { n_rows, n_spans, has_labels }) => {
                let ends: Vec<u64> = numbers(take(&mut rest, n_rows.checked_mul(8)?)?, u64::from_le_bytes);
                let mut places = || Some(numbers(take(&mut rest, n_spans.checked_mul(4)?)?, u32::from_le_bytes));
                let (starts, span_lasts) = (places()?, places()?);
                let spans = starts.into_iter().zip(span_lasts).map(|(start, end)| start..end).collect();
                let span_ends: Vec<u64> = numbers(take(&mut rest, n_rows.checked_mul(8)?)?, u64::from_le_bytes);
                let labels = match has_labels {
                    true => Some(numbers(take(&mut rest, n_rows.checked_mul(4)?)?, i32::from_le_bytes)),
                    false => None,
                };
                let fits = |ends: &[u64], n: usize| ends.is_sorted() && ends.last().is_none_or(|&end| end == n as u64);
                if !fits(&ends, ids.len()) || !fits(&span_ends, n_spans) {
                    return None;
                }
                let rows = TextRows { ids, ends, spans, span_ends, labels };
                match &spec.form {
                    Form::Pack { axis } => Content::packed(rows, axis, !is_chat(spec)),
                    _ => Content::Rows(rows),
                }
            }
        };
        parts.push(Arc::new(Part { name: part.name, content }));
    }
    rest.is_empty().then_some(parts)
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(n)?;
    *rest = left;
    Some(taken)
}

fn numbers<T, const N: usize>(bytes: &[u8], number: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
}
