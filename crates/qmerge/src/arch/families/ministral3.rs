//! Ministral 3: Mistral with queries that grow with their position.

use super::spec::Spec;
use super::{Arch, Fields, Result, Rope, generic, mistral};

pub(super) const ARCH: Arch = Arch { model_types: &["ministral3"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut ministral = mistral::read(fields)?;
    let growth = Rope::growth(fields)?.ok_or_else(|| fields.missing("llama_4_scaling_beta"))?;
    ministral.attention.iter_mut().for_each(|attention| attention.growth = Some(growth));
    ministral.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    Ok(ministral.into())
}
