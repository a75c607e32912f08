//! SmolLM 3.

use super::layout::{Defaults, Head, Layout};
use super::llama::LLAMA;
use crate::open::gguf::Ways;

pub(super) const SMOLLM3: Layout = Layout {
    architecture: "smollm3",
    model_types: &["smollm3"],
    class: "SmolLM3ForCausalLM",
    biased: &["attn_q", "attn_k", "attn_v"],
    ways: Ways { pre: Some("smaug-bpe"), ..LLAMA.ways },
    defaults: Defaults { head: Head::Unsaid, theta: 2_000_000.0, ..LLAMA.defaults },
    is_large: |_, _| false,
    ..LLAMA
};
