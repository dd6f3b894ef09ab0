//! Names in functions and layers that nobody uses: they are never evaluated, but a misspelt name in them is still told.
//!
//! Only what is certain without types: a variable that nothing defines, an axis that nothing introduces. Functions with a
//! parameter without a type may say any axis, so theirs are left alone. What is evaluated as well reports the same text at
//! the same place, and is told once.

use std::collections::BTreeSet;

use mdl_graph::Name;

use super::Elaborator;
use super::builtins;
use super::load::Global;
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{
    ArgKind, Axes, AxisDecl, AxisItem, AxisItemKind, AxisRef, Block, Expr, ExprKind, FnDef, Layer, Member, MemberKind,
    Optimizer, Param, Pattern, PatternKind, RecordPart, Side, Span, StatementKind, Type, TypeKind,
};

/// What is known at a place.
#[derive(Clone, Default)]
struct Scope {
    vars: BTreeSet<String>,
    axes: BTreeSet<String>,
    /// Some parameter lets any axis name in.
    open: bool,
}

impl Elaborator<'_> {
    /// Reports names that mean nothing in the functions, layers, optimizers and models of a file.
    pub(super) fn check_names(&mut self, file: usize) {
        let items: Vec<Global> = self.files[file].items.values().map(|(global, _)| global.clone()).collect();
        for item in items {
            let mut walk = Walk { elab: self, file, found: Vec::new() };
            match &item {
                Global::Fn(code) => walk.function(&code.def, &Scope::default()),
                Global::Layer(code) => walk.layer(&code.ast),
                Global::Optimizer(code) => walk.optimizer(&code.ast),
                Global::Model(expr) => walk.expr(expr, &Scope { open: true, ..Scope::default() }),
                Global::Arg(_) | Global::Stage(_) | Global::Broken | Global::Unread(_) => {}
            }
            for diagnostic in walk.found {
                self.push(diagnostic);
            }
        }
    }
}

struct Walk<'e, 'w> {
    elab: &'e Elaborator<'w>,
    file: usize,
    found: Vec<Diagnostic>,
}

impl Walk<'_, '_> {
    fn function(&mut self, def: &FnDef, outer: &Scope) {
        let mut scope = outer.clone();
        introduce_header(def.header.as_ref(), &mut scope);
        let params: Vec<&Param> = def.params.iter().flatten().collect();
        for param in &params {
            scope.open |= param.ty.is_none();
            introduce_type(param.ty.as_ref(), &mut scope);
            bind(&param.pattern, &mut scope);
        }
        introduce_expr(&def.body, &mut scope);
        for param in &params {
            self.maybe_type(param.ty.as_ref(), &scope);
            if let Some(default) = &param.default {
                self.expr(default, &scope);
            }
        }
        self.expr(&def.body, &scope);
    }

    fn layer(&mut self, layer: &Layer) {
        let mut scope = Scope::default();
        introduce_header(layer.header.as_ref(), &mut scope);
        for param in &layer.params {
            bind(&param.pattern, &mut scope);
        }
        introduce_members(&layer.members, &mut scope);
        for param in &layer.params {
            if let Some(default) = &param.default {
                self.expr(default, &scope);
            }
        }
        self.members(&layer.members, &scope);
    }

    fn optimizer(&mut self, optimizer: &Optimizer) {
        // Its functions see the axes of whatever weight they are for.
        let mut scope = Scope { open: true, ..Scope::default() };
        introduce_header(optimizer.target.as_ref(), &mut scope);
        scope.vars.insert("w".to_string());
        for param in &optimizer.params {
            bind(&param.pattern, &mut scope);
        }
        introduce_members(&optimizer.members, &mut scope);
        self.members(&optimizer.members, &scope);
    }

    fn members(&mut self, members: &[Member], scope: &Scope) {
        for member in members {
            match &member.kind {
                MemberKind::Axis(decls) => decls.iter().for_each(|decl| self.expr(&decl.size, scope)),
                MemberKind::Weight(decls) | MemberKind::State(decls) => {
                    for decl in decls {
                        self.expr(&decl.init, scope);
                        if let Some(condition) = &decl.condition {
                            self.expr(condition, scope);
                        }
                        self.maybe_type(decl.ty.as_ref(), scope);
                    }
                }
                MemberKind::Let { value, condition, .. } => {
                    self.expr(value, scope);
                    if let Some(condition) = condition {
                        self.expr(condition, scope);
                    }
                }
                MemberKind::Require(require) => self.expr(&require.condition, scope),
                MemberKind::Fn(def) => self.function(def, scope),
            }
        }
    }

