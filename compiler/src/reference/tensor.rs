//! Dense tensors: a type, and its elements in the order of the sorted axis names, the last one fastest.

use half::{bf16, f16};
use mdl_graph::{Axis, AxisSet, DType, Name, Scalar, Type};

/// Every float is held as `f64` and every integer as `i64`, whatever its dtype: a value of the dtype if it was rounded.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    Float(Vec<f64>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub ty: Type,
    pub data: Data,
}

impl Data {
    pub fn len(&self) -> usize {
        match self {
            Data::Float(data) => data.len(),
            Data::Int(data) => data.len(),
            Data::Bool(data) => data.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements at these places, in this order.
    pub(super) fn pick(&self, places: &[usize]) -> Data {
        match self {
            Data::Float(data) => Data::Float(places.iter().map(|place| data[*place]).collect()),
            Data::Int(data) => Data::Int(places.iter().map(|place| data[*place]).collect()),
            Data::Bool(data) => Data::Bool(places.iter().map(|place| data[*place]).collect()),
        }
    }
}

impl Tensor {
    /// A tensor of a float type.
    pub fn float(ty: Type, data: Vec<f64>) -> Tensor {
        Tensor { ty, data: Data::Float(data) }
    }

    /// A tensor of an integer type.
    pub fn int(ty: Type, data: Vec<i64>) -> Tensor {
        Tensor { ty, data: Data::Int(data) }
    }

    pub fn bool(ty: Type, data: Vec<bool>) -> Tensor {
        Tensor { ty, data: Data::Bool(data) }
    }

    /// The same number everywhere.
    pub fn filled(ty: Type, value: Scalar) -> Tensor {
        let n = ty.count() as usize;
        let data = match value.cast(ty.dtype) {
            Scalar::Float(value) => Data::Float(vec![value; n]),
            Scalar::Int(value) => Data::Int(vec![value; n]),
            Scalar::Bool(value) => Data::Bool(vec![value; n]),
        };
        Tensor { ty, data }
    }

    /// True when the data has the kind and the length that the type says.
    pub fn is_whole(&self) -> bool {
        let kind = match &self.data {
            Data::Float(_) => self.ty.dtype.is_float(),
            Data::Int(_) => self.ty.dtype.is_int(),
            Data::Bool(_) => self.ty.dtype == DType::Bool,
        };
        kind && self.data.len() as u64 == self.ty.count()
    }

    /// The elements as numbers; `true` is 1.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::Float(data) => data.clone(),
            Data::Int(data) => data.iter().map(|value| *value as f64).collect(),
            Data::Bool(data) => data.iter().map(|value| f64::from(u8::from(*value))).collect(),
        }
    }

    /// Rounds every element to the nearest of the dtype; integers wrap.
    pub fn round(&mut self) {
        let dtype = self.ty.dtype;
        match &mut self.data {
            Data::Float(data) => data.iter_mut().for_each(|value| *value = round_float(*value, dtype)),
            Data::Int(data) => data.iter_mut().for_each(|value| *value = wrap_int(*value, dtype)),
            Data::Bool(_) => {}
        }
    }

    pub(super) fn has_nan(&self) -> bool {
        matches!(&self.data, Data::Float(data) if data.iter().any(|value| value.is_nan()))
    }

    pub(super) fn ints(&self) -> Result<&[i64], String> {
        match &self.data {
            Data::Int(data) => Ok(data),
            Data::Float(_) | Data::Bool(_) => Err(format!("{} where an integer is needed", self.ty)),
        }
    }
}

/// The nearest number of a float dtype; half precision goes through `f32`, as conversions at the end of a kernel do.
pub(super) fn round_float(value: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(value as f32),
        DType::BF16 => f64::from(bf16::from_f32(value as f32)),
        DType::F16 => f64::from(f16::from_f32(value as f32)),
        DType::F64 | DType::I64 | DType::I32 | DType::I8 | DType::U8 | DType::Bool => value,
    }
}

pub(super) fn wrap_int(value: i64, dtype: DType) -> i64 {
    match dtype {
        DType::I32 => i64::from(value as i32),
        DType::I8 => i64::from(value as i8),
        DType::U8 => i64::from(value as u8),
        DType::I64 | DType::F64 | DType::F32 | DType::BF16 | DType::F16 | DType::Bool => value,
    }
}

/// For each axis of `space`, how far apart its neighbours are in a tensor with the axes `of`; 0 when it has no such axis.
pub fn strides<'a>(space: impl IntoIterator<Item = &'a Axis>, of: &AxisSet) -> Vec<i64> {
    space.into_iter().map(|axis| stride(of, &axis.name)).collect()
}

/// How far apart neighbours along one axis are; 0 when there is no such axis.
pub(super) fn stride(of: &AxisSet, name: &Name) -> i64 {
    if !of.contains(name) {
        return 0;
    }
    of.iter().rev().take_while(|axis| axis.name != *name).map(|axis| axis.size as i64).product()
}

/// `start + Σ position · stride` for all positions in a space of these sizes, the last dimension fastest.
pub fn offsets(sizes: &[u64], strides: &[i64], start: i64) -> Vec<usize> {
    let mut places = vec![start];
    for (size, stride) in sizes.iter().zip(strides) {
        let mut finer = Vec::with_capacity(places.len() * *size as usize);
        for place in &places {
            finer.extend((0..*size as i64).map(|i| place + i * stride));
        }
        places = finer;
    }
    places.into_iter().map(|place| place as usize).collect()
}

/// The places in a tensor with axes `of` that the positions of `space` read.
pub(super) fn places(space: &AxisSet, of: &AxisSet) -> Vec<usize> {
    let sizes: Vec<u64> = space.iter().map(|axis| axis.size).collect();
    offsets(&sizes, &strides(space.iter(), of), 0)
}
