//! Text from a trained model, one token after another.
//!
//! In: the forward graph, the weights, a prompt as ids. Out: ids, chosen by [`Choice`]. The decoder is derived from the
//! forward graph ([`mdl_lang::decode`]): a token costs what one position costs, however long the text already is. Once the context is
//! full, the last half of it is read again and the text goes on from there. With a [`Draft`] several tokens may come of one pass
//! (`speculate.rs`); what is written is then as likely as without. A model that answers what it is given, such as a translator, reads that
//! once ([`Generator::give`]).

mod choice;
mod speculate;

use std::collections::BTreeMap;

use mdl_compiler::budget::{StepError, compile};
use mdl_compiler::pass::Options;
use mdl_compiler::plan::{CompileError, Plan, PlanOptions};
use mdl_compiler::stored::Convert;
use mdl_graph::{Axis, Graph, Name, Role, Span};
use mdl_lang::decode::{POS, decode, once};
use mdl_lang::stage::Ordered;

use crate::apply::write;
use crate::device::{Cpu, Executable, Tensors};
use crate::error::RunError;
use crate::kept::Keep;
use crate::npz::Array;
use crate::positions::{Positions, positions};

pub use choice::Choice;
use choice::{Draws, Odds};
pub use speculate::{Draft, Drafted};

/// How many positions of a prompt are read at once, where the model allows it: the most that the context has room for. Weights are read once
/// for all of them, so 64 cost little more than the memory traffic of one. Of a prompt only the last position's logits are asked for: it is
/// read by itself, and blocks make none.
const PROMPT_ROWS: [u64; 2] = [64, 16];
/// A block shorter than this is read one position at a time: it would multiply by rows that nobody asks for.
const FEW: usize = 3;

/// A decoder that is ready to run.
pub struct Generator {
    /// Run once a text, on what it is about.
    once: Option<Executable>,
    one: Executable,
    /// Reads so many positions at once.
    many: Option<(Executable, u64)>,
    /// The same with logits for each.
    check: Option<(Executable, u64)>,
    caches: Vec<Name>,
    /// The ids that the caches are of.
    held: Vec<u32>,
    /// Whether caches hold positions, so that the last ones can be taken back.
    can_go_back: bool,
    /// Whether what is held is still so when the next text begins.
    remembers: bool,
    axis: Axis,
    /// Which ids the model knows.
    ids: Option<Positions>,
    convert: Vec<Convert>,
    orders: BTreeMap<Name, Vec<Name>>,
}

/// The programs of a decoder.
pub struct DecoderPlans {
    once: Option<Plan>,
    pub(crate) one: Plan,
    /// Reads so many positions at once.
    many: Option<(Plan, u64)>,
    check: Option<(Plan, u64)>,
    caches: Vec<Name>,
    can_go_back: bool,
    axis: Axis,
    ids: Option<Positions>,
    /// Makes the matrices as they are kept of those that were trained.
    convert: Vec<Convert>,
    orders: BTreeMap<Name, Vec<Name>>,
}

impl DecoderPlans {
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        std::iter::once(&self.one).chain(&self.once).chain(self.many.iter().chain(&self.check).map(|(plan, _)| plan))
    }

    pub(crate) fn context(&self) -> u64 {
        self.axis.size
    }
}

