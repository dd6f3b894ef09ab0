//! TensorBoard event files, by hand: the format is a page, and the crates for it drag in a protobuf compiler.
//!
//! A file is a row of records: the length (u64, little-endian), its masked CRC-32C, the bytes, their masked CRC-32C
//! (TensorFlow, `core/lib/io/record_writer.cc`). The bytes are an `Event` message of `core/util/event.proto`; what is
//! used of it fits in this file.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// An event file that is being written.
pub struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
}

/// TensorBoard looks for new events every few seconds; writing more often than this is of no use to it.
const FLUSH_EVERY: Duration = Duration::from_secs(2);

impl EventFile {
    /// A new event file in a folder. TensorBoard reads the files of a folder in order of their names, so the name
    /// begins with a time that no file before has.
    pub fn create(folder: &Path) -> io::Result<EventFile> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        let host = if host.is_empty() { "localhost" } else { &host };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        let prefix = |time: u64| format!("events.out.tfevents.{time:010}.");
        let mut time = wall_time() as u64;
        while names.iter().any(|name| name.starts_with(&prefix(time))) {
            time += 1;
        }
        let path = folder.join(format!("{}{host}.mdlc", prefix(time)));
        let mut events = EventFile {
            file: BufWriter::new(File::options().write(true).create_new(true).open(&path)?),
            path,
            flushed: Instant::now(),
        };
        events.record(&version_event(wall_time()))?;
        events.flush()?;
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes numbers of one step.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        self.record(&scalar_event(wall_time(), step, values))?;
        if self.flushed.elapsed() >= FLUSH_EVERY { self.flush() } else { Ok(()) }
    }

    /// Tells TensorBoard to forget what earlier files say of the steps after `step`.
    pub fn forget_after(&mut self, step: u64) -> io::Result<()> {
        self.record(&start_event(wall_time(), step + 1))
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.flushed = Instant::now();
        self.file.flush()
    }

    fn record(&mut self, event: &[u8]) -> io::Result<()> {
        write_record(&mut self.file, event)
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn write_record(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = (bytes.len() as u64).to_le_bytes();
    to.write_all(&length)?;
    to.write_all(&masked(crc32c(&length)).to_le_bytes())?;
    to.write_all(bytes)?;
    to.write_all(&masked(crc32c(bytes)).to_le_bytes())
}

/// A CRC of data that holds CRCs is weak, so those in records are turned and shifted.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The Castagnoli CRC, bit by bit reflected (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| TABLE[((crc ^ u32::from(byte)) & 0xff) as usize] ^ (crc >> 8))
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// `Event { wall_time, file_version: "brain.Event:2" }`, with which every file begins.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, time);
    event.bytes(3, b"brain.Event:2");
    event.0
}

/// `Event { wall_time, step, summary: { value: [{ tag, simple_value }] } }`.
fn scalar_event(time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.float(2, *value as f32);
        summary.bytes(1, &entry.0);
    }
    let mut event = Message::default();
    event.double(1, time);
    event.int(2, step);
    event.bytes(5, &summary.0);
    event.0
}

/// `Event { wall_time, step, session_log: { status: START } }`.
fn start_event(time: f64, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.int(1, 1);
    let mut event = Message::default();
    event.double(1, time);
    event.int(2, step);
    event.bytes(7, &log.0);
    event.0
}

/// A protobuf message. A field is its number and wire type (0 a varint, 1 and 5 eight and four bytes, 2 a length and
/// bytes); numbers that are 0 are left out, as the protobuf libraries do.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(&mut self, field: u64, value: u64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value);
        }
    }

    fn double(&mut self, field: u64, value: f64) {
        if value.to_bits() != 0 {
            self.varint(field << 3 | 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// Written even when it is 0: it is one of a choice of fields, and its presence says which.
    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests;
