//! Which tensors of a stage are kept in fewer bits, in memory and in checkpoints.
//!
//! In: what a [`TrainSpec`](mdl_lang::spec::TrainSpec) says of its tensors. Out: its graphs, reading and writing their parts, and the parts of
//! weights that other stages keep whole: each is read, made into its parts and let go before the next.

use std::borrow::Cow;
use std::path::Path;

use mdl_compiler::stored::blocks::{Blocks, Code};
use mdl_compiler::stored::{Convert, Kept, Orders, stored};
use mdl_graph::{Graph, Input};
use mdl_lang::spec::{self, Read, StoredDtype};

use crate::device::{Cpu, Executable, Tensors};
use crate::error::RunError;
use crate::stage::train::load_reads;

/// How each tensor of a program is kept.
#[derive(Clone, Copy)]
pub struct Keep<'a> {
    /// What the recipe says.
    pub kept: &'a [spec::Kept],
    /// All other matrices.
    pub rest: Kept,
}

impl<'a> Keep<'a> {
    pub fn of_stage(kept: &'a [spec::Kept]) -> Keep<'a> {
        Keep { kept, rest: Kept::F32 }
    }

    fn of(&self, input: &Input) -> Kept {
        let said = self.kept.iter().find(|kept| kept.input == input.name);
        said.map_or(self.rest, |kept| Kept::Blocks(blocks(kept.dtype)))
    }

    /// The graph that reads and writes what is kept, the order of axes of everything that it names, and what makes its parts.
    pub fn apply<'g>(&self, graph: &'g Graph, orders: &Orders) -> (Cow<'g, Graph>, Orders, Vec<Convert>) {
        if self.kept.is_empty() && self.rest == Kept::F32 {
            return (Cow::Borrowed(graph), orders.clone(), Vec::new());
        }
        let made = stored(graph, &|input| self.of(input), orders);
        let mut orders = orders.clone();
        orders.extend(made.orders);
        (Cow::Owned(made.graph), orders, made.convert)
    }
}

fn blocks(dtype: StoredDtype) -> Blocks {
    match dtype {
        StoredDtype::Nf4 { block, double } => Blocks { code: Code::Nf4, block, double },
        StoredDtype::Q8 { block } => Blocks { code: Code::Q8, block, double: false },
    }
}

/// Makes the parts that are in memory of the weights that these are reads of. `base` is the recipe's folder, `out` where stages leave their results.
pub fn load_kept(
    (base, out): (&Path, &Path),
    reads: &[Read],
    (convert, orders): (&[Convert], &Orders),
    tensors: &mut Tensors,
    cpu: &Cpu,
) -> Result<(), RunError> {
    for convert in convert {
        let Some(read) = reads.iter().find(|read| read.input == convert.of) else { continue };
        if convert.parts().all(|part| tensors.get(part.as_str()).is_none()) {
            continue;
        }
        let mut executable = Executable::new(&convert.graph, orders, cpu)?;
        tensors.allocate(executable.plan());
        load_reads(base, out, std::slice::from_ref(read), tensors)?;
        executable.run(tensors, cpu)?;
        tensors.remove(convert.of.as_str());
    }
    Ok(())
}
