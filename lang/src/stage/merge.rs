//! `mdlc merge`: a model's adapters folded into the weights that they change.
//!
//! In: a recipe with a trained stage, or a model and the folder of an adapter. Out: one graph with the new value of each weight that
//! an adapter changes, and where every weight of the model lies in files.

use mdl_graph::{Axis, DType, Graph, Name, Role};

use crate::check::{StoredKind, World};
use crate::diag::{Code, Diagnostic, Sources};
use crate::spec::{Origin, Read};
use crate::syntax::ast::{Expr, ExprKind, FileId, Span};

use super::context::Context;
use super::direct::built;
use super::read::Compute;

/// A model whose adapters are to be folded.
pub struct Merged {
    /// Values: the outputs of [`Fold`]s.
    pub graph: Graph,
    pub reads: Vec<Read>,
    pub folds: Vec<Fold>,
    /// Weights that a stage has trained besides: what they are, and where they lie.
    pub trained: Vec<(Read, Origin)>,
}

/// A weight that adapters change.
pub struct Fold {
    pub path: String,
    /// What the graph calls its new value, and what the layer adds though it has no bias: zero, or it cannot be folded.
    pub output: Name,
    pub added: Option<Name>,
    /// In the order of files: copies first, then as declared.
    pub axes: Vec<Axis>,
    /// Where it lies in the files that it was loaded from.
    pub origin: Origin,
}

/// Builds what folds the adapters of a trained stage, the last if none is named, or those of a folder around a model.
pub fn merge(
    sources: &mut Sources,
    main: FileId,
    (args, world): (&[(String, String)], &dyn World),
    (stage, adapter): (Option<&str>, Option<&str>),
) -> (Option<Merged>, Vec<Diagnostic>) {
    built(sources, main, args, world, |context, _, file| {
        let (name, span) = context.model_asked(file, stage)?;
        context.merged(&name, span, adapter)
    })
}

impl Context<'_> {
    fn merged(&mut self, name: &str, span: Span, adapter: Option<&str>) -> Option<Merged> {
        self.set_training(None);
        let env = self.env.clone();
        if adapter.is_some() {
            let builder = self.with_saved(name, span, adapter)?;
            let model = self.elab.rebuild("adapted", &env, &builder).ok()?;
            self.elab.idle_adapters(&builder.adapters, &model).ok()?;
        }
        let expr = Expr { kind: ExprKind::Name(name.to_owned()), span };
        let model = self.elab.eval(&env, &expr).ok()?;
        if !self.elab.has_adapters(&model) {
            let message = format!("`{name}` has no adapters, so there is nothing to fold");
            let help = "name a stage with `adapt = …`, or a folder of an adapter: `--adapter DIR`";
            self.report(Diagnostic::error(Code::E0409, message).label(span, "merged here").help(help));
            return None;
        }
        self.begin(span)?;
        let mut folds = Vec::new();
        let mut changed = Vec::new();
        for (n, folded) in self.elab.folded(&model, span).ok()?.into_iter().enumerate() {
            let output = Name::from(format!("folded:{n}"));
            self.elab.graph().output_as(output.clone(), Role::Value, folded.node);
            let added = folded.added.map(|node| {
                let name = Name::from(format!("added:{n}"));
                self.elab.graph().output_as(name.clone(), Role::Value, node);
                name
            });
            let stored = self.stored(folded.weight);
            let axes: Vec<Axis> = stored.stack.iter().chain(&stored.axes).cloned().collect();
            let path = stored.path.clone();
            let Some(origin) = stored.origin.as_deref().cloned() else {
                let message =
                    format!("`{path}` was in no file that it was loaded from, so there is no place to write it to");
                let help = "a model that is merged is a published one: `model = pretrained(\"dir\")`";
                self.report(Diagnostic::error(Code::E0409, message).label(span, "merged here").help(help));
                return None;
            };
            changed.push(folded.weight);
            folds.push(Fold { path, output, added, axes, origin });
        }
        let graph = self.elab.finish();
        let mut reads = Vec::new();
        self.reads_of(&graph, &[], span, &mut reads)?;
        // Everything else that is not as its files have it.
        let known = self.known(name).is_some();
        let mut trained = Vec::new();
        for id in self.elab.stored_of(&model) {
            let stored = self.stored(id);
            if changed.contains(&id) || !known || stored.kind != StoredKind::Weight {
                continue;
            }
            let (Some(place), Origin::Stage { stage, tensor }) =
                (stored.origin.as_deref().cloned(), self.kept_at(name, &stored.path, true))
            else {
                continue;
            };
            let is_file = matches!(place, Origin::Files { .. });
            let axes = stored.stack.iter().chain(&stored.axes).cloned().collect();
            let input = Name::from(stored.path.as_str());
            if is_file && !self.elab.is_adapters_own(id) {
                let origin = Origin::Stage { stage, tensor };
                trained.push((Read { input, dtype: DType::F32, axes, origin }, place));
            }
        }
        Some(Merged { graph, reads, folds, trained })
    }
}
