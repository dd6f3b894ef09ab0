//! A disk that is really full: a file system of the test's own, where mounting one is allowed.

use std::process::Command;

use super::*;

/// A file system in memory of so many bytes; gone when it is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where this process may not mount.
    fn new(place: PathBuf, n_bytes: u64) -> Option<Small> {
        std::fs::create_dir_all(&place).expect("the temporary folder can be written");
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={n_bytes}"), "tmpfs"], &place);
        mounted.then_some(Small(place))
    }

    fn grow(&self, n_bytes: u64) {
        assert!(mount(&["-o", &format!("remount,size={n_bytes}")], &self.0), "it can be made larger");
    }
}

fn mount(words: &[&str], place: &Path) -> bool {
    Command::new("mount").args(words).arg(place).output().is_ok_and(|output| output.status.success())
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

/// What files take, in whole pages.
fn taken(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let sizes = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let facts = entry.metadata().expect("facts");
        if facts.is_dir() { taken(&entry.path()) } else { facts.len().next_multiple_of(4096) }
    });
    sizes.sum()
}

#[test]
fn a_full_disk_keeps_the_checkpoint_and_the_run_goes_on_when_there_is_room() {
    let folder = Folder::new();
    let text = read(&root().join("examples/shakespeare.mdl"));
    let text = text.replace("every(500, keep: 2)", "every(5, keep: 2)");
    assert!(text.contains("every(5, keep: 2)"));
    let recipe = folder.write("often.mdl", text);
    let recipe = recipe.to_str().expect("a path of ASCII");
    let sizes = ["--text", "README.md", "--steps", "20", "--layers", "2", "--heads", "2", "--width", "32"];
    let sizes = [&sizes[..], &["--context", "16", "--batch", "4", "--quiet"]].concat();
    let whole = folder.path("whole");
    succeed(&[&["run", recipe, "--out", whole.to_str().expect("ASCII")], &sizes[..]].concat());

    // Room for one checkpoint and a half.
    let one = taken(&whole.join("base/checkpoints/step-20"));
    let rest = taken(&whole) - 2 * one;
    let Some(small) = Small::new(folder.path("small"), rest + one * 3 / 2) else { return };
    let out = small.0.join("out");
    let words = [&["run", recipe, "--out", out.to_str().expect("ASCII")], &sizes[..]].concat();
    let output = run(&words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the checkpoint of step 5 is whole"), "{said}");
    assert!(said.contains("free") && said.contains("run again"), "says what to do next: {said}");
    let weights = |out: &Path, step: u64| {
        let path = out.join(format!("base/checkpoints/step-{step}/model.safetensors"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert!(!weights(&out, 5).is_empty());
    let generate = ["generate", recipe, "--prompt", "mdl", "--new", "5", "--out", out.to_str().expect("ASCII")];
    let flags = sizes.iter().copied().filter(|flag| *flag != "--quiet").collect::<Vec<_>>();
    succeed(&[&generate, &flags[..]].concat());

    // The same happens again, and changes nothing.
    assert_eq!(run(&words).status.code(), Some(3));
    small.grow(rest + 4 * one);
    succeed(&words);
    assert_eq!(weights(&whole, 20), weights(&out, 20), "as if there had been room from the beginning");
}
