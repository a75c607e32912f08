//! An adapter of any method becomes a LoRA.
//!
//! What it adds to a linear layer is cut to the wanted rank: from its factors where it is a product of few, else as a matrix. A method that multiplies (OFT, IA3, DoRA)
//! adds what the base's weight becomes less what it was, so the LoRA fits that base alone.

use std::collections::HashMap;
use std::path::Path;

use super::new_adapter::{NewAdapter, finite};
use super::report::{Conversion, ConvertedWeight, DroppedTensor};
use super::svd::{Best, Spectrum, Wanted, best, turned};
use crate::adapters::Adapter;
use crate::dtype::Dtype;
use crate::edit;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, mismatch};
use crate::formats::Order;
use crate::linalg::Factors;
use crate::parallel::parallel;
use crate::plan::{Action, Inputs, Plan, Recode, Source};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::seed_of;
use crate::write::{Data, NewTensor, copy_beside, publish_folder, refuse_replacing, write_adapter};

/// Choices of a conversion.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The rank of all modules, or the share of what each adds that its rank is to hold.
    pub wanted: Wanted,
    /// Element type of the factors.
    pub dtype: Dtype,
    /// Seed of what large matrices are searched with.
    pub seed: u64,
    /// Replace an existing output.
    pub force: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
}

/// A weight that the adapter changes.
struct Job<'a> {
    recode: &'a Recode,
    module: &'a str,
}

/// Makes a LoRA of the one adapter of a plan, and writes it as a folder, whole or not at all.
pub fn convert(
    inputs: &Inputs,
    plan: &Plan,
    target: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<Conversion> {
    options.wanted.refuse()?;
    let [adapter] = &inputs.adapters[..] else {
        return Err(Error::new(Kind::Bug, "a conversion is of one adapter"));
    };
    if adapter.is_tuned() {
        return Err(mismatch("a tuned model, not an adapter")
            .in_file(&adapter.path)
            .with_hint("extract makes an adapter of it"));
    }
    refuse_replacing(target, options.force, &[&adapter.path, &inputs.base.path])?;
    let (jobs, dropped) = jobs(inputs, plan);
    if jobs.is_empty() {
        return Err(mismatch("it changes no linear layer, which is what a LoRA can do").in_file(adapter.file()));
    }
    let cost = |job: &Job<'_>| job.recode.from.weight.geometry().elements() as u64 * 60;
    progress.start(jobs.iter().map(cost).sum());
    progress.phase("converting", "modules");
    let found = parallel(&jobs, options.threads, progress, |job| {
        let found = cut(inputs, job.recode, options).map_err(|error| error.in_tensor(job.recode.from.weight.name()))?;
        progress.advance(cost(job));
        Ok(found)
    })?;
    let rank = found.iter().map(|found| found.factors.rank).max().unwrap_or(1);
    let mut made = NewAdapter { rank, is_turned: adapter.config.fan_in_fan_out, ..NewAdapter::default() };
    let mut weights = Vec::new();
    for (job, Best { factors, energy, kept }) in jobs.iter().zip(found) {
        let module = job.module.to_owned();
        weights.push(ConvertedWeight {
            module: module.clone(),
            rank: factors.rank,
            energy,
            kept: (energy > 0.0).then_some(kept),
        });
        made.take(module, factors, options.dtype)?;
    }
    let copied = copies(adapter, &mut made);
    let mut config = made.config(&inputs.base);
    let own = &adapter.config.json;
    for key in ["base_model_name_or_path", "task_type", "modules_to_save", "bias", "trainable_token_indices"] {
        // A method has other words than none, all and lora_only for its own biases.
        if let Some(value) =
            own.get(key).filter(|value| key != "bias" || ["none", "all"].iter().any(|word| *value == word))
        {
            config[key] = value.clone();
        }
    }
    let tensors = std::mem::take(&mut made.tensors);
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        let warnings = adapter.beside().map_or_else(|| Ok(Vec::new()), |store| copy_beside(store, sink))?;
        Ok((write_adapter(sink, "", tensors, &config)?, warnings))
    })?;
    if jobs.iter().any(|job| !job.recode.edits.iter().all(|(_, edit)| edit.plan.is_additive())) {
        warnings.push(format!(
            "a {} adapter multiplies the base's weights, so what it adds was computed with this base, and the LoRA fits no other",
            adapter.config.peft_type
        ));
    }
    let all: f64 = weights.iter().map(|weight| weight.energy).sum();
    let held: f64 = weights.iter().filter_map(|weight| Some(weight.kept? * weight.energy)).sum();
    Ok(Conversion {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        adapter: adapter.path.display().to_string(),
        method: adapter.config.peft_type.clone(),
        output: target.display().to_string(),
        format: "peft",
        rank,
        bytes,
        kept: (all > 0.0).then(|| held / all),
        weights,
        copied,
        dropped,
        warnings,
    })
}

