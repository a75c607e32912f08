//! What rounding left, E = (W0 + D) − Wq, as a LoRA beside the output.
//!
//! Weights that are rounded as a whole have E and the moments of their inputs at hand: their factors are cut in that metric, written to the partial
//! output and synced before the journal lists the weight, so that a resumed merge finds them. All others are read again once the output's weights are
//! complete, and cut in the plain norm, since nothing is known of their inputs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::Run;
use crate::adapters::PlannedEdit;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result, counted, usage};
use crate::formats::{self, Order, Reader};
use crate::open::Checkpoint;
use crate::parallel::parallel;
use crate::plan::{Action, Plan, Recode, Source, Step};
use crate::report::{RESIDUAL_FOLDER, ResidualReport, Without};
use crate::round::{Factors, Metric, seed_of, sketch};
use crate::write::{Finished, NewTensor, Output, write_adapter};

/// A weight's part of the residual adapter: the share of ‖E‖² that it holds, and its factors.
struct Residual {
    kept: Option<f64>,
    factors: Factors,
}

const BEGIN_ANEW: &str = "--force in place of --resume begins anew";

/// Errors if factors are gone that a run before cut with moments that this one does not have any more.
pub(super) fn check(plan: &Plan, output: &Output, finished: &[Finished]) -> Result<()> {
    for step in finished.iter().filter(|step| plan.residual_rank.is_some() && step.kept.is_some()) {
        let name = step.step.to_string();
        let coarse = matches!(&plan.steps[step.step].action, Action::Recode(recode) if is_cut(recode));
        if coarse && output.sink().stashed(&name)?.is_none() {
            return Err(Error::new(Kind::Malformed, "what rounding left of a finished weight is gone")
                .in_file(&output.scratch(&name))
                .in_tensor(&plan.steps[step.step].name)
                .with_hint(BEGIN_ANEW));
        }
    }
    Ok(())
}

/// True if a step rounds a merged weight to something coarser than 16 bits.
fn is_coarse(recode: &Recode) -> bool {
    !recode.edits.is_empty() && !recode.to.is_plain()
}

/// True if what rounding left of it goes into the residual adapter: of a matrix, and no stack.
pub(super) fn is_cut(recode: &Recode) -> bool {
    is_coarse(recode) && recode.to.shape().len() == 2
}

/// The modules that the residual adapter has, by number of their step, and the weights that it cannot hold.
fn modules(plan: &Plan) -> (HashMap<usize, String>, Vec<Without>) {
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    let coarse = |step: &Step| matches!(&step.action, Action::Recode(recode) if is_coarse(recode));
    let steps = || plan.steps.iter().enumerate().filter(|(_, step)| coarse(step));
    for (_, step) in steps() {
        edited(step).into_iter().for_each(|(path, _)| *by_name.entry(path).or_default() += 1);
    }
    let (mut found, mut without) = (HashMap::new(), Vec::new());
    for (number, step) in steps() {
        let Action::Recode(recode) = &step.action else { continue };
        let module = edited(step).map(|(path, _)| path).filter(|path| by_name[path] == 1).map(str::to_owned);
        let reason = match module {
            _ if recode.source != Source::Base => "it takes the place of the base's",
            Some(module) if recode.to.shape().len() == 2 => {
                found.insert(number, module);
                continue;
            }
            _ => {
                "it is a stack of experts, an embedding, or trained tokens: no linear layer that a LoRA could be put on"
            }
        };
        without.push(Without { weight: step.name.clone(), reason });
    }
    (found, without)
}

/// The first edit of a linear layer, and that layer's path.
fn edited(step: &Step) -> Option<(&str, &PlannedEdit)> {
    let Action::Recode(recode) = &step.action else { return None };
    recode.edits.iter().find_map(|(_, edit)| Some((edit.layer.as_deref()?, edit)))
}

