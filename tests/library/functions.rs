//! Schedules, initializers, dropout and what else has a closed form.

use std::f64::consts::PI;

use mdl_graph::{InputKind, Role};

use super::*;

fn scalar() -> Type {
    Type::new(DType::F32, AxisSet::default())
}

/// The values of a schedule at some steps.
fn schedule(text: &str, steps: &[f64]) -> Vec<f64> {
    let mut recipe = Recipe::new(&format!("model rate = {text}\n"), None);
    let rate = recipe.value("rate");
    let n = recipe.elab.input("n", InputKind::Scalar, scalar());
    let value = recipe
        .elab
        .call(&rate, mdl_lang::check::Args::of([(n, HERE)]), HERE)
        .unwrap_or_else(|_| panic!("{}", recipe.said()));
    recipe.elab.output("rate", &value, HERE).expect("a number");
    let graph = recipe.elab.finish();
    let at = |n: &f64| run(&graph, &[("n".to_owned(), Tensor::filled(scalar(), Scalar::Float(*n)))])[0].1.to_f64()[0];
    steps.iter().map(at).collect()
}

#[test]
fn schedules_have_their_closed_form() {
    let steps = [1.0, 9.0, 10.0, 11.0, 55.0, 99.0, 100.0, 250.0];
    let of = |f: &dyn Fn(f64) -> f64| steps.map(f).to_vec();
    let done = |n: f64| ((n - 10.0) / 90.0).clamp(0.0, 1.0);
    let ramp = |n: f64| (n / 10.0).min(1.0);
    assert_near("constant", &schedule("constant(0.5)", &steps), &of(&|_| 0.5));
    assert_near("warm", &schedule("warm(0.5, 10)", &steps), &of(&|n| 0.5 * ramp(n)));
    assert_near(
        "cosine",
        &schedule("cosine(peak: 0.5, warmup: 10, floor: 0.1, over: 100)", &steps),
        &of(&|n| if n < 10.0 { 0.5 * ramp(n) } else { 0.1 + 0.4 * 0.5 * (1.0 + (PI * done(n)).cos()) }),
    );
    assert_near(
        "linear",
        &schedule("linear(peak: 0.5, warmup: 10, floor: 0.1, over: 100)", &steps),
        &of(&|n| if n < 10.0 { 0.5 * ramp(n) } else { 0.5 - 0.4 * done(n) }),
    );
    assert_near(
        "inverse_sqrt",
        &schedule("inverse_sqrt(peak: 0.5, warmup: 10)", &steps),
        &of(&|n| 0.5 * ramp(n).min((10.0 / n).sqrt())),
    );
    assert_near(
        "cosine without a warm-up",
        &schedule("cosine(peak: 0.5, over: 100)", &[100.0, 1.0]),
        &[0.0, { 0.25 * (1.0 + (PI / 100.0).cos()) }],
    );
}

/// What an initializer fills a weight `[a -> b]` of 50 by 400 with.
fn initialized(init: &str) -> Vec<f64> {
    let text = format!(
        "axis a = 50, b = 400\nlayer Holder[a, b]() {{\n  weight it: [a -> b] = {init}\n  fn call() = it\n}}\nmodel held = Holder[a, b]()\n"
    );
    let mut recipe = Recipe::new(&text, Some("held"));
    let env = recipe.elab.file_env(recipe.file);
    let expr = recipe.expr("held");
    recipe.elab.build_root("held", &env, &expr).unwrap_or_else(|_| panic!("{}", recipe.said()));
    let id = recipe.elab.stored().map(|(id, _)| id).next().expect("one weight");
    let value = recipe.elab.init_stored(id).unwrap_or_else(|_| panic!("{}", recipe.said()));
    let node = recipe.elab.node_of(&value, HERE).expect("a tensor");
    recipe.elab.graph().output_as("it", Role::Value, node);
    run(&recipe.elab.finish(), &[])[0].1.to_f64()
}

/// Mean, standard deviation, least and largest.
fn statistics(data: &[f64]) -> [f64; 4] {
    let mean = data.iter().sum::<f64>() / data.len() as f64;
    let spread = data.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / data.len() as f64;
    let (least, largest) =
        data.iter().fold((f64::MAX, f64::MIN), |(least, largest), x| (least.min(*x), largest.max(*x)));
    [mean, spread.sqrt(), least, largest]
}

#[test]
fn initializers_have_their_mean_and_spread() {
    // 20,000 draws: the mean is within 0.03 standard deviations (4 sigma), the deviation within 3%.
    let cases = [
        ("normal(std: 0.02)", 0.0, 0.02),
        ("normal(mean: 1.0, std: 0.5)", 1.0, 0.5),
        ("uniform(low: -0.1, high: 0.3)", 0.1, 0.4 / 12f64.sqrt()),
        ("he()", 0.0, (2.0 / 50f64).sqrt()),
        ("he(gain: 1.0)", 0.0, (1.0 / 50f64).sqrt()),
        ("xavier()", 0.0, (2.0 / 450f64).sqrt()),
    ];
    for (init, mean, std) in cases {
        let [got_mean, got_std, least, largest] = statistics(&initialized(init));
        assert!((got_mean - mean).abs() < 0.03 * std, "{init}: mean {got_mean}");
        assert!((got_std / std - 1.0).abs() < 0.03, "{init}: std {got_std}, expected {std}");
        if init.starts_with("xavier") {
            let bound = (6.0 / 450f64).sqrt() + 1e-6;
            assert!(-bound <= least && largest <= bound, "{init}: {least}..{largest}");
        }
    }
    assert_eq!(initialized("zeros()"), vec![0.0; 20_000]);
    assert_eq!(initialized("ones()"), vec![1.0; 20_000]);
}

