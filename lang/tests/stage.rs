//! Stages: every misuse of blocks, fields, units and arguments, and what correct ones become.

mod world;

use std::fmt::Write;
use std::path::Path;

use mdl_graph::Role;
use mdl_lang::diag::{Code, Sources, render};
use mdl_lang::spec::{Origin, Program, StageKind, Weight};
use mdl_lang::stage::check;
use world::FakeWorld;

fn run(name: &str, text: &str, args: &[(String, String)]) -> (Program, String) {
    let (program, _, report) = run_in(&FakeWorld::default(), name, text, args);
    (program, report)
}

fn run_in(world: &FakeWorld, name: &str, text: &str, args: &[(String, String)]) -> (Program, Vec<Code>, String) {
    let mut sources = Sources::new();
    let main = sources.add(name, text);
    let (program, diagnostics) = check(&mut sources, main, args, world);
    let codes = diagnostics.iter().map(|diagnostic| diagnostic.code).collect();
    (program, codes, render(&diagnostics, &sources))
}

/// `--steps 100 --text a.txt`
fn flags(line: &str) -> Vec<(String, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.chunks(2).map(|pair| (pair[0].trim_start_matches("--").to_owned(), pair[1..].concat())).collect()
}

/// The stages of a program in a few lines each: numbers, and the names of what goes in and out of graphs.
fn summary(program: &Program) -> String {
    let mut text = String::new();
    for arg in &program.args {
        let _ = writeln!(text, "arg {}: {} = {}", arg.name, arg.ty, arg.value.as_deref().unwrap_or("?"));
    }
    for stage in &program.stages {
        let needs = if stage.needs.is_empty() { String::new() } else { format!(" needs {}", stage.needs.join(", ")) };
        match &stage.kind {
            StageKind::Data(spec) => {
                let bare = strip_spans(serde_json::to_value(spec).unwrap());
                let _ = writeln!(text, "data {}{needs} {bare}", stage.name);
            }
            StageKind::Train(spec) => {
                let _ = writeln!(
                    text,
                    "train {}{needs}: batch {} micro {} steps {} {:?} memory {:?} seed {} save {:?} patience {:?}",
                    stage.name,
                    spec.batch,
                    spec.micro,
                    spec.steps,
                    spec.precision,
                    spec.memory.map(|memory| memory.bytes),
                    spec.seed,
                    spec.save,
                    spec.patience
                );
                let name = |weight: &Weight| format!("{}{}", weight.path, if weight.frozen { " (frozen)" } else { "" });
                let weights: Vec<String> = spec.weights.iter().map(name).collect();
                let states: Vec<String> = spec.states.iter().map(|state| state.name.to_string()).collect();
                let _ = writeln!(text, "  weights {}", weights.join(" "));
                let _ = writeln!(text, "  states {}", states.join(" "));
                let reads = spec.reads.iter().map(|read| match &read.origin {
                    Origin::Stage { stage, tensor } => format!("{} = {stage}/{tensor}", read.input),
                    Origin::Files { .. } => format!("{} = a file", read.input),
                });
                let reads: Vec<String> = reads.collect();
                let kept = spec.kept.iter().map(|kept| format!("{} as {:?}", kept.input, kept.dtype));
                let kept: Vec<String> = kept.collect();
                for (what, all) in [("reads", reads), ("keeps", kept)] {
                    if !all.is_empty() {
                        let _ = writeln!(text, "  {what} {}", all.join(", "));
                    }
                }
                let _ = writeln!(text, "  step gives {}", values(&spec.step));
                if let Some(evaluate) = &spec.evaluate {
                    let _ = writeln!(
                        text,
                        "  evaluates {} every {}: {}",
                        evaluate.part,
                        evaluate.every,
                        values(&evaluate.graph)
                    );
                }
                if let Some(sample) = &spec.sample {
                    let _ = writeln!(text, "  samples {sample:?}");
                }
                if let Some(forward) = &spec.forward {
                    let _ = writeln!(text, "  forward gives {}", values(forward));
                }
            }
            StageKind::Eval(spec) => {
                let _ = writeln!(
                    text,
                    "eval {}{needs}: {} on {}.{} batch {} metrics {:?}",
                    stage.name, spec.of, spec.data, spec.part, spec.batch, spec.metrics
                );
            }
        }
    }
    text
}

