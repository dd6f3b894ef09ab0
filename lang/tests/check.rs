//! The checker on small texts: golden cases, and every hard program of the design with small sizes.

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Type};
use mdl_lang::check::{Args, Elaborator, NoWorld, StoredKind, Value};
use mdl_lang::diag::{Sources, render};
use mdl_lang::syntax::ast::{ItemKind, Span};

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).expect("no name twice"))
}

/// `model m = …` called with inputs: the graph, or the diagnostics as text.
fn elaborate(text: &str, model: &str, inputs: &[(&str, Type)]) -> Result<Graph, String> {
    let mut sources = Sources::new();
    let id = sources.add("test.mdl", text);
    let world = NoWorld;
    let mut elab = Elaborator::new(sources, &world);
    let root = elab.load_root(id);
    elab.set_trained([model]);
    let env = elab.file_env(root);
    let ast = elab.file_ast(root);
    let expr = ast.items.iter().find_map(|item| match &item.kind {
        ItemKind::Model { name, value } if name.text == model => Some(value.clone()),
        _ => None,
    });
    let expr = expr.expect("the model is there");
    let result = elab.build_root(model, &env, &expr).and_then(|value| {
        elab.begin();
        let args: Vec<(Value, Span)> =
            inputs.iter().map(|(name, ty)| (elab.input(name, InputKind::Batch, ty.clone()), expr.span)).collect();
        let result = elab.call(&value, Args::of(args), expr.span)?;
        for (i, (name, loss)) in elab.take_losses()?.into_iter().enumerate() {
            elab.output(&format!("loss {i} {name}"), &loss, expr.span)?;
        }
        elab.output("y", &result, expr.span)
    });
    if result.is_err() || elab.diagnostics.iter().any(|diagnostic| diagnostic.is_error()) {
        return Err(render(&elab.diagnostics, &elab.sources));
    }
    assert!(elab.stored().all(|(_, stored)| stored.kind == StoredKind::State || !stored.path.is_empty()));
    Ok(elab.finish())
}

#[test]
fn a_gpt_is_elaborated() {
    let text = "
use std.models.Gpt
axis t = 8, width = 12
model gpt = Gpt[vocab: 5, context: t, width](heads: 3, layers: 4, drop: 0.1)
";
    let graph = elaborate(text, "gpt", &[("ids", ty(DType::I32, &[("batch", 2), ("t", 8)]))]).unwrap_or_else(|text| panic!("{text}"));
    println!("{graph}");
    let y = graph.output("y").expect("an output");
    assert_eq!(graph.ty(y.node), &ty(DType::F32, &[("batch", 2), ("t", 8), ("vocab", 5)]));
}
