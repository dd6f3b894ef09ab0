//! Hostile files, and every order of axes.

use std::path::PathBuf;

use mdl_graph::{Axis, DType, Name};
use mdl_lang::spec::{Along, FileType, Origin, Piece};

use super::{Files, headers, read_header};
use crate::device::{Block, Tensor};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("mdlc-weights-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A safetensors file of a header and so many bytes.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = folder(name);
    let path = folder.join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let problem = read_header(&path).unwrap_err();
    assert_eq!(problem.code, super::UNREADABLE);
    assert!(problem.message.starts_with("model.safetensors "), "{}", problem.message);
    std::fs::remove_dir_all(&folder).unwrap();
    problem.message
}

#[test]
fn what_cannot_be_is_refused() {
    let entry = |name: &str, shape: &str, from: u64, to: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let of = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let cases: [(&str, String, usize, &str); 11] = [
        ("overlap", of(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 4, 12)]), 12, "`b` begin at byte"),
        ("hole", of(&[entry("a", "[2]", 0, 8), entry("b", "[2]", 12, 20)]), 20, "leaves bytes before it"),
        ("short", of(&[entry("a", "[2]", 0, 8)]), 4, "cut off"),
        ("long", of(&[entry("a", "[2]", 0, 8)]), 9, "cut off"),
        ("shape", of(&[entry("a", "[3]", 0, 8)]), 8, "`a` from 0 to 8"),
        ("backwards", of(&[entry("a", "[2]", 8, 0)]), 8, "`a` from 8 to 0"),
        ("overflow", of(&[entry("a", "[4294967296,4294967296]", 0, 8)]), 8, "`a` with more elements"),
        ("far", of(&[entry("a", "[0]", u64::MAX, u64::MAX)]), 0, "`a` from"),
        ("twice", of(&[entry("a", "[2]", 0, 8), entry("a", "[2]", 8, 16)]), 16, "`a` twice"),
        ("negative", of(&[entry("a", "[-2]", 0, 8)]), 8, "`a`: invalid value"),
        ("dtype", of(&[entry("a", "[2]", 0, 8)]).replace("F32", "F31"), 8, "F31"),
    ];
    for (name, header, n_data, expected) in cases {
        let said = refused(name, &file(&header, &vec![0; n_data]));
        assert!(said.contains(expected), "{name}: {said}");
    }
    assert!(
        refused("dims", &file(&of(&[entry("a", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", 0, 4)]), &[0; 4]))
            .contains("dimensions")
    );
    assert!(refused("empty", &[1, 2, 3]).contains("too few"));
    assert!(refused("huge", &[0xff; 16]).contains("at most"));
    assert!(refused("nothing", &file("[]", &[])).contains("cannot be read"));
    assert!(refused("trailing", &file("{} x", &[])).contains("cannot be read"));
}

#[test]
fn an_index_that_climbs_out_is_refused() {
    let folder = folder("climbs");
    std::fs::write(folder.join("model.safetensors.index.json"), r#"{"weight_map": {"a": "../a.safetensors"}}"#)
        .unwrap();
    let problem = headers(&folder, "x").unwrap_err();
    assert!(problem.message.contains("does not lie beside it"), "{}", problem.message);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn pickles_are_not_read() {
    let folder = folder("pickles");
    std::fs::write(folder.join("pytorch_model.bin"), b"x").unwrap();
    let problem = headers(&folder, "x").unwrap_err();
    assert!(problem.help.unwrap().contains("convert"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A weight `[a: 2, b: 3, c: 5]` from tensors of every order of axes, of every type that holds its numbers.
#[test]
fn any_order_and_type_becomes_the_same_weight() {
    let folder = folder("orders");
    let sizes = [2u64, 3, 5];
    let number = |at: [u64; 3]| (at[0] * 15 + at[1] * 5 + at[2]) as f32;
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut steps = [0; 3];
        let mut step = 1;
        for axis in order.into_iter().rev() {
            steps[axis] = step;
            step *= sizes[axis];
        }
        for dtype in [FileType::F32, FileType::F64, FileType::F16, FileType::BF16] {
            // Two numbers before it: the tensor holds something else, too.
            let mut values = [0.0; 32];
            for a in 0..2 {
                for b in 0..3 {
                    for c in 0..5 {
                        values[(2 + a * steps[0] + b * steps[1] + c * steps[2]) as usize] = number([a, b, c]);
                    }
                }
            }
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| match dtype {
                    FileType::F32 => value.to_le_bytes().to_vec(),
                    FileType::F64 => f64::from(*value).to_le_bytes().to_vec(),
                    FileType::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
                    _ => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
                })
                .collect();
            std::fs::write(folder.join("x"), &bytes).unwrap();
            let piece = Piece {
                file: Name::from("x"),
                tensor: Name::from("w"),
                dtype,
                bytes: 0..bytes.len() as u64,
                first: 2,
                along: steps.iter().map(|step| Along::Every(*step)).collect(),
            };
            let axes = ["a", "b", "c"].iter().zip(sizes).map(|(name, size)| Axis::new(*name, size)).collect();
            let mut tensor = Tensor { dtype: DType::F32, axes, data: Block::zeroed(120) };
            let origin = Origin::Files { pieces: vec![piece.clone()], same: vec![piece.clone()] };
            Files::new(&folder).fill(&origin, &mut tensor).unwrap();
            let read: Vec<f32> =
                tensor.data.bytes().chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect();
            assert_eq!(read, (0..30).map(|n| n as f32).collect::<Vec<_>>(), "{order:?} {}", dtype.name());
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_not_finite_is_told_with_its_place() {
    let folder = folder("finite");
    let bytes: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(folder.join("x"), &bytes).unwrap();
    let piece = Piece {
        file: Name::from("x"),
        tensor: Name::from("w"),
        dtype: FileType::F32,
        bytes: 0..8,
        first: 0,
        along: vec![Along::Every(1)],
    };
    let mut tensor = Tensor { dtype: DType::F32, axes: vec![Axis::new("a", 2)], data: Block::zeroed(8) };
    let error =
        Files::new(&folder).fill(&Origin::Files { pieces: vec![piece], same: vec![] }, &mut tensor).unwrap_err();
    assert!(error.to_string().contains("`w` holds a number that is not finite, element 1"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}
