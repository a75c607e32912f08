//! Qwen 2 and 3, with and without experts.

use super::ROUTER;
use super::layout::{Defaults, Head, Layout};
use super::llama::{DENSE, PLAIN};

pub(super) const QWEN2: Layout = Layout {
    architecture: "qwen2",
    model_types: &["qwen2"],
    class: "Qwen2ForCausalLM",
    bias_field: None,
    is_large: |_, _| true,
    ..PLAIN
};

/// Qwen 3's heads are wider than their share.
const OF_QWEN3: Defaults = Defaults { head: Head::Of(128), ..PLAIN.defaults };

pub(super) const QWEN3: Layout =
    Layout { architecture: "qwen3", model_types: &["qwen3"], class: "Qwen3ForCausalLM", defaults: OF_QWEN3, ..PLAIN };

const GATE: (&str, &str) = (ROUTER, "mlp.gate");

const OF_EXPERTS: Layout =
    Layout { experts: Some(("mlp.experts", ["gate_proj", "up_proj", "down_proj"])), without: DENSE, ..PLAIN };

pub(super) const QWEN2_MOE: Layout = Layout {
    architecture: "qwen2moe",
    model_types: &["qwen2_moe"],
    class: "Qwen2MoeForCausalLM",
    inside: &[
        GATE,
        ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
        ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
        ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ],
    ..OF_EXPERTS
};

pub(super) const QWEN3_MOE: Layout = Layout {
    architecture: "qwen3moe",
    model_types: &["qwen3_moe"],
    class: "Qwen3MoeForCausalLM",
    inside: &[GATE],
    defaults: OF_QWEN3,
    ..OF_EXPERTS
};
