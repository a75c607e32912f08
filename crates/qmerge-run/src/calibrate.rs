//! What linear layers are given, from a pass over some text: H = mean of x·xᵀ for each input, layer by layer.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::hex;
use qmerge::plan::Inputs;
use qmerge::progress::Progress;
use qmerge::round::{Calibration, Demand, Detail, InputMoments, Known, Seen, Take};
use qmerge::simd::matmul::{HEIGHT, matmul};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::behaviour::Held;
use crate::generate::{Random, Sampling, choose};
use crate::linear::{Input, Precision, Watch};
use crate::memory::give_back;
use crate::model::{Cache, Model, Options, weight_name};
use crate::tensors::Tensors;
use crate::text::Beginnings;
use crate::work;

/// How exact the model is run: moments are means over thousands of tokens, and text is drawn at random.
pub(crate) const PRECISION: Precision = Precision::Bf16;

/// What tokens count in moments: another rule makes others of the same tokens, and a merge that goes on is not to have both.
const WEIGHTS: &[u8] = b"half by the attention that is paid";

/// Tokens of a window of text.
pub const WINDOW: usize = 256;
/// Most windows that are taken of a text.
pub const WINDOWS: usize = 24;
/// Fewest tokens that an expert is shown, those included that come next for it. On a small mixture 32 to 256 were about equally good, and more was worse on a
/// short text.
const SHOWN: usize = 128;
/// Fewest tokens that say anything about a layer's inputs.
const FEWEST: usize = 1024;
/// Sequences that the model writes itself, as many at a time at most, and their length.
pub(crate) const SEQUENCES: usize = 64;
const LENGTH: usize = 48;
/// The same where few tokens are to do: a step takes about as long for 16 sequences as for one, so that short ones are cheapest. The frame of a chat is not counted.
const FEW_SEQUENCES: usize = 16;
const FEW_LENGTH: usize = 24;
/// Of a text of at least so many windows, one window in so many is held back, up to the second number.
const HELD_OF: usize = 8;
const HELD: usize = 4;

/// How much is calibrated on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Amount {
    /// As much as is enough for most models.
    #[default]
    Usual,
    /// Tokens; of a text that has fewer, all.
    Tokens(usize),
    /// As much as takes about so many seconds of one thread. It is what the model's size says of a usual machine, not what a clock says: the same everywhere.
    Seconds(f64),
    /// An eighth of what is usual, for moments that say roughly what inputs are like.
    Few,
}

impl Amount {
    /// Sequences that the model writes, or windows that are taken of a text of so many tokens.
    pub(crate) fn sequences(self, model: &Model<'_>, text: Option<usize>, beginnings: &Beginnings) -> usize {
        let (usual, length) = match text {
            Some(_) => (WINDOWS, window(model, beginnings)),
            None => (SEQUENCES, self.length(model, beginnings)),
        };
        let tokens = match self {
            Self::Usual => return usual,
            Self::Few if text.is_none() => return FEW_SEQUENCES,
            Self::Few => FEW_SEQUENCES * FEW_LENGTH,
            Self::Tokens(tokens) => tokens.max(FEWEST),
            Self::Seconds(seconds) => {
                let full = Precision::Full;
                let tokens = usual * length;
                let read = model.pass_work(full, tokens, length.div_ceil(2)) + moments_work(model, full, tokens);
                let written = if text.is_none() { writing_work(model, full, (usual, length), SEQUENCES) } else { 0 };
                let each = (read + written) as f64 / tokens as f64;
                ((1e9 * seconds / each) as usize).max(FEWEST)
            }
        };
        tokens.div_ceil(length.max(1)).max(1)
    }

    /// Tokens of a sequence that the model writes.
    pub(crate) fn length(self, model: &Model<'_>, beginnings: &Beginnings) -> usize {
        let written = if self == Self::Few { FEW_LENGTH } else { LENGTH };
        (written + beginnings.chat.len()).min(model.spec().max_positions)
    }

    pub(crate) fn detail(self) -> Detail {
        if self == Self::Few { Detail::Rough } else { Detail::Full }
    }
}

/// Moments of the inputs of a model's layers on some sequences. The model is the base with the adapter kept apart: the inputs are what the merged
/// layer should be given.
#[derive(Debug)]
pub struct FromModel<'m, 'a> {
    model: &'m Model<'a>,
    sequences: Vec<Vec<u32>>,
    about: String,
    detail: Detail,
    demand: Demand,
    /// What the moments do not see, to judge by.
    held: Option<Held>,
    /// Tokens that each expert of each layer served, once they were seen.
    served: Vec<usize>,
}

