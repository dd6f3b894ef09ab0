//! The checker: an evaluator that turns a recipe's expressions into compile-time values and [`Graph`](mdl_graph::Graph)s.
//!
//! Everything is monomorphic once layers are built and functions are called, so checking *is* evaluating: numbers, lists,
//! layers and functions are worked out here, and an operation on a tensor adds a node to the graph under construction.
//! Mistakes are pushed as diagnostics; `Err(Stop)` only says "already reported", and `Value::Error` keeps it from being
//! reported twice.
//!
//! In: parsed files ([`Elaborator::load`]) and what the caller defines ([`Elaborator::define`]). Out: [`Value`]s, the
//! table of weights, and graphs. Deliberately absent: what the fields of stages mean (`stage/`), reading data, devices.
//!
//! # How to use it
//!
//! ```text
//! let mut elab = Elaborator::new(sources, world);
//! let root = elab.load_root(file_id);                      // parses, resolves imports; errors become diagnostics
//! let env = elab.file_env(root);                           // the scope of the recipe file
//! elab.define(root, "plays", record);                      // a name that stages make: wins over items of the same name
//! let value = elab.eval(&env, &expr)?;                     // any expression; `Err(Stop)`: a diagnostic was pushed
//! let value = elab.call(&callee, args, span)?;             // `Args::of([(value, span)…])`
//! ```
//!
//! 1. *A model and its weights.* `let model = elab.build_root("gpt", &env, &expr)?` evaluates an expression under a root
//!    name (a `model gpt = …` item does so by itself, root `gpt`). `elab.stored()` lists weights and layer states in
//!    order of declaration, [`Stored`]: `path`, `stack` (the axes of copies, outermost first), `axes` (declared order),
//!    `from`/`to` (arrow), `kind`, `root`. `elab.stored_of(&model)` gives the ids of those that a model uses.
//!    `elab.set_trained(["gpt"])` says which roots train (`training` is true inside them) and are named without their
//!    root in graphs; inputs of other roots are named `root:path`.
//! 2. *An objective.* `elab.begin()` starts a graph. `elab.input("ids", InputKind::Batch, ty)` gives tensors for the record
//!    `Value::record([("ids", tensor)…])`; then `elab.call(&objective, [model, batch])`. Afterwards `elab.take_losses()` are
//!    the `loss name = …` of layers (name, f32[] tensor), already summed over copies, to be added to the loss and reported;
//!    `elab.take_next()` the new values of layer states, `(StoredId, tensor)`, in graph names. `elab.grads(loss, &ids)` adds
//!    the `Grad` marker for the inputs of stored ids. `elab.output("loss", &value, span)`, `elab.output_next("blocks.attn.q.w", &value, span)`, and
//!    `elab.finish() -> Graph` (dead nodes dropped, verified).
//! 3. *An optimizer.* `elab.optimizer_states(&optimizer, weight_id)` lists what it keeps for a weight (name, axes);
//!    `elab.optimizer_step(&optimizer, weight_id, [&w, &g, &n], &states, span) -> (w, states)` runs `step` for one weight, the
//!    axes of copies hidden; `n` is an f32[] tensor that counts from 1. `elab.average_step` does the same for `average`. `elab.optimizer_takes(&optimizer, weight_id)`: whether its `for [..]` accepts the weight.
//! 4. *Initial values.* `elab.begin(); elab.init_stored(id)?` gives the tensor of a weight's or state's first value;
//!    `elab.init_optimizer_states(&optimizer, weight_id, &w, span)` those of an optimizer's.
//!
//! # Initializers
//!
//! A function whose header axes were not given waits for them: `normal(std: 0.02)` is a *maker*. A weight fills the
//! header with its own axes: one pack or `..over` takes them all, `[..from -> ..to]` the two sides of the weight's arrow (a
//! weight without one has all axes on the right). Draws include the axes of copies (`repeat`, `each`), sizes do not.
//! `f(like: x)` fills a maker with the axes of `x`, of each member if `x` is a record.
//!
//! # Names
//!
//! Inside a frame (one call of a function or layer) a tensor's axes in the graph *are* the frame's names; a call adds
//! `Rename` nodes on its way in and out. A member of a pack `..from` given `width` is called `from.width` inside. What
//! comes in through `..` keeps its name unless the callee mentions it, then it becomes `name~1` (no user can write `~`).
//! Axes of `map` and `each` are *hidden*, `row~2`: reductions over everything leave them alone.

mod adapt;
mod arith;
mod axes;
mod bracket;
mod builtins;
mod call;
mod copies;
mod cross;
mod crossing;
mod decoder;
mod draw;
mod eval;
mod fill;
mod fold;
mod graphs;
mod json;
mod layer;
mod load;
mod loops;
mod names;
mod naming;
mod optimizers;
mod positions;
mod rebuild;
mod saved;
mod scope;
mod states;
mod stored;
mod train;
mod tree;
mod types;
pub mod value;
mod watch;
mod weights;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use mdl_graph::{Axis, Name, Phase};

