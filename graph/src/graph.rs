//! The arena: nodes in topological order, inputs and outputs with their roles, hash-consing, rebuilding, verifying.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use rustc_hash::{FxBuildHasher, FxHashMap};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{Axis, DType, Name, Op, Scalar, ShapeError, Span, Type, bug, infer, infer_results};

/// A node of a graph; printed `%12`. Arguments always have smaller ids than their users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    pub fn idx(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// A position in [`Graph::inputs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InputId(pub u32);

/// Which part of a training step a node belongs to. Keeps recomputed copies apart from what they copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    #[default]
    Forward,
    Backward,
    Update,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    pub op: Op,
    pub args: SmallVec<[NodeId; 3]>,
    pub ty: Type,
    pub phase: Phase,
    pub span: Span,
    /// The path of the layer that made it, `blocks.attn`; empty outside of layers.
    pub scope: Name,
}

/// What an input holds, and so who fills it and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// A trained weight, named by its path.
    Weight,
    /// What a layer or an optimizer remembers between steps, named by its path.
    State,
    /// A field of the batch.
    Batch,
    /// A number that changes from step to step: `seed`, `step`.
    Scalar,
    /// A parameter of a loop's body.
    Param,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Input {
    pub name: Name,
    pub kind: InputKind,
    pub ty: Type,
}

/// What an output is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A result that the caller reads, by its name: `loss`, `grad_norm`, a metric, logits.
    Value,
    /// The next value of an input (a weight or a state), planned onto the same bytes.
    Next(InputId),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Output {
    pub name: Name,
    pub role: Role,
    pub node: NodeId,
}

/// See the crate's documentation. Equal calls of [`Graph::add`] give equal node ids.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Graph {
    nodes: Vec<Node>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
    /// Nodes by the hash of what makes two of them one; where that place is taken by another, by the next free number. It is kept
    /// small because graphs are copied, inside of loops above all.
    #[serde(skip)]
    seen: FxHashMap<u64, NodeId>,
    /// What `add` gives the nodes it makes.
    #[serde(skip)]
    here: (Phase, Span, Option<Name>),
}

impl PartialEq for Graph {
    fn eq(&self, other: &Graph) -> bool {
        self.nodes == other.nodes && self.inputs == other.inputs && self.outputs == other.outputs
    }
}

impl Eq for Graph {}

impl Hash for Graph {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.hash(state);
        self.inputs.hash(state);
        self.outputs.hash(state);
    }
}

/// A graph that breaks its own rules: the node, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    pub node: NodeId,
    pub message: String,
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.message)
    }
}

impl std::error::Error for VerifyError {}

