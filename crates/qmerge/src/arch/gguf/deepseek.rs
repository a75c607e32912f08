//! DeepSeek 2 and 3: latent attention, whose keys and values are made of a few features. The matrix that makes them lies in two tensors, head by head, since llama.cpp multiplies queries with
//! that of keys instead: it is turned there. Files from before that have it as the model does, and are read, not made.

use super::glm4_moe::GLM4_MOE;
use super::hyperparameters::{Model, Said};
use super::join::{Counts, Join};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::weave::{Dims, Order, Split};
use super::{Names, ROUTER};
use crate::error::Result;

pub(super) const DEEPSEEK2: Layout = Layout {
    architecture: "deepseek2",
    model_types: &["deepseek_v2"],
    class: "DeepseekV2ForCausalLM",
    inside: INSIDE,
    experts: Some(("mlp.experts", ["gate_proj", "up_proj", "down_proj"])),
    joins: &[KEYS_AND_VALUES, CORRECTION],
    biased: &["exp_probs_b"],
    say: second,
    // The width is told from others.
    defaults: Defaults { head: Head::Of(1), ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const DEEPSEEK3: Layout = Layout {
    model_types: &["deepseek_v3"],
    class: "DeepseekV3ForCausalLM",
    say: third,
    defaults: Defaults { groups: Some((8, 4)), ..DEEPSEEK2.defaults },
    ..DEEPSEEK2
};

/// GLM 4.7 Flash, whose tokenizer is GLM's.
pub(super) const GLM4_MOE_LITE: Layout = Layout {
    model_types: &["glm4_moe_lite"],
    class: "Glm4MoeLiteForCausalLM",
    say: lite,
    ways: GLM4_MOE.ways,
    defaults: Defaults { head: Head::Never, groups: Some((1, 1)), eps: 1e-5, ..DEEPSEEK2.defaults },
    ..DEEPSEEK2
};

const INSIDE: Names = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    (ROUTER, "mlp.gate"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

const KEYS_AND_VALUES: Join = Join::split(
    "self_attn.kv_b_proj.weight",
    &[("attn_k_b.weight", true), ("attn_v_b.weight", false)],
    Dims::Groups,
    by_head,
);

/// What is added to scores where experts are chosen by them.
pub(super) const CORRECTION: Join = Join::renamed("mlp.gate.e_score_correction_bias", &[("exp_probs_b.bias", false)]);

/// Of each head the rows of keys that no rope turns, and those of values.
fn by_head(counts: &Counts<'_>, _: usize) -> Option<Split> {
    let keys = counts.get("attention.key_length_mla")?.checked_sub(counts.get("rope.dimension_count")?)?;
    let values = counts.get("attention.value_length_mla")?;
    Some(Split { rows: vec![keys, values], order: Order::default() })
}

fn second(said: &mut Said, model: &Model<'_>) -> Result<()> {
    say(said, model, 2, 1.0, false)
}

fn third(said: &mut Said, model: &Model<'_>) -> Result<()> {
    say(said, model, 1, 2.5, true)?;
    // Its class has no other way to score experts, and transformers saves no word for it; without the key llama.cpp takes DeepSeek 2's.
    if model.fields.get("scoring_func").is_none() {
        said.count("expert_gating_func", 2);
    }
    Ok(())
}

fn lite(said: &mut Said, model: &Model<'_>) -> Result<()> {
    say(said, model, 1, 1.8, true)?;
    said.count("leading_dense_block_count", model.fields.leading_dense(model.layers)?);
    // llama.cpp takes a softmax for granted in models of another size than the published one.
    said.count("expert_gating_func", 2);
    Ok(())
}

/// Experts that serve all tokens, the factor on shares, and whether these are normalized, where a configuration does not say.
fn say(said: &mut Said, model: &Model<'_>, shared: usize, scale: f64, normalizes: bool) -> Result<()> {
    let fields = &model.fields;
    let [plain, turned, values] = ["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"].map(|key| fields.count(key));
    let (plain, turned, values, rank) = (plain?, turned?, values?, fields.count("kv_lora_rank")?);
    said.common(model)?;
    // llama.cpp's attention has one key, of all features that keys are made of.
    said.count("attention.head_count_kv", 1);
    said.count(
        "leading_dense_block_count",
        fields.count_if("first_k_dense_replace")?.unwrap_or(if normalizes { 3 } else { 0 }),
    );
    said.count("vocab_size", model.tokens);
    if let Some(rank) = fields.positive_if("q_lora_rank")? {
        said.count("attention.q_lora_rank", rank);
    }
    said.count("attention.kv_lora_rank", rank);
    said.count("attention.key_length", rank + turned);
    said.count("attention.value_length", rank);
    said.count("attention.key_length_mla", plain + turned);
    said.count("attention.value_length_mla", values);
    said.count("expert_feed_forward_length", fields.count("moe_intermediate_size")?);
    said.count("expert_shared_count", fields.count_if("n_shared_experts")?.unwrap_or(shared));
    said.float("expert_weights_scale", fields.number("routed_scaling_factor", scale)?);
    if fields.flag("norm_topk_prob", normalizes)? {
        said.flag("expert_weights_norm", true);
    }
    said.count("rope.dimension_count", turned);
    if let Some(all) = model.rope.number("mscale_all_dim") {
        if let Some(own) = model.rope.full.and_then(|rope| rope.get("mscale")).filter(|own| own.as_f64() != Some(all)) {
            return Err(fields.unsaid("mscale", own));
        }
        said.float("rope.scaling.yarn_log_multiplier", 0.1 * all);
    }
    Ok(())
}