pub use adapt::{Adapter, Builder, Places};
pub use builtins::{BUILTINS, Builtin};
pub use fold::Folded;
pub use optimizers::OptimizerState;
pub use rebuild::Rebuilt;
pub use saved::{Saved, SavedTensor};
pub use value::{
    Args, Env, Eval, FunctionKind, Layer, Made, Optimizer, OptimizerCode, Stop, Stored, StoredId, StoredKind, Tensor,
    Value,
};
pub use weights::LOAD;
pub use world::{FileTensor, FileTensors, Imported, NoWorld, Problem, World};

use crate::diag::{Diagnostic, Sources};
use crate::syntax::ast::{FnDef, Span};

/// See the documentation of this module.
pub struct Elaborator<'w> {
    world: &'w dyn World,
    pub sources: Sources,
    pub diagnostics: Vec<Diagnostic>,
    files: Vec<load::File>,
    prelude: Option<usize>,
    importing: Vec<String>,
    /// Values of names of files: what stages defined, and items that were evaluated.
    defined: HashMap<(usize, String), Value>,
    arg_values: HashMap<(usize, String), Rc<crate::syntax::ast::Expr>>,
    evaluating: Vec<(usize, String)>,
    /// What folders of weights hold, as far as they were asked for; `None` when that was a mistake.
    file_tensors: HashMap<String, Option<Option<Rc<FileTensors>>>>,
    jsons: json::Jsons,

    // What is being evaluated.
    calls: Vec<Span>,
    crossings: Vec<crossing::Crossing>,
    running: Vec<Rc<FnDef>>,
    in_methods: Vec<(u32, String)>,
    building: Vec<Rc<value::LayerCode>>,
    /// Axes that the type of the `let` around declares.
    declared: Vec<Name>,
    /// Axes that reductions over everything leave alone.
    hidden: Vec<Axis>,
    n_mapped: usize,

    // What is built.
    stored: Vec<Stored>,
    root: String,
    path: Vec<String>,
    /// Where copies begin: how long the path was, and which they are.
    copied: Vec<(usize, Rc<value::Copies>)>,
    stack: Vec<Rc<value::Copies>>,
    trained: Vec<String>,
    /// What builds the model of a trained stage, by the stage's name.
    builders: HashMap<(usize, String), Rc<Builder>>,
    /// The model of the stage that is looked at.
    rebuilt: Option<Rebuilt>,
    /// The models that are being built with adapters, each inside of the one before it.
    adapting: Vec<adapt::Adapting>,
    brought: Vec<adapt::Brought>,

    // The graph under construction.
    levels: Vec<graphs::Level>,
    inputs: HashMap<String, Tensor>,
    phase: Phase,
    /// Fields of a batch whose values are below a number.
    bounds: HashMap<String, u64>,
    scope: Name,
    overrides: HashMap<StoredId, Tensor>,
    next: BTreeMap<StoredId, Tensor>,
    scopes: Vec<copies::CopiesScope>,
    losses: Vec<states::Loss>,
    watches: Vec<watch::Watch>,
    found: Vec<watch::Found>,
    /// The states that each open loop's body changes, in the order of what it stacks.
    loop_states: Vec<Vec<StoredId>>,
    /// The optimizer that runs, after those that called it.
    optimizing: Vec<optimizers::Optimizing>,
    places: HashMap<String, u32>,
    place_of: String,

    /// Where the stack was when this began: evaluation stops before it ends.
    stack_base: usize,

    n_fresh: u32,
    n_levels: u32,
    n_copies: u32,
    n_layers: u32,
}

impl<'w> Elaborator<'w> {
    pub fn new(sources: Sources, world: &'w dyn World) -> Elaborator<'w> {
        let mut elab = Elaborator {
            world,
            sources,
            diagnostics: Vec::new(),
            files: Vec::new(),
            prelude: None,
            importing: Vec::new(),
            defined: HashMap::new(),
            arg_values: HashMap::new(),
            evaluating: Vec::new(),
            file_tensors: HashMap::new(),
            jsons: json::Jsons::default(),
            calls: Vec::new(),
            crossings: Vec::new(),
            running: Vec::new(),
            in_methods: Vec::new(),
            building: Vec::new(),
            declared: Vec::new(),
            hidden: Vec::new(),
            n_mapped: 0,
            stored: Vec::new(),
            root: String::new(),
            path: Vec::new(),
            stack: Vec::new(),
            trained: Vec::new(),
            builders: HashMap::new(),
            rebuilt: None,
            adapting: Vec::new(),
            brought: Vec::new(),
            levels: Vec::new(),
            inputs: HashMap::new(),
            phase: Phase::Forward,
            bounds: HashMap::new(),
            scope: Name::from(""),
            overrides: HashMap::new(),
            next: BTreeMap::new(),
            scopes: Vec::new(),
            losses: Vec::new(),
            watches: Vec::new(),
            found: Vec::new(),
            copied: Vec::new(),
            loop_states: Vec::new(),
            optimizing: Vec::new(),
            places: HashMap::new(),
            place_of: String::new(),
            stack_base: 0,
            n_fresh: 0,
            n_levels: 0,
            n_copies: 0,
            n_layers: 0,
        };
        elab.begin();
        elab.load_prelude();
        elab
    }

    /// Reports a mistake that the caller found; the diagnostic gets the call that led there, if it lies in the library.
    pub fn report(&mut self, diagnostic: Diagnostic) {
        self.push(diagnostic);
    }
}
