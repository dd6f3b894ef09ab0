//! The type of a value, and the shape rule of each primitive.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Axis, AxisSet, Class, DType, Loop, Name, Op, Scalar};

/// A dtype and a set of named axes. Order is the business of layouts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Type {
    pub dtype: DType,
    pub axes: AxisSet,
}

impl Type {
    pub fn new(dtype: DType, axes: AxisSet) -> Type {
        Type { dtype, axes }
    }

    pub fn scalar(dtype: DType) -> Type {
        Type { dtype, axes: AxisSet::new() }
    }

    /// The same axes with another dtype.
    pub fn with_dtype(&self, dtype: DType) -> Type {
        Type { dtype, axes: self.axes.clone() }
    }

    pub fn count(&self) -> u64 {
        self.axes.count()
    }

    pub fn size_bytes(&self) -> u64 {
        self.count() * self.dtype.size_bytes()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, self.axes)
    }
}

/// Why an operation cannot be applied, in the words of the primitives. The checker speaks to users before this can arise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError(pub String);

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ShapeError {}

macro_rules! refuse {
    ($($arg:tt)*) => { return Err(ShapeError(format!($($arg)*))) };
}

fn find<'a>(ty: &'a Type, name: &Name) -> Result<&'a Axis, ShapeError> {
    ty.axes.get(name).ok_or_else(|| ShapeError(format!("no axis `{name}` in {ty}")))
}

fn fresh(axes: &mut AxisSet, axis: Axis) -> Result<(), ShapeError> {
    if axes.contains(&axis.name) {
        refuse!("axis `{}` is there already", axis.name);
    }
    axes.insert(axis);
    Ok(())
}

fn union(args: &[&Type]) -> Result<AxisSet, ShapeError> {
    let Some((first, rest)) = args.split_first() else { return Ok(AxisSet::new()) };
    let mut all = first.axes.clone();
    for ty in rest {
        all.extend(&ty.axes).map_err(|name| ShapeError(format!("axis `{name}` has two sizes")))?;
    }
    Ok(all)
}

fn arity(op: &Op, args: &[&Type], n: usize) -> Result<(), ShapeError> {
    if args.len() != n {
        refuse!("`{}` takes {n} arguments, not {}", op.name(), args.len());
    }
    Ok(())
}

/// The type of `op` applied to arguments of these types.
///
/// `Loop` and `Grad` have several results: their own type is `bool[]`, and [`infer_results`] gives those of their `Get`s.
/// The type of an `Input`, and of a `Get`, is not to be had from here.
pub fn infer(op: &Op, args: &[&Type]) -> Result<Type, ShapeError> {
    match op.class() {
        Class::Map => infer_map(op, args),
        Class::View => infer_view(op, args),
        _ => infer_other(op, args),
    }
}

fn infer_map(op: &Op, args: &[&Type]) -> Result<Type, ShapeError> {
    let n = match op {
        Op::Select => 3,
        Op::Uniform { .. } => 4,
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Max | Op::Rem | Op::Pow => 2,
        Op::Less | Op::Equal | Op::And | Op::Or => 2,
        _ => 1,
    };
    arity(op, args, n)?;
    let axes = union(args)?;
    let dtype = args[0].dtype;
    let same = |from: usize| args[from..].iter().all(|ty| ty.dtype == args[from].dtype);
    let result = match op {
        Op::Cast(to) => *to,
        Op::Select if dtype == DType::Bool && same(1) => args[1].dtype,
        Op::Uniform { .. } if args[..3].iter().all(|ty| ty.dtype == DType::I32) && args[3].dtype.is_int() => DType::F32,
        Op::And | Op::Or | Op::Not if dtype == DType::Bool && same(0) => DType::Bool,
        Op::Equal if same(0) => DType::Bool,
        Op::Less if same(0) && dtype != DType::Bool => DType::Bool,
        Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Max | Op::Rem | Op::Neg if same(0) && dtype != DType::Bool => dtype,
        Op::Exp | Op::Log | Op::Tanh | Op::Erf | Op::Sin | Op::Cos | Op::Sqrt | Op::Floor | Op::Pow
            if same(0) && dtype.is_float() =>
        {
            dtype
        }
        _ => {
            let types = args.iter().map(|ty| ty.to_string()).collect::<Vec<_>>().join(", ");
            refuse!("`{}` does not take ({types})", op.name())
        }
    };
    Ok(Type::new(result, axes))
}

