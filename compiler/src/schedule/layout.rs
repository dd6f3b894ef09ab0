//! Orders of axes. One ranking of axis names serves a whole graph, loops included, so that two values never disagree about
//! the order of the axes that they share: elementwise kernels read all operands alike, and groups of axes that a contraction sums or
//! keeps together lie together.
//!
//! Outermost first: axes of loops that stack weights, axes of batch fields, axes of weights (those that contractions treat
//! alike side by side), twins last, but for one of an axis of the batch that is alone. In a value that has an axis and its twin, the
//! axis stands right before the twin: a plane.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Axis, AxisSet, Graph, InputKind, Name, Op};

/// Where each element of a value lies: strides in elements, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) axes: Vec<(Axis, i64)>,
}

impl Layout {
    /// Row-major in this order, without gaps.
    pub(crate) fn dense(axes: Vec<Axis>) -> Layout {
        let mut stride = 1i64;
        let mut strided: Vec<(Axis, i64)> = Vec::with_capacity(axes.len());
        for axis in axes.into_iter().rev() {
            let step = stride;
            stride = stride.saturating_mul(axis.size.max(1) as i64);
            strided.push((axis, step));
        }
        strided.reverse();
        Layout { axes: strided }
    }

    pub(crate) fn stride(&self, name: &Name) -> Option<i64> {
        self.axes.iter().find(|(axis, _)| axis.name == *name).map(|(_, stride)| *stride)
    }

    pub(crate) fn count(&self) -> u64 {
        self.axes.iter().map(|(axis, _)| axis.size).product()
    }

    /// The elements from the first to the last, both included; 0 when there is none. Strides are not negative.
    pub(crate) fn span(&self) -> u64 {
        if self.count() == 0 {
            return 0;
        }
        1 + self.axes.iter().map(|(axis, stride)| (axis.size - 1) * stride.unsigned_abs()).sum::<u64>()
    }

    /// Whether it is row-major without gaps, and in which order; axes of size 1 may have any stride.
    pub(crate) fn dense_order(&self) -> Option<Vec<Axis>> {
        let mut order: Vec<(Axis, i64)> = self.axes.clone();
        order.sort_by_key(|(axis, stride)| (std::cmp::Reverse(*stride), axis.size == 1));
        let mut next = 1i64;
        for (axis, stride) in order.iter().rev() {
            if axis.size == 1 {
                continue;
            }
            if *stride != next {
                return None;
            }
            next *= axis.size.max(1) as i64;
        }
        Some(order.into_iter().map(|(axis, _)| axis).collect())
    }

    /// Without one axis, and that axis' stride.
    pub(crate) fn without(&self, name: &Name) -> Option<(Layout, i64)> {
        let stride = self.stride(name)?;
        let axes = self.axes.iter().filter(|(axis, _)| axis.name != *name).cloned().collect();
        Some((Layout { axes }, stride))
    }
}

/// The one ranking of the names of axes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranks {
    loops: BTreeSet<Name>,
    /// Outer before inner.
    batch: BTreeMap<Name, usize>,
    /// The least name of those that contractions treat alike.
    clusters: BTreeMap<Name, Name>,
    /// Axes of weights in the order that their owner keeps them in.
    kept: Vec<Name>,
}

type Rank = (u8, usize, Name, Name, usize);

/// `t''` is `t` twice primed.
fn base_name(name: &Name) -> (Name, usize) {
    let base = name.as_str().trim_end_matches('\'');
    (Name::from(base), name.as_str().len() - base.len())
}

/// One order of all names in which each of these orders finds its own, as far as they agree: kernels go over a weight as it lies. Of the
/// names that nothing stands before, the one that was seen first comes first.
fn merged(orders: &[&Vec<Name>]) -> Vec<Name> {
    let mut left: Vec<&Name> = Vec::new();
    for name in orders.iter().copied().flatten() {
        if !left.contains(&name) {
            left.push(name);
        }
    }
    let pairs: Vec<(&Name, &Name)> =
        orders.iter().flat_map(|order| order.windows(2)).map(|pair| (&pair[0], &pair[1])).collect();
    let mut kept = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let waits = |name: &Name| pairs.iter().any(|(before, after)| *after == name && left.contains(before));
        // Where two weights disagree, every name of them waits for another.
        let next = left.iter().position(|name| !waits(name)).unwrap_or(0);
        kept.push(left.remove(next).clone());
    }
    kept
}

