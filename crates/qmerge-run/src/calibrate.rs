//! What linear layers are given, from a pass over some text: H = mean of x·xᵀ for each input, layer by layer.

use std::ops::Range;
use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::merge::Progress;
use qmerge::round::{Calibration, Demand, InputMoments, Known};
use qmerge::simd::matmul::{Columns, HEIGHT, matmul};
use rayon::prelude::*;

use crate::generate::{Random, Sampling, choose};
use crate::linear::{Input, Watch};
use crate::model::{Cache, Model, weight_name};
use crate::work;

/// Tokens of a window of text.
pub const WINDOW: usize = 256;
/// Most windows that are taken of a text.
pub const WINDOWS: usize = 24;
/// Fewest tokens that say anything about a layer's inputs.
const FEWEST: usize = 1024;
/// Sequences that the model writes itself, and their length.
pub(crate) const SEQUENCES: usize = 64;
const LENGTH: usize = 48;

/// Moments of the inputs of a model's layers on some sequences. The model is the base with the adapter kept apart: the inputs are what the merged
/// layer should be given.
#[derive(Debug)]
pub struct FromModel<'m, 'a> {
    model: &'m Model<'a>,
    sequences: Vec<Vec<u32>>,
    about: String,
    demand: Demand,
}

impl<'m, 'a> FromModel<'m, 'a> {
    /// Windows of a text, spread over it. Errors if the text is too short.
    pub fn text(model: &'m Model<'a>, tokens: &[u32], path: &Path) -> Result<Self> {
        if tokens.len() < FEWEST {
            let problem = format!("{} tokens, and calibration needs at least {FEWEST}", tokens.len());
            return Err(Error::new(Kind::Mismatch, problem)
                .in_file(path)
                .with_hint("give a longer text, or none: then the model writes one itself"));
        }
        let window = window(model);
        let windows: Vec<&[u32]> = tokens.chunks_exact(window).collect();
        let taken = WINDOWS.min(windows.len());
        let sequences: Vec<Vec<u32>> = (0..taken).map(|i| windows[i * windows.len() / taken].to_vec()).collect();
        let about = format!("{} tokens of {}", taken * window, path.display());
        Ok(Self { model, sequences, about, demand: Demand::default() })
    }

    /// Text that the model writes itself, from random first tokens, so many sequences at a time; the text does not depend on that.
    pub fn own_text(model: &'m Model<'a>, seed: u64, together: usize) -> Result<Self> {
        let (length, together) = (length(model), together.clamp(1, SEQUENCES));
        if let Some(progress) = model.progress() {
            progress.phase("writing text to calibrate on", "tokens");
        }
        let mut sequences = Vec::new();
        for first in (0..SEQUENCES).step_by(together) {
            sequences.append(&mut sample(model, first..(first + together).min(SEQUENCES), length, seed)?);
        }
        let about = format!("{} tokens that the model wrote (seed {seed})", SEQUENCES * LENGTH);
        Ok(Self { model, sequences, about, demand: Demand::default() })
    }

    /// Takes what [`memory::needs`](crate::memory::needs) found out before the model was loaded.
    pub fn expecting(self, demand: Demand) -> Self {
        Self { demand, ..self }
    }
}

impl Calibration for FromModel<'_, '_> {
    fn about(&self) -> String {
        self.about.clone()
    }

    fn each(
        &mut self,
        wanted: &(dyn Fn(&str) -> bool + Sync),
        take: &mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    ) -> Result<()> {
        let sequences: Vec<&[u32]> = self.sequences.iter().map(Vec::as_slice).collect();
        let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
        let progress = self.model.progress();
        let mut collector = Collector { wanted, take, known: Vec::new(), last: None, progress, work: 0 };
        self.model.hidden(&sequences, &mut collector)?;
        if let Some(progress) = progress {
            // Inputs that nobody wanted.
            progress.skip(moments_work(self.model, tokens).saturating_sub(collector.work));
        }
        Ok(())
    }

    fn demand(&self) -> Demand {
        self.demand.clone()
    }
}

/// Gathers the moments of a layer.
struct Collector<'c> {
    wanted: &'c (dyn Fn(&str) -> bool + Sync),
    take: &'c mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    known: Vec<Known>,
    /// Number of the last input whose moments are known.
    last: Option<u64>,
    progress: Option<&'c dyn Progress>,
    /// Done for moments so far.
    work: u64,
}

impl Watch for Collector<'_> {
    fn input(&mut self, path: &str, input: &Input<'_>) -> Result<()> {
        let name = weight_name(path);
        if !(self.wanted)(&name) {
            return Ok(());
        }
        if self.last == Some(input.number())
            && let Some(known) = self.known.last_mut()
        {
            known.weights.push(name);
            return Ok(());
        }
        let moments = second_moments(input.values(), input.tokens());
        let done = work::moments(moments.features, moments.tokens) as u64;
        self.work += done;
        if let Some(progress) = self.progress {
            progress.advance(done);
        }
        if let Some(x) = moments.values.iter().find(|x| !x.is_finite()) {
            return Err(Error::new(Kind::NotFinite, format!("its inputs on the calibration text have the moment {x}"))
                .in_tensor(&name)
                .with_hint("the model's activations overflow: check the base and the adapter"));
        }
        self.known.push(Known { weights: vec![name], moments });
        self.last = Some(input.number());
        Ok(())
    }

    fn layer(&mut self) -> Result<()> {
        self.last = None;
        let known = std::mem::take(&mut self.known);
        if known.is_empty() { Ok(()) } else { (self.take)(known) }
    }
}

