//! Tensors in blocks: codes of four or eight bits, each block with the largest number in it as its scale.
//!
//! In: the type of a tensor with the order of its axes. Out: the parts that it is kept as, and the nodes that make them of numbers
//! and numbers of them. A tensor is cut into blocks in the order of its file, across as many of its last axes as it takes for blocks to
//! come out even; the axes before these stay, so that loops over copies and rows of tables cut the parts too.
//!
//! `nf4` is the code of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E): the quantiles of a normal distribution, two codes
//! a byte, the first in the higher half. `q8` is the dynamic code of 8-bit optimizers (Dettmers et al. 2022, arXiv:2110.02861, section 2.3): a
//! sign, and within each power of ten down to 10⁻⁷ twice as many steps as within the one below. Both are as bitsandbytes lays them out.
//! `double` keeps the scales in eight bits too, in 255 equal steps up to the largest along the block's axes.

use std::ops::Range;

use mdl_graph::{Axis, DType, Graph, Name, NodeId, Op, Type};

/// How blocks are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    Nf4,
    Q8,
}

/// Numbers in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocks {
    pub code: Code,
    pub block: u64,
    pub double: bool,
}

/// The sixteen numbers of `nf4`.
pub const NF4: [f64; 16] = [
    -1.0,
    -0.696_192_800_998_687_7,
    -0.525_073_051_452_636_7,
    -0.394_917_488_098_144_53,
    -0.284_441_381_692_886_35,
    -0.184_773_430_228_233_34,
    -0.091_050_036_251_544_95,
    0.0,
    0.079_580_299_556_255_34,
    0.160_930_201_411_247_25,
    0.246_112_301_945_686_34,
    0.337_915_241_718_292_24,
    0.440_709_829_330_444_34,
    0.562_617_003_917_694_1,
    0.722_956_836_223_602_3,
    1.0,
];

/// The powers of ten of `q8`; the one of place `i` has `2^i` steps.
const DECADES: i32 = 7;

// No recipe can write these names.
const CODES: &str = "stored~code";
const BLOCK: &str = "stored~block";
const INSIDE: &str = "stored~inside";
const TWO: &str = "stored~two";
const FLAT: &str = "stored~flat";

