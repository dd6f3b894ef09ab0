//! Pictures of one size, and how they come from JPEG and PNG files, one a file.
//!
//! What a header says is compared with what is expected before anything is decoded: a small file that claims to be a
//! huge picture costs nothing but its message.

use super::SourceFile;
use crate::problem::{BAD_FILE, BAD_LABEL, MISMATCH, Problem};
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Pictures of one size, `[picture, row, column, channel]`, one byte per value.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    pub rows: usize,
    pub columns: usize,
    pub channels: usize,
    pub pixels: Vec<u8>,
    /// One per picture, or none at all.
    pub labels: Vec<String>,
}

/// More points than this are no example of a batch, but a mistake or a trap.
const MOST_POINTS: u64 = 1 << 24;

/// Files whose problems are told.
const MOST_PROBLEMS: usize = 5;

impl Pictures {
    pub fn len(&self) -> usize {
        match self.rows * self.columns * self.channels {
            0 => 0,
            size => self.pixels.len() / size,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn join(mut self, mut other: Pictures) -> Result<Pictures, Problem> {
        let size = |p: &Pictures| (p.rows, p.columns, p.channels);
        if size(&self) != size(&other) {
            let message = format!("pictures of {:?} and of {:?} cannot share a batch", size(&self), size(&other));
            return Err(Problem::new(MISMATCH, message));
        }
        if self.labels.is_empty() != other.labels.is_empty() {
            return Err(Problem::new(BAD_LABEL, "some pictures have a label and others have none"));
        }
        self.labels.append(&mut other.labels);
        self.pixels.append(&mut other.pixels);
        Ok(self)
    }
}

/// Decodes a picture from each file; all have the size of the first.
pub(super) fn pictures(files: &[SourceFile], is_grey: bool) -> Result<Pictures, Vec<Problem>> {
    let mut all = Pictures {
        rows: 0,
        columns: 0,
        channels: if is_grey { 1 } else { 3 },
        pixels: Vec::new(),
        labels: files.iter().filter_map(|file| file.label.clone()).collect(),
    };
    let mut problems = Vec::new();
    // The first that can be read says how large the others must be.
    let mut first = None;
    for file in files {
        let expected = first.map(|first| (all.rows, all.columns, first));
        match picture(file, expected, is_grey) {
            Ok((rows, columns, mut pixels)) => {
                if first.is_none() {
                    first = Some(file);
                    (all.rows, all.columns) = (rows, columns);
                    all.pixels.reserve_exact(pixels.len() * files.len());
                }
                all.pixels.append(&mut pixels);
            }
            Err(problem) => problems.push(problem),
        }
        if problems.len() >= MOST_PROBLEMS {
            break;
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// How large a picture is, and its values.
type Decoded = (usize, usize, Vec<u8>);

/// Rows, columns and the values of one picture.
fn picture(
    file: &SourceFile,
    expected: Option<(usize, usize, &SourceFile)>,
    is_grey: bool,
) -> Result<Decoded, Problem> {
    let name = file.path.display();
    let wrong = |message: String| Problem::new(BAD_FILE, message).at(&file.path);
    let fits = |rows: usize, columns: usize| {
        if (rows as u64).saturating_mul(columns as u64) > MOST_POINTS || rows == 0 || columns == 0 {
            let message = format!("{name} says that it has {rows} rows and {columns} columns");
            return Err(wrong(message).help(format!("a picture has from 1 to {MOST_POINTS} points")));
        }
        match expected {
            Some((of_rows, of_columns, first)) if (rows, columns) != (of_rows, of_columns) => {
                let first = first.path.display();
                let message = format!("{name} is {rows} by {columns}, and {first} is {of_rows} by {of_columns}");
                let problem = Problem::new(MISMATCH, message).at(&file.path);
                Err(problem.help("pictures that share a batch have one size: scale or cut them before"))
            }
            _ => Ok(()),
        }
    };
    let bytes = file.bytes()?;
    let is = match bytes[..] {
        [0xff, 0xd8, 0xff, ..] => "JPEG",
        [0x89, b'P', b'N', b'G', ..] => "PNG",
        _ => return Err(wrong(format!("{name} is neither a JPEG nor a PNG file")).help("convert it, or take it away")),
    };
    let ending = file.path.extension().unwrap_or_default().to_ascii_lowercase();
    let says = match ending.to_str() {
        Some("jpg" | "jpeg") => "JPEG",
        Some("png") => "PNG",
        _ => is,
    };
    if says != is {
        let message = format!("{name} is a {is} file, and its name says {says}");
        return Err(wrong(message).help("give it the ending that it should have"));
    }
    let decoded = if is == "JPEG" { jpeg(&bytes, is_grey, &fits) } else { png(&bytes, is_grey, &fits) };
    decoded.map_err(|broken| match broken {
        Broken::Size(problem) => *problem,
        Broken::File(why) => wrong(format!("{name} is not a whole {is} file: {why}")).help("copy it again"),
    })
}

/// Says whether a picture of so many rows and columns may be decoded.
type Fits<'a> = &'a dyn Fn(usize, usize) -> Result<(), Problem>;

/// Why a picture could not be decoded.
enum Broken {
    Size(Box<Problem>),
    File(String),
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Broken {
        Broken::Size(Box::new(problem))
    }
}

fn why(error: impl std::fmt::Display) -> Broken {
    // Some of these messages have lines of their own.
    Broken::File(error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
}

fn jpeg(bytes: &[u8], is_grey: bool, fits: Fits<'_>) -> Result<Decoded, Broken> {
    let color = if is_grey { ColorSpace::Luma } else { ColorSpace::RGB };
    // Without strictness, what a cut file lacks is made up.
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(color);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(why)?;
    let Some(info) = decoder.info() else { return Err(why("it has no size")) };
    let (rows, columns) = (usize::from(info.height), usize::from(info.width));
    fits(rows, columns)?;
    let pixels = decoder.decode().map_err(why)?;
    match pixels.len() == rows * columns * color.num_components() {
        true => Ok((rows, columns, pixels)),
        false => Err(why("its colours are of a kind that is not known")),
    }
}

fn png(bytes: &[u8], is_grey: bool, fits: Fits<'_>) -> Result<Decoded, Broken> {
    // Eight bytes a point hold four channels of two bytes.
    let limits = png::Limits { bytes: (MOST_POINTS * 8) as usize };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let info = decoder.read_header_info().map_err(why)?;
    let (rows, columns) = (info.height as usize, info.width as usize);
    fits(rows, columns)?;
    let mut reader = decoder.read_info().map_err(why)?;
    let Some(n) = reader.output_buffer_size() else { return Err(why("it is too large")) };
    let mut values = vec![0; n];
    let frame = reader.next_frame(&mut values).map_err(why)?;
    values.truncate(frame.buffer_size());
    // What is behind the pixels is read too, so that a file that is cut off is found.
    reader.finish().map_err(why)?;
    let channels = frame.color_type.samples();
    let mut pixels = Vec::with_capacity(rows * columns * if is_grey { 1 } else { 3 });
    for point in values.chunks_exact(channels) {
        match (point, is_grey) {
            (&[grey] | &[grey, _], true) => pixels.push(grey),
            (&[grey] | &[grey, _], false) => pixels.extend([grey; 3]),
            (&[red, green, blue, ..], false) => pixels.extend([red, green, blue]),
            (&[red, green, blue, ..], true) => pixels.push(luma(red, green, blue)),
            (&[], _) => {}
        }
    }
    match pixels.len() == rows * columns * if is_grey { 1 } else { 3 } {
        true => Ok((rows, columns, pixels)),
        false => Err(why("its colours are of a kind that is not known")),
    }
}

/// How bright a colour is, by ITU-R BT.601, which JPEG files keep as well.
fn luma(red: u8, green: u8, blue: u8) -> u8 {
    let sum = 299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue);
    ((sum + 500) / 1000) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    fn file(name: &str, stored: Vec<u8>) -> SourceFile {
        SourceFile { path: PathBuf::from(name), stored, sha256: String::new(), label: Some(name.to_string()) }
    }

    fn fixture(name: &str) -> SourceFile {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/pictures").join(name);
        file(name, fs::read(path).expect("a fixture"))
    }

    fn written(columns: u32, rows: u32, color: png::ColorType, values: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, columns, rows);
        encoder.set_color(color);
        let mut writer = encoder.write_header().expect("a header");
        writer.write_image_data(values).expect("pixels");
        writer.finish().expect("an end");
        bytes
    }

    fn problem(files: &[SourceFile]) -> Problem {
        pictures(files, false).expect_err("a problem").remove(0)
    }

    #[test]
    fn jpeg_files_are_as_pillow_reads_them() {
        for (name, is_grey, most) in [
            ("colour", false, 3),
            ("progressive", false, 3),
            ("grey", true, 1),
            ("grey", false, 1),
            ("colour", true, 3),
            // Colours of every other point: how those between are guessed differs.
            ("coarse", false, 12),
        ] {
            let read = |ending: &str| pictures(&[fixture(&format!("{name}.{ending}"))], is_grey).expect("a picture");
            let (jpeg, png) = (read("jpg"), read("png"));
            assert_eq!((jpeg.rows, jpeg.columns, jpeg.len()), (19, 26, 1));
            assert_eq!(jpeg.pixels.len(), png.pixels.len());
            let far = jpeg.pixels.iter().zip(&png.pixels).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(far.is_some_and(|far| far <= most), "{name} {is_grey}: {far:?}");
            assert!(png.pixels.iter().max() > Some(&200) && png.pixels.iter().min() < Some(&60), "{name} has contrast");
        }
    }

    #[test]
    fn png_files_of_every_kind_of_colour() {
        let kinds = [
            (png::ColorType::Rgb, vec![255, 0, 0, 10, 20, 30], [255, 0, 0, 10, 20, 30], [76, 18]),
            (png::ColorType::Rgba, vec![255, 0, 0, 9, 10, 20, 30, 0], [255, 0, 0, 10, 20, 30], [76, 18]),
            (png::ColorType::Grayscale, vec![7, 200], [7, 7, 7, 200, 200, 200], [7, 200]),
            (png::ColorType::GrayscaleAlpha, vec![7, 1, 200, 2], [7, 7, 7, 200, 200, 200], [7, 200]),
        ];
        for (color, values, colours, greys) in kinds {
            let files = [file("a.png", written(2, 1, color, &values)), file("b", written(2, 1, color, &values))];
            let read = pictures(&files, false).expect("pictures");
            assert_eq!((read.len(), read.rows, read.columns, read.channels), (2, 1, 2, 3));
            assert_eq!(read.pixels, [colours, colours].concat());
            assert_eq!(read.labels, ["a.png", "b"]);
            assert_eq!(pictures(&files, true).expect("pictures").pixels, [greys, greys].concat());
        }
    }

    #[test]
    fn files_that_are_wrong() {
        let whole = fixture("colour.jpg").stored;
        let png = written(2, 1, png::ColorType::Grayscale, &[1, 2]);
        for n in [0, 3, 20, whole.len() / 2, whole.len() - 40] {
            let problem = problem(&[file("cut.jpg", whole[..n].to_vec())]);
            assert_eq!(problem.code, BAD_FILE, "{n} of {}", whole.len());
            assert!(problem.message.starts_with("cut.jpg "), "{problem}");
        }
        for n in [8, 20, png.len() - 20, png.len() - 8] {
            assert_eq!(problem(&[file("cut.png", png[..n].to_vec())]).code, BAD_FILE, "{n} of {}", png.len());
        }
        let renamed = problem(&[file("a.jpg", png.clone())]);
        assert_eq!((renamed.code, renamed.message.as_str()), (BAD_FILE, "a.jpg is a PNG file, and its name says JPEG"));
        assert_eq!(problem(&[file("a.png", b"hello".to_vec())]).code, BAD_FILE);
        let other = file("b.png", written(1, 2, png::ColorType::Grayscale, &[1, 2]));
        let sizes = problem(&[file("a.png", png), other]);
        assert_eq!((sizes.code, sizes.message.as_str()), (MISMATCH, "b.png is 2 by 1, and a.png is 1 by 2"));
        assert!(pictures(&[file("x", Vec::new()), fixture("colour.jpg"), fixture("grey.jpg")], false).is_err());
    }

    /// A header that promises 60,000 by 60,000 points is refused before anything is allocated for them.
    #[test]
    fn huge_sizes_are_refused() {
        let mut jpeg = fixture("colour.jpg").stored;
        let at = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame");
        jpeg[at + 5..at + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
        let refused = problem(&[file("huge.jpg", jpeg)]);
        assert_eq!(refused.message, "huge.jpg says that it has 60000 rows and 60000 columns");
        let mut png = Vec::new();
        png::Encoder::new(&mut png, 60_000, 60_000).write_header().map(drop).expect("a header");
        let refused = problem(&[file("huge.png", png)]);
        assert_eq!(refused.message, "huge.png says that it has 60000 rows and 60000 columns");
    }
}
