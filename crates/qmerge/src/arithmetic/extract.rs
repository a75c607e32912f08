//! What a tuned model differs from its base by, as an adapter.
//!
//! Linear layers become LoRAs: the best approximation of tuned − base at a rank, or at the rank that holds a share of its energy. What else differs (embeddings,
//! heads, norms, biases) is taken whole, as PEFT does with `modules_to_save` and trained biases. A weight is decoded, compared and let go before the next.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use super::new_adapter::{NewAdapter, finite};
use super::report::{DroppedTensor, ExtractedWeight, Extraction};
use super::svd::{Best, Wanted, best};
use crate::adapters::Names;
use crate::arch;
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::formats::{self, Claim, Order, Reader};
use crate::linalg::{Factors, dot};
use crate::open::{Checkpoint, model_order};
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::{Calibration, Metric, Pieces, seed_of};
use crate::write::{Data, NewTensor, copy_tokenizer, publish_folder, refuse_replacing, write_adapter};

/// Choices of an extraction.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// The rank of all modules, or the share of each module's energy that its rank is to hold.
    pub wanted: Wanted,
    /// Take what is no linear layer's weight whole; else leave it out.
    pub full: bool,
    /// Element type of the factors.
    pub dtype: Dtype,
    /// Seed of what large matrices are searched with.
    pub seed: u64,
    /// Replace an existing output.
    pub force: bool,
    /// Worker threads, at least 1.
    pub threads: usize,
}

/// Two models and what is known of their weights.
struct Pair<'a> {
    base: &'a Checkpoint,
    tuned: &'a Checkpoint,
    options: &'a ExtractOptions,
}

/// A weight that both models have.
struct Both<'a> {
    base: &'a Claim,
    tuned: &'a Claim,
    kind: Place,
}

/// What an adapter can do with a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A linear layer's matrix. The models may store it turned.
    Linear { base_turned: bool, tuned_turned: bool },
    /// The bias of a linear layer.
    Bias,
    /// A parameter of a module that is taken whole.
    Whole,
    /// No adapter can hold it, for this reason.
    Nowhere(&'static str),
}

/// What one weight came to.
struct Found {
    /// ‖tuned − base‖².
    energy: f64,
    /// Of a linear layer that differs, in the norm that it was cut in.
    cut: Option<Best>,
}

