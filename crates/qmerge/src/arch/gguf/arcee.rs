//! Arcee: Llama with squared ReLUs and no gate.

use super::layout::{Defaults, Layout};
use super::llama::LLAMA;
use crate::open::gguf::Ways;

pub(super) const ARCEE: Layout = Layout {
    architecture: "arcee",
    model_types: &["arcee"],
    class: "ArceeForCausalLM",
    without: &["ffn_gate", "attn_q_norm", "attn_k_norm"],
    biased: &["attn_q", "attn_k", "attn_v"],
    ways: Ways { pre: Some("llama-bpe"), ..LLAMA.ways },
    defaults: Defaults { eps: 1e-5, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};
