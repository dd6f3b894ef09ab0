//! Stages that use what others trained, and models of several parts.

use super::*;

const DATA: &str = r#"
use std.models.Gpt
axis t = 8, width = 8
data plays { source = text("plays.txt"), tokenizer = chars(), window = t, split = (train: 90%, val: 10%) }
model gpt = Gpt[vocab: plays.vocab, context: t, width](heads: 2, layers: 2)
fn apart(teacher)(model, batch) = mean((model(batch.ids) - teacher(batch.ids)) ^ 2)
"#;

/// Runs these blocks after those of `DATA`.
fn results(folder: &Folder, blocks: &str) -> PathBuf {
    results_on_plays(folder, &format!("{DATA}{blocks}"))
}

#[test]
fn training_goes_on_from_a_trained_stage() {
    let folder = Folder::new();
    let out = results(
        &folder,
        r#"
train base { model = gpt, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), average = ema(0.9), steps = 10, batch = 4, evaluate = every(10, on: plays.val) }
train still { model = base, data = plays, objective = next_token, optimizer = sgd(lr: 0.0), steps = 1, batch = 4, evaluate = every(1, on: plays.val) }
train near { model = base, data = plays, objective = apart(base), optimizer = sgd(lr: 0.1), steps = 2, batch = 4, evaluate = every(1, on: plays.val) }
train far { model = gpt, data = plays, objective = apart(near), optimizer = adamw(lr: 1e-2), steps = 30, batch = 4 }
eval quality { of = near, on = plays.val }
"#,
    );
    let of = |stage: &str| metrics(&out.join(stage).join("metrics.jsonl"));
    // A stage gives its average, which is what the next one begins with.
    let base = numbers(&of("base"), "eval_loss");
    let still = numbers(&of("still"), "eval_loss");
    assert_eq!(base.last(), still.last());
    // A copy of its teacher has nothing to learn, and stays.
    let near: Vec<f64> = ["loss", "eval_loss"].iter().flat_map(|key| numbers(&of("near"), key)).collect();
    assert!(near.len() == 4 && near.iter().all(|loss| *loss < 1e-12), "{near:?}");
    let quality: serde_json::Value = serde_json::from_str(&read(&out.join("quality/result.json"))).expect("JSON");
    assert!(quality["metrics"]["loss"].as_f64().is_some_and(|loss| loss < 1e-12), "{quality}");
    // A fresh model comes nearer to it.
    let far = numbers(&of("far"), "loss");
    assert!(far[0] > 0.0 && far[29] < 0.5 * far[0], "{far:?}");
}

#[test]
fn each_part_follows_its_own_loss() {
    let duel = |maker: &str, judge: &str, more: &str| {
        let folder = Folder::new();
        let recipe = format!(
            r#"
axis z = 3
layer Maker[z, width]() {{
  out = Linear[z -> width](init: normal(std: 0.5))
  fn call(x: [.., z]) -> [.., width] = tanh(out(x))
}}
model maker = Maker[z, width]()
model judge = Linear[width -> z](init: normal(std: 0.5))
fn duel(model, batch) = {{
  let x = mean(model.judge(model.maker(ones[batch, z]())))
  (maker: -x, judge: x)
}}
train base {{
  model = (maker: maker, judge: judge), data = plays, objective = duel, optimizer = (maker: {maker}, judge: {judge})
  batch = 4 {more}
}}
"#
        );
        let lines = metrics(&results(&folder, &recipe).join("base/metrics.jsonl"));
        // Together the two losses are nothing, so neither follows the sum.
        assert!(numbers(&lines, "loss").iter().all(|loss| *loss == 0.0));
        assert!(numbers(&lines, "grad_norm").iter().all(|norm| *norm > 0.0));
        numbers(&lines, "judge")
    };
    let rises = |x: &[f64]| x.windows(2).all(|pair| pair[1] > pair[0]);
    let falls = |x: &[f64]| x.windows(2).all(|pair| pair[1] < pair[0]);
    let x = duel("sgd(lr: 0.1)", "sgd(lr: 0.0)", ", steps = 5");
    assert!(rises(&x), "{x:?}");
    let x =
        duel("sgd(lr: 0.0)", "[sgd(lr: 0.1) at \"judge.w\", adamw(lr: 1e-3)]", ", clip = 0.1, micro = 2, steps = 5");
    assert!(falls(&x), "{x:?}");
    // The first steps may be lost to a scale that is too large.
    let x = duel("sgd(lr: 0.1)", "sgd(lr: 0.0)", ", precision = f16, steps = 12");
    assert!(x[11] > x[0] && x.windows(2).all(|pair| pair[1] >= pair[0]), "{x:?}");
}

#[test]
fn an_objective_that_is_a_layer_trains_along() {
    let folder = Folder::new();
    let out = results(
        &folder,
        r#"
layer Match(student: Layer, teacher: Layer) {
  lift = Linear[student.width -> teacher.width](init: zeros())
  fn call(_, batch) = {
    let (_, mine) = watch(student, "blocks.1")(batch.ids)
    let (_, theirs) = watch(teacher, "blocks.{1..2}")(batch.ids)
    mean((lift(mine) - detach(theirs)[layer = 0]) ^ 2)
  }
}
model small = Gpt[vocab: plays.vocab, context: t, width: 6](heads: 2, layers: 2)
train base { model = gpt, data = plays, objective = next_token, optimizer = adamw(lr: 1e-2), steps = 3, batch = 4 }
train only { model = small, data = plays, objective = Match(small, base), optimizer = [adamw(lr: 3e-2) at "objective.**", sgd(lr: 0.0)], steps = 60, batch = 4, evaluate = every(60, on: plays.val) }
eval quality { of = only, on = plays.val }
"#,
    );
    let lines = metrics(&out.join("only/metrics.jsonl"));
    let loss = numbers(&lines, "loss");
    assert!(loss[59] < 0.8 * loss[0], "only `lift` changes, and it learns: {loss:?}");
    let result: serde_json::Value = serde_json::from_str(&read(&out.join("quality/result.json"))).expect("JSON");
    assert_eq!(result["metrics"]["loss"].as_f64(), numbers(&lines, "eval_loss").last().copied());
}

#[test]
fn copies_follow_optimizers_of_their_own() {
    // The same optimizer for each copy by itself is the same as one for all of them.
    let losses = |optimizer: &str| {
        let folder = Folder::new();
        let recipe = format!(
            "train base {{ model = gpt, data = plays, objective = next_token, optimizer = {optimizer}, steps = 4, batch = 4, average = ema(0.5), evaluate = every(4, on: plays.val) }}\n"
        );
        let lines = metrics(&results(&folder, &recipe).join("base/metrics.jsonl"));
        (numbers(&lines, "loss"), numbers(&lines, "eval_loss"))
    };
    let together = losses("adamw(lr: 1e-2)");
    assert_eq!(together, losses("[[adamw(lr: 1e-2) at \"blocks.{i}.**\" for i in 0..2], adamw(lr: 1e-2)]"));
    assert_ne!(together, losses("[adamw(lr: 1e-3) at \"blocks.1\", adamw(lr: 1e-2)]"));
}
