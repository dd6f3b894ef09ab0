//! `decoder[t](model, room: n)`: the derived decoder of a model as a value.
//!
//! Its memory is a record of tensors, so that loops carry it: how many positions have been read, and what
//! [`decode`](crate::decode) keeps of them. `read(memory, ids)` gives the memory after more positions and what the model gives at
//! them; `keep(memory, n)` goes back to the first `n`. Sequences may be at positions of their own. What a read computes is the graph
//! that is derived from the model's own, put in the place of the call.

use std::rc::Rc;

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Name, NodeId, Role, Type};

use super::Elaborator;
use super::builtins::Call;
use super::graphs::{Feed, Level};
use super::scope::plain;
use super::tree::{Tree, unflatten};
use super::value::{Args, Env, Eval, FunctionKind, Given, Stop, Tensor, Value};
use crate::decode::{POS, Rows, decode_rows};
use crate::diag::{Code, Diagnostic};
use crate::syntax::ast::Span;

/// The number of positions that have been read.
const READ: &str = "read";
/// What is kept of positions, and what a recurrence has reached, which cannot be taken back.
const KEPT: &str = "kept";
const REACHED: &str = "reached";
/// The model's argument in its graph.
const IDS: &str = "ids";

/// A model to be read a few positions at a time.
pub struct Decoder {
    model: Value,
    axis: Name,
    /// The most positions that a memory holds.
    room: u64,
}

/// The model on a whole sequence, as a graph of its own.
struct Forward {
    graph: Graph,
    /// What its other inputs are, in the graph around.
    given: Vec<NodeId>,
    results: Tree,
}

/// `decoder[t](model, room: n)`
pub(super) fn decoder(elab: &mut Elaborator<'_>, call: &mut Call<'_>) -> Eval<Value> {
    let (axis, _) = elab.loop_axis(call.given.as_ref(), "decoder", &call.args, call.span)?;
    let [model, room] = elab.take_args(call, ["model", "room"], 1)?;
    let Some((model, model_span)) = model else { return Err(Stop) };
    if !matches!(model, Value::Layer(_) | Value::List(_) | Value::Function(_)) {
        let message = format!("`decoder` takes a model, not {}", model.kind());
        return Err(elab.error(Code::E0209, message, model_span, format!("this is {}", model.kind())));
    }
    let room = match room {
        Some((room, span)) => elab.size_of(&room, span, axis.name.as_str())?,
        None => axis.size,
    };
    Ok(Value::Decoder(Rc::new(Decoder { model, axis: axis.name, room })))
}

