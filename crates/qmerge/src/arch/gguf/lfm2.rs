//! LFM 2: short convolutions in most layers, attention in the others.

use serde_json::Value;

use super::hyperparameters::{Model, Said};
use super::join::{Join, whole};
use super::layout::{Defaults, Layout};
use super::llama::PLAIN;
use super::wants::HEADS_FILL;
use super::weave::Dims;
use super::{HEAD, Names};
use crate::error::Result;
use crate::open::gguf::Ways;

const OUTSIDE: Names =
    &[("token_embd", "model.embed_tokens"), ("token_embd_norm", "model.embedding_norm"), (HEAD, "lm_head")];

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
    joins: &[Join::split("conv.conv.weight", &[("shortconv.conv.weight", false)], Dims::Convolution, whole)],
    bias_field: None,
    wired: &[HEADS_FILL],
    ways: Ways { pre: Some("lfm2"), ..PLAIN.ways },
    say,
    defaults: Defaults { eps_field: "norm_eps", eps: 1e-5, theta: 1_000_000.0, ..PLAIN.defaults },
    ..PLAIN
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    said.common(model)?;
    let types = fields.by_layer("layer_types", model.layers)?.unwrap_or_default();
    let attends = |layer: usize| match (types.get(layer), fields.list("full_attn_idxs")) {
        (Some(kind), _) => kind.as_str() != Some("conv"),
        (None, Ok(Some(listed))) => listed.contains(&Value::from(layer)),
        (None, _) => true,
    };
    let kv_heads: Vec<usize> = (0..model.layers).map(|layer| if attends(layer) { model.kv_heads } else { 0 }).collect();
    said.counts("attention.head_count_kv", &kv_heads);
    said.count("vocab_size", model.tokens);
    said.count("shortconv.l_cache", fields.positive_if("conv_L_cache")?.unwrap_or(3));
    said.count("feed_forward_length", width(model)?);
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
