//! Cohere (Command R): blocks side by side behind one layer norm without a bias, a rope over neighbours, scaled logits.

use super::decoder::Decoder;
use super::spec::{Norm, Order, Over, QkNorm, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["cohere"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut cohere = read(fields)?;
    if fields.flag("use_qk_norm", false)? {
        cohere.norm_queries_and_keys(QkNorm { over: Over::OwnHead, ..QkNorm::per_head(llama::QK_NORM) });
    }
    Ok(cohere.into())
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut cohere = llama::read(fields)?;
    cohere.interleave();
    cohere.order = Order::ParallelOneNorm;
    cohere.norms.feed_forward_in = None;
    cohere.spec.norm = Norm::LayerWithoutBias;
    cohere.spec.eps = fields.eps("layer_norm_eps", 1e-5)?;
    cohere.spec.logit_scale = fields.number("logit_scale", 0.0625)? as f32;
    Ok(cohere)
}
