//! Values of the evaluator: what an expression of a recipe can be at compile time, tensors included.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use mdl_graph::{Axis, Name, NodeId};

use super::builtins::Builtin;
use crate::syntax::ast::{self, Span, Unit};

/// "A diagnostic has been pushed": whoever gets it goes on with what does not depend on the value.
#[derive(Clone, Copy, Debug)]
pub struct Stop;

pub type Eval<T> = Result<T, Stop>;

#[derive(Clone)]
pub enum Value {
    /// What a mistake leaves behind; using it is silent.
    Error,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    /// `16GiB`, `250ms`, `4M tokens`; percentages too, which are used as fractions wherever a number is wanted.
    Quantity {
        value: f64,
        unit: Unit,
    },
    /// An axis named in an expression: its size wherever a number is wanted.
    Axis(Axis),
    /// `0..4`, `..128`
    Range {
        start: Option<i64>,
        end: Option<i64>,
    },
    List(Rc<Vec<Value>>),
    Tuple(Rc<Vec<Value>>),
    Record(Rc<Vec<(Rc<str>, Value)>>),
    Tensor(Tensor),
    /// A weight or state, by its place in the table; a name that holds one gives its tensor.
    Stored(StoredId),
    Function(Rc<Function>),
    /// `Linear`, `Linear[a -> b]`: a layer that is not built yet.
    Maker(Rc<LayerMaker>),
    /// A built layer.
    Layer(Layer),
    /// `adamw(lr: 1e-3)`
    Optimizer(Rc<Optimizer>),
    /// A `names` block: what files call the weights of a layer.
    Names(Rc<ast::Names>),
    /// `decoder[t](model)`
    Decoder(Rc<super::decoder::Decoder>),
    /// `value at "pattern"`
    At {
        value: Rc<Value>,
        pattern: Rc<str>,
    },
    /// A word that only stages understand (`text`, `chars`, `every`), and what calling it gives.
    Host(Rc<str>),
    Made(Rc<Made>),
}

/// A tensor of the graph under construction. Its axes, in the graph, are the names of the frame that holds it.
#[derive(Clone)]
pub struct Tensor {
    /// Which graph of the stack of loop bodies `node` belongs to.
    pub(super) level: u32,
    pub(super) node: NodeId,
    /// Only weights that were not touched yet have one: `w(x)`, `is_map(w)`.
    pub(super) arrow: Option<Rc<Arrow>>,
}

/// The two sides of a weight: what an argument calls the axis, and what the weight does (`hidden`, `hidden'`).
#[derive(Clone)]
pub struct Arrow {
    pub from: Vec<(Name, Name)>,
    pub to: Vec<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StoredId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredKind {
    Weight,
    State,
}

/// A weight or a state of a layer, as declared.
pub struct Stored {
    pub kind: StoredKind,
    /// The model, or objective, that it was built for: the name of the `model` item.
    pub root: String,
    /// `blocks.attn.q.w`
    pub path: String,
    /// The axes of copies, outermost first, under their names in graphs.
    pub stack: Vec<Axis>,
    /// The declared axes in order, under their names in graphs.
    pub axes: Vec<Axis>,
    /// The sides of the arrow, under the same names; both empty without one.
    pub from: Vec<Name>,
    pub to: Vec<Name>,
    pub span: Span,
    /// Where its value comes from when no initializer makes it.
    pub origin: Option<Rc<crate::spec::Origin>>,
    /// What the file calls it that it was loaded from.
    pub(super) called: Option<Rc<super::saved::Called>>,
    /// The names of `axes` inside its layer.
    pub(super) local: Vec<Name>,
    pub(super) arrow: Option<Rc<Arrow>>,
    pub(super) copies: Vec<Rc<Copies>>,
    pub(super) init: ast::Expr,
    pub(super) env: Env,
    /// The frame inside which it was declared: path of the layer for messages and draws.
    pub(super) dtype: mdl_graph::DType,
}

impl Stored {
    pub fn dtype(&self) -> mdl_graph::DType {
        self.dtype
    }

