//! What is done with the values of several adapters, or of several models, place by place.
//!
//! Source: PEFT 0.21, `utils/merge_utils.py`; TIES is of Yadav et al. 2023, DARE of Yu et al. 2023. Sums and products are f32, in the order of the adapters, as
//! there. Which values DARE drops depends on the seed, the module, the adapter and the place, so they are the same for every number of threads, and others
//! than torch's generator gives.

use crate::error::{Result, usage};
use crate::linalg::hash;

/// What becomes of the values of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operator {
    /// They are added.
    #[default]
    Sum,
    /// The largest of each are.
    MagnitudePrune,
    /// The largest of each are, where their signs agree with the majority.
    Ties,
    /// Those that were drawn are.
    DareLinear,
    /// Those that were drawn are, where their signs agree with the majority.
    DareTies,
}

/// Every operator by the name that PEFT's `add_weighted_adapter` has for it, with what it does in a line.
pub static OPERATORS: &[(&str, Operator, &str)] = &[
    ("linear", Operator::Sum, "the weighted sum"),
    ("magnitude_prune", Operator::MagnitudePrune, "the weighted sum of the largest values of each"),
    ("ties", Operator::Ties, "the largest values of each, where signs agree with the majority"),
    ("dare_linear", Operator::DareLinear, "the weighted sum of values drawn at random"),
    ("dare_ties", Operator::DareTies, "values drawn at random, where signs agree with the majority"),
];

impl Operator {
    /// Its name.
    pub fn id(self) -> &'static str {
        OPERATORS.iter().find(|(_, operator, _)| *operator == self).map_or("", |(id, ..)| id)
    }

    /// True if it draws.
    pub fn draws(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }

    /// True if it lets signs vote.
    pub fn votes(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }

    /// True if it drops values.
    pub fn drops(self) -> bool {
        self != Self::Sum
    }

    /// Errors if it cannot be given that share of values to keep; `option` is what the share is given by.
    pub(crate) fn refuse_density(self, id: &str, density: Option<f64>) -> Result<()> {
        match density {
            Some(density) if !self.drops() => {
                Err(usage(format!("{id} drops no values, so --density {density} is of no use"))
                    .with_hint("leave it out"))
            }
            Some(density) if !(density > 0.0 && density <= 1.0) => {
                Err(usage(format!("density {density}: a share above 0, up to 1, was expected")))
            }
            None if self.drops() => {
                Err(usage(format!("{id} needs to know which share of values stays"))
                    .with_hint("give --density, like 0.5"))
            }
            _ => Ok(()),
        }
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

impl Majority {
    /// Its name.
    pub fn id(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Frequency => "frequency",
        }
    }
}

/// How values of several are joined.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Joining {
    /// What becomes of the values of one place.
    pub operator: Operator,
    /// Share of values that stay of each, for operators that drop some.
    pub density: Option<f64>,
    /// How signs are elected, by operators that let them vote.
    pub majority: Majority,
    /// Seed of operators that draw.
    pub seed: u64,
}

impl Joining {
    /// The operator of that name. Errors if there is none, or if it cannot be given that density.
    pub fn new(id: &str, density: Option<f64>, majority: Majority, seed: u64) -> Result<Self> {
        let Some((id, operator, _)) = OPERATORS.iter().find(|(known, ..)| *known == id) else {
            let names: Vec<&str> = OPERATORS.iter().map(|(id, ..)| *id).collect();
            return Err(
                usage(format!("there is no method `{id}`")).with_hint(format!("take one of {}", names.join(", ")))
            );
        };
        operator.refuse_density(id, density)?;
        Ok(Self { operator: *operator, density, majority, seed })
    }
}

/// Which values of one tensor stay.
#[derive(Debug, PartialEq)]
pub enum Kept {
    /// All of them.
    All,
    /// Those above a magnitude, and of those that are just as large what lies before a place.
    Largest {
        /// The magnitude.
        least: f32,
        /// The place.
        before: u64,
    },
    /// Each with this chance, and then larger by as much.
    Drawn {
        /// What is drawn by.
        seed: u64,
        /// The chance.
        density: f32,
    },
}

/// Bits of a magnitude that its first half has, and its second.
const HALVES: [u32; 2] = [16, 15];

