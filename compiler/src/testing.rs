//! What the tests of several crates share: random programs, random inputs, and derivatives by finite differences.
//!
//! Programs are small and hard: axes of size 0, 1 and primes, several dtypes, views of views, loops in loops, gradients. They are
//! also tame, so that targets that round differently can be compared: arguments of `log`, `sqrt`, `pow` and `/` are kept in
//! their domains, values stay of size about 1, and only exact values are compared, floored or sorted.

pub mod differences;
pub mod random_graph;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputId, InputKind, Name, Op, Role, Type};

use crate::reference::{Data, Tensor};

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and good enough to choose test cases.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.bits() % n as u64) as usize }
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        if items.is_empty() { None } else { Some(&items[self.below(items.len())]) }
    }
}

/// A tensor of multiples of 1/32 in (-2, 2), exact in every float dtype, or of integers from -2 to 6.
pub fn random_tensor(ty: &Type, rng: &mut Rng) -> Tensor {
    let n = ty.count() as usize;
    let data = match ty.dtype {
        DType::Bool => Data::Bool((0..n).map(|_| rng.one_in(2)).collect()),
        DType::U8 => Data::Int((0..n).map(|_| rng.below(7) as i64).collect()),
        dtype if dtype.is_int() => Data::Int((0..n).map(|_| rng.below(9) as i64 - 2).collect()),
        _ => Data::Float((0..n).map(|_| (rng.below(127) as f64 - 63.0) / 32.0).collect()),
    };
    Tensor { ty: ty.clone(), data }
}

/// A value for each input of the graph.
pub fn random_inputs(graph: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = Rng::new(seed ^ 0x5EED);
    graph.inputs().iter().map(|input| random_tensor(&input.ty, &mut rng)).collect()
}

/// The update of a vector, scaled by scalars that are needed for the last time, or written, beside it: as the scale of the loss is in
/// `f16`. A vector longer than a tile runs in pieces, each of which reads the scalars again.
pub fn scalars_beside(n: u64) -> Graph {
    let mut graph = Graph::new();
    let axes = AxisSet::of([Axis::new("i", n)]).unwrap_or_default();
    let vector = Type::new(DType::F32, axes);
    let weight = graph.input("weight", InputKind::Weight, vector.clone());
    let power = graph.input("power", InputKind::State, Type::scalar(DType::F32));
    let x = graph.input("x", InputKind::Batch, vector);
    // Too long to be a row of the same kernel.
    let far = Type::new(DType::F32, AxisSet::of([Axis::new("j", 20_000)]).unwrap_or_default());
    let far = graph.input("far", InputKind::Batch, far);
    let sum = graph.sum(far, [Name::from("j")]);
    let (half, one) = (graph.constant(0.5, DType::F32), graph.constant(1.0, DType::F32));
    let rate = graph.add(Op::Mul, &[sum, half]);
    let raised = graph.add(Op::Add, &[power, one]);
    let moved = graph.add(Op::Mul, &[x, rate]);
    let moved = graph.add(Op::Mul, &[moved, raised]);
    let next = graph.add(Op::Sub, &[weight, moved]);
    for (name, role, node) in [
        ("weight", Role::Next(InputId(0)), next),
        ("power", Role::Next(InputId(1)), raised),
        ("rate", Role::Value, rate),
    ] {
        graph.output_as(name, role, node);
    }
    graph
}
