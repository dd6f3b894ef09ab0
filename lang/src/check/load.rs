//! Files: parsing them, what their items are called, imports, and the library that every file sees.
//!
//! Nothing is evaluated here, and of the library only what a recipe needs is parsed. A name means, in this order: what stages defined, the file's own item, what it imports, and
//! what the library's prelude lists.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use mdl_graph::Name;

use super::Elaborator;
use super::value::{Env, FnCode, Frame, LayerCode, OptimizerCode, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{self, AxisDecl, Expr, FileId, ItemKind, Member, MemberKind, Span, UseFrom};
use crate::syntax::{Outline, parse, words};

/// The standard library: paths under `stdlib/` without `.mdl`, and texts.
const LIBRARY: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/library.rs"));

/// What an item is.
#[derive(Clone)]
pub(super) enum Global {
    Fn(Rc<FnCode>),
    Layer(Rc<LayerCode>),
    Optimizer(Rc<OptimizerCode>),
    Arg(Rc<ast::ArgDecl>),
    Model(Rc<Expr>),
    /// A stage, by its kind: only `define` gives it a value.
    Stage(String),
    Broken,
    /// Of the library: parsed by [`Elaborator::item`].
    Unread(UnreadItem),
}

/// An item that nobody asked for yet.
#[derive(Clone)]
pub(super) struct UnreadItem {
    outline: Rc<Outline>,
    at: usize,
}

pub(super) struct File {
    pub(super) id: FileId,
    pub(super) path: String,
    pub(super) is_library: bool,
    pub(super) ast: Rc<ast::File>,
    pub(super) items: BTreeMap<String, (Global, Span)>,
    pub(super) axes: BTreeMap<String, Rc<AxisDecl>>,
    /// What files of weights call what layers hold, by the name of the layer.
    pub(super) names: BTreeMap<String, Rc<ast::Names>>,
    /// Imported names: the file and the name there.
    pub(super) imports: BTreeMap<String, (usize, String)>,
    pub(super) env: Env,
}

impl Elaborator<'_> {
    /// Parses a source that is in `sources` and resolves its imports. Gives its number for `file_env`, `define` and others.
    pub fn load_root(&mut self, id: FileId) -> usize {
        let text = self.sources.get(id).map(|source| source.text.clone()).unwrap_or_default();
        let name = self.sources.get(id).map(|source| source.name.clone()).unwrap_or_default();
        let (ast, diagnostics) = parse(id, &text);
        self.diagnostics.extend(diagnostics);
        self.load_file(id, name, ast, None)
    }

    /// As `load_root`, of a file that was parsed already.
    pub fn load_parsed(&mut self, ast: ast::File) -> usize {
        let name = self.sources.get(ast.id).map(|source| source.name.clone()).unwrap_or_default();
        self.load_file(ast.id, name, ast, None)
    }

    /// Files of the library, and only they, come with items that are not read yet.
    fn load_file(
        &mut self,
        id: FileId,
        path: String,
        ast: ast::File,
        unread: Option<Vec<(ast::Name, UnreadItem)>>,
    ) -> usize {
        let is_library = unread.is_some();
        let at = self.files.len();
        let frame = Rc::new(Frame { is_file: true, ..Frame::new(at, path.clone(), Rc::default()) });
        let env = Env { vars: None, frame };
        let ast = Rc::new(ast);
        let file = File {
            id,
            path,
            is_library,
            ast: ast.clone(),
            items: BTreeMap::new(),
            axes: BTreeMap::new(),
            names: BTreeMap::new(),
            imports: BTreeMap::new(),
            env,
        };
        self.files.push(file);
        let mut uses = Vec::new();
        for item in &ast.items {
            match &item.kind {
                ItemKind::Use(used) => {
                    uses.push((used.clone(), item.span));
                    continue;
                }
                ItemKind::Axis(decls) => {
                    for decl in decls {
                        let known = self.files[at].axes.insert(decl.name.text.clone(), Rc::new(decl.clone()));
                        if let Some(known) = known {
                            self.defined_twice(&decl.name.text, decl.name.span, known.name.span);
                        }
                    }
                    continue;
                }
                ItemKind::Names(names) => {
                    let known = self.files[at].names.insert(names.name.text.clone(), Rc::new(names.clone()));
                    if let Some(known) = known {
                        self.defined_twice(&names.name.text, names.name.span, known.name.span);
                    }
                    continue;
                }
                _ => {}
            }
            let global = self.global(at, item);
            let Some(name) = item.name() else { continue };
            let known = self.files[at].items.get(&name.text).map(|(_, span)| *span);
            match known {
                Some(known) => self.defined_twice(&name.text, name.span, known),
                None => {
                    self.files[at].items.insert(name.text.clone(), (global, name.span));
                }
            }
        }
        for (name, text) in unread.into_iter().flatten() {
            let span = name.span;
            self.files[at].items.insert(name.text, (Global::Unread(text), span));
        }
        let n_before = self.n_errors();
        for (used, span) in uses {
            self.resolve_use(at, &used, span);
        }
        // What an import lacks would be reported again wherever it is said.
        if !is_library && self.n_errors() == n_before {
            self.check_names(at);
        }
        at
    }

    /// What an item of a file is; `use`, `axis` and `names` are no such thing.
    fn global(&mut self, file: usize, item: &ast::Item) -> Global {
        match &item.kind {
            ItemKind::Arg(arg) => Global::Arg(Rc::new(arg.clone())),
            ItemKind::Layer(layer) => Global::Layer(Rc::new(LayerCode {
                methods: methods(&layer.members),
                ast: layer.clone(),
                file,
                mentions: self.mentions(item.span),
            })),
            ItemKind::Fn(def) => {
                Global::Fn(Rc::new(FnCode { def: Rc::new(def.clone()), file, mentions: self.mentions(item.span) }))
            }
            ItemKind::Optimizer(optimizer) => Global::Optimizer(Rc::new(OptimizerCode {
                methods: methods(&optimizer.members),
                ast: optimizer.clone(),
                file,
                mentions: self.mentions(item.span),
            })),
            ItemKind::Model { value, .. } => Global::Model(Rc::new(value.clone())),
            ItemKind::Stage(stage) => Global::Stage(stage.kind.text.clone()),
            ItemKind::Use(_) | ItemKind::Axis(_) | ItemKind::Names(_) | ItemKind::Broken { .. } => Global::Broken,
        }
    }

    /// The item of a file, parsed now if nobody needed it before.
    pub(super) fn item(&mut self, file: usize, name: &str) -> Option<Global> {
        let (global, _) = self.files[file].items.get(name)?;
        let Global::Unread(text) = global.clone() else { return Some(global.clone()) };
        let mut diagnostics = Vec::new();
        let item = text.outline.parse(text.at, &mut diagnostics);
        self.diagnostics.extend(diagnostics);
        let global = self.global(file, &item);
        if let Some((kept, _)) = self.files[file].items.get_mut(name) {
            *kept = global.clone();
        }
        Some(global)
    }

    fn defined_twice(&mut self, name: &str, span: Span, first: Span) {
        self.push(
            Diagnostic::error(Code::E0222, format!("`{name}` is defined twice"))
                .label(span, "again here")
                .label(first, "first here")
                .help("give one of them another name"),
        );
    }

    /// All words of pieces of text.
    pub fn words(&self, spans: impl Iterator<Item = Span>) -> BTreeSet<String> {
        spans.flat_map(|span| self.mentions(span).iter().cloned().collect::<Vec<_>>()).collect()
    }

    /// All words of a piece of text: a superset of the axis names that it says.
    fn mentions(&self, span: Span) -> Rc<BTreeSet<String>> {
        Rc::new(words(self.sources.slice(span)))
    }

    fn resolve_use(&mut self, at: usize, used: &ast::Use, span: Span) {
        match &used.from {
            UseFrom::Path(steps) => self.use_path(at, used, steps, span),
            UseFrom::File(path) => {
                if path.text.contains("://") {
                    self.push(
                        Diagnostic::error(Code::E0704, "`use` of an address is not in this version")
                            .label(path.span, "an address")
                            .help("save the file beside the recipe and import it by its path"),
                    );
                    return;
                }
                let from = self.files[at].path.clone();
                let imported = match self.world.import(&from, &path.text) {
                    Ok(imported) => imported,
                    Err(problem) => {
                        self.push(
                            Diagnostic::error(Code::E0401, format!("cannot import `{}`: {problem}", path.text))
                                .label(path.span, "imported here"),
                        );
                        return;
                    }
                };
                if self.importing.contains(&imported.name) || from == imported.name {
                    self.push(
                        Diagnostic::error(Code::E0402, format!("`{}` imports itself", imported.name))
                            .label(path.span, "this closes the circle")
                            .help("move what both need into a third file"),
                    );
                    return;
                }
                let known = self.files.iter().position(|file| !file.is_library && file.path == imported.name);
                let file = match known {
                    Some(file) => file,
                    None => {
                        let id = self.sources.add(imported.name.clone(), imported.text.clone());
                        let (ast, diagnostics) = parse(id, &imported.text);
                        self.diagnostics.extend(diagnostics);
                        self.importing.push(from);
                        let file = self.load_file(id, imported.name, ast, None);
                        self.importing.pop();
                        file
                    }
                };
                self.import_names(at, file, used.names.as_deref(), span);
            }
        }
    }

    /// `std.nn.linear` is a file; `std.models.Gpt` is an item of a file in the folder `models`.
    fn use_path(&mut self, at: usize, used: &ast::Use, steps: &[ast::Name], span: Span) {
        let Some((first, rest)) = steps.split_first() else { return };
        if first.text != "std" {
            self.push(
                Diagnostic::error(Code::E0401, format!("there is no library `{}`", first.text))
                    .label(first.span, "only `std` is known")
                    .help("import a file by its path, `use \"blocks.mdl\"`"),
            );
            return;
        }
        let path: Vec<&str> = rest.iter().map(|step| step.text.as_str()).collect();
        let path = path.join("/");
        if let Some(file) = self.library_file(&path) {
            self.import_names(at, file, used.names.as_deref(), span);
            return;
        }
        let (folder, item) = path.rsplit_once('/').unwrap_or(("", &path));
        let inside: Vec<&str> = LIBRARY
            .iter()
            .map(|(known, _)| *known)
            .filter(|known| *known == folder || known.rsplit_once('/').map_or("", |(folder, _)| folder) == folder)
            .collect();
        let mut names = Vec::new();
        for path in inside {
            let Some(file) = self.library_file(path) else { continue };
            if self.files[file].items.contains_key(item) {
                self.files[at].imports.insert(item.to_string(), (file, item.to_string()));
                return;
            }
            names.extend(self.files[file].items.keys().cloned());
        }
        let said = steps.iter().map(|step| step.text.as_str()).collect::<Vec<_>>().join(".");
        let diagnostic =
            Diagnostic::error(Code::E0401, format!("the library has no `{said}`")).label(span, "imported here");
        let near = nearest(item, names.iter().map(String::as_str));
        self.push(match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
    }

    /// The loaded file of a path of the library.
    fn library_file(&mut self, path: &str) -> Option<usize> {
        let (path, text) = LIBRARY.iter().find(|(known, _)| *known == path)?;
        let name = format!("std/{path}.mdl");
        if let Some(known) = self.files.iter().position(|file| file.is_library && file.path == name) {
            return Some(known);
        }
        let id = self.sources.add(name.clone(), *text);
        let mut diagnostics = Vec::new();
        let outline = Rc::new(Outline::new(id, text, &mut diagnostics));
        let (mut read, mut unread) = (Vec::new(), Vec::new());
        for (at, (keyword, name)) in outline.items().enumerate() {
            match (keyword, name) {
                ("fn" | "layer" | "optimizer", Some(name)) => {
                    unread.push((name.clone(), UnreadItem { outline: Rc::clone(&outline), at }));
                }
                _ => read.push(outline.parse(at, &mut diagnostics)),
            }
        }
        self.diagnostics.extend(diagnostics);
        let ast = ast::File { id, items: read, ..ast::File::default() };
        Some(self.load_file(id, name, ast, Some(unread)))
    }

    fn import_names(&mut self, at: usize, file: usize, names: Option<&[ast::Name]>, span: Span) {
        let all: Vec<String> = self.files[file].items.keys().cloned().collect();
        let Some(names) = names else {
            for name in all {
                self.files[at].imports.insert(name.clone(), (file, name));
            }
            return;
        };
        for name in names {
            if all.contains(&name.text) {
                self.files[at].imports.insert(name.text.clone(), (file, name.text.clone()));
                continue;
            }
            let diagnostic =
                Diagnostic::error(Code::E0401, format!("`{}` defines no `{}`", self.files[file].path, name.text))
                    .label(name.span, "not there")
                    .label(span, "imported here");
            self.push(match nearest(&name.text, all.iter().map(String::as_str)) {
                Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                None => diagnostic,
            });
        }
    }

    /// Loads the library's prelude; its imports are what every file sees.
    pub(super) fn load_prelude(&mut self) {
        let prelude = self.library_file("prelude");
        self.prelude = prelude;
    }

    /// The item that a name means in a file, and the file that it is of.
    pub(super) fn find_item(&self, file: usize, name: &str) -> Option<(usize, String)> {
        let known = &self.files[file];
        if known.items.contains_key(name) || self.defined.contains_key(&(file, name.to_string())) {
            return Some((file, name.to_string()));
        }
        if let Some(imported) = known.imports.get(name) {
            return Some(imported.clone());
        }
        self.prelude.and_then(|prelude| self.files[prelude].imports.get(name).cloned())
    }

    /// Every name of items that a file sees.
    pub(super) fn item_names(&self, file: usize) -> Vec<String> {
        let mut names: Vec<String> =
            self.files[file].items.keys().chain(self.files[file].imports.keys()).cloned().collect();
        if let Some(prelude) = self.prelude {
            names.extend(self.files[prelude].imports.keys().cloned());
        }
        names
    }

    /// The scope of a file's outer level.
    pub fn file_env(&self, file: usize) -> Env {
        self.files[file].env.clone()
    }

    /// The recipe's file as the world knows it: what paths in it are relative to, whoever reads them.
    pub(super) fn recipe_path(&self) -> String {
        self.files.iter().find(|file| !file.is_library).map_or(String::new(), |file| file.path.clone())
    }

    /// The syntax tree of a loaded file.
    pub fn file_ast(&self, file: usize) -> Rc<ast::File> {
        self.files[file].ast.clone()
    }

    /// Gives a name of a file a value: for what stages make. Wins over an item of the same name.
    pub fn define(&mut self, file: usize, name: &str, value: Value) {
        self.defined.insert((file, name.to_string()), value);
    }

    /// Replaces the default of an `arg`.
    pub fn set_arg(&mut self, file: usize, name: &str, value: Expr) {
        self.arg_values.insert((file, name.to_string()), Rc::new(value));
    }
}

fn methods(members: &[Member]) -> Vec<Rc<ast::FnDef>> {
    members
        .iter()
        .filter_map(|member| match &member.kind {
            MemberKind::Fn(def) => Some(Rc::new(def.clone())),
            _ => None,
        })
        .collect()
}

impl Frame {
    pub(super) fn new(file: usize, label: String, mentions: Rc<BTreeSet<String>>) -> Frame {
        Frame {
            file,
            label,
            axes: Default::default(),
            packs: Default::default(),
            rest: Default::default(),
            open: Default::default(),
            mentions,
            this: Default::default(),
            dead: Default::default(),
            training: false,
            is_file: false,
        }
    }

    /// Of an axis whose size is a mistake the name is known all the same: 1 keeps what follows quiet.
    pub(super) fn poison_axis(&self, name: &Name) {
        self.axes.borrow_mut().entry(name.clone()).or_insert(1);
    }

    pub(super) fn set_axis(&self, name: &Name, size: u64) {
        self.axes.borrow_mut().insert(name.clone(), size);
    }
}
