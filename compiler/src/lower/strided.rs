//! Views that are nothing but another base and other strides on a value in memory.

use mdl_graph::{Name, NodeId, Op};

use super::strides;
use crate::fuse::{Body, Kind};
use crate::schedule::layout::Layout;

/// A value in memory seen through views: element `base + Σ stride · position`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Strided {
    pub(crate) root: NodeId,
    pub(crate) base: i64,
    pub(crate) strides: Vec<(Name, i64)>,
}

impl Strided {
    pub(crate) fn stride(&self, name: &Name) -> i64 {
        self.strides.iter().find(|(axis, _)| axis == name).map_or(0, |(_, stride)| *stride)
    }
}

/// A node as a view of memory; `None` when it is no such view, and would have to be copied first.
pub(crate) fn resolve<'l>(
    body: &Body<'_>,
    id: NodeId,
    layout: &dyn Fn(NodeId) -> Option<&'l Layout>,
) -> Option<Strided> {
    if body.kind(id) != Kind::Free {
        return Some(Strided { root: id, base: 0, strides: strides(layout(id)?) });
    }
    let op = body.graph.op(id);
    let arg = *body.graph.args(id).first()?;
    let source = &body.graph.ty(arg).axes;
    let size = |name: &Name| source.size(name).unwrap_or(1);
    let inner = |arg| resolve(body, arg, layout);
    match op {
        Op::Detach => inner(arg),
        Op::Rename(pairs) => {
            let mut view = inner(arg)?;
            for (name, _) in &mut view.strides {
                if let Some((_, new)) = pairs.iter().find(|(old, _)| old == name) {
                    *name = new.clone();
                }
            }
            Some(view)
        }
        Op::Expand(more) => {
            let mut view = inner(arg)?;
            view.strides.extend(more.iter().map(|axis| (axis.name.clone(), 0)));
            Some(view)
        }
        Op::Slice { axis, start, len, step } => {
            let mut view = inner(arg)?;
            if *step < 0 && *len > 1 {
                return None;
            }
            let (_, stride) = view.strides.iter_mut().find(|(name, _)| name == axis)?;
            view.base += *start as i64 * *stride;
            *stride *= step.max(&1);
            Some(view)
        }
        Op::Split { axis, into } => {
            let mut view = inner(arg)?;
            let at = view.strides.iter().position(|(name, _)| name == axis)?;
            let (_, mut stride) = view.strides.remove(at);
            for part in into.iter().rev() {
                view.strides.push((part.name.clone(), stride));
                stride *= part.size.max(1) as i64;
            }
            Some(view)
        }
        Op::Merge { axes, into } => {
            let mut view = inner(arg)?;
            let mut merged: Option<(i64, i64)> = None;
            for name in axes.iter().rev() {
                let at = view.strides.iter().position(|(present, _)| present == name)?;
                let (_, stride) = view.strides.remove(at);
                let size = size(name).max(1) as i64;
                if size == 1 {
                    continue;
                }
                merged = match merged {
                    None => Some((stride, stride * size)),
                    Some((least, next)) if stride == next => Some((least, next * size)),
                    Some(_) => return None,
                };
            }
            view.strides.push((into.clone(), merged.map_or(0, |(least, _)| least)));
            Some(view)
        }
        Op::Window { axis, out, tap, stride } => {
            let mut view = inner(arg)?;
            let at = view.strides.iter().position(|(name, _)| name == axis)?;
            let (_, step) = view.strides.remove(at);
            view.strides.push((out.clone(), step * *stride as i64));
            view.strides.push((tap.name.clone(), step));
            Some(view)
        }
        _ => None,
    }
}
