//! By which a position sees others: one file per mixer, and one line in [`new`]; `paid` is how much of each position mixers of softmax see.

mod attention;
mod delta;
mod latent;
mod paid;
mod short_conv;
mod softmax;

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use qmerge::arch::Rope;
use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;

use crate::layer::Block;
use crate::linear::{Input, Manner, Watch};
use crate::rope::Angles;
use crate::tensors::Tensors;
use attention::Attention;
use delta::Delta;
use latent::Latent;
use short_conv::ShortConv;
use softmax::Past;

/// By which a position sees others.
pub(crate) trait Mixer: Block {
    /// What is added to the residual stream (hidden, tokens), from `x`, which is as large. Where there is a `state`, the pass's sequences are its own.
    fn forward(&self, x: &Input<'_>, pass: &Pass, state: Option<&mut State>, watch: &mut dyn Watch)
    -> Result<Vec<f32>>;

    /// Values that a state holds for a sequence of so many positions.
    fn cached(&self, positions: usize) -> usize;

    /// Values per token that stay for later layers until a pass ends.
    fn lent(&self) -> usize {
        0
    }
}

/// The mixer of the layer at that path.
pub(crate) fn new<'a>(
    tensors: &Tensors<'a>,
    spec: &Spec,
    mixer: &spec::Mixer,
    layer: &str,
) -> Result<Box<dyn Mixer + 'a>> {
    Ok(match mixer {
        spec::Mixer::Attention(attention) => Box::new(Attention::new(tensors, spec, attention, layer)?),
        spec::Mixer::ShortConv(conv) => Box::new(ShortConv::new(tensors, spec, conv, layer)?),
        spec::Mixer::Latent(latent) => Box::new(Latent::new(tensors, spec, latent, layer)?),
        spec::Mixer::Delta(delta) => Box::new(Delta::new(tensors, spec, delta, layer)?),
    })
}

/// Sequences beside each other on their way through the layers.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) sequences: Vec<Sequence>,
    /// By rope and by sequence.
    pub(crate) angles: Vec<Vec<Angles>>,
    /// Positions of a sequence that states have room for.
    pub(crate) capacity: usize,
    pub(crate) manner: Manner,
    /// Keys and values that layers have lent to later ones, by number.
    lent: Mutex<BTreeMap<usize, Arc<Past>>>,
}

/// Which columns of a batch are one sequence, and how many positions of it went before.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) columns: Range<usize>,
    pub(crate) past: usize,
}

impl Sequence {
    /// Positions so far, with those of the columns.
    pub(crate) fn end(&self) -> usize {
        self.past + self.columns.len()
    }
}

impl Pass {
    pub(crate) fn new(sequences: Vec<Sequence>, ropes: &[Rope], capacity: usize, manner: Manner) -> Self {
        let angles = |rope: &Rope| sequences.iter().map(|s| Angles::new(rope, s.past..s.end(), s.end())).collect();
        Self { angles: ropes.iter().map(angles).collect(), sequences, capacity, manner, lent: Mutex::default() }
    }

    fn lend(&self, number: usize, past: Arc<Past>) {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).insert(number, past);
    }

    /// What a layer before has lent under that number; nothing where none has.
    fn borrowed(&self, number: usize) -> Arc<Past> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned().unwrap_or_default()
    }

    /// Positions of the new columns, in their sequences.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.sequences.iter().flat_map(|s| s.past..s.end())
    }

    /// Positions that a column sees, on average.
    pub(crate) fn seen(&self) -> usize {
        let (mut tokens, mut sum) = (0, 0);
        for sequence in &self.sequences {
            let len = sequence.columns.len();
            tokens += len;
            sum += len * (sequence.past + len.div_ceil(2));
        }
        sum / tokens.max(1)
    }
}

/// What a mixer keeps of the positions so far, of all sequences of a cache. What it is, only the layer's mixer knows.
#[derive(Debug)]
pub(crate) struct State(Box<dyn Any + Send + Sync>);

impl State {
    /// Of no positions.
    pub(crate) fn empty() -> Self {
        Self(Box::new(()))
    }

    /// As the mixer's own type, which begins as its default.
    pub(crate) fn own<T: Default + Send + Sync + 'static>(&mut self) -> &mut T {
        if !self.0.is::<T>() {
            self.0 = Box::new(T::default());
        }
        self.0.downcast_mut().expect("it was made of this type")
    }
}
