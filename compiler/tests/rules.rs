//! Each rule of `simplify` on its smallest case: what was written, and what it becomes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{axis, name, ty};
use mdl_compiler::pass::simplify::simplify;
use mdl_graph::{DType, Graph, InputKind, Loop, NodeId, Op, Role, Scalar, ScatterKind, Type};

const F: DType = DType::F32;
const I: DType = DType::I32;
const B: DType = DType::Bool;

/// A node as an expression; arguments of commutative operations in the order of their text.
fn text(graph: &Graph, id: NodeId) -> String {
    match graph.op(id) {
        Op::Input(input) => graph.inputs()[input.0 as usize].name.to_string(),
        Op::Const(value, _) => value.to_string(),
        op => {
            let mut args: Vec<String> = graph.args(id).iter().map(|arg| text(graph, *arg)).collect();
            if op.is_commutative() {
                args.sort();
            }
            if args.is_empty() { op.to_string() } else { format!("{op}({})", args.join(", ")) }
        }
    }
}

/// The inputs of every case: `x` and `y` are `[a, b]`, `r` is `[a]`, `w` is `[b, c]`, `i` and `j` are integers, `p` and `q` flags.
struct Case {
    graph: Graph,
    x: NodeId,
    y: NodeId,
    r: NodeId,
    w: NodeId,
    i: NodeId,
    p: NodeId,
    q: NodeId,
}

impl Case {
    fn number(&mut self, value: f64) -> NodeId {
        self.graph.constant(value, F)
    }

    fn add(&mut self, op: Op, args: &[NodeId]) -> NodeId {
        self.graph.add(op, args)
    }
}

fn becomes(expected: &str, build: impl Fn(&mut Case) -> NodeId) {
    let mut graph = Graph::new();
    let mut input = |name: &str, ty: Type| graph.input(name, InputKind::Batch, ty);
    let x = input("x", ty(F, &[("a", 4), ("b", 6)]));
    let y = input("y", ty(F, &[("a", 4), ("b", 6)]));
    let r = input("r", ty(F, &[("a", 4)]));
    let w = input("w", ty(F, &[("b", 6), ("c", 3)]));
    let i = input("i", ty(I, &[("a", 4)]));
    let p = input("p", ty(B, &[("a", 4)]));
    let q = input("q", ty(B, &[("a", 4)]));
    let mut case = Case { graph, x, y, r, w, i, p, q };
    let root = build(&mut case);
    case.graph.output_as("out", Role::Value, root);
    let before = text(&case.graph, root);
    let wanted = case.graph.ty(root).clone();
    let after = simplify(&case.graph);
    after.verify().unwrap();
    let root = after.outputs()[0].node;
    assert_eq!(*after.ty(root), wanted, "the type of {before}");
    assert_eq!(text(&after, root), expected, "what {before} becomes");
}

#[test]
fn arithmetic() {
    for (op, neutral) in [(Op::Add, 0.0), (Op::Sub, 0.0), (Op::Mul, 1.0), (Op::Div, 1.0), (Op::Pow, 1.0)] {
        becomes("x", |c| {
            let n = c.number(neutral);
            c.add(op.clone(), &[c.x, n])
        });
    }
    becomes("neg(x)", |c| {
        let n = c.number(0.0);
        c.add(Op::Sub, &[n, c.x])
    });
    becomes("neg(x)", |c| {
        let n = c.number(-1.0);
        c.add(Op::Mul, &[n, c.x])
    });
    becomes("x", |c| {
        let n = c.add(Op::Neg, &[c.x]);
        c.add(Op::Neg, &[n])
    });
    becomes("sub(y, x)", |c| {
        let n = c.add(Op::Sub, &[c.x, c.y]);
        c.add(Op::Neg, &[n])
    });
    becomes("sub(x, y)", |c| {
        let n = c.add(Op::Neg, &[c.y]);
        c.add(Op::Add, &[c.x, n])
    });
    becomes("add(x, y)", |c| {
        let n = c.add(Op::Neg, &[c.y]);
        c.add(Op::Sub, &[c.x, n])
    });
    becomes("neg(mul(x, y))", |c| {
        let n = c.add(Op::Neg, &[c.y]);
        c.add(Op::Mul, &[c.x, n])
    });
    becomes("mul(-3.0, x)", |c| {
        let (n, three) = (c.add(Op::Neg, &[c.x]), c.number(3.0));
        c.add(Op::Mul, &[three, n])
    });
    becomes("mul(2.0, x)", |c| c.add(Op::Add, &[c.x, c.x]));
    becomes("mul(6.0, x)", |c| {
        let (two, three) = (c.number(2.0), c.number(3.0));
        let inner = c.add(Op::Mul, &[c.x, two]);
        c.add(Op::Mul, &[inner, three])
    });
    becomes("mul(0.25, x)", |c| {
        let four = c.number(4.0);
        c.add(Op::Div, &[c.x, four])
    });
    becomes("mul(0.3333333432674408, x)", |c| {
        let three = c.number(3.0);
        c.add(Op::Div, &[c.x, three])
    });
    becomes("div(sum[a](r), 3.0)", |c| {
        let (sum, three) = (c.add(Op::Sum(vec![name("a")]), &[c.r]), c.number(3.0));
        c.add(Op::Div, &[sum, three])
    });
    becomes("mul(div(1.0, r), x)", |c| c.add(Op::Div, &[c.x, c.r]));
    becomes("mul(x, x)", |c| {
        let two = c.number(2.0);
        c.add(Op::Pow, &[c.x, two])
    });
    // A NaN or an infinity in x must come through.
    becomes("mul(0.0, x)", |c| {
        let zero = c.number(0.0);
        c.add(Op::Mul, &[c.x, zero])
    });
    becomes("sub(x, x)", |c| c.add(Op::Sub, &[c.x, c.x]));
    becomes("expand[a:4](0)", |c| {
        let zero = c.graph.constant(0.0, I);
        c.add(Op::Mul, &[c.i, zero])
    });
}

