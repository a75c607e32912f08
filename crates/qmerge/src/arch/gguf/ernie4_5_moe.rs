//! ERNIE 4.5 with experts, which are chosen with a correction, in the layers behind the first.

use super::ROUTER;
use super::ernie4_5::ERNIE4_5;
use super::hyperparameters::{Model, Said};
use super::join::{Join, whole};
use super::layout::{Defaults, Head, Layout};
use super::qwen::EXPERTS;
use super::weave::Dims;
use crate::error::Result;

pub(super) const ERNIE4_5_MOE: Layout = Layout {
    architecture: "ernie4_5-moe",
    model_types: &["ernie4_5_moe"],
    class: "Ernie4_5_MoeForCausalLM",
    inside: &[
        (ROUTER, "mlp.gate"),
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ],
    experts: EXPERTS,
    joins: &[Join::split("mlp.moe_statics.e_score_correction_bias", &[("exp_probs_b.bias", false)], Dims::Row, whole)],
    biased: &["attn_q", "attn_k", "attn_v", "attn_output", "exp_probs_b"],
    needs: &[&["blk.+.ffn_gate_inp.weight"]],
    stacks_as_named: true,
    say,
    defaults: Defaults { head: Head::Unsaid, ..ERNIE4_5.defaults },
    ..ERNIE4_5
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    said.last("expert_count", fields.count_of(&["moe_num_experts", "num_experts"])?);
    said.last("expert_used_count", fields.count_of(&["moe_k", "num_experts_per_tok"])?);
    said.count("interleave_moe_layer_step", fields.positive_if("moe_layer_interval")?.unwrap_or(1));
    said.count("leading_dense_block_count", fields.count_if("moe_layer_start_index")?.unwrap_or(1));
    let width = fields.count("moe_intermediate_size")?;
    said.count("expert_feed_forward_length", width);
    let shared = fields.count_if("moe_num_shared_experts")?.unwrap_or(2);
    said.count("expert_shared_count", shared);
    if shared > 0 {
        said.count("expert_shared_feed_forward_length", shared.saturating_mul(width));
    }
    let last = fields.number("moe_layer_end_index", -1.0)?;
    if let Some(value) = fields.get("moe_layer_end_index").filter(|_| last != -1.0 && last + 1.0 != model.layers as f64)
    {
        return Err(fields.unsaid("moe_layer_end_index", value));
    }
    Ok(())
}
