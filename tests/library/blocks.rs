//! Tensors in blocks: the codes and scales are those of bitsandbytes (recorded by `tests/scripts/blocks.py`).

use mdl_compiler::reference::eval_stored;
use mdl_compiler::stored::blocks::{Blocks, Code};
use mdl_compiler::stored::{Kept, Orders, stored};
use mdl_graph::{InputKind, Name, Role};

use super::*;

/// What the parts of `x` are, and the numbers that they say, under a program that only reads `x` and adds nothing.
fn kept(blocks: Blocks, x: &Tensor) -> (Vec<(Name, Tensor)>, Vec<f64>) {
    let mut graph = Graph::new();
    let input = graph.input("x", InputKind::Weight, x.ty.clone());
    let one = graph.constant(1.0, DType::F32);
    let same = graph.add(mdl_graph::Op::Mul, &[input, one]);
    graph.output_as("y", Role::Value, same);
    let orders = Orders::from([(Name::from("x"), vec![Name::from("row"), Name::from("column")])]);
    let stored = stored(&graph, &|_| Kept::Blocks(blocks), &orders);
    let [convert] = stored.convert.as_slice() else { panic!("one weight") };
    let given: Vec<Tensor> = convert
        .graph
        .inputs()
        .iter()
        .map(|input| match input.name.as_str() {
            "x" => x.clone(),
            _ => Tensor::filled(input.ty.clone(), Scalar::Int(0).cast(input.ty.dtype)),
        })
        .collect();
    let made = eval_stored(&convert.graph, &given).expect("it is computed");
    let parts: Vec<(Name, Tensor)> = convert.parts().cloned().zip(made).collect();
    let of = |name: &Name| parts.iter().find(|(known, _)| known == name).expect("a part").1.clone();
    let inputs: Vec<Tensor> = stored.graph.inputs().iter().map(|input| of(&input.name)).collect();
    let y = eval_stored(&stored.graph, &inputs).expect("it is computed").remove(0).to_f64();
    (parts, y)
}

/// The numbers of a part in the order of the file, `[row, …]`.
fn by_row(tensor: &Tensor) -> Vec<f64> {
    let axes: Vec<&Axis> = tensor.ty.axes.iter().collect();
    let data = tensor.to_f64();
    if axes[0].name.as_str() == "row" {
        return data;
    }
    let (n, rows) = (axes[0].size as usize, axes[1].size as usize);
    (0..rows).flat_map(|row| (0..n).map(move |at| (at, row))).map(|(at, row)| data[at * rows + row]).collect()
}

#[test]
fn blocks_are_those_of_bitsandbytes() {
    let bytes = read("blocks.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("the fixture is whole");
    let floats = |name: &str| -> Vec<f64> {
        let data = file.tensor(name).expect("recorded").data();
        data.chunks_exact(4).map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]]))).collect()
    };
    let codes = |name: &str| -> Vec<f64> {
        file.tensor(name).expect("recorded").data().iter().map(|x| f64::from(*x)).collect()
    };
    let axes = [Axis::new("row", 12), Axis::new("column", 512)];
    let x = Tensor::float(type_of(DType::F32, &axes), sorted(&axes, &floats("x")));
    for (name, code, block) in [("nf4", Code::Nf4, 64), ("q8", Code::Q8, 256)] {
        let (parts, y) = kept(Blocks { code, block, double: false }, &x);
        assert_eq!(by_row(&parts[0].1), codes(name), "{name}");
        assert_eq!(by_row(&parts[1].1), floats(&format!("{name}.scale")), "{name}");
        for (got, wanted) in y.iter().zip(sorted(&axes, &floats(&format!("{name}.x")))) {
            assert!((got - wanted).abs() <= 1e-6 * wanted.abs(), "{name}: {got}, not {wanted}");
        }
    }
}

#[test]
fn scales_in_eight_bits_change_little() {
    let axes = [Axis::new("row", 6), Axis::new("column", 1024)];
    let data = (0..6 * 1024_u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1 << 24) as f64 - 0.5);
    let x = Tensor::float(type_of(DType::F32, &axes), data.collect());
    let (single, one) = kept(Blocks { code: Code::Nf4, block: 64, double: false }, &x);
    let (double, other) = kept(Blocks { code: Code::Nf4, block: 64, double: true }, &x);
    let size = |parts: &[(Name, Tensor)]| parts.iter().map(|(_, part)| part.ty.size_bytes()).sum::<u64>();
    assert_eq!((size(&single), size(&double)), (3072 + 4 * 96, 3072 + 96 + 4 * 6));
    // Half of the widest gap between codes, and half a step of the largest scale.
    let far = 0.5 * (1.0 - 0.6961) / 2.0 + 0.5 / 255.0;
    for (x, other) in x.to_f64().iter().zip(&other) {
        assert!((x - other).abs() <= far, "{x} is {other} by scales in eight bits");
    }
    let distance = one.iter().zip(&other).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(distance > 0.0 && distance < 0.03 * one.iter().map(|a| a * a).sum::<f64>().sqrt(), "{distance}");
}
