//! Checkpoints come back as they were, are whole after a stop at any system call, and are refused when a bit has changed.

use super::*;
use mdl_data::atomic::model::{Fault, ModelDisk, View};
use std::sync::atomic::{AtomicU32, Ordering};

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static N: AtomicU32 = AtomicU32::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mdl-checkpoint-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).expect("a scratch folder");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Values that tell the step.
fn values(step: u64) -> Vec<u8> {
    (0..24).map(|i| (step as u8).wrapping_mul(31).wrapping_add(i)).collect()
}

fn tensor<'a>(name: &str, dtype: DType, shape: &[u64], bytes: &'a [u8]) -> TensorView<'a> {
    TensorView { name: name.to_string(), dtype, shape: shape.to_vec(), bytes }
}

fn weights(bytes: &[u8]) -> Vec<TensorView<'_>> {
    vec![tensor("head.b", DType::BF16, &[12], bytes), tensor("blocks.attn.q.w", DType::F32, &[2, 3], bytes)]
}

fn states(bytes: &[u8]) -> Vec<TensorView<'_>> {
    vec![tensor("m/head.b", DType::F32, &[6], bytes), tensor("empty", DType::F32, &[0, 4], &[])]
}

fn save_step(home: &Path, step: u64, keep: u64) -> PathBuf {
    let bytes = values(step);
    save(home, step, 7, "recipe", &weights(&bytes), &states(&bytes), keep).expect("saved")
}

fn names(home: &Path) -> Vec<String> {
    Os.names(home).expect("names")
}

fn is_step(found: &Checkpoint, step: u64) -> bool {
    let mut bytes = vec![0; 24];
    found.read("blocks.attn.q.w", DType::F32, &[2, 3], &mut bytes).expect("a weight");
    found.step == step && bytes == values(step)
}

#[test]
fn what_is_saved_comes_back() {
    let home = Scratch::new();
    assert!(latest(&home.0.join("none")).expect("no folder is no checkpoint").is_none());
    assert!(latest(&home.0).expect("nor is an empty one").is_none());
    let folder = save_step(&home.0, 3, 2);
    assert_eq!(names(&folder), [MANIFEST, MODEL, STATE]);
    let found = latest(&home.0).expect("read").expect("there");
    assert_eq!((found.step, found.seed, found.recipe.as_str()), (3, 7, "recipe"));
    assert_eq!(found.folder, folder);
    assert!(is_step(&found, 3));
    let all: Vec<String> =
        found.tensors().map(|(name, dtype, shape)| format!("{name} {}", format::shown(dtype, shape))).collect();
    assert_eq!(all, ["blocks.attn.q.w f32[2, 3]", "empty f32[0, 4]", "head.b bf16[12]", "m/head.b f32[6]"]);
    // The same state gives the same bytes.
    let bytes = |name: &str| fs::read(folder.join(name)).expect("a file");
    let before = [MANIFEST, MODEL, STATE].map(bytes);
    save_step(&home.0, 3, 2);
    assert_eq!([MANIFEST, MODEL, STATE].map(bytes), before);
    assert_eq!(u64::from_le_bytes(before[1][..8].try_into().expect("8 bytes")) % 8, 0, "tensors are aligned");
}

#[test]
fn what_does_not_fit_is_named() {
    let home = Scratch::new();
    save_step(&home.0, 1, 1);
    let found = latest(&home.0).expect("read").expect("there");
    let told = |name: &str, dtype: DType, shape: &[u64]| {
        found.read(name, dtype, shape, &mut [0; 24]).expect_err("refused").to_string()
    };
    assert!(told("head.c", DType::BF16, &[12]).contains("the checkpoint has no `head.c`"));
    let shape = told("head.b", DType::BF16, &[3, 4]);
    assert!(shape.contains("`head.b` is bf16[12] in the checkpoint and bf16[3, 4] in the model"), "{shape}");
    assert!(told("head.b", DType::F16, &[12]).contains("f16[12]"));
    assert!(found.read("head.b", DType::BF16, &[12], &mut [0; 4]).is_err());
}

#[test]
fn the_newest_stay() {
    let home = Scratch::new();
    for step in [5, 10, 15, 100] {
        save_step(&home.0, step, 2);
    }
    assert_eq!(names(&home.0), ["step-100", "step-15"]);
    // A run that went back to 15 leaves 100 behind it.
    save_step(&home.0, 20, 2);
    assert_eq!(names(&home.0), ["step-15", "step-20"]);
    save_step(&home.0, 25, 0);
    assert_eq!(names(&home.0), ["step-25"], "the new one always stays");
    fs::create_dir(home.0.join("step-30.tmp")).expect("a leftover");
    fs::create_dir(home.0.join("notes")).expect("not ours");
    assert!(is_step(&latest(&home.0).expect("read").expect("there"), 25), "what is not whole does not count");
    save_step(&home.0, 30, 1);
    assert_eq!(names(&home.0), ["notes", "step-30"]);
}

