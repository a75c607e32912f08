//! What a calibration by running a model takes, before the model is loaded.
//!
//! The prediction counts what is in use at the same time: weights held as they are stored, an adapter's factors, keys and values of the text that the model
//! writes, activations of the text that it reads, moments of a layer's inputs.

use qmerge::plan::{Action, Plan};
use qmerge::round::{Demand, LayerInputs};

use crate::calibrate::{self, Amount, PRECISION, SEQUENCES, Writing};
use crate::linear::Linear;
use crate::model::{Model, half_of_free_memory};
use crate::text::Beginnings;

/// What a calibration takes.
#[derive(Clone, Debug)]
pub struct Needs {
    /// For the merge that it serves, with no weight held.
    pub demand: Demand,
    /// Bytes of all weights that a model could hold.
    pub weights: u64,
    /// Sequences that it writes at a time.
    pub together: usize,
    /// Work of getting ready, in nanoseconds of one thread.
    pub before: u64,
}

/// What a calibration takes: on some tokens of a text, or on one that the model writes. `model` is the base alone, with nothing held; `plan` has the adapters.
pub fn needs(
    model: &Model<'_>,
    plan: &Plan,
    text: Option<usize>,
    beginnings: &Beginnings,
    (amount, together): (Amount, usize),
    threads: usize,
) -> Needs {
    let layers = model.inputs();
    let sequences = amount.sequences(model, text, beginnings);
    let tokens = match text {
        Some(tokens) => calibrate::taken(model, tokens, beginnings, sequences),
        None => sequences * amount.length(model, beginnings),
    };
    let spec = model.spec();
    let together = if text.is_none() { together.min(sequences.max(1)) } else { together };
    let states = 4 * (spec.hidden * tokens) as u64;
    let decoded = threads as u64 * decoded(model);
    let moments =
        |layer: &Vec<LayerInputs>| layer.iter().map(|inputs| 4 * (inputs.features as u64).pow(2)).sum::<u64>();
    let moments = layers.iter().map(moments).max().unwrap_or(0);
    // The products of some features with all others, on each thread.
    let products = 8 * 256 * tokens as u64 + threads as u64 * 4 * 96 * 256;
    let passing = activations(model, tokens) + products + decoded;
    let writing = match text {
        Some(_) => 0,
        None => {
            writing(model, amount.length(model, beginnings), together) + (threads * 4 * spec.vocab) as u64 + decoded
        }
    };
    let each = if text.is_some() { calibrate::window(model, beginnings) } else { amount.length(model, beginnings) };
    let read = model.pass_work(PRECISION, tokens, each.div_ceil(2));
    Needs {
        demand: Demand {
            layers,
            held: factors(plan) + states,
            working: (passing + moments).max(writing.saturating_sub(states)),
            passing,
            work: read + calibrate::moments_work(model, PRECISION, tokens),
            detail: amount.detail(),
        },
        weights: model.bytes_per_token(),
        together,
        before: match text {
            Some(_) => 0,
            None => {
                let length = amount.length(model, beginnings);
                calibrate::showing_work(&Writing { model, beginnings, length, seed: 0, together }, sequences)
            }
        },
    }
}

/// Finds how many sequences are written at a time, and how many bytes of weights are held, so that the memory stays within a bound. `peak` says what a demand
/// comes to in all; its error stands where nothing fits.
pub fn fit<E>(
    limit: Option<u64>,
    needs: impl Fn(usize) -> Needs,
    mut peak: impl FnMut(&Demand) -> Result<u64, E>,
) -> Result<Needs, E> {
    let mut together = SEQUENCES;
    loop {
        let mut needs = needs(together);
        match peak(&needs.demand) {
            Ok(bytes) => {
                let room = limit.map_or_else(half_of_free_memory, |limit| limit.saturating_sub(bytes));
                needs.weights = needs.weights.min(room);
                needs.demand.held += needs.weights;
                return Ok(needs);
            }
            Err(error) if together == 1 => return Err(error),
            Err(_) => together = together.div_ceil(2),
        }
    }
}

/// Factors of all adapters, which a model with its adapters apart has in memory.
fn factors(plan: &Plan) -> u64 {
    let edits = plan.steps.iter().filter_map(|step| match &step.action {
        Action::Recode(recode) => Some(recode.edits.iter().map(|(_, edit)| edit.plan.memory()).sum::<u64>()),
        Action::Copy { .. } | Action::Constant(_) => None,
    });
    // What is counted for an edit holds for the moment in which it is loaded: twice what stays.
    edits.sum::<u64>() / 2
}

/// What is cached, logits and activations while sequences of that length are written side by side.
fn writing(model: &Model<'_>, length: usize, together: usize) -> u64 {
    let values = model.cached(length) + model.spec().vocab;
    4 * (together * values) as u64 + activations(model, together)
}

/// The most that activations of a pass take beside the residual stream.
fn activations(model: &Model<'_>, tokens: usize) -> u64 {
    4 * (tokens.next_multiple_of(64) * model.activations()) as u64
}

/// Rows that a thread decodes at a time, before and after an edit.
fn decoded(model: &Model<'_>) -> u64 {
    let widest = model.linears().map(Linear::inputs).max().unwrap_or(0);
    8 * 96 * widest as u64 + (4 << 20)
}
