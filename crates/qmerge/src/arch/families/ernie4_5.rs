//! ERNIE 4.5: Llama with a rope over neighbours.

use super::spec::Spec;
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["ernie4_5"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut ernie = llama::read_with(fields, RopeDefaults { theta: 500_000.0, ..RopeDefaults::default() })?;
    ernie.interleave();
    ernie.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    Ok(ernie.into())
}
