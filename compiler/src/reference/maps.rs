//! Maps: element by element over the union of the arguments' axes.

use mdl_graph::{DType, Op, Type, philox};

use super::tensor::{Data, Tensor, places, wrap_int};

/// The arguments spread over the axes of the result, then one function for all elements.
pub(super) fn map(op: &Op, args: &[&Tensor], ty: &Type) -> Result<Tensor, String> {
    let spread: Vec<Data> = args
        .iter()
        .map(
            |arg| {
                if arg.ty.axes == ty.axes { arg.data.clone() } else { arg.data.pick(&places(&ty.axes, &arg.ty.axes)) }
            },
        )
        .collect();
    let data = match (op, spread.as_slice()) {
        (Op::Cast(to), [x]) => cast(x, *to),
        (Op::Select, [Data::Bool(condition), x, y]) => select(condition, x, y)?,
        (Op::Uniform { place }, [Data::Int(seed), Data::Int(step), Data::Int(lane), Data::Int(counter)]) => {
            let draws = (0..counter.len()).map(|i| {
                let words = [seed[i], step[i], lane[i], counter[i]].map(|value| value as u32);
                f64::from(philox::uniform(words[0], words[1], words[2], *place, words[3]))
            });
            Data::Float(draws.collect())
        }
        (op, [Data::Float(x)]) => Data::Float(float_unary(op, x)?),
        (op, [Data::Float(x), Data::Float(y)]) => float_binary(op, x, y)?,
        (Op::Neg, [Data::Int(x)]) => Data::Int(x.iter().map(|x| wrap_int(x.wrapping_neg(), ty.dtype)).collect()),
        (op, [Data::Int(x), Data::Int(y)]) => int_binary(op, x, y, ty.dtype)?,
        (Op::Not, [Data::Bool(x)]) => Data::Bool(x.iter().map(|x| !x).collect()),
        (Op::And, [Data::Bool(x), Data::Bool(y)]) => Data::Bool(zip(x, y, |x, y| x && y)),
        (Op::Or, [Data::Bool(x), Data::Bool(y)]) => Data::Bool(zip(x, y, |x, y| x || y)),
        (Op::Equal, [Data::Bool(x), Data::Bool(y)]) => Data::Bool(zip(x, y, |x, y| x == y)),
        _ => return Err(format!("`{}` has no meaning for these arguments", op.name())),
    };
    Ok(Tensor { ty: ty.clone(), data })
}

fn zip<A: Copy, B>(x: &[A], y: &[A], f: impl Fn(A, A) -> B) -> Vec<B> {
    x.iter().zip(y).map(|(x, y)| f(*x, *y)).collect()
}

fn select(condition: &[bool], x: &Data, y: &Data) -> Result<Data, String> {
    fn choose<T: Copy>(condition: &[bool], x: &[T], y: &[T]) -> Vec<T> {
        condition.iter().zip(x.iter().zip(y)).map(|(c, (x, y))| if *c { *x } else { *y }).collect()
    }
    match (x, y) {
        (Data::Float(x), Data::Float(y)) => Ok(Data::Float(choose(condition, x, y))),
        (Data::Int(x), Data::Int(y)) => Ok(Data::Int(choose(condition, x, y))),
        (Data::Bool(x), Data::Bool(y)) => Ok(Data::Bool(choose(condition, x, y))),
        _ => Err("`select` between different kinds".into()),
    }
}

/// Floats become integers toward zero, at the nearest end when they do not fit, and 0 for NaN; integers wrap; what is not 0 is true.
fn cast(x: &Data, to: DType) -> Data {
    let clamp = |value: f64| match to {
        DType::I32 => i64::from(value as i32),
        DType::I8 => i64::from(value as i8),
        DType::U8 => i64::from(value as u8),
        _ => value as i64,
    };
    match x {
        Data::Float(x) if to.is_float() => Data::Float(x.clone()),
        Data::Float(x) if to == DType::Bool => Data::Bool(x.iter().map(|x| *x != 0.0).collect()),
        Data::Float(x) => Data::Int(x.iter().map(|x| clamp(*x)).collect()),
        Data::Int(x) if to.is_float() => Data::Float(x.iter().map(|x| *x as f64).collect()),
        Data::Int(x) if to == DType::Bool => Data::Bool(x.iter().map(|x| *x != 0).collect()),
        Data::Int(x) => Data::Int(x.iter().map(|x| wrap_int(*x, to)).collect()),
        Data::Bool(x) if to.is_float() => Data::Float(x.iter().map(|x| f64::from(u8::from(*x))).collect()),
        Data::Bool(x) if to == DType::Bool => Data::Bool(x.clone()),
        Data::Bool(x) => Data::Int(x.iter().map(|x| i64::from(*x)).collect()),
    }
}

fn float_unary(op: &Op, x: &[f64]) -> Result<Vec<f64>, String> {
    let f: fn(f64) -> f64 = match op {
        Op::Exp => libm::exp,
        Op::Log => libm::log,
        Op::Tanh => libm::tanh,
        Op::Erf => libm::erf,
        Op::Sin => libm::sin,
        Op::Cos => libm::cos,
        Op::Sqrt => f64::sqrt,
        Op::Floor => f64::floor,
        Op::Neg => |x| -x,
        _ => return Err(format!("`{}` of one float", op.name())),
    };
    Ok(x.iter().map(|x| f(*x)).collect())
}

fn float_binary(op: &Op, x: &[f64], y: &[f64]) -> Result<Data, String> {
    let f: fn(f64, f64) -> f64 = match op {
        Op::Add => |x, y| x + y,
        Op::Sub => |x, y| x - y,
        Op::Mul => |x, y| x * y,
        Op::Div => |x, y| x / y,
        Op::Max => larger,
        Op::Rem => |x, y| x - (x / y).floor() * y,
        Op::Pow => libm::pow,
        Op::Less => return Ok(Data::Bool(zip(x, y, |x, y| x < y))),
        Op::Equal => return Ok(Data::Bool(zip(x, y, |x, y| x == y))),
        _ => return Err(format!("`{}` of two floats", op.name())),
    };
    Ok(Data::Float(zip(x, y, f)))
}

/// The larger of two; NaN if either is, so that a lost number stays visible.
pub(super) fn larger(x: f64, y: f64) -> f64 {
    if x.is_nan() || y.is_nan() { f64::NAN } else { x.max(y) }
}

fn int_binary(op: &Op, x: &[i64], y: &[i64], dtype: DType) -> Result<Data, String> {
    let f: fn(i64, i64) -> i64 = match op {
        Op::Add => i64::wrapping_add,
        Op::Sub => i64::wrapping_sub,
        Op::Mul => i64::wrapping_mul,
        Op::Max => i64::max,
        Op::Div => floor_div,
        Op::Rem => |x, y| if y == 0 { 0 } else { x.wrapping_sub(floor_div(x, y).wrapping_mul(y)) },
        Op::Less => return Ok(Data::Bool(zip(x, y, |x, y| x < y))),
        Op::Equal => return Ok(Data::Bool(zip(x, y, |x, y| x == y))),
        _ => return Err(format!("`{}` of two integers", op.name())),
    };
    Ok(Data::Int(zip(x, y, |x, y| wrap_int(f(x, y), dtype))))
}

/// Division toward minus infinity; by 0 it gives 0.
fn floor_div(x: i64, y: i64) -> i64 {
    if y == 0 {
        return 0;
    }
    let quotient = x.wrapping_div(y);
    if x.wrapping_rem(y) != 0 && ((x < 0) != (y < 0)) { quotient - 1 } else { quotient }
}
