//! Writing with and without a draft, on models whose every probability is known: the logits after a text are the sum of a table's rows.

use std::collections::BTreeMap;

use mdl_compiler::stored::Kept;
use mdl_graph::{Axis, AxisSet, DType, Graph, InputKind, Loop, Name, NodeId, Op, Role, Type};

use super::{Choice, Draft, Drafted, Generator};
use crate::device::{Cpu, Tensors};
use crate::kept::Keep;

const VOCAB: usize = 4;

type Table = [[f32; VOCAB]; VOCAB];

/// The target's table and that of a draft, which is wrong now and then.
const TARGET: Table = [[0.3, -0.2, 0.9, 0.1], [-0.8, 0.7, 0.2, 0.0], [0.5, 0.4, -0.6, -0.1], [0.0, 1.1, -0.3, 0.2]];
const DRAFT: Table = [[0.1, 0.3, 0.5, -0.4], [-0.2, 0.2, 0.6, 0.1], [0.9, -0.1, -0.2, 0.0], [0.4, 0.5, 0.3, -0.7]];

fn ty(dtype: DType, axes: &[(&str, u64)]) -> Type {
    Type::new(dtype, AxisSet::of(axes.iter().map(|(name, size)| Axis::new(*name, *size))).unwrap())
}

/// Reads `ids` and gives, at each position, the rows of a table up to there, as `sum` adds them.
fn model(context: u64, sum: impl FnOnce(&mut Graph, NodeId) -> NodeId) -> Graph {
    let mut graph = Graph::new();
    let ids = graph.input("ids", InputKind::Batch, ty(DType::I32, &[("batch", 1), ("t", context)]));
    let axes = [("from", VOCAB as u64), ("vocab", VOCAB as u64)];
    let table = graph.input("table", InputKind::Weight, ty(DType::F32, &axes));
    let rows = graph.add(Op::Gather { axis: Name::from("from") }, &[table, ids]);
    let logits = sum(&mut graph, rows);
    graph.output_as("logits", Role::Value, logits);
    graph
}

/// A sum over the positions so far, as attention has it.
fn attending(context: u64) -> Graph {
    model(context, |graph, rows| {
        let seen = graph.rename(rows, [(Name::from("t"), Name::from("t'"))]);
        let here = graph.iota(Axis::new("t", context));
        let there = graph.iota(Axis::new("t'", context));
        let later = graph.add(Op::Less, &[here, there]);
        let axes = graph.ty(seen).axes.union(&graph.ty(later).axes).unwrap();
        let (later, seen) = (graph.expand(later, &axes), graph.expand(seen, &axes));
        let zero = graph.constant(0.0, DType::F32);
        let zero = graph.expand(zero, &axes);
        let kept = graph.add(Op::Select, &[later, zero, seen]);
        graph.sum(kept, [Name::from("t'")])
    })
}

/// The same as a recurrence.
fn recurrent(context: u64) -> Graph {
    model(context, |graph, rows| {
        let state = ty(DType::F32, &[("batch", 1), ("vocab", VOCAB as u64)]);
        let zero = graph.constant(0.0, DType::F32);
        let start = graph.expand(zero, &state.axes);
        let mut body = Graph::new();
        let reached = body.input("reached", InputKind::Param, state.clone());
        let row = body.input("row", InputKind::Param, state);
        let next = body.add(Op::Add, &[reached, row]);
        body.output_as("next", Role::Value, next);
        body.output_as("seen", Role::Value, next);
        let axis = Axis::new("t", context);
        let inner = Loop { axis, carries: 1, scans: 1, reverse: false, until: false, body };
        graph.loop_over(inner, &[start, rows])[1]
    })
}

struct Model {
    generator: Generator,
    tensors: Tensors,
}

impl Model {
    fn new(graph: &Graph, table: &Table, ahead: u64, cpu: &Cpu) -> Model {
        let keep = Keep { kept: &[], rest: Kept::F32 };
        let generator = Generator::new(graph, &BTreeMap::new(), keep, ahead, cpu).unwrap();
        let mut tensors = Tensors::new();
        generator.allocate(&mut tensors);
        let to = tensors.get_mut("table").unwrap();
        let is_turned = to.axes[0].name.as_str() == "vocab";
        let bytes = to.data.bytes_mut();
        for (at, value) in bytes.chunks_exact_mut(4).enumerate() {
            let (i, j) = (at / VOCAB, at % VOCAB);
            value.copy_from_slice(&(if is_turned { table[j][i] } else { table[i][j] }).to_le_bytes());
        }
        Model { generator, tensors }
    }

    fn write(
        &mut self,
        draft: Option<(&mut Model, u64)>,
        prompt: &[u32],
        new: u64,
        choice: Choice,
        cpu: &Cpu,
    ) -> (Vec<u32>, Drafted) {
        let draft = draft.map(|(model, ahead)| Draft::new(&mut model.generator, &mut model.tensors, ahead).unwrap());
        let mut ids = Vec::new();
        let emit = |id| {
            ids.push(id);
            true
        };
        let drafted = self.generator.generate_with(draft, &mut self.tensors, cpu, prompt, new, choice, emit);
        let drafted = drafted.unwrap();
        (ids, drafted)
    }
}