/// Errors if nothing of this plan would be left for a residual adapter, or nowhere to put it.
pub(super) fn refuse(plan: &Plan, single_file: bool) -> Result<()> {
    let Some(rank) = plan.residual_rank else { return Ok(()) };
    let (modules, without) = modules(plan);
    let most = modules
        .keys()
        .filter_map(|&number| match &plan.steps[number].action {
            Action::Recode(recode) => Some(recode.to.geometry().rows.min(recode.to.geometry().cols)),
            Action::Copy { .. } | Action::Constant(_) => None,
        })
        .max();
    match most {
        _ if single_file => Err(usage("--residual-rank writes an adapter into the output, which is a single file")
            .with_hint("name a folder as the output")),
        None if !without.is_empty() => Err(usage(format!(
            "--residual-rank: of {}, coarser than 16 bits, what is lost of none can be held in a LoRA; `{}`: {}",
            counted(without.len(), "merged weight", "merged weights"),
            without[0].weight,
            without[0].reason
        ))
        .with_hint("leave it out; a format of more bits, or a merge that is calibrated, keeps more of them")),
        None => Err(usage("--residual-rank: no merged linear layer of the output is coarser than 16 bits, so rounding leaves nothing to hold")
            .with_hint("leave it out")),
        Some(most) if rank > most => Err(usage(format!("--residual-rank {rank} is above the rank of every merged weight, {most}"))),
        Some(_) => Ok(()),
    }
}

