//! Which matrices are linear layers, told by their names: what loaders replace by quantized layers, and what they do not.
//!
//! The rule is positive: a matrix whose name is none of these stays plain. Source: `torch.nn.Linear` and `Conv1D` modules of transformers 5.23, family by
//! family, and what its bitsandbytes quantizer leaves out.

use super::leaf_in;

/// Last components of modules that are linear layers.
const LINEAR: &[&str] = &[
    "query",
    "key",
    "value",
    "receptance",
    "dense",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "query_key_value",
    "attention_output",
    "out_lin",
    "q_lin",
    "k_lin",
    "v_lin",
    "lin1",
    "lin2",
    "merging_layer",
    "shared_expert_gate",
    "embedding_hidden_mapping_in",
    "visual_projection",
    "q",
    "k",
    "v",
    "o",
    "wq",
    "wk",
    "wv",
    "wo",
    "wqkv",
    "wi",
    "wi_0",
    "wi_1",
    "w1",
    "w2",
    "w3",
    "Wi",
    "Wo",
    "Wqkv",
    "gate_up",
    "qkv",
    "kv",
    "c_attn",
    "c_fc",
    "q_attn",
    "lora_a",
    "lora_b",
    "dt_proj",
    "x_proj",
    "in_proj_qkvz",
    "in_proj_ba",
    "in_proj_qkv",
    "in_proj_a",
    "in_proj_b",
    "in_proj_z",
    "kv_a_proj_with_mqa",
    "kv_b_proj",
    "q_a_proj",
    "q_b_proj",
    "ffn_layernorm_proj",
];

/// What linear layers' last components begin or end with.
const BEGINNINGS: &[&str] = &["fc", "linear"];
const ENDINGS: &[&str] = &["proj", "linear"];

/// Last components of routers: linear in their arithmetic, but no linear layers to a loader, or layers that it keeps.
const ROUTERS: &[&str] = &["gate", "router", "wg"];

/// Heads of classifiers and of sequences, which stay as they are.
const HEADS: &[&str] = &[
    "text_projection",
    "contact_head",
    "score",
    "classifier",
    "qa_outputs",
    "seq_relationship",
    "pooler",
    "summary",
    "v_head",
    "pre_classifier",
    "classification_head",
];

/// Ends of module paths that loaders leave alone, since a family's class keeps them in 32 bits (`_keep_in_fp32_modules`) or for another reason, with the families.
const KEPT: &[(&[&str], &[&str])] = &[
    // Its linear layers are of a class of their own, which no loader replaces.
    (&["falcon"], &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
    (
        &[
            "t5",
            "mt5",
            "umt5",
            "longt5",
            "switch_transformers",
            "pix2struct",
            "pop2piano",
            "udop",
            "instructblip",
            "t5gemma",
        ],
        &["wo"],
    ),
    (&["deepseek_v32", "deepseek_v4", "glm_moe_dsa", "axk2", "mistral_large4"], &["indexer.weights_proj"]),
    (&["blip-2", "blip_2"], &["query_tokens"]),
];

/// What a two-dimensional weight is to a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A linear layer that a loader would quantize.
    Linear,
    /// A matrix that stays plain, and must be named where a loader is told what stays so.
    Kept,
    /// The same, by a name that says nothing.
    Unknown,
}

/// The role of the module at that path.
pub(crate) fn role(model_type: &str, module: &str) -> Role {
    let leaf = module.rsplit('.').next().unwrap_or(module);
    let parent = module.rsplit('.').nth(1).unwrap_or_default();
    let ends = |end: &&str| module == *end || module.strip_suffix(*end).is_some_and(|before| before.ends_with('.'));
    let kept = KEPT.iter().any(|(families, modules)| families.contains(&model_type) && modules.iter().any(ends));
    let is_router = leaf_in(module, ROUTERS) || parent == "router" || parent == "gate";
    let part_of = |names: &[&str]| module.split('.').any(|part| names.contains(&part));
    if kept || is_router || part_of(HEADS) || module.contains(".experts.") || module.contains("norm") {
        return Role::Kept;
    }
    let numbered = !leaf.is_empty() && leaf.bytes().all(|byte| byte.is_ascii_digit());
    let known = LINEAR.contains(&leaf)
        || BEGINNINGS.iter().any(|start| leaf.starts_with(start))
        || ENDINGS.iter().any(|end| leaf.ends_with(end))
        // A layer in a row of modules; what else has two dimensions there is rare.
        || numbered && ["mlp", "merger", "mm_projector", "mlp1", "projector", "proj", "net", "ffn"].contains(&parent)
        // RWKV's and BERT's, but not a head by that name.
        || leaf == "output" && !parent.is_empty();
    if known { Role::Linear } else { Role::Unknown }
}
