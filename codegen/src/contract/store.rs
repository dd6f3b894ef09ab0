//! Where a finished block of the product goes: straight to a buffer, copied there, or through the compiled body.

use mdl_compiler::kernel::{Access, Contract, ContractDim, Dim, Kernel, Stmt};
use mdl_graph::DType;

use super::side::{adjacent, offsets};
use super::{Contraction, Finish, Rows};
use crate::memory::Buffers;

/// A body that only stores the product, as it is: offsets of the batch, of rows and of columns.
pub(super) struct PlainStore {
    buf: usize,
    base: i64,
    batch: Vec<i64>,
    rows: Vec<i64>,
    columns: Vec<i64>,
    columns_adjacent: bool,
    /// From one row to the next, when that is always the same.
    row_step: Option<i64>,
}

impl PlainStore {
    pub(super) fn of(kernel: &Kernel, contract: &Contract) -> Option<PlainStore> {
        let [Stmt::Store { buf, access, val }] = &contract.body[..] else { return None };
        let same = kernel.bufs[buf.0 as usize].dtype == contract.vals[0].dtype;
        if !same || val.0 != 0 {
            return None;
        }
        let strides = affine_strides(access, contract.body_dims().len())?;
        let with = |dims: &[ContractDim], strides: &[i64]| -> Vec<(u64, i64)> {
            dims.iter().zip(strides).map(|(dim, stride)| (dim.extent, *stride)).collect()
        };
        let (batch, rest) = strides.split_at(contract.batch.len());
        let (m, n) = rest.split_at(contract.m.len());
        let columns = offsets(&with(&contract.n, n));
        let rows = offsets(&with(&contract.m, m));
        let step = rows.get(1).map_or(0, |second| second - rows[0]);
        Some(PlainStore {
            buf: buf.0 as usize,
            base: access.base,
            batch: batch.to_vec(),
            row_step: (step >= 0 && rows.windows(2).all(|pair| pair[1] - pair[0] == step)).then_some(step),
            rows,
            columns_adjacent: adjacent(&columns),
            columns,
        })
    }
}

/// The stride of each dimension in a plain access: no guard, no division, no indirection. `base` is the access's own.
pub(crate) fn affine_strides(access: &Access, n_dims: usize) -> Option<Vec<i64>> {
    let mut strides = vec![0i64; n_dims];
    for term in &access.terms {
        let mdl_compiler::kernel::Position::Index(index) = &term.index else { return None };
        if term.range.is_some() || index.div != 1 || index.modulo != 0 || index.base != 0 || index.plus != 0 {
            return None;
        }
        for (Dim(dim), coef) in &index.terms {
            strides[*dim as usize] += coef * term.coef;
        }
    }
    Some(strides)
}

impl Contraction {
    /// The store that takes the product as it is made, and the length of its rows: of whole vectors, side by side.
    pub(super) fn straight(&self, columns: &Rows) -> Option<(&PlainStore, usize)> {
        let store = self.store.as_ref().filter(|_| matches!(self.finish, Finish::Copy) && self.dtype != DType::F64)?;
        let step = store.row_step.filter(|_| store.columns_adjacent)?;
        columns.len().is_multiple_of(self.unit.columns() / 2).then_some((store, step as usize))
    }

    /// Where the first element of a block is stored.
    pub(super) fn stored_at(
        &self,
        store: &PlainStore,
        bufs: Buffers<'_>,
        batch: u64,
        rows: &Rows,
        columns: &Rows,
    ) -> *mut u8 {
        let mut rest = batch;
        let mut at = store.base + store.rows[rows.start] + store.columns[columns.start];
        for (dim, stride) in self.batch.iter().zip(&store.batch).rev() {
            at += (rest % dim.extent) as i64 * stride;
            rest /= dim.extent;
        }
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        bufs.base(store.buf).wrapping_offset(at as isize * number)
    }

    /// # Safety
    /// The block of these rows and columns is in scratch, or where `straight` says; the rest as for `run`.
    pub(super) unsafe fn finish_block(
        &self,
        bufs: Buffers<'_>,
        batch: u64,
        rows: Rows,
        columns: Rows,
        scratch: *mut u8,
    ) {
        let number = if self.dtype == DType::F64 { 8 } else { 4 };
        match (self.finish, &self.store) {
            (Finish::Body(body), _) => {
                // SAFETY: the body's scratch is the last part of ours.
                let own = unsafe { scratch.add((self.scratch_bytes() - self.body_scratch) as usize) };
                let row0 = batch * self.m as u64;
                let mut column = columns.start;
                while column < columns.end {
                    let (outer, from) = (column / self.n_last, column % self.n_last);
                    let to = self.n_last.min(from + columns.end - column);
                    // SAFETY: rows and columns of this block, which lies in scratch; the body was compiled from this kernel.
                    unsafe {
                        let product = scratch.add((column - columns.start) * number);
                        let (lo, hi) = (row0 + rows.start as u64, row0 + rows.end as u64);
                        body(
                            bufs.as_ptr(),
                            lo,
                            hi,
                            outer as u64,
                            from as u64,
                            to as u64,
                            product,
                            self.blocks.columns as u64,
                            own,
                        );
                    }
                    column += to - from;
                }
            }
            (Finish::Copy, Some(_)) if self.straight(&columns).is_some() => {}
            (Finish::Copy, Some(store)) => {
                let (first_row, first_column) = (store.rows[rows.start], store.columns[columns.start]);
                let out = self.stored_at(store, bufs, batch, &rows, &columns);
                for (i, row) in store.rows[rows].iter().enumerate() {
                    // SAFETY: `verify` checked the store's access for every point.
                    unsafe {
                        let from = scratch.add(i * self.blocks.columns * number);
                        let to_row = out.offset((row - first_row) as isize * number as isize);
                        if store.columns_adjacent {
                            std::ptr::copy_nonoverlapping(from, to_row, columns.len() * number);
                        } else {
                            for (j, column) in store.columns[columns.clone()].iter().enumerate() {
                                let to = to_row.offset((column - first_column) as isize * number as isize);
                                std::ptr::copy_nonoverlapping(from.add(j * number), to, number);
                            }
                        }
                    }
                }
            }
            (Finish::Copy, None) => mdl_graph::bug!("a contraction without its body"),
        }
    }
}