fn values(graph: &mdl_graph::Graph) -> String {
    let names = graph.outputs().iter().filter(|output| output.role == Role::Value);
    names.map(|output| format!("{}: {}", output.name, graph.ty(output.node))).collect::<Vec<_>>().join(" ")
}

fn strip_spans(mut value: serde_json::Value) -> serde_json::Value {
    match &mut value {
        serde_json::Value::Object(map) => {
            map.retain(|key, _| key != "span");
            for inner in map.values_mut() {
                *inner = strip_spans(inner.take());
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(|inner| *inner = strip_spans(inner.take())),
        _ => {}
    }
    value
}

/// A file of cases: what stands before the first `# case: name --flags` is part of each.
#[test]
fn cases() {
    insta::glob!("golden/stage/*.mdl", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut pieces = text.split("# case: ");
        let shared = pieces.next().unwrap_or("");
        let mut out = String::new();
        for piece in pieces {
            let (head, body) = piece.split_once('\n').unwrap_or((piece, ""));
            let (name, line) = head.split_once(' ').unwrap_or((head, ""));
            let recipe = format!("{shared}{body}");
            let (program, diagnostics) = run("recipe.mdl", &recipe, &flags(line));
            let _ = writeln!(out, "== {head}");
            out += if diagnostics.is_empty() { summary(&program) } else { diagnostics }.trim_end();
            out += "\n\n";
            assert!(!name.is_empty());
        }
        insta::with_settings!({ snapshot_path => "golden/stage", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(out);
        });
    });
}

/// The graphs of training blocks, whole.
#[test]
fn graphs() {
    insta::glob!("golden/step/*.mdl", |path| {
        let text = std::fs::read_to_string(path).unwrap();
        let (program, report) = run("recipe.mdl", &text, &[]);
        assert_eq!(report, "");
        let mut out = String::new();
        for stage in &program.stages {
            let StageKind::Train(spec) = &stage.kind else { continue };
            let _ = writeln!(out, "init\n{}\nstep\n{}", spec.init, spec.step);
            if let Some(evaluate) = &spec.evaluate {
                let _ = writeln!(out, "evaluate\n{}", evaluate.graph);
            }
            if let Some(forward) = &spec.forward {
                let _ = writeln!(out, "forward\n{forward}");
            }
        }
        insta::with_settings!({ snapshot_path => "golden/step", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(out);
        });
    });
}

/// Chance belongs to training: dropout draws in the step and nowhere else, also below a loop.
#[test]
fn only_training_draws() {
    fn draws(graph: &mdl_graph::Graph) -> bool {
        graph
            .nodes()
            .iter()
            .any(|node| matches!(node.op, mdl_graph::Op::Uniform { .. }) || node.op.body().is_some_and(draws))
    }
    let args = [("dropout".to_owned(), "0.1".to_owned())];
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shakespeare.mdl")).unwrap();
    let (program, report) = run("shakespeare.mdl", &text, &args);
    assert_eq!(report, "");
    let mut seen = 0;
    for stage in &program.stages {
        match &stage.kind {
            StageKind::Train(spec) => {
                assert!(draws(&spec.init) && draws(&spec.step));
                assert!(!draws(spec.forward.as_ref().unwrap()) && !draws(&spec.evaluate.as_ref().unwrap().graph));
                seen += 1;
            }
            StageKind::Eval(spec) => {
                assert!(!draws(&spec.graph));
                seen += 1;
            }
            StageKind::Data(_) => {}
        }
    }
    assert_eq!(seen, 2);
}

fn examples() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "mdl"))
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

