//! A layer of the decoder: a mixer and a feed-forward, with norms around them, on a residual stream.

use std::borrow::Cow;
use std::fmt::Debug;

use qmerge::arch::spec::{self, Order, Spec};
use qmerge::error::Result;
use qmerge::round::LayerInputs;

use crate::feed_forward::{self, FeedForward};
use crate::linear::{Input, Linear, Watch};
use crate::mixer::{self, Mixer, Pass, State};
use crate::model::weight_name;
use crate::norm::Normalize;
use crate::per_layer::Gate;
use crate::streams::{Altered, Laurel};
use crate::tensors::Tensors;
use crate::work;

/// A mixer or a feed-forward: linear layers, and what stands between them.
pub(crate) trait Block: Debug + Send + Sync {
    /// The linear layers in groups that are shown the same input, in the order in which they are. The first, which may be none, are given the block's own.
    fn together(&self) -> Vec<Vec<&Linear<'_>>>;

    /// Visits each of them, until an error.
    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()>;

    /// Work of so many tokens that see `seen` positions on average, in nanoseconds of one thread.
    fn work(&self, tokens: usize, seen: usize) -> f64;

    /// Values per token that are in memory at once, at most: its input, plain and packed, what is between its matrices, and its result.
    fn activations(&self) -> usize;
}

/// Who is shown linear layers to change them.
pub(crate) type Visit<'v> = dyn FnMut(&mut Linear<'_>) -> Result<()> + 'v;

/// A layer, ready to run.
#[derive(Debug)]
pub(crate) struct Layer<'a> {
    mixer: Box<dyn Mixer + 'a>,
    feed_forward: Box<dyn FeedForward + 'a>,
    mixer_in: Option<Normalize>,
    mixer_out: Option<Normalize>,
    feed_forward_in: Option<Normalize>,
    feed_forward_out: Option<Normalize>,
    order: Order,
    /// Width of the residual stream.
    hidden: usize,
    /// Factor on what a block adds.
    scale: f32,
    per_layer: Option<Gate<'a>>,
    laurel: Option<Laurel<'a>>,
    altered: Option<Altered<'a>>,
    /// Factor on what leaves the layer.
    scalar: Option<f32>,
}

impl<'a> Layer<'a> {
    /// The layer at that path.
    pub(crate) fn new(tensors: &Tensors<'a>, spec: &Spec, layer: &spec::Layer, path: &str) -> Result<Self> {
        let norm = |name: Option<&str>| {
            let new = |name| Normalize::new(tensors, &format!("{path}.{name}"), spec.hidden, spec.norm, spec.eps);
            name.map(new).transpose()
        };
        let gate = |(all, own)| Gate::new(tensors, spec, (&all, &own), path);
        let altered = |(streams, own)| Altered::new(tensors, spec, (&streams, &own), path);
        let scalar = |name| Ok(tensors.needed(&format!("{path}.{name}"), 1)?.iter().sum());
        Ok(Self {
            mixer: mixer::new(tensors, spec, &layer.mixer, path)?,
            feed_forward: feed_forward::new(tensors, spec, &layer.feed_forward, path)?,
            mixer_in: norm(layer.norms.mixer_in)?,
            mixer_out: norm(layer.norms.mixer_out)?,
            feed_forward_in: norm(layer.norms.feed_forward_in)?,
            feed_forward_out: norm(layer.norms.feed_forward_out)?,
            order: layer.order,
            hidden: spec.hidden,
            scale: spec.residual_scale,
            per_layer: spec.per_layer.zip(layer.per_layer).map(gate).transpose()?,
            laurel: layer.laurel.as_ref().map(|own| Laurel::new(tensors, spec, own, path)).transpose()?,
            altered: spec.streams.zip(layer.altered).map(altered).transpose()?,
            scalar: layer.scalar.map(scalar).transpose()?,
        })
    }