impl Ranks {
    /// `orders` are those in which weights are kept, where somebody has chosen.
    pub(crate) fn of(graph: &Graph, orders: &BTreeMap<Name, Vec<Name>>) -> Ranks {
        let mut ranks = Ranks::default();
        let mut fields: BTreeMap<&Name, usize> = BTreeMap::new();
        for input in graph.inputs().iter().filter(|input| input.kind == InputKind::Batch) {
            for name in input.ty.axes.names() {
                *fields.entry(name).or_default() += 1;
            }
        }
        let mut batch: Vec<(&Name, usize)> = fields.into_iter().collect();
        batch.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), (*name).clone()));
        ranks.batch = batch.into_iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        ranks.collect(graph);
        let weights = graph.inputs().iter().filter(|input| input.kind == InputKind::Weight);
        ranks.kept = merged(&weights.filter_map(|input| orders.get(&input.name)).collect::<Vec<_>>());
        ranks
    }

    fn collect(&mut self, graph: &Graph) {
        for id in graph.ids() {
            match graph.op(id) {
                Op::Loop(inner) => {
                    self.loops.insert(inner.axis.name.clone());
                    self.collect(&inner.body);
                }
                Op::Contract(names) => {
                    for arg in graph.args(id) {
                        let axes = &graph.ty(*arg).axes;
                        // What has no axis of the batch is a weight, or like one: its free axes belong together.
                        if axes.names().any(|name| self.batch.contains_key(&base_name(name).0)) {
                            continue;
                        }
                        let (inner, outer): (Vec<&Name>, Vec<&Name>) =
                            axes.names().partition(|name| names.contains(name));
                        self.unite(&inner);
                        self.unite(&outer);
                    }
                }
                _ => {}
            }
        }
    }

    fn unite(&mut self, names: &[&Name]) {
        let roots: BTreeSet<Name> = names.iter().map(|name| self.cluster(name)).collect();
        let Some(least) = roots.first().cloned() else { return };
        for name in names {
            self.clusters.entry((*name).clone()).or_insert_with(|| least.clone());
        }
        for cluster in self.clusters.values_mut().filter(|cluster| roots.contains(cluster)) {
            *cluster = least.clone();
        }
    }

    fn cluster(&self, name: &Name) -> Name {
        self.clusters.get(name).unwrap_or(name).clone()
    }

    fn rank(&self, name: &Name, beside: &AxisSet) -> Rank {
        let (base, primes) = base_name(name);
        let has_twin = beside.names().any(|other| other != name && base_name(other).0 == base);
        if has_twin {
            return (3, 0, base.clone(), base, primes);
        }
        // A twin alone lies where the axis itself would.
        if let Some(at) = self.batch.get(&base) {
            return (1, *at, base.clone(), base, primes);
        }
        if primes > 0 {
            return (3, 0, base.clone(), base, primes);
        }
        if self.loops.contains(name) {
            return (0, 0, self.cluster(name), base, 0);
        }
        let kept = self.kept.iter().position(|other| other == name).unwrap_or(self.kept.len());
        (2, kept, self.cluster(name), base, 0)
    }

    /// These axes, outermost first.
    pub(crate) fn order(&self, axes: &AxisSet) -> Vec<Axis> {
        let mut order: Vec<Axis> = axes.iter().cloned().collect();
        order.sort_by_cached_key(|axis| self.rank(&axis.name, axes));
        order
    }

    /// The places of dimensions with these names and sizes, outermost first.
    pub(crate) fn sort(&self, dims: &[(Name, u64)]) -> Vec<usize> {
        let mut all = AxisSet::new();
        for (name, size) in dims {
            all.insert(Axis::new(name.clone(), *size));
        }
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_cached_key(|dim| (self.rank(&dims[*dim].0, &all), *dim));
        order
    }

    pub(crate) fn layout(&self, axes: &AxisSet) -> Layout {
        Layout::dense(self.order(axes))
    }
}

#[cfg(test)]
mod tests {
    use mdl_graph::{DType, Type};

    use super::*;

    fn set(axes: &[(&str, u64)]) -> AxisSet {
        AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap()
    }

    fn text(order: &[Axis]) -> String {
        order.iter().map(|axis| axis.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_batch_leads_planes_end_in_twins_and_weights_keep_their_sides_together() {
        let mut graph = Graph::new();
        graph.input("ids", InputKind::Batch, Type::new(DType::I32, set(&[("t", 8), ("batch", 2)])));
        graph.input("label", InputKind::Batch, Type::new(DType::I32, set(&[("batch", 2)])));
        let x = graph.input("x", InputKind::State, Type::new(DType::F32, set(&[("batch", 2), ("t", 8), ("width", 6)])));
        let w = graph.input("w", InputKind::Weight, Type::new(DType::F32, set(&[("width", 6), ("a", 2), ("z", 3)])));
        graph.add(Op::Contract(vec![Name::from("width")]), &[x, w]);
        let ranks = Ranks::of(&graph, &BTreeMap::new());
        assert_eq!(text(&ranks.order(&set(&[("t", 8), ("z", 3), ("batch", 2), ("a", 2)]))), "batch t a z");
        assert_eq!(text(&ranks.order(&set(&[("t", 8), ("t'", 8), ("batch", 2), ("head", 2)]))), "batch head t t'");
        assert_eq!(text(&ranks.order(&set(&[("width", 6), ("a", 2), ("z", 3), ("width'", 6)]))), "a z width width'");
        let orders = BTreeMap::from([(Name::from("w"), ["z", "width", "a"].map(Name::from).to_vec())]);
        let ranks = Ranks::of(&graph, &orders);
        assert_eq!(text(&ranks.order(&set(&[("width", 6), ("a", 2), ("z", 3), ("b", 1)]))), "z width a b");
        // An embedding ends in the axis that a later product ends in too; what that one begins with comes before.
        let all = [&["from", "to"][..], &["layer", "hidden", "to"], &["layer", "from", "hidden"]];
        let all: Vec<Vec<Name>> =
            all.iter().map(|order| order.iter().map(|name| Name::from(*name)).collect()).collect();
        let names = |kept: Vec<Name>| kept.iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(names(merged(&all.iter().collect::<Vec<_>>())), "layer from hidden to");
        // Two that disagree: one of them has its way.
        let (one, other) = (vec![Name::from("a"), Name::from("b")], vec![Name::from("b"), Name::from("a")]);
        assert_eq!(names(merged(&[&one, &other])), "a b");
    }

    #[test]
    fn density_ignores_axes_of_size_one() {
        let layout = Layout::dense(vec![Axis::new("a", 3), Axis::new("b", 1), Axis::new("c", 4)]);
        assert_eq!(layout.span(), 12);
        assert!(layout.dense_order().is_some());
        let (slice, stride) = layout.without(&Name::from("c")).unwrap();
        assert_eq!((stride, slice.span(), slice.dense_order().is_some()), (1, 9, false));
    }
}