    /// Whether it has an arrow.
    pub fn is_map(&self) -> bool {
        self.arrow.is_some()
    }
}

/// One `repeat[layer]` or `each[expert]` that was built.
pub struct Copies {
    pub id: u32,
    pub kind: ast::CopiesKind,
    /// Its axis, as the builder calls it.
    pub axis: Axis,
    /// Its axis in graphs: the same name, unless a surrounding one is called so.
    pub graph: Axis,
}

/// A built layer, seen from a frame.
#[derive(Clone)]
pub struct Layer {
    pub(super) data: Rc<LayerData>,
    /// Header axes: the name inside, and the name in the frame that looks at the layer.
    pub(super) outer: Rc<Vec<(Name, Name)>>,
    /// The name that inner names get when they come out through `base: Layer`; see `Layer::seen_as`.
    pub(super) gather: Option<Rc<GatherCopies>>,
}

/// `experts[expert = choice]`: which copies, by an integer tensor.
pub struct GatherCopies {
    pub(super) copies: Rc<Copies>,
    pub(super) index: Tensor,
}

pub enum LayerKind {
    Plain,
    Copies(Rc<Copies>, Layer),
}

pub struct LayerData {
    pub id: u32,
    pub kind: LayerKind,
    pub code: Option<Rc<LayerCode>>,
    pub root: String,
    pub path: String,
    /// The path with the copies on the way.
    pub steps: Vec<super::watch::Step>,
    /// Header entries in order: their text, whether a pack, and the names inside.
    pub(super) header: Vec<HeaderEntry>,
    /// The scope after all members: what methods see.
    pub(super) env: Env,
    pub(super) members: Vec<(Rc<str>, Value)>,
    /// Weights and states of this layer and of all that it built.
    pub(super) stored: Vec<StoredId>,
    /// Of an adapter: the layer whose place it takes, and how many models were being built around it.
    pub(super) adapts: Option<(Layer, usize)>,
}

#[derive(Clone)]
pub struct HeaderEntry {
    pub text: String,
    pub is_pack: bool,
    pub locals: Vec<Name>,
}

/// `layer X` of a file, ready for use.
pub struct LayerCode {
    pub ast: ast::Layer,
    pub methods: Vec<Rc<ast::FnDef>>,
    pub file: usize,
    pub mentions: Rc<BTreeSet<String>>,
}

/// A layer that is not built yet.
pub struct LayerMaker {
    pub(super) what: MakerKind,
    /// The axes in brackets, in the frame that wrote them.
    pub(super) given: Option<Given>,
}

pub enum MakerKind {
    Code(Rc<LayerCode>),
    /// `Lora(_, rank: 16)`: arguments, some of them left open.
    Partial(Rc<LayerCode>, Args),
}

/// Axes in brackets and the scope that they are read in.
#[derive(Clone)]
pub struct Given {
    pub(super) axes: Rc<ast::Axes>,
    pub(super) env: Env,
}

/// Names with their values.
pub type Vars = Vec<(Rc<str>, Value)>;

pub struct Function {
    pub(super) kind: FunctionKind,
    pub(super) given: Option<Given>,
}

#[derive(Clone)]
pub enum FunctionKind {
    /// `fn` of a file. With `first`, its first list of two has been given.
    Def {
        code: Rc<FnCode>,
        first: Option<Rc<Vars>>,
    },
    /// A function of a layer.
    Method {
        layer: Layer,
        def: Rc<ast::FnDef>,
        /// As of `Def`.
        first: Option<Rc<Vars>>,
    },
    /// Copies of a layer, with axes given for the call.
    LayerCall(Layer),
    Lambda {
        params: Rc<Vec<ast::Param>>,
        body: Rc<ast::Expr>,
        env: Env,
    },
    Builtin(&'static Builtin),
    /// `f(_, 2)`
    Partial {
        callee: Rc<Value>,
        args: Args,
    },
    /// A function with a header, called without its axes: waits for them.
    Waiting {
        callee: Rc<Value>,
        args: Args,
    },
    /// A number where a function is expected: a constant schedule.
    Constant(Rc<Value>),
    /// `watch(model, "blocks.*")`
    Watch(Layer, Rc<str>),
    /// `d.read`, or `d.keep`
    Decoder {
        decoder: Rc<super::decoder::Decoder>,
        keeps: bool,
    },
    /// `adamw`, before it has its parameters.
    Optimizer(Rc<OptimizerCode>),
    /// `inner.step` of an optimizer.
    OptimizerMethod(Rc<Optimizer>, Rc<ast::FnDef>),
}

pub struct FnCode {
    pub def: Rc<ast::FnDef>,
    pub file: usize,
    pub mentions: Rc<BTreeSet<String>>,
}

pub struct OptimizerCode {
    pub ast: ast::Optimizer,
    pub methods: Vec<Rc<ast::FnDef>>,
    pub file: usize,
    pub mentions: Rc<BTreeSet<String>>,
}

/// An optimizer with its parameters.
pub struct Optimizer {
    pub code: Rc<OptimizerCode>,
    pub(super) env: Env,
    /// The call that made it.
    pub made: Span,
}

/// `text("plays.txt")`, `every(250, on: plays.val)`: a word of a stage with its arguments.
pub struct Made {
    pub name: Rc<str>,
    pub args: Args,
    pub span: Span,
}

/// Evaluated arguments.
#[derive(Clone, Default)]
pub struct Args {
    pub positional: Vec<(Value, Span)>,
    pub named: Vec<(Rc<str>, Value, Span)>,
}

impl Args {
    pub fn of(values: impl IntoIterator<Item = (Value, Span)>) -> Args {
        Args { positional: values.into_iter().collect(), named: Vec::new() }
    }

