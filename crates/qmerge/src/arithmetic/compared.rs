//! What two models both have, and what it differs by.

use super::extract::ExtractOptions;
use super::new_adapter::finite;
use super::report::DroppedTensor;
use super::stacked::matrix;
use super::svd::{Best, Wanted, best};
use super::target::Target;
use crate::adapters::{Names, Stack, Task};
use crate::arch;
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::formats::{Claim, Order, Reader, moves_factors};
use crate::linalg::dot;
use crate::open::Checkpoint;
use crate::round::{Metric, matrix_name, seed_of};
use crate::write::{Data, NewTensor};

/// Two models.
pub(super) struct Pair<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tuned: &'a Checkpoint,
    pub(super) options: &'a ExtractOptions,
}

/// What both have.
pub(super) struct Matched<'a> {
    /// Weights, in the model's order.
    pub(super) weights: Vec<Both<'a>>,
    pub(super) stacks: Vec<Stacks<'a>>,
    /// Parameters of a head that the tuned model has and the base does not.
    pub(super) heads: Vec<&'a Claim>,
    /// What one has alone, or in another shape.
    pub(super) dropped: Vec<DroppedTensor>,
}

/// A weight of both.
pub(super) struct Both<'a> {
    pub(super) base: &'a Claim,
    pub(super) tuned: &'a Claim,
    /// What the model that an adapter is put on calls it.
    pub(super) path: String,
    pub(super) carrier: Carrier,
}

/// A stack of experts of both, which each may store in its own way.
pub(super) struct Stacks<'a> {
    pub(super) base: Stack<'a>,
    pub(super) tuned: Stack<'a>,
}

/// What an adapter can do with a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    /// A linear layer's matrix. The models may store it turned.
    Linear { target: Target, base_turned: bool, tuned_turned: bool },
    /// The bias of a linear layer.
    Bias(Target),
    /// A matrix beside the stacks of experts, of which no module can be taken whole: their biases.
    Beside(Target),
    /// A parameter of a module that is taken whole.
    Whole,
    /// A parameter of a module with others inside, which PEFT copies with them: it is taken by itself, as trained biases are.
    Bare,
    /// No adapter can hold it, for this reason.
    Nowhere(&'static str),
}

/// Something that is compared by itself.
#[derive(Clone, Copy)]
pub(super) enum Piece<'m, 'a> {
    Weight(&'m Both<'a>),
    /// A matrix of a stack.
    Matrix(&'m Stacks<'a>, usize),
}

/// What a piece came to.
pub(super) struct Difference {
    /// ‖tuned − base‖².
    pub(super) energy: f64,
    /// Of a matrix that differs, in the norm that it was cut in.
    pub(super) cut: Option<Best>,
}

impl Both<'_> {
    pub(super) fn name(&self) -> &str {
        self.base.weight.name()
    }

    /// The path of the module that the weight is a parameter of, where an adapter is put on.
    pub(super) fn module(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(module, _)| module)
    }

    pub(super) fn is_linear(&self) -> bool {
        matches!(self.carrier, Carrier::Linear { .. })
    }

    /// Outputs and inputs of a linear layer.
    pub(super) fn shape(&self) -> (usize, usize) {
        let geometry = self.base.weight.geometry();
        let is_turned = matches!(self.carrier, Carrier::Linear { base_turned: true, .. });
        if is_turned { (geometry.cols, geometry.rows) } else { (geometry.rows, geometry.cols) }
    }

    /// True if the module in memory has its weight as (in, out).
    pub(super) fn is_conv1d(&self, names: &Names<'_>) -> bool {
        arch::leaf_in(self.module(), names.arch.transposed)
    }
}

impl Matched<'_> {
    /// Weights first, then the matrices of each stack.
    pub(super) fn pieces(&self) -> Vec<Piece<'_, '_>> {
        let matrices = self
            .stacks
            .iter()
            .flat_map(|stacks| (0..stacks.base.experts.len()).map(move |expert| Piece::Matrix(stacks, expert)));
        self.weights.iter().map(Piece::Weight).chain(matrices).collect()
    }
}