/// Plans the decoder of `forward`, which reads `ids` along one axis besides `batch`, and gives `logits`. It can check `ahead` tokens that
/// somebody proposes in one pass.
pub fn plan_decoders(
    forward: &Graph,
    orders: &BTreeMap<Name, Vec<Name>>,
    keep: Keep<'_>,
    ahead: u64,
) -> Result<DecoderPlans, StepError> {
    let axis = sequence_axis(forward).map_err(|message| refuse(message, None))?;
    let parts = once::parts(forward, &axis);
    let forward = parts.as_ref().map_or(forward, |parts| &parts.each);
    let mut orders = orders.clone();
    let mut convert: Vec<Convert> = Vec::new();
    let mut compile_kept = |graph: &Graph| -> Result<Plan, StepError> {
        let (graph, all, made) = keep.apply(graph, &orders);
        let is_new = |one: &Convert| !convert.iter().any(|known| known.of == one.of);
        let made: Vec<Convert> = made.into_iter().filter(is_new).collect();
        convert.extend(made);
        let planning = PlanOptions { orders: all.clone(), ..PlanOptions::default() };
        let plan = compile(&graph, &Options::default(), &planning, None)?;
        // All of them share what is kept.
        orders = all;
        orders.extend(plan.orders());
        Ok(plan)
    };
    let once = match &parts {
        Some(parts) => Some(compile_kept(&parts.once)?),
        None => None,
    };
    let mut build = |rows: u64, with_logits: bool| -> Result<(Plan, Vec<Name>, bool), StepError> {
        let mut decoder = decode(forward, &axis, rows).map_err(|error| refuse(error.message, Some(error.span)))?;
        if !with_logits {
            let outputs = decoder.graph.outputs().iter().filter(|output| output.role != Role::Value).cloned();
            let outputs = outputs.collect();
            decoder.graph.set_outputs(outputs);
        }
        Ok((compile_kept(&decoder.graph)?, decoder.caches, decoder.can_go_back))
    };
    // A recurrent model is read one position at a time.
    let rows = PROMPT_ROWS.into_iter().find(|rows| *rows <= axis.size);
    let many = rows.and_then(|rows| Some((build(rows, false).ok()?.0, rows)));
    let check = match (ahead + 1).min(axis.size) {
        1 => None,
        rows => {
            if let Err(error) = decode(forward, &axis, rows) {
                let message = format!("it cannot check what is proposed: {}", error.message);
                return Err(refuse(message, Some(error.span)));
            }
            Some((build(rows, true)?.0, rows))
        }
    };
    let (one, caches, can_go_back) = build(1, true)?;
    let ids = positions(forward).get(&Name::from("ids")).copied();
    Ok(DecoderPlans { once, one, many, check, caches, can_go_back, axis, ids, convert, orders })
}

fn refuse(message: String, span: Option<Span>) -> StepError {
    StepError::Plan(CompileError { node: None, message: format!("the model cannot be decoded: {message}") }, span)
}

impl Generator {
    /// `forward` reads `ids` along one axis besides `batch`, and gives `logits`. `ahead` is how many proposed tokens it can check at once.
    pub fn new(
        forward: &Graph,
        orders: &BTreeMap<Name, Vec<Name>>,
        keep: Keep<'_>,
        ahead: u64,
        cpu: &Cpu,
    ) -> Result<Generator, RunError> {
        let plans = plan_decoders(forward, orders, keep, ahead)
            .map_err(|error| RunError::failed("deriving the decoder", error.to_string()))?;
        Generator::of_plans(plans, cpu)
    }

    pub fn of_plans(plans: DecoderPlans, cpu: &Cpu) -> Result<Generator, RunError> {
        let DecoderPlans { once, one, many, check, caches, can_go_back, axis, ids, convert, orders } = plans;
        let once = once.map(|plan| Executable::of_plan(plan, cpu)).transpose()?;
        let one = Executable::of_plan(one, cpu)?;
        let of_rows = |plan: Option<(Plan, u64)>| -> Result<Option<(Executable, u64)>, RunError> {
            plan.map(|(plan, rows)| Ok((Executable::of_plan(plan, cpu)?, rows))).transpose()
        };
        let (many, check) = (of_rows(many)?, of_rows(check)?);
        if one.output::<f32>("logits").is_none() {
            return Err(RunError::failed("deriving the decoder", "the model gives no logits"));
        }
        let (held, remembers) = (Vec::new(), false);
        Ok(Generator { once, one, many, check, caches, held, can_go_back, remembers, axis, ids, convert, orders })
    }

    /// The same, which reads nothing again that the text before began with. Its weights must stay as they are.
    pub fn remembering(self) -> Generator {
        Generator { remembers: true, ..self }
    }

    /// The longest text that the model sees at once, in tokens.
    pub fn context(&self) -> u64 {
        self.axis.size
    }

    /// Makes the weights, states and caches that are not there yet.
    pub fn allocate(&self, tensors: &mut Tensors) {
        tensors.allocate(self.one.plan());
        if let Some(once) = &self.once {
            tensors.allocate(once.plan());
        }
        for (executable, _) in self.many.iter().chain(&self.check) {
            tensors.allocate(executable.plan());
        }
    }

