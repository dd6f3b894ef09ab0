//! The checker on small texts: golden cases, the hard programs of the design with small sizes, the examples of error pages.
//!
//! A case is a piece of a recipe and what to do with it. `// call: m(x: f32[batch: 2, t: 3])` calls an item on inputs and
//! shows the graph, `// types: m(…)` only the types of what comes out; `// train` says that the model trains.
//! Without either, all models are built and their weights are listed.

use std::fmt::Write;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Type};
use mdl_lang::check::{Args, Elaborator, Eval, NoWorld, Stop, Value};
use mdl_lang::diag::{Code, Sources, render};
use mdl_lang::syntax::ast::{Expr, ExprKind, ItemKind, Span};

/// `f32[batch: 2, t: 3]`
fn read_type(text: &str) -> Type {
    let (dtype, axes) = text.trim().trim_end_matches(']').split_once('[').expect("a type has brackets");
    let axes = axes.split(',').filter(|part| !part.trim().is_empty()).map(|part| {
        let (name, size) = part.split_once(':').expect("an axis has a size");
        Axis::new(name.trim(), size.trim().parse::<u64>().expect("a size is a number"))
    });
    Type::new(DType::from_name(dtype.trim()).expect("a dtype"), AxisSet::of(axes).expect("no name twice"))
}

/// `m(x: f32[t: 3], ids: i32[t: 3])`: the item and its inputs; a field of a record is `batch.ids: …`.
fn read_call(text: &str) -> (String, Vec<(String, Type)>) {
    let (name, rest) = text.trim().split_once('(').expect("a call has parentheses");
    let mut inputs = Vec::new();
    for part in rest.trim_end_matches(')').split_inclusive(']') {
        let part = part.trim().trim_start_matches(',').trim();
        if let Some((input, ty)) = part.split_once(':') {
            inputs.push((input.trim().to_string(), read_type(ty)));
        }
    }
    (name.trim().to_string(), inputs)
}

struct Case {
    elab: Elaborator<'static>,
    root: usize,
}

impl Case {
    fn new(text: &str) -> Case {
        let mut sources = Sources::new();
        let id = sources.add("test.mdl", text);
        let mut elab = Elaborator::new(sources, &NoWorld);
        let root = elab.load_root(id);
        Case { elab, root }
    }

    fn directive<'t>(text: &'t str, word: &str) -> Option<&'t str> {
        text.lines().find_map(|line| line.strip_prefix("// ")?.strip_prefix(word))
    }

    fn run(&mut self, text: &str) -> Eval<String> {
        let is_trained = Case::directive(text, "train").is_some();
        let roots: Vec<String> = self.models();
        self.elab.set_training(is_trained);
        self.elab.set_trained(roots.iter().map(String::as_str).filter(|_| is_trained));
        let calls = Case::directive(text, "call:").or(Case::directive(text, "types:"));
        let Some(call) = calls else { return self.build_all() };
        let (name, inputs) = read_call(call);
        let env = self.elab.file_env(self.root);
        let span = Span::default();
        let callee = self.elab.eval(&env, &Expr { kind: ExprKind::Name(name), span })?;
        self.elab.begin();
        let mut args: Vec<(Value, Span)> = Vec::new();
        let mut records: Vec<(String, Vec<(String, Value)>)> = Vec::new();
        for (input, ty) in inputs {
            let value = self.elab.input(&input, InputKind::Batch, ty);
            match input.split_once('.') {
                None if input == "model" => {}
                None => args.push((value, span)),
                Some((record, field)) => match records.iter_mut().find(|(known, _)| known == record) {
                    Some((_, fields)) => fields.push((field.to_string(), value)),
                    None => records.push((record.to_string(), vec![(field.to_string(), value)])),
                },
            }
        }
        // An objective takes the first model and the record.
        if !records.is_empty() {
            let model = self.models().into_iter().next();
            if let Some(model) = model {
                args.push((self.elab.eval(&env, &Expr { kind: ExprKind::Name(model), span })?, span));
            }
        }
        args.extend(records.into_iter().map(|(_, fields)| {
            (Value::record(fields.iter().map(|(name, value)| (name.as_str(), value.clone()))), span)
        }));
        let result = self.elab.call(&callee, Args::of(args), span)?;
        self.outputs("y", &result)?;
        for (name, loss) in self.elab.take_losses()? {
            self.elab.output(&format!("loss {name}"), &loss, span)?;
        }
        for (id, value) in self.elab.take_next() {
            let name = self.elab.stored_name(id);
            self.elab.stored_value(id);
            self.elab.output_next(&name, &value, span)?;
        }
        if self.elab.diagnostics.iter().any(|diagnostic| diagnostic.is_error()) {
            return Err(Stop);
        }
        let graph = self.elab.finish();
        Ok(if Case::directive(text, "types:").is_some() { types(&graph) } else { graph.to_string() })
    }

    fn outputs(&mut self, name: &str, value: &Value) -> Eval<()> {
        match value {
            Value::Tuple(items) | Value::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.outputs(&format!("{name}.{i}"), item)?;
                }
                Ok(())
            }
            Value::Record(fields) => {
                for (field, item) in fields.iter() {
                    self.outputs(&format!("{name}.{field}"), item)?;
                }
                Ok(())
            }
            value => self.elab.output(name, value, Span::default()),
        }
    }

    fn models(&self) -> Vec<String> {
        let ast = self.elab.file_ast(self.root);
        let models = ast.items.iter().filter_map(|item| match &item.kind {
            ItemKind::Model { name, .. } => Some(name.text.clone()),
            _ => None,
        });
        models.collect()
    }

    /// Builds every model and lists its weights, and makes their first values.
    fn build_all(&mut self) -> Eval<String> {
        let env = self.elab.file_env(self.root);
        let mut failed = false;
        for name in self.models() {
            failed |= self.elab.eval(&env, &Expr { kind: ExprKind::Name(name), span: Span::default() }).is_err();
        }
        if failed {
            return Err(Stop);
        }
        self.elab.begin();
        let mut text = String::new();
        let ids: Vec<_> = self.elab.stored().map(|(id, _)| id).collect();
        for id in ids {
            let first = self.elab.init_stored(id)?;
            let ty = self.elab.type_of(&first).expect("a tensor");
            assert_eq!(ty, self.elab.stored_type(id));
            let (_, stored) = self.elab.stored().nth(id.0 as usize).expect("it is there");
            let show = |axes: &[Axis]| axes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                text,
                "{:?} {}/{} [{} | {}]",
                stored.kind,
                stored.root,
                stored.path,
                show(&stored.stack),
                show(&stored.axes)
            );
            self.elab.output(&format!("{}", id.0), &first, Span::default())?;
        }
        let graph = self.elab.finish();
        assert!(graph.outputs().len() == self.elab.stored().count());
        Ok(text)
    }

    fn finish(mut self, text: &str) -> String {
        let result = self.run(text);
        let report = render(&self.elab.diagnostics, &self.elab.sources);
        match result {
            Ok(text) => report + &text,
            Err(Stop) => {
                assert!(!report.is_empty(), "stopped without a diagnostic");
                report
            }
        }
    }
}

