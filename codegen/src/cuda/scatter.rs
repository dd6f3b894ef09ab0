//! Scatter without atomics: points are sorted by where they go, in order, and each element of the result adds up its own.

use mdl_compiler::kernel::{FoldKind, Scatter, ScatterDim, Val};
use mdl_graph::DType;

use super::body::{flat_thread, joined};
use super::print::{Text, integer, loaded, stored, sum, value_type};
use super::scalar::neutral;
use super::tile::Walk;
use super::{THREADS, Unit};
use crate::jit::CompileError;

fn walk(dims: &[ScatterDim], of: fn(&ScatterDim) -> i64) -> Walk {
    Walk::new(dims.iter().map(|dim| (dim.extent, of(dim))))
}

pub(super) fn print(text: &mut Text, unit: &mut Unit<'_>, scatter: &Scatter) -> Result<(), CompileError> {
    let kernel = unit.kernel;
    let (rows, index, out) = (scatter.rows.buf.0 as usize, scatter.index.buf.0 as usize, scatter.out.buf.0 as usize);
    let keep = walk(&scatter.keep, |dim| dim.out).count();
    let points = walk(&scatter.points, |dim| dim.rows).count();
    let inner = walk(&scatter.inner, |dim| dim.out).count();
    let (extent, n) = (integer(scatter.extent as i64), integer(points as i64));
    if keep * points >= 1 << 31 {
        return Err(CompileError(format!("kernel {} scatters {keep} times {points} points", kernel.name)));
    }
    let sorted = unit.spare("sorted", DType::I32, keep * points);
    let keys = unit.spare("keys", DType::I32, keep * points);

    // A point's place is the number of points that go before it.
    let pieces = points.div_ceil(THREADS);
    unit.describe(
        text,
        &format!("{points} points are sorted by where they go, {keep} times; each counts those before it."),
    );
    unit.open(text, "_sort", (keep * pieces, THREADS), &[index], &[(&sorted, true), (&keys, true)]);
    text.line(format!("__shared__ int others[{THREADS}];"));
    text.line(format!("const int keep = blockIdx.x / {pieces};"));
    text.line(format!("const int point = blockIdx.x % {pieces} * {THREADS} + threadIdx.x;"));
    let mut terms = walk(&scatter.keep, |dim| dim.index).offset("keep");
    terms.extend(walk(&scatter.points, |dim| dim.index).offset("p"));
    let place = sum(&terms, scatter.index.base);
    text.line("// What goes nowhere goes last.");
    text.line("auto key = [=](int p) {");
    text.line(format!("    const {} to = b{index}[{place}];", value_type(kernel.bufs[index].dtype)));
    if kernel.bufs[index].dtype == DType::I64 {
        text.line("    const int at = (int)to;");
        text.line(format!("    return (int)(to >> 32) == 0 && at >= 0 && at < {extent} ? at : {extent};"));
    } else {
        text.line(format!("    return to >= 0 && to < {extent} ? to : {extent};"));
    }
    text.line("};");
    text.line(format!("const int own = point < {n} ? key(point) : {extent};"));
    text.line("unsigned before = 0;");
    text.open(format!("for (int first = 0; first < {n}; first += {THREADS})"));
    text.line("__syncthreads();");
    text.line(format!("if (first + (int)threadIdx.x < {n}) others[threadIdx.x] = key(first + threadIdx.x);"));
    text.line("__syncthreads();");
    text.line(format!("const int count = {n} - first < {THREADS} ? {n} - first : {THREADS};"));
    text.line("#pragma unroll 8");
    text.open("for (int i = 0; i < count; i++)");
    text.line("before += others[i] < own || (others[i] == own && first + i < point);");
    text.close();
    text.close();
    text.line(format!("if (point >= {n}) return;"));
    text.line(format!("sorted[(unsigned)keep * {n} + before] = point;"));
    text.line(format!("keys[(unsigned)keep * {n} + before] = own;"));
    text.close();

    let stored_as = kernel.bufs[out].dtype;
    let dtype = if stored_as == DType::Bool { DType::I32 } else { Val::dtype_of(stored_as) };
    let ty = value_type(dtype);
    let total = keep * scatter.extent * inner;
    text.blank();
    let verb = if scatter.put { "takes the last of" } else { "adds up" };
    unit.describe(text, &format!("each of {total} elements {verb} the points that go there."));
    let spares = [(&sorted, false), (&keys, false)];
    let base = scatter.base.map(|base| (base.buf.0 as usize, base.base));
    let bufs: Vec<usize> = [rows, out].into_iter().chain(base.map(|(buf, _)| buf)).collect();
    unit.open(text, "", (total.div_ceil(THREADS), THREADS), &bufs, &spares);
    flat_thread(text, "long long", THREADS, total);
    let how = super::print::unflatten("i", &[keep, scatter.extent, inner]);
    text.line(format!("const long long keep = {}, at = {}, inner = {};", how[0], how[1], how[2]));
    text.line(format!("const int* own = keys + keep * {n};"));
    text.line("int first = 0;");
    text.line(format!("for (int end = {n}; first < end;) {{"));
    text.line("    const int middle = (first + end) / 2;");
    text.line("    if (own[middle] < at) first = middle + 1;");
    text.line("    else end = middle;");
    text.line("}");
    let mut place = walk(&scatter.keep, |dim| dim.out).offset("keep");
    place.push((scatter.stride, "at".into()));
    place.extend(walk(&scatter.inner, |dim| dim.out).offset("inner"));
    let start = match base {
        Some((buf, from)) => loaded(stored_as, &format!("b{buf}[{}]", sum(&place, from))),
        None => neutral(FoldKind::Sum, dtype),
    };
    text.line(format!("{ty} sum = {start};"));
    text.open(format!("for (int s = first; s < {n} && own[s] == at; s++)"));
    text.line(format!("const int point = sorted[keep * {n} + s];"));
    let mut terms = walk(&scatter.keep, |dim| dim.rows).offset("keep");
    terms.extend(walk(&scatter.points, |dim| dim.rows).offset("point"));
    terms.extend(walk(&scatter.inner, |dim| dim.rows).offset("inner"));
    let value = loaded(stored_as, &format!("b{rows}[{}]", sum(&terms, scatter.rows.base)));
    text.line(if scatter.put { format!("sum = {value};") } else { joined(FoldKind::Sum, dtype, "sum", &value) });
    text.close();
    let value = if stored_as == DType::Bool { "sum != 0".to_string() } else { stored(stored_as, "sum") };
    text.line(format!("b{out}[{}] = {value};", sum(&place, scatter.out.base)));
    text.close();
    Ok(())
}
