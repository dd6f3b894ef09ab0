//! Adapters from files: which layers a folder has adapters for, and where their weights lie.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use mdl_graph::Name;

use super::{ROOT, as_json};
use crate::check::Elaborator;
use crate::check::adapt::{Adapter, Brought, Places};
use crate::check::value::{Args, Eval, LayerMaker, MakerKind, StoredId, Value};
use crate::check::weights::Misfits;
use crate::diag::Code;
use crate::spec::{Origin, Piece};
use crate::syntax::ast::Span;

impl Elaborator<'_> {
    /// The adapters that a folder has, each for the layer that it is of. `of` is an adapter, or a function that gives the one of a
    /// layer by what files call that.
    pub fn adapters_in(&mut self, model: &Value, of: &Value, dir: &Rc<str>, span: Span) -> Eval<Vec<Adapter>> {
        let modules = self.modules_of(model);
        if modules.is_empty() {
            let message = "what files call the layers of this model is not known";
            let help = "PEFT's adapters are of published models: `model = pretrained(\"dir\")`";
            return Err(self.error_help(Code::E0408, message, span, "adapters in a file", help));
        }
        let Some(files) = self.file_tensors(dir, span)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        let mut left: BTreeSet<&str> = files.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        for (path, _, names) in modules {
            let mut found: Vec<(&String, Value)> = Vec::new();
            for name in &names {
                let begin = format!("{ROOT}{name}.");
                let n_before = left.len();
                left.retain(|tensor| !tensor.starts_with(&begin));
                // Layers that lie in one tensor have one adapter.
                if left.len() == n_before && !files.tensors.iter().any(|tensor| tensor.name.starts_with(&begin)) {
                    continue;
                }
                let maker = match of {
                    Value::Maker(_) => of.clone(),
                    function => self.call(function, Args::of([(Value::str(name), span)]), span)?,
                };
                found.push((name, maker));
            }
            let Some((first, maker)) = found.first() else { continue };
            let differs = found.iter().find(|(_, other)| !is_same(maker, other)).map(|(name, _)| *name);
            let absent = names.iter().find(|name| !found.iter().any(|(known, _)| known == name));
            if let Some(other) = differs.or(absent) {
                let how = if differs.is_some() { "have two kinds of adapters" } else { "have and have not an adapter" };
                let message = format!("`{first}` and `{other}` in `{dir}` {how}");
                let help = "copies are one program, compiled once: all of them are adapted alike";
                return Err(self.error_help(Code::E0408, message, span, "loaded here", help));
            }
            all.push(self.adapter(&maker.clone(), Places::Path(path), Some(dir.clone()), span)?);
        }
        if !left.is_empty() {
            let superfluous = left.into_iter().map(str::to_string).collect();
            let misfits = Misfits { superfluous, ..Misfits::default() };
            return Err(self.fail(misfits.told(dir, span)));
        }
        Ok(all)
    }

    /// Gives the weights of adapters that were built since `from` their places in the folders that they come from.
    pub(in crate::check) fn load_adapters(&mut self, from: usize) -> Eval<()> {
        let loaded: Vec<Brought> =
            self.brought[from..].iter().filter(|brought| brought.saved.is_some()).cloned().collect();
        let mut used: BTreeMap<Rc<str>, (BTreeSet<String>, Span)> = BTreeMap::new();
        let mut misfits: BTreeMap<Rc<str>, Misfits> = BTreeMap::new();
        for Brought { layer, saved, .. } in &loaded {
            let Some((dir, span)) = saved.clone() else { continue };
            let Some(files) = self.file_tensors(&dir, span)? else { continue };
            let member = self.in_file(layer, span)?;
            let mut pieces: BTreeMap<StoredId, Vec<Piece>> = BTreeMap::new();
            let (used, _) = used.entry(dir.clone()).or_insert_with(|| (BTreeSet::new(), span));
            let misfits = misfits.entry(dir.clone()).or_default();
            for (id, spot) in self.spots(&member, None, span)? {
                let Some(tensor) = files.tensors.iter().find(|tensor| tensor.name == spot.tensor) else {
                    misfits.missing.push(spot.tensor);
                    continue;
                };
                used.insert(spot.tensor);
                if tensor.shape != spot.shape || !tensor.dtype.is_float() {
                    let (has, is) = (&tensor.shape, &spot.shape);
                    let dtype = tensor.dtype.name();
                    misfits
                        .other
                        .push(format!("`{}` is {dtype} {has:?} in the file, and {is:?} in the model", tensor.name));
                    continue;
                }
                pieces.entry(id).or_default().push(Piece {
                    file: Name::from(files.files[tensor.file as usize].as_str()),
                    tensor: Name::from(tensor.name.as_str()),
                    dtype: tensor.dtype,
                    bytes: tensor.bytes.clone(),
                    first: spot.first,
                    along: spot.along,
                });
            }
            for (id, pieces) in pieces {
                self.stored[id.0 as usize].origin = Some(Rc::new(Origin::Files { pieces, same: Vec::new() }));
            }
        }
        for (dir, (used, span)) in used {
            let Some(files) = self.file_tensors(&dir, span)? else { continue };
            let mut misfits = misfits.remove(&dir).unwrap_or_default();
            let left = files.tensors.iter().filter(|tensor| !used.contains(&tensor.name));
            misfits.superfluous.extend(left.map(|tensor| tensor.name.clone()));
            if !misfits.is_empty() {
                return Err(self.fail(misfits.told(&dir, span)));
            }
        }
        Ok(())
    }
}

/// Whether two adapters are of one layer with the same settings.
fn is_same(a: &Value, b: &Value) -> bool {
    fn parts(value: &Value) -> Option<(&LayerMaker, Vec<String>)> {
        let Value::Maker(maker) = value else { return None };
        let MakerKind::Partial(code, args) = &maker.what else { return None };
        let positional = args.positional.iter().map(|(value, _)| shown(value));
        let named = args.named.iter().map(|(name, value, _)| format!("{name}: {}", shown(value)));
        Some((maker, std::iter::once(code.ast.name.text.clone()).chain(positional).chain(named).collect()))
    }
    matches!((parts(a), parts(b)), (Some((_, a)), Some((_, b))) if a == b)
}

fn shown(value: &Value) -> String {
    as_json(value).map_or_else(|| value.kind().to_string(), |json| json.to_string())
}