impl Blocks {
    pub fn name(self) -> &'static str {
        match (self.code, self.double) {
            (Code::Nf4, false) => "nf4",
            (Code::Nf4, true) => "nf4 double",
            (Code::Q8, false) => "q8",
            (Code::Q8, true) => "q8 double",
        }
    }

    /// The axes that blocks run across, the last of `order`; `None` where blocks do not come out even.
    pub fn across(self, axes: &[Axis]) -> Option<Vec<Axis>> {
        let is_even =
            |n: &u64| axes[axes.len() - *n as usize..].iter().map(|axis| axis.size).product::<u64>() % self.block == 0;
        let n = (1..=axes.len() as u64).find(is_even)?;
        Some(axes[axes.len() - n as usize..].to_vec())
    }

    /// The types of the parts of a tensor whose blocks run across `flat`: codes, scales, and with `double` the largest scales.
    pub(super) fn parts(self, ty: &Type, flat: &[Axis]) -> Vec<Type> {
        let mut outer = ty.clone();
        for axis in flat {
            outer.axes.remove(&axis.name);
        }
        let n: u64 = flat.iter().map(|axis| axis.size).product();
        let with = |dtype: DType, axis: Option<Axis>| {
            let mut part = outer.with_dtype(dtype);
            if let Some(axis) = axis {
                part.axes.insert(axis);
            }
            part
        };
        let codes = Axis::new(CODES, if self.code == Code::Nf4 { n / 2 } else { n });
        let block = Axis::new(BLOCK, n / self.block);
        let mut parts = vec![with(DType::U8, Some(codes))];
        match self.double {
            false => parts.push(with(DType::F32, Some(block))),
            true => parts.extend([with(DType::U8, Some(block)), with(DType::F32, None)]),
        }
        parts
    }

    /// The numbers of the parts.
    pub(super) fn decode(self, to: &mut Graph, parts: &[NodeId], flat: &[Axis]) -> NodeId {
        let n: u64 = flat.iter().map(|axis| axis.size).product();
        let n_blocks = n / self.block;
        let codes = to.cast(parts[0], DType::F32);
        let (value, inner): (NodeId, Vec<Name>) = match self.code {
            Code::Nf4 => {
                let bytes = split(to, codes, CODES, &[(BLOCK, n_blocks), (INSIDE, self.block / 2)]);
                let shrunk = times(to, bytes, 1.0 / 16.0);
                let high = to.add(Op::Floor, &[shrunk]);
                let carried = times(to, high, 16.0);
                let low = to.add(Op::Sub, &[bytes, carried]);
                let is_first = is_first(to);
                let code = to.add(Op::Select, &[is_first, high, low]);
                (
                    choose(to, code, 0..16, &|at| at as f64 - 0.5, &|at| NF4[at]),
                    vec![BLOCK.into(), INSIDE.into(), TWO.into()],
                )
            }
            Code::Q8 => {
                let bytes = split(to, codes, CODES, &[(BLOCK, n_blocks), (INSIDE, self.block)]);
                (dynamic(to, bytes), vec![BLOCK.into(), INSIDE.into()])
            }
        };
        let scale = match parts {
            [_, steps, most] => {
                let steps = to.cast(*steps, DType::F32);
                let share = times(to, steps, 1.0 / 255.0);
                to.add(Op::Mul, &[share, *most])
            }
            _ => parts[1],
        };
        let value = to.add(Op::Mul, &[value, scale]);
        match flat {
            [one] => to.add(Op::Merge { axes: inner, into: one.name.clone() }, &[value]),
            several => {
                let merged = to.add(Op::Merge { axes: inner, into: FLAT.into() }, &[value]);
                to.add(Op::Split { axis: FLAT.into(), into: several.to_vec() }, &[merged])
            }
        }
    }

    /// The parts that a tensor is kept as.
    pub(super) fn encode(self, to: &mut Graph, x: NodeId, flat: &[Axis]) -> Vec<NodeId> {
        let n: u64 = flat.iter().map(|axis| axis.size).product();
        let names: Vec<Name> = flat.iter().map(|axis| axis.name.clone()).collect();
        let x = match names.as_slice() {
            [one] => to.rename(x, [(one.clone(), Name::from(FLAT))]),
            _ => to.add(Op::Merge { axes: names, into: FLAT.into() }, &[x]),
        };
        let x = split(to, x, FLAT, &[(BLOCK, n / self.block), (INSIDE, self.block)]);
        let size = magnitude(to, x);
        let scale = to.add(Op::MaxOver(vec![INSIDE.into()]), &[size]);
        let (kept, scale) = if self.double {
            let most = to.add(Op::MaxOver(vec![BLOCK.into()]), &[scale]);
            let divisor = nonzero(to, most);
            let share = to.add(Op::Div, &[scale, divisor]);
            let steps = times(to, share, 255.0);
            let steps = rounded(to, steps);
            let share = times(to, steps, 1.0 / 255.0);
            (vec![to.cast(steps, DType::U8), most], to.add(Op::Mul, &[share, most]))
        } else {
            (vec![scale], scale)
        };
        let divisor = nonzero(to, scale);
        let y = to.add(Op::Div, &[x, divisor]);
        let codes = match self.code {
            Code::Nf4 => {
                // Between two numbers of the code book the bound is halfway.
                let code = choose(to, y, 0..16, &|at| (NF4[at - 1] + NF4[at]) / 2.0, &|at| at as f64);
                let code = split(to, code, INSIDE, &[(INSIDE, self.block / 2), (TWO, 2)]);
                let is_first = is_first(to);
                let (sixteen, one) = (to.constant(16.0, DType::F32), to.constant(1.0, DType::F32));
                let worth = to.add(Op::Select, &[is_first, sixteen, one]);
                let worth = to.add(Op::Mul, &[code, worth]);
                to.sum(worth, vec![TWO.into()])
            }
            Code::Q8 => nearest_dynamic(to, y),
        };
        let codes = to.cast(codes, DType::U8);
        let codes = to.add(Op::Merge { axes: vec![BLOCK.into(), INSIDE.into()], into: CODES.into() }, &[codes]);
        std::iter::once(codes).chain(kept).collect()
    }
}