impl Elaborator<'_> {
    /// `d.empty`, `d.read`, `d.keep`
    pub(super) fn decoder_member(&mut self, decoder: &Rc<Decoder>, name: &str) -> Option<Value> {
        match name {
            "empty" => Some(Value::record::<&str>([])),
            "read" | "keep" => {
                Some(Value::function(FunctionKind::Decoder { decoder: decoder.clone(), keeps: name == "keep" }))
            }
            _ => None,
        }
    }

    pub(super) fn call_decoder(
        &mut self,
        env: &Env,
        decoder: &Decoder,
        keeps: bool,
        given: Option<&Given>,
        args: Args,
        span: Span,
    ) -> Eval<Value> {
        let second = if keeps { "n" } else { IDS };
        let what = if keeps { "keep" } else { "read" };
        let [Some((memory, _)), Some((value, value_span))] =
            [0, 1].map(|at| args.positional.get(at).cloned().filter(|_| args.positional.len() == 2))
        else {
            let message = format!("`{what}` takes a memory and `{second}`");
            let help = "`d.read(d.empty, ids)` gives the memory and what the model gives; `d.keep(memory, n)` a shorter memory";
            return Err(self.error_help(Code::E0208, message, span, "this call", help));
        };
        self.no_more_named(&args, what)?;
        let Value::Record(fields) = &memory else {
            let message = format!("`{what}` takes a memory, not {}", memory.kind());
            let help = "a memory comes from `d.empty` or from an earlier `d.read`";
            return Err(self.error_help(Code::E0209, message, span, format!("this is {}", memory.kind()), help));
        };
        let operand = self.operand(&value, value_span, &format!("`{second}`"))?;
        let value = self.tensor_of(&operand, value_span)?;
        if !self.dtype(&value).is_int() {
            let message = format!("`{second}` of `{what}` is a whole number, not {}", self.dtype(&value));
            return Err(self.error(Code::E0207, message, value_span, "this has another dtype"));
        }
        if keeps {
            return self.keep(fields, &value, span);
        }
        let along = self.read_along(decoder, given, span)?;
        self.read(env, decoder, fields, &value, &along, span)
    }

    /// The axis of what is read: `d.read[t: one](…)`.
    fn read_along(&mut self, decoder: &Decoder, given: Option<&Given>, span: Span) -> Eval<Name> {
        let Some(given) = given else { return Ok(decoder.axis.clone()) };
        let resolved = self.resolve_given(given)?;
        let (_, signature) = self.fill_header(None, Some(&resolved), "read", span)?;
        match signature.as_slice() {
            [(name, axis, _)] if *name == decoder.axis.as_str() => Ok(axis.clone()),
            _ => {
                let message = format!("`read` runs along `{}`", decoder.axis);
                let help = format!("say which axis that is here: `d.read[{}: one](…)`", plain(&decoder.axis));
                Err(self.error_help(Code::E0208, message, given.axes.span, "these axes", help))
            }
        }
    }

    /// `d.keep(memory, n)`
    fn keep(&mut self, memory: &[(Rc<str>, Value)], n: &Tensor, span: Span) -> Eval<Value> {
        if memory.iter().any(|(name, _)| name.starts_with(REACHED)) {
            let message = "the memory of a recurrent model cannot go back";
            let help = "keep the memory of before, and read again from there";
            return Err(self.error_help(Code::E0223, message, span, "taken back here", help));
        }
        let n = Value::Tensor(self.cast(n, DType::I32, span)?);
        let fields = memory.iter().map(|(name, value)| {
            let value = if &**name == READ { n.clone() } else { value.clone() };
            (name.clone(), value)
        });
        Ok(Value::record(fields.collect::<Vec<_>>()))
    }

    /// `d.read(memory, ids)`
    fn read(
        &mut self,
        env: &Env,
        decoder: &Decoder,
        memory: &[(Rc<str>, Value)],
        ids: &Tensor,
        along: &Name,
        span: Span,
    ) -> Eval<Value> {
        let Some(count) = self.axes(ids).size(along) else {
            let has = self.show_axes(&self.axes(ids).clone());
            let message = format!("what is read lacks the axis `{}`", plain(along));
            return Err(self.error(Code::E0203, message, span, format!("it has {has}")));
        };
        if count > decoder.room {
            let message = format!("{count} positions are read, and the decoder has room for {}", decoder.room);
            return Err(self.error_help(
                Code::E0215,
                message,
                span,
                "this many",
                "give it more: `decoder[t](model, room: n)`",
            ));
        }
        let ids = self.rename(ids, &[(along.clone(), decoder.axis.clone())], span)?;
        let ids = self.cast(&ids, DType::I32, span)?;
        let field = |name: &str| memory.iter().find(|(known, _)| **known == *name).map(|(_, value)| value);
        let pos = match field(READ) {
            Some(Value::Tensor(pos)) => pos.clone(),
            _ => self.i32_number(0, span)?,
        };
        let forward = self.forward(env, decoder, &ids, span)?;
        let axis = Axis::new(decoder.axis.clone(), decoder.room);
        let rows = Rows { count, pos: self.axes(&pos).clone(), is_padded: false };
        let derived = match decode_rows(&forward.graph, &axis, &rows) {
            Ok(derived) => derived,
            Err(error) => {
                let message = format!("the model has no decoder along `{}`: {}", plain(&decoder.axis), error.message);
                return Err(self
                    .fail(Diagnostic::error(Code::E0223, message).label(error.span, "here").label(span, "read here")));
            }
        };
        let cache_name = |k: usize| format!("{}{k}", if derived.can_go_back { KEPT } else { REACHED });
        let mut free = forward.given.iter();
        let mut given = Vec::new();
        for input in derived.graph.inputs() {
            let cache = derived.caches.iter().position(|cache| *cache == input.name);
            let tensor = match (input.name.as_str(), cache) {
                (IDS, _) => ids.clone(),
                (POS, _) => pos.clone(),
                (_, Some(k)) => match field(&cache_name(k)) {
                    Some(Value::Tensor(tensor)) => self.as_cache(tensor, &input.ty, span)?,
                    _ if memory.is_empty() => self.zeros(&input.ty, span)?,
                    _ => return Err(self.other_memory(span)),
                },
                (_, None) => {
                    given.push(free.next().copied().unwrap_or(NodeId(0)));
                    continue;
                }
            };
            given.push(self.node(&tensor));
        }
        let nodes = self.top().graph.inline(&derived.graph, &given);
        let count = self.i32_number(count as i64, span)?;
        let read = self.emit(mdl_graph::Op::Add, &[&pos, &count], span)?;
        let mut fields: Vec<(String, Value)> = vec![(READ.to_string(), Value::Tensor(read))];
        let mut results = Vec::new();
        for (output, node) in derived.graph.outputs().iter().zip(nodes) {
            let tensor = self.tensor(node);
            match output.role {
                Role::Value => results.push(self.rename(&tensor, &[(decoder.axis.clone(), along.clone())], span)?),
                Role::Next(_) => fields.push((cache_name(fields.len() - 1), Value::Tensor(tensor))),
            }
        }
        let result = unflatten(&forward.results, &mut results.into_iter());
        Ok(Value::tuple(vec![Value::record(fields), result]))
    }

    /// The model on a sequence as long as the room, in a graph of its own; what it uses of the graphs around becomes an input.
    fn forward(&mut self, env: &Env, decoder: &Decoder, ids: &Tensor, span: Span) -> Eval<Forward> {
        let mut ty = self.ty(ids).clone();
        ty.axes.insert(Axis::new(decoder.axis.clone(), decoder.room));
        self.n_levels += 1;
        let id = self.n_levels;
        self.levels.push(Level::new(id, None));
        let at = self.levels.len() - 1;
        let whole = Tensor { level: id, node: self.feed_as(at, Feed::Carry(0), ty), arrow: None };
        let watches = std::mem::take(&mut self.watches);
        let n_losses = self.losses.len();
        let result = self.call_in(env, &decoder.model, Args::of([(Value::Tensor(whole), span)]), span);
        let result = result.and_then(|result| self.flatten(&result, span));
        self.watches = watches;
        self.losses.truncate(n_losses);
        let (results, tensors) = match result {
            Ok(result) => result,
            Err(stop) => {
                self.levels.pop();
                return Err(stop);
            }
        };
        let nodes: Vec<NodeId> = tensors.iter().map(|tensor| self.node(tensor)).collect();
        let Some(Level { graph: mut body, feeds, .. }) = self.levels.pop() else { return Err(Stop) };
        for (k, node) in nodes.iter().enumerate() {
            body.output_as(format!("{k}"), Role::Value, *node);
        }
        let mut graph = Graph::new();
        let (mut inputs, mut given) = (Vec::new(), Vec::new());
        for (feed, input) in feeds.iter().zip(body.inputs()) {
            inputs.push(match feed {
                Feed::Carry(_) => graph.input(IDS, InputKind::Batch, input.ty.clone()),
                Feed::Scan(node) | Feed::Free(node) => {
                    given.push(*node);
                    graph.input(input.name.clone(), InputKind::Param, input.ty.clone())
                }
            });
        }
        for (k, node) in graph.inline(&body, &inputs).into_iter().enumerate() {
            graph.output_as(format!("{k}"), Role::Value, node);
        }
        Ok(Forward { graph, given, results })
    }

    /// A tensor of a memory as the derived graph takes it.
    fn as_cache(&mut self, tensor: &Tensor, ty: &Type, span: Span) -> Eval<Tensor> {
        let fits = self.dtype(tensor) == ty.dtype
            && self.axes(tensor).iter().all(|axis| ty.axes.size(&axis.name) == Some(axis.size));
        if fits { self.expand(tensor, &ty.axes, span) } else { Err(self.other_memory(span)) }
    }

    fn other_memory(&mut self, span: Span) -> Stop {
        let message = "the memory is that of another decoder, or of other sequences";
        self.error_help(Code::E0209, message, span, "read here", "begin with `d.empty`")
    }

    fn zeros(&mut self, ty: &Type, span: Span) -> Eval<Tensor> {
        let zero = self.number(0.0, ty.dtype, span)?;
        self.expand(&zero, &AxisSet::of(ty.axes.iter().cloned()).unwrap_or_default(), span)
    }
}
