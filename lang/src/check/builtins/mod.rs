//! The functions of the language itself: one row each. Everything else is written in `stdlib/`.

mod make;
mod math;
mod reduce;
mod shape;

use mdl_graph::{Axis, Name};

use super::Elaborator;
use super::value::{Args, Env, Eval, Given, Tensor, Value};
use crate::diag::{Code, Diagnostic, nearest};
use crate::syntax::ast::{Axes, Span};

type Run = for<'w> fn(&mut Elaborator<'w>, &mut Call<'_>) -> Eval<Value>;
type Bracket = for<'w> fn(&mut Elaborator<'w>, &Env, &Axes, Span) -> Eval<Value>;
type Fill = for<'w> fn(&mut Elaborator<'w>, &[Axis], &Args, Span) -> Eval<Tensor>;

/// A function of the language.
pub struct Builtin {
    pub name: &'static str,
    /// How it is written, and what it gives.
    pub doc: &'static str,
    pub(super) run: Run,
    /// For what is complete with its brackets: `size[t]`, `index[t]`.
    pub(super) bracket: Option<Bracket>,
    /// For what may wait for axes: `zeros()` as an initial value.
    pub(super) fill: Option<Fill>,
    /// For constants.
    pub(super) value: Option<f64>,
}

/// One call of a function of the language.
pub(super) struct Call<'c> {
    /// The caller's scope.
    pub(super) env: &'c Env,
    pub(super) given: Option<Given>,
    pub(super) args: Args,
    pub(super) span: Span,
    pub(super) name: &'static str,
}

macro_rules! builtins {
    ($($name:literal, $doc:literal, $run:expr $(, bracket $bracket:expr)? $(, fill $fill:expr)?;)*) => {
        /// Every function of the language.
        pub static BUILTINS: &[Builtin] = &[$(Builtin {
            name: $name,
            doc: $doc,
            run: $run,
            bracket: { let bracket: Option<Bracket> = None; $(let bracket: Option<Bracket> = { let _ = bracket; Some($bracket) };)? bracket },
            fill: { let fill: Option<Fill> = None; $(let fill: Option<Fill> = { let _ = fill; Some($fill) };)? fill },
            value: None,
        },)*];
    };
}

