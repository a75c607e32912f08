//! OLMo 2: norms after each block instead of before, and over all queries and keys together.

use qmerge::error::Result;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::{Norms, QkNorm, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["olmo2"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(Spec {
        norms: Norms {
            attention_in: None,
            attention_out: Some("post_attention_layernorm"),
            feed_forward_in: None,
            feed_forward_out: Some("post_feedforward_layernorm"),
        },
        qk_norm: QkNorm::Whole,
        ..llama::spec(fields)?
    })
}
