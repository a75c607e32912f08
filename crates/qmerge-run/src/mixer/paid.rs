//! How much attention is paid to each token, and what that means for the layers that make queries, keys and values.
//!
//! An error e of a token's value comes out of every query that attends to the token, in the share s with which it does: what it costs is s²·|e|², summed over
//! queries and heads; of a key, about the same. A text's first token, to which heads turn when they have nothing to look for (attention sinks, Xiao et al. 2024),
//! costs as much as hundreds of others by that in most layers, and it is one token of a window. So in the moments of these layers' inputs half of the weight goes by what is paid
//! to a token; the other half is the same for all, since queries prefer no token and shares differ from text to text (the book's research notes have the figures).

use qmerge::error::Result;

use super::Pass;
use crate::linear::{Input, Linear, Watch};

/// Squared shares by token, summed over heads and queries; nothing where no one asked.
#[derive(Debug, Default)]
pub(super) struct Paid(Vec<f32>);

/// Share of the weight that all tokens have alike.
const EVEN: f32 = 0.5;

impl Paid {
    /// Of each head's sums, in the order of heads.
    pub(super) fn of_heads(heads: impl IntoIterator<Item = Vec<f32>>) -> Self {
        let mut heads = heads.into_iter();
        let mut sums = heads.next().unwrap_or_default();
        for head in heads {
            sums.iter_mut().zip(&head).for_each(|(sum, own)| *sum += own);
        }
        Self(sums)
    }

    /// Shows what these layers are given, with columns as long as makes their squares' mean the weighted one. A sequence whose tokens are paid nothing stays as it is;
    /// so does all where nobody asked.
    pub(super) fn show(&self, layers: &[Linear<'_>], x: &Input<'_>, pass: &Pass, watch: &mut dyn Watch) -> Result<()> {
        let tokens = self.0.len();
        if tokens == 0 {
            return Linear::show(layers, x, watch);
        }
        let mut lengths = vec![1.0; tokens];
        for sequence in &pass.sequences {
            let paid = &self.0[sequence.columns.clone()];
            let mean = paid.iter().map(|&paid| f64::from(paid)).sum::<f64>() / paid.len().max(1) as f64;
            if mean > 0.0 && mean.is_finite() {
                let length = |&paid: &f32| libm::sqrtf(EVEN + (1.0 - EVEN) * (f64::from(paid) / mean) as f32);
                lengths[sequence.columns.clone()].iter_mut().zip(paid).for_each(|(to, paid)| *to = length(paid));
            }
        }
        let mut longer = x.values().to_vec();
        for row in longer.chunks_exact_mut(tokens) {
            row.iter_mut().zip(&lengths).for_each(|(x, length)| *x *= length);
        }
        let features = x.values().len() / tokens;
        Linear::show(layers, &x.like(&longer, features), watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_add_up() {
        let paid = Paid::of_heads([vec![1.0, 2.0], vec![0.5, 0.0], vec![0.0, 4.0]]);
        assert_eq!(paid.0, [1.5, 6.0]);
        assert!(Paid::of_heads([]).0.is_empty());
    }
}
