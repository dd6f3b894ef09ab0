//! Random programs. Equal seeds give equal graphs.

use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Scalar, ScatterKind, Type};

use super::Rng;

/// What a random program may hold.
#[derive(Clone, Copy, Debug)]
pub struct RandomOptions {
    /// About how many operations the program has.
    pub n_ops: usize,
    /// How deep loops may nest.
    pub depth: u32,
    /// The dtype of most floats.
    pub dtype: DType,
    /// Also the gradient of all that was computed, as a `Grad` marker.
    pub gradient: bool,
    /// Also `Detach`, which finite differences do not see.
    pub detach: bool,
}

impl Default for RandomOptions {
    fn default() -> RandomOptions {
        RandomOptions { n_ops: 14, depth: 2, dtype: DType::F32, gradient: true, detach: true }
    }
}

/// A value may have this many elements at most.
const LARGEST: u64 = 3_000;

/// A program with a few outputs: `value 0` …, and with `gradient` also `loss` and `d <input>`.
pub fn random_graph(seed: u64, options: RandomOptions) -> Graph {
    let mut rng = Rng::new(seed);
    let sizes: [u64; 8] = [1, 2, 3, 5, 7, 2, 3, if rng.one_in(4) { 0 } else { 4 }];
    let axes = ["a", "b", "c", "d"].map(|name| Axis::new(name, sizes[rng.below(sizes.len())])).to_vec();
    let mut maker = Maker { graph: Graph::new(), rng, axes, options, exact: Vec::new(), fresh: 0 };
    let n_inputs = 2 + maker.rng.below(3);
    let mut xs = Vec::new();
    for k in 0..n_inputs {
        let ty = Type::new(options.dtype, maker.some_axes());
        xs.push(maker.graph.input(format!("x{k}"), InputKind::Weight, ty));
    }
    let index = Type::new(DType::I32, maker.some_axes());
    maker.graph.input("i", InputKind::Batch, index);
    let flag = Type::new(DType::Bool, maker.some_axes());
    maker.graph.input("flag", InputKind::Batch, flag);
    maker.exact = maker.graph.ids().collect();
    maker.grow(options.n_ops);
    maker.finish(&xs)
}

struct Maker {
    graph: Graph,
    rng: Rng,
    axes: Vec<Axis>,
    options: RandomOptions,
    /// Nodes whose values every target computes exactly, so that they may be compared and sorted.
    exact: Vec<NodeId>,
    fresh: u32,
}

impl Maker {
    fn some_axes(&mut self) -> AxisSet {
        let n = self.rng.below(4);
        let picked: Vec<Axis> = (0..n).filter_map(|_| self.rng.pick(&self.axes).cloned()).collect();
        AxisSet::of(picked).unwrap_or_default()
    }

    fn fresh_name(&mut self) -> Name {
        self.fresh += 1;
        Name::from(format!("n{}", self.fresh))
    }

    /// A node whose type passes the test, late ones more often.
    fn node(&mut self, test: impl Fn(&Type) -> bool) -> Option<NodeId> {
        let all: Vec<NodeId> = self
            .graph
            .ids()
            .filter(|id| !matches!(self.graph.op(*id), Op::Loop(_) | Op::Grad) && test(self.graph.ty(*id)))
            .collect();
        let (a, b) = (self.rng.below(all.len()), self.rng.below(all.len()));
        all.get(a.max(b)).copied()
    }

    fn float(&mut self) -> Option<NodeId> {
        let dtype = self.options.dtype;
        self.node(|ty| ty.dtype == dtype)
    }

    fn int(&mut self) -> Option<NodeId> {
        self.node(|ty| ty.dtype == DType::I32)
    }

    fn exact_of(&mut self, test: impl Fn(&Type) -> bool) -> Option<NodeId> {
        let fit: Vec<NodeId> = self.exact.iter().copied().filter(|id| test(self.graph.ty(*id))).collect();
        self.rng.pick(&fit).copied()
    }

