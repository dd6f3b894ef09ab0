//! Whole runs of `mdlc`, as a user or a script would start it.

mod adapters;
mod card;
mod chats;
mod examples;
mod full_disk;
mod interrupted;
mod memory;
mod misuse;
mod peft;
mod published;
mod stages;
mod texts;
mod verify;
mod witness;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli/ is in the repository").to_path_buf()
}

/// A folder that is removed with everything in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mdlc-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file in the folder")).expect("the folder can be made");
        std::fs::write(&path, text).expect("the temporary folder can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn mdlc(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdlc"));
    command.args(words).current_dir(root());
    command
}

fn run(words: &[&str]) -> Output {
    mdlc(words).output().expect("mdlc starts")
}

/// Runs and demands success; gives what was printed.
fn succeed(words: &[&str]) -> String {
    let output = run(words);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "mdlc {words:?} ended with {}:\n{out}{err}", output.status);
    out.into_owned()
}

/// Runs and says this to it. What ends before it has heard all is no mistake.
fn talk(words: &[&str], said: &str) -> Output {
    let mut child =
        mdlc(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mdlc starts");
    let _ = child.stdin.take().expect("a pipe").write_all(said.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs a recipe beside `plays.txt`, a text of a few thousand characters; gives the folder of its results.
fn results_on_plays(folder: &Folder, recipe: &str) -> PathBuf {
    folder.write(
        "plays.txt",
        "to be or not to be, that is the question; whether it is nobler in the mind to suffer\n".repeat(40),
    );
    let recipe = folder.write("recipe.mdl", recipe);
    succeed(&["run", recipe.to_str().expect("a path of ASCII"), "--threads", "2"]);
    folder.path("runs/recipe")
}

/// What lines of metrics say under a key, where they do.
fn numbers(lines: &[serde_json::Value], key: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line.get(key)?.as_f64()).collect()
}

/// The lines of a `metrics.jsonl`.
fn metrics(path: &Path) -> Vec<serde_json::Value> {
    read(path).lines().map(|line| serde_json::from_str(line).expect("a line of metrics is JSON")).collect()
}
