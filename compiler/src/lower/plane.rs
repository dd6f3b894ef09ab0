//! Planes: the products that make one, its body on strips along the columns, and the products that sum it.

use mdl_graph::{Name, NodeId, Op, bug};

use super::coord::Coord;
use super::strided::{Strided, resolve};
use super::writer::{Point, Writer};
use super::{Failure, Lowered, Lowering, Outcome};
use crate::fuse::{Group, Kind, Names};
use crate::kernel::{
    ContractDim, Dim, FoldKind, Keeps, Kernel, Operand, PairDim, Plane, PlaneIn, PlaneOut, PlaneSide, Rank, Work,
};
use crate::schedule::layout::Layout;

/// What one group is lowered with.
struct Parts<'a, 'g> {
    low: &'a Lowering<'a, 'g>,
    group: &'a Group,
    /// The number of dimensions of the batch, and of the batch and the rows: the column's.
    batch: usize,
    column: usize,
}

pub(super) fn lower(low: &Lowering<'_, '_>, group: &Group, batch: usize, rows: usize) -> Outcome<Lowered> {
    let parts = Parts { low, group, batch, column: batch + rows };
    let graph = low.body.graph;
    let n_dims = parts.column + 1;
    let extents: Vec<u64> = group.dims[..n_dims].iter().map(|(_, size)| *size).collect();
    let place = |dim: usize| match group.dims[dim].1 {
        _ if dim >= n_dims => Coord::constant(0),
        1 => Coord::constant(0),
        _ => Coord::dim(Dim(dim as u32)),
    };
    let coords = (0..group.dims.len()).map(place).collect();
    let mut writer = Writer::new(low, group, extents.clone(), coords);

    let products = || group.members.keys().copied().filter(|id| low.body.kind(*id) == Kind::Contract);
    let (mut ins, mut outs) = (Vec::new(), Vec::new());
    for id in products().filter(|id| parts.plane_arg(*id).is_none()) {
        let val = writer.define(Rank::Strip, graph.ty(id).dtype);
        writer.preset(id, val);
        ins.push(parts.product(&mut writer, id)?);
    }
    let stored = low.fusion.stores(group);
    for id in group.members.keys().copied() {
        match low.body.kind(id) {
            Kind::Contract => {}
            Kind::Reduce | Kind::Product => {
                let val = writer.summand(id)?;
                let kind = if let Op::MaxOver(_) = graph.op(id) { FoldKind::Max } else { FoldKind::Sum };
                let val = writer.fold(val, kind);
                writer.preset(id, val);
                if stored.contains(&id) {
                    writer.store(id, val)?;
                }
            }
            Kind::Map if stored.contains(&id) => {
                let val = writer.member(id)?;
                writer.store(id, val)?;
            }
            Kind::Map => {}
            other => bug!("{id} is {other:?} in a plane"),
        }
    }
    for id in products() {
        if let Some(arg) = parts.plane_arg(id) {
            parts.sum(&mut writer, id, arg, &mut outs)?;
        }
    }
    let plane = Plane {
        batch: extents[..batch].to_vec(),
        rows: extents[batch..parts.column].to_vec(),
        columns: extents[parts.column],
        ins,
        vals: writer.vals,
        body: writer.body,
        outs,
    };
    let kernel = Kernel { name: format!("plane_{}", low.name(group)), bufs: writer.bufs, work: Work::Plane(plane) };
    Ok(Lowered { kernel, touches: writer.touches })
}

impl Parts<'_, '_> {
    /// The argument of a product that is a value of the plane, if it sums one.
    fn plane_arg(&self, id: NodeId) -> Option<NodeId> {
        let is_member = |arg: &NodeId| self.group.members.contains_key(&self.low.body.renamed(*arg).0);
        self.low.body.graph.args(id).iter().copied().find(is_member)
    }

    fn summed(&self, id: NodeId) -> &[Name] {
        match self.low.body.graph.op(id) {
            Op::Contract(names) => names,
            op => bug!("{id} is `{}` and no product", op.name()),
        }
    }

    fn operand(&self, id: NodeId) -> Outcome<Strided> {
        let layout = |id: NodeId| self.low.layouts.get(&id).and_then(|places| places.first());
        resolve(self.low.body, id, &layout).ok_or(Failure::Store(id))
    }

