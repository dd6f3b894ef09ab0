//! One operation on numbers, as an expression.

use mdl_compiler::kernel::{FoldKind, ScalarOp};
use mdl_graph::{DType, Scalar};

use super::print::{constant, value_type};

/// `args` are names or constants; `from` is their dtype (of the first), `to` the result's.
pub(super) fn expression(op: ScalarOp, from: DType, to: DType, args: &[String]) -> String {
    let arg = |at: usize| args.get(at).map_or("", String::as_str);
    let (x, y) = (arg(0), arg(1));
    let float = from.is_float();
    // `expf` of f32, `exp` of f64.
    let call = |name: &str| format!("{name}{}({})", if from == DType::F64 { "" } else { "f" }, args.join(", "));
    let wrapping = |name: &str| format!("{name}({})", args.join(", "));
    let infix = |sign: &str| format!("{x} {sign} {y}");
    match op {
        ScalarOp::Exp => call("exp"),
        ScalarOp::Log => call("log"),
        ScalarOp::Tanh => call("tanh"),
        ScalarOp::Erf => call("erf"),
        ScalarOp::Sin => call("sin"),
        ScalarOp::Cos => call("cos"),
        ScalarOp::Sqrt => call("sqrt"),
        ScalarOp::Floor => call("floor"),
        ScalarOp::Pow => call("pow"),
        ScalarOp::Neg if float => format!("-({x})"),
        ScalarOp::Neg => format!("wrap_sub(({})0, {x})", value_type(to)),
        ScalarOp::Cast => cast(from, to, x),
        ScalarOp::Round(DType::BF16) => format!("to_float(to_bf16({x}))"),
        ScalarOp::Round(DType::F16) => format!("to_float(to_f16({x}))"),
        ScalarOp::Round(DType::I8) => format!("(signed char){x}"),
        ScalarOp::Round(DType::U8) => format!("(unsigned char){x}"),
        ScalarOp::Round(_) => x.to_string(),
        ScalarOp::Add if float => infix("+"),
        ScalarOp::Add => wrapping("wrap_add"),
        ScalarOp::Sub if float => infix("-"),
        ScalarOp::Sub => wrapping("wrap_sub"),
        ScalarOp::Mul if float => infix("*"),
        ScalarOp::Mul => wrapping("wrap_mul"),
        ScalarOp::Div if float => infix("/"),
        ScalarOp::Div => wrapping("floor_div"),
        ScalarOp::Max => format!("max_nan({x}, {y})"),
        ScalarOp::Rem => wrapping("floor_rem"),
        ScalarOp::Less => infix("<"),
        ScalarOp::Equal => infix("=="),
        ScalarOp::And => infix("&&"),
        ScalarOp::Or => infix("||"),
        ScalarOp::Not => format!("!{x}"),
        ScalarOp::Select => format!("{x} ? {y} : {}", arg(2)),
        ScalarOp::Uniform { place } => format!("uniform({x}, {y}, {}, {place}u, {})", arg(2), arg(3)),
    }
}

/// Floats to integers saturate, and NaN is 0; integers wrap.
fn cast(from: DType, to: DType, x: &str) -> String {
    match (from, to) {
        (from, to) if from == to => x.to_string(),
        (DType::Bool, to) if to.is_float() => {
            format!("{x} ? {} : {}", constant(to, Scalar::Float(1.0)), constant(to, Scalar::Float(0.0)))
        }
        (from, DType::Bool) => format!("{x} != {}", constant(from, Scalar::Int(0))),
        (from, to) if from.is_float() && to.is_int() => {
            format!("to_{}({x})", if to == DType::I64 { "i64" } else { "i32" })
        }
        (_, to) => format!("({}){x}", value_type(to)),
    }
}

/// The class of the prelude that joins two numbers of a fold.
pub(super) fn fold_name(kind: FoldKind) -> &'static str {
    match kind {
        FoldKind::Sum => "Sum",
        FoldKind::Max => "Max",
    }
}

/// What a fold of nothing is.
pub(super) fn neutral(kind: FoldKind, dtype: DType) -> String {
    match (kind, dtype) {
        (FoldKind::Sum, _) => constant(dtype, Scalar::Int(0)),
        (FoldKind::Max, DType::I64) => constant(dtype, Scalar::Int(i64::MIN)),
        (FoldKind::Max, DType::I32) => constant(dtype, Scalar::Int(i64::from(i32::MIN))),
        (FoldKind::Max, _) => constant(dtype, Scalar::Float(f64::NEG_INFINITY)),
    }
}
