//! Adapters in files, as PEFT keeps them: which tensor of `adapter_model.safetensors` holds what of an adapter's weights.
//!
//! What a file calls a layer follows from where the layer's own weight was loaded from, and what it calls the adapter's weights
//! from the adapter's `names`: so neither families nor adapters are known here. Adapters of several layers that one tensor
//! holds (queries, keys and values of GPT-2) are one adapter in the file: axes of the adapter's own lie one after another
//! there, those of the layer where the layer lies.

mod load;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use mdl_graph::Name;
use serde_json::{Map, Value as Json, json};

use super::Elaborator;
use super::adapt::Brought;
use super::naming::Template;
use super::scope::plain;
use super::value::{Args, Eval, Layer, Stop, StoredId, Value};
use super::weights::laid;
use crate::diag::Code;
use crate::spec::{Along, FileType, Origin, Piece};
use crate::syntax::ast::Span;

/// What every name in such a file begins with.
const ROOT: &str = "base_model.model.";

/// What settings may differ from layer to layer, and the setting that says so.
const PATTERNS: [(&str, &str); 2] = [("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")];

/// What the file that a weight was loaded from calls it.
pub(super) struct Called {
    pub(super) name: Template,
    /// The positions of the axes in each dimension; as declared if it is not said.
    pub(super) dims: Option<Vec<Vec<usize>>>,
    /// Of a part of a tensor: how many positions lie before it, and how many there are.
    pub(super) cut: Option<(u64, u64)>,
}

/// An adapter for a file of PEFT.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `adapter_config.json`
    pub config: Map<String, Json>,
    pub tensors: Vec<SavedTensor>,
}

/// A tensor of such a file. What no piece is of is zero.
#[derive(Clone, Debug)]
pub struct SavedTensor {
    pub name: String,
    pub shape: Vec<u64>,
    /// Weights by path, and what of the tensor they are.
    pub pieces: Vec<(Name, Piece)>,
}

/// An adapter in a model, and the layer in files that it is of.
struct Member {
    layer: Layer,
    path: String,
    /// `model.layers.{layer}.self_attn.q_proj`
    module: Template,
    called: Rc<Called>,
    /// Whether the file has what the layer takes before what it gives, the other way round than PyTorch.
    transposed: bool,
    /// The folder that it was loaded from.
    folder: String,
}

/// What a tensor of a file is of a weight.
struct Spot {
    tensor: String,
    shape: Vec<u64>,
    first: u64,
    along: Vec<Along>,
    /// Whether it has axes that only the adapter has.
    has_own: bool,
}