    /// Adds a node unless its types do not fit or it is too large.
    fn try_op(&mut self, op: Op, args: &[NodeId]) -> Option<NodeId> {
        let before = self.graph.nodes().len();
        let id = self.graph.try_add(op, args).ok()?;
        if self.graph.ty(id).count() > LARGEST && id.idx() >= before {
            // It stays in the arena, and nobody reads it.
            return None;
        }
        Some(id)
    }

    fn number(&mut self, value: f64) -> NodeId {
        self.graph.constant(value, self.options.dtype)
    }

    fn grow(&mut self, n_ops: usize) {
        let mut made = 0;
        for _ in 0..n_ops * 6 {
            if made >= n_ops {
                break;
            }
            made += usize::from(self.one_op().is_some());
        }
    }

    fn one_op(&mut self) -> Option<NodeId> {
        match self.rng.below(13) {
            0 | 1 => self.unary(),
            2 | 3 => self.binary(),
            4 => self.reduction(),
            5 | 6 => self.contraction(),
            7 | 8 => self.view(),
            9 => self.choice(),
            10 => self.indexed(),
            11 => self.integers(),
            _ if self.options.depth > 0 => self.looped(),
            _ => self.view(),
        }
    }

    /// `x² + 1/2`: a value that `log`, `sqrt`, `pow` and `/` take.
    fn positive(&mut self, x: NodeId) -> Option<NodeId> {
        let (tame, half) = (self.tame(x)?, self.number(0.5));
        let square = self.try_op(Op::Mul, &[tame, tame])?;
        self.try_op(Op::Add, &[square, half])
    }

    /// A value of size at most 1.
    fn tame(&mut self, x: NodeId) -> Option<NodeId> {
        self.try_op(Op::Tanh, &[x])
    }

    fn unary(&mut self) -> Option<NodeId> {
        let x = self.float()?;
        match self.rng.below(9) {
            0 => {
                let x = self.tame(x)?;
                self.try_op(Op::Exp, &[x])
            }
            1 => {
                let x = self.positive(x)?;
                self.try_op(Op::Log, &[x])
            }
            2 => {
                let x = self.positive(x)?;
                self.try_op(Op::Sqrt, &[x])
            }
            3 => self.try_op(Op::Erf, &[x]),
            4 => self.try_op(Op::Sin, &[x]),
            5 => self.try_op(Op::Cos, &[x]),
            6 => self.try_op(Op::Neg, &[x]),
            7 if self.options.detach => self.try_op(Op::Detach, &[x]),
            _ => self.tame(x),
        }
    }

    fn binary(&mut self) -> Option<NodeId> {
        let (x, y) = (self.float()?, self.float()?);
        match self.rng.below(6) {
            0 => self.try_op(Op::Add, &[x, y]),
            1 => self.try_op(Op::Sub, &[x, y]),
            2 => {
                let x = self.tame(x)?;
                self.try_op(Op::Mul, &[x, y])
            }
            3 => {
                let y = self.positive(y)?;
                self.try_op(Op::Div, &[x, y])
            }
            4 => self.try_op(Op::Max, &[x, y]),
            _ => {
                let (x, y) = (self.positive(x)?, self.tame(y)?);
                self.try_op(Op::Pow, &[x, y])
            }
        }
    }

    fn names_of(&mut self, x: NodeId) -> Vec<Name> {
        let names: Vec<Name> = self.graph.ty(x).axes.names().cloned().collect();
        names.into_iter().filter(|_| self.rng.one_in(2)).collect()
    }

    fn reduction(&mut self) -> Option<NodeId> {
        let x = self.float()?;
        let names = self.names_of(x);
        match self.rng.below(4) {
            0 => {
                // Of nothing the maximum is -inf, which is not tame.
                let x = self.exact_of(|ty| ty.count() > 0 && ty.dtype.is_float())?;
                let names = self.names_of(x);
                self.try_op(Op::MaxOver(names), &[x])
            }
            1 => {
                let axis = names.first()?.clone();
                let reverse = self.rng.one_in(2);
                self.try_op(Op::Prefix { axis, reverse }, &[x])
            }
            _ => {
                let x = self.tame(x)?;
                self.try_op(Op::Sum(names), &[x])
            }
        }
    }

