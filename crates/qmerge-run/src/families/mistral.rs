//! Mistral: Llama with a sliding window in every layer, where the configuration sets one.

use qmerge::error::Result;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::Spec;

pub(super) const FAMILY: Family = Family { model_types: &["mistral"], spec };

pub(super) fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = llama::spec(fields)?;
    let window = fields.positive_if("sliding_window")?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}
