//! Text from a trained model, one token after another.
//!
//! In: the forward graph, the weights, a prompt as ids. Out: ids, chosen by [`Choice`]. The decoder is derived from the
//! forward graph ([`mdl_lang::decode`]): a token costs what one position costs, however long the text already is. Once the context is
//! full, the last half of it is read again and the text goes on from there.

use std::collections::BTreeMap;

use mdl_compiler::budget::{StepError, compile};
use mdl_compiler::pass::Options;
use mdl_compiler::plan::{CompileError, Plan, PlanOptions};
use mdl_compiler::stored::Convert;
use mdl_graph::{Axis, Graph, Name, Role, Span, philox};
use mdl_lang::decode::{POS, decode};

use crate::device::{Cpu, Executable, Tensors};
use crate::error::RunError;
use crate::kept::Keep;
use crate::positions::{Positions, positions};

/// How many positions of a prompt are read at once, where the model allows it: the most that the context has room for. Weights are read once
/// for all of them, so 64 cost little more than the memory traffic of one. Of a prompt only the last position's logits are asked for: it is
/// read by itself, and blocks make none.
const PROMPT_ROWS: [u64; 2] = [64, 16];
/// A block shorter than this is read one position at a time: it would multiply by rows that nobody asks for.
const FEW: usize = 3;

/// How the next token is chosen from the model's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Divides the logits; 0 takes the most likely token always.
    pub temperature: f64,
    /// Only the `k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 for all.
    pub top_p: f64,
    pub seed: u64,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// A decoder that is ready to run.
pub struct Generator {
    one: Executable,
    /// Reads so many positions at once.
    many: Option<(Executable, u64)>,
    caches: Vec<Name>,
    context: u64,
    /// Which ids the model knows.
    ids: Option<Positions>,
    scratch: Vec<(f32, u32)>,
    convert: Vec<Convert>,
    orders: BTreeMap<Name, Vec<Name>>,
}

/// The programs of a decoder.
pub struct DecoderPlans {
    pub(crate) one: Plan,
    /// Reads so many positions at once.
    many: Option<(Plan, u64)>,
    caches: Vec<Name>,
    pub(crate) context: u64,
    ids: Option<Positions>,
    /// Makes the matrices as they are kept of those that were trained.
    convert: Vec<Convert>,
    orders: BTreeMap<Name, Vec<Name>>,
}

impl DecoderPlans {
    pub fn plans(&self) -> impl Iterator<Item = &Plan> {
        std::iter::once(&self.one).chain(self.many.iter().map(|(plan, _)| plan))
    }
}

/// Plans the decoder of `forward`, which reads `ids` along one axis besides `batch`, and gives `logits`.
pub fn plan_decoders(
    forward: &Graph,
    orders: &BTreeMap<Name, Vec<Name>>,
    keep: Keep<'_>,
) -> Result<DecoderPlans, StepError> {
    let axis = sequence_axis(forward).map_err(|message| refuse(message, None))?;
    let mut orders = orders.clone();
    let mut convert = Vec::new();
    let mut build = |rows: u64| -> Result<(Plan, Vec<Name>), StepError> {
        let mut decoder = decode(forward, &axis, rows).map_err(|error| refuse(error.message, Some(error.span)))?;
        if rows > 1 {
            let outputs = decoder.graph.outputs().iter().filter(|output| output.role != Role::Value).cloned();
            let outputs = outputs.collect();
            decoder.graph.set_outputs(outputs);
        }
        let (graph, all, made) = keep.apply(&decoder.graph, &orders);
        (orders, convert) = (all, made);
        let planning = PlanOptions { orders: orders.clone(), ..PlanOptions::default() };
        Ok((compile(&graph, &Options::default(), &planning, None)?, decoder.caches))
    };
    // A recurrent model is read one position at a time.
    let rows = PROMPT_ROWS.into_iter().find(|rows| *rows <= axis.size);
    let many = rows.and_then(|rows| Some((build(rows).ok()?.0, rows)));
    let (one, caches) = build(1)?;
    let ids = positions(forward).get(&Name::from("ids")).copied();
    Ok(DecoderPlans { one, many, caches, context: axis.size, ids, convert, orders })
}

fn refuse(message: String, span: Option<Span>) -> StepError {
    StepError::Plan(CompileError { node: None, message: format!("the model cannot be decoded: {message}") }, span)
}

impl Generator {
    /// `forward` reads `ids` along one axis besides `batch`, and gives `logits`.
    pub fn new(
        forward: &Graph,
        orders: &BTreeMap<Name, Vec<Name>>,
        keep: Keep<'_>,
        cpu: &Cpu,
    ) -> Result<Generator, RunError> {
        let plans = plan_decoders(forward, orders, keep)
            .map_err(|error| RunError::failed("deriving the decoder", error.to_string()))?;
        Generator::of_plans(plans, cpu)
    }