/// Extracts an adapter and writes it as a folder, whole or not at all. Where a `calibration` knows the inputs of the base's layers, directions are those that count on them.
pub fn extract(
    base: &Checkpoint,
    tuned: &Checkpoint,
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &ExtractOptions,
    progress: &dyn Progress,
) -> Result<Extraction> {
    options.wanted.refuse()?;
    refuse_replacing(target, options.force, &[&base.path, &tuned.path])?;
    let (base_weights, tuned_weights) = (formats::inventory(base)?, formats::inventory(tuned)?);
    let (names, tuned_names) =
        (Names::new(base, &base_weights.weights, &[])?, Names::new(tuned, &tuned_weights.weights, &[])?);
    let pair = Pair { base, tuned, options };
    let (both, mut dropped) = pair.matched(&names, &tuned_names)?;
    let cost = |both: &Both<'_>| {
        both.base.weight.geometry().elements() as u64 * if both.is_linear() { pair.cost_of_linear() } else { 2 } + 1000
    };
    progress.start(both.iter().map(cost).sum());
    progress.phase("extracting", "weights");
    let about = calibration.as_ref().map(|calibration| calibration.about());
    let linear = both.iter().enumerate().filter(|(_, both)| both.is_linear());
    let pieces = Pieces {
        inputs: both.iter().map(|both| (both.shape().1, both.base.weight.name())).collect(),
        wanted: linear.map(|(number, both)| (both.base.weight.name(), vec![number])).collect::<HashMap<_, _>>(),
    };
    let found = pieces.each(calibration, options.threads, progress, |number, metric| {
        let both = &both[number];
        let found = pair.find(both, metric).map_err(|error| error.in_tensor(both.base.weight.name()))?;
        progress.advance(cost(both));
        Ok(found)
    })?;
    let energy: f64 = found.iter().map(|(found, _)| found.energy).sum();
    if energy == 0.0 {
        return Err(mismatch("the two models do not differ in any weight")
            .in_file(&tuned.path)
            .with_hint("check the paths"));
    }
    let rank = found.iter().filter_map(|(found, _)| Some(found.cut.as_ref()?.factors.rank)).max().unwrap_or(1);
    let mut adapter = NewAdapter { rank, ..NewAdapter::default() };
    let (mut weights, mut whole) = (Vec::new(), Vec::new());
    let mut unchanged = 0;
    for (both, (found, by_inputs)) in both.iter().zip(found) {
        let name = both.base.weight.name();
        let module = name.rsplit_once('.').map_or("", |(module, _)| module).to_owned();
        match (both.kind, found.cut) {
            _ if found.energy == 0.0 => unchanged += 1,
            (Place::Linear { .. }, Some(Best { factors, energy, kept })) => {
                let rank = factors.rank;
                weights.push(ExtractedWeight { module: module.clone(), rank, energy, kept, by_inputs });
                adapter.is_turned |= both.is_conv1d(&names);
                adapter.take(module, factors, options.dtype)?;
            }
            (Place::Nowhere(reason), _) => {
                dropped.push(DroppedTensor { name: name.to_owned(), energy: Some(found.energy), reason })
            }
            _ if !options.full => {
                let reason = "it is no linear layer's weight, and --no-full leaves those out";
                dropped.push(DroppedTensor { name: name.to_owned(), energy: Some(found.energy), reason });
            }
            (Place::Bias, _) => {
                adapter.has_bias = true;
                adapter.tensors.push(pair.whole(both, format!("{module}.base_layer.bias")));
                whole.push(name.to_owned());
            }
            _ => {
                adapter.whole.insert(module);
                whole.push(name.to_owned());
            }
        }
    }
    // PEFT wants every parameter of a module that is taken whole, and the factors of every module whose bias it wraps.
    for both in &both {
        let Some((module, _)) = both.base.weight.name().rsplit_once('.') else { continue };
        if adapter.whole.contains(module) {
            adapter.tensors.push(pair.whole(both, both.base.weight.name().to_owned()));
        }
    }
    // One table that serves both ends is written for both. PEFT ties the copies by the names that most families have, and of others wants two modules.
    if let Some((embed, tie)) = names.embed().zip(names.tie).filter(|_| names.is_tied() && tuned_names.is_tied())
        && let Some(both) = both.iter().find(|both| both.base.weight.name() == embed.weight.name())
        && let Some(module) =
            embed.weight.name().strip_suffix(".weight").filter(|module| adapter.whole.contains(*module))
    {
        adapter.is_tied = module.ends_with("embed_tokens");
        if !adapter.is_tied {
            adapter.whole.insert(tie.head().to_owned());
        }
        adapter.tensors.push(pair.whole(both, format!("{}.weight", tie.head())));
    }
    for name in &whole {
        let Some(module) = name.strip_suffix(".bias").filter(|module| !adapter.whole.contains(*module)) else {
            continue;
        };
        if let Some(weight) =
            both.iter().find(|both| both.is_linear() && both.base.weight.name().strip_suffix(".weight") == Some(module))
            && !adapter.modules.contains(module)
        {
            let (outputs, inputs) = weight.shape();
            let zero = Factors { rank: 1, left: vec![0.0; outputs], right: vec![0.0; inputs] };
            adapter.take(module.to_owned(), zero, options.dtype)?;
        }
    }
    if adapter.tensors.is_empty() {
        return Err(
            mismatch("the models differ only in what the adapter cannot hold, or is not to").in_file(&tuned.path)
        );
    }
    let config = adapter.config(base);
    let tensors = std::mem::take(&mut adapter.tensors);
    let whole_bytes = tensors.iter().filter(|tensor| !tensor.name.contains(".lora_")).map(NewTensor::bytes).sum();
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        let warnings = copy_tokenizer(&*tuned.store, sink)?;
        Ok((write_adapter(sink, "", tensors, &config)?, warnings))
    })?;
    for (checkpoint, weights, which) in [(base, &base_weights, "base"), (tuned, &tuned_weights, "tuned model")] {
        let coded: BTreeSet<&str> = weights
            .weights
            .iter()
            .filter(|claim| !claim.weight.is_plain())
            .map(|claim| claim.weight.format())
            .collect();
        if !coded.is_empty() {
            let formats = coded.into_iter().collect::<Vec<_>>().join(", ");
            warnings.push(format!(
                "{}: the {which} is stored as {formats}, so the difference holds what its rounding did too",
                checkpoint.path.display()
            ));
        }
    }
    let known = weights.iter().any(|weight| weight.by_inputs);
    let counted = || weights.iter().filter(|weight| weight.by_inputs == known);
    let linear: f64 = counted().map(|weight| weight.energy).sum();
    let held: f64 = counted().map(|weight| weight.kept * weight.energy).sum();
    // A sum of nothing would be −0.
    let left = dropped.iter().filter_map(|tensor| tensor.energy).fold(0.0, |sum: f64, energy| sum + energy);
    Ok(Extraction {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        base: base.path.display().to_string(),
        tuned: tuned.path.display().to_string(),
        output: target.display().to_string(),
        calibration: about.filter(|_| known),
        rank,
        bytes,
        whole_bytes,
        kept: (linear > 0.0).then(|| held / linear),
        left_out: left / energy,
        unchanged,
        weights,
        whole,
        dropped,
        warnings,
    })
}

