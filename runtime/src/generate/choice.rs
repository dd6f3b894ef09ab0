//! How the next token is chosen: what a [`Choice`] leaves of a model's logits, and draws from it.

use mdl_graph::philox;

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

/// How likely each id is by a model and a choice. What is most likely always has a weight.
#[derive(Clone, Debug, Default)]
pub(super) struct Odds {
    /// By id; their sum is `total`.
    weights: Vec<f64>,
    total: f64,
}

impl Odds {
    pub(super) fn of(logits: &[f32], choice: &Choice) -> Odds {
        let mut odds = Odds { weights: vec![0.0; logits.len()], total: 0.0 };
        // Of equal ones the first.
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let Some(best) = (0..logits.len() as u32).min_by(likelier) else { return odds };
        if choice.temperature <= 0.0 {
            odds.weights[best as usize] = 1.0;
            odds.total = 1.0;
            return odds;
        }
        let highest = f64::from(logits[best as usize]);
        let weight = |id: u32| match ((f64::from(logits[id as usize]) - highest) / choice.temperature).exp() {
            // Of what is not finite, only the best can be chosen.
            weight if weight.is_nan() => f64::from(u8::from(id == best)),
            weight => weight,
        };
        let all = 0..logits.len() as u32;
        if choice.top_k == 0 && choice.top_p >= 1.0 {
            for id in all {
                odds.weights[id as usize] = weight(id);
            }
        } else {
            let mut likeliest: Vec<u32> = all.collect();
            if choice.top_k > 0 && choice.top_k < likeliest.len() {
                likeliest.select_nth_unstable_by(choice.top_k - 1, likelier);
                likeliest.truncate(choice.top_k);
            }
            likeliest.sort_unstable_by(likelier);
            let enough = choice.top_p * likeliest.iter().map(|id| weight(*id)).sum::<f64>();
            let mut kept = 0.0;
            for id in likeliest {
                odds.weights[id as usize] = weight(id);
                kept += weight(id);
                if kept >= enough {
                    break;
                }
            }
        }
        odds.total = odds.weights.iter().sum();
        odds
    }

    /// The probability of an id.
    pub(super) fn p(&self, id: u32) -> f64 {
        self.weights.get(id as usize).map_or(0.0, |weight| weight / self.total)
    }

    /// What these have more than others, id by id.
    pub(super) fn beyond(&self, others: &Odds) -> Odds {
        let more = |id: u32| (self.p(id) - others.p(id)).max(0.0);
        let weights: Vec<f64> = (0..self.weights.len() as u32).map(more).collect();
        match weights.iter().sum() {
            // The two are the same but for rounding.
            0.0 => self.clone(),
            total => Odds { weights, total },
        }
    }

    /// The id at a fraction of all that there is.
    fn at(&self, fraction: f64) -> u32 {
        let mut left = fraction * self.total;
        let mut last = 0;
        for (id, weight) in (0..).zip(&self.weights).filter(|(_, weight)| **weight > 0.0) {
            left -= weight;
            last = id;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// Random numbers of one text: those of different purposes have nothing to do with each other.
pub(super) struct Draws {
    seed: (u32, u32),
    n_proposed: u32,
}

/// What numbers are drawn for.
const TOKEN: u32 = 0;
const ACCEPTED: u32 = 1;
const PROPOSED: u32 = 2;

impl Draws {
    pub(super) fn new(seed: u64) -> Draws {
        Draws { seed: (seed as u32, (seed >> 32) as u32), n_proposed: 0 }
    }

    fn uniform(&self, purpose: u32, at: u32) -> f64 {
        f64::from(philox::uniform(self.seed.0, self.seed.1, purpose, 0, at))
    }

    /// The token at a place of what is written.
    pub(super) fn token(&self, odds: &Odds, at: u64) -> u32 {
        odds.at(self.uniform(TOKEN, at as u32))
    }

    /// Whether what was proposed for a place stays, which is as probable as this.
    pub(super) fn is_accepted(&self, p: f64, at: u64) -> bool {
        self.uniform(ACCEPTED, at as u32) < p
    }

    /// A token to propose. A place may be proposed for more than once, each time anew.
    pub(super) fn proposal(&mut self, odds: &Odds) -> u32 {
        self.n_proposed = self.n_proposed.wrapping_add(1);
        odds.at(self.uniform(PROPOSED, self.n_proposed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(logits: &[f32], choice: Choice) -> Vec<f64> {
        let odds = Odds::of(logits, &choice);
        (0..logits.len() as u32).map(|id| (odds.p(id) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn a_choice_leaves_the_most_likely() {
        let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln()];
        let choice = Choice::default();
        assert_eq!(shares(&logits, choice), [0.1, 0.2, 0.5, 0.2]);
        assert_eq!(shares(&logits, Choice { temperature: 0.0, ..choice }), [0.0, 0.0, 1.0, 0.0]);
        // Of equal ones the first.
        assert_eq!(shares(&logits, Choice { top_k: 2, ..choice }), [0.0, 0.285714, 0.714286, 0.0]);
        assert_eq!(shares(&logits, Choice { top_p: 0.69, ..choice }), [0.0, 0.285714, 0.714286, 0.0]);
        assert_eq!(shares(&logits, Choice { top_p: 0.4, ..choice }), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(shares(&logits, Choice { top_k: 9, top_p: 0.99, ..choice }), [0.1, 0.2, 0.5, 0.2]);
        let half = Choice { temperature: 0.5, ..choice };
        assert_eq!(shares(&logits, half), [0.029412, 0.117647, 0.735294, 0.117647]);
    }

    #[test]
    fn what_is_not_finite_is_no_panic() {
        for logits in [vec![], vec![f32::NAN; 3], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY, 0.0, f32::INFINITY]] {
            let odds = Odds::of(&logits, &Choice::default());
            assert!((Draws::new(1).token(&odds, 0) as usize) < logits.len().max(1), "{odds:?}");
        }
    }

    #[test]
    fn beyond_is_what_the_other_lacks() {
        let choice = Choice::default();
        let (a, b) = (Odds::of(&[0.0, 3.0_f32.ln()], &choice), Odds::of(&[0.0, 0.0, 2.0_f32.ln()], &choice));
        let more = a.beyond(&b);
        // 1/4 and 3/4 against 1/4, 1/4 and 1/2.
        assert!(more.p(0) < 1e-6 && (more.p(1) - 1.0).abs() < 1e-6, "{more:?}");
        assert_eq!(a.beyond(&a).p(1), a.p(1));
    }
}
