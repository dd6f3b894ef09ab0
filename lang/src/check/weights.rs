//! `load(model, dir)`: a model whose weights come from the safetensors files of a folder.
//!
//! The headers of the files are compared with the model both ways, every name, shape and dtype, and whatever does not fit is
//! told at once. No value is read: a weight only learns where in which file it lies ([`Origin::Files`]), in which order of axes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use mdl_graph::{DType, Name};

use super::Elaborator;
use super::builtins::Call;
use super::naming::{Row, Template};
use super::saved::Called;
use super::scope::plain;
use super::value::{Args, Eval, Layer, Made, Stop, StoredId, StoredKind, Value};
use super::world::{FileTensor, FileTensors};
use crate::diag::{Code, Diagnostic, nearest};
use crate::spec::{Along, Origin, Piece};
use crate::syntax::ast::{AxisRef, Names, Span};

/// The function by its name: what a stage's field gets of an adapter that is to be loaded.
pub const LOAD: &str = "load";

/// So many names of a kind are shown; what differs only in its numbers counts as one.
const SHOWN: usize = 12;

/// What does not fit.
#[derive(Default)]
pub(super) struct Misfits {
    pub(super) missing: Vec<String>,
    pub(super) superfluous: Vec<String>,
    pub(super) other: Vec<String>,
}

/// The order of a tensor's dimensions, in positions of the weights' axes.
struct Layout {
    /// As declared, merged in any way, if `None`.
    dims: Option<Vec<Dim>>,
    /// The axes whose index is in the name, with what it is called there.
    in_name: Vec<(usize, String)>,
}

/// A dimension of a tensor: for each weight in it the axes that are merged there, outermost first.
#[derive(Clone)]
struct Dim {
    parts: Vec<Vec<usize>>,
    /// Whether the weights lie one after another along it.
    is_cut: bool,
}

pub(super) fn load(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    elab.no_axes(call)?;
    let span = call.span;
    let [model, dir, names] = elab.take_args(call, ["model", "dir", "names"], 2)?;
    let (Some((model, model_span)), Some((dir, dir_span))) = (model, dir) else { return Err(Stop) };
    // An adapter that is not built yet is loaded once the layers are known that it goes around.
    if let (Value::Maker(_) | Value::Function(_), Value::Str(_)) = (&model, &dir) {
        let args = Args::of([(model, model_span), (dir, dir_span)]);
        return Ok(Value::Made(Rc::new(Made { name: Rc::from(LOAD), args, span })));
    }
    let Value::Layer(layer) = &model else {
        let message = format!("`load` takes a model that is built, not {}", model.kind());
        return Err(elab.error(Code::E0209, message, model_span, format!("this is {}", model.kind())));
    };
    let Some(dir) = dir.as_str() else {
        let message = format!("`load` takes the path of a folder, not {}", dir.kind());
        return Err(elab.error(Code::E0209, message, dir_span, "expected a Str"));
    };
    let names = match names {
        None => None,
        Some((Value::Names(names), _)) => Some(names),
        Some((other, span)) => {
            let message = format!("`names:` takes a `names` block, not {}", other.kind());
            return Err(elab.error(Code::E0209, message, span, format!("this is {}", other.kind())));
        }
    };
    if let Some(files) = elab.file_tensors(dir, dir_span)? {
        elab.load_from(layer, &files, dir, names, span)?;
    }
    Ok(model)
}

