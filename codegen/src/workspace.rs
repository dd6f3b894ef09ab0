//! The memory that launches need beside their buffers, before anything is compiled: `mdlc check` tells it.

use mdl_compiler::kernel::{Kernel, Nest, Work};

use crate::contract::Contraction;
use crate::isa::Isa;
use crate::jit::is_wide;
use crate::module::{combiners, partial_buffers};
use crate::nest::{Plan, Scope, normal, normal_columns, oriented, parts};
use crate::ordering;
use crate::plane::{Planes, Tiled};

/// What the largest launch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// For each thread.
    pub(crate) scratch: u64,
    /// For all of them: partial results of exits.
    pub(crate) partials: u64,
}

impl Needs {
    pub(crate) const NOTHING: Needs = Needs { scratch: 64, partials: 0 };

    pub(crate) fn bytes(self, n_threads: usize) -> u64 {
        self.partials.next_multiple_of(64) + self.scratch.next_multiple_of(4096) * n_threads as u64
    }

    pub(crate) fn or(self, other: Needs) -> Needs {
        Needs { scratch: self.scratch.max(other.scratch), partials: self.partials.max(other.partials) }
    }

    fn of(kernel: &Kernel, isa: Isa) -> Needs {
        let nest_scratch = |kernel: &Kernel, nest: &Nest| {
            let mut dims = nest.grid.clone();
            dims.push(nest.strip);
            let wide = is_wide(isa, nest.strip);
            Plan::of(&Scope { kernel, dims: &dims, vals: &nest.vals, body: &nest.body, product: false, wide })
                .scratch_bytes
        };
        let mut needs = Needs { scratch: 0, partials: 0 };
        match &kernel.work {
            Work::Nest(nest) if nest.has_exits() => {
                let partials = partial_buffers(kernel, nest);
                needs.partials = partials.iter().map(|buf| partial_bytes(buf.len * buf.dtype.size_bytes())).sum();
                needs.scratch = nest_scratch(kernel, nest);
                for combine in combiners(kernel, nest) {
                    if let Work::Nest(inner) = &combine.work {
                        needs.scratch = needs.scratch.max(nest_scratch(&combine, &normal(inner)));
                    }
                }
            }
            Work::Nest(nest) => {
                let all = parts(kernel, nest).into_iter().map(|part| nest_scratch(kernel, &normal(&part)));
                needs.scratch = all.max().unwrap_or(0);
            }
            Work::Contract(contract) => {
                let contract = &oriented(contract);
                let mut contraction = Contraction::new(kernel, contract, isa);
                if contraction.needs_body() {
                    let (dims, body, _) = normal_columns(contract);
                    let wide = is_wide(isa, dims.last().copied().unwrap_or(1));
                    let scope = Scope { kernel, dims: &dims, vals: &contract.vals, body: &body, product: true, wide };
                    contraction.body_scratch = Plan::of(&scope).scratch_bytes;
                }
                needs.scratch = contraction.scratch_bytes();
            }
            Work::Plane(plane) => {
                let mut planes = Planes::new(kernel, plane, isa);
                let (inner, body) = Tiled::of(plane).body(kernel, plane, planes.pitch());
                let dims = plane.body_dims();
                let wide = is_wide(isa, plane.columns);
                let scope = Scope { kernel: &inner, dims: &dims, vals: &plane.vals, body: &body, product: false, wide };
                planes.body_scratch = Plan::of(&scope).scratch_bytes;
                needs.scratch = planes.scratch_bytes();
            }
            Work::Top(top) => needs.scratch = ordering::scratch_bytes(top),
            Work::Scatter(_) | Work::Prefix(_) => {}
        }
        needs
    }
}

/// The place that a buffer of partial results takes.
pub(crate) fn partial_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(64)
}

/// What [`crate::Module::workspace_bytes`] will be for these kernels.
pub fn workspace_bytes(kernels: &[Kernel], isa: Isa, n_threads: usize) -> u64 {
    kernels.iter().map(|kernel| Needs::of(kernel, isa)).fold(Needs::NOTHING, Needs::or).bytes(n_threads)
}
