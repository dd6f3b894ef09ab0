//! Adapters folded into the layers that they go around: an adapter that is linear in what it is given is a matrix, and applying it to
//! the unit vectors reads that off. No adapter is known here.
//!
//! Out: for each adapted layer the nodes of its new map and of its new bias, copies stacked. What lies between the layer's
//! argument and its result is looked through: an operation that is not linear ends it with a diagnostic.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, NodeId, Op};

use super::Elaborator;
use super::adapt::Brought;
use super::value::{Args, Copies, Eval, Layer, LayerData, LayerKind, StoredId, Tensor, Value};
use crate::diag::Code;
use crate::syntax::ast::{CopiesKind, Span};

/// What a weight of an adapted layer becomes. The node has the weight's axes, under their names in graphs.
pub struct Folded {
    pub weight: StoredId,
    pub node: NodeId,
    /// Where the layer has no bias: what it adds all the same, which must be zero.
    pub added: Option<NodeId>,
}

impl Elaborator<'_> {
    /// The layers of a model that adapters go around, folded. A graph must have been begun.
    pub fn folded(&mut self, model: &Value, span: Span) -> Eval<Vec<Folded>> {
        let ids = self.stored_of(model);
        let of_model = |brought: &&Brought| ids.iter().any(|id| brought.ids.contains(&id.0));
        let all: Vec<Layer> = self.brought.iter().filter(of_model).map(|brought| brought.layer.clone()).collect();
        let is_inside = |layer: &Layer| {
            all.iter().any(|other| other.data.adapts.as_ref().is_some_and(|(base, _)| base.data.id == layer.data.id))
        };
        let mut out = Vec::new();
        for layer in all.iter().filter(|layer| !is_inside(layer)) {
            out.extend(self.fold(layer, span)?);
        }
        Ok(out)
    }

    fn fold(&mut self, layer: &Layer, span: Span) -> Eval<Vec<Folded>> {
        let (mut base, mut prefix) = (layer.clone(), Vec::new());
        while let Some((inner, _)) = &base.data.adapts {
            let entry = base.data.header.iter().flat_map(|entry| &entry.locals).next();
            let name = entry.and_then(|name| Some(name.as_str().split_once('.')?.0.to_string())).unwrap_or_default();
            prefix.push(name);
            base = inner.clone();
        }
        let own: Vec<StoredId> = base.data.stored.clone();
        let maps: Vec<StoredId> = own.iter().copied().filter(|id| self.stored[id.0 as usize].is_map()).collect();
        let rest: Vec<StoredId> = own.iter().copied().filter(|id| !maps.contains(id)).collect();
        let (&[map], true) = (maps.as_slice(), rest.len() <= 1) else {
            let message =
                format!("`{}` is no map with at most a bias, so nothing can be folded into it", layer.data.path);
            return Err(self.error(Code::E0409, message, span, "merged here"));
        };
        let stored = &self.stored[map.0 as usize];
        let (Some(arrow), from, to, stack) =
            (stored.arrow.clone(), stored.from.clone(), stored.to.clone(), stored.copies.clone())
        else {
            mdl_graph::bug!("a map without an arrow")
        };
        // The names outside of the adapter for those inside of the layer.
        let begin: String = prefix.iter().rev().fold(String::new(), |text, name| format!("{name}.{text}"));
        let seen = |local: &mdl_graph::Name| layer.out_name(&mdl_graph::Name::from(format!("{begin}{local}")));
        let mut unit: Option<Tensor> = None;
        let (mut takes, mut renames) = (Vec::new(), Vec::new());
        for ((said, _), name) in arrow.from.iter().zip(&from) {
            let size = self.size_of_stored(map, name);
            let axis = Axis::new(seen(said), size);
            let which = Axis::new(self.fresh(name.as_str()), size);
            renames.push((which.name.clone(), name.clone()));
            let (a, b) = (self.emit(Op::Iota(axis.clone()), &[], span)?, self.emit(Op::Iota(which), &[], span)?);
            let is_it = self.emit(Op::Equal, &[&a, &b], span)?;
            unit = Some(match unit {
                None => is_it,
                Some(before) => self.emit(Op::And, &[&before, &is_it], span)?,
            });
            takes.push(axis);
        }
        let Some(unit) = unit else {
            let message = format!("`{}` takes no axes", layer.data.path);
            return Err(self.error(Code::E0409, message, span, "merged here"));
        };
        let unit = self.cast(&unit, DType::F32, span)?;
        let y = self.apply_each(layer, &stack, &unit, span)?;
        if let Some(op) = self.not_linear(unit.node, y.node) {
            let name = layer.data.code.as_ref().map_or("", |code| &code.ast.name.text);
            let message = format!(
                "`{name}` around `{}` is not linear in what it takes (`{op}`), so it is no matrix",
                base.data.path
            );
            let help = "it stays beside the model: save it as a checkpoint, or adapt by `Lora` or another that only multiplies and adds";
            return Err(self.error_help(Code::E0409, message, span, "merged here", help));
        }
        let zero = self.number(0.0, DType::F32, span)?;
        let none = AxisSet::of(takes).unwrap_or_default();
        let none = self.expand(&zero, &none, span)?;
        let at_zero = self.apply_each(layer, &stack, &none, span)?;
        let matrix = self.emit(Op::Sub, &[&y, &at_zero], span)?;
        renames.extend(arrow.to.iter().zip(&to).map(|(local, name)| (seen(local), name.clone())));
        let of_stack = stack.iter().map(|copies| (copies.axis.name.clone(), copies.graph.name.clone()));
        renames.extend(of_stack);
        let matrix = self.rename(&matrix, &renames, span)?;
        let constant = self.rename(&at_zero, &renames, span)?;
        let mut out = vec![Folded { weight: map, node: matrix.node, added: None }];
        match rest.first() {
            Some(bias) => {
                let (has, wants) = (self.axes(&constant).clone(), self.stored_type(*bias).axes);
                if has != wants {
                    let message = format!("what `{}` adds has other axes than its bias", layer.data.path);
                    return Err(self.error(Code::E0409, message, span, "merged here"));
                }
                out.push(Folded { weight: *bias, node: constant.node, added: None });
            }
            None => out[0].added = Some(constant.node),
        }
        Ok(out)
    }

    fn size_of_stored(&self, id: StoredId, name: &mdl_graph::Name) -> u64 {
        let stored = &self.stored[id.0 as usize];
        stored.axes.iter().find(|axis| axis.name == *name).map_or(1, |axis| axis.size)
    }

    /// Calls a layer for each of its copies side by side, wherever it stands.
    fn apply_each(&mut self, layer: &Layer, stack: &[Rc<Copies>], x: &Tensor, span: Span) -> Eval<Tensor> {
        let mut called = layer.clone();
        for copies in stack.iter().rev() {
            let each = Copies {
                id: copies.id,
                kind: CopiesKind::Each,
                axis: copies.axis.clone(),
                graph: copies.graph.clone(),
            };
            let data = LayerData {
                id: called.data.id,
                kind: LayerKind::Copies(Rc::new(each), called.clone()),
                code: called.data.code.clone(),
                root: called.data.root.clone(),
                path: called.data.path.clone(),
                steps: called.data.steps.clone(),
                header: called.data.header.clone(),
                env: called.data.env.clone(),
                members: Vec::new(),
                stored: called.data.stored.clone(),
                adapts: None,
            };
            called = Layer { data: Rc::new(data), outer: called.outer.clone(), gather: None };
        }
        let value = self.call(&Value::Layer(called), Args::of([(Value::Tensor(x.clone()), span)]), span)?;
        let node = self.node_of(&value, span)?;
        Ok(self.tensor(node))
    }

    /// An operation between two nodes that is not linear in the first.
    fn not_linear(&mut self, from: NodeId, to: NodeId) -> Option<&'static str> {
        let graph = self.graph();
        let mut depends = vec![false; graph.nodes().len()];
        depends[from.idx()] = true;
        for id in graph.ids().filter(|id| id.idx() > from.idx() && id.idx() <= to.idx()) {
            let of: Vec<bool> = graph.args(id).iter().map(|arg| depends[arg.idx()]).collect();
            if !of.contains(&true) {
                continue;
            }
            depends[id.idx()] = true;
            let op = graph.op(id);
            let moves =
                matches!(op, Op::Rename(_) | Op::Split { .. } | Op::Merge { .. } | Op::Slice { .. } | Op::Pad { .. })
                    || matches!(op, Op::Window { .. } | Op::Unwindow { .. } | Op::Expand(_) | Op::Detach);
            let adds = matches!(op, Op::Add | Op::Sub | Op::Neg | Op::Sum(_) | Op::Prefix { .. });
            let widens = matches!(op, Op::Cast(dtype) if dtype.is_float());
            // One side of a product, what is divided, the table that rows are taken of, what is chosen from.
            let scales = matches!(op, Op::Mul | Op::Contract(_)) && of != [true, true]
                || matches!(op, Op::Div | Op::Gather { .. }) && !of[1]
                || matches!(op, Op::Select) && !of[0];
            let is_linear = moves || adds || widens || scales;
            if !is_linear {
                return Some(op.name());
            }
        }
        None
    }
}
