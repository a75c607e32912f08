//! Several residual streams beside each other (AltUp), and what goes around a mixer (Laurel).

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;
use qmerge::simd::tanh::tanh;

use crate::layer::Visit;
use crate::linear::{Input, Linear, Manner, Watch};
use crate::norm::Normalize;
use crate::tensors::Tensors;

/// The matrices between the first stream and the others.
#[derive(Debug)]
pub(crate) struct Streams<'a> {
    others: Vec<Linear<'a>>,
    back: Vec<Linear<'a>>,
    hidden: usize,
}

/// Least mean square of a stream.
const LEAST: f32 = 1e-5;

impl<'a> Streams<'a> {
    pub(crate) fn new(
        tensors: &Tensors<'a>,
        spec: &Spec,
        streams: &spec::Streams,
        beside: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let hidden = spec.hidden;
        let all = |name: &str| -> Result<Vec<Linear<'a>>> {
            let one = |number| Linear::new(tensors, &format!("{}.{number}", beside(name)), hidden, hidden);
            (0..streams.count.saturating_sub(1)).map(one).collect()
        };
        let [others, back] = streams.names;
        Ok(Self { others: all(others)?, back: all(back)?, hidden })
    }

    /// All streams, one behind the other, of the first, `x` (hidden, tokens).
    pub(crate) fn spread(&self, mut x: Vec<f32>, tokens: usize, manner: Manner) -> Result<Vec<f32>> {
        let first = x.clone();
        let input = Input::new(&first, self.hidden, manner);
        for linear in &self.others {
            x.extend(self.as_strong(linear.forward(&input)?, &first, tokens));
        }
        Ok(x)
    }

    /// What becomes of all of them: (hidden, tokens).
    pub(crate) fn joined(&self, mut x: Vec<f32>, tokens: usize, manner: Manner) -> Result<Vec<f32>> {
        let others = x.split_off(self.hidden * tokens);
        let first = x.clone();
        for (linear, other) in self.back.iter().zip(others.chunks_exact((self.hidden * tokens).max(1))) {
            let other = linear.forward(&Input::new(other, self.hidden, manner))?;
            x.iter_mut().zip(self.as_strong(other, &first, tokens)).for_each(|(x, other)| *x += other);
        }
        let count = (1 + self.back.len()) as f32;
        x.iter_mut().for_each(|x| *x /= count);
        Ok(x)
    }

    /// A stream with the mean square that another has, token by token.
    fn as_strong(&self, mut x: Vec<f32>, other: &[f32], tokens: usize) -> Vec<f32> {
        let root = |x: &[f32], least: f32| -> Vec<f32> {
            let mut sums = vec![0.0_f32; tokens];
            x.chunks_exact(tokens.max(1)).for_each(|row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x));
            sums.into_iter().map(|sum| (sum / self.hidden as f32).max(least).sqrt()).collect()
        };
        let (wanted, own) = (root(other, 0.0), root(&x, LEAST));
        for row in x.chunks_exact_mut(tokens.max(1)) {
            row.iter_mut().zip(wanted.iter().zip(&own)).for_each(|(x, (wanted, own))| *x = *x * wanted / own);
        }
        x
    }

    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear<'a>> {
        self.others.iter().chain(&self.back)
    }

    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.others.iter_mut().chain(&mut self.back).try_for_each(visit)
    }
}

/// How one layer changes all streams. Its matrices, of a few values for each stream, are shown to nobody.
#[derive(Debug)]
pub(crate) struct Altered<'a> {
    norm: Normalize,
    router: Linear<'a>,
    predictions: Linear<'a>,
    corrections: Linear<'a>,
    scale: Option<Vec<f32>>,
    active: usize,
    hidden: usize,
}

impl<'a> Altered<'a> {
    pub(crate) fn new(
        tensors: &Tensors<'a>,
        spec: &Spec,
        (streams, own): (&spec::Streams, &spec::Altered),
        layer: &str,
    ) -> Result<Self> {
        let (count, hidden) = (streams.count, spec.hidden);
        let path = |name: &str| format!("{layer}.{name}");
        let linear = |name: &str, outputs, inputs| Linear::new(tensors, &path(name), outputs, inputs);
        let ([norm, router], [predictions, corrections]) = (own.router, own.coefficients);
        Ok(Self {
            norm: Normalize::new(tensors, &path(norm), hidden, spec.norm, spec.eps)?,
            router: linear(router, count, hidden)?,
            predictions: linear(predictions, count * count, count)?,
            corrections: linear(corrections, count, count)?,
            scale: own.scale.map(|name| tensors.needed(&path(name), hidden)).transpose()?,
            active: streams.active,
            hidden,
        })
    }

    /// Where the active stream lies.
    pub(crate) fn active(&self, tokens: usize) -> std::ops::Range<usize> {
        self.active * self.hidden * tokens..(self.active + 1) * self.hidden * tokens
    }

