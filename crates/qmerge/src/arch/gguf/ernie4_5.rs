//! ERNIE 4.5.

use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use crate::open::gguf::Ways;

pub(super) const ERNIE4_5: Layout = Layout {
    architecture: "ernie4_5",
    model_types: &["ernie4_5"],
    class: "Ernie4_5ForCausalLM",
    bias_field: None,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output"],
    ways: Ways { says_space_last: true, ..PLAIN.ways },
    defaults: Defaults { head: Head::Of(128), eps: 1e-5, theta: 500_000.0, ..PLAIN.defaults },
    ..PLAIN
};