fn infer_view(op: &Op, args: &[&Type]) -> Result<Type, ShapeError> {
    arity(op, args, 1)?;
    let x = args[0];
    let mut axes = x.axes.clone();
    match op {
        Op::Rename(pairs) => {
            let mut taken = Vec::with_capacity(pairs.len());
            for (old, new) in pairs {
                find(x, old)?;
                taken.extend(axes.remove(old).map(|axis| Axis::new(new.clone(), axis.size)));
            }
            for axis in taken {
                fresh(&mut axes, axis)?;
            }
        }
        Op::Split { axis, into } => {
            let size = find(x, axis)?.size;
            let product: u64 = into.iter().map(|part| part.size).product();
            if product != size {
                refuse!("`{axis}` has size {size}, its parts make {product}");
            }
            axes.remove(axis);
            for part in into {
                fresh(&mut axes, part.clone())?;
            }
        }
        Op::Merge { axes: parts, into } => {
            let mut size = 1;
            for part in parts {
                size *= find(x, part)?.size;
                if axes.remove(part).is_none() {
                    refuse!("`{part}` is merged twice");
                }
            }
            fresh(&mut axes, Axis::new(into.clone(), size))?;
        }
        Op::Slice { axis, start, len, step } => {
            let size = find(x, axis)?.size;
            let last = i128::from(*start) + i128::from(*step) * (i128::from(*len) - 1);
            if *len > 0 && (*start >= size || last < 0 || last >= i128::from(size)) {
                refuse!("positions {start} to {last} of `{axis}`, which has {size}");
            }
            axes.insert(Axis::new(axis.clone(), *len));
        }
        Op::Pad { axis, before, after, fill } => {
            let size = find(x, axis)?.size;
            if fill.cast(x.dtype) != *fill {
                refuse!("a pad of {} filled with {fill}", x.dtype);
            }
            axes.insert(Axis::new(axis.clone(), before + size + after));
        }
        Op::Window { axis, out, tap, stride } => {
            let size = find(x, axis)?.size;
            if *stride == 0 {
                refuse!("a window with stride 0");
            }
            axes.remove(axis);
            let count = if tap.size > size { 0 } else { (size - tap.size) / stride + 1 };
            fresh(&mut axes, Axis::new(out.clone(), count))?;
            fresh(&mut axes, tap.clone())?;
        }
        Op::Unwindow { axis, out, tap, stride } => {
            let (count, taps) = (find(x, out)?.size, find(x, tap)?.size);
            if count > 0 && taps > 0 && (count - 1) * stride + taps > axis.size {
                refuse!("{count} windows of {taps} do not fit {axis}");
            }
            axes.remove(out);
            axes.remove(tap);
            fresh(&mut axes, axis.clone())?;
        }
        Op::Expand(more) => {
            for axis in more {
                fresh(&mut axes, axis.clone())?;
            }
        }
        _ => refuse!("`{}` is no view", op.name()),
    }
    Ok(Type::new(x.dtype, axes))
}

fn infer_other(op: &Op, args: &[&Type]) -> Result<Type, ShapeError> {
    let without = |x: &Type, names: &[Name]| -> Result<AxisSet, ShapeError> {
        let mut axes = x.axes.clone();
        for name in names {
            if axes.remove(name).is_none() {
                refuse!("no axis `{name}` in {x}, or named twice");
            }
        }
        Ok(axes)
    };
    Ok(match op {
        Op::Const(value, dtype) => {
            if value.cast(*dtype) != *value {
                refuse!("{value} is no constant of {dtype}");
            }
            Type::scalar(*dtype)
        }
        Op::Iota(axis) => Type::new(DType::I32, AxisSet::of([axis.clone()]).unwrap_or_default()),
        Op::Sum(names) | Op::MaxOver(names) => {
            arity(op, args, 1)?;
            if args[0].dtype == DType::Bool {
                refuse!("`{}` of bool", op.name());
            }
            Type::new(args[0].dtype, without(args[0], names)?)
        }
        Op::Prefix { axis, .. } => {
            arity(op, args, 1)?;
            find(args[0], axis)?;
            args[0].clone()
        }
        Op::Contract(names) => {
            arity(op, args, 2)?;
            if args[0].dtype != args[1].dtype || args[0].dtype == DType::Bool {
                refuse!("contract of {} and {}", args[0].dtype, args[1].dtype);
            }
            let mut axes = union(args)?;
            for name in names {
                find(args[0], name)?;
                find(args[1], name)?;
                axes.remove(name);
            }
            Type::new(args[0].dtype, axes)
        }
        Op::Gather { axis } => {
            arity(op, args, 2)?;
            if !args[1].dtype.is_int() {
                refuse!("gather at {}", args[1].dtype);
            }
            let table = Type::new(args[0].dtype, without(args[0], std::slice::from_ref(axis))?);
            Type::new(table.dtype, union(&[&table, args[1]])?)
        }
        Op::Scatter { axis, keep, .. } => {
            arity(op, args, 2)?;
            if !args[1].dtype.is_int() {
                refuse!("scatter at {}", args[1].dtype);
            }
            let mut axes = union(args)?;
            for gone in args[1].axes.names().filter(|name| !keep.contains(name)) {
                axes.remove(gone);
            }
            fresh(&mut axes, axis.clone())?;
            Type::new(args[0].dtype, axes)
        }
        Op::Top { axis, out } => {
            arity(op, args, 1)?;
            let size = find(args[0], axis)?.size;
            if out.size > size || args[0].dtype == DType::Bool {
                refuse!("the {} largest of {}", out.size, args[0]);
            }
            let mut axes = without(args[0], std::slice::from_ref(axis))?;
            fresh(&mut axes, out.clone())?;
            Type::new(DType::I32, axes)
        }
        Op::Loop(_) | Op::Grad => {
            infer_results(op, args)?;
            Type::scalar(DType::Bool)
        }
        Op::Detach => {
            arity(op, args, 1)?;
            args[0].clone()
        }
        _ => refuse!("the type of `{}` is not inferred", op.name()),
    })
}