    /// An operand, or a result, by its strides, where `names` says which dimension each axis is.
    fn side(&self, at: Operand, stride: &dyn Fn(&Name) -> i64, names: &Names, keeps: Keeps) -> PlaneSide {
        let of = |dim: usize| names.iter().filter(|(_, at)| *at == dim).map(|(name, _)| stride(name)).sum::<i64>();
        let along = match keeps {
            Keeps::Rows => self.batch..self.column,
            Keeps::Columns => self.column..self.column + 1,
        };
        PlaneSide { operand: at, batch: (0..self.batch).map(of).collect(), along: along.map(of).collect() }
    }

    fn product(&self, writer: &mut Writer<'_, '_>, id: NodeId) -> Outcome<PlaneIn> {
        let graph = self.low.body.graph;
        let names = &self.group.members[&id];
        let has_column =
            |arg: &NodeId| names.iter().any(|(name, dim)| *dim == self.column && graph.ty(*arg).axes.contains(name));
        let args = graph.args(id);
        let (a, b) = if has_column(&args[1]) { (args[0], args[1]) } else { (args[1], args[0]) };
        let (rows, columns) = (self.operand(a)?, self.operand(b)?);
        let mut k: Vec<ContractDim> = Vec::new();
        for name in self.summed(id) {
            let extent = graph.ty(a).axes.size(name).unwrap_or(1);
            if extent != 1 {
                k.push(ContractDim { extent, a: rows.stride(name), b: columns.stride(name) });
            }
        }
        k.sort_by_key(|dim| std::cmp::Reverse((dim.a, dim.b)));
        let a = Operand { buf: writer.buf(rows.root, 0, false)?, base: rows.base };
        let b = Operand { buf: writer.buf(columns.root, 0, false)?, base: columns.base };
        Ok(PlaneIn {
            a: self.side(a, &|name| rows.stride(name), names, Keeps::Rows),
            b: self.side(b, &|name| columns.stride(name), names, Keeps::Columns),
            k,
        })
    }

    /// A product that sums a value of the plane, once for each place that its result is stored in.
    fn sum(&self, writer: &mut Writer<'_, '_>, id: NodeId, arg: NodeId, outs: &mut Vec<PlaneOut>) -> Outcome<()> {
        let graph = self.low.body.graph;
        let (root, renames) = self.low.body.renamed(arg);
        let made = &self.group.members[&root];
        let dim = |there: &Name| made.iter().find(|(name, _)| name == there).map(|(_, dim)| *dim);
        let names: Names = renames.iter().filter_map(|(there, here)| Some((here.clone(), dim(there)?))).collect();
        let mut point = Point::default();
        for (name, dim) in &names {
            point.put(name, writer.coords[*dim].clone());
        }
        let val = writer.pull(arg, point)?;
        let val = writer.spread(val);

        let own = &self.group.members[&id];
        let keeps_rows = own.iter().all(|(_, dim)| *dim != self.column);
        let (keeps, loses) = if keeps_rows { (Keeps::Rows, Keeps::Columns) } else { (Keeps::Columns, Keeps::Rows) };
        let Some(with) = graph.args(id).iter().copied().find(|other| *other != arg) else {
            bug!("{id} sums a plane with itself")
        };
        let with = self.operand(with)?;
        let operand = Operand { buf: writer.buf(with.root, 0, false)?, base: with.base };
        let layouts: Vec<Layout> = self.low.layouts.get(&id).cloned().unwrap_or_default();
        for (place, layout) in layouts.iter().enumerate() {
            let stride = |name: &Name| layout.stride(name).unwrap_or(0);
            let mut n: Vec<PairDim> = Vec::new();
            for (name, dim) in own.iter().filter(|(_, dim)| *dim > self.column) {
                let extent = self.group.dims[*dim].1;
                if extent != 1 {
                    n.push(PairDim { extent, x: with.stride(name), out: stride(name) });
                }
            }
            n.sort_by_key(|dim| std::cmp::Reverse((dim.out, dim.x)));
            let to = Operand { buf: writer.buf(id, place, true)?, base: 0 };
            outs.push(PlaneOut {
                val,
                keeps,
                with: self.side(operand, &|name| with.stride(name), &names, loses),
                out: self.side(to, &stride, own, keeps),
                n,
            });
        }
        Ok(())
    }
}
