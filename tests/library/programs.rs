//! The hard programs of the design, numerically: values and slopes as PyTorch and plain loops have them (`tests/scripts/programs.py`).

use mdl_compiler::grad::differentiate;
use mdl_compiler::reference::Data;
use mdl_graph::{InputKind, Op, Role};
use mdl_lang::check::{Args, Eval, StoredId};
use mdl_lang::syntax::ast::ExprKind;
use serde_json::Value as Json;

use super::*;

/// As the script has it: numbers in `[-scale/2, scale/2)`, by name and place.
fn fill(name: &str, count: usize, scale: f64) -> Vec<f64> {
    let phase = f64::from(name.bytes().map(u32::from).sum::<u32>() % 97);
    let at = |i: usize| ((i as f64 + 1.0) * 12.9898 + phase * 78.233).sin() * 43758.5453;
    (0..count).map(|i| scale * (at(i) - at(i).floor() - 0.5)).collect()
}

fn dot(name: &str, data: &[f64]) -> f64 {
    data.iter().zip(fill(name, data.len(), 1.0)).map(|(a, b)| a * b).sum()
}

/// Elements in the order of sorted names, in that of `axes`: the way back from `sorted`.
fn stored(axes: &[Axis], data: &[f64]) -> Vec<f64> {
    let places: Vec<f64> = (0..data.len()).map(|place| place as f64).collect();
    let mut out = vec![0.0; data.len()];
    for (value, place) in data.iter().zip(sorted(axes, &places)) {
        out[place as usize] = *value;
    }
    out
}

/// The graph with its uniform draws, in the order in which the program makes them, as inputs, and what the script takes for them.
fn with_given_draws(graph: &Graph) -> (Graph, Vec<(String, Tensor)>) {
    let mut draws = Vec::new();
    let graph = graph.rebuild(|to, id, args| match graph.op(id) {
        Op::Uniform { .. } => {
            let (name, ty) = (format!("draw {}", draws.len()), graph.ty(id).clone());
            let data = fill(&name, ty.count() as usize, 1.0).into_iter().map(|x| x + 0.5).collect();
            draws.push((name.clone(), Tensor::float(ty.clone(), data)));
            to.input(name, InputKind::Batch, ty)
        }
        _ => to.copy(graph, id, args),
    });
    (graph, draws)
}

fn near(what: &str, got: f64, expected: &Json) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what}: no number is recorded"));
    assert!((got - expected).abs() <= 2e-6 * (1.0 + expected.abs()), "{what}: {got}, expected {expected}");
}

struct Program {
    recipe: Recipe,
}

impl Program {
    fn new(program: u64, text: &str) -> Program {
        let path = format!("{}/../lang/tests/golden/check/programs_{program}.mdl", env!("CARGO_MANIFEST_DIR"));
        let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let shared = file.split("// case: ").next().expect("the programs come first");
        Program { recipe: Recipe::new(&format!("{text}\n{shared}"), None) }
    }

    fn eval(&mut self, name: &str) -> Value {
        let env = self.recipe.elab.file_env(self.recipe.file);
        let expr = Expr { kind: ExprKind::Name(name.to_owned()), span: HERE };
        let value = self.recipe.elab.eval(&env, &expr);
        self.sure(value)
    }

    fn sure<T>(&self, value: Eval<T>) -> T {
        value.unwrap_or_else(|_| panic!("{}", self.recipe.said()))
    }

    /// All weights and states with their first axes in declared order, and the name that the script has for them.
    fn stored(&self) -> Vec<(StoredId, String, Vec<Axis>)> {
        let all = self.recipe.elab.stored();
        all.map(|(id, stored)| {
            let axes = stored.stack.iter().chain(&stored.axes).cloned().collect();
            (id, format!("{}:{}", stored.root, stored.path), axes)
        })
        .collect()
    }
}

/// The tensors of a result: `y`, `y.0`, `y.loss`.
fn outputs(name: &str, value: &Value, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Tuple(items) | Value::List(items) => {
            items.iter().enumerate().for_each(|(i, item)| outputs(&format!("{name}.{i}"), item, out));
        }
        Value::Record(fields) => fields.iter().for_each(|(key, item)| outputs(&format!("{name}.{key}"), item, out)),
        value => out.push((name.to_owned(), value.clone())),
    }
}

#[test]
fn programs_say_what_pytorch_says() {
    let recorded = json("programs.json");
    let cases = recorded["cases"].as_object().expect("cases");
    assert!(cases.len() >= 27, "only {} cases", cases.len());
    for (name, case) in cases {
        agrees(name, case);
    }
}