fn split(to: &mut Graph, x: NodeId, axis: &str, into: &[(&str, u64)]) -> NodeId {
    let into = into.iter().map(|(name, size)| Axis::new(*name, *size)).collect();
    to.add(Op::Split { axis: axis.into(), into }, &[x])
}

fn times(to: &mut Graph, x: NodeId, factor: f64) -> NodeId {
    let factor = to.constant(factor, DType::F32);
    to.add(Op::Mul, &[x, factor])
}

fn magnitude(to: &mut Graph, x: NodeId) -> NodeId {
    let negative = to.add(Op::Neg, &[x]);
    to.add(Op::Max, &[x, negative])
}

fn rounded(to: &mut Graph, x: NodeId) -> NodeId {
    let half = to.constant(0.5, DType::F32);
    let above = to.add(Op::Add, &[x, half]);
    to.add(Op::Floor, &[above])
}

/// A scale to divide by: where all numbers are 0, any will do.
fn nonzero(to: &mut Graph, scale: NodeId) -> NodeId {
    let (zero, one) = (to.constant(0.0, DType::F32), to.constant(1.0, DType::F32));
    let is_zero = to.add(Op::Equal, &[scale, zero]);
    to.add(Op::Select, &[is_zero, one, scale])
}

/// Along the axis of the halves of a byte, whether it is the first.
fn is_first(to: &mut Graph) -> NodeId {
    let place = to.add(Op::Iota(Axis::new(TWO, 2)), &[]);
    let zero = to.constant(0.0, DType::I32);
    to.add(Op::Equal, &[place, zero])
}

/// A tree of choices: `of(at)` for the last of the places whose `bound` is below `x`, or the first.
fn choose(
    to: &mut Graph,
    x: NodeId,
    places: Range<usize>,
    bound: &dyn Fn(usize) -> f64,
    of: &dyn Fn(usize) -> f64,
) -> NodeId {
    if places.len() == 1 {
        return to.constant(of(places.start), DType::F32);
    }
    let middle = (places.start + places.end) / 2;
    let limit = to.constant(bound(middle), DType::F32);
    let is_above = to.add(Op::Less, &[limit, x]);
    let below = choose(to, x, places.start..middle, bound, of);
    let above = choose(to, x, middle..places.end, bound, of);
    to.add(Op::Select, &[is_above, above, below])
}

/// Within a decade, step `p`, counted through all decades from 1, is `start + p · step`.
fn decade(i: i32) -> (f64, f64) {
    let (top, n) = (10f64.powi(i - (DECADES - 1)), f64::from(1 << i));
    (top * (0.1 - 0.9 + 0.45 / n), top * 0.9 / n)
}

/// The number of step `p`.
fn step(p: i32) -> f64 {
    let (start, width) = decade(p.ilog2() as i32);
    start + f64::from(p) * width
}

/// The numbers of the codes of `q8`: 127 is 0, above it are the steps, below it their negatives, and 255 is 1.
fn dynamic(to: &mut Graph, code: NodeId) -> NodeId {
    let middle = to.constant(127.0, DType::F32);
    let signed = to.add(Op::Sub, &[code, middle]);
    let p = magnitude(to, signed);
    let (start, width) = of_decade(to, p, &|i| f64::from(1 << i) - 0.5, &|i| decade(i));
    let length = to.add(Op::Mul, &[p, width]);
    let length = to.add(Op::Add, &[start, length]);
    let (zero, one, last) =
        (to.constant(0.0, DType::F32), to.constant(1.0, DType::F32), to.constant(127.5, DType::F32));
    let is_last = to.add(Op::Less, &[last, p]);
    let length = to.add(Op::Select, &[is_last, one, length]);
    let is_zero = to.add(Op::Equal, &[p, zero]);
    let length = to.add(Op::Select, &[is_zero, zero, length]);
    with_sign_of(to, length, signed)
}

