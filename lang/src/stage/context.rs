//! The recipe while its blocks are read: the evaluator, the data that is known so far, and the answers to readers.

use std::collections::BTreeSet;
use std::rc::Rc;

use mdl_graph::Axis;

use crate::check::{Builder, Elaborator, Env, Eval, Rebuilt, Stop, Stored, StoredId, Value, World};
use crate::diag::{Code, Diagnostic, Sources, nearest};
use crate::spec::{Arg, DataFacts, DataSpec, Device};
use crate::syntax::ast::{self, Expr, ExprKind, FileId, ItemKind, Span};
use crate::syntax::parse;

use super::adapt::{Freeze, Frozen};
use super::fields::match_fields;
use super::read::{self, Compute, Plain, Reported, wrong_type};
use super::schema::FieldRow;
use super::{Block, args, block};

/// What is known of a `data` block.
pub(crate) struct DataEntry {
    pub(crate) name: String,
    /// `None` when the block has a mistake, which was reported.
    pub(crate) known: Option<(DataSpec, DataFacts)>,
}

/// What the later blocks need of a `train` block.
pub(crate) struct TrainEntry {
    pub(crate) name: String,
    /// `None` when the block has a mistake, which was reported.
    pub(crate) known: Option<Trained>,
}

#[derive(Clone)]
pub(crate) struct Trained {
    /// The name of the block, and of the root of `model`.
    pub(crate) block: String,
    /// The model and its objective as they are outside of training.
    pub(crate) model: Value,
    pub(crate) objective: Value,
    /// What names mean in the objective.
    pub(crate) rebuilt: Rebuilt,
    /// What builds them: whether a layer trains is settled when it is built.
    pub(crate) builder: Rc<Builder>,
    pub(crate) freeze: Option<Vec<Freeze>>,
    /// Known once the graphs of training are.
    pub(crate) frozen: Frozen,
    pub(crate) objective_expr: Rc<Expr>,
    pub(crate) batch: u64,
    /// Evaluation reads averages in the place of weights.
    pub(crate) averaged: bool,
}

pub(crate) struct Context<'w> {
    pub(crate) elab: Elaborator<'w>,
    pub(crate) root: usize,
    pub(crate) env: Env,
    pub(crate) world: &'w dyn World,
    pub(crate) data: Vec<DataEntry>,
    pub(crate) trained: Vec<TrainEntry>,
    /// Kind and name of every block.
    names: Vec<(&'static str, String)>,
    /// What the stages run on, and where the first said so.
    pub(crate) device: Option<(Device, Span)>,
}

