//! The same kernels on a card, simulated or real: printed as CUDA C, compiled by NVRTC, launched through the driver.
//!
//! Left out, and said so, where NVRTC or the card cannot be had. `MDLC_GPU=real` runs them on a card.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock};

use mdl_codegen::cuda;
use mdl_compiler::kernel::{Kernel, Role};
use mdl_gpu::{Choice, Gpu, Memory, Program};

use super::Block;

/// The card, if there is one: simulated unless the environment asks for another.
fn card() -> Option<&'static Mutex<Arc<Gpu>>> {
    static CARD: OnceLock<Option<Mutex<Arc<Gpu>>>> = OnceLock::new();
    let open = || {
        let asked = std::env::var_os("MDLC_GPU").map(|_| Choice::of_environment());
        match Gpu::open(asked.unwrap_or(Ok(Choice::Simulated)).expect("a known choice")) {
            Ok(gpu) => Some(Mutex::new(gpu)),
            Err(why) => {
                println!("kernels are not run on a card: {why}");
                None
            }
        }
    };
    CARD.get_or_init(open).as_ref()
}

/// The simulated card interprets each thread: it runs one kernel of so many, and with `MDLC_GPU_ALL` all.
const ONE_OF: u64 = 20;

/// Whether a kernel is among those that run there.
pub(super) fn is_drawn(kernel: &Kernel) -> bool {
    let mut hash = DefaultHasher::new();
    kernel.hash(&mut hash);
    std::env::var_os("MDLC_GPU_ALL").is_some() || hash.finish().is_multiple_of(ONE_OF)
}

/// Runs a kernel on copies of `memory`, twice, which must give the same bits; the buffers afterwards.
pub(super) fn run(kernel: &Kernel, memory: &[Block]) -> Option<Vec<Block>> {
    let gpu = card()?;
    let gpu = match gpu.lock() {
        Ok(gpu) => gpu,
        // Another test has failed; this one has not.
        Err(poisoned) => poisoned.into_inner(),
    };
    let printed = cuda::program(std::slice::from_ref(kernel)).unwrap_or_else(|error| panic!("{error}\n{kernel}"));
    let text = &printed.text;
    let fail = |error: mdl_gpu::Error| -> ! { panic!("{error}\n{kernel}\n{text}") };
    let image = gpu.nvrtc().compile(text, gpu.arch()).unwrap_or_else(|error| fail(error));
    let program = match Program::load(&gpu, &image) {
        Ok(program) => program,
        Err(error) if gpu.simulated => {
            // It has said which instruction it does not know. What it takes it must compute rightly.
            println!("{} is not run on the simulated card: {error}", kernel.name);
            return None;
        }
        Err(error) => fail(error),
    };
    let mut both = [0, 1].map(|_| {
        let mut blocks: Vec<Memory> = Vec::new();
        for block in memory {
            let mut copy = Memory::new(&gpu, block.len as u64).unwrap_or_else(|error| fail(error));
            copy.write(0, block.bytes()).unwrap_or_else(|error| fail(error));
            blocks.push(copy);
        }
        let workspace = Memory::new(&gpu, printed.workspace_bytes).unwrap_or_else(|error| fail(error));
        for launch in &printed.kernels[0] {
            let function =
                program.function(&launch.function, launch.shared_bytes as u32).unwrap_or_else(|error| fail(error));
            let address = |arg: &cuda::Arg| match arg {
                cuda::Arg::Buf(at) => blocks[*at].address(),
                cuda::Arg::Workspace(offset) => workspace.address() + offset,
            };
            let args: Vec<u64> = launch.args.iter().map(address).collect();
            // SAFETY: one block for each buffer, of its length, and the workspace that the program asks for.
            unsafe { gpu.launch(function, launch.blocks as u32, launch.threads as u32, &args) }
                .unwrap_or_else(|error| fail(error));
        }
        let mut after = Vec::new();
        for (block, own) in memory.iter().zip(&blocks) {
            let mut back = Block::new(block.len);
            let to = back.address();
            // SAFETY: as long as the block.
            let bytes = unsafe { std::slice::from_raw_parts_mut(to, block.len) };
            own.read(0, bytes).unwrap_or_else(|error| fail(error));
            after.push(back);
        }
        after
    });
    let [first, second] = &mut both;
    for (at, buf) in kernel.bufs.iter().enumerate().filter(|(_, buf)| buf.role != Role::Read) {
        assert!(first[at].bytes() == second[at].bytes(), "{}: two runs give other bits\n{kernel}", buf.name);
    }
    let [first, _] = both;
    Some(first)
}