impl Run<'_> {
    /// Cuts what rounding left of a weight that is at hand. `energy` is ‖E‖²_H.
    pub(super) fn stash_residual(
        &self,
        number: usize,
        (target, output): (&[f32], &[f32]),
        metric: &Metric,
        energy: f64,
    ) -> Result<()> {
        let (Some(rank), Action::Recode(recode)) = (self.plan.residual_rank, &self.plan.steps[number].action) else {
            return Ok(());
        };
        let cut = sketch(&difference(target, output), recode.inputs(), rank, Some(metric), self.seed(number));
        let kept = (energy > 0.0).then(|| (cut.kept / energy).min(1.0));
        let mut bytes = kept.unwrap_or(f64::NAN).to_le_bytes().to_vec();
        bytes.extend(cut.factors.left.iter().chain(&cut.factors.right).flat_map(|x| x.to_le_bytes()));
        self.output.sink().stash(&number.to_string(), &bytes)
    }

    fn seed(&self, number: usize) -> u64 {
        seed_of(&self.plan.steps[number].name, self.plan.seed)
    }

    /// What [`Run::stash_residual`] wrote, in this run or one before.
    fn found(&self, number: usize, recode: &Recode, rank: usize) -> Result<Option<Residual>> {
        let name = number.to_string();
        let Some(bytes) = self.output.sink().stashed(&name)? else { return Ok(None) };
        let (left, right) = (recode.outputs() * rank, rank * recode.inputs());
        if bytes.len() != 8 + 4 * (left + right) {
            return Err(Error::new(Kind::Malformed, format!("{} bytes of factors", bytes.len()))
                .in_file(&self.output.scratch(&name))
                .with_hint(BEGIN_ANEW));
        }
        let (kept, factors) = bytes.split_at(8);
        let kept = f64::from_le_bytes(kept.try_into().unwrap_or_default());
        let floats: Vec<f32> = factors.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        let factors = Factors { rank, left: floats[..left].to_vec(), right: floats[left..].to_vec() };
        Ok(Some(Residual { kept: (!kept.is_nan()).then_some(kept), factors }))
    }

    /// Reads a written weight again and cuts what rounding left of it.
    fn read_again(&self, number: usize, recode: &Recode, rank: usize, written: &Reader<'_>) -> Result<Residual> {
        let (from, to) = (recode.from.weight.geometry(), recode.to.geometry());
        let (mut base, mut target, mut output) = (Vec::new(), Vec::new(), Vec::new());
        Edited::new(self.inputs, recode)?.rows(&(0..from.rows), &mut base, &mut target)?;
        drop(base);
        written.rows(&(0..to.rows), &mut output)?;
        let order = |transposed| Order { transposed, inputs: None };
        let target = order(recode.transposed).to_model(target, from.cols);
        let output = order(recode.is_stored_transposed()).to_model(output, to.cols);
        let cut = sketch(&difference(&target, &output), recode.inputs(), rank, None, self.seed(number));
        Ok(Residual {
            kept: cut.energy.filter(|energy| *energy > 0.0).map(|energy| cut.kept / energy),
            factors: cut.factors,
        })
    }

    /// Writes the adapter beside the weights of the output, which are complete.
    pub(super) fn residual(&self) -> Result<Option<ResidualReport>> {
        let Some(rank) = self.plan.residual_rank else { return Ok(None) };
        let (modules, without) = modules(self.plan);
        let output = Checkpoint::open_in(self.output.store()?)?;
        let inventory = formats::inventory(&output)?;
        let claims: HashMap<&str, _> = inventory.weights.iter().map(|claim| (claim.weight.name(), claim)).collect();
        let mut numbers: Vec<usize> = modules.keys().copied().collect();
        numbers.sort_unstable();
        self.progress.phase("cutting what rounding left", "weights");
        let (count, work) = (AtomicU64::new(0), self.schedule.work.residual / numbers.len().max(1) as u64);
        let parts = parallel(&numbers, self.schedule.threads, self.progress, |&number| {
            self.progress.part(count.fetch_add(1, Ordering::Relaxed) + 1, numbers.len() as u64);
            self.progress.advance(work);
            let step = &self.plan.steps[number];
            let Action::Recode(recode) = &step.action else {
                return Err(Error::new(Kind::Bug, "no residual of a copy"));
            };
            if let Some(part) = self.found(number, recode, rank)? {
                return Ok(part);
            }
            let claim = claims.get(step.name.as_str()).ok_or_else(|| Error::new(Kind::Bug, "it is not in the output"));
            claim
                .and_then(|claim| Reader::new(&output, claim))
                .and_then(|written| self.read_again(number, recode, rank, &written))
                .map_err(|error| error.in_tensor(&step.name))
        })?;
        self.progress.advance(self.schedule.work.residual - work * numbers.len() as u64);
        let mut tensors = Vec::new();
        for (number, part) in numbers.iter().zip(&parts) {
            let (rows, cols) = (part.factors.left.len() / rank, part.factors.right.len() / rank);
            let dtype = self.dtype(*number);
            for (name, shape, values) in
                [("A", vec![rank, cols], &part.factors.right), ("B", vec![rows, rank], &part.factors.left)]
            {
                let name = format!("base_model.model.{}.lora_{name}.weight", modules[number]);
                let tensor = NewTensor::of_values(name.clone(), dtype, shape, values.clone());
                tensors.push(tensor.ok_or_else(|| {
                    Error::new(Kind::NotFinite, format!("a value of the residual overflows in {dtype}"))
                        .in_tensor(&name)
                })?);
            }
        }
        let config = self.config(rank, numbers.iter().map(|number| &modules[number]));
        let bytes = write_adapter(self.output.sink(), RESIDUAL_FOLDER, tensors, &config)?;
        let kept: HashMap<String, f64> = numbers
            .iter()
            .zip(&parts)
            .filter_map(|(&number, part)| Some((self.plan.steps[number].name.clone(), part.kept?)))
            .collect();
        let mean = (!kept.is_empty()).then(|| {
            numbers.iter().filter_map(|&number| kept.get(&self.plan.steps[number].name)).sum::<f64>()
                / kept.len() as f64
        });
        Ok(Some(ResidualReport {
            path: RESIDUAL_FOLDER.to_owned(),
            rank,
            bytes,
            weights: numbers.len(),
            kept: mean,
            without,
            of_weights: kept,
        }))
    }

    /// The type of the adapter's own factors: these are as fine.
    fn dtype(&self, number: usize) -> crate::dtype::Dtype {
        let step = &self.plan.steps[number];
        let own = edited(step).and_then(|(_, edit)| {
            let name = edit.tensors.first()?;
            self.inputs.adapters.iter().find_map(|adapter| adapter.tensors.get(name))
        });
        own.map(|entry| entry.dtype).filter(|dtype| dtype.is_plain_float()).unwrap_or(crate::dtype::Dtype::F32)
    }

    /// What PEFT needs to put it on the output. It does not name the output: the same merge has the same bytes under every name.
    fn config<'m>(&self, rank: usize, modules: impl Iterator<Item = &'m String>) -> Value {
        let task = self.inputs.adapters.first().and_then(|adapter| adapter.config.json.get("task_type").cloned());
        json!({
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": null,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_dora": false,
            "use_rslora": false,
            "modules_to_save": null,
            "target_modules": modules.collect::<Vec<_>>(),
        })
    }
}

fn difference(target: &[f32], output: &[f32]) -> Vec<f32> {
    target.iter().zip(output).map(|(target, output)| target - output).collect()
}
