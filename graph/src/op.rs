//! The primitives. Everything else that a recipe says is written in `.mdl` with these.

use serde::{Deserialize, Serialize};

use crate::{Axis, DType, Graph, InputId, Name, Scalar};

/// One primitive operation with its attributes. The shape rules are in `shape.rs`, the meanings in the compiler's
/// `reference.rs`, the derivatives in its `grad.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    // Leaves.
    /// An input of the graph.
    Input(InputId),
    /// A constant of rank 0; its dtype is the node's.
    Const(Scalar, DType),
    /// The positions along an axis: `i32[axis]`.
    Iota(Axis),

    // Maps: element by element over the union of the arguments' axes. Arguments have one dtype, casts are explicit.
    Exp,
    Log,
    Tanh,
    Erf,
    Sin,
    Cos,
    Sqrt,
    Floor,
    Neg,
    Cast(DType),
    Add,
    Sub,
    Mul,
    /// Division. Integers round toward minus infinity, as `div` does; x / 0 is 0 for integers.
    Div,
    Max,
    /// The remainder with the sign of the divisor: `x - floor(x / y) * y`; 0 when an integer y is 0.
    Rem,
    /// `x ^ y`, floats only.
    Pow,
    Less,
    Equal,
    And,
    Or,
    Not,
    /// `where(condition, x, y)`: the value of the side that is not taken does not matter, NaN included.
    Select,
    /// A uniform draw in [0, 1), `f32`: Philox4x32-10 of (seed, step, lane, counter) and the attribute `place`.
    /// Arguments: seed `i32[]`, step `i32[]`, lane `i32[]` (the loop position), counter `i32[..]`.
    Uniform {
        place: u32,
    },

    // Reductions.
    Sum(Vec<Name>),
    /// The largest along the axes; of nothing it is minus infinity, or the smallest integer.
    MaxOver(Vec<Name>),
    /// The running sum along an axis, the element itself included; from the end when `reverse`.
    Prefix {
        axis: Name,
        reverse: bool,
    },
    /// The sum over these axes, which both arguments have, of the product. All other axes are kept, matched by name.
    Contract(Vec<Name>),

    // Views.
    /// Several axes renamed at once, `(old, new)`, in the order of the old names.
    Rename(Vec<(Name, Name)>),
    /// One axis as several, the first outermost; the product of their sizes is its size.
    Split {
        axis: Name,
        into: Vec<Axis>,
    },
    /// Several axes as one, the first outermost.
    Merge {
        axes: Vec<Name>,
        into: Name,
    },
    /// Positions `start, start + step, …`, `len` of them. `step` may be negative.
    Slice {
        axis: Name,
        start: u64,
        len: u64,
        step: i64,
    },
    /// `before` and `after` more positions, filled with a constant.
    Pad {
        axis: Name,
        before: u64,
        after: u64,
        fill: Scalar,
    },
    /// Sliding windows: `y[out = o, tap = k] = x[axis = o · stride + k]`; `out` has as many positions as fit.
    Window {
        axis: Name,
        out: Name,
        tap: Axis,
        stride: u64,
    },
    /// The adjoint of `Window`: the sum of all `x[out = o, tap = k]` with `o · stride + k = i`, for `i` along `axis`.
    Unwindow {
        axis: Axis,
        out: Name,
        tap: Name,
        stride: u64,
    },
    /// The same data along more axes.
    Expand(Vec<Axis>),

    // Index.
    /// `Gather[axis](table, index)`: `axis` is replaced by the axes of `index`; other shared axes are matched.
    /// A position outside gives 0.
    Gather {
        axis: Name,
    },
    /// The adjoint: `Scatter[axis; keep](rows, index)` puts or adds each row at its position along `axis`. Axes of `index` in
    /// `keep` are matched and stay, the others are summed away (or, for `Put`, the last in order wins: the order is
    /// that of positions, the axes of `index` by name, first name outermost). A position outside is left out. Where nothing is put: 0.
    Scatter {
        axis: Axis,
        keep: Vec<Name>,
        kind: ScatterKind,
    },
    /// The positions of the `k` largest along an axis, best first, as `i32` along `out`; ties to the lower position,
    /// NaN counts as the smallest.
    Top {
        axis: Name,
        out: Axis,
    },

    // Control.
    /// A loop; its results are taken by `Get`.
    Loop(Box<Loop>),
    /// Result `k` of a `Loop` or of a `Grad`.
    Get(u32),
    /// Marks a value through which no gradient flows; only differentiation reads it.
    Detach,
    /// The derivatives of the sum of the first argument with respect to the others, taken by `Get`. The compiler's
    /// `differentiate` replaces it.
    Grad,
}

