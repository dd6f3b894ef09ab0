//! Algebra of maps. Absent on purpose, because a NaN or an infinity would be lost: x · 0 → 0, x - x → 0, x / x → 1 of floats.

use mdl_graph::{DType, Graph, NodeId, Op, Scalar, Type};

use super::{constant_of, is_number, make, spread_to};

/// The type of `op(args)`, for maps.
fn ty_of(graph: &Graph, op: &Op, args: &[NodeId]) -> Option<Type> {
    let types: Vec<&Type> = args.iter().map(|arg| graph.ty(*arg)).collect();
    mdl_graph::infer(op, &types).ok()
}

/// The argument of `x` if it is `op`.
fn under(graph: &Graph, x: NodeId, op: &Op) -> Option<NodeId> {
    (graph.op(x) == op).then(|| graph.args(x)[0])
}

pub(super) fn arithmetic(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    match (op, args) {
        (Op::Neg, [x]) => negate(graph, *x),
        (Op::Add, [x, y]) => add(graph, *x, *y).or_else(|| add(graph, *y, *x)),
        (Op::Sub, [x, y]) => subtract(graph, *x, *y),
        (Op::Mul, [x, y]) => multiply(graph, *x, *y).or_else(|| multiply(graph, *y, *x)),
        (Op::Div, [x, y]) => divide(graph, *x, *y),
        (Op::Pow, [x, n]) => power(graph, *x, *n),
        // max(x, x) → x
        (Op::Max, [x, y]) if x == y => Some(*x),
        // floor(floor(x)) → floor(x)
        (Op::Floor, [x]) if *graph.op(*x) == Op::Floor => Some(*x),
        _ => None,
    }
}

fn negate(graph: &mut Graph, x: NodeId) -> Option<NodeId> {
    // -(-x) → x
    if let Some(inner) = under(graph, x, &Op::Neg) {
        return Some(inner);
    }
    // -(x · c) → x · (-c)
    if let (Op::Mul, [a, b]) = (graph.op(x), graph.args(x)) {
        let (a, b) = (*a, *b);
        for (a, c) in [(a, b), (b, a)] {
            if let Op::Const(..) = graph.op(c) {
                let c = make(graph, Op::Neg, &[c]);
                return Some(make(graph, Op::Mul, &[a, c]));
            }
        }
    }
    // -(x - y) → y - x
    if let (Op::Sub, [a, b]) = (graph.op(x), graph.args(x)) {
        let (a, b) = (*a, *b);
        return Some(make(graph, Op::Sub, &[b, a]));
    }
    None
}

fn add(graph: &mut Graph, x: NodeId, y: NodeId) -> Option<NodeId> {
    // x + 0 → x
    if is_number(graph, y, 0.0) {
        let ty = ty_of(graph, &Op::Add, &[x, y])?;
        return Some(spread_to(graph, x, &ty));
    }
    let dtype = graph.ty(x).dtype;
    // x + x → x · 2
    if x == y && dtype.is_float() {
        let two = graph.constant(2.0, dtype);
        return Some(make(graph, Op::Mul, &[x, two]));
    }
    // x + (-y) → x - y
    if let Some(y) = under(graph, y, &Op::Neg) {
        return Some(make(graph, Op::Sub, &[x, y]));
    }
    None
}

fn subtract(graph: &mut Graph, x: NodeId, y: NodeId) -> Option<NodeId> {
    // x - 0 → x
    if is_number(graph, y, 0.0) {
        let ty = ty_of(graph, &Op::Sub, &[x, y])?;
        return Some(spread_to(graph, x, &ty));
    }
    // 0 - y → -y
    if is_number(graph, x, 0.0) {
        let ty = ty_of(graph, &Op::Sub, &[x, y])?;
        let negative = make(graph, Op::Neg, &[y]);
        return Some(spread_to(graph, negative, &ty));
    }
    // x - (-y) → x + y
    if let Some(y) = under(graph, y, &Op::Neg) {
        return Some(make(graph, Op::Add, &[x, y]));
    }
    None
}