    fn contraction(&mut self) -> Option<NodeId> {
        let (a, b) = (self.float()?, self.float()?);
        let (a, b) = (self.tame(a)?, self.tame(b)?);
        let shared: Vec<Name> = self.graph.ty(a).axes.common(&self.graph.ty(b).axes).names().cloned().collect();
        let names: Vec<Name> = shared.into_iter().filter(|_| !self.rng.one_in(3)).collect();
        self.try_op(Op::Contract(names), &[a, b])
    }

    fn view(&mut self) -> Option<NodeId> {
        let x = if self.rng.one_in(4) { self.int()? } else { self.float()? };
        let ty = self.graph.ty(x).clone();
        let axis = self.rng.pick(&ty.axes.iter().cloned().collect::<Vec<_>>()).cloned();
        let fresh = self.fresh_name();
        match self.rng.below(9) {
            0 => {
                let more = self.some_axes().minus(&ty.axes);
                let more: Vec<Axis> = more.iter().cloned().collect();
                if more.is_empty() { None } else { self.try_op(Op::Expand(more), &[x]) }
            }
            1 => {
                let axis = axis?;
                let like =
                    self.axes.iter().find(|other| other.size == axis.size && !ty.axes.contains(&other.name)).cloned();
                let new = like.map_or(fresh, |like| like.name);
                self.try_op(Op::Rename(vec![(axis.name, new)]), &[x])
            }
            2 => {
                let axis = axis?;
                let part = (2..=axis.size).find(|part| axis.size % part == 0)?;
                let into = vec![Axis::new(fresh, part), Axis::new(axis.name.clone(), axis.size / part)];
                self.try_op(Op::Split { axis: axis.name, into }, &[x])
            }
            3 => {
                let mut axes: Vec<Name> = ty.axes.names().cloned().collect();
                if self.rng.one_in(2) {
                    axes.reverse();
                }
                axes.truncate(2);
                self.try_op(Op::Merge { axes, into: fresh }, &[x])
            }
            4 | 5 => {
                let axis = axis.filter(|axis| axis.size > 0)?;
                let start = self.rng.below(axis.size as usize) as u64;
                let step = [1i64, 1, -1, 2, -2, 3][self.rng.below(6)];
                let room = if step > 0 { (axis.size - 1 - start) / step as u64 } else { start / step.unsigned_abs() };
                let len = self.rng.below(room as usize + 2) as u64;
                self.try_op(Op::Slice { axis: axis.name, start, len, step }, &[x])
            }
            6 => {
                let (before, after) = (self.rng.below(3) as u64, self.rng.below(3) as u64);
                let fill = Scalar::Float([0.0, 0.0, 1.0][self.rng.below(3)]).cast(ty.dtype);
                self.try_op(Op::Pad { axis: axis?.name, before, after, fill }, &[x])
            }
            _ => {
                let axis = axis?;
                let (taps, stride) = (1 + self.rng.below(3) as u64, 1 + self.rng.below(3) as u64);
                let tap = Axis::new(fresh.clone(), taps);
                let window = Op::Window { axis: axis.name.clone(), out: axis.name.clone(), tap, stride };
                let windows = self.try_op(window, &[x])?;
                if self.rng.one_in(2) || ty.dtype != self.options.dtype {
                    return Some(windows);
                }
                let longer = Axis::new(axis.name.clone(), axis.size + self.rng.below(2) as u64);
                self.try_op(Op::Unwindow { axis: longer, out: axis.name, tap: fresh, stride }, &[windows])
            }
        }
    }

