//! What most decoder families share; the row for a family that has none of its own.

use super::{Arch, Experts};

/// Names of input embeddings across families.
pub(super) const EMBED: &[&str] = &[
    "model.embed_tokens",
    "model.language_model.embed_tokens",
    "language_model.model.embed_tokens",
    "transformer.wte",
    "wte",
    "transformer.word_embeddings",
    "gpt_neox.embed_in",
    "model.tok_embeddings",
    "model.decoder.embed_tokens",
    "shared",
];

/// Names of output embeddings across families.
pub(super) const HEAD: &[&str] = &["lm_head", "language_model.lm_head", "model.lm_head", "embed_out", "output"];

/// Two-dimensional weights that are tables, norms or convolutions rather than linear layers.
pub(super) const NOT_LINEAR: &[&str] = &[
    "embed_tokens",
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
    "conv1d",
];

/// Names that moved between releases, and prefixes that a saved model may carry or lack.
pub(super) const RENAMES: &[(&str, &str)] = &[
    ("model.language_model.", "language_model.model."),
    ("language_model.model.", "model.language_model."),
    ("model.language_model.model.", "model.language_model."),
    ("model.language_model.model.", "language_model.model."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.", "model.vision_tower."),
    ("model.visual.", "visual."),
    ("visual.", "model.visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("language_model.lm_head.", "lm_head."),
    (".mlp.experts.", ".block_sparse_moe.experts."),
    (".block_sparse_moe.experts.", ".mlp.experts."),
    (".mlp.gate.", ".block_sparse_moe.gate."),
    (".block_sparse_moe.gate.", ".mlp.gate."),
    ("model.", ""),
    ("", "model."),
    ("transformer.", ""),
    ("", "transformer."),
];

/// Per-expert matrices under `mlp.experts.N`, as most families store them.
pub(super) const EXPERTS: Experts = Experts {
    modules: &["mlp.experts", "feed_forward.experts", "block_sparse_moe.experts", "experts"],
    each: ["gate_proj", "up_proj", "down_proj"],
    stacked: ["gate_up_proj", "down_proj"],
    in_out: false,
    is_transposed: false,
    interleaved: false,
};

pub(super) const ARCH: Arch = Arch {
    model_types: &[],
    embed: EMBED,
    head: HEAD,
    transposed: &[],
    not_linear: NOT_LINEAR,
    experts: Some(EXPERTS),
    renames: RENAMES,
};
