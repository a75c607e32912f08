//! Adapters that are recognised and refused, each with its reason.

use super::{ADAPTERS, AdapterConfig, ReadOptions};
use crate::error::{Error, Result, unsupported};

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
    "ADALORA",
    "IA3",
    "LOHA",
    "LOKR",
    "OFT",
    "BOFT",
    "HRA",
    "VERA",
    "PVERA",
    "RANDLORA",
    "FOURIERFT",
    "WAVEFT",
    "LN_TUNING",
    "MISS",
    "C3A",
    "ROAD",
    "SHIRA",
    "HIRA",
    "GRALORA",
    "DELORA",
    "VBLORA",
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
    if peft_type == "BONE" {
        return unsupported("BONE adapters were renamed to MISS by PEFT, and are not supported by this version");
    }
    unsupported(format!("`{peft_type}` is not a peft_type of PEFT (this version merges {})", known.join(", ")))
}

/// Refuses the LoRA variants whose effect is not a fixed change of the stored base.
pub(super) fn lora_variants(config: &AdapterConfig, options: &ReadOptions) -> Result<()> {
    if config.is_set("alora_invocation_tokens") {
        return Err(unsupported(
            "an aLoRA acts only behind its invocation tokens, so no fixed weight can hold its effect",
        )
        .with_hint("serve the base with the adapter kept apart"));
    }
    if config.is_set("arrow_config") {
        return Err(unsupported(
            "an Arrow router mixes adapters anew for every token, so no fixed weight can hold its effect",
        ));
    }
    if config.is_set("use_qalora") {
        return Err(unsupported("a QA-LoRA pools its inputs by group; merging it is not supported (nor by PEFT)"));
    }
    if config.is_set("kasa_config") {
        return Err(unsupported(
            "KaSA cuts small singular values out of the base before adding; that is not supported by this version",
        ));
    }
    if config.is_set("layer_replication") {
        return Err(unsupported(
            "layer_replication lets several layers share one base weight, and each has its own adapter",
        )
        .with_hint("build the replicated model first and merge into that"));
    }
    let moves_base =
        config.init.as_deref().filter(|init| init.starts_with("pissa") || matches!(*init, "olora" | "corda" | "loftq"));
    if let Some(init) = moves_base.filter(|_| !options.base_is_residual) {
        return Err(unsupported(format!(
            "`init_lora_weights` is \"{init}\": training began by moving a part of the base into the adapter, so adding the \
             adapter to the original base would count that part twice"
        ))
        .with_hint(
            "if --base already is the residual model that training used, say so with --base-is-residual; else convert the \
             adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)",
        ));
    }
    Ok(())
}

/// Refuses what cannot be cut to a lower rank: adapters without factors, and factors that something else of the adapter depends on.
pub(super) fn uncuttable(config: &AdapterConfig, options: &ReadOptions) -> Result<()> {
    if config.peft_type != "LORA" {
        return Err(unsupported(format!("a {} adapter has no factors A and B to cut", config.peft_type))
            .with_hint("PEFT's convert_to_lora turns many kinds into an ordinary LoRA"));
    }
    if config.use_dora {
        return Err(unsupported(
            "a DoRA divides by the norms of base + A and B's product: a cut changes those norms, and with them the part of the output that is not the \
             adapter's, so no rank-by-rank cut is the best one",
        )
        .with_hint("serve it as it is, or merge it: a merge holds its whole effect"));
    }
    let others = [
        ("use_bdlora", "BD-LoRA keeps one factor block-diagonal, and a cut factor is not"),
        ("use_qalora", "QA-LoRA pools its inputs by group before A"),
        ("kasa_config", "KaSA scales its directions by values that stand outside A and B"),
        ("arrow_config", "Arrow routes by the singular vectors of A and B, which a cut changes"),
    ];
    if let Some((_, reason)) = others.iter().find(|(key, _)| config.is_set(key)) {
        return Err(unsupported(*reason));
    }
    let patterns = !config.rank_pattern.is_empty() || !config.alpha_pattern.is_empty();
    if patterns && !config.target_parameters.is_empty() {
        return Err(unsupported(
            "`target_parameters` with a rank_pattern or alpha_pattern: which parameter a factor belongs to does not stand in the file",
        ));
    }
    let moves_base =
        config.init.as_deref().filter(|init| init.starts_with("pissa") || matches!(*init, "olora" | "corda" | "loftq"));
    if let Some(init) = moves_base.filter(|_| !options.base_is_residual) {
        return Err(unsupported(format!(
            "`init_lora_weights` is \"{init}\": the adapter holds a part of the base, and a cut would take that away from the base too"
        ))
        .with_hint(
            "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…), or, if it is served beside the residual model that \
             training used, say so with --base-is-residual",
        ));
    }
    Ok(())
}
