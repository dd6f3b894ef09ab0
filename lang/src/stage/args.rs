//! The `arg`s of a recipe: what they are, and what the command line gives for them.
//!
//! A value comes as text and is read by the declared type: `Str` and `Path` take it as it is, the others as a literal of
//! the language, so `--steps 5_000` and `--limit 8GiB` mean what they mean in a recipe. The result is an expression that
//! takes the place of the default.

use crate::diag::{Code, Diagnostic, Sources, nearest};
use crate::spec;
use crate::syntax::ast::{ArgDecl, Expr, ExprKind, File, ItemKind, Span, Type, TypeKind, UnaryOp};
use crate::syntax::parse;

/// The types that an `arg` may have.
const TYPES: [&str; 5] = ["Int", "Float", "Bool", "Str", "Path"];

/// What the command line gave for an `arg`, ready to take the place of its default.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Override {
    pub(crate) name: String,
    pub(crate) value: Expr,
}

/// The `arg`s of a file in their order, without values: what `--help` lists even when the rest of the file has errors.
pub fn args_of(file: &File, sources: &Sources) -> Vec<spec::Arg> {
    decls(file)
        .map(|(docs, decl)| spec::Arg {
            name: decl.name.text.clone(),
            ty: type_name(decl, sources),
            doc: docs.to_owned(),
            default: decl.default.as_ref().map(|default| default_text(default, sources)),
            value: None,
        })
        .collect()
}

pub(crate) fn decls(file: &File) -> impl Iterator<Item = (&str, &ArgDecl)> {
    file.items.iter().filter_map(|item| match &item.kind {
        ItemKind::Arg(decl) => Some((item.docs.as_str(), decl)),
        _ => None,
    })
}

/// A text without its quotes, anything else as it is written.
fn default_text(default: &Expr, sources: &Sources) -> String {
    match &default.kind {
        ExprKind::Str(text) => text.clone(),
        _ => sources.slice(default.span).to_owned(),
    }
}

/// The declared type as written; without one, that of a literal default.
fn type_name(decl: &ArgDecl, sources: &Sources) -> String {
    match (&decl.ty, &decl.default) {
        (Some(ty), _) => sources.slice(ty.span).to_owned(),
        (None, Some(default)) => literal_type(default).unwrap_or("Str").to_owned(),
        (None, None) => "Str".to_owned(),
    }
}

fn literal_type(expr: &Expr) -> Option<&'static str> {
    match &expr.kind {
        ExprKind::Int(_) => Some("Int"),
        ExprKind::Float(_) | ExprKind::Quantity { .. } => Some("Float"),
        ExprKind::Bool(_) => Some("Bool"),
        ExprKind::Str(_) => Some("Str"),
        ExprKind::Unary { op: UnaryOp::Neg, value } => literal_type(value),
        _ => None,
    }
}

