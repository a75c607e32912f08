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

/// Kinds whose files leave out what decides what the adapter does, why it cannot be found again, and what to do.
const NOT_IN_FILE: &[(&str, &str, &str)] = &[
    (
        "PSOFT",
        "it turns singular vectors of the base, of which it knows no signs: libraries find other ones, LAPACKs among themselves and a GPU's, and the rotation was trained for some",
        "let PEFT turn it into an ordinary LoRA (`convert_to_lora`) on the kind of device that trained it, and merge that",
    ),
    (
        "ADAMSS",
        "which outputs its factors are for was found by scikit-learn's k-means, on a random decomposition of the base, when training began",
        "let PEFT merge it where it was trained",
    ),
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
    if let Some((_, reason, remedy)) = NOT_IN_FILE.iter().find(|(name, ..)| *name == peft_type) {
        return unsupported(format!("what a {peft_type} adapter does is not in its file: {reason}")).with_hint(*remedy);
    }
    unsupported(format!("`{peft_type}` is not a peft_type of PEFT (this version merges {})", known.join(", ")))
}
