//! Products on AMX: the machine code that runs on processors with tiles, here carried out by `common::amx` where there are none.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use common::amx::{Op, Tiles, carried_out, decode, provide};
use common::{Noise, compare_on, memory, numbers, products, run};
use half::bf16;
use mdl_codegen::{Isa, Pool};
use mdl_compiler::kernel::{Kernel, Parts, Work};
use mdl_graph::DType;

/// Around tiles of 16, panels of 32, and pairs of k; two of them are one dimension of a product.
const SIZES: [u64; 9] = [0, 1, 2, 3, 5, 7, 11, 16, 17];

/// Whether the code can run here: what is not a product needs AVX-512, which is not carried out.
fn ready() -> bool {
    provide();
    let ready = Isa::available().contains(&Isa::Avx512);
    if !ready {
        println!("left out: this machine has no AVX-512");
    }
    ready
}

fn has_tiles() -> bool {
    Isa::available().contains(&Isa::Amx)
}

/// Products of quarters are exact sums of sixteenths: the results are equal, and their bits the same for 1 and 3 threads.
#[test]
fn random_products_agree_exactly() {
    if !ready() {
        return;
    }
    for seed in 0..80 {
        let (kernel, mut noise) = products::random(seed, &[DType::BF16], &SIZES);
        let memory = memory(&kernel, &mut noise);
        let shown = std::panic::catch_unwind(|| compare_on(&[Isa::Amx], &kernel, &memory, &|_, _| false));
        assert!(shown.is_ok(), "seed {seed}");
    }
    assert!(has_tiles() || carried_out() > 1000, "no product was made of tiles");
}

/// Forward, input gradient and weight gradient, stored as they are in `f32` and rounded in `bf16`; larger than a block in each
/// direction, where B stays packed and where it does not.
#[test]
fn blocks_and_tiles_meet() {
    if !ready() {
        return;
    }
    for sizes in [(1, 1, 1), (15, 97, 61), (16, 16, 32), (33, 31, 515), (64, 47, 1031), (659, 397, 37), (37, 211, 70)] {
        for out in [DType::F32, DType::BF16] {
            for kernel in products::in_all_layouts(sizes, DType::BF16, out) {
                let memory = memory(&kernel, &mut Noise::new(5));
                compare_on(&[Isa::Amx], &kernel, &memory, &|_, _| false);
            }
        }
    }
}

/// What is no quarter: the sums of numbers of all sizes are as near as `f32` brings them.
#[test]
fn sums_are_as_exact_as_f32() {
    if !ready() {
        return;
    }
    let (m, n, k) = (45u64, 50u64, 700u64);
    let kernel = products::in_all_layouts((m, n, k), DType::BF16, DType::F32).swap_remove(0);
    let mut noise = Noise::new(9);
    let mut memory = memory(&kernel, &mut noise);
    for (at, block) in memory.iter_mut().enumerate().take(2) {
        let base = block.address();
        for i in 0..kernel.bufs[at].len as usize {
            let number = f64::from(noise.word()) / f64::from(u32::MAX) - 0.5;
            common::write(base, DType::BF16, i, number * [1e-6, 1.0, 1e6][noise.below(3)]);
        }
    }
    let (a, b) = (numbers(&memory[0], DType::BF16), numbers(&memory[1], DType::BF16));
    let pool = Pool::new(1, false).expect("threads");
    let got = numbers(&run(&kernel, &memory, Some((Isa::Amx, &pool)))[2], DType::F32);
    for row in 0..m as usize {
        for column in 0..n as usize {
            let terms = (0..k as usize).map(|j| a[row * k as usize + j] * b[j * n as usize + column]);
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let error = (got[row * n as usize + column] - exact).abs();
            assert!(error <= size * 1e-6, "row {row}, column {column}: off by {error} of {size}");
        }
    }
}