impl Elaborator<'_> {
    /// What the files of a folder hold; asked for once.
    pub(super) fn file_tensors(&mut self, dir: &str, span: Span) -> Eval<Option<Rc<FileTensors>>> {
        if let Some(known) = self.file_tensors.get(dir) {
            return known.clone().ok_or(Stop);
        }
        let found = self.world.tensors(&self.recipe_path(), dir);
        let known = match found {
            Ok(tensors) => Some(tensors.map(Rc::new)),
            Err(problem) => {
                let diagnostic = Diagnostic::error(Code::E0405, problem.message).label(span, "loaded here");
                self.push(match problem.help {
                    Some(help) => diagnostic.help(help),
                    None => diagnostic,
                });
                None
            }
        };
        self.file_tensors.insert(dir.to_string(), known.clone());
        known.ok_or(Stop)
    }

    fn load_from(
        &mut self,
        layer: &Layer,
        files: &FileTensors,
        dir: &str,
        names: Option<Rc<Names>>,
        span: Span,
    ) -> Eval<()> {
        let naming = self.naming(layer, names, span)?;
        let ids = self.stored_of(&Value::Layer(layer.clone()));
        let index: HashMap<&str, &FileTensor> =
            files.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut found: BTreeMap<StoredId, (Vec<Piece>, Vec<Piece>)> = BTreeMap::new();
        let mut misfits = Misfits::default();
        // Rows that no tensor of the file is of: the weights in them are missing unless another row has them.
        let mut absent: Vec<(&Row, Vec<String>)> = Vec::new();
        for row in &naming.rows {
            let layout = self.layout(row)?;
            let Some((first, _)) = row.held.first() else { continue };
            let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); row.held.len()];
            let (mut missing, mut n_found) = (Vec::new(), 0);
            for index_of in self.indices(*first, &layout) {
                let bound: Vec<(String, u64)> =
                    layout.in_name.iter().zip(&index_of).map(|((_, name), at)| (name.clone(), *at)).collect();
                let mut texts = row.names.iter().map(|name| name.fill(&bound).text());
                // What another weight has is not this one's, too: a head is the embedding only where it is not a weight itself.
                let free = |text: String| {
                    index.get(text.as_str()).copied().filter(|tensor| !used.contains(tensor.name.as_str()))
                };
                let Some(tensor) = texts.clone().find_map(free) else {
                    missing.extend(texts.next());
                    continue;
                };
                n_found += 1;
                used.insert(&tensor.name);
                match self.pieces(row, &layout, &index_of, tensor, files) {
                    Ok(own) => pieces.iter_mut().zip(own).for_each(|(all, piece)| all.push(piece)),
                    Err(why) => misfits.other.push(why),
                }
            }
            if n_found == 0 {
                absent.push((row, missing));
                continue;
            }
            misfits.missing.extend(missing);
            self.note_names(row, &layout);
            for ((id, _), own) in row.held.iter().zip(pieces) {
                let (first, same) = found.entry(*id).or_default();
                if first.is_empty() { first.extend(own) } else { same.extend(own) }
            }
        }
        for (row, missing) in absent {
            if row.held.iter().any(|(id, _)| !found.contains_key(id)) {
                misfits.missing.extend(missing);
                // Said once, even where further rows have it.
                row.held.iter().for_each(|(id, _)| {
                    found.entry(*id).or_default();
                });
            }
        }
        // What adapters have brought is in files of its own.
        let is_model = |id: &&StoredId| !self.brought.iter().any(|brought| brought.ids.contains(&id.0));
        for id in ids.iter().filter(is_model).filter(|id| !found.contains_key(id)) {
            let stored = &self.stored[id.0 as usize];
            // What a layer remembers need not be kept in files: it begins as it says.
            if stored.kind == StoredKind::Weight {
                let message = format!("no row of `names` leads to the weight `{}`", stored.path);
                let declared = stored.span;
                let diagnostic = Diagnostic::error(Code::E0407, message).label(span, "loaded here");
                return Err(self.fail(diagnostic.label(declared, "this weight")));
            }
        }
        let besides = |name: &str| naming.besides.iter().any(|template| template.matches(name));
        let left = files.tensors.iter().map(|tensor| tensor.name.as_str());
        misfits.superfluous.extend(left.filter(|name| !used.contains(name) && !besides(name)).map(str::to_string));
        if !misfits.is_empty() {
            return Err(self.fail(misfits.told(dir, span)));
        }
        for (id, (pieces, same)) in found {
            self.stored[id.0 as usize].origin = Some(Rc::new(Origin::Files { pieces, same }));
        }
        Ok(())
    }

    /// Weights remember what files call them.
    fn note_names(&mut self, row: &Row, layout: &Layout) {
        let lengths: Vec<Vec<u64>> = row.held.iter().map(|(id, _)| self.sizes(*id)).collect();
        for (k, (id, _)) in row.held.iter().enumerate() {
            let Some(name) = row.names.first().cloned() else { continue };
            let cut = layout.dims.iter().flatten().find(|dim| dim.is_cut).map(|dim| {
                let length = |k: usize| dim.parts[k].iter().map(|at| lengths[k][*at]).product::<u64>();
                ((0..k).map(length).sum(), (0..row.held.len()).map(length).sum())
            });
            let dims = layout.dims.as_ref().map(|dims| dims.iter().map(|dim| dim.parts[k].clone()).collect());
            self.stored[id.0 as usize].called.get_or_insert_with(|| Rc::new(Called { name, dims, cut }));
        }
    }

    /// Every index along the axes that are in the name.
    fn indices(&self, id: StoredId, layout: &Layout) -> Vec<Vec<u64>> {
        let sizes = self.sizes(id);
        layout.in_name.iter().fold(vec![Vec::new()], |all, (axis, _)| {
            let with = |before: &Vec<u64>| {
                let before = before.clone();
                (0..sizes[*axis]).map(move |at| before.iter().copied().chain([at]).collect())
            };
            all.iter().flat_map(with).collect()
        })
    }

    /// The sizes of a weight's axes, copies first.
    fn sizes(&self, id: StoredId) -> Vec<u64> {
        let stored = &self.stored[id.0 as usize];
        stored.stack.iter().chain(&stored.axes).map(|axis| axis.size).collect()
    }

    /// Which axes stand where in the tensors of a row.
    fn layout(&mut self, row: &Row) -> Eval<Layout> {
        let Some((id, _)) = row.held.first() else { return Err(Stop) };
        let mut in_name: Vec<(usize, String)> = Vec::new();
        for hole in row.names.first().into_iter().flat_map(Template::holes) {
            let stack = &self.stored[id.0 as usize].stack;
            match stack.iter().position(|axis| plain(&axis.name) == hole) {
                Some(at) => in_name.push((at, hole.to_string())),
                None => {
                    let path = self.stored[id.0 as usize].path.clone();
                    let message = format!("`{{{hole}}}` stands for no axis of copies of `{path}`");
                    let help = "an axis of `repeat` or `each` that leads to the weight, or `{i}` of the row's path";
                    return Err(self.error_help(Code::E0407, message, row.span, "in this name", help));
                }
            }
        }
        let Some(order) = &row.order else {
            let stored = &self.stored[id.0 as usize];
            if row.held.len() > 1 || (!stored.from.is_empty() || !stored.to.is_empty()) && stored.axes.len() > 1 {
                let path = stored.path.clone();
                let message = format!("the order of axes of `{path}` in the file is not said");
                let help = "say it in brackets, outermost first: `\"weight\" [..to, ..from]`";
                return Err(self.error_help(Code::E0407, message, row.span, "without an order", help));
            }
            return self.all_there(row, Layout { dims: None, in_name });
        };
        let mut dims = Vec::new();
        for dim in order {
            if dim.len() != 1 && dim.len() != row.held.len() {
                let message = format!("{} parts for {} weights", dim.len(), row.held.len());
                return Err(self.error(Code::E0407, message, row.span, "one part for each, or one for all"));
            }
            let mut parts = Vec::new();
            for (k, (id, owner)) in row.held.iter().enumerate() {
                let Some(part) = dim.get(k).or(dim.first()) else { continue };
                let mut axes = Vec::new();
                for axis in part {
                    axes.extend(self.axes_called(*id, owner, axis)?);
                }
                parts.push(axes);
            }
            dims.push(Dim { parts, is_cut: dim.len() > 1 });
        }
        if dims.iter().filter(|dim| dim.is_cut).count() != usize::from(row.held.len() > 1) {
            let message = "a tensor that holds several weights is cut along one dimension, by `|`";
            return Err(self.error(Code::E0407, message, row.span, "in this order"));
        }
        self.all_there(row, Layout { dims: Some(dims), in_name })
    }

    /// Every axis stands in the name or in the order, once.
    fn all_there(&mut self, row: &Row, layout: Layout) -> Eval<Layout> {
        for (k, (id, _)) in row.held.iter().enumerate() {
            let stored = &self.stored[id.0 as usize];
            for (at, axis) in stored.stack.iter().chain(&stored.axes).enumerate() {
                let in_name = layout.in_name.iter().filter(|(known, _)| *known == at).count();
                let in_order = match &layout.dims {
                    Some(dims) => {
                        dims.iter().filter_map(|dim| dim.parts.get(k)).flatten().filter(|known| **known == at).count()
                    }
                    None => usize::from(at >= stored.stack.len()),
                };
                if in_name + in_order != 1 {
                    let (path, name) = (stored.path.clone(), plain(&axis.name));
                    let how = if in_name + in_order == 0 { "nowhere" } else { "twice" };
                    let message =
                        format!("the axis `{name}` of `{path}` stands {how} in the name and order of its tensor");
                    return Err(self.error(Code::E0407, message, row.span, "in this row"));
                }
            }
        }
        Ok(layout)
    }

    /// The positions of the axes that a name in the brackets of a row means: a layer's own names, or those of its builder.
    pub(super) fn axes_called(&mut self, id: StoredId, owner: &Layer, axis: &AxisRef) -> Eval<Vec<usize>> {
        let stored = &self.stored[id.0 as usize];
        let n_stack = stored.stack.len();
        let said: String = axis.path.iter().map(|step| step.text.as_str()).collect::<Vec<_>>().join(".");
        let own = stored.local.iter().enumerate().map(|(at, name)| (n_stack + at, name));
        if axis.is_pack {
            // An adapter's weights have axes of the layer that it takes: `..base.to`.
            let last = said.rsplit('.').next();
            let is_pack = owner.data.header.iter().any(|entry| entry.is_pack && Some(&*entry.text) == last);
            let inside =
                |name: &Name| name.as_str().strip_prefix(said.as_str()).is_some_and(|rest| rest.starts_with('.'));
            if is_pack {
                return Ok(own.filter(|(_, name)| inside(name)).map(|(at, _)| at).collect());
            }
        } else {
            let called =
                |name: &Name| owner.outer.iter().find(|(local, _)| local == name).map(|(_, outer)| plain(outer));
            let ways: [&dyn Fn(&Name) -> bool; 3] =
                [&|name| plain(name) == said, &|name| plain(name).rsplit('.').next() == Some(&said), &|name| {
                    called(name).as_deref() == Some(&said)
                }];
            for way in ways {
                let found: Vec<usize> = own.clone().filter(|(_, name)| way(name)).map(|(at, _)| at).collect();
                if let [one] = found.as_slice() {
                    return Ok(vec![*one]);
                }
            }
            if let Some(at) = stored.stack.iter().position(|axis| plain(&axis.name) == said) {
                return Ok(vec![at]);
            }
        }
        let path = stored.path.clone();
        let known: Vec<String> =
            stored.local.iter().chain(stored.stack.iter().map(|axis| &axis.name)).map(plain).collect();
        let message = format!("`{path}` has no one axis `{}`", axis.text());
        let help = format!("its axes are {}", known.join(", "));
        Err(self.error_help(Code::E0407, message, axis.span, "in the order of its tensor", help))
    }

    /// What a tensor of a file holds of each weight of a row. `Err` says how it differs.
    fn pieces(
        &self,
        row: &Row,
        layout: &Layout,
        index: &[u64],
        tensor: &FileTensor,
        files: &FileTensors,
    ) -> Result<Vec<Piece>, String> {
        let shown = |shape: &[u64]| format!("[{}]", shape.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
        for (id, _) in &row.held {
            let dtype = self.stored[id.0 as usize].dtype;
            let fits = dtype.is_float() == tensor.dtype.is_float() && dtype != DType::Bool;
            if !fits {
                return Err(format!(
                    "`{}` is {} in the file, and {dtype} in the model",
                    tensor.name,
                    tensor.dtype.name()
                ));
            }
        }
        let Some((id, _)) = row.held.first() else { return Ok(Vec::new()) };
        let n_stack = self.stored[id.0 as usize].stack.len();
        let dims = match &layout.dims {
            Some(dims) => dims.clone(),
            None => {
                let sizes = self.sizes(*id);
                match merged(&sizes[n_stack..], &tensor.shape) {
                    Some(dims) => {
                        let part = |axes: Vec<usize>| axes.into_iter().map(|at| at + n_stack).collect();
                        dims.into_iter().map(|axes| Dim { parts: vec![part(axes)], is_cut: false }).collect()
                    }
                    None => {
                        let (has, wants) = (shown(&tensor.shape), shown(&sizes[n_stack..]));
                        return Err(format!("`{}` is {has} in the file, and {wants} in the model", tensor.name));
                    }
                }
            }
        };
        // How long each part of each dimension is.
        let mut lengths: Vec<Vec<u64>> = Vec::new();
        for dim in &dims {
            let parts = dim.parts.iter().zip(&row.held).map(|(part, (id, _))| {
                let sizes = self.sizes(*id);
                part.iter().map(|at| sizes[*at]).product()
            });
            lengths.push(parts.collect());
        }
        let length = |(dim, parts): (&Dim, &Vec<u64>)| match dim.is_cut {
            true => parts.iter().sum(),
            false => parts[0],
        };
        let shape: Vec<u64> = dims.iter().zip(&lengths).map(length).collect();
        let is_even = dims.iter().zip(&lengths).all(|(dim, parts)| dim.is_cut || parts.iter().all(|n| *n == parts[0]));
        if shape != tensor.shape || !is_even {
            let (has, wants) = (shown(&tensor.shape), shown(&shape));
            return Err(format!("`{}` is {has} in the file, and {wants} in the model", tensor.name));
        }
        let mut pieces = Vec::new();
        for (k, (id, _)) in row.held.iter().enumerate() {
            let named: Vec<(usize, u64)> =
                layout.in_name.iter().zip(index).map(|((axis, _), at)| (*axis, *at)).collect();
            let own = dims.iter().zip(&lengths).zip(&shape).map(|((dim, lengths), length)| {
                let before = if dim.is_cut { lengths[..k].iter().sum() } else { 0 };
                (*length, dim.parts[k].clone(), before)
            });
            let (first, along) = laid(&self.sizes(*id), &named, &own.collect::<Vec<_>>());
            pieces.push(Piece {
                file: Name::from(files.files[tensor.file as usize].as_str()),
                tensor: Name::from(tensor.name.as_str()),
                dtype: tensor.dtype,
                bytes: tensor.bytes.clone(),
                first,
                along,
            });
        }
        Ok(pieces)
    }
}