impl<'w> Context<'w> {
    pub(crate) fn new(
        mut sources: Sources,
        main: FileId,
        given: &[(String, String)],
        world: &'w dyn World,
    ) -> Context<'w> {
        let text = sources.get(main).map(|source| source.text.clone()).unwrap_or_default();
        let (file, mut diagnostics) = parse(main, &text);
        let overrides = args::read_overrides(&file, given, &mut sources, &mut diagnostics);
        let mut elab = Elaborator::new(sources, world);
        for diagnostic in diagnostics {
            elab.report(diagnostic);
        }
        let root = elab.load_parsed(file);
        for given in overrides {
            elab.set_arg(root, &given.name, given.value);
        }
        let env = elab.file_env(root);
        Context { elab, root, env, world, data: Vec::new(), trained: Vec::new(), names: Vec::new(), device: None }
    }

    pub(crate) fn file(&self) -> Rc<ast::File> {
        self.elab.file_ast(self.root)
    }

    /// Every `arg` with its value; evaluating them reports what is wrong with defaults.
    pub(crate) fn args(&mut self) -> Vec<Arg> {
        let file = self.file();
        let mut all = args::args_of(&file, &self.elab.sources);
        for (arg, (_, decl)) in all.iter_mut().zip(args::decls(&file)) {
            if args::plain_type(decl).is_none() {
                // Reported; what uses it shall stay silent.
                self.elab.define(self.root, &decl.name.text, Value::Error);
                continue;
            }
            let name = Expr { kind: ExprKind::Name(decl.name.text.clone()), span: decl.name.span };
            arg.value = self.elab.eval(&self.env, &name).ok().and_then(|value| value_text(&value));
        }
        all
    }

    /// How many blocks of this version the recipe has.
    pub(crate) fn n_blocks(&self) -> usize {
        self.names.len()
    }

    /// The blocks of this version that have a name; the others are reported.
    pub(crate) fn blocks<'e>(&mut self, file: &'e ast::File) -> Vec<Block<'e>> {
        let mut diagnostics = Vec::new();
        let mut blocks: Vec<Block<'e>> = Vec::new();
        for item in &file.items {
            let Some(block) = block(item, &mut diagnostics) else { continue };
            // A name that is there twice was reported when the file was loaded: the first block counts.
            if !blocks.iter().any(|known| known.name == block.name) {
                blocks.push(block);
            }
        }
        diagnostics.into_iter().for_each(|diagnostic| self.elab.report(diagnostic));
        self.names = blocks.iter().map(|block| (block.kind.name, block.name.to_owned())).collect();
        blocks
    }

    /// The sizes of all axes of the recipe, also of those that nothing uses.
    pub(crate) fn axes(&mut self, file: &ast::File) {
        for name in declared_axes(file).map(str::to_owned).collect::<Vec<_>>() {
            // What is wrong was reported.
            let _: Result<Option<Axis>, Reported> = self.axis(&name);
        }
    }

    /// The `train` blocks that words name, by themselves or through items of the recipe.
    pub(crate) fn trained_names(&self, words: BTreeSet<String>) -> Vec<String> {
        let file = self.file();
        let (mut all, mut fresh) = (words.clone(), words);
        while !fresh.is_empty() {
            let named = |item: &&ast::Item| {
                !matches!(item.kind, ItemKind::Stage(_)) && item.name().is_some_and(|name| fresh.contains(&name.text))
            };
            let more = self.elab.words(file.items.iter().filter(named).map(|item| item.span));
            fresh = more.difference(&all).cloned().collect();
            all.extend(fresh.iter().cloned());
        }
        let trained = self.names.iter().filter(|(kind, name)| *kind == "train" && all.contains(name));
        trained.map(|(_, name)| name.clone()).collect()
    }

    /// Builds every model, also those that no stage uses: their mistakes are mistakes. Those that use trained stages are built
    /// once these are known.
    pub(crate) fn models(&mut self, file: &ast::File, of_trained: bool) {
        for item in &file.items {
            if let ItemKind::Model { name, value } = &item.kind {
                let words = self.elab.words(std::iter::once(value.span));
                if self.trained_names(words).is_empty() == of_trained {
                    continue;
                }
                let expr = Expr { kind: ExprKind::Name(name.text.clone()), span: name.span };
                // What is wrong was reported.
                let _: Result<Value, Stop> = self.elab.eval(&self.env, &expr);
            }
        }
    }

    /// Reads a `data` block and asks the world for its facts.
    pub(crate) fn data(&mut self, block: &Block<'_>) -> Option<DataSpec> {
        let (fields, is_fine) = match_fields(self, block.kind, block.ast, block.span);
        let spec = super::data::read(self, &fields, block.span, is_fine).filter(|_| is_fine);
        let known = spec.and_then(|spec| match self.world.data_facts(&spec) {
            Ok(facts) => Some((spec, facts)),
            Err(problems) => {
                for problem in problems {
                    let code =
                        Code::ALL.iter().find(|code| code.text() == problem.code).copied().unwrap_or(Code::E0501);
                    let span = problem.span.or(fields.span("source")).unwrap_or(block.span);
                    let diagnostic = Diagnostic::error(code, problem.message).label(span, "this data");
                    self.elab.report(match problem.help {
                        Some(help) => diagnostic.help(help),
                        None => diagnostic,
                    });
                }
                None
            }
        });
        let value = known.as_ref().map_or(Value::Error, |(_, facts)| data_value(facts));
        self.elab.define(self.root, block.name, value);
        let spec = known.as_ref().map(|(spec, _)| spec.clone());
        self.data.push(DataEntry { name: block.name.to_owned(), known });
        spec
    }

    /// The block of a kind that a field names. `None` when that was reported, here or when the block was read.
    pub(crate) fn block_named(&mut self, kind: &'static str, row: &'static FieldRow, expr: &Expr) -> Option<String> {
        let expr = read::present(self, row, expr)?;
        if let ExprKind::Name(name) = &expr.kind {
            if self.names.iter().any(|(known, other)| *known == kind && other == name) {
                return Some(name.clone());
            }
            if !self.names.iter().any(|(_, other)| other == name) {
                let names: Vec<&str> =
                    self.names.iter().filter(|(known, _)| *known == kind).map(|(_, name)| name.as_str()).collect();
                let diagnostic = Diagnostic::error(Code::E0311, format!("there is no `{kind}` block `{name}`"))
                    .label(expr.span, format!("`{}` takes {}", row.name, row.takes.expected()));
                let diagnostic = match (nearest(name, names.iter().copied()), names.as_slice()) {
                    (Some(near), _) => diagnostic.help(format!("did you mean `{near}`?")),
                    (None, []) => diagnostic.help(format!("the recipe has none; add one: `{kind} {name} {{ … }}`")),
                    (None, names) => diagnostic.help(format!("the recipe has {}", names.join(", "))),
                };
                self.report(diagnostic);
                return None;
            }
        }
        let plain = self.plain(expr)?;
        self.report(wrong_type(row, expr.span, &plain.came()));
        None
    }

    /// `plays.val`: the block and its part.
    pub(crate) fn part(&mut self, row: &'static FieldRow, expr: &Expr) -> Option<(String, String)> {
        let expr = read::present(self, row, expr)?;
        let (block, part) = match &expr.kind {
            ExprKind::Member { base, name } if matches!(&base.kind, ExprKind::Name(_)) => (&**base, Some(name)),
            ExprKind::Name(name) if self.names.iter().any(|(kind, other)| *kind == "data" && other == name) => {
                (expr, None)
            }
            ExprKind::Name(_) => {
                self.block_named("data", row, expr)?;
                return None;
            }
            _ => {
                let plain = self.plain(expr)?;
                self.report(wrong_type(row, expr.span, &plain.came()));
                return None;
            }
        };
        let data = self.block_named("data", row, block)?;
        let (spec, _) = self.data.iter().find(|entry| entry.name == data)?.known.as_ref()?;
        let parts: Vec<String> = spec.split.parts.iter().map(|part| part.name.clone()).collect();
        let Some(part) = part else {
            self.report(
                Diagnostic::error(
                    Code::E0311,
                    format!("`{}` takes a part of `{data}`, and this is all of it", row.name),
                )
                .label(expr.span, "which part?")
                .help(format!(
                    "its parts are {}: write `{data}.{}`",
                    parts.join(", "),
                    parts.last().map_or("val", String::as_str)
                )),
            );
            return None;
        };
        if parts.contains(&part.text) {
            return Some((data, part.text.clone()));
        }
        let diagnostic = Diagnostic::error(Code::E0311, format!("`{data}` has no part `{}`", part.text))
            .label(part.span, "no such part");
        self.report(match nearest(&part.text, parts.iter().map(String::as_str)) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("its parts are {}; `split` names them", parts.join(", "))),
        });
        None
    }

    pub(crate) fn facts(&self, data: &str) -> Option<(DataSpec, DataFacts)> {
        self.data.iter().find(|entry| entry.name == data)?.known.clone()
    }

    /// An expression of the schema, such as a default, in the words of a recipe.
    pub(crate) fn schema_expr(&mut self, text: &str) -> Expr {
        let line = format!("model default = {text}");
        let id = self.elab.sources.add("schema", line.as_str());
        let (file, diagnostics) = parse(id, &line);
        match file.items.into_iter().next().map(|item| item.kind) {
            Some(ItemKind::Model { value, .. }) if diagnostics.is_empty() => value,
            _ => mdl_graph::bug!("the schema's `{text}` is no expression"),
        }
    }

    pub(crate) fn finish(self) -> (Sources, Vec<Diagnostic>) {
        (self.elab.sources, self.elab.diagnostics)
    }

    /// What `training` means from now on: true for the model of this root, or of none.
    pub(crate) fn set_training(&mut self, root: Option<&str>) {
        self.elab.set_trained(root);
        self.elab.set_training(root.is_some());
        self.env = self.elab.file_env(self.root);
    }

    /// Runs something that may fail without a word.
    pub(crate) fn attempt<T>(&mut self, run: impl FnOnce(&mut Elaborator<'w>) -> Eval<T>) -> Option<T> {
        let n_before = self.elab.diagnostics.len();
        let result = run(&mut self.elab);
        if result.is_err() {
            self.elab.diagnostics.truncate(n_before);
        }
        result.ok()
    }

    pub(crate) fn stored(&self, id: StoredId) -> &Stored {
        match self.elab.stored().nth(id.0 as usize) {
            Some((_, stored)) => stored,
            None => mdl_graph::bug!("there is no weight {id:?}"),
        }
    }
}

