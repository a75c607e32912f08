//! The report of a merge, from its plan and what its steps left.

use std::path::Path;

use super::{
    AdapterReport, Behaviour, Evidence, Ignored, Model, Report, RoundingReport, SCHEMA_VERSION, Summary,
    TaskVectorsReport, Tool, Verdict, WeightReport, converted, now, verdict,
};
use crate::adapters::Adapter;
use crate::formats;
use crate::measure::Sums;
use crate::open::model_order;
use crate::plan::{Accounting, Action, Inputs, Plan, Recode, Source};
use crate::round::{OutputKept, Seen};
use crate::write::Finished;

/// What a run has written.
pub(crate) struct Written<'a> {
    pub(crate) finished: &'a [Finished],
    pub(crate) bytes: u64,
    pub(crate) behaviour: Option<Behaviour>,
    /// Of the inputs by which weights were rounded.
    pub(crate) seen: Seen,
}

/// The report of a run; the caller adds time, memory and bytes moved.
pub(crate) fn assemble(inputs: &Inputs, plan: &Plan, target: &Path, hashes: &[String], written: Written<'_>) -> Report {
    let Written { finished, bytes, behaviour, seen } = written;
    let sees_inputs = seen != Seen::Nothing;
    let mut total = Sums::zero();
    let mut weights = Vec::new();
    let mut warnings = plan.warnings.clone();
    let mut merged = 0;
    let (mut is_coarse, mut rounds_base) = (false, false);
    let mut unchanged = Vec::new();
    for step in finished {
        let Some(sums) = &step.sums else { continue };
        let planned = &plan.steps[step.step];
        let Action::Recode(recode) = &planned.action else { continue };
        let loss = sums.loss();
        if !recode.edits.is_empty() {
            merged += 1;
            total.add(sums);
            is_coarse |= !recode.to.is_plain();
            rounds_base |= !recode.to.is_plain() && recode.from.weight.format() != recode.to.format();
            if loss.survival.is_none() {
                unchanged.push(planned.name.as_str());
            }
        }
        let mut weight =
            WeightReport::new(&planned.name, recode.from.weight.format(), recode.to.format(), recode.to.shape(), &loss);
        weight.rounding = match &step.kept {
            Some(kept) => {
                if sees_inputs && !recode.edits.is_empty() {
                    (weight.kept_output, weight.noise_output) = (Some(kept.output), Some(kept.noise));
                }
                recode.rounding.id()
            }
            None => recode.streamed().id(),
        }
        .to_owned();
        weights.push(weight);
    }
    // Of modules that were not trained the plan has warned.
    let first = unchanged.iter().copied().min_by(|a, b| model_order(a, b));
    if let Some(first) = first.filter(|_| !plan.untrained && unchanged.len() > plan.untrained_modules) {
        warnings.push(format!("the delta is zero in {} of {merged} weights, first `{first}`", unchanged.len()));
    }
    let loss = total.loss();
    let edited =
        |step: &&Finished| matches!(&plan.steps[step.step].action, Action::Recode(recode) if !recode.edits.is_empty());
    let kept: Vec<&OutputKept> =
        finished.iter().filter(|_| sees_inputs).filter(edited).filter_map(|step| step.kept.as_ref()).collect();
    let mean = |of: fn(&OutputKept) -> f64| {
        (!kept.is_empty()).then(|| kept.iter().map(|kept| of(kept)).sum::<f64>() / kept.len() as f64)
    };
    let (kept_output, noise_output) = (mean(|kept| kept.output), mean(|kept| kept.noise));
    Report {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        date: now(),
        command: None,
        base: Model {
            path: inputs.base.path.display().to_string(),
            format: formats::in_words(&inputs.inventory),
            bytes: inputs.base.total_bytes(),
        },
        adapters: inputs.adapters.iter().zip(&plan.accounting).zip(hashes).map(adapter_report).collect(),
        task_vectors: TaskVectorsReport::of(inputs, plan),
        lora_scale: plan.read.scales.rules().map(str::to_owned).collect(),
        output: Model { path: target.display().to_string(), format: plan.output_format.clone(), bytes },
        rounding: RoundingReport {
            method: plan.rounding.id().to_owned(),
            reason: plan.reason.clone(),
            seed: plan.recodes().any(|recode| recode.rounding.is_random()).then_some(plan.seed),
            calibration: None,
        },
        summary: Summary {
            weights_merged: merged,
            elements: total.elements,
            survival: loss.survival,
            noise_to_delta: loss.noise_to_delta,
            kept_output,
            noise_output,
            changed_fraction: loss.changed_fraction,
            nonfinite: 0,
            seconds: 0.0,
            bytes_read: 0,
            bytes_written: 0,
            bytes_before: None,
            peak_rss_bytes: None,
        },
        verdict: judged(
            inputs,
            plan,
            &Evidence { loss: &loss, is_coarse, rounds_base, kept_output, seen, behaviour: behaviour.as_ref() },
        ),
        behaviour,
        residual: None,
        promoted: plan.recodes().filter(|recode| recode.promoted).map(|recode| recode.to.name().to_owned()).collect(),
        weights,
        warnings,
    }
}

/// The verdict on what this plan does: a conversion has no adapter, and an adapter need not have a delta.
fn judged(inputs: &Inputs, plan: &Plan, evidence: &Evidence<'_>) -> Verdict {
    let replaced: usize = plan.accounting.iter().map(|accounting| accounting.replaced).sum();
    if inputs.adapters.is_empty() {
        converted(plan.recodes().count())
    } else if replaced > 0 && plan.recodes().all(|recode| recode.edits.is_empty()) {
        let from_adapter = |recode: &&Recode| matches!(recode.source, Source::Adapter(_));
        super::replaced(replaced, plan.recodes().filter(from_adapter).all(|recode| recode.to.is_plain()))
    } else {
        let tuned = inputs.adapters.iter().filter(|adapter| adapter.is_tuned()).count();
        match verdict(evidence) {
            found if tuned == 0 => found,
            found if tuned == inputs.adapters.len() => found.of("the task vector"),
            found => found.of("the merged delta"),
        }
    }
}

fn adapter_report(((adapter, accounting), sha256): ((&Adapter, &Accounting), &String)) -> AdapterReport {
    AdapterReport {
        path: adapter.path.display().to_string(),
        peft_type: adapter.config.peft_type.clone(),
        weight: adapter.weight,
        sha256: sha256.clone(),
        base_model: adapter.config.base_model.clone(),
        tensors: accounting.tensors,
        merged: accounting.merged,
        replaced: accounting.replaced,
        added: accounting.added,
        beside: accounting.beside.clone(),
        left_out: accounting.left_out.clone(),
        unused: accounting.unused.len(),
        unused_tensors: accounting.unused.clone(),
        ignored: accounting.ignored.iter().map(|(tensor, reason)| Ignored { tensor: tensor.clone(), reason }).collect(),
    }
}