fn agrees(name: &str, case: &Json) {
    let text = |key: &str| case[key].as_str().unwrap_or_else(|| panic!("{name}: {key}"));
    let mut program = Program::new(case["program"].as_u64().expect("a number"), text("text"));
    if case["training"].as_bool() == Some(true) {
        program.recipe.elab.set_trained(["m"]);
    }
    let callee = program.eval(text("callee"));
    let (mut args, mut batch, mut given) = (Vec::new(), Vec::new(), Vec::new());
    for (key, input) in case["inputs"].as_object().expect("inputs") {
        let list = |of: &str| input[of].as_array().cloned().unwrap_or_default();
        let sizes: Vec<u64> = list("shape").iter().filter_map(Json::as_u64).collect();
        let names = list("axes");
        let axes: Vec<Axis> =
            names.iter().zip(&sizes).map(|(name, size)| Axis::new(name.as_str().expect("a name"), *size)).collect();
        let dtype = DType::from_name(input["dtype"].as_str().expect("a dtype")).expect("a dtype");
        let ty = type_of(dtype, &axes);
        let count = ty.count() as usize;
        let data = match input.get("data") {
            Some(_) => list("data").iter().filter_map(Json::as_f64).collect(),
            None => fill(&format!("in {key}"), count, 2.0),
        };
        let data = sorted(&axes, &data);
        given.push((
            key.clone(),
            match dtype {
                DType::Bool => Tensor::bool(ty.clone(), data.iter().map(|x| *x != 0.0).collect()),
                DType::I32 => Tensor::int(ty.clone(), data.iter().map(|x| *x as i64).collect()),
                _ => Tensor::float(ty.clone(), data),
            },
        ));
        let value = program.recipe.elab.input(key, InputKind::Batch, ty);
        match key.strip_prefix("batch.") {
            Some(field) => batch.push((field.to_owned(), value)),
            None => args.push((value, HERE)),
        }
    }
    if !batch.is_empty() {
        let model = program.eval("m");
        args.extend([(model, HERE), (Value::record(batch), HERE)]);
    }
    let result = program.recipe.elab.call(&callee, Args::of(args), HERE);
    let result = program.sure(result);
    let mut found = Vec::new();
    outputs("y", &result, &mut found);
    let losses = program.recipe.elab.take_losses();
    found.extend(program.sure(losses).into_iter().map(|(loss, value)| (format!("loss {loss}"), value)));
    for (_, value) in program.recipe.elab.take_next() {
        // What is remembered is not compared.
        drop(value);
    }

    let weights = program.stored();
    let results = case["results"].as_object().expect("results");
    assert_eq!(found.len(), results.len(), "{name}: {:?}", found.iter().map(|(key, _)| key).collect::<Vec<_>>());
    let mut total = None;
    let mut by_name = Vec::new();
    for (key, value) in &found {
        let record = &results.get(key).unwrap_or_else(|| panic!("{name}: `{key}` is not recorded"))["axes"];
        let node = program.recipe.elab.node_of(value, HERE);
        let node = program.sure(node);
        let graph = program.recipe.elab.graph();
        let ty = graph.ty(node).clone();
        let axes: Vec<Axis> = match record.as_array() {
            Some(names) => {
                let named = names.iter().map(|axis| ty.axes.get(&axis.as_str().expect("a name").into()).cloned());
                named.map(|axis| axis.unwrap_or_else(|| panic!("{name}: `{key}` is {ty}"))).collect()
            }
            None => {
                let path = format!("m:{}", key.strip_prefix("y.").expect("a record"));
                weights.iter().find(|(_, known, _)| *known == path).expect("a weight").2.clone()
            }
        };
        assert_eq!(ty.axes.len(), axes.len(), "{name}: `{key}` is {ty}");
        // The sum of the first products is what is differentiated.
        let weighed = graph.input(format!("weigh {key}"), InputKind::Batch, Type::new(DType::F32, ty.axes.clone()));
        let data = sorted(&axes, &fill(&format!("dot {key} 0"), ty.count() as usize, 1.0));
        given.push((format!("weigh {key}"), Tensor::float(Type::new(DType::F32, ty.axes.clone()), data)));
        let float = graph.cast(node, DType::F32);
        let product = graph.add(Op::Mul, &[float, weighed]);
        let sum = graph.sum(product, axes.iter().map(|axis| axis.name.clone()));
        total = Some(match total {
            Some(total) => graph.add(Op::Add, &[total, sum]),
            None => sum,
        });
        graph.output_as(key.as_str(), Role::Value, node);
        by_name.push((key.clone(), axes));
    }

    let slopes = case["slopes"].as_object().expect("slopes");
    let total = total.expect("a result");
    let mut wanted = Vec::new();
    for (id, key, axes) in &weights {
        let (input, ty) = (program.recipe.elab.stored_name(*id), program.recipe.elab.stored_type(*id));
        let value = program.recipe.elab.stored_value(*id);
        let node = program.recipe.elab.node_of(&value, HERE);
        let node = program.sure(node);
        let data = match key.rsplit(['.', ':']).next() {
            // What BatchNorm begins with.
            Some("center") => vec![0.0; ty.count() as usize],
            Some("spread") => vec![1.0; ty.count() as usize],
            _ => fill(key, ty.count() as usize, 0.8),
        };
        given.push((input, Tensor::float(ty, sorted(axes, &data))));
        if slopes.contains_key(key) {
            wanted.push((key.clone(), node, axes.clone()));
        }
    }
    assert_eq!(wanted.len(), slopes.len(), "{name}: every weight of the script is one of the program");
    let graph = program.recipe.elab.graph();
    if !wanted.is_empty() {
        let args: Vec<_> = std::iter::once(total).chain(wanted.iter().map(|(_, node, _)| *node)).collect();
        let grads = graph.add(Op::Grad, &args);
        for (k, (key, ..)) in wanted.iter().enumerate() {
            let grad = graph.add(Op::Get(k as u32), &[grads]);
            graph.output_as(format!("slope {key}"), Role::Value, grad);
        }
    }
    let (graph, draws) = with_given_draws(&program.recipe.elab.finish());
    given.extend(draws);
    let graph = differentiate(&graph);
    for (key, tensor) in run(&graph, &given) {
        let data = match &tensor.data {
            Data::Float(data) => data.clone(),
            Data::Int(data) => data.iter().map(|x| *x as f64).collect(),
            Data::Bool(data) => data.iter().map(|x| f64::from(u8::from(*x))).collect(),
        };
        if let Some((known, axes)) = by_name.iter().find(|(known, _)| *known == key) {
            let data = stored(axes, &data);
            for k in 0..3 {
                near(
                    &format!("{name}, {known}, product {k}"),
                    dot(&format!("dot {known} {k}"), &data),
                    &results[known]["dots"][k],
                );
            }
        } else if let Some((known, _, axes)) = wanted.iter().find(|(known, ..)| key == format!("slope {known}")) {
            near(&format!("{name}, {key}"), dot(&format!("slope {known}"), &stored(axes, &data)), &slopes[known]);
        }
    }
}

