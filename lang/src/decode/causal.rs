//! The proof that a sum over a renamed axis does not see positions still to come.
//!
//! Values are followed over the half-plane `s >= t + 1` of a pair of axes (row `t`, column `s`): a value is a known number, an
//! affine function of the two positions, or anything finite. A reduction over `s` is safe when its operand is neutral there:
//! minus infinity under a maximum, zero under a sum. Anything not understood is "anything", so the proof errs on the side of refusal.

use std::collections::{BTreeMap, BTreeSet};

use mdl_graph::{Class, Graph, Loop, Name, NodeId, Op};

/// What a value is known to be on the half-plane.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Number(f64),
    /// `row · t + column · s + plus`, an integer.
    Affine {
        row: f64,
        column: f64,
        plus: f64,
    },
    /// Any finite number.
    Any,
}

/// The names of row and column at some node; renames on the way change them.
type Pair = (Name, Name);

pub(super) struct Causal<'a> {
    graph: &'a Graph,
    known: BTreeMap<(NodeId, Pair), Known>,
    /// Of a loop's body: what the surroundings know of its inputs but for carries.
    inputs: BTreeMap<(u32, Pair), Known>,
}

impl<'a> Causal<'a> {
    pub(super) fn new(graph: &'a Graph) -> Causal<'a> {
        Causal { graph, known: BTreeMap::new(), inputs: BTreeMap::new() }
    }

    /// The proof for the body of a loop over another axis than rows and columns: what it is given, whole or cut, is what the loop
    /// was given, at every turn. `names` are those that rows and columns may have.
    pub(super) fn of_body<'b>(&mut self, inner: &'b Loop, args: &[NodeId], names: &BTreeSet<Name>) -> Causal<'b> {
        let mut body = Causal::new(&inner.body);
        for (row, column) in names.iter().flat_map(|row| names.iter().map(move |column| (row, column))) {
            let pair = (row.clone(), column.clone());
            for (k, arg) in args.iter().enumerate().skip(inner.carries) {
                if row != column {
                    body.inputs.insert((k as u32, pair.clone()), self.know(*arg, &pair));
                }
            }
        }
        body
    }

    /// True when the reduction `id` over `column` is not changed by positions after the row's.
    pub(super) fn is_neutral(&mut self, id: NodeId, row: &Name, column: &Name) -> bool {
        let pair = (row.clone(), column.clone());
        let args: Vec<NodeId> = self.graph.args(id).to_vec();
        match self.graph.op(id) {
            Op::MaxOver(_) => self.know(args[0], &pair) == Known::Number(f64::NEG_INFINITY),
            Op::Sum(_) => self.know(args[0], &pair) == Known::Number(0.0),
            Op::Contract(_) => args.iter().any(|arg| self.know(*arg, &pair) == Known::Number(0.0)),
            _ => false,
        }
    }

    fn know(&mut self, id: NodeId, pair: &Pair) -> Known {
        let key = (id, pair.clone());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let known = self.derive(id, pair);
        self.known.insert(key, known);
        known
    }

    /// Row and column under the names that they have before a rename; an axis that is not there has none.
    fn before(pairs: &[(Name, Name)], pair: &Pair) -> Pair {
        let old = |name: &Name| match pairs.iter().find(|(_, new)| new == name) {
            Some((old, _)) => old.clone(),
            // The name was free, or was given up by this very rename.
            None if pairs.iter().any(|(old, _)| old == name) => Name::from(""),
            None => name.clone(),
        };
        (old(&pair.0), old(&pair.1))
    }

    fn derive(&mut self, id: NodeId, pair: &Pair) -> Known {
        use Known::{Affine, Any, Number};
        let graph = self.graph;
        let node = graph.node(id);
        let args: Vec<Known> = match &node.op {
            // Along other axes everything below a view or a reduction is mixed: only what keeps the pair in place is followed.
            Op::Expand(_) | Op::Detach => node.args.iter().map(|arg| self.know(*arg, pair)).collect(),
            Op::Rename(pairs) => vec![self.know(node.args[0], &Causal::before(pairs, pair))],
            op if op.class() == Class::Map => node.args.iter().map(|arg| self.know(*arg, pair)).collect(),
            _ => Vec::new(),
        };
        match (&node.op, args.as_slice()) {
            (Op::Input(input), _) => self.inputs.get(&(input.0, pair.clone())).copied().unwrap_or(Any),
            (Op::Const(value, _), _) => Number(value.as_f64()),
            (Op::Iota(axis), _) if axis.name == pair.0 => Affine { row: 1.0, column: 0.0, plus: 0.0 },
            (Op::Iota(axis), _) if axis.name == pair.1 => Affine { row: 0.0, column: 1.0, plus: 0.0 },
            (Op::Rename(_) | Op::Expand(_) | Op::Detach | Op::Cast(_), [x]) => *x,
            (Op::Neg, [x]) => scale(*x, -1.0),
            (Op::Add, [x, y]) => add(*x, *y),
            (Op::Sub, [x, y]) => add(*x, scale(*y, -1.0)),
            (Op::Mul, [x, y]) => match (*x, *y) {
                (Number(zero), other) | (other, Number(zero)) if zero == 0.0 => match other {
                    Number(other) if !other.is_finite() => Any,
                    _ => Number(0.0),
                },
                (Number(a), other) | (other, Number(a)) if a.is_finite() => scale(other, a),
                _ => Any,
            },
            (Op::Div, [Number(zero), y]) if *zero == 0.0 && !matches!(y, Number(d) if *d == 0.0) => Number(0.0),
            (Op::Div, [x, Number(d)]) if *d != 0.0 && node.ty.dtype.is_float() => scale(*x, 1.0 / d),
            (Op::Exp, [Number(x)]) => Number(x.exp()),
            (Op::Max, [Number(x), y]) | (Op::Max, [y, Number(x)]) if *x == f64::NEG_INFINITY => *y,
            (Op::Max, [Number(x), Number(y)]) => Number(x.max(*y)),
            (Op::Less, [x, y]) => less(*x, *y),
            (Op::Equal, [x, y]) => equal(*x, *y),
            (Op::Not, [Number(x)]) => Number(1.0 - x),
            (Op::And, [x, y]) => match (x, y) {
                (Number(0.0), _) | (_, Number(0.0)) => Number(0.0),
                (Number(_), other) | (other, Number(_)) => *other,
                _ => Any,
            },
            (Op::Or, [x, y]) => match (x, y) {
                (Number(1.0), _) | (_, Number(1.0)) => Number(1.0),
                (Number(_), other) | (other, Number(_)) => *other,
                _ => Any,
            },
            (Op::Select, [condition, x, y]) => match condition {
                Number(0.0) => *y,
                Number(_) => *x,
                _ if x == y => *x,
                _ => Any,
            },
            _ => Any,
        }
    }
}

