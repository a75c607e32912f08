//! Seed-OSS.

use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use crate::open::gguf::Ways;

pub(super) const SEED_OSS: Layout = Layout {
    architecture: "seed_oss",
    model_types: &["seed_oss"],
    class: "SeedOssForCausalLM",
    inside: &[("post_attention_norm", "post_attention_layernorm")],
    without: &["ffn_norm", "attn_q_norm", "attn_k_norm"],
    // Both of its values are said where the keys are read.
    bias_field: None,
    ways: Ways { pre: Some("seed-coder"), ..PLAIN.ways },
    defaults: Defaults { head: Head::Of(128), ..PLAIN.defaults },
    ..PLAIN
};
