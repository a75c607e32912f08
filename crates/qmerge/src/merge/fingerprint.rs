//! What a run may go on with: the facts that decide a byte of its output. Threads, memory and the vector level do not.
//!
//! What is small enough is hashed whole: adapters, configurations, what a calibration is taken from. A base, and what it was quantized from, may be larger
//! than all work on them: they are known by their files' sizes and times, and by the first bytes of each tensor; in a store that knows contents, by that.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::adapters::Adapter;
use crate::error::Result;
use crate::open::{Checkpoint, content, hex};
use crate::plan::{Action, Inputs, Plan, Tokenizer};
use crate::report::Tool;
use crate::round::identity;
use crate::write::{CALIBRATION, CHANGES, Fingerprint, LAYOUT};

/// `adapters` are the hashes of the adapters' files, `calibration` that of what it is taken from.
pub(super) fn of(
    inputs: &Inputs,
    plan: &Plan,
    adapters: &[String],
    calibration: Option<String>,
) -> Result<Fingerprint> {
    let mut merge = Fingerprint::default();
    merge.add("version of qmerge", Tool::THIS.version);
    merge.add("base", large(&inputs.base)?);
    if let Some(config) = &inputs.base.config {
        merge.add("configuration of the base", text_hash(&config.text));
    }
    for (number, (adapter, hash)) in inputs.adapters.iter().zip(adapters).enumerate() {
        let name = format!("adapter {}", number + 1);
        merge.add(&name, if adapter.is_tuned() { large(&adapter.tensors)? } else { hash.clone() });
        if let [_, beside @ ..] = adapter.tensors.files.as_slice()
            && !beside.is_empty()
            && !adapter.is_tuned()
        {
            merge.add(format!("files beside {name}"), content(beside)?);
        }
        merge.add(format!("weight of {name}"), adapter.weight.to_string());
        let config = serde_json::Value::Object(adapter.config.json.clone());
        merge.add(format!("configuration of {name}"), text_hash(&config.to_string()));
    }
    if let Some(original) = &inputs.original {
        merge.add("original", large(&original.checkpoint)?);
    }
    if let Some(calibration) = calibration {
        merge.add(CALIBRATION, calibration);
    }
    merge.add("format", &plan.output_format);
    merge.add("rounding", plan.rounding.id());
    merge.add("seed", plan.seed.to_string());
    if let Some(rank) = plan.residual_rank {
        merge.add("rank of the residual adapter", rank.to_string());
    }
    for (number, map) in plan.maps.iter().enumerate() {
        merge.add(format!("rule {} on names", number + 1), map);
    }
    merge.add("base is residual", plan.read.base_is_residual.to_string());
    merge.add("PEFT's bugs", plan.read.peft_bugs.to_string());
    for (number, rule) in plan.read.scales.rules().enumerate() {
        merge.add(format!("rule {} on factors", number + 1), rule);
    }
    if inputs.adapters.iter().any(Adapter::is_tuned) {
        merge.add("how task vectors are joined", format!("{:?}", plan.read.joining));
    }
    merge.add("tokenizer", if plan.tokenizer == Tokenizer::Base { "the base's" } else { "the adapter's" });
    let mut text = String::new();
    for file in &plan.files {
        let _ = writeln!(text, "{file:?}");
        if plan.is_export {
            // Its keys, which hold the tokenizer.
            let (header, _) = file.header(&std::collections::HashMap::new());
            merge.add("what the output says of itself", hex(Sha256::digest(header)));
            for (name, bytes) in &plan.beside {
                merge.add(name, hex(Sha256::digest(bytes)));
            }
        }
    }
    merge.add(LAYOUT, text_hash(&text));
    text.clear();
    for step in &plan.steps {
        match &step.action {
            Action::Recode(recode) => drop(writeln!(text, "{} {recode:?}", step.name)),
            Action::Constant(constant) => drop(writeln!(text, "{constant:?}")),
            Action::Copy { .. } => {}
        }
    }
    merge.add(CHANGES, text_hash(&text));
    Ok(merge)
}

/// Knows a checkpoint again without reading all of it. The paths are left out: they say nothing of the content.
fn large(checkpoint: &Checkpoint) -> Result<String> {
    // Over a network the first bytes of each tensor are a request for each.
    let is_known = checkpoint.files.iter().all(|file| file.is_known_by_content());
    let mut text = if is_known { String::new() } else { identity(checkpoint)? };
    for file in &checkpoint.files {
        let _ = writeln!(text, " {}", file.identity());
    }
    Ok(text_hash(&text))
}

fn text_hash(text: &str) -> String {
    hex(Sha256::digest(text.as_bytes()))
}