fn scale(x: Known, by: f64) -> Known {
    match x {
        Known::Number(x) => Known::Number(x * by),
        Known::Affine { row, column, plus } => Known::Affine { row: row * by, column: column * by, plus: plus * by },
        Known::Any => Known::Any,
    }
}

fn add(x: Known, y: Known) -> Known {
    use Known::{Affine, Any, Number};
    match (x, y) {
        (Number(x), Number(y)) => Number(x + y),
        // A finite number does not move an infinity.
        (Number(x), Any | Affine { .. }) | (Any | Affine { .. }, Number(x)) if x.is_infinite() => Number(x),
        (Number(x), Affine { row, column, plus }) | (Affine { row, column, plus }, Number(x)) => {
            Affine { row, column, plus: plus + x }
        }
        (Affine { row: a, column: b, plus: c }, Affine { row: d, column: e, plus: f }) => {
            Affine { row: a + d, column: b + e, plus: c + f }
        }
        _ => Any,
    }
}

/// The least and the greatest that a value can be where `s >= t + 1`.
fn bounds(x: Known) -> (f64, f64) {
    match x {
        Known::Number(x) if !x.is_nan() => (x, x),
        // column · (s - t) + plus, with s - t >= 1.
        Known::Affine { row, column, plus } if row == -column => match column {
            0.0 => (plus, plus),
            c if c > 0.0 => (c + plus, f64::INFINITY),
            c => (f64::NEG_INFINITY, c + plus),
        },
        _ => (f64::NEG_INFINITY, f64::INFINITY),
    }
}

fn less(x: Known, y: Known) -> Known {
    match bounds(add(x, scale(y, -1.0))) {
        (_, most) if most < 0.0 => Known::Number(1.0),
        (least, _) if least >= 0.0 => Known::Number(0.0),
        _ => Known::Any,
    }
}

fn equal(x: Known, y: Known) -> Known {
    match bounds(add(x, scale(y, -1.0))) {
        (0.0, 0.0) => Known::Number(1.0),
        (least, most) if least > 0.0 || most < 0.0 => Known::Number(0.0),
        _ => Known::Any,
    }
}
