//! A layer of the decoder: a mixer and a feed-forward, with norms around them, on a residual stream.

use std::borrow::Cow;
use std::fmt::Debug;

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;
use qmerge::round::LayerInputs;

use crate::feed_forward::{self, FeedForward};
use crate::linear::{Input, Linear, Watch};
use crate::mixer::{self, Mixer, Pass, State};
use crate::model::weight_name;
use crate::norm::Normalize;
use crate::tensors::Tensors;

/// A mixer or a feed-forward: linear layers, and what stands between them.
pub(crate) trait Block: Debug + Send + Sync {
    /// The linear layers in groups that are given the same input, in the order of their use.
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
    /// Factor on what a block adds.
    scale: f32,
}

impl<'a> Layer<'a> {
    /// The layer at that path.
    pub(crate) fn new(tensors: &Tensors<'a>, spec: &Spec, layer: &spec::Layer, path: &str) -> Result<Self> {
        let norm = |name: Option<&str>| {
            let new = |name| Normalize::new(tensors, &format!("{path}.{name}"), spec.hidden, spec.norm, spec.eps);
            name.map(new).transpose()
        };
        Ok(Self {
            mixer: mixer::new(tensors, spec, &layer.mixer, path)?,
            feed_forward: feed_forward::new(tensors, spec, &layer.feed_forward, path)?,
            mixer_in: norm(layer.norms.mixer_in)?,
            mixer_out: norm(layer.norms.mixer_out)?,
            feed_forward_in: norm(layer.norms.feed_forward_in)?,
            feed_forward_out: norm(layer.norms.feed_forward_out)?,
            scale: spec.residual_scale,
        })
    }

    /// Adds to the residual stream `x` (hidden, tokens). Nothing of a block stays when the next one begins.
    pub(crate) fn forward(
        &self,
        x: &mut [f32],
        tokens: usize,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let hidden = x.len() / tokens.max(1);
        let mut y = {
            let input = normalized(&self.mixer_in, x, tokens);
            self.mixer.forward(&Input::new(&input, hidden), pass, state, watch)?
        };
        self.add(x, &mut y, &self.mixer_out, tokens);
        drop(y);
        let mut y = {
            let input = normalized(&self.feed_forward_in, x, tokens);
            self.feed_forward.forward(&Input::new(&input, hidden), watch)?
        };
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

    fn blocks(&self) -> [&dyn Block; 2] {
        [self.mixer.as_ref(), self.feed_forward.as_ref()]
    }

    /// All linear layers in the order of their use.
    pub(crate) fn linears(&self) -> Vec<&Linear<'_>> {
        self.blocks().iter().flat_map(|block| block.together()).flatten().collect()
    }

    /// Visits each of them, until an error.
    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.mixer.each(visit)?;
        self.feed_forward.each(visit)
    }

    /// What linear layers are given, in the order of [`Watch::input`].
    pub(crate) fn inputs(&self) -> Vec<LayerInputs> {
        let inputs = |linears: Vec<&Linear<'_>>| {
            let features = linears.first()?.inputs();
            Some(LayerInputs { features, weights: linears.iter().map(|linear| weight_name(linear.name())).collect() })
        };
        self.blocks().iter().flat_map(|block| block.together()).filter_map(inputs).collect()
    }

    /// Work of so many tokens that see `seen` positions on average, in nanoseconds of one thread.
    pub(crate) fn work(&self, tokens: usize, seen: usize) -> u64 {
        (self.mixer.work(tokens, seen) + self.feed_forward.work(tokens, seen)) as u64
    }

    /// Values per token that are in memory at once beside the residual stream, at most.
    pub(crate) fn activations(&self) -> usize {
        self.blocks().iter().map(|block| block.activations()).max().unwrap_or(0)
    }

    /// Values that a cache holds for a sequence of so many positions.
    pub(crate) fn cached(&self, positions: usize) -> usize {
        self.mixer.cached(positions)
    }
}

fn normalized<'x>(norm: &Option<Normalize>, x: &'x [f32], tokens: usize) -> Cow<'x, [f32]> {
    match norm {
        None => x.into(),
        Some(norm) => {
            let mut x = x.to_vec();
            norm.apply(&mut x, tokens);
            x.into()
        }
    }
}