    /// Makes what the decoder reads: `load` reads the weights that are in memory by then, as they were trained.
    pub fn load(
        &self,
        tensors: &mut Tensors,
        cpu: &Cpu,
        load: impl FnOnce(&mut Tensors) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        self.allocate(tensors);
        let mut converts = Vec::new();
        for convert in &self.convert {
            let made = Executable::new(&convert.graph, &self.orders, cpu)?;
            tensors.allocate(made.plan());
            converts.push(made);
        }
        load(tensors)?;
        for (made, convert) in converts.iter_mut().zip(&self.convert) {
            made.run(tensors, cpu)?;
            tensors.remove(convert.of.as_str());
        }
        Ok(())
    }

    /// Gives the model what the next text is about: one row of each array, whose axes are these. Weights must be in memory.
    pub fn give(
        &mut self,
        tensors: &mut Tensors,
        cpu: &Cpu,
        given: &[Ordered],
        arrays: &[Array],
        row: u64,
    ) -> Result<(), RunError> {
        self.allocate(tensors);
        self.held.clear();
        let Some(once) = &mut self.once else { return Ok(()) };
        for (name, axes) in given {
            let Some(array) = arrays.iter().find(|array| array.name == *name) else { continue };
            let Some(port) = once.plan().input(name).cloned() else { continue };
            if let Some(to) = once.input_bytes(name) {
                write(&array.row(row), axes, &port, to)?;
            }
        }
        once.run(tensors, cpu)
    }

    /// Writes `new` tokens after the prompt, handing each to `emit`, which may end the text by returning false.
    pub fn generate(
        &mut self,
        tensors: &mut Tensors,
        cpu: &Cpu,
        prompt: &[u32],
        new: u64,
        choice: Choice,
        emit: impl FnMut(u32) -> bool,
    ) -> Result<(), RunError> {
        self.generate_with(None, tensors, cpu, prompt, new, choice, emit).map(|_| ())
    }

    /// The logits that follow a text.
    fn read(&mut self, tensors: &mut Tensors, cpu: &Cpu, text: &[u32]) -> Result<&[f32], RunError> {
        self.advance(tensors, cpu, text, text.len() - 1)?;
        let last = self.held.len();
        step(&mut self.one, &text[last..], last, tensors, cpu)?;
        self.held.extend(&text[last..]);
        Ok(self.one.output::<f32>("logits").unwrap_or_default())
    }

    /// Reads a text as far as `until`; what it was read of before stays.
    fn advance(&mut self, tensors: &mut Tensors, cpu: &Cpu, text: &[u32], until: usize) -> Result<(), RunError> {
        let same = self.held.iter().zip(&text[..until]).take_while(|(held, id)| held == id).count();
        if self.can_go_back {
            self.held.truncate(same);
        } else if same < self.held.len() {
            self.held.clear();
        }
        if self.held.is_empty() {
            for cache in &self.caches {
                tensors.clear(cache);
            }
        }
        while self.held.len() < until {
            // Rows past the end of the text are written to the caches too, and written over before anything sees them.
            let (executable, n) = match &mut self.many {
                Some((many, rows)) if until - self.held.len() >= FEW => {
                    // A block that would reach beyond the context begins earlier, and reads some positions again.
                    self.held.truncate((self.axis.size - *rows) as usize);
                    (many, (until - self.held.len()).min(*rows as usize))
                }
                _ => (&mut self.one, 1),
            };
            let from = self.held.len();
            step(executable, &text[from..][..n], from, tensors, cpu)?;
            self.held.extend(&text[from..][..n]);
        }
        Ok(())
    }
}

/// Runs a program of a decoder on ids from a position on; it may have room for more.
fn step(
    executable: &mut Executable,
    ids: &[u32],
    from: usize,
    tensors: &mut Tensors,
    cpu: &Cpu,
) -> Result<(), RunError> {
    if let Some(to) = executable.input::<i32>("ids") {
        to.fill(0);
        for (to, id) in to.iter_mut().zip(ids) {
            *to = *id as i32;
        }
    }
    if let Some(pos) = executable.input::<i32>(POS) {
        pos[0] = from as i32;
    }
    executable.run(tensors, cpu)
}

/// The axis of `ids` that is not `batch`.
fn sequence_axis(forward: &Graph) -> Result<Axis, String> {
    let ids = forward.inputs().iter().find(|input| input.name.as_str() == "ids");
    let axes =
        ids.map(|ids| ids.ty.axes.iter().filter(|axis| axis.name.as_str() != "batch").cloned().collect::<Vec<_>>());
    match axes.as_deref() {
        Some([axis]) => Ok(axis.clone()),
        _ => Err("it does not read `ids` along one axis".to_string()),
    }
}

#[cfg(test)]
mod tests;
