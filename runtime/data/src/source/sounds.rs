//! Sounds from WAV files, one a file: whole numbers of 8 to 32 bits or floats, any number of channels, of which the mean is taken.
//!
//! A RIFF file is a list of chunks, each a name of four letters and a length; `fmt ` says how numbers are written and `data` has them.
//! What else there is is skipped. Nothing is kept that is longer than the file.

use super::SourceFile;
use crate::problem::{BAD_FILE, BAD_LABEL, EMPTY, MISMATCH, Problem};

/// Sounds one after another, from -1 to 1, all of one rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Sounds {
    /// Samples a second.
    pub rate: u32,
    pub samples: Vec<f32>,
    /// Where each ends in `samples`.
    pub ends: Vec<usize>,
    /// One per sound, or none at all.
    pub labels: Vec<String>,
}

/// Files whose problems are told.
const MOST_PROBLEMS: usize = 5;

impl Sounds {
    /// The place of a sound in `samples`.
    pub(crate) fn place(ends: &[usize], sound: usize) -> std::ops::Range<usize> {
        (if sound == 0 { 0 } else { ends[sound - 1] })..ends[sound]
    }

    pub(super) fn join(mut self, mut other: Sounds) -> Result<Sounds, Problem> {
        if self.rate != other.rate {
            let message =
                format!("sounds of {} and of {} samples a second cannot share a batch", self.rate, other.rate);
            return Err(Problem::new(MISMATCH, message));
        }
        if self.labels.is_empty() != other.labels.is_empty() {
            return Err(Problem::new(BAD_LABEL, "some sounds have a label and others have none"));
        }
        let before = self.samples.len();
        self.samples.append(&mut other.samples);
        self.ends.extend(other.ends.iter().map(|end| before + end));
        self.labels.append(&mut other.labels);
        Ok(self)
    }
}

