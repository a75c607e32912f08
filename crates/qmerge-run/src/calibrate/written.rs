//! Text that the model writes itself, where there is none to calibrate on.

use std::ops::Range;

use qmerge::error::{Kind, Result};

use super::overflow::blame;
use super::strength::LOOKED_AT;
use super::{Amount, PRECISION, SEQUENCES, strength};
use crate::generate::{Random, draw};
use crate::linear::{Manner, Precision};
use crate::model::{Cache, Model};
use crate::text::Beginnings;
use crate::work;

/// How a model writes text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writing<'w, 'm, 'a> {
    pub(crate) model: &'m Model<'a>,
    pub(crate) beginnings: &'w Beginnings,
    /// Tokens of a sequence.
    pub(crate) length: usize,
    pub(crate) seed: u64,
    /// Sequences that are written at a time.
    pub(crate) together: usize,
}

/// A sequence that a model wrote.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequence {
    pub(crate) tokens: Vec<u32>,
    /// How probable each was to the model, as far as it drew them.
    pub(crate) probabilities: Vec<f32>,
}

/// What a model wrote to be calibrated on, and what it wrote to be judged by.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) own: Vec<Sequence>,
    pub(crate) held: Vec<Sequence>,
    /// How many times as strong as it is the adapter was at most, while the model wrote its own.
    pub(crate) strength: f64,
}

impl Writing<'_, '_, '_> {
    /// Sequences of these numbers, with the adapter as it is.
    pub(crate) fn write(&self, numbers: &[usize]) -> Result<Vec<Sequence>> {
        self.write_some(numbers, 1.0, (0, numbers.len()))
    }

    /// The same with the adapter so strong, where so many of all have been written before.
    fn write_some(&self, numbers: &[usize], strength: f64, (before, all): (usize, usize)) -> Result<Vec<Sequence>> {
        let mut sequences = Vec::new();
        for some in numbers.chunks(self.together.max(1)) {
            let done = before + sequences.len();
            let part = |written: usize| {
                if let Some(progress) = self.model.progress() {
                    progress.part((done * self.length + some.len() * written) as u64, (all * self.length) as u64);
                }
            };
            sequences.append(&mut self.sample(some, strength as f32, &part)?);
        }
        Ok(sequences)
    }

    /// So many sequences whose text shows the adapter, and those of `held` by the adapter as it is. As many as are written at a time are written with the adapter as it is. Where it
    /// hardly shows in the first few of them, the next few are written with a stronger one, and all others with one that is as strong as these say it has to be.
    pub(crate) fn showing(&self, own: usize, held: Range<usize>) -> Result<Written> {
        let first = own.min(self.together.saturating_sub(held.len()).max(LOOKED_AT));
        let all = own + held.len();
        let numbers: Vec<usize> = (0..first).chain(held).collect();
        let mut own_text = self.write_some(&numbers, 1.0, (0, all))?;
        let held = own_text.split_off(first);
        let looked_at = first.min(LOOKED_AT);
        let nats = strength::nats(self, &own_text[..looked_at])?;
        let (mut strength, mut most) = (strength::second(nats), 1.0);
        if strength > 1.0 {
            own_text.truncate(looked_at);
            let end = own.min(looked_at + LOOKED_AT);
            let (mut written, second) = self.write_so_strong(looked_at..end, strength, all)?;
            strength = if end < own && second > 1.0 {
                strength::third(nats, (second, strength::nats(self, &written)?))
            } else {
                second
            };
            // Of one that turned out to be too strong nothing is kept.
            if strength >= second {
                own_text.append(&mut written);
                most = second;
            }
        }
        let (mut rest, strength) = self.write_so_strong(own_text.len()..own, strength, all)?;
        if !rest.is_empty() {
            most = strength.max(most);
        }
        own_text.append(&mut rest);
        Ok(Written { own: own_text, held, strength: most })
    }

    /// Sequences of these numbers, of `all`, and the strength that they were written with: that of the adapter as it is where a stronger one overflows.
    fn write_so_strong(&self, numbers: Range<usize>, strength: f64, all: usize) -> Result<(Vec<Sequence>, f64)> {
        let numbers: Vec<usize> = numbers.collect();
        let place = (all.saturating_sub(numbers.len()), all);
        match self.write_some(&numbers, strength, place) {
            Err(error) if error.kind() == Kind::NotFinite && strength > 1.0 => {
                Ok((self.write_some(&numbers, 1.0, place)?, 1.0))
            }
            written => Ok((written?, strength)),
        }
    }

    /// Sequences that the model writes at temperature 1 side by side, each from a beginning of its own. Each depends on its number, the seed and the strength alone.
    fn sample(&self, numbers: &[usize], strength: f32, part: &dyn Fn(usize)) -> Result<Vec<Sequence>> {
        let Self { model, beginnings, length, seed, .. } = *self;
        let (vocab, sequences) = (model.spec().vocab, numbers.len());
        let mut random: Vec<Random> =
            numbers.iter().map(|&number| Random::new(seed.wrapping_mul(0x0100_0000_01b3) ^ number as u64)).collect();
        let opening: Vec<Vec<u32>> = random
            .iter_mut()
            .zip(numbers)
            .map(|(random, &number)| beginnings.of(number, random.token(vocab)))
            .collect();
        let mut next: Vec<u32> = opening.iter().filter_map(|opening| opening.first().copied()).collect();
        let first = |&token: &u32| Sequence { tokens: vec![token], probabilities: vec![1.0] };
        let mut written: Vec<Sequence> = next.iter().map(first).collect();
        let manner = Manner { precision: PRECISION, strength };
        let mut cache = Cache::of_several(model, sequences, length).at(manner);
        let mut logits = Vec::new();
        while written[0].tokens.len() < length {
            let hidden = model.advance(&next, &mut cache)?;
            model.logits_at(manner, &hidden, 0..sequences, &mut logits)?;
            if logits.iter().any(|x| x.is_nan()) {
                return Err(blame(model, None)?);
            }
            let drawn = draw(&mut logits, &mut random);
            for (((written, next), (token, probability)), opening) in
                written.iter_mut().zip(&mut next).zip(drawn).zip(&opening)
            {
                *next = opening.get(written.tokens.len()).copied().unwrap_or(token);
                written.tokens.push(*next);
                written.probabilities.push(probability);
            }
            if let Some(progress) = model.progress() {
                progress.advance(draw_work(model, sequences));
            }
            part(written[0].tokens.len());
        }
        Ok(written)
    }
}