#[test]
fn constants() {
    becomes("5.0", |c| {
        let (two, three) = (c.number(2.0), c.number(3.0));
        c.add(Op::Add, &[two, three])
    });
    becomes("true", |c| {
        let (two, three) = (c.number(2.0), c.number(3.0));
        c.add(Op::Less, &[two, three])
    });
    // Folded to what the dtype holds.
    becomes("0.10000000149011612", |c| {
        let (one, ten) = (c.number(1.0), c.number(10.0));
        c.add(Op::Div, &[one, ten])
    });
}

#[test]
fn logic_and_choices() {
    becomes("p", |c| {
        let n = c.add(Op::Not, &[c.p]);
        c.add(Op::Not, &[n])
    });
    becomes("p", |c| c.add(Op::And, &[c.p, c.p]));
    becomes("p", |c| {
        let yes = c.graph.constant(1.0, B);
        c.add(Op::And, &[c.p, yes])
    });
    becomes("expand[a:4](true)", |c| {
        let yes = c.graph.constant(1.0, B);
        c.add(Op::Or, &[c.p, yes])
    });
    becomes("expand[a:4](true)", |c| c.add(Op::Equal, &[c.i, c.i]));
    becomes("equal(r, r)", |c| c.add(Op::Equal, &[c.r, c.r]));
    becomes("x", |c| {
        let yes = c.graph.constant(1.0, B);
        c.add(Op::Select, &[yes, c.x, c.y])
    });
    becomes("x", |c| c.add(Op::Select, &[c.p, c.x, c.x]));
    becomes("select(p, y, x)", |c| {
        let n = c.add(Op::Not, &[c.p]);
        c.add(Op::Select, &[n, c.x, c.y])
    });
    becomes("select(p, x, y)", |c| {
        let inner = c.add(Op::Select, &[c.p, c.x, c.r]);
        c.add(Op::Select, &[c.p, inner, c.y])
    });
    becomes("select(q, select(p, x, r), y)", |c| {
        let inner = c.add(Op::Select, &[c.p, c.x, c.r]);
        c.add(Op::Select, &[c.q, inner, c.y])
    });
}

#[test]
fn casts() {
    becomes("x", |c| c.add(Op::Cast(F), &[c.x]));
    becomes("cast[bf16](p)", |c| {
        let wide = c.add(Op::Cast(F), &[c.p]);
        c.add(Op::Cast(DType::BF16), &[wide])
    });
    becomes("cast[f32](cast[bf16](x))", |c| {
        let low = c.add(Op::Cast(DType::BF16), &[c.x]);
        c.add(Op::Cast(F), &[low])
    });
    becomes("cast[f32](cast[i32](r))", |c| {
        let low = c.add(Op::Cast(I), &[c.r]);
        c.add(Op::Cast(F), &[low])
    });
}

