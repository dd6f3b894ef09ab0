//! Adapters: layers that take the place of layers of a model, which they were given. `Lora(_, rank: 16) at "blocks.*.attn.q"`.
//!
//! A model is built once more for each stage (see `rebuild.rs`), and whatever is built at a path passes here: the first adapter of
//! the stage that takes it is built around it, within the copies around, one path step below: `blocks.attn.q.lora.a`. To everybody
//! else the adapter then is the layer: it stands at its path, and has the axes of its header. So adapters go on adapters, those of
//! a stage around those of the stage whose model it goes on with.
//!
//! An adapter whose parameter has the type of a layer, `base: Linear`, takes the layers of that type at its pattern or under it;
//! `base: Layer` takes what is at the pattern. Without a pattern it takes the model as a whole.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use super::Elaborator;
use super::call::pattern_name;
use super::scope::untwinned;
use super::value::{Args, Eval, Layer, LayerKind, LayerMaker, MakerKind, Stop, StoredId, Value};
use super::watch::{MANY, Step, each_index, spelled};
use crate::diag::{Code, Diagnostic, nearest};
use crate::stage::pattern::{Match, PathStep, Pattern};
use crate::syntax::ast::{Expr, Name, Span, TypeKind};

/// What builds the model of a stage.
#[derive(Clone)]
pub struct Builder {
    pub model: Expr,
    pub adapters: Rc<Vec<Adapter>>,
}

/// One of the adapters of a stage.
pub struct Adapter {
    maker: Rc<LayerMaker>,
    places: Places,
    /// The name of the parameter that takes the layer, and the layer that its type names, if it names one.
    param: String,
    wanted: Option<String>,
    span: Span,
    /// The folder that its weights come from.
    saved: Option<Rc<str>>,
    /// How many layers it took in all builds, and whether it met one that it does not take.
    taken: Cell<usize>,
}

/// Which layers an adapter takes.
pub enum Places {
    /// The model itself.
    Whole,
    /// What a pattern takes; with its text.
    At(Pattern, String),
    /// All copies of the layer at this path, which has no indices.
    Path(String),
}

impl Places {
    fn text(&self) -> Option<&str> {
        match self {
            Places::Whole => None,
            Places::At(_, text) | Places::Path(text) => Some(text),
        }
    }
}

/// A model that is being built with adapters.
pub(super) struct Adapting {
    adapters: Rc<Vec<Adapter>>,
    /// The steps that lead to the model itself.
    base: usize,
}

/// The weights that an adapter has brought, and how many models were being built around the one that it is of.
#[derive(Clone)]
pub(super) struct Brought {
    pub(super) ids: Range<u32>,
    depth: usize,
    pub(super) layer: Layer,
    /// The folder that they come from, and who says so.
    pub(super) saved: Option<(Rc<str>, Span)>,
}

/// Which copies of a layer a pattern takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    No,
    Some,
    All,
}

