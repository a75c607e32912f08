//! Qwen 2: Llama with biases on queries, keys and values (found in the checkpoint), and a window in the upper layers if wanted.

use qmerge::error::Result;

use super::{Family, llama};
use crate::fields::Fields;
use crate::spec::Spec;

pub(super) const FAMILY: Family = Family { model_types: &["qwen2"], spec };

pub(super) fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = llama::spec(fields)?;
    if fields.flag("use_sliding_window", false)? {
        let window = fields.positive_if("sliding_window")?;
        let first = fields.count_if("max_window_layers")?.unwrap_or(0);
        let layers = spec.layers.len();
        let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i >= first).collect());
        for (layer, _) in spec.layers.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
            layer.window = window;
        }
    }
    Ok(spec)
}