/// How `Scatter` treats a position that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScatterKind {
    Add,
    Put,
}

/// A loop along an axis with carried values. Its arguments, and the body's inputs, are in the order carries, scanned
/// values (which have the axis; the body sees one position), free values. The body's outputs are the next carries,
/// then values to stack along the axis, then, if `until`, one `bool[]`.
///
/// Results: the last carries, then the stacked values. With `until` the loop ends after the first pass whose last
/// output is true, and nothing may be stacked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Loop {
    pub axis: Axis,
    pub reverse: bool,
    pub carries: usize,
    pub scans: usize,
    pub until: bool,
    pub body: Graph,
}

impl Loop {
    /// The same loop around another body.
    pub fn with_body(&self, body: Graph) -> Loop {
        Loop {
            axis: self.axis.clone(),
            reverse: self.reverse,
            carries: self.carries,
            scans: self.scans,
            until: self.until,
            body,
        }
    }

    /// The number of values stacked along the axis.
    pub fn stacked(&self) -> usize {
        self.body.outputs().len() - self.carries - usize::from(self.until)
    }
}

/// What passes need to know of an operation without matching every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    Leaf,
    Map,
    Reduce,
    Prefix,
    Contract,
    View,
    Index,
    Order,
    Control,
}

macro_rules! ops {
    ($($pattern:pat => $name:literal, $class:ident;)*) => {
        impl Op {
            /// The name in dumps and, for maps and reductions, in `.mdl`.
            pub fn name(&self) -> &'static str {
                match self { $($pattern => $name,)* }
            }

            pub fn class(&self) -> Class {
                match self { $($pattern => Class::$class,)* }
            }
        }
    };
}

ops! {
    Op::Input(_) => "input", Leaf;
    Op::Const(..) => "const", Leaf;
    Op::Iota(_) => "iota", Leaf;
    Op::Exp => "exp", Map;
    Op::Log => "log", Map;
    Op::Tanh => "tanh", Map;
    Op::Erf => "erf", Map;
    Op::Sin => "sin", Map;
    Op::Cos => "cos", Map;
    Op::Sqrt => "sqrt", Map;
    Op::Floor => "floor", Map;
    Op::Neg => "neg", Map;
    Op::Cast(_) => "cast", Map;
    Op::Add => "add", Map;
    Op::Sub => "sub", Map;
    Op::Mul => "mul", Map;
    Op::Div => "div", Map;
    Op::Max => "max", Map;
    Op::Rem => "rem", Map;
    Op::Pow => "pow", Map;
    Op::Less => "less", Map;
    Op::Equal => "equal", Map;
    Op::And => "and", Map;
    Op::Or => "or", Map;
    Op::Not => "not", Map;
    Op::Select => "select", Map;
    Op::Uniform { .. } => "uniform", Map;
    Op::Sum(_) => "sum", Reduce;
    Op::MaxOver(_) => "max_over", Reduce;
    Op::Prefix { .. } => "prefix", Prefix;
    Op::Contract(_) => "contract", Contract;
    Op::Rename(_) => "rename", View;
    Op::Split { .. } => "split", View;
    Op::Merge { .. } => "merge", View;
    Op::Slice { .. } => "slice", View;
    Op::Pad { .. } => "pad", View;
    Op::Window { .. } => "window", View;
    Op::Unwindow { .. } => "unwindow", View;
    Op::Expand(_) => "expand", View;
    Op::Gather { .. } => "gather", Index;
    Op::Scatter { .. } => "scatter", Index;
    Op::Top { .. } => "top", Order;
    Op::Loop(_) => "loop", Control;
    Op::Get(_) => "get", Control;
    Op::Detach => "detach", Control;
    Op::Grad => "grad", Control;
}

impl Op {
    /// True when the order of the two arguments does not matter, so that they may be sorted.
    pub fn is_commutative(&self) -> bool {
        matches!(self, Op::Add | Op::Mul | Op::Max | Op::Equal | Op::And | Op::Or)
    }

    /// The graph inside, of a loop.
    pub fn body(&self) -> Option<&Graph> {
        match self {
            Op::Loop(inner) => Some(&inner.body),
            _ => None,
        }
    }
}