fn multiply(graph: &mut Graph, x: NodeId, y: NodeId) -> Option<NodeId> {
    let dtype = graph.ty(x).dtype;
    if let Some(number) = constant_of(graph, y).map(|number| number.as_f64()) {
        // x · 1 → x, and x · 0 → 0 of integers
        let one_of_them = match number {
            1.0 => Some(x),
            0.0 if dtype.is_int() => Some(y),
            _ => None,
        };
        if let Some(kept) = one_of_them {
            let ty = ty_of(graph, &Op::Mul, &[x, y])?;
            return Some(spread_to(graph, kept, &ty));
        }
        // x · (-1) → -x
        if number == -1.0 {
            let ty = ty_of(graph, &Op::Mul, &[x, y])?;
            let negative = make(graph, Op::Neg, &[x]);
            return Some(spread_to(graph, negative, &ty));
        }
    }
    // (-x) · c → x · (-c)
    if let (Some(inner), Op::Const(..)) = (under(graph, x, &Op::Neg), graph.op(y)) {
        let y = make(graph, Op::Neg, &[y]);
        return Some(make(graph, Op::Mul, &[inner, y]));
    }
    // (-x) · y → -(x · y)
    if let Some(inner) = under(graph, x, &Op::Neg) {
        let product = make(graph, Op::Mul, &[inner, y]);
        return Some(make(graph, Op::Neg, &[product]));
    }
    // (x · a) · b → x · (a · b), of constants whose product neither overflows nor vanishes
    if let (Op::Const(b, _), Op::Mul, [p, q]) = (graph.op(y), graph.op(x), graph.args(x)) {
        let (b, p, q) = (*b, *p, *q);
        for (inner, a) in [(p, q), (q, p)] {
            if let Op::Const(a, _) = graph.op(a)
                && let Some(product) = tame_product(*a, b, dtype)
            {
                let product = graph.add(Op::Const(product, dtype), &[]);
                return Some(make(graph, Op::Mul, &[inner, product]));
            }
        }
    }
    None
}

/// `a · b` as a constant, if it stays far from the ends of the dtype.
fn tame_product(a: Scalar, b: Scalar, dtype: DType) -> Option<Scalar> {
    let product = a.as_f64() * b.as_f64();
    let fits = |value: f64| (1e-30..1e30).contains(&value.abs());
    (matches!(dtype, DType::F32 | DType::F64) && fits(product) && fits(a.as_f64()) && fits(b.as_f64()))
        .then(|| Scalar::Float(if dtype == DType::F32 { f64::from(product as f32) } else { product }))
}

fn divide(graph: &mut Graph, x: NodeId, y: NodeId) -> Option<NodeId> {
    let ty = ty_of(graph, &Op::Div, &[x, y])?;
    // (-x) / y → -(x / y)
    if let Some(inner) = under(graph, x, &Op::Neg) {
        let quotient = make(graph, Op::Div, &[inner, y]);
        return Some(make(graph, Op::Neg, &[quotient]));
    }
    // x / y → x · (1 / y), where y has fewer elements: one division for each of y, not for each of x. Below the least normal
    // number 1 / y overflows; a divisor that small is 0 on machines that flush it.
    let floats = matches!(ty.dtype, DType::F32 | DType::F64);
    if floats && constant_of(graph, y).is_none() && graph.ty(y).count() < ty.count() {
        let one = graph.constant(1.0, ty.dtype);
        let inverse = make(graph, Op::Div, &[one, y]);
        return Some(make(graph, Op::Mul, &[x, inverse]));
    }
    let divisor = constant_of(graph, y)?.as_f64();
    // x / 1 → x
    if divisor == 1.0 {
        return Some(spread_to(graph, x, &ty));
    }
    // x / c → x · (1 / c), exact for powers of two, else within a rounding; a single number is divided as it says, so that
    // n / n is 1.
    let exact = divisor.to_bits() << 12 == 0;
    let tame = divisor.is_normal() && (1e-30..1e30).contains(&divisor.abs());
    if floats && tame && (exact || !ty.axes.is_empty()) {
        let one = graph.constant(1.0, ty.dtype);
        let inverse = make(graph, Op::Div, &[one, y]);
        let product = make(graph, Op::Mul, &[x, inverse]);
        return Some(spread_to(graph, product, &ty));
    }
    None
}

fn power(graph: &mut Graph, x: NodeId, n: NodeId) -> Option<NodeId> {
    let ty = ty_of(graph, &Op::Pow, &[x, n])?;
    let exponent = constant_of(graph, n)?.as_f64();
    let found = if exponent == 1.0 {
        // x ^ 1 → x
        x
    } else if exponent == 2.0 {
        // x ^ 2 → x · x
        make(graph, Op::Mul, &[x, x])
    } else if exponent == -1.0 {
        // x ^ -1 → 1 / x
        let one = graph.constant(1.0, ty.dtype);
        make(graph, Op::Div, &[one, x])
    } else {
        return None;
    };
    Some(spread_to(graph, found, &ty))
}