impl Compute for Context<'_> {
    fn plain(&mut self, expr: &Expr) -> Option<Plain> {
        // Blocks are looked at before they are values, so that an error can say which block came.
        match &expr.kind {
            ExprKind::Name(name) => {
                if let Some((kind, _)) = self.names.iter().find(|(_, other)| other == name) {
                    return Some(Plain::Stage { kind, name: name.clone() });
                }
            }
            ExprKind::Member { base, name } => {
                if let ExprKind::Name(data) = &base.kind
                    && let Some((spec, _)) = self.facts(data)
                    && spec.split.parts.iter().any(|part| part.name == name.text)
                {
                    return Some(Plain::Part { data: data.clone(), part: name.text.clone() });
                }
            }
            _ => {}
        }
        let value = self.elab.eval(&self.env, expr).ok()?;
        Some(match &value {
            Value::Error => return None,
            Value::None => Plain::None,
            Value::Bool(value) => Plain::Bool(*value),
            Value::Int(value) => Plain::Int(*value),
            Value::Axis(axis) => Plain::Int(i64::try_from(axis.size).ok()?),
            Value::Float(value) => Plain::Float(*value),
            Value::Str(text) => Plain::Str(text.to_string()),
            Value::Quantity { value, unit } => Plain::Quantity(*value, unit.clone()),
            other => Plain::Other(other.kind().to_owned()),
        })
    }

    fn axis(&mut self, name: &str) -> Result<Option<Axis>, Reported> {
        if !declared_axes(&self.file()).any(|known| known == name) {
            return Ok(None);
        }
        // What the brackets of a type mean by it, whatever else has the name too: an `arg`, or a function such as `sample`.
        match self.elab.axis_size(&self.env, &name.into(), Span::default()) {
            Ok(size) => Ok(size.map(|size| Axis::new(name, size))),
            Err(Stop) => Err(Reported),
        }
    }

    fn axis_names(&mut self) -> Vec<String> {
        declared_axes(&self.file()).map(str::to_owned).collect()
    }

    fn is_arg(&mut self, name: &str) -> bool {
        args::decls(&self.file()).any(|(_, decl)| decl.name.text == name)
    }

    fn data_block(&mut self, name: &str) -> Option<DataSpec> {
        self.facts(name).map(|(spec, _)| spec)
    }

    fn report(&mut self, diagnostic: Diagnostic) {
        self.elab.report(diagnostic);
    }
}

fn declared_axes(file: &ast::File) -> impl Iterator<Item = &str> {
    file.items
        .iter()
        .flat_map(|item| match &item.kind {
            ItemKind::Axis(decls) => decls.as_slice(),
            _ => &[],
        })
        .map(|decl| decl.name.text.as_str())
}

/// What a `data` block is in expressions: `plays.vocab`, `plays.classes`, and the number of rows of each part.
fn data_value(facts: &DataFacts) -> Value {
    let int = |value: u64| Value::Int(i64::try_from(value).unwrap_or(i64::MAX));
    let own = [("vocab".to_owned(), int(facts.vocab)), ("classes".to_owned(), int(facts.classes))];
    let parts = facts.rows.iter().map(|(name, rows)| (name.clone(), Value::record([("rows", int(*rows))])));
    Value::record(own.into_iter().chain(parts))
}

/// A value of an argument as the command line would give it.
fn value_text(value: &Value) -> Option<String> {
    match value {
        Value::None => Some("none".to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(format!("{value:?}")),
        Value::Quantity { value, .. } => Some(format!("{value:?}")),
        Value::Str(text) => Some(text.to_string()),
        _ => None,
    }
}
