//! Phi 3: queries, keys and values in one matrix, gate and up in another.

use qmerge::error::Result;

use super::{Family, mistral};
use crate::fields::Fields;
use crate::spec::{Attention, FeedForward, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["phi3"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    Ok(Spec {
        attention: Attention::Fused { names: ["self_attn.qkv_proj", "self_attn.o_proj"] },
        feed_forward: FeedForward::FusedGated { names: ["mlp.gate_up_proj", "mlp.down_proj"] },
        ..mistral::spec(fields)?
    })
}
