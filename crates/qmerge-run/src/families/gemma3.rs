//! Gemma 3 (text): Gemma 2 with norms of queries and keys, no caps by default, and another rope in the layers with a window.

use qmerge::error::Result;

use super::{Family, gemma2, llama};
use crate::fields::Fields;
use crate::rope::Rope;
use crate::spec::{Activation, Norm, QkNorm, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["gemma3_text", "gemma3"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let llama = llama::spec(fields)?;
    let full = Rope::read(fields, llama.head_dim, Some("full_attention"), 1_000_000.0)?;
    let local = match fields.get("rope_parameters") {
        Some(_) => Rope::read(fields, llama.head_dim, Some("sliding_attention"), 10_000.0)?,
        None => Rope::plain(fields, llama.head_dim, fields.above_zero("rope_local_base_freq", 10_000.0)?)?,
    };
    let mut spec = Spec {
        norm: Norm::RmsPlusOne,
        norms: gemma2::NORMS,
        qk_norm: QkNorm::PerHead,
        attention_scale: (1.0 / fields.above_zero("query_pre_attn_scalar", 256.0)?.sqrt()) as f32,
        attention_cap: fields.above_zero_if("attn_logit_softcapping")?.map(|cap| cap as f32),
        logit_cap: fields.above_zero_if("final_logit_softcapping")?.map(|cap| cap as f32),
        embed_scale: (llama.hidden as f32).sqrt(),
        activation: Activation::read(fields, "hidden_activation")?,
        ropes: vec![full, local],
        ..llama
    };
    let window = fields.positive_if("sliding_window")?;
    let pattern = fields.positive_if("sliding_window_pattern")?.unwrap_or(6);
    let layers = spec.layers.len();
    let sliding = fields.sliding(layers)?.unwrap_or_else(|| (1..=layers).map(|n| n % pattern != 0).collect());
    for (layer, _) in spec.layers.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
        layer.window = window;
        layer.rope = Some(1);
    }
    Ok(spec)
}