    fn choice(&mut self) -> Option<NodeId> {
        let condition = match self.rng.below(4) {
            0 => self.node(|ty| ty.dtype == DType::Bool)?,
            1 => {
                let x = self.exact_of(|ty| ty.dtype.is_float())?;
                let y = self.exact_of(|ty| ty.dtype.is_float())?;
                self.try_op(Op::Less, &[x, y])?
            }
            2 => {
                let seen = self.axes[self.rng.below(self.axes.len())].clone();
                let position = self.graph.iota(seen);
                let other = self.int()?;
                self.try_op(Op::Less, &[position, other])?
            }
            _ => {
                let (x, y) = (self.int()?, self.int()?);
                self.try_op(Op::Equal, &[x, y])?
            }
        };
        let condition = match self.rng.below(4) {
            0 => self.try_op(Op::Not, &[condition])?,
            1 => {
                let other = self.node(|ty| ty.dtype == DType::Bool)?;
                let op = if self.rng.one_in(2) { Op::And } else { Op::Or };
                self.try_op(op, &[condition, other])?
            }
            _ => condition,
        };
        let (x, y) = (self.float()?, self.float()?);
        let y = if self.rng.one_in(2) { self.number(0.0) } else { y };
        self.try_op(Op::Select, &[condition, x, y])
    }

    fn indexed(&mut self) -> Option<NodeId> {
        let table = self.float()?;
        let axes: Vec<Axis> = self.graph.ty(table).axes.iter().cloned().collect();
        let index = match self.rng.below(4) {
            0 => {
                let sorted = self.exact_of(|ty| !ty.axes.is_empty())?;
                let along = self.graph.ty(sorted).axes.iter().next()?.clone();
                let k = self.rng.below(along.size as usize + 1) as u64;
                let out = Axis::new(self.fresh_name(), k);
                self.try_op(Op::Top { axis: along.name, out }, &[sorted])?
            }
            _ => self.int()?,
        };
        if self.rng.one_in(2) {
            let axis = self.rng.pick(&axes)?.name.clone();
            return self.try_op(Op::Gather { axis }, &[table, index]);
        }
        let shared = self.graph.ty(table).axes.common(&self.graph.ty(index).axes);
        let keep: Vec<Name> = shared.names().filter(|_| self.rng.one_in(2)).cloned().collect();
        let axis = Axis::new(self.fresh_name(), 1 + self.rng.below(6) as u64);
        let kind = if self.rng.one_in(3) { ScatterKind::Put } else { ScatterKind::Add };
        self.try_op(Op::Scatter { axis, keep, kind }, &[table, index])
    }

    fn integers(&mut self) -> Option<NodeId> {
        let axis = self.axes[self.rng.below(self.axes.len())].clone();
        let (x, y) = (self.int()?, self.graph.iota(axis));
        match self.rng.below(8) {
            0 => self.try_op(Op::Add, &[x, y]),
            1 => {
                let three = self.graph.constant(3.0, DType::I32);
                self.try_op(Op::Rem, &[x, three])
            }
            2 => {
                let two = self.graph.constant(2.0, DType::I32);
                self.try_op(Op::Div, &[x, two])
            }
            3 => self.try_op(Op::Max, &[x, y]),
            4 => {
                let zero = self.graph.constant(0.0, DType::I32);
                let place = self.rng.below(9) as u32;
                let draw = self.try_op(Op::Uniform { place }, &[zero, zero, zero, x])?;
                self.try_op(Op::Cast(self.options.dtype), &[draw])
            }
            5 => {
                let x = self.exact_of(|ty| ty.dtype.is_float())?;
                let down = self.try_op(Op::Floor, &[x])?;
                self.exact.push(down);
                self.try_op(Op::Cast(DType::I32), &[down])
            }
            _ => {
                let five = self.graph.constant(5.0, DType::I32);
                let x = self.try_op(Op::Rem, &[x, five])?;
                self.try_op(Op::Cast(self.options.dtype), &[x])
            }
        }
    }