#[test]
fn every_changed_bit_is_seen() {
    let home = Scratch::new();
    save_step(&home.0, 1, 2);
    let folder = save_step(&home.0, 2, 2);
    for name in [MANIFEST, MODEL, STATE] {
        let path = folder.join(name);
        let whole = fs::read(&path).expect("a file");
        let told = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).expect("damaged");
            let error = latest(&home.0).err().unwrap_or_else(|| panic!("{name}: {what} is not seen"));
            let RunError::Data(problems) = &error else { panic!("{name}: {what} is the user's to mend: {error}") };
            assert_eq!(problems[0].code, DAMAGED);
            assert!(error.to_string().contains(&path.display().to_string()), "{name}: {what}: {error}");
            assert!(error.to_string().contains("help: remove"), "{name}: {what}: {error}");
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            // A change of white space does not change what a manifest says.
            if name == MANIFEST && Manifest::from_json(&bytes) == Manifest::from_json(&whole) {
                continue;
            }
            told(&bytes, &format!("bit {} of byte {at}", at % 8));
        }
        for n in (0..whole.len()).step_by(7) {
            told(&whole[..n], &format!("cut off at {n}"));
        }
        fs::remove_file(&path).expect("removed");
        let error = latest(&home.0).expect_err("a missing file").to_string();
        assert!(error.contains(name) && error.contains("is missing"), "{error}");
        fs::write(&path, &whole).expect("mended");
    }
    assert!(is_step(&latest(&home.0).expect("read").expect("there"), 2));
}

/// A stop at every operation of saving step 2 over step 1, in every way in which a disk may be found after it.
#[test]
fn a_crash_leaves_the_old_or_the_new() {
    let start = ModelDisk::new();
    start.create_dir_all(Path::new("home")).expect("home");
    start.sync_dir(Path::new("")).expect("home is durable");
    let save_on_model = |disk: &ModelDisk, step: u64| {
        let bytes = values(step);
        let manifest = Manifest::new(step, 7, "recipe");
        save_on(disk, Path::new("home"), manifest, &weights(&bytes), &states(&bytes), 1)
    };
    save_on_model(&start, 1).expect("saved");
    for step in [2, 1] {
        let clean = start.with_fault(Fault::Never);
        save_on_model(&clean, step).expect("saved");
        let n_ops = clean.n_ops();
        assert!(n_ops > 12, "{n_ops} operations");
        for at in 0..n_ops {
            for (fault, views) in [(Fault::Stop { at }, View::ALL.as_slice()), (Fault::Error { at }, &[View::Killed])] {
                for &view in views {
                    let when = format!("step {step}, {fault:?} of {n_ops}, {view:?}");
                    let disk = start.with_fault(fault);
                    let done = save_on_model(&disk, step).is_ok();
                    let scratch = Scratch::new();
                    disk.materialize(view, Path::new("home"), &scratch.0).expect("written out");
                    let found = latest(&scratch.0).unwrap_or_else(|error| panic!("{when}: {error}"));
                    let found = found.unwrap_or_else(|| panic!("{when}: nothing is left"));
                    assert!(is_step(&found, 1) || is_step(&found, step), "{when}: {}", found.step);
                    assert!(!done || found.step == step, "{when}: said done and was not");
                    // The run goes on from there.
                    save_step(&scratch.0, 3, 1);
                    assert_eq!(names(&scratch.0), ["step-3"], "{when}");
                }
            }
        }
    }
}

#[test]
fn a_full_disk_is_told_and_the_old_one_stays() {
    let home = Scratch::new();
    save_step(&home.0, 1, 1);
    fs::write(home.0.join("step-2.tmp"), "in the way").expect("a file where the folder should be");
    let bytes = values(2);
    let error = save(&home.0, 2, 7, "recipe", &weights(&bytes), &states(&bytes), 1).expect_err("cannot be saved");
    assert!(matches!(error, RunError::Failed { .. }), "{error}");
    let told = error.to_string();
    assert!(told.contains("step-2.tmp") && told.contains("the checkpoint of step 1 is whole"), "{told}");
    assert!(is_step(&latest(&home.0).expect("read").expect("there"), 1));
}