/// `dropout(x, 25%)` of 40,000 ones.
fn dropped(trained: bool) -> Vec<f64> {
    let text = "axis a = 40_000\nmodel it = Dropout(25%)\nmodel result = it(ones[a]())\n";
    let mut recipe = Recipe::new(text, trained.then_some("it"));
    let value = recipe.value("result");
    recipe.elab.output("result", &value, HERE).expect("a tensor");
    run(&recipe.elab.finish(), &[])[0].1.to_f64()
}

#[test]
fn dropout_drops_its_share_while_training_and_nothing_after() {
    assert!(dropped(false).iter().all(|x| *x == 1.0));
    let kept = dropped(true);
    let zeros = kept.iter().filter(|x| **x == 0.0).count() as f64 / kept.len() as f64;
    assert!((zeros - 0.25).abs() < 0.01, "{zeros} of them are 0");
    assert!(kept.iter().all(|x| *x == 0.0 || (x - 4.0 / 3.0).abs() < 1e-6));
}

/// What a function of `std.augment` makes of 300 rows of `1, 2, …, 12`, three of them side by side.
fn changed(call: &str, trained: bool) -> Vec<Vec<f64>> {
    let text = format!(
        "use std.augment\naxis row = 300, a = 12, b = 3\nlayer Change[a, b]() {{ fn call(x: [.., a, b]) -> [.., a, b] = {call} }}\n\
         model it = Change[a, b]()\nmodel result = it(float(index[a] + 1) + zeros[a, b, row]())\n"
    );
    let mut recipe = Recipe::new(&text, trained.then_some("it"));
    let value = recipe.value("result");
    recipe.elab.output("result", &value, HERE).expect("a tensor");
    let all = run(&recipe.elab.finish(), &[])[0].1.to_f64();
    let row = |b: usize, row: usize| (0..12).map(|a| all[(a * 3 + b) * 300 + row]).collect::<Vec<f64>>();
    for n in 0..300 {
        assert_eq!(row(0, n), row(1, n), "{call}: what is side by side changes together");
        assert_eq!(row(0, n), row(2, n), "{call}");
    }
    (0..300).map(|n| row(0, n)).collect()
}

#[test]
fn examples_are_changed_while_training_and_stay_what_they_are() {
    let plain: Vec<f64> = (1..=12).map(f64::from).collect();
    for call in ["jitter[a, b](x, 2)", "flip[a, b](x)", "blank[a, b](x, 4)"] {
        assert!(changed(call, false).iter().all(|row| *row == plain), "{call}");
    }
    let moved = changed("jitter[a, b](x, 2)", true);
    for by in -2..=2 {
        let want: Vec<f64> =
            (1..=12).map(|i| i + by).map(|i| if (1..=12).contains(&i) { f64::from(i) } else { 0.0 }).collect();
        let n = moved.iter().filter(|row| **row == want).count();
        assert!((30..=90).contains(&n), "moved by {by}: {n} of 300");
    }
    let back: Vec<f64> = plain.iter().rev().copied().collect();
    let flipped = changed("flip[a, b](x)", true);
    let n = flipped.iter().filter(|row| **row == back).count();
    assert!((110..=190).contains(&n) && flipped.iter().all(|row| *row == back || *row == plain), "{n} of 300");
    let mut longest = 0;
    for row in changed("blank[a, b](x, 4)", true) {
        let gone: Vec<usize> = (0..12).filter(|&i| row[i] == 0.0).collect();
        assert!(gone.windows(2).all(|pair| pair[0] + 1 == pair[1]), "one run: {row:?}");
        assert!((0..12).all(|i| row[i] == 0.0 || row[i] == plain[i]), "{row:?}");
        longest = longest.max(gone.len());
    }
    assert_eq!(longest, 4);
}

/// One number that an expression gives.
fn number(text: &str) -> f64 {
    let mut recipe = Recipe::new(&format!("axis a = 3, b = 2\nmodel result = {text}\n"), None);
    let value = recipe.value("result");
    recipe.elab.output("result", &value, HERE).expect("a tensor");
    run(&recipe.elab.finish(), &[])[0].1.to_f64()[0]
}

#[test]
fn small_functions_have_their_closed_form() {
    // index[a] is 0, 1, 2.
    let cases = [
        ("norm(float(index[a]))", 5f64.sqrt()),
        ("norm[a](float(index[a]))", 5f64.sqrt()),
        ("variance(float(index[a]))", 2.0 / 3.0),
        ("std[a](float(index[a]))", (2f64 / 3.0).sqrt()),
        ("sum(sign(float(index[a] - 1)))", 0.0),
        ("sum(one_hot[a](index[b]))", 2.0),
        ("sum(unit[a](float(index[a])))", 3.0 / 5f64.sqrt()),
        ("max(logaddexp(-inf * ones[a](), -inf))", f64::NEG_INFINITY),
        ("max(logaddexp(log(2.0) * ones[a](), log(3.0), log(4.0)))", 9f64.ln()),
        ("max(logsumexp[a](-inf * ones[a]()))", f64::NEG_INFINITY),
        ("sum(softmax[a](-inf * ones[a]()))", 0.0),
        ("max(softmax[a](1000.0 * float(index[a])))", 1.0),
        ("sum(mse(ones[a](), float(index[a])))", 2.0),
        ("max(binary_cross_entropy(ones[a](), true))", (1.0 + (-1f64).exp()).ln()),
        ("max(binary_cross_entropy(ones[a](), false))", (1.0 + 1f64.exp()).ln()),
    ];
    for (text, expected) in cases {
        assert_near(text, &[number(text)], &[expected]);
    }
}
