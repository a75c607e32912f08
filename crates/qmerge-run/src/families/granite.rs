//! Granite: Llama with four factors.

use qmerge::error::Result;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::Spec;

pub(super) const FAMILY: Family = Family { model_types: &["granite"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(Spec {
        embed_scale: fields.number("embedding_multiplier", 1.0)? as f32,
        residual_scale: fields.number("residual_multiplier", 1.0)? as f32,
        attention_scale: fields.number("attention_multiplier", 1.0)? as f32,
        logit_scale: 1.0 / fields.above_zero("logits_scaling", 1.0)? as f32,
        ..llama::spec(fields)?
    })
}