    fn name(&mut self, text: &str, span: Span, scope: &Scope) {
        let base = text.trim_end_matches('\'');
        let known = scope.vars.contains(text)
            || scope.axes.contains(base)
            || self.elab.files[self.file].axes.contains_key(base)
            || self.elab.find_item(self.file, text).is_some()
            || builtins::find(text).is_some()
            || builtins::is_later(text);
        if known {
            return;
        }
        let items = self.elab.item_names(self.file);
        let mut names: Vec<&str> = scope.vars.iter().chain(&scope.axes).chain(&items).map(String::as_str).collect();
        for name in builtins::names() {
            names.push(name);
        }
        let near = nearest(text, names).map(str::to_string);
        let diagnostic = Diagnostic::error(Code::E0201, format!("there is no `{text}` here")).label(span, "not known");
        self.found.push(match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
    }

    fn axis(&mut self, axis: &AxisRef, scope: &Scope) {
        let Some(name) = axis.as_name() else { return };
        let base = name.text.trim_end_matches('\'');
        let known = scope.open
            || scope.axes.contains(base)
            // `depths[i]`: an index into a list looks the same.
            || scope.vars.contains(&name.text)
            || self.elab.files[self.file].axes.contains_key(base);
        if known {
            return;
        }
        let files = &self.elab.files[self.file].axes;
        let near = nearest(base, scope.axes.iter().chain(files.keys()).map(String::as_str)).map(str::to_string);
        let shown = Name::from(name.text.as_str());
        let diagnostic =
            Diagnostic::error(Code::E0202, format!("no axis `{shown}` is in scope here")).label(axis.span, "not known");
        self.found.push(match near {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic,
        });
    }

    fn axes(&mut self, axes: &Axes, scope: &Scope) {
        for item in axes.from.iter().flatten().chain(&axes.items) {
            match &item.kind {
                AxisItemKind::Axis(axis) => self.axis(axis, scope),
                AxisItemKind::Rename { to, .. } => {
                    to.parts.iter().filter_map(|part| part.size.as_ref()).for_each(|size| self.expr(size, scope));
                }
                AxisItemKind::Index { value, .. } | AxisItemKind::Bind { value, .. } | AxisItemKind::Value(value) => {
                    self.expr(value, scope);
                }
            }
        }
    }

    fn maybe_type(&mut self, ty: Option<&Type>, scope: &Scope) {
        if let Some(Type { kind: TypeKind::Tensor { axes: Some(axes), .. }, .. }) = ty {
            for item in axes.from.iter().flatten().chain(&axes.items) {
                if let AxisItemKind::Bind { value, .. } = &item.kind {
                    self.expr(value, scope);
                }
            }
        }
    }

    fn block(&mut self, block: &Block, scope: &Scope) {
        let mut scope = scope.clone();
        for statement in &block.statements {
            match &statement.kind {
                StatementKind::Let { pattern, ty, value } => {
                    self.expr(value, &scope);
                    self.maybe_type(ty.as_ref(), &scope);
                    bind(pattern, &mut scope);
                }
                StatementKind::Next { name, value } | StatementKind::Loss { name, value } => {
                    self.expr(value, &scope);
                    scope.vars.insert(name.text.clone());
                }
                StatementKind::Axis(decls) => decls.iter().for_each(|decl| self.expr(&decl.size, &scope)),
                StatementKind::Require(require) => self.expr(&require.condition, &scope),
            }
        }
        self.expr(&block.value, &scope);
    }

    fn expr(&mut self, expr: &Expr, scope: &Scope) {
        match &expr.kind {
            ExprKind::Name(text) => self.name(text, expr.span, scope),
            ExprKind::Tuple(items) | ExprKind::List(items) => items.iter().for_each(|item| self.expr(item, scope)),
            ExprKind::Record(parts) => {
                for part in parts {
                    let (RecordPart::Field { value, .. } | RecordPart::Spread(value)) = part;
                    self.expr(value, scope);
                }
            }
            ExprKind::Comprehension { element, pattern, source, condition } => {
                self.expr(source, scope);
                let mut scope = scope.clone();
                bind(pattern, &mut scope);
                self.expr(element, &scope);
                condition.iter().for_each(|condition| self.expr(condition, &scope));
            }
            ExprKind::Range { start, end } => start.iter().chain(end).for_each(|bound| self.expr(bound, scope)),
            ExprKind::Lambda { params, body } => {
                let mut scope = scope.clone();
                for param in params {
                    // What comes in brings its names along.
                    scope.open |= param.ty.is_none();
                    bind(&param.pattern, &mut scope);
                }
                self.expr(body, &scope);
            }
            ExprKind::Block(block) => self.block(block, scope),
            ExprKind::If { branches, otherwise } => {
                for branch in branches {
                    self.expr(&branch.condition, scope);
                    self.block(&branch.body, scope);
                }
                otherwise.iter().for_each(|block| self.block(block, scope));
            }
            ExprKind::Unary { value, .. } => self.expr(value, scope),
            ExprKind::Binary { left, right, .. } => {
                self.expr(left, scope);
                self.expr(right, scope);
            }
            ExprKind::Bracket { base, axes } => {
                self.expr(base, scope);
                self.axes(axes, scope);
            }
            ExprKind::Call { callee, args } => {
                self.expr(callee, scope);
                for arg in args {
                    let (ArgKind::Positional(value)
                    | ArgKind::Named { value, .. }
                    | ArgKind::Spread(value)
                    | ArgKind::Trailing(value)) = &arg.kind;
                    self.expr(value, scope);
                }
            }
            ExprKind::Member { base, .. } => self.expr(base, scope),
            ExprKind::Copies { axes, body, .. } => {
                self.axes(axes, scope);
                self.expr(body, scope);
            }
            ExprKind::At { value, pattern } => {
                self.expr(value, scope);
                self.expr(pattern, scope);
            }
            ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Quantity { .. }
            | ExprKind::Str(_)
            | ExprKind::Bool(_)
            | ExprKind::None
            | ExprKind::Training
            | ExprKind::Hole => {}
        }
    }
}

// ---- what introduces names ----

fn bind(pattern: &Pattern, scope: &mut Scope) {
    match &pattern.kind {
        PatternKind::Name(name) => {
            scope.vars.insert(name.clone());
        }
        PatternKind::Wildcard => {}
        PatternKind::Tuple(parts) => parts.iter().for_each(|part| bind(part, scope)),
    }
}

fn introduce(axis: &AxisRef, scope: &mut Scope) {
    if let Some(name) = axis.path.last() {
        scope.axes.insert(name.text.trim_end_matches('\'').to_string());
    }
}

fn introduce_items(items: &[AxisItem], scope: &mut Scope) {
    for item in items {
        if let AxisItemKind::Axis(axis) | AxisItemKind::Bind { axis, .. } = &item.kind {
            introduce(axis, scope);
        }
    }
}

fn introduce_header(header: Option<&Axes>, scope: &mut Scope) {
    if let Some(axes) = header {
        introduce_items(axes.from.as_deref().unwrap_or_default(), scope);
        introduce_items(&axes.items, scope);
    }
}

fn introduce_type(ty: Option<&Type>, scope: &mut Scope) {
    match ty.map(|ty| &ty.kind) {
        Some(TypeKind::Tensor { axes: Some(axes), .. }) => introduce_header(Some(axes), scope),
        Some(TypeKind::Tuple(types)) => types.iter().for_each(|ty| introduce_type(Some(ty), scope)),
        Some(TypeKind::Optional(inner)) => introduce_type(Some(inner), scope),
        _ => {}
    }
}

fn introduce_members(members: &[Member], scope: &mut Scope) {
    for member in members {
        match &member.kind {
            MemberKind::Axis(decls) => introduce_decls(decls, scope),
            MemberKind::Weight(decls) | MemberKind::State(decls) => {
                for decl in decls {
                    scope.vars.insert(decl.name.text.clone());
                    introduce_type(decl.ty.as_ref(), scope);
                }
            }
            MemberKind::Let { name, value, .. } => {
                scope.vars.insert(name.text.clone());
                introduce_expr(value, scope);
            }
            MemberKind::Fn(def) => {
                scope.vars.insert(def.name.text.clone());
            }
            MemberKind::Require(_) => {}
        }
    }
}

fn introduce_decls(decls: &[AxisDecl], scope: &mut Scope) {
    scope.axes.extend(decls.iter().map(|decl| decl.name.text.clone()));
}

fn introduce_side(side: &Side, scope: &mut Scope) {
    side.parts.iter().for_each(|part| introduce(&part.axis, scope));
}

/// Axes that an expression makes: right of `as`, before `: size`, by `axis`, and what `stack` and `concat` name.
fn introduce_expr(expr: &Expr, scope: &mut Scope) {
    match &expr.kind {
        ExprKind::Bracket { base, axes } => {
            let makes = matches!(&base.kind, ExprKind::Name(name) if matches!(name.as_str(), "stack" | "concat"));
            for item in axes.from.iter().flatten().chain(&axes.items) {
                match &item.kind {
                    AxisItemKind::Rename { from, to } => {
                        introduce_side(to, scope);
                        // `concat[cell as place]` names what may be nowhere else.
                        if makes {
                            introduce_side(from, scope);
                        }
                    }
                    AxisItemKind::Bind { axis, value } => {
                        introduce(axis, scope);
                        introduce_expr(value, scope);
                    }
                    AxisItemKind::Axis(axis) if makes => introduce(axis, scope),
                    AxisItemKind::Index { value, .. } | AxisItemKind::Value(value) => introduce_expr(value, scope),
                    AxisItemKind::Axis(_) => {}
                }
            }
            introduce_expr(base, scope);
        }
        ExprKind::Block(block) => introduce_block(block, scope),
        ExprKind::If { branches, otherwise } => {
            branches.iter().for_each(|branch| introduce_block(&branch.body, scope));
            otherwise.iter().for_each(|block| introduce_block(block, scope));
        }
        ExprKind::Tuple(items) | ExprKind::List(items) => items.iter().for_each(|item| introduce_expr(item, scope)),
        ExprKind::Record(parts) => parts.iter().for_each(|part| {
            let (RecordPart::Field { value, .. } | RecordPart::Spread(value)) = part;
            introduce_expr(value, scope);
        }),
        ExprKind::Comprehension { element, .. } => introduce_expr(element, scope),
        ExprKind::Lambda { params, body } => {
            params.iter().for_each(|param| introduce_type(param.ty.as_ref(), scope));
            introduce_expr(body, scope);
        }
        ExprKind::Unary { value, .. } | ExprKind::At { value, .. } => introduce_expr(value, scope),
        ExprKind::Binary { left, right, .. } => {
            introduce_expr(left, scope);
            introduce_expr(right, scope);
        }
        ExprKind::Call { callee, args } => {
            introduce_expr(callee, scope);
            for arg in args {
                let (ArgKind::Positional(value)
                | ArgKind::Named { value, .. }
                | ArgKind::Spread(value)
                | ArgKind::Trailing(value)) = &arg.kind;
                introduce_expr(value, scope);
            }
        }
        ExprKind::Member { base, .. } => introduce_expr(base, scope),
        ExprKind::Copies { axes, body, .. } => {
            axes.items.iter().for_each(|item| {
                if let AxisItemKind::Bind { axis, .. } = &item.kind {
                    introduce(axis, scope);
                }
            });
            introduce_expr(body, scope);
        }
        ExprKind::Int(_)
        | ExprKind::Float(_)
        | ExprKind::Quantity { .. }
        | ExprKind::Str(_)
        | ExprKind::Bool(_)
        | ExprKind::None
        | ExprKind::Training
        | ExprKind::Hole
        | ExprKind::Name(_)
        | ExprKind::Range { .. } => {}
    }
}

fn introduce_block(block: &Block, scope: &mut Scope) {
    for statement in &block.statements {
        match &statement.kind {
            StatementKind::Let { value, ty, .. } => {
                introduce_type(ty.as_ref(), scope);
                introduce_expr(value, scope);
            }
            StatementKind::Next { value, .. } | StatementKind::Loss { value, .. } => introduce_expr(value, scope),
            StatementKind::Axis(decls) => introduce_decls(decls, scope),
            StatementKind::Require(_) => {}
        }
    }
    introduce_expr(&block.value, scope);
}
