//! Training on a card, simulated: the same losses as on the processor.
//!
//! Needs NVRTC (`MDLC_NVRTC`, or what is unpacked in `~/.cache/mdlc/nvrtc`) and the simulated card; left out, and said so, without.

use super::*;

/// The losses of each step.
fn losses(out: &Path) -> Vec<f64> {
    metrics(&out.join("base/metrics.jsonl")).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[cfg(target_os = "linux")]
/// Losses of a short training on the simulated card and on the processor; nothing where there is no card.
fn losses_on_both(sizes: &str) -> Option<[Vec<f64>; 2]> {
    let folder = Folder::new();
    let text = folder.write("text.txt", "To be, or not to be, that is the question.\n".repeat(60));
    let run_on = |device: &str| -> Result<Vec<f64>, String> {
        let out = folder.path(device);
        let mut command = mdlc(&["run", "examples/shakespeare.mdl", "--device", device, "--quiet"]);
        command.args(["--text".as_ref(), text.as_os_str(), "--out".as_ref(), out.as_os_str()]);
        let ended = command.args(sizes.split(' ')).env("MDLC_GPU", "sim").output().expect("mdlc starts");
        match ended.status.success() {
            true => Ok(losses(&out)),
            false => Err(String::from_utf8_lossy(&ended.stderr).into_owned()),
        }
    };
    match run_on("cuda") {
        Ok(on_card) => Some([on_card, run_on("cpu").expect("the processor trains")]),
        Err(why) if why.contains("there is no NVRTC") || why.contains("is not built") => {
            println!("nothing is trained on a card: {why}");
            None
        }
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn a_card_trains_as_the_processor_does() {
    let sizes = "--layers 2 --heads 2 --width 32 --context 16 --batch 4 --steps 20 --dropout 0.1";
    let Some([on_card, here]) = losses_on_both(sizes) else { return };
    assert_eq!(on_card.len(), 20);
    for (step, (card, here)) in on_card.iter().zip(&here).enumerate() {
        assert!((card - here).abs() <= 1e-4, "step {step}: {card} on the card, {here} here");
    }
}

/// Products and attention on tensor cores. A number that is rounded the other way is 1/256 of itself off.
#[test]
fn a_card_trains_in_bf16() {
    let sizes = "--layers 1 --heads 2 --width 64 --context 128 --batch 2 --steps 6 --dropout 0 --precision bf16";
    let Some([on_card, here]) = losses_on_both(sizes) else { return };
    assert_eq!(on_card.len(), 6);
    for (step, (card, here)) in on_card.iter().zip(&here).enumerate() {
        assert!((card - here).abs() <= 2e-3, "step {step}: {card} on the card, {here} here");
    }
}

/// Sines and cosines of large angles keep a product of so many bytes on the stack: an array, and no spill.
const COSINE_BYTES: u32 = 32;

/// Every kernel of a training step as machine code of the cards in use: registers are enough for all of it. Told by the compiled file, so
/// that no card is needed.
#[test]
fn no_kernel_spills() {
    let nvrtc = match mdl_gpu::Nvrtc::open() {
        Ok(nvrtc) => nvrtc,
        Err(why) => {
            println!("nothing is compiled for a card: {why}");
            return;
        }
    };
    for flags in [
        "shakespeare",
        "shakespeare --precision bf16",
        "shakespeare --dropout 0.1 --context 256",
        "bench --precision bf16 --width 768 --heads 12 --context 512 --layers 1",
        "addition",
    ] {
        let (example, flags) = flags.split_once(' ').unwrap_or((flags, ""));
        let recipe = format!("examples/{example}.mdl");
        let program =
            succeed(&[&["build", &recipe, "--emit=cuda"], &flags.split_whitespace().collect::<Vec<_>>()[..]].concat());
        for card in [80, 90] {
            let image = nvrtc.compile(&program, mdl_gpu::Arch::Real(card)).unwrap_or_else(|why| panic!("{why}"));
            let functions = mdl_gpu::resources(&image.bytes).expect("an ELF file");
            assert!(functions.len() > 20, "{example} has {} kernels", functions.len());
            for function in functions {
                let is_fine = function.registers > 0 && function.frame_bytes <= COSINE_BYTES;
                assert!(is_fine, "{example} {flags} for sm_{card}: {function:?}");
            }
        }
    }
}

/// A card that is not there is a sentence, not a panic.
#[test]
fn without_a_card_a_run_says_what_to_do() {
    let ended = mdlc(&["run", "examples/bench.mdl", "--device", "cuda"]).env("MDLC_GPU", "off").output();
    let ended = ended.expect("mdlc starts");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("opening the card failed: MDLC_GPU=off"), "{said}");
}

/// What `build` prints of a program that was compiled, without a card.
#[test]
fn ptx_is_printed_for_a_kind_of_card() {
    if let Err(why) = mdl_gpu::Nvrtc::open() {
        println!("nothing is compiled for a card: {why}");
        return;
    }
    let flags = "--emit=ptx --arch 80 --layers 1 --width 32 --heads 2 --context 32 --precision bf16";
    let args: Vec<&str> = ["build", "examples/shakespeare.mdl"].into_iter().chain(flags.split(' ')).collect();
    let ptx = succeed(&args);
    assert!(ptx.contains(".target sm_80") && ptx.contains("mma.sync.aligned.m16n8k16"), "{ptx}");
}
