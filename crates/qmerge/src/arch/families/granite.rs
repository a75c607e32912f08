//! Granite: Llama with four factors.

use super::decoder::Decoder;
use super::spec::Spec;
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["granite"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    read_sized(fields, fields.count("intermediate_size")?)
}

/// With feed-forwards of that width.
pub(super) fn read_sized(fields: &Fields<'_>, width: usize) -> Result<Decoder> {
    let mut granite = llama::read_sized(fields, RopeDefaults::default(), width)?;
    let scale = fields.number("attention_multiplier", 1.0)? as f32;
    granite.attention.iter_mut().for_each(|attention| attention.scale = scale);
    granite.spec.embed_scale = fields.number("embedding_multiplier", 1.0)? as f32;
    granite.spec.residual_scale = fields.number("residual_multiplier", 1.0)? as f32;
    granite.spec.logit_scale = 1.0 / fields.above_zero("logits_scaling", 1.0)? as f32;
    Ok(granite)
}
