//! Gemma: Llama with norms that add one to their weight, and scaled embeddings.

use super::spec::{Activation, Norm, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["gemma"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut gemma = llama::read(fields)?;
    gemma.spec.norm = Norm::RmsPlusOne;
    gemma.spec.embed_scale = (gemma.spec.hidden as f32).sqrt();
    gemma.feed_forward.activation = match Activation::read_or(fields, "hidden_act", Activation::GeluTanh)? {
        // So the first releases call the approximation.
        Activation::Gelu => Activation::GeluTanh,
        other => other,
    };
    Ok(gemma.into())
}
