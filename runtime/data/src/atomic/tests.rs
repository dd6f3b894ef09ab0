//! Stops and errors at every operation: the old one or the new one is whole.

use super::model::{Fault, ModelDisk, View};
use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

fn scratch(name: &str) -> PathBuf {
    static N: AtomicU32 = AtomicU32::new(0);
    let n = N.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("mdl-atomic-{}-{n}-{name}", std::process::id()))
}

/// What `check` says of the disk after a stop at each operation, and of the disk after an error at each.
fn at_every_operation(
    start: &ModelDisk,
    work: impl Fn(&ModelDisk) -> io::Result<()>,
    check: impl Fn(&Path, &str, bool),
) -> usize {
    let clean = start.with_fault(Fault::Never);
    work(&clean).expect("the work itself succeeds");
    let n_ops = clean.n_ops();
    for at in 0..n_ops {
        for view in View::ALL {
            let disk = start.with_fault(Fault::Stop { at });
            let done = work(&disk).is_ok();
            let place = scratch(&format!("stop-{at}-{view:?}"));
            disk.materialize(view, Path::new("home"), &place).expect("the model is written out");
            check(&place, &format!("stop at {at} of {n_ops}, {view:?}"), done);
            let _ = fs::remove_dir_all(&place);
        }
        let disk = start.with_fault(Fault::Error { at });
        let done = work(&disk);
        let place = scratch(&format!("error-{at}"));
        disk.materialize(View::Killed, Path::new("home"), &place).expect("the model is written out");
        check(&place, &format!("error at {at} of {n_ops}"), done.is_ok());
        if let Err(error) = done {
            assert!(error.to_string().contains("the disk is full"), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        let _ = fs::remove_dir_all(&place);
    }
    n_ops
}

fn home() -> ModelDisk {
    let disk = ModelDisk::new();
    disk.create_dir_all(Path::new("home")).expect("home");
    disk.sync_dir(Path::new("")).expect("home is durable");
    disk
}

#[test]
fn a_file_is_old_or_new() {
    let path = Path::new("home/result.json");
    let put = |disk: &ModelDisk, text: &str| write_atomic_on(disk, path, |w| w.write_all(text.as_bytes()));
    let disk = home();
    put(&disk, "the old text").expect("first write");
    let n_ops = at_every_operation(
        &disk,
        |disk| put(disk, "a new and longer text"),
        |place, when, done| {
            let text = fs::read_to_string(place.join("result.json")).unwrap_or_default();
            assert!(text == "the old text" || text == "a new and longer text", "{when}: {text:?}");
            assert!(!done || text == "a new and longer text", "{when}: said done and was not");
        },
    );
    assert_eq!(n_ops, 5, "create, write, sync, rename, sync the folder");
}

#[test]
fn a_folder_is_old_or_new() {
    let folder = Path::new("home/step-7");
    let put = |disk: &ModelDisk, text: &str| {
        write_folder_on(disk, folder, |w| {
            w.file("a", |w| w.write_all(text.as_bytes()))?;
            w.file("b", |w| w.write_all(text.as_bytes()))
        })
    };
    let disk = home();
    put(&disk, "old").expect("first write");
    at_every_operation(
        &disk,
        |disk| put(disk, "newer"),
        |place, when, done| {
            recover(place).expect("recovery");
            let read = |name: &str| fs::read_to_string(place.join("step-7").join(name)).unwrap_or_default();
            let (a, b) = (read("a"), read("b"));
            assert!(a == b && (a == "old" || a == "newer"), "{when}: {a:?} {b:?}");
            assert!(!done || a == "newer", "{when}: said done and was not");
            let names = Os.names(place).expect("names");
            assert_eq!(names, ["step-7"], "{when}: leftovers");
        },
    );
}

#[test]
fn the_first_folder_is_there_or_not() {
    let folder = Path::new("home/step-1");
    at_every_operation(
        &home(),
        |disk| write_folder_on(disk, folder, |w| w.file("a", |w| w.write_all(b"whole"))),
        |place, when, done| {
            recover(place).expect("recovery");
            let there = place.join("step-1").exists();
            assert!(!done || there, "{when}");
            assert!(!there || fs::read(place.join("step-1/a")).ok().as_deref() == Some(b"whole"), "{when}");
        },
    );
}

#[test]
fn removal_leaves_all_or_nothing() {
    let disk = home();
    let folder = Path::new("home/step-1");
    let fill = |w: &mut FolderWriter<'_>| {
        w.file("a", |w| w.write_all(b"1"))?;
        w.file("b", |w| w.write_all(b"2"))
    };
    write_folder_on(&disk, folder, fill).expect("written");
    at_every_operation(
        &disk,
        |disk| remove_folder_on(disk, folder),
        |place, when, _| {
            recover(place).expect("recovery");
            let names = place.join("step-1").exists().then(|| Os.names(&place.join("step-1")).expect("names"));
            assert!(names.is_none() || names.as_deref() == Some(&["a".into(), "b".into()]), "{when}: {names:?}");
        },
    );
}

/// The model must be able to catch a writer that is not safe, or the tests above say nothing.
#[test]
fn a_careless_writer_is_caught() {
    let path = Path::new("home/result.json");
    let careless = |disk: &ModelDisk| {
        let mut file = disk.create(Path::new("home/result.tmp"))?;
        file.write_all(b"new")?;
        drop(file);
        disk.rename(Path::new("home/result.tmp"), path)?;
        disk.sync_dir(Path::new("home"))
    };
    let disk = home();
    write_atomic_on(&disk, path, |w| w.write_all(b"old")).expect("first write");
    careless(&disk).expect("no fault");
    let place = scratch("careless");
    disk.materialize(View::PowerCutNamesFirst, Path::new("home"), &place).expect("written out");
    assert_eq!(fs::read(place.join("result.json")).expect("there"), b"", "the bytes were never flushed");
    let _ = fs::remove_dir_all(&place);
}

#[test]
fn the_real_disk_works_too() {
    let place = scratch("real");
    fs::create_dir_all(&place).expect("scratch");
    let file = place.join("x.json");
    for text in ["one", "two"] {
        write_atomic(&file, |w| w.write_all(text.as_bytes())).expect("written");
        assert_eq!(fs::read_to_string(&file).expect("there"), text);
        write_folder(&place.join("f"), |w| w.file("a", |w| w.write_all(text.as_bytes()))).expect("written");
        assert_eq!(fs::read_to_string(place.join("f/a")).expect("there"), text);
    }
    let error = write_atomic(&place.join("none/x"), |w| w.write_all(b"1")).expect_err("no folder");
    assert!(error.to_string().contains("none"), "{error}");
    let full = Path::new("/dev/full");
    if full.exists() {
        let error = write_synced(&Os, full, |w| w.write_all(&[0; 100])).expect_err("full");
        assert!(error.to_string().contains("the disk is full"), "{error}");
    }
    assert_eq!(Os.names(&place).expect("names"), ["f", "x.json"]);
    let _ = fs::remove_dir_all(&place);
}
