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

    /// So many sequences whose text shows the adapter, and those of `held` by the adapter as it is. As many as are written at a time are written with the adapter as it is; of these the
    /// first few stay where it hardly shows in them, and what follows is written with a stronger one.
    pub(crate) fn showing(&self, own: usize, held: Range<usize>) -> Result<Written> {
        let progress = self.model.progress();
        let first = own.min(self.together.saturating_sub(held.len()).max(LOOKED_AT));
        let all = (held.len(), own);
        let numbers: Vec<usize> = (0..first).chain(held).collect();
        let mut own_text = self.write_some(&numbers, 1.0, (0, own + all.0))?;
        let held = own_text.split_off(first);
        let looked_at = first.min(LOOKED_AT).min(own.div_ceil(2));
        let nats = strength::nats(self, &own_text[..looked_at])?;
        let second = strength::second(nats);
        let again = |first| again_work(self.model, PRECISION, (first, self.length), self.together);
        let most_again = again(own.min(self.together));
        let mut most = 1.0;
        if second > 1.0 {
            if let Some(progress) = progress {
                progress.skip(most_again.saturating_sub(again(first)));
                progress.phase("writing text that shows the adapter", "tokens");
            }
            own_text.truncate(looked_at);
            most = self.write_stronger(&mut own_text, (nats, second), all)?;
        } else {
            progress.iter().for_each(|progress| progress.skip(most_again));
            own_text.append(&mut self.write_so_strong(first..own, 1.0, all)?.0);
        }
        Ok(Written { own: own_text, held, strength: most })
    }

    /// What follows `own_text`, in which an adapter shows by so many nats as it is: some at a second strength, and all others at one that both say. The result is the stronger of these.
    fn write_stronger(
        &self,
        own_text: &mut Vec<Sequence>,
        (nats, second): (f64, f64),
        all: (usize, usize),
    ) -> Result<f64> {
        let (start, own) = (own_text.len(), all.1);
        let end = own.min(start + LOOKED_AT);
        let (mut written, second) = self.write_so_strong(start..end, second, all)?;
        if end == own || second == 1.0 {
            own_text.append(&mut written);
            own_text.append(&mut self.write_so_strong(end..own, 1.0, all)?.0);
            return Ok(second);
        }
        let third = strength::third(nats, (second, strength::nats(self, &written)?));
        // Of one that turned out to be too strong nothing is kept.
        let most = if third < second { 1.0 } else { second };
        if third >= second {
            own_text.append(&mut written);
        }
        let (mut rest, third) = self.write_so_strong(own_text.len()..own, third, all)?;
        own_text.append(&mut rest);
        Ok(third.max(most))
    }

    /// The model's own sequences of these numbers, where so many are held back of so many more, and the strength that they were written with: that of the adapter as it is where a stronger
    /// one overflows.
    fn write_so_strong(
        &self,
        numbers: Range<usize>,
        strength: f64,
        (held, own): (usize, usize),
    ) -> Result<(Vec<Sequence>, f64)> {
        let place = (held + numbers.start, held + own);
        let numbers: Vec<usize> = numbers.collect();
        match self.write_some(&numbers, strength, place) {
            Err(error) if error.kind() == Kind::NotFinite && strength > 1.0 => {
                Ok((self.write_some(&numbers, 1.0, place)?, 1.0))
            }
            written => Ok((written?, if numbers.is_empty() { 1.0 } else { strength })),
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

/// Work of writing so many sequences of that length whose text shows the adapter, so many at a time: where it hardly shows by itself, which is the longest.
pub(crate) fn showing_work(
    model: &Model<'_>,
    precision: Precision,
    (own, length): (usize, usize),
    together: usize,
) -> u64 {
    writing_work(model, precision, (own, length), together)
        + strength::work(model, precision, own, length)
        + again_work(model, precision, (own.min(together), length), together)
}

/// Work of what is done again of so many sequences that do not show the adapter: all but those that were looked at are written, and others are looked at.
fn again_work(model: &Model<'_>, precision: Precision, (first, length): (usize, usize), together: usize) -> u64 {
    let again = first.saturating_sub(LOOKED_AT);
    writing_work(model, precision, (again, length), together) + strength::work(model, precision, again, length)
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
