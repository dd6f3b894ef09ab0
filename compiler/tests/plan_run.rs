//! Plans are run, launch by launch, with the interpreter of kernels, and compared with the reference on random programs: forward
//! and backward, fused and unfused, sizes 0 and 1, loops in loops.

#![allow(clippy::unwrap_used, reason = "what these helpers are given is right, or the test fails")]

#[path = "../../codegen/src/interp.rs"]
#[allow(dead_code, unreachable_pub, clippy::pedantic)]
mod interp;
#[path = "../../codegen/src/memory.rs"]
#[allow(dead_code, unreachable_pub)]
mod memory;
#[path = "../../codegen/src/ordering.rs"]
#[allow(dead_code, unreachable_pub)]
mod ordering;
mod plan_support;
/// What the interpreter takes from the strip routines.
mod strip {
    pub(crate) fn erf_f64(x: f64) -> f64 {
        libm::erf(x)
    }
}

use mdl_compiler::kernel::{Position, Role as Part, Stmt, Term, Work};
use mdl_compiler::pass;
use mdl_compiler::plan::{Plan, PlanOptions, Step, plan};
use mdl_compiler::reference;
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::{is_close, tolerance};
use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Loop, Name, Op, Role, Scalar, ScatterKind, Type};
use plan_support::run;

/// A prepared graph planned, and the plan checked.
fn planned(graph: &Graph, fuse: bool) -> Result<Plan, String> {
    let options = PlanOptions { fuse, ..PlanOptions::default() };
    let plan = plan(graph, &options).map_err(|error| error.to_string())?;
    plan.verify().map_err(|error| format!("{error}\n{plan}"))?;
    Ok(plan)
}

/// Runs a prepared graph in both ways and compares every output.
fn compare(graph: &Graph, seed: u64) -> Result<(), String> {
    let inputs = random_inputs(graph, seed);
    let expected = reference::eval(graph, &inputs).map_err(|error| error.to_string())?;
    for fuse in [false, true] {
        let plan = planned(graph, fuse).map_err(|error| format!("fuse {fuse}: {error}"))?;
        let results = run(&plan, graph, &inputs);
        for ((output, result), expected) in graph.outputs().iter().zip(&results).zip(&expected) {
            let largest = |most: f64, x: &f64| if x.is_finite() { most.max(x.abs()) } else { most };
            let scale = expected.to_f64().iter().fold(1.0f64, largest);
            let limit = tolerance(DType::F32, 4096).max(tolerance(expected.ty.dtype, 4096)) * scale;
            for (i, (a, b)) in result.to_f64().iter().zip(expected.to_f64()).enumerate() {
                if !is_close(*a, b, limit) {
                    return Err(format!("fuse {fuse}: {}[{i}] is {a}, not {b}\n{plan}", output.name));
                }
            }
        }
    }
    Ok(())
}

/// Runs every case, and reports all that fail: one line each, and the first in full.
fn all(cases: impl Iterator<Item = (u64, Graph)>) {
    let mut failed = Vec::new();
    for (seed, graph) in cases {
        let result = std::panic::catch_unwind(|| compare(&graph, seed));
        let message = match result {
            Ok(Ok(())) => continue,
            Ok(Err(message)) => message,
            Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_string()),
        };
        let first = message.lines().next().unwrap_or("").to_string();
        failed.push((format!("seed {seed}: {first}"), format!("{graph}\n{message}")));
    }
    let Some((_, whole)) = failed.first() else { return };
    let lines: Vec<&str> = failed.iter().map(|(line, _)| line.as_str()).collect();
    panic!("{whole}\n{}", lines.join("\n"));
}

/// The seeds of a test; `MDLC_SEEDS=0..1000` asks for others.
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let chosen = std::env::var("MDLC_SEEDS").ok();
    let parts = chosen.as_deref().and_then(|text| text.split_once(".."));
    match parts.and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?)) {
        Some(range) => range,
        None => default,
    }
}

fn vector(name: &str, size: u64) -> Type {
    Type::new(DType::F32, AxisSet::of([Axis::new(name, size)]).unwrap())
}

/// States whose next values read each other, or themselves elsewhere: what is read must be what was there before the step.
#[test]
fn states_are_read_before_they_are_written() {
    let mut g = Graph::new();
    let a = g.input("a", InputKind::State, vector("i", 7));
    let b = g.input("b", InputKind::State, vector("i", 7));
    let c = g.input("c", InputKind::State, vector("i", 7));
    let d = g.input("d", InputKind::Weight, vector("i", 7));
    let i = Name::from("i");
    let reversed = g.add(Op::Slice { axis: i.clone(), start: 6, len: 7, step: -1 }, &[c]);
    let tail = g.add(Op::Slice { axis: i.clone(), start: 1, len: 6, step: 1 }, &[d]);
    let shifted = g.add(Op::Pad { axis: i, before: 0, after: 1, fill: Scalar::Float(0.0) }, &[tail]);
    let mixed = g.add(Op::Add, &[reversed, d]);
    let sum = g.add(Op::Add, &[a, shifted]);
    for (at, (name, next)) in [("a", b), ("b", a), ("c", mixed), ("d", sum)].into_iter().enumerate() {
        g.output_as(name, Role::Next(InputId(at as u32)), next);
    }
    let product = g.add(Op::Mul, &[a, d]);
    g.output_as("product", Role::Value, product);
    g.output_as("as it was", Role::Value, d);
    all([(1, g)].into_iter());
}

