//! LFM 2: short convolutions in most layers, attention in the others; with and without experts.

use serde_json::Value;

use super::hyperparameters::{Model, Said};
use super::join::{Join, whole};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::HEADS_FILL;
use super::weave::Dims;
use super::{HEAD, Names, ROUTER};
use crate::error::Result;
use crate::open::gguf::Ways;

const OUTSIDE: Names =
    &[("token_embd", "model.embed_tokens"), ("token_embd_norm", "model.embedding_norm"), (HEAD, "lm_head")];

const CONVOLUTION: Join =
    Join::split("conv.conv.weight", &[("shortconv.conv.weight", false)], Dims::Convolution, whole);

pub(super) const LFM2: Layout = Layout {
    architecture: "lfm2",
    model_types: &["lfm2"],
    class: "Lfm2ForCausalLM",
    outside: OUTSIDE,
    common: &[
        ("attn_norm", "operator_norm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.out_proj"),
        ("attn_q_norm", "self_attn.q_layernorm"),
        ("attn_k_norm", "self_attn.k_layernorm"),
        ("shortconv.in_proj", "conv.in_proj"),
        ("shortconv.out_proj", "conv.out_proj"),
        ("ffn_norm", "ffn_norm"),
        ("ffn_gate", "feed_forward.w1"),
        ("ffn_up", "feed_forward.w3"),
        ("ffn_down", "feed_forward.w2"),
    ],
    joins: &[CONVOLUTION],
    bias_field: None,
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("lfm2"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps_field: "norm_eps", eps: 1e-5, theta: 1_000_000.0, ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const LFM2_MOE: Layout = Layout {
    architecture: "lfm2moe",
    model_types: &["lfm2_moe"],
    class: "Lfm2MoeForCausalLM",
    inside: &[(ROUTER, "feed_forward.gate")],
    experts: Some(("feed_forward.experts", ["w1", "w3", "w2"])),
    joins: &[CONVOLUTION, Join::renamed("feed_forward.expert_bias", &[("exp_probs_b.bias", false)])],
    biased: &["attn_q", "attn_k", "attn_v", "exp_probs_b"],
    needs: &[&["blk.+.exp_probs_b.bias"]],
    say: mixture,
    ..LFM2
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    said.common(model)?;
    mixers(said, model)?;
    said.count("vocab_size", model.tokens);
    said.count("shortconv.l_cache", model.fields.positive_if("conv_L_cache")?.unwrap_or(3));
    said.count("feed_forward_length", width(model)?);
    Ok(())
}

fn mixture(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    // llama.cpp has these for all models.
    if !fields.flag("norm_topk_prob", true)? {
        return Err(fields.unsaid("norm_topk_prob", &false.into()));
    }
    if let Some(scale) = fields.get("routed_scaling_factor").filter(|scale| scale.as_f64() != Some(1.0)) {
        return Err(fields.unsaid("routed_scaling_factor", scale));
    }
    said.common(model)?;
    mixers(said, model)?;
    said.count("expert_feed_forward_length", fields.count("moe_intermediate_size")?);
    said.count("leading_dense_block_count", fields.count_if("num_dense_layers")?.unwrap_or(2));
    said.count("expert_gating_func", 2);
    said.count("vocab_size", model.tokens);
    said.count("shortconv.l_cache", fields.positive_if("conv_L_cache")?.unwrap_or(3));
    Ok(())
}

/// Which layers have attention: those of keys.
fn mixers(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let types = fields.by_layer("layer_types", model.layers)?.unwrap_or_default();
    let attends = |layer: usize| match (types.get(layer), fields.list("full_attn_idxs")) {
        (Some(kind), _) => kind.as_str() != Some("conv"),
        (None, Ok(Some(listed))) => listed.contains(&Value::from(layer)),
        (None, _) => true,
    };
    let kv_heads: Vec<usize> = (0..model.layers).map(|layer| if attends(layer) { model.kv_heads } else { 0 }).collect();
    said.counts("attention.head_count_kv", &kv_heads);
    Ok(())
}

/// The width of a feed-forward: what is given, or two thirds of it, scaled and rounded up.
fn width(model: &Model<'_>) -> Result<usize> {
    let fields = &model.fields;
    let given = fields.positive_if("block_ff_dim")?.unwrap_or(model.width);
    if !fields.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(given);
    }
    let scaled = (2 * given / 3) as f64 * fields.above_zero("block_ffn_dim_multiplier", 1.0)?;
    Ok((scaled as usize).min(1 << 24).next_multiple_of(fields.positive_if("block_multiple_of")?.unwrap_or(256)))
}
