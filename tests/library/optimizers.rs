//! Each optimizer, five steps of given gradients on a weight with an arrow and on one without.

use mdl_graph::{InputKind, Role};

use super::*;

#[test]
fn optimizers_are_those_of_pytorch() {
    let bytes = read("optimizers.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let cases = json("optimizers.json");
    assert!(cases.len() >= 6, "only {} cases", cases.len());
    for (name, text) in &cases {
        for weight in ["w", "b"] {
            agrees(name, text.as_str().expect("an expression"), weight, &file);
        }
    }
}

fn agrees(name: &str, optimizer: &str, weight: &str, file: &SafeTensors<'_>) {
    let declared = if weight == "w" { "[rows -> columns]" } else { "[columns]" };
    let text = format!(
        "axis rows = 3, columns = 4\nlayer Holder[rows, columns]() {{\n  weight it: {declared} = zeros()\n  fn call() = it\n}}\n\
         model held = Holder[rows, columns]()\nmodel made = {optimizer}\n"
    );
    let mut recipe = Recipe::new(&text, Some("held"));
    let env = recipe.elab.file_env(recipe.file);
    let expr = recipe.expr("held");
    recipe.elab.build_root("held", &env, &expr).unwrap_or_else(|_| panic!("{name}: {}", recipe.said()));
    let Value::Optimizer(made) = recipe.value("made") else { panic!("{optimizer} is no optimizer") };
    let (id, axes) = recipe.elab.stored().map(|(id, stored)| (id, stored.axes.clone())).next().expect("one weight");
    // Muon is for maps alone.
    if !recipe.elab.optimizer_takes(&made, id) {
        assert_eq!(weight, "b", "{name}");
        return;
    }
    let ty = recipe.elab.stored_type(id);

    let w = recipe.elab.stored_value(id);
    let g = recipe.elab.input("g", InputKind::Batch, ty.clone());
    let n = recipe.elab.input("n", InputKind::Scalar, Type::new(DType::F32, AxisSet::default()));
    let states = recipe.elab.optimizer_states(&made, id, &[]).unwrap_or_else(|_| panic!("{name}: {}", recipe.said()));
    let mut inputs = vec![(
        "it".to_owned(),
        Tensor::float(ty.clone(), sorted(&axes, &recorded(file, &format!("{name}/{weight}")).1)),
    )];
    let mut slots = Vec::new();
    for state in &states {
        slots.push(recipe.elab.input(&state.name, InputKind::State, state.ty()));
        // All of the library's begin at 0.
        inputs.push((state.name.clone(), Tensor::filled(state.ty(), Scalar::Float(0.0))));
    }
    let step = recipe.elab.optimizer_step(&made, id, &[], [&w, &g, &n], &slots, HERE);
    let (next, kept) = step.unwrap_or_else(|_| panic!("{name}: {}", recipe.said()));
    for (key, value) in std::iter::once("it")
        .chain(states.iter().map(|state| state.name.as_str()))
        .zip(std::iter::once(&next).chain(&kept))
    {
        let node = recipe.elab.node_of(value, HERE).expect("a tensor");
        recipe.elab.graph().output_as(key, Role::Value, node);
    }
    let graph = recipe.elab.finish();

    let (shape, gradients, _) = recorded(file, &format!("{name}/g.{weight}"));
    let (_, expected, _) = recorded(file, &format!("{name}/next.{weight}"));
    let count = ty.count() as usize;
    for step in 0..shape[0] as usize {
        let mine = step * count..(step + 1) * count;
        let mut given = inputs.clone();
        given.push(("g".to_owned(), Tensor::float(ty.clone(), sorted(&axes, &gradients[mine.clone()]))));
        given.push((
            "n".to_owned(),
            Tensor::filled(Type::new(DType::F32, AxisSet::default()), Scalar::Float((step + 1) as f64)),
        ));
        inputs = run(&graph, &given);
        assert_near(
            &format!("{optimizer}, {weight}, step {}", step + 1),
            &inputs[0].1.to_f64(),
            &sorted(&axes, &expected[mine]),
        );
    }
}