/// The probabilities that follow a text, at a temperature, of the `most` likeliest.
fn known(text: &[u32], temperature: f64, most: usize) -> [f64; VOCAB] {
    let mut weights = [0.0; VOCAB];
    for (id, weight) in weights.iter_mut().enumerate() {
        let logit: f32 = text.iter().map(|from| TARGET[*from as usize][id]).sum();
        *weight = (f64::from(logit) / temperature).exp();
    }
    let mut sorted = weights;
    sorted.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted[..most].iter().sum();
    weights.map(|weight| if weight >= sorted[most - 1] { weight / total } else { 0.0 })
}

/// What is drawn with a draft is drawn as if there were none: three tokens after a prompt, all 64 of them counted.
#[test]
fn with_a_draft_every_text_is_as_likely_as_without() {
    const N: u64 = 20_000;
    let cpu = Cpu::new(Some(1)).unwrap();
    let mut target = Model::new(&attending(8), &TARGET, 2, &cpu);
    let mut draft = Model::new(&attending(8), &DRAFT, 0, &cpu);
    for (temperature, top_k, drafted) in [(1.0, 0, false), (1.0, 0, true), (0.7, 3, true), (2.5, 0, true)] {
        let mut counts = BTreeMap::new();
        let mut all = Drafted::default();
        for seed in 0..N {
            let choice = Choice { temperature, top_k, top_p: 1.0, seed };
            let helper = drafted.then_some((&mut draft, 2));
            let (ids, told) = target.write(helper, &[3, 1], 3, choice, &cpu);
            *counts.entry(ids).or_insert(0_u64) += 1;
            all.proposed += told.proposed;
            all.accepted += told.accepted;
        }
        let (mut square, mut cells) = (0.0, 0);
        for text in 0..VOCAB.pow(3) as u32 {
            let ids = [text / 16, text / 4 % 4, text % 4];
            let most = if top_k == 0 { VOCAB } else { top_k };
            let p: f64 =
                (0..3).map(|n| known(&[&[3, 1], &ids[..n]].concat(), temperature, most)[ids[n] as usize]).product();
            let count = counts.get(&ids[..]).copied().unwrap_or(0) as f64;
            if p == 0.0 {
                assert_eq!(count, 0.0, "{ids:?} is never chosen");
                continue;
            }
            let expected = p * N as f64;
            square += (count - expected).powi(2) / expected;
            cells += 1;
        }
        // Of 63 degrees of freedom, one in a million is above 130.
        assert!(square < f64::from(cells) + 67.0, "temperature {temperature}, {drafted}: {square} of {cells} texts");
        let share = all.accepted as f64 / all.proposed.max(1) as f64;
        assert_eq!(all.proposed > 0, drafted);
        // Neither all nor nothing: both ways of a round were gone.
        assert!(!drafted || (0.1..0.97).contains(&share), "{share} accepted");
    }
}

/// Where the likeliest is taken, a draft changes nothing: not when the context is full, nor when its own is.
#[test]
fn with_a_draft_the_likeliest_text_is_the_same() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let choice = Choice { temperature: 0.0, ..Choice::default() };
    for (context, narrow) in [(32, 32), (9, 9), (9, 4), (5, 9), (3, 2)] {
        let graph = attending(context);
        for prompt in [vec![0], vec![2, 1, 3], (0..40).map(|at| at * at % 4).collect()] {
            let mut alone = Model::new(&graph, &TARGET, 0, &cpu);
            let (plain, none) = alone.write(None, &prompt, 30, choice, &cpu);
            assert_eq!(none, Drafted::default());
            for (table, ahead) in [(&DRAFT, 1), (&DRAFT, 4), (&TARGET, 3)] {
                let mut target = Model::new(&graph, &TARGET, ahead, &cpu);
                let mut draft = Model::new(&attending(narrow), table, 0, &cpu);
                let (ids, told) = target.write(Some((&mut draft, ahead)), &prompt, 30, choice, &cpu);
                assert_eq!(ids, plain, "{context}, {narrow}, {ahead}, {prompt:?}");
                if context == 32 && prompt.len() == 1 && *table == TARGET {
                    assert_eq!(told.accepted, told.proposed, "it agrees with itself");
                }
            }
        }
    }
}

/// What was read once is not read again, and is forgotten where it is no longer so.
#[test]
fn a_text_that_goes_on_is_the_same_as_one_that_begins() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let choice = Choice { temperature: 0.0, ..Choice::default() };
    for graph in [attending(32), recurrent(32)] {
        let mut keeps = Model::new(&graph, &TARGET, 0, &cpu);
        keeps.generator = keeps.generator.remembering();
        for prompt in [&[0, 1][..], &[0, 1, 2, 2, 1, 0], &[0, 1, 2, 3], &[0], &[3, 1], &[3, 1]] {
            let fresh = Model::new(&graph, &TARGET, 0, &cpu).write(None, prompt, 6, choice, &cpu);
            assert_eq!(keeps.write(None, prompt, 6, choice, &cpu), fresh, "{prompt:?}");
            assert_eq!(keeps.generator.held.len(), prompt.len() + 5);
        }
    }
}

/// A model that cannot take back what it has read neither proposes nor checks.
#[test]
fn a_recurrent_model_has_no_part_in_it() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let keep = Keep { kept: &[], rest: Kept::F32 };
    let error = Generator::new(&recurrent(8), &BTreeMap::new(), keep, 3, &cpu).err().unwrap();
    assert!(error.to_string().contains("read one position at a time"), "{error}");
    let mut model = Model::new(&recurrent(8), &DRAFT, 0, &cpu);
    let error = Draft::new(&mut model.generator, &mut model.tensors, 3).err().unwrap();
    assert!(error.to_string().contains("cannot take back"), "{error}");
}