/// Four steps of given gradients on two copies of a weight: each copy is a matrix of its own.
#[test]
fn optimizers_say_what_plain_formulas_say() {
    let recorded = json("programs.json");
    let cases = recorded["optimizers"].as_object().expect("optimizers");
    assert_eq!(cases.len(), 4);
    for (text, expected) in cases {
        let model = format!(
            "layer Holder[a, b, c]() {{\n  weight w: [a, b -> c] = zeros()\n  fn call(x: [..]) -> [..] = x\n}}\n\
             layer Stack[a, b, c]() {{\n  axis layer = 2\n  body = repeat[layer] Holder[a, b, c]()\n}}\n\
             model m = Stack[a: 2, b: 3, c: 4]()\nmodel made = {text}\n"
        );
        let mut program = Program::new(4, &model);
        program.recipe.elab.set_trained(["m"]);
        program.eval("m");
        let Value::Optimizer(made) = program.eval("made") else { panic!("{text} is no optimizer") };
        let (id, _, axes) = program.stored().into_iter().next().expect("one weight");
        let stack = vec![Axis::new("layer", 2)];
        let elab = &mut program.recipe.elab;
        let ty = elab.stored_type(id);
        let scalar = Type::new(DType::F32, AxisSet::default());

        let w = elab.stored_value(id);
        let first = elab.init_optimizer_states(&made, id, &stack, &w, HERE).unwrap_or_else(|_| panic!("{text}"));
        let states = elab.optimizer_states(&made, id, &stack).unwrap_or_else(|_| panic!("{text}"));
        for (state, value) in states.iter().zip(&first) {
            let node = elab.node_of(value, HERE).expect("a tensor");
            elab.graph().output_as(state.name.as_str(), Role::Value, node);
        }
        let mut kept = vec![("body.w".to_owned(), Tensor::float(ty.clone(), sorted(&axes, &fill("w", 48, 0.8))))];
        let init = elab.finish();
        kept.extend(run(&init, &kept));

        let w = elab.stored_value(id);
        let g = elab.input("g", InputKind::Batch, ty.clone());
        let n = elab.input("n", InputKind::Scalar, scalar.clone());
        let slots: Vec<Value> =
            states.iter().map(|state| elab.input(&state.name, InputKind::State, state.ty())).collect();
        let step = elab.optimizer_step(&made, id, &stack, [&w, &g, &n], &slots, HERE);
        let (next, slots) = program.sure(step);
        let elab = &mut program.recipe.elab;
        let names = std::iter::once("body.w").chain(states.iter().map(|state| state.name.as_str()));
        for (name, value) in names.zip(std::iter::once(&next).chain(&slots)) {
            let node = elab.node_of(value, HERE).expect("a tensor");
            elab.graph().output_as(name, Role::Value, node);
        }
        let graph = elab.finish();
        for step in 1..=4 {
            let gradient = sorted(&axes, &fill(&format!("g {step}"), 48, 1.0));
            kept.push(("g".to_owned(), Tensor::float(ty.clone(), gradient)));
            kept.push(("n".to_owned(), Tensor::filled(scalar.clone(), Scalar::Float(f64::from(step)))));
            kept = run(&graph, &kept);
        }
        for (key, dots) in expected.as_object().expect("dots") {
            let name = if key == "w" { "body.w" } else { key.as_str() };
            let (_, tensor) = kept.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{text}: {key}"));
            let data = stored(&axes, &tensor.to_f64());
            for k in 0..3 {
                near(&format!("{text}, {key}, product {k}"), dot(&format!("dot {k}"), &data), &dots[k]);
            }
        }
    }
}
