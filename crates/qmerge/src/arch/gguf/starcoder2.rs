//! StarCoder 2: layer norms, biases everywhere, and no gate.

use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::{HEADS_FILL, NORM_BIASES, OUTPUT_BIASES};
use crate::open::gguf::Ways;

pub(super) const STARCODER2: Layout = Layout {
    architecture: "starcoder2",
    model_types: &["starcoder2"],
    class: "Starcoder2ForCausalLM",
    inside: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
    without: &["ffn_gate", "attn_q_norm", "attn_k_norm"],
    bias_field: None,
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"],
    needs: &[NORM_BIASES, OUTPUT_BIASES],
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("starcoder"), ..PLAIN.ways },
    defaults: Defaults { eps_field: "norm_epsilon", eps: 1e-5, ..PLAIN.defaults },
    ..PLAIN
};