/// The codes of the numbers of `q8` that are nearest to these, which are between -1 and 1.
fn nearest_dynamic(to: &mut Graph, y: NodeId) -> NodeId {
    let a = magnitude(to, y);
    // Halfway between the last step of a decade and the first of the next.
    let bound = |i: i32| (step((1 << i) - 1) + step(1 << i)) / 2.0;
    let inverse = |i: i32| {
        let (start, width) = decade(i);
        (-start / width, 1.0 / width)
    };
    let (start, width) = of_decade(to, a, &bound, &inverse);
    let p = to.add(Op::Mul, &[a, width]);
    let p = to.add(Op::Add, &[p, start]);
    let p = rounded(to, p);
    // The last steps of two decades are apart by more than a step of either.
    let (low, high) = of_decade(to, a, &bound, &|i| (f64::from(1 << i), f64::from((2 << i) - 1)));
    let p = to.add(Op::Max, &[p, low]);
    let is_above = to.add(Op::Less, &[high, p]);
    let p = to.add(Op::Select, &[is_above, high, p]);
    let (zero, least) = (to.constant(0.0, DType::F32), to.constant(step(1) / 2.0, DType::F32));
    let is_small = to.add(Op::Less, &[a, least]);
    let p = to.add(Op::Select, &[is_small, zero, p]);
    let (end, most) = (to.constant(128.0, DType::F32), to.constant((step(127) + 1.0) / 2.0, DType::F32));
    let is_one = to.add(Op::Less, &[most, y]);
    let p = to.add(Op::Select, &[is_one, end, p]);
    let middle = to.constant(127.0, DType::F32);
    let signed = with_sign_of(to, p, y);
    to.add(Op::Add, &[signed, middle])
}

fn with_sign_of(to: &mut Graph, x: NodeId, of: NodeId) -> NodeId {
    let zero = to.constant(0.0, DType::F32);
    let is_negative = to.add(Op::Less, &[of, zero]);
    let negative = to.add(Op::Neg, &[x]);
    to.add(Op::Select, &[is_negative, negative, x])
}

/// Two numbers of the decade that `x` is in: of place `i` from `bound(i)` on.
fn of_decade(
    to: &mut Graph,
    x: NodeId,
    bound: &dyn Fn(i32) -> f64,
    of: &dyn Fn(i32) -> (f64, f64),
) -> (NodeId, NodeId) {
    let (mut one, mut other) = (to.constant(of(0).0, DType::F32), to.constant(of(0).1, DType::F32));
    for i in 1..DECADES {
        let limit = to.constant(bound(i), DType::F32);
        let is_above = to.add(Op::Less, &[limit, x]);
        let (a, b) = (to.constant(of(i).0, DType::F32), to.constant(of(i).1, DType::F32));
        one = to.add(Op::Select, &[is_above, a, one]);
        other = to.add(Op::Select, &[is_above, b, other]);
    }
    (one, other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_dynamic_map() {
        // The map of bitsandbytes: the middles of equal parts of 0.1..1, twice as many in each decade as in the one below.
        let mut p = 1;
        for i in 0..DECADES {
            for k in 0..1 << i {
                let n = f64::from(1 << i);
                let middle = 0.1 + 0.9 * (f64::from(k) + 0.5) / n;
                assert!((step(p) - middle * 10f64.powi(i - 6)).abs() < 1e-12 * step(p), "{p}");
                p += 1;
            }
        }
        assert_eq!(p, 128);
    }
}
