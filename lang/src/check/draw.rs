//! Chance: a draw depends on the seed, the step, its place in the program, the position in the loops around it, and its
//! coordinates by name. So a run is the same run however it is cut, and copies of a layer draw apart.

use mdl_graph::{Axis, AxisSet, DType, InputKind, Op, Type};

use super::Elaborator;
use super::value::{Eval, Tensor};
use crate::syntax::ast::Span;

impl Elaborator<'_> {
    /// Uniform draws in [0, 1) along these axes and all hidden ones.
    pub(super) fn draw(&mut self, axes: &[Axis], span: Span) -> Eval<Tensor> {
        let all = axes.iter().chain(&self.hidden).cloned();
        let Some(axes) = AxisSet::of(all) else {
            return Err(self.error(crate::diag::Code::E0212, "an axis stands twice", span, "in these brackets"));
        };
        let scalar = Type::scalar(DType::I32);
        let seed = self.outer_input("seed", InputKind::Scalar, scalar.clone());
        let step = self.outer_input("step", InputKind::Scalar, scalar);
        let lane = self.lane(span)?;
        let counter = self.counter(&axes, span)?;
        let place = self.next_place();
        self.emit(Op::Uniform { place }, &[&seed, &step, &lane, &counter], span)
    }

    /// The position in all loops around, as one number.
    fn lane(&mut self, span: Span) -> Eval<Tensor> {
        let mut lane: Option<Tensor> = None;
        // The graph of a decoder's model is no loop.
        let loops: Vec<usize> = (1..self.levels.len()).filter(|at| self.levels[*at].axis.is_some()).collect();
        for at in loops {
            let position = self.loop_position(at, span)?;
            let size = self.levels[at].axis.as_ref().map_or(1, |axis| axis.size);
            lane = Some(match lane {
                None => position,
                Some(outer) => {
                    let size = self.i32_number(size as i64, span)?;
                    let scaled = self.emit(Op::Mul, &[&outer, &size], span)?;
                    self.emit(Op::Add, &[&scaled, &position], span)?
                }
            });
        }
        match lane {
            Some(lane) => Ok(lane),
            None => self.i32_number(0, span),
        }
    }

    /// The index of each element, the axes in the order of their names, the last one fastest.
    fn counter(&mut self, axes: &AxisSet, span: Span) -> Eval<Tensor> {
        let dtype = if axes.count() > i32::MAX as u64 { DType::I64 } else { DType::I32 };
        let mut counter: Option<Tensor> = None;
        let mut stride = 1u64;
        for axis in axes.iter().rev() {
            let index = self.emit(Op::Iota(axis.clone()), &[], span)?;
            let index = self.cast(&index, dtype, span)?;
            let term = if stride == 1 {
                index
            } else {
                let stride = self.constant(mdl_graph::Scalar::Int(stride as i64), dtype, span)?;
                self.emit(Op::Mul, &[&index, &stride], span)?
            };
            counter = Some(match counter {
                None => term,
                Some(counter) => self.emit(Op::Add, &[&counter, &term], span)?,
            });
            stride *= axis.size;
        }
        match counter {
            Some(counter) => Ok(counter),
            None => self.number(0.0, dtype, span),
        }
    }

    /// A number for this place: of the layer's path and of how many draws it made before.
    fn next_place(&mut self) -> u32 {
        let scope = match self.place_of.is_empty() {
            true => self.scope.as_str().to_string(),
            false => self.place_of.clone(),
        };
        let count = self.places.entry(scope.clone()).or_insert(0);
        *count += 1;
        // FNV-1a: short, stable, and spread enough for a few thousand places.
        let mut hash = 0x811c_9dc5_u32;
        for byte in scope.bytes().chain(count.to_le_bytes()) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        hash
    }
}
