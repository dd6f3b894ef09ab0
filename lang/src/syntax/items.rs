//! From pest's pairs to items: layers, functions, optimizers, stages and the rest.

use pest::iterators::Pair;

use super::ast::{
    ArgDecl, Field, FnDef, ItemKind, Layer, Member, MemberKind, Name, Names, NamesRow, Optimizer, Param, PatternKind,
    Stage, Stored, Use, UseFrom,
};
use super::build::{Build, Parts, Rule};

impl Build<'_> {
    /// `pair` is of one of the rules that `rule_of` in `parse.rs` chooses from.
    pub(super) fn item(&mut self, pair: Pair<'_, Rule>) -> ItemKind {
        let rule = pair.as_rule();
        let mut parts = Parts::new(pair);
        // The word that opens it; a stage's says which stage.
        let word = parts.accept(Rule::kw_item).map(|word| self.name(word));
        match rule {
            Rule::use_item => ItemKind::Use(self.use_item(parts)),
            Rule::arg_item => {
                let name = self.name(parts.need(Rule::ident));
                let ty = parts.accept(Rule::ty).map(|ty| self.ty(ty));
                ItemKind::Arg(ArgDecl { name, ty, default: parts.accept(Rule::expr).map(|default| self.expr(default)) })
            }
            Rule::axis_item_decl => ItemKind::Axis(self.axis_decls(parts)),
            Rule::model_item => {
                let name = self.name(parts.need(Rule::ident));
                ItemKind::Model { name, value: self.expr(parts.need(Rule::expr)) }
            }
            Rule::names_item => ItemKind::Names(self.names_item(parts)),
            Rule::fn_item => ItemKind::Fn(self.fn_def(parts.need(Rule::fn_def))),
            Rule::layer_item => {
                let name = self.name(parts.need(Rule::ident));
                let header = parts.accept(Rule::axes).map(|axes| self.axes(axes));
                let params = self.named_params(parts.need(Rule::params));
                ItemKind::Layer(Layer { name, header, params, members: self.members(parts.need(Rule::members)) })
            }
            Rule::optimizer_item => {
                let name = self.name(parts.need(Rule::ident));
                let params = self.named_params(parts.need(Rule::params));
                let target = parts.accept(Rule::axes).map(|axes| self.axes(axes));
                ItemKind::Optimizer(Optimizer {
                    name,
                    params,
                    target,
                    members: self.members(parts.need(Rule::members)),
                })
            }
            _ => {
                let Some(kind) = word else { panic!("bug in mdlc: the grammar promises the kind of a stage") };
                ItemKind::Stage(self.stage(kind, parts))
            }
        }
    }

    fn use_item(&mut self, mut parts: Parts<'_>) -> Use {
        let from = match parts.accept(Rule::string) {
            Some(file) => UseFrom::File(self.string(file)),
            None => UseFrom::Path(Parts::new(parts.need(Rule::use_path)).map(|step| self.name(step)).collect()),
        };
        let sha256 = parts.accept(Rule::pin).map(|pin| self.name(Parts::new(pin).need(Rule::digest)));
        let names = parts.accept(Rule::use_names).map(|names| Parts::new(names).map(|name| self.name(name)).collect());
        let used = Use { from, sha256, names };
        self.refuse_twice("name", used.names.iter().flatten());
        used
    }

    fn names_item(&mut self, mut parts: Parts<'_>) -> Names {
        let name = self.name(parts.need(Rule::ident));
        let mut rows = Vec::new();
        while let Some(row) = parts.accept(Rule::names_row) {
            let span = self.span(&row);
            let mut parts = Parts::new(row);
            let mut paths: Vec<Vec<Name>> = Vec::new();
            while let Some(path) = parts.accept(Rule::path) {
                paths.push(Parts::new(path).map(|step| self.name(step)).collect());
            }
            let tensor = self.string(parts.need(Rule::string));
            let order = parts
                .accept(Rule::names_order)
                .map(|order| Parts::new(order).map(|dimension| self.dimension(dimension)).collect());
            rows.push(NamesRow { paths, tensor, order, span });
        }
        Names { name, rows }
    }

    fn stage(&mut self, kind: Name, mut parts: Parts<'_>) -> Stage {
        let name = parts.accept(Rule::ident).map(|name| self.name(name));
        let mut fields = Vec::new();
        if let Some(body) = parts.accept(Rule::stage_body) {
            for field in Parts::new(body) {
                let span = self.span(&field);
                let mut parts = Parts::new(field);
                let name = self.name(parts.need(Rule::ident));
                fields.push(Field { name, value: self.expr(parts.need(Rule::expr)), span });
            }
        }
        self.refuse_twice("field", fields.iter().map(|field| &field.name));
        Stage { kind, name, fields, value: parts.accept(Rule::expr).map(|value| self.expr(value)) }
    }

    fn fn_def(&mut self, pair: Pair<'_, Rule>) -> FnDef {
        let mut parts = Parts::new(pair);
        let name = self.name(parts.need(Rule::ident));
        let header = parts.accept(Rule::axes).map(|axes| self.axes(axes));
        let mut params = Vec::new();
        while let Some(list) = parts.accept(Rule::params) {
            params.push(self.named_params(list));
        }
        let result = parts.accept(Rule::arrow).map(|_| parts.need(Rule::ty)).map(|ty| self.ty(ty));
        FnDef { name, header, params, result, body: self.expr(parts.need(Rule::expr)) }
    }

    /// The parameters of a definition, whose names must differ.
    fn named_params(&mut self, pair: Pair<'_, Rule>) -> Vec<Param> {
        let params = self.params(pair);
        let names: Vec<Name> = params
            .iter()
            .filter_map(|param| match &param.pattern.kind {
                PatternKind::Name(text) => Some(Name { text: text.clone(), span: param.pattern.span }),
                PatternKind::Wildcard | PatternKind::Tuple(_) => None,
            })
            .collect();
        self.refuse_twice("parameter", names.iter());
        params
    }

    fn members(&mut self, pair: Pair<'_, Rule>) -> Vec<Member> {
        let mut members = Vec::new();
        for member in Parts::new(pair) {
            let span = self.span(&member);
            let inner = Parts::new(member).any();
            let kind = match inner.as_rule() {
                Rule::fn_def => MemberKind::Fn(self.fn_def(inner)),
                Rule::axis_stmt => MemberKind::Axis(self.axis_decls(Parts::new(inner))),
                Rule::weight_member => MemberKind::Weight(self.stored(inner)),
                Rule::state_member => MemberKind::State(self.stored(inner)),
                Rule::require_stmt => MemberKind::Require(self.require(inner)),
                _ => {
                    let mut parts = Parts::new(inner);
                    let name = self.name(parts.need(Rule::ident));
                    let value = self.expr(parts.need(Rule::expr));
                    MemberKind::Let { name, value, condition: parts.accept(Rule::expr).map(|on| self.expr(on)) }
                }
            };
            members.push(Member { docs: self.docs_before(span), kind, span });
        }
        members
    }

    fn stored(&mut self, pair: Pair<'_, Rule>) -> Vec<Stored> {
        let mut list = Vec::new();
        for stored in Parts::new(pair) {
            let span = self.span(&stored);
            let mut parts = Parts::new(stored);
            let name = self.name(parts.need(Rule::ident));
            let ty = parts.accept(Rule::ty).map(|ty| self.ty(ty));
            let init = self.expr(parts.need(Rule::expr));
            list.push(Stored { name, ty, init, condition: parts.accept(Rule::expr).map(|on| self.expr(on)), span });
        }
        list
    }
}
