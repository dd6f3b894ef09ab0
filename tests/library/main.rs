//! The library in `stdlib/` against outside witnesses: each layer, forward and backward, and each optimizer as PyTorch has them (recorded
//! by `tests/scripts/{layers,optimizers}.py`), the functions that have a closed form as Rust has it, and the documents that show recipes.
//!
//! Everything is evaluated by the reference interpreter in f64, so what is compared here is what the `.mdl` text says.

mod blocks;
mod decoders;
mod derived;
mod documents;
mod functions;
mod layers;
mod optimizers;
mod programs;

use std::path::{Path, PathBuf};

use mdl_compiler::reference::{self, Tensor};
use mdl_graph::{Axis, AxisSet, DType, Graph, Scalar, Type};
use mdl_lang::check::{Elaborator, NoWorld, Value};
use mdl_lang::diag::{Sources, render};
use mdl_lang::syntax::ast::{Expr, FileId, ItemKind, Span};
use safetensors::{Dtype, SafeTensors};

/// Where what a test adds to a recipe's graph is said to stand.
const HERE: Span = Span { file: FileId(0), start: 0, end: 0 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixtures().join(name)).unwrap_or_else(|error| panic!("tests/fixtures/{name}: {error}"))
}

fn json(name: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_slice(&read(name)).unwrap_or_else(|error| panic!("tests/fixtures/{name}: {error}"))
}

/// A recipe without stages, ready for evaluation. Items `model name = expr` are the expressions that a test evaluates.
struct Recipe {
    elab: Elaborator<'static>,
    file: usize,
}

impl Recipe {
    /// `trained` is the model inside of which `training` is true.
    fn new(text: &str, trained: Option<&str>) -> Recipe {
        let mut sources = Sources::new();
        let id = sources.add("library.mdl", text);
        let mut elab = Elaborator::new(sources, &NoWorld);
        let file = elab.load_root(id);
        elab.set_trained(trained);
        elab.begin();
        Recipe { elab, file }
    }

    fn expr(&self, name: &str) -> Expr {
        let ast = self.elab.file_ast(self.file);
        let found = ast.items.iter().find_map(|item| match &item.kind {
            ItemKind::Model { name: known, value } if known.text == name => Some(value.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("the recipe has no `{name}`:\n{}", self.said()))
    }

    fn value(&mut self, name: &str) -> Value {
        let expr = self.expr(name);
        let env = self.elab.file_env(self.file);
        self.elab.eval(&env, &expr).unwrap_or_else(|_| panic!("{}", self.said()))
    }

    /// What the checker has to say, for messages of tests.
    fn said(&self) -> String {
        render(&self.elab.diagnostics, &self.elab.sources)
    }
}

fn type_of(dtype: DType, axes: &[Axis]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().cloned()).unwrap_or_else(|| panic!("an axis twice in {axes:?}")))
}

/// Elements that are stored in the order of `axes`, in the order of sorted names: that of `reference::Tensor`.
fn sorted(axes: &[Axis], data: &[f64]) -> Vec<f64> {
    let sizes: Vec<usize> = axes.iter().map(|axis| axis.size as usize).collect();
    let stride = |at: usize| sizes[at + 1..].iter().product::<usize>();
    let mut order: Vec<usize> = (0..axes.len()).collect();
    order.sort_by(|a, b| axes[*a].name.cmp(&axes[*b].name));
    (0..data.len())
        .map(|place| {
            let mut rest = place;
            let from = order.iter().rev().map(|&at| {
                let index = rest % sizes[at];
                rest /= sizes[at];
                index * stride(at)
            });
            data[from.sum::<usize>()]
        })
        .collect()
}

/// A recorded tensor: its shape, its elements, and whether they are integers.
fn recorded(file: &SafeTensors<'_>, name: &str) -> (Vec<u64>, Vec<f64>, bool) {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let shape = tensor.shape().iter().map(|size| *size as u64).collect();
    let whole = |bytes: &[u8]| f64::from(i32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let float = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    match tensor.dtype() {
        Dtype::I32 => (shape, tensor.data().chunks_exact(4).map(whole).collect(), true),
        Dtype::F64 => (shape, tensor.data().chunks_exact(8).map(float).collect(), false),
        other => panic!("{name} is recorded as {other:?}"),
    }
}

/// The outputs of a graph by name; inputs that are not given (`seed`, `step`) are 0.
fn run(graph: &Graph, inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let given: Vec<Tensor> = graph
        .inputs()
        .iter()
        .map(|input| match inputs.iter().find(|(name, _)| name == input.name.as_str()) {
            Some((_, tensor)) => tensor.clone(),
            None => Tensor::filled(input.ty.clone(), Scalar::Int(0)),
        })
        .collect();
    let results = reference::eval(graph, &given).unwrap_or_else(|error| panic!("{error}\n{graph}"));
    graph.outputs().iter().map(|output| output.name.to_string()).zip(results).collect()
}

/// Constants of a recipe are f32 (2e-8 off at worst), and so is a sum of many of them; everything else is exact to 1e-12.
const TOLERANCE: f64 = 1e-6;

fn assert_near(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}: the number of elements");
    for (at, (a, b)) in got.iter().zip(expected).enumerate() {
        // Equal first: both may be infinite.
        assert!(a == b || (a - b).abs() <= TOLERANCE * (1.0 + b.abs()), "{what}, element {at}: {a}, expected {b}");
    }
}
