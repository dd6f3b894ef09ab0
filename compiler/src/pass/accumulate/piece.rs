//! One piece of the batch: the body of a loop over pieces, copied from the graph with a shorter axis.

use mdl_graph::{Axis, DType, Graph, Input, InputKind, Loop, Name, NodeId, Op, Role, Type};

pub(in crate::pass) struct Piece<'a> {
    graph: &'a Graph,
    batch: &'a Name,
    /// Examples in a piece.
    size: u64,
    body: Graph,
    map: Vec<Option<NodeId>>,
    /// The number of the piece's first example, `i32[]`.
    first: NodeId,
}

impl<'a> Piece<'a> {
    pub(in crate::pass) fn new(graph: &'a Graph, batch: &'a Name, size: u64) -> Piece<'a> {
        let map = vec![None; graph.nodes().len()];
        Piece { graph, batch, size, body: Graph::new(), map, first: NodeId(0) }
    }

    /// A name that no axis of the graph has.
    pub(in crate::pass) fn free_name(&self, name: &str) -> Name {
        let mut name = Name::from(name);
        while self.graph.nodes().iter().any(|node| node.ty.axes.contains(&name)) {
            name = name.twin();
        }
        name
    }

    pub(in crate::pass) fn param(&mut self, name: String, ty: Type) -> NodeId {
        self.body.input(name, InputKind::Param, ty)
    }

    fn name(&self, id: NodeId) -> String {
        match self.graph.op(id) {
            Op::Input(input) => self.graph.inputs()[input.0 as usize].name.to_string(),
            _ => format!("whole {}", id.0),
        }
    }

    /// A batched input: the loop scans it piece by piece.
    pub(in crate::pass) fn scan(&mut self, id: NodeId) {
        let ty = shorter(self.graph.ty(id), self.batch, self.size);
        self.map[id.idx()] = Some(self.param(self.name(id), ty));
    }

    /// The scanned number of the piece.
    pub(in crate::pass) fn number(&mut self) {
        let number = self.param("piece".into(), Type::scalar(DType::I32));
        let size = self.body.constant(self.size as f64, DType::I32);
        self.first = self.body.add(Op::Mul, &[number, size]);
    }

    /// A value from outside; false if it is inside already, or is made anew there.
    pub(in crate::pass) fn free(&mut self, id: NodeId) -> bool {
        if self.map[id.idx()].is_some() {
            return false;
        }
        if let Op::Const(..) | Op::Iota(_) = self.graph.op(id) {
            self.map[id.idx()] = Some(self.body.copy(self.graph, id, &[]));
            return false;
        }
        self.map[id.idx()] = Some(self.param(self.name(id), self.graph.ty(id).clone()));
        true
    }

    pub(in crate::pass) fn copy(&mut self, id: NodeId) {
        let args: Vec<NodeId> = self.graph.args(id).iter().filter_map(|arg| self.map[arg.idx()]).collect();
        let copied = copy_shorter(&mut self.body, self.graph, id, &args, self.batch, self.size, self.first);
        self.map[id.idx()] = Some(copied);
    }

    /// The next value of a sum, or of something that every piece gives alike.
    pub(in crate::pass) fn sum(&mut self, id: NodeId, before: NodeId, adds: bool) {
        let Some(value) = self.map[id.idx()] else { return };
        self.body.set_here_like(self.graph.node(id));
        let next = if adds { self.body.add(Op::Add, &[before, value]) } else { value };
        self.body.output_as(format!("sum {}", id.0), Role::Value, next);
    }

    pub(in crate::pass) fn stack(&mut self, id: NodeId) {
        if let Some(value) = self.map[id.idx()] {
            self.body.output_as(format!("part {}", id.0), Role::Value, value);
        }
    }

    pub(in crate::pass) fn finish(self, axis: Axis, carries: usize, scans: usize) -> Loop {
        Loop { axis, reverse: false, carries, scans, until: false, body: self.body }
    }
}

fn shorter(ty: &Type, batch: &Name, size: u64) -> Type {
    let mut ty = ty.clone();
    if ty.axes.contains(batch) {
        ty.axes.insert(Axis::new(batch.clone(), size));
    }
    ty
}

/// A node with the axis cut: positions along it are counted from the first example of the piece.
fn copy_shorter(
    to: &mut Graph,
    from: &Graph,
    id: NodeId,
    args: &[NodeId],
    batch: &Name,
    size: u64,
    first: NodeId,
) -> NodeId {
    to.set_here_like(from.node(id));
    match from.op(id) {
        Op::Iota(axis) if axis.name == *batch => {
            let positions = to.iota(Axis::new(batch.clone(), size));
            to.add(Op::Add, &[positions, first])
        }
        Op::Expand(axes) => {
            let cut = |axis: &Axis| if axis.name == *batch { Axis::new(batch.clone(), size) } else { axis.clone() };
            to.add(Op::Expand(axes.iter().map(cut).collect()), args)
        }
        Op::Loop(inner) if mentions(&inner.body, batch) => {
            let mut args = args.to_vec();
            args.push(first);
            to.add(Op::Loop(Box::new(shorter_loop(inner, batch, size))), &args)
        }
        op => to.add(op.clone(), args),
    }
}

fn mentions(body: &Graph, batch: &Name) -> bool {
    body.nodes()
        .iter()
        .any(|node| node.ty.axes.contains(batch) || node.op.body().is_some_and(|body| mentions(body, batch)))
}

/// A loop whose body has the axis cut; one more free value, last, is the number of the first example.
fn shorter_loop(inner: &Loop, batch: &Name, size: u64) -> Loop {
    let old = &inner.body;
    let mut body = Graph::new();
    let mut map: Vec<Option<NodeId>> = vec![None; old.nodes().len()];
    for (param, Input { name, kind, ty }) in crate::grad::params(old).into_iter().zip(old.inputs()) {
        map[param.idx()] = Some(body.input(name.clone(), *kind, shorter(ty, batch, size)));
    }
    let first = body.input("first example", InputKind::Param, Type::scalar(DType::I32));
    let live = old.live();
    for id in old.ids().filter(|id| live[id.idx()]) {
        if map[id.idx()].is_none() {
            let args: Vec<NodeId> = old.args(id).iter().filter_map(|arg| map[arg.idx()]).collect();
            map[id.idx()] = Some(copy_shorter(&mut body, old, id, &args, batch, size, first));
        }
    }
    for output in old.outputs() {
        if let Some(node) = map[output.node.idx()] {
            body.output_as(output.name.clone(), output.role, node);
        }
    }
    inner.with_body(body)
}