impl Piece<'_, '_> {
    /// The name that it has in errors, and its inputs in a calibration.
    pub(super) fn name(self) -> String {
        match self {
            Self::Weight(both) => both.name().to_owned(),
            Self::Matrix(stacks, expert) => match stacks.base.experts[expert].first() {
                Some(piece) if piece.is_stacked => matrix_name(piece.claim.weight.name(), expert),
                Some(piece) => piece.claim.weight.name().to_owned(),
                None => stacks.base.path(),
            },
        }
    }

    /// True of a layer's matrix, whose inputs a calibration may know.
    pub(super) fn has_inputs(self) -> bool {
        match self {
            Self::Weight(both) => both.is_linear(),
            Self::Matrix(..) => true,
        }
    }

    /// Outputs and inputs of a matrix.
    pub(super) fn shape(self) -> (usize, usize) {
        match self {
            Self::Weight(both) => both.shape(),
            Self::Matrix(stacks, _) => stacks.base.shape,
        }
    }

    /// Nanoseconds of one thread that it takes, about.
    pub(super) fn cost(self, wanted: Wanted) -> u64 {
        let (outputs, inputs) = self.shape();
        let each = match wanted {
            _ if !self.has_inputs() => 2,
            Wanted::Rank(rank) => 6 + rank as u64 * 4 / 5,
            Wanted::Share(_) => 400,
        };
        (outputs * inputs) as u64 * each + 1000
    }
}

impl<'a> Pair<'a> {
    /// Errors if AWQ has moved factors from the norms of one model into its layers, and not of the other: their difference is of two ways to write one function.
    pub(super) fn refuse_rescaled(&self, matched: &Matched<'a>) -> Result<()> {
        let is_rescaled = |claim: &Claim| moves_factors(claim.weight.format());
        let Some(both) = matched.weights.iter().find(|both| is_rescaled(both.base) || is_rescaled(both.tuned)) else {
            return Ok(());
        };
        let path = if is_rescaled(both.base) { &self.base.path } else { &self.tuned.path };
        let vectors =
            matched.weights.iter().filter(|both| both.carrier == Carrier::Whole && both.base.weight.shape().len() == 1);
        for both in vectors {
            let (base, tuned) = (Reader::new(self.base, both.base)?, Reader::new(self.tuned, both.tuned)?);
            let (base, tuned) = (rows(&base, false)?, rows(&tuned, false)?);
            let moved = |(a, b): (&f32, &f32)| f64::from((a - b).abs() / a.abs().max(b.abs()).max(f32::MIN_POSITIVE));
            let mean = base.iter().zip(&tuned).map(moved).sum::<f64>() / base.len().max(1) as f64;
            if mean > MOVED {
                return Err(mismatch(format!(
                    "stored as AWQ, which has moved factors between layers: `{}` differs from the other model's by {:.0} %",
                    both.name(),
                    100.0 * mean
                ))
                .in_file(path)
                .with_hint("take the model as it was before AWQ, on both sides"));
            }
        }
        Ok(())
    }

    /// What the tuned model was trained to do, if that takes a head and the base is of another class.
    pub(super) fn task(&self) -> Option<Task> {
        let class = |checkpoint: &'a Checkpoint| checkpoint.config.as_ref()?.class();
        class(self.tuned).filter(|tuned| class(self.base) != Some(tuned)).and_then(Task::of_class)
    }