/// Where a piece begins and how it goes along the axes of its weight. `named` are axes whose position is in the tensor's name; of each
/// dimension of the tensor, outermost first: its length, the axes in it, and how many positions lie before them.
pub(super) fn laid(sizes: &[u64], named: &[(usize, u64)], dims: &[(u64, Vec<usize>, u64)]) -> (u64, Vec<Along>) {
    let mut along = vec![Along::At(0); sizes.len()];
    for (axis, at) in named {
        along[*axis] = Along::At(*at);
    }
    let (mut stride, mut first) = (1, 0);
    for (length, axes, before) in dims.iter().rev() {
        first += stride * before;
        let mut own = stride;
        for at in axes.iter().rev() {
            along[*at] = Along::Every(own);
            own *= sizes[*at];
        }
        stride *= length;
    }
    (first, along)
}

/// Neighbouring axes that together make each dimension of a shape, if that can be.
fn merged(sizes: &[u64], shape: &[u64]) -> Option<Vec<Vec<usize>>> {
    let mut dims = Vec::new();
    let mut next = 0;
    for (i, dim) in shape.iter().enumerate() {
        let (mut axes, mut length) = (Vec::new(), 1u64);
        // What is left belongs to the last dimension.
        while next < sizes.len() && (length < *dim || i + 1 == shape.len()) {
            length = length.checked_mul(sizes[next])?;
            axes.push(next);
            next += 1;
        }
        if length != *dim {
            return None;
        }
        dims.push(axes);
    }
    let rest: u64 = sizes[next..].iter().product();
    (rest == 1).then(|| {
        if let Some(last) = dims.last_mut() {
            last.extend(next..sizes.len());
        }
        dims
    })
}

