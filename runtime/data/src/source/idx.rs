//! Pictures and labels in the IDX layout of MNIST: a big-endian header (two zero bytes, the type, the number of
//! dimensions, their sizes), then the bytes. Pictures have three dimensions (grey) or four (with channels).

use super::{Pictures, SourceFile};
use crate::problem::{BAD_FILE, BAD_LABEL, MISMATCH, Problem};

/// The type byte of unsigned bytes.
const UNSIGNED_BYTE: u8 = 0x08;

pub(super) fn pictures(files: &[SourceFile]) -> Result<Pictures, Problem> {
    let [images_file, labels_file] = files else {
        return Err(Problem::new(MISMATCH, "pictures and labels come in one file each"));
    };
    let (sizes, pixels) = read(images_file)?;
    let (n, rows, columns, channels) = match sizes[..] {
        [n, rows, columns] => (n, rows, columns, 1),
        [n, rows, columns, channels] => (n, rows, columns, channels),
        _ => {
            let message = format!("{} has {} dimensions, and pictures 3 or 4", images_file.path.display(), sizes.len());
            return Err(Problem::new(BAD_FILE, message).at(&images_file.path).help("is it the file of the labels?"));
        }
    };
    if n > 0 && rows * columns * channels == 0 {
        return Err(Problem::new(BAD_FILE, "the pictures have no pixels").at(&images_file.path));
    }
    let (sizes, labels) = read(labels_file)?;
    if sizes.len() != 1 {
        let message = format!("{} has {} dimensions, and labels have 1", labels_file.path.display(), sizes.len());
        return Err(Problem::new(BAD_FILE, message).at(&labels_file.path).help("is it the file of the pictures?"));
    }
    if labels.len() != n {
        let message = format!("there are {n} pictures and {} labels", labels.len());
        return Err(Problem::new(BAD_LABEL, message).at(&labels_file.path));
    }
    let labels = labels.iter().map(u8::to_string).collect();
    Ok(Pictures { rows, columns, channels, pixels, labels })
}

fn read(file: &SourceFile) -> Result<(Vec<usize>, Vec<u8>), Problem> {
    let mut bytes = file.bytes()?;
    let wrong = |message: String, byte: usize| {
        Problem::new(BAD_FILE, format!("{} {message}", file.path.display())).at(&file.path).byte(byte as u64)
    };
    let n_dims = match bytes[..] {
        [0, 0, UNSIGNED_BYTE, n_dims, ..] => usize::from(n_dims),
        [0, 0, kind, _, ..] => return Err(wrong(format!("holds values of type 0x{kind:02x}, not bytes"), 2)),
        _ => return Err(wrong("is not an IDX file".to_string(), 0).help("IDX begins with the bytes 00 00 08")),
    };
    let header = 4 + 4 * n_dims;
    if bytes.len() < header {
        return Err(wrong("ends inside its header".to_string(), bytes.len()));
    }
    let size = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
    let sizes: Vec<usize> = (0..n_dims).map(|i| size(4 + 4 * i)).collect();
    let Some(n) = sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)) else {
        return Err(wrong(format!("says that it is {sizes:?}, which is more than any file"), 4));
    };
    if bytes.len() - header != n {
        let (has, at) = (bytes.len() - header, bytes.len());
        return Err(wrong(format!("says that it has {n} bytes, {sizes:?}, and has {has}"), at).help("copy it again"));
    }
    bytes.drain(..header);
    Ok((sizes, bytes))
}