builtins! {
    "exp", "`exp(x)`: e to the power x", math::unary;
    "log", "`log(x)`: the natural logarithm", math::unary;
    "tanh", "`tanh(x)`", math::unary;
    "erf", "`erf(x)`: the error function", math::unary;
    "sin", "`sin(x)`, in radians", math::unary;
    "cos", "`cos(x)`, in radians", math::unary;
    "sqrt", "`sqrt(x)`", math::unary;
    "rsqrt", "`rsqrt(x)`: 1 / sqrt(x)", math::unary;
    "floor", "`floor(x)`: rounded down, still a float", math::unary;
    "ceil", "`ceil(x)`: rounded up, still a float", math::unary;
    "abs", "`abs(x)`", math::abs;
    "int", "`int(x)`: rounded toward zero, or 0 and 1", math::to_int;
    "float", "`float(x)`", math::to_float;
    "div", "`div(a, b)`: whole division, rounded down", math::div;
    "clamp", "`clamp(x, low, high)`", math::clamp;
    "where", "`where(condition, a, b)`: a where the condition holds, else b", math::choose;
    "detach", "`detach(x)`: x, through which no gradient flows", math::detach;
    "is_map", "`is_map(w)`: whether a weight has an arrow", math::is_map;
    "len", "`len(list)`, `len(record)`", math::len;
    "has", "`has(record, \"name\")`: whether a record has a field of that name", math::has;
    "sum", "`sum[over](x, where: mask)`; `sum(x)` takes all axes", reduce::sum;
    "mean", "`mean[over](x, where: mask)`; of nothing it is 0", reduce::mean;
    "max", "`max[over](x)`, or `max(a, b)` element by element", reduce::max;
    "min", "`min[over](x)`, or `min(a, b)` element by element", reduce::min;
    "any", "`any[over](mask)`: true where it holds somewhere", reduce::any;
    "all", "`all[over](mask)`: true where it holds everywhere", reduce::all;
    "argmax", "`argmax[over](x)`: the position of the largest, ties to the lower", reduce::argmax;
    "argmin", "`argmin[over](x)`: the position of the smallest, ties to the lower", reduce::argmax;
    "dot", "`dot[over](a, b)`: the sum of products; all other axes are kept, `dot[]` is the outer product", reduce::dot;
    "cumsum", "`cumsum[t](x, reverse: false)`: running sums, the element itself included", reduce::cumsum;
    "top", "`top[over as slot: k](x)`: (values, positions) of the k largest, best first", reduce::top;
    "sort", "`sort[t](x, descending: false)`", reduce::sort;
    "sample", "`sample[over](logits)`: a position, drawn by softmax of the logits", make::sample;
    "reverse", "`reverse[t](x)`", shape::reverse;
    "shift", "`shift[t](x, by: 1, fill: 0)`: moved to higher positions", shape::shift;
    "concat", "`concat[t](a, b)`, `concat[cell as place](a, b)`: one after another", shape::concat;
    "stack", "`stack[half](a, b)`: side by side, along a new axis", shape::stack;
    "parts", "`parts[gate](z)`: a list with one tensor for each position", shape::parts;
    "expand", "`expand[sample: 8](x)`: the same along a new axis", shape::expand;
    "window", "`window[t as (t, tap: 3)](x, stride: 1, pad: 1, fill: 0)`: sliding windows", shape::window;
    "put", "`put[t = spot](x, y)`: x with y put there", shape::put;
    "add", "`add[t = spot](x, y)`: x with y added there", shape::add;
    "scan", "`scan[t](start, inputs…, reverse: false) fn(carry, x…) = next`: every carry", shape::scan;
    "fold", "`fold[step: 8](start, inputs…, until: fn) fn(carry, x…) = next`: the last carry", shape::fold;
    "map", "`map[row](inputs…) fn(row…) = …`: each position on its own", shape::map;
    "index", "`index[t]`: the positions along an axis", make::only_bracket, bracket |elab, env, axes, span| elab.index_of(env, axes, span);
    "size", "`size[t]`: the size of an axis, `size[..from]` the product of several", make::only_bracket, bracket |elab, env, axes, span| elab.size_of_axes(env, axes, span);
    "zeros", "`zeros[batch, t]()`", make::zeros, fill make::fill_zeros;
    "ones", "`ones[batch, t]()`", make::ones, fill make::fill_ones;
    "uniform", "`uniform[batch, t](low: 0, high: 1)`: a draw in [low, high) for each position", make::uniform, fill make::fill_uniform;
    "grad", "`grad(y, of: x)`: the gradient of a number, of a tensor or of a model", make::only_bracket;
    "weights", "`weights(model)`: a record of its weights by path", make::weights;
    "watch", "`watch(model, \"blocks.*\")(x)`: (result, what the layers at a path give)", crate::check::watch::watch;
    "decoder", "`decoder[t](model, room: n)`: the model a few positions at a time; `d.read(d.empty, ids)` gives (memory, result)", crate::check::decoder::decoder;
    "json", "`json(path)`: the value of a JSON file", crate::check::json::json;
    "get", "`get(record, \"key\", default)`: the default where the key is missing or `none`; keys of records in it after dots", crate::check::json::get;
    "ending", "`ending(record, \"a.b.c\", default)`: the value whose key the name is, or ends in after a dot", crate::check::json::ending;
    "refuse", "`refuse(\"why\")`: ends the check with this message", crate::check::json::refuse;
    "load", "`load(model, dir)`: the model with the weights of a folder of safetensors files; of an adapter, where PEFT has saved one", crate::check::weights::load;
}

static CONSTANTS: &[Builtin] = &[
    Builtin {
        name: "pi",
        doc: "3.14159…",
        run: make::only_bracket,
        bracket: None,
        fill: None,
        value: Some(std::f64::consts::PI),
    },
    Builtin {
        name: "inf",
        doc: "infinity",
        run: make::only_bracket,
        bracket: None,
        fill: None,
        value: Some(f64::INFINITY),
    },
];

/// What is of the language, but comes later.
const LATER: &[&str] = &["merge", "generate"];

pub(super) fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.iter().chain(CONSTANTS).find(|builtin| builtin.name == name)
}

