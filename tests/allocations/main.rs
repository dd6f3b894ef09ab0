//! A training step allocates nothing: neither its batch nor its kernels, on any thread. A binary of its own, because it counts what the whole
//! process takes from the allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use mdl_data::Order;
use mdl_lang::check::{Imported, Problem, World};
use mdl_lang::diag::{Sources, render};
use mdl_lang::spec::{DataFacts, DataSpec, StageKind};
use mdl_lang::syntax::ast::FileId;
use mdl_runtime::device::{Cpu, Executable, Tensors};
use mdl_runtime::programs::plan_stage;

/// The system's allocator, and how often it was asked.
struct Counting;

static ASKED: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ASKED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Recipes of `examples/`, whose data is on the disk.
struct Disk(PathBuf);

impl World for Disk {
    fn import(&self, _: &str, path: &str) -> Result<Imported, String> {
        Err(format!("an example imports {path}"))
    }

    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        Ok(mdl_data::describe(spec, &self.0, None).expect("the example's data is there").data)
    }
}

/// How often a step asked the allocator, after the first.
fn asked(recipe: &str, args: &[(&str, &str)], threads: usize) -> Vec<u64> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let text = std::fs::read_to_string(base.join(recipe)).expect("the example is there");
    let mut sources = Sources::new();
    let main: FileId = sources.add(recipe, text);
    let args: Vec<(String, String)> = args.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let (program, diagnostics) = mdl_lang::stage::check(&mut sources, main, &args, &Disk(base.clone()));
    let spec = program.stages.iter().find_map(|stage| match &stage.kind {
        StageKind::Train(spec) => Some(spec),
        _ => None,
    });
    let spec = spec.unwrap_or_else(|| panic!("{}", render(&diagnostics, &sources)));
    let Some(StageKind::Data(data)) = program.stage(&spec.data).map(|stage| &stage.kind) else {
        panic!("{recipe} trains on data");
    };
    let dataset = mdl_data::prepare(data, &base, None).expect("the example's data is there");
    let cpu = Cpu::new(Some(threads)).expect("threads start");
    let plan = plan_stage(spec, cpu.machine()).expect("the example has a plan").step;
    let mut step = Executable::of_plan(plan, &cpu).expect("the example compiles");
    let mut batcher = dataset.batcher("train", spec.batch as usize, Order::Shuffled).expect("a batch");
    let fields = &dataset.facts.data.fields;
    step.lay_out(&mut batcher, fields);
    let mut tensors = Tensors::new();
    tensors.allocate(step.plan());
    let mut asked = Vec::with_capacity(8);
    for n in 0..5 {
        let before = ASKED.load(Ordering::SeqCst);
        step.fill(&batcher, fields, n);
        step.set_scalar("seed", 7);
        step.set_scalar("step", n as i32);
        step.run(&mut tensors, &cpu).expect("it runs");
        let loss = step.scalar("loss").expect("a loss");
        let after = ASKED.load(Ordering::SeqCst);
        assert!(loss > 0.0, "{recipe}: a loss of {loss} says nothing");
        asked.push(after - before);
    }
    // Threads that run for the first time set themselves up.
    asked.split_off(1)
}

#[test]
fn a_step_allocates_nothing() {
    let text = [("text", "data/reviews/train.txt"), ("layers", "2"), ("width", "32"), ("dropout", "0.1")];
    let low = [&text[..], &[("precision", "bf16")]].concat();
    // A vocabulary whose logits are computed in pieces.
    let large = [("vocab", "50304"), ("layers", "2"), ("width", "32"), ("batch", "8")];
    for (recipe, args) in [("shakespeare.mdl", &text[..]), ("shakespeare.mdl", &low[..]), ("bench.mdl", &large[..])] {
        for threads in [1, 3] {
            assert_eq!(asked(recipe, args, threads), [0; 4], "{recipe}, {threads} threads");
        }
    }
}
