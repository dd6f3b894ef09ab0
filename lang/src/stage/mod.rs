//! Stages: from the blocks of a recipe to [`Program`], every number known and every computation a graph.
//!
//! In: a parsed recipe, what the command line gives for its `arg`s, and a [`World`] that knows the data. Out: the
//! program and every mistake found on the way; a block with a mistake is left out of the program and its neighbours are
//! checked all the same. What fields mean is here; what expressions mean is the evaluator's business (`check/`).

mod adapt;
mod apply;
mod args;
mod context;
mod data;
mod direct;
mod eval;
mod fields;
mod manual;
mod measuring;
mod merge;
mod objective;
mod optimize;
mod parts;
pub mod pattern;
mod read;
mod schema;
mod step;
mod tables;
mod train;

pub use apply::{Applied, Array, ArrayKind, Asked, Ordered, apply};
pub use args::args_of;
pub use direct::{Most, Tuned, Writes, gradients, saved, tune, unread, writes};
pub use manual::{manual, manuals};
pub use merge::{Fold, Merged, merge};
pub use schema::{FieldRow, FunctionRow, KindRow, Need, Takes, fields, kind, kinds};

use std::rc::Rc;

use crate::check::World;
use crate::diag::{Code, Diagnostic, Sources};
use crate::spec::{Program, Stage, StageKind};
use crate::syntax::ast::{self, FileId, ItemKind, Span};

use context::Context;

/// Checks a recipe. `sources` holds it as `main` and gets the files that it imports; `args` are values for its `arg`s by
/// name, as text.
pub fn check(
    sources: &mut Sources,
    main: FileId,
    args: &[(String, String)],
    world: &dyn World,
) -> (Program, Vec<Diagnostic>) {
    let mut context = Context::new(std::mem::take(sources), main, args, world);
    let (program, _) = context.stages();
    let n_blocks = context.n_blocks();
    let (all, mut diagnostics) = context.finish();
    *sources = all;
    if program.stages.len() < n_blocks && !diagnostics.iter().any(Diagnostic::is_error) {
        mdl_graph::bug!("a block was left out without a word");
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.labels.first().map(|label| label.span));
    (program, diagnostics)
}

impl Context<'_> {
    /// Reads every block in an order in which they can be run; also gives the recipe's items.
    fn stages(&mut self) -> (Program, Rc<ast::File>) {
        let mut program = Program { args: self.args(), ..Program::default() };
        let file = self.file();
        let blocks = self.blocks(&file);
        for block in blocks.iter().filter(|block| block.kind.name == "data") {
            if let Some(spec) = self.data(block) {
                program.stages.push(block.stage(Vec::new(), StageKind::Data(spec)));
            }
        }
        self.axes(&file);
        self.models(&file, false);
        let trains = blocks.iter().filter(|block| block.kind.name == "train").collect();
        for block in self.in_order(trains) {
            if let Some((needs, spec)) = self.train(block) {
                program.stages.push(block.stage(needs, StageKind::Train(Box::new(spec))));
            }
        }
        program.device = self.device.map(|(device, _)| device).unwrap_or_default();
        self.models(&file, true);
        for block in blocks.iter().filter(|block| block.kind.name == "eval") {
            if let Some((needs, spec)) = self.eval(block) {
                program.stages.push(block.stage(needs, StageKind::Eval(Box::new(spec))));
            }
        }
        (program, file)
    }
}

/// A block of a kind that this version has.
pub(crate) struct Block<'e> {
    pub(crate) kind: &'static KindRow,
    pub(crate) name: &'e str,
    /// Of its name.
    pub(crate) span: Span,
    pub(crate) ast: &'e ast::Stage,
}

impl Block<'_> {
    fn stage(&self, needs: Vec<String>, kind: StageKind) -> Stage {
        Stage { name: self.name.to_owned(), span: self.span, needs, kind }
    }
}

/// Reports what is wrong with a block before its fields are looked at.
pub(crate) fn block<'e>(item: &'e ast::Item, diagnostics: &mut Vec<Diagnostic>) -> Option<Block<'e>> {
    let ItemKind::Stage(stage) = &item.kind else { return None };
    let name = stage.kind.text.as_str();
    let Some(row) = schema::kind(name) else {
        let known = || schema::kinds().iter().filter(|row| !row.later).map(|row| row.name);
        let diagnostic = Diagnostic::error(Code::E0307, format!("there is no kind of block `{name}`"))
            .label(stage.kind.span, "unknown kind");
        diagnostics.push(match crate::diag::nearest(name, known()) {
            Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
            None => diagnostic.help(format!("there are {}", schema::one_of(known()).replace(" or ", " and "))),
        });
        return None;
    };
    if row.later {
        diagnostics.push(
            Diagnostic::error(Code::E0701, format!("`{name}` blocks are not in this version"))
                .label(stage.kind.span, "not in this version")
                .help(format!(
                    "leave the block out; it would say what {}",
                    row.doc.to_lowercase().trim_end_matches('.')
                )),
        );
        return None;
    }
    let Some(given) = &stage.name else {
        diagnostics.push(
            Diagnostic::error(Code::E0316, format!("a `{name}` block needs a name"))
                .label(stage.kind.span, "without a name")
                .help(format!("its results are kept under it: `{name} base {{ … }}`")),
        );
        return None;
    };
    if let Some(value) = &stage.value {
        diagnostics.push(
            Diagnostic::error(Code::E0303, format!("`{name}` takes fields in braces, and this is a value"))
                .label(value.span, "a value here")
                .help(format!("write `{name} {} {{ … }}`", given.text)),
        );
        return None;
    }
    Some(Block { kind: row, name: &given.text, span: given.span, ast: stage })
}
