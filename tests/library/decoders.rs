//! Decoders as values: what is generated step by step is what the whole model says, for sequences at positions of their own too.

use mdl_compiler::reference::{Data, Tensor};
use mdl_graph::{Axis, DType, InputKind};
use mdl_lang::check::{Args, Value};
use mdl_lang::syntax::ast::{Expr, ExprKind};

use super::{HERE, Recipe, run, type_of};

/// The generation programs of the design (greedy, and speculative decoding), and models to run them on.
const RECIPE: &str = r#"
use std.models.Gpt
use std.models.Llama
fn greedy(p: [.., vocab]) -> int[..] = argmax[vocab](p)
fn generate[t](model, prompt: int[.., t], new: Int = 64, stop: Int = 0, pick = greedy) -> int[.., out] = {
  axis out = new
  let d = decoder[t](model, room: t + new)
  let (memory, p) = d.read(d.empty, prompt)
  let (_, _, ids, _) = scan[out]((memory, p[t = -1], 0, false)) fn((memory, p, _, done)) = {
    let id = where(done, stop, pick(p))
    let (memory, p) = d.read[t: one](memory, stack[one](id))
    (memory, p[one = 0], id, done or id == stop)
  }
  ids
}
fn speculate[t](model, draft, prompt: int[.., t], new: Int = 64, ahead: Int = 4) -> int[.., out] = {
  axis out = new, b = ahead + 1
  let big = decoder[t](model, room: t + new + 2 * ahead + 2)
  let small = decoder[t](draft, room: t + new + 2 * ahead + 2)
  let (m, p) = big.read(big.empty, prompt)
  let (s, _) = small.read(small.empty, prompt)
  let first = argmax[vocab](p[t = -1])
  let start = (m, s, where(index[out] == 0, first, 0), 1 + 0 * first, first)
  let (_, _, ids, _, _) = fold[round: new](start, until: fn((_, _, _, n, _)) = n >= new) fn((m, s, ids, n, last)) = {
    let (s, guess) = scan[b]((s, last)) fn((s, id)) = {
      let (s, p) = small.read[t: one](s, stack[one](id))
      (s, argmax[vocab](p[one = 0]))
    }
    let (m, p) = big.read[t: b](m, shift[b](guess, fill: last))
    let say = argmax[vocab](p)
    let good = min(sum[b](int(cumsum[b](int(guess != say)) == 0)), ahead)
    let read = size[t] + n + good
    (big.keep(m, read), small.keep(s[b = -1], read), put[out = n + index[b]](ids, say), n + good + 1, say[b = good])
  }
  ids
}
layer Recurrent[vocab, width]() {
  tokens = Embedding[vocab -> width](init: normal(std: 1.0))
  inner = Lstm[width -> width]()
  fn call(ids: int[.., t]) -> [.., t, vocab] = {
    let x = inner(tokens(ids))
    tokens.attend(x + cumsum[t](x))
  }
}
model gpt = Gpt[vocab: 11, context: 40, width: 16](heads: 2, layers: 2)
model llama = Llama[vocab: 11, width: 16, hidden: 24](heads: 4, kv_heads: 2, layers: 2)
model small = Gpt[vocab: 11, context: 40, width: 8](heads: 1, layers: 1)
model recurrent = Recurrent[vocab: 11, width: 6]()
fn by_gpt(ids: int[.., t]) -> int[.., out] = generate[t](gpt, ids, new: 9, stop: -1)
fn by_llama(ids: int[.., t]) -> int[.., out] = generate[t](llama, ids, new: 9, stop: -1)
fn by_recurrent(ids: int[.., t]) -> int[.., out] = generate[t](recurrent, ids, new: 9, stop: -1)
fn by_two(ids: int[.., t]) -> int[.., out] = speculate[t](gpt, small, ids, new: 9, ahead: 3)
fn by_itself(ids: int[.., t]) -> int[.., out] = speculate[t](gpt, gpt, ids, new: 9, ahead: 3)
fn in_pieces(ids: int[.., t]) -> [.., t, vocab: 11] = {
  let d = decoder[t](gpt, room: 12)
  let start = ids[t = 0..2]
  let rest = ids[t = 2..6]
  let (memory, a) = d.read(d.empty, start)
  let (wrong, _) = d.read(memory, 5 - rest)
  let (_, b) = d.read(d.keep(wrong, 2), rest)
  concat[t](a, b)
}
"#;

const BATCH: u64 = 4;