impl Elaborator<'_> {
    /// Whether something in a model is an adapter.
    pub fn has_adapters(&self, model: &Value) -> bool {
        let ids = self.stored_of(model);
        self.brought.iter().any(|brought| ids.iter().any(|id| brought.ids.contains(&id.0)))
    }

    /// Whether an adapter has brought a weight, of whatever stage.
    pub fn is_adapters_own(&self, id: StoredId) -> bool {
        self.brought.iter().any(|brought| brought.ids.contains(&id.0))
    }

    /// The adapters of a model, as files of PEFT have them.
    pub fn saved(&mut self, model: &Value, span: Span) -> Eval<Saved> {
        let ids = self.stored_of(model);
        let of_model = |brought: &&Brought| ids.iter().any(|id| brought.ids.contains(&id.0));
        let all: Vec<Brought> = self.brought.iter().filter(of_model).cloned().collect();
        let mut groups: BTreeMap<String, Vec<Member>> = BTreeMap::new();
        for brought in &all {
            let member = self.in_file(&brought.layer, span)?;
            groups.entry(member.module.text()).or_default().push(member);
        }
        let mut tensors: BTreeMap<String, SavedTensor> = BTreeMap::new();
        let mut settings: Vec<(Vec<String>, Json, String)> = Vec::new();
        let (mut transposed, mut folder) = (BTreeSet::new(), None);
        for group in groups.values_mut() {
            group.sort_by_key(|member| member.called.cut.map(|(before, _)| before));
            for (k, member) in group.iter().enumerate() {
                let spots = self.spots(member, Some((k as u64, group.len() as u64)), span)?;
                for (id, spot) in spots {
                    let path = Name::from(self.stored[id.0 as usize].path.as_str());
                    let count: u64 = spot.shape.iter().product();
                    let tensor = tensors.entry(spot.tensor.clone()).or_insert_with(|| SavedTensor {
                        name: spot.tensor.clone(),
                        shape: spot.shape.clone(),
                        pieces: Vec::new(),
                    });
                    let piece = Piece {
                        file: Name::from(""),
                        tensor: Name::from(spot.tensor.as_str()),
                        dtype: FileType::F32,
                        bytes: 0..count * 4,
                        first: spot.first,
                        along: spot.along,
                    };
                    let of: u64 = member.called.cut.map_or(1, |(_, whole)| whole);
                    let own: u64 = if spot.has_own { of } else { self.part_of(group, &member.called) };
                    if own < of {
                        let message = format!(
                            "PEFT has one adapter for all of `{}`, and `{}` is a part of it",
                            member.module.text(),
                            member.path
                        );
                        let help = "adapt the layers that lie in that tensor together, such as `{q, k, v}`";
                        return Err(self.error_help(Code::E0408, message, span, "to be saved", help));
                    }
                    tensor.pieces.push((path, piece));
                }
                let said = self.settings(member, group.len() as i64, span)?;
                let modules = self.modules(member);
                settings.push((modules, said, member.path.clone()));
                transposed.insert(member.transposed);
                folder.get_or_insert(member.folder.clone());
            }
        }
        if transposed.len() > 1 {
            let message = "PEFT says once how all adapted matrices lie, and these lie in two ways";
            return Err(self.error(Code::E0408, message, span, "to be saved"));
        }
        let Some((_, Json::Object(first), first_path)) = settings.first().cloned() else {
            let message = "the model has no adapters";
            let help = "`adapt = Lora(_) at \"blocks.**\"` in its `train` block gives it some";
            return Err(self.error_help(Code::E0408, message, span, "to be saved", help));
        };
        let mut config = first.clone();
        for (key, pattern) in PATTERNS {
            if config.contains_key(key) {
                config.insert(pattern.to_string(), json!({}));
            }
        }
        for (modules, said, path) in &settings {
            let keys: BTreeSet<&String> =
                first.keys().chain(said.as_object().into_iter().flat_map(Map::keys)).collect();
            for key in keys {
                let own = said.get(key).unwrap_or(&Json::Null);
                if first.get(key) == Some(own) {
                    continue;
                }
                let Some((_, pattern)) = PATTERNS.iter().find(|(known, _)| known == key) else {
                    let message =
                        format!("PEFT has one `{key}` for all layers, and `{first_path}` and `{path}` have two");
                    let help = "give all of them the same adapter, or save stages one by one";
                    return Err(self.error_help(Code::E0408, message, span, "to be saved", help));
                };
                if let Some(Json::Object(pattern)) = config.get_mut(*pattern) {
                    pattern.extend(modules.iter().map(|module| (module.clone(), own.clone())));
                }
            }
        }
        let adapted: BTreeSet<String> = settings.into_iter().flat_map(|(modules, ..)| modules).collect();
        config.insert("target_modules".to_string(), json!(self.targets_of(model, &adapted)));
        config.insert("fan_in_fan_out".to_string(), json!(transposed.contains(&true)));
        config.insert("base_model_name_or_path".to_string(), json!(folder));
        config.insert("inference_mode".to_string(), json!(true));
        Ok(Saved { config, tensors: tensors.into_values().collect() })
    }

    /// How much of the layer's tensor the adapters of a group are of.
    fn part_of(&self, group: &[Member], called: &Called) -> u64 {
        let Some((_, whole)) = called.cut else { return 1 };
        let lengths: u64 = group.iter().map(|member| self.length_of(member)).sum();
        lengths.min(whole)
    }

    /// The number of positions that the layer has along the dimension that its tensor is cut along.
    fn length_of(&self, member: &Member) -> u64 {
        let Some((base, _)) = &member.layer.data.adapts else { return 0 };
        let Some(id) = self.map_of(base) else { return 0 };
        let stored = &self.stored[id.0 as usize];
        stored.axes.iter().filter(|axis| stored.to.contains(&axis.name)).map(|axis| axis.size).product()
    }

    /// What `adapter_config.json` says of an adapter, by its own function `peft`.
    fn settings(&mut self, member: &Member, parts: i64, span: Span) -> Eval<Json> {
        let env = self.file_env(member.layer.data.code.as_ref().map_or(0, |code| code.file));
        let Some(function) = self.layer_member(&env, &member.layer, "peft", span)? else {
            return Err(self.unknown_to_peft(&member.layer, span));
        };
        let said = self.call(&function, Args::of([(Value::Int(parts), span)]), span)?;
        match as_json(&said) {
            Some(json @ Json::Object(_)) => Ok(json),
            _ => Err(self.error(Code::E0209, "`peft` of an adapter gives a record of settings", span, "to be saved")),
        }
    }

    fn unknown_to_peft(&mut self, layer: &Layer, span: Span) -> Stop {
        let name = layer.data.code.as_ref().map_or("", |code| &code.ast.name.text).to_string();
        let message = format!("PEFT has no adapter like `{name}`");
        let help = "an adapter that it has says so by `names` and a function `peft`: see `Lora` in std.adapters";
        self.error_help(Code::E0408, message, span, "to be saved", help)
    }

    /// What files call the layers that one adapter goes around, one for each of its copies.
    fn modules(&self, member: &Member) -> Vec<String> {
        match member.layer.data.adapts.as_ref().and_then(|(base, _)| self.map_of(base)) {
            Some(id) => self.filled(&member.module, id),
            None => Vec::new(),
        }
    }

    /// A name with the indices of all copies of a weight.
    fn filled(&self, template: &Template, id: StoredId) -> Vec<String> {
        let stack = &self.stored[id.0 as usize].stack;
        let holes: BTreeSet<&str> = template.holes().collect();
        let mut all: Vec<Vec<(String, u64)>> = vec![Vec::new()];
        for axis in stack.iter().filter(|axis| holes.contains(&*plain(&axis.name))) {
            let with = |bound: &Vec<(String, u64)>| {
                let bound = bound.clone();
                (0..axis.size).map(move |at| bound.iter().cloned().chain([(plain(&axis.name), at)]).collect())
            };
            all = all.iter().flat_map(with).collect();
        }
        all.iter().map(|bound| template.fill(bound).text()).collect()
    }

    /// The shortest way to say which layers are adapted: the last steps of their names, where no other layer has those.
    fn targets_of(&self, model: &Value, adapted: &BTreeSet<String>) -> Vec<String> {
        let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
        let ends: BTreeSet<String> = adapted.iter().map(|module| last(module)).collect();
        let mut others = self.modules_of(model).into_iter().flat_map(|(_, _, modules)| modules);
        match others.any(|module| !adapted.contains(&module) && ends.contains(&last(&module))) {
            true => adapted.iter().cloned().collect(),
            false => ends.into_iter().collect(),
        }
    }

    /// The layers of a model with a map that was loaded from a file: the path, the weight, what files call its copies.
    fn modules_of(&self, model: &Value) -> Vec<(String, StoredId, Vec<String>)> {
        let mut all = Vec::new();
        for id in self.stored_of(model) {
            let stored = &self.stored[id.0 as usize];
            let (Some(called), Some((path, _)), true) = (&stored.called, stored.path.rsplit_once('.'), stored.is_map())
            else {
                continue;
            };
            if let Some(module) = called.name.parent() {
                all.push((path.to_string(), id, self.filled(&module, id)));
            }
        }
        all
    }

    /// The map of a layer that was loaded from a file.
    fn map_of(&self, layer: &Layer) -> Option<StoredId> {
        let is_map = |id: &&StoredId| {
            let stored = &self.stored[id.0 as usize];
            stored.is_map() && stored.called.is_some()
        };
        layer.data.stored.iter().find(is_map).copied()
    }

    fn in_file(&mut self, layer: &Layer, span: Span) -> Eval<Member> {
        let Some((base, _)) = &layer.data.adapts else { return Err(Stop) };
        let path = layer.data.path.clone();
        if base.data.adapts.is_some() {
            let message = format!("`{path}` has two adapters, one around the other, and a file of PEFT has one");
            let help = "merge the first into the model: `mdlc merge`";
            return Err(self.error_help(Code::E0408, message, span, "adapters in a file", help));
        }
        let found = self.map_of(base).and_then(|id| {
            let stored = &self.stored[id.0 as usize];
            let called = stored.called.clone()?;
            let module = called.name.parent()?;
            let names: Vec<&Name> = stored.stack.iter().chain(&stored.axes).map(|axis| &axis.name).collect();
            // As PyTorch has it, what a map gives to comes first.
            let first = called.dims.as_ref().and_then(|dims| dims.first());
            let transposed = first.is_some_and(|axes| axes.iter().any(|at| stored.from.contains(names[*at])));
            let folder = match stored.origin.as_deref() {
                Some(Origin::Files { pieces, .. }) => pieces.first().map(|piece| piece.file.to_string()),
                _ => None,
            };
            let folder = folder.and_then(|file| Some(file.rsplit_once('/')?.0.to_string())).unwrap_or_default();
            Some(Member { layer: layer.clone(), path: path.clone(), module, called, transposed, folder })
        });
        found.ok_or_else(|| {
            let message = format!("the layer at `{path}` was loaded from no file, so what PEFT calls it is not known");
            let help = "PEFT's adapters are of published models: `model = pretrained(\"dir\")`";
            self.error_help(Code::E0408, message, span, "adapters in a file", help)
        })
    }

    /// Where the weights of an adapter lie. `part` is its place among those that share a tensor when they are written; when one is
    /// read, all of them have what is the adapter's own.
    fn spots(&mut self, member: &Member, part: Option<(u64, u64)>, span: Span) -> Eval<Vec<(StoredId, Spot)>> {
        let Some(code) = member.layer.data.code.clone() else { return Err(Stop) };
        let Some(names) = self.files[code.file].names.get(&code.ast.name.text).cloned() else {
            return Err(self.unknown_to_peft(&member.layer, span));
        };
        let mut all = Vec::new();
        for row in &names.rows {
            let [path] = row.paths.as_slice() else { continue };
            let [step] = path.as_slice() else { continue };
            let known = member.layer.data.members.iter().find(|(name, _)| **name == *step.text);
            let Some((_, Value::Stored(id))) = known else {
                let message = format!("the adapter `{}` has no weight `{}`", code.ast.name.text, step.text);
                return Err(self.error(Code::E0407, message, step.span, "not a weight"));
            };
            let id = *id;
            let declared = self.stored[id.0 as usize].local.len();
            let n_stack = self.stored[id.0 as usize].stack.len();
            let order: Vec<Vec<usize>> = match &row.order {
                None => (0..declared).map(|at| vec![n_stack + at]).collect(),
                Some(order) => {
                    let mut dims = Vec::new();
                    for dim in order {
                        let mut axes = Vec::new();
                        for axis in dim.first().into_iter().flatten() {
                            axes.extend(self.axes_called(id, &member.layer, axis)?);
                        }
                        dims.push(axes);
                    }
                    dims
                }
            };
            let stored = &self.stored[id.0 as usize];
            let sizes: Vec<u64> = stored.stack.iter().chain(&stored.axes).map(|axis| axis.size).collect();
            // The names inside of the adapter: those of the layer that it takes begin with the parameter's.
            let side = |at: usize| stored.local.get(at.wrapping_sub(n_stack)).map_or("", |name| name.as_str());
            let (mut dims, mut has_own) = (Vec::new(), false);
            for axes in &order {
                let length: u64 = axes.iter().map(|at| sizes[*at]).product();
                let is_own = !axes.is_empty() && !axes.iter().any(|at| side(*at).contains('.'));
                let gives = axes.iter().any(|at| self.is_given(member, side(*at)));
                let (whole, before) = match (part, member.called.cut) {
                    (Some((k, n)), Some(_)) if is_own => {
                        has_own = true;
                        (length * n, length * k)
                    }
                    (_, Some((before, whole))) if gives => (whole, before),
                    _ => (length, 0),
                };
                dims.push((whole, axes.clone(), before));
            }
            let copies: Vec<(usize, String)> = (0..n_stack).map(|at| (at, plain(&stored.stack[at].name))).collect();
            let mut indices: Vec<Vec<u64>> = vec![Vec::new()];
            for (at, _) in &copies {
                let with = |before: &Vec<u64>| {
                    let before = before.clone();
                    (0..sizes[*at]).map(move |index| before.iter().copied().chain([index]).collect())
                };
                indices = indices.iter().flat_map(with).collect();
            }
            for index in indices {
                let bound: Vec<(String, u64)> =
                    copies.iter().zip(&index).map(|((_, name), at)| (name.clone(), *at)).collect();
                let tensor = format!("{ROOT}{}.{}", member.module.fill(&bound).text(), row.tensor.text);
                let at: Vec<(usize, u64)> = copies.iter().zip(&index).map(|((axis, _), at)| (*axis, *at)).collect();
                let (first, along) = laid(&sizes, &at, &dims);
                let shape = dims.iter().map(|(whole, ..)| *whole).collect();
                all.push((id, Spot { tensor, shape, first, along, has_own }));
            }
        }
        Ok(all)
    }

    /// Whether an axis of an adapter's weight is one that the adapted layer gives to.
    fn is_given(&self, member: &Member, local: &str) -> bool {
        let Some((base, _)) = &member.layer.data.adapts else { return false };
        let Some(id) = self.map_of(base) else { return false };
        let stored = &self.stored[id.0 as usize];
        let (Some(arrow), Some((_, inside))) = (&stored.arrow, local.split_once('.')) else { return false };
        arrow.to.iter().any(|name| name.as_str() == inside)
    }
}

/// A plain value of compile time as JSON.
fn as_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::None => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Str(text) => json!(&**text),
        Value::List(items) => Json::Array(items.iter().map(as_json).collect::<Option<_>>()?),
        Value::Record(fields) => {
            let fields = fields.iter().map(|(name, value)| Some((name.to_string(), as_json(value)?)));
            Json::Object(fields.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}