/// The types of the results of a `Loop` or a `Grad`, in the order of `Get`.
pub fn infer_results(op: &Op, args: &[&Type]) -> Result<Vec<Type>, ShapeError> {
    match op {
        Op::Loop(inner) => loop_results(inner, args),
        Op::Grad => {
            let Some((y, xs)) = args.split_first() else { refuse!("grad of nothing") };
            if !y.dtype.is_float() || xs.iter().any(|x| !x.dtype.is_float()) {
                refuse!("grad of a value that is no float");
            }
            Ok(xs.iter().map(|x| (*x).clone()).collect())
        }
        _ => refuse!("`{}` has one result", op.name()),
    }
}

fn loop_results(inner: &Loop, args: &[&Type]) -> Result<Vec<Type>, ShapeError> {
    let body = &inner.body;
    let (inputs, outputs) = (body.inputs(), body.outputs());
    if args.len() != inputs.len() || inner.carries + inner.scans > args.len() {
        refuse!("a loop with {} arguments whose body has {} inputs", args.len(), inputs.len());
    }
    if outputs.len() < inner.carries + usize::from(inner.until) {
        refuse!("a loop with {} carries whose body has {} outputs", inner.carries, outputs.len());
    }
    if inner.until && (inner.stacked() > 0 || body.ty(outputs[outputs.len() - 1].node) != &Type::scalar(DType::Bool)) {
        refuse!("a loop with `until` must end in one bool[] and stack nothing");
    }
    for (i, (arg, input)) in args.iter().zip(inputs).enumerate() {
        let mut seen = (*arg).clone();
        if i >= inner.carries && i < inner.carries + inner.scans {
            match seen.axes.remove(&inner.axis.name) {
                Some(axis) if axis == inner.axis => {}
                _ => refuse!("argument {i} of a loop over {} is {arg}", inner.axis),
            }
        }
        if seen != input.ty {
            refuse!("argument {i} of a loop is {seen}, its body takes {}", input.ty);
        }
    }
    let mut results = Vec::new();
    for (i, output) in outputs[..outputs.len() - usize::from(inner.until)].iter().enumerate() {
        let mut ty = body.ty(output.node).clone();
        if i < inner.carries {
            if ty != inputs[i].ty {
                refuse!("carry {i} comes as {} and leaves as {ty}", inputs[i].ty);
            }
        } else {
            fresh(&mut ty.axes, inner.axis.clone())?;
        }
        results.push(ty);
    }
    Ok(results)
}

impl Scalar {
    /// The constant that changes nothing under `max` of this dtype.
    pub fn lowest(dtype: DType) -> Scalar {
        match dtype {
            DType::I64 => Scalar::Int(i64::MIN),
            DType::I32 => Scalar::Int(i64::from(i32::MIN)),
            DType::I8 => Scalar::Int(i64::from(i8::MIN)),
            DType::U8 => Scalar::Int(0),
            DType::Bool => Scalar::Bool(false),
            _ => Scalar::Float(f64::NEG_INFINITY),
        }
    }
}