/// The weights whose inputs a calibration of this base comes to know. Errors if the base cannot be run.
pub fn weights(inputs: &Inputs) -> Result<HashSet<String>> {
    let model = Model::new(&Tensors::new(inputs, None), Options { held: Some(0), ..Options::default() })?;
    Ok(model.watched().map(weight_name).collect())
}

impl<'m, 'a> FromModel<'m, 'a> {
    /// Windows of a text, spread over it, each behind the tokens that a text begins with. Errors if the text is too short.
    pub fn text(
        model: &'m Model<'a>,
        tokens: &[u32],
        beginnings: &Beginnings,
        path: &Path,
        amount: Amount,
    ) -> Result<Self> {
        if tokens.len() < FEWEST {
            let problem = format!("only {} of the {FEWEST} tokens that calibration needs", tokens.len());
            return Err(Error::new(Kind::Mismatch, problem)
                .in_file(path)
                .with_hint("give a longer text, or none: then the model writes one itself"));
        }
        let begin = &beginnings.document;
        let most = amount.sequences(model, Some(tokens.len()), beginnings);
        let (taken, held) = split(tokens, window(model, beginnings), most);
        let about = format!("{} tokens of {}", taken.iter().map(|window| window.len()).sum::<usize>(), path.display());
        let own = |windows: Vec<&[u32]>| -> Vec<Vec<u32>> {
            windows.into_iter().map(|window| [begin, window].concat()).collect()
        };
        let held = (!held.is_empty()).then(|| Held {
            sequences: own(held),
            from: begin.len().saturating_sub(1),
            about: format!("at the end of {}, not calibrated on", path.display()),
        });
        let (sequences, detail) = (own(taken), amount.detail());
        Ok(Self { model, sequences, about, detail, demand: Demand::default(), held, served: Vec::new() })
    }

    /// Text that the model writes itself, so many sequences at a time; what a sequence says does not depend on that, nor on how many there are. It begins as what the model is used on does,
    /// as its [`Beginnings`] say.
    /// With `hold` it writes what is held back along with it, which is cheaper than to do so later; but not where its sequences are shorter.
    pub fn own_text(
        model: &'m Model<'a>,
        beginnings: &Beginnings,
        seed: u64,
        (amount, together): (Amount, usize),
        hold: bool,
    ) -> Result<Self> {
        if let Some(progress) = model.progress() {
            progress.phase("writing text to calibrate on", "tokens");
        }
        let hold = hold && amount != Amount::Few;
        let held = if hold { Held::numbers(model) } else { 0..0 };
        let own = amount.sequences(model, None, beginnings).min(Held::FIRST);
        let numbers: Vec<usize> = (0..own).chain(held).collect();
        let mut sequences = write(model, (&numbers, amount.length(model, beginnings)), beginnings, seed, together)?;
        give_back();
        let held = sequences.split_off(own);
        let about =
            format!("{} tokens that the model wrote (seed {seed})", sequences.iter().map(Vec::len).sum::<usize>());
        let held = hold.then(|| Held::written(held, beginnings, seed));
        let (detail, demand) = (amount.detail(), Demand::default());
        Ok(Self { model, sequences, about, detail, demand, held, served: Vec::new() })
    }

    /// Takes what [`memory::needs`](crate::memory::needs) found out before the model was loaded.
    pub fn expecting(self, demand: Demand) -> Self {
        Self { demand, ..self }
    }

    /// What was held back, to judge by; `None` where a text was too short for that.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }
}

/// The windows to calibrate on, spread over all but the end of the text, and those at its end that are held back.
fn split(tokens: &[u32], window: usize, most: usize) -> (Vec<&[u32]>, Vec<&[u32]>) {
    let mut windows: Vec<&[u32]> = tokens.chunks_exact(window.max(1)).collect();
    let held = windows.split_off(windows.len() - (windows.len() / HELD_OF).min(HELD));
    let taken = most.min(windows.len());
    ((0..taken).map(|i| windows[i * windows.len() / taken]).collect(), held)
}

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

impl Calibration for FromModel<'_, '_> {
    fn about(&self) -> String {
        let mut served = self.served.clone();
        served.sort_unstable();
        match (served.first(), served.get(served.len() / 2)) {
            (Some(least), Some(median)) => format!(
                "{}, of which each of {} experts was given {least} at least and {median} in the median",
                self.about,
                served.len()
            ),
            _ => self.about.clone(),
        }
    }

