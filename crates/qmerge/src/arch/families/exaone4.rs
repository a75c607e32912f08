//! EXAONE 4: norms after each block, as in OLMo 2, and over each head; where some layers have a window, the others have no rope.

use super::spec::{QkNorm, Spec};
use super::{Arch, Fields, Result, generic, llama, olmo2};

pub(super) const ARCH: Arch = Arch { model_types: &["exaone4"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut exaone = llama::read(fields)?;
    exaone.norms = olmo2::NORMS;
    exaone.norm_queries_and_keys(QkNorm::per_head(llama::QK_NORM));
    exaone.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    if let Some(window) = fields.positive_if("sliding_window")? {
        let layers = exaone.attention.len();
        let sliding = match fields.sliding(layers)? {
            Some(sliding) => sliding,
            None => fields.sliding_but_every(layers, fields.positive_if("sliding_window_pattern")?.unwrap_or(4))?,
        };
        exaone.keep_ropes(sliding.iter().copied());
        exaone.slide(Some(window), sliding);
    }
    Ok(exaone.into())
}