/// Numbers of 24 bits, from small to large: what a product in parts is off by, of the sum of all terms' sizes.
fn error_in_parts((isa, parts): (Isa, Parts)) -> f64 {
    let (m, n, k) = (19u64, 35u64, 300u64);
    let mut worst = 0.0f64;
    for (at, mut kernel) in products::in_all_layouts((m, n, k), DType::F32, DType::F32).into_iter().enumerate() {
        let Work::Contract(contract) = &mut kernel.work else { unreachable!("a product") };
        contract.parts = parts;
        let mut noise = Noise::new(9 + at as u32);
        let mut memory = memory(&kernel, &mut noise);
        for block in memory.iter_mut().take(2) {
            let base = block.address();
            for i in 0..block.bytes().len() / 4 {
                let number = f64::from(noise.word()) / f64::from(u32::MAX) - 0.5;
                common::write(base, DType::F32, i, number * [1e-3, 1.0, 1e3][noise.below(3)]);
            }
        }
        let (a, b) = (numbers(&memory[0], DType::F32), numbers(&memory[1], DType::F32));
        let (a_at, b_at) = (&contract_strides(&kernel)[..2], &contract_strides(&kernel)[2..]);
        let mut first: Option<Vec<f64>> = None;
        for threads in [1, 2] {
            let pool = Pool::new(threads, false).expect("threads");
            let got = numbers(&run(&kernel, &memory, Some((isa, &pool)))[2], DType::F32);
            for row in 0..m as usize {
                for column in 0..n as usize {
                    let terms =
                        (0..k as usize).map(|j| a[row * a_at[0] + j * a_at[1]] * b[column * b_at[0] + j * b_at[1]]);
                    let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    worst = worst.max((got[row * n as usize + column] - exact).abs() / size);
                }
            }
            assert!(first.get_or_insert_with(|| got.clone()) == &got, "{threads} threads give other bits");
        }
    }
    worst
}

/// Strides of a along (m, k), and of b along (n, k).
fn contract_strides(kernel: &Kernel) -> [usize; 4] {
    let Work::Contract(contract) = &kernel.work else { unreachable!("a product") };
    [contract.m[0].a, contract.k[0].a, contract.n[0].b, contract.k[0].b].map(|stride| stride as usize)
}

#[test]
fn products_in_parts_are_as_exact_as_their_documentation_says() {
    if !ready() {
        return;
    }
    let how = [(Isa::Avx512, Parts::Whole), (Isa::Amx, Parts::Three), (Isa::Amx, Parts::Six)];
    let [whole, three, six] = how.map(error_in_parts);
    println!("whole: {whole:.1e}, 3 products: {three:.1e}, 6 products: {six:.1e}");
    assert!(three <= 5e-6 && three > 1e-7, "{three}");
    assert!(six <= 4e-7, "{six}");
}

#[test]
fn products_in_parts_keep_what_is_not_finite_and_what_is_exact() {
    if !ready() {
        return;
    }
    for parts in [Parts::Three, Parts::Six] {
        for seed in 0..20 {
            let (mut kernel, mut noise) = products::random(seed, &[DType::F32], &SIZES);
            if let Work::Contract(contract) = &mut kernel.work {
                contract.parts = parts;
            }
            let memory = memory(&kernel, &mut noise);
            compare_on(&[Isa::Amx], &kernel, &memory, &|_, _| false);
        }
        let mut kernel = products::in_all_layouts((3, 3, 3), DType::F32, DType::F32).swap_remove(0);
        if let Work::Contract(contract) = &mut kernel.work {
            contract.parts = parts;
        }
        let mut memory = memory(&kernel, &mut Noise::new(1));
        for (at, number) in [(0, f64::INFINITY), (4, f64::from(f32::from_bits(0x7fff_ffff))), (8, f64::from(f32::MAX))]
        {
            common::write(memory[0].address(), DType::F32, at, number);
        }
        for at in 0..9 {
            common::write(memory[1].address(), DType::F32, at, 0.5);
        }
        let pool = Pool::new(1, false).expect("threads");
        let got = numbers(&run(&kernel, &memory, Some((Isa::Amx, &pool)))[2], DType::F32);
        assert!(got[..3].iter().all(|x| *x == f64::INFINITY), "{got:?}");
        assert!(got[3..6].iter().all(|x| x.is_nan()), "{got:?}");
        let near = |x: &f64| (x / f64::from(f32::MAX) - 0.5).abs() < 1e-4;
        assert!(got[6..].iter().all(near), "{got:?}");
    }
}