#[test]
fn examples_check() {
    let examples = examples();
    assert!(examples.len() >= 5);
    for (name, text) in examples {
        let (program, diagnostics) = run(&name, &text, &[]);
        assert_eq!(diagnostics, "", "{name}");
        assert!(program.stages.len() >= 2, "{name}");
        for stage in &program.stages {
            let StageKind::Train(spec) = &stage.kind else { continue };
            for graph in [Some(&spec.init), Some(&spec.step), spec.forward.as_ref()].into_iter().flatten() {
                graph.verify().unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            // Everything that is kept has a first value and, but for states that nothing changes, a next one.
            let weights = spec.weights.iter().map(|weight| (&weight.path, &weight.origin));
            for (path, origin) in weights.chain(spec.states.iter().map(|state| (&state.name, &state.origin))) {
                // What another stage has trained is not made here.
                let is_made = spec.init.output(path.as_str()).is_some();
                assert_eq!(is_made, origin.is_none(), "{name}: the first value of {path}");
                let next = spec
                    .step
                    .outputs()
                    .iter()
                    .any(|output| output.name == *path && matches!(output.role, Role::Next(_)));
                assert!(next, "{name}: no next value of {path}");
            }
        }
    }
}

#[test]
fn checking_twice_gives_the_same_bytes() {
    for (name, text) in examples() {
        let bytes = || serde_json::to_string(&run(&name, &text, &[]).0).unwrap();
        assert!(bytes() == bytes(), "{name}");
    }
}

/// The fenced blocks of a page that are marked so.
fn blocks<'a>(page: &'a str, mark: &str) -> Vec<&'a str> {
    let fence = format!("```mdl {mark}\n");
    page.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

/// The wrong example of each page gives its code and nothing else, the right one nothing. An example that begins with
/// `// mdlc check recipe.mdl` is checked with those flags; the world of pages about data (E05) is broken accordingly.
#[test]
fn pages_do_what_they_say() {
    let mine = |code: &&Code| {
        ["E03", "E0404", "E0405", "E0406", "E0407", "E0408", "E041", "E05", "E07"]
            .iter()
            .any(|start| code.text().starts_with(start))
    };
    let mut report = String::new();
    for code in Code::ALL.iter().filter(mine) {
        // What is wrong there is the disk, or seen by the compiler only.
        if [Code::E0318, Code::E0513, Code::E0705].contains(code) {
            continue;
        }
        let (wrong, right) = (blocks(code.page(), "wrong"), blocks(code.page(), "right"));
        assert!(!wrong.is_empty() && !right.is_empty(), "{code} lacks examples");
        let args = |text: &str| {
            let line = text.lines().next().and_then(|line| line.strip_prefix("// mdlc check recipe.mdl"));
            line.map_or_else(Vec::new, flags)
        };
        let broken = code.text().starts_with("E05").then(|| code.text());
        for text in wrong {
            let (_, codes, said) = run_in(&FakeWorld { broken }, "wrong.mdl", text, &args(text));
            if codes.iter().any(|other| other != code) || codes.is_empty() {
                let _ = writeln!(report, "{code}, wrong example:\n{text}\n{said}");
            }
        }
        for text in right {
            let (_, codes, said) = run_in(&FakeWorld::default(), "right.mdl", text, &args(text));
            if !codes.is_empty() {
                let _ = writeln!(report, "{code}, right example:\n{text}\n{said}");
            }
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// The manual names every field and function of the schema, and its default.
#[test]
fn the_manual_is_whole() {
    let text = mdl_lang::stage::manuals();
    for kind in mdl_lang::stage::kinds().iter().filter(|kind| !kind.later) {
        for row in kind.fields {
            assert!(text.contains(row.name), "{} is missing", row.name);
            assert!(row.doc.ends_with('.'), "{}", row.doc);
        }
    }
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("manual", text);
    });
}