/// Sequences that can be written at a time where what is cached of them may take so many bytes.
pub(crate) fn together(model: &Model<'_>, beginnings: &Beginnings, memory: Option<u64>) -> usize {
    let cached = 4 * model.cached(Amount::Usual.length(model, beginnings)) as u64;
    memory.map_or(SEQUENCES, |memory| (memory / cached.max(1)).clamp(1, SEQUENCES as u64) as usize)
}

/// Work of writing so many sequences of that length whose text shows the adapter, so many at a time.
pub(crate) fn showing_work(
    model: &Model<'_>,
    precision: Precision,
    (own, length): (usize, usize),
    together: usize,
) -> u64 {
    writing_work(model, precision, (own, length), together) + strength::work(model, precision, own, length)
}

/// Work of writing some sequences of that length, so many at a time.
fn writing_work(model: &Model<'_>, precision: Precision, (sequences, length): (usize, usize), together: usize) -> u64 {
    let step = |count: usize, number: usize| {
        model.pass_work(precision, count, number) + model.logits_work(precision, count) + draw_work(model, count)
    };
    (0..sequences)
        .step_by(together)
        .map(|first| {
            let count = together.min(sequences - first);
            (1..length).map(|number| step(count, number)).sum::<u64>()
        })
        .sum()
}

fn draw_work(model: &Model<'_>, sequences: usize) -> u64 {
    (work::DRAW * (model.spec().vocab * sequences) as f64) as u64
}