#[test]
fn views() {
    let rename = |a: &str, b: &str| Op::Rename(vec![(name(a), name(b))]);
    becomes("rename[a as z](x)", |c| {
        let y = c.add(rename("a", "y"), &[c.x]);
        c.add(rename("y", "z"), &[y])
    });
    becomes("x", |c| {
        let y = c.add(rename("a", "y"), &[c.x]);
        c.add(rename("y", "a"), &[y])
    });
    becomes("iota[z:4]", |c| {
        let i = c.graph.iota(axis("a", 4));
        c.add(rename("a", "z"), &[i])
    });
    becomes("add(r, x)", |c| {
        let wide = c.add(Op::Expand(vec![axis("b", 6)]), &[c.r]);
        c.add(Op::Add, &[c.x, wide])
    });
    becomes("expand[b:6](exp(r))", |c| {
        let wide = c.add(Op::Expand(vec![axis("b", 6)]), &[c.r]);
        c.add(Op::Exp, &[wide])
    });
    becomes("expand[b:6, c:2](r)", |c| {
        let wide = c.add(Op::Expand(vec![axis("c", 2)]), &[c.r]);
        c.add(Op::Expand(vec![axis("b", 6)]), &[wide])
    });
    becomes("x", |c| {
        let into = vec![axis("m", 2), axis("n", 3)];
        let parts = c.add(Op::Split { axis: name("b"), into }, &[c.x]);
        c.add(Op::Merge { axes: vec![name("m"), name("n")], into: name("b") }, &[parts])
    });
    let slice = |start, len, step| Op::Slice { axis: name("b"), start, len, step };
    becomes("x", |c| c.add(slice(0, 6, 1), &[c.x]));
    becomes("slice[b = 3.. len 2 step -2](x)", |c| {
        let first = c.add(slice(1, 4, 1), &[c.x]);
        c.add(slice(2, 2, -2), &[first])
    });
    let pad = |before, after| Op::Pad { axis: name("b"), before, after, fill: Scalar::Float(0.0) };
    becomes("x", |c| c.add(pad(0, 0), &[c.x]));
    becomes("pad[b: 3, 1 with 0.0](x)", |c| {
        let first = c.add(pad(1, 1), &[c.x]);
        c.add(pad(2, 0), &[first])
    });
    becomes("slice[b = 1.. len 3 step 1](x)", |c| {
        let wide = c.add(pad(2, 2), &[c.x]);
        c.add(slice(3, 3, 1), &[wide])
    });
}

#[test]
fn indexing_that_is_a_view_or_a_map() {
    becomes("rename[b as t](slice[b = 0.. len 4 step 1](x))", |c| {
        let positions = c.graph.iota(axis("t", 4));
        c.add(Op::Gather { axis: name("b") }, &[c.x, positions])
    });
    becomes("gather[b](x, iota[t:9])", |c| {
        let positions = c.graph.iota(axis("t", 9));
        c.add(Op::Gather { axis: name("b") }, &[c.x, positions])
    });
    becomes("select(equal(i, iota[v:5]), r, 0.0)", |c| {
        let scatter = Op::Scatter { axis: axis("v", 5), keep: vec![name("a")], kind: ScatterKind::Add };
        c.add(scatter, &[c.r, c.i])
    });
    becomes("scatter[v:5; keep (), add](r, i)", |c| {
        let scatter = Op::Scatter { axis: axis("v", 5), keep: vec![], kind: ScatterKind::Add };
        c.add(scatter, &[c.r, c.i])
    });
}

