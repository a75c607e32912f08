//! Phi 3: queries, keys and values in one matrix, gate and up in another.

use super::spec::{Matrices, Projections, Spec};
use super::{Arch, Fields, Result, generic, mistral};

pub(super) const ARCH: Arch = Arch { model_types: &["phi3"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut phi = mistral::read(fields)?;
    for attention in &mut phi.attention {
        attention.projections = Projections::Fused { names: ["self_attn.qkv_proj", "self_attn.o_proj"] };
    }
    phi.feed_forward.matrices = Matrices::FusedGated { names: ["mlp.gate_up_proj", "mlp.down_proj"] };
    Ok(phi.into())
}
