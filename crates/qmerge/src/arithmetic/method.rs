//! How several adapters become one.

use crate::edit::Operator;
use crate::error::{Result, usage};

/// A way to combine adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// Its name in `--method` and in the report.
    pub id: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    pub(super) kind: Kind,
}

/// What a method works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Factors side by side, with as few directions as hold the sum.
    Exact,
    /// Factors side by side.
    Concatenation,
    /// The list of A and the list of B, each by itself.
    Factors(Operator),
    /// The deltas, of whose result the best approximation of a rank is taken.
    Deltas(Operator),
}

const fn method(id: &'static str, about: &'static str, kind: Kind) -> Method {
    Method { id, about, kind }
}

/// Every method. The names, but for `exact`, are those of PEFT's `add_weighted_adapter`.
pub static METHODS: &[Method] = &[
    method(
        "exact",
        "the weighted sum of the deltas, of as high a rank as that takes (the default without --rank)",
        Kind::Exact,
    ),
    method("cat", "the same without looking for a lower rank: factors side by side", Kind::Concatenation),
    method(
        "svd",
        "the best approximation of that sum at --rank (the default with --rank)",
        Kind::Deltas(Operator::Sum),
    ),
    method("linear", "sums of the A and of the B: not the sum of the deltas", Kind::Factors(Operator::Sum)),
    method("magnitude_prune", "linear, of the largest values alone", Kind::Factors(Operator::MagnitudePrune)),
    method("magnitude_prune_svd", "the same of deltas, at --rank", Kind::Deltas(Operator::MagnitudePrune)),
    method(
        "ties",
        "the largest values of A and of B, where signs agree with the majority",
        Kind::Factors(Operator::Ties),
    ),
    method("ties_svd", "the same of deltas, at --rank", Kind::Deltas(Operator::Ties)),
    method("dare_linear", "linear, of values drawn at random", Kind::Factors(Operator::DareLinear)),
    method("dare_linear_svd", "the same of deltas, at --rank", Kind::Deltas(Operator::DareLinear)),
    method("dare_ties", "ties, of values drawn at random", Kind::Factors(Operator::DareTies)),
    method("dare_ties_svd", "the same of deltas, at --rank", Kind::Deltas(Operator::DareTies)),
];

impl Method {
    /// The method of that name.
    pub fn by_id(id: &str) -> Result<&'static Self> {
        METHODS.iter().find(|method| method.id == id).ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|method| method.id).collect();
            usage(format!("`{id}` is no method of combining adapters"))
                .with_hint(format!("take one of {}", names.join(", ")))
        })
    }

    pub(super) fn operator(&self) -> Option<Operator> {
        match self.kind {
            Kind::Factors(operator) | Kind::Deltas(operator) => Some(operator),
            Kind::Exact | Kind::Concatenation => None,
        }
    }

    /// True if it makes adapters of any rank.
    pub fn takes_rank(&self) -> bool {
        matches!(self.kind, Kind::Deltas(_))
    }

    /// True if it drops values.
    pub fn takes_density(&self) -> bool {
        self.operator().is_some_and(Operator::drops)
    }

    /// True if it draws.
    pub fn draws(&self) -> bool {
        self.operator().is_some_and(Operator::draws)
    }

    /// True if it lets signs vote.
    pub fn takes_majority(&self) -> bool {
        self.operator().is_some_and(Operator::votes)
    }
}
