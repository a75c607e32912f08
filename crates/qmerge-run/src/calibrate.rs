//! What linear layers are given, from a pass over some text: H = mean of x·xᵀ for each input, layer by layer.

use std::collections::HashSet;
use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::plan::Inputs;
use qmerge::round::{Calibration, InputMoments, Known};
use qmerge::simd::matmul::{Columns, HEIGHT, matmul};
use rayon::prelude::*;

use crate::behaviour::Held;
use crate::generate::{Random, Sampling, choose};
use crate::linear::{Input, Watch};
use crate::model::{Cache, Model, Options};
use crate::tensors::Tensors;

/// Tokens of a window of text.
pub const WINDOW: usize = 256;
/// Most windows that are taken of a text.
pub const WINDOWS: usize = 24;
/// Fewest tokens that say anything about a layer's inputs.
const FEWEST: usize = 1024;
/// Sequences that the model writes itself, and their length.
const SEQUENCES: usize = 64;
pub(crate) const LENGTH: usize = 48;
/// Of a text of at least so many windows, one window in so many is held back, up to the second number.
const HELD_OF: usize = 8;
const HELD: usize = 4;

/// Moments of the inputs of a model's layers on some sequences. The model is the base with the adapter kept apart: the inputs are what the merged
/// layer should be given.
#[derive(Debug)]
pub struct FromModel<'m, 'a> {
    model: &'m Model<'a>,
    sequences: Vec<Vec<u32>>,
    about: String,
    /// The end of a text, which the moments do not see.
    held: Option<Held>,
}

/// The weights whose inputs a calibration of this base comes to know. Errors if the base cannot be run.
pub fn weights(inputs: &Inputs) -> Result<HashSet<String>> {
    let mut model = Model::new(&Tensors::new(inputs, None), Options { held: Some(0), ..Options::default() })?;
    Ok(model.watched().map(|path| format!("{path}.weight")).collect())
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
        let window = WINDOW.min(model.spec().max_positions);
        let (taken, held) = split(tokens, window);
        let about = format!("{} tokens of {}", taken.len() * window, path.display());
        let own = |windows: Vec<&[u32]>| windows.into_iter().map(<[u32]>::to_vec).collect::<Vec<_>>();
        let held = (!held.is_empty()).then(|| Held {
            sequences: own(held),
            from: 0,
            about: format!("at the end of {}, not calibrated on", path.display()),
        });
        Ok(Self { model, sequences: own(taken), about, held })
    }

    /// Text that the model writes itself, from random first tokens. `memory` bounds the bytes that keys and values may take; the text does not depend on it.
    /// With `hold` it writes what is held back along with it, which is cheaper than to do so later.
    pub fn own_text(model: &'m Model<'a>, seed: u64, memory: Option<u64>, hold: bool) -> Result<Self> {
        let held = if hold { Held::numbers(model) } else { 0..0 };
        let numbers: Vec<usize> = (0..SEQUENCES).chain(held).collect();
        let mut sequences = write(model, &numbers, seed, memory)?;
        let held = sequences.split_off(SEQUENCES);
        let about =
            format!("{} tokens that the model wrote (seed {seed})", sequences.iter().map(Vec::len).sum::<usize>());
        Ok(Self { model, sequences, about, held: hold.then(|| Held::written(held, seed)) })
    }

    /// What was held back, to judge by; `None` where a text was too short for that.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }
}

/// The windows to calibrate on, spread over all but the end of the text, and those at its end that are held back.
fn split(tokens: &[u32], window: usize) -> (Vec<&[u32]>, Vec<&[u32]>) {
    let mut windows: Vec<&[u32]> = tokens.chunks_exact(window).collect();
    let held = windows.split_off(windows.len() - (windows.len() / HELD_OF).min(HELD));
    let taken = WINDOWS.min(windows.len());
    ((0..taken).map(|i| windows[i * windows.len() / taken]).collect(), held)
}

/// Sequences of these numbers that the model writes itself, some at a time as `memory` for keys and values allows.
pub(crate) fn write(model: &Model<'_>, numbers: &[usize], seed: u64, memory: Option<u64>) -> Result<Vec<Vec<u32>>> {
    let length = LENGTH.min(model.spec().max_positions);
    let spec = model.spec();
    let cached = (spec.layers.len() * spec.kv_heads * spec.head_dim * length * 2 * 4) as u64;
    let all = numbers.len();
    let together = memory.map_or(all, |memory| (memory / cached.max(1)).clamp(1, all.max(1) as u64) as usize);
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    for some in numbers.chunks(together.max(1)) {
        let (before, together) = (sequences.len(), some.len());
        let part = |written: usize| {
            if let Some(progress) = model.progress() {
                progress.part((before * length + together * written) as u64, (all * length) as u64);
            }
        };
        sequences.append(&mut sample(model, some, length, seed, &part)?);
    }
    Ok(sequences)
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
        let mut collector = Collector { wanted, take, known: Vec::new(), last: None };
        self.model.hidden(&sequences, &mut collector)?;
        Ok(())
    }
}

/// Gathers the moments of a layer.
struct Collector<'c> {
    wanted: &'c (dyn Fn(&str) -> bool + Sync),
    take: &'c mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    known: Vec<Known>,
    /// Number of the last input whose moments are known.
    last: Option<u64>,
}

impl Watch for Collector<'_> {
    fn input(&mut self, path: &str, input: &Input<'_>) -> Result<()> {
        let name = format!("{path}.weight");
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
fn sample(
    model: &Model<'_>,
    numbers: &[usize],
    length: usize,
    seed: u64,
    part: &dyn Fn(usize),
) -> Result<Vec<Vec<u32>>> {
    let (vocab, sequences) = (model.spec().vocab, numbers.len());
    let mut random: Vec<Random> =
        numbers.iter().map(|&number| Random::new(seed.wrapping_mul(0x0100_0000_01b3) ^ number as u64)).collect();
    let mut next: Vec<u32> =
        random.iter_mut().map(|random| ((random.uniform() * vocab as f32) as u32).min(vocab as u32 - 1)).collect();
    let mut written: Vec<Vec<u32>> = next.iter().map(|&token| vec![token]).collect();
    let mut cache = Cache::of_several(model, sequences, length);
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed };
    while written[0].len() < length {
        let hidden = model.advance(&next, &mut cache)?;
        let logits = model.logits(&hidden, 0..sequences)?;
        next = random
            .par_iter_mut()
            .enumerate()
            .map(|(number, random)| {
                let mut own: Vec<f32> = logits.iter().skip(number).step_by(sequences).copied().collect();
                choose(&mut own, sampling, random)
            })
            .collect();
        for (written, &token) in written.iter_mut().zip(&next) {
            written.push(token);
        }
        part(written[0].len());
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token is another, so that windows can be told apart.
    #[test]
    fn what_is_held_back_is_not_calibrated_on() {
        for windows in [4, 7, 8, 9, 16, 27, 28, 40, 200] {
            let tokens: Vec<u32> = (0..windows as u32 * 10 + 7).collect();
            let (taken, held) = split(&tokens, 10);
            assert_eq!(held.len(), if windows < 8 { 0 } else { (windows / 8).min(4) }, "{windows}");
            // Of long texts nothing is taken from the calibration, of shorter ones an eighth at most.
            assert_eq!(taken.len(), (windows - held.len()).min(24), "{windows}");
            let last = taken.iter().flat_map(|window| window.iter()).max().unwrap();
            assert!(held.iter().flat_map(|window| window.iter()).all(|token| token > last), "{windows}");
            assert!(taken.iter().chain(&held).all(|window| window.len() == 10));
        }
    }

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