/// A launch leaves no tiles behind, on no thread; and other dtypes use none.
#[test]
fn tiles_are_given_back() {
    if !ready() || has_tiles() {
        return;
    }
    let pool = Pool::new(1, false).expect("threads");
    let launch = |dtype| {
        let kernel = products::in_all_layouts((20, 20, 20), dtype, DType::F32).swap_remove(0);
        let memory = memory(&kernel, &mut Noise::new(1));
        let before = carried_out();
        run(&kernel, &memory, Some((Isa::Amx, &pool)));
        carried_out() - before
    };
    // Configuration and release; two by two tiles: four zeroed and stored, of A and B two each loaded, four products.
    assert_eq!(launch(DType::BF16), 2 + 4 + 4 + 4 + 4);
    assert!(!common::amx::is_configured());
    assert_eq!(launch(DType::F32), 0);
    assert_eq!(launch(DType::F16), 0);
}

#[test]
fn instructions_are_decoded() {
    let mut registers = [0; 16];
    for (at, register) in registers.iter_mut().enumerate() {
        *register = 1000 * at as u64;
    }
    let known: [(&[u8], Op, usize); 9] = [
        (&[0xc4, 0xe2, 0x78, 0x49, 0x01], Op::Configure { at: 1000 }, 5),
        (&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Op::Release, 5),
        (&[0xc4, 0xe2, 0x7b, 0x49, 0xe8], Op::Zero { tile: 5 }, 5),
        (&[0xc4, 0xe2, 0x7b, 0x4b, 0x14, 0x0b], Op::Load { tile: 2, at: 3000, stride: 1000 }, 6),
        (&[0xc4, 0xa2, 0x7b, 0x4b, 0x54, 0x93, 0x40], Op::Load { tile: 2, at: 3064, stride: 40_000 }, 7),
        (&[0xc4, 0xc2, 0x7b, 0x4b, 0xac, 0x08, 0, 4, 0, 0], Op::Load { tile: 5, at: 9024, stride: 1000 }, 10),
        (&[0xc4, 0xe2, 0x7a, 0x4b, 0x5c, 0x0b, 0xc0], Op::Store { tile: 3, at: 2936, stride: 1000 }, 7),
        (&[0xc4, 0xe2, 0x72, 0x5c, 0xc2], Op::Dot { sum: 0, a: 2, b: 1 }, 5),
        (&[0xc4, 0xe2, 0x42, 0x5c, 0xdd], Op::Dot { sum: 3, a: 5, b: 7 }, 5),
    ];
    for (code, op, length) in known {
        let code = [code, &[0x90; 8]].concat();
        assert_eq!(decode(&code, &registers), Some((op, length)), "{code:x?}");
    }
    // `ud2`, an integer product of tiles, a load without a stride, and one of tile 8.
    for code in [
        [0x0f, 0x0b, 0, 0, 0, 0],
        [0xc4, 0xe2, 0x73, 0x5e, 0xc2, 0],
        [0xc4, 0xe2, 0x7b, 0x4b, 0x01, 0],
        [0xc4, 0x62, 0x7b, 0x4b, 0x04, 0x08],
    ] {
        assert_eq!(decode(&code, &registers), None, "{code:x?}");
    }
}

fn configuration(tiles: &[(u8, u8)]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (at, (rows, row_bytes)) in tiles.iter().enumerate() {
        (bytes[48 + at], bytes[16 + 2 * at]) = (*rows, *row_bytes);
    }
    bytes
}

