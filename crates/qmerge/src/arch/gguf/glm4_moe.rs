//! GLM 4.5 to 4.7.

use super::ROUTER;
use super::deepseek::CORRECTION;
use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const GLM4_MOE: Layout = Layout {
    architecture: "glm4moe",
    model_types: &["glm4_moe", "glm4v_moe_text"],
    class: "Glm4MoeForCausalLM",
    inside: &[
        ("post_attention_norm", "post_attention_layernorm"),
        (ROUTER, "mlp.gate"),
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ],
    without: &["ffn_norm"],
    experts: Some(("mlp.experts", ["gate_proj", "up_proj", "down_proj"])),
    joins: &[CORRECTION],
    biased: &["attn_q", "attn_k", "attn_v", "exp_probs_b"],
    ways: Ways {
        pre: Some("glm4"),
        named: &[("bos", "[gMASK]"), ("eot", "<|user|>"), ("unknown", "<|endoftext|>"), ("eom", "<|observation|>")],
        ..PLAIN.ways
    },
    say,
    defaults: Defaults { groups: Some((1, 1)), eps: 1e-5, share: 0.5, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    said.count("rope.dimension_count", model.turned_of_head()?);
    said.count("expert_feed_forward_length", fields.count("moe_intermediate_size")?);
    said.count("expert_shared_count", fields.count_if("n_shared_experts")?.unwrap_or(1));
    said.count("leading_dense_block_count", fields.count_if("first_k_dense_replace")?.unwrap_or(1));
    said.count("expert_gating_func", 2);
    said.float("expert_weights_scale", fields.number("routed_scaling_factor", 1.0)?);
    said.flag("expert_weights_norm", fields.flag("norm_topk_prob", true)?);
    Ok(())
}
