//! What linear layers are given, from a pass over some text: H = mean of x·xᵀ for each input, layer by layer.

mod collect;
mod moments;
mod overflow;
mod strength;
mod written;

use std::collections::HashSet;
use std::path::Path;

use qmerge::allocator::give_back;
use qmerge::error::{Error, Kind, Result};
use qmerge::open::hex;
use qmerge::plan::Inputs;
use qmerge::round::{Calibration, Demand, Detail, Seen, Take};
use sha2::{Digest, Sha256};

use crate::behaviour::Held;
use crate::linear::Precision;
use crate::model::{Model, Options, weight_name};
use crate::tensors::Tensors;
use crate::text::Beginnings;
use crate::work;
use collect::Collector;
use overflow::blame;
pub(crate) use written::{Writing, showing_work, together};
use written::{Written, writing_work};

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
    /// The model wrote them itself.
    is_own: bool,
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
        let (sequences, detail, is_own) = (own(taken), amount.detail(), false);
        Ok(Self { model, sequences, is_own, about, detail, demand: Demand::default(), held, served: Vec::new() })
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
        let hold = hold && amount != Amount::Few;
        if let Some(progress) = model.progress() {
            let text =
                if hold { "writing text to calibrate on and to measure by" } else { "writing text to calibrate on" };
            progress.phase(text, "tokens");
        }
        let held = if hold { Held::numbers(model) } else { 0..0 };
        let own = amount.sequences(model, None, beginnings).min(Held::FIRST);
        let length = amount.length(model, beginnings);
        let Written { own: sequences, held, strength } =
            Writing { model, beginnings, length, seed, together }.showing(own, held)?;
        give_back();
        let tokens = sequences.iter().map(Vec::len).sum::<usize>();
        let with = if strength == 1.0 {
            String::new()
        } else {
            format!(", with the adapter up to {strength} times as strong, so that it shows more")
        };
        let about = format!("{tokens} tokens that the model wrote (seed {seed}{with})");
        let held = hold.then(|| Held::written(held, beginnings, seed));
        let (detail, demand, is_own) = (amount.detail(), Demand::default(), true);
        Ok(Self { model, sequences, is_own, about, detail, demand, held, served: Vec::new() })
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
        match self.detail {
            Detail::Rough => Seen::Few,
            _ if self.is_own => Seen::Own,
            _ => Seen::Many,
        }
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

/// Tokens of so many windows of a text of so many tokens.
pub fn taken(model: &Model<'_>, tokens: usize, beginnings: &Beginnings, windows: usize) -> usize {
    let window = window(model, beginnings);
    windows.min(tokens / window.max(1)) * (beginnings.document.len() + window)
}

/// Tokens of the text in a window.
pub(crate) fn window(model: &Model<'_>, beginnings: &Beginnings) -> usize {
    WINDOW.min(model.spec().max_positions.saturating_sub(beginnings.document.len()))
}

/// Work of all moments of a model's inputs.
pub(crate) fn moments_work(model: &Model<'_>, precision: Precision, tokens: usize) -> u64 {
    let moments = |features| precision.work(work::moments(features, tokens) as u64);
    model.inputs().iter().flatten().map(|inputs| moments(inputs.features)).sum()
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
}
