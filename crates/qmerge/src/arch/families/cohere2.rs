//! Cohere 2 (Command R7B, Command A): Cohere with a window in most layers, and no rope in the others.

use super::spec::Spec;
use super::{Arch, Fields, Result, cohere, generic};

pub(super) const ARCH: Arch = Arch { model_types: &["cohere2"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut cohere = cohere::read(fields)?;
    let every = fields.positive_if("sliding_window_pattern")?.unwrap_or(4);
    let sliding = fields.sliding_but_every(cohere.attention.len(), every)?;
    cohere.keep_ropes(sliding.iter().copied());
    cohere.slide(Some(fields.positive_if("sliding_window")?.unwrap_or(4096)), sliding);
    Ok(cohere.into())
}
