//! Compiled programs against the same operations one number at a time.

use super::program::Value;
use super::*;
use crate::isa::Isa;
use crate::strip::math;

type Function = unsafe extern "C" fn(*const u64, u64);

/// Runs a program on strips of `n`: inputs at cells 0 and up, one row value after them, then outputs.
fn run(program: &Program, inputs: &[Vec<u32>], row: u32, n_outputs: usize, n: usize) -> Option<Vec<Vec<u32>>> {
    if !Isa::available().contains(&Isa::Avx512) {
        return None;
    }
    let mut memory = CodeMemory::default();
    let address = memory.function(program);
    assert!(memory.seal());
    const AFTER: u32 = 0xdead_beef;
    let mut outputs = vec![vec![AFTER; n + 20]; n_outputs];
    let mut cells: Vec<u64> = inputs.iter().map(|input| input.as_ptr() as u64).collect();
    cells.push(u64::from(row));
    cells.extend(outputs.iter_mut().map(|output| output.as_mut_ptr() as u64));
    // SAFETY: the code was compiled from this program; the cells are its pointers, each to at least n numbers.
    unsafe {
        let function = std::mem::transmute::<usize, Function>(address);
        function(cells.as_ptr(), n as u64);
    }
    for output in &mut outputs {
        assert!(output[n.max(16)..].iter().all(|bits| *bits == AFTER), "wrote beyond the strip");
    }
    Some(outputs)
}

fn numbers(n: usize, salt: u32) -> Vec<u32> {
    let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-40, 88.9, -103.9, 1e30];
    let draw = |i: usize| mdl_graph::philox::uniform(1, 2, 3, salt, i as u32) * 8.0 - 4.0;
    (0..n).map(|i| if i % 7 == 3 { special[(i / 7) % 10] } else { draw(i) }).map(f32::to_bits).collect()
}

fn same(got: u32, want: u32) -> bool {
    got == want || (f32::from_bits(got).is_nan() && f32::from_bits(want).is_nan())
}

