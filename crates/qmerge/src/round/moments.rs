//! What linear layers are given: second moments of their inputs, and where they come from.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gptq::Feedback;
use crate::error::{Error, Kind, Result};
use crate::parallel::spread;
use crate::simd::matmul::{Columns, PANEL};

/// H = mean of x·xᵀ over the inputs x of a linear layer; a weighted mean where some tokens' errors cost more than others'.
#[derive(Clone, Debug, PartialEq)]
pub struct InputMoments {
    /// Length of x.
    pub features: usize,
    /// Number of inputs that were seen.
    pub tokens: usize,
    /// (features, features), symmetric.
    pub values: Vec<f32>,
}

/// Moments, and the weights that are given these inputs.
#[derive(Clone, Debug)]
pub struct Known {
    /// Names of weights of shape (outputs, features), or of matrices of stacks ([`matrix_name`]).
    pub weights: Vec<String>,
    /// Their inputs.
    pub moments: InputMoments,
    /// What the moments say of them.
    pub detail: Detail,
}

/// What moments say of inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// How large each is, and not which go with each other: those of an importance matrix.
    Sizes,
    /// Both, by few tokens.
    Rough,
    /// Both.
    #[default]
    Full,
}

impl Detail {
    /// True if they say which inputs go with each other.
    pub(crate) fn relates_inputs(self) -> bool {
        self != Self::Sizes
    }
}

/// Name of a matrix of a stack of experts, as [`Known`] and [`LayerInputs`] have it.
pub fn matrix_name(stack: &str, number: usize) -> String {
    format!("{stack}[{number}]")
}

/// The weight that a name means, and which of its matrices, if it is one of a stack.
pub fn weight_of(name: &str) -> (&str, Option<usize>) {
    let matrix = || {
        let (stack, number) = name.strip_suffix(']')?.rsplit_once('[')?;
        Some((stack, Some(number.parse().ok()?)))
    };
    matrix().unwrap_or((name, None))
}

/// The inputs of some weights, before anything is known of their moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInputs {
    /// Their number.
    pub features: usize,
    /// Names of the weights that take them.
    pub weights: Vec<String>,
}

/// What a calibration is going to hand out, and what it takes meanwhile, for predictions. What is not known is left empty.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Inputs whose moments become known, layer by layer.
    pub layers: Vec<Vec<LayerInputs>>,
    /// Bytes that it takes as long as it is there.
    pub held: u64,
    /// Most bytes beside those while it gets ready, and while it goes on from layer to layer, a layer's moments among them.
    pub working: u64,
    /// Most bytes while it goes on from layer to layer, without those that it has handed out.
    pub passing: u64,
    /// The work of all that it has yet to do, in nanoseconds of one thread.
    pub work: u64,
    /// What its moments say.
    pub detail: Detail,
}

impl Demand {
    /// Of moments that are only read: a layer's while the last of them is turned into numbers. Reading is nothing beside the rounding.
    pub(crate) fn of_read(layers: Vec<Vec<LayerInputs>>) -> Self {
        let moments = |layer: &Vec<LayerInputs>| layer.iter().map(|inputs| metric_bytes(inputs.features)).sum::<u64>();
        let largest = metric_bytes(layers.iter().flatten().map(|inputs| inputs.features).max().unwrap_or(0));
        let working = layers.iter().map(moments).max().unwrap_or(0) + largest;
        Self { layers, held: 0, working, passing: largest, work: 0, detail: Detail::Full }
    }
}

/// How many inputs moments are of, and so how well they tell what a layer's outputs keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// None: nothing is told.
    Nothing,
    /// Few, by which it is told roughly.
    Few,
    /// Many, of text that the model wrote itself: what the adapter is for may hardly show there.
    Own,
    /// Many.
    Many,
}

/// A source of input moments.
pub trait Calibration: Send {
    /// What the moments were taken from, in words.
    fn about(&self) -> String;

    /// Hash of what they were taken from, so that a merge that goes on is not given others: equal for the same sequences or the same file, whatever
    /// their names.
    fn identity(&self) -> Result<String>;

    /// What it has seen of layers' inputs.
    fn seen(&self) -> Seen {
        Seen::Many
    }

    /// What it takes to hand them out.
    fn demand(&self) -> Demand {
        Demand::default()
    }

    /// Hands out the moments of all weights that are `wanted`, those of some inputs as soon as they are known, and goes on when `take` returns. Each weight
    /// comes at most once; one whose inputs are not known does not come.
    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()>;
}

/// Takes moments as they become known.
pub trait Take: Send {
    /// The moments of some inputs: of a layer's queries, keys and values together, say, or of one expert.
    fn known(&mut self, known: Known) -> Result<()>;