/// A loss scale in miniature: scalars that are read beside a long vector, and that are no longer needed, or are written, there. The
/// vector runs in pieces that each read them again, so none may be overwritten; the verifier says so, and results are no witness
/// here, because the interpreter has no pieces. `runtime/tests/random_programs.rs` runs the same in machine code.
#[test]
fn a_scalar_beside_a_vector_keeps_its_place() {
    all([(1, mdl_compiler::testing::scalars_beside(5000))].into_iter());
}

#[test]
fn a_plan_that_overwrites_what_other_points_read_is_refused() {
    let graph = mdl_compiler::testing::scalars_beside(5000);
    let mut plan = planned(&graph, true).unwrap();
    // The scalar that goes out beside the vector is put where one comes in.
    let mut spoilt = false;
    for step in &mut plan.steps {
        let Step::Launch { kernel, args } = step else { continue };
        let bufs = &plan.kernels[kernel.0 as usize].bufs;
        let (mut from, mut to) = (None, None);
        for (at, buf) in bufs.iter().enumerate().filter(|(_, buf)| buf.len == 1) {
            match buf.role {
                Part::Read => from = Some(at),
                Part::Write => to = Some(at),
                Part::Update => {}
            }
        }
        if let (true, Some(from), Some(to)) = (bufs.iter().any(|buf| buf.len == 5000), from, to) {
            args[to] = args[from].clone();
            spoilt = true;
        }
    }
    assert!(spoilt, "{plan}");
    let error = plan.verify().unwrap_err().to_string();
    assert!(error.contains("read at one point and written at another"), "{error}");
}

/// Carries that trade places, and one that is read backwards, in a loop that also stacks what it is given.
#[test]
fn carries_trade_places() {
    let mut body = Graph::new();
    let a = body.input("a", InputKind::Param, vector("i", 5));
    let b = body.input("b", InputKind::Param, vector("i", 5));
    let c = body.input("c", InputKind::Param, vector("i", 5));
    let x = body.input("x", InputKind::Param, vector("i", 5));
    let turned = body.add(Op::Slice { axis: Name::from("i"), start: 4, len: 5, step: -1 }, &[c]);
    let next = body.add(Op::Add, &[turned, x]);
    for (name, node) in [("a", b), ("b", a), ("c", next), ("a then", a), ("c then", c), ("next", next)] {
        body.output_as(name, Role::Value, node);
    }
    for reverse in [false, true] {
        let mut g = Graph::new();
        let start = g.input("start", InputKind::Batch, vector("i", 5));
        let other = g.input("other", InputKind::Batch, vector("i", 5));
        let axes = AxisSet::of([Axis::new("i", 5), Axis::new("t", 3)]).unwrap();
        let xs = g.input("xs", InputKind::Batch, Type::new(DType::F32, axes));
        let axis = Axis::new("t", 3);
        let inner = Loop { axis, reverse, carries: 3, scans: 1, until: false, body: body.clone() };
        let results = g.loop_over(inner, &[start, other, other, xs]);
        for (at, result) in results.into_iter().enumerate() {
            g.output_as(format!("result {at}"), Role::Value, result);
        }
        all([(u64::from(reverse), g)].into_iter());
    }
}

/// The gradient of a table that is looked up and multiplied by: rows are added to what is there, in its place, unless somebody else
/// reads that.
#[test]
fn a_scatter_adds_to_what_is_there() {
    for is_read in [false, true] {
        let mut g = Graph::new();
        let rows = |name: &str, size: u64| {
            Type::new(DType::F32, AxisSet::of([Axis::new(name, size), Axis::new("width", 6)]).unwrap())
        };
        let x = g.input("x", InputKind::Batch, rows("t", 5));
        let y = g.input(
            "y",
            InputKind::Batch,
            Type::new(DType::F32, AxisSet::of([Axis::new("t", 5), Axis::new("vocab", 9)]).unwrap()),
        );
        let ids = g.input("ids", InputKind::Batch, Type::new(DType::I32, AxisSet::of([Axis::new("t", 5)]).unwrap()));
        let head = g.add(Op::Contract(vec![Name::from("t")]), &[x, y]);
        let axis = Axis::new("vocab", 9);
        let table = g.add(Op::Scatter { axis, keep: Vec::new(), kind: ScatterKind::Add }, &[x, ids]);
        let sum = g.add(Op::Add, &[table, head]);
        g.output_as("gradient", Role::Value, sum);
        if is_read {
            g.output_as("head", Role::Value, head);
        }
        all([(u64::from(is_read), g.clone())].into_iter());
        let plan = planned(&g, true).unwrap();
        let is_onto = |step: &Step| match step {
            Step::Launch { kernel, args } => match &plan.kernels[kernel.0 as usize].work {
                Work::Scatter(scatter) => {
                    scatter.base.is_some_and(|base| args[base.buf.0 as usize] == args[scatter.out.buf.0 as usize])
                }
                _ => false,
            },
            _ => false,
        };
        assert_eq!(plan.steps.iter().any(is_onto), !is_read, "{plan}");
    }
}

