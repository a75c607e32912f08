//! What most decoder families share; the row for a family that has none of its own.

use super::{Arch, Experts};

/// Names of output embeddings across families.
const HEAD: &[&str] = &["lm_head", "language_model.lm_head", "model.lm_head", "embed_out", "output"];

/// Two-dimensional weights that are tables, norms or convolutions rather than linear layers.
const NOT_LINEAR: &[&str] = &[
    "embed_tokens",
    "embed_tokens_per_layer",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "position_embedding",
    "embed_positions",
    "token_type_embeddings",
    "tok_embeddings",
    "embed_in",
    "shared",
    "relative_attention_bias",
    "tokens_embed",
    "positions_embed",
    "token_embedding",
    "embeddings",
    "pos_embed",
    "patch_position_embeddings",
    "conv1d",
];

/// Components around a language model. What stands behind them must be equal on both sides, so a vision tower or a block for predicting
/// further tokens never passes for a layer of the language model.
const WRAPPERS: &[&str] =
    &["model", "language_model", "text_model", "transformer", "llm", "vlm", "thinker", "gpt_neox"];

/// Names that moved between releases.
const RENAMES: &[(&str, &str)] = &[
    ("mlp.experts.", "block_sparse_moe.experts."),
    ("block_sparse_moe.experts.", "mlp.experts."),
    ("mlp.gate.", "block_sparse_moe.gate."),
    ("block_sparse_moe.gate.", "mlp.gate."),
    ("mlp.router.", "block_sparse_moe.gate."),
    ("block_sparse_moe.router.", "block_sparse_moe.router.layer."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower.vision_model."),
    // GPT-NeoX: transformers 5 says the first, files the second.
    ("lm_head.", "embed_out."),
    ("embed_out.", "lm_head."),
];

/// Per-expert matrices under `mlp.experts.N`, as most families store them.
pub(super) const EXPERTS: Experts = Experts {
    modules: &["mlp.experts", "feed_forward.experts", "block_sparse_moe.experts", "experts"],
    each: &["gate_proj", "up_proj", "down_proj"],
    stacked: ["gate_up_proj", "down_proj"],
    router: "gate",
    in_out: false,
    is_transposed: false,
    is_mistaken: false,
    interleaved: false,
    split_when_quantized: false,
};

pub(super) const ARCH: Arch = Arch {
    model_types: &[],
    ties: &[],
    head: HEAD,
    positions: None,
    layers: "layers",
    norm: "norm",
    transposed: &[],
    not_linear: NOT_LINEAR,
    experts: Some(EXPERTS),
    wrappers: WRAPPERS,
    renames: RENAMES,
    as_in_memory: None,
    is_composed: false,
    spec: None,
};
