//! What is done with the values of several adapters, place by place.
//!
//! Source: PEFT 0.21, `utils/merge_utils.py`; TIES is of Yadav et al. 2023, DARE of Yu et al. 2023. Sums and products are f32, in the order of the adapters, as
//! there. Which values DARE drops depends on the seed, the module, the adapter and the place, so they are the same for every number of threads, and others
//! than torch's generator gives.

use crate::round::hash;

/// What becomes of the values of one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Sum,
    MagnitudePrune,
    Ties,
    DareLinear,
    DareTies,
}

impl Operator {
    pub(super) fn draws(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }

    pub(super) fn votes(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }
}

/// How a place's sign is elected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Majority {
    /// That of the sum of the values.
    #[default]
    Total,
    /// That which more values have.
    Frequency,
}

/// Which values of one adapter's tensor stay.
#[derive(Debug)]
pub(super) enum Kept {
    All,
    /// Those above a magnitude, and of those that are just as large the first.
    Largest {
        least: f32,
        equal: usize,
    },
    /// Each with this chance, and then larger by as much.
    Drawn {
        seed: u64,
        density: f32,
    },
}

impl Kept {
    /// What an operator leaves of a tensor; `values` are only looked at where it goes by them.
    pub(super) fn of(operator: Operator, density: f64, seed: u64, values: impl FnOnce() -> Vec<f32>) -> Self {
        if operator == Operator::Sum || density >= 1.0 {
            return Self::All;
        }
        if operator.draws() {
            return Self::Drawn { seed, density: density as f32 };
        }
        let mut sizes: Vec<f32> = values();
        sizes.iter_mut().for_each(|x| *x = x.abs());
        let count = (density * sizes.len() as f64) as usize;
        if count == 0 {
            return Self::Largest { least: f32::INFINITY, equal: 0 };
        }
        let (above, least, _) = sizes.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        let least = *least;
        Self::Largest { least, equal: count - above.iter().filter(|x| **x > least).count() }
    }

    /// Drops values; `first` is the place of the first of them, and places come in order.
    pub(super) fn prune(&mut self, first: u64, values: &mut [f32]) {
        match self {
            Self::All => {}
            Self::Largest { least, equal } => {
                for x in values {
                    let size = x.abs();
                    let stays = size > *least || size == *least && *equal > 0;
                    *equal -= usize::from(stays && size == *least);
                    *x = if stays { *x } else { 0.0 };
                }
            }
            Self::Drawn { seed, density } => {
                for (place, x) in (first..).zip(values) {
                    let drawn = (hash(*seed ^ hash(place)) >> 11) as f64 / (1_u64 << 53) as f64;
                    *x = if drawn < f64::from(*density) { *x / *density } else { 0.0 };
                }
            }
        }
    }
}

/// One value of each place, from the values that were kept of each adapter.
pub(super) fn join(operator: Operator, majority: Majority, weights: &[f32], values: &[Vec<f32>], out: &mut [f32]) {
    let all = || values.iter().zip(weights);
    if !operator.votes() {
        for (at, out) in out.iter_mut().enumerate() {
            *out = all().map(|(values, weight)| values[at] * weight).sum();
        }
        return;
    }
    for (at, out) in out.iter_mut().enumerate() {
        let own = || values.iter().map(|values| values[at]);
        let vote: f32 = match majority {
            Majority::Total => own().sum(),
            Majority::Frequency => own().map(sign).sum(),
        };
        let elected = if vote >= 0.0 { 1.0 } else { -1.0 };
        let agree = || all().filter(|(values, _)| sign(values[at]) == elected);
        let sum: f32 = agree().map(|(values, weight)| values[at] * weight).sum();
        *out = sum / agree().count().max(1) as f32;
    }
}

/// −1, 0 or 1.
fn sign(x: f32) -> f32 {
    f32::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pruned(operator: Operator, density: f64, seed: u64, values: &[f32]) -> Vec<f32> {
        let mut kept = Kept::of(operator, density, seed, || values.to_vec());
        let mut out = values.to_vec();
        // In two pieces, as rows come.
        let (first, second) = out.split_at_mut(values.len() / 3);
        kept.prune(0, first);
        kept.prune(first.len() as u64, second);
        out
    }

    #[test]
    fn the_largest_stay_and_of_equal_ones_the_first() {
        let values = [1.0, -3.0, 2.0, 2.0, -2.0, 0.5, 0.0];
        assert_eq!(pruned(Operator::Ties, 0.5, 0, &values), [0.0, -3.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(pruned(Operator::MagnitudePrune, 0.01, 0, &values), [0.0; 7]);
        assert_eq!(pruned(Operator::MagnitudePrune, 1.0, 0, &values), values);
    }

    #[test]
    fn values_are_drawn_by_seed_and_keep_their_mean() {
        let values = vec![1.0_f32; 20_000];
        let drawn = pruned(Operator::DareLinear, 0.25, 7, &values);
        assert_eq!(drawn, pruned(Operator::DareTies, 0.25, 7, &values));
        assert!(drawn != pruned(Operator::DareLinear, 0.25, 8, &values));
        assert!(drawn.iter().all(|x| *x == 0.0 || *x == 4.0));
        assert!((drawn.iter().sum::<f32>() / 20_000.0 - 1.0).abs() < 0.04);
    }

    #[test]
    fn signs_vote() {
        let values = [vec![3.0, -1.0, 0.0, 1.0], vec![-1.0, -1.0, 0.0, -1.0], vec![-1.0, 4.0, 0.0, 0.0]];
        let join = |majority| {
            let mut out = [9.0; 4];
            join(Operator::Ties, majority, &[1.0, 2.0, 0.5], &values, &mut out);
            out
        };
        // 3 − 1 − 1 > 0 leaves the first; −1 − 1 + 4 > 0 the third; 1 − 1 is taken as positive.
        assert_eq!(join(Majority::Total), [3.0, 2.0, 0.0, 1.0]);
        assert_eq!(join(Majority::Frequency), [(-2.0 - 0.5) / 2.0, (-1.0 - 2.0) / 2.0, 0.0, 1.0]);
    }
}