/// Weights that make a model say different things: small numbers by place.
fn weights(recipe: &Recipe) -> Vec<(String, Tensor)> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    let all = recipe.elab.stored().map(|(id, _)| (recipe.elab.stored_name(id), recipe.elab.stored_type(id)));
    all.map(|(name, ty)| {
        // Large tables and small shifts: what is said depends on what was read.
        let (middle, scale) = match name.rsplit(['.', ':']).next() {
            Some("gain") => (1.0, 0.4),
            Some("bias" | "b") => (0.0, 0.2),
            _ if name.contains("tokens") || name.contains("positions") => (0.0, 3.0),
            _ => (0.0, 1.6),
        };
        let data = (0..ty.count()).map(|_| middle + scale * next()).collect();
        (name, Tensor::float(ty, data))
    })
    .collect()
}

/// What a function of the recipe gives for a prompt, `[batch, t]` with `t` the faster.
fn eval(function: &str, ids: &[i64]) -> Vec<f64> {
    let mut recipe = Recipe::new(RECIPE, None);
    let env = recipe.elab.file_env(recipe.file);
    let name = Expr { kind: ExprKind::Name(function.to_owned()), span: HERE };
    let function = recipe.elab.eval(&env, &name).unwrap_or_else(|_| panic!("{}", recipe.said()));
    let t = ids.len() as u64 / BATCH;
    let ty = type_of(DType::I32, &[Axis::new("batch", BATCH), Axis::new("t", t)]);
    let input = recipe.elab.input("ids", InputKind::Batch, ty.clone());
    let result = recipe.elab.call(&function, Args::of([(input, HERE)]), HERE);
    let result: Value = result.unwrap_or_else(|_| panic!("{}", recipe.said()));
    recipe.elab.output("y", &result, HERE).unwrap_or_else(|_| panic!("{}", recipe.said()));
    let mut inputs = weights(&recipe);
    inputs.push(("ids".to_owned(), Tensor::int(ty, ids.to_vec())));
    let graph = recipe.elab.finish();
    let (_, y) = run(&graph, &inputs).into_iter().next().expect("one output");
    match y.data {
        Data::Float(data) => data,
        Data::Int(data) => data.into_iter().map(|value| value as f64).collect(),
        Data::Bool(_) => panic!("neither ids nor logits"),
    }
}

/// Greedy generation by the whole model again and again.
fn by_hand(model: &str, prompt: &[i64], new: usize) -> Vec<f64> {
    let mut recipe_ids = prompt.to_vec();
    let mut said: Vec<Vec<f64>> = vec![Vec::new(); BATCH as usize];
    for _ in 0..new {
        let t = recipe_ids.len() / BATCH as usize;
        // The axes of a result are sorted by name: batch, t, vocab.
        let logits = eval(model, &recipe_ids);
        let mut longer = Vec::new();
        for (row, said) in said.iter_mut().enumerate() {
            let last = &logits[((row + 1) * t - 1) * 11..][..11];
            let best = (0..11).max_by(|a, b| last[*a].total_cmp(&last[*b]).then(b.cmp(a))).expect("11 of them");
            longer.extend(&recipe_ids[row * t..(row + 1) * t]);
            longer.push(best as i64);
            said.push(best as f64);
        }
        recipe_ids = longer;
    }
    said.concat()
}

const PROMPT: [i64; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1];

#[test]
fn generation_is_that_of_the_whole_model() {
    for (decoder, model) in [("by_gpt", "gpt"), ("by_llama", "llama"), ("by_recurrent", "recurrent")] {
        let expected = by_hand(model, &PROMPT, 9);
        let different: std::collections::BTreeSet<i64> = expected.iter().map(|id| *id as i64).collect();
        assert!(different.len() > 3, "{model} says more than one thing: {expected:?}");
        assert_eq!(eval(decoder, &PROMPT), expected, "{decoder}");
    }
}

#[test]
fn speculation_says_what_the_large_model_says() {
    let expected = by_hand("gpt", &PROMPT, 9);
    // A draft that is mostly wrong, each row at its own place; and one that is always right.
    assert_eq!(eval("by_two", &PROMPT), expected);
    assert_eq!(eval("by_itself", &PROMPT), expected);
}

#[test]
fn a_memory_can_be_taken_back() {
    let prompt: Vec<i64> = (0..24).map(|at| at * 7 % 11).collect();
    let (whole, pieces) = (eval("gpt", &prompt), eval("in_pieces", &prompt));
    assert_eq!(whole.len(), pieces.len());
    for (a, b) in whole.iter().zip(&pieces) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }
}
