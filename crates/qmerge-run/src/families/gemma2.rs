//! Gemma 2: norms before and after each block, soft caps, a window in every second layer, scaled embeddings.

use qmerge::error::Result;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::{Activation, Norm, Norms, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["gemma2"], spec };

pub(super) const NORMS: Norms = Norms {
    attention_in: Some("input_layernorm"),
    attention_out: Some("post_attention_layernorm"),
    feed_forward_in: Some("pre_feedforward_layernorm"),
    feed_forward_out: Some("post_feedforward_layernorm"),
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let llama = llama::spec(fields)?;
    let mut spec = Spec {
        norm: Norm::RmsPlusOne,
        norms: NORMS,
        attention_scale: (1.0 / fields.above_zero("query_pre_attn_scalar", 256.0)?.sqrt()) as f32,
        attention_cap: fields.above_zero_if("attn_logit_softcapping")?.map(|cap| cap as f32),
        logit_cap: fields.above_zero_if("final_logit_softcapping")?.map(|cap| cap as f32),
        embed_scale: (llama.hidden as f32).sqrt(),
        activation: Activation::read(fields, "hidden_activation")?,
        ..llama
    };
    let window = fields.positive_if("sliding_window")?;
    let layers = spec.layers.len();
    let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 0).collect());
    for (layer, _) in spec.layers.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
        layer.window = window;
    }
    Ok(spec)
}