impl Both<'_> {
    fn is_linear(&self) -> bool {
        matches!(self.kind, Place::Linear { .. })
    }

    /// Outputs and inputs of a linear layer.
    fn shape(&self) -> (usize, usize) {
        let geometry = self.base.weight.geometry();
        let is_turned = matches!(self.kind, Place::Linear { base_turned: true, .. });
        if is_turned { (geometry.cols, geometry.rows) } else { (geometry.rows, geometry.cols) }
    }

    /// True if the module in memory has its weight as (in, out).
    fn is_conv1d(&self, names: &Names<'_>) -> bool {
        let name = self.base.weight.name();
        arch::leaf_in(name.strip_suffix(".weight").unwrap_or(name), names.arch.transposed)
    }
}

impl<'a> Pair<'a> {
    /// The weights that both models have, in the model's order, and those that the tuned one has alone or in another shape.
    fn matched(&self, names: &Names<'a>, tuned_names: &Names<'a>) -> Result<(Vec<Both<'a>>, Vec<DroppedTensor>)> {
        let (mut both, mut dropped, mut taken) = (Vec::new(), Vec::new(), HashSet::new());
        let drop = |claim: &Claim, reason| DroppedTensor { name: claim.weight.name().to_owned(), energy: None, reason };
        for base in names.weights {
            let name = base.weight.name();
            let Some(tuned) = tuned_names.find(name)? else {
                if names.head().is_some_and(|head| head.weight.name() == name) && tuned_names.is_tied() {
                    dropped.push(drop(base, "the tuned model has tied it to the embedding"));
                    continue;
                }
                return Err(mismatch(format!("it has no weight `{name}`, which the base has"))
                    .in_file(&self.tuned.path)
                    .with_hint("base and tuned model are of different families, or one of them is a part"));
            };
            taken.insert(tuned.weight.name());
            if base.weight.shape() != tuned.weight.shape()
                && base.weight.geometry().elements() != tuned.weight.geometry().elements()
            {
                dropped.push(drop(base, "its shape differs between the models"));
                continue;
            }
            both.push(Both { base, tuned, kind: place(names, base, tuned) });
        }
        let extra = tuned_names.weights.iter().filter(|claim| !taken.contains(claim.weight.name()));
        dropped.extend(extra.map(|claim| drop(claim, "the base has no such weight")));
        if both.is_empty() {
            return Err(mismatch("no weight of it has the shape of the base's")
                .in_file(&self.tuned.path)
                .with_hint("it was not trained from this base"));
        }
        both.sort_by(|a, b| model_order(a.base.weight.name(), b.base.weight.name()));
        Ok((both, dropped))
    }

    fn cost_of_linear(&self) -> u64 {
        match self.options.wanted {
            Wanted::Rank(rank) => 6 + rank as u64 * 4 / 5,
            Wanted::Share(_) => 400,
        }
    }

