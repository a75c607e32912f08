//! How a merge behaves: the base, the base with its adapter kept apart, and the merged model on some text that no calibration saw.

use std::ops::Range;

use qmerge::allocator::give_back;
use qmerge::error::{Error, Kind, Result};
use qmerge::merge::Judge;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Plan};
use qmerge::progress::Silent;
use qmerge::report::Behaviour;

use crate::calibrate::{Amount, PRECISION, Writing, together};
use crate::compare::{COLUMNS, Candidate, score_all};
use crate::linear::Precision;
use crate::model::{Model, Options};
use crate::tensors::Tensors;
use crate::text::Beginnings;

/// Text that is kept away from calibrations.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its tokens.
    pub sequences: Vec<Vec<u32>>,
    /// Tokens at the beginning of each whose continuation is not judged.
    pub from: usize,
    /// What it is, in words that follow "tokens".
    pub about: String,
}

/// How many sequences are judged by: so many that their product with a model's parameters is about the third.
const FEWEST: usize = 16;
const MOST: usize = 32;
const WORK: usize = 2_000_000_000;
/// What the model writes begins with a random token or with none, and is not like any text before it has found a subject.
const BEGINNING: usize = 12;

impl Held {
    /// Number of the first sequence that is judged by.
    pub(crate) const FIRST: usize = 1 << 20;

    /// Numbers of the sequences that a model writes to be judged by. They are far from those that are calibrated on, so that the two never meet under one
    /// seed. A small model writes more, since it costs little and tokens make the figures firm.
    pub(crate) fn numbers(model: &Model<'_>) -> Range<usize> {
        let spec = model.spec();
        let parameters = 12 * spec.layers.len() * spec.hidden * spec.hidden;
        Self::FIRST..Self::FIRST + (WORK / parameters.max(1)).clamp(FEWEST, MOST) / 8 * 8
    }

    /// Text that the model writes itself. `memory` bounds the bytes that keys and values may take.
    pub fn own_text(model: &Model<'_>, beginnings: &Beginnings, seed: u64, memory: Option<u64>) -> Result<Self> {
        let numbers: Vec<usize> = Self::numbers(model).collect();
        let length = Amount::Usual.length(model, beginnings);
        let together = together(model, beginnings, memory);
        let writing = Writing { model, beginnings, length, seed, together };
        Ok(Self::written(writing.write(&numbers)?, beginnings, seed))
    }

    /// Text that a model has written.
    pub(crate) fn written(sequences: Vec<Vec<u32>>, beginnings: &Beginnings, seed: u64) -> Self {
        let from = judged_from(sequences.iter().map(Vec::len).min().unwrap_or(0), beginnings);
        Self { sequences, from, about: format!("that the model wrote, not calibrated on (seed {seed})") }
    }
}

/// Tokens at the beginning of sequences of that length, which a model has written, whose continuation says little.
pub(crate) fn judged_from(length: usize, beginnings: &Beginnings) -> usize {
    let given = beginnings.chat.len();
    given + BEGINNING.min(length.saturating_sub(given) / 4)
}

/// About the work of judging a merge, in nanoseconds of one thread: three models on what is held back, and what of that the model writes.
pub fn work(model: &Model<'_>, beginnings: &Beginnings, written: bool) -> u64 {
    let (number, length) = (Held::numbers(model).len(), Amount::Usual.length(model, beginnings));
    let passes = 3
        * (model.pass_work(Precision::Full, number * length, length.div_ceil(2))
            + model.logits_work(Precision::Full, number * length));
    let step = |at| model.pass_work(PRECISION, number, at) + model.logits_work(PRECISION, number);
    let own = || (1..length).map(step).sum();
    passes + if written { own() } else { 0 }
}

/// Tokens that go through a model at a time.
const BATCH: usize = 1024;
/// Fewest columns of logits at a time: those that are scored together.
const FEWEST_COLUMNS: usize = 16;
/// Memory that logits take their share of where nothing bounds it.
const USUAL_MEMORY: u64 = 512 << 20;