/// Tokens of a sequence that the model writes.
pub(crate) fn length(model: &Model<'_>) -> usize {
    LENGTH.min(model.spec().max_positions)
}

/// Tokens of the windows that are taken of a text of so many.
pub fn taken(model: &Model<'_>, tokens: usize) -> usize {
    let window = window(model);
    WINDOWS.min(tokens / window.max(1)) * window
}

/// Tokens of a window of a text.
pub(crate) fn window(model: &Model<'_>) -> usize {
    WINDOW.min(model.spec().max_positions)
}

/// Work of writing some sequences, so many at a time.
pub(crate) fn writing_work(model: &Model<'_>, together: usize) -> u64 {
    let step = |count: usize, number: usize| {
        model.pass_work(count, number) + model.logits_work(count) + draw_work(model, count)
    };
    (0..SEQUENCES)
        .step_by(together)
        .map(|first| {
            let count = together.min(SEQUENCES - first);
            (1..length(model)).map(|number| step(count, number)).sum::<u64>()
        })
        .sum()
}

/// Work of all moments of a model's inputs.
pub(crate) fn moments_work(model: &Model<'_>, tokens: usize) -> u64 {
    model.inputs().iter().flatten().map(|inputs| work::moments(inputs.features, tokens) as u64).sum()
}

fn draw_work(model: &Model<'_>, sequences: usize) -> u64 {
    (work::DRAW * (model.spec().vocab * sequences) as f64) as u64
}

/// Features whose products are computed together.
const SOME: usize = 256;

/// H of `x` (features, tokens).
fn second_moments(x: &[f32], tokens: usize) -> InputMoments {
    let features = x.len() / tokens.max(1);
    let mut values = vec![0.0; features * features];
    for start in (0..features).step_by(SOME) {
        let width = SOME.min(features - start);
        let mut turned = vec![0.0; tokens * width];
        for (c, row) in x[start * tokens..(start + width) * tokens].chunks_exact(tokens).enumerate() {
            turned[c..].iter_mut().step_by(width).zip(row).for_each(|(to, &from)| *to = from);
        }
        let columns = Columns::new(&turned, tokens, width);
        // H is symmetric: what lies above these columns is known from those before.
        let rows = 16 * HEIGHT;
        values[start * features..].par_chunks_mut(rows * features).enumerate().for_each(|(number, out)| {
            let first = start + number * rows;
            let count = out.len() / features;
            let mut product = vec![0.0; count * width];
            matmul(&x[first * tokens..(first + count) * tokens], &columns, false, &mut product);
            for (out, product) in out.chunks_exact_mut(features).zip(product.chunks_exact(width)) {
                out[start..start + width].iter_mut().zip(product).for_each(|(out, sum)| *out = sum / tokens as f32);
            }
        });
    }
    mirror(&mut values, features);
    InputMoments { features, tokens, values }
}

/// Copies what lies below the diagonal to above it, squares of some features at a time.
fn mirror(values: &mut [f32], features: usize) {
    const SOME: usize = 64;
    let mut rest = values;
    for start in (0..features).step_by(SOME) {
        let width = SOME.min(features - start);
        let (own, below) = rest.split_at_mut(width * features);
        own.par_chunks_mut(features).enumerate().for_each(|(i, row)| {
            let column = below.iter().skip(start + i).step_by(features);
            row[start + width..].iter_mut().zip(column).for_each(|(to, from)| *to = *from);
        });
        for i in 0..width {
            for j in i + 1..width {
                own[i * features + start + j] = own[j * features + start + i];
            }
        }
        rest = below;
    }
}

/// Sequences that the model writes at temperature 1 side by side, each from another random token. Each depends on its number and the seed alone.
fn sample(model: &Model<'_>, numbers: Range<usize>, length: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    let (vocab, sequences, before) = (model.spec().vocab, numbers.len(), numbers.start * length);
    let mut random: Vec<Random> =
        numbers.map(|number| Random::new(seed.wrapping_mul(0x0100_0000_01b3) ^ number as u64)).collect();
    let mut next: Vec<u32> =
        random.iter_mut().map(|random| ((random.uniform() * vocab as f32) as u32).min(vocab as u32 - 1)).collect();
    let mut written: Vec<Vec<u32>> = next.iter().map(|&token| vec![token]).collect();
    let mut cache = Cache::of_several(model, sequences, length);
    let mut logits = Vec::new();
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed };
    while written[0].len() < length {
        let hidden = model.advance(&next, &mut cache)?;
        model.logits(&hidden, 0..sequences, &mut logits)?;
        next = random
            .par_iter_mut()
            .enumerate()
            .map_init(Vec::new, |own, (number, random)| {
                own.clear();
                own.extend(logits.iter().skip(number).step_by(sequences));
                choose(own, sampling, random)
            })
            .collect();
        for (written, &token) in written.iter_mut().zip(&next) {
            written.push(token);
        }
        if let Some(progress) = model.progress() {
            progress.advance(draw_work(model, sequences));
            progress.part((before + sequences * written[0].len()) as u64, (SEQUENCES * length) as u64);
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_mean_products() {
        let (features, tokens) = (300, 40);
        let x: Vec<f32> = (0..features * tokens).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        let moments = second_moments(&x, tokens);
        for (i, j) in [(0, 0), (1, 299), (299, 1), (280, 270), (100, 257)] {
            let sum: f64 = (0..tokens).map(|t| f64::from(x[i * tokens + t]) * f64::from(x[j * tokens + t])).sum();
            assert!((f64::from(moments.values[i * features + j]) - sum / tokens as f64).abs() < 1e-5, "{i} {j}");
        }
    }
}
