//! Random contractions, scatters, prefix sums and top-k, compiled and interpreted.

mod common;

use common::{Noise, compare, compare_on_card, layout, memory, products};
use mdl_compiler::kernel::{Buf, BufId, Kernel, Operand, PairDim, Prefix, Role, Scatter, ScatterDim, Top, Work};
use mdl_graph::DType;

const SIZES: [u64; 9] = [0, 1, 2, 3, 5, 8, 9, 17, 40];

/// Products of quarters are exact sums of sixteenths, whatever the order: so the results are equal.
#[test]
fn random_contractions_agree_exactly() {
    for seed in 0..100 {
        let (kernel, mut noise) =
            products::random(seed, &[DType::F32, DType::F32, DType::BF16, DType::F16, DType::F64], &SIZES);
        let memory = memory(&kernel, &mut noise);
        let shown = std::panic::catch_unwind(|| compare(&kernel, &memory, &|_, _| false));
        assert!(shown.is_ok(), "seed {seed}");
    }
}

/// Larger than a block in every direction, in the layouts of a linear layer: where B stays packed, where k is too long for
/// that, and where rows are too few.
#[test]
fn blocks_and_panels_meet() {
    for sizes in [(531, 397, 40), (531, 33, 260), (531, 9, 2900), (70, 397, 260)] {
        in_all_layouts(sizes);
    }
}

/// Products of 16-bit floats on tensor cores: copied 16 bytes at once and number by number, in tiles of either size.
#[test]
fn tensor_cores_agree_exactly() {
    for (dtype, sizes) in [
        (DType::BF16, (200, 136, 88)),
        (DType::F16, (72, 136, 96)),
        (DType::BF16, (70, 45, 37)),
        (DType::BF16, (1290, 1500, 40)),
    ] {
        for kernel in products::in_all_layouts(sizes, dtype, DType::F32) {
            compare_on_card(&kernel, &memory(&kernel, &mut Noise::new(5)), &|_, _| false);
        }
    }
    for seed in 0..24 {
        let (kernel, mut noise) = products::random(seed, &[DType::BF16, DType::F16], &[8, 16, 17, 40]);
        compare_on_card(&kernel, &memory(&kernel, &mut noise), &|_, _| false);
    }
}

fn in_all_layouts(sizes: (u64, u64, u64)) {
    for kernel in products::in_all_layouts(sizes, DType::F32, DType::F32) {
        let memory = memory(&kernel, &mut Noise::new(5));
        compare(&kernel, &memory, &|_, _| false);
    }
}

#[test]
fn random_scatters_agree_exactly() {
    for seed in 0..200 {
        let mut noise = Noise::new(seed);
        let dtype = noise.pick(&[DType::F32, DType::F32, DType::BF16, DType::I32, DType::F64, DType::Bool, DType::I8]);
        let put = noise.chance(3);
        // Few and small numbers, so that sums are exact in every dtype.
        let extents: Vec<u64> = (0..3).map(|_| noise.pick(&[0, 1, 2, 3, 5])).collect();
        let extent = noise.pick(&[0, 1, 2, 4, 11]);
        let (rows, rows_len) = layout(&mut noise, &extents);
        let (index, index_len) = layout(&mut noise, &extents[..2]);
        let (out, out_len) = layout(&mut noise, &[extents[0], extents[2], extent]);
        let dim = |extent, rows, index, out| ScatterDim { extent, rows, index, out };
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        let base = noise.pick(&[None, Some(operand(3))]);
        let scatter = Scatter {
            base,
            put,
            rows: operand(0),
            index: operand(1),
            out: operand(2),
            extent,
            stride: out[2],
            keep: vec![dim(extents[0], rows[0], index[0], out[0])],
            points: vec![dim(extents[1], rows[1], index[1], 0)],
            inner: vec![dim(extents[2], rows[2], 0, out[1])],
        };
        let index_dtype = noise.pick(&[DType::I32, DType::I64]);
        let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
        let bufs = vec![
            buf("rows", dtype, rows_len, Role::Read),
            buf("index", index_dtype, index_len, Role::Read),
            buf("out", dtype, out_len, Role::Write),
            buf("base", dtype, out_len, Role::Read),
        ];
        let kernel = Kernel { name: format!("scatter {seed}"), bufs, work: Work::Scatter(scatter) };
        let memory = memory(&kernel, &mut noise);
        compare(&kernel, &memory, &|_, _| false);
    }
}

#[test]
fn random_prefixes_and_tops_agree_exactly() {
    for seed in 0..200 {
        let mut noise = Noise::new(seed);
        let dtype = noise.pick(&[DType::F32, DType::BF16, DType::I32, DType::F64, DType::I64, DType::I8]);
        let extents: Vec<u64> = (0..3).map(|_| noise.pick(&[0, 1, 2, 3, 7, 20])).collect();
        let k = if noise.chance(2) { extents[2] } else { noise.below(extents[2] as usize + 1) as u64 };
        let top = noise.chance(2);
        let (x, x_len) = layout(&mut noise, &extents);
        let (out, out_len) = layout(&mut noise, &[extents[0], extents[1], if top { k } else { extents[2] }]);
        let dim = |at: usize| PairDim { extent: extents[at], x: x[at], out: out[at] };
        let operand = |at| Operand { buf: BufId(at), base: 0 };
        let (outer, along) = (vec![dim(0), dim(1)], dim(2));
        let work = if top {
            Work::Top(Top { x: operand(0), out: operand(1), outer, along, k })
        } else {
            Work::Prefix(Prefix { x: operand(0), out: operand(1), outer, along, reverse: noise.chance(2) })
        };
        let buf = |name: &str, dtype, len, role| Buf { name: name.into(), dtype, len, role };
        let to = if top { DType::I32 } else { dtype };
        let bufs = vec![buf("x", dtype, x_len, Role::Read), buf("out", to, out_len, Role::Write)];
        let kernel = Kernel { name: format!("ordering {seed}"), bufs, work };
        let memory = memory(&kernel, &mut noise);
        compare(&kernel, &memory, &|_, _| false);
    }
}