    /// All inputs of a layer have been handed out. Nothing of the layer stands in memory while this waits.
    fn layer(&mut self) -> Result<()> {
        Ok(())
    }
}

impl<F: FnMut(Known) -> Result<()> + Send> Take for F {
    fn known(&mut self, known: Known) -> Result<()> {
        self(known)
    }
}

impl InputMoments {
    /// Errors if moments are not finite, of the wrong size, or no sums of squares.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { features, values, .. } = self;
        if Some(values.len()) != features.checked_mul(*features) {
            return Err(Error::new(Kind::Malformed, format!("{} moments of {features} features", values.len())));
        }
        if !is_finite(values)
            && let Some(at) = values.iter().position(|x| !x.is_finite())
        {
            let x = values[at];
            return Err(Error::new(
                Kind::NotFinite,
                format!("the moment of inputs {} and {} is {x}", at / features, at % features),
            )
            .with_hint("the calibration is damaged, or the model that it was taken from overflows: take another"));
        }
        if let Some(i) = (0..*features).find(|i| values[i * features + i] < 0.0) {
            let problem =
                format!("the moment of input {i} with itself is {}, and no square is", values[i * features + i]);
            return Err(Error::new(Kind::Malformed, problem)
                .with_hint("the calibration is damaged: take another with `qmerge calibrate`"));
        }
        Ok(())
    }
}

/// Moments prepared for rounding: damped, with their diagonal.
#[derive(Debug)]
pub struct Metric {
    /// Length of x.
    pub(super) features: usize,
    /// What H says of the inputs.
    pub(crate) detail: Detail,
    /// H in panels.
    pub(super) columns: Columns,
    pub(super) diagonal: Vec<f32>,
    /// What errors are carried by, for all weights that are given these inputs.
    pub(super) feedback: Option<Feedback>,
}

/// Share of the mean diagonal that is added to it where a method asks for no more: directions that no input took get some weight.
pub(super) const DAMPING: f32 = 0.003;

/// Bytes of a metric of so many inputs.
pub(crate) fn metric_bytes(features: usize) -> u64 {
    4 * features as u64 * (features.next_multiple_of(PANEL) as u64 + 1)
}

impl Metric {
    /// Damps moments, lightly. Errors if they are not finite or of the wrong size.
    pub fn new(moments: InputMoments) -> Result<Self> {
        Self::damped(moments, DAMPING)
    }

    /// Adds this share of the mean diagonal to the diagonal. Errors if moments are not finite or of the wrong size.
    pub fn damped(moments: InputMoments, damping: f32) -> Result<Self> {
        moments.check()?;
        let InputMoments { features, mut values, .. } = moments;
        let mean = (0..features).map(|i| f64::from(values[i * features + i])).sum::<f64>() / features.max(1) as f64;
        for i in 0..features {
            let diagonal = &mut values[i * features + i];
            // An input that is always zero may take any weight.
            *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal + damping * mean as f32 };
        }
        let diagonal = (0..features).map(|i| values[i * features + i]).collect();
        Ok(Self {
            features,
            detail: Detail::Full,
            columns: Columns::symmetric(values, features),
            diagonal,
            feedback: None,
        })
    }

    /// The same of the inputs in another order: the i-th is what was number `order[i]`. What a method prepared is left out.
    pub(crate) fn in_order(&self, order: &[u32]) -> Self {
        let n = self.features;
        let mut values = vec![0.0; n * n];
        spread(values.chunks_mut(n.max(1)).zip(order), |(row, &i)| {
            row.iter_mut().zip(order).for_each(|(value, &j)| *value = self.at(i as usize, j as usize));
        });
        let diagonal = order.iter().map(|&i| self.diagonal[i as usize]).collect();
        Self { features: n, detail: self.detail, columns: Columns::symmetric(values, n), diagonal, feedback: None }
    }

    /// H of two inputs.
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.columns.panel(j / PANEL)[i * PANEL + j % PANEL]
    }

    /// H of some inputs with themselves into `out`; their first begins a panel.
    pub(super) fn square(&self, inputs: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        for i in inputs.clone() {
            for start in inputs.clone().step_by(PANEL) {
                let width = PANEL.min(inputs.end - start);
                out.extend_from_slice(&self.columns.panel(start / PANEL)[i * PANEL..][..width]);
            }
        }
    }
}

fn is_finite(values: &[f32]) -> bool {
    const SHARE: usize = 1 << 20;
    let all = AtomicBool::new(true);
    spread(values.chunks(SHARE), |some| {
        if !some.iter().all(|x| x.is_finite()) {
            all.store(false, Ordering::Relaxed);
        }
    });
    all.into_inner()
}