impl Misfits {
    pub(super) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.superfluous.is_empty() && self.other.is_empty()
    }

    pub(super) fn told(&self, dir: &str, span: Span) -> Diagnostic {
        let mut counts = Vec::new();
        let mut lists = Vec::new();
        let mut list = |names: &[String], what: &str, near: &[String]| {
            if names.is_empty() {
                return;
            }
            counts.push(format!("{} {what}", names.len()));
            let groups = grouped(names);
            let mut text = format!("{what}:");
            for (name, n) in groups.iter().take(SHOWN) {
                text += &format!("\n  {name}");
                if *n > 1 {
                    text += &format!(", and {} like it", n - 1);
                }
                if let Some(near) = nearest(name, near.iter().map(String::as_str)) {
                    text += &format!(" (the file has `{near}`)");
                }
            }
            if groups.len() > SHOWN {
                text += &format!("\n  and {} more kinds", groups.len() - SHOWN);
            }
            lists.push(text);
        };
        list(&self.missing, "missing", &self.superfluous);
        list(&self.superfluous, "superfluous", &[]);
        list(&self.other, "of another shape or type", &[]);
        let message = format!("the weights in `{dir}` do not fit the model: {}", counts.join(", "));
        Diagnostic::error(Code::E0406, message).label(span, "loaded here").help(lists.join("\n"))
    }
}