#[test]
fn what_the_processor_refuses_is_refused() {
    let mut tiles = Tiles::new();
    let mut refused = |bytes: Option<[u8; 64]>, op: Op, with: &str| {
        // SAFETY: the configuration lives through the call; the other operations touch no memory, for they are refused.
        let outcome = unsafe {
            let configured = match &bytes {
                Some(bytes) => tiles.execute(Op::Configure { at: bytes.as_ptr() as u64 }),
                None => Ok(()),
            };
            configured.and_then(|()| tiles.execute(op))
        };
        let what = outcome.expect_err("a refusal");
        assert!(what.contains(with), "{what}");
    };
    let zero = Op::Zero { tile: 1 };
    let dot = Op::Dot { sum: 0, a: 1, b: 2 };
    refused(None, zero, "not configured");
    refused(Some([0; 64]), zero, "not configured");
    refused(Some(configuration(&[(16, 64)])), zero, "has not this tile");
    refused(Some(configuration(&[(17, 64)])), zero, "more than 16 rows");
    refused(Some(configuration(&[(16, 65)])), zero, "more than 16 rows");
    refused(Some(configuration(&[(0, 64)])), zero, "no row");
    refused(Some(configuration(&[(16, 64), (16, 64), (8, 64)])), dot, "do not fit");
    refused(Some(configuration(&[(16, 64), (16, 63), (16, 64)])), dot, "whole number of pairs");
    refused(Some(configuration(&[(16, 64); 3])), Op::Dot { sum: 0, a: 1, b: 1 }, "two operands");
    refused(Some(configuration(&[(16, 64); 3])), Op::Load { tile: 7, at: 0, stride: 0 }, "has not this tile");
    let mut reserved = configuration(&[(16, 64)]);
    reserved[3] = 1;
    refused(Some(reserved), zero, "reserved");
    reserved[0] = 2;
    refused(Some(reserved), zero, "palette");
}

/// One row, one column: `sum + (a₀ b₀ + a₁ b₁)`, each step in `f32`.
fn dot(sum: f32, a: [f32; 2], b: [f32; 2]) -> f32 {
    let mut tiles = Tiles::new();
    let pair = |pair: [f32; 2]| pair.map(|x| bf16::from_f32(x).to_bits());
    let (mut sum, a, b) = ([sum], pair(a), pair(b));
    let bytes = configuration(&[(1, 4); 3]);
    // SAFETY: everything named lives here.
    unsafe {
        for op in [
            Op::Configure { at: bytes.as_ptr() as u64 },
            Op::Load { tile: 0, at: sum.as_ptr() as u64, stride: 4 },
            Op::Load { tile: 1, at: a.as_ptr() as u64, stride: 4 },
            Op::Load { tile: 2, at: b.as_ptr() as u64, stride: 4 },
            Op::Dot { sum: 0, a: 1, b: 2 },
            Op::Store { tile: 0, at: sum.as_mut_ptr() as u64, stride: 4 },
        ] {
            tiles.execute(op).expect("a good operation");
        }
    }
    sum[0]
}

#[test]
fn dots_are_rounded_as_the_manual_says() {
    assert_eq!(dot(1.0, [2.0, 3.0], [5.0, 7.0]), 32.0);
    // The pair is summed before it is added: 2²⁴ + 1 + 1 would stay at 2²⁴ one by one.
    assert_eq!(dot(16_777_216.0, [1.0, 1.0], [1.0, 1.0]), 16_777_218.0);
    // Ties go to the even number.
    assert_eq!(dot(16_777_216.0, [1.0, 0.0], [1.0, 0.0]), 16_777_216.0);
    assert_eq!(dot(16_777_218.0, [1.0, 0.0], [1.0, 0.0]), 16_777_220.0);
    // Subnormal numbers are zero: taken, and left.
    assert_eq!(dot(0.0, [1e-39, 0.0], [1e38, 0.0]), 0.0);
    assert_eq!(dot(1e-39, [0.0, 0.0], [1.0, 1.0]), 0.0);
    assert_eq!(dot(0.0, [1e-20, 0.0], [1e-19, 0.0]), 0.0);
    assert!(dot(0.0, [f32::INFINITY, 0.0], [0.0, 1.0]).is_nan());
}
