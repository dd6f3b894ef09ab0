//! Contractions: the template's dimensions from the axes of the two operands, and the maps over the result as its body.

use mdl_graph::{Axis, DType, Name, NodeId, Op, Phase, bug};

use super::coord::Coord;
use super::strided::{Strided, resolve};
use super::writer::Writer;
use super::{Failure, Lowered, Lowering, Outcome, collapse};
use crate::fuse::{Group, Kind};
use crate::kernel::{Contract, ContractDim, Dim, Kernel, Operand, Parts, Rank, Work};

fn operand(low: &Lowering<'_, '_>, id: NodeId) -> Outcome<Strided> {
    let layout = |id: NodeId| low.layouts.get(&id).and_then(|places| places.first());
    resolve(low.body, id, &layout).ok_or(Failure::Store(id))
}

pub(super) fn lower(low: &Lowering<'_, '_>, group: &Group, root: NodeId) -> Outcome<Lowered> {
    let graph = low.body.graph;
    let node = graph.node(root);
    let Op::Contract(summed) = &node.op else { bug!("{root} is no contraction") };
    let (first, second) = (node.args[0], node.args[1]);
    let (mut a, mut b) = (operand(low, first)?, operand(low, second)?);
    let (mut a_axes, mut b_axes) = (&graph.ty(first).axes, &graph.ty(second).axes);

    // The strip should run along what lies contiguous in the result: the axes of the second operand are innermost.
    let names = &group.members[&root];
    let name_of = |dim: usize| names.iter().find(|(_, at)| *at == dim).map(|(name, _)| name);
    let order: Vec<Axis> =
        low.order(group).into_iter().filter_map(|dim| node.ty.axes.get(name_of(dim)?).cloned()).collect();
    let innermost =
        order.iter().rev().find(|axis| axis.size != 1 && a_axes.contains(&axis.name) != b_axes.contains(&axis.name));
    let is_swapped = innermost.is_some_and(|axis| a_axes.contains(&axis.name));
    if is_swapped {
        std::mem::swap(&mut a, &mut b);
        std::mem::swap(&mut a_axes, &mut b_axes);
    }
    let dims = |keep: &dyn Fn(&Name) -> bool, axes: &[Axis]| -> Vec<(Name, ContractDim)> {
        axes.iter()
            .filter(|axis| axis.size != 1 && keep(&axis.name))
            .map(|axis| {
                let dim = ContractDim { extent: axis.size, a: a.stride(&axis.name), b: b.stride(&axis.name) };
                (axis.name.clone(), dim)
            })
            .collect()
    };
    let batch = dims(&|name| a_axes.contains(name) && b_axes.contains(name), &order);
    let m = dims(&|name| a_axes.contains(name) && !b_axes.contains(name), &order);
    let n = dims(&|name| !a_axes.contains(name) && b_axes.contains(name), &order);
    let mut inner: Vec<Axis> = a_axes.iter().filter(|axis| summed.contains(&axis.name)).cloned().collect();
    inner.sort_by_key(|axis| std::cmp::Reverse((a.stride(&axis.name), b.stride(&axis.name))));
    let k = dims(&|_| true, &inner);

    let mut extents: Vec<u64> = Vec::new();
    let mut coords = vec![Coord::constant(0); group.dims.len()];
    for (name, dim) in batch.iter().chain(&m).chain(&n) {
        if let Some(at) = group.dim(root, name) {
            coords[at] = Coord::dim(Dim(extents.len() as u32));
        }
        extents.push(dim.extent);
    }
    if n.is_empty() {
        extents.push(1);
    }
    let mut writer = Writer::new(low, group, extents, coords);
    let product = writer.define(Rank::Strip, node.ty.dtype);
    let plain = |dims: &[(Name, ContractDim)]| dims.iter().map(|(_, dim)| *dim).collect::<Vec<_>>();
    writer.preset(root, product);
    let a = Operand { buf: writer.buf(a.root, 0, false)?, base: a.base };
    let b = Operand { buf: writer.buf(b.root, 0, false)?, base: b.base };
    let stored = low.fusion.stores(group);
    for id in group.members.keys().copied() {
        if !stored.contains(&id) {
            continue;
        }
        let val = if id == root { product } else { writer.member(id)? };
        debug_assert!(id == root || low.body.kind(id) == Kind::Map);
        writer.store(id, val)?;
    }
    // The optimizer's own products stay whole.
    let is_step = node.ty.dtype == DType::F32 && node.phase != Phase::Update && !m.is_empty() && !n.is_empty();
    let mut contract = Contract {
        a,
        b,
        batch: plain(&batch),
        m: plain(&m),
        n: plain(&n),
        k: plain(&k),
        parts: if is_step { low.parts } else { Parts::Whole },
        vals: writer.vals,
        body: writer.body,
    };
    collapse::contract(&mut contract);
    let kernel = Kernel { name: low.name(group), bufs: writer.bufs, work: Work::Contract(contract) };
    Ok(Lowered { kernel, touches: writer.touches })
}
