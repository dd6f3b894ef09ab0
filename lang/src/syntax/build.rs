//! The bridge from pest to the tree: the generated parser, and what builders of all kinds of nodes share.
//!
//! A builder takes a pair of its rule and cannot fail: where the text is wrong in a way that the grammar lets through, it
//! reports and goes on with a stand-in, and the whole item is marked broken by whoever sees the report.

use pest::iterators::{Pair, Pairs};

use super::ast::{
    Axes, AxisDecl, AxisItem, AxisItemKind, AxisRef, Dtype, FileId, Name, Param, Part, Side, Span, Type, TypeKind,
};
use crate::diag::{Code, Diagnostic};

#[derive(pest_derive::Parser)]
#[grammar = "syntax/grammar.pest"]
pub(super) struct Grammar;

/// Builds the nodes of one item.
pub(super) struct Build<'a> {
    pub(super) file: FileId,
    /// Where the item begins in the file: pest counts from there.
    pub(super) base: usize,
    /// Doc comments of the file, by the offset of what follows them.
    pub(super) docs: &'a [(usize, String)],
    pub(super) diagnostics: &'a mut Vec<Diagnostic>,
    /// Levels of the expression being built.
    pub(super) depth: usize,
    /// Set once the depth has been reported.
    pub(super) is_too_deep: bool,
}

/// The meaningful children of a pair, in order: without brackets, commas, keywords and newlines.
pub(super) struct Parts<'i>(std::iter::Peekable<Pairs<'i, Rule>>);

impl<'i> Parts<'i> {
    pub(super) fn new(pair: Pair<'i, Rule>) -> Self {
        Self(pair.into_inner().peekable())
    }

    /// The next child if it is of this rule.
    pub(super) fn accept(&mut self, rule: Rule) -> Option<Pair<'i, Rule>> {
        self.skip();
        self.0.next_if(|pair| pair.as_rule() == rule)
    }

    /// The next child, which the grammar promises.
    pub(super) fn need(&mut self, rule: Rule) -> Pair<'i, Rule> {
        match self.accept(rule) {
            Some(pair) => pair,
            None => panic!("bug in mdlc: the grammar promises {rule:?} here, not {:?}", self.0.peek()),
        }
    }

    /// The next child of whatever rule.
    pub(super) fn any(&mut self) -> Pair<'i, Rule> {
        match self.next() {
            Some(pair) => pair,
            None => panic!("bug in mdlc: the grammar promises something here"),
        }
    }

    fn skip(&mut self) {
        while self.0.next_if(|pair| is_mark(pair.as_rule())).is_some() {}
    }
}

impl<'i> Iterator for Parts<'i> {
    type Item = Pair<'i, Rule>;

    fn next(&mut self) -> Option<Self::Item> {
        self.skip();
        self.0.next()
    }
}

/// Whether a rule only stands for a mark or a keyword. `arrow` is none: what surrounds it depends on it.
fn is_mark(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::nl
            | Rule::comma
            | Rule::colon
            | Rule::equals
            | Rule::open_paren
            | Rule::close_paren
            | Rule::open_bracket
            | Rule::close_bracket
            | Rule::open_brace
            | Rule::close_brace
            | Rule::dots
            | Rule::kw_let
            | Rule::kw_if
            | Rule::kw_else
            | Rule::kw_fn
            | Rule::kw_for
            | Rule::kw_in
            | Rule::kw_as
            | Rule::kw_next
            | Rule::kw_loss
            | Rule::kw_require
            | Rule::kw_axis
            | Rule::kw_weight
            | Rule::kw_state
            | Rule::EOI
    )
}

