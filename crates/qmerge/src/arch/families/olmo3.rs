//! OLMo 3: OLMo 2 with a window in most layers, whose rope is not scaled.

use super::spec::Spec;
use super::{Arch, Fields, Result, Rope, RopeDefaults, generic, llama, olmo2};

pub(super) const ARCH: Arch = Arch { model_types: &["olmo3"], spec: Some(spec), ..generic::ARCH };

const THETA: f64 = 500_000.0;

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut olmo = llama::read_with(fields, RopeDefaults { theta: THETA, ..RopeDefaults::default() })?;
    olmo.norms = olmo2::NORMS;
    olmo.norm_queries_and_keys(olmo2::QK_NORM);
    olmo.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    let head_dim = olmo.attention.first().map_or(0, |attention| attention.head_dim);
    let full = Rope::read(fields, head_dim, Some("full_attention"), THETA)?;
    let local = match fields.get("rope_parameters") {
        Some(_) => Rope::read(fields, head_dim, Some("sliding_attention"), THETA)?,
        None => Rope::plain(fields, head_dim, fields.above_zero("rope_theta", THETA)?)?,
    };
    olmo.spec.ropes = vec![full, local];
    let sliding = fields.sliding_but_every(olmo.attention.len(), 4)?;
    for (attention, &sliding) in olmo.attention.iter_mut().zip(&sliding) {
        attention.rope = Some(usize::from(sliding));
    }
    olmo.slide(Some(fields.positive_if("sliding_window")?.unwrap_or(4096)), sliding);
    Ok(olmo.into())
}
