//! Running sums, and the positions of the largest.

use mdl_compiler::kernel::{FoldKind, PairDim, Prefix, Top, Val};
use mdl_graph::DType;

use super::body::joined;
use super::print::{Text, integer, loaded, stored, sum, value_type};
use super::scalar::neutral;
use super::tile::Walk;
use super::{THREADS, Unit};

fn walks(outer: &[PairDim]) -> (Walk, Walk) {
    let of = |side: fn(&PairDim) -> i64| Walk::new(outer.iter().map(|dim| (dim.extent, side(dim))));
    (of(|dim| dim.x), of(|dim| dim.out))
}

/// A block for each row: it goes along in steps of a block, and hands the sum so far from step to step.
pub(super) fn prefix(text: &mut Text, unit: &mut Unit<'_>, prefix: &Prefix) {
    let (from, to) = walks(&prefix.outer);
    let (x, out) = (prefix.x.buf.0 as usize, prefix.out.buf.0 as usize);
    let stored_as = unit.kernel.bufs[x].dtype;
    // A running `or` of bools is one of numbers.
    let dtype = if stored_as == DType::Bool { DType::I32 } else { Val::dtype_of(stored_as) };
    let (ty, n) = (value_type(dtype), prefix.along.extent as i64);
    let rows = from.count();
    unit.describe(text, &format!("running sums of {rows} rows of {n}, a block for each."));
    unit.open(text, "", (if n == 0 { 0 } else { rows }, THREADS), &[x, out], &[]);
    let warps = THREADS / 32;
    text.line(format!("__shared__ {ty} ends[{warps}];"));
    text.line("const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;");
    text.line("const long long row = blockIdx.x;");
    text.line(format!("const long long from = {};", sum(&from.offset("row"), prefix.x.base)));
    text.line(format!("const long long to = {};", sum(&to.offset("row"), prefix.out.base)));
    text.line(format!("{ty} before = {};", neutral(FoldKind::Sum, dtype)));
    text.open(format!("for (long long first = 0; first < {}; first += {THREADS})", integer(n)));
    text.line("const long long step = first + threadIdx.x;");
    let at = if prefix.reverse { format!("{} - step", integer(n - 1)) } else { "step".to_string() };
    text.line(format!("const long long at = {at};"));
    let place = format!("b{x}[{}]", sum(&[(1, "from".into()), (prefix.along.x, "at".into())], 0));
    text.line(format!(
        "{ty} sum = step < {} ? {} : {};",
        integer(n),
        loaded(stored_as, &place),
        neutral(FoldKind::Sum, dtype)
    ));
    text.open("for (int apart = 1; apart < 32; apart *= 2)");
    text.line(format!("const {ty} other = __shfl_up_sync(0xffffffffu, sum, apart);"));
    text.line(format!("if (lane >= apart) {}", joined(FoldKind::Sum, dtype, "sum", "other")));
    text.close();
    text.line("if (lane == 31) ends[warp] = sum;");
    text.line("__syncthreads();");
    text.line(format!("for (int w = 0; w < warp; w++) {}", joined(FoldKind::Sum, dtype, "sum", "ends[w]")));
    text.line(joined(FoldKind::Sum, dtype, "sum", "before"));
    text.line(format!("for (int w = 0; w < {warps}; w++) {}", joined(FoldKind::Sum, dtype, "before", "ends[w]")));
    text.line("__syncthreads();");
    let place = format!("b{out}[{}]", sum(&[(1, "to".into()), (prefix.along.out, "at".into())], 0));
    let value = if stored_as == DType::Bool { "sum != 0".to_string() } else { stored(stored_as, "sum") };
    text.line(format!("if (step < {}) {place} = {value};", integer(n)));
    text.close();
    text.close();
}

/// A thread for each number counts those before it, and so knows its place.
pub(super) fn top(text: &mut Text, unit: &mut Unit<'_>, top: &Top) {
    let (from, to) = walks(&top.outer);
    let (x, out) = (top.x.buf.0 as usize, top.out.buf.0 as usize);
    let stored_as = unit.kernel.bufs[x].dtype;
    let ty = value_type(Val::dtype_of(stored_as));
    let n = top.along.extent;
    let rows = from.count();
    let pieces = n.div_ceil(THREADS).max(1);
    unit.describe(text, &format!("the {} largest of {rows} rows of {n}: each number counts those before it.", top.k));
    unit.open(text, "", (if top.k == 0 { 0 } else { rows * pieces }, THREADS), &[x, out], &[]);
    text.line(format!("__shared__ {ty} others[{THREADS}];"));
    text.line(format!("const long long row = blockIdx.x / {pieces};"));
    text.line(format!("const int at = blockIdx.x % {pieces} * {THREADS} + threadIdx.x;"));
    text.line(format!("const long long from = {};", sum(&from.offset("row"), top.x.base)));
    text.line(format!("const long long to = {};", sum(&to.offset("row"), top.out.base)));
    let n = integer(n as i64);
    let place = |at: &str| {
        let terms = [(1, "from".to_string()), (top.along.x, at.to_string())];
        loaded(stored_as, &format!("b{x}[{}]", sum(&terms, 0)))
    };
    text.line(format!("const {ty} own = {};", place(&format!("(at < {n} ? at : 0)"))));
    text.line("int rank = 0;");
    text.open(format!("for (int first = 0; first < {n}; first += {THREADS})"));
    text.line("__syncthreads();");
    text.line(format!(
        "if (first + (int)threadIdx.x < {n}) others[threadIdx.x] = {};",
        place("(first + (int)threadIdx.x)")
    ));
    text.line("__syncthreads();");
    text.line(format!("const int count = {n} - first < {THREADS} ? {n} - first : {THREADS};"));
    text.open("for (int i = 0; i < count; i++)");
    text.line(format!("const {ty} other = others[i];"));
    if Val::dtype_of(stored_as).is_float() {
        text.line("// NaN is the smallest.");
        text.line("const bool larger = other > own || (own != own && other == other);");
        text.line("const bool equal = other == own || (own != own && other != other);");
    } else {
        text.line("const bool larger = other > own, equal = other == own;");
    }
    text.line("rank += larger || (equal && first + i < at);");
    text.close();
    text.close();
    let place = sum(&[(1, "to".into()), (top.along.out, "rank".into())], 0);
    text.line(format!("if (at < {n} && rank < {}) b{out}[{place}] = at;", top.k));
    text.close();
}