/// Runs a merged model against the base with its adapter kept apart.
#[derive(Debug)]
pub struct AgainstApart<'m> {
    /// Base and adapters.
    pub inputs: &'m Inputs,
    /// The plan of the merge.
    pub plan: &'m Plan,
    /// The base with the adapter kept apart, where it is loaded already.
    pub apart: Option<&'m Model<'m>>,
    /// What is judged by; `None` for text that the model writes.
    pub held: Option<Held>,
    /// How text begins that the model writes.
    pub beginnings: Beginnings,
    /// How models are run; the merge and the base alone hold no weights.
    pub options: Options<'m>,
    /// Most memory to use, bytes.
    pub max_memory: Option<u64>,
}

impl Judge for AgainstApart<'_> {
    fn behaviour(&self, merged: Checkpoint) -> Result<Behaviour> {
        if let Some(progress) = self.options.progress {
            progress.phase("measuring the merge", "sequences");
        }
        // Moments and what was rounded by them are gone.
        give_back();
        let loaded;
        let apart = match self.apart {
            Some(model) => model,
            None => {
                loaded = Model::new(&Tensors::new(self.inputs, Some(self.plan)), self.options)?;
                &loaded
            }
        };
        let own;
        let held = match &self.held {
            Some(held) => held,
            None => {
                own = Held::own_text(apart, &self.beginnings, self.plan.seed, self.max_memory.map(|limit| limit / 2))?;
                &own
            }
        };
        // Each is used for a few passes: the system's cache serves these.
        let few = Options { held: Some(0), ..self.options };
        let base = Model::new(&Tensors::new(self.inputs, None), few)?;
        let merged = Inputs::new(merged, Vec::new())?;
        let merged = Model::new(&Tensors::new(&merged, None), few)?;
        measure([&base, apart, &merged], held, self.max_memory)
    }
}

/// The figures of the third model and of the first, against the second.
fn measure<'m, 'a>(models: [&'m Model<'a>; 3], held: &Held, memory: Option<u64>) -> Result<Behaviour> {
    const APART: usize = 1;
    let names = ["the base", "the base with the adapter kept apart", "the merged model"];
    let candidates: Vec<Candidate<'m, 'a>> =
        models.into_iter().zip(names).map(|(model, name)| Candidate { name: name.into(), model }).collect();
    let from = held.from;
    let long = |window: &&[u32]| window.len() > from + 1;
    let windows: Vec<&[u32]> = held.sequences.iter().map(Vec::as_slice).filter(long).collect();
    let tokens: usize = windows.iter().map(|window| window.len() - 1 - from).sum();
    if tokens == 0 {
        return Err(Error::new(Kind::Unsupported, "the model takes no text of two tokens"));
    }
    let longest = windows.iter().map(|window| window.len()).max().unwrap_or(1);
    let batch = if memory.is_some() { longest } else { BATCH };
    let columns = columns(models[APART], memory);
    let progress = models[APART].progress().unwrap_or(&Silent);
    let sums = score_all(&candidates, &windows, from, batch, columns, APART, progress)?;
    let [base, apart, merged] = &sums[..] else { return Err(Error::new(Kind::Bug, "three models were run")) };
    if let Some(at) = [base, apart].iter().position(|sums| !sums.loss.is_finite()) {
        return Err(Error::new(Kind::NotFinite, format!("{} predicts what is not finite", names[at])));
    }
    let top1 = merged.same as f64 / tokens as f64;
    Ok(Behaviour::new(&merged.window_kl, &base.window_kl, top1, tokens, held.about.clone()))
}

/// Columns of logits that fit an eighth of the memory, of three models and one more that is worked on.
fn columns(model: &Model<'_>, memory: Option<u64>) -> usize {
    let column = 4 * 4 * model.spec().vocab as u64;
    let fit = (memory.unwrap_or(USUAL_MEMORY) / 8 / column.max(1)) as usize / FEWEST_COLUMNS * FEWEST_COLUMNS;
    fit.clamp(FEWEST_COLUMNS, COLUMNS)
}