#[test]
fn sums_and_products() {
    let sum = |names: &[&str]| Op::Sum(names.iter().map(|text| name(text)).collect());
    becomes("sum[a, b](x)", |c| {
        let first = c.add(sum(&["b"]), &[c.x]);
        c.add(sum(&["a"]), &[first])
    });
    becomes("mul(6.0, r)", |c| {
        let wide = c.add(Op::Expand(vec![axis("b", 6)]), &[c.r]);
        c.add(sum(&["b"]), &[wide])
    });
    becomes("mul(3.0, sum[b](x))", |c| {
        let three = c.number(3.0);
        let scaled = c.add(Op::Mul, &[c.x, three]);
        c.add(sum(&["b"]), &[scaled])
    });
    becomes("mul(r, sum[b](x))", |c| {
        let scaled = c.add(Op::Mul, &[c.x, c.r]);
        c.add(sum(&["b"]), &[scaled])
    });
    becomes("mul(r, sum[b](mul(x, y)))", |c| {
        let inner = c.add(Op::Mul, &[c.y, c.r]);
        let product = c.add(Op::Mul, &[c.x, inner]);
        c.add(sum(&["b"]), &[product])
    });
    becomes("contract[b](x, w)", |c| {
        let product = c.add(Op::Mul, &[c.x, c.w]);
        c.add(sum(&["b"]), &[product])
    });
    becomes("sum[b](mul(x, y))", |c| c.add(Op::Contract(vec![name("b")]), &[c.x, c.y]));
    becomes("mul(x, y)", |c| c.add(Op::Contract(vec![]), &[c.x, c.y]));
    becomes("mul(2.0, contract[b](x, w))", |c| {
        let two = c.number(2.0);
        let scaled = c.add(Op::Mul, &[c.x, two]);
        c.add(Op::Contract(vec![name("b")]), &[scaled, c.w])
    });
    becomes("mul(contract[b](exp(x), w), r)", |c| {
        let e = c.add(Op::Exp, &[c.x]);
        let scaled = c.add(Op::Mul, &[e, c.r]);
        c.add(Op::Contract(vec![name("b")]), &[scaled, c.w])
    });
    becomes("mul(contract[z](rename[b as z](exp(x)), rename[b as z](w)), r)", |c| {
        let e = c.add(Op::Exp, &[c.x]);
        let scaled = c.add(Op::Mul, &[e, c.r]);
        let rename = Op::Rename(vec![(name("b"), name("z"))]);
        let (scaled, w) = (c.add(rename.clone(), &[scaled]), c.add(rename, &[c.w]));
        c.add(Op::Contract(vec![name("z")]), &[scaled, w])
    });
    // Folding a scale into the product elsewhere would change what is rounded.
    becomes("contract[b](mul(r, x), w)", |c| {
        let scaled = c.add(Op::Mul, &[c.x, c.r]);
        c.add(Op::Contract(vec![name("b")]), &[scaled, c.w])
    });
    becomes("r", |c| {
        let wide = c.add(Op::Expand(vec![axis("b", 6)]), &[c.r]);
        c.add(Op::MaxOver(vec![name("b")]), &[wide])
    });
}

/// `h = h · c` and `y = exp(w) + x` along `t`, with more arguments and results than anybody needs.
fn wasteful() -> Graph {
    let mut body = Graph::new();
    let params = ["h", "still", "x", "w", "unread"].map(|name| body.input(name, InputKind::Param, ty(F, &[("a", 4)])));
    let [h, still, x, w, _] = params;
    let next = body.add(Op::Mul, &[h, still]);
    let e = body.add(Op::Exp, &[w]);
    let y = body.add(Op::Add, &[e, x]);
    for (name, node) in [("h", next), ("still", still), ("y", y), ("again", y), ("x", x), ("e", e)] {
        body.output_as(name, Role::Value, node);
    }
    let inner = Loop { axis: axis("t", 3), reverse: false, carries: 2, scans: 1, until: false, body };
    let mut graph = Graph::new();
    let start = graph.input("start", InputKind::Batch, ty(F, &[("a", 4)]));
    let x = graph.input("x", InputKind::Batch, ty(F, &[("a", 4), ("t", 3)]));
    let w = graph.input("w", InputKind::Batch, ty(F, &[("a", 4)]));
    let results = graph.loop_over(inner, &[start, w, x, w, start]);
    for k in [2, 3, 4, 5] {
        graph.output_as(format!("out {k}"), Role::Value, results[k]);
    }
    graph
}

#[test]
fn loops_hold_what_changes_and_what_is_read() {
    let graph = simplify(&wasteful());
    graph.verify().unwrap();
    let Some(Op::Loop(inner)) = graph.nodes().iter().map(|node| &node.op).find(|op| op.body().is_some()) else {
        panic!("{graph}")
    };
    // The carry that nobody reads, the one that never changes, what is an argument or the same in every pass: all gone.
    assert_eq!((inner.carries, inner.scans, inner.body.inputs().len(), inner.stacked()), (0, 1, 2, 1), "{graph}");
    assert!(!inner.body.nodes().iter().any(|node| node.op == Op::Exp), "exp(w) is computed once, before\n{graph}");
    let nodes: Vec<NodeId> = graph.outputs().iter().map(|output| output.node).collect();
    assert_eq!(nodes[0], nodes[1]);
    assert_eq!(text(&graph, nodes[2]), "x");
    assert_eq!(text(&graph, nodes[3]), "expand[t:3](exp(w))");
}

#[test]
fn a_graph_that_differentiates_by_an_inner_value_is_left_alone() {
    let mut graph = Graph::new();
    let x = graph.input("x", InputKind::Weight, ty(F, &[("a", 4)]));
    let inner = graph.add(Op::Rename(vec![(name("a"), name("z"))]), &[x]);
    let back = graph.add(Op::Rename(vec![(name("z"), name("a"))]), &[inner]);
    let y = graph.add(Op::Mul, &[back, back]);
    let marker = graph.add(Op::Grad, &[y, inner]);
    let dy = graph.add(Op::Get(0), &[marker]);
    graph.output_as("d", Role::Value, dy);
    assert_eq!(simplify(&graph), graph);
}
