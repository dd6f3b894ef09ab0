//! The derivative of each primitive: from the cotangent of a result to those of its arguments.
//!
//! Where a function has a corner the choice is symmetric: `max(x, y)` at `x = y` gives each half, and `max_over` shares equally
//! among all that are the largest.

use mdl_graph::{Axis, AxisSet, DType, Graph, Name, NodeId, Op, Scalar, ScatterKind, bug};

use super::sweep::fit;

/// The cotangents of the arguments of `id`, `None` for those that `wants` does not ask for.
pub(super) fn pull(graph: &mut Graph, id: NodeId, dy: NodeId, wants: &dyn Fn(NodeId) -> bool) -> Vec<Option<NodeId>> {
    let node = graph.node(id).clone();
    let args = &node.args;
    let mut rule = Rule { graph, y: id, dy };
    args.iter()
        .enumerate()
        .map(|(place, x)| {
            if !wants(*x) {
                return None;
            }
            let ct = rule.argument(&node.op, args, place)?;
            let axes = rule.graph.ty(*x).axes.clone();
            Some(fit(rule.graph, ct, &axes))
        })
        .collect()
}

struct Rule<'a> {
    graph: &'a mut Graph,
    y: NodeId,
    dy: NodeId,
}

impl Rule<'_> {
    /// The cotangent of argument `place`, before it is summed to the axes of that argument. `None` if it is zero everywhere.
    fn argument(&mut self, op: &Op, args: &[NodeId], place: usize) -> Option<NodeId> {
        let (y, dy, x) = (self.y, self.dy, args[place]);
        Some(match op {
            // d exp(x) = exp(x) dx
            Op::Exp => self.mul(dy, y),
            // d log(x) = dx / x
            Op::Log => self.map(Op::Div, &[dy, x]),
            // d tanh(x) = (1 - tanh(x)²) dx
            Op::Tanh => {
                let (one, square) = (self.number(1.0), self.mul(y, y));
                let slope = self.map(Op::Sub, &[one, square]);
                self.mul(dy, slope)
            }
            // d erf(x) = 2/√π · exp(-x²) dx
            Op::Erf => {
                let square = self.mul(x, x);
                let negative = self.map(Op::Neg, &[square]);
                let bell = self.map(Op::Exp, &[negative]);
                let factor = self.number(std::f64::consts::FRAC_2_SQRT_PI);
                let slope = self.mul(factor, bell);
                self.mul(dy, slope)
            }
            Op::Sin => {
                let slope = self.map(Op::Cos, &[x]);
                self.mul(dy, slope)
            }
            Op::Cos => {
                let slope = self.map(Op::Sin, &[x]);
                let product = self.mul(dy, slope);
                self.map(Op::Neg, &[product])
            }
            // d √x = dx / (2 √x)
            Op::Sqrt => {
                let half = self.number(0.5);
                let halved = self.mul(dy, half);
                self.map(Op::Div, &[halved, y])
            }
            Op::Neg => self.map(Op::Neg, &[dy]),
            Op::Cast(_) => {
                let dtype = self.graph.ty(x).dtype;
                self.graph.cast(dy, dtype)
            }
            Op::Add => dy,
            Op::Sub if place == 0 => dy,
            Op::Sub => self.map(Op::Neg, &[dy]),
            // d (x · x) = 2 x dx
            Op::Mul if args[0] == args[1] => {
                let two = self.number(2.0);
                let doubled = self.mul(dy, two);
                if place == 0 { self.mul(doubled, x) } else { return None }
            }
            Op::Mul => self.product_to(dy, args[1 - place], x),
            Op::Div if place == 0 => self.map(Op::Div, &[dy, args[1]]),
            // d (a / b) = -(a / b) / b db
            Op::Div => {
                let slope = self.map(Op::Div, &[y, x]);
                let slope = self.map(Op::Neg, &[slope]);
                self.product_to(dy, slope, x)
            }
            Op::Max => {
                let other = args[1 - place];
                let (above, level) = (self.map(Op::Less, &[other, x]), self.map(Op::Equal, &[x, other]));
                let (half, zero) = (self.number(0.5), self.number(0.0));
                let shared = self.mul(dy, half);
                let otherwise = self.map(Op::Select, &[level, shared, zero]);
                self.map(Op::Select, &[above, dy, otherwise])
            }
            // rem(x, y) = x - floor(x / y) y, and floor is flat
            Op::Rem if place == 0 => dy,
            Op::Rem => {
                let quotient = self.map(Op::Div, &[args[0], x]);
                let times = self.map(Op::Floor, &[quotient]);
                let slope = self.map(Op::Neg, &[times]);
                self.product_to(dy, slope, x)
            }
            // d xⁿ = n xⁿ⁻¹ dx, and 0 where n = 0 whatever x is
            Op::Pow if place == 0 => {
                let (n, one, zero) = (args[1], self.number(1.0), self.number(0.0));
                let less = self.map(Op::Sub, &[n, one]);
                let power = self.map(Op::Pow, &[x, less]);
                let slope = self.mul(n, power);
                let flat = self.map(Op::Equal, &[n, zero]);
                let slope = self.map(Op::Select, &[flat, zero, slope]);
                self.mul(dy, slope)
            }
            // d bⁿ = bⁿ log(b) dn, and 0 where b ≤ 0, where it has no other meaning
            Op::Pow => {
                let (base, zero) = (args[0], self.number(0.0));
                let log = self.map(Op::Log, &[base]);
                let slope = self.mul(y, log);
                let positive = self.map(Op::Less, &[zero, base]);
                let slope = self.map(Op::Select, &[positive, slope, zero]);
                self.mul(dy, slope)
            }
            Op::Select => {
                let zero = self.number(0.0);
                match place {
                    1 => self.map(Op::Select, &[args[0], dy, zero]),
                    2 => self.map(Op::Select, &[args[0], zero, dy]),
                    _ => return None,
                }
            }
            Op::Sum(_) => dy,
            Op::MaxOver(names) => self.max_over(names, x),
            Op::Prefix { axis, reverse } => self.map(Op::Prefix { axis: axis.clone(), reverse: !reverse }, &[dy]),
            // dA = Contract over the axes that only the others have
            Op::Contract(_) => self.product_to(dy, args[1 - place], x),
            Op::Rename(_)
            | Op::Split { .. }
            | Op::Merge { .. }
            | Op::Slice { .. }
            | Op::Pad { .. }
            | Op::Window { .. }
            | Op::Unwindow { .. }
            | Op::Expand(_) => self.view(op, x),
            // A table's gradient gets each row's where it was read; axes of both stay matched.
            Op::Gather { axis } if place == 0 => {
                let (table, index) = (self.graph.ty(x).axes.clone(), self.graph.ty(args[1]).axes.clone());
                let keep: Vec<Name> =
                    table.names().filter(|name| *name != axis && index.contains(name)).cloned().collect();
                let axis = Axis::new(axis.clone(), table.size(axis)?);
                self.map(Op::Scatter { axis, keep, kind: ScatterKind::Add }, &[dy, args[1]])
            }
            Op::Scatter { axis, kind, .. } if place == 0 => {
                let rows = self.map(Op::Gather { axis: axis.name.clone() }, &[dy, args[1]]);
                match kind {
                    ScatterKind::Add => rows,
                    ScatterKind::Put => self.winners(op, rows, x, args[1]),
                }
            }
            Op::Detach | Op::Floor | Op::Gather { .. } | Op::Scatter { .. } => return None,
            Op::Input(_)
            | Op::Const(..)
            | Op::Iota(_)
            | Op::Less
            | Op::Equal
            | Op::And
            | Op::Or
            | Op::Not
            | Op::Uniform { .. }
            | Op::Top { .. } => return None,
            Op::Get(_) => return None,
            Op::Loop(_) | Op::Grad => bug!("{y}: `{}` has no rule of its own", op.name()),
        })
    }

    fn map(&mut self, op: Op, args: &[NodeId]) -> NodeId {
        self.graph.add(op, args)
    }

    fn mul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.graph.add(Op::Mul, &[a, b])
    }

    fn number(&mut self, value: f64) -> NodeId {
        let dtype = self.graph.ty(self.y).dtype;
        self.graph.constant(value, dtype)
    }

    /// `Σ dy · other` over the axes that `x` lacks, as one contraction. `dy` has all axes of `x` and of `other` that remain.
    fn product_to(&mut self, dy: NodeId, other: NodeId, x: NodeId) -> NodeId {
        let (have, keep) = (self.graph.ty(dy).axes.clone(), &self.graph.ty(x).axes);
        let extra = have.minus(keep);
        let shared = extra.common(&self.graph.ty(other).axes);
        let alone: Vec<Name> = extra.minus(&shared).names().cloned().collect();
        let dy = self.graph.sum(dy, alone);
        if shared.is_empty() { self.mul(dy, other) } else { self.map(contract(&shared), &[dy, other]) }
    }

    fn max_over(&mut self, names: &[Name], x: NodeId) -> NodeId {
        let largest = self.map(Op::Equal, &[x, self.y]);
        let ones = self.map(Op::Cast(self.graph.ty(x).dtype), &[largest]);
        let count = self.graph.sum(ones, names.to_vec());
        let share = self.map(Op::Div, &[self.dy, count]);
        let zero = self.number(0.0);
        self.map(Op::Select, &[largest, share, zero])
    }

    /// Each view moves the cotangent back along the same way.
    fn view(&mut self, op: &Op, x: NodeId) -> NodeId {
        let dy = self.dy;
        let from: AxisSet = self.graph.ty(x).axes.clone();
        let size = |name: &Name| from.size(name).unwrap_or(0);
        match op {
            Op::Rename(pairs) => self.graph.rename(dy, pairs.iter().map(|(old, new)| (new.clone(), old.clone()))),
            Op::Split { axis, into } => {
                let axes = into.iter().map(|part| part.name.clone()).collect();
                self.map(Op::Merge { axes, into: axis.clone() }, &[dy])
            }
            Op::Merge { axes, into } => {
                let parts = axes.iter().map(|name| Axis::new(name.clone(), size(name))).collect();
                self.map(Op::Split { axis: into.clone(), into: parts }, &[dy])
            }
            Op::Slice { axis, start, len, step } => self.slice(axis, *start, *len, *step, size(axis)),
            Op::Pad { axis, before, .. } => {
                self.map(Op::Slice { axis: axis.clone(), start: *before, len: size(axis), step: 1 }, &[dy])
            }
            Op::Window { axis, out, tap, stride } => {
                let whole = Axis::new(axis.clone(), size(axis));
                let (out, tap, stride) = (out.clone(), tap.name.clone(), *stride);
                self.map(Op::Unwindow { axis: whole, out, tap, stride }, &[dy])
            }
            Op::Unwindow { axis, out, tap, stride } => {
                let taps = Axis::new(tap.clone(), size(tap));
                let window = Op::Window { axis: axis.name.clone(), out: out.clone(), tap: taps, stride: *stride };
                let all = self.map(window, &[dy]);
                // More windows may fit the axis than there were.
                let len = size(out);
                let fits = self.graph.ty(all).axes.size(out) == Some(len);
                if fits { all } else { self.map(Op::Slice { axis: out.clone(), start: 0, len, step: 1 }, &[all]) }
            }
            // Summed over the axes that were added, by `fit`.
            _ => dy,
        }
    }

    /// `dy` back at the positions it was sliced from, zeros elsewhere. A step of more than one puts zeros between: each
    /// position becomes a block of which only the first counts.
    fn slice(&mut self, axis: &Name, start: u64, len: u64, step: i64, size: u64) -> NodeId {
        let fill = Scalar::Float(0.0).cast(self.graph.ty(self.dy).dtype);
        if len == 0 {
            return self.map(Op::Pad { axis: axis.clone(), before: 0, after: size, fill }, &[self.dy]);
        }
        let (mut dy, mut first) = (self.dy, start);
        if step < 0 {
            dy = self.map(Op::Slice { axis: axis.clone(), start: len - 1, len, step: -1 }, &[dy]);
            first = start - step.unsigned_abs() * (len - 1);
        }
        if step == 0 {
            // The same position again and again: its cotangents add up.
            dy = self.graph.sum(dy, [axis.clone()]);
            dy = self.map(Op::Expand(vec![Axis::new(axis.clone(), 1)]), &[dy]);
        }
        let mut taken = if step == 0 { 1 } else { len };
        let block = step.unsigned_abs();
        if block > 1 && len > 1 {
            let mut gap = axis.twin();
            while self.graph.ty(dy).axes.contains(&gap) {
                gap = gap.twin();
            }
            dy = self.map(Op::Expand(vec![Axis::new(gap.clone(), 1)]), &[dy]);
            dy = self.map(Op::Pad { axis: gap.clone(), before: 0, after: block - 1, fill }, &[dy]);
            dy = self.map(Op::Merge { axes: vec![axis.clone(), gap], into: axis.clone() }, &[dy]);
            // Zeros after the last position may reach beyond the end.
            taken = (len - 1) * block + 1;
            dy = self.map(Op::Slice { axis: axis.clone(), start: 0, len: taken, step: 1 }, &[dy]);
        }
        if taken == size {
            return dy;
        }
        self.map(Op::Pad { axis: axis.clone(), before: first, after: size - first - taken, fill }, &[dy])
    }

    /// Of the rows put at one position only the last in order arrives: `rows` where a row is that one, 0 elsewhere. The rows
    /// are numbered in their order, the numbers are put the same way, and a row that reads its own number has won.
    fn winners(&mut self, op: &Op, rows: NodeId, x: NodeId, index: NodeId) -> NodeId {
        let axes = match self.graph.ty(x).axes.union(&self.graph.ty(index).axes) {
            Ok(axes) => axes,
            Err(name) => bug!("{}: axis `{name}` has two sizes", self.y),
        };
        let mut number = self.graph.constant(0.0, DType::I32);
        for axis in axes.iter() {
            let size = self.graph.constant(axis.size as f64, DType::I32);
            let position = self.graph.iota(axis.clone());
            let scaled = self.mul(number, size);
            number = self.map(Op::Add, &[scaled, position]);
        }
        let Op::Scatter { axis, keep, .. } = op else { bug!("{}: no scatter", self.y) };
        let put = Op::Scatter { axis: axis.clone(), keep: keep.clone(), kind: ScatterKind::Put };
        let last = self.map(put, &[number, index]);
        let last = self.map(Op::Gather { axis: axis.name.clone() }, &[last, index]);
        let won = self.map(Op::Equal, &[last, number]);
        let zero = self.number(0.0);
        self.map(Op::Select, &[won, rows, zero])
    }
}

fn contract(axes: &AxisSet) -> Op {
    Op::Contract(axes.names().cloned().collect())
}