fn types(graph: &Graph) -> String {
    let mut text = String::new();
    for output in graph.outputs() {
        let _ = writeln!(text, "{} : {}", output.name, graph.ty(output.node));
    }
    text
}

/// `// case: name` opens each case; what stands before the first is shared by all.
fn cases(source: &str) -> Vec<(String, String)> {
    let mut parts = source.split("// case: ");
    let shared = parts.next().unwrap_or_default();
    parts
        .map(|part| {
            let (name, text) = part.split_once('\n').unwrap_or((part, ""));
            (name.trim().to_string(), format!("{text}\n{shared}"))
        })
        .collect()
}

fn run_cases(source: &str) -> String {
    let mut text = String::new();
    for (name, case) in cases(source) {
        let _ = writeln!(text, "== {name}\n{}", Case::new(&case).finish(&case));
    }
    text
}

#[test]
fn golden() {
    insta::glob!("golden/check/*.mdl", |path| {
        let source = std::fs::read_to_string(path).expect("a readable case");
        insta::with_settings!({ snapshot_path => "golden/check", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("golden", run_cases(&source));
        });
    });
}

/// For the eye: `CHECK_CASES=file cargo test -p mdl-lang --test check -- --nocapture by_hand`.
#[test]
#[expect(clippy::print_stdout, reason = "asked for by hand")]
fn by_hand() {
    if let Ok(path) = std::env::var("CHECK_CASES") {
        println!("{}", run_cases(&std::fs::read_to_string(path).expect("a readable case")));
    }
}

/// The wrong example of each page gives exactly its code, the right one nothing.
#[test]
fn examples_on_error_pages() {
    for &code in Code::ALL.iter().filter(|code| code.text().starts_with("E02") && **code != Code::E0210) {
        let page = code.page();
        let examples = |mark: &str| -> Vec<String> {
            let fence = format!("```mdl {mark}\n");
            page.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).map(str::to_string).collect()
        };
        let (wrong, right) = (examples("wrong"), examples("right"));
        assert!(!wrong.is_empty() && !right.is_empty(), "{code} lacks examples");
        for text in wrong {
            let mut case = Case::new(&text);
            let _ = case.run(&text);
            let report = render(&case.elab.diagnostics, &case.elab.sources);
            let codes: Vec<Code> = case.elab.diagnostics.iter().map(|diagnostic| diagnostic.code).collect();
            assert_eq!(codes, [code], "{text}\n{report}");
        }
        for text in right {
            let mut case = Case::new(&text);
            let result = case.run(&text);
            let report = render(&case.elab.diagnostics, &case.elab.sources);
            assert!(result.is_ok() && case.elab.diagnostics.is_empty(), "{code}: {text}\n{report}");
        }
    }
}

/// Deep nesting of calls and expressions ends in a diagnostic, on the small stack of a test's thread.
#[test]
fn what_is_too_deep_is_told() {
    let mut text = String::from("// call: f0(x: f32[t: 2])\n");
    for i in 0..90 {
        let _ = writeln!(text, "fn f{i}(x: [..]) -> [..] = {}f{}(x){}", "(".repeat(60), i + 1, " + 1)".repeat(60));
    }
    text += "fn f90(x: [..]) -> [..] = x";
    let report = Case::new(&text).finish(&text);
    assert!(report.starts_with("error[E0214]") || report.contains("out y"), "{report}");
}