    pub(super) fn find(&self, piece: Piece<'_, 'a>, metric: Option<&Metric>) -> Result<Difference> {
        let (wanted, inputs) = (self.options.wanted, piece.shape().1);
        let (difference, wanted) = match piece {
            Piece::Matrix(stacks, expert) => {
                let mut difference = matrix(self.tuned, &stacks.tuned, expert)?;
                finite(&difference)?;
                let base = matrix(self.base, &stacks.base, expert)?;
                difference.iter_mut().zip(base).for_each(|(x, base)| *x -= base);
                (difference, wanted)
            }
            Piece::Weight(both) => {
                let (base, tuned) = (Reader::new(self.base, both.base)?, Reader::new(self.tuned, both.tuned)?);
                let (turned, wanted) = match both.carrier {
                    Carrier::Linear { base_turned, tuned_turned, .. } => ((base_turned, tuned_turned), wanted),
                    // It is to be exact.
                    Carrier::Beside(_) => ((false, false), Wanted::Share(1.0)),
                    _ => return Ok(Difference { energy: streamed_energy(&base, &tuned)?, cut: None }),
                };
                let mut difference = rows(&tuned, turned.1)?;
                difference.iter_mut().zip(rows(&base, turned.0)?).for_each(|(x, base)| *x -= base);
                (difference, wanted)
            }
        };
        finite(&difference)?;
        if difference.iter().all(|x| *x == 0.0) {
            return Ok(Difference { energy: 0.0, cut: None });
        }
        let seed = seed_of(&piece.name(), self.options.seed);
        let found = best(&difference, inputs, wanted, seed, metric);
        finite(&found.factors.left)?;
        finite(&found.factors.right)?;
        let energy = if metric.is_some() { dot(&difference, &difference) } else { found.energy };
        Ok(Difference { energy, cut: Some(found) })
    }

    /// A tuned weight as it is, under the name that PEFT gives it.
    pub(super) fn whole(&self, claim: &'a Claim, name: String) -> NewTensor<'a> {
        let name = format!("base_model.model.{name}");
        let shape = claim.weight.shape().to_vec();
        match (claim.weight.is_plain(), claim.entries.first()) {
            (true, Some(entry)) if entry.dtype.is_plain_float() && entry.shape == shape => {
                NewTensor { name, dtype: entry.dtype, shape, data: Data::Entry(self.tuned, entry) }
            }
            _ => {
                let tuned = self.tuned;
                let make = move || {
                    let reader = Reader::new(tuned, claim)?;
                    let mut values = Vec::new();
                    reader.rows(&(0..claim.weight.geometry().rows), &mut values)?;
                    let order = Order { transposed: claim.weight.is_transposed(), inputs: None };
                    Ok(order.to_model(values, claim.weight.geometry().cols))
                };
                NewTensor { name, dtype: Dtype::F32, shape, data: Data::Later(Box::new(make)) }
            }
        }
    }
}

/// All values of a matrix (outputs, inputs).
fn rows(reader: &Reader<'_>, transposed: bool) -> Result<Vec<f32>> {
    let geometry = reader.claim().weight.geometry();
    let mut values = Vec::new();
    reader.rows(&(0..geometry.rows), &mut values)?;
    finite(&values)?;
    Ok(Order { transposed, inputs: None }.to_model(values, geometry.cols))
}

/// Mean share of its values that a norm changes by where AWQ moved factors out of it. Training moves norms by a hundredth at most.
const MOVED: f64 = 0.05;

/// ‖tuned − base‖² of weights that are stored alike.
fn streamed_energy(base: &Reader<'_>, tuned: &Reader<'_>) -> Result<f64> {
    let (from, to) = (base.claim().weight.geometry(), tuned.claim().weight.geometry());
    if (from.rows, from.cols) != (to.rows, to.cols) {
        return Err(mismatch("it is stored as another matrix in the tuned model"));
    }
    let (mut energy, mut own, mut other) = (0.0, Vec::new(), Vec::new());
    for rows in base.chunks(1 << 17) {
        base.rows(&rows, &mut own)?;
        tuned.rows(&rows, &mut other)?;
        own.iter_mut().zip(&other).for_each(|(own, other)| *own = other - *own);
        finite(&own)?;
        energy += dot(&own, &own);
    }
    Ok(energy)
}