/// A decoder in miniature: every pass of a loop puts a row into its slice of a cache.
fn caching(reads_again: bool) -> Graph {
    let (l, i) = (Axis::new("layer", 3), Axis::new("i", 5));
    let cache = Type::new(DType::F32, AxisSet::of([l.clone(), i.clone()]).unwrap());
    let mut body = Graph::new();
    let x = body.input("x", InputKind::Param, Type::scalar(DType::F32));
    let slice = body.input("cache", InputKind::Param, vector("i", 5));
    let at = body.iota(i.clone());
    let three = body.constant(3.0, DType::I32);
    let here = body.add(Op::Equal, &[at, three]);
    let next = body.add(Op::Select, &[here, x, slice]);
    let sum = body.sum(next, [Name::from("i")]);
    body.output_as("x", Role::Value, sum);
    body.output_as("next", Role::Value, next);
    let mut g = Graph::new();
    let x = g.input("x", InputKind::Batch, Type::scalar(DType::F32));
    let state = g.input("cache", InputKind::State, cache);
    let results = g.loop_over(Loop { axis: l, reverse: false, carries: 1, scans: 1, until: false, body }, &[x, state]);
    g.output_as("y", Role::Value, results[0]);
    g.output_as("cache", Role::Next(InputId(1)), results[1]);
    if reads_again {
        // What it was before is asked for after the loop.
        let both = g.add(Op::Mul, &[state, results[1]]);
        g.output_as("both", Role::Value, both);
    }
    g
}

#[test]
fn a_loop_stacks_where_it_scans() {
    all([(1, caching(false)), (2, caching(true))].into_iter());
    let plan = planned(&caching(false), true).unwrap();
    let text = plan.to_string();
    // The carry begins as x; nothing else is copied.
    assert_eq!(text.matches("copy").count(), 1, "{text}");
}

/// A vector times a matrix, with what is added to the result: no sum runs down the columns of the matrix, where each number would cost a
/// line of cache.
#[test]
fn a_large_matrix_is_read_as_it_lies() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut g = Graph::new();
        let axes =
            |names: &[(&str, u64)]| AxisSet::of(names.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap();
        let x = g.input("x", InputKind::Batch, vector(from, 160));
        let w = g.input("w", InputKind::Weight, Type::new(DType::F32, axes(&[("a", 160), ("b", 160)])));
        let bias = g.input("bias", InputKind::Weight, vector(to, 160));
        let product = g.add(Op::Contract(vec![Name::from(from)]), &[x, w]);
        let y = g.add(Op::Add, &[product, bias]);
        g.output_as("y", Role::Value, y);
        let plan = planned(&g, true).unwrap();
        let mut seen = 0;
        for kernel in &plan.kernels {
            let Work::Nest(nest) = &kernel.work else { continue };
            for stmt in &nest.body {
                if let Stmt::Load { buf, access, .. } = stmt
                    && kernel.bufs[buf.0 as usize].len == 160 * 160
                {
                    seen += 1;
                    let text = kernel.to_string();
                    let strip = nest.strip_dim();
                    let along = |term: &Term| match &term.index {
                        Position::Index(index) => index.terms.iter().any(|(dim, coef)| *dim == strip && *coef == 1),
                        Position::Value(_) => false,
                    };
                    assert!(access.terms.iter().any(|term| term.coef == 1 && along(term)), "{text}");
                }
            }
        }
        assert_eq!(seen, 1, "{plan}");
        compare(&g, 3).unwrap();
    }
}

#[test]
fn random_programs_run_as_the_reference_says() {
    all(seeds(0..100).map(|seed| {
        let options = RandomOptions { gradient: seed % 2 == 0, ..RandomOptions::default() };
        (seed, mdl_compiler::grad::differentiate(&random_graph(seed, options)))
    }));
}

#[test]
fn prepared_programs_run_as_the_reference_says() {
    all(seeds(1000..1040).map(|seed| {
        let graph = random_graph(seed, RandomOptions { n_ops: 24, ..RandomOptions::default() });
        let graph = pass::prepare(&graph, &pass::Options::default()).unwrap_or_else(|error| panic!("{error}"));
        (seed, graph)
    }));
}

#[test]
fn equal_graphs_give_equal_bytes() {
    for seed in 0..20 {
        let graph = mdl_compiler::grad::differentiate(&random_graph(seed, RandomOptions::default()));
        let text = |graph: &Graph| serde_json::to_string(&planned(graph, true).unwrap()).unwrap();
        let (first, second) = (text(&graph), text(&graph.clone()));
        assert_eq!(first, second);
        let back: Plan = serde_json::from_str(&first).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), first);
    }
}