    /// What the router says of a stream: (streams, tokens).
    fn routed(&self, x: &[f32], tokens: usize, manner: Manner) -> Result<Vec<f32>> {
        let mut x = self.norm.applied(x, tokens);
        x.iter_mut().for_each(|x| *x /= self.hidden as f32);
        let mut routed = self.router.forward(&Input::new(&x, self.hidden, manner))?;
        tanh(&mut routed);
        Ok(routed)
    }

    /// Puts what streams are predicted to be in their place.
    pub(crate) fn predict(&self, x: &mut [f32], tokens: usize, manner: Manner) -> Result<()> {
        let (count, size) = (self.router.outputs(), self.hidden * tokens);
        let routed = self.routed(&x[self.active(tokens)], tokens, manner)?;
        let coefficients = self.predictions.forward(&Input::new(&routed, count, manner))?;
        let before = x.to_vec();
        for (to, x) in x.chunks_exact_mut(size.max(1)).enumerate() {
            for (from, before) in before.chunks_exact(size.max(1)).enumerate() {
                let own = &coefficients[(to * count + from) * tokens..][..tokens];
                add_by_token(x, before, own);
            }
        }
        Ok(())
    }

    /// Corrects predictions by what became of the active one.
    pub(crate) fn correct(&self, x: &mut [f32], became: &[f32], tokens: usize, manner: Manner) -> Result<()> {
        let (count, size) = (self.router.outputs(), self.hidden * tokens);
        let routed = self.routed(became, tokens, manner)?;
        let mut coefficients = self.corrections.forward(&Input::new(&routed, count, manner))?;
        coefficients.iter_mut().for_each(|x| *x += 1.0);
        let new: Vec<f32> = became.iter().zip(&x[self.active(tokens)]).map(|(became, x)| became - x).collect();
        for (x, own) in x.chunks_exact_mut(size.max(1)).zip(coefficients.chunks_exact(tokens.max(1))) {
            add_by_token(x, &new, own);
        }
        Ok(())
    }

    /// The active stream as the gate of the layer's own embedding sees it.
    pub(crate) fn seen(&self, x: &[f32], tokens: usize) -> Vec<f32> {
        let mut seen = x[self.active(tokens)].to_vec();
        for (row, scale) in seen.chunks_exact_mut(tokens.max(1)).zip(self.scale.iter().flatten()) {
            row.iter_mut().for_each(|x| *x *= scale);
        }
        seen
    }

    pub(crate) fn linears(&self) -> [&Linear<'a>; 3] {
        [&self.router, &self.predictions, &self.corrections]
    }

    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        [&mut self.router, &mut self.predictions, &mut self.corrections].into_iter().try_for_each(visit)
    }

    /// Values per token that are in memory beside a layer's blocks.
    pub(crate) fn activations(&self) -> usize {
        // Streams before they are predicted, the active one, what is new in it.
        (self.router.outputs() + 3) * self.hidden
    }
}

/// `y += a · x` with a factor for each token.
fn add_by_token(y: &mut [f32], x: &[f32], a: &[f32]) {
    for (y, x) in y.chunks_exact_mut(a.len().max(1)).zip(x.chunks_exact(a.len().max(1))) {
        y.iter_mut().zip(x.iter().zip(a)).for_each(|(y, (x, a))| *y += a * x);
    }
}

/// Two matrices around a mixer.
#[derive(Debug)]
pub(crate) struct Laurel<'a> {
    left: Linear<'a>,
    right: Linear<'a>,
    norm: Normalize,
}

impl<'a> Laurel<'a> {
    pub(crate) fn new(tensors: &Tensors<'a>, spec: &Spec, own: &spec::Laurel, layer: &str) -> Result<Self> {
        let [left, right, norm] = own.names.map(|name| format!("{layer}.{name}"));
        Ok(Self {
            left: Linear::new(tensors, &left, own.rank, spec.hidden)?,
            right: Linear::new(tensors, &right, spec.hidden, own.rank)?,
            norm: Normalize::new(tensors, &norm, spec.hidden, spec.norm, spec.eps)?,
        })
    }

    /// What goes around, of what the mixer is given.
    pub(crate) fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        Linear::show(std::slice::from_ref(&self.left), x, watch)?;
        let inner = self.left.forward(x)?;
        let inner = x.like(&inner, self.right.inputs());
        Linear::show(std::slice::from_ref(&self.right), &inner, watch)?;
        let mut y = self.right.forward(&inner)?;
        self.norm.apply(&mut y, x.tokens());
        y.iter_mut().zip(x.values()).for_each(|(y, x)| *y += x);
        Ok(y)
    }

    pub(crate) fn together(&self) -> [Vec<&Linear<'a>>; 2] {
        [vec![&self.left], vec![&self.right]]
    }

    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        [&mut self.left, &mut self.right].into_iter().try_for_each(visit)
    }
}