impl Kept {
    /// What an operator leaves of a tensor. `each` goes over all its values in order; it is called where the operator goes by them, up to three times.
    pub fn of(
        operator: Operator,
        density: f64,
        seed: u64,
        mut each: impl FnMut(&mut dyn FnMut(&[f32])) -> Result<()>,
    ) -> Result<Self> {
        if !operator.drops() || density >= 1.0 {
            return Ok(Self::All);
        }
        if operator.draws() {
            return Ok(Self::Drawn { seed, density: density as f32 });
        }
        // Magnitudes are ordered as their bits are: by their first halves, and where those are equal by the others.
        let bits = |x: f32| x.to_bits() << 1 >> 1;
        let (mut counts, mut number) = (vec![0_u64; 1 << HALVES[0]], 0_u64);
        each(&mut |values| {
            number += values.len() as u64;
            values.iter().for_each(|x| counts[(bits(*x) >> HALVES[1]) as usize] += 1);
        })?;
        let count = (density * number as f64) as u64;
        if count == 0 {
            return Ok(Self::Largest { least: f32::INFINITY, before: 0 });
        }
        let (first, above) = last_of(&counts, count);
        counts.truncate(1 << HALVES[1]);
        counts.fill(0);
        each(&mut |values| {
            let own = values.iter().map(|x| bits(*x)).filter(|bits| bits >> HALVES[1] == first);
            own.for_each(|bits| counts[(bits & ((1 << HALVES[1]) - 1)) as usize] += 1);
        })?;
        let (second, also_above) = last_of(&counts, count - above);
        let least = f32::from_bits(first << HALVES[1] | second);
        let mut equal = count - above - also_above;
        if counts[second as usize] == equal {
            return Ok(Self::Largest { least, before: u64::MAX });
        }
        let (mut place, mut before) = (0, 0);
        each(&mut |values| {
            for x in values {
                place += 1;
                if bits(*x) == least.to_bits() && equal > 0 {
                    equal -= 1;
                    before = place;
                }
            }
        })?;
        Ok(Self::Largest { least, before })
    }

    /// Drops values; `first` is the place of the first of them.
    pub(crate) fn prune(&self, first: u64, values: &mut [f32]) {
        match *self {
            Self::All => {}
            Self::Largest { least, before } => {
                for (place, x) in (first..).zip(values) {
                    let size = x.abs();
                    let stays = size > least || size == least && place < before;
                    *x = if stays { *x } else { 0.0 };
                }
            }
            Self::Drawn { seed, density } => {
                for (place, x) in (first..).zip(values) {
                    let drawn = (hash(seed ^ hash(place)) >> 11) as f64 / (1_u64 << 53) as f64;
                    *x = if drawn < f64::from(density) { *x / density } else { 0.0 };
                }
            }
        }
    }
}

/// The last number of those that so many of the largest are, and how many are above it.
fn last_of(counts: &[u64], count: u64) -> (u32, u64) {
    let mut above = 0;
    for (at, own) in counts.iter().enumerate().rev() {
        if above + own >= count {
            return (at as u32, above);
        }
        above += own;
    }
    (0, above)
}

/// One value of each place, from the values that were kept of each adapter.
pub fn join(operator: Operator, majority: Majority, weights: &[f32], values: &[Vec<f32>], out: &mut [f32]) {
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
        let by_threes = |each: &mut dyn FnMut(&[f32])| {
            values.chunks(3).for_each(each);
            Ok(())
        };
        let kept = Kept::of(operator, density, seed, by_threes).unwrap();
        let mut out = values.to_vec();
        // In two pieces, in any order.
        let (first, second) = out.split_at_mut(values.len() / 3);
        kept.prune(first.len() as u64, second);
        kept.prune(0, first);
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
    fn as_many_stay_as_sorting_leaves() {
        let number = |i: u64| (hash(i) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        // As they are, and rounded so that many are equal.
        for (rounds, length, density) in [(false, 5000, 0.37), (true, 5000, 0.37), (true, 5000, 0.999), (true, 7, 0.2)]
        {
            let value = |i| if rounds { (number(i) * 8.0).round() / 8.0 } else { number(i) * 1e-30 };
            let values: Vec<f32> = (0..length).map(value).collect();
            let out = pruned(Operator::Ties, density, 0, &values);
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()));
            let mut want = vec![0.0; values.len()];
            order[..(density * length as f64) as usize].iter().for_each(|&at| want[at] = values[at]);
            assert_eq!(out, want, "{rounds} {density}");
        }
    }

    #[test]
    fn operators_say_what_they_need() {
        for (id, density, part) in [
            ("cat", None, "no method"),
            ("linear", Some(0.5), "of no use"),
            ("ties", None, "which share"),
            ("ties", Some(0.0), "above 0"),
        ] {
            let error = Joining::new(id, density, Majority::Total, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(Joining::new("dare_ties", Some(0.5), Majority::Total, 3).unwrap().operator.id(), "dare_ties");
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