/// Names that differ in numbers only, the first of each with how many there are.
fn grouped(names: &[String]) -> Vec<(&str, usize)> {
    let mut groups: Vec<(&str, usize)> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for name in names {
        // In a sentence on shapes the numbers after the name are the message.
        let (head, tail) = name.split_once("` ").unwrap_or((name, ""));
        let key: String = head.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
        match known.get(&format!("{key}` {tail}")) {
            Some(at) => groups[*at].1 += 1,
            None => {
                known.insert(format!("{key}` {tail}"), groups.len());
                groups.push((name, 1));
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::{grouped, merged};

    #[test]
    fn axes_merge_into_dimensions() {
        assert_eq!(merged(&[2, 3, 4], &[24]), Some(vec![vec![0, 1, 2]]));
        assert_eq!(merged(&[2, 3, 4], &[6, 4]), Some(vec![vec![0, 1], vec![2]]));
        assert_eq!(merged(&[2, 3, 4], &[2, 12]), Some(vec![vec![0], vec![1, 2]]));
        assert_eq!(merged(&[4, 1, 8], &[32]), Some(vec![vec![0, 1, 2]]));
        assert_eq!(merged(&[2, 3], &[3, 2]), None);
        assert_eq!(merged(&[5], &[]), None);
        assert_eq!(merged(&[], &[]), Some(vec![]));
    }

    #[test]
    fn what_differs_in_numbers_is_one_kind() {
        let names: Vec<String> = (0..12).map(|i| format!("h.{i}.w")).chain(["b".to_string()]).collect();
        // Numbers of one digit and of two are two kinds.
        assert_eq!(grouped(&names), [("h.0.w", 10), ("h.10.w", 2), ("b", 1)]);
    }
}
