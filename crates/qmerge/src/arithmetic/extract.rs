//! What a tuned model differs from its base by, as an adapter.
//!
//! Linear layers become LoRAs: the best approximation of tuned − base at a rank, or at the rank that holds a share of its energy; so do the matrices of stacks of
//! experts, each by itself, as a LoRA on the stacked parameter (`target_parameters`). What else differs (embeddings, heads, norms, biases) is taken whole, as PEFT
//! does with `modules_to_save` and trained biases. A matrix is decoded, compared and let go before the next.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::compared::{Both, Carrier, Difference, Matched, Pair, Piece};
use super::new_adapter::NewAdapter;
use super::report::{DroppedTensor, ExtractedWeight, Extraction};
use super::stacked::Stacked;
use super::svd::{Best, Wanted};
use super::target::Target;
use crate::adapters::Names;
use crate::dtype::Dtype;
use crate::error::{Result, mismatch};
use crate::formats::{self, Inventory};
use crate::linalg::Factors;
use crate::open::Checkpoint;
use crate::progress::Progress;
use crate::report::{SCHEMA_VERSION, Tool};
use crate::round::{Calibration, Pieces};
use crate::write::{NewTensor, copy_tokenizer, publish_folder, refuse_replacing, write_adapter};

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

/// What has been found so far.
#[derive(Default)]
struct Made<'a> {
    adapter: NewAdapter<'a>,
    weights: Vec<ExtractedWeight>,
    /// Names of tensors that are taken whole.
    whole: Vec<String>,
    dropped: Vec<DroppedTensor>,
    unchanged: usize,
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
    let mut matched = pair.matched(&names, &tuned_names)?;
    pair.refuse_rescaled(&matched)?;
    let dropped = std::mem::take(&mut matched.dropped);
    let pieces = matched.pieces();
    progress.start(pieces.iter().map(|piece| piece.cost(options.wanted)).sum());
    progress.phase("extracting", "weights");
    let about = calibration.as_ref().map(|calibration| calibration.about());
    let own: Vec<String> = pieces.iter().map(|piece| piece.name()).collect();
    let known = pieces.iter().zip(&own).enumerate().filter(|(_, (piece, _))| piece.has_inputs());
    let found = Pieces {
        inputs: pieces.iter().zip(&own).map(|(piece, name)| (piece.shape().1, name.as_str())).collect(),
        wanted: known.map(|(number, (_, name))| (name.as_str(), vec![number])).collect::<HashMap<_, _>>(),
    };
    let found = found.each(calibration, options.threads, progress, |number, metric| {
        let piece = pieces[number];
        let found = pair.find(piece, metric).map_err(|error| error.in_tensor(&own[number]))?;
        progress.advance(piece.cost(options.wanted));
        Ok(found)
    })?;
    let energy: f64 = found.iter().map(|(found, _)| found.energy).sum();
    if energy == 0.0 && matched.heads.is_empty() {
        return Err(mismatch("the two models do not differ in any weight")
            .in_file(&tuned.path)
            .with_hint("check the paths"));
    }
    let rank = |piece: &Piece<'_, '_>, found: &Difference| {
        Some(found.cut.as_ref()?.factors.rank).filter(|_| piece.has_inputs())
    };
    let rank = pieces.iter().zip(&found).filter_map(|(piece, (found, _))| rank(piece, found)).max().unwrap_or(1);
    let adapter = NewAdapter::of_rank(rank);
    let mut made = Made { adapter, dropped, ..Made::default() };
    let mut found = found.into_iter();
    made.take_weights(&pair, &names, &matched, &mut found)?;
    made.take_tied(&pair, &matched, &names, &tuned_names);
    made.take_stacks(&matched, &mut found, options)?;
    made.take_heads(&pair, &matched, &tuned_names);
    made.take_any(&matched, &names, options)?;
    let Made { mut adapter, weights, whole, dropped, unchanged } = made;
    let config = adapter.config(base);
    let tensors = adapter.finish();
    if tensors.is_empty() {
        return Err(
            mismatch("the models differ only in what the adapter cannot hold, or is not to").in_file(&tuned.path)
        );
    }
    let embed = names.embed().map(|embed| embed.weight.name());
    let is_resized = dropped.iter().any(|tensor| tensor.energy.is_none() && embed == Some(tensor.name.as_str()));
    let whole_bytes = tensors.iter().filter(|tensor| !tensor.name.contains(".lora_")).map(NewTensor::bytes).sum();
    let (bytes, mut warnings) = publish_folder(target, options.force, |sink| {
        // Tokens whose rows are left out are of no use.
        let warnings = if is_resized { Vec::new() } else { copy_tokenizer(&*tuned.store, sink)? };
        Ok((write_adapter(sink, "", tensors, &config)?, warnings))
    })?;
    if is_resized {
        let path = tuned.path.display();
        warnings.push(format!(
            "{path}: its embedding has another shape than the base's, as where tokens were added: it is left out, and so is the tokenizer"
        ));
    }
    warnings.extend(coded(base, &base_weights, "base"));
    warnings.extend(coded(tuned, &tuned_weights, "tuned model"));
    let known = weights.iter().any(|weight| weight.by_inputs);
    let counted = || weights.iter().filter(|weight| weight.by_inputs == known);
    let linear: f64 = counted().map(|weight| weight.energy).sum();
    let held: f64 = counted().map(|weight| weight.kept * weight.energy).sum();
    // A sum of nothing would be −0. What one model has alone, or in another shape, differs by no number.
    let left = dropped.iter().try_fold(0.0, |sum: f64, tensor| Some(sum + tensor.energy?));
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
        left_out: left.map(|left| if left > 0.0 { left / energy } else { 0.0 }),
        unchanged,
        weights,
        whole,
        dropped,
        warnings,
    })
}