impl Elaborator<'_> {
    /// An adapter as a recipe writes it, `Lora(_, rank: 16)`.
    pub fn adapter(&mut self, value: &Value, places: Places, saved: Option<Rc<str>>, span: Span) -> Eval<Adapter> {
        let (maker, code, open) = match value {
            Value::Maker(maker) => match &maker.what {
                MakerKind::Partial(code, open) => (maker, code, Some(open)),
                MakerKind::Code(code) => (maker, code, None),
            },
            Value::Error => return Err(Stop),
            other => {
                let message = format!("`adapt` takes layers that take a layer, and this is {}", other.kind());
                let help = "leave the argument for the layer open: `Lora(_, rank: 16) at \"blocks.*.attn.{q, v}\"`";
                return Err(self.error_help(Code::E0303, message, span, "no adapter", help));
            }
        };
        let name = code.ast.name.text.clone();
        let place = open.and_then(|open| {
            let positional = open.positional.iter().position(|(value, _)| value.is_hole());
            let named = || {
                let (name, ..) = open.named.iter().find(|(_, value, _)| value.is_hole())?;
                code.ast.params.iter().position(|param| pattern_name(&param.pattern) == **name)
            };
            positional.or_else(named)
        });
        let Some(param) = place.and_then(|place| code.ast.params.get(place)) else {
            let message = format!("`{name}` is given no layer, and leaves no argument open for one");
            let help = format!("write `{name}(_)`, with its other arguments after that");
            return Err(self.error_help(Code::E0303, message, span, "which layer would it take?", help));
        };
        let wanted = match param.ty.as_ref().map(|ty| &ty.kind) {
            Some(TypeKind::Name(ty)) if ty.text != "Layer" => Some(ty.text.clone()),
            _ => None,
        };
        let param = pattern_name(&param.pattern);
        Ok(Adapter { maker: maker.clone(), places, param, wanted, span, saved, taken: Cell::new(0) })
    }

    /// Reports adapters that took no layer of the model that was built.
    pub fn idle_adapters(&mut self, adapters: &[Adapter], model: &Value) -> Eval<()> {
        let mut result = Ok(());
        for adapter in adapters.iter().filter(|adapter| adapter.taken.get() == 0) {
            let what = adapter.wanted.as_deref().map_or("layer".to_string(), |wanted| format!("layer `{wanted}`"));
            let text = adapter.places.text();
            let message = match text {
                Some(text) => format!("the pattern `{text}` leaves this adapter no {what}"),
                None => format!("this adapter takes a model that is a {what}, and the model is another"),
            };
            let paths = self.layer_paths(model);
            let help = match text
                .filter(|_| adapters.len() == 1)
                .and_then(|text| nearest(text, paths.iter().map(String::as_str)))
            {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let shown: Vec<&str> = paths.iter().take(4).map(String::as_str).collect();
                    let first =
                        if adapters.len() > 1 { "the first of a list that takes a layer goes around it; " } else { "" };
                    format!("{first}layers are at {}{}", shown.join(", "), if paths.len() > 4 { ", …" } else { "" })
                }
            };
            self.push(Diagnostic::error(Code::E0312, message).label(adapter.span, "without effect").help(help));
            result = Err(Stop);
        }
        result
    }

    /// The paths of layers that have weights of their own.
    fn layer_paths(&self, model: &Value) -> Vec<String> {
        let mut paths: Vec<String> = Vec::new();
        for id in self.stored_of(model) {
            if let Some((layer, _)) = self.stored[id.0 as usize].path.rsplit_once('.')
                && !paths.iter().any(|path| path == layer)
            {
                paths.push(layer.to_string());
            }
        }
        paths
    }

    /// Runs what builds a model with its adapters around what it builds.
    pub(super) fn with_adapters(
        &mut self,
        adapters: &Rc<Vec<Adapter>>,
        build: impl FnOnce(&mut Self) -> Eval<Value>,
    ) -> Eval<Value> {
        self.adapting.push(Adapting { adapters: adapters.clone(), base: self.path.len() });
        let value = build(self).and_then(|value| self.adapted(value));
        self.adapting.pop();
        value
    }

    /// Whether an adapter of the stage itself, and not of one that it goes on from, has brought a weight.
    pub fn is_of_adapter(&self, id: StoredId) -> bool {
        self.brought.iter().any(|brought| brought.depth == 1 && brought.ids.contains(&id.0))
    }

    /// Whether a weight was brought by no adapter of the outermost `depth` models that were being built.
    pub(super) fn is_built_within(&self, id: StoredId, depth: usize) -> bool {
        !self.brought.iter().any(|brought| brought.depth <= depth && brought.ids.contains(&id.0))
    }

    /// What was built at the path where this is, with the adapters that take it.
    pub(super) fn adapted(&mut self, value: Value) -> Eval<Value> {
        let Value::Layer(mut layer) = value else { return Ok(value) };
        if self.adapting.is_empty() || matches!(layer.data.kind, LayerKind::Copies(..)) {
            return Ok(Value::Layer(layer));
        }
        // A layer that was built elsewhere and handed on stays what it is.
        let own = innermost(&layer);
        if own.data.root != self.root || own.data.path != self.path.join(".") {
            return Ok(Value::Layer(layer));
        }
        let steps = self.path_steps();
        let mut depth = self.adapting.len();
        // The innermost model is the first to be whole.
        while depth > 0 {
            let Adapting { adapters, base } = &self.adapting[depth - 1];
            let (adapters, base) = (adapters.clone(), *base);
            let done = own_depth(&layer).is_some_and(|done| done <= depth);
            let place = if done { None } else { self.first_that_takes(&adapters, &steps, base, &layer)? };
            if let Some(place) = place {
                layer = self.wrap(&adapters[place], layer, depth)?;
            }
            depth -= 1;
        }
        Ok(Value::Layer(layer))
    }

    fn first_that_takes(
        &mut self,
        adapters: &[Adapter],
        steps: &[Step],
        base: usize,
        layer: &Layer,
    ) -> Eval<Option<usize>> {
        let Some(steps) = steps.get(base..) else { return Ok(None) };
        for (place, adapter) in adapters.iter().enumerate() {
            let fits = adapter.wanted.as_ref().is_none_or(|wanted| is_a(layer, wanted));
            let takes = match &adapter.places {
                _ if !fits => Takes::No,
                Places::Whole if steps.is_empty() => Takes::All,
                Places::Whole => Takes::No,
                Places::At(pattern, _) => takes(pattern, steps, adapter.wanted.is_some()),
                Places::Path(path) if steps.iter().map(|step| step.name.as_str()).eq(path.split('.')) => Takes::All,
                Places::Path(_) => Takes::No,
            };
            match takes {
                Takes::No => {}
                Takes::All => return Ok(Some(place)),
                Takes::Some => {
                    let text = adapter.places.text().unwrap_or_default();
                    let message = format!("`{text}` takes some copies of `{}` and not the others", self.path.join("."));
                    let help = "copies are one program, compiled once: adapt all of them, `blocks.*`";
                    return Err(self.error_help(Code::E0312, message, adapter.span, "adapts some copies", help));
                }
            }
        }
        Ok(None)
    }

    /// The adapter around a layer, in its place.
    fn wrap(&mut self, adapter: &Adapter, layer: Layer, depth: usize) -> Eval<Layer> {
        let MakerKind::Partial(code, _) = &adapter.maker.what else { return Err(Stop) };
        adapter.taken.set(adapter.taken.get() + 1);
        let first = self.stored.len() as u32;
        let step = self.free_step(&snake(&code.ast.name.text));
        let env = self.file_env(code.file);
        let args = Args::of([(Value::Layer(layer.clone()), adapter.span)]);
        // What the adapter is made of is its own.
        let adapting = std::mem::take(&mut self.adapting);
        let built = self.at_path(&step, |elab| elab.build(&env, &adapter.maker, args, adapter.span));
        self.adapting = adapting;
        let Value::Layer(mut built) = built? else { return Err(Stop) };
        let ids = first..self.stored.len() as u32;
        let mut header = layer.data.header.clone();
        for local in header.iter_mut().flat_map(|entry| &mut entry.locals) {
            *local = format!("{}.{local}", adapter.param).as_str().into();
        }
        match Rc::get_mut(&mut built.data) {
            Some(data) => {
                data.header = header;
                data.adapts = Some((layer, depth));
            }
            None => mdl_graph::bug!("a layer that was built just now is used already"),
        }
        let saved = adapter.saved.clone().map(|dir| (dir, adapter.span));
        self.brought.push(Brought { ids, depth, layer: built.clone(), saved });
        Ok(built)
    }

    /// A step that no weight under this path has yet.
    fn free_step(&self, name: &str) -> String {
        let here: String = self.path.iter().map(|step| format!("{step}.")).collect();
        let is_taken = |step: &str| {
            let prefix = format!("{here}{step}.");
            self.stored.iter().any(|known| known.root == self.root && known.path.starts_with(&prefix))
        };
        let numbered = (1..).map(|n| if n == 1 { name.to_string() } else { format!("{name}_{n}") });
        numbered.into_iter().find(|step| !is_taken(step)).unwrap_or_default()
    }

    /// `base: Linear` takes only that layer, adapted or not; `base: Layer` any.
    pub(super) fn check_layer_type(&mut self, name: &Name, layer: &Layer, span: Span) -> Eval<()> {
        if name.text == "Layer" || is_a(layer, &name.text) {
            return Ok(());
        }
        let own = code_name(innermost(layer)).unwrap_or("several layers").to_string();
        let message = format!("expected {}, not the layer `{own}`", super::types::article(&name.text));
        Err(self.error(Code::E0209, message, span, format!("this is `{own}`")))
    }
}

