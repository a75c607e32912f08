//! Gemma 2: norms before and after each block, soft caps, a window in every second layer, scaled embeddings.

use super::decoder::Decoder;
use super::spec::{Activation, Norm, Norms, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["gemma2"], spec: Some(spec), ..generic::ARCH };

pub(super) const NORMS: Norms = Norms {
    mixer_in: Some("input_layernorm"),
    mixer_out: Some("post_attention_layernorm"),
    feed_forward_in: Some("pre_feedforward_layernorm"),
    feed_forward_out: Some("post_feedforward_layernorm"),
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut gemma = read(fields)?;
    let window = fields.positive_if("sliding_window")?;
    let layers = gemma.attention.len();
    let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 0).collect());
    gemma.slide(window, sliding);
    Ok(gemma.into())
}

/// All but the windows.
pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut gemma = llama::read(fields)?;
    let scale = (1.0 / fields.above_zero("query_pre_attn_scalar", 256.0)?.sqrt()) as f32;
    let cap = fields.above_zero_if("attn_logit_softcapping")?.map(|cap| cap as f32);
    for attention in &mut gemma.attention {
        (attention.scale, attention.cap) = (scale, cap);
    }
    gemma.norms = NORMS;
    gemma.spec.norm = Norm::RmsPlusOne;
    gemma.spec.logit_cap = fields.above_zero_if("final_logit_softcapping")?.map(|cap| cap as f32);
    gemma.spec.embed_scale = (gemma.spec.hidden as f32).sqrt();
    gemma.feed_forward.activation = Activation::read_or(fields, "hidden_activation", Activation::GeluTanh)?;
    Ok(gemma)
}
