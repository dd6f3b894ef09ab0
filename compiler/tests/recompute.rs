//! Less saved, the same gradients.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Model, language_model};
use mdl_compiler::grad::SAVED;
use mdl_compiler::pass::{Options, prepare};
use mdl_compiler::reference::eval;
use mdl_compiler::testing::random_graph::{RandomOptions, random_graph};
use mdl_compiler::testing::random_inputs;
use mdl_compiler::tolerance::is_close;
use mdl_graph::{Graph, Op};

/// Bytes that forward loops stack for backward ones.
fn saved_bytes(graph: &Graph) -> u64 {
    graph
        .nodes()
        .iter()
        .filter_map(|node| match &node.op {
            Op::Loop(inner) => Some(inner),
            _ => None,
        })
        .map(|inner| {
            let saved = inner.body.outputs().iter().filter(|output| output.name.as_str().starts_with(SAVED));
            saved.map(|output| inner.body.ty(output.node).size_bytes()).sum::<u64>() * inner.axis.size
                + saved_bytes(&inner.body)
        })
        .sum()
}

fn check(graph: &Graph, budgets: &[u64]) -> Vec<u64> {
    let inputs = random_inputs(graph, 5);
    let whole = prepare(graph, &Options::default()).unwrap();
    let wanted = eval(&whole, &inputs).unwrap();
    let mut found = vec![saved_bytes(&whole)];
    for budget in budgets {
        let less = prepare(graph, &Options { saved_bytes: Some(*budget), ..Options::default() }).unwrap();
        let got = eval(&less, &inputs).unwrap();
        for ((a, b), output) in wanted.iter().zip(&got).zip(whole.outputs()) {
            for (a, b) in a.to_f64().into_iter().zip(b.to_f64()) {
                assert!(is_close(a, b, 1e-6), "{} with {budget}: {a} and {b}\n{less}", output.name);
            }
        }
        found.push(saved_bytes(&less));
    }
    found
}

#[test]
fn a_model_saves_less_and_less() {
    let model = Model { batch: 2, t: 8, width: 4, vocab: 5, layers: 3, dropout: true };
    let graph = language_model(&model);
    let whole = saved_bytes(&prepare(&graph, &Options::default()).unwrap());
    let budgets = [whole, whole * 3 / 4, whole / 2, whole / 4, 0];
    let found = check(&graph, &budgets);
    assert_eq!(found[0], found[1], "a budget that holds changes nothing");
    assert!(found.windows(2).all(|pair| pair[1] <= pair[0]), "{found:?}");
    for (budget, bytes) in budgets.iter().zip(&found[1..]).take(4) {
        assert!(bytes <= budget, "{bytes} of {budget}: {found:?}");
    }
    // The least is what goes from layer to layer.
    assert_eq!(found[5], model.batch * model.t * model.width * 4 * model.layers, "{found:?}");
}

#[test]
fn pieces_of_a_batch_save_less_too() {
    let graph = language_model(&Model { batch: 4, ..Model::default() });
    let inputs = random_inputs(&graph, 5);
    let whole = prepare(&graph, &Options { micro: 2, ..Options::default() }).unwrap();
    let less = prepare(&graph, &Options { micro: 2, saved_bytes: Some(0), ..Options::default() }).unwrap();
    assert!(saved_bytes(&less) < saved_bytes(&whole) / 4, "{} {}", saved_bytes(&less), saved_bytes(&whole));
    for (a, b) in eval(&whole, &inputs).unwrap().iter().zip(&eval(&less, &inputs).unwrap()) {
        for (a, b) in a.to_f64().into_iter().zip(b.to_f64()) {
            assert!(is_close(a, b, 1e-6));
        }
    }
}

#[test]
fn random_programs_with_all_recomputed() {
    let mut saves = 0;
    for seed in 0..200 {
        let graph = random_graph(7_000 + seed, RandomOptions { n_ops: 16, ..RandomOptions::default() });
        let found = check(&graph, &[0]);
        saves += u64::from(found[1] < found[0]);
    }
    assert!(saves > 10, "{saves} programs had something to recompute");
}