    fn identity(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(WEIGHTS);
        for sequence in &self.sequences {
            hash.update((sequence.len() as u64).to_le_bytes());
            sequence.iter().for_each(|token| hash.update(token.to_le_bytes()));
        }
        Ok(hex(hash.finalize()))
    }

    fn seen(&self) -> Seen {
        if self.detail == Detail::Rough { Seen::Few } else { Seen::Many }
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        let sequences: Vec<&[u32]> = self.sequences.iter().map(Vec::as_slice).collect();
        let tokens = sequences.iter().map(|sequence| sequence.len()).sum();
        let progress = self.model.progress();
        let left = self.model.layers_for(wanted);
        let mut collector = Collector {
            wanted,
            take,
            is_wanted: false,
            left,
            overflows: None,
            progress,
            work: 0,
            detail: self.detail,
            served: Vec::new(),
        };
        let passed = self.model.hidden(&sequences, &mut collector);
        self.served = std::mem::take(&mut collector.served);
        if let Some(progress) = progress {
            // Inputs that nobody wanted.
            progress.skip(moments_work(self.model, PRECISION, tokens).saturating_sub(collector.work));
        }
        match collector.overflows {
            Some(name) => Err(blame(self.model, Some(&name))?),
            None => passed.map(|_| ()),
        }
    }

    fn demand(&self) -> Demand {
        self.demand.clone()
    }
}

const OVERFLOWS: &str = "its inputs on the calibration text are not finite: the model's activations overflow";

/// Computes moments and hands them on.
struct Collector<'c> {
    wanted: &'c (dyn Fn(&str) -> bool + Sync),
    take: &'c mut dyn Take,
    /// True if anything of the layer was wanted.
    is_wanted: bool,
    /// Layers up to the last of which anything is wanted.
    left: usize,
    /// The first weight whose inputs are not finite.
    overflows: Option<String>,
    progress: Option<&'c dyn Progress>,
    /// Done for moments so far.
    work: u64,
    detail: Detail,
    served: Vec<usize>,
}

impl Watch for Collector<'_> {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        let weights = paths.iter().map(|path| weight_name(path)).filter(|name| (self.wanted)(name));
        let weights: Vec<String> = weights.collect();
        let Some(first) = weights.first() else { return Ok(()) };
        let moments = second_moments(input.values(), input.tokens());
        let done = PRECISION.work(work::moments(moments.features, moments.tokens) as u64);
        self.work += done;
        if let Some(progress) = self.progress {
            progress.advance(done);
        }
        if moments.values.iter().any(|x| !x.is_finite()) {
            self.overflows = Some(first.clone());
            return Err(Error::new(Kind::NotFinite, OVERFLOWS));
        }
        self.is_wanted = true;
        self.take.known(Known { weights, moments, detail: self.detail })
    }

    fn weighs(&self) -> bool {
        true
    }

    fn precision(&self) -> Precision {
        PRECISION
    }

    fn least(&self) -> usize {
        SHOWN
    }

    fn served(&mut self, tokens: &[usize]) {
        self.served.extend_from_slice(tokens);
    }

    fn layer(&mut self) -> Result<ControlFlow<()>> {
        if std::mem::take(&mut self.is_wanted) {
            self.take.layer()?;
        }
        self.left = self.left.saturating_sub(1);
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// Why the inputs of the weight `name`, or the logits, are not finite: what an adapter makes of some weight, or that the model overflows on this text.
fn blame(model: &Model<'_>, name: Option<&str>) -> Result<Error> {
    // Magnitude after and before the edits, and whose.
    let mut largest = (0.0_f32, 0.0_f32, "");
    let (mut base, mut values) = (Vec::new(), Vec::new());
    for linear in model.linears() {
        let weight = linear.weight();
        let claim = weight.base().claim();
        let cols = claim.weight.geometry().cols;
        for rows in weight.base().chunks(1 << 17).filter(|_| weight.is_edited()) {
            weight.rows(&rows, &mut base, &mut values)?;
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                let place = format!("[{}, {}]", rows.start + at / cols, at % cols);
                if !base[at].is_finite() {
                    let problem = format!("the base itself holds {} at {place}", base[at]);
                    return Ok(Error::new(Kind::NotFinite, problem)
                        .in_tensor(claim.weight.name())
                        .with_hint("the base is damaged: copy it again from where it was published"));
                }
                let problem = format!(
                    "the merged value is {} at {place} (base {:e}): the adapter's delta overflows",
                    values[at], base[at]
                );
                return Ok(Error::new(Kind::NotFinite, problem)
                    .in_tensor(claim.weight.name())
                    .with_hint("lower the adapter's weight, or use an earlier checkpoint of the adapter"));
            }
            let own = |values: &[f32]| values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            if own(&values) > largest.0 {
                largest = (own(&values), own(&base), claim.weight.name());
            }
        }
    }
    let error = match name {
        Some(name) => Error::new(Kind::NotFinite, OVERFLOWS).in_tensor(name),
        None => Error::new(Kind::NotFinite, "the model's logits are not finite: its activations overflow"),
    };
    Ok(match largest {
        (merged, base, edited) if merged > 0.0 => error.with_hint(format!(
            "of the weights that the adapter edits, `{edited}` has the largest value: {merged:e}, where the base has {base:e} at most"
        )),
        _ => error.with_hint("no adapter edits what was run: the base itself overflows, on this text at least"),
    })
}