    pub fn named(&self, name: &str) -> Option<&(Rc<str>, Value, Span)> {
        self.named.iter().find(|(known, ..)| &**known == name)
    }

    pub(super) fn has_hole(&self) -> bool {
        self.positional.iter().any(|(value, _)| value.is_hole())
            || self.named.iter().any(|(_, value, _)| value.is_hole())
    }
}

/// Variables, newest first, and the frame that they live in. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    pub(super) vars: Option<Rc<Var>>,
    pub(super) frame: Rc<Frame>,
}

pub struct Var {
    pub(super) name: Rc<str>,
    pub(super) value: Value,
    pub(super) next: Option<Rc<Var>>,
}

/// One call of a function or a layer, or the outer level of a file: where axis names have meaning.
pub struct Frame {
    pub(super) file: usize,
    /// For messages: `Attention.call`.
    pub(super) label: String,
    /// The sizes of axes as declared or passed.
    pub(super) axes: RefCell<BTreeMap<Name, u64>>,
    /// The names inside of each pack.
    pub(super) packs: RefCell<BTreeMap<String, Vec<Name>>>,
    /// What came in through `..`.
    pub(super) rest: RefCell<Vec<Axis>>,
    /// True when a parameter without a type lets names in: then any name may be said.
    pub(super) open: Cell<bool>,
    /// Axis names that the text of the function says.
    pub(super) mentions: Rc<BTreeSet<String>>,
    /// The layer whose function this is; in its own names.
    pub(super) this: RefCell<Option<Layer>>,
    /// Axes of loops around the current place: no tensor from outside may have them.
    pub(super) dead: RefCell<Vec<(Name, u32)>>,
    pub(super) training: bool,
    /// True for the outer level of a file.
    pub(super) is_file: bool,
}

impl Env {
    pub(super) fn with(&self, name: impl Into<Rc<str>>, value: Value) -> Env {
        let next = self.vars.clone();
        Env { vars: Some(Rc::new(Var { name: name.into(), value, next })), frame: self.frame.clone() }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let mut at = self.vars.as_ref();
        while let Some(var) = at {
            if &*var.name == name {
                return Some(&var.value);
            }
            at = var.next.as_ref();
        }
        None
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = self.vars.as_ref();
        while let Some(var) = at {
            names.push(var.name.to_string());
            at = var.next.as_ref();
        }
        names
    }
}

impl Value {
    pub fn str(text: &str) -> Value {
        Value::Str(Rc::from(text))
    }

    pub fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(items))
    }

    pub fn tuple(items: Vec<Value>) -> Value {
        Value::Tuple(Rc::new(items))
    }

    pub fn record<K: Into<Rc<str>>>(fields: impl IntoIterator<Item = (K, Value)>) -> Value {
        Value::Record(Rc::new(fields.into_iter().map(|(name, value)| (name.into(), value)).collect()))
    }

    pub fn function(kind: FunctionKind) -> Value {
        Value::Function(Rc::new(Function { kind, given: None }))
    }

    pub fn field(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Record(fields) => fields.iter().find(|(known, _)| &**known == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(super) fn is_hole(&self) -> bool {
        matches!(self, Value::Host(word) if &**word == "_")
    }

    /// As a whole number, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(*value),
            Value::Axis(axis) => i64::try_from(axis.size).ok(),
            Value::Quantity { value, unit: Unit::Count(_) | Unit::Bytes } if value.fract() == 0.0 => {
                Some(*value as i64)
            }
            _ => None,
        }
    }

    /// As a number, if it is one.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            Value::Axis(axis) => Some(axis.size as f64),
            Value::Quantity { value, unit: Unit::Percent | Unit::Count(_) } => Some(*value),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// What it is, for messages: `an Int`, `a tensor`.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Error => "an error",
            Value::None => "none",
            Value::Bool(_) => "a Bool",
            Value::Int(_) => "an Int",
            Value::Float(_) => "a Float",
            Value::Str(_) => "a Str",
            Value::Quantity { unit: Unit::Percent, .. } => "a percentage",
            Value::Quantity { unit: Unit::Bytes, .. } => "a number of bytes",
            Value::Quantity { unit: Unit::Seconds, .. } => "a duration",
            Value::Quantity { unit: Unit::Count(_), .. } => "a count",
            Value::Axis(_) => "an axis",
            Value::Range { .. } => "a range",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Record(_) => "a record",
            Value::Tensor(_) | Value::Stored(_) => "a tensor",
            Value::Function(_) => "a function",
            Value::Maker(_) => "a layer that is not built yet",
            Value::Layer(_) => "a layer",
            Value::Optimizer(_) => "an optimizer",
            Value::Names(_) => "a `names` block",
            Value::Decoder(_) => "a decoder",
            Value::At { .. } => "a selection",
            Value::Host(_) | Value::Made(_) => "a word of stages",
        }
    }
}