pub(super) fn is_later(name: &str) -> bool {
    LATER.contains(&name)
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    BUILTINS.iter().chain(CONSTANTS).map(|builtin| builtin.name)
}

impl Elaborator<'_> {
    /// The arguments by name: positional ones first; `optional` may be left out.
    pub(super) fn take_args<const N: usize>(
        &mut self,
        call: &mut Call<'_>,
        names: [&str; N],
        n_needed: usize,
    ) -> Eval<[Option<(Value, Span)>; N]> {
        let mut out: [Option<(Value, Span)>; N] = std::array::from_fn(|_| None);
        let args = std::mem::take(&mut call.args);
        let n_given = args.positional.len();
        for (i, (value, span)) in args.positional.into_iter().enumerate() {
            match out.get_mut(i) {
                Some(slot) => *slot = Some((value, span)),
                None => {
                    let message = format!(
                        "`{}` takes at most {}, and {n_given} are given",
                        call.name,
                        super::call::count(N, "argument")
                    );
                    return Err(self.error(Code::E0208, message, span, "one too many"));
                }
            }
        }
        for (name, value, span) in args.named {
            match names.iter().position(|known| **known == *name) {
                Some(at) if out[at].is_none() => out[at] = Some((value, span)),
                Some(_) => return Err(self.error(Code::E0208, format!("`{name}` is given twice"), span, "again here")),
                None => {
                    let diagnostic =
                        Diagnostic::error(Code::E0208, format!("`{}` has no parameter `{name}`", call.name))
                            .label(span, "not known");
                    return Err(self.fail(match nearest(&name, names) {
                        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
                        None => diagnostic.help(format!("it takes {}", names.join(", "))),
                    }));
                }
            }
        }
        if let Some(missing) = (0..n_needed).find(|at| out[*at].is_none()) {
            let doc = find(call.name).map_or("", |builtin| builtin.doc);
            let message = format!("`{}` is not given its `{}`", call.name, names[missing]);
            return Err(self.error_help(Code::E0208, message, call.span, "this call", doc));
        }
        Ok(out)
    }

    /// Brackets where there are none to give.
    pub(super) fn no_axes(&mut self, call: &Call<'_>) -> Eval<()> {
        match &call.given {
            None => Ok(()),
            Some(given) => {
                let message = format!("`{}` takes no axes", call.name);
                Err(self.error(Code::E0217, message, given.axes.span, "these brackets"))
            }
        }
    }

    /// A tensor argument; numbers become tensors.
    pub(super) fn tensor_arg(&mut self, arg: &Option<(Value, Span)>, call: &Call<'_>) -> Eval<Tensor> {
        let Some((value, span)) = arg else { return Err(super::value::Stop) };
        let operand = self.operand(value, *span, &format!("`{}`", call.name))?;
        let tensor = self.tensor_of(&operand, *span)?;
        Ok(Tensor { arrow: None, ..tensor })
    }

    /// The one axis in the brackets of a call such as `cumsum[t](x)`, which the tensor must have.
    pub(super) fn one_axis(&mut self, call: &Call<'_>, tensor: &Tensor) -> Eval<Axis> {
        let Some(given) = &call.given else {
            let doc = find(call.name).map_or("", |builtin| builtin.doc);
            return Err(self.error_help(
                Code::E0208,
                format!("`{}` is not given its axis", call.name),
                call.span,
                "this call",
                doc,
            ));
        };
        let given = given.clone();
        let names = self.reduced(&given.env, &given.axes, tensor, call.name)?;
        match names.as_slice() {
            [name] => match self.axes(tensor).get(name).cloned() {
                Some(axis) => Ok(axis),
                None => Err(super::value::Stop),
            },
            _ => Err(self.error(
                Code::E0208,
                format!("`{}` takes one axis", call.name),
                given.axes.span,
                format!("{} axes", names.len()),
            )),
        }
    }

    /// The axes that a reduction names; without brackets all but hidden ones.
    pub(super) fn over(&mut self, call: &Call<'_>, tensor: &Tensor) -> Eval<Vec<Name>> {
        match call.given.clone() {
            Some(given) => self.reduced(&given.env, &given.axes, tensor, call.name),
            None => Ok(self.visible(tensor).into_iter().map(|axis| axis.name).collect()),
        }
    }
}
