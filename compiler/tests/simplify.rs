//! Passes keep the meaning: random programs before and after, and what each rule makes of the smallest case.

use mdl_compiler::grad::differentiate;
use mdl_compiler::pass::{Options, PASSES, prepare_watched};
use mdl_compiler::reference::{Tensor, eval};
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::Graph;

fn compare(what: &str, graph: &Graph, wanted: &[Tensor], inputs: &[Tensor], tolerance: f64) {
    let got = eval(graph, inputs).unwrap_or_else(|error| panic!("{what}: {error}\n{graph}"));
    assert!(got.len() >= wanted.len(), "{what}");
    for ((got, wanted), output) in got.iter().zip(wanted).zip(graph.outputs()) {
        assert_eq!(got.ty, wanted.ty, "{what}: {}", output.name);
        for (i, (a, b)) in got.to_f64().into_iter().zip(wanted.to_f64()).enumerate() {
            assert!(is_close(a, b, tolerance), "{what}: {}[{i}] is {a}, not {b}\n{graph}", output.name);
        }
    }
}

#[test]
fn passes_keep_the_meaning_of_random_programs() {
    for seed in 0..500 {
        let options = RandomOptions { n_ops: 4 + seed as usize % 16, ..RandomOptions::default() };
        let graph = random_graph(1_000 + seed, options);
        let inputs = random_inputs(&graph, seed);
        let wanted = eval(&differentiate(&graph), &inputs).unwrap();
        let before = graph.to_string();
        prepare_watched(&graph, &Options::default(), &mut |pass, after| {
            // Folded constants are rounded to f32.
            let what = format!("seed {seed} after `{}`\n{before}", pass.name);
            compare(&what, &differentiate(after), &wanted, &inputs, 1e-5);
        })
        .unwrap();
    }
}

#[test]
fn passes_have_different_names() {
    let mut names: Vec<&str> = PASSES.iter().map(|pass| pass.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), PASSES.len());
}

#[test]
fn half_precision_stays_close() {
    use mdl_compiler::Precision;
    use mdl_compiler::reference::eval_stored;
    for seed in 0..80 {
        let options = RandomOptions { n_ops: 4 + seed as usize % 16, ..RandomOptions::default() };
        let graph = random_graph(3_000 + seed, options);
        let inputs = random_inputs(&graph, seed);
        let prepared = mdl_compiler::prepare(&graph, &Options::default()).unwrap();
        for precision in [Precision::BF16, Precision::F16] {
            let low = mdl_compiler::prepare(&graph, &Options { precision, ..Options::default() }).unwrap();
            let mut low_inputs = inputs.clone();
            for input in &low.inputs()[inputs.len()..] {
                low_inputs.push(Tensor::filled(input.ty.clone(), mdl_graph::Scalar::Float(0.0)));
            }
            // Exact arithmetic: what is left is the structure, casts and scales.
            let wanted = eval(&prepared, &inputs).unwrap();
            compare(&format!("seed {seed} {precision:?}"), &low, &wanted, &low_inputs, 1e-4);
            let stored = eval_stored(&low, &low_inputs).unwrap();
            assert_eq!(stored.len(), low.outputs().len());
        }
    }
}
