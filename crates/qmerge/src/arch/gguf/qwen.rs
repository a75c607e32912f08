//! Qwen 2 and 3, with and without experts.

use super::join::{Join, halves, whole};
use super::layout::{Defaults, Head, Layout};
use super::llama::{DENSE, PLAIN};
use super::wants::{HEADS_FILL, OWN_HEAD};
use super::weave::Dims;
use super::{ROUTER, mlx};

pub(super) const QWEN2: Layout = Layout {
    architecture: "qwen2",
    model_types: &["qwen2"],
    class: "Qwen2ForCausalLM",
    bias_field: None,
    wired: &[HEADS_FILL],
    is_large: |_, _| true,
    ..PLAIN
};

/// Qwen 3's heads are wider than their share.
const OF_QWEN3: Defaults = Defaults { head: Head::Of(128), ..PLAIN.defaults };

pub(super) const QWEN3: Layout =
    Layout { architecture: "qwen3", model_types: &["qwen3"], class: "Qwen3ForCausalLM", defaults: OF_QWEN3, ..PLAIN };

const GATE: (&str, &str) = (ROUTER, "mlp.gate");

/// Experts one by one.
pub(super) const EXPERTS: Option<(&str, [&str; 3])> = Some(("mlp.experts", ["gate_proj", "up_proj", "down_proj"]));

/// Experts of folders that have them in stacks, gate above up.
pub(super) const STACKED: [Join; 2] = [
    Join::split(
        "mlp.experts.gate_up_proj",
        &[("ffn_gate_exps.{}.weight", false), ("ffn_up_exps.{}.weight", false)],
        Dims::Stack,
        halves,
    )
    .only_made(),
    Join::split("mlp.experts.down_proj", &[("ffn_down_exps.{}.weight", false)], Dims::Stack, whole).only_made(),
];

/// What serves all tokens.
pub(super) const SHARED: [(&str, &str); 4] = [
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
];

/// Those, and the stacks of mlx_lm.
pub(super) const STACKED_BY_ANY: &[Join] = &[STACKED[0], STACKED[1], mlx::IN_MLP[0], mlx::IN_MLP[1], mlx::IN_MLP[2]];

const OF_EXPERTS: Layout = Layout { experts: EXPERTS, joins: STACKED_BY_ANY, without: DENSE, ..PLAIN };

pub(super) const QWEN2_MOE: Layout = Layout {
    architecture: "qwen2moe",
    model_types: &["qwen2_moe"],
    class: "Qwen2MoeForCausalLM",
    inside: &[GATE, SHARED[0], SHARED[1], SHARED[2], SHARED[3]],
    needs: &[OWN_HEAD],
    wired: &[HEADS_FILL],
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