/// Compares a function of two strips and a row value with itself on single numbers, for lengths around the register's.
fn check(name: &str, built: impl Fn(Value<'_>, Value<'_>, Value<'_>) -> Id, wanted: impl Fn(u32, u32, u32) -> u32) {
    let builder = Builder::default();
    let input = |pointer| builder.value(builder.push(Op::Load { pointer, form: Form::Word }));
    let row = builder.value(builder.push(Op::Row { cell: 2 }));
    let value = built(input(0), input(1), row);
    builder.push(Op::Store { pointer: 3, form: Form::Word, value });
    let program = builder.finish();
    for n in [0, 1, 15, 16, 17, 31, 32, 33, 200] {
        let (x, y, row) = (numbers(n, 1), numbers(n, 2), 1.5f32.to_bits());
        let Some(outputs) = run(&program, &[x.clone(), y.clone()], row, 1, n) else { return };
        for i in 0..n {
            let (got, want) = (outputs[0][i], wanted(x[i], y[i], row));
            assert!(same(got, want), "{name} of {:x}, {:x}: {got:x}, wanted {want:x}", x[i], y[i]);
        }
    }
}

fn floats(f: impl Fn(f32, f32, f32) -> f32) -> impl Fn(u32, u32, u32) -> u32 {
    move |x, y, row| f(f32::from_bits(x), f32::from_bits(y), f32::from_bits(row)).to_bits()
}

#[test]
fn functions_agree_with_their_scalar_form() {
    check("exp", |x, _, _| math::exp(x).id, floats(|x, _, _| math::exp(x)));
    check("log", |x, _, _| math::log(x).id, floats(|x, _, _| math::log(x)));
    check("tanh", |x, _, _| math::tanh(x).id, floats(|x, _, _| math::tanh(x)));
    check("erf", |x, _, _| math::erf(x).id, floats(|x, _, _| math::erf(x)));
    check("bf16", |x, _, _| math::round_bf16(x).id, |x, _, _| math::round_bf16(f32::from_bits(x)));
}

#[test]
fn operations_agree() {
    check("sub", |x, y, row| (row - x * y).id, floats(|x, y, row| row - x * y));
    check("div", |x, y, row| (x / y + row).id, floats(|x, y, row| x / y + row));
    check("max", |x, y, _| x.two(Binary::MaxF, y).id, floats(|x, y, _| if y > x || y.is_nan() { y } else { x }));
    check("sqrt", |x, _, _| x.one(Unary::SqrtF).id, floats(|x, _, _| x.sqrt()));
    check("floor", |x, _, _| x.one(Unary::FloorF).id, floats(|x, _, _| x.floor()));
    check(
        "wrap",
        |x, y, _| x.two(Binary::MulI, y).two(Binary::SubI, y).id,
        |x, y, _| x.wrapping_mul(y).wrapping_sub(y),
    );
    check("shift", |x, _, _| x.one(Unary::RightSigned(3)).id, |x, _, _| (x as i32 >> 3) as u32);
    check(
        "select",
        |x, y, row| {
            let less = x.compare(Comparison::LessF, y);
            let other = x.compare(Comparison::NotEqualF, row).two(Binary::And, less);
            less.choose(x, row).two(Binary::AddF, other.choose(y, x)).id
        },
        floats(|x, y, row| (if x < y { x } else { row }) + (if x < y && x != row { y } else { x })),
    );
    check(
        "masked zero",
        |x, y, _| x.compare(Comparison::LessF, y).choose(x, x.every(0)).id,
        floats(|x, y, _| if x < y { x } else { 0.0 }),
    );
    check("mask as a value", |x, y, _| x.compare(Comparison::EqualI, y).id, |x, y, _| if x == y { !0 } else { 0 });
}

#[test]
fn values_that_registers_do_not_hold_go_to_the_stack() {
    check(
        "pressure",
        |x, y, row| {
            let many: Vec<Value<'_>> = (0..60u32).map(|i| x * x.every((i as f32).to_bits()) + y).collect();
            let forward = many.iter().fold(row, |sum, value| sum + *value);
            many.iter().rev().fold(forward, |sum, value| sum * row - *value).id
        },
        floats(|x, y, row| {
            let many: Vec<f32> = (0..60).map(|i| x * i as f32 + y).collect();
            let forward = many.iter().fold(row, |sum, value| sum + value);
            many.iter().rev().fold(forward, |sum, value| sum * row - value)
        }),
    );
}

#[test]
fn positions_count_along_the_strip() {
    let builder = Builder::default();
    let position = builder.push(Op::Position);
    builder.push(Op::Store { pointer: 1, form: Form::Word, value: position });
    let Some(outputs) = run(&builder.finish(), &[], 0, 1, 100) else { return };
    assert!((0..100).all(|i| outputs[0][i] == i as u32));
}

#[test]
fn folds_have_the_tree_of_the_routines() {
    for (join, name) in
        [(Join::SumF, "sum_f32"), (Join::MaxF, "max_f32"), (Join::SumI, "sum_i32"), (Join::MaxI, "max_i32")]
    {
        let routine = crate::strip::all().into_iter().find(|routine| routine.name == name).unwrap();
        let builder = Builder::default();
        let value = builder.push(Op::Load { pointer: 0, form: Form::Word });
        builder.push(Op::Fold { pointer: 2, join, value });
        let program = builder.finish();
        for n in [0usize, 1, 5, 16, 17, 40, 1000] {
            let plain = |i: usize| mdl_graph::philox::uniform(1, 2, 3, 9, i as u32) - 0.5;
            let mut x: Vec<u32> = (0..n).map(|i| plain(i).to_bits()).collect();
            for nan in [false, true] {
                if nan && n > 3 {
                    x[2] = f32::NAN.to_bits();
                }
                let Some(outputs) = run(&program, std::slice::from_ref(&x), 0, 1, n) else { return };
                let mut want = 0u32;
                // SAFETY: a routine of this type; n numbers, and room for one.
                unsafe {
                    let fold: crate::strip::Fold = std::mem::transmute(routine.address(Isa::Baseline));
                    fold((&raw mut want).cast(), x.as_ptr().cast(), n as u64);
                }
                assert!(same(outputs[0][0], want), "{name} of {n}");
            }
        }
    }
}

#[test]
fn forms_convert() {
    let strip: Vec<u32> = (0..64u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    for form in [Form::Bf16, Form::F16, Form::I8, Form::U8, Form::Bool] {
        let builder = Builder::default();
        let value = builder.push(Op::Load { pointer: 0, form });
        builder.push(Op::Store { pointer: 2, form: Form::Word, value });
        builder.push(Op::Store { pointer: 3, form, value });
        let n = 37;
        let Some(outputs) = run(&builder.finish(), std::slice::from_ref(&strip), 0, 2, n) else { return };
        let bytes: Vec<u8> = strip.iter().flat_map(|word| word.to_le_bytes()).collect();
        let back: Vec<u8> = outputs[1].iter().flat_map(|word| word.to_le_bytes()).collect();
        for i in 0..n {
            let half = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            let (want, size) = match form {
                Form::Bf16 => (half::bf16::from_bits(half).to_f32().to_bits(), 2),
                Form::F16 => (half::f16::from_bits(half).to_f32().to_bits(), 2),
                Form::I8 => (bytes[i] as i8 as u32, 1),
                Form::U8 => (u32::from(bytes[i]), 1),
                Form::Bool => (if bytes[i] != 0 { !0 } else { 0 }, 1),
                Form::Word => unreachable!("not in the list"),
            };
            assert!(same(outputs[0][i], want), "{form:?} at {i}");
            if form == Form::Bool {
                assert_eq!(back[i], u8::from(bytes[i] != 0));
            } else if !f32::from_bits(want).is_nan() {
                assert_eq!(back[i * size..][..size], bytes[i * size..][..size], "{form:?} at {i}");
            }
        }
    }
}