    fn find(&self, both: &Both<'_>, metric: Option<&Metric>) -> Result<Found> {
        let (base, tuned) = (Reader::new(self.base, both.base)?, Reader::new(self.tuned, both.tuned)?);
        let Place::Linear { base_turned, tuned_turned } = both.kind else {
            return Ok(Found { energy: streamed_energy(&base, &tuned)?, cut: None });
        };
        let rows = |reader: &Reader<'_>, transposed| -> Result<Vec<f32>> {
            let geometry = reader.claim().weight.geometry();
            let mut values = Vec::new();
            reader.rows(&(0..geometry.rows), &mut values)?;
            finite(&values)?;
            Ok(Order { transposed, inputs: None }.to_model(values, geometry.cols))
        };
        let mut difference = rows(&tuned, tuned_turned)?;
        difference.iter_mut().zip(rows(&base, base_turned)?).for_each(|(x, base)| *x -= base);
        if difference.iter().all(|x| *x == 0.0) {
            return Ok(Found { energy: 0.0, cut: None });
        }
        let (_, inputs) = both.shape();
        let seed = seed_of(both.base.weight.name(), self.options.seed);
        let found = best(&difference, inputs, self.options.wanted, seed, metric);
        finite(&found.factors.left)?;
        finite(&found.factors.right)?;
        let energy = if metric.is_some() { dot(&difference, &difference) } else { found.energy };
        Ok(Found { energy, cut: Some(found) })
    }

    /// A tuned weight as it is, under the name that PEFT gives it.
    fn whole(&self, both: &Both<'a>, name: String) -> NewTensor<'a> {
        let name = format!("base_model.model.{name}");
        let claim = both.tuned;
        let shape = claim.weight.shape().to_vec();
        match (claim.weight.is_plain(), claim.entries.first()) {
            (true, Some(entry)) if entry.dtype.is_plain_float() && entry.shape == shape => {
                NewTensor { name, dtype: entry.dtype, shape, data: Data::Entry(self.tuned, entry) }
            }
            _ => {
                let tuned = self.tuned;
                let make = move || {
                    let reader = Reader::new(tuned, claim)?;
                    let mut values = Vec::new();
                    reader.rows(&(0..claim.weight.geometry().rows), &mut values)?;
                    Ok(values)
                };
                NewTensor { name, dtype: Dtype::F32, shape, data: Data::Later(Box::new(make)) }
            }
        }
    }
}

/// What an adapter can do with a weight, by its name and shape.
fn place(names: &Names<'_>, base: &Claim, tuned: &Claim) -> Place {
    let name = base.weight.name();
    let Some((module, parameter)) = name.rsplit_once('.') else {
        return Place::Nowhere("it belongs to no module");
    };
    let is_linear = |module: &str| {
        let weight = names.exact(&format!("{module}.weight"));
        let is_matrix = weight.is_some_and(|claim| claim.weight.shape().len() == 2);
        let is_embedding =
            weight.zip(names.embed()).is_some_and(|(own, embed)| own.weight.name() == embed.weight.name());
        is_matrix && !is_embedding && !arch::leaf_in(module, names.arch.not_linear) && !names.is_head(module)
    };
    match parameter {
        "weight" if is_linear(module) => {
            let turned = |claim: &Claim| {
                claim.weight.is_transposed() || claim.weight.is_plain() && arch::leaf_in(module, names.arch.transposed)
            };
            Place::Linear { base_turned: turned(base), tuned_turned: turned(tuned) }
        }
        "bias" if is_linear(module) => Place::Bias,
        _ if base.weight.shape().len() > 2
            && names.arch.experts.is_some_and(|experts| experts.modules.iter().any(|path| module.ends_with(path))) =>
        {
            Place::Nowhere("it is a stack of experts, which is no linear layer that a LoRA could be put on")
        }
        _ => Place::Whole,
    }
}

/// ‖tuned − base‖² of weights that are stored alike.
fn streamed_energy(base: &Reader<'_>, tuned: &Reader<'_>) -> Result<f64> {
    let (from, to) = (base.claim().weight.geometry(), tuned.claim().weight.geometry());
    if (from.rows, from.cols) != (to.rows, to.cols) {
        return Err(mismatch("it is stored as another matrix in the tuned model"));
    }
    let (mut energy, mut own, mut other) = (0.0, Vec::new(), Vec::new());
    for rows in base.chunks(1 << 17) {
        base.rows(&rows, &mut own)?;
        tuned.rows(&rows, &mut other)?;
        own.iter_mut().zip(&other).for_each(|(own, other)| *own = other - *own);
        finite(&own)?;
        energy += dot(&own, &own);
    }
    Ok(energy)
}
