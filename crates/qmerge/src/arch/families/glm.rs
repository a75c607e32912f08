//! GLM: Llama with gate and up in one matrix, and a rope over neighbours in half of each head.

use super::decoder::Decoder;
use super::spec::{Matrices, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["glm"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut glm = llama::read_with(fields, RopeDefaults { share: 0.5, ..RopeDefaults::default() })?;
    glm.interleave();
    glm.feed_forward.matrices = Matrices::FusedGated { names: ["mlp.gate_up_proj", "mlp.down_proj"] };
    Ok(glm)
}
