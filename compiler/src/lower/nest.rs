//! Maps, rows and exits: a grid of points, and a strip at each.

use std::collections::BTreeSet;

use mdl_graph::{DType, NodeId, Op, Scalar, bug};

use super::coord::Coord;
use super::writer::Writer;
use super::{Lowered, Lowering, Outcome, collapse};
use crate::fuse::{Group, Kind};
use crate::kernel::{Dim, FoldKind, Kernel, Nest, ScalarOp, Stmt, ValId, Work};
use crate::schedule::layout::Layout;

/// How the dimensions of a group become a grid and a strip.
struct Shape {
    /// Dimensions of the grid, outermost first; the first `keep` are kept by exits.
    grid: Vec<usize>,
    keep: usize,
    /// Outermost first; they make one strip together.
    strip: Vec<usize>,
}

pub(super) fn lower(low: &Lowering<'_, '_>, group: &Group) -> Outcome<Lowered> {
    if group.count(0..group.dims.len()) == 0 {
        return of_nothing(low, group);
    }
    let shape = shape(low, group);
    let (extents, coords) = dimensions(group, &shape);
    let mut writer = Writer::new(low, group, extents, coords);
    let stored = low.fusion.stores(group);
    for id in group.members.keys().copied() {
        let is_stored = stored.contains(&id);
        let val = match low.body.kind(id) {
            Kind::Reduce | Kind::Product => {
                let val = writer.summand(id)?;
                let kind = match low.body.graph.op(id) {
                    Op::MaxOver(_) => FoldKind::Max,
                    _ => FoldKind::Sum,
                };
                let reduced = group.reduced(low.body, id);
                let sums_strip = shape.strip.iter().any(|dim| reduced.contains(dim));
                let sums_grid = shape.grid.iter().any(|dim| reduced.contains(dim));
                let val = if sums_strip { writer.fold(val, kind) } else { val };
                if group.exits.contains(&id) && sums_grid {
                    exit(&mut writer, id, val, kind, sums_strip || shape.strip.is_empty())?;
                    continue;
                }
                let dtype = low.body.graph.ty(id).dtype;
                let val = match dtype {
                    DType::I8 | DType::U8 => writer.map(ScalarOp::Round(dtype), &[val], dtype),
                    _ => val,
                };
                writer.preset(id, val);
                val
            }
            Kind::Map => {
                // What nobody outside needs is computed when it is first asked for.
                if !is_stored {
                    continue;
                }
                writer.member(id)?
            }
            other => bug!("{id} is {other:?} in a nest"),
        };
        if is_stored {
            writer.store(id, val)?;
        }
    }
    let strip = writer.extents.pop().unwrap_or(1);
    let mut nest = Nest::new(std::mem::take(&mut writer.extents), strip);
    nest.keep = shape.keep;
    nest.vals = writer.vals;
    nest.body = writer.body;
    collapse::nest(&mut nest);
    if !nest.has_exits() {
        nest.keep = 0;
    }
    nest.chunks = nest.default_chunks();
    let kernel = Kernel { name: low.name(group), bufs: writer.bufs, work: Work::Nest(nest) };
    Ok(Lowered { kernel, touches: writer.touches })
}

/// Reductions of nothing: every element of their results is the same constant. Such groups have one member.
fn of_nothing(low: &Lowering<'_, '_>, group: &Group) -> Outcome<Lowered> {
    let Some(id) = low.fusion.stores(group).first().copied() else { bug!("a group that makes nothing") };
    let ty = low.body.graph.ty(id);
    let value = match low.body.graph.op(id) {
        Op::MaxOver(_) => Scalar::lowest(ty.dtype),
        _ => Scalar::Int(0).cast(ty.dtype),
    };
    let order = low.ranks.order(&ty.axes);
    let names = group.members[&id].clone();
    let dims: Vec<usize> = order
        .iter()
        .filter_map(|axis| names.iter().find(|(name, _)| *name == axis.name).map(|(_, dim)| *dim))
        .collect();
    let shape = Shape { grid: dims, keep: 0, strip: Vec::new() };
    let (extents, coords) = dimensions(group, &shape);
    let mut writer = Writer::new(low, group, extents, coords);
    let val = writer.constant(value, ty.dtype);
    writer.store(id, val)?;
    writer.extents.pop();
    let mut nest = Nest::new(std::mem::take(&mut writer.extents), 1);
    nest.vals = writer.vals;
    nest.body = writer.body;
    let kernel = Kernel { name: "fill".to_string(), bufs: writer.bufs, work: Work::Nest(nest) };
    Ok(Lowered { kernel, touches: writer.touches })
}

fn exit(writer: &mut Writer<'_, '_>, id: NodeId, val: ValId, kind: FoldKind, is_row: bool) -> Outcome<()> {
    let axes = writer.low.body.graph.ty(id).axes.clone();
    let point = writer.natural(id, &axes);
    let places: Vec<Layout> = writer.low.layouts.get(&id).cloned().unwrap_or_default();
    for (place, layout) in places.iter().enumerate() {
        let access = writer.access(layout, &point, writer.low.body.graph.ty(id).dtype)?;
        let buf = writer.buf(id, place, true)?;
        let val = if is_row { val } else { writer.spread(val) };
        writer.body.push(Stmt::Exit { buf, access, kind, val });
    }
    Ok(())
}

fn shape(low: &Lowering<'_, '_>, group: &Group) -> Shape {
    let order = low.order(group);
    // Dimensions of size 1 are nowhere: their only position is 0.
    let order: Vec<usize> = order.into_iter().filter(|dim| group.dims[*dim].1 != 1).collect();
    let reduced: Vec<BTreeSet<usize>> = group.exits.iter().map(|id| group.reduced(low.body, *id)).collect();
    let strip: Vec<usize> = match &group.inner {
        Some(inner) => order.iter().copied().filter(|dim| inner.contains(dim)).collect(),
        None => order.last().copied().into_iter().collect(),
    };
    let grid: Vec<usize> = order.into_iter().filter(|dim| !strip.contains(dim)).collect();
    let (kept, summed): (Vec<usize>, Vec<usize>) = match reduced.first() {
        Some(reduced) => grid.into_iter().partition(|dim| !reduced.contains(dim)),
        None => (grid, Vec::new()),
    };
    let keep = kept.len();
    Shape { grid: kept.into_iter().chain(summed).collect(), keep, strip }
}

/// The extents of the kernel, the strip last, and what each dimension of the group is there.
fn dimensions(group: &Group, shape: &Shape) -> (Vec<u64>, Vec<Coord>) {
    let mut extents: Vec<u64> = shape.grid.iter().map(|dim| group.dims[*dim].1).collect();
    extents.push(group.count(shape.strip.iter().copied()));
    let mut coords = vec![Coord::constant(0); group.dims.len()];
    for (at, dim) in shape.grid.iter().enumerate() {
        coords[*dim] = Coord::dim(Dim(at as u32));
    }
    let mut rest = Coord::dim(Dim(shape.grid.len() as u32));
    for (at, dim) in shape.strip.iter().enumerate().rev() {
        let size = group.dims[*dim].1;
        if at == 0 {
            coords[*dim] = rest;
            break;
        }
        // A single dimension always has quotient and remainder.
        if let (Some(part), Some(quotient)) = (rest.modulo(size, &extents), rest.floor_div(size, &extents)) {
            coords[*dim] = part;
            rest = quotient;
        }
    }
    (extents, coords)
}
