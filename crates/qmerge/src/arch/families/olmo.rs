//! OLMo: Llama with layer norms that store nothing, and queries, keys and values that may be clipped.

use super::spec::{Norm, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["olmo"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut olmo = llama::read(fields)?;
    (olmo.spec.norm, olmo.spec.eps) = (Norm::LayerWithoutWeight, 1e-5);
    let clip = fields.above_zero_if("clip_qkv")?.map(|clip| clip as f32);
    olmo.attention.iter_mut().for_each(|attention| attention.clip = clip);
    Ok(olmo.into())
}
