//! Files and folders that are there whole or not at all.
//!
//! A file is written beside its place, flushed to the disk, renamed into place, and the folder is flushed; a folder
//! goes the same way with all its files. Whatever system call a crash or a power cut falls on, a reader that calls
//! [`recover`] first finds the old one or the new one, never a mixture. An error (a full disk) leaves the old one too,
//! and removes what was begun.
//!
//! Every system call goes through [`Disk`], so that the tests can stop at each of them: see [`model`].
//! One writer at a time per place: callers that may race use different names.

pub mod model;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// The operations that writing safely is made of.
pub trait Disk {
    /// A new, empty file, in place of what was there.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink + '_>>;
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> bool;
    /// The names in a folder, sorted.
    fn names(&self, path: &Path) -> io::Result<Vec<String>>;
}

/// An open file.
pub trait Sink: Write {
    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for Os {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink + '_>> {
        Ok(Box::new(File::create(path)?))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

/// Writes one file so that `path` holds the old bytes or all of the new ones.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    write_atomic_on(&Os, path, write)
}

/// As [`write_atomic`], for bytes that are at hand.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic(path, |to| to.write_all(bytes))
}

/// As [`write_atomic`], on any disk.
pub fn write_atomic_on(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let folder = parent(path);
    let temporary = folder.join(format!(".{}.tmp", file_name(path)));
    let done = write_synced(disk, &temporary, write)
        .and_then(|()| disk.rename(&temporary, path).map_err(|e| saying("put in place", path, e)));
    if let Err(error) = done {
        // The error at hand is the one to tell; a leftover is overwritten by the next write.
        let _ = disk.remove_file(&temporary);
        return Err(error);
    }
    disk.sync_dir(folder).map_err(|e| saying("flush the folder", folder, e))
}

/// The files of a folder that is being written.
pub struct FolderWriter<'a> {
    disk: &'a dyn Disk,
    folder: PathBuf,
}

impl FolderWriter<'_> {
    /// Adds one file and flushes it to the disk.
    pub fn file(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        write_synced(self.disk, &self.folder.join(name), write)
    }
}

/// Writes a folder of files so that `folder` holds the old files or all of the new ones.
///
/// In between there may be a `folder.tmp` (not whole) and a `folder.old` (whole): [`recover`] tidies up after a crash.
pub fn write_folder(folder: &Path, fill: impl FnOnce(&mut FolderWriter<'_>) -> io::Result<()>) -> io::Result<()> {
    write_folder_on(&Os, folder, fill)
}

/// As [`write_folder`], on any disk.
pub fn write_folder_on(
    disk: &dyn Disk,
    folder: &Path,
    fill: impl FnOnce(&mut FolderWriter<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let home = parent(folder);
    disk.create_dir_all(home).map_err(|e| saying("make the folder", home, e))?;
    let temporary = with_suffix(folder, ".tmp");
    let filled = fill_folder(disk, &temporary, fill).and_then(|()| replace_folder(disk, &temporary, folder));
    if filled.is_err() && disk.exists(&temporary) {
        let _ = disk.remove_dir_all(&temporary);
    }
    filled
}

fn fill_folder(
    disk: &dyn Disk,
    temporary: &Path,
    fill: impl FnOnce(&mut FolderWriter<'_>) -> io::Result<()>,
) -> io::Result<()> {
    if disk.exists(temporary) {
        disk.remove_dir_all(temporary).map_err(|e| saying("remove the leftover", temporary, e))?;
    }
    disk.create_dir_all(temporary).map_err(|e| saying("make the folder", temporary, e))?;
    fill(&mut FolderWriter { disk, folder: temporary.to_path_buf() })?;
    disk.sync_dir(temporary).map_err(|e| saying("flush the folder", temporary, e))
}

/// A folder cannot be renamed onto a full one, so the old one steps aside first and goes last.
fn replace_folder(disk: &dyn Disk, temporary: &Path, folder: &Path) -> io::Result<()> {
    let home = parent(folder);
    let flush = || disk.sync_dir(home).map_err(|e| saying("flush the folder", home, e));
    let aside = with_suffix(folder, ".old");
    let replaces = disk.exists(folder);
    if replaces {
        if disk.exists(&aside) {
            disk.remove_dir_all(&aside).map_err(|e| saying("remove the leftover", &aside, e))?;
        }
        disk.rename(folder, &aside).map_err(|e| saying("move aside", folder, e))?;
        if let Err(error) = flush() {
            let _ = disk.rename(&aside, folder);
            return Err(error);
        }
    }
    if let Err(error) = disk.rename(temporary, folder) {
        if replaces {
            let _ = disk.rename(&aside, folder);
        }
        return Err(saying("put in place", folder, error));
    }
    flush()?;
    if replaces {
        disk.remove_dir_all(&aside).map_err(|e| saying("remove", &aside, e))?;
    }
    Ok(())
}

/// Removes a folder so that a crash leaves it whole, or a `.tmp` that [`recover`] removes.
pub fn remove_folder_on(disk: &dyn Disk, folder: &Path) -> io::Result<()> {
    let going = with_suffix(folder, ".tmp");
    if disk.exists(&going) {
        disk.remove_dir_all(&going).map_err(|e| saying("remove the leftover", &going, e))?;
    }
    disk.rename(folder, &going).map_err(|e| saying("remove", folder, e))?;
    disk.remove_dir_all(&going).map_err(|e| saying("remove", folder, e))
}

/// Tidies the folders in `home` after a crash: what was moved aside comes back unless its successor is there, and
/// what was never finished goes. Does nothing where there is nothing to tidy.
pub fn recover(home: &Path) -> io::Result<()> {
    recover_on(&Os, home)
}

/// As [`recover`], on any disk.
pub fn recover_on(disk: &dyn Disk, home: &Path) -> io::Result<()> {
    if !disk.exists(home) {
        return Ok(());
    }
    for name in disk.names(home).map_err(|e| saying("look into", home, e))? {
        let path = home.join(&name);
        if let Some(stem) = name.strip_suffix(".old") {
            let place = home.join(stem);
            if disk.exists(&place) {
                disk.remove_dir_all(&path).map_err(|e| saying("remove", &path, e))?;
            } else {
                disk.rename(&path, &place).map_err(|e| saying("put back", &place, e))?;
                disk.sync_dir(home).map_err(|e| saying("flush the folder", home, e))?;
            }
        } else if name.ends_with(".tmp") && !name.starts_with('.') {
            disk.remove_dir_all(&path).map_err(|e| saying("remove the leftover", &path, e))?;
        }
    }
    Ok(())
}

fn write_synced(disk: &dyn Disk, path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let inner = || -> io::Result<()> {
        let mut buffered = BufWriter::with_capacity(1 << 18, disk.create(path)?);
        write(&mut buffered)?;
        buffered.flush()?;
        buffered.get_mut().sync()
    };
    inner().map_err(|e| saying("write", path, e))
}

/// Keeps the kind of the error, so that a caller can still ask for `StorageFull`.
fn saying(what: &str, path: &Path, error: io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full".to_string(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_string(),
        io::ErrorKind::ReadOnlyFilesystem => "the disk is read-only".to_string(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("cannot {what} {}: {why}", path.display()))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    parent(path).join(format!("{}{suffix}", file_name(path)))
}

#[cfg(test)]
mod tests;
