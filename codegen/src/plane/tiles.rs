//! A plane's body as that of a nest: the products are loads from tiles, what is summed is stored to tiles, and tiles are buffers.

use mdl_compiler::kernel::{Access, Buf, BufId, Dim, Kernel, Plane, Role, Stmt, ValId, Work};
use mdl_graph::DType;

/// Which tile each value has. Products have the first ones; a value that is summed takes the tile of a product.
pub(crate) struct Tiled {
    pub(crate) n_tiles: usize,
    n_ins: usize,
    /// What is summed, in the order of their tiles.
    summed: Vec<ValId>,
}

impl Tiled {
    pub(crate) fn of(plane: &Plane) -> Tiled {
        let mut summed: Vec<ValId> = Vec::new();
        for out in &plane.outs {
            if !summed.contains(&out.val) {
                summed.push(out.val);
            }
        }
        Tiled { n_tiles: plane.ins.len().max(summed.len()), n_ins: plane.ins.len(), summed }
    }

    pub(crate) fn tile_of(&self, val: ValId) -> usize {
        self.summed.iter().position(|other| *other == val).unwrap_or_else(|| mdl_graph::bug!("{val} has no tile"))
    }

    /// The kernel with a buffer for each tile, and its body with loads and stores of them. A row of a tile is `pitch` long; the
    /// caller shifts the tiles' addresses so that rows and columns count from the batch point's first.
    pub(crate) fn body(&self, kernel: &Kernel, plane: &Plane, pitch: usize) -> (Kernel, Vec<Stmt>) {
        let n_bufs = kernel.bufs.len();
        let mut terms: Vec<(Dim, i64)> = Vec::new();
        let mut stride = pitch as i64;
        for (at, extent) in plane.rows.iter().enumerate().rev() {
            terms.push((Dim((plane.batch.len() + at) as u32), stride));
            stride *= *extent as i64;
        }
        terms.reverse();
        terms.push((Dim((plane.batch.len() + plane.rows.len()) as u32), 1));
        let access = Access::affine(0, &terms);
        let tile = |at: usize| BufId((n_bufs + at) as u32);
        let mut body: Vec<Stmt> = Vec::new();
        for at in 0..self.n_ins {
            body.push(Stmt::Load { val: ValId(at as u32), buf: tile(at), access: access.clone() });
        }
        body.extend(plane.body.iter().cloned());
        for (at, val) in self.summed.iter().enumerate() {
            body.push(Stmt::Store { buf: tile(at), access: access.clone(), val: *val });
        }
        let mut kernel =
            Kernel { name: kernel.name.clone(), bufs: kernel.bufs.clone(), work: Work::Plane(plane.clone()) };
        for at in 0..self.n_tiles {
            let len = plane.n_rows() * pitch as u64;
            kernel.bufs.push(Buf { name: format!("tile{at}"), dtype: DType::F32, len, role: Role::Update });
        }
        (kernel, body)
    }
}