impl Build<'_> {
    pub(super) fn span(&self, pair: &Pair<'_, Rule>) -> Span {
        // A rule may take trailing blanks in before an optional part that is not there.
        let (span, text) = (pair.as_span(), pair.as_str());
        let start = self.base + span.start();
        Span::new(self.file, start, start + text.trim_end().len())
    }

    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn name(&self, pair: Pair<'_, Rule>) -> Name {
        Name { text: pair.as_str().to_owned(), span: self.span(&pair) }
    }

    /// The doc comment right before an offset of this item.
    pub(super) fn docs_before(&self, span: Span) -> String {
        let found = self.docs.binary_search_by_key(&(span.start as usize), |(offset, _)| *offset);
        found.map_or_else(|_| String::new(), |at| self.docs[at].1.clone())
    }

    /// Reports each name that stands twice in a list where it may stand once.
    pub(super) fn refuse_twice<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n Name>) {
        let mut seen: Vec<&Name> = Vec::new();
        for name in names {
            match seen.iter().find(|other| other.text == name.text) {
                Some(first) => {
                    let diagnostic =
                        Diagnostic::error(Code::E0115, format!("the {what} `{}` is given twice", name.text))
                            .label(name.span, "given again")
                            .label(first.span, "given first here")
                            .help("remove one of them");
                    self.diagnostics.push(diagnostic);
                }
                None => seen.push(name),
            }
        }
    }

    pub(super) fn axis_decls(&mut self, parts: Parts<'_>) -> Vec<AxisDecl> {
        let mut decls = Vec::new();
        for pair in parts {
            let span = self.span(&pair);
            let mut parts = Parts::new(pair);
            let name = self.name(parts.need(Rule::ident));
            decls.push(AxisDecl { name, size: self.expr(parts.need(Rule::expr)), span });
        }
        decls
    }

    pub(super) fn params(&mut self, pair: Pair<'_, Rule>) -> Vec<Param> {
        let mut params = Vec::new();
        for pair in Parts::new(pair) {
            let span = self.span(&pair);
            let mut parts = Parts::new(pair);
            let pattern = self.pattern(parts.need(Rule::pattern));
            let ty = parts.accept(Rule::ty).map(|ty| self.ty(ty));
            let default = parts.accept(Rule::expr).map(|default| self.expr(default));
            params.push(Param { pattern, ty, default, span });
        }
        params
    }

    pub(super) fn axes(&mut self, pair: Pair<'_, Rule>) -> Axes {
        let span = self.span(&pair);
        let (mut from, mut items) = (None, Vec::new());
        for part in Parts::new(pair) {
            if part.as_rule() == Rule::arrow {
                from = Some(std::mem::take(&mut items));
            } else {
                items = Parts::new(part).map(|item| self.axis_item(item)).collect();
            }
        }
        Axes { from, items, span }
    }

    fn axis_item(&mut self, pair: Pair<'_, Rule>) -> AxisItem {
        let span = self.span(&pair);
        let inner = Parts::new(pair).any();
        let kind = match inner.as_rule() {
            Rule::expr => AxisItemKind::Value(self.expr(inner)),
            Rule::merge => {
                let mut parts = Parts::new(inner);
                let from = self.axis_group(parts.need(Rule::axis_group));
                AxisItemKind::Rename { from, to: self.rename(parts.need(Rule::rename)) }
            }
            _ => {
                let mut parts = Parts::new(inner);
                let axis = self.axis(parts.need(Rule::axis));
                match parts.next() {
                    None => AxisItemKind::Axis(axis),
                    Some(rename) if rename.as_rule() == Rule::rename => {
                        let span = axis.span;
                        let from = Side { parts: vec![Part { axis, size: None }], is_group: false, span };
                        AxisItemKind::Rename { from, to: self.rename(rename) }
                    }
                    Some(other) => {
                        let is_index = other.as_rule() == Rule::index;
                        let value = self.expr(Parts::new(other).need(Rule::expr));
                        if is_index { AxisItemKind::Index { axis, value } } else { AxisItemKind::Bind { axis, value } }
                    }
                }
            }
        };
        AxisItem { kind, span }
    }

    fn rename(&mut self, pair: Pair<'_, Rule>) -> Side {
        let to = Parts::new(pair).any();
        let span = self.span(&to);
        if to.as_rule() == Rule::part {
            return Side { parts: vec![self.part(to)], is_group: false, span };
        }
        Side { parts: Parts::new(to).map(|part| self.part(part)).collect(), is_group: true, span }
    }

    fn part(&mut self, pair: Pair<'_, Rule>) -> Part {
        let mut parts = Parts::new(pair);
        let axis = self.axis(parts.need(Rule::axis));
        Part { axis, size: parts.accept(Rule::expr).map(|size| self.expr(size)) }
    }

    fn axis_group(&mut self, pair: Pair<'_, Rule>) -> Side {
        let span = self.span(&pair);
        let parts = Parts::new(pair).map(|axis| Part { axis: self.axis(axis), size: None }).collect();
        Side { parts, is_group: true, span }
    }

    pub(super) fn axis(&self, pair: Pair<'_, Rule>) -> AxisRef {
        let span = self.span(&pair);
        let is_pack = pair.as_str().starts_with("..");
        AxisRef { is_pack, path: Parts::new(pair).map(|step| self.name(step)).collect(), span }
    }

    /// The parts of one dimension of a tensor in a file, each the axes merged into it.
    pub(super) fn dimension(&mut self, pair: Pair<'_, Rule>) -> Vec<Vec<AxisRef>> {
        let mut dimension = Vec::new();
        for part in Parts::new(pair) {
            let inner = Parts::new(part).any();
            dimension.push(match inner.as_rule() {
                Rule::axis => vec![self.axis(inner)],
                Rule::one => Vec::new(),
                _ => Parts::new(inner).map(|axis| self.axis(axis)).collect(),
            });
        }
        dimension
    }

    pub(super) fn ty(&mut self, pair: Pair<'_, Rule>) -> Type {
        let span = self.span(&pair);
        let mut parts = Parts::new(pair);
        let core = parts.any();
        let core_span = self.span(&core);
        let kind = self.type_kind(core);
        match parts.accept(Rule::optional) {
            Some(_) => Type { kind: TypeKind::Optional(Box::new(Type { kind, span: core_span })), span },
            None => Type { kind, span },
        }
    }

    fn type_kind(&mut self, pair: Pair<'_, Rule>) -> TypeKind {
        match pair.as_rule() {
            Rule::type_name => TypeKind::Name(self.name(pair)),
            Rule::axes => TypeKind::Tensor { dtype: None, axes: Some(self.axes(pair)) },
            Rule::type_tuple => self.type_tuple(pair),
            Rule::type_list => {
                let mut parts = Parts::new(pair);
                let element = parts.any();
                let span = self.span(&element);
                let mut element = Type { kind: self.type_kind(element), span };
                if let Some(mark) = parts.accept(Rule::optional) {
                    let span = span.to(self.span(&mark));
                    element = Type { kind: TypeKind::Optional(Box::new(element)), span };
                }
                TypeKind::List(Box::new(element))
            }
            _ => {
                let mut parts = Parts::new(pair);
                let name = self.name(parts.need(Rule::ident));
                let args = parts.accept(Rule::dtype_args);
                let axes = parts.accept(Rule::axes).map(|axes| self.axes(axes));
                if args.is_none() && axes.is_none() {
                    return TypeKind::Name(name);
                }
                let span = args.as_ref().map_or(name.span, |args| self.span(args)).to(name.span);
                let args = args.map_or_else(Vec::new, |args| self.args(args));
                TypeKind::Tensor { dtype: Some(Dtype { name, args, span }), axes }
            }
        }
    }

    /// `([..], [..])`, or with names a record; one type in parentheses is that type.
    fn type_tuple(&mut self, pair: Pair<'_, Rule>) -> TypeKind {
        let span = self.span(&pair);
        let mut members = Vec::new();
        for part in Parts::new(pair) {
            let mut parts = Parts::new(part);
            let name = parts.accept(Rule::ident).map(|name| self.name(name));
            members.push((name, self.ty(parts.need(Rule::ty))));
        }
        let n_named = members.iter().filter(|(name, _)| name.is_some()).count();
        if n_named > 0 && n_named < members.len() {
            self.report(
                Diagnostic::error(Code::E0101, "a field of a record type has no name")
                    .label(span, "some fields are named here, others not")
                    .help("a record is `(a: f32, b: f32)`, a tuple `(f32, f32)`; they do not mix"),
            );
        }
        if n_named > 0 {
            return TypeKind::Record(members.into_iter().filter_map(|(name, ty)| Some((name?, ty))).collect());
        }
        TypeKind::Tuple(members.into_iter().map(|(_, ty)| ty).collect())
    }
}