/// Checks the declarations, reads what the command line gives, and reports what cannot be.
pub(crate) fn read_overrides(
    file: &File,
    given: &[(String, String)],
    sources: &mut Sources,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<Override> {
    for (_, decl) in decls(file) {
        check_type(decl, diagnostics);
        let is_given = given.iter().any(|(name, _)| is_named(decl, name));
        if decl.default.is_none() && !is_given && !is_optional(decl) {
            diagnostics.push(
                Diagnostic::error(
                    Code::E0413,
                    format!("the argument `{}` has no default and is not given", decl.name.text),
                )
                .label(decl.name.span, "declared here")
                .help(format!("give it on the command line: `--{} VALUE`", flag(&decl.name.text))),
            );
        }
    }
    let mut overrides: Vec<Override> = Vec::new();
    for (name, text) in given {
        let Some((_, decl)) = decls(file).find(|(_, decl)| is_named(decl, name)) else {
            diagnostics.push(unknown(file, name));
            continue;
        };
        if overrides.iter().any(|known| known.name == decl.name.text) {
            diagnostics.push(
                Diagnostic::error(Code::E0411, format!("the argument `{name}` is given twice"))
                    .label(decl.name.span, "declared here"),
            );
            continue;
        }
        match read(decl, text, sources) {
            Ok(value) => overrides.push(Override { name: decl.name.text.clone(), value }),
            Err(diagnostic) => diagnostics.push(*diagnostic),
        }
    }
    overrides
}

/// `--warm-up` and `--warm_up` are one flag.
fn is_named(decl: &ArgDecl, name: &str) -> bool {
    decl.name.text == name || flag(&decl.name.text) == name
}

fn flag(name: &str) -> String {
    name.replace('_', "-")
}

fn unknown(file: &File, name: &str) -> Diagnostic {
    let names: Vec<&str> = decls(file).map(|(_, decl)| decl.name.text.as_str()).collect();
    let diagnostic = Diagnostic::error(Code::E0411, format!("the recipe has no argument `{name}`"));
    // The place is the recipe, which has nothing to point at: its beginning stands for it.
    let diagnostic = diagnostic.label(Span { file: file.id, start: 0, end: 0 }, "in this recipe");
    match nearest(name, names.iter().copied()) {
        Some(near) => diagnostic.help(format!("did you mean `--{}`?", flag(near))),
        None if names.is_empty() => diagnostic.help("it declares none; `arg steps: Int = 100` would be one"),
        None => diagnostic.help(format!("its arguments are {}", names.join(", "))),
    }
}

fn is_optional(decl: &ArgDecl) -> bool {
    matches!(decl.ty, Some(Type { kind: TypeKind::Optional(_), .. }))
}

/// The name of the type, without `?`; `None` if it is none that an argument may have.
pub(crate) fn plain_type(decl: &ArgDecl) -> Option<&str> {
    let Some(ty) = &decl.ty else { return decl.default.as_ref().and_then(literal_type).or(Some("Str")) };
    let kind = match &ty.kind {
        TypeKind::Optional(inner) => &inner.kind,
        kind => kind,
    };
    match kind {
        TypeKind::Name(name) if TYPES.contains(&name.text.as_str()) => Some(&name.text),
        _ => None,
    }
}

fn check_type(decl: &ArgDecl, diagnostics: &mut Vec<Diagnostic>) {
    let Some(ty) = &decl.ty else { return };
    if plain_type(decl).is_none() {
        diagnostics.push(
            Diagnostic::error(
                Code::E0414,
                format!("the argument `{}` has a type that no command line can give", decl.name.text),
            )
            .label(ty.span, "this type")
            .help("an argument is an `Int`, `Float`, `Bool`, `Str` or `Path`, with `?` if it may be `none`"),
        );
    }
}

/// The text of the command line as an expression of the declared type.
fn read(decl: &ArgDecl, text: &str, sources: &mut Sources) -> Result<Expr, Box<Diagnostic>> {
    let span = decl.name.span;
    let Some(ty) = plain_type(decl) else { return Ok(Expr { kind: ExprKind::Hole, span }) };
    if is_optional(decl) && text == "none" {
        return Ok(Expr { kind: ExprKind::None, span });
    }
    if matches!(ty, "Str" | "Path") {
        return Ok(Expr { kind: ExprKind::Str(text.to_owned()), span });
    }
    let bad = || {
        Box::new(
            Diagnostic::error(
                Code::E0412,
                format!("`--{}` takes {}, and this is {text:?}", flag(&decl.name.text), words(ty)),
            )
            .label(decl.name.span, format!("declared as {ty}")),
        )
    };
    let value = literal(text, sources).ok_or_else(bad)?;
    let fits = match ty {
        "Int" => literal_type(&value) == Some("Int"),
        "Float" => matches!(literal_type(&value), Some("Int" | "Float")),
        _ => literal_type(&value) == Some("Bool"),
    };
    if fits { Ok(Expr { kind: value.kind, span }) } else { Err(bad()) }
}

fn words(ty: &str) -> &'static str {
    match ty {
        "Int" => "a whole number",
        "Float" => "a number",
        _ => "`true` or `false`",
    }
}

/// Reads a literal as the language does, by way of a declaration of it.
fn literal(text: &str, sources: &mut Sources) -> Option<Expr> {
    if text.contains('\n') || text.contains("//") {
        return None;
    }
    let line = format!("arg value = {text}");
    let id = sources.add("command line", &line);
    let (file, diagnostics) = parse(id, &line);
    if !diagnostics.is_empty() {
        return None;
    }
    let [item] = file.items.as_slice() else { return None };
    match &item.kind {
        ItemKind::Arg(decl) => decl.default.clone().filter(|value| literal_type(value).is_some()),
        _ => None,
    }
}
