//! The compact text of a graph: one node a line, bodies of loops indented. Stable: it is what golden files hold.

use std::fmt::{self, Display, Write};

use crate::{Graph, InputKind, NodeId, Op, Phase, Role};

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{item}");
    }
    text
}

fn kind_name(kind: InputKind) -> &'static str {
    match kind {
        InputKind::Weight => "weight",
        InputKind::State => "state",
        InputKind::Batch => "batch",
        InputKind::Scalar => "scalar",
        InputKind::Param => "param",
    }
}

impl Display for Op {
    /// The operation with its attributes, without its arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Op::Const(value, dtype) => write!(f, " {value} {dtype}"),
            Op::Iota(axis) => write!(f, "[{axis}]"),
            Op::Cast(dtype) => write!(f, "[{dtype}]"),
            Op::Uniform { place } => write!(f, "[place {place}]"),
            Op::Sum(names) | Op::MaxOver(names) | Op::Contract(names) => write!(f, "[{}]", list(names)),
            Op::Prefix { axis, reverse } => write!(f, "[{axis}{}]", if *reverse { ", reverse" } else { "" }),
            Op::Rename(pairs) => write!(f, "[{}]", list(pairs.iter().map(|(old, new)| format!("{old} as {new}")))),
            Op::Split { axis, into } => write!(f, "[{axis} as ({})]", list(into)),
            Op::Merge { axes, into } => write!(f, "[({}) as {into}]", list(axes)),
            Op::Slice { axis, start, len, step } => write!(f, "[{axis} = {start}.. len {len} step {step}]"),
            Op::Pad { axis, before, after, fill } => write!(f, "[{axis}: {before}, {after} with {fill}]"),
            Op::Window { axis, out, tap, stride } => write!(f, "[{axis} as ({out}, {tap}), stride {stride}]"),
            Op::Unwindow { axis, out, tap, stride } => write!(f, "[({out}, {tap}) as {axis}, stride {stride}]"),
            Op::Expand(axes) => write!(f, "[{}]", list(axes)),
            Op::Gather { axis } => write!(f, "[{axis}]"),
            Op::Scatter { axis, keep, kind } => {
                write!(f, "[{axis}; keep ({}), {}]", list(keep), format!("{kind:?}").to_lowercase())
            }
            Op::Top { axis, out } => write!(f, "[{axis} as {out}]"),
            Op::Loop(inner) => {
                write!(f, "[{}{}]", inner.axis, if inner.reverse { ", reverse" } else { "" })
            }
            Op::Get(k) => write!(f, "[{k}]"),
            _ => Ok(()),
        }
    }
}

impl Graph {
    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let pad = " ".repeat(indent);
        for id in self.ids() {
            self.write_node(f, id, &pad, indent)?;
        }
        for output in self.outputs() {
            let role = match output.role {
                Role::Value => "out",
                Role::Next(_) => "next",
            };
            writeln!(f, "{pad}{role} {} = {}", output.name, output.node)?;
        }
        Ok(())
    }

    fn write_node(&self, f: &mut fmt::Formatter<'_>, id: NodeId, pad: &str, indent: usize) -> fmt::Result {
        let node = self.node(id);
        let phase = match node.phase {
            Phase::Forward => "",
            Phase::Backward => " ; backward",
            Phase::Update => " ; update",
        };
        match &node.op {
            Op::Input(input) => {
                let input = &self.inputs()[input.0 as usize];
                writeln!(f, "{pad}{id} = {} {} : {}", kind_name(input.kind), input.name, node.ty)
            }
            Op::Loop(inner) => {
                let (carries, rest) = node.args.split_at(inner.carries);
                let (scans, free) = rest.split_at(inner.scans);
                let until = if inner.until { ", until" } else { "" };
                writeln!(
                    f,
                    "{pad}{id} = {}(carry {}; scan {}; free {}{until}) {{{phase}",
                    node.op,
                    list(carries),
                    list(scans),
                    list(free)
                )?;
                inner.body.write(f, indent + 2)?;
                writeln!(f, "{pad}}}")
            }
            op if node.args.is_empty() => writeln!(f, "{pad}{id} = {op} : {}{phase}", node.ty),
            op => writeln!(f, "{pad}{id} = {op}({}) : {}{phase}", list(&node.args), node.ty),
        }
    }
}

impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}
