//! An adapter of any method becomes a LoRA.
//!
//! What it adds to a linear layer is cut to the wanted rank: from its factors where it is a product of few, else as a matrix. A method that multiplies (OFT, IA3, DoRA)
//! adds what the base's weight becomes less what it was, so the LoRA fits that base alone. Stacks of experts become a LoRA on the stacked parameter, an embedding's
//! LoRA one on the embedding, and a bias that becomes another is taken whole.

use std::path::Path;

use serde_json::Value;

use super::jobs::{Converted, Job, Jobs};
use super::new_adapter::NewAdapter;
use super::report::{self, Conversion, ConvertedWeight};
use super::svd::Wanted;
use super::target::Target;
use crate::adapters::{Adapter, Names};
use crate::arch;
use crate::dtype::Dtype;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, mismatch};
use crate::formats::Claim;
use crate::parallel::parallel;
use crate::plan::{Inputs, Plan};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
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
    /// Leave out what the format has no place for of what the adapter changes: what a model sees or hears with.
    pub allow_unused: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
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
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &[])?;
    let Jobs { factors: jobs, biases, dropped } = Jobs::of(adapter, &names, plan)?;
    if jobs.is_empty() {
        let error = mismatch("it changes no linear layer, which is what a LoRA can do").in_file(adapter.file());
        let has_stacks = |claim: &Claim| claim.weight.name().split('.').any(|part| part == arch::SWITCH);
        return Err(match inputs.inventory.weights.iter().any(has_stacks) {
            true => error.with_hint(
                "where it changes stacks of experts, give the folder that the MLX one was converted from as --base",
            ),
            false => error,
        });
    }
    progress.start(jobs.iter().map(Job::cost).sum());
    progress.phase("converting", "modules");
    let found = parallel(&jobs, options.threads, progress, |job| {
        let found = job.find(inputs, options).map_err(|error| error.in_tensor(&job.name()))?;
        progress.advance(job.cost());
        Ok(found)
    })?;
    let rank = found.iter().map(|found| found.stacked.factors.rank).max().unwrap_or(1);
    let mut made = NewAdapter::of_rank(rank);
    let mut weights = Vec::new();
    for (job, Converted { stacked, energy, kept }) in jobs.iter().zip(found) {
        let (module, rank) = (job.path(), stacked.factors.rank);
        weights.push(ConvertedWeight { module, rank, energy, kept: (energy > 0.0).then_some(kept) });
        match job {
            Job::Layer { recode, target } => match recode.from.weight.shape() {
                [_, _, kernel @ ..] if !kernel.is_empty() => {
                    made.take_convolution(&target.module, stacked.factors, kernel, options.dtype)?;
                }
                _ => made.take_all(target.clone(), stacked, options.dtype)?,
            },
            Job::Embedding { module, .. } => made.take_embedding(module, stacked.factors, options.dtype)?,
            Job::Stack { stack, .. } => made.take_all(Target::stack(stack), stacked, options.dtype)?,
        }
    }
    let copied = copies(adapter, &mut made);
    for (recode, target) in biases {
        made.take_bias(&names, target, options.dtype, recode.from.weight.shape().to_vec(), move || {
            let edited = Edited::new(inputs, recode)?;
            let (mut base, mut values) = (Vec::new(), Vec::new());
            edited.rows(&(0..recode.from.weight.geometry().rows), &mut base, &mut values)?;
            Ok(values)
        })?;
    }
    made.is_turned = adapter.config.fan_in_fan_out && made.targets.iter().all(|target| target.parameter.is_none());
    let config = config(adapter, &made, inputs);
    let tensors = made.finish();
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        let warnings = adapter.beside().map_or_else(|| Ok(Vec::new()), |store| copy_beside(store, sink))?;
        Ok((write_adapter(sink, "", tensors, &config)?, warnings))
    })?;
    if jobs.iter().any(Job::is_of_base) {
        warnings.push(format!(
            "what a {} adapter does to a weight goes by the base's values, so it was computed with this base, and the LoRA fits no other",
            adapter.config.peft_type
        ));
    }
    Ok(Conversion {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        adapter: adapter.path.display().to_string(),
        method: adapter.config.peft_type.clone(),
        output: target.display().to_string(),
        format: "peft",
        rank,
        bytes,
        kept: report::held(&weights),
        weights,
        copied,
        dropped,
        warnings,
    })
}

/// The configuration, with what the adapter's own says beside its method.
fn config(adapter: &Adapter, made: &NewAdapter<'_>, inputs: &Inputs) -> Value {
    let mut config = made.config(&inputs.base);
    for key in [
        "base_model_name_or_path",
        "task_type",
        "modules_to_save",
        "bias",
        "trainable_token_indices",
        "ensure_weight_tying",
    ] {
        // A method has other words for its own biases.
        let is_word = |value: &Value| {
            key != "bias" || !made.has_bias && ["none", "all", "lora_only"].iter().any(|word| *value == *word)
        };
        if let Some(value) = adapter.config.json.get(key).filter(|value| is_word(value)) {
            config[key] = value.clone();
        }
    }
    config
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