/// Tokens of so many windows of a text of so many tokens.
pub fn taken(model: &Model<'_>, tokens: usize, beginnings: &Beginnings, windows: usize) -> usize {
    let window = window(model, beginnings);
    windows.min(tokens / window.max(1)) * (beginnings.document.len() + window)
}

/// Tokens of the text in a window.
pub(crate) fn window(model: &Model<'_>, beginnings: &Beginnings) -> usize {
    WINDOW.min(model.spec().max_positions.saturating_sub(beginnings.document.len()))
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

/// Work of all moments of a model's inputs.
pub(crate) fn moments_work(model: &Model<'_>, precision: Precision, tokens: usize) -> u64 {
    let moments = |features| precision.work(work::moments(features, tokens) as u64);
    model.inputs().iter().flatten().map(|inputs| moments(inputs.features)).sum()
}

fn draw_work(model: &Model<'_>, sequences: usize) -> u64 {
    (work::DRAW * (model.spec().vocab * sequences) as f64) as u64
}

/// Features whose products are computed together.
const FEATURES: usize = 256;

/// H of `x` (features, tokens).
fn second_moments(x: &[f32], tokens: usize) -> InputMoments {
    let features = x.len() / tokens.max(1);
    let mut values = vec![0.0; features * features];
    for start in (0..features).step_by(FEATURES) {
        let width = FEATURES.min(features - start);
        let mut turned = vec![0.0; tokens * width];
        for (c, row) in x[start * tokens..(start + width) * tokens].chunks_exact(tokens).enumerate() {
            turned[c..].iter_mut().step_by(width).zip(row).for_each(|(to, &from)| *to = from);
        }
        let columns = PRECISION.pack(&turned, tokens, width);
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
    const TILE: usize = 64;
    let mut rest = values;
    for start in (0..features).step_by(TILE) {
        let width = TILE.min(features - start);
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
    let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed };
    while written[0].len() < length {
        let hidden = model.advance(&next, &mut cache)?;
        model.logits_at(PRECISION, &hidden, 0..sequences, &mut logits)?;
        if logits.iter().any(|x| x.is_nan()) {
            return Err(blame(model, None)?);
        }
        next = random
            .par_iter_mut()
            .enumerate()
            .map_init(Vec::new, |own, (number, random)| {
                own.clear();
                own.extend(logits.iter().skip(number).step_by(sequences));
                choose(own, sampling, random)
            })
            .collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every token is another, so that windows can be told apart.
    #[test]
    fn what_is_held_back_is_not_calibrated_on() {
        for windows in [4, 7, 8, 9, 16, 27, 28, 40, 200] {
            let tokens: Vec<u32> = (0..windows as u32 * 10 + 7).collect();
            let (taken, held) = split(&tokens, 10, WINDOWS);
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
        // Values that bf16 holds.
        let x: Vec<f32> = (0..features * tokens).map(|i| ((i * 7919) % 101) as f32 / 64.0 - 0.75).collect();
        let moments = second_moments(&x, tokens);
        for (i, j) in [(0, 0), (1, 299), (299, 1), (280, 270), (100, 257)] {
            let sum: f64 = (0..tokens).map(|t| f64::from(x[i * tokens + t]) * f64::from(x[j * tokens + t])).sum();
            assert!((f64::from(moments.values[i * features + j]) - sum / tokens as f64).abs() < 1e-5, "{i} {j}");
        }
    }
}