    /// A loop with carries, scanned and free values; its body is a random program of its own.
    fn looped(&mut self) -> Option<NodeId> {
        let axis = self.axes[self.rng.below(self.axes.len())].clone();
        let until = self.rng.one_in(4);
        let mut body = Graph::new();
        let mut args = Vec::new();
        let n_carries = usize::from(until) + self.rng.below(2);
        for k in 0..n_carries {
            let start = self.float()?;
            body.input(format!("carry{k}"), InputKind::Param, self.graph.ty(start).clone());
            args.push(start);
        }
        let mut scans = 0;
        for k in 0..self.rng.below(3) {
            let (name, size) = (axis.name.clone(), axis.size);
            let x = self.node(|ty| ty.axes.size(&name) == Some(size) && ty.dtype != DType::Bool);
            if let Some(x) = x {
                let mut ty = self.graph.ty(x).clone();
                ty.axes.remove(&axis.name);
                body.input(format!("scan{k}"), InputKind::Param, ty);
                args.push(x);
                scans += 1;
            }
        }
        for k in 0..1 + self.rng.below(2) {
            let x = self.float()?;
            body.input(format!("free{k}"), InputKind::Param, self.graph.ty(x).clone());
            args.push(x);
        }
        let options = RandomOptions { depth: self.options.depth - 1, n_ops: 6, gradient: false, ..self.options };
        let rng = Rng::new(self.rng.bits());
        let mut inside =
            Maker { graph: body, rng, axes: self.axes.clone(), options, exact: Vec::new(), fresh: self.fresh + 100 };
        inside.grow(options.n_ops);
        for k in 0..n_carries {
            let ty = inside.graph.inputs()[k].ty.clone();
            let next = inside.node(|other| *other == ty)?;
            let next = inside.tame(next)?;
            inside.graph.output_as(format!("carry{k}"), Role::Value, next);
        }
        if until {
            let stop = inside.exact_flag()?;
            inside.graph.output_as("until", Role::Value, stop);
        } else {
            for k in 0..2 {
                let name = axis.name.clone();
                let dtype = self.options.dtype;
                let limit = LARGEST / axis.size.max(1);
                let y = inside.node(|ty| ty.dtype == dtype && !ty.axes.contains(&name) && ty.count() <= limit)?;
                inside.graph.output_as(format!("stacked{k}"), Role::Value, y);
            }
        }
        let reverse = self.rng.one_in(2);
        let inner = Loop { axis, reverse, carries: n_carries, scans, until, body: inside.graph };
        let node = self.graph.try_add(Op::Loop(Box::new(inner)), &args).ok()?;
        self.graph.gets(node).pop()
    }

    /// A `bool[]` from values that do not depend on rounding.
    fn exact_flag(&mut self) -> Option<NodeId> {
        let scalar = self.node(|ty| ty.dtype == DType::I32 && ty.axes.is_empty());
        let two = self.graph.constant(2.0, DType::I32);
        let left = scalar.unwrap_or(two);
        self.try_op(Op::Less, &[two, left])
    }

    /// Outputs: the last few values, and the gradient of the sum of them all.
    fn finish(mut self, xs: &[NodeId]) -> Graph {
        let read: Vec<NodeId> = self.graph.ids().flat_map(|id| self.graph.args(id).to_vec()).collect();
        let ends: Vec<NodeId> = self
            .graph
            .ids()
            .filter(|id| !read.contains(id) && !matches!(self.graph.op(*id), Op::Loop(_) | Op::Input(_)))
            .filter(|id| self.graph.ty(*id).count() <= LARGEST)
            .collect();
        for (k, end) in ends.iter().enumerate() {
            self.graph.output_as(format!("value {k}"), Role::Value, *end);
        }
        if self.options.gradient {
            let mut loss = self.number(0.0);
            for end in ends {
                if self.graph.ty(end).dtype != self.options.dtype {
                    continue;
                }
                // Bends the value, so that its cotangent is not one everywhere.
                let bent = self.graph.add(Op::Sin, &[end]);
                let names: Vec<Name> = self.graph.ty(bent).axes.names().cloned().collect();
                let sum = self.graph.sum(bent, names);
                loss = self.graph.add(Op::Add, &[loss, sum]);
            }
            self.graph.output_as("loss", Role::Value, loss);
            let mut args = vec![loss];
            args.extend(xs);
            let marker = self.graph.add(Op::Grad, &args);
            for (k, get) in self.graph.gets(marker).into_iter().enumerate() {
                self.graph.output_as(format!("d x{k}"), Role::Value, get);
            }
        }
        self.graph
    }
}
