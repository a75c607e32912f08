//! Text that the model writes itself, where there is none to calibrate on.

use qmerge::error::Result;

use super::overflow::blame;
use super::{Amount, PRECISION, SEQUENCES};
use crate::generate::{Random, draw};
use crate::linear::Precision;
use crate::model::{Cache, Model};
use crate::text::Beginnings;
use crate::work;

/// Sequences of these numbers and of that length that the model writes itself, so many at a time.
pub(crate) fn write(
    model: &Model<'_>,
    (numbers, length): (&[usize], usize),
    beginnings: &Beginnings,
    seed: u64,
    together: usize,
) -> Result<Vec<Vec<u32>>> {
    let all = numbers.len();
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for some in numbers.chunks(together.max(1)) {
        let (before, together) = (sequences.len(), some.len());
        let part = |written: usize| {
            if let Some(progress) = model.progress() {
                progress.part((before * length + together * written) as u64, (all * length) as u64);
            }
        };
        sequences.append(&mut sample(model, some, beginnings, length, seed, &part)?);
    }
    Ok(sequences)
}

/// Sequences that can be written at a time where what is cached of them may take so many bytes.
pub(crate) fn together(model: &Model<'_>, beginnings: &Beginnings, memory: Option<u64>) -> usize {
    let cached = 4 * model.cached(Amount::Usual.length(model, beginnings)) as u64;
    memory.map_or(SEQUENCES, |memory| (memory / cached.max(1)).clamp(1, SEQUENCES as u64) as usize)
}

/// Sequences that the model writes at temperature 1 side by side, each from a beginning of its own. Each depends on its number and the seed alone.
fn sample(
    model: &Model<'_>,
    numbers: &[usize],
    beginnings: &Beginnings,
    length: usize,
    seed: u64,
    part: &dyn Fn(usize),
) -> Result<Vec<Vec<u32>>> {
    let (vocab, sequences) = (model.spec().vocab, numbers.len());
    let mut random: Vec<Random> =
        numbers.iter().map(|&number| Random::new(seed.wrapping_mul(0x0100_0000_01b3) ^ number as u64)).collect();
    let opening: Vec<Vec<u32>> =
        random.iter_mut().zip(numbers).map(|(random, &number)| beginnings.of(number, random.token(vocab))).collect();
    let mut next: Vec<u32> = opening.iter().filter_map(|opening| opening.first().copied()).collect();
    let mut written: Vec<Vec<u32>> = next.iter().map(|&token| vec![token]).collect();
    let mut cache = Cache::of_several(model, sequences, length).at(PRECISION);
    let mut logits = Vec::new();
    while written[0].len() < length {
        let hidden = model.advance(&next, &mut cache)?;
        model.logits_at(PRECISION, &hidden, 0..sequences, &mut logits)?;
        if logits.iter().any(|x| x.is_nan()) {
            return Err(blame(model, None)?);
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