/// Reads a sound from each file; all have `rate`, or that of the first.
pub(super) fn sounds(files: &[SourceFile], rate: Option<u64>) -> Result<Sounds, Vec<Problem>> {
    let labels = files.iter().filter_map(|file| file.label.clone()).collect();
    let mut all = Sounds { rate: 0, samples: Vec::new(), ends: Vec::new(), labels };
    let mut expected = rate;
    let mut problems = Vec::new();
    for file in files {
        match sound(file, &mut all.samples) {
            Ok(of_file) => {
                all.ends.push(all.samples.len());
                all.rate = of_file;
                let wanted = *expected.get_or_insert(u64::from(of_file));
                if u64::from(of_file) != wanted {
                    let name = file.path.display();
                    let message = format!("{name} has {of_file} samples a second, and {wanted} are expected");
                    let problem = Problem::new(MISMATCH, message).at(&file.path);
                    problems.push(problem.help("bring all files to one rate first: `sox in.wav -r 16000 out.wav`"));
                }
            }
            Err(problem) => problems.push(problem),
        }
        if problems.len() >= MOST_PROBLEMS {
            break;
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// How the numbers of a file are written.
struct Format {
    kind: Kind,
    channels: usize,
    rate: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
}

impl Kind {
    fn bytes(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::I16 => 2,
            Kind::I24 => 3,
            Kind::I32 | Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }

    /// A number from its bytes. Whole numbers are divided by the size of their lowest.
    fn read(self, bytes: &[u8]) -> f32 {
        let four = |low: [u8; 4]| i32::from_le_bytes(low) as f32 / 2_147_483_648.0;
        match (self, bytes) {
            (Kind::U8, &[a]) => (f32::from(a) - 128.0) / 128.0,
            (Kind::I16, &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (Kind::I24, &[a, b, c]) => four([0, a, b, c]),
            (Kind::I32, &[a, b, c, d]) => four([a, b, c, d]),
            (Kind::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Kind::F64, &[a, b, c, d, e, f, g, h]) => f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32,
            _ => mdl_graph::bug!("a number of {} bytes in place of {}", bytes.len(), self.bytes()),
        }
    }
}

/// Appends the samples of a file, and gives its rate.
fn sound(file: &SourceFile, out: &mut Vec<f32>) -> Result<u32, Problem> {
    let name = file.path.display();
    let wrong = |message: String, byte: usize| Problem::new(BAD_FILE, message).at(&file.path).byte(byte as u64);
    let bytes = file.bytes()?;
    let is_riff = bytes.len() >= 12 && bytes.starts_with(b"RIFF") && &bytes[8..12] == b"WAVE";
    if !is_riff {
        return Err(wrong(format!("{name} is not a WAV file"), 0).help("WAV begins with RIFF, a length, and WAVE"));
    }
    let mut format: Option<Format> = None;
    let mut at = 12;
    while let Some(head) = bytes.get(at..at + 8) {
        let (id, said) = (&head[..4], number(&head[4..]) as usize);
        let rest = &bytes[at + 8..];
        // Programs that write to a pipe do not know the length, and say the largest.
        let n = if id == b"data" && said == u32::MAX as usize { rest.len() } else { said };
        let Some(chunk) = rest.get(..n) else {
            let message = format!("{name} is cut off: a chunk says {said} bytes, and {} are left", rest.len());
            return Err(wrong(message, at).help("copy it again"));
        };
        match (id, &format) {
            (b"fmt ", _) => format = Some(read_format(chunk).map_err(|why| wrong(format!("{name} {why}"), at))?),
            (b"data", Some(format)) => {
                let frame = format.kind.bytes() * format.channels;
                if !n.is_multiple_of(frame) {
                    return Err(wrong(format!("{name} ends inside a sample"), at).help("copy it again"));
                }
                if n == 0 {
                    return Err(Problem::new(EMPTY, format!("{name} has no sound in it")).at(&file.path));
                }
                let first = out.len();
                out.extend(chunk.chunks_exact(frame).map(|frame| {
                    let all = frame.chunks_exact(format.kind.bytes()).map(|bytes| format.kind.read(bytes));
                    all.sum::<f32>() / format.channels as f32
                }));
                if let Some(place) = out[first..].iter().position(|sample| !sample.is_finite()) {
                    let message = format!("{name} has a sample that is not a finite number");
                    return Err(wrong(message, at + 8 + place * frame));
                }
                return Ok(format.rate);
            }
            (b"data", None) => return Err(wrong(format!("{name} has its sound before it says how to read it"), at)),
            _ => {}
        }
        // Chunks begin at even places.
        at += 8 + n + n % 2;
    }
    Err(wrong(format!("{name} has no sound in it"), bytes.len()).help("copy it again"))
}

/// Little-endian, of four bytes or two.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn read_format(chunk: &[u8]) -> Result<Format, String> {
    if chunk.len() < 16 {
        return Err("ends inside its format".to_string());
    }
    let (tag, channels, rate) = (number(&chunk[..2]), number(&chunk[2..4]) as usize, number(&chunk[4..8]));
    let (frame, bits) = (number(&chunk[12..14]) as usize, number(&chunk[14..16]));
    // An extensible format says the true one further on.
    let tag = match (tag, chunk.get(24..26)) {
        (0xfffe, Some(true_tag)) => number(true_tag),
        (tag, _) => tag,
    };
    let kind = match (tag, bits) {
        (1, 8) => Kind::U8,
        (1, 16) => Kind::I16,
        (1, 24) => Kind::I24,
        (1, 32) => Kind::I32,
        (3, 32) => Kind::F32,
        (3, 64) => Kind::F64,
        _ => return Err(format!("is written in a way that is not known: format {tag}, {bits} bits")),
    };
    if channels == 0 || rate == 0 || frame != channels * kind.bytes() {
        return Err(format!(
            "contradicts itself: {channels} channels of {bits} bits in {frame} bytes, {rate} a second"
        ));
    }
    Ok(Format { kind, channels, rate })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn file(name: &str, stored: Vec<u8>) -> SourceFile {
        SourceFile { path: PathBuf::from(name), stored, sha256: String::new(), label: None }
    }

    fn chunk(id: &[u8; 4], bytes: &[u8]) -> Vec<u8> {
        let mut all = [&id[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat();
        all.resize(all.len().next_multiple_of(2), 0);
        all
    }

    fn format(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
        let frame = channels * bits / 8;
        let head = [tag.to_le_bytes(), channels.to_le_bytes()].concat();
        let tail = [frame.to_le_bytes(), bits.to_le_bytes()].concat();
        chunk(
            b"fmt ",
            &[head, rate.to_le_bytes().to_vec(), (rate * u32::from(frame)).to_le_bytes().to_vec(), tail].concat(),
        )
    }

    fn wav(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = [&b"WAVE"[..], &chunks.concat()].concat();
        chunk(b"RIFF", &body)
    }

    fn read(stored: Vec<u8>) -> Result<Sounds, Vec<Problem>> {
        sounds(&[file("a.wav", stored)], None)
    }

    #[test]
    fn every_way_to_write_numbers() {
        let low = |value: i32, n: usize| value.to_le_bytes()[4 - n..].to_vec();
        let (half, minus) = (1 << 30, -(1 << 29));
        for (tag, bits, data) in [
            (1, 8, vec![192, 96]),
            (1, 16, [low(half, 2), low(minus, 2)].concat()),
            (1, 24, [low(half, 3), low(minus, 3)].concat()),
            (1, 32, [low(half, 4), low(minus, 4)].concat()),
            (3, 32, [0.5f32.to_le_bytes(), (-0.25f32).to_le_bytes()].concat()),
            (3, 64, [0.5f64.to_le_bytes(), (-0.25f64).to_le_bytes()].concat()),
        ] {
            let one = read(wav(&[format(tag, 1, 8_000, bits), chunk(b"LIST", b"odd"), chunk(b"data", &data)]));
            let one = one.unwrap_or_else(|problems| panic!("{tag} {bits}: {problems:?}"));
            assert_eq!((one.rate, one.samples, one.ends), (8_000, vec![0.5, -0.25], vec![2]), "{tag} {bits}");
            let two = read(wav(&[format(tag, 2, 44_100, bits), chunk(b"data", &data)])).expect("two channels");
            assert_eq!((two.rate, two.samples, two.ends), (44_100, vec![0.125], vec![1]), "{tag} {bits}");
        }
        // An extensible format, and a length that was not known when it was written.
        let mut extended = format(0xfffe, 1, 16_000, 16);
        extended[4..8].copy_from_slice(&40u32.to_le_bytes());
        extended.extend([[22, 0], [16, 0], [4, 0], [0, 0], [1, 0]].concat());
        extended.extend([0; 14]);
        let mut data = chunk(b"data", &[0, 64, 0, 224]);
        data[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(wav(&[extended, data])).expect("a sound").samples, [0.5, -0.25]);
    }

    #[test]
    fn files_that_are_wrong() {
        let whole = wav(&[format(1, 1, 8_000, 16), chunk(b"data", &[1, 2, 3, 4])]);
        for n in 0..whole.len() {
            assert_eq!(read(whole[..n].to_vec()).expect_err("cut")[0].code, BAD_FILE, "{n}");
        }
        let data = || chunk(b"data", &[0; 8]);
        for (what, chunks, code) in [
            ("no sound", vec![format(1, 1, 8_000, 16)], BAD_FILE),
            ("sound without a format", vec![data(), format(1, 1, 8_000, 16)], BAD_FILE),
            ("law", vec![format(7, 1, 8_000, 8), data()], BAD_FILE),
            ("no channels", vec![format(1, 0, 8_000, 16), data()], BAD_FILE),
            ("no rate", vec![format(1, 1, 0, 16), data()], BAD_FILE),
            ("half a sample", vec![format(1, 3, 8_000, 16), data()], BAD_FILE),
            ("silence without end", vec![format(1, 1, 8_000, 16), chunk(b"data", &[])], EMPTY),
            ("no number", vec![format(3, 1, 8_000, 32), chunk(b"data", &f32::NAN.to_le_bytes())], BAD_FILE),
        ] {
            let problem = read(wav(&chunks)).expect_err(what).remove(0);
            assert_eq!(problem.code, code, "{what}: {problem}");
            assert!(problem.message.starts_with("a.wav "), "{what}: {problem}");
        }
    }

    #[test]
    fn files_of_two_rates() {
        let of = |rate: u32| file("a.wav", wav(&[format(1, 1, rate, 16), chunk(b"data", &[0; 4])]));
        assert_eq!(sounds(&[of(8_000), of(8_000)], Some(8_000)).expect("sounds").ends, [2, 4]);
        assert_eq!(sounds(&[of(8_000), of(16_000)], None).expect_err("two rates")[0].code, MISMATCH);
        assert_eq!(sounds(&[of(8_000)], Some(16_000)).expect_err("another rate")[0].code, MISMATCH);
    }
}
