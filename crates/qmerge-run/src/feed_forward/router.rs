//! Which experts serve a token, and their shares.

use qmerge::arch::spec::{self, Groups, Scores};
use qmerge::error::Result;

use crate::activation::{sigmoid, softmax};
use crate::linear::{Input, Linear};
use crate::tensors::Tensors;

/// Chooses experts.
#[derive(Debug)]
pub(super) struct Router<'a> {
    pub(super) linear: Linear<'a>,
    spec: spec::Router,
    correction: Option<Vec<f32>>,
}

/// The tokens that an expert serves, each with its share; those that come next for it behind them.
#[derive(Clone, Debug, Default)]
pub(super) struct Served {
    pub(super) tokens: Vec<(usize, f32)>,
    /// How many it serves.
    pub(super) own: usize,
}

impl<'a> Router<'a> {
    /// The router beside a module that holds experts; `beside` makes a path of a name.
    pub(super) fn new(
        tensors: &Tensors<'a>,
        spec: &spec::Router,
        hidden: usize,
        beside: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let linear = Linear::new(tensors, &beside(spec.name), spec.count, hidden)?;
        let correction = spec.correction.map(|name| tensors.needed(&beside(name), spec.count)).transpose()?;
        Ok(Self { linear, spec: *spec, correction })
    }

    /// What each expert serves of the columns of `x`. One that serves fewer than `least` gets those tokens behind its own for which its score is the
    /// highest among the others.
    pub(super) fn serve(&self, x: &Input<'_>, least: usize) -> Result<Vec<Served>> {
        let (logits, tokens) = (self.linear.forward(x)?, x.tokens());
        let mut served = vec![Served::default(); self.spec.count];
        for t in 0..tokens {
            let scores: Vec<f32> = logits.iter().skip(t).step_by(tokens).copied().collect();
            for (expert, share) in self.choose(scores) {
                served[expert].tokens.push((t, share));
                served[expert].own += 1;
            }
        }
        if served.iter().any(|served| served.own < least) {
            // Shares of all experts, (experts, tokens).
            let mut shares = vec![0.0; logits.len()];
            for t in 0..tokens {
                let mut own: Vec<f32> = logits.iter().skip(t).step_by(tokens).copied().collect();
                self.score(&mut own);
                shares[t..].iter_mut().step_by(tokens).zip(own).for_each(|(share, own)| *share = own);
            }
            for (served, shares) in served.iter_mut().zip(shares.chunks_exact(tokens)) {
                served.borrow(shares, least);
            }
        }
        Ok(served)
    }

    /// What the outputs of the matrix become, without a choice.
    fn score(&self, outputs: &mut [f32]) {
        match self.spec.scores {
            Scores::Softmax | Scores::OneByOne { .. } => softmax(outputs),
            Scores::Sigmoid => sigmoid(outputs),
        }
    }

    /// The experts of a token, with their shares.
    fn choose(&self, mut scores: Vec<f32>) -> Vec<(usize, f32)> {
        let spec = &self.spec;
        if let Scores::OneByOne { within } = spec.scores {
            return one_by_one(&scores, spec.per_token, within);
        }
        self.score(&mut scores);
        let mut merits = scores.clone();
        if let Some(correction) = &self.correction {
            merits.iter_mut().zip(correction).for_each(|(merit, correction)| *merit += correction);
        }
        let mut order: Vec<usize> = (0..merits.len()).collect();
        if let Some(groups) = spec.groups {
            let kept = kept(&merits, groups);
            order.retain(|expert| kept[expert / (merits.len() / groups.count)]);
        }
        order.sort_by(|&a, &b| merits[b].total_cmp(&merits[a]));
        order.truncate(spec.per_token);
        let sum: f32 = order.iter().map(|&expert| scores[expert]).sum();
        let factor = spec.scale / spec.normalize.map_or(1.0, |least| sum.max(least));
        order.into_iter().map(|expert| (expert, scores[expert] * factor)).collect()
    }
}

impl Served {
    /// Takes the tokens with the largest shares that it does not serve, until there are `least`.
    fn borrow(&mut self, shares: &[f32], least: usize) {
        let mut is_own = vec![false; shares.len()];
        self.tokens.iter().for_each(|&(t, _)| is_own[t] = true);
        let mut others: Vec<usize> = (0..shares.len()).filter(|&t| !is_own[t]).collect();
        others.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        others.truncate(least.saturating_sub(self.own));
        others.sort_unstable();
        self.tokens.extend(others.into_iter().map(|t| (t, shares[t])));
    }
}

/// True for each group that is kept: those with the largest sum of their best merits.
fn kept(merits: &[f32], groups: Groups) -> Vec<bool> {
    let of_group = |group: &[f32]| -> f32 {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        group.iter().take(groups.best).sum()
    };
    let sums: Vec<f32> = merits.chunks_exact(merits.len() / groups.count).map(of_group).collect();
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
    let mut kept = vec![false; sums.len()];
    order.iter().take(groups.kept).for_each(|&group| kept[group] = true);
    kept
}

/// The most likely expert, then the most likely of the others, and so on. A share is the expert's probability among those not yet drawn whose
/// score is no further below its own than `within`, relative to the larger magnitude.
fn one_by_one(scores: &[f32], per_token: usize, within: f32) -> Vec<(usize, f32)> {
    let mut left: Vec<usize> = (0..scores.len()).collect();
    left.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut chosen = Vec::new();
    for _ in 0..per_token.min(scores.len()) {
        let expert = left[0];
        let best = scores[expert];
        let near = left.iter().map(|&other| scores[other]).filter(|x| (best - x) / x.abs().max(best) <= within);
        let sum: f32 = near.map(|x| libm::expf(x - best)).sum();
        // Where all scores are zero the distance is no number, and the best is alone.
        chosen.push((expert, 1.0 / sum.max(1.0)));
        left.remove(0);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_with_few_tokens_takes_those_that_come_next() {
        let shares = [0.1, 0.9, 0.3, 0.5, 0.2];
        let mut served = Served { tokens: vec![(1, 0.9)], own: 1 };
        served.borrow(&shares, 3);
        assert_eq!(served.tokens, [(1, 0.9), (2, 0.3), (3, 0.5)]);
        assert_eq!(served.own, 1);
        served.borrow(&shares, 1);
        assert_eq!(served.tokens.len(), 3);
    }

    #[test]
    fn groups_are_kept_by_the_sum_of_their_best() {
        let merits = [0.9, 0.0, 0.5, 0.6, 0.1, 0.2];
        let groups = |best| Groups { count: 3, kept: 1, best };
        assert_eq!(kept(&merits, groups(1)), [true, false, false]);
        assert_eq!(kept(&merits, groups(2)), [false, true, false]);
    }

    #[test]
    fn experts_are_drawn_one_by_one() {
        // 1.99 is within a fiftieth of 2, and 1 is not; behind 2 only 1.99 is left near itself.
        let chosen = one_by_one(&[1.0, 2.0, 1.99], 2, 0.02);
        assert_eq!(chosen.iter().map(|(expert, _)| *expert).collect::<Vec<_>>(), [1, 2]);
        assert!((chosen[0].1 - 1.0 / (1.0 + (-0.01_f32).exp())).abs() < 1e-6, "{chosen:?}");
        assert_eq!(chosen[1].1, 1.0);
    }
}