    /// What becomes of the residual stream `x` (hidden, tokens), or of several one behind the other. `part` is what the layer is given of the tokens beside it.
    pub(crate) fn forward(
        &self,
        x: &mut [f32],
        part: &[f32],
        tokens: usize,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        match &self.altered {
            None => {
                self.blocks(x, tokens, pass, state, watch)?;
                if let Some(gate) = &self.per_layer {
                    let through = gate.forward(x, part, tokens, pass.manner, watch)?;
                    x.iter_mut().zip(through).for_each(|(x, y)| *x += y);
                }
            }
            Some(altered) => {
                altered.predict(x, tokens, pass.manner)?;
                let mut became = x[altered.active(tokens)].to_vec();
                self.blocks(&mut became, tokens, pass, state, watch)?;
                altered.correct(x, &became, tokens, pass.manner)?;
                if let Some(gate) = &self.per_layer {
                    let seen = altered.seen(x, tokens);
                    let through = gate.forward(&seen, part, tokens, pass.manner, watch)?;
                    // The first stream goes on as it is.
                    for x in x.chunks_exact_mut(through.len().max(1)).skip(1) {
                        x.iter_mut().zip(&through).for_each(|(x, y)| *x += y);
                    }
                }
            }
        }
        if let Some(scalar) = self.scalar {
            x.iter_mut().for_each(|x| *x *= scalar);
        }
        Ok(())
    }

    /// Adds to the residual stream. Where blocks follow each other, nothing of one stays when the next begins.
    fn blocks(
        &self,
        x: &mut [f32],
        tokens: usize,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let hidden = x.len() / tokens.max(1);
        if self.order == Order::ParallelOneNorm {
            let [mut mixed, mut y] = {
                let input = normalized(&self.mixer_in, x, tokens);
                let input = Input::new(&input, hidden, pass.manner);
                let mut first = Together { watch, others: names(self.feed_forward.as_ref()) };
                let mixed = self.mixer.forward(&input, pass, state, &mut first)?;
                let mut second = AfterFirst { watch: first.watch, seen: false };
                [mixed, self.feed_forward.forward(&input, &mut second)?]
            };
            self.add(x, &mut mixed, &self.mixer_out, tokens);
            self.add(x, &mut y, &self.feed_forward_out, tokens);
            return Ok(());
        }
        let (mut mixed, around) = {
            let input = normalized(&self.mixer_in, x, tokens);
            let input = Input::new(&input, hidden, pass.manner);
            let around = self.laurel.as_ref().map(|laurel| laurel.forward(&input, watch)).transpose()?;
            (self.mixer.forward(&input, pass, state, watch)?, around)
        };
        if self.order == Order::Sequential {
            self.add(x, &mut mixed, &self.mixer_out, tokens);
            if let Some(around) = around {
                x.iter_mut().zip(around).for_each(|(x, y)| *x = (*x + y) * std::f32::consts::FRAC_1_SQRT_2);
            }
            mixed = Vec::new();
        }
        let mut y = {
            let input = normalized(&self.feed_forward_in, x, tokens);
            self.feed_forward.forward(&Input::new(&input, hidden, pass.manner), watch)?
        };
        if self.order == Order::Parallel {
            self.add(x, &mut mixed, &self.mixer_out, tokens);
        }
        self.add(x, &mut y, &self.feed_forward_out, tokens);
        Ok(())
    }

