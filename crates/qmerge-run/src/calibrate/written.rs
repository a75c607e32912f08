//! Text that the model writes itself, where there is none to calibrate on.

use std::ops::Range;

use qmerge::error::{Error, Kind, Result};

use super::overflow::{OVERFLOWS, blame};
use super::strength::LOOKED_AT;
use super::{Amount, FEW_SEQUENCES, PRECISION, SEQUENCES, strength};
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

/// What a model wrote to be calibrated on, and what it wrote to be judged by.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) own: Vec<Vec<u32>>,
    pub(crate) held: Vec<Vec<u32>>,
    /// How many times as strong as it is the adapter was at most, while the model wrote its own.
    pub(crate) strength: f64,
}

/// How many sequences are written before some, and in all.
#[derive(Clone, Copy)]
struct Place {
    before: usize,
    all: usize,
}

impl Writing<'_, '_, '_> {
    /// Sequences of these numbers, with the adapter as it is.
    pub(crate) fn write(&self, numbers: &[usize]) -> Result<Vec<Vec<u32>>> {
        self.write_some(numbers, 1.0, Place { before: 0, all: numbers.len() })
    }

    /// The same with the adapter so strong, where so many of all have been written before.
    fn write_some(&self, numbers: &[usize], strength: f64, place: Place) -> Result<Vec<Vec<u32>>> {
        let mut sequences = Vec::new();
        for some in numbers.chunks(self.together.max(1)) {
            let done = place.before + sequences.len();
            let part = |written: usize| {
                if let Some(progress) = self.model.progress() {
                    progress.part((done * self.length + some.len() * written) as u64, (place.all * self.length) as u64);
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
        let first = own.min(self.together.saturating_sub(held.len()).max(looked_at(own)));
        let place = Place { before: 0, all: own + held.len() };
        let numbers: Vec<usize> = (0..first).chain(held).collect();
        let mut own_text = self.write_some(&numbers, 1.0, place)?;
        let held = own_text.split_off(first);
        let nats = strength::nats(self, &own_text[..looked_at(own)], 1.0)?;
        let second = strength::second(nats);
        let again = |first| again_work(self, own, first);
        let most_again = again(own.min(self.together));
        let mut strength = 1.0;
        if second > 1.0 {
            if let Some(progress) = progress {
                progress.skip(most_again.saturating_sub(again(first)));
                progress.phase("writing text that shows the adapter", "tokens");
            }
            own_text.truncate(looked_at(own));
            strength = self.write_stronger(&mut own_text, (nats, second), own)?;
        } else {
            progress.iter().for_each(|progress| progress.skip(most_again));
            let rest: Vec<usize> = (first..own).collect();
            own_text.append(&mut self.write_some(&rest, 1.0, Place { before: first + held.len(), ..place })?);
        }
        Ok(Written { own: own_text, held, strength })
    }

    /// What follows `own_text`, in which an adapter shows by so many nats as it is: some at a second strength, and all others at one that both say. The result is the strongest.
    fn write_stronger(&self, own_text: &mut Vec<Vec<u32>>, (nats, second): (f64, f64), own: usize) -> Result<f64> {
        let start = own_text.len();
        // Of few all others are written at once.
        let end = if own <= FEW_SEQUENCES { own } else { own.min(start + LOOKED_AT) };
        let (mut written, second) = self.write_so_strong(start..end, second, start..own)?;
        if end == own || second == 1.0 {
            own_text.append(&mut written);
            own_text.append(&mut self.write_so_strong(end..own, 1.0, start..own)?.0);
            return Ok(second);
        }
        let third = strength::third(nats, (second, strength::nats(self, &written, second)?));
        // Of one that turned out to be too strong nothing is kept.
        let most = if third < second { 1.0 } else { second };
        if third >= second {
            own_text.append(&mut written);
        }
        let (mut rest, third) = self.write_so_strong(own_text.len()..own, third, start..own)?;
        own_text.append(&mut rest);
        Ok(third.max(most))
    }

    /// Sequences of these numbers, some of `all`, and the strength that they were written with: that of the adapter as it is where a stronger one overflows.
    fn write_so_strong(&self, numbers: Range<usize>, strength: f64, all: Range<usize>) -> Result<(Vec<Vec<u32>>, f64)> {
        let place = Place { before: numbers.start - all.start, all: all.len() };
        let numbers: Vec<usize> = numbers.collect();
        match self.write_some(&numbers, strength, place) {
            Err(error) if error.kind() == Kind::NotFinite && strength > 1.0 => {
                Ok((self.write_some(&numbers, 1.0, place)?, 1.0))
            }
            written => Ok((written?, if numbers.is_empty() { 1.0 } else { strength })),
        }
    }

    /// Sequences that the model writes at temperature 1 side by side, each from a beginning of its own. Each depends on its number, the seed and the strength alone.
    fn sample(&self, numbers: &[usize], strength: f32, part: &dyn Fn(usize)) -> Result<Vec<Vec<u32>>> {
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
        let mut written: Vec<Vec<u32>> = next.iter().map(|&token| vec![token]).collect();
        let manner = Manner { precision: PRECISION, strength };
        let mut cache = Cache::of_several(model, sequences, length).at(manner);
        let mut logits = Vec::new();
        while written[0].len() < length {
            let hidden = model.advance(&next, &mut cache)?;
            model.logits_at(PRECISION, &hidden, 0..sequences, &mut logits)?;
            if logits.iter().any(|x| x.is_nan()) {
                // Of a stronger adapter nobody is told.
                return Err(if strength == 1.0 { blame(model, None)? } else { Error::new(Kind::NotFinite, OVERFLOWS) });
            }
            next = draw(&mut logits, &mut random);
            for ((written, token), opening) in written.iter_mut().zip(&mut next).zip(&opening) {
                if let Some(&given) = opening.get(written.len()) {
                    *token = given;
                }
                written.push(*token);
            }
            if let Some(progress) = model.progress() {
                progress.advance(draw_work(model, sequences));
            }
            part(written[0].len());
        }
        Ok(written)
    }
}

/// Sequences that can be written at a time where what is cached of them may take so many bytes.
pub(crate) fn together(model: &Model<'_>, beginnings: &Beginnings, memory: Option<u64>) -> usize {
    let cached = 4 * model.cached(Amount::Usual.length(model, beginnings)) as u64;
    memory.map_or(SEQUENCES, |memory| (memory / cached.max(1)).clamp(1, SEQUENCES as u64) as usize)
}

/// Sequences, of so many, that say how much an adapter shows as it is.
fn looked_at(own: usize) -> usize {
    LOOKED_AT.min(own.div_ceil(4))
}

/// Work of writing so many sequences whose text shows the adapter: where it hardly shows by itself, which is the longest.
pub(crate) fn showing_work(writing: &Writing<'_, '_, '_>, own: usize) -> u64 {
    let Writing { model, length, together, .. } = *writing;
    writing_work(model, PRECISION, (own, length), together)
        + strength::work(writing, looked_at(own))
        + again_work(writing, own, own.min(together))
}

/// Work of what is done besides where `first` sequences of `own` do not show the adapter: all but those that were looked at are written by a stronger one, and some of these are looked at.
fn again_work(writing: &Writing<'_, '_, '_>, own: usize, first: usize) -> u64 {
    let Writing { model, length, together, .. } = *writing;
    let write = |sequences| writing_work(model, PRECISION, (sequences, length), together);
    let rest = own - looked_at(own);
    let (second, looks) = if own <= FEW_SEQUENCES { (rest, 0) } else { (rest.min(LOOKED_AT), LOOKED_AT) };
    (write(second) + write(rest - second) + strength::work(writing, looks)).saturating_sub(write(own - first))
}

/// Work of writing some sequences of that length, so many at a time.
pub(crate) fn writing_work(
    model: &Model<'_>,
    precision: Precision,
    (sequences, length): (usize, usize),
    together: usize,
) -> u64 {
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