fn code_name(layer: &Layer) -> Option<&str> {
    layer.data.code.as_ref().map(|code| code.ast.name.text.as_str())
}

/// Whether a layer, or what it adapts, is of this name.
fn is_a(layer: &Layer, name: &str) -> bool {
    code_name(layer) == Some(name) || layer.data.adapts.as_ref().is_some_and(|(base, _)| is_a(base, name))
}

/// What an adapter adapts in the end, or the layer itself.
fn innermost(layer: &Layer) -> &Layer {
    layer.data.adapts.as_ref().map_or(layer, |(base, _)| innermost(base))
}

/// The number of models around that whose adapter this is; `None` for a layer that is no adapter.
fn own_depth(layer: &Layer) -> Option<usize> {
    layer.data.adapts.as_ref().map(|(_, depth)| *depth)
}

/// Which copies at these steps a pattern takes: those at its path, and with `under` those under it.
fn takes(pattern: &Pattern, steps: &[Step], under: bool) -> Takes {
    let is_hit = |index: &[u64]| {
        let path = spelled(steps, None, index);
        let takes = |path: &[PathStep]| pattern.matches(path) != Match::No;
        !path.is_empty() && takes(&path) && (under || !takes(&path[..path.len() - 1]))
    };
    let sizes: Vec<u64> = steps.iter().flat_map(|step| step.copies.iter().map(|(_, n)| *n)).collect();
    if !pattern.has_indices() {
        return if is_hit(&vec![0; sizes.len()]) { Takes::All } else { Takes::No };
    }
    let n_all = sizes.iter().fold(1_u64, |all, size| all.saturating_mul(*size));
    if n_all > MANY {
        return Takes::Some;
    }
    let mut n_hits = 0;
    each_index(&sizes, |index| n_hits += u64::from(is_hit(index)));
    match n_hits {
        0 => Takes::No,
        hits if hits == n_all => Takes::All,
        _ => Takes::Some,
    }
}

/// `PrefixTuning` as a step of a path: `prefix_tuning`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for char in untwinned(&name.into()).as_str().chars() {
        if char.is_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.extend(char.to_lowercase());
    }
    out
}
