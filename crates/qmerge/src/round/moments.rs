//! What linear layers are given: second moments of their inputs, and where they come from.

use std::ops::Range;

use crate::error::{Error, Kind, Result};

/// H = mean of x·xᵀ over the inputs x of a linear layer.
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
    /// Names of weights of shape (outputs, features).
    pub weights: Vec<String>,
    /// Their inputs.
    pub moments: InputMoments,
}

/// A source of input moments.
pub trait Calibration: Send {
    /// What the moments were taken from, in words.
    fn about(&self) -> String;

    /// Hands out the moments of all weights that are `wanted`, as many together as become known together (a layer's), and goes on when `take`
    /// returns. Each weight comes at most once; one whose inputs are not known does not come.
    fn each(
        &mut self,
        wanted: &(dyn Fn(&str) -> bool + Sync),
        take: &mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    ) -> Result<()>;
}

/// Moments prepared for rounding: damped, with their diagonal.
#[derive(Debug)]
pub struct Metric {
    /// Length of x.
    pub(super) features: usize,
    /// H as panels of some columns, one after the other: (features, columns of the panel).
    panels: Vec<f32>,
    /// Columns of a panel; the last may have fewer.
    width: usize,
    pub(super) diagonal: Vec<f32>,
}

/// Columns of a panel, and of one where a panel of so many has more bytes than [`PANEL_BYTES`].
pub(super) const PANEL: usize = 64;
/// What stays in a second-level cache beside other things.
const PANEL_BYTES: usize = 5 << 18;

/// Share of the mean diagonal that is added to it where a method asks for no more: directions that no input took get some weight.
pub(super) const DAMPING: f32 = 0.003;

impl Metric {
    /// Damps moments, lightly. Errors if they are not finite or of the wrong size.
    pub fn new(moments: InputMoments) -> Result<Self> {
        Self::damped(moments, DAMPING)
    }

    /// Adds this share of the mean diagonal to the diagonal. Errors if moments are not finite or of the wrong size.
    pub fn damped(moments: InputMoments, damping: f32) -> Result<Self> {
        let InputMoments { features, mut values, .. } = moments;
        if values.len() != features * features {
            return Err(Error::new(Kind::Malformed, format!("{} moments of {features} features", values.len())));
        }
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let x = values[at];
            return Err(Error::new(
                Kind::NotFinite,
                format!("the moment of inputs {} and {} is {x}", at / features, at % features),
            )
            .with_hint(
                "the model's activations overflow on this text: check the adapter, or use --rounding stochastic",
            ));
        }
        let mean = (0..features).map(|i| f64::from(values[i * features + i])).sum::<f64>() / features.max(1) as f64;
        for i in 0..features {
            let diagonal = &mut values[i * features + i];
            // An input that is always zero may take any weight.
            *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal + damping * mean as f32 };
        }
        let diagonal = (0..features).map(|i| values[i * features + i]).collect();
        let width = if features * PANEL * size_of::<f32>() > PANEL_BYTES { PANEL / 2 } else { PANEL };
        // H is symmetric: some rows turned over are a panel, in the same place.
        let mut rows = Vec::new();
        for panel in values.chunks_mut((features * width).max(1)) {
            rows.clear();
            rows.extend_from_slice(panel);
            turn(&rows, features, panel);
        }
        Ok(Self { features, panels: values, width, diagonal })
    }

    /// The panels of some columns, which begin with a panel's: the columns of each, and H there (features, columns).
    pub(super) fn panels(&self, columns: Range<usize>) -> impl Iterator<Item = (Range<usize>, &[f32])> {
        columns.clone().step_by(self.width).map(move |start| {
            let columns = start..(start + self.width).min(self.features);
            (columns.clone(), &self.panels[columns.start * self.features..columns.end * self.features])
        })
    }

    /// H of two inputs.
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        let start = j / self.width * self.width;
        let width = self.width.min(self.features - start);
        self.panels[start * self.features + i * width + j - start]
    }

    /// Some rows of some columns, which begin with a panel's, behind each other into `out`.
    pub(super) fn copy(&self, rows: Range<usize>, columns: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        for i in rows {
            for (columns, panel) in self.panels(columns.clone()) {
                out.extend_from_slice(&panel[i * columns.len()..(i + 1) * columns.len()]);
            }
        }
    }
}

/// `out` (cols, rows of `x`) of `x` (rows, cols).
fn turn(x: &[f32], cols: usize, out: &mut [f32]) {
    /// Columns at a time, a cache line's worth.
    const SOME: usize = 16;
    let rows = x.len() / cols.max(1);
    for (number, out) in out.chunks_mut((SOME * rows).max(1)).enumerate() {
        for (j, x) in x.chunks_exact(cols).enumerate() {
            let x = &x[number * SOME..cols.min((number + 1) * SOME)];
            out[j..].iter_mut().step_by(rows).zip(x).for_each(|(out, x)| *out = *x);
        }
    }
}