/// What to say of a model whose values are codes.
fn coded(checkpoint: &Checkpoint, inventory: &Inventory, which: &str) -> Option<String> {
    let coded = inventory.weights.iter().filter(|claim| !claim.weight.is_plain());
    let coded: BTreeSet<&str> = coded.map(|claim| claim.weight.format()).collect();
    (!coded.is_empty()).then(|| {
        let formats = coded.into_iter().collect::<Vec<_>>().join(", ");
        let path = checkpoint.path.display();
        format!("{path}: the {which} is stored as {formats}, so the difference holds what its rounding did too")
    })
}

impl<'a> Made<'a> {
    /// Takes what became of the weights, in their order.
    fn take_weights(
        &mut self,
        pair: &Pair<'a>,
        names: &Names<'_>,
        matched: &Matched<'a>,
        found: &mut impl Iterator<Item = (Difference, bool)>,
    ) -> Result<()> {
        let options = pair.options;
        let found: Vec<(&Both<'a>, (Difference, bool))> = matched.weights.iter().zip(found).collect();
        // Of a module that is taken whole all parameters are.
        for (both, (found, _)) in &found {
            if both.carrier == Carrier::Whole && found.energy > 0.0 && options.full {
                self.adapter.whole.insert(both.module().to_owned());
            }
        }
        for (both, (found, by_inputs)) in found {
            let name = both.name().to_owned();
            let is_whole = self.adapter.whole.contains(both.module());
            if is_whole {
                self.adapter.tensors.push(pair.whole(both.tuned, both.path.clone()));
            }
            match (&both.carrier, found.cut) {
                _ if found.energy == 0.0 => self.unchanged += 1,
                _ if is_whole => self.whole.push(name),
                (Carrier::Linear { target, .. }, Some(Best { factors, energy, kept })) => {
                    let rank = factors.rank;
                    self.weights.push(ExtractedWeight { module: target.path(), rank, energy, kept, by_inputs });
                    self.adapter.is_turned |= both.is_conv1d(names);
                    self.adapter.take(target.clone(), factors, options.dtype)?;
                }
                (Carrier::Nowhere(reason), _) => {
                    self.dropped.push(DroppedTensor { name, energy: Some(found.energy), reason });
                }
                _ if !options.full => {
                    let reason = "it is no linear layer's weight, and --no-full leaves those out";
                    self.dropped.push(DroppedTensor { name, energy: Some(found.energy), reason });
                }
                (Carrier::Beside(target), Some(Best { factors, .. })) => {
                    self.adapter.take(target.clone(), factors, options.dtype)?;
                    self.whole.push(name);
                }
                (Carrier::Bare, _) => {
                    self.adapter.tensors.push(pair.whole(both.tuned, both.path.clone()));
                    self.whole.push(name);
                }
                (Carrier::Bias(target), _) => {
                    self.adapter.has_bias = true;
                    self.adapter.tensors.push(pair.whole(both.tuned, format!("{}.base_layer.bias", target.module)));
                    self.whole.push(name);
                }
                _ => self.whole.push(name),
            }
        }
        // PEFT wants the factors of every module whose bias it wraps.
        for both in &matched.weights {
            let Carrier::Linear { target, .. } = &both.carrier else { continue };
            let bias = format!("{}.bias", both.name().strip_suffix(".weight").unwrap_or_default());
            if self.whole.contains(&bias)
                && !self.adapter.targets.contains(target)
                && !self.adapter.whole.contains(both.module())
            {
                self.take_zero(both, names, options)?;
            }
        }
        Ok(())
    }

    /// Takes the head that the tuned model was trained for, which the base lacks.
    fn take_heads(&mut self, pair: &Pair<'a>, matched: &Matched<'a>, tuned: &Names<'_>) {
        for head in &matched.heads {
            let path = tuned.in_memory(head.weight.name());
            self.adapter.whole.extend(path.rsplit_once('.').map(|(module, _)| module.to_owned()));
            self.adapter.tensors.push(pair.whole(head, path));
            self.whole.push(head.weight.name().to_owned());
        }
        self.adapter.task = pair.task().filter(|_| !matched.heads.is_empty());
    }

    /// Takes factors that do nothing for a layer, so that PEFT wraps it.
    fn take_zero(&mut self, both: &Both<'a>, names: &Names<'_>, options: &ExtractOptions) -> Result<()> {
        let Carrier::Linear { target, .. } = &both.carrier else { return Ok(()) };
        let (outputs, inputs) = both.shape();
        let zero = Factors { rank: 1, left: vec![0.0; outputs], right: vec![0.0; inputs] };
        self.adapter.is_turned |= both.is_conv1d(names);
        self.adapter.take(target.clone(), zero, options.dtype)
    }

    /// PEFT loads no adapter that targets no module, whatever it takes whole: one layer gets factors that do nothing.
    fn take_any(&mut self, matched: &Matched<'a>, names: &Names<'_>, options: &ExtractOptions) -> Result<()> {
        if self.whole.is_empty() || !self.adapter.targets.is_empty() {
            return Ok(());
        }
        let layers = matched.weights.iter().filter(|both| both.is_linear());
        match layers.filter(|both| !self.adapter.whole.contains(both.module())).min_by_key(|both| both.shape()) {
            Some(both) => self.take_zero(both, names, options),
            None => Ok(()),
        }
    }

    /// One table that serves both ends is written for both. PEFT ties the copies by the names that most families have, and of others wants two modules.
    fn take_tied(&mut self, pair: &Pair<'a>, matched: &Matched<'a>, names: &Names<'_>, tuned: &Names<'_>) {
        let Some((embed, tie)) = names.embed().zip(names.tie).filter(|_| names.is_tied() && tuned.is_tied()) else {
            return;
        };
        let Some(both) = matched.weights.iter().find(|both| both.name() == embed.weight.name()) else { return };
        if !self.adapter.whole.contains(both.module()) {
            return;
        }
        self.adapter.is_tied = both.module().ends_with("embed_tokens");
        if !self.adapter.is_tied {
            self.adapter.whole.insert(tie.head().to_owned());
            // Of a module that is taken whole all parameters are.
            let bias = tie
                .bias()
                .and_then(|(name, source)| Some((name, matched.weights.iter().find(|both| both.name() == source)?)));
            self.adapter.tensors.extend(bias.map(|(name, both)| pair.whole(both.tuned, name)));
        }
        self.adapter.tensors.push(pair.whole(both.tuned, format!("{}.weight", tie.head())));
    }

    /// Takes what became of the matrices of stacks: of each stack one pair of factors.
    fn take_stacks(
        &mut self,
        matched: &Matched<'a>,
        found: &mut impl Iterator<Item = (Difference, bool)>,
        options: &ExtractOptions,
    ) -> Result<()> {
        for stacks in &matched.stacks {
            let own: Vec<(Difference, bool)> = found.take(stacks.base.experts.len()).collect();
            // Figures are of one norm.
            let by_inputs = own.iter().any(|(found, by_inputs)| *by_inputs && found.energy > 0.0);
            let counted = own.iter().filter(|(_, own)| *own == by_inputs).filter_map(|(found, _)| found.cut.as_ref());
            let (energy, held) =
                counted.fold((0.0, 0.0), |(energy, held), cut| (energy + cut.energy, held + cut.kept * cut.energy));
            let factors: Vec<Option<Factors>> =
                own.into_iter().map(|(found, _)| found.cut.map(|cut| cut.factors)).collect();
            if factors.iter().all(Option::is_none) {
                self.unchanged += 1;
                continue;
            }
            let stacked = Stacked::of(&stacks.base, factors);
            let target = Target::stack(&stacks.base);
            let kept = if energy > 0.0 { held / energy } else { 1.0 };
            let rank = stacked.factors.rank;
            self.weights.push(ExtractedWeight { module: target.path(), rank, energy, kept, by_inputs });
            self.adapter.take_all(target, stacked, options.dtype)?;
        }
        Ok(())
    }
}