    /// Adds a block's result to the residual stream.
    fn add(&self, x: &mut [f32], y: &mut [f32], norm: &Option<Normalize>, tokens: usize) {
        if let Some(norm) = norm {
            norm.apply(y, tokens);
        }
        if self.scale == 1.0 {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += *y);
        } else {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += *y * self.scale);
        }
    }

    /// The linear layers in groups that are given the same input.
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        let mut groups: Vec<_> = self.laurel.iter().flat_map(Laurel::together).collect();
        groups.extend(self.mixer.together());
        let mut others = self.feed_forward.together().into_iter();
        if self.order == Order::ParallelOneNorm
            && let Some(first) = groups.first_mut()
        {
            first.extend(others.next().into_iter().flatten());
        }
        groups.extend(others);
        groups.extend(self.per_layer.iter().flat_map(Gate::together));
        groups
    }

    /// All linear layers in the order in which they are shown.
    pub(crate) fn linears(&self) -> Vec<&Linear<'_>> {
        self.together().into_iter().flatten().collect()
    }

    /// Visits each of them, until an error.
    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.laurel.iter_mut().try_for_each(|laurel| laurel.each(visit))?;
        self.altered.iter_mut().try_for_each(|altered| altered.each(visit))?;
        self.mixer.each(visit)?;
        self.feed_forward.each(visit)?;
        self.per_layer.iter_mut().try_for_each(|gate| gate.each(visit))
    }

    /// What linear layers are given, in the order of [`Watch::input`].
    pub(crate) fn inputs(&self) -> Vec<LayerInputs> {
        let inputs = |linears: Vec<&Linear<'_>>| {
            let features = linears.first()?.inputs();
            Some(LayerInputs { features, weights: linears.iter().map(|linear| weight_name(linear.name())).collect() })
        };
        self.together().into_iter().filter_map(inputs).collect()
    }

    /// Work of so many tokens that see `seen` positions on average, in nanoseconds of one thread.
    pub(crate) fn work(&self, tokens: usize, seen: usize) -> u64 {
        let linears = |linears: &[Vec<&Linear<'_>>]| work::linears(linears, tokens as f64);
        let beside = self.per_layer.as_ref().map_or(0.0, |gate| linears(&gate.together()))
            + self.laurel.as_ref().map_or(0.0, |laurel| linears(&laurel.together()))
            + self.altered.as_ref().map_or(0.0, |altered| linears(&[altered.linears().to_vec()]));
        (self.mixer.work(tokens, seen) + self.feed_forward.work(tokens, seen) + beside) as u64
    }

    /// Values per token that are in memory at once beside the residual stream, at most.
    pub(crate) fn activations(&self) -> usize {
        let [mixer, feed_forward] = [self.mixer.activations(), self.feed_forward.activations()];
        // The mixer's result waits for the feed-forward's.
        let waiting = if self.order == Order::Sequential { 0 } else { self.hidden };
        let gate = self.per_layer.as_ref().map_or(0, Gate::activations);
        // What goes around the mixer waits for it.
        let around = if self.laurel.is_some() { 3 * self.hidden } else { 0 };
        let streams = self.altered.as_ref().map_or(0, Altered::activations);
        (mixer + around).max(feed_forward + waiting).max(gate) + streams
    }

    /// Values per token that stay for later layers until a pass ends.
    pub(crate) fn lent(&self) -> usize {
        self.mixer.lent()
    }

    /// Values that a cache holds for a sequence of so many positions.
    pub(crate) fn cached(&self, positions: usize) -> usize {
        self.mixer.cached(positions)
    }
}

/// Paths of the layers that are given what the block is given.
fn names<'b>(block: &'b (dyn FeedForward + '_)) -> Vec<&'b str> {
    block.together().into_iter().next().into_iter().flatten().map(|linear| linear.name()).collect()
}

/// Shows the first input, which is another block's too, as that of both blocks' layers.
struct Together<'w> {
    watch: &'w mut dyn Watch,
    /// The other's, until they were shown.
    others: Vec<&'w str>,
}

impl Watch for Together<'_> {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        self.watch.input(&[paths, &std::mem::take(&mut self.others)].concat(), input)
    }

    fn weighs(&self) -> bool {
        self.watch.weighs()
    }

    fn least(&self) -> usize {
        self.watch.least()
    }

    fn served(&mut self, tokens: &[usize]) {
        self.watch.served(tokens);
    }
}

/// Shows all inputs but the first.
struct AfterFirst<'w> {
    watch: &'w mut dyn Watch,
    seen: bool,
}

impl Watch for AfterFirst<'_> {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        if std::mem::replace(&mut self.seen, true) { self.watch.input(paths, input) } else { Ok(()) }
    }

    fn weighs(&self) -> bool {
        self.watch.weighs()
    }

    fn least(&self) -> usize {
        self.watch.least()
    }

    fn served(&mut self, tokens: &[usize]) {
        self.watch.served(tokens);
    }
}

fn normalized<'x>(norm: &Option<Normalize>, x: &'x [f32], tokens: usize) -> Cow<'x, [f32]> {
    match norm {
        None => x.into(),
        Some(norm) => norm.applied(x, tokens).into(),
    }
}
