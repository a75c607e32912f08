//! Adapters that are recognised and refused, each with its reason.

use super::ADAPTERS;
use crate::error::{Error, unsupported};

/// Kinds that put something before or around the model, so that no weight could hold their effect.
const NO_WEIGHTS: &[(&str, &str)] = &[
    ("PROMPT_TUNING", "it adds virtual tokens to the input"),
    ("MULTITASK_PROMPT_TUNING", "it adds virtual tokens to the input"),
    ("PREFIX_TUNING", "it adds keys and values to the attention's cache"),
    ("P_TUNING", "it adds virtual tokens to the input"),
    ("ADAPTION_PROMPT", "it adds gated prompts to the attention"),
    ("CPT", "it adds virtual tokens to the input"),
    ("CARTRIDGE", "it adds keys and values to the attention's cache"),
    ("XLORA", "it mixes adapters anew for every input"),
    ("POLY", "it mixes adapters by task"),
    ("LILY", "it routes each input through a mixture of adapters"),
    ("SHADOW", "it runs a network beside the model"),
];

/// Kinds of PEFT 0.21 that could be merged, but not by this version.
const LATER: &[&str] = &[
    "WAVEFT",
    "UNILORA",
    "TINYLORA",
    "FROD",
    "GLORA",
    "PEANUT",
    "DEFT",
    "ADAMSS",
    "BEFT",
    "SUPERTUNING",
    "PSOFT",
    "OSF",
];

/// The error for a `peft_type` that has no method.
pub(super) fn by_type(peft_type: &str) -> Error {
    let known: Vec<_> = ADAPTERS.iter().map(|method| method.peft_type()).collect();
    if let Some((_, reason)) = NO_WEIGHTS.iter().find(|(name, _)| *name == peft_type) {
        return unsupported(format!(
            "a {peft_type} adapter cannot be merged: {reason}, so no weight can hold its effect"
        ))
        .with_hint("serve the base with the adapter kept apart");
    }
    if LATER.contains(&peft_type) {
        return unsupported(format!(
            "{peft_type} adapters are not supported by this version (it merges {})",
            known.join(", ")
        ))
        .with_hint("PEFT's convert_to_lora turns many kinds into an ordinary LoRA");
    }
    unsupported(format!("`{peft_type}` is not a peft_type of PEFT (this version merges {})", known.join(", ")))
}