    pub fn of_plans(plans: DecoderPlans, cpu: &Cpu) -> Result<Generator, RunError> {
        let DecoderPlans { one, many, caches, context, ids, convert, orders } = plans;
        let one = Executable::of_plan(one, cpu)?;
        let many = match many {
            Some((plan, rows)) => Some((Executable::of_plan(plan, cpu)?, rows)),
            None => None,
        };
        let Some(vocab) = one.output::<f32>("logits").map(<[f32]>::len) else {
            return Err(RunError::failed("deriving the decoder", "the model gives no logits"));
        };
        Ok(Generator { one, many, caches, context, ids, scratch: Vec::with_capacity(vocab), convert, orders })
    }

    /// The longest text that the model sees at once, in tokens.
    pub fn context(&self) -> u64 {
        self.context
    }

    /// Makes the weights, states and caches that are not there yet.
    pub fn allocate(&self, tensors: &mut Tensors) {
        tensors.allocate(self.one.plan());
        if let Some((many, _)) = &self.many {
            tensors.allocate(many.plan());
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

    /// Writes `new` tokens after the prompt, handing each to `emit`, which may end the text by returning false.
    pub fn generate(
        &mut self,
        tensors: &mut Tensors,
        cpu: &Cpu,
        prompt: &[u32],
        new: u64,
        choice: Choice,
        mut emit: impl FnMut(u32) -> bool,
    ) -> Result<(), RunError> {
        if prompt.is_empty() {
            return Err(RunError::failed(
                "generating text",
                "the prompt is empty; the model needs a token to begin with",
            ));
        }
        if let Some(allowed) = self.ids {
            prompt.iter().try_for_each(|id| allowed.check("ids", i64::from(*id)))?;
        }
        self.allocate(tensors);
        for cache in &self.caches {
            tensors.clear(cache);
        }
        let mut text: Vec<u32> = prompt.to_vec();
        let mut read = 0;
        for drawn in 0..new {
            if text.len() as u64 > self.context {
                // The window is full: what the caches hold is at positions that no longer fit.
                let kept = (self.context / 2).max(1) as usize;
                text.drain(..text.len() - kept);
                read = 0;
            }
            self.read(tensors, cpu, &text, &mut read)?;
            let id = self.choose(choice, drawn);
            text.push(id);
            if !emit(id) {
                break;
            }
        }
        Ok(())
    }

    /// Reads the tokens that were not read yet; the logits of the last one are in `scratch` then.
    fn read(&mut self, tensors: &mut Tensors, cpu: &Cpu, text: &[u32], read: &mut u64) -> Result<(), RunError> {
        while (*read as usize) < text.len() {
            // All but the last one, whose logits are asked for. Rows past the end of the text are written to the caches too, and written
            // over before anything sees them.
            let before_last = text.len() - 1;
            let (executable, n) = match &mut self.many {
                Some((many, rows)) if before_last - *read as usize >= FEW => {
                    // A block that would reach beyond the context begins earlier, and reads some positions again.
                    *read = (*read).min(self.context - *rows);
                    (many, (before_last - *read as usize).min(*rows as usize))
                }
                _ => (&mut self.one, 1),
            };
            if let Some(ids) = executable.input::<i32>("ids") {
                ids.fill(0);
                for (to, id) in ids.iter_mut().zip(&text[*read as usize..][..n]) {
                    *to = *id as i32;
                }
            }
            if let Some(pos) = executable.input::<i32>(POS) {
                pos[0] = *read as i32;
            }
            executable.run(tensors, cpu)?;
            *read += n as u64;
        }
        let logits = self.one.output::<f32>("logits").unwrap_or_default();
        self.scratch.clear();
        self.scratch.extend(logits.iter().enumerate().map(|(id, logit)| (*logit, id as u32)));
        Ok(())
    }

    /// Chooses by the logits in `scratch`: the most likely tokens first, equal ones by their ids.
    fn choose(&mut self, choice: Choice, drawn: u64) -> u32 {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let candidates = &mut self.scratch;
        if choice.temperature <= 0.0 {
            return candidates.iter().min_by(|a, b| order(a, b)).map_or(0, |best| best.1);
        }
        candidates.sort_by(order);
        if choice.top_k > 0 {
            candidates.truncate(choice.top_k);
        }
        let best = candidates.first().map_or(0.0, |best| best.0);
        let weight = |logit: f32| (f64::from(logit - best) / choice.temperature).exp();
        let total: f64 = candidates.iter().map(|candidate| weight(candidate.0)).sum();
        let mut kept = 0.0;
        let mut n = 0;
        for candidate in candidates.iter() {
            kept += weight(candidate.0);
            n += 1;
            if kept >= choice.top_p * total {
                break;
            }
        }
        let (low, high) = (choice.seed as u32, (choice.seed >> 32) as u32);
        let mut left = f64::from(philox::uniform(low, high, 0, 0, drawn as u32)) * kept;
        for candidate in &candidates[..n] {
            left -= weight(candidate.0);
            if left < 0.0 {
                return candidate.1;
            }
        }
        candidates[n - 1].1
    }
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
