//! Kernels of their own kind: scatter, running sums, the largest.

use mdl_graph::{Axis, Name, NodeId, Op, ScatterKind, bug};

use super::strided::{Strided, resolve};
use super::{Failure, Lowered, Lowering, Outcome, Touch};
use crate::kernel::{Buf, BufId, Kernel, Operand, PairDim, Prefix, Role, Scatter, ScatterDim, Top, Work};
use crate::schedule::layout::Layout;

struct Parts {
    bufs: Vec<Buf>,
    touches: Vec<Touch>,
}

impl Parts {
    fn buf(&mut self, low: &Lowering<'_, '_>, node: NodeId, layout: &Layout, is_write: bool) -> BufId {
        let role = if is_write { Role::Write } else { Role::Read };
        let touch = Touch { node, place: 0, is_write };
        if let Some(at) = self.touches.iter().position(|present| *present == touch) {
            return BufId(at as u32);
        }
        let name = if is_write { "y".to_string() } else { format!("x{}", self.bufs.len()) };
        self.bufs.push(Buf { name, dtype: low.dtype(node), len: layout.span(), role });
        self.touches.push(touch);
        BufId(self.bufs.len() as u32 - 1)
    }

    fn operand(&mut self, low: &Lowering<'_, '_>, id: NodeId) -> Outcome<(Strided, Operand)> {
        let layout = |id: NodeId| low.layouts.get(&id).and_then(|places| places.first());
        let view = resolve(low.body, id, &layout).ok_or(Failure::Store(id))?;
        let buf = self.buf(low, view.root, low.layout(view.root)?, false);
        let operand = Operand { buf, base: view.base };
        Ok((view, operand))
    }
}

/// The kernel of a node, or of a scatter whose result `onto`, a sum, adds to a base.
pub(super) fn lower(low: &Lowering<'_, '_>, root: NodeId, onto: Option<NodeId>) -> Outcome<Lowered> {
    let node = low.body.graph.node(root);
    let mut parts = Parts { bufs: Vec::new(), touches: Vec::new() };
    let result = onto.unwrap_or(root);
    let layout = low.layout(result)?;
    let work = match &node.op {
        Op::Scatter { axis, keep, kind } => {
            let (rows, index) = (node.args[0], node.args[1]);
            // Row and index positions are integers of 32 or 64 bits.
            if low.val_dtype(index) != low.dtype(index) {
                return Err(Failure::Store(index));
            }
            let ((rows_at, rows_op), (index_at, index_op)) = (parts.operand(low, rows)?, parts.operand(low, index)?);
            let base = match onto.map(|sum| low.body.graph.args(sum)) {
                Some([x, y]) => Some(parts.operand(low, if *x == root { *y } else { *x })?),
                _ => None,
            };
            // A base that lies in another way is no base.
            if let Some((at, _)) = &base
                && layout.axes.iter().any(|(axis, stride)| axis.size != 1 && at.stride(&axis.name) != *stride)
            {
                return Err(Failure::Store(root));
            }
            let out = Operand { buf: parts.buf(low, result, layout, true), base: 0 };
            let index_axes = &low.body.graph.ty(index).axes;
            let row_axes = &low.body.graph.ty(rows).axes;
            let dim = |axis: &Axis| ScatterDim {
                extent: axis.size,
                rows: rows_at.stride(&axis.name),
                index: index_at.stride(&axis.name),
                out: layout.stride(&axis.name).unwrap_or(0),
            };
            // Points come in the order of their names, which is the order in which the last one wins.
            let points: Vec<ScatterDim> = index_axes
                .iter()
                .filter(|axis| !keep.contains(&axis.name))
                .map(|axis| ScatterDim { out: 0, ..dim(axis) })
                .collect();
            let kept = index_axes.iter().filter(|axis| keep.contains(&axis.name)).map(dim).collect();
            let inner_order = low.ranks.order(&row_axes.minus(index_axes));
            Work::Scatter(Scatter {
                put: *kind == ScatterKind::Put,
                base: base.map(|(_, operand)| operand),
                rows: rows_op,
                index: index_op,
                out,
                extent: axis.size,
                stride: layout.stride(&axis.name).unwrap_or(0),
                keep: kept,
                points,
                inner: inner_order.iter().map(dim).collect(),
            })
        }
        Op::Prefix { axis, reverse } => {
            let (at, x) = parts.operand(low, node.args[0])?;
            let out = Operand { buf: parts.buf(low, root, layout, true), base: 0 };
            let pair = pairs(layout, &at);
            let outer = low.ranks.order(&node.ty.axes).iter().filter(|other| other.name != *axis).map(&pair).collect();
            let Some(along) = node.ty.axes.get(axis).map(&pair) else { bug!("{root} has no axis {axis}") };
            Work::Prefix(Prefix { x, out, outer, along, reverse: *reverse })
        }
        Op::Top { axis, out: into } => {
            let (at, x) = parts.operand(low, node.args[0])?;
            let out = Operand { buf: parts.buf(low, root, layout, true), base: 0 };
            let mut outer_axes = node.ty.axes.clone();
            outer_axes.remove(&into.name);
            let outer = low.ranks.order(&outer_axes).iter().map(pairs(layout, &at)).collect();
            let extent = low.body.graph.ty(node.args[0]).axes.size(axis).unwrap_or(0);
            let along = PairDim { extent, x: at.stride(axis), out: layout.stride(&into.name).unwrap_or(0) };
            Work::Top(Top { x, out, outer, along, k: into.size })
        }
        other => bug!("`{}` of {root} has no kernel of its own", other.name()),
    };
    let kernel = Kernel { name: node.op.name().to_string(), bufs: parts.bufs, work };
    Ok(Lowered { kernel, touches: parts.touches })
}

fn pairs<'a>(layout: &'a Layout, at: &'a Strided) -> impl Fn(&Axis) -> PairDim + 'a {
    let out = |name: &Name| layout.stride(name).unwrap_or(0);
    move |axis: &Axis| PairDim { extent: axis.size, x: at.stride(&axis.name), out: out(&axis.name) }
}
