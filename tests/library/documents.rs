//! What the documents show works: the README's recipe, and the tutorial's pieces put together, check without a complaint; and the
//! page of the library shows what the library says.

use mdl_lang::check::{Imported, Problem, World};
use mdl_lang::spec::{DataFacts, DataSpec, Field, Form};

use super::*;

/// A text of 65 characters, without a file.
struct Library;

impl World for Library {
    fn import(&self, _: &str, path: &str) -> Result<Imported, String> {
        Err(format!("there is no file `{path}` here"))
    }

    fn data_facts(&self, spec: &DataSpec) -> Result<DataFacts, Vec<Problem>> {
        let Form::Window { axis } = &spec.form else { panic!("the documents show windows") };
        let field = |name: &str, dtype| Field { name: name.to_owned(), dtype, axes: vec![axis.clone()] };
        let fields = vec![field("ids", DType::I32), field("next", DType::I32), field("mask", DType::Bool)];
        let rows = spec.split.parts.iter().map(|part| (part.name.clone(), 100)).collect();
        Ok(DataFacts { vocab: 65, classes: 0, fields, rows, hash: String::new() })
    }
}

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pieces of `.mdl` in a document.
fn recipes(text: &str) -> Vec<&str> {
    text.split("```mdl\n").skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

fn checks(recipe: &str, stages: usize) {
    let mut sources = Sources::new();
    let main = sources.add("document.mdl", recipe);
    let (program, diagnostics) = mdl_lang::stage::check(&mut sources, main, &[], &Library);
    assert!(diagnostics.is_empty(), "{}", render(&diagnostics, &sources));
    assert_eq!(program.stages.len(), stages, "{recipe}");
}

#[test]
fn the_readme_opens_with_a_recipe_that_checks() {
    let text = document("README.md");
    let found = recipes(&text);
    assert_eq!(found.len(), 1);
    checks(found[0], 3);
}

#[test]
fn the_tutorial_adds_up_to_a_recipe_that_checks() {
    let text = document("docs/tutorial.md");
    let found = recipes(&text);
    assert!(found.len() >= 6, "{} pieces", found.len());
    let whole = found.join("\n");
    checks(&whole, 2);
    let own =
        whole.replace("model     = gpt", "model = small").replace("objective = next_token", "objective = careful");
    assert_ne!(own, whole, "the last two sections change the training");
    checks(&own, 2);
}

#[test]
fn the_page_of_the_library_has_every_item() {
    let page = document("docs/stdlib.md");
    let mut sources = Sources::new();
    // The prelude has all but the models; each `use` brings a file of those.
    let models = ["Gpt", "Llama", "LstmModel", "ConvNet"].map(|model| format!("use std.models.{model}\n")).concat();
    let id = sources.add("models.mdl", models);
    let mut elab = Elaborator::new(sources, &NoWorld);
    elab.load_root(id);
    let mut n_items = 0;
    for (_, source) in elab.sources.iter().filter(|(_, source)| source.name.starts_with("std/")) {
        for line in source.text.lines() {
            let Some(name) = ["fn ", "layer ", "optimizer "].iter().find_map(|word| line.strip_prefix(word)) else {
                continue;
            };
            let name = name.split(['[', '(']).next().unwrap_or(name);
            n_items += 1;
            let shown = ["fn", "layer", "optimizer"].iter().any(|word| {
                page.lines().any(|line| {
                    line.starts_with(&format!("{word} {name}[")) || line.starts_with(&format!("{word} {name}("))
                })
            });
            assert!(shown, "docs/stdlib.md lacks `{name}` of {}: run tests/scripts/manual.py", source.name);
        }
    }
    assert!(n_items > 40, "only {n_items} items");
}