pub(super) fn logic(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    match (op, args) {
        // not not x → x
        (Op::Not, [x]) => under(graph, *x, &Op::Not),
        (Op::And | Op::Or, [x, y]) => {
            // x and x → x
            if x == y {
                return Some(*x);
            }
            for (x, y) in [(*x, *y), (*y, *x)] {
                if let Some(known) = constant_of(graph, y) {
                    let ty = ty_of(graph, op, args)?;
                    // x and true → x, x and false → false, and the same of `or` the other way round
                    let keeps = (known.as_f64() != 0.0) == (*op == Op::And);
                    return Some(spread_to(graph, if keeps { x } else { y }, &ty));
                }
            }
            None
        }
        // x == x → true and x < x → false, but of floats NaN == NaN is false
        (Op::Equal | Op::Less, [x, y]) if x == y && (*op == Op::Less || !graph.ty(*x).dtype.is_float()) => {
            let ty = ty_of(graph, op, args)?;
            let known = graph.add(Op::Const(Scalar::Bool(*op == Op::Equal), DType::Bool), &[]);
            Some(spread_to(graph, known, &ty))
        }
        (Op::Select, [c, x, y]) => select(graph, *c, *x, *y),
        _ => None,
    }
}

fn select(graph: &mut Graph, c: NodeId, x: NodeId, y: NodeId) -> Option<NodeId> {
    let ty = ty_of(graph, &Op::Select, &[c, x, y])?;
    // where(true, x, y) → x
    if let Some(known) = constant_of(graph, c) {
        return Some(spread_to(graph, if known.as_f64() != 0.0 { x } else { y }, &ty));
    }
    // where(c, x, x) → x
    if x == y {
        return Some(spread_to(graph, x, &ty));
    }
    // where(not c, x, y) → where(c, y, x)
    if let Some(c) = under(graph, c, &Op::Not) {
        return Some(make(graph, Op::Select, &[c, y, x]));
    }
    // where(c, where(c, x, _), y) → where(c, x, y), and the same on the other side
    let choice = |id: NodeId| (*graph.op(id) == Op::Select && graph.args(id)[0] == c).then(|| graph.args(id).to_vec());
    let (left, right) = (choice(x).map(|args| args[1]), choice(y).map(|args| args[2]));
    if left.is_some() || right.is_some() {
        let chosen = make(graph, Op::Select, &[c, left.unwrap_or(x), right.unwrap_or(y)]);
        return Some(spread_to(graph, chosen, &ty));
    }
    None
}

/// True when every value of `from` is one of `to`.
fn holds_all(to: DType, from: DType) -> bool {
    let rank = |dtype: DType| match dtype {
        DType::F64 => (0, 3),
        DType::F32 => (0, 2),
        DType::BF16 | DType::F16 => (0, 1),
        DType::I64 => (1, 3),
        DType::I32 => (1, 2),
        DType::I8 | DType::U8 => (1, 1),
        DType::Bool => (2, 0),
    };
    let ((to_kind, to_rank), (from_kind, from_rank)) = (rank(to), rank(from));
    match (from_kind, to_kind) {
        _ if from == DType::Bool => true,
        (0, 0) | (1, 1) => to == from || to_rank > from_rank,
        // f32 holds integers of 24 bits, f64 of 53
        (1, 0) => (to == DType::F64 && from_rank <= 2) || (to == DType::F32 && from_rank == 1),
        _ => false,
    }
}

pub(super) fn casts(graph: &mut Graph, op: &Op, args: &[NodeId]) -> Option<NodeId> {
    let (Op::Cast(to), [x]) = (op, args) else { return None };
    // cast[d](x) → x, when x is d already
    if graph.ty(*x).dtype == *to {
        return Some(*x);
    }
    // cast[d](cast[e](x)) → cast[d](x), when e holds every x
    if let Op::Cast(between) = graph.op(*x) {
        let source = graph.args(*x)[0];
        if holds_all(*between, graph.ty(source).dtype) {
            return Some(make(graph, Op::Cast(*to), &[source]));
        }
    }
    None
}