impl Graph {
    pub fn new() -> Graph {
        Graph::default()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.idx()]
    }

    pub fn op(&self, id: NodeId) -> &Op {
        &self.nodes[id.idx()].op
    }

    pub fn ty(&self, id: NodeId) -> &Type {
        &self.nodes[id.idx()].ty
    }

    pub fn args(&self, id: NodeId) -> &[NodeId] {
        &self.nodes[id.idx()].args
    }

    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The output of this name that is a value.
    pub fn output(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.role == Role::Value && output.name.as_str() == name)
    }

    /// What nodes are given from now on: phase, place and scope.
    pub fn set_here(&mut self, phase: Phase, span: Span, scope: Option<Name>) {
        self.here = (phase, span, scope);
    }

    /// Takes phase, place and scope of the nodes to come from a node, of this graph or of another.
    pub fn set_here_like(&mut self, node: &Node) {
        self.here = (node.phase, node.span, Some(node.scope.clone()));
    }

    pub fn set_phase(&mut self, phase: Phase) {
        self.here.0 = phase;
    }

    /// A new input and its node.
    pub fn input(&mut self, name: impl Into<Name>, kind: InputKind, ty: Type) -> NodeId {
        let id = InputId(self.inputs.len() as u32);
        self.inputs.push(Input { name: name.into(), kind, ty: ty.clone() });
        self.push(Op::Input(id), SmallVec::new(), ty)
    }

    pub fn output_as(&mut self, name: impl Into<Name>, role: Role, node: NodeId) {
        self.outputs.push(Output { name: name.into(), role, node });
    }

    /// Replaces the list of outputs.
    pub fn set_outputs(&mut self, outputs: Vec<Output>) {
        self.outputs = outputs;
    }

    /// The node `op(args)`, made unless it is there already.
    pub fn try_add(&mut self, op: Op, args: &[NodeId]) -> Result<NodeId, ShapeError> {
        let ty = match &op {
            Op::Get(k) => {
                let [of] = args else { return Err(ShapeError("`get` takes one argument".into())) };
                self.results(*of)?
                    .into_iter()
                    .nth(*k as usize)
                    .ok_or_else(|| ShapeError(format!("{of} has no result {k}")))?
            }
            _ => infer(&op, &args.iter().map(|id| self.ty(*id)).collect::<SmallVec<[&Type; 4]>>())?,
        };
        let mut args: SmallVec<[NodeId; 3]> = SmallVec::from_slice(args);
        if op.is_commutative() {
            args.sort();
        }
        Ok(self.push(op, args, ty))
    }

    /// As [`Graph::try_add`], for callers that know the types to be right.
    pub fn add(&mut self, op: Op, args: &[NodeId]) -> NodeId {
        let name = op.name();
        match self.try_add(op, args) {
            Ok(id) => id,
            Err(error) => {
                let types: Vec<_> = args.iter().map(|id| self.ty(*id).to_string()).collect();
                bug!("`{name}` of ({}): {error}", types.join(", "))
            }
        }
    }

    fn push(&mut self, op: Op, args: SmallVec<[NodeId; 3]>, ty: Type) -> NodeId {
        let (phase, span, scope) = &self.here;
        let mut key = FxBuildHasher.hash_one((&op, &args, &ty, phase));
        while let Some(id) = self.seen.get(&key) {
            let node = &self.nodes[id.idx()];
            if node.op == op && node.args == args && node.ty == ty && node.phase == *phase {
                return *id;
            }
            key = key.wrapping_add(1);
        }
        let id = NodeId(self.nodes.len() as u32);
        let scope = scope.clone().unwrap_or_else(|| Name::from(""));
        self.nodes.push(Node { op, args, ty, phase: *phase, span: *span, scope });
        self.seen.insert(key, id);
        id
    }

    /// The types of the results of a `Loop` or a `Grad`.
    pub fn results(&self, of: NodeId) -> Result<Vec<Type>, ShapeError> {
        let node = self.node(of);
        let types: Vec<&Type> = node.args.iter().map(|id| self.ty(*id)).collect();
        infer_results(&node.op, &types)
    }

    // The few shapes of calls that everybody needs.

    pub fn constant(&mut self, value: f64, dtype: DType) -> NodeId {
        self.add(Op::Const(Scalar::Float(value).cast(dtype), dtype), &[])
    }

    pub fn iota(&mut self, axis: Axis) -> NodeId {
        self.add(Op::Iota(axis), &[])
    }

    /// `x` as `dtype`; `x` itself if it is that already.
    pub fn cast(&mut self, x: NodeId, dtype: DType) -> NodeId {
        if self.ty(x).dtype == dtype { x } else { self.add(Op::Cast(dtype), &[x]) }
    }

    /// `x` with all of `axes`: those that it lacks are added.
    pub fn expand(&mut self, x: NodeId, axes: &crate::AxisSet) -> NodeId {
        let more: Vec<Axis> = axes.minus(&self.ty(x).axes).iter().cloned().collect();
        if more.is_empty() { x } else { self.add(Op::Expand(more), &[x]) }
    }

    /// The sum over those of `names` that `x` has; `x` itself if it has none.
    pub fn sum(&mut self, x: NodeId, names: impl IntoIterator<Item = Name>) -> NodeId {
        let mut names: Vec<Name> = names.into_iter().filter(|name| self.ty(x).axes.contains(name)).collect();
        names.sort();
        if names.is_empty() { x } else { self.add(Op::Sum(names), &[x]) }
    }

    /// Renames axes; pairs of equal names are dropped, and without any other `x` is given back.
    pub fn rename(&mut self, x: NodeId, pairs: impl IntoIterator<Item = (Name, Name)>) -> NodeId {
        let mut pairs: Vec<(Name, Name)> = pairs.into_iter().filter(|(old, new)| old != new).collect();
        pairs.sort();
        if pairs.is_empty() { x } else { self.add(Op::Rename(pairs), &[x]) }
    }

    /// A loop and its results.
    pub fn loop_over(&mut self, inner: crate::Loop, args: &[NodeId]) -> Vec<NodeId> {
        let node = self.add(Op::Loop(Box::new(inner)), args);
        self.gets(node)
    }

    /// All results of a `Loop` or a `Grad`.
    pub fn gets(&mut self, of: NodeId) -> Vec<NodeId> {
        let n = self.results(of).map_or(0, |types| types.len());
        (0..n as u32).map(|k| self.add(Op::Get(k), &[of])).collect()
    }

    /// True for each node that an output needs.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        for output in &self.outputs {
            live[output.node.idx()] = true;
        }
        for id in self.ids().rev() {
            if live[id.idx()] {
                for arg in self.args(id) {
                    live[arg.idx()] = true;
                }
            }
        }
        live
    }

    /// A copy made node by node: `make(graph, id, args)` gives what stands for node `id` of `self`, with its arguments
    /// already copied. Nodes that no output needs are not visited; all inputs stay, in their order.
    pub fn rebuild(&self, mut make: impl FnMut(&mut Graph, NodeId, &[NodeId]) -> NodeId) -> Graph {
        let mut graph = Graph::new();
        let live = self.live();
        let mut map: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        for id in self.ids() {
            let node = self.node(id);
            graph.set_here_like(node);
            if let Op::Input(input) = &node.op {
                let Input { name, kind, ty } = self.inputs[input.0 as usize].clone();
                map[id.idx()] = Some(graph.input(name, kind, ty));
            } else if live[id.idx()] {
                let args: SmallVec<[NodeId; 3]> = node.args.iter().filter_map(|arg| map[arg.idx()]).collect();
                map[id.idx()] = Some(make(&mut graph, id, &args));
            }
        }
        for Output { name, role, node } in &self.outputs {
            if let Some(node) = map[node.idx()] {
                graph.output_as(name.clone(), *role, node);
            }
        }
        graph
    }

    /// Copies a node of another graph here, given its arguments here; its place comes along.
    pub fn copy(&mut self, from: &Graph, id: NodeId, args: &[NodeId]) -> NodeId {
        let node = from.node(id);
        let here = self.here.clone();
        self.set_here_like(node);
        let copied = self.add(node.op.clone(), args);
        self.here = here;
        copied
    }

    /// Copies all nodes of `from` that its outputs need, with its inputs replaced; gives what stands for its outputs.
    pub fn inline(&mut self, from: &Graph, inputs: &[NodeId]) -> Vec<NodeId> {
        let live = from.live();
        let mut map: Vec<Option<NodeId>> = vec![None; from.nodes.len()];
        for id in from.ids().filter(|id| live[id.idx()]) {
            map[id.idx()] = Some(match from.op(id) {
                Op::Input(input) => inputs[input.0 as usize],
                _ => {
                    let args: SmallVec<[NodeId; 3]> = from.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
                    self.copy(from, id, &args)
                }
            });
        }
        from.outputs.iter().filter_map(|output| map[output.node.idx()]).collect()
    }

    /// Checks every rule that the graph's users rely on, bodies of loops included.
    pub fn verify(&self) -> Result<(), VerifyError> {
        for id in self.ids() {
            let node = self.node(id);
            let fail = |message: String| Err(VerifyError { node: id, message });
            if node.args.iter().any(|arg| *arg >= id) {
                return fail("an argument does not come before its user".into());
            }
            let types: Vec<&Type> = node.args.iter().map(|arg| self.ty(*arg)).collect();
            let ty = match &node.op {
                Op::Input(input) => match self.inputs.get(input.0 as usize) {
                    Some(input) => Ok(input.ty.clone()),
                    None => return fail("no such input".into()),
                },
                Op::Get(k) => match node.args.as_slice() {
                    [of] => self.results(*of).and_then(|types| {
                        types.into_iter().nth(*k as usize).ok_or_else(|| ShapeError(format!("no result {k}")))
                    }),
                    _ => return fail("`get` takes one argument".into()),
                },
                op => infer(op, &types),
            };
            match ty {
                Ok(ty) if ty == node.ty => {}
                Ok(ty) => return fail(format!("its type is {}, its rule gives {ty}", node.ty)),
                Err(error) => return fail(error.0),
            }
            if let Some(body) = node.op.body() {
                body.verify().map_err(|error| VerifyError { node: id, message: format!("in its body, {error}") })?;
            }
        }
        for output in &self.outputs {
            let Some(node) = self.nodes.get(output.node.idx()) else {
                return Err(VerifyError { node: output.node, message: format!("output `{}` is no node", output.name) });
            };
            if let Role::Next(input) = output.role
                && self.inputs.get(input.0 as usize).is_none_or(|input| input.ty != node.ty)
            {
                let message = format!("output `{}` has another type than its input", output.name);
                return Err(VerifyError { node: output.node, message });
            }
        }
        Ok(())
    }
}