/// The linear layers that the adapter changes, and what else it does to weights.
fn jobs<'p>(inputs: &Inputs, plan: &'p Plan) -> (Vec<Job<'p>>, Vec<DroppedTensor>) {
    let (mut jobs, mut dropped) = (Vec::new(), Vec::new());
    let mut weights_of: HashMap<&'p str, usize> = HashMap::new();
    // All edits of a weight are of one module, or it is fused of several.
    let layer_of = |recode: &'p Recode| {
        let layer = recode.edits.first()?.1.layer.as_deref()?;
        recode.edits.iter().all(|(_, edit)| edit.layer.as_deref() == Some(layer)).then_some(layer)
    };
    for layer in plan.recodes().filter_map(layer_of) {
        *weights_of.entry(layer).or_default() += 1;
    }
    // PEFT adds what it does to the output projection of torch's attention twice, and a LoRA's too.
    let has = |name: String| inputs.inventory.weights.iter().any(|claim| claim.weight.name() == name);
    let is_attention = |module: &str| {
        let stem = module.strip_suffix(".out_proj").unwrap_or(module);
        has(format!("{stem}.in_proj_weight"))
    };
    for step in &plan.steps {
        let Action::Recode(recode) = &step.action else { continue };
        if recode.edits.is_empty() {
            continue;
        }
        let module = layer_of(recode).filter(|layer| weights_of[layer] == 1 && !is_attention(layer));
        match module {
            Some(module) if recode.source == Source::Base && recode.from.weight.shape().len() == 2 => jobs.push(Job { recode, module }),
            _ => dropped.push(DroppedTensor {
                name: step.name.clone(),
                energy: None,
                reason: "it is a bias, an embedding, a stack of experts, torch's attention or a part of a fused weight, and this version makes LoRAs of linear layers",
            }),
        }
    }
    (jobs, dropped)
}

/// The best product of the wanted rank for what an adapter adds to a weight.
pub(super) fn cut(inputs: &Inputs, recode: &Recode, options: &ConvertOptions) -> Result<Best> {
    let geometry = recode.from.weight.geometry();
    let (rows, cols) = (geometry.rows, geometry.cols);
    let edited = Edited::new(inputs, recode)?;
    let seed = seed_of(recode.from.weight.name(), options.seed);
    let edits = edited.edits().unwrap_or_default();
    let is_low = edit::rank(edits, &(0..rows)).is_some_and(|rank| rank > 0 && rank < rows.min(cols));
    let product = is_low.then(|| edit::factors(edits, &(0..rows), cols)).flatten();
    let found = if let Some(Factors { rank, left, right }) = product {
        finite(&left)?;
        finite(&right)?;
        let (left, right) = (turned(&left, rank), right);
        // What is stored turned is another matrix: its outputs are columns.
        let (left, right) = if recode.transposed { (right, left) } else { (left, right) };
        Spectrum::new(left, right, rank, None).best(options.wanted)
    } else {
        let mut values = Vec::new();
        if recode.edits.iter().all(|(_, edit)| edit.plan.is_additive()) {
            values.resize(rows * cols, 0.0);
            edit::apply(edits, &(0..rows), cols, &vec![0.0; rows * cols], &mut values);
        } else {
            let mut base = Vec::new();
            edited.rows(&(0..rows), &mut base, &mut values)?;
            values.iter_mut().zip(base).for_each(|(x, base)| *x -= base);
        }
        finite(&values)?;
        let values = Order { transposed: recode.transposed, inputs: None }.to_model(values, cols);
        best(&values, if recode.transposed { rows } else { cols }, options.wanted, seed, None)
    };
    finite(&found.factors.left)?;
    finite(&found.factors.right)?;
    Ok(found)
}

/// Takes what is no part of the method over: modules trained whole, biases, tokens.
fn copies<'a>(adapter: &'a Adapter, made: &mut NewAdapter<'a>) -> Vec<String> {
    let mut copied = Vec::new();
    for entry in adapter.others() {
        let name = adapter.as_peft_writes(&entry.name);
        copied.push(name.clone());
        made.tensors.push(NewTensor {
            name,
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            data: Data::Entry(&adapter.tensors, entry),
        });
    }
    copied
}
