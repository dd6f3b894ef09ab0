//! Writing in rounds: a draft proposes what comes next, the model checks all of it in one pass, and what it would not have said goes.
//!
//! A token `x` that the draft drew with probability `q(x)` stays with probability `min(1, p(x) / q(x))`, `p` being the model's; the first that
//! does not stay is drawn anew of what `p` has more than `q`, and the rest of the round is dropped. So each token is as likely as if the
//! model had written alone (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318); where the most likely one is
//! taken always, it is the same. Without proposals a round is one token, which is how a model writes alone.

use super::{Choice, Draws, Generator, Odds, step};
use crate::device::{Cpu, Tensors};
use crate::error::RunError;

/// A model that proposes, with its weights.
pub struct Draft<'a> {
    generator: &'a mut Generator,
    tensors: &'a mut Tensors,
    /// How many tokens it proposes at once.
    ahead: u64,
    /// It sees the text from here on: its context may be shorter.
    from: usize,
}

/// What became of the proposals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafted {
    pub proposed: u64,
    pub accepted: u64,
}

struct Proposal {
    id: u32,
    odds: Odds,
}

impl<'a> Draft<'a> {
    /// Refused is a model that keeps what it has reached and not positions: what was proposed in vain could not be taken back.
    pub fn new(generator: &'a mut Generator, tensors: &'a mut Tensors, ahead: u64) -> Result<Draft<'a>, RunError> {
        if !generator.can_go_back {
            let why =
                "a recurrent model cannot take back what it has read, and proposals are read before they are checked";
            return Err(RunError::Usage(format!("the draft cannot propose: {why}")));
        }
        Ok(Draft { generator, tensors, ahead, from: 0 })
    }

    /// What it would say after a text, at most so many tokens.
    fn propose(
        &mut self,
        cpu: &Cpu,
        text: &[u32],
        most: u64,
        choice: &Choice,
        draws: &mut Draws,
    ) -> Result<Vec<Proposal>, RunError> {
        let most = most.min(self.ahead) as usize;
        let context = self.generator.context() as usize;
        if self.from >= text.len() {
            self.from = 0;
        }
        if text.len() - self.from + most > context {
            self.from = text.len() - text.len().min((context / 2).max(1));
        }
        let mut seen = text[self.from..].to_vec();
        let most = most.min(context.saturating_sub(seen.len()));
        let mut proposals = Vec::with_capacity(most);
        for _ in 0..most {
            let odds = Odds::of(self.generator.read(self.tensors, cpu, &seen)?, choice);
            let id = draws.proposal(&odds);
            seen.push(id);
            proposals.push(Proposal { id, odds });
        }
        Ok(proposals)
    }
}

impl Generator {
    /// As [`Generator::generate`], with the help of a draft.
    #[expect(clippy::too_many_arguments, reason = "what a text is written with, and by whom")]
    pub fn generate_with(
        &mut self,
        mut draft: Option<Draft<'_>>,
        tensors: &mut Tensors,
        cpu: &Cpu,
        prompt: &[u32],
        new: u64,
        choice: Choice,
        mut emit: impl FnMut(u32) -> bool,
    ) -> Result<Drafted, RunError> {
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
        if !self.remembers {
            self.held.clear();
        }
        let mut draws = Draws::new(choice.seed);
        let mut text: Vec<u32> = prompt.to_vec();
        let (mut written, mut drafted) = (0, Drafted::default());
        while written < new {
            if text.len() as u64 > self.context() {
                // The window is full: what the caches hold is at positions that no longer fit.
                let kept = (self.context() / 2).max(1) as usize;
                text.drain(..text.len() - kept);
            }
            // The last token of a round is the model's own.
            let most = (self.context() - text.len() as u64).min(new - written - 1);
            let proposals = match &mut draft {
                Some(draft) => draft.propose(cpu, &text, most, &choice, &mut draws)?,
                None => Vec::new(),
            };
            drafted.proposed += proposals.len() as u64;
            let all = self.check(tensors, cpu, &text, &proposals, &choice)?;
            for (at, odds) in all.iter().enumerate() {
                let proposal = proposals.get(at);
                let stays = proposal.filter(|proposal| {
                    let (p, q) = (odds.p(proposal.id), proposal.odds.p(proposal.id));
                    draws.is_accepted(p / q, written)
                });
                let id = match (stays, proposal) {
                    (Some(proposal), _) => proposal.id,
                    (None, Some(proposal)) => draws.token(&odds.beyond(&proposal.odds), written),
                    (None, None) => draws.token(odds, written),
                };
                drafted.accepted += u64::from(stays.is_some());
                text.push(id);
                written += 1;
                if !emit(id) {
                    return Ok(drafted);
                }
                if stays.is_none() {
                    break;
                }
            }
        }
        Ok(drafted)
    }

    /// How likely each id is after a text, and after each of the proposals behind it.
    fn check(
        &mut self,
        tensors: &mut Tensors,
        cpu: &Cpu,
        text: &[u32],
        proposals: &[Proposal],
        choice: &Choice,
    ) -> Result<Vec<Odds>, RunError> {
        if proposals.is_empty() {
            return Ok(vec![Odds::of(self.read(tensors, cpu, text)?, choice)]);
        }
        let last = text.len() - 1;
        self.advance(tensors, cpu, text, last)?;
        let Some((check, rows)) = &mut self.check else {
            mdl_graph::bug!("a decoder that cannot check is given proposals")
        };
        // As in a prompt, a block that would reach beyond the context begins earlier.
        let from = last.min((self.axis.size - *rows) as usize);
        let mut ids = text.to_vec();
        ids.extend(proposals.iter().map(|proposal| proposal.id));
        step(check, &ids[from..], from, tensors, cpu)?;
        self.held = ids;
        let (Some(port), Some(logits)) = (check.plan().output("logits"), check.output::<f32>("logits")) else {
            mdl_graph::bug!("a decoder that checks gives no logits")
        };
        let rows = *rows as usize;
        let vocab = logits.len() / rows;
        // Besides the two, axes are of size 1: positions are either outside of ids or inside of them.
        let inner = port.axes.iter().rev().take_while(|axis| axis.name != self.axis.name);
        let is_outer = inner.map(|axis| axis.size as usize).product::<usize>() == vocab;
        let row = |at: usize| -> Vec<f32> {
            let place = |id: usize| if is_outer { at * vocab + id } else { id * rows + at };
            (0..vocab).map(|id| logits[place(id)]).collect()
        };
        let places = last - from..=last - from + proposals.len();
        Ok(places.map(|at| Odds::of(&row(at), choice)).collect())
    }
}
